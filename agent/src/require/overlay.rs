//! The file system of container images is there.

use super::{Area, Finding, Requirement};
use crate::config::cluster::Profile;
use crate::facts::module::{Module, Presence};

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "overlay",
    area: Area::Mount,
    profiles: &[Profile::K3s],
    title: "the overlay file system is there",
    why: "containerd copies every image whole for every container, or does not start",
    source: "k3s-io/k3s contrib/util/check-config.sh",
    fix: "a person installs the distribution's standard kernel and its module packages, and reboots",
    catalogue: &[],
    judge: |facts, _| {
        if matches!(&facts.file_systems, Ok(known) if known.has("overlay")) {
            return Finding::met("overlay is in /proc/filesystems");
        }
        match facts.module(Module { name: "overlay", option: "CONFIG_OVERLAY_FS" })? {
            Presence::Ready => Finding::met("overlay is part of the kernel"),
            Presence::Loadable => Finding::met("the module overlay is on disk"),
            Presence::Absent => Finding::blocked(
                "the running kernel does not have overlay",
                "install the distribution's standard kernel and reboot",
            ),
        }
    },
};
