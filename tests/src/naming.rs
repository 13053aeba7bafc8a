//! Who names a fault, and how long after it began: the page, the broker's topics, the nodes' own `bramble status`.

use std::{
    collections::BTreeSet,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use crate::{fault::Spec, lab::Lab, mesh::Ear};

/// Within this time everybody must have named a fault.
pub const LIMIT: Duration = Duration::from_secs(3);

/// How long it is listened on when everybody has named a fault: what is wrong may be said a moment later.
const AFTERMATH: Duration = Duration::from_secs(1);

/// Where a fault can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// `/api/v1/cluster`, which the page shows.
    Page,
    /// An alert's topic.
    Mqtt,
    /// `bramble status --json` on every node that sees it; the time is that of the first one.
    Status,
}

impl By {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Page, Self::Mqtt, Self::Status];
}

/// One naming of a fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Named {
    /// By whom.
    pub by: By,
    /// The link with its direction, or the node.
    pub subject: String,
    /// The alert's or the condition's kind.
    pub kind: String,
    /// Time since the fault began.
    pub after_ms: u128,
}

/// What was said while a fault was watched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Namings {
    /// Right ones, the first of each.
    pub named: Vec<Named>,
    /// Alerts about something that is not wrong, or was said before it was, as `kind subject`.
    pub mistaken: BTreeSet<String>,
    /// When the first end's status said it: the other one hears of it with the next probes.
    #[serde(skip)]
    first: Option<Duration>,
}

impl Namings {
    /// Whether everybody named the fault in time, and nothing else.
    pub fn are_right(&self) -> bool {
        self.mistaken.is_empty()
            && By::ALL.iter().all(|by| {
                self.named.iter().any(|named| named.by == *by && named.after_ms <= LIMIT.as_millis())
            })
    }

    /// Whether `by` has named it.
    pub fn has(&self, by: By) -> bool {
        self.named.iter().any(|named| named.by == by)
    }

    /// Looks once at everybody who has not named the fault yet, and at all alerts.
    ///
    /// # Errors
    /// The bed is gone.
    pub fn look(&mut self, lab: &Lab, ear: &Ear, spec: &Spec, began: Instant) -> Result<Vec<Named>> {
        let before = self.named.len();
        let right = (spec.kind().to_owned(), spec.subject());
        for (alert, heard) in ear.alerts() {
            let said = (alert.kind, alert.subject);
            if said != right || heard.at < began {
                self.mistaken.insert(format!("{} {}", said.0, said.1));
            } else if !self.has(By::Mqtt) {
                self.name(By::Mqtt, said, heard.at.saturating_duration_since(began));
            }
        }
        if !self.has(By::Page) {
            // A page that does not answer names nothing.
            let cluster = lab.cluster().unwrap_or_default();
            let said = alerts(&cluster).into_iter().find(|said| *said == right);
            if let Some(said) = said {
                self.name(By::Page, said, began.elapsed());
            }
        }
        if !self.has(By::Status) {
            let ends = lab.nodes().iter().filter(|node| spec_is_seen_from(spec, node.name()));
            let said: Vec<_> = ends
                .map(|node| {
                    let status = node.status().unwrap_or_default();
                    raised(&status).into_iter().find(|said| is_condition_of(spec, said))
                })
                .collect();
            if said.iter().any(Option::is_some) {
                let first = *self.first.get_or_insert(began.elapsed());
                let all: Option<Vec<_>> = said.into_iter().collect();
                if let Some(said) = all.and_then(|all| all.into_iter().next()) {
                    self.name(By::Status, said, first);
                }
            }
        }
        Ok(self.named[before..].to_vec())
    }

    fn name(&mut self, by: By, (kind, subject): (String, String), after: Duration) {
        self.named.push(Named { by, subject, kind, after_ms: after.as_millis() });
    }
}

/// Watches until everybody has named the fault and a moment longer, at most twice the limit.
///
/// # Errors
/// The bed is gone.
pub fn watch(lab: &Lab, ear: &Ear, spec: &Spec, began: Instant) -> Result<Namings> {
    let mut namings = Namings::default();
    let mut end = began + LIMIT * 2;
    while Instant::now() < end {
        let news = namings.look(lab, ear, spec, began)?;
        if !news.is_empty() && By::ALL.iter().all(|by| namings.has(*by)) {
            end = end.min(Instant::now() + AFTERMATH);
        }
        sleep(Duration::from_millis(20));
    }
    Ok(namings)
}

/// A link is seen from its ends; a node that is cut off is seen by the others.
fn spec_is_seen_from(spec: &Spec, node: &str) -> bool {
    match spec {
        Spec::Cut { node: cut } => cut != node,
        _ => spec.nodes().contains(&node),
    }
}

/// A node speaks of its own links only, so what is a node's end to the cluster is a cut link to it.
fn is_condition_of(spec: &Spec, (kind, subject): &(String, String)) -> bool {
    match spec {
        Spec::Cut { node } => kind == "path-cut" && subject.starts_with(&format!("{node} -> ")),
        _ => kind == spec.kind() && *subject == spec.subject(),
    }
}

/// All alerts in a document of the page, as kind and subject.
fn alerts(document: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    objects(document, &mut |object| {
        if let (Some(kind), Some(subject)) = (object["kind"].as_str(), object["subject"].as_str()) {
            found.push((kind.to_owned(), subject.to_owned()));
        }
    });
    found
}

/// All raised conditions in a document of a node, as id and subject.
fn raised(document: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    objects(document, &mut |object| {
        if let ("raised", Some(id), Some(subject)) =
            (object["status"].as_str().unwrap_or_default(), object["id"].as_str(), object["subject"].as_str())
        {
            found.push((id.to_owned(), subject.to_owned()));
        }
    });
    found
}

/// Shows every object of a document.
fn objects(value: &Value, show: &mut impl FnMut(&Value)) {
    match value {
        Value::Object(fields) => {
            show(value);
            fields.values().for_each(|field| objects(field, show));
        }
        Value::Array(items) => items.iter().for_each(|item| objects(item, show)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_fault_is_named_by_pair_and_direction_or_not_at_all() {
        let loss: Spec = "loss:n2-n3".parse().unwrap();
        let said = |kind: &str, subject: &str| (kind.to_owned(), subject.to_owned());
        assert!(is_condition_of(&loss, &said("path-loss", "n2 -> n3")));
        assert!(!is_condition_of(&loss, &said("path-loss", "n3 -> n2")));
        assert!(!is_condition_of(&loss, &said("path-cut", "n2 -> n3")));
        let cut: Spec = "cut:n2".parse().unwrap();
        assert!(is_condition_of(&cut, &said("path-cut", "n2 -> n1")));
        assert!(!is_condition_of(&cut, &said("path-cut", "n1 -> n2")));
    }

    #[test]
    fn alerts_and_conditions_are_found_wherever_they_stand() {
        let document = json!({"a": [{"kind": "node-gone", "subject": "n2"}, {"kind": 1, "subject": "n3"}]});
        assert_eq!(alerts(&document), [("node-gone".to_owned(), "n2".to_owned())]);
        let document = json!({"state": {"conditions": [
            {"id": "path-loss", "subject": "n2 -> n3", "status": "raised"},
            {"id": "path-loss", "subject": "n3 -> n2", "status": "clear"},
            {"id": "path-loss", "subject": null, "status": "raised"},
        ]}});
        assert_eq!(raised(&document), [("path-loss".to_owned(), "n2 -> n3".to_owned())]);
    }

    #[test]
    fn namings_are_right_when_all_are_in_time_and_none_is_mistaken() {
        let named =
            |after_ms| By::ALL.map(|by| Named { by, subject: String::new(), kind: String::new(), after_ms });
        let right = Namings { named: named(2999).to_vec(), ..Namings::default() };
        assert!(right.are_right());
        assert!(!Namings { named: named(3001).to_vec(), ..right.clone() }.are_right());
        assert!(!Namings { named: right.named[1..].to_vec(), ..right.clone() }.are_right());
        assert!(!Namings { mistaken: BTreeSet::from(["x".to_owned()]), ..right }.are_right());
    }
}
