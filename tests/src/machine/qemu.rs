//! An emulated machine's process, its monitor and its console.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::FileExt, net::UnixStream},
    },
    path::Path,
    process::ExitStatus,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde_json::{Value, json};

use super::shell::Shell;
use crate::{
    process::{Process, bound, run},
    watch::until,
};

const PROGRAM: &str = "qemu-system-aarch64";

/// A running emulator; killed when dropped.
#[derive(Debug)]
pub(super) struct Qemu {
    process: Process,
    monitor: BufReader<UnixStream>,
    console: File,
}

impl Qemu {
    /// Starts it with the machine's own `arguments`; the shell's line is the character device `shell`. When it returns,
    /// all files are open. What the guest says on its first serial line goes to `console` if `arguments` say
    /// `-serial stdio`.
    pub(super) fn start(name: &str, console: &Path, arguments: &[String]) -> Result<(Self, Shell)> {
        let (monitor, monitor_far) = line()?;
        let (shell, shell_far) = line()?;
        let log = File::options().create(true).truncate(true).read(true).write(true).open(console)?;
        let mut command = bound(PROGRAM);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-accel"]);
        command.args(["tcg,thread=multi,tb-size=256", "-mon", "chardev=monitor,mode=control", "-chardev"]);
        command.arg(format!("socket,id=monitor,fd={}", monitor_far.as_raw_fd())).arg("-chardev");
        command.arg(format!("socket,id=shell,fd={}", shell_far.as_raw_fd())).args(arguments);
        command.stdout(log.try_clone()?).stderr(log.try_clone()?);
        let process = Process::spawn(format!("{name}'s {PROGRAM}"), command)?;
        // Their only holder is the emulator now, so that its end is the lines' end.
        drop((monitor_far, shell_far));
        let mut qemu = Self { process, monitor: BufReader::new(monitor), console: log };
        qemu.monitor.get_ref().set_read_timeout(Some(super::PATIENCE))?;
        let greeted = qemu.receive().and_then(|_| qemu.execute("qmp_capabilities", &json!({})));
        greeted.with_context(|| qemu.log())?;
        Ok((qemu, Shell::new(shell)))
    }

    /// Gives the monitor a command and returns its answer.
    pub(super) fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let message = json!({ "execute": command, "arguments": arguments });
        writeln!(self.monitor.get_mut(), "{message}").context("the emulator's monitor is closed")?;
        loop {
            let answer = self.receive()?;
            if let Some(error) = answer.get("error") {
                bail!("the emulator's monitor refused {command}: {error}");
            }
            // Everything else are events.
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
        }
    }

    /// As a person at the monitor; what it answers is a complaint.
    pub(super) fn say(&mut self, line: &str) -> Result<()> {
        let answer = self.execute("human-monitor-command", &json!({ "command-line": line }))?;
        match answer.as_str().unwrap_or_default().trim() {
            "" => Ok(()),
            complaint => bail!("{line}: {complaint}"),
        }
    }

    fn receive(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.monitor.read_line(&mut line).context("the emulator's monitor does not answer")? == 0 {
            bail!("the emulator ended");
        }
        serde_json::from_str(&line).with_context(|| format!("the emulator's monitor said {line}"))
    }

    /// An error once the emulator ended or its guest cannot go on.
    pub(super) fn check_alive(&mut self) -> Result<()> {
        let log = self.log();
        if let Some(status) = self.process.ended() {
            bail!("the emulator ended with {status}: {log}");
        }
        if ["Kernel panic", "no root /dev"].iter().any(|sign| log.contains(sign)) {
            bail!("the machine does not come up: {log}");
        }
        Ok(())
    }

    /// Waits until the guest ended it.
    pub(super) fn wait_for_end(&mut self, within: Duration) -> Result<ExitStatus> {
        until(within, "the machine is off", || Ok(self.process.ended())).with_context(|| self.log())
    }

    /// The end of what came to the console, and of what the emulator said.
    pub(super) fn log(&self) -> String {
        const LENGTH: u64 = 4000;
        let size = self.console.metadata().map_or(0, |about| about.len());
        let mut bytes = vec![0; LENGTH.min(size) as usize];
        // What cannot be read is missing in a message that says something else.
        let read = self.console.read_at(&mut bytes, size.saturating_sub(LENGTH)).unwrap_or_default();
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    }
}

/// The emulator's version: a snapshot is for one only.
pub(super) fn version() -> Result<String> {
    let mut command = bound(PROGRAM);
    command.arg("--version");
    Ok(run(command)?.lines().next().unwrap_or_default().to_owned())
}

/// Two ends of a line; the second outlives an exec.
fn line() -> Result<(UnixStream, OwnedFd)> {
    let (near, far) = UnixStream::pair()?;
    fcntl(&far, FcntlArg::F_SETFD(FdFlag::empty())).context("handing a socket down")?;
    Ok((near, far.into()))
}
