//! Istio's part in pods' networks stands where containerd looks.

use super::{Area, Finding, Requirement};
use crate::config::cluster::Profile;
use crate::facts::cni::DIRECTORY;

const ISTIO: &str = "istio-cni";

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "istio-cni",
    area: Area::Network,
    profiles: &[Profile::Ambient],
    title: "Istio's network plugin stands where containerd looks",
    why: "pods start without the mesh, or do not start: \"failed to add pod to ztunnel\"",
    source: "istio/istio#52902, #50072; istio/istio.io ambient platform prerequisites; cilium/charts cni.exclusive",
    fix: "a person sets cni.exclusive: false for Cilium and leaves global.platform of istio-cni unset, then \
          restarts istio-cni's pod",
    catalogue: &["MESH-001", "MESH-005"],
    judge: |facts, _| {
        let networks = facts.cni.as_ref()?;
        let mut holding =
            networks.iter().filter(|network| network.plugins.iter().any(|plugin| plugin == ISTIO));
        let (mut right, mut pushed_aside, mut elsewhere) = (None, None, None);
        for network in holding.by_ref() {
            let place = match (network.active, network.path.starts_with(DIRECTORY)) {
                (true, true) => &mut right,
                (false, _) => &mut pushed_aside,
                (true, false) => &mut elsewhere,
            };
            *place = Some(&network.path);
        }
        if let Some(path) = right {
            return Finding::met(format!("{ISTIO} in {path}"));
        }
        if let Some(path) = pushed_aside {
            return Finding::blocked(
                format!("Cilium pushed it aside: {path}"),
                "set cni.exclusive: false for Cilium, then restart istio-cni's pod on this node",
            );
        }
        if let Some(path) = elsewhere {
            return Finding::blocked(
                format!("{ISTIO} is in {path}, and with flannel-backend: none containerd reads {DIRECTORY}"),
                "leave global.platform unset for istio-cni (not k3s), so that it takes the usual directories",
            );
        }
        Finding::not_needed("istio-cni has not run here yet")
    },
};
