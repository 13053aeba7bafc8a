//! Home Assistant's MQTT discovery: one device per node and one for the cluster, derived from what they say, so that a
//! new probe needs no edit here.
//!
//! Rules that this file keeps, because breaking one loses the whole device or leaves ghosts: every component has a
//! `unique_id` that hangs on the node's random id and on nothing else; no `object_id`, no `default_entity_id` and no
//! `connections`; units only in pairs that Home Assistant knows; a component that goes is first announced with its platform
//! alone. Needs Home Assistant 2024.11. Source: home-assistant.io, "MQTT discovery", device discovery payload.

use std::{
    collections::BTreeMap,
    hash::{Hash, Hasher},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    report::{EventType, Kind, NodeInfo, NodeState, OFFLINE, ONLINE, Phase, Rank, Reading, Unit},
    topic::{ClusterTopic, HomeTopic, Key, Name, NodeTopic, Owner, Platform, Prefix, Topic, Verb},
};

/// How long Home Assistant takes to make entities of what is announced, and to listen for their values: with a broker that
/// retains nothing, or does not tell it, what was said before is lost.
pub const HEARD_AFTER: Duration = Duration::from_secs(5);

/// How devices are announced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One message with all components: what Home Assistant prefers.
    #[default]
    Device,
    /// One message per component: what openHAB and Domoticz read.
    Component,
    /// Not at all.
    Off,
}

/// The section `[home_assistant]` of both programs' configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HomeAssistant {
    /// How devices are announced.
    pub discovery: Mode,
    /// The discovery prefix of its MQTT integration.
    pub prefix: Prefix,
}

impl HomeAssistant {
    /// Where Home Assistant says that it has started: below its prefix, or where it does so unless told otherwise.
    pub fn births(&self, cluster: &Name) -> Vec<String> {
        let status = |prefix: &Prefix| HomeTopic::Status.below(prefix, cluster);
        let mut births = match self.discovery {
            Mode::Off => Vec::new(),
            Mode::Device | Mode::Component => vec![status(&self.prefix), status(&Prefix::default())],
        };
        births.dedup();
        births
    }

    /// Where the device of `owner` is announced.
    pub fn place(&self, cluster: &Name, owner: Owner) -> Place {
        Place { mode: self.discovery, prefix: self.prefix.clone(), cluster: cluster.clone(), owner }
    }
}

/// Where a device is announced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// In one message or in several.
    pub mode: Mode,
    /// First levels of the topics.
    pub prefix: Prefix,
    /// Who announces.
    pub cluster: Name,
    /// Whose device it is.
    pub owner: Owner,
}

/// What was announced, kept so that it can be taken back, also by a later version of the program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announced {
    /// Where.
    pub place: Place,
    /// What is there now.
    pub components: BTreeMap<Key, Platform>,
    /// What is announced as gone, and left out the next time.
    pub gone: BTreeMap<Key, Platform>,
}

/// A retained message: its topic, and its payload, which is empty where the topic is taken back.
pub type Publication = (String, Vec<u8>);

/// A device with all that Home Assistant is told of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    device: Value,
    origin: Value,
    availability: String,
    components: BTreeMap<Key, Component>,
}

#[derive(Clone, Debug, PartialEq)]
struct Component {
    platform: Platform,
    settings: Value,
}

/// What a node's device depends on beside what the node says.
#[derive(Clone, Debug, Default, Hash)]
pub struct Around {
    /// Time between two state messages.
    pub interval: Duration,
    /// What the node may be asked for.
    pub verbs: Vec<Verb>,
    /// Identifier of the cluster's device, once it was announced: one that does not exist would become a ghost.
    pub hub: Option<String>,
    /// Address of the page.
    pub page: Option<String>,
}

impl Device {
    /// A node's device.
    pub fn of_node(info: &NodeInfo, state: &NodeState, around: &Around) -> Self {
        let (cluster, node) = (&info.header.cluster, &info.header.node);
        let topic = |leaf| Topic::Node(node.clone(), leaf).in_cluster(cluster);
        let state_topic = topic(NodeTopic::State);
        // A value that nobody renews is no longer shown, whatever the broker has stored.
        let measured = |settings: Value| {
            let base =
                json!({"state_topic": state_topic, "expire_after": around.interval.as_secs().max(1) * 3});
            merged(base, settings)
        };
        let mut device = Self::new(
            json!({
                "identifiers": [format!("bramble_{}", info.id)],
                "name": node.as_str(),
                "sw_version": info.version,
            }),
            &info.version,
            topic(NodeTopic::Availability),
        );
        let maker = info.model.as_deref().filter(|m| m.starts_with("Raspberry Pi")).map(|_| "Raspberry Pi");
        device.is("manufacturer", maker);
        device.is("model", info.model.as_deref());
        device.is("hw_version", info.revision.as_deref());
        device.is("serial_number", info.serial.as_deref());
        device.is("via_device", around.hub.as_deref());
        device.is("configuration_url", around.page.as_deref());

        let mut add = |id: &str, platform, settings| device.add(&info.id, id, platform, settings);
        for (id, reading) in &state.readings {
            add(&format!("reading-{id}"), Platform::Sensor, measured(sensor(id, reading)));
        }
        for condition in state.conditions.iter().filter(|c| c.subject.is_none()) {
            let (id, title) = (&condition.id, &condition.title);
            add(
                &format!("condition-{id}"),
                Platform::BinarySensor,
                measured(problem(id, title, &state_topic)),
            );
        }
        let overall = json!({
            "name": "Problem",
            "device_class": "problem",
            // Raised beats unknown, and unknown is never "no problem".
            "value_template": "{% set s = value_json.conditions | map(attribute='status') | list %}\
                               {{ 'ON' if 'raised' in s else 'None' if 'unknown' in s else 'OFF' }}",
            "json_attributes_topic": state_topic,
            "json_attributes_template": "{{ {'reason': value_json.reason, 'since': value_json.conditions \
                 | selectattr('status', 'eq', 'raised') | map(attribute='since') | sort | first | default(none)} | to_json }}",
        });
        add("problem", Platform::BinarySensor, measured(overall));
        let phases = json!({
            "name": "Phase",
            "device_class": "enum",
            "options": Phase::ALL,
            "value_template": "{{ value_json.phase }}",
        });
        add("phase", Platform::Sensor, measured(phases));
        let restart = json!({
            "name": "Restart needed",
            "device_class": "update",
            "entity_category": "diagnostic",
            "value_template": "{{ {true: 'ON', false: 'OFF'}.get(value_json.restart_needed, 'None') }}",
        });
        add("restart-needed", Platform::BinarySensor, measured(restart));
        // Off instead of unavailable when the node goes: the aggregator vouches for the topic, or, where there is none, any word
        // on it does.
        let vouched = match &around.hub {
            Some(_) => json!({"topic": Topic::Cluster(ClusterTopic::Availability).in_cluster(cluster)}),
            None => json!({"topic": topic(NodeTopic::Availability), "value_template": ONLINE}),
        };
        let agent = json!({
            "name": "Agent",
            "device_class": "connectivity",
            "entity_category": "diagnostic",
            "state_topic": topic(NodeTopic::Availability),
            "payload_on": ONLINE,
            "payload_off": OFFLINE,
            "availability": [vouched],
        });
        add("agent", Platform::BinarySensor, agent);
        let version = json!({
            "name": "bramble",
            "entity_category": "diagnostic",
            "state_topic": topic(NodeTopic::Info),
            "value_template":
                "{{ {'installed_version': value_json.version, 'latest_version': value_json.newest or value_json.version} \
                 | to_json }}",
        });
        add("update", Platform::Update, version);
        let alert = json!({
            "name": "Alert",
            "state_topic": topic(NodeTopic::Event),
            "event_types": EventType::ALL,
        });
        add("alert", Platform::Event, alert);
        for verb in &around.verbs {
            let mut button = json!({
                "name": match verb {
                    Verb::Check => "Run checks now",
                    Verb::Refresh => "Report now",
                    Verb::Identify => "Identify",
                    Verb::Reboot => "Restart",
                    Verb::Apply => "Apply plan",
                },
                "entity_category": if verb.acts() { "config" } else { "diagnostic" },
                "command_topic": topic(NodeTopic::Request(*verb)),
                // A request of its own each time it is pressed, and of this moment.
                "command_template": "{% set t = utcnow().isoformat() %}{{ {'transaction': t, 'ts': t} | to_json }}",
                "retain": false,
            });
            match verb {
                Verb::Identify => button["device_class"] = json!("identify"),
                Verb::Reboot => button["device_class"] = json!("restart"),
                Verb::Refresh => button["enabled_by_default"] = json!(false),
                Verb::Check | Verb::Apply => {}
            }
            add(&format!("button-{verb}"), Platform::Button, button);
        }
        device
    }

    /// The cluster's device. `interval` is the time between two state messages, `page` where the page is.
    pub fn of_cluster(cluster: &Name, version: &str, interval: Duration, page: Option<&str>) -> Self {
        let topic = |leaf| Topic::Cluster(leaf).in_cluster(cluster);
        let (state_topic, id) = (topic(ClusterTopic::State), cluster_id(cluster));
        let mut device = Self::new(
            json!({
                "identifiers": [cluster_device(cluster)],
                "name": format!("{cluster} cluster"),
                "manufacturer": "bramble",
                "model": "Cluster",
                "sw_version": version,
            }),
            version,
            topic(ClusterTopic::Availability),
        );
        device.is("configuration_url", page);
        let mut add = |key: &str, platform, settings| device.add(&id, key, platform, settings);
        let measured = |settings: Value| {
            let base = json!({"state_topic": state_topic, "expire_after": interval.as_secs().max(1) * 3});
            merged(base, settings)
        };
        let nodes = |name, field| {
            measured(json!({
                "name": name,
                "state_class": "measurement",
                "value_template": format!("{{{{ value_json.{field} }}}}"),
            }))
        };
        add("nodes-ready", Platform::Sensor, nodes("Nodes ready", "nodes_ready"));
        add(
            "nodes",
            Platform::Sensor,
            merged(nodes("Nodes", "nodes"), json!({"entity_category": "diagnostic"})),
        );
        let worst = json!({
            "name": "Worst pair",
            "device_class": "duration",
            "unit_of_measurement": "ms",
            "state_class": "measurement",
            "suggested_display_precision": 3,
            "value_template": "{{ value_json.worst_round_trip_ms }}",
            "json_attributes_topic": state_topic,
            "json_attributes_template": "{{ {'pair': value_json.worst_pair} | to_json }}",
        });
        add("worst-pair", Platform::Sensor, measured(worst));
        let problem = json!({
            "name": null,
            "device_class": "problem",
            "value_template": "{{ 'ON' if value_json.alerts else 'OFF' }}",
            "json_attributes_topic": state_topic,
            "json_attributes_template": "{{ {'alerts': value_json.alerts.values() | list} | to_json }}",
        });
        add("problem", Platform::BinarySensor, measured(problem));
        let alert = json!({
            "name": "Alert",
            "state_topic": topic(ClusterTopic::Event),
            "event_types": EventType::ALL,
        });
        add("alert", Platform::Event, alert);
        device
    }

    /// Whether it has such a component.
    pub fn has(&self, key: &Key) -> bool {
        self.components.contains_key(key)
    }

    fn new(device: Value, version: &str, availability: String) -> Self {
        let origin = json!({"name": "bramble", "sw_version": version});
        Self { device, origin, availability, components: BTreeMap::new() }
    }

    fn is(&mut self, what: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.device[what] = json!(value);
        }
    }

    fn add(&mut self, owner: &str, id: &str, platform: Platform, mut settings: Value) {
        let key = Key::of(id);
        settings["unique_id"] = json!(format!("bramble_{owner}_{key}"));
        // Home Assistant takes it from the device only since 2026.
        settings["qos"] = json!(1);
        self.components.insert(key, Component { platform, settings });
    }

    /// Says what is to be published, and what is announced then.
    ///
    /// What stood elsewhere `before` is taken back. A component of `before` that is no longer there is announced with its
    /// platform alone, which removes it; the next call, with the returned value as `before`, leaves it out.
    pub fn announce(&self, place: &Place, before: Option<&Announced>) -> (Vec<Publication>, Announced) {
        let same = before.filter(|before| before.place == *place);
        let mut publications = match before {
            Some(before) if same.is_none() => before.take_back(),
            _ => Vec::new(),
        };
        let components: BTreeMap<Key, Platform> = match place.mode {
            Mode::Off => BTreeMap::new(),
            _ => self.components.iter().map(|(key, component)| (key.clone(), component.platform)).collect(),
        };
        let mut gone = same.map(|before| before.components.clone()).unwrap_or_default();
        gone.retain(|key, platform| components.get(key) != Some(platform));
        let announced = Announced { place: place.clone(), components, gone };
        match place.mode {
            Mode::Off => {}
            Mode::Device => publications.push((announced.device_topic(), self.payload(&announced))),
            Mode::Component => {
                let empty = announced
                    .gone
                    .iter()
                    .map(|(key, platform)| (announced.topic(key, *platform), Vec::new()));
                publications.extend(empty);
                publications.extend(self.components.iter().map(|(key, component)| {
                    let alone = json!({
                        "device": self.device,
                        "origin": self.origin,
                        "availability": [{"topic": self.availability}],
                    });
                    let payload = merged(alone, component.settings.clone());
                    (announced.topic(key, component.platform), payload.to_string().into_bytes())
                }));
            }
        }
        (publications, announced)
    }

    fn payload(&self, announced: &Announced) -> Vec<u8> {
        let mut components: Map<String, Value> = self
            .components
            .iter()
            .map(|(key, c)| (key.to_string(), merged(json!({"p": c.platform}), c.settings.clone())))
            .collect();
        for (key, platform) in &announced.gone {
            // A key that came back as something else is there already, and Home Assistant takes the new for the old.
            components.entry(key.as_str()).or_insert_with(|| json!({"p": platform}));
        }
        let payload = json!({
            "device": self.device,
            "origin": self.origin,
            // For the components that have none of their own.
            "availability": [{"topic": self.availability}],
            "components": components,
        });
        payload.to_string().into_bytes()
    }

    /// A number that changes when [`Device::of_node`] would make another device: that is much more work, and the numbers
    /// in a report do not matter to it.
    pub fn shape_of_node(info: &NodeInfo, state: &NodeState, around: &Around) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        let NodeInfo { header, id, version, model, serial, revision, .. } = info;
        (&header.cluster, &header.node, id, version, model, serial, revision).hash(&mut hasher);
        around.hash(&mut hasher);
        for (id, Reading { title, unit, kind, rank, value: _ }) in &state.readings {
            (id, title, unit, kind, rank).hash(&mut hasher);
        }
        for condition in state.conditions.iter().filter(|c| c.subject.is_none()) {
            (&condition.id, &condition.title).hash(&mut hasher);
        }
        hasher.finish()
    }
}

impl Announced {
    /// Empties every topic of the announcement.
    pub fn take_back(&self) -> Vec<Publication> {
        let topics: Vec<String> = match self.place.mode {
            Mode::Off => Vec::new(),
            Mode::Device => vec![self.device_topic()],
            Mode::Component => {
                let all = self.components.iter().chain(&self.gone);
                all.map(|(key, platform)| self.topic(key, *platform)).collect()
            }
        };
        topics.into_iter().map(|topic| (topic, Vec::new())).collect()
    }

    /// Says of each component that it is gone, to be said once beside [`Announced::take_back`] and not retained: Home Assistant
    /// 2024.11 to 2025 keep all of a device whose topic is emptied. See [`removal_of`].
    pub fn removal(&self) -> Option<Publication> {
        let components: Map<String, Value> = match self.place.mode {
            Mode::Device => {
                let all = self.components.iter().chain(&self.gone);
                all.map(|(key, platform)| (key.to_string(), json!({"p": platform}))).collect()
            }
            Mode::Off | Mode::Component => return None,
        };
        // What is taken away needs no device, but there has to be one.
        let device = json!({"identifiers": ["bramble"]});
        let payload = json!({"device": device, "origin": {"name": "bramble"}, "components": components});
        Some((self.device_topic(), payload.to_string().into_bytes()))
    }

    fn device_topic(&self) -> String {
        HomeTopic::Device(self.place.owner.clone()).below(&self.place.prefix, &self.place.cluster)
    }

    fn topic(&self, key: &Key, platform: Platform) -> String {
        let topic = HomeTopic::Component(self.place.owner.clone(), platform, key.clone());
        topic.below(&self.place.prefix, &self.place.cluster)
    }
}

/// Of a device's announcement the message that takes its components away, one by one; `None` when it is no such announcement.
///
/// Home Assistant looks for the components of an emptied topic under the wrong name where the topic has two levels of its
/// own, and finds none; seen with 2024.11.3 and read in 2025.1.4, mended in 2026.2.3
/// (`_generate_device_config` in its `components/mqtt/discovery.py`).
pub fn removal_of(announcement: &[u8]) -> Option<Vec<u8>> {
    let mut payload: Value = serde_json::from_slice(announcement).ok()?;
    for component in payload.get_mut("components")?.as_object_mut()?.values_mut() {
        *component = json!({"p": component.get("p")?});
    }
    payload.as_object_mut()?.retain(|key, _| ["device", "origin", "components"].contains(&key.as_str()));
    Some(payload.to_string().into_bytes())
}

fn cluster_id(cluster: &Name) -> String {
    format!("cluster_{cluster}")
}

/// Identifier of the cluster's device. It hangs on the name that the owner chose: several aggregators are one cluster.
pub fn cluster_device(cluster: &Name) -> String {
    format!("bramble_{}", cluster_id(cluster))
}

fn merged(mut base: Value, more: Value) -> Value {
    if let (Value::Object(base), Value::Object(more)) = (&mut base, more) {
        base.extend(more);
    }
    base
}

/// A condition as "is there a problem?", with its reason.
fn problem(id: &str, title: &str, state_topic: &str) -> Value {
    let of_this = format!("value_json.conditions | selectattr('id', 'eq', '{id}')");
    // One that is not stated now has no word of its own, and what is undefined is no JSON.
    let whole = format!("{{% set c = {of_this} | selectattr('subject', 'none') | first | default({{}}) %}}");
    json!({
        "name": title,
        "device_class": "problem",
        "entity_category": "diagnostic",
        "value_template": format!("{whole}{{{{ {{'clear': 'OFF', 'raised': 'ON'}}.get(c.get('status'), 'None') }}}}"),
        "json_attributes_topic": state_topic,
        // What is clear has no reason: its evidence has numbers that would fill Home Assistant's history.
        "json_attributes_template": format!(
            "{whole}{{{{ {{'reason': c.get('evidence') if c.get('status') != 'clear' else none, \
             'severity': c.get('severity'), 'since': c.get('since'), 'of': {of_this} | selectattr('status', 'eq', 'raised') | map(attribute='subject') | reject('none') | list}} \
             | to_json }}}}"
        ),
    })
}

fn sensor(id: &str, reading: &Reading) -> Value {
    let value = format!("value_json.readings['{id}'].value");
    let template = match reading.unit {
        Unit::Moment => format!("{{% set v = {value} %}}{{{{ none if v is none else v | as_datetime }}}}"),
        // People know what their line can do in bits.
        Unit::BytePerSecond => {
            format!("{{% set v = {value} %}}{{{{ none if v is none else v * 8 / 1000000 }}}}")
        }
        _ => format!("{{{{ {value} }}}}"),
    };
    let mut sensor = json!({"name": reading.title, "value_template": template});
    // Home Assistant has no class for latency; `duration` takes ms. `uptime` is too new.
    let (class, unit, digits) = match reading.unit {
        Unit::Celsius => (Some("temperature"), Some("°C"), Some(1)),
        Unit::Millisecond => (Some("duration"), Some("ms"), Some(3)),
        Unit::Second => (Some("duration"), Some("s"), Some(1)),
        Unit::Moment => (Some("timestamp"), None, None),
        Unit::Byte => (Some("data_size"), Some("B"), None),
        Unit::BytePerSecond => (Some("data_rate"), Some("Mbit/s"), Some(2)),
        Unit::Volt => (Some("voltage"), Some("V"), Some(2)),
        Unit::Ampere => (Some("current"), Some("A"), Some(2)),
        Unit::Watt => (Some("power"), Some("W"), Some(1)),
        Unit::Megahertz => (Some("frequency"), Some("MHz"), Some(0)),
        Unit::DecibelMilliwatt => (Some("signal_strength"), Some("dBm"), Some(0)),
        Unit::Percent => (None, Some("%"), Some(1)),
        Unit::PerSecond => (None, Some("1/s"), Some(1)),
        Unit::PerMinute => (None, Some("rpm"), Some(0)),
        Unit::Count => (None, None, None),
    };
    for (what, text) in [("device_class", class), ("unit_of_measurement", unit)] {
        if let Some(text) = text {
            sensor[what] = json!(text);
        }
    }
    // Statistics need to know what the number does; a moment has none, and of these classes only some are ever totals.
    let may_grow = matches!(class, None | Some("duration" | "data_size"));
    match reading.kind {
        _ if reading.unit == Unit::Moment => {}
        Kind::Total if may_grow => sensor["state_class"] = json!("total_increasing"),
        Kind::Gauge | Kind::Total => sensor["state_class"] = json!("measurement"),
    }
    if let (Some(digits), Kind::Gauge) = (digits, reading.kind) {
        sensor["suggested_display_precision"] = json!(digits);
    }
    if reading.rank != Rank::Main {
        sensor["entity_category"] = json!("diagnostic");
    }
    if reading.rank == Rank::Hidden {
        sensor["enabled_by_default"] = json!(false);
    }
    sensor
}

#[cfg(test)]
mod tests {
    use crate::report::read;

    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn golden<T: serde::de::DeserializeOwned>(file: &str) -> T {
        read(file.as_bytes(), &name("home"), &name("n1")).unwrap()
    }

    fn example() -> (NodeInfo, NodeState) {
        (golden(include_str!("../golden/v1/info.json")), golden(include_str!("../golden/v1/state.json")))
    }

    fn around() -> Around {
        Around {
            interval: Duration::from_secs(10),
            verbs: vec![Verb::Check, Verb::Identify],
            hub: Some(cluster_device(&name("home"))),
            page: None,
        }
    }

    fn place(mode: Mode) -> Place {
        let owner = Owner::Node(name("n1"));
        Place { mode, prefix: Prefix::default(), cluster: name("home"), owner }
    }

    fn cluster() -> Device {
        Device::of_cluster(&name("home"), "0.1.0", Duration::from_secs(5), Some("http://pi5-1:8080/"))
    }

    fn json(publications: &[Publication]) -> BTreeMap<&str, Value> {
        let parsed = |payload: &[u8]| match payload {
            [] => Value::Null,
            payload => serde_json::from_slice(payload).unwrap(),
        };
        publications.iter().map(|(topic, payload)| (topic.as_str(), parsed(payload))).collect()
    }

    fn announced(device: &Device, mode: Mode) -> Value {
        let (publications, _) = device.announce(&place(mode), None);
        serde_json::from_slice(&publications[0].1).unwrap()
    }

    #[test]
    fn who_is_taken_away_is_so_component_by_component() {
        let (info, state) =
            (golden(include_str!("../golden/v1/info.json")), golden(include_str!("../golden/v1/state.json")));
        let device = Device::of_node(&info, &state, &Around::default());
        let place = |mode| Place {
            mode,
            prefix: Prefix::default(),
            cluster: name("home"),
            owner: Owner::Node(name("n1")),
        };
        let (publications, announced) = device.announce(&place(Mode::Device), None);
        let [(topic, payload)] = &publications[..] else { panic!("{publications:?}") };
        let value = |payload: &[u8]| serde_json::from_slice::<Value>(payload).unwrap();
        let of_message = value(&removal_of(payload).unwrap());
        let (place_of, of_memory) = announced.removal().unwrap();
        assert_eq!((&place_of, &of_message["components"]), (topic, &value(&of_memory)["components"]));
        assert!(
            of_message["components"].as_object().unwrap().values().all(|c| c.as_object().unwrap().len() == 1)
        );
        assert_eq!(of_message["device"], value(payload)["device"]);
        assert!(of_message["availability"].is_null());
        for other in ["", "online", "{}", "{\"components\": {\"a\": {}}}", "[1]"] {
            assert_eq!(removal_of(other.as_bytes()), None, "{other}");
        }
        assert_eq!(device.announce(&place(Mode::Component), None).1.removal(), None);
    }

    #[test]
    fn devices_are_announced_as_they_always_were() {
        let (info, state) = example();
        let node = announced(&Device::of_node(&info, &state, &around()), Mode::Device);
        for (payload, golden) in [
            (node, include_str!("../golden/v1/discovery.json")),
            (announced(&cluster(), Mode::Device), include_str!("../golden/v1/discovery-cluster.json")),
        ] {
            assert_eq!(payload, serde_json::from_str::<Value>(golden).unwrap(), "announced now: {payload:#}");
        }
    }

    #[test]
    fn what_a_person_sees_first_is_not_what_only_a_search_for_causes_needs() {
        let (info, mut state) = example();
        let reading = |rank| Reading { rank, ..state.readings["drops"].clone() };
        let [main, diagnostic, hidden] = [Rank::Main, Rank::Diagnostic, Rank::Hidden].map(reading);
        state.readings =
            [("a", main), ("b", diagnostic), ("c", hidden)].map(|(id, r)| (id.to_owned(), r)).into();
        let components =
            announced(&Device::of_node(&info, &state, &around()), Mode::Device)["components"].clone();
        for (key, category, enabled) in [
            ("reading_a", None, true),
            ("reading_b", Some("diagnostic"), true),
            ("reading_c", Some("diagnostic"), false),
            ("problem", None, true),
            ("phase", None, true),
            ("alert", None, true),
            ("condition_path_loss", Some("diagnostic"), true),
            ("update", Some("diagnostic"), true),
            ("button_check", Some("diagnostic"), true),
        ] {
            let component = &components[key];
            assert_eq!(component.get("entity_category").and_then(Value::as_str), category, "{key}");
            assert_eq!(component.get("enabled_by_default") != Some(&json!(false)), enabled, "{key}");
        }
    }

    #[test]
    fn only_the_agents_own_entity_outlives_the_agent() {
        let (info, state) = example();
        let whole = announced(&Device::of_node(&info, &state, &around()), Mode::Device);
        assert_eq!(whole["availability"], json!([{"topic": "bramble/home/node/n1/availability"}]));
        for (key, component) in whole["components"].as_object().unwrap() {
            let own = component.get("availability").map(|a| a[0]["topic"].as_str().unwrap());
            assert_eq!(own, (key == "agent").then_some("bramble/home/cluster/availability"), "{key}");
        }
    }

    #[test]
    fn the_shape_changes_with_what_is_announced_and_not_with_the_numbers() {
        let (info, state) = example();
        let shape = Device::shape_of_node(&info, &state, &around());
        let (mut measured, mut later) = (state.clone(), info.clone());
        for reading in measured.readings.values_mut() {
            reading.value = Some(1.5);
        }
        measured.conditions[0].evidence.push('x');
        later.header.ts += jiff::SignedDuration::from_secs(1);
        assert_eq!(Device::shape_of_node(&later, &measured, &around()), shape);

        // Whatever word of what the node says makes another device, makes another shape.
        let device = Device::of_node(&info, &state, &around());
        let of = |info: &Value, state: &Value| {
            let (info, state) = (info.to_string(), state.to_string());
            let info: NodeInfo = serde_json::from_str(&info).ok()?;
            let state: NodeState = serde_json::from_str(&state).ok()?;
            let shape = Device::shape_of_node(&info, &state, &around());
            Some((Device::of_node(&info, &state, &around()), shape))
        };
        let [info, state] = [serde_json::to_value(info).unwrap(), serde_json::to_value(state).unwrap()];
        let mut others = 0;
        for other in others_than(&info).into_iter().map(|info| of(&info, &state)) {
            others += usize::from(other.is_some_and(|other| is_another(other, (&device, shape))));
        }
        for other in others_than(&state).into_iter().map(|state| of(&info, &state)) {
            others += usize::from(other.is_some_and(|other| is_another(other, (&device, shape))));
        }
        assert!(others > 20, "only {others} words of them matter");
        let around = [
            Around { interval: Duration::from_secs(7), ..around() },
            Around { verbs: Vec::new(), ..around() },
            Around { hub: None, ..around() },
            Around { page: Some("http://other".to_owned()), ..around() },
        ];
        let (info, state) = example();
        for around in around {
            let other = Device::shape_of_node(&info, &state, &around);
            assert!(is_another((Device::of_node(&info, &state, &around), other), (&device, shape)));
        }
    }

    /// Whether it is another device, which then has another shape.
    fn is_another(other: (Device, u64), (device, shape): (&Device, u64)) -> bool {
        let is_another = other.0 != *device;
        assert!(!is_another || other.1 != shape, "{:?}", other.0);
        is_another
    }

    /// `value` with another text, or none, in one place: all that there are.
    fn others_than(value: &Value) -> Vec<Value> {
        match value {
            Value::Object(fields) => {
                let each = fields.iter().flat_map(|(key, inner)| {
                    others_than(inner).into_iter().map(move |other| {
                        let mut fields = fields.clone();
                        fields.insert(key.clone(), other);
                        Value::Object(fields)
                    })
                });
                let without = fields.keys().map(|key| {
                    let mut fields = fields.clone();
                    fields.remove(key);
                    Value::Object(fields)
                });
                each.chain(without).collect()
            }
            Value::Array(items) => {
                let each = items.iter().enumerate().flat_map(|(at, inner)| {
                    others_than(inner).into_iter().map(move |other| {
                        let mut items = items.clone();
                        items[at] = other;
                        Value::Array(items)
                    })
                });
                each.collect()
            }
            Value::String(text) => {
                [format!("{text}x"), "total".to_owned(), "hidden".to_owned(), "%".to_owned()]
                    .into_iter()
                    .filter(|other| other != text)
                    .map(Value::String)
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    #[test]
    fn unique_ids_hang_on_the_random_id_alone() {
        let (mut info, state) = example();
        let ids = |info: &NodeInfo| -> Vec<Value> {
            let whole = announced(&Device::of_node(info, &state, &around()), Mode::Device);
            whole["components"].as_object().unwrap().values().map(|c| c["unique_id"].clone()).collect()
        };
        let before = ids(&info);
        info.header.node = name("renamed");
        (info.model, info.serial) = (None, Some("1".to_owned()));
        assert_eq!(ids(&info), before);
        info.id = "00000000".to_owned();
        assert!(ids(&info).iter().all(|id| !before.contains(id)));
    }

    #[test]
    fn a_vanished_component_is_taken_back_once() {
        let (info, mut state) = example();
        let device = |state: &NodeState| Device::of_node(&info, state, &around());
        for mode in [Mode::Device, Mode::Component] {
            let (_, before) = device(&state).announce(&place(mode), None);
            let gone = state.readings.pop_first().unwrap().0;
            let key = Key::of(&format!("reading-{gone}")).to_string();
            let (publications, now) = device(&state).announce(&place(mode), Some(&before));
            let said = json(&publications);
            let (publications, _) = device(&state).announce(&place(mode), Some(&now));
            let later = json(&publications);
            if mode == Mode::Device {
                let topic = "homeassistant/device/n1/bramble-home/config";
                assert_eq!(said[topic]["components"][&key], json!({"p": "sensor"}));
                assert_eq!(later[topic]["components"].get(&key), None);
            } else {
                let topic = format!("homeassistant/sensor/n1/bramble-home-{key}/config");
                assert_eq!(said[topic.as_str()], Value::Null);
                assert!(!later.contains_key(topic.as_str()));
            }
        }
    }

    #[test]
    fn what_moves_is_first_taken_back_where_it_was() {
        let (info, state) = example();
        let device = Device::of_node(&info, &state, &around());
        let all = [Mode::Device, Mode::Component, Mode::Off].map(place);
        let elsewhere = [
            Place { prefix: Prefix::new("haus").unwrap(), ..all[0].clone() },
            Place { owner: Owner::Node(name("n2")), ..all[1].clone() },
            Place { cluster: name("away"), ..all[0].clone() },
        ];
        for from in all.iter().chain(&elsewhere) {
            let (first, before) = device.announce(from, None);
            let (then, after) = device.announce(&all[0], Some(&before));
            let (first, then) = (json(&first), json(&then));
            for topic in first.keys() {
                let left = then.get(topic).is_none_or(|payload| payload.is_null());
                assert_eq!(left, *from != all[0], "{topic}");
                assert!(*from == all[0] || then[topic].is_null(), "{topic} stays");
            }
            let (off, _) = device.announce(&all[2], Some(&after));
            assert_eq!(
                json(&off),
                BTreeMap::from([("homeassistant/device/n1/bramble-home/config", Value::Null)])
            );
        }
    }
}
