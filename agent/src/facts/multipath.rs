//! Which disks multipathd is told to leave alone: `blacklist` in `/etc/multipath.conf` and its drop-ins.
//!
//! See multipath.conf(5).

use super::{Fact, drop_in};
use crate::host::Host;

/// Whether plain SCSI disks, which Longhorn's volumes are, are left alone.
pub(super) fn read(host: &Host) -> Fact<bool> {
    let main = host.text_if_present("/etc/multipath.conf")?.unwrap_or_default();
    let mut texts = vec![main];
    texts.extend(drop_in::texts(host, "conf.d", &["/etc/multipath"])?);
    Ok(texts.iter().any(|text| leaves_disks(text)))
}

/// Looks for a device pattern in a blacklist that begins as disks' names do, or matches all.
fn leaves_disks(text: &str) -> bool {
    let mut section = "";
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', '!'])) {
        if let Some(name) = line.strip_suffix('{') {
            section = name.trim();
        }
        let pattern = line.split_once("devnode").map(|(_, pattern)| pattern.trim().trim_matches('"'));
        let disks = |pattern: &str| ["^sd", "^(sd", "sd", ".*", "*"].iter().any(|p| pattern.starts_with(p));
        let in_blacklist =
            section == "blacklist" || line.starts_with("blacklist ") || line.starts_with("blacklist{");
        if in_blacklist && pattern.is_some_and(disks) {
            return true;
        }
        if line.ends_with('}') {
            section = "";
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blacklist_of_disks_is_found() {
        let one = "defaults {\n  user_friendly_names yes\n}\nblacklist {\n    devnode \"^sd[a-z0-9]+\"\n}\n";
        assert!(leaves_disks(one));
        assert!(leaves_disks("blacklist { devnode \"^(sd|nvme)\" }\n"));
        for text in [
            "",
            "#blacklist {\n# devnode \"^sd\"\n",
            "defaults {\n devnode \"^sd\"\n}\n",
            "blacklist {\n devnode \"^loop\"\n}\n",
        ] {
            assert!(!leaves_disks(text), "{text:?}");
        }
    }
}
