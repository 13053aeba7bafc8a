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
use crate::cross::{self, Arch, Lto, Place};
use crate::deb;
use crate::figures::Figures;
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
    /// Build the packages and run the tests on machines, or on all of them; the last lines count them.
    Test(TestArguments),
    /// Install the packages in a machine and tell what they cost: size, memory after two minutes, time to ready, hardness.
    Figures(FiguresArguments),
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
    /// Install the packages, instead of putting the program there.
    #[arg(long)]
    packages: bool,
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

/// Of which machine.
#[derive(Args)]
pub(crate) struct FiguresArguments {
    /// The machine, as `list` names it.
    name: String,
    /// Print one JSON object instead of a table.
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
    is_good: bool,
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
        Verb::Figures(arguments) => figures(arguments),
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

/// What a machine's programs are built for.
fn arch(machine: &Blueprint) -> Result<Arch> {
    if machine.is_arm64() { Ok(Arch::Arm64) } else { Arch::native() }
}

/// Everything that machines need, this program as root, and bramble for each kind of them, as packages if they are to be so.
fn prepare(machines: &[&Blueprint], packages: Option<Lto>) -> Result<()> {
    if !build::is_built_for_root() {
        setup::ensure(&[Purpose::Machine])?;
        build::programs(Profile::Dev)?;
        for one in [Arch::Amd64, Arch::Arm64] {
            let wanted =
                machines.iter().map(|machine| arch(machine)).collect::<Result<Vec<_>>>()?.contains(&one);
            if let (true, Some(lto)) = (wanted, packages) {
                setup::ensure(&[Purpose::Cross, Purpose::Package])?;
                deb::build(&Place::here()?, one, lto)?;
            } else if wanted && one != Arch::native()? {
                setup::ensure(&[Purpose::Cross])?;
                cross::build(&Place::here()?, one, Lto::Off)?;
            }
        }
    }
    build::become_root()
}

fn run_on(arguments: &RunArguments) -> Result<ExitCode> {
    let machine = Blueprint::named(&arguments.name)?;
    prepare(&[machine], arguments.packages.then_some(Lto::Off))?;
    let arch = arch(machine)?;
    let mut gifts = Vec::new();
    if arguments.packages {
        gifts = package_files(arch, Lto::Off)?;
    } else {
        let own = arch == Arch::native()?;
        let folder = if own { build::target()?.join("debug") } else { Place::here()?.folder(arch) };
        gifts.push(Gift::program(&folder.join("bramble")));
    }
    for with in &arguments.with {
        let (from, to) =
            with.split_once(':').with_context(|| format!("--with {with}: give it as HERE:THERE"))?;
        gifts.push(Gift { from: PathBuf::from(from), to: to.to_owned() });
    }
    let mut running = machine.start(&store()?, &gifts)?;
    eprintln!("{} is up after {:.1} s", machine.name, running.booted_in().as_secs_f64());
    if arguments.packages {
        install(&mut *running)?;
    }
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

/// The packages as files below `/srv`.
fn package_files(arch: Arch, lto: Lto) -> Result<Vec<Gift>> {
    let gift = |package: PathBuf| {
        let name = package.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Gift { from: package, to: format!("/srv/{name}") }
    };
    Ok(deb::built(arch, lto)?.into_iter().map(gift).collect())
}

fn install(machine: &mut dyn Machine) -> Result<()> {
    machine.run("dpkg --install /srv/*.deb </dev/null")?.good().map(drop)
}

fn figures(arguments: &FiguresArguments) -> Result<ExitCode> {
    let machine = Blueprint::named(&arguments.name)?;
    // What is told is what is shipped.
    prepare(&[machine], Some(Lto::Fat))?;
    let mut running = machine.start(&store()?, &package_files(arch(machine)?, Lto::Fat)?)?;
    install(&mut *running)?;
    let figures = Figures::of(&mut *running)?;
    running.stop()?;
    match arguments.json {
        true => println!("{}", serde_json::to_string(&figures)?),
        false => figures.print(),
    }
    Ok(ExitCode::SUCCESS)
}

fn say(machine: &mut dyn Machine, command: &str) -> Result<i32> {
    let answer = machine.run(command)?;
    stdout().write_all(answer.out.as_bytes())?;
    eprint!("{}", answer.err);
    Ok(answer.code)
}

/// Whether nothing failed and nothing was left out: who asks for a machine's tests wants to know what they say.
fn all_ran(tally: &Tally) -> bool {
    tally.is_good() && tally.skipped.is_empty()
}

/// Runs the tests whose names contain `filter`.
fn run_tests(machine: &'static str, filter: &str) -> Result<Outcome> {
    let began = Instant::now();
    let mut tally = Tally::default();
    let mut tests = build::cargo(&["test", "--locked", "--package", "testbed", "--test", "it", "--", filter]);
    tests.current_dir(root());
    test::follow(tests, &mut tally)?;
    Ok(Outcome {
        machine,
        build_seconds: 0.0,
        boot_seconds: None,
        test_seconds: began.elapsed().as_secs_f64(),
        is_good: all_ran(&tally),
        passed: tally.passed,
        failed: tally.failed,
        skipped: tally.skipped,
    })
}

fn test_on(arguments: &TestArguments) -> Result<ExitCode> {
    let machines = chosen(&arguments.names)?;
    prepare(&machines, Some(Lto::Off))?;
    let store = store()?;
    let mut outcomes = Vec::new();
    for machine in machines {
        let began = Instant::now();
        // Without room the tests are skipped and say why, which is not good either.
        if store.lacks_room().is_none() {
            build(machine, false)?;
        }
        let build_seconds = began.elapsed().as_secs_f64();
        let mut outcome = run_tests(machine.name, &format!("machine::{}::", machine.name))?;
        (outcome.build_seconds, outcome.boot_seconds) = (build_seconds, machine.last_boot(&store));
        outcomes.push(outcome);
    }
    // Some tests of the packages take two machines, or none that is booted.
    if arguments.names.is_empty() {
        outcomes.push(run_tests("packages", "package::")?);
    }
    let good = outcomes.iter().all(|outcome| outcome.is_good);
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
        for test in &outcome.skipped {
            println!("    skipped: {test}");
        }
    }
    if arguments.json {
        println!("{}", serde_json::json!({ "good": good, "machines": outcomes }));
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_whose_tests_were_skipped_is_not_called_good() {
        let tally = |passed, skipped: &[&str]| Tally {
            passed,
            skipped: skipped.iter().map(|name| (*name).to_owned()).collect(),
            ..Tally::default()
        };
        assert!(all_ran(&tally(3, &[])));
        assert!(!all_ran(&tally(0, &[])));
        assert!(!all_ran(&tally(0, &["[needs root] machine::card::boots"])));
        assert!(!all_ran(&tally(3, &["[needs root] machine::card::boots"])));
    }
}
