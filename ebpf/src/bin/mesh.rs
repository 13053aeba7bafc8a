//! Stamps bramble's probes with the kernel's clock and counts them per peer, on a node's uplink.
//!
//! Attached at tc or tcx, ingress and egress. Every packet goes on to the next program untouched, except that
//! a probe of ours gets its stamps and the count of what was heard from its destination.
//! What the fields mean is written in `records/src/mesh.rs`.
#![no_std]
#![no_main]

use core::mem::offset_of;

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_NO_PREALLOC, BPF_F_RECOMPUTE_CSUM, TC_ACT_UNSPEC};
use aya_ebpf::helpers::{bpf_csum_diff, bpf_ktime_get_ns};
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::HashMap;
use aya_ebpf::programs::TcContext;
use ebpf::{Ipv4, PROTOCOL_IPV4, Udp, atomic, headers};
use ebpf_records::mesh::{
    MAGIC, MAX_PEERS, PACKET_LEN, Packet, Peer, REPLY, REQUEST, RoundTrip, SAMPLES, STAMPED_ANSWERED,
    STAMPED_RECEIVED, STAMPED_RETURNED, STAMPED_SENT,
};

/// Bytes before the IPv4 header: 14 on Ethernet, 0 on a tunnel.
#[unsafe(no_mangle)]
static L2_LENGTH: Global<u32> = Global::new(14);
/// UDP port of the responders, host byte order.
#[unsafe(no_mangle)]
static PORT: Global<u16> = Global::new(0);
/// The session of our own requests.
#[unsafe(no_mangle)]
static SESSION: Global<u32> = Global::new(0);

/// Key: the peer's IPv4 address as it lies in the packet. Only user space adds and removes peers, so
/// strangers can neither fill the map nor get a packet stamped.
#[map]
static PEERS: HashMap<u32, Peer> = HashMap::with_max_entries(MAX_PEERS, BPF_F_NO_PREALLOC);

// A session and its count are one word, in the map and on the wire, so that they always fit together.
const _: () = assert!(
    offset_of!(Peer, heard_session) % 8 == 0
        && offset_of!(Peer, heard) == offset_of!(Peer, heard_session) + 4
        && offset_of!(RoundTrip, sequence) == 0
        && offset_of!(RoundTrip, stamped) == 4
);
/// One more request in the word that holds the session below and the count above.
const ONE_HEARD: u64 = 1 << 32;

/// Probes on their way out: t1 of our requests, t3 of our replies, and the feedback in both.
#[classifier]
pub fn egress(packet: TcContext) -> i32 {
    if let Some(datagram) = Datagram::read(&packet) {
        leaving(&packet, datagram);
    }
    TC_ACT_UNSPEC
}

/// Probes on their way in: t2 of a peer's requests; a peer's replies complete a round trip.
#[classifier]
pub fn ingress(packet: TcContext) -> i32 {
    if let Some(datagram) = Datagram::read(&packet) {
        arriving(&packet, datagram);
    }
    TC_ACT_UNSPEC
}

#[inline(always)]
fn leaving(packet: &TcContext, datagram: Datagram) -> Option<()> {
    let peer = PEERS.get_ptr_mut(datagram.destination)?;
    let mut probe = datagram.probe;
    if probe.kind == REQUEST {
        if probe.session != SESSION.load() {
            return None;
        }
        // SAFETY: the map hands out valid, aligned values; every CPU adds to this one atomically.
        unsafe { atomic::add(&raw mut (*peer).sent, 1) };
    }
    // SAFETY: as above.
    let heard = unsafe { heard_word(peer).read_volatile() };
    probe.heard_session = heard as u32;
    probe.heard = (heard >> 32) as u32;
    if probe.kind == REQUEST {
        probe.stamped |= STAMPED_SENT;
        probe.sent = now();
    } else {
        probe.stamped |= STAMPED_ANSWERED;
        probe.answered = now();
    }
    datagram.replace_with(packet, probe)
}

#[inline(always)]
fn arriving(packet: &TcContext, datagram: Datagram) -> Option<()> {
    let now = now();
    let peer = PEERS.get_ptr_mut(datagram.source)?;
    let mut probe = datagram.probe;
    if probe.kind == REPLY && probe.session != SESSION.load() {
        return None;
    }
    // SAFETY: the map hands out valid, aligned values. A lost race between two CPUs over these two costs one
    // value that the next probe brings again; the counters below are atomic.
    unsafe {
        (*peer).last_heard = now;
        if probe.heard_session == SESSION.load() {
            (*peer).peer_heard = probe.heard;
        }
    }
    if probe.kind == REPLY {
        // SAFETY: as above.
        return unsafe { returned(peer, &probe, now) };
    }
    // SAFETY: as above.
    unsafe { heard(peer, &probe) };
    probe.stamped |= STAMPED_RECEIVED;
    probe.received = now;
    datagram.replace_with(packet, probe)
}

/// Counts a request of `peer`; the first one of a new session starts its counters again.
///
/// # Safety
///
/// `peer` is a value of [`PEERS`].
#[inline(always)]
unsafe fn heard(peer: *mut Peer, request: &Packet) {
    let (session, sequence) = (request.session, request.sequence);
    // SAFETY: promised by the caller.
    unsafe {
        let word = heard_word(peer);
        let seen = word.read_volatile();
        // Whoever replaces the word has opened the session; everybody else adds to it.
        if seen as u32 != session && atomic::replace(word, seen, ONE_HEARD | u64::from(session)) {
            (*peer).heard_first = sequence;
            (*peer).heard_highest = sequence;
            return;
        }
        atomic::add(word, ONE_HEARD);
        if sequence > (*peer).heard_highest {
            (*peer).heard_highest = sequence;
        }
    }
}

/// Keeps the round trip that this reply completes. A reply that the network delivers twice counts once.
///
/// # Safety
///
/// `peer` is a value of [`PEERS`].
#[inline(always)]
unsafe fn returned(peer: *mut Peer, reply: &Packet, now: u64) -> Option<()> {
    // SAFETY: promised by the caller; the index is masked to the array's length.
    unsafe {
        let slot = &raw mut (*peer).samples[reply.sequence as usize & (SAMPLES - 1)];
        // Sequence number and stamps: one word, written last, because readers copy the slot at any time.
        let head = slot.cast::<u64>();
        let before = head.read_volatile();
        if before as u32 == reply.sequence || !atomic::replace(head, before, 0) {
            return None;
        }
        atomic::add(&raw mut (*peer).answered, 1);
        let trip = RoundTrip::complete(reply, now, STAMPED_RETURNED)?;
        (*slot).round_trip = trip.round_trip;
        (*slot).outbound = trip.outbound;
        atomic::replace(head, 0, u64::from(trip.stamped) << 32 | u64::from(trip.sequence));
    }
    Some(())
}

/// The peer's session (lower half) and how many of its requests were heard (upper half).
///
/// # Safety
///
/// `peer` is a value of [`PEERS`].
#[inline(always)]
unsafe fn heard_word(peer: *mut Peer) -> *mut u64 {
    // SAFETY: promised by the caller; the layout is asserted above.
    unsafe { (&raw mut (*peer).heard_session).cast() }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: takes no argument, has no precondition.
    unsafe { bpf_ktime_get_ns() }
}

/// Where a probe lies in the packet at hand.
struct Datagram {
    source: u32,
    destination: u32,
    /// [`REQUEST`] or [`REPLY`], by the ports.
    kinds: Kinds,
    /// UDP checksum as found.
    checksum: u16,
    /// Offset of the UDP payload in the packet.
    payload: usize,
}
