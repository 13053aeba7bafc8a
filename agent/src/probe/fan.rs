//! Fans, from hwmon: how fast they turn, and how fast they are told to.

use wire::report::{Rank, Severity, Status, Unit};

use super::{Health, Judge, Pace, Probe, Seen, Statement};

/// The table's row.
pub(super) const PROBE: Probe = Probe {
    id: "fan",
    title: "Fan",
    why: "A fan that stopped is the first half of a board that is slow; it makes no noise about it.",
    pace: Pace::Report,
    judge: || Box::new(Fan::default()),
    kernel: None,
};

/// Reports in a row in which a fan stands still although it is driven: it needs a moment to begin to turn.
const STILL: u32 = 3;

#[derive(Default)]
struct Fan {
    still: u32,
}

impl Judge for Fan {
    fn judge(&mut self, seen: &Seen<'_>) -> Health {
        let mut health = Health::default();
        let read = |chip: &str, file: &str| seen.host.number_again(&format!("{chip}/{file}"));
        let chips = seen.chips();
        let fans = chips.iter().filter(|chip| !matches!(read(&chip.directory, "fan1_input"), Ok(None)));
        let mut stopped = None;
        for (index, chip) in fans.enumerate() {
            let (suffix, number) = match index {
                0 => (String::new(), String::new()),
                _ => (format!("-{}", index + 1), format!(" {}", index + 1)),
            };
            let (turns, drive) = (read(&chip.directory, "fan1_input"), read(&chip.directory, "pwm1"));
            if let (Ok(Some(turns)), Ok(Some(drive))) = (&turns, &drive)
                && index == 0
            {
                self.still = if *turns == 0 && *drive > 0 { self.still.saturating_add(1) } else { 0 };
                stopped = Some((*turns, *drive));
            }
            let float = |number: Option<i64>| number.map(|number| number as f64);
            health.sensor(
                &format!("fan{suffix}-speed"),
                &format!("Fan{number} speed"),
                Unit::PerMinute,
                0.0..=50_000.0,
                turns.map(float),
            );
            health.sensor(
                &format!("fan{suffix}-drive"),
                &format!("Fan{number} drive"),
                Unit::Percent,
                0.0..=100.0,
                // pwm1 goes from 0 to 255.
                drive.map(|drive| float(drive).map(|drive| drive / 2.55)),
            );
        }
        health.rank(Rank::Diagnostic, |_| true);
        // Only a fan that can be driven and counts its turns can be seen to stand still.
        if let Some((turns, drive)) = stopped {
            let raised = self.still >= STILL;
            health.statements.push(Statement {
                id: "fan-stopped",
                subject: None,
                title: "Fan stands still",
                status: if raised { Status::Raised } else { Status::Clear },
                severity: Severity::Warning,
                depends_on: &[],
                evidence: match raised {
                    true => {
                        format!("driven with {drive} of 255, it does not turn; is it blocked or unplugged?")
                    }
                    false => format!("{turns} turns a minute at {drive} of 255"),
                },
            });
        }
        health
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::scene::Scene;

    #[test]
    fn a_fan_that_is_driven_and_does_not_turn_is_told_after_a_moment() {
        let scene = Scene::new();
        let mut judge = (PROBE.judge)();
        assert_eq!(scene.judge(&mut judge), Health::default());
        scene.write("/sys/class/hwmon/hwmon2/name", "pwmfan\n");
        scene.write("/sys/class/hwmon/hwmon2/fan1_input", "0\n");
        scene.write("/sys/class/hwmon/hwmon2/pwm1", "0\n");
        let status = |health: Health| health.said("fan-stopped").unwrap().0;
        for _ in 0..5 {
            assert_eq!(
                status(scene.judge(&mut judge)),
                Status::Clear,
                "it may stand still when it is not driven"
            );
        }
        scene.write("/sys/class/hwmon/hwmon2/pwm1", "125\n");
        let seen: Vec<Status> = (0..4).map(|_| status(scene.judge(&mut judge))).collect();
        assert_eq!(seen, [Status::Clear, Status::Clear, Status::Raised, Status::Raised]);
        scene.write("/sys/class/hwmon/hwmon2/fan1_input", "3021\n");
        let health = scene.judge(&mut judge);
        assert_eq!(health.value("fan-speed"), Some(Some(3021.0)));
        assert_eq!(health.value("fan-drive").unwrap().unwrap().round(), 49.0);
        assert_eq!(status(health), Status::Clear);
        scene.write("/sys/class/hwmon/hwmon2/fan1_input", "-3\n");
        assert_eq!(scene.judge(&mut judge).value("fan-speed"), Some(None));
    }
}
