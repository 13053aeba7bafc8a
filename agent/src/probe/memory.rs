//! How much memory is in use, from `/proc/meminfo`.

use wire::report::{Kind, Unit};

use super::{Health, Judge, Pace, Probe, Seen};

/// The table's row.
pub(super) const PROBE: Probe = Probe {
    id: "memory",
    title: "Memory",
    why: "A Pi that runs out of memory kills pods, and its control plane with them.",
    pace: Pace::Report,
    judge: || Box::new(Memory),
    kernel: None,
};

struct Memory;

impl Judge for Memory {
    fn judge(&mut self, seen: &Seen<'_>) -> Health {
        let mut health = Health::default();
        let used = seen.host.text_again("/proc/meminfo").ok().and_then(|text| used(&text));
        health.reading("memory-usage", "Memory usage", used, Unit::Percent, Kind::Gauge);
        health
    }
}

/// Percent of memory that a new program could not have.
fn used(meminfo: &str) -> Option<f64> {
    let kib = |key: &str| -> Option<f64> {
        let line = meminfo.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse().ok()
    };
    let total = kib("MemTotal").filter(|t| *t > 0.0)?;
    Some((total - kib("MemAvailable")?.min(total)) * 100.0 / total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_available_is_not_in_use() {
        assert_eq!(used("MemTotal:  4000 kB\nMemFree: 10 kB\nMemAvailable:  3000 kB\n"), Some(25.0));
        assert_eq!(used("MemTotal:  4000 kB\n"), None);
    }
}
