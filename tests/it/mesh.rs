//! The mesh: what healthy links look like, and which alert a broken one raises.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, ensure};
use testbed::{
    fault::{Fault, Spec},
    lab::{Binaries, Lab, Settings},
    mesh::{Ear, settle},
    namespace::run_in,
    naming::{self, By, LIMIT},
    watch::until,
};
use wire::report::Stamps;

use crate::{SETTLING, bed, logged, programs};

pub(crate) fn three_nodes_find_each_other_and_the_kernel_stamps_their_round_trips() -> Result<()> {
    let lab = bed()?;
    logged(&lab, || {
        let ear = Ear::open(&lab)?;
        let pairs = settle(&lab, &ear, SETTLING)?;
        ensure!(pairs.len() == 6, "{} pairs", pairs.len());
        for pair in &pairs {
            let times = pair.round_trip_us.context("a fine pair has round trips")?;
            ensure!(pair.stamps == Stamps::Kernel, "{}: stamped by {:?}", pair.subject(), pair.stamps);
            ensure!(0.0 < times.min && times.min <= times.median && times.median <= times.max, "{times:?}");
            ensure!(times.median < 10_000.0, "{}: {times:?} on one machine", pair.subject());
            ensure!(pair.loss == Some(0.0), "{}: loss {:?}", pair.subject(), pair.loss);
        }
        // The first ones may come before the other side listens; from then on none is lost.
        let gap =
            || -> Vec<u64> { ear.pairs(&lab).iter().map(|pair| pair.sent.abs_diff(pair.received)).collect() };
        // Not between what two nodes say of one tick.
        let at_first = until(SETTLING, "nobody says anything new", || {
            let before = gap();
            std::thread::sleep(Duration::from_millis(300));
            Ok(Some(before).filter(|before| *before == gap()))
        })?;
        std::thread::sleep(Duration::from_secs(4));
        until(SETTLING, "what is sent is received, to the packet", || Ok((gap() == at_first).then_some(())))?;
        let later = ear.pairs(&lab);
        ensure!(later.iter().zip(&pairs).all(|(now, then)| now.sent >= then.sent + 10), "{later:?}");
        let cluster = lab.cluster()?;
        ensure!(cluster["nodes"].as_array().is_some_and(|nodes| nodes.len() == 3), "{cluster}");
        ensure!(cluster["links"].as_array().is_some_and(|links| links.len() == 6), "{cluster}");
        ensure!(cluster["alerts"].as_array().is_some_and(Vec::is_empty), "{}", cluster["alerts"]);
        for node in lab.nodes() {
            let findings = ear.state(node.name()).context("every node reports")?.findings;
            let judged = findings.met + findings.unmet + findings.waiting + findings.blocked;
            ensure!(judged >= 10 && findings.met > 0, "{}: {findings:?}", node.name());
        }
        Ok(())
    })
}

pub(crate) fn loss_is_named_with_its_direction_and_forgotten_when_it_is_over() -> Result<()> {
    name_and_forget(&["loss:n2-n3"], 1, AS_SHIPPED)
}

pub(crate) fn delay_is_named_with_its_direction_and_forgotten_when_it_is_over() -> Result<()> {
    name_and_forget(&["delay:n2-n3"], 1, AS_SHIPPED)
}

pub(crate) fn a_cut_node_is_one_alert_and_not_one_per_link() -> Result<()> {
    name_and_forget(&["cut:n2"], 1, AS_SHIPPED)
}

/// As with the switch or the power strip that they hang on.
pub(crate) fn nodes_that_go_together_are_one_alert_each() -> Result<()> {
    let lab = bed_that_reports(AS_SHIPPED, 4)?;
    logged(&lab, || {
        let ear = Ear::open(&lab)?;
        settle(&lab, &ear, SETTLING)?;
        let faults: Vec<Fault> = ["cut:n3", "cut:n4"]
            .into_iter()
            .map(|fault| Fault::inject(fault.parse()?, &lab))
            .collect::<Result<_>>()?;
        // Each of the two is thought to be reached by the other for a while; both are told, and nothing else, then or later.
        let (began, right) = (Instant::now(), ["node-gone n3", "node-gone n4"]);
        let mut last = Vec::new();
        while began.elapsed() < LIMIT * 4 {
            let alerts = ear.alerts().into_iter();
            last = alerts.map(|(alert, _)| format!("{} {}", alert.kind, alert.subject)).collect();
            ensure!(
                last.iter().all(|said| right.contains(&said.as_str())),
                "{:?}: {last:?}",
                began.elapsed()
            );
            ensure!(last.len() == 2 || began.elapsed() < LIMIT + Duration::from_secs(2), "{last:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        ensure!(last == right, "{last:?}");
        faults.into_iter().try_for_each(|fault| fault.heal(&lab).map(drop))?;
        all_is_over(&lab, &ear)
    })
}

pub(crate) fn a_node_that_nobody_hears_and_one_that_hears_nobody_are_one_alert_each() -> Result<()> {
    let lab = bed_that_reports(AS_SHIPPED, 3)?;
    logged(&lab, || {
        let ear = Ear::open(&lab)?;
        settle(&lab, &ear, SETTLING)?;
        let within = |words: &str| {
            run_in(lab.node("n2")?.namespace(), "nft", &words.split(' ').collect::<Vec<_>>()).map(drop)
        };
        // Its owner's rule for what goes out.
        within("add table ip own")?;
        within("add chain ip own out { type filter hook output priority 0 ; }")?;
        within("add rule ip own out udp dport 9473 drop")?;
        one_direction(&lab, &ear, "node-mute")?;
        within("delete table ip own")?;
        all_is_over(&lab, &ear)?;
        let faults: Vec<Fault> = ["loss:n1-n2:100", "loss:n3-n2:100"]
            .into_iter()
            .map(|fault| Fault::inject(fault.parse()?, &lab))
            .collect::<Result<_>>()?;
        one_direction(&lab, &ear, "node-deaf")?;
        faults.into_iter().try_for_each(|fault| fault.heal(&lab).map(drop))?;
        all_is_over(&lab, &ear)
    })
}

/// n2 is named as that, and its single ways never are. Who is not heard and has not said so yet may be gone.
fn one_direction(lab: &Lab, ear: &Ear, kind: &str) -> Result<()> {
    let (began, right) = (Instant::now(), format!("{kind} n2"));
    let (mut last, mut is_named) = (Vec::new(), false);
    while began.elapsed() < LIMIT * 4 {
        let alerts = ear.alerts().into_iter();
        last = alerts.map(|(alert, _)| format!("{} {}", alert.kind, alert.subject)).collect();
        is_named |= last == [right.as_str()];
        let gone = !is_named && kind == "node-mute" && last == ["node-gone n2"];
        ensure!(
            last.is_empty() && !is_named || gone || last == [right.as_str()],
            "{kind}: {last:?} after {:?}, n2 says {:?}",
            began.elapsed(),
            lab.node("n2")?.status()?["mesh"]
        );
        ensure!(is_named || began.elapsed() < LIMIT + Duration::from_secs(2), "{kind}: {last:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    ensure!(is_named, "{kind}: {last:?}");
    Ok(())
}

fn all_is_over(lab: &Lab, ear: &Ear) -> Result<()> {
    until(SETTLING * 2, "the alerts are over and all links are fine", || {
        Ok((ear.alerts().is_empty() && settle(lab, ear, Duration::ZERO).is_ok()).then_some(()))
    })
}

pub(crate) fn loss_is_named_ten_times_out_of_ten() -> Result<()> {
    let faults = ["loss:n3-n1", "loss:n1-n2", "loss:n2-n3", "loss:n1-n3", "loss:n2-n1", "loss:n3-n2"];
    name_and_forget(&faults, 10, FASTEST)
}

pub(crate) fn delay_is_named_ten_times_out_of_ten() -> Result<()> {
    name_and_forget(&["delay:n1-n2", "delay:n2-n3", "delay:n3-n1"], 10, FASTEST)
}

pub(crate) fn a_dead_link_is_named_ten_times_out_of_ten() -> Result<()> {
    name_and_forget(&["loss:n1-n3:100"], 10, AS_SHIPPED)
}

pub(crate) fn a_cut_is_named_ten_times_out_of_ten() -> Result<()> {
    name_and_forget(&["cut:n3"], 10, FASTEST)
}

/// Time between two reports: what breaks is named no later where they are rare.
const AS_SHIPPED: &str = "10s";
const FASTEST: &str = "1s";

/// Waits for a moment of a second: the middle of it, and of ten rounds each for another one. Loss of some begins in the middle
/// always: the probes of three ticks lie within the limit then. That half of all packets are lost and none of theirs, or one,
/// happens once in a thousand times; of two ticks' probes, once in sixty.
fn wait_for_its_moment(spec: &Spec, round: u32) {
    let tenth = if spec.kind() == "path-loss" { 5 } else { (round + 4) % 10 };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("the clock is past 1970");
    let past_it = (now + Duration::from_millis(1000 - u64::from(tenth) * 100)).subsec_nanos();
    std::thread::sleep(Duration::from_secs(1) - Duration::from_nanos(past_it.into()));
}

/// Nodes with everything running.
fn bed_that_reports(report: &'static str, nodes: u8) -> Result<Lab> {
    let mut lab = Lab::network(&Binaries::within(&programs()?)?, nodes, 0)?;
    for node in lab.nodes() {
        node.configure(lab.broker(), Settings { report, ..Settings::default() })?;
    }
    lab.start_programs()?;
    Ok(lab)
}

pub(crate) fn who_watches_sees_new_numbers_every_second() -> Result<()> {
    let lab = bed_that_reports(AS_SHIPPED, 3)?;
    logged(&lab, || {
        settle(&lab, &Ear::open(&lab)?, SETTLING)?;
        let sent = || -> Result<u64> {
            let status = lab.node("n1")?.status()?;
            status["mesh"]["peers"]["n2"]["sent"].as_u64().with_context(|| status["mesh"].to_string())
        };
        // The first look is of whenever the last report was.
        sent()?;
        std::thread::sleep(Duration::from_millis(1500));
        let mut before = sent()?;
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(1500));
            let now = sent()?;
            ensure!(now > before, "{now} probes were sent, as {before} 1.5 s ago");
            before = now;
        }
        Ok(())
    })
}

/// Breaks it, waits until everybody named it and nobody named anything else, heals it, waits until all is fine.
/// Of a link that is in trouble again and again the alert stays longer each time; so they take turns.
fn name_and_forget(faults: &[&str], times: u32, report: &'static str) -> Result<()> {
    let lab = bed_that_reports(report, 3)?;
    logged(&lab, || {
        let specs: Vec<Spec> = faults.iter().map(|fault| fault.parse()).collect::<Result<_, _>>()?;
        let ear = Ear::open(&lab)?;
        settle(&lab, &ear, SETTLING)?;
        for (round, spec) in (1..=times).zip(specs.into_iter().cycle()) {
            wait_for_its_moment(&spec, round);
            let fault = Fault::inject(spec.clone(), &lab)?;
            let namings = naming::watch(&lab, &ear, &spec, Instant::now())?;
            ensure!(namings.are_right(), "round {round} of {times}: {namings:?}");
            if let Spec::Cut { node } = &spec {
                let cut = lab.node(node)?;
                until(LIMIT, "the node itself says that it is cut off", || {
                    let status = cut.status()?;
                    let conditions =
                        status["state"]["conditions"].as_array().context("a status has conditions")?;
                    let said = conditions.iter().any(|c| c["id"] == "isolated" && c["status"] == "raised");
                    Ok(said.then_some(()))
                })?;
            }
            if let Some(other) = opposite(&spec) {
                let accused: BTreeSet<_> =
                    lab.nodes().iter().flat_map(|node| raised(&ear, node.name())).collect();
                ensure!(
                    !accused.contains(&other),
                    "round {round}: the other direction is accused, too: {accused:?}"
                );
            }
            fault.heal(&lab)?;
            let healed = until(SETTLING * 2, "the alert is over and all links are fine", || {
                Ok((ear.alerts().is_empty() && settle(&lab, &ear, Duration::ZERO).is_ok()).then_some(()))
            });
            let alerts = || ear.alerts().into_iter().map(|(alert, _)| alert.title).collect::<Vec<_>>();
            healed.with_context(|| format!("round {round} of {times}: {:?}", alerts()))?;
        }
        Ok(())
    })
}

/// The link in the other direction.
fn opposite(spec: &Spec) -> Option<String> {
    match spec {
        Spec::Loss { from, to, .. } | Spec::Delay { from, to, .. } => Some(format!("{to} -> {from}")),
        Spec::Cut { .. } => None,
    }
}

/// Subjects of the conditions that a node raises.
fn raised(ear: &Ear, node: &str) -> Vec<String> {
    let state = ear.state(node);
    state.iter().flat_map(testbed::mesh::raised).filter_map(|(_, subject)| subject).collect()
}

pub(crate) fn a_node_that_sees_flooded_probes_does_not_count_them() -> Result<()> {
    let lab = bed()?;
    logged(&lab, || {
        let ear = Ear::open(&lab)?;
        settle(&lab, &ear, SETTLING)?;
        // The bridge forgets where n2 is, so what is sent to n2 reaches n3 as well.
        let fault = Fault::inject("cut:n2".parse()?, &lab)?;
        naming::watch(&lab, &ear, fault.spec(), Instant::now())?;
        std::thread::sleep(Duration::from_secs(2));
        until(SETTLING, "n3 heard as much of n1 as n1 sent", || {
            let pairs = ear.pairs(&lab);
            let pair = pairs.iter().find(|pair| pair.from == "n1" && pair.to == "n3").context("n1 -> n3")?;
            ensure!(pair.received <= pair.sent + 10, "{pair:?}");
            Ok((pair.received == pair.sent).then_some(()))
        })
    })
}

pub(crate) fn what_a_person_reads_names_the_pair_and_the_direction() -> Result<()> {
    let lab = bed()?;
    logged(&lab, || {
        let ear = Ear::open(&lab)?;
        settle(&lab, &ear, SETTLING)?;
        let fault = Fault::inject("loss:n2-n3".parse()?, &lab)?;
        naming::watch(&lab, &ear, fault.spec(), Instant::now())?;
        let read = |node: &str, arguments: &[&str]| -> Result<String> {
            let output = lab.node(node)?.command(arguments).output()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(output.status.code() == Some(1), "{arguments:?} ended with {}: {text}", output.status);
            Ok(text)
        };
        for (node, peer, [to_peer, from_peer]) in
            [("n2", "n3", ["lossy", "fine"]), ("n3", "n2", ["fine", "lossy"])]
        {
            let row: serde_json::Value = serde_json::from_str(&read(node, &["mesh", "--json"])?)?;
            let states = ["out", "in"].map(|way| &row["peers"][peer][way]["state"]);
            ensure!(states == [to_peer, from_peer], "{row}");
            let table = read(node, &["mesh", "--once"])?;
            let line = table.lines().find(|line| line.starts_with(peer)).context("each peer has a line")?;
            let words = line.split_whitespace().filter(|word| word.chars().all(char::is_alphabetic));
            ensure!(words.take(2).eq([to_peer, from_peer]), "{table}");
            let status = read(node, &["status"])?;
            let named = status.contains("n2 -> n3: Packets are lost between two nodes");
            ensure!(named && !status.contains("n3 -> n2"), "{status}");
        }
        Ok(())
    })
}

pub(crate) fn a_dead_link_is_named_by_everybody_and_hit_to_the_packet() -> Result<()> {
    let lab = bed()?;
    logged(&lab, || {
        let ear = Ear::open(&lab)?;
        settle(&lab, &ear, SETTLING)?;
        let spec: Spec = "loss:n1-n3:100".parse()?;
        let fault = Fault::inject(spec.clone(), &lab)?;
        let namings = naming::watch(&lab, &ear, &spec, Instant::now())?;
        let counts = fault.heal(&lab)?.context("a loss counts")?;
        ensure!(counts.hit == counts.seen && counts.hit > 0, "{counts:?}");
        ensure!(By::ALL.iter().all(|by| namings.has(*by)) && namings.are_right(), "{namings:?}");
        Ok(())
    })
}
