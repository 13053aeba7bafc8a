//! What systemd-networkd is told about routes and rules it did not make (`networkd.conf` and drop-ins), and which
//! interfaces it takes for its own (`.network` files; netplan writes those in `/run`).
//!
//! See networkd.conf(5), systemd.network(5) and, for the order of files, systemd-system.conf(5).

use std::collections::HashMap;

use super::{Fact, drop_in};
use crate::host::Host;

/// What it is told.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Networkd {
    /// The `[Network]` settings, merged, each with the file that has the last word.
    settings: HashMap<String, (String, String)>,
    /// `.network` files in the order of their names.
    networks: Vec<Network>,
}

/// One `.network` file.
#[derive(Debug, Default, PartialEq, Eq)]
struct Network {
    path: String,
    names: Vec<String>,
    types: Vec<String>,
    kinds: Vec<String>,
    /// Whether it also asks for what only real hardware has, such as a path or an address.
    hardware: bool,
    unmanaged: bool,
}

/// An interface as `.network` files see it.
#[derive(Debug, Clone, Copy)]
pub struct Interface {
    /// For instance "cilium_vxlan".
    pub name: &'static str,
    /// As `networkctl` shows it: "ether", or the kernel's own type.
    pub of_type: &'static str,
    /// As `ip -details link` shows it: "veth", "vxlan".
    pub kind: &'static str,
}

impl Network {
    fn parse(path: &str, text: &str) -> Network {
        let mut network = Network { path: path.into(), ..Network::default() };
        let mut section = "";
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
            if line.starts_with('[') {
                section = line;
            }
            let Some((key, value)) = line.split_once('=') else { continue };
            let (key, words) = (key.trim(), value.split_whitespace().map(String::from));
            match (section, key) {
                ("[Match]", "Name") => network.names.extend(words),
                ("[Match]", "Type") => network.types.extend(words),
                ("[Match]", "Kind") => network.kinds.extend(words),
                ("[Match]", "MACAddress" | "PermanentMACAddress" | "Path" | "Driver") => {
                    network.hardware = true
                }
                ("[Link]", "Unmanaged") => network.unmanaged = is_yes(value),
                _ => {}
            }
        }
        network
    }

    /// A key without patterns matches all; a file without any key matches nothing.
    fn matches(&self, interface: Interface) -> bool {
        let some = |patterns: &[String], value: &str| {
            let (not, patterns) = match patterns.first().and_then(|first| first.strip_prefix('!')) {
                Some(first) => (true, [&[first.to_string()], &patterns[1..]].concat()),
                None => (false, patterns.to_vec()),
            };
            patterns.is_empty() || not != patterns.iter().any(|pattern| drop_in::glob(pattern, value))
        };
        let any_key = !(self.names.is_empty() && self.types.is_empty() && self.kinds.is_empty());
        any_key
            && !self.hardware
            && some(&self.names, interface.name)
            && some(&self.types, interface.of_type)
            && some(&self.kinds, interface.kind)
    }
}

fn is_yes(value: &str) -> bool {
    ["yes", "true", "on", "1", "y", "t"].contains(&value.trim().to_ascii_lowercase().as_str())
}

impl Networkd {
    /// Whether a setting says no; networkd takes yes for all that this asks about when it is not told.
    pub fn denies(&self, key: &str) -> bool {
        self.settings.get(key).is_some_and(|(value, _)| {
            ["no", "false", "off", "0", "n", "f"].contains(&value.to_ascii_lowercase().as_str())
        })
    }

    /// The file that has the last word on a setting.
    pub fn says(&self, key: &str) -> Option<&str> {
        self.settings.get(key).map(|(_, path)| path.as_str())
    }

    /// The file by which networkd takes an interface for its own; the first that matches counts.
    pub fn takes(&self, interface: Interface) -> Option<&str> {
        let first = self.networks.iter().find(|network| network.matches(interface))?;
        (!first.unmanaged).then_some(&first.path)
    }

    fn absorb(&mut self, path: &str, text: &str) {
        for (key, value) in drop_in::settings(text, "[Network]") {
            self.settings.insert(key.to_string(), (value.to_string(), path.to_string()));
        }
    }
}

pub(super) fn read(host: &Host) -> Fact<Networkd> {
    let mut networkd = Networkd::default();
    for (path, text) in drop_in::of_systemd(host, "networkd")? {
        networkd.absorb(&path, &text);
    }
    let directories = ["/etc", "/run", "/usr/local/lib", "/usr/lib"];
    let networks = drop_in::with_ending(host, "systemd/network", &directories, ".network")?;
    networkd.networks = networks.iter().map(|(path, text)| Network::parse(path, text)).collect();
    Ok(networkd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_counts_and_comments_do_not() {
        let mut networkd = Networkd::default();
        networkd.absorb(
            "x.conf",
            "[Network]\n#ManageForeignRoutes=no\nManageForeignRoutes = yes\n[DHCPv4]\nX=no\n",
        );
        assert!(!networkd.denies("ManageForeignRoutes"));
        assert!(!networkd.denies("X"), "another section");
        networkd.absorb("x.conf", "[Network]\nManageForeignRoutes=No\n");
        assert!(networkd.denies("ManageForeignRoutes"));
    }

    #[test]
    fn the_first_file_that_matches_decides_who_owns_an_interface() {
        let vxlan = Interface { name: "cilium_vxlan", of_type: "vxlan", kind: "vxlan" };
        let lxc = Interface { name: "lxc0", of_type: "ether", kind: "veth" };
        let of = |texts: &[&str]| Networkd {
            networks: texts
                .iter()
                .enumerate()
                .map(|(n, text)| Network::parse(&n.to_string(), text))
                .collect(),
            ..Networkd::default()
        };
        let all = "[Match]\nName=*\n[Network]\nDHCP=yes\n";
        assert_eq!(of(&[all]).takes(vxlan), Some("0"));
        let ours = "[Match]\nName=cilium* lxc*\n[Link]\nUnmanaged=yes\n";
        assert_eq!(of(&[ours, all]).takes(vxlan), None);
        assert_eq!(of(&[all, ours]).takes(lxc), Some("0"));
        assert_eq!(of(&["[Match]\nType=ether\n"]).takes(lxc), Some("0"));
        assert_eq!(of(&["[Match]\nType=ether\n"]).takes(vxlan), None);
        assert_eq!(of(&["[Match]\nName=!lxc* veth*\n"]).takes(lxc), None);
        assert_eq!(of(&["[Match]\nName=!lxc* veth*\n"]).takes(vxlan), Some("0"));
        for none in
            ["[Match]\nName=e*\n", "[Match]\nName=*\nMACAddress=00:11:22:33:44:55\n", "[Network]\nDHCP=yes\n"]
        {
            assert_eq!(of(&[none]).takes(lxc), None, "{none}");
        }
    }
}
