//! No reboot is pending.

use super::{Area, Finding, Requirement};
use crate::config::cluster::Profile;

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "reboot",
    area: Area::Boot,
    profiles: &[Profile::Node],
    title: "no reboot is pending",
    why: "what was changed is not in force, and the node reboots at a moment that nobody chose",
    source: "kubereboot/kured README; raspberrypi/linux#4616",
    catalogue: &["OS-002", "BOOT-002"],
    judge: |facts, _| {
        let mut reasons = Vec::new();
        if let Some(file) = facts.boot_file.as_ref()? {
            let running = facts.cmdline.as_ref()?;
            let written = file.cmdline();
            // The firmware fills in the root device and the consoles, which then differ by name alone.
            let firmware = ["root=", "console="];
            let pending: Vec<&str> = written
                .tokens()
                .filter(|token| {
                    !firmware.iter().any(|prefix| token.starts_with(prefix)) && !running.has(token)
                })
                .collect();
            if !pending.is_empty() {
                reasons.push(format!("{} asks for {}", file.path, pending.join(" ")));
            }
        }
        let release = facts.kernel.release.as_ref()?;
        if let Some(newer) = facts.reboot.newer_than(release)? {
            reasons.push(format!("kernel {newer} is installed, {release} runs"));
        }
        if *facts.reboot.required.as_ref()? {
            reasons.push("a package asks for it in /run/reboot-required".into());
        }
        if reasons.is_empty() {
            return Finding::met(format!("{release} is the newest kernel here"));
        }
        Finding::waiting(format!("a reboot is pending: {}", reasons.join("; ")))
    },
};
