//! The ports that the cluster needs are free, and no firewall drops them. By the table `agent/data/ports.csv`.

use std::net::Ipv4Addr;

use super::{Area, Finding, Requirement};
use crate::config::Config;
use crate::config::cluster::{Profile, Range};
use crate::facts::firewall::{Dropping, Rules, Way};
use crate::facts::port::{Port, TABLE};
use crate::facts::{Fact, Facts};
use crate::host::{Unreadable, Why};

pub(super) const FREE: Requirement = Requirement {
    id: "ports",
    area: Area::K3s,
    profiles: &[Profile::K3s, Profile::Cilium],
    title: "the ports that K3s and Cilium use are free",
    why: "K3s or the Cilium agent ends with \"address already in use\", often only the second time it starts",
    source: "k3s-io/docs installation/requirements.md; cilium/cilium Documentation/operations/system_requirements.rst",
    fix: "a person stops who holds them, or moves it to other ports; sudo ss -lntup names the processes",
    catalogue: &["MIG-001"],
    judge: |facts, config| {
        if facts.units.uses("k3s")? || facts.units.uses("k3s-agent")? {
            return Finding::not_needed("K3s is in use here and holds its ports itself");
        }
        let listeners = facts.listeners.as_ref()?;
        let mut taken = Vec::new();
        for port in chosen(config).filter(|port| port.is_on_node()) {
            for listener in listeners.iter().filter(|listener| port.is_held_by(listener)) {
                let owner = listener.owner.as_ref().map_or(String::new(), |owner| format!(" by {owner}"));
                let held = format!("{}/{}{owner} ({})", listener.port, listener.protocol, port.purpose);
                if !taken.contains(&held) {
                    taken.push(held);
                }
            }
        }
        if taken.is_empty() {
            return Finding::met("nobody else listens on them");
        }
        Finding::blocked(
            format!("taken: {}", taken.join(", ")),
            "stop who holds them, or move it to other ports; sudo ss -lntup names the processes",
        )
    },
};

pub(super) const FIREWALL: Requirement = Requirement {
    id: "firewall",
    area: Area::K3s,
    profiles: &[Profile::K3s, Profile::Cilium],
    title: "no firewall service drops or deletes what the cluster needs",
    why: "nodes do not find each other, or all works until the firewall is loaded again and takes Cilium's rules with it",
    source: "k3s-io/docs installation/requirements.md; cilium/cilium#16644, #35388; k3s-io/k3s#7542",
    fix: "a person opens the ports that are named, lets pods' traffic pass, or disables the service; the commands \
          are shown",
    catalogue: &["NET-011"],
    judge: |facts, config| {
        let mut wrong = Vec::new();
        let mut next = Vec::new();
        if facts.units.uses("firewalld")? {
            wrong.push("firewalld is in use, and each reload deletes rules that are not its own".to_string());
            next.push("sudo systemctl disable --now firewalld".to_string());
        }
        let Range { network, prefix } = config.cluster.pods;
        let mut by_files = false;
        if facts.units.uses("ufw")?
            && let Some(ufw) = facts.firewalls.ufw.as_ref()?
        {
            by_files = true;
            let names = shut(facts, config, &ufw.input)?;
            if !names.is_empty() {
                wrong.push(format!("ufw drops {}", names.join(", ")));
                let rules = names.iter().map(|name| format!("sudo ufw allow {}", name.replace('-', ":")));
                next.push(rules.collect::<Vec<_>>().join("; "));
            }
            let told = ufw.input.accepted.iter().any(|rule| rule.sources == [(network, prefix)]);
            if ufw.forward.drops && !told && !ufw.forward.admits_pods(network, prefix) {
                wrong.push("ufw drops what pods send through the node".to_string());
                next.push(format!(
                    "sudo ufw default allow routed; sudo ufw allow from {}; sudo ufw allow from {}",
                    config.cluster.pods, config.cluster.services
                ));
            }
        }
        let files = [
            ("nftables", "/etc/nftables.conf", &facts.firewalls.nftables),
            ("netfilter-persistent", "/etc/iptables/rules.v4", &facts.firewalls.iptables),
        ];
        for (unit, path, rules) in files {
            if !facts.units.uses(unit)? {
                continue;
            }
            by_files = true;
            let Rules { flushes, input, forward } = rules.as_ref().map_err(Unreadable::from)?;
            if *flushes {
                wrong.push(format!("{path} deletes the rules of others whenever it is loaded"));
                next.push(format!(
                    "let {path} replace its own tables alone, or: sudo systemctl disable {unit}"
                ));
            }
            let mut dropped = Vec::new();
            for (way, names) in
                [(input, shut(facts, config, input)?), (forward, pods_shut(forward, network, prefix))]
            {
                match &way.opaque {
                    _ if names.is_empty() => {}
                    // What is wrong for certain is said first.
                    Some(rule) if wrong.is_empty() => {
                        let expected = format!("rules with plain ports and networks instead of \"{rule}\"");
                        return Err(Unreadable::malformed(path, expected));
                    }
                    Some(_) => {}
                    None => dropped.extend(names),
                }
            }
            if !dropped.is_empty() {
                wrong.push(format!("{path} drops {}", dropped.join(", ")));
                next.push(format!(
                    "allow them in {path}, or all from the nodes' network and from {}",
                    config.cluster.pods
                ));
            }
        }
        // Where a service is in use its file tells more than the policies that come of it.
        let mut evidence =
            "neither ufw, firewalld, nftables nor netfilter-persistent drops what is needed".to_owned();
        match &facts.firewalls.live {
            _ if by_files || !wrong.is_empty() => evidence += ", by their files",
            Err(why) => evidence += &format!(", by their files ({why})"),
            Ok(filter) => {
                for Dropping { name, way, tool, shown_by, lets_pods_pass } in &filter.dropping {
                    match *way {
                        "forward" if *lets_pods_pass => {}
                        "forward" => {
                            wrong.push(format!("{name} drops what pods send through the node"));
                            next.push(format!(
                                "let it accept: with Docker \"ip-forward-no-drop\": true in /etc/docker/daemon.json and \
                                 sudo {tool} -P FORWARD ACCEPT"
                            ));
                        }
                        _ => {
                            let why = Why::Failed(format!(
                                "it drops what no rule allows; whether the ports are: sudo {shown_by}"
                            ));
                            return Err(Unreadable { path: format!("the chain {name}"), why });
                        }
                    }
                }
            }
        }
        if wrong.is_empty() {
            return Finding::met(evidence);
        }
        Finding::blocked(wrong.join("; "), next.join("; "))
    },
};

/// The ports that other nodes must reach and that a firewall shuts, by name.
fn shut(facts: &Facts, config: &Config, input: &Way) -> Fact<Vec<String>> {
    let mut names = Vec::new();
    for port in incoming(config).filter(|_| input.drops) {
        for protocol in port.protocol.split('+') {
            for number in port.ports.clone() {
                if !input.admits(facts, number, protocol)? && !names.contains(&port.name()) {
                    names.push(port.name());
                }
            }
        }
    }
    Ok(names)
}

fn pods_shut(forward: &Way, network: Ipv4Addr, prefix: u32) -> Vec<String> {
    let shut = forward.drops && !forward.admits_pods(network, prefix);
    shut.then(|| "what pods send through the node".to_owned()).into_iter().collect()
}

/// Ports of the parts that the owner chose.
fn chosen(config: &Config) -> impl Iterator<Item = &'static Port> {
    TABLE.iter().filter(|port| {
        let tunnel = match (port.profile, *port.ports.start()) {
            ("cilium/tunnel", 8472) => config.cluster.tunnel == crate::config::cluster::Tunnel::Vxlan,
            ("cilium/tunnel", _) => config.cluster.tunnel == crate::config::cluster::Tunnel::Geneve,
            _ => true,
        };
        let profile = Profile::ALL.into_iter().find(|profile| profile.name() == port.profile);
        tunnel && profile.is_some_and(|profile| config.cluster.chose(profile))
    })
}

/// Those that other nodes must reach.
fn incoming(config: &Config) -> impl Iterator<Item = &'static Port> {
    chosen(config).filter(|port| {
        let from_nodes = ["nodes", "servers"].contains(&port.peers)
            || port.profile == "k3s/server" && port.peers == "clients";
        from_nodes && port.is_on_node() && port.protocol != "icmp"
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::rows_of;
    use super::*;

    #[test]
    fn every_port_on_a_node_is_judged_for_a_profile_or_is_of_something_that_is_left() {
        let mut seen = HashSet::new();
        for port in TABLE.iter() {
            assert!(seen.insert((port.profile, port.name())), "{port:?} stands twice");
            assert!(port.protocol == "icmp" || *port.ports.start() > 0, "{port:?}");
            assert!(port.protocol.split('+').all(|name| ["tcp", "udp", "icmp"].contains(&name)), "{port:?}");
            assert!(["all", "node", "local", "pod"].contains(&port.bind), "{port:?}");
            let peers = ["nodes", "servers", "clients", "scrape", "cluster", "local", "pod"];
            assert!(peers.contains(&port.peers) && !port.purpose.is_empty(), "{port:?}");
            let judged = Profile::ALL.into_iter().any(|profile| profile.name() == port.profile);
            let left = ["flannel", "metallb", "linkerd"].contains(&port.profile);
            assert!(judged != left, "{port:?}");
            let shown = rows_of(&FREE).iter().any(|row| row.starts_with(&port.name()));
            assert_eq!(shown, port.is_on_node(), "{port:?}");
        }
    }

    #[test]
    fn the_ports_follow_what_was_chosen() {
        let config = Config::default();
        let names: Vec<String> = incoming(&config).map(Port::name).collect();
        assert_eq!(names, ["10250/tcp", "5001/tcp", "4240/tcp", "4244/tcp", "4250/tcp", "8472/udp"]);
        let none = Config {
            cluster: crate::config::cluster::Cluster { cilium: false, ..config.cluster.clone() },
            ..config
        };
        assert!(!chosen(&none).any(|port| port.profile.starts_with("cilium")));
    }
}
