//! Every topic that bramble publishes or reads; nothing outside this file spells one.
//!
//! [`Topic::parse`] is the inverse of [`Topic::in_cluster`]; a topic that is not ours, or not of our
//! cluster, is an error and never a guess.

use std::fmt;

use serde::{Deserialize, Serialize};

/// First level of all own topics.
const ROOT: &str = "bramble";
/// First level of Home Assistant's topics.
const HOME_ASSISTANT: &str = "homeassistant";

/// A topic level of ours: the name of a cluster or a node, `[a-z0-9-]`, 1 to 63 characters, no `-` at either end.
///
/// The same rule as a Kubernetes node name without dots, so it is also safe in URLs, in HTML ids and in Home Assistant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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
            Err(BadName { shown: text.chars().take(80).flat_map(char::escape_default).collect() })
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
    /// `homeassistant/device/<node>/bramble/config`, retained.
    Discovery(Name),
    /// `homeassistant/status`: Home Assistant's own birth and last will, not retained.
    HomeAssistantStatus,
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
}

/// What the aggregator says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClusterTopic {
    /// `online` or, as last will, `offline`; retained.
    Availability,
    /// [`crate::cluster::ClusterState`], retained, expires.
    State,
    /// [`crate::cluster::Alert`], retained; emptied when the alert is cleared.
    Alert(Name),
}

impl NodeTopic {
    /// All of them, for subscriptions and clean-up.
    pub const ALL: [Self; 5] = [Self::Availability, Self::Info, Self::State, Self::Findings, Self::Mesh];

    fn level(self) -> &'static str {
        match self {
            Self::Availability => "availability",
            Self::Info => "info",
            Self::State => "state",
            Self::Findings => "findings",
            Self::Mesh => "mesh",
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
            Self::Node(node, leaf) => format!("{ROOT}/{cluster}/node/{node}/{}", leaf.level()),
            Self::Cluster(ClusterTopic::Availability) => format!("{ROOT}/{cluster}/cluster/availability"),
            Self::Cluster(ClusterTopic::State) => format!("{ROOT}/{cluster}/cluster/state"),
            Self::Cluster(ClusterTopic::Alert(id)) => format!("{ROOT}/{cluster}/cluster/alert/{id}"),
            Self::Discovery(node) => format!("{HOME_ASSISTANT}/device/{node}/bramble/config"),
            Self::HomeAssistantStatus => format!("{HOME_ASSISTANT}/status"),
        }
    }

    /// Reads a topic that arrived from the broker.
    ///
    /// # Errors
    /// Anything that [`Topic::in_cluster`] of the same cluster cannot have made.
    pub fn parse(text: &str, cluster: &Name) -> Result<Self, NotOurs> {
        // No topic of ours has more than five levels or is longer than its two names and words.
        let levels: Vec<&str> = text.splitn(7, '/').collect();
        match levels[..] {
            [HOME_ASSISTANT, "status"] => Ok(Self::HomeAssistantStatus),
            [HOME_ASSISTANT, "device", node, ROOT, "config"] => Ok(Self::Discovery(Name::new(node)?)),
            [ROOT, other, ..] if other != cluster.as_str() => Err(NotOurs::Foreign),
            [ROOT, _, "node", node, leaf] => {
                let leaf = NodeTopic::ALL.into_iter().find(|l| l.level() == leaf).ok_or(NotOurs::Unknown)?;
                Ok(Self::Node(Name::new(node)?, leaf))
            }
            [ROOT, _, "cluster", "availability"] => Ok(Self::Cluster(ClusterTopic::Availability)),
            [ROOT, _, "cluster", "state"] => Ok(Self::Cluster(ClusterTopic::State)),
            [ROOT, _, "cluster", "alert", id] => Ok(Self::Cluster(ClusterTopic::Alert(Name::new(id)?))),
            _ => Err(NotOurs::Unknown),
        }
    }

    /// Whether `text` is a topic filter's catch: only these filters are ever subscribed to.
    ///
    /// The agent reads its peers' presence; Home Assistant's birth makes it say everything again.
    pub fn filters_of_the_agent(cluster: &Name) -> Vec<String> {
        vec![
            format!("{ROOT}/{cluster}/node/+/{}", NodeTopic::Info.level()),
            format!("{ROOT}/{cluster}/node/+/{}", NodeTopic::Availability.level()),
            Self::HomeAssistantStatus.in_cluster(cluster),
        ]
    }

    /// The filters that the aggregator subscribes to.
    pub fn filters_of_the_aggregator(cluster: &Name) -> Vec<String> {
        vec![
            format!("{ROOT}/{cluster}/node/+/+"),
            format!("{ROOT}/{cluster}/cluster/alert/+"),
            Self::HomeAssistantStatus.in_cluster(cluster),
        ]
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
            (name(), 0..NodeTopic::ALL.len()).prop_map(|(n, i)| Topic::Node(n, NodeTopic::ALL[i])),
            Just(Topic::Cluster(ClusterTopic::Availability)),
            Just(Topic::Cluster(ClusterTopic::State)),
            name().prop_map(|n| Topic::Cluster(ClusterTopic::Alert(n))),
            name().prop_map(Topic::Discovery),
            Just(Topic::HomeAssistantStatus),
        ]
    }

    proptest! {
        #[test]
        fn parsing_undoes_formatting(cluster in name(), topic in topic()) {
            prop_assert_eq!(Topic::parse(&topic.in_cluster(&cluster), &cluster), Ok(topic));
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
