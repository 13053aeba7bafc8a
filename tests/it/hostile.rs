//! Messages that nobody of ours would send: counted, dropped, and never the end of anything.

use anyhow::{Context, Result, ensure};
use testbed::{
    lab::Lab,
    mesh::{Ear, settle},
    watch::until,
};

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
        ("bramble/demo/node/<img src=x>/state", b"{}".to_vec(), "bad-name"),
        ("bramble/demo/node/N1/state", b"{}".to_vec(), "bad-name"),
        ("bramble/demo/node/n1/firmware", b"{}".to_vec(), "unknown-topic"),
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
    let count = |node: &str| ear.state(node).map(|state| state.refused_messages);
    let before = count("n1").context("n1 reports")?;
    // Agents listen to their peers' presence only.
    let lies: [(&str, &[u8]); 4] = [
        ("bramble/demo/node/n9/info", b"{"),
        ("bramble/demo/node/n9/info", &[b'x'; 100_000]),
        ("bramble/demo/node/n9/availability", b"perhaps"),
        ("bramble/demo/node/N9/info", b"{}"),
    ];
    for (topic, payload) in lies {
        lab.broker().publish(topic, payload, false)?;
    }
    logged(&lab, || {
        let counted = until(SETTLING, "n1 counts all of them", || {
            Ok((count("n1").context("n1 reports")? >= before + lies.len() as u64).then_some(()))
        });
        counted.with_context(|| format!("{before} before, {:?} after", count("n1")))
    })?;
    let casualties = lab.casualties();
    ensure!(casualties.is_empty(), "{casualties:?}");
    Ok(())
}
