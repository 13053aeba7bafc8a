//! The daemon's own directory: small files that must survive a restart. Nothing else of the machine is written here.
#![allow(clippy::disallowed_methods, reason = "the door")]

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

/// A directory that belongs to bramble alone.
#[derive(Debug)]
pub struct State {
    directory: PathBuf,
}

impl State {
    /// Uses `directory`; it is made when the first file is written.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
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
        fs::remove_dir_all(&directory).unwrap();
    }
}
