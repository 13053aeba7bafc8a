//! What the home sees of nodes: messages by their schema, entities that Home Assistant takes, requests, names that change, and
//! nothing of who left.

use std::{
    fs,
    process::Child,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use testbed::{
    broker::Listener,
    home_assistant::{self, HomeAssistant},
    lab::{Binaries, Lab, Node, Settings},
    mesh::{Ear, settle},
    namespace::run_in,
    watch::until,
};

use crate::{SETTLING, bed, logged, programs, root};

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
    let mut lab = Lab::network(&Binaries::within(&programs()?)?, 3, 0)?;
    for node in lab.nodes() {
        node.configure(lab.broker(), Settings { tls: true, ..Settings::default() })?;
    }
    lab.start_programs()?;
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

/// Each component of a device, and nothing of it but its platform.
fn taken_away(announcement: &Value) -> Value {
    let components = announcement["components"].as_object().into_iter().flatten();
    components.map(|(key, component)| (key.clone(), serde_json::json!({"p": component["p"]}))).collect()
}

/// For a Home Assistant that keeps what an emptied topic announced: each component is taken away by itself, once.
fn wait_until_taken_away(listener: &Listener, node: &str, announcement: &Value) -> Result<()> {
    until(SETTLING, &format!("each component of {node} is taken away"), || {
        let heard = listener.newest(&device_of(node)).filter(|heard| !heard.retained);
        let said = heard.and_then(|heard| serde_json::from_slice::<Value>(&heard.payload).ok());
        Ok(said.filter(|said| said["components"] == taken_away(announcement)).map(drop))
    })
}

pub(crate) fn a_node_that_is_gone_is_forgotten_by_the_aggregators_word() -> Result<()> {
    let mut lab = bed()?;
    let listener = lab.broker().listen("#")?;
    wait_until_whole(&listener, "n3")?;
    let announced: Value = listener.json(&device_of("n3")).context("n3 is announced")?;
    lab.node_mut("n3")?.agent().context("the agent runs")?.kill();
    sleep(AFTER_THE_WILLS);
    lab.forget("n3")?;
    wait_until_taken_away(&listener, "n3", &announced)?;
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
    let Ok(expected) = expected(listener, topic) else {
        return Ok(vec![format!("{topic} is not announced")]);
    };
    let mut amiss = Vec::new();
    for (platform, name, component) in expected {
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

    // Another name: the same entities, called otherwise; before 2026 they are made anew.
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
    let is_kept = home.year()? < 2026 || before.iter().all(|id| after.contains(id));
    ensure!(is_kept && before.len() == after.len(), "{before:?} became {after:?}");
    until(SETTLING, "nothing is called n3", || Ok(ids("n3")?.is_empty().then_some(())))?;

    lab.node_mut("n3")?.agent().context("the agent runs")?.kill();
    sleep(AFTER_THE_WILLS);
    lab.forget("attic")?;
    until(SETTLING, "nothing is shown of the attic", || Ok(ids("attic")?.is_empty().then_some(())))?;
    let mut complaints = home.complaints()?;
    if home.year()? < 2026 {
        // It does not find the components of a device whose topic is emptied, see `removal_of` in wire.
        complaints.retain(|line| {
            !["No device components to cleanup", "already exists - ignoring"]
                .iter()
                .any(|known| line.contains(known))
        });
    }
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

fn now() -> Result<String> {
    let date = std::process::Command::new("date").args(["-u", "+%FT%TZ"]).output()?;
    Ok(String::from_utf8(date.stdout)?.trim().to_owned())
}

/// Topics that the broker keeps of who speaks for a cluster, whose device is announced below a prefix.
fn left_of_cluster(listener: &Listener, cluster: &str, prefix: &str) -> Vec<String> {
    let own = format!("bramble/{cluster}/cluster/");
    let device = format!("{prefix}/device/bramble_cluster/bramble-{cluster}/");
    let all = [own, device].into_iter().flat_map(|begin| listener.below(&begin));
    all.filter(|(_, heard)| heard.retained).map(|(topic, _)| topic).collect()
}

pub(crate) fn a_cluster_that_nobody_speaks_for_is_taken_off_the_broker() -> Result<()> {
    let mut lab = bed()?;
    let listener = lab.broker().listen("#")?;
    let program = programs()?.join("bramble-aggregator").display().to_string();
    let (broker, page) = (lab.broker().address(), lab.page());
    let path = lab.lan().path("/run/bed/aggregator.toml");
    let configure = |cluster: &str, prefix: &str| -> Result<()> {
        let text = format!(
            "cluster = \"{cluster}\"\n[mqtt]\nhost = \"{}\"\nport = {}\nwill_delay = \"15s\"\n\
             [home_assistant]\nprefix = \"{prefix}\"\n[web]\nlisten = \"{page}\"\n",
            broker.ip(),
            broker.port()
        );
        Ok(fs::write(&path, text)?)
    };
    let reload = |lab: &mut Lab| -> Result<()> {
        let pid = lab.aggregator().context("the aggregator runs")?.pid();
        Ok(kill(Pid::from_raw(pid.cast_signed()), Signal::SIGHUP)?)
    };
    let say = |lab: &Lab, arguments: &[&str]| -> Result<(Option<i32>, String)> {
        let mut command = lab.lan().command_on_host_network(&program);
        let output = command.args(["--config", "/run/bed/aggregator.toml"]).args(arguments).output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8_lossy(&said).into_owned()))
    };
    // Presence, who speaks, state, device.
    let all_is_said = |cluster: &str, prefix: &str| {
        until(SETTLING * 2, &format!("all of {cluster} is said, below {prefix}"), || {
            Ok((left_of_cluster(&listener, cluster, prefix).len() >= 4).then_some(()))
        })
    };
    let vouched_by = |topic: &str| {
        until(SETTLING * 2, &format!("n1's agent is vouched for by {topic}"), || {
            let device: Option<Value> = listener.json(&device_of("n1"));
            let vouched = device.map(|d| d["components"]["agent"]["availability"][0]["topic"].clone());
            Ok(vouched.filter(|vouched| vouched == topic).map(drop))
        })
    };
    let gone = |cluster: &str, prefix: &str| {
        let nothing = || Ok(left_of_cluster(&listener, cluster, prefix).is_empty().then_some(()));
        until(SETTLING, &format!("nothing is left of {cluster} below {prefix}"), nothing)
            .with_context(|| format!("{:?}", left_of_cluster(&listener, cluster, prefix)))
    };
    logged(&lab, || {
        all_is_said("demo", "homeassistant")?;
        vouched_by("bramble/demo/cluster/availability")
    })?;
    let (code, said) = say(&lab, &["--forget", "no_name"])?;
    ensure!(code == Some(64) && said.contains("no valid name"), "{code:?}: {said}");
    let (code, said) = say(&lab, &["--forget-cluster"])?;
    let next = "sudo systemctl disable --now bramble-aggregator";
    ensure!(code == Some(71) && said.contains(next), "{code:?}: {said}");
    ensure!(left_of_cluster(&listener, "demo", "homeassistant").len() >= 4, "it was emptied all the same");

    configure("demo", "ha")?;
    reload(&mut lab)?;
    logged(&lab, || {
        all_is_said("demo", "ha")?;
        until(SETTLING, "the former prefix has nothing of the cluster", || {
            let device = listener.newest("homeassistant/device/bramble_cluster/bramble-demo/config");
            Ok(device.is_none_or(|device| !device.retained || device.payload.is_empty()).then_some(()))
        })
    })?;
    configure("other", "ha")?;
    reload(&mut lab)?;
    logged(&lab, || {
        all_is_said("other", "ha")?;
        gone("demo", "ha")?;
        vouched_by("bramble/demo/node/n1/availability")
    })?;

    lab.aggregator().context("the aggregator runs")?.kill();
    let (code, said) = say(&lab, &["--forget-cluster"])?;
    ensure!(code == Some(0) && said.contains("cluster other is off the broker"), "{code:?}: {said}");
    gone("other", "ha")?;
    // Its last will would have been said by now.
    sleep(Duration::from_secs(6));
    let late = lab.broker().listen("#")?;
    until(SETTLING, "the broker tells what it keeps", || Ok(is_whole(&late, "n1").then_some(())))?;
    sleep(Duration::from_secs(1));
    for (cluster, prefix) in [("demo", "homeassistant"), ("demo", "ha"), ("other", "ha")] {
        let left = left_of_cluster(&late, cluster, prefix);
        ensure!(left.is_empty(), "{cluster} below {prefix} left {left:?}");
    }
    Ok(())
}

/// Lets a node's agent begin anew, and waits until it is with the broker again.
fn restart(lab: &mut Lab, listener: &Listener, node: &str) -> Result<()> {
    let began = Instant::now();
    lab.node_mut(node)?.start_agent()?;
    let said = format!("bramble/demo/node/{node}/state");
    until(SETTLING, &format!("{node} speaks again"), || {
        Ok(listener.newest(&said).filter(|heard| heard.at > began).map(drop))
    })
}

/// Asks, and returns the answer.
fn ask(lab: &Lab, listener: &Listener, node: &str, verb: &str, transaction: &str) -> Result<Value> {
    let asked = Instant::now();
    let payload = format!("{{\"transaction\":\"{transaction}\",\"ts\":\"{}\"}}", now()?);
    let properties = ["message-expiry-interval 30", "response-topic elsewhere", "correlation-data x"];
    let topic = |kind: &str| format!("bramble/demo/node/{node}/{kind}/{verb}");
    lab.broker().publish_with(&topic("request"), payload.as_bytes(), false, &properties)?;
    let heard = until(SETTLING, &format!("{verb} is answered"), || {
        Ok(listener.newest(&topic("response")).filter(|heard| heard.at > asked))
    })?;
    ensure!(heard.expiry.is_some_and(|left| (1..=30).contains(&left)), "an answer expires: {heard:?}");
    ensure!(listener.newest("elsewhere").is_none(), "a node speaks on its own topics alone");
    let answer: Value = serde_json::from_slice(&heard.payload)?;
    ensure!(answer["transaction"] == transaction, "{answer}");
    Ok(answer)
}

/// Where K3s' installer writes its unit, by which a node knows what it is in the cluster.
const UNITS: &str = "/etc/systemd/system";

pub(crate) fn a_restart_that_others_need_this_node_for_is_refused_and_counts_as_asked() -> Result<()> {
    let mut lab = bed()?;
    let listener = lab.broker().listen("#")?;
    ["n1", "n2", "n3"].iter().try_for_each(|node| {
        run_in(lab.node(node)?.namespace(), "mount", &["-t", "tmpfs", "tmpfs", UNITS]).map(drop)
    })?;
    let serve = |lab: &Lab, node: &str| -> Result<()> {
        run_in(lab.node(node)?.namespace(), "touch", &[&format!("{UNITS}/k3s.service")]).map(drop)
    };
    ["n1", "n2"].iter().try_for_each(|node| serve(&lab, node))?;
    for node in ["n1", "n2", "n3"] {
        let path = config(lab.node(node)?);
        fs::write(&path, fs::read_to_string(&path)? + "\n[commands]\nallow = [\"reboot\"]\n")?;
        restart(&mut lab, &listener, node)?;
    }
    let asked = std::cell::Cell::new(0);
    let refused = |lab: &Lab, node: &str, transaction: &str, why: &str| -> Result<()> {
        // It was not heard of others yet, or was heard of them as they were before.
        until(SETTLING, &format!("{node} refuses because: {why}"), || {
            asked.set(asked.get() + 1);
            let answer = ask(lab, &listener, node, "reboot", &format!("{transaction}-{}", asked.get()))?;
            ensure!(answer["status"] == "error", "{answer}");
            Ok(answer["error"].as_str().unwrap_or_default().to_lowercase().contains(why).then_some(()))
        })
    };
    logged(&lab, || {
        refused(
            &lab,
            "n1",
            "majority",
            "1 of 2 servers would be left, which is no majority; add a third one",
        )?;
        let first = ask(&lab, &listener, "n1", "reboot", "once")?;
        let again = ask(&lab, &listener, "n1", "reboot", "once")?;
        ensure!(first["error"].as_str().is_some_and(|why| why.contains("no majority")), "{first}");
        ensure!(
            again["error"] == "the transaction once was done already; take a new one",
            "a request that is replayed: {again}"
        );
        Ok(())
    })?;
    // Nobody needs the one that is no server. Here is no systemd that could do it; the answer says so.
    logged(&lab, || refused(&lab, "n3", "none", "bus"))?;
    // Who asks again while it is about to begin is answered at once, and who asked first still is.
    logged(&lab, || {
        let first = format!("{{\"transaction\":\"first\",\"ts\":\"{}\"}}", now()?);
        lab.broker().publish("bramble/demo/node/n3/request/reboot", first.as_bytes(), false)?;
        let second = ask(&lab, &listener, "n3", "reboot", "second")?;
        let why = "it has been asked for already, and begins within seconds";
        ensure!(second["error"] == why, "{second}");
        until(SETTLING, "the first one is answered", || {
            let heard = listener.newest("bramble/demo/node/n3/response/reboot").context("one was heard")?;
            let answer: Value = serde_json::from_slice(&heard.payload)?;
            Ok((answer["transaction"] == "first").then_some(()))
        })
    })?;
    // A third one makes no majority while nobody knows whether K3s is up there.
    serve(&lab, "n3")?;
    restart(&mut lab, &listener, "n3")?;
    logged(&lab, || {
        [("n1", "n2"), ("n2", "n1"), ("n3", "n1")].into_iter().try_for_each(|(node, untold)| {
            refused(&lab, node, "third", &format!("whether k3s is up on {untold}, "))
        })
    })?;
    lab.node_mut("n2")?.agent().context("the agent runs")?.kill();
    sleep(AFTER_THE_WILLS);
    logged(&lab, || refused(&lab, "n3", "down", "n2 is down: two nodes less are too many"))?;
    let words = listener.newest("bramble/demo/node/n1/availability").context("n1 is there")?.payload;
    ensure!(words == b"online", "who was refused does not say that it goes");
    Ok(())
}

/// Shows a light to the agent.
const SHOWN: &str = "mount -t tmpfs tmpfs /sys/class && mkdir -p /sys/class/leds/ACT && echo none >/sys/class/leds/ACT/trigger";

/// Puts a light where the kernel would show it, and lets the verb that systemd starts for root find it.
const LIGHT: &str =
    "mount -t tmpfs tmpfs /sys/class && mkdir -p /sys/class/leds/ACT && cd /sys/class/leds/ACT || exit 1
echo 'none timer [mmc0]' > trigger
\"$0\" --config /run/bed/bramble.toml obey identify &
sleep 3; cat trigger; echo; wait $! && cat trigger";

pub(crate) fn identify_is_handed_to_systemd_and_lets_the_light_blink() -> Result<()> {
    let lab = bed()?;
    let listener = lab.broker().listen("#")?;
    wait_until_whole(&listener, "n1")?;
    let node = lab.node("n1")?;
    // Where the kernel shows a light, and here is no systemd to start anything for root; the answer says so.
    let mut show = node.namespace().command("sh");
    show.args(["-c", SHOWN]);
    testbed::process::run(show)?;
    let answer = logged(&lab, || ask(&lab, &listener, "n1", "identify", "here"))?;
    ensure!(answer["status"] == "error", "{answer}");
    ensure!(answer["error"].as_str().is_some_and(|why| why.to_lowercase().contains("bus")), "{answer}");
    let mut light = node.namespace().command("unshare");
    light.args(["--mount", "--propagation", "private", "--", "sh", "-c", LIGHT]).arg(node.program());
    let seen = testbed::process::run(light)?;
    ensure!(seen == "timer\nmmc0", "the light was {seen:?}");
    Ok(())
}

pub(crate) fn what_is_said_expires_as_documented() -> Result<()> {
    let mut lab = bed()?;
    let listener = lab.broker().listen("#")?;
    settle(&lab, &Ear::open(&lab)?, SETTLING * 2)?;
    let answer = ask(&lab, &listener, "n1", "check", "a")?;
    ensure!(answer["status"] == "ok", "{answer}");
    // Events, of a node and of the cluster.
    lab.node_mut("n3")?.companion().context("the companion runs")?.kill();
    // Reports are a second apart in the bed; the cluster's five.
    const WEEK: u32 = 7 * 24 * 3600;
    for (topic, retained, expiry) in [
        ("node/n1/availability", true, None),
        ("node/n1/info", true, Some(WEEK)),
        ("node/n1/state", true, Some(3)),
        ("node/n1/findings", true, None),
        ("node/n1/mesh", true, Some(3)),
        ("node/n3/event", false, Some(3600)),
        ("node/n1/history", false, None),
        ("node/n1/response/check", false, Some(30)),
        ("cluster/availability", true, None),
        ("cluster/info", true, None),
        ("cluster/state", true, Some(15)),
        ("cluster/event", false, Some(3600)),
    ] {
        let topic = format!("bramble/demo/{topic}");
        let heard = until(SETTLING * 2, &format!("{topic} is said"), || Ok(listener.newest(&topic)));
        let heard = logged(&lab, || heard)?;
        ensure!(heard.retained == retained, "{topic}: {heard:?}");
        // The broker counts down while it keeps it.
        let fits = match (heard.expiry, expiry) {
            (Some(left), Some(whole)) => (whole.saturating_sub(60)..=whole).contains(&left),
            (left, whole) => left == whole,
        };
        ensure!(fits, "{topic} expires after {:?} and not {expiry:?}", heard.expiry);
    }
    // Who comes later hears no state of a node that is gone.
    lab.node_mut("n2")?.agent().context("the agent runs")?.kill();
    sleep(AFTER_THE_WILLS);
    let late = lab.broker().listen("bramble/demo/node/n2/#")?;
    until(SETTLING, "what stays of n2 is heard", || Ok(late.newest("bramble/demo/node/n2/availability")))?;
    sleep(Duration::from_secs(1));
    let stays: Vec<String> = late.below("bramble/").into_iter().map(|(topic, _)| topic).collect();
    let kept = ["availability", "findings", "info"].map(|leaf| format!("bramble/demo/node/n2/{leaf}"));
    ensure!(stays == kept, "{stays:?}");
    Ok(())
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

/// What a Pi 5's body shows in `/sys` and `/proc`, beside what the trees hold. The second of two is what a bad one gives.
const BODY: &[(&str, &str, &str)] = &[
    ("proc/stat", "cpu  1 0 1 1 1 0 0 0 0 0\nbtime 1763870000\n", "cpu  \nbtime -1\n"),
    ("proc/loadavg", "0.10 0.20 0.30 1/100 1000\n", "garbage\n"),
    ("proc/diskstats", " 259 0 nvme0n1 1 0 8 0 1 0 16 0\n", " 259 0 nvme0n1 x\n"),
    ("proc/net/wireless", "|\n|\nwlan0: 0000   54.  -56.  -256 0 0 0 0 0 0\n", "|\n|\nwlan0: 0000\n"),
    ("sys/class/net/eth0/statistics/rx_bytes", "1\n", "-1\n"),
    ("sys/class/net/eth0/statistics/tx_bytes", "1\n", "\n"),
    ("sys/class/hwmon/hwmon0/name", "cpu_thermal\n", "cpu_thermal\n"),
    ("sys/class/hwmon/hwmon0/temp1_input", "48312\n", "-273150\n"),
    ("sys/class/hwmon/hwmon1/name", "rp1_adc\n", "\u{fffd}\n"),
    ("sys/class/hwmon/hwmon1/temp1_input", "48312\n", "48312\n"),
    ("sys/class/hwmon/hwmon2/name", "pwmfan\n", "pwmfan\n"),
    ("sys/class/hwmon/hwmon2/fan1_input", "3021\n", "99999999999999999999\n"),
    ("sys/class/hwmon/hwmon2/pwm1", "125\n", "NaN\n"),
    ("sys/class/hwmon/hwmon3/name", "nvme\n", "nvme\n"),
    ("sys/class/hwmon/hwmon3/temp1_input", "39850\n", "1e3\n"),
    ("sys/class/hwmon/hwmon4/name", "rpi_volt\n", "rpi_volt\n"),
    ("sys/class/hwmon/hwmon4/in0_lcrit_alarm", "0\n", "2\n"),
    ("sys/class/nvme/nvme0/state", "live\n", "\n"),
    ("sys/class/rtc/rtc0/battery_voltage", "3041200\n", "x\n"),
    ("sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq", "2400000\n", "0\n"),
    ("sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq", "2400000\n", "<unknown>\n"),
    ("sys/block/mmcblk0/device/life_time", "0x01 0x02\n", "0xff\n"),
    ("var/lib/update-notifier/updates-available", "1 package can be updated.\n", "many\n"),
];

/// What is measured by a part of the board, and where the kernel shows that part.
const PARTS: &[(&str, &str)] = &[
    ("-temperature", "hwmon"),
    ("fan", "hwmon"),
    ("core-voltage", "hwmon"),
    ("supply-voltage", "hwmon"),
    ("rail-", "hwmon"),
    ("board-power", "hwmon"),
    ("rtc-battery", "rtc0"),
    ("cpu-clock", "cpufreq"),
    ("life-used", "life_time"),
    ("-signal", "wireless"),
    ("disk-read", "diskstats"),
    ("disk-written", "diskstats"),
    ("network-", "statistics"),
    ("-pressure", "pressure"),
    ("sync-", "(no tree has it)"),
    ("disk-flush", "(no tree has it)"),
    ("api-", "(no tree has it)"),
    ("pending-upgrades", "updates-available"),
];

/// What an agent would say of a tree: its state, and its device.
fn said_of(tree: &std::path::Path) -> Result<(wire::report::NodeState, Value)> {
    use bramble::{
        companion::{Sample, Sources},
        host::{Host, state::State},
        probe::{PROBES, Seen},
        report::{History, Machine, Speaker},
    };
    use wire::{
        discovery::{Around, Device, Mode, Place},
        report::{Stamps, Tier},
        topic::{Name, Owner, Prefix, Verb},
    };
    let host = Host::tree(tree)?;
    let (cluster, node) = (Name::new("home")?, Name::new("n1")?);
    let tier = Tier { stamps: Stamps::None, attached: None, why: "a tree has no kernel".to_owned() };
    let sample = Sample {
        tier: tier.clone(),
        address: None,
        period_ms: 1000,
        next_ms: 1000,
        changes: Vec::new(),
        mesh: Err(String::new()),
        sources: None,
    };
    let scratch = tree.join("scratch");
    let (state, run) = (State::new(&scratch.join("state")), State::new(&scratch.join("run")));
    let mut judges: Vec<_> = PROBES.iter().map(|probe| (probe.judge)()).collect();
    let (mut healths, mut history) = (Vec::new(), History::default());
    let mut wall: jiff::Timestamp = "2026-11-23T06:00:00Z".parse()?;
    let (mut now, mut uptime, mut conditions) = (Instant::now(), Duration::from_secs(1000), Vec::new());
    // The clock of a Pi without a battery is set by half a century once the network is there, and back by who errs.
    const HALF_A_CENTURY: i64 = 50 * 365 * 24;
    for hours in [0, 1, HALF_A_CENTURY, -2 * HALF_A_CENTURY, HALF_A_CENTURY] {
        wall += jiff::SignedDuration::from_hours(hours);
        now += Duration::from_secs(10);
        uptime += Duration::from_secs(10);
        let seen = Seen {
            chips: &std::cell::OnceCell::new(),
            host: &host,
            companion: Ok(&sample),
            sources: &Sources::new(),
            online: &Default::default(),
            hindered: &Default::default(),
            node: &node,
            state: &state,
            run: &run,
            now,
            uptime,
            wall,
        };
        healths = judges.iter_mut().map(|judge| judge.judge(&seen)).collect();
        let statements = healths.iter().flat_map(|health| health.statements.clone()).collect();
        let steady = jiff::Timestamp::UNIX_EPOCH + uptime;
        history.was_set(steady, wall);
        conditions = history.date(statements, steady).conditions;
    }
    let speaker = Speaker { cluster: cluster.clone(), node: node.clone(), id: "7f3a91c2".to_owned() };
    let state = speaker.state(wall, tier, &healths, conditions, &[], 0);
    let info = speaker.info(wall, None, 1, &Machine::default());
    let around = Around { verbs: Verb::ALL.to_vec(), ..Around::default() };
    let owner = Owner::Node(node);
    let place = Place { mode: Mode::Device, prefix: Prefix::default(), cluster, owner };
    let (mut announced, _) = Device::of_node(&info, &state, &around).announce(&place, None);
    Ok((state, serde_json::from_slice(&announced.remove(0).1)?))
}

pub(crate) fn every_probe_on_every_tree_makes_entities_that_home_assistant_takes() -> Result<()> {
    let schemas = Schema::shipped()?;
    let schema = schemas.iter().find(|schema| schema.name == "node-state").context("it is shipped")?;
    let mut trees = 0;
    for entry in fs::read_dir(root().join("tests/hosts"))? {
        let tree = entry?.path();
        if !tree.join("expected.json").exists() {
            continue;
        }
        let name = tree.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let copy = std::env::temp_dir().join(format!("bed-body-{}-{name}", std::process::id()));
        let mut cp = testbed::process::bound("cp");
        cp.arg("--archive").arg(&tree).arg(&copy);
        testbed::process::run(cp)?;
        let judged = (|| -> Result<()> {
            let mut had = None;
            for body in ["none", "whole", "bad"] {
                for (path, good, bad) in BODY.iter().filter(|_| body != "none") {
                    fs::create_dir_all(copy.join(path).parent().context("it has one")?)?;
                    fs::write(copy.join(path), if body == "bad" { bad } else { good })?;
                }
                let link = copy.join("sys/class/hwmon/hwmon3/device");
                if body == "whole" {
                    std::os::unix::fs::symlink("../../nvme0", link)?;
                }
                let (state, device) = said_of(&copy)?;
                let faults = home_assistant::faults(&device);
                ensure!(faults.is_empty(), "{name}, body {body}: {faults:?}");
                if let Err(error) = schema.validator.validate(&serde_json::to_value(&state)?) {
                    bail!("{name}, body {body}: {error} at {}", error.instance_path());
                }
                let components = device["components"].as_object().context("it has components")?;
                let sensors = components.keys().filter(|key| key.starts_with("reading_")).count();
                ensure!(sensors == state.readings.len(), "{name}, body {body}: {sensors} sensors");
                for (id, reading) in &state.readings {
                    ensure!(reading.value.is_none_or(f64::is_finite), "{name}, body {body}: {id}");
                }
                match body {
                    "none" => {
                        for id in state.readings.keys() {
                            let part =
                                PARTS.iter().find(|(part, _)| id.starts_with(part) || id.ends_with(part));
                            let shown = part.is_none_or(|(_, shown)| has(&copy, shown));
                            ensure!(shown, "{name} has a reading {id} of a part that it has not");
                        }
                    }
                    "whole" => had = Some(state.readings),
                    _ => {
                        // A sensor that gives nonsense may say nothing, and must not say a number.
                        let (whole, bad) = (had.take().unwrap_or_default(), &state.readings);
                        for id in ["cpu-temperature", "fan-speed", "nvme0-temperature", "rtc-battery"] {
                            ensure!(whole.get(id).is_some_and(|r| r.value.is_some()), "{name} has no {id}");
                            ensure!(
                                bad.get(id).is_none_or(|r| r.value.is_none()),
                                "{name}: {:?}",
                                bad.get(id)
                            );
                        }
                    }
                }
            }
            Ok(())
        })();
        fs::remove_dir_all(&copy)?;
        judged?;
        trees += 1;
    }
    ensure!(trees >= 15, "only {trees} trees");
    Ok(())
}

/// Whether somewhere in a tree something has this name, or begins with it.
fn has(tree: &std::path::Path, name: &str) -> bool {
    fs::read_dir(tree).into_iter().flatten().flatten().any(|entry| {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        entry.file_name().to_string_lossy().starts_with(name) || (is_folder && has(&entry.path(), name))
    })
}
