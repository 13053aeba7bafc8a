//! The companion's loop: send, read, tell the agent.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::net::UnixListener;
use wire::report::{Stamps, Tier};

use super::{Change, Link, Sample, Wanted, listen, settings::Watched, trusted};
use crate::{
    config::Config,
    datapath::{
        rights::{PROGRAMS, missing},
        uplink::Uplink,
    },
    host::{
        Host,
        timer::{Timer, until_next},
        watch::Ways,
    },
    notify::{Asked, Service},
    probe::{
        PROBES, Source,
        mesh::{
            link::LATE_MS,
            prober::{Prober, TURNS},
        },
    },
};

/// How long after a batch the counts are read: what is on its way in a home has arrived by then.
const SETTLE: Duration = Duration::from_millis(200);
const _: () = assert!(SETTLE.as_millis() >= TURNS.as_millis() + LATE_MS as u128);
/// How long after a setting is written it has its value, and the rest of a burst is there.
const WRITTEN: Duration = Duration::from_millis(50);
/// How often an uplink is looked for where there is none, in periods.
const UPLINK_EVERY: u32 = 5;
/// Programs that see nothing are attached again; those that see nothing within this time again are given up.
const LASTING: Duration = Duration::from_secs(60);
/// How often the counts of the other programs are read, and something is said in any case, in periods; more often where
/// reports are.
const SOURCES_EVERY: u32 = 10;
/// How often at least the other programs' sources are looked at: the firmware's driver forgets what it saw after two seconds.
const GLANCE: Duration = Duration::from_secs(1);
/// How old the counts of the other programs may be where a period is longer than a second.
const SOURCES_WITHIN: Duration = Duration::from_secs(10);
/// How often it is looked for settings that came with a module of the kernel's.
const EXTENDED: Duration = Duration::from_secs(60);
/// How often settings are compared whose writers the kernel tells: some are set otherwise, as an interface's by netlink.
const COMPARED: Duration = Duration::from_secs(10);

/// Runs until it is asked to end, or to begin anew; takes its programs away then.
///
/// # Errors
/// The socket cannot be opened. Everything else is said to the agent and tried again.
pub async fn run(config: &Config, host: &Host, service: &mut Service<'_>) -> anyhow::Result<Asked> {
    let listener = listen(&config.probe_socket(), 0o660).map_err(anyhow::Error::msg)?;
    let mut companion = Companion {
        config,
        host,
        prober: Prober::open(host, config, None),
        reattached: None,
        settings: Watched::open(host),
        extended: Instant::now(),
        compared: Instant::now(),
        changes: Vec::new(),
        sources: PROBES
            .iter()
            .filter_map(|probe| Some((probe.id, probe.kernel?)))
            .map(|(id, open)| (id, open(host).map_err(|e| format!("{e}{}", missing(host, PROGRAMS)))))
            .collect(),
        wanted: None,
        agent: None,
        ways: Ways::open(),
        ticks: 0,
        periods: 0,
        is_news: true,
        is_restated: false,
    };
    for (id, source) in &companion.sources {
        if let Err(why) = source {
            tracing::warn!("the {id} program does not run: {why}");
        }
    }
    if let Some(why) = companion.settings.blind() {
        tracing::info!("who writes a setting is not known: {why}{}", missing(host, PROGRAMS));
    }
    companion.say_tier();
    service.ready(&companion.status());
    let (mut tick, mut settle, mut written) = (Timer::new()?, Timer::new()?, Timer::new()?);
    let mut glance = Timer::new()?;
    tick.set(until_next(config.probe.period, Duration::ZERO))?;
    if config.probe.period > GLANCE {
        glance.set(GLANCE)?;
    }
    loop {
        tokio::select! {
            asked = service.asked() => return Ok(asked),
            fired = tick.fired() => {
                fired?;
                companion.tick();
                if std::mem::take(&mut companion.is_restated) {
                    service.status(&companion.status());
                }
                tick.set(companion.until_next())?;
                match companion.is_waiting() {
                    true => settle.set(SETTLE)?,
                    false => companion.tell().await,
                }
            }
            fired = settle.fired() => {
                fired?;
                companion.tell().await;
            }
            fired = glance.fired() => {
                fired?;
                companion.glance();
                glance.set(GLANCE)?;
            }
            fired = written.fired() => {
                fired?;
                companion.tell_of_settings().await;
            }
            step = companion.next(&listener) => match step {
                Step::Written => written.set(WRITTEN)?,
                step => companion.take(step),
            },
        }
    }
}

struct Companion<'a> {
    config: &'a Config,
    host: &'a Host,
    prober: Result<Prober, String>,
    /// When programs that saw nothing were last attached again.
    reattached: Option<Instant>,
    settings: Watched,
    /// When it was last looked for new ones.
    extended: Instant,
    /// When they were last compared.
    compared: Instant,
    /// Those that changed and that the agent has to hear of.
    changes: Vec<Change>,
    sources: BTreeMap<&'static str, Result<Box<dyn Source>, String>>,
    /// `None` until an agent has said whom.
    wanted: Option<Wanted>,
    agent: Option<Link>,
    /// When another uplink is to be looked for.
    ways: Ways,
    ticks: u32,
    /// Periods that this agent was there.
    periods: u32,
    /// Whether there is more than other numbers since it was told something.
    is_news: bool,
    /// Whether systemd is to be told how things are now.
    is_restated: bool,
}

/// Something that happened between two ticks.
enum Step {
    Agent(Option<Link>),
    Wanted(Wanted),
    AgentGone,
    /// Probes of peers.
    Arrived,
    /// A setting of the kernel is being written.
    Written,
}

impl Companion<'_> {
    /// Waits; dropping it loses nothing.
    async fn next(&mut self, listener: &UnixListener) -> Step {
        let agent = async {
            match &mut self.agent {
                Some(agent) => agent.receive::<Wanted>().await,
                None => std::future::pending().await,
            }
        };
        let arrived = async {
            match &self.prober {
                Ok(prober) => prober.arrived().await,
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            stream = listener.accept() => Step::Agent(match stream {
                Ok((stream, _)) => match trusted(&stream) {
                    Ok(()) => Some(Link::new(stream)),
                    Err(why) => {
                        tracing::warn!("a connection was refused: {why}");
                        None
                    }
                },
                Err(_) => None,
            }),
            wanted = agent => match wanted {
                Ok(wanted) => Step::Wanted(wanted),
                Err(_) => Step::AgentGone,
            },
            () = arrived => Step::Arrived,
            () = self.settings.written() => Step::Written,
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Agent(Some(link)) => {
                self.agent = Some(link);
                // A new agent knows nothing yet, and looks at everything itself.
                self.periods = 0;
                self.changes.clear();
            }
            Step::Agent(None) | Step::Written => {}
            // Peers are probed on: the mesh must not go blind because the agent restarts.
            Step::AgentGone => self.agent = None,
            Step::Wanted(wanted) => {
                if let Ok(prober) = &mut self.prober {
                    prober.set_peers(&wanted.peers);
                }
                self.wanted = Some(wanted);
                (self.is_news, self.is_restated) = (true, true);
            }
            Step::Arrived => {
                if let Ok(prober) = &mut self.prober {
                    prober.take();
                }
            }
        }
    }

    fn tick(&mut self) {
        self.ticks = self.ticks.wrapping_add(1);
        let is_moved = self.ways.changed();
        if is_moved || self.prober.is_err() && self.ticks.is_multiple_of(UPLINK_EVERY) {
            self.follow_uplink();
        }
        if is_moved || self.extended.elapsed() >= EXTENDED {
            self.extended = Instant::now();
            self.settings.extend(self.host);
        }
        if let Ok(prober) = &mut self.prober {
            prober.send();
        }
        if self.config.probe.period <= GLANCE {
            self.glance();
        }
    }

    /// Looks at what does not last.
    fn glance(&mut self) {
        for source in self.sources.values_mut().flatten() {
            source.look();
        }
    }

    /// Whether probes are to come.
    fn is_waiting(&self) -> bool {
        self.wanted.as_ref().is_some_and(|wanted| !wanted.peers.is_empty())
    }

    /// Opens again when there was no uplink, or when it is another one now.
    fn follow_uplink(&mut self) {
        if let Ok(prober) = &self.prober {
            // A default route that is lost takes no peer away that is reached without one.
            let now = Uplink::find(self.host, self.config.probe.uplink.as_deref())
                .or_else(|_| Uplink::find(self.host, Some(&prober.uplink().name)));
            if now.is_ok_and(|now| now == *prober.uplink()) {
                return;
            }
        }
        self.open_again(None);
    }

    /// Opens again when the programs see nothing: who took them away, or came before them, may have done so once. Numbers and
    /// counts begin anew, in a session of their own, so that nobody takes what was not seen for lost.
    fn follow_programs(&mut self) {
        let Some(why) = self.prober.as_ref().ok().and_then(Prober::blind).map(str::to_owned) else { return };
        tracing::warn!("{why}");
        let again = self.reattached.is_some_and(|at| at.elapsed() < LASTING);
        self.reattached = Some(Instant::now());
        self.open_again(again.then_some(why));
    }

    fn open_again(&mut self, unfit: Option<String>) {
        // The old one is dropped first: its port must be free.
        let before = std::mem::replace(&mut self.prober, Err(String::new())).err();
        // Nothing of it is kept: by another link, or stamped otherwise, what was fast before is no measure.
        self.prober = Prober::open(self.host, self.config, unfit);
        if let (Ok(prober), Some(wanted)) = (&mut self.prober, &self.wanted) {
            prober.set_peers(&wanted.peers);
        }
        // Said once, not at each attempt while there is none.
        if before.is_none() || self.prober.as_ref().err() != before.as_ref() {
            (self.is_news, self.is_restated) = (true, true);
            self.say_tier();
        }
    }

    fn read_sources(&mut self) -> super::Sources {
        self.sources
            .iter_mut()
            .map(|(id, source)| {
                let counts = match source {
                    Ok(source) => Ok(source.read()),
                    Err(why) => Err(why.clone()),
                };
                ((*id).to_owned(), counts)
            })
            .collect()
    }

    /// One line for `systemctl status`.
    fn status(&self) -> String {
        match &self.prober {
            Ok(prober) => {
                let peers = self.wanted.as_ref().map_or(0, |wanted| wanted.peers.len());
                let (device, tier) = (&prober.uplink().name, prober.tier());
                match &tier.attached {
                    Some(attached) => {
                        format!("{peers} peers on {device}, stamped by the kernel, by {attached}")
                    }
                    None => format!("{peers} peers on {device}, stamped in user space: {}", tier.why),
                }
            }
            Err(why) => format!("peers are not probed: {why}"),
        }
    }

    fn say_tier(&self) {
        match &self.prober {
            Ok(prober) => {
                let (device, tier) = (&prober.uplink().name, prober.tier());
                match &tier.attached {
                    Some(attached) => {
                        tracing::info!("probes on {device} are stamped by the kernel, by {attached}")
                    }
                    None => tracing::warn!("probes on {device} are stamped in user space: {}", tier.why),
                }
            }
            Err(why) => tracing::error!("peers are not probed: {why}"),
        }
    }

    /// Looks at what there is, also while no agent listens: what is lost meanwhile is not lost later.
    async fn tell(&mut self) {
        if self.settings.blind().is_some() || self.compared.elapsed() >= COMPARED {
            self.look_at_settings();
        }
        if let (Ok(prober), Some(_)) = (&mut self.prober, &self.wanted) {
            self.is_news |= prober.judge();
        }
        self.say().await;
        self.follow_programs();
    }

    /// Says how things are, when that is due or news.
    async fn say(&mut self) {
        if self.agent.is_none() {
            return;
        }
        let are_sources_due = self.periods.is_multiple_of(sources_every(self.config.probe.period));
        let is_watched = self.wanted.as_ref().is_some_and(|wanted| wanted.is_watched);
        let is_due = are_sources_due || is_watched || self.periods.is_multiple_of(self.say_every());
        self.periods = self.periods.wrapping_add(1);
        if !is_due && !self.is_news && self.changes.is_empty() {
            return;
        }
        self.is_news = false;
        let mut sample = self.sample();
        sample.sources = are_sources_due.then(|| self.read_sources());
        self.send(sample).await;
    }

    /// Says at once which settings changed, to who was told everything else before.
    async fn tell_of_settings(&mut self) {
        self.look_at_settings();
        if !self.changes.is_empty() && self.periods > 0 {
            self.send(self.sample()).await;
        }
    }

    fn look_at_settings(&mut self) {
        self.compared = Instant::now();
        let changed = self.settings.changed(self.host);
        // Who comes later looks at everything itself.
        if self.agent.is_some() {
            self.changes.extend(changed);
        }
    }

    async fn send(&mut self, mut sample: Sample) {
        sample.changes = std::mem::take(&mut self.changes);
        let Some(agent) = &mut self.agent else { return };
        // An agent that does not read must not stop the probing.
        let sent = tokio::time::timeout(SETTLE, agent.send(&sample)).await;
        if !matches!(sent, Ok(Ok(()))) {
            self.agent = None;
        }
    }

    /// How often something is said in any case, in periods: as often as the agent reports.
    fn say_every(&self) -> u32 {
        say_every(self.config.report.interval, self.config.probe.period)
    }

    /// Time until this node's turn in the next period; one that comes sooner is of this one, and turns have changed.
    fn until_next(&self) -> Duration {
        let period = self.config.probe.period;
        let wait = until_next(period, self.prober.as_ref().map_or(Duration::ZERO, Prober::turn));
        if wait < period / 2 { wait + period } else { wait }
    }

    /// Who knows of the mesh, or why nobody does.
    fn mesh(&self) -> Result<&Prober, &str> {
        match (&self.prober, &self.wanted) {
            (Ok(prober), Some(_)) => Ok(prober),
            (Ok(_), None) => Err("no peers are known yet; the broker tells of them"),
            (Err(why), _) => Err(why),
        }
    }

    /// What is seen now.
    fn sample(&self) -> Sample {
        let period = self.config.probe.period;
        let (tier, address) = match &self.prober {
            Ok(prober) => (prober.tier().clone(), Some(prober.uplink().address)),
            Err(why) => (Tier { stamps: Stamps::None, attached: None, why: why.clone() }, None),
        };
        Sample {
            tier,
            address,
            period_ms: period.as_millis() as u64,
            next_ms: (period * self.say_every()).as_millis() as u64,
            changes: Vec::new(),
            mesh: self.mesh().map(Prober::reports).map_err(str::to_owned),
            sources: None,
        }
    }
}

/// How often the counts of the other programs are read, in periods.
fn sources_every(period: Duration) -> u32 {
    (SOURCES_WITHIN.as_millis() / period.as_millis()).clamp(1, SOURCES_EVERY.into()) as u32
}

/// How often something is said in any case, in periods.
fn say_every(interval: Duration, period: Duration) -> u32 {
    (interval.as_millis() / period.as_millis()).clamp(1, SOURCES_EVERY.into()) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_speaks_as_often_as_reports_are_made_and_no_less_than_every_tenth_period() {
        let every =
            |interval, period| say_every(Duration::from_millis(interval), Duration::from_millis(period));
        assert_eq!(
            [every(10_000, 1_000), every(1_000, 1_000), every(1_000, 60_000), every(3_600_000, 500)],
            [10, 1, 1, 10]
        );
        let sources = |period| sources_every(Duration::from_millis(period));
        assert_eq!([sources(500), sources(1_000), sources(4_000), sources(60_000)], [10, 10, 2, 1]);
    }
}
