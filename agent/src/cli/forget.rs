//! `bramble forget`: empties at the broker all that this node said.

use std::{io::Write as _, os::unix::net::UnixStream, process::ExitCode};

use wire::{farewell, topic::Owner};

use crate::{
    config::Config,
    daemon,
    home::{self, Home},
    host::state::State,
    identity,
};

/// Take this node off the broker: all that it said there is emptied, and Home Assistant forgets it. The agent must be stopped.
///
/// Exit code 2: the agent runs, or the broker cannot be reached or refuses something.
#[derive(Debug, clap::Args)]
pub struct Forget {}

/// A person must act first.
const STOPPED: u8 = 2;

/// Empties the node's topics.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(config: &Config) -> anyhow::Result<ExitCode> {
    let stop = |why: &str| {
        eprintln!("bramble forget: {why}");
        Ok(ExitCode::from(STOPPED))
    };
    if UnixStream::connect(config.agent_socket()).is_ok() {
        return stop("the agent runs and would say everything again: sudo systemctl disable --now bramble");
    }
    let found = match super::block_on(say(config))? {
        Ok(found) => found,
        Err(why) => return stop(&format!("{why:#}")),
    };
    writeln!(anstream::stdout(), "{} is off the broker: {found} topics emptied", config.node.name)?;
    Ok(ExitCode::SUCCESS)
}

/// Empties the node's topics at the broker; returns how many there were. The agent must be stopped.
///
/// # Errors
/// The broker cannot be reached, or refuses something.
pub async fn say(config: &Config) -> anyhow::Result<usize> {
    let node = farewell::Node {
        cluster: config.node.cluster.clone(),
        name: config.node.name.clone(),
        prefix: config.home_assistant.prefix.clone(),
    };
    let place = config.home_assistant.place(&node.cluster, Owner::Node(node.name.clone()));
    let mut home = Home::open(State::new(&config.node.state_dir), place);
    // Under its own id the agent's last will is taken over, and never said.
    let id = identity::kept(config).unwrap_or_else(|| format!("forget-{}", node.name));
    let settings = daemon::connection(config, &id)?;
    // What was said under names that the node had before.
    let mut more = home.topics();
    more.extend(identity::left(config).iter().flat_map(|left| home::topics_of(left, &node.prefix)));
    let found = farewell::take_off(&node, more, settings).await.map_err(anyhow::Error::msg)?;
    home.forget();
    Ok(found)
}
