//! The rules that lead to routing tables, and which tables hold routes: asked of the kernel by rtnetlink(7).

use super::Fact;
use crate::host::Host;
pub use crate::host::network::{Policy, Rule};

/// Both families.
#[derive(Debug)]
pub struct Rules {
    /// IPv4.
    pub v4: Fact<Policy>,
    /// IPv6; `None` when the kernel runs without it.
    pub v6: Fact<Option<Policy>>,
}

pub(super) fn read(host: &Host) -> Rules {
    Rules { v4: host.policy(), v6: host.policy6() }
}
