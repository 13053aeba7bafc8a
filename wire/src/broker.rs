//! The section `[mqtt]` of both programs' configuration: as written, then checked. The same lines serve both.

use std::{fmt, num::NonZeroU16, ops::RangeInclusive, time::Duration};

use serde::Deserialize;

use crate::tls::{Pin, Tls};

/// The certificates that Debian's `ca-certificates` collects.
pub const SYSTEM_CA: &str = "/etc/ssl/certs/ca-certificates.crt";

/// As written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Raw {
    /// Name, address, or URL: `mqtt://name:1883`, `mqtts://name:8883`.
    pub host: Option<String>,
    /// TCP port; 1883, or 8883 with TLS.
    pub port: Option<NonZeroU16>,
    /// Who we are to the broker, when it wants a password.
    pub user: Option<String>,
    /// File whose first line is the password.
    pub password_file: Option<String>,
    /// Silence after which the link is tested.
    pub keep_alive: Option<String>,
    /// How long the broker waits before it says that we are gone.
    pub will_delay: Option<String>,
    /// Whether the connection is encrypted.
    pub tls: Option<bool>,
    /// File with the certificates (PEM) of which one must have signed the broker's; the system's by default.
    pub ca: Option<String>,
    /// File with our certificate and those between it and the broker's `cafile` (PEM).
    pub certificate: Option<String>,
    /// File with the certificate's key (PEM).
    pub key: Option<String>,
    /// SHA-256 of the one certificate of `ca`, or of its public key, that must have signed the broker's.
    pub pin: Option<String>,
}

/// Where the broker is and how it is spoken to, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// TLS, when it is wanted.
    pub tls: Option<Tls>,
    /// Silence after which the link is tested.
    pub keep_alive: Duration,
    /// How long the broker waits before it says that we are gone.
    pub will_delay: Duration,
}

/// As errors name it.
impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// A value that is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotAllowed {
    /// The key, with its section.
    pub key: &'static str,
    /// What stands there; empty where it may be a secret.
    pub value: String,
    /// What is allowed.
    pub why: String,
}

fn bad(key: &'static str, value: impl Into<String>, why: impl Into<String>) -> NotAllowed {
    NotAllowed { key, value: value.into(), why: why.into() }
}

/// A time such as `30s`, within bounds.
///
/// # Errors
/// What is allowed.
pub fn time(text: &str, default: Duration, allowed: RangeInclusive<Duration>) -> Result<Duration, String> {
    let span: Option<jiff::SignedDuration> = text.parse().ok();
    span.and_then(|span| Duration::try_from(span).ok()).filter(|time| allowed.contains(time)).ok_or_else(
        || format!("a time from {:?} to {:?}, such as \"{default:?}\"", allowed.start(), allowed.end()),
    )
}

impl Raw {
    /// Checks everything but user and password; `key_by_default` is where the key is when none is named.
    ///
    /// # Errors
    /// The first value that is not allowed.
    pub fn check(&self, key_by_default: &str) -> Result<Broker, NotAllowed> {
        let (host, port, secure) = self.place()?;
        let tls = match (self.tls.or(secure), secure) {
            (Some(false), Some(true)) => {
                return Err(bad("mqtt.tls", "false", "host begins with mqtts://; drop one of them"));
            }
            (Some(true), Some(false)) => {
                return Err(bad("mqtt.tls", "true", "host begins with mqtt://; write mqtts://"));
            }
            (wanted, _) => wanted.unwrap_or(false),
        };
        let seconds = Duration::from_secs;
        let time_of = |key, text: &Option<String>, default, allowed| match text {
            None => Ok(default),
            Some(text) => time(text, default, allowed).map_err(|why| bad(key, text, why)),
        };
        Ok(Broker {
            host,
            port: port.unwrap_or(if tls { 8883 } else { 1883 }),
            tls: self.tls(tls, key_by_default)?,
            keep_alive: time_of(
                "mqtt.keep_alive",
                &self.keep_alive,
                seconds(30),
                seconds(1)..=seconds(3600),
            )?,
            will_delay: time_of("mqtt.will_delay", &self.will_delay, seconds(20), seconds(0)..=seconds(300))?,
        })
    }

    /// Host, port, and whether a URL says that TLS is wanted.
    fn place(&self) -> Result<(String, Option<u16>, Option<bool>), NotAllowed> {
        let written = self.host.as_deref().unwrap_or("127.0.0.1");
        let port = self.port.map(NonZeroU16::get);
        let wanted = "a name, an address, or a URL such as mqtts://broker.lan:8883";
        let (secure, place) = match written.split_once("://") {
            None => (None, written),
            Some(("mqtt", place)) => (Some(false), place.trim_end_matches('/')),
            Some(("mqtts", place)) => (Some(true), place.trim_end_matches('/')),
            Some(("ws" | "wss", _)) => {
                return Err(bad(
                    "mqtt.host",
                    "",
                    "MQTT over websockets is not spoken; the broker's mqtts:// port is as safe",
                ));
            }
            Some(_) => return Err(bad("mqtt.host", "", wanted)),
        };
        if place.contains('@') {
            return Err(bad(
                "mqtt.host",
                "",
                "user and password do not belong here; set user and password_file",
            ));
        }
        let allowed = |host: &str| {
            !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-_:%".contains(c))
        };
        let plain = |text: &str| text.trim_start_matches('[').trim_end_matches(']').to_owned();
        // An address of IPv6 has colons of its own; with a port it stands in brackets.
        let (host, own_port) = match place.rsplit_once(':') {
            Some((host, number)) if host.ends_with(']') || !host.contains(':') => {
                let number = number.parse::<NonZeroU16>().map_err(|_| bad("mqtt.host", written, wanted))?;
                (plain(host), Some(number.get()))
            }
            _ => (plain(place), None),
        };
        if !allowed(&host) {
            return Err(bad("mqtt.host", written, wanted));
        }
        if own_port.is_some() && port.is_some() && own_port != port {
            return Err(bad(
                "mqtt.port",
                port.unwrap_or_default().to_string(),
                "host names another port; drop one of them",
            ));
        }
        Ok((host, own_port.or(port), secure))
    }

    fn tls(&self, wanted: bool, key_by_default: &str) -> Result<Option<Tls>, NotAllowed> {
        if !wanted {
            let alone = [
                ("mqtt.ca", &self.ca),
                ("mqtt.certificate", &self.certificate),
                ("mqtt.key", &self.key),
                ("mqtt.pin", &self.pin),
            ];
            return match alone.into_iter().find_map(|(key, value)| Some((key, value.as_ref()?))) {
                Some((key, value)) => Err(bad(key, value, "means nothing without tls = true beside it")),
                None => Ok(None),
            };
        }
        let identity = match (&self.certificate, &self.key) {
            (None, None) => None,
            (None, Some(key)) => return Err(bad("mqtt.key", key, "needs the certificate beside it")),
            (Some(certificate), key) => {
                Some((certificate.clone(), key.as_deref().unwrap_or(key_by_default).to_owned()))
            }
        };
        let pin = match &self.pin {
            None => None,
            Some(text) => Some(Pin::new(text).ok_or_else(|| {
                bad(
                    "mqtt.pin",
                    text,
                    "sha256: and 64 hexadecimal digits, as of a certificate or its public key",
                )
            })?),
        };
        Ok(Some(Tls { ca: self.ca.clone().unwrap_or_else(|| SYSTEM_CA.to_owned()), identity, pin }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(set: impl FnOnce(&mut Raw)) -> Result<Broker, NotAllowed> {
        let mut raw = Raw::default();
        set(&mut raw);
        raw.check("/key")
    }

    fn host(text: &str) -> Result<Broker, NotAllowed> {
        check(|raw| raw.host = Some(text.to_owned()))
    }

    #[test]
    fn nothing_written_is_the_plain_broker_on_this_machine() {
        let broker = check(|_| {}).unwrap();
        assert_eq!((broker.to_string().as_str(), &broker.tls), ("127.0.0.1:1883", &None));
        assert_eq!((broker.keep_alive.as_secs(), broker.will_delay.as_secs()), (30, 20));
    }

    #[test]
    fn a_host_is_a_name_an_address_or_a_url() {
        for (text, shown, secure) in [
            ("broker.lan", "broker.lan:1883", false),
            ("broker.lan:1884", "broker.lan:1884", false),
            ("10.0.0.1", "10.0.0.1:1883", false),
            ("fd00::1", "[fd00::1]:1883", false),
            ("[fd00::1]", "[fd00::1]:1883", false),
            ("[fd00::1]:1884", "[fd00::1]:1884", false),
            ("mqtt://b", "b:1883", false),
            ("mqtts://b/", "b:8883", true),
            ("mqtts://b:1", "b:1", true),
            ("mqtts://[fd00::1]:1", "[fd00::1]:1", true),
        ] {
            let broker = host(text).unwrap();
            assert_eq!((broker.to_string().as_str(), broker.tls.is_some()), (shown, secure), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_key_and_what_is_allowed() {
        for (text, part) in [
            ("", "a name"),
            ("a b", "a name"),
            ("http://b", "a name"),
            ("b/c", "a name"),
            ("b:0", "a name"),
            ("b:x", "a name"),
            ("mqtts://", "a name"),
            ("ws://b", "websockets"),
            ("wss://b/mqtt", "websockets"),
            ("mqtt://u:hunter2@b", "password_file"),
        ] {
            let error = host(text).unwrap_err();
            assert!(error.key == "mqtt.host" && error.why.contains(part), "{text}: {error:?}");
            assert!(!error.value.contains("hunter2"));
        }
        let text = |text: &str| Some(text.to_owned());
        for (set, key, part) in [
            (
                (|raw| (raw.ca, raw.tls) = (Some("c".to_owned()), None)) as fn(&mut Raw),
                "mqtt.ca",
                "tls = true",
            ),
            (|raw| raw.pin = Some("sha256:0".to_owned()), "mqtt.pin", "tls = true"),
            (|raw| (raw.key, raw.tls) = (Some("k".to_owned()), Some(true)), "mqtt.key", "certificate"),
            (|raw| (raw.pin, raw.tls) = (Some("sha256:0".to_owned()), Some(true)), "mqtt.pin", "64"),
            (|raw| (raw.host, raw.tls) = (Some("mqtt://b".to_owned()), Some(true)), "mqtt.tls", "mqtts"),
            (|raw| (raw.host, raw.tls) = (Some("mqtts://b".to_owned()), Some(false)), "mqtt.tls", "mqtts"),
            (
                |raw| (raw.host, raw.port) = (Some("b:1".to_owned()), NonZeroU16::new(2)),
                "mqtt.port",
                "another",
            ),
            (|raw| raw.keep_alive = Some("0s".to_owned()), "mqtt.keep_alive", "1s to 3600s"),
            (|raw| raw.will_delay = Some("soon".to_owned()), "mqtt.will_delay", "20s"),
        ] {
            let error = check(set).unwrap_err();
            assert!(error.key == key && error.why.contains(part), "{error:?}");
        }
        assert!(check(|raw| raw.will_delay = text("0s")).is_ok());
    }

    #[test]
    fn tls_takes_the_systems_authorities_and_the_handed_over_key_unless_told_otherwise() {
        let tls = check(|raw| (raw.tls, raw.certificate) = (Some(true), Some("/c".to_owned())))
            .unwrap()
            .tls
            .unwrap();
        assert_eq!((tls.ca.as_str(), tls.identity), (SYSTEM_CA, Some(("/c".to_owned(), "/key".to_owned()))));
    }
}
