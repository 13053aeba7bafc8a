//! K3s' restarts: how often systemd had to start it again by itself.
//!
//! systemd keeps a link with the id of each unit's newest run, which costs one call to look at; only when it is another one
//! systemd is asked for its count.

use std::time::{Duration, Instant};

use wire::report::{Kind, Rank, Severity, Status, Unit};

use super::{Health, Judge, Pace, Probe, Seen, Statement};
use crate::host::{Host, systemd::Asked};

/// The table's row.
pub(super) const PROBE: Probe = Probe {
    id: "k3s",
    title: "K3s restarts",
    why: "systemd starts K3s again without a word; who looks later sees it run.",
    pace: Pace::Report,
    judge: || Box::new(K3s::default()),
    kernel: None,
};

/// How long a restart is told.
const TOLD: Duration = Duration::from_secs(600);

/// K3s' unit and the id of its newest run, on a node that has one.
pub(super) fn run(host: &Host) -> Option<(&'static str, String)> {
    ["k3s.service", "k3s-agent.service"]
        .into_iter()
        .find_map(|unit| Some((unit, host.link(&format!("/run/systemd/units/invocation:{unit}"))?)))
}

#[derive(Default)]
struct K3s {
    systemd: Asked,
    run: Option<String>,
    /// What systemd counts, or why it does not say.
    restarts: Option<Result<u32, String>>,
    /// When the count rose, and by how much since it was first seen.
    rose: Option<(Instant, u32)>,
}

impl Judge for K3s {
    fn judge(&mut self, seen: &Seen<'_>) -> Health {
        let mut health = Health::default();
        let Some((unit, run)) = run(seen.host) else {
            return health;
        };
        if self.run.as_ref() != Some(&run) {
            let restarts = self.systemd.unit(seen.host, unit).map(|unit| unit.restarts);
            // Who was not answered asks again, and compares with what was counted before.
            self.run = restarts.is_ok().then_some(run);
            if restarts.is_ok() || self.restarts.is_none() {
                self.take(restarts, seen.now);
            }
        }
        let count = self.restarts.as_ref().and_then(|restarts| restarts.as_ref().ok());
        health.reading(
            "k3s-restarts",
            "K3s restarts",
            count.map(|&c| f64::from(c)),
            Unit::Count,
            Kind::Total,
        );
        health.rank(Rank::Diagnostic, |_| true);
        let fresh = self.rose.filter(|(at, _)| seen.now.duration_since(*at) <= TOLD);
        let (status, evidence) = match (fresh, &self.restarts) {
            (Some((at, times)), _) => {
                let ago = seen.now.duration_since(at).as_secs() / 60;
                let evidence = format!(
                    "systemd started {unit} again {times} times since the agent looks, last {ago} min ago; \
                     journalctl --unit={unit} says why it ended"
                );
                (Status::Raised, evidence)
            }
            (None, Some(Err(why))) => (Status::Unknown, why.clone()),
            (None, _) => {
                (Status::Clear, format!("{unit} was not started again by itself in the last 10 min"))
            }
        };
        health.statements.push(Statement {
            id: "k3s-restarting",
            subject: None,
            title: "K3s ended and was started again",
            status,
            severity: Severity::Critical,
            depends_on: &["under-voltage", "storage-resets", "slow-storage", "disk-full"],
            evidence,
        });
        health
    }
}

impl K3s {
    /// A new run began: with a higher count because systemd began it, with another because a person did.
    fn take(&mut self, restarts: Result<u32, String>, now: Instant) {
        if let (Some(Ok(before)), Ok(after)) = (&self.restarts, &restarts)
            && after > before
        {
            let times = self.rose.map_or(0, |(_, times)| times) + (after - before);
            self.rose = Some((now, times));
        }
        self.restarts = Some(restarts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::scene::Scene;

    #[test]
    fn a_node_without_k3s_has_no_such_reading_and_one_whose_systemd_is_silent_cannot_tell() {
        let scene = Scene::new();
        let mut judge = (PROBE.judge)();
        assert_eq!(scene.judge(&mut judge), Health::default());
        scene.link("/run/systemd/units/invocation:k3s-agent.service", "0123456789abcdef0123456789abcdef");
        let health = scene.judge(&mut judge);
        assert_eq!(health.value("k3s-restarts"), Some(None));
        assert_eq!(health.said("k3s-restarting").unwrap().0, Status::Unknown, "a tree has no systemd");
    }

    #[test]
    fn only_restarts_that_systemd_made_by_itself_rise() {
        let (mut k3s, now) = (K3s::default(), Instant::now());
        for (count, rose) in [(3, None), (4, Some(1)), (6, Some(3)), (0, Some(3)), (1, Some(4))] {
            k3s.take(Ok(count), now);
            assert_eq!(k3s.rose.map(|(_, times)| times), rose, "{count}");
        }
        k3s.take(Err("gone".to_owned()), now);
        k3s.take(Ok(9), now);
        assert_eq!(k3s.rose.map(|(_, times)| times), Some(4), "what happened in between is not known");
    }
}
