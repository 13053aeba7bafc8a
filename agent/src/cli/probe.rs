//! `bramble probe`: the companion daemon.

use std::process::ExitCode;

use crate::{companion::serve, config::Config, host::Host, shutdown::Shutdown};

/// Runs the companion: loads the eBPF programs, probes peers, hands what it sees to the agent over a Unix socket. Needs
/// CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_DAC_READ_SEARCH; without them it goes on with user-space stamps, and says so.
#[derive(Debug, clap::Args)]
pub struct Probe {}

/// Runs until SIGTERM or SIGINT, and takes its programs away then.
///
/// # Errors
/// Only what keeps it from starting.
pub fn run(config: &Config, host: &Host) -> anyhow::Result<ExitCode> {
    super::block_on(async { serve::run(config, host, Shutdown::listen()?).await })??;
    Ok(ExitCode::SUCCESS)
}
