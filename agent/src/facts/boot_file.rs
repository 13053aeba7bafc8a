//! The `cmdline.txt` that Raspberry Pi's firmware reads, found beside `config.txt`.
//!
//! `/boot/firmware` since Debian 12, `/boot` before; `os_prefix=` and `cmdline=` of config.txt move it,
//! Ubuntu from 25.10 keeps it in `current/`. Only its first line counts.
//! See raspberrypi/documentation, config_txt and boot folder contents.

use super::cmdline::Cmdline;
use super::{Fact, Facts};
use crate::host::{Host, Unreadable};

/// The file with the kernel's arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFile {
    /// Where it is.
    pub path: String,
    /// Its lines that are not blank; the firmware reads the first alone.
    pub lines: Vec<String>,
}

impl BootFile {
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
    /// The boot file, named here, does not have it.
    Addable(String),
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
            Some(file) => Argument::Addable(file.path.clone()),
            None if self.board.is_raspberry_pi()? => Argument::NotMounted,
            None => Argument::Elsewhere,
        })
    }
}

pub(super) fn read(host: &Host) -> Fact<Option<BootFile>> {
    for directory in ["/boot/firmware", "/boot"] {
        let path = format!("{directory}/config.txt");
        let Some(config) = host.text_if_present(&path)? else { continue };
        let mut settings = settings(&config).ok_or_else(|| {
            Unreadable::malformed(&path, "os_prefix= and cmdline= outside of conditional sections")
        })?;
        if settings.prefix.is_empty() && host.present(&format!("{directory}/current/cmdline.txt")) == Ok(true)
        {
            settings.prefix = "current/".into();
        }
        let path = format!("{directory}/{}{}", settings.prefix, settings.file);
        let text = host.text(&path)?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect();
        return Ok(Some(BootFile { path, lines }));
    }
    Ok(None)
}

#[derive(Debug, PartialEq, Eq)]
struct Settings {
    prefix: String,
    file: String,
}

/// `None` when a section for some boards only moves the file: which board this is would decide.
fn settings(config: &str) -> Option<Settings> {
    let mut settings = Settings { prefix: String::new(), file: "cmdline.txt".into() };
    let mut conditional = false;
    for line in config.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            conditional = !section.starts_with("all]");
        }
        let place = match line.split_once('=') {
            Some(("os_prefix", prefix)) => (&mut settings.prefix, prefix),
            Some(("cmdline", file)) => (&mut settings.file, file),
            _ => continue,
        };
        if conditional {
            return None;
        }
        *place.0 = place.1.trim().to_string();
    }
    Some(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_txt_moves_the_file() {
        let at = |config| settings(config).map(|s| s.prefix + &s.file);
        assert_eq!(at("dtparam=audio=on\n[pi4]\narm_boost=1\n").unwrap(), "cmdline.txt");
        assert_eq!(at("[cm4]\notg_mode=1\n[all]\nos_prefix=current/\n").unwrap(), "current/cmdline.txt");
        assert_eq!(at("#cmdline=x\r\ncmdline=mine.txt\r\n").unwrap(), "mine.txt");
        assert_eq!(at("[pi5]\nos_prefix=five/\n"), None);
    }
}
