//! The MQTT v5 connection of both programs, over rumqttc: options, last will, outbox, back-off.
//!
//! rumqttc leaves several things to its user, and all of them are done here, once: it allocates a send table
//! for 65,535 packets unless told otherwise; it retries at once and without end; it forgets queued messages
//! when the broker kept no session; it only logs what the broker refuses. So this file keeps an [`Outbox`] with
//! the newest value of every retained topic, says everything again at each connection, pairs each
//! acknowledgement with its topic, and waits between attempts with full jitter.
//!
//! TLS belongs in [`options`]: the transport is chosen there and nowhere else.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use rumqttc::{
    Outgoing,
    v5::{
        AsyncClient, ConnectionError, EventLoop, MqttOptions, StateError,
        mqttbytes::{
            QoS,
            v5::{
                DisconnectReasonCode, Filter, LastWill, LastWillProperties, Packet, PubAckReason,
                PublishProperties, RetainForwardRule, SubscribeReasonCode,
            },
        },
    },
};
use tokio::sync::{Notify, mpsc};

use crate::report::{MAX_PAYLOAD, OFFLINE, ONLINE};

/// Packets under way to the broker at once; mosquitto grants 20.
const INFLIGHT: u16 = 16;
/// Largest packet that is taken from the broker, bytes: larger than any message of ours, so that a hostile one is
/// seen and counted instead of ending the connection.
const MAX_INCOMING: u32 = 4 * 1024 * 1024;
/// Events kept while the broker is away.
const EVENTS: usize = 256;
/// First and longest bound of the random wait between two attempts.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// A connection that lasted this long was a good one: the next wait is short again.
const GOOD_FOR: Duration = Duration::from_secs(60);

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the text over.
    pub fn new(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// How to reach the broker and who we are there.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Broker's name or address.
    pub host: String,
    /// Broker's TCP port.
    pub port: u16,
    /// Unique on the broker; a second client of the same id throws the first one out.
    pub client_id: String,
    /// User and password, when the broker wants them.
    pub user: Option<(String, Secret)>,
    /// Silence after which the link is tested; whole seconds, at least one.
    pub keep_alive: Duration,
    /// What the broker says for us when we are gone.
    pub will: Will,
    /// Subscribed at every connection.
    pub filters: Vec<String>,
}

/// The availability topic: `online` at each connection, `offline` as last will.
#[derive(Clone, Debug)]
pub struct Will {
    /// Retained topic.
    pub topic: String,
    /// How long the broker waits before it says `offline`; whole seconds.
    pub delay: Duration,
}

/// What the connection tells its owner.
#[derive(Clone, Debug)]
pub enum Event {
    /// Connected; subscriptions and all retained topics are on their way.
    Connected,
    /// Not connected.
    Disconnected {
        /// Cause and, where there is one, next step.
        why: String,
        /// When it is tried again.
        next_try: Duration,
    },
    /// A message arrived.
    Message {
        /// Its topic, as sent.
        topic: String,
        /// Its payload; empty when a retained topic was emptied.
        payload: Bytes,
        /// Whether it was stored by the broker before we subscribed.
        retained: bool,
    },
    /// The broker refuses something for good: most often its access list.
    Refused {
        /// Topic or filter.
        what: String,
        /// The broker's reason.
        reason: String,
    },
}

/// The sending half; clones share one outbox.
#[derive(Clone, Debug)]
pub struct Bus {
    shared: Arc<Shared>,
    client: AsyncClient,
    availability: String,
}

#[derive(Debug)]
struct Shared {
    outbox: Mutex<Outbox>,
    /// Something may be sent, or the connection changed.
    wake: Notify,
    /// An acknowledgement arrived.
    acknowledged: Notify,
}

impl Shared {
    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        // The outbox is valid after every statement, so a panic elsewhere does not spoil it.
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is to be sent: newest value per retained topic, and a bounded queue of events.
#[derive(Debug, Default)]
struct Outbox {
    latest: BTreeMap<String, Value>,
    /// Topics of `latest` that wait, in order, each once.
    waiting: VecDeque<String>,
    events: VecDeque<(String, Value)>,
    dropped: u64,
    connected: bool,
    subscribed: bool,
    /// Handed to rumqttc, not yet numbered.
    handed: VecDeque<String>,
    /// Numbered, not yet acknowledged.
    numbered: HashMap<u16, String>,
}

#[derive(Clone, Debug)]
struct Value {
    payload: Bytes,
    expiry: Option<Duration>,
    set: Instant,
}

/// One message that is due.
#[derive(Debug, PartialEq, Eq)]
struct Due {
    topic: String,
    payload: Bytes,
    retain: bool,
    expiry: Option<u32>,
}

impl Outbox {
    fn set(&mut self, topic: String, payload: Bytes, expiry: Option<Duration>, now: Instant) {
        self.latest.insert(topic.clone(), Value { payload, expiry, set: now });
        if !self.waiting.contains(&topic) {
            self.waiting.push_back(topic);
        }
    }

    fn event(&mut self, topic: String, payload: Bytes, expiry: Duration, now: Instant) {
        if self.events.len() == EVENTS {
            self.events.pop_front();
            self.dropped += 1;
        }
        self.events.push_back((topic, Value { payload, expiry: Some(expiry), set: now }));
    }

    /// A new connection: the broker may have forgotten everything, so everything is said again.
    fn connected(&mut self, first: &str) {
        self.connected = true;
        self.subscribed = false;
        self.handed.clear();
        self.numbered.clear();
        self.waiting = self.latest.keys().filter(|t| *t != first).cloned().collect();
        if self.latest.contains_key(first) {
            self.waiting.push_front(first.to_owned());
        }
    }

    fn disconnected(&mut self) {
        self.connected = false;
    }

    /// The next message; what has expired meanwhile is not sent as if it were fresh.
    fn next(&mut self, now: Instant) -> Option<Due> {
        while let Some(topic) = self.waiting.pop_front() {
            let Some(value) = self.latest.get(&topic).cloned() else { continue };
            if value.payload.is_empty() {
                self.latest.remove(&topic);
            }
            if let Some(due) = value.due(topic, true, now) {
                return Some(due);
            }
        }
        while let Some((topic, value)) = self.events.pop_front() {
            match value.due(topic, false, now) {
                Some(due) => return Some(due),
                None => self.dropped += 1,
            }
        }
        None
    }

    fn idle(&self) -> bool {
        self.waiting.is_empty()
            && self.events.is_empty()
            && self.handed.is_empty()
            && self.numbered.is_empty()
    }
}

impl Value {
    fn due(self, topic: String, retain: bool, now: Instant) -> Option<Due> {
        let expiry = match self.expiry {
            None => None,
            Some(expiry) => {
                let left = expiry.checked_sub(now.duration_since(self.set))?;
                Some(u32::try_from(left.as_secs().max(1)).unwrap_or(u32::MAX))
            }
        };
        Some(Due { topic, payload: self.payload, retain, expiry })
    }
}

/// Connects, and stays so until the receiver is dropped. Needs a tokio runtime.
pub fn start(settings: Settings) -> (Bus, mpsc::Receiver<Event>) {
    let (client, event_loop) = AsyncClient::new(options(&settings), 16);
    let shared = Arc::new(Shared {
        outbox: Mutex::new(Outbox::default()),
        wake: Notify::new(),
        acknowledged: Notify::new(),
    });
    let (events, receiver) = mpsc::channel(256);
    let bus =
        Bus { shared: shared.clone(), client: client.clone(), availability: settings.will.topic.clone() };
    bus.publish_latest(settings.will.topic.clone(), ONLINE.into(), None);
    let feeder = tokio::spawn(feed(client, shared.clone(), settings.filters.clone())).abort_handle();
    tokio::spawn(async move {
        poll(event_loop, &shared, &settings, events).await;
        feeder.abort();
    });
    (bus, receiver)
}

/// Everything that the broker is told about us at connection.
fn options(settings: &Settings) -> MqttOptions {
    let mut options = MqttOptions::new(&settings.client_id, &settings.host, settings.port);
    let delay = u32::try_from(settings.will.delay.as_secs()).unwrap_or(u32::MAX);
    options
        .set_keep_alive(settings.keep_alive.max(Duration::from_secs(1)))
        .set_clean_start(true)
        // The will fires at the earlier of its delay and the end of the session.
        .set_session_expiry_interval(Some(delay.saturating_add(10)))
        .set_max_packet_size(Some(MAX_INCOMING))
        .set_outgoing_inflight_upper_limit(INFLIGHT)
        .set_last_will(LastWill::new(
            &settings.will.topic,
            OFFLINE,
            QoS::AtLeastOnce,
            true,
            Some(LastWillProperties {
                delay_interval: Some(delay),
                payload_format_indicator: None,
                message_expiry_interval: None,
                content_type: None,
                response_topic: None,
                correlation_data: None,
                user_properties: Vec::new(),
            }),
        ));
    if let Some((user, Secret(password))) = &settings.user {
        options.set_credentials(user, password);
    }
    let mut network = options.network_options();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    options
}

impl Bus {
    /// Publishes a retained value, at least once; while it waits, a newer one of the same topic replaces it.
    /// An empty payload removes the topic. A payload over [`MAX_PAYLOAD`] is logged and not sent: brokers end
    /// the connection for it.
    pub fn publish_latest(&self, topic: String, payload: Vec<u8>, expiry: Option<Duration>) {
        if !fits(&topic, &payload) {
            return;
        }
        self.shared.outbox().set(topic, payload.into(), expiry, Instant::now());
        self.shared.wake.notify_one();
    }

    /// Publishes something that happened, at least once, not retained. While the broker is away 256 are kept, then
    /// the oldest goes and is counted.
    pub fn publish_event(&self, topic: String, payload: Vec<u8>, expiry: Duration) {
        if !fits(&topic, &payload) {
            return;
        }
        self.shared.outbox().event(topic, payload.into(), expiry, Instant::now());
        self.shared.wake.notify_one();
    }

    /// Events that were given up since the start.
    pub fn dropped(&self) -> u64 {
        self.shared.outbox().dropped
    }

    /// Says `offline` ourselves, waits up to two seconds until the broker has everything, and disconnects, which
    /// takes the last will back. For a planned restart simply stop instead: the will's delay bridges it.
    pub async fn leave(self) {
        self.publish_latest(self.availability.clone(), OFFLINE.into(), None);
        let drained = async {
            loop {
                let acknowledged = self.shared.acknowledged.notified();
                if self.shared.outbox().idle() || !self.shared.outbox().connected {
                    return;
                }
                acknowledged.await;
            }
        };
        // Past the limit there is nobody to tell, and the will speaks for us.
        let _ = tokio::time::timeout(Duration::from_secs(2), drained).await;
        let _ = self.client.try_disconnect();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn fits(topic: &str, payload: &[u8]) -> bool {
    if payload.len() > MAX_PAYLOAD {
        tracing::error!(topic, bytes = payload.len(), "message not sent: larger than {MAX_PAYLOAD} bytes");
    }
    payload.len() <= MAX_PAYLOAD
}

/// Hands the outbox to rumqttc, only while connected: what is queued there during an outage would be lost.
async fn feed(client: AsyncClient, shared: Arc<Shared>, filters: Vec<String>) {
    loop {
        enum Step {
            Subscribe,
            Send(Due),
            Wait,
        }
        let step = {
            let mut outbox = shared.outbox();
            if !outbox.connected {
                Step::Wait
            } else if !outbox.subscribed {
                outbox.subscribed = true;
                Step::Subscribe
            } else if let Some(due) = outbox.next(Instant::now()) {
                outbox.handed.push_back(due.topic.clone());
                Step::Send(due)
            } else {
                Step::Wait
            }
        };
        let sent = match step {
            Step::Wait => {
                shared.wake.notified().await;
                continue;
            }
            Step::Subscribe if filters.is_empty() => continue,
            Step::Subscribe => {
                client
                    .subscribe_many(filters.iter().map(|f| Filter {
                        path: f.clone(),
                        qos: QoS::AtLeastOnce,
                        nolocal: false,
                        preserve_retain: false,
                        retain_forward_rule: RetainForwardRule::OnEverySubscribe,
                    }))
                    .await
            }
            Step::Send(due) => {
                let properties = PublishProperties {
                    payload_format_indicator: Some(1),
                    message_expiry_interval: due.expiry,
                    ..PublishProperties::default()
                };
                client
                    .publish_with_properties(due.topic, QoS::AtLeastOnce, due.retain, due.payload, properties)
                    .await
            }
        };
        if sent.is_err() {
            // The event loop is gone, and with it the owner.
            return;
        }
    }
}

/// Drives rumqttc in a task of its own, because its `poll` is not cancel-safe.
async fn poll(mut event_loop: EventLoop, shared: &Shared, settings: &Settings, events: mpsc::Sender<Event>) {
    let mut wait = FIRST_WAIT;
    let mut connected_at: Option<Instant> = None;
    loop {
        let event = match event_loop.poll().await {
            Ok(rumqttc::v5::Event::Incoming(packet)) => incoming(packet, shared, settings, &mut connected_at),
            Ok(rumqttc::v5::Event::Outgoing(Outgoing::Publish(number))) => {
                let mut outbox = shared.outbox();
                if let Some(topic) = outbox.handed.pop_front() {
                    outbox.numbered.insert(number, topic);
                }
                None
            }
            Ok(_) => None,
            Err(error) => {
                shared.outbox().disconnected();
                shared.acknowledged.notify_waiters();
                if connected_at.take().is_some_and(|at| at.elapsed() >= GOOD_FOR) {
                    wait = FIRST_WAIT;
                }
                let next_try = jitter(wait);
                wait = (wait * 2).min(LONGEST_WAIT);
                let why = explain(&error, &settings.host, settings.port);
                if events.send(Event::Disconnected { why, next_try }).await.is_err() {
                    return;
                }
                tokio::select! {
                    () = tokio::time::sleep(next_try) => {}
                    () = events.closed() => return,
                }
                None
            }
        };
        if let Some(event) = event
            && events.send(event).await.is_err()
        {
            return;
        }
        if events.is_closed() {
            return;
        }
    }
}

fn incoming(
    packet: Packet,
    shared: &Shared,
    settings: &Settings,
    connected_at: &mut Option<Instant>,
) -> Option<Event> {
    match packet {
        Packet::ConnAck(_) => {
            *connected_at = Some(Instant::now());
            shared.outbox().connected(&settings.will.topic);
            shared.wake.notify_one();
            Some(Event::Connected)
        }
        Packet::Publish(publish) => Some(Event::Message {
            topic: String::from_utf8_lossy(&publish.topic).into_owned(),
            payload: publish.payload,
            retained: publish.retain,
        }),
        Packet::PubAck(ack) => {
            let topic = shared.outbox().numbered.remove(&ack.pkid);
            shared.acknowledged.notify_waiters();
            match ack.reason {
                PubAckReason::Success | PubAckReason::NoMatchingSubscribers => None,
                reason => Some(Event::Refused {
                    what: format!("publishing to {}", topic.as_deref().unwrap_or("an unknown topic")),
                    reason: format!("{reason:?}"),
                }),
            }
        }
        Packet::SubAck(ack) => {
            let refused: Vec<&str> = ack
                .return_codes
                .iter()
                .zip(&settings.filters)
                .filter(|(code, _)| !matches!(code, SubscribeReasonCode::Success(_)))
                .map(|(_, filter)| filter.as_str())
                .collect();
            (!refused.is_empty()).then(|| Event::Refused {
                what: format!("subscribing to {}", refused.join(", ")),
                reason: "check the broker's access list".to_owned(),
            })
        }
        _ => None,
    }
}

/// A random time between a tenth of `bound` and `bound`.
fn jitter(bound: Duration) -> Duration {
    // Each RandomState has random keys of its own: enough to spread nodes, no generator needed.
    let random = RandomState::new().hash_one(0u8);
    bound.mul_f64(0.1 + 0.9 * (random as f64 / u64::MAX as f64))
}

/// One cause and one next step.
fn explain(error: &ConnectionError, host: &str, port: u16) -> String {
    use rumqttc::v5::mqttbytes::v5::ConnectReturnCode as Code;
    match error {
        ConnectionError::Io(io) if io.kind() == std::io::ErrorKind::ConnectionRefused => {
            format!("nothing listens on {host}:{port}; is the broker running there?")
        }
        ConnectionError::Io(io) => format!("{host}:{port}: {io}"),
        ConnectionError::Timeout(_) => format!("{host}:{port} did not answer within 5 s"),
        ConnectionError::ConnectionRefused(code)
        | ConnectionError::MqttState(StateError::ConnFail { reason: code }) => match code {
            Code::BadUserNamePassword | Code::NotAuthorized => {
                "the broker refuses user or password; check [mqtt] user and password_file".to_owned()
            }
            Code::UnsupportedProtocolVersion => {
                "the broker does not speak MQTT 5; mosquitto 2 does".to_owned()
            }
            code => format!("the broker refuses the connection: {code:?}"),
        },
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => match reason_code {
            DisconnectReasonCode::SessionTakenOver => {
                "another client connected with our id; was this node's card cloned?".to_owned()
            }
            code => format!("the broker ended the connection: {code:?}"),
        },
        other => format!("{host}:{port}: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics(outbox: &mut Outbox, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| outbox.next(now)).map(|d| d.topic).collect()
    }

    #[test]
    fn only_the_newest_value_of_a_topic_is_sent_and_all_again_after_a_reconnect() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        for (topic, payload) in [("b", "1"), ("availability", "online"), ("b", "2")] {
            outbox.set(topic.to_owned(), payload.into(), None, now);
        }
        let first = outbox.next(now).unwrap();
        assert_eq!((first.topic.as_str(), &first.payload[..]), ("b", &b"2"[..]));
        assert_eq!(topics(&mut outbox, now), ["availability"]);
        outbox.connected("availability");
        assert_eq!(topics(&mut outbox, now), ["availability", "b"]);
    }

    #[test]
    fn a_removed_topic_is_emptied_once_and_then_forgotten() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        outbox.set("a".to_owned(), "x".into(), None, now);
        outbox.set("a".to_owned(), Bytes::new(), None, now);
        assert!(outbox.next(now).unwrap().payload.is_empty());
        outbox.connected("availability");
        assert_eq!(outbox.next(now), None);
    }

    #[test]
    fn what_expired_during_an_outage_is_not_said_as_if_it_were_fresh() {
        let (mut outbox, then) = (Outbox::default(), Instant::now());
        outbox.set("state".to_owned(), "x".into(), Some(Duration::from_secs(3)), then);
        outbox.event("event".to_owned(), "x".into(), Duration::from_secs(3), then);
        outbox.connected("availability");
        assert_eq!(outbox.next(then + Duration::from_secs(1)).unwrap().expiry, Some(2));
        outbox.connected("availability");
        assert_eq!(outbox.next(then + Duration::from_secs(4)), None);
        assert_eq!(outbox.dropped, 1);
    }

    #[test]
    fn events_beyond_the_bound_are_counted() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        for _ in 0..EVENTS + 3 {
            outbox.event("e".to_owned(), "x".into(), Duration::from_secs(9), now);
        }
        assert_eq!((outbox.events.len(), outbox.dropped), (EVENTS, 3));
    }

    #[test]
    fn waits_are_spread_below_their_bound() {
        let waits: Vec<_> = (0..50).map(|_| jitter(LONGEST_WAIT)).collect();
        assert!(waits.iter().all(|w| *w <= LONGEST_WAIT && *w >= LONGEST_WAIT / 10));
        assert!(waits.iter().any(|w| *w != waits[0]));
    }

    #[test]
    fn a_secret_prints_nothing() {
        assert_eq!(format!("{:?}", Secret::new("hunter2".to_owned())), "Secret");
    }
}
