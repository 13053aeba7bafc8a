//! The machine id is set.

use super::{Area, Finding, Requirement};
use crate::config::cluster::Profile;

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "machine-id",
    area: Area::System,
    profiles: &[Profile::Node],
    title: "the machine id is set",
    why: "two cards written from one prepared image count as one machine: they get one DHCP address, and one node \
          of the two is seen",
    source: "machine-id(5)",
    fix: "a person gives the node an id of its own: sudo rm /etc/machine-id, sudo systemd-machine-id-setup, and a \
          reboot",
    catalogue: &["OS-001", "OBS-004"],
    judge: |facts, _| {
        let next = "sudo rm -f /etc/machine-id && sudo systemd-machine-id-setup, then reboot";
        match facts.identity.machine_id.as_ref()?.as_deref() {
            Some(id) if is_machine_id(id) => Finding::met("/etc/machine-id"),
            Some("") => Finding::blocked("/etc/machine-id is empty", next),
            Some("uninitialized") => {
                Finding::waiting("systemd sets /etc/machine-id at the end of the first boot")
            }
            Some(_) => Finding::blocked("/etc/machine-id is not 32 hexadecimal digits", next),
            None => Finding::blocked("/etc/machine-id does not exist", next),
        }
    },
};

fn is_machine_id(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()) && id.bytes().any(|b| b != b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_id_is_a_number_that_is_not_zero() {
        assert!(is_machine_id("3d1219c7c4c5404aaa1f6d2a48adfda4"));
        for id in
            ["", "uninitialized", "00000000000000000000000000000000", "3d1219c7-c4c5-404a-aa1f-6d2a48adfda4"]
        {
            assert!(!is_machine_id(id), "{id}");
        }
    }
}
