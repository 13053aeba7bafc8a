//! The kernel's log, from `/dev/kmsg`: what was said since boot as far as it is kept, then what is added. Reading it takes
//! `CAP_SYSLOG` where `kernel.dmesg_restrict` is set, as Debian sets it. See Documentation/ABI/testing/dev-kmsg.
#![allow(clippy::disallowed_methods, reason = "the door")]

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
};

use super::{Host, Unreadable, errno_of, failed};

const DEVICE: &str = "/dev/kmsg";

/// The longest record that the kernel hands out.
const LONGEST: usize = 8192;

/// The log, read as far as it goes.
#[derive(Debug)]
pub struct Log {
    device: File,
}

/// One line of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When, in microseconds since boot.
    pub at_us: u64,
    /// What was said.
    pub text: String,
}

impl Host {
    /// Opens the log at the oldest line that is kept. Only of the running machine.
    pub fn kernel_log(&self) -> Result<Log, Unreadable> {
        if !self.is_live() {
            return Err(Unreadable::not_live(DEVICE));
        }
        let mut device = OpenOptions::new();
        device.read(true).custom_flags(nix::libc::O_NONBLOCK);
        let device = device.open(DEVICE).map_err(|error| failed(DEVICE, errno_of(&error)))?;
        Ok(Log { device })
    }
}

impl Log {
    /// Calls `each` with every line of the kernel's own that was added since the last time.
    pub fn follow(&mut self, mut each: impl FnMut(Line)) {
        let mut record = [0; LONGEST];
        loop {
            match self.device.read(&mut record) {
                Ok(0) => return,
                Ok(length) => {
                    if let Some(line) = line(&String::from_utf8_lossy(&record[..length])) {
                        each(line);
                    }
                }
                // Overtaken by newer lines: the next read goes on with the oldest that is still there.
                Err(error) if error.raw_os_error() == Some(nix::libc::EPIPE) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}

/// A record is "priority,sequence,microseconds,flags[,...];text" and may go on with lines of properties.
fn line(record: &str) -> Option<Line> {
    let (head, text) = record.split_once(';')?;
    let mut head = head.split(',');
    let priority: u32 = head.next()?.parse().ok()?;
    // Anybody who may write to the device can say anything, but not in the kernel's name (facility 0).
    (priority >> 3 == 0).then_some(())?;
    let at_us = head.nth(1)?.parse().ok()?;
    Some(Line { at_us, text: text.lines().next()?.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_understood_and_user_space_is_not_the_kernel() {
        let text =
            "6,1234,5000000,-;usb 2-1: reset SuperSpeed USB device number 2 using xhci_hcd\n SUBSYSTEM=usb\n";
        let read = line(text).unwrap();
        assert_eq!((read.at_us, read.text.ends_with("xhci_hcd")), (5_000_000, true));
        assert_eq!(line("12,1,5,-;Under-voltage detected!\n"), None);
        for wrong in ["", ";", "6,1;x", "x,1,2,-;y", "6,1,-5,-;y"] {
            assert_eq!(line(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn the_running_kernels_log_is_followed_or_refused_with_its_path() {
        match Host::live().unwrap().kernel_log() {
            Ok(mut log) => {
                log.follow(|line| assert!(!line.text.contains('\n')));
                let mut again = 0;
                log.follow(|_| again += 1);
                assert!(again < 100, "what was read once is not read again");
            }
            Err(why) => assert!(why.to_string().starts_with(DEVICE), "{why}"),
        }
    }
}
