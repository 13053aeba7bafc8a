//! What a feature asks of the running kernel: a version, options, modules. One table for all features
//! (`agent/data/kernel_options.csv`), judged by feature.
//!
//! A module that is on disk is enough: the kernel, iptables or Cilium loads it on first use. Istio's
//! containers cannot, so its modules must be loaded beforehand.

use std::sync::LazyLock;

use super::{Area, Finding, Requirement, Verdict};
use crate::change::Change;
use crate::config::cluster::{Profile, Tunnel};
use crate::facts::kernel::Version;
use crate::facts::module::{Module, Presence};
use crate::facts::{Facts, table};
use crate::host::{Unreadable, Why};

/// A row of the table.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) feature: &'static str,
    pub(super) option: &'static str,
    pub(super) severity: Severity,
    accepts: &'static str,
    module: &'static str,
}

/// What a missing option does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Severity {
    /// The feature does not work.
    Required,
    /// Something lesser does not.
    Optional,
    /// Nothing that is asked for.
    Told,
}

pub(super) static TABLE: LazyLock<Vec<Row>> = LazyLock::new(|| {
    let columns = ["feature", "option", "severity", "accepts", "module"];
    let rows = table::rows(include_str!("../../data/kernel_options.csv"), columns);
    rows.map(|[feature, option, severity, accepts, module]| {
        let severity = match severity {
            "required" => Severity::Required,
            "optional" => Severity::Optional,
            _ => Severity::Told,
        };
        Row { feature, option, severity, accepts, module }
    })
    .collect()
});

impl Row {
    fn presence(&self, facts: &Facts) -> Result<Presence, Unreadable> {
        if !self.module.is_empty() {
            return facts.module(Module { name: self.module, option: self.option });
        }
        let value = facts.kernel_config.as_ref()?.value(self.option).unwrap_or("-");
        let accepted = self.accepts.split('|').any(|accepted| accepted == value);
        Ok(if accepted { Presence::Ready } else { Presence::Absent })
    }

    fn name(&self) -> String {
        match self.module {
            "" => self.option.to_string(),
            module => format!("{module} ({})", self.option),
        }
    }
}

/// The oldest kernel of a feature, where one is known.
pub(super) fn oldest_kernel(feature: &str) -> Option<Version> {
    let rows = table::rows(include_str!("../../data/kernel_versions.csv"), ["feature", "minimum", "source"]);
    let minimum = rows.filter(|row| row[0] == feature).map(|row| row[1]).next()?;
    let (major, minor) = minimum.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The features of the table, by the requirement that judges them; those of "system" are for information.
const FEATURES: [(&str, &[&str]); 14] = [
    ("kernel-options-cilium", &["cilium"]),
    ("kernel-options-k3s", &["k3s"]),
    ("kernel-options-bramble", &["bramble", "system"]),
    ("tunnel", &["vxlan", "geneve"]),
    ("masquerade-modules", &["masquerade"]),
    ("envoy-modules", &["envoy"]),
    ("wireguard-module", &["wireguard"]),
    ("ipsec-modules", &["ipsec"]),
    ("bandwidth-modules", &["bandwidth-manager"]),
    ("bbr", &["bbr"]),
    ("netkit", &["netkit"]),
    ("forwarding6", &["ipv6"]),
    ("ambient-modules", &["ambient", "ambient-legacy", "ambient-nft"]),
    ("longhorn-modules", &["longhorn"]),
];

/// What a requirement of this id looks at, one line a row.
pub(super) fn rows_of(requirement: &str) -> Vec<String> {
    let features = FEATURES.iter().find(|(id, _)| *id == requirement).map_or(&[][..], |(_, names)| names);
    let rows = TABLE.iter().filter(|row| features.contains(&row.feature));
    rows.map(|row| {
        let severity = match row.severity {
            Severity::Required => "required",
            Severity::Optional => "optional",
            Severity::Told => "for information",
        };
        match features {
            [_] => format!("{}: {severity}", row.name()),
            _ => format!("{}: {severity} ({})", row.name(), row.feature),
        }
    })
    .collect()
}

/// A feature's options by what is left to do about them.
#[derive(Default)]
struct Standing {
    there: usize,
    lacking: Vec<String>,
    /// Optional, and not there.
    without: Vec<String>,
    /// Modules on disk and not loaded.
    idle: Vec<&'static str>,
}

fn stand(facts: &Facts, features: &[&str]) -> Result<Standing, Unreadable> {
    let mut standing = Standing::default();
    for row in TABLE.iter().filter(|row| features.contains(&row.feature)) {
        let presence = match (row.severity, row.presence(facts)) {
            (Severity::Told, _) => continue,
            (_, presence) => presence?,
        };
        match (presence, row.severity) {
            (Presence::Absent, Severity::Required) => standing.lacking.push(row.name()),
            (Presence::Absent, _) => {
                standing.without.push(row.option.trim_start_matches("CONFIG_").to_string());
            }
            (presence, severity) => {
                standing.there += 1;
                if (presence, severity) == (Presence::Loadable, Severity::Required) {
                    standing.idle.push(row.module);
                }
            }
        }
    }
    Ok(standing)
}

/// Judges one feature by its oldest kernel and its options.
fn judge(facts: &Facts, feature: &str, next: &str) -> Verdict {
    if let Some((major, minor)) = oldest_kernel(feature)
        && facts.kernel.version()? < (major, minor)
    {
        return Finding::blocked(
            format!("the kernel is {}, {feature} asks for {major}.{minor}", facts.kernel.release.as_ref()?),
            next,
        );
    }
    let Standing { there, lacking, without, .. } = stand(facts, &[feature])?;
    if !lacking.is_empty() {
        return lacks(&lacking, next);
    }
    let source = facts.kernel_config.as_ref().map_or("the module tree", |config| &config.path);
    let mut evidence = format!("{there} of {} options, by {source}", there + without.len());
    if !without.is_empty() {
        evidence += &format!("; optional and not there: {}", without.join(", "));
    }
    Finding::met(evidence)
}

fn lacks(lacking: &[String], next: &str) -> Verdict {
    Finding::blocked(format!("the running kernel does not have {}", lacking.join(", ")), next)
}

const STANDARD_KERNEL: &str =
    "install the distribution's standard kernel and its module packages, then reboot";

pub(super) const CILIUM: Requirement = Requirement {
    id: "kernel-options-cilium",
    area: Area::Kernel,
    profiles: &[Profile::Cilium],
    title: "the kernel was built with what Cilium needs",
    why: "the Cilium agent exits at its start, or a function fails when it is first used",
    source: "cilium/cilium Documentation/operations/system_requirements.rst",
    fix: "a person installs the distribution's standard kernel and its module packages, and reboots",
    catalogue: &["KERN-006"],
    judge: |facts, _| judge(facts, "cilium", STANDARD_KERNEL),
};

pub(super) const K3S: Requirement = Requirement {
    id: "kernel-options-k3s",
    area: Area::Kernel,
    profiles: &[Profile::K3s],
    title: "the kernel was built with what K3s needs",
    why: "K3s exits at its start, or containers cannot be made",
    source: "k3s-io/k3s contrib/util/check-config.sh",
    fix: "a person installs the distribution's standard kernel and its module packages, and reboots",
    catalogue: &["KERN-006"],
    judge: |facts, _| judge(facts, "k3s", STANDARD_KERNEL),
};

pub(super) const BRAMBLE: Requirement = Requirement {
    id: "kernel-options-bramble",
    area: Area::Kernel,
    profiles: &[Profile::Node],
    title: "the kernel was built with what bramble's companion needs",
    why: "drops are counted without their reasons, and the node's own stack stays dark",
    source: "kernel/trace/Kconfig BPF_EVENTS; raspberrypi/linux bcm2712_defconfig",
    fix: "a person installs the distribution's standard kernel and its module packages, and reboots",
    catalogue: &["KERN-004"],
    judge: |facts, _| judge(facts, "bramble", STANDARD_KERNEL),
};

pub(super) const TREE: Requirement = Requirement {
    id: "module-tree",
    area: Area::Kernel,
    profiles: &[Profile::Node],
    title: "the running kernel's modules are on disk",
    why: "after an upgrade that removed them every module that is not loaded yet is missing: K3s and Cilium fail \
          at their next restart",
    source: "raspberrypi/linux#4616; k3s-io/k3s#2082; cilium/cilium#30061",
    fix: "a person reboots into the installed kernel before anything restarts",
    catalogue: &["KERN-007"],
    judge: |facts, _| {
        if matches!(&facts.kernel_config, Ok(config) if !config.is_set("CONFIG_MODULES")) {
            return Finding::not_needed("this kernel was built without modules");
        }
        match &facts.modules.on_disk {
            Ok(names) => {
                Finding::met(format!("{} modules for {}", names.len(), facts.kernel.release.as_ref()?))
            }
            Err(Unreadable { path, why: Why::Missing }) => Finding::blocked(
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
    profiles: &[Profile::Tunnel],
    title: "the kernel has the tunnel that carries pod traffic",
    why: "the Cilium agent fails with \"operation not supported\", and pods on two nodes cannot reach each other",
    source: "cilium/cilium#20735, #20901; flannel-io/flannel#1502; raspberrypi/linux bcm2712_defconfig (no GENEVE)",
    fix: "a person installs linux-modules-extra-raspi on Ubuntu 21.10 to 23.10, or the distribution's standard \
          kernel, or sets tunnel = \"vxlan\" in [cluster]",
    catalogue: &["KERN-005"],
    judge: |facts, config| match config.cluster.tunnel {
        Tunnel::Off => Finding::not_needed("pod traffic is routed natively"),
        Tunnel::Vxlan => judge(
            facts,
            "vxlan",
            "on Ubuntu 21.10 to 23.10: sudo apt install linux-modules-extra-raspi, then reboot; elsewhere \
             install the distribution's standard kernel",
        ),
        Tunnel::Geneve => judge(
            facts,
            "geneve",
            "set tunnel = \"vxlan\" in [cluster], and tunnelProtocol: vxlan for Cilium: no Raspberry Pi kernel \
             has GENEVE",
        ),
    },
};

pub(super) const MASQUERADE: Requirement = Requirement {
    id: "masquerade-modules",
    area: Area::Kernel,
    profiles: &[Profile::Iptables],
    title: "the kernel has what Cilium's iptables rules use",
    why: "Cilium cannot install its masquerading rules: pods reach no address outside of the cluster",
    source: "cilium/cilium Documentation/operations/system_requirements.rst",
    fix: "a person installs the distribution's standard kernel and its module packages, and reboots",
    catalogue: &["KERN-006"],
    judge: |facts, _| judge(facts, "masquerade", STANDARD_KERNEL),
};

pub(super) const ENVOY: Requirement = Requirement {
    id: "envoy-modules",
    area: Area::Kernel,
    profiles: &[Profile::Envoy],
    title: "the kernel can redirect traffic to Cilium's Envoy",
    why: "L7 and DNS policies, Ingress and Gateway API drop the traffic they should pass on",
    source: "cilium/cilium Documentation/operations/system_requirements.rst",
    fix: "a person installs the distribution's standard kernel and its module packages, and reboots",
    catalogue: &["KERN-006"],
    judge: |facts, _| judge(facts, "envoy", STANDARD_KERNEL),
};

pub(super) const WIREGUARD: Requirement = Requirement {
    id: "wireguard-module",
    area: Area::Kernel,
    profiles: &[Profile::Wireguard],
    title: "the kernel has WireGuard",
    why: "the Cilium agent does not start with encryption by WireGuard",
    source: "cilium/cilium Documentation/operations/system_requirements.rst",
    fix: "a person installs the distribution's standard kernel and its module packages, and reboots",
    catalogue: &["KERN-006"],
    judge: |facts, _| judge(facts, "wireguard", STANDARD_KERNEL),
};

pub(super) const IPSEC: Requirement = Requirement {
    id: "ipsec-modules",
    area: Area::Kernel,
    profiles: &[Profile::Ipsec],
    title: "the kernel has what Cilium's IPsec uses",
    why: "the Cilium agent does not start with encryption by IPsec, or nodes drop each other's packets",
    source: "cilium/cilium Documentation/operations/system_requirements.rst",
    fix: "a person installs the distribution's standard kernel and its module packages, and reboots",
    catalogue: &["KERN-006"],
    judge: |facts, _| judge(facts, "ipsec", STANDARD_KERNEL),
};

pub(super) const BANDWIDTH: Requirement = Requirement {
    id: "bandwidth-modules",
    area: Area::Kernel,
    profiles: &[Profile::BandwidthManager],
    title: "the kernel can pace what pods send",
    why: "Cilium's bandwidth manager stays off, and pods' limits are not kept",
    source: "cilium/cilium Documentation/operations/system_requirements.rst",
    fix: "a person installs the distribution's standard kernel and its module packages, and reboots",
    catalogue: &["KERN-006"],
    judge: |facts, _| judge(facts, "bandwidth-manager", STANDARD_KERNEL),
};

pub(super) const BBR: Requirement = Requirement {
    id: "bbr",
    area: Area::Kernel,
    profiles: &[Profile::Bbr],
    title: "the kernel has BBR, and keeps pods' time stamps",
    why: "the Cilium agent exits: BBR for pods needs a kernel that does not clear their packets' departure times",
    source: "cilium/cilium pkg/datapath/linux/bandwidth/bandwidth.go",
    fix: "a person sets bbr = false in [cluster], or installs a newer kernel and reboots",
    catalogue: &["KERN-006"],
    judge: |facts, _| {
        judge(facts, "bbr", "set bbr = false in [cluster], or install a newer kernel and reboot")
    },
};

pub(super) const NETKIT: Requirement = Requirement {
    id: "netkit",
    area: Area::Kernel,
    profiles: &[Profile::Netkit],
    title: "the kernel has netkit",
    why: "the Cilium agent exits: it cannot connect a pod",
    source: "cilium/cilium Documentation/operations/performance/tuning.rst",
    fix: "a person sets netkit = false in [cluster], or installs a newer kernel and reboots",
    catalogue: &["KERN-006"],
    judge: |facts, _| {
        judge(facts, "netkit", "set netkit = false in [cluster], or install a newer kernel and reboot")
    },
};

pub(super) const AMBIENT: Requirement = Requirement {
    id: "ambient-modules",
    area: Area::Kernel,
    profiles: &[Profile::Ambient],
    title: "the modules that Istio ambient uses are loaded",
    why: "istio-cni cannot load modules from its container: pods stay outside of the mesh, or do not start",
    source: "istio/istio.io docs/ops/deployment/platform-requirements",
    fix: "bramble loads the modules, now and at each boot; those that the kernel lacks come with the \
          distribution's standard kernel",
    catalogue: &["KERN-006"],
    judge: |facts, _| {
        // Kernels from 6.17 may be built without the legacy back end of iptables; Debian's iptables uses the other
        // unless told otherwise.
        let legacy = stand(facts, &["ambient-legacy"])?.lacking.is_empty();
        let back_end = if legacy { "ambient-legacy" } else { "ambient-nft" };
        let Standing { lacking, idle, .. } = stand(facts, &["ambient", back_end])?;
        if !lacking.is_empty() {
            return lacks(&lacking, STANDARD_KERNEL);
        }
        let at_boot = facts.modules.at_boot.as_ref()?;
        let modules = TABLE
            .iter()
            .filter(|row| ["ambient", back_end].contains(&row.feature) && row.severity == Severity::Required)
            .filter(|row| !row.module.is_empty())
            .count();
        let forgotten: Vec<&'static str> = idle.into_iter().filter(|name| !at_boot.contains(*name)).collect();
        if forgotten.is_empty() {
            return Finding::met(format!("{modules} modules"));
        }
        Finding::unmet(
            format!("{} of {modules} modules are not loaded, and not named for boot", forgotten.len()),
            [Change::LoadModules { names: forgotten.into_iter().map(Into::into).collect() }],
        )
    },
};

pub(super) const LONGHORN: Requirement = Requirement {
    id: "longhorn-modules",
    area: Area::Kernel,
    profiles: &[Profile::Longhorn],
    title: "the kernel has what Longhorn's volumes use",
    why: "volumes do not attach, and pods that use them do not start",
    source: "longhorn/cli pkg/local/preflight/checker.go",
    fix: "a person installs the distribution's standard kernel and its module packages, and reboots",
    catalogue: &["STOR-005"],
    judge: |facts, _| judge(facts, "longhorn", STANDARD_KERNEL),
};

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_row_of_the_table_belongs_to_a_feature_that_is_judged() {
        let mut seen = HashSet::new();
        for row in TABLE.iter() {
            assert!(FEATURES.iter().any(|(_, features)| features.contains(&row.feature)), "{row:?}");
            assert!(row.feature != "system" || row.severity == Severity::Told, "{row:?}");
            assert!(row.option.starts_with("CONFIG_"), "{row:?}");
            assert!(seen.insert((row.feature, row.option, row.module)), "{row:?} stands twice");
        }
        for (id, features) in FEATURES {
            assert!(super::super::REQUIREMENTS.iter().any(|requirement| requirement.id == id), "{id}");
            for feature in features {
                assert!(TABLE.iter().any(|row| row.feature == *feature), "{feature}");
            }
        }
    }

    #[test]
    fn the_oldest_kernel_of_a_feature_is_a_version() {
        assert_eq!(oldest_kernel("cilium-agent"), Some((5, 10)));
        assert_eq!(oldest_kernel("netkit"), Some((6, 8)));
        assert_eq!(oldest_kernel("vxlan"), None);
    }
}
