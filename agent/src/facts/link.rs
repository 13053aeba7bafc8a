//! Network interfaces: `/sys/class/net`.

use super::Fact;
use super::route::Routes;
use crate::host::Host;

/// What is known of the interfaces.
#[derive(Debug)]
pub struct Links {
    /// Their names.
    pub names: Fact<Vec<String>>,
    /// Whether the default route leaves by radio; `None` without a default route.
    pub wireless_uplink: Fact<Option<bool>>,
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
    Links { names: host.list(DIRECTORY), wireless_uplink: wireless_uplink(host, routes) }
}

fn wireless_uplink(host: &Host, routes: &Routes) -> Fact<Option<bool>> {
    let Some(uplink) = routes.uplink()? else { return Ok(None) };
    let entries = host.list(&format!("{DIRECTORY}/{uplink}"))?;
    Ok(Some(entries.iter().any(|entry| entry == "phy80211" || entry == "wireless")))
}
