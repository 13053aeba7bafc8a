//! The integration tests: real kernel, real broker, real browser. One module per subject.
//!
//! A test that needs what this machine lacks is shown as ignored with the reason; `cargo xtask test` counts it as skipped.

mod bed;

use std::process::ExitCode;

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Failed, Trial};
use testbed::lab::Binaries;

/// One test: its name is a sentence.
struct Test {
    name: &'static str,
    needs: Needs,
    run: fn() -> Result<()>,
}

/// What a test takes.
#[derive(Clone, Copy)]
enum Needs {
    /// Nothing but the checkout.
    Checkout,
    /// Root, for namespaces and eBPF.
    Root,
    /// Root and a lot of time.
    RootAndTime,
    /// Root, chromium and its driver, and a lot of time.
    Browser,
}

impl Needs {
    /// Why the test cannot run here and now.
    fn missing(self) -> Option<String> {
        let rootless = || (!nix::unistd::geteuid().is_root()).then(|| "needs root".to_owned());
        let hasty = || std::env::var_os("BRAMBLE_FAST").map(|_| "slow, left out by --fast".to_owned());
        match self {
            Self::Checkout => None,
            Self::Root => rootless(),
            Self::RootAndTime => rootless().or_else(hasty),
            Self::Browser => rootless().or_else(hasty).or_else(|| testbed::browser::available().err()),
        }
    }
}

/// Names tests after their functions.
macro_rules! tests {
    ($module:ident, $($needs:ident $name:ident),+ $(,)?) => {
        &[$(Test {
            name: concat!(stringify!($module), "::", stringify!($name)),
            needs: Needs::$needs,
            run: $module::$name,
        }),+]
    };
}

const TESTS: &[&[Test]] = &[tests![
    bed,
    Root a_bed_leaves_nothing_behind,
    Root loss_hits_only_its_direction_and_counts_to_the_packet,
    Root delay_holds_every_packet_and_changes_none,
    Root a_cut_node_is_cut_until_it_is_healed,
    Root a_killed_bed_leaves_nothing_behind,
]];

/// The programs that cargo built beside this test.
fn binaries() -> Result<Binaries> {
    let test = std::env::current_exe()?;
    let folder = test.ancestors().nth(2).context("the test lies in cargo's target folder")?;
    Binaries::within(folder)
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Beds share two cores and the kernel's statistics.
    arguments.test_threads = Some(1);
    let trials = TESTS.iter().copied().flatten().map(|test| {
        let run = test.run;
        let trial = Trial::test(test.name, move || run().map_err(|error| Failed::from(format!("{error:#}"))));
        match test.needs.missing() {
            Some(reason) => trial.with_kind(reason).with_ignored_flag(true),
            None => trial,
        }
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
