//! What the last join came to, kept where the agent, who may not ask K3s itself, reads it: `/var/lib/bramble/k3s.json`.
//!
//! Written by `bramble join` at each of its steps and ends, taken away by `bramble leave`. It holds no secret. One of the
//! few inside types on disk.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use wire::report::Phase;

use crate::host::write::{HostMut, NotDone};
use crate::host::{Host, Unreadable, clock};

/// Where it lies.
pub const PATH: &str = "/var/lib/bramble/k3s.json";

/// How far a join is, or what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// Joining, ready, failed or leaving.
    pub phase: Phase,
    /// What a join does: "looking", "installing", or the name of what it waits for; see [`super::wait::Phase::name`].
    pub step: String,
    /// "first server", "server" or "agent".
    pub role: String,
    /// The kubelet's version, or the one that was asked for.
    pub version: String,
    /// Whether Cilium is to be the network.
    pub cilium: bool,
    /// Why it did not become Ready, when it did not, or did not the last time, when it looks again: the cause's id, what it
    /// means, and what a person does next.
    pub cause: Option<[String; 3]>,
    /// When this was written.
    pub at: Timestamp,
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

/// Says that the node is being taken out of its cluster, as long as this lives; without an earlier word of its own it says
/// nothing. What the agent is told is no reason to stop.
#[derive(Debug)]
pub struct Leaving<'a>(Option<(&'a HostMut, Joined)>);

impl<'a> Leaving<'a> {
    /// From now on.
    pub fn begin(host: &'a HostMut) -> Leaving<'a> {
        let before = Joined::read(host.host()).ok().flatten();
        if let Some(before) = &before {
            let _ = Joined { phase: Phase::Leaving, at: clock::now(), ..before.clone() }.keep(host);
        }
        Leaving(before.map(|before| (host, before)))
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let Some((host, before)) = &self.0 else { return };
        // A node that has left is told of no more.
        if host.host().present(PATH) == Ok(true) {
            let _ = before.keep(host);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a test builds a tree")]
    fn leaving_is_said_while_it_lasts_and_a_node_that_has_left_is_told_of_no_more() {
        let dir = std::env::temp_dir().join(format!("bramble-leaving-{}", std::process::id()));
        for below in ["etc", "usr/local", "var/lib/bramble"] {
            std::fs::create_dir_all(dir.join(below)).unwrap();
        }
        std::fs::write(dir.join("absent"), "/var/\n").unwrap();
        let host = HostMut::tree(&dir).unwrap();
        let phase = || Joined::read(host.host()).unwrap().map(|joined| joined.phase);
        // Of a K3s that bramble has not joined nothing was said, and nothing is.
        drop(Leaving::begin(&host));
        assert_eq!(phase(), None);
        let ready = Joined {
            phase: Phase::Ready,
            step: "ready".into(),
            role: "agent".into(),
            version: "v1.35.2+k3s1".into(),
            cilium: true,
            cause: None,
            at: Timestamp::UNIX_EPOCH,
        };
        ready.keep(&host).unwrap();
        let leaving = Leaving::begin(&host);
        assert_eq!(phase(), Some(Phase::Leaving));
        // It was stopped on the way: the node is in its cluster as before.
        drop(leaving);
        assert_eq!(Joined::read(host.host()), Ok(Some(ready)));
        let leaving = Leaving::begin(&host);
        host.remove(PATH).unwrap();
        drop(leaving);
        assert_eq!(phase(), None);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
