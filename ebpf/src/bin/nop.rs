//! Does nothing: the floor that `cargo xtask bench ebpf` measures the other programs against. Never loaded by bramble itself.
#![no_std]
#![no_main]

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use ebpf as _;

/// Lets every packet through.
#[classifier]
pub fn bramble_nop(_: TcContext) -> i32 {
    TC_ACT_UNSPEC
}
