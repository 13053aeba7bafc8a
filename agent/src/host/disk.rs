//! Asks the kernel how full a file system is, and how long the disk below it takes.
#![allow(clippy::disallowed_methods, reason = "the door")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, major, minor};
use nix::sys::statvfs::statvfs;
use nix::unistd::fdatasync;

use super::{Host, Unreadable, errno_of, failed};

/// Room on one file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// All that the file system holds.
    pub size: u64,
    /// What an unprivileged writer may still use.
    pub free: u64,
}

/// How long writes took until they were on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncTimes {
    /// How many were made.
    pub writes: usize,
    /// Half of them took at most this.
    pub median: Duration,
    /// All but one in a hundred took at most this.
    pub p99: Duration,
}

impl SyncTimes {
    /// Of at least one.
    fn of(mut times: Vec<Duration>) -> Option<SyncTimes> {
        times.sort_unstable();
        let at = |percent: usize| times.get((times.len() * percent).div_ceil(100).max(1) - 1).copied();
        Some(SyncTimes { writes: times.len(), median: at(50)?, p99: at(99)? })
    }
}

impl Host {
    /// Writes as etcd writes its log, 2,300 bytes each and each to disk, into a file without a name that is gone with
    /// this call: at most 500 times and for `limit`. It needs the right to write into `directory`. A captured tree cannot
    /// tell.
    ///
    /// The size and the question are those of etcd's own advice (fio, `--fdatasync=1 --bs=2300`).
    pub fn sync_times(&self, directory: &str, limit: Duration) -> Result<SyncTimes, Unreadable> {
        let query = format!("fdatasync below {directory}");
        if !self.is_live() {
            return Err(Unreadable::not_live(query));
        }
        let refused = |errno| failed(&query, errno);
        let flags = OFlag::O_TMPFILE | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let file = File::from(open(directory, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(refused)?);
        let (begun, block) = (Instant::now(), [0x5a; 2300]);
        let mut times = Vec::new();
        while times.len() < 500 && (times.is_empty() || begun.elapsed() < limit) {
            let before = Instant::now();
            let at = times.len() as u64 * block.len() as u64;
            file.write_all_at(&block, at).map_err(|error| refused(errno_of(&error)))?;
            fdatasync(&file).map_err(refused)?;
            times.push(before.elapsed());
        }
        SyncTimes::of(times).ok_or_else(|| refused(Errno::EIO))
    }

    /// The room on the file system that holds `path`. A captured tree cannot tell.
    pub fn room(&self, path: &str) -> Result<Room, Unreadable> {
        let query = format!("statvfs({path})");
        if !self.is_live() {
            return Err(Unreadable::not_live(query));
        }
        let answer = statvfs(path).map_err(|errno| failed(&query, errno))?;
        let unit = answer.fragment_size();
        Ok(Room {
            size: answer.blocks().saturating_mul(unit),
            free: answer.blocks_available().saturating_mul(unit),
        })
    }
}

impl Host {
    /// The number of the file system that holds `path`; the same number is the same file system. A captured tree cannot tell.
    pub fn file_system(&self, path: &str) -> Result<u64, Unreadable> {
        let query = format!("stat({path})");
        if !self.is_live() {
            return Err(Unreadable::not_live(query));
        }
        Ok(nix::sys::stat::stat(path).map_err(|errno| failed(&query, errno))?.st_dev)
    }

    /// The drive below the file system of this number, by its name in `/sys/block`; `None` where there is not exactly one: a
    /// network's, a file system over several drives, or one (btrfs) whose number is no device's.
    pub fn drive(&self, file_system: u64) -> Option<String> {
        let mut device = format!("/sys/dev/block/{}:{}", major(file_system), minor(file_system));
        // A volume on an encrypted volume on a part of a drive; no more than a person would stack.
        for _ in 0..8 {
            let below = self.list_if_present(&format!("{device}/slaves")).ok()?;
            match &below[..] {
                [] => break,
                [only] => device = format!("{device}/slaves/{only}"),
                _ => return None,
            }
        }
        let link = self.link(&device)?;
        let mut names = link.rsplit('/');
        let name = names.next()?;
        let is_part = self.present(&format!("{device}/partition")).ok()?;
        Some(if is_part { names.next()? } else { name }.to_owned())
    }

    /// What a drive has done since boot to make what was written last.
    pub fn flushes(&self, drive: &str) -> Result<Flushes, Unreadable> {
        let path = format!("/sys/block/{drive}/stat");
        let text = self.text(&path)?;
        let numbers: Vec<u64> = text.split_ascii_whitespace().map_while(|n| n.parse().ok()).collect();
        // Documentation/block/stat.rst
        match numbers.get(15..17) {
            Some(&[count, milliseconds]) => Ok(Flushes { count, milliseconds }),
            _ => Err(Unreadable::malformed(path, "seventeen numbers, as since Linux 5.5")),
        }
    }
}

/// How often a drive emptied its write cache, and how long that took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flushes {
    /// Since boot.
    pub count: u64,
    /// All of them together.
    pub milliseconds: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_write_in_a_hundred_is_left_out_and_two_are_not() {
        let times = |slow: usize| {
            let each = |n| Duration::from_millis(if n < slow { 90 } else { 2 });
            SyncTimes::of((0..100).map(each).collect()).unwrap()
        };
        let (one, two) = (times(1), times(2));
        assert_eq!((one.writes, one.median.as_millis(), one.p99.as_millis()), (100, 2, 2));
        assert_eq!(two.p99.as_millis(), 90);
        assert_eq!(SyncTimes::of(vec![]), None);
    }

    #[test]
    fn the_disk_is_timed_within_its_limits() {
        let directory = std::env::temp_dir();
        let path = directory.to_str().unwrap();

        let times = Host::live().unwrap().sync_times(path, Duration::from_millis(200)).unwrap();
        assert!((1..=500).contains(&times.writes) && times.median <= times.p99, "{times:?}");

        assert!(Host::live().unwrap().sync_times("/nowhere", Duration::ZERO).is_err());
    }

    #[test]
    fn the_root_file_system_has_room_for_itself() {
        let room = Host::live().unwrap().room("/").unwrap();
        assert!(room.size > 0 && room.free <= room.size, "{room:?}");
    }
}
