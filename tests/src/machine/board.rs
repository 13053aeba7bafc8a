//! An emulated arm64 machine with a Debian kernel of its own, from a snapshot of its memory.
//!
//! It is booted once; every run begins in that moment, with a disk of its own, less than a second after it is asked for.

use std::{
    fs::{self, File},
    io::{Seek, SeekFrom},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    Answer, Gift, Machine, PATIENCE,
    container::place,
    kernel::{self, Flavour, Kernel},
    qemu::{self, Qemu},
    root,
    shell::Shell,
    store::{Scratch, Store, remove},
    wait_for_network, wait_until_running,
};
use crate::process::{bound, run};

/// Size of the root, and of the disk through which files go in.
const ROOT_SIZE: &str = "2G";
const PUSH_SIZE: u64 = 128 << 20;
const MODULES: [&str; 6] =
    ["virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "crc32c_generic", "ext4"];
const ARGUMENTS: &str =
    "console=ttyAMA0 root=/dev/vda quiet systemd.show_status=0 mitigations=off bed.shell=hvc0";
/// Nothing boots over it, so it need not have the code for that, which is in a package of its own.
pub(super) const NETWORK_CARD: &str = "virtio-net-pci,netdev=net,romfile=";
/// The moment in the disk's file to which a run goes back.
const MOMENT: &str = "ready";

/// What a board is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Model {
    pub(super) suite: &'static str,
    pub(super) flavour: Flavour,
    /// As the emulator calls it.
    pub(super) processor: &'static str,
}

/// A running board; it is off when dropped.
#[derive(Debug)]
pub struct Board {
    name: &'static str,
    qemu: Qemu,
    shell: Shell,
    push: File,
    booted_in: Duration,
}

/// A board's parts in the store, the last one made last.
pub(super) fn parts(name: &str, model: Model) -> [String; 3] {
    [kernel::part(model.suite, model.flavour), format!("{name}.ext4"), format!("{name}.qcow2")]
}

/// Builds everything up to the snapshot, which is returned.
pub(super) fn build(store: &Store, name: &'static str, model: Model) -> Result<PathBuf> {
    let root = root::arm64(store, model.suite)?;
    let kernel = kernel::fetch(store, model.suite, model.flavour)?;
    let [_, image, snapshot] = parts(name, model);
    let recipe = format!("{} {ROOT_SIZE} {}", kernel.version(), root::recipe());
    let image = store.made(&image, &recipe, |image| make_image(store, &root, &kernel, image))?;
    let initramfs = initramfs(store, name, &kernel)?;
    let recipe = format!("{}\n{}\n{model:?} {ARGUMENTS} {recipe}", image.display(), qemu::version()?);
    store.made(&snapshot, &recipe, |snapshot| {
        let mut create = bound("qemu-img");
        create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(&image).arg(snapshot);
        run(create)?;
        let scratch = store.scratch()?;
        let mut board = Board::switch_on(name, model, &kernel, &initramfs, snapshot, &scratch, false)?;
        board.run("sync")?.good()?;
        store.keep_note(&format!("cold-boot-{name}"), &board.booted_in.as_secs_f64().to_string())?;
        board.qemu.say(&format!("savevm {MOMENT}"))?;
        board.qemu.execute("quit", &serde_json::json!({}))?;
        board.qemu.wait_for_end(PATIENCE).map(drop)
    })
}

fn initramfs(store: &Store, name: &str, kernel: &Kernel) -> Result<PathBuf> {
    let recipe = format!("{} {MODULES:?} {}", kernel.version(), kernel::INIT);
    store.made(&format!("{name}.initramfs"), &recipe, |to| kernel.write_initramfs(&MODULES, to))
}

/// The root's disk: the tree, the kernel's modules, and a table of what to mount.
fn make_image(store: &Store, root: &Path, kernel: &Kernel, image: &Path) -> Result<()> {
    let scratch = store.scratch()?;
    let tree = furnish(root, kernel, "LABEL=root / ext4 rw,noatime 0 1\n", &scratch)?;
    let mut make = bound("mkfs.ext4");
    make.args(["-q", "-F", "-L", "root", "-d"]).arg(&tree).arg(image).arg(ROOT_SIZE);
    run(make).map(drop)
}

/// The tree with a kernel's modules; files are shared with `root`, so they are replaced, never written to.
pub(super) fn furnish(root: &Path, kernel: &Kernel, mounts: &str, scratch: &Scratch) -> Result<PathBuf> {
    let tree = scratch.path("tree");
    let mut copy = bound("cp");
    copy.args(["--archive", "--link"]).arg(root).arg(&tree);
    run(copy)?;
    let modules = tree.join("usr/lib/modules");
    fs::create_dir_all(&modules)?;
    let mut copy = bound("cp");
    copy.args(["--archive", "--link"]).arg(kernel.modules()).arg(&modules);
    run(copy)?;
    remove(&tree.join("etc/fstab"))?;
    fs::write(tree.join("etc/fstab"), mounts)?;
    Ok(tree)
}

impl Board {
    /// Goes back to the moment in which the board was ready, and puts `gifts` in.
    pub(super) fn start(store: &Store, name: &'static str, model: Model, gifts: &[Gift]) -> Result<Self> {
        let snapshot = build(store, name, model)?;
        let kernel = kernel::fetch(store, model.suite, model.flavour)?;
        let initramfs = initramfs(store, name, &kernel)?;
        let scratch = store.scratch()?;
        let disk = scratch.path("disk.qcow2");
        let mut copy = bound("cp");
        copy.args(["--reflink=auto", "--sparse=always"]).arg(&snapshot).arg(&disk);
        run(copy)?;
        let mut board = Self::switch_on(name, model, &kernel, &initramfs, &disk, &scratch, true)?;
        if !gifts.is_empty() {
            board.put(gifts)?;
        }
        Ok(board)
    }

    /// Starts it, cold or from the snapshot, and waits until it is up. The files are open then and may be removed.
    fn switch_on(
        name: &'static str,
        model: Model,
        kernel: &Kernel,
        initramfs: &Path,
        disk: &Path,
        scratch: &Scratch,
        from_snapshot: bool,
    ) -> Result<Self> {
        let push_path = scratch.path("push");
        let push = File::options().create(true).truncate(true).write(true).open(&push_path)?;
        push.set_len(PUSH_SIZE)?;
        let mut arguments: Vec<String> =
            ["-M", "virt", "-smp", "2", "-m", "768", "-serial", "stdio"].map(str::to_owned).into();
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        add("-cpu", model.processor.to_owned());
        add("-kernel", kernel.image().display().to_string());
        add("-initrd", initramfs.display().to_string());
        add("-append", ARGUMENTS.to_owned());
        // Its end is the disk's end, so nothing need be safe on it.
        add("-drive", format!("file={},format=qcow2,if=none,id=disk,cache=unsafe", disk.display()));
        add("-device", "virtio-blk-pci,drive=disk".to_owned());
        add("-drive", format!("file={},format=raw,if=none,id=push,readonly=on", push_path.display()));
        add("-device", "virtio-blk-pci,drive=push,serial=push".to_owned());
        add("-netdev", "user,id=net".to_owned());
        add("-device", NETWORK_CARD.to_owned());
        add("-device", "virtio-serial-pci".to_owned());
        add("-device", "virtconsole,chardev=shell".to_owned());
        if from_snapshot {
            add("-loadvm", MOMENT.to_owned());
        }
        let began = Instant::now();
        let (qemu, shell) = Qemu::start(name, &scratch.path("console"), &arguments)?;
        let mut board = Self { name, qemu, shell, push, booted_in: Duration::ZERO };
        board.wait(began)?;
        Ok(board)
    }

    fn wait(&mut self, began: Instant) -> Result<()> {
        let qemu = &mut self.qemu;
        let answered = self.shell.wait(PATIENCE, || qemu.check_alive());
        answered.with_context(|| self.qemu.log())?;
        wait_until_running(self).and_then(|()| wait_for_network(self)).with_context(|| self.qemu.log())?;
        self.booted_in = began.elapsed();
        Ok(())
    }

    /// Writes the files' archive to the disk that the guest reads.
    fn pack(&mut self, gifts: &[Gift], staging: &Path) -> Result<()> {
        gifts.iter().try_for_each(|gift| place(gift, staging))?;
        self.push.set_len(0)?;
        self.push.seek(SeekFrom::Start(0))?;
        let mut pack = bound("tar");
        pack.arg("--create").arg("--directory").arg(staging).args(["--owner=0", "--group=0", "."]);
        let packed = pack.stdout(self.push.try_clone()?).status().context("starting tar")?;
        ensure!(packed.success(), "tar could not pack {gifts:?}");
        ensure!(self.push.metadata()?.len() <= PUSH_SIZE, "the files are larger than {PUSH_SIZE} bytes");
        Ok(self.push.set_len(PUSH_SIZE)?)
    }

    /// Copies files into the running machine.
    ///
    /// # Errors
    /// One cannot be read here or written there, or together they are larger than 128 MiB.
    pub fn put(&mut self, gifts: &[Gift]) -> Result<()> {
        let staging = std::env::temp_dir().join(format!("bed-push-{}", std::process::id()));
        let packed = self.pack(gifts, &staging);
        remove(&staging)?;
        packed?;
        let disk = "/dev/disk/by-id/virtio-push";
        self.run(&format!("blockdev --flushbufs {disk} && tar -C / --no-overwrite-dir -xf {disk}"))?
            .good()?;
        Ok(())
    }
}

impl Machine for Board {
    fn name(&self) -> &str {
        self.name
    }

    fn run(&mut self, command: &str) -> Result<Answer> {
        self.shell.run(command, PATIENCE).with_context(|| self.qemu.log())
    }

    fn booted_in(&self) -> Duration {
        self.booted_in
    }

    fn reboot(&mut self) -> Result<()> {
        const BOOT: &str = "cat /proc/sys/kernel/random/boot_id";
        let before = self.run(BOOT)?.good()?;
        let began = Instant::now();
        self.shell.tell("systemctl reboot --no-block")?;
        let end = began + PATIENCE;
        // The old shell may still answer for a while.
        loop {
            let qemu = &mut self.qemu;
            self.shell.wait(PATIENCE, || qemu.check_alive())?;
            if self
                .shell
                .run(BOOT, Duration::from_secs(20))
                .is_ok_and(|answer| answer.code == 0 && answer.out.trim() != before)
            {
                break;
            }
            ensure!(Instant::now() < end, "it is still in the boot that it should end: {}", self.qemu.log());
        }
        self.wait(began)
    }

    fn stop(mut self: Box<Self>) -> Result<()> {
        self.shell.tell("systemctl poweroff --no-block")?;
        let status = self.qemu.wait_for_end(PATIENCE)?;
        ensure!(status.success(), "{} ended with {status}: {}", self.name, self.qemu.log());
        Ok(())
    }
}
