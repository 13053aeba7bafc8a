//! Messages that nobody of ours would send: counted, dropped, and never the end of anything.

use anyhow::{Context, Result, ensure};
use testbed::{
    lab::Lab,
    mesh::{Ear, settle},
    watch::until,
};
use wire::report::Status;

use crate::{SETTLING, bed, logged};

/// What is said on a topic of the bed's cluster, and the word that the aggregator counts it under.
fn lies() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let header =
        |node: &str| format!(r#""v":1,"ts":"2026-11-23T06:00:00Z","cluster":"demo","node":"{node}""#);
    vec![
        ("bramble/demo/node/n1/state", b"{".to_vec(), "not-json"),
        ("bramble/demo/node/n1/state", vec![0xff; 300], "not-json"),
        ("bramble/demo/node/n1/mesh", "[".repeat(60_000).into_bytes(), "not-json"),
        ("bramble/demo/node/n1/availability", b"<script>alert(1)</script>".to_vec(), "not-json"),
        ("bramble/demo/node/n1/mesh", vec![b'x'; 1 << 20], "too-large"),
        (
            "bramble/demo/node/n1/findings",
            format!("{{{},\"findings\":[]}}", header("n1")).replace("\"v\":1", "\"v\":999").into_bytes(),
            "version",
        ),
        (
            "bramble/demo/node/n1/findings",
            format!("{{{},\"findings\":[]}}", header("n2")).into_bytes(),
            "misplaced",
        ),
        (
            "bramble/demo/node/n1/findings",
            format!("{{{},\"findings\":[]}}", header("n1")).replace("demo", "away").into_bytes(),
            "misplaced",
        ),
        (
            "bramble/demo/node/n1/findings",
            format!("{{{},\"findings\":[]}}", header("a/+#\\u0000")).into_bytes(),
            "not-json",
        ),
        ("bramble/demo/node/n1/info", presence("n1", "id", "\u{1b}[2J"), "content"),
        ("bramble/demo/node/n1/info", presence("n1", "version", &"9".repeat(100_000)), "content"),
        ("bramble/demo/node/n1/info", presence("n1", "role", "queen"), "content"),
        ("bramble/demo/node/<img src=x>/state", b"{}".to_vec(), "bad-name"),
        ("bramble/demo/node/N1/state", b"{}".to_vec(), "bad-name"),
        ("bramble/demo/node/n1/firmware", b"{}".to_vec(), "unknown-topic"),
    ]
}

/// A presence of `node`, as a node says it but for one field.
fn presence(node: &str, field: &str, value: &str) -> Vec<u8> {
    let mut info = serde_json::json!({
        "v": 1, "ts": "2026-11-23T06:00:00Z", "cluster": "demo", "node": node, "id": "00c0ffee", "version": "0.1.0",
        "address": "198.18.77.99", "probe_port": 9473, "model": null, "kernel": null, "os": null, "role": "agent",
        "newest": "0.1.0",
    });
    info[field] = value.into();
    info.to_string().into_bytes()
}

/// What agents are told on the topics that they listen to: the presence of their peers, their own, and the aggregator's.
fn lies_to_agents() -> Vec<(&'static str, Vec<u8>)> {
    const PEER: &str = "bramble/demo/node/n9/info";
    const OWN: &str = "bramble/demo/node/n1/info";
    let long = "x".repeat(100_000);
    let mut newer: serde_json::Value =
        serde_json::from_slice(&presence("n9", "role", "agent")).expect("it was written as JSON");
    newer["v"] = 999.into();
    vec![
        (PEER, b"{".to_vec()),
        (PEER, vec![b'x'; 100_000]),
        (PEER, vec![b'x'; 1 << 20]),
        ("bramble/demo/node/n9/availability", b"perhaps".to_vec()),
        ("bramble/demo/node/N9/info", b"{}".to_vec()),
        (PEER, newer.to_string().into_bytes()),
        (PEER, presence("n9", "cluster", "away")),
        (PEER, presence("n8", "role", "agent")),
        (PEER, presence("a/+#\u{0}", "role", "agent")),
        (PEER, presence("n9", "id", "\u{1b}[2J")),
        (PEER, presence("n9", "version", "999.0 <b>")),
        (PEER, presence("n9", "version", &long)),
        (PEER, presence("n9", "newest", "9\n9")),
        (PEER, presence("n9", "role", "queen")),
        (PEER, presence("n9", "model", &long)),
        (OWN, presence("n1", "id", &long)),
        (OWN, presence("n1", "id", "\u{1b}[2J")),
        (
            "bramble/demo/cluster/info",
            br#"{"v":1,"ts":"2026-11-23T06:00:00Z","cluster":"demo","version":"0.1.0","device":"d","page":"javascript:alert(1)"}"#
                .to_vec(),
        ),
    ]
}

fn refused(lab: &Lab) -> Result<u64> {
    let cluster = lab.cluster()?;
    let refused = cluster["refused"].as_object().context("the page counts refusals")?;
    Ok(refused.values().filter_map(serde_json::Value::as_u64).sum())
}

pub(crate) fn every_lie_is_counted_by_its_kind_and_changes_nothing() -> Result<()> {
    let mut lab = bed()?;
    let ear = Ear::open(&lab)?;
    settle(&lab, &ear, SETTLING)?;
    logged(&lab, || {
        for (topic, payload, kind) in lies() {
            let before = lab.cluster()?["refused"][kind].as_u64().unwrap_or_default();
            lab.broker().publish(topic, &payload, false)?;
            let counted = until(SETTLING, "it is counted", || {
                let after = lab.cluster()?["refused"][kind].as_u64().unwrap_or_default();
                Ok((after == before + 1).then_some(()))
            });
            counted.with_context(|| {
                format!(
                    "{kind}: {topic} with {} bytes: {}",
                    payload.len(),
                    lab.cluster().unwrap_or_default()["refused"]
                )
            })?;
        }
        // What belongs to other clusters is not even listened to.
        let before = refused(&lab)?;
        lab.broker().publish("bramble/away/node/n1/state", b"{", false)?;
        lab.broker().publish("bramble", b"{", false)?;
        lab.broker().publish("bramble/demo/node/n1/state", b"{", false)?;
        until(SETTLING, "only the last one is counted", || Ok((refused(&lab)? == before + 1).then_some(())))
    })?;
    let casualties = lab.casualties();
    ensure!(casualties.is_empty(), "{casualties:?}");
    logged(&lab, || {
        settle(&lab, &ear, SETTLING)?;
        ensure!(ear.alerts().is_empty(), "{:?}", ear.alerts());
        Ok(())
    })
}

pub(crate) fn agents_count_the_lies_about_their_peers() -> Result<()> {
    let mut lab = bed()?;
    let ear = Ear::open(&lab)?;
    settle(&lab, &ear, SETTLING)?;
    let count = || ear.state("n1").map(|state| state.refused_messages).context("n1 reports");
    logged(&lab, || {
        for (topic, payload) in lies_to_agents() {
            let before = count()?;
            lab.broker().publish(topic, &payload, false)?;
            let counted = until(SETTLING, "n1 counts it", || Ok((count()? == before + 1).then_some(())));
            counted.with_context(|| {
                let begin = String::from_utf8_lossy(&payload[..payload.len().min(300)]).into_owned();
                format!("{topic} with {} bytes, {begin}: {before} before, {:?} after", payload.len(), count())
            })?;
        }
        // Of all that, nothing is repeated.
        let state = ear.state("n1").context("n1 reports")?;
        let name = state.conditions.iter().find(|c| c.id == "name-taken").context("it looks at its name")?;
        ensure!(name.status == Status::Clear, "{name:?}");
        ensure!(!ear.row("n1").context("n1 measures")?.peers.keys().any(|peer| peer.as_str() == "n9"));
        Ok(())
    })?;
    let casualties = lab.casualties();
    ensure!(casualties.is_empty(), "{casualties:?}");
    Ok(())
}
