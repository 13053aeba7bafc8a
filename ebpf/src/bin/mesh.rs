//! Stamps bramble's probes with the kernel's clock and counts them per peer, on a node's uplink.
//!
//! Attached at tc or tcx, ingress and egress. Every packet goes on to the next program untouched, except that
//! a probe of ours gets its stamps and the count of what was heard from its destination.
//! What the fields mean is written in `records/src/mesh.rs`.
#![no_std]
#![no_main]

use core::mem::{MaybeUninit, offset_of};

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_NO_PREALLOC, BPF_F_RECOMPUTE_CSUM, TC_ACT_UNSPEC};
use aya_ebpf::helpers::{bpf_csum_diff, bpf_ktime_get_ns, bpf_skb_load_bytes};
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::HashMap;
use aya_ebpf::programs::TcContext;
use ebpf::{Ipv4Udp, PROTOCOL_IPV4, Udp, atomic, headers};
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

// A session and its count are one word of the map, and so are a sequence number and its stamps: they always fit.
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
pub fn bramble_egress(packet: TcContext) -> i32 {
    if let Some(datagram) = Datagram::find(&packet) {
        leaving(&datagram);
    }
    TC_ACT_UNSPEC
}

/// Probes on their way in: t2 of a peer's requests; a peer's replies complete a round trip.
#[classifier]
pub fn bramble_ingress(packet: TcContext) -> i32 {
    if let Some(datagram) = Datagram::find(&packet)
        && !is_for_somebody_else(&packet)
    {
        arriving(&datagram);
    }
    TC_ACT_UNSPEC
}

/// A switch floods frames for a node that it has lost to all others, and this is where they see them.
#[inline(always)]
fn is_for_somebody_else(packet: &TcContext) -> bool {
    const PACKET_OTHERHOST: u32 = 3;
    // SAFETY: the context is valid as long as the program runs.
    unsafe { (*packet.skb.skb).pkt_type == PACKET_OTHERHOST }
}

#[inline(always)]
fn leaving(datagram: &Datagram) -> Option<()> {
    let mut buffer = MaybeUninit::uninit();
    let probe = datagram.probe(&mut buffer)?;
    let peer = PEERS.get_ptr_mut(datagram.destination)?;
    if probe.kind == REQUEST {
        if probe.session != SESSION.load() {
            return None;
        }
        // SAFETY: the map hands out valid, aligned values; every CPU adds to this one atomically.
        unsafe { atomic::add(&raw mut (*peer).sent, 1) };
    }
    // SAFETY: as above.
    let (heard, highest) = unsafe { (heard_word(peer).read_volatile(), (*peer).heard_highest) };
    probe.heard_session = heard as u32;
    probe.heard = (heard >> 32) as u32;
    probe.heard_highest = highest;
    if probe.kind == REQUEST {
        probe.stamped |= STAMPED_SENT;
        probe.sent = now();
    } else {
        probe.stamped |= STAMPED_ANSWERED;
        probe.answered = now();
    }
    datagram.write(probe)
}

#[inline(always)]
fn arriving(datagram: &Datagram) -> Option<()> {
    let now = now();
    let mut buffer = MaybeUninit::uninit();
    let probe = datagram.probe(&mut buffer)?;
    let peer = PEERS.get_ptr_mut(datagram.source)?;
    if probe.kind == REPLY && probe.session != SESSION.load() {
        return None;
    }
    // SAFETY: the map hands out valid, aligned values. When two CPUs race for these, the older values may win until
    // the next probe; what is counted here is counted atomically.
    unsafe {
        (*peer).last_heard = now;
        if probe.heard_session == SESSION.load() {
            (*peer).peer_heard = probe.heard;
            (*peer).peer_highest = probe.heard_highest;
        }
    }
    if probe.kind == REPLY {
        // SAFETY: `peer` comes from the map.
        return unsafe { returned(peer, probe, now) };
    }
    // SAFETY: `peer` comes from the map.
    unsafe { heard(peer, probe) };
    probe.stamped |= STAMPED_RECEIVED;
    probe.received = now;
    datagram.write(probe)
}

/// Counts a request of `peer`; the first one of a new session starts its counters again.
///
/// # Safety
///
/// `peer` is a value of [`PEERS`].
#[inline(always)]
unsafe fn heard(peer: *mut Peer, request: &Packet) {
    let (session, sequence) = (request.session, request.sequence);
    let batch_end = sequence.wrapping_add(request.following.into());
    // SAFETY: promised by the caller.
    unsafe {
        let word = heard_word(peer);
        let seen = word.read_volatile();
        // Whoever replaces the word has opened the session; everybody else adds to it.
        if seen as u32 != session && atomic::replace(word, seen, ONE_HEARD | u64::from(session)) {
            (*peer).heard_highest = sequence;
            (*peer).batch_end = batch_end;
            return;
        }
        atomic::add(word, ONE_HEARD);
        if sequence > (*peer).heard_highest {
            (*peer).heard_highest = sequence;
            (*peer).batch_end = batch_end;
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

/// A packet that came from or goes to a responder's port.
struct Datagram<'a> {
    packet: &'a TcContext,
    source: u32,
    destination: u32,
    to_responder: bool,
    from_responder: bool,
    /// UDP checksum as found.
    checksum: u16,
    /// Offset of the UDP payload in the packet.
    offset: usize,
}

impl<'a> Datagram<'a> {
    /// Every packet of the node passes through here, so the tests that most of them fail come first.
    #[inline(always)]
    fn find(packet: &'a TcContext) -> Option<Self> {
        const UDP: u8 = 17;
        const NO_OPTIONS: u8 = 0x45;
        const FRAGMENT: u16 = 0x3fff_u16.to_be();

        // SAFETY: the context is valid as long as the program runs.
        if unsafe { (*packet.skb.skb).protocol } != PROTOCOL_IPV4 {
            return None;
        }
        let start = L2_LENGTH.load() as usize;
        let Ipv4Udp { ip, udp } = headers(packet, start)?;
        if ip.protocol != UDP {
            return None;
        }
        let port = PORT.load().to_be();
        let (to_responder, from_responder) = (udp.destination == port, udp.source == port);
        if !to_responder && !from_responder
            || ip.version_and_length != NO_OPTIONS
            || ip.fragment & FRAGMENT != 0
            || usize::from(u16::from_be(udp.length)) < size_of::<Udp>() + PACKET_LEN
        {
            return None;
        }
        Some(Self {
            packet,
            source: ip.source,
            destination: ip.destination,
            to_responder,
            from_responder,
            checksum: udp.checksum,
            offset: start + size_of::<Ipv4Udp>(),
        })
    }

    /// The probe in it, if it is one.
    #[inline(always)]
    fn probe<'b>(&self, buffer: &'b mut MaybeUninit<Packet>) -> Option<&'b mut Packet> {
        let probe = self.payload(buffer)?;
        let ours = probe.magic == MAGIC
            && (probe.kind == REQUEST && self.to_responder || probe.kind == REPLY && self.from_responder);
        ours.then_some(probe)
    }

    /// Copies the payload into `buffer`, where it stays: a move is compiled to loads and stores of its parts, some of
    /// them across alignment, which the verifier does not allow on the stack.
    #[inline(always)]
    fn payload<'b>(&self, buffer: &'b mut MaybeUninit<Packet>) -> Option<&'b mut Packet> {
        let (skb, offset) = (self.packet.skb.skb.cast(), self.offset as u32);
        // SAFETY: the buffer has the length that is said; the helper fills it, with integers only.
        unsafe {
            let failed = bpf_skb_load_bytes(skb, offset, buffer.as_mut_ptr().cast(), PACKET_LEN as u32);
            (failed == 0).then(|| buffer.assume_init_mut())
        }
    }

    /// Writes the probe back into the packet, and keeps the checksums right.
    #[inline(always)]
    fn write(&self, probe: &mut Packet) -> Option<()> {
        const LEN: u32 = PACKET_LEN as u32;

        if self.checksum == 0 {
            // No checksum of the packet covers the payload, so the NIC's own sum over the frame must follow it.
            return self.packet.store(self.offset, probe, BPF_F_RECOMPUTE_CSUM.into()).ok();
        }
        let mut before = MaybeUninit::uninit();
        let before = self.payload(&mut before)?;
        // SAFETY: both have the length that is said, and are aligned.
        let difference =
            unsafe { bpf_csum_diff((&raw mut *before).cast(), LEN, (&raw mut *probe).cast(), LEN, 0) };
        // The changes of payload and checksum cancel each other out in the NIC's sum.
        self.packet.store(self.offset, probe, 0).ok()?;
        let field = self.offset - size_of::<Udp>() + offset_of!(Udp, checksum);
        self.packet.l4_csum_replace(field, 0, difference as u64, BPF_F_MARK_MANGLED_0.into()).ok()
    }
}
