//! The node's link to its peers: which device, which address, how long its header is.

use std::net::Ipv4Addr;

use nix::{
    ifaddrs::getifaddrs,
    sys::{
        socket::{AddressFamily, SockaddrLike},
        utsname::uname,
    },
};

use crate::host::Host;

/// The link that probes leave by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// Device name.
    pub name: String,
    /// Its first IPv4 address.
    pub address: Ipv4Addr,
    /// Bytes before the IPv4 header: 14 on Ethernet and Wi-Fi, 0 on tunnels.
    pub header_length: u32,
    /// The kernel's number of the device: another one means that it was made anew, without our programs.
    pub index: u32,
}

/// Why there is no uplink: one cause and one next step.
#[derive(Debug, thiserror::Error)]
pub enum NoUplink {
    /// No default route and no `probe.uplink`.
    #[error("no IPv4 default route; set probe.uplink to the node's network device")]
    NoRoute,
    /// The device has no address, or is not there.
    #[error("{0} has no IPv4 address; is the cable in?")]
    NoAddress(String),
    /// The kernel did not say.
    #[error("reading the network devices: {0}")]
    Unreadable(String),
}

impl Uplink {
    /// Finds the link: `wanted`, or the device of the default route with the lowest metric.
    ///
    /// # Errors
    /// See [`NoUplink`].
    pub fn find(host: &Host, wanted: Option<&str>) -> Result<Self, NoUplink> {
        let name = match wanted {
            Some(name) => name.to_owned(),
            None => {
                let routes = host.text("/proc/net/route").map_err(|e| NoUplink::Unreadable(e.to_string()))?;
                default_device(&routes).ok_or(NoUplink::NoRoute)?
            }
        };
        let (mut address, mut hardware) = (None, None);
        for link in getifaddrs().map_err(|e| NoUplink::Unreadable(e.to_string()))? {
            if link.interface_name != name {
                continue;
            }
            let Some(at) = link.address else { continue };
            match at.family() {
                Some(AddressFamily::Inet) if address.is_none() => {
                    address = at.as_sockaddr_in().map(nix::sys::socket::SockaddrIn::ip);
                }
                Some(AddressFamily::Packet) => {
                    hardware = at.as_link_addr().map(|l| (l.hatype(), l.ifindex()))
                }
                _ => {}
            }
        }
        /// `ARPHRD_ETHER`; Wi-Fi says the same.
        const ETHERNET: u16 = 1;
        let (hardware, index) = hardware.unwrap_or_default();
        match address {
            Some(address) => {
                let header_length = if hardware == ETHERNET { 14 } else { 0 };
                Ok(Self { name, address, header_length, index: index as u32 })
            }
            None => Err(NoUplink::NoAddress(name)),
        }
    }
}

/// Device of the default route with the lowest metric in `/proc/net/route`.
fn default_device(routes: &str) -> Option<String> {
    routes
        .lines()
        .skip(1)
        .filter_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let [device, "00000000", _, _, _, _, metric, "00000000", ..] = columns[..] else { return None };
            Some((metric.parse::<u32>().ok()?, device.to_owned()))
        })
        .min()
        .map(|(_, device)| device)
}

/// Whether the kernel can attach by tcx: since 6.6. The release is asked only to avoid an attempt that leaves a line in the
/// log; where it is wrong, attaching says so.
pub fn has_tcx() -> bool {
    let Ok(name) = uname() else { return false };
    let release = name.release().to_string_lossy();
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (parts.next(), parts.next()) else { return false };
    (major, minor) >= (6, 6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_with_the_lowest_metric_wins() {
        let routes = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
            wlan0\t00000000\t0100A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
            eth0\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
            eth0\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(default_device(routes).as_deref(), Some("eth0"));
        assert_eq!(default_device("Iface\n"), None);
        assert_eq!(default_device(""), None);
    }
}
