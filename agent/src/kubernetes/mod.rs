//! What only who holds the kubelet's certificate can see: the Node object; and how long the API, the cluster's DNS and a
//! service take, each told apart.
//!
//! A process of its own, off until its owner switches it on, because that certificate opens every secret of the node's
//! pods: the agent, which talks to the broker, must not hold it, and the companion, which has rights in the kernel, must
//! not parse what a server sends. It gets the certificate from systemd (`LoadCredential=`), has no right at all, listens to
//! nobody, and writes what it saw to one file below /run, which the agent reads.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use self::tell::Teller;
use crate::host::{
    Host, clock,
    http::{Client, Identity, Limits, Request, Trouble, Trust, Url},
    state::State,
};

/// What Kubernetes is told.
pub mod tell;

/// Where the file is; the unit's RuntimeDirectory, so that only systemd can have made it.
pub const DIRECTORY: &str = "/run/bramble-kubernetes";
/// Its name.
pub const FILE: &str = "look";
/// Time between two looks.
pub const PERIOD: Duration = Duration::from_secs(30);
/// Longest wait for each phase.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest text of a condition that is read, characters.
const LONGEST: usize = 200;
/// A name that every cluster's DNS knows.
const NAME: &str = "kubernetes.default.svc.cluster.local";

/// What was seen at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// Microseconds since boot.
    pub at_us: u64,
    /// Conditions of the Node, or why it could not be read.
    pub node: Result<Vec<NodeCondition>, String>,
    /// Milliseconds until the API had answered that.
    pub api_ms: Option<f64>,
    /// Milliseconds of that until a connection stood, then until TLS was agreed on, then until the answer began.
    #[serde(default)]
    pub api_phases_ms: Option<[f64; 3]>,
    /// Milliseconds until the cluster's DNS answered, or why it did not.
    pub dns_ms: Result<f64, String>,
    /// Milliseconds until a connection to the API's service stood, or why it did not.
    pub service_ms: Result<f64, String>,
    /// Whether the Node has our condition and our Events; `None` where nothing was to be told, or the Node was not read.
    #[serde(default)]
    pub told: Option<Result<(), String>>,
}

/// One condition of a Node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCondition {
    /// "Ready", "DiskPressure" and others.
    pub kind: String,
    /// "True", "False" or "Unknown".
    pub status: String,
    /// The kubelet's sentence.
    pub message: String,
}

/// Where is looked.
#[derive(Debug, Clone)]
pub struct Place {
    /// The API, as this node reaches it.
    pub api: Url,
    /// The Node's name.
    pub node: String,
    /// The cluster's DNS.
    pub dns: SocketAddr,
    /// The API's service, behind the cluster's load balancing.
    pub service: SocketAddr,
}

impl Place {
    /// The places of a K3s whose services have addresses from `first` on: the API has the next one, DNS the tenth.
    pub fn of(api: Url, node: String, first: Ipv4Addr) -> Place {
        let nth = |nth: u32| Ipv4Addr::from_bits(first.to_bits().wrapping_add(nth));
        Place { api, node, dns: (nth(10), 53).into(), service: (nth(1), 443).into() }
    }
}

/// Who asks: the kubelet's certificate, its key and the servers' authority, as systemd handed them over.
///
/// # Errors
/// Nothing was handed over: K3s had not joined when the unit was started.
pub fn client(host: &Host, credentials: &str) -> anyhow::Result<Client> {
    let read = |name: &str| {
        host.bytes(&format!("{credentials}/{name}"))
            .ok()
            .filter(|content| !content.trim_ascii().is_empty())
            .with_context(|| {
                format!("systemd handed over no {name}; has K3s joined? restart this unit when it has")
            })
    };
    let (certificate, key, authority) = (read("kubelet.crt")?, read("kubelet.key")?, read("server-ca.crt")?);
    let identity = Identity { certificate: &certificate, key: &key };
    let limits = Limits { connect: PATIENCE, answer: PATIENCE, ..Limits::default() };
    Ok(Client::new(Trust::Bundle(&authority), Some(identity))?.within(limits))
}

/// Looks, again and again, tells Kubernetes what is to be told, and keeps the newest.
///
/// # Errors
/// The file cannot be written.
pub async fn run(client: &Client, place: &Place, state: &State, mut teller: Teller) -> anyhow::Result<()> {
    let mut every = tokio::time::interval(PERIOD);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let mut look = look(client, place).await;
        if let Ok(conditions) = &look.node {
            let told = teller.tell(client, place, conditions).await;
            look.told = teller.tells().then(|| told.map_err(|trouble| trouble.to_string()));
        }
        let text = serde_json::to_string(&look).expect("text and numbers are JSON");
        state.write(FILE, &text).with_context(|| format!("writing {}", state.directory().display()))?;
    }
}

/// One look; the phases do not wait for each other.
pub async fn look(client: &Client, place: &Place) -> Look {
    let ((node, api_ms, api_phases_ms), dns_ms, service_ms) =
        tokio::join!(node(client, place), dns(place.dns), service(place.service));
    let at_us = clock::uptime().as_micros() as u64;
    Look { at_us, node, api_ms, api_phases_ms, dns_ms, service_ms, told: None }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

type Read = (Result<Vec<NodeCondition>, String>, Option<f64>, Option<[f64; 3]>);

async fn node(client: &Client, place: &Place) -> Read {
    let start = Instant::now();
    let url = place.api.at(&format!("/api/v1/nodes/{}", place.node));
    let answer = client.send(Request::get(&url).header("accept", "application/json")).await;
    let took = answer.is_ok().then(|| milliseconds(start));
    let phases = answer.as_ref().ok().map(|answer| {
        let times = answer.times;
        [times.connect, times.tls, times.answer].map(|time| time.as_secs_f64() * 1000.0)
    });
    let node = answer.and_then(|answer| answer.good()).and_then(|answer| {
        serde_json::from_slice(&answer.body).map_err(|_| Trouble::NotHttp("its body is no JSON".into()))
    });
    (node.map(|node| conditions(&node)).map_err(|trouble| trouble.to_string()), took, phases)
}

fn conditions(node: &Value) -> Vec<NodeCondition> {
    let list = node.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
    let text =
        |value: &Value, key: &str| value[key].as_str().unwrap_or_default().chars().take(LONGEST).collect();
    list.take(32)
        .map(|c| NodeCondition {
            kind: text(c, "type"),
            status: text(c, "status"),
            message: text(c, "message"),
        })
        .collect()
}

/// Asks for a name that is always there.
async fn dns(server: SocketAddr) -> Result<f64, String> {
    let start = Instant::now();
    let id = crate::random::u32() as u16;
    let ask = async {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
        socket.connect(server).await?;
        socket.send(&question(id)).await?;
        let mut answer = [0; 512];
        loop {
            let length = socket.recv(&mut answer).await?;
            if let Some(code) = answered(&answer[..length], id) {
                return Ok::<u8, std::io::Error>(code);
            }
        }
    };
    match timeout(PATIENCE, ask).await {
        Err(_) => Err(format!("{server} does not answer")),
        Ok(Err(why)) => Err(format!("{server}: {why}")),
        Ok(Ok(0)) => Ok(milliseconds(start)),
        Ok(Ok(code)) => Err(format!("{server} does not know {NAME} (code {code})")),
    }
}

/// RFC 1035, 4: one question for an address.
fn question(id: u16) -> Vec<u8> {
    let mut message = Vec::with_capacity(64);
    message.extend(id.to_be_bytes());
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in NAME.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// The code of an answer to this question; `None` for anything else.
fn answered(message: &[u8], id: u16) -> Option<u8> {
    let [a, b, flags, code, ..] = *message else { return None };
    (u16::from_be_bytes([a, b]) == id && flags & 0x80 != 0 && message.len() >= 12).then_some(code & 0x0f)
}

async fn service(address: SocketAddr) -> Result<f64, String> {
    let start = Instant::now();
    match timeout(PATIENCE, TcpStream::connect(address)).await {
        Err(_) => Err(format!("{address} does not answer")),
        Ok(Err(why)) => Err(format!("{address}: {why}")),
        Ok(Ok(_)) => Ok(milliseconds(start)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_node_its_conditions_are_read_and_bounded() {
        let many: Vec<Value> = (0..100).map(|_| serde_json::json!({"type": "x".repeat(999)})).collect();
        let read = conditions(&serde_json::json!({"status": {"conditions": many}}));
        assert_eq!((read.len(), read[0].kind.len()), (32, 200));
        assert_eq!(conditions(&Value::Null), []);
    }

    #[test]
    fn the_places_of_a_cluster_follow_from_its_services() {
        let api = Url::parse("https://127.0.0.1:6444").unwrap();
        let place = Place::of(api, "n1".to_owned(), Ipv4Addr::new(10, 43, 0, 0));
        assert_eq!(
            (place.dns.to_string(), place.service.to_string()),
            ("10.43.0.10:53".into(), "10.43.0.1:443".into())
        );
    }

    #[tokio::test]
    async fn dns_answers_only_to_its_own_question() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let answer = tokio::spawn(async move {
            for code in [0, 3] {
                let mut asked = [0; 512];
                let (length, from) = server.recv_from(&mut asked).await.unwrap();
                assert!(asked[..length].ends_with(&[0, 0, 1, 0, 1]));
                server.send_to(b"x", from).await.unwrap();
                let mut other = asked;
                (other[0], other[2]) = (!asked[0], 0x80);
                server.send_to(&other[..length], from).await.unwrap();
                (asked[2], asked[3]) = (0x81, 0x80 | code);
                server.send_to(&asked[..length], from).await.unwrap();
            }
        });
        assert!(dns(address).await.unwrap() > 0.0);
        assert!(dns(address).await.unwrap_err().ends_with("(code 3)"));
        answer.await.unwrap();
    }

    #[tokio::test]
    async fn a_service_that_nobody_serves_is_told_with_its_address() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert!(service(address).await.unwrap() > 0.0);
        drop(listener);
        assert!(service(address).await.unwrap_err().starts_with(&address.to_string()));
    }
}
