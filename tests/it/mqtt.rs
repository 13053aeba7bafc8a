//! The connection against real brokers and against hostile ones: TLS, access lists, limits, kill -9.
//!
//! Everything is on the loopback address, in the test's own processes and folders. Another mosquitto than the installed one (2.1, from
//! Debian testing) is tried with `BRAMBLE_MOSQUITTO=/its/path`; `BRAMBLE_LONG=1` makes the kills go on for ten minutes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sha2::{Digest as _, Sha256};
use testbed::{
    http,
    k3s::{Authority, Pair, Validity},
    process::{Process, bound},
    watch::until,
};
use wire::{
    broker::Raw,
    connection::{self, Bus, Event, Settings},
    report::NodeRecord,
    topic::{HomeTopic, Key, Name, NodeTopic, Owner, Platform, Prefix, Topic},
};

use crate::programs;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder that is gone with its guard.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("bed-mqtt-{}-{number}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.path(name);
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Writes a certificate and its key; returns both paths.
    fn pair(&self, name: &str, pair: &Pair) -> Result<(String, String)> {
        Ok((
            self.write(&format!("{name}.crt"), &pair.certificates)?,
            self.write(&format!("{name}.key"), &pair.key)?,
        ))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// The program, or another one of it: `BRAMBLE_MOSQUITTO=/path`.
fn mosquitto() -> String {
    std::env::var("BRAMBLE_MOSQUITTO").unwrap_or_else(|_| "mosquitto".to_owned())
}

/// A real broker with a configuration of the test's.
struct Broker {
    config: String,
    log: String,
    ports: Vec<u16>,
    process: Option<Process>,
}

impl Broker {
    /// `listeners` are what follows each `listener` line.
    fn start(folder: &Folder, global: &str, listeners: &[String]) -> Result<Self> {
        let mut text = format!("user root\nallow_anonymous true\nlog_dest stderr\nlog_type all\n{global}\n");
        let mut ports = Vec::new();
        for listener in listeners {
            let port = free_port()?;
            text += &format!("listener {port} 127.0.0.1\n{listener}\n");
            ports.push(port);
        }
        let config = folder.write("mosquitto.conf", &text)?;
        let mut broker = Self { config, log: folder.path("mosquitto.log"), ports, process: None };
        broker.come_back()?;
        Ok(broker)
    }

    fn plain(folder: &Folder, global: &str) -> Result<Self> {
        Self::start(folder, global, &[String::new()])
    }

    fn come_back(&mut self) -> Result<()> {
        let mut command = bound(&mosquitto());
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        command.args(["-c", &self.config]).stdout(Stdio::null()).stderr(log);
        self.process = Some(Process::spawn("mosquitto", command)?);
        for port in &self.ports {
            until(
                PATIENCE,
                "mosquitto listens",
                || Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).ok()),
            )
            .with_context(|| self.log())?;
        }
        Ok(())
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// A client of ours, in this process.
struct Voice {
    bus: Bus,
    events: tokio::sync::mpsc::Receiver<Event>,
    /// Ends the thread that it runs on.
    _end: tokio::sync::oneshot::Sender<()>,
}

const AVAILABILITY: &str = "bramble/home/node/n1/availability";

fn settings(raw: &Raw) -> Result<Settings> {
    Ok(Settings {
        broker: raw.check("/none").map_err(|wrong| anyhow::anyhow!("{wrong:?}"))?,
        client_id: "bramble-n1".to_owned(),
        user: None,
        availability: Some(AVAILABILITY.to_owned()),
        filters: vec!["bramble/home/node/+/info".to_owned()],
        read: Arc::new(|file| fs::read(file).map_err(|e| format!("{file}: {e}"))),
    })
}

fn at(port: u16) -> Raw {
    Raw { host: Some(format!("127.0.0.1:{port}")), ..Raw::default() }
}

impl Voice {
    fn start(settings: Settings) -> Result<Self> {
        let (end, ended) = tokio::sync::oneshot::channel();
        let (give, take) = std::sync::mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::spawn(move || {
            runtime.block_on(async {
                let _ = give.send(connection::start(settings));
                let _ = ended.await;
            });
        });
        let (bus, events) = take.recv()?;
        Ok(Self { bus, events, _end: end })
    }

    /// The next event that `choose` takes.
    fn wait<T>(&mut self, what: &str, choose: impl Fn(&Event) -> Option<T>) -> Result<T> {
        let mut seen = Vec::new();
        let found = until(PATIENCE, what, || {
            while let Ok(event) = self.events.try_recv() {
                if let Some(found) = choose(&event) {
                    return Ok(Some(found));
                }
                seen.push(format!("{event:?}"));
            }
            Ok(None)
        });
        found.with_context(|| format!("{seen:?}"))
    }

    /// Why there is no connection, or that there is one.
    fn outcome(&mut self) -> Result<Option<String>> {
        self.wait("a connection or none", |event| match event {
            Event::Connected => Some(None),
            Event::Disconnected { why, .. } => Some(Some(why.clone())),
            _ => None,
        })
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What openssl says of a file; it is not ours, so it cannot be wrong in our way.
fn openssl(arguments: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let mut command = bound("openssl");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().context("running openssl")?;
    child.stdin.take().context("its input is piped")?.write_all(input)?;
    Ok(child.wait_with_output()?.stdout)
}

pub(crate) fn tls_is_agreed_on_or_refused_with_the_exact_cause_and_the_next_step() -> Result<()> {
    let folder = Folder::new()?;
    let (ours, other) = (Authority::single("ours")?, Authority::single("other")?);
    let ca = folder.write("ca.crt", ours.pem())?;
    let here = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let listener =
        |name: &str, authority: &Authority, names: &[String], validity, more: &str| -> Result<String> {
            let (certificate, key) = folder.pair(name, &authority.server(names, validity)?)?;
            Ok(format!("certfile {certificate}\nkeyfile {key}\ncafile {ca}\n{more}"))
        };
    // What the usual recipes make with openssl 3.0: a request is signed, and nothing is said of extensions.
    let first = {
        let (request, key, certificate) =
            (folder.path("v1.csr"), folder.path("v1.key"), folder.path("v1.crt"));
        openssl(
            &["req", "-new", "-nodes", "-subj", "/CN=localhost", "-keyout", &key, "-out", &request],
            b"",
        )?;
        openssl(&["x509", "-req", "-in", &request, "-signkey", &key, "-out", &certificate], b"")?;
        let text = openssl(&["x509", "-in", &certificate, "-noout", "-text"], b"")?;
        String::from_utf8_lossy(&text).contains("Version: 1 ").then_some((certificate, key))
    };
    let broker = Broker::start(
        &folder,
        "",
        &[
            listener("good", &ours, &here, Validity::Now, "")?,
            listener("expired", &ours, &here, Validity::Expired, "")?,
            listener("early", &ours, &here, Validity::NotYet, "")?,
            listener("named", &ours, &["broker.example".to_owned()], Validity::Now, "")?,
            listener("foreign", &other, &here, Validity::Now, "")?,
            listener("mutual", &ours, &here, Validity::Now, "require_certificate true")?,
            listener("old", &ours, &here, Validity::Now, "require_certificate true\ntls_version tlsv1.2")?,
            String::new(),
            first.as_ref().map_or_else(String::new, |(crt, key)| format!("certfile {crt}\nkeyfile {key}")),
        ],
    )?;
    let [good, expired, early, named, foreign, mutual, old, plain, v1] = broker.ports[..] else {
        anyhow::bail!("nine listeners")
    };
    let client = |name: &str, authority: &Authority, validity| -> Result<(Option<String>, Option<String>)> {
        let (certificate, key) = folder.pair(name, &authority.client_when("n1", "nodes", validity)?)?;
        Ok((Some(certificate), Some(key)))
    };
    let known = client("known", &ours, Validity::Now)?;
    let unknown = client("unknown", &other, Validity::Now)?;
    let past = client("past", &ours, Validity::Expired)?;
    let crossed = (known.0.clone(), unknown.1.clone());
    let none = (None, None);

    let der = openssl(&["x509", "-outform", "der"], ours.pem().as_bytes())?;
    let key = openssl(&["x509", "-pubkey", "-noout"], ours.pem().as_bytes())?;
    let key = openssl(&["pkey", "-pubin", "-outform", "der"], &key)?;
    ensure!(der.len() > 100 && key.len() > 50, "openssl says nothing");
    let pin = |bytes: &[u8]| Some(format!("sha256:{}", sha256(bytes)));

    type Own = (Option<String>, Option<String>);
    type Case = (&'static str, u16, Own, Option<String>, Option<&'static str>);
    let mut failures = Vec::new();
    let mut cases: Vec<Case> = vec![
        ("good", good, none.clone(), None, None),
        ("pinned certificate", good, none.clone(), pin(&der), None),
        ("pinned key", good, none.clone(), pin(&key), None),
        ("wrong pin", good, none.clone(), pin(b"x"), Some("none of the 1 certificates in")),
        ("expired", expired, none.clone(), None, Some("expired on 20")),
        ("not yet valid", early, none.clone(), None, Some("set the clock")),
        ("another name", named, none.clone(), None, Some("is for broker.example, not for 127.0.0.1")),
        ("unknown issuer", foreign, none.clone(), None, Some("is signed by nobody in")),
        ("known client", mutual, known.clone(), None, None),
        ("known client, TLS 1.2", old, known.clone(), None, None),
        (
            "no client certificate",
            mutual,
            none.clone(),
            None,
            Some("wants a client certificate; set certificate and key"),
        ),
        ("no client certificate, TLS 1.2", old, none.clone(), None, Some("wants a client certificate")),
        ("unknown client", mutual, unknown, None, Some("does not know who signed it")),
        ("expired client", mutual, past, None, Some("it has expired; renew it")),
        ("crossed files", mutual, crossed, None, Some("is not the key of")),
        ("missing file", mutual, (Some("/none.crt".to_owned()), known.1.clone()), None, Some("/none.crt")),
        ("no TLS there", plain, none.clone(), None, Some("is this its TLS port")),
    ];
    // openssl of later releases makes version 3 of itself.
    if let Some((certificate, key)) = first {
        let sign = "of version 1, which has no extensions; sign it anew";
        cases.push(("version 1", v1, none, None, Some(sign)));
        cases.push(("version 1 of ours", mutual, (Some(certificate), Some(key)), None, Some(sign)));
    }
    for (what, port, (certificate, key), pin, cause) in cases {
        let raw = Raw { tls: Some(true), ca: Some(ca.clone()), certificate, key, pin, ..at(port) };
        let outcome = Voice::start(settings(&raw)?)?.outcome().context(what)?;
        let right = match (&outcome, cause) {
            (None, None) => true,
            (Some(why), Some(cause)) => why.contains(cause) && !why.contains('\n'),
            _ => false,
        };
        if !right {
            failures.push(format!("{what}: {outcome:?} and not {cause:?}"));
        }
    }
    let outcome = Voice::start(settings(&at(good))?)?.outcome()?;
    if !outcome.as_ref().is_some_and(|why| why.contains("tls = true")) {
        failures.push(format!("plain to a TLS port: {outcome:?}"));
    }
    ensure!(failures.is_empty(), "{failures:#?}");
    Ok(())
}

pub(crate) fn renewed_certificates_are_used_without_a_restart_and_wrong_ones_are_told() -> Result<()> {
    let folder = Folder::new()?;
    let authority = Authority::single("ours")?;
    let ca = folder.write("ca.crt", authority.pem())?;
    let (certificate, key) =
        folder.pair("server", &authority.server(&["127.0.0.1".to_owned()], Validity::Now)?)?;
    let listener = format!(
        "certfile {certificate}\nkeyfile {key}\ncafile {ca}\nrequire_certificate true\nuse_identity_as_username true"
    );
    let broker = Broker::start(&folder, "", &[listener])?;
    let (certificate, key) = folder.pair("own", &authority.client("first", "nodes")?)?;
    let raw = Raw {
        tls: Some(true),
        ca: Some(ca),
        certificate: Some(certificate),
        key: Some(key),
        ..at(broker.ports[0])
    };
    let mut voice = Voice::start(settings(&raw)?)?;
    ensure!(voice.outcome()?.is_none(), "the first certificate is refused");
    let ear = Ear::open(broker.ports[0], Some(&raw))?;
    ear.until_heard(AVAILABILITY, "online")?;

    // Half of a renewal: the certificate is new, the key is not.
    let second = authority.client("second", "nodes")?;
    folder.write("own.crt", &second.certificates)?;
    until(PATIENCE, "the crossed files are told", || Ok(voice.bus.renewal()))?;
    ensure!(!broker.log().contains("u'second'"), "the crossed files were used");
    folder.write("own.key", &second.key)?;
    ensure!(voice.outcome()?.is_none(), "the second certificate is refused");
    until(PATIENCE, "the second certificate is used", || {
        Ok(broker.log().contains("u'second'").then_some(()))
    })?;
    ensure!(voice.bus.renewal().is_none(), "{:?}", voice.bus.renewal());
    // Longer than a will of the first connection could wait, if it were sent at all.
    ensure!(
        ear.all(AVAILABILITY).iter().all(|word| word == "online"),
        "it flapped: {:?}",
        ear.all(AVAILABILITY)
    );
    Ok(())
}

/// Hears all messages, through mosquitto's own client. It acknowledges none: one that cannot answer a broker that was killed
/// gives up what it has received and not read.
struct Ear {
    _process: Process,
    heard: Arc<Mutex<BTreeMap<String, Vec<String>>>>,
}

impl Ear {
    fn open(port: u16, tls: Option<&Raw>) -> Result<Self> {
        let mut command = bound("mosquitto_sub");
        command.args(["-V", "mqttv5", "-h", "127.0.0.1", "-p", &port.to_string()]);
        command.args(["-q", "0", "-t", "#", "-F", "%t %p"]).stdout(Stdio::piped()).stderr(Stdio::null());
        if let Some(Raw { ca: Some(ca), certificate: Some(certificate), key: Some(key), .. }) = tls {
            let file = |path: &str| -> Result<String> {
                let copy = format!("{path}.ear");
                fs::copy(path, &copy)?;
                Ok(copy)
            };
            command.args(["--cafile", ca, "--cert", &file(certificate)?, "--key", &file(key)?]);
        }
        let mut process = Process::spawn("mosquitto_sub", command)?;
        let lines = BufReader::new(process.stdout().context("its output is piped")?).lines();
        let heard: Arc<Mutex<BTreeMap<String, Vec<String>>>> = Arc::default();
        let writer = heard.clone();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let (Some((topic, payload)), Ok(mut heard)) = (line.split_once(' '), writer.lock()) {
                    heard.entry(topic.to_owned()).or_default().push(payload.to_owned());
                }
            }
        });
        Ok(Self { _process: process, heard })
    }

    /// Waits until it hears what is said now.
    fn listening(self, port: u16) -> Result<Self> {
        until(PATIENCE, "the ear listens", || {
            let mut command = bound("mosquitto_pub");
            command.args([
                "-V",
                "mqttv5",
                "-h",
                "127.0.0.1",
                "-p",
                &port.to_string(),
                "-t",
                "probe",
                "-m",
                "x",
            ]);
            let _ = command.stderr(Stdio::null()).status();
            Ok((!self.all("probe").is_empty()).then_some(()))
        })?;
        Ok(self)
    }

    fn all(&self, topic: &str) -> Vec<String> {
        self.heard.lock().map(|heard| heard.get(topic).cloned().unwrap_or_default()).unwrap_or_default()
    }

    fn topics(&self) -> BTreeSet<String> {
        self.heard.lock().map(|heard| heard.keys().cloned().collect()).unwrap_or_default()
    }

    fn until_heard(&self, topic: &str, payload: &str) -> Result<()> {
        until(PATIENCE, &format!("{topic} says {payload}"), || {
            Ok((self.all(topic).last().map(String::as_str) == Some(payload)).then_some(()))
        })
    }
}

pub(crate) fn what_the_shipped_access_list_refuses_is_named_and_nothing_of_ours_is() -> Result<()> {
    let folder = Folder::new()?;
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/mosquitto/bramble.acl");
    let list = folder.write("acl", &fs::read_to_string(shipped)?)?;
    let authority = Authority::single("ours")?;
    let ca = folder.write("ca.crt", authority.pem())?;
    let (certificate, key) =
        folder.pair("server", &authority.server(&["127.0.0.1".to_owned()], Validity::Now)?)?;
    let listener = format!(
        "certfile {certificate}\nkeyfile {key}\ncafile {ca}\nrequire_certificate true\nuse_identity_as_username true"
    );
    let broker = Broker::start(&folder, &format!("acl_file {list}"), &[listener])?;
    let (home, n1) = (Name::new("home")?, Name::new("n1")?);
    let prefix = Prefix::default();
    let announced = |owner: &Owner| {
        let one = HomeTopic::Component(owner.clone(), Platform::Sensor, Key::of("phase"));
        [HomeTopic::Device(owner.clone()), one].map(|topic| topic.below(&prefix, &home))
    };
    let (of_n1, of_n2) = (Owner::Node(n1.clone()), Owner::Node(Name::new("n2")?));
    let ([own_device, own_component], [device, component]) = (announced(&of_n1), announced(&of_n2));
    let own_topics: Vec<String> = NodeTopic::RETAINED
        .into_iter()
        .chain([NodeTopic::Event, NodeTopic::History])
        .map(|leaf| Topic::Node(n1.clone(), leaf).in_cluster(&home))
        .chain(announced(&of_n1))
        .collect();
    let strange = ["bramble/home/node/n2/state", "bramble/home/cluster/state", &device, &component];
    let client =
        |user: &str, id: &str, filters: Vec<String>, availability: Option<String>| -> Result<Voice> {
            let (certificate, key) = folder.pair(user, &authority.client(user, "users")?)?;
            let raw = Raw {
                tls: Some(true),
                ca: Some(ca.clone()),
                certificate: Some(certificate),
                key: Some(key),
                ..at(broker.ports[0])
            };
            let client_id = format!("bramble-{id}-{user}");
            let mut voice = Voice::start(Settings { filters, availability, client_id, ..settings(&raw)? })?;
            ensure!(voice.outcome()?.is_none(), "{user} is refused");
            Ok(voice)
        };
    let speak = |user: &str, filters: Vec<String>, topics: &[&str]| -> Result<BTreeSet<String>> {
        let availability = match user {
            "aggregator" => "bramble/home/cluster/availability".to_owned(),
            user => format!("bramble/home/node/{user}/availability"),
        };
        let mut voice = client(user, "speaks", filters, Some(availability))?;
        for topic in topics {
            voice.bus.publish_latest((*topic).to_owned(), b"{}".to_vec(), None);
        }
        let last = voice.bus.publish_record(topics[0].to_owned(), b"{}".to_vec());
        voice.wait("the broker has answered everything", |event| {
            matches!(event, Event::Settled).then_some(())
        })?;
        ensure!(voice.bus.settled_before() > last, "the last one is settled");
        let told = voice.bus.complaints();
        ensure!(
            told.refused.is_empty() || told.told().iter().all(|line| line.contains("acl_file")),
            "{:?}",
            told.told()
        );
        Ok(told.refused.into_keys().collect())
    };
    let own: Vec<&str> = own_topics.iter().map(String::as_str).collect();
    let refused = speak("n1", Topic::filters_of_the_agent(&home, &n1), &own)?;
    ensure!(refused.is_empty(), "a node's own: {refused:?}");
    let refused = speak("n1", Vec::new(), &strange)?;
    ensure!(
        refused.iter().map(String::as_str).eq(strange.iter().copied().collect::<BTreeSet<_>>()),
        "{refused:?}"
    );
    let [of_cluster, one_of_cluster] = announced(&Owner::Cluster);
    let (info, alert) = ("bramble/home/cluster/info", "bramble/home/cluster/alert/x");
    // The announcements of a node as well: it may have to be forgotten.
    let all = ["bramble/home/cluster/state", info, alert, &of_cluster, &one_of_cluster, &device, &component];
    let refused = speak("aggregator", Topic::filters_of_the_aggregator(&home), &all)?;
    ensure!(refused.is_empty(), "the aggregator's: {refused:?}");

    // This broker refuses no filter for its list, and hands nothing over instead. So what arrives is looked at.
    let birth = "homeassistant/status";
    let (request, state) = ("bramble/home/node/n1/request/check", "bramble/home/node/n1/state");
    let [here, presence, others, mesh] =
        ["availability", "info", "state", "mesh"].map(|l| format!("bramble/home/node/n2/{l}"));
    let asking = Topic::filters_of_who_asks(&home);
    let agent = [Topic::filters_of_the_agent(&home, &n1), vec![birth.to_owned()]].concat();
    let aggregator = [Topic::filters_of_the_aggregator(&home), vec![birth.to_owned()]].concat();
    let forgetting = vec![Topic::filter_of_the_node(&home, &n1), HomeTopic::filter_of(&prefix, &of_n1)];
    let everything = vec!["bramble/#".to_owned(), "homeassistant/#".to_owned()];
    for (user, filters, by, hidden, heard) in [
        ("n1", &agent, "aggregator", vec![], vec![info]),
        ("n1", &agent, "n2", vec![], vec![here.as_str(), &presence]),
        ("n1", &agent, "homeassistant", vec![], vec![request, birth]),
        ("n1", &forgetting, "n1", vec![], vec![own_device.as_str(), &own_component, state]),
        ("n1", &asking, "n2", vec![], vec![here.as_str(), &presence, &others]),
        ("n1", &everything, "n2", vec![mesh.as_str(), &device, &component], vec![presence.as_str()]),
        ("aggregator", &aggregator, "n2", vec![], vec![others.as_str()]),
        ("aggregator", &aggregator, "homeassistant", vec![], vec![birth]),
        ("aggregator", &forgetting, "n1", vec![], vec![own_device.as_str(), &own_component, state]),
        ("homeassistant", &everything, "n1", vec![], vec![own_device.as_str(), &own_component, state]),
    ] {
        let (mut ear, mouth) =
            (client(user, "hears", filters.clone(), None)?, client(by, "speaks", Vec::new(), None)?);
        let mut arrived = BTreeSet::new();
        // What is hidden first, so that it would have arrived with the others.
        until(PATIENCE, &format!("{user} hears {heard:?} of {by}"), || {
            for topic in hidden.iter().chain(&heard) {
                mouth.bus.publish_latest((*topic).to_owned(), b"{}".to_vec(), None);
            }
            thread::sleep(Duration::from_millis(100));
            while let Ok(event) = ear.events.try_recv() {
                if let Event::Message(message) = event {
                    arrived.insert(message.topic);
                }
            }
            Ok(heard.iter().all(|topic| arrived.contains(*topic)).then_some(()))
        })
        .with_context(|| format!("{arrived:?}"))?;
        ensure!(!hidden.iter().any(|topic| arrived.contains(*topic)), "{user} hears of {by}: {arrived:?}");
    }
    Ok(())
}

pub(crate) fn two_clients_of_one_id_do_not_fight_and_say_so() -> Result<()> {
    let folder = Folder::new()?;
    let broker = Broker::plain(&folder, "")?;
    // This broker may throw the first one out without a word, or say why: in both cases they soon stop.
    let mut first = Voice::start(settings(&at(broker.ports[0]))?)?;
    ensure!(first.outcome()?.is_none(), "the first one connects");
    ensure!(first.bus.taken_over().is_none(), "nobody was there yet");
    let second = Voice::start(settings(&at(broker.ports[0]))?)?;
    until(PATIENCE, "both know of each other, or one of them waits", || {
        Ok(first.bus.taken_over().or(second.bus.taken_over()))
    })?;
    // A broker that says it.
    let stand_in = StandIn::start(|_, mut stream| {
        packet(&mut stream);
        let _ = stream.write_all(&[greeting(&[]), vec![0xe0, 2, 0x8e, 0]].concat());
    })?;
    let mut voice = Voice::start(settings(&at(stand_in.0))?)?;
    let (why, next) = voice.wait("it is thrown out", |event| match event {
        Event::Disconnected { why, next_try } => Some((why.clone(), *next_try)),
        _ => None,
    })?;
    ensure!(why.contains("cloned") && next >= Duration::from_secs(6), "{why}, again in {next:?}");
    ensure!(voice.bus.taken_over().is_some());
    Ok(())
}

/// A broker that does what a test wants: `serve` gets each connection with its number.
struct StandIn(u16);

impl StandIn {
    fn start(serve: impl Fn(u32, TcpStream) + Send + 'static) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        // Ends with the test's process.
        thread::spawn(move || {
            for (number, stream) in listener.incoming().flatten().enumerate() {
                serve(number as u32, stream);
            }
        });
        Ok(Self(port))
    }
}

/// Reads one packet: its first byte and what follows.
fn packet(stream: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut byte = [0];
    stream.read_exact(&mut byte).ok()?;
    let (kind, mut length, mut shift) = (byte[0], 0, 0);
    loop {
        stream.read_exact(&mut byte).ok()?;
        length |= usize::from(byte[0] & 0x7f) << shift;
        shift += 7;
        if byte[0] & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some((kind, body))
}

/// CONNACK with properties.
fn greeting(properties: &[u8]) -> Vec<u8> {
    [&[0x20, 3 + properties.len() as u8, 0, 0, properties.len() as u8], properties].concat()
}

pub(crate) fn a_broker_that_breaks_the_protocol_is_named_and_left_and_tried_again() -> Result<()> {
    type Serve = fn(&mut TcpStream);
    let cases: [(&str, Serve, &str); 9] = [
        ("closes at once", |_| {}, "ended the connection before it answered"),
        (
            "closes within its greeting",
            |stream| {
                packet(stream);
                let _ = stream.write_all(&[0x20, 9, 0]);
            },
            "ended the connection",
        ),
        (
            "speaks HTTP",
            |stream| {
                packet(stream);
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            },
            "does not speak MQTT 5",
        ),
        (
            "claims an endless packet",
            |stream| {
                packet(stream);
                let _ = stream.write_all(&[0x20, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
            },
            "does not speak MQTT 5",
        ),
        (
            "greets with a publication",
            |stream| {
                packet(stream);
                let _ = stream.write_all(&[0x30, 4, 0, 1, b'x', 0]);
            },
            "does not speak MQTT 5",
        ),
        (
            "greets and then sends garbage",
            |stream| {
                packet(stream);
                let _ = stream.write_all(&greeting(&[]));
                let _ = stream.write_all(&[0xff; 300]);
            },
            "does not speak MQTT 5",
        ),
        (
            "greets twice",
            |stream| {
                packet(stream);
                let _ = stream.write_all(&[greeting(&[]), greeting(&[])].concat());
            },
            "does not speak MQTT 5",
        ),
        (
            "refuses the password",
            |stream| {
                packet(stream);
                let _ = stream.write_all(&[0x20, 3, 0, 0x86, 0]);
            },
            "user and password_file",
        ),
        (
            "says nothing",
            |stream| {
                packet(stream);
                thread::sleep(Duration::from_secs(30));
            },
            "does not answer",
        ),
    ];
    for (what, serve, cause) in cases {
        let tries = Arc::new(AtomicU32::new(0));
        let count = tries.clone();
        let stand_in = StandIn::start(move |_, mut stream| {
            count.fetch_add(1, Ordering::Relaxed);
            thread::spawn(move || serve(&mut stream));
        })?;
        let mut voice = Voice::start(settings(&at(stand_in.0))?)?;
        let why = voice.wait(what, |event| match event {
            Event::Disconnected { why, .. } => Some(why.clone()),
            _ => None,
        })?;
        ensure!(why.contains(cause) && !why.contains('\n'), "{what}: {why:?} and not {cause:?}");
        until(PATIENCE, "it is tried again", || Ok((tries.load(Ordering::Relaxed) > 1).then_some(())))?;
    }
    Ok(())
}

pub(crate) fn a_broker_that_drops_in_the_middle_of_its_handshake_is_named_and_tried_again() -> Result<()> {
    let folder = Folder::new()?;
    let authority = Authority::single("ours")?;
    let ca = folder.write("ca.crt", authority.pem())?;
    type Serve = fn(&mut TcpStream);
    let cases: [(&str, Serve, &str); 4] = [
        ("drops at once", |_| {}, "TLS"),
        (
            "drops after the greeting",
            |stream| {
                let _ = stream.read(&mut [0; 512]);
            },
            "TLS",
        ),
        (
            "begins to answer and drops",
            |stream| {
                let _ = stream.read(&mut [0; 512]);
                // The head of a record of the handshake that is longer than what follows.
                let _ = stream.write_all(&[0x16, 3, 3, 0, 0x7a, 2, 0, 0, 0x76, 3, 3]);
            },
            "TLS",
        ),
        (
            "answers with garbage",
            |stream| {
                let _ = stream.read(&mut [0; 512]);
                let _ = stream.write_all(&[0xff; 300]);
            },
            "TLS",
        ),
    ];
    for (what, serve, cause) in cases {
        let tries = Arc::new(AtomicU32::new(0));
        let count = tries.clone();
        let stand_in = StandIn::start(move |_, mut stream| {
            count.fetch_add(1, Ordering::Relaxed);
            thread::spawn(move || serve(&mut stream));
        })?;
        let raw = Raw { tls: Some(true), ca: Some(ca.clone()), ..at(stand_in.0) };
        let mut voice = Voice::start(settings(&raw)?)?;
        let why = voice.outcome()?.with_context(|| format!("{what}: it connects"))?;
        ensure!(why.contains(cause) && !why.contains('\n'), "{what}: {why:?} and not {cause:?}");
        until(PATIENCE, "it is tried again", || Ok((tries.load(Ordering::Relaxed) > 1).then_some(())))?;
    }
    Ok(())
}

pub(crate) fn an_agent_with_a_narrow_broker_says_what_fits_and_tells_its_owner_the_rest() -> Result<()> {
    for (limit, told) in
        [("max_packet_size 2048", "packets of 2048 bytes at most"), ("max_qos 0", "acknowledges nothing")]
    {
        let folder = Folder::new()?;
        let broker = Broker::start(&folder, "", &[limit.to_owned()])?;
        let ear = Ear::open(broker.ports[0], None)?.listening(broker.ports[0])?;
        let mut agent = Agent::new(&folder, broker.ports[0], "3s")?;
        ear.until_heard(AVAILABILITY, "online").with_context(|| agent.log())?;
        let found = until(PATIENCE, "its owner is told", || {
            let mut status = bound(&programs()?.join("bramble").display().to_string());
            status.args(["status", "--json", "--config", &folder.path("bramble.toml")]);
            let status = status.output()?.stdout;
            let status: serde_json::Value = serde_json::from_slice(&status).unwrap_or_default();
            let conditions = status["state"]["conditions"].as_array().cloned().unwrap_or_default();
            let refuses = conditions.into_iter().find(|c| c["id"] == "broker-refuses");
            Ok(refuses.filter(|condition| condition["status"] == "raised"))
        })
        .with_context(|| format!("{limit}: {}", agent.log()))?;
        ensure!(found["evidence"].as_str().is_some_and(|why| why.contains(told)), "{limit}: {found}");
        // It goes on, and what fits arrives: of the small packets not the announcement, which has no smaller form.
        let info = "bramble/home/node/n1/info";
        until(PATIENCE, "what fits is said", || Ok((!ear.all(info).is_empty()).then_some(())))
            .with_context(|| format!("{limit}: {}", agent.log()))?;
        ensure!(agent.process.as_mut().context("it runs")?.ended().is_none(), "{}", agent.log());
        ensure!(!ear.all(AVAILABILITY).contains(&"offline".to_owned()), "{limit}: it flapped");
    }
    Ok(())
}

pub(crate) fn a_link_that_dies_silently_is_given_up_within_its_limit() -> Result<()> {
    // It greets, and then neither reads nor writes: no ping is answered.
    let stand_in = StandIn::start(|_, mut stream| {
        packet(&mut stream);
        let _ = stream.write_all(&greeting(&[]));
        thread::spawn(move || {
            thread::sleep(Duration::from_secs(120));
            drop(stream);
        });
    })?;
    let raw = Raw { keep_alive: Some("2s".to_owned()), ..at(stand_in.0) };
    let mut voice = Voice::start(settings(&raw)?)?;
    ensure!(voice.outcome()?.is_none());
    let began = Instant::now();
    let why = voice.outcome()?.context("it is given up")?;
    ensure!(why.contains("the link is dead"), "{why}");
    ensure!((20..40).contains(&began.elapsed().as_secs()), "after {:?}", began.elapsed());

    // The same while there is much to say: a write that does not end.
    let mut voice = Voice::start(settings(&at(stand_in.0))?)?;
    ensure!(voice.outcome()?.is_none());
    for number in 0..15 {
        voice.bus.publish_latest(format!("t/{number}"), vec![b'x'; wire::report::MAX_PAYLOAD], None);
    }
    let why = voice.outcome()?.context("it is given up")?;
    ensure!(why.contains("the link is dead") || why.contains("timed out"), "{why}");
    Ok(())
}

pub(crate) fn a_broker_with_narrow_limits_gets_what_fits_and_the_rest_is_named() -> Result<()> {
    let folder = Folder::new()?;
    for (limit, complaint, retained) in [
        ("max_packet_size 2048", "packets of 2048 bytes at most", true),
        ("retain_available false", "keeps no retained messages", false),
        ("max_qos 0", "acknowledges nothing", true),
        ("max_inflight_messages 1", "", true),
    ] {
        let broker = Broker::start(&folder, "", &[limit.to_owned()])?;
        let ear = Ear::open(broker.ports[0], None)?.listening(broker.ports[0])?;
        let mut voice = Voice::start(settings(&at(broker.ports[0]))?)?;
        ensure!(voice.outcome()?.is_none(), "{limit}: it connects");
        voice.bus.publish_latest("t/large".to_owned(), vec![b'x'; 5000], None);
        for number in 0..50 {
            voice.bus.publish_latest(format!("t/{number}"), b"x".to_vec(), None);
        }
        let last = voice.bus.publish_record("t/record".to_owned(), b"y".to_vec());
        until(PATIENCE, "everything is settled", || Ok((voice.bus.settled_before() > last).then_some(())))
            .context(limit)?;
        // mosquitto_sub hears what was said after it subscribed; what is retained it hears in any case.
        if retained {
            let late = Ear::open(broker.ports[0], None)?;
            late.until_heard("t/49", "x").context(limit)?;
            late.until_heard(AVAILABILITY, "online").context(limit)?;
        }
        until(PATIENCE, "the record is heard", || Ok((!ear.all("t/record").is_empty()).then_some(())))
            .context(limit)?;
        let told = voice.bus.complaints().told();
        let right = if complaint.is_empty() {
            told.is_empty()
        } else {
            told.len() == 1 && told[0].contains(complaint)
        };
        ensure!(right, "{limit}: {told:?}");
        ensure!(ear.all("t/large").is_empty() == limit.starts_with("max_packet"), "{limit}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        ensure!(runtime.block_on(voice.bus.clone().vanish()), "{limit}: it takes nobody off");
    }
    Ok(())
}

pub(crate) fn what_a_broker_has_learned_is_used_at_the_next_connection() -> Result<()> {
    let folder = Folder::new()?;
    let mut broker = Broker::start(&folder, "", &["retain_available false".to_owned()])?;
    let raw = Raw { will_delay: Some("1s".to_owned()), ..at(broker.ports[0]) };
    let mut voice = Voice::start(settings(&raw)?)?;
    ensure!(voice.outcome()?.is_none(), "it connects");
    let text = fs::read_to_string(&broker.config)?.replace("retain_available false", "");
    fs::write(&broker.config, text)?;
    broker.process = None;
    broker.come_back()?;
    voice.wait("a connection", |event| matches!(event, Event::Connected).then_some(()))?;
    // Nobody listens when its end is said; who comes later is told all the same.
    drop(voice);
    thread::sleep(Duration::from_secs(3));
    Ear::open(broker.ports[0], None)?.until_heard(AVAILABILITY, "offline").with_context(|| broker.log())
}

pub(crate) fn a_list_that_lets_nobody_read_or_empty_anything_is_told() -> Result<()> {
    let folder = Folder::new()?;
    let own = "bramble/home/node/n1";
    let list = folder.write("acl", &format!("topic write {own}/#\ntopic write homeassistant/#\n"))?;
    let broker = Broker::plain(&folder, &format!("acl_file {list}"))?;
    let agent = Agent::new(&folder, broker.ports[0], "3s")?;
    until(PATIENCE, "the agent hears nothing of itself and says so", || {
        let log = agent.log();
        Ok(log.contains("the broker hands over nothing of what nodes say of themselves").then_some(()))
    })
    .with_context(|| agent.log())?;
    let port = broker.ports[0];
    folder.write("aggregator.toml", &format!("cluster = \"home\"\n[mqtt]\nport = {port}\n"))?;
    let mut command = bound(&programs()?.join("bramble-aggregator").display().to_string());
    let forget = command.args(["--config", &folder.path("aggregator.toml"), "--forget", "n3"]).output()?;
    let said = String::from_utf8_lossy(&forget.stderr);
    let right = "the broker does not let us empty bramble/home/node/n3/";
    ensure!(!forget.status.success() && said.contains(right), "{:?}: {said}", forget.status);
    Ok(())
}

/// A way to the broker that can be shut, so that nothing is said before the ear listens.
struct Door {
    port: u16,
    open: Arc<AtomicBool>,
    to: Arc<AtomicU16>,
}

impl Door {
    fn new() -> Result<Self> {
        let (open, to) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU16::new(0)));
        let (is_open, port_now) = (open.clone(), to.clone());
        let stand_in = StandIn::start(move |_, from| {
            if !is_open.load(Ordering::SeqCst) {
                return;
            }
            let Ok(to) = TcpStream::connect((Ipv4Addr::LOCALHOST, port_now.load(Ordering::SeqCst))) else {
                return;
            };
            for (mut from, mut to) in [(from.try_clone(), to.try_clone()), (Ok(to), Ok(from))]
                .into_iter()
                .filter_map(|(a, b)| a.ok().zip(b.ok()))
            {
                thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Both);
                    let _ = from.shutdown(std::net::Shutdown::Both);
                });
            }
        })?;
        Ok(Self { port: stand_in.0, open, to })
    }
}

/// A real agent on this machine, without companion: it says that and goes on.
struct Agent<'a> {
    folder: &'a Folder,
    process: Option<Process>,
}

impl<'a> Agent<'a> {
    fn new(folder: &'a Folder, port: u16, will_delay: &str) -> Result<Self> {
        Self::with(folder, &format!("port = {port}\nwill_delay = \"{will_delay}\""))
    }

    /// `mqtt` is what stands in that section.
    fn with(folder: &'a Folder, mqtt: &str) -> Result<Self> {
        for directory in ["run", "state"] {
            fs::create_dir_all(folder.path(directory))?;
        }
        folder.write(
            "bramble.toml",
            &format!(
                "[node]\nname = \"n1\"\nstate_dir = \"{}\"\nruntime_dir = \"{}\"\n[mqtt]\n{mqtt}\n\
                 [report]\ninterval = \"1s\"\n",
                folder.path("state"),
                folder.path("run")
            ),
        )?;
        let mut agent = Self { folder, process: None };
        agent.start()?;
        Ok(agent)
    }

    fn start(&mut self) -> Result<()> {
        let mut command = bound(&programs()?.join("bramble").display().to_string());
        command.args(["run", "--config", &self.folder.path("bramble.toml")]);
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.path("agent.log"))?;
        command.stdout(Stdio::null()).stderr(log);
        self.process = Some(Process::spawn("bramble run", command)?);
        Ok(())
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// What it has not seen acknowledged, when it was killed.
    fn unsettled(&self, directory: &str) -> Vec<NodeRecord> {
        let text = fs::read_to_string(self.folder.path(&format!("{directory}/records"))).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path("agent.log")).unwrap_or_default()
    }
}

const HISTORY: &str = "bramble/home/node/n1/history";

/// Records by run and sequence.
fn records(heard: &[String]) -> Result<BTreeMap<(String, u64), NodeRecord>> {
    heard
        .iter()
        .map(|text| {
            let record: NodeRecord = serde_json::from_str(text).with_context(|| text.clone())?;
            Ok(((record.run.clone(), record.sequence), record))
        })
        .collect()
}

/// Sequences that are missing between the first and the last of a run.
fn gaps(heard: &BTreeMap<(String, u64), NodeRecord>) -> Vec<(String, u64)> {
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    for (run, sequence) in heard.keys() {
        last.insert(run, *sequence);
    }
    let all =
        last.iter().flat_map(|(run, last)| (0..=*last).map(move |sequence| ((*run).to_owned(), sequence)));
    all.filter(|key| !heard.contains_key(key)).collect()
}

pub(crate) fn no_change_is_lost_when_broker_and_agent_are_killed_again_and_again() -> Result<()> {
    let long = std::env::var_os("BRAMBLE_LONG").is_some();
    let lasts = Duration::from_secs(if long { 600 } else { 25 });
    let folder = Folder::new()?;
    let authority = Authority::single("ours")?;
    let ca = folder.write("ca.crt", authority.pem())?;
    let (certificate, key) =
        folder.pair("server", &authority.server(&["127.0.0.1".to_owned()], Validity::Now)?)?;
    let listeners = [String::new(), format!("certfile {certificate}\nkeyfile {key}")];
    let mut broker = Broker::start(&folder, "persistence false", &listeners)?;
    let door = Door::new()?;
    door.to.store(broker.ports[1], Ordering::SeqCst);
    let mut heard: Vec<String> = Vec::new();
    let mut ear = Ear::open(broker.ports[0], None)?.listening(broker.ports[0])?;
    door.open.store(true, Ordering::SeqCst);
    let place = format!("host = \"mqtts://127.0.0.1:{}\"\nca = \"{ca}\"", door.port);
    let mut agent = Agent::with(&folder, &format!("{place}\nwill_delay = \"3s\""))?;
    let mut owed: BTreeMap<(String, u64), NodeRecord> = BTreeMap::new();
    let began = Instant::now();
    let mut rounds = 0_u32;
    while began.elapsed() < lasts {
        // Uneven times, so that the kills fall on every phase.
        thread::sleep(Duration::from_millis(u64::from(rounds * 937 % 1700)));
        if rounds % 3 == 2 {
            agent.kill();
            owed.extend(agent.unsettled("run").into_iter().map(|r| ((r.run.clone(), r.sequence), r)));
            agent.start()?;
        } else {
            door.open.store(false, Ordering::SeqCst);
            if let Some(process) = &mut broker.process {
                process.kill();
            }
            thread::sleep(Duration::from_millis(u64::from(rounds * 613 % 1300)));
            broker.come_back()?;
            let next = Ear::open(broker.ports[0], None)?.listening(broker.ports[0])?;
            // What the ear got before its broker died, it has said by now.
            heard.extend(std::mem::replace(&mut ear, next).all(HISTORY));
            door.open.store(true, Ordering::SeqCst);
        }
        rounds += 1;
    }
    let settled = until(Duration::from_secs(150), "everything that was owed is heard", || {
        let mut all = heard.clone();
        all.extend(ear.all(HISTORY));
        let all = records(&all)?;
        let done = owed.keys().all(|key| all.contains_key(key))
            && gaps(&all).is_empty()
            && agent.unsettled("run").is_empty();
        Ok(done.then_some(all))
    });
    let mut all = heard.clone();
    all.extend(ear.all(HISTORY));
    let all = records(&all)?;
    settled.with_context(|| {
        let missing: Vec<_> = owed.keys().filter(|key| !all.contains_key(key)).collect();
        format!("owed {missing:?}, gaps {:?}\n{}", gaps(&all), agent.log())
    })?;
    let runs: BTreeSet<&String> = all.keys().map(|(run, _)| run).collect();
    ensure!(
        runs.len() >= 3 && owed.len() >= 3 && all.len() >= 20,
        "{} runs, {} owed, {} heard",
        runs.len(),
        owed.len(),
        all.len()
    );
    eprintln!(
        "{rounds} kills, {} runs, {} records, {} of them owed at a kill, none lost",
        runs.len(),
        all.len(),
        owed.len()
    );
    let late = Ear::open(broker.ports[0], None)?;
    late.until_heard(AVAILABILITY, "online")?;
    agent.kill();
    until(PATIENCE, "the last will", || {
        Ok(late.all(AVAILABILITY).last().filter(|word| *word == "offline").map(drop))
    })?;
    // No orphan: all that is retained is what an agent retains whose measurements have expired.
    let left = Ear::open(broker.ports[0], None)?.listening(broker.ports[0])?;
    left.until_heard(AVAILABILITY, "offline")?;
    let n1 = Name::new("n1")?;
    let topic = |leaf| Topic::Node(n1.clone(), leaf).in_cluster(&Name::new("home").expect("it is one"));
    let device = HomeTopic::Device(Owner::Node(n1.clone())).below(&Prefix::default(), &Name::new("home")?);
    let stay = [topic(NodeTopic::Availability), topic(NodeTopic::Info), topic(NodeTopic::Findings), device];
    let expire = [topic(NodeTopic::State), topic(NodeTopic::Mesh), "probe".to_owned()];
    let mut retained = left.topics();
    retained.retain(|topic| !expire.contains(topic));
    ensure!(retained == BTreeSet::from(stay), "{retained:?}");
    Ok(())
}

pub(crate) fn what_happened_before_a_loss_of_power_is_told_after_it() -> Result<()> {
    let folder = Folder::new()?;
    let port = free_port()?;
    let mut agent = Agent::new(&folder, port, "3s")?;
    until(PATIENCE, "a batch is on disk", || Ok((!agent.unsettled("state").is_empty()).then_some(())))
        .with_context(|| agent.log())?;
    agent.kill();
    // Memory is gone, and the last block holds what it held before.
    let kept: Vec<_> = agent.unsettled("state").into_iter().map(|r| (r.run, r.sequence)).collect();
    fs::remove_file(folder.path("run/records"))?;
    let mut disk = fs::OpenOptions::new().append(true).open(folder.path("state/records"))?;
    disk.write_all(b"{\"v\":1,\"ts\":\"2026-1")?;
    disk.write_all(&[0; 4096])?;
    drop(disk);
    let text = format!("listener {port} 127.0.0.1\nallow_anonymous true\nuser root\nlog_dest stderr\n");
    let config = folder.write("mosquitto.conf", &text)?;
    let mut broker = Broker { config, log: folder.path("mosquitto.log"), ports: vec![port], process: None };
    broker.come_back()?;
    let ear = Ear::open(port, None)?;
    thread::sleep(Duration::from_millis(500));
    agent.start()?;
    until(PATIENCE, "all of it is heard", || {
        let heard = records(&ear.all(HISTORY))?;
        Ok(kept.iter().all(|key| heard.contains_key(key)).then_some(()))
    })
    .with_context(|| agent.log())?;
    // With a broker that answers, nothing stays on disk and nothing comes there.
    until(PATIENCE, "the files are gone", || {
        let gone =
            ["run", "state"].iter().all(|d| !Path::new(&folder.path(&format!("{d}/records"))).exists());
        Ok(gone.then_some(()))
    })
    .with_context(|| agent.log())?;
    Ok(())
}

pub(crate) fn a_restart_is_not_seen_and_an_end_is_after_the_wills_delay() -> Result<()> {
    let folder = Folder::new()?;
    let broker = Broker::plain(&folder, "")?;
    let ear = Ear::open(broker.ports[0], None)?;
    let mut agent = Agent::new(&folder, broker.ports[0], "20s")?;
    ear.until_heard(AVAILABILITY, "online").with_context(|| agent.log())?;
    for orderly in [true, false] {
        let before = ear.all(AVAILABILITY).len();
        match agent.process.as_mut() {
            Some(process) if orderly => drop(process.stop(Duration::from_secs(10))?),
            _ => agent.kill(),
        }
        agent.start()?;
        until(PATIENCE, "it is there again", || Ok((ear.all(AVAILABILITY).len() > before).then_some(())))?;
    }
    let killed = Instant::now();
    agent.kill();
    ear.until_heard(AVAILABILITY, "offline")?;
    let words = ear.all(AVAILABILITY);
    ensure!(words.iter().filter(|word| *word == "offline").count() == 1, "it flapped: {words:?}");
    ensure!((18..35).contains(&killed.elapsed().as_secs()), "after {:?}", killed.elapsed());
    Ok(())
}

/// Asks a daemon to take its configuration anew.
fn reload(process: &Process) -> Result<()> {
    Ok(kill(Pid::from_raw(process.pid().cast_signed()), Signal::SIGHUP)?)
}

pub(crate) fn a_reload_without_the_password_is_told_and_keeps_the_old_configuration() -> Result<()> {
    let folder = Folder::new()?;
    let broker = Broker::plain(&folder, "")?;
    let ear = Ear::open(broker.ports[0], None)?;
    let mut agent = Agent::new(&folder, broker.ports[0], "20s")?;
    ear.until_heard(AVAILABILITY, "online").with_context(|| agent.log())?;
    let good = fs::read_to_string(folder.path("bramble.toml"))?;
    let none = folder.path("none");
    let bad = good.replace("[mqtt]\n", &format!("[mqtt]\nuser = \"u\"\npassword_file = \"{none}\"\n"));
    folder.write("bramble.toml", &bad)?;
    let process = agent.process.as_ref().context("it runs")?;
    reload(process)?;
    let said = until(PATIENCE, "it says why it keeps the old configuration", || {
        Ok(agent.log().lines().find(|line| line.contains("the old configuration stays")).map(str::to_owned))
    })
    .with_context(|| agent.log())?;
    let why = format!(
        "{}: line 6: mqtt.user = \"u\": the password is missing: {none}: no such file; write it there",
        folder.path("bramble.toml")
    );
    ensure!(said.contains(&why), "{said}, and not {why}");

    let mut check = bound(&programs()?.join("bramble").display().to_string());
    let check = check.args(["check", "--list", "--config", &folder.path("bramble.toml")]).output()?;
    ensure!(check.status.code() == Some(64), "check ends with {}", check.status);
    ensure!(String::from_utf8_lossy(&check.stderr).trim_end() == format!("bramble: {why}"), "{check:?}");

    // It goes on, and a good one is taken.
    folder.write("bramble.toml", &good)?;
    reload(process)?;
    until(PATIENCE, "a good one is taken", || {
        Ok(agent.log().contains("the configuration is taken anew").then_some(()))
    })
    .with_context(|| agent.log())?;
    ensure!(agent.process.as_mut().context("it runs")?.ended().is_none(), "it ended: {}", agent.log());
    Ok(())
}

pub(crate) fn an_aggregator_whose_new_address_is_taken_keeps_the_old_one() -> Result<()> {
    let folder = Folder::new()?;
    let (old, new, taken) = (free_port()?, free_port()?, TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?);
    let broker = free_port()?;
    let listen = |address: &str, port: u16| {
        let text = format!("[mqtt]\nport = {broker}\n[web]\nlisten = \"{address}:{port}\"\n");
        folder.write("aggregator.toml", &text)
    };
    let configure = |port: u16| listen("127.0.0.1", port);
    let path = configure(old)?;
    let program = programs()?.join("bramble-aggregator").display().to_string();
    let mut command = bound(&program);
    command.args(["--config", &path]);
    command.stdout(Stdio::null()).stderr(fs::File::create(folder.path("aggregator.log"))?);
    let mut process = Process::spawn("the aggregator", command)?;
    let log = || fs::read_to_string(folder.path("aggregator.log")).unwrap_or_default();
    let answers = |port: u16| {
        let page = format!("the page answers on {port}");
        until(PATIENCE, &page, || Ok(http::get((Ipv4Addr::LOCALHOST, port).into(), "/healthz").ok()))
            .with_context(log)
    };
    answers(old)?;
    configure(taken.local_addr()?.port())?;
    reload(&process)?;
    until(PATIENCE, "it says why it keeps the old configuration", || {
        let said = log().lines().any(|l| {
            l.contains("the old configuration stays: listening on") && l.contains("`listen` in [web]")
        });
        Ok(said.then_some(()))
    })
    .with_context(log)?;
    answers(old)?;
    // The same address stays open, another one is open before the old one is left.
    for (address, port) in [("127.0.0.1", old), ("127.0.0.1", new), ("0.0.0.0", new), ("127.0.0.1", new)] {
        listen(address, port)?;
        let before = log().matches("the configuration is taken anew").count();
        reload(&process)?;
        until(PATIENCE, "it is taken", || {
            Ok((log().matches("the configuration is taken anew").count() > before).then_some(()))
        })?;
        answers(port)?;
    }
    ensure!(TcpStream::connect((Ipv4Addr::LOCALHOST, old)).is_err(), "the old address is still open");
    ensure!(process.ended().is_none(), "it ended: {}", log());

    // What a reload would say is said by the command, without a line of the file that may hold a secret.
    folder.write("aggregator.toml", "[mqtt]\npassword = \"hunter2\"\n")?;
    let check = bound(&program).args(["--check", "--config", &path]).output()?;
    let said = String::from_utf8_lossy(&check.stderr).into_owned();
    ensure!(check.status.code() == Some(64), "{check:?}");
    ensure!(said.contains(&format!("{path}: line 2: password: unknown field")), "{said}");
    ensure!(said.lines().count() == 1 && !said.contains("hunter2"), "{said}");
    configure(old)?;
    ensure!(bound(&program).args(["--check", "--config", &path]).output()?.status.success());
    Ok(())
}

pub(crate) fn the_password_that_systemd_hands_over_is_read_also_where_its_file_is_named() -> Result<()> {
    let folder = Folder::new()?;
    folder.write("mqtt-password", "secret\n")?;
    fs::create_dir(folder.path("empty"))?;
    folder.write("empty/mqtt-password", "\n")?;
    for (program, arguments, file) in [
        ("bramble", &["check", "--list"][..], "/etc/bramble/mqtt-password"),
        ("bramble-aggregator", &["--check"], "/etc/bramble/aggregator-mqtt-password"),
    ] {
        for named in [String::new(), format!("password_file = \"{file}\"\n")] {
            let config = folder.write("config.toml", &format!("[mqtt]\nuser = \"u\"\n{named}"))?;
            for (credentials, code) in [(folder.path(""), 0), (folder.path("empty"), 64)] {
                let mut command = bound(&programs()?.join(program).display().to_string());
                command
                    .args(arguments)
                    .args(["--config", &config])
                    .env("CREDENTIALS_DIRECTORY", &credentials);
                let ended = command.output()?;
                ensure!(ended.status.code() == Some(code), "{program}, {named:?}, {credentials}: {ended:?}");
                let said = String::from_utf8_lossy(&ended.stderr);
                ensure!(code == 0 || said.contains(&format!("write it into {file}")), "{program}: {said}");
            }
        }
    }
    Ok(())
}

pub(crate) fn with_a_broker_that_retains_nothing_availability_follows_each_announcement() -> Result<()> {
    let folder = Folder::new()?;
    let broker = Broker::start(&folder, "", &["retain_available false".to_owned()])?;
    let port = broker.ports[0];
    let ear = Ear::open(port, None)?.listening(port)?;
    let agent = Agent::new(&folder, port, "20s")?;
    let web = free_port()?;
    folder.write(
        "aggregator.toml",
        &format!("cluster = \"home\"\n[mqtt]\nport = {port}\n[web]\nlisten = \"127.0.0.1:{web}\"\n"),
    )?;
    let mut command = bound(&programs()?.join("bramble-aggregator").display().to_string());
    command.args(["--config", &folder.path("aggregator.toml")]).stdout(Stdio::null()).stderr(Stdio::null());
    let _aggregator = Process::spawn("bramble-aggregator", command)?;
    let devices = [
        ("homeassistant/device/n1/bramble-home/config", AVAILABILITY),
        ("homeassistant/device/bramble_cluster/bramble-home/config", "bramble/home/cluster/availability"),
    ];
    let mut known = [0; 2];
    for when in ["at the start", "when Home Assistant starts"] {
        // When it is announced, Home Assistant makes entities, and only then begins to listen for their values.
        let mut late: [Option<Ear>; 2] = [None, None];
        until(PATIENCE, &format!("both devices are said {when}"), || {
            for ((device, _), (known, late)) in devices.iter().zip(known.iter().zip(&mut late)) {
                if late.is_none() && ear.all(device).len() > *known {
                    *late = Some(Ear::open(port, None)?.listening(port)?);
                }
            }
            Ok(late.iter().all(Option::is_some).then_some(()))
        })
        .with_context(|| agent.log())?;
        for ((_, availability), late) in devices.iter().zip(late.iter().flatten()) {
            late.until_heard(availability, "online").with_context(|| format!("{when}: {}", agent.log()))?;
        }
        // What the meeting of agent and aggregator changed in the announcements has been said.
        thread::sleep(Duration::from_secs(12));
        known = devices.map(|(device, _)| ear.all(device).len());
        let mut birth = bound("mosquitto_pub");
        birth.args(["-V", "mqttv5", "-h", "127.0.0.1", "-p", &port.to_string()]);
        birth.args(["-t", "homeassistant/status", "-m", "online"]);
        ensure!(birth.status()?.success(), "the birth is not said");
    }
    Ok(())
}
