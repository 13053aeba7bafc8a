//! The `cmdline.txt` that Raspberry Pi's firmware reads, found beside `config.txt`.
//!
//! `/boot/firmware` since Debian 12, `/boot` before; `os_prefix=` and `cmdline=` of config.txt move it,
//! Ubuntu from 25.10 keeps it in `current/`. Only its first line counts. The firmware reads FAT alone: where none is
//! mounted, the same path may hold an old copy that nothing reads.
//! See raspberrypi/documentation, config_txt and boot folder contents.

use super::board::Board;
use super::cmdline::Cmdline;
use super::firmware::{self, Firmware};
use super::mount::Mounts;
use super::{Fact, Facts};
use crate::host::{Host, Unreadable};

/// The file with the kernel's arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFile {
    /// Where it is.
    pub path: String,
    /// Its lines that are not blank; the firmware reads the first alone.
    pub lines: Vec<String>,
    /// What stands in [`EXTRA`], from where Debian's kernel updates take arguments when they write the file anew; `None`
    /// where nothing does.
    pub extra: Fact<Option<Cmdline>>,
}

/// The arguments that Debian's own kernel hook adds to the line whenever it writes the file anew.
pub const EXTRA: &str = "/etc/default/raspi-extra-cmdline";

/// That hook, of Debian's package raspi-firmware. Raspberry Pi OS has one of the same name that writes no arguments.
const HOOK: &str = "/etc/kernel/postinst.d/z50-raspi-firmware";

impl BootFile {
    /// The files that an argument must stand in to stay: the boot file, and what it is written anew from.
    pub fn places(&self) -> Vec<String> {
        let written_anew = matches!(self.extra, Ok(Some(_)));
        [self.path.clone()].into_iter().chain(written_anew.then(|| EXTRA.to_string())).collect()
    }

    /// The files that an argument stands in: taken out of the boot file alone, it would come back.
    pub fn places_with(&self, token: &str) -> Vec<String> {
        let written_anew = matches!(&self.extra, Ok(Some(extra)) if extra.has(token));
        let written = self.cmdline().has(token).then(|| self.path.clone());
        written.into_iter().chain(written_anew.then(|| EXTRA.to_string())).collect()
    }

    /// Whether the running kernel got an argument that stands in this file and not in the other.
    fn is_told_by(&self, running: &Cmdline, other: &BootFile) -> bool {
        let other = other.cmdline();
        self.cmdline().tokens().any(|token| running.has(token) && !other.has(token))
    }

    /// The arguments the firmware hands to the kernel.
    pub fn cmdline(&self) -> Cmdline {
        Cmdline::parse(self.lines.first().map_or("", String::as_str))
    }
}

/// How far a kernel argument has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    /// The running kernel got it.
    Running,
    /// It stands in the boot file, and the running kernel did not get it.
    Written(String),
    /// The boot file does not have it; the files that it is to be added to.
    Addable(Vec<String>),
    /// The boot partition of a Raspberry Pi is not mounted.
    NotMounted,
    /// Another boot loader keeps the arguments.
    Elsewhere,
}

impl Facts {
    /// How far a kernel argument has come.
    pub fn argument(&self, token: &str) -> Fact<Argument> {
        if self.cmdline.as_ref()?.has(token) {
            return Ok(Argument::Running);
        }
        Ok(match self.boot_file.as_ref()? {
            Some(file) if file.cmdline().has(token) => Argument::Written(file.path.clone()),
            Some(file) => Argument::Addable(file.places()),
            None if self.board.is_raspberry_pi()? => Argument::NotMounted,
            None => Argument::Elsewhere,
        })
    }
}

/// The file that the firmware reads, by what config.txt says for this board.
pub(super) fn read(
    host: &Host,
    firmware: &Fact<Option<Firmware>>,
    running: &Fact<Cmdline>,
) -> Fact<Option<BootFile>> {
    let Some(firmware) = firmware.as_ref()? else { return Ok(None) };
    let directory = firmware.path.trim_end_matches("config.txt");
    let prefix = firmware.value("os_prefix")?.unwrap_or_default();
    let name = firmware.value("cmdline")?.unwrap_or("cmdline.txt");
    let file = |prefix: &str| {
        let path = format!("{directory}{prefix}{name}");
        let text = host.text(&path)?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect();
        Ok(BootFile { path, lines, extra: extra(host) })
    };
    let current = format!("{directory}current/{name}");
    if !prefix.is_empty() || host.present(&current) != Ok(true) {
        return file(prefix).map(Some);
    }
    if !host.present(&format!("{directory}{name}"))? {
        return file("current/").map(Some);
    }
    let [plain, current] = [file("")?, file("current/")?];
    let running = running.as_ref()?;
    match (plain.is_told_by(running, &current), current.is_told_by(running, &plain)) {
        (true, false) => Ok(Some(plain)),
        (false, true) => Ok(Some(current)),
        _ => Err(Unreadable::malformed(
            &firmware.path,
            format!(
                "os_prefix=, which says whether the firmware reads {} or {}; /proc/cmdline does not tell it either",
                plain.path, current.path
            ),
        )),
    }
}

fn extra(host: &Host) -> Fact<Option<Cmdline>> {
    let text = || host.text_if_present(EXTRA);
    let arguments = match host.text_if_present(HOOK) {
        Ok(Some(hook)) if hook.contains(EXTRA) => Some(text()?.unwrap_or_default()),
        Ok(_) => None,
        // Who wrote the list has the hook.
        Err(unreadable) => Some(text()?.ok_or(unreadable)?),
    };
    // The hook takes the file as it is: what stands below its first line gets below the boot file's first line.
    Ok(arguments.map(|text| Cmdline::parse(text.lines().next().unwrap_or_default())))
}

/// The config.txt of the mounted boot partition. `mounts` is asked once the files were, because looking into a directory
/// may be what mounts it.
pub(super) fn firmware(
    host: &Host,
    board: &Board,
    mounts: impl FnOnce() -> Fact<Mounts>,
) -> (Fact<Option<Firmware>>, Fact<Mounts>) {
    let model = board.model.as_ref().ok().and_then(Option::as_deref);
    let found =
        ["/boot/firmware", "/boot"].map(|directory| (directory, firmware::read(host, directory, model)));
    let mounts = mounts();
    (on_fat(found, &mounts), mounts)
}

/// Of what was found in two directories, that in which FAT is mounted.
fn on_fat(found: [(&str, Fact<Option<Firmware>>); 2], mounts: &Fact<Mounts>) -> Fact<Option<Firmware>> {
    for (directory, firmware) in found {
        if firmware != Ok(None) && mounts.as_ref()?.top(directory).is_some_and(|mount| mount.kind == "vfat") {
            return firmware;
        }
    }
    Ok(None)
}
