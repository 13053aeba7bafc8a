//! `bramble bundle`: one archive for whoever helps: findings, status, receipts, journal, and the host tree that
//! `bramble check --root` reads. Secrets are taken out before anything is written.
//!
//! The tree is what the check itself asked for, noted while it judged: whoever checks the tree finds what was found here.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use jiff::Timestamp;

use super::{check, status};
use crate::{
    config::Config,
    converge::receipt,
    facts::Facts,
    host::{Host, archive::Archive, clock, record::Asked, write::HostMut},
    redact,
    require::{self, Judged, REQUIREMENTS},
};

/// Write one archive for a bug report: findings, status, receipts, journal, and a host tree for bramble check --root.
///
/// Secrets are taken out: files that hold nothing else, values after a secret's name, and what looks like a key or token.
/// Read it before you hand it on all the same; it names your hosts and addresses. As root it holds more.
#[derive(Debug, clap::Args)]
pub struct Bundle {
    /// Where to write it, at a path where nothing is; bramble-NODE-TIME.tar.gz in this directory when not given
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Units whose journal is of interest.
const UNITS: &[&str] = &[
    "bramble.service",
    "bramble-probe.service",
    "bramble-prepare.service",
    "bramble-join.service",
    "bramble-kubernetes.service",
    "bramble-obey@reboot.service",
    "bramble-obey@identify.service",
    "bramble-aggregator.service",
    "k3s.service",
    "k3s-agent.service",
];
/// Of each unit, and of the kernel.
const LINES: u32 = 500;
const DAYS: i64 = 3;

/// Runs the verb.
///
/// # Errors
/// When the archive cannot be written.
pub fn run(args: &Bundle, config: &Config, config_path: Option<&str>) -> anyhow::Result<ExitCode> {
    let now = clock::now();
    let name = format!("bramble-{}-{}", config.node.name, now.strftime("%Y%m%dT%H%M%SZ"));
    let path = args.output.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    let bundle = collect(Host::live()?.recording(), config, config_path, now)?;
    bundle.write(&path, &name, now).with_context(|| format!("writing {}", path.display()))?;
    let text = format!(
        "{}: {} files, {} secrets taken out\n\
         It names hosts and addresses; read it before you hand it on: sudo tar xzOf {0} | less\n",
        path.display(),
        bundle.entries.len(),
        bundle.secrets,
    );
    check::print(&text, ExitCode::SUCCESS)
}

/// One thing in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    File(u32, Vec<u8>),
    Link(String),
    Directory,
}

/// What goes into the archive.
#[derive(Debug, Default)]
struct Contents {
    /// By path in the archive.
    entries: BTreeMap<String, Entry>,
    /// How many were taken out.
    secrets: usize,
    /// What is not in it, and why.
    left_out: Vec<String>,
}

fn collect(
    host: Host,
    config: &Config,
    config_path: Option<&str>,
    now: Timestamp,
) -> anyhow::Result<Contents> {
    let mut contents = Contents::default();
    // Judged first, so that the noted host is that of the check. The configuration and the receipts are read through it
    // once more, to be in the tree as well.
    let facts = Facts::observe(&host);
    let judged: Vec<Judged> = require::judge(REQUIREMENTS, &facts, config).collect();
    let _ = super::load(&host, config_path);
    if let Err(why) = receipt::seen(&host) {
        contents.left_out.push(format!("receipts: {why}"));
    }
    contents.text("check.json", &check::report(&host, &facts, &judged));
    match status::ask(config) {
        Ok(snapshot) => contents.text("status.json", &serde_json::to_string_pretty(&snapshot)?),
        Err(why) => contents.left_out.push(format!("status.json: {why}")),
    }
    if host.is_live() {
        contents.journal(&host, now);
    }
    contents.tree(&host);
    contents.about();
    Ok(contents)
}

impl Contents {
    fn text(&mut self, path: &str, text: &str) {
        let (clean, secrets) = redact::text(text);
        self.secrets += secrets;
        self.entries.insert(path.to_owned(), Entry::File(0o644, clean.into_bytes()));
    }

    fn journal(&mut self, host: &Host, now: Timestamp) {
        let since = now.checked_sub(jiff::SignedDuration::from_hours(24 * DAYS)).unwrap_or(now);
        // It runs journalctl and changes nothing.
        let programs = HostMut::live();
        for unit in UNITS {
            let path = format!("journal/{}.log", unit.trim_end_matches(".service"));
            match programs
                .as_ref()
                .map_err(ToString::to_string)
                .and_then(|programs| programs.journal(unit, since, LINES).map_err(|why| why.to_string()))
            {
                Ok(lines) if lines.is_empty() => {}
                Ok(lines) => self.text(&path, &(lines.join("\n") + "\n")),
                Err(why) => self.left_out.push(format!("{path}: {why}")),
            }
        }
        let mut lines = Vec::new();
        match host.kernel_log() {
            Ok(mut log) => {
                log.follow(|line| lines.push(format!("[{:.6}] {}\n", line.at_us as f64 / 1e6, line.text)))
            }
            Err(why) => self.left_out.push(format!("journal/kernel.log: {why}")),
        }
        if !lines.is_empty() {
            let newest = lines.len().saturating_sub(LINES as usize * 4);
            self.text("journal/kernel.log", &lines[newest..].concat());
        }
    }

    /// What was asked of the host, as a tree, and the list of what was not there.
    fn tree(&mut self, host: &Host) {
        let asked = host.asked();
        let mut absent = String::from("# Looked for, and not there.\n");
        let mut listed = BTreeSet::new();
        for (path, asked) in &asked {
            if asked.list {
                let names = host.list(path).unwrap_or_default();
                listed.extend(names.into_iter().map(|name| format!("{}/{name}", path.trim_end_matches('/'))));
                self.put(host, path, Entry::Directory);
            }
            if asked.missing && !asked.found {
                absent += path;
                absent.push('\n');
            }
        }
        for (path, asked) in asked.iter().filter(|(_, asked)| asked.found) {
            self.capture(host, path, *asked, listed.contains(path));
        }
        // The names alone tell something, also where nobody looked inside.
        for path in listed {
            if !asked.contains_key(&path) {
                self.capture(host, &path, Asked::default(), true);
            }
        }
        self.entries.insert("tree/absent".to_owned(), Entry::File(0o644, absent.into_bytes()));
    }

    fn capture(&mut self, host: &Host, path: &str, asked: Asked, listed: bool) {
        if (asked.link || listed)
            && let Some(target) = host.link(path)
        {
            self.put(host, path, Entry::Link(target));
        }
        let mode = host.mode(path).unwrap_or(0o644);
        if asked.read {
            match host.bytes(path) {
                Ok(content) => {
                    let content = self.clean(path, content);
                    self.put(host, path, Entry::File(mode, content));
                }
                Err(why) => self.left_out.push(format!("tree{why}")),
            }
        } else if !asked.link || host.link(path).is_none() {
            let is_directory = asked.list || host.list(path).is_ok();
            let entry = if is_directory { Entry::Directory } else { Entry::File(mode, Vec::new()) };
            self.put(host, path, entry);
        }
    }

    /// Puts it where it is when the links above it are followed. What is there already stays: of two names for one thing
    /// either may come first, and a link goes before what it points to.
    fn put(&mut self, host: &Host, path: &str, entry: Entry) {
        let is_link = matches!(entry, Entry::Link(_));
        let Some((place, links)) = resolved(host, path, !is_link) else { return };
        let place = format!("tree{}", place.trim_end_matches('/'));
        for (link, target) in links {
            self.entries.insert(format!("tree{link}"), Entry::Link(target));
        }
        match (self.entries.get(&place), &entry) {
            (Some(Entry::File(_, known)), Entry::File(_, content))
                if known.is_empty() && !content.is_empty() => {}
            (None, _) => {}
            _ => return,
        }
        self.entries.insert(place, entry);
    }

    /// The content without secrets.
    fn clean(&mut self, path: &str, content: Vec<u8>) -> Vec<u8> {
        if redact::is_secret_file(path) {
            self.secrets += 1;
            return format!("{}\n", redact::MARK).into_bytes();
        }
        // Of programs only what kind they are is of interest.
        if content.starts_with(b"\x7fELF") {
            return content[..content.len().min(64)].to_vec();
        }
        // What the kernel says of itself is no text and no secret: its packed configuration, a board, a process' frame.
        let kernels = ["/proc/device-tree/", "/sys/"].iter().any(|place| path.starts_with(place));
        if kernels || path == "/proc/config.gz" || path.ends_with("/auxv") {
            return content;
        }
        let Ok(text) = String::from_utf8(content) else {
            self.left_out.push(format!("tree{path}: it is no text, and nobody knows what is in it"));
            return Vec::new();
        };
        let arguments = text.contains('\0');
        let (clean, secrets) = match arguments {
            true => redact::text(&text.replace('\0', "\n")),
            false => redact::text(&text),
        };
        self.secrets += secrets;
        if arguments { clean.replace('\n', "\0") } else { clean }.into_bytes()
    }

    fn about(&mut self) {
        let mut text = String::from(
            "check.json  what bramble check --json said\n\
             status.json what the agent said, as its broker hears it\n\
             journal/    the newest lines of bramble, K3s and the kernel\n\
             tree/       what the check looked at: bramble check --root tree\n\
             \nTaken out, and marked REDACTED: ",
        );
        text += &format!("{} secrets. Left out:\n", self.secrets);
        self.left_out.sort();
        self.left_out.dedup();
        self.left_out.iter().for_each(|line| text += &format!("{line}\n"));
        self.text("README.txt", &text);
    }

    /// Writes the archive; everything in it lies below `name`.
    fn write(&self, path: &Path, name: &str, at: Timestamp) -> std::io::Result<()> {
        let mut archive = Archive::create(path, at)?;
        for (path, entry) in &self.entries {
            let path = format!("{name}/{path}");
            match entry {
                Entry::File(mode, content) => archive.file(&path, *mode, content)?,
                Entry::Link(target) => archive.link(&path, target)?,
                Entry::Directory => archive.directory(&path)?,
            }
        }
        archive.end()
    }
}

/// The path with the links above it, and at its end if `last`, followed as the kernel follows them, and those links; `None`
/// for a ring.
fn resolved(host: &Host, path: &str, last: bool) -> Option<(String, Vec<(String, String)>)> {
    const MOST: usize = 40;
    let parts = |path: &str| -> Vec<String> {
        path.split('/').filter(|part| !part.is_empty() && *part != ".").map(str::to_owned).rev().collect()
    };
    let (mut done, mut rest, mut links) = (String::new(), parts(path), Vec::new());
    while let Some(part) = rest.pop() {
        if part == ".." {
            done.truncate(done.rfind('/').unwrap_or(0));
            continue;
        }
        let here = format!("{done}/{part}");
        match host.link(&here).filter(|_| last || !rest.is_empty()) {
            // The kernel's own links to open files and namespaces are no paths.
            Some(target) if !target.contains(':') => {
                (links.len() < MOST).then_some(())?;
                if target.starts_with('/') {
                    done.clear();
                }
                rest.extend(parts(&target));
                links.push((here, target));
            }
            _ => done = here,
        }
    }
    Some((done, links))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the tests build and unpack trees")]
mod tests {
    use std::fs;

    use super::*;
    use crate::redact::planted::PLANTED;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let dir = std::env::temp_dir().join(format!("bramble-bundle-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(&dir).unwrap();
            Scratch(dir)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn unpack(contents: &Contents, scratch: &Scratch) -> PathBuf {
        let path = scratch.0.join("bundle.tar.gz");
        contents.write(&path, "b", Timestamp::UNIX_EPOCH).unwrap();
        let again = contents.write(&path, "b", Timestamp::UNIX_EPOCH).unwrap_err();
        assert_eq!(again.kind(), std::io::ErrorKind::AlreadyExists, "no file is replaced");
        let file = fs::File::open(&path).unwrap();
        tar::Archive::new(flate2::read::GzDecoder::new(file)).unpack(&scratch.0).unwrap();
        scratch.0.join("b")
    }

    fn verdicts(host: &Host, config: &Config) -> BTreeMap<String, String> {
        let facts = Facts::observe(host);
        require::judge(REQUIREMENTS, &facts, config)
            .map(|judged| (judged.requirement.id.to_owned(), judged.state().word().to_owned()))
            .collect()
    }

    #[test]
    fn a_bundle_of_every_host_tree_is_judged_as_the_tree_itself() {
        let trees = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/hosts");
        let config = Config::default();
        let mut count = 0;
        for entry in fs::read_dir(trees).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let host = Host::tree(&entry.path()).unwrap();
            let before = verdicts(&host, &config);
            let contents = collect(host.recording(), &config, None, Timestamp::UNIX_EPOCH).unwrap();
            let scratch = Scratch::new(&name);
            let unpacked = Host::tree(&unpack(&contents, &scratch).join("tree")).unwrap();
            let after = verdicts(&unpacked, &config);
            let other: Vec<_> = before.iter().filter(|(id, state)| after.get(*id) != Some(state)).collect();
            assert!(other.is_empty(), "{name}: before {other:?}");
            count += 1;
        }
        assert!(count > 10, "{count}");
    }

    #[test]
    fn thirty_planted_secrets_are_in_no_file_of_a_bundle() {
        let scratch = Scratch::new("secrets");
        let tree = scratch.0.join("host");
        let write = |path: &str, text: &str| {
            let path = tree.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        // In files that the check reads: text, a boot file, a list of packages, drop-ins, K3s' configuration.
        let places = [
            "etc/fstab",
            "proc/cmdline",
            "boot/firmware/cmdline.txt",
            "boot/firmware/config.txt",
            "etc/sysctl.d/99-x.conf",
            "etc/rancher/k3s/config.yaml",
            "etc/dhcpcd.conf",
            "etc/os-release",
            "var/lib/dpkg/status",
            "etc/hosts",
        ];
        for (index, (planted, _)) in PLANTED.iter().enumerate() {
            let path = tree.join(places[index % places.len()]);
            let before = fs::read_to_string(path).unwrap_or_default();
            write(places[index % places.len()], &format!("{before}{planted}\n"));
        }
        write("etc/netplan/50-cloud-init.yaml", "wifis:\n  wlan0:\n    password: \"netplansecret\"\n");
        let host = Host::tree(&tree).unwrap().recording();
        let contents = collect(host, &Config::default(), None, Timestamp::UNIX_EPOCH).unwrap();
        let mut read = 0;
        for (path, entry) in &contents.entries {
            let Entry::File(_, content) = entry else { continue };
            let text = String::from_utf8_lossy(content);
            for (_, secret) in PLANTED.iter().chain(&[("", "netplansecret")]) {
                assert!(!text.contains(secret), "{secret} is in {path}");
            }
            read += usize::from(text.contains(redact::MARK));
        }
        assert!(read >= 5, "only {read} of the files with secrets were captured");
        assert!(contents.secrets >= 15, "{}", contents.secrets);
    }

    #[test]
    fn the_journal_of_every_unit_has_a_file_of_its_own() {
        let names: BTreeSet<_> = UNITS.iter().map(|unit| unit.trim_end_matches(".service")).collect();
        assert_eq!(names.len(), UNITS.len(), "{UNITS:?}");
        assert!(UNITS.iter().all(|unit| unit.ends_with(".service")), "{UNITS:?}");
    }

    #[test]
    fn the_running_machine_is_bundled_and_judged_alike_where_files_tell() {
        let config = Config::default();
        let live = Host::live().unwrap();
        let before = verdicts(&live, &config);
        let contents = collect(live.recording(), &config, None, clock::now()).unwrap();
        let scratch = Scratch::new("live");
        let unpacked = Host::tree(&unpack(&contents, &scratch).join("tree")).unwrap();
        let mut alike = 0;
        for (id, state) in verdicts(&unpacked, &config) {
            // Only the running machine can tell the others.
            if state != require::State::Unknown.word() {
                assert_eq!(state, before[&id], "{id}");
                alike += 1;
            }
        }
        assert!(alike > 40, "{alike}");
    }
}
