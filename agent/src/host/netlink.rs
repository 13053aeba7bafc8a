//! Netlink requests: the kernel's own interface to links, queues and packet filters (netlink(7), rtnetlink(7)).
//!
//! Only what a scratch namespace needs: a request, its attributes, and the kernel's answer as an error number.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
    sockopt::ReceiveTimeout,
};
use nix::sys::time::TimeVal;

/// A request that the kernel answers only when it failed.
pub(super) const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
/// A request that makes something new and is answered either way.
pub(super) const CREATE: u16 = REQUEST | (libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
/// The mark of an attribute that holds attributes.
pub(super) const NESTED: u16 = libc::NLA_F_NESTED as u16;

/// The kernel answers at once; one that does not is broken.
const PATIENCE: TimeVal = TimeVal::new(2, 0);

/// One attribute: its length, its kind, its value, and zeroes up to a multiple of four.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("attributes here are a few bytes");
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An attribute with a text that ends in a zero, as the kernel wants it.
pub(super) fn text(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), &[0]].concat())
}

/// One message: the header of netlink(7) before `body`, which is the family's header and its attributes.
pub(super) fn message(kind: u16, flags: u16, body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    let length = u32::try_from(16 + body.len()).expect("messages here are a few hundred bytes");
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence number and sender: one request at a time, by whoever the socket belongs to.
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}

/// A socket to one of the kernel's families.
pub(super) struct Netlink(OwnedFd);

impl Netlink {
    /// Opens it in the network namespace of the calling thread.
    pub(super) fn open(protocol: SockProtocol) -> io::Result<Netlink> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        setsockopt(&socket, ReceiveTimeout, &PATIENCE)?;
        Ok(Netlink(socket))
    }

    /// Sends messages, exactly one of which asks for an answer, and returns the kernel's: the first failure, or none.
    pub(super) fn request(&self, messages: &[Vec<u8>]) -> io::Result<()> {
        sendto(self.0.as_raw_fd(), &messages.concat(), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut answer = [0; 8192];
        loop {
            let length = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty())?;
            if let Some(result) = result(&answer[..length]) {
                return match result {
                    0 => Ok(()),
                    failure => Err(io::Error::from_raw_os_error(-failure)),
                };
            }
        }
    }

    /// Sends a request for a list and returns its messages, each with its kind.
    pub(super) fn dump(&self, message: &[u8]) -> io::Result<Vec<(u16, Vec<u8>)>> {
        sendto(self.0.as_raw_fd(), message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut answer = vec![0; 32 << 10];
        let mut list = Vec::new();
        loop {
            let length = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty())?;
            for (kind, body) in split(&answer[..length]) {
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(list),
                    libc::NLMSG_ERROR => {
                        let number = body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                        return Err(io::Error::from_raw_os_error(-number));
                    }
                    _ => list.push((kind, body.to_vec())),
                }
            }
        }
    }
}

/// The messages of one answer in order: their kinds and bodies.
pub(super) fn split(mut messages: &[u8]) -> Vec<(u16, &[u8])> {
    let mut parts = Vec::new();
    while let Some((header, _)) = messages.split_first_chunk::<16>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let Some(body) = messages.get(16..length) else { break };
        parts.push((u16::from_ne_bytes([header[4], header[5]]), body));
        messages = messages.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    parts
}

/// The number in the first message that answers a request: 0, or the negative number of an error.
fn result(mut messages: &[u8]) -> Option<i32> {
    while let Some((header, _)) = messages.split_first_chunk::<16>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        if i32::from(kind) == libc::NLMSG_ERROR {
            return Some(i32::from_ne_bytes(*messages.get(16..)?.first_chunk()?));
        }
        messages = messages.get(length.next_multiple_of(4).max(16)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_their_length_is_not() {
        assert_eq!(text(3, "lo"), [&7u16.to_ne_bytes()[..], &3u16.to_ne_bytes(), b"lo\0\0"].concat());
        assert_eq!(attribute(1, &[]).len(), 4);
    }

    #[test]
    fn an_answer_is_split_into_its_messages() {
        let answer = [message(7, 0, &[&[1, 2, 3]]), vec![0], message(8, 0, &[])].concat();
        assert_eq!(split(&answer), [(7, &[1, 2, 3][..]), (8, &[][..])]);
        assert!(split(&answer[..18]).is_empty() && split(&[0; 40]).is_empty());
    }

    #[test]
    fn the_answer_is_found_behind_other_messages() {
        let other = message(16, 0, &[&[1, 2, 3, 4]]);
        let answer = message(libc::NLMSG_ERROR as u16, 0, &[&(-95i32).to_ne_bytes()]);
        assert_eq!(result(&[other.clone(), answer].concat()), Some(-95));
        assert_eq!(result(&other), None);
        assert_eq!(result(&[0; 40]), None);
        assert_eq!(result(b"short"), None);
        let cut = message(libc::NLMSG_ERROR as u16, 0, &[]);
        assert_eq!(result(&cut), None);
    }
}
