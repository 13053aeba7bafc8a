//! `bramble apply`: carries the plan out, step by step, and looks after each whether it did what it should.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};

use super::check::{print, width, wrap};
use super::plan::{NO_INPUT, page, plan};
use super::{FAILURE, USAGE};
use crate::change::Change;
use crate::config::{Config, visible};
use crate::converge::apply::{carry_out, heal, receipt};
use crate::converge::plan::{Edit, Gate, Plan, Step};
use crate::converge::receipt::{Receipts, Writer};
use crate::facts::Facts;
use crate::host::clock;
use crate::host::write::{HostMut, NotDone};
use crate::require::{self, State};

/// Carry the plan out. What was there before is kept first: `bramble revert` puts it back.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub struct Apply {
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Do also what needs consent for this requirement; can be given more than once
    #[arg(long, value_name = "ID")]
    consent: Vec<String>,
    /// Change a tree instead of this machine: its files alone
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

const EXIT_CODES: &str = "\
Exit codes:
  0   done, or nothing to do
  1   something is left: it needs consent, was not wanted, or did not help
  2   stopped: a person must act first
  64  usage
  66  the directory of --root is no host tree";

/// Something stopped it.
const STOPPED: u8 = 2;
/// After a step that makes others necessary the host is looked at again, this often.
const ROUNDS: usize = 3;

/// Runs the verb.
///
/// # Errors
/// When standard output cannot be written.
pub fn run(args: &Apply, config: &Config) -> anyhow::Result<ExitCode> {
    if let Some(id) = args.consent.iter().find(|id| require::REQUIREMENTS.iter().all(|r| r.id != id.as_str()))
    {
        let id = visible(id);
        eprintln!(
            "bramble apply: --consent {id}: no requirement is called so; bramble plan names those that ask"
        );
        return Ok(ExitCode::from(USAGE));
    }
    let host = match open(args.root.as_deref(), "apply") {
        Ok(host) => host,
        Err(code) => return Ok(code),
    };
    match apply(args, config, &host) {
        Ok(code) => Ok(code),
        Err(Stopped::Printing(error)) => Err(error),
        Err(Stopped::NotDone(failed)) => {
            say("apply", &failed);
            Ok(ExitCode::from(STOPPED))
        }
    }
}

/// Opens the host for writing, or says why not.
pub(super) fn open(root: Option<&std::path::Path>, verb: &str) -> Result<HostMut, ExitCode> {
    match root {
        Some(dir) => HostMut::tree(dir).map_err(|not_a_tree| {
            eprintln!("bramble {verb}: {not_a_tree}");
            ExitCode::from(NO_INPUT)
        }),
        None if !nix::unistd::geteuid().is_root() => {
            eprintln!("bramble {verb}: only root changes a machine\n  next  sudo bramble {verb}");
            Err(ExitCode::from(STOPPED))
        }
        None => HostMut::live().map_err(|unreadable| {
            eprintln!("bramble {verb}: opening the machine's root: {unreadable}");
            ExitCode::from(FAILURE)
        }),
    }
}

/// One cause and one next step.
pub(super) fn say(verb: &str, failed: &NotDone) {
    eprintln!("bramble {verb}: {failed}\n  next  {}", failed.next);
}

/// Why it ends before its end.
enum Stopped {
    NotDone(NotDone),
    Printing(anyhow::Error),
}

impl From<NotDone> for Stopped {
    fn from(failed: NotDone) -> Stopped {
        Stopped::NotDone(failed)
    }
}

impl From<anyhow::Error> for Stopped {
    fn from(error: anyhow::Error) -> Stopped {
        Stopped::Printing(error)
    }
}

fn apply(args: &Apply, config: &Config, host: &HostMut) -> Result<ExitCode, Stopped> {
    let receipts = Receipts::open(host)?;
    let open = heal(host, &receipts)?;
    let mut writer = None;
    let mut done: Vec<Step> = Vec::new();
    let mut wanted = true;
    // What the last look at the host found, when it found nothing to do.
    let mut last = None;
    for _ in 0..ROUNDS {
        let plan = plan(host.host(), config);
        let todo: Vec<&Step> = plan
            .steps
            .iter()
            .filter(|step| {
                step.allowed(&args.consent) && done.iter().all(|done| done.changes != step.changes)
            })
            .collect();
        if todo.is_empty() {
            if done.is_empty() {
                print(&page(&plan, &args.consent, width()), ExitCode::SUCCESS)?;
            }
            last = Some(plan);
            break;
        }
        print(&page(&plan, &args.consent, width()), ExitCode::SUCCESS)?;
        if !args.yes {
            match asked() {
                Some(true) => {}
                Some(false) => {
                    wanted = false;
                    break;
                }
                None => {
                    eprintln!("bramble apply: nobody can be asked here\n  next  bramble apply --yes");
                    return Ok(ExitCode::from(USAGE));
                }
            }
        }
        let writer = match &mut writer {
            Some(writer) => writer,
            none => none.insert(receipt(&receipts, open.as_deref())?),
        };
        for (number, step) in todo.iter().enumerate() {
            progress(number + 1, todo.len(), step);
            let before = writer.done.len();
            if let Err(failed) = carry_out(host, writer, step) {
                return Ok(stopped(host, &failed, step, &writer.done[before..], &done, &writer.name));
            }
            done.push((*step).clone());
            let last = |id: &str| {
                todo[number + 1..].iter().all(|later| later.requirements.iter().all(|r| r.id != id))
            };
            report(step, &verify(host, config, step, last))?;
        }
    }
    match writer {
        Some(writer) => finish(writer, host, &done)?,
        // The run that was cut off had done all there was.
        None if open.is_some() && wanted => receipt(&receipts, open.as_deref())?.end(clock::now())?,
        None => {}
    }
    let last = last.unwrap_or_else(|| plan(host.host(), config));
    Ok(ExitCode::from(u8::from(!last.steps.is_empty() || did_not_help(&done, &last))))
}

/// Whether something was done for a requirement that does not hold all the same, or of which that cannot be told.
fn did_not_help(done: &[Step], plan: &Plan) -> bool {
    let mut served = done.iter().flat_map(|step| &step.requirements);
    served.any(|served| plan.person.iter().chain(&plan.unknown).any(|person| person.id == served.id))
}

/// Asks on the terminal; `None` without one.
pub(super) fn asked() -> Option<bool> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return None;
    }
    eprint!("Carry this out? [y/N] ");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).ok()?;
    Some(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn progress(number: usize, of: usize, step: &Step) {
    if io::stderr().is_terminal() {
        let _ = writeln!(anstream::stderr(), "[{number}/{of}] {}", super::plan::ids(step));
    }
}

/// What the host says after a step about the requirements that no later step serves.
fn verify(host: &HostMut, config: &Config, step: &Step, last: impl Fn(&str) -> bool) -> Vec<String> {
    let facts = Facts::observe(host.host());
    let served = step.requirements.iter().copied().filter(|requirement| last(requirement.id));
    let mut remarks = Vec::new();
    for judged in require::judge(served, &facts, config) {
        let (id, evidence) = (judged.requirement.id, judged.evidence());
        remarks.push(match judged.state() {
            State::Met | State::NotNeeded => continue,
            State::Waiting => format!("{id} waits: {evidence}"),
            State::Unmet => {
                let plan = Plan::of(&[judged], &facts, host.host());
                match plan.steps.is_empty() && !plan.left.is_empty() {
                    true => format!("{id} is left to the running machine"),
                    false => format!("{id} is still not met: {evidence}"),
                }
            }
            State::Blocked => format!("{id}: {evidence}; {}", judged.next().unwrap_or_default()),
            State::Unknown => format!("{id} could not be told: {evidence}"),
        });
    }
    remarks
}

fn report(step: &Step, remarks: &[String]) -> anyhow::Result<()> {
    let (good, dim) = (AnsiColor::Green.on_default(), Style::new().dimmed());
    let mut text = String::new();
    for change in &step.changes {
        text += &format!("{good}✓{good:#} {}\n", wrap(&change.to_string(), 2, width()));
    }
    for remark in remarks {
        text += &format!("  {dim}{}{dim:#}\n", wrap(remark, 2, width()));
    }
    print(&text, ExitCode::SUCCESS).map(drop)
}

/// Says what stopped it, what was done, `begun` of the step that was not, and how to go back. The receipt stays open: the
/// next apply goes on in it, so that one revert takes all back.
fn stopped(
    host: &HostMut,
    failed: &NotDone,
    step: &Step,
    begun: &[String],
    done: &[Step],
    receipt: &str,
) -> ExitCode {
    say("apply", failed);
    let lines = |steps: &[Step]| -> Vec<String> {
        steps.iter().flat_map(|step| &step.changes).map(Change::to_string).collect()
    };
    let done = lines(done);
    match done.is_empty() {
        true => eprintln!("  done  nothing before it"),
        false => eprintln!("  done  {}", done.join("\n        ")),
    }
    let step = lines(std::slice::from_ref(step)).join("\n        ");
    match begun.is_empty() {
        true => eprintln!("  not   {step}"),
        false => eprintln!("  half  {step}\n        of which is done: {}", begun.join(", ")),
    }
    eprintln!("  back  {}", back(host, receipt));
    ExitCode::from(STOPPED)
}

fn back(host: &HostMut, receipt: &str) -> String {
    match host.host().is_live() {
        true => format!("sudo bramble revert {receipt}"),
        false => format!("bramble revert {receipt} --root {}", host.host().root().display()),
    }
}

fn finish(writer: Writer<'_>, host: &HostMut, done: &[Step]) -> Result<(), Stopped> {
    let name = writer.name.clone();
    writer.end(clock::now())?;
    let mut text = String::from("\n");
    for step in done {
        if let Gate::Reboot(sooner) = step.gate {
            let sooner = sooner.map(|sooner| format!(", or sooner by: {sooner}")).unwrap_or_default();
            text += &format!("in force after a reboot{sooner}: {}\n", super::plan::ids(step));
        } else if step.edits.iter().any(Edit::is_boot) {
            text += &format!("in force after a reboot: {}\n", super::plan::ids(step));
        }
    }
    text += &format!("receipt {name}; to take it back: {}\n", back(host, &name));
    print(&text, ExitCode::SUCCESS)?;
    Ok(())
}
