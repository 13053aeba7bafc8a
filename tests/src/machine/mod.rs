//! Machines: whole Debian systems, each with a systemd of its own, from a container that boots in a second to a board
//! that boots from its card.
//!
//! Everything is built once from Debian's packages and kept under cargo's target folder. A run works on a copy, ends with
//! the thread that started it, and leaves nothing behind.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use serde::Serialize;

mod apt;
pub mod store;

pub mod container;
mod root;

pub mod board;
mod kernel;
mod qemu;
mod shell;

mod card;
pub mod pi;

pub use apt::mirror;
use board::{Board, Model};
use container::Container;
use kernel::Flavour;
use pi::{Pi, Slot};
use store::Store;

use crate::watch::until;

/// How long anything may take that a machine does; an emulated one on a busy host takes most of it.
const PATIENCE: Duration = Duration::from_secs(600);

/// A file that a machine gets before it boots.
#[derive(Clone, Debug)]
pub struct Gift {
    /// Where it is here. Its mode goes with it.
    pub from: PathBuf,
    /// Where it is to be there.
    pub to: String,
}

impl Gift {
    /// A program, to be found on the machine's path.
    pub fn program(from: &Path) -> Self {
        let name = from.file_name().unwrap_or_default().to_string_lossy();
        Self { from: from.to_owned(), to: format!("/usr/local/bin/{name}") }
    }
}

/// What a command said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// Its exit code.
    pub code: i32,
    /// What it printed.
    pub out: String,
    /// What it said on standard error.
    pub err: String,
}

impl Answer {
    /// What it printed, without the line's end, when it succeeded.
    ///
    /// # Errors
    /// Its exit code is not 0.
    pub fn good(self) -> Result<String> {
        ensure!(self.code == 0, "it ended with {}: {}{}", self.code, self.out, self.err);
        Ok(self.out.trim_end().to_owned())
    }
}

/// A running machine.
pub trait Machine {
    /// As in [`MACHINES`].
    fn name(&self) -> &str;

    /// Runs a shell command as root.
    ///
    /// # Errors
    /// The machine does not answer.
    fn run(&mut self, command: &str) -> Result<Answer>;

    /// How long its latest boot took, until systemd said that all was running.
    fn booted_in(&self) -> Duration;

    /// Starts it again as `reboot` does, and waits until it is up; its files stay.
    ///
    /// # Errors
    /// It does not come up again.
    fn reboot(&mut self) -> Result<()>;

    /// Takes its power away and gives it back: what was not written is lost. Only what boots from a card can be so treated.
    ///
    /// # Errors
    /// It does not come up again, or boots from no card.
    fn lose_power(&mut self) -> Result<()> {
        bail!("{} boots from no card", self.name())
    }

    /// Shuts it down in order.
    ///
    /// # Errors
    /// It does not go down.
    fn stop(self: Box<Self>) -> Result<()>;
}

/// A machine that can be built.
#[derive(Debug)]
pub struct Blueprint {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What it is, and what is real about it.
    pub about: &'static str,
    body: Body,
}

/// What a machine is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    /// systemd-nspawn with a root of this release.
    Container(&'static str),
    /// QEMU's general arm64 machine.
    Board(Model),
    /// A card with a root of this release, in a slot.
    Pi(&'static str, Slot),
}

/// All machines, the cheapest first.
pub const MACHINES: &[Blueprint] = &[
    Blueprint {
        name: "debian13",
        about: "Debian 13 in a container: systemd 257, this machine's kernel and architecture",
        body: Body::Container("trixie"),
    },
    Blueprint {
        name: "debian12",
        about: "Debian 12 in a container: systemd 252, this machine's kernel and architecture",
        body: Body::Container("bookworm"),
    },
    Blueprint {
        name: "arm64-6.12",
        about: "Debian 13 for arm64 with its kernel 6.12 and pages of 4 KiB, emulated",
        body: Body::Board(Model { suite: "trixie", flavour: Flavour::Cloud, processor: "cortex-a72" }),
    },
    Blueprint {
        name: "arm64-6.1",
        about: "Debian 12 for arm64 with its kernel 6.1 and pages of 4 KiB, emulated",
        body: Body::Board(Model { suite: "bookworm", flavour: Flavour::Cloud, processor: "cortex-a72" }),
    },
    Blueprint {
        name: "arm64-16k",
        about: "Debian 13 for arm64 with its kernel 6.12 and pages of 16 KiB, emulated",
        body: Body::Board(Model { suite: "trixie", flavour: Flavour::Pages16K, processor: "cortex-a76" }),
    },
    Blueprint {
        name: "card",
        about: "a Raspberry Pi's card with Debian 13 in a general machine under a Pi's name; the bed plays the firmware",
        body: Body::Pi("trixie", Slot::General),
    },
    Blueprint {
        name: "pi4",
        about: "the same card in an emulated Raspberry Pi 4; the bed plays the firmware",
        body: Body::Pi("trixie", Slot::Pi4),
    },
];

impl Blueprint {
    /// The machine of this name.
    ///
    /// # Errors
    /// There is none; says which there are.
    pub fn named(name: &str) -> Result<&'static Self> {
        let all: Vec<_> = MACHINES.iter().map(|machine| machine.name).collect();
        let found = MACHINES.iter().find(|machine| machine.name == name);
        found.ok_or_else(|| anyhow::anyhow!("there is no machine {name}; there are {}", all.join(", ")))
    }

    /// Whether it runs programs of arm64 rather than of this machine's architecture.
    pub fn is_arm64(&self) -> bool {
        !matches!(self.body, Body::Container(_))
    }

    /// Whether a kernel of its own runs in it.
    pub fn has_own_kernel(&self) -> bool {
        self.is_arm64()
    }

    /// Whether it boots from a card, with the bed in the firmware's place.
    pub fn has_card(&self) -> bool {
        matches!(self.body, Body::Pi(..))
    }

    /// The things in the store that are this machine's own, the last one made last.
    fn parts(&self) -> Vec<String> {
        match self.body {
            Body::Container(suite) => vec![format!("root-{suite}")],
            Body::Board(model) => board::parts(self.name, model).into(),
            Body::Pi(suite, _) => pi::parts(suite).into(),
        }
    }

    /// Whether everything is there that it boots from.
    pub fn is_built(&self, store: &Store) -> bool {
        self.parts().iter().all(|part| store.has(part))
    }

    /// Lets the next [`Blueprint::build`] make everything anew.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn forget(&self, store: &Store) -> Result<()> {
        self.parts().iter().try_for_each(|part| store.forget(part))
    }

    /// How long its latest boot took, in seconds.
    pub fn last_boot(&self, store: &Store) -> Option<f64> {
        store.note(&format!("boot-{}", self.name))?.parse().ok()
    }

    /// Builds what is missing of it: downloads packages, up to a minute and a half.
    ///
    /// # Errors
    /// Not root, a program is missing, the mirror does not answer, or the disk is full.
    pub fn build(&self, store: &Store) -> Result<()> {
        ensure!(nix::unistd::geteuid().is_root(), "machines are built and run as root");
        let _lock = store.lock()?;
        match self.body {
            Body::Container(suite) => root::native(store, suite).map(drop),
            Body::Board(model) => board::build(store, self.name, model).map(drop),
            Body::Pi(suite, _) => pi::build(store, suite).map(drop),
        }
    }

    /// As [`Blueprint::start`], for a test that works on the container itself.
    ///
    /// # Errors
    /// Those of [`Blueprint::start`], and a machine that is none.
    pub fn container(&self, store: &Store, gifts: &[Gift]) -> Result<Container> {
        let Body::Container(suite) = self.body else { bail!("{} is no container", self.name) };
        self.build(store)?;
        Container::start(self.name, &root::native(store, suite)?, gifts)
    }

    /// Builds what is missing and boots it, with `gifts` in it.
    ///
    /// # Errors
    /// Those of [`Blueprint::build`], and a system that does not come up; then with the end of its console.
    pub fn start(&self, store: &Store, gifts: &[Gift]) -> Result<Box<dyn Machine>> {
        self.build(store)?;
        let machine: Box<dyn Machine> = match self.body {
            Body::Container(suite) => {
                Box::new(Container::start(self.name, &root::native(store, suite)?, gifts)?)
            }
            Body::Board(model) => Box::new(Board::start(store, self.name, model, gifts)?),
            Body::Pi(suite, slot) => Box::new(Pi::start(store, self.name, suite, slot, gifts)?),
        };
        store.keep_note(&format!("boot-{}", self.name), &machine.booted_in().as_secs_f64().to_string())?;
        Ok(machine)
    }
}

/// Waits until systemd says that all is up and nothing failed.
fn wait_until_running(machine: &mut dyn Machine) -> Result<()> {
    until(PATIENCE, "systemd says that the system is running", || {
        let state = machine.run("systemctl is-system-running")?;
        match state.out.trim() {
            "running" => Ok(Some(())),
            "degraded" | "maintenance" | "stopping" => {
                let failed = machine
                    .run("systemctl --failed --plain --no-legend; journalctl -b -p err --no-pager -n 20")?;
                bail!("the system is {}: {}", state.out.trim(), failed.out)
            }
            // Not there yet.
            _ => Ok(None),
        }
    })
}

/// Waits for what the network gives an emulated machine: systemd does not.
fn wait_for_network(machine: &mut dyn Machine) -> Result<()> {
    until(PATIENCE, "the machine has a default route", || {
        Ok((!machine.run("ip -4 route show default")?.out.is_empty()).then_some(()))
    })
}
