//! What must hold for a node, one requirement a row.
//!
//! A judge is pure: facts and the owner's decisions in, a finding out. It never reads the host. `Err` means
//! "could not tell", which is neither met nor unmet.

use std::fmt;

use crate::change::{Change, Text};
use crate::config::Config;
use crate::config::cluster::Profile;
use crate::facts::boot_file::{Argument, BootFile};
use crate::facts::{Facts, table};
use crate::host::Unreadable;

mod accept_ra;
mod address_bits;
mod address_ranges;
mod apparmor_parser;
mod architecture;
mod boot_cmdline;
mod bpf_jit;
mod bpf_programs;
mod bpffs;
mod btf;
mod cgroup_controllers;
mod cgroup_v2;
mod clock;
mod clock_wait;
mod default_route;
mod dhcpcd;
mod disk_space;
mod energy_saving;
mod features;
mod hostname;
mod ip_rules;
mod istio_cni;
mod k3s;
mod kernel_version;
mod leftover;
mod link_speed;
mod machine_id;
mod memory_cgroup;
mod memory_size;
mod mount_propagation;
mod network_manager;
mod networkd;
mod nm_cloud_setup;
mod option;
mod overlay;
mod page_size;
mod port;
mod pressure;
mod reboot;
mod resolver;
mod routes;
mod rp_filter;
mod storage;
mod swap;
mod sysctl;
mod tracefs;
mod wireless;

#[cfg(test)]
mod laws;

/// All requirements, in the order of work: what a reboot brings first, what builds on it after.
///
/// br_netfilter is not among them: with Cilium, and without kube-proxy and Flannel, no bridge carries pods.
pub const REQUIREMENTS: &[Requirement] = &[
    features::REQUIREMENT,
    kernel_version::REQUIREMENT,
    architecture::REQUIREMENT,
    page_size::REQUIREMENT,
    address_bits::REQUIREMENT,
    option::CILIUM,
    option::K3S,
    option::BRAMBLE,
    option::TREE,
    option::TUNNEL,
    option::MASQUERADE,
    option::ENVOY,
    option::WIREGUARD,
    option::IPSEC,
    option::BANDWIDTH,
    option::BBR,
    option::NETKIT,
    option::AMBIENT,
    option::LONGHORN,
    bpf_programs::REQUIREMENT,
    bpf_jit::REQUIREMENT,
    btf::REQUIREMENT,
    boot_cmdline::REQUIREMENT,
    reboot::REQUIREMENT,
    pressure::REQUIREMENT,
    cgroup_v2::REQUIREMENT,
    memory_cgroup::REQUIREMENT,
    cgroup_controllers::REQUIREMENT,
    bpffs::REQUIREMENT,
    tracefs::REQUIREMENT,
    mount_propagation::REQUIREMENT,
    overlay::REQUIREMENT,
    storage::ROOT,
    storage::DATASTORE,
    storage::USB,
    disk_space::REQUIREMENT,
    swap::REQUIREMENT,
    storage::MULTIPATH,
    storage::PACKAGES,
    default_route::REQUIREMENT,
    link_speed::REQUIREMENT,
    energy_saving::REQUIREMENT,
    routes::REQUIREMENT,
    ip_rules::REQUIREMENT,
    address_ranges::REQUIREMENT,
    wireless::POWER_SAVE,
    wireless::UPLINK,
    sysctl::FORWARDING,
    sysctl::FORWARDING6,
    accept_ra::REQUIREMENT,
    rp_filter::REQUIREMENT,
    sysctl::CONNTRACK,
    sysctl::CILIUM,
    sysctl::BANDWIDTH,
    networkd::FOREIGN,
    networkd::LINKS,
    network_manager::REQUIREMENT,
    nm_cloud_setup::REQUIREMENT,
    dhcpcd::REQUIREMENT,
    istio_cni::REQUIREMENT,
    hostname::REQUIREMENT,
    machine_id::REQUIREMENT,
    clock::REQUIREMENT,
    clock_wait::REQUIREMENT,
    memory_size::REQUIREMENT,
    sysctl::INOTIFY,
    sysctl::KEYS,
    sysctl::KUBELET,
    sysctl::DEAD,
    apparmor_parser::REQUIREMENT,
    port::FREE,
    port::FIREWALL,
    k3s::NETWORK,
    k3s::SERVER_NAME,
    k3s::NODE_ADDRESS,
    k3s::PASSWORD,
    k3s::IPTABLES,
    k3s::BACKENDS,
    resolver::REQUIREMENT,
    leftover::FLANNEL,
    leftover::KUBE_PROXY,
    leftover::NETWORK_POLICY,
    leftover::ANNOUNCERS,
    leftover::LINKERD,
    leftover::ARGOCD,
    leftover::CILIUM,
];

/// One thing that must hold.
#[derive(Debug)]
pub struct Requirement {
    /// Kebab-case, never changed; the file's name, or its family's.
    pub id: &'static str,
    /// What the requirement is about.
    pub area: Area,
    /// Who asks for it; without any of them chosen it is not needed.
    pub profiles: &'static [Profile],
    /// What holds when it is met, as a sentence without a full stop.
    pub title: &'static str,
    /// What goes wrong for the owner when it is not met.
    pub why: &'static str,
    /// Where that is known from.
    pub source: &'static str,
    /// What mends it: what bramble changes, or what a person does.
    pub fix: &'static str,
    /// Rows of the project's catalogue of known faults that it answers.
    pub catalogue: &'static [&'static str],
    /// The verdict.
    pub judge: fn(&Facts, &Config) -> Verdict,
}

impl Requirement {
    fn not_chosen(&self) -> Verdict {
        let names: Vec<&str> = self.profiles.iter().map(|profile| profile.name()).collect();
        let settings: Vec<&str> = self.profiles.iter().map(|profile| profile.setting()).collect();
        Finding::not_needed(format!(
            "only {} asks for it: {} in [cluster]",
            names.join(" or "),
            settings.join(" or ")
        ))
    }
}

/// A finding, or what could not be read to come to one.
pub type Verdict = Result<Finding, Unreadable>;

/// What a requirement is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area {
    /// The kernel and what is built into it.
    Kernel,
    /// The kernel's arguments, and reboots.
    Boot,
    /// Control groups and mounts.
    Mount,
    /// Disks and file systems.
    Storage,
    /// Routes, forwarding, network managers.
    Network,
    /// Before K3s is started.
    K3s,
    /// What others left.
    Migration,
    /// All else of the host.
    System,
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Area::Kernel => "kernel",
            Area::Boot => "boot",
            Area::Mount => "cgroups and mounts",
            Area::Storage => "storage",
            Area::Network => "network",
            Area::K3s => "k3s",
            Area::Migration => "migration",
            Area::System => "system",
        })
    }
}

/// What a judge found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// It holds.
    Met {
        /// What shows it.
        evidence: String,
    },
    /// It does not hold, and these changes would mend it.
    Unmet {
        /// What is wrong.
        what: String,
        /// At least one.
        changes: Vec<Change>,
    },
    /// It does not hold yet; nothing needs to be changed for it.
    Waiting {
        /// What it waits for.
        why: String,
    },
    /// It does not hold, and only a person can mend it.
    Blocked {
        /// What is wrong.
        what: String,
        /// What the person does next.
        next: String,
    },
    /// It does not matter on this node.
    NotNeeded {
        /// Why not.
        why: String,
    },
}

impl Finding {
    fn met(evidence: impl Into<String>) -> Verdict {
        Ok(Finding::Met { evidence: evidence.into() })
    }

    fn unmet(what: impl Into<String>, changes: impl Into<Vec<Change>>) -> Verdict {
        Ok(Finding::Unmet { what: what.into(), changes: changes.into() })
    }

    fn waiting(why: impl Into<String>) -> Verdict {
        Ok(Finding::Waiting { why: why.into() })
    }

    fn blocked(what: impl Into<String>, next: impl Into<String>) -> Verdict {
        Ok(Finding::Blocked { what: what.into(), next: next.into() })
    }

    fn not_needed(why: impl Into<String>) -> Verdict {
        Ok(Finding::NotNeeded { why: why.into() })
    }

    /// A kernel argument is lacking, with `what` as its consequence: how to get it.
    fn lacks_argument(facts: &Facts, token: impl Into<Text>, what: &str) -> Verdict {
        let token = token.into();
        match facts.argument(&token)? {
            Argument::Addable(paths) => {
                let append = |path: String| Change::AppendToken { path: path.into(), token: token.clone() };
                Finding::unmet(what, paths.into_iter().map(append).collect::<Vec<_>>())
            }
            Argument::Written(path) => {
                Finding::waiting(format!("{token} stands in {path} and counts after a reboot: sudo reboot"))
            }
            Argument::Running => Finding::blocked(
                format!("{what}, although the kernel was started with {token}"),
                "install the distribution's current kernel and reboot",
            ),
            Argument::NotMounted => Finding::blocked(
                format!("{what}, and the boot partition is not mounted"),
                "sudo mount /boot/firmware, then check again",
            ),
            Argument::Elsewhere => Finding::blocked(
                what,
                format!(
                    "add {token} to the kernel's arguments in the boot loader (with GRUB: GRUB_CMDLINE_LINUX \
                         in /etc/default/grub, then sudo update-grub) and reboot"
                ),
            ),
        }
    }
}

/// The changes that take a kernel argument out of the boot file, and out of what it is written anew from.
fn removal(file: &BootFile, token: &'static str) -> Vec<Change> {
    let remove = |path: String| Change::RemoveToken { path: path.into(), token: token.into() };
    file.places_with(token).into_iter().map(remove).collect()
}

/// The state of a requirement, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// It holds.
    Met,
    /// It does not hold; changes would mend it.
    Unmet,
    /// It does not hold yet.
    Waiting,
    /// Only a person can mend it.
    Blocked,
    /// It does not matter here.
    NotNeeded,
    /// Could not tell.
    Unknown,
}

impl State {
    /// The word that JSON carries.
    pub const fn word(self) -> &'static str {
        match self {
            State::Met => "met",
            State::Unmet => "unmet",
            State::Waiting => "waiting",
            State::Blocked => "blocked",
            State::NotNeeded => "not_needed",
            State::Unknown => "unknown",
        }
    }
}

/// A requirement with its verdict.
#[derive(Debug)]
pub struct Judged {
    /// What was judged.
    pub requirement: &'static Requirement,
    /// How.
    pub verdict: Verdict,
}

impl Judged {
    /// The verdict in one word.
    pub fn state(&self) -> State {
        match &self.verdict {
            Ok(Finding::Met { .. }) => State::Met,
            Ok(Finding::Unmet { .. }) => State::Unmet,
            Ok(Finding::Waiting { .. }) => State::Waiting,
            Ok(Finding::Blocked { .. }) => State::Blocked,
            Ok(Finding::NotNeeded { .. }) => State::NotNeeded,
            Err(_) => State::Unknown,
        }
    }

    /// What the verdict rests on, in the words for a person.
    pub fn evidence(&self) -> String {
        match &self.verdict {
            Ok(Finding::Met { evidence }) => evidence.clone(),
            Ok(Finding::Unmet { what, .. } | Finding::Blocked { what, .. }) => what.clone(),
            Ok(Finding::Waiting { why } | Finding::NotNeeded { why }) => why.clone(),
            Err(unreadable) => unreadable.to_string(),
        }
    }

    /// The changes that would mend it.
    pub fn changes(&self) -> &[Change] {
        match &self.verdict {
            Ok(Finding::Unmet { changes, .. }) => changes,
            _ => &[],
        }
    }

    /// What a person does next, where a person has to act: to mend it, or to make it readable.
    pub fn next(&self) -> Option<String> {
        match &self.verdict {
            Ok(Finding::Blocked { next, .. }) => Some(next.clone()),
            Err(unreadable) => Some(unreadable.next()),
            _ => None,
        }
    }
}

/// A row of the project's catalogue of known faults (`agent/data/catalogue.csv`).
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// For instance "BOOT-001".
    pub id: &'static str,
    /// What goes wrong, in a few words.
    pub title: &'static str,
    /// "critical", "high", "medium" or "low".
    pub severity: &'static str,
    /// Ids of the requirements that answer it, with blanks between them; empty when it belongs elsewhere.
    pub answered_by: &'static str,
    /// Where it belongs when no requirement answers it: "probe" with the ids of probes, "join", "render", "report", or
    /// "unseen".
    pub room: &'static str,
    /// Why no requirement does.
    pub reason: &'static str,
}

/// All faults of the catalogue, in its order.
pub fn faults() -> impl Iterator<Item = Fault> {
    let columns = ["id", "title", "area", "severity", "answered_by", "room", "reason"];
    table::rows(include_str!("../../data/catalogue.csv"), columns).map(
        |[id, title, _, severity, answered_by, room, reason]| Fault {
            id,
            title,
            severity,
            answered_by,
            room,
            reason,
        },
    )
}

/// The rows of the project's tables that a requirement judges by, one line each; none when it has no table.
pub fn rows_of(requirement: &Requirement) -> Vec<String> {
    use crate::facts::{leftover, port, sysctl as setting};
    let id = requirement.id;
    let mut rows = option::rows_of(id);
    rows.extend(setting::TABLE.iter().filter(|row| row.requirement == id).map(|row| match row.compare {
        "any" => format!("{}: {}", row.name, row.why),
        compare => format!("{} {compare} {}: {}", row.name, row.value, row.why),
    }));
    if ["ports", "firewall"].contains(&id) {
        let on_node = port::TABLE.iter().filter(|port| port.is_on_node());
        rows.extend(on_node.map(|port| format!("{} {}: {}", port.name(), port.profile, port.purpose)));
    }
    let sources = leftover::sources_of(id);
    let traces = leftover::TABLE.iter().filter(|trace| sources.contains(&trace.source));
    rows.extend(traces.map(|trace| match trace.remark {
        "" => format!("{} {}", trace.kind, trace.item),
        remark => format!("{} {}: {remark}", trace.kind, trace.item),
    }));
    rows
}

/// The requirement of an id, or those that answer a row of the catalogue of known faults.
pub fn named(id: &str) -> Vec<&'static Requirement> {
    let answers = |requirement: &&Requirement| {
        requirement.id == id || requirement.catalogue.iter().any(|row| row.eq_ignore_ascii_case(id))
    };
    REQUIREMENTS.iter().filter(answers).collect()
}

/// Judges the given requirements, in their order.
///
/// A shortfall that the owner accepts by configuration is not needed here; what could not be told stays so.
pub fn judge<'a>(
    requirements: impl IntoIterator<Item = &'static Requirement> + 'a,
    facts: &'a Facts,
    config: &'a Config,
) -> impl Iterator<Item = Judged> + 'a {
    requirements.into_iter().map(move |requirement| {
        let chosen = requirement.profiles.iter().any(|profile| config.cluster.chose(*profile));
        let verdict = if chosen { (requirement.judge)(facts, config) } else { requirement.not_chosen() };
        let mut judged = Judged { requirement, verdict };
        let short = matches!(judged.state(), State::Unmet | State::Blocked);
        if short && config.cluster.accept.iter().any(|id| id == requirement.id) {
            judged.verdict = Finding::not_needed(format!("accepted by configuration: {}", judged.evidence()));
        }
        judged
    })
}
