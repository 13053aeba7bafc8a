//! Health probes: one file per source of readings, and the table of them.
//!
//! A probe has up to two halves. The judge runs in the agent, without rights, on what was sampled; the kernel half, where
//! there is one, runs in the companion, holds an eBPF program and hands its counts over. A probe that cannot run is a
//! condition, not a crash and not silence.

use std::{
    cell::OnceCell,
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
    host::{Host, Unreadable, hwmon::Chip, state::State},
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
    /// Looks, once a period and at least once a second, at what would be gone by the next reading.
    fn look(&mut self) {}

    /// The counts, as the judge of the same file reads them.
    fn read(&mut self) -> serde_json::Value;
}

/// What a judge may look at.
pub struct Seen<'a> {
    /// The machine, reading half.
    pub host: &'a Host,
    /// Its hardware monitors, once somebody has asked.
    pub chips: &'a OnceCell<Vec<Chip>>,
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
    /// The machine's hardware monitors.
    pub fn chips(&self) -> &[Chip] {
        self.chips.get_or_init(|| self.host.hwmon())
    }

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
    /// How K3s came here; only its own probe fills it.
    pub k3s: Option<wire::report::K3s>,
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
            let sample = Sample {
                tier,
                address: None,
                period_ms: 1000,
                next_ms: 1000,
                changes: Vec::new(),
                mesh,
                sources: None,
            };
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
                chips: &OnceCell::new(),
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

    /// A Pi 5 with all that the probes of the agent know, as far as a tree can have it.
    fn rich() -> scene::Scene {
        let mut scene = scene::Scene::with_companion();
        for (path, text) in [
            ("/proc/stat", "cpu  1 0 1 1 1 0 0 0 0 0\nbtime 1763870000\n"),
            ("/proc/meminfo", "MemTotal: 8000 kB\nMemAvailable: 4000 kB\n"),
            ("/proc/pressure/cpu", "some avg10=0.00 avg60=1.00 avg300=0.00 total=1\n"),
            ("/proc/pressure/memory", "full avg10=0.00 avg60=1.00 avg300=0.00 total=1\n"),
            ("/proc/pressure/io", "full avg10=0.00 avg60=1.00 avg300=0.00 total=1\n"),
            (
                "/proc/net/route",
                "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                 eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n",
            ),
            ("/sys/class/net/eth0/statistics/rx_bytes", "1\n"),
            ("/sys/class/net/eth0/statistics/tx_bytes", "1\n"),
            ("/proc/diskstats", " 259 0 nvme0n1 1 0 8 0 1 0 16 0\n"),
            ("/proc/net/wireless", "|\n|\nwlan0: 0000   54.  -56.  -256 0 0 0 0 0 0\n"),
            ("/sys/class/hwmon/hwmon0/name", "cpu_thermal\n"),
            ("/sys/class/hwmon/hwmon0/temp1_input", "48312\n"),
            ("/sys/class/hwmon/hwmon1/name", "rp1_adc\n"),
            ("/sys/class/hwmon/hwmon1/temp1_input", "48312\n"),
            ("/sys/class/hwmon/hwmon2/name", "pwmfan\n"),
            ("/sys/class/hwmon/hwmon2/fan1_input", "3021\n"),
            ("/sys/class/hwmon/hwmon2/pwm1", "125\n"),
            ("/sys/class/hwmon/hwmon3/name", "nvme\n"),
            ("/sys/class/hwmon/hwmon3/temp1_input", "39850\n"),
            ("/sys/class/hwmon/hwmon4/name", "rpi_volt\n"),
            ("/sys/class/hwmon/hwmon4/in0_lcrit_alarm", "0\n"),
            ("/sys/class/rtc/rtc0/battery_voltage", "3041200\n"),
            ("/sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq", "2400000\n"),
            ("/sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq", "2400000\n"),
            ("/sys/fs/ext4/nvme0n1p2/errors_count", "0\n"),
            ("/sys/block/mmcblk0/device/life_time", "0x01 0x02\n"),
            ("/var/lib/update-notifier/updates-available", "1 package can be updated.\n"),
        ] {
            scene.write(path, text);
        }
        let look = crate::kubernetes::Look {
            at_us: scene.uptime.as_micros() as u64,
            node: Ok(Vec::new()),
            api_ms: Some(7.0),
            api_phases_ms: Some([0.5, 5.0, 1.5]),
            dns_ms: Ok(1.0),
            service_ms: Ok(1.0),
            told: None,
        };
        let file = format!("{}/{}", crate::kubernetes::DIRECTORY, crate::kubernetes::FILE);
        scene.write(&file, serde_json::to_string(&look).unwrap());
        scene.link("/sys/class/hwmon/hwmon3/device", "../../nvme0");
        scene.link("/run/systemd/units/invocation:k3s.service", "0123456789abcdef0123456789abcdef");
        let rails = "3V3_SYS_A current(1)=0.12A\n3V3_SYS_V volt(9)=3.3V\nEXT5V_V volt(24)=5.05V";
        let answer = serde_json::json!({"core_uv": 876_800, "rails": rails});
        scene.sources.insert("power".to_owned(), Ok(answer));
        scene
    }

    #[test]
    fn every_reading_stands_where_a_person_looks_for_it() {
        use Rank::{Diagnostic, Hidden, Main};
        let scene = rich();
        let known = BTreeMap::from([
            ("api-answer-latency", Hidden),
            ("api-connect-latency", Hidden),
            ("api-latency", Diagnostic),
            ("api-tls-latency", Hidden),
            ("board-power", Main),
            ("clock-error", Hidden),
            ("cluster-dns-latency", Diagnostic),
            ("core-voltage", Diagnostic),
            ("cpu-clock", Diagnostic),
            ("cpu-clock-cap", Diagnostic),
            ("cpu-pressure", Diagnostic),
            ("cpu-temperature", Main),
            ("cpu-usage", Main),
            ("disk-read", Diagnostic),
            ("disk-written", Diagnostic),
            ("dropped-packets", Hidden),
            ("fan-drive", Diagnostic),
            ("fan-speed", Diagnostic),
            ("file-system-errors", Diagnostic),
            ("frequency-capped-episodes", Diagnostic),
            ("soft-temperature-limit-episodes", Diagnostic),
            ("throttled-episodes", Diagnostic),
            ("under-voltage-episodes", Diagnostic),
            ("io-pressure", Diagnostic),
            ("k3s-restarts", Diagnostic),
            ("last-boot", Diagnostic),
            ("memory-pressure", Diagnostic),
            ("memory-usage", Main),
            ("mmcblk0-life-used", Diagnostic),
            ("network-received", Main),
            ("network-sent", Main),
            ("nvme0-temperature", Diagnostic),
            ("pending-upgrades", Diagnostic),
            ("rail-3v3-sys-voltage", Hidden),
            ("rp1-temperature", Diagnostic),
            ("rtc-battery", Diagnostic),
            ("service-latency", Diagnostic),
            ("storage-resets", Diagnostic),
            ("supply-voltage", Diagnostic),
            ("wlan0-signal", Diagnostic),
            ("worst-probe-loss", Main),
            ("worst-round-trip", Main),
        ]);
        let seen: BTreeMap<String, Rank> = PROBES
            .iter()
            .flat_map(|probe| scene.judge(&mut (probe.judge)()).readings)
            .map(|(id, reading)| (id, reading.rank))
            .collect();
        let seen: BTreeMap<&str, Rank> = seen.iter().map(|(id, rank)| (id.as_str(), *rank)).collect();
        assert_eq!(seen, known);
    }
}
