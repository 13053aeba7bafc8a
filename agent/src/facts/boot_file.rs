//! The `cmdline.txt` that Raspberry Pi's firmware reads, found beside `config.txt`.
//!
//! `/boot/firmware` since Debian 12, `/boot` before; `os_prefix=` and `cmdline=` of config.txt move it,
//! Ubuntu from 25.10 keeps it in `current/`. Only its first line counts.
//! See raspberrypi/documentation, config_txt and boot folder contents.

use super::board::Board;
use super::cmdline::Cmdline;
use super::firmware::{self, Firmware};
use super::{Fact, Facts};
use crate::host::Host;

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
pub(super) fn read(host: &Host, firmware: &Fact<Option<Firmware>>) -> Fact<Option<BootFile>> {
    let Some(firmware) = firmware.as_ref()? else { return Ok(None) };
    let directory = firmware.path.trim_end_matches("config.txt");
    let mut prefix = firmware.value("os_prefix")?.unwrap_or_default();
    if prefix.is_empty() && host.present(&format!("{directory}current/cmdline.txt")) == Ok(true) {
        prefix = "current/";
    }
    let path = format!("{directory}{prefix}{}", firmware.value("cmdline")?.unwrap_or("cmdline.txt"));
    let text = host.text(&path)?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect();
    Ok(Some(BootFile { path, lines, extra: extra(host) }))
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

/// The config.txt of the mounted boot partition.
pub(super) fn firmware(host: &Host, board: &Board) -> Fact<Option<Firmware>> {
    let model = board.model.as_ref().ok().and_then(Option::as_deref);
    for directory in ["/boot/firmware", "/boot"] {
        if let Some(firmware) = firmware::read(host, directory, model)? {
            return Ok(Some(firmware));
        }
    }
    Ok(None)
}
