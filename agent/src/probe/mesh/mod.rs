//! The mesh: each way between this node and each of its peers, judged from counted and stamped probes.
//!
//! The companion judges each link, once a period, and tells the agent what is new of it; here the ways that are not fine become
//! statements, with what else is known of their ends.

use wire::{
    report::{Kind, Severity, Status, Unit, Way, WayState},
    topic::Name,
};

use super::{Health, Judge, Pace, Probe, Seen, Statement};

/// The two ways between this node and one peer.
pub mod link;
/// Sends and counts.
pub mod prober;

/// The table's row.
pub const PROBE: Probe = Probe {
    id: "mesh",
    title: "Mesh",
    why: "Which link between two nodes loses, delays or stops packets, and in which direction.",
    pace: Pace::Sample,
    judge: || Box::new(Mesh),
    // The prober sends as well as it reads, so the companion runs it by itself.
    kernel: None,
};

/// Ways that are stated one by one, the worst first: a message has an end, and a person's patience too. The row of the
/// mesh has all.
const STATED: usize = 64;
/// Ways that a sum names; it counts the others.
const SUMMED: usize = 8;
/// The judge.
struct Mesh;

impl Judge for Mesh {
    fn judge(&mut self, seen: &Seen<'_>) -> Health {
        let mut health = Health::default();
        let links = match seen.companion {
            Ok(sample) => sample.mesh.as_ref().map_err(String::as_str),
            Err(why) => Err(why),
        };
        match links {
            Ok(links) => health.links.clone_from(links),
            Err(why) => {
                for kind in KINDS {
                    health.statements.push(kind.statement(None, Status::Unknown, why.to_owned()));
                }
                health.reading(ROUND_TRIP.0, ROUND_TRIP.1, None, Unit::Millisecond, Kind::Gauge);
                health.reading(LOSS.0, LOSS.1, None, Unit::Percent, Kind::Gauge);
                return health;
            }
        }
        let mut statements: Vec<Statement> = health
            .links
            .iter()
            .flat_map(|(peer, report)| {
                [(peer, seen.node, &report.incoming, true), (seen.node, peer, &report.out, false)]
                    .into_iter()
                    .filter_map(|(from, to, way, arrives)| statement(seen, from, to, way, arrives))
            })
            .collect();
        for kind in KINDS {
            let raised: Vec<&str> =
                statements.iter().filter(|s| s.id == kind.id).filter_map(|s| s.subject.as_deref()).collect();
            let (status, evidence) = match raised.as_slice() {
                [] if health.links.is_empty() => (Status::Clear, "there are no peers".to_owned()),
                [] => (Status::Clear, format!("{} peers are probed", health.links.len())),
                raised if raised.len() > SUMMED => {
                    let (named, more) = raised.split_at(SUMMED);
                    (Status::Raised, format!("{} and {} more", named.join(", "), more.len()))
                }
                raised => (Status::Raised, raised.join(", ")),
            };
            health.statements.push(kind.statement(None, status, evidence));
        }
        statements.sort_by_key(|s| std::cmp::Reverse(s.severity));
        statements.truncate(STATED);
        health.statements.extend(statements);
        let cut_off =
            health.links.len() > 1 && health.links.values().all(|l| l.incoming.state == WayState::Cut);
        health.statements.push(Statement {
            id: "isolated",
            subject: None,
            title: "Node is cut off",
            status: if cut_off { Status::Raised } else { Status::Clear },
            severity: Severity::Critical,
            depends_on: &[],
            evidence: if cut_off {
                format!(
                    "none of {} peers is heard; check this node's cable and switch port",
                    health.links.len()
                )
            } else {
                "peers are heard, or there are too few to tell".to_owned()
            },
        });
        let worst = |values: &mut dyn Iterator<Item = f64>| {
            values.fold(None, |w: Option<f64>, v| Some(w.map_or(v, |w| w.max(v))))
        };
        let round_trip =
            worst(&mut health.links.values().filter_map(|l| Some(l.round_trip?.median_us / 1000.0)));
        let loss = worst(&mut health.links.values().flat_map(|l| [l.out.loss, l.incoming.loss]).flatten());
        health.reading(ROUND_TRIP.0, ROUND_TRIP.1, round_trip, Unit::Millisecond, Kind::Gauge);
        health.reading(LOSS.0, LOSS.1, loss.map(|l| l * 100.0), Unit::Percent, Kind::Gauge);
        health
    }
}

const ROUND_TRIP: (&str, &str) = ("worst-round-trip", "Worst round trip");
const LOSS: (&str, &str) = ("worst-probe-loss", "Worst probe loss");

/// A kind of trouble on a way.
struct WayTrouble {
    state: WayState,
    id: &'static str,
    title: &'static str,
    severity: Severity,
}

const KINDS: [WayTrouble; 3] = [
    WayTrouble {
        state: WayState::Cut,
        id: "path-cut",
        title: "Nothing arrives between two nodes",
        severity: Severity::Critical,
    },
    WayTrouble {
        state: WayState::Lossy,
        id: "path-loss",
        title: "Packets are lost between two nodes",
        severity: Severity::Warning,
    },
    WayTrouble {
        state: WayState::Slow,
        id: "path-delay",
        title: "Packets are late between two nodes",
        severity: Severity::Warning,
    },
];

impl WayTrouble {
    fn statement(&self, subject: Option<String>, status: Status, evidence: String) -> Statement {
        let depends_on: &[&str] =
            if self.state == WayState::Cut { &["companion", "isolated"] } else { &["companion", "path-cut"] };
        Statement {
            id: self.id,
            subject,
            title: self.title,
            status,
            severity: self.severity,
            depends_on,
            evidence,
        }
    }
}

/// What is to be said of one way that is not fine.
fn statement(seen: &Seen<'_>, from: &Name, to: &Name, way: &Way, arrives: bool) -> Option<Statement> {
    let kind = KINDS.iter().find(|k| k.state == way.state)?;
    let evidence = match way.state {
        WayState::Cut if !arrives => format!("{to} is heard, and says that nothing of {from} arrives"),
        WayState::Cut if seen.hindered.contains_key(from) => {
            format!("nothing of {from} arrives: {}", seen.hindered[from])
        }
        WayState::Cut => match seen.online.get(from) {
            Some(false) => format!("nothing of {from} arrives, and the broker says that it is gone"),
            Some(true) => format!("nothing of {from} arrives, though the broker says that it is connected"),
            None => format!("nothing of {from} arrives, and the broker has not told of it"),
        },
        WayState::Lossy => {
            format!("{:.0} % of the last probes were lost", way.loss.unwrap_or_default() * 100.0)
        }
        _ => format!("{:.1} ms slower than it was", way.delay_ms.unwrap_or_default()),
    };
    Some(kind.statement(Some(format!("{from} -> {to}")), Status::Raised, evidence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_a_peer_cannot_be_heard_is_told_where_it_is_known() {
        let scene = crate::probe::scene::Scene::new();
        let [n1, n2] = ["n1", "n2"].map(|name| Name::new(name).unwrap());
        let hindered = std::collections::BTreeMap::from([(n2.clone(), "its port is another".to_owned())]);
        let cut = Way { state: WayState::Cut, loss: Some(1.0), delay_ms: None };
        scene.look(|seen| {
            let seen = Seen { hindered: &hindered, ..*seen };
            let said = statement(&seen, &n2, &n1, &cut, true).unwrap();
            assert_eq!(said.evidence, "nothing of n2 arrives: its port is another");
        });
    }
}
