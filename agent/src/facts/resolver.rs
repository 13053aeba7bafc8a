//! Who answers names: `/etc/resolv.conf`, and what systemd-resolved asks in turn.

use super::Fact;
use crate::host::Host;

/// What is known of name servers.
#[derive(Debug)]
pub struct Resolver {
    /// Addresses in `/etc/resolv.conf`.
    pub servers: Fact<Vec<String>>,
    /// Addresses in `/run/systemd/resolve/resolv.conf`; none without systemd-resolved.
    pub behind_stub: Fact<Vec<String>>,
}

/// The file that systemd-resolved writes with the servers it asks.
pub const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";

/// Whether an address leads back to the host itself, which a pod has none of.
pub fn is_loopback(server: &str) -> bool {
    server.starts_with("127.") || server == "::1"
}

pub(super) fn read(host: &Host) -> Resolver {
    Resolver {
        servers: host.text("/etc/resolv.conf").map(|text| servers(&text)),
        behind_stub: host.text_if_present(BEHIND_STUB).map(|text| servers(&text.unwrap_or_default())),
    }
}

fn servers(text: &str) -> Vec<String> {
    let address = |line: &str| Some(line.trim().strip_prefix("nameserver")?.trim().to_string());
    text.lines().filter_map(address).filter(|address| !address.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_in_order() {
        assert_eq!(
            servers("# x\nnameserver 127.0.0.53\nsearch home\nnameserver\t9.9.9.9\n"),
            ["127.0.0.53", "9.9.9.9"]
        );
        assert!(is_loopback("127.0.0.53") && is_loopback("::1") && !is_loopback("192.168.1.1"));
    }
}
