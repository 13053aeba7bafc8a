//! A Debian with a systemd of its own in a container: everything above the kernel is real, the kernel is this machine's.
//!
//! It lives in a network and a mount namespace of the bed, on an overlay whose upper half is memory: it keeps its changes
//! over a reboot and leaves none on the disk. Nothing is registered with this machine's systemd, which need not run.
//! Its kernel's settings below `/proc/sys` are read-only, because most of them are this machine's own.
//! There is no memory or CPU controller in it where this machine has these in version 1's hierarchies.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Answer, Gift, Machine, PATIENCE, wait_until_running};
use crate::{
    namespace::{Namespace, run_in},
    process::{Process, bound},
    watch::until,
};

/// What the container's systemd-nspawn ends with when the system inside wants to start again.
const WANTS_REBOOT: i32 = 133;
/// Where the container's files lie in its namespace.
const ROOT: &str = "/run/bed/root";
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A running container. Dropping it kills it.
#[derive(Debug)]
pub struct Container {
    // Dropped from top to bottom: the system before what it stands on.
    holder: Process,
    nspawn: u32,
    leader: u32,
    groups: Groups,
    namespace: Namespace,
    name: String,
    booted_in: Duration,
}

impl Container {
    /// Boots the tree `root`, which stays as it is, with `gifts` in it.
    pub(super) fn start(name: &str, root: &Path, gifts: &[Gift]) -> Result<Self> {
        let namespace = Namespace::new(name)?;
        let layers = format!("lowerdir={},upperdir=/run/bed/upper,workdir=/run/bed/work", root.display());
        run_in(&namespace, "mkdir", &["/run/bed/upper", "/run/bed/work", ROOT])?;
        run_in(&namespace, "mount", &["-t", "overlay", "-o", &layers, "overlay", ROOT])?;
        for gift in gifts {
            place(gift, &namespace.path(ROOT))?;
        }
        let groups = Groups::make()?;
        let began = Instant::now();
        let holder = spawn(name, &namespace, &groups)?;
        let (name, booted_in) = (name.to_owned(), Duration::ZERO);
        let mut container = Self { holder, nspawn: 0, leader: 0, groups, namespace, name, booted_in };
        container.wait(began)?;
        Ok(container)
    }

    /// The network that it is in: links can be made in it, before and while it runs.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// A path inside, as seen from outside.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.leader))
    }

    /// A bound command inside, with root's plain environment.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = bound("nsenter");
        command.arg("--target").arg(self.leader.to_string());
        command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd"]);
        command.args(["--", "env", "-i", PATH, "HOME=/root", "LANG=C.UTF-8", program]).args(arguments);
        command
    }

    /// Copies a file into the running system.
    ///
    /// # Errors
    /// It cannot be read here or written there.
    pub fn put(&self, gift: &Gift) -> Result<()> {
        place(gift, &self.path(""))
    }

    /// Waits until the system inside is up.
    fn wait(&mut self, began: Instant) -> Result<()> {
        (self.nspawn, self.leader) = until(PATIENCE, "the container has an init", || {
            if let Some(status) = self.holder.ended() {
                bail!("systemd-nspawn ended with {status}: {}", self.log());
            }
            let Some(nspawn) = child(self.holder.pid(), "systemd-nspawn") else { return Ok(None) };
            Ok(child(nspawn, "systemd").map(|init| (nspawn, init)))
        })
        .with_context(|| self.log())?;
        wait_until_running(self).with_context(|| self.log())?;
        self.booted_in = began.elapsed();
        Ok(())
    }

    fn wait_for_end(&mut self) -> Result<ExitStatus> {
        until(PATIENCE, "the container is down", || Ok(self.holder.ended())).with_context(|| self.log())
    }

    /// What came to its console.
    pub fn log(&self) -> String {
        fs::read_to_string(self.namespace.path("/run/bed/console")).unwrap_or_default()
    }
}

impl Machine for Container {
    fn name(&self) -> &str {
        &self.name
    }

    fn run(&mut self, command: &str) -> Result<Answer> {
        let output = self.command("sh", &["-c", command]).output().context("starting nsenter")?;
        Ok(Answer {
            // A command that a signal ended has no code; shells say 128 and the signal.
            code: output.status.code().unwrap_or(128),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    fn booted_in(&self) -> Duration {
        self.booted_in
    }

    fn reboot(&mut self) -> Result<()> {
        // The connection may end before the answer.
        let _ = self.run("systemctl reboot")?;
        let status = self.wait_for_end()?;
        ensure!(
            status.code() == Some(WANTS_REBOOT),
            "it ended with {status} instead of a reboot: {}",
            self.log()
        );
        let began = Instant::now();
        self.holder = spawn(&self.name, &self.namespace, &self.groups)?;
        self.wait(began)
    }

    fn stop(mut self: Box<Self>) -> Result<()> {
        // It is the grandchild of this process and held by its child, so the id is still its own.
        kill(Pid::from_raw(self.nspawn.cast_signed()), Signal::SIGTERM)
            .context("asking the container to end")?;
        let status = self.wait_for_end()?;
        ensure!(status.success(), "{} ended with {status}: {}", self.name, self.log());
        Ok(())
    }
}

fn spawn(name: &str, namespace: &Namespace, groups: &Groups) -> Result<Process> {
    let log = namespace.path("/run/bed/console");
    let console = fs::File::create(&log).with_context(|| format!("making {}", log.display()))?;
    let join: String =
        groups.0.iter().map(|group| format!("echo $$ > {}/cgroup.procs && ", group.display())).collect();
    let mut command = namespace.command("sh");
    command.arg("-c").arg(format!("{join}exec \"$@\""));
    // The container outlives a killed nspawn, but not the first process of the process namespace that it is made in.
    command.args(["sh", "unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--"]);
    command.args(["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--settings=no"]);
    command.args([&format!("--machine=bed-{name}"), &format!("--directory={ROOT}")]);
    // The namespace is the container's own, so it may do with links what it likes.
    command.arg("--network-namespace-path=/proc/self/ns/net");
    command.args(["--capability=all", "--system-call-filter=bpf @keyring @module"]);
    command.args(["--console=pipe", "--resolv-conf=off", "--timezone=off", "--link-journal=no"]);
    command.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1");
    command.stdin(Stdio::null()).stdout(console.try_clone()?).stderr(console);
    Process::spawn(format!("{name}'s systemd-nspawn"), command)
}

/// A process's child that runs this program.
fn child(process: u32, program: &str) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).ok()?;
    let runs = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == program)
    };
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(runs)
}

/// Puts a file into a tree.
pub(super) fn place(gift: &Gift, root: &Path) -> Result<()> {
    let to = root.join(gift.to.trim_start_matches('/'));
    fs::create_dir_all(to.parent().context("a file has a folder")?)?;
    fs::copy(&gift.from, &to)
        .with_context(|| format!("copying {} to {}", gift.from.display(), to.display()))?;
    Ok(())
}

/// The container's own place in this machine's control groups; otherwise nspawn makes one at their root and leaves it.
#[derive(Debug)]
struct Groups(Vec<PathBuf>);

impl Groups {
    const PREFIX: &str = "bramble-bed-";

    fn make() -> Result<Self> {
        let hierarchies = hierarchies(&fs::read_to_string("/proc/self/mountinfo")?);
        ensure!(!hierarchies.is_empty(), "this machine has no unified control groups mounted");
        let mut groups = Self(Vec::new());
        for hierarchy in hierarchies {
            clear_away_orphans(&hierarchy);
            let group = (0..u16::MAX)
                .map(|number| hierarchy.join(format!("{}{}-{number}", Self::PREFIX, std::process::id())))
                .find(|group| !group.exists())
                .context("there are too many control groups")?;
            fs::create_dir(&group).with_context(|| format!("making {}", group.display()))?;
            groups.0.push(group);
        }
        Ok(groups)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for group in &self.0 {
            // The last processes are on their way out; what stays is cleared away by the next container.
            let end = Instant::now() + Duration::from_secs(5);
            while !remove_group(group) && Instant::now() < end {
                sleep(Duration::from_millis(20));
            }
        }
    }
}

/// Processes that live in containers which this process made, or left behind.
///
/// # Errors
/// The mounts cannot be read.
pub fn inhabitants(owner: u32) -> Result<Vec<u32>> {
    let prefix = format!("{}{owner}-", Groups::PREFIX);
    let mut found = Vec::new();
    for hierarchy in hierarchies(&fs::read_to_string("/proc/self/mountinfo")?) {
        for entry in fs::read_dir(hierarchy).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                collect_processes(&entry.path(), &mut found);
            }
        }
    }
    Ok(found)
}

fn collect_processes(group: &Path, found: &mut Vec<u32>) {
    // A group that is gone has none.
    let list = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    found.extend(list.lines().filter_map(|pid| pid.parse::<u32>().ok()));
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_processes(&entry.path(), found);
        }
    }
}

/// Where systemd keeps its groups: version 2, and beside it, where both are used, the named hierarchy of version 1.
fn hierarchies(mountinfo: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for line in mountinfo.lines() {
        let Some((mount, kind)) = line.split_once(" - ") else { continue };
        let Some(point) = mount.split(' ').nth(4) else { continue };
        let mut kind = kind.split(' ');
        let is_unified = kind.next() == Some("cgroup2");
        let is_named =
            kind.next_back().is_some_and(|options| options.split(',').any(|o| o == "name=systemd"));
        if is_unified || is_named {
            found.push(point.into());
        }
    }
    found
}

/// Removes a group with those below it; whether it is gone.
fn remove_group(group: &Path) -> bool {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    // It fails while a process is in it.
    fs::remove_dir(group).is_ok() || !group.exists()
}

fn clear_away_orphans(hierarchy: &Path) {
    for entry in fs::read_dir(hierarchy).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(owner) = name.strip_prefix(Groups::PREFIX).and_then(|rest| rest.split('-').next()) else {
            continue;
        };
        if !Path::new("/proc").join(owner).exists() {
            remove_group(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_made_where_systemd_looks_for_them() {
        let hybrid = "30 25 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      31 25 0:27 / /sys/fs/cgroup/systemd rw,relatime shared:9 - cgroup cgroup rw,xattr,name=systemd\n\
                      32 25 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            hierarchies(hybrid),
            [Path::new("/sys/fs/cgroup/systemd"), Path::new("/sys/fs/cgroup/unified")]
        );
        let unified = "32 25 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup rw,nsdelegate\n";
        assert_eq!(hierarchies(unified), [Path::new("/sys/fs/cgroup")]);
    }
}
