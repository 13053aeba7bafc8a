//! Kernel settings that must have a value: one table a purpose.

use super::{Area, Finding, Requirement, Verdict};
use crate::change::Change;
use crate::facts::module::{Module, Presence};
use crate::facts::{Facts, sysctl};
use crate::host::{Unreadable, Why};

/// A setting and what is asked of it.
struct Setting {
    key: &'static str,
    /// What it is set to when it does not hold.
    value: &'static str,
    /// Whether a larger number is as good.
    or_more: bool,
}

const fn is(key: &'static str, value: &'static str) -> Setting {
    Setting { key, value, or_more: false }
}

const fn at_least(key: &'static str, value: &'static str) -> Setting {
    Setting { key, value, or_more: true }
}

pub(super) const FORWARDING: Requirement = Requirement {
    id: "forwarding",
    area: Area::Network,
    title: "the node forwards IPv4",
    why: "pods reach nothing outside of their node",
    source: "k3s-io/k3s pkg/agent/syssetup; ricsanfre/pi-cluster ansible/roles/k3s/prereq",
    catalogue: &[],
    judge: |facts, _| {
        hold(facts, &[is("net.ipv4.ip_forward", "1"), is("net.ipv4.conf.default.forwarding", "1")])
    },
};

pub(super) const FORWARDING6: Requirement = Requirement {
    id: "forwarding6",
    area: Area::Network,
    title: "the node forwards IPv6",
    why: "pods reach nothing outside of their node by IPv6",
    source: "k3s-io/k3s pkg/agent/syssetup; cilium/cilium pkg/datapath/loader/base.go",
    catalogue: &[],
    judge: |facts, config| {
        if !config.cluster.ipv6 {
            return Finding::not_needed("the cluster is IPv4 alone: ipv6 is off");
        }
        let settings = [
            is("net.ipv6.conf.all.disable_ipv6", "0"),
            is("net.ipv6.conf.all.forwarding", "1"),
            is("net.ipv6.conf.default.forwarding", "1"),
        ];
        // On Raspberry Pi kernels IPv6 is a module, and its settings come with it.
        if facts.sysctl.value(settings[0].key)?.is_none() {
            let ipv6 = Module { name: "ipv6", option: "CONFIG_IPV6" };
            if facts.module(ipv6)? == Presence::Absent {
                return Finding::blocked(
                    "the running kernel has no IPv6",
                    "set ipv6 = false in [cluster], or install the distribution's standard kernel and reboot",
                );
            }
            let changes = settings.iter().map(Setting::change);
            let changes: Vec<Change> =
                [Change::LoadModules { names: vec![ipv6.name.into()] }].into_iter().chain(changes).collect();
            return Finding::unmet("IPv6 is not loaded", changes);
        }
        hold(facts, &settings)
    },
};

pub(super) const CONNTRACK: Requirement = Requirement {
    id: "conntrack",
    area: Area::Network,
    title: "the kernel keeps at least 131072 connections",
    why: "new connections fail at random under load: K3s tells the kubelet not to raise the limit, and with Istio \
          ambient all pod traffic passes the host's table",
    source: "k3s-io/k3s pkg/daemons/agent/agent_linux.go (conntrack-max-per-core=0)",
    catalogue: &[],
    judge: |facts, _| {
        let limit = at_least("net.netfilter.nf_conntrack_max", "131072");
        if facts.sysctl.value(limit.key)?.is_none() {
            return Finding::not_needed("nf_conntrack is not loaded; the limit is judged once it is");
        }
        hold(facts, &[limit])
    },
};

pub(super) const INOTIFY: Requirement = Requirement {
    id: "inotify",
    area: Area::System,
    title: "enough files can be watched",
    why: "pods fail with \"too many open files\", and journalctl -f too",
    source: "k3s-io/k3s#10020; ricsanfre/pi-cluster ansible/roles/k3s/prereq",
    catalogue: &["KERN-008"],
    judge: |facts, _| {
        hold(
            facts,
            &[
                at_least("fs.inotify.max_user_instances", "512"),
                at_least("fs.inotify.max_user_watches", "256000"),
            ],
        )
    },
};

pub(super) const KEYS: Requirement = Requirement {
    id: "kernel-keys",
    area: Area::System,
    title: "containers get kernel keys",
    why: "with some thousands of containers started, the next does not: \"join session keyring: disk quota exceeded\"",
    source: "k3s-io/k3s contrib/util/check-config.sh (root_maxkeys)",
    catalogue: &[],
    judge: |facts, _| hold(facts, &[at_least("kernel.keys.root_maxkeys", "10000")]),
};

pub(super) const KUBELET: Requirement = Requirement {
    id: "kubelet-sysctls",
    area: Area::System,
    title: "the settings that the kubelet demands are there",
    why: "with protect-kernel-defaults the kubelet refuses to start",
    source: "k3s-io/docs security/hardening-guide",
    catalogue: &[],
    judge: |facts, config| {
        if !config.cluster.protect_kernel_defaults {
            return Finding::not_needed("the kubelet sets them itself: protect_kernel_defaults is off");
        }
        hold(
            facts,
            &[
                is("vm.overcommit_memory", "1"),
                is("vm.panic_on_oom", "0"),
                is("kernel.panic", "10"),
                is("kernel.panic_on_oops", "1"),
                at_least("kernel.keys.root_maxkeys", "1000000"),
                at_least("kernel.keys.root_maxbytes", "25000000"),
            ],
        )
    },
};

impl Setting {
    fn holds(&self, value: &str) -> Result<bool, Unreadable> {
        if !self.or_more {
            return Ok(value == self.value);
        }
        let number = |text: &str| {
            let malformed = || Unreadable::malformed(sysctl::path(self.key), "a number");
            text.parse::<u64>().map_err(|_| malformed())
        };
        Ok(number(value)? >= number(self.value)?)
    }

    fn change(&self) -> Change {
        Change::Sysctl { key: self.key.into(), value: self.value.into() }
    }
}

fn hold(facts: &Facts, settings: &[Setting]) -> Verdict {
    let mut held = Vec::new();
    let mut wrong = Vec::new();
    let mut changes = Vec::new();
    for setting in settings {
        let missing = || Unreadable { path: sysctl::path(setting.key), why: Why::Missing };
        let value = facts.sysctl.value(setting.key)?.ok_or_else(missing)?;
        let stands = format!("{} is {value}", setting.key);
        if setting.holds(value)? {
            held.push(stands);
        } else {
            wrong.push(stands);
            changes.push(setting.change());
        }
    }
    if changes.is_empty() { Finding::met(held.join(", ")) } else { Finding::unmet(wrong.join(", "), changes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_holds_when_it_is_larger_and_a_switch_when_it_is_the_same() {
        assert_eq!(is("x", "1").holds("1"), Ok(true));
        assert_eq!(is("x", "1").holds("2"), Ok(false));
        assert_eq!(at_least("x", "512").holds("1024"), Ok(true));
        assert_eq!(at_least("x", "512").holds("128"), Ok(false));
        let unread = at_least("fs.inotify.max_user_watches", "1").holds("many").unwrap_err();
        assert_eq!(unread.path, "/proc/sys/fs/inotify/max_user_watches");
    }
}
