//! Counts the packets that this kernel drops, by reason, at `skb:kfree_skb`.
//!
//! The event is noisy, and comes from every network namespace of the machine, which is what lets it see pods.
//! So it is only counted here, and never sent up.
#![no_std]
#![no_main]

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::macros::{map, tracepoint};
use aya_ebpf::maps::PerCpuHashMap;
use aya_ebpf::programs::TracePointContext;
use ebpf as _;
use ebpf_records::drop::{MAX_REASONS, NO_OFFSET, OTHER};

/// Where the event keeps its reason, bytes; moves between kernels, so the loader reads it from tracefs.
#[unsafe(no_mangle)]
static REASON_OFFSET: Global<u32> = Global::new(NO_OFFSET);

/// Key: the kernel's number of the reason, or [`OTHER`]. Value: packets since the program was attached.
#[map]
static DROPS: PerCpuHashMap<u32, u64> = PerCpuHashMap::with_max_entries(MAX_REASONS + 1, 0);

/// One dropped packet.
#[tracepoint]
pub fn kfree_skb(event: TracePointContext) -> u32 {
    let offset = REASON_OFFSET.load();
    let reason = if offset == NO_OFFSET {
        0
    } else {
        // SAFETY: the helper checks the address; an offset beyond the event reads other kernel memory, nothing worse.
        unsafe { event.read_at::<u32>(offset as usize) }.unwrap_or(0)
    };
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
    // SAFETY: per CPU, and a tracepoint program does not interrupt itself.
    unsafe { *count += 1 };
    Some(())
}
