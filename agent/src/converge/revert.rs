//! Undoes a receipt, the last act first: every byte as it was. It never guesses: what somebody else changed
//! since is left alone and shown, and the rest goes on.

use crate::host::clock;
use crate::host::write::{HostMut, Image, NotDone};

use super::live::Undone;
use super::receipt::{Act, Kept, Receipt, Receipts, State};

/// What became of one act.
#[derive(Debug)]
pub enum Outcome {
    /// It is as it was before.
    Restored,
    /// It stays as it is, and nobody has to act.
    Stays(&'static str),
    /// Somebody else has changed a file since; what stood there, what bramble wrote, what stands there.
    Changed {
        /// Before bramble; `None` when nothing was there.
        before: Option<Image>,
        /// By bramble.
        ours: Option<Image>,
        /// Now.
        now: Option<Image>,
    },
    /// Somebody else has changed something that is no file.
    Overwritten {
        /// The three versions, in words.
        versions: String,
    },
    /// It could not be undone.
    Failed(NotDone),
}

/// The receipt to undo: the one that is named, or the last that is not undone yet.
pub fn choose(receipts: &Receipts, name: Option<&str>) -> Result<Option<Receipt>, NotDone> {
    let mut all = receipts.all()?;
    all.retain(|receipt| match name {
        Some(name) => receipt.name == name,
        None => receipt.state != State::Reverted,
    });
    Ok(all.pop())
}

/// Undoes a receipt and tells each outcome; true when nothing of it is left.
///
/// Files come first, then what runs: a unit is started again only when it is no longer masked. `keep` names
/// files that are to stay as they are now.
pub fn revert(
    host: &HostMut,
    receipts: &Receipts,
    receipt: &Receipt,
    keep: &[String],
    mut tell: impl FnMut(&Act, &Outcome),
) -> Result<bool, NotDone> {
    let mut writer = receipts.resume(receipt, clock::now())?;
    if receipt.state != State::Reverting {
        writer.reverting(clock::now())?;
    }
    let (live, lasting): (Vec<_>, Vec<_>) =
        receipt.acts.iter().enumerate().rev().partition(|(_, act)| matches!(act, Act::Live { .. }));
    let mut whole = true;
    for (n, act) in lasting.into_iter().chain(live) {
        if receipt.is_undone(n) {
            continue;
        }
        let outcome = undo(host, receipts, receipt, n, act, keep).unwrap_or_else(Outcome::Failed);
        tell(act, &outcome);
        match outcome {
            Outcome::Restored | Outcome::Stays(_) => writer.undone(n)?,
            Outcome::Changed { .. } | Outcome::Overwritten { .. } | Outcome::Failed(_) => whole = false,
        }
    }
    if whole {
        writer.reverted(clock::now())?;
    }
    Ok(whole)
}

fn undo(
    host: &HostMut,
    receipts: &Receipts,
    receipt: &Receipt,
    n: usize,
    act: &Act,
    keep: &[String],
) -> Result<Outcome, NotDone> {
    match act {
        Act::Directory { path } => Ok(match host.remove_directory(path)? {
            true => Outcome::Restored,
            false => Outcome::Stays("it holds what others put there"),
        }),
        Act::File { path, .. } if keep.contains(path) => Ok(Outcome::Stays("you keep it as it is")),
        Act::File { path, before, after } => {
            host.remove_temporary(path)?;
            // FAT may have lost the file when the power went while it was replaced.
            let fat = matches!(before, Kept::File { meta: None });
            let before = receipts.before(receipt, n, before)?;
            let after = receipts.after(receipt, n, after)?;
            let now = host.image(path)?;
            if same(&now, &before) {
                return Ok(Outcome::Restored);
            }
            let lost = fat && now.is_none();
            if !same(&now, &after) && !lost {
                if let Some(other) = writer(receipts, path, &now)? {
                    let why = format!("bramble changed it once more, by receipt {other}");
                    let next =
                        format!("sudo bramble revert {other}, then sudo bramble revert {}", receipt.name);
                    return Err(NotDone::new("undoing", path, why, next));
                }
                return Ok(Outcome::Changed { before, ours: after, now });
            }
            match &before {
                Some(before) => host.put(path, before)?,
                None => host.remove(path)?,
            }
            Ok(Outcome::Restored)
        }
        Act::Large { path, .. } if keep.contains(path) => Ok(Outcome::Stays("you keep it as it is")),
        Act::Large { path, sha256 } => {
            host.remove_partial(path)?;
            match host.host().sha256(path) {
                Err(unreadable) if unreadable.is_absence() => {}
                Ok(now) if now == *sha256 => host.remove(path)?,
                now => {
                    let now = now.map_or_else(
                        |unreadable| unreadable.why.to_string(),
                        |hash| format!("hashes to {hash}"),
                    );
                    let versions =
                        format!("{path} was not there, bramble's hashes to {sha256}, and now it {now}");
                    return Ok(Outcome::Overwritten { versions });
                }
            }
            Ok(Outcome::Restored)
        }
        Act::Live { live, before } => {
            if !host.host().is_live() {
                return Err(NotDone::new(
                    "undoing",
                    receipt.name.as_str(),
                    "it was written on a running machine",
                    "revert it there",
                ));
            }
            Ok(match live.undo(before, host)? {
                Undone::Restored => Outcome::Restored,
                Undone::Stays(why) => Outcome::Stays(why),
                Undone::Changed { object, before, ours, now } => Outcome::Overwritten {
                    versions: format!("{object} was {before}, bramble set {ours}, and now it is {now}"),
                },
            })
        }
    }
}

/// The receipt by which a file became what it is now.
fn writer(receipts: &Receipts, path: &str, now: &Option<Image>) -> Result<Option<String>, NotDone> {
    for receipt in receipts.all()? {
        for (n, act) in receipt.acts.iter().enumerate().filter(|(n, _)| !receipt.is_undone(*n)) {
            if let Act::File { path: other, after, .. } = act
                && other == path
                && same(now, &receipts.after(&receipt, n, after)?)
            {
                return Ok(Some(receipt.name));
            }
        }
    }
    Ok(None)
}

fn same(a: &Option<Image>, b: &Option<Image>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => a.same(b),
        _ => false,
    }
}
