//! An SD card as Raspberry Pi OS lays it out: a FAT partition that the firmware reads, and the root.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::{
    Gift,
    apt::Archive,
    board::furnish,
    kernel::Kernel,
    root,
    store::{Store, remove},
};
use crate::process::{bound, run};

/// Sectors of 512 bytes: where the partitions begin, and where the card ends. QEMU takes a power of two.
const BOOT_START: u64 = 2048;
const BOOT_SECTORS: u64 = 128 * 2048;
const ROOT_START: u64 = BOOT_START + BOOT_SECTORS;
const SECTORS: u64 = 2 * 1024 * 2048;
/// What the owner finds in cmdline.txt.
const CMDLINE: &str = "console=tty1 root=/dev/mmcblk0p2 rootfstype=ext4 fsck.repair=yes rootwait\n";
/// What the owner finds in config.txt.
const CONFIG: &str = "# For more options and information see
# http://rptl.io/configtxt

dtparam=audio=on
camera_auto_detect=1
auto_initramfs=1
arm_64bit=1

[cm5]
dtoverlay=dwc2,dr_mode=host

[all]
enable_uart=1
";
const MOUNTS: &str =
    "LABEL=rootfs / ext4 defaults,noatime 0 1\nLABEL=bootfs /boot/firmware vfat defaults 0 2\n";

/// A card in the reader: nobody else has it.
#[derive(Debug)]
pub(super) struct Card(PathBuf);

/// The card's part in the store.
pub(super) fn part(suite: &str) -> String {
    format!("card-{suite}.img")
}

/// Makes a card with Debian's root, kernel and firmware files.
pub(super) fn build(store: &Store, suite: &str, kernel: &Kernel) -> Result<PathBuf> {
    let root = root::arm64(store, suite)?;
    let firmware = store.made(&format!("raspi-firmware-{suite}"), "unpacked", |folder| {
        Archive::open(store, suite)?.unpack(&["raspi-firmware"], folder)
    })?;
    let recipe =
        format!("{} {CMDLINE}{CONFIG}{MOUNTS}{BOOT_SECTORS} {SECTORS} {}", kernel.version(), root::recipe());
    store.made(&part(suite), &recipe, |image| {
        let scratch = store.scratch()?;
        let tree = furnish(&root, kernel, MOUNTS, &scratch)?;
        fs::create_dir_all(tree.join("boot/firmware"))?;
        fs::File::create(image)?.set_len(SECTORS * 512)?;
        let table = format!(
            "label: dos\nlabel-id: 0xbed00001\n\
             start={BOOT_START},size={BOOT_SECTORS},type=c,bootable\nstart={ROOT_START},type=83\n"
        );
        let table_file = scratch.path("table");
        fs::write(&table_file, table)?;
        let mut divide = bound("sfdisk");
        divide.arg("--quiet").arg(image).stdin(fs::File::open(&table_file)?);
        run(divide)?;
        let mut make = bound("mkfs.vfat");
        // Small clusters: with fewer than 65,525 it would be no FAT32.
        make.args(["-F", "32", "-s", "2", "-n", "bootfs", "--offset", &BOOT_START.to_string()]).arg(image);
        // In KiB; without it the file system would reach over the root.
        make.arg((BOOT_SECTORS / 2).to_string());
        run(make)?;
        let card = Card(image.to_owned());
        let files: Vec<PathBuf> = fs::read_dir(firmware.join("usr/lib/raspi-firmware"))?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        ensure!(!files.is_empty(), "raspi-firmware has no firmware");
        let mut copy = card.mtools("mcopy");
        copy.args(["-s", "-Q"]).args(&files).arg("::");
        run(copy)?;
        for (name, text) in [("cmdline.txt", CMDLINE), ("config.txt", CONFIG)] {
            let file = scratch.path(name);
            fs::write(&file, text)?;
            let mut copy = card.mtools("mcopy");
            copy.arg(&file).arg("::");
            run(copy)?;
        }
        let mut make = bound("mkfs.ext4");
        make.args(["-q", "-F", "-L", "rootfs", "-E", &format!("offset={}", ROOT_START * 512), "-d"]);
        make.arg(&tree).arg(image).arg(format!("{}k", (SECTORS - ROOT_START) / 2));
        run(make).map(drop)
    })
}

impl Card {
    /// A copy of the card as it was made.
    pub(super) fn copy(image: &Path, to: PathBuf) -> Result<Self> {
        let mut copy = bound("cp");
        copy.args(["--reflink=auto", "--sparse=always"]).arg(image).arg(&to);
        run(copy)?;
        Ok(Self(to))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    fn mtools(&self, program: &str) -> Command {
        let mut command = bound(program);
        command.arg("-i").arg(format!("{}@@{}", self.0.display(), BOOT_START * 512));
        command
    }

    /// A file of the boot partition, byte for byte.
    pub(super) fn boot_file(&self, name: &str) -> Result<Vec<u8>> {
        let mut command = self.mtools("mcopy");
        command.args(["-n", &format!("::{name}"), "-"]);
        let output = command.output().context("starting mcopy")?;
        ensure!(
            output.status.success(),
            "the card's boot partition has no {name}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(output.stdout)
    }

    /// Puts a file into the root.
    pub(super) fn put(&self, gift: &Gift) -> Result<()> {
        let mut folder = String::new();
        let mut commands = String::new();
        let (folders, _) = gift.to.trim_start_matches('/').rsplit_once('/').unwrap_or_default();
        for part in folders.split('/') {
            folder += &format!("/{part}");
            commands += &format!("mkdir {folder}\n");
        }
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&gift.from)?);
        commands += &format!("write {} {}\n", gift.from.canonicalize()?.display(), gift.to);
        commands += &format!("set_inode_field {} mode 0{mode:o}\n", gift.to);
        let script = self.0.with_extension("debugfs");
        fs::write(&script, commands)?;
        let mut debugfs = bound("debugfs");
        debugfs.arg("-w").arg("-f").arg(&script).arg(format!(
            "{}?offset={}",
            self.0.display(),
            ROOT_START * 512
        ));
        let said = debugfs.output().context("starting debugfs")?;
        remove(&script)?;
        // It complains about folders that are there already, and ends with 0 whatever happened.
        let complaints = String::from_utf8_lossy(&said.stderr).into_owned();
        let is_serious = |line: &&str| {
            !line.starts_with("debugfs ") && !line.contains("mkdir") && !line.contains("already exists")
        };
        let serious: Vec<&str> =
            complaints.lines().filter(is_serious).filter(|line| !line.is_empty()).collect();
        ensure!(serious.is_empty(), "writing {} onto the card: {serious:?}", gift.to);
        Ok(())
    }
}
