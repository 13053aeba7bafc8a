//! The running kernel: `/proc/sys/kernel/osrelease`, its architecture, and that of the userland.

use super::Fact;
use super::kernel_config::KernelConfig;
use crate::host::{Host, Unreadable};

/// What runs.
#[derive(Debug)]
pub struct Kernel {
    /// The release, as `uname -r` prints it.
    pub release: Fact<String>,
    /// The machine of the kernel: "aarch64", "x86_64", ...
    pub machine: Fact<String>,
    /// The machine that programs are built for.
    pub userland: Fact<&'static str>,
}

/// Major and minor of a release.
pub type Version = (u32, u32);

impl Kernel {
    /// Major and minor of the running kernel.
    pub fn version(&self) -> Fact<Version> {
        version(self.release.as_ref()?)
            .ok_or_else(|| Unreadable::malformed(OSRELEASE, "a version such as 6.12"))
    }
}

const OSRELEASE: &str = "/proc/sys/kernel/osrelease";
const SHELL: &str = "/bin/sh";

pub(super) fn read(host: &Host, config: &Fact<KernelConfig>) -> Kernel {
    // The file is new in 6.1; an older kernel's configuration names the architecture.
    let machine = host.text("/proc/sys/kernel/arch").map(|text| text.trim().to_string()).or_else(|missing| {
        let config = config.as_ref().map_err(|_| &missing)?;
        let known = [("CONFIG_ARM64", "aarch64"), ("CONFIG_X86_64", "x86_64")];
        known
            .iter()
            .find(|(option, _)| config.is_set(option))
            .map(|(_, machine)| machine.to_string())
            .ok_or(missing)
    });
    Kernel {
        release: release(host),
        machine,
        userland: host.head(SHELL, 20).and_then(|head| {
            machine_of_program(&head).ok_or_else(|| Unreadable::malformed(SHELL, "a program (ELF)"))
        }),
    }
}

/// The running kernel's release, which names its files below `/boot` and `/lib/modules`.
pub(super) fn release(host: &Host) -> Fact<String> {
    let release = host.text(OSRELEASE)?.trim().to_string();
    // It becomes part of paths.
    let plain = !release.is_empty() && release.chars().all(|c| c.is_ascii_graphic() && c != '/');
    plain.then_some(release).ok_or_else(|| Unreadable::malformed(OSRELEASE, "a version such as 6.12"))
}

fn version(release: &str) -> Option<Version> {
    let mut numbers = release.split(['.', '-', '+', '~', '_']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// elf(5): `e_machine` is a 16-bit number at offset 18 in the file's byte order.
fn machine_of_program(head: &[u8]) -> Option<&'static str> {
    let head: &[u8; 20] = head.try_into().ok()?;
    if !head.starts_with(b"\x7fELF") {
        return None;
    }
    let number = [head[18], head[19]];
    let machine = if head[5] == 2 { u16::from_be_bytes(number) } else { u16::from_le_bytes(number) };
    Some(match machine {
        3 => "i386",
        40 => "arm",
        62 => "x86_64",
        183 => "aarch64",
        243 => "riscv",
        _ => "another machine",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_every_distribution_give_major_and_minor() {
        for (release, expected) in [
            ("6.12.75+rpt-rpi-2712", Some((6, 12))),
            ("6.1.0-50-cloud-amd64", Some((6, 1))),
            ("5.15.0-1063-raspi", Some((5, 15))),
            ("6.18-rc3", Some((6, 18))),
            ("7.2", Some((7, 2))),
            ("kernel", None),
            ("", None),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
    }

    #[test]
    fn the_machine_of_a_program_stands_in_its_head() {
        let mut head = *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\xb7\0";
        assert_eq!(machine_of_program(&head), Some("aarch64"));
        head[18] = 40;
        assert_eq!(machine_of_program(&head), Some("arm"));
        assert_eq!(machine_of_program(b"#!/bin/sh\n"), None);
        assert_eq!(machine_of_program(b"#!/bin/something else"), None);
    }
}
