//! `cargo xtask setup`: what this repository's other verbs need from the machine, and the way to get it.
//!
//! What is missing is named with its purpose, then installed through apt; without the right to do that, the one
//! command to type is printed. Nothing is ever removed, stopped or reconfigured.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::Serialize;

use crate::root;

/// Installs what is missing for eBPF objects, demo, tests and benchmarks.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Print one JSON object last.
    #[arg(long)]
    json: bool,
}

/// What a need is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Purpose {
    /// Building the eBPF objects.
    Ebpf,
    /// Network namespaces with a real broker: the demo and the tests in namespaces.
    Demo,
    /// The test of the page in a browser.
    Browser,
    /// Tests that filter packets.
    Filter,
    /// The benchmark's yardstick.
    Bench,
    /// Checks of the dependencies.
    Deny,
}

impl Purpose {
    /// Every one.
    pub(crate) const ALL: [Self; 6] =
        [Self::Ebpf, Self::Demo, Self::Browser, Self::Filter, Self::Bench, Self::Deny];
}

/// One thing that has to be on the machine.
struct Need {
    purpose: Purpose,
    name: &'static str,
    what_for: &'static str,
    from: Source,
}

enum Source {
    /// A package of Debian 12 and later.
    Debian,
    /// As [`Source::Debian`]; where systemd runs, the package starts this unit.
    DebianWithUnit(&'static str),
    /// A program from crates.io in this version, built into `target/tools`.
    Crate(&'static str),
}

const fn need(purpose: Purpose, name: &'static str, what_for: &'static str, from: Source) -> Need {
    Need { purpose, name, what_for, from }
}

const NEEDS: &[Need] = &[
    need(Purpose::Ebpf, "rustc-web", "compiles the eBPF programs", Source::Debian),
    need(Purpose::Ebpf, "cargo-web", "drives that compiler", Source::Debian),
    need(Purpose::Ebpf, "libstd-rust-web-dev-bpf", "Rust's core library for eBPF", Source::Debian),
    need(Purpose::Ebpf, "llvm-22", "turns bitcode into eBPF objects", Source::Debian),
    need(Purpose::Demo, "iproute2", "makes the nodes' namespaces and links", Source::Debian),
    need(Purpose::Demo, "util-linux", "enters the nodes' namespaces", Source::Debian),
    need(Purpose::Demo, "mosquitto-clients", "listens and speaks as any client does", Source::Debian),
    need(Purpose::Demo, "mosquitto", "the MQTT broker", Source::DebianWithUnit("mosquitto.service")),
    need(Purpose::Browser, "chromium", "shows the page", Source::Debian),
    need(Purpose::Browser, "chromium-driver", "looks at the page", Source::Debian),
    need(Purpose::Filter, "nftables", "drops packets on purpose", Source::Debian),
    need(
        Purpose::Bench,
        "prometheus-node-exporter",
        "the agent's cost is measured beside it",
        Source::DebianWithUnit("prometheus-node-exporter.service"),
    ),
    need(Purpose::Bench, "bpftool", "`bramble check` is measured beside it", Source::Debian),
    need(Purpose::Deny, "cargo-deny", "judges licences and advisories", Source::Crate("0.20.2")),
];

/// What [`ensure`] found and did; names as in apt or on crates.io.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    /// Was there already.
    pub(crate) present: Vec<&'static str>,
    /// Was missing and is there now.
    pub(crate) installed: Vec<&'static str>,
}

/// Runs the verb.
///
/// # Errors
///
/// As [`ensure`].
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let report = ensure(&Purpose::ALL)?;
    println!(
        "{} of {} were there, installed: {}",
        report.present.len(),
        NEEDS.len(),
        match report.installed[..] {
            [] => "nothing".to_owned(),
            ref names => names.join(", "),
        }
    );
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes sure that everything for these purposes is there. Takes a few milliseconds when it is.
/// Progress goes to standard error.
///
/// # Errors
///
/// When something is missing and cannot be installed: says what to type.
pub(crate) fn ensure(for_what: &[Purpose]) -> Result<Report> {
    let packages = installed_packages()?;
    let (missing, present): (Vec<&Need>, Vec<&Need>) =
        NEEDS.iter().filter(|need| for_what.contains(&need.purpose)).partition(|need| match need.from {
            Source::Debian | Source::DebianWithUnit(_) => !packages.contains(need.name),
            Source::Crate(version) => !is_installed_crate(need.name, version),
        });
    for need in &missing {
        eprintln!("missing: {} ({})", need.name, need.what_for);
    }
    let (crates, debian): (Vec<&Need>, Vec<&Need>) =
        missing.iter().partition(|need| matches!(need.from, Source::Crate(_)));
    if !debian.is_empty() {
        install_packages(&debian)?;
    }
    for need in crates {
        if let Source::Crate(version) = need.from {
            install_crate(need.name, version)?;
        }
    }
    let names = |needs: &[&Need]| needs.iter().map(|need| need.name).collect();
    Ok(Report { present: names(&present), installed: names(&missing) })
}

/// Names of the packages that dpkg holds as installed.
fn installed_packages() -> Result<BTreeSet<String>> {
    const STATUS: &str = "/var/lib/dpkg/status";
    let status = fs::read_to_string(STATUS).with_context(|| {
        format!("cannot read {STATUS}; this needs Debian 12 or later, or a container of it (image debian:12)")
    })?;
    Ok(parse_status(&status))
}

fn parse_status(status: &str) -> BTreeSet<String> {
    let is_installed = |paragraph: &&str| {
        paragraph.lines().any(|line| line.starts_with("Status: ") && line.ends_with(" ok installed"))
    };
    status
        .split("\n\n")
        .filter(is_installed)
        .filter_map(|paragraph| paragraph.lines().find_map(|line| line.strip_prefix("Package: ")))
        .map(str::to_owned)
        .collect()
}

fn install_packages(needs: &[&Need]) -> Result<()> {
    let names: Vec<&str> = needs.iter().map(|need| need.name).collect();
    let by_hand = format!(
        "sudo sh -c 'apt-get update && apt-get install --yes --no-install-recommends {}'",
        names.join(" ")
    );
    let is_root = fs::metadata("/proc/self").context("cannot read /proc/self")?.uid() == 0;
    let as_root: &[&str] = if is_root {
        &["env"]
    } else if Command::new("sudo")
        .args(["-n", "true"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
    {
        &["sudo", "-n", "env"]
    } else {
        bail!("installing packages needs root; type: {by_hand}");
    };
    let apt_get = |arguments: &[&str]| {
        Command::new(as_root[0])
            .args(&as_root[1..])
            .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::from(std::io::stderr()))
            .status()
            .is_ok_and(|status| status.success())
    };
    if !apt_get(&["update"]) {
        eprintln!("apt-get update failed; going on with the package lists that are there");
    }
    if !apt_get(&[&["install", "--yes", "--no-install-recommends"], &names[..]].concat()) {
        bail!("apt-get could not install everything (its reason stands above); type: {by_hand}");
    }
    if Path::new("/run/systemd/system").exists() {
        for need in needs {
            if let Source::DebianWithUnit(unit) = need.from {
                eprintln!(
                    "Debian starts {unit} on installation and at boot; not needed here, so if you do not want it: \
                     sudo systemctl disable --now {unit}"
                );
            }
        }
    }
    Ok(())
}

/// Where programs from crates.io are installed: `target/tools`, with the executables in `bin`.
pub(crate) fn tools() -> PathBuf {
    root().join("target/tools")
}

fn is_installed_crate(name: &str, version: &str) -> bool {
    // Written by `cargo install`: "name version (source)" = ["program"].
    fs::read_to_string(tools().join(".crates.toml"))
        .is_ok_and(|list| list.contains(&format!("\"{name} {version} (")))
        && tools().join("bin").join(name).exists()
}

fn install_crate(name: &str, version: &str) -> Result<()> {
    // The development profile: it runs for seconds, and an optimised build would take minutes more.
    let done = Command::new(env!("CARGO"))
        .args(["install", name, "--version", version, "--locked", "--profile", "dev", "--root"])
        .arg(tools())
        .env("CARGO_TARGET_DIR", root().join("target/tools-build"))
        .current_dir(root())
        .stdout(Stdio::from(std::io::stderr()))
        .status()
        .context("cannot start cargo")?
        .success();
    if !done {
        bail!(
            "cargo could not install {name} {version} (its reason stands above); try again: cargo xtask setup"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_packages_that_are_installed_count() {
        let status = "Package: mosquitto\nStatus: deinstall ok config-files\nVersion: 2\n\n\
                      Package: iproute2\nStatus: install ok installed\nDescription: tools\n Package: not-me\n\n\
                      Package: llvm-22\nStatus: hold ok installed\n\n\
                      Package: chromium\nStatus: install ok half-configured\n";
        assert_eq!(parse_status(status), BTreeSet::from(["iproute2".to_owned(), "llvm-22".to_owned()]));
    }

    #[test]
    fn every_purpose_needs_something() {
        for purpose in Purpose::ALL {
            assert!(NEEDS.iter().any(|need| need.purpose == purpose), "{purpose:?}");
        }
    }
}
