//! The cluster is taken off the broker: every retained topic that the aggregator left is emptied, so that nothing shows its
//! device any more, and nodes that waited for its word go on without it. `wire::farewell` does it, as for a node.

use std::time::Duration;

use tokio::{
    sync::mpsc::Receiver,
    time::{Instant, timeout, timeout_at},
};
use wire::{
    connection::{self, Event, Settings, TakenOver},
    farewell::{self, Leaver, connected},
    report::ONLINE,
    topic::{ClusterTopic, HomeTopic, Owner, Topic},
};

use crate::{
    cluster,
    config::Config,
    notify::{Asked, Service},
    publish::home_assistant,
    serve::broker,
};

/// A broker that has told nothing for this long has told all that it had stored.
const QUIET: Duration = Duration::from_millis(1500);
/// How long a reload may take for it.
const PATIENCE: Duration = Duration::from_secs(15);

/// What is taken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// All that was said as this cluster.
    Cluster,
    /// The device's announcement below this prefix.
    Announcement,
}

/// Empties all that an aggregator with this configuration left at the broker; returns how many topics there were.
///
/// # Errors
/// One runs, or the broker cannot be reached or refuses something.
pub async fn forget_cluster(config: &Config) -> anyhow::Result<usize> {
    if speaks(config).await.map_err(anyhow::Error::msg)? {
        anyhow::bail!(
            "the aggregator of {} runs and would say everything again; stop it first: sudo systemctl disable --now bramble-aggregator",
            config.cluster
        );
    }
    take_off(config, Part::Cluster).await.map_err(anyhow::Error::msg)
}

/// Empties what was said under the cluster's name or the prefix that a reload leaves; where that fails, the journal tells.
/// Stops when something is asked meanwhile, and returns it.
///
/// Where another client used our id, an aggregator of the same name may live, and what is there may be its own: all stays.
pub async fn move_on(
    old: &Config,
    new: &Config,
    other: Option<TakenOver>,
    service: &mut Service<'_>,
) -> Option<Asked> {
    let part = left_behind(old, new)?;
    let (cluster, prefix) = (&old.cluster, &old.home_assistant.prefix);
    let what = match part {
        Part::Cluster => format!("what was said as cluster {cluster}"),
        Part::Announcement => format!("what was announced below {prefix}"),
    };
    let stays = |why: &str| {
        tracing::warn!(
            "{what} stays at the broker: {why}; with a file that still has it: bramble-aggregator --config FILE --forget-cluster"
        );
    };
    if other.is_some() {
        stays("another client uses our id there, and it may be another aggregator's; if there is none");
        return None;
    }
    tokio::select! {
        done = timeout(PATIENCE, take_off(old, part)) => {
            match done {
                Ok(Ok(found)) => tracing::info!("{what} is off the broker: {found} topics emptied"),
                Ok(Err(why)) => stays(&why),
                Err(_) => stays(&format!("it was not done within {} s", PATIENCE.as_secs())),
            }
            None
        }
        asked = service.asked() => {
            if matches!(asked, Asked::End) {
                stays("the aggregator was asked to end meanwhile");
            }
            Some(asked)
        }
    }
}

fn left_behind(old: &Config, new: &Config) -> Option<Part> {
    if old.cluster != new.cluster {
        Some(Part::Cluster)
    } else if old.home_assistant.prefix != new.home_assistant.prefix {
        Some(Part::Announcement)
    } else {
        None
    }
}

/// Whether an aggregator speaks for the cluster now. That its presence says so proves nothing, because the last will of one that
/// has just ended waits; but who runs says the cluster's state every few seconds.
async fn speaks(config: &Config) -> Result<bool, String> {
    let [presence, state] = [ClusterTopic::Availability, ClusterTopic::State]
        .map(|leaf| Topic::Cluster(leaf).in_cluster(&config.cluster));
    let (bus, mut events) = connection::start(Settings {
        client_id: format!("bramble-forget-{}", std::process::id()),
        availability: None,
        filters: vec![presence.clone(), state],
        ..broker(config)
    });
    let heard = hear(&mut events, &presence).await;
    bus.vanish().await;
    heard
}

async fn hear(events: &mut Receiver<Event>, presence: &str) -> Result<bool, String> {
    connected(events).await?;
    let mut until = Instant::now() + QUIET;
    while let Ok(event) = timeout_at(until, events.recv()).await {
        match event {
            Some(Event::Message(message)) if message.topic == presence => {
                if message.payload != ONLINE.as_bytes() {
                    return Ok(false);
                }
                until = Instant::now() + cluster::Settings::default().say_again.unsigned_abs() * 2;
            }
            Some(Event::Message(message)) if !message.retained && !message.payload.is_empty() => {
                return Ok(true);
            }
            Some(Event::Disconnected { why, .. }) => return Err(why),
            None => return Err("the connection ended".to_owned()),
            Some(_) => {}
        }
    }
    Ok(false)
}

/// Empties a part of what was said; returns how many topics the broker had. Dropped, it ends its connection.
async fn take_off(config: &Config, part: Part) -> Result<usize, String> {
    // Under the aggregator's own id: so its connection ends, and the last will of it is never said.
    let settings = Settings { availability: None, ..broker(config) };
    farewell::take_off(&Left { config, part }, Vec::new(), settings).await
}

/// What an aggregator with this configuration left.
struct Left<'a> {
    config: &'a Config,
    part: Part,
}

impl Leaver for Left<'_> {
    fn filters(&self) -> Vec<String> {
        let announced = HomeTopic::filter_of(&self.config.home_assistant.prefix, &Owner::Cluster);
        match self.part {
            Part::Cluster => vec![self.own() + "#", announced],
            Part::Announcement => vec![announced],
        }
    }

    /// Alerts have topics of their own, and are found.
    fn topics(&self) -> Vec<String> {
        let mut topics = home_assistant::topics(self.config);
        if self.part == Part::Cluster {
            let own = [ClusterTopic::Availability, ClusterTopic::Info, ClusterTopic::State];
            topics.extend(own.map(|leaf| Topic::Cluster(leaf).in_cluster(&self.config.cluster)));
        }
        topics
    }

    fn own(&self) -> String {
        let mut own = Topic::Cluster(ClusterTopic::Info).in_cluster(&self.config.cluster);
        own.truncate(own.rfind('/').map_or(0, |slash| slash + 1));
        own
    }

    fn left(&self, topic: &str) -> bool {
        match HomeTopic::parse(topic, &self.config.home_assistant.prefix, &self.config.cluster) {
            Ok(HomeTopic::Device(owner) | HomeTopic::Component(owner, ..)) => owner == Owner::Cluster,
            Ok(HomeTopic::Status) => false,
            Err(_) => self.part == Part::Cluster && topic.starts_with(&self.own()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_an_aggregator_left_is_taken_off() {
        let config = Config::of("");
        let of = |part| Left { config: &config, part };
        for (topic, with_the_cluster, with_the_announcement) in [
            ("bramble/home/cluster/info", true, false),
            ("bramble/home/cluster/alert/path-cut-n1-n2", true, false),
            ("bramble/home/cluster/of/a/later/version", true, false),
            ("homeassistant/device/bramble_cluster/bramble-home/config", true, true),
            ("homeassistant/sensor/bramble_cluster/bramble-home-of_another_version/config", true, true),
            ("bramble/home/node/n1/info", false, false),
            ("bramble/home/cluster", false, false),
            ("bramble/home-2/cluster/info", false, false),
            ("homeassistant/device/bramble_cluster/bramble-home-2/config", false, false),
            ("homeassistant/device/n1/bramble-home/config", false, false),
            ("homeassistant/status", false, false),
        ] {
            assert_eq!(of(Part::Cluster).left(topic), with_the_cluster, "{topic}");
            assert_eq!(of(Part::Announcement).left(topic), with_the_announcement, "{topic}");
        }
        for left in [Part::Cluster, Part::Announcement].map(of) {
            assert!(left.topics().iter().all(|topic| left.left(topic)), "{:?}", left.topics());
        }
        assert_eq!(of(Part::Cluster).filters()[0], "bramble/home/cluster/#");
    }

    #[tokio::test]
    async fn nothing_is_taken_off_where_another_client_used_our_id() {
        let broker = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        broker.set_nonblocking(true).unwrap();
        let port = broker.local_addr().unwrap().port();
        let old = Config::of(&format!("cluster = \"attic\"\n[mqtt]\nhost = \"127.0.0.1\"\nport = {port}"));
        let mut service = Service::start(None).unwrap();
        let other = Some(TakenOver { ago: Duration::ZERO, is_told: true });
        assert!(move_on(&old, &Config::of(""), other, &mut service).await.is_none());
        assert!(broker.accept().is_err(), "nobody came");
    }

    #[test]
    fn a_reload_leaves_behind_what_another_name_or_prefix_had() {
        let old = Config::of("");
        for (new, part) in [
            ("", None),
            ("cluster = \"attic\"", Some(Part::Cluster)),
            ("[home_assistant]\nprefix = \"ha\"", Some(Part::Announcement)),
            ("cluster = \"attic\"\n[home_assistant]\nprefix = \"ha\"", Some(Part::Cluster)),
            ("[home_assistant]\ndiscovery = \"off\"", None),
            ("[mqtt]\nhost = \"elsewhere\"", None),
        ] {
            assert_eq!(left_behind(&old, &Config::of(new)), part, "{new}");
        }
    }
}
