//! K3s waits for the clock, and not for ever.

use super::{Area, Finding, Requirement};
use crate::change::Change;
use crate::config::cluster::{Profile, Role};

/// Who keeps the clock, and the unit that waits for it.
const WAITS: [(&str, &str); 5] = [
    ("systemd-timesyncd", "systemd-time-wait-sync.service"),
    ("chrony", "chrony-wait.service"),
    ("chronyd", "chrony-wait.service"),
    ("ntpsec", "ntpsec-wait.service"),
    ("ntp", "ntp-wait.service"),
];

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "clock-wait",
    area: Area::System,
    profiles: &[Profile::K3s],
    title: "K3s starts when the clock is right",
    why: "a Raspberry Pi without a battery starts in the past: K3s finds its certificates \"not yet valid\" and writes \
          records with wrong times",
    source: "rancher/k3os#381, #554; siderolabs/talos#3122; systemd.special(7) time-sync.target",
    fix: "bramble enables the unit that waits for the clock, for at most three minutes, and has K3s start after it",
    catalogue: &["TIME-001"],
    judge: |facts, config| {
        let mut wait = None;
        for (service, unit) in WAITS {
            if facts.units.uses(service)? {
                wait = Some(unit);
                break;
            }
        }
        let Some(wait) = wait else {
            return Finding::waiting("nothing keeps the clock yet: see clock");
        };
        let waits = facts.units.uses(wait.trim_end_matches(".service"))?;
        let ordered = *facts.k3s.waits_for_clock.as_ref()?;
        if waits && ordered {
            return Finding::met(format!("{wait} is enabled, and K3s starts after time-sync.target"));
        }
        let mut changes = Vec::new();
        let mut what = Vec::new();
        if !waits {
            what.push(format!("{wait} is not enabled"));
            // Without an end a home without internet would have no cluster.
            if wait == "systemd-time-wait-sync.service" {
                changes.push(Change::WriteFile {
                    path: "/etc/systemd/system/systemd-time-wait-sync.service.d/50-bramble.conf".into(),
                    content: "# Written by bramble: without internet the cluster starts all the same.\n\
                              [Service]\nTimeoutStartSec=180\n"
                        .into(),
                });
            }
            changes.push(Change::EnableUnit { unit: wait.into() });
        }
        if !ordered {
            let path = match config.cluster.role {
                Role::Server => "/etc/systemd/system/k3s.service.d/50-bramble-clock.conf",
                Role::Agent => "/etc/systemd/system/k3s-agent.service.d/50-bramble-clock.conf",
            };
            what.push("K3s does not start after time-sync.target".to_string());
            changes.push(Change::WriteFile {
                path: path.into(),
                content: "# Written by bramble: certificates need the right time.\n\
                          [Unit]\nWants=time-sync.target\nAfter=time-sync.target\n"
                    .into(),
            });
        }
        Finding::unmet(what.join(", "), changes)
    },
};
