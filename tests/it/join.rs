//! Joining K3s and leaving it, on a booted Debian 13 beside a server: the stand-in of `testbed::k3s`, and the real one where
//! `BRAMBLE_K3S` names its program.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bramble::k3s::doctor::EXAMINATIONS;
use serde_json::{Value, json};
use testbed::{
    k3s::{
        Authority, Cluster, Fault, Manner, Server, Settings, Validity,
        program::{Script, Trouble},
        site::{self, RELEASE, Site},
    },
    machine::{Gift, Machine as _, store::Store},
    watch::until,
};

/// How long K3s may take for anything on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where the token lies in the machine.
const TOKEN: &str = "/etc/bramble/token";
/// All files that somebody could have changed, with their sums.
const FILES: &str = "find /etc /usr/local /opt /var/lib /run /srv -xdev -not -path '/run/*/journal*' -not -path '/run/systemd/*' \
                     -not -path '/run/udev/*' -not -path '/var/lib/systemd/*' -printf '%M %U:%G %p %l\\n' | sort; \
                     find /etc /usr/local -type f -exec sha256sum {} + | sort -k 2";
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

/// One thing that is wrong, how it is brought about, and what it is called.
struct Case {
    /// The examination that names it.
    id: &'static str,
    /// Whether it stops the join, or only warns.
    stops: bool,
    /// Makes it so.
    arrange: fn(&mut Bench) -> Result<Asked>,
}

/// How the doctor is asked.
#[derive(Default)]
struct Asked {
    /// Where the server is; without, where a good one is.
    url: Option<String>,
    /// What stands in the token's file; without, that server's token.
    token: Option<String>,
    /// Kept until the doctor was asked.
    server: Option<Server>,
    /// Undoes in the machine what was done for this case.
    undo: &'static str,
}

/// The site with one machine for all cases, and servers beside it as they are needed.
struct Bench {
    site: Site,
}

impl Bench {
    /// A further server, on a port of its own.
    fn server(&self, settings: Settings) -> Result<Server> {
        self.site.lan().within(|| Server::start(settings, Cluster::default(), (site::SERVER, 0).into()))
    }

    /// Runs a command in the machine.
    fn sh(&mut self, command: &str) -> Result<()> {
        self.site.machine.run(command)?.good().map(drop)
    }

    /// What the doctor says of every examination.
    fn diagnose(&mut self, url: &str, token: &str) -> Result<BTreeMap<String, Value>> {
        fs::write(self.site.machine.path(TOKEN), token)?;
        let machine = &mut self.site.machine;
        let before = machine.run(FILES)?.good()?;
        let said =
            machine.run(&format!("bramble join --check --json --server '{url}' --token-file {TOKEN}"))?;
        ensure!(machine.run(FILES)?.good()? == before, "looking has changed something");
        let document: Value = serde_json::from_str(&said.out).with_context(|| format!("{said:?}"))?;
        let list = |key: &str| document[key].as_array().cloned().with_context(|| format!("no {key}"));
        let all = [list("examinations")?, list("requirements")?].concat();
        all.iter().map(|one| Ok((one["id"].as_str().context("an id")?.to_owned(), one.clone()))).collect()
    }
}

/// A server that is as `change` makes it.
fn odd(bench: &Bench, change: impl FnOnce(&mut Settings)) -> Result<Asked> {
    let mut settings = Settings::new(PASSWORD)?;
    change(&mut settings);
    let server = bench.server(settings)?;
    Ok(Asked {
        url: Some(server.url()),
        token: server.token().ok(),
        server: Some(server),
        ..Asked::default()
    })
}

/// A good server, one of whose answers is spoilt.
fn spoilt(bench: &Bench, path: &str, fault: Fault) -> Result<Asked> {
    let asked = odd(bench, |_| ())?;
    asked.server.as_ref().context("it is there")?.set_fault(path, Some(fault));
    Ok(asked)
}

fn mannered(bench: &Bench, manner: Manner) -> Result<Asked> {
    let asked = odd(bench, |_| ())?;
    asked.server.as_ref().context("it is there")?.set_manner(manner);
    Ok(asked)
}

fn at(url: &str) -> Result<Asked> {
    Ok(Asked { url: Some(url.to_owned()), ..Asked::default() })
}

fn with_token(token: impl Into<String>) -> Result<Asked> {
    Ok(Asked { token: Some(token.into()), ..Asked::default() })
}

fn pin(of: &str) -> String {
    of.repeat(64)
}

macro_rules! case {
    ($id:literal, $stops:literal, $arrange:expr) => {
        Case { id: $id, stops: $stops, arrange: $arrange }
    };
}

/// Every examination has at least one case, but the disk's: this machine's disk is as quick as it is.
const CASES: &[Case] = &[
    case!("token-file", true, |bench| {
        bench.sh(&format!("touch {TOKEN}; chmod 644 {TOKEN}"))?;
        Ok(Asked { undo: "chmod 600 /etc/bramble/token", ..Asked::default() })
    }),
    case!("token", true, |_| with_token("")),
    case!("token", true, |_| with_token("\n\n")),
    case!("token", true, |_| with_token("K10")),
    case!("token", true, |_| with_token("K10abc::server:word")),
    case!("token", true, |_| with_token(format!("K10{}::server:", pin("a")))),
    case!("token", true, |_| with_token(format!("K10{}::word", pin("a")))),
    case!("token-kind", false, |_| with_token(PASSWORD)),
    case!("token-accepted", true, |bench| {
        let token = bench.site.token()?;
        with_token(token.replace(PASSWORD, "another"))
    }),
    case!("token-pin", true, |_| with_token(format!("K10{}::server:{PASSWORD}", pin("0")))),
    case!("server-mdns", false, |bench| {
        bench.sh(&format!(
            "grep -q first.local /etc/hosts || echo '{} first.local' >>/etc/hosts",
            site::SERVER
        ))?;
        odd(bench, |settings| settings.names = Some(vec!["first.local".to_owned()]))
            .map(|asked| named(asked, "first.local"))
    }),
    case!("server-resolves", true, |_| at("https://nowhere.home:6443")),
    case!("server-route", true, |bench| {
        bench.sh("ip route delete default")?;
        Ok(Asked { undo: "ip route add default via 198.18.66.1", ..at("https://203.0.113.1:6443")? })
    }),
    case!("server-host", true, |_| at("https://198.18.66.99:6443")),
    case!("server-listens", true, |_| at("https://198.18.66.1:7")),
    case!("server-answers", true, |bench| mannered(bench, Manner::Silent)),
    case!("server-tls", true, |bench| mannered(bench, Manner::Plain)),
    case!("server-tls", true, |bench| mannered(bench, Manner::HangUp)),
    case!("server-k3s", true, |bench| spoilt(
        bench,
        "/cacerts",
        Fault::Status(404, "nothing here".to_owned())
    )),
    case!("server-k3s", true, |bench| spoilt(bench, "/cacerts", Fault::Huge(5 << 30))),
    case!("server-k3s", true, |bench| spoilt(bench, "/cacerts", Fault::CutOff)),
    case!("server-k3s", true, |bench| spoilt(bench, "/cacerts", Fault::Redirect("/cacerts".to_owned()))),
    case!("certificate-not-yet-valid", true, |bench| odd(bench, |settings| settings.validity =
        Validity::NotYet)),
    case!("certificate-expired", true, |bench| odd(bench, |settings| settings.validity = Validity::Expired)),
    case!("certificate-name", true, |bench| odd(bench, |s| s.names =
        Some(vec!["elsewhere.home".to_owned()]))),
    case!("certificate-chain", true, |bench| {
        let other = Authority::single("k3s-server-ca")?;
        odd(bench, |settings| settings.signer = Some(other.into()))
    }),
    case!("certificate-public", false, |bench| {
        let public = Authority::single("public-ca")?;
        fs::write(bench.site.machine.path("/srv/public.pem"), public.pem())?;
        bench.sh("mkdir -p /etc/ssl/certs && cp /srv/public.pem /etc/ssl/certs/ca-certificates.crt")?;
        let asked = odd(bench, |settings| settings.signer = Some(public.into()))?;
        Ok(Asked { undo: "rm /etc/ssl/certs/ca-certificates.crt", ..asked })
    }),
    case!("server-ready", true, |bench| {
        spoilt(bench, "/v1-k3s/config", Fault::Status(503, "runtime core not ready".to_owned()))
    }),
    case!("node-name", true, |bench| {
        bench.sh("mkdir -p /etc/rancher/node && (umask 077; echo mine >/etc/rancher/node/password)")?;
        let asked = odd(bench, |_| ())?;
        let path = format!("/api/v1/namespaces/kube-system/secrets/{NODE}.node-password.k3s");
        let server = asked.server.as_ref().context("it is there")?;
        server.cluster(|cluster| cluster.put(&path, json!({"data": {"hash": "another node's"}})));
        Ok(Asked { undo: "rm -r /etc/rancher", ..asked })
    }),
    case!("cluster-network", true, |bench| {
        odd(bench, |settings| settings.config = json!({"FlannelBackend": "vxlan"}))
    }),
    case!("cluster-network", true, |bench| {
        odd(bench, |s| s.config = json!({"ClusterIPRange": {"IP": "10.52.0.0", "Mask": "//8AAA=="}}))
    }),
    case!("shutdown-delay", false, |bench| {
        bench.sh("mkdir -p /etc/systemd/logind.conf.d && printf '[Login]\\nInhibitDelayMaxSec=5\\n' >/etc/systemd/logind.conf.d/a.conf")?;
        Ok(Asked { undo: "rm -r /etc/systemd/logind.conf.d", ..Asked::default() })
    }),
];

/// The server under a name of its own.
fn named(asked: Asked, name: &str) -> Asked {
    let url = asked.url.map(|url| url.replace(&site::SERVER.to_string(), name));
    Asked { url, ..asked }
}

pub(crate) fn every_cause_of_the_doctor_is_named_and_is_the_only_one() -> Result<()> {
    let site = site(&Script::default(), Settings::new(PASSWORD)?)?;
    let mut bench = Bench { site };
    bench.sh(&format!("(umask 077; touch {TOKEN})"))?;
    let ids: Vec<&str> = EXAMINATIONS.iter().map(|examination| examination.id).collect();
    let (url, token) = (bench.site.url(), bench.site.token()?);
    let good = bench.diagnose(&url, &token)?;
    let bad: Vec<_> = ids.iter().filter(|id| ["wrong", "warned"].contains(&state(&good, id))).collect();
    ensure!(bad.is_empty(), "all is well, and the doctor names {bad:?}: {good:?}");
    let mut shown = BTreeSet::from(["disk-sync"]);
    for (number, case) in CASES.iter().enumerate() {
        let asked =
            (case.arrange)(&mut bench).with_context(|| format!("arranging {} ({number})", case.id))?;
        let said =
            bench.diagnose(asked.url.as_deref().unwrap_or(&url), asked.token.as_deref().unwrap_or(&token));
        if !asked.undo.is_empty() {
            bench.sh(asked.undo)?;
        }
        let said = said.with_context(|| format!("asking about {} ({number})", case.id))?;
        let wanted = if case.stops { "wrong" } else { "warned" };
        let found: Vec<_> = ids.iter().filter(|id| state(&said, id) == wanted).collect();
        ensure!(found == [&case.id], "{} ({number}) is named {found:?}: {said:?}", case.id);
        let one = said[case.id].to_string();
        ensure!(!one.contains(PASSWORD), "{}: a secret is told: {one}", case.id);
        let next = said[case.id]["next"].as_str().unwrap_or_default();
        ensure!(!next.is_empty(), "{}: no next step: {one}", case.id);
        shown.insert(case.id);
    }
    let missing: Vec<_> = ids.iter().filter(|id| !shown.contains(*id)).collect();
    ensure!(missing.is_empty(), "no case shows {missing:?}");
    Ok(())
}

fn state<'a>(said: &'a BTreeMap<String, Value>, id: &str) -> &'a str {
    said.get(id).and_then(|one| one["state"].as_str()).unwrap_or_default()
}

/// What `bramble check` knows and stands in K3s' way: how it comes about, and how it goes again.
const OBSTACLES: [(&str, &str, &str); 4] = [
    ("default-route", "ip route delete default", "ip route add default via 198.18.66.1"),
    ("address-ranges", "ip address add 10.42.7.1/24 dev up0", "ip address delete 10.42.7.1/24 dev up0"),
    (
        "ports",
        "systemd-run --quiet --unit=taker systemd-socket-activate -l 6444 /bin/true",
        "systemctl stop taker",
    ),
    (
        "leftover-flannel",
        "ip link add flannel.1 type vxlan id 1 dstport 8472 dev up0",
        "ip link delete flannel.1",
    ),
];

pub(crate) fn what_check_finds_in_k3s_way_is_named_before_a_join() -> Result<()> {
    let mut bench = Bench { site: site(&Script::default(), Settings::new(PASSWORD)?)? };
    bench.sh(&format!("(umask 077; touch {TOKEN})"))?;
    let (url, token) = (bench.site.url(), bench.site.token()?);
    for (id, arrange, undo) in OBSTACLES {
        ensure!(state(&bench.diagnose(&url, &token)?, id) != "wrong", "{id} before anything was done");
        bench.sh(arrange)?;
        let said = until(PATIENCE, id, || {
            let said = bench.diagnose(&url, &token)?;
            Ok((state(&said, id) == "wrong").then_some(said))
        })?;
        ensure!(said[id]["next"].as_str().is_some_and(|next| !next.is_empty()), "{}", said[id]);
        bench.sh(undo)?;
    }
    Ok(())
}

pub(crate) fn a_url_that_is_none_is_refused_with_what_is_wanted() -> Result<()> {
    let mut site = site(&Script::default(), Settings::new(PASSWORD)?)?;
    let token = site.token()?;
    fs::write(site.machine.path(TOKEN), token)?;
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
    let mut bench = Bench { site };
    let said = bench.diagnose(&server.url(), &server.token()?)?;
    ensure!(state(&said, "token-accepted") == "good", "{said:?}");
    Ok(())
}
