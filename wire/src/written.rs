//! The configuration of both programs as it is written: several files of TOML, merged, and where in them something is
//! wrong. Nothing here reads a file.

use serde::de::DeserializeOwned;

/// Files in the order in which they were read; of two that set the same key, the later wins.
#[derive(Debug, Default)]
pub struct Written {
    files: Vec<(String, String)>,
    merged: toml::Table,
}

/// Why a configuration is not taken: one cause, with its place, in one line. No value is repeated that may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {why}")]
pub struct Wrong {
    /// The file, and the line where it is known: `a.toml: line 2`.
    pub place: String,
    /// The key, where it is known, the cause, and what is allowed.
    pub why: String,
}

impl Written {
    /// Takes one file more, which by itself is a `T` too.
    ///
    /// # Errors
    /// Not TOML, an unknown key, or a value of another type.
    pub fn add<T: DeserializeOwned>(&mut self, path: &str, text: &str) -> Result<(), Wrong> {
        let wrong = |error| wrong(path, &error, text);
        let _: T = toml::from_str(text).map_err(wrong)?;
        let table: toml::Table = toml::from_str(text).map_err(wrong)?;
        merge(&mut self.merged, table);
        self.files.push((path.to_owned(), text.to_owned()));
        Ok(())
    }

    /// What all files say together.
    ///
    /// # Errors
    /// They do not fit together.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Wrong> {
        let path = self.files.last().map(|(path, _)| path.as_str()).unwrap_or_default();
        self.merged.clone().try_into().map_err(|error| wrong(path, &error, ""))
    }

    /// What is said of `key` (`section.key`), when its `value` is not allowed; an empty value is not repeated.
    pub fn wrong(&self, key: &str, value: &str, why: &str) -> Wrong {
        let why = match value {
            "" => format!("{key}: {why}"),
            value => format!("{key} = \"{}\": {why}", visible(value)),
        };
        Wrong { place: self.origin(key), why }
    }

    /// The last file that sets the key, and the line where it does; the first file when none does.
    fn origin(&self, key: &str) -> String {
        let set = self.files.iter().rev().find_map(|(path, text)| Some((path, line_of(text, key)?)));
        match (set, self.files.first()) {
            (Some((path, line)), _) => format!("{path}: line {line}"),
            (None, Some((path, _))) => path.clone(),
            (None, None) => String::new(),
        }
    }
}

/// A text as somebody wrote it, for an error: only what cannot be seen is escaped.
pub fn visible(text: &str) -> String {
    // Of a text, not of its letters one by one: that would take marks off their letters, as `{:?}` does.
    text.escape_debug().to_string().replace("\\'", "'")
}

/// Where to read a secret: a file that its owner named, or the `default`, which a unit's `LoadCredential=` hands over as
/// `name` in `credentials` (`$CREDENTIALS_DIRECTORY`); without systemd, the `default` itself.
pub fn secret(name: &str, default: &str, named: Option<&str>, credentials: Option<&str>) -> String {
    match (named.unwrap_or(default), credentials) {
        // It is root's, and the service reads its own copy, whether the owner wrote the default down or not.
        (path, Some(directory)) if path == default => format!("{directory}/{name}"),
        (path, _) => path.to_owned(),
    }
}

/// The line, from 1, on which `text` sets `section.key`, a key of a table in it, or `key`.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let document = toml::de::DeTable::parse(text).ok()?;
    let (tables, key) = key.rsplit_once('.').map_or(("", key), |(tables, key)| (tables, key));
    let mut tables = tables.split('.').filter(|name| !name.is_empty());
    let table = tables.try_fold(document.get_ref(), |table, name| table.get(name)?.get_ref().as_table())?;
    let (name, _) = table.iter().find(|(name, _)| name.get_ref() == key)?;
    Some(line_at(text, name.span().start))
}

fn line_at(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

/// File, line, key and cause. The rest of the line is left out: somebody may have written a password there.
fn wrong(path: &str, error: &toml::de::Error, text: &str) -> Wrong {
    let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let message: String = error.message().replace('\n', ", ").chars().map(plain).collect();
    let Some(line) = error.span().map(|span| line_at(text, span.start)) else {
        return Wrong { place: path.to_owned(), why: message };
    };
    let written = text.lines().nth(line - 1).and_then(|line| line.split_once('='));
    let is_plain = |key: &&str| {
        !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
    };
    let why = match written.map(|(key, _)| key.trim()).filter(is_plain) {
        Some(key) => format!("{key}: {message}"),
        None => message,
    };
    Wrong { place: format!("{path}: line {line}"), why }
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(into)), toml::Value::Table(from)) => merge(into, from),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Raw {
        name: String,
        mqtt: Mqtt,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Mqtt {
        host: String,
        port: u16,
        stamps: Option<Stamps>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    enum Stamps {}

    fn written(files: &[(&str, &str)]) -> Result<Written, Wrong> {
        let mut written = Written::default();
        for (path, text) in files {
            written.add::<Raw>(path, text)?;
        }
        Ok(written)
    }

    #[test]
    fn the_later_file_wins_key_by_key_and_is_named_for_what_it_sets() {
        let written = written(&[
            ("a", "name = \"x\"\n[mqtt]\nhost = \"a\"\nport = 1"),
            ("b", "mqtt = { host = \"b\" }"),
        ])
        .unwrap();
        let read: Raw = written.read().unwrap();
        assert_eq!((read.name.as_str(), read.mqtt.host.as_str(), read.mqtt.port), ("x", "b", 1));
        for (key, place) in [("mqtt.host", "b: line 1"), ("mqtt.port", "a: line 4"), ("name", "a: line 1")] {
            assert_eq!(written.wrong(key, "", "no").place, place);
        }
        assert_eq!(written.wrong("mqtt.none", "", "no").to_string(), "a: mqtt.none: no");
        assert_eq!(written.wrong("name", "\u{1b}x", "no").why, "name = \"\\u{1b}x\": no");
    }

    #[test]
    fn what_a_person_wrote_is_told_as_it_was_written_but_what_cannot_be_seen() {
        for text in ["K\u{fc}che", "Ku\u{308}che", "pi's", "\u{53f0}\u{6240}"] {
            assert_eq!(visible(text), text);
        }
        for (text, told) in
            [("\u{1b}[2J", "\\u{1b}[2J"), ("a\n\"", "a\\n\\\""), ("\u{202e}\\'", "\\u{202e}\\\\'")]
        {
            assert_eq!(visible(text), told);
        }
    }

    #[test]
    fn an_error_is_one_line_with_its_place_and_repeats_no_secret_and_no_control_byte() {
        for (text, line, part) in [
            ("[mqtt]\npassword = \"hunter2\"", 2, "password: unknown field"),
            ("[mqtt]\n\nhunter2", 3, "key with no value"),
            ("mqtt = { password = \"hunter2\" }", 1, "mqtt: unknown field `password`"),
            ("[mqtt]\npassword hunter2 = 1", 2, ""),
            ("[mqtt]\n\"\\u001b\" = \"hunter2\"", 2, "unknown field"),
            ("[mqtt]\nstamps = \"\\u001b\"", 2, "stamps: unknown variant"),
            ("[mqtt]\nport = 70000", 2, "port: "),
            ("a\u{1b}b", 1, ""),
        ] {
            let wrong = written(&[("a.toml", text)]).unwrap_err().to_string();
            assert!(wrong.starts_with(&format!("a.toml: line {line}: ")), "{text:?} gave {wrong:?}");
            assert!(wrong.contains(part) && !wrong.contains("hunter2"), "{text:?} gave {wrong:?}");
            assert!(!wrong.contains(char::is_control), "{text:?} gave {wrong:?}");
        }
    }

    #[test]
    fn the_file_that_systemd_hands_over_is_read_where_it_was_put() {
        let secret = |named, credentials| secret("mqtt-password", "/etc/x", named, credentials);
        for (named, credentials, path) in [
            (None, None, "/etc/x"),
            (None, Some("/run/c"), "/run/c/mqtt-password"),
            (Some("/etc/x"), Some("/run/c"), "/run/c/mqtt-password"),
            (Some("/etc/x"), None, "/etc/x"),
            (Some("/etc/y"), Some("/run/c"), "/etc/y"),
        ] {
            assert_eq!(secret(named, credentials), path);
        }
    }
}
