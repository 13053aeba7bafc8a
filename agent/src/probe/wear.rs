//! What drives tell of themselves without being asked by root. eMMC tells by sysfs how much of its life is used (`life_time`,
//! `pre_eol_info`, from 7 of JEDEC eMMC 5.0); SD cards have no such register.
//!
//! NVMe drives keep their wear and their errors in log page 02h, which the kernel hands only to CAP_SYS_ADMIN
//! (`nvme_cmd_allowed` in drivers/nvme/host/ioctl.c lets others ask for a few kinds of "identify" alone). No process of ours has that
//! right, so of those there is no such reading. Everybody is told two things: the state of the controller, and the one bit of
//! that page that the kernel passes on itself, that the drive is too hot (`temp1_alarm`, drivers/nvme/host/hwmon.c).

use wire::report::{Kind, Rank, Severity, Status, Unit};

use super::{Health, Judge, Pace, Probe, Seen, Statement};
use crate::host::Host;

/// The table's row.
pub(super) const PROBE: Probe = Probe {
    id: "wear",
    title: "Flash wear",
    why: "Flash that is worn out turns read-only one night, with the cluster's database on it.",
    pace: Pace::Check,
    judge: || Box::new(Wear),
    kernel: None,
};

struct Wear;

impl Judge for Wear {
    fn judge(&mut self, seen: &Seen<'_>) -> Health {
        const CLASS: &str = "/sys/block";
        let mut health = Health::default();
        let mut worn = None;
        for device in seen.host.list_if_present(CLASS).unwrap_or_default() {
            // mmcblk0boot0 and the like are parts of mmcblk0.
            let number = device.strip_prefix("mmcblk");
            if !number.is_some_and(|number| number.bytes().all(|b| b.is_ascii_digit())) {
                continue;
            }
            let text = |file: &str| seen.host.text(&format!("{CLASS}/{device}/device/{file}"));
            let (id, title) = (format!("{device}-life-used"), format!("Life used of {device}"));
            let lives = match text("life_time") {
                Ok(text) => text,
                Err(why) if why.is_absence() => continue,
                Err(why) => {
                    health.statements.push(super::unbelievable(&id, why.to_string()));
                    continue;
                }
            };
            let stage = text("pre_eol_info").ok().as_deref().and_then(hexadecimal);
            // Tenths of the life of both kinds of cells; 0 = not told, 11 = more than was meant.
            let used = lives.split_whitespace().filter_map(hexadecimal).max().filter(|used| *used <= 11);
            let Some(used) = used else {
                let nonsense = format!("life_time is {:?}", lives.trim());
                health.reading(&id, &title, None, Unit::Percent, Kind::Gauge);
                health.statements.push(super::unbelievable(&id, nonsense));
                continue;
            };
            if used == 0 {
                continue;
            }
            // Each step stands for the tenth that ends with it; past 100 % the register says no more.
            let percent = f64::from(used.min(10) * 10);
            health.reading(&id, &title, Some(percent), Unit::Percent, Kind::Gauge);
            let spare = match stage {
                Some(2) => "; of its spare blocks 80 % are used",
                Some(3) => "; of its spare blocks 90 % are used",
                _ => "",
            };
            let (_, evidence) = worn.get_or_insert((false, Vec::new()));
            evidence.push(format!("{device} has used up to {percent} % of its life{spare}"));
            worn.as_mut().expect("it was just put there").0 |= used >= 10 || matches!(stage, Some(2 | 3));
        }
        health.rank(Rank::Diagnostic, |_| true);
        health.statements.extend(worn.map(|(raised, evidence)| Statement {
            id: "flash-worn",
            subject: None,
            title: "Flash is worn out",
            status: if raised { Status::Raised } else { Status::Clear },
            severity: Severity::Critical,
            depends_on: &[],
            evidence: evidence.join(", "),
        }));
        health.statements.extend(nvme(seen.host));
        health
    }
}

/// What the kernel says of NVMe drives, where there are any.
fn nvme(host: &Host) -> Option<Statement> {
    const CLASS: &str = "/sys/class/nvme";
    let (drives, mut unwell) = (host.list_if_present(CLASS).unwrap_or_default(), Vec::new());
    let mut unread = None;
    for drive in &drives {
        match host.text(&format!("{CLASS}/{drive}/state")) {
            Ok(state) if ["live", "new"].contains(&state.trim()) => {}
            Ok(state) => unwell.push(format!("the controller of {drive} is {}", state.trim())),
            Err(why) => unread = Some(why.to_string()),
        }
    }
    for chip in host.hwmon().into_iter().filter(|chip| chip.name == "nvme") {
        if host.number(&format!("{}/temp1_alarm", chip.directory)) == Ok(Some(1)) {
            let link = host.link(&format!("{}/device", chip.directory));
            let drive = link.as_deref().and_then(|link| link.rsplit('/').next()).unwrap_or("a drive");
            unwell.push(format!("{drive} says that it is too hot"));
        }
    }
    let (status, evidence) = match unread {
        _ if drives.is_empty() => return None,
        _ if !unwell.is_empty() => (Status::Raised, unwell.join(", ")),
        Some(why) => (Status::Unknown, why),
        None => (Status::Clear, format!("{} at work, and not too hot", drives.join(", "))),
    };
    Some(Statement {
        id: "nvme-unwell",
        subject: None,
        title: "NVMe drive is down or too hot",
        status,
        severity: Severity::Critical,
        depends_on: &["under-voltage"],
        evidence,
    })
}

/// A register as `0x01`.
fn hexadecimal(text: &str) -> Option<u8> {
    u8::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::scene::Scene;

    #[test]
    fn emmc_tells_its_life_and_a_card_has_no_such_reading() {
        let scene = Scene::new();
        let mut judge = (PROBE.judge)();
        scene.write("/sys/block/mmcblk1/device/name", "SD64G\n");
        scene.write("/sys/block/nvme0n1/device/model", "x\n");
        assert_eq!(scene.judge(&mut judge), Health::default());
        scene.write("/sys/block/mmcblk0boot0/device/life_time", "0x0b 0x0b\n");
        for (life, stage, percent, status) in [
            ("0x01 0x02", "0x01", Some(Some(20.0)), Some(Status::Clear)),
            ("0x09 0x0a", "0x01", Some(Some(100.0)), Some(Status::Raised)),
            ("0x0b 0x01", "0x01", Some(Some(100.0)), Some(Status::Raised)),
            ("0x01 0x01", "0x02", Some(Some(10.0)), Some(Status::Raised)),
            ("0x00 0x00", "0x00", None, None),
            ("garbage", "", Some(None), None),
            ("0xff 0x01", "0x01", Some(None), None),
        ] {
            scene.write("/sys/block/mmcblk0/device/life_time", format!("{life}\n"));
            scene.write("/sys/block/mmcblk0/device/pre_eol_info", format!("{stage}\n"));
            let health = scene.judge(&mut judge);
            assert_eq!(health.value("mmcblk0-life-used"), percent, "{life}");
            assert_eq!(health.said("flash-worn").map(|(status, _)| status), status, "{life}");
        }
    }

    #[test]
    fn of_nvme_the_controllers_state_and_its_alarm_are_told() {
        let scene = Scene::new();
        let mut judge = (PROBE.judge)();
        let mut said = |state: &str, alarm: &str| {
            scene.write("/sys/class/nvme/nvme0/state", state);
            scene.write("/sys/class/hwmon/hwmon2/name", "nvme\n");
            scene.write("/sys/class/hwmon/hwmon2/temp1_alarm", alarm);
            scene.link("/sys/class/hwmon/hwmon2/device", "../../nvme0");
            let health = scene.judge(&mut judge);
            assert_eq!(health.readings, [], "its wear is root's affair");
            let (status, evidence) = health.said("nvme-unwell").unwrap();
            (status, evidence.to_owned())
        };
        assert_eq!(said("live\n", "0\n"), (Status::Clear, "nvme0 at work, and not too hot".to_owned()));
        assert_eq!(said("dead\n", "0\n"), (Status::Raised, "the controller of nvme0 is dead".to_owned()));
        assert_eq!(
            said("resetting\n", "1\n"),
            (
                Status::Raised,
                "the controller of nvme0 is resetting, nvme0 says that it is too hot".to_owned()
            )
        );
        assert_eq!(said("live\n", "garbage").0, Status::Clear);
        scene.remove("/sys/class/nvme/nvme0/state");
        scene.write("/sys/class/nvme/nvme0/model", "x\n");
        assert_eq!(scene.judge(&mut judge).said("nvme-unwell").unwrap().0, Status::Unknown);
        scene.remove("/sys/class/nvme");
        assert_eq!(scene.judge(&mut judge), Health::default());
    }
}
