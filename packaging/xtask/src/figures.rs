//! `cargo xtask machine figures`: what the packages cost a machine and how hard their units are, as its own kernel, dpkg and
//! systemd tell it. The node is alone and has no broker.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;
use testbed::machine::Machine;

/// How long the daemons live before their memory is looked at: first passes are over then.
const SETTLED: Duration = Duration::from_secs(120);
/// Those that an installation starts.
const DAEMONS: [&str; 3] = ["bramble", "bramble-probe", "bramble-aggregator"];
/// Those that run when they are asked for, or when their owner wants them.
const OTHERS: [&str; 5] =
    ["bramble-kubernetes", "bramble-obey@x", "bramble-prepare", "bramble-join", "bramble-failed@x"];

/// All figures of one machine.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    machine: String,
    packages: Vec<Package>,
    daemons: Vec<Daemon>,
    /// `systemd-analyze security` of every unit.
    exposure: Vec<Exposure>,
}

#[derive(Debug, Serialize)]
struct Package {
    name: String,
    installed_kib: u64,
}

#[derive(Debug, Serialize)]
struct Daemon {
    unit: &'static str,
    /// From the start of its process until it said that it is ready.
    ready_ms: f64,
    /// Two minutes later.
    resident_kib: u64,
}

#[derive(Debug, Serialize)]
struct Exposure {
    unit: &'static str,
    level: f64,
}

impl Figures {
    /// Takes them of a machine in which the packages were just installed; needs two minutes.
    ///
    /// # Errors
    ///
    /// The machine does not answer, or a daemon does not run.
    pub(crate) fn of(machine: &mut dyn Machine) -> Result<Self> {
        sleep(SETTLED);
        let list = machine
            .run("dpkg-query --show --showformat='${Package} ${Installed-Size}\\n' 'bramble*'")?
            .good()?;
        let packages = list.lines().map(|line| {
            let (name, size) = line.split_once(' ').context("a name and a size")?;
            Ok(Package { name: name.to_owned(), installed_kib: size.parse().context("a size in KiB")? })
        });
        let packages = packages.collect::<Result<_>>()?;
        let daemons = DAEMONS.into_iter().map(|unit| Daemon::of(machine, unit)).collect::<Result<_>>()?;
        let all = DAEMONS.into_iter().chain(OTHERS);
        let exposure = all.map(|unit| Exposure::of(machine, unit)).collect::<Result<_>>()?;
        Ok(Self { machine: machine.name().to_owned(), packages, daemons, exposure })
    }

    /// A table for a person.
    pub(crate) fn print(&self) {
        for package in &self.packages {
            println!("{:20} {:7.1} MiB installed", package.name, package.installed_kib as f64 / 1024.0);
        }
        for daemon in &self.daemons {
            let (ready, resident) = (daemon.ready_ms, daemon.resident_kib as f64 / 1024.0);
            println!(
                "{:20} {ready:7.0} ms to READY, {resident:.1} MiB resident after two minutes",
                daemon.unit
            );
        }
        for exposure in &self.exposure {
            println!("{:20} {:7.1} exposure, as systemd-analyze counts it", exposure.unit, exposure.level);
        }
    }
}

impl Daemon {
    fn of(machine: &mut dyn Machine, unit: &'static str) -> Result<Self> {
        let mut number = |command: &str| -> Result<u64> {
            let said = machine.run(command)?.good()?;
            said.parse().with_context(|| format!("{command} says {said:?} of {unit}"))
        };
        let mut property = |name: &str| number(&format!("systemctl show --value --property={name} {unit}"));
        let (began, ready) =
            (property("ExecMainStartTimestampMonotonic")?, property("ActiveEnterTimestampMonotonic")?);
        let pid = property("MainPID")?;
        Ok(Self {
            unit,
            ready_ms: (ready - began) as f64 / 1000.0,
            resident_kib: number(&format!("awk '/^VmRSS:/ {{ print $2 }}' /proc/{pid}/status"))?,
        })
    }
}

impl Exposure {
    fn of(machine: &mut dyn Machine, unit: &'static str) -> Result<Self> {
        let table = machine.run(&format!("systemd-analyze security --no-pager {unit}.service"))?.good()?;
        let (_, level) = table.rsplit_once(": ").with_context(|| table.clone())?;
        let level = level.split_whitespace().next().unwrap_or_default();
        Ok(Self { unit, level: level.parse().with_context(|| format!("{level:?} is no level"))? })
    }
}
