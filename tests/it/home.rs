//! What the home sees of nodes: requests, names that change, and nothing of who left.

use std::{
    fs,
    process::Child,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testbed::{broker::Listener, lab::Node, watch::until};

use crate::{SETTLING, bed, logged};

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
