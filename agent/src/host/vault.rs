//! A directory of bramble's own whose content root may trust: nobody else can write there.
//!
//! `/var/lib/bramble` belongs to the agent's user, who parses the network. What root reads back from below it
//! must be root's own, so the directory is opened once, its owner is looked at, and links are never followed.
#![allow(clippy::disallowed_methods, reason = "the door")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, fstat, mkdirat};
use nix::unistd::{fsync, ftruncate, geteuid};

use super::write::{HostMut, NotDone, failpoint};
use super::{LARGEST, errno_of};

/// The directory, opened.
#[derive(Debug)]
pub struct Vault {
    directory: OwnedFd,
    path: String,
}

/// Held by the one who may write; it ends with the process, however that ends.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, never read")] Flock<File>);

/// A file that only grows, line by line; each line is on disk when [`Journal::add`] returns.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: String,
}

impl Vault {
    /// Opens the directory at `path`, and makes it where it is missing.
    pub fn open(host: &HostMut, path: &str) -> Result<Vault, NotDone> {
        for directory in host.missing_directories(&format!("{path}/x")) {
            host.make_directory(&directory)?;
        }
        let failed = |errno| NotDone::errno("opening", path, errno);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let directory = host.host().open(path, flags).map_err(failed)?;
        let status = fstat(&directory).map_err(failed)?;
        if status.st_uid != geteuid().as_raw() || status.st_mode & 0o022 != 0 {
            return Err(NotDone::new(
                "opening",
                path,
                "somebody else may write there, so what it holds cannot be trusted",
                match geteuid().is_root() {
                    true => format!("look at it (ls -lan {path}) and move it away"),
                    false => "run it as root, with sudo".into(),
                },
            ));
        }
        Ok(Vault { directory, path: path.into() })
    }

    /// Takes the lock, or says the id of the process that holds it.
    pub fn lock(&self) -> Result<Lock, NotDone> {
        let failed = |errno| NotDone::errno("locking", &self.path, errno);
        let file = self.open_file("lock", OFlag::O_RDWR | OFlag::O_CREAT, 0o644).map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                let pid = std::process::id().to_string();
                ftruncate(&*lock, 0).map_err(failed)?;
                lock.write_all(pid.as_bytes()).map_err(|error| failed(errno_of(&error)))?;
                Ok(Lock(lock))
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                // Who has just taken it is about to write who it is. Without that the sentence is as true.
                for _ in 0..20 {
                    let _ = file.read_to_string(&mut pid);
                    if !pid.is_empty() {
                        break;
                    }
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                let why = match pid.trim() {
                    "" => "another bramble changes this host now".to_owned(),
                    pid => format!("another bramble (process {pid}) changes this host now"),
                };
                Err(NotDone::new("locking", &self.path, why, "wait until it has ended, then run it again"))
            }
            Err((_, errno)) => Err(failed(errno)),
        }
    }

    /// The names in it, sorted.
    pub fn names(&self) -> Result<Vec<String>, NotDone> {
        let failed = |errno| NotDone::errno("listing", &self.path, errno);
        let directory = self.open_fd(".", OFlag::O_RDONLY | OFlag::O_DIRECTORY, 0).map_err(failed)?;
        let mut names = Vec::new();
        for entry in Dir::from_fd(directory).map_err(failed)?.iter() {
            names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
        }
        names.retain(|name| name != "." && name != "..");
        names.sort_unstable();
        Ok(names)
    }

    /// The content of a file, or `None` when there is none.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, NotDone> {
        let failed = |errno| NotDone::errno("reading", &format!("{}/{name}", self.path), errno);
        let file = match self.open_file(name, OFlag::O_RDONLY | OFlag::O_NONBLOCK, 0) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
            file => file.map_err(failed)?,
        };
        let mut bytes = Vec::new();
        file.take(LARGEST * 4).read_to_end(&mut bytes).map_err(|error| failed(errno_of(&error)))?;
        Ok(Some(bytes))
    }

    /// Makes a directory in it.
    pub fn make(&self, name: &str) -> Result<(), NotDone> {
        let failed = |errno| NotDone::errno("making", &format!("{}/{name}", self.path), errno);
        failpoint();
        mkdirat(&self.directory, name, Mode::from_bits_truncate(0o755)).map_err(failed)?;
        failpoint();
        fsync(&self.directory).map_err(failed)
    }

    /// Brings a file to disk that nobody else may read; one of that name is overwritten.
    pub fn keep(&self, folder: &str, name: &str, bytes: &[u8]) -> Result<(), NotDone> {
        let path = format!("{folder}/{name}");
        let failed = |errno| NotDone::errno("writing", &format!("{}/{path}", self.path), errno);
        failpoint();
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
        let mut file = self.open_file(&path, flags, 0o600).map_err(failed)?;
        failpoint();
        file.write_all(bytes).map_err(|error| failed(errno_of(&error)))?;
        failpoint();
        fsync(&file).map_err(failed)?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        fsync(self.open_fd(folder, flags, 0).map_err(failed)?).map_err(failed)
    }

    /// Opens a journal for more lines. A last line that has no end was cut off while it was written, and
    /// what it announced was not begun: it is taken away.
    pub fn journal(&self, folder: &str, name: &str) -> Result<Journal, NotDone> {
        let path = format!("{folder}/{name}");
        let failed = |errno| NotDone::errno("writing", &format!("{}/{path}", self.path), errno);
        failpoint();
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_APPEND;
        let mut file = self.open_file(&path, flags, 0o644).map_err(failed)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|error| failed(errno_of(&error)))?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if whole < bytes.len() {
            failpoint();
            ftruncate(&file, whole as i64).map_err(failed)?;
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        fsync(self.open_fd(folder, flags, 0).map_err(failed)?).map_err(failed)?;
        Ok(Journal { file, path: format!("{}/{path}", self.path) })
    }

    fn open_file(&self, name: &str, flags: OFlag, mode: u32) -> Result<File, Errno> {
        self.open_fd(name, flags, mode).map(File::from)
    }

    fn open_fd(&self, name: &str, flags: OFlag, mode: u32) -> Result<OwnedFd, Errno> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .mode(Mode::from_bits_truncate(mode))
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        openat2(&self.directory, name, how)
    }
}

impl Journal {
    /// Adds one line; it is on disk afterwards.
    pub fn add(&mut self, line: &str) -> Result<(), NotDone> {
        let (first, second) = line.as_bytes().split_at(line.len() / 2);
        let write = |file: &mut File| {
            failpoint();
            file.write_all(first)?;
            failpoint();
            file.write_all(second)?;
            file.write_all(b"\n")?;
            failpoint();
            file.sync_all()
        };
        let failed = |error: io::Error| NotDone::errno("writing", &self.path, errno_of(&error));
        let length = self.file.metadata().map_err(failed)?.len();
        write(&mut self.file).map_err(|error| {
            // Half a line would spoil the next one; if this fails too, the next run takes it away.
            let _ = self.file.set_len(length);
            failed(error)
        })
    }
}
