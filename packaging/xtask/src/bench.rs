//! `cargo xtask bench`: what bramble costs, beside what people run today, in the same run.
//!
//! Figures of one machine do not transfer; the ratios do. Load and page size stand with every figure.

mod check;

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
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

/// How often Prometheus asks its exporters here.
const SCRAPE_EVERY: Duration = Duration::from_secs(10);
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
    let cpu_ns = || -> Result<BTreeMap<&str, u64>> {
        programs.iter().map(|(name, _)| Ok((name.as_str(), groups.cpu_ns(name)?))).collect()
    };
    let before = cpu_ns()?;
    eprintln!("measuring for {} s", time.as_secs());
    let began = Instant::now();
    scrape_for(time, address)?;
    let after = cpu_ns()?;
    let seconds = began.elapsed().as_secs_f64();
    let casualties = lab.casualties();
    ensure!(casualties.is_empty(), "{}", casualties.join(", "));
    let footprints = programs
        .iter()
        .map(|(name, pid)| {
            let (rss, uss) = memory(*pid)?;
            let cpu_ns_per_s = (after[name.as_str()] - before[name.as_str()]) as f64 / seconds;
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

    /// Moves a process to the group of this name.
    fn take(&self, name: &str, pid: u32) -> Result<()> {
        let group = self.0.join(name);
        fs::create_dir_all(&group)?;
        Ok(fs::write(group.join("cgroup.procs"), pid.to_string())?)
    }

    /// What the processes of a group have used until now, with those that ended.
    fn cpu_ns(&self, name: &str) -> Result<u64> {
        let text = fs::read_to_string(self.0.join(name).join("cpu.stat"))?;
        let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        let Some(usage) = usage else { bail!("cpu.stat of {name} has no usage_usec") };
        Ok(usage.parse::<u64>()? * 1000)
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
