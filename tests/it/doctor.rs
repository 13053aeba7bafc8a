//! The pre-flight of `bramble join`: every cause is shown under its own name, against a server that misbehaves so.

use std::{
    fs::{self, Permissions},
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testbed::{
    k3s::{Authority, Cluster, Fault, Manner, Server, Settings, Validity, program::Script},
    machine::Machine as _,
};

use crate::join::{NODE, Role, configure};
use crate::state::{is_as_before, whole};

/// Stands nowhere else.
const PASSWORD: &str = "r7kx2qv9doctor0wm";

/// A server on a free port of the loopback.
fn server(settings: Settings) -> Result<Server> {
    Server::start(settings, Cluster::default(), SocketAddr::from(([127, 0, 0, 1], 0)))
}

fn usual() -> Result<Server> {
    server(Settings::new(PASSWORD)?)
}

/// What a node is told, and where it looks.
struct Node {
    role: &'static str,
    server: Option<String>,
    token: Option<String>,
    mode: u32,
    /// What of the machine is the node's own, as unshare(1) calls it, and what the shell does there before.
    own: (&'static [&'static str], &'static str),
    /// A file of certificates that the system believes.
    believed: Option<String>,
}

impl Node {
    fn joining(server: &Server) -> Result<Self> {
        let token = Some(server.token()?);
        let url = Some(server.url());
        Ok(Self { role: "agent", server: url, token, mode: 0o600, own: (&[], ""), believed: None })
    }

    /// What the pre-flight finds. It never says the token.
    fn check(&self) -> Result<Found> {
        static CHECKS: AtomicUsize = AtomicUsize::new(0);
        let number = CHECKS.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("bed-doctor-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir)?;
        let found = self.check_in(&dir);
        fs::remove_dir_all(&dir)?;
        found
    }

    fn check_in(&self, dir: &std::path::Path) -> Result<Found> {
        let write = |name: &str, text: &str, mode: u32| -> Result<PathBuf> {
            let path = dir.join(name);
            fs::write(&path, text)?;
            fs::set_permissions(&path, Permissions::from_mode(mode))?;
            Ok(path)
        };
        let whom = match &self.server {
            Some(url) => format!("server = \"{url}\""),
            None => "init = true".to_owned(),
        };
        let token = dir.join("token");
        let text = format!(
            "[cluster]\nrole = \"{}\"\n[k3s]\nversion = \"v1.35.2+k3s1\"\n{whom}\ntoken_file = \"{}\"\n",
            self.role,
            token.display()
        );
        let config = write("bramble.toml", &text, 0o600)?;
        if let Some(text) = &self.token {
            write("token", text, self.mode)?;
        }
        let bramble = crate::programs()?.join("bramble");
        let join = format!("exec {} --config {} join --check --json", bramble.display(), config.display());
        let (own, before) = self.own;
        let mut command = Command::new("unshare");
        command.args(own).args(["sh", "-c"]).arg(format!("set -e; {before} {join}"));
        if let Some(pem) = &self.believed {
            command.env("SSL_CERT_FILE", write("believed.pem", pem, 0o600)?).env_remove("SSL_CERT_DIR");
        }
        let output = command.output().context("starting bramble")?;
        let (out, err) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
        ensure!(!out.contains(PASSWORD) && !err.contains(PASSWORD), "the token is said: {out}{err}");
        let json: Value = serde_json::from_str(&out).with_context(|| format!("{out}{err}"))?;
        let list = json["examinations"].as_array().context("there are examinations")?;
        let field = |one: &Value, name: &str| one[name].as_str().unwrap_or_default().to_owned();
        Ok(Found(
            list.iter()
                .map(|one| {
                    (field(one, "id"), field(one, "state"), field(one, "evidence"), field(one, "next"))
                })
                .collect(),
        ))
    }
}

/// Examinations: id, state, evidence, next step.
#[derive(Debug)]
struct Found(Vec<(String, String, String, String)>);

impl Found {
    fn ids(&self, state: &str) -> Vec<&str> {
        self.0.iter().filter(|(_, is, ..)| is == state).map(|(id, ..)| id.as_str()).collect()
    }

    /// Exactly this cause, with these words in its evidence and a next step.
    fn is(&self, id: &str, words: &str) -> Result<()> {
        ensure!(self.ids("wrong") == [id], "not {id} alone: {self:#?}");
        self.says(id, words)
    }

    /// This is doubtful or wrong, with these words in its evidence and a next step.
    fn says(&self, id: &str, words: &str) -> Result<()> {
        let found = self.0.iter().find(|(is, state, ..)| is == id && (state == "wrong" || state == "warned"));
        let (.., evidence, next) = found.with_context(|| format!("{id} is fine: {self:#?}"))?;
        ensure!(evidence.contains(words), "{id}: no {words:?} in {evidence:?}");
        ensure!(!next.is_empty(), "{id} has no next step");
        Ok(())
    }

    fn is_good(&self) -> Result<()> {
        let (wrong, unknown) = (self.ids("wrong"), self.ids("unknown"));
        ensure!(wrong.is_empty() && unknown.is_empty(), "{self:#?}");
        Ok(())
    }
}

pub(crate) fn a_good_server_is_good_by_one_certificate_and_by_several() -> Result<()> {
    let several =
        Settings { authority: Authority::with_root("k3s-server-ca")?.into(), ..Settings::new(PASSWORD)? };
    for server in [usual()?, server(several)?] {
        for role in ["agent", "server"] {
            let found = Node { role, ..Node::joining(&server)? }.check()?;
            let disk = found.ids("wrong") == ["disk-sync"];
            ensure!(disk && role == "server" || found.is_good().is_ok(), "{role}: {found:#?}");
            for id in ["token-pin", "token-accepted", "cluster-network"] {
                ensure!(found.ids("good").contains(&id), "{id}: {found:#?}");
            }
        }
        // What is asked changes nothing there.
        for call in server.calls() {
            ensure!(call.method == "GET", "{call:?}");
        }
    }
    Ok(())
}

pub(crate) fn each_end_of_the_way_to_a_server_has_its_own_name() -> Result<()> {
    let kept = usual()?;
    let usual = Node::joining(&kept)?;
    let at = |url: &str, network: &'static str| -> Result<Found> {
        let own: &[&str] = if network.is_empty() { &[] } else { &["--net"] };
        Node { server: Some(url.to_owned()), own: (own, network), ..Node::joining(&kept)? }.check()
    };
    at("https://nobody.invalid:6443", "")?.is("server-resolves", "nobody.invalid does not resolve")?;
    at("https://192.0.2.1:6443", "ip link set lo up;")?.is("server-route", "no route to 192.0.2.1")?;
    // The other end of the cable is up, and nobody there has the address.
    let cable = "ip link set lo up; ip link add near0 type veth peer name far0; ip link set near0 up; ip link set far0 up; \
                 ip address add 192.0.2.2/24 dev near0;";
    at("https://192.0.2.1:6443", cable)?.is("server-host", "no machine answers at 192.0.2.1")?;
    // It is thought to be somewhere, and what is sent there vanishes.
    let hole = "ip link add near0 type veth peer name far0; ip link set near0 up; ip link set far0 up; \
                ip address add 192.0.2.2/24 dev near0; ip neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev near0;";
    at("https://192.0.2.1:6443", hole)?.is("server-answers", "TCP connection took longer")?;
    let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    at(&format!("https://{free}"), "")?.is("server-listens", "refuses the connection")?;
    at("https://pi-1.local:6443", "")?.says("server-mdns", "name of mDNS")?;
    for manner in [Manner::Plain, Manner::HangUp] {
        kept.set_manner(manner);
        usual.check()?.is("server-tls", "not in TLS").with_context(|| format!("{manner:?}"))?;
    }
    kept.set_manner(Manner::Silent);
    usual.check()?.is("server-answers", "TLS handshake took longer")?;
    kept.set_manner(Manner::Tls);
    for (fault, words) in [
        (Fault::CutOff, "cut off"),
        (Fault::Redirect("/cacerts".into()), "sends to /cacerts"),
        (Fault::Huge(5 << 30), "larger than"),
        (Fault::Status(404, "no".into()), "404"),
    ] {
        kept.set_fault("/cacerts", Some(fault));
        usual.check()?.is("server-k3s", words)?;
    }
    kept.set_fault("/cacerts", Some(Fault::Late(Duration::from_secs(30))));
    usual.check()?.is("server-answers", "took longer")?;
    // Piece after piece in time, and never whole.
    kept.set_fault("/cacerts", Some(Fault::Slow(Duration::from_millis(50))));
    usual.check()?.is("server-answers", "the whole answer took longer than 20 s")?;
    kept.set_fault("/cacerts", None);
    kept.set_fault("/v1-k3s/config", Some(Fault::Status(503, "starting".into())));
    usual.check()?.is("server-ready", "503: starting")
}

pub(crate) fn certificates_are_judged_as_k3s_judges_them() -> Result<()> {
    let with = |change: &dyn Fn(&mut Settings)| -> Result<Server> {
        let mut settings = Settings::new(PASSWORD)?;
        change(&mut settings);
        server(settings)
    };
    let not_yet = with(&|s| s.validity = Validity::NotYet)?;
    Node::joining(&not_yet)?.check()?.is("certificate-not-yet-valid", "count from")?;
    let expired = with(&|s| s.validity = Validity::Expired)?;
    Node::joining(&expired)?.check()?.is("certificate-expired", "counted until")?;
    let other = with(&|s| s.names = Some(vec!["pi-9".into()]))?;
    Node::joining(&other)?.check()?.is("certificate-name", "it is for pi-9, and not for 127.0.0.1")?;
    let stranger = std::sync::Arc::new(Authority::single("stranger")?);
    let wrong = with(&|s| s.signer = Some(stranger.clone()))?;
    Node::joining(&wrong)?.check()?.is("certificate-chain", "has not signed")?;
    // A token of another cluster: to its server the token is never shown.
    let (one, two) = (usual()?, usual()?);
    let found = Node { token: Some(one.token()?), ..Node::joining(&two)? }.check()?;
    found.is("token-pin", "hash")?;
    ensure!(two.calls().iter().all(|call| call.path == "/cacerts"), "{:?}", two.calls());
    let none = with(&|s| s.cacerts = Some("<html>hello</html>".into()))?;
    let token = format!("K10{}::server:{PASSWORD}", "0".repeat(64));
    let found = Node { token: Some(token), ..node_of(&none) }.check()?;
    ensure!(found.ids("wrong").contains(&"server-k3s"), "{found:#?}");
    // A certificate that the system believes: the pin is not looked at, and that is said.
    let public = with(&|s| s.signer = Some(stranger.clone()))?;
    let believed = Some(stranger.pem().to_owned());
    let found = Node { believed, ..Node::joining(&public)? }.check()?;
    found.is_good()?;
    found.says("certificate-public", "does not look at the token's pin")
}

fn node_of(server: &Server) -> Node {
    Node {
        role: "agent",
        server: Some(server.url()),
        token: None,
        mode: 0o600,
        own: (&[], ""),
        believed: None,
    }
}

pub(crate) fn a_token_that_does_not_fit_is_named_by_what_is_wrong_with_it() -> Result<()> {
    let mut settings = Settings::new(PASSWORD)?;
    settings.agent_password = Some("agents0only1x".into());
    settings.bootstrap = Some("abcdef.0123456789abcdef".into());
    let kept = server(settings)?;
    let whole = kept.token()?;
    let pin = whole.split("::").next().unwrap_or_default().to_owned();
    let agents = format!("{pin}::node:agents0only1x");
    let with = |role, token: &str, mode| -> Result<Found> {
        Node { role, token: Some(token.to_owned()), mode, ..node_of(&kept) }.check()
    };
    node_of(&kept).check()?.is("token-file", "there is no")?;
    with("agent", &agents, 0o644)?.is("token-file", "read or written by others")?;
    with("agent", &agents, 0o620)?.is("token-file", "read or written by others")?;
    with("agent", "\n", 0o600)?.is("token", "it is empty")?;
    with("agent", &whole[..60], 0o600)?.is("token", "no :: behind the hash")?;
    with("agent", &whole.replacen("K10", "K100", 1), 0o600)?.is("token", "65 digits")?;
    with("agent", &format!("{pin}::server:"), 0o600)?.is("token", "password is empty")?;
    with("agent", "two words", 0o600)?.is("token", "a blank")?;
    with("agent", &format!("{pin}::server:wrong"), 0o600)?.is("token-accepted", "401")?;
    with("agent", &agents, 0o600)?.is_good()?;
    with("agent", "agents0only1x", 0o600)?.says("token-kind", "no pin")?;
    with("agent", &format!("{pin}::abcdef.0123456789abcdef"), 0o600)?.is_good()?;
    for (token, words) in
        [(agents.clone(), "agent's token"), (format!("{pin}::abcdef.0123456789abcdef"), "bootstrap token")]
    {
        let found = with("server", &token, 0o600)?;
        ensure!(found.ids("wrong").contains(&"token-kind"), "{found:#?}");
        found.says("token-kind", words)?;
    }
    // The first server has no cluster yet whose certificates a token could name.
    let first = |token: &str| {
        Node { role: "server", server: None, token: Some(token.into()), ..node_of(&kept) }.check()
    };
    first(&whole)?.says("token-kind", "begin")?;
    ensure!(first(PASSWORD)?.ids("good").contains(&"token-kind"), "a password is what it needs");
    Ok(())
}

pub(crate) fn a_cluster_that_is_another_is_named_and_looking_at_it_changes_nothing_there() -> Result<()> {
    let mut settings = Settings::new(PASSWORD)?;
    let pods = json!({"IP": "10.52.0.0", "Mask": "//8AAA=="});
    settings.config =
        json!({"FlannelBackend": "vxlan", "ClusterIPRange": pods.clone(), "ClusterIPRanges": [pods]});
    let flannel = server(settings)?;
    let found = Node::joining(&flannel)?.check()?;
    found.is("cluster-network", "flannel-backend: vxlan, 10.52.0.0/16 for pods")?;
    // The node has a password that the servers do not know: whoever shows it to them is the node of that name from then on.
    let own: (&[&str], _) = (
        &["--mount"],
        "mount -t tmpfs none /etc; mkdir -p /etc/rancher/node; echo mine >/etc/rancher/node/password;",
    );
    let kept = usual()?;
    let before = kept.cluster(|cluster| cluster.save());
    let found = Node { own, ..Node::joining(&kept)? }.check()?;
    found.is_good()?;
    ensure!(found.ids("not_needed").contains(&"node-name"), "{found:#?}");
    ensure!(kept.cluster(|cluster| cluster.save()) == before, "looking has changed the cluster");
    Ok(())
}

pub(crate) fn a_name_that_another_node_has_stops_a_join() -> Result<()> {
    let mut site = crate::join::site(&Script::default(), Settings::new(PASSWORD)?)?;
    configure(&mut site, Role::Agent)?;
    let before = whole(&mut site.machine)?;
    let secret = format!("/api/v1/namespaces/kube-system/secrets/{NODE}.node-password.k3s");
    let another = json!({"data": {"hash": "another"}});
    site.stand_in().context("it is the stand-in")?.cluster(|cluster| cluster.put(&secret, another));
    let password = "mkdir -p /etc/rancher/node; (umask 077; echo mine >/etc/rancher/node/password)";
    site.machine.run(password)?.good()?;
    let said = site.machine.run("bramble join --yes </dev/null")?;
    ensure!(said.code == 2 && said.out.contains("know another node as bed"), "{said:?}");
    site.machine.run("rm -r /etc/rancher")?.good()?;
    is_as_before(&mut site.machine, &before)
}
