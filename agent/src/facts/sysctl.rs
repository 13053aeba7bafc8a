//! Kernel settings as they are now: `/proc/sys`. Which of them is `agent/data/sysctls.csv`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::route::{self, Routes};
use super::{Fact, table};
use crate::host::{Host, Unreadable, Why};

/// A setting and what is asked of it.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// With dots; `<uplink>`, `*` and `?` stand for interfaces.
    pub name: &'static str,
    /// What it is set to when it does not hold.
    pub value: &'static str,
    /// How a value is compared with it.
    pub compare: &'static str,
    /// Who sets it.
    pub action: &'static str,
    /// The id of the requirement that judges it.
    pub requirement: &'static str,
    /// What it is for.
    pub why: &'static str,
    /// Where that is known from.
    pub source: &'static str,
}

/// All settings that bramble knows.
pub static TABLE: LazyLock<Vec<Setting>> = LazyLock::new(|| {
    let columns = ["name", "value", "compare", "action", "requirement", "why", "source"];
    table::rows(include_str!("../../data/sysctls.csv"), columns)
        .map(|[name, value, compare, action, requirement, why, source]| Setting {
            name,
            value,
            compare,
            action,
            requirement,
            why,
            source,
        })
        .collect()
});

impl Setting {
    /// Whether the name stands for several interfaces.
    pub fn is_pattern(&self) -> bool {
        self.name.contains(['*', '?', '<'])
    }

    /// Whether it is the setting of this name, or stands for it.
    pub fn covers(&self, name: &str) -> bool {
        let (own, other) = (|| self.name.split('.'), || name.split('.'));
        let mut parts = own().zip(other());
        own().count() == other().count()
            && parts.all(|(own, other)| match own.strip_suffix('*') {
                Some(start) => other.starts_with(start),
                None => own == other || own.starts_with('<'),
            })
    }

    /// Whether a value is as good as the one that is asked for.
    ///
    /// # Errors
    /// When a number is asked for and the value is none.
    pub fn holds(&self, value: &str) -> Result<bool, Unreadable> {
        let number = |text: &str| {
            let malformed = || Unreadable::malformed(path(self.name), "a number");
            text.parse::<u64>().map_err(|_| malformed())
        };
        Ok(match self.compare {
            ">=" => number(value)? >= number(self.value)?,
            "in" => self.value.split('|').any(|good| good == value),
            "any" => true,
            _ => value == self.value,
        })
    }

    /// The better of two values: of a limit the larger, of all else the first. What is no number is not better.
    pub fn better<'a>(&self, value: &'a str, other: &'a str) -> &'a str {
        let number = |text: &str| text.parse::<u64>().ok();
        if self.compare == ">=" && number(other) > number(value) { other } else { value }
    }
}

/// What an interface does about router advertisements.
pub const ACCEPT_RA: &str = "net.ipv6.conf.<uplink>.accept_ra";
/// Whether an interface drops what comes by another way than the answer would go.
pub const RP_FILTER: &str = "net.ipv4.conf.<uplink>.rp_filter";

/// Values by name.
#[derive(Debug)]
pub struct Sysctls {
    values: BTreeMap<&'static str, Fact<Option<String>>>,
    /// `net.ipv4.conf.*.rp_filter` of "all", "default" and each interface.
    pub rp_filter: Fact<BTreeMap<String, u32>>,
}

impl Sysctls {
    /// The value of a setting; `None` when the running kernel does not have it.
    pub fn value(&self, key: &str) -> Fact<Option<&str>> {
        match self.values.get(key) {
            Some(value) => Ok(value.as_ref()?.as_deref()),
            None => Err(Unreadable {
                path: key.into(),
                why: Why::Failed("not among the facts that are read".into()),
            }),
        }
    }
}

/// Where a setting lies below `/proc/sys`.
///
/// In a key dots stand between its parts, and a slash for a dot in one, as sysctl.d(5) has it:
/// `net.ipv4.conf.eth0/1.rp_filter` is the VLAN `eth0.1`'s.
pub fn path(key: &str) -> String {
    format!("/proc/sys/{}", turned(key))
}

/// The key of what lies at such a path.
pub fn key(path: &str) -> String {
    turned(path.strip_prefix("/proc/sys/").unwrap_or(path))
}

/// The key of an interface's setting: of `net.ipv4.conf.<uplink>.rp_filter`, with the name in place of what stands for it.
pub fn of_interface(template: &str, interface: &str) -> String {
    match (template.find('<'), template.find('>')) {
        (Some(start), Some(end)) => {
            format!("{}{}{}", &template[..start], turned(interface), &template[end + 1..])
        }
        _ => template.to_owned(),
    }
}

/// Dots and slashes in each other's place: from a key to its path below `/proc/sys`, and back.
pub(super) fn turned(key: &str) -> String {
    key.chars()
        .map(|letter| match letter {
            '.' => '/',
            '/' => '.',
            letter => letter,
        })
        .collect()
}

/// The other name of a setting that has two.
pub fn twin(path: &str) -> Option<&'static str> {
    match path {
        "/proc/sys/net/ipv4/ip_forward" => Some("/proc/sys/net/ipv4/conf/all/forwarding"),
        "/proc/sys/net/netfilter/nf_conntrack_max" => Some("/proc/sys/net/nf_conntrack_max"),
        _ => None,
    }
}

/// Paths of the settings that a change of bramble's may set; those of the way out with its name.
pub fn watched(host: &Host) -> Vec<String> {
    let routes = route::read(host);
    let uplink = routes.uplink().ok().flatten();
    let way_out = routes.default6().ok().flatten().map(|default| &*default.interface).or(uplink);
    let of_ours = TABLE.iter().filter(|setting| ["set", "own"].contains(&setting.action));
    let named = of_ours.filter_map(|setting| match setting.name.contains("<uplink>") {
        true if setting.name.starts_with("net.ipv4.") => Some(path(&of_interface(setting.name, uplink?))),
        true => Some(path(&of_interface(setting.name, way_out?))),
        false => (!setting.is_pattern()).then(|| path(setting.name)),
    });
    named.collect()
}

pub(super) fn read(host: &Host) -> Sysctls {
    let value = |key| host.text_if_present(&path(key)).map(|text| text.map(|text| text.trim().to_string()));
    let mut values = BTreeMap::new();
    for setting in TABLE.iter().filter(|setting| setting.action != "told" && !setting.is_pattern()) {
        values.entry(setting.name).or_insert_with(|| value(setting.name));
    }
    Sysctls { values, rp_filter: rp_filter(host) }
}

/// What the IPv6 way out does about router advertisements: the interface and the value of `accept_ra`.
pub(super) fn read_accept_ra(host: &Host, routes: &Routes) -> Fact<Option<(String, String)>> {
    let interface = match routes.default6()? {
        Some(default) => Some(default.interface.as_str()),
        None => routes.uplink()?,
    };
    let Some(interface) = interface else { return Ok(None) };
    let value = host.text_if_present(&path(&of_interface(ACCEPT_RA, interface)))?;
    Ok(value.map(|value| (interface.to_string(), value.trim().to_string())))
}

fn rp_filter(host: &Host) -> Fact<BTreeMap<String, u32>> {
    let directory = "/proc/sys/net/ipv4/conf";
    let mut values = BTreeMap::new();
    for interface in host.list(directory)? {
        let path = format!("{directory}/{interface}/rp_filter");
        // An interface may go away between the listing and the reading.
        let Some(text) = host.text_if_present(&path)? else { continue };
        let value = text.trim().parse().map_err(|_| Unreadable::malformed(path, "a number"))?;
        values.insert(interface, value);
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_holds_when_it_is_larger_and_a_switch_when_it_is_the_same() {
        let of = |name: &str| TABLE.iter().find(|setting| setting.name == name).unwrap();
        let forward = of("net.ipv4.ip_forward");
        assert_eq!((forward.holds("1"), forward.holds("2")), (Ok(true), Ok(false)));
        let watches = of("fs.inotify.max_user_watches");
        assert_eq!((watches.holds("300000"), watches.holds("128")), (Ok(true), Ok(false)));
        assert_eq!((watches.better("9", "10"), watches.better("10", "many")), ("10", "10"));
        assert_eq!(forward.better("1", "2"), "1");
        assert_eq!(watches.holds("many").unwrap_err().path, "/proc/sys/fs/inotify/max_user_watches");
        let congestion = of("net.ipv4.tcp_congestion_control");
        assert_eq!((congestion.holds("bbr"), congestion.holds("reno")), (Ok(true), Ok(false)));
    }

    #[test]
    fn a_dot_in_an_interface_s_name_is_none_between_the_parts_of_a_key() {
        let key = of_interface(RP_FILTER, "eth0.1");
        assert_eq!(key, "net.ipv4.conf.eth0/1.rp_filter");
        assert_eq!(path(&key), "/proc/sys/net/ipv4/conf/eth0.1/rp_filter");
        assert_eq!(path(&of_interface(ACCEPT_RA, "end0")), "/proc/sys/net/ipv6/conf/end0/accept_ra");
        assert_eq!(of_interface("net.ipv4.ip_forward", "eth0"), "net.ipv4.ip_forward");
        for name in [ACCEPT_RA, RP_FILTER] {
            assert!(TABLE.iter().any(|setting| setting.name == name), "{name}");
        }
    }

    #[test]
    fn what_bramble_sets_is_watched_by_its_path_and_a_path_has_its_key() {
        let hosts = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/hosts");
        let paths = watched(&Host::tree(&hosts.join("pi5-bookworm-16k")).unwrap());
        let interface = paths
            .iter()
            .find_map(|path| path.strip_prefix("/proc/sys/net/ipv6/conf/")?.strip_suffix("/accept_ra"));
        assert!(interface.is_some_and(|name| name.len() > 2 && !name.contains(['<', '/'])), "{paths:?}");
        for name in ["net.core.bpf_jit_enable", "net.ipv4.ip_forward", "net.ipv4.conf.all.rp_filter"] {
            assert!(paths.contains(&path(name)), "{name}");
        }
        for path in &paths {
            let key = key(path);
            assert!(TABLE.iter().any(|setting| setting.covers(&key)), "{key}");
        }
        assert!(paths.iter().all(|path| path.starts_with("/proc/sys/") && !path.contains(['*', '<', '.'])));
    }

    #[test]
    fn a_row_covers_its_name_and_what_stands_for_an_interface() {
        let row = |name: &str| TABLE.iter().find(|setting| setting.name == name).unwrap();
        for (name, covered, other) in [
            ("net.ipv4.ip_forward", "net.ipv4.ip_forward", "net.ipv4.ip_forward_use_pmtu"),
            (RP_FILTER, "net.ipv4.conf.eth0/1.rp_filter", "net.ipv4.conf.eth0.forwarding"),
            ("net.ipv4.conf.lxc*.rp_filter", "net.ipv4.conf.lxc12.rp_filter", "net.ipv4.conf.eth0.rp_filter"),
            ("kernel.panic", "kernel.panic", "kernel.panic.x"),
        ] {
            assert!(row(name).covers(covered) && !row(name).covers(other), "{name}");
        }
    }

    #[test]
    fn every_row_says_how_it_is_compared_and_who_sets_it() {
        for setting in TABLE.iter() {
            assert!(["=", ">=", "in", "contains", "any"].contains(&setting.compare), "{setting:?}");
            assert!(["set", "agent", "own", "told"].contains(&setting.action), "{setting:?}");
            assert!(!setting.why.is_empty() && !setting.source.is_empty(), "{setting:?}");
            assert_eq!(setting.value.is_empty(), setting.compare == "any", "{setting:?}");
            assert!(!setting.is_pattern() || setting.action == "own", "{setting:?}");
        }
    }
}
