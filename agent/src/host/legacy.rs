//! The tables of legacy iptables, as its own program reads them: `IPT_SO_GET_INFO`, then `IPT_SO_GET_ENTRIES`
//! (linux/netfilter_ipv4/ip_tables.h, netfilter_ipv6/ip6_tables.h). Only root is answered, and nothing is changed.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use super::scratch::Family;
use super::{Host, Unreadable, failed};

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`, and of IPv6 the same numbers.
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;
/// `struct ipt_getinfo`: the table's name, the hooks that lead into it, where each hook's rules begin and where its
/// policy stands, how many rules there are, and their size.
const INFO: usize = 32 + 4 * 13;
/// `struct ipt_get_entries` without the entries: the table's name, their size, up to a multiple of eight.
const HEAD: usize = 40;
/// `NF_INET_LOCAL_IN` and `NF_INET_FORWARD`.
const INPUT: usize = 1;
const FORWARD: usize = 2;
/// The verdict of a rule that drops: -NF_DROP - 1.
const DROP: i32 = -1;
/// How often a table is read anew that changed while it was.
const TRIES: u32 = 5;

/// A table, as far as it is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) family: Family,
    /// "filter", "nat", ...
    pub(super) name: String,
    /// The chains that somebody made.
    pub(super) chains: Vec<String>,
    /// Whether what no rule speaks of is dropped, on its way in and on its way through.
    pub(super) drops_input: bool,
    pub(super) drops_forward: bool,
}

impl Host {
    /// The tables that are there. Of those that are not none is asked for: that would load their modules.
    pub(super) fn legacy_tables(&self) -> Result<Vec<Table>, Unreadable> {
        if !self.is_live() {
            return Err(Unreadable::not_live("tables of legacy iptables"));
        }
        let mut tables = Vec::new();
        for (family, path) in
            [(Family::V4, "/proc/net/ip_tables_names"), (Family::V6, "/proc/net/ip6_tables_names")]
        {
            let names = self.text_if_present(path)?.unwrap_or_default();
            for name in names.lines().map(str::trim).filter(|name| !name.is_empty()) {
                let asked = read(family, name).map_err(|errno| failed(path, errno))?;
                let malformed = || Unreadable::malformed(path, format!("rules in the table {name}"));
                let (info, entries) = asked;
                tables.push(table(family, name, &info, &entries).ok_or_else(malformed)?);
            }
        }
        Ok(tables)
    }
}

/// Whether the kernel has a table, by asking for its size; that makes it, and loads its modules.
pub(super) fn look(family: Family, name: &str) -> io::Result<()> {
    let socket = open(family)?;
    let mut info = named(name, INFO)?;
    Ok(get(&socket, family, GET_INFO, &mut info)?)
}

fn read(family: Family, name: &str) -> Result<(Vec<u8>, Vec<u8>), Errno> {
    let socket = open(family)?;
    let mut tries = 0;
    loop {
        let mut info = named(name, INFO)?;
        get(&socket, family, GET_INFO, &mut info)?;
        let size = number(&info, INFO - 4).unwrap_or_default();
        let mut entries = named(name, HEAD + size as usize)?;
        entries[32..36].copy_from_slice(&size.to_ne_bytes());
        match get(&socket, family, GET_ENTRIES, &mut entries) {
            // Somebody has put another table in its place since.
            Err(Errno::EAGAIN) if tries < TRIES => tries += 1,
            Err(errno) => return Err(errno),
            Ok(()) => return Ok((info, entries.split_off(HEAD))),
        }
    }
}

fn open(family: Family) -> Result<OwnedFd, Errno> {
    let domain = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    socket(domain, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)
}

/// Zeroes behind a table's name.
fn named(name: &str, length: usize) -> Result<Vec<u8>, Errno> {
    if name.len() >= 32 {
        return Err(Errno::ENOENT);
    }
    let mut bytes = vec![0; length];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    Ok(bytes)
}

#[allow(unsafe_code, reason = "no crate wraps these questions")]
fn get(socket: &OwnedFd, family: Family, question: i32, answer: &mut [u8]) -> Result<(), Errno> {
    let level = match family {
        Family::V4 => libc::IPPROTO_IP,
        Family::V6 => libc::IPPROTO_IPV6,
    };
    let mut length = answer.len() as libc::socklen_t;
    // SAFETY: the pointers are to a live, writable slice and its length; the kernel writes no further than that.
    let done = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, question, answer.as_mut_ptr().cast(), &raw mut length)
    };
    if done < 0 { Err(Errno::last()) } else { Ok(()) }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn short(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?)))
}

/// What the kernel's answer comes to.
fn table(family: Family, name: &str, info: &[u8], entries: &[u8]) -> Option<Table> {
    // In `struct ipt_entry` and `struct ip6t_entry`: where the target begins, and behind it where the next rule does.
    let target_at = match family {
        Family::V4 => 88,
        Family::V6 => 140,
    };
    let hooks = number(info, 32)?;
    let policy = |hook: usize| {
        if hooks & (1 << hook) == 0 {
            return Some(false);
        }
        let rule = entries.get(number(info, 32 + 4 * (6 + hook))? as usize..)?;
        // Behind `struct xt_entry_target`, which is as long as a name may be.
        let verdict = short(rule, target_at)? + mem::size_of::<[u8; 32]>();
        Some(number(rule, verdict)? as i32 == DROP)
    };
    let (drops_input, drops_forward) = (policy(INPUT)?, policy(FORWARD)?);
    let mut chains = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let target = rest.get(short(rest, target_at)?..)?;
        // A chain begins with a rule whose target ERROR holds the chain's name; the last such rule ends the table.
        if target.get(2..8)? == b"ERROR\0" {
            let text = target.get(32..)?.split(|byte| *byte == 0).next()?;
            chains.push(String::from_utf8_lossy(text).into_owned());
        }
        let next = short(rest, target_at + 2)?;
        rest = rest.get(next..).filter(|_| next > 0)?;
    }
    chains.pop();
    Some(Table { family, name: name.to_owned(), chains, drops_input, drops_forward })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A rule that matches all, with its target.
    fn rule(family: Family, name: &[u8], data: &[u8]) -> Vec<u8> {
        let (head, target_at) = match family {
            Family::V4 => (112, 88),
            Family::V6 => (168, 140),
        };
        let mut target = vec![0; 32];
        target[2..2 + name.len()].copy_from_slice(name);
        target.extend(data);
        target.resize(target.len().next_multiple_of(8), 0);
        let mut rule = vec![0; head];
        rule[target_at..target_at + 2].copy_from_slice(&(head as u16).to_ne_bytes());
        rule[target_at + 2..target_at + 4].copy_from_slice(&((head + target.len()) as u16).to_ne_bytes());
        rule.extend(target);
        rule
    }

    #[test]
    fn policies_and_chains_are_found_among_the_rules() {
        for family in [Family::V4, Family::V6] {
            let verdict = |verdict: i32| rule(family, b"", &verdict.to_ne_bytes());
            let chain = |name: &str| {
                let mut text = name.as_bytes().to_vec();
                text.resize(30, 0);
                rule(family, b"ERROR", &text)
            };
            // INPUT accepts, FORWARD has one rule and drops, OUTPUT accepts; a chain; the end.
            let rules = [
                verdict(-2),
                verdict(-2),
                verdict(-1),
                verdict(-2),
                chain("KUBE-SVC-A"),
                verdict(-5),
                chain("ERROR"),
            ];
            let at: Vec<u32> = rules
                .iter()
                .scan(0, |end, rule| {
                    let at = *end;
                    *end += rule.len() as u32;
                    Some(at)
                })
                .collect();
            let entries = rules.concat();
            let mut info = vec![0; 32];
            let numbers = [
                0b1110,
                0,
                at[0],
                at[1],
                at[3],
                0,
                0,
                at[0],
                at[2],
                at[3],
                0,
                rules.len() as u32,
                entries.len() as u32,
            ];
            info.extend(numbers.iter().flat_map(|number: &u32| number.to_ne_bytes()));
            assert_eq!(info.len(), INFO);
            let read = table(family, "filter", &info, &entries).unwrap();
            assert_eq!((read.drops_input, read.drops_forward), (false, true));
            assert_eq!(read.chains, ["KUBE-SVC-A"]);
            for cut in [1, 90, 150, entries.len() - 1] {
                assert_eq!(table(family, "filter", &info, &entries[..cut]), None, "{cut}");
            }
            let still = vec![0; entries.len()];
            assert_eq!(table(family, "filter", &info, &still), None, "a rule without a length has no next");
        }
    }

    #[test]
    fn a_tree_s_tables_are_not_those_of_this_machine() {
        let tree = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/hosts/pi4-bookworm-flannel");
        assert!(Host::tree(tree.as_ref()).unwrap().legacy_tables().is_err());
    }
}
