//! Health probes: one file per source of readings, and the table of them.
//!
//! A probe has up to two halves. The judge runs in the agent, without rights, on what was sampled; the kernel half, where
//! there is one, runs in the companion, holds an eBPF program and hands its counts over. A probe that cannot run is a
//! condition, not a crash and not silence.

use std::{collections::BTreeMap, time::Instant};

use wire::{
    report::{Kind, PeerReport, Reading, Severity, Status, Unit},
    topic::Name,
};

use crate::{
    companion::{Sample, Sources},
    datapath::Refused,
    host::Host,
};

mod drop;
mod load;
mod memory;
pub mod mesh;
mod temperature;

/// All probes, in the order of the report.
pub const PROBES: &[Probe] = &[mesh::PROBE, drop::PROBE, temperature::PROBE, load::PROBE, memory::PROBE];

/// One source of readings.
pub struct Probe {
    /// Kebab-case, equal to the file's name.
    pub id: &'static str,
    /// For people.
    pub title: &'static str,
    /// What a person learns from it.
    pub why: &'static str,
    /// When it is judged.
    pub pace: Pace,
    /// Makes the judge with an empty memory.
    pub judge: fn() -> Box<dyn Judge>,
    /// Opens the kernel half, in the companion.
    pub kernel: Option<Open>,
}

/// Opens a kernel half: reads what it needs of the host, loads and attaches.
pub type Open = fn(&Host) -> Result<Box<dyn Source>, Refused>;

/// When a probe is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// At every sample of the companion, so that a change is seen within one period.
    Sample,
    /// Before every report: the source changes slowly or costs something.
    Report,
}

/// The agent's half: turns what was seen into readings and statements. Keeps what it needs of earlier samples.
pub trait Judge {
    /// Judges what is seen now.
    fn judge(&mut self, seen: &Seen<'_>) -> Health;
}

/// The companion's half: reads what its program counted.
pub trait Source {
    /// The counts, as the judge of the same file reads them.
    fn read(&mut self) -> serde_json::Value;
}

/// What a judge may look at.
pub struct Seen<'a> {
    /// The machine, reading half.
    pub host: &'a Host,
    /// The companion's newest sample, or why there is none.
    pub companion: Result<&'a Sample, &'a str>,
    /// The newest counts of the kernel halves, by probe id.
    pub sources: &'a Sources,
    /// Whether the broker says that a peer is connected, for those that are known.
    pub online: &'a BTreeMap<Name, bool>,
    /// This node.
    pub node: &'a Name,
    /// Monotonic time.
    pub now: Instant,
}

impl Seen<'_> {
    /// What the kernel half of probe `id` counted.
    ///
    /// # Errors
    /// Why it could not: no companion, or the kernel refused the program.
    pub fn kernel<T: serde::de::DeserializeOwned>(&self, id: &str) -> Result<T, String> {
        self.companion?;
        let source = match self.sources.get(id) {
            Some(source) => source.as_ref().map_err(String::clone)?,
            None => return Err(format!("the companion has no program for {id}; is it of another version?")),
        };
        serde_json::from_value(source.clone()).map_err(|e| format!("the companion's counts of {id}: {e}"))
    }
}

/// What a judge says.
#[derive(Debug, Default, PartialEq)]
pub struct Health {
    /// By id.
    pub readings: Vec<(String, Reading)>,
    /// All statements, also the clear ones.
    pub statements: Vec<Statement>,
    /// This node's row of the mesh; only the mesh probe fills it.
    pub links: BTreeMap<Name, PeerReport>,
}

impl Health {
    /// Adds a reading; `None` = could not be read this time.
    pub fn reading(&mut self, id: &str, title: &str, value: Option<f64>, unit: Unit, kind: Kind) {
        self.readings.push((id.to_owned(), Reading { title: title.to_owned(), value, unit, kind }));
    }
}

/// A condition without its history.
#[derive(Debug, Clone, PartialEq)]
pub struct Statement {
    /// See [`wire::report::Condition`].
    pub id: &'static str,
    /// What it is stated of; `None` for the whole node.
    pub subject: Option<String>,
    /// For people.
    pub title: &'static str,
    /// Clear, raised, or could not tell.
    pub status: Status,
    /// How bad it is while raised.
    pub severity: Severity,
    /// What explains it.
    pub depends_on: &'static [&'static str],
    /// What was seen.
    pub evidence: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_every_probe_says_why() {
        for (i, probe) in PROBES.iter().enumerate() {
            assert!(probe.id.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{}", probe.id);
            assert!(!probe.title.is_empty() && !probe.why.is_empty(), "{}", probe.id);
            assert!(PROBES[..i].iter().all(|p| p.id != probe.id), "{} stands twice", probe.id);
        }
    }
}
