//! `bramble probe`: the companion daemon.

use std::process::ExitCode;

use crate::{
    companion::serve,
    config::Config,
    host::Host,
    notify::{Asked, Service},
};

/// Run the companion: it loads the eBPF programs, probes peers, hands what it sees to the agent over a Unix socket. Needs
/// CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_DAC_READ_SEARCH and CAP_SYSLOG; without them it goes on with user-space stamps, and says so.
#[derive(Debug, clap::Args)]
pub struct Probe {}

/// Runs until SIGTERM or SIGINT, and takes its programs away then; begins anew at SIGHUP, if the configuration is good.
///
/// # Errors
/// Only what keeps it from starting.
pub fn run(mut config: Config, host: &Host, path: Option<&str>) -> anyhow::Result<ExitCode> {
    super::block_on(async {
        let mut service = Service::start(host, path, super::load)?;
        while let Asked::Reload(new) = serve::run(&config, host, &mut service).await? {
            config = *new;
        }
        Ok(ExitCode::SUCCESS)
    })?
}
