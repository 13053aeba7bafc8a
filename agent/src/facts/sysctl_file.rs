//! Kernel settings as files set them: `sysctl.d`, by the rules of systemd-sysctl.
//!
//! Of files with one name `/etc` hides `/run` and `/usr/lib`; files count in the order of their names,
//! whatever their directory; an exact key beats a pattern. See sysctl.d(5). udev applies the same files to
//! each new interface, which is why they matter beside the values of now.

use super::drop_in::{self, glob};
use super::{Fact, sysctl};
use crate::host::Host;

/// All settings in the order in which they count.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SysctlFiles {
    settings: Vec<Setting>,
    /// Keys in `/etc/sysctl.conf` that nothing reads, because no file in sysctl.d is a link to it.
    pub dead: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct Setting {
    /// With dots, as sysctl(8) prints it, and a slash for a dot in an interface's name; `*` and `?` stand for parts of an interface's name.
    key: String,
    /// `None` takes the keys that match out of all patterns.
    value: Option<String>,
    /// Where it stands.
    path: String,
}

/// What a file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said<'a> {
    /// The value.
    pub value: &'a str,
    /// The file.
    pub path: &'a str,
}

impl Said<'_> {
    /// Whether the file counts after one of this path, so that a line there is of no use.
    pub fn beats(&self, path: &str) -> bool {
        file_name(self.path) > file_name(path)
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

impl SysctlFiles {
    /// What a key gets at boot, or an interface's key when the interface appears; `None` when no file speaks of it.
    pub fn said(&self, wanted: &str) -> Option<Said<'_>> {
        let set = || {
            self.settings.iter().rev().filter_map(|setting| {
                Some((&setting.key, Said { value: setting.value.as_deref()?, path: &setting.path }))
            })
        };
        if let Some((_, said)) = set().find(|(key, _)| **key == wanted) {
            return Some(said);
        }
        if self.settings.iter().any(|setting| setting.value.is_none() && glob(&setting.key, wanted)) {
            return None;
        }
        set().find(|(key, _)| glob(key, wanted)).map(|(_, said)| said)
    }

    pub(super) fn absorb(&mut self, path: &str, text: &str) {
        self.settings.extend(text.lines().filter_map(|line| setting(path, line)));
    }
}

pub(super) fn read(host: &Host) -> Fact<SysctlFiles> {
    let mut files = SysctlFiles::default();
    let directories = ["/etc", "/run", "/usr/local/lib", "/usr/lib"];
    let mut linked = false;
    for (path, text) in drop_in::files(host, "sysctl.d", &directories)? {
        files.absorb(&path, &text);
        linked |= host.link(&path).is_some_and(|target| target.ends_with("sysctl.conf"));
    }
    // systemd-sysctl itself does not read it; Debian linked it into sysctl.d until 12.
    let main = "/etc/sysctl.conf";
    if let (false, Some(text)) = (linked, host.text_if_present(main)?) {
        files.dead = text.lines().filter_map(|line| setting(main, line)).map(|setting| setting.key).collect();
    }
    Ok(files)
}

/// `net/ipv4/conf/eth0.1/x = 1` and `net.ipv4.conf.eth0/1.x = 1` are one key: the first separator decides.
fn setting(path: &str, line: &str) -> Option<Setting> {
    let line = line.trim();
    if line.is_empty() || line.starts_with(['#', ';']) {
        return None;
    }
    let (key, value) = match line.split_once('=') {
        Some((key, value)) => (key.trim().trim_start_matches('-'), Some(value.trim().to_string())),
        None => (line.strip_prefix('-')?, None),
    };
    let key = match key.find(['.', '/']).map(|at| key.as_bytes()[at]) {
        Some(b'/') => sysctl::turned(key),
        _ => key.to_string(),
    };
    Some(Setting { key, value, path: path.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rp_filter<'a>(files: &'a SysctlFiles, interface: &str) -> Option<&'a str> {
        files.said(&format!("net.ipv4.conf.{interface}.rp_filter")).map(|said| said.value)
    }

    #[test]
    fn an_exact_key_beats_a_later_pattern_and_the_last_pattern_counts() {
        let mut files = SysctlFiles::default();
        files.absorb(
            "/usr/lib/sysctl.d/50-default.conf",
            "# Debian 13\nnet.ipv4.conf.default.rp_filter = 2\nnet.ipv4.conf.*.rp_filter = 2\n",
        );
        assert_eq!(rp_filter(&files, "lxc1"), Some("2"));
        files.absorb(
            "/etc/sysctl.d/60.conf",
            "-net/ipv4/conf/lxc*/rp_filter=0\nnet.ipv4.conf.lxc9.rp_filter=1\n",
        );
        assert_eq!(rp_filter(&files, "lxc1"), Some("0"));
        files.absorb("/etc/sysctl.d/70.conf", "net.ipv4.conf.*.rp_filter = 2\n");
        assert_eq!(rp_filter(&files, "lxc1"), Some("2"));
        assert_eq!(rp_filter(&files, "lxc9"), Some("1"));
        assert_eq!(files.said("net.ipv4.conf.lxc1.forwarding"), None);
        files.absorb("/etc/sysctl.d/80.conf", "-net.ipv4.conf.lxc1.rp_filter\n");
        assert_eq!(rp_filter(&files, "lxc1"), None, "taken out of all patterns");
        assert_eq!(rp_filter(&files, "lxc9"), Some("1"));
    }

    #[test]
    fn files_count_by_name_whatever_their_directory() {
        let said = |path| Said { value: "0", path };
        assert!(said("/usr/lib/sysctl.d/99-zzz.conf").beats("/etc/sysctl.d/99-zz-bramble.conf"));
        assert!(!said("/etc/sysctl.d/99-sysctl.conf").beats("/etc/sysctl.d/99-zz-bramble.conf"));
    }

    #[test]
    fn the_first_separator_decides_what_a_dot_means() {
        let key = |line| setting("", line).unwrap().key;
        assert_eq!(key("net/ipv4/conf/eth0.1/rp_filter=0"), "net.ipv4.conf.eth0/1.rp_filter");
        assert_eq!(key("net.ipv4.conf.eth0/1.rp_filter=0"), "net.ipv4.conf.eth0/1.rp_filter");
        assert_eq!(setting("", "; comment = 1"), None);
        assert_eq!(setting("", "no value"), None);
    }
}
