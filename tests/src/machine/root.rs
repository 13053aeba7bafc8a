//! Debian root trees that boot in a container or on a board, made in half a minute.
//!
//! The arm64 tree is made without running one arm64 program, which would take twenty times as long: the native tree is
//! set up as usual, the arm64 packages are only unpacked, and what the native set-up wrote is grafted onto them.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use super::{apt::mirror, store::Store};
use crate::process::{bound, run};

/// What every machine has beyond Debian's minimum.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,udev,kmod,iproute2,nftables,procps,util-linux,e2fsprogs,\
                        libpam-systemd,libnss-systemd,polkitd,iputils-ping,tzdata,mosquitto,mosquitto-clients";
/// Jobs of the clock that would only disturb, logins that nobody makes, and the broker, which only some tests start.
const MASKED: [&str; 10] = [
    "mosquitto.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "dpkg-db-backup.timer",
    "systemd-networkd-wait-online.service",
    "serial-getty@ttyAMA0.service",
    "serial-getty@hvc0.service",
];
/// The bed's root shell on a line that the kernel's arguments name: `bed.shell=hvc0`.
const SHELL_UNIT: &str = "[Unit]
Description=the test bed's shell on %I
ConditionKernelCommandLine=bed.shell=%i
DefaultDependencies=no
After=sysinit.target

[Service]
Environment=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb
WorkingDirectory=/root
ExecStartPre=/bin/stty -F /dev/%I raw -echo
ExecStart=/bin/sh
StandardInput=tty-force
StandardOutput=tty
StandardError=tty
TTYPath=/dev/%I
Restart=always
# The shell outlives nothing: a machine that goes down need not wait for it.
KillSignal=SIGKILL
";
const SHELL_LINES: [&str; 2] = ["hvc0", "ttyAMA0"];
const NETWORK: &str = "[Match]
Name=en* eth* usb*
Virtualization=!container

[Network]
DHCP=yes
";

/// The tree of this machine's own architecture.
pub(super) fn native(store: &Store, suite: &str) -> Result<PathBuf> {
    store.made(&format!("root-{suite}"), &recipe(), |root| {
        mmdebstrap(suite, root, PACKAGES, &["--variant=minbase"])?;
        customise(root)
    })
}

/// The arm64 tree.
pub(super) fn arm64(store: &Store, suite: &str) -> Result<PathBuf> {
    let native = native(store, suite)?;
    store.made(&format!("root-{suite}-arm64"), &recipe(), |root| {
        // Packages of a merged /usr can only be unpacked into a tree that is merged already.
        let merge = "for d in bin sbin lib; do mkdir -p \"$1/usr/$d\"; [ -e \"$1/$d\" ] || ln -s usr/$d \"$1/$d\"; done";
        let extract = ["--variant=extract", "--architectures=arm64", &format!("--setup-hook={merge}")];
        mmdebstrap(suite, root, &installed(&native)?.join(","), &extract)?;
        graft(&native, root)
    })
}

pub(super) fn recipe() -> String {
    format!("{PACKAGES}\n{MASKED:?}\n{SHELL_UNIT}{SHELL_LINES:?}\n{NETWORK}")
}

fn mmdebstrap(suite: &str, root: &Path, packages: &str, arguments: &[&str]) -> Result<()> {
    // In a mount namespace of its own: what it mounts in the tree and cannot unmount, because somebody looks around there, is
    // gone with it.
    let mut command = bound("unshare");
    command.args([
        "--mount",
        "mmdebstrap",
        "--quiet",
        "--mode=root",
        "--components=main",
        "--dpkgopt=force-unsafe-io",
    ]);
    command.args(["--aptopt=Acquire::Languages \"none\"", &format!("--include={packages}")]);
    command.args(arguments).arg(suite).arg(root).arg(mirror()?);
    run(command).map(drop)
}

/// Names of all packages in a tree.
fn installed(root: &Path) -> Result<Vec<String>> {
    let status = fs::read_to_string(root.join("var/lib/dpkg/status"))?;
    let mut names: Vec<String> =
        status.lines().filter_map(|line| line.strip_prefix("Package: ")).map(str::to_owned).collect();
    names.sort();
    names.dedup();
    ensure!(!names.is_empty(), "{} has no packages", root.display());
    Ok(names)
}

/// Makes a tree a machine that boots fast, changes nothing by itself and can be spoken to.
fn customise(root: &Path) -> Result<()> {
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().context("every file has a folder")?)?;
        super::store::remove(&path)?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    write("etc/hostname", "bed\n")?;
    write("etc/hosts", "127.0.0.1 localhost\n127.0.1.1 bed\n::1 localhost\n")?;
    write("etc/fstab", "")?;
    write("etc/machine-id", "")?;
    write("etc/resolv.conf", "nameserver 10.0.2.3\n")?;
    // The mirror is this machine's affair.
    write("etc/apt/sources.list", "")?;
    for log in fs::read_dir(root.join("var/log/apt")).into_iter().flatten().flatten() {
        super::store::remove(&log.path())?;
    }
    write("etc/systemd/network/90-bed.network", NETWORK)?;
    write("etc/systemd/system/bed-shell@.service", SHELL_UNIT)?;
    let link = |to: &str, path: String| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().context("every link has a folder")?)?;
        super::store::remove(&path)?;
        symlink(to, &path).with_context(|| format!("linking {}", path.display()))
    };
    for line in SHELL_LINES {
        let wants = format!("etc/systemd/system/sysinit.target.wants/bed-shell@{line}.service");
        link("/etc/systemd/system/bed-shell@.service", wants)?;
    }
    for unit in MASKED {
        link("/dev/null", format!("etc/systemd/system/{unit}"))?;
    }
    let networkd = "usr/lib/systemd/system/systemd-networkd.service";
    ensure!(
        root.join(networkd).exists() || root.join("lib/systemd/system/systemd-networkd.service").exists(),
        "the release has no systemd-networkd"
    );
    let wants = "etc/systemd/system/multi-user.target.wants/systemd-networkd.service".to_owned();
    link("/lib/systemd/system/systemd-networkd.service", wants)?;
    let shadow = fs::read_to_string(root.join("etc/shadow"))?;
    let open: String = shadow
        .lines()
        .map(|line| match line.strip_prefix("root:").and_then(|rest| rest.split_once(':')) {
            Some((_, rest)) => format!("root::{rest}\n"),
            None => format!("{line}\n"),
        })
        .collect();
    fs::write(root.join("etc/shadow"), open)?;
    // systemd compares with /usr: what is as new needs no ldconfig, catalogue or hwdb at the first boot.
    for stamp in ["etc/.updated", "var/.updated"] {
        let mut touch = bound("touch");
        touch.arg("--reference").arg(root.join("usr")).arg(root.join(stamp));
        run(touch)?;
    }
    Ok(())
}

/// Completes an unpacked arm64 tree with what setting the packages up wrote into the native one.
fn graft(native: &Path, arm64: &Path) -> Result<()> {
    for state in ["var/lib/dpkg", "var/lib/apt"] {
        super::store::remove(&arm64.join(state))?;
    }
    let rsync = |arguments: &[&str], part: &str| {
        let mut command = bound("rsync");
        command.args(["-aHX", "--numeric-ids", "--exclude=*x86_64-linux-gnu*"]).args(arguments);
        command.arg(native.join(part)).arg(arm64.join(part));
        run(command)
    };
    let foreign = ["/lib64", "/usr/lib64", "/etc/ld.so.cache", "/usr/lib/modules", "/boot"];
    let foreign: Vec<String> = foreign.iter().map(|path| format!("--exclude={path}")).collect();
    let foreign: Vec<&str> = foreign.iter().map(String::as_str).collect();
    rsync(&[&["--ignore-existing"], &foreign[..]].concat(), "")?;
    rsync(&["--exclude=/ld.so.cache"], "etc/")?;
    for part in ["usr", "var", "etc"] {
        copy_ownership(native, arm64, Path::new(part))?;
    }
    translate_packages(&arm64.join("var/lib/dpkg"))
}

/// Gives files in `to` the owner and mode of those in `from`, where these are anything special.
fn copy_ownership(from: &Path, to: &Path, part: &Path) -> Result<()> {
    for entry in fs::read_dir(from.join(part))?.flatten() {
        let part = part.join(entry.file_name());
        let about = entry.metadata()?;
        let there = to.join(&part);
        let is_special = about.uid() != 0 || about.gid() != 0 || about.mode() & 0o6000 != 0;
        if is_special
            && !about.is_symlink()
            && there.symlink_metadata().is_ok_and(|there| !there.is_symlink())
        {
            lchown(&there, Some(about.uid()), Some(about.gid()))?;
            fs::set_permissions(&there, fs::Permissions::from_mode(about.mode() & 0o7777))?;
        }
        if about.is_dir() {
            copy_ownership(from, to, &part)?;
        }
    }
    Ok(())
}

/// dpkg's data base: the same packages, of the other architecture.
fn translate_packages(dpkg: &Path) -> Result<()> {
    let translate = |path: &Path, words: &[(&str, &str)]| {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let new = words.iter().fold(text, |text, (from, to)| text.replace(from, to));
        fs::write(path, new).with_context(|| format!("writing {}", path.display()))
    };
    let triplet = ("x86_64-linux-gnu", "aarch64-linux-gnu");
    let architecture = ("\nArchitecture: amd64\n", "\nArchitecture: arm64\n");
    translate(&dpkg.join("status"), &[architecture, triplet, ("x86-64", "aarch64")])?;
    fs::write(dpkg.join("arch"), "arm64\n")?;
    for entry in fs::read_dir(dpkg.join("info"))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path().with_file_name(name.replacen(":amd64.", ":arm64.", 1));
        fs::rename(entry.path(), &path)?;
        if ["list", "md5sums", "triggers", "shlibs"].iter().any(|kind| name.ends_with(&format!(".{kind}"))) {
            translate(&path, &[triplet])?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_change_their_architecture_in_every_file() {
        let dpkg = std::env::temp_dir().join(format!("bed-dpkg-{}", std::process::id()));
        fs::create_dir_all(dpkg.join("info")).unwrap();
        fs::write(
            dpkg.join("status"),
            "Package: libc6\nArchitecture: amd64\n\nPackage: x\nArchitecture: all\n",
        )
        .unwrap();
        fs::write(dpkg.join("info/libc6:amd64.list"), "/usr/lib/x86_64-linux-gnu/libc.so.6\n").unwrap();
        fs::write(dpkg.join("info/x.list"), "/usr/share/x\n").unwrap();
        translate_packages(&dpkg).unwrap();
        let read = |name: &str| fs::read_to_string(dpkg.join(name)).unwrap();
        assert_eq!(read("status"), "Package: libc6\nArchitecture: arm64\n\nPackage: x\nArchitecture: all\n");
        assert_eq!(read("info/libc6:arm64.list"), "/usr/lib/aarch64-linux-gnu/libc.so.6\n");
        assert_eq!(read("info/x.list"), "/usr/share/x\n");
        assert_eq!(read("arch"), "arm64\n");
        fs::remove_dir_all(&dpkg).unwrap();
    }
}
