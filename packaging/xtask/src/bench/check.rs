//! `cargo xtask bench check`: looking at a node, and preparing one that is prepared already, beside the tools of today.
//!
//! The peers take turns with bramble, round by round, so that a busy machine hits all alike. One that cannot be had is
//! named in the outcome, and the ratio it belongs to is left empty.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::json;
use testbed::cost::median;
use testbed::process::run;

use super::agent::Groups;
use super::kibibytes;
use crate::build::{self, Profile};
use crate::root;

/// Runs of each program; the figure is their median.
const ROUNDS: usize = 5;
/// The host that is prepared: a tree of tests/hosts.
const HOST: &str = "pi4-trixie-4k";
/// The files that the first `apply` makes on [`HOST`].
const MADE: [&str; 5] = [
    "etc/modules-load.d/bramble.conf",
    "etc/sysctl.d/99-zz-bramble.conf",
    "etc/NetworkManager/conf.d/99-zz-bramble.conf",
    "etc/systemd/system/systemd-time-wait-sync.service.d/50-bramble.conf",
    "etc/systemd/system/k3s-agent.service.d/50-bramble-clock.conf",
];
/// The file to which it adds [`WORD`].
const COMMAND_LINE: &str = "boot/firmware/cmdline.txt";
const WORD: &str = "psi=1";

#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    rounds: usize,
    programs: Vec<OneShot>,
    /// check-config.sh and bpftool together, per `bramble check`.
    check: Option<Ratio>,
    /// Ansible per `bramble apply`; neither has anything to do.
    apply: Option<Ratio>,
    /// Peers that could not be had, each with the reason.
    missing: Vec<String>,
}

/// One program's cost from `exec` to its end.
#[derive(Debug, Serialize)]
struct OneShot {
    program: &'static str,
    command: String,
    /// Milliseconds: median, fastest, slowest.
    wall_ms: [f64; 3],
    /// CPU time in user and kernel with all children, nanoseconds, counted to the microsecond: median, least, most.
    cpu_ns: [f64; 3],
    /// The largest resident memory that was seen in any of as many more runs, bytes; what is allocated in the last few
    /// microseconds may be missing. Only for programs that are one process.
    peak_rss: Option<u64>,
}

/// How many times more the others take than bramble, the medians over the rounds.
#[derive(Debug, PartialEq, Serialize)]
struct Ratio {
    wall: f64,
    cpu: f64,
}

/// What is run.
struct Program {
    name: &'static str,
    command: Vec<String>,
    environment: Vec<(&'static str, PathBuf)>,
    /// Stands in what it prints when it did what is measured.
    proof: &'static str,
    is_one_process: bool,
}

/// One run of a program.
#[derive(Clone, Copy)]
struct Sample {
    wall_ms: f64,
    cpu_ns: f64,
}

pub(super) fn measure() -> Result<Outcome> {
    let bramble = build::binaries(Profile::Release)?.bramble.display().to_string();
    let folder = build::target()?.join("bench");
    fs::create_dir_all(&folder)?;
    let groups = Groups::make()?;
    let host = prepare(&bramble, &folder)?;
    let mut missing = Vec::new();
    let mut programs = vec![
        Program {
            name: "check",
            command: words(&[&bramble, "check", "--json"]),
            environment: Vec::new(),
            proof: "{",
            is_one_process: true,
        },
        Program {
            name: "apply",
            command: words(&[&bramble, "apply", "--yes", "--root", &host.display().to_string()]),
            environment: Vec::new(),
            proof: "nothing to do",
            is_one_process: true,
        },
    ];
    for peer in [check_config(&folder), bpftool(), ansible(&folder, &host)] {
        match peer {
            Ok(peer) => programs.push(peer),
            Err(error) => {
                eprintln!("missing: {error:#}");
                missing.push(format!("{error:#}"));
            }
        }
    }
    let mut rounds: Vec<Vec<Sample>> = Vec::new();
    for round in 1..=ROUNDS {
        eprintln!("round {round} of {ROUNDS}");
        rounds.push(programs.iter().map(|program| sample(&groups, program)).collect::<Result<_>>()?);
    }
    let column = |name: &str| {
        let at = programs.iter().position(|program| program.name == name)?;
        Some(rounds.iter().map(|round| round[at]).collect::<Vec<_>>())
    };
    let ratio = |ours: &str, peers: &[&str]| {
        let peers: Option<Vec<_>> = peers.iter().map(|peer| column(peer)).collect();
        Some(ratio(&column(ours)?, &peers?))
    };
    let (check, apply) = (ratio("check", &["check-config", "bpftool"]), ratio("apply", &["ansible"]));
    let one_shots = programs.iter().map(|program| {
        let samples = column(program.name).context("it was run")?;
        Ok(OneShot {
            program: program.name,
            command: program.command.join(" "),
            wall_ms: middle_and_ends(samples.iter().map(|sample| sample.wall_ms)),
            cpu_ns: middle_and_ends(samples.iter().map(|sample| sample.cpu_ns)),
            peak_rss: program.is_one_process.then(|| peak_memory(program)).transpose()?,
        })
    });
    Ok(Outcome { rounds: ROUNDS, programs: one_shots.collect::<Result<_>>()?, check, apply, missing })
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// Of each round the peers' sum per ours; of those the median.
fn ratio(ours: &[Sample], peers: &[Vec<Sample>]) -> Ratio {
    let of =
        |figure: fn(&Sample) -> f64| {
            median(ours.iter().enumerate().map(|(round, ours)| {
                peers.iter().map(|peer| figure(&peer[round])).sum::<f64>() / figure(ours)
            }))
        };
    Ratio { wall: of(|sample| sample.wall_ms), cpu: of(|sample| sample.cpu_ns) }
}

fn middle_and_ends(values: impl Iterator<Item = f64> + Clone) -> [f64; 3] {
    [median(values.clone()), values.clone().fold(f64::INFINITY, f64::min), values.fold(0.0, f64::max)]
}

// --- what is measured

/// A copy of the host on which `apply` has done its work.
fn prepare(bramble: &str, folder: &Path) -> Result<PathBuf> {
    let host = folder.join("host");
    if host.exists() {
        fs::remove_dir_all(&host).with_context(|| format!("removing {}", host.display()))?;
    }
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(root().join("tests/hosts").join(HOST)).arg(&host);
    run(copy)?;
    let mut apply = Command::new(bramble);
    apply.args(["apply", "--yes", "--root"]).arg(&host);
    run(apply)?;
    Ok(host)
}

/// Docker's own check of the kernel, from Debian's package, which is unpacked and not installed.
fn check_config(folder: &Path) -> Result<Program> {
    const INSIDE: &str = "usr/share/docker.io/contrib/check-config.sh";
    let script = folder.join(INSIDE);
    if !script.exists() {
        let unpack = format!(
            "rm -f docker.io_*.deb && apt-get --quiet download docker.io && \
             dpkg-deb --fsys-tarfile docker.io_*.deb | tar -x ./{INSIDE}; rm -f docker.io_*.deb"
        );
        let mut shell = Command::new("sh");
        shell.args(["-c", &unpack]).current_dir(folder);
        run(shell).context("check-config.sh of Debian's docker.io cannot be had")?;
    }
    Ok(Program {
        name: "check-config",
        command: words(&["bash", &script.display().to_string()]),
        environment: Vec::new(),
        proof: "Generally Necessary",
        is_one_process: false,
    })
}

fn bpftool() -> Result<Program> {
    Ok(Program {
        name: "bpftool",
        command: words(&[&installed("bpftool")?, "feature", "probe"]),
        environment: Vec::new(),
        proof: "eBPF program_type",
        is_one_process: true,
    })
}

/// Ansible as it comes, on the host that `apply` prepared.
fn ansible(folder: &Path, host: &Path) -> Result<Program> {
    let program = installed("ansible-playbook")?;
    let play = folder.join("playbook.json");
    fs::write(&play, serde_json::to_string_pretty(&playbook(host)?)?)?;
    let (home, settings) = (folder.join("ansible"), folder.join("ansible.cfg"));
    fs::write(&settings, "")?;
    Ok(Program {
        name: "ansible",
        command: words(&[&program, "-i", "/dev/null", &play.display().to_string()]),
        // Neither the owner's settings count, nor does anything land in the home directory.
        environment: vec![
            ("ANSIBLE_CONFIG", settings),
            ("ANSIBLE_REMOTE_TEMP", home.join("tmp")),
            ("ANSIBLE_HOME", home),
        ],
        proof: "changed=0 ",
        is_one_process: false,
    })
}

/// One task for each step of `apply`, with modules that Ansible brings along. Facts are not gathered: no task asks for
/// one, and it would cost about as much as a task or two more.
fn playbook(host: &Path) -> Result<serde_json::Value> {
    let mut tasks = Vec::new();
    for made in MADE {
        let path = host.join(made);
        let content =
            fs::read_to_string(&path).with_context(|| format!("apply has not made {}", path.display()))?;
        tasks.push(json!({
            "name": made,
            "ansible.builtin.copy": { "dest": path, "content": content, "mode": "0644" },
        }));
    }
    tasks.push(json!({
        "name": COMMAND_LINE,
        "ansible.builtin.lineinfile": {
            "path": host.join(COMMAND_LINE),
            "regexp": format!(r"^(?!.*\b{WORD}(\s|$))(.*)$"),
            "line": format!(r"\2 {WORD}"),
            "backrefs": true,
        },
    }));
    Ok(json!([{ "hosts": "localhost", "connection": "local", "gather_facts": false, "tasks": tasks }]))
}

/// Where the program lies.
fn installed(program: &str) -> Result<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let place = std::env::split_paths(&path).map(|folder| folder.join(program)).find(|place| place.exists());
    let place = place.with_context(|| format!("{program} is not installed; type: cargo xtask setup"))?;
    Ok(place.display().to_string())
}

// --- measuring

/// Runs a program once. A shell is moved to the program's cgroup first and waits there for a line; so neither its own
/// start nor the fork is counted, and everything from `exec` on is, children included.
fn sample(groups: &Groups, program: &Program) -> Result<Sample> {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "echo; read go && exec \"$@\" 2>&1", "sh"])
        .args(&program.command)
        .envs(program.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = shell.spawn().context("starting sh")?;
    let (mut input, mut output) = child.stdin.take().zip(child.stdout.take()).context("both are piped")?;
    output.read_exact(&mut [0]).context("sh does not start")?;
    groups.take(program.name, child.id())?;
    let cpu_before = groups.cpu_ns(program.name)?;
    let began = Instant::now();
    input.write_all(b"\n")?;
    drop(input);
    let mut printed = Vec::new();
    output.read_to_end(&mut printed)?;
    let status = child.wait()?;
    let wall = began.elapsed();
    let cpu_ns = groups.cpu_ns(program.name)? - cpu_before;
    let printed = String::from_utf8_lossy(&printed);
    // Up to 3, bramble's exit code is the node's health; check-config.sh ends with 1 where an option is missing.
    ensure!(
        status.code().is_some_and(|code| code <= 3) && printed.contains(program.proof),
        "{} ended with {status}, and should have printed {:?}: {printed}",
        program.command.join(" "),
        program.proof,
    );
    Ok(Sample { wall_ms: wall.as_secs_f64() * 1000.0, cpu_ns: cpu_ns as f64 })
}

/// Watches the program's high-water mark until it ends, in as many runs. The figure that `wait4` gives is of no use: a
/// child begins with its parent's memory, and keeps that mark.
fn peak_memory(program: &Program) -> Result<u64> {
    let path = Path::new(&program.command[0]);
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut peak = 0;
    for _ in 0..ROUNDS {
        let mut command = Command::new(path);
        command.args(&program.command[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().with_context(|| format!("starting {name}"))?;
        let status = format!("/proc/{}/status", child.id());
        while child.try_wait()?.is_none() {
            // Gone, or ended and not waited for: then there is no such line.
            let text = fs::read_to_string(&status).unwrap_or_default();
            if text.lines().next().is_some_and(|line| line.strip_prefix("Name:\t") == Some(&name)) {
                let mark = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
                peak = peak.max(mark.map(kibibytes).transpose()?.unwrap_or_default());
            }
        }
    }
    Ok(peak)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_compares_within_a_round() {
        let rounds = |wall: [f64; 3]| wall.map(|wall_ms| Sample { wall_ms, cpu_ns: wall_ms * 2.0 }).to_vec();
        // The second round was disturbed, for all alike.
        let (ours, peers) = (rounds([1.0, 10.0, 1.0]), [rounds([4.0, 40.0, 5.0]), rounds([1.0, 10.0, 1.0])]);
        assert_eq!(ratio(&ours, &peers), Ratio { wall: 5.0, cpu: 5.0 });
    }

    #[test]
    fn a_peer_that_is_not_there_is_named_with_the_way_to_get_it() {
        let error = installed("bramble-bench-no-such-peer").unwrap_err().to_string();
        assert_eq!(error, "bramble-bench-no-such-peer is not installed; type: cargo xtask setup");
    }

    #[test]
    fn ansible_gets_a_task_for_each_step_and_their_very_content() {
        let host = std::env::temp_dir().join(format!("bramble-bench-test-{}", std::process::id()));
        assert!(playbook(&host).unwrap_err().to_string().contains(MADE[0]));
        for made in MADE {
            let path = host.join(made);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("of {made}\n")).unwrap();
        }
        let play = playbook(&host);
        fs::remove_dir_all(&host).unwrap();
        let play = play.unwrap();
        let tasks = play[0]["tasks"].as_array().unwrap();
        assert_eq!(tasks.len(), MADE.len() + 1);
        assert_eq!(tasks[1]["ansible.builtin.copy"]["content"], format!("of {}\n", MADE[1]));
    }
}
