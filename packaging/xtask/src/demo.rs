//! `cargo xtask demo`: nodes, broker, aggregator and page on this machine; with a fault, if asked for one.

use std::io::{Write as _, stderr};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;
use testbed::fault::{Counts, Fault, Spec};
use testbed::lab::{Lab, MOST_NODES};
use testbed::leftover::Before;
use testbed::mesh::{self, Ear, Pair};
use testbed::naming::{LIMIT, Namings};
use testbed::process::mark;
use wire::report::{FindingCounts, Stamps, Tier, WayState};

use crate::build::{self, Profile};
use crate::ebpf;
use crate::interrupt::Interrupt;
use crate::setup::{self, Purpose};

/// How long the nodes may take to find each other.
const SETTLING: Duration = Duration::from_secs(20);

/// Starts three nodes with a real broker, the aggregator and the page; Ctrl-C ends it and leaves nothing.
#[derive(Args)]
pub(crate) struct Arguments {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=i64::from(MOST_NODES)))]
    nodes: u8,
    /// End by itself, so many seconds after all links were fine.
    #[arg(long)]
    seconds: Option<u64>,
    /// Print one JSON object last; needs --seconds.
    #[arg(long, requires = "seconds")]
    json: bool,
    /// Then break something and tell who names it: loss:n2-n3[:PERCENT], delay:n2-n3[:MS], cut:n2.
    #[arg(long)]
    fault: Option<Spec>,
    /// The page's port on 127.0.0.1; another one if it is taken.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Take development builds: built faster, run slower.
    #[arg(long)]
    dev: bool,
}

/// What the demo saw.
#[derive(Debug, Serialize)]
struct Outcome {
    nodes: Vec<NodeOutcome>,
    pairs: Vec<Pair>,
    settled_ms: Option<u128>,
    fault: Option<FaultOutcome>,
    problems: Vec<String>,
    left_behind: Vec<String>,
}

#[derive(Debug, Serialize)]
struct NodeOutcome {
    name: String,
    address: std::net::Ipv4Addr,
    tier: Option<Tier>,
    findings: Option<FindingCounts>,
    raised: Vec<String>,
}

#[derive(Debug, Serialize)]
struct FaultOutcome {
    spec: String,
    counts: Option<Counts>,
    #[serde(flatten)]
    namings: Namings,
}

/// Runs the verb. Exit code 0 when all links were fine, the fault was named right and in time, and nothing is left.
///
/// # Errors
///
/// Something is missing that cannot be installed, a build fails, or the bed cannot be made.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(spec) = &arguments.fault
        && let Some(stranger) = spec.nodes().into_iter().find(|n| !is_there(n, arguments.nodes))
    {
        bail!("there is no node {stranger}, only n1 to n{}", arguments.nodes);
    }
    if !build::is_built_for_root() {
        setup::ensure(&[Purpose::Demo])?;
        progress(format_args!("building"));
        ebpf::refresh()?;
        build::programs(Profile::of(arguments.dev))?;
    }
    build::become_root()?;
    let interrupt = Interrupt::prepare()?;
    let before = Before::look()?;
    progress(format_args!("starting {} nodes, broker and aggregator", arguments.nodes));
    let lab = Lab::start(&build::binaries(Profile::of(arguments.dev))?, arguments.nodes, arguments.port)?;
    let identities = lab.identities()?;
    let mut outcome = Outcome {
        nodes: Vec::new(),
        pairs: Vec::new(),
        settled_ms: None,
        fault: None,
        problems: Vec::new(),
        left_behind: Vec::new(),
    };
    let mut lab = lab;
    if let Err(error) = play(arguments, &mut lab, &interrupt, &mut outcome) {
        outcome.problems.push(format!("{error:#}"));
    }
    if !outcome.problems.is_empty() {
        progress(format_args!("{}", lab.logs()));
    }
    progress(format_args!("stopping"));
    outcome.problems.extend(lab.stop());
    outcome.left_behind = before.left_behind(&mark(), &identities)?;
    for problem in &outcome.problems {
        progress(format_args!("problem: {problem}"));
    }
    match &outcome.left_behind[..] {
        [] => progress(format_args!("left behind: nothing")),
        left => progress(format_args!("left behind: {}", left.join(", "))),
    }
    if arguments.json {
        println!("{}", serde_json::to_string(&outcome)?);
    }
    let named = outcome.fault.as_ref().is_none_or(|fault| fault.namings.are_right());
    let done = arguments.fault.is_none() || outcome.fault.is_some() || interrupt.came();
    let good = outcome.problems.is_empty() && outcome.left_behind.is_empty() && named && done;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn is_there(node: &str, nodes: u8) -> bool {
    node.strip_prefix('n').and_then(|n| n.parse().ok()).is_some_and(|n: u8| (1..=nodes).contains(&n))
}

/// From the first report to the last second.
fn play(arguments: &Arguments, lab: &mut Lab, interrupt: &Interrupt, outcome: &mut Outcome) -> Result<()> {
    let began = Instant::now();
    let ear = Ear::open(lab)?;
    introduce(lab);
    let settled = wait_until_fine(lab, &ear, interrupt);
    if interrupt.came() {
        return Ok(());
    }
    match settled {
        Ok(pairs) => {
            outcome.settled_ms = Some(began.elapsed().as_millis());
            let stamps = pairs.iter().map(|pair| pair.stamps).min().unwrap_or(Stamps::None);
            progress(format_args!(
                "all {} links are fine after {:.1} s; round trips stamped by: {stamps:?}",
                pairs.len(),
                began.elapsed().as_secs_f64()
            ));
        }
        // A person may still want to look.
        Err(error) => outcome.problems.push(format!("{error:#}")),
    }
    let end = arguments.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let fault = match &arguments.fault {
        Some(spec) if outcome.problems.is_empty() => Some(inject(spec, lab, &ear, interrupt, outcome)?),
        _ => None,
    };
    while !interrupt.came() && end.is_none_or(|end| Instant::now() < end) {
        sleep(Duration::from_millis(50));
        let casualties = lab.casualties();
        if !casualties.is_empty() {
            outcome.problems.extend(casualties);
            break;
        }
    }
    outcome.pairs = ear.pairs(lab);
    outcome.nodes = lab
        .nodes()
        .iter()
        .map(|node| {
            let state = ear.state(node.name());
            let raised = state.as_ref().map(mesh::raised).unwrap_or_default().into_iter();
            NodeOutcome {
                name: node.name().to_owned(),
                address: node.address(),
                raised: raised
                    .map(|(id, subject)| subject.map_or(id.clone(), |subject| format!("{id} {subject}")))
                    .collect(),
                findings: state.as_ref().map(|state| state.findings),
                tier: state.map(|state| state.tier),
            }
        })
        .collect();
    if let (Some(fault), Some(told)) = (fault, &mut outcome.fault) {
        told.counts = fault.heal(lab)?;
    } else if arguments.fault.is_none() {
        let bad = outcome.pairs.iter().filter(|pair| pair.state != WayState::Fine);
        outcome.problems.extend(bad.map(|pair| format!("{} is {:?}", pair.subject(), pair.state)));
    }
    Ok(())
}

fn wait_until_fine(lab: &Lab, ear: &Ear, interrupt: &Interrupt) -> Result<Vec<Pair>> {
    let began = Instant::now();
    loop {
        // In short steps, so that Ctrl-C is heard.
        let settled = mesh::settle(lab, ear, Duration::from_millis(100));
        if settled.is_ok() || began.elapsed() > SETTLING || interrupt.came() {
            return settled;
        }
    }
}

/// How to look at it.
fn introduce(lab: &Lab) {
    println!("\n  http://{}\n", lab.page());
    for node in lab.nodes() {
        progress(format_args!(
            "{} {}: sudo nsenter -t {} --net --mount {} status",
            node.name(),
            node.address(),
            node.namespace().pid(),
            node.program().display()
        ));
    }
    progress(format_args!("topics: mosquitto_sub -h {} -v -t 'bramble/#'", lab.broker().address().ip()));
    progress(format_args!("Ctrl-C ends it"));
}

fn inject(spec: &Spec, lab: &Lab, ear: &Ear, interrupt: &Interrupt, outcome: &mut Outcome) -> Result<Fault> {
    let fault = Fault::inject(spec.clone(), lab)?;
    let began = Instant::now();
    progress(format_args!("fault: {spec}; expected: {} {}", spec.kind(), spec.subject()));
    let mut namings = Namings::default();
    // Beyond the limit as well: too late is told as too late, and a mistaken alert may come late.
    while began.elapsed() < LIMIT * 2 && !interrupt.came() {
        for named in namings.look(lab, ear, spec, began)? {
            progress(format_args!(
                "{:?} names {} {} after {} ms",
                named.by, named.kind, named.subject, named.after_ms
            ));
        }
        sleep(Duration::from_millis(20));
    }
    for mistaken in &namings.mistaken {
        progress(format_args!("mistaken: {mistaken}"));
    }
    outcome.fault = Some(FaultOutcome { spec: spec.to_string(), counts: None, namings });
    Ok(fault)
}

fn progress(line: std::fmt::Arguments<'_>) {
    // A closed terminal is no reason to leave things behind.
    let _ = writeln!(stderr(), "{line}");
}
