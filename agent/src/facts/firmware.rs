//! What config.txt tells Raspberry Pi's firmware: the last word that applies to this board, sections and `include`
//! followed.
//!
//! Filters of one kind replace each other and filters of different kinds add up; `[all]` takes all of them back. What a
//! filter by pin, display or serial number decides no file tells. See raspberrypi/documentation, config_txt/conditional.

use std::collections::BTreeMap;

use super::Fact;
use crate::host::{Host, Unreadable};

/// A config.txt, for one board.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firmware {
    /// Where it is.
    pub path: String,
    settings: BTreeMap<String, Told>,
}

/// The last word on a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    Value(String),
    /// A section that may apply says it; its name.
    Perhaps(String),
}

impl Firmware {
    /// The value of a setting, as far as files tell.
    ///
    /// # Errors
    /// When it stands in a section of which no file tells whether it applies.
    pub fn value(&self, key: &str) -> Fact<Option<&str>> {
        match self.settings.get(key) {
            None => Ok(None),
            Some(Told::Value(value)) => Ok(Some(value)),
            Some(Told::Perhaps(section)) => Err(Unreadable::malformed(
                &self.path,
                format!("{key}= outside of [{section}], which only the firmware can decide"),
            )),
        }
    }
}

/// Files may include others, to this depth.
const DEPTH: usize = 4;

/// Reads the config.txt in `directory`; `None` when there is none.
pub(super) fn read(host: &Host, directory: &str, model: Option<&str>) -> Fact<Option<Firmware>> {
    let path = format!("{directory}/config.txt");
    let Some(text) = host.text_if_present(&path)? else { return Ok(None) };
    let mut reading = Reading { model, filters: BTreeMap::new(), settings: BTreeMap::new() };
    let include = |file: &str| host.text_if_present(&format!("{directory}/{file}"));
    reading.absorb(&text, DEPTH, &include)?;
    Ok(Some(Firmware { path, settings: reading.settings }))
}

struct Reading<'a> {
    model: Option<&'a str>,
    /// By kind: the filter's name, and whether it applies; `None` where no file tells.
    filters: BTreeMap<String, (String, Option<bool>)>,
    settings: BTreeMap<String, Told>,
}

impl Reading<'_> {
    fn absorb(
        &mut self,
        text: &str,
        depth: usize,
        include: &dyn Fn(&str) -> Fact<Option<String>>,
    ) -> Result<(), Unreadable> {
        for line in text.lines().map(str::trim) {
            if let Some(section) = line.strip_prefix('[').and_then(|line| line.split(']').next()) {
                self.filter(section);
            } else if let Some(file) = line.strip_prefix("include ").filter(|_| depth > 0) {
                if self.applies() != Some(false)
                    && let Some(text) = include(file.trim())?
                {
                    self.absorb(&text, depth - 1, include)?;
                }
            } else if let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) {
                let told = match self.applies() {
                    Some(true) => Told::Value(value.trim().to_string()),
                    Some(false) => continue,
                    None => Told::Perhaps(self.doubt()),
                };
                self.settings.insert(key.trim().to_string(), told);
            }
        }
        Ok(())
    }

    fn filter(&mut self, section: &str) {
        if section == "all" {
            self.filters.clear();
            return;
        }
        let (kind, applies) = match section {
            "none" => ("model", Some(false)),
            // A file is prepared for the boots to come, and those are tried by nobody.
            "tryboot" => ("tryboot", Some(false)),
            _ if is_model(section) => ("model", self.model.map(|model| models(model).contains(&section))),
            _ if section.starts_with("0x") => ("serial", None),
            _ => (section.split(['=', ':', '0', '1', '2', '3']).next().unwrap_or(section), None),
        };
        self.filters.insert(kind.to_string(), (section.to_string(), applies));
    }

    fn applies(&self) -> Option<bool> {
        let mut all = Some(true);
        for (_, applies) in self.filters.values() {
            match applies {
                Some(true) => {}
                Some(false) => return Some(false),
                None => all = None,
            }
        }
        all
    }

    fn doubt(&self) -> String {
        let doubtful = self.filters.values().find(|(_, applies)| applies.is_none());
        doubtful.map_or_else(String::new, |(name, _)| name.clone())
    }
}

fn is_model(section: &str) -> bool {
    let number = section.strip_prefix("pi").or_else(|| section.strip_prefix("cm"));
    number.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// The sections that a board of this model answers to.
fn models(model: &str) -> &'static [&'static str] {
    const BOARDS: &[(&str, &[&str])] = &[
        ("Raspberry Pi 500", &["pi5", "pi500"]),
        ("Raspberry Pi 5", &["pi5"]),
        ("Raspberry Pi Compute Module 5", &["pi5", "cm5"]),
        ("Raspberry Pi 400", &["pi4", "pi400"]),
        ("Raspberry Pi 4", &["pi4"]),
        ("Raspberry Pi Compute Module 4S", &["pi4", "cm4s"]),
        ("Raspberry Pi Compute Module 4", &["pi4", "cm4"]),
        ("Raspberry Pi 3 Model A Plus", &["pi3", "pi3+"]),
        ("Raspberry Pi 3 Model B Plus", &["pi3", "pi3+"]),
        ("Raspberry Pi 3", &["pi3"]),
        ("Raspberry Pi Compute Module 3 Plus", &["pi3", "pi3+", "cm3", "cm3+"]),
        ("Raspberry Pi Compute Module 3", &["pi3", "cm3"]),
        ("Raspberry Pi Compute Module 0", &["pi0", "cm0"]),
        ("Raspberry Pi Zero 2", &["pi0", "pi0w", "pi02"]),
        ("Raspberry Pi Zero W", &["pi0", "pi0w"]),
        ("Raspberry Pi Zero", &["pi0"]),
        ("Raspberry Pi 2", &["pi2"]),
        ("Raspberry Pi", &["pi1"]),
    ];
    BOARDS.iter().find(|(name, _)| model.starts_with(name)).map_or(&[], |(_, sections)| sections)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(model: Option<&str>, text: &str) -> Firmware {
        let mut reading = Reading { model, filters: BTreeMap::new(), settings: BTreeMap::new() };
        let include = |file: &str| Ok((file == "extra.txt").then(|| "[pi5]\nkernel=extra.img\n".to_string()));
        reading.absorb(text, DEPTH, &include).unwrap();
        Firmware { path: "/boot/firmware/config.txt".into(), settings: reading.settings }
    }

    #[test]
    fn the_last_word_for_this_board_counts() {
        const PI5: Option<&str> = Some("Raspberry Pi 5 Model B Rev 1.0");
        const CM5: Option<&str> = Some("Raspberry Pi Compute Module 5 Rev 1.0");
        const PI4: Option<&str> = Some("Raspberry Pi 4 Model B Rev 1.4");
        const ZERO: Option<&str> = Some("Raspberry Pi Zero 2 W Rev 1.0");
        for (model, text, expected) in [
            (PI5, "kernel=a\nkernel=b\r\n", Some("b")),
            (PI5, "#kernel=a\n", None),
            (PI4, "kernel=a\n[pi5]\nkernel=b\n", Some("a")),
            (PI5, "kernel=a\n[pi5]\nkernel=b\n", Some("b")),
            (CM5, "[pi5]\nkernel=a\n[cm5]\nkernel=b\n[all]\n", Some("b")),
            (PI5, "[pi5]\nkernel=a\n[cm5]\nkernel=b\n[all]\n", Some("a")),
            (PI5, "[pi4]\nkernel=a\n[all]\nkernel=c\n", Some("c")),
            (ZERO, "[pi02]\nkernel=a\n", Some("a")),
            (PI4, "[pi4]\n[tryboot]\nkernel=a\n[pi4]\nkernel=b\n", None),
            (PI5, "[none]\nkernel=a\n", None),
            (PI5, "[gpio4=1]\nkernel=a\n[all]\nkernel=b\n", Some("b")),
            (PI5, "[gpio4=1]\n[pi4]\nkernel=a\n", None),
            (PI5, "include extra.txt\n[all]\n", Some("extra.img")),
            (PI5, "include gone.txt\nkernel=a\n", Some("a")),
            (PI5, "[pi4]\ninclude extra.txt\n", None),
        ] {
            assert_eq!(told(model, text).value("kernel"), Ok(expected), "{model:?} {text:?}");
        }
    }

    #[test]
    fn what_only_the_firmware_can_decide_is_said_so() {
        for (model, text, section) in [
            (Some("Raspberry Pi 5"), "kernel=a\n[gpio4=1]\nkernel=b\n", "gpio4=1"),
            (Some("Raspberry Pi 5"), "[0x1234abcd]\nkernel=b\n", "0x1234abcd"),
            (None, "[pi5]\nkernel=b\n", "pi5"),
        ] {
            let error = told(model, text).value("kernel").unwrap_err().to_string();
            assert!(error.contains(&format!("[{section}]")), "{error}");
        }
    }
}
