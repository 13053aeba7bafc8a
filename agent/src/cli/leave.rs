//! `bramble leave`: takes this node out of its cluster, and K3s off this node.

use std::process::ExitCode;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use serde_json::json;

use super::apply::{asked, open, say};
use super::check::{print, width, wrap};
use super::revert::told;
use super::{USAGE, block_on};
use crate::converge::apply::heal;
use crate::converge::receipt::{Receipt, Receipts};
use crate::converge::revert::{Outcome, revert};
use crate::host::write::{HostMut, NotDone};
use crate::k3s::joined::{self, Leaving};
use crate::k3s::leave::{self, Loss, Options, Remains, Step, Survey};
use crate::k3s::path;

/// Take this node out of its cluster, and K3s off it: every byte is as it was before the join.
///
/// Pods are moved first, as their budgets allow. What cannot be done from here is named with its command.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub struct Leave {
    /// Keep what K3s stores in /var/lib/rancher/k3s
    #[arg(long)]
    keep_data: bool,
    /// Do not move pods first
    #[arg(long)]
    no_drain: bool,
    /// How long pods may take to move, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300, conflicts_with = "no_drain")]
    drain_limit: u64,
    /// Leave although other nodes lose their cluster with this one
    #[arg(long)]
    force: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXIT_CODES: &str = "\
Exit codes:
  0   the node has left, or was in no cluster
  1   it has not: it was not wanted
  2   a person must act: before it can leave, or elsewhere, because an agent cannot take its own Node object away
  64  usage";

const UNWANTED: u8 = 1;
const ACT: u8 = 2;

/// Runs the verb.
///
/// # Errors
/// When standard output cannot be written.
pub fn run(args: &Leave) -> anyhow::Result<ExitCode> {
    let host = match open(None, "leave") {
        Ok(host) => host,
        Err(code) => return Ok(code),
    };
    let mut report = Report { as_json: args.json, ..Report::default() };
    let ended = leave(args, &host, &mut report)?;
    report.end(ended)
}

/// How it ended.
enum Ended {
    /// All that could be done is done.
    Left,
    /// There was nothing to leave.
    NotHere,
    /// Its owner said no.
    Unwanted,
    /// Nobody could be asked.
    Unasked,
    /// Something that somebody has changed since stays, and stands above.
    Partly,
    /// It stopped.
    Stopped(NotDone),
}

fn leave(args: &Leave, host: &HostMut, report: &mut Report) -> anyhow::Result<Ended> {
    let options = Options {
        keep_data: args.keep_data,
        drain: (!args.no_drain).then_some(Duration::from_secs(args.drain_limit)),
        force: args.force,
    };
    // Nobody else changes this host meanwhile.
    let (receipts, ours) = match mine(host) {
        Ok(mine) => mine,
        Err(failed) => return Ok(Ended::Stopped(failed)),
    };
    let survey = block_on(leave::survey(host.host()))?;
    report.node = survey.node.clone();
    if !survey.is_here && ours.is_empty() {
        // A join that never came so far is over, too.
        if let Err(failed) = leave::end_join(host).and_then(|()| host.remove(joined::PATH)) {
            return Ok(Ended::Stopped(failed));
        }
        return Ok(Ended::NotHere);
    }
    if let Some(refusal) = leave::refusal(&survey, &options) {
        return Ok(Ended::Stopped(refusal));
    }
    if !args.yes {
        print(&plan(&survey, &options, &ours), ExitCode::SUCCESS)?;
        match asked() {
            Some(true) => {}
            Some(false) => return Ok(Ended::Unwanted),
            None => return Ok(Ended::Unasked),
        }
    }
    if let Err(failed) = leave::end_join(host) {
        return Ok(Ended::Stopped(failed));
    }
    let _leaving = Leaving::begin(host);
    match block_on(leave::depart(&survey, &options, &mut |step| report.step(step)))? {
        Ok(remains) => report.remains = remains.into_iter().chain(leave::switch(host.host())).collect(),
        Err(failed) => return Ok(Ended::Stopped(failed)),
    }
    match here(host, &receipts, &ours, &options, report) {
        Ok(true) => Ok(Ended::Left),
        Ok(false) => Ok(Ended::Partly),
        Err(failed) => Ok(Ended::Stopped(failed)),
    }
}

/// The receipts, and those of the join.
fn mine(host: &HostMut) -> Result<(Receipts, Vec<Receipt>), NotDone> {
    let receipts = Receipts::open(host)?;
    heal(host, &receipts)?;
    let ours = leave::receipts(receipts.all()?);
    Ok((receipts, ours))
}

/// Cleans this node; true when nothing of the join is left.
fn here(
    host: &HostMut,
    receipts: &Receipts,
    ours: &[Receipt],
    options: &Options,
    report: &mut Report,
) -> Result<bool, NotDone> {
    report.notes = leave::clean(host, ours, options, &mut |step| report.step(step))?;
    let mut whole = true;
    for receipt in ours {
        let keep = leave::kept(receipt, options);
        let reverted = revert(host, receipts, receipt, &keep, |act, outcome| {
            if !matches!(outcome, Outcome::Restored | Outcome::Stays(_)) {
                report.stays.push(act.object());
            }
            report.act(&told(act, outcome, &receipt.name));
        })?;
        if reverted {
            report.step(Step { id: "receipt", said: format!("{} reverted", receipt.name) });
        }
        whole &= reverted;
    }
    match leave::uninstaller(host.host()).filter(|_| whole) {
        None => {}
        Some(script) if options.keep_data => report.notes.push(format!(
            "K3s was installed by its own script, and stays, stopped: {script} takes it away, and its data too"
        )),
        Some(script) => {
            host.succeed(&[script], Duration::from_secs(300))?;
            report.step(Step { id: "uninstall", said: format!("{script} has taken the program away") });
            leave::sweep(host)?;
        }
    }
    host.reload_units()?;
    Ok(whole)
}

/// What a person approves.
fn plan(survey: &Survey, options: &Options, ours: &[Receipt]) -> String {
    let bold = Style::new().bold();
    let mut lines = Vec::new();
    match &survey.cluster {
        Err(why) => {
            lines.push(format!(
                "the cluster cannot be told ({why}); what remains to be done there is named at the end"
            ));
        }
        Ok(seen) => {
            let alone: Vec<String> =
                seen.pods.iter().filter(|pod| pod.controller.is_none()).map(|pod| pod.full_name()).collect();
            match options.drain {
                Some(limit) => {
                    let (count, seconds) = (seen.pods.len(), limit.as_secs());
                    lines.push(format!("move {count} pods, in at most {seconds} s, as their budgets allow"));
                }
                None => lines.push(format!("end {} pods without moving them", seen.pods.len())),
            }
            if !alone.is_empty() {
                lines.push(format!("nobody starts these again: {}", alone.join(", ")));
            }
            match &seen.loss {
                Some(Loss::Cluster(others)) => {
                    lines.push("this is the only server: the cluster ends with it".into());
                    if !others.is_empty() {
                        lines.push(format!("these nodes have no server then: {}", others.join(", ")));
                    }
                }
                Some(Loss::Quorum { up, needed, .. }) => lines.push(format!(
                    "take {} out of the cluster, which stops: {up} of the members of etcd that stay are up, and {needed} must be",
                    survey.node
                )),
                None => lines.push(format!("take {} out of the cluster", survey.node)),
            }
        }
    }
    lines.push(
        "stop K3s; take away Cilium's links, rules, chains and programs, then pods, mounts and files".into(),
    );
    match options.keep_data {
        true => lines.push(format!("keep {}", path::DATA)),
        false => lines.push(format!("remove {} with all that K3s keeps in it", path::DATA)),
    }
    for receipt in ours {
        lines.push(format!("revert receipt {}: {} changes", receipt.name, receipt.acts.len()));
    }
    let lines: String = lines.iter().map(|line| format!("  - {}\n", wrap(line, 4, width()))).collect();
    format!("{bold}{} leaves K3s:{bold:#}\n{lines}", survey.node)
}

/// What was done, as it is done for people and at the end for JSON.
#[derive(Default)]
struct Report {
    as_json: bool,
    node: String,
    steps: Vec<Step>,
    notes: Vec<String>,
    /// What somebody else has changed since, and what could not be put back.
    stays: Vec<String>,
    remains: Vec<Remains>,
}

impl Report {
    fn step(&mut self, step: Step) {
        if !self.as_json {
            let good = AnsiColor::Green.on_default();
            let line = wrap(&format!("{}: {}", step.id, step.said), 2, width());
            // Whoever read has seen enough; the work goes on.
            let _ = print(&format!("{good}✓{good:#} {line}\n"), ExitCode::SUCCESS);
        }
        self.steps.push(step);
    }

    fn act(&self, text: &str) {
        if !self.as_json {
            let _ = print(text, ExitCode::SUCCESS);
        }
    }

    fn end(self, ended: Ended) -> anyhow::Result<ExitCode> {
        let (word, code) = match &ended {
            Ended::Left if self.remains.is_empty() => ("left", 0),
            Ended::Left => ("left", ACT),
            Ended::NotHere => ("not-here", 0),
            Ended::Unwanted => ("unwanted", UNWANTED),
            Ended::Unasked => ("unasked", USAGE),
            Ended::Partly => ("partly", ACT),
            Ended::Stopped(_) => ("stopped", ACT),
        };
        let failed = match &ended {
            Ended::Stopped(failed) => Some(failed),
            _ => None,
        };
        if self.as_json {
            let object = json!({
                "v": 1,
                "node": self.node,
                "ended": word,
                "steps": self.steps.iter().map(|step| json!({ "id": step.id, "said": step.said })).collect::<Vec<_>>(),
                "notes": self.notes,
                "stays": self.stays,
                "remains": self.remains.iter()
                    .map(|remains| json!({ "what": remains.what, "place": remains.place, "command": remains.command }))
                    .collect::<Vec<_>>(),
                "cause": failed.map(ToString::to_string),
                "next": failed.map(|failed| failed.next.clone()),
                "exit_code": code,
            });
            return print(&format!("{object}\n"), ExitCode::from(code));
        }
        let mut text = String::new();
        for note in &self.notes {
            text += &format!("  {}\n", wrap(note, 2, width()));
        }
        for Remains { what, place, command } in &self.remains {
            text += &format!("on {place}, because {}:\n  {command}\n", wrap(what, 0, width()));
        }
        text += match &ended {
            Ended::Left => "the node has left K3s\n",
            Ended::NotHere => "K3s is not on this node: there is nothing to leave\n",
            Ended::Partly => "the node has left K3s; what stays, because somebody changed it, stands above\n",
            Ended::Unwanted | Ended::Unasked | Ended::Stopped(_) => "",
        };
        match &ended {
            Ended::Stopped(failed) => say("leave", failed),
            Ended::Unasked => {
                eprintln!("bramble leave: nobody can be asked here\n  next  bramble leave --yes")
            }
            _ => {}
        }
        print(&text, ExitCode::from(code))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_says_what_ends_for_good() {
        let survey = Survey {
            unit: Some("k3s-agent.service"),
            node: "n1".into(),
            cluster: Err("https://127.0.0.1:6444 refuses the connection".into()),
            is_here: true,
        };
        let options = Options { keep_data: false, drain: Some(Duration::from_secs(300)), force: false };
        let text = anstream::adapter::strip_str(&plan(&survey, &options, &[])).to_string();
        for part in [
            "n1 leaves K3s",
            "cannot be told (https://127.0.0.1:6444",
            "remove /var/lib/rancher/k3s with all",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        let kept = Options { keep_data: true, ..options };
        assert!(plan(&survey, &kept, &[]).contains("keep /var/lib/rancher/k3s"));
    }
}
