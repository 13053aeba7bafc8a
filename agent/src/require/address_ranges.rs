//! The home network does not lie in the cluster's ranges of addresses.

use std::net::Ipv4Addr;

use super::{Area, Finding, Requirement};

/// K3s' own ranges for pods and for services.
const RANGES: [(Ipv4Addr, u32, &str); 2] =
    [(Ipv4Addr::new(10, 42, 0, 0), 16, "pods"), (Ipv4Addr::new(10, 43, 0, 0), 16, "services")];

/// Interfaces that the cluster itself made.
const CLUSTER: [&str; 5] = ["cilium", "lxc", "cni", "flannel", "veth"];

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "address-ranges",
    area: Area::Network,
    title: "the home network does not overlap the cluster's addresses",
    why: "the node loses the home network, and you your connection to it, the moment pods get their network",
    source: "k3s-io/k3s#179; cilium/cilium#30177",
    catalogue: &["NET-008"],
    judge: |facts, _| {
        let ours = |interface: &str| !CLUSTER.iter().any(|prefix| interface.starts_with(prefix));
        let routes = facts.routes.v4.as_ref()?.iter().filter(|r| !r.is_default() && ours(&r.interface));
        for route in routes {
            if let Some((range, prefix, who)) =
                RANGES.iter().find(|(range, prefix, _)| route.overlaps(*range, *prefix))
            {
                let own = format!("{}/{}", route.network, route.mask.to_bits().count_ones());
                return Finding::blocked(
                    format!("{own} on {} overlaps {range}/{prefix}, the range for {who}", route.interface),
                    "move the home network to another range (192.168.0.0/16 is free of both), or give K3s other \
                     ranges (cluster-cidr, service-cidr) and accept this one (accept = [\"address-ranges\"] in [cluster])",
                );
            }
        }
        Finding::met("no route overlaps 10.42.0.0/16 or 10.43.0.0/16")
    },
};
