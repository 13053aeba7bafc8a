//! After K3s was started: how far it is, what it waits for, and which one cause keeps it from going on.
//!
//! systemd calls K3s up before the node can carry a pod, so more is looked at: the kubelet's own health, the Node object,
//! read with the kubelet's own certificate, and the CNI configuration that Cilium writes. Each look is an [`Observation`],
//! and [`judge`] makes a [`Phase`] of it, knowing nothing else. "Up but not networked" is a phase of its own: K3s is right
//! then, and only Cilium is missing. Nothing is changed here.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::api::{Api, Node};
use super::path;
use crate::facts::table;
use crate::host::http::{Client, Limits as HttpLimits, Request, Trust, Url};
use crate::host::systemd::Unit;
use crate::host::write::HostMut;

/// Where the kubelet says whether it is well.
const KUBELET: &str = "http://127.0.0.1:10248/healthz";
/// What Cilium's operator takes off the node when its agent is ready there.
const TAINT: &str = "node.cilium.io/agent-not-ready";
const PERIOD: Duration = Duration::from_secs(1);
/// So often K3s may end by itself after it was up: on a slow card it loses etcd's elections at first, and finds itself.
const CRASHES: u32 = 5;
/// Messages of the journal that are looked at each time.
const LINES: u32 = 60;

/// What is waited for.
#[derive(Debug, Clone)]
pub struct Awaited {
    /// "k3s.service" or "k3s-agent.service".
    pub unit: &'static str,
    /// The name that the node has in the cluster.
    pub node: String,
    /// Whether Cilium is to be its network.
    pub cilium: bool,
    /// Since when it is waited: older messages of the journal are of an earlier attempt, and tell nothing.
    pub since: Timestamp,
}

/// How long each phase may last, all its times together, before it is given up.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// [`Phase::Starting`]: a first start unpacks the program, makes certificates, and waits for the servers.
    pub starting: Duration,
    /// [`Phase::Kubelet`], [`Phase::Registering`] and [`Phase::NotReady`], each.
    pub node: Duration,
    /// [`Phase::NotNetworked`]: images of some hundred megabytes are pulled.
    pub network: Duration,
    /// All phases together.
    pub total: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        Limits { starting: minutes(10), node: minutes(5), network: minutes(15), total: minutes(40) }
    }
}

/// One look.
#[derive(Debug, Clone, Default)]
pub struct Observation {
    /// How the unit is.
    pub unit: Unit,
    /// What the kubelet says of itself: `Ok` when it is well.
    pub kubelet: Option<Result<(), String>>,
    /// The Node object; `Err` says why it could not be asked for.
    pub node: Option<Result<Option<Node>, String>>,
    /// Whether Cilium has written its CNI configuration.
    pub cni: bool,
}

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// systemd gave it up.
    Failed {
        /// How its last run ended, in systemd's word.
        result: String,
    },
    /// systemd has not called it up yet.
    Starting,
    /// It is up, and the kubelet is not well yet.
    Kubelet {
        /// What it says.
        says: String,
    },
    /// The kubelet is well, and there is no Node object yet.
    Registering {
        /// Why it could not be asked for, when it could not.
        why: Option<String>,
    },
    /// There is a Node object, and it is not Ready.
    NotReady {
        /// What it says.
        says: String,
    },
    /// All is well but the network of pods: Cilium is not there yet.
    NotNetworked,
    /// Pods can run here.
    Ready {
        /// The kubelet's version.
        version: String,
    },
}

/// Makes a phase of a look; `cilium` says whether Cilium is to be the network.
pub fn judge(seen: &Observation, cilium: bool) -> Phase {
    if seen.unit.active == "failed" {
        return Phase::Failed { result: seen.unit.result.clone() };
    }
    if !seen.unit.is_active() {
        return Phase::Starting;
    }
    match &seen.kubelet {
        Some(Ok(())) => {}
        Some(Err(says)) => return Phase::Kubelet { says: says.clone() },
        None => return Phase::Kubelet { says: String::new() },
    }
    let node = match &seen.node {
        Some(Ok(Some(node))) => node,
        Some(Err(why)) => return Phase::Registering { why: Some(why.clone()) },
        Some(Ok(None)) | None => return Phase::Registering { why: None },
    };
    let is_ready = node.ready == "True";
    let lacks_network = !seen.cni
        || node.taints.iter().any(|taint| taint == TAINT)
        || !is_ready && node.message.contains("network plugin");
    match (is_ready, cilium && lacks_network) {
        (_, true) => Phase::NotNetworked,
        (true, false) => Phase::Ready { version: node.version.clone() },
        (false, false) => Phase::NotReady { says: node.message.clone() },
    }
}

impl Phase {
    /// Its name for reports: kebab-case.
    pub const fn name(&self) -> &'static str {
        match self {
            Phase::Failed { .. } => "failed",
            Phase::Starting => "starting",
            Phase::Kubelet { .. } => "kubelet",
            Phase::Registering { .. } => "registering",
            Phase::NotReady { .. } => "not-ready",
            Phase::NotNetworked => "not-networked",
            Phase::Ready { .. } => "ready",
        }
    }

    /// What is waited for, for people.
    pub fn waits_for(&self) -> String {
        let with = |what: &str, says: &str| match says {
            "" => what.to_owned(),
            says => format!("{what}: {says}"),
        };
        match self {
            Phase::Failed { result } => format!("nothing any more: it ended by {result}"),
            Phase::Starting => "K3s to say that it is up".into(),
            Phase::Kubelet { says } => with("the kubelet to be well", says),
            Phase::Registering { why } => with("the node to be registered", why.as_deref().unwrap_or("")),
            Phase::NotReady { says } => with("the node to be Ready", says),
            Phase::NotNetworked => {
                "Cilium: K3s is up, and pods have no network before it has written its CNI configuration"
                    .into()
            }
            Phase::Ready { .. } => "nothing".into(),
        }
    }

    fn limit(&self, limits: &Limits) -> Duration {
        match self {
            Phase::Failed { .. } | Phase::Ready { .. } => Duration::ZERO,
            Phase::Starting => limits.starting,
            Phase::Kubelet { .. } | Phase::Registering { .. } | Phase::NotReady { .. } => limits.node,
            Phase::NotNetworked => limits.network,
        }
    }

    /// What to look at when it does not end.
    fn look_at(&self, awaited: &Awaited) -> String {
        let Awaited { unit, node, .. } = awaited;
        match self {
            Phase::NotReady { .. } => {
                format!("on a server: sudo k3s kubectl describe node {node}")
            }
            Phase::NotNetworked => format!(
                "on a server: sudo k3s kubectl -n kube-system get pods -o wide --field-selector spec.nodeName={node}"
            ),
            _ => format!("sudo journalctl --unit={unit} --lines=50"),
        }
    }
}

/// A message of K3s' journal that is understood: one row of `agent/data/k3s_log.csv`.
#[derive(Debug, PartialEq, Eq)]
pub struct Known {
    pattern: &'static str,
    /// Kebab-case.
    pub cause: &'static str,
    /// Whether waiting does not help.
    pub is_final: bool,
    /// For people.
    pub meaning: &'static str,
    next: &'static str,
}

static TABLE: LazyLock<Vec<Known>> = LazyLock::new(|| {
    table::rows(include_str!("../../data/k3s_log.csv"), ["pattern", "cause", "final", "meaning", "next"])
        .map(|[pattern, cause, is_final, meaning, next]| Known {
            pattern,
            cause,
            is_final: is_final == "yes",
            meaning,
            next,
        })
        .collect()
});

impl Known {
    /// What a person does next.
    pub fn next(&self, node: &str) -> String {
        self.next.replace("{node}", node)
    }
}

/// What a message of K3s' journal means, when it is a known one.
pub fn classify(line: &str) -> Option<&'static Known> {
    TABLE.iter().find(|known| line.contains(known.pattern))
}

/// What the journal tells: the last message that tells something, and what it means when that is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// For people: without time, level and place, and without secrets.
    pub line: Option<String>,
    /// What it means.
    pub known: Option<&'static Known>,
    /// Whether there is no use in waiting: a final one came twice, so K3s had tried again.
    pub is_final: bool,
}

/// Reads messages, the oldest first.
///
/// A known one tells more than an error, and an error more than the rest; of equals the last one counts.
pub fn told(lines: &[String]) -> Told {
    let known: Vec<(&String, &'static Known)> =
        lines.iter().filter_map(|line| Some((line, classify(line)?))).collect();
    let finals =
        |cause: &str| known.iter().filter(|(_, known)| known.is_final && known.cause == cause).count();
    let last_final = known.iter().rev().find(|(_, known)| known.is_final && finals(known.cause) > 1);
    if let Some((line, known)) = last_final.or(known.last()) {
        return Told { line: Some(plain(line)), known: Some(known), is_final: last_final.is_some() };
    }
    let is_bad = |line: &&String| {
        ["level=error", "level=fatal", "level=warning"].iter().any(|level| line.contains(level))
            || line.starts_with(['E', 'F']) && line[1..].starts_with(|c: char| c.is_ascii_digit())
    };
    let line = lines.iter().rev().find(is_bad).or(lines.last());
    Told { line: line.map(|line| plain(line)), ..Told::default() }
}

/// A message without what stands before its sentence in K3s' and Kubernetes' logs, and without what nobody may see.
fn plain(line: &str) -> String {
    let sentence = match line.split_once("msg=\"") {
        Some((_, rest)) => rest.strip_suffix('"').unwrap_or(rest),
        // E1123 09:41:41.000000    1234 kubelet.go:1] sentence
        None => match line.split_once("] ") {
            Some((head, rest)) if head.contains(".go:") => rest,
            _ => line,
        },
    };
    let sentence = sentence.replace("\\\"", "\"");
    let shown: String =
        sentence.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(300).collect();
    without_tokens(&shown)
}

/// A token begins with K10 and 64 hexadecimal digits; what follows up to a blank or a quote is the secret.
fn without_tokens(text: &str) -> String {
    let mut clean = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("K10") {
        let (before, token) = rest.split_at(at);
        clean += before;
        let end = token.find([' ', '"', '\'', ',', ')']).unwrap_or(token.len());
        clean += if token[..end].contains("::") { "K10…" } else { &token[..end] };
        rest = &token[end..];
    }
    clean + rest
}

/// What is shown while it is waited.
#[derive(Debug, Clone)]
pub struct Progress {
    /// How far it is.
    pub phase: Phase,
    /// Since the waiting began.
    pub elapsed: Duration,
    /// In this phase, also before others came in between.
    pub in_phase: Duration,
    /// How often K3s has ended by itself since it was up.
    pub crashes: u32,
    /// What the journal tells.
    pub told: Told,
}

/// The node can carry pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// The kubelet's version.
    pub version: String,
    /// How long it took.
    pub elapsed: Duration,
}

/// It is given up: one cause and one next step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct GivenUp {
    /// What stands in the way: the cause of a known message, or the phase that did not end. Kebab-case.
    pub cause: &'static str,
    /// The cause, for people.
    pub why: String,
    /// What a person does next.
    pub next: String,
}

/// Whether it is to be waited further; pure.
pub fn verdict(progress: &Progress, awaited: &Awaited, limits: &Limits) -> Option<Result<Ready, GivenUp>> {
    let Progress { phase, elapsed, in_phase, crashes, told } = progress;
    if let Phase::Ready { version } = phase {
        return Some(Ok(Ready { version: version.clone(), elapsed: *elapsed }));
    }
    // What K3s wrote before it came up is past; then only images that cannot be pulled tell something.
    let is_up = matches!(phase, Phase::NotReady { .. } | Phase::NotNetworked);
    let known = told.known.filter(|known| !is_up || known.cause == "image-pull");
    let has_ended = matches!(phase, Phase::Failed { .. });
    let is_final = known.is_some() && told.is_final;
    let crashes = Some(*crashes).filter(|crashes| *crashes >= CRASHES);
    let is_late = *in_phase >= phase.limit(limits) || *elapsed >= limits.total;
    if !is_final && !has_ended && !is_late && crashes.is_none() {
        return None;
    }
    Some(Err(match known {
        Some(known) => {
            GivenUp { cause: known.cause, why: known.meaning.into(), next: known.next(&awaited.node) }
        }
        None => GivenUp {
            cause: if crashes.is_some() { "crashing" } else { phase.name() },
            why: match crashes {
                Some(crashes) => {
                    format!("{} was up, and has ended {crashes} times since by itself", awaited.unit)
                }
                None if has_ended => format!("{} has ended and is not started again", awaited.unit),
                None => format!("for {} s it waits for {}", in_phase.as_secs(), phase.waits_for()),
            },
            next: if crashes.is_some() { Phase::Starting.look_at(awaited) } else { phase.look_at(awaited) },
        },
    }))
}

/// Looks once a second and tells `show`, until the node is Ready or there is no use in waiting.
///
/// Cancel-safe: it only looks.
pub async fn watch(
    host: &HostMut,
    awaited: &Awaited,
    limits: &Limits,
    show: &mut dyn FnMut(&Progress),
) -> Result<Ready, GivenUp> {
    let begun = Instant::now();
    // A K3s that comes up and ends again and again would begin each phase anew for ever.
    let mut spent = BTreeMap::<&str, Duration>::new();
    let (mut before, mut restarts_when_up) = (begun, None);
    loop {
        let (seen, told) = look(host, awaited).await;
        let phase = judge(&seen, awaited.cilium);
        let now = Instant::now();
        let in_phase = spent.entry(phase.name()).or_default();
        *in_phase += now - std::mem::replace(&mut before, now);
        if seen.unit.is_active() {
            restarts_when_up.get_or_insert(seen.unit.restarts);
        }
        let crashes = restarts_when_up.map_or(0, |up| seen.unit.restarts.saturating_sub(up));
        let progress = Progress { phase, elapsed: now - begun, in_phase: *in_phase, crashes, told };
        show(&progress);
        if let Some(end) = verdict(&progress, awaited, limits) {
            return end;
        }
        tokio::time::sleep(PERIOD).await;
    }
}

async fn look(host: &HostMut, awaited: &Awaited) -> (Observation, Told) {
    // What cannot be asked now is asked again in a second, and the limit says what was waited for.
    let unit = host.host().unit(awaited.unit).unwrap_or_default();
    let told = host.journal(awaited.unit, awaited.since, LINES).map(|lines| told(&lines)).unwrap_or_default();
    let mut seen = Observation { unit, ..Observation::default() };
    if seen.unit.is_active() {
        seen.kubelet = Some(kubelet(Duration::from_secs(3)).await);
        seen.node = Some(match Api::of(host.host()) {
            Ok(api) => api.node(&awaited.node).await.map_err(|trouble| trouble.to_string()),
            Err(unreadable) => Err(unreadable.to_string()),
        });
        seen.cni = host.host().present(path::CILIUM_CNI) == Ok(true);
    }
    (seen, told)
}

/// What the kubelet says of itself.
pub async fn kubelet(limit: Duration) -> Result<(), String> {
    let limits = HttpLimits { connect: limit, answer: limit, whole: limit, body: 4096 };
    let ask = async {
        let url = Url::parse(KUBELET).expect("it is a URL");
        // Nobody is to be believed: it is this machine, and not over TLS.
        Client::new(Trust::Anybody, None)?.within(limits).send(Request::get(&url)).await
    };
    match ask.await {
        Ok(answer) if answer.status == 200 => Ok(()),
        Ok(answer) => Err(format!("it answers {}", answer.status)),
        Err(trouble) => Err(trouble.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(active: &str) -> Unit {
        Unit { active: active.into(), ..Unit::default() }
    }

    fn up(node: Option<Node>, cni: bool) -> Observation {
        Observation { unit: unit("active"), kubelet: Some(Ok(())), node: Some(Ok(node)), cni }
    }

    fn node(ready: &str, message: &str, taints: &[&str]) -> Option<Node> {
        let taints = taints.iter().map(|taint| taint.to_string()).collect();
        Some(Node {
            ready: ready.into(),
            message: message.into(),
            taints,
            version: "v1".into(),
            ..Node::default()
        })
    }

    #[test]
    fn each_look_is_one_phase() {
        const NO_CNI: &str = "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady \
                              message:Network plugin returns error: cni plugin not initialized; network plugin";
        let started = |active| Observation { unit: unit(active), ..Observation::default() };
        let quiet = |kubelet| Observation { unit: unit("active"), kubelet, ..Observation::default() };
        for (seen, with_cilium, without) in [
            (started("activating"), "starting", "starting"),
            (started("inactive"), "starting", "starting"),
            (started("failed"), "failed", "failed"),
            (quiet(None), "kubelet", "kubelet"),
            (quiet(Some(Err("it answers 500".into()))), "kubelet", "kubelet"),
            (quiet(Some(Ok(()))), "registering", "registering"),
            (up(None, false), "registering", "registering"),
            (up(node("False", NO_CNI, &[]), false), "not-networked", "not-ready"),
            (up(node("True", "", &[]), false), "not-networked", "ready"),
            (up(node("True", "", &[TAINT]), true), "not-networked", "ready"),
            (up(node("False", "disk pressure", &[]), true), "not-ready", "not-ready"),
            (up(node("Unknown", "", &[]), true), "not-ready", "not-ready"),
            (up(node("True", "", &["node-role.kubernetes.io/control-plane"]), true), "ready", "ready"),
        ] {
            assert_eq!(judge(&seen, true).name(), with_cilium, "{seen:?}");
            assert_eq!(judge(&seen, false).name(), without, "{seen:?}");
        }
        let unasked = Observation { node: Some(Err("refused".into())), ..up(None, false) };
        assert!(judge(&unasked, true).waits_for().ends_with("registered: refused"));
    }

    fn lines(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|line| line.to_string()).collect()
    }

    #[test]
    fn every_row_of_the_table_finds_itself_and_says_what_to_do() {
        for (at, known) in TABLE.iter().enumerate() {
            assert_eq!(
                classify(known.pattern),
                Some(&TABLE[at]),
                "{} is hidden by a row above",
                known.pattern
            );
            assert!(!known.meaning.is_empty() && !known.next("n1").contains('{'), "{known:?}");
            assert!(known.cause.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{known:?}");
        }
    }

    #[test]
    fn the_last_telling_message_is_shown_without_its_head() {
        let log = lines(&[
            "time=\"2026-11-23T09:00:00Z\" level=error msg=\"something \\\"odd\\\"\"",
            "time=\"2026-11-23T09:00:01Z\" level=info msg=\"Starting k3s agent v1.35.2+k3s1\"",
        ]);
        assert_eq!(told(&log).line.as_deref(), Some("something \"odd\""));
        assert_eq!(told(&log[1..]).line.as_deref(), Some("Starting k3s agent v1.35.2+k3s1"));
        let klog = lines(&["E1123 09:00:00.1   12 kubelet.go:99] \"Container runtime network not ready\""]);
        assert_eq!(told(&klog).line.as_deref(), Some("\"Container runtime network not ready\""));
        assert_eq!(told(&[]), Told::default());
        assert_eq!(told(&lines(&["É"])).line.as_deref(), Some("É"));
    }

    #[test]
    fn a_final_message_counts_when_k3s_has_tried_again() {
        let pin = "level=error msg=\"token CA hash does not match the Cluster CA certificate hash: a != b\"";
        let once = told(&lines(&[pin, "level=info msg=x"]));
        assert_eq!((once.known.map(|known| known.cause), once.is_final), (Some("token-pin"), false));
        let down = "level=error msg=\"failed to get CA certs: connection refused\"";
        let twice = told(&lines(&[pin, pin, down]));
        assert_eq!((twice.known.map(|known| known.cause), twice.is_final), (Some("token-pin"), true));
        let retried = told(&lines(&[down, down]));
        assert_eq!(
            (retried.known.map(|known| known.cause), retried.is_final),
            (Some("server-unreachable"), false)
        );
    }

    #[test]
    fn a_token_in_a_message_is_not_repeated() {
        let token = format!("K10{}::server:hunter2", "a".repeat(64));
        for text in [format!("bad token {token}"), format!("\"{token}\", and {token}"), token.clone()] {
            let shown = plain(&text);
            assert!(!shown.contains("hunter2") && shown.contains("K10…"), "{shown}");
        }
        assert_eq!(plain("chip K10 is fine"), "chip K10 is fine");
    }

    fn awaited() -> Awaited {
        Awaited { unit: "k3s-agent.service", node: "n1".into(), cilium: true, since: Timestamp::UNIX_EPOCH }
    }

    fn after(seconds: u64, phase: Phase, told: Told) -> Option<Result<Ready, GivenUp>> {
        let time = Duration::from_secs(seconds);
        let progress = Progress { phase, elapsed: time, in_phase: time, crashes: 0, told };
        verdict(&progress, &awaited(), &Limits::default())
    }

    #[test]
    fn a_k3s_that_comes_up_and_ends_again_and_again_is_given_up() {
        let verdict = |crashes, seconds| {
            let (phase, second) = (Phase::Kubelet { says: "x".into() }, Duration::from_secs(1));
            let elapsed = second * seconds;
            let progress = Progress { phase, elapsed, in_phase: second, crashes, told: Told::default() };
            verdict(&progress, &awaited(), &Limits::default())
        };
        assert_eq!(verdict(CRASHES - 1, 60), None);
        let given_up = verdict(CRASHES, 60).unwrap().unwrap_err();
        assert_eq!(given_up.cause, "crashing");
        assert!(given_up.why.contains("ended 5 times") && given_up.next.contains("journalctl"));
        assert_eq!(verdict(0, 2400).unwrap().unwrap_err().cause, "kubelet", "all has an end");
    }

    #[test]
    fn a_phase_that_does_not_end_names_what_to_look_at() {
        assert_eq!(after(599, Phase::Starting, Told::default()), None);
        let given_up = after(600, Phase::Starting, Told::default()).unwrap().unwrap_err();
        assert_eq!(given_up.cause, "starting");
        assert!(given_up.next.contains("journalctl --unit=k3s-agent.service"), "{given_up:?}");
        let without_cilium = after(900, Phase::NotNetworked, Told::default()).unwrap().unwrap_err();
        assert_eq!(without_cilium.cause, "not-networked");
        assert!(without_cilium.next.contains("spec.nodeName=n1"), "{without_cilium:?}");
        let failed = after(1, Phase::Failed { result: "exit-code".into() }, Told::default());
        assert_eq!(failed.unwrap().unwrap_err().cause, "failed");
        let ready = after(7, Phase::Ready { version: "v1".into() }, Told::default()).unwrap();
        assert_eq!(ready, Ok(Ready { version: "v1".into(), elapsed: Duration::from_secs(7) }));
    }

    #[test]
    fn a_final_message_ends_the_waiting_at_once_and_any_known_one_names_its_end() {
        let rejected = "Node password rejected, duplicate hostname or contents of '/etc/rancher/node/password' may not \
                        match server node-passwd entry";
        let given_up = after(3, Phase::Starting, told(&lines(&[rejected, rejected]))).unwrap().unwrap_err();
        assert_eq!(given_up.cause, "node-password");
        assert!(given_up.next.contains("secret n1.node-password.k3s"), "{given_up:?}");
        let past = told(&lines(&[rejected, rejected]));
        assert_eq!(after(3, Phase::NotNetworked, past), None, "it came up after that");
        let learner = told(&lines(&["etcdserver: too many learner members in cluster"]));
        assert_eq!(after(3, Phase::Starting, learner.clone()), None);
        assert_eq!(after(600, Phase::Starting, learner).unwrap().unwrap_err().cause, "etcd-learner");
    }
}
