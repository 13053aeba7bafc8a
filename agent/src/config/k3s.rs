//! `[k3s]`: how this node joins K3s. What the cluster is (role, ranges, parts) stands in `[cluster]`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde::Deserialize;

use super::cluster;
use crate::host::http::Url;

/// Where the token is when no file is named.
const TOKEN: &str = "/etc/rancher/k3s/cluster-token";
/// Where the project itself publishes K3s; its releases lie below, by version.
pub const RELEASES: &str = "https://github.com/k3s-io/k3s/releases/download";

/// How this node joins, checked.
#[derive(Debug, Clone)]
pub struct K3s {
    /// Whether this server begins the cluster.
    pub init: bool,
    /// A server that is in the cluster, or what stands before the servers; always https.
    pub server: Option<Url>,
    /// The file that holds the token.
    pub token_file: String,
    /// Which K3s.
    pub version: Option<Version>,
    /// Where the program comes from.
    pub source: Source,
    /// What the program must hash to, in 64 lower-case hexadecimal digits; `None` = as the file of hashes beside it says.
    pub sha256: Option<String>,
    /// `key=value`, given to the node when it is registered.
    pub labels: Vec<String>,
    /// `key=value:Effect`, given to the node when it is registered.
    pub taints: Vec<String>,
    /// Further names and addresses that the server's certificate is for.
    pub tls_san: Vec<String>,
    /// Arguments of the kubelet, `name=value`.
    pub kubelet_args: Vec<String>,
    /// How long a shutdown of the machine waits for pods, all in all; zero = not at all.
    pub shutdown: Duration,
    /// How much of that is for critical pods.
    pub shutdown_critical: Duration,
    /// K3s' other settings, by their names on its command line.
    pub settings: BTreeMap<String, Setting>,
}

/// What a node is to become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// The server that begins the cluster.
    First,
    /// A server beside others.
    Server(Url),
    /// A node without control plane.
    Agent(Url),
}

impl Role {
    /// Its name for people and reports.
    pub const fn name(&self) -> &'static str {
        match self {
            Role::First => "first server",
            Role::Server(_) => "server",
            Role::Agent(_) => "agent",
        }
    }

    /// Whether it runs the control plane.
    pub const fn is_server(&self) -> bool {
        matches!(self, Role::First | Role::Server(_))
    }

    /// Whom it joins.
    pub const fn server(&self) -> Option<&Url> {
        match self {
            Role::First => None,
            Role::Server(url) | Role::Agent(url) => Some(url),
        }
    }
}

impl K3s {
    /// What this node is to become; `server` of the command line wins.
    ///
    /// # Errors
    /// What is missing or contradicts itself, and what to write.
    pub fn role(&self, cluster: &cluster::Cluster, server: Option<&Url>) -> Result<Role, &'static str> {
        match (cluster.role, self.init, server.or(self.server.as_ref())) {
            (_, true, Some(_)) => {
                Err("k3s.init begins a cluster and k3s.server joins one: take one of them away")
            }
            (cluster::Role::Agent, true, None) => {
                Err("k3s.init is for servers: write role = \"server\" into [cluster]")
            }
            (cluster::Role::Server, true, None) => Ok(Role::First),
            (cluster::Role::Server, false, Some(url)) => Ok(Role::Server(url.clone())),
            (cluster::Role::Agent, false, Some(url)) => Ok(Role::Agent(url.clone())),
            (cluster::Role::Server, false, None) => Err(
                "it is not said which cluster: write server = \"https://...:6443\" into [k3s], or init = true on the server \
                 that begins one",
            ),
            (cluster::Role::Agent, false, None) => Err(
                "it is not said which cluster: write server = \"https://...:6443\" into [k3s]; on the server that begins \
                     one, init = true there and role = \"server\" into [cluster]",
            ),
        }
    }
}

/// A version of K3s, such as v1.35.2+k3s1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    text: String,
    /// 1.35 as (1, 35).
    pub kubernetes: (u32, u32),
}

impl Version {
    /// Reads one; only whole versions, no channels such as "stable".
    pub fn parse(text: &str) -> Option<Version> {
        let (kubernetes, k3s) = text.strip_prefix('v')?.split_once("+k3s")?;
        k3s.parse::<u32>().ok()?;
        let plain = kubernetes.split_once("-rc").map_or(kubernetes, |(plain, _)| plain);
        let numbers: Option<Vec<u32>> = plain.split('.').map(|number| number.parse().ok()).collect();
        let [major, minor, _] = numbers?[..] else { return None };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-+".contains(c);
        text.chars().all(is_plain).then(|| Version { text: text.into(), kubernetes: (major, minor) })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Where the program comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The program's file, or a directory with the files of a release; which of both is seen when it is opened.
    Path(String),
    /// Below it lie releases, by version.
    Mirror(Url),
}

/// A value of one of K3s' settings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Setting {
    /// On or off.
    Switch(bool),
    /// A whole number.
    Number(i64),
    /// One text.
    Text(String),
    /// Several.
    List(Vec<String>),
}

/// As written.
#[derive(Debug, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawK3s {
    init: Option<bool>,
    server: Option<String>,
    token_file: Option<String>,
    version: Option<String>,
    source: Option<String>,
    sha256: Option<String>,
    labels: Vec<String>,
    taints: Vec<String>,
    tls_san: Vec<String>,
    kubelet_args: Vec<String>,
    pub(super) shutdown: Option<String>,
    pub(super) shutdown_critical: Option<String>,
    settings: BTreeMap<String, Setting>,
}

impl RawK3s {
    /// The times were checked by the caller. An error is the key, its value and what is allowed.
    pub(super) fn check(
        self,
        shutdown: Duration,
        shutdown_critical: Duration,
    ) -> Result<K3s, (&'static str, String, String)> {
        if shutdown_critical > shutdown {
            let why = format!("it is a part of k3s.shutdown, which is {shutdown:?}");
            return Err(("k3s.shutdown_critical", format!("{shutdown_critical:?}"), why));
        }
        let server = match self.server {
            None => None,
            Some(text) => Some(server(&text).map_err(|why| ("k3s.server", shown(&text), why))?),
        };
        let token_file = self.token_file.unwrap_or_else(|| TOKEN.into());
        if !is_path(&token_file) {
            // What looks like no path may be the token itself.
            let why = "the path of the file that holds the token, beginning with /; never the token itself";
            return Err(("k3s.token_file", "...".into(), why.into()));
        }
        let version = match self.version {
            None => None,
            Some(text) => Some(Version::parse(&text).ok_or_else(|| {
                ("k3s.version", shown(&text), "a whole version such as \"v1.35.2+k3s1\"".to_owned())
            })?),
        };
        let source = self.source.unwrap_or_else(|| RELEASES.into());
        let source = match is_path(&source) {
            true => Source::Path(source),
            false => Source::Mirror(Url::parse(&source).map_err(|why| {
                let why = format!("a path that begins with /, or the URL of a mirror; {why}");
                ("k3s.source", shown(&source), why)
            })?),
        };
        if let Some(hash) = &self.sha256
            && !is_sha256(hash)
        {
            let why = "64 hexadecimal digits in lower case, as sha256sum prints them".to_owned();
            return Err(("k3s.sha256", shown(hash), why));
        }
        let each = |key, list: &[String], check: fn(&str) -> Result<(), &'static str>| {
            list.iter().try_for_each(|text| check(text).map_err(|why| (key, shown(text), why.to_owned())))
        };
        each("k3s.labels", &self.labels, label)?;
        each("k3s.taints", &self.taints, taint)?;
        each("k3s.tls_san", &self.tls_san, san)?;
        each("k3s.kubelet_args", &self.kubelet_args, argument)?;
        for name in self.settings.keys() {
            if let Some((_, why)) = ELSEWHERE.iter().find(|(taken, _)| taken == name) {
                return Err(("k3s.settings", shown(name), (*why).to_owned()));
            }
        }
        let name = self.settings.get("node-name").map(|name| match name {
            Setting::Text(name) => name.as_str(),
            _ => "",
        });
        // K3s takes capitals and makes them small.
        if let Some(name) = name.filter(|name| !is_node_name(&name.to_lowercase())) {
            return Err(("k3s.settings.node-name", shown(name), format!("a text of {NODE_NAME}")));
        }
        Ok(K3s {
            init: self.init.unwrap_or(false),
            server,
            token_file,
            version,
            source,
            sha256: self.sha256,
            labels: self.labels,
            taints: self.taints,
            tls_san: self.tls_san,
            kubelet_args: self.kubelet_args,
            shutdown,
            shutdown_critical,
            settings: self.settings,
        })
    }
}

/// Settings of K3s that do not stand in `k3s.settings`, and where they do.
const ELSEWHERE: &[(&str, &str)] = &[
    ("agent-token", "a secret stands in a file: agent-token-file"),
    ("cluster-cidr", "it is pods in [cluster]"),
    ("cluster-init", "it is init in [k3s]"),
    ("cluster-reset", "it is done once, by hand: k3s server --cluster-reset"),
    ("config", "join writes K3s' own configuration file"),
    ("data-dir", "K3s' own scripts know /var/lib/rancher/k3s alone"),
    (
        "datastore-endpoint",
        "it may hold a password: write it into a file of your own in /etc/rancher/k3s/config.yaml.d",
    ),
    ("etcd-s3-secret-key", "a secret stands in a file: etcd-s3-config-secret names the cluster's own"),
    ("kubelet-arg", "it is kubelet_args in [k3s]"),
    ("node-label", "it is labels in [k3s]"),
    ("node-taint", "it is taints in [k3s]"),
    ("protect-kernel-defaults", "it is protect_kernel_defaults in [cluster]"),
    ("server", "it is server in [k3s]"),
    ("service-cidr", "it is services in [cluster]"),
    ("tls-san", "it is tls_san in [k3s]"),
    ("token", "a secret stands in a file: token_file in [k3s]"),
    ("token-file", "it is token_file in [k3s]"),
    ("vpn-auth", "a secret stands in a file: vpn-auth-file"),
];

/// The URL of a server; K3s takes https alone, and no path.
pub fn server(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|why| why.to_string())?;
    if !url.is_https() {
        return Err("K3s speaks https alone: write https:// before it".into());
    }
    if url.path() != "/" {
        return Err("a server has no path: host and port alone".into());
    }
    Ok(url)
}

fn is_path(text: &str) -> bool {
    text.starts_with('/') && !text.contains(['\0', '\n']) && !text.split('/').any(|part| part == "..")
}

/// Whether a text is what `sha256sum` prints of a file.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// What was written, for an error: short, and without what nobody may see: a token in the wrong place, a
/// URL's user and password.
fn shown(text: &str) -> String {
    let text = match text.split_once("://").zip(text.rsplit_once('@')) {
        _ if text.contains("K10") && text.contains("::") => "...".to_owned(),
        Some(((scheme, _), (_, place))) => format!("{scheme}://...@{place}"),
        None => text.to_owned(),
    };
    text.chars().take(80).collect()
}

/// Kubernetes' names: letters and digits, with `-_.` between them, at most 63.
fn is_name(text: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && ends(text.chars().next())
        && ends(text.chars().next_back())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// What a node may be called.
pub const NODE_NAME: &str =
    "a-z, 0-9, - and . alone, no - at an end of a part, at most 63 letters a part, 253 in all";

/// RFC 1123 as Kubernetes takes it: lower case, parts that neither begin nor end with a hyphen.
pub fn is_node_name(name: &str) -> bool {
    let part = |part: &str| {
        (1..=63).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(part)
}

fn is_key(text: &str) -> bool {
    match text.split_once('/') {
        None => is_name(text),
        Some((domain, name)) => {
            is_name(name)
                && domain.len() <= 253
                && domain.split('.').all(|part| {
                    is_name(part)
                        && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
                })
        }
    }
}

/// Labels of Kubernetes' own that a kubelet may give itself; with any other it does not start. See kubernetes
/// pkg/kubelet/apis/well_known_labels.go.
const KUBELETS: &[&str] = &[
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

fn label(text: &str) -> Result<(), &'static str> {
    let (key, value) = text.split_once('=').ok_or("a label is key=value")?;
    if !is_key(key) || !(value.is_empty() || is_name(value)) {
        return Err("a label is key=value of letters, digits and \"-_.\", at most 63 each");
    }
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let of = |suffix: &str| domain == suffix || domain.ends_with(&format!(".{suffix}"));
    let own = of("kubelet.kubernetes.io") || of("node.kubernetes.io");
    if (of("kubernetes.io") || of("k8s.io")) && !own && !KUBELETS.contains(&key) {
        return Err(
            "a kubelet with this label does not start: give it with kubectl label node, after the join",
        );
    }
    Ok(())
}

fn taint(text: &str) -> Result<(), &'static str> {
    let wrong = "a taint is key=value:Effect or key:Effect, with NoSchedule, PreferNoSchedule or NoExecute";
    let (what, effect) = text.rsplit_once(':').ok_or(wrong)?;
    let (key, value) = what.split_once('=').unwrap_or((what, ""));
    let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
    let good = is_key(key) && (value.is_empty() || is_name(value)) && effects.contains(&effect);
    good.then_some(()).ok_or(wrong)
}

fn san(text: &str) -> Result<(), &'static str> {
    let is_host = |text: &str| text.len() <= 253 && text.split('.').all(is_name);
    let plain = text.strip_prefix("*.").unwrap_or(text);
    (text.parse::<IpAddr>().is_ok() || is_host(plain)).then_some(()).ok_or("a name or an address")
}

fn argument(text: &str) -> Result<(), &'static str> {
    let (name, _) = text.split_once('=').ok_or("an argument of the kubelet is name=value")?;
    let is_flag = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    if !is_flag(name) {
        return Err("an argument of the kubelet is name=value, without dashes before it");
    }
    match name {
        "config" | "config-dir" => Err("join writes the kubelet's configuration itself"),
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::cluster::Cluster;

    fn check(text: &str) -> Result<K3s, (&'static str, String, String)> {
        let raw: RawK3s = toml::from_str(text).unwrap();
        raw.check(Duration::from_secs(30), Duration::from_secs(10))
    }

    /// What a section gives.
    pub(crate) fn checked(text: &str) -> K3s {
        check(text).unwrap()
    }

    #[test]
    fn what_is_written_is_taken() {
        let k3s = check(
            "server = \"https://10.0.0.11:6443\"\nversion = \"v1.30.2+k3s2\"\nlabels = [\"node_type=worker\", \
             \"node.kubernetes.io/x=\"]\ntaints = [\"node-role.kubernetes.io/control-plane:NoSchedule\", \"a=b:NoExecute\"]\n\
             tls_san = [\"10.0.0.11\", \"fd00::1\", \"*.pi.lan\"]\nkubelet_args = [\"max-pods=50\"]\n\
             settings = { etcd-expose-metrics = true, node-name = \"Pi-1.lan\", \
             kube-scheduler-arg = [\"bind-address=0.0.0.0\"] }",
        )
        .unwrap();
        assert_eq!(k3s.server.unwrap().port(), 6443);
        assert_eq!(k3s.version.as_ref().unwrap().kubernetes, (1, 30));
        assert_eq!(k3s.settings["etcd-expose-metrics"], Setting::Switch(true));
        assert_eq!(k3s.source, Source::Mirror(Url::parse(RELEASES).unwrap()));
    }

    #[test]
    fn a_node_name_is_lower_case_in_parts() {
        for name in ["pi-1", "node1.home.arpa", "7"] {
            assert!(is_node_name(name), "{name}");
        }
        for name in ["", "Pi", "pi_1", "-pi", "pi-", "a..b", ".", "p\u{e4}", &"a".repeat(64)] {
            assert!(!is_node_name(name), "{name}");
        }
    }

    #[test]
    fn what_k3s_or_the_kubelet_would_refuse_is_refused_with_its_key() {
        for (text, key, why) in [
            ("server = \"10.0.0.11:6443\"", "k3s.server", "https://"),
            ("server = \"http://10.0.0.11:6443\"", "k3s.server", "https alone"),
            ("server = \"https://10.0.0.11:6443/x\"", "k3s.server", "no path"),
            ("server = \"https://fd00::1:6443\"", "k3s.server", "brackets"),
            ("token_file = \"secret\"", "k3s.token_file", "never the token"),
            ("token_file = \"/a/../b\"", "k3s.token_file", "beginning with /"),
            ("version = \"stable\"", "k3s.version", "v1.35.2+k3s1"),
            ("version = \"1.35.2+k3s1\"", "k3s.version", "v1.35.2+k3s1"),
            ("version = \"v1.35+k3s1\"", "k3s.version", "v1.35.2+k3s1"),
            ("version = \"v1.35.2-rc1/../x+k3s1\"", "k3s.version", "v1.35.2+k3s1"),
            ("source = \"here\"", "k3s.source", "URL of a mirror"),
            ("sha256 = \"ABC\"", "k3s.sha256", "64"),
            ("labels = [\"worker\"]", "k3s.labels", "key=value"),
            ("labels = [\"a b=c\"]", "k3s.labels", "letters"),
            ("labels = [\"node-role.kubernetes.io/worker=true\"]", "k3s.labels", "does not start"),
            ("labels = [\"kubernetes.io/role=worker\"]", "k3s.labels", "does not start"),
            ("taints = [\"a=b\"]", "k3s.taints", "Effect"),
            ("taints = [\"a=b:Never\"]", "k3s.taints", "Effect"),
            ("tls_san = [\"https://x\"]", "k3s.tls_san", "address"),
            ("kubelet_args = [\"--max-pods=5\"]", "k3s.kubelet_args", "without dashes"),
            ("kubelet_args = [\"config=/x\"]", "k3s.kubelet_args", "itself"),
            ("settings = { token = \"x\" }", "k3s.settings", "a file"),
            ("settings = { cluster-cidr = \"x\" }", "k3s.settings", "[cluster]"),
            ("settings = { node-name = \"pi_1\" }", "k3s.settings.node-name", "a-z, 0-9"),
            ("settings = { node-name = 7 }", "k3s.settings.node-name", "a text"),
        ] {
            let (at, _, says) = check(text).unwrap_err();
            assert!(at == key && says.contains(why), "{text}: {at}: {says}");
        }
    }

    #[test]
    fn a_secret_in_the_wrong_place_is_not_repeated() {
        for text in [
            "token_file = \"K10abc::server:hunter2\"",
            "server = \"K10abc::server:hunter2\"",
            "source = \"K10abc::server:hunter2\"",
            "sha256 = \"K10abc::server:hunter2\"",
            "server = \"https://pi:hunter2@pi-1:6443\"",
            "source = \"https://pi:hunter@2hunter2@mirror.lan/k3s\"",
        ] {
            let (_, value, why) = check(text).unwrap_err();
            assert!(!value.contains("hunter") && !why.contains("hunter"), "{value}: {why}");
        }
        let (_, value, _) = check("server = \"https://pi:hunter2@pi-1:6443\"").unwrap_err();
        assert_eq!(value, "https://...@pi-1:6443", "it is to be found again");
    }

    #[test]
    fn the_role_follows_from_what_is_written_and_never_begins_a_second_cluster_by_accident() {
        let joins = check("server = \"https://pi-1:6443\"").unwrap();
        let begins = check("init = true").unwrap();
        let neither = check("").unwrap();
        let server = Cluster { role: cluster::Role::Server, ..Cluster::default() };
        let agent = Cluster::default();
        let url = Url::parse("https://pi-2:6443").unwrap();
        assert_eq!(begins.role(&server, None), Ok(Role::First));
        assert_eq!(joins.role(&agent, Some(&url)), Ok(Role::Agent(url.clone())));
        assert!(matches!(joins.role(&server, None), Ok(Role::Server(_))));
        for (k3s, cluster, server) in [
            (&neither, &server, None),
            (&neither, &agent, None),
            (&begins, &agent, None),
            (&begins, &server, Some(&url)),
        ] {
            assert!(k3s.role(cluster, server).is_err());
        }
    }
}
