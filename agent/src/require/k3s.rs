//! What K3s is told fits the node and Cilium, before it is started.

use std::net::Ipv4Addr;

use super::{Area, Finding, Requirement};
use crate::change::Change;
use crate::config::cluster::Profile;

const CONFIG: &str = "/etc/rancher/k3s/config.yaml";

pub(super) const NETWORK: Requirement = Requirement {
    id: "k3s-network",
    area: Area::K3s,
    profiles: &[Profile::Server],
    title: "K3s leaves the network to Cilium",
    why: "Flannel, kube-proxy and K3s' own load balancer start beside Cilium, and pods' traffic takes two ways",
    source: "ricsanfre/pi-cluster ansible/roles/k3s; k3s-io/docs networking",
    fix: "a person writes the settings that are named into K3s' configuration, on every server alike, and restarts \
          K3s one server after the other",
    catalogue: &["MIG-001", "MIG-002", "MIG-003"],
    judge: |facts, config| {
        if !config.cluster.cilium {
            return Finding::not_needed("only cilium asks for it: cilium = true in [cluster]");
        }
        let settings = facts.k3s.settings.as_ref()?;
        if !*facts.k3s.has_run.as_ref()? && !facts.units.uses("k3s")? {
            return Finding::not_needed("K3s is not set up here yet");
        }
        let mut lacking = Vec::new();
        if settings.value("flannel-backend") != Some("none") {
            lacking.push("flannel-backend: none");
        }
        if !settings.is_on("disable-network-policy") {
            lacking.push("disable-network-policy: true");
        }
        if !settings.is_on("disable-kube-proxy") {
            lacking.push("disable-kube-proxy: true");
        }
        if config.cluster.l2_announcements
            && !settings.values("disable").iter().any(|part| part == "servicelb")
        {
            lacking.push("disable: [servicelb]");
        }
        if lacking.is_empty() {
            return Finding::met("Flannel, kube-proxy, network policies and servicelb are off");
        }
        Finding::blocked(
            format!("K3s is not told {}", lacking.join(", ")),
            format!(
                "write it into {CONFIG} of every server alike, and restart K3s one server after the other"
            ),
        )
    },
};

pub(super) const SERVER_NAME: Requirement = Requirement {
    id: "server-name",
    area: Area::K3s,
    profiles: &[Profile::K3s],
    title: "the server's name is one that DNS knows",
    why: "K3s does not ask mDNS: \"failed to get CA certs\" after a restart, although ping finds the name",
    source: "geerlingguy/pi-cluster#11; k3s-io/k3s#9748, #1395",
    fix: "a person writes the server's address, or a name that DNS knows, into K3s' configuration",
    catalogue: &["NET-010"],
    judge: |facts, _| {
        let Some(server) = facts.k3s.settings.as_ref()?.value("server") else {
            return Finding::not_needed("K3s is not told of a server to join");
        };
        let host = server.split("://").last().unwrap_or(server).split(['/', ':']).next().unwrap_or(server);
        if host.ends_with(".local") {
            return Finding::blocked(
                format!("{host} is a name of mDNS"),
                format!("write the server's address, or a name that your DNS server knows, into {CONFIG}"),
            );
        }
        Finding::met(host)
    },
};

pub(super) const NODE_ADDRESS: Requirement = Requirement {
    id: "node-address",
    area: Area::K3s,
    profiles: &[Profile::K3s],
    title: "the address that K3s announces is the node's",
    why: "a server whose address changed is no member of its etcd any more; an agent is reached by nobody",
    source: "k3s-io/k3s#11778, #10408, #2732",
    fix: "a person gives the node its address back, by a reservation in the router, or removes the node and joins \
          it again",
    catalogue: &["NET-014"],
    judge: |facts, _| {
        let settings = facts.k3s.settings.as_ref()?;
        let told: Vec<&str> = settings.values("node-ip").iter().flat_map(|ips| ips.split(',')).collect();
        let wanted: Vec<Ipv4Addr> = told.iter().filter_map(|ip| ip.trim().parse().ok()).collect();
        if wanted.is_empty() {
            return Finding::not_needed("K3s takes the address of the default route: node-ip is not set");
        }
        let own = facts.addresses.as_ref()?;
        let names = |list: &[Ipv4Addr]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match wanted.iter().find(|ip| !own.contains(ip)) {
            None => Finding::met(names(&wanted)),
            Some(strange) => Finding::blocked(
                format!("node-ip is {strange}, the node has {}", names(own)),
                "give the node its address back (a reservation in your router), or remove the node from the cluster and \
                 join it again",
            ),
        }
    },
};

pub(super) const PASSWORD: Requirement = Requirement {
    id: "node-password",
    area: Area::K3s,
    profiles: &[Profile::K3s],
    title: "the node can prove its name to the servers",
    why: "\"Node password rejected\": the servers keep what a node of this name showed them first",
    source: "k3s-io/k3s#663, #746, #802, #6054",
    fix: "a person brings /etc/rancher/node/password back from a backup, or deletes the node's secret \
          NODE.node-password.k3s on a server",
    catalogue: &["K3S-002"],
    judge: |facts, _| {
        if !*facts.k3s.has_run.as_ref()? {
            return Finding::not_needed("K3s has not run here; it makes the password at its first start");
        }
        if *facts.k3s.has_password.as_ref()? {
            return Finding::met("/etc/rancher/node/password");
        }
        Finding::blocked(
            "/etc/rancher/node/password is gone, although K3s has run here",
            "bring the file back from a backup, or on a server: kubectl -n kube-system delete secret \
             NODE.node-password.k3s",
        )
    },
};

/// What K3s' check-config.sh refuses, and what checks rules wrongly.
const BAD_IPTABLES: [[u32; 3]; 6] = [[1, 8, 0], [1, 8, 1], [1, 8, 2], [1, 8, 3], [1, 8, 4], [1, 8, 10]];

pub(super) const BACKENDS: Requirement = Requirement {
    id: "iptables-backends",
    area: Area::K3s,
    profiles: &[Profile::K3s],
    title: "iptables keeps its rules in one place",
    why: "a packet must pass the rules of nf_tables and those of legacy iptables, and each program shows its own alone: \
          what is seen explains nothing, and what Cilium, Istio and K3s pick depends on what they find",
    source: "iptables-nft(8); k3s-io/k3s contrib/util/check-config.sh; linux uapi netfilter_ipv4/ip_tables.h",
    fix: "a person lets who uses iptables-legacy use iptables-nft, and reboots, which takes the legacy rules away",
    catalogue: &[],
    judge: |facts, _| {
        if facts.firewalls.legacy == Ok(false) {
            return Finding::met("legacy iptables is not loaded");
        }
        let filter = facts.firewalls.live.as_ref()?;
        match (&filter.by_nft, &filter.by_legacy) {
            (Some(nft), Some(legacy)) => Finding::blocked(
                format!("both hold chains: nf_tables for instance {nft}, legacy iptables {legacy}"),
                "sudo iptables-legacy-save shows whose they are; sudo update-alternatives --set iptables \
                 /usr/sbin/iptables-nft, then reboot",
            ),
            (Some(_), None) => Finding::met("in nf_tables"),
            (None, Some(_)) => Finding::met("in legacy iptables"),
            (None, None) => Finding::met("there are none"),
        }
    },
};

pub(super) const IPTABLES: Requirement = Requirement {
    id: "iptables-version",
    area: Area::K3s,
    profiles: &[Profile::K3s],
    title: "the iptables that K3s uses does not double its rules",
    why: "some versions do not find rules that are there: they are added again and again, until after days the \
          processor does nothing else",
    source: "k3s-io/k3s#3117; kubernetes/kubernetes#82361; k3s-io/k3s contrib/util/check-config.sh",
    fix: "bramble tells K3s to prefer the iptables that it brings along, in a file of its own in config.yaml.d",
    catalogue: &["NET-012"],
    judge: |facts, _| {
        let packages = facts.packages.as_ref()?;
        let Some(version) = packages.version("iptables") else {
            return Finding::met("no iptables is installed: K3s uses the one it brings along");
        };
        let numbers = packages.numbers("iptables").unwrap_or_default();
        if !BAD_IPTABLES.iter().any(|bad| numbers == bad) {
            return Finding::met(version);
        }
        if facts.k3s.settings.as_ref()?.is_on("prefer-bundled-bin") {
            return Finding::met(format!("{version}, and K3s prefers the one it brings along"));
        }
        Finding::unmet(
            version,
            [Change::WriteFile {
                path: "/etc/rancher/k3s/config.yaml.d/90-bramble-iptables.yaml".into(),
                content:
                    "# Written by bramble: the host's iptables doubles rules.\nprefer-bundled-bin: true\n"
                        .into(),
            }],
        )
    },
};
