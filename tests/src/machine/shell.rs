//! A root shell on a machine's serial line or virtual console, as a place to run one command after the other.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::Answer;

/// How often a shell that does not answer is spoken to again: it may not have been there yet.
const AGAIN: Duration = Duration::from_secs(1);

/// The near end of the line.
#[derive(Debug)]
pub(super) struct Shell {
    line: UnixStream,
    number: u32,
}

impl Shell {
    pub(super) fn new(line: UnixStream) -> Self {
        Self { line, number: 0 }
    }

    /// Waits until a shell answers; `is_alive` is asked in between.
    pub(super) fn wait(&mut self, within: Duration, mut is_alive: impl FnMut() -> Result<()>) -> Result<()> {
        let end = Instant::now() + within;
        while Instant::now() < end {
            self.number += 1;
            let token = format!("{}hello", self.number);
            // Parts of what came before the shell may be lost, so no part of it may leave a quote open. The backslash keeps
            // an echo of the line from being an answer.
            self.send(&format!("echo @\\{token}@\n"))?;
            if self.read_until(&format!("@{token}@"), AGAIN)?.is_some() {
                return Ok(());
            }
            is_alive()?;
        }
        bail!("no shell answered within {within:?}")
    }

    /// Runs a command in a shell of its own; its standard input is empty.
    pub(super) fn run(&mut self, command: &str, within: Duration) -> Result<Answer> {
        self.number += 1;
        let n = self.number;
        // The marks are put together there, so that an echo of this line is none.
        self.send(&format!(
            "( {command}\n) >/run/bed.out 2>/run/bed.err </dev/null; c=$?; \
             printf '@%s@' {n}out; cat /run/bed.out; printf '@%s@' {n}err; cat /run/bed.err; \
             rm /run/bed.out /run/bed.err; printf '@%s@' {n}end; printf '%s@' $c\n"
        ))?;
        let mut part = |mark: String| {
            self.read_until(&mark, within)?.with_context(|| format!("no answer within {within:?}: {command}"))
        };
        part(format!("@{n}out@"))?;
        let out = part(format!("@{n}err@"))?;
        let err = part(format!("@{n}end@"))?;
        let code = part("@".to_owned())?;
        let code = code.parse().with_context(|| format!("{code:?} is no exit code: {command}"))?;
        Ok(Answer { code, out, err })
    }

    /// Hands a command over and waits for nothing: the shell may end by it.
    pub(super) fn tell(&mut self, command: &str) -> Result<()> {
        self.send(&format!("{command}\n"))
    }

    fn send(&mut self, text: &str) -> Result<()> {
        self.line.write_all(text.as_bytes()).context("the machine's line is closed")
    }

    /// What came before `mark`; nothing when it does not come in time.
    fn read_until(&mut self, mark: &str, within: Duration) -> Result<Option<String>> {
        let end = Instant::now() + within;
        let mut bytes = Vec::new();
        let mut byte = [0];
        while !bytes.ends_with(mark.as_bytes()) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.line.set_read_timeout(Some(left))?;
            // One byte each: what comes after the mark is for the next reader.
            match self.line.read(&mut byte) {
                Ok(0) => bail!("the machine's line is closed"),
                Ok(_) => bytes.push(byte[0]),
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock) => return Ok(None),
                Err(error) if matches!(error.kind(), std::io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(error).context("reading the machine's line"),
            }
        }
        bytes.truncate(bytes.len() - mark.len());
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;
    use crate::process::{Process, bound};

    #[test]
    fn commands_answer_with_both_outputs_and_their_code() {
        let (near, far) = UnixStream::pair().unwrap();
        let mut command = bound("unshare");
        // A /run of its own, if we may; the shell's files are there.
        command.args([
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            "mount -t tmpfs run /run; exec sh",
        ]);
        command.stdin(Stdio::from(std::os::fd::OwnedFd::from(far.try_clone().unwrap())));
        command.stdout(Stdio::from(std::os::fd::OwnedFd::from(far.try_clone().unwrap())));
        command.stderr(Stdio::from(std::os::fd::OwnedFd::from(far)));
        let _process = Process::spawn("a shell", command).unwrap();
        let mut shell = Shell::new(near);
        let within = Duration::from_secs(20);
        shell.wait(within, || Ok(())).unwrap();
        let answer = shell.run("echo one; echo two >&2; exit 3", within).unwrap();
        assert_eq!(answer, Answer { code: 3, out: "one\n".to_owned(), err: "two\n".to_owned() });
        let answer = shell.run("echo '@2out@'", within).unwrap();
        assert_eq!((answer.code, answer.out.as_str()), (0, "@2out@\n"));
        assert!(shell.run("sleep 5", Duration::from_millis(100)).is_err());
    }
}
