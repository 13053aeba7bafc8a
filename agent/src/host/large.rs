//! Files too large to be held in memory: filled piece by piece beside the place where they are to stand, gone on with
//! after a cut, and put there whole. What is begun bears the hash of what it is to become: it is never gone on with as
//! another file.
#![allow(clippy::disallowed_methods, reason = "the door")]

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::fcntl::{OFlag, PosixFadviseAdvice, openat, posix_fadvise, renameat};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::fsync;
use sha2::{Digest, Sha256};

use super::write::{HostMut, NotDone, failpoint};
use super::{Host, Unreadable, errno_of};

/// What the name of a file ends with that is not whole yet.
const PARTIAL: &str = ".bramble-part";

/// A file that is being filled.
#[derive(Debug)]
pub struct Partial {
    directory: OwnedFd,
    name: String,
    /// Its name until it is whole.
    begun: String,
    path: String,
    file: File,
    length: u64,
    hash: Sha256,
}

impl Host {
    /// What a file hashes to, in hexadecimal digits.
    pub fn sha256(&self, path: &str) -> Result<String, Unreadable> {
        let (mut file, _) = self.file(path)?;
        let mut hash = Sha256::new();
        absorb(&mut file, &mut hash).map_err(|error| self.unreadable(path, errno_of(&error)))?;
        Ok(digits(hash))
    }

    /// A file of any size, to be read from its beginning.
    pub fn reader(&self, path: &str) -> Result<impl Read + use<>, Unreadable> {
        self.file(path).map(|(file, _)| Passing { file, at: 0, kept: 0 })
    }

    /// How many bytes a file has.
    pub fn length(&self, path: &str) -> Result<u64, Unreadable> {
        self.file(path).map(|(_, length)| length)
    }
}

/// A file that is read once: what was read need not stay in memory, where it would count as this process's.
struct Passing {
    file: File,
    at: i64,
    /// How much of it the kernel was told to let go.
    kept: i64,
}

impl Read for Passing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read(buffer)?;
        self.at += length as i64;
        if length == 0 || self.at - self.kept >= 1 << 20 {
            // Advice: that it is not taken changes nothing.
            let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            let _ = posix_fadvise(&self.file, self.kept, self.at - self.kept, advice);
            self.kept = self.at;
        }
        Ok(length)
    }
}

impl HostMut {
    /// Begins a file that is to stand at `path` and to have this hash, or goes on with it where it was cut off. What was
    /// begun there to become another is removed.
    pub fn partial(&self, path: &str, sha256: &str) -> Result<Partial, NotDone> {
        let failed = |errno| NotDone::errno("writing", path, errno);
        self.remove_begun(path, Some(sha256))?;
        let (directory, name) = self.place(path).map_err(failed)?;
        let begun = begun(name, sha256);
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        failpoint();
        let opened = openat(&directory, begun.as_str(), flags, Mode::from_bits_truncate(0o600));
        let mut file = File::from(opened.map_err(failed)?);
        let mut hash = Sha256::new();
        let length = absorb(&mut file, &mut hash).map_err(|error| failed(errno_of(&error)))?;
        Ok(Partial { directory, name: name.into(), begun, path: path.into(), file, length, hash })
    }

    /// Removes what was begun for `path`; that there is nothing is as good.
    pub fn remove_partial(&self, path: &str) -> Result<(), NotDone> {
        self.remove_begun(path, None)
    }

    /// Removes all that was begun for `path`, but what is to have this hash.
    fn remove_begun(&self, path: &str, but: Option<&str>) -> Result<(), NotDone> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let names = match self.host().list(parent) {
            Err(absent) if absent.is_absence() => return Ok(()),
            names => names.map_err(NotDone::from)?,
        };
        let is_of = |other: &String| {
            let rest = other.strip_prefix(&format!(".{name}.")).and_then(|rest| rest.strip_suffix(PARTIAL));
            rest.is_some_and(|hash| hash.bytes().all(|byte| byte.is_ascii_hexdigit()) && but != Some(hash))
        };
        names
            .iter()
            .filter(|other| is_of(other))
            .try_for_each(|other| self.remove(&format!("{parent}/{other}")))
    }
}

impl Partial {
    /// How many bytes it has.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// What it hashes to so far, in hexadecimal digits.
    pub fn sha256(&self) -> String {
        digits(self.hash.clone())
    }

    /// Its first bytes, at most `length`.
    pub fn head(&self, length: usize) -> Result<Vec<u8>, NotDone> {
        let mut head = vec![0; length];
        let read = self.file.read_at(&mut head, 0).map_err(|error| self.failed(&error))?;
        head.truncate(read);
        Ok(head)
    }

    /// Adds a piece at its end.
    pub fn add(&mut self, piece: &[u8]) -> Result<(), NotDone> {
        self.file.write_all(piece).map_err(|error| self.failed(&error))?;
        self.hash.update(piece);
        self.length += piece.len() as u64;
        Ok(())
    }

    /// Makes it empty again.
    pub fn restart(&mut self) -> Result<(), NotDone> {
        let begin = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        begin.map_err(|error| self.failed(&error))?;
        (self.length, self.hash) = (0, Sha256::new());
        Ok(())
    }

    /// Puts it at its place, whole and on disk.
    pub fn finish(self, mode: u32) -> Result<(), NotDone> {
        let failed = |errno| NotDone::errno("writing", &self.path, errno);
        fchmod(&self.file, Mode::from_bits_truncate(mode)).map_err(failed)?;
        fsync(&self.file).map_err(failed)?;
        failpoint();
        renameat(&self.directory, self.begun.as_str(), &self.directory, self.name.as_str())
            .map_err(failed)?;
        failpoint();
        fsync(&self.directory).map_err(failed)
    }

    fn failed(&self, error: &io::Error) -> NotDone {
        NotDone::errno("writing", &self.path, errno_of(error))
    }
}

fn begun(name: &str, sha256: &str) -> String {
    format!(".{name}.{sha256}{PARTIAL}")
}

/// Takes all of a file into a hash; how many bytes it was.
fn absorb(file: &mut File, hash: &mut Sha256) -> io::Result<u64> {
    let (mut piece, mut all) = (vec![0; 1 << 16], 0);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(all),
            length => {
                hash.update(&piece[..length]);
                all += length as u64;
            }
        }
    }
}

fn digits(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_large_file_is_gone_on_with_and_appears_whole() {
        let dir = std::env::temp_dir().join(format!("bramble-large-{}", std::process::id()));
        fs::create_dir_all(dir.join("usr/bin")).unwrap();
        let host = HostMut::tree(&dir).unwrap();
        let mut first = host.partial("/usr/bin/x", "ab").unwrap();
        first.add(b"abc").unwrap();
        drop(first);
        assert!(!dir.join("usr/bin/x").exists());
        let mut second = host.partial("/usr/bin/x", "ab").unwrap();
        assert_eq!(second.length(), 3);
        second.add(b"def").unwrap();
        assert_eq!(second.head(4).unwrap(), b"abcd");
        let hash = second.sha256();
        second.finish(0o755).unwrap();
        assert_eq!(fs::read(dir.join("usr/bin/x")).unwrap(), b"abcdef");
        assert_eq!(host.host().sha256("/usr/bin/x").unwrap(), hash);
        assert_eq!(host.host().mode("/usr/bin/x").unwrap(), 0o755);
        assert_eq!(fs::read_dir(dir.join("usr/bin")).unwrap().count(), 1);
        let mut third = host.partial("/usr/bin/x", "ab").unwrap();
        third.add(b"zzz").unwrap();
        third.restart().unwrap();
        third.add(b"a").unwrap();
        assert_eq!((third.length(), third.head(9).unwrap()), (1, b"a".to_vec()));
        drop(third);
        // Another file for the same place is begun anew, and that of another place is not touched.
        let beside = host.partial("/usr/bin/x.y", "ab").unwrap();
        assert_eq!(host.partial("/usr/bin/x", "cd").unwrap().length(), 0);
        assert_eq!(fs::read_dir(dir.join("usr/bin")).unwrap().count(), 3);
        drop(beside);
        host.remove_partial("/usr/bin/x.y").unwrap();
        host.remove_partial("/usr/bin/x").unwrap();
        host.remove_partial("/usr/bin/x").unwrap();
        assert_eq!(fs::read_dir(dir.join("usr/bin")).unwrap().count(), 1);
        fs::remove_dir_all(&dir).unwrap();
    }
}
