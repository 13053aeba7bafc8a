//! The cable of the way out carries what the board can send.

use super::{Area, Finding, Requirement};
use crate::config::cluster::Profile;
use crate::facts::{Fact, Facts};

/// Mb/s below which something is wrong with cable, port or driver: every board and every switch of a home can do more.
const TOO_SLOW: i64 = 100;

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "link-speed",
    area: Area::Network,
    profiles: &[Profile::Node],
    title: "the cable of the way out runs at full speed",
    why: "a link at 10 Mb/s, or one that cannot send while it receives, loses packets under load: nodes become NotReady \
          and nothing in the cluster says why",
    source: "raspberrypi/linux#7115, #6948; Linux Documentation/ABI/testing/sysfs-class-net",
    fix: "a person takes another cable or another port of the switch, then unplugs it and plugs it in again",
    catalogue: &["NIC-004"],
    judge: |facts, _| {
        if let Some(why) = no_cable(facts)? {
            return Finding::not_needed(why);
        }
        let Some(wire) = facts.links.wire.as_ref()? else {
            return Finding::not_needed("its driver tells no speed");
        };
        let driver = wire.driver.as_ref().map(|driver| format!(" by {driver}")).unwrap_or_default();
        let what = format!("{} Mb/s, {} duplex{driver}, MTU {}", wire.speed, wire.duplex, wire.mtu);
        if wire.speed >= TOO_SLOW && wire.duplex != "half" {
            return Finding::met(what);
        }
        Finding::blocked(
            what,
            "another cable or another port of the switch; then unplug it and plug it in again, and check again",
        )
    },
};

/// Why the way out is by no cable; `None` where it is.
pub(super) fn no_cable(facts: &Facts) -> Fact<Option<&'static str>> {
    Ok(match facts.links.wireless_uplink.as_ref()? {
        Some(false) => None,
        Some(true) => Some("the default route leaves by Wi-Fi"),
        None => Some("there is no default route: see default-route"),
    })
}
