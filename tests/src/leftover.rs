//! The proof that a bed left nothing behind: processes, namespaces, links, BPF programs, files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;

use crate::{process::MARK, watch::until};

/// The programs of `ebpf/src/bin`, as the kernel names them.
const PROGRAMS: [&str; 6] =
    ["bramble_egress", "bramble_ingress", "bramble_nop", "bramble_sysctl", "fault", "kfree_skb"];
/// Folders in which a file of ours would lie, if one did.
const FOLDERS: [&str; 8] =
    ["/run", "/tmp", "/var/tmp", "/var/lib", "/var/log", "/etc", "/sys/fs/bpf", "/dev/shm"];
/// The kernel takes namespaces down after their last process, in its own time.
const PATIENCE: Duration = Duration::from_secs(10);

/// What of our kind was there before.
#[derive(Clone, Debug)]
pub struct Before {
    links: BTreeSet<String>,
    programs: BTreeSet<u32>,
    files: BTreeSet<PathBuf>,
}

impl Before {
    /// Looks around, before a bed is made.
    ///
    /// # Errors
    /// The kernel does not list links or programs.
    pub fn look() -> Result<Self> {
        Ok(Self { links: links()?, programs: programs().into_keys().collect(), files: files() })
    }

    /// What is there now that was not there before and can be told to be of the bed with this
    /// [`mark`](crate::process::mark) and these namespaces; waits ten seconds for the kernel to clear up.
    /// Empty = nothing.
    ///
    /// # Errors
    /// The kernel does not list links.
    pub fn left_behind(&self, mark: &str, identities: &[String]) -> Result<Vec<String>> {
        let mut left = Vec::new();
        let _ = until(PATIENCE, "nothing is left", || {
            left = self.look_again(mark, identities)?;
            Ok(left.is_empty().then_some(()))
        });
        Ok(left)
    }

    fn look_again(&self, mark: &str, identities: &[String]) -> Result<Vec<String>> {
        let processes = processes(mark).into_iter().map(|process| format!("process {process}"));
        let namespaces =
            identities.iter().filter(|identity| is_held(identity)).map(|i| format!("namespace {i}"));
        let links = links()?.difference(&self.links).map(|link| format!("link {link}")).collect::<Vec<_>>();
        let mut programs = programs();
        programs.retain(|id, _| !self.programs.contains(id));
        if !programs.is_empty() {
            // A program in the hands of a living process is that process's; ours are listed themselves.
            let held = programs_in_hands();
            programs.retain(|id, _| !held.contains(id));
        }
        let programs = programs.into_iter().map(|(id, name)| format!("BPF program {id} {name}"));
        let files = files()
            .difference(&self.files)
            .map(|file| format!("file {}", file.display()))
            .collect::<Vec<_>>();
        Ok(processes.chain(namespaces).chain(links).chain(programs).chain(files).collect())
    }
}

/// Links in our own namespace that carry the bed's name.
fn links() -> Result<BTreeSet<String>> {
    let entries = fs::read_dir("/sys/class/net")?.flatten();
    Ok(entries
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|n| n.starts_with("bramble"))
        .collect())
}

/// Whether a program in the kernel carries a name of ours.
pub fn is_ours(program: &str) -> bool {
    PROGRAMS.contains(&program)
}

/// Loaded BPF programs that carry a name of ours, by id.
fn programs() -> BTreeMap<u32, String> {
    aya::programs::loaded_programs()
        .flatten()
        .filter_map(|program| {
            let name = program.name_as_str()?.to_owned();
            is_ours(&name).then(|| (program.id(), name))
        })
        .collect()
}

/// Ids of BPF programs that some process holds open.
fn programs_in_hands() -> BTreeSet<u32> {
    all_processes()
        .filter_map(|process| fs::read_dir(process.join("fdinfo")).ok())
        .flat_map(|folder| folder.flatten())
        .filter_map(|entry| fs::read_to_string(entry.path()).ok())
        .filter_map(|text| text.lines().find_map(|l| l.strip_prefix("prog_id:"))?.trim().parse().ok())
        .collect()
}

/// Files and folders that carry our name, at the places where such things lie.
fn files() -> BTreeSet<PathBuf> {
    let list = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let is_ours =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().contains("bramble"));
    FOLDERS.iter().flat_map(|folder| list(Path::new(folder))).filter(is_ours).collect()
}

fn all_processes() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.map(|e| e.path()).filter(|p| {
        p.file_name().is_some_and(|name| name.to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
    })
}

fn marked(mark: &str) -> impl Iterator<Item = PathBuf> {
    let wanted = format!("{MARK}={mark}");
    all_processes().filter(move |process| {
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        environment.split(|b| *b == 0).any(|entry| entry == wanted.as_bytes())
    })
}

/// Identities of the namespaces in which processes of the bed with this mark are, and the calling one is not.
pub fn namespaces(mark: &str) -> Vec<String> {
    let of = |process: &Path| ["ns/net", "ns/mnt"].map(|kind| fs::read_link(process.join(kind)).ok());
    let own = of(Path::new("/proc/self"));
    let all = marked(mark).flat_map(|process| of(&process));
    let all: BTreeSet<PathBuf> = all.filter(|found| !own.contains(found)).flatten().collect();
    all.into_iter().map(|found| found.display().to_string()).collect()
}

/// Processes of the bed with this mark, as `id command line`; never the calling one.
pub fn processes(mark: &str) -> Vec<String> {
    marked(mark)
        .map(|process| {
            let line = fs::read(process.join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            format!("{} {}", process.file_name().unwrap_or_default().to_string_lossy(), line.trim())
        })
        .collect()
}

/// Whether a process is still in the namespace, or a mount or an open file keeps it.
fn is_held(identity: &str) -> bool {
    let mounted = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let is_it = |path: PathBuf| fs::read_link(path).is_ok_and(|link| link == Path::new(identity));
    mounted.contains(identity)
        || all_processes().any(|process| {
            let open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten().map(|e| e.path());
            open.chain(["ns/net", "ns/mnt"].map(|ns| process.join(ns))).any(is_it)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_of_ours_is_recognised() {
        let mut programs = BTreeSet::new();
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ebpf/src/bin");
        for entry in fs::read_dir(sources).unwrap().flatten() {
            let text = fs::read_to_string(entry.path()).unwrap();
            let names = text.lines().filter_map(|line| line.strip_prefix("pub fn ")?.split('(').next());
            programs.extend(names.map(str::to_owned));
        }
        assert_eq!(programs, PROGRAMS.map(str::to_owned).into());
        assert!(PROGRAMS.iter().all(|name| name.len() < 16), "the kernel cuts longer names");
    }
}
