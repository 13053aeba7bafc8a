//! All that the aggregator knows of its cluster. It changes only by absorbing messages and ticks of the clock.
//!
//! Pure and synchronous: no sockets, no files, no clock; time comes in as an argument. Everything that arrives is
//! checked, and what fails is counted by kind and dropped whole. Everything that is kept is bounded: nodes, bytes,
//! alerts, lines of evidence.
//!
//! The time that comes in and is kept is steady and never jumps; what is said of it goes by the wall clock, see [`Wall`].
//! A node's own clock may be wrong by years, so its `ts` is only shown, never compared with ours. How old something
//! is counts from the moment it arrived; what the broker had stored before we came has an unknown age and is shown as
//! "last known", and it is no sight of a link.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};
use serde::de::DeserializeOwned;
use wire::{
    clock::Wall,
    cluster::{Alert, AlertEvent, ClusterState},
    payload::Payload,
    report::{
        self, BadMessage, EventType, Header, MAX_PAYLOAD, MeshRow, NodeFindings, NodeInfo, NodeRecord,
        NodeState, OFFLINE, ONLINE, PeerReport, VERSION, Way,
    },
    topic::{ClusterTopic, Name, NodeTopic, NotOurs, Topic},
};

use crate::alert::{Alerts, Sight};

/// How often the cluster notices that time passes, where that is urgent.
pub const TICK: Duration = Duration::from_millis(250);

/// All nodes by name.
pub type Nodes = BTreeMap<Name, Node>;

/// Bounds and waits. The defaults are what the program runs with; tests shorten and narrow them.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Most nodes that are taken up.
    pub max_nodes: usize,
    /// Most bytes of payload that are kept, all nodes together.
    pub max_bytes: usize,
    /// Most alerts that are raised at the same time.
    pub max_alerts: usize,
    /// An alert is over when its cause was seen fine for this long.
    pub clear_after: SignedDuration,
    /// A node that said nothing for this long is reported, although its last will has not come.
    pub silent_after: SignedDuration,
    /// Alerts of an earlier run that are not raised again this long after the connection are taken back.
    pub settle: SignedDuration,
    /// The cluster's state is not said earlier than this after the connection.
    pub first_word: SignedDuration,
    /// The cluster's state is said again after this long without a change; it expires after three times this.
    pub say_again: SignedDuration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_nodes: 10_000,
            max_bytes: 256 * 1024 * 1024,
            max_alerts: 1_000,
            clear_after: SignedDuration::from_secs(3),
            silent_after: SignedDuration::from_secs(30),
            settle: SignedDuration::from_secs(15),
            first_word: SignedDuration::from_secs(3),
            say_again: SignedDuration::from_secs(5),
        }
    }
}

/// What can happen to a cluster, besides that time passes.
#[derive(Clone, Copy, Debug)]
pub enum Message<'a> {
    /// A message from the broker.
    Published {
        /// Its topic, as it came.
        topic: &'a str,
        /// Its payload, as it came; empty when a retained topic was emptied.
        payload: &'a [u8],
        /// Whether the broker says that it was stored.
        retained: bool,
    },
    /// The broker is there; everything that it has stored comes next.
    BrokerConnected,
    /// The broker is away.
    BrokerGone {
        /// Cause and, where there is one, next step.
        why: &'a str,
    },
}

/// What is to be done about it.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Publish a retained message.
    Publish {
        /// Where.
        topic: Topic,
        /// JSON.
        payload: Vec<u8>,
        /// After which the broker forgets it.
        expiry: Option<Duration>,
    },
    /// Publish something that happened, not retained.
    Tell {
        /// Where.
        topic: Topic,
        /// JSON.
        payload: Vec<u8>,
        /// After which it is no news.
        expiry: Duration,
    },
    /// Empty a retained topic.
    Remove(Topic),
    /// Something that the page shows is different.
    PageChanged,
    /// A line for the journal.
    Log(Line),
}

/// A line for the journal: only changes are worth one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Whether somebody should look.
    pub warn: bool,
    /// The line.
    pub text: String,
    /// The alert that it is about.
    pub alert: Option<Name>,
    /// The node that it is about.
    pub node: Option<Name>,
}

/// Why a message was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// More than [`MAX_PAYLOAD`] bytes.
    TooLarge,
    /// Not the JSON, or not the word, that the topic carries.
    NotJson,
    /// A version that this build does not read.
    Version,
    /// The header names another cluster or node than the topic.
    Misplaced,
    /// The topic is another cluster's.
    Foreign,
    /// The topic is none of ours.
    UnknownTopic,
    /// A level of the topic is no valid name.
    BadName,
    /// Well-formed, but with an id or a number that cannot be true.
    Content,
    /// One node more than the bound.
    TooManyNodes,
    /// More bytes than the bound.
    NoRoom,
}

impl Refusal {
    /// All of them, in order.
    pub const ALL: [Self; 10] = [
        Self::TooLarge,
        Self::NotJson,
        Self::Version,
        Self::Misplaced,
        Self::Foreign,
        Self::UnknownTopic,
        Self::BadName,
        Self::Content,
        Self::TooManyNodes,
        Self::NoRoom,
    ];

    /// The word for metrics and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooLarge => "too-large",
            Self::NotJson => "not-json",
            Self::Version => "version",
            Self::Misplaced => "misplaced",
            Self::Foreign => "foreign",
            Self::UnknownTopic => "unknown-topic",
            Self::BadName => "bad-name",
            Self::Content => "content",
            Self::TooManyNodes => "too-many-nodes",
            Self::NoRoom => "no-room",
        }
    }
}

impl From<BadMessage> for Refusal {
    fn from(bad: BadMessage) -> Self {
        match bad {
            BadMessage::TooLarge(_) => Self::TooLarge,
            BadMessage::Version(_) => Self::Version,
            BadMessage::Json(_) => Self::NotJson,
            BadMessage::Misplaced(_) => Self::Misplaced,
        }
    }
}

impl From<NotOurs> for Refusal {
    fn from(not_ours: NotOurs) -> Self {
        match not_ours {
            NotOurs::Unknown => Self::UnknownTopic,
            NotOurs::Foreign => Self::Foreign,
            NotOurs::BadName(_) => Self::BadName,
        }
    }
}

/// What a node said, and when we heard it.
#[derive(Clone, Debug)]
pub struct Said<T> {
    /// The message.
    pub what: T,
    /// When it arrived here, by our steady clock.
    pub heard: Timestamp,
    /// Whether it was said then; `false` when the broker had it stored, so that its age is unknown.
    pub live: bool,
    /// Size of its payload.
    bytes: usize,
    /// The connection on which it arrived.
    connection: u32,
}

/// What a node's availability topic says, unless the node itself proves otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Nothing; all that we know was stored.
    LastKnown,
    /// Connected to the broker.
    Online,
    /// Not connected to the broker: its last will, or its own word when it left.
    Offline,
}

/// How recently a node gave its row of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Beat {
    /// In time.
    Live,
    /// One is overdue: it may be gone, or late.
    Missed,
    /// None for three periods, or none yet: it sees nothing.
    Stale,
}

/// One node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its connection to the broker.
    pub presence: Presence,
    /// Since when.
    pub since: Timestamp,
    /// Who it is.
    pub info: Option<Said<NodeInfo>>,
    /// Its numbers and conditions.
    pub state: Option<Said<NodeState>>,
    /// Its verdicts on the requirements.
    pub findings: Option<Said<NodeFindings>>,
    /// Its row of the mesh.
    pub row: Option<Said<MeshRow>>,
    /// What it was when the clock was last looked at.
    beat: Beat,
}

impl Node {
    fn new(now: Timestamp) -> Self {
        Self {
            presence: Presence::LastKnown,
            since: now,
            info: None,
            state: None,
            findings: None,
            row: None,
            beat: Beat::Stale,
        }
    }

    /// The row, as long as it still says something about this moment.
    pub fn fresh_row(&self, now: Timestamp) -> Option<&MeshRow> {
        (self.beat(now) < Beat::Stale).then(|| self.row.as_ref().map(|row| &row.what)).flatten()
    }

    /// The row's peers, also of a row that is no longer fresh.
    pub fn peers(&self) -> impl Iterator<Item = (&Name, &PeerReport)> {
        self.row.iter().flat_map(|row| &row.what.peers)
    }

    /// How recently the row came.
    pub fn beat(&self, now: Timestamp) -> Beat {
        let Some(row) = self.row.as_ref().filter(|row| row.live && self.presence != Presence::Offline) else {
            return Beat::Stale;
        };
        let age = now.duration_since(row.heard);
        let interval = interval(&row.what);
        if age <= interval + interval / 2 {
            Beat::Live
        } else if age <= (interval * 3).max(SignedDuration::from_secs(3)) {
            Beat::Missed
        } else {
            Beat::Stale
        }
    }

    /// When it last said anything; `None` when all that we have was stored before we came.
    pub fn heard(&self) -> Option<Timestamp> {
        fn of<T>(said: &Option<Said<T>>) -> Option<Timestamp> {
            said.as_ref().filter(|said| said.live).map(|said| said.heard)
        }
        [of(&self.info), of(&self.state), of(&self.findings), of(&self.row)].into_iter().flatten().max()
    }

    /// Whether it has said nothing for `after` since it connected, or for three of its own intervals when these are
    /// longer; always, when all that we have was stored before we came.
    pub fn is_silent(&self, after: SignedDuration, now: Timestamp) -> bool {
        let connected = (self.presence == Presence::Online).then_some(self.since);
        let own = self.row.as_ref().map_or(SignedDuration::ZERO, |row| interval(&row.what) * 3);
        self.heard().max(connected).is_none_or(|last| now.duration_since(last) >= after.max(own))
    }

    /// The slowest median of its row, microseconds, and the peer.
    pub fn worst_round_trip(&self, now: Timestamp) -> Option<(&Name, f64)> {
        let peers = self.fresh_row(now)?.peers.iter();
        let medians = peers.filter_map(|(name, peer)| Some((name, peer.round_trip?.median_us)));
        medians.max_by(|(_, a), (_, b)| a.total_cmp(b))
    }

    /// Takes up what it said; on an error nothing has changed.
    fn take(&mut self, leaf: NodeTopic, heard: &Heard<'_>) -> Result<(), Refusal> {
        let live = match leaf {
            NodeTopic::Availability => {
                let word = match heard.payload {
                    word if word == ONLINE.as_bytes() => Presence::Online,
                    word if word == OFFLINE.as_bytes() => Presence::Offline,
                    _ => return Err(Refusal::NotJson),
                };
                self.meet(word, heard.now);
                return Ok(());
            }
            NodeTopic::Info => heard.read_into(&mut self.info, |m| &m.header, NodeInfo::is_plausible),
            NodeTopic::State => heard.read_into(&mut self.state, |m| &m.header, plausible_state),
            NodeTopic::Findings => heard.read_into(&mut self.findings, |m| &m.header, plausible_findings),
            NodeTopic::Mesh => heard.read_into(&mut self.row, |m| &m.header, plausible_row),
            NodeTopic::Event | NodeTopic::History | NodeTopic::Request(_) | NodeTopic::Response(_) => {
                return Ok(());
            }
        }?;
        // Who speaks is there, whatever the last will of an older connection says.
        if live {
            self.meet(Presence::Online, heard.now);
        }
        self.beat = self.beat(heard.now);
        Ok(())
    }

    fn meet(&mut self, presence: Presence, now: Timestamp) {
        if self.presence != presence {
            self.presence = presence;
            self.since = now;
        }
    }

    fn forget(&mut self, leaf: NodeTopic) {
        match leaf {
            NodeTopic::Availability => self.presence = Presence::LastKnown,
            NodeTopic::Info => self.info = None,
            NodeTopic::State => self.state = None,
            NodeTopic::Findings => self.findings = None,
            NodeTopic::Mesh => self.row = None,
            NodeTopic::Event | NodeTopic::History | NodeTopic::Request(_) | NodeTopic::Response(_) => {}
        }
    }

    fn is_empty(&self) -> bool {
        self.presence == Presence::LastKnown
            && self.info.is_none()
            && self.state.is_none()
            && self.findings.is_none()
            && self.row.is_none()
    }

    fn bytes(&self) -> usize {
        fn of<T>(said: &Option<Said<T>>) -> usize {
            said.as_ref().map_or(0, |said| said.bytes)
        }
        of(&self.info) + of(&self.state) + of(&self.findings) + of(&self.row)
    }
}

/// Time between two batches of probes: so much later the others have seen the same and said so.
pub(crate) fn period(row: &MeshRow) -> SignedDuration {
    SignedDuration::from_millis(i64::from(row.period_ms).clamp(100, 60_000))
}

/// Time between two rows, at most what a node can be told: a hostile number must not keep a dead node's row fresh for days.
fn interval(row: &MeshRow) -> SignedDuration {
    SignedDuration::from_millis(i64::from(row.interval_ms).min(3_600_000)).max(period(row))
}

fn presence_line(name: &Name, presence: Option<Presence>) -> Option<Effect> {
    let (warn, text) = match presence {
        Some(Presence::Online) => (false, format!("{name} is connected")),
        Some(Presence::Offline) => (true, format!("{name} is no longer connected")),
        Some(Presence::LastKnown) => return None,
        None => (false, format!("{name} has left")),
    };
    Some(Effect::Log(Line { warn, text, alert: None, node: Some(name.clone()) }))
}

/// Whether the broker is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// Connected.
    pub connected: bool,
    /// Since when.
    pub since: Timestamp,
    /// Why not, when it is not.
    pub why: String,
}

/// The cluster.
#[derive(Debug)]
pub struct Cluster {
    name: Name,
    settings: Settings,
    nodes: Nodes,
    alerts: Alerts,
    broker: Option<Broker>,
    /// Counts the broker's connections: of one topic only the first message on each can be a stored one.
    connection: u32,
    refused: BTreeMap<Refusal, u64>,
    records: u64,
    bytes: usize,
    said: Option<(Timestamp, ClusterState)>,
    /// The alerts that everybody was told of, also by an earlier run.
    told: BTreeMap<Name, Alert>,
    wall: Wall,
}

impl Cluster {
    /// Knows nothing yet.
    pub fn new(name: Name, settings: Settings) -> Self {
        Self {
            alerts: Alerts::new(&settings),
            name,
            settings,
            nodes: Nodes::new(),
            broker: None,
            connection: 0,
            refused: BTreeMap::new(),
            records: 0,
            bytes: 0,
            said: None,
            told: BTreeMap::new(),
            wall: Wall::default(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// All nodes.
    pub fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// What is wrong.
    pub fn alerts(&self) -> &Alerts {
        &self.alerts
    }

    /// The broker; `None` until the first attempt has ended.
    pub fn broker(&self) -> Option<&Broker> {
        self.broker.as_ref()
    }

    /// How the times in here are told.
    pub fn wall(&self) -> Wall {
        self.wall
    }

    /// The wall clock has jumped: every alert is said again with the right time, and is no news. The state is said every few
    /// seconds anyway.
    pub fn jumped(&mut self, wall: Wall, now: Timestamp) -> Vec<Effect> {
        let mut effects = vec![Effect::PageChanged];
        self.wall = wall;
        self.alerts.jumped(wall);
        self.alerts.drain(&mut effects);
        self.tell(now, &mut effects);
        effects
    }

    /// How many messages were dropped, by kind.
    pub fn refused(&self, kind: Refusal) -> u64 {
        self.refused.get(&kind).copied().unwrap_or(0)
    }

    /// Bytes of payload that are kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes one message up. `now` must not go backwards.
    pub fn absorb(&mut self, message: Message<'_>, now: Timestamp) -> Vec<Effect> {
        let mut effects = Vec::new();
        match message {
            Message::BrokerConnected => {
                self.connection = self.connection.wrapping_add(1);
                self.broker = Some(Broker { connected: true, since: now, why: String::new() });
                effects.push(Effect::PageChanged);
            }
            Message::BrokerGone { why } => {
                let since = self
                    .broker
                    .as_ref()
                    .filter(|broker| !broker.connected)
                    .map_or(now, |broker| broker.since);
                self.broker = Some(Broker { connected: false, since, why: why.to_owned() });
                effects.push(Effect::PageChanged);
            }
            Message::Published { topic, payload, retained } => {
                let outcome = self.published(topic, payload, retained, now, &mut effects);
                if let Err(refusal) = outcome {
                    let count = self.refused.entry(refusal).or_default();
                    *count += 1;
                    if *count == 1 {
                        let text =
                            format!("message dropped: {} (further ones are only counted)", refusal.as_str());
                        effects.push(Effect::Log(Line { warn: true, text, alert: None, node: None }));
                    }
                }
            }
        }
        if self.alerts.drain(&mut effects) {
            self.tell(now, &mut effects);
            self.say_state(true, now, &mut effects);
        }
        effects
    }

    /// Tells what was raised and what is over, once each: an alert that an earlier run raised is no news.
    fn tell(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let mut news = Vec::new();
        for effect in effects.iter() {
            match effect {
                Effect::Publish { topic: Topic::Cluster(ClusterTopic::Alert(id)), payload, .. } => {
                    let alert: Alert = serde_json::from_slice(payload).expect("we have just written it");
                    if self.told.insert(id.clone(), alert.clone()).is_none() {
                        news.push((EventType::Raised, alert));
                    }
                }
                Effect::Remove(Topic::Cluster(ClusterTopic::Alert(id))) => {
                    news.extend(self.told.remove(id).map(|alert| (EventType::Cleared, alert)));
                }
                _ => {}
            }
        }
        effects.extend(news.into_iter().map(|(event_type, alert)| {
            let ts = self.wall.tell(now);
            let event = AlertEvent { event_type, ts, cluster: self.name.clone(), alert };
            Effect::Tell {
                topic: Topic::Cluster(ClusterTopic::Event),
                payload: event.to_json(),
                expiry: EVENT_EXPIRY,
            }
        }));
    }

    /// Whether nothing is raised, nor waits to be.
    pub fn is_calm(&self) -> bool {
        self.alerts.is_empty()
    }

    /// How long until [`Cluster::tick`] is to be called the next time: about four times a second while something is raised, or
    /// is late by little.
    pub fn pace(&self) -> Duration {
        let soonest =
            self.nodes.values().filter_map(|node| node.row.as_ref()).map(|row| interval(&row.what)).min();
        match soonest {
            Some(interval) if self.is_calm() => (interval / 8).unsigned_abs().clamp(TICK, 4 * TICK),
            _ => TICK,
        }
    }

    /// Lets time pass, see [`Cluster::pace`].
    pub fn tick(&mut self, now: Timestamp) -> Vec<Effect> {
        let mut effects = Vec::new();
        let silence = self.silence_counts(now);
        let mut overdue = Vec::new();
        for (name, node) in &mut self.nodes {
            let beat = node.beat(now);
            let silent = silence
                && self.alerts.node_trouble(name).is_none()
                && node.is_silent(self.settings.silent_after, now);
            if beat != node.beat || silent {
                node.beat = beat;
                overdue.push(name.clone());
            }
        }
        let sight = Sight { nodes: &self.nodes, silence, now };
        for name in &overdue {
            self.alerts.review(&sight, name);
        }
        self.alerts.review_raised(&sight);
        if self.alerts.inherits()
            && let Some(broker) = &self.broker
            && broker.connected
            && now.duration_since(broker.since) >= self.settings.settle
            && now.duration_since(broker.since) >= self.longest_interval() * 3 / 2
        {
            self.alerts.drop_inherited();
        }
        let changed = self.alerts.drain(&mut effects);
        self.tell(now, &mut effects);
        if changed || !overdue.is_empty() {
            effects.push(Effect::PageChanged);
        }
        self.say_state(changed, now, &mut effects);
        effects
    }

    /// Within which every node that is there has spoken, as their rows say.
    fn longest_interval(&self) -> SignedDuration {
        let rows = self.nodes.values().filter_map(|node| node.row.as_ref());
        rows.map(|row| interval(&row.what)).max().unwrap_or_default()
    }

    /// Whether silence means something: only when the broker has been there for a while.
    fn silence_counts(&self, now: Timestamp) -> bool {
        self.broker
            .as_ref()
            .is_some_and(|b| b.connected && now.duration_since(b.since) >= self.settings.silent_after)
    }

    fn published(
        &mut self,
        topic: &str,
        payload: &[u8],
        retained: bool,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        match Topic::parse(topic, &self.name)? {
            // Events are for others; what nodes are asked and answer is not subscribed to.
            Topic::Node(_, NodeTopic::Event | NodeTopic::Request(_) | NodeTopic::Response(_)) => {}
            Topic::Node(name, leaf) => {
                if payload.len() > MAX_PAYLOAD {
                    return Err(Refusal::TooLarge);
                }
                let before = self.nodes.get(&name).map(|node| node.presence);
                self.node_said(&name, leaf, payload, retained, now)?;
                let after = self.nodes.get(&name).map(|node| node.presence);
                if before != after {
                    effects.extend(presence_line(&name, after));
                }
                let silence = self.silence_counts(now);
                self.alerts.review(&Sight { nodes: &self.nodes, silence, now }, &name);
                effects.push(Effect::PageChanged);
            }
            Topic::Cluster(ClusterTopic::Alert(id)) if payload.is_empty() => {
                if !self.alerts.is_told(&id) {
                    self.told.remove(&id);
                }
                self.alerts.stored(id, payload)?;
            }
            // What is not stored is the echo of our own word, which may be of before it was taken back.
            Topic::Cluster(ClusterTopic::Alert(id)) if retained => {
                if let Some(alert) = self.alerts.stored(id, payload)? {
                    self.told.entry(alert.id.clone()).or_insert(alert);
                }
            }
            Topic::Cluster(_) => {}
        }
        Ok(())
    }

    fn node_said(
        &mut self,
        name: &Name,
        leaf: NodeTopic,
        payload: &[u8],
        retained: bool,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        if leaf == NodeTopic::History {
            return self.happened(name, payload, retained);
        }
        let Self { nodes, settings, bytes, .. } = self;
        if payload.is_empty() {
            if let Some(node) = nodes.get_mut(name) {
                *bytes -= node.bytes();
                node.forget(leaf);
                *bytes += node.bytes();
                if node.is_empty() {
                    nodes.remove(name);
                }
            }
            return Ok(());
        }
        let heard = Heard {
            payload,
            cluster: &self.name,
            node: name,
            retained,
            now,
            connection: self.connection,
            room: settings.max_bytes.saturating_sub(*bytes),
        };
        let full = nodes.len() >= settings.max_nodes;
        match nodes.get_mut(name) {
            Some(node) => {
                let before = node.bytes();
                node.take(leaf, &heard)?;
                *bytes = *bytes - before + node.bytes();
            }
            None if full => return Err(Refusal::TooManyNodes),
            None => {
                let mut node = Node::new(now);
                node.take(leaf, &heard)?;
                *bytes += node.bytes();
                nodes.insert(name.clone(), node);
            }
        }
        Ok(())
    }

    /// Counts what happened. It may be told late, so it says nothing about the present: not even that its node is there.
    fn happened(&mut self, name: &Name, payload: &[u8], retained: bool) -> Result<(), Refusal> {
        if payload.is_empty() {
            return Ok(());
        }
        let _: NodeRecord = report::read(payload, &self.name, name)?;
        // Nodes do not retain records, so a stored one is somebody else's doing.
        if retained {
            return Err(Refusal::Content);
        }
        self.records += 1;
        Ok(())
    }

    /// Records of what happened on nodes.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Says the cluster's state when it changed, and from time to time.
    fn say_state(&mut self, changed: bool, now: Timestamp, effects: &mut Vec<Effect>) {
        // After a connection the nodes get their say first, so that what still holds is not taken back for a second.
        let heard_them = self.broker.as_ref().is_some_and(|broker| {
            broker.connected && now.duration_since(broker.since) >= self.settings.first_word
        });
        if !heard_them {
            return;
        }
        let age = self.said.as_ref().map(|(at, _)| now.duration_since(*at));
        if !changed && age.is_some_and(|age| age < SignedDuration::from_secs(1)) {
            return;
        }
        let state = self.summary(now);
        let same = self.said.as_ref().is_some_and(|(_, said)| {
            (said.nodes, said.nodes_ready, &said.alerts) == (state.nodes, state.nodes_ready, &state.alerts)
        });
        if same && age.is_some_and(|age| age < self.settings.say_again) {
            return;
        }
        let expiry = (self.settings.say_again * 3).unsigned_abs();
        effects.push(publish(Topic::Cluster(ClusterTopic::State), &state, Some(expiry)));
        self.said = Some((now, state));
    }

    /// The cluster in a few numbers.
    pub fn summary(&self, now: Timestamp) -> ClusterState {
        let ready = |(name, node): &(&Name, &Node)| {
            node.presence == Presence::Online && self.alerts.node_trouble(name).is_none()
        };
        let trips = self.nodes.iter().filter_map(|(name, node)| {
            let (peer, us) = node.worst_round_trip(now)?;
            Some((name, peer, us))
        });
        let worst = trips.max_by(|(.., a), (.., b)| a.total_cmp(b));
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        ClusterState {
            v: VERSION,
            ts: self.wall.tell(now),
            cluster: self.name.clone(),
            nodes: count(self.nodes.len()),
            nodes_ready: count(self.nodes.iter().filter(ready).count()),
            alerts: self.alerts.raised().take(STATE_ALERTS).map(|a| (a.id, shortened(&a.title))).collect(),
            worst_round_trip_ms: worst.map(|(.., us)| us / 1000.0),
            worst_pair: worst.map(|(from, to, _)| format!("{from} -> {to}")),
        }
    }
}

/// How long an alert's beginning or end is news.
const EVENT_EXPIRY: Duration = Duration::from_secs(3600);

/// Alerts that the state message lists: with the longest titles that others can make us write, it stays below
/// [`MAX_PAYLOAD`]. Each has its own topic anyway.
const STATE_ALERTS: usize = 30;

/// A retained message of ours.
pub(crate) fn publish(topic: Topic, message: &impl Payload, expiry: Option<Duration>) -> Effect {
    Effect::Publish { topic, payload: message.to_json(), expiry }
}

/// A text of others, cut to what a person reads, in one line.
pub(crate) fn shortened(text: &str) -> String {
    const LONGEST: usize = 300;
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let mut short: String = text.chars().map(plain).take(LONGEST).collect();
    if text.chars().nth(LONGEST).is_some() {
        short.push('…');
    }
    short
}

/// One message of a node, and the circumstances.
struct Heard<'a> {
    payload: &'a [u8],
    cluster: &'a Name,
    node: &'a Name,
    retained: bool,
    now: Timestamp,
    connection: u32,
    /// Bytes that may be kept in addition.
    room: usize,
}

impl Heard<'_> {
    /// Reads the payload into `slot`, and says whether it was said just now.
    fn read_into<T: DeserializeOwned>(
        &self,
        slot: &mut Option<Said<T>>,
        header: fn(&T) -> &Header,
        plausible: fn(&T) -> bool,
    ) -> Result<bool, Refusal> {
        let what: T = report::read(self.payload, self.cluster, self.node)?;
        if !plausible(&what) {
            return Err(Refusal::Content);
        }
        let before = slot.as_ref().map_or(0, |said| said.bytes);
        if self.payload.len() > self.room + before {
            return Err(Refusal::NoRoom);
        }
        let connection = self.connection;
        // The broker hands out what it stored once per connection; a second message was said meanwhile.
        let live = !self.retained || slot.as_ref().is_some_and(|said| said.connection == connection);
        if let Some(said) = slot
            && !live
            && header(&said.what) == header(&what)
        {
            // The stored copy of what we heard ourselves before the connection broke.
            said.connection = connection;
            return Ok(false);
        }
        *slot = Some(Said { what, heard: self.now, live, bytes: self.payload.len(), connection });
        Ok(live)
    }
}

/// Ids become metric names, alert topics and HTML attributes.
fn plausible_state(state: &NodeState) -> bool {
    let id = |id: &String| {
        (1..=63).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
    };
    state.readings.keys().all(id) && state.conditions.iter().all(|c| Name::new(&c.id).is_ok())
}

fn plausible_findings(findings: &NodeFindings) -> bool {
    findings.findings.iter().all(|finding| Name::new(&finding.id).is_ok())
}

fn plausible_row(row: &MeshRow) -> bool {
    let way = |way: &Way| way.loss.is_none_or(|loss| (0.0..=1.0).contains(&loss));
    row.peers.iter().all(|(peer, report)| {
        *peer != row.header.node
            && way(&report.out)
            && way(&report.incoming)
            && report.round_trip.is_none_or(|t| [t.median_us, t.min_us, t.max_us].iter().all(|us| *us >= 0.0))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::{
        mesh,
        scene::{Fault, Scene, condition, row, state},
    };
    use wire::report::WayState;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn link(scene: &Scene, from: &str, to: &str) -> WayState {
        mesh::between(scene.cluster.nodes(), &name(from), &name(to), scene.now).way.state
    }

    #[test]
    fn time_is_looked_at_closely_while_something_is_wrong_or_reports_are_frequent() {
        let mut scene = Scene::new(Settings::default());
        assert_eq!(scene.cluster.pace(), TICK, "nobody has said how often it reports");
        let all = ["n1", "n2"];
        let slow = |node: &str, faults: &[Fault<'_>]| {
            let mut row = row(node, &all, faults);
            row["interval_ms"] = json!(10_000);
            row.to_string()
        };
        for node in all {
            scene.node(node, "mesh", &slow(node, &[]));
        }
        assert!(scene.cluster.is_calm());
        assert_eq!(scene.cluster.pace(), 4 * TICK);
        scene.node("n2", "mesh", &slow("n2", &[("n1", "n2", "cut")]));
        scene.wait_ms(5000);
        assert!(!scene.cluster.is_calm());
        assert_eq!(scene.cluster.pace(), TICK);
        scene.node("n2", "mesh", &row("n2", &all, &[]).to_string());
        assert_eq!(scene.cluster.pace(), TICK, "it reports once a second");
    }

    #[test]
    fn hostile_messages_are_counted_by_kind_and_change_nothing() {
        let mut scene = Scene::new(Settings::default());
        let good = row("n1", &["n1", "n2"], &[]).to_string();
        let mesh = "bramble/home/node/n1/mesh";
        let with_state = |readings, conditions| state("n1", readings, conditions);
        let reading = json!({"title": "t", "value": 1, "unit": "1", "kind": "gauge"});
        let table: Vec<(&str, String, Refusal)> = vec![
            (mesh, "x".repeat(1024 * 1024), Refusal::TooLarge),
            (mesh, "{".into(), Refusal::NotJson),
            (mesh, "[[[[[[".repeat(5000), Refusal::NotJson),
            (mesh, good.replace("1000", "-1"), Refusal::NotJson),
            (mesh, good.replace("0.0", "1e999"), Refusal::NotJson),
            (mesh, good.replace("\"n2\"", "\"a/+\\u0000#\""), Refusal::NotJson),
            (mesh, good.replace("\"v\":1", "\"v\":2"), Refusal::Version),
            (mesh, good.replace("home", "away"), Refusal::Misplaced),
            ("bramble/home/node/n3/mesh", good.clone(), Refusal::Misplaced),
            (mesh, good.replace("0.0", "1.5"), Refusal::Content),
            (mesh, good.replace("\"n2\"", "\"n1\""), Refusal::Content),
            ("bramble/home/node/n1/state", with_state(json!({"a b": reading}), json!([])), Refusal::Content),
            (
                "bramble/home/node/n1/state",
                with_state(json!({}), json!([condition("<script>", "raised", &[])])),
                Refusal::Content,
            ),
            ("bramble/home/node/n1/availability", "<b>".into(), Refusal::NotJson),
            ("bramble/away/node/n1/mesh", good.clone(), Refusal::Foreign),
            ("bramble/home/node/n1/else", good.clone(), Refusal::UnknownTopic),
            ("bramble/home/node/n1/mesh/x", good.clone(), Refusal::UnknownTopic),
            ("bramble/home/node/a\0b/mesh", good.clone(), Refusal::BadName),
            ("bramble/home/node/+/mesh", good.clone(), Refusal::BadName),
            ("bramble/home/node/#/mesh", good, Refusal::BadName),
        ];
        for (topic, payload, kind) in table {
            let before = scene.cluster.refused(kind);
            scene.publish(topic, payload.as_bytes(), false);
            let shown: String = payload.chars().take(60).collect();
            assert_eq!(scene.cluster.refused(kind), before + 1, "{topic} {shown}");
            assert!(scene.cluster.nodes().is_empty(), "{topic} {shown}");
        }
    }

    #[test]
    fn nodes_and_bytes_are_bounded() {
        let mut scene = Scene::new(Settings::default());
        for i in 0..10_100 {
            scene.node(&format!("n{i}"), "availability", "online");
        }
        assert_eq!(scene.cluster.nodes().len(), 10_000);
        assert_eq!(scene.cluster.refused(Refusal::TooManyNodes), 100);

        let mut scene = Scene::new(Settings { max_bytes: 10_000, ..Settings::default() });
        let all: Vec<String> = (0..40).map(|i| format!("n{i}")).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        for node in &all {
            scene.row(node, &all[..4], &[]);
        }
        assert!(scene.cluster.bytes() <= 10_000);
        assert!(scene.cluster.refused(Refusal::NoRoom) > 0);
        for node in &all {
            scene.node(node, "mesh", "");
            scene.node(node, "availability", "");
        }
        assert_eq!((scene.cluster.bytes(), scene.cluster.nodes().len()), (0, 0));
    }

    #[test]
    fn a_row_that_stopped_is_unknown_and_not_fine() {
        let mut scene = Scene::new(Settings::default());
        scene.row("n1", &["n1", "n2"], &[]);
        scene.row("n2", &["n1", "n2"], &[]);
        assert_eq!(link(&scene, "n1", "n2"), WayState::Fine);
        scene.wait_ms(2900);
        assert_eq!(link(&scene, "n1", "n2"), WayState::Fine);
        scene.wait_ms(200);
        assert_eq!(link(&scene, "n1", "n2"), WayState::Unknown);
    }

    #[test]
    fn rows_far_apart_hold_until_one_is_overdue() {
        for (interval, holds, ends) in [(10_000, 15_000, 31_000), (60_000, 90_000, 181_000)] {
            let interval = &format!("\"interval_ms\":{interval},");
            let mut scene = Scene::new(Settings::default());
            scene.node(
                "n1",
                "mesh",
                &row("n1", &["n1", "n2"], &[]).to_string().replace("\"interval_ms\":1000,", interval),
            );
            scene.node("n2", "availability", "online");
            scene.wait_ms(holds);
            assert_eq!(link(&scene, "n2", "n1"), WayState::Fine, "{interval}");
            scene.wait_ms(ends - holds);
            assert_eq!(link(&scene, "n2", "n1"), WayState::Unknown, "{interval}");
        }
    }

    #[test]
    fn a_node_that_has_just_connected_is_not_silent() {
        let mut scene = Scene::new(Settings::default());
        scene.wait_ms(40_000);
        scene.node("n1", "availability", "online");
        scene.wait_ms(29_000);
        assert!(scene.alerts_ever().is_empty(), "{:?}", scene.alerts_ever());
        scene.wait_ms(2_000);
        assert_eq!(scene.published_alerts(), ["node-silent-n1"]);
    }

    #[test]
    fn a_node_that_speaks_once_a_minute_is_not_silent_between() {
        for (interval, silent) in [(1000, true), (60_000, false)] {
            let interval = &format!("\"interval_ms\":{interval},");
            let mut scene = Scene::new(Settings::default());
            scene.wait_ms(40_000);
            scene.node("n1", "availability", "online");
            scene.node(
                "n1",
                "mesh",
                &row("n1", &["n1"], &[]).to_string().replace("\"interval_ms\":1000,", interval),
            );
            scene.wait_ms(100_000);
            assert_eq!(
                !scene.published_alerts().is_empty(),
                silent,
                "{interval}: {:?}",
                scene.published_alerts()
            );
            scene.wait_ms(90_000);
            assert!(!scene.published_alerts().is_empty(), "{interval}");
        }
    }

    #[test]
    fn a_period_of_fifty_days_keeps_no_row_fresh() {
        let mut scene = Scene::new(Settings::default());
        let text = row("n1", &["n1", "n2"], &[]).to_string().replace("1000", "4294967295");
        scene.node("n1", "mesh", &text);
        scene.node("n2", "availability", "online");
        assert_eq!(link(&scene, "n2", "n1"), WayState::Fine);
        scene.wait_ms(10_801_000);
        assert_eq!(link(&scene, "n2", "n1"), WayState::Unknown);
    }

    #[test]
    fn what_the_broker_had_stored_is_last_known_until_the_node_speaks() {
        let mut scene = Scene::new(Settings::default());
        let topic = "bramble/home/node/n1/mesh";
        let text = row("n1", &["n1", "n2"], &[]).to_string();
        scene.node("n2", "availability", "online");
        scene.publish(topic, text.as_bytes(), true);
        assert_eq!(scene.cluster.nodes()[&name("n1")].presence, Presence::LastKnown);
        assert_eq!(link(&scene, "n2", "n1"), WayState::Unknown);
        // A broker stores one message per topic: the second one is live, whatever its flag says.
        scene.publish(topic, text.as_bytes(), true);
        assert_eq!(scene.cluster.nodes()[&name("n1")].presence, Presence::Online);
        assert_eq!(link(&scene, "n2", "n1"), WayState::Fine);
        // After a reconnection the stored copy of a message that we heard is the message that we heard.
        scene.absorb(Message::BrokerConnected);
        scene.publish(topic, text.as_bytes(), true);
        assert_eq!(link(&scene, "n2", "n1"), WayState::Fine);
        // Another one may have been said at any time meanwhile.
        scene.absorb(Message::BrokerConnected);
        scene.publish(topic, text.replace("2001-01-01", "2001-01-02").as_bytes(), true);
        assert_eq!(link(&scene, "n2", "n1"), WayState::Unknown);
    }

    #[test]
    fn history_is_counted_and_is_nothing_about_the_present() {
        let mut scene = Scene::new(Settings::default());
        let record = |sequence: u32| {
            format!(
                r#"{{"v":1,"ts":"1971-01-01T00:00:00Z","cluster":"home","node":"n1","run":"0","sequence":{sequence},"kind":"dropped","count":1}}"#
            )
        };
        scene.node("n1", "history", &record(0));
        assert!(scene.cluster.nodes().is_empty());
        scene.node("n1", "availability", "offline");
        scene.node("n1", "history", &record(1));
        assert_eq!(scene.cluster.nodes()[&name("n1")].presence, Presence::Offline);
        assert_eq!(scene.cluster.records(), 2);
        scene.publish("bramble/home/node/n1/history", record(2).as_bytes(), true);
        scene.node("n1", "history", "{}");
        assert_eq!(
            (scene.cluster.refused(Refusal::Content), scene.cluster.refused(Refusal::NotJson)),
            (1, 1)
        );
        assert_eq!(scene.cluster.records(), 2);
    }

    #[test]
    fn a_node_that_speaks_is_there_although_an_old_last_will_came_late() {
        let mut scene = Scene::new(Settings::default());
        scene.node("n1", "availability", "offline");
        assert_eq!(scene.cluster.nodes()[&name("n1")].presence, Presence::Offline);
        scene.row("n1", &["n1", "n2"], &[]);
        assert_eq!(scene.cluster.nodes()[&name("n1")].presence, Presence::Online);
    }

    #[test]
    fn the_state_is_said_on_change_and_every_five_seconds() {
        let mut scene = Scene::new(Settings::default());
        scene.row("n1", &["n1", "n2"], &[]);
        let states = |scene: &Scene| {
            scene
                .effects
                .iter()
                .filter(|e| matches!(e, Effect::Publish { topic: Topic::Cluster(ClusterTopic::State), .. }))
                .count()
        };
        for _ in 0..42 {
            scene.row("n1", &["n1", "n2"], &[]);
            scene.wait_ms(250);
        }
        assert_eq!(states(&scene), 2, "when all had their say, and 5 s later");
        scene.node("n1", "availability", "offline");
        assert_eq!(states(&scene), 3, "with the alert");
    }

    #[test]
    fn no_message_of_ours_is_larger_than_what_is_read() {
        let mut scene = Scene::new(Settings::default());
        for i in 0..50 {
            let mut long = condition("c", "raised", &[]);
            for key in ["title", "evidence", "subject"] {
                long[key] = json!("\u{1}".repeat(2000));
            }
            let node = format!("n{i}");
            scene.node(&node, "state", &state(&node, json!({}), json!([long])));
        }
        scene.wait_ms(3500);
        let sizes = scene.effects.iter().filter_map(|effect| match effect {
            Effect::Publish { payload, .. } => Some(payload.len()),
            _ => None,
        });
        assert_eq!(sizes.clone().count(), 51, "each alert and the state");
        assert!(sizes.max().unwrap() <= MAX_PAYLOAD);
    }

    #[test]
    fn alerts_are_told_once_and_what_an_earlier_run_told_is_no_news() {
        let told = |scene: &Scene| -> Vec<String> {
            let events = scene.effects.iter().filter_map(|effect| match effect {
                Effect::Tell { payload, .. } => serde_json::from_slice::<AlertEvent>(payload).ok(),
                _ => None,
            });
            events.map(|event| format!("{:?} {}", event.event_type, event.alert.id)).collect()
        };
        let raised = state("n1", json!({}), json!([condition("hot", "raised", &[])]));
        let clear = state("n1", json!({}), json!([condition("hot", "clear", &[])]));
        let mut scene = Scene::new(Settings::default());
        scene.node("n1", "state", &raised);
        scene.node("n1", "state", &raised);
        assert_eq!(told(&scene), ["Raised hot-n1"]);
        scene.node("n1", "state", &clear);
        (0..4).for_each(|_| scene.wait_ms(1000));
        assert_eq!(told(&scene), ["Raised hot-n1", "Cleared hot-n1"]);

        let stored = json!({
            "v": 1, "id": "hot-n1", "kind": "hot", "subject": "n1", "title": "t", "severity": "warning",
            "since": "2026-11-23T05:00:00Z", "evidence": []
        });
        let mut scene = Scene::new(Settings::default());
        scene.publish("bramble/home/cluster/alert/hot-n1", stored.to_string().as_bytes(), true);
        scene.node("n1", "state", &raised);
        assert!(told(&scene).is_empty(), "{:?}", told(&scene));
        scene.node("n1", "state", &clear);
        (0..4).for_each(|_| scene.wait_ms(1000));
        assert_eq!(told(&scene), ["Cleared hot-n1"]);
    }

    fn topic() -> impl Strategy<Value = String> {
        let level = prop_oneof!["[a-z0-9-]{0,5}", ".{0,5}", Just("+".to_owned()), Just("n1".to_owned())];
        let leaf = prop_oneof![
            Just("availability".to_owned()),
            Just("info".to_owned()),
            Just("state".to_owned()),
            Just("findings".to_owned()),
            Just("mesh".to_owned()),
            ".{0,5}",
        ];
        prop_oneof![
            ".{0,40}",
            (level.clone(), leaf).prop_map(|(n, l)| format!("bramble/home/node/{n}/{l}")),
            level.prop_map(|id| format!("bramble/home/cluster/alert/{id}")),
        ]
    }

    fn payload() -> impl Strategy<Value = Vec<u8>> {
        let way = prop_oneof![Just("fine"), Just("unknown"), Just("slow"), Just("lossy"), Just("cut")];
        let faults = proptest::collection::vec((0..4_usize, 0..4_usize, way), 0..8);
        let names = ["n1", "n2", "n3", "n4"];
        let status = prop_oneof![Just("clear"), Just("unknown"), Just("raised")];
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..80),
            Just(b"online".to_vec()),
            Just(b"offline".to_vec()),
            Just(Vec::new()),
            (0..4_usize, faults).prop_map(move |(n, faults)| {
                let faults: Vec<_> = faults.into_iter().map(|(a, b, s)| (names[a], names[b], s)).collect();
                row(names[n], &names, &faults).to_string().into_bytes()
            }),
            (0..4_usize, "[a-z<]{1,3}", status).prop_map(move |(n, id, status)| {
                let conditions =
                    json!([condition(&id, status, &["a", "path-cut"]), condition("a", "raised", &[&id])]);
                state(names[n], json!({}), conditions).into_bytes()
            }),
        ]
    }

    proptest! {
        #[test]
        fn anything_is_absorbed_without_a_panic_and_within_the_bounds(
            messages in proptest::collection::vec((topic(), payload(), any::<bool>(), 0..2000_i64, 0..10_u8), 0..60)
        ) {
            let settings = Settings { max_nodes: 5, max_bytes: 20_000, max_alerts: 4, ..Settings::default() };
            let mut scene = Scene::new(settings);
            for (topic, payload, retained, ms, other) in messages {
                match other {
                    0 => scene.absorb(Message::BrokerConnected),
                    1 => scene.absorb(Message::BrokerGone { why: "test" }),
                    _ => scene.publish(&topic, &payload, retained),
                }
                scene.wait_ms(ms);
                prop_assert!(scene.cluster.nodes().len() <= 5);
                prop_assert!(scene.cluster.bytes() <= 20_000);
                prop_assert_eq!(scene.cluster.bytes(), scene.cluster.nodes().values().map(Node::bytes).sum::<usize>());
                let raised: Vec<String> = scene.cluster.alerts().raised().map(|a| a.id.to_string()).collect();
                prop_assert!(raised.len() <= 4);
                // The retained topics are exactly the raised alerts.
                let mut sorted = raised;
                sorted.sort();
                prop_assert_eq!(scene.published_alerts(), sorted);
            }
        }
    }
}
