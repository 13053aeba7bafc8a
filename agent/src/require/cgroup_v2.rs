//! The unified hierarchy of control groups is the only one.

use super::{Area, Finding, Requirement, removal};
use crate::config::cluster::Profile;

const POINT: &str = "/sys/fs/cgroup";
const FORCED: &str = "systemd.unified_cgroup_hierarchy=0";

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "cgroup-v2",
    area: Area::Mount,
    profiles: &[Profile::K3s, Profile::Cilium],
    title: "control groups are version 2 alone",
    why: "Cilium hangs its socket load balancer on the root of version 2: mounted elsewhere, service addresses \
          do not answer although Cilium says they do",
    source: "k3s-io/k3s pkg/cgroups; cilium/charts cgroup.hostRoot",
    fix: "bramble takes systemd.unified_cgroup_hierarchy=0 out of cmdline.txt, which counts after a reboot; in \
          another boot loader a person does",
    catalogue: &["BOOT-001"],
    judge: |facts, _| {
        let mounts = facts.mounts.as_ref()?;
        let kind = match mounts.top(POINT) {
            Some(mount) if mount.kind == "cgroup2" => return Finding::met(format!("cgroup2 on {POINT}")),
            Some(mount) => format!("{POINT} is {}, not cgroup2", mount.kind),
            None => format!("nothing is mounted on {POINT}"),
        };
        match facts.boot_file.as_ref()? {
            Some(file) if file.cmdline().has(FORCED) => Finding::unmet(kind, removal(file, FORCED)),
            _ if facts.cmdline.as_ref()?.has(FORCED) => Finding::blocked(
                kind,
                format!("take {FORCED} out of the boot loader's kernel arguments and reboot"),
            ),
            _ => Finding::blocked(
                kind,
                "boot a system whose systemd mounts version 2 alone: Debian 11, Ubuntu 22.04 and later do",
            ),
        }
    },
};
