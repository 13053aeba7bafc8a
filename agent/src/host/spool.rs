//! What happened and the broker does not have yet, kept across kill -9 and loss of power, with few writes.
//!
//! Two files of lines. The one in the runtime directory (memory) gets each line at once: it outlives the process. The one
//! in the state directory (disk) gets what is still unsettled [`BATCH`] after it happened, in one append with one
//! `fdatasync`, at most one per [`BATCH`]: it outlives a loss of power. With a broker that answers nothing is written to disk at
//! all. A line that was cut off, or that the disk gives back as something else, is left out by who reads it.
//!
//! How many lines were given up and not told stands in the first line of a file, from when the file was written anew: what is
//! given up later still stands in it. That is a member more of the line's JSON object, which an older reader passes over.
#![allow(clippy::disallowed_methods, reason = "the door")]

use std::{
    collections::{HashSet, VecDeque},
    fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// What a loss of power may cost, and the shortest time between two writes to disk.
pub const BATCH: Duration = Duration::from_secs(10);
/// A file longer than this is written anew with what is unsettled: twice what an outbox keeps.
const LONGEST: u64 = 512 * 1024;
/// Its name in both directories.
const FILE: &str = "records";
/// Before the number of lines that are missing, and a comma.
const MARK: &str = "{\"given_up\":";

/// The lines that are not settled.
#[derive(Debug)]
pub struct Spool {
    hot: PathBuf,
    hot_length: u64,
    cold: PathBuf,
    cold_length: u64,
    /// Oldest first, each with its number.
    lines: VecDeque<(u64, Vec<u8>)>,
    /// Lines below this number are in the file on disk.
    on_disk: u64,
    /// When the next batch is written.
    due: Option<Instant>,
    /// Whether a batch is on its way.
    writing: bool,
    /// Lines that were given up and not told.
    missing: u64,
    hot_why: Option<String>,
    cold_why: Option<String>,
}

/// What is to be written to disk, by whoever may wait for it.
#[derive(Debug)]
pub struct Batch {
    path: PathBuf,
    bytes: Vec<u8>,
    /// Instead of what is there.
    anew: bool,
    until: u64,
}

impl Spool {
    /// Opens the spool, and returns with it the lines of before, oldest first; both files are kept until they are settled
    /// under new numbers.
    pub fn open(runtime: &Path, state: &Path) -> (Self, Vec<Vec<u8>>) {
        let (hot, cold) = (runtime.join(FILE), state.join(FILE));
        let (mut hot_why, mut cold_why) = (None, None);
        let mut lines: Vec<Vec<u8>> = Vec::new();
        let mut missing = 0;
        for (path, why) in [(&cold, &mut cold_why), (&hot, &mut hot_why)] {
            match read(path) {
                // The last one is empty, or was cut off.
                Ok(bytes) => {
                    let mut all: Vec<_> = bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
                    all.pop();
                    let Some(first) = all.first_mut() else { continue };
                    (missing, *first) = unmarked(first);
                    // Memory gets each line at once: what the disk alone has is older, and is not missing.
                    let newer: HashSet<_> = all.iter().collect();
                    lines.retain(|line| !newer.contains(line));
                    missing = missing.saturating_sub(lines.len() as u64);
                    lines.extend(all);
                }
                Err(error) => *why = Some(format!("{}: {error}", path.display())),
            }
        }
        let spool = Self {
            hot,
            // As long as a file is not written anew, lines of before stand in it.
            hot_length: LONGEST,
            cold,
            cold_length: LONGEST,
            lines: VecDeque::new(),
            on_disk: 0,
            due: None,
            writing: false,
            missing,
            hot_why,
            cold_why,
        };
        (spool, lines)
    }

    /// Keeps lines, all of them or none; each number is larger than all before.
    pub fn add(&mut self, lines: Vec<(u64, Vec<u8>)>, now: Instant) {
        let Some((first, _)) = lines.first() else { return };
        let first = *first;
        self.lines.extend(lines);
        self.due.get_or_insert(now + BATCH);
        let written = if self.hot_length >= LONGEST {
            let all = self.all();
            self.hot_length = all.len() as u64;
            replace(&self.hot, &all, false)
        } else {
            let new = self.joined(first);
            self.hot_length += new.len() as u64;
            append(&self.hot, &new, false)
        };
        if written.is_err() {
            // Half a line may stand there.
            self.hot_length = LONGEST;
        }
        self.hot_why = failure(&self.hot, written);
    }

    /// Lines that were given up and not told, by this run and by those before it.
    pub fn missing(&self) -> u64 {
        self.missing
    }

    /// So many lines were given up and are not told. To be said before those lines are settled.
    pub fn owe(&mut self, missing: u64) {
        if missing < self.missing {
            // The line that tells them must not stand in one file with their number.
            (self.hot_length, self.cold_length) = (LONGEST, LONGEST);
        }
        self.missing = missing;
    }

    /// All lines of a lower number are settled.
    pub fn settle(&mut self, before: u64) {
        while self.lines.pop_front_if(|(number, _)| *number < before).is_some() {}
        if !self.lines.is_empty() || self.writing {
            return;
        }
        self.due = None;
        if self.missing > 0 {
            return;
        }
        // What a loss of power brings back is told twice, under the same name.
        if self.hot_length > 0 && remove(&self.hot).is_ok() {
            self.hot_length = 0;
        }
        if self.cold_length > 0 && remove(&self.cold).is_ok() {
            self.cold_length = 0;
            // With a broker that answers no batch comes that could tell that the disk takes something again.
            self.cold_why = None;
        }
    }

    /// When there is something to write.
    pub fn due(&self) -> Option<Instant> {
        self.due.filter(|_| !self.writing)
    }

    /// What is to be written now; [`Spool::written`] says how that went.
    pub fn batch(&mut self) -> Option<Batch> {
        self.due = None;
        let until = self.lines.back().map(|(number, _)| number + 1)?;
        let anew = self.cold_length >= LONGEST;
        let bytes = match anew {
            true => self.all(),
            false => self.joined(self.on_disk),
        };
        self.writing = !bytes.is_empty();
        self.writing.then(|| Batch { path: self.cold.clone(), bytes, anew, until })
    }

    /// A batch has been written, or not; then it is tried again after [`BATCH`].
    pub fn written(&mut self, batch: Result<Batch, io::Error>, now: Instant) {
        self.writing = false;
        let outcome = match batch {
            Ok(batch) => {
                self.cold_length = if batch.anew { 0 } else { self.cold_length } + batch.bytes.len() as u64;
                self.on_disk = batch.until;
                if self.lines.back().is_some_and(|(number, _)| *number >= batch.until) {
                    self.due.get_or_insert(now + BATCH);
                }
                Ok(())
            }
            Err(error) => {
                self.due = Some(now + BATCH);
                // Half a line may stand there.
                self.cold_length = LONGEST;
                Err(error)
            }
        };
        self.cold_why = failure(&self.cold, outcome);
        self.settle(0);
    }

    /// Why the last write of a file failed; the one on disk comes first, for the other one goes on meanwhile.
    pub fn why(&self) -> Option<&str> {
        self.cold_why.as_deref().or(self.hot_why.as_deref())
    }

    /// A whole file: every line, and before them how many are missing.
    fn all(&self) -> Vec<u8> {
        let lines = self.joined(0);
        match lines.strip_prefix(b"{") {
            Some(rest) if self.missing > 0 => [format!("{MARK}{},", self.missing).as_bytes(), rest].concat(),
            _ => lines,
        }
    }

    fn joined(&self, from: u64) -> Vec<u8> {
        let lines = self.lines.iter().filter(|(number, _)| *number >= from);
        lines.flat_map(|(_, line)| line.iter().copied().chain(*b"\n")).collect()
    }
}

impl Batch {
    /// Writes it, and waits until it is on disk.
    ///
    /// # Errors
    /// The disk is full, read-only, or broken.
    pub fn write(self) -> io::Result<Self> {
        match self.anew {
            true => replace(&self.path, &self.bytes, true)?,
            false => append(&self.path, &self.bytes, true)?,
        }
        Ok(self)
    }
}

fn failure(path: &Path, written: io::Result<()>) -> Option<String> {
    written.err().map(|error| format!("{}: {error}", path.display()))
}

/// How many lines are missing by a file's first line, and that line as it was.
fn unmarked(line: &[u8]) -> (u64, Vec<u8>) {
    let parts = line.strip_prefix(MARK.as_bytes()).and_then(|rest| {
        let comma = rest.iter().position(|byte| *byte == b',')?;
        let missing: u32 = str::from_utf8(&rest[..comma]).ok()?.parse().ok()?;
        Some((missing.into(), [b"{", &rest[comma + 1..]].concat()))
    });
    parts.unwrap_or_else(|| (0, line.to_vec()))
}

/// What is in the file, at most as much as is ever written.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match fs::File::open(path) {
        Ok(file) => file.take(2 * LONGEST).read_to_end(&mut bytes).map(|_| bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(bytes),
        Err(error) => Err(error),
    }
}

fn append(path: &Path, bytes: &[u8], sync: bool) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().append(true).create(true).open(path)?;
    file.write_all(bytes)?;
    if sync { file.sync_data() } else { Ok(()) }
}

fn replace(path: &Path, bytes: &[u8], sync: bool) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory)?;
    let new = path.with_extension("new");
    let mut file = fs::File::create(&new)?;
    file.write_all(bytes)?;
    if sync {
        file.sync_data()?;
    }
    fs::rename(&new, path)?;
    if sync { fs::File::open(directory)?.sync_all() } else { Ok(()) }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let place = std::env::temp_dir().join(format!("bramble-spool-{}-{name}", std::process::id()));
            fs::create_dir_all(place.join("run")).unwrap();
            Self(place)
        }

        fn open(&self) -> (Spool, Vec<String>) {
            let (spool, lines) = Spool::open(&self.0.join("run"), &self.0.join("state"));
            (spool, lines.into_iter().map(|l| String::from_utf8(l).unwrap()).collect())
        }

        /// Memory is gone.
        fn lose_power(&self) {
            let _ = fs::remove_file(self.0.join("run/records"));
        }

        fn disk(&self) -> Option<String> {
            fs::read_to_string(self.0.join("state/records")).ok()
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn add(spool: &mut Spool, number: u64, now: Instant) {
        spool.add(vec![(number, format!("line {number}").into_bytes())], now);
    }

    fn write(spool: &mut Spool, now: Instant) {
        let batch = spool.batch().unwrap();
        spool.written(batch.write(), now);
    }

    #[test]
    fn a_killed_process_loses_nothing_and_a_loss_of_power_what_no_batch_holds_yet() {
        let (place, now) = (Place::new("power"), Instant::now());
        let (mut spool, before) = place.open();
        assert!(before.is_empty());
        for number in 0..3 {
            add(&mut spool, number, now);
        }
        assert_eq!((spool.due(), place.disk()), (Some(now + BATCH), None));
        assert_eq!(place.open().1, ["line 0", "line 1", "line 2"]);
        spool.settle(1);
        write(&mut spool, now);
        assert_eq!(place.disk().unwrap(), "line 1\nline 2\n");
        add(&mut spool, 3, now);
        assert_eq!(place.open().1, ["line 0", "line 1", "line 2", "line 3"]);
        place.lose_power();
        assert_eq!(place.open().1, ["line 1", "line 2"]);
    }

    #[test]
    fn what_the_broker_has_in_time_is_never_written_to_disk() {
        let (place, now) = (Place::new("fast"), Instant::now());
        let (mut spool, _) = place.open();
        for number in 0..1000 {
            add(&mut spool, number, now);
            spool.settle(number + 1);
            assert_eq!(spool.due(), None);
        }
        assert!(place.disk().is_none() && place.open().1.is_empty());
    }

    #[test]
    fn there_is_one_append_a_batch_and_each_line_is_in_one_of_them() {
        let (place, now) = (Place::new("batch"), Instant::now());
        let (mut spool, _) = place.open();
        add(&mut spool, 0, now);
        write(&mut spool, now);
        assert_eq!(spool.due(), None);
        for number in 1..4 {
            add(&mut spool, number, now + BATCH / 2);
        }
        assert_eq!(spool.due(), Some(now + BATCH / 2 + BATCH));
        let batch = spool.batch().unwrap();
        assert_eq!((batch.anew, &batch.bytes[..]), (false, &b"line 1\nline 2\nline 3\n"[..]));
        // While it is on its way, nothing else is.
        add(&mut spool, 4, now + BATCH);
        assert_eq!(spool.due(), None);
        spool.settle(5);
        spool.written(batch.write(), now + BATCH);
        assert!(place.disk().is_none() && spool.due().is_none());
    }

    #[test]
    fn a_torn_or_foreign_end_costs_that_line_alone_and_the_next_start_writes_anew() {
        let (place, now) = (Place::new("torn"), Instant::now());
        fs::create_dir_all(place.0.join("state")).unwrap();
        fs::write(place.0.join("state/records"), b"a\nb\nhalf a li").unwrap();
        let (mut spool, before) = place.open();
        assert_eq!(before, ["a", "b"]);
        let before = before.into_iter().enumerate();
        spool.add(before.map(|(number, line)| (number as u64, line.into_bytes())).collect(), now);
        write(&mut spool, now);
        assert_eq!(place.disk().unwrap(), "a\nb\n");
    }

    #[test]
    fn a_long_outage_keeps_the_files_short() {
        let (place, now) = (Place::new("long"), Instant::now());
        let (mut spool, _) = place.open();
        for number in 0..3000_u64 {
            spool.add(vec![(number, format!("{number:01000}").into_bytes())], now);
            spool.settle(number.saturating_sub(200));
            if number % 10 == 0 {
                write(&mut spool, now);
            }
            let length = |file: &str| fs::metadata(place.0.join(file)).unwrap().len();
            assert!(length("run/records") <= LONGEST + 2000 && length("state/records") <= LONGEST + 20_000);
        }
        assert!(place.open().1.len() >= 200);
    }

    #[test]
    fn a_disk_that_takes_nothing_is_told_and_tried_again() {
        let (place, now) = (Place::new("full"), Instant::now());
        let (mut spool, _) = place.open();
        fs::write(place.0.join("state"), "a file where the directory should be").unwrap();
        add(&mut spool, 0, now);
        write(&mut spool, now);
        assert!(spool.why().unwrap().contains("state/records") && spool.due() == Some(now + BATCH));
        // That memory takes the next line says nothing about the disk.
        add(&mut spool, 1, now);
        assert!(spool.why().unwrap().contains("state/records"));
        fs::remove_file(place.0.join("state")).unwrap();
        write(&mut spool, now);
        assert_eq!((spool.why(), place.disk().as_deref()), (None, Some("line 0\nline 1\n")));
    }

    #[test]
    fn trouble_with_the_disk_ends_with_the_last_line_that_it_should_take() {
        let (place, now) = (Place::new("over"), Instant::now());
        let (mut spool, _) = place.open();
        fs::write(place.0.join("state"), "a file where the directory should be").unwrap();
        add(&mut spool, 0, now);
        write(&mut spool, now);
        spool.settle(1);
        assert!(spool.why().is_some() && spool.due().is_none());
        fs::remove_file(place.0.join("state")).unwrap();
        add(&mut spool, 1, now);
        assert!(spool.why().is_some());
        spool.settle(2);
        assert_eq!((spool.why(), spool.due()), (None, None));
    }

    #[test]
    fn half_a_line_in_memory_never_stands_before_a_whole_one() {
        let (place, now) = (Place::new("half"), Instant::now());
        let (mut spool, _) = place.open();
        add(&mut spool, 0, now);
        fs::remove_dir_all(place.0.join("run")).unwrap();
        add(&mut spool, 1, now);
        assert!(spool.why().unwrap().contains("run/records"));
        fs::create_dir(place.0.join("run")).unwrap();
        fs::write(place.0.join("run/records"), "line 0\nli").unwrap();
        add(&mut spool, 2, now);
        assert_eq!(
            (spool.why(), place.open().1),
            (None, ["line 0", "line 1", "line 2"].map(str::to_owned).into())
        );
    }

    #[test]
    fn what_was_given_up_stays_counted_across_kill_and_loss_of_power_until_it_is_told() {
        const KEPT: u64 = 200;
        let (place, now) = (Place::new("owed"), Instant::now());
        let (mut spool, _) = place.open();
        let object = |number: u64| format!("{{\"n\":{number},\"{:01000}\":0}}", 0);
        let add = |spool: &mut Spool, number| spool.add(vec![(number, object(number).into_bytes())], now);
        for number in 0..3000 {
            add(&mut spool, number);
            let given_up = (number + 1).saturating_sub(KEPT);
            spool.owe(given_up);
            spool.settle(given_up);
            if number % 50 == 0 && number < 2500 {
                write(&mut spool, now);
            }
            if number % 83 == 0 {
                let (after, lines) = place.open();
                assert_eq!(after.missing() + lines.len() as u64, number + 1);
                // Later on the disk is behind, and what is missing is missing in the middle.
                assert!(number > 2500 || (after.missing()..).zip(&lines).all(|(n, line)| *line == object(n)));
            }
        }
        // What stands there is one object a line for who does not know the mark.
        let file = fs::read_to_string(place.0.join("run/records")).unwrap();
        assert!(file.starts_with("{\"given_up\":") && file.lines().nth(1).unwrap().starts_with("{\"n\":"));
        // Told, and killed before the broker has it: the disk has the old number, and memory counts.
        let until = 2451;
        spool.owe(0);
        add(&mut spool, 3000);
        assert_eq!(place.open().0.missing(), 0);
        place.lose_power();
        let (after, lines) = place.open();
        assert_eq!(after.missing() + lines.len() as u64, until);
        assert!(after.missing() > 0 && lines[0] == object(after.missing()));
        // The next batch takes it off the disk as well.
        write(&mut spool, now);
        assert_eq!(place.open().0.missing(), 0);
    }

    #[test]
    fn what_is_missing_and_not_told_stays_where_no_line_is_left() {
        let (place, now) = (Place::new("refused"), Instant::now());
        let (mut spool, _) = place.open();
        spool.add(vec![(0, b"{\"n\":0}".to_vec())], now);
        // The broker refused it, so it is tried again by the next run, which does not count it twice.
        spool.owe(1);
        spool.settle(1);
        let (after, lines) = place.open();
        assert_eq!((spool.due(), after.missing(), lines), (None, 0, vec!["{\"n\":0}".to_owned()]));
        spool.owe(0);
        spool.settle(1);
        assert!(place.open().1.is_empty());
    }

    #[test]
    fn a_mark_is_taken_off_and_nothing_else_is() {
        let cases: [(&str, u64, &str); 6] = [
            (r#"{"given_up":17,"v":1}"#, 17, r#"{"v":1}"#),
            (r#"{"v":1}"#, 0, r#"{"v":1}"#),
            (r#"{"given_up":17}"#, 0, r#"{"given_up":17}"#),
            (r#"{"given_up":x,"v":1}"#, 0, r#"{"given_up":x,"v":1}"#),
            (r#"{"given_up":99999999999,"v":1}"#, 0, r#"{"given_up":99999999999,"v":1}"#),
            ("", 0, ""),
        ];
        for (line, missing, rest) in cases {
            assert_eq!(unmarked(line.as_bytes()), (missing, rest.as_bytes().to_vec()), "{line}");
        }
    }
}
