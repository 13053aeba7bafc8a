//! Somebody keeps the clock right.

use super::{Area, Finding, Requirement};
use crate::config::cluster::Profile;

/// The services that do, by the names of their units.
const SERVICES: [&str; 5] = ["systemd-timesyncd", "chrony", "chronyd", "ntpsec", "ntp"];

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "clock",
    area: Area::System,
    profiles: &[Profile::Node],
    title: "the clock is synchronised",
    why: "a Raspberry Pi has no clock that runs while it is off: K3s starts in the past and refuses every \
          certificate, \"x509: certificate is not yet valid\"",
    source: "siderolabs/talos#3122; timedatectl(1)",
    fix: "a person installs a service that keeps the clock: sudo apt install systemd-timesyncd",
    catalogue: &["TIME-001"],
    judge: |facts, _| {
        if let Some(error) = facts.clock_error.as_ref()? {
            return Finding::met(match error.as_millis() {
                0 => "synchronised".to_string(),
                milliseconds => format!("synchronised, off by at most {milliseconds} ms"),
            });
        }
        for service in SERVICES {
            if facts.units.uses(service)? {
                return Finding::waiting(format!(
                    "{service} has not reached a time server yet; if it stays so: systemctl status {service}"
                ));
            }
        }
        Finding::blocked("nothing synchronises the clock", "sudo apt install systemd-timesyncd")
    },
};
