//! `bramble obey`: what a request over MQTT needs root for. Run by `bramble-obey@.service`, which the agent may start.

use std::{process::ExitCode, time::Duration};

use wire::topic::Verb;

use crate::{
    config::Config,
    host::{led, systemd},
};

/// How long the light blinks.
const BLINK: Duration = Duration::from_secs(15);

/// Do one thing that was asked over MQTT, if the owner allows it.
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub struct Obey {
    /// identify or reboot
    verb: String,
}

/// Does it.
///
/// # Errors
/// The owner did not list it, whatever the agent says; or it failed.
pub fn run(args: &Obey, config: &Config) -> anyhow::Result<ExitCode> {
    let verb = Verb::ALL.into_iter().find(|verb| verb.as_str() == args.verb);
    match verb {
        Some(verb) if !config.commands.allows(verb) => {
            anyhow::bail!("{verb} is not allowed: it is not listed under [commands] allow")
        }
        Some(Verb::Identify) => led::blink(BLINK)?,
        Some(Verb::Reboot) => systemd::reboot().map_err(anyhow::Error::msg)?,
        _ => anyhow::bail!("nothing needs root to {}", args.verb),
    }
    Ok(ExitCode::SUCCESS)
}
