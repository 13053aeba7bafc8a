//! Counts the packets that this kernel drops, by reason, at `skb:kfree_skb`.
//!
//! The event is noisy, and comes from every network namespace of the machine, which is what lets it see pods.
//! So it is only counted here, and never sent up. A raw tracepoint, because an ordinary one is attached by perf_event_open(2),
//! which Debian's kernels keep from all but root.
#![no_std]
#![no_main]

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::macros::{map, raw_tracepoint};
use aya_ebpf::maps::PerCpuHashMap;
use aya_ebpf::programs::RawTracePointContext;
use ebpf::atomic;
use ebpf_records::drop::{MAX_REASONS, OTHER};

/// Whether the event has a reason (kernel 5.17), not 0: a program that reads an argument too many is not attached.
#[unsafe(no_mangle)]
static HAS_REASON: Global<u32> = Global::new(0);
/// Which argument of the event is the reason: after the packet and the place.
const REASON: usize = 2;

/// Key: the kernel's number of the reason, or [`OTHER`]. Value: packets since the program was attached.
#[map]
static DROPS: PerCpuHashMap<u32, u64> = PerCpuHashMap::with_max_entries(MAX_REASONS + 1, 0);

/// One dropped packet.
#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn kfree_skb(event: RawTracePointContext) -> i32 {
    let reason = if HAS_REASON.load() == 0 { 0 } else { event.arg(REASON) };
    if add(reason).is_none() && DROPS.insert(reason, 1, BPF_NOEXIST.into()).is_err() {
        // No place left; or another CPU was first, and then there is a counter now.
        let _ = add(reason).or_else(|| add(OTHER));
    }
    0
}

/// Adds one to the counter of `reason` on this CPU; `None` when there is no such counter.
#[inline(always)]
fn add(reason: u32) -> Option<()> {
    let count = DROPS.get_ptr_mut(reason)?;
    // SAFETY: the map hands out valid, aligned values. Before kernel 6.1 this program may interrupt itself.
    unsafe { atomic::add(count, 1) };
    Some(())
}
