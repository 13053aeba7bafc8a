//! A booted Debian beside a server of K3s on one small network: the machine that is to join, and whom it joins.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    Client, Cluster, Pair, Server, Settings,
    program::{SCRIPT, Script},
};
use crate::{
    machine::{Blueprint, Gift, Machine as _, container::Container, store::Store},
    namespace::Namespace,
    process::Process,
    watch::until,
};

/// The server's address in 198.18.0.0/15, the benchmark range of RFC 2544: nobody routes it.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 66, 1);
/// The server's other address.
pub const SERVER_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 66, 0, 0, 0, 0, 0, 1);
/// The machine's.
pub const MACHINE: Ipv4Addr = Ipv4Addr::new(198, 18, 66, 2);
/// The port of K3s' servers.
pub const PORT: u16 = 6443;
/// A folder in the machine with the files of a release: the program and its sum.
pub const RELEASE: &str = "/srv/release";
/// How long a real server may take to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// Both, running. Dropping it ends them.
#[derive(Debug)]
pub struct Site {
    /// The machine that is to join.
    pub machine: Container,
    server: First,
    /// The server's network.
    first: Namespace,
}

/// Who is joined.
#[derive(Debug)]
enum First {
    StandIn(Server),
    Real { admin: Pair, authority: String, token: String, _process: Process },
}

impl Site {
    /// Boots the machine, a container of `system`, with `gifts` in it and a stand-in server beside it; the machine's `k3s` is the program at `k3s`,
    /// which reads `script` when it is the stand-in.
    ///
    /// # Errors
    /// Those of the machine and of the server.
    pub fn start(
        store: &Store,
        system: &str,
        k3s: &Path,
        gifts: &[Gift],
        script: &Script,
        settings: Settings,
    ) -> Result<Self> {
        Self::boot(store, system, k3s, gifts, script, |first| {
            first.within(|| {
                let mut cluster = Cluster::default();
                cluster.has_cilium = true;
                Ok(First::StandIn(Server::start(settings, cluster, (SERVER, PORT).into())?))
            })
        })
    }

    /// The same with the real `k3s` at this path as server, without an agent of its own, and as program of the machine.
    ///
    /// # Errors
    /// Those of the machine, and a server that does not come up.
    pub fn start_real(store: &Store, k3s: &Path, gifts: &[Gift]) -> Result<Self> {
        Self::boot(store, "debian13", k3s, gifts, &Script::default(), |first| real(first, k3s))
    }

    fn boot(
        store: &Store,
        system: &str,
        k3s: &Path,
        gifts: &[Gift],
        script: &Script,
        serve: impl FnOnce(&Namespace) -> Result<First>,
    ) -> Result<Self> {
        let first = Namespace::new("first")?;
        let mut machine = Blueprint::named(system)?.container(store, gifts)?;
        machine.namespace().ip(&format!(
            "link add up0 type veth peer name down0 netns {}\naddress add {MACHINE}/24 dev up0\naddress add fd00:42::2/64 dev up0 nodad\nlink set up0 up\n\
             route add default via {SERVER}\n",
            first.pid()
        ))?;
        first.ip(&format!("address add {SERVER}/24 dev down0\naddress add {SERVER_6}/64 dev down0 nodad\nlink set down0 up\nroute add default dev down0\n"))?;
        let (name, sums) = match cfg!(target_arch = "aarch64") {
            true => ("k3s-arm64", "sha256sum-arm64.txt"),
            false => ("k3s", "sha256sum-amd64.txt"),
        };
        machine.put(&Gift { from: k3s.to_owned(), to: format!("{RELEASE}/{name}") })?;
        fs::write(machine.path(SCRIPT), serde_json::to_string(script)?)?;
        // Names are asked for where nobody answers, and that is said at once.
        let hosts = format!(
            "printf '{SERVER} first.home\\n' >>/etc/hosts; echo 'nameserver {SERVER}' >/etc/resolv.conf"
        );
        machine.run(&format!("{hosts}; chmod 755 {RELEASE}; mkdir -p /etc/bramble/conf.d; cd {RELEASE} && sha256sum {name} >{sums}"))?.good()?;
        let server = serve(&first)?;
        Ok(Self { machine, server, first })
    }

    /// The stand-in, where one is joined.
    pub fn stand_in(&self) -> Option<&Server> {
        match &self.server {
            First::StandIn(server) => Some(server),
            First::Real { .. } => None,
        }
    }

    /// The server's network, where more may listen.
    pub fn lan(&self) -> &Namespace {
        &self.first
    }

    /// `https://` with the server's address.
    pub fn url(&self) -> String {
        format!("https://{SERVER}:{PORT}")
    }

    /// The token with which an agent may join.
    ///
    /// # Errors
    /// The stand-in shows no certificate.
    pub fn token(&self) -> Result<String> {
        match &self.server {
            First::StandIn(server) => server.token(),
            First::Real { token, .. } => Ok(token.clone()),
        }
    }

    /// Asks the API server as an administrator; the answer's status and object.
    ///
    /// # Errors
    /// It does not answer.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Result<(u16, Value)> {
        let (admin, authority) = match &self.server {
            First::StandIn(server) => (&server.admin()?, server.cacerts()),
            First::Real { admin, authority, .. } => (admin, authority.as_str()),
        };
        self.first.within(|| ask(admin, authority, method, path, body))
    }

    /// The Node object of this name.
    ///
    /// # Errors
    /// The API server does not answer.
    pub fn node(&self, name: &str) -> Result<Option<Value>> {
        let (status, node) = self.ask("GET", &format!("/api/v1/nodes/{name}"), "")?;
        Ok((status == 200).then_some(node))
    }

    /// Whether the node is Ready and takes pods.
    ///
    /// # Errors
    /// The API server does not answer.
    pub fn is_ready(&self, name: &str) -> Result<bool> {
        let Some(node) = self.node(name)? else { return Ok(false) };
        let has = |list: &Value, key: &str, value: &str| {
            list.as_array().is_some_and(|all| all.iter().any(|entry| entry[key] == value))
        };
        let ready =
            node["status"]["conditions"].as_array().and_then(|all| all.iter().find(|c| c["type"] == "Ready"));
        Ok(ready.is_some_and(|c| c["status"] == "True")
            && !has(&node["spec"]["taints"], "key", "node.cilium.io/agent-not-ready"))
    }
}

fn ask(admin: &Pair, authority: &str, method: &str, path: &str, body: &str) -> Result<(u16, Value)> {
    let address = SocketAddr::from((SERVER, PORT));
    let answer = Client::new(address).trusting(authority).with(admin)?.send(method, path, body)?;
    Ok((answer.status, serde_json::from_str(&answer.body).unwrap_or_default()))
}

/// Starts `k3s server` in the namespace, with all that it writes below the namespace's own `/run`.
fn real(first: &Namespace, k3s: &Path) -> Result<First> {
    const DATA: &str = "/run/bed/k3s";
    let mut command = first.command(&k3s.display().to_string());
    let address = SERVER.to_string();
    command.args([
        "server",
        "--disable-agent",
        "--data-dir",
        DATA,
        "--write-kubeconfig",
        "/run/bed/k3s.yaml",
    ]);
    command.args(["--bind-address", &address, "--advertise-address", &address, "--node-ip", &address]);
    command.args(["--tls-san", "first.home", "--flannel-backend", "none", "--disable-network-policy"]);
    command.args(["--disable-kube-proxy", "--egress-selector-mode", "disabled"]);
    for part in ["coredns", "local-storage", "servicelb", "traefik", "metrics-server"] {
        command.args(["--disable", part]);
    }
    // This machine's own settings of K3s are not the test's.
    command.env("K3S_CONFIG_FILE", "/dev/null");
    let log = fs::File::create(first.path("/run/bed/k3s.log"))?;
    command.stdout(log.try_clone()?).stderr(log);
    let mut process = Process::spawn("the real k3s server", command)?;
    let read = |file: &str| fs::read_to_string(first.path(&format!("{DATA}/server/{file}")));
    let mut last = String::new();
    until(PATIENCE, "the real server is ready", || {
        let log = || fs::read_to_string(first.path("/run/bed/k3s.log")).unwrap_or_default();
        if let Some(status) = process.ended() {
            anyhow::bail!("it ended with {status}: {}", log());
        }
        let [Ok(certificates), Ok(key), Ok(authority), Ok(token)] =
            ["tls/client-admin.crt", "tls/client-admin.key", "tls/server-ca.crt", "token"].map(read)
        else {
            return Ok(None);
        };
        let admin = Pair { certificates, key };
        let answer = first.within(|| ask(&admin, &authority, "GET", "/readyz", ""));
        last = format!("{answer:?}");
        Ok(matches!(answer, Ok((200, _))).then(|| (admin, authority, token.trim().to_owned())))
    })
    .with_context(|| last.clone())
    .map(|(admin, authority, token)| First::Real { admin, authority, token, _process: process })
}

/// The stand-in's program in cargo's folder of programs.
///
/// # Errors
/// It was not built.
pub fn program(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("k3s-stand-in");
    ensure!(path.is_file(), "{} is missing; cargo build --package testbed", path.display());
    Ok(path)
}
