//! Plan, apply, revert on copies of the host trees and in a network namespace: the laws, and the faults.
//!
//! This program runs itself as bramble, built with the feature `failpoints`: a run can be killed at each step
//! of writing.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, symlink},
        process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::{
    fcntl::{Flock, FlockArg},
    sched::{CloneFlags, unshare},
};
use rustix::fs::{XattrFlags, lgetxattr, llistxattr, setxattr};
use serde_json::Value;

const BOOT: &str = "boot/firmware";
const CMDLINE: &str = "boot/firmware/cmdline.txt";
const SYSCTL: &str = "etc/sysctl.d/99-zz-bramble.conf";

/// A copy of a host tree; gone with its guard.
struct Tree {
    root: PathBuf,
    /// Whether what is below may be removed with it.
    ours: bool,
}

impl Tree {
    fn of(name: &str) -> Result<Tree> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("bed-converge-{}-{number}", std::process::id()));
        let tree = Tree { root, ours: true };
        fs::create_dir(&tree.root)?;
        tree.fill(name)?;
        Ok(tree)
    }

    /// Decisions of this machine's owner are not those of the tree's: an empty file beside it.
    fn config(&self) -> PathBuf {
        self.root.with_extension("toml")
    }

    /// A tree on a file system that was mounted for it.
    fn at(root: &Path, name: &str) -> Result<Tree> {
        let tree = Tree { root: root.to_owned(), ours: false };
        tree.fill(name)?;
        Ok(tree)
    }

    fn fill(&self, name: &str) -> Result<()> {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("hosts").join(name);
        fs::write(self.config(), "")?;
        done(Command::new("cp").arg("-a").arg(from.join(".")).arg(&self.root))?;
        // Something to lose: rights, an owner and an attribute of their own.
        let cmdline = self.path(CMDLINE);
        if cmdline.exists() {
            fs::set_permissions(&cmdline, fs::Permissions::from_mode(0o640))?;
            if nix::unistd::geteuid().is_root() {
                std::os::unix::fs::chown(&cmdline, Some(7), Some(8))?;
            }
            // tmpfs has none of the user's before Linux 6.6.
            let _ = setxattr(&cmdline, "user.owner", b"me", XattrFlags::empty());
        }
        Ok(())
    }

    /// Moves the boot files to a FAT file system, mounted where they were.
    fn boot_from(&self, image: &Path) -> Result<()> {
        let (boot, aside) = (self.path(BOOT), self.path("aside"));
        fs::rename(&boot, &aside)?;
        fs::create_dir(&boot)?;
        mount(&["-t", "vfat", "-o", "loop", &image.to_string_lossy(), &boot.to_string_lossy()])?;
        for file in fs::read_dir(&aside)? {
            let file = file?;
            fs::write(boot.join(file.file_name()), fs::read(file.path())?)?;
        }
        Ok(fs::remove_dir_all(aside)?)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) -> Result<()> {
        let path = self.path(path);
        fs::create_dir_all(path.parent().context("a path has a parent")?)?;
        Ok(fs::write(path, content)?)
    }

    fn read(&self, path: &str) -> Result<Vec<u8>> {
        fs::read(self.path(path)).with_context(|| format!("reading {path}"))
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg0("bramble")
            .arg("--config")
            .arg(self.config())
            .args(arguments)
            .arg("--root")
            .arg(&self.root);
        Ok(command)
    }

    fn bramble(&self, arguments: &[&str]) -> Result<Run> {
        Ok(Run::of(self.command(arguments)?.output()?))
    }

    fn plan(&self) -> Result<Value> {
        let run = self.bramble(&["plan", "--json"])?;
        serde_json::from_str(&run.out).with_context(|| format!("{run:?}"))
    }

    /// Applies all, with every consent.
    fn apply(&self) -> Result<Run> {
        let consents = self.consents()?;
        let mut arguments = vec!["apply", "--yes"];
        arguments.extend(consents.iter().flat_map(|id| ["--consent", id.as_str()]));
        self.bramble(&arguments)
    }

    /// Applies all, and is killed at this step of writing.
    fn apply_until(&self, step: u32) -> Result<Run> {
        let consents = self.consents()?;
        let mut apply = self.command(&["apply", "--yes"])?;
        apply.args(consents.iter().flat_map(|id| ["--consent", id.as_str()]));
        Ok(Run::of(apply.env("BRAMBLE_FAILPOINT", step.to_string()).output()?))
    }

    fn consents(&self) -> Result<Vec<String>> {
        let plan = self.plan()?;
        let steps = plan["steps"].as_array().context("a plan has steps")?;
        let asking = steps.iter().filter(|step| step["gate"] == "needs_consent");
        Ok(asking.filter_map(|step| step["requirements"][0].as_str()).map(str::to_owned).collect())
    }

    /// Reverts until nothing is left to revert.
    fn revert_all(&self) -> Result<()> {
        for _ in 0..5 {
            let run = self.bramble(&["revert"])?;
            ensure!(run.code == Some(0), "{run:?}");
            if run.out.contains("nothing to undo") {
                return Ok(());
            }
        }
        bail!("revert finds no end")
    }

    fn receipts(&self) -> usize {
        let list = fs::read_dir(self.path("var/lib/bramble/receipts"));
        list.map_or(0, |list| list.flatten().filter(|entry| entry.path().is_dir()).count())
    }

    /// All of the tree but bramble's own state: kind, permissions, owner, attributes, content.
    fn snapshot(&self) -> Result<BTreeMap<PathBuf, String>> {
        let mut all = BTreeMap::new();
        let mut directories = vec![self.root.clone()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(&directory)? {
                let path = entry?.path();
                let name = path.strip_prefix(&self.root)?.to_owned();
                if name.starts_with("var/lib/bramble") || name.starts_with("lost+found") {
                    continue;
                }
                let meta = fs::symlink_metadata(&path)?;
                let content = match meta.file_type() {
                    kind if kind.is_dir() => {
                        directories.push(path.clone());
                        // Receipts need a place; it is not part of the machine's configuration.
                        if ["var", "var/lib"].contains(&name.to_str().unwrap_or_default()) {
                            continue;
                        }
                        Vec::new()
                    }
                    kind if kind.is_symlink() => fs::read_link(&path)?.into_os_string().into_encoded_bytes(),
                    _ => fs::read(&path)?,
                };
                let known =
                    format!("{:o} {} {} {:?}", meta.mode(), meta.uid(), meta.gid(), attributes(&path)?);
                all.insert(name, format!("{known} {}", content.escape_ascii()));
            }
        }
        Ok(all)
    }

    /// Whether the tree is as it was.
    fn is(&self, before: &BTreeMap<PathBuf, String>) -> Result<()> {
        let now = self.snapshot()?;
        let differs = |a: &BTreeMap<PathBuf, String>, b: &BTreeMap<PathBuf, String>| {
            a.iter()
                .filter(|(path, entry)| b.get(*path) != Some(entry))
                .map(|(p, e)| format!("{}: {e}", p.display()))
                .collect::<Vec<_>>()
        };
        ensure!(now == *before, "was {:#?}, is {:#?}", differs(before, &now), differs(&now, before));
        Ok(())
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.config());
        if self.ours {
            let _ = fs::remove_dir_all(&self.root);
        }
    }
}

/// What a run of bramble gave.
#[derive(Debug)]
struct Run {
    code: Option<i32>,
    signal: Option<i32>,
    out: String,
    err: String,
}

impl Run {
    fn of(output: Output) -> Run {
        Run {
            code: output.status.code(),
            signal: output.status.signal(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn says(&self, parts: &[&str]) -> Result<()> {
        let all = format!("{}{}", self.out, self.err).split_whitespace().collect::<Vec<_>>().join(" ");
        for part in parts {
            ensure!(all.contains(part), "{part:?} is not in {self:#?}");
        }
        Ok(())
    }
}

fn attributes(path: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut buffer = vec![0; 65536];
    let length = match llistxattr(path, &mut buffer[..]) {
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        length => length?,
    };
    let names: Vec<Vec<u8>> =
        buffer[..length].split(|b| *b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect();
    names
        .into_iter()
        .map(|name| {
            let length = lgetxattr(path, &name[..], &mut buffer[..])?;
            Ok((String::from_utf8(name)?, buffer[..length].to_vec()))
        })
        .collect()
}

fn done(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn trees() -> Result<Vec<String>> {
    let hosts = Path::new(env!("CARGO_MANIFEST_DIR")).join("hosts");
    let mut names = Vec::new();
    for entry in fs::read_dir(hosts)? {
        let entry = entry?;
        if entry.path().join("expected.json").exists() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    ensure!(names.len() >= 3, "{names:?}");
    Ok(names)
}

/// Runs in a thread with a mount namespace of its own, so that what it mounts is gone with it.
fn apart(flags: CloneFlags, test: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS | flags)?;
        done(Command::new("mount").args(["--make-rprivate", "/"]))?;
        test()
    });
    thread.join().map_err(|_| anyhow!("the thread panicked"))?
}

fn mount(arguments: &[&str]) -> Result<()> {
    done(Command::new("mount").args(arguments))
}

/// Decisions of an owner under which all requirements are asked for, in the sets that go together.
const DECISIONS: [&str; 3] = [
    "",
    "[cluster]\nrole = \"server\"\nipv6 = true\ntunnel = \"geneve\"\nencryption = \"ipsec\"\nprotect_kernel_defaults = true\n",
    "[cluster]\nmasquerade = \"bpf\"\nencryption = \"wireguard\"\nbandwidth_manager = true\nbbr = true\nnetkit = true\n\
     ambient = false\nenvoy = false\n",
];

pub(crate) fn the_laws_hold_on_every_tree() -> Result<()> {
    in_memory(DECISIONS, |place, decisions| {
        let mut steps = 0;
        for name in trees()? {
            let root = place.join(&name);
            fs::create_dir(&root)?;
            let tree = Tree::at(&root, &name)?;
            fs::write(tree.config(), decisions)?;
            steps += the_laws_hold(&tree).with_context(|| format!("{name} with {decisions:?}"))?;
            fs::remove_dir_all(&root)?;
        }
        ensure!(steps > 50, "only {steps} steps were planned on all trees with {decisions:?}");
        Ok(())
    })
}

/// Says how many steps there were.
fn the_laws_hold(tree: &Tree) -> Result<usize> {
    let before = tree.snapshot()?;
    let plan = tree.plan()?;
    let steps = plan["steps"].as_array().context("a plan has steps")?;

    // Apply makes what it planned met, or all that is lacking is a boot.
    let run = tree.apply()?;
    ensure!(run.code == Some(0), "{run:#?}");
    let check = tree.bramble(&["check", "--json"])?;
    let check: Value = serde_json::from_str(&check.out)?;
    let after = tree.plan()?;
    let left = |id: &str| {
        let lists = after["left"].as_array().into_iter().flatten();
        lists.flat_map(|step| step["requirements"].as_array().into_iter().flatten()).any(|left| left == id)
    };
    for id in steps.iter().flat_map(|step| step["requirements"].as_array().into_iter().flatten()) {
        let id = id.as_str().context("an id is text")?;
        let findings = check["findings"].as_array().context("a check has findings")?;
        let state = findings.iter().find(|finding| finding["id"] == id).map(|finding| &finding["state"]);
        let state = state.and_then(Value::as_str).context("each requirement is judged")?;
        ensure!(matches!(state, "met" | "waiting") || left(id), "{id} is {state} after apply");
    }

    // A second apply changes nothing, and makes no receipt.
    ensure!(after["steps"].as_array().is_some_and(Vec::is_empty), "{after:#}");
    let (applied, receipts) = (tree.snapshot()?, tree.receipts());
    let run = tree.apply()?;
    ensure!(run.code == Some(0) && tree.receipts() == receipts, "{run:#?}");
    tree.is(&applied)?;

    tree.revert_all()?;
    tree.is(&before).context("after revert")?;
    Ok(steps.len())
}

/// A tree in which each kind of act happens: directories made, files made and replaced, a link, CRLF.
fn busy() -> Result<Tree> {
    let tree = Tree::of("pi5-bookworm-16k")?;
    let (_, boot) = BOOTS[0];
    make_busy(&tree, boot)?;
    Ok(tree)
}

/// Trees of each way to boot, and the file with the kernel's arguments that counts there.
const BOOTS: [(&str, &str); 4] = [
    ("pi5-bookworm-16k", CMDLINE),
    ("pi4-bookworm-dhcpcd", "boot/cmdline.txt"),
    ("pi5-ubuntu-25.10", "boot/firmware/current/cmdline.txt"),
    // A hook of Debian's writes it anew from a list that is not there yet.
    ("pi4-debian-12", CMDLINE),
];

fn make_busy(tree: &Tree, boot: &str) -> Result<()> {
    fs::remove_dir_all(tree.path("etc/modules-load.d"))?;
    without_pressure(tree)?;
    let cmdline = String::from_utf8(tree.read(boot)?)?;
    tree.write(boot, cmdline.trim_end().to_owned() + "\r\nsecond=line\r\n")?;
    tree.write(SYSCTL, "# by hand\nvm.swappiness = 1\n")
}

/// Lets the tree lack an argument.
fn without_pressure(tree: &Tree) -> Result<()> {
    if tree.path("proc/pressure").exists() {
        fs::remove_dir_all(tree.path("proc/pressure"))?;
    }
    let absent = String::from_utf8(tree.read("absent")?)?;
    tree.write("absent", absent + "/proc/pressure/\n")
}

fn no_temporary_files(tree: &Tree) -> Result<()> {
    let left: Vec<_> = tree
        .snapshot()?
        .into_keys()
        .filter(|path| path.to_string_lossy().ends_with(".bramble-new"))
        .collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

fn one_of(tree: &Tree, boot: &str, versions: &[Vec<u8>]) -> Result<()> {
    let now = tree.read(boot)?;
    ensure!(versions.contains(&now), "the boot file is neither old nor new: {}", now.escape_ascii());
    Ok(())
}

/// Runs a test for each case, all at once, each in a directory of its own that is memory: bringing every step to a
/// disk would take minutes, and a process that is killed loses nothing there that it keeps elsewhere.
fn in_memory<C: Send + 'static, const N: usize>(
    cases: [C; N],
    test: impl Fn(&Path, C) -> Result<()> + Send + Sync + 'static,
) -> Result<()> {
    let place = Tree::of("debian-12-amd64")?;
    let root = place.path("mnt");
    fs::create_dir(&root)?;
    apart(CloneFlags::empty(), move || {
        mount(&["-t", "tmpfs", "-o", "size=256m", "none", &root.to_string_lossy()])?;
        let (root, test) = (&root, &test);
        std::thread::scope(|scope| {
            let mut number = 0;
            let runs = cases.map(|case| {
                number += 1;
                let root = root.join(number.to_string());
                scope.spawn(move || {
                    fs::create_dir(&root)?;
                    test(&root, case)
                })
            });
            runs.into_iter().try_for_each(|run| run.join().map_err(|_| anyhow!("a thread panicked"))?)
        })
    })
}

fn on_every_boot(test: fn(&Path, &str, &str) -> Result<()>) -> Result<()> {
    in_memory(BOOTS, move |place, (name, boot)| test(place, name, boot).with_context(|| name.to_owned()))
}

/// The image of a boot partition, where a place has one.
const FAT: &str = "fat.img";

/// A busy tree in `place`, and what it is like. One of an earlier step is gone.
fn fresh(place: &Path, name: &str, boot: &str) -> Result<(Tree, BTreeMap<PathBuf, String>)> {
    let (root, fat) = (place.join("tree"), place.join(FAT));
    if root.exists() {
        if fat.exists() {
            done(Command::new("umount").arg(root.join(BOOT)))?;
        }
        fs::remove_dir_all(&root)?;
    }
    fs::create_dir(&root)?;
    let tree = Tree::at(&root, name)?;
    if fat.exists() {
        tree.boot_from(&fat)?;
    }
    make_busy(&tree, boot)?;
    let before = tree.snapshot()?;
    Ok((tree, before))
}

/// The boot file before and after all was applied.
fn old_and_new(place: &Path, name: &str, boot: &str) -> Result<[Vec<u8>; 2]> {
    let (whole, _) = fresh(place, name, boot)?;
    let old = whole.read(boot)?;
    let run = whole.apply()?;
    ensure!(run.code == Some(0), "apply on the busy tree: {run:#?}");
    let new = whole.read(boot)?;
    ensure!(new.ends_with(b"\r\n") && new.windows(13).any(|part| part == b" second=line "), "{run:#?}");
    ensure!(old != new, "nothing happened to the boot file");
    Ok([old, new])
}

pub(crate) fn a_run_that_is_killed_at_any_step_is_healed_by_the_next() -> Result<()> {
    on_every_boot(kill_applies)
}

fn kill_applies(place: &Path, name: &str, boot: &str) -> Result<()> {
    let versions = old_and_new(place, name, boot)?;
    let mut steps = 0;
    for step in 1.. {
        let (tree, before) = fresh(place, name, boot)?;
        let run = tree.apply_until(step)?;
        if run.signal != Some(9) {
            ensure!(run.code == Some(0), "{run:#?}");
            break;
        }
        steps = step;
        let case = || format!("apply was killed at step {step}");
        one_of(&tree, boot, &versions).with_context(case)?;
        // Half of them go on, half of them go back.
        if step % 2 == 0 {
            let run = tree.apply()?;
            ensure!(run.code == Some(0), "{}: {run:#?}", case());
            ensure!(tree.read(boot)? == versions[1] && tree.receipts() <= 1, "{}", case());
            no_temporary_files(&tree).with_context(case)?;
        }
        tree.revert_all().with_context(case)?;
        tree.is(&before).with_context(case)?;
    }
    ensure!(steps > 50, "only {steps} steps");
    Ok(())
}

pub(crate) fn a_revert_that_is_killed_at_any_step_is_brought_to_its_end() -> Result<()> {
    on_every_boot(kill_reverts)
}

fn kill_reverts(place: &Path, name: &str, boot: &str) -> Result<()> {
    let versions = old_and_new(place, name, boot)?;
    let mut steps = 0;
    for step in 1.. {
        let (tree, before) = fresh(place, name, boot)?;
        ensure!(tree.apply()?.code == Some(0), "apply");
        let mut revert = tree.command(&["revert"])?;
        let run = Run::of(revert.env("BRAMBLE_FAILPOINT", step.to_string()).output()?);
        if run.signal != Some(9) {
            ensure!(run.code == Some(0), "{run:#?}");
            break;
        }
        steps = step;
        let case = || format!("revert was killed at step {step}");
        one_of(&tree, boot, &versions).with_context(case)?;
        // Half of them change their mind first.
        if step % 2 == 0 {
            let run = tree.apply()?;
            ensure!(run.code == Some(0) && tree.read(boot)? == versions[1], "{}: {run:#?}", case());
            no_temporary_files(&tree).with_context(case)?;
        }
        tree.revert_all().with_context(case)?;
        tree.is(&before).with_context(case)?;
    }
    ensure!(steps > 30, "only {steps} steps");
    Ok(())
}

/// Why no boot partition can be mounted here.
pub(crate) fn no_fat() -> Option<String> {
    // A kernel that has it as a module may not have been asked for it yet.
    let _ = Command::new("modprobe").arg("vfat").output();
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !known.split_whitespace().any(|word| word == "vfat") {
        return Some("this kernel has no FAT (vfat)".into());
    }
    if !Path::new("/dev/loop-control").exists() {
        return Some("there are no loop devices".into());
    }
    let missing = Command::new("mkfs.vfat").arg("--help").output().is_err();
    missing.then(|| "needs mkfs.vfat (Debian: dosfstools)".into())
}

/// Makes a boot partition of 2 MiB, with clusters of 2 KiB.
fn make_fat(image: &Path) -> Result<()> {
    fs::File::create(image)?.set_len(2 << 20)?;
    done(Command::new("mkfs.vfat").args(["-s", "4"]).arg(image))
}

pub(crate) fn on_fat_what_is_killed_at_any_step_is_healed() -> Result<()> {
    in_memory([kill_applies, kill_reverts], |place, kill| {
        make_fat(&place.join(FAT))?;
        let (name, boot) = BOOTS[0];
        kill(place, name, boot)
    })
}

/// Debian's own hook, as its package ships it, run on a tree as a kernel update does.
fn update_kernel(tree: &Tree) -> Result<()> {
    let root = tree.root.clone();
    let tools = root.join("tools");
    fs::create_dir(&tools)?;
    // What it asks of the machine, as a Pi would answer.
    for (tool, says) in [
        ("ischroot", "exit 0"),
        ("dpkg", "echo arm64"),
        ("findmnt", "case $* in *fstype*) echo ext4;; *) echo /dev/mmcblk0p2;; esac"),
    ] {
        fs::write(tools.join(tool), format!("#!/bin/sh\n{says}\n"))?;
        fs::set_permissions(tools.join(tool), fs::Permissions::from_mode(0o755))?;
    }
    apart(CloneFlags::empty(), move || {
        for (from, to) in [("boot", "/boot"), ("etc/default", "/etc/default")] {
            mount(&["--bind", &root.join(from).to_string_lossy(), to])?;
        }
        let kernel = ["/boot/vmlinuz-6.12", "/boot/initrd.img-6.12"];
        kernel.iter().try_for_each(|file| fs::write(file, ""))?;
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", tools.display());
        let hook = root.join("etc/kernel/postinst.d/z50-raspi-firmware");
        let hook =
            Command::new("sh").arg(hook).env("PATH", path).env("DEB_MAINT_PARAMS", "configure").output();
        let hook = hook.context("starting the hook")?;
        ensure!(hook.status.success(), "the hook says {}", String::from_utf8_lossy(&hook.stderr));
        kernel.iter().try_for_each(|file| Ok(fs::remove_file(file)?))
    })?;
    Ok(fs::remove_dir_all(tree.path("tools"))?)
}

pub(crate) fn a_kernel_update_of_debians_keeps_what_was_applied_and_loses_what_was_reverted() -> Result<()> {
    for name in ["pi4-debian-12", "pi4-debian-13"] {
        let tree = Tree::of(name)?;
        without_pressure(&tree)?;
        // Applied a first time, or written by hand: the list does not have it.
        let written = tree.path("etc/default/raspi-extra-cmdline").exists();
        if written {
            tree.write("etc/default/raspi-extra-cmdline", "foo=1\n")?;
        }
        update_kernel(&tree)?;
        let old = String::from_utf8(tree.read(CMDLINE)?)?;
        ensure!(old.contains(" root=/dev/mmcblk0p2 rw ") && old.contains("foo=1") == written, "{old}");
        let before = tree.snapshot()?;
        let run = tree.apply()?;
        ensure!(run.code == Some(0), "{name}: {run:#?}");
        let applied = String::from_utf8(tree.read(CMDLINE)?)?;
        ensure!(applied.ends_with(" psi=1\n") && applied.lines().count() == 1, "{name}: {applied:?}");
        update_kernel(&tree)?;
        let updated = String::from_utf8(tree.read(CMDLINE)?)?;
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        ensure!(words(&updated) == words(&applied), "{name}: {applied:?} became {updated:?}");
        tree.write(CMDLINE, &applied)?;
        tree.revert_all()?;
        update_kernel(&tree)?;
        ensure!(String::from_utf8(tree.read(CMDLINE)?)? == old, "{name}: the update brought it back");

        // By hand in cmdline.txt alone: the next update would take it away.
        tree.write(CMDLINE, &applied)?;
        tree.bramble(&["check", "boot-cmdline"])?
            .says(&["the next kernel update writes", "without psi=1"])?;
        ensure!(tree.apply()?.code == Some(0), "{name}");
        update_kernel(&tree)?;
        let updated = String::from_utf8(tree.read(CMDLINE)?)?;
        ensure!(words(&updated) == words(&applied), "{name}: {applied:?} became {updated:?}");
        tree.write(CMDLINE, &old)?;
        tree.revert_all()?;
        tree.is(&before).with_context(|| name.to_owned())?;
    }
    Ok(())
}

pub(crate) fn what_a_file_has_besides_its_content_stays_and_comes_back() -> Result<()> {
    let tree = busy()?;
    tree.write(SYSCTL, "# by hand\nvm.swappiness = 1\n")?;
    // acl(5) in the kernel's form: version 2; the owner rw-, user 7 r--, the group r--, the mask r--, others ---.
    let acl: Vec<u8> = [
        &2u32.to_le_bytes()[..],
        &[1, 0, 6, 0, 255, 255, 255, 255],
        &[2, 0, 4, 0, 7, 0, 0, 0],
        &[4, 0, 4, 0, 255, 255, 255, 255],
        &[16, 0, 4, 0, 255, 255, 255, 255],
        &[32, 0, 0, 0, 255, 255, 255, 255],
    ]
    .concat();
    for path in [CMDLINE, SYSCTL] {
        let path = tree.path(path);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640))?;
        std::os::unix::fs::chown(&path, Some(7), Some(8))?;
        setxattr(&path, "user.owner", b"me\0\xff", XattrFlags::empty())?;
        setxattr(&path, "trusted.mark", b"", XattrFlags::empty())?;
        setxattr(&path, "system.posix_acl_access", &acl, XattrFlags::empty())?;
    }
    let known = |path: &str| -> Result<_> {
        let meta = fs::symlink_metadata(tree.path(path))?;
        Ok((meta.mode(), meta.uid(), meta.gid(), attributes(&tree.path(path))?))
    };
    let (mode, uid, gid, kept) = known(CMDLINE)?;
    ensure!((mode & 0o7777, uid, gid, kept.len()) == (0o640, 7, 8, 3), "{mode:o} {uid} {gid} {kept:?}");
    let (before, whole) = ([known(CMDLINE)?, known(SYSCTL)?], tree.snapshot()?);
    let inode = |path: &str| Ok::<_, anyhow::Error>(fs::metadata(tree.path(path))?.ino());
    let inodes = [inode(CMDLINE)?, inode(SYSCTL)?];
    ensure!(tree.apply()?.code == Some(0), "apply");
    ensure!(inodes != [inode(CMDLINE)?, inode(SYSCTL)?], "they were not replaced");
    ensure!([known(CMDLINE)?, known(SYSCTL)?] == before, "{:?} is not {before:?}", known(CMDLINE)?);
    // What was removed meanwhile by somebody is no longer what bramble wrote.
    rustix::fs::removexattr(tree.path(SYSCTL), "user.owner")?;
    let run = tree.bramble(&["revert"])?;
    ensure!(run.code == Some(2), "{run:#?}");
    run.says(&["what was changed since: -attribute user.owner next"])?;
    setxattr(tree.path(SYSCTL), "user.owner", b"me\0\xff", XattrFlags::empty())?;
    tree.revert_all()?;
    tree.is(&whole)
}

/// Applies with all but a few KiB of a file system of the tree full, for each of some sizes.
fn full(tree: &Tree, place: &Path, sizes: impl Iterator<Item = usize>) -> Result<()> {
    let before = tree.snapshot()?;
    let old = tree.read(CMDLINE)?;
    let (mut failures, mut successes) = (0, 0);
    for size in sizes {
        // Room that is given back is what bramble finds.
        fs::write(place.join("room"), vec![b'x'; size << 10])?;
        let mut filler = fs::File::create(place.join("filler"))?;
        while filler.write_all(&[b'x'; 1024]).is_ok() {}
        drop(filler);
        fs::remove_file(place.join("room"))?;
        let run = tree.bramble(&["apply", "--yes", "--consent", "swap"])?;
        let receipts = tree.receipts();
        match run.code {
            Some(2) => {
                run.says(&["no space left on device", "next make room there"])?;
                failures += 1;
            }
            Some(0) => successes += 1,
            _ => bail!("with {size} KiB: {run:#?}"),
        }
        let now = tree.read(CMDLINE)?;
        ensure!(now == old || now.ends_with(b"cgroup_enable=memory\n"), "{}", now.escape_ascii());
        fs::remove_file(place.join("filler"))?;
        // With room again: what is there goes back.
        no_temporary_files(tree)?;
        tree.revert_all().with_context(|| format!("with {size} KiB, {receipts} receipts"))?;
        tree.is(&before).with_context(|| format!("with {size} KiB"))?;
        fs::remove_dir_all(tree.path("var/lib/bramble"))?;
    }
    ensure!(failures > 2 && successes > 0, "{failures} runs met a full disk, {successes} did not");
    Ok(())
}

pub(crate) fn a_full_disk_stops_it_and_loses_nothing() -> Result<()> {
    apart(CloneFlags::empty(), || {
        let place = Tree::of("debian-12-amd64")?;
        let root = place.path("mnt");
        fs::create_dir(&root)?;
        let shown = root.to_string_lossy();
        mount(&["-t", "tmpfs", "-o", "size=24m", "none", &shown])?;
        full(&Tree::at(&root, "pi5-bookworm-16k")?, &root, (0..=160).step_by(8))?;
        done(Command::new("umount").arg(&root))?;
        let image = place.path("image");
        fs::File::create(&image)?.set_len(24 << 20)?;
        done(Command::new("mkfs.ext4").args(["-q", "-b", "1024", "-m", "0"]).arg(&image))?;
        mount(&["-o", "loop", &image.to_string_lossy(), &shown])?;
        let outcome =
            Tree::at(&root, "pi5-bookworm-16k").and_then(|tree| full(&tree, &root, (0..=60).step_by(4)));
        done(Command::new("umount").arg(&root))?;
        outcome
    })
}

pub(crate) fn a_full_boot_partition_stops_it_and_loses_nothing() -> Result<()> {
    in_memory([()], |place, ()| {
        let fat = place.join(FAT);
        make_fat(&fat)?;
        let root = place.join("tree");
        fs::create_dir(&root)?;
        let tree = Tree::at(&root, "pi5-bookworm-16k")?;
        tree.boot_from(&fat)?;
        full(&tree, &tree.path(BOOT), 0..=8)
    })
}

pub(crate) fn what_cannot_be_written_is_named_and_what_was_done_goes_back() -> Result<()> {
    apart(CloneFlags::empty(), || {
        let tree = Tree::of("pi5-bookworm-16k")?;
        let before = tree.snapshot()?;
        let boot = tree.path("boot/firmware");
        let boot = boot.to_string_lossy();
        mount(&["--bind", &boot, &boot])?;
        mount(&["-o", "remount,bind,ro", &boot])?;
        let run = tree.bramble(&["apply", "--yes"])?;
        ensure!(run.code == Some(2), "{run:#?}");
        run.says(&[
            "making /boot/firmware/.cmdline.txt.bramble-backup.bramble-new: read-only file system",
            "next make it writable",
            "done load nf_conntrack",
            "not add psi=1",
            "back bramble revert 000001-2",
        ])?;
        done(Command::new("umount").arg(&*boot))?;
        tree.revert_all()?;
        tree.is(&before)?;

        // What a file is mounted on cannot be replaced, and the copy beside it is made before that shows.
        let cmdline = tree.path(CMDLINE);
        let cmdline = cmdline.to_string_lossy();
        mount(&["--bind", &cmdline, &cmdline])?;
        let run = tree.bramble(&["apply", "--yes"])?;
        ensure!(run.code == Some(2), "{run:#?}");
        run.says(&[
            "writing /boot/firmware/cmdline.txt: device or resource busy",
            "done load nf_conntrack",
            "half add psi=1",
            "of which is done: /boot/firmware/cmdline.txt.bramble-backup back",
        ])?;
        done(Command::new("umount").arg(&*cmdline))?;
        tree.revert_all()?;
        tree.is(&before)?;

        let root = tree.root.to_string_lossy();
        mount(&["--bind", &root, &root])?;
        mount(&["-o", "remount,bind,ro", &root])?;
        for verb in [&["apply", "--yes"][..], &["revert"]] {
            let run = tree.bramble(verb)?;
            ensure!(run.code == Some(2), "{run:#?}");
            run.says(&["read-only file system", "next make it writable"])?;
        }
        ensure!(tree.bramble(&["plan"])?.code == Some(1), "a plan needs no writing");
        done(Command::new("umount").arg(&*root))?;
        tree.is(&before)
    })
}

pub(crate) fn without_rights_it_says_so_and_changes_nothing() -> Result<()> {
    let tree = Tree::of("pi4-trixie-4k")?;
    fs::set_permissions(&tree.root, fs::Permissions::from_mode(0o755))?;
    let before = tree.snapshot()?;
    // Where nobody may go there is no program to start.
    let program = Tree::of("debian-12-amd64")?;
    fs::set_permissions(&program.root, fs::Permissions::from_mode(0o755))?;
    let copy = program.path("bramble");
    fs::copy(std::env::current_exe()?, &copy)?;
    let run = |arguments: &[&str]| -> Result<Run> {
        let mut command = Command::new(&copy);
        command.arg0("bramble").arg("--config").arg(tree.config()).args(arguments).uid(65534).gid(65534);
        Ok(Run::of(command.output()?))
    };
    let root = tree.root.to_string_lossy().into_owned();
    let stopped = run(&["apply", "--yes", "--root", &root])?;
    ensure!(stopped.code == Some(2), "{stopped:#?}");
    stopped.says(&["permission denied", "next run it as root"])?;
    let refused = run(&["apply", "--yes"])?;
    ensure!(refused.code == Some(2), "{refused:#?}");
    refused.says(&["only root changes a machine", "next sudo bramble apply"])?;

    // What somebody else may write is not trusted with the way back.
    ensure!(tree.bramble(&["apply", "--yes"])?.code == Some(0), "apply as root");
    std::os::unix::fs::chown(tree.path("var/lib/bramble/receipts"), Some(65534), None)?;
    let run = tree.bramble(&["revert"])?;
    ensure!(run.code == Some(2), "{run:#?}");
    run.says(&["somebody else may write there"])?;
    std::os::unix::fs::chown(tree.path("var/lib/bramble/receipts"), Some(0), None)?;
    tree.revert_all()?;
    tree.is(&before)
}

pub(crate) fn a_second_run_names_the_first() -> Result<()> {
    let tree = Tree::of("pi4-trixie-4k")?;
    let before = tree.snapshot()?;
    tree.write("var/lib/bramble/receipts/lock", "4711")?;
    let lock = fs::File::options().read(true).write(true).open(tree.path("var/lib/bramble/receipts/lock"))?;
    let lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    for verb in [&["apply", "--yes"][..], &["revert"]] {
        let run = tree.bramble(verb)?;
        ensure!(run.code == Some(2), "{run:#?}");
        run.says(&["another bramble (process 4711) changes this host now", "next wait until it has ended"])?;
    }
    tree.is(&before)?;
    drop(lock);
    // Ten at once: each does it, finds it done, or finds another at work.
    let mut runs = Vec::new();
    for _ in 0..10 {
        let mut command = tree.command(&["apply", "--yes"])?;
        runs.push(command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn()?);
    }
    let mut worked = 0;
    for run in runs {
        let run = Run::of(run.wait_with_output()?);
        match run.code {
            Some(0) => worked += 1,
            Some(2) => run.says(&["another bramble (process "])?,
            _ => bail!("{run:#?}"),
        }
    }
    ensure!(worked > 0 && tree.receipts() == 1, "{worked} worked, {} receipts", tree.receipts());
    tree.revert_all()?;
    tree.is(&before)
}

pub(crate) fn a_file_that_somebody_else_changed_stays_and_is_shown() -> Result<()> {
    let tree = Tree::of("pi5-bookworm-16k")?;
    let before = tree.snapshot()?;
    ensure!(tree.apply()?.code == Some(0), "apply");
    let ours = tree.read(SYSCTL)?;
    let mut theirs = ours.clone();
    theirs.extend(b"kernel.panic = 5\n");
    tree.write(SYSCTL, &theirs)?;
    fs::set_permissions(tree.path("etc/modules-load.d/bramble.conf"), fs::Permissions::from_mode(0o600))?;
    let run = tree.bramble(&["revert"])?;
    ensure!(run.code == Some(2), "{run:#?}");
    run.says(&[
        "/etc/sysctl.d/99-zz-bramble.conf was changed by somebody else since: left as it is",
        "+net.ipv4.ip_forward = 1",
        "what was changed since: --- /etc/sysctl.d/99-zz-bramble.conf +++ /etc/sysctl.d/99-zz-bramble.conf",
        "+kernel.panic = 5",
        "/etc/modules-load.d/bramble.conf was changed by somebody else since",
        "what was changed since: -mode 644 +mode 600 next",
        "partly reverted",
    ])?;
    // The rest went on.
    ensure!(tree.read(CMDLINE)? == Tree::of("pi5-bookworm-16k")?.read(CMDLINE)?, "the boot file is not back");
    ensure!(tree.read(SYSCTL)? == theirs, "the file was touched");
    tree.bramble(&["plan"])?.says(&["is partly reverted"])?;
    // One is settled by hand, the other is kept.
    fs::set_permissions(tree.path("etc/modules-load.d/bramble.conf"), fs::Permissions::from_mode(0o644))?;
    let run = tree.bramble(&["revert", "--keep", "/etc/sysctl.d/99-zz-bramble.conf"])?;
    ensure!(run.code == Some(0), "{run:#?}");
    ensure!(tree.read(SYSCTL)? == theirs, "the file was touched");
    tree.bramble(&["revert"])?.says(&["nothing to undo"])?;
    fs::remove_file(tree.path(SYSCTL))?;
    tree.is(&before)
}

pub(crate) fn what_a_later_receipt_changed_is_undone_after_it() -> Result<()> {
    let tree = Tree::of("pi5-bookworm-16k")?;
    let before = tree.snapshot()?;
    fs::write(tree.config(), "[cluster]\naccept = [\"inotify\"]\n")?;
    ensure!(tree.bramble(&["apply", "--yes"])?.code == Some(1), "swap is left");
    fs::write(tree.config(), "")?;
    ensure!(tree.bramble(&["apply", "--yes"])?.code == Some(1), "swap is left");
    let list = tree.bramble(&["revert", "--list"])?.out;
    let names: Vec<&str> = list.lines().filter(|line| line.starts_with('0')).collect();
    let [first, second] = names[..] else { bail!("{list}") };
    let [first, second] = [first, second].map(|line| line.split(' ').next().unwrap_or_default());

    let run = tree.bramble(&["revert", first])?;
    ensure!(run.code == Some(2), "{run:#?}");
    run.says(&[
        &format!("undoing /{SYSCTL}: bramble changed it once more, by receipt {second}"),
        &format!("next sudo bramble revert {second}, then sudo bramble revert {first}"),
    ])?;
    ensure!(!run.out.contains("somebody else"), "{run:#?}");
    // An older version wrote the first, when the clock was wrong.
    let receipts = tree.path("var/lib/bramble/receipts");
    fs::rename(receipts.join(first), receipts.join("20990101T000000Z-1"))?;
    tree.bramble(&["revert", "--list"])?.says(&[&format!("to undo {second}: sudo bramble revert")])?;
    tree.revert_all()?;
    tree.is(&before)
}

pub(crate) fn what_is_misspelt_is_refused_and_nothing_is_undone() -> Result<()> {
    let tree = Tree::of("pi5-bookworm-16k")?;
    let before = tree.snapshot()?;
    tree.apply()?;
    let applied = tree.snapshot()?;
    for (arguments, says) in [
        (&["revert", "--keep", SYSCTL][..], "--keep etc/sysctl.d/99-zz-bramble.conf: receipt 000001-2"),
        (&["revert", "yesterday"], "no receipt is called yesterday; bramble revert --list names them"),
    ] {
        let run = tree.bramble(arguments)?;
        ensure!(run.code == Some(64) && run.out.is_empty() && run.err.contains(says), "{run:#?}");
        tree.is(&applied)?;
    }
    fs::write(tree.config(), "[cluster]\naccept = [\"inotfy\"]\n")?;
    for verb in [&["check"][..], &["plan"], &["apply", "--yes"]] {
        let run = tree.bramble(verb)?;
        ensure!(run.code == Some(64), "{run:#?}");
        run.says(&[": line 2: cluster.accept = \"inotfy\": no requirement is called \"inotfy\"; did you mean inotify?"])?;
    }
    // The way back needs no good configuration.
    tree.revert_all()?;
    tree.is(&before)
}

pub(crate) fn of_a_tree_that_tells_little_all_is_not_called_well() -> Result<()> {
    let tree = Tree::of("partial-forum-post")?;
    let run = tree.bramble(&["plan"])?;
    ensure!(run.code == Some(3), "{run:#?}");
    run.says(&[
        "inotify: /proc/sys/fs/inotify/max_user_instances: not in the captured tree",
        "next capture /proc/sys/fs/inotify/max_user_instances, or check on the machine itself",
        "nothing to do, could not be told: 75",
    ])
}

pub(crate) fn what_others_put_into_a_directory_of_ours_stays() -> Result<()> {
    let tree = busy()?;
    let before = tree.snapshot()?;
    ensure!(tree.apply()?.code == Some(0), "apply");
    let made =
        tree.snapshot()?.into_keys().find(|path| !before.contains_key(path) && tree.root.join(path).is_dir());
    let made = made.context("a directory was made")?;
    let theirs = made.join("theirs.conf").to_string_lossy().into_owned();
    tree.write(&theirs, "x\n")?;
    let run = tree.bramble(&["revert"])?;
    ensure!(run.code == Some(0), "{run:#?}");
    run.says(&[&format!("/{} stays: it holds what others put there", made.display())])?;
    ensure!(tree.read(&theirs)? == b"x\n", "it is gone");
    fs::remove_dir_all(tree.root.join(&made))?;
    tree.is(&before)
}

pub(crate) fn odd_files_are_edited_as_documented_or_left_to_a_person() -> Result<()> {
    type Make = fn(&Tree) -> Result<()>;
    let line = "console=tty1 root=/dev/x rootwait";
    // What is made of a tree, what the plan then says, and how the boot file ends after apply.
    let cases: &[(Make, &[&str], &str)] = &[
        (|tree| tree.write(CMDLINE, "a=1 b=2\r\n"), &[], "a=1 b=2 psi=1 cgroup_enable=memory\r\n"),
        (|tree| tree.write(CMDLINE, "a=1 b=2"), &[], "a=1 b=2 psi=1 cgroup_enable=memory"),
        (|tree| tree.write(CMDLINE, "\n\na=1\n\n"), &[], "a=1 psi=1 cgroup_enable=memory\n"),
        (
            |tree| tree.write(CMDLINE, format!("a=1 long={}\n", "x".repeat(4096))),
            &["memory-cgroup: /boot/firmware/cmdline.txt cannot be edited safely: its line would have"],
            "x\n",
        ),
        (
            |tree| tree.write(CMDLINE, "a=1\n# cgroup_enable=memory\n"),
            &["line 2 begins with #", "next sudoedit /boot/firmware/cmdline.txt"],
            "# cgroup_enable=memory\n",
        ),
        (
            |tree| {
                let mounts = String::from_utf8(tree.read("proc/1/mountinfo")?)?;
                let others: Vec<&str> = mounts.lines().filter(|line| !line.contains("/boot")).collect();
                tree.write("proc/1/mountinfo", others.join("\n") + "\n")
            },
            &[
                "boot-cmdline: neither /boot/firmware nor /boot is a FAT file system with a config.txt",
                "next sudo mount /boot/firmware",
            ],
            "",
        ),
        (
            |tree| {
                tree.write("boot/firmware/real.txt", "a=1\n")?;
                fs::remove_file(tree.path(CMDLINE))?;
                Ok(symlink("real.txt", tree.path(CMDLINE))?)
            },
            &[],
            "a=1 psi=1 cgroup_enable=memory\n",
        ),
        (
            |tree| {
                tree.write(
                    "boot/firmware/config.txt",
                    "[pi4]\narm_boost=1\n[cm5]\nx=1\n[all]\ncmdline=mine.txt\n",
                )?;
                tree.write("boot/firmware/mine.txt", "a=1\n")
            },
            &["--- /boot/firmware/mine.txt"],
            "",
        ),
        (
            |tree| Ok(symlink("/etc/hostname", tree.path(SYSCTL))?),
            &[
                "/etc/sysctl.d/99-zz-bramble.conf is a link to /etc/hostname",
                "next sudo rm /etc/sysctl.d/99-zz-bramble.conf",
            ],
            "",
        ),
    ];
    for (make, plan, end) in cases {
        let tree = Tree::of("pi5-bookworm-16k")?;
        tree.write(CMDLINE, format!("{line}\n"))?;
        make(&tree)?;
        let before = tree.snapshot()?;
        let planned = tree.bramble(&["plan"])?;
        planned.says(plan)?;
        let run = tree.apply()?;
        ensure!(matches!(run.code, Some(0 | 1)), "{run:#?}");
        let now = tree.read(CMDLINE)?;
        ensure!(now.ends_with(end.as_bytes()), "{end:?} is not the end of {}", now.escape_ascii());
        tree.revert_all()?;
        tree.is(&before).with_context(|| format!("after {plan:?}, {end:?}"))?;
    }
    Ok(())
}

pub(crate) fn a_link_to_nothing_is_left_to_a_person() -> Result<()> {
    let tree = Tree::of("pi4-debian-12")?;
    without_pressure(&tree)?;
    symlink("/srv/nothing", tree.path("etc/default/raspi-extra-cmdline"))?;
    let before = tree.snapshot()?;
    tree.bramble(&["plan"])?.says(&[
        "pressure: /etc/default/raspi-extra-cmdline is a link to /srv/nothing, where nothing is",
        "next sudo rm /etc/default/raspi-extra-cmdline, then plan again",
    ])?;
    let run = tree.apply()?;
    ensure!(run.code == Some(0), "{run:#?}");
    tree.revert_all()?;
    tree.is(&before)
}

pub(crate) fn a_file_with_two_names_stops_it_with_the_cause() -> Result<()> {
    let tree = Tree::of("pi5-bookworm-16k")?;
    tree.write(SYSCTL, "x = 1\n")?;
    fs::hard_link(tree.path(SYSCTL), tree.path("etc/other"))?;
    let before = tree.snapshot()?;
    let run = tree.bramble(&["apply", "--yes"])?;
    ensure!(run.code == Some(2), "{run:#?}");
    run.says(&[
        "writing /etc/sysctl.d/99-zz-bramble.conf: it has more than one name (hard links)",
        "next move",
    ])?;
    tree.revert_all()?;
    tree.is(&before)
}

pub(crate) fn a_drop_in_of_somebody_else_that_overrules_ours_is_told() -> Result<()> {
    let tree = Tree::of("debian-12-amd64")?;
    let yes = "[Network]\nManageForeignRoutes=yes\nManageForeignRoutingPolicyRules=yes\n";
    let theirs = "etc/systemd/networkd.conf.d/99-zzz-other.conf";
    tree.write(theirs, yes)?;
    tree.bramble(&["plan"])?.says(&[
        "networkd: /etc/systemd/networkd.conf.d/99-zzz-other.conf has the last word on ManageForeignRoutes",
        "next take the line out, or give the file a name that sorts before",
    ])?;

    // Where the requirement does not know who it is, it says so too.
    let tree = Tree::of("pi5-bookworm-16k")?;
    tree.write("etc/NetworkManager/conf.d/99-zzz-other.conf", "[keyfile]\nunmanaged-devices=mac:0\n")?;
    let before = tree.snapshot()?;
    let run = tree.apply()?;
    ensure!(run.code == Some(1), "what did not help is called done: {run:#?}");
    run.says(&["network-manager is still not met"])?;
    tree.bramble(&["plan"])?.says(&["network-manager: done, and not in force", "names sort later"])?;
    tree.revert_all()?;
    tree.is(&before)
}

pub(crate) fn what_a_tree_cannot_do_is_left_to_its_boot_or_to_its_machine() -> Result<()> {
    let tree = Tree::of("pi4-debian-13")?;
    ensure!(tree.apply()?.code == Some(0), "apply");
    let plan = tree.bramble(&["plan"])?;
    plan.says(&[
        "Written, and in force when the machine boots set net.ipv4.ip_forward = 1",
        "Left to the running machine: sudo bramble apply there enable and start systemd-time-wait-sync.service",
    ])?;
    // Its drop-ins are written, and read at the next boot.
    ensure!(!plan.out.contains("50-bramble") && !plan.out.contains("not in force"), "{plan:#?}");
    let plan = tree.plan()?;
    let left = plan["left"].as_array().context("a plan says what is left")?;
    ensure!(left.iter().any(|step| step["requirements"][0] == "clock-wait"), "{plan:#}");
    tree.revert_all()
}

/// The running kernel as bramble sees it when one requirement is all that matters: a network namespace, whose settings are
/// its own, with the directories covered that bramble writes to.
struct Kernel {
    place: Tree,
}

impl Kernel {
    const SETTINGS: [&str; 4] =
        ["ip_forward", "conf/default/forwarding", "conf/lo/forwarding", "conf/all/accept_redirects"];

    /// Runs a test on one that does not forward.
    fn on(requirement: &'static str, test: fn(&Kernel) -> Result<()>) -> Result<()> {
        apart(CloneFlags::CLONE_NEWNET, move || {
            let kernel = Kernel { place: Tree::of("debian-12-amd64")? };
            for directory in ["/etc/sysctl.d", "/var/lib"] {
                mount(&["-t", "tmpfs", "none", directory])?;
            }
            let list: Value = serde_json::from_str(&kernel.bramble(&["check", "--list", "--json"])?.out)?;
            let others: Vec<String> = list["requirements"]
                .as_array()
                .context("there are requirements")?
                .iter()
                .filter_map(|requirement| requirement["id"].as_str())
                .filter(|id| *id != requirement)
                .map(|id| format!("\"{id}\""))
                .collect();
            let config = format!("[cluster]\nipv6 = true\naccept = [{}]\n", others.join(", "));
            fs::write(kernel.place.config(), config)?;
            // A value that setting ip_forward moves along, and that must come back.
            kernel.set("conf/lo/forwarding", "1")?;
            kernel.set("conf/all/accept_redirects", "0")?;
            ensure!(kernel.now()? == ["0", "0", "1", "0"], "{:?}", kernel.now()?);
            test(&kernel)
        })
    }

    fn set(&self, setting: &str, value: &str) -> Result<()> {
        Ok(fs::write(format!("/proc/sys/net/ipv4/{setting}"), value)?)
    }

    /// The values of [`Kernel::SETTINGS`].
    fn now(&self) -> Result<Vec<String>> {
        let value = |setting| fs::read_to_string(format!("/proc/sys/net/ipv4/{setting}"));
        Kernel::SETTINGS.iter().map(|setting| Ok(value(setting)?.trim().to_owned())).collect()
    }

    fn bramble(&self, arguments: &[&str]) -> Result<Run> {
        Ok(Run::of(self.command(arguments)?.output()?))
    }

    /// Is killed at this step of writing.
    fn bramble_until(&self, step: u32, arguments: &[&str]) -> Result<Run> {
        Ok(Run::of(self.command(arguments)?.env("BRAMBLE_FAILPOINT", step.to_string()).output()?))
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg0("bramble").arg("--config").arg(self.place.config()).args(arguments);
        Ok(command)
    }

    /// How it finds the requirement: the state, and what shows it.
    fn finding(&self, id: &str) -> Result<(String, String)> {
        let run = self.bramble(&["check", id, "--json"])?;
        let found: Value = serde_json::from_str(&run.out).with_context(|| format!("{run:#?}"))?;
        let found = &found["findings"][0];
        let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
        Ok((text("state"), text("evidence") + &text("detail")))
    }

    /// Gives it a way out by a link of this name.
    fn lead_out(&self, link: &str) -> Result<()> {
        for line in [
            format!("link add {link} type veth peer name far"),
            "link set far up".to_owned(),
            format!("link set {link} up"),
            format!("address add 192.0.2.1/24 dev {link}"),
            "route add default via 192.0.2.2".to_owned(),
        ] {
            done(Command::new("ip").args(line.split(' ')))?;
        }
        Ok(())
    }

    /// Reverts all, and sees that the kernel is as it was and no file is left.
    fn revert_all(&self, before: &[String]) -> Result<()> {
        for _ in 0..5 {
            let run = self.bramble(&["revert"])?;
            ensure!(run.code == Some(0), "{run:#?}");
            if run.out.contains("nothing to undo") {
                ensure!(self.now()? == before, "{:?} is not {before:?}", self.now()?);
                let left: Vec<_> = fs::read_dir("/etc/sysctl.d")?.flatten().collect();
                ensure!(left.is_empty(), "left: {left:?}");
                return Ok(());
            }
        }
        bail!("revert finds no end")
    }
}

pub(crate) fn settings_of_a_running_kernel_are_set_and_put_back() -> Result<()> {
    Kernel::on("forwarding", |kernel| {
        let before = kernel.now()?;
        let run = kernel.bramble(&["apply", "--yes"])?;
        ensure!(run.code == Some(0), "{run:#?}");
        ensure!(kernel.now()?[..2] == ["1", "1"], "{:?}: {run:#?}", kernel.now()?);
        let again = kernel.bramble(&["apply", "--yes"])?;
        ensure!(again.code == Some(0), "{again:#?}");
        again.says(&["nothing to do"])?;

        // Drift of the running kernel alone needs no file.
        kernel.set("conf/default/forwarding", "0")?;
        let run = kernel.bramble(&["apply", "--yes"])?;
        ensure!(run.code == Some(0) && kernel.now()?[1] == "1", "{run:#?}");
        // The later receipt goes back to the drift, which is not what the earlier one had set.
        let run = kernel.bramble(&["revert"])?;
        ensure!(run.code == Some(0) && kernel.now()?[..2] == ["1", "0"], "{:?} {run:#?}", kernel.now()?);
        kernel.revert_all(&before)
    })
}

pub(crate) fn settings_of_a_running_kernel_come_back_after_a_kill_at_any_step() -> Result<()> {
    Kernel::on("forwarding", |kernel| {
        let before = kernel.now()?;
        let whole = |run: &Run| run.signal != Some(9);
        let mut kills = [0, 0];
        for step in 1.. {
            let run = kernel.bramble_until(step, &["apply", "--yes"])?;
            if whole(&run) {
                ensure!(run.code == Some(0), "{run:#?}");
                break;
            }
            kills[0] = step;
            let case = || format!("apply was killed at step {step}");
            // Half of them go on, half of them go back.
            if step % 2 == 0 {
                let run = kernel.bramble(&["apply", "--yes"])?;
                ensure!(run.code == Some(0) && kernel.now()?[..2] == ["1", "1"], "{}: {run:#?}", case());
            }
            kernel.revert_all(&before).with_context(case)?;
        }
        for step in 1.. {
            ensure!(kernel.bramble(&["apply", "--yes"])?.code == Some(0), "apply");
            let run = kernel.bramble_until(step, &["revert"])?;
            kernel.revert_all(&before).with_context(|| format!("revert was killed at step {step}"))?;
            if whole(&run) {
                break;
            }
            kills[1] = step;
        }
        ensure!(kills[0] > 20 && kills[1] > 10, "killed at {kills:?} steps alone");
        Ok(())
    })
}

pub(crate) fn a_setting_of_a_vlan_is_set_kept_and_put_back() -> Result<()> {
    Kernel::on("rp-filter", |kernel| {
        // The dot in its name is what matters: the kernel need not have VLANs for it.
        kernel.lead_out("eth0.1")?;
        let before = kernel.now()?;
        kernel.set("conf/eth0.1/rp_filter", "1")?;
        let is = |wanted: &str| -> Result<()> {
            let value = fs::read_to_string("/proc/sys/net/ipv4/conf/eth0.1/rp_filter")?;
            ensure!(value.trim() == wanted, "rp_filter is {value} and not {wanted}");
            Ok(())
        };
        let run = kernel.bramble(&["apply", "--yes"])?;
        ensure!(run.code == Some(0), "{run:#?}");
        is("0")?;
        kernel.bramble(&["apply", "--yes"])?.says(&["nothing to do"])?;
        // systemd reads the file as it was meant.
        let systemd = Path::new("/usr/lib/systemd/systemd-sysctl");
        if systemd.exists() {
            kernel.set("conf/eth0.1/rp_filter", "1")?;
            done(Command::new(systemd).arg("/etc/sysctl.d/99-zz-bramble.conf"))?;
            is("0")?;
        }
        kernel.revert_all(&before)?;
        is("1")
    })
}

pub(crate) fn a_lost_ipv6_route_is_told_where_the_cluster_has_ipv6() -> Result<()> {
    Kernel::on("routes", |kernel| {
        kernel.lead_out("eth0")?;
        done(Command::new("ip").args(["address", "add", "fd00:db8::1/64", "dev", "eth0", "nodad"]))?;
        let (state, evidence) = kernel.finding("routes")?;
        ensure!(state == "met" && evidence.contains("fd00:db8::/64 by eth0"), "{state}: {evidence}");
        done(Command::new("ip").args(["-6", "route", "del", "fd00:db8::/64", "dev", "eth0"]))?;
        let (state, evidence) = kernel.finding("routes")?;
        ensure!(state == "blocked" && evidence.contains("fd00:db8::1/64"), "{state}: {evidence}");
        Ok(())
    })
}

/// Why legacy iptables cannot be told anything here.
pub(crate) fn no_legacy_iptables() -> Option<String> {
    let there = |program: &&str| Command::new(program).arg("--version").output().is_ok();
    let both = ["iptables-legacy", "ip6tables-legacy"].iter().all(there);
    (!both).then(|| "needs iptables-legacy".to_owned())
}

pub(crate) fn rules_of_legacy_iptables_are_seen() -> Result<()> {
    Kernel::on("firewall", |kernel| {
        kernel.lead_out("eth0")?;
        let legacy = |line: &str| {
            let (program, arguments) = line.split_once(' ').context("a program and its arguments")?;
            done(Command::new(program).args(arguments.split(' ')))
        };
        ensure!(kernel.finding("firewall")?.0 == "met", "{:?}", kernel.finding("firewall")?);
        legacy("ip6tables-legacy -P FORWARD DROP")?;
        let (state, evidence) = kernel.finding("firewall")?;
        ensure!(
            state == "blocked" && evidence.contains("FORWARD of ip6tables-legacy"),
            "{state}: {evidence}"
        );
        legacy("ip6tables-legacy -P FORWARD ACCEPT")?;
        legacy("iptables-legacy -P FORWARD DROP")?;
        ensure!(kernel.finding("firewall")?.0 == "blocked", "{:?}", kernel.finding("firewall")?);
        // The Cilium agent lets its pods pass.
        legacy("iptables-legacy -N CILIUM_FORWARD")?;
        ensure!(kernel.finding("firewall")?.0 == "met", "{:?}", kernel.finding("firewall")?);
        legacy("iptables-legacy -P INPUT DROP")?;
        let (state, evidence) = kernel.finding("firewall")?;
        ensure!(
            state == "unknown" && evidence.contains("iptables-legacy -t filter -S INPUT"),
            "{state}: {evidence}"
        );

        let (state, evidence) = kernel.finding("iptables-backends")?;
        ensure!(state == "met" && evidence == "in legacy iptables", "{state}: {evidence}");
        done(Command::new("nft").arg("add table ip filter; add chain ip filter DOCKER"))?;
        let (state, evidence) = kernel.finding("iptables-backends")?;
        ensure!(
            evidence.contains("nf_tables for instance DOCKER, legacy iptables CILIUM_FORWARD"),
            "{state}: {evidence}"
        );
        Ok(())
    })
}
