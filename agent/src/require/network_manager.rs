//! NetworkManager leaves Cilium's interfaces alone.

use super::{Area, Finding, Requirement};
use crate::change::Change;
use crate::config::cluster::Profile;

/// Names that stand for the interfaces of Cilium.
const INTERFACES: [&str; 3] = ["cilium_host", "cilium_vxlan", "lxc0"];

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "network-manager",
    area: Area::Network,
    profiles: &[Profile::Cilium],
    title: "NetworkManager leaves Cilium's interfaces alone",
    why: "it configures them as if they were its own, and pods lose their network",
    source: "NetworkManager.conf(5); Debian network-manager 85-nm-unmanaged.rules (covers veth alone)",
    fix: "bramble writes a file in NetworkManager's conf.d that leaves the cluster's interfaces unmanaged",
    catalogue: &["NET-005"],
    judge: |facts, _| {
        if !facts.units.uses("NetworkManager")? {
            return Finding::not_needed("NetworkManager is not in use");
        }
        let manager = facts.network_manager.as_ref()?;
        let managed: Vec<&str> = INTERFACES.into_iter().filter(|name| !manager.leaves(name)).collect();
        if managed.is_empty() {
            return Finding::met(manager.unmanaged.join(", "));
        }
        Finding::unmet(
            format!("not told to leave {} alone", managed.join(", ")),
            [Change::WriteFile {
                path: "/etc/NetworkManager/conf.d/99-zz-bramble.conf".into(),
                content: "# Written by bramble: these interfaces are the cluster's.\n\
                          [keyfile]\n\
                          unmanaged-devices+=interface-name:cilium*;interface-name:lxc*;interface-name:flannel*;\
                          interface-name:cni*;interface-name:kube-ipvs*\n"
                    .into(),
            }],
        )
    },
};
