//! What the aggregator says about the whole cluster.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{report::Severity, topic::Name};

/// The cluster in a few numbers. Retained; expires after three intervals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
}

/// One problem with its evidence. Retained while raised; the topic is emptied when it is over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
