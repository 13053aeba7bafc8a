//! Drives that had to be reset, and reads and writes that failed, from the kernel's log, which the companion follows.
//!
//! UAS enclosures that stop to answer, NVMe controllers that fall off their bus, cards that no longer answer their host: each
//! is told by the driver in a line of its own, and only there.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use wire::report::{Kind, Rank, Severity, Status, Unit};

use super::{Health, Judge, Pace, Probe, Seen, Source, Statement};
use crate::{
    datapath::rights::{LOG, missing},
    host::{Host, kmsg::Log},
};

/// The table's row.
pub(super) const PROBE: Probe = Probe {
    id: "reset",
    title: "Resets of drives",
    why: "A drive that is reset holds every write up for half a minute, and K3s gives up long before.",
    pace: Pace::Report,
    judge: || Box::new(Resets),
    kernel: Some(|host| Ok(Box::new(Follow::open(host)))),
};

/// What counts as fresh.
const FRESH: Duration = Duration::from_secs(3600);
/// Drives that are told apart; a log can name any number.
const MOST: usize = 16;

/// What the log says of one drive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Trouble {
    count: u64,
    /// Microseconds since boot.
    last_us: u64,
    line: String,
}

/// By drive, or why the log is not read.
type Counts = Result<BTreeMap<String, Trouble>, String>;

struct Follow {
    log: Result<Log, String>,
    /// Ports with a drive that speaks no UAS: it has no line of its own, and other devices on USB are no drives.
    ports: BTreeSet<String>,
    counts: BTreeMap<String, Trouble>,
}

impl Follow {
    fn open(host: &Host) -> Self {
        let log = host.kernel_log().map_err(|why| format!("{why}{}", missing(host, LOG)));
        Self { log, ports: BTreeSet::new(), counts: BTreeMap::new() }
    }

    fn take(ports: &mut BTreeSet<String>, counts: &mut BTreeMap<String, Trouble>, at_us: u64, text: &str) {
        if let Some(port) = port_of_a_drive(text)
            && ports.len() < MOST
        {
            ports.insert(port.to_owned());
        }
        let Some(drive) = drive(text, ports) else { return };
        if counts.len() >= MOST && !counts.contains_key(drive) {
            return;
        }
        let trouble =
            counts.entry(drive.to_owned()).or_insert(Trouble { count: 0, last_us: 0, line: String::new() });
        trouble.count += 1;
        trouble.last_us = at_us;
        trouble.line = text.chars().take(120).collect();
    }
}

impl Source for Follow {
    fn read(&mut self) -> serde_json::Value {
        let counts: Counts = match &mut self.log {
            Ok(log) => {
                log.follow(|line| Self::take(&mut self.ports, &mut self.counts, line.at_us, &line.text));
                Ok(self.counts.clone())
            }
            Err(why) => Err(why.clone()),
        };
        serde_json::to_value(counts).expect("text and numbers are JSON")
    }
}

/// "usb-storage 1-1.2:1.0: USB Mass Storage device detected"
fn port_of_a_drive(line: &str) -> Option<&str> {
    let (interface, what) = line.strip_prefix("usb-storage ")?.split_once(": ")?;
    what.starts_with("USB Mass Storage device detected").then_some(interface.split_once(':')?.0)
}

/// The drive of which a line tells trouble. `ports` = those of USB that have a drive without UAS.
fn drive<'a>(line: &'a str, ports: &BTreeSet<String>) -> Option<&'a str> {
    let word =
        |text: &str| -> usize { text.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(text.len()) };
    // "scsi host0: uas_eh_device_reset_handler start"
    if let Some((host, "uas_eh_device_reset_handler start")) =
        line.strip_prefix("scsi ").and_then(|rest| rest.split_once(": "))
    {
        return Some(host);
    }
    // "usb 1-1.2: reset high-speed USB device number 4 using xhci_hcd"
    if let Some((port, what)) = line.strip_prefix("usb ").and_then(|rest| rest.split_once(": "))
        && ports.contains(port)
        && what.starts_with("reset ")
        && what.contains(" USB device number ")
    {
        return Some(port);
    }
    // "nvme nvme0: controller is down; will reset: CSTS=...", "nvme nvme0: I/O 5 QID 1 timeout, reset controller"
    if let Some((drive, what)) = line.strip_prefix("nvme ").and_then(|rest| rest.split_once(": "))
        && (what.starts_with("controller is down")
            || what.ends_with("reset controller")
            || what.starts_with("Disabling device after reset failure")
            // The same on older kernels.
            || what.starts_with("Removing after probe failure"))
    {
        return Some(drive);
    }
    // "mmc0: Timeout waiting for hardware interrupt.", "mmc0: error -110 whilst ..."; behind SDIO is no drive but Wi-Fi
    if let Some((host, what)) = line.split_once(": ")
        && host.strip_prefix("mmc").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        && (what.starts_with("Timeout waiting for") || what.starts_with("error -") && !what.contains("SDIO"))
    {
        return Some(host);
    }
    // "I/O error, dev sda, sector 2048 op 0x0:(READ) ...", with another word before it on older kernels. A "critical target
    // error" is a command that the drive does not know.
    let kinds = ["I/O error, dev ", "critical medium error, dev ", "timeout error, dev "];
    let (_, rest) = kinds.iter().find_map(|kind| line.split_once(kind))?;
    let device = &rest[..word(rest)];
    // A loop device repeats the error of what lies below it, and a drive without a medium has none.
    (!device.is_empty() && !device.starts_with("loop") && !device.starts_with("sr")).then_some(device)
}

struct Resets;

impl Judge for Resets {
    fn judge(&mut self, seen: &Seen<'_>) -> Health {
        let mut health = Health::default();
        let counts: Counts = seen.kernel("reset").and_then(|counts: Counts| counts);
        let total = counts.as_ref().ok().map(|counts| counts.values().map(|t| t.count).sum::<u64>() as f64);
        health.reading("storage-resets", "Resets and errors of drives", total, Unit::Count, Kind::Total);
        health.rank(Rank::Diagnostic, |_| true);
        let (status, evidence) = match &counts {
            Err(why) => (Status::Unknown, why.clone()),
            Ok(counts) => told(counts, seen.uptime),
        };
        health.statements.push(Statement {
            id: "storage-resets",
            subject: None,
            title: "Drive does not answer well",
            status,
            severity: Severity::Critical,
            depends_on: &["companion", "under-voltage"],
            evidence,
        });
        health
    }
}

fn told(counts: &BTreeMap<String, Trouble>, uptime: Duration) -> (Status, String) {
    let newest = counts.iter().max_by_key(|(_, trouble)| trouble.last_us);
    let Some((drive, Trouble { count, last_us, line })) = newest else {
        return (Status::Clear, "the kernel's log tells of none".to_owned());
    };
    let ago = uptime.saturating_sub(Duration::from_micros(*last_us));
    let others = match counts.len() {
        1 => String::new(),
        more => format!("; {} other drives had trouble too", more - 1),
    };
    let evidence =
        format!("{drive}: {count} since boot, last {} min ago: {line}{others}", ago.as_secs() / 60);
    (if ago <= FRESH { Status::Raised } else { Status::Clear }, evidence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::scene::Scene;

    #[test]
    fn drivers_words_name_the_drive_and_other_lines_none() {
        for (line, named) in [
            ("scsi host0: uas_eh_device_reset_handler start", Some("host0")),
            ("scsi host0: uas_eh_device_reset_handler success", None),
            ("nvme nvme0: controller is down; will reset: CSTS=0xffffffff, PCI_STATUS=0x10", Some("nvme0")),
            ("nvme nvme1: I/O 5 QID 1 timeout, reset controller", Some("nvme1")),
            ("nvme nvme0: Disabling device after reset failure: -19", Some("nvme0")),
            ("nvme nvme0: Removing after probe failure status: -19", Some("nvme0")),
            ("nvme nvme0: 4/0/0 default/read/poll queues", None),
            ("mmc0: Timeout waiting for hardware interrupt.", Some("mmc0")),
            ("mmc1: error -110 whilst initialising SD card", Some("mmc1")),
            ("mmc1: error -110 whilst initialising SDIO card", None),
            ("mmc0: new high speed SDHC card at address aaaa", None),
            ("I/O error, dev sda, sector 0 op 0x0:(READ) flags 0x80700 phys_seg 4 prio class 3", Some("sda")),
            ("blk_update_request: I/O error, dev mmcblk0, sector 1 op 0x1:(WRITE)", Some("mmcblk0")),
            (
                "critical medium error, dev sda, sector 2048 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2",
                Some("sda"),
            ),
            ("blk_update_request: critical medium error, dev sdb, sector 1 op 0x0:(READ)", Some("sdb")),
            (
                "timeout error, dev nvme0n1, sector 8 op 0x1:(WRITE) flags 0x0 phys_seg 1 prio class 2",
                Some("nvme0n1"),
            ),
            ("critical target error, dev sda, sector 0 op 0x3:(DISCARD) flags 0x800 phys_seg 1", None),
            ("I/O error, dev loop3, sector 1", None),
            ("critical medium error, dev sr0, sector 1", None),
            ("usb 1-1.2: reset high-speed USB device number 4 using xhci_hcd", Some("1-1.2")),
            ("usb 1-1.3: reset high-speed USB device number 5 using xhci_hcd", None),
            ("usb 1-1.2: new high-speed USB device number 4 using xhci_hcd", None),
            ("usb 1-1.2: reset by peer", None),
            ("I/O error, dev ", None),
            ("", None),
        ] {
            let ports = BTreeSet::from(["1-1.2".to_owned()]);
            assert_eq!(drive(line, &ports), named, "{line}");
        }
        assert_eq!(port_of_a_drive("usb-storage 1-1.2:1.0: USB Mass Storage device detected"), Some("1-1.2"));
        assert_eq!(
            port_of_a_drive("usb-storage 1-1.2:1.0: Quirks match for vid 152d pid 0578: 1000000"),
            None
        );
    }

    fn took(lines: &[(u64, &str)]) -> BTreeMap<String, Trouble> {
        let (mut ports, mut counts) = (BTreeSet::new(), BTreeMap::new());
        lines.iter().for_each(|(at, line)| Follow::take(&mut ports, &mut counts, at * 1_000_000, line));
        counts
    }

    #[test]
    fn a_reset_on_usb_counts_for_a_drive_once_and_for_nothing_else() {
        let reset = "usb 2-1: reset SuperSpeed USB device number 2 using xhci_hcd";
        let uas = "scsi host0: uas_eh_device_reset_handler start";
        assert!(took(&[(1, reset)]).is_empty(), "a stick for Zigbee");
        assert_eq!(took(&[(1, uas), (2, reset)]).len(), 1, "UAS has said it already");
        let drive = "usb-storage 2-1:1.0: USB Mass Storage device detected";
        assert_eq!(took(&[(1, drive), (9, reset)])["2-1"].count, 1);
    }

    #[test]
    fn a_reset_is_raised_for_an_hour_and_counted_until_the_next_boot() {
        let line = "scsi host0: uas_eh_device_reset_handler start";
        let counts = took(&[(900, line), (960, line)]);
        let mut scene = Scene::with_companion();
        let mut judge = (PROBE.judge)();
        assert_eq!(scene.judge(&mut judge).said("storage-resets").unwrap().0, Status::Unknown);
        let counts: Counts = Ok(counts);
        scene.sources.insert("reset".to_owned(), Ok(serde_json::to_value(counts).unwrap()));
        scene.uptime = Duration::from_secs(1260);
        let health = scene.judge(&mut judge);
        assert_eq!(health.value("storage-resets"), Some(Some(2.0)));
        let (status, evidence) = health.said("storage-resets").unwrap();
        assert_eq!(status, Status::Raised);
        assert!(evidence.starts_with("host0: 2 since boot, last 5 min ago: scsi host0: uas"), "{evidence}");
        scene.wait(3600);
        assert_eq!(scene.judge(&mut judge).said("storage-resets").unwrap().0, Status::Clear);
        let denied: Counts = Err("/dev/kmsg: permission denied".to_owned());
        scene.sources.insert("reset".to_owned(), Ok(serde_json::to_value(denied).unwrap()));
        let health = scene.judge(&mut judge);
        assert_eq!(health.said("storage-resets"), Some((Status::Unknown, "/dev/kmsg: permission denied")));
    }

    #[test]
    fn a_log_that_names_any_number_of_drives_is_bounded() {
        let lines: Vec<String> =
            (0..1000).map(|n| format!("nvme nvme{n}: controller is down; will reset: CSTS=0x0")).collect();
        let lines: Vec<(u64, &str)> = lines.iter().map(|line| (1, line.as_str())).collect();
        assert_eq!(took(&lines).len(), MOST);
    }
}
