//! `cargo xtask machine`: whole Debian systems to run bramble on, from a container to a board that boots from its card.

use std::io::{BufRead as _, Write as _, stdin, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use serde::Serialize;
use testbed::machine::store::Store;
use testbed::machine::{Blueprint, Gift, MACHINES, Machine};

use crate::build::{self, Profile};
use crate::cross::{self, Arch, Lto};
use crate::root;
use crate::setup::{self, Purpose};
use crate::test::{self, Tally};

/// Builds, runs and tests on whole machines: containers with systemd, emulated arm64 boards.
#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Show all machines, what is built of them, and how long they took to boot.
    List,
    /// Build machines, or all of them.
    Build(BuildArguments),
    /// Boot a machine with bramble in it and run a command, or commands from standard input, line by line.
    Run(RunArguments),
    /// Run the tests on machines, or on all of them; the last line counts them.
    Test(TestArguments),
}

/// Which to build.
#[derive(Args)]
pub(crate) struct BuildArguments {
    /// Machines as `list` names them; all if none is given.
    names: Vec<String>,
    /// Build them anew from what the mirror has now.
    #[arg(long)]
    fresh: bool,
}

/// What to run where.
#[derive(Args)]
pub(crate) struct RunArguments {
    /// The machine, as `list` names it.
    name: String,
    /// More files to put into the machine, as HERE:THERE.
    #[arg(long = "with", value_name = "HERE:THERE")]
    with: Vec<String>,
    /// A shell command.
    #[arg(last = true)]
    command: Vec<String>,
}

/// Which to test.
#[derive(Args)]
pub(crate) struct TestArguments {
    /// Machines as `list` names them; all if none is given.
    names: Vec<String>,
    /// Print one JSON object last.
    #[arg(long)]
    json: bool,
}

/// What became of the tests on one machine.
#[derive(Debug, Serialize)]
struct Outcome {
    machine: &'static str,
    /// How long building it took; next to nothing when it was there.
    build_seconds: f64,
    /// How long its latest boot took, until systemd said that all was running.
    boot_seconds: Option<f64>,
    test_seconds: f64,
    passed: u64,
    failed: u64,
    /// With the reason of each.
    skipped: Vec<String>,
}

/// Runs the verb.
///
/// # Errors
///
/// Something is missing that cannot be installed, a machine cannot be built or does not come up.
pub(crate) fn run(verb: &Verb) -> Result<ExitCode> {
    match verb {
        Verb::List => list(),
        Verb::Build(arguments) => {
            for machine in chosen(&arguments.names)? {
                build(machine, arguments.fresh)?;
            }
            list()
        }
        Verb::Run(arguments) => run_on(arguments),
        Verb::Test(arguments) => test_on(arguments),
    }
}

fn store() -> Result<Store> {
    Store::within(&build::target()?, |line| eprintln!("{line}"))
}

fn chosen(names: &[String]) -> Result<Vec<&'static Blueprint>> {
    if names.is_empty() {
        return Ok(MACHINES.iter().collect());
    }
    names.iter().map(|name| Blueprint::named(name)).collect()
}

fn list() -> Result<ExitCode> {
    let store = store()?;
    for machine in MACHINES {
        let state = match (machine.is_built(&store), machine.last_boot(&store)) {
            (false, _) => "not built".to_owned(),
            (true, None) => "built".to_owned(),
            (true, Some(seconds)) => format!("boots in {seconds:.1} s"),
        };
        println!("{:15} {state:16} {}", machine.name, machine.about);
    }
    let bytes: u64 = store.usage()?.iter().map(|(_, bytes)| bytes).sum();
    println!("{:.1} GB on disk", bytes as f64 / 1e9);
    Ok(ExitCode::SUCCESS)
}

fn build(machine: &Blueprint, fresh: bool) -> Result<()> {
    let store = store()?;
    if let Some(reason) = store.lacks_room() {
        bail!("{} cannot be built: it {reason}", machine.name);
    }
    if fresh {
        machine.forget(&store)?;
    }
    machine.build(&store).with_context(|| format!("building {}", machine.name))
}

/// Everything that machines need, this program as root, and bramble for each kind of them.
fn prepare(machines: &[&Blueprint]) -> Result<()> {
    if !build::is_built_for_root() {
        setup::ensure(&[Purpose::Machine])?;
        if machines.iter().any(|machine| machine.is_arm64()) {
            setup::ensure(&[Purpose::Cross])?;
            cross::build(Arch::Arm64, Lto::Thin)?;
        }
        if machines.iter().any(|machine| !machine.is_arm64()) {
            build::programs(Profile::Dev)?;
        }
    }
    build::become_root()
}

fn run_on(arguments: &RunArguments) -> Result<ExitCode> {
    let machine = Blueprint::named(&arguments.name)?;
    prepare(&[machine])?;
    let bramble =
        if machine.is_arm64() { cross::folder(Arch::Arm64)? } else { build::target()?.join("debug") }
            .join("bramble");
    let mut gifts = vec![Gift::program(&bramble)];
    for with in &arguments.with {
        let (from, to) =
            with.split_once(':').with_context(|| format!("--with {with}: give it as HERE:THERE"))?;
        gifts.push(Gift { from: PathBuf::from(from), to: to.to_owned() });
    }
    let mut running = machine.start(&store()?, &gifts)?;
    eprintln!("{} is up after {:.1} s", machine.name, running.booted_in().as_secs_f64());
    let code = if arguments.command.is_empty() {
        for line in stdin().lock().lines() {
            say(&mut *running, &line?)?;
        }
        0
    } else {
        say(&mut *running, &arguments.command.join(" "))?
    };
    running.stop()?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}

fn say(machine: &mut dyn Machine, command: &str) -> Result<i32> {
    let answer = machine.run(command)?;
    stdout().write_all(answer.out.as_bytes())?;
    eprint!("{}", answer.err);
    Ok(answer.code)
}

fn test_on(arguments: &TestArguments) -> Result<ExitCode> {
    let machines = chosen(&arguments.names)?;
    prepare(&machines)?;
    let store = store()?;
    let mut outcomes = Vec::new();
    let mut good = true;
    for machine in machines {
        let began = Instant::now();
        // Without room the tests say themselves that they are skipped, and why.
        if store.lacks_room().is_none() {
            build(machine, false)?;
        }
        let build_seconds = began.elapsed().as_secs_f64();
        let began = Instant::now();
        let mut tally = Tally::default();
        let mut tests = build::cargo(&["test", "--locked", "--package", "testbed", "--test", "it", "--"]);
        tests.arg(format!("machine::{}::", machine.name)).current_dir(root());
        test::follow(tests, &mut tally)?;
        good &= tally.failed == 0 && !tally.broken && tally.passed + tally.skipped.len() as u64 > 0;
        outcomes.push(Outcome {
            machine: machine.name,
            build_seconds,
            boot_seconds: machine.last_boot(&store),
            test_seconds: began.elapsed().as_secs_f64(),
            passed: tally.passed,
            failed: tally.failed,
            skipped: tally.skipped,
        });
    }
    for outcome in &outcomes {
        println!(
            "{:15} built in {:.1} s, boots in {}, {} passed, {} failed, {} skipped, {:.1} s",
            outcome.machine,
            outcome.build_seconds,
            outcome.boot_seconds.map_or_else(|| "?".to_owned(), |seconds| format!("{seconds:.1} s")),
            outcome.passed,
            outcome.failed,
            outcome.skipped.len(),
            outcome.test_seconds
        );
    }
    if arguments.json {
        println!("{}", serde_json::json!({ "good": good, "machines": outcomes }));
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
