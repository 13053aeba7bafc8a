//! What the node says, made of findings and health. The only place where inside types become [`wire`] types.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use wire::{
    report::{
        Condition, Finding, FindingCounts, FindingState, Header, MeshRow, NodeFindings, NodeInfo, NodeState,
        Status, Tier, VERSION,
    },
    topic::Name,
};

use crate::probe::{Health, Statement};

/// Since when each condition has its status.
#[derive(Debug, Default)]
pub struct History {
    known: BTreeMap<(&'static str, Option<String>), (Status, Timestamp)>,
}

impl History {
    /// Dates the statements; says whether one of them changed its status, appeared or went.
    pub fn date(&mut self, statements: Vec<Statement>, now: Timestamp) -> (Vec<Condition>, bool) {
        let mut changed = false;
        let mut seen = BTreeSet::new();
        let conditions = statements
            .into_iter()
            .map(|s| {
                let key = (s.id, s.subject.clone());
                let entry = self.known.entry(key.clone()).or_insert_with(|| {
                    changed = true;
                    (s.status, now)
                });
                if entry.0 != s.status {
                    *entry = (s.status, now);
                    changed = true;
                }
                let since = entry.1;
                seen.insert(key);
                Condition {
                    id: s.id.to_owned(),
                    subject: s.subject,
                    title: s.title.to_owned(),
                    status: s.status,
                    severity: s.severity,
                    since,
                    depends_on: s.depends_on.iter().map(|d| (*d).to_owned()).collect(),
                    evidence: s.evidence,
                }
            })
            .collect();
        let before = self.known.len();
        self.known.retain(|key, _| seen.contains(key));
        (conditions, changed || self.known.len() != before)
    }
}

/// Who speaks.
#[derive(Debug, Clone)]
pub struct Speaker {
    /// Cluster and node.
    pub cluster: Name,
    /// This node.
    pub node: Name,
    /// Random id.
    pub id: String,
}

impl Speaker {
    /// What every message begins with.
    pub fn header(&self, now: Timestamp) -> Header {
        Header { v: VERSION, ts: now, cluster: self.cluster.clone(), node: self.node.clone() }
    }

    /// This node's presence.
    pub fn info(
        &self,
        now: Timestamp,
        address: Option<Ipv4Addr>,
        probe_port: u16,
        machine: &Machine,
    ) -> NodeInfo {
        NodeInfo {
            header: self.header(now),
            id: self.id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            address,
            probe_port,
            model: machine.model.clone(),
            kernel: machine.kernel.clone(),
            os: machine.os.clone(),
            about: machine.about.iter().map(|(&id, text)| (id.to_owned(), text.clone())).collect(),
        }
    }

    /// Numbers and health.
    pub fn state(
        &self,
        now: Timestamp,
        tier: Tier,
        healths: &[Health],
        conditions: Vec<Condition>,
        findings: FindingCounts,
        refused_messages: u64,
    ) -> NodeState {
        let readings = healths.iter().flat_map(|h| h.readings.iter().cloned()).collect();
        NodeState { header: self.header(now), tier, readings, conditions, findings, refused_messages }
    }

    /// This node's row of the mesh: probes every `period`, said again after `interval`.
    pub fn mesh(
        &self,
        now: Timestamp,
        tier: Tier,
        [period, interval]: [Duration; 2],
        healths: &[Health],
    ) -> MeshRow {
        let peers = healths.iter().flat_map(|h| h.links.clone()).collect();
        let [period_ms, interval_ms] = [period, interval].map(|time| time.as_millis() as u32);
        MeshRow { header: self.header(now), period_ms, interval_ms, tier, peers }
    }

    /// All findings.
    pub fn findings(&self, now: Timestamp, findings: Vec<Finding>) -> NodeFindings {
        NodeFindings { header: self.header(now), findings }
    }
}

/// What kind of machine this is; read once.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// Board.
    pub model: Option<String>,
    /// Kernel release.
    pub kernel: Option<String>,
    /// Distribution.
    pub os: Option<String>,
    /// What probes tell in words.
    pub about: BTreeMap<&'static str, String>,
}

/// What the agent's socket answers: all that it would tell the broker, and whether it can.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// This node.
    pub info: NodeInfo,
    /// Its health.
    pub state: NodeState,
    /// Its row of the mesh.
    pub mesh: MeshRow,
    /// The verdicts of `check`.
    pub findings: NodeFindings,
    /// Connected to the broker since this time.
    pub broker_since: Option<Timestamp>,
    /// Why not connected.
    pub broker_why: Option<String>,
}

/// How many findings are in which state.
pub fn count(findings: &[Finding]) -> FindingCounts {
    let mut counts = FindingCounts::default();
    for finding in findings {
        *match finding.state {
            FindingState::Met => &mut counts.met,
            FindingState::Unmet => &mut counts.unmet,
            FindingState::Waiting => &mut counts.waiting,
            FindingState::Blocked => &mut counts.blocked,
            FindingState::NotNeeded => &mut counts.not_needed,
            FindingState::Unknown => &mut counts.unknown,
        } += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use wire::report::{MAX_PAYLOAD, Stamps};

    use super::*;
    use crate::{
        companion::{Sample, Sources},
        host::Host,
        probe::{PROBES, Seen, mesh::PeerSample},
    };

    /// All peers that the kernel's map holds, with names as long as they can be, and every way cut.
    #[test]
    fn the_largest_mesh_in_its_worst_hour_fits_into_its_messages() {
        let name = |number: u32| Name::new(&format!("{number:0>63}")).unwrap();
        let peers = (1..=ebpf_records::mesh::MAX_PEERS)
            .map(|number| (name(number), PeerSample { known_ms: 60_000, ..PeerSample::default() }));
        let tier = Tier { stamps: Stamps::Kernel, attached: Some("tcx".to_owned()), why: String::new() };
        let sample = Sample {
            tier: tier.clone(),
            address: None,
            period_ms: 1000,
            mesh: Ok(peers.collect()),
            sources: None,
        };
        let mut judge = (PROBES[0].judge)();
        let health = judge.judge(&Seen {
            host: &Host::live().unwrap(),
            companion: Ok(&sample),
            sources: &Sources::new(),
            online: &BTreeMap::new(),
            node: &name(0),
            state: &crate::host::state::State::new(std::path::Path::new("/nowhere")),
            now: Instant::now(),
            uptime: Duration::ZERO,
            wall: Timestamp::UNIX_EPOCH,
        });
        let speaker = Speaker { cluster: name(0), node: name(0), id: "00000000".to_owned() };
        let now = Timestamp::UNIX_EPOCH;
        let (conditions, _) = History::default().date(health.statements.clone(), now);
        assert!(conditions.iter().any(|c| c.evidence.ends_with(" and 1016 more")), "{conditions:?}");
        let healths = [health];
        let row = speaker.mesh(now, tier.clone(), [1, 10].map(Duration::from_secs), &healths);
        let state = speaker.state(now, tier, &healths, conditions, FindingCounts::default(), 0);
        assert_eq!((row.peers.len(), row.period_ms, row.interval_ms), (1024, 1000, 10_000));
        // Twice: what a way that is not cut has to tell is longer.
        let sizes = [serde_json::to_vec(&row).unwrap().len() * 2, serde_json::to_vec(&state).unwrap().len()];
        assert!(sizes.iter().all(|size| *size <= MAX_PAYLOAD), "{sizes:?}");
    }
}
