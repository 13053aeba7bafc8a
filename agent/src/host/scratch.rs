//! Tries what a kernel's network can do, in a network namespace that is thrown away at once.
//!
//! The namespace belongs to one thread and ends with it, and with it all that was made inside: no link, rule or table
//! of the machine is touched, and no thread but that one ever sees it. The kernel may load a module to carry a trial
//! out; who must not cause that asks only for what needs none. It runs no program.

use std::io;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::SockProtocol;

use super::netlink::{CREATE, NESTED, Netlink, REQUEST, attribute, message, text};
use super::{Host, Unreadable, failed};
use super::{bpf_offer, legacy};

/// Something that is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trial {
    /// Create a link of this kind, as `ip link add type KIND`.
    Link(Link),
    /// Add a queueing discipline to the loopback, as `tc qdisc add dev lo`.
    Queue(Queue),
    /// Attach a BPF program to the loopback by tcx.
    Tcx,
    /// Look at a table of legacy iptables, as `iptables-legacy -t TABLE -S`.
    Legacy(Family, &'static str),
    /// Make a NAT chain, as `nft add chain FAMILY x y { type nat hook postrouting ... }`.
    Nft(Family),
    /// Make a set, as `ipset create x hash:ip`.
    IpSet,
}

/// Kinds of links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// A pair of virtual Ethernet devices.
    Veth,
    /// A pair of netkit devices.
    Netkit,
    /// A VXLAN tunnel whose packets name their peer, as Cilium makes it.
    Vxlan,
    /// A GENEVE tunnel whose packets name their peer, as Cilium makes it.
    Geneve,
    /// A WireGuard device.
    Wireguard,
}

/// Kinds of queueing disciplines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// The place of classifiers at ingress and egress.
    Clsact,
    /// Fair queueing with departure times.
    Fq,
}

/// Families of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Host {
    /// Tries each in one scratch namespace; whether it worked, in the same order.
    ///
    /// Needs `CAP_SYS_ADMIN` for the namespace and `CAP_BPF` for tcx. A captured tree cannot tell.
    pub fn try_out(&self, trials: &[Trial]) -> Vec<Result<bool, Unreadable>> {
        const QUERY: &str = "unshare(CLONE_NEWNET)";
        let none = |unreadable: Unreadable| vec![Err(unreadable); trials.len()];
        if !self.is_live() {
            return none(Unreadable::not_live("a scratch network namespace"));
        }
        let work = || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| failed(QUERY, errno))?;
            Ok(trials.iter().map(|trial| trial.verdict()).collect())
        };
        // The namespace is the thread's alone, so it ends with it.
        let joined = std::thread::scope(|scope| {
            std::thread::Builder::new()
                .stack_size(256 << 10)
                .spawn_scoped(scope, work)
                .map(|thread| thread.join())
        });
        match joined {
            Ok(Ok(Ok(verdicts))) => verdicts,
            Ok(Ok(Err(unreadable))) => none(unreadable),
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(error) => none(failed("a thread for a scratch namespace", super::errno_of(&error))),
        }
    }
}

impl Trial {
    fn verdict(&self) -> Result<bool, Unreadable> {
        let Err(error) = self.attempt() else { return Ok(true) };
        let number = error.raw_os_error().unwrap_or(libc::EIO);
        if self.unknown().contains(&number) {
            return Ok(false);
        }
        // ipset numbers its own errors from 4096, beyond all that have a name.
        let errno = if number < 4096 { Errno::from_raw(number) } else { Errno::EPROTO };
        Err(failed(&self.query(), errno))
    }

    /// The errors by which the kernel says that it does not know such a thing.
    fn unknown(&self) -> &'static [i32] {
        /// `IPSET_ERR_FIND_TYPE` of linux/netfilter/ipset/ip_set.h.
        const NO_SUCH_SET: i32 = 4098;
        const NO_NETFILTER: [i32; 4] =
            [libc::EOPNOTSUPP, libc::ENOENT, libc::EAFNOSUPPORT, libc::EPROTONOSUPPORT];
        match self {
            Trial::Link(_) => &[libc::EOPNOTSUPP],
            Trial::Queue(_) => &[libc::ENOENT],
            Trial::Tcx => &[libc::EINVAL],
            Trial::Legacy(..) => {
                &[libc::ENOPROTOOPT, libc::ENOENT, libc::EAFNOSUPPORT, libc::EPROTONOSUPPORT]
            }
            Trial::Nft(_) => &NO_NETFILTER,
            Trial::IpSet => &[libc::EOPNOTSUPP, libc::EINVAL, libc::EPROTONOSUPPORT, NO_SUCH_SET],
        }
    }

    /// What is asked, in a person's words.
    fn query(&self) -> String {
        match self {
            Trial::Link(link) => format!("creating a {} link", link.kind()),
            Trial::Queue(queue) => format!("adding a {} qdisc", queue.kind()),
            Trial::Tcx => "attaching a program by tcx".into(),
            Trial::Legacy(Family::V4, table) => format!("getsockopt(IPT_SO_GET_INFO, {table})"),
            Trial::Legacy(Family::V6, table) => format!("getsockopt(IP6T_SO_GET_INFO, {table})"),
            Trial::Nft(_) => "making an nftables NAT chain".into(),
            Trial::IpSet => "making an IP set".into(),
        }
    }

    fn attempt(&self) -> io::Result<()> {
        match self {
            Trial::Link(link) => Netlink::open(SockProtocol::NetlinkRoute)?.request(&[link.request()]),
            Trial::Queue(queue) => Netlink::open(SockProtocol::NetlinkRoute)?.request(&[queue.request()]),
            Trial::Tcx => bpf_offer::attach_tcx(LOOPBACK),
            Trial::Legacy(family, table) => legacy::look(*family, table),
            Trial::Nft(family) => Netlink::open(SockProtocol::NetlinkNetFilter)?.request(&nat_chain(*family)),
            Trial::IpSet => Netlink::open(SockProtocol::NetlinkNetFilter)?.request(&[set()]),
        }
    }
}

/// The loopback is the first link of every network namespace.
const LOOPBACK: i32 = 1;

impl Link {
    fn kind(self) -> &'static str {
        match self {
            Link::Veth => "veth",
            Link::Netkit => "netkit",
            Link::Vxlan => "vxlan",
            Link::Geneve => "geneve",
            Link::Wireguard => "wireguard",
        }
    }

    fn request(self) -> Vec<u8> {
        // IFLA_VXLAN_COLLECT_METADATA is a number, IFLA_GENEVE_COLLECT_METADATA a flag.
        let data = match self {
            Link::Vxlan => Some(attribute(25, &[1])),
            Link::Geneve => Some(attribute(6, &[])),
            Link::Veth | Link::Netkit | Link::Wireguard => None,
        };
        let mut info = text(libc::IFLA_INFO_KIND, self.kind());
        if let Some(data) = data {
            info.extend(attribute(libc::IFLA_INFO_DATA | NESTED, &data));
        }
        // `struct ifinfomsg`, all zeroes: any family, no index yet.
        message(libc::RTM_NEWLINK, CREATE, &[&[0; 16], &attribute(libc::IFLA_LINKINFO | NESTED, &info)])
    }
}

impl Queue {
    fn kind(self) -> &'static str {
        match self {
            Queue::Clsact => "clsact",
            Queue::Fq => "fq",
        }
    }

    fn request(self) -> Vec<u8> {
        // TC_H_CLSACT and its only handle; TC_H_ROOT and a handle of the kernel's choice.
        let (handle, parent) = match self {
            Queue::Clsact => (0xffff_0000u32, 0xffff_fff1u32),
            Queue::Fq => (0, 0xffff_ffff),
        };
        // `struct tcmsg`: family, padding, link, handle, parent, info.
        let header =
            [[0; 4], LOOPBACK.to_ne_bytes(), handle.to_ne_bytes(), parent.to_ne_bytes(), [0; 4]].concat();
        message(libc::RTM_NEWQDISC, CREATE, &[&header, &text(libc::TCA_KIND, self.kind())])
    }
}

/// A batch of nf_tables (linux/netfilter/nf_tables.h): a table, and in it a chain that translates addresses.
fn nat_chain(family: Family) -> [Vec<u8>; 4] {
    const NF_TABLES: u16 = 10;
    const NEW_TABLE: u16 = NF_TABLES << 8;
    const NEW_CHAIN: u16 = NF_TABLES << 8 | 3;
    // `enum nfproto`, which is not that of socket(2).
    let family = match family {
        Family::V4 => 2,
        Family::V6 => 10,
    };
    // `struct nfgenmsg`: family, version, resource; of a batch's ends the resource is the subsystem.
    let header = [family, 0, 0, 0];
    let edge = [0, 0, 0, NF_TABLES as u8];
    const POSTROUTING: u32 = 4;
    const PRIORITY: u32 = 100;
    let hook = [attribute(1, &POSTROUTING.to_be_bytes()), attribute(2, &PRIORITY.to_be_bytes())].concat();
    [
        message(16, REQUEST, &[&edge]),
        message(NEW_TABLE, REQUEST | libc::NLM_F_CREATE as u16, &[&header, &text(1, "bramble")]),
        message(
            NEW_CHAIN,
            CREATE,
            &[&header, &text(1, "bramble"), &text(3, "nat"), &attribute(4 | NESTED, &hook), &text(7, "nat")],
        ),
        message(17, REQUEST, &[&edge]),
    ]
}

/// `IPSET_CMD_CREATE` of linux/netfilter/ipset/ip_set.h: an empty set of IPv4 addresses.
fn set() -> Vec<u8> {
    const CREATE_SET: u16 = 6 << 8 | 2;
    message(
        CREATE_SET,
        CREATE,
        &[
            &[2, 0, 0, 0],
            // Protocol, name, type, revision, family of addresses, no further data.
            &attribute(1, &[6]),
            &text(2, "bramble"),
            &text(3, "hash:ip"),
            &attribute(4, &[0]),
            &attribute(5, &[2]),
            &attribute(7 | NESTED, &[]),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Why;

    const ALL: &[Trial] = &[
        Trial::Link(Link::Veth),
        Trial::Link(Link::Netkit),
        Trial::Link(Link::Vxlan),
        Trial::Link(Link::Geneve),
        Trial::Link(Link::Wireguard),
        Trial::Queue(Queue::Clsact),
        Trial::Queue(Queue::Fq),
        Trial::Tcx,
        Trial::Legacy(Family::V4, "nat"),
        Trial::Legacy(Family::V6, "nat"),
        Trial::Nft(Family::V4),
        Trial::Nft(Family::V6),
        Trial::IpSet,
    ];

    #[test]
    fn every_trial_ends_in_yes_or_no_or_lacks_the_right() {
        for (trial, verdict) in ALL.iter().zip(Host::live().unwrap().try_out(ALL)) {
            let told = matches!(&verdict, Ok(_) | Err(Unreadable { why: Why::Denied, .. }));
            assert!(told, "{trial:?}: {verdict:?}");
        }
    }

    #[test]
    fn the_thread_that_asks_stays_in_its_namespace() {
        let host = Host::live().unwrap();
        let namespace = || nix::fcntl::readlink("/proc/thread-self/ns/net").unwrap();
        let links = || host.list("/sys/class/net").unwrap();
        let before = (namespace(), links());
        host.try_out(ALL);
        assert_eq!((namespace(), links()), before);
    }

    #[test]
    fn a_captured_tree_tries_nothing() {
        let tree = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/hosts/pi4-trixie-4k");
        let verdicts = Host::tree(tree.as_ref()).unwrap().try_out(ALL);
        assert_eq!(verdicts.len(), ALL.len());
        for verdict in verdicts {
            assert_eq!(verdict.unwrap_err().why, Why::NotLive);
        }
    }
}
