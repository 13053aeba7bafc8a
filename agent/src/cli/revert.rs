//! `bramble revert`: puts back what apply changed, byte by byte, the last change first.

use std::path::PathBuf;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use anyhow::Context;

use super::USAGE;
use super::apply::{open, say};
use super::check::{print, width, wrap};
use super::plan::NO_INPUT;
use crate::config::visible;
use crate::converge::apply::heal;
use crate::converge::diff::versions;
use crate::converge::receipt::{Act, Kept, Receipt, Receipts, State, seen};
use crate::converge::revert::{Outcome, choose, revert};
use crate::host::Host;
use crate::host::write::{HostMut, NotDone};

/// Put back what apply changed: every byte, mode, owner and attribute as it was.
///
/// What somebody else has changed since is left alone and shown.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub struct Revert {
    /// The receipt to undo; the last one that is not undone yet when none is given
    #[arg(value_name = "RECEIPT")]
    receipt: Option<String>,
    /// List the receipts, and of each what is not undone yet
    #[arg(long, conflicts_with_all = ["receipt", "keep"])]
    list: bool,
    /// Leave this file as it is now; can be given more than once
    #[arg(long, value_name = "PATH")]
    keep: Vec<String>,
    /// Put back a tree instead of this machine
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

const EXIT_CODES: &str = "\
Exit codes:
  0   all is as it was, or there was nothing to undo
  2   something was left as it is: a person must act
  64  usage
  66  the directory of --root is no host tree";

const LEFT: u8 = 2;

/// Runs the verb.
///
/// # Errors
/// When standard output cannot be written.
pub fn run(args: &Revert) -> anyhow::Result<ExitCode> {
    if args.list {
        let host = match &args.root {
            None => Host::live().context("opening the machine's root")?,
            Some(dir) => match Host::tree(dir) {
                Ok(host) => host,
                Err(not_a_tree) => {
                    eprintln!("bramble revert: {not_a_tree}");
                    return Ok(ExitCode::from(NO_INPUT));
                }
            },
        };
        return print(&list(&seen(&host).context("listing the receipts")?), ExitCode::SUCCESS);
    }
    let host = match open(args.root.as_deref(), "revert") {
        Ok(host) => host,
        Err(code) => return Ok(code),
    };
    match undo(args, &host) {
        Ok((text, code)) => print(&text, code),
        Err(failed) => {
            say("revert", &failed);
            Ok(ExitCode::from(LEFT))
        }
    }
}

fn list(receipts: &[Receipt]) -> String {
    if receipts.is_empty() {
        return "no receipts: bramble has changed nothing here\n".into();
    }
    let mut text = String::new();
    for receipt in receipts {
        text += &format!(
            "{}  {}  {} changes  {}\n",
            receipt.name,
            receipt.at.strftime("%Y-%m-%d %H:%M:%S UTC"),
            receipt.acts.len(),
            receipt.state.words()
        );
        // What is still there: the last of these is what the next revert begins with.
        if receipt.state != State::Reverted {
            let left = receipt.acts.iter().enumerate().filter(|(n, _)| !receipt.is_undone(*n));
            text.extend(left.map(|(_, act)| format!("    {}\n", act.object())));
        }
    }
    if let Some(last) = receipts.iter().rfind(|receipt| receipt.state != State::Reverted) {
        text += &format!("to undo {}: sudo bramble revert\n", last.name);
    }
    text
}

fn undo(args: &Revert, host: &HostMut) -> Result<(String, ExitCode), NotDone> {
    let receipts = Receipts::open(host)?;
    heal(host, &receipts)?;
    let Some(receipt) = choose(&receipts, args.receipt.as_deref())? else {
        let Some(name) = &args.receipt else { return Ok(("nothing to undo\n".into(), ExitCode::SUCCESS)) };
        let name = visible(name);
        eprintln!("bramble revert: no receipt is called {name}; bramble revert --list names them");
        return Ok((String::new(), ExitCode::from(USAGE)));
    };
    if receipt.state == State::Reverted {
        return Ok((format!("receipt {} is reverted already\n", receipt.name), ExitCode::SUCCESS));
    }
    // A file that is misspelt here would be put back, and what was to be kept would be gone.
    let is_kept = |path: &String| receipt.acts.iter().any(|act| act.is_file() && act.object() == *path);
    if let Some(strange) = args.keep.iter().find(|path| !is_kept(path)) {
        eprintln!(
            "bramble revert: --keep {}: receipt {} changed no such file; bramble revert --list names them",
            visible(strange),
            receipt.name
        );
        return Ok((String::new(), ExitCode::from(USAGE)));
    }
    let mut text = String::new();
    let whole = revert(host, &receipts, &receipt, &args.keep, |act, outcome| {
        text += &told(act, outcome, &receipt.name)
    })?;
    Ok(match whole {
        true => (text + &format!("receipt {} is reverted\n", receipt.name), ExitCode::SUCCESS),
        false => (
            text + &format!("receipt {} is partly reverted; what is left stands above\n", receipt.name),
            ExitCode::from(LEFT),
        ),
    })
}

pub(super) fn told(act: &Act, outcome: &Outcome, receipt: &str) -> String {
    let (good, bad, dim) =
        (AnsiColor::Green.on_default(), AnsiColor::Red.on_default().bold(), Style::new().dimmed());
    let name = act.object();
    match outcome {
        Outcome::Restored => {
            let done = match act {
                Act::File { before: Kept::Absent, .. } | Act::Directory { .. } | Act::Large { .. } => {
                    "removed"
                }
                _ => "restored",
            };
            format!("{good}✓{good:#} {done} {name}\n")
        }
        Outcome::Stays(why) => format!("{dim}- {name} stays: {why}{dim:#}\n"),
        Outcome::Changed { before, ours, now } => {
            let indented =
                |diff: String| diff.lines().map(|line| format!("    {line}\n")).collect::<String>();
            let (before, ours, now) = (before.as_ref(), ours.as_ref(), now.as_ref());
            format!(
                "{bad}✗{bad:#} {name} was changed by somebody else since: left as it is\n  \
                 what bramble had changed:\n{}  what was changed since:\n{}  next  to leave it so: sudo bramble revert \
                 {receipt} --keep {name}\n        to get the old one: undo the second change, then sudo bramble revert \
                 {receipt}\n",
                indented(versions(&name, before, ours)),
                indented(versions(&name, ours, now)),
            )
        }
        Outcome::Overwritten { versions } => {
            format!("{bad}✗{bad:#} {}\n", wrap(&format!("{versions}: left as it is"), 2, width()))
        }
        Outcome::Failed(failed) => format!("{bad}✗{bad:#} {failed}\n  next  {}\n", failed.next),
    }
}
