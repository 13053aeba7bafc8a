//! The networks that the node is in have their routes: that of the way out, and that of its pods.

use super::{Area, Finding, Requirement};
use crate::config::cluster::Profile;
use crate::facts::address::Address6;
use crate::facts::route::{Route, Route6};
use crate::facts::{Fact, Facts};

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
    judge: |facts, config| {
        let (mut held, mut lost) = v4(facts)?;
        if config.cluster.ipv6 {
            let (held6, lost6) = v6(facts)?;
            held.extend(held6);
            lost.extend(lost6);
        }
        if !lost.is_empty() {
            return Finding::blocked(
                format!("no route to {}", lost.join(", ")),
                "configure the interface anew (sudo nmcli device reapply, sudo networkctl reconfigure, or a reboot); for \
                 cilium_host restart this node's Cilium agent",
            );
        }
        if held.is_empty() {
            return Finding::not_needed("the node is in no network: it has no way out, or a single address");
        }
        Finding::met(held.join(", "))
    },
};

/// Networks with their routes, and networks without.
type Networks = (Vec<String>, Vec<String>);

fn v4(facts: &Facts) -> Fact<Networks> {
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
    Ok((held, lost))
}

fn v6(facts: &Facts) -> Fact<Networks> {
    let routes = facts.routes.v6.as_ref()?;
    let default = facts.routes.default6()?;
    let mut ways = vec![PODS];
    ways.extend(facts.routes.uplink()?);
    ways.extend(default.map(|default| default.interface.as_str()));
    let (mut held, mut lost) = (Vec::new(), Vec::new());
    for one in facts.addresses6.as_ref()?.iter().filter(|one| one.counts) {
        let Address6 { interface, address, prefix, lasts, .. } = one;
        let has_network = *prefix < 127 || interface == PODS && !address.is_unicast_link_local();
        if !ways.contains(&interface.as_str()) || !has_network {
            continue;
        }
        let leads = |route: &&Route6| {
            route.interface == *interface && (1..128).contains(&route.prefix) && route.matches(*address)
        };
        // A router may give an address without its network being on the link: then all goes by the router.
        let by_router = !lasts && default.is_some_and(|default| default.interface == *interface);
        match routes.iter().find(leads) {
            Some(route) => held.push(format!("{} by {interface}", route.network())),
            None if by_router => {}
            None => lost.push(format!("the network of {address}/{prefix} by {interface}")),
        }
    }
    // Several addresses of one network have one route.
    held.sort();
    held.dedup();
    Ok((held, lost))
}

#[cfg(test)]
mod tests {
    use super::super::{State, judge};
    use super::*;
    use crate::config::{Config, cluster::Cluster};
    use crate::host::Host;

    #[test]
    fn ipv6_is_judged_where_the_cluster_has_it() {
        let hosts = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/hosts");
        let mut facts = Facts::observe(&Host::tree(&hosts.join("pi5-bookworm-16k")).unwrap());
        facts.networks = Ok(Vec::new());
        facts.routes.v4 = Ok(Vec::new());
        let route = |network: &str, prefix| Route6 {
            interface: if network.starts_with("fd42") { PODS } else { "eth0" }.into(),
            network: network.parse().unwrap(),
            prefix,
            advertised: false,
        };
        let address = |interface: &str, address: &str, prefix, lasts| Address6 {
            interface: interface.into(),
            address: address.parse().unwrap(),
            prefix,
            lasts,
            counts: true,
        };
        let passing = Address6 { counts: false, ..address("eth0", "fd77::1", 64, false) };
        let own = vec![
            address("eth0", "fe80::1", 64, true),
            address("eth0", "fd00::1", 64, true),
            address("eth0", "2001:db8::1", 64, false),
            address("eth0", "fd00::9", 128, false),
            address(PODS, "fd42::7", 128, true),
            address("wg0", "fd99::1", 64, true),
            passing,
        ];
        facts.addresses6 = Ok(own);
        let all = [
            route("::", 0),
            route("fe80::", 64),
            route("fd00::", 64),
            route("2001:db8::", 64),
            route("fd42::", 104),
        ];
        let of = |facts: &Facts, ipv6| {
            let config = Config { cluster: Cluster { ipv6, ..Cluster::default() }, ..Config::default() };
            let judged = judge([&REQUIREMENT], facts, &config).next().unwrap();
            (judged.state(), judged.evidence())
        };
        let mut without = |network: &str, ipv6| {
            facts.routes.v6 = Ok(all.iter().filter(|route| route.network() != network).cloned().collect());
            of(&facts, ipv6)
        };
        assert_eq!(without("", true).0, State::Met);
        assert_eq!(without("2001:db8::/64", true).0, State::Met, "the router may not call it on the link");
        for network in ["fe80::/64", "fd00::/64", "fd42::/104"] {
            let (state, evidence) = without(network, true);
            assert_eq!(state, State::Blocked, "{network}: {evidence}");
            assert!(evidence.contains(&network[..4]), "{evidence}");
            assert_eq!(without(network, false).0, State::NotNeeded, "IPv6 is not asked for");
        }
        facts.routes.v6 = Ok(all[1..3].to_vec());
        facts.routes.v4 = Ok(vec![Route {
            interface: "eth0".into(),
            network: std::net::Ipv4Addr::UNSPECIFIED,
            mask: std::net::Ipv4Addr::UNSPECIFIED,
            metric: 0,
        }]);
        let (state, evidence) = of(&facts, true);
        assert_eq!(state, State::Blocked);
        assert!(evidence.contains("2001:db8::1"), "without a router it has to be on the link: {evidence}");
    }
}
