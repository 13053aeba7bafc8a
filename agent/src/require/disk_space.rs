//! There is room for images and volumes.

use super::{Area, Finding, Requirement};
use crate::config::cluster::Profile;

/// Where the kubelet of Kubernetes begins to evict pods.
const FREE_PERCENT: u64 = 10;
const GIB: u64 = 1 << 30;

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "disk-space",
    area: Area::Storage,
    profiles: &[Profile::K3s],
    title: "there is room below /var",
    why: "the kubelet evicts pods from a disk that is nearly full, and the images they need no longer fit",
    source: "Kubernetes node-pressure eviction (nodefs.available<10%)",
    fix: "a person frees room: sudo apt clean, sudo journalctl --vacuum-size=100M, sudo k3s crictl rmi --prune",
    catalogue: &["OS-003"],
    judge: |facts, _| {
        let room = facts.room.as_ref()?;
        let percent = (u128::from(room.free) * 100).checked_div(room.size.into()).unwrap_or(0);
        let state = format!("{percent} percent free, {:.1} of {:.1} GiB", gib(room.free), gib(room.size));
        if percent >= FREE_PERCENT.into() {
            return Finding::met(state);
        }
        Finding::blocked(
            state,
            "free some: sudo apt clean, sudo journalctl --vacuum-size=100M, sudo k3s crictl rmi --prune",
        )
    },
};

fn gib(bytes: u64) -> f64 {
    bytes as f64 / GIB as f64
}
