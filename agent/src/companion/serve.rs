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
    datapath::rights::{PROGRAMS, missing},
    host::{
        Host,
        timer::{Timer, until_next},
        watch::Ways,
    },
    notify::{Asked, Service},
    probe::{
        PROBES, Source,
        mesh::{link::Links, prober::Prober},
    },
};

/// How long after a batch the counts are read: what is on its way in a home has arrived by then.
const SETTLE: Duration = Duration::from_millis(200);
/// How long after a setting is written it has its value, and the rest of a burst is there.
const WRITTEN: Duration = Duration::from_millis(50);
/// How often an uplink is looked for where there is none, in periods.
const UPLINK_EVERY: u32 = 5;
/// Programs that see nothing are attached again; those that see nothing within this time again are given up.
const LASTING: Duration = Duration::from_secs(60);
/// How often the counts of the other programs are read, and something is said in any case, in periods; more often where
/// reports are.
const SOURCES_EVERY: u32 = 10;
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
        links: Links::default(),
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
        said: None,
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
    tick.set(until_next(config.probe.period))?;
    loop {
        tokio::select! {
            asked = service.asked() => return Ok(asked),
            fired = tick.fired() => {
                fired?;
                companion.tick();
                service.status(&companion.status());
                tick.set(until_next(config.probe.period))?;
                match companion.is_waiting() {
                    true => settle.set(SETTLE)?,
                    false => companion.tell().await,
                }
            }
            fired = settle.fired() => {
                fired?;
                companion.tell().await;
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
    links: Links,
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
    /// The last sample that it was sent, without the counts of the other programs.
    said: Option<Sample>,
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
                (self.periods, self.said) = (0, None);
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
            let now = crate::datapath::uplink::Uplink::find(self.host, self.config.probe.uplink.as_deref());
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
        let was_open = std::mem::replace(&mut self.prober, Err(String::new())).is_ok();
        // By another link, or stamped otherwise, what was fast before is no measure.
        self.links = Links::default();
        self.prober = Prober::open(self.host, self.config, unfit);
        if let (Ok(prober), Some(wanted)) = (&mut self.prober, &self.wanted) {
            prober.set_peers(&wanted.peers);
        }
        // Said once, not at each attempt while there is none.
        if was_open || self.prober.is_ok() {
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
                match tier.attached {
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
                match tier.attached {
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
        let sample = self.sample();
        self.say(sample).await;
        self.follow_programs();
    }

    async fn say(&mut self, mut sample: Sample) {
        if self.agent.is_none() {
            return;
        }
        let are_sources_due = self.periods.is_multiple_of(SOURCES_EVERY);
        let is_watched = self.wanted.as_ref().is_some_and(|wanted| wanted.is_watched);
        let is_due = are_sources_due || is_watched || self.periods.is_multiple_of(self.say_every());
        self.periods = self.periods.wrapping_add(1);
        let is_news = self.said.as_ref().is_none_or(|said| sample.is_news_after(said));
        if !is_due && !is_news && self.changes.is_empty() {
            return;
        }
        self.said = Some(sample.clone());
        sample.sources = are_sources_due.then(|| self.read_sources());
        self.send(sample).await;
    }

    /// Says at once which settings changed, with what was said last of all else.
    async fn tell_of_settings(&mut self) {
        self.look_at_settings();
        if let (false, Some(said)) = (self.changes.is_empty(), &self.said) {
            self.send(said.clone()).await;
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

    /// What is seen now.
    fn sample(&mut self) -> Sample {
        let period = self.config.probe.period;
        if self.settings.blind().is_some() || self.compared.elapsed() >= COMPARED {
            self.look_at_settings();
        }
        let mesh = match (&mut self.prober, &self.wanted) {
            (Ok(prober), Some(_)) => Ok(self.links.judge(prober.sample(), period.as_millis() as u64)),
            (Ok(_), None) => Err("no peers are known yet; the broker tells of them".to_owned()),
            (Err(why), _) => Err(why.clone()),
        };
        Sample {
            tier: match &self.prober {
                Ok(prober) => prober.tier(),
                Err(why) => Tier { stamps: Stamps::None, attached: None, why: why.clone() },
            },
            address: self.prober.as_ref().ok().map(|p| p.uplink().address),
            period_ms: period.as_millis() as u64,
            next_ms: (period * self.say_every()).as_millis() as u64,
            changes: Vec::new(),
            mesh,
            sources: None,
        }
    }
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
    }
}
