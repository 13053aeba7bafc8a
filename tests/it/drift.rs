//! The drift guard on a node: what held and is undone by somebody is named at once, and forgotten when it holds again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testbed::{
    lab::Lab,
    mesh::{Ear, raised, settle},
    namespace::run_in,
    watch::until,
};

use crate::{SETTLING, bed, logged};

/// A loss is noticed within a second; the report of it crosses the broker.
const AT_ONCE: Duration = Duration::from_millis(1500);

fn drifted(ear: &Ear, subject: &str) -> Result<bool> {
    let state = ear.state("n1").context("n1 reports")?;
    Ok(raised(&state).iter().any(|(id, of)| id == "drift" && of.as_deref() == Some(subject)))
}

fn undone_and_done_again(lab: &Lab, ear: &Ear, subject: &str, right: &str, wrong: &str) -> Result<()> {
    let namespace = lab.node("n1")?.namespace();
    run_in(namespace, "sh", &["-c", right])?;
    // The guard has seen it right, and its pause between two passes is over.
    std::thread::sleep(Duration::from_secs(4));
    ensure!(!drifted(ear, subject)?, "{subject} is right");
    run_in(namespace, "sh", &["-c", wrong])?;
    let undone = Instant::now();
    until(SETTLING, "n1 names what was undone", || Ok(drifted(ear, subject)?.then_some(())))?;
    ensure!(undone.elapsed() <= AT_ONCE, "{subject} was named after {:?}", undone.elapsed());
    run_in(namespace, "sh", &["-c", right])?;
    until(SETTLING, "n1 forgets it", || Ok((!drifted(ear, subject)?).then_some(())))
}

pub(crate) fn a_setting_that_is_undone_is_named_at_once_and_forgotten_when_it_is_right() -> Result<()> {
    let lab = bed()?;
    let ear = Ear::open(&lab)?;
    settle(&lab, &ear, SETTLING)?;
    let set = |value| {
        format!(
            "for k in ip_forward conf/all/forwarding conf/default/forwarding; do echo {value} > /proc/sys/net/ipv4/$k; done"
        )
    };
    logged(&lab, || undone_and_done_again(&lab, &ear, "forwarding", &set(1), &set(0)))
}

pub(crate) fn a_lost_default_route_is_named_at_once_and_forgotten_when_it_is_back() -> Result<()> {
    let lab = bed()?;
    let ear = Ear::open(&lab)?;
    settle(&lab, &ear, SETTLING)?;
    let gateway = *lab.broker().address().ip();
    let right = format!("ip route replace default via {gateway}");
    logged(&lab, || undone_and_done_again(&lab, &ear, "default-route", &right, "ip route del default"))
}
