//! The cluster as this node sees it: the Node's conditions, and how long API, DNS and a service take. `bramble kubernetes`
//! looks, where the owner switched it on; see `crate::kubernetes`.

use std::time::Duration;

use wire::report::{Kind, Rank, Severity, Status, Unit};

use super::{Health, Judge, Pace, Probe, Seen, Statement};
use crate::kubernetes::{DIRECTORY, FILE, Look, PERIOD};

/// The table's row.
pub(super) const PROBE: Probe = Probe {
    id: "kubernetes",
    title: "Kubernetes",
    why: "Whether the API, DNS or a service is late tells where to look first.",
    pace: Pace::Report,
    judge: || Box::new(Kubernetes::default()),
    kernel: None,
};

/// What stands where its owner switched it on.
const ENABLED: &str = "/etc/systemd/system/multi-user.target.wants/bramble-kubernetes.service";

#[derive(Default)]
struct Kubernetes {
    /// Whether Kubernetes was told something when that could be seen last.
    tells: bool,
}

impl Judge for Kubernetes {
    fn judge(&mut self, seen: &Seen<'_>) -> Health {
        let mut health = Health::default();
        let path = format!("{DIRECTORY}/{FILE}");
        let look = match seen.host.text(&path) {
            // Not there: systemd takes the directory away while the unit does not run, also for a restart.
            Err(why) if why.is_absence() && seen.host.link(ENABLED).is_some() => Err(
                "bramble-kubernetes is enabled and does not tell; sudo systemctl status bramble-kubernetes"
                    .to_owned(),
            ),
            // Not switched on.
            Err(why) if why.is_absence() => return health,
            Err(why) => Err(why.to_string()),
            Ok(text) => {
                serde_json::from_str::<Look>(&text).map_err(|_| format!("{path} is of another version"))
            }
        };
        let look = look.and_then(|look| {
            let age = seen.uptime.saturating_sub(Duration::from_micros(look.at_us));
            let fresh = age <= PERIOD * 3;
            fresh.then_some(look).ok_or_else(|| {
                format!(
                    "bramble kubernetes has not looked for {} s; systemctl status bramble-kubernetes",
                    age.as_secs()
                )
            })
        });
        let phases = |look: &Look| [look.api_ms, look.dns_ms.clone().ok(), look.service_ms.clone().ok()];
        let times = look.as_ref().map_or([None; 3], phases);
        for ((id, title), time) in [
            ("api-latency", "API latency"),
            ("cluster-dns-latency", "Cluster DNS latency"),
            ("service-latency", "Service latency"),
        ]
        .into_iter()
        .zip(times)
        {
            health.reading(id, title, time, Unit::Millisecond, Kind::Gauge);
        }
        // Which of them is late tells network, certificates and database apart.
        let api = look.as_ref().ok().and_then(|look| look.api_phases_ms);
        for (phase, (id, title)) in [
            ("api-connect-latency", "API latency, connection"),
            ("api-tls-latency", "API latency, TLS"),
            ("api-answer-latency", "API latency, answer"),
        ]
        .into_iter()
        .enumerate()
        {
            health.reading(id, title, api.map(|api| api[phase]), Unit::Millisecond, Kind::Gauge);
        }
        health.rank(Rank::Diagnostic, |_| true);
        health.rank(Rank::Hidden, |id| id.starts_with("api-") && id != "api-latency");
        let mut state = |id, title, depends_on, judged: Result<(bool, String), String>| {
            let (status, evidence) = match judged {
                Err(why) => (Status::Unknown, why),
                Ok((true, evidence)) => (Status::Raised, evidence),
                Ok((false, evidence)) => (Status::Clear, evidence),
            };
            let severity = Severity::Critical;
            health.statements.push(Statement {
                id,
                subject: None,
                title,
                status,
                severity,
                depends_on,
                evidence,
            });
        };
        state(
            "node-unwell",
            "Kubernetes finds the node unwell",
            &["api-unreachable", "isolated"],
            node(&look),
        );
        let read = look
            .as_ref()
            .map_err(String::clone)
            .and_then(|look| look.node.as_ref().map(|_| look).map_err(String::clone));
        self.tells = read.as_ref().map_or(self.tells, |look| look.told.is_some());
        if self.tells {
            let told = read.map(|look| match &look.told {
                Some(Err(why)) => (true, why.clone()),
                _ => (false, "the Node object has bramble's condition".to_owned()),
            });
            state(
                "kubernetes-refuses",
                "Kubernetes does not take what bramble tells it",
                &["api-unreachable"],
                told,
            );
        }
        let reached = |of: fn(&Look) -> Result<f64, String>, what: &str| match &look {
            Err(why) => Err(why.clone()),
            Ok(look) => Ok(match of(look) {
                Ok(time) => (false, format!("{what} answered after {time:.1} ms")),
                Err(why) => (true, why),
            }),
        };
        let api = |look: &Look| match (&look.node, look.api_ms) {
            (_, Some(time)) => Ok(time),
            (Err(why), None) => Err(why.clone()),
            (Ok(_), None) => Err("its answer was not timed".to_owned()),
        };
        state("api-unreachable", "Kubernetes API does not answer", &["isolated"], reached(api, "the API"));
        state(
            "cluster-dns-unreachable",
            "Cluster DNS does not answer",
            &["isolated", "service-unreachable"],
            reached(|look| look.dns_ms.clone(), "DNS"),
        );
        state(
            "service-unreachable",
            "Services are not reached from the node",
            &["isolated", "api-unreachable"],
            reached(|look| look.service_ms.clone(), "the API's service"),
        );
        health
    }
}

/// What a condition of the Node is when it is good; `None` of one of which that is not known, bramble's own among them.
fn good(kind: &str) -> Option<&'static str> {
    match kind {
        // The second is of K3s' own etcd.
        "Ready" | "EtcdIsVoter" => Some("True"),
        "NetworkUnavailable" => Some("False"),
        kind => kind.ends_with("Pressure").then_some("False"),
    }
}

/// Whether a condition of the Node is bad, and which.
fn node(look: &Result<Look, String>) -> Result<(bool, String), String> {
    let conditions = look.as_ref().map_err(String::clone)?.node.as_ref().map_err(String::clone)?;
    if conditions.iter().all(|c| good(&c.kind).is_none()) {
        return Err("the Node object has no conditions of the kubelet's".to_owned());
    }
    let bad: Vec<String> = conditions
        .iter()
        .filter(|c| good(&c.kind).is_some_and(|good| c.status != good))
        .map(|c| format!("{} is {}: {}", c.kind, c.status, c.message))
        .collect();
    match bad.is_empty() {
        true => Ok((false, "it is Ready, and under no pressure".to_owned())),
        false => Ok((true, bad.join("; "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{kubernetes::NodeCondition, probe::scene::Scene};

    fn condition(kind: &str, status: &str) -> NodeCondition {
        NodeCondition { kind: kind.into(), status: status.into(), message: "as the kubelet says".into() }
    }

    fn tell(scene: &Scene, look: &Look) {
        scene.write(&format!("{DIRECTORY}/{FILE}"), serde_json::to_string(look).unwrap());
    }

    #[test]
    fn a_node_where_it_is_off_has_no_such_readings_and_an_old_look_is_none() {
        let mut scene = Scene::new();
        let mut judge = (PROBE.judge)();
        assert_eq!(scene.judge(&mut judge), Health::default());
        let look = Look {
            at_us: scene.uptime.as_micros() as u64,
            node: Ok(vec![condition("Ready", "True"), condition("DiskPressure", "False")]),
            api_ms: Some(7.5),
            api_phases_ms: Some([0.5, 5.0, 1.5]),
            dns_ms: Ok(1.5),
            service_ms: Err("10.43.0.1:443 does not answer".to_owned()),
            told: None,
        };
        tell(&scene, &look);
        let health = scene.judge(&mut judge);
        assert_eq!(health.value("api-latency"), Some(Some(7.5)));
        assert_eq!(health.value("api-connect-latency"), Some(Some(0.5)));
        assert_eq!(health.value("api-tls-latency"), Some(Some(5.0)));
        assert_eq!(health.value("api-answer-latency"), Some(Some(1.5)));
        assert_eq!(health.value("service-latency"), Some(None));
        let status = |health: &Health, id: &str| health.said(id).unwrap().0;
        assert_eq!(status(&health, "node-unwell"), Status::Clear);
        assert_eq!(status(&health, "cluster-dns-unreachable"), Status::Clear);
        assert_eq!(
            health.said("service-unreachable").unwrap(),
            (Status::Raised, "10.43.0.1:443 does not answer")
        );
        assert_eq!(health.said("kubernetes-refuses"), None);
        let refused = Some(Err("it answers 403".to_owned()));
        tell(&scene, &Look { told: refused, ..look.clone() });
        let health = scene.judge(&mut judge);
        assert_eq!(health.said("kubernetes-refuses").unwrap(), (Status::Raised, "it answers 403"));
        tell(&scene, &Look { told: Some(Ok(())), ..look });
        assert_eq!(status(&scene.judge(&mut judge), "kubernetes-refuses"), Status::Clear);
        scene.wait(91);
        let health = scene.judge(&mut judge);
        assert_eq!(health.value("api-latency"), Some(None));
        for id in ["node-unwell", "api-unreachable", "cluster-dns-unreachable", "service-unreachable"] {
            assert_eq!(status(&health, id), Status::Unknown, "{id}");
        }
        scene.write(&format!("{DIRECTORY}/{FILE}"), "garbage");
        assert_eq!(status(&scene.judge(&mut judge), "node-unwell"), Status::Unknown);
    }

    #[test]
    fn one_that_is_enabled_and_does_not_tell_is_unknown_until_it_is_disabled() {
        let scene = Scene::new();
        let mut judge = (PROBE.judge)();
        let look = Look {
            at_us: scene.uptime.as_micros() as u64,
            node: Ok(vec![condition("Ready", "False")]),
            api_ms: Some(7.5),
            api_phases_ms: None,
            dns_ms: Ok(1.5),
            service_ms: Ok(1.5),
            told: Some(Ok(())),
        };
        // Its unit is on the machine; the link alone counts.
        scene.link(ENABLED, "/lib/systemd/system/bramble-kubernetes.service");
        tell(&scene, &look);
        assert_eq!(scene.judge(&mut judge).said("node-unwell").unwrap().0, Status::Raised);
        scene.remove(DIRECTORY);
        let health = scene.judge(&mut judge);
        assert_eq!(health.value("api-latency"), Some(None));
        let all = ["node-unwell", "kubernetes-refuses", "api-unreachable", "cluster-dns-unreachable"];
        for id in all.into_iter().chain(["service-unreachable"]) {
            let (status, why) = health.said(id).unwrap();
            assert_eq!(status, Status::Unknown, "{id}");
            assert!(why.starts_with("bramble-kubernetes is enabled and does not tell"), "{why}");
        }
        // What Kubernetes was told is not known either while the API does not answer.
        let silent = Look { node: Err("no answer".to_owned()), told: None, ..look.clone() };
        tell(&scene, &silent);
        let health = scene.judge(&mut judge);
        assert_eq!(health.said("kubernetes-refuses").unwrap(), (Status::Unknown, "no answer"));
        tell(&scene, &Look { told: None, ..look });
        assert_eq!(scene.judge(&mut judge).said("kubernetes-refuses"), None);
        scene.remove(ENABLED);
        scene.remove(DIRECTORY);
        assert_eq!(scene.judge(&mut judge), Health::default());
    }

    #[test]
    fn only_conditions_that_are_known_are_judged_and_ours_is_none_of_them() {
        for (conditions, raised) in [
            (&[("Ready", "True"), ("BrambleProblem", "True"), ("EtcdIsVoter", "True")][..], Some(false)),
            (&[("Ready", "True"), ("BrambleProblem", "Unknown"), ("KernelDeadlock", "True")], Some(false)),
            (&[("Ready", "True"), ("EtcdIsVoter", "False")], Some(true)),
            (&[("Ready", "True"), ("DiskPressure", "True")], Some(true)),
            (&[("Ready", "True"), ("NetworkUnavailable", "True")], Some(true)),
            (&[("Ready", "True"), ("NetworkUnavailable", "False"), ("PIDPressure", "False")], Some(false)),
            (&[("Ready", "Unknown")], Some(true)),
            (&[("Ready", "True"), ("MemoryPressure", "Unknown")], Some(true)),
            (&[("BrambleProblem", "True")], None),
        ] {
            let look = Look {
                at_us: 0,
                node: Ok(conditions.iter().map(|(kind, status)| condition(kind, status)).collect()),
                api_ms: None,
                api_phases_ms: None,
                dns_ms: Ok(1.0),
                service_ms: Ok(1.0),
                told: None,
            };
            assert_eq!(node(&Ok(look)).ok().map(|(raised, _)| raised), raised, "{conditions:?}");
        }
    }

    #[test]
    fn what_the_kubelet_complains_of_is_told_in_its_words() {
        let look = |node| {
            Ok(Look {
                at_us: 0,
                node,
                api_ms: Some(1.0),
                api_phases_ms: None,
                dns_ms: Ok(1.0),
                service_ms: Ok(1.0),
                told: None,
            })
        };
        let (raised, why) =
            node(&look(Ok(vec![condition("Ready", "False"), condition("PIDPressure", "True")]))).unwrap();
        assert!(raised);
        assert_eq!(why, "Ready is False: as the kubelet says; PIDPressure is True: as the kubelet says");
        assert!(node(&look(Ok(Vec::new()))).is_err());
        assert_eq!(node(&look(Err("refused".to_owned()))), Err("refused".to_owned()));
    }
}
