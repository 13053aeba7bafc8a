//! File systems: how full they are, and how many errors ext4 has found in itself (it keeps the count over reboots).

use wire::report::{Kind, Rank, Severity, Status, Unit};

use super::{Health, Judge, Pace, Probe, Seen, Statement};
use crate::{facts::mount, host::Host};

/// The table's row.
pub(super) const PROBE: Probe = Probe {
    id: "filesystem",
    title: "File systems",
    why: "The kubelet evicts pods from a full disk; an error that ext4 found is a card that begins to die.",
    pace: Pace::Check,
    judge: || Box::new(FileSystems),
    kernel: None,
};

/// Where a file system of a node is of interest, if it is one of its own: path, id, title.
const POINTS: [(&str, &str, &str); 4] = [
    ("/", "disk-usage", "Disk usage"),
    ("/boot/firmware", "boot-disk-usage", "Disk usage of /boot/firmware"),
    ("/var/lib/rancher", "k3s-disk-usage", "Disk usage of /var/lib/rancher"),
    ("/var/lib/longhorn", "longhorn-disk-usage", "Disk usage of /var/lib/longhorn"),
];
/// Percent; the kubelet evicts from 90 on (nodefs.available below 10 %).
const FULL: f64 = 90.0;

struct FileSystems;

impl Judge for FileSystems {
    fn judge(&mut self, seen: &Seen<'_>) -> Health {
        let mut health = Health::default();
        usage(seen.host, &mut health);
        errors(seen.host, &mut health);
        health.rank(Rank::Diagnostic, |id| ["boot-disk-usage", "file-system-errors"].contains(&id));
        health
    }
}

fn usage(host: &Host, health: &mut Health) {
    // A captured tree has no room of its own.
    let Ok(mounts) = mount::read(host) else { return };
    let mut told = Vec::new();
    for (point, id, title) in POINTS.iter().filter(|(point, ..)| mounts.top(point).is_some()) {
        let Ok(room) = host.room(point) else { continue };
        let used =
            (room.size > 0).then(|| (room.size - room.free.min(room.size)) as f64 * 100.0 / room.size as f64);
        health.reading(id, title, used, Unit::Percent, Kind::Gauge);
        told.extend(used.map(|used| (used, format!("{point} is {used:.0} % full"))));
    }
    // Elsewhere nobody evicts anything, and how full a disk may be is its owner's affair.
    if told.is_empty() || host.present("/var/lib/rancher") != Ok(true) {
        return;
    }
    // The boot partition is as full as its kernels are large, and nobody writes to it by day.
    let raised = told.iter().any(|(used, said)| *used >= FULL && !said.starts_with("/boot"));
    told.sort_by(|a, b| b.0.total_cmp(&a.0));
    let evidence: Vec<String> = told.into_iter().map(|(_, said)| said).collect();
    health.statements.push(Statement {
        id: "disk-full",
        subject: None,
        title: "Disk is nearly full",
        status: if raised { Status::Raised } else { Status::Clear },
        severity: Severity::Critical,
        depends_on: &[],
        evidence: evidence.join(", "),
    });
}

fn errors(host: &Host, health: &mut Health) {
    let (status, evidence) = match mount::read_errors(host) {
        Ok(counts) if counts.is_empty() => return,
        Ok(counts) => {
            let all: u64 = counts.iter().map(|(_, count)| count).sum();
            health.reading(
                "file-system-errors",
                "File system errors",
                Some(all as f64),
                Unit::Count,
                Kind::Total,
            );
            let bad: Vec<String> =
                counts.iter().filter(|(_, count)| *count > 0).map(|(device, count)| {
                    let last = host.number(&format!("/sys/fs/ext4/{device}/last_error_time")).ok().flatten();
                    let last = last.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
                    let last = last.map(|at| format!(", last at {at}")).unwrap_or_default();
                    format!("ext4 counted {count} on {device}{last}; e2fsck at the next boot mends and resets them")
                }).collect();
            match bad.is_empty() {
                true => (Status::Clear, "ext4 counted none".to_owned()),
                false => (Status::Raised, bad.join(", ")),
            }
        }
        Err(why) => {
            health.reading("file-system-errors", "File system errors", None, Unit::Count, Kind::Total);
            (Status::Unknown, why.to_string())
        }
    };
    health.statements.push(Statement {
        id: "file-system-errors",
        subject: None,
        title: "File system has errors",
        status,
        severity: Severity::Critical,
        depends_on: &["storage-resets"],
        evidence,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::scene::Scene;

    #[test]
    fn errors_of_ext4_are_told_with_their_device_and_time() {
        let scene = Scene::new();
        let mut judge = (PROBE.judge)();
        assert_eq!(scene.judge(&mut judge), Health::default());
        scene.write("/sys/fs/ext4/mmcblk0p2/errors_count", "0\n");
        scene.write("/sys/fs/ext4/features/lazy_itable_init", "supported\n");
        assert_eq!(scene.judge(&mut judge).said("file-system-errors").unwrap().0, Status::Clear);
        scene.write("/sys/fs/ext4/mmcblk0p2/errors_count", "3\n");
        scene.write("/sys/fs/ext4/mmcblk0p2/last_error_time", "1763878800\n");
        let health = scene.judge(&mut judge);
        assert_eq!(health.value("file-system-errors"), Some(Some(3.0)));
        let (status, evidence) = health.said("file-system-errors").unwrap();
        assert_eq!(status, Status::Raised);
        assert!(
            evidence.starts_with("ext4 counted 3 on mmcblk0p2, last at 2025-11-23T06:20:00Z"),
            "{evidence}"
        );
        scene.write("/sys/fs/ext4/mmcblk0p2/errors_count", "lots\n");
        assert_eq!(scene.judge(&mut judge).said("file-system-errors").unwrap().0, Status::Unknown);
    }

    #[test]
    fn the_running_machines_root_is_measured() {
        let mut health = Health::default();
        usage(&Host::live().unwrap(), &mut health);
        let used = health.value("disk-usage").unwrap().unwrap();
        assert!((0.0..=100.0).contains(&used), "{used}");
    }
}
