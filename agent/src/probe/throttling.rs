//! Under-voltage and throttling of a Raspberry Pi: now, and each episode since boot.
//!
//! The firmware's word has four flags and four sticky bits. The kernel's driver `raspberrypi-hwmon` clears the sticky ones
//! every two seconds, so the companion looks every period and keeps what it saw; what was before it started is in
//! the kernel's log. The agent counts episodes and keeps the count over its own restarts, until the next boot. Where
//! there is no mailbox, hwmon's alarm alone tells of under-voltage. See raspberrypi/documentation, "vcgencmd get_throttled".

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use wire::report::{Kind, Rank, Severity, Status, Unit};

use super::{Health, Judge, Pace, Probe, Seen, Source, Statement};
use crate::host::{
    Host, clock,
    kmsg::Log,
    vcio::{self, Mailbox},
};

/// The table's row.
pub(super) const PROBE: Probe = Probe {
    id: "throttling",
    title: "Throttling",
    why: "A weak supply or a hot board makes a Pi slow and corrupts its card; most owners never learn of it.",
    pace: Pace::Report,
    judge: || Box::new(Throttling::default()),
    kernel: Some(|host| Ok(Box::new(Watch::open(host)))),
};

/// The flags, by their bit.
const FLAGS: [&str; 4] = ["under-voltage", "frequency-capped", "throttled", "soft-temperature-limit"];
const UNDER_VOLTAGE: usize = 0;
/// Distance from a flag to its sticky bit.
const STICKY: usize = 16;
/// What is nearer together was one episode: the kernel says it up to its own period of two seconds later.
const SAME: u64 = 3_000_000;
/// Looks that are left out after one that failed: a firmware that hangs holds each question up for a second, and the links
/// to other nodes must be probed meanwhile.
const PAUSE: u32 = 60;
/// Episodes that are handed over at once, by flag.
const MOST: usize = 32;

/// What the companion saw.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Counts {
    /// The newest word; `None` without a mailbox.
    word: Option<u32>,
    /// Why there is no word, where there should be one.
    why: Option<String>,
    /// Begin of the newest episodes by flag, microseconds since boot; 0 = at a time that nobody saw.
    episodes: [Vec<u64>; 4],
}

struct Watch {
    mailbox: Option<Box<dyn Mailbox>>,
    log: Option<Log>,
    clock: fn() -> Duration,
    counts: Counts,
    pause: u32,
}

impl Watch {
    fn open(host: &Host) -> Self {
        let (mailbox, why) = match host.mailbox() {
            Ok(mailbox) => (mailbox.map(|m| Box::new(m) as Box<dyn Mailbox>), None),
            Err(why) => (None, Some(why.to_string())),
        };
        // Without a mailbox the board is no Pi, and its log has nothing to tell.
        let log = mailbox.as_ref().and_then(|_| host.kernel_log().ok());
        let mut watch = Self {
            mailbox,
            log,
            clock: clock::uptime,
            counts: Counts { why, ..Counts::default() },
            pause: 0,
        };
        watch.read_log();
        watch.look();
        watch
    }

    fn read_log(&mut self) {
        let Some(log) = &mut self.log else { return };
        let episodes = &mut self.counts.episodes[UNDER_VOLTAGE];
        log.follow(|line| {
            if tells_under_voltage(&line.text) {
                begin(episodes, line.at_us);
            }
        });
    }
}

/// The driver's words; the spelling changed in Linux 6.
fn tells_under_voltage(line: &str) -> bool {
    line.contains("nder-voltage detected") || line.contains("ndervoltage detected")
}

fn begin(episodes: &mut Vec<u64>, at_us: u64) {
    if episodes.iter().any(|known| known.abs_diff(at_us) <= SAME) {
        return;
    }
    episodes.push(at_us);
    episodes.sort_unstable();
    if episodes.len() > MOST {
        episodes.remove(0);
    }
}

impl Source for Watch {
    fn look(&mut self) {
        let Some(mailbox) = &mut self.mailbox else { return };
        if self.pause > 0 {
            self.pause -= 1;
            return;
        }
        let word = match vcio::throttled(mailbox.as_mut()) {
            Ok(word) => word,
            Err(why) => {
                self.counts.why = Some(why.to_string());
                self.counts.word = None;
                self.pause = PAUSE;
                return;
            }
        };
        let now_us = (self.clock)().as_micros() as u64;
        for (flag, episodes) in self.counts.episodes.iter_mut().enumerate() {
            let bit = |word: u32| [word >> flag & 1 == 1, word >> (flag + STICKY) & 1 == 1];
            match (bit(word), self.counts.word.map(bit)) {
                // Sticky since before anybody looked.
                ([false, true], None) if episodes.is_empty() => episodes.push(0),
                ([true, _], None | Some([false, false])) | ([false, true], Some([false, false])) => {
                    begin(episodes, now_us);
                }
                // It came again while the sticky bit, which nobody clears, was still set.
                ([true, _], Some([false, true])) => begin(episodes, now_us),
                _ => {}
            }
        }
        self.counts.word = Some(word);
        self.counts.why = None;
    }

    fn read(&mut self) -> serde_json::Value {
        self.read_log();
        serde_json::to_value(&self.counts).expect("numbers are JSON")
    }
}

/// The file of what was counted since boot.
const FILE: &str = "throttling";

/// Episodes of one flag since boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Tally {
    count: u64,
    /// Begin of the newest, microseconds since boot; 0 = at a time that nobody saw.
    last_us: u64,
}

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Kept {
    /// The kernel's name of this boot: counts of another are not of interest.
    boot: String,
    tallies: BTreeMap<String, Tally>,
}

#[derive(Default)]
struct Throttling {
    kept: Option<Kept>,
    written: Option<Kept>,
    /// hwmon's alarm at the last time.
    alarm: bool,
}

impl Judge for Throttling {
    fn judge(&mut self, seen: &Seen<'_>) -> Health {
        let mut health = Health::default();
        let alarm = alarm(seen, &mut health);
        let counts: Result<Counts, String> = seen.kernel("throttling");
        let word = counts.as_ref().ok().and_then(|c| c.word);
        if alarm.is_none() && word.is_none() && !is_raspberry_pi(seen.host) {
            return health;
        }
        self.load(seen);
        self.count(seen, counts.as_ref().ok(), alarm);
        self.store(seen);

        let why = match counts {
            Ok(Counts { why: Some(why), .. }) | Err(why) => why,
            Ok(_) => {
                "this kernel has neither the firmware's mailbox nor its driver raspberrypi-hwmon".to_owned()
            }
        };
        let now = |flag: usize| match word {
            // The driver's alarm holds what was within its last two seconds.
            Some(word) => Some(word >> flag & 1 == 1 || flag == UNDER_VOLTAGE && alarm == Some(true)),
            None if flag == UNDER_VOLTAGE => alarm,
            None => None,
        };
        for (flag, title) in [
            (UNDER_VOLTAGE, "Under-voltage episodes"),
            (1, "Frequency capped episodes"),
            (2, "Throttled episodes"),
            (3, "Soft temperature limit episodes"),
        ] {
            let known = now(flag).is_some() || self.tally(flag).count > 0;
            let count = known.then_some(self.tally(flag).count as f64);
            health.reading(&format!("{}-episodes", FLAGS[flag]), title, count, Unit::Count, Kind::Total);
        }
        health.rank(Rank::Diagnostic, |_| true);
        let mut state = |id, title, severity, depends_on, flags: &[usize], advice: &str| {
            let raised: Vec<&str> =
                flags.iter().filter(|&&f| now(f) == Some(true)).map(|&f| FLAGS[f]).collect();
            let history = self.history(seen, flags);
            let (status, evidence) = if !raised.is_empty() {
                (Status::Raised, format!("{} now; {advice}; {history}", raised.join(", ")))
            } else if flags.iter().any(|&f| now(f).is_none()) {
                (Status::Unknown, format!("{why}; {history}"))
            } else {
                (Status::Clear, history)
            };
            health.statements.push(Statement {
                id,
                subject: None,
                title,
                status,
                severity,
                depends_on,
                evidence,
            });
        };
        state(
            "under-voltage",
            "Supply voltage too low",
            Severity::Critical,
            &[],
            &[UNDER_VOLTAGE],
            "the supply or its cable is too weak for this board",
        );
        state(
            "throttled",
            "Processor is slowed down",
            Severity::Warning,
            &["under-voltage"],
            &[1, 2, 3],
            "the firmware takes clock away for heat or for want of power",
        );
        for (id, title, flags, explained) in [
            (
                "under-voltage-since-boot",
                "Supply voltage was too low since boot",
                &[UNDER_VOLTAGE][..],
                &["under-voltage"],
            ),
            ("throttled-since-boot", "Processor was slowed down since boot", &[1, 2, 3][..], &["throttled"]),
        ] {
            let happened = flags.iter().any(|&f| self.tally(f).count > 0);
            let status = match happened {
                true => Status::Raised,
                false if flags.iter().any(|&f| now(f).is_none()) => Status::Unknown,
                false => Status::Clear,
            };
            let evidence = match status {
                Status::Unknown => why.clone(),
                _ => self.history(seen, flags),
            };
            health.statements.push(Statement {
                id,
                subject: None,
                title,
                status,
                severity: Severity::Warning,
                depends_on: explained,
                evidence,
            });
        }
        health
    }
}

impl Throttling {
    fn tally(&self, flag: usize) -> Tally {
        self.kept.as_ref().and_then(|kept| kept.tallies.get(FLAGS[flag])).copied().unwrap_or_default()
    }

    fn load(&mut self, seen: &Seen<'_>) {
        if self.kept.is_some() {
            return;
        }
        let boot = seen.host.text("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        let kept: Option<Kept> =
            seen.run.read(FILE).ok().flatten().and_then(|text| serde_json::from_str(&text).ok());
        let kept = kept.filter(|kept| kept.boot == boot).unwrap_or(Kept { boot, ..Kept::default() });
        self.written = Some(kept.clone());
        self.kept = Some(kept);
    }

    fn count(&mut self, seen: &Seen<'_>, counts: Option<&Counts>, alarm: Option<bool>) {
        let rose = alarm == Some(true) && !self.alarm;
        self.alarm = alarm == Some(true);
        let Some(kept) = &mut self.kept else { return };
        let mut episode = |flag: usize, at_us: u64| {
            let tally = kept.tallies.entry(FLAGS[flag].to_owned()).or_default();
            if tally.count == 0 || at_us > tally.last_us + SAME {
                *tally = Tally { count: tally.count + 1, last_us: at_us };
            }
        };
        match counts {
            Some(counts) if counts.word.is_some() => {
                for (flag, episodes) in counts.episodes.iter().enumerate() {
                    episodes.iter().for_each(|&at_us| episode(flag, at_us));
                }
            }
            _ if rose => episode(UNDER_VOLTAGE, seen.uptime.as_micros() as u64),
            _ => {}
        }
        kept.tallies.retain(|_, tally| tally.count > 0);
    }

    fn store(&mut self, seen: &Seen<'_>) {
        let Some(kept) = self.kept.as_ref().filter(|kept| self.written.as_ref() != Some(kept)) else {
            return;
        };
        let text = serde_json::to_string(kept).expect("numbers are JSON");
        if let Err(why) = seen.run.write(FILE, &text) {
            tracing::debug!("episodes of throttling cannot be kept: {why}");
        }
        // Also when it failed: what is full is not tried every time.
        self.written = Some(kept.clone());
    }

    /// "none since boot", or how often and when last.
    fn history(&self, seen: &Seen<'_>, flags: &[usize]) -> String {
        let told: Vec<String> = flags
            .iter()
            .map(|&flag| (FLAGS[flag], self.tally(flag)))
            .filter(|(_, tally)| tally.count > 0)
            .map(|(name, Tally { count, last_us })| {
                let times = if count == 1 { "once".to_owned() } else { format!("{count} times") };
                let ago = seen.uptime.saturating_sub(Duration::from_micros(last_us));
                match (
                    last_us,
                    jiff::SignedDuration::try_from(ago).ok().and_then(|ago| seen.wall.checked_sub(ago).ok()),
                ) {
                    (0, _) | (_, None) => format!("{name} {times} since boot, at a time that was not seen"),
                    (_, Some(at)) => format!("{name} {times} since boot, last at {at:.0}"),
                }
            })
            .collect();
        if told.is_empty() { "none since boot".to_owned() } else { told.join(", ") }
    }
}

/// hwmon's alarm; `None` where there is none.
fn alarm(seen: &Seen<'_>, health: &mut Health) -> Option<bool> {
    let chip = seen.chips().iter().find(|chip| chip.name == "rpi_volt")?;
    match seen.host.number_again(&format!("{}/in0_lcrit_alarm", chip.directory)) {
        Ok(number) => number.map(|number| number != 0),
        Err(why) => {
            health.statements.push(super::unbelievable("under-voltage", why.to_string()));
            None
        }
    }
}

fn is_raspberry_pi(host: &Host) -> bool {
    host.bytes("/proc/device-tree/model").is_ok_and(|model| model.starts_with(b"Raspberry Pi"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{host::vcio::stand_in::Firmware, probe::scene::Scene};

    /// The stand-in, which the test keeps a hand on, and a clock that the test sets.
    #[derive(Clone, Default)]
    struct Shared(std::rc::Rc<std::cell::RefCell<Firmware>>);

    impl Mailbox for Shared {
        fn exchange(&mut self, message: &mut [u32]) -> std::io::Result<()> {
            self.0.borrow_mut().exchange(message)
        }
    }

    thread_local!(static UPTIME: std::cell::Cell<u64> = const { std::cell::Cell::new(0) });

    fn watch(firmware: &Shared) -> Watch {
        Watch {
            mailbox: Some(Box::new(firmware.clone())),
            log: None,
            clock: || Duration::from_secs(UPTIME.get()),
            counts: Counts::default(),
            pause: 0,
        }
    }

    #[test]
    fn a_firmware_that_hangs_is_asked_once_a_minute_and_its_silence_is_told() {
        let firmware = Shared::default();
        let mut watch = watch(&firmware);
        firmware.0.borrow_mut().broken = true;
        watch.look();
        assert!(watch.counts.why.as_ref().is_some_and(|why| why.starts_with("/dev/vcio")));
        firmware.0.borrow_mut().broken = false;
        let asked: Vec<bool> = (0..=PAUSE)
            .map(|_| {
                watch.look();
                watch.counts.word.is_some()
            })
            .collect();
        assert_eq!(asked.iter().filter(|asked| **asked).count(), 1, "only after the pause");
        assert_eq!(watch.counts.why, None);
    }

    fn look(watch: &mut Watch, firmware: &Shared, second: u64, word: u32) {
        firmware.0.borrow_mut().throttled = word;
        UPTIME.set(second);
        watch.look();
    }

    #[test]
    fn sticky_bits_that_the_driver_clears_between_two_looks_are_not_lost() {
        let firmware = Shared::default();
        let mut watch = watch(&firmware);
        // The second word: an episode that was over before anybody looked. Then the driver clears its mark.
        for (second, word) in [(10, 0), (11, 0x1_0000), (12, 0), (20, 0x4_0004), (21, 0x4_0004), (22, 0)] {
            look(&mut watch, &firmware, second, word);
        }
        let counts: Counts = serde_json::from_value(watch.read()).unwrap();
        assert_eq!(counts.episodes[0], [11_000_000]);
        assert_eq!(counts.episodes[2], [20_000_000]);
        assert_eq!(counts.word, Some(0));
    }

    #[test]
    fn what_was_before_the_first_look_is_one_episode_at_an_unknown_time() {
        let firmware = Shared::default();
        let mut watch = watch(&firmware);
        for second in 10..20 {
            look(&mut watch, &firmware, second, 0x5_0000);
        }
        // Nobody clears on this kernel, and it comes again.
        look(&mut watch, &firmware, 30, 0x5_0005);
        assert_eq!(watch.counts.episodes[0], [0, 30_000_000]);
        assert_eq!(watch.counts.episodes[2], [0, 30_000_000]);
    }

    #[test]
    fn the_drivers_words_in_the_log_are_known_in_both_spellings() {
        assert!(tells_under_voltage("Under-voltage detected! (0x00050005)"));
        assert!(tells_under_voltage("hwmon hwmon1: Undervoltage detected!"));
        assert!(!tells_under_voltage("hwmon hwmon1: Voltage normalised"));
    }

    fn pi(scene: Scene) -> Scene {
        scene.write("/proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0");
        scene.write("/proc/sys/kernel/random/boot_id", "one\n");
        scene
    }

    fn tell(scene: &mut Scene, counts: &Counts) {
        scene.sources.insert("throttling".to_owned(), Ok(serde_json::to_value(counts).unwrap()));
    }

    fn under_voltage(at_us: &[u64], word: u32) -> Counts {
        let mut episodes = <[Vec<u64>; 4]>::default();
        episodes[0] = at_us.to_vec();
        Counts { word: Some(word), why: None, episodes }
    }

    #[test]
    fn a_machine_that_is_no_pi_has_no_such_readings() {
        let health = Scene::new().judge(&mut (PROBE.judge)());
        assert_eq!(health, Health::default());
    }

    #[test]
    fn a_pi_that_cannot_tell_says_so() {
        let health = pi(Scene::new()).judge(&mut (PROBE.judge)());
        assert_eq!(health.value("under-voltage-episodes"), Some(None));
        for id in ["under-voltage", "throttled", "under-voltage-since-boot"] {
            assert_eq!(health.said(id).unwrap().0, Status::Unknown, "{id}");
        }
    }

    #[test]
    fn episodes_are_counted_once_over_restarts_of_agent_and_companion_and_not_over_a_boot() {
        let mut scene = pi(Scene::with_companion());
        tell(&mut scene, &under_voltage(&[5_000_000, 900_000_000], 1));
        let mut judge = (PROBE.judge)();
        let health = scene.judge(&mut judge);
        assert_eq!(health.value("under-voltage-episodes"), Some(Some(2.0)));
        let (status, evidence) = health.said("under-voltage").unwrap();
        assert_eq!(status, Status::Raised);
        assert!(evidence.contains("2 times since boot, last at 2026-11-23T05:58:20Z"), "{evidence}");
        // A new agent, and a new companion that found the same in the kernel's log, a second off.
        scene.wait(10);
        tell(&mut scene, &under_voltage(&[901_000_000], 0));
        let health = scene.judge(&mut (PROBE.judge)());
        assert_eq!(health.value("under-voltage-episodes"), Some(Some(2.0)));
        assert_eq!(health.said("under-voltage").unwrap().0, Status::Clear);
        assert_eq!(health.said("under-voltage-since-boot").unwrap().0, Status::Raised);
        scene.write("/proc/sys/kernel/random/boot_id", "two\n");
        tell(&mut scene, &under_voltage(&[], 0));
        let health = scene.judge(&mut (PROBE.judge)());
        assert_eq!(health.value("under-voltage-episodes"), Some(Some(0.0)));
        assert_eq!(health.said("under-voltage-since-boot").unwrap().0, Status::Clear);
    }

    #[test]
    fn a_clock_that_jumps_by_fifty_years_moves_no_episode() {
        let mut scene = pi(Scene::with_companion());
        tell(&mut scene, &under_voltage(&[900_000_000], 0));
        let mut judge = (PROBE.judge)();
        scene.judge(&mut judge);
        scene.wall = "1976-11-23T06:00:00Z".parse().unwrap();
        let health = scene.judge(&mut judge);
        assert_eq!(health.value("under-voltage-episodes"), Some(Some(1.0)));
        assert!(health.said("under-voltage").unwrap().1.contains("1976-11-23T05:58:20Z"));
        scene.wall = jiff::Timestamp::MIN;
        assert!(scene.judge(&mut judge).said("under-voltage").unwrap().1.contains("not seen"));
    }

    #[test]
    fn without_the_companion_the_alarm_tells_wherever_hwmon_moved_to() {
        let mut scene = pi(Scene::new());
        let mut judge = (PROBE.judge)();
        scene.write("/sys/class/hwmon/hwmon1/name", "rpi_volt\n");
        scene.write("/sys/class/hwmon/hwmon1/in0_lcrit_alarm", "0\n");
        let health = scene.judge(&mut judge);
        assert_eq!(health.said("under-voltage").unwrap().0, Status::Clear);
        assert_eq!(health.said("throttled").unwrap().0, Status::Unknown, "the alarm does not tell");
        scene.remove("/sys/class/hwmon/hwmon1");
        scene.write("/sys/class/hwmon/hwmon4/name", "rpi_volt\n");
        scene.write("/sys/class/hwmon/hwmon4/in0_lcrit_alarm", "1\n");
        scene.wait(10);
        let health = scene.judge(&mut judge);
        assert_eq!(health.said("under-voltage").unwrap().0, Status::Raised);
        assert_eq!(health.value("under-voltage-episodes"), Some(Some(1.0)));
        scene.write("/sys/class/hwmon/hwmon4/in0_lcrit_alarm", "many\n");
        let health = scene.judge(&mut judge);
        assert_eq!(health.said("under-voltage").unwrap().0, Status::Unknown);
        assert!(health.said("sensor").unwrap().1.contains("not understood"));
    }
}
