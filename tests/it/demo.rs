//! The demo as a person runs it: it says what it saw, and leaves nothing behind, however it ends.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use testbed::{
    leftover::{Before, namespaces, processes},
    process::{MARK, Process, bound, run},
    watch::until,
};

use crate::programs;

/// `cargo xtask demo` with everything built.
fn demo(arguments: &[&str]) -> Result<std::process::Command> {
    let mut command = bound(&programs()?.join("xtask").display().to_string());
    command.args(["demo", "--dev", "--port", "0"]).args(arguments);
    command.env("BRAMBLE_BUILT", "1").env_remove(MARK);
    Ok(command)
}

pub(crate) fn a_fault_in_the_demo_is_told_as_one_json_object() -> Result<()> {
    let output = run(demo(&["--seconds", "1", "--json", "--fault", "loss:n2-n3"])?)?;
    let last = output.lines().last().context("it prints")?;
    let outcome: Value = serde_json::from_str(last).context("its last line is JSON")?;
    ensure!(outcome["nodes"].as_array().is_some_and(|nodes| nodes.len() == 3), "{last}");
    let pairs = outcome["pairs"].as_array().context("it has pairs")?;
    ensure!(pairs.len() == 6, "{last}");
    for pair in pairs {
        let lossy = pair["from"] == "n2" && pair["to"] == "n3";
        let state = if lossy { "lossy" } else { "fine" };
        ensure!(pair["state"] == state && pair["stamps"] == "kernel", "{pair}");
        ensure!(pair["sent"].as_u64() > Some(0) && pair["round_trip_us"]["median"].is_number(), "{pair}");
    }
    let named = outcome["fault"]["named"].as_array().context("it names the fault")?;
    ensure!(named.len() == 3 && named.iter().all(|n| n["subject"] == "n2 -> n3"), "{last}");
    ensure!(outcome["fault"]["counts"]["hit"].as_u64() > Some(0), "{last}");
    ensure!(outcome["left_behind"] == Value::Array(Vec::new()), "{last}");
    Ok(())
}

pub(crate) fn ctrl_c_ends_the_demo_in_order_and_leaves_nothing() -> Result<()> {
    let before = Before::look()?;
    let mut command = demo(&[])?;
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = Process::spawn("the demo", command)?;
    let mut lines = BufReader::new(child.stderr().context("its messages are piped")?).lines();
    wait_for(&mut lines, "links are fine")?;
    let mark = format!("bed-{}", child.pid());
    ensure!(!processes(&mark).is_empty(), "its processes are not recognised");
    let identities = namespaces(&mark);
    ensure!(identities.len() == 8, "a bridge and three nodes have eight namespaces, not {identities:?}");
    // As a terminal does: to the whole group.
    kill(Pid::from_raw(-child.pid().cast_signed()), Signal::SIGINT)?;
    wait_for(&mut lines, "left behind: nothing")?;
    let status = until(Duration::from_secs(5), "it ends", || Ok(child.ended()))?;
    ensure!(status.success(), "{status}");
    let left = before.left_behind(&mark, &identities)?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

pub(crate) fn a_killed_demo_leaves_nothing() -> Result<()> {
    kill_and_look(|_| Vec::new())
}

/// As when the memory or the power is gone: nobody is left who could clear up.
pub(crate) fn a_demo_of_which_every_process_is_killed_leaves_nothing() -> Result<()> {
    kill_and_look(processes)
}

/// Kills the demo and what is `chosen` of its bed by its mark, all at once.
fn kill_and_look(chosen: impl Fn(&str) -> Vec<String>) -> Result<()> {
    let before = Before::look()?;
    let mut command = demo(&["--fault", "delay:n1-n2"])?;
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = Process::spawn("the demo", command)?;
    let mut lines = BufReader::new(child.stderr().context("its messages are piped")?).lines();
    wait_for(&mut lines, "fault: ")?;
    let mark = format!("bed-{}", child.pid());
    let identities = namespaces(&mark);
    ensure!(identities.len() == 8, "a bridge and three nodes have eight namespaces, not {identities:?}");
    for process in chosen(&mark) {
        let pid = process.split(' ').next().unwrap_or_default().parse()?;
        // Gone already with one that was killed before it.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    child.kill();
    let left = before.left_behind(&mark, &identities)?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

fn wait_for(lines: &mut impl Iterator<Item = std::io::Result<String>>, what: &str) -> Result<()> {
    let mut said = Vec::new();
    for line in lines {
        let line = line?;
        if line.contains(what) {
            return Ok(());
        }
        said.push(line);
    }
    anyhow::bail!("it never said {what:?}, but: {}", said.join("\n"))
}
