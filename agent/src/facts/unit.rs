//! Which services are enabled (links in `/etc/systemd/system/*.wants`) or run (their cgroup exists).
//!
//! Both can be seen without asking systemd, so also on a captured tree.

use super::Fact;
use crate::host::Host;

/// The services that were looked for.
#[derive(Debug)]
pub struct Units {
    enabled: Fact<Vec<String>>,
    /// Those that a link to /dev/null keeps from being started.
    masked: Fact<Vec<String>>,
    running: Fact<Vec<String>>,
}

impl Units {
    /// Whether a unit is enabled or runs now. `name` without `.service`; of other kinds with its ending.
    ///
    /// Enabled is proof; not enabled and no word about what runs is not known.
    pub fn uses(&self, name: &str) -> Fact<bool> {
        let names = |units: &[String]| {
            units.iter().any(|unit| unit == name || unit.strip_suffix(".service") == Some(name))
        };
        if !self.is_masked(name) && matches!(&self.enabled, Ok(enabled) if names(enabled)) {
            return Ok(true);
        }
        let running = names(self.running.as_ref()?);
        self.enabled.as_ref()?;
        Ok(running)
    }

    /// Whether a unit is known to be kept from being started. `name` as in [`Units::uses`].
    pub fn is_masked(&self, name: &str) -> bool {
        let names = |unit: &String| unit == name || unit.strip_suffix(".service") == Some(name);
        matches!(&self.masked, Ok(masked) if masked.iter().any(names))
    }
}

pub(super) fn read(host: &Host) -> Units {
    Units { enabled: enabled(host), masked: masked(host), running: running(host) }
}

const DIRECTORY: &str = "/etc/systemd/system";

fn masked(host: &Host) -> Fact<Vec<String>> {
    let mut units = host.list_if_present(DIRECTORY)?;
    units.retain(|unit| host.link(&format!("{DIRECTORY}/{unit}")).as_deref() == Some("/dev/null"));
    Ok(units)
}

fn enabled(host: &Host) -> Fact<Vec<String>> {
    let mut units = Vec::new();
    for name in host.list_if_present(DIRECTORY)? {
        if name.ends_with(".wants") || name.ends_with(".requires") {
            units.extend(host.list(&format!("{DIRECTORY}/{name}"))?);
        }
    }
    Ok(units)
}

/// systemd keeps one cgroup a running service, in the unified hierarchy or in its own named one.
fn running(host: &Host) -> Fact<Vec<String>> {
    let unified = host.list("/sys/fs/cgroup/system.slice");
    unified.or_else(|_| host.list_if_present("/sys/fs/cgroup/systemd/system.slice"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Unreadable, Why};

    #[test]
    fn a_service_is_used_when_enabled_or_running() {
        let list = |names: &[&str]| Ok(names.iter().map(|name| name.to_string()).collect());
        let units = Units {
            enabled: list(&["ssh.service", "fstrim.timer", "cups.service"]),
            masked: list(&["cups.service"]),
            running: list(&["dhcpcd.service"]),
        };
        assert_eq!(units.uses("ssh"), Ok(true));
        assert_eq!(units.uses("dhcpcd"), Ok(true));
        assert_eq!(units.uses("NetworkManager"), Ok(false));
        assert_eq!(units.uses("fstrim.timer"), Ok(true));
        assert_eq!(units.uses("cups"), Ok(false), "masked");
    }

    #[test]
    fn without_a_word_about_what_runs_only_enabled_is_known() {
        let running = Err(Unreadable { path: "/sys/fs/cgroup/system.slice".into(), why: Why::NotCaptured });
        let units = Units { enabled: Ok(vec!["ssh.service".into()]), masked: Ok(vec![]), running };
        assert_eq!(units.uses("ssh"), Ok(true));
        assert!(units.uses("dhcpcd").is_err());
    }
}
