//! The ports that the cluster's parts use: `agent/data/ports.csv`.

use std::ops::RangeInclusive;
use std::sync::LazyLock;

use super::socket::{Listener, Protocol};
use super::table;

/// A port, or a range of them.
#[derive(Debug)]
pub struct Port {
    /// The profile that uses it, by name; "flannel", "metallb" and "linkerd" are what may be left over.
    pub profile: &'static str,
    /// The ports; empty (0) for a protocol without any.
    pub ports: RangeInclusive<u16>,
    /// As the table has it: "tcp", "udp", "tcp+udp" or "icmp".
    pub protocol: &'static str,
    /// Where it is bound: "all", "node", "local" or "pod".
    pub bind: &'static str,
    /// Who must reach it.
    pub peers: &'static str,
    /// What for.
    pub purpose: &'static str,
}

/// All ports that bramble knows.
pub static TABLE: LazyLock<Vec<Port>> = LazyLock::new(|| {
    let columns = ["profile", "port", "protocol", "bind", "peers", "purpose", "source"];
    table::rows(include_str!("../../data/ports.csv"), columns)
        .map(|[profile, port, protocol, bind, peers, purpose, _]| {
            let (first, last) = port.split_once('-').unwrap_or((port, port));
            let number = |text: &str| text.parse().unwrap_or(0);
            Port { profile, ports: number(first)..=number(last), protocol, bind, peers, purpose }
        })
        .collect()
});

impl Port {
    /// Whether a socket waits on it.
    pub fn is_held_by(&self, listener: &Listener) -> bool {
        self.speaks(listener.protocol) && self.ports.contains(&listener.port)
    }

    /// Whether it is a port of this protocol.
    pub fn speaks(&self, protocol: Protocol) -> bool {
        self.protocol.split('+').any(|name| name == protocol.to_string())
    }

    /// Whether it is in the node's own network namespace.
    pub fn is_on_node(&self) -> bool {
        self.bind != "pod"
    }

    /// As firewalls write it: "2379-2380/tcp".
    pub fn name(&self) -> String {
        let (first, last) = (self.ports.start(), self.ports.end());
        match first == last {
            true => format!("{first}/{}", self.protocol),
            false => format!("{first}-{last}/{}", self.protocol),
        }
    }
}

/// Whether a socket holds a port that some part of the cluster uses on the node.
pub(super) fn is_needed(listener: &Listener) -> bool {
    TABLE.iter().any(|port| port.is_on_node() && port.is_held_by(listener))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::cluster::Profile;

    #[test]
    fn every_port_belongs_to_a_profile_or_to_what_may_be_left_over() {
        for port in TABLE.iter() {
            let profile = Profile::ALL.iter().any(|profile| profile.name() == port.profile);
            assert!(profile || ["flannel", "metallb", "linkerd"].contains(&port.profile), "{port:?}");
            assert!(["all", "node", "local", "pod"].contains(&port.bind), "{port:?}");
            assert!(["tcp", "udp", "tcp+udp", "icmp"].contains(&port.protocol), "{port:?}");
            assert_eq!(*port.ports.start() == 0, port.protocol == "icmp", "{port:?}");
            assert!(port.ports.start() <= port.ports.end(), "{port:?}");
        }
    }

    #[test]
    fn a_port_is_named_as_firewalls_write_it() {
        let named = |name: &str| TABLE.iter().any(|port| port.name() == name);
        assert!(named("2379-2380/tcp") && named("8472/udp") && named("7946/tcp+udp"));
    }
}
