//! `bramble run`: the agent daemon.

use std::process::ExitCode;

use crate::{
    config::{BadConfig, Config},
    daemon,
    host::Host,
    notify::{Asked, Service},
};

/// Run the agent: it judges, reports to the broker, finds peers. It needs no rights and writes only its own state.
#[derive(Debug, clap::Args)]
pub struct Run {}

/// Runs until SIGTERM or SIGINT; begins anew at SIGHUP, if the configuration is good.
///
/// # Errors
/// Only what keeps it from starting.
pub fn run(mut config: Config, host: &Host, path: Option<&str>) -> anyhow::Result<ExitCode> {
    super::block_on(async {
        let mut service = Service::start(host, path, load)?;
        while let Asked::Reload(new) = daemon::run(&config, host, &mut service).await? {
            config = *new;
        }
        Ok(ExitCode::SUCCESS)
    })?
}

/// What is taken anew: nothing that would end the agent, which nothing would start again.
fn load(host: &Host, path: Option<&str>) -> Result<Config, BadConfig> {
    let config = super::load(host, path)?;
    config.mqtt.login()?;
    Ok(config)
}
