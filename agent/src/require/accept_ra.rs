//! A node that forwards IPv6 still listens to its router.

use super::{Area, Finding, Requirement};
use crate::change::{Change, SYSCTL_FILE};
use crate::config::cluster::Profile;
use crate::facts::sysctl::{ACCEPT_RA, of_interface};

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "accept-ra",
    area: Area::Network,
    profiles: &[Profile::K3s, Profile::Cilium],
    title: "a node that forwards IPv6 keeps its router's advertisements",
    why: "a kernel that forwards does not listen to routers any more: the IPv6 default route and addresses run out after \
          some minutes or hours",
    source: "cilium/cilium#21819, #41919; siderolabs/talos#11896; Linux Documentation/networking/ip-sysctl.rst accept_ra",
    fix: "bramble sets accept_ra of the way out to 2, now and in its file of sysctl.d",
    catalogue: &["NET-007"],
    judge: |facts, config| {
        let forwards = facts.sysctl.value("net.ipv6.conf.all.forwarding")? == Some("1");
        if !forwards && !config.cluster.ipv6 {
            return Finding::not_needed("the node does not forward IPv6");
        }
        let Some((interface, value)) = facts.accept_ra.as_ref()? else {
            return Finding::not_needed("the way out has no IPv6");
        };
        // The setting of "all" or "default" does not reach an interface that is there.
        let key = of_interface(ACCEPT_RA, interface);
        let said = facts.sysctl_files.as_ref()?.said(&key);
        match (value.as_str(), said) {
            ("0", _) => {
                Finding::met(format!("{key} is 0: the network manager listens in the kernel's place"))
            }
            ("2", None) => Finding::met(format!("{key} is 2")),
            ("2", Some(said)) if said.value == "2" => Finding::met(format!("{key} is 2")),
            (_, Some(said)) if said.value != "2" && said.beats(SYSCTL_FILE) => Finding::blocked(
                format!("{} sets {key} = {}, after every file of bramble's", said.path, said.value),
                format!("take the line out, or give the file a name that sorts before {SYSCTL_FILE}"),
            ),
            _ => Finding::unmet(
                format!("{key} is {value}"),
                [Change::Sysctl { key: key.into(), value: "2".into() }],
            ),
        }
    },
};
