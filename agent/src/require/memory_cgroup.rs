//! The memory controller of control groups is on.

use super::{Area, Finding, Requirement, removal};
use crate::config::cluster::Profile;
use crate::facts::boot_file::Argument;
use crate::facts::cmdline::Cmdline;

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "memory-cgroup",
    area: Area::Mount,
    profiles: &[Profile::K3s],
    title: "the memory controller is on",
    why: "K3s exits with \"failed to find memory cgroup\"",
    source: "raspberrypi/linux#6980, #6439; k3s-io/k3s#2067; RPi-Distro/pi-gen#917",
    fix: "bramble adds cgroup_enable=memory to the kernel's arguments, which counts after a reboot; in another \
          boot loader a person does",
    catalogue: &["BOOT-001"],
    judge: |facts, _| {
        let Some(controllers) = facts.controllers.as_ref()? else {
            return Finding::waiting("there is no unified hierarchy yet: see cgroup-v2");
        };
        if controllers.has("memory") {
            return Finding::met("memory is in /sys/fs/cgroup/cgroup.controllers");
        }
        let what = "memory is not in /sys/fs/cgroup/cgroup.controllers";
        let running = facts.cmdline.as_ref()?;
        // Raspberry Pi's own argument; on other boards memory is on unless somebody switched it off.
        if running.has(DISABLE) && !facts.board.is_raspberry_pi()? {
            return Finding::blocked(
                what,
                "take cgroup_disable=memory out of the boot loader's kernel arguments and reboot",
            );
        }
        let release = facts.kernel.release.as_ref()?;
        let knows_enable = knows_enable(release);
        if let Some(file) = facts.boot_file.as_ref()? {
            let disables =
                |line: &Cmdline| if knows_enable { is_taken_back(line) } else { line.has(DISABLE) };
            if disables(&file.cmdline()) {
                return Finding::unmet(what, removal(file, DISABLE));
            }
            let was_by_file = match knows_enable {
                true => is_taken_back(running) && file.cmdline().has(ENABLE),
                false => is_by_file(running, &file.cmdline()),
            };
            if was_by_file {
                return Finding::waiting(format!(
                    "{} does not switch it off any more, which counts after a reboot: sudo reboot",
                    file.path
                ));
            }
        }
        if !knows_enable && facts.argument(ENABLE)? != Argument::NotMounted {
            return match running.has(DISABLE) {
                true => Finding::blocked(
                    format!(
                        "{what}: the firmware switches it off, and kernel {release} does not know {ENABLE}"
                    ),
                    "boot the kernel of Raspberry Pi OS, or a device tree without cgroup_disable=memory",
                ),
                false => Finding::blocked(
                    format!(
                        "{what}, no argument switches it off, and kernel {release} does not know {ENABLE}"
                    ),
                    "install the distribution's standard kernel and reboot; in a container, check the machine itself",
                ),
            };
        }
        Finding::lacks_argument(facts, ENABLE, what)
    },
};

const ENABLE: &str = "cgroup_enable=memory";
const DISABLE: &str = "cgroup_disable=memory";

/// Whether the line switches it on and, later, off again: from 6.12 on the later word counts. The firmware's own
/// "off" stands before what cmdline.txt says.
fn is_taken_back(line: &Cmdline) -> bool {
    line.has(ENABLE)
        && line.tokens().filter(|token| [ENABLE, DISABLE].contains(token)).last() == Some(DISABLE)
}

/// Whether what switches it off stood in the boot file when the machine booted: the firmware's own stands before all that
/// the file says.
fn is_by_file(running: &Cmdline, file: &Cmdline) -> bool {
    running.tokens().skip_while(|token| !file.has(token)).any(|token| token == DISABLE)
}

/// Only kernels built from Raspberry Pi's tree take [`ENABLE`]: Raspberry Pi OS names them so, Ubuntu "raspi". Others
/// ignore it, and memory is on there unless something switches it off.
fn knows_enable(release: &str) -> bool {
    ["rpi", "rpt", "raspi", "-v7", "-v8"].iter().any(|mark| release.contains(mark))
}
