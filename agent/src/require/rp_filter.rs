//! The kernel does not drop pod traffic for coming by another way than the answer would go.
//!
//! What counts on an interface is the larger of its own value and that of "all". Files in sysctl.d matter
//! beside the values of now: udev applies them to each interface that Cilium makes later.

use super::{Area, Finding, Requirement, Verdict};
use crate::change::{Change, SYSCTL_FILE};
use crate::config::cluster::Profile;
use crate::facts::firewall::Ufw;
use crate::facts::sysctl::{RP_FILTER, of_interface};
use crate::facts::{Fact, Facts};

/// Interfaces that share one setting.
struct Group<'a> {
    /// Their name, in a setting.
    pattern: &'a str,
    /// Who is meant, for a person.
    who: String,
    /// A name that stands for those to come.
    stand_in: &'a str,
    /// The least value that drops something: loose filtering (2) on the way out does not, strict (1) drops what comes back
    /// by another node.
    drops: fn(u32) -> bool,
}

pub(super) const REQUIREMENT: Requirement = Requirement {
    id: "rp-filter",
    area: Area::Network,
    profiles: &[Profile::Cilium],
    title: "reverse path filtering lets pod traffic pass",
    why: "packets of pods vanish without a trace, often only after an upgrade of the distribution: Debian 13 and \
          Ubuntu switch the filter on for every new interface",
    source: "cilium/cilium pkg/datapath/loader/base.go, tools/sysctlfix; Debian linux-sysctl-defaults 50-default.conf",
    fix: "bramble sets rp_filter to 0 for all, for the way out and for Cilium's interfaces, each only where it is \
          wrong; ufw's own settings, or a file that sorts later, a person changes",
    catalogue: &["NET-004"],
    judge: |facts, _| {
        let any = |value| value != 0;
        let mut groups = vec![
            Group { pattern: "all", who: "all".into(), stand_in: "all", drops: any },
            Group { pattern: "lxc*", who: "new lxc* interfaces".into(), stand_in: "lxc0", drops: any },
            Group {
                pattern: "cilium_*",
                who: "new cilium_* interfaces".into(),
                stand_in: "cilium_host",
                drops: any,
            },
        ];
        let uplink = facts.routes.uplink();
        if let Ok(Some(uplink)) = &uplink {
            let who = format!("{uplink}, the way out,");
            groups.push(Group { pattern: uplink, who, stand_in: uplink, drops: |value| value == 1 });
        }
        judge(facts, &groups, uplink.map(drop))
    },
};

/// Judges the values of now, and what files make of them at the next boot; `whole` says whether all groups are known.
fn judge(facts: &Facts, groups: &[Group<'_>], whole: Fact<()>) -> Verdict {
    let live = facts.sysctl.rp_filter.as_ref()?;
    let files = facts.sysctl_files.as_ref()?;
    // Where nobody can tell whether ufw sets it, nobody can tell what a change would come to.
    let ufw = ufw(facts)?;
    let (mut wrong, mut changes) = (Vec::new(), Vec::new());
    for Group { pattern, who, stand_in, drops } in groups {
        let key = |interface: &str| of_interface(RP_FILTER, interface);
        let is_bad = |value: &str| value.parse().is_ok_and(drops);
        let said = files.said(&key(stand_in));
        if let Some(said) = said.filter(|said| is_bad(said.value) && said.beats(SYSCTL_FILE)) {
            return Finding::blocked(
                format!("{} gives {who} rp_filter {}, after every file of bramble's", said.path, said.value),
                format!("give that file a name that sorts before {SYSCTL_FILE}, or take the line out"),
            );
        }
        // New interfaces get what sysctl.d says: udev sets it after ufw did.
        let is_there = live.contains_key(*stand_in);
        let by_ufw = ufw.and_then(|ufw| ufw.settings.said(&key(stand_in)));
        if let Some(said) = by_ufw.filter(|said| is_there && is_bad(said.value)) {
            return Finding::blocked(
                format!("{} gives {who} rp_filter {} whenever ufw starts", said.path, said.value),
                format!("set it to 0 there: sudo nano {}; then sudo ufw reload", said.path),
            );
        }
        let standing = live.iter().filter(|(interface, _)| glob(pattern, interface));
        // An interface that is there keeps what it has; a new one begins with "default".
        let later = match said {
            Some(said) => said.value.to_owned(),
            None if is_there => "0".to_owned(),
            None => live.get("default").copied().unwrap_or(0).to_string(),
        };
        if let Some((interface, value)) = standing.into_iter().find(|(_, value)| drops(**value)) {
            let strict = if *value == 1 { " (strict)" } else { "" };
            wrong.push(format!("{} is {value}{strict}", key(interface)));
        } else if is_bad(&later) {
            let by = said.map(|said| format!(" at the next boot ({})", said.path)).unwrap_or_default();
            wrong.push(format!("{who} get rp_filter {later}{by}"));
        } else {
            continue;
        }
        changes.push(Change::Sysctl { key: key(pattern).into(), value: "0".into() });
    }
    if !changes.is_empty() {
        return Finding::unmet(wrong.join(", "), changes);
    }
    whole?;
    Finding::met("off for all, and for the interfaces Cilium makes")
}

/// ufw, where it is in use.
fn ufw(facts: &Facts) -> Fact<Option<&Ufw>> {
    match facts.units.uses("ufw")? {
        true => Ok(facts.firewalls.ufw.as_ref()?.as_ref()),
        false => Ok(None),
    }
}

/// Whether an interface is of a pattern: its name, or how it begins.
fn glob(pattern: &str, interface: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => interface.starts_with(beginning),
        None => interface == pattern,
    }
}
