//! `cargo xtask test`: every test there is, and one closing line that counts them.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::build::{self, Profile};
use crate::setup::{self, Purpose};

/// How many failed tests of a change have a second try: more than that is no matter of a busy machine.
const SECOND_TRIES: usize = 3;
/// Of how many tests it is told how long they took, and from how many seconds on.
const SHOWN: usize = 40;
const SLOW: f64 = 5.0;

/// Runs the unit tests, then those with real kernel, broker and browser; the last line counts them.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Leave out what takes long: the browser, and faults ten times over.
    #[arg(long)]
    fast: bool,
}

/// How much is run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// What takes a few minutes.
    Fast,
    /// What a change waits for: nothing ten times over, and on emulated boards not what installs the packages there. A test of the
    /// bed that fails, on a machine that does other things too, has a second try by itself, which is told.
    Change,
    /// Everything, on all machines that are built.
    Whole,
}

/// What became of the tests.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Tally {
    /// How many passed.
    pub(crate) passed: u64,
    /// How many failed.
    pub(crate) failed: u64,
    /// Their names.
    pub(crate) failures: Vec<String>,
    /// Those of the passed that did so at their second try; what they said at the first stands above.
    pub(crate) second: Vec<String>,
    /// Those that did not run, as they were printed, with the reason.
    pub(crate) skipped: Vec<String>,
    /// A test program that could not be built, or ended without counting its tests.
    pub(crate) broken: bool,
    /// Seconds that tests took, of programs that run one after the other.
    pub(crate) seconds: Vec<(f64, String)>,
}

impl Tally {
    /// Whether nothing failed.
    pub(crate) fn is_good(&self) -> bool {
        self.failed == 0 && !self.broken && self.passed > 0
    }

    /// Shows what took longest.
    pub(crate) fn print_slowest(&self) {
        let mut seconds: Vec<_> = self.seconds.iter().collect();
        seconds.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (seconds, name) in seconds.iter().take(SHOWN).filter(|(seconds, _)| *seconds >= SLOW) {
            println!("{seconds:7.1} s {name}");
        }
    }

    /// Takes the time that the test took whose outcome is on this line.
    fn time(&mut self, line: &str, took: Duration) {
        let name = line.strip_prefix("test ").and_then(|line| line.split_once(" ..."));
        if let Some((name, _)) = name.filter(|_| !line.ends_with("ignored")) {
            self.seconds.push((took.as_secs_f64(), name.trim().to_owned()));
        }
    }

    /// Prints the closing line.
    pub(crate) fn print_count(&self) {
        for name in &self.second {
            println!("failed at first, and passed by itself: {name}");
        }
        println!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped.len());
    }

    /// Takes one line of a test program.
    fn absorb(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("test result: ") {
            let count = |what: &str| {
                let before = rest.split(what).next().unwrap_or_default().trim_end();
                before.rsplit([' ', ';', '.']).next().and_then(|n| n.parse::<u64>().ok()).unwrap_or_default()
            };
            self.passed += count("passed");
            self.failed += count("failed");
        } else if let Some(name) =
            line.strip_prefix("test ").and_then(|l| l.trim_end().strip_suffix("... ignored"))
        {
            // Test programs align names in a column; the spaces tell nothing.
            self.skipped.push(name.split_whitespace().collect::<Vec<_>>().join(" "));
        } else if let Some(name) =
            line.strip_prefix("test ").and_then(|l| l.trim_end().strip_suffix("... FAILED"))
        {
            self.failures.push(name.trim().to_owned());
        }
    }
}

/// Runs the verb.
///
/// # Errors
///
/// Something is missing that cannot be installed, or cargo cannot be started.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let tally = run_all(if arguments.fast { Effort::Fast } else { Effort::Whole })?;
    tally.print_slowest();
    if tally.broken {
        eprintln!("a test program was not built or did not end well; its reason stands above");
    }
    if !is_root_or_may_be() {
        eprintln!(
            "namespaces need root, and sudo asks for a password; type `sudo -v` first, and then this again"
        );
    }
    tally.print_count();
    Ok(if tally.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs all tests.
///
/// # Errors
///
/// As [`run`].
pub(crate) fn run_all(effort: Effort) -> Result<Tally> {
    setup::ensure(if effort == Effort::Fast {
        &[Purpose::Demo]
    } else {
        &[Purpose::Demo, Purpose::Browser, Purpose::Filter]
    })?;
    let mut tally = Tally::default();
    build::programs(Profile::Dev)?;
    let mut units = build::cargo(&["test", "--locked", "--no-fail-fast", "--workspace"]);
    units.args(["--exclude", "ebpf", "--exclude", "testbed"]);
    follow(units, &mut tally)?;
    let failures = tally.failures.len();
    follow(bed(effort), &mut tally)?;
    let failures = tally.failures.split_off(failures);
    if effort == Effort::Change && failures.len() <= SECOND_TRIES {
        for name in failures {
            println!("--- {name} failed; it is tried once more by itself");
            let mut alone = bed(effort);
            alone.args(["--test", "it", "--", "--exact", &name]);
            let mut second = Tally::default();
            follow(alone, &mut second)?;
            if second.is_good() {
                tally.failed -= 1;
                tally.passed += 1;
                tally.second.push(name);
            }
        }
    }
    Ok(tally)
}

/// The tests with real kernel, broker and browser.
fn bed(effort: Effort) -> Command {
    let mut bed = build::cargo(&["test", "--locked", "--no-fail-fast", "--package", "testbed"]);
    let switch = match effort {
        Effort::Fast => Some("BRAMBLE_FAST"),
        Effort::Change => Some("BRAMBLE_CHANGE"),
        Effort::Whole => None,
    };
    if let Some(switch) = switch {
        bed.env(switch, "1");
    }
    if !nix::unistd::geteuid().is_root() && is_root_or_may_be() {
        let switch = switch.map(|switch| format!(", \"{switch}=1\"")).unwrap_or_default();
        bed.args(["--config", &format!("target.'cfg(all())'.runner = [\"sudo\", \"-n\", \"env\"{switch}]")]);
    }
    bed
}

fn is_root_or_may_be() -> bool {
    let sudo = || Command::new("sudo").args(["-n", "true"]).stderr(Stdio::null()).status();
    nix::unistd::geteuid().is_root() || sudo().is_ok_and(|status| status.success())
}

/// Shows what a test command prints, and counts.
///
/// # Errors
///
/// The command cannot be started.
pub(crate) fn follow(mut command: Command, tally: &mut Tally) -> Result<()> {
    let failed_before = tally.failed;
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("starting {command:?}"))?;
    let mut before = Instant::now();
    for line in BufReader::new(child.stdout.take().context("the output is piped")?).lines() {
        let line = line?;
        println!("{line}");
        tally.absorb(&line);
        let now = Instant::now();
        tally.time(&line, now - std::mem::replace(&mut before, now));
    }
    // cargo fails for a failed test, too; without one it is something else.
    tally.broken |= !child.wait()?.success() && tally.failed == failed_before;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_test_programs_are_counted() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test a::b ... ok",
            "test c::d_is_ignored ... FAILED",
            "test [needs root]   bed::loss   ... ignored",
            "test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.03s",
            "test result: ok. 14 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 8.66s",
        ] {
            tally.absorb(line);
        }
        let skipped = vec!["[needs root] bed::loss".to_owned()];
        let failures = vec!["c::d_is_ignored".to_owned()];
        assert_eq!(tally, Tally { passed: 16, failed: 1, failures, skipped, ..Tally::default() });
        assert!(!tally.is_good());
    }

    #[test]
    fn no_test_at_all_is_no_success() {
        assert!(!Tally::default().is_good());
        assert!(Tally { passed: 1, ..Tally::default() }.is_good());
        assert!(!Tally { passed: 1, broken: true, ..Tally::default() }.is_good());
    }
}
