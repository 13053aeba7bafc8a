//! What K3s and Cilium leave on a node beside what they keep: mounts, processes, links, rules, chains.
//!
//! It is made for [`bramble leave`] to take away, in the shapes that the real ones have.

use std::{
    fs,
    io::Write,
    os::unix::{net::UnixListener, process::CommandExt},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::{Node, keep, link};

/// The program that stands beside every pod.
pub(super) const SHIM: &str = "containerd-shim-runc-v2";
const HASH: &str = "5b1f5c0ffee0a1b2c3d4e5f60718293a4b5c6d7e8f90123456789abcdef01234";
const POD: &str = "8d6f7a52-3a55-4c0e-9c85-2b5e7c1f0a99";

/// K3s' own: folders, a socket, a pod's mounts, shim and namespace, the kubelet's chains.
pub(super) fn leave_k3s(node: &Node) -> Result<()> {
    let bin = node.path(&format!("data/{HASH}/bin"));
    fs::create_dir_all(&bin)?;
    link(HASH, &node.path("data/current"))?;
    let program = std::env::current_exe()?;
    let shim = bin.join(SHIM);
    link(&program.display().to_string(), &shim)?;
    keep(&node.path("agent/etc/kubelet.conf.d/00-k3s-defaults.conf"), "kind: KubeletConfiguration\n")?;
    keep(&node.path("agent/containerd/containerd.log"), "")?;
    keep(Path::new("/var/lib/kubelet/cpu_manager_state"), "{}")?;
    let volume = format!("/var/lib/kubelet/pods/{POD}/volumes/kubernetes.io~projected/token");
    let rootfs = format!("/run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io/{POD}/rootfs");
    for folder in [&volume, &rootfs] {
        fs::create_dir_all(folder)?;
        if !fs::read_to_string("/proc/self/mounts")?.contains(folder.as_str()) {
            run("mount", &["-t", "tmpfs", "tmpfs", folder])?;
        }
    }
    let socket = Path::new("/run/k3s/containerd/containerd.sock");
    // A socket that was left by an earlier start is in the way.
    let _ = fs::remove_file(socket);
    std::mem::forget(UnixListener::bind(socket)?);
    let namespace = format!("cni-{POD}");
    if !Path::new("/run/netns").join(&namespace).exists() {
        run("ip", &["netns", "add", &namespace])?;
    }
    if !is_running(&shim) {
        let mut command = Command::new(&shim);
        command.args(["-namespace", "k8s.io", "-id", POD, "-address"]).arg(socket);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        command.spawn().context("starting a shim")?;
    }
    if !has_chain("mangle", "KUBE-KUBELET-CANARY") {
        nft("add table ip mangle; add chain ip mangle KUBE-KUBELET-CANARY; add chain ip mangle KUBE-IPTABLES-HINT
             add table ip filter; add chain ip filter KUBE-FIREWALL
             add chain ip filter OUTPUT { type filter hook output priority 0; policy accept; }
             add rule ip filter OUTPUT counter jump KUBE-FIREWALL
             add rule ip filter KUBE-FIREWALL ip saddr != 127.0.0.0/8 ip daddr 127.0.0.0/8 counter drop")?;
    }
    Ok(())
}

/// Cilium's: its links, rules, routes and chains, its files, and the CNI configuration for which the kubelet waits.
pub(super) fn leave_cilium(address: &str) -> Result<()> {
    if !Path::new("/sys/class/net/cilium_host").exists() {
        run("ip", &["link", "add", "cilium_host", "type", "veth", "peer", "name", "cilium_net"])?;
        // A kernel without VXLAN gets a link of the name.
        if run("ip", &["link", "add", "cilium_vxlan", "type", "vxlan", "external", "dstport", "8472"])
            .is_err()
        {
            run("ip", &["link", "add", "cilium_vxlan", "type", "dummy"])?;
        }
        for (name, far) in [("lxc_health", "eth1"), ("lxc0a1b2c3d4e5f", "eth0")] {
            let pod = format!("cni-{POD}");
            run("ip", &["link", "add", name, "type", "veth", "peer", "name", far, "netns", &pod])?;
        }
        for name in ["cilium_host", "cilium_net", "cilium_vxlan", "lxc_health", "lxc0a1b2c3d4e5f"] {
            run("ip", &["link", "set", name, "up"])?;
        }
        run("ip", &["address", "add", "10.42.0.77/32", "dev", "cilium_host"])?;
        run("ip", &["route", "add", "10.42.0.77", "dev", "cilium_host", "scope", "link"])?;
        run("ip", &["route", "add", "10.42.0.0/24", "via", "10.42.0.77", "dev", "cilium_host"])?;
        run("ip", &["route", "add", "local", "default", "dev", "lo", "proto", "kernel", "table", "2004"])?;
        let rule =
            ["rule", "add", "fwmark", "0x200/0xf00", "priority", "9", "lookup", "2004", "proto", "kernel"];
        run("ip", &rule)?;
        // Cilium moves the rule for local addresses behind its own.
        run("ip", &["rule", "add", "from", "all", "priority", "100", "lookup", "local", "proto", "kernel"])?;
        run("ip", &["rule", "delete", "priority", "0"])?;
    }
    if !has_chain("filter", "CILIUM_INPUT") {
        nft("add table ip filter; add chain ip filter CILIUM_INPUT; add chain ip filter CILIUM_OUTPUT
             add chain ip filter INPUT { type filter hook input priority 0; policy accept; }
             add rule ip filter INPUT counter jump CILIUM_INPUT comment \"cilium-feeder: CILIUM_INPUT\"
             add rule ip filter OUTPUT counter jump CILIUM_OUTPUT comment \"cilium-feeder: CILIUM_OUTPUT\"
             add rule ip filter CILIUM_INPUT meta mark & 0xf00 == 0x200 counter accept
             add table ip nat; add chain ip nat CILIUM_POST_nat
             add chain ip nat POSTROUTING { type nat hook postrouting priority srcnat; policy accept; }
             add rule ip nat POSTROUTING counter jump CILIUM_POST_nat comment \"cilium-feeder: CILIUM_POST_nat\"")?;
    }
    keep(Path::new("/run/cilium/state/0001/ep_config.json"), &format!("{{\"node\": {address:?}}}"))?;
    keep(Path::new("/run/cilium/cilium.pid"), "1\n")?;
    keep(Path::new("/opt/cni/bin/cilium-cni"), "")?;
    keep(Path::new("/etc/sysctl.d/99-zzz-override_cilium.conf"), "-net.ipv4.conf.lxc*.rp_filter = 0\n")?;
    let network =
        "{\"cniVersion\": \"0.3.1\", \"name\": \"cilium\", \"plugins\": [{\"type\": \"cilium-cni\"}]}\n";
    // The kubelet must not see half of it.
    keep(Path::new("/etc/cni/net.d/05-cilium.conflist.new"), network)?;
    Ok(fs::rename("/etc/cni/net.d/05-cilium.conflist.new", "/etc/cni/net.d/05-cilium.conflist")?)
}

fn is_running(program: &Path) -> bool {
    let line = program.display().to_string();
    fs::read_dir("/proc").into_iter().flatten().flatten().any(|entry| {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        command.starts_with(line.as_bytes())
    })
}

fn has_chain(table: &str, chain: &str) -> bool {
    run("nft", &["list", "chain", "ip", table, chain]).is_ok()
}

fn nft(commands: &str) -> Result<()> {
    let mut child =
        Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("starting nft")?;
    child.stdin.take().context("nft's input is piped")?.write_all(commands.as_bytes())?;
    ensure!(child.wait()?.success(), "nft refused the stand-in's chains");
    Ok(())
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("starting {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
