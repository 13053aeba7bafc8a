//! What a kernel may have and Cilium, Istio and K3s may use: one row a thing, with how to find out.
//!
//! Each row can be told from files alone: the kernel's release, its configuration, its module tree. On the running
//! machine most are tried as well, and then what was tried counts.

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::BpfHelper;

use crate::facts::kernel::Version;
use crate::facts::module::Module;
use crate::host::bpf_offer::Offer;
use crate::host::scratch::{Family, Link, Queue, Trial};

/// One thing that a kernel has or has not.
#[derive(Debug)]
pub struct Ability {
    /// Kebab-case, never changed: the key in JSON.
    pub id: &'static str,
    /// What it is, as a noun.
    pub title: &'static str,
    /// Since which release a kernel can have it, where that matters.
    pub since: Option<Version>,
    /// The options that build it, where no module stands for them.
    pub options: &'static [&'static str],
    /// The modules that bring it; each may be part of the kernel.
    pub modules: &'static [Module],
    /// How the running machine is asked.
    pub ask: Ask,
    /// Modules that asking would load beside those that bring it.
    pub asking_loads: &'static [Module],
}

/// How the running machine is asked for an ability.
#[derive(Debug)]
pub enum Ask {
    /// Not at all: what is in its files is all there is.
    Files,
    /// By trying it in a scratch namespace.
    Scratch(Trial),
    /// By asking for a piece of BPF.
    Bpf(Offer),
    /// By a word in a file: there when it is at hand now.
    Word(&'static str, &'static str),
    /// By a directory that is there while it is switched on.
    Directory(&'static str),
}

/// What a row leaves out.
const PLAIN: Ability = Ability {
    id: "",
    title: "",
    since: None,
    options: &[],
    modules: &[],
    ask: Ask::Files,
    asking_loads: &[],
};

const fn module(name: &'static str, option: &'static str) -> Module {
    Module { name, option }
}

const fn program(id: &'static str, title: &'static str, kind: ProgramType) -> Ability {
    Ability { id, title, options: &["CONFIG_BPF_SYSCALL"], ask: Ask::Bpf(Offer::Program(kind)), ..PLAIN }
}

const fn cgroup_program(id: &'static str, title: &'static str, kind: ProgramType) -> Ability {
    Ability { id, title, options: &["CONFIG_CGROUP_BPF"], ask: Ask::Bpf(Offer::Program(kind)), ..PLAIN }
}

const fn map(id: &'static str, title: &'static str, kind: MapType) -> Ability {
    Ability { id, title, options: &["CONFIG_BPF_SYSCALL"], ask: Ask::Bpf(Offer::Map(kind)), ..PLAIN }
}

/// A helper of programs at an interface.
const fn helper(id: &'static str, title: &'static str, since: Version, helper: BpfHelper) -> Ability {
    Ability {
        since: Some(since),
        ask: Ask::Bpf(Offer::Helper(ProgramType::SchedClassifier, helper)),
        ..program(id, title, ProgramType::SchedClassifier)
    }
}

const fn link(id: &'static str, title: &'static str, link: Link, modules: &'static [Module]) -> Ability {
    Ability { id, title, modules, ask: Ask::Scratch(Trial::Link(link)), ..PLAIN }
}

const fn queue(id: &'static str, title: &'static str, queue: Queue, modules: &'static [Module]) -> Ability {
    Ability { id, title, modules, ask: Ask::Scratch(Trial::Queue(queue)), ..PLAIN }
}

const fn table(
    id: &'static str,
    title: &'static str,
    table: &'static str,
    modules: &'static [Module],
) -> Ability {
    Ability { id, title, modules, ask: Ask::Scratch(Trial::Legacy(Family::V4, table)), ..PLAIN }
}

const fn extension(id: &'static str, title: &'static str, modules: &'static [Module]) -> Ability {
    Ability { id, title, modules, ..PLAIN }
}

pub(super) const SCHED_CLS: Ability =
    program("bpf-sched-cls", "BPF programs at interfaces", ProgramType::SchedClassifier);
pub(super) const CGROUP_SOCK: Ability =
    cgroup_program("bpf-cgroup-sock", "BPF programs at sockets", ProgramType::CgroupSock);
pub(super) const CGROUP_SOCK_ADDR: Ability =
    cgroup_program("bpf-cgroup-sock-addr", "BPF programs at connect()", ProgramType::CgroupSockAddr);
pub(super) const CGROUP_LINK: Ability = Ability {
    id: "bpf-cgroup-link",
    title: "BPF links to control groups",
    since: Some((5, 7)),
    options: &["CONFIG_CGROUP_BPF"],
    ask: Ask::Bpf(Offer::CgroupLink),
    ..PLAIN
};
pub(super) const TCX: Ability = Ability {
    id: "tcx",
    title: "tcx",
    since: Some((6, 6)),
    options: &["CONFIG_NET_XGRESS"],
    ask: Ask::Scratch(Trial::Tcx),
    ..PLAIN
};

pub(super) const MAP_ARRAY: Ability = map("map-array", "array maps", MapType::Array);
pub(super) const MAP_HASH: Ability = map("map-hash", "hash maps", MapType::Hash);
pub(super) const MAP_PERCPU_ARRAY: Ability = map("map-percpu-array", "per-CPU arrays", MapType::PerCpuArray);
pub(super) const MAP_PERCPU_HASH: Ability = map("map-percpu-hash", "per-CPU hash maps", MapType::PerCpuHash);
pub(super) const MAP_LRU_HASH: Ability = map("map-lru-hash", "LRU maps", MapType::LruHash);
pub(super) const MAP_LPM_TRIE: Ability = map("map-lpm-trie", "prefix maps", MapType::LpmTrie);
pub(super) const MAP_PROG_ARRAY: Ability = map("map-prog-array", "tail calls", MapType::ProgramArray);
pub(super) const MAP_PERF_EVENT_ARRAY: Ability = Ability {
    options: &["CONFIG_BPF_SYSCALL", "CONFIG_PERF_EVENTS"],
    ..map("map-perf-event-array", "perf buffers", MapType::PerfEventArray)
};
pub(super) const MAP_HASH_OF_MAPS: Ability = map("map-hash-of-maps", "maps of maps", MapType::HashOfMaps);

pub(super) const FIB_LOOKUP: Ability =
    helper("helper-fib-lookup", "route lookup from BPF", (4, 18), BpfHelper::BPF_FUNC_fib_lookup);
pub(super) const REDIRECT_NEIGH: Ability =
    helper("helper-redirect-neigh", "bpf_redirect_neigh", (5, 10), BpfHelper::BPF_FUNC_redirect_neigh);
pub(super) const REDIRECT_PEER: Ability =
    helper("helper-redirect-peer", "bpf_redirect_peer", (5, 10), BpfHelper::BPF_FUNC_redirect_peer);
pub(super) const SET_TSTAMP: Ability =
    helper("helper-skb-set-tstamp", "bpf_skb_set_tstamp", (5, 18), BpfHelper::BPF_FUNC_skb_set_tstamp);
pub(super) const NETNS_COOKIE: Ability = Ability {
    since: Some((5, 7)),
    ask: Ask::Bpf(Offer::Helper(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_get_netns_cookie)),
    ..cgroup_program("helper-netns-cookie", "bpf_get_netns_cookie", ProgramType::CgroupSockAddr)
};

/// The base of Cilium's system requirements that nothing else here stands for.
pub(super) const CILIUM_BASE: Ability = Ability {
    id: "cilium-base",
    title: "the base of Cilium's requirements",
    options: &[
        "CONFIG_BPF",
        "CONFIG_BPF_JIT",
        "CONFIG_NET_CLS_ACT",
        "CONFIG_CRYPTO_SHA1",
        "CONFIG_CRYPTO_USER_API_HASH",
        "CONFIG_CGROUPS",
        "CONFIG_PERF_EVENTS",
        "CONFIG_SCHEDSTATS",
    ],
    ..PLAIN
};
pub(super) const FIB_RULES: Ability =
    Ability { id: "fib-rules", title: "routing rules", options: &["CONFIG_FIB_RULES"], ..PLAIN };

pub(super) const VETH: Ability = link("veth", "veth links", Link::Veth, &[module("veth", "CONFIG_VETH")]);
pub(super) const NETKIT: Ability = Ability {
    since: Some((6, 7)),
    options: &["CONFIG_NETKIT"],
    ..link("netkit", "netkit links", Link::Netkit, &[])
};
pub(super) const VXLAN: Ability =
    link("vxlan", "VXLAN links", Link::Vxlan, &[module("vxlan", "CONFIG_VXLAN")]);
pub(super) const GENEVE: Ability =
    link("geneve", "GENEVE links", Link::Geneve, &[module("geneve", "CONFIG_GENEVE")]);
pub(super) const WIREGUARD: Ability =
    link("wireguard", "WireGuard links", Link::Wireguard, &[module("wireguard", "CONFIG_WIREGUARD")]);
pub(super) const CLSACT: Ability =
    queue("clsact", "the clsact qdisc", Queue::Clsact, &[module("sch_ingress", "CONFIG_NET_SCH_INGRESS")]);
pub(super) const CLS_BPF: Ability =
    extension("cls-bpf", "the bpf classifier", &[module("cls_bpf", "CONFIG_NET_CLS_BPF")]);
pub(super) const FQ: Ability =
    queue("fq", "the fq qdisc", Queue::Fq, &[module("sch_fq", "CONFIG_NET_SCH_FQ")]);
pub(super) const BBR: Ability = Ability {
    id: "bbr",
    title: "BBR",
    modules: &[module("tcp_bbr", "CONFIG_TCP_CONG_BBR")],
    ask: Ask::Word("/proc/sys/net/ipv4/tcp_available_congestion_control", "bbr"),
    ..PLAIN
};
pub(super) const IPV6: Ability = Ability {
    id: "ipv6",
    title: "IPv6",
    modules: &[module("ipv6", "CONFIG_IPV6")],
    ask: Ask::Directory("/proc/sys/net/ipv6"),
    ..PLAIN
};
pub(super) const IPSEC: Ability = Ability {
    id: "ipsec",
    title: "IPsec",
    options: &[
        "CONFIG_XFRM",
        "CONFIG_XFRM_STATISTICS",
        "CONFIG_XFRM_ALGO",
        "CONFIG_CRYPTO_AEAD",
        "CONFIG_CRYPTO_GCM",
        "CONFIG_CRYPTO_SEQIV",
        "CONFIG_CRYPTO_CBC",
        "CONFIG_CRYPTO_HMAC",
        "CONFIG_CRYPTO_SHA256",
        "CONFIG_CRYPTO_AES",
    ],
    modules: &[module("xfrm_user", "CONFIG_XFRM_USER"), module("esp4", "CONFIG_INET_ESP")],
    ..PLAIN
};

const IP_TABLES: Module = module("ip_tables", "CONFIG_IP_NF_IPTABLES");
const NF_TABLES: Module = module("nf_tables", "CONFIG_NF_TABLES");
const NFT_NAT: Module = module("nft_nat", "CONFIG_NFT_NAT");

pub(super) const LEGACY_FILTER: Ability = table(
    "iptables-legacy-filter",
    "legacy iptables' filter table",
    "filter",
    &[IP_TABLES, module("iptable_filter", "CONFIG_IP_NF_FILTER")],
);
pub(super) const LEGACY_NAT: Ability = table(
    "iptables-legacy-nat",
    "legacy iptables' nat table",
    "nat",
    &[IP_TABLES, module("iptable_nat", "CONFIG_IP_NF_NAT")],
);
pub(super) const LEGACY_MANGLE: Ability = table(
    "iptables-legacy-mangle",
    "legacy iptables' mangle table",
    "mangle",
    &[IP_TABLES, module("iptable_mangle", "CONFIG_IP_NF_MANGLE")],
);
pub(super) const LEGACY_RAW: Ability = table(
    "iptables-legacy-raw",
    "legacy iptables' raw table",
    "raw",
    &[IP_TABLES, module("iptable_raw", "CONFIG_IP_NF_RAW")],
);
pub(super) const LEGACY_NAT6: Ability = Ability {
    ask: Ask::Scratch(Trial::Legacy(Family::V6, "nat")),
    asking_loads: &[module("ip6_tables", "CONFIG_IP6_NF_IPTABLES")],
    ..table(
        "ip6tables-legacy-nat",
        "legacy ip6tables' nat table",
        "nat",
        &[module("ip6table_nat", "CONFIG_IP6_NF_NAT")],
    )
};
pub(super) const NFT: Ability = Ability {
    id: "nftables",
    title: "nftables' NAT chains",
    modules: &[NF_TABLES, NFT_NAT],
    ask: Ask::Scratch(Trial::Nft(Family::V4)),
    asking_loads: &[
        module("nfnetlink", "CONFIG_NETFILTER_NETLINK"),
        module("nft_chain_nat", "CONFIG_NFT_NAT"),
    ],
    ..PLAIN
};
pub(super) const NFT6: Ability = Ability {
    id: "nftables-6",
    title: "nftables' NAT chains for IPv6",
    modules: &[NF_TABLES, NFT_NAT, module("ipv6", "CONFIG_IPV6")],
    ask: Ask::Scratch(Trial::Nft(Family::V6)),
    ..NFT
};
pub(super) const NFT_COMPAT: Ability =
    extension("nft-compat", "iptables' extensions in nftables", &[module("nft_compat", "CONFIG_NFT_COMPAT")]);
pub(super) const NFT_EXPRESSIONS: Ability = extension(
    "nft-expressions",
    "nftables' expressions of Istio",
    &[
        module("nft_ct", "CONFIG_NFT_CT"),
        module("nft_redir", "CONFIG_NFT_REDIR"),
        module("nft_tproxy", "CONFIG_NFT_TPROXY"),
    ],
);
pub(super) const IP_SET: Ability = Ability {
    id: "ip-set",
    title: "IP sets",
    modules: &[module("ip_set", "CONFIG_IP_SET"), module("ip_set_hash_ip", "CONFIG_IP_SET_HASH_IP")],
    ask: Ask::Scratch(Trial::IpSet),
    asking_loads: &[module("nfnetlink", "CONFIG_NETFILTER_NETLINK")],
    ..PLAIN
};
pub(super) const XT_MASQUERADE: Ability = extension(
    "xt-masquerade",
    "iptables' masquerading",
    &[
        module("xt_set", "CONFIG_NETFILTER_XT_SET"),
        module("xt_comment", "CONFIG_NETFILTER_XT_MATCH_COMMENT"),
        module("xt_MASQUERADE", "CONFIG_NETFILTER_XT_TARGET_MASQUERADE"),
    ],
);
pub(super) const XT_PROXY: Ability = extension(
    "xt-proxy",
    "iptables' redirection to a proxy",
    &[
        module("xt_TPROXY", "CONFIG_NETFILTER_XT_TARGET_TPROXY"),
        module("xt_mark", "CONFIG_NETFILTER_XT_MARK"),
        module("xt_CT", "CONFIG_NETFILTER_XT_TARGET_CT"),
        module("xt_socket", "CONFIG_NETFILTER_XT_MATCH_SOCKET"),
    ],
);
pub(super) const XT_AMBIENT: Ability = extension(
    "xt-ambient",
    "iptables' extensions of Istio",
    &[
        module("xt_REDIRECT", "CONFIG_NETFILTER_XT_TARGET_REDIRECT"),
        module("xt_connmark", "CONFIG_NETFILTER_XT_CONNMARK"),
        module("xt_conntrack", "CONFIG_NETFILTER_XT_MATCH_CONNTRACK"),
        module("xt_multiport", "CONFIG_NETFILTER_XT_MATCH_MULTIPORT"),
        module("xt_owner", "CONFIG_NETFILTER_XT_MATCH_OWNER"),
    ],
);

/// All of them.
pub const ABILITIES: &[&Ability] = &[
    &SCHED_CLS,
    &CGROUP_SOCK,
    &CGROUP_SOCK_ADDR,
    &CGROUP_LINK,
    &TCX,
    &MAP_ARRAY,
    &MAP_HASH,
    &MAP_PERCPU_ARRAY,
    &MAP_PERCPU_HASH,
    &MAP_LRU_HASH,
    &MAP_LPM_TRIE,
    &MAP_PROG_ARRAY,
    &MAP_PERF_EVENT_ARRAY,
    &MAP_HASH_OF_MAPS,
    &FIB_LOOKUP,
    &REDIRECT_NEIGH,
    &REDIRECT_PEER,
    &SET_TSTAMP,
    &NETNS_COOKIE,
    &CILIUM_BASE,
    &FIB_RULES,
    &VETH,
    &NETKIT,
    &VXLAN,
    &GENEVE,
    &WIREGUARD,
    &CLSACT,
    &CLS_BPF,
    &FQ,
    &BBR,
    &IPV6,
    &IPSEC,
    &LEGACY_FILTER,
    &LEGACY_NAT,
    &LEGACY_MANGLE,
    &LEGACY_RAW,
    &LEGACY_NAT6,
    &NFT,
    &NFT6,
    &NFT_COMPAT,
    &NFT_EXPRESSIONS,
    &IP_SET,
    &XT_MASQUERADE,
    &XT_PROXY,
    &XT_AMBIENT,
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_ability_has_an_id_of_its_own_and_can_be_told_from_files() {
        let ids: HashSet<&str> = ABILITIES.iter().map(|ability| ability.id).collect();
        assert_eq!(ids.len(), ABILITIES.len());
        for ability in ABILITIES {
            let Ability { id, title, options, modules, .. } = ability;
            assert!(
                !id.is_empty()
                    && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            );
            assert!(!title.is_empty(), "{id}");
            assert!(!options.is_empty() || !modules.is_empty(), "{id}");
        }
    }
}
