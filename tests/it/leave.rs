//! Leaving K3s, on a booted Debian 13 beside a server: what was there before the join is there again, byte by byte.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testbed::{
    k3s::{
        Settings,
        program::{SCRIPT, Script},
        site::{self, RELEASE, Site},
    },
    machine::{Gift, Machine as _, store::Store},
    watch::until,
};

/// How long K3s may take for anything on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// The machine's name.
const NODE: &str = "bed";
/// The server's password.
const PASSWORD: &str = "8f2kx0q7wmz4stand1n";
const TOKEN: &str = "/etc/bramble/token";
/// All that somebody could find changed: files with owner, mode and sum, links, addresses, rules, routes, chains, mounts,
/// namespaces, units and processes.
const STATE: &str = "cd /; find etc usr/local opt var/lib var/log/pods var/log/containers run srv -xdev \
     \\( -path var/lib/bramble -o -path var/lib/systemd -o -path run/systemd -o -path run/udev -o -path run/log -o -path run/credentials \\) \
     -prune -o -printf '%M %U:%G %p %l\\n' 2>/dev/null | sort; find etc usr/local -type f -exec sha256sum {} + | sort -k 2; \
     ip -brief link | awk '{ print $1 }' | sort; ip -brief address | awk '{ print $1, $3 }' | sort; ip rule; ip -6 rule; \
     ip route show table all | grep -v -e ' dev lo ' -e fe80 -e ff00 -e '^local' -e '^broadcast' | sort; ip route show table 2004 2>/dev/null; \
     nft list ruleset; awk '{ print $2, $3 }' /proc/mounts | grep -v -e /run/credentials -e '^/proc' | sort; ls /run/netns 2>/dev/null; \
     systemctl is-enabled k3s k3s-agent 2>&1; ps -eo args | grep -e [k]3s -e [c]ontainerd | sort";

fn target() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    Ok(test.ancestors().nth(3).context("the test lies in cargo's target folder")?.to_owned())
}

/// A machine that can join the stand-in by `bramble join --yes`, and its state before.
fn prepared(script: &Script) -> Result<(Site, String)> {
    let programs = crate::programs()?;
    let bramble = Gift { from: programs.join("bramble"), to: "/usr/bin/bramble".to_owned() };
    let store = Store::within(&target()?, |line| eprintln!("{line}"))?;
    let mut site =
        Site::start(&store, &site::program(&programs)?, &[bramble], script, Settings::new(PASSWORD)?)?;
    let (url, token) = (site.url(), site.token()?);
    let machine = &mut site.machine;
    machine.run("mkdir -p /etc/bramble && install -m 600 /dev/null /etc/bramble/token")?.good()?;
    fs::write(machine.path(TOKEN), format!("{token}\n"))?;
    let config = format!(
        "[node]\nname = \"{NODE}\"\n[k3s]\nserver = \"{url}\"\ntoken_file = \"{TOKEN}\"\nversion = \"{}\"\nsource = \"{RELEASE}\"\n\
         [cluster]\naccept = [\"kernel-options-cilium\", \"memory-cgroup\", \"cgroup-controllers\", \"bpffs\"]\n",
        testbed::k3s::program::VERSION,
    );
    fs::write(machine.path("/etc/bramble/bramble.toml"), config)?;
    let before = state(&mut site)?;
    Ok((site, before))
}

fn state(site: &mut Site) -> Result<String> {
    Ok(site.machine.run(STATE)?.out)
}

fn join(site: &mut Site) -> Result<()> {
    let said = site.machine.run("bramble join --yes")?;
    ensure!(said.code == 0, "{}{}", said.out, said.err);
    until(PATIENCE, "the node is Ready", || Ok(site.is_ready(NODE)?.then_some(())))
}

/// The lines in which two states differ.
fn differences(before: &str, after: &str) -> Vec<String> {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (before, after) = (lines(before), lines(after));
    let less = before.iter().filter(|line| !after.contains(line)).map(|line| format!("- {line}"));
    let more = after.iter().filter(|line| !before.contains(line)).map(|line| format!("+ {line}"));
    less.chain(more).collect()
}

fn is_as_before(site: &mut Site, before: &str) -> Result<()> {
    let after = state(site)?;
    let differences = differences(before, &after);
    ensure!(differences.is_empty(), "it is not as it was: {differences:#?}");
    Ok(())
}

pub(crate) fn a_node_that_leaves_is_as_it_was_before_it_joined() -> Result<()> {
    let (mut site, before) = prepared(&Script { cilium: Some(500), ..Script::default() })?;
    join(&mut site)?;
    ensure!(!differences(&before, &state(&mut site)?).is_empty(), "joining has changed nothing");
    let said = site.machine.run("bramble leave --yes --json")?;
    let report: Value = serde_json::from_str(&said.out).with_context(|| format!("{said:?}"))?;
    let last = site.machine.run("bramble revert 2>&1")?.out;
    ensure!((report["ended"] == "left") && said.code == 1, "{report:#}{last}");
    // The kubelet may not delete its own Node object.
    let remains = report["remains"][0]["command"].as_str().unwrap_or_default();
    ensure!(remains.ends_with(&format!("delete node --ignore-not-found {NODE}")), "{report:#}");
    ensure!(site.node(NODE)?.context("it is there")?["spec"]["unschedulable"] == true, "it was not cordoned");
    is_as_before(&mut site, &before)?;
    let again = site.machine.run("bramble leave --yes")?;
    ensure!(again.code == 0 && again.out.contains("nothing to leave"), "{again:?}");
    Ok(())
}

pub(crate) fn pods_are_moved_as_their_budgets_allow() -> Result<()> {
    let (mut site, before) = prepared(&Script { cilium: Some(500), ..Script::default() })?;
    join(&mut site)?;
    site.stand_in().context("it is the stand-in")?.cluster(|cluster| {
        let pod = |name: &str, owner: &str| {
            json!({
                "metadata": { "name": name, "namespace": "home", "uid": name,
                    "labels": { "app": name }, "ownerReferences": [{ "kind": owner, "controller": true }] },
                "spec": { "nodeName": NODE },
            })
        };
        for (name, owner) in [("web", "ReplicaSet"), ("held", "StatefulSet"), ("logs", "DaemonSet")] {
            cluster.put(&format!("/api/v1/namespaces/home/pods/{name}"), pod(name, owner));
        }
        cluster.put_budget("home", "held", 0);
    });
    let stopped = site.machine.run("bramble leave --yes --json --drain-limit 3")?;
    let report: Value = serde_json::from_str(&stopped.out).with_context(|| format!("{stopped:?}"))?;
    ensure!(
        stopped.code == 2 && report["cause"].as_str().unwrap_or_default().contains("home/held"),
        "{report:#}"
    );
    ensure!(site.is_ready(NODE)?, "it was taken down although a pod could not move");
    let (status, _) = site.ask("GET", "/api/v1/namespaces/home/pods/web", "")?;
    ensure!(status == 404, "the pod without a budget was not moved");
    let (status, _) = site.ask("GET", "/api/v1/namespaces/home/pods/logs", "")?;
    ensure!(status == 200, "a DaemonSet's pod was moved");
    let left = site.machine.run("bramble leave --yes --no-drain")?;
    ensure!(left.code == 1, "{left:?}");
    is_as_before(&mut site, &before)
}

pub(crate) fn a_node_without_network_leaves_and_says_what_remains() -> Result<()> {
    let (mut site, before) = prepared(&Script { cilium: Some(500), ..Script::default() })?;
    join(&mut site)?;
    site.machine.run("systemctl stop k3s-agent")?.good()?;
    let said = site.machine.run("bramble leave --yes")?;
    ensure!(said.code == 1, "{said:?}");
    for part in ["cluster: not told", "sudo k3s kubectl delete node --ignore-not-found bed"] {
        ensure!(said.out.contains(part), "{part:?} is not in {}", said.out);
    }
    is_as_before(&mut site, &before)
}

pub(crate) fn a_leave_that_is_killed_is_brought_to_its_end_by_the_next() -> Result<()> {
    let (mut site, before) = prepared(&Script { cilium: Some(500), ..Script::default() })?;
    for wait in ["0.3", "1", "2", "3"] {
        join(&mut site)?;
        site.machine.run(&format!("timeout --signal=KILL {wait} bramble leave --yes; true"))?;
        let said = site.machine.run("bramble leave --yes")?;
        ensure!([0, 1].contains(&said.code), "after {wait} s: {said:?}");
        is_as_before(&mut site, &before).with_context(|| format!("killed after {wait} s"))?;
        // The operator's part, without which no node of the name may join again.
        site.stand_in().context("it is the stand-in")?.cluster(|cluster| {
            cluster.remove(&format!("/api/v1/nodes/{NODE}"));
        });
        let script = serde_json::to_string(&Script { cilium: Some(500), ..Script::default() })?;
        fs::write(site.machine.path(SCRIPT), script)?;
    }
    Ok(())
}
