//! Builds the programs of this workspace, and becomes root when the rest needs it.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use testbed::lab::Binaries;

use crate::root;

/// Set for the second half of a verb that ran its first half, the building, as an ordinary user.
const BUILT: &str = "BRAMBLE_BUILT";

/// How the programs are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// As they are shipped.
    Release,
    /// As they are tested.
    Dev,
}

impl Profile {
    /// By the switch on the command line.
    pub(crate) fn of(dev: bool) -> Self {
        if dev { Self::Dev } else { Self::Release }
    }

    fn folder(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dev => "debug",
        }
    }
}

/// cargo, in the checkout, with everything it says on standard error.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(arguments).current_dir(root()).stdin(Stdio::null());
    // What `cargo xtask` itself was run with is of no concern to what it builds.
    for name in ["RUSTFLAGS", "RUSTDOCFLAGS"] {
        cargo.env_remove(name);
    }
    cargo
}

/// Runs a command to its end.
///
/// # Errors
///
/// It cannot be started, or fails.
pub(crate) fn succeed(mut command: Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

/// Builds bramble and bramble-aggregator.
///
/// # Errors
///
/// The build fails; cargo said why.
pub(crate) fn programs(profile: Profile) -> Result<()> {
    let mut build = cargo(&["build", "--locked", "--bins", "-p", "bramble", "-p", "bramble-aggregator"]);
    if profile == Profile::Release {
        build.arg("--release");
    }
    build.stdout(Stdio::from(std::io::stderr()));
    succeed(build)
}

/// The programs that [`programs`] built.
///
/// # Errors
///
/// They are not there.
pub(crate) fn binaries(profile: Profile) -> Result<Binaries> {
    Binaries::within(&target()?.join(profile.folder()))
}

/// cargo's target folder: this program lies in a profile's folder of it.
pub(crate) fn target() -> Result<PathBuf> {
    let me = std::env::current_exe().context("finding this program's own file")?;
    Ok(me.ancestors().nth(2).context("xtask lies in cargo's target folder")?.to_owned())
}

/// Whether this is the second half of a verb, for which everything was built before.
pub(crate) fn is_built_for_root() -> bool {
    std::env::var_os(BUILT).is_some()
}

/// Goes on as root: returns at once when we are, otherwise starts this verb again through sudo, in our place.
///
/// # Errors
///
/// We are not root, and sudo does not let us be.
pub(crate) fn become_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let allowed = Command::new("sudo").args(["-n", "true"]).stderr(Stdio::null()).status();
    if !allowed.is_ok_and(|status| status.success()) {
        bail!(
            "namespaces need root, and sudo asks for a password; type `sudo -v` first, and then this again"
        );
    }
    let me = std::env::current_exe().context("finding this program's own file")?;
    let error = Command::new("sudo")
        // With sudo's end ours comes, too.
        .args(["-n", "--", "setpriv", "--pdeathsig", "KILL", "--", "env", &format!("{BUILT}=1")])
        .arg(me)
        .args(std::env::args_os().skip(1))
        .exec();
    Err(error).context("starting sudo")
}
