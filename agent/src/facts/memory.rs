//! Memory (`/proc/meminfo`) and pressure accounting (`/proc/pressure`).

use super::Fact;
use crate::host::{Host, Unreadable, Why};

/// What is known of memory.
#[derive(Debug)]
pub struct Memory {
    /// Bytes the kernel manages; less than what is soldered on.
    pub total: Fact<u64>,
    /// Whether the kernel accounts for time lost to a lack of memory.
    pub pressure: Fact<bool>,
}

const MEMINFO: &str = "/proc/meminfo";

pub(super) fn read(host: &Host) -> Memory {
    let path = "/proc/pressure/memory";
    let pressure = match host.text(path) {
        Ok(text) => Ok(text.starts_with("some ")),
        // Built in but switched off, the file is there and says so when it is read.
        Err(Unreadable { why: Why::Failed(_), .. }) if host.is_live() => Ok(false),
        Err(_) => host.present(path).map(|_| false),
    };
    let total = host
        .text(MEMINFO)
        .and_then(|text| total(&text).ok_or_else(|| Unreadable::malformed(MEMINFO, "a line MemTotal in kB")));
    Memory { total, pressure }
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(total("MemTotal:        8256128 kB\nMemFree: 1 kB\n"), Some(8_454_275_072));
        for garbage in ["", "MemTotal: many kB", "MemTotal: 1 MB", "MemTotal: 18446744073709551615 kB"] {
            assert_eq!(total(garbage), None, "{garbage:?}");
        }
    }
}
