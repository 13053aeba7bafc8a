//! The cluster as JSON: what `/api/v1/cluster` answers and what the page draws.
//!
//! ```text
//! v         1
//! ts        when it was true, by the aggregator's clock
//! cluster   name
//! version   the aggregator's
//! broker    {connected, since, why}             why: only while not connected
//! headline  {state, text, detail}               state: fine | trouble | unknown
//! nodes     [{name, state, since, heard, address, model, kernel, os, version, stamps, why, worst, readings,
//!             conditions, findings, counts}]    state: online | silent | gone | last-known
//! links     [{from, to, state, loss, delay_ms, round_trip_us, stamps}]
//!                                               state: fine | unknown | slow | lossy | cut
//! left_out  {nodes, links}                      what is not listed because there are too many
//! alerts    [wire::cluster::Alert]              root causes first
//! refused   {kind: count}                       messages that were dropped
//! ```
//! Fields may be added; a field that changes its meaning makes `v` 2. Texts come from the nodes and are not escaped
//! for HTML.

use std::{collections::BTreeMap, net::Ipv4Addr};

use jiff::Timestamp;
use serde::Serialize;
use wire::{
    cluster::Alert,
    report::{Condition, Finding, FindingCounts, Reading, Severity, Stamps, Status, WayState},
    topic::Name,
};

use crate::{
    alert::NodeTrouble,
    cluster::{Cluster, Node, Presence, Refusal},
    mesh,
};

/// Most nodes that are listed with everything they said, the troubled ones first; a page with more is of no use.
const NODES: usize = 200;

/// See the head of this file.
#[derive(Serialize)]
struct View<'a> {
    v: u32,
    ts: Timestamp,
    cluster: &'a Name,
    version: &'static str,
    broker: BrokerView<'a>,
    headline: Headline,
    nodes: Vec<NodeView<'a>>,
    links: Vec<LinkView<'a>>,
    left_out: LeftOut,
    alerts: Vec<Alert>,
    refused: BTreeMap<&'static str, u64>,
}

#[derive(Serialize)]
struct BrokerView<'a> {
    connected: bool,
    since: Option<Timestamp>,
    why: &'a str,
}

/// The one sentence.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Headline {
    /// `fine`, `trouble` or `unknown`.
    pub state: &'static str,
    /// The one true reason.
    pub text: String,
    /// What else is worth knowing; may be empty.
    pub detail: String,
}

#[derive(Serialize)]
struct NodeView<'a> {
    name: &'a Name,
    state: &'static str,
    since: Timestamp,
    heard: Option<Timestamp>,
    address: Option<Ipv4Addr>,
    model: Option<&'a str>,
    kernel: Option<&'a str>,
    os: Option<&'a str>,
    version: Option<&'a str>,
    stamps: Option<Stamps>,
    why: Option<&'a str>,
    worst: Option<Worst<'a>>,
    readings: Option<&'a BTreeMap<String, Reading>>,
    conditions: &'a [Condition],
    counts: Option<FindingCounts>,
    findings: &'a [Finding],
}

/// The condition that asks most for attention.
#[derive(Serialize)]
struct Worst<'a> {
    status: Status,
    severity: Severity,
    title: &'a str,
    subject: Option<&'a str>,
    evidence: &'a str,
}

#[derive(Serialize)]
struct LinkView<'a> {
    from: &'a Name,
    to: &'a Name,
    state: WayState,
    loss: Option<f64>,
    delay_ms: Option<f64>,
    round_trip_us: Option<f64>,
    stamps: Option<Stamps>,
}

#[derive(Serialize)]
struct LeftOut {
    nodes: usize,
    links: usize,
}

/// One JSON object.
pub fn render(cluster: &Cluster, now: Timestamp) -> String {
    let mut listed: Vec<(&Name, &Node)> = cluster.nodes().iter().collect();
    let all = listed.len();
    if all > NODES {
        listed.sort_by_key(|(name, node)| (node_state(cluster, name, node) == "online", *name));
        listed.truncate(NODES);
        listed.sort_by_key(|(name, _)| *name);
    }
    let shown: std::collections::BTreeSet<&Name> = listed.iter().map(|(name, _)| *name).collect();
    let pairs = mesh::pairs(cluster.nodes());
    let links: Vec<LinkView<'_>> = pairs
        .iter()
        .filter(|(from, to)| shown.contains(from) && shown.contains(to))
        .map(|(from, to)| {
            let link = mesh::between(cluster.nodes(), from, to, now);
            LinkView {
                from,
                to,
                state: link.way.state,
                loss: link.way.loss,
                delay_ms: link.way.delay_ms,
                round_trip_us: link.round_trip.map(|t| t.median_us),
                stamps: link.round_trip.map(|t| t.stamps),
            }
        })
        .collect();
    let (broker, wall) = (cluster.broker(), cluster.wall());
    let view = View {
        v: 1,
        ts: wall.tell(now),
        cluster: cluster.name(),
        version: env!("CARGO_PKG_VERSION"),
        broker: BrokerView {
            connected: broker.is_some_and(|b| b.connected),
            since: broker.map(|b| wall.tell(b.since)),
            why: broker.map_or("not tried yet", |b| &b.why),
        },
        headline: headline(cluster, now),
        nodes: listed.into_iter().map(|(name, node)| node_view(cluster, name, node)).collect(),
        left_out: LeftOut { nodes: all.saturating_sub(NODES), links: pairs.len() - links.len() },
        links,
        alerts: cluster.alerts().raised().collect(),
        refused: Refusal::ALL
            .iter()
            .map(|kind| (kind.as_str(), cluster.refused(*kind)))
            .filter(|(_, count)| *count > 0)
            .collect(),
    };
    serde_json::to_string(&view).expect("the view has text keys and finite numbers")
}

/// `online`, `silent`, `gone` or `last-known`.
///
/// Without the broker nobody can say who is online.
pub(crate) fn node_state(cluster: &Cluster, name: &Name, node: &Node) -> &'static str {
    let connected = cluster.broker().is_some_and(|broker| broker.connected);
    match (cluster.alerts().node_trouble(name), node.presence) {
        (Some(NodeTrouble::Gone), _) => "gone",
        (Some(NodeTrouble::Silent), _) | (_, Presence::Offline) => "silent",
        (_, Presence::LastKnown) => "last-known",
        (_, Presence::Online) if !connected => "last-known",
        (_, Presence::Online) => "online",
    }
}

fn node_view<'a>(cluster: &Cluster, name: &'a Name, node: &'a Node) -> NodeView<'a> {
    let info = node.info.as_ref().map(|said| &said.what);
    let state = node.state.as_ref().map(|said| &said.what);
    let tier = node.row.as_ref().map(|said| &said.what.tier).or(state.map(|state| &state.tier));
    let conditions = state.map_or(&[][..], |state| &state.conditions);
    let worst = conditions
        .iter()
        .filter(|condition| condition.needs_attention())
        .max_by_key(|condition| (condition.status, condition.severity));
    NodeView {
        name,
        state: node_state(cluster, name, node),
        since: cluster.wall().tell(node.since),
        heard: node.heard().map(|heard| cluster.wall().tell(heard)),
        address: info.and_then(|i| i.address),
        model: info.and_then(|i| i.model.as_deref()),
        kernel: info.and_then(|i| i.kernel.as_deref()),
        os: info.and_then(|i| i.os.as_deref()),
        version: info.map(|i| i.version.as_str()),
        stamps: tier.map(|t| t.stamps),
        why: tier.map(|t| t.why.as_str()),
        worst: worst.map(|condition| Worst {
            status: condition.status,
            severity: condition.severity,
            title: &condition.title,
            subject: condition.subject.as_deref(),
            evidence: &condition.evidence,
        }),
        readings: state.map(|state| &state.readings),
        conditions,
        counts: state.map(|state| state.findings),
        findings: node.findings.as_ref().map_or(&[], |said| &said.what.findings),
    }
}

/// The one sentence: the first root cause, or what could not be seen, or that all is fine; in this order.
pub fn headline(cluster: &Cluster, now: Timestamp) -> Headline {
    let say = |state, text: String, detail: String| Headline { state, text, detail };
    if let Some(broker) = cluster.broker().filter(|broker| !broker.connected) {
        let text = "Could not tell: no connection to the broker".to_owned();
        return say("unknown", text, broker.why.clone());
    }
    if cluster.broker().is_none() {
        return say("unknown", "Could not tell: connecting to the broker".to_owned(), String::new());
    }
    let mut alerts: Vec<Alert> = cluster.alerts().raised().collect();
    // Stable: of equal severity the root cause stays first.
    alerts.sort_by_key(|alert| std::cmp::Reverse(alert.severity));
    if let Some(first) = alerts.first() {
        let mut detail = first.evidence.join("; ");
        if alerts.len() > 1 {
            detail = format!("{detail}; and {} more", count(alerts.len() - 1, "alert"));
        }
        return say("trouble", first.title.clone(), detail);
    }
    let nodes = cluster.nodes();
    if nodes.is_empty() {
        let text = "Could not tell: no node has reported yet".to_owned();
        return say("unknown", text, String::new());
    }
    let states = |state| nodes.iter().filter(|(name, node)| node_state(cluster, name, node) == state).count();
    let (online, pairs) = (states("online"), mesh::pairs(nodes));
    let seen =
        |state| pairs.iter().filter(|(a, b)| mesh::between(nodes, a, b, now).way.state == state).count();
    let (fine, unseen) = (seen(WayState::Fine), seen(WayState::Unknown));
    // Bad links without an alert: it waits for the other nodes' word.
    if fine + unseen < pairs.len() {
        let text = format!("{} not fine", count(pairs.len() - fine - unseen, "link"));
        return say("trouble", text, "looking for the root cause".to_owned());
    }
    let raised = nodes.values().filter_map(|node| node.state.as_ref()).flat_map(|said| &said.what.conditions);
    let blind = raised.filter(|condition| condition.status == Status::Unknown).count();
    let mut missing = Vec::new();
    if online < nodes.len() {
        missing.push(format!("{} last known only", count(nodes.len() - online, "node")));
    }
    if unseen > 0 {
        missing.push(format!("{unseen} of {}", count(pairs.len(), "link")));
    }
    if blind > 0 {
        missing.push(count(blind, "condition"));
    }
    let unmet: u32 = nodes.values().filter_map(|n| n.state.as_ref()).map(|s| unmet(s.what.findings)).sum();
    let requirements = match unmet {
        0 => String::new(),
        n => format!("{} not met", count(n as usize, "requirement")),
    };
    if missing.is_empty() {
        let links =
            if pairs.is_empty() { String::new() } else { format!(", {}", count(pairs.len(), "link")) };
        return say("fine", format!("All fine: {}{links}", count(nodes.len(), "node")), requirements);
    }
    let text = format!("Nothing wrong was seen, but could not tell: {}", missing.join(", "));
    say("unknown", text, requirements)
}

fn unmet(counts: FindingCounts) -> u32 {
    counts.unmet.saturating_add(counts.blocked)
}

fn count(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        cluster::{Message, Settings},
        scene::{Scene, condition, state},
    };

    const ALL: [&str; 3] = ["n1", "n2", "n3"];

    fn head(scene: &Scene) -> (String, String) {
        let headline = headline(&scene.cluster, scene.now);
        (headline.state.to_owned(), headline.text)
    }

    #[test]
    fn the_headline_is_fine_only_when_everything_was_seen() {
        let mut scene = Scene::new(Settings::default());
        let says = |scene: &Scene, state: &str, text: &str| {
            assert_eq!(head(scene), (state.to_owned(), text.to_owned()));
        };
        says(&scene, "unknown", "Could not tell: no node has reported yet");
        scene.second(&ALL, &ALL, &[]);
        says(&scene, "fine", "All fine: 3 nodes, 6 links");
        scene.node("n1", "state", &state("n1", json!({}), json!([condition("a", "unknown", &[])])));
        says(&scene, "unknown", "Nothing wrong was seen, but could not tell: 1 condition");
        scene.node("n1", "state", &state("n1", json!({}), json!([])));
        scene.second(&ALL, &ALL, &[("n2", "n3", "lossy")]);
        says(&scene, "trouble", "n2 -> n3 loses packets");
        scene.absorb(Message::BrokerGone { why: "connection refused" });
        says(&scene, "unknown", "Could not tell: no connection to the broker");
    }

    #[test]
    fn stale_rows_and_stored_nodes_are_not_fine() {
        let mut scene = Scene::new(Settings::default());
        scene.second(&ALL, &ALL, &[]);
        scene.wait_ms(5000);
        let text = "Nothing wrong was seen, but could not tell: 6 of 6 links";
        assert_eq!(head(&scene), ("unknown".to_owned(), text.to_owned()));
    }

    #[test]
    fn the_document_names_each_link_in_its_direction() {
        let mut scene = Scene::new(Settings::default());
        scene.second(&ALL, &ALL, &[("n2", "n3", "lossy")]);
        scene.node("n1", "state", &state("n1", json!({}), json!([condition("a", "raised", &[])])));
        let view: Value = serde_json::from_str(&render(&scene.cluster, scene.now)).unwrap();
        let links = view["links"].as_array().unwrap();
        assert_eq!(links.len(), 6);
        let bad: Vec<_> = links.iter().filter(|link| link["state"] != "fine").collect();
        assert_eq!(bad.len(), 1);
        assert_eq!(
            (&bad[0]["from"], &bad[0]["to"], &bad[0]["loss"]),
            (&json!("n2"), &json!("n3"), &json!(0.4))
        );
        assert_eq!(view["nodes"][0]["worst"]["title"], "title of a");
        assert_eq!(view["nodes"][0]["state"], "online");
        assert_eq!(view["alerts"][0]["id"], "path-loss-n2-n3");
    }

    #[test]
    fn a_clock_that_is_set_changes_every_time_by_the_same() {
        let times = |scene: &Scene| {
            let view: Value = serde_json::from_str(&render(&scene.cluster, scene.now)).unwrap();
            let node = &view["nodes"][0];
            [
                &view["ts"],
                &view["broker"]["since"],
                &node["since"],
                &node["heard"],
                &view["alerts"][0]["since"],
            ]
            .map(|time| time.as_str().unwrap().parse::<Timestamp>().unwrap())
        };
        let mut scene = Scene::new(Settings::default());
        scene.second(&ALL, &ALL, &[("n2", "n3", "lossy")]);
        let (before, ahead) = (times(&scene), SignedDuration::from_hours(50 * 365 * 24));
        scene.set_clock(ahead);
        assert_eq!(times(&scene), before.map(|time| time + ahead));
    }

    #[test]
    fn of_many_nodes_the_troubled_ones_are_listed() {
        let mut scene = Scene::new(Settings::default());
        for i in 0..300 {
            scene.node(&format!("n{i}"), "availability", if i == 250 { "offline" } else { "online" });
        }
        let view: Value = serde_json::from_str(&render(&scene.cluster, scene.now)).unwrap();
        assert_eq!(
            (view["nodes"].as_array().unwrap().len(), &view["left_out"]["nodes"]),
            (NODES, &json!(100))
        );
        assert!(
            view["nodes"].as_array().unwrap().iter().any(|n| n["name"] == "n250" && n["state"] == "silent")
        );
    }
}
