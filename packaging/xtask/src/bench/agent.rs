//! `cargo xtask bench agent`: what every program of the demo costs over TLS, beside what people run on a Pi today.
//!
//! All run at the same time, each in a cgroup of its own, and say what they have every ten seconds. Two bramble nodes are
//! compared: one of a mesh (agent and companion), and the agent of a node without peers, which does the same work as the
//! others: it reads its machine and says it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;
use testbed::broker::{TLS_PORT, log_to};
use testbed::cost::median;
use testbed::http;
use testbed::lab::{Lab, Settings, Switch};
use testbed::mesh::{self, Ear};
use testbed::process::{Process, bound};
use testbed::watch::until;

use super::{PATIENCE, WARM_UP, kibibytes};
use crate::build::{self, Profile};
use crate::root;

/// How often Prometheus asks its exporters here, and how often the others report.
const EVERY: Duration = Duration::from_secs(10);
/// How often each program's first message is waited for.
const ROUNDS: usize = 5;
/// The delay of the last will in the bed, and a little more: a will must not be taken for a first message.
const WILL: Duration = Duration::from_millis(1500);

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
    /// Sent to a disk, bytes per day.
    disk_bytes_per_day: f64,
}

/// How many times what the other one needs.
#[derive(Debug, Serialize)]
struct Ratio {
    beside: String,
    cpu: f64,
    uss: f64,
    rss: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    seconds: f64,
    /// Of the mesh.
    nodes: u8,
    programs: Vec<Footprint>,
    /// Agent and companion of the node in the middle of the mesh.
    node: Footprint,
    node_ratios: Vec<Ratio>,
    /// The agent of a node without peers.
    agent: Footprint,
    agent_ratios: Vec<Ratio>,
    /// From the start of a program to its first message at another client, over TLS, milliseconds: the median.
    first_message_ms: BTreeMap<&'static str, f64>,
    /// The file that holds agent, companion and command, with the programs for the kernel, bytes.
    executable: u64,
}

/// Measures for so long, in a mesh of so many nodes.
pub(super) fn measure(time: Duration, nodes: u8) -> Result<Outcome> {
    let groups = Groups::make()?;
    let binaries = build::binaries(Profile::Release)?;
    let states = States::make()?;
    // What a switch does is no node's work.
    let mut lab = Lab::joined_by(Switch::Direct, &binaries, nodes, 0)?;
    let mut alone = Lab::joined_by(Switch::Direct, &binaries, 1, 0)?;
    for (bed, lab) in [("mesh", &lab), ("alone", &alone)] {
        for node in lab.nodes() {
            let state = states.0.join(bed).join(node.name());
            let settings = Settings { report: "10s", tls: true, state: &state, ..Settings::default() };
            node.configure(lab.broker(), settings)?;
        }
    }
    let first_message_ms = first_messages(&alone)?;
    lab.start_programs()?;
    alone.start_programs()?;
    let (exporter, address) = start_node_exporter()?;
    let reporters: Vec<(&str, Process)> =
        PEERS.iter().map(|peer| Ok((peer.name, (peer.start)(&alone)?))).collect::<Result<_>>()?;
    eprintln!("waiting until all links are fine, then {} s to warm up", WARM_UP.as_secs());
    // Listening is no part of what is measured: the ear is closed again.
    mesh::settle(&lab, &Ear::open(&lab)?, PATIENCE)?;

    let mut programs: Vec<(String, u32)> = Vec::new();
    for (bed, lab) in [("mesh", &mut lab), ("alone", &mut alone)] {
        let names: Vec<String> = lab.nodes().iter().map(|node| node.name().to_owned()).collect();
        for name in &names {
            let node = lab.node_mut(name)?;
            let agent = node.agent().context("the agent runs")?.pid();
            let companion = node.companion().context("the companion runs")?.pid();
            programs.push((format!("{bed}-{name}-agent"), agent));
            programs.push((format!("{bed}-{name}-companion"), companion));
        }
    }
    programs.push(("mesh-aggregator".to_owned(), lab.aggregator().context("the aggregator runs")?.pid()));
    programs.push((NODE_EXPORTER.to_owned(), exporter.pid()));
    programs.extend(reporters.iter().map(|(name, process)| ((*name).to_owned(), process.pid())));
    for (name, pid) in &programs {
        groups.take(name, *pid)?;
    }
    scrape_for(WARM_UP, address)?;
    let used = || -> Result<Vec<(u64, u64)>> {
        programs.iter().map(|(name, pid)| Ok((groups.cpu_ns(name)?, written(*pid)?))).collect()
    };
    let before = used()?;
    eprintln!("measuring for {} s", time.as_secs());
    let began = Instant::now();
    scrape_for(time, address)?;
    let after = used()?;
    let seconds = began.elapsed().as_secs_f64();
    let casualties = [lab.casualties(), alone.casualties()].concat();
    ensure!(casualties.is_empty(), "{}", casualties.join(", "));
    let footprints = programs
        .iter()
        .zip(before.iter().zip(&after))
        .map(|((program, pid), (before, after))| {
            let (rss, uss) = memory(*pid).with_context(|| format!("{program} has ended"))?;
            let cpu_ns_per_s = (after.0 - before.0) as f64 / seconds;
            let disk_bytes_per_day = (after.1 - before.1) as f64 / seconds * 86_400.0;
            Ok(Footprint { program: program.clone(), rss, uss, cpu_ns_per_s, disk_bytes_per_day })
        })
        .collect::<Result<Vec<_>>>()?;
    drop((reporters, exporter, alone, lab));

    let peers = &footprints[footprints.len() - PEERS.len() - 1..];
    let mesh: Vec<Footprint> = footprints.chunks_exact(2).take(nodes.into()).map(together).collect();
    let middle = |of: fn(&Footprint) -> f64| median(mesh.iter().map(of));
    let node = Footprint {
        program: "agent and companion of a mesh".to_owned(),
        rss: middle(|node| node.rss as f64) as u64,
        uss: middle(|node| node.uss as f64) as u64,
        cpu_ns_per_s: middle(|node| node.cpu_ns_per_s),
        disk_bytes_per_day: middle(|node| node.disk_bytes_per_day),
    };
    let agent = footprints[usize::from(nodes) * 2].clone();
    Ok(Outcome {
        seconds,
        nodes,
        node_ratios: ratios(&node, peers),
        agent_ratios: ratios(&agent, peers),
        node,
        agent,
        first_message_ms,
        executable: fs::metadata(&binaries.bramble)?.len(),
        programs: footprints,
    })
}

fn together(pair: &[Footprint]) -> Footprint {
    Footprint {
        program: String::new(),
        rss: pair.iter().map(|one| one.rss).sum(),
        uss: pair.iter().map(|one| one.uss).sum(),
        cpu_ns_per_s: pair.iter().map(|one| one.cpu_ns_per_s).sum(),
        disk_bytes_per_day: pair.iter().map(|one| one.disk_bytes_per_day).sum(),
    }
}

fn ratios(ours: &Footprint, others: &[Footprint]) -> Vec<Ratio> {
    others
        .iter()
        .map(|other| Ratio {
            beside: other.program.clone(),
            cpu: ours.cpu_ns_per_s / other.cpu_ns_per_s,
            uss: ours.uss as f64 / other.uss as f64,
            rss: ours.rss as f64 / other.rss as f64,
        })
        .collect()
}

// --- peers

const NODE_EXPORTER: &str = "node-exporter";

/// A program that reads its machine and says it over MQTT with TLS.
struct Peer {
    name: &'static str,
    /// What it publishes.
    filter: &'static str,
    start: fn(&Lab) -> Result<Process>,
}

const PEERS: [Peer; 2] = [
    Peer { name: "collectd", filter: "collectd/#", start: start_collectd },
    Peer { name: "psutil-paho", filter: "psutil/#", start: start_script },
];

/// As Debian builds it, with one thread to read and one to write.
fn start_collectd(lab: &Lab) -> Result<Process> {
    let namespace = lab.node("n1")?.namespace();
    let mut text = format!(
        "Hostname \"bench\"\nPIDFile \"/run/bed/collectd.pid\"\nTypesDB \"/usr/share/collectd/types.db\"\n\
         Interval {}\nReadThreads 1\nWriteThreads 1\n",
        EVERY.as_secs()
    );
    for plugin in ["cpu", "memory", "load", "df", "disk", "interface", "uptime", "swap", "thermal", "mqtt"] {
        text += &format!("LoadPlugin {plugin}\n");
    }
    text += &format!(
        "<Plugin mqtt>\n<Publish bench>\nHost \"{}\"\nPort {TLS_PORT}\nCACert \"/run/bed/ca.crt\"\n\
         Prefix collectd\nRetain true\n</Publish>\n</Plugin>\n",
        lab.broker().address().ip()
    );
    fs::write(namespace.path("/run/bed/collectd.conf"), text)?;
    let mut command = namespace.command("collectd");
    command.args(["-f", "-C", "/run/bed/collectd.conf"]);
    log_to(&mut command, namespace, "collectd.log")?;
    Process::spawn("collectd", command)
}

/// What people write themselves: a loop around psutil and paho.
fn start_script(lab: &Lab) -> Result<Process> {
    let namespace = lab.node("n1")?.namespace();
    let script = root().join("packaging/xtask/src/bench/psutil_paho.py");
    let mut command = namespace.command("/usr/bin/python3");
    command.arg(script).arg(lab.broker().address().ip().to_string()).arg(TLS_PORT.to_string());
    command.args(["/run/bed/ca.crt", &EVERY.as_secs().to_string()]);
    log_to(&mut command, namespace, "psutil-paho.log")?;
    Process::spawn("psutil-paho", command)
}

fn start_node_exporter() -> Result<(Process, SocketAddr)> {
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let mut command = bound("prometheus-node-exporter");
    command.arg(format!("--web.listen-address={address}")).stdout(Stdio::null()).stderr(Stdio::null());
    let process = Process::spawn("prometheus-node-exporter", command)?;
    until(PATIENCE, "prometheus-node-exporter answers", || Ok(http::get(address, "/metrics").ok()))?;
    Ok((process, address))
}

/// Asks the exporter as Prometheus would, for so long.
fn scrape_for(time: Duration, address: SocketAddr) -> Result<()> {
    let end = Instant::now() + time;
    let mut next = Instant::now() + EVERY;
    loop {
        let until = next.min(end);
        sleep(until.saturating_duration_since(Instant::now()));
        if until == end {
            return Ok(());
        }
        http::get(address, "/metrics")?;
        next += EVERY;
    }
}

/// Each program started [`ROUNDS`] times, in turns: how long until another client has its first message.
fn first_messages(lab: &Lab) -> Result<BTreeMap<&'static str, f64>> {
    let agent =
        Peer { name: "agent", filter: "bramble/#", start: |lab| lab.node("n1")?.spawn("run", "agent.log") };
    let mut times: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for round in 1..=ROUNDS {
        eprintln!("first messages, round {round} of {ROUNDS}");
        for program in std::iter::once(&agent).chain(&PEERS) {
            times.entry(program.name).or_default().push(first_message(lab, program)?);
        }
    }
    Ok(times.into_iter().map(|(name, times)| (name, median(times.into_iter()))).collect())
}

/// Milliseconds; the program is killed then.
fn first_message(lab: &Lab, program: &Peer) -> Result<f64> {
    let listener = lab.broker().listen(program.filter)?;
    // What is kept from the round before comes now, and the last will.
    sleep(WILL);
    let prefix = program.filter.trim_end_matches('#');
    let began = Instant::now();
    let process = (program.start)(lab)?;
    let at = until(PATIENCE, &format!("{} says something", program.name), || {
        Ok(listener.below(prefix).into_iter().map(|(_, heard)| heard.at).filter(|at| *at > began).min())
    })?;
    drop(process);
    Ok((at - began).as_secs_f64() * 1e3)
}

// --- what a process uses

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

/// Bytes that a process has sent to a disk until now.
fn written(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/io");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let bytes = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    Ok(bytes.with_context(|| format!("{path} has no write_bytes"))?.parse()?)
}

/// The nodes' state directories: on a disk, as on a Pi; the bed's own files are in memory.
struct States(PathBuf);

impl States {
    fn make() -> Result<Self> {
        let path = root().join("target").join(format!("bench-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path.canonicalize()?))
    }
}

impl Drop for States {
    fn drop(&mut self) {
        // Below target/, and named by this process: what stays behind is found and harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// One cgroup per program, for its CPU time: exact, and with every thread that ended meanwhile.
pub(super) struct Groups(PathBuf);

impl Groups {
    const PREFIX: &str = "bramble-bench-";

    pub(super) fn make() -> Result<Self> {
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
    pub(super) fn take(&self, name: &str, pid: u32) -> Result<()> {
        let group = self.0.join(name);
        fs::create_dir_all(&group)?;
        Ok(fs::write(group.join("cgroup.procs"), pid.to_string())?)
    }

    /// What the processes of a group have used until now, with those that ended.
    pub(super) fn cpu_ns(&self, name: &str) -> Result<u64> {
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
