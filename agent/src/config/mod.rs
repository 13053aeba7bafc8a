//! The configuration in two stages: as written (TOML, unknown keys refused) and checked.
//!
//! The shipped `/etc/bramble/bramble.toml` is a package's file that nobody writes; what it leaves out has the default
//! that stands here. A secret is never in it: only the path of the file that holds it.

use std::{net::Ipv4Addr, path::PathBuf, time::Duration};

use serde::Deserialize;
use wire::{connection::Secret, topic::Name};

use crate::host::{Host, Unreadable};

/// `[cluster]`: what the node is prepared for.
pub mod cluster;

/// Where the configuration is looked for when no `--config` is given.
pub const DEFAULT_PATH: &str = "/etc/bramble/bramble.toml";

/// What the owner decided, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Who this node is.
    pub node: Node,
    /// How the broker is reached.
    pub mqtt: Mqtt,
    /// How the mesh is probed.
    pub probe: Probe,
    /// How often numbers are reported.
    pub report: Report,
    /// What happens when something that held does not any more.
    pub guard: Guard,
    /// What the node is prepared for.
    pub cluster: cluster::Cluster,
}

/// What happens when something that held does not any more; it is always reported.
#[derive(Debug, Clone)]
pub struct Guard {
    /// Whether `bramble-prepare.service` is started to restore it.
    pub restore: bool,
    /// How often per hour, at most: two programs that undo each other must not do so for ever.
    pub restore_per_hour: u32,
}

/// Who this node is.
#[derive(Debug, Clone)]
pub struct Node {
    /// Name in topics and on the page.
    pub name: Name,
    /// The cluster's name in topics.
    pub cluster: Name,
    /// What must survive a restart.
    pub state_dir: PathBuf,
    /// Where the two Unix sockets are.
    pub runtime_dir: PathBuf,
}

/// How the broker is reached.
#[derive(Debug, Clone)]
pub struct Mqtt {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// User and password.
    pub user: Option<(String, Secret)>,
    /// Silence after which the connection is tested.
    pub keep_alive: Duration,
    /// How long the broker waits before it says that we are gone.
    pub will_delay: Duration,
}

/// How the mesh is probed.
#[derive(Debug, Clone)]
pub struct Probe {
    /// The node's link to its peers; `None` = the device of the default route.
    pub uplink: Option<String>,
    /// UDP port of the responder; the same on all nodes.
    pub port: u16,
    /// Time between two batches.
    pub period: Duration,
    /// Who may read the clock.
    pub stamps: Stamps,
    /// How programs are attached.
    pub attach: Attach,
}

/// Who may read the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stamps {
    /// The kernel if it can, else user space.
    Auto,
    /// User space.
    User,
}

/// How programs are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attach {
    /// tcx if the kernel has it (6.6), else a tc filter.
    Auto,
    /// tcx only.
    Tcx,
    /// A tc filter, as on kernels before 6.6.
    Tc,
}

/// How often numbers are reported.
#[derive(Debug, Clone)]
pub struct Report {
    /// Time between two state messages; a change of health is said at once.
    pub interval: Duration,
    /// Whether Home Assistant is told about this node.
    pub home_assistant: bool,
}

/// Why a configuration is not taken: one cause, with its place.
#[derive(Debug, thiserror::Error)]
pub enum BadConfig {
    /// The file that was asked for cannot be read.
    #[error("{0}")]
    Unreadable(#[from] Unreadable),
    /// Not TOML, an unknown key, or a value of the wrong type; names line, key and what is allowed.
    #[error("{path}: {why}")]
    Written {
        /// The file.
        path: String,
        /// Place, cause and what is allowed.
        why: String,
    },
    /// A value that is of the right type and still impossible.
    #[error("{path}: {key} = {value}: {why}")]
    Value {
        /// The file.
        path: String,
        /// The key, with its section.
        key: &'static str,
        /// What stands there.
        value: String,
        /// What is allowed.
        why: String,
    },
}

/// As written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct Raw {
    node: RawNode,
    mqtt: RawMqtt,
    probe: RawProbe,
    report: RawReport,
    guard: RawGuard,
    cluster: cluster::Cluster,
}

#[derive(Debug, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawNode {
    name: Option<String>,
    cluster: Option<String>,
    state_dir: Option<PathBuf>,
    runtime_dir: Option<PathBuf>,
}

#[derive(Debug, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawMqtt {
    host: Option<String>,
    port: Option<u16>,
    user: Option<String>,
    password_file: Option<String>,
    keep_alive: Option<String>,
    will_delay: Option<String>,
}

#[derive(Debug, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawProbe {
    uplink: Option<String>,
    port: Option<u16>,
    period: Option<String>,
    stamps: Option<Stamps>,
    attach: Option<Attach>,
}

#[derive(Debug, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawGuard {
    restore: Option<bool>,
    restore_per_hour: Option<u32>,
}

#[derive(Debug, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawReport {
    interval: Option<String>,
    home_assistant: Option<bool>,
}

impl Config {
    /// Reads and checks `path`, or the default file if there is one, or takes the defaults.
    ///
    /// # Errors
    /// See [`BadConfig`]. A file that was named and is not there is an error, a missing default file is not.
    pub fn load(host: &Host, path: Option<&str>) -> Result<Self, BadConfig> {
        let (path, text) = match path {
            Some(path) => (path, host.text(path)?),
            None => (DEFAULT_PATH, host.text_if_present(DEFAULT_PATH)?.unwrap_or_default()),
        };
        let host_name = host.text("/proc/sys/kernel/hostname").unwrap_or_default();
        let raw: Raw = toml::from_str(&text).map_err(|e| BadConfig::Written {
            path: path.to_owned(),
            why: e.to_string().trim_end().to_owned(),
        })?;
        let password = match &raw.mqtt.password_file {
            Some(file) => Some(Secret::new(host.text(file)?.trim_end_matches(['\r', '\n']).to_owned())),
            None => None,
        };
        raw.check(path, host_name.trim(), password)
    }

    /// Socket on which the agent answers `status` and `mesh`.
    pub fn agent_socket(&self) -> PathBuf {
        self.node.runtime_dir.join("agent.sock")
    }

    /// Socket on which the companion serves the agent.
    pub fn probe_socket(&self) -> PathBuf {
        self.node.runtime_dir.join("probe.sock")
    }
}

impl Raw {
    fn check(self, path: &str, host_name: &str, password: Option<Secret>) -> Result<Config, BadConfig> {
        let bad = |key: &'static str, value: &str, why: String| BadConfig::Value {
            path: path.to_owned(),
            key,
            value: format!("\"{value}\""),
            why,
        };
        let duration = |key, value: Option<String>, default: Duration, from: Duration, to: Duration| {
            let Some(text) = value else { return Ok(default) };
            let wanted = || format!("a time from {from:?} to {to:?}, such as \"{default:?}\"");
            let span: jiff::SignedDuration = text.parse().map_err(|_| bad(key, &text, wanted()))?;
            Duration::try_from(span)
                .ok()
                .filter(|d| (from..=to).contains(d))
                .ok_or_else(|| bad(key, &text, wanted()))
        };
        let seconds = Duration::from_secs;
        let name = match &self.node.name {
            Some(name) => Name::new(name).map_err(|e| bad("node.name", name, e.to_string()))?,
            None => Name::slug(host_name).ok_or_else(|| {
                bad("node.name", host_name, "the host name gives no valid node name; set one".to_owned())
            })?,
        };
        let cluster = self.node.cluster.as_deref().unwrap_or("home");
        let user = match (self.mqtt.user, password) {
            (Some(user), Some(password)) => Some((user, password)),
            (None, None) => None,
            (Some(user), None) => {
                return Err(bad("mqtt.user", &user, "needs mqtt.password_file beside it".to_owned()));
            }
            (None, Some(_)) => {
                return Err(bad("mqtt.password_file", "...", "needs mqtt.user beside it".to_owned()));
            }
        };
        Ok(Config {
            node: Node {
                name,
                cluster: Name::new(cluster).map_err(|e| bad("node.cluster", cluster, e.to_string()))?,
                state_dir: self.node.state_dir.unwrap_or_else(|| "/var/lib/bramble".into()),
                runtime_dir: self.node.runtime_dir.unwrap_or_else(|| "/run/bramble".into()),
            },
            mqtt: Mqtt {
                host: self.mqtt.host.unwrap_or_else(|| Ipv4Addr::LOCALHOST.to_string()),
                port: self.mqtt.port.unwrap_or(1883),
                user,
                keep_alive: duration(
                    "mqtt.keep_alive",
                    self.mqtt.keep_alive,
                    seconds(30),
                    seconds(1),
                    seconds(3600),
                )?,
                will_delay: duration(
                    "mqtt.will_delay",
                    self.mqtt.will_delay,
                    seconds(2),
                    seconds(0),
                    seconds(300),
                )?,
            },
            probe: Probe {
                uplink: self.probe.uplink.filter(|u| !u.is_empty()),
                port: self.probe.port.unwrap_or(ebpf_records::mesh::DEFAULT_PORT),
                period: duration(
                    "probe.period",
                    self.probe.period,
                    seconds(1),
                    Duration::from_millis(500),
                    seconds(60),
                )?,
                stamps: self.probe.stamps.unwrap_or(Stamps::Auto),
                attach: self.probe.attach.unwrap_or(Attach::Auto),
            },
            report: Report {
                interval: duration(
                    "report.interval",
                    self.report.interval,
                    seconds(10),
                    seconds(1),
                    seconds(3600),
                )?,
                home_assistant: self.report.home_assistant.unwrap_or(true),
            },
            guard: Guard {
                restore: self.guard.restore.unwrap_or(false),
                restore_per_hour: self.guard.restore_per_hour.unwrap_or(3),
            },
            cluster: self.cluster,
        })
    }
}

impl Default for Config {
    /// What an empty file on a host named `localhost` gives.
    fn default() -> Self {
        Raw::default().check("", "localhost", None).expect("the defaults are valid")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Config, String> {
        let raw: Raw = toml::from_str(text).map_err(|e| e.to_string())?;
        raw.check("bramble.toml", "Pi5.local", None).map_err(|e| e.to_string())
    }

    #[test]
    fn an_empty_file_gives_the_defaults_and_the_host_s_name() {
        let config = check("").unwrap();
        assert_eq!((config.node.name.as_str(), config.node.cluster.as_str()), ("pi5-local", "home"));
        assert_eq!(config.probe.period, Duration::from_secs(1));
    }

    #[test]
    fn an_error_names_the_line_the_key_and_what_is_allowed() {
        for (text, parts) in [
            ("[mqtt]\nhots = \"a\"", &["line 2", "hots", "host"][..]),
            ("[probe]\nstamps = \"best\"", &["line 2", "best", "auto", "user"]),
            ("[mqtt]\nport = 70000", &["line 2", "70000"]),
            ("[node]\nname = \"a/b\"", &["bramble.toml", "node.name", "a/b", "a-z"]),
            ("[probe]\nperiod = \"soon\"", &["probe.period", "soon", "500ms"]),
            ("[probe]\nperiod = \"1ms\"", &["probe.period", "1ms", "500ms"]),
            ("[mqtt]\nuser = \"u\"", &["mqtt.user", "password_file"]),
            ("nonsense", &["line 1"]),
        ] {
            let error = check(text).unwrap_err();
            for part in parts {
                assert!(error.contains(part), "{part:?} is not in {error:?}");
            }
        }
    }
}
