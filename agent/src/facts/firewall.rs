//! What firewall services are told: ufw's defaults and rules, `/etc/nftables.conf`, `/etc/iptables/rules.v4`.
//!
//! Only files are read; whether the service is in use is `unit`'s to say.

use super::Fact;
use crate::host::{Host, Unreadable};

/// What stands in the files of each service.
#[derive(Debug)]
pub struct Firewalls {
    /// ufw; `None` when it is switched off or not there.
    pub ufw: Fact<Option<Ufw>>,
    /// `/etc/nftables.conf`.
    pub nftables: Fact<Rules>,
    /// `/etc/iptables/rules.v4`.
    pub iptables: Fact<Rules>,
}

/// ufw, switched on.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ufw {
    /// Whether what no rule speaks of is dropped on its way in.
    pub drops_input: bool,
    /// Whether what no rule speaks of is dropped on its way through: all that pods send.
    pub drops_forward: bool,
    /// Ports that somebody is allowed to reach: first, last, and the protocol, "any" for both.
    pub allowed: Vec<(u16, u16, String)>,
    /// Whether a rule allows everything from some network or by some interface.
    pub allows_networks: Vec<String>,
}

/// What matters in a file of rules.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Whether loading it deletes what others wrote.
    pub flushes: bool,
    /// The ways on which it drops what no rule speaks of: "input", "forward".
    pub drops: Vec<&'static str>,
}

impl Ufw {
    /// Whether some rule lets a port in.
    pub fn allows(&self, port: u16, protocol: &str) -> bool {
        self.allowed
            .iter()
            .any(|(first, last, of)| (*first..=*last).contains(&port) && (of == "any" || of == protocol))
    }
}

pub(super) fn read(host: &Host) -> Firewalls {
    Firewalls {
        ufw: ufw(host),
        nftables: host.text("/etc/nftables.conf").map(|text| nftables(&text)),
        iptables: host.text("/etc/iptables/rules.v4").map(|text| iptables(&text)),
    }
}

fn ufw(host: &Host) -> Fact<Option<Ufw>> {
    let Some(main) = host.text_if_present("/etc/ufw/ufw.conf")? else { return Ok(None) };
    if assigned(&main, "ENABLED").is_none_or(|value| !value.eq_ignore_ascii_case("yes")) {
        return Ok(None);
    }
    let defaults = host.text("/etc/default/ufw")?;
    let rules = host.text("/etc/ufw/user.rules")?;
    let mut ufw = Ufw {
        drops_input: assigned(&defaults, "DEFAULT_INPUT_POLICY").is_none_or(|policy| policy != "ACCEPT"),
        drops_forward: assigned(&defaults, "DEFAULT_FORWARD_POLICY").is_none_or(|policy| policy != "ACCEPT"),
        ..Ufw::default()
    };
    for line in rules.lines() {
        if let Some(tuple) = line.strip_prefix("### tuple ### ") {
            ufw.absorb(tuple).ok_or_else(|| {
                Unreadable::malformed("/etc/ufw/user.rules", "tuples of action, protocol, port, network")
            })?;
        }
    }
    Ok(Some(ufw))
}

impl Ufw {
    /// ufw writes each rule as a remark: `allow tcp 6443 0.0.0.0/0 any 192.168.1.0/24 in`; ports may be a list, with
    /// `:` in ranges.
    fn absorb(&mut self, tuple: &str) -> Option<()> {
        let fields: Vec<&str> = tuple.split_whitespace().collect();
        let [action, protocol, ports, _, _, source, way, ..] = fields[..] else { return None };
        if !(action == "allow" || action == "limit") || way.starts_with("out") {
            return Some(());
        }
        if ports == "any" {
            self.allows_networks.push(source.to_string());
            return Some(());
        }
        for part in ports.split(',') {
            let (first, last) = part.split_once(':').unwrap_or((part, part));
            self.allowed.push((first.parse().ok()?, last.parse().ok()?, protocol.to_string()));
        }
        Some(())
    }
}

/// The value of `KEY=value` or `KEY="value"`.
fn assigned<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let line = text.lines().rev().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))?;
    Some(line.trim_matches(['"', '\'', ' ']))
}

/// nft(8): `type filter hook input priority filter; policy drop;`.
fn nftables(text: &str) -> Rules {
    let mut rules = Rules::default();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        rules.flushes |= line.starts_with("flush ruleset");
    }
    let plain: String = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    for (way, hook) in [("input", "hook input"), ("forward", "hook forward")] {
        let chains = plain.match_indices(hook).filter_map(|(at, _)| plain[at..].split('}').next());
        if chains.into_iter().any(|chain| chain.contains("policy drop")) {
            rules.drops.push(way);
        }
    }
    rules
}

/// iptables-restore(8) replaces the tables that a file names.
fn iptables(text: &str) -> Rules {
    let drops = [("input", ":INPUT DROP"), ("forward", ":FORWARD DROP")];
    Rules {
        flushes: text.lines().any(|line| line.starts_with('*')),
        drops: drops
            .iter()
            .filter(|(_, policy)| text.lines().any(|line| line.starts_with(policy)))
            .map(|(way, _)| *way)
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ufw_s_remarks_tell_what_is_allowed() {
        let mut ufw = Ufw::default();
        for tuple in [
            "allow tcp 6443 0.0.0.0/0 any 0.0.0.0/0 in",
            "allow any any 0.0.0.0/0 any 10.42.0.0/16 in",
            "allow tcp 2379:2380,10250 0.0.0.0/0 any 192.168.1.0/24 in",
            "deny udp 8472 0.0.0.0/0 any 0.0.0.0/0 in",
            "limit tcp 22 0.0.0.0/0 any 0.0.0.0/0 in",
        ] {
            ufw.absorb(tuple).unwrap();
        }
        for (port, protocol, allowed) in [
            (6443, "tcp", true),
            (2380, "tcp", true),
            (10250, "udp", false),
            (8472, "udp", false),
            (22, "tcp", true),
        ] {
            assert_eq!(ufw.allows(port, protocol), allowed, "{port}/{protocol}");
        }
        assert_eq!(ufw.allows_networks, ["10.42.0.0/16"]);
        assert_eq!(ufw.absorb("allow tcp"), None);
        assert_eq!(ufw.absorb("allow tcp http 0.0.0.0/0 any 0.0.0.0/0 in"), None);
    }

    #[test]
    fn rules_tell_what_they_flush_and_drop() {
        let debian = "#!/usr/sbin/nft -f\n\nflush ruleset\n\ntable inet filter {\n\tchain input {\n\t\ttype filter hook \
                      input priority filter;\n\t}\n\tchain forward {\n\t\ttype filter hook forward priority filter; \
                      policy drop;\n\t}\n}\n";
        assert_eq!(nftables(debian), Rules { flushes: true, drops: vec!["forward"] });
        assert_eq!(nftables("# flush ruleset\ntable ip mine { }\n"), Rules::default());
        let saved = "*filter\n:INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\nCOMMIT\n";
        assert_eq!(iptables(saved), Rules { flushes: true, drops: vec!["input"] });
    }

    #[test]
    fn the_last_assignment_counts_without_its_quotes() {
        assert_eq!(assigned("#X=1\nX=\"DROP\"\n", "X"), Some("DROP"));
        assert_eq!(assigned("XY=1\n", "X"), None);
    }
}
