//! Memory pages have the size that container images expect.

use super::{Area, Finding, Requirement};
use crate::change::Change;
use crate::config::cluster::Profile;

/// The kernel with 4 KiB pages; the firmware of a Raspberry Pi 5 takes the other, with 16 KiB, unless told so.
const KERNEL: &str = "kernel8.img";

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "page-size",
    area: Area::Kernel,
    profiles: &[Profile::Node],
    title: "memory pages are 4 KiB",
    why: "programs with a jemalloc built for 4 KiB pages abort with \"Unsupported system page size\": their \
          pods restart for ever on this node and run on others",
    source: "raspberrypi/bookworm-feedback#107; fluent/fluent-bit#9730; static-web-server/static-web-server#440",
    fix: "bramble sets kernel=kernel8.img in config.txt where no Envoy is wanted, with the owner's consent; else a \
          person chooses: other images, no Envoy on the node, or Debian's or Ubuntu's kernel",
    catalogue: &["KERN-002"],
    judge: |facts, config| {
        let size = *facts.address_space.page_size.as_ref()?;
        if size == 4096 {
            return Finding::met("4 KiB");
        }
        let pages = format!("pages are {} KiB", size / 1024);
        // Only Raspberry Pi's own kernels come in a pair of which the firmware may take the other.
        let release = facts.kernel.release.as_ref()?;
        let is_one_of_a_pair = ["2712", "-v8-16k"].iter().any(|mark| release.contains(mark));
        if !is_one_of_a_pair || facts.board.is_raspberry_pi() != Ok(true) {
            return Finding::blocked(
                pages,
                "either keep such images off this node and accept it (accept = [\"page-size\"] in [cluster]), or \
                 install a kernel with 4 KiB pages",
            );
        }
        // Each of the two kernels has what the other lacks; which of it is used here decides.
        let needs_bits = config.cluster.chose(Profile::Envoy) || config.cluster.chose(Profile::Ambient);
        if needs_bits {
            return Finding::blocked(
                format!(
                    "{pages}, with enough address bits for Envoy; {KERNEL} has 4 KiB pages and 39 bits, too few for Envoy"
                ),
                "choose: keep images with jemalloc off this node and accept it (accept = [\"page-size\"] in [cluster]); \
                 or keep Envoy off it (envoy = false and ambient = false), and bramble plans kernel=kernel8.img; or run \
                 Debian's or Ubuntu's kernel, which has both",
            );
        }
        let Some(firmware) = facts.firmware.as_ref()? else {
            return Finding::blocked(
                format!("{pages}, and the boot partition is not mounted"),
                "sudo mount /boot/firmware, then check again",
            );
        };
        if firmware.value("kernel")? == Some(KERNEL) {
            return Finding::waiting(format!(
                "kernel={KERNEL} stands in {} and counts after a reboot: sudo reboot",
                firmware.path
            ));
        }
        Finding::unmet(
            format!(
                "{pages}; {KERNEL} has 4 KiB pages, and with 39 address bits no room for an Envoy, which is not wanted here"
            ),
            [Change::FirmwareSetting {
                path: firmware.path.clone().into(),
                key: "kernel".into(),
                value: KERNEL.into(),
            }],
        )
    },
};
