//! No reboot is pending.

use super::{Area, Finding, Requirement};
use crate::config::cluster::Profile;
use crate::facts::{Fact, Facts};

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "reboot",
    area: Area::Boot,
    profiles: &[Profile::Node],
    title: "no reboot is pending",
    why: "what was changed is not in force, and the node reboots at a moment that nobody chose",
    source: "kubereboot/kured README; raspberrypi/linux#4616",
    fix: "a person reboots: sudo reboot",
    catalogue: &["OS-002", "BOOT-002"],
    judge: |facts, _| {
        // One reason is enough, whatever could not be read of the others.
        let parts = [written(facts), newer(facts), asked(facts)];
        let reasons: Vec<&str> = parts.iter().flatten().flatten().map(String::as_str).collect();
        if !reasons.is_empty() {
            return Finding::waiting(format!("a reboot is pending: {}", reasons.join("; ")));
        }
        for part in parts {
            part?;
        }
        Finding::met(format!("{} is the newest kernel here", facts.kernel.release.as_ref()?))
    },
};

/// Arguments in the boot file that the running kernel did not get.
fn written(facts: &Facts) -> Fact<Option<String>> {
    let Some(file) = facts.boot_file.as_ref()? else { return Ok(None) };
    let running = facts.cmdline.as_ref()?;
    let line = file.cmdline();
    // The firmware fills in the root device and the consoles, which then differ by name alone.
    let firmware = ["root=", "console="];
    let pending: Vec<&str> = line
        .tokens()
        .filter(|token| !firmware.iter().any(|prefix| token.starts_with(prefix)) && !running.has(token))
        .collect();
    Ok((!pending.is_empty()).then(|| format!("{} asks for {}", file.path, pending.join(" "))))
}

fn newer(facts: &Facts) -> Fact<Option<String>> {
    let release = facts.kernel.release.as_ref()?;
    let newer = facts.reboot.newer_than(release)?;
    Ok(newer.map(|newer| format!("kernel {newer} is installed, {release} runs")))
}

fn asked(facts: &Facts) -> Fact<Option<String>> {
    let required = *facts.reboot.required.as_ref()?;
    Ok(required.then(|| "a package asks for it in /run/reboot-required".to_string()))
}
