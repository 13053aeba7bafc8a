//! Which devices NetworkManager is told to leave alone: `unmanaged-devices` in its configuration.
//!
//! See NetworkManager.conf(5).

use super::{Fact, drop_in};
use crate::host::Host;

/// The patterns of interface names that are left alone.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct NetworkManager {
    /// For instance "cilium*".
    pub unmanaged: Vec<String>,
    /// `wifi.powersave` for connections that do not say: 2 switches it off, 3 on.
    pub wifi_powersave: Option<String>,
}

impl NetworkManager {
    fn absorb(&mut self, text: &str) {
        for line in text.lines().map(str::trim) {
            let Some((key, value)) = line.split_once('=') else { continue };
            let patterns =
                value.split([';', ',']).filter_map(|spec| spec.trim().strip_prefix("interface-name:"));
            let patterns = patterns.map(|pattern| pattern.trim_start_matches('=').to_string());
            match key.trim() {
                "unmanaged-devices" => self.unmanaged = patterns.collect(),
                "wifi.powersave" => self.wifi_powersave = Some(value.trim().to_string()),
                "unmanaged-devices+" => self.unmanaged.extend(patterns),
                _ => {}
            }
        }
    }

    /// Whether an interface of this name is left alone.
    pub fn leaves(&self, interface: &str) -> bool {
        self.unmanaged.iter().any(|pattern| drop_in::glob(pattern, interface))
    }
}

pub(super) fn read(host: &Host) -> Fact<NetworkManager> {
    let mut manager = NetworkManager::default();
    // NetworkManager.conf(5): packages first, then the main file, then the administrator's drop-ins.
    let mut texts = drop_in::texts(host, "conf.d", &["/usr/lib/NetworkManager", "/run/NetworkManager"])?;
    texts.extend(host.text_if_present("/etc/NetworkManager/NetworkManager.conf")?);
    texts.extend(drop_in::texts(host, "conf.d", &["/etc/NetworkManager"])?);
    for text in texts {
        manager.absorb(&text);
    }
    Ok(manager)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_file_replaces_or_extends_the_list() {
        let mut manager = NetworkManager::default();
        manager.absorb("[keyfile]\nunmanaged-devices=mac:00:22:68:1c:59:b1;interface-name:eth1\n");
        assert_eq!(manager.unmanaged, ["eth1"]);
        manager.absorb("unmanaged-devices+=interface-name:cilium*,interface-name:=lxc*\n");
        assert!(manager.leaves("eth1") && manager.leaves("cilium_host") && manager.leaves("lxc12ab"));
        manager.absorb("[connection]\nwifi.powersave = 3\n");
        manager.absorb("[connection]\nwifi.powersave=2\n");
        assert_eq!(manager.wifi_powersave.as_deref(), Some("2"));
        manager.absorb("unmanaged-devices=interface-name:veth*\n#unmanaged-devices=interface-name:x\n");
        assert!(!manager.leaves("cilium_host") && !manager.leaves("x"));
    }
}
