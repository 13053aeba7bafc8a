//! `bramble check --fit` on this kernel: what it tries agrees with what `ip` and `nft` can do, and nothing of it stays.

use std::{
    fs,
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testbed::{namespace::Namespace, process::run};

use crate::programs;

/// Nobody's id, who has no right.
const NOBODY: &str = "65534";

fn fit(mut command: Command) -> Result<Value> {
    let Output { stdout, stderr, status } =
        command.output().with_context(|| format!("running {command:?}"))?;
    let said = String::from_utf8_lossy(&stderr);
    let object: Value = serde_json::from_slice(&stdout).with_context(|| format!("{status}: {said}"))?;
    ensure!(status.code().map(i64::from) == object["exit_code"].as_i64(), "{status} is not what JSON says");
    Ok(object)
}

fn as_root() -> Result<Value> {
    let mut command = Command::new(programs()?.join("bramble"));
    command.args(["check", "--fit", "--json"]);
    fit(command)
}

/// Modules, links, network namespaces and packet filter tables of this machine.
fn surroundings() -> Result<[String; 4]> {
    // A kernel without modules has no list of them.
    let modules = fs::read_to_string("/proc/modules").unwrap_or_default();
    let names = modules.lines().filter_map(|line| line.split(' ').next()).collect::<Vec<_>>().join("\n");
    let asked = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments);
        run(command)
    };
    Ok([
        names,
        // Names only: a link whose other end goes changes its state.
        asked("ls", &["/sys/class/net"])?,
        asked("lsns", &["--noheadings", "--type", "net", "--output", "NS"])?,
        asked("nft", &["list", "tables"])?,
    ])
}

pub(crate) fn trying_leaves_no_module_link_namespace_or_table_behind() -> Result<()> {
    let before = surroundings()?;
    let object = as_root()?;
    ensure!(object["observed"]["untried"].is_null(), "root could not try: {}", object["observed"]["untried"]);
    // What an earlier test made may still be going; nothing may have come.
    let came: Vec<String> = surroundings()?
        .iter()
        .zip(&before)
        .flat_map(|(after, before)| after.lines().filter(|line| !before.lines().any(|known| known == *line)))
        .map(str::to_owned)
        .collect();
    ensure!(came.is_empty(), "{came:#?} came, and before there were {before:#?}");
    Ok(())
}

pub(crate) fn what_was_tried_agrees_with_ip_and_nft() -> Result<()> {
    let object = as_root()?;
    let scratch = Namespace::new("fit")?;
    // Arguments that only a kernel without the kind refuses.
    let trials = [
        ("veth", "ip", "link add type veth"),
        ("netkit", "ip", "link add type netkit"),
        ("vxlan", "ip", "link add type vxlan external dstport 8472"),
        ("geneve", "ip", "link add type geneve external"),
        ("wireguard", "ip", "link add type wireguard"),
        ("fq", "tc", "qdisc add dev lo root fq"),
        ("clsact", "tc", "qdisc add dev lo clsact"),
        ("nftables", "nft", "add table ip x; add chain ip x y { type nat hook postrouting priority 100; }"),
        (
            "nftables-6",
            "nft",
            "add table ip6 x; add chain ip6 x y { type nat hook postrouting priority 100; }",
        ),
    ];
    let mut compared = 0;
    for (ability, program, line) in trials {
        let seen = &object["observed"]["abilities"][ability];
        // What is on disk was not tried, so that nothing loads it.
        if seen["how"] != "tried" {
            continue;
        }
        let mut command = scratch.command(program);
        match program {
            "nft" => command.arg(line),
            _ => command.args(line.split(' ')),
        };
        let output = command.output()?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(
            seen["has"] == output.status.success(),
            "{ability}: bramble says {}, {program} {line}: {} {complaint}",
            seen["has"],
            output.status
        );
        compared += 1;
    }
    ensure!(compared > 0, "nothing was tried on this machine: {:#}", object["observed"]["abilities"]);
    Ok(())
}

pub(crate) fn without_rights_the_kernels_files_speak_and_nothing_is_called_tried() -> Result<()> {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]);
    command.arg(programs()?.join("bramble")).args(["check", "--fit", "--json"]);
    let nobody = fit(command)?;
    let untried = nobody["observed"]["untried"].as_str().context("nobody could try nothing")?;
    ensure!(untried.ends_with("permission denied"), "{untried}");
    let root = as_root()?;
    let abilities = nobody["observed"]["abilities"].as_object().context("abilities")?;
    for (id, seen) in abilities {
        ensure!(seen["how"] != "tried", "{id}: {seen}");
        let tried = &root["observed"]["abilities"][id];
        // Either says so where it could not tell; where both could, they tell the same.
        if let (Some(written), Some(done)) = (seen["has"].as_bool(), tried["has"].as_bool()) {
            ensure!(written == done, "{id}: the files say {seen}, trying shows {tried}");
        }
    }
    ensure!(abilities.len() > 30, "{} abilities", abilities.len());
    Ok(())
}
