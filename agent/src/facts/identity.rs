//! Who the node is: `/proc/sys/kernel/hostname`, `/etc/machine-id`.

use super::Fact;
use crate::host::Host;

/// What tells the node from others.
#[derive(Debug)]
pub struct Identity {
    /// The host name.
    pub hostname: Fact<String>,
    /// systemd's machine id; `None` without the file.
    pub machine_id: Fact<Option<String>>,
}

pub(super) fn read(host: &Host) -> Identity {
    let trimmed = |text: String| text.trim().to_string();
    Identity {
        hostname: host
            .text("/proc/sys/kernel/hostname")
            .or_else(|unreadable| host.text("/etc/hostname").map_err(|_| unreadable))
            .map(trimmed),
        machine_id: host.text_if_present("/etc/machine-id").map(|id| id.map(trimmed)),
    }
}
