//! What somebody could find changed on a machine, as lines to be compared.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use testbed::machine::Machine;

/// Files with owner, mode, link and sum; without receipts, and without what a running system and our own daemons write by
/// themselves.
const FILES: &str = "cd /; find etc usr/local opt var/lib var/log/pods var/log/containers run srv -xdev \
                     \\( -path 'var/lib/bramble*' -o -path var/lib/systemd -o -path run/systemd -o -path run/udev \
                     -o -path run/log -o -path run/credentials -o -path run/bramble \\) -prune -o -printf '%M %U:%G %p %l\\n' 2>/dev/null | sort; \
                     find etc usr/local -type f -exec sha256sum {} + | sort -k 2";
/// Links, addresses, rules, routes, the packet filter, mounts, namespaces, units, and processes that outlive a unit.
const REST: &str = "ip -brief link | awk '{ print $1 }'; ip -o address | grep -v fe80: | awk '{ print $2, $4 }'; ip rule; ip -6 rule; \
                    ip route show table all | grep -v -e fe80: -e ff00:; nft --stateless list ruleset; \
                    awk '{ print $2, $3 }' /proc/mounts | grep -v -e /run/credentials; ls /run/netns 2>/dev/null; \
                    systemctl list-unit-files --no-legend --no-pager 'k3s*' 'kube*'; pgrep -af '^/(var/lib/rancher|usr/local/bin)'; true";

/// The files alone.
pub(crate) fn files(machine: &mut impl Machine) -> Result<String> {
    machine.run(FILES)?.good()
}

/// All of it.
pub(crate) fn whole(machine: &mut impl Machine) -> Result<String> {
    Ok(files(machine)? + "\n" + &machine.run(REST)?.good()?)
}

/// Lines that only one of two has, with - or + before them.
pub(crate) fn differences(before: &str, after: &str) -> Vec<String> {
    let lines = |text: &str| -> BTreeSet<String> { text.lines().map(str::to_owned).collect() };
    let (before, after) = (lines(before), lines(after));
    let only = |sign: &str, here: &BTreeSet<String>, there: &BTreeSet<String>| -> Vec<String> {
        here.difference(there).map(|line| format!("{sign} {line}")).collect()
    };
    [only("-", &before, &after), only("+", &after, &before)].concat()
}

/// The machine is as it was before.
pub(crate) fn is_as_before(machine: &mut impl Machine, before: &str) -> Result<()> {
    let differences = differences(before, &whole(machine)?);
    ensure!(differences.is_empty(), "it is not as it was: {differences:#?}");
    Ok(())
}
