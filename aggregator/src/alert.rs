//! Conditions over time become alerts: one for each root cause, with its evidence.
//!
//! An alert is raised when its cause is seen and cleared after the cause was seen fine for a while; what cannot be
//! seen neither raises nor clears. A problem that another one explains is not raised: no link alerts of a node
//! that is gone, no alert of a condition whose dependency is raised.
//!
//! There are four deliberate waits, and all end with the next report of the nodes concerned, which say at once what
//! changed, or when it is overdue. A link's alert waits while one of its ends is overdue itself. The alert of a *cut* link waits
//! a moment, and where no other peer hears the sender, or the receiver hears nobody, until all of them have spoken: only they know
//! whether one link is cut or the whole node gone. The alert of a node that is gone waits where others whom the same peers have lost
//! still speak for it, or where those peers hear nobody at all; the alert of the whole mesh where some may hear others: all of them
//! are gone, or nothing of theirs arrives, which they know a period later. After a connection to the broker what takes everybody's
//! word waits until all that are there have spoken. The mesh shows such a link as cut at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use jiff::{SignedDuration, Timestamp};
use wire::{
    clock::Wall,
    cluster::Alert,
    report::{Condition, MeshRow, PeerReport, Severity, Stamps, Status, VERSION, WayState},
    topic::{ClusterTopic, Name, Topic},
};

use crate::{
    cluster::{Beat, Effect, Line, Node, Nodes, Presence, Refusal, Settings, period, publish, shortened},
    mesh::{self, End, FULL_MESH, Link},
};

/// Lines of evidence of one alert.
const EVIDENCE: usize = 8;
/// What the nodes say of one moment has come within this time.
const SAID: SignedDuration = SignedDuration::from_millis(100);
/// A link's warning that comes back within this time is cleared later than before, so that a line that loses a packet now and then
/// is one lasting alert and not hundreds; it is cleared after the longest patience at the latest.
const RESTLESS: SignedDuration = SignedDuration::from_mins(10);
const PATIENCE: SignedDuration = SignedDuration::from_mins(5);
/// Losses that begin within this time after a cut are what remains of it.
const REMAINS: SignedDuration = SignedDuration::from_secs(30);
/// An alert whose evidence changes is said again after this long at the earliest.
const SAY_AGAIN: SignedDuration = SignedDuration::from_secs(5);
/// Kinds of alerts of a node as a whole.
const SILENT: &str = "node-silent";
const GONE: &str = "node-gone";
const MUTE: &str = "node-mute";
const DEAF: &str = "node-deaf";
/// Conditions that the nodes judge for themselves and that the mesh judges for the cluster.
const MESH_CONDITIONS: [&str; 4] = ["path-loss", "path-cut", "path-delay", "isolated"];
/// The condition of a node whose name another one has: what is said under it, and of it, is of two.
const NAME_TAKEN: &str = "name-taken";
/// Conditions of a node that probes nobody.
const MUTE_CONDITIONS: [&str; 2] = ["companion", "probing"];

/// What is looked at, and when.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    /// All nodes.
    pub nodes: &'a Nodes,
    /// Whether the broker has been there long enough for silence to mean something.
    pub silence: bool,
    /// Now.
    pub now: Timestamp,
}

impl Sight<'_> {
    /// Whether the node is there, as the broker says, and has not spoken since that came.
    fn is_to_come(&self, node: &Node) -> bool {
        !self.silence && node.presence == Presence::Online && node.beat(self.now) == Beat::Stale
    }

    fn row(&self, name: &Name) -> Option<&MeshRow> {
        self.nodes.get(name).and_then(|node| node.fresh_row(self.now))
    }

    /// Whether the row of `name` is of before `by` lost it.
    fn spoke_before(&self, name: &Name, by: &Name, row: &MeshRow) -> bool {
        let own = self.row(name).and_then(|row| row.peers.get(by));
        own.zip(row.peers.get(name)).is_some_and(|(own, lost)| mesh::spoke_before(own, lost))
    }

    /// Whether the last batch of `peer` has come to `name`: a node says at once when one has not, and then tells nothing of the
    /// way there, a period before it calls the way here cut. On a way that loses packets it waits longer.
    fn hears(&self, name: &Name, peer: &Name) -> bool {
        let is_live = self.nodes.get(name).is_some_and(|node| node.beat(self.now) == Beat::Live);
        let report = self.row(name).filter(|_| is_live).and_then(|row| row.peers.get(peer));
        report.is_some_and(|report| {
            matches!(report.incoming.state, WayState::Fine | WayState::Slow)
                && report.out.state != WayState::Unknown
        })
    }
}

/// What an alert is about. Root causes sort first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// All nodes at once.
    Mesh,
    /// One node.
    Node(Name),
    /// A directed link.
    Link(Name, Name),
    /// A condition of a node: its id and its subject.
    Condition(Name, String, Option<String>),
}

impl Cause {
    fn touches(&self, name: &Name) -> bool {
        match self {
            Self::Mesh => false,
            Self::Node(node) | Self::Condition(node, ..) => node == name,
            Self::Link(from, to) => from == name || to == name,
        }
    }

    /// The plain id of an alert of this kind; too long ones end with a hash of the whole.
    fn id(&self, kind: &str, hashed: bool) -> Name {
        let plain = match self {
            Self::Mesh => kind.to_owned(),
            Self::Node(node) | Self::Condition(node, _, None) => format!("{kind}-{node}"),
            Self::Link(from, to) => format!("{kind}-{from}-{to}"),
            Self::Condition(node, _, Some(subject)) => {
                let subject = Name::slug(subject).map(String::from).unwrap_or_default();
                format!("{kind}-{node}-{subject}")
            }
        };
        let plain = plain.trim_end_matches('-');
        if let (Ok(name), false) = (Name::new(plain), hashed) {
            return name;
        }
        // FNV-1a: stable across builds and machines, which the standard library's hasher is not.
        let hash = format!("{kind} {self:?}")
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        let head: String = plain.chars().take(46).collect();
        Name::new(&format!("{}-{hash:016x}", head.trim_end_matches('-')))
            .expect("made of names, a dash and hexadecimal digits, 63 at most")
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh => f.write_str("mesh"),
            Self::Node(node) | Self::Condition(node, _, None) => write!(f, "{node}"),
            Self::Link(from, to) => write!(f, "{from} -> {to}"),
            Self::Condition(node, _, Some(subject)) => write!(f, "{node}: {}", shortened(subject)),
        }
    }
}

/// What is wrong with a node as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeTrouble {
    /// It does not report; nothing shows that its peers lost it.
    Silent,
    /// Its peers lost it in both directions.
    Gone,
    /// It hears its peers, and none of them hears it.
    Mute,
    /// Its peers hear it, and it hears none of them.
    Deaf,
}

impl NodeTrouble {
    /// Whether trouble of this kind on `name` is why a link between these two is cut.
    fn explains(self, name: &Name, from: &Name, to: &Name) -> bool {
        match self {
            Self::Silent => false,
            Self::Gone => name == from || name == to,
            Self::Mute => name == from,
            Self::Deaf => name == to,
        }
    }
}

/// What is seen of a cause at one moment.
enum Seen {
    /// Nothing wrong.
    Fine,
    /// Nothing at all.
    Unknown,
    /// Wrong, and another alert says why.
    Explained,
    /// Wrong.
    Bad(Problem),
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq)]
struct Problem {
    kind: String,
    /// Of one cause the higher rung holds: cut before loss before delay, gone or in one direction before silent.
    rung: u8,
    title: String,
    severity: Severity,
    evidence: Vec<Evidence>,
}

/// A line of evidence. The times in it are kept as they were measured, so that each is right whenever it is told.
#[derive(Clone, Debug, PartialEq)]
struct Evidence(Vec<Part>);

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Words(String),
    Time(Timestamp),
}

impl Evidence {
    fn told(&self, wall: Wall) -> String {
        let part = |part: &Part| match part {
            Part::Words(words) => words.clone(),
            Part::Time(at) => format!("{:.0}", wall.tell(*at)),
        };
        self.0.iter().map(part).collect()
    }
}

impl From<String> for Evidence {
    fn from(words: String) -> Self {
        Self(vec![Part::Words(words)])
    }
}

/// A cause that is not fine.
#[derive(Clone, Debug)]
struct Entry {
    id: Name,
    problem: Problem,
    since: Timestamp,
    /// Since when it stands by an earlier run's word, which went by the wall clock.
    inherited: Option<Timestamp>,
    /// How often it has come back within minutes; only of a link's warning, and not of one that is what remains of something worse.
    returned: Option<u32>,
    /// Since when it has looked better than `problem`.
    eased: Option<Timestamp>,
    /// When it was last published; `None` while it waits for what others have to say.
    said: Option<Timestamp>,
    /// Since when it, or a worse problem of the same cause, waits.
    waiting: Option<Timestamp>,
}

/// All alerts.
#[derive(Debug)]
pub struct Alerts {
    clear_after: SignedDuration,
    silent_after: SignedDuration,
    most: usize,
    entries: BTreeMap<Cause, Entry>,
    /// Retained alerts that an earlier run left, with the time since when they stand by its word.
    inherited: BTreeMap<Name, Option<Timestamp>>,
    /// What stopped packets and was over a moment ago.
    mended: BTreeMap<Cause, Timestamp>,
    /// Warnings of links that were over a while ago: when, and how often they had come back by then.
    restless: BTreeMap<Cause, (Timestamp, u32)>,
    effects: Vec<Effect>,
    left_out: u64,
    wall: Wall,
}

impl Alerts {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            clear_after: settings.clear_after,
            silent_after: settings.silent_after,
            most: settings.max_alerts,
            entries: BTreeMap::new(),
            inherited: BTreeMap::new(),
            mended: BTreeMap::new(),
            restless: BTreeMap::new(),
            effects: Vec::new(),
            left_out: 0,
            wall: Wall::default(),
        }
    }

    /// The raised alerts, root causes first.
    pub fn raised(&self) -> impl Iterator<Item = Alert> {
        let raised = self.entries.iter().filter(|(_, entry)| entry.said.is_some());
        raised.map(|(cause, entry)| entry.alert(cause, self.wall))
    }

    /// The wall clock has jumped: what is raised is said again with the right times.
    pub(crate) fn jumped(&mut self, wall: Wall) {
        self.wall = wall;
        let raised = self.entries.iter().filter(|(_, entry)| entry.said.is_some());
        self.effects.extend(raised.map(|(cause, entry)| entry.effect(cause, wall)));
    }

    /// How often an alert was not raised because there were too many.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// What is wrong with the node as a whole.
    pub fn node_trouble(&self, name: &Name) -> Option<NodeTrouble> {
        // No entry, no search: the common case costs nothing.
        if self.entries.is_empty() {
            return None;
        }
        self.entries.get(&Cause::Node(name.clone())).filter(|entry| entry.said.is_some()).map(|entry| {
            match entry.problem.kind.as_str() {
                MUTE => NodeTrouble::Mute,
                DEAF => NodeTrouble::Deaf,
                GONE => NodeTrouble::Gone,
                _ => NodeTrouble::Silent,
            }
        })
    }

    /// Moves what is to be published to `effects`; whether there was anything.
    pub(crate) fn drain(&mut self, effects: &mut Vec<Effect>) -> bool {
        let any = !self.effects.is_empty();
        effects.append(&mut self.effects);
        any
    }

    /// A retained alert that the broker had, ours or an earlier run's.
    ///
    /// Returns it when an earlier run raised it.
    pub(crate) fn stored(&mut self, id: Name, payload: &[u8]) -> Result<Option<Alert>, Refusal> {
        if payload.is_empty() {
            self.inherited.remove(&id);
            return Ok(None);
        }
        if self.is_told(&id) {
            return Ok(None);
        }
        if self.inherited.len() >= self.most {
            return Err(Refusal::NoRoom);
        }
        // Also what cannot be read is taken back when it turns out to be nobody's.
        let alert = if payload.len() > wire::report::MAX_PAYLOAD {
            Err(Refusal::TooLarge)
        } else {
            serde_json::from_slice::<Alert>(payload).map_err(|_| Refusal::NotJson)
        };
        self.inherited.insert(id.clone(), alert.as_ref().ok().map(|alert| alert.since));
        alert.map(|alert| Some(Alert { id, ..alert }))
    }

    /// Whether an alert of this id is raised.
    pub(crate) fn is_told(&self, id: &Name) -> bool {
        self.entries.values().any(|entry| entry.id == *id && entry.said.is_some())
    }

    /// Whether something stands that an earlier run raised and nobody raised again.
    pub(crate) fn inherits(&self) -> bool {
        !self.inherited.is_empty()
    }

    /// Takes back what an earlier run raised and nobody raised again.
    pub(crate) fn drop_inherited(&mut self) {
        for (id, _) in std::mem::take(&mut self.inherited) {
            self.effects.push(Effect::Remove(Topic::Cluster(ClusterTopic::Alert(id))));
        }
    }

    /// Looks at everything that a node's word can have changed.
    pub(crate) fn review(&mut self, sight: &Sight<'_>, name: &Name) {
        let Some((name, node)) = sight.nodes.get_key_value(name) else {
            self.clear_where(|cause| cause.touches(name));
            return;
        };
        let cut = |state| state == WayState::Cut;
        let mut suspects = BTreeSet::from([name]);
        for (peer, report) in node.peers() {
            let troubled = cut(report.incoming.state) || cut(report.out.state);
            if let Some((peer, _)) = sight.nodes.get_key_value(peer)
                && (troubled || self.node_trouble(peer).is_some())
            {
                suspects.insert(peer);
            }
        }
        if self.entries.contains_key(&Cause::Mesh) || node.fresh_row(sight.now).is_some_and(hears_nobody) {
            self.judge(sight, &Cause::Mesh);
        }
        for suspect in suspects {
            self.judge(sight, &Cause::Node(suspect.clone()));
        }
        self.judge_links(sight, name, node);
        self.judge_conditions(sight, name, node);
    }

    fn judge_conditions(&mut self, sight: &Sight<'_>, name: &Name, node: &Node) {
        let Some(state) = &node.state else { return };
        let raised = state.what.conditions.iter().filter(|c| c.status == Status::Raised);
        for condition in raised.filter(|c| !MESH_CONDITIONS.contains(&c.id.as_str())) {
            self.judge(
                sight,
                &Cause::Condition(name.clone(), condition.id.clone(), condition.subject.clone()),
            );
        }
    }

    /// Whether none stands, nor waits for what others have to say.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Looks again at every cause that has an entry, because time has passed.
    pub(crate) fn review_raised(&mut self, sight: &Sight<'_>) {
        let causes: Vec<Cause> = self.entries.keys().cloned().collect();
        for cause in &causes {
            self.judge(sight, cause);
        }
    }

    fn judge_links(&mut self, sight: &Sight<'_>, name: &Name, node: &Node) {
        for (peer, _) in node.peers().filter(|(peer, _)| sight.nodes.contains_key(peer)) {
            self.judge_link(sight, name, peer);
            self.judge_link(sight, peer, name);
        }
    }

    fn judge_link(&mut self, sight: &Sight<'_>, from: &Name, to: &Name) {
        let link = mesh::between(sight.nodes, from, to, sight.now);
        // Links that are fine and were fine are nearly all of them.
        if link.way.state > WayState::Unknown || !self.entries.is_empty() {
            self.judge(sight, &Cause::Link(from.clone(), to.clone()));
        }
    }

    fn judge(&mut self, sight: &Sight<'_>, cause: &Cause) {
        let seen = match cause {
            Cause::Mesh => self.judge_mesh(sight),
            Cause::Node(name) => match sight.nodes.get(name) {
                Some(node) => self.judge_node(sight, name, node),
                None => Seen::Explained,
            },
            Cause::Link(from, to) => self.judge_path(sight, from, to),
            Cause::Condition(name, id, subject) => self.judge_condition(sight, name, id, subject.as_deref()),
        };
        let first = self.entries.get(cause).and_then(|entry| entry.waiting).unwrap_or(sight.now);
        let wait = match (cause, &seen) {
            (Cause::Link(from, to), Seen::Bad(problem)) => {
                let node = self.entries.get(&Cause::Node(from.clone()));
                node.is_some_and(|entry| entry.said.is_none()) || undecided(sight, from, to, problem, first)
            }
            (Cause::Node(name), Seen::Bad(problem)) => problem.kind == GONE && may_speak(sight, name, first),
            (Cause::Mesh, Seen::Bad(_)) => others_may_speak(sight, first),
            _ => false,
        };
        let was_raised = self.is_raised(cause);
        self.follow(cause, seen, wait, sight.now);
        let explains = self.is_raised(cause);
        match cause {
            Cause::Mesh if explains => {
                self.clear_where(|c| matches!(c, Cause::Link(..) | Cause::Node(_)));
            }
            Cause::Node(name) if explains => {
                let trouble = self.node_trouble(name);
                let is_past = is_past(sight, name);
                self.clear_where(|c| match c {
                    Cause::Link(from, to) => trouble.is_some_and(|trouble| trouble.explains(name, from, to)),
                    // What it still says of itself has its own reasons.
                    Cause::Condition(..) => c.touches(name) && is_past,
                    Cause::Mesh | Cause::Node(_) => false,
                });
            }
            Cause::Condition(name, id, None) if explains && id == NAME_TAKEN => {
                self.clear_where(|c| c != cause && c.touches(name));
            }
            // What it explained is to be explained otherwise.
            Cause::Node(name) if was_raised => {
                if let Some(node) = sight.nodes.get(name) {
                    self.judge_links(sight, name, node);
                    self.judge_conditions(sight, name, node);
                }
            }
            _ => {}
        }
    }

    fn judge_mesh(&self, sight: &Sight<'_>) -> Seen {
        // The first one that speaks is not everybody.
        if sight.nodes.values().any(|node| sight.is_to_come(node)) {
            return Seen::Unknown;
        }
        let (reporters, others) = who_hears_nobody(sight);
        if reporters.is_empty() {
            return if others.is_empty() { Seen::Unknown } else { Seen::Fine };
        }
        // What was said before somebody was lost tells nothing.
        let is_of_before = |name| reporters.iter().any(|(by, row)| sight.spoke_before(name, by, row));
        if !others.iter().all(|name| is_of_before(name)) {
            return Seen::Fine;
        }
        let (title, evidence) = if let [(name, row)] = &reporters[..] {
            let is_gone = |name: &Name| self.node_trouble(name) == Some(NodeTrouble::Gone);
            // Of one or two that were there before each is told by itself.
            if row.peers.keys().filter(|peer| !is_gone(peer)).count() < 3 {
                return Seen::Fine;
            }
            let nothing = format!("nothing arrives there from any of {} peers", row.peers.len());
            let next = "it is cut off itself, or all others are gone; look at its cable and its switch first";
            (format!("{name} hears no other node, and nobody else reports"), [nothing, next.to_owned()])
        } else {
            let names = names(reporters.iter().map(|(name, _)| *name));
            let nothing = format!("{names} report that nothing arrives from any peer");
            let reports = format!("{} of {} nodes report", reporters.len(), sight.nodes.len());
            ("no node hears any other".to_owned(), [nothing, reports])
        };
        let (kind, evidence) = ("mesh-cut".to_owned(), evidence.map(Evidence::from).into());
        Seen::Bad(Problem { kind, rung: 0, title, severity: Severity::Critical, evidence })
    }

    fn judge_node(&self, sight: &Sight<'_>, name: &Name, node: &Node) -> Seen {
        if self.is_raised(&Cause::Mesh) || self.is_two(sight, name) {
            return Seen::Explained;
        }
        let live = node.beat(sight.now) == Beat::Live;
        if let Some(problem) = one_direction(sight, name, node) {
            return Seen::Bad(problem);
        }
        let is_silent = sight.silence && node.is_silent(self.silent_after, sight.now);
        let offline = node.presence == Presence::Offline;
        let trouble = self.node_trouble(name);
        if matches!(trouble, Some(NodeTrouble::Mute | NodeTrouble::Deaf)) {
            let are_to_come = || {
                node.peers().filter_map(|(peer, _)| sight.nodes.get(peer)).any(|peer| sight.is_to_come(peer))
            };
            if !live && !offline && !is_silent || are_to_come() {
                return Seen::Unknown;
            }
        }
        let is_there = || is_there(sight, name, node);
        if node.row.as_ref().is_some_and(|row| row.heard == sight.now) && is_there() {
            return Seen::Fine;
        }
        let (lost_by, mut reached_by) = witnesses(sight, name, node);
        let is_of_before = lost_by.iter().any(|(peer, row)| sight.spoke_before(name, peer, row));
        if !is_of_before && is_there() {
            return Seen::Fine;
        }
        // Who went as well may have reached it long ago.
        reached_by.retain(|peer| !lost_by.iter().any(|(by, row)| sight.spoke_before(peer, by, row)));
        let words = |words: &str| Part::Words(words.to_owned());
        let reported = match node.heard() {
            Some(heard) => vec![words("its last report came at "), Part::Time(heard)],
            None => vec![words("it has not reported since the aggregator connected")],
        };
        let connection = || {
            Evidence(if offline {
                let lost = vec![words("the broker lost it at "), Part::Time(node.since), words("; ")];
                [lost, reported.clone()].concat()
            } else if live {
                vec![words("it still reports over the broker")]
            } else {
                reported.clone()
            })
        };
        // The first one that speaks is not everybody.
        let mut peers = node.peers().filter_map(|(peer, _)| sight.nodes.get(peer)).peekable();
        let may_be_heard = peers.peek().is_none() || peers.any(|peer| sight.is_to_come(peer));
        if !lost_by.is_empty() && sight.is_to_come(node) && may_be_heard {
            return Seen::Unknown;
        }
        if !lost_by.is_empty() && reached_by.is_empty() {
            // Everybody is cut off from everybody: that is no trouble of this node.
            if live && !is_of_before && lost_by.iter().all(|(_, row)| hears_nobody(row)) {
                return Seen::Unknown;
            }
            let names = names(lost_by.iter().map(|(peer, _)| *peer));
            return Seen::Bad(Problem {
                kind: GONE.to_owned(),
                rung: 1,
                title: format!("{name} is gone: no peer hears it"),
                severity: Severity::Critical,
                evidence: vec![format!("lost in both directions by {names}").into(), connection()],
            });
        }
        if offline || is_silent {
            if trouble == Some(NodeTrouble::Gone) && reached_by.is_empty() {
                // Nobody looks any more; that is no sign of life.
                return Seen::Unknown;
            }
            let peers = if reached_by.is_empty() {
                "no peer can tell whether the node itself is there".to_owned()
            } else {
                format!("still reached by {}", names(reached_by.into_iter()))
            };
            return Seen::Bad(Problem {
                kind: SILENT.to_owned(),
                rung: 0,
                title: format!("{name} does not report"),
                severity: Severity::Warning,
                evidence: vec![connection(), peers.into()],
            });
        }
        if live || !reached_by.is_empty() { Seen::Fine } else { Seen::Unknown }
    }

    fn judge_path(&self, sight: &Sight<'_>, from: &Name, to: &Name) -> Seen {
        let explains = |name| self.node_trouble(name).is_some_and(|trouble| trouble.explains(name, from, to));
        let are_two = self.is_two(sight, from) || self.is_two(sight, to);
        if self.is_raised(&Cause::Mesh) || are_two || explains(from) || explains(to) {
            return Seen::Explained;
        }
        match probes_nobody(sight, from) {
            Some(Status::Raised) => return Seen::Explained,
            Some(Status::Unknown) => return Seen::Unknown,
            Some(Status::Clear) | None => {}
        }
        let link = mesh::between(sight.nodes, from, to, sight.now);
        let (rung, kind, verb, severity) = match link.way.state {
            WayState::Fine => return Seen::Fine,
            WayState::Unknown => return Seen::Unknown,
            WayState::Slow => (0, "path-delay", "is slower than it was", Severity::Warning),
            WayState::Lossy => (1, "path-loss", "loses packets", Severity::Warning),
            WayState::Cut => (2, "path-cut", "is cut", Severity::Critical),
        };
        let back = mesh::between(sight.nodes, to, from, sight.now);
        let back = format!("the other way, {to} -> {from}, {}", sentence(back.way.state));
        Seen::Bad(Problem {
            kind: kind.to_owned(),
            rung,
            title: format!("{from} -> {to} {verb}"),
            severity,
            evidence: vec![sighting(from, to, &link).into(), back.into()],
        })
    }

    fn judge_condition(&self, sight: &Sight<'_>, name: &Name, id: &str, subject: Option<&str>) -> Seen {
        if self.node_trouble(name).is_some() && is_past(sight, name)
            || id != NAME_TAKEN && self.is_two(sight, name)
        {
            return Seen::Explained;
        }
        let Some(state) = sight.nodes.get(name).and_then(|node| node.state.as_ref()) else {
            return Seen::Unknown;
        };
        let all = &state.what.conditions;
        let Some(condition) = all.iter().find(|c| c.id == id && c.subject.as_deref() == subject) else {
            return Seen::Fine;
        };
        match condition.status {
            Status::Clear => Seen::Fine,
            Status::Unknown => Seen::Unknown,
            Status::Raised if explained(condition, all) || self.link_explains(condition, name) => {
                Seen::Explained
            }
            Status::Raised => Seen::Bad(Problem {
                kind: condition.id.clone(),
                rung: 0,
                title: shortened(&match subject {
                    Some(subject) => format!("{name}, {subject}: {}", condition.title),
                    None => format!("{name}: {}", condition.title),
                }),
                severity: condition.severity,
                evidence: vec![shortened(&condition.evidence).into()],
            }),
        }
    }

    fn link_explains(&self, condition: &Condition, name: &Name) -> bool {
        !condition.depends_on.is_empty()
            && self.entries.iter().any(|(cause, entry)| {
                matches!(cause, Cause::Link(..))
                    && cause.touches(name)
                    && entry.said.is_some()
                    && condition.depends_on.contains(&entry.problem.kind)
            })
    }

    /// Whether two nodes speak under this name.
    fn is_two(&self, sight: &Sight<'_>, name: &Name) -> bool {
        let is_silent = |node: &Node| sight.silence && node.is_silent(self.silent_after, sight.now);
        self.is_raised(&Cause::Condition(name.clone(), NAME_TAKEN.to_owned(), None))
            && !sight.nodes.get(name).is_some_and(is_silent)
    }

    /// Something is over: if it stopped packets, links get over that bit by bit.
    fn mend(&mut self, cause: &Cause, now: Timestamp) {
        let is_grave = |entry: &Entry| entry.problem.severity == Severity::Critical;
        if !matches!(cause, Cause::Condition(..)) && self.entries.get(cause).is_some_and(is_grave) {
            self.mended.retain(|_, at| now.duration_since(*at) < REMAINS);
            self.mended.insert(cause.clone(), now);
        }
    }

    /// Whether one end of a link had to do with what was over a moment ago.
    fn remains(&self, cause: &Cause, now: Timestamp) -> bool {
        self.mended.iter().any(|(mended, at)| {
            let concerns = match cause {
                Cause::Link(from, to) => mended.touches(from) || mended.touches(to),
                _ => false,
            };
            now.duration_since(*at) < REMAINS && (*mended == Cause::Mesh || concerns)
        })
    }

    fn is_raised(&self, cause: &Cause) -> bool {
        self.entries.get(cause).is_some_and(|entry| entry.said.is_some())
    }

    /// Follows a cause over time.
    fn follow(&mut self, cause: &Cause, seen: Seen, wait: bool, now: Timestamp) {
        let Some(entry) = self.entries.get_mut(cause) else {
            if let Seen::Bad(problem) = seen {
                self.enter(cause, problem, wait, now, now);
            }
            return;
        };
        entry.waiting = wait.then(|| entry.waiting.unwrap_or(now));
        match seen {
            Seen::Bad(problem) if wait => {
                if entry.said.is_none() {
                    entry.problem = problem;
                }
            }
            Seen::Bad(problem) if entry.said.is_none() => {
                let since = entry.since;
                self.entries.remove(cause);
                self.enter(cause, problem, false, since, now);
            }
            Seen::Bad(problem) if problem.kind == entry.problem.kind => {
                entry.eased = None;
                let due = entry.said.is_none_or(|said| now.duration_since(said) >= SAY_AGAIN);
                if due && entry.problem != problem {
                    entry.problem = problem;
                    entry.said = Some(now);
                    self.effects.push(entry.effect(cause, self.wall));
                }
            }
            // Worse or otherwise at once, better when it lasts.
            Seen::Bad(problem) if problem.rung >= entry.problem.rung => {
                self.clear(cause);
                self.enter(cause, problem, false, now, now);
            }
            Seen::Bad(problem) => {
                let since = *entry.eased.get_or_insert(now);
                if now.duration_since(since) >= self.clear_after {
                    self.mend(cause, now);
                    self.clear(cause);
                    self.enter(cause, problem, false, since, now);
                }
            }
            Seen::Fine if entry.said.is_some() => {
                let since = *entry.eased.get_or_insert(now);
                let doubled = self.clear_after * 2_i32.saturating_pow(entry.returned.unwrap_or(0).min(16));
                if now.duration_since(since) >= doubled.min(PATIENCE).max(self.clear_after) {
                    if let Some(times) = entry.returned {
                        self.restless.retain(|_, (at, _)| now.duration_since(*at) < RESTLESS);
                        self.restless.insert(cause.clone(), (now, times + 1));
                    }
                    self.mend(cause, now);
                    self.clear(cause);
                }
            }
            // Of what comes and goes one moment says little.
            Seen::Unknown if entry.said.is_some() && entry.returned.is_some_and(|times| times > 0) => {}
            Seen::Unknown if entry.said.is_some() => entry.eased = None,
            Seen::Fine | Seen::Unknown | Seen::Explained => self.clear(cause),
        }
    }

    fn enter(&mut self, cause: &Cause, problem: Problem, wait: bool, since: Timestamp, now: Timestamp) {
        if self.entries.len() >= self.most {
            // A link that waits to be told would give way to its cause in any case.
            let waits = |(other, entry): (&Cause, &Entry)| {
                (matches!(other, Cause::Link(..)) && entry.said.is_none()).then(|| other.clone())
            };
            let is_root = matches!(cause, Cause::Mesh | Cause::Node(_));
            let Some(link) = self.entries.iter().filter(|_| is_root).rev().find_map(waits) else {
                self.left_out += 1;
                return;
            };
            self.entries.remove(&link);
        }
        let plain = cause.id(&problem.kind, false);
        // `a-b` and `c`, `a` and `b-c`: the plain ids of different links can be the same.
        let taken = self.entries.values().any(|entry| entry.id == plain);
        let id = if taken { cause.id(&problem.kind, true) } else { plain };
        let waiting = wait.then_some(now);
        let comes_and_goes = matches!(cause, Cause::Link(..))
            && problem.severity == Severity::Warning
            && !self.remains(cause, now);
        let over = self.restless.get(cause).filter(|(at, _)| now.duration_since(*at) < RESTLESS);
        let returned = comes_and_goes.then(|| over.map_or(0, |(_, times)| *times));
        let mut entry =
            Entry { id, problem, since, inherited: None, returned, eased: None, said: None, waiting };
        if !wait {
            entry.inherited = self.inherited.remove(&entry.id).flatten();
            entry.said = Some(now);
            self.effects.push(entry.effect(cause, self.wall));
            let evidence: Vec<String> = entry.problem.evidence.iter().map(|e| e.told(self.wall)).collect();
            let text = format!("raised: {} ({})", entry.problem.title, evidence.join("; "));
            self.effects.push(log(&entry, cause, true, text));
        }
        self.entries.insert(cause.clone(), entry);
    }

    fn clear(&mut self, cause: &Cause) {
        if let Some(entry) = self.entries.remove(cause)
            && entry.said.is_some()
        {
            let text = format!("cleared: {}", entry.problem.title);
            let line = log(&entry, cause, false, text);
            self.effects.extend([Effect::Remove(Topic::Cluster(ClusterTopic::Alert(entry.id))), line]);
        }
    }

    fn clear_where(&mut self, which: impl Fn(&Cause) -> bool) {
        let causes: Vec<Cause> = self.entries.keys().filter(|cause| which(cause)).cloned().collect();
        for cause in &causes {
            self.clear(cause);
        }
    }
}

fn log(entry: &Entry, cause: &Cause, warn: bool, text: String) -> Effect {
    let node = match cause {
        Cause::Node(node) | Cause::Condition(node, _, _) => Some(node.clone()),
        Cause::Mesh | Cause::Link(_, _) => None,
    };
    Effect::Log(Line { warn, text, alert: Some(entry.id.clone()), node })
}

impl Entry {
    fn alert(&self, cause: &Cause, wall: Wall) -> Alert {
        let problem = &self.problem;
        let since = wall.tell(self.since);
        Alert {
            v: VERSION,
            id: self.id.clone(),
            kind: problem.kind.clone(),
            subject: cause.to_string(),
            title: problem.title.clone(),
            severity: problem.severity,
            since: self.inherited.map_or(since, |inherited| inherited.min(since)),
            evidence: problem
                .evidence
                .iter()
                .map(|line| line.told(wall))
                .take(EVIDENCE - 1)
                .chain(
                    self.returned
                        .filter(|times| *times > 0)
                        .map(|times| format!("it was over and came back {times} times within minutes")),
                )
                .collect(),
        }
    }

    fn effect(&self, cause: &Cause, wall: Wall) -> Effect {
        publish(Topic::Cluster(ClusterTopic::Alert(self.id.clone())), &self.alert(cause, wall), None)
    }
}

/// Something comes through, whatever its quality.
fn works(state: WayState) -> bool {
    matches!(state, WayState::Fine | WayState::Slow | WayState::Lossy)
}

/// The row says that nothing arrives from any peer, and names at least one.
fn hears_nobody(row: &MeshRow) -> bool {
    row.peers.values().all(|p| !works(p.incoming.state))
        && row.peers.values().any(|p| p.incoming.state == WayState::Cut)
}

type Lost<'a> = Vec<(&'a Name, &'a MeshRow)>;

/// Peers that lost the node in both directions, and peers that have not. Who cannot tell is neither.
fn witnesses<'a>(sight: &Sight<'a>, name: &Name, node: &'a Node) -> (Lost<'a>, Vec<&'a Name>) {
    let (mut lost, mut reached) = (Vec::new(), Vec::new());
    let mut ask = |peer: &'a Name| {
        let row = sight.nodes.get(peer).and_then(|peer| peer.fresh_row(sight.now));
        let Some((row, report)) = row.and_then(|row| Some((row, row.peers.get(name)?))) else { return };
        if works(report.incoming.state) || works(report.out.state) {
            reached.push(peer);
        } else if report.incoming.state == WayState::Cut {
            lost.push((peer, row));
        }
    };
    // Who probed nobody while it spoke does not know its peers.
    let is_silent = || node.peers().next().is_none() && node.beat(sight.now) == Beat::Stale;
    if node.row.is_some() && !is_silent() {
        node.peers().for_each(|(peer, _)| ask(peer));
    } else if sight.nodes.len() <= FULL_MESH {
        sight.nodes.keys().for_each(ask);
    }
    (lost, reached)
}

/// Nodes that hear nobody, with what they say, and the other ones that say something of their peers.
fn who_hears_nobody<'a>(sight: &Sight<'a>) -> (Lost<'a>, Vec<&'a Name>) {
    let (mut reporters, mut others) = (Vec::new(), Vec::new());
    for (name, node) in sight.nodes {
        match node.fresh_row(sight.now).filter(|row| !row.peers.is_empty()) {
            Some(row) if hears_nobody(row) => reporters.push((name, row)),
            Some(_) => others.push(name),
            None => {}
        }
    }
    (reporters, others)
}

/// Whether somebody may only not have said yet that it hears others.
fn others_may_speak(sight: &Sight<'_>, first: Timestamp) -> bool {
    let (reporters, others) = who_hears_nobody(sight);
    let wait = reporters.iter().map(|(_, row)| period(row) * 5 / 4).max().unwrap_or_default();
    !others.is_empty() && sight.now.duration_since(first) < wait
}

/// Whether something arrives there, as it or a peer says.
fn is_there(sight: &Sight<'_>, name: &Name, node: &Node) -> bool {
    let arrives = |peer| works(mesh::between(sight.nodes, peer, name, sight.now).way.state);
    node.beat(sight.now) == Beat::Live && node.peers().any(|(peer, _)| arrives(peer))
}

/// Whether what the node said of itself is past: it does not speak any more, though the broker is there.
fn is_past(sight: &Sight<'_>, name: &Name) -> bool {
    sight.nodes.get(name).is_none_or(|node| {
        node.beat(sight.now) == Beat::Stale && (sight.silence || node.presence == Presence::Offline)
    })
}

/// Whether a node that is lost may only not have said yet that it is not heard: then it does within a period. So it may where
/// something arrives there, and where those who lost it hear nobody else either.
fn may_speak(sight: &Sight<'_>, name: &Name, first: Timestamp) -> bool {
    sight.nodes.get(name).is_some_and(|node| {
        let wait = node.row.as_ref().map_or(SignedDuration::ZERO, |row| period(&row.what) * 5 / 4);
        let are_deaf = || witnesses(sight, name, node).0.iter().all(|(_, row)| hears_nobody(row));
        sight.now.duration_since(first) < wait && (is_there(sight, name, node) || are_deaf())
    })
}

/// What a node says of why it probes nobody, where it does so: raised, or that it cannot be told yet. It holds until it says
/// something else, also when it is gone meanwhile.
fn probes_nobody(sight: &Sight<'_>, name: &Name) -> Option<Status> {
    let node = sight.nodes.get(name)?;
    let row = &node.row.as_ref()?.what;
    if row.tier.stamps != Stamps::None || !row.peers.is_empty() {
        return None;
    }
    let conditions = node.state.iter().flat_map(|state| &state.what.conditions);
    let said: Vec<_> =
        conditions.filter(|c| MUTE_CONDITIONS.contains(&c.id.as_str())).map(|c| c.status).collect();
    [Status::Raised, Status::Unknown].into_iter().find(|status| said.contains(status))
}

/// What is wrong with a node that reports, where all its ways are cut in one direction only. One way alone is a link's trouble; and
/// it is not the node's where all the others have the same in the other direction. Before it has spoken since it was lost, it may be
/// gone.
fn one_direction(sight: &Sight<'_>, name: &Name, node: &Node) -> Option<Problem> {
    let row = node.fresh_row(sight.now).filter(|_| node.beat(sight.now) == Beat::Live)?;
    let is_cut =
        |report: &PeerReport| report.out.state == WayState::Cut || report.incoming.state == WayState::Cut;
    // Nearly always it is not, and then nothing costs anything.
    if !row.peers.values().any(is_cut) {
        return None;
    }
    let peers = || row.peers.keys().filter(|peer| sight.nodes.contains_key(*peer));
    if peers().any(|peer| sight.row(peer).is_some_and(|row| sight.spoke_before(name, peer, row))) {
        return None;
    }
    let state = |from: &Name, to: &Name| mesh::between(sight.nodes, from, to, sight.now).way.state;
    let (mut unheard, mut unhearing) = (Vec::new(), Vec::new());
    let (mut speaks, mut hears) = (false, false);
    for peer in peers() {
        let (out, back) = (state(name, peer), state(peer, name));
        speaks |= works(out);
        hears |= works(back);
        match (out, back) {
            (WayState::Cut, back) if works(back) => unheard.push(peer),
            (out, WayState::Cut) if works(out) => unhearing.push(peer),
            _ => {}
        }
    }
    let hears_others = |peer: &&Name| sight.row(peer).is_some_and(|row| !hears_nobody(row));
    let is_heard_by_others = |peer: &&Name| peers().any(|other| other != *peer && works(state(peer, other)));
    let (kind, title, who, next) = if unheard.len() > 1 && !speaks && unheard.iter().any(hears_others) {
        (
            MUTE,
            "no peer hears it, and it hears them",
            unheard,
            "what it sends is lost: look at its firewall's rules for what goes out, and at its switch port",
        )
    } else if unhearing.len() > 1 && !hears && unhearing.iter().any(is_heard_by_others) {
        (
            DEAF,
            "it hears no peer, and they hear it",
            unhearing,
            "what it receives is lost: look at its firewall's rules for what comes in, and at its switch port",
        )
    } else {
        return None;
    };
    Some(Problem {
        kind: kind.to_owned(),
        rung: 1,
        title: format!("{name}: {title}"),
        severity: Severity::Critical,
        evidence: vec![format!("so it is with {}", names(who.into_iter())).into(), next.to_owned().into()],
    })
}

/// Whether it is too early to blame the link; see the head of this file. `first` is when it was first seen.
fn undecided(sight: &Sight<'_>, from: &Name, to: &Name, problem: &Problem, first: Timestamp) -> bool {
    let Sight { nodes, now, .. } = *sight;
    let missed = |name| nodes.get(name).is_some_and(|n| n.beat(now) == Beat::Missed);
    if missed(from) || missed(to) {
        return true;
    }
    if problem.rung < 2 {
        return false;
    }
    let row = nodes.get(from).and_then(|n| n.row.as_ref());
    let peers = || row.iter().flat_map(|row| row.what.peers.keys()).filter(|peer| *peer != to);
    if peers().chain([from, to]).filter_map(|name| nodes.get(name)).any(|node| sight.is_to_come(node)) {
        return true;
    }
    let mut others = peers().filter(|peer| nodes.get(*peer).is_some_and(|node| node.beat(now) < Beat::Stale));
    let are_others = others.clone().next().is_some();
    // Whether it hears nobody because of itself the others know when they have been told, within a period.
    let may_be_deaf = are_others && sight.row(to).is_some_and(hears_nobody);
    // It lives, and hears the one that does not hear it.
    let is_told =
        sight.row(from).and_then(|row| row.peers.get(to)).is_some_and(|own| own.out.state == WayState::Cut);
    if is_told && (!are_others || !may_be_deaf && now.duration_since(first) >= SAID) {
        return false;
    }
    // Somebody hears it, who is there: the one that lost it hears them.
    let is_heard = |peer: &Name| sight.hears(to, peer) && sight.hears(peer, from);
    if now.duration_since(first) >= SAID && others.clone().any(is_heard) {
        return false;
    }
    let wait = row.map_or(SignedDuration::from_secs(1), |row| period(&row.what)) * 5 / 4;
    let spoken = |name: &Name| {
        let n = nodes.get(name).filter(|n| n.beat(now) < Beat::Stale);
        n.and_then(|n| n.row.as_ref()).is_none_or(|row| row.heard > first)
    };
    now.duration_since(first) < wait && (may_be_deaf || !(spoken(from) && others.all(spoken)))
}

/// Whether a raised condition follows from another raised one that does not itself follow from it.
fn explained(condition: &Condition, all: &[Condition]) -> bool {
    let follows = |from: &str, to: &str| {
        let (mut open, mut met) = (vec![from], BTreeSet::new());
        while let Some(id) = open.pop() {
            for next in all.iter().filter(|c| c.id == id).flat_map(|c| &c.depends_on) {
                if next == to {
                    return true;
                }
                if met.insert(next.as_str()) {
                    open.push(next);
                }
            }
        }
        false
    };
    let raised = |c: &&Condition| c.status == Status::Raised && c.id != condition.id;
    all.iter()
        .filter(raised)
        .any(|root| follows(&condition.id, &root.id) && !follows(&root.id, &condition.id))
}

fn sighting(from: &Name, to: &Name, link: &Link) -> String {
    let what = match (link.way.state, link.way.loss, link.way.delay_ms) {
        (WayState::Cut, ..) => "nothing arrives".to_owned(),
        (WayState::Slow, _, Some(ms)) => format!("it takes {ms:.1} ms longer than it did"),
        (WayState::Slow, ..) => "it takes longer than it did".to_owned(),
        (_, Some(loss), _) => format!("{:.0} % of the probes are lost", loss * 100.0),
        _ => "some probes are lost".to_owned(),
    };
    match link.seen_by {
        Some(End::From) => format!("{from} says by what {to} tells: {what}"),
        _ => format!("{to} says of what arrives from {from}: {what}"),
    }
}

fn sentence(state: WayState) -> &'static str {
    match state {
        WayState::Fine => "is fine",
        WayState::Unknown => "could not be seen",
        WayState::Slow => "is slower too",
        WayState::Lossy => "loses packets too",
        WayState::Cut => "is cut too",
    }
}

/// `n1, n3 and 4 more`.
fn names<'a>(names: impl ExactSizeIterator<Item = &'a Name>) -> String {
    const SHOWN: usize = 5;
    let more = names.len().saturating_sub(SHOWN);
    let shown: Vec<&str> = names.take(SHOWN).map(Name::as_str).collect();
    let shown = shown.join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        cluster::Message,
        scene::{Fault, Scene, both_ways, condition, row, state},
    };

    const ALL: [&str; 3] = ["n1", "n2", "n3"];

    /// Three nodes that have been fine for a while.
    fn healthy() -> Scene {
        let mut scene = Scene::new(Settings::default());
        for node in ALL {
            scene.node(node, "availability", "online");
        }
        for _ in 0..3 {
            scene.second(&ALL, &ALL, &[]);
        }
        assert_eq!(scene.published_alerts(), [""; 0]);
        scene
    }

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    /// The last batch of a node has not come to the others, which say so.
    fn missed(scene: &mut Scene, node: &str) {
        let others: Vec<&str> = ALL.into_iter().filter(|other| *other != node).collect();
        let unknown: Vec<_> = others.iter().map(|other| (*other, node, "unknown")).collect();
        scene.second(&ALL, &others, &unknown);
    }

    #[test]
    fn loss_in_one_direction_names_that_direction_at_the_first_report() {
        let mut scene = healthy();
        scene.row("n3", &ALL, &[("n2", "n3", "lossy")]);
        assert_eq!(scene.published_alerts(), ["path-loss-n2-n3"]);
        let alert = scene.cluster.alerts().raised().next().unwrap();
        assert_eq!((alert.subject.as_str(), alert.severity), ("n2 -> n3", Severity::Warning));
        assert_eq!(
            alert.evidence,
            [
                "n3 says of what arrives from n2: 40 % of the probes are lost",
                "the other way, n3 -> n2, is fine"
            ]
        );
    }

    #[test]
    fn delay_and_a_single_cut_link_are_told_apart() {
        let mut scene = healthy();
        scene.second(&ALL, &ALL, &[("n1", "n2", "slow")]);
        assert_eq!(scene.published_alerts(), ["path-delay-n1-n2"]);
        let mut scene = healthy();
        for _ in 0..2 {
            scene.second(&ALL, &ALL, &[("n1", "n2", "cut")]);
        }
        assert_eq!(scene.published_alerts(), ["path-cut-n1-n2"]);
        assert_eq!(scene.alerts_ever(), ["path-cut-n1-n2"]);
    }

    #[test]
    fn a_cut_link_is_named_at_once_while_another_peer_hears_the_sender() {
        let mut scene = healthy();
        // With rows that come seldom, too: what stands there still holds.
        scene.wait_ms(400);
        scene.row("n3", &ALL, &[("n1", "n3", "cut")]);
        scene.wait_ms(100);
        assert_eq!(scene.published_alerts(), ["path-cut-n1-n3"]);
        // Who is lost as well may have heard it long ago.
        let mut scene = healthy();
        scene.row("n3", &ALL, &[("n1", "n3", "cut"), ("n2", "n3", "cut")]);
        scene.wait_ms(100);
        assert_eq!(scene.published_alerts(), [""; 0]);
        // Who misses a batch, or loses some anyway, does not know.
        for fault in [("n2", "n1", "unknown"), ("n1", "n2", "lossy")] {
            let mut scene = healthy();
            let is_named = |scene: &Scene| scene.published_alerts().contains(&"path-cut-n1-n3".to_owned());
            scene.row("n2", &ALL, &[fault]);
            scene.wait_ms(400);
            scene.row("n3", &ALL, &[("n1", "n3", "cut")]);
            assert!(!is_named(&scene), "{fault:?}");
            scene.wait_ms(10);
            scene.second(&ALL, &ALL, &[("n1", "n3", "cut"), fault]);
            assert!(is_named(&scene), "{fault:?}");
        }
    }

    #[test]
    fn a_node_cut_from_peers_and_broker_is_one_alert_and_never_was_another() {
        let mut scene = healthy();
        let faults = both_ways("n2", &ALL, "cut");
        missed(&mut scene, "n2");
        for _ in 0..30 {
            scene.second(&ALL, &["n3", "n1"], &faults);
        }
        scene.node("n2", "availability", "offline");
        scene.second(&ALL, &["n3", "n1"], &faults);
        assert_eq!(scene.published_alerts(), ["node-gone-n2"]);
        assert_eq!(scene.alerts_ever(), ["node-gone-n2"]);
    }

    #[test]
    fn a_node_cut_from_its_peers_only_is_one_alert_and_never_was_another() {
        let mut scene = healthy();
        missed(&mut scene, "n2");
        for _ in 0..5 {
            scene.second(&ALL, &ALL, &both_ways("n2", &ALL, "cut"));
        }
        assert_eq!(scene.published_alerts(), ["node-gone-n2"]);
        assert_eq!(scene.alerts_ever(), ["node-gone-n2"]);
    }

    #[test]
    fn peers_that_lose_a_node_one_after_the_other_give_one_alert_with_its_links() {
        let mut scene = healthy();
        missed(&mut scene, "n2");
        // n1 has counted its last probe as lost a moment before n3 has.
        scene.row("n1", &ALL, &both_ways("n2", &["n1", "n2"], "cut"));
        scene.wait_ms(300);
        scene.row("n3", &ALL, &both_ways("n2", &ALL, "cut"));
        for _ in 0..4 {
            scene.wait_ms(250);
        }
        assert_eq!(scene.published_alerts(), ["node-gone-n2"]);
        assert_eq!(scene.alerts_ever(), ["node-gone-n2"]);
    }

    #[test]
    fn no_link_between_any_nodes_is_one_alert() {
        let mut scene = healthy();
        let faults: Vec<_> = ALL.iter().flat_map(|node| both_ways(node, &ALL, "cut")).collect();
        for _ in 0..5 {
            scene.second(&ALL, &ALL, &faults);
        }
        assert_eq!(scene.published_alerts(), ["mesh-cut"]);
    }

    #[test]
    fn a_last_will_with_peers_that_still_reach_the_node_is_silence_and_not_the_end() {
        let mut scene = healthy();
        scene.node("n2", "availability", "offline");
        assert_eq!(scene.published_alerts(), ["node-silent-n2"]);
        let alert = scene.cluster.alerts().raised().next().unwrap();
        assert_eq!(alert.evidence[1], "still reached by n1, n3");
        scene.second(&ALL, &["n1", "n3"], &both_ways("n2", &ALL, "cut"));
        assert_eq!(scene.published_alerts(), ["node-gone-n2"]);
    }

    #[test]
    fn an_alert_clears_after_three_fine_seconds_and_not_by_silence() {
        let mut scene = healthy();
        scene.row("n3", &ALL, &[("n2", "n3", "lossy")]);
        for _ in 0..20 {
            scene.wait_ms(250);
        }
        assert_eq!(scene.published_alerts(), ["path-loss-n2-n3"], "nobody reports: could not tell");
        scene.second(&ALL, &ALL, &[]);
        scene.second(&ALL, &ALL, &[]);
        assert_eq!(scene.published_alerts(), ["path-loss-n2-n3"]);
        scene.second(&ALL, &ALL, &[]);
        scene.second(&ALL, &ALL, &[]);
        assert_eq!(scene.published_alerts(), [""; 0]);
    }

    #[test]
    fn a_line_that_loses_a_packet_now_and_then_is_one_lasting_alert() {
        let mut scene = healthy();
        let raised = |scene: &Scene| {
            let logs =
                scene.effects.iter().filter(|effect| matches!(effect, Effect::Log(Line { warn: true, .. })));
            logs.count()
        };
        // Every twenty seconds, for an hour.
        for _ in 0..180 {
            scene.row("n3", &ALL, &[("n2", "n3", "lossy")]);
            (0..20).for_each(|_| scene.second(&ALL, &ALL, &[]));
        }
        let often = raised(&scene);
        assert!((2..10).contains(&often), "{often} times");
        let alert = scene.cluster.alerts().raised().next().unwrap();
        assert!(alert.evidence.last().unwrap().contains("came back"), "{:?}", alert.evidence);
        // A moment in which it cannot be seen begins nothing anew.
        for _ in 0..30 {
            scene.row("n3", &ALL, &[("n2", "n3", "unknown"), ("n3", "n2", "unknown")]);
            scene.row("n2", &ALL, &[("n2", "n3", "unknown"), ("n3", "n2", "unknown")]);
            (0..11).for_each(|_| scene.second(&ALL, &ALL, &[]));
        }
        assert_eq!(scene.published_alerts(), [""; 0]);
        scene.row("n3", &ALL, &[("n2", "n3", "lossy")]);
        assert_eq!(scene.published_alerts(), ["path-loss-n2-n3"]);
        // It is over for longer than that, and then it is as new.
        (0..301).for_each(|_| scene.second(&ALL, &ALL, &[]));
        assert_eq!(scene.published_alerts(), [""; 0]);
        (0..600).for_each(|_| scene.second(&ALL, &ALL, &[]));
        scene.row("n3", &ALL, &[("n2", "n3", "lossy")]);
        (0..4).for_each(|_| scene.second(&ALL, &ALL, &[]));
        assert_eq!(scene.published_alerts(), [""; 0]);
        // What stops everything is never told late.
        for _ in 0..5 {
            (0..3).for_each(|_| scene.second(&ALL, &ALL, &[("n1", "n2", "cut")]));
            assert_eq!(scene.published_alerts(), ["path-cut-n1-n2"]);
            (0..4).for_each(|_| scene.second(&ALL, &ALL, &[]));
            assert_eq!(scene.published_alerts(), [""; 0]);
        }
    }

    #[test]
    fn a_node_that_comes_back_clears_its_alert() {
        let mut scene = healthy();
        missed(&mut scene, "n2");
        for _ in 0..5 {
            scene.second(&ALL, &["n1", "n3"], &both_ways("n2", &ALL, "cut"));
        }
        assert_eq!(scene.published_alerts(), ["node-gone-n2"]);
        for _ in 0..5 {
            scene.second(&ALL, &ALL, &[]);
        }
        assert_eq!(scene.published_alerts(), [""; 0]);
        assert_eq!(scene.alerts_ever(), ["node-gone-n2"]);
    }

    #[test]
    fn a_broker_that_goes_away_raises_and_clears_nothing() {
        let mut scene = healthy();
        scene.row("n3", &ALL, &[("n2", "n3", "lossy")]);
        scene.absorb(Message::BrokerGone { why: "connection refused" });
        for _ in 0..120 {
            scene.wait_ms(500);
        }
        assert_eq!(scene.published_alerts(), ["path-loss-n2-n3"]);
    }

    #[test]
    fn silence_without_a_last_will_is_told_after_a_while() {
        let mut scene = healthy();
        for _ in 0..29 {
            scene.second(&ALL, &["n1", "n3"], &[]);
        }
        assert_eq!(scene.published_alerts(), [""; 0]);
        for _ in 0..3 {
            scene.second(&ALL, &["n1", "n3"], &[]);
        }
        assert_eq!(scene.published_alerts(), ["node-silent-n2"]);
    }

    #[test]
    fn a_condition_is_suppressed_by_its_raised_dependency_only() {
        let mut scene = healthy();
        let both =
            json!([condition("api-slow", "raised", &["disk-full"]), condition("disk-full", "raised", &[])]);
        scene.node("n1", "state", &state("n1", json!({}), both));
        assert_eq!(scene.published_alerts(), ["disk-full-n1"]);
        let circle = json!([condition("a", "raised", &["b"]), condition("b", "raised", &["a"])]);
        scene.node("n2", "state", &state("n2", json!({}), circle));
        assert_eq!(scene.published_alerts(), ["a-n2", "b-n2", "disk-full-n1"], "a circle hides nothing");
        let mesh = json!([condition("path-loss", "raised", &[])]);
        scene.node("n3", "state", &state("n3", json!({}), mesh));
        assert_eq!(scene.published_alerts(), ["a-n2", "b-n2", "disk-full-n1"]);
    }

    #[test]
    fn alerts_of_an_earlier_run_are_taken_over_or_taken_back() {
        let mut scene = Scene::new(Settings::default());
        let old = |id: &str| {
            format!(
                "{{\"v\":1,\"id\":\"{id}\",\"kind\":\"path-loss\",\"subject\":\"n2 -> n3\",\"title\":\"t\",\
                 \"severity\":\"warning\",\"since\":\"2026-11-23T05:00:00Z\",\"evidence\":[]}}"
            )
        };
        for (id, payload) in
            [("path-loss-n2-n3", old("path-loss-n2-n3")), ("old", old("old")), ("junk", "{".into())]
        {
            scene.publish(&format!("bramble/home/cluster/alert/{id}"), payload.as_bytes(), true);
        }
        for _ in 0..20 {
            scene.second(&ALL, &ALL, &[("n2", "n3", "lossy")]);
        }
        let alert = scene.cluster.alerts().raised().next().unwrap();
        assert_eq!(
            alert.since,
            "2026-11-23T05:00:00Z".parse().unwrap(),
            "it has stood since the earlier run"
        );
        // What the earlier run said went by the wall clock, wherever ours began.
        scene.set_clock(SignedDuration::from_hours(1));
        assert_eq!(scene.cluster.alerts().raised().next().unwrap().since, alert.since);
        for id in ["old", "junk"] {
            let gone = Effect::Remove(Topic::Cluster(ClusterTopic::Alert(name(id))));
            assert!(scene.effects.contains(&gone), "{id}");
        }
        assert_eq!(scene.published_alerts(), ["path-loss-n2-n3"]);
    }

    #[test]
    fn a_clock_that_is_set_makes_all_times_right_and_is_no_news() {
        const HALF_A_CENTURY: i64 = 50 * 365 * 24;
        let mut scene = healthy();
        scene.row("n3", &ALL, &[("n1", "n3", "lossy")]);
        scene.node("n2", "availability", "offline");
        let before: Vec<Alert> = scene.cluster.alerts().raised().collect();
        let lost = scene.cluster.nodes()[&name("n2")].since;
        assert_eq!(before.len(), 2);
        for hours in [1, HALF_A_CENTURY, -HALF_A_CENTURY, 0] {
            let (said, ahead) = (scene.effects.len(), SignedDuration::from_hours(hours));
            scene.set_clock(ahead);
            let mut again = Vec::new();
            for effect in &scene.effects[said..] {
                match effect {
                    Effect::Publish { topic: Topic::Cluster(ClusterTopic::Alert(_)), payload, .. } => {
                        again.push(serde_json::from_slice::<Alert>(payload).unwrap());
                    }
                    Effect::PageChanged => {}
                    other => panic!("{hours} h: {other:?}"),
                }
            }
            let since: Vec<Timestamp> = before.iter().map(|alert| alert.since + ahead).collect();
            assert_eq!(again.iter().map(|alert| alert.since).collect::<Vec<_>>(), since, "{hours} h");
            assert_eq!(scene.cluster.alerts().raised().collect::<Vec<_>>(), again, "{hours} h");
            let told = format!("the broker lost it at {:.0}; its last report", lost + ahead);
            assert!(again[0].evidence[0].starts_with(&told), "{hours} h: {:?}", again[0].evidence);
            assert_eq!(scene.cluster.summary(scene.now).ts, scene.now + ahead, "{hours} h");
        }
        let said = scene.effects.len();
        scene.wait_ms(250);
        let news =
            |effect: &Effect| matches!(effect, Effect::Tell { .. } | Effect::Remove(_) | Effect::Log(_));
        assert!(!scene.effects[said..].iter().any(news), "{:?}", &scene.effects[said..]);
    }

    #[test]
    fn ids_are_names_and_different_for_different_links() {
        let long = "x".repeat(63);
        let cause = Cause::Link(name(&long), name(&long));
        assert_eq!(cause.id("path-loss", false), cause.id("path-loss", false));
        assert_ne!(cause.id("path-loss", false), Cause::Link(name(&long), name("n1")).id("path-loss", false));

        let all = ["a", "a-b", "b-c", "c"];
        let mut scene = Scene::new(Settings::default());
        for _ in 0..3 {
            scene.second(&all, &all, &[("a", "b-c", "lossy"), ("a-b", "c", "lossy")]);
        }
        let alerts = scene.published_alerts();
        assert_eq!((alerts.len(), alerts[0].as_str()), (2, "path-loss-a-b-c"));
    }

    /// What a node says with rows ten seconds apart, unless a way changes.
    fn say(scene: &mut Scene, node: &str, all: &[&str], faults: &[Fault<'_>]) {
        let mut said = row(node, all, faults);
        said["interval_ms"] = json!(10_000);
        scene.node(node, "mesh", &said.to_string());
        scene.wait_ms(3);
    }

    fn wait(scene: &mut Scene, ticks: u32) {
        (0..ticks).for_each(|_| scene.wait_ms(250));
    }

    /// Nodes that have been fine for a while, as shipped.
    fn shipped(all: &[&str]) -> Scene {
        let mut scene = Scene::new(Settings::default());
        for node in all {
            scene.node(node, "availability", "online");
        }
        for _ in 0..2 {
            all.iter().for_each(|node| say(&mut scene, node, all, &[]));
            wait(&mut scene, 40);
        }
        all.iter().for_each(|node| say(&mut scene, node, all, &[]));
        wait(&mut scene, 12);
        assert_eq!(scene.published_alerts(), [""; 0]);
        scene
    }

    #[test]
    fn a_node_that_dies_after_a_probe_was_lost_by_chance_is_no_link_first() {
        let mut scene = shipped(&ALL);
        say(&mut scene, "n3", &ALL, &[("n3", "n1", "unknown")]);
        wait(&mut scene, 4);
        say(&mut scene, "n3", &ALL, &[("n1", "n3", "cut")]);
        say(&mut scene, "n2", &ALL, &[("n2", "n1", "unknown")]);
        wait(&mut scene, 4);
        say(&mut scene, "n2", &ALL, &[("n1", "n2", "cut")]);
        wait(&mut scene, 20);
        assert_eq!(
            (scene.published_alerts(), scene.alerts_ever()),
            (vec!["node-gone-n1".into()], vec!["node-gone-n1".into()])
        );
    }

    /// What was ever said, while the scene ends as it should.
    fn ever(scene: &Scene) -> Vec<String> {
        assert_eq!(scene.published_alerts(), scene.alerts_ever());
        scene.alerts_ever()
    }

    const FOUR: [&str; 4] = ["n1", "n2", "n3", "n4"];

    #[test]
    fn nodes_that_die_together_are_one_alert_each() {
        let survivors = ["n1", "n2"];
        // Both at once, or the second one before it could say that it misses the first.
        for second in ["cut", "unknown"] {
            let mut scene = shipped(&FOUR);
            for node in survivors {
                let missed = [(node, "n3", "unknown"), (node, "n4", "unknown")];
                say(&mut scene, node, &FOUR, &missed[..if second == "cut" { 2 } else { 1 }]);
            }
            wait(&mut scene, 4);
            for node in survivors {
                let (from, to) = if second == "cut" { ("n4", node) } else { (node, "n4") };
                say(&mut scene, node, &FOUR, &[("n3", node, "cut"), (from, to, second)]);
            }
            wait(&mut scene, 4);
            for _ in 0..12 {
                for node in survivors {
                    say(&mut scene, node, &FOUR, &[("n3", node, "cut"), ("n4", node, "cut")]);
                }
                wait(&mut scene, 20);
                assert_eq!(ever(&scene), ["node-gone-n3", "node-gone-n4"], "{second}");
            }
        }
    }

    #[test]
    fn ways_that_are_cut_together_are_links_and_no_node_is_gone() {
        let pairs = [("n1", "n3"), ("n1", "n4"), ("n2", "n3"), ("n2", "n4")];
        let there = |state| pairs.map(|(a, b)| (b, a, state)).to_vec();
        let both =
            |state| pairs.iter().flat_map(|(a, b)| [(*a, *b, state), (*b, *a, state)]).collect::<Vec<_>>();
        let links = |scene: &Scene, count| {
            let said = ever(scene);
            assert!(said.len() == count && said.iter().all(|id| id.starts_with("path-cut-")), "{said:?}");
        };
        // One way only: who speaks there learns a period later that nobody listens.
        let mut scene = shipped(&FOUR);
        for node in ["n1", "n2"] {
            say(&mut scene, node, &FOUR, &[(node, "n3", "unknown"), (node, "n4", "unknown")]);
        }
        wait(&mut scene, 4);
        ["n1", "n2"].iter().for_each(|node| say(&mut scene, node, &FOUR, &there("cut")));
        wait(&mut scene, 3);
        ["n3", "n4"].iter().for_each(|node| say(&mut scene, node, &FOUR, &there("cut")));
        wait(&mut scene, 2);
        links(&scene, 4);
        // Two halves; and of ways that lost packets before, on which one missed batch says nothing.
        for before in ["unknown", "lossy"] {
            let mut scene = shipped(&FOUR);
            for node in FOUR {
                let own = |(from, _, _): &Fault<'_>| before == "lossy" || *from == node;
                let faults: Vec<_> = both(before).into_iter().filter(own).collect();
                say(&mut scene, node, &FOUR, &faults);
            }
            wait(&mut scene, 4);
            for _ in 0..6 {
                FOUR.iter().for_each(|node| say(&mut scene, node, &FOUR, &both("cut")));
                wait(&mut scene, 20);
            }
            let (said, now) = (scene.alerts_ever(), scene.published_alerts());
            assert!(said.iter().all(|id| id.starts_with("path-")), "{said:?}");
            assert!(now.len() == 8 && now.iter().all(|id| id.starts_with("path-cut-")), "{now:?}");
        }
    }

    #[test]
    fn an_aggregator_that_begins_beside_a_cut_link_hears_everybody_first() {
        let cut = [("n1", "n3", "cut")];
        let mut scene = Scene::new(Settings::default());
        for node in ALL {
            let mut said = row(node, &ALL, &cut);
            said["interval_ms"] = json!(10_000);
            scene.publish(&format!("bramble/home/node/{node}/availability"), b"online", true);
            scene.publish(&format!("bramble/home/node/{node}/mesh"), said.to_string().as_bytes(), true);
        }
        wait(&mut scene, 4);
        for node in ["n3", "n2", "n1"] {
            say(&mut scene, node, &ALL, &cut);
            wait(&mut scene, 12);
        }
        assert_eq!(ever(&scene), ["path-cut-n1-n3"]);
        // One of which the broker knows that it is gone is so at the first word.
        let mut scene = Scene::new(Settings::default());
        for (node, is_there) in [("n1", b"offline".as_slice()), ("n2", b"online"), ("n3", b"online")] {
            scene.publish(&format!("bramble/home/node/{node}/availability"), is_there, true);
            scene.publish(
                &format!("bramble/home/node/{node}/mesh"),
                row(node, &ALL, &[]).to_string().as_bytes(),
                true,
            );
        }
        for node in ["n3", "n2"] {
            say(&mut scene, node, &ALL, &[("n1", node, "cut")]);
            assert_eq!(scene.published_alerts(), ["node-gone-n1"]);
        }
    }

    #[test]
    fn a_sender_that_is_told_that_nothing_arrives_lives() {
        let two = ["n1", "n2"];
        for first in [0, 1] {
            let mut scene = shipped(&two);
            say(&mut scene, "n2", &two, &[("n2", "n1", "unknown")]);
            wait(&mut scene, 4);
            for node in [two[first], two[1 - first]] {
                say(&mut scene, node, &two, &[("n1", "n2", "cut")]);
            }
            assert_eq!(scene.published_alerts(), ["path-cut-n1-n2"]);
        }
    }

    #[test]
    fn a_node_whose_companion_is_away_is_its_own_trouble_and_none_of_its_links() {
        let mut away = row("n2", &["n2"], &[]);
        away["interval_ms"] = json!(10_000);
        away["tier"] = json!({"stamps": "none", "attached": null, "why": "bramble probe does not answer"});
        for why in ["told", "not told"] {
            let mut scene = shipped(&ALL);
            if why == "told" {
                let companion = json!([condition("companion", "raised", &[])]);
                scene.node("n2", "state", &state("n2", json!({}), companion));
            }
            scene.node("n2", "mesh", &away.to_string());
            wait(&mut scene, 4);
            ["n1", "n3"].iter().for_each(|node| say(&mut scene, node, &ALL, &[(node, "n2", "unknown")]));
            wait(&mut scene, 4);
            for _ in 0..3 {
                ["n1", "n3"].iter().for_each(|node| say(&mut scene, node, &ALL, &[("n2", node, "cut")]));
                scene.node("n2", "mesh", &away.to_string());
                wait(&mut scene, 4);
            }
            match why {
                "told" => assert_eq!(ever(&scene), ["companion-n2"]),
                _ => assert_eq!(ever(&scene), ["path-cut-n2-n1", "path-cut-n2-n3"]),
            }
        }
        // An agent that begins anew has not heard its companion yet: what stands is not over.
        let mut scene = shipped(&ALL);
        let lossy = [("n2", "n1", "lossy")];
        ["n1", "n2"].iter().for_each(|node| say(&mut scene, node, &ALL, &lossy));
        scene.node("n2", "mesh", &away.to_string());
        wait(&mut scene, 4);
        assert_eq!(ever(&scene), ["path-loss-n2-n1"]);
    }

    #[test]
    fn a_node_that_nobody_hears_and_one_that_hears_nobody_are_one_alert_each() {
        for (kind, from_n2, to_n2) in [("node-mute", "cut", "fine"), ("node-deaf", "fine", "cut")] {
            let faults: Vec<Fault<'_>> =
                [("n2", "n1", from_n2), ("n2", "n3", from_n2), ("n1", "n2", to_n2), ("n3", "n2", to_n2)]
                    .into();
            let said = |scene: &mut Scene, nodes: &[&str]| {
                nodes.iter().for_each(|node| say(scene, node, &ALL, &faults));
                scene.wait_ms(150);
            };
            // Those who hear nothing say so first; who is not heard learns it then or a period later.
            for (first, then) in [(&ALL[..], &[][..]), (&["n2"], &["n1", "n3"]), (&["n1", "n3"], &["n2"])] {
                if kind == "node-deaf" && then == ["n2"] {
                    continue;
                }
                let mut scene = shipped(&ALL);
                let missed = if kind == "node-mute" {
                    vec![("n1", "n2", "unknown"), ("n3", "n2", "unknown")]
                } else {
                    vec![("n2", "n1", "unknown"), ("n2", "n3", "unknown")]
                };
                ALL.iter().for_each(|node| say(&mut scene, node, &ALL, &missed));
                wait(&mut scene, 4);
                said(&mut scene, first);
                wait(&mut scene, 3);
                said(&mut scene, then);
                wait(&mut scene, 20);
                let id = format!("{kind}-n2");
                assert_eq!(scene.published_alerts(), [id.as_str()], "{first:?}");
                // Before it has spoken itself, who is not heard may be gone.
                let before: Vec<_> = scene.alerts_ever().into_iter().filter(|ever| *ever != id).collect();
                assert!(before.is_empty() || before == ["node-gone-n2"] && first.len() == 2, "{before:?}");
                // What it says of itself counts all the same, and its links are told when it is over.
                let full = json!([condition("disk-full", "raised", &[])]);
                scene.node("n2", "state", &state("n2", json!({}), full));
                assert_eq!(scene.published_alerts(), ["disk-full-n2", id.as_str()]);
                ALL.iter().for_each(|node| say(&mut scene, node, &ALL, &faults[..1]));
                ALL.iter().for_each(|node| say(&mut scene, node, &ALL, &faults[2..3]));
                wait(&mut scene, 16);
                assert!(!scene.published_alerts().contains(&id), "{kind}");
            }
        }
    }

    #[test]
    fn who_hears_nobody_is_not_told_by_its_links_while_one_of_the_others_has_yet_to_be_told() {
        let mut scene = shipped(&ALL);
        let cut = [("n1", "n2", "cut"), ("n3", "n2", "cut")];
        say(&mut scene, "n2", &ALL, &[("n2", "n1", "unknown"), ("n2", "n3", "unknown")]);
        wait(&mut scene, 4);
        say(&mut scene, "n2", &ALL, &cut);
        // It reports at that moment, and has not been told yet.
        say(&mut scene, "n1", &ALL, &[]);
        say(&mut scene, "n3", &ALL, &cut);
        wait(&mut scene, 2);
        assert!(!scene.alerts_ever().iter().any(|id| id.starts_with("path-")));
        say(&mut scene, "n1", &ALL, &cut);
        wait(&mut scene, 20);
        assert_eq!(ever(&scene), ["node-deaf-n2"]);
        // Who is not heard knows it of one, and of another that one's word alone; a period later it knows all.
        let mut scene = shipped(&ALL);
        let cut = [("n2", "n1", "cut"), ("n2", "n3", "cut")];
        say(&mut scene, "n1", &ALL, &cut);
        say(&mut scene, "n3", &ALL, &cut);
        say(&mut scene, "n2", &ALL, &cut[1..]);
        wait(&mut scene, 3);
        say(&mut scene, "n2", &ALL, &cut);
        wait(&mut scene, 20);
        assert_eq!(scene.published_alerts(), ["node-mute-n2"]);
        assert_eq!(scene.alerts_ever(), ["node-gone-n2", "node-mute-n2"], "it might have been so");
    }

    #[test]
    fn a_node_that_dies_beside_a_cut_way_of_its_own_is_gone_and_not_unheard() {
        let mut scene = shipped(&ALL);
        let known = ("n1", "n3", "cut");
        ALL.iter().for_each(|node| say(&mut scene, node, &ALL, &[known]));
        wait(&mut scene, 8);
        assert_eq!(scene.published_alerts(), ["path-cut-n1-n3"]);
        say(&mut scene, "n2", &ALL, &[known, ("n2", "n1", "unknown")]);
        wait(&mut scene, 4);
        ["n2", "n3"].iter().for_each(|node| say(&mut scene, node, &ALL, &[known, ("n1", "n2", "cut")]));
        wait(&mut scene, 6);
        assert_eq!(scene.published_alerts(), ["node-gone-n1"]);
        wait(&mut scene, 40);
        assert_eq!(scene.alerts_ever(), ["node-gone-n1", "path-cut-n1-n3"]);
    }

    #[test]
    fn a_node_that_dies_beside_two_cut_ways_of_its_own_is_gone_and_not_unheard() {
        let mut scene = shipped(&FOUR);
        let known = [("n1", "n3", "cut"), ("n1", "n4", "cut")];
        FOUR.iter().for_each(|node| say(&mut scene, node, &FOUR, &known));
        wait(&mut scene, 8);
        let missed = [&known[..], &[("n2", "n1", "unknown")]].concat();
        say(&mut scene, "n2", &FOUR, &missed);
        wait(&mut scene, 4);
        let all = [&known[..], &[("n1", "n2", "cut")]].concat();
        ["n2", "n3", "n4"].iter().for_each(|node| say(&mut scene, node, &FOUR, &all));
        wait(&mut scene, 20);
        assert_eq!(scene.published_alerts(), ["node-gone-n1"]);
        assert!(!scene.alerts_ever().contains(&"node-mute-n1".to_owned()));
    }

    #[test]
    fn of_three_nodes_the_healthy_one_is_not_blamed_for_two_that_have_the_same() {
        // n2 and n3 hear nobody, or nobody hears them; who hears nothing says so first.
        for (blamed, faults, order) in [
            ("node-mute-n1", [("n1", "n2", "cut"), ("n1", "n3", "cut")], ["n2", "n3", "n1"]),
            ("node-deaf-n1", [("n2", "n1", "cut"), ("n3", "n1", "cut")], ["n1", "n2", "n3"]),
        ] {
            let all = [faults, [("n2", "n3", "cut"), ("n3", "n2", "cut")]].concat();
            let mut scene = shipped(&ALL);
            (0..4).for_each(|_| {
                order.iter().for_each(|node| say(&mut scene, node, &ALL, &all));
                wait(&mut scene, 8);
            });
            let said = scene.published_alerts();
            assert!(said.len() == 4 && said.iter().all(|id| id.starts_with("path-cut-")), "{said:?}");
            assert!(!scene.alerts_ever().contains(&blamed.to_owned()), "{:?}", scene.alerts_ever());
        }
    }

    #[test]
    fn two_nodes_of_one_name_that_both_die_are_gone() {
        let mut scene = healthy();
        let taken = state("n2", json!({}), json!([condition("name-taken", "raised", &[])]));
        scene.node("n2", "state", &taken);
        assert_eq!(scene.published_alerts(), ["name-taken-n2"]);
        missed(&mut scene, "n2");
        for _ in 0..40 {
            scene.second(&ALL, &["n1", "n3"], &both_ways("n2", &ALL, "cut"));
        }
        assert_eq!(scene.published_alerts(), ["node-gone-n2"]);
    }

    #[test]
    fn a_broker_that_goes_away_ends_nothing_of_a_node_that_is_not_heard() {
        for (kind, faults) in [
            ("node-mute-n2", [("n2", "n1", "cut"), ("n2", "n3", "cut")]),
            ("node-deaf-n2", [("n1", "n2", "cut"), ("n3", "n2", "cut")]),
        ] {
            let mut scene = healthy();
            let full = state("n2", json!({}), json!([condition("disk-full", "raised", &[])]));
            scene.node("n2", "state", &full);
            (0..6).for_each(|_| scene.second(&ALL, &ALL, &faults));
            let before = scene.alerts_ever();
            assert_eq!(scene.published_alerts(), ["disk-full-n2", kind]);
            scene.absorb(Message::BrokerGone { why: "connection refused" });
            wait(&mut scene, 4 * 120);
            assert_eq!(scene.published_alerts(), ["disk-full-n2", kind]);
            scene.absorb(Message::BrokerConnected);
            (0..6).for_each(|_| scene.second(&ALL, &ALL, &faults));
            assert_eq!(scene.published_alerts(), ["disk-full-n2", kind]);
            assert_eq!(scene.alerts_ever(), before);
        }
    }

    #[test]
    fn whoever_speaks_first_after_the_broker_was_away_is_not_everybody() {
        for (kind, faults) in [
            ("node-mute-n2", ["n1", "n3", "n4"].map(|node| ("n2", node, "cut"))),
            ("node-deaf-n2", ["n1", "n3", "n4"].map(|node| (node, "n2", "cut"))),
        ] {
            let mut scene = shipped(&FOUR);
            for _ in 0..3 {
                FOUR.iter().for_each(|node| say(&mut scene, node, &FOUR, &faults));
                wait(&mut scene, 8);
            }
            assert_eq!(scene.published_alerts(), [kind]);
            let before = scene.alerts_ever();
            scene.absorb(Message::BrokerGone { why: "connection refused" });
            wait(&mut scene, 4 * 60);
            scene.absorb(Message::BrokerConnected);
            FOUR.iter().for_each(|node| scene.node(node, "availability", "online"));
            for node in ["n2", "n1", "n3", "n4"] {
                say(&mut scene, node, &FOUR, &faults);
                wait(&mut scene, 16);
                assert_eq!(scene.published_alerts(), [kind], "{node}");
            }
            assert_eq!(scene.alerts_ever(), before);
            // An aggregator that begins then.
            let mut scene = Scene::new(Settings::default());
            for node in FOUR {
                let mut said = row(node, &FOUR, &faults);
                said["interval_ms"] = json!(10_000);
                scene.publish(&format!("bramble/home/node/{node}/availability"), b"online", true);
                scene.publish(&format!("bramble/home/node/{node}/mesh"), said.to_string().as_bytes(), true);
            }
            for node in ["n2", "n1", "n3", "n4"] {
                say(&mut scene, node, &FOUR, &faults);
                wait(&mut scene, 10);
            }
            assert_eq!(ever(&scene), [kind]);
        }
    }

    #[test]
    fn a_node_that_goes_beside_others_that_are_gone_for_long_is_told_by_itself() {
        let mut scene = shipped(&FOUR);
        let cut = |from| move |node: &str| (from, if node == "n1" { "n1" } else { "n2" }, "cut");
        let long: Vec<Fault<'_>> =
            ["n3", "n4"].into_iter().flat_map(|from| ["n1", "n2"].map(cut(from))).collect();
        ["n3", "n4"].iter().for_each(|node| scene.node(node, "availability", "offline"));
        for _ in 0..5 {
            ["n1", "n2"].iter().for_each(|node| say(&mut scene, node, &FOUR, &long));
            wait(&mut scene, 40);
        }
        assert_eq!(scene.published_alerts(), ["node-gone-n3", "node-gone-n4"]);
        let all = [long, vec![("n2", "n1", "cut")]].concat();
        say(&mut scene, "n1", &FOUR, &all);
        wait(&mut scene, 8);
        let three = ["node-gone-n2", "node-gone-n3", "node-gone-n4"];
        assert_eq!(scene.published_alerts(), three);
        scene.node("n2", "availability", "offline");
        for _ in 0..5 {
            say(&mut scene, "n1", &FOUR, &all);
            wait(&mut scene, 40);
        }
        assert_eq!(scene.published_alerts(), three);
        assert!(!scene.alerts_ever().contains(&"mesh-cut".to_owned()));
    }

    #[test]
    fn a_node_that_hears_nobody_and_dies_is_gone_at_once() {
        let mut scene = shipped(&ALL);
        let deaf = [("n1", "n2", "cut"), ("n3", "n2", "cut")];
        (0..2).for_each(|_| {
            ALL.iter().for_each(|node| say(&mut scene, node, &ALL, &deaf));
            wait(&mut scene, 8);
        });
        assert_eq!(scene.published_alerts(), ["node-deaf-n2"]);
        let gone = [("n2", "n1", "cut"), ("n2", "n3", "cut")];
        ["n1", "n3"].iter().for_each(|node| say(&mut scene, node, &ALL, &gone));
        wait(&mut scene, 1);
        assert_eq!(scene.published_alerts(), ["node-gone-n2"]);
    }

    #[test]
    fn one_of_two_nodes_of_one_name_that_ends_leaves_the_other_as_it_is() {
        let mut scene = healthy();
        scene.node("n2", "state", &state("n2", json!({}), json!([condition("name-taken", "raised", &[])])));
        scene.node("n2", "availability", "offline");
        scene.wait_ms(5);
        scene.node("n2", "availability", "online");
        scene.wait_ms(250);
        assert_eq!(ever(&scene), ["name-taken-n2"]);
    }

    #[test]
    fn a_node_that_does_not_report_is_not_gone_because_another_one_hears_nobody() {
        let mut scene = shipped(&FOUR);
        scene.node("n3", "availability", "offline");
        assert_eq!(scene.published_alerts(), ["node-silent-n3"]);
        let deaf: Vec<_> = ["n1", "n3", "n4"].map(|node| (node, "n2", "cut")).into();
        say(
            &mut scene,
            "n2",
            &FOUR,
            &[("n2", "n1", "unknown"), ("n2", "n3", "unknown"), ("n2", "n4", "unknown")],
        );
        wait(&mut scene, 4);
        say(&mut scene, "n2", &FOUR, &deaf);
        wait(&mut scene, 4);
        ["n1", "n4"].iter().for_each(|node| say(&mut scene, node, &FOUR, &deaf));
        wait(&mut scene, 40);
        assert_eq!(ever(&scene), ["node-deaf-n2", "node-silent-n3"]);
    }

    #[test]
    fn a_dead_link_beside_a_node_that_is_gone_for_long_is_named_by_its_sender() {
        let mut scene = shipped(&ALL);
        scene.node("n3", "availability", "offline");
        let gone: Vec<_> = ["n1", "n2"].map(|node| ("n3", node, "cut")).into();
        for _ in 0..10 {
            ["n1", "n2"].iter().for_each(|node| say(&mut scene, node, &ALL, &gone));
            wait(&mut scene, 40);
        }
        assert_eq!(scene.published_alerts(), ["node-gone-n3"]);
        let dead = [gone, vec![("n1", "n2", "cut")]].concat();
        say(&mut scene, "n2", &ALL, &dead);
        say(&mut scene, "n1", &ALL, &dead);
        wait(&mut scene, 1);
        assert_eq!(scene.published_alerts(), ["node-gone-n3", "path-cut-n1-n2"]);
    }

    #[test]
    fn losses_that_remain_of_a_cut_are_over_soon_however_often_it_was_cut() {
        let mut scene = healthy();
        for _ in 0..8 {
            missed(&mut scene, "n2");
            (0..5).for_each(|_| scene.second(&ALL, &ALL, &both_ways("n2", &ALL, "cut")));
            (0..7).for_each(|_| scene.second(&ALL, &ALL, &both_ways("n2", &ALL, "lossy")));
            (0..5).for_each(|_| scene.second(&ALL, &ALL, &[]));
            assert_eq!(scene.published_alerts(), [""; 0]);
        }
    }

    #[test]
    fn who_alone_is_left_names_the_nodes_that_are_gone() {
        for all in [&["n1", "n2"][..], &ALL, &FOUR] {
            let mut scene = shipped(all);
            let gone: Vec<&str> = all[1..].to_vec();
            let faults = |state| gone.iter().map(|node| (*node, "n1", state)).collect::<Vec<_>>();
            let missed: Vec<_> = gone.iter().map(|node| ("n1", *node, "unknown")).collect();
            say(&mut scene, "n1", all, &missed);
            wait(&mut scene, 4);
            // Of three or more it is as likely that who is left is cut off.
            let ids: Vec<String> = match gone.len() {
                3.. => vec!["mesh-cut".to_owned()],
                _ => gone.iter().map(|node| format!("node-gone-{node}")).collect(),
            };
            for seconds in [2, 10, 30, 60] {
                let isolated = json!([condition("isolated", "raised", &[])]);
                scene.node("n1", "state", &state("n1", json!({}), isolated));
                for _ in 0..seconds {
                    say(&mut scene, "n1", all, &faults("cut"));
                    wait(&mut scene, 4);
                }
                assert_eq!(ever(&scene), ids, "{all:?} {seconds}");
            }
        }
    }

    #[test]
    fn a_node_that_reports_without_its_peers_keeps_its_other_alerts() {
        let mut scene = healthy();
        let full = || state("n2", json!({}), json!([condition("disk-full", "raised", &[])]));
        scene.node("n2", "state", &full());
        missed(&mut scene, "n2");
        for _ in 0..5 {
            scene.second(&ALL, &ALL, &both_ways("n2", &ALL, "cut"));
            scene.node("n2", "state", &full());
        }
        assert_eq!(scene.published_alerts(), ["disk-full-n2", "node-gone-n2"]);
        for _ in 0..60 {
            scene.second(&ALL, &["n1", "n3"], &both_ways("n2", &ALL, "cut"));
        }
        scene.node("n2", "availability", "offline");
        scene.second(&ALL, &["n1", "n3"], &both_ways("n2", &ALL, "cut"));
        assert!(scene.published_alerts().contains(&"node-gone-n2".to_owned()));
    }

    #[test]
    fn a_node_that_probes_nobody_and_says_why_is_one_alert_until_it_is_gone() {
        let mut away = row("n2", &["n2"], &[]);
        away["interval_ms"] = json!(10_000);
        away["tier"] = json!({"stamps": "none", "attached": null, "why": "its port is taken"});
        let probing = state("n2", json!({}), json!([condition("probing", "raised", &["companion"])]));
        let others = |scene: &mut Scene| {
            ["n1", "n3"].iter().for_each(|node| say(scene, node, &ALL, &[("n2", node, "cut")]));
        };
        let mut scene = shipped(&ALL);
        scene.node("n2", "state", &probing);
        scene.node("n2", "mesh", &away.to_string());
        ["n1", "n3"].iter().for_each(|node| say(&mut scene, node, &ALL, &[(node, "n2", "unknown")]));
        wait(&mut scene, 4);
        for _ in 0..3 {
            others(&mut scene);
            scene.node("n2", "mesh", &away.to_string());
            wait(&mut scene, 20);
        }
        assert_eq!(ever(&scene), ["probing-n2"]);
        scene.node("n2", "availability", "offline");
        for _ in 0..12 {
            others(&mut scene);
            wait(&mut scene, 20);
        }
        assert_eq!(scene.published_alerts(), ["node-gone-n2"]);
        assert!(!scene.alerts_ever().iter().any(|id| id.starts_with("path-")), "{:?}", scene.alerts_ever());
        // An aggregator that comes later finds what is stored.
        let mut scene = Scene::new(Settings::default());
        scene.publish("bramble/home/node/n2/availability", b"online", true);
        scene.publish("bramble/home/node/n2/state", probing.as_bytes(), true);
        scene.publish("bramble/home/node/n2/mesh", away.to_string().as_bytes(), true);
        for _ in 0..8 {
            others(&mut scene);
            wait(&mut scene, 4);
        }
        scene.node("n2", "state", &probing);
        assert_eq!(ever(&scene), ["probing-n2"]);
    }

    #[test]
    fn an_alert_that_was_taken_back_at_once_is_news_the_next_time() {
        let mut scene = healthy();
        let lossy = [("n2", "n3", "lossy")];
        let topic = "bramble/home/cluster/alert/path-loss-n2-n3";
        let raised = |scene: &Scene| {
            let tells = scene.effects.iter().filter_map(|effect| match effect {
                Effect::Tell { payload, .. } => Some(String::from_utf8_lossy(payload).into_owned()),
                _ => None,
            });
            tells.filter(|told| told.contains("\"raised\"")).count()
        };
        for times in 1..=3 {
            scene.row("n3", &ALL, &lossy);
            let said = scene.effects.iter().rev().find_map(|effect| match effect {
                Effect::Publish { topic: Topic::Cluster(ClusterTopic::Alert(_)), payload, .. } => {
                    Some(payload.clone())
                }
                _ => None,
            });
            (0..2 << times).for_each(|_| scene.second(&ALL, &ALL, &[]));
            assert_eq!((scene.published_alerts().len(), raised(&scene)), (0, times));
            // Both come back late, or what is stored is told once more before it is emptied.
            scene.publish(topic, &said.unwrap(), times == 2);
            scene.publish(topic, b"", false);
        }
    }

    #[test]
    fn two_nodes_of_one_name_are_one_alert() {
        let mut scene = healthy();
        let says = |others: &[&str]| {
            let all = others.iter().chain(&["name-taken"]);
            state("n2", json!({}), all.map(|id| condition(id, "raised", &[])).collect())
        };
        scene.node("n2", "state", &state("n2", json!({}), json!([condition("disk-full", "raised", &[])])));
        assert_eq!(scene.published_alerts(), ["disk-full-n2"]);
        for _ in 0..5 {
            scene.node("n2", "state", &says(&["disk-full"]));
            scene.second(&ALL, &ALL, &[("n1", "n2", "cut"), ("n3", "n2", "cut")]);
            scene.node("n2", "state", &says(&["memory-low"]));
            scene.second(&ALL, &ALL, &both_ways("n2", &ALL, "cut"));
            assert_eq!(scene.published_alerts(), ["name-taken-n2"]);
        }
        assert_eq!(scene.alerts_ever(), ["disk-full-n2", "name-taken-n2"]);
        let alone = json!([condition("name-taken", "clear", &[]), condition("disk-full", "raised", &[])]);
        for _ in 0..5 {
            scene.node("n2", "state", &state("n2", json!({}), alone.clone()));
            scene.second(&ALL, &ALL, &[]);
        }
        assert_eq!(scene.published_alerts(), ["disk-full-n2"]);
    }

    #[test]
    fn what_an_earlier_run_raised_stands_until_every_node_has_spoken() {
        let mut scene = Scene::new(Settings::default());
        let mut said = row("n2", &ALL, &[]);
        said["interval_ms"] = json!(60_000);
        scene.publish("bramble/home/node/n2/mesh", said.to_string().as_bytes(), true);
        scene.publish("bramble/home/cluster/alert/old", b"{", true);
        let gone = Effect::Remove(Topic::Cluster(ClusterTopic::Alert(name("old"))));
        wait(&mut scene, 4 * 89);
        assert!(!scene.effects.contains(&gone));
        wait(&mut scene, 8);
        assert!(scene.effects.contains(&gone));
    }

    #[test]
    fn a_link_that_stays_cut_is_named_when_its_node_is_back_and_not_with_the_next_row() {
        let mut scene = shipped(&FOUR);
        let three = ["n1", "n2", "n3"];
        three.iter().for_each(|node| say(&mut scene, node, &FOUR, &[(node, "n4", "unknown")]));
        wait(&mut scene, 4);
        three.iter().for_each(|node| say(&mut scene, node, &FOUR, &[("n4", node, "cut")]));
        wait(&mut scene, 8);
        assert_eq!(scene.published_alerts(), ["node-gone-n4"]);
        FOUR.iter().for_each(|node| say(&mut scene, node, &FOUR, &[("n4", "n1", "cut")]));
        wait(&mut scene, 16);
        assert_eq!(scene.published_alerts(), ["path-cut-n4-n1"]);
    }

    #[test]
    fn links_that_wait_take_no_room_from_their_cause() {
        let mut scene = Scene::new(Settings { max_alerts: 2, ..Settings::default() });
        FOUR.iter().for_each(|node| scene.node(node, "availability", "online"));
        (0..3).for_each(|_| scene.second(&FOUR, &FOUR, &[]));
        let three = ["n1", "n2", "n3"];
        three.iter().for_each(|node| scene.row(node, &FOUR, &[(node, "n4", "unknown")]));
        (0..4).for_each(|_| scene.second(&FOUR, &three, &three.map(|node| ("n4", node, "cut"))));
        assert_eq!(ever(&scene), ["node-gone-n4"]);
    }
}
