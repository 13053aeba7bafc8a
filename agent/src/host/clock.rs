//! The wall clock: what time it is, and whether somebody keeps it right.
#![allow(clippy::disallowed_methods, reason = "the door")]

use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::stat::fstat;
use nix::time::{ClockId, clock_gettime};

use super::{Host, Unreadable, Why};

/// The wall clock's time.
pub fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// A time that never jumps, and goes on while the machine sleeps: where it begins means nothing.
pub fn steady() -> jiff::Timestamp {
    jiff::Timestamp::try_from(std::time::UNIX_EPOCH + since_boot(ClockId::CLOCK_BOOTTIME))
        .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}

/// Time since boot without suspension: what the kernel's log counts in.
pub fn uptime() -> Duration {
    since_boot(ClockId::CLOCK_MONOTONIC)
}

fn since_boot(clock: ClockId) -> Duration {
    // These clocks are always there, and never before their own beginning.
    clock_gettime(clock)
        .map_or(Duration::ZERO, |now| Duration::new(now.tv_sec() as u64, now.tv_nsec() as u32))
}

/// What the kernel knows of its clock's discipline, from adjtimex(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Discipline {
    /// How far the clock was off when it was last corrected, microseconds; chrony steers by frequency and leaves 0.
    pub offset_us: i64,
    /// The largest error that is possible, or `None` when nobody synchronises the clock.
    pub error: Option<Duration>,
}

/// From here on `timedatectl` calls a clock not synchronised; the kernel lets the error grow to this when nobody does.
const UNKNOWN: Duration = Duration::from_secs(16);

/// The file that systemd-timesyncd leaves once the clock was set from a server.
const TIMESYNCD: &str = "/run/systemd/timesync/synchronized";

impl Host {
    /// How long ago what stands at `path` was written, by the wall clock; a link is looked at itself. `None` when nothing is
    /// there, or when it is from the future.
    pub fn age(&self, path: &str) -> Option<Duration> {
        let found = self.open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW).ok()?;
        let status = fstat(found).ok()?;
        let nanoseconds = i32::try_from(status.st_mtime_nsec).ok()?;
        let written = jiff::Timestamp::new(status.st_mtime, nanoseconds).ok()?;
        now().duration_since(written).try_into().ok()
    }

    /// The largest error of the clock that the kernel allows for, or `None` when nobody synchronises it.
    ///
    /// Follows `timedatectl`: synchronised means an estimated maximum error below 16 s, whoever did it.
    /// Of a captured tree only systemd-timesyncd's mark can tell, and only that it was synchronised.
    pub fn clock_error(&self) -> Result<Option<Duration>, Unreadable> {
        if !self.is_live() {
            self.bytes(TIMESYNCD)?;
            return Ok(Some(Duration::ZERO));
        }
        match self.clock_discipline() {
            // Behind ProtectClock= the kernel may not be asked, and systemd-timesyncd's mark tells all the same.
            Err(Unreadable { why: Why::Denied, .. }) if self.bytes(TIMESYNCD).is_ok() => {
                Ok(Some(Duration::ZERO))
            }
            discipline => Ok(discipline?.error),
        }
    }

    /// How the clock is kept right. Only the running machine can tell.
    pub fn clock_discipline(&self) -> Result<Discipline, Unreadable> {
        const QUERY: &str = "adjtimex(2)";
        if !self.is_live() {
            return Err(Unreadable::not_live(QUERY));
        }
        adjtimex().map_err(|error| Unreadable {
            path: QUERY.into(),
            why: match error.kind() {
                std::io::ErrorKind::PermissionDenied => Why::Denied,
                _ => Why::Failed(error.to_string()),
            },
        })
    }
}

#[allow(unsafe_code, reason = "no crate of ours wraps adjtimex(2), and no file tells the same")]
fn adjtimex() -> std::io::Result<Discipline> {
    // SAFETY: `timex` is plain integers, for which all zeroes is a value; `modes` of zero reads only.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live, writable `timex`; the kernel writes no further than its end.
    if unsafe { libc::adjtimex(&mut timex) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    #[allow(clippy::unnecessary_cast, reason = "the fields are narrower on 32-bit targets")]
    let (error, offset) = (timex.maxerror as i64, timex.offset as i64);
    let error = Duration::from_micros(error.unsigned_abs());
    let offset_us = if timex.status & libc::STA_NANO != 0 { offset / 1000 } else { offset };
    Ok(Discipline { offset_us, error: (error < UNKNOWN).then_some(error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_gives_its_clock_error_without_a_right() {
        assert!(adjtimex().is_ok());
        assert!(uptime() > Duration::ZERO);
        assert!(now() > jiff::Timestamp::UNIX_EPOCH);
    }

    #[test]
    fn a_link_is_as_old_as_itself() {
        let link = std::env::temp_dir().join(format!("bramble-link-{}", std::process::id()));
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        let host = Host::live().unwrap();
        let age = host.age(&link.display().to_string());
        std::fs::remove_file(&link).unwrap();
        assert!(age.is_some_and(|age| age < Duration::from_secs(60)), "{age:?}");
        assert_eq!(host.age("/nowhere/at/all"), None);
    }
}
