//! USB disks that the driver uas drives: `/sys/bus/usb/drivers/uas`.

use super::Fact;
use crate::host::Host;

/// Vendor and product of each, such as "152d:0578".
pub(super) fn read(host: &Host) -> Fact<Vec<String>> {
    let mut disks = Vec::new();
    for interface in host.list_if_present("/sys/bus/usb/drivers/uas")? {
        // An interface is device:configuration.number; the rest are files to bind and unbind by.
        let Some((device, _)) = interface.split_once(':') else { continue };
        let id = |name| host.text(&format!("/sys/bus/usb/devices/{device}/{name}"));
        disks.push(format!("{}:{}", id("idVendor")?.trim(), id("idProduct")?.trim()));
    }
    Ok(disks)
}
