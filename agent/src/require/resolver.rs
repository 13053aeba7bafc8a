//! Pods can ask the name servers that the node asks.

use super::{Area, Finding, Requirement};
use crate::change::Change;
use crate::config::cluster::Profile;
use crate::facts::resolver::{BEHIND_STUB, is_loopback};

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "resolver",
    area: Area::K3s,
    profiles: &[Profile::K3s],
    title: "name servers can be reached from pods",
    why: "a server on the loopback address is another one in every pod: CoreDNS asks itself and stops, \"Loop detected\"",
    source: "coredns/coredns#2087; k0sproject/k0s#390; kubernetes/kubeadm#998",
    fix: "bramble tells K3s to use the servers behind systemd-resolved; without it a person names a file with the \
          address of a name server in K3s' resolv-conf",
    catalogue: &["NET-009"],
    judge: |facts, _| {
        if let Some(file) = facts.k3s.settings.as_ref()?.value("resolv-conf") {
            return Finding::met(format!("K3s is told to use {file}"));
        }
        let outside = |servers: &[String]| servers.iter().any(|server| !is_loopback(server));
        let servers = facts.resolver.servers.as_ref()?;
        if outside(servers) {
            return Finding::met(servers.join(", "));
        }
        let what = match servers.is_empty() {
            true => "/etc/resolv.conf names no server".to_string(),
            false => format!("/etc/resolv.conf names {} alone", servers.join(", ")),
        };
        if outside(facts.resolver.behind_stub.as_ref()?) {
            return Finding::unmet(
                what,
                [Change::WriteFile {
                    path: "/etc/rancher/k3s/config.yaml.d/90-bramble-resolver.yaml".into(),
                    content: format!(
                        "# Written by bramble: the servers behind systemd-resolved's own address.\n\
                         resolv-conf: {BEHIND_STUB}\n"
                    )
                    .into(),
                }],
            );
        }
        Finding::blocked(
            what,
            format!(
                "write a file with the address of your name server (nameserver 192.168.1.1) and name it in K3s' \
                 configuration: resolv-conf: FILE; with systemd-resolved that is {BEHIND_STUB}"
            ),
        )
    },
};
