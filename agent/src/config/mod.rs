//! The configuration in two stages: as written (TOML, unknown keys refused) and checked.
//!
//! The shipped `/etc/bramble/bramble.toml` is a package's file that nobody writes; what it leaves out has the default
//! that stands here. The owner's settings are in `/etc/bramble/conf.d/*.toml`: of two files that set the same key, the later
//! by name wins. A secret is never in them: only the path of the file that holds it.

use std::{num::NonZeroU16, path::PathBuf, time::Duration};

use serde::Deserialize;
use wire::{
    broker::{self, Broker},
    connection::Secret,
    discovery::HomeAssistant,
    topic::{Name, Verb},
    written::{Written, Wrong, secret},
};

use crate::host::{Host, Unreadable, Why};

/// `[cilium]`: which Cilium the first server installs.
pub mod cilium;
/// `[cluster]`: what the node is prepared for.
pub mod cluster;
/// `[k3s]`: how the node joins.
pub mod k3s;

pub use wire::written::visible;

/// Where the configuration is looked for when no `--config` is given.
pub const DEFAULT_PATH: &str = "/etc/bramble/bramble.toml";
/// Where the owner's files are, which are read after it.
pub const DROP_INS: &str = "/etc/bramble/conf.d";
/// Where the password for the broker is when no file is named; systemd hands it over when the agent starts.
pub const PASSWORD: &str = "/etc/bramble/mqtt-password";
/// Where the key of our certificate for the broker is when no file is named; handed over as the password is.
pub const KEY: &str = "/etc/bramble/mqtt-key";

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
    /// How Home Assistant is told about this node.
    pub home_assistant: HomeAssistant,
    /// What may be asked over MQTT.
    pub commands: Commands,
    /// What happens when something that held does not any more.
    pub guard: Guard,
    /// What the node is prepared for.
    pub cluster: cluster::Cluster,
    /// Which Cilium the first server installs.
    pub cilium: cilium::Cilium,
    /// How it joins K3s.
    pub k3s: k3s::K3s,
    /// What Kubernetes is told.
    pub kubernetes: Kubernetes,
}

/// What Kubernetes is told, by `bramble-kubernetes.service`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kubernetes {
    /// Whether the Node object gets a condition of ours, and an Event for each change.
    pub tell: bool,
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
    /// Where it is, by which transport, and how long it may be silent.
    pub broker: Broker,
    /// User, and the password or why there is none: only the agent needs it, and not everybody may read it.
    pub user: Option<(String, Result<Secret, BadConfig>)>,
}

/// How the mesh is probed.
#[derive(Debug, Clone)]
pub struct Probe {
    /// The node's link to its peers; `None` = the device of the default route.
    pub uplink: Option<String>,
    /// UDP port of the probes; the same on all nodes.
    pub port: u16,
    /// Time between two batches; the same on all nodes, because loss is judged over a few of them.
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
}

/// What may be asked over MQTT.
#[derive(Debug, Clone)]
pub struct Commands {
    /// Verbs that change the machine and that the owner allows; the others are always allowed.
    pub allow: Vec<Verb>,
}

impl Commands {
    /// Whether it may be asked for.
    pub fn allows(&self, verb: Verb) -> bool {
        !verb.acts() || self.allow.contains(&verb)
    }
}

/// Why a configuration is not taken: one cause, with its place.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BadConfig {
    /// The file that was asked for cannot be read.
    #[error("{0}; {step}", step = step(.0))]
    Unreadable(Unreadable),
    /// What is written is not allowed; names file, line, key and what is allowed.
    #[error(transparent)]
    Wrong(#[from] Wrong),
    /// A secret that this process may not read, while another one may.
    #[error(transparent)]
    Denied(Wrong),
}

fn step(unreadable: &Unreadable) -> String {
    match unreadable.why {
        Why::Denied => format!("let the services read it: sudo chmod 644 {}", unreadable.path),
        _ => "name another file with --config".to_owned(),
    }
}

impl From<Unreadable> for BadConfig {
    // Not by `#[from]`: as its source, the cause would be told twice.
    fn from(why: Unreadable) -> Self {
        Self::Unreadable(why)
    }
}

/// As written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct Raw {
    node: RawNode,
    mqtt: broker::Raw,
    probe: RawProbe,
    report: RawReport,
    home_assistant: HomeAssistant,
    commands: RawCommands,
    guard: RawGuard,
    cluster: cluster::Cluster,
    cilium: cilium::Cilium,
    k3s: k3s::RawK3s,
    kubernetes: Kubernetes,
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
struct RawProbe {
    uplink: Option<String>,
    port: Option<NonZeroU16>,
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
}

#[derive(Debug, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawCommands {
    allow: Vec<String>,
}

impl Config {
    /// Reads and checks `path` alone, or the default file and the owner's, or takes the defaults. `unknown` tells what is
    /// wrong with an id in `accept` of `[cluster]` that names nothing.
    ///
    /// # Errors
    /// See [`BadConfig`]. A file that was named and is not there is an error, a missing default file is not.
    pub fn load(
        host: &Host,
        path: Option<&str>,
        unknown: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, BadConfig> {
        let mut written = Written::default();
        match path {
            Some(path) => written.add::<Raw>(path, &host.text(path)?)?,
            None => {
                let shipped = host.text_if_present(DEFAULT_PATH)?.unwrap_or_default();
                written.add::<Raw>(DEFAULT_PATH, &shipped)?;
                for name in host.list_if_present(DROP_INS)?.iter().filter(|name| name.ends_with(".toml")) {
                    let path = format!("{DROP_INS}/{name}");
                    written.add::<Raw>(&path, &host.text(&path)?)?;
                }
            }
        }
        let host_name = host.text("/proc/sys/kernel/hostname").unwrap_or_default();
        let raw: Raw = written.read()?;
        raw.check(&written, host_name.trim(), |file| host.text(file), unknown)
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

impl Mqtt {
    /// User and password, when the broker wants them.
    ///
    /// # Errors
    /// There is a user and no password that this process may read.
    pub fn login(&self) -> Result<Option<(String, Secret)>, BadConfig> {
        self.user.clone().map(|(user, password)| Ok((user, password?))).transpose()
    }
}

impl Raw {
    /// `written` is where it stands, `read` reads the password's file, `unknown` see [`Config::load`].
    fn check(
        mut self,
        written: &Written,
        host_name: &str,
        read: impl Fn(&str) -> Result<String, Unreadable>,
        unknown: impl Fn(&str) -> Option<String>,
    ) -> Result<Config, BadConfig> {
        let bad = |key, value: &str, why: String| BadConfig::Wrong(written.wrong(key, value, &why));
        let duration = |key, value: Option<String>, default: Duration, from: Duration, to: Duration| {
            let Some(text) = value else { return Ok(default) };
            broker::time(&text, default, from..=to).map_err(|why| bad(key, &text, why))
        };
        let seconds = Duration::from_secs;
        let name = match &self.node.name {
            Some(name) => Name::new(name).map_err(|e| bad("node.name", name, e.to_string()))?,
            None => Name::slug(host_name).ok_or_else(|| {
                bad("node.name", host_name, "the host name gives no valid node name; set one".to_owned())
            })?,
        };
        let cluster = self.node.cluster.as_deref().unwrap_or("home");
        let credentials = std::env::var("CREDENTIALS_DIRECTORY").ok();
        let handed_over = |name, default, named: &Option<String>| {
            secret(name, default, named.as_deref(), credentials.as_deref())
        };
        self.mqtt.key = self.mqtt.key.map(|key| handed_over("mqtt-key", KEY, &Some(key)));
        let broker = self.mqtt.check(&handed_over("mqtt-key", KEY, &None));
        let broker = broker.map_err(|wrong| bad(wrong.key, &wrong.value, wrong.why))?;
        let user = match (self.mqtt.user, self.mqtt.password_file) {
            (None, None) => None,
            (None, Some(file)) => {
                return Err(bad("mqtt.password_file", &file, "needs mqtt.user beside it".to_owned()));
            }
            (Some(user), file) => {
                let lacks =
                    |why| written.wrong("mqtt.user", &user, &format!("the password is missing: {why}"));
                let next = format!(
                    "write it into {PASSWORD}, for root alone (mode 0600), and restart bramble: it is handed over at a start only"
                );
                let password = match read(&handed_over("mqtt-password", PASSWORD, &file)) {
                    Ok(text) => match text.trim_end_matches(['\r', '\n']) {
                        "" => Err(BadConfig::Wrong(lacks(next))),
                        password => Ok(Secret::new(password.to_owned())),
                    },
                    Err(e) if e.why == Why::Denied => Err(BadConfig::Denied(lacks(e.to_string()))),
                    Err(e) if e.is_absence() && file.as_deref().is_none_or(|file| file == PASSWORD) => {
                        Err(BadConfig::Wrong(lacks(format!("{e}; {next}"))))
                    }
                    Err(e) if e.is_absence() => Err(BadConfig::Wrong(lacks(format!("{e}; write it there")))),
                    Err(e) => Err(BadConfig::Wrong(lacks(e.to_string()))),
                };
                Some((user, password))
            }
        };
        if let Some((id, why)) = self.cluster.accept.iter().find_map(|id| Some((id, unknown(id)?))) {
            return Err(bad("cluster.accept", id, why));
        }
        let directory = |key, written: Option<PathBuf>, default: &str| match written {
            Some(path) if !path.is_absolute() => {
                Err(bad(key, &path.display().to_string(), "a whole path, from / on".to_owned()))
            }
            written => Ok(written.unwrap_or_else(|| default.into())),
        };
        let mut allow = Vec::new();
        for word in &self.commands.allow {
            let verb = Verb::ALL.into_iter().find(|verb| verb.acts() && verb.as_str() == word);
            let why = || "\"reboot\" and \"apply\" are; whatever changes nothing always is".to_owned();
            allow.push(verb.ok_or_else(|| bad("commands.allow", word, why()))?);
        }
        Ok(Config {
            node: Node {
                name,
                cluster: Name::new(cluster).map_err(|e| bad("node.cluster", cluster, e.to_string()))?,
                state_dir: directory("node.state_dir", self.node.state_dir, "/var/lib/bramble")?,
                runtime_dir: directory("node.runtime_dir", self.node.runtime_dir, "/run/bramble")?,
            },
            mqtt: Mqtt { broker, user },
            probe: Probe {
                uplink: self.probe.uplink.filter(|u| !u.is_empty()),
                port: self.probe.port.map_or(ebpf_records::mesh::DEFAULT_PORT, NonZeroU16::get),
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
            },
            home_assistant: self.home_assistant,
            commands: Commands { allow },
            guard: Guard {
                restore: self.guard.restore.unwrap_or(false),
                restore_per_hour: self.guard.restore_per_hour.unwrap_or(3),
            },
            cluster: self.cluster,
            cilium: self.cilium,
            k3s: {
                let (zero, most) = (seconds(0), seconds(3600));
                let time = |key, value: &Option<String>, default| {
                    duration(key, value.clone(), seconds(default), zero, most)
                };
                let shutdown = time("k3s.shutdown", &self.k3s.shutdown, 30)?;
                let critical = time("k3s.shutdown_critical", &self.k3s.shutdown_critical, 10)?;
                self.k3s.check(shutdown, critical).map_err(|(key, value, why)| bad(key, &value, why))?
            },
            kubernetes: self.kubernetes,
        })
    }
}

impl Default for Config {
    /// What an empty file on a host named `localhost` gives.
    fn default() -> Self {
        Raw::default()
            .check(&Written::default(), "localhost", |_| Ok(String::new()), |_| None)
            .expect("the defaults are valid")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_all(files: &[(&str, &str)]) -> Result<Config, String> {
        let mut written = Written::default();
        for (path, text) in files {
            written.add::<Raw>(path, text).map_err(|e| e.to_string())?;
        }
        let read = |path: &str| match path {
            "/secret" => Ok("hunter2\n".to_owned()),
            "/root-only" => Err(Unreadable { path: path.to_owned(), why: Why::Denied }),
            _ => Ok(String::new()),
        };
        let unknown = |id: &str| (id != "x").then(|| "no such requirement".to_owned());
        let raw: Raw = written.read().map_err(|e| e.to_string())?;
        raw.check(&written, "Pi5.local", read, unknown).map_err(|e| e.to_string())
    }

    fn check(text: &str) -> Result<Config, String> {
        check_all(&[("bramble.toml", text)])
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
            ("[node]\nname = \"a/b\"", &["bramble.toml: line 2", "node.name", "a/b", "a-z"]),
            ("[node]\n\n[probe]\nperiod = \"soon\"", &["line 4", "probe.period", "soon", "500ms"]),
            ("mqtt = { host = \"\" }", &["line 1", "mqtt.host"]),
            ("[home_assistant]\nprefix = \"a/#\"", &["line 2", "prefix", "no +"]),
            ("[home_assistant]\ndiscovery = \"yes\"", &["line 2", "discovery", "component", "off"]),
            ("[commands]\nallow = [\"halt\"]", &["line 2", "commands.allow", "halt", "reboot"]),
            ("[commands]\nallow = [\"check\"]", &["commands.allow", "always"]),
            ("[probe]\nport = 0", &["line 2", "port", "nonzero"]),
            ("[probe]\nperiod = \"1ms\"", &["probe.period", "1ms", "500ms"]),
            ("[mqtt]\npassword_file = \"p\"", &["mqtt.password_file", "mqtt.user"]),
            (
                "[k3s]\n[k3s.settings]\nnode-name = \"-a\"",
                &["line 3", "k3s.settings.node-name = \"-a\"", "253 in all"],
            ),
            ("[node]\nname = \"K\u{fc}che\"", &["node.name = \"K\u{fc}che\"", "`K\u{fc}che` is no"]),
            ("[k3s]\nversion = \"\\u001b\u{fc}\"", &["k3s.version = \"\\u{1b}\u{fc}\""]),
            ("[node]\nstate_dir = \"\"", &["line 2", "node.state_dir", "whole path"]),
            ("[node]\nruntime_dir = \"run\"", &["line 2", "node.runtime_dir", "run", "whole path"]),
            (
                "[cluster]\naccept = [\"x\", \"y\"]",
                &["line 2", "cluster.accept", "\"y\"", "no such requirement"],
            ),
            ("nonsense", &["line 1"]),
            ("[node]\nname = 1\n[node]\n", &["line"]),
        ] {
            let error = check(text).unwrap_err();
            assert_eq!(error.lines().count(), 1, "{error}");
            for part in parts {
                assert!(error.contains(part), "{part:?} is not in {error:?}");
            }
        }
    }

    #[test]
    fn a_password_written_in_the_wrong_place_is_not_repeated() {
        let error = check("[mqtt]\npassword = \"hunter2\"").unwrap_err();
        assert!(error.contains("password") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_missing_password_stops_the_agent_alone() {
        let config = check("[mqtt]\nuser = \"u\"").unwrap();
        let error = config.mqtt.login().unwrap_err();
        assert!(matches!(error, BadConfig::Wrong(_)), "{error}");
        let error = error.to_string();
        assert!(error.contains("bramble.toml: line 2: mqtt.user") && error.contains(PASSWORD), "{error}");
        // Whether there is one, only who may read it can tell.
        let config = check("[mqtt]\nuser = \"u\"\npassword_file = \"/root-only\"").unwrap();
        assert!(matches!(config.mqtt.login(), Err(BadConfig::Denied(_))));
        let config = check("[mqtt]\nuser = \"u\"\npassword_file = \"/secret\"").unwrap();
        assert_eq!(config.mqtt.login().unwrap(), Some(("u".to_owned(), Secret::new("hunter2".to_owned()))));
    }

    #[test]
    fn later_files_win_key_by_key_and_are_named_for_what_they_set() {
        let files = [
            ("a.toml", "[mqtt]\nhost = \"a\"\nport = 1\n[cluster]\naccept = [\"x\"]\nk3s = false"),
            ("b.toml", "[mqtt]\nhost = \"b\"\n[cluster]\naccept = []"),
        ];
        let config = check_all(&files).unwrap();
        assert_eq!(config.mqtt.broker.to_string(), "b:1");
        assert_eq!((config.cluster.accept.len(), config.cluster.k3s), (0, false));
        let bad = [("a.toml", "[node]\ncluster = \"A B\""), ("b.toml", "[node]\nname = \"A B\"")];
        assert!(check_all(&bad).unwrap_err().starts_with("b.toml: line 2: node.name"));
        assert!(check_all(&bad[..1]).unwrap_err().starts_with("a.toml: line 2: node.cluster"));
        let unknown = [("a.toml", ""), ("b.toml", "\n[node]\nnmae = \"a\"")];
        assert!(check_all(&unknown).unwrap_err().starts_with("b.toml: line 3: nmae"));
    }

    /// The shipped file: `#key = value` is a setting that is commented out, `# ` begins prose.
    #[test]
    fn the_shipped_file_says_all_defaults_and_changes_nothing() {
        const SHIPPED: &str = include_str!("../../../packaging/bramble.toml");
        let is_setting =
            |line: &str| line.strip_prefix('#').is_some_and(|l| l.starts_with(char::is_alphabetic));
        let settings: String = SHIPPED
            .lines()
            .map(|line| if is_setting(line) { &line[1..] } else { line })
            .flat_map(|line| [line, "\n"])
            .collect();
        let default = format!("{:?}", check("").unwrap());
        assert_eq!(format!("{:?}", check(SHIPPED).unwrap()), default);
        assert_eq!(format!("{:?}", check(&settings).unwrap()), default);
        for section in [
            "node",
            "mqtt",
            "probe",
            "report",
            "home_assistant",
            "commands",
            "guard",
            "cluster",
            "cilium",
            "k3s",
            "kubernetes",
        ] {
            let (_, keys) = SHIPPED.split_once(&format!("\n[{section}]\n")).expect("each section is there");
            let keys = keys.split("\n[").next().unwrap();
            // The parser lists all keys when it meets one that it does not know.
            let known = check(&format!("[{section}]\nx = 1")).unwrap_err();
            let known: Vec<&str> = known.split('`').skip(3).step_by(2).collect();
            assert!(!known.is_empty(), "{section}: {known:?}");
            for key in known {
                let stands =
                    |line: &str| line.trim_start_matches(['#', ' ']).starts_with(&format!("{key} = "));
                assert!(keys.lines().any(stands), "{key} is not in [{section}]");
            }
        }
    }
}
