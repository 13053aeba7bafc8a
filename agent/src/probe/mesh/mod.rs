//! The mesh: each way between this node and each of its peers, judged from counted and stamped probes.
//!
//! The companion judges each link, once a period, and tells the agent what is new of it; here the ways that are not fine become
//! statements, with what else is known of their ends.

use std::{collections::BTreeMap, time::Duration};

use wire::{
    report::{Kind, PeerReport, Severity, Stamps, Status, Unit, Way, WayState},
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
    judge: || Box::new(Mesh::default()),
    // The prober sends as well as it reads, so the companion runs it by itself.
    kernel: None,
};

/// Ways that are stated one by one, the worst first: a message has an end, and a person's patience too. The row of the
/// mesh has all.
const STATED: usize = 64;
/// Ways that a sum names; it counts the others.
const SUMMED: usize = 8;
/// A network that is not up so long after the boot does not come by itself.
const BOOTED: Duration = Duration::from_secs(60);

/// The judge.
#[derive(Default)]
struct Mesh {
    /// Ways that were in trouble when they were seen last.
    troubled: Vec<Troubled>,
}

/// What was said of a way.
struct Troubled {
    peer: Name,
    /// Whether the way leads here.
    arrives: bool,
    statement: Statement,
}

impl Troubled {
    /// What is to be said while the way cannot be seen: that it is over is not known.
    fn out_of_sight(mut self) -> Self {
        self.statement.status = Status::Unknown;
        if !self.statement.evidence.starts_with(OUT_OF_SIGHT) {
            self.statement.evidence = format!("{OUT_OF_SIGHT}{}", self.statement.evidence);
        }
        self
    }

    fn way<'a>(&self, report: &'a PeerReport) -> &'a Way {
        if self.arrives { &report.incoming } else { &report.out }
    }
}

/// Before what was seen last.
const OUT_OF_SIGHT: &str = "it cannot be seen; before: ";

impl Judge for Mesh {
    fn judge(&mut self, seen: &Seen<'_>) -> Health {
        let mut health = Health::default();
        health.statements.push(probing(seen));
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
                health.statements.push(isolated(Status::Unknown, why.to_owned()));
                self.troubled =
                    std::mem::take(&mut self.troubled).into_iter().map(Troubled::out_of_sight).collect();
                health.statements.extend(self.troubled.iter().map(|t| t.statement.clone()));
                health.reading(ROUND_TRIP.0, ROUND_TRIP.1, None, Unit::Millisecond, Kind::Gauge);
                health.reading(LOSS.0, LOSS.1, None, Unit::Percent, Kind::Gauge);
                return health;
            }
        }
        let mut troubled: Vec<Troubled> = health
            .links
            .iter()
            .flat_map(|(peer, report)| {
                [(peer, seen.node, &report.incoming, true), (seen.node, peer, &report.out, false)]
                    .into_iter()
                    .filter_map(|(from, to, way, arrives)| {
                        let statement = statement(seen, from, to, way, arrives)?;
                        Some(Troubled { peer: peer.clone(), arrives, statement })
                    })
            })
            .collect();
        for kind in KINDS {
            let raised: Vec<&str> = troubled
                .iter()
                .filter(|t| t.statement.id == kind.id)
                .filter_map(|t| t.statement.subject.as_deref())
                .collect();
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
        let is_unseen = |before: &Troubled| {
            health.links.get(&before.peer).is_some_and(|r| before.way(r).state == WayState::Unknown)
        };
        let unseen = std::mem::take(&mut self.troubled).into_iter().filter(is_unseen);
        troubled.extend(unseen.map(Troubled::out_of_sight));
        troubled.sort_by_key(|t| std::cmp::Reverse((t.statement.status, t.statement.severity)));
        troubled.truncate(STATED);
        health.statements.extend(troubled.iter().map(|t| t.statement.clone()));
        self.troubled = troubled;
        health.statements.push(cut_off(seen, &health.links));
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

/// Whether the companion probes.
fn probing(seen: &Seen<'_>) -> Statement {
    let (status, evidence) = match seen.companion {
        Err(why) => (Status::Unknown, why.to_owned()),
        Ok(sample) if sample.tier.stamps != Stamps::None => {
            (Status::Clear, "each peer that is known is probed".to_owned())
        }
        Ok(sample) if seen.uptime < BOOTED => (Status::Unknown, sample.tier.why.clone()),
        Ok(sample) => (Status::Raised, sample.tier.why.clone()),
    };
    Statement {
        id: "probing",
        subject: None,
        title: "Peers are not probed",
        status,
        severity: Severity::Critical,
        depends_on: &["companion"],
        evidence,
    }
}

/// Whether no peer at all is heard that may be there.
fn cut_off(seen: &Seen<'_>, links: &BTreeMap<Name, PeerReport>) -> Statement {
    let is_cut = links.len() > 1 && links.values().all(|l| l.incoming.state == WayState::Cut);
    let online = |is: bool| links.keys().filter(|peer| seen.online.get(*peer) == Some(&is)).count();
    let (all, there, gone) = (links.len(), online(true), online(false));
    match (is_cut, there) {
        (true, 0) if gone == all => {
            isolated(Status::Clear, "all peers are gone, as the broker says".to_owned())
        }
        (true, 0) => {
            let why = format!("none of {all} peers is heard; check this node's cable and switch port");
            isolated(Status::Raised, why)
        }
        (true, there) => isolated(
            Status::Raised,
            format!(
                "none of {all} peers is heard, though the broker says that {there} are connected; check what arrives here: \
                 this node's firewall, its switch port, and isolation of its Wi-Fi's clients"
            ),
        ),
        (false, _) => isolated(Status::Clear, "peers are heard, or there are too few to tell".to_owned()),
    }
}

fn isolated(status: Status, evidence: String) -> Statement {
    let (title, severity) = ("Node is cut off", Severity::Critical);
    Statement { id: "isolated", subject: None, title, status, severity, depends_on: &[], evidence }
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
        let depends_on: &[&str] = if self.state == WayState::Cut {
            &["companion", "probing", "isolated"]
        } else {
            &["companion", "probing", "path-cut"]
        };
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

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn report((out, incoming): (WayState, WayState)) -> PeerReport {
        let way = |state| Way { state, loss: None, delay_ms: None };
        let (out, incoming) = (way(out), way(incoming));
        PeerReport { sent: 9, answered: 9, heard: 9, out, incoming, round_trip: None }
    }

    /// What is said of these peers: out, and in.
    fn judged(
        mesh: &mut Box<dyn Judge>,
        peers: &[(&str, WayState, WayState)],
        online: &[(&str, bool)],
    ) -> Health {
        let mut scene = crate::probe::scene::Scene::with_companion();
        let links = peers.iter().map(|(peer, out, incoming)| (name(peer), report((*out, *incoming))));
        let sample = scene.companion.as_mut().unwrap();
        (sample.mesh, sample.tier.stamps) = (Ok(links.collect()), Stamps::Kernel);
        let online = online.iter().map(|(peer, is)| (name(peer), *is)).collect();
        scene.look(|seen| mesh.judge(&Seen { online: &online, ..*seen }))
    }

    fn of(health: &Health, subject: &str) -> Vec<(&'static str, Status)> {
        let ways = health.statements.iter().filter(|s| s.subject.as_deref() == Some(subject));
        ways.map(|s| (s.id, s.status)).collect()
    }

    #[test]
    fn a_way_in_trouble_that_goes_out_of_sight_is_not_over() {
        use WayState::{Cut, Fine, Lossy, Unknown};
        let mut mesh = (PROBE.judge)();
        let cut = [("path-cut", Status::Raised)];
        assert_eq!(of(&judged(&mut mesh, &[("n2", Unknown, Cut)], &[]), "n2 -> n1"), cut);
        // Its probes are seen no more, and then neither is the companion.
        let unseen = [("path-cut", Status::Unknown)];
        assert_eq!(of(&judged(&mut mesh, &[("n2", Unknown, Unknown)], &[]), "n2 -> n1"), unseen);
        for _ in 0..2 {
            let health = crate::probe::scene::Scene::new().judge(&mut mesh);
            assert_eq!(of(&health, "n2 -> n1"), unseen);
            let way = health.statements.iter().find(|s| s.subject.is_some()).unwrap();
            assert_eq!(way.evidence.matches(OUT_OF_SIGHT).count(), 1);
            assert_eq!(health.said("isolated").unwrap().0, Status::Unknown);
        }
        assert_eq!(of(&judged(&mut mesh, &[("n2", Unknown, Cut)], &[]), "n2 -> n1"), cut);
        assert_eq!(of(&judged(&mut mesh, &[("n2", Fine, Fine)], &[]), "n2 -> n1"), []);
        // Of a peer that left nothing is said; of another trouble only that one.
        judged(&mut mesh, &[("n2", Cut, Lossy)], &[]);
        let lossy = judged(&mut mesh, &[("n2", Unknown, Cut)], &[]);
        assert_eq!(of(&lossy, "n2 -> n1"), cut);
        assert_eq!(of(&lossy, "n1 -> n2"), unseen);
        assert!(
            !judged(&mut mesh, &[("n3", Fine, Fine)], &[]).statements.iter().any(|s| s.subject.is_some())
        );
    }

    #[test]
    fn who_is_left_alone_is_not_cut_off_and_who_hears_nobody_is() {
        use WayState::{Cut, Unknown};
        let mut mesh = (PROBE.judge)();
        let peers = [("n2", Unknown, Cut), ("n3", Unknown, Cut)];
        for (online, status, word) in [
            (&[][..], Status::Raised, "cable"),
            (&[("n2", false)], Status::Raised, "cable"),
            (&[("n2", false), ("n3", false)], Status::Clear, "gone"),
            (&[("n2", false), ("n3", true)], Status::Raised, "1 are connected; check what arrives"),
        ] {
            let health = judged(&mut mesh, &peers, online);
            let (said, evidence) = health.said("isolated").unwrap();
            assert!(said == status && evidence.contains(word), "{said:?} {evidence}");
        }
    }

    #[test]
    fn who_probes_nobody_says_why_unless_the_machine_has_just_started() {
        let mut scene = crate::probe::scene::Scene::with_companion();
        scene.companion.as_mut().unwrap().tier.why = "its port is taken".to_owned();
        let said = |scene: &crate::probe::scene::Scene| {
            let health = scene.judge(&mut (PROBE.judge)());
            health.said("probing").map(|(status, why)| (status, why.to_owned())).unwrap()
        };
        assert_eq!(said(&scene), (Status::Raised, "its port is taken".to_owned()));
        scene.uptime = Duration::from_secs(59);
        assert_eq!(said(&scene).0, Status::Unknown);
        scene.companion.as_mut().unwrap().tier.stamps = Stamps::User;
        assert_eq!(said(&scene).0, Status::Clear);
        scene.companion = Err("no companion".to_owned());
        assert_eq!(said(&scene).0, Status::Unknown);
    }
}
