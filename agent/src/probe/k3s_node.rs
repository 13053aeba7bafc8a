//! K3s on this node: whether it runs, whether its kubelet is well, whether pods get a network.
//!
//! Seen without rights: what systemd says of the unit, what the kubelet says of itself on the loopback address, whether
//! Cilium's CNI configuration is there, and how far the last `bramble join` is or what it came to.

use std::time::{Duration, Instant};

use wire::report::{Cause, K3s, Kind, Phase, Rank, Severity, Status, Unit};

use super::{Health, Judge, Pace, Probe, Seen, Statement};
use crate::host::Host;
use crate::host::systemd::{self, Asked};
use crate::k3s::joined::Joined;
use crate::k3s::{leave, path, wait};

/// The table's row.
pub(super) const PROBE: Probe = Probe {
    id: "k3s-node",
    title: "K3s on this node",
    why: "Whether the node can carry pods is known here even while the cluster's API does not answer.",
    pace: Pace::Report,
    judge: || Box::new(Node { starting: None, systemd: Asked::default() }),
    kernel: None,
};

/// A kubelet that is well answers within a millisecond.
const PATIENCE: Duration = Duration::from_secs(1);
/// A join or a leave that has said nothing for longer was killed.
const SILENCE: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);
/// The agent's own file: the moment of the last join after whose failure K3s was well all the same. What comes later has
/// another cause.
const PAST: &str = "k3s-past";

struct Node {
    /// Since when K3s is being started, without having ended meanwhile.
    starting: Option<Instant>,
    systemd: Asked,
}

/// What is seen of it.
#[derive(Debug)]
struct Look {
    unit: systemd::Unit,
    kubelet: Result<(), String>,
    cni: bool,
    joined: Option<Joined>,
    /// Whether it is in the middle of a start that may take as long.
    is_starting: bool,
}

impl Judge for Node {
    fn judge(&mut self, seen: &Seen<'_>) -> Health {
        let mut health = Health::default();
        let unknown = |why: String| statement(Status::Unknown, Severity::Warning, why);
        let mut joined = match Joined::read(seen.host) {
            Ok(joined) => joined,
            Err(unreadable) => {
                health.statements.push(unknown(unreadable.to_string()));
                return health;
            }
        };
        let Some(unit) = leave::unit_file(seen.host) else {
            health.statements.push(absent(joined.as_ref()));
            health.k3s = joined.map(|joined| told(joined, false, seen.wall));
            return health;
        };
        if let Some(joined) = &mut joined
            && joined.cause.is_some()
            && seen.state.read(PAST).ok().flatten() == Some(joined.at.to_string())
        {
            joined.cause = None;
        }
        match self.look(seen.host, unit, joined) {
            Ok(mut look) => {
                look.is_starting = self.starts(&look, seen.now);
                let is_up = look.unit.is_active() && look.kubelet.is_ok();
                health.reading(
                    "k3s-up",
                    "K3s is up",
                    Some(f64::from(u8::from(is_up))),
                    Unit::Count,
                    Kind::Gauge,
                );
                // The condition tells a person the same, and why.
                health.rank(Rank::Hidden, |_| true);
                let is_well = is_up && !look.waits_for_cilium();
                if let Some(Joined { cause: Some(_), at, .. }) = &look.joined
                    && is_well
                {
                    // If it cannot be kept, the next time that K3s is well it is tried again.
                    let _ = seen.state.write(PAST, &at.to_string());
                }
                health.statements.push(state(unit, &look));
                health.k3s = look.joined.map(|joined| told(joined, is_well, seen.wall));
            }
            Err(why) => health.statements.push(unknown(why)),
        }
        health
    }
}

impl Node {
    fn look(&mut self, host: &Host, name: &'static str, joined: Option<Joined>) -> Result<Look, String> {
        let unit = self.systemd.unit(host, name)?;
        let kubelet = match unit.is_active() {
            true => kubelet(),
            false => Err("K3s is not up".into()),
        };
        let cni = host.present(path::CILIUM_CNI) == Ok(true);
        Ok(Look { unit, kubelet, cni, joined, is_starting: false })
    }

    /// Whether K3s is in the middle of a start, within the time that one takes.
    fn starts(&mut self, look: &Look, now: Instant) -> bool {
        let is_begun = look.unit.active == "activating" && look.unit.restarts == 0;
        let goes_on = self.starting.is_some() && look.unit.is_active() && look.kubelet.is_err();
        if !is_begun && !goes_on {
            self.starting = None;
            return false;
        }
        let since = *self.starting.get_or_insert(now);
        now.duration_since(since) < wait::Limits::default().starting
    }
}

impl Look {
    fn waits_for_cilium(&self) -> bool {
        self.joined.as_ref().is_some_and(|joined| joined.cilium) && !self.cni
    }
}

/// On a thread of its own: the agent's runtime is in the middle of a task.
fn kubelet() -> Result<(), String> {
    let ask = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|error| error.to_string())?.block_on(wait::kubelet(PATIENCE))
    };
    std::thread::scope(|scope| scope.spawn(ask).join())
        .unwrap_or_else(|_| Err("the question ended in a panic".into()))
}

/// What the last join said, held against what is seen.
fn told(joined: Joined, is_well: bool, now: jiff::Timestamp) -> K3s {
    let Joined { phase, step, role, version, cause, at, .. } = joined;
    let is_under_way = matches!(phase, Phase::Joining | Phase::Leaving) && now.duration_since(at) < SILENCE;
    let (phase, cause) = match (phase, cause) {
        (Phase::Leaving, _) if is_under_way => (phase, None),
        _ if is_well => (Phase::Ready, None),
        (Phase::Joining, _) if is_under_way => (phase, None),
        (Phase::Joining | Phase::Leaving, _) => (Phase::Failed, None),
        (phase, cause) => (phase, cause),
    };
    let cause = cause.map(|[id, why, next]| Cause { id, why, next });
    K3s { phase, step, role, version, cause, since: at }
}

/// Without a unit K3s is not here: as its owner has it, or because a join was stopped.
fn absent(joined: Option<&Joined>) -> Statement {
    match joined.and_then(|joined| joined.cause.as_ref()) {
        None => statement(Status::Clear, Severity::Warning, "K3s is not on this node".into()),
        Some([id, why, next]) => {
            let evidence = format!("it could not join: {id}: {why}; next: {next}");
            statement(Status::Raised, Severity::Warning, evidence)
        }
    }
}

/// Pure.
fn state(unit: &str, look: &Look) -> Statement {
    let role = match (&look.joined, unit) {
        (Some(joined), _) => format!("{} {}", joined.role, joined.version),
        (None, "k3s.service") => "server".into(),
        (None, _) => "agent".into(),
    };
    let cause = look.joined.as_ref().and_then(|joined| joined.cause.as_ref());
    let known = cause.map_or(String::new(), |[id, why, next]| format!("; {id}: {why}; next: {next}"));
    match (&look.kubelet, look.unit.active.as_str()) {
        (Ok(()), _) if look.waits_for_cilium() => {
            let evidence =
                format!("{role}, not-networked: K3s is up, and Cilium has not written its configuration");
            statement(Status::Raised, Severity::Warning, evidence)
        }
        (Ok(()), _) => {
            statement(Status::Clear, Severity::Warning, format!("{role}: up, the kubelet is well"))
        }
        (Err(_), _) if look.is_starting => {
            statement(Status::Unknown, Severity::Critical, format!("{role}, starting{known}"))
        }
        (Err(says), "active") => {
            statement(Status::Raised, Severity::Critical, format!("{role}, kubelet: {says}{known}"))
        }
        (Err(_), "failed") => {
            let evidence = format!("{role}, failed: it ended by {}{known}", look.unit.result);
            statement(Status::Raised, Severity::Critical, evidence)
        }
        (Err(_), "activating") => {
            let evidence = format!("{role}, starting: started again {} times{known}", look.unit.restarts);
            statement(Status::Raised, Severity::Critical, evidence)
        }
        (Err(_), other) => {
            statement(Status::Raised, Severity::Critical, format!("{role}: {unit} is {other}{known}"))
        }
    }
}

fn statement(status: Status, severity: Severity, evidence: String) -> Statement {
    Statement {
        id: "k3s-node",
        subject: None,
        title: "K3s does not carry this node",
        status,
        severity,
        depends_on: &[],
        evidence,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(phase: Phase, cause: Option<[&str; 3]>) -> Joined {
        Joined {
            phase,
            step: "kubelet".into(),
            role: "agent".into(),
            version: "v1.35.2+k3s1".into(),
            cilium: true,
            cause: cause.map(|cause| cause.map(str::to_owned)),
            at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    fn look(active: &str, kubelet: Result<(), &str>, cni: bool) -> Look {
        let unit =
            systemd::Unit { active: active.into(), result: "exit-code".into(), ..systemd::Unit::default() };
        let joined = Some(joined(Phase::Ready, None));
        Look { unit, kubelet: kubelet.map_err(str::to_owned), cni, joined, is_starting: false }
    }

    #[test]
    fn each_state_is_told_from_the_others() {
        for (look, status, severity, part) in [
            (look("active", Ok(()), true), Status::Clear, Severity::Warning, "agent v1.35.2+k3s1: up"),
            (look("active", Ok(()), false), Status::Raised, Severity::Warning, "not-networked"),
            (
                look("active", Err("it answers 500"), true),
                Status::Raised,
                Severity::Critical,
                "it answers 500",
            ),
            (look("failed", Err("x"), true), Status::Raised, Severity::Critical, "it ended by exit-code"),
            (look("activating", Err("x"), true), Status::Raised, Severity::Critical, "starting"),
            (look("inactive", Err("x"), true), Status::Raised, Severity::Critical, "is inactive"),
        ] {
            let said = state("k3s-agent.service", &look);
            assert_eq!((said.status, said.severity), (status, severity), "{said:?}");
            assert!(said.evidence.contains(part), "{said:?}");
        }
    }

    #[test]
    fn a_normal_start_is_no_fault_before_it_takes_too_long_or_ends() {
        let mut node = Node { starting: None, systemd: Asked::default() };
        let begun = Instant::now();
        let mut at = |look: &mut Look, seconds| {
            look.is_starting = node.starts(look, begun + Duration::from_secs(seconds));
            state("k3s-agent.service", look).status
        };
        let mut starting = look("activating", Err("x"), true);
        assert_eq!(at(&mut starting, 0), Status::Unknown);
        assert_eq!(at(&mut look("active", Err("no answer yet"), true), 30), Status::Unknown);
        assert_eq!(at(&mut look("active", Ok(()), true), 40), Status::Clear);
        assert_eq!(at(&mut look("active", Err("it is dead"), true), 50), Status::Raised, "it was well");
        assert_eq!(at(&mut starting, 60), Status::Unknown);
        assert_eq!(at(&mut starting, 661), Status::Raised, "it takes too long");
        starting.unit.restarts = 1;
        assert_eq!(at(&mut starting, 670), Status::Raised, "it has ended");
    }

    #[test]
    fn the_cause_of_a_join_that_failed_is_said() {
        let mut look = look("activating", Err("x"), false);
        let cause = ["node-password", "another node has the name", "rename it"];
        look.joined = Some(joined(Phase::Failed, Some(cause)));
        let said = state("k3s-agent.service", &look);
        assert!(
            said.evidence.contains("node-password: another node has the name; next: rename it"),
            "{said:?}"
        );
        let said = absent(look.joined.as_ref());
        assert!(said.status == Status::Raised && said.evidence.contains("next: rename it"), "{said:?}");
        look.joined = None;
        assert!(state("k3s.service", &look).evidence.starts_with("server, starting"));
        assert_eq!(absent(None).status, Status::Clear);
    }

    #[test]
    fn what_a_join_said_counts_until_k3s_shows_otherwise() {
        let cause = Some(["token-pin", "why", "next"]);
        let soon = jiff::Timestamp::UNIX_EPOCH + Duration::from_secs(60);
        let later = soon + Duration::from_secs(7200);
        for (phase, cause, is_well, now, expected) in [
            (Phase::Joining, None, false, soon, Phase::Joining),
            (Phase::Joining, None, true, soon, Phase::Ready),
            (Phase::Joining, None, false, later, Phase::Failed),
            (Phase::Leaving, None, true, soon, Phase::Leaving),
            (Phase::Leaving, None, true, later, Phase::Ready),
            (Phase::Failed, cause, false, later, Phase::Failed),
            (Phase::Failed, cause, true, later, Phase::Ready),
            (Phase::Ready, None, false, later, Phase::Ready),
        ] {
            let told = told(joined(phase, cause), is_well, now);
            assert_eq!(told.phase, expected, "{phase:?} {is_well}");
            assert_eq!(told.cause.is_some(), expected == Phase::Failed && cause.is_some());
            assert_eq!((told.role.as_str(), told.version.as_str()), ("agent", "v1.35.2+k3s1"));
        }
    }
}
