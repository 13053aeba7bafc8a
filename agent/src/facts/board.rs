//! Board and distribution: `/proc/device-tree/model`, `/etc/os-release`.

use super::Fact;
use crate::host::Host;

/// What the machine is called.
#[derive(Debug)]
pub struct Board {
    /// The device tree's model, for instance "Raspberry Pi 5 Model B Rev 1.0"; `None` without a device tree.
    pub model: Fact<Option<String>>,
    /// Serial number; `None` without one in the device tree.
    pub serial: Fact<Option<String>>,
    /// Revision code, as `/proc/cpuinfo` spells it: "d04170"; `None` on what is no Raspberry Pi.
    pub revision: Fact<Option<String>>,
    /// `PRETTY_NAME` of os-release.
    pub os: Fact<String>,
}

impl Board {
    /// Whether the board is a Raspberry Pi.
    pub fn is_raspberry_pi(&self) -> Fact<bool> {
        Ok(self.model.as_ref()?.as_ref().is_some_and(|model| model.starts_with("Raspberry Pi")))
    }
}

pub(super) fn read(host: &Host) -> Board {
    Board {
        model: string(host, MODEL),
        serial: serial(host),
        revision: cell(host, "/proc/device-tree/system/linux,revision"),
        os: host.text("/etc/os-release").map(|text| pretty_name(&text)),
    }
}

/// Serial number of the board; `None` without one in the device tree.
pub fn serial(host: &Host) -> Fact<Option<String>> {
    string(host, "/proc/device-tree/serial-number")
}

fn property(host: &Host, path: &str) -> Fact<Option<Vec<u8>>> {
    match host.present(path) {
        Ok(false) => Ok(None),
        _ => host.bytes(path).map(Some),
    }
}

/// The device tree ends its strings with a NUL, so they are bytes and not text.
fn string(host: &Host, path: &str) -> Fact<Option<String>> {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim_end_matches(['\0', '\n']).to_string();
    Ok(property(host, path)?.map(text).filter(|text| !text.is_empty()))
}

/// Its numbers are 32 bits, highest byte first.
fn cell(host: &Host, path: &str) -> Fact<Option<String>> {
    let number = |bytes: Vec<u8>| Some(u32::from_be_bytes(bytes.try_into().ok()?));
    Ok(property(host, path)?.and_then(number).map(|number| format!("{number:x}")))
}

const MODEL: &str = "/proc/device-tree/model";

/// os-release(5) gives "Linux" as the name of one that does not say.
fn pretty_name(text: &str) -> String {
    let value = |key| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let name = value("PRETTY_NAME").or_else(|| value("NAME")).unwrap_or("Linux");
    name.trim_matches(['"', '\'']).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pretty_name_is_read_with_any_quotes() {
        assert_eq!(pretty_name("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"), "Debian GNU/Linux 12");
        assert_eq!(pretty_name("NAME='Void'\n"), "Void");
        assert_eq!(pretty_name(""), "Linux");
    }
}
