//! Whole directories, mounts and groups of processes, taken away by name. Of the writing half.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::mount::MntFlags;
use nix::sys::stat::{Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};

use super::write::{HostMut, NotDone, failpoint};

/// Killed processes are gone at once, unless the kernel is in the middle of something for them.
const PATIENCE: Duration = Duration::from_secs(20);

impl HostMut {
    /// Removes what is at `path`, with all that is below it; says whether there was something.
    ///
    /// A directory that is a mount point, or that a link leads to, is a place that its owner chose: it stays, emptied of
    /// all but a disk's own `lost+found`. It never leaves the file system that `path` is on: where something is mounted
    /// below, it stops.
    pub fn remove_all(&self, path: &str) -> Result<bool, NotDone> {
        let failed = |errno| match errno {
            Errno::EXDEV => {
                let next = format!("findmnt --submounts {path}; unmount it, then run it again");
                NotDone::new("removing", path, "something is mounted below it", next)
            }
            errno => NotDone::errno("removing", path, errno),
        };
        let (parent, name) = match self.place(path) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(false),
            place => place.map_err(failed)?,
        };
        let real = self.real(path)?.unwrap_or_else(|| path.into());
        // What is bound there from the same file system has the same device, and may be anybody's data.
        let (at, below): (Vec<_>, Vec<_>) = self.mounts(&real)?.into_iter().partition(|mount| *mount == real);
        if !below.is_empty() {
            return Err(failed(Errno::EXDEV));
        }
        failpoint();
        let is_owners = !at.is_empty() || self.host().link(path).is_some();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        match self.host().open(path, flags) {
            Ok(directory) if is_owners => return empty(&directory, !at.is_empty()).map_err(failed),
            _ if !at.is_empty() => return Err(failed(Errno::EXDEV)),
            _ => {}
        }
        let device = fstat(&parent).map_err(failed)?.st_dev;
        let name = CString::new(name).map_err(|_| failed(Errno::EINVAL))?;
        match remove_entry(&parent, &name, device) {
            Err(Errno::ENOENT) => return Ok(false),
            removed => removed.map_err(failed)?,
        }
        // A kernel file system has no disk to bring it to.
        let _ = fsync(&parent);
        Ok(true)
    }

    /// Takes away every mount at or below `point`, or where it leads to, the deepest first; says which there were. A point
    /// that ends with `-` is the beginning of a name.
    pub fn unmount_all(&self, point: &str) -> Result<Vec<String>, NotDone> {
        let real = self.real(point)?.unwrap_or_else(|| point.into());
        take_away(self.mounts(&real)?)
    }

    /// Takes away every mount below the directory that `path` leads to, and none that is there itself.
    pub fn unmount_below(&self, path: &str) -> Result<Vec<String>, NotDone> {
        let Some(real) = self.real(path)? else { return Ok(Vec::new()) };
        take_away(self.mounts(&real)?.into_iter().filter(|mount| *mount != real).collect())
    }

    fn mounts(&self, point: &str) -> Result<Vec<String>, NotDone> {
        if !self.host().is_live() {
            return Ok(Vec::new());
        }
        let text = self.host().text("/proc/self/mountinfo").map_err(|unreadable| {
            let why = unreadable.why.to_string();
            NotDone::new("reading", unreadable.path, why, "mount proc, then run it again")
        })?;
        Ok(mounts_below(&text, point))
    }

    /// Kills all processes of a control group and of those below it (`cgroup.kill`, since Linux 5.14); says whether there
    /// were any.
    pub fn kill_group(&self, group: &str) -> Result<bool, NotDone> {
        let is_populated = || {
            let events = self.host().text_if_present(&format!("{group}/cgroup.events")).ok().flatten();
            events.is_some_and(|text| text.lines().any(|line| line == "populated 1"))
        };
        if !self.host().is_live() || !is_populated() {
            return Ok(false);
        }
        self.set(&format!("{group}/cgroup.kill"), "1")?;
        let deadline = Instant::now() + PATIENCE;
        while is_populated() {
            if Instant::now() > deadline {
                let why = format!("processes are left after {} s", PATIENCE.as_secs());
                return Err(NotDone::new("ending", group, why, format!("systemd-cgls {group}")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(true)
    }
}

/// Unmounts, the last mounted first.
fn take_away(mut mounts: Vec<String>) -> Result<Vec<String>, NotDone> {
    mounts.reverse();
    for mount in &mounts {
        failpoint();
        match nix::mount::umount2(mount.as_str(), MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            // Somebody still has a file open there: it goes with the last of them.
            Err(Errno::EBUSY) => nix::mount::umount2(mount.as_str(), MntFlags::MNT_DETACH)
                .map_err(|errno| NotDone::errno("unmounting", mount, errno))?,
            Err(errno) => return Err(NotDone::errno("unmounting", mount, errno)),
        }
    }
    Ok(mounts)
}

fn remove_entry(parent: &OwnedFd, name: &CStr, device: u64) -> Result<(), Errno> {
    let status = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let kind = SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits());
    if kind != SFlag::S_IFDIR {
        return unlinkat(parent, name, UnlinkatFlags::NoRemoveDir);
    }
    if status.st_dev != device {
        return Err(Errno::EXDEV);
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    empty(&openat(parent, name, flags, Mode::empty())?, false)?;
    unlinkat(parent, name, UnlinkatFlags::RemoveDir)
}

/// Removes what is in a directory, but for the `lost+found` of a file system's root; says whether there was something.
fn empty(directory: &OwnedFd, is_root: bool) -> Result<bool, Errno> {
    let device = fstat(directory)?.st_dev;
    // A descriptor of its own for the list, which closes it.
    let listed =
        openat(directory, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::from_fd(listed)?.iter() {
        names.push(entry?.file_name().to_owned());
    }
    names.retain(|name| {
        let name = name.to_bytes();
        !([&b"."[..], b".."].contains(&name) || is_root && name == b"lost+found")
    });
    for name in &names {
        remove_entry(directory, name, device)?;
    }
    Ok(!names.is_empty())
}

/// Points of mounts at or below a path, in the order in which they were mounted.
fn mounts_below(mountinfo: &str, path: &str) -> Vec<String> {
    let point = |line: &str| Some(plain(line.split(' ').nth(4)?));
    let below = |point: &String| {
        point
            .strip_prefix(path)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || path.ends_with('-'))
    };
    mountinfo.lines().filter_map(point).filter(below).collect()
}

/// Blanks and backslashes stand as three octal digits in mountinfo.
fn plain(field: &str) -> String {
    let mut plain = String::new();
    let mut rest = field;
    while let Some((before, after)) = rest.split_once('\\') {
        plain += before;
        match after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(char::from(byte));
                rest = &after[3..];
            }
            None => {
                plain.push('\\');
                rest = after;
            }
        }
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn mounts_at_and_below_a_point_are_found_and_no_others() {
        let text = "1 0 8:1 / / rw - ext4 a rw\n2 1 0:5 / /run/k3s rw - tmpfs t rw\n3 2 0:6 / /run/k3s/a\\040b rw - overlay o rw\n\
                    4 1 0:7 / /run/k3sx rw - tmpfs t rw\n5 1 0:8 net /run/netns/cni-1 rw - nsfs n rw\n";
        assert_eq!(mounts_below(text, "/run/k3s"), ["/run/k3s", "/run/k3s/a b"]);
        assert_eq!(mounts_below(text, "/run/netns/cni-"), ["/run/netns/cni-1"]);
        assert!(mounts_below(text, "/var").is_empty());
    }

    #[test]
    fn a_tree_goes_whole_and_links_are_not_followed() {
        let dir = std::env::temp_dir().join(format!("bramble-remove-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("etc/a/b")).unwrap();
        std::fs::create_dir_all(dir.join("etc/kept")).unwrap();
        std::fs::write(dir.join("etc/a/b/file"), "x").unwrap();
        std::fs::write(dir.join("etc/kept/file"), "x").unwrap();
        std::os::unix::fs::symlink("../kept", dir.join("etc/a/link")).unwrap();
        let host = HostMut::tree(Path::new(&dir)).unwrap();
        assert_eq!(host.remove_all("/etc/a"), Ok(true));
        assert_eq!(host.remove_all("/etc/a"), Ok(false));
        assert_eq!(host.remove_all("/nowhere/a"), Ok(false));
        assert!(dir.join("etc/kept/file").exists() && !dir.join("etc/a").exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_directory_to_which_a_link_leads_stays_empty_and_the_link_too() {
        let dir = std::env::temp_dir().join(format!("bramble-remove-link-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("mnt/disk/k3s/a")).unwrap();
        std::fs::write(dir.join("mnt/disk/k3s/a/file"), "x").unwrap();
        std::fs::write(dir.join("mnt/disk/other"), "x").unwrap();
        std::fs::create_dir_all(dir.join("var")).unwrap();
        std::fs::create_dir_all(dir.join("etc")).unwrap();
        std::os::unix::fs::symlink("/mnt/disk/k3s", dir.join("var/k3s")).unwrap();
        std::os::unix::fs::symlink("/mnt/disk/other", dir.join("var/file")).unwrap();
        let host = HostMut::tree(Path::new(&dir)).unwrap();
        assert_eq!(host.remove_all("/var/k3s"), Ok(true));
        assert_eq!(host.remove_all("/var/k3s"), Ok(false));
        assert!(dir.join("var/k3s").is_symlink() && dir.join("mnt/disk/k3s").is_dir());
        assert_eq!(std::fs::read_dir(dir.join("mnt/disk/k3s")).unwrap().count(), 0);
        assert_eq!(host.remove_all("/var/file"), Ok(true));
        assert!(dir.join("mnt/disk/other").exists() && !dir.join("var/file").is_symlink());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
