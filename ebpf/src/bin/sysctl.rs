//! Tells which process writes one of the kernel settings that it was asked for, by whatever mount of proc.
//!
//! It looks on, and lets everybody write. It runs before the value is there, and in every network namespace: user space
//! looks whether its own value changed.
#![no_std]
#![no_main]

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_sysctl_get_name,
    bpf_sysctl_get_new_value,
};
use aya_ebpf::macros::{cgroup_sysctl, map};
use aya_ebpf::maps::{HashMap, RingBuf};
use aya_ebpf::programs::SysctlContext;
use ebpf as _;
use ebpf_records::sysctl::{MAX_SETTINGS, NAME, PROGRAM, VALUE, Written};

/// The program's answer to "may it be read or written".
const YES: i32 = 1;

/// Key: the name below `/proc/sys`, zeroes after it.
#[map]
static ASKED: HashMap<[u8; NAME], u8> = HashMap::with_max_entries(MAX_SETTINGS, 0);
/// [`Written`]. What does not fit is not told: one page holds some thirty.
#[map]
static WRITTEN: RingBuf = RingBuf::with_byte_size(4096, 0);

/// One read or write of a setting.
#[cgroup_sysctl]
pub fn bramble_sysctl(context: SysctlContext) -> i32 {
    // SAFETY: the kernel hands out its own context, and the verifier knows this field.
    if unsafe { (*context.sysctl).write } != 0 {
        let _ = tell(&context);
    }
    YES
}

/// Tells of it, if it was asked for.
#[inline(always)]
fn tell(context: &SysctlContext) -> Option<()> {
    // Everything is written in its place: to move bytes costs a small machine many instructions.
    let mut written = Written {
        setting: [0; NAME],
        value: [0; VALUE],
        cgroup: 0,
        pid: 0,
        unused: 0,
        program: [0; PROGRAM],
    };
    // SAFETY: the buffer is as long as is said.
    let length = unsafe {
        bpf_sysctl_get_name(context.as_ptr().cast(), written.setting.as_mut_ptr().cast(), NAME as u64, 0)
    };
    if length < 0 {
        return None;
    }
    // SAFETY: nothing is kept of what it returns.
    unsafe { ASKED.get(&written.setting)? };
    // SAFETY: they only read who runs, and the buffer is as long as is said.
    unsafe {
        let value = written.value.as_mut_ptr().cast();
        if bpf_sysctl_get_new_value(context.as_ptr().cast(), value, VALUE as u64) < 0 {
            // Of one that is too long there is only the beginning.
            written.value = [0; VALUE];
        }
        written.cgroup = bpf_get_current_cgroup_id();
        written.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        // A process without a name is one that wrote nevertheless.
        let _ = bpf_get_current_comm(written.program.as_mut_ptr().cast(), PROGRAM as u32);
    }
    WRITTEN.output::<Written>(&written, 0).ok()
}
