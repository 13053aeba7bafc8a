//! What is asked of a host, noted, so that exactly that can be captured: whoever reads the capture finds what was found.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::{errno::Errno, fcntl::OFlag};

use super::Host;

/// What was asked of one path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked {
    /// Its content.
    pub read: bool,
    /// Its names.
    pub list: bool,
    /// Where it points to.
    pub link: bool,
    /// It was there.
    pub found: bool,
    /// It was not there.
    pub missing: bool,
}

/// By path.
#[derive(Debug, Default)]
pub(super) struct Record(Mutex<BTreeMap<String, Asked>>);

impl Record {
    fn paths(&self) -> MutexGuard<'_, BTreeMap<String, Asked>> {
        // A panic elsewhere leaves the map whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, path: &str, flags: OFlag, error: Option<Errno>) {
        let mut paths = self.paths();
        let asked = paths.entry(format!("/{}", path.trim_matches('/'))).or_default();
        asked.missing |= matches!(error, Some(Errno::ENOENT | Errno::ENOTDIR));
        if error.is_none() {
            asked.found = true;
            asked.list |= flags.contains(OFlag::O_DIRECTORY);
            asked.link |= flags.contains(OFlag::O_PATH | OFlag::O_NOFOLLOW);
            asked.read |= !flags.intersects(OFlag::O_DIRECTORY | OFlag::O_PATH);
        }
    }
}

impl Host {
    /// The same machine, and from now on what is asked of it is noted.
    pub fn recording(mut self) -> Host {
        self.record = Some(Record::default());
        self
    }

    /// What was asked, by path; nothing unless it is noted. In a tree, what was not captured counts as missing only where
    /// the tree says that the machine did not have it.
    pub fn asked(&self) -> BTreeMap<String, Asked> {
        let mut paths = self.record.as_ref().map(|record| record.paths().clone()).unwrap_or_default();
        if !self.is_live() {
            for (path, asked) in &mut paths {
                asked.missing &= self.listed_absent(path);
            }
        }
        paths
    }
}
