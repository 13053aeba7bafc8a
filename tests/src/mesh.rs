//! What the nodes say of themselves and of each other, heard from the broker.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use serde::Serialize;
use wire::{
    report::{MeshRow, NodeState, RoundTrip, Stamps, Status, WayState},
    topic::{Name, NodeTopic, Topic},
};

use crate::{
    broker::{Heard, Listener},
    lab::{CLUSTER, Lab},
    watch::until,
};

/// Everything that the bed's cluster says over MQTT.
#[derive(Debug)]
pub struct Ear {
    listener: Listener,
    cluster: Name,
}

impl Ear {
    /// Listens from now on; retained messages come first.
    ///
    /// # Errors
    /// mosquitto-clients is missing.
    pub fn open(lab: &Lab) -> Result<Self> {
        let cluster = Name::new(CLUSTER)?;
        Ok(Self { listener: lab.broker().listen("#")?, cluster })
    }

    /// The newest message of a node's topic.
    ///
    /// # Errors
    /// `node` is no name.
    pub fn newest(&self, node: &str, leaf: NodeTopic) -> Result<Option<Heard>> {
        Ok(self.listener.newest(&Topic::Node(Name::new(node)?, leaf).in_cluster(&self.cluster)))
    }

    /// What a node last said of its health.
    pub fn state(&self, node: &str) -> Option<NodeState> {
        let heard = self.newest(node, NodeTopic::State).ok()??;
        serde_json::from_slice(&heard.payload).ok()
    }

    /// A node's last row of the mesh.
    pub fn row(&self, node: &str) -> Option<MeshRow> {
        let heard = self.newest(node, NodeTopic::Mesh).ok()??;
        serde_json::from_slice(&heard.payload).ok()
    }

    /// The alerts that stand now, each with when it was last said.
    pub fn alerts(&self) -> Vec<(wire::cluster::Alert, Heard)> {
        let prefix = format!("bramble/{CLUSTER}/cluster/alert/");
        let heard = self.listener.below(&prefix).into_iter();
        heard.filter_map(|(_, heard)| Some((serde_json::from_slice(&heard.payload).ok()?, heard))).collect()
    }

    /// All directed pairs, in the order of the nodes; a pair is there once both ends reported.
    pub fn pairs(&self, lab: &Lab) -> Vec<Pair> {
        let names: Vec<&str> = lab.nodes().iter().map(|node| node.name()).collect();
        let rows: BTreeMap<&str, MeshRow> =
            names.iter().filter_map(|name| Some((*name, self.row(name)?))).collect();
        let directed = names.iter().flat_map(|from| names.iter().map(move |to| (*from, *to)));
        directed.filter(|(from, to)| from != to).filter_map(|(from, to)| Pair::of(&rows, from, to)).collect()
    }
}

/// One direction between two nodes, by what both ends say.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// The sending node.
    pub from: String,
    /// The receiving node.
    pub to: String,
    /// Probes that `from` sent to `to`.
    pub sent: u64,
    /// Probes of `from` that `to` heard.
    pub received: u64,
    /// The worse of what both ends say of this direction, 0 to 1; `None` = neither could tell.
    pub loss: Option<f64>,
    /// `from`'s last round trips to `to`.
    pub round_trip_us: Option<Times>,
    /// Who stamped them.
    pub stamps: Stamps,
    /// The worse of both ends' verdicts.
    pub state: WayState,
}

/// Round trips, microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Times {
    /// Half of them were faster.
    pub median: f64,
    /// The fastest.
    pub min: f64,
    /// The slowest.
    pub max: f64,
}

impl Pair {
    fn of(rows: &BTreeMap<&str, MeshRow>, from: &str, to: &str) -> Option<Self> {
        let there = rows.get(from)?.peers.get(&Name::new(to).ok()?)?;
        let back = rows.get(to)?.peers.get(&Name::new(from).ok()?)?;
        let times = |trip: RoundTrip| Times { median: trip.median_us, min: trip.min_us, max: trip.max_us };
        Some(Self {
            from: from.to_owned(),
            to: to.to_owned(),
            sent: there.sent,
            received: back.heard,
            loss: [there.out.loss, back.incoming.loss].into_iter().flatten().reduce(f64::max),
            round_trip_us: there.round_trip.map(times),
            stamps: there.round_trip.map_or(Stamps::None, |trip| trip.stamps),
            state: there.out.state.max(back.incoming.state),
        })
    }

    /// As alerts and conditions write it.
    pub fn subject(&self) -> String {
        format!("{} -> {}", self.from, self.to)
    }
}

/// Waits until every pair is fine in both directions and every node's report is there; returns the pairs.
///
/// # Errors
/// Not within the limit; then it says which pairs are not, and why nodes measure as they do.
pub fn settle(lab: &Lab, ear: &Ear, within: Duration) -> Result<Vec<Pair>> {
    let count = lab.nodes().len() * (lab.nodes().len() - 1);
    let settled = until(within, "all pairs are fine", || {
        let pairs = ear.pairs(lab);
        let fine = pairs.iter().all(|pair| pair.state == WayState::Fine && pair.round_trip_us.is_some());
        let reported = lab.nodes().iter().all(|node| ear.state(node.name()).is_some());
        Ok((pairs.len() == count && fine && reported).then_some(pairs))
    });
    settled.with_context(|| {
        let pairs = ear.pairs(lab);
        let not_fine: Vec<_> = pairs
            .iter()
            .filter(|pair| pair.state != WayState::Fine || pair.round_trip_us.is_none())
            .map(|pair| format!("{} {:?}", pair.subject(), pair.state))
            .collect();
        let tiers: Vec<_> = lab
            .nodes()
            .iter()
            .map(|node| match ear.state(node.name()) {
                Some(state) => format!("{}: {:?} {}", node.name(), state.tier.stamps, state.tier.why),
                None => format!("{}: no report", node.name()),
            })
            .collect();
        format!("{} of {count} pairs reported; not fine: {not_fine:?}; {}", pairs.len(), tiers.join("; "))
    })
}

/// Conditions that a node raises now, as `id subject`.
pub fn raised(state: &NodeState) -> Vec<(String, Option<String>)> {
    let raised = state.conditions.iter().filter(|condition| condition.status == Status::Raised);
    raised.map(|condition| (condition.id.clone(), condition.subject.clone())).collect()
}
