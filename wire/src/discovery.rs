//! Home Assistant's MQTT discovery: one device per node, derived from what the node says, so that a new probe
//! needs no edit here.
//!
//! Rules that this file keeps, because breaking one loses the whole device or leaves ghosts: every component has a
//! `unique_id` that hangs on the node's random id and on nothing else; no `object_id` and no `default_entity_id`;
//! units only in pairs that Home Assistant knows; a component that goes is first announced with its platform alone.
//! Needs Home Assistant 2024.11. Source: home-assistant.io, "MQTT discovery", device discovery payload.

use std::{
    collections::BTreeMap,
    hash::{Hash, Hasher},
    time::Duration,
};

use serde_json::{Map, Value, json};

use crate::{
    report::{Kind, NodeInfo, NodeState, OFFLINE, ONLINE, Reading, Unit},
    topic::{ClusterTopic, NodeTopic, Topic},
};

/// Platform of each component that was announced, by its key; kept so that vanished ones can be taken back.
pub type Announced = BTreeMap<String, &'static str>;

/// The retained payload of [`Topic::Discovery`], and what it announces.
///
/// `interval` is the time between two state messages. Components of `before` that are no longer there are
/// announced with their platform alone, which removes them; the next call, with the returned value as `before`, leaves
/// them out.
pub fn device(
    info: &NodeInfo,
    state: &NodeState,
    interval: Duration,
    before: &Announced,
) -> (Value, Announced) {
    let cluster = &info.header.cluster;
    let topic = |leaf| Topic::Node(info.header.node.clone(), leaf).in_cluster(cluster);
    let state_topic = topic(NodeTopic::State);
    let expire_after = interval.as_secs() * 3;
    let unique = |key: &str| json!(format!("bramble_{}_{}", info.id, key));

    let mut components = Map::new();
    let mut announced = Announced::new();
    let mut add = |key: String, platform: &'static str, mut component: Value| {
        component["p"] = json!(platform);
        component["unique_id"] = unique(&key);
        components.insert(key.clone(), component);
        announced.insert(key, platform);
    };

    for (id, reading) in &state.readings {
        let mut sensor = sensor(reading);
        sensor["state_topic"] = json!(state_topic);
        sensor["value_template"] = json!(format!("{{{{ value_json.readings['{id}'].value }}}}"));
        sensor["expire_after"] = json!(expire_after);
        add(key(id), "sensor", sensor);
    }
    for condition in state.conditions.iter().filter(|c| c.subject.is_none()) {
        let id = &condition.id;
        add(
            key(id),
            "binary_sensor",
            json!({
                "name": condition.title,
                "device_class": "problem",
                "entity_category": "diagnostic",
                "state_topic": state_topic,
                "value_template": format!(
                    "{{% set c = value_json.conditions | selectattr('id', 'eq', '{id}') | selectattr('subject', 'none') \
                     | first %}}{{{{ {{'clear': 'OFF', 'raised': 'ON'}}.get(c.status, 'None') }}}}"
                ),
                "expire_after": expire_after,
            }),
        );
    }
    add(
        "problem".to_owned(),
        "binary_sensor",
        json!({
            "name": "Problem",
            "device_class": "problem",
            "state_topic": state_topic,
            // Raised beats unknown, and unknown is never "no problem".
            "value_template": "{% set s = value_json.conditions | map(attribute='status') | list %}{{ 'ON' if 'raised' in s else 'None' if 'unknown' in s else 'OFF' }}",
            "expire_after": expire_after,
        }),
    );
    // Off instead of unavailable when the node goes: the aggregator vouches for the topic.
    add(
        "connectivity".to_owned(),
        "binary_sensor",
        json!({
            "name": "Agent",
            "device_class": "connectivity",
            "entity_category": "diagnostic",
            "state_topic": topic(NodeTopic::Availability),
            "payload_on": ONLINE,
            "payload_off": OFFLINE,
            "availability": [{"topic": Topic::Cluster(ClusterTopic::Availability).in_cluster(cluster)}],
        }),
    );
    // The device's own availability is for the entities that have none.
    let availability = json!([{"topic": topic(NodeTopic::Availability)}]);
    for (key, component) in &mut components {
        if key != "connectivity" {
            component["availability"] = availability.clone();
        }
    }
    for (key, platform) in before {
        if !announced.contains_key(key) {
            components.insert(key.clone(), json!({"p": platform}));
        }
    }

    let mut device = json!({
        "identifiers": [format!("bramble_{}", info.id)],
        "name": info.header.node.as_str(),
        "sw_version": info.version,
    });
    if let Some(model) = &info.model {
        device["model"] = json!(model);
    }
    let payload = json!({
        "device": device,
        "origin": {"name": "bramble", "sw_version": info.version},
        "qos": 1,
        "components": components,
    });
    (payload, announced)
}

/// A number that changes when [`device`] would announce something else for a node that stays the same.
pub fn shape(state: &NodeState) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    for (id, reading) in &state.readings {
        (id, &reading.title, reading.unit as u8, reading.kind as u8).hash(&mut hasher);
    }
    for condition in state.conditions.iter().filter(|c| c.subject.is_none()) {
        (&condition.id, &condition.title).hash(&mut hasher);
    }
    hasher.finish()
}

/// Component keys and unique ids have no `-`, so that the two never differ in what Home Assistant makes of them.
fn key(id: &str) -> String {
    id.replace('-', "_")
}

fn sensor(reading: &Reading) -> Value {
    let mut sensor = json!({"name": reading.title});
    // Home Assistant has no class for latency; `duration` takes ms.
    let (class, unit) = match reading.unit {
        Unit::Celsius => (Some("temperature"), Some("°C")),
        Unit::Millisecond => (Some("duration"), Some("ms")),
        Unit::Byte => (Some("data_size"), Some("B")),
        Unit::Percent => (None, Some("%")),
        Unit::PerSecond => (None, Some("1/s")),
        Unit::BytePerSecond => (Some("data_rate"), Some("B/s")),
        Unit::Second => (Some("duration"), Some("s")),
        Unit::Volt => (Some("voltage"), Some("V")),
        Unit::Ampere => (Some("current"), Some("A")),
        Unit::Watt => (Some("power"), Some("W")),
        Unit::Megahertz => (Some("frequency"), Some("MHz")),
        Unit::PerMinute => (None, Some("rpm")),
        Unit::DecibelMilliwatt => (Some("signal_strength"), Some("dBm")),
        Unit::Count => (None, None),
    };
    if let Some(class) = class {
        sensor["device_class"] = json!(class);
    }
    if let Some(unit) = unit {
        sensor["unit_of_measurement"] = json!(unit);
    }
    match reading.kind {
        Kind::Gauge => {
            sensor["state_class"] = json!("measurement");
            let digits = if reading.unit == Unit::Millisecond { 3 } else { 1 };
            if !matches!(reading.unit, Unit::Count | Unit::Byte) {
                sensor["suggested_display_precision"] = json!(digits);
            }
        }
        Kind::Total => {
            sensor["state_class"] = json!("total_increasing");
            sensor["enabled_by_default"] = json!(false);
            sensor["entity_category"] = json!("diagnostic");
        }
    }
    sensor
}

#[cfg(test)]
mod tests {
    use crate::report::{NodeState, read};

    use super::*;

    fn golden<T: serde::de::DeserializeOwned>(file: &str) -> T {
        let node = crate::topic::Name::new("n1").unwrap();
        let cluster = crate::topic::Name::new("home").unwrap();
        read(file.as_bytes(), &cluster, &node).unwrap()
    }

    fn example() -> (NodeInfo, NodeState) {
        (golden(include_str!("../golden/v1/info.json")), golden(include_str!("../golden/v1/state.json")))
    }

    #[test]
    fn the_device_is_announced_as_it_always_was() {
        let (info, state) = example();
        let (payload, _) = device(&info, &state, Duration::from_secs(10), &Announced::new());
        let golden: Value = serde_json::from_str(include_str!("../golden/v1/discovery.json")).unwrap();
        assert_eq!(payload, golden, "announced now: {payload:#}");
    }

    #[test]
    fn the_shape_changes_with_what_is_announced_and_not_with_the_numbers() {
        let (_, mut state) = example();
        let before = shape(&state);
        for reading in state.readings.values_mut() {
            reading.value = Some(1.5);
        }
        assert_eq!(shape(&state), before);
        state.readings.pop_first();
        assert_ne!(shape(&state), before);
    }

    #[test]
    fn every_component_has_a_unique_id_that_hangs_on_the_random_id_alone() {
        let (mut info, state) = example();
        let ids = |info: &NodeInfo| -> Vec<String> {
            let (payload, _) = device(info, &state, Duration::from_secs(10), &Announced::new());
            payload["components"]
                .as_object()
                .unwrap()
                .values()
                .map(|c| c["unique_id"].as_str().unwrap().to_owned())
                .collect()
        };
        let before = ids(&info);
        info.header.node = crate::topic::Name::new("renamed").unwrap();
        info.model = None;
        assert_eq!(ids(&info), before);
        let mut unique = before.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), before.len());
    }

    #[test]
    fn a_vanished_component_is_taken_back_once() {
        let (info, mut state) = example();
        let (_, before) = device(&info, &state, Duration::from_secs(10), &Announced::new());
        let gone = state.readings.pop_first().unwrap().0;
        let (payload, now) = device(&info, &state, Duration::from_secs(10), &before);
        assert_eq!(payload["components"][key(&gone)], json!({"p": "sensor"}));
        let (payload, _) = device(&info, &state, Duration::from_secs(10), &now);
        assert_eq!(payload["components"].get(key(&gone)), None);
    }
}
