//! The drift guard on a node: what held and is undone by somebody is named at once, and forgotten when it holds again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testbed::{
    lab::Lab,
    mesh::{Ear, raised, settle},
    namespace::run_in,
    watch::until,
};
use wire::report::Status;

use crate::{SETTLING, bed, logged};

/// A loss is noticed within a second; the report of it crosses the broker.
const AT_ONCE: Duration = Duration::from_millis(1500);

fn drifted(ear: &Ear, subject: &str) -> Result<bool> {
    let state = ear.state("n1").context("n1 reports")?;
    Ok(raised(&state).iter().any(|(id, of)| id == "drift" && of.as_deref() == Some(subject)))
}

fn undone_and_done_again(lab: &Lab, ear: &Ear, subject: &str, right: &str, wrong: &str) -> Result<()> {
    let namespace = lab.node("n1")?.namespace();
    run_in(namespace, "sh", &["-ec", right])?;
    // The guard has seen it right.
    std::thread::sleep(Duration::from_secs(4));
    ensure!(!drifted(ear, subject)?, "{subject} is right");
    run_in(namespace, "sh", &["-ec", wrong])?;
    let undone = Instant::now();
    until(SETTLING, "n1 names what was undone", || Ok(drifted(ear, subject)?.then_some(())))?;
    ensure!(undone.elapsed() <= AT_ONCE, "{subject} was named after {:?}", undone.elapsed());
    run_in(namespace, "sh", &["-ec", right])?;
    until(SETTLING, "n1 forgets it", || Ok((!drifted(ear, subject)?).then_some(())))
}

pub(crate) fn a_setting_that_is_undone_is_named_at_once_and_forgotten_when_it_is_right() -> Result<()> {
    let lab = bed()?;
    let ear = Ear::open(&lab)?;
    settle(&lab, &ear, SETTLING)?;
    logged(&lab, || undone_and_done_again(&lab, &ear, "forwarding", &forwarding(1), &forwarding(0)))
}

fn forwarding(value: u8) -> String {
    format!(
        "for k in ip_forward conf/all/forwarding conf/default/forwarding; do echo {value} > /proc/sys/net/ipv4/$k; done"
    )
}

/// By the host's own mount of proc, and by another one, as a container has it.
pub(crate) fn who_undid_a_setting_is_named() -> Result<()> {
    let lab = bed()?;
    let ear = Ear::open(&lab)?;
    settle(&lab, &ear, SETTLING)?;
    let namespace = lab.node("n1")?.namespace();
    let by = |program: &str, arguments: &[&str]| -> Result<()> {
        run_in(namespace, "sh", &["-ec", &forwarding(1)])?;
        until(SETTLING, "n1 is right", || Ok((!drifted(&ear, "forwarding")?).then_some(())))?;
        std::thread::sleep(Duration::from_secs(2));
        run_in(namespace, program, arguments)?;
        let undone = Instant::now();
        let said = until(SETTLING, "n1 names what was undone", || {
            let state = ear.state("n1").context("n1 reports")?;
            let mut raised = state.conditions.into_iter().filter(|c| c.status == Status::Raised);
            Ok(raised.find(|c| c.subject.as_deref() == Some("forwarding")).map(|c| c.evidence))
        })?;
        ensure!(undone.elapsed() <= AT_ONCE, "it was named after {:?}", undone.elapsed());
        ensure!(said.contains("net.ipv4.ip_forward was written by sh (process "), "{said}");
        Ok(())
    };
    let undo = "echo 0 > /proc/sys/net/ipv4/ip_forward";
    logged(&lab, || {
        by("sh", &["-ec", undo])?;
        by("unshare", &["--mount", "--pid", "--fork", "--mount-proc", "sh", "-ec", undo])
    })
}

/// rtnetlink does not tell of it. The node gets a setting of its own, because the kernel has one for all.
pub(crate) fn a_setting_of_the_whole_machine_is_named_at_once_with_and_without_a_companion() -> Result<()> {
    let mut lab = bed()?;
    let ear = Ear::open(&lab)?;
    settle(&lab, &ear, SETTLING)?;
    let own = "for k in instances watches; do printf 900000 > /run/bed/$k; \
               mount --bind /run/bed/$k /proc/sys/fs/inotify/max_user_$k; done";
    let node = lab.node_mut("n1")?;
    run_in(node.namespace(), "sh", &["-ec", own])?;
    node.start_companion()?;
    node.start_agent()?;
    settle(&lab, &ear, SETTLING)?;
    let set = |value| format!("printf {value} 1<>/run/bed/instances");
    logged(&lab, || undone_and_done_again(&lab, &ear, "inotify", &set("900000"), &set("000128")))?;
    lab.node_mut("n1")?.companion().context("n1 has a companion")?.stop(SETTLING)?;
    logged(&lab, || undone_and_done_again(&lab, &ear, "inotify", &set("900000"), &set("000128")))
}

pub(crate) fn what_was_undone_while_the_agent_did_not_run_is_named_when_it_starts() -> Result<()> {
    let mut lab = bed()?;
    let ear = Ear::open(&lab)?;
    settle(&lab, &ear, SETTLING)?;
    run_in(lab.node("n1")?.namespace(), "sh", &["-ec", &forwarding(1)])?;
    std::thread::sleep(Duration::from_secs(4));
    let agent = lab.node_mut("n1")?.agent().context("n1 has an agent")?;
    agent.stop(SETTLING)?;
    run_in(lab.node("n1")?.namespace(), "sh", &["-ec", &forwarding(0)])?;
    lab.node_mut("n1")?.start_agent()?;
    logged(&lab, || {
        until(SETTLING, "n1 names what was undone", || Ok(drifted(&ear, "forwarding")?.then_some(())))?;
        run_in(lab.node("n1")?.namespace(), "sh", &["-ec", &forwarding(1)])?;
        until(SETTLING, "n1 forgets it", || Ok((!drifted(&ear, "forwarding")?).then_some(())))
    })
}

pub(crate) fn a_lost_rule_is_named_at_once_and_forgotten_when_it_is_back() -> Result<()> {
    let lab = bed()?;
    let ear = Ear::open(&lab)?;
    settle(&lab, &ear, SETTLING)?;
    // As Cilium makes them for its proxy; and one of the kernel's own.
    let ciliums = "ip route replace local default dev lo table 2004; \
                   ip rule add priority 9 fwmark 0x200/0xf00 lookup 2004";
    let kernels = "ip rule show | grep -q ^32767: || ip rule add priority 32767 lookup default";
    logged(&lab, || {
        undone_and_done_again(&lab, &ear, "ip-rules", ciliums, "ip rule del priority 9")?;
        undone_and_done_again(&lab, &ear, "ip-rules", kernels, "ip rule del priority 32767")
    })
}

pub(crate) fn a_lost_route_is_named_at_once_and_forgotten_when_it_is_back() -> Result<()> {
    let lab = bed()?;
    let ear = Ear::open(&lab)?;
    settle(&lab, &ear, SETTLING)?;
    let gateway = *lab.broker().address().ip();
    let route = run_in(lab.node("n1")?.namespace(), "ip", &["-4", "route", "show", "scope", "link"])?;
    let network = route.split_whitespace().next().context("n1 is in a network")?;
    let right = format!("ip route replace {}; ip route replace default via {gateway}", route.trim());
    // As Cilium has it: one address of the pods' network on its link, and the network's route by it.
    let pods = "ip link show cilium_host >/dev/null 2>&1 || ip link add cilium_host up type veth peer cilium_net; \
                ip link set cilium_net up; \
                ip address replace 10.42.7.9/32 dev cilium_host; \
                ip route replace 10.42.7.0/24 dev cilium_host src 10.42.7.9";
    logged(&lab, || {
        undone_and_done_again(&lab, &ear, "routes", &right, &format!("ip route del {network}"))?;
        undone_and_done_again(&lab, &ear, "routes", pods, "ip route del 10.42.7.0/24")
    })
}

pub(crate) fn a_lost_default_route_is_named_at_once_and_forgotten_when_it_is_back() -> Result<()> {
    let lab = bed()?;
    let ear = Ear::open(&lab)?;
    settle(&lab, &ear, SETTLING)?;
    let gateway = *lab.broker().address().ip();
    let right = format!("ip route replace default via {gateway}");
    logged(&lab, || undone_and_done_again(&lab, &ear, "default-route", &right, "ip route del default"))
}
