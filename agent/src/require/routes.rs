//! The networks that the node is in have their routes: that of the way out, and that of its pods.

use super::{Area, Finding, Requirement};
use crate::config::cluster::Profile;
use crate::facts::route::Route;

/// The interface by which Cilium's pods are reached from the node.
const PODS: &str = "cilium_host";

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "routes",
    area: Area::Network,
    profiles: &[Profile::Node],
    title: "the node's own networks have their routes",
    why: "neighbours on the home network, or the node's own pods, are not reached any more. systemd-networkd deletes \
          routes that it did not make when it is restarted",
    source: "cilium/cilium#18706; deckhouse/deckhouse#5709; networkd.conf(5) ManageForeignRoutes=",
    fix: "a person configures the interface anew, or restarts the node's Cilium agent for those of pods",
    catalogue: &["NET-001"],
    judge: |facts, _| {
        let routes = facts.routes.v4.as_ref()?;
        let mut ways = vec![PODS];
        ways.extend(facts.routes.uplink()?);
        let (mut held, mut lost) = (Vec::new(), Vec::new());
        for (interface, address, prefix) in facts.networks.as_ref()? {
            // Of a way out with one address alone the network is not known; Cilium gives its link one of the pods'.
            let has_network = *prefix < 31 || interface == PODS;
            if !ways.contains(&interface.as_str()) || !has_network {
                continue;
            }
            let leads = |route: &&Route| {
                route.interface == *interface
                    && !route.is_default()
                    && !route.is_host()
                    && route.overlaps(*address, 32)
            };
            match routes.iter().find(leads) {
                Some(route) => held.push(format!("{} by {interface}", route.network())),
                None => lost.push(format!("the network of {address}/{prefix} by {interface}")),
            }
        }
        if !lost.is_empty() {
            return Finding::blocked(
                format!("no route to {}", lost.join(", ")),
                "configure the interface anew (sudo nmcli device reapply, sudo networkctl reconfigure, or a reboot); for \
                 cilium_host restart this node's Cilium agent",
            );
        }
        if held.is_empty() {
            return Finding::not_needed(
                "the node is in no IPv4 network: it has no way out, or a single address",
            );
        }
        Finding::met(held.join(", "))
    },
};
