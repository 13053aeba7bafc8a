//! Read-modify-write on words that several CPUs share. `core` offers only atomic loads and stores on the BPF
//! target, although every kernel since 5.12 executes these two instructions.

use core::arch::asm;

/// Adds `value` to the word.
///
/// # Safety
///
/// `word` must be valid and aligned; whoever else writes it does so atomically.
#[inline(always)]
pub unsafe fn add(word: *mut u64, value: u64) {
    // SAFETY: one instruction that touches the word only.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) word, in(reg) value, options(nostack)) };
}

/// Puts `new` into the word if it still holds `old`, and says whether it did; a full barrier either way.
///
/// # Safety
///
/// As for [`add`].
#[inline(always)]
pub unsafe fn replace(word: *mut u64, old: u64, new: u64) -> bool {
    let found: u64;
    // SAFETY: one instruction that touches the word and r0 only.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({0} + 0, r0, {1})",
            in(reg) word, in(reg) new, inout("r0") old => found, options(nostack)
        )
    };
    found == old
}
