//! Node-to-node probes: the datagram that crosses the wire and what the kernel keeps per peer.
//!
//! A request leaves node A, is stamped at A's egress and at B's ingress; B's user space turns it round
//! without looking at a clock; the reply is stamped at B's egress and at A's ingress. All stamps are
//! `bpf_ktime_get_ns()` (`CLOCK_MONOTONIC`, ns), so steps of the wall clock never matter, and the time that
//! B's user space took drops out: round trip = (t4 - t1) - (t3 - t2).
//! Where a kernel program is missing, user space writes the same fields and leaves the bit in
//! [`Packet::stamped`] unset.

/// UDP port of the responder on every node; a request goes to it, a reply comes from it.
pub const DEFAULT_PORT: u16 = 9473;
/// First four bytes of every probe, "brb1" in memory order; the digit is the layout's version.
pub const MAGIC: u32 = u32::from_le_bytes(*b"brb1");
/// [`Packet::kind`] of a request.
pub const REQUEST: u8 = 1;
/// [`Packet::kind`] of a reply.
pub const REPLY: u8 = 2;
/// Bit of [`Packet::stamped`]: `sent` (t1) was written by the requester's kernel.
pub const STAMPED_SENT: u8 = 1;
/// Bit of [`Packet::stamped`]: `received` (t2) was written by the responder's kernel.
pub const STAMPED_RECEIVED: u8 = 2;
/// Bit of [`Packet::stamped`]: `answered` (t3) was written by the responder's kernel.
pub const STAMPED_ANSWERED: u8 = 4;
/// Bit of [`RoundTrip::stamped`]: t4 was read by the requester's kernel.
pub const STAMPED_RETURNED: u8 = 8;
/// All four stamps came from kernels.
pub const STAMPED_ALL: u8 = 15;
/// How many round trips are kept per peer; must be a power of two.
pub const SAMPLES: usize = 16;
/// How many peers the kernel map holds.
pub const MAX_PEERS: u32 = 1024;

/// The UDP payload of a probe, 56 bytes, little-endian (all supported boards are).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// [`MAGIC`].
    pub magic: u32,
    /// [`REQUEST`] or [`REPLY`].
    pub kind: u8,
    /// Which stamps came from a kernel: `STAMPED_*`.
    pub stamped: u8,
    /// How many requests follow this one in its batch, so that who hears it knows of the last ones too.
    pub following: u16,
    /// Random number of the requester's run; a reply carries it back.
    pub session: u32,
    /// Number of this request in its session and for this peer, from 1; a reply carries it back.
    pub sequence: u32,
    /// t1, requester's clock, ns.
    pub sent: u64,
    /// t2, responder's clock, ns; 0 until received.
    pub received: u64,
    /// t3, responder's clock, ns; 0 until answered.
    pub answered: u64,
    /// Feedback to the destination: the session whose requests `heard` counts; 0 when none was heard.
    pub heard_session: u32,
    /// Feedback to the destination: how many of its requests of `heard_session` arrived here.
    pub heard: u32,
    /// Feedback to the destination: the highest sequence number among them.
    pub heard_highest: u32,
    /// Zero.
    pub padding: u32,
}

/// Size of [`Packet`] on the wire, bytes.
pub const PACKET_LEN: usize = size_of::<Packet>();

/// One completed round trip.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundTrip {
    /// The request's sequence number; 0 marks an unused slot.
    pub sequence: u32,
    /// Which of the four stamps came from a kernel.
    pub stamped: u32,
    /// (t4 - t1) - (t3 - t2), ns.
    pub round_trip: u64,
    /// t2 - t1, ns: outbound delay plus the unknown, constant difference of the two clocks.
    pub outbound: i64,
}

impl Packet {
    /// The packet as it goes on the wire.
    pub fn to_bytes(&self) -> [u8; PACKET_LEN] {
        let mut bytes = [0; PACKET_LEN];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&self.magic.to_le_bytes());
        put(&[self.kind, self.stamped]);
        put(&self.following.to_le_bytes());
        for word in [self.session, self.sequence] {
            put(&word.to_le_bytes());
        }
        for stamp in [self.sent, self.received, self.answered] {
            put(&stamp.to_le_bytes());
        }
        for word in [self.heard_session, self.heard, self.heard_highest, self.padding] {
            put(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads what arrived; `None` when it is no probe of this layout.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; PACKET_LEN] = bytes.try_into().ok()?;
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let stamp = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let packet = Self {
            magic: word(0),
            kind: bytes[4],
            stamped: bytes[5],
            following: u16::from_le_bytes([bytes[6], bytes[7]]),
            session: word(8),
            sequence: word(12),
            sent: stamp(16),
            received: stamp(24),
            answered: stamp(32),
            heard_session: word(40),
            heard: word(44),
            heard_highest: word(48),
            padding: 0,
        };
        (packet.magic == MAGIC && matches!(packet.kind, REQUEST | REPLY)).then_some(packet)
    }
}

impl RoundTrip {
    /// Completes a reply that came back at `returned` (t4, requester's clock, ns).
    /// `None` when the four stamps contradict each other.
    #[inline(always)]
    pub fn complete(reply: &Packet, returned: u64, returned_stamp: u8) -> Option<Self> {
        let away = returned.wrapping_sub(reply.sent) as i64;
        let held = reply.answered.wrapping_sub(reply.received) as i64;
        if held < 0 || away < held {
            return None;
        }
        Some(Self {
            sequence: reply.sequence,
            stamped: (reply.stamped | returned_stamp) as u32,
            round_trip: (away - held) as u64,
            outbound: reply.received.wrapping_sub(reply.sent) as i64,
        })
    }
}

/// What is kept per peer; cumulative, so that a reader takes differences.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Requests to this peer that passed our egress hook.
    pub sent: u64,
    /// Replies of this peer to our present session.
    pub answered: u64,
    /// Our clock at the last probe (of either kind) from this peer, ns; 0 = never.
    pub last_heard: u64,
    /// The peer's session that the three fields below speak of.
    pub heard_session: u32,
    /// Requests heard from the peer in that session.
    pub heard: u32,
    /// Number of the last request in the batch that `heard_highest` belongs to.
    pub batch_end: u32,
    /// Highest sequence number heard in that session.
    pub heard_highest: u32,
    /// How many of our present session's requests the peer says it heard.
    pub peer_heard: u32,
    /// The highest sequence number among them.
    pub peer_highest: u32,
    /// The last round trips; slot = sequence % [`SAMPLES`].
    pub samples: [RoundTrip; SAMPLES],
}

impl Peer {
    /// Counts a request that arrived from this peer. The kernel program does the same with atomic additions.
    pub fn hear(&mut self, request: &Packet, now: u64, own_session: u32) {
        if self.heard_session != request.session {
            self.heard_session = request.session;
            self.heard = 0;
            self.heard_highest = 0;
        }
        self.heard += 1;
        if request.sequence > self.heard_highest {
            self.heard_highest = request.sequence;
            self.batch_end = request.sequence.wrapping_add(request.following.into());
        }
        self.note(request, now, own_session);
    }

    /// Keeps the round trip that a reply of this peer completes.
    pub fn returned(&mut self, reply: &Packet, now: u64, own_session: u32) {
        if reply.session != own_session {
            return;
        }
        self.note(reply, now, own_session);
        let slot = &mut self.samples[reply.sequence as usize % SAMPLES];
        if slot.sequence != reply.sequence
            && let Some(trip) = RoundTrip::complete(reply, now, 0)
        {
            *slot = trip;
            self.answered += 1;
        }
    }

    fn note(&mut self, packet: &Packet, now: u64, own_session: u32) {
        self.last_heard = now;
        if packet.heard_session == own_session {
            self.peer_heard = packet.heard;
            self.peer_highest = packet.heard_highest;
        }
    }
}

const _: () = assert!(PACKET_LEN == 56 && SAMPLES.is_power_of_two() && cfg!(target_endian = "little"));

#[cfg(feature = "user")]
// SAFETY: repr(C), only integers, no padding (checked by the sizes asserted below).
unsafe impl aya::Pod for Peer {}
#[cfg(feature = "user")]
const _: () = assert!(size_of::<RoundTrip>() == 24 && size_of::<Peer>() == 48 + SAMPLES * 24);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_that_the_responder_took_drops_out() {
        let reply =
            Packet { sent: 1_000, received: 50_100, answered: 950_100, stamped: 7, ..Packet::default() };
        let trip = RoundTrip::complete(&reply, 901_250, STAMPED_RETURNED).unwrap();
        assert_eq!((trip.round_trip, trip.outbound, trip.stamped), (250, 49_100, 15));
    }

    #[test]
    fn what_is_written_is_read_and_the_rest_is_refused() {
        let packet = Packet {
            magic: MAGIC,
            kind: REPLY,
            stamped: 7,
            following: 0x0304,
            session: 1,
            sequence: 2,
            sent: u64::MAX - 3,
            received: 4 << 40,
            answered: 5,
            heard_session: 6,
            heard: 7,
            heard_highest: 8,
            ..Packet::default()
        };
        let bytes = packet.to_bytes();
        assert_eq!(Packet::from_bytes(&bytes), Some(packet));
        assert_eq!(Packet::from_bytes(&bytes[1..]), None);
        assert_eq!(Packet::from_bytes(&[0; PACKET_LEN]), None);
    }

    #[test]
    fn a_reply_counts_once_and_only_in_its_session() {
        let mut peer = Peer::default();
        let reply =
            Packet { session: 7, sequence: 3, sent: 10, received: 20, answered: 30, ..Packet::default() };
        for _ in 0..2 {
            peer.returned(&reply, 100, 7);
        }
        peer.returned(&reply, 100, 8);
        assert_eq!((peer.answered, peer.samples[3].round_trip), (1, 80));
    }

    #[test]
    fn a_new_session_counts_from_its_first_request() {
        let mut peer = Peer::default();
        for (session, sequence, following) in [(1, 8, 2), (1, 10, 0), (2, 5, 3), (2, 4, 4)] {
            let feedback = Packet {
                following,
                session,
                sequence,
                heard_session: 9,
                heard: sequence,
                heard_highest: 6,
                ..Packet::default()
            };
            peer.hear(&feedback, 50, 9);
        }
        assert_eq!((peer.heard_session, peer.heard, peer.heard_highest, peer.batch_end), (2, 2, 5, 8));
        assert_eq!((peer.peer_heard, peer.peer_highest, peer.last_heard), (4, 6, 50));
    }

    #[test]
    fn stamps_that_contradict_each_other_are_no_round_trip() {
        for (sent, received, answered, returned) in [(0, 10, 5, 100), (0, 0, 200, 100), (200, 0, 0, 100)] {
            let reply = Packet { sent, received, answered, ..Packet::default() };
            assert_eq!(RoundTrip::complete(&reply, returned, 0), None);
        }
    }
}
