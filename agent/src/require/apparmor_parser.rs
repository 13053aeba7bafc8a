//! Where AppArmor is active its parser is installed.

use super::{Area, Finding, Requirement};
use crate::config::cluster::Profile;

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "apparmor-parser",
    area: Area::System,
    profiles: &[Profile::K3s],
    title: "AppArmor's parser is installed where AppArmor is active",
    why: "no container starts: containerd cannot load its profile",
    source: "k3s-io/k3s contrib/util/check-config.sh",
    fix: "a person installs the package apparmor",
    catalogue: &[],
    judge: |facts, _| {
        if !*facts.apparmor.enabled.as_ref()? {
            return Finding::not_needed("AppArmor is not active");
        }
        if *facts.apparmor.parser.as_ref()? {
            return Finding::met("/sbin/apparmor_parser");
        }
        Finding::blocked(
            "AppArmor is active, and /sbin/apparmor_parser is not there",
            "sudo apt install apparmor",
        )
    },
};
