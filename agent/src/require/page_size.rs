//! Memory pages have the size that container images expect.

use super::{Area, Finding, Requirement};
use crate::config::cluster::Profile;

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "page-size",
    area: Area::Kernel,
    profiles: &[Profile::Node],
    title: "memory pages are 4 KiB",
    why: "programs with a jemalloc built for 4 KiB pages abort with \"Unsupported system page size\": their \
          pods restart for ever on this node and run on others",
    source: "raspberrypi/bookworm-feedback#107; fluent/fluent-bit#9730; static-web-server/static-web-server#440",
    catalogue: &["KERN-002"],
    judge: |facts, _| {
        let size = *facts.address_space.page_size.as_ref()?;
        if size == 4096 {
            return Finding::met("4 KiB");
        }
        let next = if facts.board.is_raspberry_pi() == Ok(true) {
            "either keep such images off this node and accept it (accept = [\"page-size\"] in [cluster]), or set \
             kernel=kernel8.img in config.txt and reboot: 4 KiB pages, but 39 address bits (see address-bits)"
        } else {
            "either keep such images off this node and accept it (accept = [\"page-size\"] in [cluster]), or \
             install a kernel with 4 KiB pages"
        };
        Finding::blocked(format!("pages are {} KiB", size / 1024), next)
    },
};
