//! Kernel modules: on disk for the running kernel, loaded, and wanted at boot.

use std::collections::HashSet;

use super::{Fact, Facts, drop_in, kernel};
use crate::host::{Host, Unreadable, Why};

/// A set of module names, with `_` for `-` as the kernel writes them.
pub type Names = HashSet<Box<str>>;

/// What is known of the modules.
#[derive(Debug)]
pub struct Modules {
    /// Those in `modules.dep` and `modules.builtin` of the running kernel.
    pub on_disk: Fact<Names>,
    /// Those in `/proc/modules`; empty on a kernel without modules.
    pub loaded: Fact<Names>,
    /// Those named by files in `modules-load.d`.
    pub at_boot: Fact<Names>,
}

/// A module, and the option that builds it or builds it in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Module {
    /// As modprobe knows it.
    pub name: &'static str,
    /// As the kernel configuration knows it.
    pub option: &'static str,
}

/// Where a module is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Part of the kernel, or loaded: at hand now.
    Ready,
    /// On disk; whoever needs it can load it.
    Loadable,
    /// The running kernel does not have it.
    Absent,
}

impl Facts {
    /// Where a module is for the running kernel.
    pub fn module(&self, module: Module) -> Fact<Presence> {
        let holds = |names: &Fact<Names>| matches!(names, Ok(names) if names.contains(module.name));
        let config = self.kernel_config.as_ref();
        let option = config.map(|config| config.value(module.option));
        if holds(&self.modules.loaded) || option == Ok(Some("y")) {
            return Ok(Presence::Ready);
        }
        if let Ok(config) = config
            && !config.is_set("CONFIG_MODULES")
        {
            return Ok(Presence::Absent);
        }
        let on_disk = self.modules.on_disk.as_ref()?;
        Ok(if on_disk.contains(module.name) { Presence::Loadable } else { Presence::Absent })
    }
}

pub(super) fn read(host: &Host) -> Modules {
    Modules { on_disk: on_disk(host), loaded: loaded(host), at_boot: at_boot(host) }
}

fn on_disk(host: &Host) -> Fact<Names> {
    let directory = format!("/lib/modules/{}", kernel::release(host)?);
    let path = format!("{directory}/modules.dep");
    let gone = || Unreadable { path: path.clone(), why: Why::Missing };
    let dep = host.text_if_present(&path)?.ok_or_else(gone)?;
    let built_in = host.text(&format!("{directory}/modules.builtin"))?;
    let names: Names = files(&dep).chain(files(&built_in)).collect();
    if names.is_empty() {
        return Err(Unreadable::malformed(path, "lines such as kernel/net/ipv4/ip_tunnel.ko:"));
    }
    Ok(names)
}

/// Both lists hold one module file a line, `modules.dep` with its dependencies after a colon.
fn files(list: &str) -> impl Iterator<Item = Box<str>> {
    list.lines().filter_map(|line| {
        let file = line.split(':').next()?.rsplit('/').next()?;
        let name = &file[..file.find(".ko")?];
        Some(kernel_spelling(name))
    })
}

fn loaded(host: &Host) -> Fact<Names> {
    let list = host.text_if_present("/proc/modules")?.unwrap_or_default();
    Ok(list.lines().filter_map(|line| line.split(' ').next()).map(kernel_spelling).collect())
}

/// modules-load.d(5): a file in `/etc` hides the file of the same name in `/run` and `/usr/lib`.
fn at_boot(host: &Host) -> Fact<Names> {
    let mut names = Names::new();
    for text in drop_in::texts(host, "modules-load.d", &["/etc", "/run", "/usr/lib"])? {
        names.extend(
            text.lines()
                .map(str::trim)
                .filter(|line| !line.is_empty() && !line.starts_with(['#', ';']))
                .map(kernel_spelling),
        );
    }
    Ok(names)
}

fn kernel_spelling(name: &str) -> Box<str> {
    name.replace('-', "_").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_lists_name_files_packed_or_not() {
        let dep = "kernel/drivers/net/vxlan/vxlan.ko.xz: kernel/net/ipv4/udp_tunnel.ko.xz\n\
                   kernel/net/netfilter/xt_TPROXY.ko:\n\
                   kernel/drivers/md/dm-crypt.ko.zst: kernel/drivers/md/dm-mod.ko.zst\n\
                   garbage\n";
        let names: Vec<_> = files(dep).collect();
        assert_eq!(names, ["vxlan".into(), "xt_TPROXY".into(), Box::<str>::from("dm_crypt")]);
    }
}
