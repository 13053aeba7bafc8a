//! Disks and file systems carry what runs on them.

use super::{Area, Finding, Requirement};
use crate::change::Change;
use crate::config::cluster::Profile;
use crate::facts::table;

pub(super) const ROOT: Requirement = Requirement {
    id: "root-file-system",
    area: Area::Storage,
    profiles: &[Profile::Node],
    title: "the root file system is writable and without errors",
    why: "a card that fails is mounted read-only: pods go on until they write, and nothing that is changed stays",
    source: "raspberrypi/linux#413, #484; kubernetes/node-problem-detector config/readonly-monitor.json",
    fix: "a person saves what is on it, has it checked at a reboot, and replaces the disk",
    catalogue: &["STOR-003"],
    judge: |facts, _| {
        let Some(root) = facts.mounts.as_ref()?.top("/") else {
            return Finding::blocked(
                "nothing is mounted on /",
                "check from the machine itself, not from a container",
            );
        };
        if root.read_only {
            return Finding::blocked(
                "/ is mounted read-only",
                "look for the reason (sudo dmesg | grep -i -e mmc -e ext4), save what is on it, and replace the disk",
            );
        }
        let counted: Vec<&(String, u64)> =
            facts.disk_errors.as_ref()?.iter().filter(|(_, count)| *count > 0).collect();
        if !counted.is_empty() {
            let on = counted.iter().map(|(device, count)| format!("{count} on {device}"));
            // The count alone makes no boot look: the flag does, from the initramfs too, and the check resets the count.
            let check = counted.iter().map(|(device, _)| format!("sudo tune2fs -E force_fsck /dev/{device}"));
            return Finding::blocked(
                format!("ext4 has counted errors: {}", on.collect::<Vec<_>>().join(", ")),
                format!(
                    "save what is on it; {}; reboot, which checks it, and replace the disk if it counts again",
                    check.collect::<Vec<_>>().join(" && ")
                ),
            );
        }
        Finding::met(format!("{} on {}, writable", root.kind, root.source))
    },
};

pub(super) const DATASTORE: Requirement = Requirement {
    id: "datastore-disk",
    area: Area::Storage,
    profiles: &[Profile::Server],
    title: "the cluster's state is not kept on an SD card",
    why: "etcd waits for the card at every write: leader elections are lost, the API server answers in seconds, K3s \
          restarts",
    source: "k3s-io/docs datastore/ha-embedded; k3s-io/k3s#1850, #2853, #5834",
    fix: "a person moves K3s' data to an SSD or NVMe disk, or accepts the card",
    catalogue: &["K3S-005"],
    judge: |facts, _| {
        let path = "/var/lib/rancher/k3s";
        let Some(mount) = facts.mounts.as_ref()?.holding(path) else {
            return Finding::blocked(
                "nothing is mounted on /",
                "check from the machine itself, not from a container",
            );
        };
        if mount.source.starts_with("/dev/mmcblk") {
            return Finding::blocked(
                format!("{path} is on {}", mount.source),
                "keep it on an SSD or NVMe disk; a single server with sqlite on a good card may do: then accept it \
                 (accept = [\"datastore-disk\"] in [cluster])",
            );
        }
        Finding::met(format!("{path} is on {}", mount.source))
    },
};

pub(super) const USB: Requirement = Requirement {
    id: "usb-storage",
    area: Area::Storage,
    profiles: &[Profile::Node],
    title: "no USB disk hangs on a bridge that fails with UAS",
    why: "under load the disk is reset and becomes read-only, or reads at 100 kB/s",
    source: "raspberrypi/linux#3070, #5060; home-assistant/operating-system#3220",
    fix: "bramble adds usb-storage.quirks= for the bridge to the kernel's arguments, which counts after a reboot; \
          one that is there a person extends",
    catalogue: &["STOR-001"],
    judge: |facts, _| {
        let bad = |id: &&String| {
            table::rows(include_str!("../../data/uas_bridges.csv"), ["id", "source"])
                .any(|row| row[0] == **id)
        };
        let disks = facts.uas.as_ref()?;
        let failing: Vec<&String> = disks.iter().filter(bad).collect();
        if failing.is_empty() {
            return Finding::met(match disks.is_empty() {
                true => "no disk is driven by uas".to_string(),
                false => format!("{} driven by uas, none known to fail", disks.join(", ")),
            });
        }
        const KEY: &str = "usb-storage.quirks=";
        let quirks: Vec<String> = failing.iter().map(|id| format!("{id}:u")).collect();
        let (token, what) = (
            format!("{KEY}{}", quirks.join(",")),
            format!("driven by uas: {}", failing.iter().map(|id| id.as_str()).collect::<Vec<_>>().join(", ")),
        );
        // The last such argument counts alone, so one that is there has to be extended.
        let there = facts.boot_file.as_ref()?.as_ref().map(|file| file.cmdline());
        if let Some(other) =
            there.as_ref().and_then(|line| line.tokens().find(|t| t.starts_with(KEY) && **t != *token))
        {
            return Finding::blocked(
                what,
                format!("extend {other} in the boot file by {}", quirks.join(",")),
            );
        }
        Finding::lacks_argument(facts, token, &what)
    },
};

pub(super) const MULTIPATH: Requirement = Requirement {
    id: "multipath",
    area: Area::Storage,
    profiles: &[Profile::Longhorn],
    title: "multipathd leaves Longhorn's volumes alone",
    why: "it takes each new volume for a path of its own: \"already mounted or mount point busy\"",
    source: "longhorn/longhorn#1210, #1819, #8351",
    fix: "bramble writes a file of its own in /etc/multipath/conf.d that blacklists plain disks",
    catalogue: &["STOR-004"],
    judge: |facts, _| {
        if !facts.units.uses("multipathd")? {
            return Finding::not_needed("multipathd is not in use");
        }
        if *facts.multipath.as_ref()? {
            return Finding::met("plain disks are in its blacklist");
        }
        Finding::unmet(
            "plain disks are not in multipathd's blacklist",
            [Change::WriteFile {
                path: "/etc/multipath/conf.d/99-zz-bramble.conf".into(),
                content: "# Written by bramble: Longhorn's volumes are plain disks.\n\
                          blacklist {\n    devnode \"^sd[a-z0-9]+\"\n}\n"
                    .into(),
            }],
        )
    },
};

pub(super) const PACKAGES: Requirement = Requirement {
    id: "longhorn-packages",
    area: Area::Storage,
    profiles: &[Profile::Longhorn],
    title: "the programs that Longhorn calls are installed",
    why: "volumes do not attach, and pods that use them do not start",
    source: "longhorn/cli pkg/local/preflight/checker.go",
    fix: "a person installs what is named: sudo apt install open-iscsi nfs-common cryptsetup dmsetup",
    catalogue: &["STOR-005"],
    judge: |facts, _| {
        const NEEDED: [&str; 4] = ["open-iscsi", "nfs-common", "cryptsetup", "dmsetup"];
        let packages = facts.packages.as_ref()?;
        let lacking: Vec<&str> = NEEDED.into_iter().filter(|name| packages.version(name).is_none()).collect();
        if lacking.is_empty() {
            return Finding::met(NEEDED.join(", "));
        }
        let names = lacking.join(" ");
        Finding::blocked(format!("not installed: {names}"), format!("sudo apt install {names}"))
    },
};
