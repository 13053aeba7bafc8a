//! Which chains the packet filter has: asked of nf_tables by netlink (linux/netfilter/nf_tables.h), read-only.
//!
//! Only root is answered. Rules of the legacy back end cannot be listed without running its tool; where that back end
//! holds tables, the answer is that it could not be told.

use std::collections::BTreeSet;
use std::io;

use nix::sys::socket::SockProtocol;

use super::netlink::{Netlink, message};
use super::{Host, Unreadable, Why};

/// Names of chains.
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
    /// As nft names it: "ip filter FORWARD".
    pub name: String,
    /// "input" or "forward".
    pub way: &'static str,
}

/// What the packet filter does with what no rule speaks of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// The chains that drop it.
    pub dropping: Vec<Dropping>,
    /// Whether the Cilium agent's rules, which let pods' packets pass, are in it.
    pub has_cilium: bool,
}

const QUERY: &str = "chains of the packet filter";
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
    /// On a captured tree, without the right, or when the legacy back end holds tables.
    pub fn chains(&self) -> Result<Chains, Unreadable> {
        let failed = |why| Unreadable { path: QUERY.into(), why };
        if !self.is_live() {
            return Err(failed(Why::NotLive));
        }
        for path in ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"] {
            if self.text_if_present(path)?.is_some_and(|tables| !tables.trim().is_empty()) {
                let why = "the legacy back end holds tables; see iptables-legacy-save";
                return Err(Unreadable { path: path.into(), why: Why::Failed(why.into()) });
            }
        }
        let chains = self.nf_tables(GET_CHAIN, NEW_CHAIN)?;
        Ok(Chains(chains.iter().filter_map(|body| attribute(body, NAME)).collect()))
    }

    /// What nf_tables does with packets, on their way in and through, that no rule speaks of.
    ///
    /// # Errors
    /// On a captured tree, or without the right.
    pub fn filter(&self) -> Result<Filter, Unreadable> {
        let chains = self.nf_tables(GET_CHAIN, NEW_CHAIN)?;
        Ok(Filter {
            dropping: chains.iter().filter_map(|body| dropping(body)).collect(),
            has_cilium: chains.iter().any(|body| attribute(body, NAME).as_deref() == Some("CILIUM_FORWARD")),
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

fn dropping(body: &[u8]) -> Option<Dropping> {
    let attributes = body.get(4..)?;
    let number = |value: &[u8]| Some(u32::from_be_bytes(*value.first_chunk()?));
    let way = match number(find(find(attributes, HOOK)?, HOOK_NUMBER)?)? {
        1 => "input",
        2 => "forward",
        _ => return None,
    };
    let named = || Some(format!("{} {} {}", family(body), attribute(body, TABLE)?, attribute(body, NAME)?));
    let of_ip = ["ip", "ip6", "inet"].contains(&family(body));
    (of_ip && number(find(attributes, POLICY)?)? == DROP).then(named)?.map(|name| Dropping { name, way })
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
            dropping(&[vec![2, 0, 0, 0], names, hook, number(POLICY, policy)].concat())
        };
        let name = "ip filter FORWARD".to_owned();
        assert_eq!(chain(2, DROP), Some(Dropping { name: name.clone(), way: "forward" }));
        assert_eq!(chain(1, DROP), Some(Dropping { name, way: "input" }));
        assert_eq!((chain(2, 1), chain(3, DROP)), (None, None));
        let own = [vec![2, 0, 0, 0], text(TABLE, "filter"), text(NAME, "DOCKER")].concat();
        assert_eq!(dropping(&own), None, "a chain that only rules lead to");
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
