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

const QUERY: &str = "chains of the packet filter";
/// `NFNL_SUBSYS_NFTABLES`, with `NFT_MSG_GETCHAIN` and `NFT_MSG_NEWCHAIN`.
const GET_CHAIN: u16 = (10 << 8) | 4;
const NEW_CHAIN: u16 = (10 << 8) | 3;
/// `NFTA_CHAIN_NAME`.
const NAME: u16 = 3;
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
        let loaded = self.text_if_present("/proc/modules")?.unwrap_or_default();
        if !loaded.lines().any(|line| line.starts_with("nf_tables ")) {
            return Ok(Chains::default());
        }
        // struct nfgenmsg: any family, version 0, no resource.
        let request = message(GET_CHAIN, DUMP, &[&[0; 4]]);
        let answer = Netlink::open(SockProtocol::NetlinkNetFilter).and_then(|netlink| netlink.dump(&request));
        let messages = answer.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => failed(Why::Denied),
            _ => failed(Why::Failed(error.to_string())),
        })?;
        Ok(Chains(
            messages
                .iter()
                .filter(|(kind, _)| *kind == NEW_CHAIN)
                .filter_map(|(_, body)| name(body))
                .collect(),
        ))
    }
}

/// The name among a chain's attributes, which follow the four bytes of struct nfgenmsg.
fn name(body: &[u8]) -> Option<String> {
    let mut attributes = body.get(4..)?;
    while let Some((header, _)) = attributes.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & KIND;
        if kind == NAME {
            let text = attributes.get(4..length)?.split(|byte| *byte == 0).next()?;
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        attributes = attributes.get(length.next_multiple_of(4).max(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::netlink::text;
    use super::*;

    #[test]
    fn the_name_is_found_among_a_chain_s_attributes() {
        let body = [vec![2, 0, 0, 0], text(1, "nat"), text(NAME, "KUBE-SERVICES")].concat();
        assert_eq!(name(&body).as_deref(), Some("KUBE-SERVICES"));
        for garbage in [&body[..4], &body[..9], &[][..], &[0; 12]] {
            assert_eq!(name(garbage), None, "{garbage:?}");
        }
    }
}
