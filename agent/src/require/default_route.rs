//! The node has a way out, and by it an address.

use super::{Area, Finding, Requirement};
use crate::config::cluster::Profile;

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "default-route",
    area: Area::Network,
    profiles: &[Profile::K3s],
    title: "the node has a default route",
    why: "K3s takes the node's address from it and exits without: \"no default routes found\"",
    source: "k3s-io/k3s#1144, #11640",
    fix: "a person connects the network, or sets a gateway",
    catalogue: &[],
    judge: |facts, _| {
        if let Some(interface) = facts.routes.uplink()? {
            return Finding::met(format!("by {interface}"));
        }
        if let Some(default) = facts.routes.default6()? {
            return Finding::met(format!("by {}, IPv6 alone", default.interface));
        }
        Finding::blocked("no default route", "connect the network, or set a gateway; then check: ip route")
    },
};
