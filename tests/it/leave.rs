//! Leaving K3s, on a booted Debian beside a server: what was there before the join is there again, byte by byte.

use std::{fs, net::Ipv4Addr};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testbed::{
    k3s::{
        Client, Fault, Pair, Settings,
        program::{SCRIPT, Script},
        site::{PORT, Site},
    },
    machine::Machine as _,
    watch::until,
};

use crate::join::{NODE, PASSWORD, PATIENCE, Role, configure, join, site, site_of, start_by_hand};
use crate::state::{differences, is_as_before, whole};

/// A script with which a node becomes Ready.
fn ready() -> Script {
    Script { cilium: Some(500), ..Script::default() }
}

/// A machine that can join the stand-in, and its state before.
fn prepared(role: Role) -> Result<(Site, String)> {
    let mut site = site(&ready(), Settings::new(PASSWORD)?)?;
    configure(&mut site, role)?;
    let before = whole(&mut site.machine)?;
    Ok((site, before))
}

/// What `bramble leave --yes --json` with more arguments says, and its exit code.
fn leave(site: &mut Site, more: &str) -> Result<(i32, Value)> {
    let said = site.machine.run(&format!("bramble leave --yes --json {more} </dev/null"))?;
    let report = serde_json::from_str(&said.out).with_context(|| format!("{said:?}"))?;
    Ok((said.code, report))
}

/// What an agent leaves behind may be deleted by an administrator alone.
fn forget(site: &Site) -> Result<()> {
    let stand_in = site.stand_in().context("it is the stand-in")?;
    stand_in.cluster(|cluster| cluster.remove(&format!("/api/v1/nodes/{NODE}")));
    Ok(())
}

pub(crate) fn a_node_that_leaves_is_as_it_was_before_it_joined() -> Result<()> {
    for system in ["debian13", "debian12"] {
        let mut site = site_of(system, &ready(), Settings::new(PASSWORD)?)?;
        configure(&mut site, Role::Agent)?;
        // An owner's tables in which K3s and Cilium put chains, and nothing in them yet.
        site.machine.run("nft 'add table ip nat; add table ip mangle; add table ip6 nat'")?.good()?;
        let before = whole(&mut site.machine)?;
        join(&mut site)?;
        ensure!(!differences(&before, &whole(&mut site.machine)?).is_empty(), "joining has changed nothing");
        let (code, report) = leave(&mut site, "")?;
        ensure!(report["ended"] == "left" && code == 2, "{system}: {report:#}");
        // The kubelet may not delete its own Node object.
        let remains = report["remains"][0]["command"].as_str().unwrap_or_default();
        ensure!(remains.ends_with(&format!("delete node --ignore-not-found {NODE}")), "{report:#}");
        ensure!(
            site.node(NODE)?.context("it is there")?["spec"]["unschedulable"] == true,
            "it was not cordoned"
        );
        is_as_before(&mut site.machine, &before).context(system)?;
        let again = site.machine.run("bramble leave --yes")?;
        ensure!(again.code == 0 && again.out.contains("nothing to leave"), "{again:?}");
    }
    Ok(())
}

pub(crate) fn pods_are_moved_as_their_budgets_allow() -> Result<()> {
    let (mut site, before) = prepared(Role::Agent)?;
    join(&mut site)?;
    site.stand_in().context("it is the stand-in")?.cluster(|cluster| {
        let pod = |name: &str, owner: &str| {
            json!({
                "metadata": { "name": name, "namespace": "home", "uid": name,
                    "labels": { "app": name }, "ownerReferences": [{ "kind": owner, "controller": true }] },
                "spec": { "nodeName": NODE },
            })
        };
        for (name, owner) in [("web", "ReplicaSet"), ("held", "StatefulSet"), ("logs", "DaemonSet")] {
            cluster.put(&format!("/api/v1/namespaces/home/pods/{name}"), pod(name, owner));
        }
        cluster.put_budget("home", "held", 0);
    });
    let (code, report) = leave(&mut site, "--drain-limit 3")?;
    ensure!(code == 2 && report["cause"].as_str().unwrap_or_default().contains("home/held"), "{report:#}");
    ensure!(site.is_ready(NODE)?, "it was taken down although a pod could not move");
    let (status, _) = site.ask("GET", "/api/v1/namespaces/home/pods/web", "")?;
    ensure!(status == 404, "the pod without a budget was not moved");
    let (status, _) = site.ask("GET", "/api/v1/namespaces/home/pods/logs", "")?;
    ensure!(status == 200, "a DaemonSet's pod was moved");
    // What the API answers otherwise is as little a reason to end a pod: several budgets are a 500.
    let several = json!({ "kind": "Status", "message": "This pod has more than one PodDisruptionBudget" });
    let stand_in = site.stand_in().context("it is the stand-in")?;
    let eviction = "/api/v1/namespaces/home/pods/held/eviction";
    stand_in.set_fault(eviction, Some(Fault::Status(500, several.to_string())));
    let (code, report) = leave(&mut site, "--drain-limit 1")?;
    let cause = report["cause"].as_str().unwrap_or_default();
    ensure!(
        code == 2 && cause.ends_with("home/held: This pod has more than one PodDisruptionBudget"),
        "{report:#}"
    );
    ensure!(site.is_ready(NODE)?, "it was taken down although a pod could not move");
    let (_, report) = leave(&mut site, "--no-drain")?;
    ensure!(report["ended"] == "left", "{report:#}");
    is_as_before(&mut site.machine, &before)
}

/// What lies in the places that the owner chose for K3s' data, the kubelet's, and beside them.
const PLACES: &str = "find -L /var/lib/rancher/k3s /var/lib/kubelet /mnt -printf '%p %F\\n' | sort";

/// Disks are mounted where K3s and the kubelet keep their data, and then links lead to one on which other things lie.
pub(crate) fn the_owners_disks_stay_where_they_are_without_k3s_data() -> Result<()> {
    let mut site = site(&ready(), Settings::new(PASSWORD)?)?;
    configure(&mut site, Role::Agent)?;
    let mounts = "mkdir -p /var/lib/rancher/k3s /var/lib/kubelet; mount -t tmpfs disk /var/lib/rancher/k3s; \
                  mkdir /var/lib/rancher/k3s/lost+found; mount -t tmpfs pods /var/lib/kubelet";
    let links = "umount /var/lib/rancher/k3s /var/lib/kubelet; rmdir /var/lib/rancher/k3s /var/lib/kubelet; \
                 mount -t tmpfs disk /mnt; mkdir /mnt/k3s /mnt/kubelet; echo mine >/mnt/photo; \
                 ln -s /mnt/k3s /var/lib/rancher/k3s; ln -s /mnt/kubelet /var/lib/kubelet";
    for arrange in [mounts, links] {
        site.machine.run(&format!("set -e; {arrange}"))?.good()?;
        let (before, places) = (whole(&mut site.machine)?, site.machine.run(PLACES)?.good()?);
        join(&mut site)?;
        // One more below it, as for the volumes of the local-path provisioner.
        let volumes = "cd /var/lib/rancher/k3s; mkdir storage; mount -t tmpfs volumes storage; mkdir -p /var/lib/kubelet/pki";
        site.machine.run(volumes)?.good()?;
        ensure!(site.machine.run(PLACES)?.good()? != places, "K3s keeps nothing there");
        let (_, report) = leave(&mut site, "")?;
        ensure!(report["ended"] == "left", "{report:#}");
        ensure!(report["notes"].to_string().contains("/storage is unmounted"), "{report:#}");
        ensure!(site.machine.run(PLACES)?.good()? == places, "{}", site.machine.run(PLACES)?.out);
        is_as_before(&mut site.machine, &before).context(arrange)?;
        forget(&site)?;
    }
    Ok(())
}

/// A Plan of the system-upgrade controller has put another program there, and the kubelet a file of its own.
pub(crate) fn what_k3s_and_its_upgrades_have_put_here_since_goes_too() -> Result<()> {
    let (mut site, before) = prepared(Role::Agent)?;
    join(&mut site)?;
    site.machine
        .run(
            "set -e; cd /usr/local/bin; cp k3s k3s.new; echo >>k3s.new; mv k3s.new k3s; \
             mkdir -p /etc/systemd/logind.conf.d; \
             printf '[Login]\\nInhibitDelayMaxSec=30\\n' >/etc/systemd/logind.conf.d/99-kubelet.conf",
        )?
        .good()?;
    let (_, report) = leave(&mut site, "")?;
    ensure!(report["ended"] == "left" && report["stays"] == json!([]), "{report:#}");
    is_as_before(&mut site.machine, &before)
}

pub(crate) fn what_k3s_keeps_stays_where_its_owner_wants_it_and_goes_with_the_next_leave() -> Result<()> {
    let (mut site, before) = prepared(Role::Agent)?;
    join(&mut site)?;
    let (_, report) = leave(&mut site, "--keep-data")?;
    ensure!(report["ended"] == "left", "{report:#}");
    let after = differences(&before, &whole(&mut site.machine)?);
    let is_kept = |line: &String| line.starts_with("+ ") && line.contains(" var/lib/rancher");
    ensure!(!after.is_empty() && after.iter().all(is_kept), "more than the data has stayed: {after:#?}");
    let kubelet = "/var/lib/rancher/k3s/agent/client-kubelet.key";
    let kept = site.machine.run(&format!("sha256sum {kubelet}"))?.good()?;
    // Another node of the name would be refused: the operator has forgotten this one.
    forget(&site)?;
    join(&mut site)?;
    ensure!(site.is_ready(NODE)?, "it does not come back over its own data: {kept}");
    let (_, report) = leave(&mut site, "")?;
    ensure!(report["ended"] == "left", "{report:#}");
    is_as_before(&mut site.machine, &before)
}

/// Both scripts that bear the names of K3s' own: the first stops K3s and all that it started, the second takes it away.
pub(crate) fn the_scripts_of_a_join_stop_k3s_and_take_it_away() -> Result<()> {
    let (mut site, before) = prepared(Role::Agent)?;
    join(&mut site)?;
    let alive = "systemctl is-active k3s-agent; pgrep -f ^/var/lib/rancher/.*containerd-shim; ls /run/netns; \
                 grep -o -e ' /run/k3s[^ ]*' -e ' /var/lib/kubelet/pods[^ ]*' /proc/mounts; \
                 ls -d /sys/class/net/cilium_host /var/lib/cni; true";
    let seen = site.machine.run(alive)?.out;
    for word in ["active\n", "cni-", "/run/k3s", "cilium_host"] {
        ensure!(seen.contains(word), "no {word:?} before: {seen}");
    }
    site.machine.run("k3s-killall.sh")?.good()?;
    let left = site.machine.run(alive)?.out;
    ensure!(left == "inactive\n", "left: {left}");
    let kept = "ls -d /usr/local/bin/k3s /var/lib/rancher/k3s/agent /etc/rancher/k3s/config.yaml; systemctl is-enabled k3s-agent";
    ensure!(site.machine.run(kept)?.code == 0, "more than what runs has gone");
    site.machine.run("systemctl start k3s-agent")?.good()?;
    until(PATIENCE, "the node is Ready", || Ok(site.is_ready(NODE)?.then_some(())))?;
    site.machine.run("k3s-agent-uninstall.sh")?.good()?;
    ensure!(site.machine.run(alive)?.out == "inactive\n", "{}", site.machine.run(alive)?.out);
    let files = "ls /usr/local/bin /etc/systemd/system | grep -e k3s -e kubectl -e crictl -e ctr; \
                 ls -d /etc/rancher/k3s /var/lib/rancher/k3s /var/lib/kubelet /run/k3s /run/flannel; true";
    let left = site.machine.run(files)?.out;
    ensure!(left.is_empty(), "left: {left}");
    // What the join has changed besides is known to its receipt.
    let (_, report) = leave(&mut site, "")?;
    ensure!(report["ended"] == "left", "{report:#}");
    is_as_before(&mut site.machine, &before)
}

pub(crate) fn a_bundle_of_a_node_that_has_joined_tells_how_and_no_secret() -> Result<()> {
    let (mut site, _) = prepared(Role::Agent)?;
    site.machine.run("systemd-run --quiet --wait --unit=bramble-join bramble join --yes")?.good()?;
    site.machine.run("bramble bundle --output /var/tmp/bundle.tar.gz && mkdir /var/tmp/it && tar xzf /var/tmp/bundle.tar.gz -C /var/tmp/it")?.good()?;
    let told = site.machine.run("cat /var/tmp/it/*/journal/bramble-join.log")?.good()?;
    ensure!(told.contains("bed is Ready"), "{told}");
    let secret = site.machine.run("cat /etc/rancher/node/password")?.good()?;
    for word in [PASSWORD, secret.trim()] {
        let found = site.machine.run(&format!("grep -rlF -- {word} /var/tmp/it"))?;
        ensure!(found.code == 1, "{found:?}");
    }
    Ok(())
}

pub(crate) fn a_node_without_network_leaves_and_says_what_remains() -> Result<()> {
    let (mut site, before) = prepared(Role::Agent)?;
    join(&mut site)?;
    site.machine.run("systemctl stop k3s-agent")?.good()?;
    let said = site.machine.run("bramble leave --yes")?;
    ensure!(said.code == 2, "{said:?}");
    for part in ["cluster: not told", "sudo k3s kubectl delete node --ignore-not-found bed"] {
        ensure!(said.out.contains(part), "{part:?} is not in {}", said.out);
    }
    is_as_before(&mut site.machine, &before)
}

pub(crate) fn a_leave_that_is_killed_is_brought_to_its_end_by_the_next() -> Result<()> {
    let (mut site, before) = prepared(Role::Agent)?;
    for wait in ["0.3", "1", "2", "3"] {
        join(&mut site)?;
        site.machine.run(&format!("timeout --signal=KILL {wait} bramble leave --yes; true"))?;
        let (_, report) = leave(&mut site, "")?;
        ensure!(["left", "not-here"].iter().any(|end| report["ended"] == *end), "after {wait} s: {report:#}");
        is_as_before(&mut site.machine, &before).with_context(|| format!("killed after {wait} s"))?;
        // The operator's part, without which no node of the name may join again.
        forget(&site)?;
        fs::write(site.machine.path(SCRIPT), serde_json::to_string(&ready())?)?;
    }
    Ok(())
}

/// With its Node object goes its member of etcd, and with that its own API: the others say that it is gone.
pub(crate) fn a_server_takes_its_member_of_etcd_along() -> Result<()> {
    let (mut site, before) = prepared(Role::Server)?;
    site.stand_in().context("it is the stand-in")?.cluster(|cluster| {
        cluster.put_member("first", true);
        cluster.put_member("third", true);
    });
    join(&mut site)?;
    let (code, report) = leave(&mut site, "")?;
    ensure!(code == 0 && report["ended"] == "left", "{report:#}");
    let steps = report["steps"].to_string();
    ensure!(steps.contains("and so is its member of etcd"), "{report:#}");
    let members = site.stand_in().context("it is the stand-in")?.cluster(|cluster| cluster.members.clone());
    ensure!(members.is_empty() && site.node(NODE)?.is_none(), "{members:?}");
    is_as_before(&mut site.machine, &before)
}

pub(crate) fn a_server_without_which_etcd_stops_stays_unless_it_is_forced() -> Result<()> {
    let (mut site, before) = prepared(Role::Server)?;
    join(&mut site)?;
    site.stand_in().context("it is the stand-in")?.cluster(|cluster| {
        cluster.put_member("first", true);
        cluster.put_member("third", false);
    });
    let joined = whole(&mut site.machine)?;
    let (code, report) = leave(&mut site, "")?;
    let cause = report["cause"].as_str().unwrap_or_default();
    ensure!(
        code == 2 && cause.contains("third is not Ready") && cause.contains("1 would be up"),
        "{report:#}"
    );
    ensure!(report["next"].as_str().is_some_and(|next| next.contains("delete node third")), "{report:#}");
    ensure!(site.is_ready(NODE)?, "it was taken down");
    is_as_before(&mut site.machine, &joined)?;
    let (code, report) = leave(&mut site, "--force")?;
    ensure!(code == 0 && report["ended"] == "left", "{report:#}");
    is_as_before(&mut site.machine, &before)
}

pub(crate) fn the_only_server_stays_while_others_need_it() -> Result<()> {
    let (mut site, before) = prepared(Role::FirstServer)?;
    join(&mut site)?;
    // As the cluster's own administrator: it is this machine's.
    let ask = |site: &Site, method: &str, path: &str, body: &str| -> Result<String> {
        let tls = |name: &str| {
            fs::read_to_string(site.machine.path(&format!("/var/lib/rancher/k3s/server/tls/{name}")))
        };
        let admin = Pair { certificates: tls("client-admin.crt")?, key: tls("client-admin.key")? };
        let authority = tls("server-ca.crt")?;
        let answer = site.machine.namespace().within(|| {
            let client = Client::new((Ipv4Addr::LOCALHOST, PORT).into()).trusting(&authority).with(&admin)?;
            client.send(method, &format!("/api/v1/nodes{path}"), body)
        })?;
        ensure!(answer.status < 300, "{method} {path}: {answer:?}");
        Ok(answer.body)
    };
    ask(&site, "POST", "", r#"{"metadata": {"name": "pi-2"}}"#)?;
    let (code, report) = leave(&mut site, "")?;
    let cause = report["cause"].as_str().unwrap_or_default();
    ensure!(code == 2 && cause.contains("only server") && cause.contains("1 node (pi-2)"), "{report:#}");
    ensure!(ask(&site, "GET", &format!("/{NODE}"), "")?.contains("\"True\""), "it was taken down");
    ask(&site, "DELETE", "/pi-2", "")?;
    let (code, report) = leave(&mut site, "")?;
    ensure!(code == 0 && report["steps"].to_string().contains("it ends with this node"), "{report:#}");
    is_as_before(&mut site.machine, &before)
}

/// What K3s' own installer writes beside the program, in its order.
const UNINSTALL: &str = "#!/bin/sh\nset -e\nsystemctl disable k3s-agent\nsystemctl reset-failed k3s-agent || true\n\
                         rm -f /etc/systemd/system/k3s-agent.service\nsystemctl daemon-reload\n\
                         rm -rf /etc/rancher/k3s /run/k3s /run/flannel /var/lib/rancher/k3s /var/lib/kubelet\n\
                         rm -f /usr/local/bin/k3s /usr/local/bin/k3s-agent-uninstall.sh\n";

/// The packet filter's tables as iptables makes them, without a rule.
const IPTABLES: &str = "
table ip filter {
table ip mangle {
table ip nat {
\tchain INPUT {
\tchain OUTPUT {
\tchain POSTROUTING {
\t\ttype filter hook input priority filter; policy accept;
\t\ttype filter hook output priority filter; policy accept;
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t}

}
";

pub(crate) fn what_k3s_installer_has_put_here_goes_by_its_own_script() -> Result<()> {
    let mut site = site(&ready(), Settings::new(PASSWORD)?)?;
    // Nobody wrote down what the packet filter had before, so tables and chains of common names stay, empty.
    let before = whole(&mut site.machine)? + IPTABLES;
    let install = |site: &mut Site| -> Result<()> {
        start_by_hand(site)?;
        fs::write(site.machine.path("/usr/local/bin/k3s-agent-uninstall.sh"), UNINSTALL)?;
        site.machine.run("chmod 755 /usr/local/bin/k3s-agent-uninstall.sh; systemctl -q enable k3s-agent")?;
        until(PATIENCE, "the node is Ready", || Ok(site.is_ready(NODE)?.then_some(())))
    };
    install(&mut site)?;
    let (_, report) = leave(&mut site, "--keep-data")?;
    ensure!(report["ended"] == "left" && report["notes"].to_string().contains("uninstall.sh"), "{report:#}");
    let state = "systemctl is-active k3s-agent; systemctl is-enabled k3s-agent; ls -d /var/lib/rancher/k3s/agent /usr/local/bin/k3s";
    let kept = site.machine.run(state)?.out;
    ensure!(
        kept == "inactive\ndisabled\n/usr/local/bin/k3s\n/var/lib/rancher/k3s/agent\n",
        "the data was to stay, and K3s to be stopped: {kept}"
    );
    forget(&site)?;
    install(&mut site)?;
    let (_, report) = leave(&mut site, "")?;
    ensure!(report["ended"] == "left" && report["steps"].to_string().contains("uninstall.sh"), "{report:#}");
    is_as_before(&mut site.machine, &before)
}
