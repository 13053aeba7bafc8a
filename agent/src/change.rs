//! One edit of a host, as data: the closed list of all that bramble may ever do to a machine.
//!
//! What `Display` prints is the line that a person approves. Nothing here reads or writes.

use std::borrow::Cow;
use std::fmt;

/// The file for kernel settings. It sorts behind those of the distributions and before Cilium's own.
pub const SYSCTL_FILE: &str = "/etc/sysctl.d/99-zz-bramble.conf";
/// The file for modules that are loaded at boot.
pub const MODULES_FILE: &str = "/etc/modules-load.d/bramble.conf";

/// A text that is known when bramble is built, or only when the host was read.
pub type Text = Cow<'static, str>;

/// One edit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Writes a whole file of bramble's own.
    WriteFile {
        /// Where.
        path: Text,
        /// What stands in it afterwards.
        content: Text,
    },
    /// Adds a line at the top of a file that others own: there no section of theirs swallows it.
    AddLine {
        /// Which file.
        path: Text,
        /// The line, without its end.
        line: Text,
    },
    /// Adds one argument at the end of the one line of the boot file; all others stay in order.
    AppendToken {
        /// The boot file.
        path: Text,
        /// The argument.
        token: Text,
    },
    /// Takes one argument out of the boot file.
    RemoveToken {
        /// The boot file.
        path: Text,
        /// The argument.
        token: Text,
    },
    /// Joins the lines of the boot file into the one that the firmware reads.
    JoinLines {
        /// The boot file.
        path: Text,
    },
    /// Adds a setting for all boards at the end of config.txt, where the last word counts. It decides which kernel
    /// boots, so it is for the owner to consent to.
    FirmwareSetting {
        /// The config.txt.
        path: Text,
        /// For instance "kernel".
        key: Text,
        /// The value.
        value: Text,
    },
    /// Sets a kernel setting now and in [`SYSCTL_FILE`].
    Sysctl {
        /// With dots, and a slash for a dot in an interface's name (sysctl.d(5)); may hold patterns such as
        /// `net.ipv4.conf.lxc*.rp_filter`.
        key: Text,
        /// The value.
        value: Text,
    },
    /// Loads modules now, and at boot through [`MODULES_FILE`].
    LoadModules {
        /// As modprobe knows them.
        names: Vec<Text>,
    },
    /// Mounts a kernel file system.
    Mount {
        /// Its type, which is also its source.
        kind: Text,
        /// Where.
        point: Text,
    },
    /// Lets mounts below a point reach other mount namespaces.
    ShareMount {
        /// The mount.
        point: Text,
    },
    /// Enables a unit and starts it.
    EnableUnit {
        /// The unit's name.
        unit: Text,
    },
    /// Stops a unit and keeps it from being started.
    MaskUnit {
        /// The unit's name.
        unit: Text,
    },
    /// Stops using an area of swap, until the next boot.
    SwapOff {
        /// The device or file.
        path: Text,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::WriteFile { path, content } => {
                let lines: Vec<&str> = content.lines().filter(|line| !line.starts_with('#')).collect();
                write!(f, "write {path}: {}", lines.join(" "))
            }
            Change::AddLine { path, line } => write!(f, "add the line `{line}` at the top of {path}"),
            Change::AppendToken { path, token } => {
                write!(f, "add {token} to the line of {path}, in force after a reboot")
            }
            Change::RemoveToken { path, token } => {
                write!(f, "take {token} out of {path}, in force after a reboot")
            }
            Change::JoinLines { path } => {
                write!(f, "join the lines of {path} into one, in force after a reboot")
            }
            Change::FirmwareSetting { path, key, value } => {
                write!(f, "set {key}={value} for [all] at the end of {path}, in force after a reboot")
            }
            Change::Sysctl { key, value } => write!(f, "set {key} = {value}, now and in {SYSCTL_FILE}"),
            Change::LoadModules { names } => {
                write!(f, "load {}, now and by {MODULES_FILE}", names.join(", "))
            }
            Change::Mount { kind, point } => write!(f, "mount {kind} on {point}"),
            Change::ShareMount { point } => write!(f, "make the mount {point} shared"),
            Change::EnableUnit { unit } => write!(f, "enable and start {unit}"),
            Change::MaskUnit { unit } => write!(f, "stop and mask {unit}"),
            Change::SwapOff { path } => write!(f, "stop swapping to {path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_reads_as_the_line_a_person_approves() {
        let lines = [
            (
                Change::Sysctl { key: "net.ipv4.ip_forward".into(), value: "1".into() },
                "set net.ipv4.ip_forward = 1, now and in /etc/sysctl.d/99-zz-bramble.conf",
            ),
            (
                Change::AppendToken {
                    path: "/boot/firmware/cmdline.txt".into(),
                    token: "cgroup_enable=memory".into(),
                },
                "add cgroup_enable=memory to the line of /boot/firmware/cmdline.txt, in force after a reboot",
            ),
            (
                Change::WriteFile {
                    path: "/etc/x.conf".into(),
                    content: "# by bramble\n[Network]\nA=no\n".into(),
                },
                "write /etc/x.conf: [Network] A=no",
            ),
        ];
        for (change, line) in lines {
            assert_eq!(change.to_string(), line);
        }
    }
}
