//! What bramble knows of its node, told to Kubernetes, so that `kubectl describe node` tells the story: one condition of the
//! Node object, and an Event for each change. Off by default.
//!
//! The kubelet's certificate may write both for its own node alone (the Node authorizer), so nobody grants anything. A
//! condition of somebody else is never touched, and ours is taken back where its owner switched it off again.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, net::UnixStream, time::timeout};
use wire::report::{self, Condition, NodeState, Status};

use super::{NodeCondition, PATIENCE, Place};
use crate::host::{
    clock,
    http::{Client, Request, Trouble},
};

/// The type of our condition: "True" is a problem, as it is for those of node-problem-detector.
pub const CONDITION: &str = "BrambleProblem";
/// How often it is said again that nothing changed, as the kubelet does.
const HEARTBEAT: Duration = Duration::from_secs(300);
/// Most Events of one look; what is left comes with the next.
const MOST_EVENTS: usize = 8;
/// Longest message of a condition or an Event, characters: the API takes no Event with more than 1,024 bytes, and no more of a
/// condition is read back, to be compared.
const LONGEST: usize = super::LONGEST;
/// Longest answer of the agent that is read, bytes.
const MOST: u64 = 4 << 20;

/// Tells what changed since it was last asked to.
#[derive(Debug)]
pub struct Teller {
    /// Where the agent answers; `None` where nothing is to be told.
    agent: Option<PathBuf>,
    /// The raised conditions that Events were made of, with their titles; `None` before the first look: what stands then
    /// is in the condition, and a restart makes no Event.
    raised: Option<BTreeMap<Problem, String>>,
    /// When the condition was last written.
    written: Option<Instant>,
}

/// Id and subject of a condition.
type Problem = (String, Option<String>);

/// Of the agent's answer, what is told.
#[derive(Deserialize)]
struct Answer {
    state: NodeState,
}

/// Our condition as it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Verdict {
    status: &'static str,
    reason: String,
    message: String,
}

/// One Event.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Change {
    problem: Problem,
    /// `Some` = it is raised, with its title.
    title: Option<String>,
    reason: String,
    message: String,
}

impl Teller {
    /// Tells what the agent answers on its socket; with `None` it only takes back what was told before.
    pub fn new(agent: Option<PathBuf>) -> Teller {
        Teller { agent, raised: None, written: None }
    }

    /// Whether anything is to be told.
    pub fn tells(&self) -> bool {
        self.agent.is_some()
    }

    /// Compares the Node's conditions, as they were just read, with what the agent says, and writes what differs.
    ///
    /// # Errors
    /// The API refuses, or does not answer: its words.
    pub async fn tell(
        &mut self,
        client: &Client,
        place: &Place,
        conditions: &[NodeCondition],
    ) -> Result<(), Trouble> {
        let ours = conditions.iter().find(|condition| condition.kind == CONDITION);
        let Some(agent) = &self.agent else {
            return match ours {
                Some(_) => patch(client, place, json!({ "type": CONDITION, "$patch": "delete" })).await,
                None => Ok(()),
            };
        };
        let answer = ask(agent).await;
        let verdict = verdict(answer.as_ref().map(Vec::as_slice).map_err(String::as_str));
        let same = ours.is_some_and(|o| o.status == verdict.status && o.message == verdict.message);
        if !same || self.written.is_none_or(|written| written.elapsed() >= HEARTBEAT) {
            let now = second(clock::now());
            let mut condition = json!({
                "type": CONDITION,
                "status": verdict.status,
                "reason": verdict.reason,
                "message": verdict.message,
                "lastHeartbeatTime": now,
            });
            // A strategic merge keeps what is not named: the status has not changed since.
            if ours.is_none_or(|ours| ours.status != verdict.status) {
                condition["lastTransitionTime"] = now.into();
            }
            patch(client, place, condition).await?;
            self.written = Some(Instant::now());
        }
        let Ok(conditions) = answer else { return Ok(()) };
        let Some(before) = &mut self.raised else {
            self.raised = Some(raised(&conditions).map(|c| (problem(c), c.title.clone())).collect());
            return Ok(());
        };
        for change in changes(before, &conditions).into_iter().take(MOST_EVENTS) {
            post(client, place, &change).await?;
            match change.title {
                Some(title) => before.insert(change.problem, title),
                None => before.remove(&change.problem),
            };
        }
        Ok(())
    }
}

/// What the agent states.
async fn ask(socket: &PathBuf) -> Result<Vec<Condition>, String> {
    let asked = async {
        let mut text = Vec::new();
        UnixStream::connect(socket).await?.take(MOST).read_to_end(&mut text).await?;
        Ok::<_, std::io::Error>(text)
    };
    let why =
        |why: String| format!("the agent does not say how the node is: {why}; sudo systemctl status bramble");
    let text = timeout(PATIENCE, asked).await.map_err(|_| why("no answer".to_owned()))?;
    let text = text.map_err(|error| why(error.to_string()))?;
    let answer: Answer = serde_json::from_slice(&text).map_err(|error| why(error.to_string()))?;
    Ok(answer.state.conditions)
}

fn raised(conditions: &[Condition]) -> impl Iterator<Item = &Condition> {
    conditions.iter().filter(|condition| condition.status == Status::Raised)
}

fn problem(condition: &Condition) -> Problem {
    (condition.id.clone(), condition.subject.clone())
}

fn verdict(said: Result<&[Condition], &str>) -> Verdict {
    let of = |status, reason: &str, message: &str| Verdict {
        status,
        reason: reason.to_owned(),
        message: short(message),
    };
    let conditions = match said {
        Err(why) => return of("Unknown", "AgentSilent", why),
        Ok(conditions) => conditions,
    };
    if let Some(root) = report::root(conditions) {
        return of("True", &camel(&root.id), &sentence(root));
    }
    match conditions.iter().find(|condition| condition.status == Status::Unknown) {
        Some(unknown) => of("Unknown", "CouldNotTell", &sentence(unknown)),
        None => of("False", "NothingWrong", "bramble sees nothing wrong with the node"),
    }
}

/// What Events are to be made of: raised conditions that were not, and those that were and are clear. What cannot be told
/// any more is neither.
fn changes(before: &BTreeMap<Problem, String>, conditions: &[Condition]) -> Vec<Change> {
    let began = raised(conditions).filter(|c| !before.contains_key(&problem(c))).map(|condition| Change {
        problem: problem(condition),
        title: Some(condition.title.clone()),
        reason: camel(&condition.id),
        message: short(&sentence(condition)),
    });
    let over = before.iter().filter_map(|(problem, title)| {
        let now = conditions.iter().find(|c| c.id == problem.0 && c.subject == problem.1);
        let evidence = match now {
            Some(condition) if condition.status == Status::Clear => condition.evidence.as_str(),
            Some(_) => return None,
            // A peer that was taken away has no condition any more.
            None => "there is nothing left that it could be said of",
        };
        let about = problem.1.as_ref().map(|subject| format!(" {subject}")).unwrap_or_default();
        Some(Change {
            problem: problem.clone(),
            title: None,
            reason: camel(&problem.0),
            message: short(&format!("Over: {title}{about}: {evidence}")),
        })
    });
    began.chain(over).collect()
}

fn sentence(condition: &Condition) -> String {
    match &condition.subject {
        Some(subject) => format!("{} {subject}: {}", condition.title, condition.evidence),
        None => format!("{}: {}", condition.title, condition.evidence),
    }
}

fn short(text: &str) -> String {
    text.chars().take(LONGEST).collect()
}

/// `path-cut` as Kubernetes writes reasons: `PathCut`.
fn camel(id: &str) -> String {
    let words = id.split('-').map(|word| word.split_at(word.len().min(1)));
    words.map(|(first, rest)| first.to_ascii_uppercase() + rest).collect()
}

/// As Kubernetes writes times: RFC 3339, whole seconds.
fn second(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

async fn patch(client: &Client, place: &Place, condition: Value) -> Result<(), Trouble> {
    let url = place.api.at(&format!("/api/v1/nodes/{}/status", place.node));
    let body = json!({ "status": { "conditions": [condition] } });
    send(client, Request::new("PATCH", &url), "application/strategic-merge-patch+json", &body).await
}

async fn post(client: &Client, place: &Place, change: &Change) -> Result<(), Trouble> {
    let now = clock::now();
    let node = &place.node;
    // Where the kubelet's own Events of its node are, and found by `kubectl describe`: it takes the name for the uid.
    let event = json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": { "name": format!("{node}.{:x}", now.as_nanosecond()), "namespace": "default" },
        "involvedObject": { "kind": "Node", "name": node, "uid": node, "apiVersion": "v1" },
        "type": if change.title.is_some() { "Warning" } else { "Normal" },
        "reason": change.reason,
        "message": change.message,
        "source": { "component": "bramble", "host": node },
        "reportingComponent": "bramble",
        "reportingInstance": node,
        "firstTimestamp": second(now),
        "lastTimestamp": second(now),
        "count": 1,
    });
    let url = place.api.at("/api/v1/namespaces/default/events");
    send(client, Request::new("POST", &url), "application/json", &event).await
}

async fn send(client: &Client, request: Request, kind: &'static str, body: &Value) -> Result<(), Trouble> {
    let body = serde_json::to_vec(body).expect("text and numbers are JSON");
    client.send(request.body(kind, body)).await?.good().map(drop)
}

#[cfg(test)]
mod tests {
    use wire::report::Severity;

    use super::*;

    fn condition(id: &str, status: Status, evidence: &str) -> Condition {
        Condition {
            id: id.to_owned(),
            subject: (id == "path-cut").then(|| "n1 -> n2".to_owned()),
            title: "It".to_owned(),
            status,
            severity: Severity::Critical,
            since: Timestamp::UNIX_EPOCH,
            depends_on: Vec::new(),
            evidence: evidence.to_owned(),
        }
    }

    #[test]
    fn nothing_is_well_that_could_not_be_told() {
        let clear = condition("isolated", Status::Clear, "2 peers are heard");
        let unknown = condition("drop-reasons", Status::Unknown, "no companion");
        let raised = condition("path-cut", Status::Raised, "nothing arrives");
        let said = |conditions: &[Condition]| {
            let verdict = verdict(Ok(conditions));
            (verdict.status, verdict.reason, verdict.message)
        };
        assert_eq!(said(std::slice::from_ref(&clear)).0, "False");
        assert_eq!(said(&[]).0, "False");
        let could_not = said(&[clear.clone(), unknown.clone()]);
        assert_eq!(could_not, ("Unknown", "CouldNotTell".into(), "It: no companion".into()));
        let bad = said(&[clear, unknown, raised]);
        assert_eq!(bad, ("True", "PathCut".into(), "It n1 -> n2: nothing arrives".into()));
        assert_eq!(verdict(Err("no answer")).status, "Unknown");
        assert_eq!(verdict(Err(&"ü".repeat(2000))).message.chars().count(), LONGEST);
    }

    #[test]
    fn each_change_is_one_event_and_what_cannot_be_told_is_none() {
        let up = [condition("path-cut", Status::Raised, "nothing arrives")];
        let none = BTreeMap::new();
        let began = changes(&none, &up);
        assert_eq!(began.len(), 1);
        assert_eq!((began[0].reason.as_str(), began[0].title.as_deref()), ("PathCut", Some("It")));
        let stands: BTreeMap<_, _> = [(problem(&up[0]), "It".to_owned())].into();
        assert_eq!(changes(&stands, &up), []);
        assert_eq!(changes(&stands, &[condition("path-cut", Status::Unknown, "no companion")]), []);
        let over = changes(&stands, &[condition("path-cut", Status::Clear, "all of 5 arrived")]);
        assert_eq!(over[0].message, "Over: It n1 -> n2: all of 5 arrived");
        assert_eq!(over[0].title, None);
        assert_eq!(changes(&stands, &[]).len(), 1);
    }

    #[test]
    fn reasons_and_times_are_written_as_kubernetes_writes_them() {
        assert_eq!(camel("user-space-stamps"), "UserSpaceStamps");
        assert_eq!(camel("k3s--x"), "K3sX");
        assert_eq!(second(Timestamp::UNIX_EPOCH), "1970-01-01T00:00:00Z");
    }
}
