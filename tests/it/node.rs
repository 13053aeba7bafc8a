//! A node whose programs are killed, restarted, or cannot do all: what it and the others say.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use testbed::{
    fault::Fault,
    lab::{Binaries, Lab, Node, Settings},
    mesh::{Ear, raised, settle},
    namespace::run_in,
    naming::{self, LIMIT},
    watch::until,
};
use wire::{
    report::{OFFLINE, Stamps, WayState},
    topic::NodeTopic,
};

use crate::{SETTLING, bed, logged, programs};

/// A node whose programs were killed, so that the kernel closes their connections: its last will and its peers both say so, each in time.
pub(crate) fn a_dead_node_is_offline_by_its_last_will_and_gone_for_its_peers() -> Result<()> {
    let mut lab = bed()?;
    let ear = Ear::open(&lab)?;
    settle(&lab, &ear, SETTLING)?;
    let node = lab.node_mut("n2")?;
    let died = Instant::now();
    node.agent().context("the agent runs")?.kill();
    node.companion().context("the companion runs")?.kill();
    logged(&lab, || {
        let heard = until(LIMIT, "the broker says that n2 is offline", || {
            Ok(ear.newest("n2", NodeTopic::Availability)?.filter(|heard| heard.payload == OFFLINE.as_bytes()))
        })?;
        ensure!(heard.at.duration_since(died) <= LIMIT, "after {:?}", heard.at.duration_since(died));
        let left = LIMIT.saturating_sub(died.elapsed());
        until(left, "its peers say that nothing of it arrives", || {
            let all = ["n1", "n3"].into_iter().all(|peer| {
                let row = ear.row(peer);
                row.is_some_and(|row| {
                    row.peers
                        .iter()
                        .any(|(name, report)| name.as_str() == "n2" && report.incoming.state == WayState::Cut)
                })
            });
            Ok(all.then_some(()))
        })?;
        until(SETTLING, "there is one alert, that n2 is gone", || {
            let alerts: Vec<_> =
                ear.alerts().into_iter().map(|(alert, _)| (alert.kind, alert.subject)).collect();
            Ok((alerts == [("node-gone".to_owned(), "n2".to_owned())]).then_some(()))
        })
    })
}

pub(crate) fn a_killed_companion_is_missed_and_its_restart_heals_with_tcx() -> Result<()> {
    kill_and_restart_companion("tcx")
}

pub(crate) fn a_killed_companion_leaves_no_second_filter_with_tc() -> Result<()> {
    kill_and_restart_companion("tc")
}

fn kill_and_restart_companion(attach: &'static str) -> Result<()> {
    let mut lab = bed()?;
    lab.node("n2")?.configure(lab.broker(), Settings { attach, ..Settings::default() })?;
    lab.node_mut("n2")?.start_companion()?;
    let ear = Ear::open(&lab)?;
    settle(&lab, &ear, SETTLING)?;
    for _ in 0..3 {
        lab.node_mut("n2")?.companion().context("the companion runs")?.kill();
        logged(&lab, || {
            until(SETTLING, "n2 misses its companion", || {
                let state = ear.state("n2").context("n2 reports")?;
                Ok(raised(&state).iter().any(|(id, _)| id == "companion").then_some(()))
            })
        })?;
        lab.node_mut("n2")?.start_companion()?;
        logged(&lab, || {
            until(SETTLING, "n2 has its companion back", || {
                let state = ear.state("n2").context("n2 reports")?;
                let has =
                    state.tier.stamps == Stamps::Kernel && state.tier.attached.as_deref() == Some(attach);
                Ok((has && raised(&state).is_empty()).then_some(()))
            })?;
            let pairs = settle(&lab, &ear, SETTLING)?;
            ensure!(pairs.iter().all(|pair| pair.stamps == Stamps::Kernel), "{pairs:?}");
            Ok(())
        })?;
        for direction in ["ingress", "egress"] {
            let count = attached(lab.node("n2")?, attach, direction)?;
            ensure!(count == 1, "{count} programs of ours at {direction} of n2");
        }
    }
    let node = lab.node_mut("n2")?;
    let status = node.companion().context("the companion runs")?.stop(Duration::from_secs(5))?;
    ensure!(status.success(), "the companion ended with {status}");
    for direction in ["ingress", "egress"] {
        let count = attached(lab.node("n2")?, attach, direction)?;
        ensure!(count == 0, "{count} programs of ours stay at {direction} of n2");
    }
    Ok(())
}

/// How many programs of ours are attached to a node's uplink.
fn attached(node: &Node, attach: &str, direction: &str) -> Result<usize> {
    match attach {
        "tc" => {
            let list = run_in(node.namespace(), "tc", &["filter", "show", "dev", "eth0", direction])?;
            Ok(list.lines().filter(|line| line.contains("bramble_")).count())
        }
        "tcx" => node.namespace().within(|| {
            let at = if direction == "ingress" { TcAttachType::Ingress } else { TcAttachType::Egress };
            let (_, programs) = SchedClassifier::query_tcx("eth0", at)?;
            Ok(programs.iter().filter(|p| p.name_as_str().is_some_and(|n| n.starts_with("bramble_"))).count())
        }),
        other => bail!("no way to attach is called {other}"),
    }
}

pub(crate) fn a_node_without_the_kernels_stamps_says_so_and_still_measures() -> Result<()> {
    let mut lab = bed()?;
    lab.node("n2")?.configure(lab.broker(), Settings { stamps: "user", ..Settings::default() })?;
    lab.node_mut("n2")?.start_companion()?;
    logged(&lab, || {
        let ear = Ear::open(&lab)?;
        until(SETTLING, "n2 stamps in user space and says why", || {
            let tier = ear.state("n2").map(|state| state.tier);
            Ok(tier.filter(|tier| tier.stamps == Stamps::User && !tier.why.is_empty()))
        })?;
        let pairs = until(SETTLING, "all pairs are fine and stamped by whom they can be", || {
            let Ok(pairs) = settle(&lab, &ear, Duration::ZERO) else { return Ok(None) };
            let right = pairs.iter().all(|pair| {
                let wanted = match (pair.from.as_str(), pair.to.as_str()) {
                    ("n2", _) | (_, "n2") => Stamps::Mixed,
                    _ => Stamps::Kernel,
                };
                pair.stamps == wanted
            });
            Ok(right.then_some(pairs))
        });
        pairs.with_context(|| format!("{:?}", ear.pairs(&lab)))?;
        Ok(())
    })
}

/// As shipped: the bed's other tests let nodes report every second.
pub(crate) fn with_the_shipped_interval_the_page_is_whole_and_faults_are_named_in_time() -> Result<()> {
    let mut lab = Lab::network(&Binaries::within(&programs()?)?, 3, 0)?;
    for node in lab.nodes() {
        node.configure(lab.broker(), Settings { report: "10s", ..Settings::default() })?;
    }
    lab.start_programs()?;
    logged(&lab, || {
        let states = || -> Result<Vec<String>> {
            let cluster = lab.cluster()?;
            let links = cluster["links"].as_array().context("the page has links")?;
            Ok(links.iter().filter_map(|link| Some(link["state"].as_str()?.to_owned())).collect())
        };
        let fine = |states: &[String]| states.len() == 6 && states.iter().all(|state| state == "fine");
        until(SETTLING * 2, "all links are fine", || Ok(fine(&states()?).then_some(())))?;
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(12) {
            let states = states()?;
            ensure!(fine(&states), "{states:?} after {:?}", began.elapsed());
            std::thread::sleep(Duration::from_millis(200));
        }
        let ear = Ear::open(&lab)?;
        for fault in ["loss:n2-n3", "delay:n3-n1", "cut:n3"] {
            let fault = Fault::inject(fault.parse()?, &lab)?;
            let namings = naming::watch(&lab, &ear, fault.spec(), Instant::now())?;
            ensure!(namings.are_right(), "{namings:?}");
            fault.heal(&lab)?;
            until(SETTLING * 2, "all links are fine again, and the alerts over", || {
                Ok((fine(&states()?) && ear.alerts().is_empty()).then_some(()))
            })?;
        }
        Ok(())
    })
}

/// A copied card: both say so, and when it is gone the mesh is as it was.
pub(crate) fn two_nodes_of_one_name_both_say_so_until_one_is_gone() -> Result<()> {
    let mut lab = bed()?;
    let ear = Ear::open(&lab)?;
    settle(&lab, &ear, SETTLING)?;
    let path = lab.node("n3")?.namespace().path("/run/bed/bramble.toml");
    let own = fs::read_to_string(&path)?;
    fs::write(&path, own.replace("name = \"n3\"", "name = \"n2\""))?;
    lab.node_mut("n3")?.start_agent()?;
    let says = |node: &Node| -> Result<bool> {
        let Ok(status) = node.status() else { return Ok(false) };
        let conditions = status["state"]["conditions"].as_array().context("a status has conditions")?;
        Ok(conditions.iter().any(|c| c["id"] == "name-taken" && c["status"] == "raised"))
    };
    logged(&lab, || {
        for node in ["n2", "n3"] {
            until(SETTLING, "each of the two says that its name is taken", || {
                Ok(says(lab.node(node)?)?.then_some(()))
            })
            .with_context(|| node.to_owned())?;
        }
        Ok(())
    })?;
    fs::write(&path, own)?;
    lab.node_mut("n3")?.start_agent()?;
    logged(&lab, || {
        until(SETTLING, "nobody says so any more", || {
            Ok((!says(lab.node("n2")?)? && !says(lab.node("n3")?)?).then_some(()))
        })?;
        settle(&lab, &ear, SETTLING)?;
        Ok(())
    })
}

pub(crate) fn without_the_broker_everybody_goes_on_and_comes_back_by_themselves() -> Result<()> {
    let mut lab = bed()?;
    let ear = Ear::open(&lab)?;
    settle(&lab, &ear, SETTLING)?;
    drop(ear);
    lab.broker_goes_away();
    logged(&lab, || {
        until(SETTLING, "the page says that the broker is away", || {
            let broker = &lab.cluster()?["broker"];
            Ok((broker["connected"] == false && broker["why"] != "").then_some(()))
        })?;
        for node in lab.nodes() {
            until(SETTLING, "every node says that the broker is away, and still measures", || {
                let status = node.status()?;
                let conditions =
                    status["state"]["conditions"].as_array().context("a status has conditions")?;
                let said = conditions.iter().any(|c| c["id"] == "broker" && c["status"] == "raised");
                let peers = status["mesh"]["peers"].as_object().context("a status has peers")?;
                let fine = peers.values().filter(|peer| peer["in"]["state"] == "fine").count();
                Ok((said && fine == 2).then_some(()))
            })?;
        }
        Ok(())
    })?;
    lab.broker_comes_back()?;
    let casualties = lab.casualties();
    ensure!(casualties.is_empty(), "{casualties:?}");
    logged(&lab, || {
        // The empty broker is told everything again.
        let ear = Ear::open(&lab)?;
        settle(&lab, &ear, SETTLING * 3)?;
        until(SETTLING, "the page is whole again", || {
            let cluster = lab.cluster()?;
            let whole = cluster["broker"]["connected"] == true
                && cluster["nodes"]
                    .as_array()
                    .is_some_and(|nodes| nodes.iter().all(|n| n["state"] == "online"));
            Ok(whole.then_some(()))
        })
    })
}

pub(crate) fn stopping_is_orderly_and_in_time() -> Result<()> {
    let lab: Lab = bed()?;
    let ear = Ear::open(&lab)?;
    settle(&lab, &ear, SETTLING)?;
    drop(ear);
    let complaints = lab.stop();
    ensure!(complaints.is_empty(), "{complaints:?}");
    Ok(())
}
