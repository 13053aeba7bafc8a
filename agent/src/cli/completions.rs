//! `bramble completions`: what a shell needs to complete the command line. The package has them already.

use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::Bramble;

/// Prints the completions for a shell.
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub struct Completions {
    /// Which shell.
    shell: Shell,
}

/// Prints.
///
/// # Errors
/// None: an output that cannot be written ends the process, as with any filter.
pub fn run(args: &Completions) -> anyhow::Result<ExitCode> {
    clap_complete::generate(args.shell, &mut Bramble::command(), "bramble", &mut std::io::stdout().lock());
    Ok(ExitCode::SUCCESS)
}
