//! What a node says. Readings and conditions describe themselves, so that Home Assistant, Prometheus and the
//! page need no edit when a probe is added.
//!
//! # Versions
//! Every message carries `v`. A reader takes its own version and the two before it; a newer one is refused and
//! counted. Fields may be added within a version (readers ignore what they do not know); a field that changes
//! meaning, or goes, makes a new version. `golden/` holds messages of every released version.

use std::{collections::BTreeMap, net::Ipv4Addr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::topic::Name;

/// The version that this build writes.
pub const VERSION: u32 = 1;
/// The oldest version that this build reads.
pub const OLDEST: u32 = 1;
/// The largest payload that is read or written, bytes: the mesh row of a node with 1,024 peers. Brokers refuse more in
/// their own ways.
pub const MAX_PAYLOAD: usize = 512 * 1024;

/// Payload of an availability topic while the speaker is connected.
pub const ONLINE: &str = "online";
/// Payload of an availability topic otherwise.
pub const OFFLINE: &str = "offline";

/// What every JSON message begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Header {
    /// Version of the message's layout.
    pub v: u32,
    /// When the content was true, by the speaker's wall clock.
    pub ts: Timestamp,
    /// The speaker's cluster; equals the topic's level.
    pub cluster: Name,
    /// The speaker; equals the topic's level.
    pub node: Name,
}

/// Why a payload is not taken.
#[derive(Debug, thiserror::Error)]
pub enum BadMessage {
    /// More than [`MAX_PAYLOAD`].
    #[error("payload of {0} bytes, at most {MAX_PAYLOAD} are read")]
    TooLarge(usize),
    /// A version outside [`OLDEST`] to [`VERSION`].
    #[error("message version {0}, this build reads {OLDEST} to {VERSION}")]
    Version(u32),
    /// Not the JSON that this topic carries.
    #[error("not the JSON that this topic carries")]
    Json(#[from] serde_json::Error),
    /// The header names another cluster or node than the topic.
    #[error("the message says it is from {0}, the topic says otherwise")]
    Misplaced(String),
}

/// Reads a JSON message of `cluster` and `node` and checks size, version and origin, in this order.
///
/// # Errors
/// See [`BadMessage`]; nothing of a refused message is used.
pub fn read<T: DeserializeOwned>(payload: &[u8], cluster: &Name, node: &Name) -> Result<T, BadMessage> {
    let header: Header = read_versioned(payload)?;
    if header.cluster != *cluster || header.node != *node {
        return Err(BadMessage::Misplaced(format!("{}/{}", header.cluster, header.node)));
    }
    Ok(serde_json::from_slice(payload)?)
}

/// Reads a JSON message and checks its size and version.
///
/// # Errors
/// See [`BadMessage`]; nothing of a refused message is used.
pub fn read_versioned<T: DeserializeOwned>(payload: &[u8]) -> Result<T, BadMessage> {
    #[derive(Deserialize)]
    struct Versioned {
        v: u32,
    }
    if payload.len() > MAX_PAYLOAD {
        return Err(BadMessage::TooLarge(payload.len()));
    }
    let Versioned { v } = serde_json::from_slice(payload)?;
    if !(OLDEST..=VERSION).contains(&v) {
        return Err(BadMessage::Version(v));
    }
    Ok(serde_json::from_slice(payload)?)
}

/// Who a node is and where its peers reach it: its presence. Retained, said at every connection and on change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeInfo {
    /// Version, time, origin.
    #[serde(flatten)]
    pub header: Header,
    /// Random, made at first start, kept in the state directory: eight hexadecimal digits.
    pub id: String,
    /// bramble's version.
    pub version: String,
    /// Address that peers probe; `null` while the node has none.
    pub address: Option<Ipv4Addr>,
    /// UDP port of the node's probes.
    pub probe_port: u16,
    /// Layout of the node's probes; two nodes with different ones do not understand each other's.
    #[serde(default = "first_layout")]
    pub probe_layout: u8,
    /// Board, as the device tree or DMI names it.
    pub model: Option<String>,
    /// Kernel release.
    pub kernel: Option<String>,
    /// Distribution, as os-release names it.
    pub os: Option<String>,
    /// Serial number of the board, as the device tree names it.
    #[serde(default)]
    pub serial: Option<String>,
    /// Revision code of the board, six hexadecimal digits.
    #[serde(default)]
    pub revision: Option<String>,
    /// What it is in its cluster: `server` or `agent`, as K3s' unit says, or its configuration; `null` without K3s.
    #[serde(default)]
    pub role: Option<String>,
    /// Whether K3s was well there at the last report; `null` where there is none, or where it could not be told.
    #[serde(default)]
    pub k3s_up: Option<bool>,
    /// The newest bramble that this node knows of: its own, or one that a peer runs.
    #[serde(default)]
    pub newest: Option<String>,
    /// What probes tell of the machine in words: `eeprom`, `firmware`, `time-source`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub about: BTreeMap<String, String>,
}

/// The longest text that a presence may hold, bytes.
const LONGEST_TEXT: usize = 256;
/// The most words about a machine that a presence may hold.
const MOST_WORDS: usize = 32;

/// `text` as a presence may hold it: printable and short.
pub fn short(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let mut short: String = text.chars().map(plain).collect();
    short.truncate(short.floor_char_boundary(LONGEST_TEXT));
    short
}

/// Whether a text of others is as [`short`] makes it.
pub(crate) fn is_short(text: &str) -> bool {
    text.len() <= LONGEST_TEXT && !text.contains(char::is_control)
}

/// The layout before it was said.
fn first_layout() -> u8 {
    1
}

impl NodeInfo {
    /// Whether a node of ours can say this. Other nodes act on it and repeat it, so what has a form must have it, and all
    /// texts are short and printable; a reader drops and counts what is not so.
    pub fn is_plausible(&self) -> bool {
        let of = |text: &str, longest: usize, allowed: fn(u8) -> bool| {
            (1..=longest).contains(&text.len()) && text.bytes().all(allowed)
        };
        let version = |text: &String| {
            of(text, 64, |b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'-' | b'~'))
        };
        self.id.len() == 8
            && of(&self.id, 8, |b| b.is_ascii_hexdigit())
            && [Some(&self.version), self.newest.as_ref()].into_iter().flatten().all(version)
            && self.role.as_deref().is_none_or(|role| matches!(role, "server" | "agent"))
            && [&self.model, &self.kernel, &self.os, &self.serial, &self.revision]
                .into_iter()
                .flatten()
                .all(|text| is_short(text))
            && self.about.len() <= MOST_WORDS
            && self.about.iter().all(|(id, words)| Name::new(id).is_ok() && is_short(words))
    }
}

/// Numbers and health of one node. Retained; expires after three intervals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeState {
    /// Version, time, origin.
    #[serde(flatten)]
    pub header: Header,
    /// Where the node stands on its way into the cluster.
    #[serde(default)]
    pub phase: Phase,
    /// Whether a restart of the machine is pending; `null` = could not tell.
    #[serde(default)]
    pub restart_needed: Option<bool>,
    /// How the node measures its mesh, and why not better.
    pub tier: Tier,
    /// By reading id.
    pub readings: BTreeMap<String, Reading>,
    /// All conditions that were judged, also the clear ones.
    pub conditions: Vec<Condition>,
    /// The worst of the raised conditions that no other one explains, in one sentence; `null` when none is raised.
    #[serde(default)]
    pub reason: Option<String>,
    /// K3s on this node; without it when nobody has tried to join by bramble.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k3s: Option<K3s>,
    /// How many findings are in which state.
    pub findings: FindingCounts,
    /// What this agent counted and dropped: payloads from the broker that were not taken, since its start.
    pub refused_messages: u64,
}

/// How K3s came onto a node, and how it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct K3s {
    /// `joining`, `ready`, `failed` or `leaving`.
    pub phase: Phase,
    /// What a join does or did last: `looking`, `installing`, or what it waits for: `starting`, `kubelet`, `registering`,
    /// `not-ready`, `not-networked`, `ready`, `failed`.
    pub step: String,
    /// `first server`, `server` or `agent`.
    pub role: String,
    /// The kubelet's version, or the one that was asked for.
    pub version: String,
    /// Why the node is not Ready; `null` when it is, or when nobody knows.
    pub cause: Option<Cause>,
    /// When the join said so.
    pub since: Timestamp,
}

/// Why something failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Cause {
    /// Kebab-case.
    pub id: String,
    /// For people.
    pub why: String,
    /// What a person does next.
    pub next: String,
}

/// Where a node stands on its way into the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Something that must hold does not hold yet.
    Preparing,
    /// What was changed is in force after a restart.
    RestartNeeded,
    /// It is being taken into the cluster.
    Joining,
    /// All that must hold does, and nothing is wrong.
    Ready,
    /// It works, and something is wrong.
    Degraded,
    /// It does not work.
    Failed,
    /// It is being taken out of the cluster.
    Leaving,
    /// Could not tell.
    #[default]
    Unknown,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Preparing,
        Self::RestartNeeded,
        Self::Joining,
        Self::Ready,
        Self::Degraded,
        Self::Failed,
        Self::Leaving,
        Self::Unknown,
    ];
}

/// One number that describes itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Reading {
    /// For people, without the node's name: "CPU temperature".
    pub title: String,
    /// `null` = could not be read this time.
    pub value: Option<f64>,
    /// What the number counts.
    pub unit: Unit,
    /// How the number behaves over time.
    pub kind: Kind,
    /// How much of a person's attention it deserves.
    #[serde(default)]
    pub rank: Rank,
}

/// Units, named as Home Assistant names them where it knows the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Unit {
    /// Degrees Celsius.
    #[serde(rename = "°C")]
    Celsius,
    /// Percent, 0 to 100.
    #[serde(rename = "%")]
    Percent,
    /// Milliseconds.
    #[serde(rename = "ms")]
    Millisecond,
    /// Bytes.
    #[serde(rename = "B")]
    Byte,
    /// A plain count.
    #[serde(rename = "1")]
    Count,
    /// Events per second.
    #[serde(rename = "1/s")]
    PerSecond,
    /// Bytes per second.
    #[serde(rename = "B/s")]
    BytePerSecond,
    /// Seconds.
    #[serde(rename = "s")]
    Second,
    /// Volts.
    #[serde(rename = "V")]
    Volt,
    /// Amperes.
    #[serde(rename = "A")]
    Ampere,
    /// Watts.
    #[serde(rename = "W")]
    Watt,
    /// Millions of cycles per second.
    #[serde(rename = "MHz")]
    Megahertz,
    /// Revolutions per minute.
    #[serde(rename = "rpm")]
    PerMinute,
    /// Decibels above one milliwatt: how strong a radio is heard.
    #[serde(rename = "dBm")]
    DecibelMilliwatt,
    /// A moment, as seconds since 1970 in UTC.
    #[serde(rename = "unix")]
    Moment,
}

impl Unit {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Celsius,
        Self::Percent,
        Self::Millisecond,
        Self::Byte,
        Self::Count,
        Self::PerSecond,
        Self::BytePerSecond,
        Self::Second,
        Self::Volt,
        Self::Ampere,
        Self::Watt,
        Self::Megahertz,
        Self::PerMinute,
        Self::DecibelMilliwatt,
        Self::Moment,
    ];
}

/// How much of a person's attention a reading deserves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Rank {
    /// Worth a look each day.
    #[default]
    Main,
    /// Worth a look when something is wrong.
    Diagnostic,
    /// For those who ask for it: switched off in Home Assistant until somebody switches it on.
    Hidden,
}

/// How a number behaves over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Only grows; starts again at 0 with the program or the machine.
    Total,
}

/// One named health statement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Condition {
    /// What is stated: kebab-case, the same on every node.
    pub id: String,
    /// What it is stated of, when there are several of a kind: a link as `n2 -> n3`. `None` for the whole node.
    pub subject: Option<String>,
    /// For people: "Packets lost between nodes".
    pub title: String,
    /// Clear, raised, or could not tell.
    pub status: Status,
    /// How bad it is while raised.
    pub severity: Severity,
    /// Since when it has this status.
    pub since: Timestamp,
    /// Ids of conditions that explain this one when they are raised too.
    pub depends_on: Vec<String>,
    /// What was seen, in one sentence; for `unknown` the reason.
    pub evidence: String,
}

/// A condition was raised, or is over. Not retained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeEvent {
    /// Version, time, origin.
    #[serde(flatten)]
    pub header: Header,
    /// What happened.
    pub event_type: EventType,
    /// The condition as it is now.
    #[serde(flatten)]
    pub condition: Condition,
}

/// What happened, in Home Assistant's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum EventType {
    /// It is seen now.
    Raised,
    /// It was raised, and is no longer seen.
    Cleared,
}

impl EventType {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Raised, Self::Cleared];
}

/// Status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Seen, and fine.
    Clear,
    /// Could not be seen.
    Unknown,
    /// Seen, and not fine.
    Raised,
}

/// How bad a raised condition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Look at it today.
    Warning,
    /// Something does not work.
    Critical,
}

/// How the mesh is measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Tier {
    /// Who reads the clock.
    pub stamps: Stamps,
    /// How the programs are attached: `tcx`, `tc`; `None` without them.
    pub attached: Option<String>,
    /// Why not `kernel`, in one sentence; empty for `kernel`.
    pub why: String,
}

/// Who reads the clock for a round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Stamps {
    /// Nobody: there is no probe running.
    None,
    /// User space, so scheduling noise is included.
    User,
    /// At least one of the four stamps came from user space.
    Mixed,
    /// Kernel programs on both nodes.
    Kernel,
}

/// How many findings are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FindingCounts {
    /// Holds.
    pub met: u32,
    /// Does not hold; bramble knows the change.
    pub unmet: u32,
    /// Will hold by itself.
    pub waiting: u32,
    /// A person must act.
    pub blocked: u32,
    /// Does not apply to this node.
    pub not_needed: u32,
    /// Could not tell.
    pub unknown: u32,
}

/// All findings of a node. Retained; said when one changes and at every connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeFindings {
    /// Version, time, origin.
    #[serde(flatten)]
    pub header: Header,
    /// In the order of the requirements' table.
    pub findings: Vec<Finding>,
}

/// The verdict on one requirement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Finding {
    /// Requirement, kebab-case.
    pub id: String,
    /// For people.
    pub title: String,
    /// Verdict.
    pub state: FindingState,
    /// What was seen, or what to do next.
    pub detail: String,
}

/// Verdict on a requirement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum FindingState {
    /// Holds.
    Met,
    /// Does not hold; bramble knows the change.
    Unmet,
    /// Will hold by itself.
    Waiting,
    /// A person must act.
    Blocked,
    /// Does not apply to this node.
    NotNeeded,
    /// Could not tell.
    Unknown,
}

/// One node's row of the mesh matrix. Retained; expires after three intervals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MeshRow {
    /// Version, time, origin.
    #[serde(flatten)]
    pub header: Header,
    /// Time between two batches of probes, ms.
    pub period_ms: u32,
    /// Time between two of these messages, ms: after it the row is overdue. What changed is said at once.
    pub interval_ms: u32,
    /// How this node measures.
    pub tier: Tier,
    /// By peer.
    pub peers: BTreeMap<Name, PeerReport>,
}

/// What a node knows of its two links with one peer: to the peer (`out`) and from it (`in`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PeerReport {
    /// Probes sent to the peer since this probe's start.
    pub sent: u64,
    /// Probes that the peer says it heard since its own start, or ours, if later.
    pub answered: u64,
    /// Probes of the peer that arrived here since its probe's start (or ours, if later).
    pub heard: u64,
    /// The link towards the peer, by what the peer says it heard.
    pub out: Way,
    /// The link from the peer, by what arrived here.
    #[serde(rename = "in")]
    pub incoming: Way,
    /// Last round trips.
    pub round_trip: Option<RoundTrip>,
}

/// One direction between two nodes, over the last few seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Way {
    /// Verdict.
    pub state: WayState,
    /// Share of the probes that were lost, 0 to 1; `null` = could not tell.
    pub loss: Option<f64>,
    /// By how much this direction is slower than it used to be, ms; `null` = could not tell.
    pub delay_ms: Option<f64>,
}

/// Verdict on one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum WayState {
    /// Seen, and fine.
    Fine,
    /// Could not be seen.
    #[default]
    Unknown,
    /// Slower than it used to be.
    Slow,
    /// Some probes are lost.
    Lossy,
    /// All probes are lost.
    Cut,
}

/// Round trips of the last few seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RoundTrip {
    /// Median, microseconds.
    pub median_us: f64,
    /// Fastest, microseconds.
    pub min_us: f64,
    /// Slowest, microseconds.
    pub max_us: f64,
    /// How many were measured.
    pub samples: u32,
    /// Who stamped them; the worst of all samples.
    pub stamps: Stamps,
}

/// One thing that happened on a node, told as soon as the broker is there: all of them, in their order, none about the present. Not
/// retained. It may arrive twice, under the same `run` and `sequence`.
///
/// The header's `ts` is when it happened, by the node's clock, which may have jumped since; the order is that of `sequence`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeRecord {
    /// Version, time, origin.
    #[serde(flatten)]
    pub header: Header,
    /// One run of the agent: eight hexadecimal digits.
    pub run: String,
    /// From 0 on in each run; what is missing was given up.
    pub sequence: u64,
    /// What happened.
    #[serde(flatten)]
    pub what: Happening,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Happening {
    /// The agent started: what it said before is over, and what is raised follows.
    Started {
        /// bramble's version.
        version: String,
    },
    /// A condition has another status.
    Condition {
        /// See [`Condition`].
        id: String,
        /// See [`Condition`].
        subject: Option<String>,
        /// See [`Condition`].
        title: String,
        /// The new status; `null` = it is not judged any more.
        status: Option<Status>,
        /// The status before; `null` = it was not judged.
        before: Option<Status>,
        /// See [`Condition`].
        severity: Severity,
        /// What was seen.
        evidence: String,
    },
    /// A requirement has another verdict.
    Finding {
        /// See [`Finding`].
        id: String,
        /// See [`Finding`].
        title: String,
        /// The new verdict.
        state: FindingState,
        /// The verdict before.
        before: FindingState,
        /// What was seen, or what to do next.
        detail: String,
    },
    /// Records were given up, because the broker was away for too long or does not take them.
    Dropped {
        /// How many since the run's start.
        count: u64,
    },
}

impl Condition {
    /// Whether the condition asks for attention: raised, or could not tell.
    pub fn needs_attention(&self) -> bool {
        self.status != Status::Clear
    }
}

/// The worst of the raised conditions that no other raised one explains.
pub fn root(conditions: &[Condition]) -> Option<&Condition> {
    let raised = || conditions.iter().filter(|c| c.status == Status::Raised);
    let explained = |c: &Condition| c.depends_on.iter().any(|id| raised().any(|other| other.id == *id));
    raised()
        .filter(|c| !explained(c))
        .max_by_key(|c| (c.severity == Severity::Critical, std::cmp::Reverse(c.since)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    #[test]
    fn size_version_and_origin_are_checked_before_the_content_is_used() {
        let good = r#"{"v":1,"ts":"2026-11-23T06:00:00Z","cluster":"home","node":"n1","findings":[]}"#;
        let read = |text: &str| read::<NodeFindings>(text.as_bytes(), &name("home"), &name("n1"));
        assert!(read(good).is_ok());
        assert!(matches!(read(&good.replace("\"v\":1", "\"v\":2")), Err(BadMessage::Version(2))));
        assert!(matches!(read(&good.replace("\"v\":1", "\"v\":0")), Err(BadMessage::Version(0))));
        assert!(matches!(read(&good.replace("\"n1\"", "\"n2\"")), Err(BadMessage::Misplaced(_))));
        assert!(matches!(read(&good.replace("\"home\"", "\"away\"")), Err(BadMessage::Misplaced(_))));
        assert!(matches!(read(&good.replace("\"home\"", "\"a/b\"")), Err(BadMessage::Json(_))));
        assert!(matches!(read(&"x".repeat(MAX_PAYLOAD + 1)), Err(BadMessage::TooLarge(_))));
        for wrong in ["", "{", "null", "[]", "{\"v\":-1}", "{\"v\":1}", "\u{0}"] {
            assert!(matches!(read(wrong), Err(BadMessage::Json(_))), "{wrong:?}");
        }
    }

    #[test]
    fn a_presence_is_short_printable_and_in_its_form() {
        let good: serde_json::Value = serde_json::from_str(include_str!("../golden/v1/info.json")).unwrap();
        let is_plausible = |key: &str, value: serde_json::Value| {
            let mut info = good.clone();
            info[key] = value;
            serde_json::from_value::<NodeInfo>(info).unwrap().is_plausible()
        };
        let long = || "x".repeat(LONGEST_TEXT + 1);
        for (key, right, wrong) in [
            ("id", vec!["00c0ffee"], vec!["", "c0ffee", "00c0ffee0", "00c0ffeg", "\u{1b}0c0ffee", "ä0c0ff"]),
            ("version", vec!["1.2.3", "1.2.3-rc.1+deb13~1"], vec!["", "1 2", "<b>", "1\u{1b}"]),
            ("newest", vec!["1.2.3"], vec!["", "1\n2"]),
            ("role", vec!["server", "agent"], vec!["", "Server", "queen"]),
            ("model", vec!["", "Raspberry Pi 5 Model B Rev 1.0 \"ä\""], vec!["\u{7}", "a\nb"]),
            ("kernel", vec!["6.12"], vec!["\u{0}"]),
            ("os", vec!["Debian"], vec!["\u{9b}"]),
            ("serial", vec!["1"], vec!["\t"]),
            ("revision", vec!["c04170"], vec!["\r"]),
        ] {
            for (texts, expected) in [(right, true), (wrong, false)] {
                for text in texts {
                    assert_eq!(is_plausible(key, text.into()), expected, "{key} = {text:?}");
                }
            }
            assert!(!is_plausible(key, long().into()), "{key} is bounded");
        }
        let about = |id: &str, text: &str| is_plausible("about", serde_json::json!({id: text}));
        assert!(about("time-source", "chrony"));
        assert!(
            !about("Time source", "chrony") && !about("time-source", "\n") && !about("time-source", &long())
        );
        let many: BTreeMap<String, &str> = (0..=MOST_WORDS).map(|n| (n.to_string(), "x")).collect();
        assert!(!is_plausible("about", serde_json::json!(many)));
    }

    #[test]
    fn a_text_of_the_machine_is_cut_and_cleaned_to_what_a_presence_may_hold() {
        assert_eq!(short("a\nb\u{1b}c"), "a b c");
        let cut = short(&"ä".repeat(LONGEST_TEXT));
        assert!(cut.len() <= LONGEST_TEXT && cut.chars().all(|c| c == 'ä'));
    }

    #[test]
    fn a_field_that_a_newer_build_added_is_ignored() {
        let text =
            r#"{"v":1,"ts":"2026-11-23T06:00:00Z","cluster":"home","node":"n1","findings":[],"new":{"a":1}}"#;
        assert!(read::<NodeFindings>(text.as_bytes(), &name("home"), &name("n1")).is_ok());
    }
}

#[cfg(test)]
mod golden {
    //! Every message of every released version still parses, and this version still writes it the same way.
    use serde_json::Value;

    use super::*;
    use crate::cluster::{Alert, ClusterState};

    /// Whether all that `golden` says is said by `now`, which may have more fields.
    fn is_within(golden: &Value, now: &Value) -> bool {
        match (golden, now) {
            (Value::Object(golden), Value::Object(now)) => {
                golden.iter().all(|(key, value)| now.get(key).is_some_and(|now| is_within(value, now)))
            }
            (Value::Array(golden), Value::Array(now)) => {
                golden.len() == now.len()
                    && golden.iter().zip(now).all(|(golden, now)| is_within(golden, now))
            }
            _ => golden == now,
        }
    }

    fn same<T: DeserializeOwned + Serialize>(text: &str) {
        let parsed: T = serde_json::from_str(text).unwrap();
        let written = serde_json::to_value(&parsed).unwrap();
        let golden = serde_json::from_str::<Value>(text).unwrap();
        assert!(is_within(&golden, &written), "{golden}\nis written as\n{written}");
    }

    #[test]
    fn a_field_may_be_added_and_none_may_change_or_go() {
        let golden = serde_json::json!({"a": 1, "b": [{"c": 2}]});
        for (now, within) in [
            (serde_json::json!({"a": 1, "b": [{"c": 2, "d": 3}], "e": 4}), true),
            (serde_json::json!({"a": 1, "b": [{"d": 3}]}), false),
            (serde_json::json!({"a": 1, "b": [{"c": 2}, {"c": 2}]}), false),
            (serde_json::json!({"a": "1", "b": [{"c": 2}]}), false),
        ] {
            assert_eq!(is_within(&golden, &now), within, "{now}");
        }
    }

    #[test]
    fn version_1_is_read_and_written_as_it_always_was() {
        same::<NodeInfo>(include_str!("../golden/v1/info.json"));
        same::<NodeState>(include_str!("../golden/v1/state.json"));
        same::<NodeFindings>(include_str!("../golden/v1/findings.json"));
        for record in include_str!("../golden/v1/history.json").lines() {
            same::<NodeRecord>(record);
        }
        same::<MeshRow>(include_str!("../golden/v1/mesh.json"));
        same::<Alert>(include_str!("../golden/v1/alert.json"));
        same::<ClusterState>(include_str!("../golden/v1/cluster.json"));
    }
}
