//! The cluster's device for Home Assistant, and who announces it.
//!
//! The aggregator keeps nothing on disk, so whatever another configuration may have announced is emptied at every
//! connection: three topics more, and nothing of them is left.

use jiff::Timestamp;
use wire::{
    cluster::ClusterInfo,
    discovery::{Announced, Device, HomeAssistant, Mode, Publication, cluster_device},
    report::VERSION,
    topic::{ClusterTopic, Name, Owner, Topic},
};

use crate::{cluster::Settings, config::Config};

const OWN_VERSION: &str = env!("CARGO_PKG_VERSION");

/// What is said at every connection, and when Home Assistant has started: retained, the device first.
pub fn announce(config: &Config, now: Timestamp) -> Vec<Publication> {
    let cluster = &config.cluster;
    let page = config.web.address();
    let interval = Settings::default().say_again.unsigned_abs();
    let device = Device::of_cluster(cluster, OWN_VERSION, interval, page.as_deref());
    let at = |mode| {
        HomeAssistant { discovery: mode, ..config.home_assistant.clone() }.place(cluster, Owner::Cluster)
    };
    let others =
        [Mode::Device, Mode::Component].into_iter().filter(|mode| *mode != config.home_assistant.discovery);
    let emptied =
        others.map(|mode| device.announce(&at(mode), None).1).flat_map(|a: Announced| a.take_back());
    let mut publications: Vec<Publication> = emptied.collect();
    publications.extend(device.announce(&at(config.home_assistant.discovery), None).0);
    let announced = config.home_assistant.discovery != Mode::Off;
    publications.push(info(cluster, announced, page, now));
    publications
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
    (topic, serde_json::to_vec(&info).expect("our messages have text keys and finite numbers"))
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
    fn the_page_is_named_only_where_others_can_read_it() {
        let address = |text: &str| Config::of(text).web.address();
        assert_eq!(address(""), None);
        assert_eq!(address("[web]\nhosts = [\"a.lan\"]"), None);
        assert_eq!(address("[web]\nlisten = \"0.0.0.0:80\""), None);
        let both = "[web]\nlisten = \"0.0.0.0:80\"\nhosts = [\"a.lan\"]";
        assert_eq!(address(both).as_deref(), Some("http://a.lan:80/"));
    }
}
