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
    /// It never leaves the file system that `path` is on: where something is mounted below, it stops.
    pub fn remove_all(&self, path: &str) -> Result<bool, NotDone> {
        let failed = |errno| match errno {
            Errno::EXDEV => {
                let next = format!("findmnt --submounts {path}; unmount it, then run it again");
                NotDone::new("removing", path, "something is mounted below it", next)
            }
            errno => NotDone::errno("removing", path, errno),
        };
        let (directory, name) = match self.place(path) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(false),
            place => place.map_err(failed)?,
        };
        let device = fstat(&directory).map_err(failed)?.st_dev;
        // What is bound there from the same file system has the same device, and may be anybody's data.
        if !self.mounts(path)?.is_empty() {
            return Err(failed(Errno::EXDEV));
        }
        let name = CString::new(name).map_err(|_| failed(Errno::EINVAL))?;
        failpoint();
        match remove_entry(&directory, &name, device) {
            Err(Errno::ENOENT) => return Ok(false),
            removed => removed.map_err(failed)?,
        }
        // A kernel file system has no disk to bring it to.
        let _ = fsync(&directory);
        Ok(true)
    }

    /// Takes away every mount at or below `point`, the deepest first; says which there were.
    pub fn unmount_all(&self, point: &str) -> Result<Vec<String>, NotDone> {
        if !self.host().is_live() {
            return Ok(Vec::new());
        }
        let text = self.host().text("/proc/self/mountinfo").map_err(|unreadable| {
            NotDone::new(
                "reading",
                unreadable.path,
                unreadable.why.to_string(),
                "mount proc, then run it again",
            )
        })?;
        let mut mounts: Vec<String> = mounts_below(&text, point);
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
    let directory = openat(parent, name, flags, Mode::empty())?;
    // A descriptor of its own for the list, which closes it.
    let listed = openat(parent, name, flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::from_fd(listed)?.iter() {
        names.push(entry?.file_name().to_owned());
    }
    for below in names {
        if ![&b"."[..], b".."].contains(&below.to_bytes()) {
            remove_entry(&directory, &below, device)?;
        }
    }
    unlinkat(parent, name, UnlinkatFlags::RemoveDir)
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
}
