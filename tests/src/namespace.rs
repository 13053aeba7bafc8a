//! A network and a mount namespace without a name: they live exactly as long as their holder process.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};

use crate::process::{Process, bound, run};

/// Inside, `/run` is the namespace's own and tracefs is mounted even where the host has not; nothing else differs.
const SET_UP: &str = "set -e
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/bed
[ -e /sys/kernel/tracing/events ] || mount -t tracefs tracefs /sys/kernel/tracing
ip link set lo up
echo ready
exec sleep infinity";

/// One namespace pair with its holder.
#[derive(Debug)]
pub struct Namespace {
    holder: Process,
}

impl Namespace {
    /// Makes it; `name` is for messages only.
    ///
    /// # Errors
    /// Not root, or a kernel without namespaces or tracefs.
    pub fn new(name: &str) -> Result<Self> {
        let mut command = bound("unshare");
        command.args(["--net", "--mount", "--propagation", "private", "--", "sh", "-c", SET_UP]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut holder = Process::spawn(format!("{name}'s namespaces"), command)?;
        let stdout = holder.stdout().context("the holder's output is piped")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        if line != "ready\n" {
            bail!("making {name}'s namespaces failed: {}; are you root?", holder.complaint());
        }
        Ok(Self { holder })
    }

    /// The holder's id, for `nsenter --target`.
    pub fn pid(&self) -> u32 {
        self.holder.pid()
    }

    /// A path inside, as seen from outside.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.pid()))
    }

    /// A bound command inside both namespaces.
    pub fn command(&self, program: &str) -> Command {
        self.enter(&["--net", "--mount"], program)
    }

    /// A bound command that sees the files inside, but the host's network.
    pub fn command_on_host_network(&self, program: &str) -> Command {
        self.enter(&["--mount"], program)
    }

    fn enter(&self, which: &[&str], program: &str) -> Command {
        let mut command = bound("nsenter");
        command.arg("--target").arg(self.pid().to_string()).args(which).args(["--", program]);
        command
    }

    /// Lets `ip` carry out lines of commands inside, and returns what it printed.
    ///
    /// # Errors
    /// The first line that fails ends it.
    pub fn ip(&self, lines: &str) -> Result<String> {
        ip(self.command("ip"), lines)
    }

    /// Runs `work` with the network inside, in a thread of its own.
    ///
    /// # Errors
    /// Those of `work`, and a namespace that is gone.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let network = self.network()?;
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(network.as_fd(), CloneFlags::CLONE_NEWNET)
                        .context("entering the network namespace")?;
                    work()
                })
                .join()
                .map_err(|_| anyhow!("the work inside the network namespace panicked"))?
        })
    }

    fn network(&self) -> Result<OwnedFd> {
        let path = format!("/proc/{}/ns/net", self.pid());
        Ok(fs::File::open(&path).with_context(|| format!("opening {path}"))?.into())
    }

    /// The namespaces' identities, as the kernel writes them: `net:[4026532000]`.
    ///
    /// # Errors
    /// The holder is gone.
    pub fn identities(&self) -> Result<Vec<String>> {
        ["net", "mnt"]
            .into_iter()
            .map(|kind| {
                let path = format!("/proc/{}/ns/{kind}", self.pid());
                Ok(fs::read_link(&path).with_context(|| format!("reading {path}"))?.display().to_string())
            })
            .collect()
    }
}

/// Feeds `lines` to an `ip` command.
pub(crate) fn ip(mut command: Command, lines: &str) -> Result<String> {
    command.args(["-batch", "-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("starting ip (Debian package iproute2)")?;
    // Dropping it closes the pipe, and ip ends.
    child.stdin.take().context("ip's input is piped")?.write_all(lines.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("ip refused one of:\n{lines}\n{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command inside to its end.
///
/// # Errors
/// See [`run`].
pub fn run_in(namespace: &Namespace, program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = namespace.command(program);
    command.args(arguments);
    run(command)
}
