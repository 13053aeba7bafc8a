//! A node on Wi-Fi: what that asks for.

use super::{Area, Finding, Requirement};
use crate::change::Change;
use crate::config::cluster::Profile;

const WIRED: &str = "the default route leaves by cable";

pub(super) const POWER_SAVE: Requirement = Requirement {
    id: "wifi-power-save",
    area: Area::Network,
    profiles: &[Profile::K3s],
    title: "Wi-Fi does not sleep between packets",
    why: "answers take 50 to 130 ms, some of them seconds, and some never come",
    source: "raspberrypi/linux#7533, #2522; NetworkManager.conf(5) wifi.powersave",
    fix: "bramble has NetworkManager switch power saving off; without it a person does, or connects a cable",
    catalogue: &["NIC-006"],
    judge: |facts, _| {
        match facts.links.wireless_uplink.as_ref()? {
            Some(true) => {}
            Some(false) => return Finding::not_needed(WIRED),
            None => return Finding::not_needed("there is no default route: see default-route"),
        }
        if !facts.units.uses("NetworkManager")? {
            return Finding::blocked(
                "the default route leaves by Wi-Fi, and NetworkManager is not there to switch power saving off",
                "sudo iw dev WLAN set power_save off, at every boot; better: connect a cable",
            );
        }
        if facts.network_manager.as_ref()?.wifi_powersave.as_deref() == Some("2") {
            return Finding::met("wifi.powersave is 2 (off)");
        }
        Finding::unmet(
            "NetworkManager is not told to switch power saving off",
            [Change::WriteFile {
                path: "/etc/NetworkManager/conf.d/99-zz-bramble-wifi.conf".into(),
                content:
                    "# Written by bramble: 2 switches power saving off.\n[connection]\nwifi.powersave=2\n"
                        .into(),
            }],
        )
    },
};

pub(super) const UPLINK: Requirement = Requirement {
    id: "l2-uplink",
    area: Area::Network,
    profiles: &[Profile::L2Announcements],
    title: "services' addresses are announced by cable",
    why: "access points and repeaters rewrite or drop what they do not expect: clients behind them never find the address",
    source: "cilium/cilium#37318",
    fix: "a person connects a cable, or leaves the node out of the announcement policy",
    catalogue: &["L2-006"],
    judge: |facts, _| match facts.links.wireless_uplink.as_ref()? {
        Some(false) => Finding::met(WIRED),
        None => Finding::not_needed("there is no default route: see default-route"),
        Some(true) => Finding::blocked(
            "the default route leaves by Wi-Fi",
            "connect a cable; or leave this node out of the announcement policy (nodeSelector) and accept it \
             (accept = [\"l2-uplink\"] in [cluster])",
        ),
    },
};
