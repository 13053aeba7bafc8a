//! systemd-networkd leaves Cilium's routes, rules and interfaces alone.

use super::{Area, Finding, Requirement};
use crate::change::Change;
use crate::config::cluster::Profile;
use crate::facts::networkd::Interface;

/// Since systemd 246 and 249; yes unless told otherwise.
const KEYS: [&str; 2] = ["ManageForeignRoutes", "ManageForeignRoutingPolicyRules"];
/// Since systemd 256.
const NEXT_HOPS: (&str, u32) = ("ManageForeignNextHops", 256);

/// The drop-in of bramble.
const FILE: &str = "/etc/systemd/networkd.conf.d/99-zz-bramble.conf";

pub(super) const FOREIGN: Requirement = Requirement {
    id: "networkd",
    area: Area::Network,
    profiles: &[Profile::Cilium],
    title: "systemd-networkd leaves foreign routes and rules alone",
    why: "whenever it is restarted, as automatic upgrades do at night, it deletes Cilium's rules and the node is \
          off the network",
    source: "cilium/cilium#18706; flatcar/Flatcar#620; networkd.conf(5)",
    fix: "bramble writes a drop-in of networkd.conf that says no to managing foreign rules, routes and next hops; \
          a later file that says otherwise a person changes",
    catalogue: &["NET-001", "NET-002", "NET-003"],
    judge: |facts, _| {
        if !facts.units.uses("systemd-networkd")? {
            return Finding::not_needed("systemd-networkd is not in use");
        }
        let networkd = facts.networkd.as_ref()?;
        let mut keys = KEYS.to_vec();
        let systemd = facts.packages.as_ref()?.numbers("systemd");
        if systemd.is_some_and(|numbers| numbers.first() >= Some(&NEXT_HOPS.1)) {
            keys.push(NEXT_HOPS.0);
        }
        let lacking: Vec<&str> = keys.iter().copied().filter(|key| !networkd.denies(key)).collect();
        if lacking.is_empty() {
            return Finding::met(format!("{} are no", keys.join(" and ")));
        }
        // Drop-ins count in the order of their names, after the main file.
        let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        let later = |path: &&str| path.contains(".conf.d/") && name(path) > name(FILE);
        if let Some((key, path)) =
            lacking.iter().find_map(|key| Some((key, networkd.says(key).filter(later)?)))
        {
            return Finding::blocked(
                format!("{path} has the last word on {key}, after every file of bramble's"),
                format!("take the line out, or give the file a name that sorts before {FILE}"),
            );
        }
        let settings: String = keys.iter().map(|key| format!("{key}=no\n")).collect();
        Finding::unmet(
            format!("{} not no", lacking.join(" and ")),
            [Change::WriteFile {
                path: FILE.into(),
                content: format!(
                    "# Written by bramble: Cilium's routes and rules are not systemd-networkd's.\n\
                     [Network]\n{settings}"
                )
                .into(),
            }],
        )
    },
};

/// Interfaces that stand for Cilium's and pods' own.
const INTERFACES: [Interface; 3] = [
    Interface { name: "cilium_host", of_type: "ether", kind: "veth" },
    Interface { name: "cilium_vxlan", of_type: "vxlan", kind: "vxlan" },
    Interface { name: "lxc0", of_type: "ether", kind: "veth" },
];

pub(super) const LINKS: Requirement = Requirement {
    id: "networkd-links",
    area: Area::Network,
    profiles: &[Profile::Cilium],
    title: "systemd-networkd leaves Cilium's interfaces alone",
    why: "a .network file that matches all interfaces makes it ask for addresses on those of pods too",
    source: "flatcar/init#43; systemd.network(5)",
    fix: "bramble writes a .network file that leaves cilium* and lxc* unmanaged",
    catalogue: &["NET-005"],
    judge: |facts, _| {
        if !facts.units.uses("systemd-networkd")? {
            return Finding::not_needed("systemd-networkd is not in use");
        }
        let networkd = facts.networkd.as_ref()?;
        let taken: Vec<String> = INTERFACES
            .iter()
            .filter_map(|interface| Some(format!("{} by {}", interface.name, networkd.takes(*interface)?)))
            .collect();
        if taken.is_empty() {
            return Finding::met("no .network file, netplan's neither, matches cilium* or lxc*");
        }
        Finding::unmet(
            format!("taken: {}", taken.join(", ")),
            [Change::WriteFile {
                path: "/etc/systemd/network/00-bramble-cilium.network".into(),
                content: "# Written by bramble: these interfaces are Cilium's.\n\
                          [Match]\nName=cilium* lxc*\n\n[Link]\nUnmanaged=yes\n"
                    .into(),
            }],
        )
    },
};
