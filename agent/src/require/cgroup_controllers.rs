//! The controllers of control groups that K3s and the kubelet demand, besides memory.

use super::{Area, Finding, Requirement};
use crate::config::cluster::Profile;

const NEEDED: &[&str] = &["cpu", "cpuset", "pids"];

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "cgroup-controllers",
    area: Area::Mount,
    profiles: &[Profile::K3s],
    title: "the controllers cpu, cpuset and pids are on",
    why: "K3s exits with \"failed to find cpuset cgroup\", or the kubelet with \"pids cgroup controller not found\"",
    source: "k3s-io/k3s pkg/cgroups/cgroups_linux.go",
    fix: "a person takes cgroup_disable= and cgroup_no_v1= that name them out of the kernel's arguments, and \
          reboots; for the memory controller see memory-cgroup",
    catalogue: &["BOOT-001"],
    judge: |facts, _| {
        let Some(controllers) = facts.controllers.as_ref()? else {
            return Finding::waiting("there is no unified hierarchy yet: see cgroup-v2");
        };
        let lacking: Vec<&str> = NEEDED.iter().copied().filter(|name| !controllers.has(name)).collect();
        if lacking.is_empty() {
            return Finding::met(controllers.names().join(" "));
        }
        Finding::blocked(
            format!("/sys/fs/cgroup/cgroup.controllers lacks {}", lacking.join(", ")),
            "take cgroup_disable= and cgroup_no_v1= arguments that name them out of the kernel's arguments, and reboot",
        )
    },
};
