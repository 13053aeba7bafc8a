//! The test bed itself: what it claims about packets and about leaving nothing behind.

use std::{
    net::UdpSocket,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use testbed::{
    fault::Fault,
    lab::{Binaries, Lab},
    leftover::{Before, namespaces},
    process::{Process, bound, mark},
    watch::until,
};

const PACKETS: u32 = 200;

/// The bed alone is tested here.
fn no_programs() -> Binaries {
    Binaries { bramble: "/nonexistent".into(), aggregator: "/nonexistent".into() }
}

/// Sends numbered packets from one node to another; returns those that arrived with the time that each took.
fn send(lab: &Lab, from: &str, to: &str, packets: u32) -> Result<Vec<(u32, Duration)>> {
    let address = lab.node(to)?.address();
    let receiver = lab.node(to)?.namespace().within(|| Ok(UdpSocket::bind((address, 9000))?))?;
    let sender = lab.node(from)?.namespace().within(|| Ok(UdpSocket::bind(("0.0.0.0", 0))?))?;
    receiver.set_read_timeout(Some(Duration::from_millis(300)))?;
    let mut sent = Vec::new();
    let mut arrived = Vec::new();
    // In small groups, so that neither the socket's buffer nor ARP's queue drops any.
    for group in 0..packets / 10 {
        for number in group * 10..(group + 1) * 10 {
            sent.push(Instant::now());
            sender.send_to(&number.to_be_bytes().repeat(25), (address, 9000))?;
        }
        let mut buffer = [0; 200];
        let mut expected = 10;
        while expected > 0 {
            let Ok(length) = receiver.recv(&mut buffer) else { break };
            let (numbers, rest) = buffer[..length].as_chunks::<4>();
            ensure!(rest.is_empty() && numbers.len() == 25, "a packet changed its length to {length}");
            ensure!(numbers.iter().all(|n| *n == numbers[0]), "a packet changed on its way");
            let number = u32::from_be_bytes(numbers[0]);
            let sent = sent.get(number as usize).context("a packet that was never sent")?;
            arrived.push((number, sent.elapsed()));
            expected -= 1;
        }
    }
    Ok(arrived)
}

pub(crate) fn a_bed_leaves_nothing_behind() -> Result<()> {
    let before = Before::look()?;
    let lab = Lab::network(&no_programs(), 3, 0)?;
    let identities = lab.identities()?;
    let arrived = send(&lab, "n1", "n3", PACKETS)?;
    ensure!(arrived.len() == PACKETS as usize, "{} of {PACKETS} packets arrived", arrived.len());
    lab.broker().publish("bramble/demo/x", b"y", true)?;
    let listener = lab.broker().listen("bramble/#")?;
    until(Duration::from_secs(5), "the broker hands out what was said", || {
        Ok(listener.newest("bramble/demo/x").filter(|heard| heard.payload == b"y"))
    })?;
    ensure!(!testbed::leftover::processes(&mark()).is_empty(), "the bed's processes are not recognised");
    drop(listener);
    drop(lab);
    let left = before.left_behind(&mark(), &identities)?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

pub(crate) fn loss_hits_only_its_direction_and_counts_to_the_packet() -> Result<()> {
    let lab = Lab::network(&no_programs(), 3, 0)?;
    let fault = Fault::inject("loss:n2-n3:30".parse()?, &lab)?;
    ensure!(send(&lab, "n3", "n2", PACKETS)?.len() == PACKETS as usize, "the other direction lost packets");
    ensure!(send(&lab, "n2", "n1", PACKETS)?.len() == PACKETS as usize, "another link lost packets");
    let arrived = send(&lab, "n2", "n3", PACKETS)?.len() as u64;
    let counts = fault.heal(&lab)?.context("a loss counts")?;
    ensure!(counts.seen == u64::from(PACKETS), "{counts:?} of {PACKETS} packets");
    ensure!(counts.hit == u64::from(PACKETS) - arrived, "{counts:?}, {arrived} arrived");
    ensure!((20..100).contains(&counts.hit), "30 % of {PACKETS} are not {}", counts.hit);
    ensure!(send(&lab, "n2", "n3", PACKETS)?.len() == PACKETS as usize, "the healed link lost packets");
    Ok(())
}

pub(crate) fn delay_holds_every_packet_and_changes_none() -> Result<()> {
    let lab = Lab::network(&no_programs(), 3, 0)?;
    let fault = Fault::inject("delay:n2-n3:40".parse()?, &lab)?;
    let arrived = send(&lab, "n2", "n3", PACKETS)?;
    ensure!(arrived.iter().map(|(number, _)| *number).eq(0..PACKETS), "packets were lost or out of order");
    ensure!(arrived.iter().all(|(_, took)| *took >= Duration::from_millis(40)), "a packet was too early");
    let mut times: Vec<Duration> = arrived.iter().map(|(_, took)| *took).collect();
    times.sort();
    ensure!(
        times[times.len() / 2] < Duration::from_millis(60),
        "half of them took {:?}",
        times[times.len() / 2]
    );
    let back = send(&lab, "n3", "n2", PACKETS)?;
    ensure!(back.len() == PACKETS as usize, "the other direction lost packets");
    ensure!(
        back.iter().filter(|(_, took)| *took >= Duration::from_millis(40)).count() < 5,
        "it is slow, too"
    );
    let counts = fault.heal(&lab)?.context("a delay counts")?;
    ensure!(counts.seen == counts.hit && counts.hit == u64::from(PACKETS), "{counts:?}");
    let healed = send(&lab, "n2", "n3", PACKETS)?;
    ensure!(healed.iter().filter(|(_, took)| *took >= Duration::from_millis(40)).count() < 5, "still slow");
    Ok(())
}

pub(crate) fn a_cut_node_is_cut_until_it_is_healed() -> Result<()> {
    let lab = Lab::network(&no_programs(), 2, 0)?;
    let arrived = || Ok::<usize, anyhow::Error>(send(&lab, "n1", "n2", 10)?.len());
    ensure!(arrived()? == 10, "the whole link lost packets");
    let fault = Fault::inject("cut:n2".parse()?, &lab)?;
    ensure!(arrived()? == 0, "the cut node is reached");
    ensure!(Fault::inject("cut:n9".parse()?, &lab).is_err(), "a node that is not there was cut");
    ensure!(fault.heal(&lab)?.is_none(), "a cut cable counts nothing");
    until(Duration::from_secs(5), "the healed node is reached", || Ok((arrived()? == 10).then_some(())))?;
    Ok(())
}

/// The kernel, not the bed's own code, has to clear up: this test's own process cannot be killed, so a copy of it is.
pub(crate) fn a_killed_bed_leaves_nothing_behind() -> Result<()> {
    const COPY: &str = "BRAMBLE_TEST_HOLDS_A_BED";
    if std::env::var_os(COPY).is_some() {
        let _lab = Lab::network(&no_programs(), 3, 0)?;
        std::thread::sleep(Duration::from_secs(600));
    }
    let before = Before::look()?;
    let mut command = bound(&std::env::current_exe()?.display().to_string());
    command.env(COPY, "1").env_remove(testbed::process::MARK);
    command.args(["--exact", "bed::a_killed_bed_leaves_nothing_behind"]).stdout(Stdio::null());
    let mut copy = Process::spawn("a copy of this test", command)?;
    let mark = format!("bed-{}", copy.pid());
    let identities = until(Duration::from_secs(20), "the copy has a bridge and three nodes", || {
        let identities = namespaces(&mark);
        Ok((identities.len() == 8).then_some(identities))
    })?;
    copy.kill();
    let left = before.left_behind(&mark, &identities)?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}
