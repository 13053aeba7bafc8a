//! `bramble run`: the agent daemon.

use std::process::ExitCode;

use crate::{config::Config, daemon, host::Host, shutdown::Shutdown};

/// Runs the agent: judges, reports to the broker, finds peers. Needs no rights; writes only its own state.
#[derive(Debug, clap::Args)]
pub struct Run {}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// Only what keeps it from starting.
pub fn run(config: &Config, host: &Host) -> anyhow::Result<ExitCode> {
    super::block_on(async { daemon::run(config, host, Shutdown::listen()?).await })??;
    Ok(ExitCode::SUCCESS)
}
