//! What the aggregator tells systemd (ready, a status line, proof of life), and what it is asked: to end, or to take its
//! configuration anew. Without systemd the telling is silent and the asking the same.

use std::future::pending;

use anyhow::Context as _;
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Interval, MissedTickBehavior, interval},
};

use crate::config::Config;

/// The journal's id of a configuration that is not good: see `packaging/catalog/bramble.catalog`.
pub const BAD_CONFIG: &str = "e85d6db6d5454dc4a36f5c26852eeda4";

/// What the aggregator is asked to do.
#[derive(Debug)]
pub enum Asked {
    /// To end.
    End,
    /// To begin anew with this configuration, which was read and is good.
    Reload(Box<Config>),
}

/// The aggregator as a service.
#[derive(Debug)]
pub struct Service<'a> {
    path: Option<&'a str>,
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    proof: Option<Interval>,
    said: String,
}

impl<'a> Service<'a> {
    /// Listens to signals from now on; a new configuration will be read from `path`, or from where it is by default.
    /// Needs a tokio runtime.
    ///
    /// # Errors
    /// The kernel refuses a signal handler.
    pub fn start(path: Option<&'a str>) -> anyhow::Result<Self> {
        let proof = sd_notify::watchdog_enabled().map(|patience| {
            // Three times within systemd's patience: one may be late, and one may be lost.
            let mut proof = interval(patience / 3);
            proof.set_missed_tick_behavior(MissedTickBehavior::Delay);
            proof
        });
        Ok(Self {
            path,
            terminate: signal(SignalKind::terminate()).context("waiting for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("waiting for SIGINT")?,
            hangup: signal(SignalKind::hangup()).context("waiting for SIGHUP")?,
            proof,
            said: String::new(),
        })
    }

    /// Says that the page is open.
    pub fn ready(&mut self, status: &str) {
        self.said = status.to_owned();
        tell(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// Says how things are, in one line, if that changed.
    pub fn status(&mut self, status: String) {
        if status != self.said {
            tell(&[NotifyState::Status(&status)]);
            self.said = status;
        }
    }

    /// Says that a configuration is taken anew; [`Self::ready`] ends it.
    pub fn reloading(&mut self) {
        tracing::info!("the configuration is taken anew");
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(_) => tell(&[NotifyState::Reloading]),
        }
    }

    /// Waits until something is asked. A configuration that is not good is told in the journal and asks for nothing: the
    /// old one stays. Cancel-safe.
    ///
    /// The proof of life is given here, so it is given exactly while the loop that waits for this turns.
    pub async fn asked(&mut self) -> Asked {
        loop {
            let proof = async {
                match &mut self.proof {
                    Some(proof) => drop(proof.tick().await),
                    None => pending().await,
                }
            };
            tokio::select! {
                _ = self.terminate.recv() => return end(),
                _ = self.interrupt.recv() => return end(),
                _ = self.hangup.recv() => match Config::load(self.path) {
                    Ok(config) => return Asked::Reload(Box::new(config)),
                    Err(why) => refuse(&why),
                },
                () = proof => tell(&[NotifyState::Watchdog]),
            }
        }
    }
}

/// Tells the journal why a configuration is not taken while one is in force.
pub fn refuse(why: &dyn std::fmt::Display) {
    tracing::error!(message_id = BAD_CONFIG, "the old configuration stays: {why:#}");
}

fn end() -> Asked {
    tell(&[NotifyState::Stopping]);
    Asked::End
}

/// Nobody may listen, and an aggregator that cannot tell systemd how it is goes on.
fn tell(what: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(what);
}
