//! Mounts (`/proc/1/mountinfo`) and the file systems the kernel knows (`/proc/filesystems`).

use super::Fact;
use crate::host::{Host, Unreadable, Why};

/// The mount table.
#[derive(Debug)]
pub struct Mounts(Vec<Mount>);

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub point: String,
    /// The type of the file system.
    pub kind: String,
    /// What is mounted: a device, or a word.
    pub source: String,
    /// Whether nothing can be written to it.
    pub read_only: bool,
    /// Whether mounts made below it reach other mount namespaces.
    pub shared: bool,
}

/// Names of file systems.
#[derive(Debug)]
pub struct FileSystems(Vec<String>);

impl FileSystems {
    /// Whether the kernel knows the type now.
    pub fn has(&self, kind: &str) -> bool {
        self.0.iter().any(|other| other == kind)
    }
}

impl Mounts {
    /// All mounts at one point, the visible one last.
    pub fn at(&self, point: &str) -> impl DoubleEndedIterator<Item = &Mount> {
        self.0.iter().filter(move |mount| mount.point == point)
    }

    /// The mount that holds a path.
    pub fn holding(&self, path: &str) -> Option<&Mount> {
        let above =
            |point: &str| path == point || path.starts_with(&format!("{}/", point.trim_end_matches('/')));
        // Of several at the longest point the last is the visible one.
        self.0.iter().filter(|mount| above(&mount.point)).max_by_key(|mount| mount.point.len())
    }

    /// The mount that is visible at a point.
    pub fn top(&self, point: &str) -> Option<&Mount> {
        self.at(point).next_back()
    }
}

pub(crate) fn read(host: &Host) -> Fact<Mounts> {
    // A service may live in a mount namespace of its own; process 1 has the machine's, but only root may
    // see it. Our own table still tells: a copy of a shared mount has that mount as its master.
    let (path, text) = match host.text("/proc/1/mountinfo") {
        Err(Unreadable { why: Why::Denied | Why::Missing | Why::NotCaptured, .. }) => {
            ("/proc/self/mountinfo", host.text("/proc/self/mountinfo")?)
        }
        text => ("/proc/1/mountinfo", text?),
    };
    let mounts: Option<Vec<Mount>> = text.lines().map(mount).collect();
    mounts
        .filter(|mounts| !mounts.is_empty())
        .map(Mounts)
        .ok_or_else(|| Unreadable::malformed(path, "lines as in proc_pid_mountinfo(5)"))
}

/// Errors that ext4 has counted, by device; it keeps the count over reboots.
pub(crate) fn read_errors(host: &Host) -> Fact<Vec<(String, u64)>> {
    let mut errors = Vec::new();
    for device in host.list_if_present("/sys/fs/ext4")? {
        // Beside the devices stands the directory "features".
        let path = format!("/sys/fs/ext4/{device}/errors_count");
        if let Ok(text) = host.text(&path) {
            let count = text.trim().parse().map_err(|_| Unreadable::malformed(path, "a number"))?;
            errors.push((device, count));
        }
    }
    Ok(errors)
}

pub(super) fn read_file_systems(host: &Host) -> Fact<FileSystems> {
    let list = host.text("/proc/filesystems")?;
    Ok(FileSystems(
        list.lines().filter_map(|line| line.split_whitespace().last()).map(String::from).collect(),
    ))
}

/// proc_pid_mountinfo(5): `36 35 98:0 /root /point options tag... - type source options`.
fn mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ').skip(4);
    let point = fields.next()?;
    let options = fields.next()?;
    let shared = fields.any(|tag| tag.starts_with("shared:") || tag.starts_with("master:"));
    let mut file_system = after.split(' ');
    let (kind, source) =
        (file_system.next()?.to_string(), file_system.next().unwrap_or_default().to_string());
    // The mount may be read-only, or the file system below it.
    let read_only = [options, file_system.next().unwrap_or_default()]
        .iter()
        .any(|options| options.split(',').any(|option| option == "ro"));
    Some(Mount { point: unescape(point), kind, source, read_only, shared })
}

/// The kernel writes blank, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_string(), |field, (code, plain)| field.replace(code, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_gives_point_type_and_sharing() {
        let line = "35 24 0:30 / /sys/fs/bpf rw,nosuid,nodev shared:9 - bpf bpf rw,mode=700";
        let expected = Mount {
            point: "/sys/fs/bpf".into(),
            kind: "bpf".into(),
            source: "bpf".into(),
            read_only: false,
            shared: true,
        };
        assert_eq!(mount(line), Some(expected));
        assert!(mount("28 1 179:2 / / ro,noatime - ext4 /dev/mmcblk0p2 rw").unwrap().read_only);
        assert!(
            mount("28 1 179:2 / / rw,noatime - ext4 /dev/mmcblk0p2 ro,errors=remount-ro").unwrap().read_only
        );
        let copy = mount("51 50 8:1 / / rw,relatime shared:200 master:1 - ext4 /dev/sda1 rw").unwrap();
        assert!(copy.shared);
        let private = mount("27 1 254:0 / /mnt/my\\040disk rw - ext4 /dev/vda rw").unwrap();
        assert_eq!((private.point.as_str(), private.shared), ("/mnt/my disk", false));
        for garbage in ["", "a - b", "1 2 3 4 5"] {
            assert_eq!(mount(garbage), None, "{garbage:?}");
        }
    }

    #[test]
    fn the_last_mount_at_a_point_is_the_visible_one() {
        let at = |kind: &str| mount(&format!("1 1 0:1 / /sys/fs/bpf rw shared:1 - {kind} x rw")).unwrap();
        let mounts = Mounts(vec![at("tmpfs"), at("bpf")]);
        assert_eq!(mounts.top("/sys/fs/bpf").unwrap().kind, "bpf");
        assert_eq!(mounts.at("/sys/fs/bpf").count(), 2);
        assert!(mounts.top("/sys").is_none());
        assert_eq!(mounts.holding("/sys/fs/bpf/tc").unwrap().kind, "bpf");
        assert!(mounts.holding("/sys/fs/bpfx").is_none());
    }
}
