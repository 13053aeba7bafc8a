//! What waits for the owner: a reboot, and upgrades as far as a file tells without asking apt.
//!
//! Ubuntu's update-notifier keeps a text with the number; Debian and Raspberry Pi OS have no such file, and so no such reading.

use wire::report::{Kind, Rank, Severity, Status, Unit};

use super::{Health, Judge, Pace, Probe, Seen, Statement};
use crate::{facts::reboot, host::Host};

/// The table's row.
pub(super) const PROBE: Probe = Probe {
    id: "upkeep",
    title: "Upkeep",
    why: "A kernel that was replaced on disk runs on until somebody reboots.",
    pace: Pace::Check,
    judge: || Box::new(Upkeep),
    kernel: None,
};

struct Upkeep;

impl Judge for Upkeep {
    fn judge(&mut self, seen: &Seen<'_>) -> Health {
        let mut health = Health::default();
        let (status, evidence) = pending(seen.host);
        health.statements.push(Statement {
            id: "reboot-pending",
            subject: None,
            title: "Waits for a reboot",
            status,
            severity: Severity::Warning,
            depends_on: &[],
            evidence,
        });
        let notice = seen.host.text_if_present("/var/lib/update-notifier/updates-available");
        if let Some(upgrades) = notice.ok().flatten().as_deref().and_then(upgrades) {
            health.reading("pending-upgrades", "Pending upgrades", Some(upgrades), Unit::Count, Kind::Gauge);
        }
        health.rank(Rank::Diagnostic, |_| true);
        health
    }
}

fn pending(host: &Host) -> (Status, String) {
    let reboot = reboot::read(host);
    match &reboot.required {
        Ok(true) => {
            let packages = host.text("/run/reboot-required.pkgs").unwrap_or_default();
            let mut packages: Vec<&str> = packages.lines().map(str::trim).filter(|p| !p.is_empty()).collect();
            packages.sort_unstable();
            packages.dedup();
            let by = if packages.is_empty() { "a package".to_owned() } else { packages.join(", ") };
            return (Status::Raised, format!("{by} asked for it in /run/reboot-required"));
        }
        Ok(false) => {}
        Err(why) => return (Status::Unknown, why.to_string()),
    }
    let release = host.text("/proc/sys/kernel/osrelease").unwrap_or_default();
    match reboot.newer_than(release.trim()) {
        Ok(Some(newer)) => (Status::Raised, format!("{} runs, {newer} is installed", release.trim())),
        Ok(None) => (Status::Clear, "no package asked for one, and the newest kernel runs".to_owned()),
        Err(why) => (Status::Unknown, why.to_string()),
    }
}

/// "12 updates can be applied immediately.", "1 package can be updated." on older releases; empty when there is none.
fn upgrades(notice: &str) -> Option<f64> {
    if notice.trim().is_empty() {
        return Some(0.0);
    }
    let line = notice.lines().find(|line| line.contains(" can be "))?;
    line.split_whitespace().next()?.parse::<u32>().ok().map(f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::scene::Scene;

    #[test]
    fn a_reboot_is_asked_for_by_a_package_or_by_a_newer_kernel() {
        let scene = Scene::new();
        let mut judge = (PROBE.judge)();
        assert_eq!(scene.judge(&mut judge).said("reboot-pending").unwrap().0, Status::Unknown);
        scene.write("/proc/sys/kernel/osrelease", "6.12.62+rpt-rpi-2712\n");
        scene.write("/lib/modules/6.12.62+rpt-rpi-2712/modules.dep", "");
        scene.write("/run/reboot-required", "*** System restart required ***\n");
        scene.write("/run/reboot-required.pkgs", "linux-image-x\nlibc6\nlibc6\n");
        let health = scene.judge(&mut judge);
        assert_eq!(
            health.said("reboot-pending"),
            Some((Status::Raised, "libc6, linux-image-x asked for it in /run/reboot-required"))
        );
        assert_eq!(health.value("pending-upgrades"), None);
    }

    #[test]
    fn the_notifiers_number_is_read_and_anything_else_is_no_number() {
        for (notice, number) in [
            ("", Some(0.0)),
            (
                "\n12 updates can be applied immediately.\n3 of these updates are standard security updates.\n",
                Some(12.0),
            ),
            ("1 package can be updated.\n0 updates are security updates.\n", Some(1.0)),
            (
                "Expanded Security Maintenance for Applications is not enabled.\n\n0 updates can be applied immediately.",
                Some(0.0),
            ),
            ("many updates can be applied", None),
            ("Failed to connect", None),
        ] {
            assert_eq!(upgrades(notice), number, "{notice:?}");
        }
    }
}
