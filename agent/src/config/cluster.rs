//! `[cluster]`: what the node is prepared for; it decides which requirements apply.
//!
//! The defaults describe the cluster of the Kubernetes Pi Cluster project, release 1.9:
//! K3s, Cilium over VXLAN with its Envoy, Istio ambient, IPv4 only.

use serde::Deserialize;

/// What the node's cluster is made of.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    /// What this node does in the cluster: "server" (control plane) or "agent". Default: "agent".
    pub role: Role,
    /// Whether pods get IPv6 addresses beside IPv4. Default: false.
    pub ipv6: bool,
    /// How Cilium carries pod traffic between nodes: "vxlan", "geneve" or "off" (native routing).
    /// Default: "vxlan".
    pub tunnel: Tunnel,
    /// Whether Cilium's Envoy runs here: L7 and DNS policies, Ingress, Gateway API. Default: true.
    pub envoy: bool,
    /// Whether Istio runs in ambient mode. Default: true.
    pub ambient: bool,
    /// Whether Longhorn keeps volumes on this node. Default: false.
    pub longhorn: bool,
    /// Whether K3s runs with `protect-kernel-defaults`: the kubelet then refuses to start instead of
    /// setting its sysctls itself. Default: false.
    pub protect_kernel_defaults: bool,
    /// Ids of requirements whose shortfall the owner knows and accepts, for instance "page-size".
    /// Default: none.
    pub accept: Vec<String>,
}

impl Default for Cluster {
    fn default() -> Cluster {
        Cluster {
            role: Role::Agent,
            ipv6: false,
            tunnel: Tunnel::Vxlan,
            envoy: true,
            ambient: true,
            longhorn: false,
            protect_kernel_defaults: false,
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
