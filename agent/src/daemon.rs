//! The agent: listens to the companion and the broker, judges, and says what it sees. Composition root; no rights needed.
//!
//! One task owns everything. It never waits for the broker: what it has to say goes into the connection's outbox. It sleeps
//! until something comes, or until the first moment at which something is to be done by the clock; each wake-up costs
//! more than most of what is done in it.

use std::{
    cell::OnceCell,
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::AsyncWriteExt,
    sync::{Semaphore, mpsc, oneshot},
};
use wire::{
    cluster::ClusterInfo,
    command::{Outcome, Request, Response},
    connection::{self, Bus, Event, Message, Settings},
    discovery::{Around, Device, HEARD_AFTER},
    payload::Payload,
    report::{
        self, Finding, FindingState, NodeInfo, NodeState, OFFLINE, ONLINE, Reading, Severity, Stamps, Status,
        Tier,
    },
    topic::{ClusterTopic, Name, NodeTopic, Owner, Topic, Verb},
};

use crate::{
    broker::{self, Connection},
    command::{self, Desk},
    companion::{self, Link, Sample, Wanted},
    config::{self, Config},
    facts::Facts,
    guard::Guard,
    home::{self, Home},
    host::{Host, clock, led, state::State, systemd, timer::Timer},
    identity::{self, Answer, Question, Settled},
    journal,
    k3s::leave,
    notify::{self, Asked, Service},
    probe::{Health, Judge, PROBES, Pace, Seen, Statement},
    random,
    record::Records,
    report::{History, Machine, Snapshot, Speaker, count},
    require,
    rhythm::Rhythm,
};

/// How often the requirements are judged again: they change when somebody changes the machine, and a pass reads some hundred
/// files.
const CHECK_EVERY: Duration = Duration::from_secs(300);
/// Wait between two attempts to reach the companion: at first, and at most.
const RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(4);
/// A companion that is so many periods late is as good as gone.
const SILENT_PERIODS: u32 = 3;
/// Who may read the snapshot at the same time, and for how long.
const READERS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(2);
/// Every node says its presence within this time, so who did not since the connection is with the broker no more.
const FORGET_AFTER: Duration = Duration::from_secs(3 * CHECK_EVERY.as_secs());
/// How long a retained presence is worth something; it is said again at each pass over the requirements.
const INFO_EXPIRY: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long others have to hear of a restart, or of another name, before it is done.
const ANNOUNCED: Duration = Duration::from_secs(3);
/// How long something that happened is worth being told.
const EVENT_EXPIRY: Duration = Duration::from_secs(3600);
/// For how long after a question the next one is waited for: `bramble mesh` asks once a second.
const WATCHED: Duration = Duration::from_secs(5);
/// How long after the first of them the broker has told of all peers.
const GATHERED: Duration = Duration::from_secs(1);
/// The file in the runtime directory that tells the next run what is raised.
const RAISED: &str = "raised-by-uptime.json";
/// How often at most something is looked at anew because somebody asked for it.
const OBEYED_EVERY: Duration = Duration::from_secs(1);
/// Peers that are listened to: more than the kernel's map holds are never probed.
const MOST_PEERS: usize = ebpf_records::mesh::MAX_PEERS as usize;

/// Runs until it is asked to end, or to begin anew. The last will speaks for it then, so that a quick restart goes unnoticed.
///
/// # Errors
/// The agent's socket cannot be opened, or there is no password for the broker's user. Everything else is a condition.
pub async fn run(config: &Config, host: &Host, service: &mut Service<'_>) -> anyhow::Result<Asked> {
    let mut settled = identity::settle(config, host)?;
    loop {
        match live(config, host, service, settled).await? {
            Ok(asked) => return Ok(asked),
            Err(known) => settled = known,
        }
    }
}

/// Runs until it is asked for something else, or until it has learned who it is, to begin anew as that.
async fn live(
    config: &Config,
    host: &Host,
    service: &mut Service<'_>,
    mut settled: Settled,
) -> anyhow::Result<Result<Asked, Settled>> {
    let listener = companion::listen(&config.agent_socket(), 0o666).map_err(anyhow::Error::msg)?;
    let (bus, mut broker) = match settled.question {
        // It judges as always, and says nothing yet.
        Some(_) => (Bus::muted(), mpsc::channel(1).1),
        None => connection::start(connection(config, &settled.id)?),
    };
    let (samples, mut companion) = mpsc::channel(4);
    let (wanted, peers_wanted) = tokio::sync::watch::channel(None);
    let (question, mut questions) = mpsc::channel(READERS);
    let answer = tokio::spawn(answer(listener, question));
    let talk = tokio::spawn(talk(config.probe_socket(), samples, peers_wanted));

    let mut agent = Agent::new(config, host, bus, settled.id, wanted);
    agent.left = settled.left;
    if settled.question.is_some() {
        agent.keep_silent("the broker has not answered yet");
    }
    agent.check();
    agent.judge(Pace::Report);
    service.ready(&agent.status());
    let mut alarm = Timer::new()?;
    let asked = loop {
        alarm.set_until(agent.next_at())?;
        tokio::select! {
            asked = service.asked() => break Ok(asked),
            answer = answer_to(&mut settled.question) => match answer {
                Answer::Waits(why) => agent.keep_silent(&why),
                Answer::Known { is_copy } => {
                    if is_copy {
                        agent.home.forget();
                    }
                    // There was one: it has answered.
                    if let Some(question) = settled.question.take() {
                        break Err(question.keep(is_copy));
                    }
                }
            },
            Some(sample) = companion.recv() => agent.take_sample(sample),
            Some(event) = broker.recv() => agent.take_event(event),
            fired = alarm.fired() => {
                fired?;
                agent.do_what_is_due(Instant::now());
            }
            () = agent.guard.happened() => agent.watch(),
            () = agent.records.keep() => {}
            Some(asked) = questions.recv() => {
                agent.is_asked();
                // Who asked may have gone.
                let _ = asked.send(serde_json::to_vec(&agent.snapshot()).expect("a snapshot is JSON"));
            }
        }
        if std::mem::take(&mut agent.is_news) {
            service.status(&agent.status());
        }
    };
    // A task that is aborted still has its socket until it was run once more, and the next run listens on the same one.
    for task in [talk, answer] {
        task.abort();
        let _ = task.await;
    }
    Ok(asked)
}

/// How the broker is reached, by this node.
///
/// # Errors
/// There is no password for the broker's user.
pub fn connection(config: &Config, id: &str) -> anyhow::Result<Settings> {
    let availability = Topic::Node(config.node.name.clone(), NodeTopic::Availability);
    let door = Host::live()?;
    Ok(Settings {
        broker: config.mqtt.broker.clone(),
        client_id: format!("bramble-{id}"),
        user: config.mqtt.login()?,
        availability: Some(availability.in_cluster(&config.node.cluster)),
        filters: filters(config),
        read: Arc::new(move |file| door.bytes(file).map_err(|e| e.to_string())),
    })
}

async fn answer_to(question: &mut Option<Question>) -> Answer {
    match question {
        Some(question) => question.answer().await,
        None => std::future::pending().await,
    }
}

/// Writes the whole snapshot to whoever connects; nothing is read from them. Who does not read keeps only others from asking,
/// and not for long.
async fn answer(listener: tokio::net::UnixListener, questions: mpsc::Sender<oneshot::Sender<Vec<u8>>>) {
    let readers = Arc::new(Semaphore::new(READERS));
    loop {
        let place = readers.clone().acquire_owned().await.expect("it is never closed");
        let Ok((mut stream, _)) = listener.accept().await else {
            // No descriptor is free: that takes a while to change.
            tokio::time::sleep(RETRY).await;
            continue;
        };
        let questions = questions.clone();
        tokio::spawn(async move {
            let (question, snapshot) = oneshot::channel();
            if questions.send(question).await.is_ok()
                && let Ok(snapshot) = snapshot.await
            {
                let _ = tokio::time::timeout(PATIENCE, stream.write_all(&snapshot)).await;
            }
            drop(place);
        });
    }
}

/// Keeps the conversation with the companion going: samples in, wanted peers out.
async fn talk(
    socket: std::path::PathBuf,
    samples: mpsc::Sender<Result<Sample, String>>,
    mut wanted: tokio::sync::watch::Receiver<Option<Wanted>>,
) {
    let shown = socket.display();
    let mut wait = RETRY;
    loop {
        let why = match Link::connect(&socket).await {
            Err(why) => {
                format!("bramble probe does not answer on {shown}: {why}; sudo systemctl start bramble-probe")
            }
            Ok(mut link) => {
                wanted.mark_changed();
                wait = RETRY;
                loop {
                    let step = tokio::select! {
                        sample = link.receive::<Sample>() => sample.map(Some),
                        Ok(()) = wanted.changed() => Ok(None),
                    };
                    let done = match step {
                        Ok(Some(sample)) => samples.send(Ok(sample)).await.map_err(|_| String::new()),
                        Ok(None) => {
                            let peers = wanted.borrow_and_update().clone();
                            match peers {
                                Some(peers) => link.send(&peers).await.map_err(|e| e.to_string()),
                                // Nobody is known yet: whom the companion probes, it probes on.
                                None => Ok(()),
                            }
                        }
                        Err(why) => Err(why.to_string()),
                    };
                    if let Err(why) = done {
                        break format!(
                            "bramble probe on {shown} ended the conversation: {why}; journalctl -u bramble-probe"
                        );
                    }
                }
            }
        };
        if samples.send(Err(why)).await.is_err() {
            return;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST_RETRY);
    }
}

/// A peer as the broker tells of it.
#[derive(Debug, Clone, Default)]
struct Peer {
    /// When the broker last told of it.
    heard: Option<Instant>,
    address: Option<Ipv4Addr>,
    probe_port: Option<u16>,
    probe_layout: Option<u8>,
    online: Option<bool>,
    version: Option<String>,
    /// `server` or `agent`.
    role: Option<String>,
    k3s_up: Option<bool>,
    id: Option<String>,
}

impl Peer {
    /// Why it and a node with this port do not hear each other's probes.
    fn hindrance(&self, own: u16) -> Option<String> {
        match (self.probe_port?, self.probe_layout?) {
            (port, _) if port != own => Some(format!(
                "its probe.port is {port}, and that of this node {own}; set the same on all nodes"
            )),
            (_, layout) if layout != ebpf_records::mesh::LAYOUT => {
                let theirs = self.version.as_deref().unwrap_or("another version");
                Some(format!(
                    "its bramble {theirs} and that of this node, {}, do not understand each other's probes; \
                     bring all nodes to the newer one",
                    env!("CARGO_PKG_VERSION")
                ))
            }
            _ => None,
        }
    }
}

struct Agent<'a> {
    config: &'a Config,
    host: &'a Host,
    state: State,
    run: State,
    bus: Bus,
    speaker: Speaker,
    machine: Machine,
    wanted: tokio::sync::watch::Sender<Option<Wanted>>,
    want_at: Option<Instant>,
    /// Until when whoever asked last may ask again.
    watched_until: Option<Instant>,
    peers: BTreeMap<Name, Peer>,
    /// Whether what is said of this node was heard on this connection: then that of others is as well.
    hears: bool,
    /// When it should have been.
    hears_by: Option<Instant>,
    /// Another node that speaks under our name: its id, and when it last did.
    namesake: Option<(String, Instant)>,
    sample: Result<Sample, String>,
    /// Whether the companion was tried to be reached; before, nothing can be told of it.
    tried: bool,
    sample_at: Instant,
    reports: Rhythm,
    check_at: Instant,
    sources: companion::Sources,
    judges: Vec<(Pace, Box<dyn Judge>)>,
    healths: Vec<Health>,
    history: History,
    /// What was stated last, and what that is with its dates.
    statements: Vec<Statement>,
    conditions: Vec<report::Condition>,
    /// Whether systemd is to be told how things are now.
    is_news: bool,
    findings: Vec<Finding>,
    /// Whether the board has a light to blink.
    has_light: bool,
    records: Records,
    guard: Guard,
    /// Since when it is there, by the steady clock, or why it is not.
    broker: Result<jiff::Timestamp, String>,
    connected: Option<Instant>,
    refused_messages: u64,
    home: Home,
    /// The clusters and names under which this node spoke before, until the broker has emptied what it said there.
    left: Vec<(Name, Name)>,
    move_out_at: Option<Instant>,
    desk: Desk,
    /// When the machine is restarted, and who asked for it.
    restart: Option<(Instant, Request)>,
    /// Whether something was raised or ended since what is raised was kept for the next run.
    is_to_be_kept: bool,
    /// When a request of this kind was last done.
    obeyed: BTreeMap<Verb, Instant>,
    /// Every reading that was ever said, without its value.
    shown: BTreeMap<String, Reading>,
    /// Who speaks for the cluster.
    aggregator: Option<ClusterInfo>,
    announce_at: Option<Instant>,
    vouch_at: Option<Instant>,
}

impl<'a> Agent<'a> {
    fn new(
        config: &'a Config,
        host: &'a Host,
        bus: Bus,
        id: String,
        wanted: tokio::sync::watch::Sender<Option<Wanted>>,
    ) -> Self {
        let (cluster, node) = (config.node.cluster.clone(), config.node.name.clone());
        let place = config.home_assistant.place(&cluster, Owner::Node(node.clone()));
        let speaker = Speaker { cluster, node, id };
        let records = Records::begin(&config.node.runtime_dir, &config.node.state_dir, &speaker, &bus);
        Self {
            config,
            host,
            state: State::new(&config.node.state_dir),
            run: State::new(&config.node.runtime_dir),
            bus,
            speaker,
            machine: Machine::default(),
            wanted,
            want_at: None,
            watched_until: None,
            peers: BTreeMap::new(),
            hears: false,
            hears_by: None,
            namesake: None,
            sample: Err("bramble probe has not been reached yet".to_owned()),
            tried: false,
            sample_at: Instant::now(),
            reports: Rhythm::new(config.report.interval, config.probe.period, Instant::now()),
            check_at: Instant::now() + CHECK_EVERY,
            sources: companion::Sources::new(),
            judges: PROBES.iter().map(|p| (p.pace, (p.judge)())).collect(),
            healths: PROBES.iter().map(|_| Health::default()).collect(),
            history: match State::new(&config.node.runtime_dir).read(RAISED) {
                Ok(Some(earlier)) => History::after(&earlier),
                _ => History::default(),
            },
            statements: Vec::new(),
            is_news: false,
            conditions: Vec::new(),
            findings: Vec::new(),
            has_light: false,
            records,
            guard: Guard::open(host, State::new(&config.node.state_dir), &config.cluster, Instant::now()),
            broker: Err(broker::NOT_YET.to_owned()),
            connected: None,
            refused_messages: 0,
            home: Home::open(State::new(&config.node.state_dir), place),
            left: Vec::new(),
            move_out_at: None,
            desk: Desk::open(State::new(&config.node.state_dir)),
            restart: None,
            is_to_be_kept: false,
            obeyed: BTreeMap::new(),
            shown: BTreeMap::new(),
            aggregator: None,
            announce_at: None,
            vouch_at: None,
        }
    }

    /// Nothing may be said before it is known who we are.
    fn keep_silent(&mut self, why: &str) {
        self.broker = Err(format!(
            "nothing is said before the broker has told whether this card was copied, because board, machine or name are \
             others than before: {why}"
        ));
    }

    /// Takes back what this node said under other names, once Home Assistant had the time to hear of the new one: entities
    /// that are still there take an empty message for a broken one.
    fn move_out(&mut self) {
        self.move_out_at = None;
        let prefix = &self.config.home_assistant.prefix;
        // Who has the name by now keeps what is said under it.
        let ours = self.left.iter().filter(|left| self.stands(left) != Some(false));
        for topic in ours.flat_map(|left| home::topics_of(left, prefix)) {
            self.bus.publish_latest(topic, Vec::new(), None);
        }
        // Of two announcements of one entity Home Assistant takes the first, and that one is gone now.
        self.announce_at = Some(Instant::now() + GATHERED);
    }

    /// What is left elsewhere is remembered until the broker has emptied it.
    fn moved_out(&mut self) {
        if self.broker.is_err() || !self.bus.idle() {
            return;
        }
        let moves = self.move_out_at.is_some();
        // What the broker did not let us empty is tried again at the next connection, as long as it stands there.
        let refused = self.bus.complaints().refused;
        let prefix = self.config.home_assistant.prefix.clone();
        let mut left = std::mem::take(&mut self.left);
        let before = left.len();
        left.retain(|name| {
            let is_refused =
                || home::topics_of(name, &prefix).iter().any(|topic| refused.contains_key(topic));
            moves || is_refused() && self.stands(name).unwrap_or(true)
        });
        self.left = left;
        if self.left.is_empty() && before > 0 {
            identity::moved_out(&self.state);
        }
        self.home.settled(|topic| !self.left.is_empty() && refused.contains_key(topic));
    }

    /// Whether what was said under another name is still there, and ours; `None` where it is not told, in another cluster.
    fn stands(&self, (cluster, node): &(Name, Name)) -> Option<bool> {
        if *cluster != self.speaker.cluster {
            return None;
        }
        let peer = self.peers.get(node);
        let is_anothers = peer.and_then(|peer| peer.id.as_ref()).is_some_and(|id| *id != self.speaker.id);
        Some(peer.is_some_and(|peer| peer.id.is_some() || peer.online.is_some()) && !is_anothers)
    }

    fn publish(&self, leaf: NodeTopic, message: &impl Payload, expiry: Option<Duration>) {
        let topic = Topic::Node(self.speaker.node.clone(), leaf).in_cluster(&self.speaker.cluster);
        self.bus.publish_latest(topic, message.to_json(), expiry);
    }

    fn say_once(&self, leaf: NodeTopic, message: &impl Payload, expiry: Duration) {
        let topic = Topic::Node(self.speaker.node.clone(), leaf).in_cluster(&self.speaker.cluster);
        self.bus.publish_event(topic, message.to_json(), expiry);
    }

    /// Notes what the broker has done meanwhile; judges the requirements when something happened to the host.
    fn watch(&mut self) {
        self.moved_out();
        if self.guard.is_due(self.host, Instant::now()) {
            self.check_and_restore();
            if self.conclude() {
                self.say();
            }
        }
    }

    /// Judges the requirements; has a loss restored, if the owner wants that.
    fn check_and_restore(&mut self) {
        self.check();
        if self.config.guard.restore {
            self.guard.restore(self.config.guard.restore_per_hour, self.host, Instant::now());
        }
    }

    /// Judges the requirements; says the findings when one changed.
    fn check(&mut self) {
        let facts = Facts::observe(self.host);
        self.machine = Machine {
            model: facts.board.model.as_ref().ok().cloned().flatten(),
            kernel: facts.kernel.release.as_ref().ok().cloned(),
            os: facts.board.os.as_ref().ok().cloned(),
            about: std::mem::take(&mut self.machine.about),
            serial: facts.board.serial.as_ref().ok().cloned().flatten(),
            revision: facts.board.revision.as_ref().ok().cloned().flatten(),
            role: role(self.host, self.config).map(str::to_owned),
            k3s_up: self.machine.k3s_up,
            newest: self.newest(),
        };
        self.has_light = led::is_there().is_ok();
        let findings: Vec<Finding> = require::judge(require::REQUIREMENTS, &facts, self.config)
            .map(|judged| Finding {
                id: judged.requirement.id.to_owned(),
                title: judged.requirement.title.to_owned(),
                state: finding_state(judged.state()),
                detail: match &judged.verdict {
                    Ok(require::Finding::Blocked { what, next }) => format!("{what}; {next}"),
                    _ => judged.evidence(),
                },
            })
            .collect();
        self.guard.compare(self.host, &findings, Instant::now());
        if findings != self.findings {
            self.records.judged(&self.speaker, &self.bus, &self.findings, &findings);
            self.findings = findings;
            self.is_news = true;
            self.publish(
                NodeTopic::Findings,
                &self.speaker.findings(clock::now(), self.findings.clone()),
                None,
            );
        }
        self.look(Pace::Check);
    }

    fn take_sample(&mut self, sample: Result<Sample, String>) {
        let address = |s: &Result<Sample, String>| s.as_ref().ok().and_then(|s| s.address);
        let moved = address(&sample) != address(&self.sample);
        if self.tried && self.sample.is_err() && sample.is_ok() {
            self.guard.look_again(Instant::now());
        }
        self.sample = sample;
        self.tried = true;
        if let Some(sources) = self.sample.as_mut().ok().and_then(|s| s.sources.take()) {
            self.sources = sources;
        }
        self.sample_at = Instant::now();
        if let Ok(sample) = &mut self.sample {
            self.guard.hear(std::mem::take(&mut sample.changes), self.sample_at);
        }
        if moved && address(&self.sample).is_some() {
            self.introduce();
        }
        let next = self.sample.as_ref().map(|sample| Duration::from_millis(sample.next_ms));
        if next.is_ok_and(|next| self.reports.goes_with(self.sample_at, next)) {
            self.look(Pace::Sample);
            self.report();
        } else if self.judge(Pace::Sample) {
            self.say();
        }
    }

    /// Lets the probes of this pace judge, and dates what they say; whether a status changed.
    fn judge(&mut self, pace: Pace) -> bool {
        let ways_changed = self.look(pace);
        self.conclude() || ways_changed
    }

    /// Lets the probes of this pace judge; whether a way of the mesh changed.
    fn look(&mut self, pace: Pace) -> bool {
        let online =
            self.peers.iter().filter_map(|(name, peer)| Some((name.clone(), peer.online?))).collect();
        let seen = Seen {
            host: self.host,
            chips: &OnceCell::new(),
            companion: self.sample.as_ref().map_err(String::as_str),
            sources: &self.sources,
            online: &online,
            hindered: &self.hindered(),
            node: &self.speaker.node,
            state: &self.state,
            run: &self.run,
            now: Instant::now(),
            uptime: clock::uptime(),
            wall: clock::now(),
        };
        let mut ways_changed = false;
        for ((own_pace, judge), health) in self.judges.iter_mut().zip(&mut self.healths) {
            if *own_pace == pace {
                let before = std::mem::replace(health, judge.judge(&seen));
                ways_changed |= ways(&before) != ways(health);
            }
        }
        ways_changed
    }

    /// Why peers and this node cannot probe each other, as far as what they say of themselves tells it.
    fn hindered(&self) -> BTreeMap<Name, String> {
        let hindered =
            |(name, peer): (&Name, &Peer)| Some((name.clone(), peer.hindrance(self.config.probe.port)?));
        self.peers.iter().filter_map(hindered).collect()
    }

    /// Dates what there is to be said; whether it is another thing than before.
    fn conclude(&mut self) -> bool {
        let about: BTreeMap<_, _> = self.healths.iter().flat_map(|h| h.about.clone()).collect();
        let k3s_up = self.healths.iter().flat_map(|h| &h.readings).find(|(id, _)| id.as_str() == "k3s-up");
        let k3s_up = k3s_up.and_then(|(_, reading)| reading.value).map(|value| value > 0.0);
        if about != self.machine.about || k3s_up != self.machine.k3s_up {
            (self.machine.about, self.machine.k3s_up) = (about, k3s_up);
            self.introduce();
        }
        let mut statements = vec![self.companion(), self.stamps(), self.name()];
        statements.extend(self.connection().statements());
        statements.extend(self.guard.statements());
        statements.extend(self.healths.iter().flat_map(|h| h.statements.iter().cloned()));
        let (steady, now) = (clock::steady(), clock::now());
        let was_set = self.history.was_set(steady, now);
        if statements == self.statements && !self.history.is_over() && !was_set {
            return false;
        }
        self.statements.clone_from(&statements);
        let dated = self.history.date(statements, steady);
        self.is_news = true;
        journal::tell(&self.conditions, &dated.conditions);
        self.conditions = dated.conditions;
        self.is_to_be_kept |= !dated.events.is_empty();
        for (event_type, condition) in dated.events {
            let event = self.speaker.event(now, event_type, condition);
            self.say_once(NodeTopic::Event, &event, EVENT_EXPIRY);
        }
        self.records.changed(&self.speaker, &self.bus, &dated.changed);
        !dated.changed.is_empty() || was_set
    }

    fn companion(&self) -> Statement {
        let (status, evidence) = match &self.sample {
            Ok(_) => (Status::Clear, "bramble probe answers".to_owned()),
            Err(why) if !self.tried => (Status::Unknown, why.clone()),
            Err(why) => (Status::Raised, why.clone()),
        };
        Statement {
            id: "companion",
            subject: None,
            title: "Companion does not answer",
            status,
            severity: Severity::Critical,
            depends_on: &[],
            evidence,
        }
    }

    fn stamps(&self) -> Statement {
        let tier = self.tier();
        let (status, evidence) = match tier.stamps {
            Stamps::Kernel => (Status::Clear, "round trips are stamped by the kernel".to_owned()),
            Stamps::None => (Status::Unknown, tier.why),
            // What the owner chose is no fault; every report says it all the same, in the tier.
            _ if self.config.probe.stamps == config::Stamps::User => (Status::Clear, tier.why),
            Stamps::User | Stamps::Mixed => (Status::Raised, tier.why),
        };
        Statement {
            id: "user-space-stamps",
            subject: None,
            title: "Round trips include scheduling noise",
            status,
            severity: Severity::Warning,
            depends_on: &["companion"],
            evidence,
        }
    }

    fn connection(&self) -> Connection<'_> {
        Connection {
            away: self.broker.as_ref().err().map(String::as_str),
            complaints: self.bus.complaints(),
            is_deaf: !self.hears && self.hears_by.is_none(),
            taken_over: self.bus.taken_over(),
            renewal: self.bus.renewal(),
            spool: self.records.why(),
        }
    }

    fn name(&self) -> Statement {
        let (status, evidence) = match &self.namesake {
            Some((id, _)) => (
                Status::Raised,
                format!("a node with id {id} is called {} too; was this card cloned?", self.speaker.node),
            ),
            None => (Status::Clear, "nobody else uses it".to_owned()),
        };
        Statement {
            id: "name-taken",
            subject: None,
            title: "Another node has the same name",
            status,
            severity: Severity::Critical,
            depends_on: &[],
            evidence,
        }
    }

    fn tier(&self) -> Tier {
        match &self.sample {
            Ok(sample) => sample.tier.clone(),
            Err(why) => Tier { stamps: Stamps::None, attached: None, why: why.clone() },
        }
    }

    /// One line for `systemctl status`.
    fn status(&self) -> String {
        notify::worst(&self.conditions, &self.findings)
    }

    fn info(&self) -> NodeInfo {
        let address = self.sample.as_ref().ok().and_then(|s| s.address);
        self.speaker.info(clock::now(), address, self.config.probe.port, &self.machine)
    }

    fn state(&self, conditions: Vec<report::Condition>) -> NodeState {
        let (findings, refused) = (&self.findings, self.refused_messages);
        self.speaker.state(clock::now(), self.tier(), &self.healths, conditions, findings, refused)
    }

    fn mesh(&self) -> report::MeshRow {
        let times = [self.config.probe.period, self.config.report.interval];
        self.speaker.mesh(clock::now(), self.tier(), times, &self.healths)
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            info: self.info(),
            state: self.state(self.conditions.clone()),
            mesh: self.mesh(),
            findings: self.speaker.findings(clock::now(), self.findings.clone()),
            broker_since: self.broker.as_ref().ok().map(|since| self.history.tell(*since)),
            broker_why: self.broker.as_ref().err().cloned(),
        }
    }

    /// Keeps what is raised, and was told: over a restart it is no news, and its end meanwhile is. Without the file all is told again.
    fn keep_raised(&mut self) {
        if !self.is_to_be_kept || self.broker.is_err() || !self.bus.idle() {
            return;
        }
        self.is_to_be_kept = false;
        if let Err(why) = self.run.write(RAISED, &self.history.raised()) {
            tracing::debug!("what is raised cannot be kept for the next run: {why}");
        }
    }

    /// The regular report.
    fn report(&mut self) {
        let gone = self.config.report.interval * 3;
        self.namesake.take_if(|(_, spoke)| spoke.elapsed() > gone);
        if self.namesake.is_some() {
            // It overwrote our presence, and has to learn of us as we did of it.
            self.introduce();
        }
        self.moved_out();
        self.keep_raised();
        self.judge(Pace::Report);
        self.say();
    }

    /// Says who we are and where peers reach us.
    fn introduce(&self) {
        self.publish(NodeTopic::Info, &self.info(), Some(INFO_EXPIRY));
    }

    /// When the companion's silence begins to mean something.
    fn silent_at(&self) -> Option<Instant> {
        let late = self.config.probe.period * SILENT_PERIODS;
        match &self.sample {
            Ok(sample) => Some(self.sample_at + Duration::from_millis(sample.next_ms) + late),
            Err(_) => (!self.tried).then(|| self.sample_at + late),
        }
    }

    /// When something is to be done, whatever comes or does not come before.
    fn next_at(&self) -> Instant {
        let sometimes = [
            self.guard.look_at(),
            self.silent_at(),
            self.want_at,
            self.watched_until,
            self.announce_at,
            self.vouch_at,
            self.hears_by,
            self.move_out_at,
            self.restart.as_ref().map(|(at, _)| *at),
        ];
        let always = self.reports.due().min(self.check_at);
        sometimes.into_iter().flatten().fold(always, Instant::min)
    }

    fn do_what_is_due(&mut self, now: Instant) {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if is_due(self.silent_at()) {
            self.companion_is_silent();
        }
        if is_due(self.want_at) {
            self.want();
        }
        if is_due(self.watched_until) {
            self.watched_until = None;
            self.tell_whether_watched();
        }
        if is_due(self.announce_at) {
            self.announce();
        }
        if is_due(self.vouch_at) {
            self.vouch();
        }
        if is_due(self.hears_by) {
            self.expected_to_hear();
        }
        if is_due(self.move_out_at) {
            self.move_out();
        }
        if is_due(self.restart.as_ref().map(|(at, _)| *at)) {
            self.restart();
        }
        if is_due(self.guard.look_at()) {
            self.watch();
        }
        if self.check_at <= now {
            self.check_at = now + CHECK_EVERY;
            self.check_and_restore();
            self.introduce();
            // Also when a restart that was asked for has not come; one that is still to come has been announced.
            if self.restart.is_none() {
                self.be(ONLINE);
            }
            self.forget_peers(now);
        }
        if self.reports.is_due(now) {
            self.report();
        }
    }

    /// What we said of ourselves should have come back by now.
    fn expected_to_hear(&mut self) {
        self.hears_by = None;
        if self.hears || self.broker.is_err() || !self.bus.complaints().told().is_empty() {
            return;
        }
        tracing::warn!(bramble_condition = "broker", "{}", broker::DEAF);
        if self.judge(Pace::Sample) {
            self.say();
        }
    }

    fn companion_is_silent(&mut self) {
        self.sample = Err("bramble probe is connected and says nothing".to_owned());
        self.tried = true;
        self.judge(Pace::Sample);
        self.say();
    }

    /// Says numbers and health now. Not without the broker: it would be the first that is heard when it is back, and says
    /// that it is away.
    fn say(&mut self) {
        if self.broker.is_err() {
            return;
        }
        let expiry = Some(self.config.report.interval * 3);
        // Lent for as long as it takes to say them.
        let conditions = std::mem::take(&mut self.conditions);
        let mut state = self.state(conditions);
        // First what there is, then its values: a value that is gone must not be looked for.
        self.discover(&state);
        // And one that is announced must be there: its template would fail.
        for (id, reading) in &state.readings {
            if !self.shown.contains_key(id) {
                self.shown.insert(id.clone(), Reading { value: None, ..reading.clone() });
            }
        }
        for id in self.home.missing_readings() {
            // What only an earlier run has seen is known by its name alone.
            let unseen = || Reading {
                title: id.clone(),
                value: None,
                unit: report::Unit::Count,
                kind: report::Kind::Gauge,
                rank: report::Rank::Hidden,
            };
            let reading = self.shown.get(&id).cloned().unwrap_or_else(unseen);
            state.readings.entry(id).or_insert(reading);
        }
        self.publish(NodeTopic::State, &state, expiry);
        self.conditions = state.conditions;
        self.publish(NodeTopic::Mesh, &self.mesh(), expiry);
    }

    /// Tells Home Assistant what there is, when that changed: the numbers themselves are not in it.
    fn discover(&mut self, state: &NodeState) {
        let around = Around {
            interval: self.config.report.interval,
            verbs: Verb::ALL.into_iter().filter(|verb| self.can(*verb)).collect(),
            hub: self.aggregator.as_ref().and_then(|aggregator| aggregator.device.clone()),
            page: self.aggregator.as_ref().and_then(|aggregator| aggregator.page.clone()),
        };
        let info = self.info();
        let shape = Device::shape_of_node(&info, state, &around);
        let device = || Device::of_node(&info, state, &around);
        let removal = self.home.removal();
        let publications = self.home.announce(shape, device, Instant::now());
        if let Some((topic, payload)) = removal.filter(|_| !publications.is_empty()) {
            self.bus.publish_event(topic, payload, EVENT_EXPIRY);
        }
        for (topic, payload) in publications {
            self.bus.publish_latest(topic, payload, None);
            self.vouch_at = Some(Instant::now() + HEARD_AFTER);
        }
    }

    /// Whether the owner lets it be asked for, and the machine has what it takes.
    fn can(&self, verb: Verb) -> bool {
        self.config.commands.allows(verb) && (verb != Verb::Identify || self.has_light)
    }

    /// Says that this node is there, and who it is: for who heard of it a moment ago, and has only now begun to listen.
    fn vouch(&mut self) {
        self.vouch_at = None;
        self.introduce();
        if self.restart.is_none() {
            self.be(ONLINE);
        }
    }

    /// Home Assistant has started: everything once more.
    fn announce(&mut self) {
        self.announce_at = None;
        self.home.begin_anew(Instant::now());
        self.introduce();
        self.say();
    }

    fn take_event(&mut self, event: Event) {
        match event {
            Event::Connected => {
                tracing::info!(
                    bramble_condition = "broker",
                    "connected to the broker at {}",
                    self.config.mqtt.broker
                );
                self.broker = Ok(clock::steady());
                identity::told(&self.state);
                self.home.begin_anew(Instant::now());
                self.connected = Some(Instant::now());
                (self.hears, self.hears_by) = (false, Some(Instant::now() + ANNOUNCED));
                self.records.connected(&self.speaker, &self.bus);
                self.introduce();
                self.want_soon();
                self.judge(Pace::Sample);
                self.say();
                self.move_out_at = (!self.left.is_empty()).then(|| Instant::now() + ANNOUNCED);
            }
            Event::Disconnected { why, next_try } => {
                // One line when it breaks or breaks in another way, not one for each attempt.
                if self.broker.as_ref().err() != Some(&why) {
                    tracing::warn!(
                        bramble_condition = "broker",
                        "not connected to the broker: {why}; next attempt in {next_try:.1?}"
                    );
                }
                self.broker = Err(why);
                self.connected = None;
                for peer in self.peers.values_mut() {
                    peer.online = None;
                }
                self.judge(Pace::Sample);
            }
            Event::Complaints => {
                for complaint in self.bus.complaints().told() {
                    tracing::warn!(bramble_condition = "broker", "{complaint}");
                }
                if self.judge(Pace::Sample) {
                    self.say();
                }
            }
            Event::Settled => self.records.settled(&self.speaker, &self.bus),
            Event::Message(Message { topic, payload, retained, .. }) => {
                if let Err(why) = self.take_message(&topic, &payload, retained) {
                    self.refused_messages += 1;
                    tracing::debug!(topic, "message refused: {why}");
                }
            }
        }
    }

    fn take_message(&mut self, topic: &str, payload: &[u8], retained: bool) -> Result<(), String> {
        if self.config.home_assistant.births(&self.speaker.cluster).iter().any(|birth| birth == topic) {
            if payload == ONLINE.as_bytes() && !retained {
                self.announce_soon();
            }
            return Ok(());
        }
        match Topic::parse(topic, &self.speaker.cluster).map_err(|e| e.to_string())? {
            Topic::Node(node, NodeTopic::Request(verb)) if node == self.speaker.node => {
                self.take_request(verb, payload, retained);
                Ok(())
            }
            Topic::Node(node, leaf) if node == self.speaker.node => self.take_own(leaf, payload, retained),
            Topic::Node(node, NodeTopic::Info) if payload.is_empty() => {
                self.peers.remove(&node);
                self.want_soon();
                Ok(())
            }
            Topic::Node(node, NodeTopic::Info) => {
                let info = self.read_info(&node, payload)?;
                let peer = self.peer(node.clone())?;
                peer.address = info.address.filter(probeable);
                peer.probe_port = Some(info.probe_port);
                peer.probe_layout = Some(info.probe_layout);
                peer.version = Some(info.version);
                peer.role = info.role;
                peer.k3s_up = info.k3s_up;
                peer.id = Some(info.id);
                self.want_soon();
                self.reconsider(&node);
                Ok(())
            }
            Topic::Node(node, NodeTopic::Availability) => {
                let online = match payload {
                    b"" => None,
                    word if word == ONLINE.as_bytes() => Some(true),
                    word if word == OFFLINE.as_bytes() => Some(false),
                    _ => return Err("neither online nor offline".to_owned()),
                };
                let before = std::mem::replace(&mut self.peer(node.clone())?.online, online);
                if before != online {
                    self.reconsider(&node);
                }
                Ok(())
            }
            Topic::Cluster(ClusterTopic::Info) => {
                self.aggregator = match payload {
                    b"" => None,
                    payload => Some(self.read_cluster_info(payload)?),
                };
                // All nodes hear it at once.
                self.announce_soon();
                Ok(())
            }
            _ => Err("not a topic that was subscribed to".to_owned()),
        }
    }

    /// Judges anew where something is known now that is in the reason why a peer is not heard.
    fn reconsider(&mut self, peer: &Name) {
        let is_cut = |health: &Health| {
            health.links.get(peer).is_some_and(|link| link.incoming.state == report::WayState::Cut)
        };
        if self.healths.iter().any(is_cut) && self.judge(Pace::Sample) {
            self.say();
        }
    }

    /// Something was said in our name: by us, by a clone, by our last will of before, or by who forgets nodes.
    fn take_own(&mut self, leaf: NodeTopic, payload: &[u8], retained: bool) -> Result<(), String> {
        self.hears |= leaf == NodeTopic::Info;
        match leaf {
            // Somebody tidied up: we are here.
            NodeTopic::Info if payload.is_empty() => self.introduce(),
            // Stored, it may be of an earlier installation on this name, and ours replaces it; a living namesake repeats it.
            NodeTopic::Info if !retained => {
                let info = self.read_info(&self.speaker.node, payload)?;
                if info.id != self.speaker.id {
                    self.namesake = Some((info.id, Instant::now()));
                }
            }
            // The will of our last connection fired late: we are here.
            NodeTopic::Availability if payload != ONLINE.as_bytes() && self.restart.is_none() => {
                self.be(ONLINE)
            }
            _ => {}
        }
        Ok(())
    }

    /// Does what was asked, or not, and answers.
    fn take_request(&mut self, verb: Verb, payload: &[u8], retained: bool) {
        let allowed = self.config.commands.allows(verb);
        let taken = self.desk.take(verb, payload, retained, allowed, clock::now());
        let (request, done) = match taken {
            Ok(request) if verb == Verb::Reboot && self.restart.is_some() => {
                (request, Err("it has been asked for already, and begins within seconds".to_owned()))
            }
            Ok(request) if verb == Verb::Reboot => match self.may_restart(|_| false) {
                Ok(()) => return self.restart_soon(request),
                Err(why) => (request, Err(why)),
            },
            Ok(request) => (request, self.obey(verb)),
            Err((request, why)) => (request, Err(why)),
        };
        self.answer(verb, request, done);
    }

    fn answer(&self, verb: Verb, request: Request, done: Result<serde_json::Value, String>) {
        match &done {
            Ok(_) if verb.acts() => tracing::warn!("{verb}: asked over MQTT, and begun"),
            Ok(_) => {}
            Err(why) => tracing::warn!("{verb}: asked over MQTT, and refused: {why}"),
        }
        let response = Response {
            header: self.speaker.header(clock::now()),
            status: if done.is_ok() { Outcome::Ok } else { Outcome::Error },
            data: done.as_ref().ok().cloned().unwrap_or_default(),
            error: done.err(),
            transaction: request.transaction,
        };
        self.say_once(NodeTopic::Response(verb), &response, command::ANSWER_EXPIRY);
    }

    fn obey(&mut self, verb: Verb) -> Result<serde_json::Value, String> {
        // Whoever may publish may ask, as often as he likes: who asks too often is told what was seen last.
        let is_fresh = self.obeyed.get(&verb).is_some_and(|at| at.elapsed() < OBEYED_EVERY);
        if !is_fresh {
            self.obeyed.insert(verb, Instant::now());
        }
        match verb {
            Verb::Check => {
                if !is_fresh {
                    self.check();
                    self.conclude();
                    self.say();
                }
                Ok(serde_json::json!({"findings": count(&self.findings)}))
            }
            Verb::Refresh if is_fresh => Ok(serde_json::Value::Null),
            Verb::Refresh => {
                self.home.begin_anew(Instant::now());
                self.introduce();
                self.judge(Pace::Report);
                self.say();
                Ok(serde_json::Value::Null)
            }
            Verb::Identify if is_fresh => Ok(serde_json::json!({"seconds": 15})),
            Verb::Identify => {
                led::is_there().map_err(|none| none.to_string())?;
                systemd::start_obey("identify").map(|()| serde_json::json!({"seconds": 15}))
            }
            Verb::Apply if self.host.present("/etc/bramble/prepare") != Ok(true) => {
                Err("the plan is carried out here only while /etc/bramble/prepare exists: sudo touch /etc/bramble/prepare".to_owned())
            }
            Verb::Apply => systemd::start_prepare().map(|()| serde_json::Value::Null),
            Verb::Reboot => systemd::start_obey("reboot").map(|()| serde_json::Value::Null),
        }
    }

    /// Whether this node may be restarted, if some of the others give way.
    fn may_restart(&self, gives_way: impl Fn(&Name) -> bool) -> Result<(), String> {
        // Who has not joined yet is of no majority, whatever it is to become.
        let server = leave::unit_file(self.host) == Some("k3s.service");
        let others = self.peers.iter().map(|(name, peer)| command::Other {
            name,
            online: peer.online,
            server: peer.role.as_deref() == Some("server"),
            k3s_up: peer.k3s_up,
            gives_way: gives_way(name),
        });
        let since = |wait| self.connected.is_some_and(|at| at.elapsed() >= wait);
        let told = if !since(GATHERED) || !self.hears && self.hears_by.is_some() {
            Err("the broker has not told yet who else is there; ask again in a moment")
        } else if self.bus.complaints().retains_nothing {
            Err(
                "the broker keeps no retained messages, so it is not known who is down; set retain_available true in its configuration",
            )
        } else if !self.hears {
            Err("the broker does not tell who else is there; why, here: sudo bramble status")
        } else {
            Ok(())
        };
        command::may_restart(server, told, &others.collect::<Vec<_>>())
    }

    /// Says first that this node goes: who is asked at the same moment hears it, and of two the first by name goes.
    fn restart_soon(&mut self, request: Request) {
        self.be(OFFLINE);
        self.vouch_at = None;
        self.restart = Some((Instant::now() + ANNOUNCED, request));
    }

    fn restart(&mut self) {
        let Some((_, request)) = self.restart.take() else { return };
        let own = self.speaker.node.clone();
        let done = self.may_restart(|other| *other > own).and_then(|()| self.obey(Verb::Reboot));
        if done.is_err() {
            self.be(ONLINE);
        }
        self.answer(Verb::Reboot, request, done);
    }

    fn be(&self, word: &str) {
        let topic = Topic::Node(self.speaker.node.clone(), NodeTopic::Availability);
        self.bus.publish_latest(topic.in_cluster(&self.speaker.cluster), word.into(), None);
    }

    fn read_info(&self, node: &Name, payload: &[u8]) -> Result<NodeInfo, String> {
        let info: NodeInfo = report::read(payload, &self.speaker.cluster, node).map_err(|e| e.to_string())?;
        match info.is_plausible() {
            true => Ok(info),
            false => Err("it holds what no node says".to_owned()),
        }
    }

    fn read_cluster_info(&self, payload: &[u8]) -> Result<ClusterInfo, String> {
        let info: ClusterInfo = report::read_versioned(payload).map_err(|e| e.to_string())?;
        match info.cluster == self.speaker.cluster {
            true if info.is_plausible() => Ok(info),
            true => Err("it holds what no aggregator says".to_owned()),
            false => Err(format!("the message says it is from {}, the topic says otherwise", info.cluster)),
        }
    }

    /// Announces everything again in a while: all nodes hear the reason at once, and Home Assistant should not hear them so.
    fn announce_soon(&mut self) {
        let wait = Duration::from_millis(1000 + u64::from(random::u32() % 9000));
        self.announce_at.get_or_insert(Instant::now() + wait);
    }

    /// The newest version among us and our peers.
    fn newest(&self) -> Option<String> {
        let own = env!("CARGO_PKG_VERSION").to_owned();
        self.peers.values().filter_map(|peer| peer.version.clone()).chain([own]).max_by_key(|v| numbers(v))
    }

    fn peer(&mut self, node: Name) -> Result<&mut Peer, String> {
        if self.peers.len() >= MOST_PEERS && !self.peers.contains_key(&node) {
            return Err(format!("more than {MOST_PEERS} nodes; this one is not listened to"));
        }
        let peer = self.peers.entry(node).or_default();
        peer.heard = Some(Instant::now());
        Ok(peer)
    }

    /// Forgets the peers that the broker does not know any more. A broker that lost its memory gets the time in which every
    /// living node repeats itself.
    fn forget_peers(&mut self, now: Instant) {
        let Some(connected) = self.connected.filter(|at| now.duration_since(*at) >= FORGET_AFTER) else {
            return;
        };
        let before = self.peers.len();
        self.peers.retain(|_, peer| {
            peer.heard.is_some_and(|at| at >= connected && now.duration_since(at) < INFO_EXPIRY)
        });
        if self.peers.len() != before {
            tracing::info!(
                "{} nodes are forgotten: the broker does not know them any more",
                before - self.peers.len()
            );
            self.want_soon();
        }
    }

    /// Has the companion told whom to probe, once the broker's other messages of the same moment are here: after a connection it
    /// tells of all peers one by one, and those that are probed already must not be dropped meanwhile.
    fn want_soon(&mut self) {
        self.want_at.get_or_insert(Instant::now() + GATHERED);
    }

    /// Somebody reads what there is, and may go on reading: the numbers are to be new.
    fn is_asked(&mut self) {
        let was_watched = self.watched_until.replace(Instant::now() + WATCHED).is_some();
        if !was_watched {
            self.tell_whether_watched();
        }
    }

    fn tell_whether_watched(&self) {
        let is_watched = self.watched_until.is_some();
        self.wanted.send_if_modified(|wanted| {
            // Whom to probe is said by who knows it.
            wanted
                .as_mut()
                .is_some_and(|wanted| std::mem::replace(&mut wanted.is_watched, is_watched) != is_watched)
        });
    }

    /// Tells the companion whom to probe, if that changed.
    fn want(&mut self) {
        self.want_at = None;
        let peers =
            self.peers.iter().filter_map(|(name, peer)| Some((name.clone(), peer.address?))).collect();
        let is_watched = self.watched_until.is_some();
        self.wanted.send_if_modified(|wanted| {
            let now = Some(Wanted { peers, is_watched });
            let changed = *wanted != now;
            *wanted = now;
            changed
        });
    }
}

/// What this node is in its cluster: as K3s' unit says, where there is one, and otherwise as its configuration does.
fn role(host: &Host, config: &Config) -> Option<&'static str> {
    match leave::unit_file(host) {
        Some("k3s.service") => Some("server"),
        Some(_) => Some("agent"),
        None => config.cluster.k3s.then(|| config.cluster.role.as_str()),
    }
}

fn filters(config: &Config) -> Vec<String> {
    let cluster = &config.node.cluster;
    let mut filters = Topic::filters_of_the_agent(cluster, &config.node.name);
    filters.extend(config.home_assistant.births(cluster));
    filters
}

/// A version's numbers, by which it is compared.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// Addresses that a node can have on a network; anything else would make us send to where no node is.
fn probeable(address: &Ipv4Addr) -> bool {
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || address.is_broadcast())
}

/// What makes a report urgent beside the conditions: a way of the mesh that changed its state.
fn ways(health: &Health) -> Vec<(&Name, report::WayState, report::WayState)> {
    health.links.iter().map(|(name, link)| (name, link.out.state, link.incoming.state)).collect()
}

fn finding_state(state: require::State) -> FindingState {
    match state {
        require::State::Met => FindingState::Met,
        require::State::Unmet => FindingState::Unmet,
        require::State::Waiting => FindingState::Waiting,
        require::State::Blocked => FindingState::Blocked,
        require::State::NotNeeded => FindingState::NotNeeded,
        require::State::Unknown => FindingState::Unknown,
    }
}
