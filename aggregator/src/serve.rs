//! Sockets and the MQTT loop: the only place that touches the outside world.
//!
//! One thread. The page has no login: it listens on loopback unless told otherwise, answers only to names that
//! are its own (a foreign page must not read it through a name that it pointed at us), and changes nothing.

use std::{
    convert::Infallible,
    future::Future,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header, uri::Authority},
    middleware::{self, Next},
    response::{
        IntoResponse, Response,
        sse::{Event as Sent, KeepAlive, Sse},
    },
    routing::get,
    serve::ListenerExt as _,
};
use futures_util::stream;
use jiff::{SignedDuration, Timestamp};
use nix::sys::socket::{setsockopt, sockopt::ReusePort};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Notify, watch},
};
use wire::{
    connection::{self, Bus, Event, TakenOver},
    discovery::HEARD_AFTER,
    farewell,
    report::ONLINE,
    topic::{ClusterTopic, Name, Topic},
};

use crate::{
    cluster::{self, Cluster, Effect, Line, Message},
    config::{Config, Web},
    notify::{Asked, Service, refuse},
    publish::{home_assistant, prometheus, web},
};

/// Shortest time between two updates of the page.
const UPDATE: Duration = Duration::from_millis(200);
/// An event without content, so that the page can tell a quiet cluster from a lost connection.
const BEAT: Duration = Duration::from_secs(2);
/// Connections that may wait to be taken.
const BACKLOG: u32 = 128;
/// Pages that may be open at the same time.
const PAGES: usize = 64;
/// A reader that takes nothing for this long is dropped, milliseconds.
const SLOW_READER_MS: u32 = 10_000;

/// The steady clock: wall time at the start, carried on by the monotonic clock, so that it never jumps.
#[derive(Clone, Copy, Debug)]
struct Clock {
    start: Timestamp,
    origin: Instant,
}

#[expect(
    clippy::disallowed_methods,
    reason = "the aggregator has no Host; this is its only look at the clock"
)]
fn wall_clock() -> Timestamp {
    Timestamp::now()
}

impl Clock {
    fn start() -> Self {
        Self { start: wall_clock(), origin: Instant::now() }
    }

    fn now(self) -> Timestamp {
        let elapsed = SignedDuration::try_from(self.origin.elapsed()).unwrap_or(SignedDuration::MAX);
        self.start.checked_add(elapsed).unwrap_or(Timestamp::MAX)
    }
}

/// What the MQTT loop and the pages share.
struct Shared {
    cluster: Mutex<Cluster>,
    clock: Clock,
    hosts: Vec<String>,
    /// The page would look different.
    changed: Notify,
    /// The newest snapshot; its receivers are the open pages.
    snapshot: watch::Sender<Arc<str>>,
    closing: watch::Sender<bool>,
}

impl Shared {
    fn new(cluster: Cluster, hosts: Vec<String>) -> Arc<Self> {
        Arc::new(Self {
            cluster: Mutex::new(cluster),
            clock: Clock::start(),
            hosts,
            changed: Notify::new(),
            snapshot: watch::Sender::new(Arc::from("")),
            closing: watch::Sender::new(false),
        })
    }

    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        // A panic elsewhere leaves the cluster as it was between two messages, or ends the program anyway.
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the wall clock; when it has jumped, what is to be said again.
    fn jumped(&self) -> Option<Vec<Effect>> {
        let (mut cluster, now) = (self.cluster(), self.clock.now());
        let wall = cluster.wall().seen(now, wall_clock());
        (wall != cluster.wall()).then(|| cluster.jumped(wall, now))
    }

    /// One line for `systemctl status`: what is missing, else the worst alert.
    fn status(&self) -> String {
        let cluster = self.cluster();
        match cluster.broker() {
            None => return "connecting to the broker".to_owned(),
            Some(broker) if !broker.connected => {
                return format!("no connection to the broker: {}", broker.why);
            }
            Some(_) => {}
        }
        let nodes = cluster.nodes().len();
        let mut alerts = cluster.alerts().raised();
        match alerts.next() {
            None => format!("{nodes} nodes, no alert"),
            Some(first) => format!("{nodes} nodes, {} alerts, first: {}", alerts.count() + 1, first.title),
        }
    }

    fn render(&self) -> String {
        web::render(&self.cluster(), self.clock.now())
    }
}

/// Where the page is asked for; it stays open from one configuration to the next that has the same address.
#[derive(Debug)]
pub struct Door {
    wanted: SocketAddr,
    listener: std::net::TcpListener,
}

impl Door {
    /// Opens what `[web]` says.
    ///
    /// # Errors
    /// The address cannot be listened on; says what to do.
    pub fn open(web: &Web) -> anyhow::Result<Self> {
        Self::listening(web.listen, || {
            let listener = std::net::TcpListener::bind(web.listen)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })
    }

    fn listening(
        wanted: SocketAddr,
        open: impl FnOnce() -> std::io::Result<std::net::TcpListener>,
    ) -> anyhow::Result<Self> {
        let listener = open()
            .with_context(|| format!("listening on {wanted}; set another address as `listen` in [web]"))?;
        if !wanted.ip().is_loopback() {
            tracing::warn!("the page has no login, and everybody who reaches {wanted} can read it");
        }
        Ok(Self { wanted, listener })
    }

    /// The configuration to begin anew with, and the door for it; where that does not open, the journal tells.
    pub fn anew(&self, config: Config, service: &mut Service<'_>) -> Option<(Config, Self)> {
        match self.next(&config.web) {
            Ok(door) => {
                service.reloading();
                Some((config, door))
            }
            Err(why) => {
                refuse(&why);
                None
            }
        }
    }

    /// The door for another configuration: another one when its address is another, which is open then.
    fn next(&self, web: &Web) -> anyhow::Result<Self> {
        let wanted = web.listen;
        if wanted == self.wanted {
            return Ok(Self { wanted, listener: self.listener.try_clone()? });
        }
        if wanted.port() != self.wanted.port() {
            return Self::open(web);
        }
        // 127.0.0.1 and 0.0.0.0 have one port at the same time only if both listeners allow that.
        Self::listening(wanted, || {
            setsockopt(&self.listener, ReusePort, &true)?;
            let socket = if wanted.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket.set_reuseaddr(true)?;
            socket.set_reuseport(true)?;
            socket.bind(wanted)?;
            socket.listen(BACKLOG)?.into_std()
        })
    }

    /// A handle of it for a server.
    fn listener(&self) -> std::io::Result<TcpListener> {
        TcpListener::from_std(self.listener.try_clone()?)
    }
}

/// Runs until it is asked to end, or to begin anew, with the door for that, and whether another client used our id of late.
///
/// # Errors
/// The connection's task has ended. A broker that is away is none.
pub async fn run(
    config: &Config,
    door: Door,
    service: &mut Service<'_>,
) -> anyhow::Result<Option<(Config, Door, Option<TakenOver>)>> {
    let listener = door.listener()?;
    let name = config.cluster.clone();
    let cluster = Cluster::new(name.clone(), cluster::Settings::default());
    let shared = Shared::new(cluster, config.web.hosts.clone());
    let (bus, mut events) = connection::start(broker(config));
    let mut closing = shared.closing.subscribe();
    let pages = tokio::spawn(pages(listener, shared.clone(), async move {
        let _ = closing.wait_for(|closing| *closing).await;
    }));
    tracing::info!("cluster {name}: broker {}, page on http://{}/", config.mqtt.broker, config.web.listen);

    // Kept by the connection, and said again whenever it is new.
    announce(config, &shared, &bus);
    service.ready(&shared.status());
    let mut tick_at = Instant::now();
    let births = config.home_assistant.births(&name);
    let (mut announce_at, mut vouch_at) = (None, None);
    let next = loop {
        let effects = tokio::select! {
            asked = service.asked() => match asked {
                Asked::End => break None,
                Asked::Reload(config) => match door.anew(*config, service) {
                    Some(next) => break Some(next),
                    None => Vec::new(),
                },
            },
            () = at(announce_at) => {
                announce_at = None;
                announce(config, &shared, &bus);
                vouch_at = Some(Instant::now() + HEARD_AFTER);
                Vec::new()
            }
            () = at(vouch_at) => {
                vouch_at = None;
                bus.publish_latest(availability(config), ONLINE.into(), None);
                Vec::new()
            }
            () = at(Some(tick_at)) => {
                service.status(shared.status());
                let mut effects = Vec::new();
                if let Some(again) = shared.jumped() {
                    tracing::info!("the clock was set: everything is told by it from now on");
                    announce(config, &shared, &bus);
                    effects = again;
                }
                let mut cluster = shared.cluster();
                effects.extend(cluster.tick(shared.clock.now()));
                tick_at = Instant::now() + cluster.pace();
                effects
            }
            event = events.recv() => match event {
                Some(Event::Message(message)) if births.contains(&message.topic) => {
                    if message.payload == ONLINE.as_bytes() && !message.retained {
                        // Everybody hears it at once; Home Assistant should not hear everybody at once.
                        announce_at = Some(Instant::now() + soon());
                    }
                    Vec::new()
                }
                Some(event) => {
                    if matches!(event, Event::Connected) {
                        vouch_at = Some(Instant::now() + HEARD_AFTER);
                    }
                    take(&shared, &bus, &event)
                }
                None => anyhow::bail!("the MQTT connection's task has ended"),
            },
        };
        if !shared.cluster().is_calm() {
            tick_at = tick_at.min(Instant::now() + cluster::TICK);
        }
        apply(&shared, &bus, effects);
    };
    if next.is_none() {
        tracing::info!("stopping");
    }
    shared.closing.send_replace(true);
    // Not a word to the broker: a restart is quicker than the will's delay, and nobody sees it.
    drop(events);
    // The pages' connections are told to end; who does not listen is left.
    let _ = tokio::time::timeout(Duration::from_secs(2), pages).await;
    Ok(next.map(|(config, door)| (config, door, bus.taken_over())))
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}

/// A random time from one to ten seconds.
fn soon() -> Duration {
    let random = RandomState::new().hash_one(0u8);
    Duration::from_millis(1000 + random % 9000)
}

fn announce(config: &Config, shared: &Shared, bus: &Bus) {
    let now = shared.cluster().wall().tell(shared.clock.now());
    for (topic, payload) in home_assistant::announce(config, now) {
        bus.publish_latest(topic, payload, None);
    }
}

fn availability(config: &Config) -> String {
    Topic::Cluster(ClusterTopic::Availability).in_cluster(&config.cluster)
}

#[expect(clippy::disallowed_methods, reason = "the aggregator has no Host; these are its certificates")]
pub(crate) fn broker(config: &Config) -> connection::Settings {
    let mqtt = &config.mqtt;
    connection::Settings {
        broker: mqtt.broker.clone(),
        client_id: format!("bramble-aggregator-{}", config.cluster),
        user: mqtt.user.clone(),
        availability: Some(availability(config)),
        filters: [
            Topic::filters_of_the_aggregator(&config.cluster),
            config.home_assistant.births(&config.cluster),
        ]
        .concat(),
        read: Arc::new(|file| std::fs::read(file).map_err(|e| format!("{file}: {e}"))),
    }
}

/// Empties all that a node left at the broker; returns how many topics there were.
///
/// # Errors
/// The broker cannot be reached or refuses something.
pub async fn forget(config: &Config, node: &Name) -> anyhow::Result<usize> {
    let node = farewell::Node {
        cluster: config.cluster.clone(),
        name: node.clone(),
        prefix: config.home_assistant.prefix.clone(),
    };
    let own = connection::Settings {
        client_id: format!("bramble-forget-{}", std::process::id()),
        // The running aggregator speaks for the cluster, and goes on to.
        availability: None,
        ..broker(config)
    };
    farewell::take_off(&node, Vec::new(), own).await.map_err(anyhow::Error::msg)
}

/// One event of the connection, with its line in the journal when it is news.
fn take(shared: &Shared, bus: &Bus, event: &Event) -> Vec<Effect> {
    let now = shared.clock.now();
    let mut cluster = shared.cluster();
    let message = match event {
        Event::Connected => {
            tracing::info!("connected to the broker");
            Message::BrokerConnected
        }
        Event::Disconnected { why, next_try } => {
            if cluster.broker().is_none_or(|broker| broker.connected || broker.why != *why) {
                tracing::warn!(
                    "no connection to the broker: {why}; next try in {:.1} s",
                    next_try.as_secs_f64()
                );
            }
            Message::BrokerGone { why }
        }
        Event::Complaints => {
            for complaint in bus.complaints().told() {
                tracing::warn!("{complaint}");
            }
            return Vec::new();
        }
        Event::Settled => return Vec::new(),
        Event::Message(message) => Message::Published {
            topic: &message.topic,
            payload: &message.payload,
            retained: message.retained,
        },
    };
    cluster.absorb(message, now)
}

fn apply(shared: &Shared, bus: &Bus, effects: Vec<Effect>) {
    for effect in effects {
        match effect {
            Effect::Publish { topic, payload, expiry } => {
                bus.publish_latest(topic.in_cluster(shared.cluster().name()), payload, expiry);
            }
            Effect::Tell { topic, payload, expiry } => {
                bus.publish_event(topic.in_cluster(shared.cluster().name()), payload, expiry);
            }
            Effect::Remove(topic) => {
                bus.publish_latest(topic.in_cluster(shared.cluster().name()), Vec::new(), None);
            }
            Effect::PageChanged => shared.changed.notify_one(),
            Effect::Log(Line { warn, text, alert, node }) => {
                let (alert, node) = (alert.as_ref().map(Name::as_str), node.as_ref().map(Name::as_str));
                match warn {
                    true => tracing::warn!(bramble_alert = alert, bramble_node = node, "{text}"),
                    false => tracing::info!(bramble_alert = alert, bramble_node = node, "{text}"),
                }
            }
        }
    }
}

/// Serves until `closed`.
async fn pages(
    listener: TcpListener,
    shared: Arc<Shared>,
    closed: impl Future<Output = ()> + Send + 'static,
) {
    let painter = tokio::spawn(paint(shared.clone()));
    // The kernel ends a connection whose reader takes nothing, so that what waits for it is bounded in time; the
    // amount is bounded because a page is only ever sent the newest snapshot.
    let listener = listener.tap_io(|stream: &mut TcpStream| {
        let _ =
            nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::TcpUserTimeout, &SLOW_READER_MS);
        let _ = stream.set_nodelay(true);
    });
    if let Err(error) = axum::serve(listener, router(shared)).with_graceful_shutdown(closed).await {
        tracing::error!("the page is no longer served: {error}");
    }
    painter.abort();
}

/// Renders a snapshot when something changed and a page is open. A large cluster is drawn less often, so that
/// drawing takes a twentieth of the time at most.
async fn paint(shared: Arc<Shared>) {
    loop {
        shared.changed.notified().await;
        if shared.snapshot.receiver_count() == 0 {
            continue;
        }
        let began = Instant::now();
        shared.snapshot.send_replace(shared.render().into());
        tokio::time::sleep(UPDATE.max(began.elapsed() * 19)).await;
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(|| file("text/html; charset=utf-8", include_str!("../page/index.html"))))
        .route("/app.js", get(|| file("text/javascript; charset=utf-8", include_str!("../page/app.js"))))
        .route("/style.css", get(|| file("text/css; charset=utf-8", include_str!("../page/style.css"))))
        .route("/icon.svg", get(|| file("image/svg+xml", include_str!("../page/icon.svg"))))
        .route("/api/v1/cluster", get(cluster_json))
        .route("/api/v1/events", get(events))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .fallback(async || (StatusCode::NOT_FOUND, "no such page\n"))
        .layer(middleware::from_fn_with_state(shared.clone(), own_names_only))
        .layer(middleware::from_fn(harden))
        .with_state(shared)
}

async fn file(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

async fn cluster_json(State(shared): State<Arc<Shared>>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], shared.render()).into_response()
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let text = prometheus::render(&shared.cluster(), shared.clock.now());
    ([(header::CONTENT_TYPE, prometheus::CONTENT_TYPE)], text).into_response()
}

/// The program answers; whether the broker does is told, but is no reason to restart us.
async fn healthz(State(shared): State<Arc<Shared>>) -> String {
    match shared.cluster().broker() {
        Some(broker) if broker.connected => "ok\n".to_owned(),
        Some(broker) => format!("ok, but no connection to the broker: {}\n", broker.why),
        None => "ok, connecting to the broker\n".to_owned(),
    }
}

/// A snapshot at once, and one whenever something changed.
async fn events(State(shared): State<Arc<Shared>>) -> Response {
    if shared.snapshot.receiver_count() >= PAGES {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many pages are open\n").into_response();
    }
    let mut snapshots = shared.snapshot.subscribe();
    snapshots.mark_unchanged();
    let closing = shared.closing.subscribe();
    let first: Arc<str> = shared.render().into();
    let stream =
        stream::unfold((Some(first), snapshots, closing), |(first, mut snapshots, mut closing)| async {
            let text = match first {
                Some(first) => first,
                None => {
                    tokio::select! {
                        _ = closing.wait_for(|closing| *closing) => return None,
                        changed = snapshots.changed() => changed.ok()?,
                    }
                    snapshots.borrow_and_update().clone()
                }
            };
            Some((
                Ok::<_, Infallible>(Sent::default().event("cluster").data(text)),
                (None, snapshots, closing),
            ))
        });
    let beat = KeepAlive::new().interval(BEAT).event(Sent::default().event("beat").data(""));
    Sse::new(stream).keep_alive(beat).into_response()
}

/// What a browser may do with our answers: run our own script, and nothing else.
async fn harden(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let policy = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Refuses requests under foreign names: a page elsewhere can point its own name at our address (DNS rebinding) and
/// would then read us as its own. An address cannot be pointed anywhere.
async fn own_names_only(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let asked = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    if asked.is_some_and(|asked| is_own(asked, &shared.hosts)) {
        return next.run(request).await;
    }
    let text =
        "this name is not served; add it to `hosts` in [web], in a file in /etc/bramble/aggregator.d\n";
    (StatusCode::MISDIRECTED_REQUEST, text).into_response()
}

fn is_own(asked: &str, hosts: &[String]) -> bool {
    let Some(authority) = asked.parse::<Authority>().ok().filter(|_| !asked.contains('@')) else {
        return false;
    };
    let name = authority.host().to_ascii_lowercase();
    let address = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(&name);
    name == "localhost"
        || name.ends_with(".localhost")
        || address.parse::<IpAddr>().is_ok()
        || hosts.contains(&name)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

    use super::*;
    use crate::{
        cluster::Settings,
        scene::{Scene, condition, state},
    };

    /// The page of `scene`, on a free port.
    async fn open(scene: Scene) -> (SocketAddr, Arc<Shared>) {
        let web = Web { listen: "127.0.0.1:0".parse().unwrap(), hosts: vec!["pi.lan".into()] };
        let listener = Door::open(&web).unwrap().listener().unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Shared::new(scene.cluster, web.hosts);
        let mut closing = shared.closing.subscribe();
        tokio::spawn(pages(listener, shared.clone(), async move {
            let _ = closing.wait_for(|closing| *closing).await;
        }));
        (address, shared)
    }

    async fn ask(address: SocketAddr, path: &str, host: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    fn scene() -> Scene {
        let mut scene = Scene::new(Settings::default());
        scene.second(&["n1", "n2"], &["n1", "n2"], &[("n1", "n2", "lossy")]);
        let mut hostile = condition("x", "raised", &[]);
        hostile["title"] = json!("</script><img src=x onerror=alert(1)>");
        scene.node("n1", "state", &state("n1", json!({}), json!([hostile])));
        scene
    }

    #[tokio::test]
    async fn every_route_answers_with_its_type_and_the_same_hard_headers() {
        let (address, _shared) = open(scene()).await;
        for (path, kind, part) in [
            ("/", "text/html", "<title>"),
            ("/app.js", "text/javascript", "EventSource"),
            ("/style.css", "text/css", "prefers-color-scheme"),
            ("/icon.svg", "image/svg+xml", "<svg"),
            ("/api/v1/cluster", "application/json", "\"from\":\"n1\""),
            ("/metrics", "application/openmetrics-text", "# EOF"),
            ("/healthz", "text/plain", "ok\n"),
        ] {
            let answer = ask(address, path, "localhost").await;
            let lower = answer.to_lowercase();
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{path}: {answer}");
            assert!(lower.contains(&format!("content-type: {kind}")), "{path}: {answer}");
            assert!(answer.contains(part), "{path}: {answer}");
            for line in [
                "content-security-policy: default-src 'self';",
                "x-content-type-options: nosniff",
                "referrer-policy: no-referrer",
            ] {
                assert!(lower.contains(line), "{path} lacks {line}");
            }
        }
        assert!(ask(address, "/none", "localhost").await.starts_with("HTTP/1.1 404"));
    }

    #[tokio::test]
    async fn foreign_names_are_refused_and_addresses_and_own_names_are_not() {
        let (address, _shared) = open(scene()).await;
        for (host, status) in [
            ("localhost:8080", 200),
            ("127.0.0.1:8080", 200),
            ("[::1]:8080", 200),
            ("[::1]", 200),
            ("192.168.1.7", 200),
            ("PI.lan", 200),
            ("pi.lan:8080", 200),
            ("evil.example", 421),
            ("localhost.evil.example", 421),
            ("localhost@evil.example", 421),
            ("127.0.0.1.evil.example:80", 421),
            ("", 421),
        ] {
            let answer = ask(address, "/api/v1/cluster", host).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{host:?}: {answer}");
        }
    }

    #[test]
    fn the_page_never_makes_markup_of_what_nodes_say() {
        let script = include_str!("../page/app.js");
        for way in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "createContextualFragment",
        ] {
            assert!(!script.contains(way), "{way}");
        }
        let page = include_str!("../page/index.html");
        for outside in ["http://", "https://", "style=", "onclick", "<style"] {
            assert!(!page.contains(outside), "{outside}: the policy forbids it");
        }
    }

    #[tokio::test]
    async fn the_stream_begins_with_a_snapshot_follows_changes_and_ends_when_we_stop() {
        let (address, shared) = open(scene()).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut lines = BufReader::new(stream).lines();
        let mut next = async || {
            while let Some(line) = lines.next_line().await.unwrap() {
                if let Some(data) = line.strip_prefix("data: ").filter(|data| !data.is_empty()) {
                    return Some(serde_json::from_str::<Value>(data).unwrap());
                }
            }
            None
        };
        let first = next().await.unwrap();
        assert_eq!(first["nodes"].as_array().unwrap().len(), 2);
        assert_eq!(first["nodes"][0]["worst"]["title"], "</script><img src=x onerror=alert(1)>");
        shared.cluster().absorb(
            Message::Published {
                topic: "bramble/home/node/n3/availability",
                payload: b"online",
                retained: false,
            },
            shared.clock.now(),
        );
        shared.changed.notify_one();
        let second = next().await.unwrap();
        assert_eq!(second["nodes"].as_array().unwrap().len(), 3);
        shared.closing.send_replace(true);
        assert_eq!(next().await, None);
    }

    #[tokio::test]
    async fn no_more_pages_than_the_bound_are_open() {
        let (address, shared) = open(scene()).await;
        let open_pages: Vec<_> = (0..PAGES).map(|_| shared.snapshot.subscribe()).collect();
        assert!(ask(address, "/api/v1/events", "localhost").await.starts_with("HTTP/1.1 503"));
        drop(open_pages);
    }
}
