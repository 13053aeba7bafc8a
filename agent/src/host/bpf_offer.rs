//! Asks the kernel piece by piece what it offers to BPF: program types, map types, helpers, links.
//!
//! What is loaded for that is attached to nothing of the machine, and is gone when the call returns. Tracing types are
//! not asked for: aya's answer about those that need kernel BTF misleads, and Cilium uses none.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use aya::maps::MapType;
use aya::programs::{ProgramError, ProgramType};
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};

use super::{Host, Unreadable, failed};

/// One piece.
#[derive(Debug, Clone, Copy)]
pub enum Offer {
    /// Programs of this type load.
    Program(ProgramType),
    /// Maps of this type can be made.
    Map(MapType),
    /// Programs of this type may call this helper.
    Helper(ProgramType, BpfHelper),
    /// A program can be bound to a control group by a link, which outlives whoever made it.
    CgroupLink,
}

impl Host {
    /// Whether the kernel has a piece. A captured tree cannot tell.
    ///
    /// Needs `CAP_BPF` and `CAP_NET_ADMIN`.
    pub fn offers(&self, offer: Offer) -> Result<bool, Unreadable> {
        if !self.is_live() {
            return Err(Unreadable::not_live("bpf(2)"));
        }
        let program_error = |error: ProgramError| match error {
            ProgramError::SyscallError(call) => call.io_error,
            other => io::Error::other(other.to_string()),
        };
        let told = match offer {
            Offer::Program(kind) => is_program_supported(kind).map_err(program_error),
            Offer::Map(kind) => is_map_supported(kind).map_err(|call| call.io_error),
            Offer::Helper(kind, helper) => is_helper_supported(kind, helper).map_err(program_error),
            Offer::CgroupLink => has_cgroup_link(),
        };
        told.map_err(|error| failed("bpf(2)", super::errno_of(&error)))
    }
}

/// Binds a program to a link of the network by tcx, for as long as the call lasts.
///
/// The error is `EINVAL` on a kernel without tcx.
pub(super) fn attach_tcx(link: i32) -> io::Result<()> {
    const TCX_INGRESS: u32 = 46;
    const SCHED_CLS: u32 = 3;
    /// "Next": the packet is somebody else's.
    const TCX_NEXT: i32 = -1;
    let program = load(SCHED_CLS, 0, TCX_NEXT)?;
    bind(&program, link, TCX_INGRESS).map(drop)
}

/// Asks with a control group that does not exist: a kernel that knows such links looks for it first.
fn has_cgroup_link() -> io::Result<bool> {
    const CGROUP_INET4_CONNECT: u32 = 10;
    const CGROUP_SOCK_ADDR: u32 = 18;
    const ALLOW: i32 = 1;
    let is = |error: &io::Error, number| error.raw_os_error() == Some(number);
    let program = match load(CGROUP_SOCK_ADDR, CGROUP_INET4_CONNECT, ALLOW) {
        Err(error) if is(&error, libc::EINVAL) => return Ok(false),
        loaded => loaded?,
    };
    match bind(&program, -1, CGROUP_INET4_CONNECT) {
        Err(error) if is(&error, libc::EBADF) => Ok(true),
        Err(error) if is(&error, libc::EINVAL) => Ok(false),
        bound => bound.map(|_| true),
    }
}

/// The head of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    kind: u32,
    instructions: u32,
    code: u64,
    licence: u64,
    log: [u32; 4],
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    link: u32,
    expected_attach: u32,
}

/// The head of `union bpf_attr` for `BPF_LINK_CREATE`, with no order among programs asked for.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: i32,
    target: i32,
    attach: u32,
    flags: u32,
    order: [u64; 2],
}

/// Loads `return verdict`.
fn load(kind: u32, expected_attach: u32, verdict: i32) -> io::Result<OwnedFd> {
    const PROG_LOAD: i32 = 5;
    // r0 = verdict; exit
    let code = [0xb7 | u64::from(verdict as u32) << 32, 0x95];
    let code = code.map(u64::to_le);
    let licence = c"GPL";
    let load = ProgramLoad {
        kind,
        instructions: 2,
        code: code.as_ptr() as u64,
        licence: licence.as_ptr() as u64,
        expected_attach,
        ..ProgramLoad::default()
    };
    bpf(PROG_LOAD, &load)
}

fn bind(program: &OwnedFd, target: i32, attach: u32) -> io::Result<OwnedFd> {
    const LINK_CREATE: i32 = 28;
    bpf(LINK_CREATE, &LinkCreate { program: program.as_raw_fd(), target, attach, ..LinkCreate::default() })
}

#[allow(unsafe_code, reason = "aya attaches by tcx only what an object file holds")]
fn bpf<T>(command: i32, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of a live `T`, and what its pointers name lives as long.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    match i32::try_from(answer) {
        // SAFETY: both commands answer with a descriptor that is new and nobody else's.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Why;

    #[test]
    fn what_every_supported_kernel_has_is_found_or_the_right_is_lacking() {
        let host = Host::live().unwrap();
        for offer in [
            Offer::Program(ProgramType::SchedClassifier),
            Offer::Map(MapType::Hash),
            Offer::Helper(ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_fib_lookup),
            Offer::CgroupLink,
        ] {
            let told = host.offers(offer);
            let expected = matches!(&told, Ok(true) | Err(Unreadable { why: Why::Denied, .. }));
            assert!(expected, "{offer:?}: {told:?}");
        }
    }

    #[test]
    fn a_helper_is_told_apart_by_program_type() {
        let host = Host::live().unwrap();
        let told = host.offers(Offer::Helper(ProgramType::SocketFilter, BpfHelper::BPF_FUNC_redirect_peer));
        assert!(matches!(&told, Ok(false) | Err(Unreadable { why: Why::Denied, .. })), "{told:?}");
    }
}
