//! What the journal gets from this program: correct priorities, fields to select by, and ids of entries that the catalogue
//! explains (`journalctl --catalog`).
//!
//! `journalctl BRAMBLE_CONDITION=path-cut`, `BRAMBLE_SUBJECT='n1 -> n2'`, `BRAMBLE_FINDING=swap`, `BRAMBLE_PEER=n2`. Each line
//! says all of it in words, too; on a terminal the fields are left out. Only changes are worth a line.

use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::{
    filter::{LevelFilter, filter_fn},
    fmt::format::debug_fn,
    prelude::*,
};
use wire::report::{Condition, Severity, Status};

/// A condition was raised: see `packaging/catalog/bramble.catalog`.
pub const RAISED: &str = "ee10ae87d58c4e3dba992dcb315623e6";
/// A requirement that was met is not any more.
pub const LOST: &str = "a85fd751e90646e1acf1ab39fe2f4c76";
/// The configuration is not good.
pub const BAD_CONFIG: &str = "e85d6db6d5454dc4a36f5c26852eeda4";

/// Conditions that have lines of their own, which say more: the connection's, and the guard's.
const TOLD_ELSEWHERE: [&str; 3] = ["broker", "broker-refuses", "drift"];

/// Writes into the journal under systemd, otherwise to standard error.
pub fn start() {
    let under_systemd = std::env::var_os("JOURNAL_STREAM").is_some();
    let journal = under_systemd.then(tracing_journald::layer).and_then(Result::ok).map(|layer| {
        // The crate's own mapping makes every line of information a notice.
        let mappings = PriorityMappings { info: Priority::Informational, ..PriorityMappings::new() };
        layer.with_field_prefix(None).with_priority_mappings(mappings)
    });
    let stderr = journal.is_none().then(|| {
        let words = debug_fn(|to, field, value| match field.name() {
            "message" => write!(to, "{value:?}"),
            _ => Ok(()),
        });
        let layer = tracing_subscriber::fmt::layer().fmt_fields(words).with_writer(std::io::stderr);
        layer.with_target(false).without_time()
    });
    // rumqttc logs what wire::connection reports better.
    let ours = filter_fn(|meta| !meta.target().starts_with("rumqttc"));
    tracing_subscriber::registry().with(journal).with(stderr).with(ours).with(LevelFilter::INFO).init();
}

/// A line for each condition that is news, and for each that is over.
pub fn tell(before: &[Condition], after: &[Condition]) {
    for condition in missing_in(before, after) {
        let (id, subject) = (condition.id.as_str(), condition.subject.as_deref());
        let text = sentence(condition);
        match condition.severity {
            Severity::Critical => tracing::error!(
                message_id = RAISED,
                bramble_condition = id,
                bramble_subject = subject,
                "raised: {text}"
            ),
            Severity::Warning => tracing::warn!(
                message_id = RAISED,
                bramble_condition = id,
                bramble_subject = subject,
                "raised: {text}"
            ),
        }
    }
    for condition in missing_in(after, before) {
        let (id, subject) = (condition.id.as_str(), condition.subject.as_deref());
        let now = after.iter().find(|other| is_same(other, condition));
        match now.map(|now| (now.status, &now.evidence)) {
            // Still so, and something else that is raised explains it by now.
            Some((Status::Raised, _)) => {}
            Some((Status::Unknown, why)) => tracing::info!(
                bramble_condition = id,
                bramble_subject = subject,
                "cannot tell any more: {}: {why}",
                named(condition)
            ),
            Some((Status::Clear, _)) | None => {
                tracing::info!(
                    bramble_condition = id,
                    bramble_subject = subject,
                    "over: {}",
                    named(condition)
                )
            }
        }
    }
}

/// The raised conditions of `these` that are worth a line and not among those of `others`.
fn missing_in<'a>(others: &[Condition], these: &'a [Condition]) -> impl Iterator<Item = &'a Condition> {
    let told: Vec<_> = worth_a_line(others).map(|c| (c.id.clone(), c.subject.clone())).collect();
    worth_a_line(these)
        .filter(move |c| !told.iter().any(|(id, subject)| *id == c.id && *subject == c.subject))
}

/// Raised, and neither explained by another raised one nor the sum of others.
fn worth_a_line(conditions: &[Condition]) -> impl Iterator<Item = &Condition> {
    let raised = || conditions.iter().filter(|c| c.status == Status::Raised);
    raised().filter(move |c| {
        let is_sum = c.subject.is_none() && raised().any(|other| other.id == c.id && other.subject.is_some());
        let is_explained = raised().any(|other| c.depends_on.contains(&other.id));
        !is_sum && !is_explained && !TOLD_ELSEWHERE.contains(&c.id.as_str())
    })
}

fn is_same(one: &Condition, other: &Condition) -> bool {
    one.id == other.id && one.subject == other.subject
}

fn named(condition: &Condition) -> String {
    match &condition.subject {
        Some(subject) => format!("{}, {subject}", condition.title),
        None => condition.title.clone(),
    }
}

fn sentence(condition: &Condition) -> String {
    format!("{}: {}", named(condition), condition.evidence)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(id: &str, subject: Option<&str>, status: Status, depends_on: &[&str]) -> Condition {
        Condition {
            id: id.to_owned(),
            subject: subject.map(str::to_owned),
            title: id.to_owned(),
            status,
            severity: Severity::Warning,
            since: jiff::Timestamp::UNIX_EPOCH,
            depends_on: depends_on.iter().map(|&id| id.to_owned()).collect(),
            evidence: "it was seen".to_owned(),
        }
    }

    #[test]
    fn only_what_is_new_and_explained_by_nothing_else_gets_a_line() {
        use Status::{Clear, Raised, Unknown};
        let sum = condition("path-loss", None, Raised, &["companion"]);
        let way = condition("path-loss", Some("n1 -> n2"), Raised, &["companion"]);
        let companion = |status| condition("companion", None, status, &[]);
        let broker = condition("broker", None, Raised, &[]);
        let lines = |before: &[Condition], after: &[Condition]| -> Vec<String> {
            missing_in(before, after).map(sentence).collect()
        };
        let quiet = [companion(Clear), condition("path-loss", None, Clear, &[])];
        let lossy = [companion(Clear), sum.clone(), way.clone(), broker];
        assert_eq!(lines(&quiet, &lossy), ["path-loss, n1 -> n2: it was seen"]);
        assert!(lines(&lossy, &lossy).is_empty());
        let dead = [companion(Raised), sum, way];
        assert_eq!(lines(&lossy, &dead), ["companion: it was seen"]);
        // What was explained and outlives its explanation is news.
        assert_eq!(lines(&dead, &lossy), ["path-loss, n1 -> n2: it was seen"]);
        assert!(lines(&[companion(Raised)], &[companion(Unknown)]).is_empty());
    }
}
