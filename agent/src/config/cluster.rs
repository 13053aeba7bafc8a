//! `[cluster]`: what the node is prepared for; it decides which requirements apply.
//!
//! The defaults describe the cluster of the Kubernetes Pi Cluster project, release 1.9: K3s, Cilium over VXLAN with
//! its Envoy, iptables masquerading and L2 announcements, Istio ambient, Longhorn, Flux, IPv4 only.

use std::fmt;
use std::net::Ipv4Addr;

use serde::Deserialize;

/// What the node's cluster is made of.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    /// Whether K3s runs here. Default: true.
    pub k3s: bool,
    /// What this node does in the cluster: "server" (control plane) or "agent". Default: "agent".
    pub role: Role,
    /// Addresses of pods (K3s' cluster-cidr, Cilium's pool). Default: "10.42.0.0/16".
    pub pods: Range,
    /// Addresses of services (K3s' service-cidr). Default: "10.43.0.0/16".
    pub services: Range,
    /// Whether pods get IPv6 addresses beside IPv4. Default: false.
    pub ipv6: bool,
    /// Whether K3s runs with `protect-kernel-defaults`: the kubelet then refuses to start instead of
    /// setting its sysctls itself. Default: false.
    pub protect_kernel_defaults: bool,
    /// Whether Cilium is the network. Default: true.
    pub cilium: bool,
    /// How Cilium carries pod traffic between nodes: "vxlan", "geneve" or "off" (native routing).
    /// Default: "vxlan".
    pub tunnel: Tunnel,
    /// What hides pods behind the node's address: "iptables", or "bpf", which Istio ambient does not work with.
    /// Default: "iptables".
    pub masquerade: Masquerade,
    /// Whether Cilium's Envoy runs here: L7 and DNS policies, Ingress, Gateway API. Default: true.
    pub envoy: bool,
    /// Whether nodes answer for the addresses of services on the home network. Default: true.
    pub l2_announcements: bool,
    /// How traffic between nodes is encrypted: "off", "wireguard" or "ipsec". Default: "off".
    pub encryption: Encryption,
    /// Whether Cilium limits and paces what pods send. Default: false.
    pub bandwidth_manager: bool,
    /// Whether pods use the congestion control BBR; needs bandwidth_manager and masquerade = "bpf".
    /// Default: false.
    pub bbr: bool,
    /// Whether pods are connected by netkit instead of veth; needs masquerade = "bpf". Default: false.
    pub netkit: bool,
    /// Whether Istio runs in ambient mode. Default: true.
    pub ambient: bool,
    /// Whether Longhorn keeps volumes on this node. Default: true.
    pub longhorn: bool,
    /// Whether Flux keeps the cluster as its repository says. Default: true.
    pub flux: bool,
    /// Ids of requirements whose shortfall the owner knows and accepts, for instance "page-size".
    /// Default: none.
    pub accept: Vec<String>,
}

impl Default for Cluster {
    fn default() -> Cluster {
        Cluster {
            k3s: true,
            role: Role::Agent,
            pods: Range { network: Ipv4Addr::new(10, 42, 0, 0), prefix: 16 },
            services: Range { network: Ipv4Addr::new(10, 43, 0, 0), prefix: 16 },
            ipv6: false,
            protect_kernel_defaults: false,
            cilium: true,
            tunnel: Tunnel::Vxlan,
            masquerade: Masquerade::Iptables,
            envoy: true,
            l2_announcements: true,
            encryption: Encryption::Off,
            bandwidth_manager: false,
            bbr: false,
            netkit: false,
            ambient: true,
            longhorn: true,
            flux: true,
            accept: Vec::new(),
        }
    }
}

/// What a node does in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs the control plane, and pods.
    Server,
    /// Runs pods.
    Agent,
}

impl Role {
    /// The word in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Agent => "agent",
        }
    }
}

/// How pod traffic travels between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tunnel {
    /// UDP 8472, in every kernel Raspberry Pi and Debian ship.
    Vxlan,
    /// UDP 6081; no Raspberry Pi kernel has it.
    Geneve,
    /// Native routing.
    Off,
}

/// What hides pods behind the node's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Masquerade {
    /// Rules of the kernel's packet filter.
    Iptables,
    /// Cilium's own programs.
    Bpf,
}

/// How traffic between nodes is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encryption {
    /// Not.
    Off,
    /// UDP 51871.
    Wireguard,
    /// ESP.
    Ipsec,
}

/// A network, such as 10.42.0.0/16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Range {
    /// The first address.
    pub network: Ipv4Addr,
    /// Bits that all its addresses share, 1 to 32.
    pub prefix: u32,
}

impl TryFrom<String> for Range {
    type Error = String;

    fn try_from(text: String) -> Result<Range, String> {
        let parse = || {
            let (network, prefix) = text.split_once('/')?;
            let range = Range { network: network.parse().ok()?, prefix: prefix.parse().ok()? };
            let host_bits = u32::MAX.checked_shr(range.prefix).unwrap_or(0);
            let whole = (1..=32).contains(&range.prefix) && range.network.to_bits() & host_bits == 0;
            whole.then_some(range)
        };
        parse().ok_or_else(|| format!("\"{text}\" is no IPv4 network such as 10.42.0.0/16"))
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// A part of the cluster that asks something of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Profile {
    /// bramble itself, whatever runs here.
    Node,
    /// K3s.
    K3s,
    /// K3s as server.
    Server,
    /// A kubelet that does not set its sysctls itself.
    ProtectKernelDefaults,
    /// IPv6 beside IPv4.
    Ipv6,
    /// Cilium.
    Cilium,
    /// A tunnel between nodes.
    Tunnel,
    /// Masquerading by iptables.
    Iptables,
    /// Envoy, for L7 and DNS policies.
    Envoy,
    /// Answers for services' addresses on the home network.
    L2Announcements,
    /// Encryption by WireGuard.
    Wireguard,
    /// Encryption by IPsec.
    Ipsec,
    /// Limits and pacing.
    BandwidthManager,
    /// Congestion control for pods.
    Bbr,
    /// netkit instead of veth.
    Netkit,
    /// Istio in ambient mode.
    Ambient,
    /// Longhorn.
    Longhorn,
    /// Flux.
    Flux,
}

impl Profile {
    /// All of them, parts after what they are part of.
    pub const ALL: [Profile; 18] = [
        Profile::Node,
        Profile::K3s,
        Profile::Server,
        Profile::ProtectKernelDefaults,
        Profile::Ipv6,
        Profile::Cilium,
        Profile::Tunnel,
        Profile::Iptables,
        Profile::Envoy,
        Profile::L2Announcements,
        Profile::Wireguard,
        Profile::Ipsec,
        Profile::BandwidthManager,
        Profile::Bbr,
        Profile::Netkit,
        Profile::Ambient,
        Profile::Longhorn,
        Profile::Flux,
    ];

    /// Its name; a feature of K3s or Cilium stands behind a stroke.
    pub const fn name(self) -> &'static str {
        match self {
            Profile::Node => "node",
            Profile::K3s => "k3s",
            Profile::Server => "k3s/server",
            Profile::ProtectKernelDefaults => "k3s/protect-kernel-defaults",
            Profile::Ipv6 => "k3s/ipv6",
            Profile::Cilium => "cilium",
            Profile::Tunnel => "cilium/tunnel",
            Profile::Iptables => "cilium/iptables",
            Profile::Envoy => "cilium/envoy",
            Profile::L2Announcements => "cilium/l2-announcements",
            Profile::Wireguard => "cilium/wireguard",
            Profile::Ipsec => "cilium/ipsec",
            Profile::BandwidthManager => "cilium/bandwidth-manager",
            Profile::Bbr => "cilium/bbr",
            Profile::Netkit => "cilium/netkit",
            Profile::Ambient => "istio-ambient",
            Profile::Longhorn => "longhorn",
            Profile::Flux => "flux",
        }
    }

    /// What in `[cluster]` chooses it.
    pub const fn setting(self) -> &'static str {
        match self {
            Profile::Node => "any setting",
            Profile::K3s => "k3s = true",
            Profile::Server => "role = \"server\"",
            Profile::ProtectKernelDefaults => "protect_kernel_defaults = true",
            Profile::Ipv6 => "ipv6 = true",
            Profile::Cilium => "cilium = true",
            Profile::Tunnel => "tunnel = \"vxlan\"",
            Profile::Iptables => "masquerade = \"iptables\"",
            Profile::Envoy => "envoy = true",
            Profile::L2Announcements => "l2_announcements = true",
            Profile::Wireguard => "encryption = \"wireguard\"",
            Profile::Ipsec => "encryption = \"ipsec\"",
            Profile::BandwidthManager => "bandwidth_manager = true",
            Profile::Bbr => "bbr = true",
            Profile::Netkit => "netkit = true",
            Profile::Ambient => "ambient = true",
            Profile::Longhorn => "longhorn = true",
            Profile::Flux => "flux = true",
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Cluster {
    /// Whether the owner chose a part; what belongs to K3s or Cilium falls with it.
    pub fn chose(&self, profile: Profile) -> bool {
        match profile {
            Profile::Node => true,
            Profile::K3s => self.k3s,
            Profile::Server => self.k3s && self.role == Role::Server,
            Profile::ProtectKernelDefaults => self.k3s && self.protect_kernel_defaults,
            Profile::Ipv6 => self.ipv6,
            Profile::Cilium => self.cilium,
            Profile::Tunnel => self.cilium && self.tunnel != Tunnel::Off,
            Profile::Iptables => self.cilium && self.masquerade == Masquerade::Iptables,
            Profile::Envoy => self.cilium && self.envoy,
            Profile::L2Announcements => self.cilium && self.l2_announcements,
            Profile::Wireguard => self.cilium && self.encryption == Encryption::Wireguard,
            Profile::Ipsec => self.cilium && self.encryption == Encryption::Ipsec,
            Profile::BandwidthManager => self.cilium && self.bandwidth_manager,
            Profile::Bbr => self.cilium && self.bbr,
            Profile::Netkit => self.cilium && self.netkit,
            Profile::Ambient => self.ambient,
            Profile::Longhorn => self.longhorn,
            Profile::Flux => self.flux,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_falls_with_what_it_is_part_of() {
        let without = Cluster { cilium: false, ..Cluster::default() };
        let left: Vec<&str> =
            Profile::ALL.iter().filter(|profile| without.chose(**profile)).map(|p| p.name()).collect();
        assert_eq!(left, ["node", "k3s", "istio-ambient", "longhorn", "flux"]);
    }

    #[test]
    fn the_setting_that_is_named_chooses_its_profile() {
        let none = "k3s = false\ncilium = false\nenvoy = false\nl2_announcements = false\nambient = false\n\
                    longhorn = false\nflux = false\ntunnel = \"off\"\nmasquerade = \"bpf\"\n";
        for profile in Profile::ALL.into_iter().filter(|profile| *profile != Profile::Node) {
            let off: Cluster = toml::from_str(none).unwrap();
            assert!(!off.chose(profile), "{profile}");
            let key = profile.setting().split_once(" = ").unwrap().0;
            let rest: String = none
                .lines()
                .filter(|line| ![key, "k3s", "cilium"].contains(&line.split_once(" = ").unwrap().0))
                .map(|line| format!("{line}\n"))
                .collect();
            let on: Cluster = toml::from_str(&format!("{rest}{}\n", profile.setting())).unwrap();
            assert!(on.chose(profile), "{profile}");
        }
    }

    #[test]
    fn a_range_is_a_whole_network() {
        let range = |text: &str| Range::try_from(text.to_string());
        assert_eq!(range("10.42.0.0/16"), Ok(Cluster::default().pods));
        assert_eq!(range("10.42.0.0/16").unwrap().to_string(), "10.42.0.0/16");
        for text in ["10.42.0.0", "10.42.0.1/16", "10.0.0.0/0", "10.0.0.0/33", "fd00::/64", "", "/"] {
            assert!(range(text).unwrap_err().contains("10.42.0.0/16"), "{text}");
        }
    }
}
