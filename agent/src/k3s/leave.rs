//! Leaving K3s: the cluster is told first, then this node is cleaned, in the one order that does not cut it off.
//!
//! Pods are moved, the Node object goes (K3s then takes its password's secret, and a server's member of etcd, away), K3s is
//! stopped, then Cilium's links and rules go before anything that K3s' own scripts would take away, and the receipts of the
//! join are reverted last, so that every byte comes back. Only what can be named is removed, every step may be done
//! again, and what was to be done elsewhere and could not be is handed back as commands.
//! Follows k3s-io/k3s install.sh (killall and uninstall), k3s-io/docs networking (Cilium), `agent/data/leftovers.csv`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::api::{Api, Deleted, Evicted, Node, Pod};
use super::{joined, path};
use crate::converge::live::Live;
use crate::converge::receipt::{Act, Receipt, State};
use crate::facts::Facts;
use crate::host::Host;
use crate::host::http::{Trouble, Url};
use crate::host::network::Rule;
use crate::host::systemd::Unit;
use crate::host::write::{HostMut, NotDone};

/// The units that K3s may be.
const UNITS: [&str; 2] = ["k3s.service", "k3s-agent.service"];
/// Tables of Cilium's routing policy (cilium/cilium pkg/datapath/linux/linux_defaults): to the proxy and from it, and for
/// encryption.
const TABLES: [u32; 4] = [200, 201, 2004, 2005];
/// Which bits of a packet's mark are Cilium's.
const MARK: u32 = 0xf00;
/// Links that Cilium makes once; cilium_net goes with cilium_host.
const LINKS: [&str; 8] = [
    "cilium_host",
    "cilium_net",
    "cilium_vxlan",
    "cilium_geneve",
    "cilium_wg0",
    "cilium_ipip4",
    "cilium_ipip6",
    "lxc_health",
];
/// Chains of Cilium, of the kubelet and kube-proxy, of CNI's plugins, and of Flannel.
const CHAINS: [&str; 5] = ["CILIUM_", "OLD_CILIUM_", "KUBE-", "CNI-", "FLANNEL-"];
const SETS: [&str; 2] = ["cilium_node_set_v4", "cilium_node_set_v6"];
/// What is mounted below these is K3s', the kubelet's, or Cilium's.
const MOUNTS: [&str; 6] = [
    "/run/k3s",
    "/var/lib/kubelet/pods",
    "/var/lib/kubelet/plugins",
    "/run/netns/cni-",
    "/run/cilium/cgroupv2",
    "/run/cilium/bpffs",
];
/// What K3s, the kubelet, Cilium and istio-cni keep on a node, beside K3s' own data.
const FILES: [&str; 20] = [
    "/etc/cni/net.d/05-cilium.conflist",
    "/etc/cni/net.d/02-istio-cni.conflist",
    "/etc/cni/net.d/istio-cni-kubeconfig",
    "/opt/cni/bin/cilium-cni",
    "/opt/cni/bin/istio-cni",
    "/etc/sysctl.d/99-zzz-override_cilium.conf",
    // The kubelet's, where logind's own limit is too short for it.
    "/etc/systemd/logind.conf.d/99-kubelet.conf",
    "/sys/fs/bpf/cilium",
    "/run/cilium",
    "/var/lib/cilium",
    "/run/istio-cni",
    "/run/ztunnel",
    "/var/lib/cni",
    "/run/flannel",
    "/run/k3s",
    "/var/lib/kubelet",
    "/var/log/pods",
    "/var/log/containers",
    "/etc/rancher/k3s/k3s.yaml",
    path::NODE_PASSWORD,
];
/// What K3s keeps below [`path::DATA`]; the last one is its local-path provisioner's. The directory itself may be a disk of
/// the owner's, or a link to one, on which other things lie.
const DATA: [&str; 4] = ["agent", "data", "server", "storage"];
/// Directories that go when nothing is left in them, the inner ones first.
const DIRECTORIES: [&str; 11] = [
    "/etc/cni/net.d",
    "/etc/cni",
    "/opt/cni/bin",
    "/opt/cni",
    "/sys/fs/bpf/tc/globals",
    "/etc/rancher/node",
    "/etc/rancher/k3s",
    "/etc/rancher",
    path::DATA,
    "/var/lib/rancher",
    "/etc/systemd/logind.conf.d",
];

/// What is known before anything is done.
#[derive(Debug)]
pub struct Survey {
    /// The unit that is K3s here; `None` when it has none.
    pub unit: Option<&'static str>,
    /// The name that the node has in the cluster.
    pub node: String,
    /// What the cluster says, or why it cannot be asked.
    pub cluster: Result<Seen, String>,
    /// Whether K3s is here, running or not. Without it what looks like its files may be another Kubernetes'.
    pub is_here: bool,
}

/// What the cluster says of this node.
#[derive(Debug)]
pub struct Seen {
    /// By another server where one answers: this one's own ends with its member of etcd.
    api: Api,
    /// Whether there is a Node object of its name.
    pub is_registered: bool,
    /// Whether it carries a member of etcd.
    is_member: bool,
    /// The pods that are to be moved.
    pub pods: Vec<Pod>,
    /// What the cluster loses with it.
    pub loss: Option<Loss>,
}

/// What a cluster loses with one of its servers, beside the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loss {
    /// It is the only one: the cluster ends, and these nodes have none any more.
    Cluster(Vec<String>),
    /// Of the other members of etcd too few are up: nothing can be written any more.
    Quorum {
        /// The members that are down.
        down: Vec<String>,
        /// How many are up.
        up: usize,
        /// How many must be.
        needed: usize,
    },
}

/// How it is to be left.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Keep what K3s stores in `/var/lib/rancher/k3s`.
    pub keep_data: bool,
    /// How long pods may take to move; `None` = they are not moved.
    pub drain: Option<Duration>,
    /// Leave although others lose the cluster with this node.
    pub force: bool,
}

/// One thing that was done, for people and for JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Kebab-case.
    pub id: &'static str,
    /// What was done, or why nothing was.
    pub said: String,
}

/// What has to be done elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remains {
    /// What, and why it was not done here.
    pub what: String,
    /// On which node, for people.
    pub place: String,
    /// The command there.
    pub command: String,
}

/// The unit that joins by itself, and its owner's switch for it.
const JOINING: (&str, &str) = ("bramble-join.service", "/etc/bramble/join");

/// Ends a join that still runs or is begun anew later: it would take the node back into its cluster.
pub fn end_join(host: &HostMut) -> Result<(), NotDone> {
    host.stop_unit(JOINING.0)?;
    host.settled(JOINING.0, Duration::from_secs(30), Unit::is_down).map(drop)
}

/// What its owner has to switch off, so that this node does not join again.
pub fn switch(host: &Host) -> Option<Remains> {
    (host.present(JOINING.1) == Ok(true)).then(|| Remains {
        what: format!("{} lets it join again at its next boot", JOINING.1),
        place: "this node".into(),
        command: format!("sudo rm {}", JOINING.1),
    })
}

/// The unit that has a file here.
pub fn unit_file(host: &Host) -> Option<&'static str> {
    UNITS.into_iter().find(|unit| host.present(&format!("/etc/systemd/system/{unit}")) == Ok(true))
}

/// The unit that has a file, or runs without one.
fn unit(host: &Host) -> Option<&'static str> {
    let runs = |unit: &&str| host.unit(unit).is_ok_and(|unit| !unit.active.is_empty() && !unit.is_down());
    unit_file(host).or_else(|| UNITS.into_iter().find(runs))
}

/// Looks, and changes nothing.
pub async fn survey(host: &Host) -> Survey {
    let facts = Facts::observe(host);
    let node = super::node_name(&facts, None).unwrap_or_default();
    let unit = unit(host);
    let is_here =
        unit.is_some() || [path::DATA, path::BINARY].iter().any(|path| host.present(path) == Ok(true));
    let cluster = match unit {
        None => Err("K3s does not run here".into()),
        Some(_) => {
            let settings = facts.k3s.settings.as_ref().ok();
            let joined = settings.and_then(|settings| Url::parse(settings.value("server")?).ok());
            ask(host, &node, joined).await
        }
    };
    Survey { unit, node, cluster, is_here }
}

/// Asks the API; a server that has none of its own any more, the one by which it joined.
async fn ask(host: &Host, node: &str, joined: Option<Url>) -> Result<Seen, String> {
    let api = Api::of(host).map_err(|unreadable| unreadable.to_string())?;
    let own = match (seen(&api, node).await, joined) {
        (Err(_), Some(url)) if api.is_admin => seen(&api.by(&url), node).await,
        (own, _) => own,
    };
    own.map_err(|trouble| trouble.to_string())
}

async fn seen(api: &Api, node: &str) -> Result<Seen, Trouble> {
    let own = api.node(node).await?;
    let pods = match own.is_some() {
        true => api.pods(node).await?.into_iter().filter(Pod::moves).collect(),
        false => Vec::new(),
    };
    let (mut api, mut loss) = (api.clone(), None);
    if api.is_admin {
        let addresses = own.as_ref().map(|own| own.addresses.clone()).unwrap_or_default();
        let mut servers = api.servers().await?;
        servers.retain(|server| !addresses.iter().any(|own| own == server.host()));
        loss = self::loss(node, &api.nodes().await?, servers.len());
        for server in &servers {
            let other = api.by(server);
            if other.node(node).await.is_ok() {
                api = other;
                break;
            }
        }
    }
    let is_member = own.as_ref().is_some_and(|own| own.is_member);
    Ok(Seen { api, is_registered: own.is_some(), is_member, pods, loss })
}

/// What the cluster of these nodes loses with the server `node`, when the API is at `servers` more places.
fn loss(node: &str, nodes: &[(String, Node)], servers: usize) -> Option<Loss> {
    let is_member = nodes.iter().any(|(name, own)| name == node && own.is_member);
    let others: Vec<_> = nodes.iter().filter(|(name, _)| name != node).collect();
    // Servers without an agent have no Node object.
    if servers == 0 && !others.iter().any(|(_, other)| other.is_server) {
        return Some(Loss::Cluster(others.into_iter().map(|(name, _)| name.clone()).collect()));
    }
    let members: Vec<_> = others.into_iter().filter(|(_, other)| other.is_member).collect();
    let down: Vec<String> =
        members.iter().filter(|(_, other)| !other.is_ready()).map(|(name, _)| name.clone()).collect();
    let (up, needed) = (members.len() - down.len(), members.len() / 2 + 1);
    (is_member && !down.is_empty() && up < needed).then_some(Loss::Quorum { down, up, needed })
}

/// Why this node should stay, when others would lose the cluster with it.
pub fn refusal(survey: &Survey, options: &Options) -> Option<NotDone> {
    let loss = survey.cluster.as_ref().ok()?.loss.as_ref().filter(|_| !options.force)?;
    let anyway = "or end it for all: sudo bramble leave --force";
    let (why, next) = match loss {
        Loss::Cluster(others) if others.is_empty() => return None,
        Loss::Cluster(others) => (
            format!("it is the only server, and the cluster has {} more", counted(others)),
            format!(
                "let the others leave first (on each: sudo bramble leave), or join another server; {anyway}"
            ),
        ),
        Loss::Quorum { down, up, needed } => (
            format!(
                "{} not Ready, so of the members of etcd that stay {up} would be up, and {needed} must be",
                match down.as_slice() {
                    [one] => format!("{one} is"),
                    more => format!("{} are", more.join(", ")),
                }
            ),
            format!(
                "start K3s there, or, where it is gone for good: sudo k3s kubectl delete node {}; then leave again; {anyway}",
                down.join(" ")
            ),
        ),
    };
    Some(NotDone::new("taking", format!("{} out of the cluster", survey.node), why, next))
}

fn counted(nodes: &[String]) -> String {
    match nodes {
        [one] => format!("1 node ({one})"),
        more => format!("{} nodes ({})", more.len(), more.join(", ")),
    }
}

/// Tells the cluster: moves the pods, takes the Node object away and what K3s keeps with it.
///
/// Says what remains to be done elsewhere.
///
/// # Errors
/// Pods could not be moved in time, although the API answers. The node stays in the cluster then, closed for new pods.
pub async fn depart(
    survey: &Survey,
    options: &Options,
    tell: &mut dyn FnMut(Step),
) -> Result<Vec<Remains>, NotDone> {
    let node = &survey.node;
    let seen = match &survey.cluster {
        Ok(seen) => seen,
        Err(why) => {
            tell(Step { id: "cluster", said: format!("not told: {why}") });
            return Ok(vec![forget(node, "the cluster was not told that this node is gone")]);
        }
    };
    if !seen.is_registered {
        tell(Step { id: "cluster", said: format!("it knows no node {node}") });
        return Ok(Vec::new());
    }
    match options.drain {
        None => tell(Step { id: "drain", said: "pods were not moved, as you wish".into() }),
        Some(limit) => match drain(&seen.api, node, limit, tell).await {
            Ok(()) => {}
            Err(Undrained::Held(failed)) => return Err(failed),
            Err(Undrained::Unreachable(trouble)) => {
                tell(Step { id: "drain", said: format!("not all pods were moved: {trouble}") });
            }
        },
    }
    if let Some(Loss::Cluster(others)) = &seen.loss {
        tell(Step { id: "cluster", said: "it ends with this node, its only server".into() });
        let what = "the cluster has no server any more".into();
        let remains = Remains { what, place: others.join(", "), command: "sudo bramble leave".into() };
        return Ok(if others.is_empty() { Vec::new() } else { vec![remains] });
    }
    match seen.api.delete_node(node).await {
        Ok(Deleted::Yes | Deleted::Absent) => {}
        Ok(Deleted::Forbidden) => {
            tell(Step {
                id: "node",
                said: format!("{node} may not delete itself: an agent has no right to"),
            });
            return Ok(vec![forget(node, "an agent may not delete its own Node object")]);
        }
        Err(trouble) => {
            tell(Step { id: "node", said: format!("{node} could not be deleted: {trouble}") });
            return Ok(vec![forget(node, "the Node object could not be deleted")]);
        }
    }
    let mut remains = match gone(seen, node, tell).await {
        Gone::Yes => {
            if seen.is_member && options.keep_data {
                let said = format!(
                    "what etcd kept here is of a member that is gone: remove {}/server/db before this node joins as a server",
                    path::DATA
                );
                tell(Step { id: "keep-data", said });
            }
            Vec::new()
        }
        Gone::Held if seen.is_member && !options.force => {
            let why = "its Node object is still there after a minute: etcd has not let its member go";
            let next = "look at the other servers (there: journalctl -u k3s -g etcd), then run it again; or leave all the \
                        same: sudo bramble leave --force";
            return Err(NotDone::new("taking", format!("{node} out of the cluster"), why, next));
        }
        Gone::Held | Gone::Unseen => vec![at_a_server(
            "whether the Node object, and a server's member of etcd, are gone could not be seen",
            format!("sudo k3s kubectl get node --ignore-not-found {node}"),
        )],
    };
    match seen.api.delete_password(node).await {
        Ok(Deleted::Yes | Deleted::Absent) => {
            tell(Step { id: "password", said: format!("{node} may be the name of another node now") });
        }
        // It follows the Node object; the one command covers both.
        _ if !remains.is_empty() => {}
        _ => remains.push(at_a_server(
            "the secret that binds the node's name could not be deleted",
            format!(
                "sudo k3s kubectl -n kube-system delete secret --ignore-not-found {node}.node-password.k3s"
            ),
        )),
    }
    Ok(remains)
}

fn forget(node: &str, why: &str) -> Remains {
    at_a_server(why, format!("sudo k3s kubectl delete node --ignore-not-found {node}"))
}

fn at_a_server(why: &str, command: String) -> Remains {
    Remains { what: why.into(), place: "a server of the cluster".into(), command }
}

/// Whether a Node object is gone.
enum Gone {
    Yes,
    /// It is still there: something holds it.
    Held,
    /// Nobody said.
    Unseen,
}

/// Waits until the Node object is gone: K3s holds it until the member of etcd is out.
async fn gone(seen: &Seen, node: &str, tell: &mut dyn FnMut(Step)) -> Gone {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut why = None;
    while Instant::now() < deadline {
        match seen.api.node(node).await {
            Ok(None) => {
                let member = if seen.is_member { ", and so is its member of etcd" } else { "" };
                tell(Step { id: "node", said: format!("{node} is gone from the cluster{member}") });
                return Gone::Yes;
            }
            Ok(Some(_)) => why = None,
            // A server that is no member any more does not answer.
            Err(trouble) => why = Some(trouble),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let said = match &why {
        None => format!("{node} was deleted, and is still there after a minute"),
        Some(why) => format!("{node} was deleted, and whether it is gone could not be seen: {why}"),
    };
    tell(Step { id: "node", said });
    if why.is_none() { Gone::Held } else { Gone::Unseen }
}

/// Why pods are left.
enum Undrained {
    /// The API does not let them go: for a budget, or whatever it says.
    Held(NotDone),
    /// The API did not answer any more.
    Unreachable(Trouble),
}

/// Closes a node for new pods, and moves those that it has. What holds one may let it go, so it is asked for again until
/// the limit is reached.
async fn drain(api: &Api, node: &str, limit: Duration, tell: &mut dyn FnMut(Step)) -> Result<(), Undrained> {
    let deadline = Instant::now() + limit;
    let held = |what: String, why: String, look: String| {
        let next = format!(
            "{look}, then run it again; or leave without moving pods: sudo bramble leave --no-drain. {node} takes no new \
             pods until: sudo k3s kubectl uncordon {node}"
        );
        Undrained::Held(NotDone::new("moving", what, why, next))
    };
    let mut asked: Vec<String> = Vec::new();
    let mut first = None;
    let mut before = usize::MAX;
    loop {
        let is_late = Instant::now() > deadline;
        match evict(api, node, &mut asked).await {
            Ok((pods, _)) if pods.is_empty() => {
                tell(Step { id: "drain", said: format!("{} pods moved", first.unwrap_or(0)) });
                return Ok(());
            }
            Ok((pods, why)) if is_late => {
                let (pod, why) = why.unwrap_or_else(|| (pods[0].clone(), "it does not end".into()));
                let look =
                    format!("look at it (on a server: sudo k3s kubectl -n {} get pdb,pods)", pod.namespace);
                return Err(held(pod.full_name(), why, look));
            }
            Ok((pods, why)) if pods.len() != before => {
                before = pods.len();
                let all = *first.get_or_insert(before);
                let waits = why.map(|(pod, why)| format!("; {} is held: {why}", pod.full_name()));
                let said = format!("{before} of {all} pods are left{}", waits.unwrap_or_default());
                tell(Step { id: "drain", said });
            }
            Err(trouble @ Trouble::Status { .. }) if is_late => {
                let look = "look at a server (there: journalctl -u k3s)".into();
                return Err(held(format!("the pods of {node}"), trouble.to_string(), look));
            }
            Err(trouble) if is_late => return Err(Undrained::Unreachable(trouble)),
            Ok(_) | Err(_) => {}
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Asks every pod of a node to go that was not asked so far. Those that are left, and one of them that is held, with the
/// API's words.
async fn evict(
    api: &Api,
    node: &str,
    asked: &mut Vec<String>,
) -> Result<(Vec<Pod>, Option<(Pod, String)>), Trouble> {
    api.cordon(node, true).await?;
    let pods: Vec<Pod> = api.pods(node).await?.into_iter().filter(Pod::moves).collect();
    let mut held = None;
    for pod in &pods {
        if asked.contains(&pod.uid) {
            continue;
        }
        match api.evict(pod).await? {
            Evicted::Yes => asked.push(pod.uid.clone()),
            Evicted::Held(why) => held = Some((pod.clone(), why)),
        }
    }
    Ok((pods, held))
}

/// Cleans this node; the order is the point. `tell` hears of each step that found something.
pub fn clean(
    host: &HostMut,
    ours: &[Receipt],
    options: &Options,
    tell: &mut dyn FnMut(Step),
) -> Result<Vec<String>, NotDone> {
    let mut notes = Vec::new();
    let seen = packet_filter(ours);
    for unit in UNITS {
        stop(host, unit, tell)?;
    }
    // Before the processes go: without Cilium's agent its links hold routes that nobody mends.
    network(host, seen.as_ref(), tell, &mut notes)?;
    let mut groups = 0;
    for group in UNITS.map(|unit| format!("/sys/fs/cgroup/system.slice/{unit}")).iter().map(String::as_str) {
        groups += usize::from(host.kill_group(group)?);
    }
    for group in ["/sys/fs/cgroup/kubepods.slice", "/sys/fs/cgroup/kubepods"] {
        groups += usize::from(host.kill_group(group)?);
    }
    // The kubelet's slice would stay, empty.
    host.stop_unit("kubepods.slice")?;
    said(tell, "processes", groups, "groups of processes ended");
    // An agent of Cilium that still ran may have put them back.
    network(host, seen.as_ref(), tell, &mut notes)?;
    let mut mounts = 0;
    for point in MOUNTS {
        mounts += host.unmount_all(point)?.len();
    }
    said(tell, "mounts", mounts, "mounts taken away");
    let mut files = 0;
    // With Cilium's plugin came the one for the loopback device.
    if host.host().present("/opt/cni/bin/cilium-cni") == Ok(true) {
        files += usize::from(host.remove_all("/opt/cni/bin/loopback")?);
    }
    for name in host.host().list_if_present("/run/netns").unwrap_or_default() {
        if name.starts_with("cni-") {
            files += usize::from(host.remove_all(&format!("/run/netns/{name}"))?);
        }
    }
    // Whoever makes the first namespace there mounts the directory upon itself.
    if host.host().list("/run/netns").is_ok_and(|names| names.is_empty()) {
        host.unmount_all("/run/netns")?;
        host.remove_directory("/run/netns")?;
    }
    for name in host.host().list_if_present("/sys/fs/bpf/tc/globals").unwrap_or_default() {
        if name.starts_with("cilium_") {
            files += usize::from(host.remove_all(&format!("/sys/fs/bpf/tc/globals/{name}"))?);
        }
    }
    for path in FILES {
        files += usize::from(host.remove_all(path)?);
    }
    if !options.keep_data {
        for mount in host.unmount_below(path::DATA)? {
            note(&mut notes, format!("{mount} is unmounted, and what is stored there stays"));
        }
        for part in DATA {
            files += usize::from(host.remove_all(&format!("{}/{part}", path::DATA))?);
        }
    }
    // Where the join put it, a Plan of system-upgrade may have put another version since.
    let is_program = |act: &Act| matches!(act, Act::Large { path, .. } if path == path::BINARY);
    if ours.iter().any(|receipt| receipt.acts.iter().any(is_program)) {
        files += usize::from(host.remove_all(path::BINARY)?);
    }
    said(tell, "files", files, "files and directories removed");
    give_back(host, tell)?;
    host.remove(joined::PATH)?;
    sweep(host)?;
    Ok(notes)
}

fn said(tell: &mut dyn FnMut(Step), id: &'static str, found: usize, what: &str) {
    if found > 0 {
        tell(Step { id, said: format!("{found} {what}") });
    }
}

/// Gives other networks' configurations back that Cilium had moved aside.
fn give_back(host: &HostMut, tell: &mut dyn FnMut(Step)) -> Result<(), NotDone> {
    for name in host.host().list_if_present(path::CNI).unwrap_or_default() {
        let Some(old) = name.strip_suffix(".cilium_bak") else { continue };
        let (aside, back) = (format!("{}/{name}", path::CNI), format!("{}/{old}", path::CNI));
        if host.image(&back)?.is_none()
            && let Some(image) = host.image(&aside)?
        {
            host.put(&back, &image)?;
            tell(Step { id: "cni", said: format!("{back} is back") });
        }
        host.remove(&aside)?;
    }
    Ok(())
}

/// Directories that the rest has left empty. Before the receipts: when those are undone nothing of K3s is here any more.
pub fn sweep(host: &HostMut) -> Result<(), NotDone> {
    DIRECTORIES.into_iter().try_for_each(|path| host.remove_directory(path).map(drop))
}

fn stop(host: &HostMut, unit: &str, tell: &mut dyn FnMut(Step)) -> Result<(), NotDone> {
    let has_file = host.host().present(&format!("/etc/systemd/system/{unit}")) == Ok(true);
    let now = host.host().unit(unit).unwrap_or_default();
    if has_file {
        // Before its file goes: then systemd finds the links by which it is started at boot.
        host.disable_unit(unit)?;
    }
    if now.active.is_empty() || now.is_down() && !has_file {
        return Ok(());
    }
    host.stop_unit(unit)?;
    // Between two starts it is "activating", for ever: the stop ends that too.
    let limit = Duration::from_secs(120);
    let then = host.settled(unit, limit, Unit::is_down)?;
    if !then.is_down() {
        let why = format!("it is {} after {} s", then.active, limit.as_secs());
        return Err(NotDone::new("stopping", unit, why, format!("systemctl status {unit}")));
    }
    if !now.is_down() {
        tell(Step { id: "stop", said: format!("{unit} stopped") });
    }
    Ok(())
}

fn network(
    host: &HostMut,
    seen: Option<&BTreeSet<String>>,
    tell: &mut dyn FnMut(Step),
    notes: &mut Vec<String>,
) -> Result<(), NotDone> {
    let mut found = 0;
    for link in links(host.host())? {
        found += usize::from(host.delete_link(&link)?);
    }
    let is_cilium = found > 0
        || ["/run/cilium", "/sys/fs/bpf/cilium", path::CILIUM_CNI]
            .iter()
            .any(|path| host.host().present(path) == Ok(true));
    if found > 0 {
        tell(Step { id: "links", said: format!("{found} links of Cilium deleted") });
    }
    let is_cilium_rule = |rule: &Rule| {
        let marked = rule.mask == MARK && rule.mark != 0 && TABLES.contains(&rule.table);
        // The rule for the machine's own addresses, which Cilium moves behind its own.
        let moved = is_cilium && rule.priority == 100 && rule.table == 255 && rule.mark == 0;
        marked || moved
    };
    let rules = host.delete_rules(is_cilium_rule)?;
    let routes = if rules > 0 || is_cilium { host.delete_routes(&TABLES)? } else { 0 };
    if rules + routes > 0 {
        tell(Step { id: "rules", said: format!("{rules} rules and {routes} routes of Cilium deleted") });
    }
    let mut filters = 0;
    for link in host.host().list_if_present("/sys/class/net").unwrap_or_default() {
        filters += host.delete_filters(&link, "cil_")?;
    }
    if filters > 0 {
        tell(Step { id: "filters", said: format!("{filters} programs of Cilium detached") });
    }
    match host.delete_chains(&CHAINS, seen) {
        Ok(0) => {}
        Ok(chains) => tell(Step { id: "chains", said: format!("{chains} chains deleted") }),
        // Without nft they are left, and a reboot takes them.
        Err(failed) => {
            note(notes, format!("chains of the packet filter stay until the next reboot: {failed}"))
        }
    }
    let legacy = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"].into_iter().any(|path| {
        host.host().text_if_present(path).ok().flatten().is_some_and(|text| !text.trim().is_empty())
    });
    if legacy && is_cilium {
        note(notes, "rules of iptables-legacy stay until the next reboot".into());
    }
    for set in SETS {
        host.delete_ipset(set)?;
    }
    Ok(())
}

fn note(notes: &mut Vec<String>, note: String) {
    if !notes.contains(&note) {
        notes.push(note);
    }
}

/// Links that are Cilium's by their names.
fn links(host: &Host) -> Result<Vec<String>, NotDone> {
    let names = host.list_if_present("/sys/class/net").map_err(|unreadable| {
        NotDone::new("listing", "links", unreadable.to_string(), "mount sysfs, then run it again")
    })?;
    Ok(names.into_iter().filter(|name| is_cilium_link(name)).collect())
}

/// A pod's link is `lxc` and the beginning of a hash; LXC's own bridge has another name.
fn is_cilium_link(name: &str) -> bool {
    let is_pods = name.strip_prefix("lxc").is_some_and(|hash| {
        hash.len() >= 8 && hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    });
    is_pods || LINKS.contains(&name)
}

/// The receipts of the join that are not undone yet, the last one first: those that hold K3s' program or unit.
pub fn receipts(all: Vec<Receipt>) -> Vec<Receipt> {
    let is_k3s = |act: &Act| match act {
        Act::File { path, .. } | Act::Large { path, .. } => {
            path == path::BINARY
                || path == path::CONFIG
                || UNITS.iter().any(|unit| path.ends_with(&format!("/{unit}")))
        }
        _ => false,
    };
    let mut ours: Vec<Receipt> = all
        .into_iter()
        .filter(|receipt| receipt.state != State::Reverted && receipt.acts.iter().any(is_k3s))
        .collect();
    ours.reverse();
    ours
}

/// What the packet filter had before the join; `None` when nobody wrote it down.
fn packet_filter(ours: &[Receipt]) -> Option<BTreeSet<String>> {
    // The first join knows: what a second one saw was K3s' already.
    ours.iter().rev().flat_map(|receipt| &receipt.acts).find_map(|act| match act {
        Act::Live { live: Live::SeePacketFilter, before } => {
            Some(before.iter().map(|(name, _)| name.clone()).collect())
        }
        _ => None,
    })
}

/// Files of a receipt that stay with K3s' data.
pub fn kept(receipt: &Receipt, options: &Options) -> Vec<String> {
    let below = |act: &Act| match act {
        Act::File { path, .. } | Act::Large { path, .. } if path.starts_with(path::DATA) => {
            Some(path.clone())
        }
        _ => None,
    };
    match options.keep_data {
        true => receipt.acts.iter().filter_map(below).collect(),
        false => Vec::new(),
    }
}

/// K3s' own script that takes the rest away, where K3s was not put here by bramble.
pub fn uninstaller(host: &Host) -> Option<&'static str> {
    ["/usr/local/bin/k3s-uninstall.sh", "/usr/local/bin/k3s-agent-uninstall.sh"]
        .into_iter()
        .find(|path| host.present(path) == Ok(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_links_that_can_be_named_are_cilium_s() {
        for name in ["cilium_host", "cilium_vxlan", "lxc_health", "lxc0a1b2c3d4e5f", "lxc12345678"] {
            assert!(is_cilium_link(name), "{name}");
        }
        for name in ["eth0", "lxcbr0", "lxdbr0", "lxc", "lxcabc", "veth12345678", "cilium", "lxc0a1b2c3d4e5g"]
        {
            assert!(!is_cilium_link(name), "{name}");
        }
    }

    #[test]
    fn what_a_cluster_loses_with_a_server_is_told_before() {
        let node = |name: &str, role: &str, is_up: bool| {
            let ready = if is_up { "True" } else { "Unknown" }.to_owned();
            let (is_server, is_member) = (role != "agent", role == "etcd");
            (name.to_owned(), Node { ready, is_server, is_member, ..Node::default() })
        };
        let quorum = |down: &[&str], up, needed| {
            Some(Loss::Quorum { down: down.iter().map(|name| (*name).to_owned()).collect(), up, needed })
        };
        for (others, servers, expected) in [
            (vec![], 0, Some(Loss::Cluster(vec![]))),
            (vec![node("b", "agent", true)], 0, Some(Loss::Cluster(vec!["b".into()]))),
            // A server without an agent.
            (vec![node("b", "agent", true)], 1, None),
            (vec![node("b", "etcd", true)], 1, None),
            (vec![node("b", "etcd", false)], 0, quorum(&["b"], 0, 1)),
            (vec![node("b", "etcd", true), node("c", "etcd", true)], 2, None),
            (vec![node("b", "etcd", true), node("c", "etcd", false)], 1, quorum(&["c"], 1, 2)),
            (vec![node("b", "etcd", true), node("c", "etcd", true), node("d", "etcd", false)], 2, None),
        ] {
            let nodes = [vec![node("a", "etcd", true)], others].concat();
            assert_eq!(loss("a", &nodes, servers), expected, "{nodes:?}");
        }
        // Servers with another datastore have no quorum.
        let others = [node("a", "server", true), node("b", "server", false)];
        assert_eq!(loss("a", &others, 1), None);
    }

    #[test]
    fn every_trace_of_cilium_in_the_table_is_taken_away() {
        for row in include_str!("../../data/leftovers.csv").lines().filter(|row| row.starts_with("cilium,")) {
            let fields: Vec<&str> = row.split(',').collect();
            let item = fields[2];
            let is_taken = match fields[1] {
                // A place for one character: here a digit, which is hexadecimal too.
                "link" => is_cilium_link(&item.replace('?', "4")),
                // The owner's way back to another network.
                "file" if item.ends_with(".cilium_bak") => true,
                "file" => FILES.contains(&item),
                "pin" => FILES.contains(&item) || item == "/sys/fs/bpf/tc/globals/cilium_*",
                "rule" => item.parse().is_ok_and(|table| TABLES.contains(&table)),
                "chain" => CHAINS.iter().any(|prefix| item.starts_with(prefix)),
                kind => panic!("{kind} is not looked at"),
            };
            assert!(is_taken, "{row}");
        }
    }

    #[test]
    fn what_is_to_be_done_elsewhere_is_a_whole_command() {
        let remains = forget("pi4-2", "no network");
        assert_eq!(remains.command, "sudo k3s kubectl delete node --ignore-not-found pi4-2");
    }
}
