//! What Home Assistant takes: its own classes, units and options as tables, and a Home Assistant itself where one is given.

use std::net::{SocketAddr, ToSocketAddrs as _};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::http::request;

const CLASSES: &str = include_str!("../data/home_assistant_classes.csv");
const OPTIONS: &str = include_str!("../data/home_assistant_options.csv");

/// Rows of a table of ours: columns parted by commas, values of a column by blanks, `-` for none.
fn rows(table: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    table.lines().filter(|line| !line.starts_with('#')).skip(1).map(|line| line.split(',').collect())
}

fn has(column: &str, value: &str) -> bool {
    column.split(' ').any(|allowed| allowed == value)
}

/// What is wrong with the settings of an entity, by Home Assistant's own tables. `p`, the platform, may stand among them.
pub fn fault(platform: &str, component: &Value) -> Option<String> {
    let Some(options) = rows(OPTIONS).find(|row| row[0] == platform) else {
        return Some(format!("there is no platform {platform}"));
    };
    let Some(settings) = component.as_object() else { return Some("these are no settings".to_owned()) };
    if let Some(key) = settings.keys().find(|key| *key != "p" && !has(options[1], key)) {
        return Some(format!("there is no option {key}"));
    }
    let text = |key: &str| component.get(key).map_or("-", |v| v.as_str().unwrap_or("?"));
    let [class, unit, state_class] = ["device_class", "unit_of_measurement", "state_class"].map(text);
    if class == "-" {
        // Without a class any unit goes, and with a number statistics.
        return (!has("- measurement total total_increasing", state_class))
            .then(|| format!("no state class {state_class}"));
    }
    let Some(row) = rows(CLASSES).find(|row| row[0] == platform && row[1] == class) else {
        return Some(format!("there is no class {class}"));
    };
    if !has(row[2], unit) {
        return Some(format!("{class} has no unit {unit}"));
    }
    (state_class != "-" && !has(row[3], state_class)).then(|| format!("{class} is no {state_class}"))
}

/// What is wrong with the announcement of a device, each with the component that it is about.
pub fn faults(announcement: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let about = rows(OPTIONS).find(|row| row[0] == "device").map_or("", |row| row[1]);
    match announcement["device"].as_object() {
        None => faults.push("it announces no device".to_owned()),
        Some(device) => {
            faults.extend(
                device.keys().filter(|key| !has(about, key)).map(|key| format!("a device has no {key}")),
            );
        }
    }
    for (key, component) in announcement["components"].as_object().into_iter().flatten() {
        let platform = component["p"].as_str().unwrap_or("-");
        let is_taken_back = component == &json!({"p": platform});
        if !is_taken_back && component["unique_id"].as_str().is_none() {
            faults.push(format!("{key}: without a unique id the whole device is refused"));
        }
        faults.extend(fault(platform, component).map(|fault| format!("{key}: {fault}")));
    }
    faults
}

/// A Home Assistant made for tests: the environment's `BRAMBLE_HA` names it as `http://host:port,token`, with a long-lived
/// access token (2024.11.3 runs from its wheel with Python 3.12 and `josepy<2`). Its MQTT integration must not be set up: that is done
/// here, with the bed's broker, and taken back.
#[derive(Debug)]
pub struct HomeAssistant {
    address: SocketAddr,
    token: String,
    /// The integration's entry, while there is one.
    entry: Option<String>,
}

impl HomeAssistant {
    /// The one that the environment names.
    ///
    /// # Errors
    /// It names none, or not in this way.
    pub fn named() -> Result<Self> {
        let named = std::env::var("BRAMBLE_HA").ok().context("BRAMBLE_HA names no Home Assistant")?;
        let parts = named.strip_prefix("http://").and_then(|rest| rest.split_once(','));
        let (address, token) = parts.context("BRAMBLE_HA is not http://host:port,token")?;
        let address = address.trim_end_matches('/');
        let resolved =
            address.to_socket_addrs().with_context(|| format!("BRAMBLE_HA: resolving {address}"))?;
        let address = resolved.into_iter().next().context("BRAMBLE_HA: its name has no address")?;
        Ok(Self { address, token: token.to_owned(), entry: None })
    }

    /// Sets its MQTT integration up with this broker.
    ///
    /// # Errors
    /// It has one already, or does not reach the broker.
    pub fn connect(&mut self, broker: SocketAddr) -> Result<()> {
        let flows = "/api/config/config_entries/flow";
        let begun = self.post(flows, &json!({"handler": "mqtt"}))?;
        let flow = begun["flow_id"].as_str().with_context(|| format!("MQTT is set up already: {begun}"))?;
        let answers = json!({"broker": broker.ip().to_string(), "port": broker.port()});
        let done = self.post(&format!("{flows}/{flow}"), &answers)?;
        ensure!(done["type"] == "create_entry", "MQTT is not set up: {done}");
        self.entry = Some(done["result"]["entry_id"].as_str().context("the entry has no id")?.to_owned());
        Ok(())
    }

    /// All that it shows: `entity_id`, `state` and `attributes` of each entity.
    ///
    /// # Errors
    /// It does not answer, or does not know the token.
    pub fn states(&self) -> Result<Vec<Value>> {
        let answer = request(self.address, "GET", "/api/states", None, Some(&self.token))?;
        Ok(serde_json::from_str(&answer)?)
    }

    /// The year of its release.
    ///
    /// # Errors
    /// It does not answer, or says another kind of version.
    pub fn year(&self) -> Result<u32> {
        let answer = request(self.address, "GET", "/api/config", None, Some(&self.token))?;
        let answer: Value = serde_json::from_str(&answer)?;
        let year = answer["version"].as_str().and_then(|version| version.split('.').next()?.parse().ok());
        year.with_context(|| format!("no version is in {answer}"))
    }

    /// What it complains of, as far as MQTT and templates are concerned.
    ///
    /// # Errors
    /// It does not answer, or keeps no log in a file.
    pub fn complaints(&self) -> Result<Vec<String>> {
        let log = request(self.address, "GET", "/api/error_log", None, Some(&self.token))?;
        let ours = |line: &&str| {
            (line.contains(" WARNING ") || line.contains(" ERROR "))
                && ["components.mqtt", "helpers.template", "bramble"].iter().any(|word| line.contains(word))
        };
        Ok(log.lines().filter(ours).map(str::to_owned).collect())
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let answer = request(self.address, "POST", path, Some(body), Some(&self.token))?;
        Ok(serde_json::from_str(&answer)?)
    }
}

impl Drop for HomeAssistant {
    fn drop(&mut self) {
        if let Some(entry) = &self.entry {
            let path = format!("/api/config/config_entries/entry/{entry}");
            // The next test cannot set it up then, and says so.
            let _ = request(self.address, "DELETE", &path, None, Some(&self.token));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use wire::{
        discovery::{Around, Device, Mode, Place},
        report::{Kind, NodeInfo, NodeState, Rank, Reading, Unit, read},
        topic::{Name, Owner, Prefix, Verb},
    };

    use super::*;

    #[test]
    fn the_tables_find_what_home_assistant_would_refuse() {
        for (platform, component, finds) in [
            ("sensor", json!({"device_class": "data_rate", "unit_of_measurement": "Mbps"}), "Mbps"),
            ("sensor", json!({"device_class": "latency"}), "no class latency"),
            (
                "sensor",
                json!({"device_class": "enum", "state_class": "measurement"}),
                "enum is no measurement",
            ),
            (
                "sensor",
                json!({"device_class": "voltage", "unit_of_measurement": "V", "state_class": "total_increasing"}),
                "voltage is no",
            ),
            ("sensor", json!({"state_class": "gauge"}), "no state class gauge"),
            ("sensor", json!({"device_class": "temperature"}), "no unit -"),
            ("button", json!({"device_class": "reboot"}), "no class reboot"),
            ("event", json!({"expire_after": 3}), "no option expire_after"),
            ("sensor", json!({"object_id": "x"}), "no option object_id"),
            ("lamp", json!({}), "no platform lamp"),
        ] {
            let fault = fault(platform, &component).unwrap_or_default();
            assert!(fault.contains(finds), "{component}: {fault:?}");
        }
        let device = json!({"device": {"colour": "red"}, "components": {"a": {"p": "button"}, "b": {"p": "button", "name": "x"}}});
        assert_eq!(
            faults(&device),
            ["a device has no colour", "b: without a unique id the whole device is refused"]
        );
    }

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    /// A node with every unit, kind and rank there is: more than any probe makes.
    fn everything() -> (NodeInfo, NodeState) {
        let [info, state] =
            [include_str!("../../wire/golden/v1/info.json"), include_str!("../../wire/golden/v1/state.json")];
        let mut info: NodeInfo = read(info.as_bytes(), &name("home"), &name("n1")).unwrap();
        let mut state: NodeState = read(state.as_bytes(), &name("home"), &name("n1")).unwrap();
        info.serial = Some("10000000abcdef01".to_owned());
        info.revision = Some("d04170".to_owned());
        for unit in Unit::ALL {
            for kind in [Kind::Gauge, Kind::Total] {
                for rank in [Rank::Main, Rank::Diagnostic, Rank::Hidden] {
                    let reading = Reading { title: "x".to_owned(), value: Some(1.0), unit, kind, rank };
                    state.readings.insert(format!("{unit:?}-{kind:?}-{rank:?}").to_lowercase(), reading);
                }
            }
        }
        (info, state)
    }

    fn announced(device: &Device, mode: Mode) -> Vec<(String, Value)> {
        let owner = Owner::Node(name("n1"));
        let place = Place { mode, prefix: Prefix::default(), cluster: name("home"), owner };
        let (publications, _) = device.announce(&place, None);
        publications
            .into_iter()
            .map(|(topic, json)| (topic, serde_json::from_slice(&json).unwrap()))
            .collect()
    }

    #[test]
    fn home_assistant_knows_every_option_class_unit_and_state_class() {
        let (info, state) = everything();
        let around = Around {
            interval: Duration::from_secs(10),
            verbs: Verb::ALL.to_vec(),
            hub: Some("bramble_cluster_home".to_owned()),
            page: Some("http://pi5-1:8080/".to_owned()),
        };
        let node = Device::of_node(&info, &state, &around);
        let cluster = Device::of_cluster(&name("home"), "0.1.0", around.interval, around.page.as_deref());
        let (mut ids, mut seen) = (BTreeSet::new(), 0);
        for device in [node, cluster] {
            let (_, whole) = announced(&device, Mode::Device).remove(0);
            assert_eq!(faults(&whole), Vec::<String>::new());
            assert!(
                whole["device"].get("connections").is_none(),
                "two devices with one address would become one"
            );
            let components = whole["components"].as_object().unwrap();
            for (key, component) in components {
                assert!(ids.insert(component["unique_id"].as_str().unwrap().to_owned()), "{key}");
                assert!(component.get("name").is_some(), "{key} has no name");
                // A measured value does not outlive its measurement, and no event is said twice.
                let has_state =
                    component["state_topic"].as_str().is_some_and(|topic| topic.ends_with("/state"));
                assert_eq!(component.get("expire_after").is_some(), has_state, "{key}");
                seen += 1;
            }
            let alone = announced(&device, Mode::Component);
            assert_eq!(alone.len(), components.len());
            for (topic, component) in alone {
                let platform = topic.split('/').nth(1).unwrap();
                assert_eq!(fault(platform, &component), None, "{topic}: {component:#}");
                assert_eq!(component["device"], whole["device"]);
                assert!(component["availability"][0]["topic"].is_string(), "{topic}");
            }
        }
        assert!(seen > Unit::ALL.len() * 6, "{seen} components");
    }
}
