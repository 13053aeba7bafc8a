//! Which chains the packet filter has: asked of nf_tables by netlink (linux/netfilter/nf_tables.h), and of the legacy back
//! end table by table, read-only. Only root is answered.

use std::collections::BTreeSet;
use std::io;

use nix::sys::socket::SockProtocol;

use super::legacy::Table;
use super::netlink::{Netlink, message};
use super::scratch::Family;
use super::{Host, Unreadable, Why};

/// Names of chains, of both back ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chains(BTreeSet<String>);

impl Chains {
    /// Each name once.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// A chain that packets are led into by the kernel itself and that drops what no rule speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropping {
    /// As nft names it: "ip filter FORWARD"; "FORWARD of iptables-legacy".
    pub name: String,
    /// "input" or "forward".
    pub way: &'static str,
    /// The command that changes it: "iptables", "ip6tables-legacy".
    pub tool: &'static str,
    /// The command that shows it.
    pub shown_by: String,
    /// Whether the Cilium agent's rules, which let pods' packets pass, stand before its end.
    pub lets_pods_pass: bool,
}

/// What the packet filter does with what no rule speaks of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// The chains that drop it.
    pub dropping: Vec<Dropping>,
    /// Chains that somebody made by iptables' program for nf_tables, for instance one.
    pub by_nft: Option<String>,
    /// Chains that somebody made by iptables' older program, for instance one.
    pub by_legacy: Option<String>,
}

const QUERY: &str = "chains of the packet filter";
/// The chain to which the Cilium agent leads what passes through.
const CILIUM: &str = "CILIUM_FORWARD";
/// `NFNL_SUBSYS_NFTABLES`, with `NFT_MSG_GETCHAIN` and `NFT_MSG_NEWCHAIN`.
const GET_CHAIN: u16 = (10 << 8) | 4;
const NEW_CHAIN: u16 = (10 << 8) | 3;
/// `NFT_MSG_GETTABLE` and `NFT_MSG_NEWTABLE`.
const GET_TABLE: u16 = (10 << 8) | 1;
const NEW_TABLE: u16 = 10 << 8;
/// `NFTA_CHAIN_NAME`.
const NAME: u16 = 3;
/// `NFTA_TABLE_NAME`, and `NFTA_CHAIN_TABLE`.
const TABLE: u16 = 1;
/// `NFTA_CHAIN_HOOK` with `NFTA_HOOK_HOOKNUM`, and `NFTA_CHAIN_POLICY`: numbers in network order.
const HOOK: u16 = 4;
const HOOK_NUMBER: u16 = 1;
const POLICY: u16 = 5;
/// `NF_DROP`.
const DROP: u32 = 0;
/// `NLA_TYPE_MASK`.
const KIND: u16 = 0x3fff;
const DUMP: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;

impl Host {
    /// All chains of all families. Asking loads nf_tables, so it is asked only where that is loaded.
    ///
    /// # Errors
    /// On a captured tree, or without the right.
    pub fn chains(&self) -> Result<Chains, Unreadable> {
        let chains = self.nf_tables(GET_CHAIN, NEW_CHAIN)?;
        let mut names: BTreeSet<String> = chains.iter().filter_map(|body| attribute(body, NAME)).collect();
        names.extend(self.legacy_tables()?.into_iter().flat_map(|table| table.chains));
        Ok(Chains(names))
    }

    /// What is done with packets, on their way in and through, that no rule speaks of.
    ///
    /// # Errors
    /// On a captured tree, or without the right.
    pub fn filter(&self) -> Result<Filter, Unreadable> {
        let chains = self.nf_tables(GET_CHAIN, NEW_CHAIN)?;
        let tables = self.legacy_tables()?;
        let has_cilium = chains.iter().any(|body| attribute(body, NAME).as_deref() == Some(CILIUM));
        let by_nft = chains.iter().filter_map(|body| dropping(body, has_cilium));
        let by_legacy = tables.iter().flat_map(legacy_dropping);
        Ok(Filter {
            dropping: by_nft.chain(by_legacy).collect(),
            by_nft: chains.iter().find_map(|body| own_chain(body)),
            by_legacy: tables.iter().find_map(|table| table.chains.first().cloned()),
        })
    }

    /// The tables of nf_tables and their chains, as nft names them: `ip filter`, `ip filter INPUT`.
    ///
    /// # Errors
    /// On a captured tree, or without the right.
    pub fn packet_filter(&self) -> Result<BTreeSet<String>, Unreadable> {
        let mut names = BTreeSet::new();
        for body in self.nf_tables(GET_TABLE, NEW_TABLE)? {
            names.extend(attribute(&body, TABLE).map(|table| format!("{} {table}", family(&body))));
        }
        for body in self.nf_tables(GET_CHAIN, NEW_CHAIN)? {
            let chain = attribute(&body, TABLE).zip(attribute(&body, NAME));
            names.extend(chain.map(|(table, chain)| format!("{} {table} {chain}", family(&body))));
        }
        Ok(names)
    }

    fn nf_tables(&self, get: u16, new: u16) -> Result<Vec<Vec<u8>>, Unreadable> {
        let failed = |why| Unreadable { path: QUERY.into(), why };
        if !self.is_live() {
            return Err(failed(Why::NotLive));
        }
        let loaded = self.text_if_present("/proc/modules")?;
        // A kernel without modules has it built in, or not.
        if loaded.is_some_and(|text| !text.lines().any(|line| line.starts_with("nf_tables "))) {
            return Ok(Vec::new());
        }
        // struct nfgenmsg: any family, version 0, no resource.
        let request = message(get, DUMP, &[&[0; 4]]);
        let answer = Netlink::open(SockProtocol::NetlinkNetFilter).and_then(|netlink| netlink.dump(&request));
        let messages = answer.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => failed(Why::Denied),
            _ => failed(Why::Failed(error.to_string())),
        })?;
        Ok(messages.into_iter().filter(|(kind, _)| *kind == new).map(|(_, body)| body).collect())
    }
}

/// nft's word for the family in struct nfgenmsg.
fn family(body: &[u8]) -> &'static str {
    match body.first().copied().map(i32::from) {
        Some(libc::NFPROTO_IPV4) => "ip",
        Some(libc::NFPROTO_IPV6) => "ip6",
        Some(libc::NFPROTO_INET) => "inet",
        Some(libc::NFPROTO_ARP) => "arp",
        Some(libc::NFPROTO_BRIDGE) => "bridge",
        Some(libc::NFPROTO_NETDEV) => "netdev",
        _ => "unknown",
    }
}

fn legacy_dropping(table: &Table) -> impl Iterator<Item = Dropping> + use<> {
    let tool = match table.family {
        Family::V4 => "iptables-legacy",
        Family::V6 => "ip6tables-legacy",
    };
    let has_cilium = table.name == "filter" && table.chains.iter().any(|name| name == CILIUM);
    let (table, drops) = (table.name.clone(), [table.drops_input, table.drops_forward]);
    let ways = [("INPUT", "input", false), ("FORWARD", "forward", has_cilium)].into_iter().zip(drops);
    ways.filter(|(_, drops)| *drops).map(move |((chain, way, lets_pods_pass), _)| Dropping {
        name: format!("{chain} of {tool}"),
        way,
        tool,
        shown_by: format!("{tool} -t {table} -S {chain}"),
        lets_pods_pass,
    })
}

/// The name of a chain that somebody made, in a table of iptables'.
fn own_chain(body: &[u8]) -> Option<String> {
    let of_iptables = ["ip", "ip6"].contains(&family(body))
        && ["filter", "nat", "mangle", "raw"].contains(&attribute(body, TABLE)?.as_str());
    let has_hook = find(body.get(4..)?, HOOK).is_some();
    attribute(body, NAME).filter(|_| of_iptables && !has_hook)
}

fn dropping(body: &[u8], has_cilium: bool) -> Option<Dropping> {
    let attributes = body.get(4..)?;
    let number = |value: &[u8]| Some(u32::from_be_bytes(*value.first_chunk()?));
    let way = match number(find(find(attributes, HOOK)?, HOOK_NUMBER)?)? {
        1 => "input",
        2 => "forward",
        _ => return None,
    };
    let named = || Some(format!("{} {} {}", family(body), attribute(body, TABLE)?, attribute(body, NAME)?));
    let of_ip = ["ip", "ip6", "inet"].contains(&family(body));
    let name = (of_ip && number(find(attributes, POLICY)?)? == DROP).then(named)??;
    Some(Dropping {
        way,
        tool: if family(body) == "ip6" { "ip6tables" } else { "iptables" },
        shown_by: format!("nft list chain {name}"),
        lets_pods_pass: has_cilium && name.ends_with("filter FORWARD"),
        name,
    })
}

/// A text among the attributes of a message, which follow the four bytes of struct nfgenmsg.
fn attribute(body: &[u8], wanted: u16) -> Option<String> {
    let text = find(body.get(4..)?, wanted)?.split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(text).into_owned())
}

fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let Some((header, _)) = attributes.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & KIND;
        if kind == wanted {
            return attributes.get(4..length);
        }
        attributes = attributes.get(length.next_multiple_of(4).max(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::netlink::{NESTED, attribute as packed, text};
    use super::*;

    #[test]
    fn a_chain_that_drops_is_told_from_one_that_lets_pass() {
        let chain = |hook: u32, policy: u32| {
            let number = |kind, value: u32| packed(kind, &value.to_be_bytes());
            let hook = packed(HOOK | NESTED, &[number(HOOK_NUMBER, hook), number(2, 0)].concat());
            let names = [text(TABLE, "filter"), text(NAME, "FORWARD")].concat();
            let body = [vec![2, 0, 0, 0], names, hook, number(POLICY, policy)].concat();
            assert_eq!(own_chain(&body), None);
            dropping(&body, true).map(|one| (one.name, one.way, one.lets_pods_pass))
        };
        let name = "ip filter FORWARD".to_owned();
        assert_eq!(chain(2, DROP), Some((name.clone(), "forward", true)));
        assert_eq!(chain(1, DROP).map(|(_, way, _)| way), Some("input"));
        assert_eq!((chain(2, 1), chain(3, DROP)), (None, None));
        let own = [vec![2, 0, 0, 0], text(TABLE, "filter"), text(NAME, "DOCKER")].concat();
        assert_eq!(dropping(&own, false), None, "a chain that only rules lead to");
        assert_eq!(own_chain(&own).as_deref(), Some("DOCKER"));
        let by_nft = [vec![2, 0, 0, 0], text(TABLE, "mine"), text(NAME, "DOCKER")].concat();
        assert_eq!(own_chain(&by_nft), None, "a table that no iptables knows");
    }

    #[test]
    fn a_legacy_policy_that_drops_names_its_own_program() {
        let table = Table {
            family: Family::V6,
            name: "filter".to_owned(),
            chains: vec![CILIUM.to_owned()],
            drops_input: true,
            drops_forward: true,
        };
        let [input, forward] = &legacy_dropping(&table).collect::<Vec<_>>()[..] else { panic!() };
        assert_eq!((input.way, input.lets_pods_pass), ("input", false));
        assert_eq!((forward.way, forward.lets_pods_pass), ("forward", true));
        assert_eq!(forward.name, "FORWARD of ip6tables-legacy");
        assert_eq!(input.shown_by, "ip6tables-legacy -t filter -S INPUT");
    }

    #[test]
    fn the_name_is_found_among_a_chain_s_attributes() {
        let body = [vec![2, 0, 0, 0], text(1, "nat"), text(NAME, "KUBE-SERVICES")].concat();
        assert_eq!(attribute(&body, NAME).as_deref(), Some("KUBE-SERVICES"));
        assert_eq!((attribute(&body, TABLE).as_deref(), family(&body)), (Some("nat"), "ip"));
        for garbage in [&body[..4], &body[..9], &[][..], &[0; 12]] {
            assert_eq!(attribute(garbage, NAME), None, "{garbage:?}");
        }
    }
}
