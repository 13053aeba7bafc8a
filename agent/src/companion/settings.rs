//! Which of the kernel's settings changed, and who wrote them. Their values are compared at once when the kernel tells that one is
//! written, by whatever mount of proc, and every ten seconds, because some are set otherwise. Where it does not tell (before
//! Linux 6.0), they are compared once a period, and nobody knows who it was.

use std::{
    collections::BTreeMap,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use wire::written::visible;

use crate::{
    datapath::{SysctlProgram, Writer},
    facts::sysctl,
    host::{Host, cgroup, ready::Ready, watch::Settings},
};

/// How long after a write its value may be seen for the first time.
const LATE: Duration = Duration::from_secs(3);
/// Writes that are remembered: a flood of them names nobody.
const MOST: usize = 256;

/// A setting of the kernel that has another value than before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Its name, with dots.
    pub setting: String,
    /// Its value.
    pub value: String,
    /// Who wrote it: program, number, and unit if that runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writer: Option<String>,
}

/// The settings of which somebody wants to know.
pub(super) struct Watched {
    values: Settings,
    program: Result<(SysctlProgram, Ready), String>,
    /// Writes of late, of all network namespaces, whether they took or not.
    writers: Vec<(Instant, Writer)>,
}

impl Watched {
    /// Needs a tokio runtime.
    pub(super) fn open(host: &Host) -> Self {
        let program = SysctlProgram::attach(host).map_err(|e| e.to_string()).and_then(|program| {
            let ready = Ready::of(program.as_fd()).map_err(|e| e.to_string())?;
            Ok((program, ready))
        });
        let mut watched = Self { values: Settings::default(), program, writers: Vec::new() };
        watched.extend(host);
        watched
    }

    /// Why nobody knows who writes them.
    pub(super) fn blind(&self) -> Option<&str> {
        self.program.as_ref().err().map(String::as_str)
    }

    /// Watches those that came, as with another uplink.
    pub(super) fn extend(&mut self, host: &Host) {
        let before = self.values.paths().count();
        self.values.extend(sysctl::watched(host));
        let both = |path| [Some(path), sysctl::twin(path)].into_iter().flatten();
        if let Ok((program, _)) = &mut self.program
            && self.values.paths().count() != before
            && let Err(why) = self.values.paths().flat_map(both).try_for_each(|path| program.ask(path))
        {
            self.program = Err(why.to_string());
        }
    }

    /// Waits until one was written. It may not have its value yet. Cancel-safe.
    pub(super) async fn written(&self) {
        match &self.program {
            // It ends with the runtime.
            Ok((_, ready)) => drop(ready.happened().await),
            Err(_) => std::future::pending().await,
        }
    }

    /// Those that changed since the last call.
    pub(super) fn changed(&mut self, host: &Host) -> Vec<Change> {
        let now = Instant::now();
        self.writers.retain(|(at, _)| now.duration_since(*at) <= LATE);
        if let Ok((program, _)) = &mut self.program {
            self.writers.extend(program.written().into_iter().map(|writer| (now, writer)));
            self.writers.drain(..self.writers.len().saturating_sub(MOST));
        }
        let mut units = BTreeMap::new();
        let changed = self.values.changed().into_iter();
        let changes = changed.map(|(path, value)| {
            let writer = one(self.writers.iter().map(|(_, writer)| writer), &path, &value).map(|writer| {
                let unit = units.entry(writer.cgroup).or_insert_with(|| cgroup::unit(host, writer.cgroup));
                who(writer, unit.as_deref())
            });
            Change { setting: sysctl::key(&path), value, writer }
        });
        changes.collect()
    }
}

/// The one who gave a setting its value; `None` where several did, one of them perhaps in another network namespace.
fn one<'a>(writers: impl Iterator<Item = &'a Writer>, path: &str, value: &str) -> Option<&'a Writer> {
    let is_it = |writer: &&Writer| {
        (writer.path == path || sysctl::twin(path) == Some(&*writer.path)) && writer.value == value
    };
    let mut writers = writers.filter(is_it);
    let first = writers.next()?;
    writers.all(|writer| writer.pid == first.pid).then_some(first)
}

fn who(writer: &Writer, unit: Option<&str>) -> String {
    let unit = unit.map(|unit| format!(" of {unit}")).unwrap_or_default();
    format!("{} (process {}{unit})", visible(&writer.program), writer.pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(path: &str, value: &str, pid: u32) -> Writer {
        let (path, value) = (path.to_owned(), value.to_owned());
        Writer { path, value, program: "sys\u{1b}ctl".to_owned(), pid, cgroup: 1 }
    }

    #[test]
    fn who_wrote_is_named_as_far_as_it_is_known() {
        let writer = writer("", "", 7);
        let named = r"sys\u{1b}ctl (process 7";
        assert_eq!(who(&writer, Some("cron.service")), format!("{named} of cron.service)"));
        assert_eq!(who(&writer, None), format!("{named})"));
    }

    #[test]
    fn only_who_gave_it_this_value_and_nobody_else_did_is_named() {
        const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
        const ALL: &str = "/proc/sys/net/ipv4/conf/all/forwarding";
        let named = |writers: &[Writer]| one(writers.iter(), FORWARD, "0").map(|writer| writer.pid);
        let (good, bad) = (|pid| writer(FORWARD, "1", pid), |pid| writer(FORWARD, "0", pid));
        assert_eq!(named(&[good(1), bad(2), good(3)]), Some(2));
        assert_eq!(named(&[writer(ALL, "0", 4), bad(4)]), Some(4));
        assert_eq!(named(&[bad(5), bad(6)]), None);
        assert_eq!(named(&[writer("/proc/sys/kernel/panic", "0", 7), writer(FORWARD, "", 8)]), None);
    }

    #[tokio::test]
    #[allow(clippy::disallowed_methods, reason = "the test writes the file that is compared")]
    async fn a_value_is_compared_also_where_the_kernel_does_not_tell() {
        let file = std::env::temp_dir().join(format!("bramble-watched-{}", std::process::id()));
        let write = |value: &str| std::fs::write(&file, value).unwrap();
        write("0\n");
        let host = Host::live().unwrap();
        let mut watched =
            Watched { values: Settings::default(), program: Err("a test".to_owned()), writers: Vec::new() };
        watched.values.extend([file.display().to_string()]);
        assert_eq!(watched.changed(&host), []);
        write("1\n");
        let changes = watched.changed(&host);
        assert!(matches!(&changes[..], [Change { value, writer: None, .. }] if value == "1"), "{changes:?}");
        assert_eq!(watched.changed(&host), []);
        std::fs::remove_file(&file).unwrap();
    }
}
