//! `cargo xtask repo`: lays the packages of `cargo xtask deb` out as a signed apt repository, for any web server.
//!
//! One suite, because one build fits Debian 12 and later. Files are named by their sum as well (`by-hash`), and those of
//! earlier runs stay, so that an apt that reads during an update never sees half of it. The repository never expires: a
//! date that nobody renews makes it useless sooner than it makes it safe.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use crate::build::{self, succeed};
use crate::cross::Lto;
use crate::deb;
use crate::setup::{self, Purpose};

const SUITE: &str = "stable";
const COMPONENT: &str = "main";
const ARCHES: [&str; 2] = ["amd64", "arm64"];
const KEYRING: &str = "bramble-archive-keyring.pgp";

/// Lays out and signs an apt repository of the packages that were built.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The secret OpenPGP key to sign with, as `gpg --export-secret-keys` writes it; without a passphrase.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The packages; those in target/deb by default.
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Where to; target/repo by default.
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,
}

/// Runs the verb.
///
/// # Errors
///
/// There are no packages, the key cannot be used, or a tool is missing.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure(&[Purpose::Package])?;
    let repository = match &arguments.into {
        Some(into) => into.clone(),
        None => build::target()?.join("repo"),
    };
    let packages = match &arguments.from {
        Some(from) => from.clone(),
        None => deb::folder(Lto::Fat)?,
    };
    let pool = repository.join("pool").join(COMPONENT).join("b/bramble");
    fs::create_dir_all(&pool).with_context(|| format!("making {}", pool.display()))?;
    let mut count = 0;
    for entry in fs::read_dir(&packages).context("looking for packages; cargo xtask deb makes them")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            fs::copy(&path, pool.join(path.file_name().context("a file has a name")?))?;
            count += 1;
        }
    }
    ensure!(count > 0, "there are no packages in {}; cargo xtask deb makes them", packages.display());
    let suite = repository.join("dists").join(SUITE);
    for arch in ARCHES {
        list(&repository, &suite, arch)?;
    }
    let release = apt_ftparchive(&repository, &release_options(), &["release", &format!("dists/{SUITE}")])?;
    fs::write(suite.join("Release"), release)?;
    sign(&arguments.key, &suite, &repository)?;
    fs::write(
        repository.join("bramble.sources"),
        format!(
            "Types: deb\nURIs: https://REPLACE-BY-YOUR-SERVER/\nSuites: {SUITE}\nComponents: {COMPONENT}\n\
             Signed-By: /usr/share/keyrings/{KEYRING}\n"
        ),
    )?;
    println!("{}: {count} packages, suite {SUITE}", repository.display());
    Ok(ExitCode::SUCCESS)
}

/// Writes the lists of one architecture, plain and packed, also under the names of their sums.
fn list(repository: &Path, suite: &Path, arch: &str) -> Result<()> {
    let folder = suite.join(COMPONENT).join(format!("binary-{arch}"));
    let by_hash = folder.join("by-hash/SHA256");
    fs::create_dir_all(&by_hash)?;
    let packages = apt_ftparchive(repository, &[], &["--arch", arch, "packages", "pool"])?;
    let plain = folder.join("Packages");
    fs::write(&plain, packages)?;
    let mut pack = Command::new("xz");
    pack.args(["--keep", "--force"]).arg(&plain);
    succeed(pack)?;
    for file in [plain.clone(), plain.with_extension("xz")] {
        fs::copy(&file, by_hash.join(deb::sha256(&file)?))?;
    }
    Ok(())
}

fn release_options() -> Vec<String> {
    let fields = [
        ("Origin", "bramble"),
        ("Label", "bramble"),
        ("Suite", SUITE),
        ("Codename", SUITE),
        ("Components", COMPONENT),
        ("Architectures", &ARCHES.join(" ")),
        ("Acquire-By-Hash", "yes"),
    ];
    let option = |(name, value)| ["-o".to_owned(), format!("APT::FTPArchive::Release::{name}={value}")];
    fields.into_iter().flat_map(option).collect()
}

fn apt_ftparchive(repository: &Path, options: &[String], arguments: &[&str]) -> Result<Vec<u8>> {
    let mut command = Command::new("apt-ftparchive");
    // Sums that nobody should trust any more are left out.
    command.args(["-o", "APT::FTPArchive::MD5=false", "-o", "APT::FTPArchive::SHA1=false"]);
    let output = command.args(options).args(arguments).current_dir(repository).output();
    let output = output.context("starting apt-ftparchive")?;
    ensure!(output.status.success(), "apt-ftparchive: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(output.stdout)
}

/// Signs the suite, and leaves the public key beside it. The key is used in a folder that is gone afterwards: nobody's
/// keyring is touched.
fn sign(key: &Path, suite: &Path, repository: &Path) -> Result<()> {
    let home = build::target()?.join(format!("gpg-{}", std::process::id()));
    fs::create_dir_all(&home)?;
    fs::set_permissions(&home, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    let signed = sign_in(&home, key, suite, repository);
    let mut stop = Command::new("gpgconf");
    stop.arg("--homedir").arg(&home).args(["--kill", "all"]).stderr(Stdio::null());
    // Without its folder the agent ends by itself, a little later.
    let _ = stop.status();
    fs::remove_dir_all(&home)
        .with_context(|| format!("the key was left in {}; remove it", home.display()))?;
    signed
}

fn sign_in(home: &Path, key: &Path, suite: &Path, repository: &Path) -> Result<()> {
    let gpg = |arguments: &[&str], paths: &[&Path]| -> Result<()> {
        let mut gpg = Command::new("gpg");
        gpg.arg("--homedir").arg(home).args(["--batch", "--yes", "--quiet"]).args(arguments).args(paths);
        let output = gpg.stdin(Stdio::null()).output().context("starting gpg")?;
        if !output.status.success() {
            bail!("gpg {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    };
    gpg(&["--import"], &[key]).context("taking the key; is it a secret key without a passphrase?")?;
    let release = suite.join("Release");
    gpg(&["--clearsign", "--output"], &[&suite.join("InRelease"), &release])?;
    gpg(&["--armor", "--detach-sign", "--output"], &[&suite.join("Release.gpg"), &release])?;
    gpg(&["--export", "--output"], &[&repository.join(KEYRING)])
}
