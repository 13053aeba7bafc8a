//! Kernel settings as files set them: `sysctl.d`, by the rules of systemd-sysctl.
//!
//! Of files with one name `/etc` hides `/run` and `/usr/lib`; files count in the order of their names,
//! whatever their directory; an exact key beats a pattern. See sysctl.d(5). udev applies the same files to
//! each new interface, which is why they matter beside the values of now.

use super::Fact;
use super::drop_in::{self, glob};
use crate::host::Host;

/// All settings in the order in which they count.
#[derive(Debug, Default)]
pub struct SysctlFiles(Vec<Setting>);

#[derive(Debug, PartialEq, Eq)]
struct Setting {
    /// With dots, as sysctl(8) prints it; `*` and `?` stand for parts of an interface's name.
    key: String,
    /// `None` takes the keys that match out of all patterns.
    value: Option<String>,
}

impl SysctlFiles {
    /// The value that `net.ipv4.conf.<interface>.<name>` gets when the interface appears; `None` when no file
    /// speaks of it.
    pub fn for_interface(&self, interface: &str, name: &str) -> Option<&str> {
        let wanted = format!("net.ipv4.conf.{interface}.{name}");
        let set =
            || self.0.iter().rev().filter_map(|setting| Some((&setting.key, setting.value.as_deref()?)));
        if let Some((_, value)) = set().find(|(key, _)| **key == wanted) {
            return Some(value);
        }
        if self.0.iter().any(|setting| setting.value.is_none() && glob(&setting.key, &wanted)) {
            return None;
        }
        set().find(|(key, _)| glob(key, &wanted)).map(|(_, value)| value)
    }

    fn absorb(&mut self, text: &str) {
        self.0.extend(text.lines().filter_map(setting));
    }
}

pub(super) fn read(host: &Host) -> Fact<SysctlFiles> {
    let mut files = SysctlFiles::default();
    let directories = ["/etc", "/run", "/usr/local/lib", "/usr/lib"];
    for text in drop_in::texts(host, "sysctl.d", &directories)? {
        files.absorb(&text);
    }
    Ok(files)
}

/// `net/ipv4/conf/eth0.1/x = 1` and `net.ipv4.conf.eth0/1.x = 1` are one key: the first separator decides.
fn setting(line: &str) -> Option<Setting> {
    let line = line.trim();
    if line.is_empty() || line.starts_with(['#', ';']) {
        return None;
    }
    let (key, value) = match line.split_once('=') {
        Some((key, value)) => (key.trim().trim_start_matches('-'), Some(value.trim().to_string())),
        None => (line.strip_prefix('-')?, None),
    };
    let key = match key.find(['.', '/']).map(|at| key.as_bytes()[at]) {
        Some(b'/') => key.chars().map(swap_separator).collect(),
        _ => key.to_string(),
    };
    Some(Setting { key, value })
}

fn swap_separator(c: char) -> char {
    match c {
        '/' => '.',
        '.' => '/',
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exact_key_beats_a_later_pattern_and_the_last_pattern_counts() {
        let mut files = SysctlFiles::default();
        files.absorb("# Debian 13\nnet.ipv4.conf.default.rp_filter = 2\nnet.ipv4.conf.*.rp_filter = 2\n");
        assert_eq!(files.for_interface("lxc1", "rp_filter"), Some("2"));
        files.absorb("-net/ipv4/conf/lxc*/rp_filter=0\nnet.ipv4.conf.lxc9.rp_filter=1\n");
        assert_eq!(files.for_interface("lxc1", "rp_filter"), Some("0"));
        files.absorb("net.ipv4.conf.*.rp_filter = 2\n");
        assert_eq!(files.for_interface("lxc1", "rp_filter"), Some("2"));
        assert_eq!(files.for_interface("lxc9", "rp_filter"), Some("1"));
        assert_eq!(files.for_interface("lxc1", "forwarding"), None);
        files.absorb("-net.ipv4.conf.lxc1.rp_filter\n");
        assert_eq!(files.for_interface("lxc1", "rp_filter"), None, "taken out of all patterns");
        assert_eq!(files.for_interface("lxc9", "rp_filter"), Some("1"));
    }

    #[test]
    fn the_first_separator_decides_what_a_dot_means() {
        let key = |line| setting(line).unwrap().key;
        assert_eq!(key("net/ipv4/conf/eth0.1/rp_filter=0"), "net.ipv4.conf.eth0/1.rp_filter");
        assert_eq!(key("net.ipv4.conf.eth0/1.rp_filter=0"), "net.ipv4.conf.eth0/1.rp_filter");
        assert_eq!(setting("; comment = 1"), None);
        assert_eq!(setting("no value"), None);
    }
}
