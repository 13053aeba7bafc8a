//! The board has the memory that its role needs.

use super::{Area, Finding, Requirement};
use crate::config::cluster::{Profile, Role};

const MIB: u64 = 1 << 20;

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "memory-size",
    area: Area::System,
    profiles: &[Profile::K3s],
    title: "the board has enough memory for its role",
    why: "the node works until the first load, then answers in seconds or kills its pods",
    source: "k3s-io/docs installation/requirements (server 2 GB, agent 512 MB)",
    fix: "a person takes a larger board, or makes the node an agent",
    catalogue: &["K3S-009"],
    judge: |facts, config| {
        // Less than what is soldered on: firmware, graphics and kernel keep up to a fifth of it.
        let (role, nominal, floor) = match config.cluster.role {
            Role::Server => ("a server", "2 GB", 1640 * MIB),
            Role::Agent => ("an agent", "512 MB", 400 * MIB),
        };
        let total = *facts.memory.total.as_ref()?;
        if total >= floor {
            return Finding::met(format!("{} MiB", total / MIB));
        }
        Finding::blocked(
            format!("{} MiB, {role} needs a board with {nominal}", total / MIB),
            match config.cluster.role {
                Role::Server => {
                    "make this node an agent (role = \"agent\" in [cluster]), or take a larger board"
                }
                Role::Agent => "take a larger board",
            },
        )
    },
};
