//! The unit and the scripts that K3s' own installer would have left, under the same names: system-upgrade plans replace
//! the program below them, and who knows K3s finds its way to remove it.
//!
//! Follows k3s-io/k3s install.sh: what the unit says, which names the scripts have, and what they take away.

use crate::config::k3s::Role;
use crate::k3s::path;

/// A file of the installer's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// Where.
    pub path: String,
    /// What stands in it.
    pub content: String,
    /// Its permissions.
    pub mode: u32,
}

/// What stands in each of these files that bramble may replace.
pub const MARK: &str = "Written by bramble join";

/// Commands that the program answers to when it is called by their names.
pub const LINKS: [&str; 3] = ["kubectl", "crictl", "ctr"];

/// The unit, its environment and both scripts.
pub fn files(role: &Role) -> Vec<Installed> {
    let (name, verb) = if role.is_server() { ("k3s", "server") } else { ("k3s-agent", "agent") };
    let file = |path: String, mode, content| Installed { path, content, mode };
    vec![
        file(format!("/etc/systemd/system/{name}.service"), 0o644, unit(name, verb)),
        // The owner's proxies and K3S_ variables; a secret may stand in it.
        file(format!("/etc/systemd/system/{name}.service.env"), 0o600, String::new()),
        file("/usr/local/bin/k3s-killall.sh".into(), 0o755, KILLALL.into()),
        file(uninstall_path(name), 0o755, uninstall(name)),
    ]
}

fn uninstall_path(name: &str) -> String {
    format!("/usr/local/bin/{name}-uninstall.sh")
}

/// It waits for the network alone: the clock is waited for where `bramble apply` says so, in a drop-in.
fn unit(name: &str, verb: &str) -> String {
    format!(
        "# Written by bramble join, as K3s' installer writes it.\n\
         [Unit]\n\
         Description=Lightweight Kubernetes\n\
         Documentation=https://k3s.io\n\
         Wants=network-online.target\n\
         After=network-online.target\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n\
         \n\
         [Service]\n\
         Type=notify\n\
         EnvironmentFile=-/etc/default/%N\n\
         EnvironmentFile=-/etc/sysconfig/%N\n\
         EnvironmentFile=-/etc/systemd/system/{name}.service.env\n\
         KillMode=process\n\
         Delegate=yes\n\
         User=root\n\
         LimitNOFILE=1048576\n\
         LimitNPROC=infinity\n\
         LimitCORE=infinity\n\
         TasksMax=infinity\n\
         TimeoutStartSec=0\n\
         Restart=always\n\
         RestartSec=5s\n\
         ExecStartPre=-/sbin/modprobe br_netfilter\n\
         ExecStartPre=-/sbin/modprobe overlay\n\
         ExecStart={} {verb}\n",
        path::BINARY
    )
}

/// Cilium's links go first: with them up and nobody to mend its routes, the host falls off the network.
const KILLALL: &str = r#"#!/bin/sh
# Written by bramble join. Stops K3s and all that it started on this node; what is kept on disk stays.
[ "$(id -u)" -eq 0 ] || exec sudo -- "$0" "$@"

for link in cilium_host cilium_net cilium_vxlan; do
    ip link delete "$link" 2>/dev/null
done

for unit in k3s k3s-agent; do
    systemctl stop "$unit.service" 2>/dev/null
done

# A pod's processes stand below the shim that containerd started for it.
family() {
    for child in $(pgrep -P "$1"); do
        family "$child"
        echo "$child"
    done
}
for shim in $(pgrep -f '/var/lib/rancher/k3s/data/[^/]*/bin/containerd-shim'); do
    kill -9 $(family "$shim") "$shim" 2>/dev/null
done

for below in /run/k3s /var/lib/kubelet/pods /var/lib/kubelet/plugins /run/netns/cni-; do
    awk -v below="$below" 'index($2, below) == 1 { print $2 }' /proc/self/mounts | sort -r | while read -r mount; do
        umount -f "$mount" && rm -rf --one-file-system "$mount"
    done
done

ip netns list 2>/dev/null | awk '/^cni-/ { print $1 }' | while read -r name; do
    ip netns delete "$name"
done
ip -o link show 2>/dev/null | awk -F'[ :@]+' '/master cni0/ { print $2 }' | while read -r link; do
    ip link delete "$link"
done
for link in cni0 flannel.1 flannel-v6.1 kube-ipvs0 flannel-wg flannel-wg-v6; do
    ip link delete "$link" 2>/dev/null
done
rm -rf /var/lib/cni

for family in iptables ip6tables; do
    command -v "$family-save" >/dev/null || continue
    "$family-save" | grep -vi -e kube- -e cni- -e cilium_ -e flannel | "$family-restore"
done
exit 0
"#;

/// The node's password in `/etc/rancher/node` stays, as K3s' own script leaves it.
fn uninstall(name: &str) -> String {
    format!(
        r#"#!/bin/sh
# Written by bramble join. Takes K3s off this node, with all that it keeps. To go on the cluster's side first (drain,
# Node object, etcd member) and to put back what was here before: sudo bramble leave
[ "$(id -u)" -eq 0 ] || exec sudo -- "$0" "$@"

/usr/local/bin/k3s-killall.sh
systemctl disable {name}.service
rm -f /etc/systemd/system/{name}.service /etc/systemd/system/{name}.service.env
systemctl daemon-reload
systemctl reset-failed {name}.service 2>/dev/null

for command in kubectl crictl ctr; do
    [ "$(readlink "/usr/local/bin/$command")" = k3s ] && rm -f "/usr/local/bin/$command"
done
rm -rf /etc/rancher/k3s /run/k3s /run/flannel /var/lib/rancher/k3s /var/lib/kubelet
rm -f /usr/local/bin/k3s /usr/local/bin/k3s-killall.sh {}
"#,
        uninstall_path(name)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::http::Url;

    #[test]
    fn names_are_those_of_k3s_own_installer() {
        let paths = |role: &Role| files(role).into_iter().map(|file| file.path).collect::<Vec<_>>();
        assert_eq!(
            paths(&Role::First),
            [
                "/etc/systemd/system/k3s.service",
                "/etc/systemd/system/k3s.service.env",
                "/usr/local/bin/k3s-killall.sh",
                "/usr/local/bin/k3s-uninstall.sh"
            ]
        );
        let agent = Role::Agent(Url::parse("https://x:1").unwrap());
        assert!(paths(&agent).contains(&"/usr/local/bin/k3s-agent-uninstall.sh".to_owned()));
        let unit = &files(&agent)[0].content;
        assert!(unit.ends_with("ExecStart=/usr/local/bin/k3s agent\n"), "{unit}");
        assert!(unit.contains("EnvironmentFile=-/etc/systemd/system/k3s-agent.service.env\n"), "{unit}");
        assert_eq!(files(&agent)[1].mode, 0o600);
    }

    #[test]
    fn the_scripts_are_ones_that_a_shell_reads() {
        use std::io::Write;
        use std::process::{Command, Stdio};
        for script in files(&Role::First).into_iter().filter(|file| file.mode == 0o755) {
            #[allow(clippy::disallowed_methods, reason = "a test asks the shell")]
            let mut shell = Command::new("sh").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
            shell.stdin.take().unwrap().write_all(script.content.as_bytes()).unwrap();
            assert!(shell.wait().unwrap().success(), "{}", script.path);
        }
    }
}
