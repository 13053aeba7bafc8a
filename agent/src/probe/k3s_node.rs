//! K3s on this node: whether it runs, whether its kubelet is well, whether pods get a network.
//!
//! Seen without rights: what systemd says of the unit, what the kubelet says of itself on the loopback address, whether
//! Cilium's CNI configuration is there, and what the last `bramble join` came to.

use std::time::Duration;

use wire::report::{Kind, Severity, Status, Unit};

use super::{Health, Judge, Pace, Probe, Seen, Statement};
use crate::host::Host;
use crate::host::systemd;
use crate::k3s::joined::Joined;
use crate::k3s::{leave, path, wait};

/// The table's row.
pub(super) const PROBE: Probe = Probe {
    id: "k3s-node",
    title: "K3s on this node",
    why: "Whether the node can carry pods is known here even while the cluster's API does not answer.",
    pace: Pace::Report,
    judge: || Box::new(Node),
    kernel: None,
};

/// A kubelet that is well answers within a millisecond.
const PATIENCE: Duration = Duration::from_secs(1);

struct Node;

/// What is seen of it.
struct Look {
    unit: systemd::Unit,
    kubelet: Result<(), String>,
    cni: bool,
    joined: Option<Joined>,
}

impl Judge for Node {
    fn judge(&mut self, seen: &Seen<'_>) -> Health {
        let mut health = Health::default();
        let Some(unit) = leave::unit_file(seen.host) else {
            health.statements.push(statement(
                Status::Clear,
                Severity::Warning,
                "K3s is not on this node".into(),
            ));
            return health;
        };
        match look(seen.host, unit) {
            Ok(look) => {
                let is_up = f64::from(u8::from(look.unit.is_active() && look.kubelet.is_ok()));
                health.reading("k3s-up", "K3s is up", Some(is_up), Unit::Count, Kind::Gauge);
                health.statements.push(state(unit, &look));
            }
            Err(why) => health.statements.push(statement(Status::Unknown, Severity::Warning, why)),
        }
        health
    }
}

fn look(host: &Host, name: &str) -> Result<Look, String> {
    let unit = host.unit(name).map_err(|unreadable| unreadable.to_string())?;
    let kubelet = match unit.is_active() {
        true => kubelet(),
        false => Err("K3s is not up".into()),
    };
    let cni = host.present(path::CILIUM_CNI) == Ok(true);
    Ok(Look { unit, kubelet, cni, joined: Joined::read(host).map_err(|unreadable| unreadable.to_string())? })
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

/// Pure.
fn state(unit: &str, look: &Look) -> Statement {
    let role = match (&look.joined, unit) {
        (Some(joined), _) => format!("{} {}", joined.role, joined.version),
        (None, "k3s.service") => "server".into(),
        (None, _) => "agent".into(),
    };
    let cause = look.joined.as_ref().and_then(|joined| joined.cause.as_ref());
    let known = cause.map_or(String::new(), |[id, why, next]| format!("; {id}: {why}; next: {next}"));
    let waits_for_cilium = look.joined.as_ref().is_some_and(|joined| joined.cilium) && !look.cni;
    match (&look.kubelet, look.unit.active.as_str()) {
        (Ok(()), _) if waits_for_cilium => {
            let evidence =
                format!("{role}, not-networked: K3s is up, and Cilium has not written its configuration");
            statement(Status::Raised, Severity::Warning, evidence)
        }
        (Ok(()), _) => {
            statement(Status::Clear, Severity::Warning, format!("{role}: up, the kubelet is well"))
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

    fn look(active: &str, kubelet: Result<(), &str>, cni: bool) -> Look {
        let unit =
            systemd::Unit { active: active.into(), result: "exit-code".into(), ..systemd::Unit::default() };
        let joined =
            Joined { role: "agent".into(), version: "v1.35.2+k3s1".into(), cilium: true, cause: None };
        Look { unit, kubelet: kubelet.map_err(str::to_owned), cni, joined: Some(joined) }
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
    fn the_cause_of_a_join_that_failed_is_said() {
        let mut look = look("activating", Err("x"), false);
        let cause = ["node-password", "another node has the name", "rename it"].map(str::to_owned);
        look.joined = look.joined.map(|joined| Joined { cause: Some(cause), ..joined });
        let said = state("k3s-agent.service", &look);
        assert!(
            said.evidence.contains("node-password: another node has the name; next: rename it"),
            "{said:?}"
        );
        look.joined = None;
        assert!(state("k3s.service", &look).evidence.starts_with("server, starting"));
    }
}
