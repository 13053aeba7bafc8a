//! The controllers of the unified hierarchy: `/sys/fs/cgroup/cgroup.controllers`.
//!
//! `/proc/cgroups` is not asked: from 6.12 it has no memory row on a Raspberry Pi even when memory is on.

use super::Fact;
use crate::host::Host;

/// Names of the controllers that are on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controllers(Vec<String>);

impl Controllers {
    /// Whether a controller is on.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|other| other == name)
    }

    /// All of them, in the kernel's order.
    pub fn names(&self) -> &[String] {
        &self.0
    }
}

pub(super) fn read(host: &Host) -> Fact<Option<Controllers>> {
    let list = host.text_if_present("/sys/fs/cgroup/cgroup.controllers")?;
    Ok(list.map(|list| Controllers(list.split_whitespace().map(String::from).collect())))
}
