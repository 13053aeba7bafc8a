//! Random numbers for names and spreading, from the keys that the standard library draws for its hash maps. Not for secrets.

use std::hash::{BuildHasher, RandomState};

/// A random number.
pub fn u32() -> u32 {
    RandomState::new().hash_one(0u8) as u32
}
