//! Every topic that bramble publishes or reads; nothing outside this file spells one.
//!
//! [`Topic::parse`] is the inverse of [`Topic::in_cluster`]; a topic that is not ours, or not of our
//! cluster, is an error and never a guess.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::written::visible;

/// First level of all own topics.
const ROOT: &str = "bramble";
/// Level of the cluster's own device in Home Assistant's topics. No [`Name`] has a `_`, so it is never a node's.
const CLUSTER_DEVICE: &str = "bramble_cluster";

/// A topic level of ours: the name of a cluster or a node, `[a-z0-9-]`, 1 to 63 characters, no `-` at either end.
///
/// The same rule as a Kubernetes node name without dots, so it is also safe in URLs, in HTML ids and in Home Assistant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(extend("pattern" = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")))]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a text is no [`Name`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{shown}` is no valid name: 1 to 63 characters of a-z, 0-9 and -, not at the ends")]
pub struct BadName {
    shown: String,
}

impl Name {
    /// Takes the text as it is, or says what is wrong with it.
    pub fn new(text: &str) -> Result<Self, BadName> {
        let fits = (1..=63).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !text.starts_with('-')
            && !text.ends_with('-');
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadName { shown: visible(&text.chars().take(80).collect::<String>()) })
        }
    }

    /// The nearest valid name of a host: lower case, everything else becomes `-`; `None` when nothing is left.
    pub fn slug(text: &str) -> Option<Self> {
        let mut slug = String::new();
        for c in text.chars() {
            match c.to_ascii_lowercase() {
                c if c.is_ascii_lowercase() || c.is_ascii_digit() => slug.push(c),
                _ if slug.is_empty() || slug.ends_with('-') => {}
                _ => slug.push('-'),
            }
        }
        slug.truncate(63);
        Self::new(slug.trim_end_matches('-')).ok()
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Name {
    type Error = BadName;
    fn try_from(text: String) -> Result<Self, BadName> {
        Self::new(&text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

/// A topic, without the cluster it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// `bramble/<cluster>/node/<node>/...`
    Node(Name, NodeTopic),
    /// `bramble/<cluster>/cluster/...`
    Cluster(ClusterTopic),
}

/// What a node says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeTopic {
    /// `online` or, as last will, `offline`; retained, no expiry, plain text.
    Availability,
    /// [`crate::report::NodeInfo`], retained.
    Info,
    /// [`crate::report::NodeState`], retained, expires.
    State,
    /// [`crate::report::NodeFindings`], retained.
    Findings,
    /// [`crate::report::MeshRow`], retained, expires.
    Mesh,
    /// [`crate::report::NodeEvent`], not retained, expires.
    Event,
    /// [`crate::report::NodeRecord`], not retained: what happened, however late it is told; nothing about the present.
    History,
    /// [`crate::command::Request`], to the node, never retained.
    Request(Verb),
    /// [`crate::command::Response`], not retained, expires.
    Response(Verb),
}

/// What a node may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Judge the requirements now.
    Check,
    /// Say everything again.
    Refresh,
    /// Blink, so that a person finds the board.
    Identify,
    /// Restart the machine.
    Reboot,
    /// Carry the owner's plan out.
    Apply,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Check, Self::Refresh, Self::Identify, Self::Reboot, Self::Apply];

    /// The topic's level, and the word in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Refresh => "refresh",
            Self::Identify => "identify",
            Self::Reboot => "reboot",
            Self::Apply => "apply",
        }
    }

    /// Whether it changes the machine: such a verb is done only when the owner listed it.
    pub fn acts(self) -> bool {
        matches!(self, Self::Reboot | Self::Apply)
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the aggregator says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClusterTopic {
    /// `online` or, as last will, `offline`; retained.
    Availability,
    /// [`crate::cluster::ClusterInfo`], retained.
    Info,
    /// [`crate::cluster::ClusterState`], retained, expires.
    State,
    /// [`crate::cluster::AlertEvent`], not retained, expires.
    Event,
    /// [`crate::cluster::Alert`], retained; emptied when the alert is cleared.
    Alert(Name),
}

impl NodeTopic {
    /// The retained ones: all that a node leaves at the broker.
    pub const RETAINED: [Self; 5] = [Self::Availability, Self::Info, Self::State, Self::Findings, Self::Mesh];

    fn levels(self) -> (&'static str, Option<Verb>) {
        match self {
            Self::Availability => ("availability", None),
            Self::Info => ("info", None),
            Self::State => ("state", None),
            Self::Findings => ("findings", None),
            Self::Mesh => ("mesh", None),
            Self::Event => ("event", None),
            Self::History => ("history", None),
            Self::Request(verb) => ("request", Some(verb)),
            Self::Response(verb) => ("response", Some(verb)),
        }
    }

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        let verbs = |of: fn(Verb) -> Self| Verb::ALL.into_iter().map(of);
        let plain = Self::RETAINED.into_iter().chain([Self::Event, Self::History]);
        plain.chain(verbs(Self::Request)).chain(verbs(Self::Response))
    }
}

impl fmt::Display for NodeTopic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.levels() {
            (level, None) => f.write_str(level),
            (level, Some(verb)) => write!(f, "{level}/{verb}"),
        }
    }
}

/// Why a topic is not taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NotOurs {
    /// The topic has another shape than any of ours.
    #[error("not a topic of bramble")]
    Unknown,
    /// The topic belongs to another cluster on the same broker.
    #[error("a topic of another cluster")]
    Foreign,
    /// A level is no valid name.
    #[error(transparent)]
    BadName(#[from] BadName),
}

impl Topic {
    /// The topic as it is published in `cluster`.
    pub fn in_cluster(&self, cluster: &Name) -> String {
        match self {
            Self::Node(node, leaf) => format!("{ROOT}/{cluster}/node/{node}/{leaf}"),
            Self::Cluster(ClusterTopic::Availability) => format!("{ROOT}/{cluster}/cluster/availability"),
            Self::Cluster(ClusterTopic::Info) => format!("{ROOT}/{cluster}/cluster/info"),
            Self::Cluster(ClusterTopic::State) => format!("{ROOT}/{cluster}/cluster/state"),
            Self::Cluster(ClusterTopic::Event) => format!("{ROOT}/{cluster}/cluster/event"),
            Self::Cluster(ClusterTopic::Alert(id)) => format!("{ROOT}/{cluster}/cluster/alert/{id}"),
        }
    }

    /// Reads a topic that arrived from the broker.
    ///
    /// # Errors
    /// Anything that [`Topic::in_cluster`] of the same cluster cannot have made.
    pub fn parse(text: &str, cluster: &Name) -> Result<Self, NotOurs> {
        // No topic of ours has more than six levels or is longer than its two names and words.
        let levels: Vec<&str> = text.splitn(8, '/').collect();
        match levels[..] {
            [ROOT, other, ..] if other != cluster.as_str() => Err(NotOurs::Foreign),
            [ROOT, _, "node", node, ref leaf @ ..] => {
                let leaf = leaf.join("/");
                let leaf = NodeTopic::all().find(|l| l.to_string() == leaf).ok_or(NotOurs::Unknown)?;
                Ok(Self::Node(Name::new(node)?, leaf))
            }
            [ROOT, _, "cluster", "availability"] => Ok(Self::Cluster(ClusterTopic::Availability)),
            [ROOT, _, "cluster", "info"] => Ok(Self::Cluster(ClusterTopic::Info)),
            [ROOT, _, "cluster", "state"] => Ok(Self::Cluster(ClusterTopic::State)),
            [ROOT, _, "cluster", "event"] => Ok(Self::Cluster(ClusterTopic::Event)),
            [ROOT, _, "cluster", "alert", id] => Ok(Self::Cluster(ClusterTopic::Alert(Name::new(id)?))),
            _ => Err(NotOurs::Unknown),
        }
    }

    /// The filters that the agent of `node` subscribes to: its peers' presence, the aggregator's, and what it is asked.
    pub fn filters_of_the_agent(cluster: &Name, node: &Name) -> Vec<String> {
        vec![
            format!("{ROOT}/{cluster}/node/+/{}", NodeTopic::Info),
            format!("{ROOT}/{cluster}/node/+/{}", NodeTopic::Availability),
            format!("{ROOT}/{cluster}/node/{node}/request/+"),
            Self::Cluster(ClusterTopic::Info).in_cluster(cluster),
        ]
    }

    /// The filters of who asks whether somebody speaks under an id.
    pub fn filters_of_who_asks(cluster: &Name) -> Vec<String> {
        let leaves = [NodeTopic::Info, NodeTopic::Availability, NodeTopic::State];
        leaves.iter().map(|leaf| format!("{ROOT}/{cluster}/node/+/{leaf}")).collect()
    }

    /// The filters that the aggregator subscribes to.
    pub fn filters_of_the_aggregator(cluster: &Name) -> Vec<String> {
        vec![format!("{ROOT}/{cluster}/node/+/+"), format!("{ROOT}/{cluster}/cluster/alert/+")]
    }

    /// The filter of all that a node leaves at the broker.
    pub fn filter_of_the_node(cluster: &Name, node: &Name) -> String {
        format!("{ROOT}/{cluster}/node/{node}/+")
    }
}

/// The first levels of Home Assistant's topics: the discovery prefix that its MQTT integration is set to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix(String);

impl Prefix {
    /// Takes the text as it is.
    ///
    /// # Errors
    /// What cannot stand before a `/` in a topic, and ours, below which Home Assistant has no place.
    pub fn new(text: &str) -> Result<Self, BadPrefix> {
        let level = |level: &str| {
            !level.is_empty() && level.chars().all(|c| !c.is_control() && !matches!(c, '+' | '#' | '$'))
        };
        match text.len() <= 100 && text.split('/').all(level) && text.split('/').next() != Some(ROOT) {
            true => Ok(Self(text.to_owned())),
            false => Err(BadPrefix),
        }
    }
}

/// Why a text is no [`Prefix`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "a discovery prefix, such as \"homeassistant\": at most 100 characters, no +, # or $, no / at the ends, not below bramble/"
)]
pub struct BadPrefix;

impl Default for Prefix {
    fn default() -> Self {
        Self("homeassistant".to_owned())
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Prefix {
    type Error = BadPrefix;
    fn try_from(text: String) -> Result<Self, BadPrefix> {
        Self::new(&text)
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> String {
        prefix.0
    }
}

/// Whose device is announced to Home Assistant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// A node's.
    Node(Name),
    /// The cluster's.
    Cluster,
}

/// A topic of Home Assistant's, without its prefix and the cluster that announces.
///
/// The cluster stands in them, because nodes of two clusters on one broker may have the same name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HomeTopic {
    /// `<prefix>/status`: Home Assistant's own birth and last will, not retained.
    Status,
    /// `<prefix>/device/<owner>/bramble-<cluster>/config`, retained: a device with all its components.
    Device(Owner),
    /// `<prefix>/<platform>/<owner>/bramble-<cluster>-<key>/config`, retained: one component.
    Component(Owner, Platform, Key),
}

/// What Home Assistant calls a kind of entity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Platform {
    /// A number or a word.
    Sensor,
    /// On or off.
    BinarySensor,
    /// Something that happened.
    Event,
    /// A version.
    Update,
    /// Something to press.
    Button,
}

impl Platform {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Sensor, Self::BinarySensor, Self::Event, Self::Update, Self::Button];

    /// The topic's level.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sensor => "sensor",
            Self::BinarySensor => "binary_sensor",
            Self::Event => "event",
            Self::Update => "update",
            Self::Button => "button",
        }
    }
}

/// A component's key within its device: an id with `_` for `-`, which no cluster's name has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key(String);

impl Key {
    /// The key of an id; whatever is no letter and no digit becomes `_`.
    pub fn of(id: &str) -> Self {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
        Self(id.chars().map(plain).collect())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is of something that is measured or judged; all else is there because somebody set it so.
    pub fn is_measured(&self) -> bool {
        self.0.starts_with("reading_") || self.0.starts_with("condition_")
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Owner {
    fn level(&self) -> &str {
        match self {
            Self::Node(node) => node.as_str(),
            Self::Cluster => CLUSTER_DEVICE,
        }
    }

    fn parse(level: &str) -> Result<Self, BadName> {
        if level == CLUSTER_DEVICE { Ok(Self::Cluster) } else { Name::new(level).map(Self::Node) }
    }
}

impl HomeTopic {
    /// The topic as `cluster` publishes it below `prefix`.
    pub fn below(&self, prefix: &Prefix, cluster: &Name) -> String {
        match self {
            Self::Status => format!("{prefix}/status"),
            Self::Device(owner) => format!("{prefix}/device/{}/{ROOT}-{cluster}/config", owner.level()),
            Self::Component(owner, platform, key) => {
                format!("{prefix}/{}/{}/{ROOT}-{cluster}-{key}/config", platform.as_str(), owner.level())
            }
        }
    }

    /// Reads a topic below `prefix`.
    ///
    /// # Errors
    /// Anything that [`HomeTopic::below`] of the same cluster cannot have made.
    pub fn parse(text: &str, prefix: &Prefix, cluster: &Name) -> Result<Self, NotOurs> {
        let rest = text.strip_prefix(&prefix.0).and_then(|rest| rest.strip_prefix('/'));
        let levels: Vec<&str> = rest.ok_or(NotOurs::Unknown)?.splitn(5, '/').collect();
        match levels[..] {
            ["status"] => Ok(Self::Status),
            [platform, owner, object, "config"] => {
                let key = object
                    .strip_prefix(ROOT)
                    .and_then(|rest| rest.strip_prefix('-')?.strip_prefix(cluster.as_str()))
                    .ok_or(NotOurs::Unknown)?;
                if platform == "device" {
                    return if key.is_empty() {
                        Ok(Self::Device(Owner::parse(owner)?))
                    } else {
                        Err(NotOurs::Unknown)
                    };
                }
                let key = key.strip_prefix('-').filter(|key| Key::of(key).as_str() == *key);
                let platform = Platform::ALL.into_iter().find(|p| p.as_str() == platform);
                match (platform, key) {
                    (Some(platform), Some(key)) => {
                        Ok(Self::Component(Owner::parse(owner)?, platform, Key::of(key)))
                    }
                    _ => Err(NotOurs::Unknown),
                }
            }
            _ => Err(NotOurs::Unknown),
        }
    }

    /// The filter of all that `owner` may have announced, by whichever of its versions.
    pub fn filter_of(prefix: &Prefix, owner: &Owner) -> String {
        format!("{prefix}/+/{}/+/config", owner.level())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name() -> impl Strategy<Value = Name> {
        "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?".prop_map(|s| Name::new(&s).unwrap())
    }

    fn topic() -> impl Strategy<Value = Topic> {
        prop_oneof![
            (name(), proptest::sample::select(NodeTopic::all().collect::<Vec<_>>()))
                .prop_map(|(n, leaf)| Topic::Node(n, leaf)),
            Just(Topic::Cluster(ClusterTopic::Availability)),
            Just(Topic::Cluster(ClusterTopic::Info)),
            Just(Topic::Cluster(ClusterTopic::State)),
            Just(Topic::Cluster(ClusterTopic::Event)),
            name().prop_map(|n| Topic::Cluster(ClusterTopic::Alert(n))),
        ]
    }

    fn home_topic() -> impl Strategy<Value = HomeTopic> {
        let owner = || prop_oneof![name().prop_map(Owner::Node), Just(Owner::Cluster)];
        let platform = proptest::sample::select(Platform::ALL.to_vec());
        prop_oneof![
            Just(HomeTopic::Status),
            owner().prop_map(HomeTopic::Device),
            (owner(), platform, "[a-z0-9-]{1,20}").prop_map(|(owner, platform, id)| HomeTopic::Component(
                owner,
                platform,
                Key::of(&id)
            )),
        ]
    }

    fn prefix() -> impl Strategy<Value = Prefix> {
        "[a-z]{1,5}(/[a-z]{1,5})?".prop_map(|p| Prefix::new(&p).unwrap_or_default())
    }

    proptest! {
        #[test]
        fn parsing_undoes_formatting(cluster in name(), topic in topic()) {
            prop_assert_eq!(Topic::parse(&topic.in_cluster(&cluster), &cluster), Ok(topic));
        }

        #[test]
        fn parsing_undoes_formatting_below_a_prefix(
            prefix in prefix(), cluster in name(), topic in home_topic()
        ) {
            prop_assert_eq!(HomeTopic::parse(&topic.below(&prefix, &cluster), &prefix, &cluster), Ok(topic));
        }

        #[test]
        fn any_text_below_a_prefix_is_parsed_or_refused(
            text in prop_oneof![".{0,80}", "homeassistant/(device|sensor|.{0,5})/.{0,9}/bramble-home.{0,9}/config"]
        ) {
            let cluster = Name::new("home").unwrap();
            if let Ok(topic) = HomeTopic::parse(&text, &Prefix::default(), &cluster) {
                prop_assert_eq!(topic.below(&Prefix::default(), &cluster), text);
            }
        }

        #[test]
        fn any_text_is_parsed_or_refused_without_a_panic(text in ".{0,200}") {
            let cluster = Name::new("home").unwrap();
            if let Ok(topic) = Topic::parse(&text, &cluster) {
                prop_assert_eq!(topic.in_cluster(&cluster), text);
            }
        }

        #[test]
        fn a_slug_is_a_name_and_stays_itself(text in ".{0,90}") {
            if let Some(slug) = Name::slug(&text) {
                prop_assert_eq!(Name::slug(slug.as_str()), Some(slug));
            }
        }
    }

    #[test]
    fn hostile_levels_are_refused() {
        let home = Name::new("home").unwrap();
        for bad in ["", "+", "#", "a/b", "a\0b", "A", "-a", "a-", "ü", "a.b", &"x".repeat(64)] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
            let text = format!("bramble/home/node/{bad}/state");
            assert!(Topic::parse(&text, &home).is_err(), "{text:?}");
        }
        assert_eq!(Topic::parse("bramble/away/node/n1/state", &home), Err(NotOurs::Foreign));
        assert_eq!(Topic::parse("bramble/home/node/n1/state/x", &home), Err(NotOurs::Unknown));
        assert_eq!(Topic::parse("bramble/home/node/n1/request/rm", &home), Err(NotOurs::Unknown));
    }

    #[test]
    fn two_clusters_never_announce_on_one_topic() {
        let [a, b] = ["home", "home-2"].map(|n| Name::new(n).unwrap());
        let prefix = Prefix::default();
        let device = HomeTopic::Device(Owner::Node(a.clone()));
        assert_eq!(device.below(&prefix, &a), "homeassistant/device/home/bramble-home/config");
        assert_eq!(HomeTopic::parse(&device.below(&prefix, &b), &prefix, &a), Err(NotOurs::Unknown));
        let own = HomeTopic::Device(Owner::Cluster).below(&prefix, &a);
        assert_eq!(own, "homeassistant/device/bramble_cluster/bramble-home/config");
    }

    #[test]
    fn a_prefix_that_no_topic_can_begin_with_is_refused() {
        for bad in
            ["", "/a", "a/", "a//b", "+", "a/#", "$SYS", "bramble", "bramble/home", "a\nb", &"x".repeat(101)]
        {
            assert_eq!(Prefix::new(bad), Err(BadPrefix), "{bad:?}");
        }
        assert!(Prefix::new("haus/discovery").is_ok());
    }

    #[test]
    fn host_names_become_names() {
        for (host, name) in [("Pi5.local", "pi5-local"), ("Küche 1", "k-che-1"), ("--a--", "a"), ("n1", "n1")]
        {
            assert_eq!(Name::slug(host).map(String::from).as_deref(), Some(name));
        }
        assert_eq!(Name::slug("ÜÖ"), None);
    }
}
