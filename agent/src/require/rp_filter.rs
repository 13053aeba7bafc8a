//! The kernel does not drop pod traffic for coming by another way than the answer would go.
//!
//! What counts on an interface is the larger of its own value and that of "all". Files in sysctl.d matter
//! beside the values of now: udev applies them to each interface that Cilium makes later.

use super::{Area, Finding, Requirement};
use crate::change::{Change, SYSCTL_FILE};
use crate::config::cluster::Profile;

/// Cilium's interfaces: the pattern for settings, how their names begin, and a name that stands for those
/// to come.
const CILIUM: [(&str, &str, &str); 2] = [
    ("net.ipv4.conf.lxc*.rp_filter", "lxc", "lxc0"),
    ("net.ipv4.conf.cilium_*.rp_filter", "cilium_", "cilium_host"),
];

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "rp-filter",
    area: Area::Network,
    profiles: &[Profile::Cilium],
    title: "reverse path filtering lets pod traffic pass",
    why: "packets of pods vanish without a trace, often only after an upgrade of the distribution: Debian 13 and \
          Ubuntu switch the filter on for every new interface",
    source: "cilium/cilium pkg/datapath/loader/base.go, tools/sysctlfix; Debian linux-sysctl-defaults 50-default.conf",
    catalogue: &["NET-004"],
    judge: |facts, _| {
        let live = facts.sysctl.rp_filter.as_ref()?;
        let files = facts.sysctl_files.as_ref()?;
        let mut wrong = Vec::new();
        let mut changes = Vec::new();
        let all = live.get("all").copied().unwrap_or(0);
        if all != 0 {
            wrong.push(format!("net.ipv4.conf.all.rp_filter is {all}"));
            changes.push(Change::Sysctl { key: "net.ipv4.conf.all.rp_filter".into(), value: "0".into() });
        }
        let default = live.get("default").copied().unwrap_or(0);
        for (key, prefix, stand_in) in CILIUM {
            let standing = live
                .iter()
                .filter(|(interface, _)| interface.starts_with(prefix))
                .find(|(_, value)| **value != 0);
            let said = files.said(&format!("net.ipv4.conf.{stand_in}.rp_filter"));
            let later = said.map_or_else(|| default.to_string(), |said| said.value.to_string());
            if let Some(said) = said.filter(|said| said.value != "0" && said.beats(SYSCTL_FILE)) {
                return Finding::blocked(
                    format!(
                        "{} gives new {prefix}* interfaces rp_filter {}, after every file of bramble's",
                        said.path, said.value
                    ),
                    format!("give that file a name that sorts before {SYSCTL_FILE}, or take the line out"),
                );
            }
            if let Some((interface, value)) = standing {
                wrong.push(format!("net.ipv4.conf.{interface}.rp_filter is {value}"));
            } else if later != "0" {
                wrong.push(format!("new {prefix}* interfaces get rp_filter {later}"));
            } else {
                continue;
            }
            changes.push(Change::Sysctl { key: key.into(), value: "0".into() });
        }
        if !changes.is_empty() {
            return Finding::unmet(wrong.join(", "), changes);
        }
        // Strict filtering on the uplink drops what comes back by another node; loose (2) does not.
        if let Some(uplink) = facts.routes.uplink()?
            && live.get(uplink) == Some(&1)
        {
            return Finding::unmet(
                format!("net.ipv4.conf.{uplink}.rp_filter is 1 (strict)"),
                [Change::Sysctl { key: "net.ipv4.conf.*.rp_filter".into(), value: "0".into() }],
            );
        }
        Finding::met("off for all, and for the interfaces Cilium makes")
    },
};
