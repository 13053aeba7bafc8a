//! Chains of the packet filter, taken away by name, with the rules that lead to them: nft(8), whose JSON names them all.
//!
//! Of the writing half. One transaction: the packet filter is never half done.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use super::write::{HostMut, NotDone};

const PATIENCE: Duration = Duration::from_secs(60);

impl HostMut {
    /// Deletes all chains whose name begins with one of `prefixes`, and the rules that lead to them; says how many there
    /// were.
    ///
    /// What was made for them goes with them: a table or a hook that is not among those `seen` before, and is empty. When
    /// it is not known which were seen, all stay.
    ///
    /// # Errors
    /// nft is not installed, or refuses.
    pub fn delete_chains(
        &self,
        prefixes: &[&str],
        seen: Option<&BTreeSet<String>>,
    ) -> Result<usize, NotDone> {
        let ruleset = self.succeed(&["nft", "--json", "list", "ruleset"], PATIENCE)?;
        let parsed: Value = serde_json::from_str(&ruleset).map_err(|error| {
            let next = "nft --json list ruleset";
            NotDone::new("reading", "the packet filter's rules", error.to_string(), next)
        })?;
        let (commands, chains) = commands(&parsed, prefixes, seen);
        if !commands.is_empty() {
            self.succeed(&["nft", &commands.join("; ")], PATIENCE)?;
        }
        Ok(chains)
    }
}

/// What nft is to do, and how many chains go.
fn commands(ruleset: &Value, prefixes: &[&str], seen: Option<&BTreeSet<String>>) -> (Vec<String>, usize) {
    let entries = |kind: &'static str| {
        ruleset["nftables"].as_array().into_iter().flatten().filter_map(move |entry| entry.get(kind))
    };
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let table_of = |entry: &Value| (text(entry, "family"), text(entry, "table"));
    let ours = |name: &str| prefixes.iter().any(|prefix| name.starts_with(prefix));

    let chains: Vec<&Value> = entries("chain").filter(|chain| ours(&text(chain, "name"))).collect();
    let leads =
        |rule: &&Value| !ours(&text(rule, "chain")) && targets(rule).iter().any(|target| ours(target));
    let rules: Vec<&Value> = entries("rule").filter(leads).collect();
    let mut commands = Vec::new();
    for rule in &rules {
        let (family, table) = table_of(rule);
        commands.push(format!(
            "delete rule {family} {table} {} handle {}",
            text(rule, "chain"),
            rule["handle"]
        ));
    }
    // Those that lead to each other have to be empty before the first goes.
    for verb in ["flush", "delete"] {
        for chain in &chains {
            let (family, table) = table_of(chain);
            commands.push(format!("{verb} chain {family} {table} {}", text(chain, "name")));
        }
    }
    let is_new = |name: &String| seen.is_some_and(|seen| !seen.contains(name));
    let is_kept_rule =
        |rule: &Value| !ours(&text(rule, "chain")) && !rules.iter().any(|gone| std::ptr::eq(*gone, rule));
    let is_made_for_them = |chain: &Value| {
        let (family, table) = table_of(chain);
        let name = text(chain, "name");
        let has_rules = entries("rule").any(|rule| {
            table_of(rule) == table_of(chain) && text(rule, "chain") == name && is_kept_rule(rule)
        });
        is_new(&format!("{family} {table} {name}")) && is_hook(chain) && !has_rules
    };
    // Whatever hooks a run that was cut off has left belong to tables that are new.
    let mut touched: BTreeSet<(String, String)> = chains.iter().map(|chain| table_of(chain)).collect();
    touched.extend(
        entries("table")
            .map(|table| (text(table, "family"), text(table, "name")))
            .filter(|(family, table)| is_new(&format!("{family} {table}"))),
    );
    for (family, table) in touched {
        let here = |entry: &&Value| table_of(entry) == (family.clone(), table.clone());
        let (made, kept): (Vec<&Value>, Vec<&Value>) = entries("chain")
            .filter(here)
            .filter(|chain| !ours(&text(chain, "name")))
            .partition(|chain| is_made_for_them(chain));
        let holds_more = ["set", "map", "flowtable", "counter", "quota", "limit", "ct helper"]
            .iter()
            .any(|kind| entries(kind).any(|entry| here(&entry)));
        match is_of_iptables(&family, &table)
            && is_new(&format!("{family} {table}"))
            && kept.is_empty()
            && !holds_more
        {
            true => commands.push(format!("delete table {family} {table}")),
            false => {
                let hooks = made.iter().filter(|_| is_of_iptables(&family, &table));
                commands.extend(
                    hooks.map(|chain| format!("delete chain {family} {table} {}", text(chain, "name"))),
                );
            }
        }
    }
    (commands, chains.len())
}

/// A table that iptables makes by itself.
fn is_of_iptables(family: &str, table: &str) -> bool {
    ["ip", "ip6"].contains(&family) && ["filter", "nat", "mangle", "raw", "security"].contains(&table)
}

/// A chain that iptables makes by itself and that lets everything pass.
fn is_hook(chain: &Value) -> bool {
    let name = chain["name"].as_str().unwrap_or_default();
    chain.get("hook").is_some()
        && chain["policy"] == "accept"
        && ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"].contains(&name)
}

/// The chains to which a rule leads.
fn targets(rule: &Value) -> Vec<String> {
    let expressions = rule["expr"].as_array().into_iter().flatten();
    let verdicts = expressions.filter_map(|expression| expression.get("jump").or(expression.get("goto")));
    verdicts.filter_map(|verdict| verdict["target"].as_str()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn chain(table: &str, name: &str) -> Value {
        json!({ "chain": { "family": "ip", "table": table, "name": name, "handle": 1 } })
    }

    fn hook(table: &str, name: &str, policy: &str) -> Value {
        json!({ "chain": { "family": "ip", "table": table, "name": name, "handle": 2, "type": "filter",
            "hook": name.to_lowercase(), "prio": 0, "policy": policy } })
    }

    fn rule(table: &str, chain: &str, handle: u32, to: &str) -> Value {
        let jump = json!([{ "xt": null }, { "jump": { "target": to } }]);
        json!({ "rule": { "family": "ip", "table": table, "chain": chain, "handle": handle, "expr": jump } })
    }

    #[test]
    fn only_named_chains_go_and_the_rules_that_lead_to_them() {
        let ruleset = json!({ "nftables": [
            { "metainfo": {} },
            chain("filter", "CILIUM_INPUT"), hook("filter", "INPUT", "drop"),
            rule("filter", "INPUT", 7, "CILIUM_INPUT"), rule("filter", "INPUT", 8, "ufw-before"),
            rule("filter", "CILIUM_INPUT", 9, "CILIUM_INPUT"),
            chain("filter", "ufw-before"),
        ] });
        let (commands, chains) = commands(&ruleset, &["CILIUM_"], None);
        assert_eq!(chains, 1);
        let expected = [
            "delete rule ip filter INPUT handle 7",
            "flush chain ip filter CILIUM_INPUT",
            "delete chain ip filter CILIUM_INPUT",
        ];
        assert_eq!(commands, expected);
    }

    #[test]
    fn what_was_made_for_them_goes_and_what_was_there_before_stays() {
        let whole = |more: Value, seen: &[&str]| {
            let mut entries = vec![
                json!({ "table": { "family": "ip", "name": "nat" } }),
                chain("nat", "CILIUM_POST_nat"),
                hook("nat", "POSTROUTING", "accept"),
                rule("nat", "POSTROUTING", 3, "CILIUM_POST_nat"),
            ];
            entries.extend(more.as_array().cloned().unwrap_or_default());
            let seen: BTreeSet<String> = seen.iter().map(|name| name.to_string()).collect();
            commands(&json!({ "nftables": entries }), &["CILIUM_"], Some(&seen)).0
        };
        let ends = |commands: Vec<String>| commands.last().cloned().unwrap_or_default();
        assert_eq!(ends(whole(json!([]), &[])), "delete table ip nat");
        assert_eq!(ends(whole(json!([]), &["ip nat"])), "delete chain ip nat POSTROUTING");
        let own = "delete chain ip nat CILIUM_POST_nat";
        assert_eq!(ends(whole(json!([]), &["ip nat", "ip nat POSTROUTING"])), own);
        assert_eq!(ends(whole(json!([rule("nat", "POSTROUTING", 4, "mine")]), &[])), own);
        let set = json!([{ "set": { "family": "ip", "table": "nat", "name": "s" } }]);
        assert!(!whole(set, &[]).iter().any(|command| command.contains("delete table")));
        let others = json!({ "nftables": [hook("filter", "INPUT", "accept")] });
        assert_eq!(commands(&others, &["CILIUM_"], None), (vec![], 0));
    }
}
