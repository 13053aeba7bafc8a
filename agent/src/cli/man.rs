//! `bramble man`: the manual pages, from the same definition as `--help`. The package has them already.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::CommandFactory as _;

use super::Bramble;

/// Writes the manual pages, one for bramble and one for each verb.
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub struct Man {
    /// Where to; the directory must exist.
    directory: PathBuf,
}

/// Writes.
///
/// # Errors
/// A page cannot be written.
pub fn run(args: &Man) -> anyhow::Result<ExitCode> {
    let command = Bramble::command().disable_help_subcommand(true);
    clap_mangen::generate_to(command, &args.directory)
        .with_context(|| format!("writing the pages into {}", args.directory.display()))?;
    Ok(ExitCode::SUCCESS)
}
