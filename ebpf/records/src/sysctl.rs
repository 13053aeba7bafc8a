//! Kernel settings that were written, and by whom.

/// Bytes of a setting's name, as it lies below `/proc/sys`, zeroes after it.
pub const NAME: usize = 64;
/// Bytes of a process' name, zeroes after it.
pub const PROGRAM: usize = 16;
/// Bytes of a value, zeroes after it; a longer one is left out.
pub const VALUE: usize = 16;
/// Settings that can be asked for.
pub const MAX_SETTINGS: u32 = 128;

/// Somebody writes one of the settings that were asked for; whether it takes, the kernel says later.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Which.
    pub setting: [u8; NAME],
    /// What is to be its value, as it is written.
    pub value: [u8; VALUE],
    /// Inode number of the process' cgroup in the unified hierarchy.
    pub cgroup: u64,
    /// The process' number, as the machine counts.
    pub pid: u32,
    /// Always 0.
    pub unused: u32,
    /// The first characters of its name.
    pub program: [u8; PROGRAM],
}
