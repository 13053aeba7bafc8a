//! What the aggregator says about the whole cluster.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    report::{EventType, Severity},
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
