//! Joining K3s and leaving it: what K3s itself does and expects, as far as a node must know it.
//!
//! `token` and `certificate` are pure; `doctor` looks before anything is started; `binary`, `configuration` and
//! `unit` make what `bramble join` writes, which goes through `converge` like every other change. Names and paths are
//! those of K3s' own installer, so that its scripts and system-upgrade plans keep working.
//! Follows k3s-io/k3s, install.sh and pkg/.

use crate::config::k3s::{K3s, Role, Setting};
use crate::facts::Facts;
use crate::host::Unreadable;

pub mod api;
pub mod binary;
pub mod certificate;
pub mod cilium;
pub mod configuration;
pub mod doctor;
pub mod joined;
pub mod leave;
pub mod token;
pub mod unit;
pub mod wait;

/// Paths of K3s' own installer and program.
pub mod path {
    /// The program.
    pub const BINARY: &str = "/usr/local/bin/k3s";
    /// What it is told.
    pub const CONFIG: &str = "/etc/rancher/k3s/config.yaml";
    /// Files that are read after it, by name.
    pub const CONFIG_D: &str = "/etc/rancher/k3s/config.yaml.d";
    /// What the kubelet is told.
    pub const KUBELET_CONFIG: &str = "/etc/rancher/k3s/kubelet.config";
    /// What proves the node's name to the servers.
    pub const NODE_PASSWORD: &str = "/etc/rancher/node/password";
    /// All that K3s keeps.
    pub const DATA: &str = "/var/lib/rancher/k3s";
    /// Where a server finds manifests that it applies by itself.
    pub const MANIFESTS: &str = "/var/lib/rancher/k3s/server/manifests";
    /// Where it finds images that it need not pull.
    pub const IMAGES: &str = "/var/lib/rancher/k3s/agent/images";
    /// The kubelet's certificate.
    pub const KUBELET_CERTIFICATE: &str = "/var/lib/rancher/k3s/agent/client-kubelet.crt";
    /// Its key.
    pub const KUBELET_KEY: &str = "/var/lib/rancher/k3s/agent/client-kubelet.key";
    /// Who signs the servers' certificates.
    pub const SERVER_CA: &str = "/var/lib/rancher/k3s/agent/server-ca.crt";
    /// Where networks for containers are told.
    pub const CNI: &str = "/etc/cni/net.d";
    /// What Cilium puts there when it is ready.
    pub const CILIUM_CNI: &str = "/etc/cni/net.d/05-cilium.conflist";
}

/// The name that the node has in the cluster: what K3s is to be told or is told, or the machine's own, in small letters.
pub fn node_name(facts: &Facts, asked: Option<&K3s>) -> Result<String, Unreadable> {
    let asked = asked.and_then(|k3s| match k3s.settings.get("node-name")? {
        Setting::Text(name) => Some(name.as_str()),
        _ => None,
    });
    let told = || facts.k3s.settings.as_ref().ok()?.value("node-name");
    match asked.or_else(told) {
        Some(name) => Ok(name.to_lowercase()),
        None => facts.identity.hostname.clone().map(|name| name.trim().to_lowercase()),
    }
}

/// The unit of a role, with its ending.
pub const fn unit(role: &Role) -> &'static str {
    match role.is_server() {
        true => "k3s.service",
        false => "k3s-agent.service",
    }
}
