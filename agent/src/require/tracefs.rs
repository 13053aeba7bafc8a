//! The tracing file system is mounted.

use super::{Area, Finding, Requirement};
use crate::change::Change;
use crate::config::cluster::Profile;

const POINT: &str = "/sys/kernel/tracing";

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "tracefs",
    area: Area::Mount,
    profiles: &[Profile::Node],
    title: "the tracing file system is mounted",
    why: "bramble's companion reads there where the kernel keeps drop reasons: without it drops are counted and \
          not explained",
    source: "Linux Documentation/trace/ftrace.rst",
    fix: "bramble mounts tracefs on /sys/kernel/tracing",
    catalogue: &["KERN-004"],
    judge: |facts, _| {
        let mounts = facts.mounts.as_ref()?;
        let found = [POINT, "/sys/kernel/debug/tracing"]
            .into_iter()
            .find(|point| mounts.top(point).is_some_and(|mount| mount.kind == "tracefs"));
        match found {
            Some(point) => Finding::met(format!("tracefs on {point}")),
            None => Finding::unmet(
                format!("tracefs is not mounted on {POINT}"),
                [Change::Mount { kind: "tracefs".into(), point: POINT.into() }],
            ),
        }
    },
};
