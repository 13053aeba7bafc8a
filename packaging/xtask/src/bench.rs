//! `cargo xtask bench`: what bramble costs, beside what people run today, in the same run.
//!
//! Figures of one machine do not transfer; the ratios do. Load and page size stand with every figure.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Subcommand};
use serde::Serialize;
use testbed::cost::{self, Cost, RunTime, median};
use testbed::http;
use testbed::lab::{Lab, Settings};
use testbed::mesh::{self, Ear};
use testbed::process::{Process, bound};

use crate::build::{self, Profile};
use crate::setup::{self, Purpose};

/// Runs of each command; the figure is their median.
const ROUNDS: usize = 20;
/// How often Prometheus asks its exporters here.
const SCRAPE_EVERY: Duration = Duration::from_secs(10);
/// Before this, caches fill and nodes find each other.
const WARM_UP: Duration = Duration::from_secs(15);
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Measures time, memory and cost per packet.
#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Time and peak memory of `bramble check`, beside `bpftool feature probe`.
    Check(Switches),
    /// Memory and CPU of every program in the demo, beside prometheus-node-exporter.
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
        setup::ensure(&[Purpose::Demo, Purpose::Bench])?;
        build::programs(Profile::Release)?;
    }
    build::become_root()?;
    match verb {
        Verb::Check(switches) => report(switches, check),
        Verb::Agent(switches) => {
            let time = Duration::from_secs(switches.seconds);
            report(&switches.switches, || agent(time))
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

// --- check

/// One command.
#[derive(Debug, Serialize)]
struct OneShot {
    command: String,
    /// Start to end, milliseconds: median, fastest, slowest.
    wall_ms: [f64; 3],
    /// The largest resident memory that was seen in any run, bytes; what is allocated in the last few microseconds
    /// may be missing.
    peak_rss: u64,
}

#[derive(Debug, Serialize)]
struct CheckOutcome {
    bramble_check: OneShot,
    bpftool_feature_probe: OneShot,
    /// Wall time of bpftool per wall time of bramble, the median over the rounds.
    times_faster: f64,
}

fn check() -> Result<CheckOutcome> {
    let bramble = build::binaries(Profile::Release)?.bramble;
    let ours = (bramble.display().to_string(), ["check", "--json"]);
    let peer = ("bpftool".to_owned(), ["feature", "probe"]);
    let mut times: [Vec<f64>; 2] = Default::default();
    // Taking turns, so that a busy machine hits both alike.
    for _ in 0..ROUNDS {
        for (times, (program, arguments)) in times.iter_mut().zip([&ours, &peer]) {
            times.push(timed(program, arguments)?.as_secs_f64() * 1000.0);
        }
    }
    let ratio = median(times[0].iter().zip(&times[1]).map(|(ours, peer)| peer / ours));
    let peak = |(program, arguments): &(String, [&str; 2])| -> Result<u64> {
        let mut peaks = (0..ROUNDS).map(|_| peak_memory(program, arguments));
        peaks.try_fold(0, |most, peak| Ok(most.max(peak?)))
    };
    let one_shot = |name: &str, times: &[f64], peak_rss| OneShot {
        command: name.to_owned(),
        wall_ms: [
            median(times.iter().copied()),
            times.iter().copied().fold(f64::INFINITY, f64::min),
            times.iter().copied().fold(0.0, f64::max),
        ],
        peak_rss,
    };
    Ok(CheckOutcome {
        bramble_check: one_shot("bramble check --json", &times[0], peak(&ours)?),
        bpftool_feature_probe: one_shot("bpftool feature probe", &times[1], peak(&peer)?),
        times_faster: ratio,
    })
}

fn quiet(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn timed(program: &str, arguments: &[&str]) -> Result<Duration> {
    let began = Instant::now();
    let status = quiet(program, arguments).status().with_context(|| format!("starting {program}"))?;
    // Findings are no failure: up to 3, the exit code is the node's health.
    ensure!(status.code().is_some_and(|code| code <= 3), "{program} ended with {status}");
    Ok(began.elapsed())
}

/// Watches a program's high-water mark until it ends. The figure that `wait4` gives is of no use: a child begins
/// with its parent's memory, and keeps that mark.
fn peak_memory(program: &str, arguments: &[&str]) -> Result<u64> {
    let mut child = quiet(program, arguments).spawn().with_context(|| format!("starting {program}"))?;
    let status = format!("/proc/{}/status", child.id());
    let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut peak = 0;
    while child.try_wait()?.is_none() {
        // Gone, or ended and not waited for: then there is no such line.
        let text = fs::read_to_string(&status).unwrap_or_default();
        if text.lines().next().is_some_and(|line| line.strip_prefix("Name:\t") == Some(&name)) {
            let mark = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            peak = peak.max(mark.map(kibibytes).transpose()?.unwrap_or_default());
        }
    }
    Ok(peak)
}

// --- agent

/// One running program.
#[derive(Clone, Debug, Serialize)]
struct Footprint {
    program: String,
    /// Resident, bytes.
    rss: u64,
    /// Resident and its own alone, bytes.
    uss: u64,
    /// CPU time in user and kernel, nanoseconds per second of the measurement.
    cpu_ns_per_s: f64,
}

#[derive(Debug, Serialize)]
struct AgentOutcome {
    seconds: f64,
    nodes: usize,
    programs: Vec<Footprint>,
    /// The node in the middle: agent and companion together.
    node: Footprint,
    node_exporter: Footprint,
    /// Node per node_exporter.
    cpu_ratio: f64,
    uss_ratio: f64,
    rss_ratio: f64,
}

fn agent(time: Duration) -> Result<AgentOutcome> {
    let groups = Groups::make()?;
    let mut lab = Lab::network(&build::binaries(Profile::Release)?, 3, 0)?;
    for node in lab.nodes() {
        // As often as the exporter is asked. Peers are probed every second all the same.
        node.configure(*lab.broker().address().ip(), Settings { report: "10s", ..Settings::default() })?;
    }
    lab.start_programs()?;
    let (exporter, address) = start_node_exporter()?;
    let ear = Ear::open(&lab)?;
    eprintln!("waiting until all links are fine, then {} s to warm up", WARM_UP.as_secs());
    mesh::settle(&lab, &ear, PATIENCE)?;
    // Listening is no part of what is measured.
    drop(ear);
    let mut programs: Vec<(String, u32)> = Vec::new();
    let names: Vec<String> = lab.nodes().iter().map(|node| node.name().to_owned()).collect();
    for name in &names {
        let node = lab.node_mut(name)?;
        let agent = node.agent().context("the agent runs")?.pid();
        let companion = node.companion().context("the companion runs")?.pid();
        programs.extend([(format!("{name}-agent"), agent), (format!("{name}-companion"), companion)]);
    }
    programs.push(("aggregator".to_owned(), lab.aggregator().context("the aggregator runs")?.pid()));
    programs.push(("node-exporter".to_owned(), exporter.pid()));
    for (name, pid) in &programs {
        groups.take(name, *pid)?;
    }
    scrape_for(WARM_UP, address)?;
    let before = groups.cpu_ns(&programs)?;
    eprintln!("measuring for {} s", time.as_secs());
    let began = Instant::now();
    scrape_for(time, address)?;
    let after = groups.cpu_ns(&programs)?;
    let seconds = began.elapsed().as_secs_f64();
    let casualties = lab.casualties();
    ensure!(casualties.is_empty(), "{}", casualties.join(", "));
    let footprints = programs
        .iter()
        .map(|(name, pid)| {
            let (rss, uss) = memory(*pid)?;
            let cpu_ns_per_s = (after[name] - before[name]) as f64 / seconds;
            Ok(Footprint { program: name.clone(), rss, uss, cpu_ns_per_s })
        })
        .collect::<Result<Vec<_>>>()?;
    drop((lab, exporter));
    let node_exporter = footprints.last().context("the exporter is the last one")?.clone();
    let nodes: Vec<Footprint> = footprints.chunks_exact(2).take(names.len()).map(together).collect();
    let middle = |of: fn(&Footprint) -> f64| median(nodes.iter().map(of));
    let node = Footprint {
        program: "agent and companion".to_owned(),
        rss: middle(|node| node.rss as f64) as u64,
        uss: middle(|node| node.uss as f64) as u64,
        cpu_ns_per_s: middle(|node| node.cpu_ns_per_s),
    };
    Ok(AgentOutcome {
        seconds,
        nodes: names.len(),
        cpu_ratio: node.cpu_ns_per_s / node_exporter.cpu_ns_per_s,
        uss_ratio: node.uss as f64 / node_exporter.uss as f64,
        rss_ratio: node.rss as f64 / node_exporter.rss as f64,
        programs: footprints,
        node,
        node_exporter,
    })
}

fn together(pair: &[Footprint]) -> Footprint {
    Footprint {
        program: String::new(),
        rss: pair.iter().map(|one| one.rss).sum(),
        uss: pair.iter().map(|one| one.uss).sum(),
        cpu_ns_per_s: pair.iter().map(|one| one.cpu_ns_per_s).sum(),
    }
}

fn start_node_exporter() -> Result<(Process, SocketAddr)> {
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let mut command = bound("prometheus-node-exporter");
    command.arg(format!("--web.listen-address={address}")).stdout(Stdio::null()).stderr(Stdio::null());
    let process = Process::spawn("prometheus-node-exporter", command)?;
    testbed::watch::until(PATIENCE, "prometheus-node-exporter answers", || {
        Ok(http::get(address, "/metrics").ok())
    })?;
    Ok((process, address))
}

/// Asks the exporter as Prometheus would, for so long.
fn scrape_for(time: Duration, address: SocketAddr) -> Result<()> {
    let end = Instant::now() + time;
    let mut next = Instant::now() + SCRAPE_EVERY;
    loop {
        let until = next.min(end);
        sleep(until.saturating_duration_since(Instant::now()));
        if until == end {
            return Ok(());
        }
        http::get(address, "/metrics")?;
        next += SCRAPE_EVERY;
    }
}

/// RSS and USS of a process, bytes.
fn memory(pid: u32) -> Result<(u64, u64)> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let field = |name: &str| -> Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        kibibytes(line.with_context(|| format!("{path} has no {name}"))?)
    };
    Ok((field("Rss:")?, field("Private_Clean:")? + field("Private_Dirty:")?))
}

/// One cgroup per program, for its CPU time: exact, and with every thread that ended meanwhile.
struct Groups(PathBuf);

impl Groups {
    const PREFIX: &str = "bramble-bench-";

    fn make() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mount = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let place = fields.next()?;
            (fields.next()? == "cgroup2").then(|| PathBuf::from(place))
        });
        let mount = mount.context("no cgroup2 is mounted; mount -t cgroup2 none /sys/fs/cgroup")?;
        // What a killed benchmark left.
        for old in fs::read_dir(&mount)?.flatten() {
            if old.file_name().to_string_lossy().starts_with(Self::PREFIX) {
                Self::remove(&old.path());
            }
        }
        let path = mount.join(format!("{}{}", Self::PREFIX, std::process::id()));
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self(path))
    }

    fn take(&self, name: &str, pid: u32) -> Result<()> {
        let group = self.0.join(name);
        fs::create_dir(&group)?;
        Ok(fs::write(group.join("cgroup.procs"), pid.to_string())?)
    }

    fn cpu_ns(&self, programs: &[(String, u32)]) -> Result<BTreeMap<String, u64>> {
        let read = |name: &str| -> Result<u64> {
            let text = fs::read_to_string(self.0.join(name).join("cpu.stat"))?;
            let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
            let Some(usage) = usage else { bail!("cpu.stat of {name} has no usage_usec") };
            Ok(usage.parse::<u64>()? * 1000)
        };
        programs.iter().map(|(name, _)| Ok((name.clone(), read(name)?))).collect()
    }

    /// Fails while a process is inside; then the next start tries again.
    fn remove(path: &Path) {
        for group in fs::read_dir(path).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir())
        {
            let _ = fs::remove_dir(group.path());
        }
        let _ = fs::remove_dir(path);
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        Self::remove(&self.0);
    }
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
