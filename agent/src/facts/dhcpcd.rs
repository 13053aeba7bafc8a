//! Which interfaces dhcpcd is told to leave alone: `denyinterfaces` in `/etc/dhcpcd.conf`.
//!
//! See dhcpcd.conf(5): patterns as in fnmatch(3), deny wins over allow.

use super::{Fact, drop_in};
use crate::host::Host;

/// The patterns of interface names that are left alone.
#[derive(Debug, PartialEq, Eq)]
pub struct Dhcpcd {
    denied: Vec<String>,
}

impl Dhcpcd {
    /// Whether an interface of this name is left alone.
    pub fn leaves(&self, interface: &str) -> bool {
        self.denied.iter().any(|pattern| drop_in::glob(pattern, interface))
    }
}

pub(super) fn read(host: &Host) -> Fact<Option<Dhcpcd>> {
    Ok(host.text_if_present("/etc/dhcpcd.conf")?.map(|text| parse(&text)))
}

fn parse(text: &str) -> Dhcpcd {
    let denied = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("denyinterfaces"))
        .filter(|patterns| patterns.starts_with([' ', '\t']))
        .flat_map(|patterns| patterns.split([' ', '\t', ',']))
        .filter(|pattern| !pattern.is_empty())
        .map(String::from)
        .collect();
    Dhcpcd { denied }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denied_patterns_add_up() {
        let dhcpcd =
            parse("hostname\ndenyinterfaces cilium*,lxc*\n denyinterfaces veth*\n#denyinterfaces eth0\n");
        for (interface, left) in [("cilium_host", true), ("lxc1", true), ("veth0", true), ("eth0", false)] {
            assert_eq!(dhcpcd.leaves(interface), left, "{interface}");
        }
    }
}
