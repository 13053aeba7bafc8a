//! The door to the machine, writing half: files replaced whole, directories, kernel settings, mounts, commands.
//!
//! Only `apply` and `revert` make one. Every path is resolved below the root by the kernel, as in the reading
//! half. A file is never seen half written: its new content is made beside it, brought to disk, and renamed
//! over it. On a captured tree files are written, and nothing of the running machine is touched.
#![allow(clippy::disallowed_methods, reason = "the door")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat, renameat};
use nix::mount::{MntFlags, MsFlags};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, mkdirat};
use nix::sys::statfs::{MSDOS_SUPER_MAGIC, fstatfs};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fsync, getegid, geteuid, symlinkat, unlinkat};
use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fremovexattr, fsetxattr};

use super::{Host, LARGEST, NotATree, Unreadable, errno_of};

/// What every name of a file that is being made ends with. Nothing reads files of this name.
const TEMPORARY: &str = ".bramble-new";
/// Attributes that the kernel keeps about a file's own content: a copy of them would be wrong.
const MEASURED: [&str; 2] = ["security.ima", "security.evm"];

/// A machine, opened for writing.
#[derive(Debug)]
pub struct HostMut {
    host: Host,
}

/// What stands at a path: all that is put back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// A regular file.
    File {
        /// Its content.
        bytes: Vec<u8>,
        /// What else the file system keeps; `None` on FAT, which keeps nothing.
        meta: Option<Meta>,
    },
    /// A symbolic link.
    Link {
        /// Where it points to.
        target: String,
    },
}

/// Owner, permissions and extended attributes (ACLs and security labels among them).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// The twelve bits of permissions.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Values by name.
    pub attributes: BTreeMap<String, Vec<u8>>,
}

impl Image {
    /// Whether both are one in all that a person or bramble writes. Labels of the security module are left
    /// out: a relabelling is nobody's edit.
    pub fn same(&self, other: &Image) -> bool {
        let written = |meta: &Meta| {
            let mut meta = meta.clone();
            meta.attributes.retain(|name, _| !name.starts_with("security."));
            meta
        };
        match (self, other) {
            (Image::File { bytes, meta: Some(a) }, Image::File { bytes: others, meta: Some(b) }) => {
                bytes == others && written(a) == written(b)
            }
            (Image::File { bytes, .. }, Image::File { bytes: others, .. }) => bytes == others,
            (Image::Link { target }, Image::Link { target: other }) => target == other,
            _ => false,
        }
    }

    /// This file with another content.
    pub fn with(&self, bytes: Vec<u8>) -> Image {
        let mut meta = match self {
            Image::File { meta, .. } => meta.clone(),
            Image::Link { .. } => None,
        };
        if let Some(meta) = &mut meta {
            meta.attributes.retain(|name, _| !MEASURED.contains(&name.as_str()));
        }
        Image::File { bytes, meta }
    }
}

/// Something that was to be done and was not: one cause and one next step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{doing} {object}: {why}")]
pub struct NotDone {
    /// What was being done, as "writing".
    pub doing: &'static str,
    /// To which object: a path, or a command.
    pub object: String,
    /// The cause.
    pub why: String,
    /// What a person does next.
    pub next: String,
}

impl From<Unreadable> for NotDone {
    fn from(unreadable: Unreadable) -> Self {
        let next = unreadable.next();
        Self::new("reading", unreadable.path, unreadable.why.to_string(), next)
    }
}

impl NotDone {
    /// With its cause in words.
    pub fn new(
        doing: &'static str,
        object: impl Into<String>,
        why: impl Into<String>,
        next: impl Into<String>,
    ) -> NotDone {
        NotDone { doing, object: object.into(), why: why.into(), next: next.into() }
    }

    /// With the kernel's answer as its cause.
    pub(super) fn errno(doing: &'static str, object: &str, errno: Errno) -> NotDone {
        let next = match errno {
            Errno::ENOSPC | Errno::EDQUOT => format!("make room there (df -h {object}), then run it again"),
            Errno::EROFS => {
                format!("make it writable (findmnt -T {object} names the mount), then run it again")
            }
            Errno::EACCES | Errno::EPERM if geteuid().is_root() => {
                format!("find what protects it (lsattr -d {object}; ls -ld {object}), then run it again")
            }
            Errno::EACCES | Errno::EPERM => "run it as root, with sudo".into(),
            Errno::EEXIST => format!("nothing of bramble's left it: move {object} away, then run it again"),
            _ => format!("look at what is there: sudo ls -ld {object}"),
        };
        NotDone::new(doing, object, errno.desc().to_lowercase(), next)
    }
}

/// What a program said.
#[derive(Debug)]
pub struct Answer {
    /// Whether it ended with 0.
    pub good: bool,
    /// Standard output.
    pub output: String,
}

impl HostMut {
    /// The machine this runs on.
    pub fn live() -> Result<HostMut, Unreadable> {
        Ok(HostMut { host: Host::live()? })
    }

    /// A tree; `/` is the machine itself.
    pub fn tree(dir: &Path) -> Result<HostMut, NotATree> {
        Ok(HostMut { host: Host::tree(dir)? })
    }

    /// The reading half.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// What stands at a path now; the last part is not followed when it is a link.
    pub fn image(&self, path: &str) -> Result<Option<Image>, NotDone> {
        let failed = |errno| NotDone::errno("reading", path, errno);
        let found = match self.host.open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
            found => found.map_err(failed)?,
        };
        let refuse = |why: &str| {
            let next = format!("move {path} away (ls -ld {path}), then run it again");
            Err(NotDone::new("writing", path, why, next))
        };
        let status = fstat(&found).map_err(failed)?;
        match kind(status.st_mode) {
            SFlag::S_IFLNK => {
                let target = readlinkat(&found, "").map_err(failed)?.to_string_lossy().into_owned();
                return Ok(Some(Image::Link { target }));
            }
            SFlag::S_IFREG if status.st_nlink > 1 => {
                return refuse("it has more than one name (hard links), and would part from the others");
            }
            SFlag::S_IFREG => {}
            _ => return refuse("it is not a regular file"),
        }
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let file = File::from(self.host.open(path, flags).map_err(failed)?);
        let mut bytes = Vec::new();
        let read = (&file).take(LARGEST + 1).read_to_end(&mut bytes);
        read.map_err(|error| failed(errno_of(&error)))?;
        if bytes.len() as u64 > LARGEST {
            return refuse("it is larger than any file of this kind");
        }
        let status = fstat(&file).map_err(failed)?;
        let meta = match is_fat(&file).map_err(failed)? {
            true => None,
            false => Some(Meta {
                mode: status.st_mode & 0o7777,
                uid: status.st_uid,
                gid: status.st_gid,
                attributes: attributes(&file).map_err(failed)?,
            }),
        };
        Ok(Some(Image::File { bytes, meta }))
    }

    /// A file that does not exist yet: ours, with these permissions.
    pub fn fresh(&self, path: &str, bytes: Vec<u8>, mode: u32) -> Image {
        // A directory that cannot be opened yet is about to be made, beside others of its file system.
        let fat = self.place(path).and_then(|(directory, _)| is_fat(&directory)).unwrap_or(false);
        let meta =
            Meta { mode, uid: geteuid().as_raw(), gid: getegid().as_raw(), attributes: BTreeMap::new() };
        Image::File { bytes, meta: (!fat).then_some(meta) }
    }

    /// The path of the file that is meant when links may lead to it, as if the root were `/`; `None` when
    /// nothing is there.
    pub fn real(&self, path: &str) -> Result<Option<String>, NotDone> {
        let failed = |errno| NotDone::errno("reading", path, errno);
        let found = match self.host.open(path, OFlag::O_PATH) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
            found => found.map_err(failed)?,
        };
        let name = |fd: &OwnedFd| nix::fcntl::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()).as_str());
        let (found, root) = (name(&found).map_err(failed)?, name(&self.host.root).map_err(failed)?);
        let below = Path::new(&found).strip_prefix(&root).ok().and_then(Path::to_str);
        let below = below.ok_or_else(|| {
            NotDone::new("reading", path, "it leads out of the tree", "mend the link, then run it again")
        })?;
        Ok(Some(format!("/{below}")))
    }

    /// Replaces what is at `path`, or makes it: afterwards, and after a loss of power, there is the old or
    /// the new, whole. (FAT promises less: see the copy beside the boot file.)
    pub fn put(&self, path: &str, image: &Image) -> Result<(), NotDone> {
        let failed = |errno| NotDone::errno("writing", path, errno);
        let (directory, name) = self.place(path).map_err(failed)?;
        let temporary = temporary(name);
        let file = match image {
            Image::Link { target } => {
                failpoint();
                symlinkat(target.as_str(), &directory, temporary.as_str())
                    .map_err(|errno| NotDone::errno("making", &beside(path), errno))?;
                None
            }
            Image::File { bytes, meta } => {
                failpoint();
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
                let file = openat(
                    &directory,
                    temporary.as_str(),
                    flags | OFlag::O_CLOEXEC,
                    Mode::from_bits_truncate(0o600),
                )
                .map_err(|errno| NotDone::errno("making", &beside(path), errno))?;
                let file = File::from(file);
                if let Err(errno) = fill(&file, bytes, meta.as_ref()) {
                    // The cause is told; the next run removes what this cannot.
                    let _ = unlinkat(&directory, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
                    return Err(failed(errno));
                }
                Some(file)
            }
        };
        failpoint();
        if let Err(errno) = renameat(&directory, temporary.as_str(), &directory, name) {
            let _ = unlinkat(&directory, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
            return Err(failed(errno));
        }
        failpoint();
        // On FAT the entry of a name holds where the content lies, and goes to disk with the file, not with the directory: until
        // then the name leads to where the old content lay, which is free by now.
        if let Some(file) = file {
            fsync(file).map_err(failed)?;
        }
        failpoint();
        fsync(&directory).map_err(failed)
    }

    /// Removes the file or link at `path`; that it is gone already is as good.
    pub fn remove(&self, path: &str) -> Result<(), NotDone> {
        let failed = |errno| NotDone::errno("removing", path, errno);
        let (directory, name) = match self.place(path) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            place => place.map_err(failed)?,
        };
        failpoint();
        match unlinkat(&directory, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::ENOENT) => return Ok(()),
            removed => removed.map_err(failed)?,
        }
        failpoint();
        fsync(&directory).map_err(failed)
    }

    /// Removes what a run that was killed was about to rename to `path`.
    pub fn remove_temporary(&self, path: &str) -> Result<(), NotDone> {
        self.remove(&beside(path))
    }

    /// The directories above `path` that do not exist, the highest first.
    pub fn missing_directories(&self, path: &str) -> Vec<String> {
        let above = |path: &str| path.rsplit_once('/').map(|(parent, _)| parent.to_owned());
        let mut missing = Vec::new();
        let mut next = above(path);
        while let Some(directory) = next.filter(|directory| !directory.is_empty()) {
            if self.host.open(&directory, OFlag::O_PATH | OFlag::O_DIRECTORY).is_ok() {
                break;
            }
            next = above(&directory);
            missing.insert(0, directory);
        }
        missing
    }

    /// Makes one directory; that it exists already is as good.
    pub fn make_directory(&self, path: &str) -> Result<(), NotDone> {
        let failed = |errno| NotDone::errno("making", path, errno);
        let (parent, name) = self.place(path).map_err(failed)?;
        failpoint();
        match mkdirat(&parent, name, Mode::from_bits_truncate(0o755)) {
            Err(Errno::EEXIST) => return Ok(()),
            made => made.map_err(failed)?,
        }
        // Whatever the caller's umask hides.
        let made = self.host.open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(failed)?;
        fchmod(&made, Mode::from_bits_truncate(0o755)).map_err(failed)?;
        failpoint();
        fsync(&parent).map_err(failed)
    }

    /// Removes a directory that is empty; says whether it is gone. A mount point stays, and so does a link to one.
    pub fn remove_directory(&self, path: &str) -> Result<bool, NotDone> {
        let failed = |errno| NotDone::errno("removing", path, errno);
        let (parent, name) = match self.place(path) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(true),
            place => place.map_err(failed)?,
        };
        failpoint();
        match unlinkat(&parent, name, UnlinkatFlags::RemoveDir) {
            Err(Errno::ENOENT) => return Ok(true),
            Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::EBUSY | Errno::ENOTDIR) => return Ok(false),
            removed => removed.map_err(failed)?,
        }
        failpoint();
        fsync(&parent).map_err(failed)?;
        Ok(true)
    }

    /// Writes a kernel setting; `path` is below `/proc/sys`.
    pub fn set(&self, path: &str, value: &str) -> Result<(), NotDone> {
        self.of_the_machine("setting", path)?;
        failpoint();
        let failed = |errno| NotDone::errno("setting", path, errno);
        let mut file = File::from(self.host.open(path, OFlag::O_WRONLY).map_err(failed)?);
        file.write_all(value.as_bytes()).map_err(|error| failed(errno_of(&error)))
    }

    /// Mounts a kernel file system, as systemd does.
    pub fn mount(&self, kind: &str, point: &str) -> Result<(), NotDone> {
        self.of_the_machine("mounting", point)?;
        failpoint();
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        nix::mount::mount(Some(kind), point, Some(kind), flags, None::<&str>)
            .map_err(|errno| NotDone::errno("mounting", point, errno))
    }

    /// Takes a mount away; that it is gone already is as good.
    pub fn unmount(&self, point: &str) -> Result<(), NotDone> {
        self.of_the_machine("unmounting", point)?;
        failpoint();
        match nix::mount::umount2(point, MntFlags::UMOUNT_NOFOLLOW) {
            Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
            gone => gone.map_err(|errno| NotDone::errno("unmounting", point, errno)),
        }
    }

    /// Shares a mount with other namespaces, or keeps it to this one. Mounts below it stay as they are.
    pub fn share(&self, point: &str, shared: bool) -> Result<(), NotDone> {
        self.of_the_machine("sharing", point)?;
        failpoint();
        let flag = if shared { MsFlags::MS_SHARED } else { MsFlags::MS_PRIVATE };
        nix::mount::mount(None::<&str>, point, None::<&str>, flag, None::<&str>)
            .map_err(|errno| NotDone::errno("sharing", point, errno))
    }

    /// Runs a program of the system and waits for it, at most `limit`; then it is ended.
    ///
    /// The one place where a program is started. It gets no input and no environment of ours.
    pub fn run(&self, argv: &[&str], limit: Duration) -> Result<Answer, NotDone> {
        let shown = argv.join(" ");
        self.of_the_machine("running", &shown)?;
        let failed = |why: String| NotDone::new("running", &shown, why, format!("sudo {shown}"));
        let Some((program, arguments)) = argv.split_first() else {
            return Err(failed("no program".into()));
        };
        failpoint();
        let mut child = Command::new(program)
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        // Read while it runs: one that says more than fits into a pipe would never end.
        let read = |pipe: Option<Box<dyn Read + Send>>| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                if let Some(pipe) = pipe {
                    let _ = pipe.take(LARGEST).read_to_end(&mut bytes);
                }
                String::from_utf8_lossy(&bytes).trim().to_owned()
            })
        };
        let output = read(child.stdout.take().map(|pipe| Box::new(pipe) as _));
        let complaint = read(child.stderr.take().map(|pipe| Box::new(pipe) as _));
        let deadline = Instant::now() + limit;
        let status = loop {
            match child.try_wait().map_err(|error| failed(error.to_string()))? {
                Some(status) => break status,
                None if Instant::now() > deadline => {
                    // It may have ended between the two looks.
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(failed(format!("no end after {} s", limit.as_secs())));
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let [output, complaint] = [output, complaint].map(|reader| reader.join().unwrap_or_default());
        tracing::debug!(command = shown, %status, complaint, "ran");
        Ok(Answer { good: status.success(), output: if output.is_empty() { complaint } else { output } })
    }

    /// Runs a program that must end with 0.
    pub fn succeed(&self, argv: &[&str], limit: Duration) -> Result<String, NotDone> {
        let answer = self.run(argv, limit)?;
        if answer.good {
            return Ok(answer.output);
        }
        let shown = argv.join(" ");
        let why = answer.output.lines().last().unwrap_or("it failed and did not say why").to_owned();
        Err(NotDone::new("running", &shown, why, format!("sudo {shown}")))
    }

    /// A tree has files and nothing that runs.
    fn of_the_machine(&self, doing: &'static str, object: &str) -> Result<(), NotDone> {
        match self.host.is_live() {
            true => Ok(()),
            false => {
                Err(NotDone::new(doing, object, "a tree has no running kernel", "run it on the machine"))
            }
        }
    }

    /// The directory that holds `path`, and the name in it.
    pub(super) fn place<'a>(&self, path: &'a str) -> Result<(OwnedFd, &'a str), Errno> {
        let (parent, name) = path.rsplit_once('/').ok_or(Errno::EINVAL)?;
        if matches!(name, "" | "." | "..") {
            return Err(Errno::EINVAL);
        }
        Ok((self.host.open(parent, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?, name))
    }
}

fn temporary(name: &str) -> String {
    format!(".{name}{TEMPORARY}")
}

/// The path of the temporary file of `path`.
fn beside(path: &str) -> String {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    format!("{parent}/{}", temporary(name))
}

fn kind(mode: u32) -> SFlag {
    SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits())
}

fn is_fat(file: impl AsFd) -> Result<bool, Errno> {
    Ok(fstatfs(file)?.filesystem_type() == MSDOS_SUPER_MAGIC)
}

/// Writes a new file to disk: content, owner, attributes, permissions.
fn fill(mut file: &File, bytes: &[u8], meta: Option<&Meta>) -> Result<(), Errno> {
    let errno = |error: io::Error| errno_of(&error);
    failpoint();
    let (first, second) = bytes.split_at(bytes.len() / 2);
    file.write_all(first).map_err(errno)?;
    failpoint();
    file.write_all(second).map_err(errno)?;
    failpoint();
    if let Some(meta) = meta {
        fchown(file, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))?;
        // A directory's default ACL is given to each new file in it.
        for name in attributes(file)?.keys() {
            if !meta.attributes.contains_key(name) && !name.starts_with("security.") {
                fremovexattr(file, name.as_str()).map_err(raw)?;
            }
        }
        for (name, value) in &meta.attributes {
            fsetxattr(file, name.as_str(), value, XattrFlags::empty()).map_err(raw)?;
        }
        fchmod(file, Mode::from_bits_truncate(meta.mode))?;
    }
    failpoint();
    fsync(file)
}

fn attributes(file: &File) -> Result<BTreeMap<String, Vec<u8>>, Errno> {
    // The kernel's limits, XATTR_LIST_MAX and XATTR_SIZE_MAX.
    let mut buffer = vec![0; 65536];
    let length = match flistxattr(file, &mut buffer[..]).map_err(raw) {
        Err(Errno::EOPNOTSUPP) => return Ok(BTreeMap::new()),
        length => length?,
    };
    let names = buffer[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let names: Vec<String> = names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    let mut attributes = BTreeMap::new();
    for name in names {
        let length = fgetxattr(file, name.as_str(), &mut buffer[..]).map_err(raw)?;
        attributes.insert(name, buffer[..length].to_vec());
    }
    Ok(attributes)
}

fn raw(errno: rustix::io::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error())
}

/// One more step of writing: with the feature `failpoints` the process kills itself at the step whose number
/// `BRAMBLE_FAILPOINT` holds.
#[cfg(feature = "failpoints")]
pub(super) fn failpoint() {
    use std::sync::atomic::{AtomicU32, Ordering};
    static STEP: AtomicU32 = AtomicU32::new(0);
    let step = STEP.fetch_add(1, Ordering::Relaxed) + 1;
    let fatal = std::env::var("BRAMBLE_FAILPOINT").ok().and_then(|number| number.parse().ok());
    if fatal == Some(step) {
        // The signal does not come back.
        let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::SIGKILL);
    }
}

/// One more step of writing; tests end the process at each.
#[cfg(not(feature = "failpoints"))]
pub(super) fn failpoint() {}
