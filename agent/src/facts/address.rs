//! The host's own IPv4 addresses: `/proc/net/fib_trie`.

use std::net::Ipv4Addr;

use super::Fact;
use crate::host::{Host, Unreadable};

const PATH: &str = "/proc/net/fib_trie";

/// Each address once, those of the loopback left out.
pub(super) fn read(host: &Host) -> Fact<Vec<Ipv4Addr>> {
    let text = host.text(PATH)?;
    let addresses = parse(&text);
    match text.contains("+--") {
        true => Ok(addresses),
        false => Err(Unreadable::malformed(PATH, "a tree of routes with +--")),
    }
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
}
