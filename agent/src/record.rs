//! What happened on this node: numbered, dated, and kept until the broker has it. See [`crate::host::spool`] for what survives
//! what.

use std::{future::pending, io, path::Path, time::Instant};

use tokio::task::JoinHandle;
use wire::{
    connection::Bus,
    report::{self, Finding, Happening, NodeRecord, Severity, Status},
    topic::{NodeTopic, Topic},
};

use crate::{
    host::{
        clock,
        spool::{Batch, Spool},
    },
    random,
    report::{Changed, Speaker},
};

/// The records of one run.
#[derive(Debug)]
pub struct Records {
    run: String,
    sequence: u64,
    spool: Spool,
    /// A write to disk that others do not wait for.
    writing: Option<JoinHandle<io::Result<Batch>>>,
    /// Dropped records that were told.
    told: u64,
    /// Lines of before that were no records any more.
    damaged: u64,
}

impl Records {
    /// Takes up what an earlier run could not say, and says that this one started.
    pub fn begin(runtime: &Path, state: &Path, speaker: &Speaker, bus: &Bus) -> Self {
        let (spool, before) = Spool::open(runtime, state);
        let run = format!("{:08x}", random::u32());
        let mut records = Self { run, sequence: 0, spool, writing: None, told: 0, damaged: 0 };
        let all = before.len();
        // A loss of power leaves half a line or another one's bytes; a new configuration leaves another name.
        let whole: Vec<_> = before
            .into_iter()
            .filter(|line| report::read::<NodeRecord>(line, &speaker.cluster, &speaker.node).is_ok())
            .collect();
        records.damaged = (all - whole.len()) as u64;
        if records.damaged > 0 {
            tracing::warn!("{} records of before are none of this node, and not told", records.damaged);
        }
        records.publish(speaker, bus, whole);
        records.say(speaker, bus, Happening::Started { version: env!("CARGO_PKG_VERSION").to_owned() });
        records
    }

    /// Says what is different about the conditions. What appears and is not raised is no change.
    pub fn changed(&mut self, speaker: &Speaker, bus: &Bus, changed: &[Changed]) {
        for change in changed {
            let what = match change {
                Changed::Is { before: None, condition } if condition.status != Status::Raised => continue,
                Changed::Is { before, condition } => Happening::Condition {
                    id: condition.id.clone(),
                    subject: condition.subject.clone(),
                    title: condition.title.clone(),
                    status: Some(condition.status),
                    before: *before,
                    severity: condition.severity,
                    evidence: condition.evidence.clone(),
                },
                Changed::Gone { before: Status::Clear, .. } => continue,
                Changed::Gone { id, subject, before } => Happening::Condition {
                    id: (*id).to_owned(),
                    subject: subject.clone(),
                    title: (*id).to_owned(),
                    status: None,
                    before: Some(*before),
                    severity: Severity::Warning,
                    evidence: "it is not judged any more".to_owned(),
                },
            };
            self.say(speaker, bus, what);
        }
    }

    /// Says which verdicts are others than before.
    pub fn judged(&mut self, speaker: &Speaker, bus: &Bus, before: &[Finding], now: &[Finding]) {
        for finding in now {
            let Some(old) = before.iter().find(|old| old.id == finding.id) else { continue };
            if old.state != finding.state {
                let (id, title, detail) = (finding.id.clone(), finding.title.clone(), finding.detail.clone());
                let (state, before) = (finding.state, old.state);
                self.say(speaker, bus, Happening::Finding { id, title, state, before, detail });
            }
        }
    }

    /// The broker is there: it is told what was given up meanwhile.
    pub fn connected(&mut self, speaker: &Speaker, bus: &Bus) {
        self.tell_dropped(speaker, bus);
        self.spool.settle(bus.settled_before());
    }

    /// The broker has something more, or refuses it. What it refuses is told once it takes something again: it would refuse
    /// that as well.
    pub fn settled(&mut self, speaker: &Speaker, bus: &Bus) {
        if bus.takes_records() {
            self.tell_dropped(speaker, bus);
        }
        self.spool.settle(bus.settled_before());
    }

    fn tell_dropped(&mut self, speaker: &Speaker, bus: &Bus) {
        let count = bus.dropped() + self.damaged;
        if count > self.told {
            self.told = count;
            self.say(speaker, bus, Happening::Dropped { count });
        }
    }

    /// Why records are not kept; `None` while they are.
    pub fn why(&self) -> Option<&str> {
        self.spool.why()
    }

    /// Writes to disk when that is due, without end. Cancel-safe: a write goes on, and its outcome is taken the next time.
    pub async fn keep(&mut self) {
        loop {
            if let Some(writing) = &mut self.writing {
                let outcome = writing.await.unwrap_or_else(|error| Err(io::Error::other(error)));
                self.writing = None;
                self.spool.written(outcome, Instant::now());
            }
            match self.spool.due() {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => pending().await,
            }
            // A card may take seconds for it.
            self.writing = self.spool.batch().map(|batch| tokio::task::spawn_blocking(|| batch.write()));
        }
    }

    fn say(&mut self, speaker: &Speaker, bus: &Bus, what: Happening) {
        let header = speaker.header(clock::now());
        let record = NodeRecord { header, run: self.run.clone(), sequence: self.sequence, what };
        self.sequence += 1;
        let line = serde_json::to_vec(&record).expect("a record is JSON");
        self.publish(speaker, bus, vec![line]);
    }

    fn publish(&mut self, speaker: &Speaker, bus: &Bus, lines: Vec<Vec<u8>>) {
        let topic = Topic::Node(speaker.node.clone(), NodeTopic::History).in_cluster(&speaker.cluster);
        let numbered = lines.into_iter().map(|line| (bus.publish_record(topic.clone(), line.clone()), line));
        self.spool.add(numbered.collect(), Instant::now());
        // What the outbox gave up for it.
        self.spool.settle(bus.settled_before());
    }
}
