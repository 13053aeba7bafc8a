//! BPF programs are compiled and not interpreted.

use super::{Area, Finding, Requirement};
use crate::change::Change;
use crate::config::cluster::Profile;

const KEY: &str = "net.core.bpf_jit_enable";

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "bpf-jit",
    area: Area::Kernel,
    profiles: &[Profile::Cilium],
    title: "BPF programs are compiled (JIT)",
    why: "interpreted, Cilium's programs take several times the processor for every packet",
    source: "cilium/cilium pkg/datapath/loader/base.go",
    fix: "bramble sets net.core.bpf_jit_enable to 1; a kernel without the compiler a person replaces by the \
          distribution's",
    catalogue: &[],
    judge: |facts, _| {
        // Only root may read the setting; a kernel without an interpreter needs no setting.
        if matches!(&facts.kernel_config, Ok(config) if config.is_set("CONFIG_BPF_JIT_ALWAYS_ON")) {
            return Finding::met("the kernel was built with the compiler alone");
        }
        match facts.sysctl.value(KEY)? {
            Some("0") => {
                Finding::unmet(format!("{KEY} is 0"), [Change::Sysctl { key: KEY.into(), value: "1".into() }])
            }
            Some(value) => Finding::met(format!("{KEY} is {value}")),
            None => Finding::blocked(
                "this kernel has no BPF compiler",
                "install the distribution's standard kernel and reboot",
            ),
        }
    },
};
