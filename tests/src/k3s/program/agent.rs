//! The half of K3s that every node runs: certificates from the server, the kubelet's ports, the Node object.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::Path,
    process, thread,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{
    super::{Authority, Client, Pair},
    Node, PAUSE, Token, Trouble, be_ready, forward, host_and_port, keep, say, traces,
};

const PASSWORD: &str = "/etc/rancher/node/password";
const CNI: &str = "/etc/cni/net.d";
const HEALTH: u16 = 10248;
const KUBELET: u16 = 10250;

/// Runs the agent to the end of the program; a server gives the port of its own supervisor.
pub(super) fn run(node: &Node, own: Option<u16>) -> Result<()> {
    let token = node.token()?;
    let (token, port) = match own {
        Some(port) => (server_token(node)?, port),
        None => {
            let url = node.configuration.one("server").context("--server is required")?;
            let (host, port) = host_and_port(url)?;
            let own = node.configuration.one("lb-server-port").map_or(Ok(6444), str::parse)?;
            forward(SocketAddr::from((Ipv4Addr::LOCALHOST, own)), host, port)?;
            (token.context("--token is required")?, own)
        }
    };
    let supervisor = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let trusted = loop {
        match trust(supervisor, &token) {
            Ok(pem) => break pem,
            Err(error) => {
                say(
                    "error",
                    format!("Failed to validate connection to cluster at https://{supervisor}: {error:#}"),
                );
            }
        }
        sleep(PAUSE);
    };
    let session = Session { node, supervisor, trusted, token };
    while let Err(error) = session.fetch() {
        say("info", format!("Waiting to retrieve agent configuration; server is not ready: {error:#}"));
        sleep(PAUSE);
    }
    traces::leave_k3s(node)?;
    say("info", "Starting containerd: ready");
    if !node.is(Trouble::Kubelet) {
        let health = TcpListener::bind((Ipv4Addr::LOCALHOST, HEALTH)).context("the kubelet's health port")?;
        thread::spawn(move || answer_health(&health));
        let kubelet = TcpListener::bind((Ipv4Addr::UNSPECIFIED, KUBELET)).context("the kubelet's port")?;
        thread::spawn(move || kubelet.incoming().for_each(drop));
    }
    say("info", format!("Running kubelet --hostname-override={} --node-labels=", node.name));
    while let Err(error) = session.register() {
        say("error", format!("Unable to register node with API server: {error:#}"));
        sleep(PAUSE);
    }
    if own.is_none() {
        be_ready(node, "agent ");
    }
    session.live()
}

/// A server's own token is the one of its file.
fn server_token(node: &Node) -> Result<Token> {
    Token::parse(fs::read_to_string(node.path("server/token"))?.trim())
}

/// Fetches `/cacerts` and holds it against the token, as K3s does.
pub(super) fn trust(supervisor: SocketAddr, token: &Token) -> Result<String> {
    let shown = Client::new(supervisor).get("/cacerts").context("failed to get CA certs")?;
    ensure!(shown.status == 200, "failed to get CA certs: https://{supervisor}/cacerts: {}", shown.status);
    let again = Client::new(supervisor).trusting(&shown.body).get("/cacerts");
    again.context("CA cert validation failed")?;
    if let Some(pin) = &token.pin {
        let found = Authority::pin(&shown.body)?;
        ensure!(
            *pin == found,
            "token CA hash does not match the Cluster CA certificate hash: {pin} != {found}"
        );
    }
    Ok(shown.body)
}

struct Session<'a> {
    node: &'a Node,
    supervisor: SocketAddr,
    trusted: String,
    token: Token,
}

impl Session<'_> {
    fn client(&self) -> Client {
        let client = Client::new(self.supervisor).trusting(&self.trusted);
        if self.token.is_bootstrap {
            client.bearer(&self.token.secret)
        } else {
            client.basic("node", &self.token.secret)
        }
    }

    fn get(&self, client: Client, what: &str) -> Result<String> {
        let path = format!("/v1-k3s/{what}");
        let answer = client.get(&path)?;
        if answer.status == 403 && what.ends_with("kubelet.crt") {
            bail!(
                "Node password rejected, duplicate hostname or contents of '{PASSWORD}' may not match server node-passwd \
                 entry, try enabling a unique node name with the --with-node-id flag"
            );
        }
        // K3s says the status with its words.
        let words = if answer.status == 401 { " Unauthorized" } else { "" };
        ensure!(answer.status == 200, "https://{}{path}: {}{words}", self.supervisor, answer.status);
        Ok(answer.body)
    }

    /// Fetches and writes what the agent of K3s keeps.
    fn fetch(&self) -> Result<()> {
        let node = self.node;
        self.get(self.client(), "config").context("failed to retrieve configuration from server")?;
        for file in ["client-ca.crt", "server-ca.crt"] {
            keep(&node.path(&format!("agent/{file}")), &self.get(self.client(), file)?)?;
        }
        let password = password()?;
        for name in ["serving-kubelet", "client-kubelet"] {
            let client = self.client().header("k3s-Node-Name", &node.name);
            let client = client.header("k3s-Node-Password", &password);
            let client = client.header("k3s-Node-IP", &address(node)?);
            self.keep_pair(name, &self.get(client, &format!("{name}.crt"))?)?;
        }
        for name in ["client-kube-proxy", "client-k3s-controller"] {
            self.keep_pair(name, &self.get(self.client(), &format!("{name}.crt"))?)?;
        }
        let data = node.data.display();
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- cluster:\n    server: https://{}\n    \
             certificate-authority: {data}/agent/server-ca.crt\n  name: local\ncontexts:\n- context:\n    cluster: local\n    \
             namespace: default\n    user: user\n  name: Default\ncurrent-context: Default\nusers:\n- name: user\n  user:\n    \
             client-certificate: {data}/agent/client-kubelet.crt\n    client-key: {data}/agent/client-kubelet.key\n",
            self.supervisor
        );
        keep(&node.path("agent/kubelet.kubeconfig"), &kubeconfig)
    }

    fn keep_pair(&self, name: &str, text: &str) -> Result<()> {
        let pair = Pair::split(text);
        keep(&self.node.path(&format!("agent/{name}.crt")), &pair.certificates)?;
        keep(&self.node.path(&format!("agent/{name}.key")), &pair.key)
    }

    /// Asks the API server as the kubelet.
    fn ask(&self, method: &str, path: &str, body: &Value) -> Result<(u16, Value)> {
        let read = |name: &str| fs::read_to_string(self.node.path(&format!("agent/client-kubelet.{name}")));
        let pair = Pair { certificates: read("crt")?, key: read("key")? };
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer =
            Client::new(self.supervisor).trusting(&self.trusted).with(&pair)?.send(method, path, &body)?;
        Ok((answer.status, serde_json::from_str(&answer.body).unwrap_or(Value::Null)))
    }

    fn register(&self) -> Result<()> {
        let node = self.node;
        let mut labels = json!({
            "kubernetes.io/hostname": node.name, "kubernetes.io/os": "linux",
            "node.kubernetes.io/instance-type": "k3s",
        });
        for label in node.configuration.all("node-label") {
            let (key, value) = label.split_once('=').unwrap_or((label, ""));
            labels[key] = value.into();
        }
        let mut annotations = json!({"k3s.io/hostname": node.name});
        if node.path("server/db/etcd").exists() {
            labels["node-role.kubernetes.io/control-plane"] = "true".into();
            labels["node-role.kubernetes.io/etcd"] = "true".into();
            annotations["etcd.k3s.cattle.io/node-name"] = format!("{}-0a1b2c3d", node.name).into();
            annotations["etcd.k3s.cattle.io/node-address"] = address(node)?.into();
        } else if node.path("server").exists() {
            labels["node-role.kubernetes.io/control-plane"] = "true".into();
        }
        let taints: Vec<Value> =
            node.configuration.all("node-taint").iter().map(|text| taint(text)).collect();
        let object = json!({
            "metadata": {"name": node.name, "labels": labels, "annotations": annotations},
            "spec": {"taints": taints},
            "status": {
                "conditions": [readiness(false)],
                "addresses": [{"type": "InternalIP", "address": address(node)?}, {"type": "Hostname", "address": node.name}],
                "nodeInfo": {"kubeletVersion": node.version, "containerRuntimeVersion": "containerd://2.1.5-k3s1"},
            },
        });
        match self.ask("POST", "/api/v1/nodes", &object)? {
            (201, _) => say("info", format!("Successfully registered node: {}", node.name)),
            (409, _) => say("info", format!("Node was previously registered: {}", node.name)),
            (code, status) => bail!("{code}: {}", status["message"].as_str().unwrap_or_default()),
        }
        say("info", format!("Annotations and labels have been set successfully on node: {}", node.name));
        Ok(())
    }

    /// The kubelet's days: it says whether a CNI is there, and Cilium comes when the script wants it.
    fn live(&self) -> Result<()> {
        let node = self.node;
        let began = Instant::now();
        let path = format!("/api/v1/nodes/{}/status", node.name);
        let (mut told, mut has_cilium) = (None, false);
        loop {
            if node.is(Trouble::Crash) && began.elapsed() > Duration::from_secs(1) {
                say("fatal", "kubelet exited: failed to run Kubelet: no space left on device");
                process::exit(1);
            }
            if !has_cilium
                && node.script.cilium.is_some_and(|after| began.elapsed() > Duration::from_millis(after))
            {
                traces::leave_cilium(&address(node)?)?;
                has_cilium = true;
            }
            let is_ready = has_network();
            if told != Some((is_ready, has_cilium)) {
                if !is_ready {
                    say("error", "Unable to update cni config: no networks found in /etc/cni/net.d");
                }
                let mut conditions = vec![readiness(is_ready)];
                if has_cilium {
                    // Cilium's operator takes its taint away when it sees this.
                    conditions.push(json!({
                        "type": "NetworkUnavailable", "status": "False", "reason": "CiliumIsUp",
                        "message": "Cilium is running on this node",
                    }));
                }
                let status = json!({"status": {"conditions": conditions}});
                match self.ask("PATCH", &path, &status) {
                    Ok((200, _)) => told = Some((is_ready, has_cilium)),
                    Ok((code, _)) => say("error", format!("Error updating node status, will retry: {code}")),
                    Err(error) => say("error", format!("Error updating node status, will retry: {error:#}")),
                }
            }
            sleep(PAUSE);
        }
    }
}

/// The Ready condition, in a kubelet's words.
fn readiness(is_ready: bool) -> Value {
    if is_ready {
        let message = "kubelet is posting ready status";
        return json!({"type": "Ready", "status": "True", "reason": "KubeletReady", "message": message});
    }
    let message = "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady \
                   message:Network plugin returns error: cni plugin not initialized";
    json!({"type": "Ready", "status": "False", "reason": "KubeletNotReady", "message": message})
}

fn has_network() -> bool {
    let files = fs::read_dir(CNI).into_iter().flatten().flatten();
    files
        .into_iter()
        .any(|file| file.path().extension().is_some_and(|kind| kind == "conflist" || kind == "conf"))
}

fn taint(text: &str) -> Value {
    let (key, effect) = text.rsplit_once(':').unwrap_or((text, "NoSchedule"));
    let (key, value) = key.split_once('=').unwrap_or((key, ""));
    json!({"key": key, "value": value, "effect": effect})
}

/// The node's password; the first start makes one.
fn password() -> Result<String> {
    if let Ok(text) = fs::read_to_string(PASSWORD) {
        return Ok(text.trim().to_owned());
    }
    let mut random = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    let text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    keep(Path::new(PASSWORD), &format!("{text}\n"))?;
    Ok(text)
}

/// The address from which this node would leave: no packet is sent to find it.
pub(super) fn address(node: &Node) -> Result<String> {
    if let Some(address) = node.configuration.one("node-ip") {
        return Ok(address.to_owned());
    }
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(("192.0.2.1", 9)).context("no default routes found in \"/proc/net/route\"")?;
    Ok(socket.local_addr()?.ip().to_string())
}

fn answer_health(listener: &TcpListener) {
    for mut stream in listener.incoming().flatten() {
        let mut head = [0; 4096];
        // Whoever asks asks for the same.
        let _ = stream.read(&mut head);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    }
}
