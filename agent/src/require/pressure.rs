//! The kernel accounts for time lost to a lack of memory, processor or disk.

use super::{Area, Finding, Requirement};
use crate::config::cluster::Profile;

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "pressure",
    area: Area::Boot,
    profiles: &[Profile::Node],
    title: "the kernel accounts for pressure (PSI)",
    why: "a node that runs out of memory or waits for its disk gives no sign before it stops answering",
    source: "raspberrypi/linux#4683; raspberrypi/linux bcm2712_defconfig (PSI_DEFAULT_DISABLED)",
    fix: "bramble adds psi=1 to the kernel's arguments, which counts after a reboot; in another boot loader a \
          person does",
    catalogue: &["BOOT-004"],
    judge: |facts, _| {
        if *facts.memory.pressure.as_ref()? {
            return Finding::met("/proc/pressure/memory");
        }
        Finding::lacks_argument(facts, "psi=1", "the kernel does not account for pressure")
    },
};
