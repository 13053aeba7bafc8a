//! `cargo xtask cross`: bramble and bramble-aggregator for arm64 or amd64, built on this machine by Debian's compiler.
//!
//! Debian's rustc brings the standard library for arm64 as a package, so nothing is downloaded from elsewhere, and what
//! is linked on Debian 12 runs on Debian 12 and later: the newest symbol version of the C library is checked.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::build::{self, succeed};
use crate::root;
use crate::setup::{self, Purpose};

/// What is built.
pub(crate) const PROGRAMS: [&str; 2] = ["bramble", "bramble-aggregator"];
/// Debian 12's C library.
const NEWEST_GLIBC: (u32, u32) = (2, 36);

/// Builds the programs for arm64.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Optimise little and nothing across crates, as the tests on machines do: much sooner done, and all else is alike.
    #[arg(long)]
    thin: bool,
    /// Print one JSON object last.
    #[arg(long)]
    json: bool,
}

/// What a program runs on, by Debian's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    /// x86-64.
    Amd64,
    /// Raspberry Pi and other 64-bit Arm.
    Arm64,
}

impl Arch {
    /// This machine's.
    ///
    /// # Errors
    ///
    /// There are no packages for it.
    pub(crate) fn native() -> Result<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Ok(Self::Amd64),
            "aarch64" => Ok(Self::Arm64),
            other => bail!("this machine is {other}; name one with --arch: amd64, arm64"),
        }
    }

    /// Debian's name.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Rust's name.
    pub(crate) fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// What the names of GNU's tools begin with.
    fn gnu(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-linux-gnu",
            Self::Arm64 => "aarch64-linux-gnu",
        }
    }
}

/// How much work the compiler puts into the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lto {
    /// As the programs are shipped.
    Fat,
    /// As they are tested on machines.
    Off,
}

/// What was built.
#[derive(Debug, Serialize)]
pub(crate) struct Built {
    program: &'static str,
    path: PathBuf,
    bytes: u64,
    /// The newest version of the C library that it asks for.
    glibc: String,
}

/// Runs the verb.
///
/// # Errors
///
/// As [`build`], and compilers that are missing and cannot be installed.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure(&[Purpose::Cross])?;
    let began = Instant::now();
    let built = build(&Place::here()?, Arch::Arm64, if arguments.thin { Lto::Off } else { Lto::Fat })?;
    let seconds = began.elapsed().as_secs_f64();
    for one in &built {
        println!("{} {:.1} MB, needs glibc {}", one.path.display(), one.bytes as f64 / 1e6, one.glibc);
    }
    if arguments.json {
        println!("{}", serde_json::json!({ "seconds": seconds, "programs": built }));
    }
    Ok(ExitCode::SUCCESS)
}

/// Where something is built.
#[derive(Debug)]
pub(crate) struct Place {
    /// The sources.
    pub(crate) source: PathBuf,
    /// What the compiler writes.
    pub(crate) target: PathBuf,
}

impl Place {
    /// The checkout, and a folder of cargo's target folder that is kept between runs.
    ///
    /// # Errors
    ///
    /// As [`build::target`].
    pub(crate) fn here() -> Result<Self> {
        Ok(Self { source: root().to_owned(), target: build::target()?.join("cross") })
    }

    /// Where the programs are.
    pub(crate) fn folder(&self, arch: Arch) -> PathBuf {
        self.target.join(arch.target()).join("release")
    }
}

/// Builds the programs.
///
/// # Errors
///
/// The build fails, and its reason stands on standard error; or the programs ask for a newer C library than Debian 12's.
pub(crate) fn build(place: &Place, arch: Arch, lto: Lto) -> Result<Vec<Built>> {
    let mut cargo = Command::new("/usr/bin/cargo");
    // The cargo that runs this xtask is another one, and hands its own choices down.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let kept = ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_SOURCE_"];
        if (name.starts_with("CARGO") || name.starts_with("RUST"))
            && !kept.iter().any(|k| name.starts_with(k))
        {
            cargo.env_remove(name);
        }
    }
    cargo
        .args(["build", "--release", "--locked", "--target", arch.target(), "--bins"])
        .args(PROGRAMS.iter().flat_map(|program| ["--package", program]))
        .current_dir(&place.source)
        .env("PATH", "/usr/bin:/bin")
        .env("RUSTC", "/usr/bin/rustc")
        .env("CARGO_TARGET_DIR", &place.target)
        .env(
            format!("CARGO_TARGET_{}_LINKER", arch.target().replace('-', "_").to_uppercase()),
            format!("{}-gcc", arch.gnu()),
        )
        .stdin(Stdio::null())
        .stdout(Stdio::from(std::io::stderr()));
    match lto {
        Lto::Off => {
            cargo.envs([
                ("CARGO_PROFILE_RELEASE_LTO", "off"),
                ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
                ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
            ]);
        }
        // What is shipped is the same wherever it is built.
        Lto::Fat => {
            cargo.env("CARGO_ENCODED_RUSTFLAGS", without_paths(&place.source)?);
        }
    }
    succeed(cargo)?;
    let folder = place.folder(arch);
    PROGRAMS.iter().map(|program| judge(arch, program, &folder.join(program))).collect()
}

/// The compiler's options that keep this machine's paths out of what panics say, which may hold spaces: as cargo takes them apart.
fn without_paths(source: &Path) -> Result<String> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let home = home.context("neither CARGO_HOME nor HOME says where cargo keeps its crates")?;
    let (home, source) = (home.canonicalize()?, source.canonicalize()?);
    Ok(format!(
        "--remap-path-prefix={}=/cargo\u{1f}--remap-path-prefix={}=/bramble",
        home.display(),
        source.display()
    ))
}

fn judge(arch: Arch, program: &'static str, path: &Path) -> Result<Built> {
    let bytes = std::fs::metadata(path).with_context(|| format!("looking at {}", path.display()))?.len();
    let mut readelf = Command::new(format!("{}-readelf", arch.gnu()));
    let output = readelf.args(["--version-info", "--wide"]).arg(path).output().context("starting readelf")?;
    let newest = newest_glibc(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| format!("{} names no version of the C library", path.display()))?;
    let glibc = format!("{}.{}", newest.0, newest.1);
    if newest > NEWEST_GLIBC {
        bail!(
            "{program} needs glibc {glibc}, Debian 12 has {}.{}; build it on Debian 12",
            NEWEST_GLIBC.0,
            NEWEST_GLIBC.1
        );
    }
    Ok(Built { program, path: path.to_owned(), bytes, glibc })
}

/// The newest of the versions `GLIBC_2.17` that readelf lists.
fn newest_glibc(readelf: &str) -> Option<(u32, u32)> {
    let versions = readelf.split("GLIBC_").skip(1).filter_map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let mut parts = rest[..end].split('.').map_while(|part| part.parse().ok());
        Some((parts.next()?, parts.next()?))
    });
    versions.max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let text = "  0x0010:   Name: GLIBC_2.17  Flags: none  Version: 3\n 0x0020: Name: GLIBC_2.4 Flags\n\
                    004:   2 (GLIBC_2.34)    3 (GCC_3.0)  Name: GLIBC_2.3.4\n";
        assert_eq!(newest_glibc(text), Some((2, 34)));
        assert_eq!(newest_glibc("Name: GCC_3.0"), None);
    }
}
