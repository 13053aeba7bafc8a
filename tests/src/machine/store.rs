//! What machines are made of, kept between runs: roots, kernels, images and snapshots, each with its recipe.

use std::{
    fs::{self, File},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::statvfs::statvfs,
};

/// What all machines together take on disk while they are built, in bytes.
const ROOM: u64 = 6 << 30;

/// The folder with everything; cargo's target folder has it.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
    say: fn(&str),
}

impl Store {
    /// Uses `target/machine`; `say` is told what is being made, one line each.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn within(target: &Path, say: fn(&str)) -> Result<Self> {
        let folder = target.join("machine");
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(Self { folder: folder.canonicalize()?, say })
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Bytes on disk per part, the largest first.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn usage(&self) -> Result<Vec<(String, u64)>> {
        let mut parts = Vec::new();
        for entry in fs::read_dir(&self.folder)?.flatten() {
            parts.push((entry.file_name().to_string_lossy().into_owned(), bytes_on_disk(&entry.path())));
        }
        parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        Ok(parts)
    }

    /// Why nothing can be built here, when the disk is too full.
    pub fn lacks_room(&self) -> Option<String> {
        let Ok(disk) = statvfs(&self.folder) else {
            return Some(format!("cannot tell how much room {} has", self.folder.display()));
        };
        let free = disk.fragment_size() * disk.blocks_available();
        let used: u64 = self.usage().unwrap_or_default().iter().map(|(_, bytes)| bytes).sum();
        (free + used < ROOM).then(|| {
            let gigabytes = |bytes: u64| bytes as f64 / f64::from(1 << 30);
            format!("needs {:.0} GB of disk, {:.1} are free", gigabytes(ROOM), gigabytes(free))
        })
    }

    /// Waits until nobody else builds; released when dropped.
    pub(super) fn lock(&self) -> Result<Flock<File>> {
        let path = self.path("lock");
        let file = File::create(&path).with_context(|| format!("making {}", path.display()))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error).context("locking the machines")
    }

    /// The thing called `name`, made by `make` at the path that it is given, unless it is there already and was made by
    /// the same recipe: the text from which `make` works, with everything in it that makes a difference.
    pub(super) fn made(
        &self,
        name: &str,
        recipe: &str,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let path = self.path(name);
        let recipe_file = self.path(&format!("{name}.recipe"));
        if path.exists() && fs::read_to_string(&recipe_file).is_ok_and(|text| text == recipe) {
            return Ok(path);
        }
        let new = self.path(&format!("{name}.new"));
        for old in [&recipe_file, &path, &new] {
            remove(old)?;
        }
        fs::create_dir_all(path.parent().context("a name in the store has a folder")?)?;
        (self.say)(&format!("making {name}"));
        let began = Instant::now();
        make(&new).with_context(|| format!("making {name}"))?;
        fs::rename(&new, &path).with_context(|| format!("keeping {name}"))?;
        fs::write(&recipe_file, recipe)?;
        (self.say)(&format!("made {name} in {:.1} s", began.elapsed().as_secs_f64()));
        Ok(path)
    }

    /// Whether a thing is there, by whatever recipe.
    pub(super) fn has(&self, name: &str) -> bool {
        self.path(&format!("{name}.recipe")).exists()
    }

    /// A figure that was kept.
    pub(super) fn note(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.path(&format!("notes/{name}"))).ok()
    }

    /// Keeps a figure for people who ask later.
    pub(super) fn keep_note(&self, name: &str, text: &str) -> Result<()> {
        fs::create_dir_all(self.path("notes"))?;
        Ok(fs::write(self.path(&format!("notes/{name}")), text)?)
    }

    /// Forgets one thing, so that it is made again.
    pub(super) fn forget(&self, name: &str) -> Result<()> {
        remove(&self.path(&format!("{name}.recipe")))
    }

    /// A folder for one run's disks, with what killed runs left behind cleared away first.
    pub(super) fn scratch(&self) -> Result<Scratch> {
        let runs = self.path("run");
        fs::create_dir_all(&runs)?;
        for entry in fs::read_dir(&runs)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let owner = name.split('-').next().unwrap_or_default();
            if !Path::new("/proc").join(owner).exists() {
                remove(&entry.path())?;
            }
        }
        for number in 0..u16::MAX {
            let path = runs.join(format!("{}-{number}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Scratch(path)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("making {}", path.display())),
            }
        }
        anyhow::bail!("{} is full of runs", runs.display())
    }
}

/// A folder that is gone when this is dropped.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is cleared away by the next run.
        let _ = remove(&self.0);
    }
}

/// Removes a file or a folder with everything in it; one that is not there is removed already.
pub(super) fn remove(path: &Path) -> Result<()> {
    let Ok(about) = fs::symlink_metadata(path) else { return Ok(()) };
    ensure!(
        !about.file_type().is_block_device(),
        "{} is a device; the machines' folder has none",
        path.display()
    );
    let removed = if about.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.with_context(|| format!("removing {}", path.display()))
}

fn bytes_on_disk(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(about) = fs::symlink_metadata(path) else { return 0 };
    let own = about.blocks() * 512;
    if !about.is_dir() {
        return own;
    }
    own + fs::read_dir(path).into_iter().flatten().flatten().map(|e| bytes_on_disk(&e.path())).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_is_made_once_per_recipe_and_never_half() {
        let target = std::env::temp_dir().join(format!("bed-store-{}", std::process::id()));
        let store = Store::within(&target, |_| ()).unwrap();
        let write = |text: &'static str| move |path: &Path| Ok(fs::write(path, text)?);
        let path = store.made("a/thing", "v1", write("one")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
        store.made("a/thing", "v1", write("two")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one", "the recipe is the same");
        let broken = store.made("a/thing", "v2", |path| {
            fs::write(path, "half")?;
            anyhow::bail!("no room")
        });
        assert!(format!("{:#}", broken.unwrap_err()).contains("making a/thing: no room"));
        assert!(!path.exists(), "half a thing is none");
        store.made("a/thing", "v2", write("three")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "three");
        let scratch = store.scratch().unwrap();
        fs::write(scratch.path("disk"), "x").unwrap();
        let folder = scratch.path("");
        drop(scratch);
        assert!(!folder.exists());
        fs::remove_dir_all(&target).unwrap();
    }
}
