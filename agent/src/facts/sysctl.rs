//! Kernel settings as they are now: `/proc/sys`.

use std::collections::BTreeMap;

use super::Fact;
use crate::host::{Host, Unreadable, Why};

/// The settings that requirements ask about.
const KEYS: &[&str] = &[
    "fs.inotify.max_user_instances",
    "fs.inotify.max_user_watches",
    "kernel.keys.root_maxbytes",
    "kernel.keys.root_maxkeys",
    "kernel.panic",
    "kernel.panic_on_oops",
    "net.core.bpf_jit_enable",
    "net.ipv4.conf.all.forwarding",
    "net.ipv4.conf.default.forwarding",
    "net.ipv4.ip_forward",
    "net.ipv6.conf.all.disable_ipv6",
    "net.ipv6.conf.all.forwarding",
    "net.ipv6.conf.default.forwarding",
    "net.netfilter.nf_conntrack_max",
    "vm.overcommit_memory",
    "vm.panic_on_oom",
];

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
pub fn path(key: &str) -> String {
    format!("/proc/sys/{}", key.replace('.', "/"))
}

pub(super) fn read(host: &Host) -> Sysctls {
    let value = |key| host.text_if_present(&path(key)).map(|text| text.map(|text| text.trim().to_string()));
    Sysctls { values: KEYS.iter().map(|key| (*key, value(key))).collect(), rp_filter: rp_filter(host) }
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
