//! The options a kernel must be built with, whatever is done to the host: one table a component.
//!
//! Options that a module stands for are judged by the module (`module`), and netfilter's by what works.

use super::{Area, Finding, Requirement, Verdict};
use crate::facts::Facts;

/// The base of Cilium's system requirements.
const CILIUM_BASE: &[&str] = &[
    "CONFIG_BPF",
    "CONFIG_BPF_SYSCALL",
    "CONFIG_NET_CLS_BPF",
    "CONFIG_BPF_JIT",
    "CONFIG_NET_CLS_ACT",
    "CONFIG_NET_SCH_INGRESS",
    "CONFIG_CRYPTO_SHA1",
    "CONFIG_CRYPTO_USER_API_HASH",
    "CONFIG_CGROUPS",
    "CONFIG_CGROUP_BPF",
    "CONFIG_PERF_EVENTS",
    "CONFIG_SCHEDSTATS",
    "CONFIG_FIB_RULES",
];

/// What K3s' check-config.sh calls required, without bridges and iptables: with Cilium neither K3s nor the
/// kubelet uses them.
const K3S_REQUIRED: &[&str] = &[
    "CONFIG_NAMESPACES",
    "CONFIG_NET_NS",
    "CONFIG_PID_NS",
    "CONFIG_IPC_NS",
    "CONFIG_UTS_NS",
    "CONFIG_CGROUPS",
    "CONFIG_CGROUP_CPUACCT",
    "CONFIG_CGROUP_DEVICE",
    "CONFIG_CGROUP_FREEZER",
    "CONFIG_CGROUP_PIDS",
    "CONFIG_CGROUP_SCHED",
    "CONFIG_CPUSETS",
    "CONFIG_MEMCG",
    "CONFIG_KEYS",
    "CONFIG_POSIX_MQUEUE",
    "CONFIG_SECCOMP",
    "CONFIG_VETH",
];

pub(super) const CILIUM: Requirement = Requirement {
    id: "kernel-options-cilium",
    area: Area::Kernel,
    title: "the kernel was built with what Cilium needs",
    why: "the Cilium agent exits at its start, or a function fails when it is first used",
    source: "cilium/cilium Documentation/operations/system_requirements.rst",
    catalogue: &["KERN-006"],
    judge: |facts, _| all(facts, CILIUM_BASE),
};

pub(super) const K3S: Requirement = Requirement {
    id: "kernel-options-k3s",
    area: Area::Kernel,
    title: "the kernel was built with what K3s needs",
    why: "K3s exits at its start, or containers cannot be made",
    source: "k3s-io/k3s contrib/util/check-config.sh",
    catalogue: &[],
    judge: |facts, _| all(facts, K3S_REQUIRED),
};

fn all(facts: &Facts, options: &[&str]) -> Verdict {
    let config = facts.kernel_config.as_ref()?;
    let lacking: Vec<&str> = options.iter().copied().filter(|option| !config.is_set(option)).collect();
    if lacking.is_empty() {
        return Finding::met(format!("{} options in {}", options.len(), config.path));
    }
    Finding::blocked(
        format!("{} lacks {}", config.path, lacking.join(", ")),
        "install the distribution's standard kernel and reboot",
    )
}
