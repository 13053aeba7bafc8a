//! Whether the machine waits for a reboot: `/run/reboot-required`, the newest kernel that is installed.

use super::{Fact, kernel};
use crate::host::Host;

/// What asks for a reboot.
#[derive(Debug)]
pub struct Reboot {
    /// Whether a package asked for one.
    pub required: Fact<bool>,
    /// Releases that have a module tree.
    pub installed: Fact<Vec<String>>,
}

impl Reboot {
    /// The newest release of the running kernel's flavour, where it is newer than the one that runs.
    ///
    /// Only releases with the same ending count: Raspberry Pi OS installs kernels for several boards.
    pub fn newer_than<'a>(&'a self, running: &str) -> Fact<Option<&'a str>> {
        let newest = self
            .installed
            .as_ref()?
            .iter()
            .filter(|release| flavour(release) == flavour(running))
            .max_by_key(|release| numbers(release));
        Ok(newest.filter(|newest| numbers(newest) > numbers(running)).map(String::as_str))
    }
}

pub(crate) fn read(host: &Host) -> Reboot {
    let installed = host.list("/lib/modules").or_else(|unreadable| {
        // A kernel without modules has no such directory; the running release is then all there is.
        match host.list_if_present("/lib/modules")?.is_empty() {
            true => kernel::release(host).map(|release| vec![release]),
            false => Err(unreadable),
        }
    });
    Reboot { required: host.present("/run/reboot-required"), installed }
}

/// Debian names its own release in between: 6.1.0-50-amd64, 6.12.107+deb13-amd64 and 6.12.9+bpo-amd64 are of one.
fn flavour(release: &str) -> &str {
    let ending = release.trim_start_matches(|c: char| !c.is_ascii_alphabetic());
    match ending.split_once('-') {
        Some((distribution, ending)) if ["deb", "bpo"].iter().any(|word| distribution.starts_with(word)) => {
            ending
        }
        _ => ending,
    }
}

fn numbers(release: &str) -> Vec<u64> {
    let end = release.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(release.len());
    release[..end].split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_newer_kernel_of_the_same_flavour_asks_for_a_reboot() {
        let reboot = |installed: &[&str]| Reboot {
            required: Ok(false),
            installed: Ok(installed.iter().map(|release| release.to_string()).collect()),
        };
        let both = reboot(&["6.12.62+rpt-rpi-2712", "6.12.75+rpt-rpi-2712", "6.18.1+rpt-rpi-v8"]);
        assert_eq!(both.newer_than("6.12.62+rpt-rpi-2712"), Ok(Some("6.12.75+rpt-rpi-2712")));
        assert_eq!(both.newer_than("6.12.75+rpt-rpi-2712"), Ok(None));
        let debian = reboot(&["6.1.0-9-amd64", "6.1.0-50-amd64"]);
        assert_eq!(debian.newer_than("6.1.0-9-amd64"), Ok(Some("6.1.0-50-amd64")));
        assert_eq!(debian.newer_than("6.1.0-50-amd64"), Ok(None));
        let upgraded = reboot(&["6.1.0-50-amd64", "6.12.107+deb13-amd64", "6.12.108+deb13-cloud-amd64"]);
        assert_eq!(upgraded.newer_than("6.1.0-50-amd64"), Ok(Some("6.12.107+deb13-amd64")));
    }
}
