//! Packets that the kernel dropped, counted by reason (`skb:kfree_skb`).

/// How many different reasons are counted; further ones go to [`OTHER`].
pub const MAX_REASONS: u32 = 256;
/// Key of the drops whose reason found no free place in the map. User space inserts it before it attaches the
/// program, so that its own place is kept.
pub const OTHER: u32 = u32::MAX;
