//! The board's own Ethernet does not lose its link by sleeping between packets (Energy Efficient Ethernet).
//!
//! That it sleeps is how boards are shipped, and most do well with it: it is held against the link only where that keeps
//! going down.

use super::{Area, Finding, Requirement, link_speed};
use crate::config::cluster::Profile;
use crate::facts::link::Saving;

/// Drivers of the boards' own adapters, Pi 4 and Pi 5, with which links were lost by it.
const LOSING: [&str; 2] = ["bcmgenet", "macb"];
/// A link goes down this often without a fault: when it is set up, and when somebody moves the cable.
const USUAL: u64 = 4;

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "energy-saving",
    area: Area::Network,
    profiles: &[Profile::Node],
    title: "the board's Ethernet does not lose its link by saving energy",
    why: "the link goes down and up every few minutes, or loses packets while all its counters stay clean: nodes become \
          NotReady and come back",
    source: "raspberrypi/linux#4289, #6065, #7372, #7511; home-assistant/operating-system#4861; Linux ethtool ETHTOOL_GEEE",
    fix: "a person switches Energy Efficient Ethernet off, now with ethtool and for the next boots in config.txt",
    catalogue: &["NIC-002"],
    judge: |facts, _| {
        if let Some(why) = link_speed::no_cable(facts)? {
            return Finding::not_needed(why);
        }
        let Some(Saving { interface, driver, eee, losses, uptime }) = facts.links.saving.as_ref()? else {
            return Finding::not_needed("its driver does not save energy between packets, or does not tell");
        };
        if !eee.active {
            let other = if eee.enabled { ": the other end does not take part" } else { "" };
            return Finding::met(format!("{interface} does not sleep between packets{other}"));
        }
        let driver = driver.as_deref().unwrap_or("a driver that is not known");
        let what = format!("{interface} sleeps between packets, by {driver}");
        if !LOSING.contains(&driver) {
            return Finding::met(format!("{what}, which is not known to lose its link"));
        }
        let hours = uptime.as_secs().div_ceil(3600).max(1);
        let what = format!("{what}; its link went down {losses} times in {hours} h");
        if *losses <= USUAL || *losses < hours {
            return Finding::met(what);
        }
        Finding::blocked(
            what,
            format!(
                "sudo ethtool --set-eee {interface} eee off, and dtparam=eee=off in config.txt for the next boots; if the \
                 link goes down all the same, another cable or another port of the switch"
            ),
        )
    },
};

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{State, judge};
    use super::*;
    use crate::config::Config;
    use crate::facts::Facts;
    use crate::host::{Host, ethtool::Eee};

    #[test]
    fn a_link_that_sleeps_is_only_blamed_where_it_keeps_going_down() {
        let hosts = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/hosts");
        let mut facts = Facts::observe(&Host::tree(&hosts.join("pi5-bookworm-16k")).unwrap());
        facts.links.wireless_uplink = Ok(Some(false));
        let of = |driver: &str, enabled, active, losses, hours: u64| Saving {
            interface: "eth0".into(),
            driver: Some(driver.to_owned()),
            eee: Eee { enabled, active },
            losses,
            uptime: Duration::from_secs(hours * 3600),
        };
        for (saving, state, says) in [
            (None, State::NotNeeded, "does not save"),
            (Some(of("bcmgenet", false, false, 90, 1)), State::Met, "does not sleep"),
            (Some(of("bcmgenet", true, false, 90, 1)), State::Met, "other end"),
            (Some(of("r8169", true, true, 90, 1)), State::Met, "not known to"),
            (Some(of("macb", true, true, 4, 0)), State::Met, "4 times in 1 h"),
            (Some(of("macb", true, true, 90, 1000)), State::Met, "90 times in 1000 h"),
            (Some(of("bcmgenet", true, true, 30, 2)), State::Blocked, "30 times in 2 h"),
        ] {
            facts.links.saving = Ok(saving);
            let judged = judge([&REQUIREMENT], &facts, &Config::default()).next().unwrap();
            assert_eq!(judged.state(), state, "{}", judged.evidence());
            assert!(judged.evidence().contains(says), "{}", judged.evidence());
        }
        assert!(
            judge([&REQUIREMENT], &facts, &Config::default())
                .next()
                .unwrap()
                .next()
                .unwrap()
                .contains("eth0 eee off")
        );
        facts.links.wireless_uplink = Ok(Some(true));
        let judged = judge([&REQUIREMENT], &facts, &Config::default()).next().unwrap();
        assert_eq!(judged.state(), State::NotNeeded);
    }
}
