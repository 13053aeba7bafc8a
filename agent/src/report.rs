//! What the node says, made of findings and health. The only place where inside types become [`wire`] types.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use wire::{
    clock::Wall,
    report::{
        self, Condition, EventType, Finding, FindingCounts, FindingState, Header, MeshRow, NodeEvent,
        NodeFindings, NodeInfo, NodeState, Phase, Status, Tier, VERSION,
    },
    topic::Name,
};

use crate::probe::{Health, Statement};

/// What is different about the conditions.
#[derive(Debug, Clone, PartialEq)]
pub enum Changed {
    /// A condition has another status than before; without one, it is new.
    Is {
        /// The status before.
        before: Option<Status>,
        /// The condition now.
        condition: Condition,
    },
    /// A condition is not judged any more.
    Gone {
        /// Which.
        id: &'static str,
        /// Of what.
        subject: Option<String>,
        /// Its last status.
        before: Status,
    },
}

/// Id and subject of a condition, also of one that an earlier run judged.
type Key = (Cow<'static, str>, Option<String>);

/// Since when each condition has its status, by the steady clock.
#[derive(Debug, Default)]
pub struct History {
    known: BTreeMap<(&'static str, Option<String>), (Status, Timestamp)>,
    /// What was raised and is not over: what cannot be seen meanwhile does not end it.
    raised: BTreeMap<Key, Condition>,
    /// Of these, what an earlier run raised and this one has not looked at yet, and until when that is waited for.
    earlier: Option<(BTreeSet<Key>, Instant)>,
    /// How far the wall clock, by which all is told, is ahead of the steady one.
    wall: Wall,
}

/// What a run leaves to the next one.
#[derive(Serialize, Deserialize)]
struct Kept<T> {
    wall: Wall,
    raised: T,
}

/// How long after its start an agent has looked at everything.
const LOOKED: Duration = Duration::from_secs(60);

impl History {
    /// Goes on from what an earlier run had raised, in the words of [`History::raised`].
    pub fn after(earlier: &str) -> Self {
        let Ok(Kept::<Vec<Condition>> { wall, raised }) = serde_json::from_str(earlier) else {
            return Self::default();
        };
        let key = |condition: &Condition| -> Key { (condition.id.clone().into(), condition.subject.clone()) };
        let raised: BTreeMap<_, _> =
            raised.into_iter().map(|condition| (key(&condition), condition)).collect();
        let earlier = Some((raised.keys().cloned().collect(), Instant::now() + LOOKED));
        Self { known: BTreeMap::new(), raised, earlier, wall }
    }

    /// Whether what an earlier run raised was waited for in vain.
    pub fn is_over(&self) -> bool {
        self.earlier.as_ref().is_some_and(|(_, until)| Instant::now() >= *until)
    }

    /// What is raised and not over, as a text for the next run.
    pub fn raised(&self) -> String {
        let raised: Vec<_> = self.raised.values().collect();
        serde_json::to_string(&Kept { wall: self.wall, raised }).expect("conditions are JSON")
    }

    /// Looks at the clocks; whether the wall clock was set, so that all that is dated is another time now: a Pi has no clock of its
    /// own, and starts long ago.
    pub fn was_set(&mut self, steady: Timestamp, wall: Timestamp) -> bool {
        let wall = self.wall.seen(steady, wall);
        wall != std::mem::replace(&mut self.wall, wall)
    }

    /// A steady time as the wall clock has it.
    pub fn tell(&self, steady: Timestamp) -> Timestamp {
        self.wall.tell(steady)
    }

    /// Dates the statements by the steady clock's `now`, and tells it as the wall clock has it; says what was raised and what is
    /// over since the last time.
    pub fn date(&mut self, statements: Vec<Statement>, now: Timestamp) -> Dated {
        let wall = self.wall;
        let mut changed = Vec::new();
        let mut events = Vec::new();
        let mut seen = BTreeSet::new();
        let conditions = statements
            .into_iter()
            .map(|s| {
                let key = (s.id, s.subject.clone());
                let before = self.known.get(&key).copied();
                let raised_key = (Cow::Borrowed(s.id), s.subject.clone());
                if let Some((earlier, _)) = &mut self.earlier {
                    earlier.remove(&raised_key);
                }
                let since = match (before, self.raised.get(&raised_key)) {
                    // It was not over, only out of sight.
                    (_, Some(raised)) if s.status == Status::Raised => raised.since.min(now),
                    (Some((status, since)), _) if status == s.status => since,
                    _ => now,
                };
                self.known.insert(key.clone(), (s.status, since));
                seen.insert(key.clone());
                let condition = Condition {
                    id: s.id.to_owned(),
                    subject: s.subject,
                    title: s.title.to_owned(),
                    status: s.status,
                    severity: s.severity,
                    since: wall.tell(since),
                    depends_on: s.depends_on.iter().map(|d| (*d).to_owned()).collect(),
                    evidence: s.evidence,
                };
                let before = before.map(|(status, _)| status);
                if before != Some(s.status) {
                    changed.push(Changed::Is { before, condition: condition.clone() });
                }
                let event = self.follow(raised_key, &condition, since);
                events.extend(event.map(|event| (event, condition.clone())));
                condition
            })
            .collect();
        // What is no longer looked at, such as a link to a node that left, is over as well.
        if self.is_over() {
            self.earlier = None;
        }
        let is_awaited = |key: &_| self.earlier.as_ref().is_some_and(|(earlier, _)| earlier.contains(key));
        let is_seen = |key: &Key| seen.iter().any(|(id, subject)| *id == key.0 && *subject == key.1);
        let gone = self.raised.extract_if(.., |key, _| !is_seen(key) && !is_awaited(key));
        events.extend(gone.map(|(_, mut condition)| {
            condition.status = Status::Unknown;
            condition.since = wall.tell(condition.since);
            (EventType::Cleared, condition)
        }));
        let gone = self.known.extract_if(.., |key, _| !seen.contains(key));
        changed.extend(gone.map(|((id, subject), (before, _))| Changed::Gone { id, subject, before }));
        Dated { conditions, events, changed }
    }

    /// Whether this is news.
    fn follow(&mut self, key: Key, condition: &Condition, since: Timestamp) -> Option<EventType> {
        match condition.status {
            Status::Raised => {
                let raised = Condition { since, ..condition.clone() };
                self.raised.insert(key, raised).is_none().then_some(EventType::Raised)
            }
            Status::Clear => self.raised.remove(&key).map(|_| EventType::Cleared),
            Status::Unknown => None,
        }
    }
}

/// What [`History::date`] says.
#[derive(Debug)]
pub struct Dated {
    /// All conditions.
    pub conditions: Vec<Condition>,
    /// What was raised, and what is over.
    pub events: Vec<(EventType, Condition)>,
    /// Which conditions changed their status, appeared or went.
    pub changed: Vec<Changed>,
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
            probe_layout: ebpf_records::mesh::LAYOUT,
            model: machine.model.as_deref().map(report::short),
            kernel: machine.kernel.as_deref().map(report::short),
            os: machine.os.as_deref().map(report::short),
            serial: machine.serial.as_deref().map(report::short),
            revision: machine.revision.as_deref().map(report::short),
            role: machine.role.clone(),
            k3s_up: machine.k3s_up,
            newest: machine.newest.clone(),
            about: machine.about.iter().map(|(&id, text)| (id.to_owned(), report::short(text))).collect(),
        }
    }

    /// Numbers and health.
    pub fn state(
        &self,
        now: Timestamp,
        tier: Tier,
        healths: &[Health],
        conditions: Vec<Condition>,
        findings: &[Finding],
        refused_messages: u64,
    ) -> NodeState {
        let k3s = healths.iter().find_map(|health| health.k3s.clone());
        NodeState {
            header: self.header(now),
            phase: phase(findings, &conditions, k3s.as_ref().map(|k3s| k3s.phase)),
            restart_needed: restart_needed(findings),
            tier,
            readings: healths.iter().flat_map(|h| h.readings.iter().cloned()).collect(),
            reason: report::root(&conditions).map(|c| format!("{}: {}", c.title, c.evidence)),
            conditions,
            k3s,
            findings: count(findings),
            refused_messages,
        }
    }

    /// Something happened.
    pub fn event(&self, now: Timestamp, event_type: EventType, condition: Condition) -> NodeEvent {
        NodeEvent { header: self.header(now), event_type, condition }
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
    /// Serial number of the board.
    pub serial: Option<String>,
    /// Revision code of the board.
    pub revision: Option<String>,
    /// What it is in its cluster.
    pub role: Option<String>,
    /// Whether K3s is well.
    pub k3s_up: Option<bool>,
    /// The newest bramble that is known of.
    pub newest: Option<String>,
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

/// Whether a restart is pending; `None` = could not tell.
fn restart_needed(findings: &[Finding]) -> Option<bool> {
    match findings.iter().find(|finding| finding.id == "reboot")?.state {
        FindingState::Waiting => Some(true),
        FindingState::Met | FindingState::NotNeeded => Some(false),
        FindingState::Unmet | FindingState::Blocked | FindingState::Unknown => None,
    }
}

/// Where the node stands, by what was judged of it and how far its join is.
fn phase(findings: &[Finding], conditions: &[Condition], joined: Option<Phase>) -> Phase {
    let any = |state| findings.iter().any(|finding| finding.state == state);
    if let Some(under_way @ (Phase::Joining | Phase::Leaving)) = joined {
        under_way
    } else if findings.is_empty() {
        Phase::Unknown
    } else if restart_needed(findings) == Some(true) {
        Phase::RestartNeeded
    } else if joined == Some(Phase::Failed) {
        Phase::Failed
    } else if any(FindingState::Unmet) || any(FindingState::Blocked) {
        Phase::Preparing
    } else if conditions.iter().any(|c| c.status == Status::Raised) {
        Phase::Degraded
    } else if any(FindingState::Unknown) {
        Phase::Unknown
    } else if any(FindingState::Waiting) {
        Phase::Preparing
    } else {
        Phase::Ready
    }
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
    use wire::report::{MAX_PAYLOAD, Stamps};

    use jiff::SignedDuration;

    use super::*;
    use crate::{
        companion::{Sample, Sources},
        host::Host,
        probe::{
            PROBES, Seen,
            mesh::link::{Link, PeerSample},
        },
    };

    fn finding(id: &str, state: FindingState) -> Finding {
        Finding { id: id.to_owned(), title: String::new(), state, detail: String::new() }
    }

    fn statement(status: Status) -> Statement {
        Statement {
            id: "a",
            subject: None,
            title: "A",
            status,
            severity: wire::report::Severity::Warning,
            depends_on: &[],
            evidence: "seen".to_owned(),
        }
    }

    #[test]
    fn what_was_raised_before_a_restart_is_no_news_and_its_end_is() {
        use Status::{Clear, Raised, Unknown};
        let of = |subject: Option<&str>, status| Statement {
            subject: subject.map(str::to_owned),
            ..statement(status)
        };
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut before = History::default();
        before.date(vec![of(None, Raised), of(Some("n2 -> n1"), Raised)], at(1));
        let mut after = History::after(&before.raised());
        // The companion has not told of the links yet; the end is out of sight, too.
        let dated = after.date(vec![of(None, Unknown)], at(2));
        assert!(dated.events.is_empty(), "{:?}", dated.events);
        let dated = after.date(vec![of(None, Raised), of(Some("n2 -> n1"), Clear)], at(3));
        assert_eq!(dated.conditions[0].since, at(1));
        let [(EventType::Cleared, link)] = &dated.events[..] else { panic!("{:?}", dated.events) };
        assert_eq!(link.subject.as_deref(), Some("n2 -> n1"));
        // A link that never comes back is over in the end.
        let mut after = History::after(&before.raised());
        after.earlier.as_mut().unwrap().1 = Instant::now();
        let dated = after.date(vec![of(None, Raised)], at(4));
        assert!(matches!(&dated.events[..], [(EventType::Cleared, _)]), "{:?}", dated.events);
        assert!(History::after("no JSON").raised.is_empty());
    }

    #[test]
    fn what_is_raised_is_told_once_and_its_end_once_and_not_seeing_is_neither() {
        use Status::{Clear, Raised, Unknown};
        let mut history = History::default();
        let mut events = |statuses: &[Status]| -> Vec<EventType> {
            let said = statuses.iter().map(|status| statement(*status)).collect();
            history.date(said, Timestamp::UNIX_EPOCH).events.into_iter().map(|(event, _)| event).collect()
        };
        for (now, told) in [
            (&[Clear][..], &[][..]),
            (&[Unknown], &[]),
            (&[Raised], &[EventType::Raised]),
            (&[Raised], &[]),
            (&[Unknown], &[]),
            (&[Raised], &[]),
            (&[Clear], &[EventType::Cleared]),
            (&[Clear], &[]),
            (&[Raised], &[EventType::Raised]),
            (&[], &[EventType::Cleared]),
            (&[], &[]),
        ] {
            assert_eq!(events(now), told, "{now:?}");
        }
    }

    #[test]
    fn changes_are_told_once_and_a_clock_that_jumps_fifty_years_changes_nothing() {
        let fifty_years = jiff::SignedDuration::from_hours(50 * 365 * 24);
        let then: Timestamp = "2026-11-23T06:00:00Z".parse().unwrap();
        let mut history = History::default();
        let mut date = |status, now| {
            let dated = history.date(Option::into_iter(status).map(statement).collect(), now);
            (dated.conditions.first().map(|c| c.since), dated.changed.len())
        };
        assert_eq!(date(Some(Status::Clear), then), (Some(then), 1));
        assert_eq!(date(Some(Status::Clear), then + fifty_years), (Some(then), 0));
        let back = then - fifty_years;
        assert_eq!(date(Some(Status::Raised), back), (Some(back), 1));
        assert_eq!(date(Some(Status::Raised), then), (Some(back), 0));
        assert_eq!(date(None, then), (None, 1));
        assert_eq!(date(None, then), (None, 0));
    }

    #[test]
    fn what_was_dated_before_the_clock_was_set_is_dated_anew() {
        let second = |second| Timestamp::from_second(second).unwrap();
        let mut history = History::default();
        let date = |history: &mut History, status: Option<Status>, now, ahead| {
            history.was_set(second(now), second(now + ahead));
            history.date(status.into_iter().map(statement).collect(), second(now))
        };
        let since = |dated: &Dated| dated.conditions[0].since;
        assert_eq!(since(&date(&mut history, Some(Status::Raised), 10, 0)), second(10));
        assert_eq!(since(&date(&mut history, Some(Status::Raised), 20, 900)), second(910));
        // For the next run: by the same clock to the nanosecond, as long as that is not set.
        let mut next = History::after(&history.raised());
        let later = SignedDuration::from_micros(7);
        assert!(!next.was_set(second(25), second(925) + later));
        assert_eq!(since(&next.date(vec![statement(Status::Raised)], second(25))), second(910));
        let mut next = History::after(&history.raised());
        assert_eq!(since(&date(&mut next, Some(Status::Raised), 30, 5000)), second(5010));
        // Out of sight, and back.
        assert_eq!(since(&date(&mut history, Some(Status::Unknown), 40, 900)), second(940));
        assert_eq!(since(&date(&mut history, Some(Status::Raised), 50, -5)), second(5));
        assert_eq!(date(&mut history, None, 60, 100).events[0].1.since, second(110));
    }

    #[test]
    fn the_phase_is_what_stands_in_the_way() {
        use FindingState::{Blocked, Met, NotNeeded, Unknown, Unmet, Waiting};
        let raised =
            History::default().date(vec![statement(Status::Raised)], Timestamp::UNIX_EPOCH).conditions;
        for (findings, conditions, expected) in [
            (&[][..], &[][..], Phase::Unknown),
            (&[("btf", Met), ("reboot", NotNeeded)], &[], Phase::Ready),
            (&[("btf", Unmet), ("reboot", Waiting)], &[], Phase::RestartNeeded),
            (&[("btf", Unmet), ("reboot", Met)], &raised, Phase::Preparing),
            (&[("btf", Blocked), ("reboot", Unknown)], &[], Phase::Preparing),
            (&[("btf", Met)], &raised, Phase::Degraded),
            (&[("btf", Unknown)], &raised, Phase::Degraded),
            (&[("btf", Unknown), ("clock", Waiting)], &[], Phase::Unknown),
            (&[("btf", Met), ("clock", Waiting)], &[], Phase::Preparing),
        ] {
            let judged: Vec<_> = findings.iter().map(|(id, state)| finding(id, *state)).collect();
            assert_eq!(phase(&judged, conditions, None), expected, "{findings:?}");
        }
        let (well, waits) = ([finding("btf", Met)], [finding("btf", Met), finding("reboot", Waiting)]);
        for (findings, joined, expected) in [
            (&well[..], Phase::Joining, Phase::Joining),
            (&[], Phase::Joining, Phase::Joining),
            (&waits, Phase::Leaving, Phase::Leaving),
            (&well, Phase::Failed, Phase::Failed),
            (&waits, Phase::Failed, Phase::RestartNeeded),
            (&well, Phase::Ready, Phase::Ready),
        ] {
            assert_eq!(phase(findings, &[], Some(joined)), expected, "{findings:?}");
        }
        assert_eq!(restart_needed(&[]), None);
        assert_eq!(restart_needed(&[finding("reboot", Unknown)]), None);
    }

    /// All peers that the kernel's map holds, with names as long as they can be, and every way cut.
    #[test]
    fn the_largest_mesh_in_its_worst_hour_fits_into_its_messages() {
        let name = |number: u32| Name::new(&format!("{number:0>63}")).unwrap();
        let peers = (1..=ebpf_records::mesh::MAX_PEERS).map(|number| {
            let mut link = Link::default();
            link.judge(PeerSample { known_ms: 60_000, ..PeerSample::default() }, &[], 1000);
            (name(number), link.report())
        });
        let tier = Tier { stamps: Stamps::Kernel, attached: Some("tcx".to_owned()), why: String::new() };
        let sample = Sample {
            tier: tier.clone(),
            address: None,
            period_ms: 1000,
            next_ms: 1000,
            changes: Vec::new(),
            mesh: Ok(peers.collect()),
            sources: None,
        };
        let mut judge = (PROBES[0].judge)();
        let health = judge.judge(&Seen {
            host: &Host::live().unwrap(),
            chips: &std::cell::OnceCell::new(),
            companion: Ok(&sample),
            sources: &Sources::new(),
            online: &BTreeMap::new(),
            hindered: &BTreeMap::new(),
            node: &name(0),
            state: &crate::host::state::State::new(std::path::Path::new("/nowhere")),
            run: &crate::host::state::State::new(std::path::Path::new("/nowhere")),
            now: Instant::now(),
            uptime: Duration::ZERO,
            wall: Timestamp::UNIX_EPOCH,
        });
        let speaker = Speaker { cluster: name(0), node: name(0), id: "00000000".to_owned() };
        let now = Timestamp::UNIX_EPOCH;
        let conditions = History::default().date(health.statements.clone(), now).conditions;
        assert!(conditions.iter().any(|c| c.evidence.ends_with(" and 1016 more")), "{conditions:?}");
        let healths = [health];
        let row = speaker.mesh(now, tier.clone(), [1, 10].map(Duration::from_secs), &healths);
        let state = speaker.state(now, tier, &healths, conditions, &[], 0);
        assert_eq!((row.peers.len(), row.period_ms, row.interval_ms), (1024, 1000, 10_000));
        // Twice: what a way that is not cut has to tell is longer.
        let sizes = [serde_json::to_vec(&row).unwrap().len() * 2, serde_json::to_vec(&state).unwrap().len()];
        assert!(sizes.iter().all(|size| *size <= MAX_PAYLOAD), "{sizes:?}");
    }
}
