//! systemd, asked over D-Bus (org.freedesktop.systemd1(5)): units started, stopped, enabled, and how they are.
//!
//! Jobs are queued and never waited for: some units are up only after minutes, and whoever waits says what for. Where no
//! bus answers (a minimal system has none) `systemctl` is run instead, which reaches systemd by a socket of its own.
#![allow(clippy::disallowed_methods, reason = "the door")]

use std::collections::HashMap;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use zbus::connection::Builder;

use zbus::{Connection, DynamicType, Message, OwnedObjectPath, OwnedVariant};

use super::write::{HostMut, NotDone, failpoint};
use super::{Host, Unreadable, Why};

/// The root oneshot that applies the owner's plan. A polkit rule allows the agent to start this, `bramble-obey@.service` for what
/// it may be asked over MQTT, and nothing else.
pub const PREPARE: &str = "bramble-prepare.service";

const NAME: &str = "org.freedesktop.systemd1";
const MANAGER: (&str, &str) = ("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager");
/// systemd answers at once, except while it reads all units again on a busy card.
const PATIENCE: Duration = Duration::from_secs(30);
/// Who has other things to do waits for so long.
const SOON: Duration = Duration::from_secs(1);

/// How a unit is, in systemd's words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unit {
    /// "active", "activating", "deactivating", "inactive", "failed" or "reloading".
    pub active: String,
    /// "enabled", "disabled", "masked" and others; empty when systemd knows no such file.
    pub enabled: String,
    /// How its last run ended: "success", "exit-code", "signal", "timeout" and others.
    pub result: String,
    /// How often systemd has started it again by itself since it was started last.
    pub restarts: u32,
    /// When its main process was started last, by the wall clock.
    pub started: Option<jiff::Timestamp>,
}

impl Unit {
    /// Whether it is up.
    pub fn is_active(&self) -> bool {
        self.active == "active"
    }

    /// Whether nothing of it runs, and nothing is about to.
    pub fn is_down(&self) -> bool {
        matches!(self.active.as_str(), "inactive" | "failed")
    }

    /// Whether it is started at boot.
    pub fn is_enabled(&self) -> bool {
        self.enabled == "enabled"
    }
}

/// What is asked of systemd.
#[derive(Debug, Clone, Copy)]
enum Verb {
    Start,
    Stop,
    Enable,
    Disable,
    Reload,
}

impl Verb {
    const fn doing(self) -> &'static str {
        match self {
            Verb::Start => "starting",
            Verb::Stop => "stopping",
            Verb::Enable => "enabling",
            Verb::Disable => "disabling",
            Verb::Reload => "asking systemd to read",
        }
    }

    /// The same as arguments of systemctl(1).
    fn arguments(self, unit: &str) -> Vec<&str> {
        match self {
            Verb::Start => vec!["--no-block", "start", "--", unit],
            Verb::Stop => vec!["--no-block", "stop", "--", unit],
            Verb::Enable => vec!["enable", "--", unit],
            Verb::Disable => vec!["disable", "--", unit],
            Verb::Reload => vec!["daemon-reload"],
        }
    }
}

impl Host {
    /// How a unit is; one that systemd does not know is inactive and has no file.
    pub fn unit(&self, unit: &str) -> Result<Unit, Unreadable> {
        if !self.is_live() {
            return Err(Unreadable { path: unit.into(), why: Why::NotLive });
        }
        how_is(unit).map_err(|why| Unreadable { path: unit.into(), why: Why::Failed(why) })
    }
}

fn how_is(unit: &str) -> Result<Unit, String> {
    match on_the_bus(async |bus| read(bus, unit).await) {
        Err(error) if is_no_bus(&error) => {
            systemctl(&["show", "--timestamp=unix", "--", unit]).map(|text| shown(&text))
        }
        asked => asked.map_err(|error| words(&error)),
    }
}

/// Who asks again and again how a unit is, and must not wait for a systemd that is busy.
#[derive(Debug, Default)]
pub struct Asked(Option<Receiver<Result<Unit, String>>>);

impl Asked {
    /// How a unit is, always the same one. An answer that comes late is taken the next time.
    ///
    /// # Errors
    /// systemd does not answer soon, or refuses; or this is a tree.
    pub fn unit(&mut self, host: &Host, unit: &'static str) -> Result<Unit, String> {
        match host.is_live() {
            true => self.ask(unit, how_is),
            false => Err(Why::NotLive.to_string()),
        }
    }

    fn ask(&mut self, unit: &'static str, how_is: fn(&str) -> Result<Unit, String>) -> Result<Unit, String> {
        let answers = match self.0.take() {
            Some(answers) => answers,
            None => {
                let (sender, answers) = channel();
                let thread = std::thread::Builder::new().name("systemd".to_owned());
                let ask = move || drop(sender.send(how_is(unit)));
                thread.spawn(ask).map_err(|why| why.to_string())?;
                answers
            }
        };
        match answers.recv_timeout(SOON) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => {
                self.0 = Some(answers);
                Err(format!("systemd does not answer; systemctl status {unit}"))
            }
            Err(RecvTimeoutError::Disconnected) => Err("the question ended in a panic".to_owned()),
        }
    }
}

impl HostMut {
    /// Queues the start of a unit.
    pub fn start_unit(&self, unit: &str) -> Result<(), NotDone> {
        self.ask(Verb::Start, unit)
    }

    /// Queues the stop of a unit; that it does not run is as good.
    pub fn stop_unit(&self, unit: &str) -> Result<(), NotDone> {
        self.ask(Verb::Stop, unit)
    }

    /// Looks at a unit until it is as `wanted`, and how it is then, or was at the end of `limit`.
    pub fn settled(
        &self,
        unit: &str,
        limit: Duration,
        wanted: impl Fn(&Unit) -> bool,
    ) -> Result<Unit, NotDone> {
        let deadline = Instant::now() + limit;
        loop {
            let seen = self.host().unit(unit).map_err(|unreadable| {
                let next = format!("systemctl status {unit}");
                NotDone::new("asking systemd for", unit, unreadable.why.to_string(), next)
            })?;
            if wanted(&seen) || Instant::now() > deadline {
                return Ok(seen);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Lets a unit be started at boot.
    pub fn enable_unit(&self, unit: &str) -> Result<(), NotDone> {
        self.ask(Verb::Enable, unit)
    }

    /// Keeps a unit from being started at boot.
    pub fn disable_unit(&self, unit: &str) -> Result<(), NotDone> {
        self.ask(Verb::Disable, unit)
    }

    /// Lets systemd read its files again. Where no systemd runs there is nobody to read; see sd_booted(3).
    pub fn reload_units(&self) -> Result<(), NotDone> {
        match self.host().present("/run/systemd/system") {
            Ok(false) => Ok(()),
            _ => self.ask(Verb::Reload, "its units"),
        }
    }

    fn ask(&self, verb: Verb, unit: &str) -> Result<(), NotDone> {
        let failed = |why: String| {
            let command = verb.arguments(unit).join(" ");
            NotDone::new(verb.doing(), unit, why, format!("sudo systemctl {command}"))
        };
        if !self.host().is_live() {
            return Err(failed("a tree has no running systemd".into()));
        }
        failpoint();
        ask(verb, unit).map_err(failed)
    }
}

/// Asks systemd to start [`PREPARE`], without waiting for it.
///
/// # Errors
/// systemd refuses, or is not there; the text is its own.
pub fn start_prepare() -> Result<(), String> {
    ask(Verb::Start, PREPARE)
}

/// Asks systemd to start the unit that does `what` as root, without waiting for it; see `bramble obey`.
///
/// # Errors
/// As [`start_prepare`].
pub fn start_obey(what: &str) -> Result<(), String> {
    ask(Verb::Start, &format!("bramble-obey@{what}.service"))
}

/// Restarts the machine, in order.
///
/// # Errors
/// systemd refuses, or is not there; the text is its own.
pub fn reboot() -> Result<(), String> {
    systemctl(&["--no-block", "reboot"]).map(drop)
}

fn ask(verb: Verb, unit: &str) -> Result<(), String> {
    match on_the_bus(async |bus| call_for(bus, verb, unit).await) {
        Ok(()) => Ok(()),
        // What systemd does not know neither runs nor is started at boot.
        Err(error) if matches!(verb, Verb::Stop | Verb::Disable) && is_unknown(&error) => Ok(()),
        Err(error) if is_no_bus(&error) => systemctl(&verb.arguments(unit)).map(drop),
        Err(error) if is_denied(&error) => {
            Err(format!("{}; who is not root needs polkit for it: sudo apt install polkitd", words(&error)))
        }
        Err(error) => Err(words(&error)),
    }
}

async fn call_for(bus: &Connection, verb: Verb, unit: &str) -> zbus::Result<()> {
    match verb {
        Verb::Start => call(bus, "StartUnit", &(unit, "replace")).await?,
        Verb::Stop => call(bus, "StopUnit", &(unit, "replace")).await?,
        Verb::Enable => {
            call(bus, "EnableUnitFiles", &([unit].as_slice(), false, false)).await?;
            call(bus, "Reload", &()).await?
        }
        Verb::Disable => {
            call(bus, "DisableUnitFiles", &([unit].as_slice(), false)).await?;
            call(bus, "Reload", &()).await?
        }
        Verb::Reload => call(bus, "Reload", &()).await?,
    };
    Ok(())
}

async fn read(bus: &Connection, unit: &str) -> zbus::Result<Unit> {
    // Unlike GetUnit it answers for what never ran too.
    let path: OwnedObjectPath = call(bus, "LoadUnit", &unit).await?.body().deserialize()?;
    let all = bus
        .call_method(Some(NAME), &path, Some("org.freedesktop.DBus.Properties"), "GetAll", &"")
        .await?
        .body()
        .deserialize::<HashMap<String, OwnedVariant>>()?;
    let text = |key: &str| -> String {
        all.get(key).and_then(|value| String::try_from(value.clone()).ok()).unwrap_or_default()
    };
    Ok(Unit {
        active: text("ActiveState"),
        enabled: text("UnitFileState"),
        result: text("Result"),
        restarts: all.get("NRestarts").and_then(|value| u32::try_from(value).ok()).unwrap_or(0),
        started: all
            .get("ExecMainStartTimestamp")
            .and_then(|value| u64::try_from(value).ok())
            .and_then(|microseconds| i64::try_from(microseconds).ok())
            .filter(|microseconds| *microseconds > 0)
            .and_then(|microseconds| jiff::Timestamp::from_microsecond(microseconds).ok()),
    })
}

async fn call<B>(bus: &Connection, method: &str, body: &B) -> zbus::Result<Message>
where
    B: serde::Serialize + DynamicType,
{
    bus.call_method(Some(NAME), MANAGER.0, Some(MANAGER.1), method, body).await
}

/// Runs `ask` with a connection to the system's bus, on a thread of its own: callers may be in the middle of a task.
fn on_the_bus<T: Send>(ask: impl AsyncFnOnce(&Connection) -> zbus::Result<T> + Send) -> zbus::Result<T> {
    let asked = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let bus = tokio::time::timeout(PATIENCE, Builder::system().method_timeout(PATIENCE).build())
                .await
                .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
            ask(&bus).await
        })
    };
    std::thread::scope(|scope| scope.spawn(asked).join())
        .unwrap_or_else(|_| Err(zbus::Error::Failure("the question ended in a panic".into())))
}

/// Whether nobody answers at the bus's socket, or the bus does not know systemd.
fn is_no_bus(error: &zbus::Error) -> bool {
    match error {
        zbus::Error::Connection(..)
        | zbus::Error::InputOutput(_)
        | zbus::Error::Address(_)
        | zbus::Error::Handshake(_) => true,
        zbus::Error::FDO(error) => {
            matches!(**error, zbus::fdo::Error::ServiceUnknown(_) | zbus::fdo::Error::NameHasNoOwner(_))
        }
        _ => false,
    }
}

fn is_unknown(error: &zbus::Error) -> bool {
    matches!(error, zbus::Error::MethodError(name, ..) if name.as_str() == "org.freedesktop.systemd1.NoSuchUnit")
}

fn is_denied(error: &zbus::Error) -> bool {
    const NAMES: [&str; 2] = [
        "org.freedesktop.DBus.Error.AccessDenied",
        "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
    ];
    matches!(error, zbus::Error::MethodError(name, ..) if NAMES.contains(&name.as_str()))
}

/// systemd's sentence, without the name of the error before it.
fn words(error: &zbus::Error) -> String {
    match error {
        zbus::Error::MethodError(_, Some(text), _) => text.clone(),
        error => error.to_string(),
    }
}

fn systemctl(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("systemctl")
        .arg("--no-ask-password")
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("no bus answers, and systemctl: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

/// What `systemctl show` prints.
fn shown(text: &str) -> Unit {
    let value = |key: &str| {
        text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap_or_default().to_owned()
    };
    Unit {
        active: value("ActiveState"),
        enabled: value("UnitFileState"),
        result: value("Result"),
        restarts: value("NRestarts").parse().unwrap_or(0),
        started: value("ExecMainStartTimestamp")
            .strip_prefix('@')
            .and_then(|seconds| jiff::Timestamp::from_second(seconds.parse().ok()?).ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_a_busy_systemd_goes_on_and_has_its_answer_later() {
        let busy = |_: &str| {
            std::thread::sleep(SOON + SOON / 2);
            Ok(Unit { restarts: 3, ..Unit::default() })
        };
        let mut asked = Asked::default();
        let why = asked.ask("k3s.service", busy).unwrap_err();
        assert!(why.contains("does not answer; systemctl status k3s.service"), "{why}");
        // The same question is not asked twice.
        let late = asked.ask("k3s.service", |_| Err("asked again".to_owned()));
        assert_eq!(late.map(|unit| unit.restarts), Ok(3));
        assert_eq!(asked.ask("k3s.service", |_| Err("no".to_owned())), Err("no".to_owned()));
        assert!(asked.ask("k3s.service", |_| panic!("an answer")).unwrap_err().contains("panic"));
    }

    #[test]
    fn what_systemctl_shows_is_read_as_the_bus_is() {
        let text = "Type=notify\nResult=exit-code\nNRestarts=7\nExecMainStartTimestamp=@1767225600\nActiveState=activating\n\
             UnitFileState=enabled\n";
        let unit = shown(text);
        assert_eq!(unit.started, Some("2026-01-01T00:00:00Z".parse().unwrap()));
        assert_eq!(shown("ExecMainStartTimestamp=\n").started, None, "it never ran");
        assert_eq!(
            (unit.active.as_str(), unit.result.as_str(), unit.restarts),
            ("activating", "exit-code", 7)
        );
        assert!(unit.is_enabled() && !unit.is_active() && !unit.is_down());
        assert_eq!(shown(""), Unit::default());
    }

    #[test]
    fn a_missing_bus_is_told_from_a_refusal() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert!(is_no_bus(&refused.into()));
        let unknown = zbus::fdo::Error::ServiceUnknown("no".into());
        assert!(is_no_bus(&zbus::Error::FDO(Box::new(unknown))));
        let denied = zbus::Error::FDO(Box::new(zbus::fdo::Error::AccessDenied("polkit".into())));
        assert!(!is_no_bus(&denied) && words(&denied).contains("polkit"));
    }
}
