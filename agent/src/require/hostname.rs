//! The host name can be a node's name, and tells the node from others.

use super::{Area, Finding, Requirement};
use crate::config::cluster::Profile;

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
            return Finding::blocked(
                format!(
                    "\"{}\" is no node name: a-z, 0-9, - and . alone, at most 63 letters a part",
                    name.escape_default()
                ),
                next,
            );
        }
        Finding::met(&**name)
    },
};

/// RFC 1123 as Kubernetes takes it: lower case, parts that neither begin nor end with a hyphen.
fn is_node_name(name: &str) -> bool {
    let part = |part: &str| {
        (1..=63).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_name_is_lower_case_in_parts() {
        for name in ["pi-1", "node1.home.arpa", "7"] {
            assert!(is_node_name(name), "{name}");
        }
        for name in ["", "Pi", "pi_1", "-pi", "pi-", "a..b", ".", "p\u{e4}", &"a".repeat(64)] {
            assert!(!is_node_name(name), "{name}");
        }
    }
}
