//! Sends this node's probes, answers its peers', and reads what was counted.
//!
//! One batch per tick for all peers, because the wake-up is the cost and not the packet. With the kernel programs
//! attached nobody here looks at a clock or at a reply: replies are thrown away at the next tick. Without them the same
//! fields are filled in here, and every round trip says so.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, IoSlice, IoSliceMut},
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    time::{Duration, Instant},
};

use ebpf_records::mesh::{
    MAX_PEERS, PACKET_LEN, Packet, Peer, REPLY, REQUEST, RoundTrip, SAMPLES, STAMPED_ALL, STAMPED_ANSWERED,
    STAMPED_RECEIVED,
};
use nix::{
    errno::Errno,
    sys::socket::{ControlMessage, MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg},
    time::{ClockId, clock_gettime},
};
use wire::{
    report::{Stamps, Tier},
    topic::Name,
};

use super::link::{PeerSample, Trip};
use crate::{
    config::{self, Config},
    datapath::{
        DIRECTIONS, MeshPrograms,
        rights::{PROGRAMS, missing},
        uplink::Uplink,
    },
    host::{Host, ready::Ready},
};

/// Requests to all peers per tick: few peers get several each, so that loss shows in one tick.
const BUDGET: usize = 20;
/// Requests to one peer per tick, at most; three ticks fit into the kernel's record of round trips.
const BURST: usize = 5;
const _: () = assert!(BURST * 3 <= SAMPLES);
/// How long after a batch of our own the peers' are gathered, so that one wake-up answers all whose clocks agree. With kernel
/// stamps this time drops out of the round trip. It is slept away and not awaited: a short sleep wakes the process once.
const GATHER: Duration = Duration::from_millis(2);
/// A batch of which nothing came for this long, ns, has arrived or is lost.
const ARRIVED: u64 = 100_000_000;
/// Most datagrams that are taken in one go, so that a flood cannot hold the tick up.
const MOST: usize = 4096;

/// The mesh's sending, answering and reading half.
pub struct Prober {
    uplink: Uplink,
    session: u32,
    port: u16,
    programs: Result<MeshPrograms, String>,
    requests: UdpSocket,
    responder: UdpSocket,
    /// When a peer has asked. The runtime's own sockets would also say when there is room to send, after each batch.
    asked: Ready,
    /// When a reply has come; with kernel stamps nobody wants to know.
    answered: Option<Ready>,
    peers: BTreeMap<Name, Probed>,
    names: HashMap<Ipv4Addr, Name>,
    /// Last numbers of requests to addresses that are not probed now: who is probed again is to hear higher ones, because in one
    /// session nothing can be told of numbers that were there before.
    past: BTreeMap<Ipv4Addr, u32>,
    passed: Passed,
    blind: Option<String>,
}

/// What this process got from the network since the last sample, and what the programs had counted by then: a packet that comes
/// by them is counted first.
#[derive(Default)]
struct Passed {
    /// Requests of peers.
    requests: u32,
    /// Replies to our requests.
    replies: u32,
    /// Requests that left, of all peers; our clock when one of them was last heard. `None` before the first sample.
    counted: Option<(u64, u64)>,
}

struct Probed {
    address: Ipv4Addr,
    since: Instant,
    sequence: u32,
    /// Highest request whose round trip was reported.
    reported: u32,
    /// The user-space counterpart of the kernel's map.
    counted: Peer,
}

impl Prober {
    /// Finds the uplink, attaches the programs if they may be used, and opens the two sockets. `unfit` says why the programs are
    /// not to be used, if they are not. Needs a tokio runtime.
    ///
    /// # Errors
    /// One sentence with the next step; without the kernel programs it still opens, in the lower tier.
    pub fn open(host: &Host, config: &Config, unfit: Option<String>) -> Result<Self, String> {
        let uplink = Uplink::find(host, config.probe.uplink.as_deref()).map_err(|e| e.to_string())?;
        let session = crate::random::u32().max(1);
        let port = config.probe.port;
        let bind = |port| {
            bind(port).map_err(|e| match e.kind() {
                io::ErrorKind::AddrInUse => format!("UDP port {port} is taken; set probe.port, on all nodes"),
                _ => format!("opening UDP port {port}: {e}"),
            })
        };
        // The port first: whoever has it may be a companion, whose programs must not be taken away.
        let (responder, requests) = (bind(port)?, bind(0)?);
        let programs = match (config.probe.stamps, unfit) {
            (config::Stamps::User, _) => Err("probe.stamps is \"user\" in the configuration".to_owned()),
            (config::Stamps::Auto, Some(why)) => Err(why),
            (config::Stamps::Auto, None) => MeshPrograms::attach(&uplink, port, session, config.probe.attach)
                .map_err(|e| format!("{e}{}", missing(host, PROGRAMS))),
        };
        let wait =
            |socket: &UdpSocket| Ready::of(socket.as_fd()).map_err(|e| format!("waiting for probes: {e}"));
        let asked = wait(&responder)?;
        let answered = if programs.is_err() { Some(wait(&requests)?) } else { None };
        Ok(Self {
            uplink,
            session,
            port,
            programs,
            requests,
            responder,
            asked,
            answered,
            peers: BTreeMap::new(),
            names: HashMap::new(),
            past: BTreeMap::new(),
            passed: Passed::default(),
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
    pub fn tier(&self) -> Tier {
        match &self.programs {
            Ok(programs) => Tier {
                stamps: Stamps::Kernel,
                attached: Some(programs.attached.to_string()),
                why: String::new(),
            },
            Err(why) => Tier { stamps: Stamps::User, attached: None, why: why.clone() },
        }
    }

    /// Why the programs are of no use here: probes came to this process since the sample before the last one, and none past them.
    pub fn blind(&self) -> Option<&str> {
        self.blind.as_deref()
    }

    /// Probes exactly these peers from now on; what is known of those that stay is kept.
    pub fn set_peers(&mut self, wanted: &BTreeMap<Name, Ipv4Addr>) {
        let gone: Vec<Name> = self
            .peers
            .iter()
            .filter(|(name, probed)| wanted.get(*name) != Some(&probed.address))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            let Some(probed) = self.peers.remove(&name) else { continue };
            self.names.remove(&probed.address);
            if self.past.len() >= MAX_PEERS as usize {
                self.past.pop_first();
            }
            self.past.insert(probed.address, probed.sequence);
            if let Ok(programs) = &mut self.programs {
                programs.remove_peer(probed.address);
            }
        }
        for (name, &address) in wanted {
            if self.peers.contains_key(name)
                || self.names.contains_key(&address)
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
            self.names.insert(address, name.clone());
            let (since, counted) = (Instant::now(), Peer::default());
            let sequence = self.past.remove(&address).unwrap_or_default();
            self.peers.insert(name.clone(), Probed { address, since, sequence, reported: 0, counted });
        }
    }

    /// Sends one batch: a few requests to every peer.
    pub fn send(&mut self) {
        if self.peers.is_empty() {
            return;
        }
        if self.stamped_by_kernel() {
            // Counted and timed by the kernel already.
            drain(&self.requests, |_, _| {});
        }
        let burst = (BUDGET / self.peers.len()).clamp(1, BURST);
        let sent = now_ns();
        let mut batch = Vec::with_capacity(burst * self.peers.len());
        for following in (0..burst as u16).rev() {
            for probed in self.peers.values_mut() {
                probed.sequence = probed.sequence.wrapping_add(1).max(1);
                probed.counted.sent += 1;
                let packet = Packet {
                    magic: ebpf_records::mesh::MAGIC,
                    kind: REQUEST,
                    following,
                    session: self.session,
                    sequence: probed.sequence,
                    sent,
                    heard_session: probed.counted.heard_session,
                    heard: probed.counted.heard,
                    heard_highest: probed.counted.heard_highest,
                    ..Packet::default()
                };
                batch.push((packet.to_bytes(), SocketAddrV4::new(probed.address, self.port)));
            }
        }
        send_batch(&self.requests, &batch);
        if self.stamped_by_kernel() {
            // The peers have sent theirs at this very moment.
            std::thread::sleep(GATHER);
            self.answer();
        }
    }

    /// Waits until a peer asks.
    pub async fn asked(&self) {
        // An error shows again, with its reason, when the socket is read.
        let _ = self.asked.happened().await;
    }

    /// Waits until a reply must be looked at: never with kernel stamps.
    pub async fn answered(&self) {
        match &self.answered {
            Some(answered) => drop(answered.happened().await),
            None => std::future::pending().await,
        }
    }

    /// Turns the requests of known peers round.
    pub fn answer(&mut self) {
        let by_kernel = self.stamped_by_kernel();
        let (peers, names, passed) = (&mut self.peers, &self.names, &mut self.passed);
        let mut batch = Vec::new();
        drain(&self.responder, |bytes, from| {
            let Some(mut packet) = Packet::from_bytes(bytes).filter(|p| p.kind == REQUEST) else { return };
            // Strangers get no answer, so nobody can be flooded through us.
            let Some(probed) = names.get(from.ip()).and_then(|name| peers.get_mut(name)) else { return };
            passed.requests += 1;
            let now = now_ns();
            if !by_kernel {
                probed.counted.hear(&packet, now, self.session);
            }
            if packet.stamped & STAMPED_RECEIVED == 0 {
                packet.received = now;
            }
            packet.kind = REPLY;
            packet.stamped &= !STAMPED_ANSWERED;
            packet.heard_session = probed.counted.heard_session;
            packet.heard = probed.counted.heard;
            packet.heard_highest = probed.counted.heard_highest;
            packet.answered = now;
            batch.push((packet.to_bytes(), from));
        });
        send_batch(&self.responder, &batch);
    }

    /// Takes replies in, without kernel stamps.
    pub fn take_replies(&mut self) {
        let (peers, names, session) = (&mut self.peers, &self.names, self.session);
        drain(&self.requests, |bytes, from| {
            let Some(packet) = Packet::from_bytes(bytes).filter(|p| p.kind == REPLY) else { return };
            if let Some(probed) = names.get(from.ip()).and_then(|name| peers.get_mut(name)) {
                probed.counted.returned(&packet, now_ns(), session);
            }
        });
    }

    /// What was counted for every peer, and the round trips since the last call.
    pub fn sample(&mut self) -> BTreeMap<Name, PeerSample> {
        if self.stamped_by_kernel() && !self.peers.is_empty() {
            let (passed, session) = (&mut self.passed, self.session);
            // Before the programs' counts are read, because they counted before.
            drain(&self.requests, |bytes, _| {
                let reply = Packet::from_bytes(bytes).filter(|p| p.kind == REPLY && p.session == session);
                passed.replies += u32::from(reply.is_some());
            });
        }
        let now = now_ns();
        let programs = self.programs.as_ref().ok();
        let mut counted = (0, 0);
        let samples = self
            .peers
            .iter_mut()
            .map(|(name, probed)| {
                let peer = match programs {
                    Some(programs) => programs.peer(probed.address).unwrap_or_default(),
                    None => probed.counted,
                };
                counted = (counted.0 + peer.sent, counted.1.max(peer.last_heard));
                let mut new: Vec<&RoundTrip> =
                    peer.samples.iter().filter(|s| s.sequence > probed.reported).collect();
                new.sort_unstable_by_key(|s| s.sequence);
                probed.reported = new.last().map_or(probed.reported, |s| s.sequence);
                let sample = PeerSample {
                    known_ms: probed.since.elapsed().as_millis() as u64,
                    sequence: probed.sequence,
                    sent: peer.sent,
                    answered: peer.answered,
                    heard_session: peer.heard_session,
                    heard: peer.heard,
                    heard_highest: known_highest(&peer, now),
                    peer_heard: peer.peer_heard,
                    peer_highest: peer.peer_highest,
                    silent_ms: (peer.last_heard > 0).then(|| now.saturating_sub(peer.last_heard) / 1_000_000),
                    trips: new
                        .into_iter()
                        .map(|s| Trip {
                            round_trip: s.round_trip,
                            outbound: s.outbound,
                            stamps: stamps(s.stamped),
                        })
                        .collect(),
                };
                (name.clone(), sample)
            })
            .collect();
        let passed =
            std::mem::replace(&mut self.passed, Passed { counted: Some(counted), ..Passed::default() });
        self.blind = programs.and_then(|_| passed.unseen(counted, &self.uplink.name));
        samples
    }
}

impl Passed {
    /// Which program did not see what it should have, and how to look for the cause.
    fn unseen(&self, now: (u64, u64), device: &str) -> Option<String> {
        let before = self.counted?;
        let [(egress, _), (ingress, _)] = DIRECTIONS;
        let (program, which) = if self.replies > 0 && now.0 == before.0 {
            (egress, "leave")
        } else if self.replies + self.requests > 0 && now.1 == before.1 {
            (ingress, "arrive")
        } else {
            return None;
        };
        Some(format!(
            "{program} does not see the probes that {which} by {device}: another program ends their way before it, or it was \
             taken away; `bpftool net show dev {device}` lists who is there"
        ))
    }
}

/// The highest number that this peer is known to have sent: the last one of its batch, as soon as what comes of that has come.
fn known_highest(peer: &Peer, now: u64) -> u32 {
    if now.saturating_sub(peer.last_heard) < ARRIVED {
        return peer.heard_highest;
    }
    peer.heard_highest.max(peer.batch_end)
}

fn stamps(stamped: u32) -> Stamps {
    match stamped {
        0 => Stamps::User,
        all if all == u32::from(STAMPED_ALL) => Stamps::Kernel,
        _ => Stamps::Mixed,
    }
}

/// `CLOCK_MONOTONIC`, the clock of `bpf_ktime_get_ns()`, ns.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has this clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

fn bind(port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Takes what has arrived, at most [`MOST`] datagrams, [`TOGETHER`] in one system call.
fn drain(socket: &UdpSocket, mut each: impl FnMut(&[u8], SocketAddrV4)) {
    const TOGETHER: usize = 32;
    // A datagram that is longer than a probe fills its buffer to the end, and is none.
    const LONGEST: usize = PACKET_LEN + 1;
    for _ in 0..MOST / TOGETHER {
        let mut buffers = [[0; LONGEST]; TOGETHER];
        let mut slices: Vec<[IoSliceMut<'_>; 1]> = buffers.iter_mut().map(|b| [IoSliceMut::new(b)]).collect();
        let mut headers = MultiHeaders::<SockaddrIn>::preallocate(TOGETHER, None);
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
                if received.len() < TOGETHER {
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
        let (requests, responder) = (bind(0).unwrap(), bind(0).unwrap());
        Prober {
            asked: Ready::of(responder.as_fd()).unwrap(),
            answered: None,
            uplink: Uplink { name: "eth0".to_owned(), address, header_length: 14, index: 2 },
            session: 7,
            port: 9,
            programs: Err("a test".to_owned()),
            requests,
            responder,
            peers: BTreeMap::new(),
            names: HashMap::new(),
            past: BTreeMap::new(),
            passed: Passed::default(),
            blind: None,
        }
    }

    #[test]
    fn the_last_ones_of_a_batch_are_known_once_it_has_arrived() {
        let request = Packet { kind: REQUEST, session: 3, sequence: 6, following: 4, ..Packet::default() };
        let mut peer = Peer::default();
        peer.hear(&request, 1_000, 7);
        assert_eq!(known_highest(&peer, 1_000 + ARRIVED - 1), 6);
        assert_eq!(known_highest(&peer, 1_000 + ARRIVED), 10);
        // A release that does not tell of batches.
        peer.hear(&Packet { sequence: 11, following: 0, ..request }, 2_000, 7);
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
            numbers.push(prober.sample().get(&n2).map(|sample| sample.sequence));
        }
        assert_eq!(numbers, [Some(5), None, Some(10)]);
        // What is remembered has an end.
        for i in 0..2 * MAX_PEERS {
            prober.set_peers(&BTreeMap::from([(n2.clone(), Ipv4Addr::from(0x0a00_0000 + i))]));
        }
        assert_eq!(prober.past.len(), MAX_PEERS as usize);
    }

    #[test]
    fn a_program_is_blind_when_what_should_pass_it_arrives_uncounted() {
        let passed = |requests, replies, counted| Passed { requests, replies, counted };
        let unseen = |passed: Passed, now| passed.unseen(now, "eth0").map(|why| why[..14].to_owned());
        let (egress, ingress) = (Some("bramble_egress".to_owned()), Some("bramble_ingres".to_owned()));
        assert_eq!(unseen(passed(0, 5, Some((10, 1000))), (10, 2000)), egress);
        assert_eq!(unseen(passed(5, 0, Some((10, 1000))), (15, 1000)), ingress);
        assert_eq!(unseen(passed(0, 5, Some((10, 1000))), (15, 1000)), ingress);
        assert_eq!(unseen(passed(5, 5, Some((10, 1000))), (15, 2000)), None);
        // A cut cable: nothing leaves, nothing arrives.
        assert_eq!(unseen(passed(0, 0, Some((10, 1000))), (10, 1000)), None);
        // Nobody answers: what leaves may wait for an address.
        assert_eq!(unseen(passed(5, 0, Some((10, 1000))), (10, 2000)), None);
        // Before the first sample, packets may have come before the programs did.
        assert_eq!(unseen(passed(5, 5, None), (0, 0)), None);
    }
}
