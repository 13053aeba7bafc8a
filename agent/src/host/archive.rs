//! An archive that is written, as tar(5) in gzip, for whoever opened it alone. It replaces no file.
#![allow(clippy::disallowed_methods, reason = "the door")]

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use flate2::{Compression, write::GzEncoder};

/// An archive that grows.
pub struct Archive {
    tar: tar::Builder<GzEncoder<File>>,
    /// Of all that is in it, seconds since 1970.
    at: u64,
}

impl Archive {
    /// Begins one at a path where nothing is.
    ///
    /// # Errors
    /// Something is there, or nothing can be written there.
    pub fn create(path: &Path, at: jiff::Timestamp) -> io::Result<Archive> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let tar = tar::Builder::new(GzEncoder::new(file, Compression::default()));
        Ok(Archive { tar, at: at.as_second().try_into().unwrap_or_default() })
    }

    /// Adds a file; `path` is relative, with parents as needed.
    ///
    /// # Errors
    /// The disk is full, or fails; of all that is added.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let mut header = self.header(tar::EntryType::Regular, mode);
        header.set_size(content.len() as u64);
        self.tar.append_data(&mut header, path, content)
    }

    /// Adds a directory.
    ///
    /// # Errors
    /// See [`Archive::file`].
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        let mut header = self.header(tar::EntryType::Directory, 0o755);
        self.tar.append_data(&mut header, format!("{path}/"), io::empty())
    }

    /// Adds a link.
    ///
    /// # Errors
    /// See [`Archive::file`].
    pub fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        let mut header = self.header(tar::EntryType::Symlink, 0o777);
        self.tar.append_link(&mut header, path, target)
    }

    /// Ends it, on disk.
    ///
    /// # Errors
    /// See [`Archive::file`].
    pub fn end(self) -> io::Result<()> {
        self.tar.into_inner()?.finish()?.sync_all()
    }

    fn header(&self, kind: tar::EntryType, mode: u32) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        // What whoever unpacks it can read and remove.
        header.set_mode(mode | 0o600);
        header.set_mtime(self.at);
        header
    }
}
