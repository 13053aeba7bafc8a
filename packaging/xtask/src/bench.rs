//! `cargo xtask bench`: what bramble costs, beside what people run today, in the same run.
//!
//! Figures of one machine do not transfer; the ratios do. Load and page size stand with every figure.

mod agent;
mod check;

use std::fs;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use serde::Serialize;
use testbed::cost::{self, Cost, RunTime};
use testbed::lab::{Lab, MOST_NODES};
use testbed::mesh::{self, Ear};

use crate::build::{self, Profile};
use crate::setup::{self, Purpose};

/// Before this, caches fill and nodes find each other.
const WARM_UP: Duration = Duration::from_secs(15);
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Measures time, memory and cost per packet.
#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Time, CPU and memory of `bramble check` and of an `apply` with nothing to do, beside check-config.sh, bpftool
    /// and Ansible.
    Check(Switches),
    /// Memory, CPU, disk writes and first message of every program in the demo over TLS, beside prometheus-node-exporter,
    /// collectd and a script.
    Agent(AgentSwitches),
    /// Nanoseconds per packet of the programs in the kernel, beside an empty one.
    Ebpf(Switches),
}

/// What every measurement takes.
#[derive(Args)]
pub(crate) struct Switches {
    /// Print one JSON object last.
    #[arg(long)]
    json: bool,
}

/// What the measurement of running programs takes.
#[derive(Args)]
pub(crate) struct AgentSwitches {
    #[command(flatten)]
    switches: Switches,
    /// How long is measured.
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// How many nodes the mesh has.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=i64::from(MOST_NODES)))]
    nodes: u8,
}

/// A figure without these is no figure.
#[derive(Debug, Serialize)]
struct Circumstances {
    /// Of the last minute, before and after.
    load_average: [f64; 2],
    page_size: u64,
    processors: usize,
    kernel: String,
}

/// Runs the verb.
///
/// # Errors
///
/// Something is missing that cannot be installed, or a program does not do what is measured.
pub(crate) fn run(verb: &Verb) -> Result<ExitCode> {
    if !build::is_built_for_root() {
        let installed = setup::ensure(&[Purpose::Demo, Purpose::Bench]);
        match verb {
            // Measures what can be had, and names what is missing.
            Verb::Check(_) => drop(installed.inspect_err(|error| eprintln!("{error:#}"))),
            _ => drop(installed?),
        }
        build::programs(Profile::Release)?;
    }
    build::become_root()?;
    match verb {
        Verb::Check(switches) => report(switches, check::measure),
        Verb::Agent(switches) => {
            let time = Duration::from_secs(switches.seconds);
            report(&switches.switches, || agent::measure(time, switches.nodes))
        }
        Verb::Ebpf(switches) => report(switches, ebpf),
    }
}

/// Measures, and prints the outcome with its circumstances.
fn report<T: Serialize>(switches: &Switches, measure: impl FnOnce() -> Result<T>) -> Result<ExitCode> {
    #[derive(Serialize)]
    struct Report<T> {
        #[serde(flatten)]
        outcome: T,
        circumstances: Circumstances,
    }
    let before = load_average()?;
    let outcome = measure()?;
    let circumstances = Circumstances {
        load_average: [before, load_average()?],
        page_size: page_size()?,
        processors: std::thread::available_parallelism()?.get(),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
    };
    let report = Report { outcome, circumstances };
    if switches.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{}", serde_json::to_string_pretty(&report)?);
    }
    Ok(ExitCode::SUCCESS)
}

fn load_average() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg")?;
    let first = text.split_whitespace().next().context("/proc/loadavg is empty")?;
    Ok(first.parse()?)
}

fn page_size() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/smaps")?;
    let line = text.lines().find_map(|line| line.strip_prefix("KernelPageSize:"));
    kibibytes(line.context("/proc/self/smaps names no page size")?)
}

/// The bytes in a line of /proc such as `  812 kB`.
fn kibibytes(text: &str) -> Result<u64> {
    let number = text.trim().strip_suffix(" kB").with_context(|| format!("{text:?} is no size"))?;
    Ok(number.trim().parse::<u64>()? * 1024)
}

// --- ebpf

#[derive(Debug, Serialize)]
struct EbpfOutcome {
    /// `BPF_PROG_TEST_RUN`: prepared packets, a warm cache, no network around it.
    test_run: Vec<Cost>,
    /// Run-time statistics of a running demo: real packets, a cold cache, and the kernel's own measuring.
    demo: Vec<RunTime>,
}

fn ebpf() -> Result<EbpfOutcome> {
    let test_run = cost::test_run()?;
    let _statistics = cost::count_run_time()?;
    let lab = Lab::start(&build::binaries(Profile::Release)?, 3, 0)?;
    let ear = Ear::open(&lab)?;
    mesh::settle(&lab, &ear, PATIENCE)?;
    sleep(WARM_UP);
    Ok(EbpfOutcome { test_run, demo: cost::run_time() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_proc_are_read_or_refused() {
        assert_eq!(kibibytes("     812 kB").unwrap(), 812 * 1024);
        assert!(kibibytes("812").is_err());
        assert!(kibibytes(" x kB").is_err());
    }
}
