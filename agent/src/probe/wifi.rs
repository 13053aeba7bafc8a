//! How strong a wireless link is heard, from `/proc/net/wireless`; a kernel without wireless extensions has no such file.

use wire::report::{Rank, Unit};

use super::{Health, Judge, Pace, Probe, Seen};
use crate::host::Unreadable;

/// The table's row.
pub(super) const PROBE: Probe = Probe {
    id: "wifi",
    title: "Wi-Fi signal",
    why: "A node on Wi-Fi loses packets when its access point is heard badly.",
    pace: Pace::Report,
    judge: || Box::new(Wifi),
    kernel: None,
};

const TABLE: &str = "/proc/net/wireless";

struct Wifi;

impl Judge for Wifi {
    fn judge(&mut self, seen: &Seen<'_>) -> Health {
        let mut health = Health::default();
        let Ok(table) = seen.host.text_again(TABLE) else { return health };
        // Two lines of headings; then one a link: "wlan0: 0000   54.  -56.  -256 ...".
        for line in table.lines().skip(2) {
            let Some((link, columns)) = line.trim().split_once(':') else { continue };
            let level = columns.split_whitespace().nth(2).map(|level| level.trim_end_matches('.'));
            let level = level.and_then(|level| level.parse().ok()).map(Some);
            let level =
                level.ok_or_else(|| Unreadable::malformed(TABLE, "a signal level in the fourth column"));
            let (id, title) = (format!("{link}-signal"), format!("Signal of {link}"));
            // The kernel gives 0 or -256 for a link that hears nothing.
            if !matches!(level, Ok(Some(0.0 | -256.0))) {
                health.sensor(&id, &title, Unit::DecibelMilliwatt, -127.0..=-1.0, level);
            }
        }
        health.rank(Rank::Diagnostic, |_| true);
        health
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::scene::Scene;

    #[test]
    fn a_link_that_hears_something_has_a_signal() {
        let scene = Scene::new();
        let mut judge = (PROBE.judge)();
        assert_eq!(scene.judge(&mut judge), Health::default());
        let table = |level: &str| {
            format!(
                "Inter-| sta-|   Quality        |   Discarded packets               | Missed | WE\n \
                 face | tus | link level noise |  nwid  crypt   frag  retry   misc | beacon | 22\n \
                 wlan0: 0000   54.  {level}  -256        0      0      0      0      0        0\n"
            )
        };
        for (level, value) in [
            ("-56.", Some(Some(-56.0))),
            ("0.", None),
            ("-256", None),
            ("90.", Some(None)),
            ("x", Some(None)),
        ] {
            scene.write(TABLE, table(level));
            assert_eq!(scene.judge(&mut judge).value("wlan0-signal"), value, "{level}");
        }
    }
}
