//! The half of K3s that servers run: the supervisor and the API server of the stand-in, with their files.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    process,
    thread::{self, sleep},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::{
    super::{Authority, Client, Cluster, Pair, Server, Settings},
    Node, PAUSE, Token, Trouble, agent, be_ready, forward, host_and_port, keep, link, say,
};

const SERVERS: &str = "k3s-server-ca";
const CLIENTS: &str = "k3s-client-ca";

/// Runs the server to the end of the program.
pub(super) fn run(node: &Node) -> Result<()> {
    let port = node.configuration.one("https-listen-port").map_or(Ok(6443), str::parse::<u16>)?;
    let _server = match node.configuration.one("server").filter(|_| !has_authorities(node)) {
        Some(url) => {
            join(node, url)?;
            pass_on(url, port)?
        }
        None => match node.configuration.one("server") {
            Some(url) => {
                ensure!(!removed(node).exists(), "{GONE}");
                pass_on(url, port)?
            }
            None => Some(found(node, port)?),
        },
    };
    be_ready(node, "");
    if node.configuration.is_on("disable-agent") {
        loop {
            sleep(Duration::from_hours(1));
        }
    }
    agent::run(node, Some(port))
}

fn tls(node: &Node, name: &str) -> PathBuf {
    node.path(&format!("server/tls/{name}"))
}

fn has_authorities(node: &Node) -> bool {
    tls(node, "server-ca.key").exists()
}

/// The first server, or the only one: its cluster lies in its data folder.
fn found(node: &Node, port: u16) -> Result<Server> {
    let given = node.token()?;
    if !has_authorities(node) {
        ensure!(
            given.as_ref().is_none_or(|token| token.pin.is_none()),
            "starting kubernetes: preparing server: failed to normalize server token; must be in format \
             K10<CA-HASH>::<USERNAME>:<PASSWORD> or <PASSWORD>"
        );
        for (name, file) in [(SERVERS, "server-ca"), (CLIENTS, "client-ca")] {
            let authority = Authority::single(name)?;
            keep(&tls(node, &format!("{file}.key")), &authority.key())?;
            keep(&tls(node, &format!("{file}.crt")), authority.pem())?;
        }
    }
    let load = |name: &str, file: &str| -> Result<Authority> {
        let read = |kind: &str| fs::read_to_string(tls(node, &format!("{file}.{kind}")));
        Authority::load(name, &read("key")?, &read("crt")?)
    };
    let kept = fs::read_to_string(node.path("server/token")).ok();
    let token = match (given, kept) {
        (Some(token), _) => token,
        (None, Some(text)) => Token::parse(text.trim())?,
        (None, None) => Token::parse(&Authority::pin(load(SERVERS, "server-ca")?.pem())?[..32])?,
    };
    let mut names = ["localhost", "kubernetes", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
    for setting in ["tls-san", "node-ip", "bind-address"] {
        names.extend_from_slice(node.configuration.all(setting));
    }
    let settings = Settings {
        names: Some(names),
        authority: load(SERVERS, "server-ca")?.into(),
        clients: load(CLIENTS, "client-ca")?.into(),
        ..Settings::new(&token.secret)?
    };
    let is_etcd = node.configuration.is_on("cluster-init");
    let state = node.path(if is_etcd { "server/db/etcd/state.json" } else { "server/db/state.db" });
    let mut cluster = match fs::read_to_string(&state) {
        Ok(text) => Cluster::load(&serde_json::from_str(&text).context("the datastore")?),
        Err(_) => Cluster::default(),
    };
    cluster.has_cilium = node.script.cilium.is_some();
    cluster.put_server((agent::address(node)?.parse::<IpAddr>()?, port).into());
    if is_etcd {
        cluster.members.insert(node.name.clone(), false);
    }
    keep(&state, &cluster.save().to_string())?;
    let mut server = Server::start(settings, cluster, (Ipv4Addr::UNSPECIFIED, port).into())?;
    server.listen((Ipv4Addr::LOCALHOST, port + 1).into())?;
    let cluster = server.keeper();
    thread::spawn(move || {
        let mut last = Value::Null;
        loop {
            let now = cluster();
            if now != last {
                // A full disk is not what is tested here.
                let _ = keep(&state, &now.to_string());
                last = now;
            }
            sleep(Duration::from_millis(100));
        }
    });
    let text = format!("{}\n", server.token()?);
    keep(&node.path("server/token"), &text)?;
    link(&node.path("server/token").display().to_string(), &node.path("server/node-token"))?;
    fs::create_dir_all(node.path("server/manifests"))?;
    write_kubeconfig(node, &server.admin()?, server.cacerts(), port)?;
    say("info", format!("Node token is available at {}", node.path("server/token").display()));
    Ok(server)
}

/// A further server: the authorities come from the first, and so do all answers.
fn join(node: &Node, url: &str) -> Result<()> {
    let token = node.token()?.context("--token is required")?;
    let (host, far) = host_and_port(url)?;
    let bootstrap = loop {
        match ask(&host, far, &token) {
            Ok(answer) if answer["learner"] == false && !node.is(Trouble::Learners) => break answer,
            Ok(_) => say(
                "info",
                "Waiting for other members to finish joining etcd cluster: etcdserver: too many learner members in cluster",
            ),
            Err(error) => {
                say("error", format!("Failed to validate connection to cluster at {url}: {error:#}"))
            }
        }
        sleep(PAUSE);
    };
    for file in ["server-ca", "client-ca"] {
        for kind in ["crt", "key"] {
            let text = bootstrap[file][kind].as_str().context("the server sends its authorities")?;
            keep(&tls(node, &format!("{file}.{kind}")), text)?;
        }
    }
    let address = (host.as_str(), far).to_socket_addrs()?.next().context("no such host")?;
    let pem = fs::read_to_string(tls(node, "server-ca.crt"))?;
    let client = Client::new(address).trusting(&pem).basic("server", &token.secret);
    client.send("POST", "/v1-k3s/stand-in/member", &node.name)?;
    fs::create_dir_all(node.path("server/db/etcd"))?;
    keep(&node.path("server/token"), &format!("K10{}::server:{}\n", Authority::pin(&pem)?, token.secret))?;
    let clients = Authority::load(
        CLIENTS,
        &fs::read_to_string(tls(node, "client-ca.key"))?,
        &fs::read_to_string(tls(node, "client-ca.crt"))?,
    )?;
    let admin = clients.client("system:admin", "system:masters")?;
    write_kubeconfig(node, &admin, &pem, far)?;
    let client = Client::new(address).trusting(&pem).with(&admin)?;
    let (own, removed) = (format!("/api/v1/nodes/{}", node.name), removed(node));
    thread::spawn(move || end_with_the_member(&client, &own, &removed));
    Ok(())
}

const GONE: &str = "etcd stopped - if this node was removed from the cluster, you must backup and delete \
                    /var/lib/rancher/k3s/server/db/etcd before rejoining";

/// The mark of a member that was removed from the cluster, which etcd knows from its own data.
fn removed(node: &Node) -> PathBuf {
    node.path("server/db/etcd/removed")
}

/// A server ends when its member of etcd is removed, which happens with its Node object, and does not come back.
fn end_with_the_member(client: &Client, own: &str, removed: &Path) {
    let mut was_there = false;
    loop {
        match client.get(own).map(|answer| answer.status) {
            Ok(200) => was_there = true,
            Ok(404) if was_there => {
                // It ends either way.
                let _ = keep(removed, "");
                say("fatal", GONE);
                process::exit(1);
            }
            _ => {}
        }
        sleep(PAUSE);
    }
}

/// This server's answers are the first one's.
fn pass_on(url: &str, port: u16) -> Result<Option<Server>> {
    let (host, far) = host_and_port(url)?;
    forward(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), host.clone(), far)?;
    forward(SocketAddr::from((Ipv4Addr::LOCALHOST, port + 1)), host, far)?;
    Ok(None)
}

fn ask(host: &str, port: u16, token: &Token) -> Result<Value> {
    let address = (host, port).to_socket_addrs()?.next().context("no such host")?;
    let pem = agent::trust(address, token)?;
    let client = Client::new(address).trusting(&pem).basic("server", &token.secret);
    let answer = client.get("/v1-k3s/server-bootstrap")?;
    ensure!(answer.status == 200, "https://{address}/v1-k3s/server-bootstrap: {}", answer.status);
    Ok(serde_json::from_str(&answer.body)?)
}

fn write_kubeconfig(node: &Node, admin: &Pair, pem: &str, port: u16) -> Result<()> {
    keep(&tls(node, "client-admin.crt"), &admin.certificates)?;
    keep(&tls(node, "client-admin.key"), &admin.key)?;
    let encode = |text: &str| STANDARD.encode(text);
    let text = format!(
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {}\n    server: https://127.0.0.1:{port}\n  \
         name: default\ncontexts:\n- context:\n    cluster: default\n    user: default\n  name: default\n\
         current-context: default\nkind: Config\nusers:\n- name: default\n  user:\n    client-certificate-data: {}\n    \
         client-key-data: {}\n",
        encode(pem),
        encode(&admin.certificates),
        encode(&admin.key)
    );
    let path = node.configuration.one("write-kubeconfig").unwrap_or("/etc/rancher/k3s/k3s.yaml");
    keep(Path::new(path), &text)
}
