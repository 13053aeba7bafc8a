//! What networks have in the kernel, by rtnetlink(7): rules and routes, which everybody may read; and what a network for
//! containers left, taken away by name: links, rules, routes, filters, sets.
//!
//! Each that takes away is of the writing half and answers whether there was something; that it is gone already is as good.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;

use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::sys::socket::SockProtocol;

use super::netlink::{Netlink, REQUEST, attribute, message, text};
use super::write::{HostMut, NotDone, failpoint};
use super::{Host, Unreadable, Why};

const ACK: u16 = REQUEST | libc::NLM_F_ACK as u16;
const DUMP: u16 = REQUEST | libc::NLM_F_DUMP as u16;
/// The parents of filters at a link's ingress and egress (linux/pkt_sched.h, `TC_H_CLSACT`).
const DIRECTIONS: [u32; 2] = [0xffff_fff2, 0xffff_fff3];

/// A rule of the routing policy, as far as it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Its place: rules are asked in this order.
    pub priority: u32,
    /// The mark that packets must have; 0 = any.
    pub mark: u32,
    /// Which bits of the mark count.
    pub mask: u32,
    /// The routing table that it leads to.
    pub table: u32,
    /// Whether every packet is led there, and to every route of the table.
    pub is_for_all: bool,
}

/// How one family of addresses finds its ways.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// In the order in which they are asked.
    pub rules: Vec<Rule>,
    /// The tables that hold routes.
    pub tables: BTreeSet<u32>,
}

/// The table of the machine's own addresses.
const LOCAL: u32 = libc::RT_TABLE_LOCAL as u32;

impl Host {
    /// The rules and tables of IPv4.
    ///
    /// # Errors
    /// On a captured tree, or when the kernel refuses.
    pub fn policy(&self) -> Result<Policy, Unreadable> {
        self.policy_of(libc::AF_INET)
    }

    /// The rules and tables of IPv6; `None` when the kernel runs without it.
    ///
    /// # Errors
    /// On a captured tree, or when the kernel refuses.
    pub fn policy6(&self) -> Result<Option<Policy>, Unreadable> {
        if self.is_live() && !self.present("/proc/net/if_inet6")? {
            return Ok(None);
        }
        self.policy_of(libc::AF_INET6).map(Some)
    }

    /// The IPv4 addresses of all interfaces: the interface, the address, the length of the network's prefix.
    ///
    /// # Errors
    /// On a captured tree, or when the kernel refuses.
    pub fn networks(&self) -> Result<Vec<(String, Ipv4Addr, u32)>, Unreadable> {
        let failed = |why| Unreadable { path: "addresses of interfaces".into(), why };
        if !self.is_live() {
            return Err(failed(Why::NotLive));
        }
        let all = getifaddrs().map_err(|errno| failed(Why::Failed(errno.desc().into())))?;
        let of = |one: InterfaceAddress| {
            let address = one.address?.as_sockaddr_in()?.ip();
            let mask = one.netmask?.as_sockaddr_in()?.ip();
            // A second address of an interface may carry a label of its own: "eth0:1".
            let name = one.interface_name.split(':').next()?.to_owned();
            Some((name, address, mask.to_bits().leading_ones()))
        };
        Ok(all.filter_map(of).collect())
    }

    fn policy_of(&self, family: i32) -> Result<Policy, Unreadable> {
        let failed = |why| Unreadable { path: "rules of routing".into(), why };
        if !self.is_live() {
            return Err(failed(Why::NotLive));
        }
        // struct fib_rule_hdr and struct rtmsg are twelve bytes, and begin with the family.
        let head = [family as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let dump = |kind| {
            let answer = route().and_then(|netlink| netlink.dump(&message(kind, DUMP, &[&head])));
            answer.map_err(|error| failed(Why::Failed(error.to_string())))
        };
        Ok(Policy {
            rules: dump(libc::RTM_GETRULE)?.iter().filter_map(|(_, body)| read_rule(body)).collect(),
            tables: dump(libc::RTM_GETROUTE)?.iter().filter_map(|(_, body)| table_of(body)).collect(),
        })
    }
}

impl HostMut {
    /// Deletes a link. Both ends of a veth pair go together.
    pub fn delete_link(&self, name: &str) -> Result<bool, NotDone> {
        // struct ifinfomsg: which one is told by its name.
        let request = message(libc::RTM_DELLINK, ACK, &[&[0; 16], &text(libc::IFLA_IFNAME, name)]);
        self.gone("deleting", &format!("link {name}"), || route()?.request(&[request]))
    }

    /// Deletes the rules, of both families, that are to go; says how many there were.
    ///
    /// The rule that leads to the machine's own addresses is never lost: where only one to be deleted does, it is made
    /// again at its usual place first.
    pub fn delete_rules(&self, is_to_go: impl Fn(&Rule) -> bool) -> Result<usize, NotDone> {
        let mut deleted = 0;
        for family in [libc::AF_INET, libc::AF_INET6] {
            let found =
                self.dump(libc::RTM_GETRULE, &[family as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "rules")?;
            let rules: Vec<(Rule, Vec<u8>)> =
                found.into_iter().filter_map(|body| Some((read_rule(&body)?, body))).collect();
            let stays = |rule: &Rule| rule.table == LOCAL && rule.mark == 0 && !is_to_go(rule);
            let has_local = rules.iter().any(|(rule, _)| stays(rule));
            for (rule, body) in rules.iter().filter(|(rule, _)| is_to_go(rule)) {
                let object = format!("rule {}", rule.priority);
                if rule.table == LOCAL && !has_local {
                    let mut again = body.clone();
                    set_priority(&mut again, 0);
                    let flags = ACK | (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
                    let request = message(libc::RTM_NEWRULE, flags, &[&again]);
                    let made = self.tried("making", "rule 0", || route()?.request(&[request]));
                    made.or_else(|errno| {
                        if errno == libc::EEXIST { Ok(()) } else { Err(failed("making", "rule 0", errno)) }
                    })?;
                }
                let request = message(libc::RTM_DELRULE, ACK, &[body]);
                deleted += usize::from(self.gone("deleting", &object, || route()?.request(&[request]))?);
            }
        }
        Ok(deleted)
    }

    /// Deletes all routes of tables; says how many there were.
    pub fn delete_routes(&self, tables: &[u32]) -> Result<usize, NotDone> {
        let mut deleted = 0;
        for family in [libc::AF_INET, libc::AF_INET6] {
            // struct rtmsg is twelve bytes.
            let found =
                self.dump(libc::RTM_GETROUTE, &[family as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "routes")?;
            for body in
                found.iter().filter(|body| table_of(body).is_some_and(|table| tables.contains(&table)))
            {
                let request = message(libc::RTM_DELROUTE, ACK, &[body]);
                let table = table_of(body).unwrap_or_default();
                let object = format!("a route of table {table}");
                deleted += usize::from(self.gone("deleting", &object, || route()?.request(&[request]))?);
            }
        }
        Ok(deleted)
    }

    /// Detaches the BPF filters of a link whose name begins with `prefix`; says how many there were.
    pub fn delete_filters(&self, link: &str, prefix: &str) -> Result<usize, NotDone> {
        let Some(index) = self.index(link) else { return Ok(0) };
        let mut deleted = 0;
        for parent in DIRECTIONS {
            // struct tcmsg: family, index, handle, parent, info.
            let head = [[0; 4], index.to_ne_bytes(), [0; 4], parent.to_ne_bytes(), [0; 4]].concat();
            let Ok(found) = self.dump(libc::RTM_GETTFILTER, &head, link) else { continue };
            for body in
                found.iter().filter(|body| filter_name(body).is_some_and(|name| name.starts_with(prefix)))
            {
                let request = message(libc::RTM_DELTFILTER, ACK, &[&body[..20], &text(1, "bpf")]);
                let object = format!("a filter of {link}");
                deleted += usize::from(self.gone("detaching", &object, || route()?.request(&[request]))?);
            }
        }
        Ok(deleted)
    }

    /// Destroys a set of addresses that rules of the packet filter used.
    pub fn delete_ipset(&self, name: &str) -> Result<bool, NotDone> {
        // Asking would load the module.
        let loaded = self.host().text_if_present("/proc/modules").ok().flatten().unwrap_or_default();
        if !loaded.lines().any(|line| line.starts_with("ip_set ")) {
            return Ok(false);
        }
        // NFNL_SUBSYS_IPSET with IPSET_CMD_DESTROY; struct nfgenmsg; IPSET_ATTR_PROTOCOL and IPSET_ATTR_SETNAME.
        let body = [vec![libc::AF_INET as u8, 0, 0, 0], attribute(1, &[6]), text(2, name)].concat();
        let request = message((6 << 8) | 3, ACK, &[&body]);
        self.gone("destroying", &format!("set {name}"), || {
            Netlink::open(SockProtocol::NetlinkNetFilter)?.request(&[request])
        })
    }

    fn index(&self, link: &str) -> Option<i32> {
        self.host().text(&format!("/sys/class/net/{link}/ifindex")).ok()?.trim().parse().ok()
    }

    fn dump(&self, kind: u16, head: &[u8], object: &str) -> Result<Vec<Vec<u8>>, NotDone> {
        let asked = self.tried("listing", object, || route()?.dump(&message(kind, DUMP, &[head])));
        let answers = asked.map_err(|errno| failed("listing", object, errno))?;
        Ok(answers.into_iter().map(|(_, body)| body).collect())
    }

    fn gone(
        &self,
        doing: &'static str,
        object: &str,
        ask: impl FnOnce() -> io::Result<()>,
    ) -> Result<bool, NotDone> {
        match self.tried(doing, object, ask) {
            Ok(()) => Ok(true),
            Err(libc::ENODEV | libc::ENOENT | libc::ESRCH) => Ok(false),
            Err(errno) => Err(failed(doing, object, errno)),
        }
    }

    fn tried<T>(
        &self,
        _doing: &'static str,
        _object: &str,
        ask: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, i32> {
        if !self.host().is_live() {
            return Err(libc::ENODEV);
        }
        failpoint();
        ask().map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
    }
}

fn route() -> io::Result<Netlink> {
    Netlink::open(SockProtocol::NetlinkRoute)
}

fn failed(doing: &'static str, object: &str, errno: i32) -> NotDone {
    let why = nix::errno::Errno::from_raw(errno).desc().to_lowercase();
    NotDone::new(doing, object, why, "reboot, which takes it away, then run it again")
}

/// Attributes behind a header of `head` bytes: each kind with its value.
fn attributes(body: &[u8], head: usize) -> Vec<(u16, &[u8])> {
    let mut list = Vec::new();
    let mut rest = body.get(head..).unwrap_or_default();
    while let Some((first, _)) = rest.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([first[0], first[1]]));
        let Some(value) = rest.get(4..length) else { break };
        list.push((u16::from_ne_bytes([first[2], first[3]]) & 0x3fff, value));
        rest = rest.get(length.next_multiple_of(4).max(4)..).unwrap_or_default();
    }
    list
}

fn number(attributes: &[(u16, &[u8])], kind: u16) -> Option<u32> {
    let (_, value) = attributes.iter().find(|(other, _)| *other == kind)?;
    Some(u32::from_ne_bytes(*value.first_chunk()?))
}

/// FRA_PRIORITY, FRA_FWMARK, FRA_TABLE, FRA_FWMASK (linux/fib_rules.h).
fn read_rule(body: &[u8]) -> Option<Rule> {
    /// Addresses, interfaces, users, ports and the like; FRA_SUPPRESS_IFGROUP is only told where there is one.
    const NARROWING: [u16; 13] = [1, 2, 3, 4, 12, 13, 17, 19, 20, 22, 23, 24, 25];
    /// FRA_SUPPRESS_PREFIXLEN, always told: without one all bits.
    const SUPPRESSED: u16 = 14;
    /// FR_ACT_TO_TBL, and the flag FIB_RULE_INVERT.
    const TO_TABLE: u8 = 1;
    const INVERTED: u32 = 2;
    // struct fib_rule_hdr is twelve bytes: family, two lengths, tos, the table where that fits into a byte, two unused,
    // the action, flags.
    let (head, _) = body.split_first_chunk::<12>()?;
    let attributes = attributes(body, 12);
    let (mark, mask) = (number(&attributes, 10).unwrap_or(0), number(&attributes, 16).unwrap_or(0));
    let flags = u32::from_ne_bytes([head[8], head[9], head[10], head[11]]);
    Some(Rule {
        priority: number(&attributes, 6).unwrap_or(0),
        mark,
        mask,
        table: number(&attributes, 15).unwrap_or(u32::from(head[4])),
        is_for_all: (mark, mask, head[3]) == (0, 0, 0)
            && head[7] == TO_TABLE
            && flags & INVERTED == 0
            && number(&attributes, SUPPRESSED).is_none_or(|length| length == u32::MAX)
            && !attributes.iter().any(|(kind, _)| NARROWING.contains(kind)),
    })
}

/// Gives a rule another place. Without the attribute its place is 0.
fn set_priority(body: &mut Vec<u8>, priority: u32) {
    let kept: Vec<Vec<u8>> = attributes(body, 12)
        .into_iter()
        .filter(|(kind, _)| *kind != 6)
        .map(|(kind, value)| attribute(kind, value))
        .collect();
    body.truncate(12);
    body.extend(kept.concat());
    body.extend(attribute(6, &priority.to_ne_bytes()));
}

/// RTA_TABLE; the fifth byte of struct rtmsg where it fits.
fn table_of(body: &[u8]) -> Option<u32> {
    number(&attributes(body, 12), 15).or(body.get(4).map(|table| u32::from(*table)))
}

/// TCA_OPTIONS with TCA_BPF_NAME behind struct tcmsg.
fn filter_name(body: &[u8]) -> Option<String> {
    let outer = attributes(body, 20);
    let (_, options) = outer.iter().find(|(kind, _)| *kind == 2)?;
    let inner = attributes(options, 0);
    let (_, name) = inner.iter().find(|(kind, _)| *kind == 7)?;
    Some(String::from_utf8_lossy(name.split(|byte| *byte == 0).next()?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(priority: u32, mark: u32, mask: u32, table: u32) -> Vec<u8> {
        let head = [libc::AF_INET as u8, 0, 0, 0, 252, 0, 0, 1, 0, 0, 0, 0];
        let number = |kind, value: u32| attribute(kind, &value.to_ne_bytes());
        [head.to_vec(), number(6, priority), number(10, mark), number(16, mask), number(15, table)].concat()
    }

    #[test]
    fn a_rule_is_read_and_moved_to_another_place() {
        let read =
            |priority, mark, mask, table, is_for_all| Some(Rule { priority, mark, mask, table, is_for_all });
        let mut body = rule(9, 0x200, 0xf00, 2004);
        assert_eq!(read_rule(&body), read(9, 0x200, 0xf00, 2004, false));
        set_priority(&mut body, 0);
        assert_eq!(read_rule(&body), read(0, 0x200, 0xf00, 2004, false));
        let plain = [2, 0, 0, 0, 255, 0, 0, 1, 0, 0, 0, 0];
        assert_eq!(read_rule(&plain), read(0, 0, 0, 255, true));
        assert_eq!(read_rule(&[]), None);
    }

    #[test]
    fn a_rule_for_some_packets_or_some_routes_is_not_for_all() {
        let main = |flags: u8, more: &[u8]| {
            let head = [libc::AF_INET as u8, 0, 0, 0, 254, 0, 0, 1, flags, 0, 0, 0];
            read_rule(&[&head, more].concat()).unwrap().is_for_all
        };
        assert!(main(0, &attribute(14, &u32::MAX.to_ne_bytes())));
        // As wg-quick makes it.
        assert!(!main(0, &attribute(14, &0u32.to_ne_bytes())));
        assert!(!main(2, &[]), "all but");
        assert!(!main(0, &text(3, "eth0")));
        assert!(!main(0, &attribute(2, &[10, 0, 0, 0])));
    }

    #[test]
    fn the_loopback_s_network_is_among_the_host_s_own() {
        let networks = Host::live().unwrap().networks().unwrap();
        assert!(networks.contains(&("lo".to_owned(), Ipv4Addr::LOCALHOST, 8)), "{networks:?}");
    }

    #[test]
    fn the_kernel_s_own_rules_are_read_without_a_right() {
        let policy = Host::live().unwrap().policy().unwrap();
        let led =
            |table: u8| policy.rules.iter().any(|rule| rule.table == u32::from(table) && rule.is_for_all);
        assert!(led(libc::RT_TABLE_LOCAL) && led(libc::RT_TABLE_MAIN), "{policy:?}");
        assert!(policy.tables.contains(&LOCAL), "{policy:?}");
    }

    #[test]
    fn the_name_of_a_filter_stands_in_its_options() {
        let options = attribute(2, &[attribute(6, &[0; 4]), text(7, "cil_from_netdev-eth0")].concat());
        let body = [vec![0; 20], text(1, "bpf"), options].concat();
        assert_eq!(filter_name(&body).as_deref(), Some("cil_from_netdev-eth0"));
        assert_eq!(filter_name(&[0; 20]), None);
        assert_eq!(filter_name(&[0; 7]), None);
    }
}
