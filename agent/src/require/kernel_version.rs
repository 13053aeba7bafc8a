//! The kernel is new enough for Cilium.

use super::{Area, Finding, Requirement};
use crate::facts::kernel::Version;

/// Cilium 1.18 to 1.20; K3s and Istio ask for less.
const FLOOR: Version = (5, 10);

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "kernel-version",
    area: Area::Kernel,
    title: "the kernel is new enough for Cilium",
    why: "the Cilium agent exits at its start, and no pod gets a network",
    source: "cilium/cilium Documentation/operations/system_requirements.rst",
    catalogue: &[],
    judge: |facts, _| {
        let (major, minor) = facts.kernel.version()?;
        let release = facts.kernel.release.as_ref()?;
        let floor = format!("{}.{}", FLOOR.0, FLOOR.1);
        if (major, minor) >= FLOOR {
            return Finding::met(format!("{release}, at least {floor}"));
        }
        Finding::blocked(
            format!("the kernel is {release}, Cilium asks for {floor}"),
            "sudo apt full-upgrade, then reboot; if that brings no newer kernel, install a newer release",
        )
    },
};
