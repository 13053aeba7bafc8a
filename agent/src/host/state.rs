//! The daemon's own directory: small files that must survive a restart. Nothing else of the machine is written here.
#![allow(clippy::disallowed_methods, reason = "the door")]

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// A directory that belongs to bramble alone.
#[derive(Debug, Clone)]
pub struct State {
    directory: PathBuf,
}

impl State {
    /// Uses `directory`; it is made when the first file is written.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// How long the file system that holds the directory takes to make one block of 4 KiB last: the block is written over in
    /// place and synchronised as a database's log is. Blocks for as long.
    ///
    /// # Errors
    /// The directory cannot be written, or the drive fails.
    pub fn sync_time(&self) -> io::Result<Duration> {
        const BLOCK: [u8; 4096] = [0x5a; 4096];
        let path = self.directory.join("sync");
        if fs::metadata(&path).map_or(0, |known| known.len()) != BLOCK.len() as u64 {
            // Room that lasts, so that what is measured is the block alone and not the making of a file.
            fs::create_dir_all(&self.directory)?;
            let mut file = fs::File::create(&path)?;
            file.write_all(&BLOCK)?;
            file.sync_all()?;
        }
        let mut file = fs::OpenOptions::new().write(true).open(&path)?;
        let start = Instant::now();
        file.write_all(&BLOCK)?;
        file.sync_data()?;
        Ok(start.elapsed())
    }

    /// The file's text; `None` when there is no such file.
    ///
    /// # Errors
    /// Anything else that keeps it from being read.
    pub fn read(&self, name: &str) -> io::Result<Option<String>> {
        match fs::read_to_string(self.directory.join(name)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces the file as a whole: after a power cut there is the old text or the new one.
    ///
    /// # Errors
    /// The directory cannot be written, or is full; the old text is still there then.
    pub fn write(&self, name: &str, text: &str) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        let (path, new) = (self.directory.join(name), self.directory.join(format!(".{name}.new")));
        let mut file = fs::File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        fs::File::open(&self.directory)?.sync_all()
    }

    /// Removes the file, if it is there.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.directory.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_last_is_read() {
        let directory = std::env::temp_dir().join(format!("bramble-state-{}", std::process::id()));
        let state = State::new(&directory);
        assert_eq!(state.read("id").unwrap(), None);
        for text in ["one", "two"] {
            state.write("id", text).unwrap();
            assert_eq!(state.read("id").unwrap().as_deref(), Some(text));
        }
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        for _ in 0..2 {
            state.remove("id").unwrap();
            assert_eq!(state.read("id").unwrap(), None);
        }
        for _ in 0..2 {
            assert!(state.sync_time().unwrap() > Duration::ZERO);
        }
        assert_eq!(fs::metadata(directory.join("sync")).unwrap().len(), 4096);
        fs::remove_dir_all(&directory).unwrap();
    }
}
