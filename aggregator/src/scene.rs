//! Scenes for tests: a cluster, a clock, and nodes that say things.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use wire::{
    clock::Wall,
    topic::{ClusterTopic, Name, Topic},
};

use crate::cluster::{Cluster, Effect, Message, Settings};

/// A cluster in the middle of its messages.
pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
    pub(crate) now: Timestamp,
    /// All effects so far.
    pub(crate) effects: Vec<Effect>,
}

/// A directed link's state, by its two ends.
pub(crate) type Fault<'a> = (&'a str, &'a str, &'a str);

impl Scene {
    /// The broker has just connected.
    pub(crate) fn new(settings: Settings) -> Self {
        let name = Name::new("home").unwrap();
        let now = "2026-11-23T06:00:00Z".parse().unwrap();
        let mut scene = Self { cluster: Cluster::new(name, settings), now, effects: Vec::new() };
        scene.absorb(Message::BrokerConnected);
        scene
    }

    pub(crate) fn absorb(&mut self, message: Message<'_>) {
        self.effects.extend(self.cluster.absorb(message, self.now));
    }

    pub(crate) fn publish(&mut self, topic: &str, payload: &[u8], retained: bool) {
        self.absorb(Message::Published { topic, payload, retained });
    }

    pub(crate) fn node(&mut self, node: &str, leaf: &str, payload: &str) {
        self.publish(&format!("bramble/home/node/{node}/{leaf}"), payload.as_bytes(), false);
    }

    pub(crate) fn wait_ms(&mut self, ms: i64) {
        self.now += SignedDuration::from_millis(ms);
        self.effects.extend(self.cluster.tick(self.now));
    }

    /// Sets the wall clock: so far ahead of where it began.
    pub(crate) fn set_clock(&mut self, ahead: SignedDuration) {
        let wall = Wall::default().seen(self.now, self.now + ahead);
        self.effects.extend(self.cluster.jumped(wall, self.now));
    }

    /// A row of `node`: everything is fine but for the faults.
    pub(crate) fn row(&mut self, node: &str, all: &[&str], faults: &[Fault<'_>]) {
        self.node(node, "mesh", &row(node, all, faults).to_string());
    }

    /// One second in which every node says its row, a moment apart from each other.
    pub(crate) fn second(&mut self, all: &[&str], speaking: &[&str], faults: &[Fault<'_>]) {
        let step = 1000 / i64::try_from(speaking.len().max(1)).unwrap();
        for node in speaking {
            self.row(node, all, faults);
            self.wait_ms(step);
        }
    }

    /// Ids of the alerts raised now, by the topics that were published and emptied.
    pub(crate) fn published_alerts(&self) -> Vec<String> {
        let mut alerts = Vec::new();
        for effect in &self.effects {
            match effect {
                Effect::Publish { topic: Topic::Cluster(ClusterTopic::Alert(id)), .. } => {
                    alerts.retain(|known| known != id.as_str());
                    alerts.push(id.to_string());
                }
                Effect::Remove(Topic::Cluster(ClusterTopic::Alert(id))) => {
                    alerts.retain(|known| known != id.as_str())
                }
                _ => {}
            }
        }
        alerts.sort();
        alerts
    }

    /// Ids of all alerts that were ever published.
    pub(crate) fn alerts_ever(&self) -> Vec<String> {
        let mut ever: Vec<String> = self
            .effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Publish { topic: Topic::Cluster(ClusterTopic::Alert(id)), .. } => {
                    Some(id.to_string())
                }
                _ => None,
            })
            .collect();
        ever.sort();
        ever.dedup();
        ever
    }
}

fn header(node: &str) -> Value {
    json!({"v": 1, "ts": "2001-01-01T00:00:00Z", "cluster": "home", "node": node})
}

fn with(node: &str, more: Value) -> Value {
    let mut message = header(node);
    message.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    message
}

/// See [`Scene::row`]. What a node says of the link towards a peer is `unknown` when nothing comes back.
pub(crate) fn row(node: &str, all: &[&str], faults: &[Fault<'_>]) -> Value {
    let state = |from: &str, to: &str| {
        faults.iter().find(|(f, t, _)| (*f, *t) == (from, to)).map_or("fine", |(_, _, state)| *state)
    };
    let way = |state: &str| {
        let loss = match state {
            "fine" | "slow" => json!(0.0),
            "lossy" => json!(0.4),
            "cut" => json!(1.0),
            _ => json!(null),
        };
        json!({"state": state, "loss": loss, "delay_ms": if state == "slow" { json!(12.5) } else { json!(null) }})
    };
    let peers: serde_json::Map<String, Value> = all
        .iter()
        .filter(|peer| **peer != node)
        .map(|peer| {
            let (out, incoming) = (state(node, peer), state(peer, node));
            let trip = json!({"median_us": 180.5, "min_us": 90.0, "max_us": 400.0, "samples": 3, "stamps": "kernel"});
            let report = json!({
                "sent": 10, "answered": 10, "heard": 10,
                "out": way(if incoming == "cut" { "unknown" } else { out }),
                "in": way(incoming),
                "round_trip": if out == "cut" || incoming == "cut" { json!(null) } else { trip },
            });
            ((*peer).to_owned(), report)
        })
        .collect();
    with(
        node,
        json!({"period_ms": 1000, "interval_ms": 1000, "tier": {"stamps": "kernel", "attached": "tcx", "why": ""}, "peers": peers}),
    )
}

/// A state message with these readings and conditions.
pub(crate) fn state(node: &str, readings: Value, conditions: Value) -> String {
    with(
        node,
        json!({
            "tier": {"stamps": "user", "attached": null, "why": "no rights to load programs"},
            "readings": readings,
            "conditions": conditions,
            "findings": {"met": 3, "unmet": 1, "waiting": 0, "blocked": 0, "not_needed": 0, "unknown": 1},
            "refused_messages": 0,
        }),
    )
    .to_string()
}

/// A condition.
pub(crate) fn condition(id: &str, status: &str, depends_on: &[&str]) -> Value {
    json!({
        "id": id, "subject": null, "title": format!("title of {id}"), "status": status, "severity": "warning",
        "since": "2026-11-23T05:00:00Z", "depends_on": depends_on, "evidence": "seen by the test",
    })
}

/// All directed links of `node` with the others.
pub(crate) fn both_ways<'a>(node: &'a str, all: &[&'a str], state: &'a str) -> Vec<Fault<'a>> {
    let others = all.iter().filter(|other| **other != node);
    others.flat_map(|other| [(node, *other, state), (*other, node, state)]).collect()
}
