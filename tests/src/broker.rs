//! A real mosquitto inside the bed, and its own clients to speak and to listen.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddrV4},
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

use crate::{
    k3s::{Authority, Validity},
    namespace::Namespace,
    process::{Process, bound},
    watch::until,
};

/// The broker's port.
pub const PORT: u16 = 1883;
/// The same with TLS; who connects trusts [`Broker::authority`].
pub const TLS_PORT: u16 = 8883;

/// The broker: it knows nothing at start and keeps nothing at its end.
#[derive(Debug)]
pub struct Broker {
    address: SocketAddrV4,
    authority: String,
    process: Option<Process>,
}

impl Broker {
    /// Starts it inside `lan`.
    ///
    /// # Errors
    /// mosquitto is missing, or does not listen within five seconds.
    pub fn start(lan: &Namespace, address: Ipv4Addr) -> Result<Self> {
        let authority = Authority::single("bed")?;
        let pair = authority.server(&[address.to_string()], Validity::Now)?;
        fs::write(lan.path("/run/bed/mosquitto.crt"), pair.certificates)?;
        fs::write(lan.path("/run/bed/mosquitto.key"), pair.key)?;
        let authority = authority.pem().to_owned();
        let mut broker = Self { address: SocketAddrV4::new(address, PORT), authority, process: None };
        broker.come_back(lan)?;
        Ok(broker)
    }

    /// Where it listens, inside the bed and from the host.
    pub fn address(&self) -> SocketAddrV4 {
        self.address
    }

    /// The authority behind its certificate, as PEM.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The broker is gone at once, with all that it knew.
    pub fn go_away(&mut self) {
        self.process = None;
    }

    /// The broker is there again.
    ///
    /// # Errors
    /// See [`Broker::start`].
    pub fn come_back(&mut self, lan: &Namespace) -> Result<()> {
        // It stays root: a change of user would end the bond to the thread that started it.
        let config = format!(
            "listener {PORT} {0}\nlistener {TLS_PORT} {0}\ncertfile /run/bed/mosquitto.crt\n\
             keyfile /run/bed/mosquitto.key\nallow_anonymous true\npersistence false\nsys_interval 0\nuser root\n\
             log_dest stderr\nlog_type error\nlog_type warning\nlog_type notice\n",
            self.address.ip()
        );
        fs::write(lan.path("/run/bed/mosquitto.conf"), config)?;
        let mut command = lan.command("mosquitto");
        command.args(["-c", "/run/bed/mosquitto.conf"]);
        log_to(&mut command, lan, "mosquitto.log")?;
        self.process = Some(Process::spawn("mosquitto", command)?);
        until(Duration::from_secs(5), "mosquitto listens", || {
            Ok(std::net::TcpStream::connect_timeout(&self.address.into(), Duration::from_millis(200)).ok())
        })?;
        Ok(())
    }

    fn client(&self, program: &str) -> Command {
        let mut command = bound(program);
        command.args(["-V", "mqttv5", "-h"]).arg(self.address.ip().to_string());
        command.arg("-p").arg(PORT.to_string());
        command
    }

    /// Publishes `payload`, as any client on the network could.
    ///
    /// # Errors
    /// The broker, or its client, does not take the topic or the payload.
    pub fn publish(&self, topic: &str, payload: &[u8], retain: bool) -> Result<()> {
        self.publish_with(topic, payload, retain, &[])
    }

    /// The same with properties of MQTT 5, each as `message-expiry-interval 30`.
    ///
    /// # Errors
    /// See [`Broker::publish`].
    pub fn publish_with(&self, topic: &str, payload: &[u8], retain: bool, properties: &[&str]) -> Result<()> {
        let mut command = self.client("mosquitto_pub");
        for property in properties {
            command.args(["-D", "publish"]).args(property.splitn(2, ' '));
        }
        command.args(["-q", "1", "-t", topic, "-s"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        if retain {
            command.arg("-r");
        }
        let mut child =
            command.spawn().context("starting mosquitto_pub (Debian package mosquitto-clients)")?;
        child.stdin.take().context("its input is piped")?.write_all(payload)?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("publishing to {topic:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Listens to `filter` from now on, retained messages first.
    ///
    /// # Errors
    /// mosquitto-clients is missing.
    pub fn listen(&self, filter: &str) -> Result<Listener> {
        let mut command = self.client("mosquitto_sub");
        // Hexadecimal, so that no payload can pretend to be another line.
        command.args(["-q", "1", "-t", filter, "--retain-as-published", "-F", "%r %E %x %t"]);
        command.stdout(Stdio::piped());
        let mut process = Process::spawn("mosquitto_sub", command)?;
        let lines = BufReader::new(process.stdout().context("its output is piped")?).lines();
        let heard = Arc::new(Mutex::new(BTreeMap::new()));
        let writer = heard.clone();
        // Ends with the pipe, that is with the process.
        thread::spawn(move || {
            for line in lines.map_while(|line| line.ok()) {
                let mut words = line.splitn(4, ' ');
                let [Some(retained), Some(expiry), Some(payload), Some(topic)] =
                    [(); 4].map(|()| words.next())
                else {
                    continue;
                };
                let Some(payload) = from_hex(payload) else { continue };
                let expiry = expiry.parse().ok();
                let heard = Heard { payload, retained: retained == "1", expiry, at: Instant::now() };
                lock(&writer).insert(topic.to_owned(), heard);
            }
        });
        Ok(Listener { _process: process, heard })
    }
}

/// Sends what a program prints to a file inside `namespace`.
///
/// # Errors
/// The namespace is gone.
pub fn log_to(command: &mut Command, namespace: &Namespace, file: &str) -> Result<()> {
    let path = namespace.path(&format!("/run/bed/{file}"));
    let log = fs::OpenOptions::new().create(true).append(true).open(&path);
    let log = log.with_context(|| format!("opening {}", path.display()))?;
    command.stdout(log.try_clone()?).stderr(log);
    Ok(())
}

/// The newest message of a topic.
#[derive(Clone, Debug)]
pub struct Heard {
    /// As it was sent; empty when the topic was emptied.
    pub payload: Vec<u8>,
    /// Whether the broker keeps it for who comes later.
    pub retained: bool,
    /// After how many seconds from then on the broker keeps it no more; `None` = never.
    pub expiry: Option<u32>,
    /// When it arrived.
    pub at: Instant,
}

/// Hears every message of a filter and keeps the newest of each topic.
#[derive(Debug)]
pub struct Listener {
    _process: Process,
    heard: Arc<Mutex<BTreeMap<String, Heard>>>,
}

fn lock(heard: &Mutex<BTreeMap<String, Heard>>) -> MutexGuard<'_, BTreeMap<String, Heard>> {
    // A single insert is all that is ever done under it.
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Listener {
    /// The newest message of `topic`, if one was heard.
    pub fn newest(&self, topic: &str) -> Option<Heard> {
        lock(&self.heard).get(topic).cloned()
    }

    /// The newest message of `topic` as JSON, if one was heard and is such.
    pub fn json<T: DeserializeOwned>(&self, topic: &str) -> Option<T> {
        serde_json::from_slice(&self.newest(topic)?.payload).ok()
    }

    /// Topics below `prefix` with their newest messages; emptied ones are left out.
    pub fn below(&self, prefix: &str) -> Vec<(String, Heard)> {
        lock(&self.heard)
            .iter()
            .filter(|(topic, heard)| topic.starts_with(prefix) && !heard.payload.is_empty())
            .map(|(topic, heard)| (topic.clone(), heard.clone()))
            .collect()
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_payloads_are_read_or_refused_whole() {
        assert_eq!(from_hex("7B0a"), Some(vec![0x7b, 0x0a]));
        assert_eq!(from_hex(""), Some(vec![]));
        assert_eq!(from_hex("7"), None);
        assert_eq!(from_hex("7g"), None);
    }
}
