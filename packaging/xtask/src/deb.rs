//! `cargo xtask deb`: the Debian packages of both programs, by Debian's own tools, the same to the byte each time.
//!
//! The programs are made by [`crate::cross`]'s recipe for either architecture. debhelper works on a copy of what it needs,
//! so that the checkout stays clean, and lintian has the last word.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::build::{self, Profile, succeed};
use crate::cross::{self, Arch, Lto, PROGRAMS, Place};
use crate::setup::{self, Purpose};
use crate::{licence, root};

/// Builds the Debian packages.
#[derive(Args)]
pub(crate) struct Arguments {
    /// For which architectures; this machine's if none is given.
    #[arg(long, value_enum)]
    arch: Vec<Arch>,
    /// Optimise little and nothing across crates, as the tests on machines do: much sooner done, and all else is alike.
    #[arg(long)]
    thin: bool,
    /// Build each a second time, from a copy of the sources in another folder, and demand the same bytes.
    #[arg(long, conflicts_with = "thin")]
    check: bool,
    /// Print one JSON object last.
    #[arg(long)]
    json: bool,
}

/// One package.
#[derive(Debug, Serialize)]
pub(crate) struct Package {
    name: String,
    arch: String,
    path: PathBuf,
    bytes: u64,
    installed_kib: u64,
    sha256: String,
}

/// Runs the verb.
///
/// # Errors
///
/// A tool is missing and cannot be installed, a step fails, or lintian finds an error or a warning.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure(&[Purpose::Cross, Purpose::Package])?;
    let lto = if arguments.thin { Lto::Off } else { Lto::Fat };
    let own = [Arch::native()?];
    let arches = if arguments.arch.is_empty() { &own[..] } else { &arguments.arch };
    let mut packages = Vec::new();
    for arch in arches {
        let here = build(&Place::here()?, *arch, lto)?;
        if arguments.check {
            is_same_elsewhere(&here, *arch)?;
        }
        packages.extend(here);
    }
    for package in &packages {
        println!(
            "{} {:.2} MB, installed {:.1} MB, sha256 {}",
            package.path.display(),
            package.bytes as f64 / 1e6,
            package.installed_kib as f64 / 1024.0,
            package.sha256
        );
    }
    if arguments.json {
        println!("{}", serde_json::json!({ "packages": packages }));
    }
    Ok(ExitCode::SUCCESS)
}

/// Where the packages are: those that are only tested apart from those that are shipped.
///
/// # Errors
///
/// As [`build::target`].
pub(crate) fn folder(lto: Lto) -> Result<PathBuf> {
    Ok(build::target()?.join(match lto {
        Lto::Fat => "deb",
        Lto::Off => "deb-thin",
    }))
}

/// The packages for an architecture that were built last.
///
/// # Errors
///
/// There are none.
pub(crate) fn built(arch: Arch, lto: Lto) -> Result<Vec<PathBuf>> {
    let folder = folder(lto)?;
    let path =
        |program| folder.join(format!("{program}_{}_{}.deb", env!("CARGO_PKG_VERSION"), arch.debian()));
    let paths: Vec<PathBuf> = PROGRAMS.into_iter().map(path).collect();
    ensure!(paths.iter().all(|path| path.exists()), "there are no packages in {}", folder.display());
    Ok(paths)
}

/// Builds the packages from a copy of the sources in a folder with another name, with nothing left of an earlier build.
fn is_same_elsewhere(here: &[Package], arch: Arch) -> Result<()> {
    let elsewhere = build::target()?.join(format!("deb-check-{}", std::process::id()));
    let place = Place { source: elsewhere.join("a/copy of it"), target: elsewhere.join("b") };
    fs::create_dir_all(&place.source)?;
    let compared =
        copy_sources(&place.source).and_then(|()| build_into(&elsewhere.join("c"), &place, arch, Lto::Fat));
    fs::remove_dir_all(&elsewhere).with_context(|| format!("removing {}", elsewhere.display()))?;
    for (one, other) in here.iter().zip(compared?) {
        ensure!(
            one.sha256 == other.sha256,
            "{} depends on where it is built: {} and {}",
            one.name,
            one.sha256,
            other.sha256
        );
        println!("{} {} is the same when it is built elsewhere", one.name, one.arch);
    }
    Ok(())
}

/// Copies what git knows, and what it would take.
fn copy_sources(to: &Path) -> Result<()> {
    let mut list = Command::new("git");
    list.args(["-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let list = list.current_dir(root()).output().context("starting git")?;
    ensure!(list.status.success(), "git: {}", String::from_utf8_lossy(&list.stderr).trim());
    for name in String::from_utf8(list.stdout)?.split_terminator('\0') {
        let (from, to) = (root().join(name), to.join(name));
        fs::create_dir_all(to.parent().context("a file has a folder")?)?;
        // A file that was removed and is still in git's list is not among the sources.
        if from.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&from)?, &to)?;
        } else if from.exists() {
            fs::copy(&from, &to).with_context(|| format!("copying {name}"))?;
        }
    }
    Ok(())
}

/// Builds both packages for an architecture, where the tests and [`crate::repo`] look for them.
///
/// # Errors
///
/// A step fails, or lintian finds an error or a warning.
pub(crate) fn build(place: &Place, arch: Arch, lto: Lto) -> Result<Vec<Package>> {
    build_into(&folder(lto)?, place, arch, lto)
}

fn build_into(folder: &Path, place: &Place, arch: Arch, lto: Lto) -> Result<Vec<Package>> {
    cross::build(place, arch, lto)?;
    let stage = folder.join(format!("stage-{}", arch.debian()));
    if stage.exists() {
        fs::remove_dir_all(&stage).with_context(|| format!("emptying {}", stage.display()))?;
    }
    let (source, built) = (stage.join("bramble"), stage.join("built"));
    fs::create_dir_all(&source)?;
    documents(&built)?;
    for program in PROGRAMS {
        fs::copy(place.folder(arch).join(program), built.join(program))?;
        fs::write(built.join(format!("{program}.licences")), licence::of(program, arch.target())?)?;
    }
    for part in ["packaging", "systemd", "docs", "debian"] {
        let mut copy = Command::new("cp");
        copy.args(["--archive", "--no-target-directory"]).arg(place.source.join(part)).arg(source.join(part));
        succeed(copy)?;
    }
    let version = version_of(&source)?;
    ensure!(
        version == env!("CARGO_PKG_VERSION"),
        "packaging/debian/changelog is at {version}, Cargo.toml at {}; make them the same",
        env!("CARGO_PKG_VERSION")
    );
    let mut package = Command::new("dpkg-buildpackage");
    // Build dependencies were looked at by `setup`; dpkg would ask for a C compiler for the other architecture.
    package.args(["--build=binary", "--no-sign", "--no-check-builddeps", "--host-arch", arch.debian()]);
    package.current_dir(&source).env("BRAMBLE_BUILT", &built).stdin(Stdio::null());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("DEB_")) {
        package.env_remove(name);
    }
    package.stdout(Stdio::from(std::io::stderr()));
    succeed(package)?;
    let mut packages = Vec::new();
    for program in PROGRAMS {
        let name = format!("{program}_{version}_{}.deb", arch.debian());
        let path = folder.join(&name);
        fs::rename(stage.join(&name), &path).with_context(|| format!("looking for {name}"))?;
        packages.push(Package {
            name: program.to_owned(),
            arch: arch.debian().to_owned(),
            bytes: fs::metadata(&path)?.len(),
            installed_kib: field(&path, "Installed-Size")?.parse().context("a size in KiB")?,
            sha256: sha256(&path)?,
            path,
        });
    }
    let mut lintian = Command::new("lintian");
    lintian.args(["--pedantic", "--fail-on", "error,warning"]);
    if nix::unistd::geteuid().is_root() {
        lintian.arg("--allow-root");
    }
    lintian.args(packages.iter().map(|package| &package.path)).stdout(Stdio::from(std::io::stderr()));
    succeed(lintian).context("lintian is not content")?;
    Ok(packages)
}

/// Writes manual pages and completions, which the programs know themselves; those for this machine are asked.
fn documents(built: &Path) -> Result<()> {
    build::programs(Profile::Dev)?;
    let own = build::target()?.join("debug");
    for program in PROGRAMS {
        let pages = built.join("man").join(program);
        fs::create_dir_all(&pages)?;
        let flat = program != "bramble";
        let mut man = Command::new(own.join(program));
        man.arg(if flat { "--man" } else { "man" }).arg(&pages);
        succeed(man)?;
        for shell in ["bash", "zsh", "fish"] {
            let mut ask = Command::new(own.join(program));
            let output = ask.args([if flat { "--completions" } else { "completions" }, shell]).output()?;
            ensure!(output.status.success(), "{ask:?} ended with {}", output.status);
            fs::write(built.join(format!("{program}.{shell}")), output.stdout)?;
        }
    }
    Ok(())
}

fn version_of(source: &Path) -> Result<String> {
    let mut parse = Command::new("dpkg-parsechangelog");
    said(parse.args(["--show-field", "Version"]).current_dir(source))
}

/// A field of a package.
///
/// # Errors
///
/// It is no package, or has no such field.
pub(crate) fn field(package: &Path, field: &str) -> Result<String> {
    said(Command::new("dpkg-deb").arg("--field").arg(package).arg(field))
}

fn said(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// The sum of a file, in hexadecimal digits.
///
/// # Errors
///
/// It cannot be read.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    let content = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect())
}
