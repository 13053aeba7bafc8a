//! A process gets more than 39 bits of addresses, as Envoy's allocator needs.

use super::{Area, Finding, Requirement};
use crate::config::cluster::Profile;

/// What tcmalloc's layout does not fit into.
const TOO_FEW: u32 = 39;

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "address-bits",
    area: Area::Kernel,
    profiles: &[Profile::Envoy, Profile::Ambient],
    title: "processes get more than 39 bits of addresses",
    why: "every Envoy (cilium-envoy, Istio gateways and waypoints) aborts with \"MmapAligned() failed\"",
    source: "cilium/cilium#17467, cilium/proxy#1027, envoyproxy/envoy#23339, raspberrypi/linux#4375",
    fix: "a person keeps Envoy, waypoints and gateways off the node, or boots a kernel with 48 address bits: \
          Debian's or Ubuntu's, or on a Pi 5 kernel_2712.img, which has 16 KiB pages",
    catalogue: &["KERN-001"],
    judge: |facts, _| {
        let bits = *facts.address_space.bits.as_ref()?;
        if bits > TOO_FEW {
            return Finding::met(format!("{bits} bits"));
        }
        Finding::blocked(
            format!("{bits} bits"),
            "set envoy.enabled=false and l7Proxy=false for Cilium, keep waypoints and gateways on other nodes, and \
             accept it (accept = [\"address-bits\"] in [cluster]); or run a kernel with 48 bits (Debian's or \
             Ubuntu's; on a Pi 5 also kernel_2712.img, with 16 KiB pages: see page-size)",
        )
    },
};
