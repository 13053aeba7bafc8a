//! Who listens: `/proc/net/tcp`, `tcp6`, `udp`, `udp6`, and the processes behind them.

use std::fmt;

use super::Fact;
use super::unit::Units;
use crate::host::{Host, Unreadable};

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// A socket that waits for others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its port.
    pub port: u16,
    /// The name of the process that holds it, where that was looked for and may be seen.
    pub owner: Option<String>,
    /// What the kernel knows the socket by.
    inode: u64,
}

/// TCP_LISTEN, as the kernel prints it.
const LISTENING: &str = "0A";

/// Reads who listens. Owners are looked for while K3s does not run here: who holds its ports then is a stranger,
/// and looking through every process takes its time.
pub(super) fn read(host: &Host, units: &Units) -> Fact<Vec<Listener>> {
    let mut listeners = Vec::new();
    for (protocol, file) in
        [(Protocol::Tcp, "tcp"), (Protocol::Tcp, "tcp6"), (Protocol::Udp, "udp"), (Protocol::Udp, "udp6")]
    {
        let path = format!("/proc/net/{file}");
        // Without IPv6 the kernel has no tcp6 and udp6.
        let Some(text) = host.text_until(&path, |lines, room| ends_listeners(protocol, lines, room))? else {
            continue;
        };
        let found = parse(protocol, &text)
            .ok_or_else(|| Unreadable::malformed(&path, "a heading with local_address"))?;
        for listener in found {
            let known = |other: &Listener| {
                (other.protocol, other.port, other.inode)
                    == (listener.protocol, listener.port, listener.inode)
            };
            if !listeners.iter().any(known) {
                listeners.push(listener);
            }
        }
    }
    let k3s_runs = ["k3s", "k3s-agent"].iter().any(|unit| units.uses(unit) == Ok(true));
    if !k3s_runs && listeners.iter().any(super::port::is_needed) {
        name_owners(host, &mut listeners);
    }
    Ok(listeners)
}

/// proc_net_tcp(5): `sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode ...`.
fn parse(protocol: Protocol, text: &str) -> Option<Vec<Listener>> {
    let mut lines = text.lines();
    if !lines.next()?.contains("local_address") {
        return None;
    }
    // TCP_LISTEN, and for UDP a socket without a peer.
    let waiting = match protocol {
        Protocol::Tcp => LISTENING,
        Protocol::Udp => "07",
    };
    let listener = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let port = u16::from_str_radix(fields.get(1)?.rsplit(':').next()?, 16).ok()?;
        let listens = *fields.get(3)? == waiting;
        listens.then_some(Listener { protocol, port, owner: None, inode: fields.get(9)?.parse().ok()? })
    };
    Some(lines.filter_map(listener).collect())
}

/// The longest line that the kernel prints, in bytes, and more.
const LINE: usize = 512;

/// The kernel lists TCP's listeners before its connections, and to list those it walks a table that grows with the
/// machine's memory: milliseconds for nothing, and at the end of the file once more. It fills a page as long as there
/// are lines (fs/seq_file.c), so room for one is the end.
fn ends_listeners(protocol: Protocol, lines: &str, room: usize) -> bool {
    let listening = |line: &str| line.split_whitespace().nth(3) == Some(LISTENING);
    let connection = lines.lines().skip(1).last().is_some_and(|line| !listening(line));
    protocol == Protocol::Tcp && (connection || room > LINE)
}

/// Processes of others are closed to all but root; those stay without a name.
fn name_owners(host: &Host, listeners: &mut [Listener]) {
    for process in host.list("/proc").unwrap_or_default() {
        if !process.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        for descriptor in host.list(&format!("/proc/{process}/fd")).unwrap_or_default() {
            let target = host.link(&format!("/proc/{process}/fd/{descriptor}"));
            let inode = target
                .and_then(|target| target.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok());
            for listener in listeners.iter_mut().filter(|listener| Some(listener.inode) == inode) {
                let name = host.text(&format!("/proc/{process}/comm")).ok();
                listener.owner = name.map(|name| name.trim().to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_that_wait_are_read_with_their_port() {
        let heading = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
        let tcp = format!(
            "{heading}   0: 00000000:192B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1234 1\n\
             \x20  1: 0100007F:0016 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 99 1\n"
        );
        let expected = Listener { protocol: Protocol::Tcp, port: 6443, owner: None, inode: 1234 };
        assert_eq!(parse(Protocol::Tcp, &tcp), Some(vec![expected]));
        assert!(ends_listeners(Protocol::Tcp, &tcp, 0), "the second line is a connection");
        assert!(ends_listeners(Protocol::Tcp, heading, 4000) && !ends_listeners(Protocol::Tcp, heading, 100));
        assert_eq!(parse(Protocol::Udp, heading), Some(vec![]));
        assert_eq!(parse(Protocol::Tcp, "garbage"), None);
    }
}
