//! The wall clock: who keeps it right, how far off it can be, and whether somebody set it. That nobody keeps it right is the
//! finding of the requirement `clock`.

use std::time::{Duration, Instant};

use wire::report::{Kind, Rank, Severity, Status, Unit};

use super::{Health, Judge, Pace, Probe, Seen, Statement};
use crate::host::{Host, Unreadable, clock::Discipline};

/// The table's row.
pub(super) const PROBE: Probe = Probe {
    id: "time",
    title: "Time",
    why: "Certificates, leases and etcd go by the clock; a node that is in another year trusts nobody.",
    pace: Pace::Report,
    judge: || Box::new(Time::default()),
    kernel: None,
};

/// Services that keep the clock, by the name that their cgroup has, and how they are called.
const KEEPERS: [(&str, &str); 6] = [
    ("systemd-timesyncd.service", "systemd-timesyncd"),
    ("chrony.service", "chrony"),
    ("chronyd.service", "chrony"),
    ("ntpsec.service", "ntpsec"),
    ("ntp.service", "ntpd"),
    ("openntpd.service", "openntpd"),
];
/// A difference between the two clocks that is no correction any more.
const STEP: Duration = Duration::from_secs(2);
/// How long a step is told.
const TOLD: Duration = Duration::from_secs(600);

/// How often the keeper is looked for.
const KEEPER_EVERY: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Time {
    /// Who keeps the clock, and when that was looked for.
    keeper: Option<(Instant, Option<&'static str>)>,
    /// Wall clock and time since boot at the last look.
    before: Option<(jiff::Timestamp, Duration)>,
    /// The newest step: time since boot, and its size.
    step: Option<(Duration, jiff::SignedDuration)>,
}

impl Judge for Time {
    fn judge(&mut self, seen: &Seen<'_>) -> Health {
        let mut health = Health::default();
        let known = self.keeper.filter(|(at, _)| seen.now.duration_since(*at) < KEEPER_EVERY);
        let (_, keeper) = *self.keeper.insert(known.unwrap_or_else(|| (seen.now, keeper(seen.host))));
        health.about.insert("time-source", keeper.unwrap_or("none that is known").to_owned());
        discipline(&mut health, seen.host.clock_discipline(), keeper);
        health.rank(Rank::Diagnostic, |id| id == "clock-offset");
        health.rank(Rank::Hidden, |id| id == "clock-error");
        self.steps(&mut health, seen);
        health
    }
}

fn keeper(host: &Host) -> Option<&'static str> {
    let runs = |unit: &str| host.present(&format!("/sys/fs/cgroup/system.slice/{unit}")) == Ok(true);
    KEEPERS.iter().find(|(unit, _)| runs(unit)).map(|(_, name)| *name)
}

fn discipline(health: &mut Health, discipline: Result<Discipline, Unreadable>, keeper: Option<&str>) {
    let milliseconds = |duration: Duration| duration.as_secs_f64() * 1000.0;
    let known = discipline.as_ref().ok();
    let error = known.and_then(|known| known.error);
    health.reading(
        "clock-error",
        "Largest error of the clock",
        error.map(milliseconds),
        Unit::Millisecond,
        Kind::Gauge,
    );
    // chrony steers the frequency alone and leaves the kernel's offset at 0, which would be a lie.
    if let Some(known) = known
        && error.is_some()
        && keeper != Some("chrony")
    {
        let offset = known.offset_us as f64 / 1000.0;
        health.reading("clock-offset", "Clock offset", Some(offset), Unit::Millisecond, Kind::Gauge);
    }
}

impl Time {
    fn steps(&mut self, health: &mut Health, seen: &Seen<'_>) {
        if let Some((wall, uptime)) = self.before.replace((seen.wall, seen.uptime)) {
            let went = seen.wall.duration_since(wall);
            let should = seen.uptime.saturating_sub(uptime);
            let step = jiff::SignedDuration::try_from(should).map_or(went, |should| went - should);
            if step.unsigned_abs() >= STEP {
                self.step = Some((seen.uptime, step));
            }
        }
        let fresh = self.step.filter(|(at, _)| seen.uptime.saturating_sub(*at) <= TOLD);
        health.statements.push(Statement {
            id: "clock-set",
            subject: None,
            title: "Clock was set",
            status: if fresh.is_some() { Status::Raised } else { Status::Clear },
            severity: Severity::Warning,
            depends_on: &[],
            evidence: match self.step {
                None => "it was not set since the agent started".to_owned(),
                Some((at, step)) => {
                    let ago = seen.uptime.saturating_sub(at).as_secs() / 60;
                    let seconds = step.as_secs();
                    let years = seconds as f64 / (365.25 * 86400.0);
                    let size = match seconds.abs() {
                        0..=7200 => format!("{seconds:+} s"),
                        7201..=31_556_952 => format!("{:+.1} days", seconds as f64 / 86400.0),
                        _ => format!("{years:+.1} years"),
                    };
                    format!(
                        "somebody set it by {size}, {ago} min ago; what was dated before is off by as much"
                    )
                }
            },
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::scene::Scene;

    #[test]
    fn a_clock_that_jumps_by_fifty_years_is_told_for_a_while_both_ways() {
        let mut scene = Scene::new();
        let mut judge = (PROBE.judge)();
        assert_eq!(scene.judge(&mut judge).said("clock-set").unwrap().0, Status::Clear);
        scene.wait(10);
        assert_eq!(scene.judge(&mut judge).said("clock-set").unwrap().0, Status::Clear);
        for (wall, size) in [("2076-11-23T06:00:20Z", "+50.0 years"), ("2026-11-23T06:00:30Z", "-50.0 years")]
        {
            scene.wait(10);
            scene.wall = wall.parse().unwrap();
            let health = scene.judge(&mut judge);
            let (status, evidence) = health.said("clock-set").unwrap();
            assert_eq!(status, Status::Raised);
            assert!(evidence.contains(size), "{evidence}");
        }
        scene.wait(601);
        assert_eq!(scene.judge(&mut judge).said("clock-set").unwrap().0, Status::Clear);
        scene.wall = jiff::Timestamp::MAX;
        assert_eq!(scene.judge(&mut judge).said("clock-set").unwrap().0, Status::Raised);
    }

    #[test]
    fn who_keeps_the_clock_is_named_and_chronys_offset_is_not_believed() {
        let mut scene = Scene::new();
        let mut judge = (PROBE.judge)();
        let health = scene.judge(&mut judge);
        assert_eq!(health.about["time-source"], "none that is known");
        assert_eq!(health.value("clock-error"), Some(None), "a tree has no clock");
        scene.write("/sys/fs/cgroup/system.slice/chrony.service/cgroup.procs", "1\n");
        scene.wait(KEEPER_EVERY.as_secs());
        assert_eq!(scene.judge(&mut judge).about["time-source"], "chrony");
        let kept = Discipline { offset_us: 1500, error: Some(Duration::from_millis(20)) };
        for (keeper, offset) in [(Some("chrony"), None), (Some("systemd-timesyncd"), Some(Some(1.5)))] {
            let mut health = Health::default();
            discipline(&mut health, Ok(kept), keeper);
            assert_eq!(health.value("clock-offset"), offset);
            assert_eq!(health.value("clock-error"), Some(Some(20.0)));
        }
        let mut health = Health::default();
        discipline(&mut health, Ok(Discipline { offset_us: 0, error: None }), None);
        assert_eq!((health.value("clock-error"), health.value("clock-offset")), (Some(None), None));
    }
}
