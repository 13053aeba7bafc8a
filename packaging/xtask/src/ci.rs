//! `cargo xtask ci`: everything that must hold before a change is taken.

use std::net::{TcpStream, ToSocketAddrs as _};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::build::{cargo, succeed};
use crate::setup::{self, Purpose};
use crate::{root, test};

/// Where cargo-deny gets its advisories.
const ADVISORIES: (&str, u16) = ("github.com", 443);
/// Tests that may be skipped here, as `cargo xtask test` prints them. A machine for this has everything.
const ALLOWED_SKIPS: &[&str] = &[];

/// Checks format, lints, licences and dependencies, the committed eBPF objects, and runs all tests.
#[derive(Args)]
pub(crate) struct Arguments {}

/// Runs the verb; all steps, also after one that failed.
///
/// # Errors
///
/// Something is missing that cannot be installed.
pub(crate) fn run(_: &Arguments) -> Result<ExitCode> {
    setup::ensure(&Purpose::ALL)?;
    let mut failed: Vec<&str> = Vec::new();
    let mut step = |name: &'static str, outcome: Result<()>| match outcome {
        Ok(()) => println!("--- {name}: good"),
        Err(error) => {
            println!("--- {name}: {error:#}");
            failed.push(name);
        }
    };
    step("format", succeed(cargo(&["fmt", "--all", "--check"])));
    step("lints", succeed(cargo(&["clippy", "--locked", "--all-targets", "--", "-D", "warnings"])));
    step("dependencies", succeed(deny(&["licenses", "bans", "sources"])));
    if is_reachable(ADVISORIES) {
        step("advisories", succeed(deny(&["advisories"])));
    } else {
        println!("--- advisories: could not tell, {} is not reached", ADVISORIES.0);
    }
    step("eBPF objects", succeed(cargo(&["xtask", "ebpf", "--check"])));
    step("tests", tests());
    if failed.is_empty() {
        println!("all good");
        return Ok(ExitCode::SUCCESS);
    }
    println!("not good: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

fn deny(checks: &[&str]) -> Command {
    let mut command = Command::new(setup::tools().join("bin/cargo-deny"));
    command.args(["--locked", "check"]).args(checks).current_dir(root());
    command
}

fn is_reachable(address: (&str, u16)) -> bool {
    let addresses = address.to_socket_addrs().into_iter().flatten();
    addresses.take(2).any(|address| TcpStream::connect_timeout(&address, Duration::from_secs(3)).is_ok())
}

fn tests() -> Result<()> {
    let tally = test::run_all(false)?;
    println!("{} passed, {} failed, {} skipped", tally.passed, tally.failed, tally.skipped.len());
    let unexpected: Vec<_> =
        tally.skipped.iter().filter(|skipped| !ALLOWED_SKIPS.contains(&skipped.as_str())).cloned().collect();
    (tally.is_good() && unexpected.is_empty())
        .then_some(())
        .with_context(|| format!("{} failed; skipped: {unexpected:?}", tally.failed))
}
