//! `cargo xtask setup`: what this repository's other verbs need from the machine, and the way to get it.
//!
//! What is missing is named with its purpose, then installed through apt; without the right to do that, the one
//! command to type is printed. Nothing is ever removed, stopped or reconfigured.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::Serialize;
use testbed::machine::mirror;

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
    /// Programs for arm64.
    Cross,
    /// Whole machines, in containers and emulated.
    Machine,
    /// Debian packages and the repository of them.
    Package,
}

impl Purpose {
    /// Every one.
    pub(crate) const ALL: [Self; 9] = [
        Self::Ebpf,
        Self::Demo,
        Self::Browser,
        Self::Filter,
        Self::Bench,
        Self::Deny,
        Self::Cross,
        Self::Machine,
        Self::Package,
    ];
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
    /// A package of Debian 13 and later in this major version; on Debian 12 from its backports.
    Backport(u32),
    /// As [`Source::Debian`], but for arm64: dpkg is told that there is such a thing.
    Arm64,
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
    need(Purpose::Filter, "iptables", "keeps rules in the legacy back end", Source::Debian),
    need(
        Purpose::Bench,
        "prometheus-node-exporter",
        "the agent's cost is measured beside it",
        Source::DebianWithUnit("prometheus-node-exporter.service"),
    ),
    need(
        Purpose::Bench,
        "collectd-core",
        "the agent's cost is measured beside it",
        Source::DebianWithUnit("collectd.service"),
    ),
    need(Purpose::Bench, "python3-psutil", "a script that is measured beside the agent", Source::Debian),
    need(Purpose::Bench, "python3-paho-mqtt", "a script that is measured beside the agent", Source::Debian),
    need(Purpose::Bench, "bpftool", "`bramble check` is measured beside it", Source::Debian),
    need(Purpose::Bench, "ansible-core", "`bramble apply` is measured beside it", Source::Debian),
    need(Purpose::Cross, "rustc-web", "compiles for arm64", Source::Debian),
    need(Purpose::Cross, "cargo-web", "drives that compiler", Source::Debian),
    need(Purpose::Cross, "libstd-rust-web-dev", "Rust's standard library for arm64", Source::Arm64),
    need(Purpose::Cross, "gcc-aarch64-linux-gnu", "links for arm64", Source::Debian),
    need(Purpose::Cross, "libc6-dev-arm64-cross", "the C library to link with", Source::Debian),
    need(Purpose::Machine, "mmdebstrap", "makes Debian roots", Source::Debian),
    need(Purpose::Machine, "arch-test", "lets it make them for arm64", Source::Debian),
    need(Purpose::Machine, "rsync", "completes arm64 roots from native ones", Source::Debian),
    need(Purpose::Machine, "systemd-container", "boots roots as containers", Source::Debian),
    need(Purpose::Machine, "kmod", "orders the kernel's modules", Source::Debian),
    need(Purpose::Machine, "xz-utils", "unpacks them", Source::Debian),
    need(Purpose::Machine, "e2fsprogs", "makes the boards' disks", Source::Debian),
    need(Purpose::Machine, "fdisk", "divides the board's card", Source::Debian),
    need(Purpose::Machine, "dosfstools", "makes the card's boot partition", Source::Debian),
    need(Purpose::Machine, "mtools", "reads that partition as the firmware does", Source::Debian),
    need(
        Purpose::Machine,
        "device-tree-compiler",
        "fits the board's device tree to its model",
        Source::Debian,
    ),
    need(Purpose::Machine, "qemu-utils", "makes snapshots' disks", Source::Debian),
    need(Purpose::Machine, "qemu-system-arm", "emulates arm64 boards", Source::Backport(10)),
    need(Purpose::Package, "dpkg-dev", "builds packages", Source::Debian),
    need(Purpose::Package, "debhelper", "knows what packages do at installation", Source::Debian),
    need(Purpose::Package, "lintian", "judges packages by Debian's rules", Source::Debian),
    need(Purpose::Package, "systemd", "judges units", Source::Debian),
    need(Purpose::Package, "apt-utils", "lists packages for apt", Source::Debian),
    need(Purpose::Package, "gpg", "signs the list", Source::Debian),
    need(Purpose::Package, "gpg-agent", "holds the key meanwhile", Source::Debian),
    need(
        Purpose::Package,
        "prometheus",
        "judges alerting rules",
        Source::DebianWithUnit("prometheus.service"),
    ),
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
            Source::Debian | Source::DebianWithUnit(_) => !packages.contains_key(need.name),
            Source::Arm64 => !packages.contains_key(&format!("{}:arm64", need.name)),
            Source::Backport(major) => {
                packages.get(need.name).and_then(|version| major_version(version)) < Some(major)
            }
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

/// The packages that dpkg holds as installed, with their versions; both as `name` and as `name:architecture`.
fn installed_packages() -> Result<BTreeMap<String, String>> {
    const STATUS: &str = "/var/lib/dpkg/status";
    let status = fs::read_to_string(STATUS).with_context(|| {
        format!("cannot read {STATUS}; this needs Debian 12 or later, or a container of it (image debian:12)")
    })?;
    Ok(parse_status(&status))
}

fn parse_status(status: &str) -> BTreeMap<String, String> {
    let mut packages = BTreeMap::new();
    for paragraph in status.split("\n\n") {
        let field =
            |name: &str| paragraph.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        let (name, version) = (field("Package: "), field("Version: "));
        if !name.is_empty() && field("Status: ").ends_with(" ok installed") {
            packages.insert(format!("{name}:{}", field("Architecture: ")), version.to_owned());
            packages.insert(name.to_owned(), version.to_owned());
        }
    }
    packages
}

/// 10 of `1:10.0.2+ds-2`.
fn major_version(version: &str) -> Option<u32> {
    let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
    upstream.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn install_packages(needs: &[&Need]) -> Result<()> {
    let (backports, plain): (Vec<&Need>, Vec<&Need>) =
        needs.iter().partition(|need| matches!(need.from, Source::Backport(_)) && release() == "bookworm");
    let names = |needs: &[&Need]| -> Vec<String> {
        let name = |need: &&Need| match need.from {
            Source::Arm64 => format!("{}:arm64", need.name),
            _ => need.name.to_owned(),
        };
        needs.iter().map(name).collect()
    };
    let (backports, names) = (names(&backports), names(&plain));
    let learns_arm64 = plain.iter().any(|need| matches!(need.from, Source::Arm64));
    let install = ["install", "--yes", "--no-install-recommends"];
    let mut by_hand = Vec::new();
    if learns_arm64 {
        by_hand.push("dpkg --add-architecture arm64".to_owned());
    }
    if !backports.is_empty() {
        by_hand.push(format!(
            "echo \"deb {} bookworm-backports main\" >/etc/apt/sources.list.d/backports.list",
            mirror()?
        ));
    }
    by_hand.push("apt-get update".to_owned());
    if !names.is_empty() {
        by_hand.push(format!("apt-get {} {}", install.join(" "), names.join(" ")));
    }
    if !backports.is_empty() {
        by_hand.push(format!("apt-get {} -t bookworm-backports {}", install.join(" "), backports.join(" ")));
    }
    let by_hand = format!("sudo sh -c '{}'", by_hand.join(" && "));
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
    let as_root = |program: &str, arguments: &[String]| {
        Command::new(as_root[0])
            .args(&as_root[1..])
            .args(["DEBIAN_FRONTEND=noninteractive", program])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::from(std::io::stderr()))
            .status()
            .is_ok_and(|status| status.success())
    };
    let apt_get = |options: &[String], arguments: &[&str], names: &[String]| {
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        as_root("apt-get", &[&["--quiet".to_owned()], options, &arguments[..], names].concat())
    };
    let failed =
        || anyhow::anyhow!("apt-get could not install everything (its reason stands above); type: {by_hand}");
    if learns_arm64 && !as_root("dpkg", &["--add-architecture".to_owned(), "arm64".to_owned()]) {
        bail!("dpkg does not learn arm64 (its reason stands above); type: {by_hand}");
    }
    if !names.is_empty() {
        if !apt_get(&[], &["update"], &[]) {
            eprintln!("apt-get update failed; going on with the package lists that are there");
        }
        if !apt_get(&[], &install, &names) {
            return Err(failed());
        }
    }
    if !backports.is_empty() {
        let options = backports_alone()?;
        let from = [&install[..], &["-t", "bookworm-backports"]].concat();
        if !apt_get(&options, &["update"], &[]) || !apt_get(&options, &from, &backports) {
            return Err(failed());
        }
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

/// The name of this machine's Debian, such as `bookworm`.
fn release() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap_or_default().to_owned()
}

/// apt's options for bookworm and its backports, with lists of their own: the machine's sources stay as they are.
fn backports_alone() -> Result<Vec<String>> {
    let folder = root().join("target/tools/backports");
    fs::create_dir_all(folder.join("lists/partial"))?;
    let folder = folder.canonicalize()?;
    let mirror = mirror()?;
    let line = |suite: &str| {
        format!("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror} {suite} main\n")
    };
    let sources = folder.join("sources.list");
    fs::write(&sources, line("bookworm") + &line("bookworm-backports"))?;
    let options = [
        format!("Dir::Etc::sourcelist={}", sources.display()),
        "Dir::Etc::sourceparts=/dev/null".to_owned(),
        format!("Dir::State::lists={}", folder.join("lists").display()),
        // The checkout may lie where apt's own user cannot look.
        "APT::Sandbox::User=root".to_owned(),
    ];
    Ok(options.into_iter().flat_map(|option| ["-o".to_owned(), option]).collect())
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
                      Package: llvm-22\nStatus: hold ok installed\nArchitecture: arm64\nVersion: 1:22.1\n\n\
                      Package: chromium\nStatus: install ok half-configured\n";
        let packages = parse_status(status);
        let names: Vec<&str> = packages.keys().map(String::as_str).collect();
        assert_eq!(names, ["iproute2", "iproute2:", "llvm-22", "llvm-22:arm64"]);
        assert_eq!(packages["llvm-22"], "1:22.1");
    }

    #[test]
    fn versions_are_old_by_their_first_number() {
        assert_eq!(major_version("1:7.2+dfsg-7+deb12u18"), Some(7));
        assert_eq!(major_version("1:10.0.2+ds-2"), Some(10));
        assert_eq!(major_version("10"), Some(10));
        assert_eq!(major_version("git"), None);
    }

    #[test]
    fn every_purpose_needs_something() {
        for purpose in Purpose::ALL {
            assert!(NEEDS.iter().any(|need| need.purpose == purpose), "{purpose:?}");
        }
    }
}
