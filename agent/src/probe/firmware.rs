//! Which firmware a Raspberry Pi runs, in words: the bootloader in its EEPROM, from the device tree, and the firmware that
//! runs beside Linux, which the companion asks.

use serde::{Deserialize, Serialize};

use super::{Health, Judge, Pace, Probe, Seen, Source};
use crate::host::vcio;

/// The table's row.
pub(super) const PROBE: Probe = Probe {
    id: "firmware",
    title: "Firmware",
    why: "Many a fault of NVMe, network boot and power was mended in a newer EEPROM.",
    pace: Pace::Check,
    judge: || Box::new(Firmware),
    kernel: Some(|host| {
        let mailbox = host.mailbox().ok().flatten();
        let built = mailbox.and_then(|mut mailbox| vcio::revision(&mut mailbox).ok());
        Ok(Box::new(Revision { built }))
    }),
};

/// When the firmware was built, seconds since 1970. It does not change while it runs.
#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Revision {
    built: Option<u32>,
}

impl Source for Revision {
    fn read(&mut self) -> serde_json::Value {
        serde_json::to_value(*self).expect("a number is JSON")
    }
}

struct Firmware;

impl Judge for Firmware {
    fn judge(&mut self, seen: &Seen<'_>) -> Health {
        const BOOTLOADER: &str = "/proc/device-tree/chosen/bootloader";
        let mut health = Health::default();
        // A cell of the device tree is big-endian.
        let built = seen.host.bytes(&format!("{BOOTLOADER}/build-timestamp")).ok();
        let built = built.and_then(|cell| Some(u32::from_be_bytes(cell.try_into().ok()?)));
        if let Some(built) = built.filter(|built| *built > 0) {
            let version = seen.host.bytes(&format!("{BOOTLOADER}/version")).unwrap_or_default();
            let version = String::from_utf8_lossy(&version);
            let version: String = version.chars().take_while(char::is_ascii_hexdigit).take(8).collect();
            let version = if version.is_empty() { version } else { format!(" ({version})") };
            health.about.insert("eeprom", format!("{}{version}", date(built)));
        }
        let revision: Revision = seen.kernel("firmware").unwrap_or_default();
        if let Some(built) = revision.built.filter(|built| *built > 0) {
            health.about.insert("firmware", date(built));
        }
        health
    }
}

fn date(seconds: u32) -> String {
    let at = jiff::Timestamp::from_second(i64::from(seconds)).expect("four bytes of seconds end in 2106");
    at.strftime("%Y-%m-%d").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::scene::Scene;

    #[test]
    fn the_versions_are_told_in_words_where_there_are_any() {
        let mut scene = Scene::with_companion();
        let mut judge = (PROBE.judge)();
        assert_eq!(scene.judge(&mut judge), Health::default());
        scene.write("/proc/device-tree/chosen/bootloader/build-timestamp", 1_727_096_576_u32.to_be_bytes());
        scene.write("/proc/device-tree/chosen/bootloader/version", "26826259c3a4bc9c\0");
        let revision = Revision { built: Some(1_700_000_000) }.read();
        scene.sources.insert("firmware".to_owned(), Ok(revision));
        let health = scene.judge(&mut judge);
        assert_eq!(health.about["eeprom"], "2024-09-23 (26826259)");
        assert_eq!(health.about["firmware"], "2023-11-14");
        scene.write("/proc/device-tree/chosen/bootloader/build-timestamp", "too long for a cell");
        assert!(!scene.judge(&mut judge).about.contains_key("eeprom"));
    }
}
