//! Who this installation is: a random id, made at the first start and kept beside what it was made for, so that a card that
//! was copied is told from a card that moved to another board.
//!
//! When board, machine or name is another one than before, it is first asked at the broker, by a connection that says
//! nothing, whether somebody still speaks under the id. Who does is the original, and this is a copy, which gets an id of
//! its own. Who does not was this card: it keeps its id, and what it left under another name is taken back.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::mpsc,
    time::{Interval, interval},
};
use wire::{
    connection::{self, Event, Message, Settings},
    report::{self, NodeInfo, ONLINE},
    topic::{Name, NodeTopic, Topic},
};

use crate::{
    config::Config,
    facts::board,
    host::{Host, state::State},
    random,
};

/// The file in the state directory.
const FILE: &str = "identity.json";
/// How long the broker may take to tell what it has stored.
const STORED: Duration = Duration::from_secs(3);

/// What the id was made for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    /// Eight hexadecimal digits.
    id: String,
    /// Serial number of the board, where it has one.
    serial: Option<String>,
    /// systemd's machine id.
    machine: Option<String>,
    cluster: Name,
    node: Name,
    /// Whether a broker was ever told of it; of an id that was not, nobody else speaks.
    told: bool,
    /// The clusters and names under which it spoke before, whose topics the broker may still have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    left: Vec<(Name, Name)>,
}

/// Who we are.
#[derive(Debug)]
pub struct Settled {
    /// The id.
    pub id: String,
    /// The clusters and names under which this node spoke before: their topics are to be emptied.
    pub left: Vec<(Name, Name)>,
    /// What is asked at the broker about it. As long, nothing is said under the id: it may be another one's.
    pub question: Option<Question>,
}

/// The id that was kept, for who only speaks of it.
pub fn kept(config: &Config) -> Option<String> {
    read(&State::new(&config.node.state_dir)).map(|identity| identity.id)
}

/// Cluster and node as the card was called before, as far as the broker has not emptied what was said under these names.
pub fn left(config: &Config) -> Vec<(Name, Name)> {
    read(&State::new(&config.node.state_dir)).map(|identity| identity.left).unwrap_or_default()
}

/// Finds out who we are; asks at the broker only when something of it changed.
///
/// # Errors
/// There is no password for the broker's user.
pub fn settle(config: &Config, host: &Host) -> anyhow::Result<Settled> {
    let state = State::new(&config.node.state_dir);
    let now = Identity {
        id: format!("{:08x}", random::u32()),
        serial: board::serial(host).ok().flatten(),
        machine: host.text_if_present("/etc/machine-id").ok().flatten().map(|id| id.trim().to_owned()),
        cluster: config.node.cluster.clone(),
        node: config.node.name.clone(),
        told: false,
        left: Vec::new(),
    };
    let before = match read(&state) {
        Some(before) if before.told => before,
        before => {
            let settled = untold(before, now);
            keep(&state, &settled);
            return Ok(Settled { id: settled.id, left: settled.left, question: None });
        }
    };
    let (id, left) = (before.id.clone(), before.left.clone());
    let same = Identity { id: id.clone(), told: true, left: left.clone(), ..now.clone() } == before;
    let question = if same { None } else { Some(Question::ask(config, state, before, now)?) };
    Ok(Settled { id, left, question })
}

/// The broker is about to be told of us.
pub fn told(state: &State) {
    if let Some(identity) = read(state).filter(|identity| !identity.told) {
        keep(state, &Identity { told: true, ..identity });
    }
}

/// The broker has emptied what was left under other names.
pub fn moved_out(state: &State) {
    if let Some(identity) = read(state).filter(|identity| !identity.left.is_empty()) {
        keep(state, &Identity { left: Vec::new(), ..identity });
    }
}

/// Who we are when no broker ever heard of it: an image that was never online makes a node of its own on each board.
fn untold(before: Option<Identity>, now: Identity) -> Identity {
    match before {
        Some(before) if before.serial == now.serial && before.machine == now.machine => {
            Identity { id: before.id, ..now }
        }
        _ => now,
    }
}

fn read(state: &State) -> Option<Identity> {
    match state.read(FILE) {
        Ok(text) => {
            let identity = serde_json::from_str::<Identity>(&text?).ok();
            identity.filter(|i| i.id.len() == 8 && i.id.bytes().all(|b| b.is_ascii_hexdigit()))
        }
        Err(why) => {
            tracing::warn!("the node's id cannot be read: {why}");
            None
        }
    }
}

fn keep(state: &State, identity: &Identity) {
    let text = serde_json::to_string(identity).expect("an identity is JSON");
    if let Err(why) = state.write(FILE, &text) {
        tracing::warn!(
            "the node's id cannot be kept: {why}; Home Assistant will see a new device at each start"
        );
    }
}

/// Whether somebody speaks under the id that was kept. Waits for the broker as long as it takes: whoever guesses makes a
/// second device, or empties the original's topics.
#[derive(Debug)]
pub struct Question {
    state: State,
    before: Identity,
    now: Identity,
    inquiry: Inquiry,
    events: mpsc::Receiver<Event>,
    connected: Option<Instant>,
    looks: Interval,
}

/// What is known of it by now.
#[derive(Debug)]
pub enum Answer {
    /// The broker cannot be asked, and why.
    Waits(String),
    /// Whether somebody speaks under the id: then this card is a copy, and what was announced is the original's.
    Known {
        /// So it is.
        is_copy: bool,
    },
}

impl Question {
    fn ask(config: &Config, state: State, before: Identity, now: Identity) -> anyhow::Result<Self> {
        let settings = Settings {
            availability: None,
            filters: Topic::filters_of_who_asks(&before.cluster),
            ..crate::daemon::connection(config, &now.id)?
        };
        let (_bus, events) = connection::start(settings);
        let inquiry = Inquiry::of(&before, config.report.interval * 3 + config.mqtt.broker.will_delay);
        let looks = interval(Duration::from_millis(250));
        Ok(Self { state, before, now, inquiry, events, connected: None, looks })
    }

    /// The next thing that is known. Cancel-safe.
    pub async fn answer(&mut self) -> Answer {
        loop {
            if let Some(is_copy) = self.connected.and_then(|at| self.inquiry.verdict(at.elapsed())) {
                return Answer::Known { is_copy };
            }
            tokio::select! {
                _ = self.looks.tick() => {}
                Some(event) = self.events.recv() => match event {
                    Event::Connected => self.connected = Some(Instant::now()),
                    Event::Disconnected { why, .. } => {
                        self.connected = None;
                        return Answer::Waits(why);
                    }
                    Event::Message(message) => self.inquiry.hear(&message),
                    Event::Settled | Event::Complaints => {}
                },
            }
        }
    }

    /// Who we are, which is noted for the next [`settle`]; it holds for this run even if it cannot be noted.
    pub fn keep(self, is_copy: bool) -> Settled {
        if is_copy {
            tracing::warn!(
                "somebody speaks under the id {}: this card is a copy, and is {} now",
                self.before.id,
                self.now.id
            );
        }
        let who = concluded(self.before, self.now, is_copy);
        keep(&self.state, &who);
        Settled { id: who.id, left: who.left, question: None }
    }
}

/// Who we are when a broker was told of who we were.
fn concluded(before: Identity, now: Identity, is_copy: bool) -> Identity {
    if is_copy {
        return now;
    }
    let mut left = before.left;
    left.push((before.cluster, before.node));
    left.retain(|names| *names != (now.cluster.clone(), now.node.clone()));
    Identity { id: before.id, told: true, left, ..now }
}

/// What was heard of who has the id.
#[derive(Debug)]
struct Inquiry {
    id: String,
    cluster: Name,
    /// Within this time, who is there speaks, and who is not is declared offline.
    patience: Duration,
    /// Whether the broker says that it is connected, by name.
    bearers: BTreeMap<Name, bool>,
    online: BTreeMap<Name, bool>,
    /// Who spoke, rather than was stored.
    spoke: Vec<Name>,
}

impl Inquiry {
    fn of(before: &Identity, patience: Duration) -> Self {
        let (id, cluster) = (before.id.clone(), before.cluster.clone());
        let (bearers, online) = (BTreeMap::new(), BTreeMap::new());
        Self { id, cluster, patience, bearers, online, spoke: Vec::new() }
    }

    fn hear(&mut self, message: &Message) {
        let Ok(Topic::Node(name, leaf)) = Topic::parse(&message.topic, &self.cluster) else { return };
        match leaf {
            NodeTopic::Info => {
                let info = report::read::<NodeInfo>(&message.payload, &self.cluster, &name);
                let Ok(info) = info else { return };
                self.bearers.insert(name.clone(), info.id == self.id);
            }
            NodeTopic::Availability => {
                self.online.insert(name.clone(), message.payload == ONLINE.as_bytes());
                return;
            }
            NodeTopic::State => {}
            _ => return,
        }
        if !message.retained {
            self.spoke.push(name);
        }
    }

    /// Whether somebody has the id; `None` = not known yet.
    fn verdict(&self, waited: Duration) -> Option<bool> {
        let bearers = || self.bearers.iter().filter(|(_, is)| **is).map(|(name, _)| name);
        if bearers().any(|name| self.spoke.contains(name)) {
            return Some(true);
        }
        let maybe = bearers().any(|name| self.online.get(name) == Some(&true));
        (waited >= if maybe { self.patience.max(STORED) } else { STORED }).then_some(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(35);

    fn before() -> Identity {
        Identity {
            id: "7f3a91c2".to_owned(),
            serial: Some("a".to_owned()),
            machine: None,
            cluster: Name::new("home").unwrap(),
            node: Name::new("n1").unwrap(),
            told: false,
            left: Vec::new(),
        }
    }

    #[test]
    fn names_that_were_left_are_kept_until_they_are_emptied_and_never_the_present_one() {
        let named = |node: &str| Identity { node: Name::new(node).unwrap(), ..before() };
        let mut identity = Identity { told: true, ..before() };
        for (node, left) in
            [("attic", vec!["n1"]), ("roof", vec!["n1", "attic"]), ("n1", vec!["attic", "roof"])]
        {
            let now = Identity { id: "00000001".to_owned(), serial: None, ..named(node) };
            identity = concluded(identity, now, false);
            let names: Vec<&str> = identity.left.iter().map(|(_, node)| node.as_str()).collect();
            assert_eq!((names, identity.id.as_str(), identity.told), (left, "7f3a91c2", true));
            let text = serde_json::to_string(&identity).unwrap();
            assert_eq!(serde_json::from_str::<Identity>(&text).unwrap(), identity);
        }
        let copy = Identity { id: "00000001".to_owned(), ..before() };
        assert_eq!(concluded(identity, copy.clone(), true), copy, "what the original left is the original's");
    }

    #[test]
    fn who_was_never_online_is_renamed_freely_and_is_another_on_another_board() {
        let now = |serial: &str, node| Identity {
            id: "00000001".to_owned(),
            serial: Some(serial.to_owned()),
            node: Name::new(node).unwrap(),
            ..before()
        };
        for (now, id) in
            [(now("a", "n1"), "7f3a91c2"), (now("a", "attic"), "7f3a91c2"), (now("b", "n1"), "00000001")]
        {
            let settled = untold(Some(before()), now.clone());
            assert_eq!(settled, Identity { id: id.to_owned(), ..now });
        }
        assert_eq!(untold(None, now("a", "n1")).id, "00000001");
    }

    fn message(leaf: &str, payload: &str, retained: bool) -> Message {
        let topic = format!("bramble/home/node/n1/{leaf}");
        Message { topic, payload: payload.to_owned().into(), retained }
    }

    #[test]
    fn who_speaks_under_the_id_is_the_original_and_a_stored_word_is_not_speech() {
        let info = include_str!("../../wire/golden/v1/info.json");
        let other = info.replace("7f3a91c2", "00000000");
        for (heard, at_first, in_the_end) in [
            (&[][..], Some(false), Some(false)),
            // The card moved: the broker knows that the old board is gone.
            (
                &[message("info", info, true), message("availability", "offline", true)],
                Some(false),
                Some(false),
            ),
            // The broker has not noticed yet, or the board is there and about to speak.
            (&[message("info", info, true), message("availability", "online", true)], None, Some(false)),
            (
                &[
                    message("info", info, true),
                    message("availability", "online", true),
                    message("state", "{}", true),
                    message("state", "{}", false),
                ],
                Some(true),
                Some(true),
            ),
            (&[message("info", info, false)], Some(true), Some(true)),
            // Somebody else has the name.
            (&[message("info", &other, true), message("state", "{}", false)], Some(false), Some(false)),
            (&[message("info", "{", false), message("state", "{}", false)], Some(false), Some(false)),
        ] {
            let before = before();
            let mut inquiry = Inquiry::of(&before, PATIENCE);
            heard.iter().for_each(|message| inquiry.hear(message));
            assert_eq!(inquiry.verdict(STORED), at_first, "{heard:?}");
            assert_eq!(inquiry.verdict(PATIENCE), in_the_end, "{heard:?}");
        }
        let before = before();
        assert_eq!(Inquiry::of(&before, PATIENCE).verdict(Duration::ZERO), None);
    }
}
