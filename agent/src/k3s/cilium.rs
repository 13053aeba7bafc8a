//! The values for Cilium's chart that will work on the known nodes, and the manifest with which K3s installs it.
//!
//! The base are those of release 1.9 of the Kubernetes Pi Cluster project, with the API at 127.0.0.1:6444, which every
//! node of K3s has, instead of a virtual address outside of the cluster. What depends on the kernel follows from the
//! verdicts of `fit`. Helm takes keys that a chart does not have without a word, so every key is looked up in the tree of
//! the chart's own values (`agent/data/cilium_values`, which `cargo xtask chart` writes). Pure.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value, json};

use super::api;
use crate::config::Config;
use crate::config::cilium::Version;
use crate::config::cluster::{Encryption, Profile, Tunnel};
use crate::facts::Facts;
use crate::fit::{self, Component, Feature, Fit, SETTINGS};
use crate::host::Host;

/// Where the manifest lies on the first server.
pub const MANIFEST: &str = "/var/lib/rancher/k3s/server/manifests/bramble-cilium.yaml";
/// Where the chart is.
pub const REPOSITORY: &str = "https://helm.cilium.io/";
/// The release and its namespace: the same that Flux uses in the Pi Cluster project, so that it can adopt the release.
pub const RELEASE: (&str, &str) = ("cilium", "kube-system");

/// The trees of keys, by the chart's minor version.
const TREES: &[((u32, u32), &str)] = &[
    ((1, 16), include_str!("../../data/cilium_values/1.16")),
    ((1, 17), include_str!("../../data/cilium_values/1.17")),
];

/// What is known of one node's kernel.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its name.
    pub name: String,
    fits: BTreeMap<(String, String), Known>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Known {
    Works,
    WorksNot(String),
    Unknown(String),
}

impl Node {
    /// From verdicts made here.
    pub fn judged(name: &str, features: &[Feature]) -> Node {
        let known = |fit: &Fit| match fit {
            Fit::Works { .. } => Known::Works,
            Fit::WorksNot { why } => Known::WorksNot(why.clone()),
            Fit::Unknown(unreadable) => Known::Unknown(unreadable.to_string()),
        };
        let key = |feature: &Feature| (feature.setting.key.to_owned(), feature.setting.value.to_owned());
        let fits = features.iter().map(|feature| (key(feature), known(&feature.fit)));
        Node { name: name.into(), fits: fits.collect() }
    }

    /// This machine.
    pub fn here(host: &Host, config: &Config) -> Node {
        let observed = fit::observe(host, &Facts::observe(host));
        Node::judged(config.node.name.as_str(), &fit::judge(&observed, &config.cluster))
    }

    /// From what another node's `bramble check --fit --json` said.
    pub fn read(name: &str, text: &str) -> Result<Node, String> {
        let object: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let features = object["features"].as_array().filter(|_| object["v"] == 1);
        let features = features.ok_or("it is not what bramble check --fit --json prints")?;
        let word = |feature: &Value, key: &str| feature[key].as_str().unwrap_or_default().to_owned();
        let fits = features.iter().map(|feature| {
            let why = word(feature, "why");
            let known = match feature["fit"].as_str() {
                Some("works") => Known::Works,
                Some("works_not") => Known::WorksNot(why),
                _ => Known::Unknown(why),
            };
            ((word(feature, "setting"), word(feature, "value")), known)
        });
        Ok(Node { name: name.into(), fits: fits.collect() })
    }

    /// The same from a file named after that node.
    ///
    /// # Errors
    /// The file, why it tells nothing, and the command that writes it.
    pub fn of_file(host: &Host, file: &std::path::Path) -> Result<Node, String> {
        let refused = |why: String| {
            format!("--fit {}: {why}\n  next  on that node: bramble check --fit --json", file.display())
        };
        let path = std::path::absolute(file).map_err(|error| refused(error.to_string()))?;
        let text =
            host.text(&path.to_string_lossy()).map_err(|unreadable| refused(unreadable.why.to_string()))?;
        Node::read(&file.file_stem().unwrap_or_default().to_string_lossy(), &text).map_err(refused)
    }

    fn known(&self, key: &str, value: &str) -> Known {
        let unheard = || Known::Unknown("nothing was said of it".into());
        self.fits.get(&(key.to_owned(), value.to_owned())).cloned().unwrap_or_else(unheard)
    }
}

/// Values that will work, as far as that is known.
#[derive(Debug, Clone, PartialEq)]
pub struct Rendered {
    /// The values.
    pub values: Map<String, Value>,
    /// What is other than its owner wants, or could not be told.
    pub remarks: Vec<String>,
    version: Version,
}

/// Why there are no values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The tree of keys of that chart is not known.
    #[error("the keys of Cilium's chart {asked} are not known, only those of {known}")]
    Chart {
        /// As asked for.
        asked: String,
        /// Minor versions.
        known: String,
    },
    /// Something that the cluster needs will not work on a node, and nothing stands in for it.
    #[error("{key}: {value} does not work on {node}: {why}")]
    WorksNot {
        /// The key.
        key: &'static str,
        /// Its value.
        value: &'static str,
        /// The node.
        node: String,
        /// What it lacks.
        why: String,
    },
    /// Keys that the chart does not have.
    #[error("Cilium's chart {chart} does not have {}", list(.keys))]
    Unknown {
        /// Its version.
        chart: String,
        /// Each with the nearest that it has.
        keys: Vec<(String, Option<String>)>,
    },
}

fn list(keys: &[(String, Option<String>)]) -> String {
    let one = |(key, nearest): &(String, Option<String>)| match nearest {
        Some(nearest) => format!("{key} (is it {nearest}?)"),
        None => key.clone(),
    };
    keys.iter().map(one).collect::<Vec<_>>().join(", ")
}

impl Refused {
    /// What a person does next.
    pub fn next(&self) -> String {
        match self {
            Refused::Chart { .. } => {
                "write a release of one of these, such as \"1.17.18\", as version into [cilium]".into()
            }
            Refused::WorksNot { .. } => {
                "sudo bramble check --fit on that node; change [cluster] to what works".into()
            }
            Refused::Unknown { .. } => "correct them in [cilium.values]".into(),
        }
    }
}

/// The values that the owner's decisions and the known nodes allow.
pub fn render(config: &Config, nodes: &[Node]) -> Result<Rendered, Refused> {
    let version = &config.cilium.version;
    let tree = Tree::of(version)?;
    let mut draft = Draft { nodes, values: Map::new(), remarks: Vec::new() };
    draft.fill(config, &tree)?;
    let Draft { mut values, mut remarks, .. } = draft;
    let owners = serde_json::to_value(&config.cilium.values).expect("TOML's tables are JSON's");
    let owners = owners.as_object().cloned().unwrap_or_default();
    let unknown = tree.unknown(&owners);
    if !unknown.is_empty() {
        return Err(Refused::Unknown { chart: version.text.clone(), keys: unknown });
    }
    for setting in SETTINGS.iter().filter(|setting| setting.component == Component::Cilium) {
        let wish =
            setting.key.split('.').try_fold(&Value::Object(owners.clone()), |at, key| at.get(key)).map(word);
        for node in nodes.iter().filter(|_| wish.as_deref() == Some(setting.value)) {
            if let Known::WorksNot(why) = node.known(setting.key, setting.value) {
                let (key, value, node) = (setting.key, setting.value, &node.name);
                remarks.push(format!(
                    "[cilium.values] sets {key}: {value}, which does not work on {node}: {why}"
                ));
            }
        }
    }
    merge(&mut values, owners);
    Ok(Rendered { values, remarks, version: version.clone() })
}

fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn merge(into: &mut Map<String, Value>, from: Map<String, Value>) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Object(into)), Value::Object(from)) => merge(into, from),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

/// Values in the making.
struct Draft<'a> {
    nodes: &'a [Node],
    values: Map<String, Value>,
    remarks: Vec<String>,
}

impl Draft<'_> {
    fn fill(&mut self, config: &Config, tree: &Tree) -> Result<(), Refused> {
        let cluster = &config.cluster;
        let endpoint = api::ENDPOINT.strip_prefix("https://").and_then(|place| place.split_once(':'));
        let (host, port) = endpoint.expect("it has a host and a port");
        self.put("k8sServiceHost", json!(host));
        self.put("k8sServicePort", json!(port));
        self.put("k8sClientRateLimit", json!({ "qps": 50, "burst": 200 }));
        self.put("ipam.operator.clusterPoolIPv4PodCIDRList", json!([cluster.pods.to_string()]));
        self.put("rollOutCiliumPods", json!(true));
        // One control plane node is enough for it to start.
        self.put("operator.replicas", json!(1));
        self.put("operator.rollOutPods", json!(true));
        self.put("operator.nodeSelector", json!({ "node-role.kubernetes.io/control-plane": "true" }));
        self.put("operator.prometheus.enabled", json!(true));
        self.put("prometheus.enabled", json!(true));
        self.put("hubble.relay.enabled", json!(true));
        self.put("hubble.ui.enabled", json!(true));
        let metrics = ["dns:query", "drop", "tcp", "flow", "port-distribution", "icmp", "http"];
        self.put("hubble.metrics.enabled", json!(metrics));
        self.base();
        // Charts before 1.18 take this as a text alone.
        self.needed("kubeProxyReplacement", "true")?;
        self.put("kubeProxyReplacement", json!("true"));
        self.put("kubeProxyReplacementHealthzBindAddr", json!("0.0.0.0:10256"));
        match cluster.tunnel {
            Tunnel::Off => {
                self.needed("routingMode", "native")?;
                self.put("routingMode", json!("native"));
                self.put("ipv4NativeRoutingCIDR", json!(cluster.pods.to_string()));
                self.put("autoDirectNodeRoutes", json!(true));
            }
            Tunnel::Vxlan | Tunnel::Geneve => {
                let wish = if cluster.tunnel == Tunnel::Geneve { "geneve" } else { "vxlan" };
                self.needed("routingMode", "tunnel")?;
                self.put("routingMode", json!("tunnel"));
                self.wanted("tunnelProtocol", wish)?;
            }
        }
        match cluster.chose(Profile::Iptables) {
            true => self.needed("enableIPv4Masquerade", "true")?,
            false => self.wanted("bpf.masquerade", "true")?,
        }
        if cluster.chose(Profile::Ipv6) {
            self.wanted("ipv6.enabled", "true")?;
        }
        if cluster.chose(Profile::L2Announcements) {
            self.wanted("l2announcements.enabled", "true")?;
            if tree.has("externalIPs.enabled") {
                self.put("externalIPs.enabled", json!(true));
            }
        }
        match cluster.chose(Profile::Envoy) {
            true => {
                self.wanted("envoy.enabled", "true")?;
                self.wanted("l7Proxy", "true")?;
            }
            false => {
                self.put("envoy.enabled", json!(false));
                self.put("l7Proxy", json!(false));
            }
        }
        if cluster.chose(Profile::Ambient) {
            self.wanted("socketLB.hostNamespaceOnly", "true")?;
            // Otherwise Cilium takes istio-cni's configuration away.
            self.put("cni.exclusive", json!(false));
        }
        if cluster.chose(Profile::BandwidthManager) {
            self.wanted("bandwidthManager.enabled", "true")?;
        }
        if cluster.chose(Profile::Bbr) {
            self.wanted("bandwidthManager.bbr", "true")?;
        }
        if cluster.chose(Profile::Netkit) {
            self.wanted("bpf.datapathMode", "netkit")?;
        }
        if cluster.encryption != Encryption::Off {
            let wish = if cluster.chose(Profile::Ipsec) { "ipsec" } else { "wireguard" };
            self.wanted("encryption.type", wish)?;
            self.put("encryption.enabled", json!(true));
        }
        if cluster.chose(Profile::Ipsec) {
            self.remarks
                .push("encryption by IPsec needs the secret cilium-ipsec-keys in kube-system first".into());
        }
        Ok(())
    }

    fn put(&mut self, key: &str, value: Value) {
        let mut at = &mut self.values;
        let mut parts = key.split('.').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                at.insert(part.into(), value);
                return;
            }
            let below = at.entry(part).or_insert_with(|| Value::Object(Map::new()));
            at = below.as_object_mut().expect("a key is a leaf or has keys below it");
        }
    }

    /// Values change nothing about what Cilium needs of any kernel; it is said all the same.
    fn base(&mut self) {
        for setting in SETTINGS.iter().filter(|setting| setting.key == "Cilium") {
            for node in self.nodes {
                if let Known::WorksNot(why) = node.known(setting.key, setting.value) {
                    self.remarks.push(format!("{} lacks what Cilium needs: {why}", node.name));
                }
            }
        }
    }

    /// What has to work on every node.
    fn needed(&mut self, key: &'static str, value: &'static str) -> Result<(), Refused> {
        for node in self.nodes {
            match node.known(key, value) {
                Known::Works => {}
                Known::WorksNot(why) => {
                    return Err(Refused::WorksNot { key, value, node: node.name.clone(), why });
                }
                Known::Unknown(why) => self.untold(key, value, &node.name, &why),
            }
        }
        Ok(())
    }

    /// What the owner wants, or what stands in for it where it does not work.
    fn wanted(&mut self, key: &'static str, value: &'static str) -> Result<(), Refused> {
        let row = SETTINGS.iter().find(|setting| setting.key == key && setting.value == value);
        let instead = row.and_then(|row| row.instead);
        let mut chosen = value;
        for node in self.nodes {
            match (node.known(key, value), instead) {
                (Known::Works, _) => {}
                (Known::WorksNot(why), Some(instead)) => {
                    chosen = instead;
                    let otherwise = row.map(|row| row.otherwise).unwrap_or_default();
                    let node = &node.name;
                    self.remarks.push(format!(
                        "{key}: {instead} and not {value}, which does not work on {node} ({why}): {otherwise}"
                    ));
                }
                (Known::WorksNot(why), None) => {
                    return Err(Refused::WorksNot { key, value, node: node.name.clone(), why });
                }
                (Known::Unknown(why), _) => self.untold(key, value, &node.name, &why),
            }
        }
        self.put(key, chosen.parse::<bool>().map_or_else(|_| json!(chosen), Value::Bool));
        Ok(())
    }

    fn untold(&mut self, key: &str, value: &str, node: &str, why: &str) {
        self.remarks.push(format!("whether {key}: {value} works on {node} could not be told: {why}"));
    }
}

impl Rendered {
    /// As a file of values.
    pub fn yaml(&self) -> String {
        Yaml(&Value::Object(self.values.clone())).to_string()
    }

    /// As what K3s applies by itself. `bootstrap` lets the job run before there is a network for pods.
    pub fn manifest(&self) -> String {
        let (name, namespace) = RELEASE;
        let values: String = self.yaml().lines().map(|line| format!("    {line}\n")).collect();
        format!(
            "# Written by bramble join: Cilium for the first server. Taking this file away changes nothing; deleting the\n\
             # HelmChart object uninstalls Cilium.\n\
             apiVersion: helm.cattle.io/v1\nkind: HelmChart\nmetadata:\n  name: {name}\n  namespace: {namespace}\n\
             spec:\n  repo: {REPOSITORY}\n  chart: cilium\n  version: \"{}\"\n  targetNamespace: {namespace}\n  \
             bootstrap: true\n  valuesContent: |\n{values}",
            self.version.text
        )
    }
}

/// Objects as YAML in lines; lists and scalars as JSON, which YAML understands.
struct Yaml<'a>(&'a Value);

impl fmt::Display for Yaml<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn write(f: &mut fmt::Formatter<'_>, value: &Value, indent: usize) -> fmt::Result {
            let Value::Object(map) = value else { return writeln!(f, "{value}") };
            for (key, value) in map {
                let plain = key.chars().all(|c| c.is_ascii_alphanumeric());
                let key = if plain { key.clone() } else { json!(key).to_string() };
                match value {
                    Value::Object(below) if !below.is_empty() => {
                        writeln!(f, "{:indent$}{key}:", "")?;
                        write(f, value, indent + 2)?;
                    }
                    value => writeln!(f, "{:indent$}{key}: {value}", "")?,
                }
            }
            Ok(())
        }
        write(f, self.0, 0)
    }
}

/// The keys that a chart has.
#[derive(Debug, Default)]
struct Tree {
    below: BTreeMap<String, Tree>,
    /// Whatever stands below it is not the chart's to name.
    is_free: bool,
}

impl Tree {
    fn of(version: &Version) -> Result<Tree, Refused> {
        let known = TREES.iter().find(|(minor, _)| *minor == version.minor);
        known.map(|(_, text)| Tree::parse(text)).ok_or_else(|| Refused::Chart {
            asked: version.text.clone(),
            known: TREES.iter().map(|((a, b), _)| format!("{a}.{b}")).collect::<Vec<_>>().join(", "),
        })
    }

    fn parse(text: &str) -> Tree {
        let mut root = Tree::default();
        let mut place: Vec<&str> = Vec::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let plain = line.trim_start();
            place.truncate((line.len() - plain.len()) / 2);
            let (key, below) = plain.split_once(": ").unwrap_or((plain, ""));
            let parent =
                place.iter().fold(&mut root, |tree, key| tree.below.entry((*key).into()).or_default());
            let tree = parent.add(key);
            for key in below.split_whitespace() {
                tree.add(key);
            }
            place.push(key);
        }
        root
    }

    fn add(&mut self, key: &str) -> &mut Tree {
        let name = key.strip_suffix('*').unwrap_or(key);
        let tree = self.below.entry(name.into()).or_default();
        tree.is_free = name.len() < key.len();
        tree
    }

    fn has(&self, key: &str) -> bool {
        key.split('.').try_fold(self, |tree, part| tree.below.get(part)).is_some()
    }

    /// Keys that the chart does not have, each with the nearest that it has.
    fn unknown(&self, values: &Map<String, Value>) -> Vec<(String, Option<String>)> {
        let mut unknown = Vec::new();
        self.collect(values, "", &mut unknown);
        let all = self.keys("");
        let nearest = |key: &String| {
            let leaf = |key: &str| key.rsplit('.').next().unwrap_or_default().to_lowercase();
            let near = |other: &String| {
                let whole = strsim::jaro_winkler(&key.to_lowercase(), &other.to_lowercase());
                let last = strsim::jaro_winkler(&leaf(key), &leaf(other));
                // What a key is called tells more than where somebody put it.
                whole * 0.4 + last * 0.6
            };
            let best = all.iter().map(|other| (near(other), other)).max_by(|a, b| a.0.total_cmp(&b.0));
            best.filter(|(near, _)| *near > 0.8).map(|(_, other)| other.clone())
        };
        unknown.into_iter().map(|key| (key.clone(), nearest(&key))).collect()
    }

    fn collect(&self, values: &Map<String, Value>, above: &str, unknown: &mut Vec<String>) {
        for (key, value) in values {
            let path = if above.is_empty() { key.clone() } else { format!("{above}.{key}") };
            match (self.below.get(key), value) {
                (None, _) => unknown.push(path),
                (Some(tree), _) if tree.is_free => {}
                (Some(tree), Value::Object(below)) => tree.collect(below, &path, unknown),
                (Some(_), _) => {}
            }
        }
    }

    fn keys(&self, above: &str) -> Vec<String> {
        let one = |(key, tree): (&String, &Tree)| {
            let path = if above.is_empty() { key.clone() } else { format!("{above}.{key}") };
            let below = tree.keys(&path);
            [vec![path], below].concat()
        };
        self.below.iter().flat_map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::path;
    use super::*;
    use crate::config::cluster::{Cluster, Masquerade, Role};

    fn captured(name: &str, config: &Config) -> Node {
        let tree = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/hosts").join(name);
        let host = Host::tree(&tree).unwrap();
        let observed = fit::observe(&host, &Facts::observe(&host));
        Node::judged(name, &fit::judge(&observed, &config.cluster))
    }

    /// A node of which the same is known of every setting.
    fn all(known: Known) -> Node {
        let fits = SETTINGS.iter().map(|s| ((s.key.into(), s.value.into()), known.clone()));
        Node { name: "n1".into(), fits: fits.collect() }
    }

    fn config(version: &str, values: &str) -> Config {
        let mut config = Config::default();
        config.cilium.version = Version::try_from(version.to_owned()).unwrap();
        config.cilium.values = toml::from_str(values).unwrap();
        config
    }

    fn at<'a>(values: &'a Map<String, Value>, key: &str) -> &'a Value {
        let (first, rest) = key.split_once('.').unwrap_or((key, ""));
        let value = values.get(first).unwrap_or(&Value::Null);
        rest.split('.').filter(|part| !part.is_empty()).fold(value, |at, part| &at[part])
    }

    /// All that any decision of the owner can lead to.
    fn everything() -> Vec<Cluster> {
        let base = Cluster { role: Role::Server, ipv6: true, bandwidth_manager: true, ..Cluster::default() };
        let bpf =
            Cluster { ambient: false, masquerade: Masquerade::Bpf, netkit: true, bbr: true, ..base.clone() };
        vec![
            Cluster { encryption: Encryption::Ipsec, ..base.clone() },
            Cluster { encryption: Encryption::Wireguard, tunnel: Tunnel::Off, ..bpf },
            Cluster { envoy: false, l2_announcements: false, ..base },
        ]
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a test looks at the checkout")]
    fn each_chart_has_every_key_that_is_ever_set() {
        for ((major, minor), text) in TREES {
            let tree = Tree::parse(text);
            assert!(tree.keys("").len() > 600, "{major}.{minor}");
            for cluster in everything() {
                let config = Config { cluster, ..config(&format!("{major}.{minor}.0"), "") };
                let rendered = render(&config, &[all(Known::Works)]).unwrap();
                assert_eq!(tree.unknown(&rendered.values), [], "{major}.{minor}");
            }
        }
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("data/cilium_values");
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), TREES.len(), "a tree is not used");
        let known: Vec<String> = TREES.iter().map(|((a, b), _)| format!("{a}.{b}")).collect();
        let shipped = include_str!("../../../packaging/bramble.toml");
        assert!(shipped.contains(&format!("of {} the keys are known", known.join(" and "))), "{known:?}");
    }

    #[test]
    fn what_came_and_went_between_two_charts_is_looked_up_in_the_one_asked_for() {
        // Charts since 1.17 have them in the replacement of kube-proxy, and take the key without a word.
        for (version, wanted) in [("1.16.2", &json!(true)), ("1.17.9", &Value::Null)] {
            let mut config = config(version, "");
            config.cluster.l2_announcements = true;
            let rendered = render(&config, &[]).unwrap();
            assert_eq!(at(&rendered.values, "externalIPs.enabled"), wanted, "{version}");
            assert!(rendered.manifest().contains(&format!("  version: \"{version}\"\n")));
        }
        for (key, old, new) in [
            ("[externalIPs]\nenabled = true", true, false),
            ("[bgp.announce]\npodCIDR = true", true, false),
            ("[encryption.wireguard]\nuserspaceFallback = true", true, false),
            ("[bpf.distributedLRU]\nenabled = true", false, true),
            ("[commonLabels]\n\"a.b/c\" = \"d\"", false, true),
            ("[tls.secretSync]\nenabled = true", false, true),
        ] {
            for (version, is_known) in [("1.16.2", old), ("1.17.9", new)] {
                let refused = render(&config(version, key), &[]).err().map(|refused| refused.to_string());
                assert_eq!(refused.is_none(), is_known, "{version} {key}: {refused:?}");
            }
        }
    }

    #[test]
    fn the_kernels_of_all_nodes_decide() {
        let config = config("1.17.9", "");
        let big = captured("pi4-debian-13", &config);
        let alone = render(&config, std::slice::from_ref(&big)).unwrap();
        assert_eq!(at(&alone.values, "envoy.enabled"), &json!(true));
        assert_eq!(at(&alone.values, "cni.exclusive"), &json!(false));
        assert_eq!(at(&alone.values, "k8sServicePort"), &json!("6444"));
        let small = captured("pi4-trixie-4k", &config);
        let both = render(&config, &[big, small]).unwrap();
        assert_eq!(at(&both.values, "envoy.enabled"), &json!(false));
        let remark = both.remarks.iter().find(|remark| remark.starts_with("envoy.enabled: false")).unwrap();
        assert!(remark.contains("pi4-trixie-4k (39 address bits"), "{remark}");
    }

    #[test]
    fn what_nothing_stands_in_for_is_refused_and_what_could_not_be_told_is_said() {
        let config = config("1.17.9", "");
        let refused = render(&config, &[all(Known::WorksNot("no".into()))]).unwrap_err();
        assert!(matches!(refused, Refused::WorksNot { key: "kubeProxyReplacement", .. }), "{refused:?}");
        let unsure = render(&config, &[all(Known::Unknown("nobody asked".into()))]).unwrap();
        assert_eq!(at(&unsure.values, "envoy.enabled"), &json!(true));
        assert!(unsure.remarks.iter().any(|remark| remark.contains("could not be told: nobody asked")));
    }

    #[test]
    fn a_misspelt_key_is_refused_with_the_nearest_real_one() {
        for (values, key, nearest) in [
            (
                "[socketLB]\nhostnamespaceonly = true",
                "socketLB.hostnamespaceonly",
                "socketLB.hostNamespaceOnly",
            ),
            ("hostNamespaceOnly = true", "hostNamespaceOnly", "socketLB.hostNamespaceOnly"),
            ("kubeProxyReplacment = \"true\"", "kubeProxyReplacment", "kubeProxyReplacement"),
            ("[hubble.relais]\nenabled = true", "hubble.relais", "hubble.relay"),
            ("[envoy]\nenable = true", "envoy.enable", "envoy.enabled"),
        ] {
            for ((major, minor), _) in TREES {
                let chart = format!("{major}.{minor}.3");
                let refused = render(&config(&chart, values), &[]).unwrap_err();
                let keys = vec![(key.to_owned(), Some(nearest.to_owned()))];
                assert_eq!(refused, Refused::Unknown { chart, keys });
                assert!(refused.to_string().contains(&format!("{key} (is it {nearest}?)")));
            }
        }
        let nonsense = render(&config("1.17.9", "xyzzy = 1"), &[]).unwrap_err();
        assert_eq!(nonsense.to_string(), "Cilium's chart 1.17.9 does not have xyzzy");
        let old = render(&config("1.4.0", ""), &[]).unwrap_err();
        assert!(old.to_string().ends_with("only those of 1.16, 1.17") && !old.next().is_empty(), "{old}");
    }

    #[test]
    fn the_owner_s_values_win_and_free_ones_are_not_looked_at() {
        let config = config(
            "1.17.9",
            "[hubble.ui]\nenabled = false\n[operator.nodeSelector]\n\"a.b/c\" = \"d\"\n[envoy]\nenabled = true",
        );
        let rendered = render(&config, &[captured("pi4-trixie-4k", &config)]).unwrap();
        assert_eq!(at(&rendered.values, "hubble.ui.enabled"), &json!(false));
        assert_eq!(at(&rendered.values, "hubble.relay.enabled"), &json!(true));
        assert_eq!(rendered.values["operator"]["nodeSelector"]["a.b/c"], "d");
        assert_eq!(at(&rendered.values, "envoy.enabled"), &json!(true));
        let warned =
            rendered.remarks.iter().any(|remark| remark.starts_with("[cilium.values] sets envoy.enabled"));
        assert!(warned, "{:?}", rendered.remarks);
    }

    #[test]
    fn another_node_s_verdicts_are_read_from_what_its_check_prints() {
        let said = json!({ "v": 1, "features": [
            { "setting": "envoy.enabled", "value": "true", "fit": "works_not", "why": "39 bits" },
            { "setting": "tunnelProtocol", "value": "vxlan", "fit": "works", "why": "tried" },
        ] });
        let node = Node::read("pi4", &said.to_string()).unwrap();
        assert_eq!(node.known("envoy.enabled", "true"), Known::WorksNot("39 bits".into()));
        assert_eq!(node.known("tunnelProtocol", "vxlan"), Known::Works);
        assert!(matches!(node.known("l7Proxy", "true"), Known::Unknown(_)));
        for text in ["", "{}", "{\"v\":2,\"features\":[]}"] {
            assert!(Node::read("pi4", text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_manifest_installs_the_release_that_flux_adopts() {
        let config = config("1.17.9", "");
        let manifest = render(&config, &[]).unwrap().manifest();
        for line in [
            "apiVersion: helm.cattle.io/v1",
            "kind: HelmChart",
            "  name: cilium",
            "  namespace: kube-system",
            "  version: \"1.17.9\"",
            "  bootstrap: true",
            "  valuesContent: |",
            "    k8sServiceHost: \"127.0.0.1\"",
            "    operator:",
            "      nodeSelector:",
            "        \"node-role.kubernetes.io/control-plane\": \"true\"",
            "          clusterPoolIPv4PodCIDRList: [\"10.42.0.0/16\"]",
        ] {
            assert!(
                manifest.lines().any(|other| other.trim_end() == line || other.trim() == line.trim()),
                "{line}\n{manifest}"
            );
        }
        assert!(MANIFEST.starts_with(path::MANIFESTS));
    }
}
