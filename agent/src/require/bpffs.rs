//! The BPF file system is mounted, once.

use super::{Area, Finding, Requirement};
use crate::change::Change;
use crate::config::cluster::Profile;

const POINT: &str = "/sys/fs/bpf";

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "bpffs",
    area: Area::Mount,
    profiles: &[Profile::Cilium],
    title: "the BPF file system is mounted once on /sys/fs/bpf",
    why: "Cilium keeps its maps there: mounted by its container alone they are lost at every restart, and with \
          them all connections; mounted twice one half of them is hidden",
    source: "cilium/charts mount-bpf-fs; cilium/cilium-cli pkg/defaults",
    fix: "bramble mounts bpf on /sys/fs/bpf; what else is mounted there a person takes away",
    catalogue: &[],
    judge: |facts, _| {
        let mounts = facts.mounts.as_ref()?;
        let Some(top) = mounts.top(POINT) else {
            return Finding::unmet(
                format!("nothing is mounted on {POINT}"),
                [Change::Mount { kind: "bpf".into(), point: POINT.into() }],
            );
        };
        match (top.kind.as_str(), mounts.at(POINT).count()) {
            // systemd's automount lies below what it has mounted.
            ("bpf", count)
                if count == 1 + mounts.at(POINT).filter(|mount| mount.kind == "autofs").count() =>
            {
                Finding::met(format!("bpf on {POINT}"))
            }
            ("bpf", count) => Finding::blocked(
                format!("bpf is mounted {count} times on {POINT}"),
                format!("stop Cilium on this node, sudo umount {POINT} until one is left, start it again"),
            ),
            (other, _) => Finding::blocked(
                format!("{POINT} is {other}, not bpf"),
                format!("find what mounts it (findmnt {POINT}), stop that, and sudo umount {POINT}"),
            ),
        }
    },
};
