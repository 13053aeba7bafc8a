//! `cargo xtask ci`: everything that must hold before a change is taken.

use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::build::{cargo, succeed};
use crate::setup::{self, Purpose};
use crate::{root, test};

/// The machines that a change is tried on: both releases, and an arm64 kernel of Debian's.
const MACHINES: [&str; 3] = ["debian12", "debian13", "arm64-6.12"];
/// Beginnings of the names of tests that may be skipped here, as `cargo xtask test` prints them: more emulated machines, and packages
/// on them, take more time than a change may wait for, `cargo xtask machine test` runs them; who has a real K3s or a Home Assistant
/// for tests names it; and a kernel without vfat has no boot partition to try.
const ALLOWED_SKIPS: &[&str] = &[
    "machine::arm64-6.12::installed::",
    "machine::arm64-6.1::",
    "machine::arm64-16k::",
    "machine::card::",
    "machine::pi4::",
    "join::the_real_",
    "home::the_given_home_assistant_",
    "converge::on_fat_",
    "converge::a_full_boot_partition_",
];

/// Reasons for which any test may be skipped here: it is done once elsewhere.
const ALLOWED_REASONS: [&str; 2] = ["[tried on debian13;", "[left to cargo xtask test]"];

/// Checks format, lints, licences and dependencies, the committed eBPF objects, builds the packages, and runs all tests.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Also check the dependencies against known advisories; fetches their database from the internet.
    #[arg(long)]
    advisories: bool,
}

/// Runs the verb; all steps, also after one that failed.
///
/// # Errors
///
/// Something is missing that cannot be installed.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let began = Instant::now();
    setup::ensure(&Purpose::ALL)?;
    println!("--- what is needed: there after {:.0} s", began.elapsed().as_secs_f64());
    let mut failed: Vec<&str> = Vec::new();
    let mut step = |name: &'static str, run: &dyn Fn() -> Result<()>| {
        let began = Instant::now();
        let outcome = run();
        let took = began.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => println!("--- {name}: good, {took:.0} s"),
            Err(error) => {
                println!("--- {name}: {error:#}, {took:.0} s");
                failed.push(name);
            }
        }
    };
    step("format", &|| succeed(cargo(&["fmt", "--all", "--check"])));
    step("lints", &|| succeed(cargo(&["clippy", "--locked", "--all-targets", "--", "-D", "warnings"])));
    step("dependencies", &|| succeed(deny(&["licenses", "bans", "sources"])));
    if arguments.advisories {
        step("advisories", &|| succeed(deny(&["advisories"])));
    } else {
        println!("--- advisories: not looked at; --advisories fetches them");
    }
    step("eBPF objects", &|| succeed(cargo(&["xtask", "ebpf", "--check"])));
    step("packages", &|| succeed(cargo(&["xtask", "deb", "--thin", "--arch", "amd64", "--arch", "arm64"])));
    // The packages are tried on booted systems, which the tests do not build by themselves.
    step("machines", &|| succeed(cargo(&[&["xtask", "machine", "build"], &MACHINES[..]].concat())));
    step("tests", &tests);
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

fn tests() -> Result<()> {
    let tally = test::run_all(test::Effort::Change)?;
    tally.print_slowest();
    tally.print_count();
    let unexpected: Vec<_> = tally.skipped.iter().filter(|line| !is_allowed(line)).cloned().collect();
    (tally.is_good() && unexpected.is_empty())
        .then_some(())
        .with_context(|| format!("{} failed; skipped: {unexpected:?}", tally.failed))
}

/// Whether a line "[reason] name" names a test that may be skipped.
fn is_allowed(line: &str) -> bool {
    let name = line.rsplit_once("] ").map_or(line, |(_, name)| name);
    ALLOWED_REASONS.iter().any(|reason| line.starts_with(reason))
        || ALLOWED_SKIPS.iter().any(|beginning| name.starts_with(beginning))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cannot_be_had_here_may_be_skipped() {
        assert!(is_allowed("[card is not built; cargo xtask machine build card] machine::card::boots"));
        assert!(is_allowed("[arm64-6.12 is not built] machine::arm64-6.12::installed::it_measures"));
        assert!(is_allowed("[BRAMBLE_K3S names no k3s] join::the_real_k3s_becomes_a_node_and_leaves"));
        assert!(!is_allowed(
            "[arm64-6.12 is not built] machine::arm64-6.12::a_reboot_keeps_what_was_written"
        ));
        assert!(!is_allowed("[debian13 is not built] machine::debian13::installed::it_runs"));
        assert!(is_allowed(
            "[tried on debian13; cargo xtask machine test debian12] machine::debian12::installed::x"
        ));
        assert!(!is_allowed("[debian12 is not built] machine::debian12::installed::x"));
        assert!(is_allowed("[left to cargo xtask test] mesh::loss_is_named_ten_times_out_of_ten"));
        assert!(!is_allowed("[needs root] mesh::loss_is_named_ten_times_out_of_ten"));
        assert!(!is_allowed("machine::debian13::boots"));
    }
}
