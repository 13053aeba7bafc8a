//! Packets that this kernel dropped, by its own reasons (`skb:kfree_skb`, kernel 5.17 or newer for the reason).
//!
//! Most drops are healthy (a packet for a closed port, for another host), so a number of them is no alarm; the reading
//! and the most frequent reason are there to explain one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wire::report::{Kind, Severity, Status, Unit};

use super::{Health, Judge, Pace, Probe, Seen, Source, Statement};
use crate::datapath::{DropProgram, TracepointFormat};

/// The table's row.
pub(super) const PROBE: Probe = Probe {
    id: "drop",
    title: "Dropped packets",
    why: "How many packets the kernel threw away on this node, and its most frequent reason.",
    pace: Pace::Report,
    judge: || Box::new(Drops::default()),
    kernel: Some(|host| {
        let format = TracepointFormat::read(host, "skb", "kfree_skb")?;
        let names = format.symbols("reason").into_iter().collect();
        Ok(Box::new(Counter { program: DropProgram::attach(&format)?, readings: 0, names }))
    }),
};

/// Dropped packets since the companion's start, by reason.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Counts {
    /// Number of this reading: the companion reads less often than the agent reports.
    reading: u64,
    by_reason: BTreeMap<String, u64>,
}

struct Counter {
    program: DropProgram,
    readings: u64,
    names: BTreeMap<u32, String>,
}

impl Source for Counter {
    fn read(&mut self) -> serde_json::Value {
        self.readings += 1;
        let mut counts = Counts { reading: self.readings, ..Counts::default() };
        for (reason, packets) in self.program.counts() {
            let name = match self.names.get(&reason) {
                Some(name) => name.clone(),
                None if reason == ebpf_records::drop::OTHER => "OTHER".to_owned(),
                // Subsystems (mac80211, openvswitch) number their own reasons in the upper half; the format does not name them.
                None => format!("REASON_{reason:#x}"),
            };
            *counts.by_reason.entry(name).or_default() += packets;
        }
        serde_json::to_value(counts).expect("a map of numbers is JSON")
    }
}

#[derive(Default)]
struct Drops {
    before: Option<Counts>,
    /// What there was to say of `before`.
    evidence: String,
}

impl Judge for Drops {
    fn judge(&mut self, seen: &Seen<'_>) -> Health {
        let mut health = Health::default();
        let counts: Result<Counts, String> = seen.kernel("drop");
        let total = counts.as_ref().ok().map(|c| c.by_reason.values().sum::<u64>() as f64);
        health.reading("dropped-packets", "Dropped packets", total, Unit::Count, Kind::Total);
        let (status, evidence) = match counts {
            Ok(now) => {
                if self.before.as_ref().is_none_or(|before| before.reading != now.reading) {
                    self.evidence = most_frequent(self.before.as_ref(), &now);
                    self.before = Some(now);
                }
                (Status::Clear, self.evidence.clone())
            }
            Err(why) => {
                self.before = None;
                (Status::Unknown, why)
            }
        };
        health.statements.push(Statement {
            id: "drop-reasons",
            subject: None,
            title: "Drop reasons",
            status,
            severity: Severity::Warning,
            depends_on: &["companion"],
            evidence,
        });
        health
    }
}

/// What most packets of the last interval were dropped for.
fn most_frequent(before: Option<&Counts>, now: &Counts) -> String {
    let old = |reason: &str| before.and_then(|b| b.by_reason.get(reason)).copied().unwrap_or(0);
    let recent = now.by_reason.iter().map(|(reason, packets)| (packets.saturating_sub(old(reason)), reason));
    match recent.max().filter(|(packets, _)| *packets > 0) {
        Some((packets, reason)) => format!("most of the last ones: {reason} ({packets})"),
        None => "none since the last reading".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(pairs: &[(&str, u64)]) -> Counts {
        Counts { reading: 0, by_reason: pairs.iter().map(|(r, n)| ((*r).to_owned(), *n)).collect() }
    }

    #[test]
    fn the_most_frequent_reason_is_that_of_the_last_interval() {
        let before = counts(&[("NO_SOCKET", 100), ("OTHERHOST", 5)]);
        let now = counts(&[("NO_SOCKET", 101), ("OTHERHOST", 9)]);
        assert_eq!(most_frequent(Some(&before), &now), "most of the last ones: OTHERHOST (4)");
        assert_eq!(most_frequent(Some(&now), &now), "none since the last reading");
        // A restarted companion counts from nothing.
        assert_eq!(most_frequent(Some(&now), &before), "none since the last reading");
    }

    #[test]
    fn a_report_between_two_readings_repeats_what_the_last_one_told() {
        let mut scene = crate::probe::scene::Scene::with_companion();
        let mut judge = (PROBE.judge)();
        let mut said = |reading, packets| {
            let counts = Counts { reading, ..counts(&[("NO_SOCKET", packets)]) };
            scene.sources.insert("drop".to_owned(), Ok(serde_json::to_value(counts).unwrap()));
            scene.judge(&mut judge).said("drop-reasons").unwrap().1.to_owned()
        };
        said(1, 5);
        for (reading, packets, evidence) in [
            (2, 9, "most of the last ones: NO_SOCKET (4)"),
            (2, 9, "most of the last ones: NO_SOCKET (4)"),
            (3, 9, "none since the last reading"),
        ] {
            assert_eq!(said(reading, packets), evidence);
        }
    }
}
