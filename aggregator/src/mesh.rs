//! The N x N matrix of directed links, seen from the rows of all nodes.
//!
//! Nothing is stored here: a link is looked up in the rows of its two ends when somebody asks. For `A -> B` the
//! authority is B, because it counts what arrived; A knows only what B fed back. Where the two contradict each
//! other, the worse of what was *seen* holds, and "could not see" never outweighs a sight.
//! A row that is not fresh sees nothing: no link is fine because it was fine once.

use std::collections::BTreeSet;

use jiff::Timestamp;
use wire::{
    report::{MeshRow, PeerReport, RoundTrip, Way, WayState},
    topic::Name,
};

use crate::cluster::Nodes;

/// Up to this many nodes every pair is a link; beyond, only the pairs that some row lists.
pub const FULL_MESH: usize = 64;

/// What is known of one directed link.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// Verdict, and the numbers of whoever gave it.
    pub way: Way,
    /// Who gave it; `None` when nobody could.
    pub seen_by: Option<End>,
    /// Last round trips of the pair, as the link's first node measured them, else as its second did.
    pub round_trip: Option<RoundTrip>,
}

/// One end of a directed link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The sender, by the other end's feedback.
    From,
    /// The receiver, by what arrived.
    To,
}

/// A way that nobody could see.
const UNSEEN: Way = Way { state: WayState::Unknown, loss: None, delay_ms: None };

/// Judges `from -> to` by the fresh rows of its two ends.
pub fn link(from: &Name, to: &Name, from_row: Option<&MeshRow>, to_row: Option<&MeshRow>) -> Link {
    let sent = from_row.and_then(|row| row.peers.get(to));
    let arrived = to_row.and_then(|row| row.peers.get(from));
    let arrived = arrived.filter(|arrived| !sent.is_some_and(|sent| spoke_before(arrived, sent)));
    let seen = |way: Option<&Way>| way.filter(|w| w.state != WayState::Unknown).cloned();
    let (way, seen_by) =
        match (seen(arrived.map(|report| &report.incoming)), seen(sent.map(|report| &report.out))) {
            (None, None) => (UNSEEN, None),
            (Some(arrived), None) => (arrived, Some(End::To)),
            (None, Some(fed_back)) => (fed_back, Some(End::From)),
            (Some(arrived), Some(fed_back)) if fed_back.state > arrived.state => (fed_back, Some(End::From)),
            (Some(arrived), Some(_)) => (arrived, Some(End::To)),
        };
    let round_trip = |report: Option<&PeerReport>| report.and_then(|r| r.round_trip);
    Link { way, seen_by, round_trip: round_trip(sent).or_else(|| round_trip(arrived)) }
}

/// Whether a node said `own` of a peer before that one lost it: rows come minutes apart, and at once when a way changes, so who
/// is not heard and does not know it has said nothing since.
pub fn spoke_before(own: &PeerReport, peers: &PeerReport) -> bool {
    peers.incoming.state == WayState::Cut && !matches!(own.out.state, WayState::Cut | WayState::Unknown)
}

/// Judges `from -> to` at `now`; unknown when either node is.
pub fn between(nodes: &Nodes, from: &Name, to: &Name, now: Timestamp) -> Link {
    let row = |name| nodes.get(name).and_then(|node| node.fresh_row(now));
    link(from, to, row(from), row(to))
}

/// All directed links between known nodes, in order.
pub fn pairs(nodes: &Nodes) -> BTreeSet<(&Name, &Name)> {
    let mut pairs = BTreeSet::new();
    if nodes.len() <= FULL_MESH {
        for from in nodes.keys() {
            pairs.extend(nodes.keys().filter(|to| *to != from).map(|to| (from, to)));
        }
        return pairs;
    }
    for (name, node) in nodes {
        for (peer, _) in node.peers() {
            if let Some((peer, _)) = nodes.get_key_value(peer).filter(|(peer, _)| *peer != name) {
                pairs.insert((name, peer));
                pairs.insert((peer, name));
            }
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use wire::report::{Header, Stamps, Tier, VERSION};

    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn way(state: WayState) -> Way {
        Way { state, loss: None, delay_ms: None }
    }

    /// A row of `node` that knows only `peer`.
    fn row(node: &str, peer: &str, out: WayState, incoming: WayState) -> MeshRow {
        let report = PeerReport {
            sent: 10,
            answered: 10,
            heard: 10,
            out: way(out),
            incoming: way(incoming),
            round_trip: None,
        };
        MeshRow {
            header: Header { v: VERSION, ts: Timestamp::UNIX_EPOCH, cluster: name("home"), node: name(node) },
            period_ms: 1000,
            interval_ms: 1000,
            tier: Tier { stamps: Stamps::Kernel, attached: None, why: String::new() },
            peers: [(name(peer), report)].into(),
        }
    }

    #[test]
    fn the_receiver_is_the_authority_and_the_worse_of_what_was_seen_holds() {
        use WayState::{Cut, Fine, Lossy, Slow, Unknown};
        // (A's feedback, what arrived at B) -> verdict on A -> B and its witness
        let table = [
            (Some(Fine), Some(Fine), Fine, Some(End::To)),
            (Some(Fine), Some(Lossy), Lossy, Some(End::To)),
            (Some(Cut), Some(Fine), Cut, Some(End::From)),
            (Some(Unknown), Some(Slow), Slow, Some(End::To)),
            (Some(Lossy), Some(Unknown), Lossy, Some(End::From)),
            (Some(Fine), None, Fine, Some(End::From)),
            (None, Some(Cut), Cut, Some(End::To)),
            (Some(Unknown), Some(Unknown), Unknown, None),
            (None, None, Unknown, None),
        ];
        for (fed_back, arrived, state, witness) in table {
            let a = fed_back.map(|out| row("a", "b", out, Cut));
            let b = arrived.map(|incoming| row("b", "a", Cut, incoming));
            let link = link(&name("a"), &name("b"), a.as_ref(), b.as_ref());
            assert_eq!((link.way.state, link.seen_by), (state, witness), "{fed_back:?} {arrived:?}");
        }
    }

    #[test]
    fn who_is_not_heard_and_does_not_know_it_spoke_before() {
        use WayState::{Cut, Fine, Unknown};
        // B's word on its own way to A, which A does not hear -> verdict on A -> B.
        for (own, state) in [(Fine, Unknown), (Cut, Fine), (Unknown, Fine)] {
            let (a, b) = (row("a", "b", Unknown, Cut), row("b", "a", own, Fine));
            assert_eq!(link(&name("a"), &name("b"), Some(&a), Some(&b)).way.state, state, "{own:?}");
        }
    }

    #[test]
    fn the_round_trip_is_the_senders_else_the_receivers() {
        let trip = |us| {
            Some(RoundTrip { median_us: us, min_us: us, max_us: us, samples: 1, stamps: Stamps::Kernel })
        };
        let mut a = row("a", "b", WayState::Fine, WayState::Fine);
        let mut b = row("b", "a", WayState::Fine, WayState::Fine);
        b.peers.get_mut(&name("a")).unwrap().round_trip = trip(2.0);
        let of = |a: &MeshRow, b: &MeshRow| {
            link(&name("a"), &name("b"), Some(a), Some(b)).round_trip.map(|t| t.median_us)
        };
        assert_eq!(of(&a, &b), Some(2.0));
        a.peers.get_mut(&name("b")).unwrap().round_trip = trip(1.0);
        assert_eq!(of(&a, &b), Some(1.0));
    }
}
