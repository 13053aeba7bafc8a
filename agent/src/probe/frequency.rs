//! The processor's clock and its cap: what the kernel asks for, and on a Raspberry Pi what the firmware really gives.

use serde::{Deserialize, Serialize};
use wire::report::{Rank, Severity, Status, Unit};

use super::{Health, Judge, Pace, Probe, Seen, Source, Statement};
use crate::host::{
    Host, Unreadable,
    vcio::{self, Mailbox},
};

/// The table's row.
pub(super) const PROBE: Probe = Probe {
    id: "frequency",
    title: "Processor clock",
    why: "A cap that somebody or something set makes a node slow without a word.",
    pace: Pace::Report,
    judge: || Box::new(Frequency),
    kernel: Some(|host| {
        let mailbox = host.mailbox().ok().flatten();
        Ok(Box::new(Measured { mailbox: mailbox.map(|m| Box::new(m) as Box<dyn Mailbox>) }))
    }),
};

/// What the firmware measures.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Clock {
    hz: Option<u32>,
}

struct Measured {
    mailbox: Option<Box<dyn Mailbox>>,
}

impl Source for Measured {
    fn read(&mut self) -> serde_json::Value {
        let hz = self.mailbox.as_mut().and_then(|mailbox| vcio::clock(mailbox.as_mut()).ok());
        serde_json::to_value(Clock { hz }).expect("a number is JSON")
    }
}

struct Frequency;

impl Judge for Frequency {
    fn judge(&mut self, seen: &Seen<'_>) -> Health {
        let mut health = Health::default();
        let measured: Clock = seen.kernel("frequency").unwrap_or_default();
        let now = match measured.hz {
            Some(hz) => Ok(Some(f64::from(hz) / 1e6)),
            None => megahertz(seen.host, "scaling_cur_freq"),
        };
        health.sensor("cpu-clock", "CPU clock", Unit::Megahertz, 1.0..=20_000.0, now);
        let (cap, most) =
            (megahertz(seen.host, "scaling_max_freq"), megahertz(seen.host, "cpuinfo_max_freq"));
        if let (Ok(Some(cap)), Ok(Some(most))) = (&cap, &most) {
            let capped = cap < most;
            health.statements.push(Statement {
                id: "clock-capped",
                subject: None,
                title: "Processor clock is capped",
                status: if capped { Status::Raised } else { Status::Clear },
                severity: Severity::Warning,
                depends_on: &["under-voltage", "throttled"],
                evidence: match capped {
                    true => format!("{cap} of {most} MHz allowed, by scaling_max_freq of cpufreq"),
                    false => format!("all {most} MHz allowed"),
                },
            });
        }
        health.sensor("cpu-clock-cap", "CPU clock cap", Unit::Megahertz, 1.0..=20_000.0, cap);
        health.rank(Rank::Diagnostic, |_| true);
        health
    }
}

/// One file of the first policy; a Pi's cores have one in common.
fn megahertz(host: &Host, file: &str) -> Result<Option<f64>, Unreadable> {
    let kilohertz = host.number_again(&format!("/sys/devices/system/cpu/cpufreq/policy0/{file}"))?;
    Ok(kilohertz.map(|kilohertz| kilohertz as f64 / 1000.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{host::vcio::stand_in::Firmware, probe::scene::Scene};

    #[test]
    fn what_the_firmware_measures_goes_before_what_the_kernel_wished() {
        let mut scene = Scene::with_companion();
        let mut judge = (PROBE.judge)();
        assert_eq!(scene.judge(&mut judge), Health::default());
        let policy = "/sys/devices/system/cpu/cpufreq/policy0";
        scene.write(&format!("{policy}/scaling_cur_freq"), "2400000\n");
        scene.write(&format!("{policy}/scaling_max_freq"), "2400000\n");
        scene.write(&format!("{policy}/cpuinfo_max_freq"), "2400000\n");
        let health = scene.judge(&mut judge);
        assert_eq!(health.value("cpu-clock"), Some(Some(2400.0)));
        assert_eq!(health.said("clock-capped").unwrap().0, Status::Clear);
        let measured = Measured { mailbox: Some(Box::new(Firmware::default())) }.read();
        scene.sources.insert("frequency".to_owned(), Ok(measured));
        scene.write(&format!("{policy}/scaling_max_freq"), "1500000\n");
        let health = scene.judge(&mut judge);
        assert_eq!(health.value("cpu-clock"), Some(Some(1500.398464)));
        assert_eq!(
            health.said("clock-capped"),
            Some((Status::Raised, "1500 of 2400 MHz allowed, by scaling_max_freq of cpufreq"))
        );
    }
}
