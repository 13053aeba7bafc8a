//! What K3s and its kubelet are told: rendered from `[k3s]` and `[cluster]`, checked key by key against the settings that
//! this version of K3s has, and merged with the owner's files by K3s' own rules, or refused.
//!
//! K3s reads `config.yaml`, then `config.yaml.d/*.yaml` by name; a later value replaces, `key+` appends; a key that it
//! does not know is skipped with a warning in the log (k3s-io/k3s pkg/configfilearg). A file of the owner is never
//! written: bramble's settings then stand in a file of their own, and what either would take from the other is refused. A
//! file that bramble wrote and somebody has changed since is its owner's too.

use std::net::Ipv4Addr;
use std::sync::LazyLock;

use serde_json::Value;

use super::path;
use crate::config::cluster::Range;
use crate::config::k3s::{Role, Setting, Version};
use crate::config::{Config, visible};
use crate::converge::receipt::written;
use crate::facts::table;
use crate::host::{Host, Unreadable};

/// How a file begins that bramble wrote.
const MARK: &str = "# Written by bramble join";
/// Where bramble's settings stand when `config.yaml` is the owner's.
pub const DROP_IN: &str = "/etc/rancher/k3s/config.yaml.d/50-bramble.yaml";

/// Keys in their order, each with its values; a switch has the value "true" or "false".
pub type Settings = Vec<(String, Values)>;

/// The value of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Values {
    /// As texts.
    pub texts: Vec<String>,
    /// Whether it is written as a list.
    pub is_list: bool,
}

/// A file of K3s' configuration, as it is on the host.
#[derive(Debug, Clone)]
pub struct Existing {
    /// Where.
    pub path: String,
    /// What stands in it.
    pub text: String,
    /// Whether it is as bramble wrote it.
    pub is_ours: bool,
}

/// A file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Where.
    pub path: String,
    /// All of it.
    pub content: String,
}

/// Why nothing is written: a cause and a next step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Refused {
    /// The cause.
    pub what: String,
    /// The step.
    pub next: String,
}

struct Flag {
    name: &'static str,
    role: &'static str,
    since: (u32, u32),
}

static FLAGS: LazyLock<Vec<Flag>> = LazyLock::new(|| {
    table::rows(include_str!("../../data/k3s_flags.csv"), ["name", "role", "since"])
        .map(|[name, role, since]| {
            let (major, minor) = since.split_once('.').expect("the table holds versions");
            let number = |text: &str| text.parse().expect("the table holds numbers");
            Flag { name, role, since: (number(major), number(minor)) }
        })
        .collect()
});

/// Versions whose settings the table knows.
pub const KNOWN: std::ops::RangeInclusive<(u32, u32)> = (1, 30)..=(1, 35);

/// What all servers must have alike, as far as a server tells it: the setting, its name in what the server says of
/// itself, and its value where nobody sets it. K3s' `CriticalControlArgs`; secrets are not told, and the cluster's DNS
/// follows from its range.
const ALIKE: [(&str, &str, &str); 15] = [
    ("cluster-cidr", "ClusterIPRange", "10.42.0.0/16"),
    // Unless it is set it is the tenth address of the services.
    ("cluster-dns", "ClusterDNS", ""),
    ("cluster-domain", "ClusterDomain", "cluster.local"),
    ("disable-cloud-controller", "DisableCCM", "false"),
    ("disable-helm-controller", "DisableHelmController", "false"),
    ("disable-network-policy", "DisableNPC", "false"),
    ("egress-selector-mode", "EgressSelectorMode", "agent"),
    ("embedded-registry", "EmbeddedRegistry", "false"),
    ("flannel-backend", "FlannelBackend", "vxlan"),
    ("flannel-external-ip", "FlannelExternalIP", "false"),
    ("flannel-ipv6-masq", "FlannelIPv6Masq", "false"),
    ("secrets-encryption", "EncryptSecrets", "false"),
    ("secrets-encryption-provider", "EncryptProvider", "aescbc"),
    ("service-cidr", "ServiceIPRange", "10.43.0.0/16"),
    ("disable: servicelb", "DisableServiceLB", "false"),
];

/// What this node, as a server, would have of that which all servers must have alike: the setting, its name in what a
/// server tells, its value.
pub fn alike(settings: &Settings, existing: &[Existing]) -> Vec<(&'static str, &'static str, String)> {
    let mut all: Vec<(String, Vec<String>)> =
        settings.iter().map(|(key, values)| (key.clone(), values.texts.clone())).collect();
    // What cannot be read is refused when the files are made.
    let k3s = existing.iter().filter(|file| file.path != path::KUBELET_CONFIG);
    let owners = k3s.filter_map(|file| read(&file.text).ok()).flatten();
    all.extend(owners.map(|(key, _, values)| (key, values)));
    let values = |key: &str| {
        all.iter().filter(|(known, _)| known == key).flat_map(|(_, texts)| texts).collect::<Vec<_>>()
    };
    ALIKE
        .map(|(flag, told, default)| {
            let value = match flag.split_once(": ") {
                Some((list, item)) => values(list).iter().any(|value| *value == item).to_string(),
                None => values(flag).first().map_or(default.to_owned(), |value| (*value).clone()),
            };
            let value = match flag {
                "cluster-dns" if value.is_empty() => tenth(values("service-cidr").first().copied()),
                _ => value,
            };
            (flag, told, value)
        })
        .into()
}

/// The address of the cluster's DNS, where nobody sets it: the tenth of the services' first range.
fn tenth(services: Option<&String>) -> String {
    let first = services.map_or("10.43.0.0/16", |list| list.split(',').next().unwrap_or_default().trim());
    let range = Range::try_from(first.to_owned());
    range
        .map_or_else(|_| String::new(), |range| Ipv4Addr::from_bits(range.network.to_bits() + 10).to_string())
}

/// Whether a version of K3s takes a setting in this role; `Err` says why not.
fn takes(name: &str, role: &Role, version: &Version) -> Result<(), String> {
    let Some(flag) = FLAGS.iter().find(|flag| flag.name == name) else {
        let like = |flag: &&Flag| (strsim::jaro_winkler(flag.name, name) * 1000.0) as u32;
        let nearest = FLAGS.iter().max_by_key(like).filter(|flag| like(flag) > 850);
        let hint = nearest.map_or(String::new(), |flag| format!("; there is {}", flag.name));
        return Err(format!("K3s has no setting {}{hint}", visible(name)));
    };
    let wanted = if role.is_server() { "server" } else { "agent" };
    if flag.role != "both" && flag.role != wanted {
        return Err(format!("{name} is a setting of {}s, and this node is to be {}", flag.role, role.name()));
    }
    if version.kubernetes < flag.since {
        let (major, minor) = flag.since;
        return Err(format!("K3s has {name} since v{major}.{minor}, and {version} is asked for"));
    }
    Ok(())
}

/// The one value that a setting may have here, whoever writes it, empty where it may have none; and why.
fn fixed(key: &str, role: &Role, config: &Config) -> Option<(&'static str, &'static str)> {
    const API: &str = "bramble and Cilium ask the API at 127.0.0.1:6444";
    Some(match key {
        "cluster-init" if *role != Role::First => ("false", "this node joins a cluster, and begins none"),
        "cluster-reset" => ("false", "it is done once, by hand: k3s server --cluster-reset"),
        "data-dir" => (path::DATA, "K3s' own scripts know /var/lib/rancher/k3s alone"),
        "disable-agent" => ("false", "a server without an agent is no node that could be Ready"),
        "disable-helm-controller" if *role == Role::First && config.cluster.cilium => {
            ("false", "K3s' Helm controller is to install Cilium")
        }
        "https-listen-port" => ("6443", API),
        "lb-server-port" => ("6444", API),
        "server" if *role == Role::First => ("", "this node begins a cluster, and joins none"),
        "token" => ("", "K3s takes it instead of the one in the token's file"),
        "with-node-id" => ("false", "K3s adds a number to the node's name by which nobody here knows it"),
        _ => return None,
    })
}

/// All that bramble tells K3s.
///
/// # Errors
/// A key of `k3s.settings` that this version does not have, or a version whose settings are not known.
pub fn settings(
    config: &Config,
    role: &Role,
    version: &Version,
    token_file: &str,
) -> Result<Settings, Refused> {
    let (cluster, k3s) = (&config.cluster, &config.k3s);
    if !KNOWN.contains(&version.kubernetes) {
        let ((a, b), (c, d)) = (KNOWN.start(), KNOWN.end());
        return Err(Refused {
            what: format!("the settings of K3s {version} are not known, only those of v{a}.{b} to v{c}.{d}"),
            next: "ask for a version in between, or install a newer bramble".into(),
        });
    }
    let mut settings = Settings::new();
    let mut add = |key: &str, is_list, texts: Vec<String>| {
        if !texts.is_empty() {
            settings.push((key.to_owned(), Values { texts, is_list }));
        }
    };
    let one = |text: &dyn ToString| vec![text.to_string()];
    match role {
        Role::First => add("cluster-init", false, one(&true)),
        Role::Server(url) | Role::Agent(url) => add("server", false, one(&url.origin())),
    }
    add("token-file", false, one(&token_file));
    if role.is_server() {
        add("cluster-cidr", false, one(&cluster.pods));
        add("service-cidr", false, one(&cluster.services));
        if cluster.cilium {
            add("flannel-backend", false, one(&"none"));
            add("disable-network-policy", false, one(&true));
            add("disable-kube-proxy", false, one(&true));
            if cluster.l2_announcements {
                add("disable", true, vec!["servicelb".into()]);
            }
        }
        add("tls-san", true, k3s.tls_san.clone());
    }
    add("node-label", true, k3s.labels.clone());
    add("node-taint", true, k3s.taints.clone());
    let mut kubelet = k3s.kubelet_args.clone();
    if !k3s.shutdown.is_zero() {
        kubelet.insert(0, format!("config={}", path::KUBELET_CONFIG));
    }
    add("kubelet-arg", true, kubelet);
    if cluster.protect_kernel_defaults {
        add("protect-kernel-defaults", false, one(&true));
    }
    for (key, value) in &k3s.settings {
        let (texts, is_list) = match value {
            Setting::Switch(on) => (one(on), false),
            Setting::Number(number) => (one(number), false),
            Setting::Text(text) => (one(text), false),
            Setting::List(list) => (list.clone(), true),
        };
        match settings.iter_mut().find(|(known, _)| known == key) {
            // Both lists count: what bramble switches off stays off.
            Some((_, values)) if values.is_list => {
                let new: Vec<String> =
                    texts.into_iter().filter(|text| !values.texts.contains(text)).collect();
                values.texts.extend(new);
            }
            Some((_, values)) if values.texts != texts => {
                return Err(Refused {
                    what: format!(
                        "k3s.settings has {key} = {}, and what stands in [cluster] asks for {}",
                        texts.join(", "),
                        values.texts.join(", ")
                    ),
                    next: format!("take {key} out of k3s.settings, or change [cluster]"),
                });
            }
            Some(_) => {}
            None => settings.push((key.clone(), Values { texts, is_list })),
        }
    }
    for (key, values) in &settings {
        takes(key, role, version).map_err(|what| Refused {
            what,
            next: "mend k3s.settings; k3s server --help and k3s agent --help list all".into(),
        })?;
        if let Some((value, why)) = fixed(key, role, config)
            && values.texts != [value]
        {
            return Err(Refused {
                what: format!("k3s.settings has {key} = {}: {why}", shown(key, &values.texts)),
                next: format!("take {key} out of k3s.settings"),
            });
        }
    }
    Ok(settings)
}

/// The files that K3s reads, in its order, and then the kubelet's.
pub fn existing(host: &Host) -> Result<Vec<Existing>, Unreadable> {
    let names = host.list_if_present(path::CONFIG_D)?;
    let is_read = |name: &&String| name.ends_with(".yaml") || name.ends_with(".yml");
    let drop_ins = names.iter().filter(is_read).map(|name| format!("{}/{name}", path::CONFIG_D));
    let mut existing = Vec::new();
    let kubelet = [path::KUBELET_CONFIG.to_owned()];
    for path in [path::CONFIG.to_owned()].into_iter().chain(drop_ins).chain(kubelet) {
        if let Some(text) = host.text_if_present(&path)? {
            // Who may not read receipts changes nothing either, and is told what root would be told of a file unchanged.
            let is_unchanged = written(host, &path).map_or(true, |ours| ours.as_ref() == Some(&text));
            let is_ours = text.starts_with(MARK) && is_unchanged;
            existing.push(Existing { path, text, is_ours });
        }
    }
    Ok(existing)
}

/// The files to write, given those that are there. What an owner's file says already is not said again.
///
/// # Errors
/// An owner's file that cannot be read whole, holds a key that K3s would skip or that does not go with bramble's, or says
/// something else than bramble.
pub fn files(
    settings: &Settings,
    existing: &[Existing],
    config: &Config,
    role: &Role,
    version: &Version,
) -> Result<Vec<File>, Refused> {
    let (kubelets, existing): (Vec<&Existing>, Vec<&Existing>) =
        existing.iter().partition(|file| file.path == path::KUBELET_CONFIG);
    let owners: Vec<&Existing> = existing.iter().filter(|file| !file.is_ours).copied().collect();
    let is_owners = |path: &str| owners.iter().any(|file| file.path == path);
    // Where they stood once they go on standing: left behind, they would overrule the new ones.
    let is_drop_in = is_owners(path::CONFIG) || existing.iter().any(|file| file.path == DROP_IN);
    let target = if is_drop_in { DROP_IN } else { path::CONFIG };
    let (mut appended, mut said, mut added) = (Vec::<&str>::new(), Vec::<&str>::new(), Vec::<&str>::new());
    for file in &owners {
        let read = read(&file.text).map_err(|(line, why)| Refused {
            what: format!("{}: line {line}: {why}", file.path),
            next: format!(
                "write it as \"key: value\" or \"key:\" with \"- value\" below; or move {} away",
                file.path
            ),
        })?;
        for (key, appends, values) in read {
            let place = |what: String| format!("{}: {what}", file.path);
            takes(&key, role, version).map_err(|what| Refused {
                what: place(format!("{what}; K3s would skip it without a word")),
                next: format!("mend {key} in {}, or take it out", file.path),
            })?;
            let Some((name, ours)) = settings.iter().find(|(known, _)| *known == key) else {
                match fixed(&key, role, config) {
                    Some((value, why)) if values != [value] => {
                        return Err(Refused {
                            what: place(format!("{key} is {}: {why}", shown(&key, &values))),
                            next: format!("take {key} out of {}", file.path),
                        });
                    }
                    _ => continue,
                }
            };
            let is_before = is_drop_in && file.path.as_str() < DROP_IN;
            let is_file = |text: &&String| key == "kubelet-arg" && text.starts_with("config=");
            let other_file = values.iter().find(|text| is_file(text) && !ours.texts.contains(text));
            match () {
                // What comes later replaces: ours theirs, or theirs ours. Alike, nothing is lost.
                () if ours.texts == values => said.push(name),
                () if other_file.is_some() && ours.texts.iter().any(|text| is_file(&text)) => {
                    return Err(Refused {
                        what: place(format!(
                            "the kubelet is given another file than {}",
                            path::KUBELET_CONFIG
                        )),
                        next: "write shutdown = \"0s\" into [k3s], and your own into that file".into(),
                    });
                }
                () if ours.is_list && is_before => appended.push(name),
                () if ours.is_list && appends => added.push(name),
                () => {
                    return Err(Refused {
                        what: place(format!(
                            "{key} is {}, and bramble is to write {}",
                            shown(&key, &values),
                            ours.texts.join(", ")
                        )),
                        next: format!(
                            "take {key} out of {}, or change it in bramble's configuration",
                            file.path
                        ),
                    });
                }
            }
        }
    }
    let is_said = |key: &str| said.contains(&key) && !appended.contains(&key) && !added.contains(&key);
    let unsaid: Settings = settings.iter().filter(|(key, _)| !is_said(key)).cloned().collect();
    let mut files = Vec::new();
    match (unsaid.is_empty(), is_owners(target)) {
        (true, true) => {}
        (true, false) if !existing.iter().any(|file| file.path == target) => {}
        (false, true) => {
            let what = format!("{target} was changed by somebody, and does not say {}", unsaid[0].0);
            return Err(Refused { what, next: format!("write it into {target}, or move that away") });
        }
        _ => files.push(File { path: target.into(), content: render(&unsaid, &appended) }),
    }
    if !config.k3s.shutdown.is_zero() {
        files.extend(kubelet(config, kubelets.first().copied())?);
    }
    Ok(files)
}

/// The kubelet's file; `None` when its owner's says the same, whatever else it says.
fn kubelet(config: &Config, existing: Option<&Existing>) -> Result<Option<File>, Refused> {
    let seconds = |time: std::time::Duration| format!("{}s", time.as_secs());
    let settings = [
        ("apiVersion", "kubelet.config.k8s.io/v1beta1".to_owned()),
        ("kind", "KubeletConfiguration".to_owned()),
        ("shutdownGracePeriod", seconds(config.k3s.shutdown)),
        ("shutdownGracePeriodCriticalPods", seconds(config.k3s.shutdown_critical)),
    ];
    let Some(owners) = existing.filter(|file| !file.is_ours) else {
        let lines = settings.map(|(key, value)| format!("{key}: {}\n", Value::from(value)));
        let content = format!("{MARK}: a shutdown of the machine waits for pods.\n{}", lines.concat());
        return Ok(Some(File { path: path::KUBELET_CONFIG.into(), content }));
    };
    let says = |key: &str, value: &str| {
        let lines = owners.text.lines().filter_map(|line| line.split_once(':'));
        lines.into_iter().any(|(known, said)| known == key && scalar(said.trim()).as_deref() == Ok(value))
    };
    match settings.iter().find(|(key, value)| !says(key, value)) {
        None => Ok(None),
        Some((key, value)) => Err(Refused {
            what: format!("{} is not bramble's, and does not say {key}: {value}", owners.path),
            next: "write that into it, or shutdown = \"0s\" into [k3s], or move the file away".into(),
        }),
    }
}

/// Values for an error; secrets are not repeated.
fn shown(key: &str, values: &[String]) -> String {
    match key.contains("token") && !key.ends_with("-file") || key.contains("secret") {
        true => "something else".into(),
        false => values.join(", "),
    }
}

/// JSON's texts are YAML's; a switch or a number stands as itself.
fn render(settings: &Settings, appended: &[&str]) -> String {
    let mut text = format!("{MARK}\n# K3s' settings by their names on its command line.\n");
    for (key, values) in settings {
        match values.is_list {
            true => {
                let plus = if appended.contains(&key.as_str()) { "+" } else { "" };
                text += &format!("{key}{plus}:\n");
                text.extend(
                    values.texts.iter().map(|value| format!("  - {}\n", Value::from(value.as_str()))),
                );
            }
            false => text.extend(values.texts.iter().map(|value| {
                let plain = matches!(value.as_str(), "true" | "false") || value.parse::<i64>().is_ok();
                match plain {
                    true => format!("{key}: {value}\n"),
                    false => format!("{key}: {}\n", Value::from(value.as_str())),
                }
            })),
        }
    }
    text
}

/// A key, whether it appends, and its values.
type Line = (String, bool, Vec<String>);

/// The part of YAML that K3s' files are written in: keys at the line's beginning, scalars in one line, lists in lines or
/// in brackets. Anything else is an error with its line, so that nothing is read as less than it says.
fn read(text: &str) -> Result<Vec<Line>, (usize, &'static str)> {
    let mut settings: Vec<Line> = Vec::new();
    // Whether the last key may still get a list in lines.
    let mut open = false;
    for (number, line) in text.lines().enumerate() {
        let wrong = |why| (number + 1, why);
        let content = line.trim();
        if content.is_empty() || content.starts_with('#') || line == "---" && settings.is_empty() {
            continue;
        }
        if content == "-" || content.starts_with("- ") {
            let last = settings.last_mut().filter(|_| open).ok_or(wrong("a list without a key"))?;
            last.2.push(scalar(content[1..].trim()).map_err(wrong)?);
            continue;
        }
        if line.starts_with([' ', '\t']) {
            return Err(wrong("a value within a value"));
        }
        let (key, value) = content.split_once(':').ok_or(wrong("no \"key: value\""))?;
        if !(value.is_empty() || value.starts_with([' ', '\t'])) {
            return Err(wrong("no blank behind the colon"));
        }
        let key = scalar(key.trim()).map_err(wrong)?;
        let (key, appends) = key.strip_suffix('+').map_or((key.as_str(), false), |key| (key, true));
        if !appends && settings.iter().any(|(known, ..)| known == key) {
            return Err(wrong("a key that stands above already"));
        }
        let value = without_remark(value.trim());
        let values = match value.strip_prefix('[') {
            Some(list) => {
                let list =
                    list.strip_suffix(']').ok_or(wrong("a list that does not end in its line"))?.trim();
                match list.is_empty() {
                    true => vec![],
                    false => list
                        .split(',')
                        .map(|item| scalar(item.trim()))
                        .collect::<Result<_, _>>()
                        .map_err(wrong)?,
                }
            }
            None if value.is_empty() => vec![],
            None => vec![scalar(value).map_err(wrong)?],
        };
        open = value.is_empty();
        settings.push((key.to_owned(), appends, values));
    }
    Ok(settings)
}

fn without_remark(value: &str) -> &str {
    match value.starts_with(['"', '\'']) {
        true => value,
        false if value.starts_with('#') => "",
        false => value.split(" #").next().unwrap_or(value).trim_end(),
    }
}

fn scalar(text: &str) -> Result<String, &'static str> {
    let text = without_remark(text);
    match text.chars().next() {
        None => Ok(String::new()),
        Some(quote @ ('"' | '\'')) => {
            let (inside, behind) =
                text[1..].split_once(quote).ok_or("a quote that does not end in its line")?;
            let behind = behind.trim_start();
            if inside.contains('\\') || !(behind.is_empty() || behind.starts_with('#')) {
                return Err("a quoted value that is more than plain text");
            }
            Ok(inside.to_owned())
        }
        Some('{' | '}' | '[' | ']' | '&' | '*' | '!' | '|' | '>' | '%' | '@' | '`' | '?') => {
            Err("a value that is more than plain text")
        }
        Some(_) if text.contains(": ") || text.ends_with(':') => Err("a value within a value"),
        Some(_) => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::cluster;
    use crate::host::http::Url;

    fn version(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    fn config(k3s: &str, server: bool) -> Config {
        let mut config = Config::default();
        config.k3s = crate::config::k3s::tests::checked(k3s);
        if server {
            config.cluster.role = cluster::Role::Server;
        }
        config
    }

    fn agent() -> Role {
        Role::Agent(Url::parse("https://10.0.0.11:6443").unwrap())
    }

    fn written(config: &Config, role: &Role, existing: &[(&str, &str)]) -> Result<Vec<File>, String> {
        let version = version("v1.35.2+k3s1");
        let say = |refused: Refused| format!("{refused}; {}", refused.next);
        let settings = settings(config, role, &version, "/etc/rancher/k3s/cluster-token").map_err(say)?;
        let existing: Vec<Existing> = existing
            .iter()
            .map(|(path, text)| Existing {
                path: (*path).into(),
                text: (*text).into(),
                is_ours: text.starts_with(MARK),
            })
            .collect();
        files(&settings, &existing, config, role, &version).map_err(say)
    }

    #[test]
    fn an_agent_is_told_whom_it_joins_and_what_it_is_called() {
        let config = config("labels = [\"node_type=worker\"]\nkubelet_args = [\"max-pods=50\"]", false);
        let files = written(&config, &agent(), &[]).unwrap();
        assert_eq!(files[0].path, path::CONFIG);
        assert_eq!(
            files[0].content,
            "# Written by bramble join\n# K3s' settings by their names on its command line.\n\
             server: \"https://10.0.0.11:6443\"\ntoken-file: \"/etc/rancher/k3s/cluster-token\"\n\
             node-label:\n  - \"node_type=worker\"\n\
             kubelet-arg:\n  - \"config=/etc/rancher/k3s/kubelet.config\"\n  - \"max-pods=50\"\n"
        );
        assert_eq!(
            files[1].content.lines().skip(1).collect::<Vec<_>>(),
            [
                "apiVersion: \"kubelet.config.k8s.io/v1beta1\"",
                "kind: \"KubeletConfiguration\"",
                "shutdownGracePeriod: \"30s\"",
                "shutdownGracePeriodCriticalPods: \"10s\""
            ]
        );
    }

    #[test]
    fn a_server_leaves_the_network_to_cilium() {
        let config = config(
            "init = true\ntls_san = [\"10.0.0.11\"]\nsettings = { disable = [\"traefik\"], etcd-expose-metrics = true }",
            true,
        );
        let text = written(&config, &Role::First, &[]).unwrap()[0].content.clone();
        for line in [
            "cluster-init: true\n",
            "flannel-backend: \"none\"\n",
            "disable-kube-proxy: true\n",
            "disable-network-policy: true\n",
            "disable:\n  - \"servicelb\"\n  - \"traefik\"\n",
            "cluster-cidr: \"10.42.0.0/16\"\n",
            "etcd-expose-metrics: true\n",
            "tls-san:\n  - \"10.0.0.11\"\n",
        ] {
            assert!(text.contains(line), "{line:?} is not in {text}");
        }
        assert!(!text.contains("server:"), "{text}");
        // What is rendered is read as the same.
        assert_eq!(read(&text).unwrap().len(), text.lines().filter(|l| !l.starts_with(['#', ' '])).count());
    }

    #[test]
    fn each_key_is_one_that_this_version_and_this_role_has() {
        let refused = |k3s: &str, server: bool, of: &str| {
            let config = config(k3s, server);
            let role = if server { Role::First } else { agent() };
            settings(&config, &role, &version(of), "/t").unwrap_err().what
        };
        let misspelt = refused("settings = { flanel-iface = \"eth0\" }", false, "v1.35.2+k3s1");
        assert!(misspelt.contains("no setting flanel-iface; there is flannel-iface"), "{misspelt}");
        let role = refused("settings = { etcd-expose-metrics = true }", false, "v1.35.2+k3s1");
        assert!(role.contains("setting of servers"), "{role}");
        let old = refused("settings = { etcd-s3-retention = 5 }", true, "v1.30.2+k3s2");
        assert!(old.contains("since v1.31"), "{old}");
        for unknown in ["v1.29.15+k3s1", "v1.36.0+k3s1", "v2.30.0+k3s1", "v0.35.0+k3s1"] {
            let refused = refused("", false, unknown);
            assert_eq!(
                refused,
                format!("the settings of K3s {unknown} are not known, only those of v1.30 to v1.35")
            );
        }
        // A patch is judged by its minor version, as the shipped configuration says.
        let shipped = include_str!("../../../packaging/bramble.toml");
        let ((a, b), (c, d)) = (KNOWN.start(), KNOWN.end());
        assert!(shipped.contains(&format!("# Which K3s, of v{a}.{b} to v{c}.{d};")));
        for patch in ["v1.31.0+k3s1", "v1.31.14+k3s9", "v1.35.99+k3s1"] {
            let config = config("settings = { etcd-s3-retention = 5 }", true);
            settings(&config, &Role::First, &version(patch), "/t").unwrap();
        }
        let conflict = refused("settings = { flannel-backend = \"vxlan\" }", true, "v1.35.2+k3s1");
        assert!(conflict.contains("vxlan") && conflict.contains("none"), "{conflict}");
    }

    #[test]
    fn what_must_be_alike_on_all_servers_is_what_was_written_or_k3s_own_value() {
        for (flag, ..) in ALIKE.iter().filter(|(flag, ..)| !flag.contains(':')) {
            assert!(FLAGS.iter().any(|known| known.name == *flag && known.role == "server"), "{flag}");
        }
        let config = config("init = true", true);
        let settings = settings(&config, &Role::First, &version("v1.35.2+k3s1"), "/t").unwrap();
        let text = "secrets-encryption: true\n".into();
        let owners = Existing { path: path::CONFIG.into(), text, is_ours: false };
        let alike = alike(&settings, &[owners]);
        let value = |flag| alike.iter().find(|(known, ..)| *known == flag).unwrap().2.as_str();
        for (flag, wanted) in [
            ("flannel-backend", "none"),
            ("disable-network-policy", "true"),
            ("disable: servicelb", "true"),
            ("secrets-encryption", "true"),
            ("egress-selector-mode", "agent"),
            ("cluster-cidr", "10.42.0.0/16"),
            ("cluster-dns", "10.43.0.10"),
            ("secrets-encryption-provider", "aescbc"),
        ] {
            assert_eq!(value(flag), wanted, "{flag}");
        }
    }

    #[test]
    fn an_owners_file_stays_and_both_count() {
        let config = config("labels = [\"a=b\"]", false);
        let owners =
            "# mine\nnode-ip: 10.0.0.5   # the wired one\nnode-label: [\"c=d\"]\nkubelet-arg+:\n- \"v=2\"\n";
        let files = written(&config, &agent(), &[(path::CONFIG, owners)]).unwrap();
        assert_eq!(files[0].path, DROP_IN);
        assert!(files[0].content.contains("node-label+:\n  - \"a=b\"\n"), "{}", files[0].content);
        assert!(files[0].content.contains("kubelet-arg+:\n"), "{}", files[0].content);
        // One that bramble wrote is written anew.
        let ours = format!("{MARK}\nserver: \"https://old:6443\"\n");
        assert_eq!(written(&config, &agent(), &[(path::CONFIG, &ours)]).unwrap()[0].path, path::CONFIG);
        // Of several files the later replaces: an owner's list behind bramble's must append.
        let late = "/etc/rancher/k3s/config.yaml.d/90.yaml";
        assert!(written(&config, &agent(), &[(late, "node-label+: [c=d]\n")]).is_ok());
        assert!(written(&config, &agent(), &[(late, "node-label: [c=d]\n")]).unwrap_err().contains(late));
    }

    #[test]
    fn an_owners_file_that_contradicts_or_cannot_be_read_is_refused_with_its_place() {
        let config = config("", false);
        for (text, says) in [
            ("server: https://other:6443\n", "server is https://other:6443"),
            ("token-file: /x\n", "token-file"),
            ("\nnode-ipp: 1\n", "no setting node-ipp; there is node-ip"),
            ("a:\n  b: c\n", "line 2"),
            ("- a\n", "line 1: a list without a key"),
            ("node-ip: |\n", "line 1"),
            ("node-ip: &a x\n", "line 1"),
            ("node-ip: \"x\n", "line 1: a quote"),
            ("node-ip:x\n", "line 1"),
            ("node-label: [a=b,\n", "line 1: a list"),
            ("node-ip: 1\nnode-ip: 2\n", "line 2: a key that stands above"),
            ("nonsense\n", "line 1"),
        ] {
            let refused = written(&config, &agent(), &[(path::CONFIG, text)]).unwrap_err();
            assert!(refused.contains(path::CONFIG) && refused.contains(says), "{text:?}: {refused}");
        }
    }

    #[test]
    fn an_owners_kubelet_file_stays_and_says_what_is_needed_or_is_refused() {
        let config = config("", false);
        let with = |text: &str| written(&config, &agent(), &[(path::KUBELET_CONFIG, text)]);
        let v1_9 = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nshutdownGracePeriod: 30s\n\
                    shutdownGracePeriodCriticalPods: 10s\n";
        for owners in [v1_9.to_owned(), format!("{v1_9}evictionHard:\n  memory.available: 5%\n")] {
            let files = with(&owners).unwrap();
            assert!(files.iter().all(|file| file.path != path::KUBELET_CONFIG), "{files:?}");
        }
        let refused = with("kind: KubeletConfiguration\nmaxPods: 50\n").unwrap_err();
        assert!(refused.contains("not bramble's") && refused.contains("or move the file away"), "{refused}");
        assert!(with(&v1_9.replace("10s", "20s")).unwrap_err().contains("CriticalPods: 10s"));
        let mut off = self::config("", false);
        off.k3s.shutdown = std::time::Duration::ZERO;
        assert_eq!(written(&off, &agent(), &[(path::KUBELET_CONFIG, "maxPods: 50\n")]).unwrap().len(), 1);
        let other = [(path::CONFIG, "kubelet-arg+: [config=/etc/mine]\n")];
        assert!(written(&config, &agent(), &other).unwrap_err().contains("another file"));
        assert!(written(&off, &agent(), &other).is_ok());
    }

    #[test]
    fn what_does_not_go_with_bramble_is_refused_in_an_owners_file_and_in_the_settings() {
        let (agents, servers) = (config("", false), config("init = true", true));
        let joins = Role::Server(Url::parse("https://10.0.0.11:6443").unwrap());
        for (config, role, text, says) in [
            (&servers, Role::First, "server: https://10.0.0.12:6443\n", "begins a cluster"),
            (&servers, Role::First, "disable-helm-controller: true\n", "install Cilium"),
            (&servers, Role::First, "https-listen-port: 7443\n", "127.0.0.1:6444"),
            (&servers, Role::First, "disable-agent: true\n", "no node"),
            (&servers, joins, "cluster-init: true\n", "begins none"),
            (&agents, agent(), "token: hunter2\n", "instead of the one"),
            (&agents, agent(), "data-dir: /mnt/k3s\n", "own scripts"),
            (&agents, agent(), "lb-server-port: 7444\n", "127.0.0.1:6444"),
            (&agents, agent(), "with-node-id: true\n", "number"),
        ] {
            let refused = written(config, &role, &[(path::CONFIG, text)]).unwrap_err();
            assert!(refused.contains(says) && !refused.contains("hunter2"), "{text:?}: {refused}");
        }
        let harmless = "data-dir: /var/lib/rancher/k3s\nwith-node-id: false\nlb-server-port: 6444\n";
        assert!(written(&agents, &agent(), &[(path::CONFIG, harmless)]).is_ok());
        for k3s in ["settings = { with-node-id = true }", "settings = { lb-server-port = 7444 }"] {
            let refused = written(&config(k3s, false), &agent(), &[]).unwrap_err();
            assert!(refused.contains("out of k3s.settings"), "{refused}");
        }
    }

    #[test]
    fn a_file_that_somebody_changed_since_is_its_owners_and_nothing_old_overrules() {
        let config = config("labels = [\"a=b\"]", false);
        let settings = settings(&config, &agent(), &version("v1.35.2+k3s1"), "/t").unwrap();
        let file = |path: &str, text: String, is_ours| Existing { path: path.into(), text, is_ours };
        let files =
            |existing: &[Existing]| files(&settings, existing, &config, &agent(), &version("v1.35.2+k3s1"));
        let ours = render(&settings, &[]);
        let has = |files: &[File], path: &str| files.iter().any(|file| file.path == path);
        // Its owner added a line: all is said, and nothing is written.
        let edited = file(path::CONFIG, format!("{ours}node-ip: 10.0.0.5\n"), false);
        let written = files(&[edited]).unwrap();
        assert!(!has(&written, path::CONFIG) && !has(&written, DROP_IN), "{written:?}");
        // Its owner changed a value: that is not taken back without a word.
        let changed = file(path::CONFIG, ours.replace("https://10.0.0.11", "https://10.0.0.12"), false);
        assert!(files(&[changed]).unwrap_err().what.contains("server is https://10.0.0.12"));
        let mut gone = settings.clone();
        gone.retain(|(key, _)| key != "node-label");
        let lacks = |path| file(path, render(&gone, &[]), false);
        let written = files(&[lacks(path::CONFIG)]).unwrap();
        assert!(written[0].path == DROP_IN && written[0].content.ends_with("node-label:\n  - \"a=b\"\n"));
        assert!(files(&[lacks(DROP_IN)]).unwrap_err().what.contains("does not say node-label"));
        // The owner's file is gone again: the settings stay where they would overrule others.
        let left = file(DROP_IN, format!("{MARK}\nserver: \"https://old:6443\"\n"), true);
        let written = files(&[left]).unwrap();
        assert_eq!((written[0].path.as_str(), written[0].content.as_str()), (DROP_IN, ours.as_str()));
    }

    #[test]
    fn an_owners_secret_is_not_repeated() {
        let config = config("", false);
        let refused =
            written(&config, &agent(), &[(path::CONFIG, "token: hunter2\nserver: \"https://x:1\"\n")]);
        assert!(!refused.unwrap_err().contains("hunter2"));
        assert!(!shown("agent-token", &["hunter2".into()]).contains("hunter2"));
    }
}
