//! dhcpcd leaves the interfaces of pods alone.

use super::{Area, Finding, Requirement};
use crate::change::Change;
use crate::config::cluster::Profile;

/// Names that stand for the interfaces of pods.
const INTERFACES: [&str; 3] = ["cilium_host", "lxc0", "veth0"];

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "dhcpcd",
    area: Area::Network,
    profiles: &[Profile::Cilium],
    title: "dhcpcd leaves the interfaces of pods alone",
    why: "it gives them addresses of its own and moves the default route to one: the node is off the network",
    source: "NetworkConfiguration/dhcpcd#531; raspberrypi/linux#4092; dhcpcd.conf(5)",
    fix: "bramble adds a line denyinterfaces with the cluster's interfaces to /etc/dhcpcd.conf",
    catalogue: &["NET-006"],
    judge: |facts, _| {
        if !facts.units.uses("dhcpcd")? {
            return Finding::not_needed("dhcpcd is not in use");
        }
        let leaves =
            |name: &&str| facts.dhcpcd.as_ref().is_ok_and(|d| d.as_ref().is_some_and(|d| d.leaves(name)));
        facts.dhcpcd.as_ref()?;
        let managed: Vec<&str> = INTERFACES.into_iter().filter(|name| !leaves(name)).collect();
        if managed.is_empty() {
            return Finding::met("denyinterfaces in /etc/dhcpcd.conf");
        }
        Finding::unmet(
            format!("/etc/dhcpcd.conf does not deny {}", managed.join(", ")),
            [Change::AddLine {
                path: "/etc/dhcpcd.conf".into(),
                line: "denyinterfaces cilium* lxc* veth* flannel* cni*".into(),
            }],
        )
    },
};
