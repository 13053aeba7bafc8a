//! What other networks and tools left on the node: `agent/data/leftovers.csv`, looked for and not touched.

use std::sync::LazyLock;

use super::drop_in::glob;
use super::{Fact, Facts, table};
use crate::host::netfilter::Chains;
use crate::host::{Host, Unreadable};

/// A thing to look for.
#[derive(Debug, Clone, Copy)]
pub struct Trace {
    /// Who leaves it.
    pub source: &'static str,
    /// What it is: "link", "file", "plugin", "port", "pod", "ipvs", "chain", "pin" or "rule".
    pub kind: &'static str,
    /// Its name, perhaps with `*`.
    pub item: &'static str,
    /// What to know before it is removed.
    pub remark: &'static str,
}

/// All that is looked for.
pub static TABLE: LazyLock<Vec<Trace>> = LazyLock::new(|| {
    table::rows(include_str!("../../data/leftovers.csv"), ["source", "kind", "item", "remark"])
        .map(|[source, kind, item, remark]| Trace { source, kind, item, remark })
        .collect()
});

/// Whose traces a requirement of this id looks for.
pub fn sources_of(requirement: &str) -> &'static [&'static str] {
    match requirement {
        "leftover-flannel" => &["flannel"],
        "leftover-kube-proxy" => &["kube-proxy"],
        "leftover-network-policy" => &["network-policy"],
        "leftover-announcers" => &["metallb", "servicelb"],
        "leftover-linkerd" => &["linkerd"],
        "leftover-argocd" => &["argocd"],
        "leftover-cilium" => &["cilium"],
        _ => &[],
    }
}

/// What only this part of the facts reads.
#[derive(Debug)]
pub struct Leftovers {
    /// What stands at each path, by its whole path.
    files: Vec<(&'static str, Fact<Vec<String>>)>,
    pods: Fact<Vec<String>>,
    ipvs: Fact<bool>,
    /// Chains of the packet filter, by both back ends.
    chains: Fact<Chains>,
}

pub(super) fn read(host: &Host) -> Leftovers {
    let files = TABLE.iter().filter(|trace| ["file", "pin"].contains(&trace.kind));
    Leftovers {
        files: files.map(|trace| (trace.item, standing(host, trace.item))).collect(),
        pods: host.list_if_present("/var/log/pods"),
        ipvs: host.text_if_present("/proc/net/ip_vs").map(|table| {
            let services = |line: &str| ["TCP ", "UDP ", "SCTP ", "FWM "].iter().any(|p| line.starts_with(p));
            table.is_some_and(|table| table.lines().any(services))
        }),
        chains: host.chains(),
    }
}

/// The paths that match one whose last part may hold `*` and `?`.
fn standing(host: &Host, item: &str) -> Fact<Vec<String>> {
    let (directory, name) = item.rsplit_once('/').unwrap_or(("", item));
    if !name.contains(['*', '?']) {
        return Ok(if host.present(item)? { vec![item.to_owned()] } else { Vec::new() });
    }
    let names = host.list_if_present(directory)?.into_iter();
    Ok(names.filter(|found| glob(name, found)).map(|found| format!("{directory}/{found}")).collect())
}

impl Trace {
    /// Whether only K3s, where it has run, has it made.
    fn is_of_k3s(&self) -> bool {
        ["chain", "pin", "rule"].contains(&self.kind)
    }

    /// What of it is there, by name.
    fn found(&self, facts: &Facts) -> Fact<Vec<String>> {
        let left = &facts.leftovers;
        let matching = |names: &[String]| -> Vec<String> {
            names.iter().filter(|name| glob(self.item, name)).cloned().collect()
        };
        let once = |found: bool, name: &str| if found { vec![name.to_string()] } else { Vec::new() };
        Ok(match self.kind {
            "link" => matching(facts.links.names.as_ref()?),
            "file" | "pin" => match left.files.iter().find(|(item, _)| *item == self.item) {
                Some((_, there)) => there.as_ref()?.clone(),
                None => Vec::new(),
            },
            "rule" => {
                let rules = &facts.rules;
                let v6 = rules.v6.as_ref()?.iter().flat_map(|policy| &policy.rules);
                let led =
                    rules.v4.as_ref()?.rules.iter().chain(v6).any(|rule| rule.table.to_string() == self.item);
                once(led, &format!("a rule that leads to table {}", self.item))
            }
            "plugin" => facts
                .cni
                .as_ref()?
                .iter()
                .filter(|network| network.active && network.plugins.iter().any(|plugin| plugin == self.item))
                .map(|network| format!("{} in {}", self.item, network.path))
                .collect(),
            "port" => {
                let held = facts.listeners.as_ref()?.iter().any(|one| one.port.to_string() == self.item);
                once(held, &format!("a listener on {}", self.item))
            }
            "pod" => {
                let pods = matching(left.pods.as_ref()?);
                // A directory is namespace_name_uid.
                pods.iter()
                    .map(|pod| format!("pod {}", pod.rsplit_once('_').map_or(&**pod, |(name, _)| name)))
                    .collect()
            }
            "ipvs" => once(*left.ipvs.as_ref()?, "services in the IPVS table"),
            _ => left
                .chains
                .as_ref()?
                .names()
                .filter(|name| glob(self.item, name))
                .map(|name| format!("chain {name}"))
                .collect(),
        })
    }
}

/// What is left of one source, and what could not be looked at.
#[derive(Debug, Default)]
pub struct Left {
    /// By name, at most once each.
    pub found: Vec<String>,
    /// The first that could not be read.
    pub unread: Option<Unreadable>,
}

impl Facts {
    /// What is left of `sources`.
    pub fn left_of(&self, sources: &[&str]) -> Left {
        let mut left = Left::default();
        for trace in TABLE.iter().filter(|trace| sources.contains(&trace.source)) {
            if trace.is_of_k3s() && self.k3s.has_run == Ok(false) {
                continue;
            }
            match trace.found(self) {
                Ok(found) => left.found.extend(found),
                Err(unreadable) if left.unread.is_none() => left.unread = Some(unreadable),
                Err(_) => {}
            }
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_trace_is_of_a_kind_that_is_looked_for() {
        for trace in TABLE.iter() {
            assert!(
                ["link", "file", "plugin", "port", "pod", "ipvs", "chain", "pin", "rule"]
                    .contains(&trace.kind),
                "{trace:?}"
            );
            let id = match trace.source {
                "metallb" | "servicelb" => "leftover-announcers".to_string(),
                source => format!("leftover-{source}"),
            };
            assert!(sources_of(&id).contains(&trace.source), "{trace:?}");
            assert_eq!(["file", "pin"].contains(&trace.kind), trace.item.starts_with('/'), "{trace:?}");
        }
    }
}
