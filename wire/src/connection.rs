//! The MQTT v5 connection of both programs: dialling, last will, subscriptions, dead links, back-off.
//!
//! rumqttc's packets, and a loop of our own around them. rumqttc's own loop hides what is needed here: it dials for itself (so
//! no TLS of ours), allocates for 65,535 packets, retries at once and without end, gives no packet's number away,
//! forgets queued messages when the broker kept no session, only logs what the broker refuses, breaks the connection
//! over one message that is too large, and waits without limit for a write into a dead link. With the packets alone
//! each of these is a line: the [`crate::outbox`] numbers what is under way, and everything is said again at each
//! connection.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use rumqttc::v5::mqttbytes::{
    Error as Malformed, QoS,
    v5::{
        Connect, ConnectProperties, ConnectReturnCode, Disconnect, DisconnectReasonCode, Filter, LastWill,
        LastWillProperties, Login, Packet, PingReq, PubAck, RetainForwardRule, Subscribe,
        SubscribeReasonCode,
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    sync::{Notify, mpsc},
    time::{sleep, sleep_until, timeout},
};

pub use crate::outbox::Complaints;
use crate::{
    broker::Broker,
    outbox::{Outbox, Settled},
    report::{MAX_PAYLOAD, OFFLINE, ONLINE},
    tls::{self, Reader},
};

/// Largest packet that is taken from the broker, bytes: larger than any message of ours, so that a hostile one is
/// seen and counted instead of ending the connection.
const MAX_INCOMING: u32 = 4 * 1024 * 1024;
/// The first byte of the broker's answer to a greeting.
const CONNACK: u8 = 0x20;
/// First and longest bound of the random wait between two attempts.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// A connection that lasted this long was a good one: the next wait is short again.
const GOOD_FOR: Duration = Duration::from_secs(60);
/// How long one address may take to answer, and how long the broker may take to greet.
const PATIENCE: Duration = Duration::from_secs(10);
/// A link on which nothing sent is acknowledged for this long is dead, be it by the kernel, by a write that does not
/// end, or by a ping without answer.
pub const DEAD_AFTER: Duration = Duration::from_secs(20);
/// How often it is looked whether the certificates' files changed.
const RENEWAL: Duration = Duration::from_secs(30);
/// So many short connections in a row that the broker closed without a word are somebody else's doing.
const CUT_SHORT: u32 = 3;
/// How long it is remembered that somebody else uses our id.
const REMEMBERED: Duration = Duration::from_secs(15 * 60);

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
#[derive(Clone)]
pub struct Settings {
    /// Where it is, by which transport, and how long it may be silent.
    pub broker: Broker,
    /// Unique on the broker; a second client of the same id throws the first one out.
    pub client_id: String,
    /// User and password, when the broker wants them.
    pub user: Option<(String, Secret)>,
    /// The availability topic: `online` at each connection, `offline` as last will; retained. Without one there is neither.
    pub availability: Option<String>,
    /// Subscribed at every connection.
    pub filters: Vec<String>,
    /// Opens the files of certificates and keys.
    pub read: Reader,
}

/// Another client uses our id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakenOver {
    /// How long ago that was.
    pub ago: Duration,
    /// Whether the broker said so; it may also have been started again several times.
    pub is_told: bool,
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
    Message(Message),
    /// The broker took or refused events or records: see [`Bus::settled_before`].
    Settled,
    /// What the broker does not do for us changed: see [`Bus::complaints`].
    Complaints,
}

/// A message that arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Its topic, as sent.
    pub topic: String,
    /// Its payload; empty when a retained topic was emptied.
    pub payload: Bytes,
    /// Whether it was stored by the broker before we subscribed.
    pub retained: bool,
}

/// The sending half; clones share one outbox.
#[derive(Clone, Debug)]
pub struct Bus {
    shared: Arc<Shared>,
    availability: Option<String>,
}

#[derive(Debug, Default)]
struct Shared {
    inside: Mutex<Inside>,
    /// Something may be sent.
    wake: Notify,
    /// An acknowledgement arrived, or the connection ended.
    settled: Notify,
}

#[derive(Debug, Default)]
struct Inside {
    outbox: Outbox,
    connected: bool,
    leaving: bool,
    taken_over: Option<(Instant, bool)>,
    /// Why the certificates' new files are not used.
    renewal: Option<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inside> {
        // It is valid after every statement, so a panic elsewhere does not spoil it.
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connects, and stays so until the receiver is dropped. Needs a tokio runtime.
pub fn start(settings: Settings) -> (Bus, mpsc::Receiver<Event>) {
    let shared = Arc::new(Shared::default());
    let (events, receiver) = mpsc::channel(256);
    let bus = Bus { shared: shared.clone(), availability: settings.availability.clone() };
    if let Some(topic) = &settings.availability {
        bus.publish_latest(topic.clone(), ONLINE.into(), None);
    }
    tokio::spawn(async move {
        tokio::select! {
            // Without a DISCONNECT: what the last will says, its delay decides.
            () = events.closed() => {}
            () = stay(&settings, &shared, &events) => {}
        }
    });
    (bus, receiver)
}

impl Bus {
    /// One that is connected to nothing, for who must not speak yet.
    pub fn muted() -> Self {
        Self { shared: Arc::default(), availability: None }
    }

    /// Publishes a retained value, at least once; while it waits, a newer one of the same topic replaces it.
    /// An empty payload removes the topic. A payload over [`MAX_PAYLOAD`] is logged and not sent: brokers end
    /// the connection for it.
    pub fn publish_latest(&self, topic: String, payload: Vec<u8>, expiry: Option<Duration>) {
        if !fits(&topic, &payload) {
            return;
        }
        self.shared.lock().outbox.set(topic, payload.into(), expiry, Instant::now());
        self.shared.wake.notify_one();
    }

    /// Publishes something that is worth nothing after `expiry`, at least once, not retained.
    pub fn publish_event(&self, topic: String, payload: Vec<u8>, expiry: Duration) {
        if fits(&topic, &payload) {
            self.shared.lock().outbox.event(topic, payload.into(), expiry, Instant::now());
            self.shared.wake.notify_one();
        }
    }

    /// Publishes something that happened, at least once, not retained, late rather than never: it is kept until the broker has it,
    /// within the bounds of the outbox. Returns its number, which only grows.
    pub fn publish_record(&self, topic: String, payload: Vec<u8>) -> u64 {
        let number = self.shared.lock().outbox.record(topic, payload.into());
        self.shared.wake.notify_one();
        number
    }

    /// All records with a lower number are with the broker, or were given up and counted.
    pub fn settled_before(&self) -> u64 {
        self.shared.lock().outbox.settled_before()
    }

    /// Records that were given up since the start.
    pub fn dropped(&self) -> u64 {
        self.shared.lock().outbox.dropped()
    }

    /// Whether the broker took the last record that it answered.
    pub fn takes_records(&self) -> bool {
        self.shared.lock().outbox.takes_records()
    }

    /// Whether the broker is there and has everything.
    pub fn idle(&self) -> bool {
        let inside = self.shared.lock();
        inside.connected && inside.outbox.idle()
    }

    /// What the broker does not do for us on this connection.
    pub fn complaints(&self) -> Complaints {
        self.shared.lock().outbox.complaints().clone()
    }

    /// How long ago another client used our id, if that was within a quarter of an hour.
    pub fn taken_over(&self) -> Option<TakenOver> {
        let (at, is_told) = self.shared.lock().taken_over?;
        let ago = at.elapsed();
        (ago < REMEMBERED).then_some(TakenOver { ago, is_told })
    }

    /// Why the new files of certificates are not used; the connection keeps the old ones.
    pub fn renewal(&self) -> Option<String> {
        self.shared.lock().renewal.clone()
    }

    /// Empties the availability topic, so that nothing of us is left, waits up to two seconds until the broker has everything, and
    /// disconnects, which takes the last will back. Whether the broker has it all. For a restart simply stop instead: the
    /// will's delay bridges it.
    pub async fn vanish(self) -> bool {
        if let Some(topic) = &self.availability {
            self.publish_latest(topic.clone(), Vec::new(), None);
        }
        self.disconnect().await
    }

    /// Whether the broker had everything before the end.
    async fn disconnect(self) -> bool {
        let gone = async {
            loop {
                let settled = self.shared.settled.notified();
                {
                    let mut inside = self.shared.lock();
                    if !inside.connected {
                        return inside.leaving;
                    }
                    if inside.outbox.idle() {
                        inside.leaving = true;
                        self.shared.wake.notify_one();
                    }
                }
                settled.await;
            }
        };
        // Past the limit there is nobody to tell, and the will speaks for us.
        timeout(Duration::from_secs(2), gone).await.unwrap_or(false)
    }
}

fn fits(topic: &str, payload: &[u8]) -> bool {
    if payload.len() > MAX_PAYLOAD {
        tracing::error!(
            "message on {topic} not sent: {} bytes, of which the largest may have {MAX_PAYLOAD}",
            payload.len()
        );
    }
    payload.len() <= MAX_PAYLOAD
}

/// Why a connection ended, or was none.
#[derive(Debug)]
enum Ended {
    /// One cause and one next step.
    Because(String),
    /// The broker closed it without a word.
    Closed,
    /// Another client came with our id.
    TakenOver,
    /// The broker takes no will of this kind.
    OtherWill(WillKind),
    /// The certificates' files changed.
    Renewed,
    /// We left.
    Left,
}

/// What the broker takes as a will.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct WillKind {
    retain: bool,
    acknowledge: bool,
}

impl WillKind {
    /// What is tried first, after each connection: the broker may have been set right meanwhile.
    const BEST: Self = Self { retain: true, acknowledge: true };
}

/// Connects again and again.
async fn stay(settings: &Settings, shared: &Shared, events: &mpsc::Sender<Event>) {
    let mut wait = FIRST_WAIT;
    let mut will = WillKind::BEST;
    let mut cut_short = 0;
    loop {
        let mut connected_at = None;
        let ended = converse(settings, shared, events, will, &mut connected_at).await;
        {
            let mut inside = shared.lock();
            inside.connected = false;
            shared.settled.notify_waiters();
        }
        if connected_at.is_some() {
            will = WillKind::BEST;
        }
        if connected_at.is_some_and(|at: Instant| at.elapsed() >= GOOD_FOR) {
            wait = FIRST_WAIT;
            cut_short = 0;
        }
        let why = match ended {
            Ended::Left => return,
            Ended::Renewed => {
                tracing::info!("connecting to the broker again, with the new certificates");
                continue;
            }
            Ended::OtherWill(kind) if kind != will => {
                will = kind;
                continue;
            }
            Ended::OtherWill(_) => "the broker refuses every kind of last will".to_owned(),
            Ended::TakenOver => {
                cut_short = 0;
                shared.lock().taken_over = Some((Instant::now(), true));
                // Who comes back at once throws the other out, and so on for ever.
                wait = LONGEST_WAIT;
                "another client connected with our id; was this node's card cloned?".to_owned()
            }
            Ended::Closed if connected_at.is_some() => {
                cut_short += 1;
                let broker = &settings.broker;
                // mosquitto 2.0.11 throws a client out without a word.
                if cut_short >= CUT_SHORT {
                    shared.lock().taken_over = Some((Instant::now(), false));
                    wait = LONGEST_WAIT;
                    format!(
                        "{broker} ended {cut_short} connections in a row and did not say why; its log tells whether it was \
                         started again, or whether another client, such as a cloned node, uses our id"
                    )
                } else {
                    format!("{broker} ended the connection; its log tells why")
                }
            }
            Ended::Closed => {
                format!("{} ended the connection within the greeting; its log tells why", settings.broker)
            }
            Ended::Because(why) => {
                cut_short = 0;
                why
            }
        };
        let next_try = jitter(wait);
        wait = (wait * 2).min(LONGEST_WAIT);
        if events.send(Event::Disconnected { why, next_try }).await.is_err() {
            return;
        }
        sleep(next_try).await;
    }
}

/// A stream to the broker, with TLS or without.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// One connection: its bytes, and what they mean.
struct Line<'a> {
    stream: Box<dyn Stream>,
    heard: BytesMut,
    to_say: BytesMut,
    settings: &'a Settings,
}

impl Line<'_> {
    /// Brings everything out; a link that takes nothing is dead.
    async fn say(&mut self) -> Result<(), Ended> {
        if self.to_say.is_empty() {
            return Ok(());
        }
        let write = async {
            self.stream.write_all(&self.to_say).await?;
            self.stream.flush().await
        };
        match timeout(DEAD_AFTER, write).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                // The broker may have said why before it closed: a refused client certificate is told after our handshake.
                let read = timeout(Duration::from_millis(500), self.stream.read_buf(&mut self.heard)).await;
                let error = match read {
                    Ok(Err(told)) if tls::is_told(&told) => told,
                    _ => error,
                };
                return Err(self.broken(&error));
            }
            Err(_) => return Err(self.dead()),
        }
        self.to_say.clear();
        // One large message should not hold its room for ever.
        if self.to_say.capacity() > 64 * 1024 {
            self.to_say = BytesMut::new();
        }
        Ok(())
    }

    /// The next whole packet of what was heard.
    fn packet(&mut self) -> Result<Option<Packet>, Ended> {
        match Packet::read(&mut self.heard, Some(MAX_INCOMING)) {
            Ok(packet) => Ok(Some(packet)),
            Err(Malformed::InsufficientBytes(_)) => {
                if self.heard.is_empty() && self.heard.capacity() > 64 * 1024 {
                    self.heard = BytesMut::new();
                }
                Ok(None)
            }
            Err(malformed) => Err(Ended::Because(format!(
                "{} does not speak MQTT 5 ({malformed}); is this the broker's port?",
                self.settings.broker
            ))),
        }
    }

    /// Waits for bytes. Cancel-safe.
    async fn hear(&mut self) -> Result<(), Ended> {
        self.heard.reserve(4096);
        match self.stream.read_buf(&mut self.heard).await {
            Ok(0) => Err(Ended::Closed),
            Ok(_) => Ok(()),
            Err(error) => Err(self.broken(&error)),
        }
    }

    fn broken(&self, error: &io::Error) -> Ended {
        let broker = &self.settings.broker;
        Ended::Because(match &broker.tls {
            Some(tls) => tls::explain(error, tls, broker),
            None => format!("{broker}: {error}"),
        })
    }

    fn dead(&self) -> Ended {
        Ended::Because(format!(
            "{} acknowledged nothing for {} s: the link is dead; is the broker's machine up, and its network?",
            self.settings.broker,
            DEAD_AFTER.as_secs()
        ))
    }

    /// Says who we are, and takes the broker's answer.
    async fn greet(&mut self, shared: &Shared, will: WillKind) -> Result<Duration, Ended> {
        let write = connect(self.settings, will).write(&mut self.to_say, None);
        write.map_err(|e| Ended::Because(format!("the greeting cannot be written: {e}")))?;
        let broker = &self.settings.broker;
        let silent = || {
            Ended::Because(format!(
                "{broker} accepts connections and does not answer; is this the broker's port?"
            ))
        };
        let answer = async {
            self.say().await?;
            loop {
                if let Some(packet) = self.packet()? {
                    return Ok(packet);
                }
                match self.hear().await {
                    Err(_) if self.settings.broker.tls.is_none() && self.heard.is_empty() => {
                        return Err(Ended::Because(format!(
                            "{} ended the connection before it answered; if it wants TLS there, set tls = true in [mqtt]",
                            self.settings.broker
                        )));
                    }
                    heard => heard?,
                }
                if self.heard.first().is_some_and(|byte| *byte != CONNACK) {
                    return Err(Ended::Because(format!(
                        "{} does not speak MQTT 5; is this the broker's port?",
                        self.settings.broker
                    )));
                }
            }
        };
        let answer = timeout(PATIENCE, answer).await.map_err(|_| silent())??;
        let Packet::ConnAck(answer) = answer else {
            return Err(Ended::Because(format!(
                "{broker} does not speak MQTT 5; is this the broker's port?"
            )));
        };
        if answer.code != ConnectReturnCode::Success {
            return Err(refusal(answer.code, will));
        }
        let properties = answer.properties.as_ref();
        let keep_alive = properties.and_then(|p| p.server_keep_alive).filter(|seconds| *seconds > 0);
        let mut inside = shared.lock();
        inside.connected = true;
        inside.renewal = None;
        let first = self.settings.availability.as_deref().unwrap_or_default();
        inside.outbox.connected(first, properties);
        if !self.settings.filters.is_empty() {
            let filters = self.settings.filters.iter().map(|filter| Filter {
                path: filter.clone(),
                qos: QoS::AtLeastOnce,
                nolocal: false,
                preserve_retain: false,
                retain_forward_rule: RetainForwardRule::OnEverySubscribe,
            });
            let mut subscribe = Subscribe::new_many(filters, None);
            subscribe.pkid = inside.outbox.id_for_filters();
            let write = Packet::Subscribe(subscribe).write(&mut self.to_say, None);
            write.map_err(|e| Ended::Because(format!("the subscriptions cannot be written: {e}")))?;
        }
        Ok(keep_alive.map_or(self.settings.broker.keep_alive, |s| Duration::from_secs(u64::from(s))))
    }
}

/// One connection, from dialling to its end.
async fn converse(
    settings: &Settings,
    shared: &Shared,
    events: &mpsc::Sender<Event>,
    will: WillKind,
    connected_at: &mut Option<Instant>,
) -> Ended {
    match talk(settings, shared, events, will, connected_at).await {
        Ok(never) => match never {},
        Err(ended) => ended,
    }
}

async fn talk(
    settings: &Settings,
    shared: &Shared,
    events: &mpsc::Sender<Event>,
    will: WillKind,
    connected_at: &mut Option<Instant>,
) -> Result<std::convert::Infallible, Ended> {
    let (stream, files) = dial(settings).await?;
    let mut line = Line { stream, heard: BytesMut::new(), to_say: BytesMut::new(), settings };
    let keep_alive = line.greet(shared, will).await?;
    *connected_at = Some(Instant::now());
    let tell = async |event| events.send(event).await.map_err(|_| Ended::Left);
    tell(Event::Connected).await?;
    let (mut said_at, mut heard_at) = (Instant::now(), Instant::now());
    let mut pinged_at: Option<Instant> = None;
    let mut renewal = Instant::now() + RENEWAL;
    loop {
        while let Some(packet) = line.packet()? {
            heard_at = Instant::now();
            if let Packet::PingResp(_) = packet {
                pinged_at = None;
            } else if let Some(event) = take(packet, shared, settings, &mut line.to_say)? {
                tell(event).await?;
            }
        }
        let (leaving, named, settled) = {
            let mut inside = shared.lock();
            let events_before = inside.outbox.settled_before();
            // In pieces, so that a large outbox is not copied at once.
            while line.to_say.len() < 64 * 1024 && inside.outbox.next(Instant::now(), &mut line.to_say) {}
            // Of a broker that acknowledges nothing no answer comes that could tell it.
            if inside.outbox.look_whether_idle() {
                shared.settled.notify_waiters();
            }
            let named = inside.outbox.complaints_changed();
            // A broker that acknowledges nothing has what was written.
            let settled = inside.outbox.settled_before() != events_before;
            if line.to_say.len() >= 64 * 1024 {
                shared.wake.notify_one();
            }
            (inside.leaving, named, settled)
        };
        if leaving {
            let bye = Packet::Disconnect(Disconnect::new(DisconnectReasonCode::NormalDisconnection));
            let _ = bye.write(&mut line.to_say, None);
            line.say().await?;
            // The other side sees the end of the stream after everything that was said.
            let _ = timeout(Duration::from_millis(500), line.stream.shutdown()).await;
            return Err(Ended::Left);
        }
        if !line.to_say.is_empty() {
            line.say().await?;
            said_at = Instant::now();
        }
        if named {
            tell(Event::Complaints).await?;
        }
        if settled {
            tell(Event::Settled).await?;
        }
        // Silence of either side is tested, and the test must be answered.
        let test_at = match pinged_at {
            Some(at) => at + DEAD_AFTER,
            None => said_at.min(heard_at) + keep_alive,
        };
        let mut wake_at = test_at;
        if files.is_some() {
            // When something passes anyway: a wake-up costs more than looking.
            if Instant::now() >= renewal {
                renewal = Instant::now() + RENEWAL;
                renew(settings, shared, files.as_ref())?;
            }
            wake_at = wake_at.min(renewal + RENEWAL);
        }
        tokio::select! {
            heard = line.hear() => heard?,
            () = shared.wake.notified() => {}
            () = sleep_until(wake_at.into()) => {
                if Instant::now() < test_at {
                    continue;
                }
                if pinged_at.is_some() {
                    return Err(line.dead());
                }
                let _ = Packet::PingReq(PingReq).write(&mut line.to_say, None);
                pinged_at = Some(Instant::now());
            }
        }
    }
}

/// Ends the connection when the certificates' files changed and the new ones are good.
fn renew(settings: &Settings, shared: &Shared, used: Option<&tls::Files>) -> Result<(), Ended> {
    let Some(tls) = &settings.broker.tls else { return Ok(()) };
    let why = match tls::load(tls, &settings.read) {
        Ok(loaded) if Some(&loaded.files) != used => return Err(Ended::Renewed),
        Ok(_) => None,
        Err(why) => Some(why),
    };
    let mut inside = shared.lock();
    if let Some(why) = why.as_ref().filter(|why| inside.renewal.as_ref() != Some(*why)) {
        tracing::error!("the connection to the broker keeps its old certificates: {why}");
    }
    inside.renewal = why;
    Ok(())
}

/// Reaches the broker: each of its addresses gets its time.
async fn dial(settings: &Settings) -> Result<(Box<dyn Stream>, Option<tls::Files>), Ended> {
    let broker = &settings.broker;
    let loaded = match &broker.tls {
        Some(tls) => Some(tls::load(tls, &settings.read).map_err(Ended::Because)?),
        None => None,
    };
    let unknown = |why: &dyn fmt::Display| {
        Ended::Because(format!(
            "{} has no address: {why}; set host in [mqtt] right, or mend DNS",
            broker.host
        ))
    };
    let look_up = timeout(PATIENCE, tokio::net::lookup_host((broker.host.as_str(), broker.port))).await;
    let addresses = look_up.map_err(|_| unknown(&"DNS does not answer"))?.map_err(|e| unknown(&e))?;
    let mut why = "none was found".to_owned();
    let mut found = None;
    for address in addresses {
        match timeout(PATIENCE, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                found = Some(stream);
                break;
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                why = format!("nothing listens on {broker}; is the broker running there?");
            }
            Ok(Err(error)) => why = format!("{broker}: {error}"),
            Err(_) => {
                why = format!(
                    "{broker} did not answer within {} s; is it up, is the address right, does a firewall let the port through?",
                    PATIENCE.as_secs()
                );
            }
        }
    }
    let stream = found.ok_or(Ended::Because(why))?;
    let tuned = stream.set_nodelay(true).and_then(|()| {
        let limit = u32::try_from(DEAD_AFTER.as_millis()).unwrap_or(u32::MAX);
        nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::TcpUserTimeout, &limit)
            .map_err(io::Error::from)
    });
    tuned.map_err(|e| Ended::Because(format!("{broker}: the connection cannot be tuned: {e}")))?;
    let (Some(loaded), Some(tls)) = (loaded, &broker.tls) else {
        return Ok((Box::new(stream), None));
    };
    let files = loaded.files.clone();
    let shaken = timeout(PATIENCE, tls::shake(loaded, &broker.host, stream)).await;
    match shaken {
        Ok(Ok(stream)) => Ok((Box::new(stream), Some(files))),
        Ok(Err(error)) if !tls::is_told(&error) => Err(Ended::Because(format!(
            "{broker} ended the connection within the TLS handshake; is this its TLS port (8883 most often)?"
        ))),
        Ok(Err(error)) => Err(Ended::Because(tls::explain(&error, tls, broker))),
        Err(_) => Err(Ended::Because(format!(
            "{broker} accepts connections and does not answer in TLS; is this the broker's TLS port?"
        ))),
    }
}

/// The greeting.
fn connect(settings: &Settings, will: WillKind) -> Packet {
    let broker = &settings.broker;
    let delay = u32::try_from(broker.will_delay.as_secs()).unwrap_or(u32::MAX);
    let connect = Connect {
        keep_alive: u16::try_from(broker.keep_alive.as_secs().max(1)).unwrap_or(u16::MAX),
        client_id: settings.client_id.clone(),
        clean_start: true,
        properties: Some(ConnectProperties {
            // The will fires at the earlier of its delay and the end of the session.
            session_expiry_interval: Some(delay.saturating_add(10)),
            max_packet_size: Some(MAX_INCOMING),
            ..ConnectProperties::new()
        }),
    };
    let will = settings.availability.clone().map(|topic| LastWill {
        topic: topic.into(),
        message: OFFLINE.into(),
        qos: if will.acknowledge { QoS::AtLeastOnce } else { QoS::AtMostOnce },
        retain: will.retain,
        properties: Some(LastWillProperties {
            delay_interval: Some(delay),
            payload_format_indicator: None,
            message_expiry_interval: None,
            content_type: None,
            response_topic: None,
            correlation_data: None,
            user_properties: Vec::new(),
        }),
    });
    let login = settings.user.as_ref().map(|(user, Secret(password))| Login::new(user, password));
    Packet::Connect(connect, will, login)
}

/// What to make of a greeting that was refused.
fn refusal(code: ConnectReturnCode, will: WillKind) -> Ended {
    use ConnectReturnCode as Code;
    match code {
        Code::RetainNotSupported => Ended::OtherWill(WillKind { retain: false, ..will }),
        Code::QoSNotSupported => Ended::OtherWill(WillKind { acknowledge: false, ..will }),
        Code::BadUserNamePassword | Code::NotAuthorized => Ended::Because(
            "the broker refuses user or password; check user and password_file in [mqtt]".to_owned(),
        ),
        Code::UnsupportedProtocolVersion | Code::RefusedProtocolVersion => {
            Ended::Because("the broker does not speak MQTT 5; mosquitto 2 does".to_owned())
        }
        code => Ended::Because(format!("the broker refuses the connection: {code:?}; its log tells why")),
    }
}

/// One packet of the broker; answers go to `out`.
fn take(
    packet: Packet,
    shared: &Shared,
    settings: &Settings,
    out: &mut BytesMut,
) -> Result<Option<Event>, Ended> {
    match packet {
        Packet::Publish(publish) => {
            match publish.qos {
                QoS::AtMostOnce => {}
                QoS::AtLeastOnce => drop(Packet::PubAck(PubAck::new(publish.pkid, None)).write(out, None)),
                QoS::ExactlyOnce => {
                    let why = "the broker sends with QoS 2, which was not subscribed to";
                    return Err(Ended::Because(why.to_owned()));
                }
            }
            Ok(Some(Event::Message(Message {
                topic: String::from_utf8_lossy(&publish.topic).into_owned(),
                payload: publish.payload,
                retained: publish.retain,
            })))
        }
        Packet::PubAck(ack) => {
            let mut inside = shared.lock();
            let settled = inside.outbox.acknowledged(ack.pkid, ack.reason);
            shared.settled.notify_waiters();
            Ok((settled == Settled::Events).then_some(Event::Settled))
        }
        Packet::SubAck(ack) => {
            let mut inside = shared.lock();
            if !inside.outbox.take_filters(ack.pkid) {
                return Ok(None);
            }
            let answers = ack.return_codes.iter().zip(&settings.filters);
            for (code, filter) in answers {
                if !matches!(code, SubscribeReasonCode::Success(_)) {
                    inside.outbox.refused(filter.clone(), format!("{code:?}"));
                }
            }
            Ok(None)
        }
        Packet::Disconnect(disconnect) => Err(match disconnect.reason_code {
            DisconnectReasonCode::SessionTakenOver => Ended::TakenOver,
            DisconnectReasonCode::ServerShuttingDown => Ended::Because("the broker shuts down".to_owned()),
            code => Ended::Because(format!("the broker ended the connection: {code:?}")),
        }),
        // A second greeting, or what only clients say.
        other => Err(Ended::Because(format!(
            "{} does not speak MQTT 5 as a broker does ({other:?})",
            settings.broker
        ))),
    }
}

/// A random time between a tenth of `bound` and `bound`.
fn jitter(bound: Duration) -> Duration {
    // Each RandomState has random keys of its own: enough to spread nodes, no generator needed.
    let random = RandomState::new().hash_one(0u8);
    bound.mul_f64(0.1 + 0.9 * (random as f64 / u64::MAX as f64))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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

    #[test]
    fn a_will_that_the_broker_does_not_take_is_made_smaller_once_for_each_cause() {
        let Ended::OtherWill(without) = refusal(ConnectReturnCode::RetainNotSupported, WillKind::BEST) else {
            panic!()
        };
        assert_eq!(without, WillKind { retain: false, acknowledge: true });
        let Ended::OtherWill(least) = refusal(ConnectReturnCode::QoSNotSupported, without) else { panic!() };
        assert_eq!(least, WillKind { retain: false, acknowledge: false });
        let Ended::OtherWill(same) = refusal(ConnectReturnCode::QoSNotSupported, least) else { panic!() };
        assert_eq!(same, least);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        /// Release builds end at a panic, so a broker's garbage must not raise one.
        #[test]
        fn any_bytes_are_a_packet_or_refused_without_a_panic(
            kind in any::<u8>(),
            body in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let mut bytes = BytesMut::from(&[kind, body.len() as u8][..]);
            bytes.extend_from_slice(&body);
            let _ = Packet::read(&mut bytes, Some(MAX_INCOMING));
        }
    }
}
