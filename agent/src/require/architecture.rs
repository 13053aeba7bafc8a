//! Kernel and programs are both 64-bit.

use super::{Area, Finding, Requirement};
use crate::config::cluster::Profile;

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "architecture",
    area: Area::Kernel,
    profiles: &[Profile::K3s, Profile::Cilium],
    title: "kernel and programs are 64-bit",
    why: "Cilium's images are built for 64-bit alone, and K3s fails with \"Exec format error\" when its \
          download was chosen by the kernel and the programs are 32-bit",
    source: "k3s-io/k3s#13442, #13273; cilium/cilium Documentation/operations/system_requirements.rst",
    fix: "a person writes a 64-bit image to the boot medium",
    catalogue: &["BOOT-005"],
    judge: |facts, _| {
        let machine = facts.kernel.machine.as_ref()?;
        let userland = *facts.kernel.userland.as_ref()?;
        if machine == userland && ["aarch64", "x86_64"].contains(&userland) {
            return Finding::met(userland);
        }
        Finding::blocked(
            format!("the kernel is {machine}, the programs are built for {userland}"),
            "write a 64-bit image (Raspberry Pi OS 64-bit, Debian arm64, Ubuntu arm64) to the boot medium",
        )
    },
};
