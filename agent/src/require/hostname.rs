//! The host name can be a node's name, and tells the node from others.

use super::{Area, Finding, Requirement};
use crate::config::cluster::Profile;
use crate::config::k3s::{NODE_NAME, is_node_name};
use crate::config::visible;

/// What images ship with: a second node of that name replaces the first.
const SHIPPED: &[&str] = &["raspberrypi", "localhost", "ubuntu", "debian"];

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "hostname",
    area: Area::System,
    profiles: &[Profile::K3s],
    title: "the host name is fit for a node",
    why: "a second node of the same name replaces the first, or is refused with \"Node password rejected\"",
    source: "k3s-io/k3s#6054; Kubernetes object names (RFC 1123)",
    fix: "a person gives the node a name of its own: sudo hostnamectl set-hostname NAME",
    catalogue: &["OS-001"],
    judge: |facts, _| {
        let name = facts.identity.hostname.as_ref()?;
        let next = "sudo hostnamectl set-hostname NAME, with a name of its own for each node, such as pi-1";
        if SHIPPED.contains(&name.as_str()) {
            return Finding::blocked(format!("{name} is the name that every fresh image has"), next);
        }
        if !is_node_name(name) {
            return Finding::blocked(format!("\"{}\" is no node name: {NODE_NAME}", visible(name)), next);
        }
        Finding::met(&**name)
    },
};
