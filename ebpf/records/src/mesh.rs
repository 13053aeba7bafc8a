//! Node-to-node probes: the datagram that crosses the wire and what the kernel keeps per peer.
//!
//! There is one kind. Every node sends it to each of its peers once a period, and nobody answers: a probe tells of those that
//! came the other way before it. It is stamped at A's egress (t1) and at B's ingress (t2); B keeps what it took, t2 - t1,
//! and tells A in its next probe, which is itself stamped at B's egress (t3) and at A's ingress (t4). A round trip is the
//! sum of both ways, (t2 - t1) + (t4 - t3): the clocks' unknown difference drops out.
//! All stamps are `bpf_ktime_get_ns()` (`CLOCK_MONOTONIC`, ns), so steps of the wall clock never matter.
//! Where a kernel program is missing, user space writes the same fields and leaves the bit in `stamped` unset.

/// UDP port of the probes on every node, as source and as destination.
pub const DEFAULT_PORT: u16 = 9473;
/// Number of the probes' layout, one digit: who does not know it takes no notice of a probe.
pub const LAYOUT: u8 = 2;
/// First four bytes of every probe, "brb2" in memory order.
pub const MAGIC: u32 = u32::from_le_bytes([b'b', b'r', b'b', b'0' + LAYOUT]);
/// Bit of `stamped`: [`Packet::sent`] was written by the sender's kernel.
pub const STAMPED_SENT: u8 = 1;
/// Bit of `stamped`: its arrival was read by the receiver's kernel.
pub const STAMPED_ARRIVED: u8 = 2;
/// Bit of `stamped`: [`STAMPED_SENT`] of the probe that is told of.
pub const STAMPED_TOLD_SENT: u8 = 4;
/// Bit of `stamped`: [`STAMPED_ARRIVED`] of the probe that is told of.
pub const STAMPED_TOLD_ARRIVED: u8 = 8;
/// All four stamps came from kernels.
pub const STAMPED_ALL: u8 = 15;
/// How many arrivals are kept per peer; must be a power of two.
pub const ARRIVALS: usize = 16;
/// How many peers the kernel map holds.
pub const MAX_PEERS: u32 = 1024;
/// How far apart the two ways of a round trip may lie where that is more than half a period, ns.
pub const TOGETHER: u64 = 10_000_000_000;

/// The UDP payload of a probe, 56 bytes, little-endian (all supported boards are).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// [`MAGIC`].
    pub magic: u32,
    /// Which stamps came from a kernel: `STAMPED_*`.
    pub stamped: u8,
    /// Zero.
    pub padding: u8,
    /// How many probes follow this one in its batch, so that who hears it knows of the last ones too.
    pub following: u16,
    /// Random number of the sender's run.
    pub session: u32,
    /// Number of this probe in its session and for this peer, from 1.
    pub sequence: u32,
    /// When it left, sender's clock, ns.
    pub sent: u64,
    /// Told to the destination: the session of its probes that the next three speak of; 0 when none was heard.
    pub heard_session: u32,
    /// Told to the destination: how many of its probes of `heard_session` arrived here.
    pub heard: u32,
    /// Told to the destination: the highest sequence number among them.
    pub heard_highest: u32,
    /// Told to the destination: one of them, by its sequence number; 0 for none.
    pub told_sequence: u32,
    /// When that one left, the destination's clock, ns.
    pub told_sent: u64,
    /// What that one took, ns: its way plus the unknown difference of the two clocks.
    pub told_took: i64,
}

/// Size of [`Packet`] on the wire, bytes.
pub const PACKET_LEN: usize = size_of::<Packet>();

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
        put(&[self.stamped, self.padding]);
        put(&self.following.to_le_bytes());
        for word in [self.session, self.sequence] {
            put(&word.to_le_bytes());
        }
        put(&self.sent.to_le_bytes());
        for word in [self.heard_session, self.heard, self.heard_highest, self.told_sequence] {
            put(&word.to_le_bytes());
        }
        put(&self.told_sent.to_le_bytes());
        put(&self.told_took.to_le_bytes());
        bytes
    }

    /// Reads what arrived; `None` when it is no probe of this layout.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; PACKET_LEN] = bytes.try_into().ok()?;
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let stamp = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let packet = Self {
            magic: word(0),
            stamped: bytes[4],
            padding: 0,
            following: u16::from_le_bytes([bytes[6], bytes[7]]),
            session: word(8),
            sequence: word(12),
            sent: stamp(16),
            heard_session: word(24),
            heard: word(28),
            heard_highest: word(32),
            told_sequence: word(36),
            told_sent: stamp(40),
            told_took: stamp(48) as i64,
        };
        (packet.magic == MAGIC).then_some(packet)
    }
}

/// One probe of a peer that arrived, and the one of ours that it told of.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// The peer's session; 0 marks an unused slot.
    pub session: u32,
    /// Its number in that session.
    pub sequence: u32,
    /// When it arrived, our clock, ns.
    pub arrived: u64,
    /// Its way plus the unknown difference of the two clocks, ns.
    pub took: i64,
    /// Number of our probe that it told of; 0 for none of our present session.
    pub told_sequence: u32,
    /// Which of the four stamps came from a kernel: `STAMPED_*`.
    pub stamped: u32,
    /// See [`Packet::told_sent`].
    pub told_sent: u64,
    /// See [`Packet::told_took`].
    pub told_took: i64,
}

impl Arrival {
    /// What is kept of a probe that arrived at `arrived`; `arrived_stamp` is [`STAMPED_ARRIVED`] where the kernel read that.
    #[inline(always)]
    pub fn of(packet: &Packet, arrived: u64, arrived_stamp: u8, own_session: u32) -> Self {
        let is_of_ours = packet.heard_session == own_session;
        Self {
            session: packet.session,
            sequence: packet.sequence,
            arrived,
            took: arrived.wrapping_sub(packet.sent) as i64,
            told_sequence: if is_of_ours { packet.told_sequence } else { 0 },
            stamped: ((packet.stamped & !STAMPED_ARRIVED) | arrived_stamp) as u32,
            told_sent: packet.told_sent,
            told_took: packet.told_took,
        }
    }

    /// Tells the peer of its probe, in one of ours.
    #[inline(always)]
    pub fn tell(&self, packet: &mut Packet) {
        const TOLD: u8 = STAMPED_TOLD_SENT | STAMPED_TOLD_ARRIVED;
        packet.told_sequence = self.sequence;
        packet.told_sent = self.arrived.wrapping_sub(self.took as u64);
        packet.told_took = self.took;
        packet.stamped |= ((self.stamped as u8) << 2) & TOLD;
    }
}

/// One completed round trip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundTrip {
    /// Number of our probe.
    pub sequence: u32,
    /// Which of the four stamps came from a kernel.
    pub stamped: u8,
    /// (t2 - t1) + (t4 - t3), ns.
    pub round_trip: u64,
    /// t2 - t1, ns: the way there plus the unknown, constant difference of the two clocks.
    pub outbound: i64,
}

/// What is kept per peer; cumulative, so that a reader takes differences.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Probes to this peer that passed our egress hook.
    pub sent: u64,
    /// Our clock at the last probe of this peer, ns; 0 = never.
    pub last_heard: u64,
    /// The peer's session that the three fields below speak of.
    pub heard_session: u32,
    /// Probes heard from the peer in that session.
    pub heard: u32,
    /// Number of the last probe in the batch that `heard_highest` belongs to.
    pub batch_end: u32,
    /// Highest sequence number heard in that session.
    pub heard_highest: u32,
    /// How many of our present session's probes the peer says it heard.
    pub peer_heard: u32,
    /// The highest sequence number among them.
    pub peer_highest: u32,
    /// The last arrivals; slot = sequence % [`ARRIVALS`].
    pub arrivals: [Arrival; ARRIVALS],
}

impl Peer {
    /// Counts a probe that arrived from this peer; one that the network delivers twice counts once. The kernel program does the
    /// same with atomic additions.
    pub fn hear(&mut self, packet: &Packet, now: u64, own_session: u32) {
        self.last_heard = now;
        let slot = &mut self.arrivals[packet.sequence as usize % ARRIVALS];
        if (slot.session, slot.sequence) == (packet.session, packet.sequence) {
            return;
        }
        *slot = Arrival::of(packet, now, 0, own_session);
        if self.heard_session != packet.session {
            self.heard_session = packet.session;
            self.heard = 0;
            self.heard_highest = 0;
            self.peer_heard = 0;
            self.peer_highest = 0;
        }
        self.heard += 1;
        if packet.sequence > self.heard_highest {
            self.heard_highest = packet.sequence;
            self.batch_end = packet.sequence.wrapping_add(packet.following.into());
        }
        if packet.heard_session == own_session {
            self.peer_heard = packet.heard;
            self.peer_highest = packet.heard_highest;
        }
    }

    /// Tells the peer what was heard of it, in a probe that is about to leave. As the kernel program does.
    pub fn tell(&self, packet: &mut Packet) {
        packet.heard_session = self.heard_session;
        packet.heard = self.heard;
        packet.heard_highest = self.heard_highest;
        let number = self.told_by(packet.following);
        let arrival = &self.arrivals[number as usize % ARRIVALS];
        if (arrival.session, arrival.sequence) == (self.heard_session, number) && number > 0 {
            arrival.tell(packet);
        }
    }

    /// Each probe of a batch tells of another one: the last of the last, the one before of the one before.
    fn told_by(&self, following: u16) -> u32 {
        self.heard_highest.wrapping_sub(following.into())
    }

    /// Arrivals of the peer's present session.
    fn heard_now(&self) -> impl Iterator<Item = &Arrival> {
        self.arrivals.iter().filter(|a| a.session != 0 && a.session == self.heard_session)
    }

    /// What the newest arrival took, ns, and when it arrived.
    pub fn newest(&self) -> Option<(i64, u64)> {
        self.heard_now().max_by_key(|a| a.arrived).map(|a| (a.took, a.arrived))
    }

    /// The round trips of our probes with a number above `after`, each once, in their order; `newest` is the highest number that
    /// was sent. Each is made of what the peer told of the way there, and of what the way back took at that moment: between the
    /// arrivals before and after it, at most `together` ns away, so that it does not matter how fast the clocks run.
    pub fn round_trips(&self, after: u32, newest: u32, together: u64) -> impl Iterator<Item = RoundTrip> {
        let mut last = after;
        core::iter::from_fn(move || {
            loop {
                let told = self.heard_now().filter(|a| a.told_sequence > last && a.told_sequence <= newest);
                let told = told.min_by_key(|a| a.told_sequence)?;
                last = told.told_sequence;
                let Some((took, back)) = self.took_at(told.told_sent, together) else { continue };
                let round_trip = told.told_took.wrapping_add(took);
                if round_trip >= 0 {
                    const TOLD: u32 = (STAMPED_TOLD_SENT | STAMPED_TOLD_ARRIVED) as u32;
                    return Some(RoundTrip {
                        sequence: last,
                        stamped: ((told.stamped & TOLD) | (back.stamped & !TOLD)) as u8,
                        round_trip: round_trip as u64,
                        outbound: told.told_took,
                    });
                }
            }
        })
    }

    /// What the way of the peer's probes took at a moment of our clock, ns, and the arrival that lies nearest.
    fn took_at(&self, moment: u64, together: u64) -> Option<(i64, &Arrival)> {
        const WHOLE: i64 = 1_000_000;
        let before = self.heard_now().filter(|a| a.arrived <= moment).max_by_key(|a| a.arrived);
        let after = self.heard_now().filter(|a| a.arrived > moment).min_by_key(|a| a.arrived);
        let distance = |a: &Arrival| a.arrived.abs_diff(moment);
        let near = |a: &&Arrival| distance(a) <= together;
        let (before, after) = match (before.filter(near), after.filter(near)) {
            (Some(before), Some(after)) => (before, after),
            (one, other) => return one.or(other).map(|only| (only.took, only)),
        };
        let part = distance(before).saturating_mul(WHOLE as u64) / (after.arrived - before.arrived);
        let more = after.took.wrapping_sub(before.took).wrapping_mul(part as i64) / WHOLE;
        let nearest = if distance(before) <= distance(after) { before } else { after };
        Some((before.took.wrapping_add(more), nearest))
    }
}

const _: () = assert!(PACKET_LEN == 56 && ARRIVALS.is_power_of_two() && cfg!(target_endian = "little"));

#[cfg(feature = "user")]
// SAFETY: repr(C), only integers, no padding (checked by the sizes asserted below).
unsafe impl aya::Pod for Peer {}
#[cfg(feature = "user")]
const _: () = assert!(size_of::<Arrival>() == 48 && size_of::<Peer>() == 40 + ARRIVALS * 48);

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    /// A node with its clock, which is ahead of ours.
    struct Node {
        session: u32,
        ahead: u64,
        peer: Peer,
        sequence: u32,
    }

    impl Node {
        fn new(session: u32, ahead: u64) -> Self {
            Self { session, ahead, peer: Peer::default(), sequence: 0 }
        }

        fn send(&mut self, at: u64, following: u16) -> Packet {
            self.sequence += 1;
            let mut packet = Packet {
                magic: MAGIC,
                following,
                session: self.session,
                sequence: self.sequence,
                sent: at + self.ahead,
                ..Packet::default()
            };
            self.peer.tell(&mut packet);
            packet
        }

        fn hear(&mut self, packet: &Packet, at: u64) {
            self.peer.hear(packet, at + self.ahead, self.session);
        }
    }

    const SECOND: u64 = 1_000_000_000;
    const DAY: u64 = 86_400 * SECOND;

    #[test]
    fn both_ends_know_the_round_trip_whatever_their_clocks_say() {
        let (mut a, mut b) = (Node::new(7, 0), Node::new(9, DAY));
        let mut trips = [Vec::new(), Vec::new()];
        for tick in 1..=3 {
            let at = tick * SECOND;
            // There in 300 ns, back in 500; the second speaks after it has heard the first.
            let there = a.send(at, 0);
            b.hear(&there, at + 300);
            let back = b.send(at + 2_000, 0);
            a.hear(&back, at + 2_500);
            for (node, trips) in [&a, &b].into_iter().zip(&mut trips) {
                let after = trips.last().map_or(0, |trip: &RoundTrip| trip.sequence);
                trips.extend(node.peer.round_trips(after, node.sequence, TOGETHER));
            }
        }
        let seen = |node: usize| -> Vec<_> {
            trips[node].iter().map(|t: &RoundTrip| (t.sequence, t.round_trip, t.outbound)).collect()
        };
        let day = DAY as i64;
        assert_eq!(seen(0), [(1, 800, day + 300), (2, 800, day + 300), (3, 800, day + 300)]);
        // It hears of its own a tick later.
        assert_eq!(seen(1), [(1, 800, 500 - day), (2, 800, 500 - day)]);
    }

    #[test]
    fn each_of_a_batch_tells_of_another_one() {
        let (mut a, mut b) = (Node::new(7, 0), Node::new(9, 0));
        for following in [2, 1, 0] {
            let packet = a.send(100, following);
            b.hear(&packet, 200 + u64::from(following));
        }
        for following in [2, 1, 0] {
            let packet = b.send(300, following);
            assert_eq!(packet.told_sequence, 3 - u32::from(following));
            a.hear(&packet, 400);
        }
        let sequences: Vec<u32> = a.peer.round_trips(1, 3, TOGETHER).map(|trip| trip.sequence).collect();
        assert_eq!(sequences, [2, 3]);
        // Nobody can tell of what was never sent, and nothing is told of what was never heard.
        assert_eq!(a.peer.round_trips(1, 2, TOGETHER).count(), 1);
        assert_eq!(a.peer.round_trips(3, 3, TOGETHER).count(), 0);
        assert_eq!(b.send(300, 3).told_sequence, 0);
    }

    #[test]
    fn ways_that_lie_far_apart_or_contradict_each_other_are_no_round_trip() {
        let (mut a, mut b) = (Node::new(7, 0), Node::new(9, 0));
        let first = a.send(SECOND, 0);
        b.hear(&first, SECOND + 300);
        let late = b.send(SECOND + TOGETHER + 1, 0);
        a.hear(&late, SECOND + TOGETHER + 1);
        assert_eq!(a.peer.round_trips(0, 1, TOGETHER).next(), None);
        // What comes in time later completes nothing either, because it tells of nothing.
        let mut back = b.send(SECOND, 0);
        back.heard_session = 8;
        a.hear(&back, SECOND);
        assert_eq!(a.peer.round_trips(0, 1, TOGETHER).count(), 1);
        let (mut a, mut b) = (Node::new(7, 0), Node::new(9, 0));
        let first = a.send(500, 0);
        b.hear(&first, 100);
        let back = b.send(500, 0);
        a.hear(&back, 100);
        assert_eq!(a.peer.round_trips(0, 1, TOGETHER).next(), None);
    }

    #[test]
    fn a_clock_that_is_slewed_makes_no_way_slower() {
        // The ticks lie 400 ms apart, and the second one's clock runs 8 % too fast.
        let (mut a, mut b) = (Node::new(7, 0), Node::new(9, 0));
        let mut trips = Vec::new();
        for tick in 1..=5 {
            for (at, is_a) in [(tick * SECOND, true), (tick * SECOND + 400_000_000, false)] {
                let (one, other) = if is_a { (&mut a, &mut b) } else { (&mut b, &mut a) };
                one.ahead = if is_a { 0 } else { at / 100 * 8 };
                let packet = one.send(at, 0);
                other.ahead = if is_a { (at + 300) / 100 * 8 } else { 0 };
                other.hear(&packet, at + 300);
            }
            trips.extend(a.peer.round_trips(trips.len() as u32, a.sequence, TOGETHER));
        }
        // Of the first one nothing came before.
        assert!(trips.len() == 5 && trips[1..].iter().all(|t| t.round_trip < 1_000), "{trips:?}");
    }

    #[test]
    fn what_is_written_is_read_and_the_rest_is_refused() {
        let packet = Packet {
            magic: MAGIC,
            stamped: 7,
            padding: 0,
            following: 0x0304,
            session: 1,
            sequence: 2,
            sent: u64::MAX - 3,
            heard_session: 6,
            heard: 7,
            heard_highest: 8,
            told_sequence: 9,
            told_sent: 4 << 40,
            told_took: -5,
        };
        let bytes = packet.to_bytes();
        assert_eq!(Packet::from_bytes(&bytes), Some(packet));
        assert_eq!(Packet::from_bytes(&bytes[1..]), None);
        assert_eq!(Packet::from_bytes(&[0; PACKET_LEN]), None);
    }

    #[test]
    fn who_stamped_what_is_kept_apart() {
        let packet = Packet { stamped: STAMPED_SENT | STAMPED_TOLD_SENT, ..Packet::default() };
        let arrival = Arrival::of(&packet, 0, STAMPED_ARRIVED, 7);
        assert_eq!(arrival.stamped, u32::from(STAMPED_SENT | STAMPED_ARRIVED | STAMPED_TOLD_SENT));
        let mut told = Packet::default();
        arrival.tell(&mut told);
        assert_eq!(told.stamped, STAMPED_TOLD_SENT | STAMPED_TOLD_ARRIVED);
        // Nobody says of himself that somebody else stamped.
        let boast = Packet { stamped: STAMPED_ARRIVED, ..Packet::default() };
        assert_eq!(Arrival::of(&boast, 0, 0, 7).stamped, 0);
    }

    #[test]
    fn what_is_delivered_twice_counts_once() {
        let mut peer = Peer::default();
        let packet = Packet { session: 7, sequence: 3, ..Packet::default() };
        for _ in 0..2 {
            peer.hear(&packet, 100, 9);
        }
        assert_eq!(peer.heard, 1);
    }

    #[test]
    fn a_new_session_counts_from_its_first_probe() {
        let mut peer = Peer::default();
        for (session, sequence, following) in [(1, 8, 2), (1, 10, 0), (2, 5, 3), (2, 4, 4)] {
            let packet = Packet {
                following,
                session,
                sequence,
                heard_session: 9,
                heard: sequence,
                heard_highest: 6,
                ..Packet::default()
            };
            peer.hear(&packet, 50, 9);
        }
        assert_eq!((peer.heard_session, peer.heard, peer.heard_highest, peer.batch_end), (2, 2, 5, 8));
        assert_eq!((peer.peer_heard, peer.peer_highest, peer.last_heard), (4, 6, 50));
    }
}
