//! The settings that depend on the kernel: one row a value, with what it needs.

use std::fmt;

use super::ability::{self, Ability};
use super::{BackEnd, Fit, How, Observed, Seen, words};
use crate::config::cluster::{Cluster, Profile, Tunnel};
use crate::facts::Fact;
use crate::facts::kernel::Version;
use crate::host::{Unreadable, Why};

/// One value of one setting.
#[derive(Debug)]
pub struct Setting {
    /// Whose setting it is.
    pub component: Component,
    /// The Helm key or the flag, where there is one.
    pub key: &'static str,
    /// The value whose working is judged.
    pub value: &'static str,
    /// What stands in for the value where it does not work.
    pub instead: Option<&'static str>,
    /// What the owner loses where it does not work.
    pub otherwise: &'static str,
    /// Where that is known from.
    pub source: &'static str,
    /// Whether the owner's decisions ask for it.
    pub wanted: fn(&Cluster) -> bool,
    /// The requirement whose acceptance by the owner (`accept` in `[cluster]`) covers this row too.
    pub accepted_as: Option<&'static str>,
    pub(super) needs: &'static [Need],
}

/// Whose setting it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Component {
    /// Values of Cilium's chart.
    Cilium,
    /// Values of Istio's charts, and where its parts can run.
    Istio,
    /// Flags of K3s, and the packet filter below it.
    K3s,
    /// All else that runs on a node.
    Other,
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Component::Cilium => "Cilium",
            Component::Istio => "Istio",
            Component::K3s => "K3s",
            Component::Other => "other programs",
        })
    }
}

/// One thing that a setting needs.
#[derive(Debug)]
pub(super) enum Need {
    /// The kernel has it.
    Has(&'static Ability),
    /// The kernel has all of one of these.
    Either(&'static [&'static Ability], &'static [&'static Ability]),
    /// The kernel is at least this.
    Kernel(Version),
    /// Anything else.
    Rule(fn(&Observed, &Cluster) -> Fact<Answer>),
}

/// Whether a need is met.
pub(super) enum Answer {
    Yes(Vec<(How, String)>),
    No(String),
}

use Need::{Either, Has, Kernel, Rule};

impl Setting {
    pub(super) fn is_accepted(&self, cluster: &Cluster) -> bool {
        self.accepted_as.is_some_and(|id| cluster.accept.iter().any(|accepted| accepted == id))
    }

    /// The abilities that its needs name.
    #[cfg(test)]
    pub(super) fn needed(&self) -> impl Iterator<Item = &'static Ability> + use<> {
        self.needs.iter().flat_map(|need| match need {
            Has(ability) => vec![*ability],
            Either(first, second) => [*first, *second].concat(),
            Kernel(_) | Rule(_) => vec![],
        })
    }

    /// All needs must be met; one that is known not to be decides, even when another could not be told.
    pub(super) fn fit(&self, observed: &Observed, cluster: &Cluster) -> Fit {
        let mut evidence: Vec<(How, String)> = Vec::new();
        let mut lacking: Vec<String> = Vec::new();
        let mut unread = None;
        for need in self.needs {
            match need.answer(observed, cluster) {
                Ok(Answer::Yes(shown)) => evidence.extend(shown),
                Ok(Answer::No(why)) => lacking.push(why),
                Err(unreadable) => unread = unread.or(Some(unreadable)),
            }
        }
        match unread {
            _ if !lacking.is_empty() => Fit::WorksNot { why: lacking.join("; ") },
            Some(unreadable) => Fit::Unknown(unreadable),
            None => Fit::Works { evidence: summed_up(&evidence) },
        }
    }
}

/// What is known in the same way stands together.
fn summed_up(evidence: &[(How, String)]) -> String {
    let ways = [
        (How::Tried, "tried: "),
        (How::InKernel, "in the kernel: "),
        (How::OnDisk, "on disk, not loaded: "),
        (How::Files, ""),
    ];
    let parts: Vec<String> = ways
        .iter()
        .filter_map(|(way, words)| {
            let mut things: Vec<&str> = Vec::new();
            for (_, thing) in evidence.iter().filter(|(how, _)| how == way) {
                if !things.contains(&thing.as_str()) {
                    things.push(thing);
                }
            }
            (!things.is_empty()).then(|| format!("{words}{}", things.join(", ")))
        })
        .collect();
    parts.join("; ")
}

impl Need {
    fn answer(&self, observed: &Observed, cluster: &Cluster) -> Fact<Answer> {
        match self {
            Has(ability) => has(observed, ability),
            Either(first, second) => either(observed, first, second),
            Kernel(floor) => {
                let version = *observed.version.as_ref()?;
                Ok(if version >= *floor {
                    Answer::Yes(vec![(How::Files, format!("kernel {}", words(version)))])
                } else {
                    Answer::No(format!("needs kernel {}, this is {}", words(*floor), words(version)))
                })
            }
            Rule(rule) => rule(observed, cluster),
        }
    }
}

fn has(observed: &Observed, ability: &Ability) -> Fact<Answer> {
    let seen = match observed.abilities.get(ability.id) {
        Some(seen) => seen.as_ref()?,
        None => {
            return Err(Unreadable { path: ability.title.into(), why: Why::Failed("not observed".into()) });
        }
    };
    Ok(match seen {
        Seen { has: true, how, .. } => Answer::Yes(vec![(*how, ability.title.into())]),
        Seen { how: How::Tried, .. } => Answer::No(format!("the kernel refuses {}", ability.title)),
        Seen { detail, .. } => Answer::No(format!("{}: {detail}", ability.title)),
    })
}

fn all(observed: &Observed, abilities: &[&Ability]) -> Fact<Answer> {
    let mut shown = Vec::new();
    let mut unread = None;
    for ability in abilities {
        match has(observed, ability) {
            Ok(Answer::Yes(more)) => shown.extend(more),
            Ok(no @ Answer::No(_)) => return Ok(no),
            Err(unreadable) => unread = unread.or(Some(unreadable)),
        }
    }
    unread.map_or(Ok(Answer::Yes(shown)), Err)
}

fn either(observed: &Observed, first: &[&Ability], second: &[&Ability]) -> Fact<Answer> {
    match (all(observed, first), all(observed, second)) {
        (Ok(yes @ Answer::Yes(_)), _) | (_, Ok(yes @ Answer::Yes(_))) => Ok(yes),
        (Ok(Answer::No(one)), Ok(Answer::No(other))) => Ok(Answer::No(format!("{one}, and {other}"))),
        (Err(unreadable), _) | (_, Err(unreadable)) => Err(unreadable),
    }
}

/// What tcmalloc's layout does not fit into.
const TOO_FEW_BITS: u32 = 39;

fn room_for_envoy(observed: &Observed, _: &Cluster) -> Fact<Answer> {
    let bits = *observed.address_bits.as_ref()?;
    Ok(if bits > TOO_FEW_BITS {
        Answer::Yes(vec![(How::Files, format!("{bits} address bits"))])
    } else {
        Answer::No(format!("{bits} address bits: Envoy aborts with \"MmapAligned() failed\""))
    })
}

fn small_pages(observed: &Observed, _: &Cluster) -> Fact<Answer> {
    let size = *observed.page_size.as_ref()?;
    Ok(if size == 4096 {
        Answer::Yes(vec![(How::Files, "4 KiB pages".into())])
    } else {
        Answer::No(format!("{} KiB pages: they abort with \"Unsupported system page size\"", size / 1024))
    })
}

/// ztunnel 1.31 brings a jemalloc that was built for its build host's pages; nobody has measured it on larger ones.
fn pages_for_ztunnel(observed: &Observed, cluster: &Cluster) -> Fact<Answer> {
    match small_pages(observed, cluster)? {
        Answer::No(_) => Err(Unreadable {
            path: format!("jemalloc of ztunnel 1.31 on {} KiB pages", observed.page_size.as_ref()? / 1024),
            why: Why::Failed("nobody has measured it; 1.30 has no jemalloc".into()),
        }),
        yes => Ok(yes),
    }
}

fn without_ambient(_: &Observed, cluster: &Cluster) -> Fact<Answer> {
    Ok(if cluster.chose(Profile::Ambient) {
        Answer::No("Istio ambient does not work with BPF masquerading".into())
    } else {
        Answer::Yes(vec![])
    })
}

/// What builds on BPF masquerading falls with it.
fn masquerades_by_bpf(observed: &Observed, cluster: &Cluster) -> Fact<Answer> {
    Ok(match without_ambient(observed, cluster)? {
        Answer::No(why) => Answer::No(format!("needs BPF masquerading: {why}")),
        Answer::Yes(_) if cluster.chose(Profile::Iptables) => {
            Answer::No("needs BPF masquerading: masquerade is \"iptables\" in [cluster]".into())
        }
        yes => yes,
    })
}

fn describes_types(observed: &Observed, _: &Cluster) -> Fact<Answer> {
    Ok(if *observed.btf.as_ref()? {
        Answer::Yes(vec![(How::Files, "/sys/kernel/btf/vmlinux".into())])
    } else {
        Answer::No("no /sys/kernel/btf/vmlinux".into())
    })
}

/// K3s takes the machine's iptables where there is one.
fn iptables_of_the_machine(observed: &Observed, _: &Cluster) -> Fact<Answer> {
    match *observed.iptables.as_ref()? {
        None => Ok(Answer::Yes(vec![(How::Files, "no iptables on the machine: K3s brings its own".into())])),
        Some(back_end) => Ok(match all(observed, tables_of(back_end))? {
            Answer::Yes(shown) => Answer::Yes(shown),
            Answer::No(why) => {
                Answer::No(format!("the machine's iptables is iptables-{}, and {why}", back_end.word()))
            }
        }),
    }
}

const LEGACY: &[&Ability] =
    &[&ability::LEGACY_NAT, &ability::LEGACY_FILTER, &ability::LEGACY_MANGLE, &ability::LEGACY_RAW];
const NFT: &[&Ability] = &[&ability::NFT, &ability::NFT_COMPAT];

const fn tables_of(back_end: BackEnd) -> &'static [&'static Ability] {
    match back_end {
        BackEnd::Nft => NFT,
        BackEnd::Legacy => LEGACY,
    }
}

const NEVER: fn(&Cluster) -> bool = |_| false;
const CHOSEN: fn(&Cluster) -> bool = |cluster| cluster.chose(Profile::Cilium);
const ENVOY: fn(&Cluster) -> bool = |cluster| cluster.chose(Profile::Envoy);
const AMBIENT: fn(&Cluster) -> bool = |cluster| cluster.chose(Profile::Ambient);
const BPF_MASQUERADE: fn(&Cluster) -> bool = |cluster| CHOSEN(cluster) && !cluster.chose(Profile::Iptables);

/// What most rows of Cilium share.
const CILIUM: Setting = Setting {
    component: Component::Cilium,
    key: "",
    value: "true",
    instead: Some("false"),
    otherwise: "",
    source: "cilium/cilium Documentation/operations/system_requirements.rst",
    wanted: NEVER,
    accepted_as: None,
    needs: &[],
};
const ISTIO: Setting = Setting {
    component: Component::Istio,
    source: "istio/istio.io docs/ops/deployment/platform-requirements",
    wanted: AMBIENT,
    ..CILIUM
};
const OTHER: Setting = Setting { component: Component::Other, ..CILIUM };

const TUNING: &str = "cilium/cilium Documentation/operations/performance/tuning.rst";

/// BPF host routing, and what builds on it.
const HOST_ROUTING: &[Need] =
    &[Rule(masquerades_by_bpf), Kernel((5, 10)), Has(&ability::REDIRECT_NEIGH), Has(&ability::REDIRECT_PEER)];
const PROXY: &[Need] = &[
    Rule(room_for_envoy),
    Has(&ability::XT_PROXY),
    Either(NFT, &[&ability::LEGACY_MANGLE, &ability::LEGACY_RAW]),
];

/// All settings that are judged, by component.
pub const SETTINGS: &[Setting] = &[
    Setting {
        key: "Cilium",
        value: "1.18 to 1.20",
        instead: None,
        otherwise: "the agent exits at its start, and no pod gets a network",
        wanted: CHOSEN,
        needs: &[
            Kernel((5, 10)),
            Has(&ability::CILIUM_BASE),
            Has(&ability::FIB_RULES),
            Has(&ability::SCHED_CLS),
            Has(&ability::CLSACT),
            Has(&ability::CLS_BPF),
            Has(&ability::FIB_LOOKUP),
            Has(&ability::MAP_ARRAY),
            Has(&ability::MAP_HASH),
            Has(&ability::MAP_PERCPU_ARRAY),
            Has(&ability::MAP_PERCPU_HASH),
            Has(&ability::MAP_LRU_HASH),
            Has(&ability::MAP_LPM_TRIE),
            Has(&ability::MAP_PROG_ARRAY),
            Has(&ability::MAP_PERF_EVENT_ARRAY),
            Has(&ability::MAP_HASH_OF_MAPS),
        ],
        ..CILIUM
    },
    Setting {
        key: "kubeProxyReplacement",
        otherwise: "services need kube-proxy, and L2 announcements do not work",
        wanted: CHOSEN,
        needs: &[
            Kernel((5, 10)),
            Has(&ability::SCHED_CLS),
            Has(&ability::CGROUP_SOCK),
            Has(&ability::CGROUP_SOCK_ADDR),
            Has(&ability::CGROUP_LINK),
            Has(&ability::MAP_LRU_HASH),
            Has(&ability::MAP_HASH_OF_MAPS),
        ],
        ..CILIUM
    },
    Setting {
        key: "socketLB.hostNamespaceOnly",
        otherwise: "connections inside of pods are translated before ztunnel sees them: no mTLS for services",
        wanted: |cluster| CHOSEN(cluster) && AMBIENT(cluster),
        needs: &[Kernel((5, 7)), Has(&ability::CGROUP_SOCK_ADDR), Has(&ability::NETNS_COOKIE)],
        ..CILIUM
    },
    Setting {
        key: "l2announcements.enabled",
        otherwise: "addresses of services of type LoadBalancer answer nobody on the home network",
        source: "cilium/cilium Documentation/network/l2-announcements.rst",
        wanted: |cluster| cluster.chose(Profile::L2Announcements),
        needs: &[Has(&ability::SCHED_CLS), Has(&ability::CGROUP_SOCK_ADDR), Has(&ability::MAP_HASH)],
        ..CILIUM
    },
    Setting {
        key: "routingMode",
        value: "tunnel",
        instead: Some("native"),
        otherwise: "pods of two nodes reach each other only if the network knows their addresses",
        wanted: |cluster| cluster.chose(Profile::Tunnel),
        needs: &[Has(&ability::FIB_RULES), Either(&[&ability::VXLAN], &[&ability::GENEVE])],
        ..CILIUM
    },
    Setting {
        key: "routingMode",
        value: "native",
        instead: Some("tunnel"),
        otherwise: "pods of two nodes reach each other only by a tunnel",
        wanted: |cluster| CHOSEN(cluster) && cluster.tunnel == Tunnel::Off,
        needs: &[Has(&ability::FIB_RULES), Has(&ability::FIB_LOOKUP)],
        ..CILIUM
    },
    Setting {
        key: "tunnelProtocol",
        value: "vxlan",
        instead: None,
        otherwise: "the agent fails with \"operation not supported\"",
        source: "cilium/cilium#20735, #20901; flannel-io/flannel#1502",
        wanted: |cluster| CHOSEN(cluster) && cluster.tunnel == Tunnel::Vxlan,
        needs: &[Has(&ability::VXLAN)],
        ..CILIUM
    },
    Setting {
        key: "tunnelProtocol",
        value: "geneve",
        instead: Some("vxlan"),
        otherwise: "the agent fails with \"operation not supported\"",
        source: "raspberrypi/linux bcm2711_defconfig, bcm2712_defconfig (no GENEVE)",
        wanted: |cluster| CHOSEN(cluster) && cluster.tunnel == Tunnel::Geneve,
        needs: &[Has(&ability::GENEVE)],
        ..CILIUM
    },
    Setting {
        key: "loadBalancer.dsrDispatch",
        value: "geneve",
        instead: Some("opt"),
        otherwise: "direct server return has to carry its address in IP options",
        needs: &[Has(&ability::GENEVE)],
        ..CILIUM
    },
    Setting {
        key: "ipv6.enabled",
        otherwise: "pods get no IPv6 address",
        wanted: |cluster| CHOSEN(cluster) && cluster.chose(Profile::Ipv6),
        needs: &[
            Has(&ability::IPV6),
            Either(&[&ability::NFT6, &ability::NFT_COMPAT], &[&ability::LEGACY_NAT6]),
        ],
        ..CILIUM
    },
    Setting {
        key: "enableIPv4Masquerade",
        instead: None,
        otherwise: "iptables cannot masquerade: pods reach no address outside of the cluster unless BPF does it",
        wanted: |cluster| cluster.chose(Profile::Iptables),
        needs: &[Has(&ability::IP_SET), Has(&ability::XT_MASQUERADE), Either(NFT, &[&ability::LEGACY_NAT])],
        ..CILIUM
    },
    Setting {
        key: "bpf.masquerade",
        otherwise: "iptables masquerades instead: slower, and it fills the connection table",
        source: "cilium/cilium Documentation/network/servicemesh/istio.rst; istio/istio.io docs/ambient/install/\
                 platform-prerequisites",
        wanted: BPF_MASQUERADE,
        needs: &[Rule(without_ambient), Has(&ability::SCHED_CLS), Has(&ability::MAP_LRU_HASH)],
        ..CILIUM
    },
    Setting {
        key: "bpf.hostLegacyRouting",
        value: "false",
        instead: Some("true"),
        otherwise: "packets of pods pass the host's whole network stack",
        source: TUNING,
        needs: HOST_ROUTING,
        ..CILIUM
    },
    Setting {
        key: "bpf.datapathMode",
        value: "veth",
        instead: None,
        otherwise: "pods get no network",
        wanted: |cluster| CHOSEN(cluster) && !cluster.chose(Profile::Netkit),
        needs: &[Has(&ability::VETH)],
        ..CILIUM
    },
    Setting {
        key: "bpf.datapathMode",
        value: "netkit",
        instead: Some("veth"),
        otherwise: "pods are bound by veth pairs, at some cost of throughput",
        source: TUNING,
        wanted: |cluster| cluster.chose(Profile::Netkit),
        needs: &[
            Rule(masquerades_by_bpf),
            Kernel((6, 8)),
            Has(&ability::NETKIT),
            Has(&ability::REDIRECT_NEIGH),
            Has(&ability::REDIRECT_PEER),
        ],
        ..CILIUM
    },
    Setting {
        key: "bpf.enableTCX",
        otherwise: "Cilium attaches tc filters, whose order among other programs nobody guards",
        source: "cilium/cilium install/kubernetes/cilium/values.yaml",
        needs: &[Has(&ability::TCX)],
        ..CILIUM
    },
    Setting {
        key: "envoy.enabled",
        otherwise: "no Ingress, no Gateway API and no L7 policies on this node",
        source: "cilium/cilium#17467, cilium/proxy#1027, raspberrypi/linux#4375",
        wanted: ENVOY,
        accepted_as: Some("address-bits"),
        needs: PROXY,
        ..CILIUM
    },
    Setting {
        key: "l7Proxy",
        otherwise: "no L7 and no DNS policies on this node",
        source: "cilium/cilium#17467, cilium/proxy#1027, raspberrypi/linux#4375",
        wanted: ENVOY,
        accepted_as: Some("address-bits"),
        needs: PROXY,
        ..CILIUM
    },
    Setting {
        key: "bandwidthManager.enabled",
        otherwise: "no limits on what a pod sends",
        wanted: |cluster| cluster.chose(Profile::BandwidthManager),
        needs: &[Kernel((5, 1)), Has(&ability::FQ), Has(&ability::SCHED_CLS)],
        ..CILIUM
    },
    Setting {
        key: "bandwidthManager.bbr",
        otherwise: "pods keep the machine's congestion control",
        source: "cilium/cilium pkg/datapath/linux/bandwidth/bandwidth.go",
        wanted: |cluster| cluster.chose(Profile::Bbr),
        needs: &[
            Rule(masquerades_by_bpf),
            Kernel((5, 18)),
            Has(&ability::FQ),
            Has(&ability::BBR),
            Has(&ability::SET_TSTAMP),
        ],
        ..CILIUM
    },
    Setting {
        key: "encryption.type",
        value: "wireguard",
        instead: None,
        otherwise: "traffic between nodes cannot be encrypted by WireGuard",
        wanted: |cluster| cluster.chose(Profile::Wireguard),
        needs: &[Kernel((5, 6)), Has(&ability::WIREGUARD)],
        ..CILIUM
    },
    Setting {
        key: "encryption.type",
        value: "ipsec",
        instead: None,
        otherwise: "traffic between nodes cannot be encrypted by IPsec",
        wanted: |cluster| cluster.chose(Profile::Ipsec),
        needs: &[Has(&ability::IPSEC)],
        ..CILIUM
    },
    Setting {
        key: "global.nativeNftables",
        otherwise: "Istio has to write its rules by iptables",
        wanted: NEVER,
        needs: &[Kernel((5, 13)), Has(&ability::NFT), Has(&ability::NFT_EXPRESSIONS)],
        ..ISTIO
    },
    Setting {
        key: "global.nativeNftables",
        value: "false",
        instead: Some("true"),
        otherwise: "pods stay outside of the mesh, or do not start",
        needs: &[
            Has(&ability::XT_AMBIENT),
            Has(&ability::IP_SET),
            Either(NFT, &[&ability::LEGACY_NAT, &ability::LEGACY_MANGLE, &ability::LEGACY_RAW]),
        ],
        ..ISTIO
    },
    Setting {
        key: "ztunnel",
        value: "1.31",
        instead: Some("1.30"),
        otherwise: "ztunnel aborts at its start, and no pod of the mesh on this node has a network",
        source: "istio/ztunnel release-1.31 Cargo.toml (tikv-jemallocator)",
        accepted_as: Some("page-size"),
        needs: &[Rule(pages_for_ztunnel)],
        ..ISTIO
    },
    Setting {
        key: "gateways and waypoints",
        value: "on this node",
        instead: Some("on other nodes"),
        otherwise: "every Envoy here aborts with \"MmapAligned() failed\"",
        source: "cilium/proxy#1027, envoyproxy/envoy#23339, raspberrypi/linux#4375",
        accepted_as: Some("address-bits"),
        needs: &[Rule(room_for_envoy)],
        ..ISTIO
    },
    Setting {
        component: Component::K3s,
        key: "iptables",
        value: "nft",
        instead: Some("legacy"),
        otherwise: "rules of iptables-nft are refused",
        source: "k3s-io/k3s contrib/util/check-config.sh",
        needs: &[Has(&ability::NFT), Has(&ability::NFT_COMPAT)],
        ..CILIUM
    },
    Setting {
        component: Component::K3s,
        key: "iptables",
        value: "legacy",
        instead: Some("nft"),
        otherwise: "rules of iptables-legacy are refused, and check-config.sh reports IP_NF_* as missing",
        source: "raspberrypi/linux bcm2712_defconfig; torvalds/linux net/netfilter/Kconfig NETFILTER_XTABLES_LEGACY",
        needs: &[
            Has(&ability::LEGACY_NAT),
            Has(&ability::LEGACY_FILTER),
            Has(&ability::LEGACY_MANGLE),
            Has(&ability::LEGACY_RAW),
        ],
        ..CILIUM
    },
    Setting {
        component: Component::K3s,
        key: "prefer-bundled-bin",
        value: "false",
        instead: Some("true"),
        otherwise: "K3s cannot write packet filter rules with the machine's iptables",
        source: "docs.k3s.io/known-issues",
        needs: &[Rule(iptables_of_the_machine)],
        ..CILIUM
    },
    Setting {
        key: "images with a jemalloc for 4 KiB pages",
        value: "on this node",
        instead: Some("on other nodes"),
        otherwise: "their pods restart for ever on this node and run on others",
        source: "raspberrypi/bookworm-feedback#107; fluent/fluent-bit#9730",
        needs: &[Rule(small_pages)],
        ..OTHER
    },
    Setting {
        key: "tools that relocate by BTF (CO-RE)",
        value: "on this node",
        instead: Some("on other nodes"),
        otherwise: "most eBPF profilers and tracers do not load",
        source: "raspberrypi/linux#6622",
        needs: &[Rule(describes_types)],
        ..OTHER
    },
    Setting {
        key: "probe.attach of bramble",
        value: "tcx",
        instead: Some("tc"),
        otherwise: "bramble attaches its probes as tc filters",
        source: "torvalds/linux kernel/bpf/tcx.c",
        needs: &[Has(&ability::TCX)],
        ..OTHER
    },
];
