//! What bramble's eBPF programs share: how a packet is read, and the two sections that every object must have.
//! Compiled for the BPF target only, by `cargo xtask ebpf`.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod atomic;

use aya_ebpf::programs::TcContext;

/// EtherType of IPv4 as `__sk_buff.protocol` holds it: network byte order, zero-extended.
pub const PROTOCOL_IPV4: u32 = 0x0800_u16.to_be() as u32;

/// An IPv4 header as it lies in the packet: every field in network byte order.
#[repr(C, packed)]
#[derive(Clone, Copy)]
pub struct Ipv4 {
    /// 4 in the upper half; the header's length in words of four bytes in the lower.
    pub version_and_length: u8,
    /// DSCP and ECN.
    pub service: u8,
    /// Header and payload, bytes.
    pub total_length: u16,
    /// Which datagram a fragment belongs to.
    pub identification: u16,
    /// Three flags, then the offset in units of eight bytes.
    pub fragment: u16,
    /// Hops left.
    pub time_to_live: u8,
    /// What follows: 17 is UDP.
    pub protocol: u8,
    /// Over this header only.
    pub checksum: u16,
    /// Source address.
    pub source: u32,
    /// Destination address.
    pub destination: u32,
}

/// A UDP header as it lies in the packet: every field in network byte order.
#[repr(C, packed)]
#[derive(Clone, Copy)]
pub struct Udp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Header and payload, bytes.
    pub length: u16,
    /// 0 when the sender computed none.
    pub checksum: u16,
}

/// Both, one after the other: an IPv4 header without options.
#[repr(C, packed)]
#[derive(Clone, Copy)]
pub struct Ipv4Udp {
    /// The outer one.
    pub ip: Ipv4,
    /// The inner one.
    pub udp: Udp,
}

/// What may be read in place: integers without alignment, so that any bytes are valid ones.
pub trait Headers {}
impl Headers for Ipv4 {}
impl Headers for Ipv4Udp {}

/// The headers at `offset`, by direct access: three times cheaper than `bpf_skb_load_bytes`.
/// `None` when the packet ends before. The reference dies with the next store into the packet.
#[inline(always)]
pub fn headers<T: Headers>(packet: &TcContext, offset: usize) -> Option<&T> {
    const { assert!(align_of::<T>() == 1) };
    let end = offset + size_of::<T>();
    if packet.data() + end > packet.data_end() {
        // Some drivers leave headers outside the linear part. A packet that is really too short fails at once.
        packet.pull_data(end as u32).ok()?;
        if packet.data() + end > packet.data_end() {
            return None;
        }
    }
    // SAFETY: inside the packet, by the comparison above, which the verifier checks too; aligned by the assertion.
    Some(unsafe { &*((packet.data() + offset) as *const T) })
}

/// A program cannot panic: the verifier refuses the endless loop if the compiler leaves a path to it.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel lends its GPL-only helpers to programs that declare a compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
