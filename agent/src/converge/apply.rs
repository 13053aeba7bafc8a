//! Carries out steps of a plan. It decides nothing: what is not as the plan saw it stops it.

use crate::host::clock;
use crate::host::large::Partial;
use crate::host::write::{HostMut, Image, NotDone};

use super::live::Live;
use super::plan::{Content, Edit, Owner, Step};
use super::receipt::{Act, Kept, Receipts, State, Writer};

/// Brings to its end what a run that was killed left, and returns its receipt when that is to go on.
///
/// A file is the old or the new one at every moment, so all that can be left is one that was being made
/// beside it; and on FAT, after a loss of power, nothing at all: then the old one comes back.
pub fn heal(host: &HostMut, receipts: &Receipts) -> Result<Option<String>, NotDone> {
    let mut open = None;
    for receipt in receipts.all()? {
        if matches!(receipt.state, State::Applied | State::Reverted) {
            continue;
        }
        for (n, act) in receipt.acts.iter().enumerate() {
            let Act::File { path, before, .. } = act else { continue };
            host.remove_temporary(path)?;
            if matches!(before, Kept::File { meta: None })
                && host.image(path)?.is_none()
                && let Some(before) = receipts.before(&receipt, n, before)?
            {
                host.put(path, &before)?;
            }
        }
        if receipt.state == State::Open {
            open = Some(receipt.name);
        }
    }
    Ok(open)
}

/// The receipt that this run writes: the one that a killed run left open, or a new one.
pub fn receipt<'a>(receipts: &'a Receipts, open: Option<&str>) -> Result<Writer<'a>, NotDone> {
    let left = receipts.all()?.into_iter().find(|receipt| Some(receipt.name.as_str()) == open);
    match left {
        Some(left) => receipts.resume(&left, clock::now()),
        None => receipts.begin(clock::now()),
    }
}

/// Does one step: its files, then what it does to the running machine. Stops at the first failure.
pub fn carry_out(host: &HostMut, receipt: &mut Writer<'_>, step: &Step) -> Result<(), NotDone> {
    for edit in &step.edits {
        replace(host, receipt, edit)?;
    }
    for live in &step.live {
        change(host, receipt, live)?;
    }
    Ok(())
}

/// Puts a large file where none is: `fill` fills and proves what is put there. A run that is cut off leaves what there is
/// of it beside its place, and the next one goes on with it.
pub fn place(
    host: &HostMut,
    receipt: &mut Writer<'_>,
    path: &str,
    sha256: &str,
    mode: u32,
    fill: impl FnOnce(&mut Partial) -> Result<(), NotDone>,
) -> Result<(), NotDone> {
    make_directories(host, receipt, path)?;
    receipt.act(Act::Large { path: path.into(), sha256: sha256.into() }, || {
        let mut partial = host.partial(path, sha256)?;
        fill(&mut partial)?;
        partial.finish(mode)
    })
}

fn make_directories(host: &HostMut, receipt: &mut Writer<'_>, path: &str) -> Result<(), NotDone> {
    host.missing_directories(path).into_iter().try_for_each(|directory| {
        let act = Act::Directory { path: directory.clone() };
        receipt.act(act, || host.make_directory(&directory))
    })
}

fn change(host: &HostMut, receipt: &mut Writer<'_>, live: &Live) -> Result<(), NotDone> {
    let before = live.before(host)?;
    receipt.act(Act::Live { live: live.clone(), before }, || live.carry_out(host))
}

fn replace(host: &HostMut, receipt: &mut Writer<'_>, edit: &Edit) -> Result<(), NotDone> {
    let path = match edit.owner {
        Owner::Bramble => edit.path.clone(),
        Owner::Other => host.real(&edit.path)?.unwrap_or_else(|| edit.path.clone()),
    };
    let before = host.image(&path)?;
    let seen = match &before {
        None => None,
        Some(Image::File { bytes, .. }) => Some(Content::Bytes(bytes.clone())),
        Some(Image::Link { target }) => Some(Content::Link(target.clone())),
    };
    if seen != edit.before {
        let why = "somebody has changed it since the plan was made";
        return Err(NotDone::new("writing", path, why, "look at the plan again: bramble plan"));
    }
    let after = match (&edit.after, &before) {
        (Content::Link(target), _) => Image::Link { target: target.clone() },
        (Content::Bytes(bytes), Some(before)) => before.with(bytes.clone()),
        (Content::Bytes(bytes), None) => host.fresh(&path, bytes.clone(), edit.mode),
    };
    make_directories(host, receipt, &path)?;
    receipt.replace(host, &path, before.as_ref(), &after)
}
