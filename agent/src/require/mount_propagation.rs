//! What a container mounts can be seen by the host and by other containers.

use super::{Area, Finding, Requirement};
use crate::change::Change;
use crate::config::cluster::Profile;

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "mount-propagation",
    area: Area::Mount,
    profiles: &[Profile::Cilium],
    title: "mounts are shared between host and containers",
    why: "the Cilium agent does not start (\"not a shared mount\"), and volumes stay empty",
    source: "cilium/charts mountPropagation: Bidirectional",
    fix: "bramble makes the mounts that are named shared",
    catalogue: &[],
    judge: |facts, _| {
        let mounts = facts.mounts.as_ref()?;
        let private: Vec<&str> = ["/", "/sys/fs/bpf"]
            .into_iter()
            .filter(|point| mounts.top(point).is_some_and(|mount| !mount.shared))
            .collect();
        if private.is_empty() {
            return Finding::met("/ is shared");
        }
        Finding::unmet(
            format!("{} not shared", private.join(" and ")),
            private.into_iter().map(|point| Change::ShareMount { point: point.into() }).collect::<Vec<_>>(),
        )
    },
};
