//! Which settings of Cilium, Istio and K3s will work on this kernel, which will not, and why.
//!
//! `observe` finds out what the kernel has, `judge` is pure: what was found and the owner's decisions in, one verdict a
//! setting out. On the running machine things are tried, in a network namespace that is thrown away (`host::scratch`);
//! of a captured tree, and without the rights, what the kernel's files say counts. Nothing is tried that could load a
//! module: one that is on disk and not loaded counts as there, and the evidence says so.

mod ability;
mod setting;

use std::collections::BTreeMap;

use crate::config::cluster::Cluster;
use crate::facts::kernel::Version;
use crate::facts::module::Presence;
use crate::facts::{Fact, Facts};
use crate::host::scratch::Trial;
use crate::host::{Host, Unreadable, Why};

pub use ability::{ABILITIES, Ability, Ask};
pub use setting::{Component, SETTINGS, Setting};

/// What was found out about a machine's kernel.
#[derive(Debug)]
pub struct Observed {
    /// Major and minor of the running kernel.
    pub version: Fact<Version>,
    /// Bytes in a page.
    pub page_size: Fact<u64>,
    /// Bits of the addresses that a process gets.
    pub address_bits: Fact<u32>,
    /// Whether the kernel describes its own types.
    pub btf: Fact<bool>,
    /// Which back end the machine's own `iptables` writes to; `None` without one.
    pub iptables: Fact<Option<BackEnd>>,
    /// Why nothing was tried in a scratch namespace; `None` when it was.
    pub untried: Option<Unreadable>,
    /// What there is of [`ABILITIES`], by id.
    pub abilities: BTreeMap<&'static str, Fact<Seen>>,
}

/// Whether something is there, and how that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Whether it is there.
    pub has: bool,
    /// How that is known.
    pub how: How,
    /// Where it stands written, for what was not tried and is not there.
    pub detail: String,
}

/// How something is known, from the best to the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    /// It was done, or refused.
    Tried,
    /// The kernel was built with it, or has loaded it.
    InKernel,
    /// A module for it lies on disk, and nothing needed it yet.
    OnDisk,
    /// The files of the kernel lack it.
    Files,
}

impl How {
    /// The word that JSON carries.
    pub const fn word(self) -> &'static str {
        match self {
            How::Tried => "tried",
            How::InKernel => "in_kernel",
            How::OnDisk => "on_disk",
            How::Files => "files",
        }
    }
}

/// A back end of iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackEnd {
    /// `iptables-nft`, which writes to nf_tables.
    Nft,
    /// `iptables-legacy`, which has tables of its own; kernels from 6.17 may lack them.
    Legacy,
}

impl BackEnd {
    /// The word for people and JSON.
    pub const fn word(self) -> &'static str {
        match self {
            BackEnd::Nft => "nft",
            BackEnd::Legacy => "legacy",
        }
    }
}

/// What becomes of one setting on this machine.
#[derive(Debug)]
pub struct Feature {
    /// The row that was judged.
    pub setting: &'static Setting,
    /// Whether the owner's decisions ask for it.
    pub wanted: bool,
    /// Whether it will work.
    pub fit: Fit,
}

/// Whether a setting will work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fit {
    /// It will.
    Works {
        /// What shows it.
        evidence: String,
    },
    /// It will not.
    WorksNot {
        /// What is missing, or stands against it.
        why: String,
    },
    /// Could not tell.
    Unknown(Unreadable),
}

impl Fit {
    /// The word that JSON carries.
    pub const fn word(&self) -> &'static str {
        match self {
            Fit::Works { .. } => "works",
            Fit::WorksNot { .. } => "works_not",
            Fit::Unknown(_) => "unknown",
        }
    }
}

impl Feature {
    /// The value to set on this machine: the row's if it works, what stands in for it if not, nothing if that could not
    /// be told or nothing stands in.
    pub fn choice(&self) -> Option<&'static str> {
        match self.fit {
            Fit::Works { .. } => Some(self.setting.value),
            Fit::WorksNot { .. } => self.setting.instead,
            Fit::Unknown(_) => None,
        }
    }
}

/// The feature of a setting and a value.
pub fn find<'a>(features: &'a [Feature], key: &str, value: &str) -> Option<&'a Feature> {
    features.iter().find(|feature| feature.setting.key == key && feature.setting.value == value)
}

/// Judges every setting, in the table's order.
pub fn judge(observed: &Observed, cluster: &Cluster) -> Vec<Feature> {
    SETTINGS
        .iter()
        .map(|setting| Feature {
            setting,
            wanted: (setting.wanted)(cluster) && !setting.is_accepted(cluster),
            fit: setting.fit(observed, cluster),
        })
        .collect()
}

/// Where Debian's alternatives say which iptables is meant.
const ALTERNATIVE: &str = "/etc/alternatives/iptables";

/// Finds out what the kernel has: tries what it may, and reads the rest from `facts`.
pub fn observe(host: &Host, facts: &Facts) -> Observed {
    let tried: Vec<(&'static str, Trial)> = ABILITIES
        .iter()
        .filter_map(|ability| match ability.ask {
            Ask::Scratch(trial) if loads_nothing(host, facts, ability) => Some((ability.id, trial)),
            _ => None,
        })
        .collect();
    let trials: Vec<Trial> = tried.iter().map(|(_, trial)| *trial).collect();
    let mut answers: BTreeMap<&str, Fact<bool>> =
        tried.iter().map(|(id, _)| *id).zip(host.try_out(&trials)).collect();
    let untried = match answers.values().all(|answer| answer.as_ref().is_err_and(is_refusal)) {
        true => answers.values().find_map(|answer| answer.clone().err()),
        false => None,
    };
    let abilities = ABILITIES
        .iter()
        .map(|ability| {
            let files = || from_files(host, facts, ability);
            let seen = match ability.ask {
                Ask::Scratch(_) => combine(answers.remove(ability.id), files),
                Ask::Bpf(offer) => combine(Some(host.offers(offer)), files),
                Ask::Files | Ask::Word(..) | Ask::Directory(_) => files(),
            };
            (ability.id, seen)
        })
        .collect();
    Observed {
        version: facts.kernel.version(),
        page_size: facts.address_space.page_size.clone(),
        address_bits: facts.address_space.bits.clone(),
        btf: facts.bpf.btf.clone(),
        iptables: back_end(host),
        untried,
        abilities,
    }
}

/// Whether nobody could ask, so that the kernel told nothing.
fn is_refusal(unreadable: &Unreadable) -> bool {
    matches!(unreadable.why, Why::Denied | Why::NotLive)
}

/// What was tried counts; where nobody could try, the kernel's files do. A trial that failed in a way of its own tells
/// nothing, and no file may gloss over it.
fn combine(asked: Option<Fact<bool>>, files: impl FnOnce() -> Fact<Seen>) -> Fact<Seen> {
    match asked {
        None => files(),
        Some(Ok(has)) => Ok(Seen { has, how: How::Tried, detail: String::new() }),
        Some(Err(Unreadable { why: Why::NotLive, .. })) => files(),
        // Of two reasons the one that a person can do something about.
        Some(Err(unreadable)) if unreadable.why == Why::Denied => files().or(Err(unreadable)),
        Some(Err(unreadable)) => Err(unreadable),
    }
}

/// Whether the kernel can be asked without loading a module: all that it would load is in it already, or nowhere.
fn loads_nothing(host: &Host, facts: &Facts, ability: &Ability) -> bool {
    host.present("/proc/modules") == Ok(false)
        || ability
            .modules
            .iter()
            .chain(ability.asking_loads)
            .all(|module| matches!(facts.module(*module), Ok(Presence::Ready | Presence::Absent)))
}

/// What the kernel's files say. What is known to be missing decides, even when the rest could not be read.
fn from_files(host: &Host, facts: &Facts, ability: &Ability) -> Fact<Seen> {
    let missing = |detail: String| Ok(Seen { has: false, how: How::Files, detail });
    let there = |how| Ok(Seen { has: true, how, detail: String::new() });
    if let Ask::Word(path, word) = ability.ask
        && host.text(path).is_ok_and(|text| text.split_whitespace().any(|other| other == word))
    {
        return there(How::InKernel);
    }
    let mut unread = None;
    if let Some(since) = ability.since {
        match facts.kernel.version() {
            Ok(version) if version < since => {
                return missing(format!("new in {}, this is {}", words(since), words(version)));
            }
            Ok(_) => {}
            Err(unreadable) => unread = Some(unreadable),
        }
    }
    if !ability.options.is_empty() {
        match &facts.kernel_config {
            Ok(config) => {
                let off: Vec<&str> =
                    ability.options.iter().copied().filter(|option| !config.is_set(option)).collect();
                if !off.is_empty() {
                    return missing(format!("{} not set in {}", off.join(", "), config.path));
                }
            }
            Err(unreadable) => unread = Some(unreadable.clone()),
        }
    }
    let (mut absent, mut how) = (Vec::new(), How::InKernel);
    for module in ability.modules {
        match facts.module(*module) {
            Ok(Presence::Ready) => {}
            Ok(Presence::Loadable) => how = How::OnDisk,
            Ok(Presence::Absent) => absent.push(module.name),
            Err(unreadable) => unread = Some(unreadable),
        }
    }
    if !absent.is_empty() {
        return missing(format!("no module {}", absent.join(", ")));
    }
    if let Some(unreadable) = unread {
        return Err(unreadable);
    }
    match ability.ask {
        Ask::Directory(path) if how == How::InKernel && host.present(path) == Ok(false) => {
            missing(format!("switched off, there is no {path}"))
        }
        _ => there(how),
    }
}

fn back_end(host: &Host) -> Fact<Option<BackEnd>> {
    match host.link(ALTERNATIVE) {
        Some(program) if program.ends_with("-nft") => Ok(Some(BackEnd::Nft)),
        Some(program) if program.ends_with("-legacy") => Ok(Some(BackEnd::Legacy)),
        Some(_) => Err(Unreadable::malformed(ALTERNATIVE, "a link to iptables-nft or iptables-legacy")),
        None if host.present(ALTERNATIVE)? => Err(Unreadable::malformed(ALTERNATIVE, "a link")),
        // Another distribution may have an iptables without alternatives.
        None if host.present("/usr/sbin/iptables")? => {
            Err(Unreadable { path: ALTERNATIVE.into(), why: Why::Missing })
        }
        None => Ok(None),
    }
}

fn words((major, minor): Version) -> String {
    format!("{major}.{minor}")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::config::cluster::{Masquerade, Tunnel};

    /// A kernel that has everything its release can have, as a machine with its rights sees it, except what is named.
    fn kernel(version: Version, page_size: u64, bits: u32, lacking: &[&str]) -> Observed {
        let abilities = ABILITIES.iter().map(|ability| {
            let has = ability.since.is_none_or(|since| since <= version) && !lacking.contains(&ability.id);
            (ability.id, Ok(Seen { has, how: How::Tried, detail: String::new() }))
        });
        Observed {
            version: Ok(version),
            page_size: Ok(page_size),
            address_bits: Ok(bits),
            btf: Ok(!lacking.contains(&"btf")),
            iptables: Ok(Some(BackEnd::Nft)),
            untried: None,
            abilities: abilities.collect(),
        }
    }

    fn captured(name: &str) -> Observed {
        let tree = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/hosts").join(name);
        let host = Host::tree(&tree).unwrap();
        observe(&host, &Facts::observe(&host))
    }

    /// The word for a setting's value, and the value to set.
    fn verdict(features: &[Feature], key: &str, value: &str) -> (&'static str, Option<&'static str>) {
        let feature = find(features, key, value).unwrap_or_else(|| panic!("{key}: {value} is in the table"));
        (feature.fit.word(), feature.choice())
    }

    fn why(features: &[Feature], key: &str, value: &str) -> String {
        match &find(features, key, value).unwrap().fit {
            Fit::Works { evidence } => evidence.clone(),
            Fit::WorksNot { why } => why.clone(),
            Fit::Unknown(unreadable) => unreadable.to_string(),
        }
    }

    const WORKS: &str = "works";
    const NOT: &str = "works_not";
    const UNKNOWN: &str = "unknown";

    #[test]
    fn a_pi_5_with_16_kib_pages_runs_envoy_and_fears_for_jemalloc() {
        let features = judge(&captured("pi5-bookworm-16k"), &Cluster::default());
        for (key, value, word, choice) in [
            ("Cilium", "1.18 to 1.20", WORKS, Some("1.18 to 1.20")),
            ("kubeProxyReplacement", "true", WORKS, Some("true")),
            ("envoy.enabled", "true", WORKS, Some("true")),
            ("tunnelProtocol", "vxlan", WORKS, Some("vxlan")),
            ("tunnelProtocol", "geneve", NOT, Some("vxlan")),
            ("loadBalancer.dsrDispatch", "geneve", NOT, Some("opt")),
            ("encryption.type", "wireguard", WORKS, Some("wireguard")),
            ("encryption.type", "ipsec", WORKS, Some("ipsec")),
            ("ztunnel", "1.31", UNKNOWN, None),
            ("images with a jemalloc for 4 KiB pages", "on this node", NOT, Some("on other nodes")),
            ("tools that relocate by BTF (CO-RE)", "on this node", NOT, Some("on other nodes")),
        ] {
            assert_eq!(
                verdict(&features, key, value),
                (word, choice),
                "{key}: {}",
                why(&features, key, value)
            );
        }
    }

    #[test]
    fn a_pi_4_with_39_bits_runs_no_envoy_and_any_jemalloc() {
        let features = judge(&captured("pi4-trixie-4k"), &Cluster::default());
        for (key, value, word, choice) in [
            ("envoy.enabled", "true", NOT, Some("false")),
            ("l7Proxy", "true", NOT, Some("false")),
            ("gateways and waypoints", "on this node", NOT, Some("on other nodes")),
            ("kubeProxyReplacement", "true", WORKS, Some("true")),
            ("ztunnel", "1.31", WORKS, Some("1.31")),
            ("images with a jemalloc for 4 KiB pages", "on this node", WORKS, Some("on this node")),
        ] {
            assert_eq!(
                verdict(&features, key, value),
                (word, choice),
                "{key}: {}",
                why(&features, key, value)
            );
        }
        assert!(why(&features, "envoy.enabled", "true").contains("39 address bits"));
        assert!(why(&features, "tunnelProtocol", "vxlan").starts_with("on disk, not loaded: "));
    }

    #[test]
    fn a_raspberry_pi_kernel_6_18_has_nftables_only() {
        let lacking = [
            "btf",
            "geneve",
            "iptables-legacy-filter",
            "iptables-legacy-nat",
            "iptables-legacy-mangle",
            "iptables-legacy-raw",
            "ip6tables-legacy-nat",
        ];
        let mut observed = kernel((6, 18), 16384, 47, &lacking);
        let features = judge(&observed, &Cluster::default());
        for (key, value, word, choice) in [
            ("iptables", "nft", WORKS, Some("nft")),
            ("iptables", "legacy", NOT, Some("nft")),
            ("enableIPv4Masquerade", "true", WORKS, Some("true")),
            ("global.nativeNftables", "false", WORKS, Some("false")),
            ("global.nativeNftables", "true", WORKS, Some("true")),
            ("envoy.enabled", "true", WORKS, Some("true")),
            ("ipv6.enabled", "true", WORKS, Some("true")),
            ("prefer-bundled-bin", "false", WORKS, Some("false")),
        ] {
            assert_eq!(verdict(&features, key, value), (word, choice), "{key}");
        }
        observed.iptables = Ok(Some(BackEnd::Legacy));
        let features = judge(&observed, &Cluster::default());
        assert_eq!(verdict(&features, "prefer-bundled-bin", "false"), (NOT, Some("true")));
        assert!(why(&features, "prefer-bundled-bin", "false").contains("iptables-legacy"));
    }

    #[test]
    fn debian_s_6_1_has_neither_netkit_nor_tcx() {
        let cluster = Cluster { ambient: false, masquerade: Masquerade::Bpf, ..Cluster::default() };
        let features = judge(&captured("debian-12-amd64"), &cluster);
        for (key, value, word, choice) in [
            ("bpf.datapathMode", "netkit", NOT, Some("veth")),
            ("bpf.datapathMode", "veth", WORKS, Some("veth")),
            ("bpf.enableTCX", "true", NOT, Some("false")),
            ("probe.attach of bramble", "tcx", NOT, Some("tc")),
            ("tunnelProtocol", "geneve", WORKS, Some("geneve")),
            ("bpf.hostLegacyRouting", "false", WORKS, Some("false")),
            ("bandwidthManager.bbr", "true", WORKS, Some("true")),
        ] {
            assert_eq!(
                verdict(&features, key, value),
                (word, choice),
                "{key}: {}",
                why(&features, key, value)
            );
        }
        assert_eq!(why(&features, "bpf.enableTCX", "true"), "tcx: new in 6.6, this is 6.1");
    }

    #[test]
    fn what_could_not_be_told_is_never_fine_and_what_is_known_still_decides() {
        let denied = || Unreadable { path: "bpf(2)".into(), why: Why::Denied };
        let mut observed = kernel((6, 12), 4096, 39, &[]);
        for seen in observed.abilities.values_mut() {
            *seen = Err(denied());
        }
        let features = judge(&observed, &Cluster::default());
        for feature in &features {
            let Setting { key, value, .. } = feature.setting;
            assert!(
                !matches!(feature.fit, Fit::Works { .. })
                    || [
                        "ztunnel",
                        "images with a jemalloc for 4 KiB pages",
                        "tools that relocate by BTF (CO-RE)"
                    ]
                    .contains(key),
                "{key}: {value}"
            );
        }
        assert_eq!(verdict(&features, "kubeProxyReplacement", "true"), (UNKNOWN, None));
        assert_eq!(verdict(&features, "envoy.enabled", "true"), (NOT, Some("false")));
    }

    #[test]
    fn istio_ambient_forbids_bpf_masquerading_and_what_builds_on_it() {
        let observed = kernel((6, 12), 4096, 48, &[]);
        let building = [
            ("bpf.hostLegacyRouting", "false"),
            ("bpf.datapathMode", "netkit"),
            ("bandwidthManager.bbr", "true"),
        ];
        let ambient = Cluster { masquerade: Masquerade::Bpf, ..Cluster::default() };
        let iptables = Cluster { ambient: false, ..Cluster::default() };
        let bpf = Cluster { ambient: false, masquerade: Masquerade::Bpf, ..Cluster::default() };
        for (key, value) in building {
            assert_eq!(verdict(&judge(&observed, &ambient), key, value).0, NOT, "{key}");
            assert_eq!(verdict(&judge(&observed, &iptables), key, value).0, NOT, "{key}");
            assert_eq!(verdict(&judge(&observed, &bpf), key, value).0, WORKS, "{key}");
        }
        assert_eq!(verdict(&judge(&observed, &ambient), "bpf.masquerade", "true"), (NOT, Some("false")));
        assert!(find(&judge(&observed, &ambient), "bpf.masquerade", "true").unwrap().wanted);
        assert_eq!(verdict(&judge(&observed, &bpf), "bpf.masquerade", "true"), (WORKS, Some("true")));
    }

    #[test]
    fn what_is_wanted_follows_the_owner_and_what_is_accepted_is_not() {
        let observed = kernel((6, 12), 4096, 39, &["geneve"]);
        let wanted = |cluster: &Cluster, key: &str, value: &str| {
            find(&judge(&observed, cluster), key, value).unwrap().wanted
        };
        let geneve = Cluster { tunnel: Tunnel::Geneve, ..Cluster::default() };
        assert!(wanted(&geneve, "tunnelProtocol", "geneve") && !wanted(&geneve, "tunnelProtocol", "vxlan"));
        assert!(wanted(&Cluster::default(), "envoy.enabled", "true"));
        let accepting = Cluster { accept: vec!["address-bits".into()], ..Cluster::default() };
        assert!(!wanted(&accepting, "envoy.enabled", "true"));
        let elsewhere = Cluster { cilium: false, ambient: false, ..Cluster::default() };
        assert!(judge(&observed, &elsewhere).iter().all(|feature| !feature.wanted));
    }

    #[test]
    fn what_was_tried_counts_and_a_trial_that_failed_is_not_glossed_over() {
        let files = || Ok(Seen { has: true, how: How::InKernel, detail: String::new() });
        let failed = |why| Unreadable { path: "x".into(), why };
        assert!(!combine(Some(Ok(false)), files).unwrap().has);
        assert_eq!(combine(Some(Ok(true)), files).unwrap().how, How::Tried);
        assert_eq!(combine(Some(Err(failed(Why::Denied))), files), files());
        assert_eq!(combine(None, files), files());
        let odd = failed(Why::Failed("no buffer space available".into()));
        assert_eq!(combine(Some(Err(odd.clone())), files), Err(odd));
        let denied = failed(Why::Denied);
        assert_eq!(combine(Some(Err(denied.clone())), || Err(failed(Why::Missing))), Err(denied));
    }

    #[test]
    fn every_need_is_observed_and_every_ability_is_needed() {
        let needed: HashSet<&str> =
            SETTINGS.iter().flat_map(Setting::needed).map(|ability| ability.id).collect();
        let observed: HashSet<&str> = ABILITIES.iter().map(|ability| ability.id).collect();
        assert_eq!(needed, observed);
    }

    #[test]
    fn a_setting_s_value_stands_once_and_never_for_itself() {
        let values: HashSet<(&str, &str)> =
            SETTINGS.iter().map(|setting| (setting.key, setting.value)).collect();
        assert_eq!(values.len(), SETTINGS.len());
        for Setting { key, value, instead, otherwise, source, needs, .. } in SETTINGS {
            assert!(
                !key.is_empty() && !otherwise.is_empty() && !source.is_empty() && !needs.is_empty(),
                "{key}"
            );
            assert_ne!(Some(*value), *instead, "{key}");
        }
    }
}
