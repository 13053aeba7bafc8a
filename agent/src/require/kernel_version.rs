//! The kernel is new enough for Cilium.

use super::{Area, Finding, Requirement, option};
use crate::config::cluster::Profile;

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "kernel-version",
    area: Area::Kernel,
    profiles: &[Profile::Cilium],
    title: "the kernel is new enough for Cilium",
    why: "the Cilium agent exits at its start, and no pod gets a network",
    source: "cilium/cilium Documentation/operations/system_requirements.rst",
    fix: "a person upgrades the distribution or its kernel, and reboots",
    catalogue: &[],
    judge: |facts, _| {
        let (major, minor) = facts.kernel.version()?;
        let release = facts.kernel.release.as_ref()?;
        // Cilium 1.18 to 1.20; K3s and Istio ask for less.
        let Some(oldest) = option::oldest_kernel("cilium-agent") else {
            return Finding::not_needed("Cilium names no oldest kernel");
        };
        let floor = format!("{}.{}", oldest.0, oldest.1);
        if (major, minor) >= oldest {
            return Finding::met(format!("{release}, at least {floor}"));
        }
        Finding::blocked(
            format!("the kernel is {release}, Cilium asks for {floor}"),
            "sudo apt full-upgrade, then reboot; if that brings no newer kernel, install a newer release",
        )
    },
};
