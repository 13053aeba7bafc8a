//! The cluster's device for Home Assistant, and who announces it.
//!
//! The aggregator keeps nothing on disk, so whatever another mode may have announced is emptied at every connection: a few
//! topics more, and nothing of them is left. Another prefix, or another name of the cluster, is `farewell`'s.

use jiff::Timestamp;
use wire::{
    cluster::ClusterInfo,
    discovery::{Announced, Device, HomeAssistant, Mode, Publication, cluster_device},
    payload::Payload,
    report::VERSION,
    topic::{ClusterTopic, Name, Owner, Topic},
};

use crate::{cluster, config::Config};

const OWN_VERSION: &str = env!("CARGO_PKG_VERSION");
/// Those in which something is announced.
const MODES: [Mode; 2] = [Mode::Device, Mode::Component];

/// What is said at every connection, and when Home Assistant has started: retained, the device first.
pub fn announce(config: &Config, now: Timestamp) -> Vec<Publication> {
    let mode = config.home_assistant.discovery;
    let others = MODES.into_iter().filter(|other| *other != mode);
    let mut publications: Vec<Publication> =
        others.flat_map(|other| announcement(config, other).1.take_back()).collect();
    publications.extend(announcement(config, mode).0);
    publications.push(info(&config.cluster, mode != Mode::Off, config.web.address(), now));
    publications
}

/// All topics that the device may be announced on.
pub fn topics(config: &Config) -> Vec<String> {
    let emptied = MODES.into_iter().flat_map(|mode| announcement(config, mode).1.take_back());
    emptied.map(|(topic, _)| topic).collect()
}

/// The device's announcement in this mode.
fn announcement(config: &Config, mode: Mode) -> (Vec<Publication>, Announced) {
    let interval = cluster::Settings::default().say_again.unsigned_abs();
    let page = config.web.address();
    let device = Device::of_cluster(&config.cluster, OWN_VERSION, interval, page.as_deref());
    let how = HomeAssistant { discovery: mode, ..config.home_assistant.clone() };
    device.announce(&how.place(&config.cluster, Owner::Cluster), None)
}

fn info(cluster: &Name, announced: bool, page: Option<String>, now: Timestamp) -> Publication {
    let info = ClusterInfo {
        v: VERSION,
        ts: now,
        cluster: cluster.clone(),
        version: OWN_VERSION.to_owned(),
        device: announced.then(|| cluster_device(cluster)),
        page,
    };
    let topic = Topic::Cluster(ClusterTopic::Info).in_cluster(cluster);
    (topic, info.to_json())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announced(text: &str) -> Vec<(String, bool)> {
        let config = Config::of(text);
        let all = announce(&config, Timestamp::UNIX_EPOCH).into_iter();
        all.map(|(topic, payload)| (topic, payload.is_empty())).collect()
    }

    #[test]
    fn what_another_configuration_announced_is_emptied() {
        let device = "homeassistant/device/bramble_cluster/bramble-home/config";
        let problem = "homeassistant/binary_sensor/bramble_cluster/bramble-home-problem/config";
        for (mode, device_is_empty, problem_is_empty) in
            [("device", false, true), ("component", true, false), ("off", true, true)]
        {
            let all = announced(&format!("[home_assistant]\ndiscovery = \"{mode}\""));
            assert!(all.contains(&(device.to_owned(), device_is_empty)), "{mode}: {all:?}");
            assert!(all.contains(&(problem.to_owned(), problem_is_empty)), "{mode}: {all:?}");
            // Nodes may refer to the device once they hear this, and not before.
            assert_eq!(all.last(), Some(&("bramble/home/cluster/info".to_owned(), false)));
        }
    }

    #[test]
    fn all_topics_of_an_announcement_are_known_whatever_its_mode() {
        let topics = |mode: &str| topics(&Config::of(&format!("[home_assistant]\ndiscovery = \"{mode}\"")));
        assert_eq!(topics("off"), topics("device"));
        assert_eq!(topics("off"), topics("component"));
        let all = announced("[home_assistant]\ndiscovery = \"off\"");
        let emptied: Vec<String> = all.into_iter().filter(|(_, empty)| *empty).map(|(t, _)| t).collect();
        assert_eq!(topics("off"), emptied);
    }

    #[test]
    fn the_page_is_named_only_where_others_can_read_it() {
        let address = |text: &str| Config::of(text).web.address();
        assert_eq!(address(""), None);
        assert_eq!(address("[web]\nhosts = [\"a.lan\"]"), None);
        assert_eq!(address("[web]\nlisten = \"0.0.0.0:80\""), None);
        let both = "[web]\nlisten = \"0.0.0.0:80\"\nhosts = [\"a.lan\"]";
        assert_eq!(address(both).as_deref(), Some("http://a.lan:80/"));
    }
}
