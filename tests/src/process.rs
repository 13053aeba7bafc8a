//! Child processes that cannot outlive the thread that started them.

use std::{
    io::Read,
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Environment variable that marks every process of a bed; its value names the bed. See [`crate::leftover`].
pub const MARK: &str = "BRAMBLE_BED";

/// This process's mark: all beds of one process share it.
pub fn mark() -> String {
    format!("bed-{}", std::process::id())
}

/// A command whose process the kernel kills when the thread that starts it ends, however it ends.
///
/// The process gets a group of its own, so that Ctrl-C reaches only whoever made the bed, and stopping stays orderly.
/// A program that changes its user loses the bond; none in the bed does.
pub fn bound(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    // The child makes the bond, so it looks whether its parent is still the one that started it.
    let still_there = format!("[ $PPID = {} ] && exec \"$@\"", std::process::id());
    command.args(["--pdeathsig", "KILL", "--", "sh", "-c", &still_there, "sh", program]);
    command.process_group(0).stdin(Stdio::null()).env(MARK, mark());
    command
}

/// Runs a command to its end and returns what it printed.
///
/// # Errors
/// It cannot be started, or ends with anything but 0; then with what it said on stderr.
pub fn run(mut command: Command) -> Result<String> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A running child; killed and waited for when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
}

impl Process {
    /// Starts `command`, which [`bound`] made.
    ///
    /// # Errors
    /// The program is missing, or may not be run.
    pub fn spawn(name: impl Into<String>, mut command: Command) -> Result<Self> {
        let name = name.into();
        let child = command.spawn().with_context(|| format!("starting {name}: {command:?}"))?;
        Ok(Self { name, child })
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its id; `setpriv`, `sh` and `nsenter` become the program itself, so it is the program's.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its piped output, once.
    pub fn stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// Its piped messages, once.
    pub fn stderr(&mut self) -> Option<std::process::ChildStderr> {
        self.child.stderr.take()
    }

    /// What it said on its piped stderr until it ended; waits for that end.
    pub fn complaint(&mut self) -> String {
        let mut text = String::new();
        if let Some(mut stderr) = self.stderr() {
            // An unreadable complaint is an empty one.
            let _ = stderr.read_to_string(&mut text);
        }
        text.trim().to_owned()
    }

    /// How it ended, when it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Kills it at once, as the kernel or a power cut would, and waits for its end.
    pub fn kill(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end, and returns how it did.
    ///
    /// # Errors
    /// It was still there after `within`; then it is killed.
    pub fn stop(&mut self, within: Duration) -> Result<ExitStatus> {
        let until = Instant::now() + within;
        // The process is a child that nobody waited for, so its id is still its own.
        let _ = kill(Pid::from_raw(self.pid().cast_signed()), Signal::SIGTERM);
        while Instant::now() < until {
            if let Some(status) = self.ended() {
                return Ok(status);
            }
            sleep(Duration::from_millis(5));
        }
        self.kill();
        bail!("{} did not end within {within:?} of SIGTERM and was killed", self.name)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_dies_with_the_thread_that_started_it() {
        let mut child = std::thread::spawn(|| {
            let mut command = bound("sleep");
            command.arg("60");
            let child = Process::spawn("sleep", command).unwrap();
            let is_bound =
                || std::fs::read_to_string(format!("/proc/{}/comm", child.pid())).unwrap() == "sleep\n";
            while !is_bound() {
                sleep(Duration::from_millis(1));
            }
            child
        })
        .join()
        .unwrap();
        let until = Instant::now() + Duration::from_secs(5);
        while child.ended().is_none() {
            assert!(Instant::now() < until, "it is still there");
            sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_failed_command_tells_what_it_said() {
        let mut command = bound("sh");
        command.args(["-c", "echo no room >&2; exit 3"]);
        let error = run(command).unwrap_err().to_string();
        assert!(error.contains("no room") && error.contains('3'), "{error}");
    }
}
