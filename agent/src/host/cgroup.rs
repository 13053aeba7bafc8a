//! Control groups of the unified hierarchy: its root, and which unit a group is.
#![allow(clippy::disallowed_methods, reason = "the door")]

use std::{collections::VecDeque, fs::File, os::unix::fs::MetadataExt, path::PathBuf};

use super::{Host, Unreadable};

/// Where systemd mounts it: alone, or beside the hierarchies of before.
const ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// Groups that are looked at: a node that is full of pods has some hundred.
const MOST: usize = 4096;

fn path(host: &Host) -> &'static str {
    let is_root = |path: &&&str| host.present(&format!("{path}/cgroup.procs")) == Ok(true);
    // The first hierarchy of before is mounted below the same directory, which is none of its groups.
    ROOTS.iter().find(is_root).unwrap_or(&ROOTS[0])
}

/// The root of the running machine.
///
/// # Errors
/// It is not mounted.
pub fn root(host: &Host) -> Result<File, Unreadable> {
    let path = path(host);
    host.present(&format!("{path}/cgroup.procs"))?;
    File::open(path).map_err(|e| Unreadable { path: path.into(), why: super::Why::Failed(e.to_string()) })
}

/// The unit of systemd whose group has this inode number, while it runs: `cron.service`, `session-3.scope`.
pub fn unit(host: &Host, inode: u64) -> Option<String> {
    let root = PathBuf::from(path(host));
    if std::fs::metadata(&root).is_ok_and(|about| about.ino() == inode) {
        return None;
    }
    let mut groups = VecDeque::from([root]);
    for _ in 0..MOST {
        let group = groups.pop_front()?;
        let entries = std::fs::read_dir(&group).ok().into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            if entry.metadata().is_ok_and(|about| about.ino() == inode) {
                let path = entry.path();
                let names = path.iter().rev().filter_map(|name| name.to_str());
                let is_unit = |name: &&str| name.ends_with(".service") || name.ends_with(".scope");
                return names.into_iter().find(is_unit).map(str::to_owned);
            }
            groups.push_back(entry.path());
        }
    }
    None
}
