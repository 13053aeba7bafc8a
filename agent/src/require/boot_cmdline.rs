//! The boot file holds the one line that the firmware reads.
//!
//! What guides also put there nobody asks for here: `lsm=`, or `apparmor=1 security=apparmor` before it, because whether
//! AppArmor is on is the owner's choice (`apparmor_parser` judges what follows of it); `cgroup_no_v1=all`, because systemd
//! mounts version 2 alone; and `gpu_mem=` in config.txt, which frees memory on boards without a screen.

use super::{Area, Finding, Requirement};
use crate::change::Change;
use crate::config::cluster::Profile;
use crate::facts::boot_file::{BootFile, EXTRA};
use crate::host::Unreadable;

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "boot-cmdline",
    area: Area::Boot,
    profiles: &[Profile::Node],
    title: "cmdline.txt is one line",
    why: "the firmware reads the first line alone: arguments on a second line look set and are not",
    source: "k3s-io/k3s#3283; raspberrypi/linux#3644",
    fix: "bramble joins the lines of cmdline.txt into one, and keeps its own arguments in the file from which \
          Debian's hook writes it anew; a partition that is not mounted, or an empty file, is a person's",
    catalogue: &["BOOT-002", "BOOT-003"],
    judge: |facts, _| {
        let Some(file) = facts.boot_file.as_ref()? else {
            if facts.board.is_raspberry_pi()? {
                return Finding::blocked(
                    "neither /boot/firmware nor /boot is a FAT file system with a config.txt: the boot partition is not \
                     mounted, and the firmware reads no other file",
                    "sudo mount /boot/firmware, then check again",
                );
            }
            return Finding::not_needed("this machine does not boot by Raspberry Pi firmware");
        };
        match file.lines.len() {
            1 => match forgotten(file)? {
                None => Finding::met(&*file.path),
                Some(token) => Finding::unmet(
                    format!("the next kernel update writes {} anew, without {token}", file.path),
                    [Change::AppendToken { path: EXTRA.into(), token: token.into() }],
                ),
            },
            0 => Finding::blocked(
                format!("{} is empty: the next boot finds no root file system", file.path),
                format!(
                    "write the arguments of /proc/cmdline from console= on as one line into {}",
                    file.path
                ),
            ),
            lines => Finding::unmet(
                format!("{} has {lines} lines", file.path),
                [Change::JoinLines { path: file.path.clone().into() }],
            ),
        }
    },
};

/// An argument of bramble's that Debian's kernel hook would drop.
fn forgotten(file: &BootFile) -> Result<Option<String>, Unreadable> {
    let line = file.cmdline();
    let is_ours = |token: &&str| {
        ["cgroup_enable=memory", "psi=1"].contains(token) || token.starts_with("usb-storage.quirks=")
    };
    let mut ours = line.tokens().filter(is_ours).peekable();
    if ours.peek().is_none() {
        return Ok(None);
    }
    let Some(extra) = file.extra.as_ref()? else { return Ok(None) };
    Ok(ours.find(|token| !extra.has(token)).map(str::to_owned))
}
