//! Kernel settings that must have a value, by the table `agent/data/sysctls.csv`.

use super::{Area, Finding, Requirement, Verdict};
use crate::change::{Change, SYSCTL_FILE};
use crate::config::cluster::Profile;
use crate::facts::module::{Module, Presence};
use crate::facts::sysctl::{self, Setting, TABLE};
use crate::facts::{Fact, Facts};
use crate::host::{Unreadable, Why};

pub(super) const FORWARDING: Requirement = Requirement {
    id: "forwarding",
    area: Area::Network,
    profiles: &[Profile::K3s, Profile::Cilium],
    title: "the node forwards IPv4",
    why: "pods reach nothing outside of their node",
    source: "k3s-io/k3s pkg/agent/syssetup; ricsanfre/pi-cluster ansible/roles/k3s/prereq",
    fix: "bramble sets the values, now and in its file of sysctl.d",
    catalogue: &[],
    judge: |facts, _| hold(facts, "forwarding"),
};

pub(super) const FORWARDING6: Requirement = Requirement {
    id: "forwarding6",
    area: Area::Network,
    profiles: &[Profile::Ipv6],
    title: "the node forwards IPv6",
    why: "pods reach nothing outside of their node by IPv6",
    source: "k3s-io/k3s pkg/agent/syssetup; cilium/cilium pkg/datapath/loader/base.go",
    fix: "bramble loads IPv6 and sets the values, now and in its file of sysctl.d",
    catalogue: &[],
    judge: |facts, _| {
        // On Raspberry Pi kernels IPv6 is a module, and its settings come with it.
        if facts.sysctl.value("net.ipv6.conf.all.disable_ipv6")?.is_none() {
            let ipv6 = Module { name: "ipv6", option: "CONFIG_IPV6" };
            if facts.module(ipv6)? == Presence::Absent {
                return Finding::blocked(
                    "the running kernel has no IPv6",
                    "set ipv6 = false in [cluster], or install the distribution's standard kernel and reboot",
                );
            }
            let load = Change::LoadModules { names: vec![ipv6.name.into()] };
            let settings = of("forwarding6", "set").map(|setting| set(setting, []));
            let changes: Vec<Change> = [load].into_iter().chain(settings).collect();
            return Finding::unmet("IPv6 is not loaded", changes);
        }
        hold(facts, "forwarding6")
    },
};

pub(super) const CONNTRACK: Requirement = Requirement {
    id: "conntrack",
    area: Area::Network,
    profiles: &[Profile::Iptables, Profile::Ambient],
    title: "the kernel keeps at least 131072 connections",
    why: "new connections fail at random under load: K3s tells the kubelet not to raise the limit, and with Istio \
          ambient all pod traffic passes the host's table",
    source: "k3s-io/k3s pkg/daemons/agent/agent_linux.go (conntrack-max-per-core=0)",
    fix: "bramble sets the limit, now and in its file of sysctl.d",
    catalogue: &[],
    judge: |facts, _| {
        if facts.sysctl.value("net.netfilter.nf_conntrack_max")?.is_none() {
            return Finding::not_needed("nf_conntrack is not loaded; the limit is judged once it is");
        }
        hold(facts, "conntrack")
    },
};

pub(super) const INOTIFY: Requirement = Requirement {
    id: "inotify",
    area: Area::System,
    profiles: &[Profile::K3s],
    title: "enough files can be watched",
    why: "pods fail with \"too many open files\", and journalctl -f too",
    source: "k3s-io/k3s#10020; ricsanfre/pi-cluster ansible/roles/k3s/prereq",
    fix: "bramble sets the limits, now and in its file of sysctl.d",
    catalogue: &["KERN-008"],
    judge: |facts, _| hold(facts, "inotify"),
};

pub(super) const KEYS: Requirement = Requirement {
    id: "kernel-keys",
    area: Area::System,
    profiles: &[Profile::K3s],
    title: "containers get kernel keys",
    why: "with some thousands of containers started, the next does not: \"join session keyring: disk quota exceeded\"",
    source: "k3s-io/k3s contrib/util/check-config.sh (root_maxkeys)",
    fix: "bramble sets the limit, now and in its file of sysctl.d",
    catalogue: &[],
    judge: |facts, _| hold(facts, "kernel-keys"),
};

pub(super) const KUBELET: Requirement = Requirement {
    id: "kubelet-sysctls",
    area: Area::System,
    profiles: &[Profile::ProtectKernelDefaults],
    title: "the settings that the kubelet demands are there",
    why: "with protect-kernel-defaults the kubelet refuses to start",
    source: "k3s-io/docs security/hardening-guide",
    fix: "bramble sets the values, now and in its file of sysctl.d",
    catalogue: &[],
    judge: |facts, _| hold(facts, "kubelet-sysctls"),
};

pub(super) const CILIUM: Requirement = Requirement {
    id: "cilium-sysctls",
    area: Area::Network,
    profiles: &[Profile::Cilium],
    title: "the kernel has the settings that Cilium's agent writes",
    why: "the agent exits when it cannot write one of them",
    source: "cilium/cilium pkg/datapath/loader/base.go",
    fix: "none is needed where the kernel has them: the agent writes the values; a kernel without a person \
          replaces by the distribution's",
    catalogue: &[],
    judge: |facts, _| exist(facts, "cilium-sysctls"),
};

pub(super) const BANDWIDTH: Requirement = Requirement {
    id: "bandwidth-sysctls",
    area: Area::Network,
    profiles: &[Profile::BandwidthManager],
    title: "the kernel has the settings that Cilium's bandwidth manager writes",
    why: "the bandwidth manager stays off, and pods' limits are not kept",
    source: "cilium/cilium pkg/datapath/linux/bandwidth/bandwidth.go",
    fix: "none is needed where the kernel has them: the agent writes the values; a kernel without a person \
          replaces by the distribution's",
    catalogue: &[],
    judge: |facts, _| exist(facts, "bandwidth-sysctls"),
};

pub(super) const DEAD: Requirement = Requirement {
    id: "sysctl-conf",
    area: Area::System,
    profiles: &[Profile::Node],
    title: "no kernel setting stands in a file that nothing reads",
    why: "systemd does not read /etc/sysctl.conf; Debian linked it into sysctl.d until 12, so with the upgrade to 13 \
          its settings are silently gone",
    source: "sysctl.d(5); Debian systemd 257 (no 99-sysctl.conf)",
    fix: "a person moves what is still wanted into /etc/sysctl.d: sudo mv /etc/sysctl.conf \
          /etc/sysctl.d/90-local.conf",
    catalogue: &[],
    judge: |facts, _| {
        let dead = &facts.sysctl_files.as_ref()?.dead;
        if dead.is_empty() {
            return Finding::met("/etc/sysctl.conf is empty, not there, or linked into sysctl.d");
        }
        Finding::blocked(
            format!("nothing reads {} in /etc/sysctl.conf", dead.join(", ")),
            "what is still wanted: sudo mv /etc/sysctl.conf /etc/sysctl.d/90-local.conf, then sudo sysctl --system",
        )
    },
};

fn of(requirement: &str, action: &str) -> impl Iterator<Item = &'static Setting> {
    TABLE.iter().filter(move |setting| setting.requirement == requirement && setting.action == action)
}

/// Sets it to the best that is known: of a limit, what runs or what another file says may be more than is asked for.
fn set<'a>(setting: &'static Setting, known: impl IntoIterator<Item = &'a str>) -> Change {
    let best = known.into_iter().fold(setting.value, |best, other| setting.better(best, other));
    Change::Sysctl { key: setting.name.into(), value: best.to_owned().into() }
}

fn value<'a>(facts: &'a Facts, setting: &Setting) -> Fact<&'a str> {
    let missing = || Unreadable { path: sysctl::path(setting.name), why: Why::Missing };
    facts.sysctl.value(setting.name)?.ok_or_else(missing)
}

/// Judges the settings that bramble sets: their values of now, and what files make of them at the next boot.
fn hold(facts: &Facts, requirement: &str) -> Verdict {
    let (mut held, mut wrong, mut beaten) = (Vec::new(), Vec::new(), Vec::new());
    let mut changes = Vec::new();
    for setting in of(requirement, "set") {
        let name = setting.name;
        let value = value(facts, setting)?;
        let now = setting.holds(value)?;
        let said = facts.sysctl_files.as_ref()?.said(name);
        let change = || set(setting, [value].into_iter().chain(said.map(|said| said.value)));
        let contrary = said.filter(|said| !setting.holds(said.value).unwrap_or(false));
        match contrary {
            Some(said) if said.beats(SYSCTL_FILE) => {
                beaten.push(format!("{} sets {name} = {}", said.path, said.value))
            }
            Some(said) if now => {
                wrong.push(format!("{name} is {value}, and {} at the next boot ({})", said.value, said.path));
                changes.push(change());
            }
            _ if now => held.push(format!("{name} is {value}")),
            _ => {
                wrong.push(format!("{name} is {value}"));
                changes.push(change());
            }
        }
    }
    if !beaten.is_empty() {
        return Finding::blocked(
            format!("{}, after every file of bramble's", beaten.join(", ")),
            format!("take the line out, or give the file a name that sorts before {SYSCTL_FILE}"),
        );
    }
    if changes.is_empty() { Finding::met(held.join(", ")) } else { Finding::unmet(wrong.join(", "), changes) }
}

/// Judges the settings that Cilium's agent sets: they must be there.
fn exist(facts: &Facts, requirement: &str) -> Verdict {
    let (mut held, mut later, mut missing) = (0, Vec::new(), Vec::new());
    for setting in of(requirement, "agent") {
        match facts.sysctl.value(setting.name)? {
            None => missing.push(setting.name),
            Some(value) if setting.holds(value)? => held += 1,
            Some(value) => later.push(format!("{} is {value} until Cilium starts", setting.name)),
        }
    }
    if !missing.is_empty() {
        return Finding::blocked(
            format!("the running kernel does not have {}", missing.join(", ")),
            "install the distribution's standard kernel and reboot",
        );
    }
    let there = format!("{} settings", held + later.len());
    Finding::met([vec![there], later].concat().join(", "))
}
