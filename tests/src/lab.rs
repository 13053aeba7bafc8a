//! The bed itself: nodes n1, n2, ... on one bridge, a broker, and the aggregator where a person's browser reaches it.

use std::{
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{
    broker::{Broker, PORT, TLS_PORT, log_to},
    http,
    namespace::{Namespace, ip},
    process::{Process, bound},
    watch::until,
};

/// The bed's cluster.
pub const CLUSTER: &str = "demo";
/// The bed's networks are 198.18.N.0/24, the benchmark range of RFC 2544: nobody routes it. N starts here.
const FIRST_NETWORK: u8 = 77;
/// Where the host is in the bed's network; the broker is one further.
const HOST: u8 = 253;
const BROKER: u8 = 254;
/// The link that the nodes of [`Switch::Direct`] lie upon.
const WIRE: &str = "wire";
/// Most nodes of a bed.
pub const MOST_NODES: u8 = 50;

/// How long a program may take to end when it is asked to.
const PATIENCE: Duration = Duration::from_secs(5);

/// The programs under test.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// The agent, the companion and the command.
    pub bramble: PathBuf,
    /// The aggregator.
    pub aggregator: PathBuf,
}

impl Binaries {
    /// Takes them from the folder that cargo built them into.
    ///
    /// # Errors
    /// They are not there.
    pub fn within(folder: &Path) -> Result<Self> {
        let take = |name: &str| {
            let path = folder.join(name);
            ensure!(path.is_file(), "{} is missing; build it: cargo build", path.display());
            Ok(path)
        };
        Ok(Self { bramble: take("bramble")?, aggregator: take("bramble-aggregator")? })
    }
}

/// How a node measures and reports, where somebody wants other than the bed's best and fastest.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// `auto` or `user`.
    pub stamps: &'static str,
    /// `auto`, `tcx` or `tc`.
    pub attach: &'static str,
    /// Time between two reports, as `1s`.
    pub report: &'static str,
    /// Whether the broker is reached over TLS.
    pub tls: bool,
    /// Where the agent keeps what must survive a restart.
    pub state: &'a Path,
}

impl Default for Settings<'_> {
    fn default() -> Self {
        let state = Path::new("/run/bed/state");
        Self { stamps: "auto", attach: "auto", report: "1s", tls: false, state }
    }
}

/// What joins the nodes of a bed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// A bridge with a port for each node, at which faults are made. Its work is done by whoever sends.
    Bridge,
    /// A packet is at its node as soon as it was sent, as if the switch were a machine of its own: for measuring what nodes cost. No
    /// fault can be made.
    Direct,
}

/// One node: a machine as far as network, `/run` and bramble are concerned.
#[derive(Debug)]
pub struct Node {
    name: String,
    address: Ipv4Addr,
    bramble: PathBuf,
    agent: Option<Process>,
    companion: Option<Process>,
    namespace: Namespace,
}

impl Node {
    /// n1, n2, ...
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the bridge.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Where it lives.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The program that runs on it.
    pub fn program(&self) -> &Path {
        &self.bramble
    }

    /// Writes its configuration; programs read it at their start.
    ///
    /// # Errors
    /// The node is gone.
    pub fn configure(&self, broker: &Broker, settings: Settings<'_>) -> Result<()> {
        let Settings { stamps, attach, report, tls, state } = settings;
        let ip = *broker.address().ip();
        let place = match tls {
            true => format!("host = \"mqtts://{ip}:{TLS_PORT}\"\nca = \"/run/bed/ca.crt\""),
            false => format!("host = \"{ip}\"\nport = {PORT}"),
        };
        let text = format!(
            "[node]\nname = \"{}\"\ncluster = \"{CLUSTER}\"\nstate_dir = {state:?}\n\n\
             [mqtt]\n{place}\nwill_delay = \"1s\"\n\n\
             [report]\ninterval = \"{report}\"\n\n\
             [probe]\nstamps = \"{stamps}\"\nattach = \"{attach}\"\n",
            self.name,
        );
        fs::create_dir_all(self.namespace.path(&state.display().to_string()))?;
        fs::write(self.namespace.path("/run/bed/ca.crt"), broker.authority())?;
        Ok(fs::write(self.namespace.path("/run/bed/bramble.toml"), text)?)
    }

    /// Starts `bramble VERB` with the node's configuration; what it says goes to `log`. It is the caller's to end.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, verb: &str, log: &str) -> Result<Process> {
        let mut command = self.command(&[verb, "--config", "/run/bed/bramble.toml"]);
        log_to(&mut command, &self.namespace, log)?;
        Process::spawn(format!("{}'s `bramble {verb}`", self.name), command)
    }

    /// bramble with any arguments, inside the node.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.namespace.command(&self.bramble.display().to_string());
        command.args(arguments);
        command
    }

    /// Starts the agent, also again.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_agent(&mut self) -> Result<()> {
        self.agent = None;
        self.agent = Some(self.spawn("run", "agent.log")?);
        Ok(())
    }

    /// Starts the companion, also again.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_companion(&mut self) -> Result<()> {
        self.companion = None;
        self.companion = Some(self.spawn("probe", "probe.log")?);
        Ok(())
    }

    /// The agent's process, while it was not taken away.
    pub fn agent(&mut self) -> Option<&mut Process> {
        self.agent.as_mut()
    }

    /// The companion's process, while it was not taken away.
    pub fn companion(&mut self) -> Option<&mut Process> {
        self.companion.as_mut()
    }

    /// What `bramble status --json` says in the node.
    ///
    /// # Errors
    /// It says no JSON.
    pub fn status(&self) -> Result<Value> {
        // The exit code is the node's health, not the command's success.
        let output = self.command(&["status", "--json"]).output().context("running bramble status")?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            format!("{}: bramble status --json said: {}", self.name, String::from_utf8_lossy(&output.stderr))
        })
    }

    /// What the agent and the companion logged.
    pub fn log(&self) -> String {
        ["agent.log", "probe.log"]
            .into_iter()
            .filter_map(|file| fs::read_to_string(self.namespace.path(&format!("/run/bed/{file}"))).ok())
            .collect()
    }

    /// Ends companion and agent in order; returns what went wrong.
    fn stop(&mut self) -> Vec<String> {
        let processes = [self.companion.take(), self.agent.take()];
        processes.into_iter().flatten().filter_map(|process| stop(process).err()).collect()
    }
}

/// Ends a program as a service manager would; anything but success is told.
fn stop(mut process: Process) -> Result<(), String> {
    match process.stop(PATIENCE) {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{} ended with {status}", process.name())),
        Err(error) => Err(error.to_string()),
    }
}

/// A running bed. Dropping it kills everything; [`Lab::stop`] asks first.
#[derive(Debug)]
pub struct Lab {
    // Dropped from top to bottom: programs before what they stand on.
    aggregator: Option<Process>,
    page: SocketAddr,
    nodes: Vec<Node>,
    broker: Broker,
    lan: Namespace,
    binaries: Binaries,
}

impl Lab {
    /// Makes the bed with broker, aggregator, and agent and companion on every node. `port` is the page's, if it is
    /// free; otherwise, or for 0, the kernel chooses.
    ///
    /// # Errors
    /// Not root, a package is missing, or a program does not start.
    pub fn start(binaries: &Binaries, nodes: u8, port: u16) -> Result<Self> {
        let mut lab = Self::network(binaries, nodes, port)?;
        lab.start_programs()?;
        Ok(lab)
    }

    /// Starts the aggregator, and agent and companion on every node.
    ///
    /// # Errors
    /// A program does not start.
    pub fn start_programs(&mut self) -> Result<()> {
        self.start_aggregator()?;
        for node in &mut self.nodes {
            node.start_agent()?;
            node.start_companion()?;
        }
        Ok(())
    }

    /// Makes namespaces, bridge and broker, with nothing of bramble running.
    ///
    /// # Errors
    /// Not root, or a package is missing.
    pub fn network(binaries: &Binaries, nodes: u8, port: u16) -> Result<Self> {
        Self::joined_by(Switch::Bridge, binaries, nodes, port)
    }

    /// As [`Self::network`], with a switch of either kind.
    ///
    /// # Errors
    /// As [`Self::network`].
    pub fn joined_by(switch: Switch, binaries: &Binaries, nodes: u8, port: u16) -> Result<Self> {
        ensure!((1..=MOST_NODES).contains(&nodes), "a bed has 1 to {MOST_NODES} nodes");
        let lan = Namespace::new("the bridge")?;
        // With an address of its own: otherwise it takes a port's, and changes it whenever ports come and go.
        lan.ip("link add br0 address 02:00:00:00:00:01 type bridge forward_delay 0 mcast_snooping 0\nlink set br0 up\n")?;
        if switch == Switch::Direct {
            lan.ip(&format!(
                "link add {WIRE} type veth peer name port\nlink set port master br0 up\nlink set {WIRE} up\n"
            ))?;
        }
        let network = join_host(&lan)?;
        let broker = format!("198.18.{network}.{BROKER}/24");
        lan.ip(&match switch {
            Switch::Bridge => format!("addr add {broker} dev br0\n"),
            Switch::Direct => format!(
                "link add link {WIRE} name broker type macvlan mode bridge\naddr add {broker} dev broker\nlink set broker up\n"
            ),
        })?;
        let broker = Broker::start(&lan, Ipv4Addr::new(198, 18, network, BROKER))?;
        let nodes = (1..=nodes)
            .map(|number| {
                let node = Node {
                    name: format!("n{number}"),
                    address: Ipv4Addr::new(198, 18, network, number),
                    bramble: binaries.bramble.clone(),
                    agent: None,
                    companion: None,
                    namespace: Namespace::new(&format!("n{number}"))?,
                };
                plug_in(switch, &lan, &node, *broker.address().ip())?;
                node.configure(&broker, Settings::default())?;
                Ok(node)
            })
            .collect::<Result<_>>()?;
        let page = SocketAddr::from(([127, 0, 0, 1], free_port(port)?));
        Ok(Self { aggregator: None, page, nodes, broker, lan, binaries: binaries.clone() })
    }

    /// Starts the aggregator, also again, and waits until it answers.
    ///
    /// # Errors
    /// It does not answer within five seconds; then with its log.
    pub fn start_aggregator(&mut self) -> Result<()> {
        self.aggregator = None;
        let config = format!(
            "cluster = \"{CLUSTER}\"\n\n[mqtt]\nhost = \"{}\"\nport = {PORT}\n\n[web]\nlisten = \"{}\"\n",
            self.broker.address().ip(),
            self.page
        );
        fs::write(self.lan.path("/run/bed/aggregator.toml"), config)?;
        let mut command = self.lan.command_on_host_network(&self.binaries.aggregator.display().to_string());
        command.args(["--config", "/run/bed/aggregator.toml"]);
        log_to(&mut command, &self.lan, "aggregator.log")?;
        let mut process = Process::spawn("the aggregator", command)?;
        until(Duration::from_secs(5), "the aggregator answers", || {
            if let Some(status) = process.ended() {
                bail!("the aggregator ended with {status}: {}", self.log_of_lan("aggregator.log"));
            }
            Ok(http::get(self.page, "/api/v1/cluster").ok())
        })
        .with_context(|| self.log_of_lan("aggregator.log"))?;
        self.aggregator = Some(process);
        Ok(())
    }

    /// Lets the aggregator's program take a node off the broker.
    ///
    /// # Errors
    /// It cannot; then with what it said.
    pub fn forget(&self, node: &str) -> Result<()> {
        let mut command = self.lan.command_on_host_network(&self.binaries.aggregator.display().to_string());
        command.args(["--config", "/run/bed/aggregator.toml", "--forget", node]);
        crate::process::run(command).map(drop)
    }

    /// The aggregator's process, while it was not taken away.
    pub fn aggregator(&mut self) -> Option<&mut Process> {
        self.aggregator.as_mut()
    }

    /// Where the page is, from the host.
    pub fn page(&self) -> SocketAddr {
        self.page
    }

    /// What the page's `/api/v1/cluster` says.
    ///
    /// # Errors
    /// It does not answer, or not with JSON.
    pub fn cluster(&self) -> Result<Value> {
        Ok(serde_json::from_str(&http::get(self.page, "/api/v1/cluster")?)?)
    }

    /// The namespace with bridge and broker.
    pub fn lan(&self) -> &Namespace {
        &self.lan
    }

    /// The broker.
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// Takes the broker away, with all that it knew.
    pub fn broker_goes_away(&mut self) {
        self.broker.go_away();
    }

    /// Brings the broker back, empty.
    ///
    /// # Errors
    /// See [`Broker::come_back`].
    pub fn broker_comes_back(&mut self) -> Result<()> {
        self.broker.come_back(&self.lan)
    }

    /// All nodes, n1 first.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node by name.
    ///
    /// # Errors
    /// The bed has no such node.
    pub fn node(&self, name: &str) -> Result<&Node> {
        let node = self.nodes.iter().find(|node| node.name == name);
        node.with_context(|| format!("there is no node {name}, only n1 to n{}", self.nodes.len()))
    }

    /// A node by name, to start and stop its programs.
    ///
    /// # Errors
    /// The bed has no such node.
    pub fn node_mut(&mut self, name: &str) -> Result<&mut Node> {
        let count = self.nodes.len();
        let node = self.nodes.iter_mut().find(|node| node.name == name);
        node.with_context(|| format!("there is no node {name}, only n1 to n{count}"))
    }

    /// The namespaces' identities, to look for them when the bed is gone.
    ///
    /// # Errors
    /// The bed is gone already.
    pub fn identities(&self) -> Result<Vec<String>> {
        let all = std::iter::once(&self.lan).chain(self.nodes.iter().map(Node::namespace));
        Ok(all.map(Namespace::identities).collect::<Result<Vec<_>>>()?.concat())
    }

    /// Programs that ended although nobody asked them to.
    pub fn casualties(&mut self) -> Vec<String> {
        let Self { aggregator, nodes, .. } = self;
        let nodes = nodes.iter_mut().flat_map(|node| [node.agent.as_mut(), node.companion.as_mut()]);
        let processes = nodes.chain([aggregator.as_mut()]).flatten();
        processes
            .filter_map(|process| {
                let status = process.ended()?;
                Some(format!("{} ended with {status}", process.name()))
            })
            .collect()
    }

    /// The end of every log, for a person who asks what happened.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        let nodes = self.nodes.iter().map(|node| (node.name.as_str(), node.log()));
        for (name, log) in nodes.chain([("aggregator", self.log_of_lan("aggregator.log"))]) {
            let lines: Vec<&str> = log.lines().collect();
            let _ = writeln!(text, "--- {name}");
            for line in &lines[lines.len().saturating_sub(15)..] {
                let _ = writeln!(text, "{line}");
            }
        }
        text
    }

    fn log_of_lan(&self, file: &str) -> String {
        fs::read_to_string(self.lan.path(&format!("/run/bed/{file}"))).unwrap_or_default()
    }

    /// Ends all programs in order, then the bed; returns what did not end as it should.
    pub fn stop(mut self) -> Vec<String> {
        let mut complaints = self.casualties();
        complaints.extend(self.nodes.iter_mut().flat_map(Node::stop));
        complaints.extend(self.aggregator.take().and_then(|process| stop(process).err()));
        complaints
    }
}

/// Links the host with the bed by `bramble<N>`, whose name is also the claim on network N.
fn join_host(lan: &Namespace) -> Result<u8> {
    let mut refusal = None;
    for network in FIRST_NETWORK..=u8::MAX {
        let link = format!("bramble{network}");
        let made =
            ip(bound("ip"), &format!("link add {link} type veth peer name host netns {}\n", lan.pid()));
        if let Err(error) = made {
            // Taken by another bed, or not allowed at all: the second kind fails each time.
            refusal = Some(error);
            continue;
        }
        ip(bound("ip"), &format!("addr add 198.18.{network}.{HOST}/24 dev {link}\nlink set {link} up\n"))?;
        lan.ip("link set host master br0 up\n")?;
        return Ok(network);
    }
    Err(refusal.unwrap_or_else(|| anyhow::anyhow!("no network is free")))
}

/// Gives a node its cable: `eth0` inside; of a bridge a port of the node's name outside.
fn plug_in(switch: Switch, lan: &Namespace, node: &Node, gateway: Ipv4Addr) -> Result<()> {
    let (name, inside) = (&node.name, node.namespace.pid());
    lan.ip(&match switch {
        Switch::Bridge => {
            format!(
                "link add {name} type veth peer name eth0 netns {inside}\nlink set {name} master br0 up\n"
            )
        }
        Switch::Direct => {
            format!("link add link {WIRE} name eth0 netns {inside} type macvlan mode bridge\n")
        }
    })?;
    node.namespace.ip(&format!(
        "addr add {}/24 dev eth0\nlink set eth0 up\nroute add default via {gateway}\n",
        node.address
    ))?;
    Ok(())
}

/// `wanted`, or another port of the loopback address that nobody listens on.
fn free_port(wanted: u16) -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", wanted)).or_else(|_| TcpListener::bind(("127.0.0.1", 0)));
    Ok(listener.context("looking for a free port")?.local_addr()?.port())
}
