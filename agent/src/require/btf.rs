//! Whether the kernel describes its own types.

use super::{Area, Finding, Requirement};
use crate::config::cluster::Profile;

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "btf",
    area: Area::Kernel,
    profiles: &[Profile::Node],
    title: "the kernel describes its types (BTF)",
    why: "tools that relocate themselves by BTF (CO-RE), such as most eBPF profilers, do not load; Cilium and \
          bramble do",
    source: "raspberrypi/linux#6622",
    fix: "none is needed: Cilium and bramble work without; who wants CO-RE tools installs a kernel with BTF",
    catalogue: &["KERN-003"],
    judge: |facts, _| {
        if *facts.bpf.btf.as_ref()? {
            return Finding::met("/sys/kernel/btf/vmlinux");
        }
        Finding::not_needed("this kernel has no BTF; Cilium and bramble work without, CO-RE tools do not")
    },
};
