//! The Debian packages: how hard their units are, that a root without systemd takes them and gives them back, and that apt
//! takes them from a signed repository only. What they do on booted machines stands in `installed`.
//!
//! The packages are those that `cargo xtask deb --thin` made last.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use testbed::machine::{Blueprint, Gift, store::Store};

use crate::{installed::property, root};

/// Each unit's highest score of `systemd-analyze security`, in tenths.
pub(crate) const HARDNESS: [(&str, u32); 8] = [
    ("bramble-kubernetes.service", 15),
    ("bramble-obey@.service", 19),
    ("bramble-aggregator.service", 15),
    ("bramble.service", 18),
    ("bramble-probe.service", 26),
    ("bramble-join.service", 45),
    ("bramble-prepare.service", 50),
    ("bramble-failed@.service", 15),
];

/// cargo's target folder.
pub(crate) fn target() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    Ok(test.ancestors().nth(3).context("the test lies in cargo's target folder")?.to_owned())
}

fn store() -> Result<Store> {
    Store::within(&target()?, |line| eprintln!("{line}"))
}

fn folder() -> Result<PathBuf> {
    Ok(target()?.join("deb-thin"))
}

/// The newest packages for an architecture, by Debian's name for it.
pub(crate) fn packages_for(arch: &str) -> Result<[PathBuf; 2]> {
    let version = env!("CARGO_PKG_VERSION");
    let folder = folder()?;
    let package = |name: &str| folder.join(format!("{name}_{version}_{arch}.deb"));
    let packages = [package("bramble"), package("bramble-aggregator")];
    ensure!(packages.iter().all(|path| path.exists()), "no packages; cargo xtask deb --thin --arch {arch}");
    Ok(packages)
}

/// Those for this machine.
pub(crate) fn packages() -> Result<[PathBuf; 2]> {
    packages_for(if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" })
}

/// Why nobody can look into the packages.
pub(crate) fn none() -> Option<String> {
    packages().err().map(|why| format!("{why:#}"))
}

/// Why the tests with packages cannot run here and now.
pub(crate) fn missing() -> Option<String> {
    let built =
        |name| Blueprint::named(name).is_ok_and(|machine| store().is_ok_and(|s| machine.is_built(&s)));
    if let Some(why) = none() {
        return Some(why);
    }
    let missing = ["debian12", "debian13"].into_iter().find(|name| !built(name))?;
    Some(format!("{missing} is not built; cargo xtask machine build {missing}"))
}

/// Why units cannot be judged here.
pub(crate) fn no_judge() -> Option<String> {
    let judge = Command::new("systemd-analyze").arg("--version").output();
    judge.is_err().then(|| "needs systemd-analyze".to_owned())
}

pub(crate) fn said(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}: {text}", output.status);
    Ok(text)
}

/// The score in a table of `systemd-analyze security`, in tenths.
pub(crate) fn score(text: &str) -> Option<u32> {
    let (_, rest) = text.split_once("Overall exposure level for ")?;
    let (_, rest) = rest.split_once(": ")?;
    let (whole, tenths) = rest.split_whitespace().next()?.split_once('.')?;
    Some(whole.parse::<u32>().ok()? * 10 + tenths.parse::<u32>().ok()?)
}

pub(crate) fn units_are_understood_and_as_hard_as_they_are_meant_to_be() -> Result<()> {
    let folder = target()?.join("deb-units");
    fs::create_dir_all(&folder)?;
    let mut units = Vec::new();
    for entry in fs::read_dir(root().join("systemd/system"))? {
        let (name, text) = {
            let path = entry?.path();
            (path.file_name().context("a name")?.to_owned(), fs::read_to_string(&path)?)
        };
        // The program is not installed here, and its pages neither.
        let text = text.replace("ExecStart=/usr/bin/bramble-aggregator", "ExecStart=/bin/true");
        units.push(folder.join(name));
        fs::write(units.last().context("pushed")?, text.replace("/usr/bin/bramble ", "/bin/true "))?;
    }
    ensure!(units.len() == HARDNESS.len(), "{units:?} are not those whose hardness is told here");
    let complaints = said(Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&units))?;
    ensure!(complaints.is_empty(), "{complaints}");
    for (unit, highest) in HARDNESS {
        let mut judge = Command::new("systemd-analyze");
        let text = said(judge.args(["security", "--no-pager", "--offline=true"]).arg(folder.join(unit)))?;
        let score = score(&text).with_context(|| text.clone())?;
        ensure!(score <= highest, "{unit} has {score}, at most {highest} is wanted:\n{text}");
    }
    fs::remove_dir_all(&folder)?;
    Ok(())
}

/// Everything that an installation may change, with the sums of what it may write, and what Debian remembers of units that were
/// enabled. systemd itself writes `.updated` at boots.
pub(crate) const TREE: &str = "find / -xdev \\( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /root -o -path /srv \
                    -o -path /var/log -o -path /var/cache -o -path /var/lib/dpkg \
                    -o -path '/var/lib/systemd/*' ! -path '/var/lib/systemd/deb-systemd-helper-*' \
                    -o -path /var/tmp -o -name .updated \\) -prune -o -type d -printf '%M %U:%G %p\\n' \
                    -o -printf '%M %U:%G %s %p %l\\n' | sort; \
                    find /etc /usr /var/lib/systemd/deb-systemd-helper-* -type f ! -name .updated -exec sha256sum {} + | sort -k 2";
/// The accounts: a user stays when a package goes, so that its number is nobody else's later.
const ACCOUNTS: [&str; 8] = [
    "/etc/passwd",
    "/etc/group",
    "/etc/shadow",
    "/etc/gshadow",
    "/etc/passwd-",
    "/etc/group-",
    "/etc/shadow-",
    "/etc/gshadow-",
];

/// What `diff` of two lists says is not alike, without the accounts.
pub(crate) fn changes(diff: &str) -> Vec<String> {
    let is_account = |line: &str| line.split_whitespace().any(|word| ACCOUNTS.contains(&word));
    let is_told = |line: &&str| line.starts_with(['<', '>']) && !is_account(line);
    diff.lines().filter(is_told).map(str::to_owned).collect()
}

/// A root of Debian without any systemd running, without bpffs and without boot partition: a chroot.
pub(crate) fn a_root_without_systemd_takes_the_packages_and_forgets_them() -> Result<()> {
    let packages = packages()?;
    for suite in ["bookworm", "trixie"] {
        let lower = target()?.join("machine").join(format!("root-{suite}"));
        let [agent, aggregator] = packages.each_ref().map(|path| path.display().to_string());
        // dpkg speaks of the user that it makes; debconf would ask.
        let script = format!(
            "set -eu; mount -t tmpfs bed /mnt; mkdir /mnt/upper /mnt/work /mnt/root; \
             mount -t overlay -o lowerdir={},upperdir=/mnt/upper,workdir=/mnt/work bed /mnt/root; \
             cp {agent} {aggregator} /mnt/root/tmp; mount -t proc proc /mnt/root/proc; cd /mnt/root; \
             export DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin; \
             chroot . sh -c '{{ {}; }} >/tmp/before; test $(wc -l </tmp/before) -gt 1000; test ! -e /run/systemd/system; test ! -e /sys/fs/bpf; \
             dpkg --install /tmp/*.deb >/dev/null; id bramble >/dev/null; test -d /etc/bramble/conf.d; \
             bramble check --list >/dev/null; bramble-aggregator --version >/dev/null; \
             dpkg --purge bramble bramble-aggregator >/dev/null; {{ {}; }} | diff /tmp/before - || test $? = 1'",
            lower.display(),
            TREE.replace('\'', "'\\''"),
            TREE.replace('\'', "'\\''"),
        );
        let mut unshare = Command::new("unshare");
        let output =
            unshare.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", &script]).output()?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{suite}: {err}");
        let left = changes(&out);
        ensure!(left.is_empty(), "{suite} is not as before: {left:#?}");
    }
    Ok(())
}

/// What each package has beside its units: where, and of what it is a copy; without one it is made when the package is.
const CONTENTS: [(&str, &[(&str, &str)]); 2] = [
    (
        "bramble",
        &[
            ("usr/bin/bramble", ""),
            ("etc/bramble/bramble.toml", "packaging/bramble.toml"),
            ("etc/needrestart/conf.d/bramble.conf", "packaging/needrestart/bramble.conf"),
            ("usr/lib/systemd/catalog/bramble.catalog", "packaging/catalog/bramble.catalog"),
            ("usr/lib/sysusers.d/bramble.conf", "systemd/sysusers.d/bramble.conf"),
            ("usr/lib/tmpfiles.d/bramble.conf", "systemd/tmpfiles.d/bramble.conf"),
            ("usr/share/polkit-1/rules.d/50-bramble.rules", "packaging/polkit/50-bramble.rules"),
            ("usr/share/bramble/schema", "packaging/schema"),
            ("usr/share/bramble/home-assistant", "packaging/home-assistant"),
        ],
    ),
    (
        "bramble-aggregator",
        &[
            ("usr/bin/bramble-aggregator", ""),
            ("etc/bramble/aggregator.toml", "packaging/aggregator.toml"),
            ("usr/share/bramble/mosquitto/bramble.acl", "packaging/mosquitto/bramble.acl"),
            ("usr/share/bramble/grafana/bramble.json", "packaging/grafana/bramble.json"),
            ("usr/share/bramble/prometheus/bramble.rules.yml", "packaging/prometheus/bramble.rules.yml"),
        ],
    ),
];
/// What its owner may edit and an upgrade asks about.
const CONFFILES: [&str; 2] =
    ["/etc/bramble/bramble.toml\n/etc/needrestart/conf.d/bramble.conf", "/etc/bramble/aggregator.toml"];

pub(crate) fn the_packages_hold_all_that_is_promised_of_them() -> Result<()> {
    let folder = target()?.join("tmp").join(format!("contents-{}", std::process::id()));
    let outcome = packages().and_then(|packages| contents(&packages, &folder));
    fs::remove_dir_all(&folder)?;
    outcome
}

fn contents(packages: &[PathBuf; 2], folder: &Path) -> Result<()> {
    let mut units = BTreeSet::new();
    for ((package, (name, holds)), conffiles) in packages.iter().zip(CONTENTS).zip(CONFFILES) {
        let tree = folder.join(name);
        fs::create_dir_all(&tree)?;
        said(Command::new("dpkg-deb").arg("--extract").arg(package).arg(&tree))?;
        for (path, source) in holds.iter().filter(|(_, source)| !source.is_empty()) {
            let mut compare = Command::new("diff");
            said(compare.arg("--recursive").arg(root().join(source)).arg(tree.join(path)))?;
        }
        ensure!(tree.join("usr/bin").join(name).exists(), "{name} has no program");
        for path in [
            format!("bash-completion/completions/{name}"),
            format!("zsh/vendor-completions/_{name}"),
            format!("fish/vendor_completions.d/{name}.fish"),
        ] {
            let text =
                fs::read_to_string(tree.join("usr/share").join(&path)).with_context(|| path.clone())?;
            ensure!(text.contains("config"), "{path} completes nothing");
        }
        let mut told = Command::new("dpkg-deb");
        let told = said(told.arg("--info").arg(package).arg("conffiles"))?;
        ensure!(told.trim() == conffiles, "{name} has the conffiles {told}");
        let page = |page: &str| tree.join(format!("usr/share/man/man1/{page}.1.gz"));
        ensure!(page(name).exists(), "{name} has no manual page");
        for unit in fs::read_dir(tree.join("usr/lib/systemd/system"))? {
            let unit = unit?.path();
            let text = fs::read_to_string(&unit)?;
            for named in text.lines().filter_map(|line| line.strip_prefix("Documentation=man:")) {
                let named = named.strip_suffix("(1)").context("pages of programs are in section 1")?;
                ensure!(page(named).exists(), "{} names a page {named} that is not there", unit.display());
            }
            units.insert(unit.file_name().context("a name")?.to_string_lossy().into_owned());
        }
    }
    let all: BTreeSet<String> = HARDNESS.map(|(unit, _)| unit.to_owned()).into();
    ensure!(units == all, "the packages have the units {units:?}");
    Ok(())
}

pub(crate) fn the_catalogue_explains_what_the_journal_refers_to() -> Result<()> {
    let read = |path: &str| fs::read_to_string(root().join(path)).with_context(|| format!("reading {path}"));
    let is_id = |word: &&str| word.len() == 32 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let ids = |text: &str| -> BTreeSet<String> {
        text.split(|c: char| !c.is_ascii_alphanumeric()).filter(is_id).map(str::to_owned).collect()
    };
    let mut referred = BTreeSet::new();
    for path in ["agent/src/journal.rs", "aggregator/src/notify.rs", "systemd/system/bramble-failed@.service"]
    {
        referred.extend(ids(&read(path)?));
    }
    let explained = ids(&read("packaging/catalog/bramble.catalog")?);
    ensure!(
        referred == explained && explained.len() == 4,
        "referred to: {referred:?}, explained: {explained:?}"
    );
    Ok(())
}

/// Signs a repository with a key made for it, and lets apt install from it, with lists and sources of its own.
pub(crate) fn apt_installs_from_the_signed_repository_and_from_no_other() -> Result<()> {
    let folder = target()?.join("tmp").join(format!("repo-{}", std::process::id()));
    let outcome = repository(&folder);
    fs::remove_dir_all(&folder)?;
    outcome
}

fn repository(folder: &Path) -> Result<()> {
    let home = folder.join("gpg");
    fs::create_dir_all(&home)?;
    fs::set_permissions(&home, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    let gpg = |arguments: &[&str]| {
        let mut gpg = Command::new("gpg");
        said(
            gpg.arg("--homedir")
                .arg(&home)
                .args(["--batch", "--quiet", "--pinentry-mode=loopback"])
                .args(arguments),
        )
    };
    let key = folder.join("key");
    let key = key.to_str().context("a path of letters")?;
    gpg(&["--passphrase=", "--quick-generate-key", "a test of bramble", "ed25519", "sign", "1d"])?;
    gpg(&["--output", key, "--export-secret-keys"])?;
    let stopped = Command::new("gpgconf").arg("--homedir").arg(&home).args(["--kill", "all"]).status()?;
    ensure!(stopped.success(), "gpg's agent does not end");
    let into = folder.join("apt");
    let xtask = target()?.join("debug/xtask");
    said(
        Command::new(xtask)
            .args(["repo", "--key", key, "--into"])
            .arg(&into)
            .arg("--from")
            .arg(self::folder()?),
    )?;

    for name in ["debian12", "debian13"] {
        let pack = folder.join("repo.tar");
        said(Command::new("tar").arg("-C").arg(&into).arg("-cf").arg(&pack).arg("."))?;
        let gift = Gift { from: pack, to: "/srv/repo.tar".to_owned() };
        let mut machine = Blueprint::named(name)?.start(&store()?, &[gift])?;
        let sources = "mkdir -p /srv/repo && tar -C /srv/repo -xf /srv/repo.tar && \
                       cp /srv/repo/bramble-archive-keyring.pgp /usr/share/keyrings/ && rm -f /etc/apt/sources.list && \
                       rm -rf /etc/apt/sources.list.d/* && sed 's|https://REPLACE-BY-YOUR-SERVER/|file:///srv/repo|' \
                       /srv/repo/bramble.sources >/etc/apt/sources.list.d/bramble.sources";
        machine.run(sources)?.good()?;
        machine.run("apt-get -o APT::Update::Error-Mode=any update")?.good()?;
        machine.run("apt-get --yes --no-install-recommends install bramble bramble-aggregator")?.good()?;
        ensure!(property(&mut *machine, "bramble", "ActiveState")? == "active", "apt did not start it");
        machine.run(
            "sed -i 's/^Description: /Description: changed /' /srv/repo/dists/stable/main/binary-*/Packages*",
        )?;
        machine.run("sed -i 's/^Origin: .*/Origin: other/' /srv/repo/dists/stable/InRelease")?.good()?;
        let update =
            machine.run("rm -rf /var/lib/apt/lists/*; apt-get -o APT::Update::Error-Mode=any update")?;
        if update.code == 0 {
            bail!("{name}: apt takes a list that was changed after it was signed: {}", update.out);
        }
        machine.stop()?;
    }
    Ok(())
}
