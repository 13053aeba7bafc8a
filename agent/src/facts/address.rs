//! The host's own addresses: `/proc/net/fib_trie`, and of IPv6 `/proc/net/if_inet6`.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::Fact;
use crate::host::{Host, Unreadable};

const PATH: &str = "/proc/net/fib_trie";
const V6: &str = "/proc/net/if_inet6";

/// An IPv6 address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address6 {
    /// The interface's name.
    pub interface: String,
    /// The address.
    pub address: Ipv6Addr,
    /// The length of its network's prefix.
    pub prefix: u32,
    /// Whether somebody wrote it down, or the kernel made it: it does not run out.
    pub lasts: bool,
    /// Whether it may be used for what is new: it is not being tried, not refused, and not on its way out.
    pub counts: bool,
}

/// Each address once, those of the loopback left out.
pub(super) fn read(host: &Host) -> Fact<Vec<Ipv4Addr>> {
    let text = host.text(PATH)?;
    let addresses = parse(&text);
    match text.contains("+--") {
        true => Ok(addresses),
        false => Err(Unreadable::malformed(PATH, "a tree of routes with +--")),
    }
}

/// All of them, those of the loopback left out; none when the kernel runs without IPv6.
pub(super) fn read6(host: &Host) -> Fact<Vec<Address6>> {
    let text = host.text_if_present(V6)?.unwrap_or_default();
    let read = |line| parse6(line).ok_or_else(|| Unreadable::malformed(V6, "six fields a line"));
    let all = text.lines().map(read).collect::<Fact<Vec<_>>>()?;
    Ok(all.into_iter().filter(|one| one.interface != "lo").collect())
}

/// Address, number of the interface, length of the prefix, scope, flags (linux/if_addr.h), all in hexadecimal; name.
fn parse6(line: &str) -> Option<Address6> {
    const LASTS: u32 = 0x80;
    // IFA_F_OPTIMISTIC, IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE.
    const DOES_NOT_COUNT: u32 = 0x04 | 0x08 | 0x20 | 0x40;
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [address, _, prefix, _, flags, interface] = fields[..] else { return None };
    let flags = u32::from_str_radix(flags, 16).ok()?;
    Some(Address6 {
        interface: interface.into(),
        address: u128::from_str_radix(address, 16).ok()?.into(),
        prefix: u32::from_str_radix(prefix, 16).ok()?,
        lasts: flags & LASTS != 0,
        counts: flags & DOES_NOT_COUNT == 0,
    })
}

/// A leaf's line `|-- 192.168.1.5` stands before its kinds; the host's own is `/32 host LOCAL`.
fn parse(text: &str) -> Vec<Ipv4Addr> {
    let (mut leaf, mut addresses) = (None, Vec::new());
    for line in text.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse::<Ipv4Addr>().ok();
        } else if let (Some(address), "/32 host LOCAL") = (leaf, line)
            && !address.is_loopback()
            && !addresses.contains(&address)
        {
            addresses.push(address);
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_the_local_leaves() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     \
                    |-- 192.168.1.0\n        /24 link UNICAST\nLocal:\n  +-- 127.0.0.0/8 2 0 2\n     \
                    |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 192.168.1.5\n        /32 host LOCAL\n     \
                    |-- 192.168.1.255\n        /32 link BROADCAST\n";
        assert_eq!(parse(trie), [Ipv4Addr::new(192, 168, 1, 5)]);
        assert!(parse("").is_empty());
    }

    #[test]
    fn an_ipv6_address_tells_whether_it_lasts_and_counts() {
        let of = |flags| {
            let line = format!("20010db8000000000000000000000001 02 40 00 {flags}     eth0");
            parse6(&line).map(|one| (one.address.to_string(), one.prefix, one.lasts, one.counts))
        };
        let with = |lasts, counts| Some(("2001:db8::1".to_owned(), 64, lasts, counts));
        assert_eq!((of("80"), of("00")), (with(true, true), with(false, true)));
        assert_eq!((of("20"), of("c8")), (with(false, false), with(true, false)));
        assert_eq!((of("x"), parse6("")), (None, None));
    }
}
