//! The running kernel has the modules that the chosen features use: one table a feature.
//!
//! A module that is on disk is enough: the kernel, iptables or Cilium loads it on first use. Istio's
//! containers cannot, so its modules must be loaded beforehand.

use super::{Area, Finding, Requirement, Verdict};
use crate::change::Change;
use crate::config::cluster::Tunnel;
use crate::facts::Facts;
use crate::facts::module::{Module, Presence};
use crate::host::Unreadable;

const fn module(name: &'static str, option: &'static str) -> Module {
    Module { name, option }
}

const MASQUERADE_MODULES: &[Module] = &[
    module("xt_set", "CONFIG_NETFILTER_XT_SET"),
    module("ip_set", "CONFIG_IP_SET"),
    module("ip_set_hash_ip", "CONFIG_IP_SET_HASH_IP"),
    module("xt_comment", "CONFIG_NETFILTER_XT_MATCH_COMMENT"),
];

const ENVOY_MODULES: &[Module] = &[
    module("xt_TPROXY", "CONFIG_NETFILTER_XT_TARGET_TPROXY"),
    module("xt_mark", "CONFIG_NETFILTER_XT_MARK"),
    module("xt_CT", "CONFIG_NETFILTER_XT_TARGET_CT"),
    module("xt_socket", "CONFIG_NETFILTER_XT_MATCH_SOCKET"),
];

/// What Istio's rules use with either back end of iptables.
const AMBIENT_MODULES: &[Module] = &[
    module("nf_conntrack", "CONFIG_NF_CONNTRACK"),
    module("nf_nat", "CONFIG_NF_NAT"),
    module("x_tables", "CONFIG_NETFILTER_XTABLES"),
    module("xt_tcpudp", "CONFIG_NETFILTER_XTABLES"),
    module("xt_REDIRECT", "CONFIG_NETFILTER_XT_TARGET_REDIRECT"),
    module("xt_mark", "CONFIG_NETFILTER_XT_MARK"),
    module("xt_connmark", "CONFIG_NETFILTER_XT_CONNMARK"),
    module("xt_conntrack", "CONFIG_NETFILTER_XT_MATCH_CONNTRACK"),
    module("xt_multiport", "CONFIG_NETFILTER_XT_MATCH_MULTIPORT"),
    module("xt_owner", "CONFIG_NETFILTER_XT_MATCH_OWNER"),
    module("ip_set", "CONFIG_IP_SET"),
    module("ip_set_hash_ip", "CONFIG_IP_SET_HASH_IP"),
];

/// The back end that kernels from 6.17 may be built without.
const LEGACY_TABLES: &[Module] = &[
    module("ip_tables", "CONFIG_IP_NF_IPTABLES"),
    module("iptable_nat", "CONFIG_IP_NF_NAT"),
    module("iptable_mangle", "CONFIG_IP_NF_MANGLE"),
    module("iptable_raw", "CONFIG_IP_NF_RAW"),
];

/// The back end that Debian's iptables uses unless told otherwise.
const NFT: &[Module] = &[module("nf_tables", "CONFIG_NF_TABLES"), module("nft_compat", "CONFIG_NFT_COMPAT")];

const LONGHORN_MODULES: &[Module] =
    &[module("iscsi_tcp", "CONFIG_ISCSI_TCP"), module("dm_crypt", "CONFIG_DM_CRYPT")];

pub(super) const TREE: Requirement = Requirement {
    id: "module-tree",
    area: Area::Kernel,
    title: "the running kernel's modules are on disk",
    why: "after an upgrade that removed them every module that is not loaded yet is missing: K3s and Cilium fail \
          at their next restart",
    source: "raspberrypi/linux#4616; k3s-io/k3s#2082; cilium/cilium#30061",
    catalogue: &["KERN-007"],
    judge: |facts, _| {
        if matches!(&facts.kernel_config, Ok(config) if !config.is_set("CONFIG_MODULES")) {
            return Finding::not_needed("this kernel was built without modules");
        }
        match &facts.modules.on_disk {
            Ok(names) => {
                Finding::met(format!("{} modules for {}", names.len(), facts.kernel.release.as_ref()?))
            }
            Err(Unreadable { path, why: crate::host::Why::Missing }) => Finding::blocked(
                format!("{path} does not exist: the running kernel is no longer installed"),
                "reboot into the installed kernel before anything restarts: sudo reboot",
            ),
            Err(unreadable) => Err(unreadable.into()),
        }
    },
};

pub(super) const TUNNEL: Requirement = Requirement {
    id: "tunnel",
    area: Area::Kernel,
    title: "the kernel has the tunnel that carries pod traffic",
    why: "the Cilium agent fails with \"operation not supported\", and pods on two nodes cannot reach each other",
    source: "cilium/cilium#20735, #20901; flannel-io/flannel#1502; raspberrypi/linux bcm2712_defconfig (no GENEVE)",
    catalogue: &["KERN-005"],
    judge: |facts, config| {
        let (tunnel, next) = match config.cluster.tunnel {
            Tunnel::Off => return Finding::not_needed("pod traffic is routed natively: tunnel is off"),
            Tunnel::Vxlan => (
                module("vxlan", "CONFIG_VXLAN"),
                "on Ubuntu 21.10 to 23.10: sudo apt install linux-modules-extra-raspi, then reboot; elsewhere \
                 install the distribution's standard kernel",
            ),
            Tunnel::Geneve => (
                module("geneve", "CONFIG_GENEVE"),
                "set tunnel = \"vxlan\" in [cluster], and tunnelProtocol: vxlan for Cilium: no Raspberry Pi kernel \
                 has GENEVE",
            ),
        };
        available(facts, &[tunnel], next)
    },
};

pub(super) const MASQUERADE: Requirement = Requirement {
    id: "masquerade-modules",
    area: Area::Kernel,
    title: "the kernel has what Cilium's iptables rules use",
    why: "Cilium cannot install its masquerading rules: pods reach no address outside of the cluster",
    source: "cilium/cilium Documentation/operations/system_requirements.rst",
    catalogue: &["KERN-006"],
    judge: |facts, _| available(facts, MASQUERADE_MODULES, STANDARD_KERNEL),
};

pub(super) const ENVOY: Requirement = Requirement {
    id: "envoy-modules",
    area: Area::Kernel,
    title: "the kernel can redirect traffic to Cilium's Envoy",
    why: "L7 and DNS policies, Ingress and Gateway API drop the traffic they should pass on",
    source: "cilium/cilium Documentation/operations/system_requirements.rst",
    catalogue: &["KERN-006"],
    judge: |facts, config| {
        if !config.cluster.envoy {
            return Finding::not_needed("no Envoy is meant to run here: envoy is off");
        }
        available(facts, ENVOY_MODULES, STANDARD_KERNEL)
    },
};

pub(super) const AMBIENT: Requirement = Requirement {
    id: "ambient-modules",
    area: Area::Kernel,
    title: "the modules that Istio ambient uses are loaded",
    why: "istio-cni cannot load modules from its container: pods stay outside of the mesh, or do not start",
    source: "istio/istio.io docs/ops/deployment/platform-requirements",
    catalogue: &[],
    judge: |facts, config| {
        if !config.cluster.ambient {
            return Finding::not_needed("Istio ambient is off");
        }
        let back_end = if sort(facts, LEGACY_TABLES)?.absent.is_empty() { LEGACY_TABLES } else { NFT };
        let needed = [AMBIENT_MODULES, back_end].concat();
        let Sorted { absent, idle } = sort(facts, &needed)?;
        if !absent.is_empty() {
            return lacking(&absent, STANDARD_KERNEL);
        }
        let at_boot = facts.modules.at_boot.as_ref()?;
        let forgotten: Vec<&'static str> = idle.into_iter().filter(|name| !at_boot.contains(*name)).collect();
        if forgotten.is_empty() {
            return Finding::met(format!("{} modules", needed.len()));
        }
        Finding::unmet(
            format!("{} of {} modules are not loaded, and not named for boot", forgotten.len(), needed.len()),
            [Change::LoadModules { names: forgotten.into_iter().map(Into::into).collect() }],
        )
    },
};

pub(super) const LONGHORN: Requirement = Requirement {
    id: "longhorn-modules",
    area: Area::Kernel,
    title: "the kernel has what Longhorn's volumes use",
    why: "volumes do not attach, and pods that use them do not start",
    source: "longhorn/cli pkg/local/preflight/checker.go",
    catalogue: &["STOR-005"],
    judge: |facts, config| {
        if !config.cluster.longhorn {
            return Finding::not_needed("Longhorn is off");
        }
        available(facts, LONGHORN_MODULES, STANDARD_KERNEL)
    },
};

const STANDARD_KERNEL: &str =
    "install the distribution's standard kernel and its module packages, then reboot";

/// Modules by what is left to do about them.
struct Sorted {
    absent: Vec<&'static str>,
    /// On disk and not loaded.
    idle: Vec<&'static str>,
}

fn sort(facts: &Facts, modules: &[Module]) -> Result<Sorted, Unreadable> {
    let mut sorted = Sorted { absent: Vec::new(), idle: Vec::new() };
    for module in modules {
        match facts.module(*module)? {
            Presence::Ready => {}
            Presence::Loadable => sorted.idle.push(module.name),
            Presence::Absent => sorted.absent.push(module.name),
        }
    }
    Ok(sorted)
}

fn available(facts: &Facts, modules: &[Module], next: &str) -> Verdict {
    let Sorted { absent, .. } = sort(facts, modules)?;
    if !absent.is_empty() {
        return lacking(&absent, next);
    }
    let names: Vec<&str> = modules.iter().map(|module| module.name).collect();
    Finding::met(names.join(", "))
}

fn lacking(absent: &[&str], next: &str) -> Verdict {
    Finding::blocked(format!("the running kernel does not have {}", absent.join(", ")), next)
}
