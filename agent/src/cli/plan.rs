//! `bramble plan`: what apply would do, for a person to approve. It writes nothing.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anstyle::Style;
use anyhow::Context;
use serde_json::{Value, json};

use super::check::{print, printable, width, wrap};
use crate::config::Config;
use crate::converge::diff::diff;
use crate::converge::plan::{Content, Edit, Gate, Person, Plan as Steps, Step, comes_at_boot};
use crate::converge::receipt::{self, State};
use crate::facts::Facts;
use crate::host::Host;
use crate::require::{self, REQUIREMENTS};

/// Show what apply would do: each change with its reason, what it makes of each file, and when it counts.
///
/// Writes nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub struct Plan {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Plan for a captured tree instead of this machine
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

const EXIT_CODES: &str = "\
Exit codes:
  0   nothing to do
  1   there is something to do
  2   only a person can do what is left
  3   none of these, and something could not be told
  64  usage
  66  the directory of --root is no host tree";

/// sysexits.h: an input does not exist or is not readable.
pub(super) const NO_INPUT: u8 = 66;

/// Runs the verb.
///
/// # Errors
/// When the machine's root cannot be opened, or standard output not be written.
pub fn run(args: &Plan, config: &Config) -> anyhow::Result<ExitCode> {
    let host = match &args.root {
        None => Host::live().context("opening the machine's root")?,
        Some(dir) => match Host::tree(dir) {
            Ok(host) => host,
            Err(not_a_tree) => {
                eprintln!("bramble plan: {not_a_tree}");
                return Ok(ExitCode::from(NO_INPUT));
            }
        },
    };
    let plan = plan(&host, config);
    let unfinished = unfinished(&host);
    let text = if args.json {
        json(&host, &plan, &unfinished).to_string() + "\n"
    } else {
        let mut text = page(&plan, &[], width());
        text.extend(unfinished.iter().map(|line| format!("{line}\n")));
        if !plan.steps.is_empty() {
            text += &match &args.root {
                None => "\nsudo bramble apply carries it out; sudo bramble revert takes it back\n".to_owned(),
                Some(dir) => format!("\nbramble apply --root {} carries it out\n", dir.display()),
            };
        }
        text
    };
    print(&text, ExitCode::from(plan.exit_code()))
}

/// Observes, judges, plans.
pub(super) fn plan(host: &Host, config: &Config) -> Steps {
    let facts = Facts::observe(host);
    let judged: Vec<_> = require::judge(REQUIREMENTS, &facts, config).collect();
    Steps::of(&judged, &facts, host)
}

/// Receipts that are not brought to their end, one sentence each.
fn unfinished(host: &Host) -> Vec<String> {
    match receipt::seen(host) {
        Err(unreadable) => vec![format!("could not tell whether a run was cut off: {unreadable}")],
        Ok(receipts) => receipts
            .iter()
            .filter(|receipt| matches!(receipt.state, State::Open | State::Reverting))
            .map(|receipt| match receipt.state {
                State::Open => format!(
                    "the run of receipt {} was cut off, or goes on now: the next apply or revert puts right what it left",
                    receipt.name
                ),
                _ => format!("receipt {0} is partly reverted: sudo bramble revert {0} goes on", receipt.name),
            })
            .collect(),
    }
}

/// The plan as a person reads it. `consents` are requirements that the owner has consented to.
pub(super) fn page(plan: &Steps, consents: &[String], width: usize) -> String {
    let (bold, dim) = (Style::new().bold(), Style::new().dimmed());
    let mut text = String::new();
    let title = |text: &mut String, title: &str| *text += &format!("\n{bold}{title}{bold:#}\n");
    for (number, step) in plan.steps.iter().enumerate() {
        title(&mut text, &format!("{}. {}", number + 1, ids(step)));
        for change in &step.changes {
            text += &format!("   {}\n", wrap(&printable(&change.to_string()), 3, width));
        }
        let detail =
            |label: &str, content: &str| format!("   {dim}{label:<9}{dim:#}{}\n", wrap(content, 12, width));
        text.extend(step.requirements.iter().map(|requirement| detail("why", requirement.why)));
        text += &match step.gate {
            Gate::Now => detail("when", "now"),
            Gate::Reboot(None) => detail("when", "written now, in force after a reboot"),
            Gate::Reboot(Some(sooner)) => {
                detail("when", &format!("written now, in force after a reboot, or sooner by: {sooner}"))
            }
            Gate::Consent(why) if step.allowed(consents) => detail("consent", &format!("given; {why}")),
            Gate::Consent(why) => detail(
                "consent",
                &format!("needed: {why}; to give it: --consent {}", step.requirements[0].id),
            ),
        };
        for edit in &step.edits {
            if edit.is_copy() {
                text += &detail("copy", &format!("the old content stays beside it, in {}", edit.path));
                continue;
            }
            for line in patch(edit).lines() {
                let style = match line.as_bytes() {
                    [b'+', ..] if !line.starts_with("+++") => anstyle::AnsiColor::Green.on_default(),
                    [b'-', ..] if !line.starts_with("---") => anstyle::AnsiColor::Red.on_default(),
                    _ => dim,
                };
                text += &format!("   {style}{line}{style:#}\n");
            }
        }
    }
    let left = plan.left.iter().flat_map(|step| &step.changes);
    let (at_boot, by_apply): (Vec<_>, Vec<_>) = left.partition(|change| comes_at_boot(change));
    for (heading, changes) in [
        ("Written, and in force when the machine boots", at_boot),
        ("Left to the running machine: sudo bramble apply there", by_apply),
    ] {
        if !changes.is_empty() {
            title(&mut text, heading);
        }
        for change in changes {
            text += &format!("   {}\n", wrap(&printable(&change.to_string()), 3, width));
        }
    }
    for (heading, list) in [("Only a person can", &plan.person), ("Could not tell", &plan.unknown)] {
        if !list.is_empty() {
            title(&mut text, heading);
        }
        for Person { id, what, next } in list {
            text += &format!("   {id}: {}\n", wrap(&printable(what), 6, width));
            text += &format!("      {dim}next{dim:#} {}\n", wrap(&printable(next), 11, width));
        }
    }
    if !plan.waiting.is_empty() {
        title(&mut text, "Waiting");
    }
    for (id, why) in &plan.waiting {
        text += &format!("   {id}: {}\n", wrap(&printable(why), 6, width));
    }
    let consent = plan.steps.iter().filter(|step| !step.allowed(consents)).count();
    let summary = match (plan.steps.len(), consent) {
        (0, _) => nothing(plan),
        (steps, 0) => format!("steps to do: {steps}"),
        (steps, consent) => format!("steps to do: {steps}, of which {consent} with your consent alone"),
    };
    text + &format!("\n{bold}{summary}{bold:#}\n")
}

/// Without steps: whether that is because all is well.
fn nothing(plan: &Steps) -> String {
    let left = [
        (plan.person.len(), "only a person can mend"),
        (plan.waiting.len(), "waiting"),
        (plan.unknown.len(), "could not be told"),
    ];
    let left = left.iter().filter(|(count, _)| *count > 0);
    let parts = left.map(|(count, what)| format!(", {what}: {count}"));
    "nothing to do".to_owned() + &parts.collect::<String>()
}

/// The requirements of a step.
pub(super) fn ids(step: &Step) -> String {
    step.requirements.iter().map(|requirement| requirement.id).collect::<Vec<_>>().join(", ")
}

fn patch(edit: &Edit) -> String {
    let bytes = |content: &Content| match content {
        Content::Bytes(bytes) => bytes.clone(),
        Content::Link(target) => format!("link to {target}\n").into_bytes(),
    };
    diff(&edit.path, edit.before.as_ref().map(bytes).as_deref(), Some(&bytes(&edit.after)))
}

fn json(host: &Host, plan: &Steps, unfinished: &[String]) -> Value {
    let lines = |step: &Step| step.changes.iter().map(ToString::to_string).collect::<Vec<_>>();
    let ids = |step: &Step| step.requirements.iter().map(|requirement| requirement.id).collect::<Vec<_>>();
    let step = |step: &Step| {
        let (gate, note) = match step.gate {
            Gate::Now => ("now", None),
            Gate::Reboot(sooner) => ("after_reboot", sooner),
            Gate::Consent(why) => ("needs_consent", Some(why)),
        };
        json!({
            "requirements": ids(step),
            "changes": lines(step),
            "gate": gate,
            "note": note,
            "files": step
                .edits
                .iter()
                .map(|edit| json!({ "path": edit.path, "diff": patch(edit) }))
                .collect::<Vec<_>>(),
        })
    };
    let people = |list: &[Person]| {
        list.iter()
            .map(|Person { id, what, next }| json!({ "id": id, "what": what, "next": next }))
            .collect::<Vec<_>>()
    };
    json!({
        "v": 1,
        "root": root(host.root()),
        "steps": plan.steps.iter().map(step).collect::<Vec<_>>(),
        "left": plan
            .left
            .iter()
            .map(|step| json!({ "requirements": ids(step), "changes": lines(step) }))
            .collect::<Vec<_>>(),
        "person": people(&plan.person),
        "waiting": plan.waiting.iter().map(|(id, why)| json!({ "id": id, "why": why })).collect::<Vec<_>>(),
        "unknown": people(&plan.unknown),
        "unfinished": unfinished,
        "exit_code": plan.exit_code(),
    })
}

fn root(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
