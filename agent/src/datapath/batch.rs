//! Reads a whole hash map of the kernel's by one system call: aya takes one for each entry.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use aya::Pod;
use nix::errno::Errno;

/// Of `union bpf_attr`, what `BPF_MAP_LOOKUP_BATCH` takes.
#[repr(C)]
struct LookupBatch {
    from: u64,
    next: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: i32,
    element_flags: u64,
    flags: u64,
}

/// Takes the entries of a hash map in no order, at most as many as there is room for in both slices; how many there were.
///
/// # Errors
/// The kernel's refusal; it knows this since 5.6.
#[allow(unsafe_code, reason = "no crate of ours wraps this command of bpf(2)")]
pub(super) fn entries<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<usize> {
    const LOOKUP_BATCH: i32 = 24;
    let room = keys.len().min(values.len());
    if room == 0 {
        return Ok(0);
    }
    let mut next = 0_u32;
    let mut attributes = LookupBatch {
        from: 0,
        next: (&raw mut next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: room as u32,
        map: map.as_raw_fd(),
        element_flags: 0,
        flags: 0,
    };
    let length = size_of::<LookupBatch>();
    // SAFETY: the kernel writes at most `count` plain keys and values of the map's sizes, which are those of `K` and `V`, a
    // word to `next` and one into the attributes; all of them live as long as the call.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, LOOKUP_BATCH, &raw mut attributes, length) };
    match Errno::result(answer) {
        // There is no next one: these were all.
        Ok(_) | Err(Errno::ENOENT) => Ok(room.min(attributes.count as usize)),
        Err(errno) => Err(errno.into()),
    }
}
