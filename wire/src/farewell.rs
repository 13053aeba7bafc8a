//! A node, or who speaks for the cluster, is taken off the broker: every retained topic that it left is emptied, so that nothing
//! shows it any more.
//!
//! What is there is found by listening, so topics of other versions and of other runs go as well; what the broker does not
//! show us is emptied where we know of it. Only topics of this one are ever emptied.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    connection::{self, Event, Settings},
    discovery,
    topic::{HomeTopic, Name, NodeTopic, Owner, Prefix, Topic},
};

/// A broker that has told nothing for this long has told all that it had stored.
const QUIET: Duration = Duration::from_millis(1500);
/// How long the broker may take to let us in, and to tell what is there.
const PATIENCE: Duration = Duration::from_secs(15);

/// Whose topics are taken off.
pub trait Leaver {
    /// What they are found by.
    fn filters(&self) -> Vec<String>;
    /// All that it may have left, by this version.
    fn topics(&self) -> Vec<String>;
    /// How those begin that it speaks on itself; the others announce it.
    fn own(&self) -> String;
    /// Whether it is one of its topics, whichever version made it.
    fn left(&self, topic: &str) -> bool;
}

/// A node that is taken off.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its cluster.
    pub cluster: Name,
    /// Its name.
    pub name: Name,
    /// Below which prefix it was announced to Home Assistant.
    pub prefix: Prefix,
}

impl Leaver for Node {
    fn topics(&self) -> Vec<String> {
        let own = NodeTopic::RETAINED.into_iter().map(|leaf| Topic::Node(self.name.clone(), leaf));
        let device = HomeTopic::Device(Owner::Node(self.name.clone())).below(&self.prefix, &self.cluster);
        own.map(|topic| topic.in_cluster(&self.cluster)).chain([device]).collect()
    }

    fn own(&self) -> String {
        Topic::filter_of_the_node(&self.cluster, &self.name).trim_end_matches('+').to_owned()
    }

    fn filters(&self) -> Vec<String> {
        let announced = HomeTopic::filter_of(&self.prefix, &Owner::Node(self.name.clone()));
        vec![Topic::filter_of_the_node(&self.cluster, &self.name), announced]
    }

    fn left(&self, topic: &str) -> bool {
        if topic.starts_with(&self.own()) {
            return true;
        }
        let owner = Owner::Node(self.name.clone());
        HomeTopic::parse(topic, &self.prefix, &self.cluster).is_ok_and(|topic| match topic {
            HomeTopic::Device(other) | HomeTopic::Component(other, ..) => other == owner,
            HomeTopic::Status => false,
        })
    }
}

/// Empties all that `who` left, and `more` that is known of it; returns how many topics the broker had. Dropped, it ends its
/// connection.
///
/// `settings` say how the broker is reached. With its own `client_id` and `availability`, its connection ends, and the last will
/// of it is never said.
///
/// # Errors
/// One cause and, where there is one, next step: the broker is away or refuses something.
pub async fn take_off(who: &impl Leaver, more: Vec<String>, mut settings: Settings) -> Result<usize, String> {
    settings.filters = who.filters();
    let (bus, mut events) = connection::start(settings);
    connected(&mut events).await?;
    let mut found = BTreeMap::new();
    let end = Instant::now() + PATIENCE;
    while let Ok(event) = timeout_at(end.min(Instant::now() + QUIET), events.recv()).await {
        match event {
            Some(Event::Message(message)) if message.retained && who.left(&message.topic) => {
                found.insert(message.topic, message.payload);
            }
            Some(Event::Disconnected { why, .. }) => return Err(why),
            None => return Err("the connection ended".to_owned()),
            Some(_) => {}
        }
    }
    // What we empty comes back to us, and the connection waits for who does not take it.
    let mut echo = JoinSet::new();
    echo.spawn(async move { while events.recv().await.is_some() {} });
    let own = who.own();
    // It may never have been announced, where nobody may announce it; all else was said or is there.
    let topics = who.topics();
    let said = topics.iter().filter(|topic| topic.starts_with(&own));
    let said: BTreeSet<String> = said.chain(&more).chain(found.keys()).cloned().collect();
    let all: BTreeSet<String> = topics.into_iter().chain(said.iter().cloned()).collect();
    let (own, announced): (Vec<String>, Vec<String>) =
        all.into_iter().partition(|topic| topic.starts_with(&own));
    let empty = |topics: Vec<String>| {
        topics.into_iter().for_each(|topic| bus.publish_latest(topic, Vec::new(), None));
    };
    // Said after it all the same: what is retained goes first.
    for (topic, removal) in
        found.iter().filter_map(|(topic, payload)| Some((topic, discovery::removal_of(payload)?)))
    {
        bus.publish_event(topic.clone(), removal, QUIET * 10);
    }
    // The entities first: while they are there, they take an empty message for a broken one.
    empty(announced);
    if !own.is_empty() {
        sleep(QUIET).await;
        empty(own);
    }
    let complaints = bus.clone();
    let all = bus.vanish().await;
    // Whatever is left of the connection ends, too: who begins anew has the same id.
    drop(echo);
    // Where it lets us see nothing, what is known was emptied all the same.
    let refused = complaints.complaints().refused;
    let kept = said.iter().find_map(|topic| Some((topic, refused.get(topic)?)));
    match (kept, all) {
        (Some((topic, why)), _) if who.left(topic) => Err(format!(
            "the broker does not let us empty {topic} ({why}); allow it in the broker's access list (acl_file)"
        )),
        (Some((topic, why)), _) => Err(format!(
            "the broker does not let us empty {topic} ({why}), which was said under another name; on the aggregator's host: \
             sudo bramble-aggregator --forget THAT-NAME"
        )),
        (None, false) => Err("the broker did not take everything within two seconds; do it again".to_owned()),
        (None, true) => Ok(found.len()),
    }
}

/// Waits until the broker has let us in.
///
/// # Errors
/// It refuses, or does not answer in time.
pub async fn connected(events: &mut mpsc::Receiver<Event>) -> Result<(), String> {
    let wait = async {
        loop {
            match events.recv().await {
                Some(Event::Connected) => return Ok(()),
                Some(Event::Disconnected { why, .. }) => return Err(why),
                Some(_) => {}
                None => return Err("the connection ended".to_owned()),
            }
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| Err("the broker does not answer".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_node_left_is_its() {
        let name = |text: &str| Name::new(text).unwrap();
        let node = Node { cluster: name("home"), name: name("n1"), prefix: Prefix::default() };
        for (topic, is_its) in [
            ("bramble/home/node/n1/state", true),
            ("bramble/home/node/n1/of-a-later-version", true),
            ("homeassistant/device/n1/bramble-home/config", true),
            ("homeassistant/sensor/n1/bramble-home-reading_load/config", true),
            ("bramble/home/node/n10/state", false),
            ("bramble/away/node/n1/state", false),
            ("bramble/home/cluster/state", false),
            ("homeassistant/device/n1/bramble-away/config", false),
            ("homeassistant/device/n1/zigbee2mqtt/config", false),
            ("homeassistant/device/n2/bramble-home/config", false),
            ("homeassistant/status", false),
        ] {
            assert_eq!(node.left(topic), is_its, "{topic}");
        }
        assert!(node.topics().iter().all(|topic| node.left(topic)));
    }
}
