//! The receipt: what was about to be done, how it was before, and what became of it, on disk before it happens.
//!
//! `/var/lib/bramble/receipts/<number>-<UTC time>/` holds `journal`, one JSON object a line that is never rewritten,
//! and for each file `<n>.before` and `<n>.after`. [`Record`] and what it holds are the format on disk, the one
//! place of this room that derives `Serialize`.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::live::{Before, Live};
use crate::host::vault::{Journal, Lock, Vault};
use crate::host::write::{HostMut, Image, Meta, NotDone};
use crate::host::{Host, Unreadable};

/// Where receipts are kept.
pub const RECEIPTS: &str = "/var/lib/bramble/receipts";
/// The version of the format.
const VERSION: u32 = 1;

/// One line of a journal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
enum Record {
    /// The first line.
    Began { v: u32, at: Timestamp, bramble: String },
    /// About to be done. The numbers of acts are their order.
    Act { n: usize, act: Act },
    /// It was done.
    Done { n: usize },
    /// It was not done; nothing was after it.
    Failed { n: usize, why: String },
    /// The run came to its end, good or not.
    Ended { at: Timestamp },
    /// Revert is about to begin.
    Reverting { at: Timestamp },
    /// Revert has dealt with it.
    Undone { n: usize },
    /// Revert has dealt with all.
    Reverted { at: Timestamp },
}

/// One thing that is done at once or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Act {
    /// Makes a directory.
    Directory {
        /// Which.
        path: String,
    },
    /// Replaces a file or makes it.
    File {
        /// Which; no link leads to it.
        path: String,
        /// What was there.
        before: Kept,
        /// What is there afterwards.
        after: Kept,
    },
    /// Puts a file where none was that is too large to be kept beside the journal.
    Large {
        /// Which.
        path: String,
        /// What it hashes to.
        sha256: String,
    },
    /// Changes the running machine.
    Live {
        /// What.
        live: Live,
        /// How it was.
        before: Before,
    },
}

/// What stands, or stood, at a path; the content of files lies beside the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Kept {
    /// Nothing.
    Absent,
    /// A file.
    File {
        /// `None` on FAT.
        meta: Option<KeptMeta>,
    },
    /// A link.
    Link {
        /// Where it points to.
        target: String,
    },
}

/// Owner, permissions and attributes of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptMeta {
    mode: u32,
    uid: u32,
    gid: u32,
    /// Values in hexadecimal digits.
    attributes: BTreeMap<String, String>,
}

/// How far a receipt has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The run that wrote it has not ended, or was killed.
    Open,
    /// What it says was applied.
    Applied,
    /// Revert has begun and not brought it to its end.
    Reverting,
    /// Nothing of it is left.
    Reverted,
}

/// A receipt as it was read.
#[derive(Debug)]
pub struct Receipt {
    /// The name of its directory.
    pub name: String,
    /// When it was begun.
    pub at: Timestamp,
    /// How far it has come.
    pub state: State,
    /// What was done or was about to be, in order.
    pub acts: Vec<Act>,
    undone: HashSet<usize>,
}

impl Act {
    /// Whether it is a file that a person may keep.
    pub fn is_file(&self) -> bool {
        matches!(self, Act::File { .. } | Act::Large { .. })
    }

    /// What it changes.
    pub fn object(&self) -> String {
        match self {
            Act::Directory { path } | Act::File { path, .. } | Act::Large { path, .. } => path.clone(),
            Act::Live { live, .. } => live.object(),
        }
    }
}

impl State {
    /// The words for a person.
    pub const fn words(self) -> &'static str {
        match self {
            State::Open => "not finished",
            State::Applied => "applied",
            State::Reverting => "partly reverted",
            State::Reverted => "reverted",
        }
    }
}

impl Receipt {
    /// Reads the text of a journal; a last line without an end was cut off and does not count.
    fn parse(name: &str, text: &str) -> Result<Receipt, String> {
        let mut at = None;
        let mut receipt = Receipt {
            name: name.into(),
            at: Timestamp::UNIX_EPOCH,
            state: State::Open,
            acts: Vec::new(),
            undone: HashSet::new(),
        };
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for (number, line) in whole.lines().enumerate() {
            let record =
                serde_json::from_str(line).map_err(|error| format!("line {}: {error}", number + 1))?;
            match record {
                Record::Began { v, at: began, .. } => {
                    if v != VERSION {
                        return Err(format!("it has version {v}, and this bramble reads {VERSION}"));
                    }
                    at = Some(began);
                }
                Record::Act { n, act } if n == receipt.acts.len() => {
                    receipt.acts.push(act);
                    receipt.state = State::Open;
                }
                Record::Act { n, .. } => return Err(format!("line {}: act {n} is out of order", number + 1)),
                Record::Done { .. } | Record::Failed { .. } => {}
                Record::Ended { .. } => receipt.state = State::Applied,
                Record::Reverting { .. } => receipt.state = State::Reverting,
                // Before there was a record of the beginning, this one was the first of a revert.
                Record::Undone { n } => {
                    receipt.undone.insert(n);
                    receipt.state = State::Reverting;
                }
                Record::Reverted { .. } => receipt.state = State::Reverted,
            }
        }
        // Killed before the first line was on disk: nothing was done either.
        receipt.at = at.unwrap_or_default();
        Ok(receipt)
    }

    /// Whether revert has dealt with an act.
    pub fn is_undone(&self, n: usize) -> bool {
        self.undone.contains(&n)
    }
}

/// The receipts that the reading half can see, oldest first, for `plan` and for lists.
pub fn seen(host: &Host) -> Result<Vec<Receipt>, Unreadable> {
    let names = match host.list(RECEIPTS) {
        Ok(names) => names,
        Err(unreadable) if unreadable.is_absence() => return Ok(Vec::new()),
        Err(unreadable) => return Err(unreadable),
    };
    let receipts = in_order(names).into_iter().map(|name| {
        let path = format!("{RECEIPTS}/{name}/journal");
        let text = match host.text(&path) {
            Err(unreadable) if unreadable.is_absence() => String::new(),
            text => text?,
        };
        Receipt::parse(&name, &text).map_err(|why| Unreadable::malformed(path, why))
    });
    receipts.collect()
}

/// What the newest receipt that still counts has put at a path; `None` when none has.
pub fn written(host: &Host, path: &str) -> Result<Option<String>, Unreadable> {
    for receipt in seen(host)?.iter().rev().filter(|receipt| receipt.state != State::Reverted) {
        let is_it = |n: usize, act: &Act| {
            matches!(act, Act::File { path: at, .. } if at == path) && !receipt.is_undone(n)
        };
        if let Some(n) = (0..receipt.acts.len()).rev().find(|n| is_it(*n, &receipt.acts[*n])) {
            return host.text_if_present(&format!("{RECEIPTS}/{}/{n}.after", receipt.name));
        }
    }
    Ok(None)
}

/// The names of receipts, oldest first; beside them lies the lock. A clock may have gone back, or not have been set yet:
/// their numbers count. Those of older versions begin with a year, have no number, and were first.
fn in_order(mut names: Vec<String>) -> Vec<String> {
    names.retain(|name| name.starts_with(|c: char| c.is_ascii_digit()));
    names.sort_by(|a, b| (number(a), a).cmp(&(number(b), b)));
    names
}

fn number(name: &str) -> Option<u64> {
    name.split('-').next()?.parse().ok()
}

/// All receipts, held by one process.
#[derive(Debug)]
pub struct Receipts {
    vault: Vault,
    _lock: Lock,
}

impl Receipts {
    /// Opens them and takes the lock.
    ///
    /// # Errors
    /// Another process holds it, or the directory cannot be written or trusted.
    pub fn open(host: &HostMut) -> Result<Receipts, NotDone> {
        let vault = Vault::open(host, RECEIPTS)?;
        let lock = vault.lock()?;
        Ok(Receipts { vault, _lock: lock })
    }

    /// All of them, oldest first.
    pub fn all(&self) -> Result<Vec<Receipt>, NotDone> {
        in_order(self.vault.names()?).iter().map(|name| self.read(name)).collect()
    }

    fn read(&self, name: &str) -> Result<Receipt, NotDone> {
        let text = self.vault.read(&format!("{name}/journal"))?.unwrap_or_default();
        Receipt::parse(name, &String::from_utf8_lossy(&text)).map_err(|why| {
            NotDone::new(
                "reading",
                format!("{RECEIPTS}/{name}/journal"),
                why,
                "use the bramble that wrote it, or put its *.before files back by hand",
            )
        })
    }

    /// Begins a new one.
    pub fn begin(&self, at: Timestamp) -> Result<Writer<'_>, NotDone> {
        let last = self.vault.names()?.iter().filter_map(|name| number(name)).max().unwrap_or(0);
        let name = format!("{:06}-{}", last + 1, at.strftime("%Y%m%dT%H%M%SZ"));
        self.vault.make(&name)?;
        let journal = self.vault.journal(&name, "journal")?;
        let mut writer = Writer { vault: &self.vault, journal, name, acts: 0, done: Vec::new() };
        writer.add(&Record::Began { v: VERSION, at, bramble: env!("CARGO_PKG_VERSION").into() })?;
        Ok(writer)
    }

    /// Goes on in one that was read.
    pub fn resume(&self, receipt: &Receipt, now: Timestamp) -> Result<Writer<'_>, NotDone> {
        let journal = self.vault.journal(&receipt.name, "journal")?;
        let (name, acts) = (receipt.name.clone(), receipt.acts.len());
        let mut writer = Writer { vault: &self.vault, journal, name, acts, done: Vec::new() };
        if receipt.at == Timestamp::UNIX_EPOCH {
            writer.add(&Record::Began { v: VERSION, at: now, bramble: env!("CARGO_PKG_VERSION").into() })?;
        }
        Ok(writer)
    }

    /// What stood at the path of an act before it.
    pub fn before(&self, receipt: &Receipt, n: usize, kept: &Kept) -> Result<Option<Image>, NotDone> {
        self.image(&receipt.name, format!("{n}.before"), kept)
    }

    /// What an act made.
    pub fn after(&self, receipt: &Receipt, n: usize, kept: &Kept) -> Result<Option<Image>, NotDone> {
        self.image(&receipt.name, format!("{n}.after"), kept)
    }

    fn image(&self, receipt: &str, name: String, kept: &Kept) -> Result<Option<Image>, NotDone> {
        let lost = |why: &str| {
            let path = format!("{RECEIPTS}/{receipt}/{name}");
            NotDone::new("reading", path, why, "put the file back from a backup of this machine")
        };
        Ok(match kept {
            Kept::Absent => None,
            Kept::Link { target } => Some(Image::Link { target: target.clone() }),
            Kept::File { meta } => {
                let bytes = self.vault.read(&format!("{receipt}/{name}"))?;
                let meta = meta.as_ref().map(KeptMeta::read).transpose().map_err(|why| lost(&why))?;
                Some(Image::File { bytes: bytes.ok_or_else(|| lost("it is gone"))?, meta })
            }
        })
    }
}

/// A receipt that is being written.
#[derive(Debug)]
pub struct Writer<'a> {
    vault: &'a Vault,
    journal: Journal,
    /// The name of its directory.
    pub name: String,
    /// How many acts it has.
    acts: usize,
    /// What this run has changed, in order.
    pub done: Vec<String>,
}

impl Writer<'_> {
    /// Does one thing, written down before and after.
    pub fn act(&mut self, act: Act, carry_out: impl FnOnce() -> Result<(), NotDone>) -> Result<(), NotDone> {
        let (n, object) = (self.acts, act.object());
        self.add(&Record::Act { n, act })?;
        self.acts += 1;
        match carry_out() {
            Ok(()) => {
                self.done.push(object);
                self.add(&Record::Done { n })
            }
            Err(failed) => {
                // The disk may be full; the cause is told all the same.
                let _ = self.add(&Record::Failed { n, why: failed.to_string() });
                Err(failed)
            }
        }
    }

    /// Replaces a file, with both contents kept before it happens.
    pub fn replace(
        &mut self,
        host: &HostMut,
        path: &str,
        before: Option<&Image>,
        after: &Image,
    ) -> Result<(), NotDone> {
        let n = self.acts;
        let act = Act::File {
            path: path.into(),
            before: self.keep(format!("{n}.before"), before)?,
            after: self.keep(format!("{n}.after"), Some(after))?,
        };
        self.act(act, || host.put(path, after))
    }

    fn keep(&self, name: String, image: Option<&Image>) -> Result<Kept, NotDone> {
        Ok(match image {
            None => Kept::Absent,
            Some(Image::Link { target }) => Kept::Link { target: target.clone() },
            Some(Image::File { bytes, meta }) => {
                self.vault.keep(&self.name, &name, bytes)?;
                Kept::File { meta: meta.as_ref().map(KeptMeta::of) }
            }
        })
    }

    /// The run has come to its end.
    pub fn end(mut self, at: Timestamp) -> Result<(), NotDone> {
        self.add(&Record::Ended { at })
    }

    /// Revert is about to begin: a run that is killed from here on is healed.
    pub fn reverting(&mut self, at: Timestamp) -> Result<(), NotDone> {
        self.add(&Record::Reverting { at })
    }

    /// Revert has dealt with an act.
    pub fn undone(&mut self, n: usize) -> Result<(), NotDone> {
        self.add(&Record::Undone { n })
    }

    /// Revert has dealt with all.
    pub fn reverted(mut self, at: Timestamp) -> Result<(), NotDone> {
        self.add(&Record::Reverted { at })
    }

    fn add(&mut self, record: &Record) -> Result<(), NotDone> {
        self.journal.add(&serde_json::to_string(record).expect("a record is plain data"))
    }
}

impl KeptMeta {
    fn of(meta: &Meta) -> KeptMeta {
        let hex = |value: &Vec<u8>| value.iter().map(|byte| format!("{byte:02x}")).collect();
        KeptMeta {
            mode: meta.mode,
            uid: meta.uid,
            gid: meta.gid,
            attributes: meta.attributes.iter().map(|(name, value)| (name.clone(), hex(value))).collect(),
        }
    }

    fn read(&self) -> Result<Meta, String> {
        let byte = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
        let value = |digits: &String| -> Option<Vec<u8>> { digits.as_bytes().chunks(2).map(byte).collect() };
        let attributes = self.attributes.iter().map(|(name, digits)| Some((name.clone(), value(digits)?)));
        Ok(Meta {
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            attributes: attributes
                .collect::<Option<_>>()
                .ok_or("an attribute is not in hexadecimal digits")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGAN: &str =
        "{\"record\":\"began\",\"v\":1,\"at\":\"2026-01-02T03:04:05Z\",\"bramble\":\"0.1.0\"}\n";
    const ACT: &str = "{\"record\":\"act\",\"n\":0,\"act\":{\"do\":\"directory\",\"path\":\"/x\"}}\n";

    #[test]
    fn a_journal_that_was_cut_off_anywhere_is_still_read() {
        let text = format!("{BEGAN}{ACT}{{\"record\":\"done\",\"n\":0}}\n");
        for end in 0..=text.len() {
            let receipt = Receipt::parse("r", &text[..end]).unwrap();
            assert_eq!(receipt.state, State::Open);
            assert_eq!(receipt.acts.len(), usize::from(end >= BEGAN.len() + ACT.len()), "{end}");
        }
    }

    #[test]
    fn a_receipt_comes_from_open_over_applied_to_reverted() {
        let ended = "{\"record\":\"ended\",\"at\":\"2026-01-02T03:04:06Z\"}\n";
        let reverting = "{\"record\":\"reverting\",\"at\":\"2026-01-02T03:04:07Z\"}\n";
        let undone = "{\"record\":\"undone\",\"n\":0}\n";
        let reverted = "{\"record\":\"reverted\",\"at\":\"2026-01-02T03:04:07Z\"}\n";
        let mut text = format!("{BEGAN}{ACT}");
        for (line, state) in [
            ("", State::Open),
            (ended, State::Applied),
            (reverting, State::Reverting),
            (undone, State::Reverting),
            (reverted, State::Reverted),
        ] {
            text += line;
            let receipt = Receipt::parse("r", &text).unwrap();
            assert_eq!(receipt.state, state);
            assert_eq!(receipt.is_undone(0), text.contains("undone"));
        }
    }

    #[test]
    fn receipts_are_in_the_order_in_which_they_were_begun_whatever_the_clock_said() {
        let names =
            ["lock", "1000000-20270101T000000Z", "000002-19700101T000000Z", "000001-20990101T000000Z"];
        let old = ["20260102T030405Z-1", "20260102T030405Z-2"];
        let names = names.iter().chain(&old).map(|name| name.to_string()).collect();
        let new = ["000001-20990101T000000Z", "000002-19700101T000000Z", "1000000-20270101T000000Z"];
        assert_eq!(in_order(names), [&old[..], &new[..]].concat());
    }

    #[test]
    fn what_another_version_wrote_is_refused() {
        assert!(Receipt::parse("r", &BEGAN.replace("\"v\":1", "\"v\":2")).unwrap_err().contains("version 2"));
        assert!(Receipt::parse("r", "{\"record\":\"danced\"}\n").unwrap_err().starts_with("line 1"));
        assert!(
            Receipt::parse("r", &ACT.replace("\"n\":0", "\"n\":3")).unwrap_err().contains("out of order")
        );
    }

    #[test]
    fn attributes_come_back_byte_for_byte() {
        let attributes = BTreeMap::from([("user.x".to_owned(), vec![0, 255, 16])]);
        let meta = Meta { mode: 0o4755, uid: 1, gid: 2, attributes };
        assert_eq!(KeptMeta::of(&meta).read().unwrap(), meta);
    }
}
