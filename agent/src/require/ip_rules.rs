//! Every rule that leads to a routing table in use is there: the kernel's own, and those of Cilium.

use super::{Area, Finding, Requirement};
use crate::config::cluster::Profile;
use crate::facts::rule::Policy;

/// The kernel's own: name, table, and the usual place.
const KERNELS: [(&str, u32, u32); 3] = [("local", 255, 0), ("main", 254, 32766), ("default", 253, 32767)];
/// Tables of Cilium's that only a mark leads to: table, place and mark of the rule.
const CILIUMS: [(u32, u32, &str); 2] = [(2004, 9, "0x200/0xf00"), (2005, 10, "0xa00/0xf00")];

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "ip-rules",
    area: Area::Network,
    profiles: &[Profile::Node],
    title: "the rules that lead to routes are there",
    why: "without the kernel's own the node does not know its routes, or its own addresses; without Cilium's, what its \
          proxy handles is lost. systemd-networkd deletes them when it is restarted",
    source: "systemd/systemd#41350; cilium/cilium#18706, pkg/datapath/linux/linux_defaults (rules 9, 10, 100)",
    fix: "a person adds the rule that is named, or restarts the node's Cilium agent for those of Cilium's",
    catalogue: &["NET-001", "NET-003"],
    judge: |facts, _| {
        let v4 = facts.rules.v4.as_ref()?;
        let mut lacking = lacks(v4, "ip", &KERNELS);
        let mut rules = v4.rules.len();
        if let Some(v6) = facts.rules.v6.as_ref()? {
            // The kernel has no table "default" for IPv6.
            lacking.extend(lacks(v6, "ip -6", &KERNELS[..2]));
            rules += v6.rules.len();
        }
        if lacking.is_empty() {
            return Finding::met(format!(
                "the kernel's own, and those of every table of Cilium's, among {rules}"
            ));
        }
        let (what, next): (Vec<String>, Vec<String>) = lacking.into_iter().unzip();
        Finding::blocked(format!("no rule leads to {}", what.join(", ")), next.join("; "))
    },
};

/// What no rule leads to, each with the command that makes one.
fn lacks(policy: &Policy, ip: &str, kernels: &[(&str, u32, u32)]) -> Vec<(String, String)> {
    let led = |wanted: u32| policy.rules.iter().any(|rule| rule.table == wanted && rule.is_for_all);
    let own = kernels.iter().filter(|(_, table, _)| !led(*table)).map(|(name, _, place)| {
        (format!("table {name} ({ip} rule)"), format!("sudo {ip} rule add priority {place} lookup {name}"))
    });
    let marked = |wanted: u32| policy.rules.iter().any(|rule| rule.table == wanted);
    let of_cilium = |(table, ..): &&(u32, u32, &str)| policy.tables.contains(table) && !marked(*table);
    let ciliums = CILIUMS.iter().filter(of_cilium).map(|(table, place, mark)| {
        (
            format!("Cilium's table {table} ({ip} rule)"),
            format!("restart this node's Cilium agent, or sudo {ip} rule add priority {place} fwmark {mark} lookup {table}"),
        )
    });
    own.chain(ciliums).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::rule::Rule;

    fn rule(priority: u32, table: u32) -> Rule {
        Rule { priority, mark: 0, mask: 0, table, is_for_all: true }
    }

    fn named(policy: &Policy) -> Vec<String> {
        lacks(policy, "ip", &KERNELS).into_iter().map(|(what, _)| what).collect()
    }

    #[test]
    fn the_kernel_s_own_rules_count_wherever_they_stand() {
        let mut policy =
            Policy { rules: vec![rule(0, 255), rule(32766, 254), rule(32767, 253)], ..Policy::default() };
        assert!(named(&policy).is_empty());
        // Cilium moves the first behind its own.
        policy.rules[0].priority = 100;
        assert!(named(&policy).is_empty());
        // One for some packets is none for all.
        policy.rules[1].is_for_all = false;
        assert_eq!(named(&policy), ["table main (ip rule)"]);
        policy.rules.clear();
        assert_eq!(named(&policy).len(), 3);
    }

    #[test]
    fn a_table_of_cilium_s_with_routes_needs_its_rule() {
        let mut policy = Policy {
            rules: vec![rule(100, 255), rule(32766, 254), rule(32767, 253)],
            tables: [254, 255, 2004].into(),
        };
        assert_eq!(named(&policy), ["Cilium's table 2004 (ip rule)"]);
        policy.rules.push(Rule { priority: 9, mark: 0x200, mask: 0xf00, table: 2004, is_for_all: false });
        assert!(named(&policy).is_empty());
    }
}
