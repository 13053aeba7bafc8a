//! The kernel ABI of bramble's own eBPF programs: one file per program, plain `#[repr(C)]` data and
//! pure functions on it. Nothing here allocates, panics or knows about MQTT.
#![no_std]

pub mod drop;
pub mod fault;
pub mod mesh;
pub mod sysctl;
