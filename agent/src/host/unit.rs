//! The one unit that the agent may start: the root oneshot that applies the owner's plan. A polkit rule allows this
//! and nothing else.
#![allow(clippy::disallowed_methods, reason = "the door")]

use std::{
    io,
    process::{Command, Stdio},
};

/// Its name.
pub const PREPARE: &str = "bramble-prepare.service";

/// Asks systemd to start [`PREPARE`], without waiting for it.
///
/// # Errors
/// systemd refuses, or is not there; the text is its own.
pub fn start_prepare() -> io::Result<()> {
    let output = Command::new("systemctl")
        .args(["--no-ask-password", "--no-block", "start", PREPARE])
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
