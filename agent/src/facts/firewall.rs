//! What firewall services are told: ufw's defaults, rules and settings, `/etc/nftables.conf`, `/etc/iptables/rules.v4`.
//!
//! Only files are read; whether the service is in use is `unit`'s to say, and what the kernel has now `host`'s.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use super::drop_in::glob;
use super::route::Route;
use super::sysctl_file::SysctlFiles;
use super::{Fact, Facts};
pub use crate::host::netfilter::{Dropping, Filter};
use crate::host::{Host, Unreadable};

/// What stands in the files of each service, and what the kernel has.
#[derive(Debug)]
pub struct Firewalls {
    /// ufw; `None` when it is switched off or not there.
    pub ufw: Fact<Option<Ufw>>,
    /// `/etc/nftables.conf`.
    pub nftables: Fact<Rules>,
    /// `/etc/iptables/rules.v4`.
    pub iptables: Fact<Rules>,
    /// Chains of the running packet filter that drop what no rule speaks of. Only root sees them.
    pub live: Fact<Filter>,
    /// Whether legacy iptables is loaded, or built in. Everybody sees that.
    pub legacy: Fact<bool>,
}

/// ufw, switched on.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ufw {
    /// What comes in.
    pub input: Way,
    /// What passes through: all that pods send.
    pub forward: Way,
    /// Kernel settings that it makes whenever it starts, after all of `sysctl.d`.
    pub settings: SysctlFiles,
}

/// What matters in a file of rules.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Whether loading it deletes what others wrote.
    pub flushes: bool,
    /// What comes in.
    pub input: Way,
    /// What passes through.
    pub forward: Way,
}

/// A way of packets, and what may go it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Whether what no rule speaks of is dropped.
    pub drops: bool,
    /// What rules let pass.
    pub accepted: Vec<Accepted>,
    /// A rule that may let more pass and is not understood.
    pub opaque: Option<String>,
}

/// What one rule lets pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accepted {
    /// "tcp", "udp"; empty for all.
    pub protocols: Vec<String>,
    /// Empty for all.
    pub ports: Vec<RangeInclusive<u16>>,
    /// Networks that it comes from; empty for all.
    pub sources: Vec<(Ipv4Addr, u32)>,
    /// Interfaces that it comes by, perhaps with `*`; empty for all.
    pub interfaces: Vec<String>,
}

impl Way {
    /// Whether some rule lets a port in from other nodes. One that names the port counts whatever its source is: nodes may
    /// be listed one by one. One for all ports counts when it speaks of the network that the node is in.
    pub fn admits(&self, facts: &Facts, port: u16, protocol: &str) -> Fact<bool> {
        let uplink = facts.routes.uplink()?;
        let routes = facts.routes.v4.as_ref()?;
        let is_near = |route: &&Route| Some(route.interface.as_str()) == uplink && !route.is_default();
        let near = |(network, prefix): &(Ipv4Addr, u32)| {
            routes.iter().filter(is_near).any(|route| route.overlaps(*network, *prefix))
        };
        let by = |rule: &Accepted| {
            rule.interfaces.is_empty()
                || uplink.is_some_and(|uplink| rule.interfaces.iter().any(|name| glob(name, uplink)))
        };
        Ok(self.accepted.iter().any(|rule| {
            by(rule)
                && (rule.protocols.is_empty() || rule.protocols.iter().any(|one| one == protocol))
                && match &rule.ports[..] {
                    [] => rule.sources.is_empty() || rule.sources.iter().any(near),
                    ports => ports.iter().any(|range| range.contains(&port)),
                }
        }))
    }

    /// Whether some rule lets all pass that comes from a network of pods.
    pub fn admits_pods(&self, network: Ipv4Addr, prefix: u32) -> bool {
        let covers = |(wide, length): &(Ipv4Addr, u32)| {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            *length <= prefix && wide.to_bits() & mask == network.to_bits() & mask
        };
        let by = |name: &String| glob(name, "lxc0") || glob(name, "cilium_host");
        self.accepted.iter().any(|rule| {
            rule.protocols.is_empty()
                && rule.ports.is_empty()
                && (rule.sources.is_empty() || rule.sources.iter().any(covers))
                && (rule.interfaces.is_empty() || rule.interfaces.iter().any(by))
        })
    }
}

pub(super) fn read(host: &Host) -> Firewalls {
    Firewalls {
        ufw: ufw(host),
        nftables: host.text("/etc/nftables.conf").map(|text| nftables(&text)),
        iptables: host.text("/etc/iptables/rules.v4").map(|text| iptables(&text)),
        live: host.filter(),
        legacy: ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"]
            .into_iter()
            .try_fold(false, |found, path| Ok(found || host.present(path)?)),
    }
}

fn ufw(host: &Host) -> Fact<Option<Ufw>> {
    let Some(main) = host.text_if_present("/etc/ufw/ufw.conf")? else { return Ok(None) };
    if assigned(&main, "ENABLED").is_none_or(|value| !value.eq_ignore_ascii_case("yes")) {
        return Ok(None);
    }
    let defaults = host.text("/etc/default/ufw")?;
    let rules = host.text("/etc/ufw/user.rules")?;
    let mut ufw = Ufw::default();
    ufw.input.drops = assigned(&defaults, "DEFAULT_INPUT_POLICY").is_none_or(|policy| policy != "ACCEPT");
    ufw.forward.drops = assigned(&defaults, "DEFAULT_FORWARD_POLICY").is_none_or(|policy| policy != "ACCEPT");
    if let Some(path) = assigned(&defaults, "IPT_SYSCTL").filter(|path| !path.is_empty())
        && let Some(text) = host.text_if_present(path)?
    {
        ufw.settings.absorb(path, &text);
    }
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
    /// ufw writes each rule as a remark: `allow tcp 6443 0.0.0.0/0 any 192.168.1.0/24 in`, for what passes through
    /// `route:allow ...`; ports may be a list, with `:` in ranges.
    fn absorb(&mut self, tuple: &str) -> Option<()> {
        let fields: Vec<&str> = tuple.split_whitespace().collect();
        let [action, protocol, ports, _, _, source, direction, ..] = fields[..] else { return None };
        let (way, action) = match action.strip_prefix("route:") {
            Some(action) => (&mut self.forward, action),
            None => (&mut self.input, action),
        };
        if !(action == "allow" || action == "limit") || direction.starts_with("out") {
            return Some(());
        }
        let mut rule = Accepted::default();
        rule.protocols.extend((protocol != "any").then(|| protocol.to_owned()));
        if ports != "any" {
            rule.ports = ports.split(',').map(range).collect::<Option<_>>()?;
        }
        // An IPv6 network or a name of an application's profile: nothing that the judge compares with.
        rule.sources.extend(network(source).filter(|(_, prefix)| *prefix > 0));
        // "in_eth0"
        rule.interfaces.extend(direction.split_once('_').map(|(_, name)| name.to_owned()));
        way.accepted.push(rule);
        Some(())
    }
}

/// `6443`, `2379:2380` or `30000-32767`.
fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once([':', '-']).unwrap_or((text, text));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

/// `192.168.1.0/24`, or one address.
fn network(text: &str) -> Option<(Ipv4Addr, u32)> {
    let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
    Some((address.parse().ok()?, prefix.parse().ok().filter(|prefix| *prefix <= 32)?))
}

/// The value of `KEY=value` or `KEY="value"`.
fn assigned<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let line = text.lines().rev().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))?;
    Some(line.trim_matches(['"', '\'', ' ']))
}

/// nft(8): `type filter hook input priority filter; policy drop;`.
fn nftables(text: &str) -> Rules {
    let plain: Vec<&str> = text.lines().map(|line| line.split('#').next().unwrap_or_default()).collect();
    let plain = plain.join("\n");
    let has = |word: &str| plain.lines().any(|line| line.trim().starts_with(word));
    let mut rules = Rules { flushes: has("flush ruleset"), ..Rules::default() };
    for (way, hook) in [(&mut rules.input, "hook input"), (&mut rules.forward, "hook forward")] {
        for (at, _) in plain.match_indices(hook) {
            let chain = block(&plain, at);
            let mut depth = 0;
            let outside = |letter: char| {
                depth += match letter {
                    '{' => 1,
                    '}' => -1,
                    _ => 0,
                };
                depth == 0 && [';', '\n'].contains(&letter)
            };
            let statements: Vec<&str> = chain.split(outside).map(str::trim).collect();
            if !statements.iter().any(|one| one.split_whitespace().eq(["policy", "drop"])) {
                continue;
            }
            way.drops = true;
            // What another file adds to the chain is not known.
            way.opaque = way.opaque.take().or_else(|| has("include").then(|| "include".to_owned()));
            for statement in statements.iter().filter(|one| !one.starts_with("type ")) {
                way.take(statement, nft(statement));
            }
        }
    }
    rules
}

/// What stands between the braces around a place.
fn block(text: &str, at: usize) -> &str {
    let start = text[..at].rfind('{').map_or(0, |brace| brace + 1);
    let mut depth = 1;
    let end = text[start..].char_indices().find(|(_, letter)| {
        depth += match letter {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
        depth == 0
    });
    &text[start..end.map_or(text.len(), |(end, _)| start + end)]
}

/// What a rule comes to.
enum Meaning {
    /// It lets this pass.
    Accepts(Accepted),
    /// It lets nothing new in from other nodes.
    Nothing,
    /// It may let something pass.
    Unclear,
}

impl Way {
    fn take(&mut self, rule: &str, meaning: Meaning) {
        match meaning {
            Meaning::Accepts(accepted) => self.accepted.push(accepted),
            Meaning::Unclear if self.opaque.is_none() => self.opaque = Some(rule.to_owned()),
            Meaning::Unclear | Meaning::Nothing => {}
        }
    }
}

/// One rule as nft(8) writes it: `tcp dport { 22, 6443 } accept`.
fn nft(statement: &str) -> Meaning {
    let spaced = statement.replace('{', " { ").replace('}', " } ").replace(',', " ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    if !words.iter().any(|word| ["accept", "jump", "goto", "vmap"].contains(word)) {
        return Meaning::Nothing;
    }
    let mut rule = Accepted::default();
    let mut rest = &words[..];
    loop {
        let (values, after): (&[&str], &[&str]) = match rest {
            ["accept", ..] => return Meaning::Accepts(rule),
            ["counter", "packets", _, "bytes", _, after @ ..] | ["counter", after @ ..] => {
                rest = after;
                continue;
            }
            ["comment", ..] => return Meaning::Unclear,
            [_, _, "{", after @ ..] => {
                let Some(end) = after.iter().position(|word| *word == "}") else { return Meaning::Unclear };
                (&after[..end], &after[end + 1..])
            }
            ["iif" | "iifname", "{", after @ ..] => {
                let Some(end) = after.iter().position(|word| *word == "}") else { return Meaning::Unclear };
                (&after[..end], &after[end + 1..])
            }
            ["iif" | "iifname", after @ ..] => after.split_at(after.len().min(1)),
            [_, _, after @ ..] => after.split_at(after.len().min(1)),
            _ => return Meaning::Unclear,
        };
        if values.iter().any(|value| value.starts_with(['@', '$', '!'])) || values.is_empty() {
            return Meaning::Unclear;
        }
        let owned = || values.iter().map(|value| value.trim_matches('"').to_owned());
        match rest[..2] {
            [protocol @ ("tcp" | "udp"), "dport"] => {
                rule.protocols = vec![protocol.to_owned()];
                // Names of services are none of the cluster's.
                rule.ports = values.iter().filter_map(|value| range(value)).collect();
                if rule.ports.is_empty() {
                    return Meaning::Nothing;
                }
            }
            ["th", "dport"] => rule.ports = values.iter().filter_map(|value| range(value)).collect(),
            ["meta", "l4proto"] | ["ip", "protocol"] => rule.protocols = owned().collect(),
            ["ip", "saddr"] => match values.iter().map(|value| network(value)).collect() {
                Some(networks) => rule.sources = networks,
                None => return Meaning::Unclear,
            },
            ["iif" | "iifname", _] if values == ["lo"] || values == ["\"lo\""] => return Meaning::Nothing,
            ["iif" | "iifname", _] => rule.interfaces = owned().collect(),
            ["ct", "state"] if values.contains(&"new") => {}
            ["ct", "state"] | ["icmp" | "icmpv6" | "ip6", _] => return Meaning::Nothing,
            _ => return Meaning::Unclear,
        }
        rest = after;
    }
}

/// iptables-restore(8) replaces the tables that a file names.
fn iptables(text: &str) -> Rules {
    let mut rules = Rules { flushes: text.lines().any(|line| line.starts_with('*')), ..Rules::default() };
    for (way, chain) in [(&mut rules.input, "INPUT"), (&mut rules.forward, "FORWARD")] {
        way.drops = text.lines().any(|line| line.starts_with(&format!(":{chain} DROP")));
        if way.drops {
            for line in text.lines().filter(|line| line.starts_with(&format!("-A {chain} "))) {
                way.take(line, iptables_rule(line));
            }
        }
    }
    rules
}

/// One rule as iptables-save(8) writes it: `-A INPUT -p tcp -m tcp --dport 6443 -j ACCEPT`.
fn iptables_rule(line: &str) -> Meaning {
    let mut rule = Accepted::default();
    let mut words = line.split_whitespace().skip(2);
    while let Some(option) = words.next() {
        let Some(value) = words.next() else { return Meaning::Unclear };
        match option {
            "-j" if value == "ACCEPT" => return Meaning::Accepts(rule),
            "-j" if ["DROP", "REJECT", "LOG", "RETURN"].contains(&value) => return Meaning::Nothing,
            "-i" if value == "lo" => return Meaning::Nothing,
            // iptables writes + for what others write * for.
            "-i" => rule.interfaces.push(value.replace('+', "*")),
            "-p" if ["icmp", "ipv6-icmp"].contains(&value) => return Meaning::Nothing,
            "-p" => rule.protocols.push(value.to_owned()),
            "-s" => match network(value) {
                Some(network) => rule.sources.push(network),
                None => return Meaning::Unclear,
            },
            "--dport" | "--dports" => match value.split(',').map(range).collect() {
                Some(ports) => rule.ports = ports,
                None => return Meaning::Unclear,
            },
            "--state" | "--ctstate" if value.split(',').any(|state| state == "NEW") => {}
            "--state" | "--ctstate" => return Meaning::Nothing,
            "-m" if ["tcp", "udp", "multiport", "state", "conntrack"].contains(&value) => {}
            _ => return Meaning::Unclear,
        }
    }
    Meaning::Nothing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captured() -> Facts {
        let hosts = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/hosts");
        Facts::observe(&Host::tree(&hosts.join("pi5-bookworm-16k")).unwrap())
    }

    #[test]
    fn ufw_s_remarks_tell_what_is_allowed() {
        let facts = captured();
        let mut ufw = Ufw::default();
        for tuple in [
            "allow tcp 6443 0.0.0.0/0 any 0.0.0.0/0 in",
            "allow any any 0.0.0.0/0 any 10.42.0.0/16 in",
            "route:allow any any 0.0.0.0/0 any 10.42.0.0/16 in",
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
            assert_eq!(ufw.input.admits(&facts, port, protocol), Ok(allowed), "{port}/{protocol}");
        }
        let pods = Ipv4Addr::new(10, 42, 0, 0);
        assert!(
            ufw.forward.admits_pods(pods, 16) && !ufw.forward.admits_pods(Ipv4Addr::new(10, 44, 0, 0), 16)
        );
        // The network that the node is in, or one that holds it.
        for (source, admitted) in
            [("192.168.178.0/24", true), ("192.168.0.0/16", true), ("192.168.1.0/24", false)]
        {
            let mut ufw = Ufw::default();
            ufw.absorb(&format!("allow any any 0.0.0.0/0 any {source} in")).unwrap();
            assert_eq!(ufw.input.admits(&facts, 10250, "tcp"), Ok(admitted), "{source}");
        }
        assert_eq!(ufw.absorb("allow tcp"), None);
        assert_eq!(ufw.absorb("allow tcp http 0.0.0.0/0 any 0.0.0.0/0 in"), None);
    }

    #[test]
    fn rules_tell_what_they_flush_and_drop() {
        let debian = "#!/usr/sbin/nft -f\n\nflush ruleset\n\ntable inet filter {\n\tchain input {\n\t\ttype filter hook \
                      input priority filter;\n\t}\n\tchain forward {\n\t\ttype filter hook forward priority filter; \
                      policy drop;\n\t}\n}\n";
        let drops = || Way { drops: true, ..Way::default() };
        assert_eq!(nftables(debian), Rules { flushes: true, forward: drops(), ..Rules::default() });
        assert_eq!(nftables("# flush ruleset\ntable ip mine { }\n"), Rules::default());
        let saved = "*filter\n:INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\nCOMMIT\n";
        assert_eq!(iptables(saved), Rules { flushes: true, input: drops(), ..Rules::default() });
    }

    #[test]
    fn what_a_chain_that_drops_lets_pass_is_read() {
        let facts = captured();
        let nft = |rules: &str| {
            let chain = "type filter hook input priority 0; policy drop;";
            nftables(&format!("table inet f {{\n chain in {{\n {chain}\n {rules}\n }}\n}}\n")).input
        };
        let ipt = |rules: &str| iptables(&format!("*filter\n:INPUT DROP [0:0]\n{rules}\nCOMMIT\n")).input;
        for (way, admitted, is_clear) in [
            (nft("tcp dport { 22, 10250 } accept"), true, true),
            (nft("tcp dport 10000-11000 counter accept"), true, true),
            (nft("tcp dport 22 accept; udp dport 10250 accept"), false, true),
            (nft("ip saddr 192.168.178.0/24 accept"), true, true),
            (nft("ip saddr 10.42.0.0/16 accept"), false, true),
            (nft("iifname \"wlan0\" accept"), true, true),
            (nft("iifname lo accept"), false, true),
            (nft("ct state { established, related } accept"), false, true),
            (nft("ct state established,related accept"), false, true),
            (nft("ct state new tcp dport 10250 accept"), true, true),
            (nft("tcp dport @open accept"), false, false),
            (nft("tcp dport $open accept"), false, false),
            (nft("jump more"), false, false),
            (nft("tcp dport ssh accept"), false, true),
            (nft("icmp type echo-request accept"), false, true),
            (nft("tcp dport 10250 drop"), false, true),
            (ipt("-A INPUT -p tcp -m tcp --dport 10250 -j ACCEPT"), true, true),
            (ipt("-A INPUT -p tcp -m multiport --dports 22,10000:11000 -j ACCEPT"), true, true),
            (ipt("-A INPUT -s 192.168.178.0/24 -j ACCEPT"), true, true),
            (ipt("-A INPUT -i lo -j ACCEPT"), false, true),
            (ipt("-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"), false, true),
            (ipt("-A INPUT -j MORE"), false, false),
        ] {
            assert!(way.drops, "{way:?}");
            assert_eq!(way.admits(&facts, 10250, "tcp"), Ok(admitted), "{way:?}");
            assert_eq!(way.opaque.is_none(), is_clear, "{way:?}");
        }
        let pods = Ipv4Addr::new(10, 42, 0, 0);
        assert!(nft("iifname \"lxc*\" accept").admits_pods(pods, 16));
        assert!(!nft("ip saddr 10.42.3.0/24 accept").admits_pods(pods, 16));
    }

    #[test]
    fn the_last_assignment_counts_without_its_quotes() {
        assert_eq!(assigned("#X=1\nX=\"DROP\"\n", "X"), Some("DROP"));
        assert_eq!(assigned("XY=1\n", "X"), None);
    }
}
