//! What happened on this node: numbered, dated, and kept until the broker has it. See [`crate::host::spool`] for what survives
//! what.

use std::{future::pending, io, path::Path, time::Instant};

use tokio::task::JoinHandle;
use wire::{
    connection::Bus,
    payload::Payload,
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
    /// Of the runs before: records that were given up and not told, and lines that were no records any more.
    lost: u64,
}

impl Records {
    /// Takes up what an earlier run could not say, and says that this one started.
    pub fn begin(runtime: &Path, state: &Path, speaker: &Speaker, bus: &Bus) -> Self {
        let (spool, before) = Spool::open(runtime, state);
        let run = format!("{:08x}", random::u32());
        let mut records = Self { run, sequence: 0, spool, writing: None, told: 0, lost: 0 };
        let all = before.len();
        // A loss of power leaves half a line or another one's bytes; a new configuration leaves another name.
        let whole: Vec<_> = before
            .into_iter()
            .filter(|line| report::read::<NodeRecord>(line, &speaker.cluster, &speaker.node).is_ok())
            .collect();
        let damaged = all - whole.len();
        if damaged > 0 {
            tracing::warn!("{damaged} records of before are none of this node, and not told");
        }
        records.lost = records.spool.missing() + damaged as u64;
        records.spool.owe(records.lost);
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
        self.settle(bus);
    }

    /// The broker has something more, or refuses it. What it refuses is told once it takes something again: it would refuse
    /// that as well.
    pub fn settled(&mut self, speaker: &Speaker, bus: &Bus) {
        if bus.takes_records() {
            self.tell_dropped(speaker, bus);
        }
        self.settle(bus);
    }

    fn tell_dropped(&mut self, speaker: &Speaker, bus: &Bus) {
        let count = bus.dropped() + self.lost;
        if count > self.told {
            self.told = count;
            self.spool.owe(0);
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
        self.publish(speaker, bus, vec![record.to_json()]);
    }

    fn publish(&mut self, speaker: &Speaker, bus: &Bus, lines: Vec<Vec<u8>>) {
        let topic = Topic::Node(speaker.node.clone(), NodeTopic::History).in_cluster(&speaker.cluster);
        let numbered = lines.into_iter().map(|line| (bus.publish_record(topic.clone(), line.clone()), line));
        self.spool.add(numbered.collect(), Instant::now());
        // What the outbox gave up for it.
        self.settle(bus);
    }

    /// What is with the broker or given up is not kept any more; how many were given up is, until that is told.
    fn settle(&mut self, bus: &Bus) {
        self.spool.owe(bus.dropped() + self.lost - self.told);
        self.spool.settle(bus.settled_before());
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;

    fn place(of: &str) -> PathBuf {
        std::env::temp_dir().join(format!("bramble-record-{}-{of}", std::process::id()))
    }

    fn speaker() -> Speaker {
        let name = |text: &str| wire::topic::Name::new(text).unwrap();
        Speaker { cluster: name("home"), node: name("n1"), id: "00000000".to_owned() }
    }

    #[test]
    fn what_the_disk_spoiled_stays_counted_when_the_next_run_is_killed_as_well() {
        let place = place("spoiled");
        let (run, state, speaker, bus) = (place.join("run"), place.join("state"), speaker(), Bus::muted());
        let mut records = Records::begin(&run, &state, &speaker, &bus);
        records.spool.add(vec![(1, b"no record".to_vec())], Instant::now());
        for _ in 0..3 {
            assert_eq!(Records::begin(&run, &state, &speaker, &Bus::muted()).lost, 1);
        }
        fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn what_a_killed_run_gave_up_is_told_by_the_next_one_and_by_no_third() {
        let place = place("given-up");
        let (run, state, speaker) = (place.join("run"), place.join("state"), speaker());
        let kept = || -> Vec<NodeRecord> {
            let lines = Spool::open(&run, &state).1;
            lines.iter().map(|line| report::read(line, &speaker.cluster, &speaker.node).unwrap()).collect()
        };
        let mut all = 0;
        for _ in 0..3 {
            // Its end is a kill: nothing is told to the broker, and nothing more is written.
            let bus = Bus::muted();
            let mut records = Records::begin(&run, &state, &speaker, &bus);
            for _ in 0..1200 {
                records.say(&speaker, &bus, Happening::Started { version: "x".repeat(1000) });
            }
            all += 1201;
        }
        let bus = Bus::muted();
        let mut records = Records::begin(&run, &state, &speaker, &bus);
        all += 1;
        records.connected(&speaker, &bus);
        let mut rest = kept();
        let last = rest.pop().unwrap();
        assert_eq!((last.sequence, last.what), (1, Happening::Dropped { count: all - rest.len() as u64 }));
        assert!(matches!(&rest.last().unwrap().what, Happening::Started { version } if version.len() < 1000));
        // The newest ones are kept, in their order.
        assert_eq!(rest[rest.len() - 2].sequence, 1200);
        // Nothing new was given up since, but for what made place for that record.
        records.connected(&speaker, &bus);
        let bus = Bus::muted();
        assert!(Records::begin(&run, &state, &speaker, &bus).lost <= 1);
        fs::remove_dir_all(place).unwrap();
    }
}
