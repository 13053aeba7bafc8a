//! What other networks and tools left on the node is gone, before Cilium, Istio and Flux take their place.
//!
//! Found by the table `agent/data/leftovers.csv`. Nothing is removed here: the order counts, and a wrong one cuts the
//! node off.

use super::{Area, Finding, Requirement, Verdict};
use crate::config::cluster::Profile;
use crate::facts::Facts;
use crate::facts::leftover::sources_of;

pub(super) const FLANNEL: Requirement = Requirement {
    id: "leftover-flannel",
    area: Area::Migration,
    profiles: &[Profile::Cilium],
    title: "nothing of Flannel is left",
    why: "Cilium's tunnel cannot take the port that Flannel's holds (\"address already in use\"), and containerd may \
          still ask Flannel for a pod's network",
    source: "cilium/cilium#3219; canonical/microk8s#996; cilium/cilium Documentation/installation/k8s-install-migration.rst",
    fix: "a person sets flannel-backend: none on every server, drains the node, stops K3s, deletes what is named, \
          and reboots",
    catalogue: &["MIG-001"],
    judge: |facts, _| {
        gone(
            facts,
            "leftover-flannel",
            "Flannel",
            "on every server set flannel-backend: none and restart K3s; then on this node drain it, stop K3s, delete the \
             links and files that are named here, and reboot",
        )
    },
};

pub(super) const KUBE_PROXY: Requirement = Requirement {
    id: "leftover-kube-proxy",
    area: Area::Migration,
    profiles: &[Profile::Cilium],
    title: "nothing of kube-proxy is left",
    why: "its rules lead connections to pods that are long gone, before Cilium sees them",
    source: "kubernetes/kubernetes#119265, #102314; k3s-io/k3s#5643",
    fix: "a person sets disable-kube-proxy: true on every server, restarts K3s, and reboots the node, which takes \
          the rules with it",
    catalogue: &["MIG-002"],
    judge: |facts, _| {
        gone(
            facts,
            "leftover-kube-proxy",
            "kube-proxy",
            "on every server set disable-kube-proxy: true and restart K3s; then reboot this node, which takes the rules \
             with it",
        )
    },
};

pub(super) const NETWORK_POLICY: Requirement = Requirement {
    id: "leftover-network-policy",
    area: Area::Migration,
    profiles: &[Profile::Cilium],
    title: "nothing of K3s' own network policies is left",
    why: "rules of policies that nobody updates any more drop pods' traffic",
    source: "k3s-io/k3s disable-network-policy; cloudnativelabs/kube-router",
    fix: "a person sets disable-network-policy: true on every server, restarts K3s, and reboots the node, which \
          takes the rules with it",
    catalogue: &[],
    judge: |facts, _| {
        gone(
            facts,
            "leftover-network-policy",
            "K3s' network policies",
            "on every server set disable-network-policy: true and restart K3s; then reboot this node, which takes the \
             rules with it",
        )
    },
};

pub(super) const ANNOUNCERS: Requirement = Requirement {
    id: "leftover-announcers",
    area: Area::Migration,
    profiles: &[Profile::L2Announcements],
    title: "Cilium alone announces services' addresses",
    why: "MetalLB or K3s' own load balancer answers for the same address: connections land now here, now there",
    source: "onedr0p/cluster-template#818; metallb/metallb#2747; k3s-io/k3s#269",
    fix: "a person writes down the services' addresses, stops MetalLB's speakers and servicelb, waits until nobody \
          answers for them, then lets Cilium announce",
    catalogue: &["MIG-003"],
    judge: |facts, _| {
        gone(
            facts,
            "leftover-announcers",
            "MetalLB and K3s' load balancer",
            "write down every service's address, stop MetalLB's speakers (and set disable: [servicelb] on the servers), \
             wait until nobody answers for the addresses, then let Cilium announce them",
        )
    },
};

pub(super) const LINKERD: Requirement = Requirement {
    id: "leftover-linkerd",
    area: Area::Migration,
    profiles: &[Profile::Ambient, Profile::Cilium],
    title: "nothing of Linkerd is left",
    why: "a plugin without its program makes every new pod fail; two meshes redirect one connection twice",
    source: "linkerd/linkerd2#4789, #12490, #11228",
    fix: "a person takes Linkerd's injection off the workloads, restarts them, uninstalls Linkerd from its \
          extensions down, then deletes what is named",
    catalogue: &["MIG-004"],
    judge: |facts, _| {
        gone(
            facts,
            "leftover-linkerd",
            "Linkerd",
            "take linkerd.io/inject off namespaces and workloads, restart the workloads, uninstall the extensions, the \
             control plane and linkerd-cni; then take its plugin out of the CNI configuration and delete its files",
        )
    },
};

pub(super) const ARGOCD: Requirement = Requirement {
    id: "leftover-argocd",
    area: Area::Migration,
    profiles: &[Profile::Flux],
    title: "no Argo CD runs here beside Flux",
    why: "each takes back what the other changed; and who deletes an Application with its finalizer deletes the workload",
    source: "argoproj/argo-cd resources-finalizer.argocd.argoproj.io",
    fix: "a person switches automated sync off, takes the finalizers off the Applications, deletes them and Argo \
          CD, and only then lets Flux reconcile",
    catalogue: &[],
    judge: |facts, _| {
        gone(
            facts,
            "leftover-argocd",
            "Argo CD",
            "switch automated sync off, take the finalizer resources-finalizer.argocd.argoproj.io off every Application, \
             delete the Applications, then Argo CD; only then let Flux reconcile",
        )
    },
};

pub(super) const CILIUM: Requirement = Requirement {
    id: "leftover-cilium",
    area: Area::Migration,
    profiles: &[Profile::Node],
    title: "no Cilium is left behind without K3s",
    why: "its links and rules hold the node's routes with nobody to mend them: the node is off the network at the next \
          stop or reset of K3s",
    source: "k3s-io/k3s#8347; k3s-io/docs networking (Cilium uninstall)",
    fix: "a person runs sudo bramble leave at the machine itself, or deletes the links and files that are named \
          and reboots",
    catalogue: &["MIG-005"],
    judge: |facts, _| {
        if facts.units.uses("k3s")? || facts.units.uses("k3s-agent")? {
            return Finding::not_needed("K3s is in use here, and Cilium with it");
        }
        gone(
            facts,
            "leftover-cilium",
            "Cilium",
            "at the machine itself, not over the network: ip link delete cilium_host, then cilium_vxlan; remove its CNI \
             configuration; then reboot, which takes rules and chains with it",
        )
    },
};

fn gone(facts: &Facts, id: &str, who: &str, next: &str) -> Verdict {
    let left = facts.left_of(sources_of(id));
    if !left.found.is_empty() {
        return Finding::blocked(left.found.join(", "), next);
    }
    match left.unread {
        Some(unreadable) => Err(unreadable),
        None => Finding::met(format!("no trace of {who}")),
    }
}
