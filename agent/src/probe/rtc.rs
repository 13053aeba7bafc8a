//! The battery of the real-time clock, from sysfs: a Pi 5's clock tells its voltage (drivers/rtc/rtc-rpi.c).

use wire::report::{Rank, Unit};

use super::{Health, Judge, Pace, Probe, Seen};

/// The table's row.
pub(super) const PROBE: Probe = Probe {
    id: "rtc",
    title: "Clock battery",
    why: "A node whose clock lost its battery starts in the past, where no certificate is valid yet.",
    pace: Pace::Check,
    judge: || Box::new(Battery),
    kernel: None,
};

/// Microvolts; what is below is the noise of a connector without a battery.
const NOTHING: i64 = 500_000;

struct Battery;

impl Judge for Battery {
    fn judge(&mut self, seen: &Seen<'_>) -> Health {
        const CLASS: &str = "/sys/class/rtc";
        let mut health = Health::default();
        for clock in seen.host.list_if_present(CLASS).unwrap_or_default() {
            let volts = match seen.host.number(&format!("{CLASS}/{clock}/battery_voltage")) {
                Ok(microvolts) => {
                    Ok(microvolts.filter(|uv| !(0..NOTHING).contains(uv)).map(|uv| uv as f64 / 1e6))
                }
                Err(why) => Err(why),
            };
            health.sensor("rtc-battery", "Clock battery voltage", Unit::Volt, 0.0..=6.0, volts);
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
    fn a_board_without_a_battery_has_no_such_reading() {
        let scene = Scene::new();
        let mut judge = (PROBE.judge)();
        assert_eq!(scene.judge(&mut judge), Health::default());
        for (microvolts, volts) in [
            ("0", None),
            ("23000", None),
            ("3041200", Some(Some(3.0412))),
            ("-1", Some(None)),
            ("4294967295", Some(None)),
            ("x", Some(None)),
        ] {
            scene.write("/sys/class/rtc/rtc0/battery_voltage", format!("{microvolts}\n"));
            assert_eq!(scene.judge(&mut judge).value("rtc-battery"), volts, "{microvolts}");
        }
    }
}
