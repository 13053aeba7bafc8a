//! Packages that requirements ask about, by dpkg's own record: `/var/lib/dpkg/status`.

use std::collections::HashMap;

use super::Fact;
use crate::host::Host;

/// Those that are looked for.
const NAMES: &[&str] = &["cryptsetup", "dmsetup", "iptables", "nfs-common", "open-iscsi", "systemd"];

/// The versions of those that are installed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Packages(HashMap<&'static str, String>);

impl Packages {
    /// The version of an installed package, of those in the list above.
    pub fn version(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The upstream version's numbers: `257.13-1~deb13u1` gives 257, 13.
    pub fn numbers(&self, name: &str) -> Option<Vec<u32>> {
        let version = self.version(name)?;
        let upstream = version.split_once(':').map_or(version, |(_, after)| after).split('-').next()?;
        Some(upstream.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse().ok()).collect())
    }
}

pub(super) fn read(host: &Host) -> Fact<Packages> {
    Ok(parse(&host.text("/var/lib/dpkg/status")?))
}

/// dpkg-query(1): stanzas with an empty line between them, the name first.
fn parse(status: &str) -> Packages {
    let mut packages = Packages::default();
    for stanza in status.split("\n\n") {
        let Some((name, fields)) =
            stanza.trim_start().strip_prefix("Package: ").and_then(|text| text.split_once('\n'))
        else {
            continue;
        };
        let Some(name) = NAMES.iter().find(|known| **known == name) else { continue };
        let field = |key| fields.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
        if let (Some(status), Some(version)) = (field("Status"), field("Version"))
            && status.ends_with(" installed")
        {
            packages.0.insert(name, version.to_string());
        }
    }
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_installed_has_a_version() {
        let packages = parse(
            "Package: systemd\nStatus: install ok installed\nPriority: important\nVersion: 257.13-1~deb13u1\n\n\
             Package: iptables\nStatus: deinstall ok config-files\nVersion: 1.8.9-2\n\n\
             Package: dmsetup\nStatus: install ok installed\nVersion: 2:1.02.185-2\n\n\
             Package: zsh\nStatus: install ok installed\nVersion: 5.9-4\n",
        );
        assert_eq!(packages.numbers("systemd"), Some(vec![257, 13]));
        assert_eq!(packages.numbers("dmsetup"), Some(vec![1, 2, 185]));
        assert_eq!((packages.version("iptables"), packages.version("zsh")), (None, None));
    }
}
