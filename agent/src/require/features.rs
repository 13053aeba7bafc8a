//! What the owner chose goes together. The one requirement that no file of the host decides.

use super::{Area, Finding, Requirement, option};
use crate::config::cluster::{Cluster, Masquerade, Profile};

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "features",
    area: Area::Kernel,
    profiles: &[Profile::Cilium],
    title: "the chosen features of Cilium and Istio go together",
    why: "Cilium does not start with some combinations, and with others kubelet's probes of pods in the mesh fail",
    source: "cilium/cilium Documentation/network/servicemesh/istio.rst, operations/performance/tuning.rst; istio/istio#52208",
    fix: "a person changes one of the settings that do not go together in [cluster]",
    catalogue: &["MESH-002"],
    judge: |facts, config| {
        let cluster = &config.cluster;
        if let Some((what, next)) = clash(cluster) {
            return Finding::blocked(what, next);
        }
        if cluster.masquerade == Masquerade::Bpf
            && let Some(oldest) = option::oldest_kernel("bpf-masquerade")
            && facts.kernel.version()? < oldest
        {
            return Finding::blocked(
                format!("masquerade = \"bpf\" asks for kernel {}.{}", oldest.0, oldest.1),
                "set masquerade = \"iptables\" in [cluster], or install a newer kernel and reboot",
            );
        }
        Finding::met(chosen(cluster))
    },
};

/// The first two settings that do not go together: what they do, and what to do.
fn clash(cluster: &Cluster) -> Option<(&'static str, &'static str)> {
    let bpf = cluster.masquerade == Masquerade::Bpf;
    if cluster.ambient && bpf {
        return Some((
            "masquerade = \"bpf\" and ambient = true: kubelet's probes of pods in the mesh get no answer",
            "set masquerade = \"iptables\" in [cluster] (bpf.masquerade: false for Cilium), or ambient = false",
        ));
    }
    if cluster.netkit && !bpf {
        return Some((
            "netkit = true needs BPF host routing, and that masquerade = \"bpf\"",
            "set netkit = false in [cluster]; or masquerade = \"bpf\", which Istio ambient does not work with",
        ));
    }
    if cluster.bbr && !(bpf && cluster.bandwidth_manager) {
        return Some((
            "bbr = true needs bandwidth_manager = true and masquerade = \"bpf\"",
            "set bbr = false in [cluster]; or set the other two, which Istio ambient does not work with",
        ));
    }
    None
}

fn chosen(cluster: &Cluster) -> String {
    let names = Profile::ALL.iter().filter(|profile| cluster.chose(**profile)).map(|profile| profile.name());
    names.skip(1).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_do_not_go_together_are_named_with_a_way_out() {
        let base = Cluster::default;
        let bpf = || Cluster { masquerade: Masquerade::Bpf, ambient: false, ..base() };
        for (cluster, part) in [
            (Cluster { masquerade: Masquerade::Bpf, ..base() }, "ambient"),
            (Cluster { netkit: true, ..base() }, "netkit"),
            (Cluster { bbr: true, bandwidth_manager: true, ..base() }, "bbr"),
            (Cluster { bbr: true, ..bpf() }, "bandwidth_manager"),
        ] {
            assert!(clash(&cluster).unwrap().0.contains(part), "{cluster:?}");
        }
        for cluster in [base(), bpf(), Cluster { bbr: true, bandwidth_manager: true, netkit: true, ..bpf() }]
        {
            assert_eq!(clash(&cluster), None, "{cluster:?}");
        }
    }
}
