//! Routes of the main table: `/proc/net/route`, `/proc/net/ipv6_route`.

use std::net::Ipv4Addr;

use super::Fact;
use crate::host::{Host, Unreadable};

/// What is known of the routes.
#[derive(Debug)]
pub struct Routes {
    /// IPv4 routes that are up.
    pub v4: Fact<Vec<Route>>,
    /// The IPv6 default route, if there is one.
    pub v6_default: Fact<Option<Default6>>,
}

/// An IPv6 default route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Default6 {
    /// Where it leads out.
    pub interface: String,
    /// Whether the kernel took it from a router's advertisement.
    pub advertised: bool,
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
}

const V4: &str = "/proc/net/route";
const V6: &str = "/proc/net/ipv6_route";

pub(super) fn read(host: &Host) -> Routes {
    // `/proc/net` is a link to `self/net`; a captured tree may hold either.
    Routes {
        v4: host.text(V4).and_then(|text| {
            parse(&text).ok_or_else(|| Unreadable::malformed(V4, "a heading that begins with Iface"))
        }),
        v6_default: host.text_if_present(V6).map(|text| default6(&text.unwrap_or_default())),
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

/// The kernel always lists an unreachable default on `lo`; that is no way out.
fn default6(text: &str) -> Option<Default6> {
    // RTF_ADDRCONF of linux/ipv6_route.h.
    const ADVERTISED: u32 = 0x0004_0000;
    text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [network, "00", .., flags, interface] = fields[..] else { return None };
        let flags = u32::from_str_radix(flags, 16).ok()?;
        (network.bytes().all(|digit| digit == b'0') && interface != "lo")
            .then(|| Default6 { interface: interface.into(), advertised: flags & ADVERTISED != 0 })
    })
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
        let routes = Routes { v4: Ok(parse(TABLE).unwrap()), v6_default: Ok(None) };
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
        let lo = line("00200200", "lo");
        assert_eq!(default6(&lo), None);
        let eth0 = |advertised| Some(Default6 { interface: "eth0".into(), advertised });
        assert_eq!(default6(&(lo.clone() + &line("00450003", "eth0"))), eth0(true));
        assert_eq!(default6(&(lo + &line("00000003", "eth0"))), eth0(false));
    }
}
