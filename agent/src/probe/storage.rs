//! How long the disk below K3s takes to make a write last: one block of 4 KiB, written over and synchronised as etcd and SQLite
//! do with their logs.
//!
//! The agent may not write below K3s' directory, and need not: what is measured is the file system and its drive, in the
//! agent's own directory, where that lies on the same file system. One write every ten minutes, and one a minute for five minutes
//! after K3s was started anew, at most 200 a day: 0.8 MiB. An agent that was started anew waits for a minute to be over since the
//! last one, too.
//!
//! Where K3s' data lie on another file system, nothing is written. What K3s itself waits for tells there: the kernel counts how often
//! a drive had to empty its write cache, which is what the end of a write that is to last costs, and how long that took.

use std::{
    collections::VecDeque,
    sync::mpsc::{Receiver, TryRecvError, channel},
    time::{Duration, Instant},
};

use wire::report::{Kind, Rank, Severity, Status, Unit};

use super::{Health, Judge, Pace, Probe, Seen, Statement, k3s};
use crate::host::{Host, disk::Flushes, state::State};

/// The table's row.
pub(super) const PROBE: Probe = Probe {
    id: "storage",
    title: "Storage",
    why: "K3s ends itself when its database waits too long for the disk, and its log does not say that it did.",
    pace: Pace::Report,
    judge: || Box::new(Storage::default()),
    kernel: None,
};

/// When the last write began, seconds since boot.
const FILE: &str = "sync";
/// K3s' data.
const DATA: &str = "/var/lib/rancher/k3s";

const USUAL: Duration = Duration::from_secs(600);
const CLOSE: Duration = Duration::from_secs(60);
/// Writes at the closer pace after K3s was started anew.
const CLOSELY: u32 = 5;
/// Writes within [`DAY`], at most.
const MOST: usize = 200;
const DAY: Duration = Duration::from_secs(86_400);
/// etcd's election timeout: a member that waits longer for its disk has lost the lead.
const TOO_LONG: Duration = Duration::from_secs(1);
/// A median that no healthy card has.
const SLOW: Duration = Duration::from_millis(100);
/// How long one write that took too long is told.
const TOLD: Duration = Duration::from_secs(3600);

#[derive(Default)]
struct Storage {
    /// Since when a write is on its way, and where its time will arrive.
    running: Option<(Instant, Receiver<std::io::Result<Duration>>)>,
    /// Of the last day, the oldest first.
    writes: VecDeque<(Instant, Duration)>,
    /// When the last write began.
    begun: Option<Instant>,
    /// Why the last attempt was none.
    failed: Option<String>,
    /// Writes that are still wanted at the closer pace.
    closely: u32,
    /// K3s' run, and when it was seen to be another one.
    run: Option<String>,
    anew: Option<(Instant, jiff::Timestamp)>,
    /// What the drive itself tells, where nothing can be written.
    elsewhere: Elsewhere,
}

impl Judge for Storage {
    fn judge(&mut self, seen: &Seen<'_>) -> Health {
        let mut health = Health::default();
        if seen.host.present(DATA) == Ok(false) {
            return health;
        }
        self.follow(seen);
        match place(seen.host, seen.state) {
            Ok(Place::Here(place)) => {
                self.collect(seen.now);
                self.begin(seen);
                self.tell(&mut health, Ok(place), seen);
            }
            Ok(Place::On(drive)) => {
                let told = self.elsewhere.look(seen.host.flushes(&drive), seen.now);
                let mean = self.elsewhere.mean().map(milliseconds);
                health.reading("disk-flush", "Disk flush, mean", mean, Unit::Millisecond, Kind::Gauge);
                let said = self.elsewhere.tell(&drive, told, seen.now);
                self.state(&mut health, said, self.elsewhere.around(), seen);
            }
            Err(why) => self.tell(&mut health, Err(why), seen),
        }
        health.rank(Rank::Diagnostic, |_| true);
        health
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// How it can be told.
#[derive(Debug, PartialEq)]
enum Place {
    /// By writing; where, in words.
    Here(String),
    /// By what the kernel counts of this drive.
    On(String),
}

fn place(host: &Host, state: &State) -> Result<Place, String> {
    let own = state.directory().to_string_lossy().into_owned();
    let number = |path: &str| host.file_system(path).map_err(|why| why.to_string());
    let data = number(DATA)?;
    if data == number(&own)? {
        return Ok(Place::Here(format!("measured in {own}, on the file system of {DATA}")));
    }
    host.drive(data).map(Place::On).ok_or_else(|| {
        format!(
            "{DATA} is on another file system than {own}, where bramble may write, and on no drive of which the kernel \
             tells; with node.state_dir on it, it is measured"
        )
    })
}

/// A drive on which nothing is written.
#[derive(Default)]
struct Elsewhere {
    before: Option<Flushes>,
    /// What was added at each look within the last ten minutes, the oldest first.
    looks: VecDeque<(Instant, Flushes)>,
    /// The look with the longest flushes of the last hour.
    slowest: Option<(Instant, Duration)>,
}

impl Flushes {
    fn mean(self) -> Option<Duration> {
        let mean = self.milliseconds as f64 / self.count as f64;
        (self.count > 0).then(|| Duration::from_secs_f64(mean / 1000.0))
    }
}

impl Elsewhere {
    fn look<E: ToString>(&mut self, now: Result<Flushes, E>, at: Instant) -> Result<(), String> {
        self.looks.retain(|(then, _)| at.duration_since(*then) <= USUAL);
        self.slowest.take_if(|(then, _)| at.duration_since(*then) > TOLD);
        let now = now.map_err(|why| why.to_string())?;
        let before = self.before.replace(now).unwrap_or(now);
        // The kernel hands milliseconds on as 32 bits, and a drive that was taken out begins anew: of that look nothing is known.
        if let (Some(count), Some(milliseconds)) =
            (now.count.checked_sub(before.count), now.milliseconds.checked_sub(before.milliseconds))
        {
            let added = Flushes { count, milliseconds };
            self.looks.push_back((at, added));
            if let Some(mean) = added.mean()
                && self.slowest.is_none_or(|(_, slowest)| mean > slowest)
            {
                self.slowest = Some((at, mean));
            }
        }
        Ok(())
    }

    fn all(&self) -> Flushes {
        self.looks.iter().fold(Flushes::default(), |all, (_, added)| Flushes {
            count: all.count + added.count,
            milliseconds: all.milliseconds + added.milliseconds,
        })
    }

    /// Of the last ten minutes.
    fn mean(&self) -> Option<Duration> {
        self.all().mean()
    }

    fn around(&self) -> Vec<(Instant, Duration)> {
        self.looks.iter().filter_map(|(at, added)| Some((*at, added.mean()?))).collect()
    }

    fn tell(&self, drive: &str, told: Result<(), String>, now: Instant) -> (Status, String) {
        let mean = match (told, self.mean()) {
            (Err(why), _) => return (Status::Unknown, why),
            (Ok(()), None) => {
                let why = format!(
                    "{drive}, which holds {DATA}, has flushed nothing in the last 10 min, or tells of no flushes; with \
                     node.state_dir on it, it is measured"
                );
                return (Status::Unknown, why);
            }
            (Ok(()), Some(mean)) => mean,
        };
        let too_long = self.slowest.filter(|(_, slowest)| *slowest >= TOO_LONG);
        let long = too_long.map_or_else(String::new, |(at, slowest)| {
            let ago = now.duration_since(at).as_secs() / 60;
            format!("those of one look took {:.1} s, {ago} min ago; ", slowest.as_secs_f64())
        });
        let evidence = format!(
            "{long}a flush of {drive}, which holds {DATA}, takes {:.1} ms (mean of {} in the last 10 min)",
            milliseconds(mean),
            self.all().count,
        );
        let slow = too_long.is_some() || mean >= SLOW;
        (if slow { Status::Raised } else { Status::Clear }, evidence)
    }
}

/// How long ago this agent or the one before it began to write, since boot.
fn last_write(seen: &Seen<'_>) -> Option<Duration> {
    let at = seen.run.read(FILE).ok().flatten()?.parse().ok()?;
    seen.uptime.checked_sub(Duration::from_secs(at))
}

impl Storage {
    fn follow(&mut self, seen: &Seen<'_>) {
        let run = k3s::run(seen.host).map(|(_, run)| run);
        if run.is_some() && self.run.is_some() && run != self.run {
            self.anew = Some((seen.now, seen.wall));
            self.closely = CLOSELY;
        }
        self.run = run.or_else(|| self.run.take());
    }

    fn collect(&mut self, now: Instant) {
        while self.writes.front().is_some_and(|(at, _)| now.duration_since(*at) > DAY) {
            self.writes.pop_front();
        }
        let Some((_, times)) = &self.running else { return };
        match times.try_recv() {
            Ok(Ok(time)) => {
                self.writes.push_back((now, time));
                self.failed = None;
            }
            Ok(Err(why)) => self.failed = Some(why.to_string()),
            Err(TryRecvError::Disconnected) => {
                self.failed = Some("the write ended without a word".to_owned())
            }
            Err(TryRecvError::Empty) => return,
        }
        self.running = None;
    }

    fn begin(&mut self, seen: &Seen<'_>) {
        let pace = if self.closely > 0 { CLOSE } else { USUAL };
        let due = match self.begun {
            Some(begun) => seen.now.duration_since(begun) >= pace,
            // An agent that is started again and again must not write each time.
            None => last_write(seen).is_none_or(|ago| ago >= CLOSE),
        };
        if self.running.is_some() || !due || self.writes.len() >= MOST {
            return;
        }
        self.begun = Some(seen.now);
        if let Err(why) = seen.run.write(FILE, &seen.uptime.as_secs().to_string()) {
            tracing::debug!("the time of the last write cannot be kept: {why}");
        }
        self.closely = self.closely.saturating_sub(1);
        let (sender, times) = channel();
        let state = seen.state.clone();
        // A drive that is reset holds a write up for half a minute; the agent goes on meanwhile.
        let thread = std::thread::Builder::new().name("sync".to_owned()).stack_size(64 << 10);
        match thread.spawn(move || sender.send(state.sync_time())) {
            Ok(_) => self.running = Some((seen.now, times)),
            Err(why) => self.failed = Some(why.to_string()),
        }
    }

    /// The time within which a share of the writes was done.
    fn share(&self, share: f64) -> Option<Duration> {
        let mut times: Vec<Duration> = self.writes.iter().map(|(_, time)| *time).collect();
        times.sort_unstable();
        let last = times.len().checked_sub(1)?;
        Some(times[(last as f64 * share).ceil() as usize])
    }

    fn tell(&self, health: &mut Health, place: Result<String, String>, seen: &Seen<'_>) {
        let (half, most) = (self.share(0.5), self.share(0.99));
        let readings = [("sync-p50", "Disk sync, median", half), ("sync-p99", "Disk sync, 99 of 100", most)];
        for (id, title, time) in readings.into_iter().filter(|_| place.is_ok()) {
            health.reading(id, title, time.map(milliseconds), Unit::Millisecond, Kind::Gauge);
        }
        let waiting = self.running.as_ref().map(|(since, _)| seen.now.duration_since(*since));
        let waiting = waiting.filter(|waiting| *waiting >= TOO_LONG);
        let slowest =
            self.writes.iter().filter(|(at, _)| seen.now.duration_since(*at) <= TOLD).max_by_key(|w| w.1);
        let said = match (waiting, half.zip(most), &self.failed, place) {
            (_, _, _, Err(why)) => (Status::Unknown, why),
            (Some(waiting), ..) => {
                (Status::Raised, format!("a write of 4 KiB is on its way since {} s", waiting.as_secs()))
            }
            (None, _, Some(why), Ok(place)) => (Status::Unknown, format!("{why}; {place}")),
            (None, None, None, Ok(place)) => (Status::Unknown, format!("no write is done yet; {place}")),
            (None, Some((half, most)), None, Ok(place)) => {
                let too_long = slowest.filter(|(_, time)| *time >= TOO_LONG);
                let slow = too_long.is_some() || half >= SLOW;
                let long = too_long.map_or_else(String::new, |(at, time)| {
                    let ago = seen.now.duration_since(*at).as_secs() / 60;
                    format!("one took {:.1} s, {ago} min ago; ", time.as_secs_f64())
                });
                let evidence = format!(
                    "{long}4 KiB last after {:.1} ms (median), {:.1} ms (99 of 100), of {} writes; {place}",
                    milliseconds(half),
                    milliseconds(most),
                    self.writes.len(),
                );
                (if slow { Status::Raised } else { Status::Clear }, evidence)
            }
        };
        self.state(health, said, self.writes.iter().copied(), seen);
    }

    /// States it, with what was measured around K3s' last new start.
    fn state(
        &self,
        health: &mut Health,
        (status, mut evidence): (Status, String),
        measured: impl IntoIterator<Item = (Instant, Duration)>,
        seen: &Seen<'_>,
    ) {
        if let Some((at, wall)) = self.anew
            && seen.now.duration_since(at) <= TOLD
        {
            let around = |when: Instant| when + USUAL + CLOSE >= at && when <= at + CLOSE * CLOSELY;
            let slowest = measured.into_iter().filter(|(when, _)| around(*when)).map(|(_, time)| time).max();
            let slowest = slowest.map_or_else(
                || "nothing was measured around it".to_owned(),
                |time| format!("the slowest around it took {:.1} ms", milliseconds(time)),
            );
            evidence = format!("{evidence}; K3s was started anew at {wall:.0}, {slowest}");
        }
        health.statements.push(Statement {
            id: "slow-storage",
            subject: None,
            title: "Disk is too slow for K3s",
            status,
            severity: Severity::Warning,
            depends_on: &["storage-resets", "under-voltage"],
            evidence,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::scene::Scene;

    fn of(milliseconds: &[u64], now: Instant) -> Storage {
        let writes = milliseconds.iter().map(|&time| (now, Duration::from_millis(time))).collect();
        Storage { writes, ..Storage::default() }
    }

    fn told(storage: &Storage, scene: &Scene) -> Health {
        let mut health = Health::default();
        scene.look(|seen| storage.tell(&mut health, Ok("measured here".to_owned()), seen));
        health
    }

    #[test]
    fn a_node_without_k3s_is_not_written_to() {
        let scene = Scene::new();
        assert_eq!(scene.judge(&mut (PROBE.judge)()), Health::default());
    }

    #[test]
    fn what_cannot_be_measured_is_absent_and_says_why() {
        let scene = Scene::new();
        scene.write(&format!("{DATA}/server/db/state.db"), "");
        let health = scene.judge(&mut (PROBE.judge)());
        assert_eq!(health.readings, []);
        assert_eq!(health.said("slow-storage").unwrap().0, Status::Unknown, "a tree has no file systems");
    }

    #[test]
    fn shares_are_those_of_the_writes_and_one_that_took_a_second_is_raised() {
        let scene = Scene::new();
        let now = scene.look(|seen| seen.now);
        let mut times = vec![4; 98];
        times.extend([40, 80]);
        let health = told(&of(&times, now), &scene);
        assert_eq!(health.value("sync-p50"), Some(Some(4.0)));
        assert_eq!(health.value("sync-p99"), Some(Some(80.0)));
        assert_eq!(health.said("slow-storage").unwrap().0, Status::Clear);
        times.push(1300);
        let health = told(&of(&times, now), &scene);
        let (status, evidence) = health.said("slow-storage").unwrap();
        assert_eq!(status, Status::Raised);
        assert!(evidence.starts_with("one took 1.3 s, 0 min ago; "), "{evidence}");
        assert_eq!(told(&of(&[150; 3], now), &scene).said("slow-storage").unwrap().0, Status::Raised);
        assert_eq!(told(&of(&[], now), &scene).said("slow-storage").unwrap().0, Status::Unknown);
    }

    #[test]
    fn writes_are_bounded_however_often_k3s_begins_anew() {
        let mut scene = Scene::new();
        let mut storage = Storage::default();
        let mut begun = 0;
        // Two days of a K3s that begins anew at each report.
        for report in 0..2 * 8640 {
            scene.link("/run/systemd/units/invocation:k3s.service", &format!("{report:032x}"));
            scene.look(|seen| {
                storage.follow(seen);
                storage.collect(seen.now);
                let before = storage.begun;
                if storage.writes.len() < MOST {
                    storage.begin(seen);
                }
                if storage.begun != before {
                    begun += 1;
                    let (_, times) = storage.running.take().unwrap();
                    let time = times.recv().unwrap().unwrap();
                    storage.writes.push_back((seen.now, time));
                    assert!(before.is_none_or(|before| seen.now.duration_since(before) >= CLOSE));
                }
            });
            scene.wait(10);
        }
        assert!((MOST..=2 * MOST).contains(&begun), "{begun}");
    }

    #[test]
    fn an_agent_that_is_started_again_and_again_writes_once_a_minute() {
        let mut scene = Scene::new();
        let mut begun = 0;
        for _ in 0..30 {
            let mut storage = Storage::default();
            scene.look(|seen| storage.begin(seen));
            begun += usize::from(storage.begun.is_some());
            if let Some((_, times)) = storage.running {
                times.recv().unwrap().unwrap();
            }
            scene.wait(10);
        }
        assert_eq!(begun, 5);
    }

    #[test]
    fn a_restart_of_k3s_is_told_with_the_writes_around_it() {
        let mut scene = Scene::new();
        let now = scene.look(|seen| seen.now);
        let mut storage = of(&[5, 900], now);
        scene.link("/run/systemd/units/invocation:k3s.service", "a");
        scene.look(|seen| storage.follow(seen));
        scene.wait(60);
        scene.link("/run/systemd/units/invocation:k3s.service", "b");
        scene.look(|seen| storage.follow(seen));
        let health = told(&storage, &scene);
        let evidence = health.said("slow-storage").unwrap().1;
        assert!(
            evidence.ends_with(
                "K3s was started anew at 2026-11-23T06:01:00Z, the slowest around it took 900.0 ms"
            ),
            "{evidence}"
        );
    }

    #[test]
    fn a_write_that_does_not_end_is_told_while_it_waits() {
        let mut scene = Scene::new();
        let now = scene.look(|seen| seen.now);
        let (_sender, times) = channel();
        let mut storage = of(&[5], now);
        storage.running = Some((now, times));
        scene.wait(12);
        scene.look(|seen| storage.collect(seen.now));
        let health = told(&storage, &scene);
        assert_eq!(
            health.said("slow-storage"),
            Some((Status::Raised, "a write of 4 KiB is on its way since 12 s"))
        );
    }

    #[test]
    fn where_nothing_may_be_written_the_drives_flushes_tell() {
        let scene = Scene::new();
        scene.link("/sys/dev/block/254:0", "../../devices/virtual/block/dm-0");
        scene.link("/sys/devices/virtual/block/dm-0/slaves/nvme0n1p2", "../../../../soc/nvme0n1/nvme0n1p2");
        scene.write("/sys/devices/soc/nvme0n1/nvme0n1p2/partition", "2\n");
        let stat = |flushes: &str| {
            let line = format!("9 0 8 1 9 0 8 1 0 1 1 0 0 0 0 {flushes}\n");
            scene.write("/sys/block/nvme0n1/stat", line);
        };
        let number = nix::sys::stat::makedev(254, 0);
        let (mut elsewhere, mut said) = (Elsewhere::default(), Vec::new());
        for (minute, flushes) in
            ["", "7 70", "7 70", "9 100", "10 1600", "11 1", "13 7"].into_iter().enumerate()
        {
            stat(flushes);
            scene.look(|seen| {
                assert_eq!(seen.host.drive(number).as_deref(), Some("nvme0n1"));
                let now = seen.now + CLOSE * minute as u32;
                let told = elsewhere.look(seen.host.flushes("nvme0n1"), now);
                let mean = elsewhere.mean().map(milliseconds);
                said.push((elsewhere.tell("nvme0n1", told, now).0, mean));
            });
        }
        use Status::{Clear, Raised, Unknown};
        assert_eq!(
            said,
            [
                (Unknown, None),
                (Unknown, None),
                (Unknown, None),
                (Clear, Some(15.0)),
                // One look's single flush of 1.5 s, within the mean of three.
                (Raised, Some(510.0)),
                // The count went on, the time began anew: nothing is known of that look.
                (Raised, Some(510.0)),
                (Raised, Some(1536.0 / 5.0)),
            ]
        );
        scene.look(|seen| {
            let later = seen.now + TOLD + CLOSE * 7;
            elsewhere.look(Ok::<_, String>(Flushes { count: 15, milliseconds: 11 }), later).unwrap();
            let (status, evidence) = elsewhere.tell("nvme0n1", Ok(()), later);
            assert_eq!(status, Clear);
            assert!(evidence.ends_with("takes 2.0 ms (mean of 2 in the last 10 min)"), "{evidence}");
            // A network's file system, and one over two drives.
            assert_eq!(seen.host.drive(nix::sys::stat::makedev(0, 42)), None);
        });
        scene.link("/sys/devices/virtual/block/dm-0/slaves/sda", "../../../../soc/sda");
        scene.look(|seen| assert_eq!(seen.host.drive(number), None));
    }
}
