//! The pre-flight of `bramble join` beside the stand-in of a K3s server, without a machine: what is good, what ends in time, and
//! who is shown the token. Each cause is shown on a booted machine, in `join`.

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
use serde_json::Value;
use testbed::k3s::{Authority, Cluster, Fault, Server, Settings};

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
}

impl Node {
    fn joining(server: &Server) -> Result<Self> {
        let token = Some(server.token()?);
        let url = Some(server.url());
        Ok(Self { role: "agent", server: url, token, mode: 0o600, own: (&[], "") })
    }

    /// What the pre-flight finds. It never says the token.
    fn check(&self) -> Result<Found> {
        static CHECKS: AtomicUsize = AtomicUsize::new(0);
        let number = CHECKS.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("bramble-doctor-{}-{number}", std::process::id()));
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
            "[cluster]\nrole = \"{}\"\n[k3s]\n{whom}\ntoken_file = \"{}\"\n",
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

pub(crate) fn what_comes_late_or_vanishes_ends_in_time() -> Result<()> {
    let kept = usual()?;
    // The server is thought to be somewhere, and what is sent there vanishes.
    let hole = "ip link add near0 type veth peer name far0; ip link set near0 up; ip link set far0 up; \
                ip address add 192.0.2.2/24 dev near0; ip neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev near0;";
    let server = Some("https://192.0.2.1:6443".to_owned());
    let vanished = Node { server, own: (&["--net"], hole), ..Node::joining(&kept)? };
    vanished.check()?.is("server-answers", "TCP connection took longer")?;
    kept.set_fault("/cacerts", Some(Fault::Late(Duration::from_secs(30))));
    Node::joining(&kept)?.check()?.is("server-answers", "the answer took longer")
}

pub(crate) fn a_token_is_shown_to_nobody_whose_certificates_it_does_not_name() -> Result<()> {
    let (one, two) = (usual()?, usual()?);
    let found = Node { token: Some(one.token()?), ..Node::joining(&two)? }.check()?;
    found.is("token-pin", "hash")?;
    let mut settings = Settings::new(PASSWORD)?;
    settings.cacerts = Some("<html>hello</html>".into());
    let none = server(settings)?;
    let token = format!("K10{}::server:{PASSWORD}", "0".repeat(64));
    let found = Node { token: Some(token), ..node_of(&none) }.check()?;
    found.is("server-k3s", "holds no certificate")?;
    for call in [two.calls(), none.calls()].concat() {
        ensure!(call.path == "/cacerts", "{call:?}");
    }
    Ok(())
}

fn node_of(server: &Server) -> Node {
    Node { role: "agent", server: Some(server.url()), token: None, mode: 0o600, own: (&[], "") }
}

pub(crate) fn a_token_lets_in_the_roles_of_its_kind_and_is_its_owners_alone() -> Result<()> {
    let mut settings = Settings::new(PASSWORD)?;
    settings.agent_password = Some("agents0only1x".into());
    settings.bootstrap = Some("abcdef.0123456789abcdef".into());
    let kept = server(settings)?;
    let whole = kept.token()?;
    let pin = whole.split("::").next().unwrap_or_default().to_owned();
    let agents = format!("{pin}::node:agents0only1x");
    let bootstrap = format!("{pin}::abcdef.0123456789abcdef");
    let with = |role, token: &str, mode| -> Result<Found> {
        Node { role, token: Some(token.to_owned()), mode, ..node_of(&kept) }.check()
    };
    node_of(&kept).check()?.is("token-file", "there is no")?;
    with("agent", &agents, 0o620)?.is("token-file", "read or written by others")?;
    for token in [&agents, &bootstrap] {
        with("agent", token, 0o600)?.is_good()?;
    }
    for (token, words) in [(&agents, "agent's token"), (&bootstrap, "bootstrap token")] {
        let found = with("server", token, 0o600)?;
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
