//! Debian's packages for other releases and architectures, fetched with lists of their own: the host's stay as they are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::store::Store;
use crate::process::{bound, run};

const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The address of the mirror that this machine is configured for. It is asked every time and written nowhere.
///
/// # Errors
/// apt has no source of Debian's main archive.
pub fn mirror() -> Result<String> {
    let mut command = bound("apt-get");
    command.args(["indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)", "Created-By: Packages"]);
    choose_mirror(&run(command)?)
        .context("apt is configured for no Debian mirror; see /etc/apt/sources.list.d")
}

/// Security and backports may live elsewhere, so the plain release's address is wanted: its name has no dash.
fn choose_mirror(targets: &str) -> Option<String> {
    targets.lines().find_map(|line| {
        let (release, rest) = line.split_once(' ')?;
        let address = rest.strip_prefix("main ")?;
        (!release.contains(['-', '/'])).then(|| address.trim_end_matches('/').to_owned())
    })
}

/// One release's packages.
#[derive(Debug)]
pub(super) struct Archive {
    folder: PathBuf,
}

impl Archive {
    /// Brings the lists of `suite` for arm64 up to date.
    pub(super) fn open(store: &Store, suite: &str) -> Result<Self> {
        let folder = store.path(&format!("apt-{suite}"));
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let source =
            format!("deb [arch=arm64 signed-by={KEYS}] {} {suite} main non-free-firmware\n", mirror()?);
        fs::write(folder.join("sources.list"), source)?;
        let mut update = apt("apt-get", &folder);
        update.args(["-qq", "update"]);
        run(update)?;
        Ok(Self { folder })
    }

    /// The one package that `package` stands for: what it depends on first.
    pub(super) fn behind(&self, package: &str) -> Result<String> {
        let mut depends = apt("apt-cache", &self.folder);
        depends.args(["depends", "--important", package]);
        let text = run(depends)?;
        let first = text.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(first.with_context(|| format!("{package} depends on nothing:\n{text}"))?.to_owned())
    }

    /// Fetches packages and unpacks them into one folder; nothing of them is run.
    pub(super) fn unpack(&self, packages: &[&str], into: &Path) -> Result<()> {
        let fetched = self.folder.join("fetched");
        super::store::remove(&fetched)?;
        fs::create_dir_all(&fetched)?;
        let mut download = apt("apt-get", &self.folder);
        download.args(["-qq", "download"]).args(packages).current_dir(&fetched);
        run(download)?;
        let files: Vec<_> = fs::read_dir(&fetched)?.flatten().map(|entry| entry.path()).collect();
        ensure!(files.len() == packages.len(), "{} files for {packages:?}", files.len());
        for file in files {
            let mut extract = bound("dpkg-deb");
            extract.arg("--extract").arg(file).arg(into);
            run(extract)?;
        }
        super::store::remove(&fetched)
    }
}

/// apt with everything that it reads and writes inside `folder`.
fn apt(program: &str, folder: &Path) -> Command {
    let mut command = bound(program);
    for (option, value) in [
        ("Dir::Etc::sourcelist", folder.join("sources.list")),
        ("Dir::Etc::sourceparts", "/dev/null".into()),
        ("Dir::State::lists", folder.join("lists")),
        ("Dir::Cache", folder.join("cache")),
        // The folder may lie where apt's own user cannot look.
        ("APT::Sandbox::User", "root".into()),
        ("APT::Architecture", "arm64".into()),
        ("APT::Architectures", "arm64".into()),
        ("Acquire::Languages", "none".into()),
    ] {
        command.arg("-o").arg(format!("{option}={}", value.display()));
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_that_of_the_plain_release() {
        let targets = "bookworm-security main http://a.example/debian-security/\n\
                       bookworm contrib http://b.example/debian/\n\
                       bookworm main http://c.example/debian/\n";
        assert_eq!(choose_mirror(targets).as_deref(), Some("http://c.example/debian"));
        assert_eq!(choose_mirror(""), None);
    }
}
