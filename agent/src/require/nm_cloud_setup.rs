//! NetworkManager's helper for clouds is off.

use super::{Area, Finding, Requirement};
use crate::change::Change;
use crate::config::cluster::Profile;

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "nm-cloud-setup",
    area: Area::Network,
    profiles: &[Profile::K3s, Profile::Cilium],
    title: "nm-cloud-setup is off",
    why: "it adds rules of its own that lead pods' traffic astray; K3s' packages refuse to start beside it",
    source: "k3s-io/k3s package units; k3s-io/docs installation/requirements.md",
    fix: "bramble masks nm-cloud-setup's timer and service",
    catalogue: &["NET-005"],
    judge: |facts, _| {
        let mut used = Vec::new();
        for unit in ["nm-cloud-setup.timer", "nm-cloud-setup.service"] {
            if facts.units.uses(unit)? {
                used.push(unit);
            }
        }
        if used.is_empty() {
            return Finding::met("not enabled");
        }
        Finding::unmet(
            format!("{} in use", used.join(" and ")),
            used.into_iter().map(|unit| Change::MaskUnit { unit: unit.into() }).collect::<Vec<_>>(),
        )
    },
};
