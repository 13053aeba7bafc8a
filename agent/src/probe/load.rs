//! How busy the processors are, from `/proc/stat`, and how much waits for them.

use wire::report::{Kind, Rank, Unit};

use super::{Health, Judge, Pace, Probe, Seen};

/// The table's row.
pub(super) const PROBE: Probe = Probe {
    id: "load",
    title: "Processor load",
    why: "A control plane on a busy Pi misses its own deadlines.",
    pace: Pace::Report,
    judge: || Box::new(Load::default()),
    kernel: None,
};

#[derive(Default)]
struct Load {
    before: Option<Ticks>,
    /// When the machine started, seconds since 1970.
    boot: Option<u64>,
}

/// Seconds: the kernel reckons the time of boot from the wall clock, and each correction of that moves it a little.
const JITTER: u64 = 2;

/// Clock ticks of all processors since boot.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Ticks {
    idle: u64,
    all: u64,
}

impl Judge for Load {
    fn judge(&mut self, seen: &Seen<'_>) -> Health {
        let mut health = Health::default();
        let stat = seen.host.text_again("/proc/stat").ok();
        let now = stat.as_deref().and_then(ticks);
        let busy = now.zip(self.before).and_then(|(now, before)| busy(before, now));
        self.before = now;
        health.reading("cpu-usage", "CPU usage", busy, Unit::Percent, Kind::Gauge);
        // A captured tree has no load of its own.
        let load = seen.host.is_live().then(sysinfo::System::load_average).and_then(Result::ok);
        if let Some(load) = load {
            health.reading("load-average", "Load, one minute", Some(load.one), Unit::Count, Kind::Gauge);
        }
        let boot = stat.as_deref().and_then(boot);
        if self.boot.zip(boot).is_none_or(|(known, boot)| known.abs_diff(boot) > JITTER) {
            self.boot = boot;
        }
        health.reading("last-boot", "Last boot", self.boot.map(|at| at as f64), Unit::Moment, Kind::Gauge);
        health.rank(Rank::Diagnostic, |id| id != "cpu-usage");
        health
    }
}

/// The first line of `/proc/stat`: user nice system idle iowait irq softirq steal; guest time is inside user's.
fn ticks(stat: &str) -> Option<Ticks> {
    let mut columns = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().map(str::parse::<u64>);
    let columns: Vec<u64> = columns.by_ref().take(8).collect::<Result<_, _>>().ok()?;
    Some(Ticks { idle: columns.get(3)? + columns.get(4)?, all: columns.iter().sum() })
}

/// The line "btime".
fn boot(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

fn busy(before: Ticks, now: Ticks) -> Option<f64> {
    let all = now.all.checked_sub(before.all).filter(|all| *all > 0)?;
    let idle = now.idle.saturating_sub(before.idle).min(all);
    Some((all - idle) as f64 * 100.0 / all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_what_was_not_idle_since_the_last_time() {
        let before = ticks("cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1").unwrap();
        let now = ticks("cpu  130 0 70 840 60 0 0 0 0 0\n").unwrap();
        assert_eq!(busy(before, now), Some(50.0));
        assert_eq!(busy(now, now), None);
        assert_eq!(ticks("cpu  1 x"), None);
        assert_eq!(ticks(""), None);
    }

    #[test]
    fn the_time_of_boot_stands_still_while_the_clock_is_corrected_and_follows_when_it_is_set() {
        let scene = crate::probe::scene::Scene::new();
        let mut judge = (PROBE.judge)();
        assert_eq!(scene.judge(&mut judge).value("last-boot"), Some(None));
        for (btime, told) in
            [(1000, 1000.0), (1001, 1000.0), (1002, 1000.0), (999, 1000.0), (1_763_000_000, 1.763e9)]
        {
            scene.write(
                "/proc/stat",
                format!("cpu  1 0 1 1 1 0 0 0 0 0\nintr 5\nbtime {btime}\nprocesses 9\n"),
            );
            assert_eq!(scene.judge(&mut judge).value("last-boot"), Some(Some(told)), "{btime}");
        }
    }
}
