//! Which of the kernel's settings changed, and who wrote them: the kernel tells, by whatever mount of proc it is done. Where it
//! does not (before Linux 6.0), their values are compared once a period, and nobody knows who it was.

use std::{collections::BTreeMap, os::fd::AsFd};

use serde::{Deserialize, Serialize};

use crate::{
    datapath::{SysctlProgram, Writer},
    facts::sysctl,
    host::{Host, cgroup, ready::Ready, watch::Settings},
};

/// A setting of the kernel that has another value than before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Its name, with dots.
    pub setting: String,
    /// Who wrote it: program, number, and unit if that runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writer: Option<String>,
}

/// The settings of which somebody wants to know.
pub(super) struct Watched {
    values: Settings,
    program: Result<(SysctlProgram, Ready), String>,
}

impl Watched {
    /// Needs a tokio runtime.
    pub(super) fn open(host: &Host) -> Self {
        let program = SysctlProgram::attach(host).map_err(|e| e.to_string()).and_then(|program| {
            let ready = Ready::of(program.as_fd()).map_err(|e| e.to_string())?;
            Ok((program, ready))
        });
        let mut watched = Self { values: Settings::default(), program };
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
        if let Ok((program, _)) = &mut self.program
            && self.values.paths().count() != before
            && let Err(why) = self.values.paths().try_for_each(|path| program.ask(path))
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

    /// Those that changed since the last call: all that did, or none before somebody wrote.
    pub(super) fn changed(&mut self, host: &Host) -> Vec<Change> {
        let writers: BTreeMap<String, Writer> = match &mut self.program {
            Ok((program, _)) => program.written().into_iter().map(|w| (w.path.clone(), w)).collect(),
            Err(_) => BTreeMap::new(),
        };
        if writers.is_empty() && self.program.is_ok() {
            return Vec::new();
        }
        let changed = self.values.changed().into_iter();
        changed
            .map(|path| Change {
                setting: sysctl::key(&path),
                writer: writers.get(&path).map(|writer| who(writer, cgroup::unit(host, writer.cgroup))),
            })
            .collect()
    }
}

fn who(writer: &Writer, unit: Option<String>) -> String {
    let unit = unit.map(|unit| format!(" of {unit}")).unwrap_or_default();
    format!("{} (process {}{unit})", writer.program, writer.pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wrote_is_named_as_far_as_it_is_known() {
        let writer = Writer { path: String::new(), program: "sysctl".to_owned(), pid: 7, cgroup: 1 };
        assert_eq!(who(&writer, Some("cron.service".to_owned())), "sysctl (process 7 of cron.service)");
        assert_eq!(who(&writer, None), "sysctl (process 7)");
    }
}
