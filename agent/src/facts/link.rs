//! Network interfaces: `/sys/class/net`, and what their adapters are told.

use std::time::Duration;

use super::Fact;
use super::route::Routes;
use crate::host::clock;
use crate::host::ethtool::Eee;
use crate::host::{Host, Unreadable, Why};

/// What is known of the interfaces.
#[derive(Debug)]
pub struct Links {
    /// Their names.
    pub names: Fact<Vec<String>>,
    /// Whether the default route leaves by radio; `None` without a default route.
    pub wireless_uplink: Fact<Option<bool>>,
    /// How the interface of the default route is linked; `None` when there is none or its driver does not tell.
    pub wire: Fact<Option<Wire>>,
    /// Whether the interface of the default route saves energy; `None` when there is none or it cannot.
    pub saving: Fact<Option<Saving>>,
}

/// A link that may sleep between packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saving {
    /// Its interface.
    pub interface: String,
    /// The module that drives it.
    pub driver: Option<String>,
    /// Whether it does.
    pub eee: Eee,
    /// How often it went down since the boot.
    pub losses: u64,
    /// How long ago the boot was.
    pub uptime: Duration,
}

/// A link by cable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wire {
    /// The module that drives it, where the interface is a device.
    pub driver: Option<String>,
    /// Mb/s.
    pub speed: i64,
    /// "full", "half" or "unknown".
    pub duplex: String,
    /// The largest packet in bytes.
    pub mtu: i64,
}

impl Links {
    /// The interfaces whose names match a pattern.
    pub fn matching<'a>(&'a self, pattern: &'a str) -> Fact<impl Iterator<Item = &'a str>> {
        let names = self.names.as_ref()?;
        Ok(names.iter().map(String::as_str).filter(move |name| super::drop_in::glob(pattern, name)))
    }
}

const DIRECTORY: &str = "/sys/class/net";

pub(super) fn read(host: &Host, routes: &Routes) -> Links {
    Links {
        names: host.list(DIRECTORY),
        wireless_uplink: wireless_uplink(host, routes),
        wire: wire(host, routes),
        saving: saving(host, routes),
    }
}

fn wireless_uplink(host: &Host, routes: &Routes) -> Fact<Option<bool>> {
    let Some(uplink) = routes.uplink()? else { return Ok(None) };
    let entries = host.list(&format!("{DIRECTORY}/{uplink}"))?;
    Ok(Some(entries.iter().any(|entry| entry == "phy80211" || entry == "wireless")))
}

fn wire(host: &Host, routes: &Routes) -> Fact<Option<Wire>> {
    let Some(uplink) = routes.uplink()? else { return Ok(None) };
    let read = |name: &str| -> Fact<Option<String>> {
        match host.text_if_present(&format!("{DIRECTORY}/{uplink}/{name}")) {
            // A driver that does not know says so by an error, or by -1.
            Err(Unreadable { why: Why::Failed(_), .. }) => Ok(None),
            text => Ok(text?.map(|text| text.trim().to_owned())),
        }
    };
    let number = |text: Option<String>| text.and_then(|text| text.parse::<i64>().ok());
    let speed = number(read("speed")?).filter(|speed| *speed > 0);
    let (Some(speed), Some(duplex)) = (speed, read("duplex")?) else { return Ok(None) };
    let mtu = number(read("mtu")?).unwrap_or_default();
    Ok(Some(Wire { driver: driver(host, uplink), speed, duplex, mtu }))
}

fn driver(host: &Host, interface: &str) -> Option<String> {
    let path = host.link(&format!("{DIRECTORY}/{interface}/device/driver"))?;
    Some(path.rsplit('/').next()?.to_owned())
}

fn saving(host: &Host, routes: &Routes) -> Fact<Option<Saving>> {
    let Some(uplink) = routes.uplink()? else { return Ok(None) };
    let Some(eee) = host.eee(uplink)? else { return Ok(None) };
    let losses = host.number(&format!("{DIRECTORY}/{uplink}/carrier_down_count"))?;
    Ok(Some(Saving {
        interface: uplink.to_owned(),
        driver: driver(host, uplink),
        eee,
        losses: losses.and_then(|count| count.try_into().ok()).unwrap_or_default(),
        uptime: clock::uptime(),
    }))
}
