//! The kernel's hardware monitors: `/sys/class/hwmon`, see Documentation/hwmon/sysfs-interface.

use super::Host;

/// Where the chips are.
const CLASS: &str = "/sys/class/hwmon";

/// One chip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chip {
    /// The driver's name for it: `cpu_thermal`, `rpi_volt`, `nvme`.
    pub name: String,
    /// Its directory; the number in it is another after each boot, and after a driver was loaded anew.
    pub directory: String,
}

impl Host {
    /// All chips that say their name, by directory. One that goes while it is read is left out.
    pub fn hwmon(&self) -> Vec<Chip> {
        let directories = self.list(CLASS).unwrap_or_default();
        directories
            .iter()
            .filter_map(|entry| {
                let directory = format!("{CLASS}/{entry}");
                let name = self.text_again(&format!("{directory}/name")).ok()?.trim().to_owned();
                Some(Chip { name, directory })
            })
            .collect()
    }
}
