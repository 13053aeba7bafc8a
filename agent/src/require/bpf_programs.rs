//! The kernel loads the BPF program types that Cilium and bramble's companion use.

use super::{Area, Finding, Requirement};
use crate::config::cluster::Profile;
use crate::facts::Facts;

/// What stands behind those types in the kernel's configuration.
const OPTIONS: &[&str] =
    &["CONFIG_BPF_SYSCALL", "CONFIG_CGROUP_BPF", "CONFIG_NET_CLS_BPF", "CONFIG_BPF_EVENTS"];

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "bpf-programs",
    area: Area::Kernel,
    profiles: &[Profile::Node],
    title: "the kernel loads the BPF programs of Cilium and bramble",
    why: "without the network types Cilium does not start; without the tracing types bramble counts drops \
          without their reasons",
    source: "cilium/cilium Documentation/operations/system_requirements.rst; kernel/trace/Kconfig BPF_EVENTS",
    fix: "a person installs the distribution's standard kernel and its module packages, and reboots",
    catalogue: &["KERN-004"],
    judge: |facts, _| {
        let programs = match &facts.bpf.programs {
            Ok(programs) => programs,
            // Not tried, for lack of rights or of the machine: the configuration can still prove it.
            Err(unreadable) if configured(facts) => {
                return Finding::met(format!(
                    "by the kernel's configuration; not tried ({})",
                    unreadable.why
                ));
            }
            Err(unreadable) => return Err(unreadable.into()),
        };
        let refused: Vec<String> = programs
            .iter()
            .filter(|(_, loads)| !loads)
            .map(|(program, _)| format!("{} ({})", program.name, program.for_what))
            .collect();
        if refused.is_empty() {
            return Finding::met(format!("{} program types loaded", programs.len()));
        }
        Finding::blocked(
            format!("the kernel refuses {}", refused.join(", ")),
            "install the distribution's standard kernel and reboot",
        )
    },
};

fn configured(facts: &Facts) -> bool {
    matches!(&facts.kernel_config, Ok(config) if OPTIONS.iter().all(|option| config.is_set(option)))
}
