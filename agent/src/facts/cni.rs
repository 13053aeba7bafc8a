//! Networks for containers: the configurations in `/etc/cni/net.d`, and in K3s' own directory for Flannel.

use serde_json::Value;

use super::Fact;
use crate::host::Host;

/// What containerd finds with Flannel switched off.
pub const DIRECTORY: &str = "/etc/cni/net.d";
/// Where K3s keeps the configuration of its own Flannel.
pub const K3S_DIRECTORY: &str = "/var/lib/rancher/k3s/agent/etc/cni/net.d";

/// One configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The file.
    pub path: String,
    /// Whether it counts: Cilium renames what it switches off to `*.cilium_bak`.
    pub active: bool,
    /// The types of its plugins, in order.
    pub plugins: Vec<String>,
}

/// All configurations of both directories, by name.
pub(super) fn read(host: &Host) -> Fact<Vec<Network>> {
    let mut networks = Vec::new();
    for directory in [DIRECTORY, K3S_DIRECTORY] {
        for file in host.list_if_present(directory)? {
            let plain = file.strip_suffix(".cilium_bak");
            let name = plain.unwrap_or(&file);
            if name.ends_with(".conf") || name.ends_with(".conflist") {
                let path = format!("{directory}/{file}");
                let plugins = plugins(&host.text(&path)?);
                networks.push(Network { path, active: plain.is_none(), plugins });
            }
        }
    }
    Ok(networks)
}

/// A file that is no JSON has no plugins; containerd does not take it either.
fn plugins(text: &str) -> Vec<String> {
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    let list = value["plugins"].as_array().cloned().unwrap_or_else(|| vec![value]);
    list.iter().filter_map(|plugin| plugin["type"].as_str()).map(String::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_are_read_in_their_order() {
        let list = r#"{"name":"cilium","plugins":[{"type":"cilium-cni"},{"type":"istio-cni"},{}]}"#;
        assert_eq!(plugins(list), ["cilium-cni", "istio-cni"]);
        assert_eq!(plugins(r#"{"type":"linkerd-cni"}"#), ["linkerd-cni"]);
        assert!(plugins("garbage").is_empty());
    }
}
