//! What a change does to the running kernel and to systemd: how it was, how it is done, how it is undone.
//!
//! A [`Live`] stands in the receipt, so it is one of the few inside types that are written to disk.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::facts::sysctl::path;
use crate::host::systemd::Unit;
use crate::host::write::{HostMut, NotDone};

/// One effect on the running machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "effect", rename_all = "kebab-case")]
pub enum Live {
    /// Sets a kernel setting.
    Sysctl {
        /// With dots, as [`path`] reads it; one part may end with `*` and stands for each name that begins so.
        key: String,
        /// The value.
        value: String,
    },
    /// Loads a module. It is not unloaded again: by then others may use it.
    LoadModule {
        /// As modprobe knows it.
        name: String,
    },
    /// Mounts a kernel file system.
    Mount {
        /// Its type.
        kind: String,
        /// Where.
        point: String,
    },
    /// Shares a mount.
    ShareMount {
        /// Where.
        point: String,
    },
    /// Stops using an area of swap.
    SwapOff {
        /// The device or file.
        path: String,
    },
    /// Writes down which tables and chains the packet filter has, so that those that come later can be told from them.
    SeePacketFilter,
    /// Lets systemd read its files again.
    ReadUnits,
    /// Enables a unit and asks for its start.
    StartUnit {
        /// With its ending.
        unit: String,
    },
    /// Stops a unit, after systemd has read that it is masked.
    StopUnit {
        /// With its ending.
        unit: String,
    },
}

/// How it was before: names and values. For settings the paths below `/proc/sys`, those that the kernel
/// moves along behind those that are set.
pub type Before = Vec<(String, String)>;

/// What became of an effect that was to be undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Undone {
    /// It is as it was before.
    Restored,
    /// It stays, for the reason given; nobody has to act.
    Stays(&'static str),
    /// Somebody else has changed it since: it was left alone.
    Changed {
        /// What was changed.
        object: String,
        /// How it was before bramble.
        before: String,
        /// What bramble made of it.
        ours: String,
        /// How it is now.
        now: String,
    },
}

const SHORT: Duration = Duration::from_secs(30);
/// systemd itself ends what does not stop after 90 s (DefaultTimeoutStopSec).
const STOP: Duration = Duration::from_secs(100);
/// Swap may be full, and the disk that holds it slow.
const LONG: Duration = Duration::from_secs(600);

/// Settings that the kernel changes along with one that is set. See Linux net/ipv4/devinet.c
/// (inet_forward_change) and net/ipv6/addrconf.c (addrconf_forward_change).
const MOVES: [(&str, &[&str]); 2] = [
    ("net.ipv4.ip_forward", &["net.ipv4.conf.*.forwarding", "net.ipv4.conf.all.accept_redirects"]),
    ("net.ipv6.conf.all.forwarding", &["net.ipv6.conf.*.forwarding"]),
];

impl Live {
    /// What it changes.
    pub fn object(&self) -> String {
        match self {
            Live::Sysctl { key, .. } => key.clone(),
            Live::LoadModule { name } => format!("module {name}"),
            Live::Mount { point, .. } | Live::ShareMount { point } => format!("mount {point}"),
            Live::SwapOff { path } => format!("swap {path}"),
            Live::SeePacketFilter => "what the packet filter has".into(),
            Live::ReadUnits => "what systemd has read".into(),
            Live::StartUnit { unit } | Live::StopUnit { unit } => unit.clone(),
        }
    }

    /// How that which is about to be changed is now.
    pub fn before(&self, host: &HostMut) -> Result<Before, NotDone> {
        match self {
            Live::Sysctl { key, .. } => {
                let moved = MOVES.iter().filter(|(mover, _)| mover == key).flat_map(|(_, moved)| *moved);
                let mut before = Before::new();
                for key in [key.as_str()].into_iter().chain(moved.copied()) {
                    for path in paths(host, key)? {
                        let value = read(host, &path)?;
                        before.extend(value.map(|value| (path, value)));
                    }
                }
                Ok(before)
            }
            Live::SwapOff { path } => Ok(priority(host, path)?.into_iter().collect()),
            Live::StartUnit { unit } | Live::StopUnit { unit } => {
                let unit = look(host, unit)?;
                Ok(vec![("is-enabled".into(), unit.enabled), ("is-active".into(), unit.active)])
            }
            Live::SeePacketFilter => {
                let names = host.host().packet_filter().map_err(NotDone::from)?;
                Ok(names.into_iter().map(|name| (name, String::new())).collect())
            }
            Live::LoadModule { .. } | Live::Mount { .. } | Live::ShareMount { .. } | Live::ReadUnits => {
                Ok(Before::new())
            }
        }
    }

    /// Does it.
    pub fn carry_out(&self, host: &HostMut) -> Result<(), NotDone> {
        match self {
            Live::Sysctl { key, value } => {
                let paths = paths(host, key)?;
                if paths.is_empty() && !key.contains('*') {
                    let path = path(key);
                    let next = "look at what the kernel has (sysctl -a), then run it again";
                    return Err(NotDone::new("setting", path, "the kernel has no such setting", next));
                }
                paths.iter().try_for_each(|path| host.set(path, value))
            }
            Live::LoadModule { name } => host.succeed(&["modprobe", "--", name], SHORT).map(drop),
            Live::Mount { kind, point } => host.mount(kind, point),
            Live::ShareMount { point } => host.share(point, true),
            Live::SwapOff { path } => match priority(host, path)? {
                Some(_) => host.succeed(&["swapoff", "--", path], LONG).map(drop),
                None => Ok(()),
            },
            Live::StartUnit { unit } => {
                host.enable_unit(unit)?;
                // Some are up only when the clock is right, which may take minutes.
                host.start_unit(unit)
            }
            Live::SeePacketFilter => Ok(()),
            Live::ReadUnits => host.reload_units(),
            Live::StopUnit { unit } => {
                host.reload_units()?;
                stop(host, unit)
            }
        }
    }

    /// Makes it as it was before. Files are put back first.
    pub fn undo(&self, before: &Before, host: &HostMut) -> Result<Undone, NotDone> {
        let was = |what: &str, state: &str| before.iter().any(|(name, value)| name == what && value == state);
        match self {
            Live::Sysctl { key, value } => return undo_settings(host, key, value, before),
            Live::LoadModule { .. } => {
                return Ok(Undone::Stays("a module stays loaded until the next boot: others may use it"));
            }
            Live::Mount { kind, point } => {
                // What the kernel itself puts there ends with .debug.
                let pinned = |names: Vec<String>| names.iter().any(|name| !name.ends_with(".debug"));
                if kind == "bpf" && host.host().list(point).is_ok_and(pinned) {
                    return Ok(Undone::Stays(
                        "the BPF file system stays until the next boot: programs are pinned in it",
                    ));
                }
                host.unmount(point)?;
            }
            Live::ShareMount { point } => host.share(point, false)?,
            Live::SwapOff { path } => {
                let kept = before.iter().find(|(swap, _)| swap == path);
                if let (Some((_, priority)), None) = (kept, self::priority(host, path)?) {
                    match priority.starts_with('-') {
                        true => host.succeed(&["swapon", "--", path], SHORT)?,
                        false => host.succeed(&["swapon", "-p", priority, "--", path], SHORT)?,
                    };
                }
            }
            Live::StartUnit { unit } => {
                let now = look(host, unit)?;
                // Its file was put back first and may be gone by now: its links are left, and systemd calls it nothing.
                // Where no bus answers, systemctl takes them away and complains all the same.
                if !was("is-enabled", "enabled")
                    && let Err(failed) = host.disable_unit(unit)
                    && !look(host, unit)?.enabled.is_empty()
                {
                    return Err(failed);
                }
                if !was("is-active", "active") && !now.is_down() {
                    stop(host, unit)?;
                }
            }
            // Seeing has changed nothing.
            Live::SeePacketFilter => {}
            Live::ReadUnits => host.reload_units()?,
            Live::StopUnit { unit } => {
                host.reload_units()?;
                if was("is-active", "active") {
                    host.start_unit(unit)?;
                    host.settled(unit, SHORT, |unit| unit.is_active() || unit.active == "failed")?;
                }
            }
        }
        Ok(Undone::Restored)
    }
}

fn undo_settings(host: &HostMut, key: &str, ours: &str, before: &Before) -> Result<Undone, NotDone> {
    let set = paths(host, key)?;
    let mut undone = Undone::Restored;
    let mut moved = false;
    for (path, value) in before {
        // An interface may be gone since.
        let Some(now) = read(host, path)? else { continue };
        let is_moved = !set.contains(path);
        // A revert that was killed had put it back, and so moved the others.
        moved |= !is_moved && now == *value && value != ours;
        // Nothing to undo: it is as it was, it was so before us, or that which moves it stayed.
        if now == *value || !is_moved && value == ours || is_moved && !moved {
            continue;
        }
        if !is_moved && now != ours {
            undone = Undone::Changed { object: path.clone(), before: value.clone(), ours: ours.into(), now };
            continue;
        }
        host.set(path, value)?;
        moved = true;
    }
    Ok(undone)
}

/// The settings that a key stands for and the kernel has.
fn paths(host: &HostMut, key: &str) -> Result<Vec<String>, NotDone> {
    let path = path(key);
    let Some((before, after)) = path.split_once('*') else {
        return Ok(read(host, &path)?.map(|_| path).into_iter().collect());
    };
    let (directory, prefix) = before.rsplit_once('/').unwrap_or(("", before));
    let names = host.host().list_if_present(directory).map_err(NotDone::from)?;
    let names = names.iter().filter(|name| name.starts_with(prefix));
    Ok(names.map(|name| format!("{directory}/{name}{after}")).collect())
}

fn read(host: &HostMut, path: &str) -> Result<Option<String>, NotDone> {
    let text = host.host().text_if_present(path).map_err(NotDone::from)?;
    Ok(text.map(|text| text.trim().to_owned()))
}

/// An area of swap in use and its priority.
fn priority(host: &HostMut, path: &str) -> Result<Option<(String, String)>, NotDone> {
    let swaps = host.host().text_if_present("/proc/swaps").map_err(NotDone::from)?.unwrap_or_default();
    let line = swaps.lines().skip(1).find(|line| line.split_whitespace().next() == Some(path));
    Ok(line.and_then(|line| Some((path.to_owned(), line.split_whitespace().last()?.to_owned()))))
}

fn look(host: &HostMut, unit: &str) -> Result<Unit, NotDone> {
    host.host().unit(unit).map_err(NotDone::from)
}

/// Stops a unit and waits until nothing of it runs.
fn stop(host: &HostMut, unit: &str) -> Result<(), NotDone> {
    host.stop_unit(unit)?;
    let now = host.settled(unit, STOP, Unit::is_down)?;
    match now.is_down() {
        true => Ok(()),
        false => {
            let why = format!("it is {} after {} s", now.active, STOP.as_secs());
            Err(NotDone::new("stopping", unit, why, format!("systemctl status {unit}")))
        }
    }
}
