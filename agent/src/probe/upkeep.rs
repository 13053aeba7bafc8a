//! What waits for the owner: a reboot, and upgrades as far as files tell without asking apt.
//!
//! Ubuntu's update-notifier keeps a text with the number. Debian and Raspberry Pi OS have no such file: there what is installed is held
//! against apt's lists, beside the agent's other work, when one of the two has changed, at most once an hour, and once a day in any
//! case. An agent that has just started leaves that for its next pass, because then the machine may have just started as well.

use std::{
    sync::mpsc::{Receiver, TryRecvError, channel},
    time::Duration,
};

use wire::report::{Kind, Rank, Severity, Status, Unit};

use super::{Health, Judge, Pace, Probe, Seen, Statement};
use crate::{
    facts::{Fact, reboot, upgrade},
    host::{Host, state::State},
};

/// The table's row.
pub(super) const PROBE: Probe = Probe {
    id: "upkeep",
    title: "Upkeep",
    why: "A kernel that was replaced on disk runs on until somebody reboots.",
    pace: Pace::Check,
    judge: || Box::new(Upkeep::default()),
    kernel: None,
};

/// The last count, and seconds since boot when it began.
const FILE: &str = "upgrades";
const SELDOM: Duration = Duration::from_secs(86_400);
const OFTEN: Duration = Duration::from_secs(3600);

#[derive(Default)]
struct Upkeep {
    /// Whether this is not the first pass.
    goes_on: bool,
    /// When the last count began, since boot; what came of it; and where that will arrive.
    begun: Option<Duration>,
    count: Option<usize>,
    running: Option<Receiver<Fact<usize>>>,
}

impl Judge for Upkeep {
    fn judge(&mut self, seen: &Seen<'_>) -> Health {
        let mut health = Health::default();
        let (status, evidence) = pending(seen.host);
        health.statements.push(Statement {
            id: "reboot-pending",
            subject: None,
            title: "Waits for a reboot",
            status,
            severity: Severity::Warning,
            depends_on: &[],
            evidence,
        });
        let notice = seen.host.text_if_present("/var/lib/update-notifier/updates-available");
        let pending = match notice.ok().flatten() {
            Some(notice) => upgrades(&notice).map(Some),
            None if upgrade::is_told(seen.host) == Ok(true) => {
                self.count(seen);
                Some(self.count.map(|count| count as f64))
            }
            None => None,
        };
        if let Some(pending) = pending {
            health.reading("pending-upgrades", "Pending upgrades", pending, Unit::Count, Kind::Gauge);
        }
        health.rank(Rank::Diagnostic, |_| true);
        health
    }
}

impl Upkeep {
    /// Takes a count that has ended, and begins one that is due.
    fn count(&mut self, seen: &Seen<'_>) {
        if let Some(running) = &self.running {
            match running.try_recv() {
                Err(TryRecvError::Empty) => return,
                // What cannot be read is not told, and tried again in its time.
                counted => self.count = counted.ok().and_then(Result::ok),
            }
            self.running = None;
            keep(seen.run, self.begun.unwrap_or_default(), self.count);
        }
        if !std::mem::replace(&mut self.goes_on, true) {
            if let Some((begun, count)) = kept(seen.run).filter(|(begun, _)| *begun <= seen.uptime) {
                (self.begun, self.count) = (Some(begun), count);
            }
            return;
        }
        let is_due = self.begun.is_none_or(|begun| {
            let ago = seen.uptime.saturating_sub(begun);
            let is_newer = |path: &str| seen.host.age(path).is_some_and(|age| age <= ago);
            let has_changed = || ["/var/lib/apt/lists", "/var/lib/dpkg/status"].into_iter().any(is_newer);
            ago >= SELDOM || (ago >= OFTEN && has_changed())
        });
        let Some(host) = is_due.then(|| seen.host.again()).flatten() else { return };
        self.begun = Some(seen.uptime);
        let (sender, counted) = channel();
        let thread = std::thread::Builder::new().name("upgrades".to_owned()).stack_size(256 << 10);
        // Whether it can be begun is seen by whether anything arrives.
        let _ = thread.spawn(move || sender.send(upgrade::count(&host)));
        self.running = Some(counted);
    }
}

fn keep(run: &State, begun: Duration, count: Option<usize>) {
    let count = count.map_or_else(String::new, |count| count.to_string());
    if let Err(why) = run.write(FILE, &format!("{} {count}", begun.as_secs())) {
        tracing::debug!("the number of upgrades cannot be kept: {why}");
    }
}

fn kept(run: &State) -> Option<(Duration, Option<usize>)> {
    let text = run.read(FILE).ok().flatten()?;
    let (begun, count) = text.split_once(' ')?;
    Some((Duration::from_secs(begun.parse().ok()?), count.parse().ok()))
}

fn pending(host: &Host) -> (Status, String) {
    let reboot = reboot::read(host);
    match &reboot.required {
        Ok(true) => {
            let packages = host.text("/run/reboot-required.pkgs").unwrap_or_default();
            let mut packages: Vec<&str> = packages.lines().map(str::trim).filter(|p| !p.is_empty()).collect();
            packages.sort_unstable();
            packages.dedup();
            let by = if packages.is_empty() { "a package".to_owned() } else { packages.join(", ") };
            return (Status::Raised, format!("{by} asked for it in /run/reboot-required"));
        }
        Ok(false) => {}
        Err(why) => return (Status::Unknown, why.to_string()),
    }
    let release = host.text("/proc/sys/kernel/osrelease").unwrap_or_default();
    match reboot.newer_than(release.trim()) {
        Ok(Some(newer)) => (Status::Raised, format!("{} runs, {newer} is installed", release.trim())),
        Ok(None) => (Status::Clear, "no package asked for one, and the newest kernel runs".to_owned()),
        Err(why) => (Status::Unknown, why.to_string()),
    }
}

/// "12 updates can be applied immediately.", "1 package can be updated." on older releases; empty when there is none.
fn upgrades(notice: &str) -> Option<f64> {
    if notice.trim().is_empty() {
        return Some(0.0);
    }
    let line = notice.lines().find(|line| line.contains(" can be "))?;
    line.split_whitespace().next()?.parse::<u32>().ok().map(f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::scene::Scene;

    #[test]
    fn a_reboot_is_asked_for_by_a_package_or_by_a_newer_kernel() {
        let scene = Scene::new();
        let mut judge = (PROBE.judge)();
        assert_eq!(scene.judge(&mut judge).said("reboot-pending").unwrap().0, Status::Unknown);
        scene.write("/proc/sys/kernel/osrelease", "6.12.62+rpt-rpi-2712\n");
        scene.write("/lib/modules/6.12.62+rpt-rpi-2712/modules.dep", "");
        scene.write("/run/reboot-required", "*** System restart required ***\n");
        scene.write("/run/reboot-required.pkgs", "linux-image-x\nlibc6\nlibc6\n");
        let health = scene.judge(&mut judge);
        assert_eq!(
            health.said("reboot-pending"),
            Some((Status::Raised, "libc6, linux-image-x asked for it in /run/reboot-required"))
        );
        assert_eq!(health.value("pending-upgrades"), None);
    }

    #[test]
    fn the_notifiers_number_is_read_and_anything_else_is_no_number() {
        for (notice, number) in [
            ("", Some(0.0)),
            (
                "\n12 updates can be applied immediately.\n3 of these updates are standard security updates.\n",
                Some(12.0),
            ),
            ("1 package can be updated.\n0 updates are security updates.\n", Some(1.0)),
            (
                "Expanded Security Maintenance for Applications is not enabled.\n\n0 updates can be applied immediately.",
                Some(0.0),
            ),
            ("many updates can be applied", None),
            ("Failed to connect", None),
        ] {
            assert_eq!(upgrades(notice), number, "{notice:?}");
        }
    }

    #[test]
    fn on_debian_they_are_counted_when_something_changed_and_not_at_each_pass() {
        let mut scene = Scene::new();
        let status = |version: &str| {
            format!("Package: a\nStatus: install ok installed\nArchitecture: all\nVersion: {version}\n")
        };
        scene.write("/var/lib/dpkg/status", status("1"));
        scene.write("/var/lib/apt/lists/a_Packages", "Package: a\nArchitecture: all\nVersion: 2\n");
        let mut judge = Upkeep::default();
        // One pass, and what was begun in it has ended before the next.
        let pass = |scene: &mut Scene, judge: &mut Upkeep| {
            let value = scene.look(|seen| judge.judge(seen)).value("pending-upgrades");
            let begun = judge.running.take();
            let has_begun = begun.is_some();
            if let Some(counted) = begun {
                let (sender, arrived) = channel();
                sender.send(counted.recv().unwrap()).unwrap();
                judge.running = Some(arrived);
            }
            scene.wait(300);
            (has_begun, value)
        };
        assert_eq!(pass(&mut scene, &mut judge), (false, Some(None)), "at the start it is left");
        assert_eq!(pass(&mut scene, &mut judge), (true, Some(None)));
        for _ in 0..11 {
            assert_eq!(pass(&mut scene, &mut judge), (false, Some(Some(1.0))), "within an hour");
        }
        // The files are younger than an hour: the tree was made a moment ago.
        scene.write("/var/lib/dpkg/status", status("2"));
        assert!(pass(&mut scene, &mut judge).0);
        assert_eq!(pass(&mut scene, &mut judge), (false, Some(Some(0.0))));
        // Another agent on the same machine goes on with it.
        let mut next = Upkeep::default();
        assert_eq!(pass(&mut scene, &mut next), (false, Some(Some(0.0))));
        // After a boot the number is of another time.
        scene.uptime = Duration::from_secs(60);
        let mut booted = Upkeep::default();
        assert_eq!(pass(&mut scene, &mut booted), (false, Some(None)));
        // Where it cannot be told there is no such reading, and nothing is counted.
        scene.write("/etc/apt/preferences", "Pin-Priority: 1\n");
        assert_eq!(pass(&mut scene, &mut booted), (false, None));
    }
}
