//! What a network adapter is asked by ethtool(8)'s own call (linux/ethtool.h): read-only questions, which need no right.
#![allow(clippy::disallowed_methods, reason = "the door")]

use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::{Host, Unreadable, failed};

/// Energy Efficient Ethernet: the link sleeps between packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Eee {
    /// Whether the adapter is told to.
    pub enabled: bool,
    /// Whether it does, because the other end does too.
    pub active: bool,
}

/// `struct ethtool_eee`.
#[repr(C)]
#[derive(Default)]
struct Question {
    command: u32,
    supported: u32,
    advertised: u32,
    partner: u32,
    active: u32,
    enabled: u32,
    transmits_idle: u32,
    idle_after: u32,
    reserved: [u32; 2],
}

impl Host {
    /// Whether an adapter saves energy between packets; `None` when it cannot.
    ///
    /// # Errors
    /// On a captured tree, or when the kernel refuses.
    pub fn eee(&self, interface: &str) -> Result<Option<Eee>, Unreadable> {
        /// `ETHTOOL_GEEE`.
        const GET_EEE: u32 = 0x44;
        let query = format!("energy saving of {interface} (ethtool --show-eee)");
        if !self.is_live() {
            return Err(Unreadable::not_live(query));
        }
        let mut question = Question { command: GET_EEE, ..Question::default() };
        let asked = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
            .and_then(|socket| ask(&socket, interface, &mut question));
        match asked {
            Ok(()) => Ok(Some(Eee { enabled: question.enabled != 0, active: question.active != 0 })),
            // Virtual interfaces, adapters without it, and those whose driver does not tell.
            Err(Errno::EOPNOTSUPP | Errno::ENODEV | Errno::EINVAL) => Ok(None),
            Err(errno) => Err(failed(&query, errno)),
        }
    }
}

#[allow(unsafe_code, reason = "no crate of ours wraps SIOCETHTOOL")]
fn ask(socket: &OwnedFd, interface: &str, question: &mut Question) -> Result<(), Errno> {
    // SAFETY: a `struct ifreq` of zeroes is one without a name.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(Errno::ENODEV);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (question as *mut Question).cast();
    // SAFETY: the kernel reads the command, and writes as much as its `struct ethtool_eee`, which `Question` is.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if done < 0 { Err(Errno::last()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Why;

    #[test]
    fn what_has_no_cable_saves_no_energy_and_a_tree_is_not_asked() {
        let live = Host::live().unwrap();
        for interface in ["lo", "no-such-link", "a-name-that-no-link-can-have"] {
            assert_eq!(live.eee(interface), Ok(None), "{interface}");
        }
        let tree = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/hosts/pi4-trixie-4k");
        assert_eq!(Host::tree(tree.as_ref()).unwrap().eee("eth0").unwrap_err().why, Why::NotLive);
    }
}
