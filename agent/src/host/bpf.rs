//! Asks the kernel which BPF program types it loads, by loading two instructions of each.
//!
//! The programs are never attached and are gone when the call returns.

use aya::programs::{ProgramError, ProgramType};
use aya::sys::is_program_supported;

use super::{Host, Unreadable, Why};

/// A program type that Cilium or bramble's companion needs, with the name bpftool gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    /// bpftool's name.
    pub name: &'static str,
    /// Who needs it, and for what.
    pub for_what: &'static str,
}

/// Whether each program type loads, in a fixed order.
pub type Programs = Vec<(Program, bool)>;

impl Host {
    /// Loads one trivial program of each type.
    ///
    /// Needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN. A captured tree cannot tell.
    pub fn bpf_programs(&self) -> Result<Programs, Unreadable> {
        const QUERY: &str = "bpf(BPF_PROG_LOAD)";
        if !self.is_live() {
            return Err(Unreadable::not_live(QUERY));
        }
        asked()
            .into_iter()
            .map(|(program, kind)| match is_program_supported(kind) {
                Ok(loads) => Ok((program, loads)),
                Err(error) => Err(Unreadable { path: QUERY.into(), why: why(&error) }),
            })
            .collect()
    }
}

/// Tracing types that need kernel BTF are left out: aya's answer about them misleads, and neither
/// Cilium nor bramble needs one.
fn asked() -> [(Program, ProgramType); 4] {
    let program = |name, for_what| Program { name, for_what };
    [
        (program("sched_cls", "Cilium's datapath"), ProgramType::SchedClassifier),
        (program("cgroup_sock_addr", "Cilium's socket load balancer"), ProgramType::CgroupSockAddr),
        (program("xdp", "Cilium's XDP acceleration"), ProgramType::Xdp),
        (program("raw_tracepoint", "drop reasons of bramble's companion"), ProgramType::RawTracePoint),
    ]
}

fn why(error: &ProgramError) -> Why {
    match error {
        ProgramError::SyscallError(call) => match call.io_error.kind() {
            std::io::ErrorKind::PermissionDenied => Why::Denied,
            _ => Why::Failed(call.io_error.to_string()),
        },
        error => Why::Failed(error.to_string()),
    }
}
