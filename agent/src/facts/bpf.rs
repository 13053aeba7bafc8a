//! What the kernel offers to BPF: BTF (`/sys/kernel/btf/vmlinux`) and the program types that load.

use super::Fact;
use crate::host::Host;
use crate::host::bpf::Programs;

/// What is known about BPF.
#[derive(Debug)]
pub struct Bpf {
    /// Whether the kernel describes its own types.
    pub btf: Fact<bool>,
    /// Whether each program type loads, tried.
    pub programs: Fact<Programs>,
}

pub(super) fn read(host: &Host) -> Bpf {
    Bpf { btf: host.present("/sys/kernel/btf/vmlinux"), programs: host.bpf_programs() }
}
