//! The configuration: as written, then checked. An absent default file means the defaults.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use wire::{
    broker::{self, Broker},
    connection::Secret,
    discovery::HomeAssistant,
    topic::{BadName, Name},
};

/// Where the configuration is looked for when no file is named.
pub const DEFAULT: &str = "/etc/bramble/aggregator.toml";

/// Where the password for the broker is when no file is named; systemd hands it over.
pub const PASSWORD: &str = "/etc/bramble/aggregator-mqtt-password";
/// Where the key of our certificate for the broker is when no file is named.
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
    /// The file is there or was named, but cannot be read.
    #[error("reading {}; name another file with --config", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not TOML, an unknown key, or a value of another type: the text shows line, key and what is allowed.
    #[error("{}: {why}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The parser's words, with line and column.
        why: String,
    },
    /// A value that is not allowed.
    #[error("{}:{line}: `{key}`: {why}", path.display())]
    NotAllowed {
        /// The file.
        path: PathBuf,
        /// The key's line; 1 when it was not found.
        line: usize,
        /// The key with its table.
        key: &'static str,
        /// What is allowed.
        why: String,
    },
}

impl Config {
    /// Reads `path`, or the default file, or takes the defaults when the default file is absent.
    ///
    /// # Errors
    /// See [`BadConfig`].
    #[expect(
        clippy::disallowed_methods,
        reason = "the aggregator has no Host: it reads its configuration only"
    )]
    pub fn load(path: Option<&Path>) -> Result<Self, BadConfig> {
        let default = Path::new(DEFAULT);
        let text = match std::fs::read_to_string(path.unwrap_or(default)) {
            Err(error) if path.is_none() && error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                return Err(BadConfig::Unreadable {
                    path: path.unwrap_or(default).to_owned(),
                    source: error,
                });
            }
            Ok(text) => text,
        };
        Self::parse(&text, path.unwrap_or(default), |file| std::fs::read_to_string(file))
    }

    /// Checks `text`, which came from `path`; `read` opens the password file.
    fn parse(text: &str, path: &Path, read: impl Fn(&Path) -> io::Result<String>) -> Result<Self, BadConfig> {
        let raw: Raw = toml::from_str(text)
            .map_err(|e| BadConfig::Malformed { path: path.to_owned(), why: e.to_string() })?;
        let not_allowed = |key: &'static str, why: String| BadConfig::NotAllowed {
            path: path.to_owned(),
            line: line_of(text, key),
            key,
            why,
        };
        let cluster = raw.cluster.as_deref().unwrap_or("home");
        let cluster = Name::new(cluster).map_err(|e: BadName| not_allowed("cluster", e.to_string()))?;
        let broker = raw.mqtt.check(&handed_over("mqtt-key", KEY).display().to_string());
        let broker = broker.map_err(|wrong| {
            not_allowed(
                wrong.key,
                match wrong.value.as_str() {
                    "" => wrong.why,
                    value => format!("`{value}` is not allowed: {}", wrong.why),
                },
            )
        })?;
        let user = match (raw.mqtt.user, raw.mqtt.password_file) {
            (None, None) => None,
            (Some(user), Some(file)) => {
                let text = read(Path::new(&file))
                    .map_err(|e| not_allowed("mqtt.password_file", format!("{file} cannot be read: {e}")))?;
                Some((user, Secret::new(text.lines().next().unwrap_or_default().to_owned())))
            }
            (Some(user), None) => {
                let text = read(&handed_over("mqtt-password", PASSWORD)).unwrap_or_default();
                let password = text.lines().next().filter(|line| !line.is_empty()).ok_or_else(|| {
                    let why = format!(
                        "needs a password: write it into {PASSWORD}, for root alone, or name its `password_file`"
                    );
                    not_allowed("mqtt.user", why)
                })?;
                Some((user, Secret::new(password.to_owned())))
            }
            (None, Some(_)) => {
                return Err(not_allowed("mqtt.password_file", "needs `user` beside it".into()));
            }
        };
        let listen = raw.web.listen.as_deref().unwrap_or("127.0.0.1:8080");
        let listen = listen.parse().map_err(|_| {
            not_allowed(
                "web.listen",
                format!("`{listen}` is not allowed, an address and a port are: 127.0.0.1:8080"),
            )
        })?;
        let hosts: Vec<String> = raw.web.hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        if let Some(bad) = hosts.iter().find(|host| !is_host_name(host)) {
            return Err(not_allowed(
                "web.hosts",
                format!("`{bad}` is not allowed, host names without port are"),
            ));
        }
        let home_assistant = raw.home_assistant;
        Ok(Self { cluster, mqtt: Mqtt { broker, user }, home_assistant, web: Web { listen, hosts } })
    }
}

impl Web {
    /// Where others than this host reach the page, when they do.
    pub fn address(&self) -> Option<String> {
        let host = self.hosts.first().filter(|_| !self.listen.ip().is_loopback())?;
        Some(format!("http://{host}:{}/", self.listen.port()))
    }
}

/// Where systemd put a secret for this process, or where it takes it from.
fn handed_over(name: &str, source: &str) -> PathBuf {
    match std::env::var_os("CREDENTIALS_DIRECTORY") {
        Some(directory) => Path::new(&directory).join(name),
        None => PathBuf::from(source),
    }
}

fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    text.parse::<IpAddr>().is_err() && text.split('.').all(label)
}

/// The line of `table.key`; checked values have lost theirs.
fn line_of(text: &str, key: &str) -> usize {
    let (table, key) = key.rsplit_once('.').unwrap_or(("", key));
    let mut current = "";
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[') {
            current = name.split(']').next().unwrap_or_default().trim();
        }
        let written = line.split('=').next().unwrap_or_default().trim();
        let dotted = if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") };
        if (current == table && written == key) || (current.is_empty() && written == dotted) {
            return number + 1;
        }
    }
    1
}

#[cfg(test)]
impl Config {
    /// What a file of this text says.
    pub(crate) fn of(text: &str) -> Self {
        Self::parse(text, Path::new("test.toml"), |_| Ok(String::new())).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let read = |file: &Path| match file.to_str() {
            Some("/secret") => Ok("hunter2\n".to_owned()),
            _ => Err(io::Error::from(io::ErrorKind::NotFound)),
        };
        Config::parse(text, Path::new("a.toml"), read).map_err(|e| e.to_string())
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
            ("\ncluster = \"A b\"", ["a.toml:2", "`cluster`", "A b", "a-z, 0-9"]),
            ("[mqtt]\nport = 0", ["a.toml", "line 2", "port", "nonzero"]),
            ("mqtt.pin = \"x\"", ["a.toml:1", "`mqtt.pin`", "tls = true", "nothing"]),
            ("[mqtt]\nhost = \"http://x\"", ["a.toml:2", "`mqtt.host`", "a name", "mqtts"]),
            ("[mqtt]\nuser = \"u\"", ["a.toml:2", "`mqtt.user`", "password_file", "needs"]),
            (
                "[mqtt]\nuser = \"u\"\npassword_file = \"/none\"",
                ["a.toml:3", "`mqtt.password_file`", "/none", "cannot be read"],
            ),
            ("[mqtt]\nwill_delay = \"9999s\"", ["a.toml:2", "`mqtt.will_delay`", "9999s", "0ns to 300s"]),
            ("[web]\n\nlisten = \"8080\"", ["a.toml:3", "`web.listen`", "`8080`", "127.0.0.1:8080"]),
            ("[web]\nhosts = [\"a:80\"]", ["a.toml:2", "`web.hosts`", "a:80", "without port"]),
        ];
        for (text, parts) in table {
            let error = parse(text).unwrap_err();
            for part in parts {
                assert!(error.contains(part), "{text:?} gave {error:?}, which lacks {part:?}");
            }
        }
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
