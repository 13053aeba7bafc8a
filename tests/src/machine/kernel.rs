//! Debian's arm64 kernels, unpacked, and the small initial file system that finds a machine's root.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, Write},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{
    apt::Archive,
    store::{Store, remove},
};
use crate::process::{bound, run};

/// Which of a release's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flavour {
    /// Without drivers for hardware that no virtual machine has; a third of the size.
    Cloud,
    /// With all drivers.
    General,
    /// As [`Flavour::General`], with pages of 16 KiB.
    Pages16K,
}

impl Flavour {
    fn package(self) -> &'static str {
        match self {
            Self::Cloud => "linux-image-cloud-arm64",
            Self::General => "linux-image-arm64",
            Self::Pages16K => "linux-image-arm64-16k",
        }
    }
}

/// An unpacked kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    folder: PathBuf,
    /// As `uname -r` says it.
    version: String,
}

/// The part of the store that a kernel is.
pub(super) fn part(suite: &str, flavour: Flavour) -> String {
    format!("{}-{suite}", flavour.package())
}

/// Fetches a release's kernel.
pub(super) fn fetch(store: &Store, suite: &str, flavour: Flavour) -> Result<Kernel> {
    let folder = store.made(&part(suite, flavour), "unpacked with busybox-static", |folder| {
        let archive = Archive::open(store, suite)?;
        archive.unpack(&[&archive.behind(flavour.package())?, "busybox-static"], folder)?;
        // Debian 12 has these where a merged /usr has a link.
        for (old, new) in [("lib/modules", "usr/lib/modules"), ("bin/busybox", "usr/bin/busybox")] {
            let (old, new) = (folder.join(old), folder.join(new));
            if old.exists() {
                fs::create_dir_all(new.parent().context("it has a folder")?)?;
                fs::rename(old, new)?;
            }
        }
        remove(&folder.join("lib"))?;
        symlink("usr/lib", folder.join("lib"))?;
        let mut depmod = bound("depmod");
        depmod.arg("-b").arg(folder).arg("-a").arg(version(folder)?);
        run(depmod).map(drop)
    })?;
    Ok(Kernel { version: version(&folder)?, folder })
}

fn version(folder: &Path) -> Result<String> {
    let versions = fs::read_dir(folder.join("usr/lib/modules"))?.flatten().next();
    Ok(versions.context("the package has no modules")?.file_name().to_string_lossy().into_owned())
}

impl Kernel {
    /// As `uname -r` says it.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// What a boot loader loads.
    pub(super) fn image(&self) -> PathBuf {
        self.folder.join(format!("boot/vmlinuz-{}", self.version))
    }

    /// The folder of its modules, with their list.
    pub(super) fn modules(&self) -> PathBuf {
        self.folder.join("usr/lib/modules").join(&self.version)
    }

    /// A board's device tree, such as `broadcom/bcm2711-rpi-4-b.dtb`.
    pub(super) fn device_tree(&self, board: &str) -> PathBuf {
        self.folder.join(format!("usr/lib/linux-image-{}/{board}", self.version))
    }

    /// Writes an initial file system that loads `modules` with what they need, and starts the root's init.
    pub(super) fn write_initramfs(&self, modules: &[&str], to: &Path) -> Result<()> {
        let folder = self.modules();
        let list = fs::read_to_string(folder.join("modules.dep"))?;
        let builtin = fs::read_to_string(folder.join("modules.builtin"))?;
        let mut archive = Cpio { to: BufWriter::new(File::create(to)?), files: 0 };
        for folder in ["bin", "dev", "proc", "sys", "newroot", "modules"] {
            archive.folder(folder)?;
        }
        archive.file("bin/busybox", 0o755, &fs::read(self.folder.join("usr/bin/busybox"))?)?;
        let mut order = String::new();
        for path in load_order(&list, &builtin, modules)? {
            let name = module_name(&path);
            archive.file(&format!("modules/{name}"), 0o644, &read_module(&folder.join(&path))?)?;
            order += &format!("{name}\n");
        }
        archive.file("modules.list", 0o644, order.as_bytes())?;
        archive.file("init", 0o755, INIT.as_bytes())?;
        archive.end()
    }
}

/// Loads the modules, waits for the root that the kernel's arguments name, and starts its init.
pub(super) const INIT: &str = "#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev; $b mount -t proc proc /proc; $b mount -t sysfs sys /sys
while read module; do $b insmod /modules/$module || echo \"no module $module\"; done < /modules.list
for word in $($b cat /proc/cmdline); do case $word in root=*) root=${word#root=};; esac; done
n=0; while [ ! -b $root ] && [ $n -lt 1200 ]; do $b sleep 0.1; n=$((n+1)); done
$b mount -t ext4 -o rw $root /newroot || { echo \"no root $root\"; $b cat /proc/partitions; $b poweroff -f; }
for part in dev proc sys; do $b mount -o move /$part /newroot/$part; done
exec $b switch_root /newroot /sbin/init
";

/// `virtio_blk` of `kernel/drivers/block/virtio-blk.ko.xz`: the kernel takes a dash for an underscore.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or_default();
    file.split(".ko").next().unwrap_or_default().replace('-', "_")
}

/// Paths of modules, each after those that it needs; those that are built in are left out.
fn load_order(dependencies: &str, builtin: &str, modules: &[&str]) -> Result<Vec<String>> {
    let by_name: BTreeMap<String, (&str, &str)> = dependencies
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needs)| (module_name(path), (path, needs)))
        .collect();
    let mut order: Vec<String> = Vec::new();
    for module in modules {
        let Some((path, needs)) = by_name.get(*module) else {
            let is_builtin = builtin.lines().any(|path| module_name(path) == *module);
            anyhow::ensure!(is_builtin, "the kernel has no module {module}");
            continue;
        };
        // The list names what is needed in the order of its unloading.
        for path in needs.split_whitespace().rev().chain([*path]) {
            if !order.iter().any(|there| there == path) {
                order.push(path.to_owned());
            }
        }
    }
    Ok(order)
}

/// A module's bytes; busybox cannot load a compressed one.
fn read_module(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|kind| kind != "xz") {
        return fs::read(path).with_context(|| format!("reading {}", path.display()));
    }
    let mut command = bound("xz");
    command.args(["--decompress", "--stdout"]).arg(path);
    let output = command.output().context("starting xz")?;
    anyhow::ensure!(output.status.success(), "xz cannot unpack {}", path.display());
    Ok(output.stdout)
}

/// An archive in the kernel's `newc` format: Documentation/driver-api/early-userspace/buffer-format.rst.
struct Cpio<W> {
    to: W,
    files: u32,
}

impl<W: Write> Cpio<W> {
    fn folder(&mut self, name: &str) -> Result<()> {
        self.entry(name, 0o040_755, &[])
    }

    fn file(&mut self, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        self.entry(name, 0o100_000 | mode, bytes)
    }

    fn entry(&mut self, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        self.files += 1;
        let size = u32::try_from(bytes.len())?;
        let name_size = u32::try_from(name.len() + 1)?;
        // Inode, mode, owner, group, links, time, size, device twice and node twice, length of the name, no checksum.
        let fields = [self.files, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        write!(self.to, "070701{}", fields.map(|field| format!("{field:08X}")).concat())?;
        self.to.write_all(name.as_bytes())?;
        // The header has 110 bytes; name and content each end at a multiple of four.
        self.to.write_all(&vec![0; 1 + padding(110 + name.len() + 1)])?;
        self.to.write_all(bytes)?;
        Ok(self.to.write_all(&vec![0; padding(bytes.len())])?)
    }

    fn end(mut self) -> Result<()> {
        self.entry("TRAILER!!!", 0, &[])?;
        Ok(self.to.flush()?)
    }
}

fn padding(length: usize) -> usize {
    length.next_multiple_of(4) - length
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "kernel/fs/ext4/ext4.ko.xz: kernel/fs/mbcache.ko.xz kernel/fs/jbd2/jbd2.ko.xz\n\
                        kernel/fs/mbcache.ko.xz:\nkernel/fs/jbd2/jbd2.ko.xz:\n\
                        kernel/block/virtio-blk.ko: kernel/fs/mbcache.ko.xz\n";

    #[test]
    fn modules_come_after_what_they_need_and_once() {
        let order =
            load_order(LIST, "kernel/drivers/virtio/virtio_pci.ko\n", &["ext4", "virtio_blk", "virtio_pci"]);
        let wanted = [
            "kernel/fs/jbd2/jbd2.ko.xz",
            "kernel/fs/mbcache.ko.xz",
            "kernel/fs/ext4/ext4.ko.xz",
            "kernel/block/virtio-blk.ko",
        ];
        assert_eq!(order.unwrap(), wanted);
        assert!(load_order(LIST, "", &["dwc2"]).unwrap_err().to_string().contains("dwc2"));
    }

    #[test]
    fn the_archive_is_as_cpio_reads_it() {
        let mut bytes = Vec::new();
        let mut archive = Cpio { to: &mut bytes, files: 0 };
        archive.folder("bin").unwrap();
        archive.file("bin/sh", 0o755, b"hello").unwrap();
        archive.end().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("0707010000000100004 1ED".replace(' ', "").as_str()), "{text}");
        assert_eq!(text.matches("070701").count(), 3);
        // The second header begins after 110 bytes, "bin\\0" and padding to a multiple of four.
        assert_eq!(&text[116..122], "070701");
    }
}
