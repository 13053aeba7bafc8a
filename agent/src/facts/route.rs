//! Routes of the main table: `/proc/net/route`, `/proc/net/ipv6_route`.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::Fact;
use crate::host::{Host, Unreadable};

/// What is known of the routes.
#[derive(Debug)]
pub struct Routes {
    /// IPv4 routes that are up.
    pub v4: Fact<Vec<Route>>,
    /// IPv6 routes that lead out, of all tables.
    pub v6: Fact<Vec<Route6>>,
}

/// One IPv6 route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route6 {
    /// Where it leads out.
    pub interface: String,
    /// The network's address.
    pub network: Ipv6Addr,
    /// The length of its prefix; 0 matches every address, 128 one alone.
    pub prefix: u32,
    /// Whether the kernel took it from a router's advertisement.
    pub advertised: bool,
}

impl Route6 {
    /// What it matches, as ip(8) writes it: "fd00::/64".
    pub fn network(&self) -> String {
        format!("{}/{}", self.network, self.prefix)
    }

    /// Whether it matches an address.
    pub fn matches(&self, address: Ipv6Addr) -> bool {
        let mask = u128::MAX.checked_shl(128 - self.prefix).unwrap_or(0);
        (self.network.to_bits() ^ address.to_bits()) & mask == 0
    }
}

/// One IPv4 route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where it leads out.
    pub interface: String,
    /// The network's address.
    pub network: Ipv4Addr,
    /// The network's mask.
    pub mask: Ipv4Addr,
    /// Lower wins.
    pub metric: u32,
}

impl Route {
    /// Whether it matches every address.
    pub fn is_default(&self) -> bool {
        self.mask == Ipv4Addr::UNSPECIFIED
    }

    /// Whether it matches one address alone.
    pub fn is_host(&self) -> bool {
        self.mask == Ipv4Addr::BROADCAST
    }

    /// What it matches, as ip(8) writes it: "192.168.1.0/24".
    pub fn network(&self) -> String {
        format!("{}/{}", self.network, self.mask.to_bits().leading_ones())
    }

    /// Whether some address is in both this network and `network/prefix`.
    pub fn overlaps(&self, network: Ipv4Addr, prefix: u32) -> bool {
        let mask = self.mask.to_bits() & u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
        self.network.to_bits() & mask == network.to_bits() & mask
    }
}

impl Routes {
    /// The interface of the IPv4 default route that wins, if there is one.
    pub fn uplink(&self) -> Fact<Option<&str>> {
        let defaults = self.v4.as_ref()?.iter().filter(|route| route.is_default());
        Ok(defaults.min_by_key(|route| route.metric).map(|route| route.interface.as_str()))
    }

    /// The IPv6 default route, if there is one.
    pub fn default6(&self) -> Fact<Option<&Route6>> {
        Ok(self.v6.as_ref()?.iter().find(|route| route.prefix == 0))
    }
}

const V4: &str = "/proc/net/route";
const V6: &str = "/proc/net/ipv6_route";

pub(super) fn read(host: &Host) -> Routes {
    // `/proc/net` is a link to `self/net`; a captured tree may hold either.
    Routes {
        v4: host.text(V4).and_then(|text| {
            parse(&text).ok_or_else(|| Unreadable::malformed(V4, "a heading that begins with Iface"))
        }),
        v6: host.text_if_present(V6).map(|text| parse6(&text.unwrap_or_default())),
    }
}

/// Addresses are the bytes in network order, printed as one little-endian number.
fn parse(text: &str) -> Option<Vec<Route>> {
    let mut lines = text.lines();
    if !lines.next()?.starts_with("Iface") {
        return None;
    }
    const UP: u32 = 1;
    let mut routes = Vec::new();
    for line in lines {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [interface, network, _, flags, _, _, metric, mask, ..] = fields[..] else { continue };
        let address = |hex| u32::from_str_radix(hex, 16).map(|n| Ipv4Addr::from(n.to_le_bytes())).ok();
        if u32::from_str_radix(flags, 16).ok()? & UP != 0 {
            routes.push(Route {
                interface: interface.into(),
                network: address(network)?,
                mask: address(mask)?,
                metric: metric.parse().ok()?,
            });
        }
    }
    Some(routes)
}

/// The kernel always lists an unreachable default on `lo`; that is no way out, and neither is what leads to the host itself.
fn parse6(text: &str) -> Vec<Route6> {
    // RTF_ADDRCONF and RTF_LOCAL of linux/ipv6_route.h.
    const ADVERTISED: u32 = 0x0004_0000;
    const LOCAL: u32 = 0x8000_0000;
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [network, prefix, .., flags, interface] = fields[..] else { return None };
        let flags = u32::from_str_radix(flags, 16).ok()?;
        let prefix = u32::from_str_radix(prefix, 16).ok().filter(|prefix| *prefix <= 128)?;
        let network = Ipv6Addr::from(u128::from_str_radix(network, 16).ok()?);
        let advertised = flags & ADVERTISED != 0;
        let leads_out = interface != "lo" && flags & LOCAL == 0;
        leads_out.then(|| Route6 { interface: interface.into(), network, prefix, advertised })
    };
    text.lines().filter_map(route).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
        wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
        eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
        eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n\
        tun0\t00002A0A\t00000000\t0000\t0\t0\t0\t0000FFFF\t0\t0\t0\n";

    #[test]
    fn the_default_route_with_the_lowest_metric_is_the_uplink() {
        let routes = Routes { v4: Ok(parse(TABLE).unwrap()), v6: Ok(Vec::new()) };
        assert_eq!(routes.uplink(), Ok(Some("eth0")));
        assert_eq!(routes.v4.unwrap().len(), 3, "a route that is down does not count");
        assert_eq!(parse("garbage"), None);
    }

    #[test]
    fn networks_overlap_in_either_direction() {
        let route = |network: [u8; 4], mask: [u8; 4]| Route {
            interface: "eth0".into(),
            network: network.into(),
            mask: mask.into(),
            metric: 0,
        };
        let pods = Ipv4Addr::new(10, 42, 0, 0);
        assert!(route([10, 42, 7, 0], [255, 255, 255, 0]).overlaps(pods, 16));
        assert!(route([10, 0, 0, 0], [255, 0, 0, 0]).overlaps(pods, 16));
        assert!(!route([10, 43, 0, 0], [255, 255, 0, 0]).overlaps(pods, 16));
        assert!(!route([192, 168, 1, 0], [255, 255, 255, 0]).overlaps(pods, 16));
    }

    #[test]
    fn the_unreachable_ipv6_default_on_lo_is_no_way_out() {
        let zero = "00000000000000000000000000000000";
        let line = |flags, interface| {
            format!("{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 {flags} {interface}\n")
        };
        let default6 = |text: &str| {
            let routes = Routes { v4: Ok(Vec::new()), v6: Ok(parse6(text)) };
            routes.default6().unwrap().map(|route| (route.interface.clone(), route.advertised))
        };
        let lo = line("00200200", "lo");
        assert_eq!(default6(&lo), None);
        assert_eq!(default6(&(lo.clone() + &line("00450003", "eth0"))), Some(("eth0".into(), true)));
        assert_eq!(default6(&(lo + &line("00000003", "eth0"))), Some(("eth0".into(), false)));
    }

    #[test]
    fn an_ipv6_route_matches_what_begins_as_it_does() {
        let zero = "0".repeat(32);
        let line = |network: &str, prefix, flags| {
            format!("{network:0<32} {prefix} {zero} 00 {zero} 00000100 00000001 00000000 {flags}     eth0\n")
        };
        let text = line("fd00", "40", "00000001")
            + &line("fd00000000000000000000000000000a", "80", "80200001")
            + &line("fe80", "zz", "00000001");
        let routes = parse6(&text);
        let [route] = &routes[..] else { panic!("{routes:?}") };
        assert_eq!(route.network(), "fd00::/64");
        for (address, matches) in [("fd00::a", true), ("fd00:0:0:1::a", false), ("::", false)] {
            assert_eq!(route.matches(address.parse().unwrap()), matches, "{address}");
        }
        assert!(Route6 { prefix: 0, ..route.clone() }.matches("2001:db8::1".parse().unwrap()));
        assert!(!Route6 { prefix: 128, ..route.clone() }.matches("fd00::a".parse().unwrap()));
    }
}
