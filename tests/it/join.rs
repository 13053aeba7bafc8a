//! Joining K3s and leaving it, on a booted Debian 13 beside a server: the stand-in of `testbed::k3s`, and the real one where
//! `BRAMBLE_K3S` names its program.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use testbed::{
    k3s::{
        Settings,
        program::{Script, Trouble},
        site::{self, RELEASE, Site},
    },
    machine::{Gift, Machine as _, store::Store},
    watch::until,
};

/// How long K3s may take for anything on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// The machine's name.
const NODE: &str = "bed";
/// The server's password: nothing else on a machine holds this word.
const PASSWORD: &str = "8f2kx0q7wmz4stand1n";

fn target() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    Ok(test.ancestors().nth(3).context("the test lies in cargo's target folder")?.to_owned())
}

fn store() -> Result<Store> {
    Store::within(&target()?, |line| eprintln!("{line}"))
}

/// A site with the stand-in on both sides.
fn site(script: &Script, settings: Settings) -> Result<Site> {
    let programs = crate::programs()?;
    let bramble = Gift { from: programs.join("bramble"), to: "/usr/bin/bramble".to_owned() };
    Site::start(&store()?, &site::program(&programs)?, &[bramble], script, settings)
}

/// The unit that K3s' installer writes, with only what the start needs.
const UNIT: &str = "[Service]\nType=notify\nKillMode=process\nDelegate=yes\nRestart=always\nRestartSec=1s\nTimeoutStartSec=0\n\
                    ExecStart=/usr/local/bin/k3s agent\n";

/// Starts the stand-in's program by hand, as K3s' own installer would.
fn start_by_hand(site: &mut Site) -> Result<()> {
    let config =
        format!("server: {}\\ntoken-file: /etc/rancher/k3s/token\\nnode-label:\\n- a=b\\n", site.url());
    let (token, machine) = (site.token()?, &mut site.machine);
    std::fs::write(machine.path("/etc/systemd/system/k3s-agent.service"), UNIT)?;
    machine
        .run(&format!(
            "install -m 755 {RELEASE}/k3s* /usr/local/bin/k3s; mkdir -p /etc/rancher/k3s; printf '{config}' \
             >/etc/rancher/k3s/config.yaml; (umask 077; printf '{token}\\n' >/etc/rancher/k3s/token); \
             systemctl daemon-reload; systemctl start --no-block k3s-agent"
        ))?
        .good()?;
    Ok(())
}

fn journal(site: &mut Site) -> Result<String> {
    Ok(site.machine.run("journalctl -b -u 'k3s*' -o cat --no-pager")?.out)
}

pub(crate) fn the_stand_in_is_to_a_unit_what_k3s_is() -> Result<()> {
    let mut site = site(&Script { cilium: Some(500), ..Script::default() }, Settings::new(PASSWORD)?)?;
    start_by_hand(&mut site)?;
    let ready = until(PATIENCE, "the node is Ready", || Ok(site.is_ready(NODE)?.then_some(())));
    let journal = journal(&mut site)?;
    ready.with_context(|| journal.clone())?;
    ensure!(journal.contains("k3s agent is up and running"), "{journal}");
    ensure!(!journal.contains(PASSWORD), "the stand-in says its secrets");
    let node = site.node(NODE)?.context("it is registered")?;
    ensure!(node["metadata"]["labels"]["a"] == "b", "{node}");
    let state = "systemctl is-active k3s-agent; pgrep -c -f ^/var/lib/rancher/.*containerd-shim; ls /etc/cni/net.d /run/netns; \
                 nft list ruleset | grep -c 'chain [KC]'; ip rule; ip -brief link; cat /proc/mounts | grep -c k8s.io";
    let state = site.machine.run(state)?.out;
    for word in ["active\n1\n", "05-cilium.conflist", "cni-", "fwmark 0x200/0xf00", "cilium_host"] {
        ensure!(state.contains(word), "no {word:?} in {state}");
    }
    Ok(())
}

/// Each trouble shows the line of the journal by which it is known.
pub(crate) fn the_stand_in_tells_troubles_as_k3s_does() -> Result<()> {
    let mut site = site(&Script::default(), Settings::new(PASSWORD)?)?;
    site.stand_in().context("it is the stand-in")?.cluster(|cluster| {
        cluster.put(
            "/api/v1/namespaces/kube-system/secrets/bed.node-password.k3s",
            serde_json::json!({"data": {"hash": "x"}}),
        );
    });
    start_by_hand(&mut site)?;
    let lines = [
        (None, "Node password rejected, duplicate hostname or contents of"),
        (Some(Trouble::MemoryCgroup), "failed to find memory cgroup (v2)"),
        (Some(Trouble::CpusetCgroup), "failed to find cpuset cgroup (v2)"),
    ];
    for (trouble, line) in lines {
        let script = serde_json::to_string(&Script { trouble, ..Script::default() })?;
        std::fs::write(site.machine.path(testbed::k3s::program::SCRIPT), script)?;
        site.machine.run("systemctl restart --no-block k3s-agent")?.good()?;
        until(PATIENCE, line, || Ok(journal(&mut site)?.contains(line).then_some(())))?;
    }
    Ok(())
}
