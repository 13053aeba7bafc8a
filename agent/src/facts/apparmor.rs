//! AppArmor: active in the kernel (`/sys/module/apparmor/parameters/enabled`), its parser installed.

use super::Fact;
use crate::host::Host;

/// What is known of AppArmor.
#[derive(Debug)]
pub struct AppArmor {
    /// Whether the kernel enforces profiles.
    pub enabled: Fact<bool>,
    /// Whether `apparmor_parser` is installed.
    pub parser: Fact<bool>,
}

pub(super) fn read(host: &Host) -> AppArmor {
    let enabled = host.text_if_present("/sys/module/apparmor/parameters/enabled");
    AppArmor {
        enabled: enabled.map(|text| text.is_some_and(|text| text.trim() == "Y")),
        parser: host.present("/sbin/apparmor_parser"),
    }
}
