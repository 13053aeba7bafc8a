//! Makes one direction between two nodes of the test bed lossy, cut or slow. Never loaded by bramble itself.
//!
//! Attached at tc ingress on the bed's side of a node's veth, it decides for every IPv4 packet of the directed
//! pair whether it is hit. A hit packet is dropped, or sent round by another interface where a delay waits for it.
#![no_std]
#![no_main]

use aya_ebpf::Global;
use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_redirect};
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::TcContext;
use ebpf::{Ipv4, PROTOCOL_IPV4, headers};
use ebpf_records::fault::{HIT, SEEN};

/// Bytes before the IPv4 header.
#[unsafe(no_mangle)]
static L2_LENGTH: Global<u32> = Global::new(14);
/// Source address as it lies in the packet; 0 = any.
#[unsafe(no_mangle)]
static SOURCE: Global<u32> = Global::new(0);
/// Destination address as it lies in the packet; 0 = any.
#[unsafe(no_mangle)]
static DESTINATION: Global<u32> = Global::new(0);
/// How many of a thousand packets are hit, by chance; 1000 = all.
#[unsafe(no_mangle)]
static PERMILLE: Global<u32> = Global::new(0);
/// Interface whose egress takes the packets that are hit; 0 = they are dropped.
#[unsafe(no_mangle)]
static REDIRECT: Global<u32> = Global::new(0);

/// Packets of the pair, at the indices [`SEEN`] and [`HIT`].
#[map]
static COUNTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(2, 0);

/// Decides on one packet.
#[classifier]
pub fn fault(packet: TcContext) -> i32 {
    if !is_of_the_pair(&packet) {
        return TC_ACT_UNSPEC;
    }
    add(SEEN);
    // SAFETY: takes no argument, has no precondition.
    if unsafe { bpf_get_prandom_u32() } % 1000 >= PERMILLE.load() {
        return TC_ACT_UNSPEC;
    }
    add(HIT);
    match REDIRECT.load() {
        0 => TC_ACT_SHOT as i32,
        // SAFETY: an interface that is gone drops the packet.
        interface => unsafe { bpf_redirect(interface, 0) as i32 },
    }
}

#[inline(always)]
fn is_of_the_pair(packet: &TcContext) -> bool {
    // SAFETY: the context is valid as long as the program runs.
    if unsafe { (*packet.skb.skb).protocol } != PROTOCOL_IPV4 {
        return false;
    }
    let Some(ip) = headers::<Ipv4>(packet, L2_LENGTH.load() as usize) else {
        return false;
    };
    let (source, destination) = (SOURCE.load(), DESTINATION.load());
    (source == 0 || ip.source == source) && (destination == 0 || ip.destination == destination)
}

#[inline(always)]
fn add(index: u32) {
    if let Some(count) = COUNTS.get_ptr_mut(index) {
        // SAFETY: per CPU, and a tc program does not interrupt itself.
        unsafe { *count += 1 };
    }
}
