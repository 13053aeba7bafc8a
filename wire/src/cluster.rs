//! What the aggregator says about the whole cluster.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    report::{EventType, Severity, is_short},
    topic::Name,
};

/// The cluster in a few numbers. Retained; expires after three intervals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ClusterState {
    /// Version of the message's layout: [`crate::report::VERSION`].
    pub v: u32,
    /// When it was true.
    pub ts: Timestamp,
    /// The cluster.
    pub cluster: Name,
    /// Nodes that are known.
    pub nodes: u32,
    /// Nodes that are connected to the broker and reached by their peers.
    pub nodes_ready: u32,
    /// Alerts that are raised now, by id.
    pub alerts: BTreeMap<Name, String>,
    /// The slowest pair's median round trip, ms.
    pub worst_round_trip_ms: Option<f64>,
    /// The pair: `n2 -> n3`.
    #[serde(default)]
    pub worst_pair: Option<String>,
}

/// One problem with its evidence. Retained while raised; the topic is emptied when it is over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Alert {
    /// Version of the message's layout: [`crate::report::VERSION`].
    pub v: u32,
    /// Equals the topic's level.
    pub id: Name,
    /// The condition behind it: `path-loss`, `path-cut`, `path-delay`, `node-gone`, ...
    pub kind: String,
    /// Node, or link as `n2 -> n3`.
    pub subject: String,
    /// One sentence for people.
    pub title: String,
    /// How bad it is.
    pub severity: Severity,
    /// Since when.
    pub since: Timestamp,
    /// What was seen, by whom.
    pub evidence: Vec<String>,
}

/// An alert was raised, or is over. Not retained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AlertEvent {
    /// What happened.
    pub event_type: EventType,
    /// When, by the aggregator's clock.
    pub ts: Timestamp,
    /// The cluster.
    pub cluster: Name,
    /// The alert as it is now, or was last.
    #[serde(flatten)]
    pub alert: Alert,
}

/// Who speaks for the cluster. Retained, said at every connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ClusterInfo {
    /// Version of the message's layout: [`crate::report::VERSION`].
    pub v: u32,
    /// When it was true.
    pub ts: Timestamp,
    /// The cluster.
    pub cluster: Name,
    /// The aggregator's version.
    pub version: String,
    /// Identifier of the cluster's device in Home Assistant; `null` when none is announced.
    pub device: Option<String>,
    /// Address of the page, when others than the aggregator's host can read it.
    pub page: Option<String>,
}

impl ClusterInfo {
    /// Whether an aggregator of ours can say this. Nodes repeat it to Home Assistant, which takes none of a device whose page
    /// is no address.
    pub fn is_plausible(&self) -> bool {
        let texts = [Some(&self.version), self.device.as_ref(), self.page.as_ref()];
        texts.into_iter().flatten().all(|text| is_short(text))
            && self
                .page
                .as_ref()
                .is_none_or(|page| page.starts_with("http://") || page.starts_with("https://"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_speaks_for_the_cluster_says_short_texts_and_the_address_of_a_page() {
        let is_plausible = |device: &str, page: &str| {
            let info = ClusterInfo {
                v: crate::report::VERSION,
                ts: Timestamp::UNIX_EPOCH,
                cluster: Name::new("home").unwrap(),
                version: "0.1.0".to_owned(),
                device: Some(device.to_owned()),
                page: Some(page.to_owned()),
            };
            info.is_plausible()
        };
        assert!(is_plausible("bramble_home", "http://pi.lan:8080/"));
        for (device, page) in [
            ("a\u{1b}", "http://pi.lan/"),
            (&"x".repeat(300)[..], "http://pi.lan/"),
            ("a", "javascript:alert(1)"),
            ("a", &format!("http://{}/", "x".repeat(300))),
        ] {
            assert!(!is_plausible(device, page), "{device:?} {page:?}");
        }
    }
}
