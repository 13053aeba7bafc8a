//! The door to the machine, reading half: files below a root, a few read-only queries, the clock.
//!
//! A host is either the running machine or a captured tree of its `/proc /sys /etc /boot ...`. Both
//! answer the same calls. It never writes and never runs a program.
#![allow(clippy::disallowed_methods, reason = "the door")]

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{Mode, fstat};

pub mod archive;
pub mod bpf;
pub mod bpf_offer;
pub mod cgroup;
pub mod clock;
pub mod disk;
pub mod ethtool;
pub mod http;
pub mod hwmon;
mod journal;
pub mod kmsg;
pub mod large;
pub mod led;
mod legacy;
pub mod netfilter;
mod netlink;
pub mod network;
pub mod ready;
pub mod record;
mod remove;
mod ruleset;
pub mod scratch;
pub mod spool;
pub mod state;
pub mod systemd;
pub mod timer;
pub mod vault;
pub mod vcio;
pub mod watch;
pub mod write;

/// The largest file that is read, in bytes: `modules.dep`, the largest file of a sane host, has less
/// than one million.
pub const LARGEST: u64 = 4 << 20;

/// How often the kernel is asked again for a path during which something was renamed.
const TRIES: u32 = 1000;

/// What one read asks for, in bytes.
const PAGE: usize = 4096;

/// The file at the root of a captured tree that lists, one path a line, what the machine was seen not to
/// have; a path ending in `/` stands for all below it. Without it a file that is not in the tree may have
/// been there all the same.
pub const ABSENT: &str = "absent";

/// How long what is read again and again and was not there is taken for absent.
const MISSING: Duration = Duration::from_secs(60);

/// Files that stay open, by path.
#[derive(Debug, Default)]
struct Open {
    files: BTreeMap<String, File>,
    /// What was not there, when, and why.
    missing: BTreeMap<String, (Instant, Unreadable)>,
    /// Into which they are read, one after the other.
    buffer: Vec<u8>,
}

/// A machine, opened for reading.
#[derive(Debug)]
pub struct Host {
    /// Every path is resolved below this directory, by the kernel.
    root: OwnedFd,
    origin: Origin,
    /// What is asked, while somebody wants to know it.
    record: Option<record::Record>,
    /// What is read again and again.
    open: Mutex<Open>,
}

#[derive(Debug, Clone)]
enum Origin {
    Live,
    Tree { dir: PathBuf, absent: Vec<String> },
}

/// Something that was to be read and was not: the path (or the query) and the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {why}")]
pub struct Unreadable {
    /// The path on the host, or the name of the query.
    pub path: String,
    /// Why it gave no answer.
    pub why: Why,
}

/// Why something gave no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// The running machine has no such file.
    Missing,
    /// The captured tree does not have it; the machine may.
    NotCaptured,
    /// No file tells it: the kernel must be asked, and a captured tree has none.
    NotLive,
    /// The reader lacks the right.
    Denied,
    /// A directory, device, pipe or socket where a file was expected.
    NotAFile,
    /// Larger than [`LARGEST`].
    TooLarge,
    /// Read, but not understood; says what was expected.
    Malformed(String),
    /// Any other answer of the kernel.
    Failed(String),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Missing => f.write_str("no such file"),
            Why::NotCaptured => f.write_str("not in the captured tree"),
            Why::NotLive => f.write_str("only the running machine can tell"),
            Why::Denied => f.write_str("permission denied"),
            Why::NotAFile => f.write_str("not a regular file"),
            Why::TooLarge => write!(f, "larger than {} MiB", LARGEST >> 20),
            Why::Malformed(expected) => write!(f, "not understood, expected {expected}"),
            Why::Failed(answer) => f.write_str(answer),
        }
    }
}

impl Unreadable {
    /// `path` was read and is not what was `expected`.
    pub fn malformed(path: impl Into<String>, expected: impl Into<String>) -> Unreadable {
        Unreadable { path: path.into(), why: Why::Malformed(expected.into()) }
    }

    /// What a person does to make it readable.
    pub fn next(&self) -> String {
        let path = &self.path;
        match &self.why {
            Why::Denied => "run it again with sudo".into(),
            Why::NotCaptured => format!("capture {path}, or check on the machine itself"),
            Why::NotLive => "check on the machine itself".into(),
            Why::Malformed(_) if path.starts_with('/') => format!("look at what it holds: sudo less {path}"),
            Why::Missing | Why::NotAFile | Why::TooLarge | Why::Failed(_) if path.starts_with('/') => {
                format!("look at what is there: sudo ls -ld {path}")
            }
            _ => "run it again; if it stays so, bramble bundle keeps what can be told of this machine".into(),
        }
    }

    fn not_captured(path: impl Into<String>) -> Unreadable {
        Unreadable { path: path.into(), why: Why::NotCaptured }
    }

    /// Whether nothing is there, on the machine or in the tree that stands for it.
    pub fn is_absence(&self) -> bool {
        matches!(self.why, Why::Missing | Why::NotCaptured)
    }

    /// The kernel must be asked for `query`, and a captured tree has none.
    fn not_live(query: impl Into<String>) -> Unreadable {
        Unreadable { path: query.into(), why: Why::NotLive }
    }
}

/// Facts are read once and judged many times, so the reason is copied to each judge that meets it.
impl From<&Unreadable> for Unreadable {
    fn from(unreadable: &Unreadable) -> Unreadable {
        unreadable.clone()
    }
}

/// A directory that was given as a captured tree and is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotATree {
    /// It cannot be opened as a directory.
    #[error("{dir} is not a host tree: {why}")]
    Unopened {
        /// The directory as given.
        dir: PathBuf,
        /// The kernel's answer.
        why: String,
    },
    /// It holds nothing that a host has.
    #[error("{dir} is not a host tree: expected at least one of proc, sys, etc, boot, usr, lib in it")]
    Bare {
        /// The directory as given.
        dir: PathBuf,
    },
}

fn text_of(path: &str, bytes: Vec<u8>) -> Result<String, Unreadable> {
    if bytes.len() as u64 > LARGEST {
        return Err(Unreadable { path: path.into(), why: Why::TooLarge });
    }
    if bytes.contains(&0) {
        return Err(Unreadable::malformed(path, "text"));
    }
    Ok(match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    })
}

fn number_of(path: &str, text: Result<String, Unreadable>) -> Result<Option<i64>, Unreadable> {
    match text {
        Ok(text) => text.trim().parse().map(Some).map_err(|_| Unreadable::malformed(path, "a number")),
        Err(why) if why.is_absence() => Ok(None),
        Err(why) => Err(why),
    }
}

/// A file from its beginning; of one that has more than [`LARGEST`] bytes, more than these.
fn whole<'a>(file: &File, buffer: &'a mut Vec<u8>) -> io::Result<&'a [u8]> {
    let mut length = 0;
    loop {
        if length == buffer.len() {
            buffer.resize(length.max(PAGE / 2) * 2, 0);
        }
        let read = file.read_at(&mut buffer[length..], length as u64)?;
        length += read;
        if read == 0 || length as u64 > LARGEST {
            return Ok(&buffer[..length]);
        }
    }
}

impl Host {
    /// The machine this runs on.
    pub fn live() -> Result<Host, Unreadable> {
        let root = open_directory(Path::new("/")).map_err(|errno| failed("/", errno))?;
        Ok(Host::of(root, Origin::Live))
    }

    fn of(root: OwnedFd, origin: Origin) -> Host {
        Host { root, origin, record: None, open: Mutex::default() }
    }

    /// A captured tree; `/`, however it is spelt, is the machine itself.
    pub fn tree(dir: &Path) -> Result<Host, NotATree> {
        let root = open_directory(dir)
            .map_err(|errno| NotATree::Unopened { dir: dir.into(), why: errno.desc().into() })?;
        let is_machine = || {
            let (status, machine) = (fstat(&root)?, nix::sys::stat::stat("/")?);
            Ok::<_, Errno>((status.st_dev, status.st_ino) == (machine.st_dev, machine.st_ino))
        };
        if is_machine() == Ok(true) {
            return Ok(Host::of(root, Origin::Live));
        }
        let mut host = Host::of(root, Origin::Tree { dir: dir.into(), absent: Vec::new() });
        let known = ["proc", "sys", "etc", "boot", "usr", "lib"];
        if !known.iter().any(|name| host.open(name, OFlag::O_PATH).is_ok()) {
            return Err(NotATree::Bare { dir: dir.into() });
        }
        if let Ok(list) = host.text(ABSENT)
            && let Origin::Tree { absent, .. } = &mut host.origin
        {
            *absent = list
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .map(String::from)
                .collect();
        }
        Ok(host)
    }

    /// The same host for another thread; `None` when no descriptor is free.
    pub fn again(&self) -> Option<Host> {
        let root = self.root.try_clone().ok()?;
        Some(Host::of(root, self.origin.clone()))
    }

    /// Whether this is the running machine and not a captured tree.
    pub fn is_live(&self) -> bool {
        matches!(self.origin, Origin::Live)
    }

    /// The root as a person knows it: `/`, or the directory of the captured tree.
    pub fn root(&self) -> &Path {
        match &self.origin {
            Origin::Live => Path::new("/"),
            Origin::Tree { dir, .. } => dir,
        }
    }

    /// The text of a file; a byte that is not UTF-8 becomes U+FFFD, a NUL makes it malformed.
    pub fn text(&self, path: &str) -> Result<String, Unreadable> {
        text_of(path, self.bytes(path)?)
    }

    /// The same of a file in `/proc` or `/sys` that is read with each report: it stays open, which saves half of the work. One
    /// that is not there is looked for again after a while.
    pub fn text_again(&self, path: &str) -> Result<String, Unreadable> {
        if !self.is_live() {
            return self.text(path);
        }
        // Whoever panicked while holding it left a map that is whole.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let Open { files, missing, buffer } = &mut *open;
        if let Some(content) = files.get(path).and_then(|file| whole(file, buffer).ok()) {
            return text_of(path, content.to_vec());
        }
        // Opened for the first time, or what it told of went.
        files.remove(path);
        if let Some((_, why)) = missing.get(path).filter(|(at, _)| at.elapsed() < MISSING) {
            return Err(why.clone());
        }
        let file = match self.file(path) {
            Ok((file, _)) => file,
            Err(why) if !why.is_absence() => return Err(why),
            Err(why) => {
                missing.insert(path.to_owned(), (Instant::now(), why.clone()));
                return Err(why);
            }
        };
        let content = whole(&file, buffer).map_err(|error| self.unreadable(path, errno_of(&error)))?;
        files.insert(path.to_owned(), file);
        text_of(path, content.to_vec())
    }

    /// The text of a file, or `None` when the machine is known not to have it.
    pub fn text_if_present(&self, path: &str) -> Result<Option<String>, Unreadable> {
        self.known_absence(path, self.text(path))
    }

    /// The number that is all of a file, as those of /sys are; `None` when there is no such file.
    pub fn number(&self, path: &str) -> Result<Option<i64>, Unreadable> {
        number_of(path, self.text(path))
    }

    /// The same of a file that is read with each report, see [`Host::text_again`].
    pub fn number_again(&self, path: &str) -> Result<Option<i64>, Unreadable> {
        number_of(path, self.text_again(path))
    }

    /// The content of a file of at most [`LARGEST`] bytes.
    pub fn bytes(&self, path: &str) -> Result<Vec<u8>, Unreadable> {
        let too_large = || Unreadable { path: path.into(), why: Why::TooLarge };
        let (file, length) = self.file(path)?;
        // Files of /proc and /sys say 0, and are read to see.
        if length > LARGEST {
            return Err(too_large());
        }
        let content = self.take(path, file, LARGEST + 1)?;
        (content.len() as u64 <= LARGEST).then_some(content).ok_or_else(too_large)
    }

    /// At most `limit` bytes from the beginning of a file.
    pub fn head(&self, path: &str, limit: u64) -> Result<Vec<u8>, Unreadable> {
        let (file, _) = self.file(path)?;
        self.take(path, file, limit)
    }

    fn take(&self, path: &str, file: File, limit: u64) -> Result<Vec<u8>, Unreadable> {
        // Most files of /proc fit into this, and each further read of one may cost the kernel as much as the first.
        let mut content = Vec::with_capacity(PAGE);
        let read = file.take(limit).read_to_end(&mut content);
        read.map_err(|error| self.unreadable(path, errno_of(&error)))?;
        Ok(content)
    }

    /// The text of a file from its beginning until `enough` says so of its whole lines and of the room that the last
    /// read left in a page, or until its end; `None` when the machine is
    /// known not to have it.
    pub fn text_until(
        &self,
        path: &str,
        enough: impl Fn(&str, usize) -> bool,
    ) -> Result<Option<String>, Unreadable> {
        let read = || {
            let (mut file, _) = self.file(path)?;
            let (mut text, mut page) = (String::new(), [0; PAGE]);
            loop {
                let length = file.read(&mut page).map_err(|error| self.unreadable(path, errno_of(&error)))?;
                text += &String::from_utf8_lossy(&page[..length]);
                let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
                if length == 0 || enough(whole, PAGE - length) {
                    return Ok(text);
                }
                if text.len() as u64 > LARGEST {
                    return Err(Unreadable { path: path.into(), why: Why::TooLarge });
                }
            }
        };
        self.known_absence(path, read())
    }

    /// A regular file, opened, and the length that it says to have.
    fn file(&self, path: &str) -> Result<(File, u64), Unreadable> {
        // Non-blocking: a pipe in a captured tree must not stop the check.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file = File::from(self.open(path, flags).map_err(|errno| self.unreadable(path, errno))?);
        let about = file.metadata().map_err(|error| self.unreadable(path, errno_of(&error)))?;
        match about.is_file() {
            true => Ok((file, about.len())),
            false => Err(Unreadable { path: path.into(), why: Why::NotAFile }),
        }
    }

    /// The names in a directory, sorted. A directory in a captured tree counts as captured whole.
    pub fn list(&self, path: &str) -> Result<Vec<String>, Unreadable> {
        let unreadable = |errno| self.unreadable(path, errno);
        let directory = self.open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(unreadable)?;
        let mut names = Vec::new();
        for entry in Dir::from_fd(directory).map_err(unreadable)?.iter() {
            let name = entry.map_err(unreadable)?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The names in a directory, or none when the machine is known not to have it.
    pub fn list_if_present(&self, path: &str) -> Result<Vec<String>, Unreadable> {
        self.known_absence(path, self.list(path)).map(Option::unwrap_or_default)
    }

    /// Whether something is at `path`; a link counts as what it points to.
    pub fn present(&self, path: &str) -> Result<bool, Unreadable> {
        let opened = self.open(path, OFlag::O_PATH).map(drop).map_err(|errno| self.unreadable(path, errno));
        self.known_absence(path, opened).map(|found| found.is_some())
    }

    /// The permissions of what is at `path`, the twelve bits; a link counts as what it points to.
    pub fn mode(&self, path: &str) -> Result<u32, Unreadable> {
        let status = self.open(path, OFlag::O_PATH).and_then(fstat);
        Ok(status.map_err(|errno| self.unreadable(path, errno))?.st_mode & 0o7777)
    }

    /// The user to whom what is at `path` belongs, by number; a link counts as what it points to.
    pub fn owner(&self, path: &str) -> Result<u32, Unreadable> {
        let status = self.open(path, OFlag::O_PATH).and_then(fstat);
        Ok(status.map_err(|errno| self.unreadable(path, errno))?.st_uid)
    }

    /// Where the link at `path` points to; `None` when it is no link, or nothing is there.
    pub fn link(&self, path: &str) -> Option<String> {
        let link = self.open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW).ok()?;
        // Of an empty path the kernel reads the opened link itself.
        Some(readlinkat(link, "").ok()?.to_string_lossy().into_owned())
    }

    /// Turns "the machine does not have it" into `None`.
    fn known_absence<T>(&self, path: &str, read: Result<T, Unreadable>) -> Result<Option<T>, Unreadable> {
        match read {
            Ok(content) => Ok(Some(content)),
            Err(Unreadable { why: Why::Missing, .. }) => Ok(None),
            Err(Unreadable { why: Why::NotCaptured, .. }) if self.listed_absent(path) => Ok(None),
            Err(unreadable) => Err(unreadable),
        }
    }

    fn listed_absent(&self, path: &str) -> bool {
        let Origin::Tree { absent, .. } = &self.origin else { return false };
        absent.iter().any(|entry| {
            path == entry || entry.ends_with('/') && format!("{path}/").starts_with(entry.as_str())
        })
    }

    /// Opens below the root. The kernel resolves links as if the root were `/`, so that a link in a
    /// captured tree never leads out of it.
    fn open(&self, path: &str, flags: OFlag) -> Result<OwnedFd, Errno> {
        let relative = match path.trim_start_matches('/') {
            "" => ".",
            relative => relative,
        };
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .mode(Mode::empty())
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        // A rename anywhere on the machine lets the kernel give up on a link with "..", to be asked again.
        let mut opened = openat2(&self.root, relative, how);
        for _ in 0..TRIES {
            if !matches!(opened, Err(Errno::EAGAIN)) {
                break;
            }
            opened = openat2(&self.root, relative, how);
        }
        if let Some(record) = &self.record {
            record.note(path, flags, opened.as_ref().err().copied());
        }
        match opened {
            // systemd's RestrictSUIDSGID takes the call away. From the machine's own root the older one leads to the same.
            Err(Errno::ENOSYS) if self.is_live() => {
                openat(&self.root, relative, flags | OFlag::O_CLOEXEC, Mode::empty())
            }
            opened => opened,
        }
    }

    fn unreadable(&self, path: &str, errno: Errno) -> Unreadable {
        match (errno, &self.origin) {
            (Errno::ENOENT | Errno::ENOTDIR, Origin::Tree { .. }) => Unreadable::not_captured(path),
            _ => failed(path, errno),
        }
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO))
}

fn failed(path: &str, errno: Errno) -> Unreadable {
    let why = match errno {
        Errno::ENOENT | Errno::ENOTDIR => Why::Missing,
        Errno::EACCES | Errno::EPERM => Why::Denied,
        errno => Why::Failed(errno.desc().to_lowercase()),
    };
    Unreadable { path: path.into(), why }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the tests build trees")]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A tree in the temporary directory, gone with its guard.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let dir = std::env::temp_dir().join(format!("bramble-host-{}-{name}", std::process::id()));
            fs::create_dir_all(dir.join("etc")).unwrap();
            Scratch(dir)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_file_that_stays_open_is_read_anew_each_time() {
        let host = Host::live().unwrap();
        let uptime = || host.text_again("/proc/uptime").unwrap();
        let first = uptime();
        std::thread::sleep(std::time::Duration::from_millis(30));
        assert_ne!(first, uptime());
        for path in ["/proc/kallsyms", "/proc/crypto", "/proc/cmdline"] {
            for _ in 0..2 {
                assert_eq!(host.text_again(path), host.text(path));
            }
        }
        assert_eq!(host.text_again("/proc/none"), host.text("/proc/none"));
        // What it was opened for is gone: the kernel refuses to read it.
        let directory = File::open("/").unwrap();
        host.open.lock().unwrap().files.insert("/proc/version".to_owned(), directory);
        assert!(host.text_again("/proc/version").unwrap().starts_with("Linux"));
    }

    #[test]
    fn the_machine_itself_is_no_tree_however_its_root_is_spelt() {
        for root in ["/", "//", "/.", "/proc/self/root", "/etc/.."] {
            let host = Host::tree(Path::new(root)).unwrap();
            assert!(host.is_live() && host.root() == Path::new("/"), "{root}");
        }
    }

    #[test]
    fn what_could_not_be_read_says_how_to_read_it() {
        let next = |path: &str, why| Unreadable { path: path.into(), why }.next();
        assert_eq!(next("/x", Why::Denied), "run it again with sudo");
        assert_eq!(next("/x", Why::NotCaptured), "capture /x, or check on the machine itself");
        assert_eq!(next("/x", Why::NotAFile), "look at what is there: sudo ls -ld /x");
        assert_eq!(next("/x", Why::Malformed("a number".into())), "look at what it holds: sudo less /x");
        assert_eq!(next("statvfs(/var)", Why::NotLive), "check on the machine itself");
        assert!(next("statvfs(/var)", Why::Failed("no answer".into())).contains("bramble bundle"));
    }

    #[test]
    fn a_link_in_a_captured_tree_never_leads_out_of_it() {
        let scratch = Scratch::new("links");
        fs::write(scratch.0.join("etc/inside"), "inside").unwrap();
        symlink("/etc/inside", scratch.0.join("etc/absolute")).unwrap();
        symlink("../../../../../../etc/hostname", scratch.0.join("etc/upward")).unwrap();
        symlink("/proc/self/environ", scratch.0.join("etc/secret")).unwrap();
        let host = Host::tree(&scratch.0).unwrap();
        assert_eq!(host.text("/etc/absolute").unwrap(), "inside");
        assert_eq!(host.link("/etc/absolute").as_deref(), Some("/etc/inside"));
        assert_eq!(host.link("/etc/inside"), None);
        assert_eq!(host.text("/etc/upward").unwrap_err().why, Why::NotCaptured);
        assert_eq!(host.text("/etc/secret").unwrap_err().why, Why::NotCaptured);
    }

    #[test]
    fn a_path_is_found_while_others_are_renamed() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let scratch = Scratch::new("renames");
        fs::create_dir_all(scratch.0.join("etc/a/b")).unwrap();
        fs::write(scratch.0.join("etc/inside"), "inside").unwrap();
        symlink("../../inside", scratch.0.join("etc/a/b/link")).unwrap();
        let host = Host::tree(&scratch.0).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (one, two) = (scratch.0.join("one"), scratch.0.join("two"));
                fs::write(&one, "").unwrap();
                while !done.load(Ordering::Relaxed) {
                    fs::rename(&one, &two).unwrap();
                    fs::rename(&two, &one).unwrap();
                }
            });
            let failed = (0..20_000).find_map(|_| host.text("/etc/a/b/link").err());
            done.store(true, Ordering::Relaxed);
            assert_eq!(failed, None);
        });
    }

    #[test]
    fn what_a_tree_does_not_hold_is_absent_only_when_listed() {
        let scratch = Scratch::new("absent");
        fs::write(scratch.0.join(ABSENT), "# seen\n/etc/dhcpcd.conf\n/sys/kernel/btf/\n").unwrap();
        let host = Host::tree(&scratch.0).unwrap();
        assert_eq!(host.present("/etc/dhcpcd.conf"), Ok(false));
        assert_eq!(host.present("/sys/kernel/btf/vmlinux"), Ok(false));
        assert_eq!(host.present("/sys/kernel/btf"), Ok(false));
        let unknown = host.present("/sys/kernel/btfx").unwrap_err();
        assert_eq!(unknown.to_string(), "/sys/kernel/btfx: not in the captured tree");
        assert!(host.list("/proc").is_err());
    }

    #[test]
    fn odd_files_are_refused_with_their_path() {
        let scratch = Scratch::new("odd");
        let etc = scratch.0.join("etc");
        fs::write(etc.join("binary"), b"a\0b").unwrap();
        fs::write(etc.join("latin"), b"caf\xe9").unwrap();
        File::create(etc.join("huge")).unwrap().set_len(LARGEST + 1).unwrap();
        nix::unistd::mkfifo(&etc.join("pipe"), Mode::S_IRWXU).unwrap();
        symlink("loop", etc.join("loop")).unwrap();
        let host = Host::tree(&scratch.0).unwrap();
        assert_eq!(
            host.text("/etc/binary").unwrap_err().to_string(),
            "/etc/binary: not understood, expected text"
        );
        assert_eq!(host.text("/etc/latin").unwrap(), "caf\u{fffd}");
        assert_eq!(host.bytes("/etc/huge").unwrap_err().why, Why::TooLarge);
        assert_eq!(host.bytes("/etc/pipe").unwrap_err().why, Why::NotAFile);
        assert_eq!(host.bytes("/etc").unwrap_err().why, Why::NotAFile);
        assert!(matches!(host.bytes("/etc/loop").unwrap_err().why, Why::Failed(_)));
    }

    #[test]
    fn a_long_file_is_read_as_far_as_it_is_asked_for() {
        let scratch = Scratch::new("long");
        let line = "x".repeat(99) + "\n";
        fs::write(scratch.0.join("etc/long"), "head\n".to_string() + &line.repeat(200)).unwrap();
        let host = Host::tree(&scratch.0).unwrap();
        let read =
            |enough: fn(&str, usize) -> bool| host.text_until("/etc/long", enough).unwrap().unwrap().len();
        assert_eq!(read(|text, _| text.contains("head\n")), PAGE);
        assert_eq!(read(|_, _| false), 20_005);
        assert_eq!(read(|_, room| room > 0), 20_005, "the fifth read is the first that leaves room");
        assert!(host.text_until("/etc/none", |_, _| true).is_err());
    }

    #[test]
    fn a_directory_that_is_no_host_tree_is_refused() {
        let scratch = Scratch::new("bare");
        let bare = scratch.0.join("etc");
        assert!(matches!(Host::tree(&bare).unwrap_err(), NotATree::Bare { .. }));
        let missing = Host::tree(&scratch.0.join("nowhere")).unwrap_err().to_string();
        assert!(missing.ends_with("is not a host tree: No such file or directory"), "{missing}");
    }

    #[test]
    fn the_running_machine_answers() {
        let host = Host::live().unwrap();
        assert!(host.is_live());
        assert!(!host.text("/proc/sys/kernel/osrelease").unwrap().is_empty());
        assert_eq!(host.text("/nowhere/at/all").unwrap_err().why, Why::Missing);
        assert_eq!(host.text_if_present("/nowhere/at/all"), Ok(None));
        assert!(host.list("/proc/sys").unwrap().contains(&"kernel".to_string()));
    }
}
