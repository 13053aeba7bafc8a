//! No disk is used as memory.

use super::{Area, Finding, Requirement};
use crate::change::Change;
use crate::config::cluster::Profile;

const DPHYS: &str = "dphys-swapfile";

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "swap",
    area: Area::Storage,
    profiles: &[Profile::K3s],
    title: "no disk is used as swap",
    why: "a pod that leaks memory makes the whole node wait for its card instead of being ended",
    source: "ricsanfre/pi-cluster disable_swap.yml; k3s-io/k3s contrib/util/check-config.sh (K3s itself tolerates it)",
    fix: "bramble switches the swap off and masks dphys-swapfile; what /etc/fstab or another unit brings back a \
          person takes out",
    catalogue: &["K3S-010"],
    judge: |facts, _| {
        let swaps = facts.swaps.as_ref()?;
        let disks: Vec<&str> =
            swaps.iter().filter(|swap| !swap.is_zram()).map(|swap| swap.path.as_str()).collect();
        if disks.is_empty() {
            return Finding::met(if swaps.is_empty() { "no swap" } else { "only zram, which is memory" });
        }
        let what = format!("swapping to {}", disks.join(", "));
        let off = disks.iter().map(|path| Change::SwapOff { path: path.to_string().into() });
        if facts.units.uses(DPHYS)? {
            let mask = Change::MaskUnit { unit: "dphys-swapfile.service".into() };
            return Finding::unmet(what, off.chain([mask]).collect::<Vec<_>>());
        }
        if facts.units.is_masked(DPHYS) {
            return Finding::unmet(format!("{what} until the next boot"), off.collect::<Vec<_>>());
        }
        Finding::blocked(
            what,
            "sudo swapoff --all, then remove its line in /etc/fstab, or mask the unit that brings it back \
             (systemctl list-units --type=swap)",
        )
    },
};
