//! Stamps bramble's probes with the kernel's clock and counts them per peer, on a node's uplink.
//!
//! Attached at tc or tcx, ingress and egress. Every packet goes on to the next program untouched, except that
//! a probe of ours that leaves gets its stamp and what was heard from its destination.
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
    ARRIVALS, Arrival, MAGIC, MAX_PEERS, PACKET_LEN, Packet, Peer, STAMPED_ARRIVED, STAMPED_SENT,
};

/// Bytes before the IPv4 header: 14 on Ethernet, 0 on a tunnel.
#[unsafe(no_mangle)]
static L2_LENGTH: Global<u32> = Global::new(14);
/// UDP port of the probes, host byte order.
#[unsafe(no_mangle)]
static PORT: Global<u16> = Global::new(0);
/// The session of our own probes.
#[unsafe(no_mangle)]
static SESSION: Global<u32> = Global::new(0);

/// Key: the peer's IPv4 address as it lies in the packet. Only user space adds and removes peers, so
/// strangers can neither fill the map nor get a packet stamped.
#[map]
static PEERS: HashMap<u32, Peer> = HashMap::with_max_entries(MAX_PEERS, BPF_F_NO_PREALLOC);

// A session and its count are one word of the map, and so are an arrival's session and number: they always fit.
const _: () = assert!(
    offset_of!(Peer, heard_session) % 8 == 0
        && offset_of!(Peer, heard) == offset_of!(Peer, heard_session) + 4
        && offset_of!(Arrival, session) == 0
        && offset_of!(Arrival, sequence) == 4
);
/// One more probe in the word that holds the session below and the count above.
const ONE_HEARD: u64 = 1 << 32;

/// Probes on their way out.
#[classifier]
pub fn bramble_egress(packet: TcContext) -> i32 {
    if let Some(datagram) = Datagram::find(&packet) {
        leaving(&datagram);
    }
    TC_ACT_UNSPEC
}

/// Probes on their way in.
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
    if probe.session != SESSION.load() {
        return None;
    }
    // SAFETY: the map hands out valid, aligned values; every CPU adds to this one atomically.
    unsafe { atomic::add(&raw mut (*peer).sent, 1) };
    // SAFETY: as above.
    let (heard, highest) = unsafe { (heard_word(peer).read_volatile(), (*peer).heard_highest) };
    probe.heard_session = heard as u32;
    probe.heard = (heard >> 32) as u32;
    probe.heard_highest = highest;
    // SAFETY: `peer` comes from the map.
    unsafe { tell(peer, probe) };
    probe.stamped |= STAMPED_SENT;
    probe.sent = now();
    datagram.write(probe)
}

/// Tells of an arrival, each probe of a batch of another one.
///
/// # Safety
///
/// `peer` is a value of [`PEERS`].
#[inline(always)]
unsafe fn tell(peer: *mut Peer, probe: &mut Packet) {
    let number = probe.heard_highest.wrapping_sub(probe.following.into());
    let head = u64::from(number) << 32 | u64::from(probe.heard_session);
    // SAFETY: promised by the caller; the index is masked to the array's length.
    unsafe {
        let slot = &raw mut (*peer).arrivals[number as usize & (ARRIVALS - 1)];
        let word = slot.cast::<u64>();
        if number == 0 || word.read_volatile() != head {
            return;
        }
        let (arrived, took, stamped) = ((*slot).arrived, (*slot).took, (*slot).stamped);
        // Another CPU may have written over it meanwhile.
        if word.read_volatile() == head {
            Arrival { sequence: number, arrived, took, stamped, ..EMPTY }.tell(probe);
        }
    }
}

const EMPTY: Arrival = Arrival {
    session: 0,
    sequence: 0,
    arrived: 0,
    took: 0,
    told_sequence: 0,
    stamped: 0,
    told_sent: 0,
    told_took: 0,
};

#[inline(always)]
fn arriving(datagram: &Datagram) -> Option<()> {
    let now = now();
    let mut buffer = MaybeUninit::uninit();
    let probe = datagram.probe(&mut buffer)?;
    let peer = PEERS.get_ptr_mut(datagram.source)?;
    // SAFETY: the map hands out valid, aligned values. When two CPUs race for these, the older values may win until
    // the next probe; what is counted here is counted atomically.
    unsafe {
        (*peer).last_heard = now;
        keep(peer, probe, now)?;
        heard(peer, probe);
        if probe.heard_session == SESSION.load() {
            (*peer).peer_heard = probe.heard;
            (*peer).peer_highest = probe.heard_highest;
        }
    }
    Some(())
}

/// Keeps an arrival; `None` when it is there already, because the network delivered it twice.
///
/// # Safety
///
/// `peer` is a value of [`PEERS`].
#[inline(always)]
unsafe fn keep(peer: *mut Peer, probe: &Packet, now: u64) -> Option<()> {
    // SAFETY: promised by the caller; the index is masked to the array's length.
    unsafe {
        let slot = &raw mut (*peer).arrivals[probe.sequence as usize & (ARRIVALS - 1)];
        let arrival = Arrival::of(probe, now, STAMPED_ARRIVED, SESSION.load());
        // Session and number: one word, written last, because readers copy the slot at any time.
        let word = slot.cast::<u64>();
        let (head, before) =
            (u64::from(arrival.sequence) << 32 | u64::from(arrival.session), word.read_volatile());
        if before == head || !atomic::replace(word, before, 0) {
            return None;
        }
        (*slot).arrived = arrival.arrived;
        (*slot).took = arrival.took;
        (*slot).told_sequence = arrival.told_sequence;
        (*slot).stamped = arrival.stamped;
        (*slot).told_sent = arrival.told_sent;
        (*slot).told_took = arrival.told_took;
        atomic::replace(word, 0, head);
    }
    Some(())
}

/// Counts a probe of `peer`; the first one of a new session starts its counters again.
///
/// # Safety
///
/// `peer` is a value of [`PEERS`].
#[inline(always)]
unsafe fn heard(peer: *mut Peer, probe: &Packet) {
    let (session, sequence) = (probe.session, probe.sequence);
    let batch_end = sequence.wrapping_add(probe.following.into());
    // SAFETY: promised by the caller.
    unsafe {
        let word = heard_word(peer);
        let seen = word.read_volatile();
        // Whoever replaces the word has opened the session; everybody else adds to it.
        if seen as u32 != session && atomic::replace(word, seen, ONE_HEARD | u64::from(session)) {
            (*peer).heard_highest = sequence;
            (*peer).batch_end = batch_end;
            (*peer).peer_heard = 0;
            (*peer).peer_highest = 0;
            return;
        }
        atomic::add(word, ONE_HEARD);
        if sequence > (*peer).heard_highest {
            (*peer).heard_highest = sequence;
            (*peer).batch_end = batch_end;
        }
    }
}

/// The peer's session (lower half) and how many of its probes were heard (upper half).
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

/// A packet that goes to the port of the probes.
struct Datagram<'a> {
    packet: &'a TcContext,
    source: u32,
    destination: u32,
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
        if udp.destination != PORT.load().to_be()
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
            checksum: udp.checksum,
            offset: start + size_of::<Ipv4Udp>(),
        })
    }

    /// The probe in it, if it is one.
    #[inline(always)]
    fn probe<'b>(&self, buffer: &'b mut MaybeUninit<Packet>) -> Option<&'b mut Packet> {
        let probe = self.payload(buffer)?;
        (probe.magic == MAGIC).then_some(probe)
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
