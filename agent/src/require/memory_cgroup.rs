//! The memory controller of control groups is on.

use super::{Area, Finding, Requirement, removal};
use crate::config::cluster::Profile;
use crate::facts::boot_file::Argument;

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "memory-cgroup",
    area: Area::Mount,
    profiles: &[Profile::K3s],
    title: "the memory controller is on",
    why: "K3s exits with \"failed to find memory cgroup\"",
    source: "raspberrypi/linux#6980, #6439; k3s-io/k3s#2067; RPi-Distro/pi-gen#917",
    catalogue: &["BOOT-001"],
    judge: |facts, _| {
        let Some(controllers) = facts.controllers.as_ref()? else {
            return Finding::waiting("there is no unified hierarchy yet: see cgroup-v2");
        };
        if controllers.has("memory") {
            return Finding::met("memory is in /sys/fs/cgroup/cgroup.controllers");
        }
        let what = "memory is not in /sys/fs/cgroup/cgroup.controllers";
        // Raspberry Pi's own argument; on other boards memory is on unless somebody switched it off.
        if facts.cmdline.as_ref()?.has(DISABLE) && !facts.board.is_raspberry_pi()? {
            return Finding::blocked(
                what,
                "take cgroup_disable=memory out of the boot loader's kernel arguments and reboot",
            );
        }
        let release = facts.kernel.release.as_ref()?;
        if !knows_enable(release) {
            if let Some(file) = facts.boot_file.as_ref()?
                && file.cmdline().has(DISABLE)
            {
                return Finding::unmet(what, removal(file, DISABLE));
            }
            if facts.argument(ENABLE)? == Argument::Running {
                return Finding::blocked(
                    format!(
                        "{what}: the firmware switches it off, and kernel {release} does not know {ENABLE}"
                    ),
                    "boot the kernel of Raspberry Pi OS, or a device tree without cgroup_disable=memory",
                );
            }
        }
        Finding::lacks_argument(facts, ENABLE, what)
    },
};

const ENABLE: &str = "cgroup_enable=memory";
const DISABLE: &str = "cgroup_disable=memory";

/// Only kernels built from Raspberry Pi's tree take [`ENABLE`]: Raspberry Pi OS names them so, Ubuntu "raspi". Others
/// ignore it, and memory is on there unless something switches it off.
fn knows_enable(release: &str) -> bool {
    ["rpi", "rpt", "raspi", "-v7", "-v8"].iter().any(|mark| release.contains(mark))
}
