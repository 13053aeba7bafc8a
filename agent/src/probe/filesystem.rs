//! File systems: how full they are, and how many errors ext4 has found in itself (it keeps the count over reboots).

use wire::report::{Kind, Rank, Severity, Status, Unit};

use super::{Health, Judge, Pace, Probe, Seen, Statement};
use crate::{
    facts::mount,
    host::{Host, Unreadable, disk::Room},
};

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
/// What K3s and the kubelet fill, wherever that lies: behind a link, or on a partition above. Each file system is measured once,
/// unless a point has it.
const DATA: [(&str, &str, &str); 3] = [
    ("/var/lib/rancher", "k3s-disk-usage", "Disk usage of /var/lib/rancher"),
    ("/var/lib/rancher/k3s", "k3s-data-disk-usage", "Disk usage of /var/lib/rancher/k3s"),
    ("/var/lib/kubelet", "kubelet-disk-usage", "Disk usage of /var/lib/kubelet"),
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
    if !host.is_live() {
        return;
    }
    let Ok(mounts) = mount::read(host) else { return };
    let points: Vec<_> = POINTS.into_iter().filter(|(point, ..)| mounts.top(point).is_some()).collect();
    let told = measure(&points, |path| host.file_system(path), |path| host.room(path), health);
    // Elsewhere nobody evicts anything, and how full a disk may be is its owner's affair.
    if host.present("/var/lib/rancher") != Ok(false) {
        health.statements.extend(full(told));
    }
}

/// How full in percent each place is, or why that could not be told.
type Told = Vec<(&'static str, Result<f64, String>)>;

/// Measures the points, and of what lies elsewhere each file system once.
fn measure(
    points: &[(&'static str, &str, &str)],
    number: impl Fn(&str) -> Result<u64, Unreadable>,
    room: impl Fn(&str) -> Result<Room, Unreadable>,
    health: &mut Health,
) -> Told {
    let mut told = Told::new();
    let mut seen: Vec<u64> = points.iter().filter_map(|(point, ..)| number(point).ok()).collect();
    let mut elsewhere = Vec::new();
    for place in DATA.into_iter().filter(|place| !points.contains(place)) {
        match number(place.0) {
            Ok(number) if seen.contains(&number) => {}
            Ok(number) => {
                seen.push(number);
                elsewhere.push(place);
            }
            Err(why) if why.is_absence() => {}
            Err(why) => told.push((place.0, Err(why.to_string()))),
        }
    }
    for (place, id, title) in points.iter().copied().chain(elsewhere) {
        let used = room(place).map(|room| {
            let used = room.size - room.free.min(room.size);
            (room.size > 0).then(|| used as f64 * 100.0 / room.size as f64)
        });
        let percent = used.as_ref().ok().copied().flatten();
        health.reading(id, title, percent, Unit::Percent, Kind::Gauge);
        match used {
            Ok(used) => told.extend(used.map(|used| (place, Ok(used)))),
            Err(why) => told.push((place, Err(why.to_string()))),
        }
    }
    told
}

fn full(mut told: Told) -> Option<Statement> {
    // The boot partition is as full as its kernels are large, and nobody writes to it by day.
    let judged = || told.iter().filter(|(place, _)| !place.starts_with("/boot")).map(|(_, used)| used);
    let status = match () {
        () if told.is_empty() => return None,
        () if judged().any(|used| matches!(used, Ok(used) if *used >= FULL)) => Status::Raised,
        () if judged().any(Result::is_err) => Status::Unknown,
        () => Status::Clear,
    };
    // What could not be told is said first, then the fullest.
    told.sort_by(|(_, a), (_, b)| {
        let key = |used: &Result<f64, String>| used.as_ref().map_or(f64::INFINITY, |used| *used);
        key(b).total_cmp(&key(a))
    });
    let evidence: Vec<String> = told
        .into_iter()
        .map(|(place, used)| used.map_or_else(|why| why, |used| format!("{place} is {used:.0} % full")))
        .collect();
    Some(Statement {
        id: "disk-full",
        subject: None,
        title: "Disk is nearly full",
        status,
        severity: Severity::Critical,
        depends_on: &[],
        evidence: evidence.join(", "),
    })
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
    use crate::{host::Why, probe::scene::Scene};

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

    /// A machine whose paths lie on file systems of these numbers, each as many percent full as its number says; of 99
    /// nothing can be told.
    fn machine(mounted: &[&str], paths: &[(&str, u64)]) -> (Vec<(String, Option<f64>)>, Status, String) {
        let points: Vec<_> = POINTS.into_iter().filter(|(point, ..)| mounted.contains(point)).collect();
        let missing = |path: &str, why| Unreadable { path: path.into(), why };
        let number = |path: &str| {
            let found = paths.iter().find(|(other, _)| *other == path);
            found.map(|(_, number)| *number).ok_or_else(|| missing(path, Why::Missing))
        };
        let room = |path: &str| match number(path)? {
            99 => Err(missing(path, Why::Failed("stale file handle".into()))),
            full => Ok(Room { size: 100, free: 100 - full }),
        };
        let mut health = Health::default();
        let Statement { status, evidence, .. } = full(measure(&points, number, room, &mut health)).unwrap();
        (health.readings.into_iter().map(|(id, reading)| (id, reading.value)).collect(), status, evidence)
    }

    #[test]
    fn each_file_system_of_k3s_is_measured_once_wherever_it_lies() {
        let on = |rancher, k3s, kubelet| {
            [
                ("/", 50),
                ("/var/lib/rancher", rancher),
                ("/var/lib/rancher/k3s", k3s),
                ("/var/lib/kubelet", kubelet),
            ]
        };
        let root = ["/"].as_slice();
        let of = |more: &[(&str, f64)]| {
            let all = [("disk-usage", 50.0)].iter().chain(more);
            all.map(|(id, used)| ((*id).to_owned(), Some(*used))).collect::<Vec<_>>()
        };
        let (readings, status, evidence) = machine(root, &on(50, 50, 50));
        assert_eq!((readings, status, evidence.as_str()), (of(&[]), Status::Clear, "/ is 50 % full"));
        // Below a partition of its own, or behind a link.
        let (readings, status, evidence) = machine(root, &on(95, 95, 95));
        assert_eq!((readings, status), (of(&[("k3s-disk-usage", 95.0)]), Status::Raised));
        assert_eq!(evidence, "/var/lib/rancher is 95 % full, / is 50 % full");
        // A drive for K3s' data alone, and one for the kubelet's.
        let (readings, status, _) = machine(root, &on(50, 91, 70));
        let both = of(&[("k3s-data-disk-usage", 91.0), ("kubelet-disk-usage", 70.0)]);
        assert_eq!((readings, status), (both, Status::Raised));
        // One that is mounted is what it was.
        let (readings, status, _) = machine(&["/", "/var/lib/rancher"], &on(60, 60, 50));
        assert_eq!((readings, status), (of(&[("k3s-disk-usage", 60.0)]), Status::Clear));
        let (readings, ..) = machine(&["/", "/var/lib/rancher"], &on(50, 50, 50));
        assert_eq!(readings, of(&[("k3s-disk-usage", 50.0)]), "the same file system, mounted twice");
        // No K3s data yet.
        assert_eq!(machine(root, &[("/", 50)]).0, of(&[]));
    }

    #[test]
    fn what_cannot_be_measured_is_not_fine() {
        let (readings, status, evidence) =
            machine(&["/"], &[("/", 50), ("/var/lib/rancher", 50), ("/var/lib/rancher/k3s", 99)]);
        assert_eq!(readings[1], ("k3s-data-disk-usage".to_owned(), None));
        assert_eq!(status, Status::Unknown);
        assert_eq!(evidence, "/var/lib/rancher/k3s: stale file handle, / is 50 % full");
        let (_, status, _) = machine(&["/"], &[("/", 95), ("/var/lib/rancher", 99)]);
        assert_eq!(status, Status::Raised, "a disk that is full is so");
        let (_, status, _) = machine(&["/", "/boot/firmware"], &[("/", 50), ("/boot/firmware", 99)]);
        assert_eq!(status, Status::Clear, "nobody writes to it by day");
        let mut health = Health::default();
        let denied = |path: &str| Err(Unreadable { path: path.into(), why: Why::Denied });
        let told = measure(&[], denied, |_| unreachable!("it has no place"), &mut health);
        assert_eq!((full(told).unwrap().status, health), (Status::Unknown, Health::default()));
        assert_eq!(full(Told::new()), None);
    }

    #[test]
    fn the_running_machines_root_is_measured() {
        let mut health = Health::default();
        usage(&Host::live().unwrap(), &mut health);
        let used = health.value("disk-usage").unwrap().unwrap();
        assert!((0.0..=100.0).contains(&used), "{used}");
    }
}
