//! The home network does not lie in the cluster's ranges of addresses.

use super::{Area, Finding, Requirement};
use crate::config::cluster::Profile;

/// Interfaces that the cluster itself made.
const CLUSTER: [&str; 5] = ["cilium", "lxc", "cni", "flannel", "veth"];

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "address-ranges",
    area: Area::Network,
    profiles: &[Profile::K3s, Profile::Cilium],
    title: "the home network does not overlap the cluster's addresses",
    why: "the node loses the home network, and you your connection to it, the moment pods get their network",
    source: "k3s-io/k3s#179; cilium/cilium#30177",
    fix: "a person moves the home network, or gives the cluster other ranges in [cluster], K3s and Cilium",
    catalogue: &["NET-008"],
    judge: |facts, config| {
        let ranges = [(config.cluster.pods, "pods"), (config.cluster.services, "services")];
        let ours = |interface: &str| !CLUSTER.iter().any(|prefix| interface.starts_with(prefix));
        let routes = facts.routes.v4.as_ref()?.iter().filter(|r| !r.is_default() && ours(&r.interface));
        for route in routes {
            if let Some((range, who)) =
                ranges.iter().find(|(range, _)| route.overlaps(range.network, range.prefix))
            {
                let own = format!("{}/{}", route.network, route.mask.to_bits().count_ones());
                return Finding::blocked(
                    format!("{own} on {} overlaps {range}, the range for {who}", route.interface),
                    "move the home network to another range (192.168.0.0/16 is free of both), or give the cluster other \
                     ranges: pods and services in [cluster], cluster-cidr and service-cidr of K3s, the pool of Cilium",
                );
            }
        }
        let [(pods, _), (services, _)] = ranges;
        Finding::met(format!("no route overlaps {pods} or {services}"))
    },
};
