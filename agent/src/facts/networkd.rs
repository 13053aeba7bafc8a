//! What systemd-networkd is told about routes and rules it did not make: `networkd.conf` and drop-ins.
//!
//! See networkd.conf(5) and, for the order of files, systemd-system.conf(5).

use std::collections::HashMap;

use super::{Fact, drop_in};
use crate::host::Host;

/// The `[Network]` settings, merged.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Networkd(HashMap<String, String>);

impl Networkd {
    /// Whether a setting says no; networkd takes yes for all that this asks about when it is not told.
    pub fn denies(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|value| {
            ["no", "false", "off", "0", "n", "f"].contains(&value.to_ascii_lowercase().as_str())
        })
    }

    fn absorb(&mut self, text: &str) {
        let mut section = "";
        for line in text.lines().map(str::trim) {
            if line.starts_with('[') {
                section = line;
            } else if let (true, Some((key, value))) = (section == "[Network]", line.split_once('='))
                && !line.starts_with(['#', ';'])
            {
                self.0.insert(key.trim().to_string(), value.trim().to_string());
            }
        }
    }
}

pub(super) fn read(host: &Host) -> Fact<Networkd> {
    let mut networkd = Networkd::default();
    // The first of these that exists counts; drop-ins of all count after it.
    for directory in ["/etc", "/run", "/usr/lib"] {
        if let Some(text) = host.text_if_present(&format!("{directory}/systemd/networkd.conf"))? {
            networkd.absorb(&text);
            break;
        }
    }
    for text in drop_in::texts(host, "systemd/networkd.conf.d", &["/etc", "/run", "/usr/lib"])? {
        networkd.absorb(&text);
    }
    Ok(networkd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_counts_and_comments_do_not() {
        let mut networkd = Networkd::default();
        networkd.absorb("[Network]\n#ManageForeignRoutes=no\nManageForeignRoutes = yes\n[DHCPv4]\nX=no\n");
        assert!(!networkd.denies("ManageForeignRoutes"));
        assert!(!networkd.denies("X"), "another section");
        networkd.absorb("[Network]\nManageForeignRoutes=No\n");
        assert!(networkd.denies("ManageForeignRoutes"));
    }
}
