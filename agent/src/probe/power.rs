//! Voltages of a Raspberry Pi: the core's, and on a Pi 5 each rail of its power chip and what the board takes. The firmware
//! tells, so the companion asks. See raspberrypi/documentation, "vcgencmd pmic_read_adc".

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wire::report::{Rank, Unit};

use super::{Health, Judge, Pace, Probe, Seen, Source};
use crate::host::vcio::{self, Mailbox};

/// The table's row.
pub(super) const PROBE: Probe = Probe {
    id: "power",
    title: "Power",
    why: "What arrives at the board tells a weak supply before it gives way.",
    pace: Pace::Report,
    judge: || Box::new(Power),
    kernel: Some(|host| {
        // Why there is none is told by the probe that needs it most: throttling.
        let mailbox = host.mailbox().ok().flatten();
        Ok(Box::new(Question { mailbox: mailbox.map(|m| Box::new(m) as Box<dyn Mailbox>) }))
    }),
};

/// What the firmware answered.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Answer {
    /// Microvolts.
    core_uv: Option<u32>,
    /// What `pmic_read_adc` printed.
    rails: Option<String>,
}

struct Question {
    mailbox: Option<Box<dyn Mailbox>>,
}

impl Source for Question {
    fn read(&mut self) -> serde_json::Value {
        let mut mailbox = self.mailbox.as_deref_mut();
        let core_uv = mailbox.as_deref_mut().and_then(|mailbox| vcio::core_voltage(mailbox).ok());
        let rails = mailbox.and_then(|mailbox| vcio::rails(mailbox).ok());
        let answer = Answer { core_uv, rails };
        serde_json::to_value(answer).expect("numbers and text are JSON")
    }
}

struct Power;

impl Judge for Power {
    fn judge(&mut self, seen: &Seen<'_>) -> Health {
        let mut health = Health::default();
        let answer: Answer = seen.kernel("power").unwrap_or_default();
        let volts = |value: f64| Ok(Some(value));
        if let Some(core_uv) = answer.core_uv {
            health.sensor(
                "core-voltage",
                "Core voltage",
                Unit::Volt,
                0.3..=2.0,
                volts(f64::from(core_uv) / 1e6),
            );
        }
        let rails = rails(&answer.rails.unwrap_or_default());
        let mut watts = None;
        for (name, rail) in &rails {
            // Without a cell on its connector the clock's input floats.
            let (id, title) = match name.as_str() {
                "BATT" => continue,
                "EXT5V" => ("supply-voltage".to_owned(), "Supply voltage".to_owned()),
                _ => {
                    let id = format!("rail-{}-voltage", name.to_lowercase().replace('_', "-"));
                    (id, format!("Rail {name} voltage"))
                }
            };
            if let Some(value) = rail.volts {
                health.sensor(&id, &title, Unit::Volt, 0.0..=30.0, volts(value));
            }
            if let (Some(volts), Some(amperes)) = (rail.volts, rail.amperes) {
                *watts.get_or_insert(0.0) += volts * amperes;
            }
        }
        health.rank(Rank::Diagnostic, |_| true);
        // A Pi 5 has a dozen of them.
        health.rank(Rank::Hidden, |id| id.starts_with("rail-"));
        if let Some(watts) = watts {
            health.sensor(
                "board-power",
                "Power of the board's rails",
                Unit::Watt,
                0.0..=100.0,
                Ok(Some(watts)),
            );
        }
        health
    }
}

#[derive(Debug, Default, PartialEq)]
struct Rail {
    volts: Option<f64>,
    amperes: Option<f64>,
}

/// Lines as ` VDD_CORE_A current(7)=0.81262990A` and `VDD_CORE_V volt(15)=0.88187950V`; others are left out.
fn rails(text: &str) -> BTreeMap<String, Rail> {
    let mut rails: BTreeMap<String, Rail> = BTreeMap::new();
    for line in text.lines() {
        let Some((name, value)) = line.trim().split_once(char::is_whitespace) else { continue };
        let Some((_, value)) = value.split_once('=') else { continue };
        let number = |unit: char| value.strip_suffix(unit)?.parse::<f64>().ok().filter(|v| v.is_finite());
        if let Some((name, volts)) = name.strip_suffix("_V").zip(number('V')) {
            rails.entry(name.to_owned()).or_default().volts = Some(volts);
        } else if let Some((name, amperes)) = name.strip_suffix("_A").zip(number('A')) {
            rails.entry(name.to_owned()).or_default().amperes = Some(amperes);
        }
    }
    rails
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::vcio::stand_in::Firmware;

    const PI5: &str = " 3V7_WL_SW_A current(0)=0.00780744A\n   3V3_SYS_A current(1)=0.12000000A\n  \
         VDD_CORE_A current(7)=2.00000000A\n 3V7_WL_SW_V volt(8)=3.70000000V\n   3V3_SYS_V volt(9)=3.30000000V\n  \
         VDD_CORE_V volt(15)=0.80000000V\n     EXT5V_V volt(24)=5.05716000V\n      BATT_V volt(25)=0.00000000V";

    fn judged(mailbox: Option<Firmware>) -> Health {
        let mut scene = crate::probe::scene::Scene::with_companion();
        let mailbox = mailbox.map(|m| Box::new(m) as Box<dyn Mailbox>);
        scene.sources.insert("power".to_owned(), Ok(Question { mailbox }.read()));
        scene.judge(&mut (PROBE.judge)())
    }

    #[test]
    fn a_pi_5_tells_its_supply_and_its_rails() {
        let health = judged(Some(Firmware { rails: Some(PI5), ..Firmware::default() }));
        assert_eq!(health.value("core-voltage"), Some(Some(0.8768)));
        assert_eq!(health.value("supply-voltage"), Some(Some(5.05716)));
        assert_eq!(health.value("rail-3v3-sys-voltage"), Some(Some(3.3)));
        assert_eq!(health.value("rail-batt-voltage"), None);
        let watts = health.value("board-power").unwrap().unwrap();
        assert!((watts - (0.00780744 * 3.7 + 0.12 * 3.3 + 2.0 * 0.8)).abs() < 1e-9, "{watts}");
    }

    #[test]
    fn an_older_pi_has_no_rails_and_another_machine_nothing() {
        let health = judged(Some(Firmware::default()));
        assert_eq!(health.readings.len(), 1);
        assert_eq!(judged(None), Health::default());
        let broken = Firmware { broken: true, ..Firmware::default() };
        assert_eq!(judged(Some(broken)), Health::default());
    }

    #[test]
    fn garbage_among_the_rails_is_left_out() {
        let text = "X_V volt(1)=nanV\nY_V volt(2)=1.2.3V\nZ_V\n=\nW_A current(3)=3V\nV_V volt(4)=infV\nOK_V volt(5)=1V";
        assert_eq!(rails(text).keys().collect::<Vec<_>>(), ["OK"]);
    }
}
