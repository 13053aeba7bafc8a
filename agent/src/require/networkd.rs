//! systemd-networkd leaves Cilium's routes and rules alone.

use super::{Area, Finding, Requirement};
use crate::change::Change;
use crate::config::cluster::Profile;

/// Since systemd 246 and 249; yes unless told otherwise.
const KEYS: [&str; 2] = ["ManageForeignRoutes", "ManageForeignRoutingPolicyRules"];

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "networkd",
    area: Area::Network,
    profiles: &[Profile::Cilium],
    title: "systemd-networkd leaves foreign routes and rules alone",
    why: "whenever it is restarted, as automatic upgrades do at night, it deletes Cilium's rules and the node is \
          off the network",
    source: "cilium/cilium#18706; flatcar/Flatcar#620; networkd.conf(5)",
    catalogue: &["NET-001", "NET-002"],
    judge: |facts, _| {
        if !facts.units.uses("systemd-networkd")? {
            return Finding::not_needed("systemd-networkd is not in use");
        }
        let networkd = facts.networkd.as_ref()?;
        let lacking: Vec<&str> = KEYS.into_iter().filter(|key| !networkd.denies(key)).collect();
        if lacking.is_empty() {
            return Finding::met(format!("{} are no", KEYS.join(" and ")));
        }
        let settings: String = KEYS.iter().map(|key| format!("{key}=no\n")).collect();
        Finding::unmet(
            format!("{} not no", lacking.join(" and ")),
            [Change::WriteFile {
                path: "/etc/systemd/networkd.conf.d/99-zz-bramble.conf".into(),
                content: format!(
                    "# Written by bramble: Cilium's routes and rules are not systemd-networkd's.\n\
                     [Network]\n{settings}"
                )
                .into(),
            }],
        )
    },
};
