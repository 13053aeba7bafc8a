//! Joining K3s and leaving it, on a booted Debian 13 beside a server: the stand-in of `testbed::k3s`, and the real one where
//! `BRAMBLE_K3S` names its program.

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use crate::installed::property;
use crate::package::packages;
use crate::state::{self, differences, is_as_before};
use anyhow::{Context, Result, ensure};
use bramble::k3s::doctor::EXAMINATIONS;
use serde_json::{Value, json};
use testbed::{
    k3s::{
        Authority, Client, Cluster, Manner, Pair, Server, Settings,
        program::{Script, Trouble, VERSION},
        site::{self, RELEASE, Site},
    },
    machine::{Gift, Machine as _, store::Store},
    namespace::Namespace,
    process::Process,
    watch::until,
};

/// How long K3s may take for anything on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Where the token lies in the machine.
const TOKEN: &str = "/etc/bramble/token";
/// The machine's name.
pub(crate) const NODE: &str = "bed";
/// The server's password: nothing else on a machine holds this word.
pub(crate) const PASSWORD: &str = "8f2kx0q7wmz4stand1n";

fn target() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    Ok(test.ancestors().nth(3).context("the test lies in cargo's target folder")?.to_owned())
}

fn store() -> Result<Store> {
    Store::within(&target()?, |line| eprintln!("{line}"))
}

/// A site with the stand-in on both sides.
pub(crate) fn site(script: &Script, settings: Settings) -> Result<Site> {
    site_of("debian13", script, settings)
}

/// The same with another system on the machine.
pub(crate) fn site_of(system: &str, script: &Script, settings: Settings) -> Result<Site> {
    let programs = crate::programs()?;
    let bramble = Gift { from: programs.join("bramble"), to: "/usr/bin/bramble".to_owned() };
    Site::start(&store()?, system, &site::program(&programs)?, &[bramble], script, settings)
}

/// The unit that K3s' installer writes, with only what the start needs.
const UNIT: &str = "[Service]\nType=notify\nKillMode=process\nDelegate=yes\nRestart=always\nRestartSec=1s\nTimeoutStartSec=0\n\
                    ExecStart=/usr/local/bin/k3s agent\n\
                    [Install]\nWantedBy=multi-user.target\n";

/// Starts the stand-in's program by hand, as K3s' own installer would.
pub(crate) fn start_by_hand(site: &mut Site) -> Result<()> {
    let config =
        format!("server: {}\\ntoken-file: /etc/rancher/k3s/token\\nnode-label:\\n- a=b\\n", site.url());
    let (token, machine) = (site.token()?, &mut site.machine);
    fs::write(machine.path("/etc/systemd/system/k3s-agent.service"), UNIT)?;
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
            json!({"data": {"hash": "x"}}),
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
        fs::write(site.machine.path(testbed::k3s::program::SCRIPT), script)?;
        site.machine.run("systemctl restart --no-block k3s-agent")?.good()?;
        until(PATIENCE, line, || Ok(journal(&mut site)?.contains(line).then_some(())))?;
    }
    Ok(())
}

/// What the pre-flight says of every examination and requirement; looking changes nothing.
fn diagnose(site: &mut Site, url: &str) -> Result<BTreeMap<String, Value>> {
    let before = state::files(&mut site.machine)?;
    let said =
        site.machine.run(&format!("bramble join --check --json --server '{url}' --token-file {TOKEN}"))?;
    let changed = differences(&before, &state::files(&mut site.machine)?);
    ensure!(changed.is_empty(), "looking has changed {changed:#?}");
    let document: Value = serde_json::from_str(&said.out).with_context(|| format!("{said:?}"))?;
    let list = |key: &str| document[key].as_array().cloned().with_context(|| format!("no {key}"));
    let all = [list("examinations")?, list("requirements")?].concat();
    all.iter().map(|one| Ok((one["id"].as_str().context("an id")?.to_owned(), one.clone()))).collect()
}

fn verdict<'a>(said: &'a BTreeMap<String, Value>, id: &str) -> &'a str {
    said.get(id).and_then(|one| one["state"].as_str()).unwrap_or_default()
}

/// The token's file, as its owner would write it.
fn write_token(site: &mut Site, token: &str) -> Result<()> {
    site.machine.run(&format!("(umask 077; printf '%s\\n' '{token}' >{TOKEN})"))?.good().map(drop)
}

/// Every examination is shown by a test of `doctor.rs` or of this file; a slow disk by its own unit test, because this
/// machine's is as quick as it is.
pub(crate) fn every_cause_of_the_doctor_is_shown_by_a_test() -> Result<()> {
    let tests = [include_str!("doctor.rs"), include_str!("join.rs")].concat();
    let missing: Vec<_> = EXAMINATIONS
        .iter()
        .map(|examination| examination.id)
        .filter(|id| *id != "disk-sync" && !tests.contains(&format!("\"{id}\"")))
        .collect();
    ensure!(missing.is_empty(), "no test shows {missing:?}");
    Ok(())
}

/// What `bramble check` knows and stands in K3s' way: how it comes about, and how it goes again.
const OBSTACLES: [(&str, &str, &str, &str); 5] = [
    ("default-route", "wrong", "ip route delete default", "ip route add default via 198.18.66.1"),
    (
        "address-ranges",
        "wrong",
        "ip address add 10.42.7.1/24 dev up0",
        "ip address delete 10.42.7.1/24 dev up0",
    ),
    (
        "ports",
        "wrong",
        "systemd-run --quiet --unit=taker systemd-socket-activate -l 6444 /bin/true",
        "systemctl stop taker",
    ),
    (
        "leftover-flannel",
        "wrong",
        "ip link add flannel.1 type vxlan id 1 dstport 8472 dev up0",
        "ip link delete flannel.1",
    ),
    (
        "shutdown-delay",
        "warned",
        "mkdir /etc/systemd/logind.conf.d; printf '[Login]\nInhibitDelayMaxSec=5\n' >/etc/systemd/logind.conf.d/a.conf",
        "rm -r /etc/systemd/logind.conf.d",
    ),
];

pub(crate) fn what_stands_in_k3s_way_on_the_node_is_named_before_a_join() -> Result<()> {
    let mut site = site(&Script::default(), Settings::new(PASSWORD)?)?;
    let (url, token) = (site.url(), site.token()?);
    write_token(&mut site, &token)?;
    for (id, wanted, arrange, undo) in OBSTACLES {
        ensure!(verdict(&diagnose(&mut site, &url)?, id) != wanted, "{id} before anything was done");
        site.machine.run(arrange)?.good()?;
        let said = until(PATIENCE, id, || {
            let said = diagnose(&mut site, &url)?;
            Ok((verdict(&said, id) == wanted).then_some(said))
        })?;
        ensure!(said[id]["next"].as_str().is_some_and(|next| !next.is_empty()), "{}", said[id]);
        site.machine.run(undo)?.good()?;
    }
    Ok(())
}

pub(crate) fn a_url_that_is_none_is_refused_with_what_is_wanted() -> Result<()> {
    let mut site = site(&Script::default(), Settings::new(PASSWORD)?)?;
    for (url, named) in [
        ("first.home:6443", "https://"),
        ("http://first.home:6443", "https"),
        ("https://fd00:66::1:6443", "brackets"),
        ("https://user:word@first.home:6443", "password"),
        ("https://first.home:66443", "port"),
        ("https://", "host"),
    ] {
        let said =
            site.machine.run(&format!("bramble join --check --server '{url}' --token-file {TOKEN}"))?;
        ensure!(said.code == 64 && said.err.contains(named), "{url}: {said:?}");
    }
    // An address of IPv6 in brackets is as good as any.
    let server = site.lan().within(|| {
        Server::start(Settings::new(PASSWORD)?, Cluster::default(), (site::SERVER_6, site::PORT).into())
    })?;
    write_token(&mut site, &server.token()?)?;
    let said = diagnose(&mut site, &server.url())?;
    ensure!(verdict(&said, "token-accepted") == "good", "{said:?}");
    Ok(())
}

/// An owner's own rules and settings, which must outlive a join and a leave.
const OWNERS: &str = "set -e
nft 'add table ip filter; add chain ip filter INPUT { type filter hook input priority 0; policy accept; }
     add chain ip filter OUTPUT { type filter hook output priority 0; policy accept; }
     add rule ip filter INPUT tcp dport 22 counter accept; add table ip mangle; add chain ip mangle MINE; add table ip nat
     add chain ip nat POSTROUTING { type nat hook postrouting priority srcnat; policy accept; }
     add rule ip nat POSTROUTING ip saddr 192.0.2.0/24 counter masquerade
     add table inet mine; add chain inet mine KEEP'
mkdir -p /etc/rancher/k3s; echo 'mirrors: {}' >/etc/rancher/k3s/registries.yaml";

/// What the machine is to become.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Agent,
    Server,
    FirstServer,
}

/// Writes the node's settings and its token.
pub(crate) fn configure(site: &mut Site, role: Role) -> Result<()> {
    let (cluster, whom) = match role {
        Role::Agent => ("agent", format!("server = \"{}\"", site.url())),
        Role::Server => ("server", format!("server = \"{}\"", site.url())),
        Role::FirstServer => ("server", "init = true".to_owned()),
    };
    let text = format!(
        "[cluster]\nrole = \"{cluster}\"\n# What a container on this kernel cannot have, and the stand-in does not need.\n\
         accept = [\"kernel-options-cilium\", \"memory-cgroup\", \"cgroup-controllers\", \"bpffs\"]\n\n\
         [mqtt]\nhost = \"{}\"\n\n[report]\ninterval = \"1s\"\n\n\
         [k3s]\n{whom}\ntoken_file = \"{TOKEN}\"\nversion = \"{VERSION}\"\nsource = \"{RELEASE}\"\n\
         labels = [\"where=attic\"]\n",
        site::SERVER,
    );
    fs::write(site.machine.path("/etc/bramble/conf.d/k3s.toml"), text)?;
    let token = if role == Role::FirstServer { PASSWORD.to_owned() } else { site.token()? };
    write_token(site, &token)
}

/// Joins unattended; what it printed.
pub(crate) fn join(site: &mut Site) -> Result<String> {
    join_with(site, "")
}

/// The same with more arguments.
fn join_with(site: &mut Site, more: &str) -> Result<String> {
    let said = site.machine.run(&format!("bramble join --yes {more} </dev/null"))?;
    if said.code != 0 {
        let journal = journal(site)?;
        anyhow::bail!("bramble join ended with {}: {}{}\n{journal}", said.code, said.out, said.err);
    }
    Ok(said.out + &said.err)
}

pub(crate) fn a_fresh_node_joins_until_it_is_ready_and_leaves_as_it_was() -> Result<()> {
    let mut site = site(&Script { cilium: Some(500), ..Script::default() }, Settings::new(PASSWORD)?)?;
    site.machine.run(OWNERS)?.good()?;
    configure(&mut site, Role::Agent)?;
    let fresh = state::whole(&mut site.machine)?;

    let said = join(&mut site)?;
    ensure!(said.contains("bed is Ready"), "{said}");
    ensure!(site.is_ready(NODE)?, "the cluster does not call it Ready");
    let node = site.node(NODE)?.context("it is registered")?;
    ensure!(node["metadata"]["labels"]["where"] == "attic", "{node}");
    ensure!(site.machine.run("systemctl is-enabled k3s-agent")?.good()? == "enabled");

    // Once more changes nothing and restarts nothing.
    let pid = "systemctl show --value --property=MainPID k3s-agent";
    let (before, first) = (state::files(&mut site.machine)?, site.machine.run(pid)?.good()?);
    let said = join(&mut site)?;
    ensure!(said.contains("bed is Ready"), "{said}");
    ensure!(site.machine.run(pid)?.good()? == first, "K3s was restarted");
    let changed = differences(&before, &state::files(&mut site.machine)?);
    ensure!(changed.is_empty(), "the second join changed {changed:#?}");

    let left = site.machine.run("bramble leave --yes </dev/null")?;
    ensure!(left.code == 2, "bramble leave ended with {}: {}{}", left.code, left.out, left.err);
    // What an agent may not do is said, and is enough.
    ensure!(left.out.contains("kubectl delete node --ignore-not-found bed"), "{}", left.out);
    ensure!(site.ask("DELETE", &format!("/api/v1/nodes/{NODE}"), "")?.0 == 200, "an administrator could not");
    is_as_before(&mut site.machine, &fresh)?;
    let said = join(&mut site)?;
    ensure!(said.contains("bed is Ready"), "it does not come back: {said}");
    Ok(())
}

/// Where no secret may be: command lines and environments of all processes but K3s' own, the journal, and all files that
/// others may read.
const SECRETS: &str = "for p in /proc/[0-9]*; do \
                         grep -l WORD $p/cmdline $p/environ; \
                       done 2>/dev/null; \
                       journalctl --no-pager -o export | grep -c WORD | grep -v '^0$'; \
                       find / -xdev -type f -perm /077 -not -path '/proc/*' -not -path '/sys/*' -exec grep -l WORD {} + 2>/dev/null; true";

/// Runs the agent as the package does it, as far as it needs that here.
const AGENT: &str = "useradd --system --no-create-home bramble; install -d -o bramble /var/lib/bramble; \
                     systemd-run --quiet --unit=bramble --property=RuntimeDirectory=bramble bramble run";

pub(crate) fn the_token_is_nowhere_where_others_look_and_status_tells_of_k3s() -> Result<()> {
    let mut site = site(&Script { cilium: Some(500), ..Script::default() }, Settings::new(PASSWORD)?)?;
    let said = site.lan().path("/run/bed/said");
    let broker = listen(site.lan(), site::SERVER, &said)?;
    configure(&mut site, Role::Agent)?;
    site.machine.run(AGENT)?.good()?;
    join(&mut site)?;
    let status = until(PATIENCE, "the agent tells of K3s", || {
        let status = site.machine.run("bramble status --json")?;
        let told: Value = serde_json::from_str(&status.out).unwrap_or_default();
        Ok(is_ready_agent(&told["state"]).then_some(status.out))
    })?;
    let page = site.machine.run("bramble status")?.out;
    ensure!(page.contains(&format!("agent {VERSION}, ready since")), "{page}");
    ensure!(!status.contains(PASSWORD), "status tells the token");
    let support = site
        .machine
        .run("bramble check; bramble check --json; bramble plan; bramble revert --list; bramble status")?;
    ensure!(!(support.out + &support.err).contains(PASSWORD), "a command tells the token");
    // In brackets, so that the search does not find itself.
    let word = format!("[{}]{}", &PASSWORD[..1], &PASSWORD[1..]);
    let found = site.machine.run(&SECRETS.replace("WORD", &word))?.out;
    ensure!(found.is_empty(), "the token is told by {found}");
    let reports = until(PATIENCE, "the node reports K3s", || {
        let reports = fs::read_to_string(&said)?;
        let payloads = reports.lines().filter_map(|line| line.split_once(' '));
        let states = payloads.filter_map(|(_, payload)| serde_json::from_str::<Value>(payload).ok());
        let phases: Vec<Value> = states.clone().map(|state| state["phase"].clone()).collect();
        Ok((phases.contains(&json!("joining")) && states.clone().any(|state| is_ready_agent(&state)))
            .then_some(reports))
    })?;
    ensure!(!reports.contains(PASSWORD), "a report tells the token: {reports}");
    drop(broker);
    Ok(())
}

/// Whether a node's state says that it is in its cluster, and as what.
fn is_ready_agent(state: &Value) -> bool {
    let k3s = &state["k3s"];
    k3s["phase"] == "ready" && k3s["role"] == "agent" && k3s["version"] == VERSION && k3s["cause"].is_null()
}

/// What a join that failed has kept for the agent.
fn kept(site: &mut Site) -> Result<Value> {
    Ok(serde_json::from_str(&site.machine.run("cat /var/lib/bramble/k3s.json")?.good()?)?)
}

pub(crate) fn a_join_that_ends_otherwise_has_one_cause_and_one_next_step() -> Result<()> {
    let mut site = site(&Script { cilium: Some(0), ..Script::default() }, Settings::new(PASSWORD)?)?;
    configure(&mut site, Role::Agent)?;
    // The package makes it.
    site.machine.run("install -d /var/lib/bramble")?.good()?;
    write_token(&mut site, "K10nonsense")?;
    let said = site.machine.run("bramble join --yes </dev/null")?;
    ensure!(said.code == 2 && kept(&mut site)?["cause"][0] == "token", "{said:?} {}", kept(&mut site)?);
    // While it looks again nobody is told that it is over.
    site.stand_in().context("it is the stand-in")?.set_manner(Manner::Silent);
    site.machine.run("systemd-run --quiet --unit=again bramble join --yes")?.good()?;
    let phase = |site: &mut Site, phase: &str| {
        until(PATIENCE, phase, || Ok(Some(kept(site)?).filter(|kept| kept["phase"] == phase)))
    };
    let looking = phase(&mut site, "joining")?;
    ensure!(looking["step"] == "looking" && looking["cause"][0] == "token", "{looking}");
    phase(&mut site, "failed")?;
    site.stand_in().context("it is the stand-in")?.set_manner(Manner::Tls);
    let token = site.token()?;
    write_token(&mut site, &token)?;
    for (trouble, limit, cause) in [
        (Trouble::Kubelet, 20, "kubelet"),
        (Trouble::Silence, 20, "starting"),
        (Trouble::Crash, 600, "disk-full"),
    ] {
        let script = Script { trouble: Some(trouble), ..Script::default() };
        fs::write(site.machine.path(testbed::k3s::program::SCRIPT), serde_json::to_string(&script)?)?;
        let said = site.machine.run(&format!("bramble join --yes --limit {limit} </dev/null"))?;
        let told = said.err.matches("\n  next  ").count();
        ensure!(said.code == 1 && told == 1, "{trouble:?}: {said:?}");
        ensure!(said.err.contains(&format!("bramble join: {cause}: ")), "{trouble:?}: {}", said.err);
        let kept = kept(&mut site)?;
        ensure!(kept["phase"] == "failed" && kept["cause"][0] == cause && kept["role"] == "agent", "{kept}");
        site.machine.run("bramble leave --yes --no-drain </dev/null")?;
        site.ask("DELETE", &format!("/api/v1/nodes/{NODE}"), "")?;
    }
    Ok(())
}

/// The unit tries again what may be gone the next time, and nothing that only its owner can mend.
pub(crate) fn what_is_written_wrong_ends_a_join_and_is_not_tried_again() -> Result<()> {
    const SETTINGS: &str = "/etc/bramble/conf.d/k3s.toml";
    let mut site = site(&Script::default(), Settings::new(PASSWORD)?)?;
    let unit = fs::read_to_string(crate::root().join("systemd/system/bramble-join.service"))?;
    fs::write(site.machine.path("/etc/systemd/system/bramble-join.service"), unit)?;
    site.machine
        .run("install -d /var/lib/bramble; touch /etc/bramble/join; systemctl daemon-reload")?
        .good()?;
    for (edit, says) in [
        ("/^version/d", "it is not said which version"),
        ("s/^version.*/version = \"v1.99.0+k3s1\"/", "v1.99.0+k3s1 are not known"),
        ("s/^labels.*/settings = { node-nmae = \"a\" }/", "there is node-name"),
        ("s/^source.*/source = \"http:\\/\\/mirror.lan\"/", "anybody on the way"),
        ("s/^role.*/role = \"server\"/; s/^server.*//", "it is not said which cluster"),
        ("s/^server/init = true\\nserver/", "take one of them away"),
    ] {
        configure(&mut site, Role::Agent)?;
        site.machine.run(&format!("sed -i '{edit}' {SETTINGS}"))?.good()?;
        let said = site.machine.run("bramble join --yes </dev/null")?;
        ensure!(said.code == 64 && said.err.contains(says), "{edit}: {said:?}");
        let said = site.machine.run("bramble join --check --json")?;
        let told =
            said.err.contains(says) || said.out.contains(says) && said.out.contains("\"exit_code\":64");
        ensure!(said.code == 64 && told, "{edit}: {said:?}");
    }
    site.machine.run("systemctl start bramble-join")?;
    let state = property(&mut site.machine, "bramble-join", "ActiveState")?;
    ensure!(state == "failed", "what is written wrong is tried again: {}", joining(&mut site)?);
    configure(&mut site, Role::Agent)?;
    write_token(&mut site, "K10nonsense")?;
    site.machine.run("systemctl start bramble-join")?;
    let state = property(&mut site.machine, "bramble-join", "SubState")?;
    ensure!(
        state.starts_with("auto-restart"),
        "the next token is waited for in vain: {}",
        joining(&mut site)?
    );
    let said = site.machine.run("bramble join --check")?;
    ensure!(said.code < 64, "{said:?}");
    site.machine.run(&format!("sed -i '/^version/d' {SETTINGS}"))?.good()?;
    let said = site.machine.run("bramble join --check")?;
    ensure!(said.code == 64 && said.out.contains("token-file"), "what is found is told as well: {said:?}");
    Ok(())
}

/// What a join said is past once K3s was well: the agent keeps that, and does not tell the old cause with the next trouble.
pub(crate) fn the_cause_of_a_join_is_past_once_k3s_was_well() -> Result<()> {
    let mut site = site(&Script { cilium: Some(0), ..Script::default() }, Settings::new(PASSWORD)?)?;
    configure(&mut site, Role::Agent)?;
    site.machine.run(AGENT)?.good()?;
    let play = |site: &mut Site, trouble, start: &str| -> Result<()> {
        let script = Script { cilium: Some(0), trouble, ..Script::default() };
        fs::write(site.machine.path(testbed::k3s::program::SCRIPT), serde_json::to_string(&script)?)?;
        site.machine.run(start).map(drop)
    };
    let told = |site: &mut Site, wanted: fn(&str) -> bool| {
        until(PATIENCE, "the agent tells of K3s", || {
            let said = site.machine.run("bramble status --json")?.out;
            let said: Value = serde_json::from_str(&said).unwrap_or_default();
            let all = said["state"]["conditions"].as_array().cloned().unwrap_or_default();
            let one = all.into_iter().find(|one| one["id"] == "k3s-node").unwrap_or_default();
            Ok(Some(one.to_string()).filter(|one| wanted(one)))
        })
    };
    play(&mut site, Some(Trouble::Kubelet), "bramble join --yes --limit 5 </dev/null")?;
    told(&mut site, |one| one.contains("kubelet: for ") && one.contains("; next: "))?;
    play(&mut site, None, "systemctl restart k3s-agent")?;
    told(&mut site, |one| one.contains("the kubelet is well"))?;
    play(&mut site, Some(Trouble::Kubelet), "systemctl restart k3s-agent; systemctl restart bramble")?;
    told(&mut site, |one| one.contains("agent v1.35.2+k3s1, kubelet: ") && !one.contains("next: "))?;
    Ok(())
}

/// K3s reads its token once, when it is started, and asks by that for ever.
pub(crate) fn a_token_that_was_corrected_reaches_a_k3s_that_still_asks_by_the_old_one() -> Result<()> {
    let mut site = site(&Script { cilium: Some(500), ..Script::default() }, Settings::new(PASSWORD)?)?;
    configure(&mut site, Role::Agent)?;
    join(&mut site)?;
    let token = site.token()?;
    write_token(&mut site, &token.replace(PASSWORD, "older"))?;
    site.machine.run("systemctl restart --no-block k3s-agent")?.good()?;
    let said = site.machine.run("bramble join --yes --limit 60 </dev/null")?;
    ensure!(said.code == 1 && said.err.contains("bramble join: token-refused: "), "{said:?}");
    let starts = |site: &mut Site| property(&mut site.machine, "k3s-agent", "NRestarts");
    ensure!(starts(&mut site)? == "0", "it was to go on asking");
    // Where the new one is no better, that is said before anything is started anew.
    write_token(&mut site, &token.replace(PASSWORD, "oldest"))?;
    let said = site.machine.run("bramble join --yes --limit 60 </dev/null")?;
    ensure!(said.code == 2 && said.out.contains("token-accepted"), "{said:?}");
    write_token(&mut site, &token)?;
    let said = join(&mut site)?;
    ensure!(said.contains("it is started anew") && said.contains("bed is Ready as agent"), "{said}");
    Ok(())
}

/// A Plan has replaced the program, the internet is gone, and Flux and the owner have changed what the join wrote.
pub(crate) fn a_joined_node_is_left_as_its_owner_and_its_upgrades_have_it() -> Result<()> {
    let mut site = site(&Script { cilium: Some(500), ..Script::default() }, Settings::new(PASSWORD)?)?;
    configure(&mut site, Role::FirstServer)?;
    join(&mut site)?;
    let change = format!(
        "set -e; rm -r {RELEASE}; cd /usr/local/bin; cp k3s new; printf '\\n' >>new; mv new k3s; \
         rm /var/lib/rancher/k3s/server/manifests/bramble-cilium.yaml; \
         echo 'write-kubeconfig-mode: \"644\"' >>/etc/rancher/k3s/config.yaml; \
         echo '# mine' >>/etc/systemd/system/k3s.service"
    );
    site.machine.run(&change)?.good()?;
    let before = state::files(&mut site.machine)?;
    let said = join(&mut site)?;
    ensure!(said.contains("bed is Ready as first server"), "{said}");
    let changed = differences(&before, &state::files(&mut site.machine)?);
    ensure!(changed.is_empty(), "the join put back {changed:#?}");
    Ok(())
}

/// A broker in the server's network, and somebody who writes down all that it is told.
fn listen(lan: &Namespace, address: Ipv4Addr, said: &Path) -> Result<[Process; 2]> {
    let conf = lan.path("/run/bed/mosquitto.conf");
    fs::write(&conf, format!("listener 1883 {address}\nallow_anonymous true\nuser root\n"))?;
    let mut mosquitto = lan.command("mosquitto");
    mosquitto.args(["-c", "/run/bed/mosquitto.conf"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut listener = lan.command("sh");
    // One process, which ends with this test: a loop around it would leave it behind.
    let listen = format!(
        "until mosquitto_sub -h {address} -t '#' -E; do sleep 0.1; done; exec mosquitto_sub -h {address} -t '#' -v"
    );
    listener.args(["-c", &listen]).stdout(fs::File::create(said)?).stderr(Stdio::null());
    Ok([Process::spawn("mosquitto", mosquitto)?, Process::spawn("mosquitto_sub", listener)?])
}

/// Half of them are joined again, which heals; half are left, which undoes what there is.
pub(crate) fn a_join_killed_at_any_step_is_healed_or_undone_by_the_next_command() -> Result<()> {
    let mut site = site(&Script { cilium: Some(0), ..Script::default() }, Settings::new(PASSWORD)?)?;
    // This program is bramble too, with steps at which it can be killed.
    site.machine.put(&Gift { from: std::env::current_exe()?, to: "/usr/bin/bramble".to_owned() })?;
    configure(&mut site, Role::Agent)?;
    let fresh = state::whole(&mut site.machine)?;
    for step in 1.. {
        let said = site.machine.run(&format!("BRAMBLE_FAILPOINT={step} bramble join --yes </dev/null"))?;
        let is_killed = said.code == 137;
        ensure!(is_killed || said.code == 0, "step {step}: {said:?}");
        if is_killed && step % 2 == 0 {
            join(&mut site).with_context(|| format!("joining after it was killed at step {step}"))?;
            ensure!(site.is_ready(NODE)?, "step {step}");
        }
        let left = site.machine.run("bramble leave --yes --no-drain </dev/null")?;
        ensure!([0, 2].contains(&left.code), "leaving after it was killed at step {step}: {left:?}");
        is_as_before(&mut site.machine, &fresh).with_context(|| format!("killed at step {step}"))?;
        site.ask("DELETE", &format!("/api/v1/nodes/{NODE}"), "")?;
        if !is_killed {
            ensure!(step > 50, "there were {step} steps alone");
            return Ok(());
        }
    }
    Ok(())
}

pub(crate) fn a_reboot_in_the_middle_of_a_join_is_healed() -> Result<()> {
    let script = Script { cilium: Some(500), delay: 4000, ..Script::default() };
    let mut site = site(&script, Settings::new(PASSWORD)?)?;
    configure(&mut site, Role::Agent)?;
    site.machine.run("systemd-run --quiet --unit=joining bramble join --yes")?.good()?;
    until(PATIENCE, "K3s is being started", || {
        let state = site.machine.run("systemctl is-active k3s-agent")?.out;
        Ok((state.trim() == "activating").then_some(()))
    })?;
    ensure!(site.node(NODE)?.is_none(), "it was quicker than the reboot");
    site.machine.reboot()?;
    // What was begun goes on by itself, and the next run has nothing left to do but to wait.
    let said = join(&mut site)?;
    ensure!(said.contains("bed is Ready") && site.is_ready(NODE)?, "{said}");
    let unfinished = site.machine.run("find / -xdev -name '*.bramble-*' -o -xdev -name '*.partial'")?.out;
    ensure!(unfinished.is_empty(), "half a file is left: {unfinished}");
    Ok(())
}

/// How the unit is that joins unattended, and what it has said since the boot.
fn joining(site: &mut Site) -> Result<String> {
    let look = "systemctl show --property=ActiveState,SubState,Result,ConditionResult bramble-join; \
                journalctl -b -u bramble-join -o cat --no-pager";
    Ok(site.machine.run(look)?.out)
}

/// All that an owner does, from the package to the day on which the node leaves: nobody types `bramble join`.
pub(crate) fn an_installed_node_joins_by_itself_over_a_reboot_and_leaves_as_it_was() -> Result<()> {
    let [package, _] = packages()?;
    let package = Gift { from: package, to: "/srv/bramble.deb".to_owned() };
    let script = Script { cilium: Some(500), delay: 4000, ..Script::default() };
    let stand_in = site::program(&crate::programs()?)?;
    let mut site =
        Site::start(&store()?, "debian13", &stand_in, &[package], &script, Settings::new(PASSWORD)?)?;
    site.machine.run(OWNERS)?.good()?;
    site.machine.run("dpkg --install /srv/bramble.deb </dev/null")?.good()?;
    configure(&mut site, Role::Agent)?;
    let (images, sums) = match cfg!(target_arch = "aarch64") {
        true => ("k3s-airgap-images-arm64.tar.gz", "sha256sum-arm64.txt"),
        false => ("k3s-airgap-images-amd64.tar.gz", "sha256sum-amd64.txt"),
    };
    let air_gap = format!("cd {RELEASE}; echo images >{images}; sha256sum {images} >>{sums}");
    site.machine.run(&air_gap)?.good()?;
    // What every boot writes below /run is there before as well.
    site.machine.reboot()?;
    ensure!(joining(&mut site)?.contains("ConditionResult=no"), "it joins unasked: {}", joining(&mut site)?);
    let before = state::whole(&mut site.machine)?;

    site.machine.run("touch /etc/bramble/join && systemctl start --no-block bramble-join")?.good()?;
    let begun = until(PATIENCE, "K3s is being started", || {
        let state = site.machine.run("systemctl is-active k3s-agent")?.out;
        Ok((state.trim() == "activating").then_some(()))
    });
    begun.with_context(|| joining(&mut site).unwrap_or_default())?;
    ensure!(site.node(NODE)?.is_none(), "it was quicker than the reboot");
    site.machine.reboot()?;
    let said = until(PATIENCE, "it has joined by itself", || {
        let said = joining(&mut site)?;
        Ok(said.contains("bed is Ready as agent").then_some(said))
    });
    let said = said.with_context(|| joining(&mut site).unwrap_or_default())?;
    ensure!(said.contains("Result=success") && site.is_ready(NODE)?, "{said}");
    let found = site.machine.run(&format!("cat {}/{images}", bramble::k3s::path::IMAGES))?.good()?;
    ensure!(found == "images", "the images are not where K3s looks for them: {found}");
    until(PATIENCE, "the agent tells of K3s", || {
        let told = site.machine.run("bramble status --json")?.out;
        let told: Value = serde_json::from_str(&told).unwrap_or_default();
        Ok(is_ready_agent(&told["state"]).then_some(()))
    })?;
    let page = site.machine.run("bramble status")?.out;
    ensure!(page.contains(&format!("agent {VERSION}, ready since")), "{page}");

    // While it leaves a join is begun once more: it does not come in between, and is not begun anew.
    site.machine.run("systemctl start --no-block bramble-join")?.good()?;
    let left = site.machine.run("bramble leave --yes </dev/null")?;
    ensure!(left.code == 2, "bramble leave ended with {}: {}{}", left.code, left.out, left.err);
    for command in ["kubectl delete node --ignore-not-found bed", "sudo rm /etc/bramble/join"] {
        ensure!(left.out.contains(command), "{command:?} is not in {}", left.out);
    }
    // What a leave takes back is no loss, and the guard is silent about it.
    let lost = format!("journalctl -b -o cat --no-pager MESSAGE_ID={}", bramble::journal::LOST);
    let lost = site.machine.run(&lost)?.out;
    ensure!(lost.is_empty(), "the guard misses what was left: {lost}");
    let state = property(&mut site.machine, "bramble-join", "ActiveState")?;
    ensure!(["inactive", "failed"].contains(&state.as_str()), "it joins again: {}", joining(&mut site)?);
    site.machine.run("rm /etc/bramble/join")?.good()?;
    is_as_before(&mut site.machine, &before)
}

pub(crate) fn a_first_server_begins_a_cluster_and_another_one_joins_it() -> Result<()> {
    let mut site = site(&Script { cilium: Some(500), ..Script::default() }, Settings::new(PASSWORD)?)?;
    configure(&mut site, Role::FirstServer)?;
    let refused =
        site.machine.run("echo '{}' >/srv/pi9.json; bramble join --yes --fit /srv/pi9.json </dev/null")?;
    ensure!(refused.code == 64 && refused.err.contains("bramble check --fit --json"), "{refused:?}");
    // On another node Envoy does not come up: the cluster begins without it.
    let verdicts = json!({ "v": 1, "features": [
        { "setting": "envoy.enabled", "value": "true", "fit": "works_not", "why": "39 address bits" },
    ] });
    fs::write(site.machine.path("/srv/pi9.json"), verdicts.to_string())?;
    let said = join_with(&mut site, "--fit /srv/pi9.json")?;
    ensure!(said.contains("bed is Ready as first server"), "{said}");
    ensure!(said.contains("does not work on pi9 (39 address bits)"), "{said}");
    let values = site.machine.run(&format!("cat {}", bramble::k3s::cilium::MANIFEST))?.good()?;
    ensure!(values.contains("    envoy:\n      enabled: false\n"), "{values}");
    let manifests = site.machine.run("cat /var/lib/rancher/k3s/server/manifests/*")?.good()?;
    ensure!(manifests.contains("kind: HelmChart") && manifests.contains("bootstrap: true"), "{manifests}");
    ensure!(
        !site.machine.run("cat /etc/rancher/k3s/config.yaml")?.good()?.contains(PASSWORD),
        "the token is in it"
    );
    let left = site.machine.run("bramble leave --yes </dev/null")?;
    ensure!(left.code == 0, "bramble leave ended with {}: {}{}", left.code, left.out, left.err);

    // The same machine, now beside a server that is there already.
    configure(&mut site, Role::Server)?;
    let said = join(&mut site)?;
    ensure!(said.contains("bed is Ready as server"), "{said}");
    let members = |site: &Site| -> Result<Vec<String>> {
        Ok(site.stand_in().context("it is the stand-in")?.cluster(|c| c.members.keys().cloned().collect()))
    };
    ensure!(members(&site)? == [NODE], "{:?}", members(&site)?);
    let left = site.machine.run("bramble leave --yes </dev/null")?;
    ensure!(left.code == 0, "bramble leave ended with {}: {}{}", left.code, left.out, left.err);
    ensure!(members(&site)?.is_empty(), "its member of etcd is left");
    ensure!(site.node(NODE)?.is_none(), "its Node object is left");
    Ok(())
}

/// Another server's learner keeps this one waiting, and the wait is named.
pub(crate) fn a_server_waits_while_another_one_joins() -> Result<()> {
    let mut site = site(&Script { cilium: Some(500), ..Script::default() }, Settings::new(PASSWORD)?)?;
    configure(&mut site, Role::Server)?;
    let learner = |site: &Site, is_learner| -> Result<()> {
        let server = site.stand_in().context("it is the stand-in")?;
        server.cluster(|cluster| cluster.members.insert("pi9".to_owned(), is_learner));
        Ok(())
    };
    learner(&site, true)?;
    site.machine.run("systemd-run --quiet --unit=joining bramble join --yes")?.good()?;
    let line = "too many learner members in cluster";
    until(PATIENCE, line, || Ok(journal(&mut site)?.contains(line).then_some(())))?;
    ensure!(site.node(NODE)?.is_none(), "it did not wait");
    learner(&site, false)?;
    until(PATIENCE, "the node is Ready", || Ok(site.is_ready(NODE)?.then_some(())))?;
    Ok(())
}

/// The real program's path.
fn real() -> Option<PathBuf> {
    std::env::var_os("BRAMBLE_K3S").map(PathBuf::from)
}

/// Why the tests with the real K3s cannot run here and now.
pub(crate) fn no_real_k3s() -> Option<String> {
    match real() {
        None => Some("BRAMBLE_K3S names no k3s".to_owned()),
        Some(path) => (!path.is_file()).then(|| format!("BRAMBLE_K3S: there is no {}", path.display())),
    }
}

/// Why no container here can be a node of the real K3s.
pub(crate) fn no_real_node() -> Option<String> {
    let controllers = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .iter()
        .find_map(|group| fs::read_to_string(format!("{group}/cgroup.controllers")).ok())
        .unwrap_or_default();
    let lacks = ["cpu", "cpuset", "memory", "pids"]
        .into_iter()
        .find(|name| !controllers.split(' ').any(|c| c.trim() == *name));
    no_real_k3s()
        .or_else(|| lacks.map(|name| format!("the real k3s needs control groups of version 2 with {name}")))
}

/// A site with the real K3s on both sides, and its version.
fn real_site() -> Result<(Site, String)> {
    let (programs, k3s) = (crate::programs()?, real().context("BRAMBLE_K3S is set")?);
    let bramble = Gift { from: programs.join("bramble"), to: "/usr/bin/bramble".to_owned() };
    let said = run(std::process::Command::new(&k3s).arg("--version").env_clear())?;
    let version = said.split_whitespace().nth(2).context("it says its version")?.to_owned();
    Ok((Site::start_real(&store()?, &k3s, &[bramble])?, version))
}

fn run(command: &mut std::process::Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// What every server of K3s answers.
fn speaks_as_k3s_does(site: &Site) -> Result<()> {
    let token = site.token()?;
    let (pin, rest) = token.strip_prefix("K10").and_then(|t| t.split_once("::")).context("a whole token")?;
    let password = rest.split_once(':').context("a user")?.1;
    site.lan().within(|| {
        let address = (site::SERVER, site::PORT).into();
        let cacerts = Client::new(address).get("/cacerts")?.body;
        ensure!(Authority::pin(&cacerts)? == pin, "the pin is counted otherwise");
        let anybody = || Client::new(address).trusting(&cacerts);
        let node = || anybody().basic("node", password);
        ensure!(anybody().get("/ping")?.body == "pong");
        let kubelet =
            |password| node().header("k3s-Node-Name", "guest").header("k3s-Node-Password", password);
        for (what, client, path, status) in [
            ("nobody's settings", anybody(), "/v1-k3s/config", 403),
            ("an agent's settings", node(), "/v1-k3s/config", 200),
            ("a server's role is no agent's", anybody().basic("server", password), "/v1-k3s/config", 403),
            ("a wrong password", anybody().basic("node", "wrong"), "/v1-k3s/config", 401),
            ("an agent is no server", node(), "/v1-k3s/server-bootstrap", 403),
            ("readiness", node(), "/v1-k3s/readyz", 200),
            ("the API knows nobody without a certificate", anybody(), "/readyz", 401),
            ("a kubelet without a name", node(), "/v1-k3s/serving-kubelet.crt", 400),
            ("a name's first password", kubelet("one"), "/v1-k3s/serving-kubelet.crt", 200),
            ("a name's second password", kubelet("two"), "/v1-k3s/serving-kubelet.crt", 403),
        ] {
            let answer = client.get(path)?;
            ensure!(
                answer.status == status,
                "{what}: {} instead of {status}: {}",
                answer.status,
                answer.body
            );
        }
        let config: Value = serde_json::from_str(&node().get("/v1-k3s/config")?.body)?;
        ensure!(
            config["FlannelBackend"] == "none" && config["ClusterIPRange"]["Mask"] == "//8AAA==",
            "{config}"
        );
        let pair = Pair::split(&kubelet("one").get("/v1-k3s/client-kubelet.crt")?.body);
        for (method, path, status) in [
            ("GET", "/readyz", 200),
            ("GET", "/api/v1/nodes/guest", 404),
            ("DELETE", "/api/v1/nodes/guest", 403),
            ("GET", "/api/v1/namespaces/kube-system/secrets/guest.node-password.k3s", 403),
        ] {
            let answer = anybody().with(&pair)?.send(method, path, "")?;
            ensure!(answer.status == status, "{method} {path}: {}: {}", answer.status, answer.body);
        }
        Ok(())
    })
}

pub(crate) fn the_stand_in_speaks_as_k3s_does() -> Result<()> {
    speaks_as_k3s_does(&site(&Script::default(), Settings::new(PASSWORD)?)?)
}

pub(crate) fn the_real_server_speaks_as_the_stand_in_and_the_doctor_finds_it_good() -> Result<()> {
    let (mut site, _) = real_site()?;
    speaks_as_k3s_does(&site)?;
    let (url, token) = (site.url(), site.token()?);
    write_token(&mut site, &token)?;
    let said = diagnose(&mut site, &url)?;
    let bad: Vec<_> =
        EXAMINATIONS.iter().filter(|one| ["wrong", "unknown"].contains(&verdict(&said, one.id))).collect();
    ensure!(bad.is_empty(), "the doctor finds {bad:?}: {said:?}");
    Ok(())
}

/// A network for pods of K3s' own plugins, in Cilium's place: its images are nowhere here.
const NETWORK: &str = "mkdir -p /opt/cni/bin /etc/cni/net.d; cp -a /var/lib/rancher/k3s/data/current/bin/. /opt/cni/bin; \
                       printf '{\"cniVersion\": \"1.0.0\", \"name\": \"cilium\", \"plugins\": [{\"type\": \"bridge\", \"bridge\": \"cni0\", \
                       \"ipam\": {\"type\": \"host-local\", \"subnet\": \"10.42.9.0/24\"}}]}' >/etc/cni/net.d/05-cilium.conflist";

pub(crate) fn the_real_k3s_becomes_a_node_and_leaves() -> Result<()> {
    let (mut site, version) = real_site()?;
    configure(&mut site, Role::Agent)?;
    // There is no /dev/kmsg in a container.
    let kubelet =
        format!("version = \"{version}\"\nkubelet_args = [\"feature-gates=KubeletInUserNamespace=true\"]");
    let path = site.machine.path("/etc/bramble/conf.d/k3s.toml");
    let text = fs::read_to_string(&path)?.replace(&format!("version = \"{VERSION}\""), &kubelet);
    fs::write(path, text)?;
    let before = state::files(&mut site.machine)?;
    site.machine
        .run("systemd-run --quiet --unit=joining --property=RemainAfterExit=yes bramble join --yes")?
        .good()?;
    until(PATIENCE * 5, "the node is registered", || Ok(site.node(NODE)?.map(drop)))
        .with_context(|| journal(&mut site).unwrap_or_default())?;
    site.machine.run(NETWORK)?.good()?;
    until(PATIENCE * 5, "the node is Ready", || Ok(site.is_ready(NODE)?.then_some(())))
        .with_context(|| journal(&mut site).unwrap_or_default())?;
    let joined = "systemctl show --value --property=ExecMainStatus,SubState joining";
    until(PATIENCE, "bramble says so", || {
        Ok((site.machine.run(joined)?.out.trim() == "0\nexited").then_some(()))
    })?;
    let left = site.machine.run("rm -rf /opt/cni; bramble leave --yes </dev/null")?;
    ensure!(left.code == 2, "bramble leave ended with {}: {}{}", left.code, left.out, left.err);
    let changed = differences(&before, &state::files(&mut site.machine)?);
    ensure!(changed.is_empty(), "files are not as before: {changed:#?}");
    Ok(())
}
