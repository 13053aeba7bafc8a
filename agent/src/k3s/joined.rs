//! What the last join came to, kept where the agent, who may not ask K3s itself, reads it: `/var/lib/bramble/k3s.json`.
//!
//! Written by `bramble join`, taken away by `bramble leave`. It holds no secret. One of the few inside types on disk.

use serde::{Deserialize, Serialize};

use crate::host::write::{HostMut, NotDone};
use crate::host::{Host, Unreadable};

/// Where it lies.
pub const PATH: &str = "/var/lib/bramble/k3s.json";

/// What became of a join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// "first server", "server" or "agent".
    pub role: String,
    /// The kubelet's version, or the one that was asked for.
    pub version: String,
    /// Whether Cilium is to be the network.
    pub cilium: bool,
    /// Why it did not become Ready, when it did not: the cause's id, what it means, and what a person does next.
    pub cause: Option<[String; 3]>,
}

impl Joined {
    /// Keeps it.
    pub fn keep(&self, host: &HostMut) -> Result<(), NotDone> {
        let text = serde_json::to_vec(self).expect("it is plain data");
        // A run that was killed may have left a half of it.
        host.remove_temporary(PATH)?;
        host.put(PATH, &host.fresh(PATH, text, 0o644))
    }

    /// The last one; `None` when this node joined nothing.
    pub fn read(host: &Host) -> Result<Option<Joined>, Unreadable> {
        let Some(text) = host.text_if_present(PATH)? else { return Ok(None) };
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|_| Unreadable::malformed(PATH, "what bramble join writes"))
    }
}
