//! Sends this node's probes, takes its peers', and reads what was counted.
//!
//! One batch per tick, because the wake-up is the cost and not the packet. Nodes take turns by their addresses, a moment apart, so
//! that the probes of the second one of two tell of those that have just come. With the kernel programs attached nobody
//! here looks at a clock or at what arrives, and nothing that arrives wakes this process. Without them the same fields are
//! filled in here, and every round trip says so.

use std::{
    collections::BTreeMap,
    io::{self, IoSlice, IoSliceMut},
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use ebpf_records::mesh::{ARRIVALS, MAGIC, MAX_PEERS, PACKET_LEN, Packet, Peer, STAMPED_ALL, TOGETHER};
use nix::{
    errno::Errno,
    setsockopt_impl, sockopt_impl,
    sys::socket::{
        ControlMessage, MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg, setsockopt,
        sockopt::RcvBufForce,
    },
    time::{ClockId, clock_gettime},
};
use wire::{
    report::{PeerReport, Stamps, Tier},
    topic::Name,
};

use super::link::{LATE_MS, Link, PeerSample, Trip};
use crate::{
    config::{self, Config},
    datapath::{
        DIRECTIONS, MeshPrograms,
        rights::{PROGRAMS, missing},
        uplink::Uplink,
    },
    host::{Host, ready::Ready},
};

/// Probes to all peers per tick: few peers get several each, so that loss shows in one tick.
const BUDGET: usize = 20;
/// Probes to one peer per tick, at most; three ticks fit into the record of arrivals.
const BURST: usize = 5;
const _: () = assert!(BURST * 3 <= ARRIVALS);
/// How much later than the node before it one speaks, at most: the probes of those whose clocks agree have come by then.
const TURN: Duration = Duration::from_micros(200);
/// Within this time all nodes have had their turn: what the last one says comes well before the first one looks.
pub const TURNS: Duration = Duration::from_millis(LATE_MS / 2);
/// A batch of which nothing came for this long, ns, has arrived or is lost.
const ARRIVED: u64 = LATE_MS * 1_000_000;
/// With kernel stamps it is looked at what arrived as soon as so many must have, and at once when the programs count nothing: only
/// to see whether they see it too.
const LOOKED_AT: usize = 50;
/// Most datagrams that are taken in one go, so that a flood cannot hold the tick up.
const MOST: usize = 4096;
/// Datagrams that one system call takes.
const AT_ONCE: usize = 32;
/// What may wait until it is taken, bytes: the probes of as many peers as there may be, with what the kernel needs for each.
const WAITING: usize = 4 << 20;

/// The mesh's sending and reading half.
pub struct Prober {
    uplink: Uplink,
    session: u32,
    port: u16,
    period: Duration,
    tier: Tier,
    programs: Result<MeshPrograms, String>,
    socket: UdpSocket,
    /// When a probe has come; with kernel stamps nobody wants to know. The runtime's own sockets would also say when there is
    /// room to send, after each batch.
    arrived: Option<Ready>,
    peers: BTreeMap<Ipv4Addr, Probed>,
    /// Last numbers of probes to addresses that are not probed now: who is probed again is to hear higher ones, because in one
    /// session nothing can be told of numbers that were there before.
    past: BTreeMap<Ipv4Addr, u32>,
    /// Probes that left since it was looked at what arrived: as many are to come.
    left: usize,
    blind: Option<String>,
}

struct Probed {
    name: Name,
    /// Our clock when it was first probed, ns.
    since: u64,
    sequence: u32,
    /// Highest probe whose round trip was reported.
    reported: u32,
    /// Our clock at the last sample, ns.
    sampled: u64,
    /// What was counted by the last sample; without kernel programs, until now.
    counted: Peer,
    /// `sequence` when the programs had last counted one that left.
    seen_leaving: u32,
    /// Whether they had counted something new on both ways by the last sample.
    is_new: bool,
    /// The highest of our probes that the peer told this process of.
    told: u32,
    /// Session and number of the last probe that was there when it was last looked at what arrived.
    came: Option<(u32, u32)>,
    link: Link,
}

impl Probed {
    fn new(name: Name, sequence: u32) -> Self {
        Self {
            name,
            since: now_ns(),
            sequence,
            reported: 0,
            sampled: 0,
            counted: Peer::default(),
            seen_leaving: sequence,
            is_new: false,
            told: 0,
            came: None,
            link: Link::default(),
        }
    }

    /// Takes what the programs count now.
    fn count(&mut self, now: &Peer) {
        let (has_left, has_come) = (now.sent != self.counted.sent, now.last_heard != self.counted.last_heard);
        self.counted = *now;
        if has_left {
            self.seen_leaving = self.sequence;
        }
        self.is_new = has_left && has_come;
    }

    /// Judges both ways, at this moment of our clock; two ways of a round trip may lie so many ns apart. Whether a verdict is
    /// another one now.
    fn judge(&mut self, now: u64, together: u64, period_ms: u64, trips: &mut Vec<Trip>) -> bool {
        let peer = &self.counted;
        trips.clear();
        for trip in peer.round_trips(self.reported, self.sequence, together) {
            self.reported = trip.sequence;
            let (round_trip, outbound, stamps) = (trip.round_trip, trip.outbound, stamps(trip.stamped));
            trips.push(Trip { round_trip, outbound, stamps });
        }
        let newest = peer.newest().filter(|(_, arrived)| *arrived > self.sampled);
        self.sampled = now;
        let sample = PeerSample {
            known_ms: now.saturating_sub(self.since) / 1_000_000,
            sequence: self.sequence,
            sent: peer.sent,
            heard_session: peer.heard_session,
            heard: peer.heard,
            heard_highest: known_highest(peer, now),
            peer_heard: peer.peer_heard,
            peer_highest: peer.peer_highest,
            silent_ms: (peer.last_heard > 0).then(|| now.saturating_sub(peer.last_heard) / 1_000_000),
            newest: newest.map(|(took, _)| took),
        };
        let before = self.link.states();
        self.link.judge(sample, trips, period_ms);
        self.link.states() != before
    }

    /// The program that did not see what passed, and which packets: one that comes to this process was counted before.
    fn unseen(&self) -> Option<(&'static str, &'static str)> {
        let [(egress, _), (ingress, _)] = DIRECTIONS;
        if self.told > self.seen_leaving {
            return Some((egress, "leave"));
        }
        // What is of another session than the programs know may be of a run before, or of nobody.
        let (session, number) = self.came?;
        let Peer { heard_session, heard_highest, .. } = self.counted;
        if heard_session == 0 || session == heard_session && number > heard_highest {
            Some((ingress, "arrive"))
        } else {
            None
        }
    }
}

impl Prober {
    /// Finds the uplink, attaches the programs if they may be used, and opens the socket. `unfit` says why the programs are
    /// not to be used, if they are not. Needs a tokio runtime.
    ///
    /// # Errors
    /// One sentence with the next step; without the kernel programs it still opens, in the lower tier.
    pub fn open(host: &Host, config: &Config, unfit: Option<String>) -> Result<Self, String> {
        let uplink = Uplink::find(host, config.probe.uplink.as_deref()).map_err(|e| e.to_string())?;
        let session = crate::random::u32().max(1);
        let port = config.probe.port;
        // The port first: whoever has it may be a companion, whose programs must not be taken away.
        let socket = bind(port).map_err(|e| match e.kind() {
            io::ErrorKind::AddrInUse => format!("UDP port {port} is taken; set probe.port, on all nodes"),
            _ => format!("opening UDP port {port}: {e}"),
        })?;
        let programs = match (config.probe.stamps, unfit) {
            (config::Stamps::User, _) => Err("probe.stamps is \"user\" in the configuration".to_owned()),
            (config::Stamps::Auto, Some(why)) => Err(why),
            (config::Stamps::Auto, None) => MeshPrograms::attach(&uplink, port, session, config.probe.attach)
                .map_err(|e| format!("{e}{}", missing(host, PROGRAMS))),
        };
        let tier = match &programs {
            Ok(programs) => Tier {
                stamps: Stamps::Kernel,
                attached: Some(programs.attached.to_string()),
                why: String::new(),
            },
            Err(why) => Tier { stamps: Stamps::User, attached: None, why: why.clone() },
        };
        let wait = || Ready::of(socket.as_fd()).map_err(|e| format!("waiting for probes: {e}"));
        let arrived = if programs.is_err() { Some(wait()?) } else { None };
        Ok(Self {
            uplink,
            session,
            port,
            period: config.probe.period,
            tier,
            programs,
            socket,
            arrived,
            peers: BTreeMap::new(),
            past: BTreeMap::new(),
            left: 0,
            blind: None,
        })
    }

    /// The link that probes leave by.
    pub fn uplink(&self) -> &Uplink {
        &self.uplink
    }

    /// Whether kernel programs stamp.
    pub fn stamped_by_kernel(&self) -> bool {
        self.programs.is_ok()
    }

    /// How the mesh is measured, and why not better.
    pub fn tier(&self) -> &Tier {
        &self.tier
    }

    /// Why the programs are of no use here: probes came to this process, and none past them, or their counts cannot be read.
    pub fn blind(&self) -> Option<&str> {
        self.blind.as_deref()
    }

    /// Probes exactly these peers from now on; what is known of those that stay is kept.
    pub fn set_peers(&mut self, wanted: &BTreeMap<Name, Ipv4Addr>) {
        let is_gone = |(address, probed): (&Ipv4Addr, &Probed)| {
            (wanted.get(&probed.name) != Some(address)).then_some(*address)
        };
        let gone: Vec<Ipv4Addr> = self.peers.iter().filter_map(is_gone).collect();
        for address in gone {
            let Some(probed) = self.peers.remove(&address) else { continue };
            if self.past.len() >= MAX_PEERS as usize {
                self.past.pop_first();
            }
            self.past.insert(address, probed.sequence);
            if let Ok(programs) = &mut self.programs {
                programs.remove_peer(address);
            }
        }
        let mut new = BTreeMap::new();
        for (name, &address) in wanted {
            // Of two names of an address the first one counts.
            if self.peers.contains_key(&address)
                || new.contains_key(&address)
                || address == self.uplink.address
            {
                continue;
            }
            if let Ok(programs) = &mut self.programs
                && let Err(why) = programs.add_peer(address)
            {
                tracing::error!(bramble_peer = %name, "{name} is not probed: {why}");
                continue;
            }
            new.insert(address, name);
        }
        // What came before the programs knew a peer is no sign that they are blind: nobody's it is still.
        self.take();
        for (address, name) in new {
            let sequence = self.past.remove(&address).unwrap_or_default();
            self.peers.insert(address, Probed::new(name.clone(), sequence));
        }
    }

    /// How long after the tick it is this node's turn to speak.
    pub fn turn(&self) -> Duration {
        let apart = TURNS / (self.peers.len() as u32 + 1);
        TURN.min(apart) * self.peers.range(..self.uplink.address).count() as u32
    }

    /// Sends one batch: a few probes to every peer.
    pub fn send(&mut self) {
        let by_kernel = self.stamped_by_kernel();
        if !by_kernel {
            self.take();
        }
        let burst = (BUDGET / self.peers.len().max(1)).clamp(1, BURST);
        let sent = now_ns();
        let mut batch = Vec::with_capacity(burst * self.peers.len());
        for following in (0..burst as u16).rev() {
            for (address, probed) in &mut self.peers {
                probed.sequence = probed.sequence.wrapping_add(1).max(1);
                let (session, sequence) = (self.session, probed.sequence);
                let mut packet =
                    Packet { magic: MAGIC, following, session, sequence, sent, ..Packet::default() };
                if !by_kernel {
                    probed.counted.sent += 1;
                    probed.counted.tell(&mut packet);
                }
                batch.push((packet.to_bytes(), SocketAddrV4::new(*address, self.port)));
            }
        }
        self.left += batch.len();
        send_batch(&self.socket, &batch);
    }

    /// Waits until probes must be taken: never with kernel stamps.
    pub async fn arrived(&self) {
        match &self.arrived {
            // An error shows again, with its reason, when the socket is read.
            Some(arrived) => drop(arrived.happened().await),
            None => std::future::pending().await,
        }
    }

    /// Takes what has arrived of known peers. With kernel stamps it was counted and timed before.
    pub fn take(&mut self) {
        let (by_kernel, session) = (self.stamped_by_kernel(), self.session);
        let peers = &mut self.peers;
        drain(&self.socket, |bytes, from| {
            let Some(packet) = Packet::from_bytes(bytes) else { return };
            let Some(probed) = peers.get_mut(from.ip()) else { return };
            if !by_kernel {
                probed.counted.hear(&packet, now_ns(), session);
                return;
            }
            probed.came = Some((packet.session, packet.sequence));
            if packet.heard_session == session && packet.heard_highest <= probed.sequence {
                probed.told = probed.told.max(packet.heard_highest);
            }
        });
        self.left = 0;
    }

    /// Reads what the programs count; whether that is known.
    fn count(&mut self) -> bool {
        let Ok(programs) = &mut self.programs else { return false };
        for probed in self.peers.values_mut() {
            probed.is_new = false;
        }
        match programs.counts() {
            Ok(counts) => {
                for (address, now) in counts {
                    if let Some(probed) = self.peers.get_mut(&address) {
                        probed.count(now);
                    }
                }
                true
            }
            Err(why) => {
                self.blind = Some(format!("what the programs count is not known: {why}"));
                false
            }
        }
    }

    /// Looks at what arrived: whatever came by the programs, they counted before.
    fn look(&mut self) {
        for probed in self.peers.values_mut() {
            probed.came = None;
        }
        self.take();
        if !self.count() {
            return;
        }
        self.blind = self.peers.values().find_map(Probed::unseen).map(|(program, which)| {
            let device = &self.uplink.name;
            format!(
                "{program} does not see the probes that {which} by {device}: another program ends their way before it, or it \
                 was taken away; `bpftool net show dev {device}` lists who is there"
            )
        });
    }

    /// Looks at what was counted, and judges both ways of each peer; whether a verdict is another one now. Once a period.
    pub fn judge(&mut self) -> bool {
        if self.programs.is_ok() {
            let is_all_new = self.left < LOOKED_AT && {
                self.count();
                self.peers.values().all(|probed| probed.is_new)
            };
            if !is_all_new {
                self.look();
            }
        }
        let (now, period_ms) = (now_ns(), self.period.as_millis() as u64);
        let together = TOGETHER.max(self.period.as_nanos() as u64 / 2);
        let mut trips = Vec::with_capacity(ARRIVALS);
        let mut is_news = false;
        for probed in self.peers.values_mut() {
            is_news |= probed.judge(now, together, period_ms, &mut trips);
        }
        is_news
    }

    /// What is known of each peer.
    pub fn reports(&self) -> BTreeMap<Name, PeerReport> {
        self.peers.values().map(|probed| (probed.name.clone(), probed.link.report())).collect()
    }
}

/// The highest number that this peer is known to have sent: the last one of its batch, as soon as what comes of that has come.
fn known_highest(peer: &Peer, now: u64) -> u32 {
    if now.saturating_sub(peer.last_heard) < ARRIVED {
        return peer.heard_highest;
    }
    peer.heard_highest.max(peer.batch_end)
}

fn stamps(stamped: u8) -> Stamps {
    match stamped {
        0 => Stamps::User,
        STAMPED_ALL => Stamps::Kernel,
        _ => Stamps::Mixed,
    }
}

/// `CLOCK_MONOTONIC`, the clock of `bpf_ktime_get_ns()`, ns.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has this clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

sockopt_impl!(
    /// Whether packets may be taken apart on their way.
    MtuDiscover,
    SetOnly,
    libc::IPPROTO_IP,
    libc::IP_MTU_DISCOVER,
    libc::c_int
);

fn bind(port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    socket.set_nonblocking(true)?;
    // A probe fits everywhere, and what is never taken apart needs no number by which to put it together, whose choice costs.
    let _ = setsockopt(&socket, MtuDiscover, &libc::IP_PMTUDISC_PROBE);
    // Without the right to it the usual room has to do: some hundred peers fit.
    let _ = setsockopt(&socket, RcvBufForce, &WAITING);
    Ok(socket)
}

/// Takes what has arrived, at most [`MOST`] datagrams, [`AT_ONCE`] in one system call.
fn drain(socket: &UdpSocket, mut each: impl FnMut(&[u8], SocketAddrV4)) {
    // A datagram that is longer than a probe fills its buffer to the end, and is none.
    const LONGEST: usize = PACKET_LEN + 1;
    for _ in 0..MOST / AT_ONCE {
        let mut buffers = [[0; LONGEST]; AT_ONCE];
        let mut slices: Vec<[IoSliceMut<'_>; 1]> = buffers.iter_mut().map(|b| [IoSliceMut::new(b)]).collect();
        let mut headers = MultiHeaders::<SockaddrIn>::preallocate(AT_ONCE, None);
        let received =
            recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None)
                .map(|messages| messages.map(|m| (m.bytes, m.address)).collect::<Vec<_>>());
        match received {
            Ok(received) => {
                for ((length, from), buffer) in received.iter().zip(&buffers) {
                    if let Some(from) = from {
                        each(&buffer[..*length], SocketAddrV4::new(from.ip(), from.port()));
                    }
                }
                if received.len() < AT_ONCE {
                    return;
                }
            }
            Err(Errno::EAGAIN) => return,
            // An ICMP error of an earlier send: the peer's port is closed, which silence says as well.
            Err(_) => {}
        }
    }
}

/// One system call for the batch. What cannot be sent counts as lost, which it is.
fn send_batch<const N: usize>(socket: &UdpSocket, batch: &[([u8; N], SocketAddrV4)]) {
    let slices: Vec<[IoSlice<'_>; 1]> = batch.iter().map(|(bytes, _)| [IoSlice::new(bytes)]).collect();
    let addresses: Vec<Option<SockaddrIn>> =
        batch.iter().map(|(_, to)| Some(SockaddrIn::from(*to))).collect();
    let mut from = 0;
    while from < batch.len() {
        let mut headers = MultiHeaders::preallocate(batch.len() - from, None);
        let none: [ControlMessage<'_>; 0] = [];
        let sent = sendmmsg(
            socket.as_raw_fd(),
            &mut headers,
            &slices[from..],
            &addresses[from..],
            none,
            MsgFlags::MSG_DONTWAIT,
        );
        // The first of the rest is the one that was refused (no route, a pending ICMP error): go on behind it.
        from += sent.map_or(1, |results| results.count().max(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prober() -> Prober {
        let address = Ipv4Addr::new(198, 18, 0, 1);
        Prober {
            socket: bind(0).unwrap(),
            arrived: None,
            uplink: Uplink { name: "eth0".to_owned(), address, header_length: 14, index: 2 },
            session: 7,
            port: 9,
            period: Duration::from_secs(1),
            tier: Tier { stamps: Stamps::User, attached: None, why: String::new() },
            programs: Err("a test".to_owned()),
            peers: BTreeMap::new(),
            past: BTreeMap::new(),
            left: 0,
            blind: None,
        }
    }

    #[test]
    fn the_last_ones_of_a_batch_are_known_once_it_has_arrived() {
        let packet = Packet { session: 3, sequence: 6, following: 4, ..Packet::default() };
        let mut peer = Peer::default();
        peer.hear(&packet, 1_000, 7);
        assert_eq!(known_highest(&peer, 1_000 + ARRIVED - 1), 6);
        assert_eq!(known_highest(&peer, 1_000 + ARRIVED), 10);
        peer.hear(&Packet { sequence: 11, following: 0, ..packet }, 2_000, 7);
        assert_eq!(known_highest(&peer, 2_000 + ARRIVED), 11);
    }

    #[tokio::test]
    async fn a_peer_that_is_probed_again_hears_only_new_numbers() {
        let mut prober = prober();
        // To ourselves: whatever is sent stays here.
        let n2 = Name::new("n2").unwrap();
        let wanted = BTreeMap::from([(n2.clone(), Ipv4Addr::LOCALHOST)]);
        let mut numbers = Vec::new();
        for wanted in [wanted.clone(), BTreeMap::new(), wanted] {
            prober.set_peers(&wanted);
            prober.send();
            numbers.push(prober.peers.get(&Ipv4Addr::LOCALHOST).map(|probed| probed.sequence));
        }
        assert_eq!(numbers, [Some(5), None, Some(10)]);
        // Of two names of one address the first one counts.
        let n3 = Name::new("n3").unwrap();
        let both = BTreeMap::from([(n3.clone(), Ipv4Addr::LOCALHOST), (n2.clone(), Ipv4Addr::LOCALHOST)]);
        let name = |prober: &Prober| prober.peers[&Ipv4Addr::LOCALHOST].name.as_str().to_owned();
        prober.set_peers(&both);
        assert_eq!((prober.peers.len(), name(&prober).as_str()), (1, "n2"));
        prober.set_peers(&BTreeMap::from([(n3, Ipv4Addr::LOCALHOST)]));
        assert_eq!(name(&prober), "n3");
        // Two that have changed places go on with the numbers of their places.
        let other = Ipv4Addr::new(127, 0, 0, 2);
        let places =
            |a: Ipv4Addr, b: Ipv4Addr| BTreeMap::from([(n2.clone(), a), (Name::new("n3").unwrap(), b)]);
        let seen = |prober: &Prober| -> Vec<(String, u32)> {
            prober.peers.values().map(|probed| (probed.name.to_string(), probed.sequence)).collect()
        };
        prober.set_peers(&places(Ipv4Addr::LOCALHOST, other));
        prober.send();
        let before = seen(&prober);
        prober.set_peers(&places(other, Ipv4Addr::LOCALHOST));
        let [(first, a), (second, b)] = &before[..] else { panic!("{before:?}") };
        assert_eq!(seen(&prober), [(second.clone(), *a), (first.clone(), *b)]);
        // What is remembered has an end.
        for i in 0..2 * MAX_PEERS {
            prober.set_peers(&BTreeMap::from([(n2.clone(), Ipv4Addr::from(0x0a00_0000 + i))]));
        }
        assert_eq!(prober.past.len(), MAX_PEERS as usize);
    }

    #[tokio::test]
    async fn nodes_take_turns_by_their_addresses_and_many_of_them_do_not_take_longer() {
        let mut prober = prober();
        let mut turn = |addresses: &[[u8; 4]]| {
            let named = |(at, address): (usize, &[u8; 4])| {
                (Name::new(&format!("n{at}")).unwrap(), Ipv4Addr::from(*address))
            };
            prober.set_peers(&addresses.iter().enumerate().map(named).collect());
            prober.turn()
        };
        assert_eq!(turn(&[]), Duration::ZERO);
        assert_eq!(turn(&[[198, 18, 0, 2], [198, 18, 0, 10]]), Duration::ZERO);
        assert_eq!(turn(&[[9, 255, 0, 2], [198, 18, 0, 10], [198, 17, 0, 1]]), 2 * TURN);
        let many: Vec<[u8; 4]> = (0..1000_u16).map(|i| [10, 0, (i >> 8) as u8, i as u8]).collect();
        let last = turn(&many);
        assert!(last > TURNS * 9 / 10 && last <= TURNS, "{last:?}");
    }

    #[tokio::test]
    async fn a_verdict_is_news_and_a_number_is_none() {
        let mut prober = prober();
        prober.set_peers(&BTreeMap::from([(Name::new("n2").unwrap(), Ipv4Addr::LOCALHOST)]));
        let tick = |prober: &mut Prober, seconds: u64| {
            let before = prober.reports();
            // As if so much time had passed without an answer.
            for probed in prober.peers.values_mut() {
                probed.since = now_ns().saturating_sub(seconds * 1_000_000_000);
                probed.counted.last_heard = 0;
            }
            prober.send();
            (prober.judge(), before != prober.reports())
        };
        assert_eq!(tick(&mut prober, 0), (false, true));
        assert_eq!(tick(&mut prober, 1), (false, true));
        // Never heard for so long, it is cut: once that is news.
        assert_eq!(tick(&mut prober, 10), (true, true));
        assert_eq!(tick(&mut prober, 11), (false, true));
    }

    #[test]
    fn a_program_is_blind_when_what_should_pass_it_arrives_uncounted() {
        let n2 = || Name::new("n2").unwrap();
        let probed = |sent, heard| {
            let mut probed = Probed::new(n2(), 0);
            let mut tick = |sent, heard_highest: u32| {
                probed.sequence += 5;
                let last_heard = heard_highest.into();
                probed.count(&Peer { sent, heard_session: 3, heard_highest, last_heard, ..Peer::default() });
            };
            tick(5, 5);
            tick(sent, heard);
            probed
        };
        let unseen = |probed: Probed, told, came| {
            Probed { told, came: Some(came), ..probed }.unseen().map(|(program, _)| program)
        };
        let (egress, ingress) = (Some("bramble_egress"), Some("bramble_ingress"));
        let is_new = |sent, heard| probed(sent, heard).is_new;
        assert_eq!([is_new(10, 10), is_new(5, 10), is_new(10, 5)], [true, false, false]);
        // All is well, and it may be told of what left before the last sample.
        assert_eq!(unseen(probed(10, 10), 10, (3, 10)), None);
        assert_eq!(unseen(probed(10, 10), 5, (3, 6)), None);
        assert_eq!(unseen(probed(5, 10), 10, (3, 10)), egress);
        assert_eq!(unseen(probed(10, 5), 10, (3, 10)), ingress);
        assert_eq!(unseen(Probed::new(n2(), 0), 0, (3, 1)), ingress);
        // The peer was started anew since, or somebody else speaks by its address.
        assert_eq!(unseen(probed(10, 10), 10, (2, 100)), None);
        // A cut cable: nothing leaves, nothing arrives, and what came before is still there.
        assert_eq!(unseen(probed(5, 5), 5, (3, 5)), None);
        // Nobody has heard what was sent: it may wait for an address.
        assert_eq!(unseen(probed(5, 10), 5, (3, 10)), None);
        assert_eq!(probed(5, 5).unseen(), None);
    }
}
