//! Pressure stalls (PSI): the share of time in which work waited for the processor, for memory, for a disk. A kernel
//! without PSI, or with `psi=0`, has none. See Documentation/accounting/psi.rst.

use wire::report::{Rank, Unit};

use super::{Health, Judge, Pace, Probe, Seen};
use crate::host::{Host, Unreadable, Why};

/// The table's row.
pub(super) const PROBE: Probe = Probe {
    id: "pressure",
    title: "Pressure",
    why: "A Pi that waits for its card looks idle; pressure tells what it waits for.",
    pace: Pace::Report,
    judge: || Box::new(Pressure),
    kernel: None,
};

/// Resource, whose wait counts (some task's, or all tasks' at once), id and title.
const RESOURCES: [(&str, &str, &str, &str); 3] = [
    ("cpu", "some", "cpu-pressure", "CPU pressure"),
    ("memory", "full", "memory-pressure", "Memory pressure"),
    ("io", "full", "io-pressure", "Disk pressure"),
];

struct Pressure;

impl Judge for Pressure {
    fn judge(&mut self, seen: &Seen<'_>) -> Health {
        let mut health = Health::default();
        for (resource, who, id, title) in RESOURCES {
            health.sensor(id, title, Unit::Percent, 0.0..=100.0, average(seen.host, resource, who));
        }
        health.rank(Rank::Diagnostic, |_| true);
        health
    }
}

/// Percent of the last minute.
fn average(host: &Host, resource: &str, who: &str) -> Result<Option<f64>, Unreadable> {
    let path = format!("/proc/pressure/{resource}");
    let text = match host.text_again(&path) {
        Ok(text) => text,
        Err(why) if why.is_absence() => return Ok(None),
        // Kernels before 6.1 have the files with psi=0 and refuse to read them.
        Err(Unreadable { why: Why::Failed(_), .. }) => return Ok(None),
        Err(why) => return Err(why),
    };
    let line = text.lines().find_map(|line| line.strip_prefix(who));
    let average = line.and_then(|line| line.split_whitespace().find_map(|word| word.strip_prefix("avg60=")));
    let expected = || Unreadable::malformed(path, format!("a line \"{who} ... avg60=\""));
    average.and_then(|average| average.parse().ok()).map(Some).ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::scene::Scene;

    #[test]
    fn the_last_minute_is_read_where_the_kernel_counts() {
        let scene = Scene::new();
        let mut judge = (PROBE.judge)();
        assert_eq!(scene.judge(&mut judge), Health::default());
        let text = "some avg10=1.00 avg60=2.50 avg300=3.00 total=5\nfull avg10=0.00 avg60=0.25 avg300=0.00 total=0\n";
        scene.write("/proc/pressure/cpu", text);
        scene.write("/proc/pressure/io", text);
        let health = scene.judge(&mut judge);
        assert_eq!(health.value("cpu-pressure"), Some(Some(2.5)));
        assert_eq!(health.value("io-pressure"), Some(Some(0.25)));
        assert_eq!(health.value("memory-pressure"), None);
        for garbage in ["", "full", "full avg60=", "full avg60=NaN", "full avg60=101", "some avg60=1"] {
            scene.write("/proc/pressure/io", garbage);
            assert_eq!(scene.judge(&mut judge).value("io-pressure"), Some(None), "{garbage:?}");
        }
    }
}
