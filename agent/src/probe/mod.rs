//! Health probes: one file per source of readings, and the table of them.
//!
//! A probe has up to two halves. The judge runs in the agent, without rights, on what was sampled; the kernel half, where
//! there is one, runs in the companion, holds an eBPF program and hands its counts over. A probe that cannot run is a
//! condition, not a crash and not silence.

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use wire::{
    report::{Kind, PeerReport, Rank, Reading, Severity, Status, Unit},
    topic::Name,
};

use crate::{
    companion::{Sample, Sources},
    datapath::Refused,
    host::{Host, Unreadable, state::State},
};

mod drop;
mod fan;
mod filesystem;
mod firmware;
mod frequency;
mod k3s;
mod k3s_node;
mod kubernetes;
mod load;
mod memory;
pub mod mesh;
mod power;
mod pressure;
mod rate;
mod reset;
mod rtc;
mod storage;
mod temperature;
mod throttling;
mod time;
mod upkeep;
mod wear;
mod wifi;

/// All probes, in the order of the report.
pub const PROBES: &[Probe] = &[
    mesh::PROBE,
    drop::PROBE,
    throttling::PROBE,
    temperature::PROBE,
    fan::PROBE,
    power::PROBE,
    frequency::PROBE,
    rtc::PROBE,
    firmware::PROBE,
    load::PROBE,
    memory::PROBE,
    pressure::PROBE,
    rate::PROBE,
    wifi::PROBE,
    filesystem::PROBE,
    wear::PROBE,
    reset::PROBE,
    storage::PROBE,
    time::PROBE,
    upkeep::PROBE,
    k3s_node::PROBE,
    k3s::PROBE,
    kubernetes::PROBE,
];

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
    /// With every pass over the requirements, some minutes apart: the source hardly ever changes.
    Check,
}

/// The agent's half: turns what was seen into readings and statements. Keeps what it needs of earlier samples.
pub trait Judge {
    /// Judges what is seen now.
    fn judge(&mut self, seen: &Seen<'_>) -> Health;
}

/// The companion's half: reads what its program counted.
pub trait Source {
    /// Looks, once a period, at what would be gone by the next reading.
    fn look(&mut self) {}

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
    /// Why a peer and this node cannot probe each other, for those of which that is known.
    pub hindered: &'a BTreeMap<Name, String>,
    /// This node.
    pub node: &'a Name,
    /// What must survive a restart of the machine: on its disk.
    pub state: &'a State,
    /// What must survive a restart of the agent, and means nothing after the next boot: in memory, so it wears nothing.
    pub run: &'a State,
    /// Monotonic time.
    pub now: Instant,
    /// Time since boot, as the kernel's log counts it.
    pub uptime: Duration,
    /// The wall clock, which somebody may set.
    pub wall: jiff::Timestamp,
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
    /// What is told in words and hardly ever changes: a version, a source.
    pub about: BTreeMap<&'static str, String>,
}

impl Health {
    /// Adds a reading; `None` = could not be read this time.
    ///
    /// A total is for those who ask for it; [`Health::rank`] says otherwise.
    pub fn reading(&mut self, id: &str, title: &str, value: Option<f64>, unit: Unit, kind: Kind) {
        let rank = if kind == Kind::Total { Rank::Hidden } else { Rank::Main };
        self.readings.push((id.to_owned(), Reading { title: title.to_owned(), value, unit, kind, rank }));
    }

    /// Says how much of a person's attention those readings deserve that `which` takes, by id.
    pub fn rank(&mut self, rank: Rank, which: impl Fn(&str) -> bool) {
        let named = self.readings.iter_mut().filter(|(id, _)| which(id));
        named.for_each(|(_, reading)| reading.rank = rank);
    }

    /// Adds what a sensor gives: nothing where there is none, and of nonsense that it is nonsense.
    pub fn sensor(
        &mut self,
        id: &str,
        title: &str,
        unit: Unit,
        possible: RangeInclusive<f64>,
        read: Result<Option<f64>, Unreadable>,
    ) {
        let (value, nonsense) = match read {
            Ok(None) => return,
            Ok(Some(value)) if possible.contains(&value) => (Some(value), None),
            Ok(Some(value)) => (None, Some(format!("it gives {value}, which cannot be"))),
            Err(why) => (None, Some(why.to_string())),
        };
        self.reading(id, title, value, unit, Kind::Gauge);
        self.statements.extend(nonsense.map(|evidence| unbelievable(id, evidence)));
    }
}

/// States that what a sensor gives is no measurement.
fn unbelievable(sensor: &str, evidence: String) -> Statement {
    Statement {
        id: "sensor",
        subject: Some(sensor.to_owned()),
        title: "Sensor cannot be believed",
        status: Status::Unknown,
        severity: Severity::Warning,
        depends_on: &[],
        evidence,
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
#[allow(clippy::disallowed_methods, reason = "the tests build trees")]
pub(crate) mod scene {
    //! A machine for the tests of a probe: a tree that they write, clocks that they set, and what the companion would say.

    use super::*;

    pub(crate) struct Scene {
        directory: std::path::PathBuf,
        host: Host,
        state: State,
        run: State,
        pub(crate) companion: Result<Sample, String>,
        pub(crate) sources: Sources,
        start: Instant,
        pub(crate) uptime: Duration,
        pub(crate) wall: jiff::Timestamp,
    }

    impl Scene {
        pub(crate) fn new() -> Self {
            use std::sync::atomic::{AtomicU32, Ordering};
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let name =
                format!("bramble-scene-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
            let directory = std::env::temp_dir().join(name);
            std::fs::create_dir_all(directory.join("proc")).unwrap();
            // What a test does not write, its machine does not have.
            std::fs::write(directory.join("absent"), "/proc/\n/sys/\n/run/\n/var/\n/lib/\n/etc/\n").unwrap();
            Self {
                host: Host::tree(&directory).unwrap(),
                state: State::new(&directory.join("state")),
                run: State::new(&directory.join("run/bramble")),
                companion: Err("no companion".to_owned()),
                sources: Sources::new(),
                start: Instant::now(),
                uptime: Duration::from_secs(1000),
                wall: "2026-11-23T06:00:00Z".parse().unwrap(),
                directory,
            }
        }

        /// One with a companion that has nothing to say yet.
        pub(crate) fn with_companion() -> Self {
            let tier =
                wire::report::Tier { stamps: wire::report::Stamps::None, attached: None, why: String::new() };
            let mesh = Err(String::new());
            let sample = Sample { tier, address: None, period_ms: 1000, mesh, sources: None };
            let mut scene = Self::new();
            scene.companion = Ok(sample);
            scene
        }

        pub(crate) fn write(&self, path: &str, text: impl AsRef<[u8]>) {
            let path = self.directory.join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }

        pub(crate) fn link(&self, path: &str, target: &str) {
            let path = self.directory.join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let _ = std::fs::remove_file(&path);
            std::os::unix::fs::symlink(target, path).unwrap();
        }

        pub(crate) fn remove(&self, path: &str) {
            let path = self.directory.join(path.trim_start_matches('/'));
            if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.unwrap();
        }

        /// Both clocks go on together.
        pub(crate) fn wait(&mut self, seconds: u64) {
            self.uptime += Duration::from_secs(seconds);
            self.wall += Duration::from_secs(seconds);
        }

        pub(crate) fn judge(&self, judge: &mut Box<dyn Judge>) -> Health {
            self.look(|seen| judge.judge(seen))
        }

        pub(crate) fn look<T>(&self, look: impl FnOnce(&Seen<'_>) -> T) -> T {
            look(&Seen {
                host: &self.host,
                companion: self.companion.as_ref().map_err(String::as_str),
                sources: &self.sources,
                online: &BTreeMap::new(),
                hindered: &BTreeMap::new(),
                node: &Name::new("n1").unwrap(),
                state: &self.state,
                run: &self.run,
                now: self.start + self.uptime,
                uptime: self.uptime,
                wall: self.wall,
            })
        }
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }

    impl Health {
        /// The reading's value; the outer `None` when there is no such reading.
        pub(crate) fn value(&self, id: &str) -> Option<Option<f64>> {
            self.readings.iter().find(|(known, _)| known == id).map(|(_, reading)| reading.value)
        }

        /// Status and evidence of the statement.
        pub(crate) fn said(&self, id: &str) -> Option<(Status, &str)> {
            self.statements.iter().find(|s| s.id == id).map(|s| (s.status, s.evidence.as_str()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_every_probe_says_why() {
        for (i, probe) in PROBES.iter().enumerate() {
            let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            assert!(probe.id.bytes().all(is_plain), "{}", probe.id);
            assert!(!probe.title.is_empty() && !probe.why.is_empty(), "{}", probe.id);
            assert!(PROBES[..i].iter().all(|p| p.id != probe.id), "{} stands twice", probe.id);
        }
    }
}
