//! The configuration: as written, then checked. An absent default file means the defaults.
//!
//! The shipped `/etc/bramble/aggregator.toml` is a package's file that nobody writes; the owner's settings are in
//! `/etc/bramble/aggregator.d/*.toml`: of two files that set the same key, the later by name wins.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use serde::Deserialize;
use wire::{
    broker::{self, Broker},
    connection::Secret,
    discovery::HomeAssistant,
    topic::Name,
    written::{Written, Wrong, secret},
};

/// Where the configuration is looked for when no file is named.
pub const DEFAULT: &str = "/etc/bramble/aggregator.toml";
/// Where the owner's files are, which are read after it.
pub const DROP_INS: &str = "/etc/bramble/aggregator.d";

/// Where the password for the broker is when no file is named; systemd hands it over when the aggregator starts.
pub const PASSWORD: &str = "/etc/bramble/aggregator-mqtt-password";
/// Where the key of our certificate for the broker is when no file is named; handed over as the password is.
pub const KEY: &str = "/etc/bramble/aggregator-mqtt-key";

/// As written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    cluster: Option<String>,
    mqtt: broker::Raw,
    home_assistant: HomeAssistant,
    web: RawWeb,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawWeb {
    listen: Option<String>,
    hosts: Vec<String>,
}

/// Checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `cluster`: which cluster's topics are read. Default `home`.
    pub cluster: Name,
    /// `[mqtt]`
    pub mqtt: Mqtt,
    /// `[home_assistant]`: how the cluster's device is announced; as on the nodes.
    pub home_assistant: HomeAssistant,
    /// `[web]`
    pub web: Web,
}

/// How to reach the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mqtt {
    /// Where it is, by which transport, and how long it may be silent; as on the nodes.
    pub broker: Broker,
    /// `user` and the first line of `password_file`. Default none.
    pub user: Option<(String, Secret)>,
}

/// Who may read the page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Web {
    /// `listen`: address and port. The page has no login, so another address than a loopback one shows the
    /// cluster to everybody who can reach it. Default `127.0.0.1:8080`.
    pub listen: SocketAddr,
    /// `hosts`: names under which browsers may ask, besides `localhost` and addresses. Default none.
    pub hosts: Vec<String>,
}

/// Why a configuration is not taken.
#[derive(Debug, thiserror::Error)]
pub enum BadConfig {
    /// A file is there or was named, but cannot be read.
    #[error("{path}: {why}; name another file with --config")]
    Unreadable {
        /// The file, or the directory of files.
        path: String,
        /// Why.
        why: io::Error,
    },
    /// What is written is not allowed; names file, line, key and what is allowed.
    #[error(transparent)]
    Wrong(#[from] Wrong),
}

impl Config {
    /// Reads and checks `path` alone, or the default file and the owner's, or takes the defaults.
    ///
    /// # Errors
    /// See [`BadConfig`]. A file that was named and is not there is an error, a missing default file is not.
    #[expect(
        clippy::disallowed_methods,
        reason = "the aggregator has no Host: it reads its configuration only"
    )]
    pub fn load(path: Option<&str>) -> Result<Self, BadConfig> {
        let mut written = Written::default();
        let mut add = |path: &str, is_named: bool| match std::fs::read_to_string(path) {
            Ok(text) => Ok(written.add::<Raw>(path, &text)?),
            Err(error) if !is_named && error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(why) => Err(BadConfig::Unreadable { path: path.to_owned(), why }),
        };
        match path {
            Some(path) => add(path, true)?,
            None => {
                add(DEFAULT, false)?;
                for path in drop_ins(Path::new(DROP_INS))? {
                    add(&path, true)?;
                }
            }
        }
        Self::check(&written, |file| std::fs::read_to_string(file))
    }

    /// Checks what is written; `read` opens the password file.
    fn check(written: &Written, read: impl Fn(&str) -> io::Result<String>) -> Result<Self, BadConfig> {
        let mut raw: Raw = written.read()?;
        let wrong = |key, value: &str, why: &str| BadConfig::Wrong(written.wrong(key, value, why));
        let cluster = raw.cluster.as_deref().unwrap_or("home");
        let cluster = Name::new(cluster).map_err(|e| wrong("cluster", cluster, &e.to_string()))?;
        let credentials = std::env::var("CREDENTIALS_DIRECTORY").ok();
        let handed_over =
            |name, default, named: Option<&str>| secret(name, default, named, credentials.as_deref());
        raw.mqtt.key = raw.mqtt.key.map(|key| handed_over("mqtt-key", KEY, Some(&key)));
        let broker = raw.mqtt.check(&handed_over("mqtt-key", KEY, None));
        let broker = broker.map_err(|bad| wrong(bad.key, &bad.value, &bad.why))?;
        let user = match (raw.mqtt.user, raw.mqtt.password_file) {
            (None, None) => None,
            (None, Some(file)) => {
                return Err(wrong("mqtt.password_file", &file, "needs mqtt.user beside it"));
            }
            (Some(user), file) => {
                let lacks = |why: &str| wrong("mqtt.user", &user, &format!("the password is missing: {why}"));
                let file = handed_over("mqtt-password", PASSWORD, file.as_deref());
                let text = read(&file).map_err(|e| lacks(&format!("{file}: {e}")))?;
                let password = text.lines().next().filter(|line| !line.is_empty()).ok_or_else(|| {
                    lacks(&format!(
                        "write it into {PASSWORD}, for root alone (mode 0600), and restart bramble-aggregator: it is handed over at a start only"
                    ))
                })?;
                Some((user, Secret::new(password.to_owned())))
            }
        };
        let listen = raw.web.listen.as_deref().unwrap_or("127.0.0.1:8080");
        let listen = listen
            .parse()
            .map_err(|_| wrong("web.listen", listen, "an address and a port, such as 127.0.0.1:8080"))?;
        let hosts: Vec<String> = raw.web.hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        if let Some(bad) = hosts.iter().find(|host| !is_host_name(host)) {
            return Err(wrong("web.hosts", bad, "host names without port"));
        }
        let home_assistant = raw.home_assistant;
        Ok(Self { cluster, mqtt: Mqtt { broker, user }, home_assistant, web: Web { listen, hosts } })
    }
}

/// The owner's files in `directory`, in the order in which they are read.
fn drop_ins(directory: &Path) -> Result<Vec<String>, BadConfig> {
    #[expect(clippy::disallowed_methods, reason = "the aggregator has no Host; these are its configuration")]
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.and_then(Iterator::collect::<io::Result<Vec<_>>>),
    };
    let unreadable = |why| BadConfig::Unreadable { path: directory.display().to_string(), why };
    let paths = entries.map_err(unreadable)?.into_iter().map(|entry| entry.path());
    let mut paths: Vec<String> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .map(|path| path.display().to_string())
        .collect();
    paths.sort();
    Ok(paths)
}

impl Web {
    /// Where others than this host reach the page, when they do.
    pub fn address(&self) -> Option<String> {
        let host = self.hosts.first().filter(|_| !self.listen.ip().is_loopback())?;
        Some(format!("http://{host}:{}/", self.listen.port()))
    }
}

fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    text.parse::<IpAddr>().is_err() && text.split('.').all(label)
}

#[cfg(test)]
impl Config {
    /// What a file of this text says.
    pub(crate) fn of(text: &str) -> Self {
        let mut written = Written::default();
        written.add::<Raw>("test.toml", text).unwrap();
        Self::check(&written, |_| Ok(String::new())).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_all(files: &[(&str, &str)]) -> Result<Config, String> {
        let read = |file: &str| match file {
            "/secret" => Ok("hunter2\n".to_owned()),
            // What systemd hands over when there is no such file.
            PASSWORD => Ok("\n".to_owned()),
            _ => Err(io::Error::from(io::ErrorKind::NotFound)),
        };
        let mut written = Written::default();
        for (path, text) in files {
            written.add::<Raw>(path, text).map_err(|e| e.to_string())?;
        }
        Config::check(&written, read).map_err(|e| e.to_string())
    }

    fn parse(text: &str) -> Result<Config, String> {
        parse_all(&[("a.toml", text)])
    }

    #[test]
    fn nothing_written_means_loopback_only() {
        let config = parse("").unwrap();
        assert_eq!(config.cluster.as_str(), "home");
        assert!(config.web.listen.ip().is_loopback());
        assert_eq!((config.mqtt.broker.to_string().as_str(), config.mqtt.user), ("127.0.0.1:1883", None));
    }

    #[test]
    fn everything_written_is_taken() {
        let config = parse(
            "cluster = \"attic\"\n[mqtt]\nhost = \"broker\"\nport = 1884\nuser = \"u\"\npassword_file = \"/secret\"\n\
             keep_alive = \"5s\"\nwill_delay = \"0s\"\n[web]\nlisten = \"[::1]:0\"\nhosts = [\"Pi.local\"]\n",
        )
        .unwrap();
        assert_eq!(config.mqtt.user, Some(("u".into(), Secret::new("hunter2".into()))));
        assert!(!format!("{config:?}").contains("hunter2"));
        assert_eq!(config.web.hosts, ["pi.local"]);
        assert_eq!(config.mqtt.broker.keep_alive.as_secs(), 5);
    }

    #[test]
    fn what_is_wrong_is_named_with_file_line_key_and_what_is_allowed() {
        let table = [
            ("clutser = \"x\"", ["a.toml", "line 1", "clutser", "expected one of `cluster`"]),
            ("[mqtt]\nport = 70000", ["a.toml", "line 2", "port", "u16"]),
            ("\ncluster = \"A b\"", ["a.toml: line 2", "cluster = ", "A b", "a-z, 0-9"]),
            ("[mqtt]\nport = 0", ["a.toml", "line 2", "port", "nonzero"]),
            ("mqtt.pin = \"x\"", ["a.toml: line 1", "mqtt.pin", "tls = true", "nothing"]),
            ("[mqtt]\nhost = \"http://x\"", ["a.toml: line 2", "mqtt.host", "a name", "mqtts"]),
            ("[mqtt]\nuser = \"u\"", ["a.toml: line 2", "mqtt.user", PASSWORD, "restart bramble-aggregator"]),
            (
                "[mqtt]\nuser = \"u\"\npassword_file = \"/none\"",
                ["a.toml: line 2", "mqtt.user", "/none: ", "not found"],
            ),
            ("[mqtt]\nwill_delay = \"9999s\"", ["a.toml: line 2", "mqtt.will_delay", "9999s", "0ns to 300s"]),
            ("[web]\n\nlisten = \"8080\"", ["a.toml: line 3", "web.listen", "\"8080\"", "127.0.0.1:8080"]),
            ("[web]\nhosts = [\"a:80\"]", ["a.toml: line 2", "web.hosts", "a:80", "without port"]),
        ];
        for (text, parts) in table {
            let error = parse(text).unwrap_err();
            for part in parts {
                assert!(error.contains(part), "{text:?} gave {error:?}, which lacks {part:?}");
            }
        }
    }

    #[test]
    fn a_password_written_in_the_wrong_place_is_not_repeated() {
        for text in ["[mqtt]\npassword = \"hunter2\"", "[mqtt]\nhunter2"] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with("a.toml: line 2: ") && error.lines().count() == 1, "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn the_owners_files_are_read_by_name_and_win_key_by_key() {
        let directory = std::env::temp_dir().join(format!("bramble-aggregator-{}", std::process::id()));
        assert_eq!(drop_ins(&directory).unwrap(), [] as [&str; 0]);
        std::fs::create_dir(&directory).unwrap();
        for name in ["b.toml", "a.toml", "c.toml.dpkg-old"] {
            std::fs::create_dir(directory.join(name)).unwrap();
        }
        let found = drop_ins(&directory);
        std::fs::remove_dir_all(&directory).unwrap();
        let path = |name| directory.join(name).display().to_string();
        assert_eq!(found.unwrap(), [path("a.toml"), path("b.toml")]);
        let files = [("shipped", "cluster = \"x\"\n[web]\nlisten = \"[::1]:1\""), ("own", "cluster = \"y\"")];
        let config = parse_all(&files).unwrap();
        assert_eq!((config.cluster.as_str(), config.web.listen.port()), ("y", 1));
    }

    /// The shipped file: `#key = value` is a setting that is commented out, `# ` begins prose.
    #[test]
    fn the_shipped_file_says_the_defaults_and_changes_nothing() {
        const SHIPPED: &str = include_str!("../../packaging/aggregator.toml");
        let is_setting =
            |line: &str| line.strip_prefix('#').is_some_and(|l| l.starts_with(char::is_alphabetic));
        let settings: Vec<&str> =
            SHIPPED.lines().map(|line| if is_setting(line) { &line[1..] } else { line }).collect();
        assert!(settings.len() > SHIPPED.lines().filter(|line| line.starts_with('#')).count());
        assert_eq!(parse(SHIPPED), parse(""));
        assert_eq!(parse(&settings.join("\n")), parse(""));
    }
}
