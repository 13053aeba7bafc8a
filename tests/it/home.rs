//! What the home sees of nodes: messages by their schema, entities that Home Assistant takes, requests, names that change, and
//! nothing of who left.

use std::{
    fs,
    process::Child,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use testbed::{
    broker::Listener,
    home_assistant::{self, HomeAssistant},
    lab::Node,
    mesh::{Ear, settle},
    watch::until,
};

use crate::{SETTLING, bed, logged, root};

/// Longer than the last wills of the bed's nodes wait.
const AFTER_THE_WILLS: Duration = Duration::from_secs(4);

fn device_of(node: &str) -> String {
    format!("homeassistant/device/{node}/bramble-demo/config")
}

/// Topics that the broker keeps of a node.
fn left(listener: &Listener, node: &str) -> Vec<String> {
    let own = [format!("bramble/demo/node/{node}/"), format!("homeassistant/device/{node}/")];
    let all = own.iter().flat_map(|prefix| listener.below(prefix));
    all.filter(|(_, heard)| heard.retained).map(|(topic, _)| topic).collect()
}

fn is_whole(listener: &Listener, node: &str) -> bool {
    left(listener, node).len() >= 6
}

fn wait_until_whole(listener: &Listener, node: &str) -> Result<()> {
    until(SETTLING * 4, &format!("{node} has said everything"), || Ok(is_whole(listener, node).then_some(())))
}

/// What is still there is named, with how its last message began.
fn wait_until_nothing_is_left(listener: &Listener, node: &str) -> Result<()> {
    let gone = until(SETTLING, &format!("nothing is left of {node}"), || {
        Ok(left(listener, node).is_empty().then_some(()))
    });
    gone.with_context(|| {
        let all = left(listener, node).into_iter().filter_map(|topic| {
            let heard = listener.newest(&topic)?;
            let payload: String = String::from_utf8_lossy(&heard.payload).chars().take(80).collect();
            Some(format!("\n{topic}, {:.1?} ago: {payload}", heard.at.elapsed()))
        });
        format!("left:{}", all.collect::<String>())
    })
}

fn forget(node: &Node) -> Result<Child> {
    Ok(node.command(&["forget", "--config", "/run/bed/bramble.toml"]).spawn()?)
}

pub(crate) fn a_hundred_rounds_of_coming_and_being_forgotten_leave_nothing() -> Result<()> {
    let mut lab = bed()?;
    let names: Vec<String> = lab.nodes().iter().map(|node| node.name().to_owned()).collect();
    for round in 0..100_usize.div_ceil(names.len()) {
        let listener = lab.broker().listen("#")?;
        for name in &names {
            if round > 0 {
                lab.node_mut(name)?.start_agent()?;
            }
        }
        for name in &names {
            logged(&lab, || wait_until_whole(&listener, name)).with_context(|| format!("round {round}"))?;
        }
        for name in &names {
            lab.node_mut(name)?.agent().context("the agent runs")?.kill();
        }
        let leaving = names.iter().map(|name| forget(lab.node(name)?)).collect::<Result<Vec<_>>>()?;
        for mut child in leaving {
            ensure!(child.wait()?.success(), "bramble forget failed in round {round}: {}", lab.logs());
        }
    }
    sleep(AFTER_THE_WILLS);
    let listener = lab.broker().listen("#")?;
    sleep(Duration::from_secs(1));
    ensure!(!listener.below("homeassistant/").is_empty(), "the cluster's own device is gone as well");
    for name in &names {
        ensure!(left(&listener, name).is_empty(), "{name} left {:?}", left(&listener, name));
    }
    Ok(())
}

pub(crate) fn a_node_that_is_gone_is_forgotten_by_the_aggregators_word() -> Result<()> {
    let mut lab = bed()?;
    let listener = lab.broker().listen("#")?;
    wait_until_whole(&listener, "n3")?;
    lab.node_mut("n3")?.agent().context("the agent runs")?.kill();
    sleep(AFTER_THE_WILLS);
    lab.forget("n3")?;
    wait_until_nothing_is_left(&listener, "n3")?;
    ensure!(is_whole(&listener, "n1") && is_whole(&listener, "n2"), "others are gone as well");
    until(SETTLING, "the page has forgotten n3", || {
        let nodes = lab.cluster()?["nodes"].as_array().map(Vec::len);
        Ok((nodes == Some(2)).then_some(()))
    })
}

fn config(node: &Node) -> std::path::PathBuf {
    node.namespace().path("/run/bed/bramble.toml")
}

fn unique_id(listener: &Listener, node: &str) -> Option<String> {
    let device: Value = listener.json(&device_of(node))?;
    Some(device["components"]["problem"]["unique_id"].as_str()?.to_owned())
}

pub(crate) fn another_name_takes_the_entities_along_and_leaves_nothing_behind() -> Result<()> {
    let mut lab = bed()?;
    let listener = lab.broker().listen("#")?;
    wait_until_whole(&listener, "n3")?;
    let before = unique_id(&listener, "n3").context("n3 is announced")?;
    let path = config(lab.node("n3")?);
    fs::write(&path, fs::read_to_string(&path)?.replace("name = \"n3\"", "name = \"attic\""))?;
    lab.node_mut("n3")?.start_agent()?;
    logged(&lab, || {
        wait_until_whole(&listener, "attic")?;
        wait_until_nothing_is_left(&listener, "n3")?;
        ensure!(unique_id(&listener, "attic") == Some(before), "the entities are others");
        sleep(AFTER_THE_WILLS);
        ensure!(left(&listener, "n3").is_empty(), "{:?}", left(&listener, "n3"));
        Ok(())
    })
}

pub(crate) fn a_name_that_was_left_is_emptied_although_the_agent_was_killed_over_it() -> Result<()> {
    let mut lab = bed()?;
    let listener = lab.broker().listen("#")?;
    wait_until_whole(&listener, "n3")?;
    let path = config(lab.node("n3")?);
    fs::write(&path, fs::read_to_string(&path)?.replace("name = \"n3\"", "name = \"attic\""))?;
    lab.node_mut("n3")?.start_agent()?;
    until(SETTLING * 2, "the new name is announced", || Ok(listener.newest(&device_of("attic"))))?;
    lab.node_mut("n3")?.agent().context("the agent runs")?.kill();
    ensure!(!left(&listener, "n3").is_empty(), "it was killed too late");
    lab.node_mut("n3")?.start_agent()?;
    logged(&lab, || {
        wait_until_whole(&listener, "attic")?;
        wait_until_nothing_is_left(&listener, "n3")
    })
}

pub(crate) fn an_agent_that_may_not_speak_yet_sees_and_answers() -> Result<()> {
    let mut lab = bed()?;
    let listener = lab.broker().listen("#")?;
    wait_until_whole(&listener, "n3")?;
    drop(listener);
    lab.broker_goes_away();
    let path = config(lab.node("n3")?);
    fs::write(&path, fs::read_to_string(&path)?.replace("name = \"n3\"", "name = \"attic\""))?;
    lab.node_mut("n3")?.start_agent()?;
    until(SETTLING, "it answers, and says why it is silent", || {
        let status = lab.node("n3")?.status().ok();
        let why = status.as_ref().and_then(|status| status["broker_why"].as_str()).unwrap_or_default();
        let judged = status.as_ref().and_then(|status| status["findings"]["findings"].as_array());
        let judged = judged.is_some_and(|findings| !findings.is_empty());
        Ok((why.contains("whether this card was copied") && judged).then_some(()))
    })
    .with_context(|| lab.logs())?;
    lab.broker_comes_back()?;
    let listener = lab.broker().listen("#")?;
    logged(&lab, || wait_until_whole(&listener, "attic"))?;
    ensure!(left(&listener, "n3").is_empty(), "{:?}", left(&listener, "n3"));
    Ok(())
}

pub(crate) fn a_copied_card_gets_an_id_of_its_own_and_harms_nothing_of_the_originals() -> Result<()> {
    let mut lab = bed()?;
    let listener = lab.broker().listen("#")?;
    ["n1", "n2", "n3"].iter().try_for_each(|node| wait_until_whole(&listener, node))?;
    let id = |node: &str| {
        listener.json::<Value>(&format!("bramble/demo/node/{node}/info")).map(|i| i["id"].clone())
    };
    let original = id("n2").context("n2 has an id")?;
    // The state directories are the bed's, one for each node.
    for file in ["identity.json", "announced.json"] {
        let [from, to] = ["n2", "n3"].map(|node| {
            Ok::<_, anyhow::Error>(lab.node(node)?.namespace().path(&format!("/run/bed/state/{file}")))
        });
        fs::copy(from?, to?)?;
    }
    lab.node_mut("n3")?.start_agent()?;
    logged(&lab, || {
        until(SETTLING * 2, "n3 has another id than n2", || {
            let now = id("n3");
            let fresh = lab.node("n3")?.log().contains("this card is a copy");
            Ok((fresh && now.is_some() && now != Some(original.clone())).then_some(()))
        })?;
        ensure!(id("n2") == Some(original), "n2 has lost its id");
        ensure!(is_whole(&listener, "n2"), "n2 was emptied: {:?}", left(&listener, "n2"));
        Ok(())
    })
}

/// A shipped schema, and the topic that it says it is of, with `<...>` for what differs.
struct Schema {
    name: String,
    topic: String,
    validator: jsonschema::Validator,
}

impl Schema {
    fn shipped() -> Result<Vec<Self>> {
        let folder = fs::read_dir(root().join("packaging/schema"))?;
        let schema = |entry: std::io::Result<fs::DirEntry>| {
            let path = entry?.path();
            let schema: Value = serde_json::from_slice(&fs::read(&path)?)?;
            let topic = schema["$comment"].as_str().and_then(|said| said.strip_prefix("carried by "));
            Ok(Self {
                name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
                topic: topic.with_context(|| format!("{} names no topic", path.display()))?.to_owned(),
                validator: jsonschema::validator_for(&schema)?,
            })
        };
        folder.map(schema).collect()
    }

    fn is_of(&self, topic: &str) -> bool {
        let (levels, own) = (topic.split('/'), self.topic.split('/'));
        levels.clone().count() == own.clone().count()
            && levels.zip(own).all(|(level, own)| level == own || own.starts_with('<'))
    }
}

pub(crate) fn everything_that_is_said_agrees_with_its_schema() -> Result<()> {
    let mut lab = bed()?;
    let listener = lab.broker().listen("#")?;
    settle(&lab, &Ear::open(&lab)?, SETTLING * 2)?;
    lab.broker().publish("bramble/demo/node/n1/request/check", b"{\"transaction\":\"a\"}", false)?;
    // An alert, and events of nodes and of the cluster.
    lab.node_mut("n3")?.companion().context("the companion runs")?.kill();
    let schemas = Schema::shipped()?;
    logged(&lab, || {
        for schema in &schemas {
            until(SETTLING * 2, &format!("{} is said", schema.topic), || {
                Ok(listener.below("bramble/").iter().any(|(topic, _)| schema.is_of(topic)).then_some(()))
            })?;
        }
        for (topic, heard) in listener.below("bramble/") {
            if topic.ends_with("/availability") {
                ensure!(["online", "offline"].map(str::as_bytes).contains(&&heard.payload[..]), "{topic}");
                continue;
            }
            let schema = schemas.iter().find(|schema| schema.is_of(&topic));
            let schema = schema.with_context(|| format!("no schema is of {topic}"))?;
            let message: Value = serde_json::from_slice(&heard.payload).with_context(|| topic.clone())?;
            if let Err(error) = schema.validator.validate(&message) {
                bail!("{topic} against {}.json: {error} at {}", schema.name, error.instance_path());
            }
        }
        Ok(())
    })
}

pub(crate) fn every_entity_is_one_that_home_assistant_takes() -> Result<()> {
    let lab = bed()?;
    let listener = lab.broker().listen("#")?;
    settle(&lab, &Ear::open(&lab)?, SETTLING * 2)?;
    logged(&lab, || {
        let announced = listener.below("homeassistant/");
        ensure!(announced.len() == 4, "not three nodes and a cluster: {}", announced.len());
        for (topic, heard) in announced {
            let device: Value = serde_json::from_slice(&heard.payload)?;
            let faults = home_assistant::faults(&device);
            ensure!(faults.is_empty(), "{topic}: {faults:?}");
        }
        Ok(())
    })
}

/// What Home Assistant should show of a device: domain, name, and what the table of classes is about.
fn expected(listener: &Listener, topic: &str) -> Result<Vec<(String, String, Value)>> {
    let device: Value = listener.json(topic).with_context(|| format!("{topic} is announced"))?;
    let owner = device["device"]["name"].as_str().context("it has a name")?;
    let components = device["components"].as_object().context("it has components")?.values();
    let shown = components.filter(|component| component["enabled_by_default"] != false);
    let entity = |component: &Value| {
        let platform = component["p"].as_str().context("it has a platform")?.to_owned();
        let name = component["name"].as_str().map_or(owner.to_owned(), |name| format!("{owner} {name}"));
        Ok((platform, name, component.clone()))
    };
    shown.map(entity).collect()
}

/// What is not shown of a device as it was announced, or not at all, or without a value.
fn amiss(home: &HomeAssistant, listener: &Listener, topic: &str) -> Result<Vec<String>> {
    let states = home.states()?;
    let mut amiss = Vec::new();
    for (platform, name, component) in expected(listener, topic)? {
        let shown = states.iter().find(|state| {
            let id = state["entity_id"].as_str().unwrap_or_default();
            state["attributes"]["friendly_name"] == name.as_str() && id.starts_with(&format!("{platform}."))
        });
        let Some(shown) = shown else {
            amiss.push(format!("{platform} {name:?} is not there"));
            continue;
        };
        if shown["state"] == "unavailable" {
            amiss.push(format!("{name:?} is unavailable"));
        }
        // A person may see another unit than the node's; the class is the same.
        for key in ["device_class", "state_class"] {
            if shown["attributes"].get(key) != component.get(key) {
                amiss.push(format!("{name:?} has {key} {:?}", shown["attributes"].get(key)));
            }
        }
    }
    Ok(amiss)
}

fn wait_until_shown(home: &HomeAssistant, listener: &Listener, topic: &str) -> Result<()> {
    until(SETTLING * 2, &format!("{topic} is shown"), || {
        Ok(amiss(home, listener, topic)?.is_empty().then_some(()))
    })
    .with_context(|| format!("{:?}", amiss(home, listener, topic)))
}

/// Entities whose name begins with a node's.
fn shown_of(home: &HomeAssistant, node: &str) -> Result<Vec<Value>> {
    let mut states = home.states()?;
    let begin = format!("{node} ");
    states.retain(|s| s["attributes"]["friendly_name"].as_str().is_some_and(|name| name.starts_with(&begin)));
    Ok(states)
}

pub(crate) fn the_given_home_assistant_shows_what_is_announced_and_nothing_of_who_left() -> Result<()> {
    let mut home = HomeAssistant::named()?;
    let mut lab = bed()?;
    let listener = lab.broker().listen("#")?;
    settle(&lab, &Ear::open(&lab)?, SETTLING * 2)?;
    home.connect(lab.broker().address().into())?;
    for topic in ["n1", "n2", "n3"].map(device_of) {
        wait_until_shown(&home, &listener, &topic)?;
    }
    wait_until_shown(&home, &listener, "homeassistant/device/bramble_cluster/bramble-demo/config")?;

    // Who is gone is off, and what it measured is shown no more.
    lab.node_mut("n3")?.agent().context("the agent runs")?.kill();
    until(SETTLING * 2, "n3 is off and its values are unavailable", || {
        let all = shown_of(&home, "n3")?;
        let (agent, others): (Vec<_>, Vec<_>) =
            all.iter().partition(|s| s["attributes"]["device_class"] == "connectivity");
        let off = agent.len() == 1 && agent[0]["state"] == "off";
        Ok((off && others.iter().all(|s| s["state"] == "unavailable")).then_some(()))
    })?;

    // Another name: the same entities, called otherwise.
    let ids = |node: &str| -> Result<Vec<Value>> {
        Ok(shown_of(&home, node)?.iter().map(|state| state["entity_id"].clone()).collect())
    };
    let before = ids("n3")?;
    let path = config(lab.node("n3")?);
    fs::write(&path, fs::read_to_string(&path)?.replace("name = \"n3\"", "name = \"attic\""))?;
    lab.node_mut("n3")?.start_agent()?;
    wait_until_whole(&listener, "attic")?;
    wait_until_shown(&home, &listener, &device_of("attic"))?;
    let after = ids("attic")?;
    ensure!(before.iter().all(|id| after.contains(id)), "{before:?} became {after:?}");
    until(SETTLING, "nothing is called n3", || Ok(ids("n3")?.is_empty().then_some(())))?;

    lab.node_mut("n3")?.agent().context("the agent runs")?.kill();
    sleep(AFTER_THE_WILLS);
    lab.forget("attic")?;
    until(SETTLING, "nothing is shown of the attic", || Ok(ids("attic")?.is_empty().then_some(())))?;
    let complaints = home.complaints()?;
    ensure!(complaints.is_empty(), "Home Assistant complains: {complaints:#?}");
    Ok(())
}

/// Why no Home Assistant can be asked here and now.
pub(crate) fn no_home_assistant() -> Option<String> {
    HomeAssistant::named().err().map(|why| format!("{why:#}"))
}

pub(crate) fn requests_are_answered_and_only_what_the_owner_listed_is_done() -> Result<()> {
    let lab = bed()?;
    let listener = lab.broker().listen("#")?;
    wait_until_whole(&listener, "n1")?;
    let now = || -> Result<String> {
        let date = std::process::Command::new("date").args(["-u", "+%FT%TZ"]).output()?;
        Ok(String::from_utf8(date.stdout)?.trim().to_owned())
    };
    logged(&lab, || {
        for (number, (verb, payload, status, error)) in [
            ("check", "{\"transaction\":\"T\"}".to_owned(), "ok", ""),
            ("refresh", "{\"transaction\":\"T\"}".to_owned(), "ok", ""),
            (
                "reboot",
                format!("{{\"transaction\":\"T\",\"ts\":\"{}\"}}", now()?),
                "error",
                "allow = [\"reboot\"]",
            ),
            (
                "apply",
                format!("{{\"transaction\":\"T\",\"ts\":\"{}\"}}", now()?),
                "error",
                "allow = [\"apply\"]",
            ),
        ]
        .into_iter()
        .enumerate()
        {
            let transaction = format!("t{number}");
            let payload = payload.replace("\"T\"", &format!("\"{transaction}\""));
            lab.broker().publish(
                &format!("bramble/demo/node/n1/request/{verb}"),
                payload.as_bytes(),
                false,
            )?;
            let answer: Value = until(SETTLING, &format!("{verb} is answered"), || {
                let answer: Option<Value> = listener.json(&format!("bramble/demo/node/n1/response/{verb}"));
                Ok(answer.filter(|answer| answer["transaction"] == transaction.as_str()))
            })?;
            ensure!(answer["status"] == status, "{verb}: {answer}");
            ensure!(answer["error"].as_str().unwrap_or_default().contains(error), "{verb}: {answer}");
        }
        Ok(())
    })
}

pub(crate) fn when_home_assistant_starts_everything_is_said_again_a_little_later() -> Result<()> {
    let lab = bed()?;
    let listener = lab.broker().listen("#")?;
    ["n1", "n2", "n3"].iter().try_for_each(|node| wait_until_whole(&listener, node))?;
    // What changes at the beginning has changed.
    sleep(Duration::from_secs(12));
    let born = Instant::now();
    lab.broker().publish("homeassistant/status", b"online", false)?;
    let cluster = "homeassistant/device/bramble_cluster/bramble-demo/config".to_owned();
    for topic in ["n1", "n2", "n3"].map(device_of).into_iter().chain([cluster]) {
        let heard = until(SETTLING * 2, &format!("{topic} is said again"), || {
            Ok(listener.newest(&topic).filter(|heard| heard.at > born))
        });
        let heard = logged(&lab, || heard)?;
        ensure!(heard.at.duration_since(born) >= Duration::from_millis(900), "{topic} was said at once");
    }
    Ok(())
}

pub(crate) fn the_shipped_files_for_home_assistant_are_yaml() -> Result<()> {
    for file in ["node-has-a-problem.yaml", "dashboard.yaml"] {
        let text = fs::read_to_string(root().join("packaging/home-assistant").join(file))?;
        // Home Assistant's own tag for what a blueprint asks for.
        let plain = text.replace("!input ", "");
        let value: Value = serde_saphyr::from_str(&plain).with_context(|| file.to_owned())?;
        let key = if file.starts_with("dashboard") { "views" } else { "blueprint" };
        ensure!(value.get(key).is_some(), "{file} has no {key}");
        if key == "blueprint" {
            let inputs = value["blueprint"]["input"].as_object().context("it asks for something")?;
            for used in text.split("!input ").skip(1).filter_map(|rest| rest.split_whitespace().next()) {
                ensure!(inputs.contains_key(used), "{file} uses {used}, which it does not ask for");
            }
        }
    }
    ensure!(serde_saphyr::from_str::<Value>("a: [1").is_err(), "nonsense is taken for YAML");
    Ok(())
}
