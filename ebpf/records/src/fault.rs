//! Faults that the test bed and `cargo xtask demo --fault` inject; never loaded by bramble itself.

/// Index in the program's counter array: packets of the pair that were seen.
pub const SEEN: u32 = 0;
/// Index in the program's counter array: packets that were dropped or sent round the delay line.
pub const HIT: u32 = 1;
