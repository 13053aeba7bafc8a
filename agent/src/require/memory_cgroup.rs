//! The memory controller of control groups is on.

use super::{Area, Finding, Requirement};
use crate::config::cluster::Profile;

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
        if facts.cmdline.as_ref()?.has("cgroup_disable=memory") && !facts.board.is_raspberry_pi()? {
            return Finding::blocked(
                what,
                "take cgroup_disable=memory out of the boot loader's kernel arguments and reboot",
            );
        }
        Finding::lacks_argument(facts, "cgroup_enable=memory", what)
    },
};
