//! Temperatures, from hwmon: the processor, the board's other chips, NVMe drives. A board whose processor has no hwmon chip is
//! read from its thermal zone.

use wire::report::{Rank, Unit};

use super::{Health, Judge, Pace, Probe, Seen};
use crate::host::{Host, Unreadable, hwmon::Chip};

/// The table's row.
pub(super) const PROBE: Probe = Probe {
    id: "temperature",
    title: "Temperature",
    why: "A Pi slows down at 80 to 85 °C; a node that is hot is late.",
    pace: Pace::Report,
    judge: || Box::new(Temperature),
    kernel: None,
};

/// hwmon names of processor sensors, and types of their thermal zones: Pi, AMD, Intel, and generic Arm boards.
const PROCESSORS: [&str; 7] =
    ["cpu_thermal", "cpu-thermal", "k10temp", "coretemp", "soc_thermal", "soc-thermal", "x86_pkg_temp"];

struct Temperature;

impl Judge for Temperature {
    fn judge(&mut self, seen: &Seen<'_>) -> Health {
        let mut health = Health::default();
        let chips = seen.chips();
        let processor = chips.iter().find(|chip| PROCESSORS.contains(&chip.name.as_str()));
        let celsius = match processor {
            Some(chip) => celsius(seen.host, &format!("{}/temp1_input", chip.directory)),
            None => zone(seen.host),
        };
        let mut add = |id: &str, title: &str, read| {
            health.sensor(id, title, Unit::Celsius, -40.0..=150.0, read);
        };
        add("cpu-temperature", "CPU temperature", celsius);
        for chip in chips {
            let read = || celsius_of(seen.host, chip);
            match chip.name.as_str() {
                "rp1_adc" => add("rp1-temperature", "RP1 temperature", read()),
                "nvme" | "drivetemp" => {
                    // hwmon's own number is another after each boot; the drive's name is in the link.
                    let link = seen.host.link(&format!("{}/device", chip.directory));
                    let drive = link.as_deref().and_then(|link| link.rsplit('/').next()).unwrap_or("drive");
                    let id = format!("{}-temperature", drive.replace(':', "-"));
                    add(&id, &format!("Drive {drive} temperature"), read());
                }
                _ => {}
            }
        }
        health.rank(Rank::Diagnostic, |id| id != "cpu-temperature");
        health
    }
}

fn celsius_of(host: &Host, chip: &Chip) -> Result<Option<f64>, Unreadable> {
    celsius(host, &format!("{}/temp1_input", chip.directory))
}

fn celsius(host: &Host, path: &str) -> Result<Option<f64>, Unreadable> {
    Ok(host.number_again(path)?.map(|thousandths| thousandths as f64 / 1000.0))
}

fn zone(host: &Host) -> Result<Option<f64>, Unreadable> {
    const CLASS: &str = "/sys/class/thermal";
    for zone in host.list_if_present(CLASS).unwrap_or_default() {
        let kind = host.text(&format!("{CLASS}/{zone}/type")).unwrap_or_default();
        if zone.starts_with("thermal_zone") && PROCESSORS.contains(&kind.trim()) {
            return celsius(host, &format!("{CLASS}/{zone}/temp"));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use wire::report::Status;

    use super::*;
    use crate::probe::scene::Scene;

    fn chip(scene: &Scene, number: u32, name: &str, thousandths: &str) {
        scene.write(&format!("/sys/class/hwmon/hwmon{number}/name"), format!("{name}\n"));
        scene.write(&format!("/sys/class/hwmon/hwmon{number}/temp1_input"), format!("{thousandths}\n"));
    }

    #[test]
    fn sensors_are_known_by_name_and_followed_when_they_move() {
        let scene = Scene::new();
        let mut judge = (PROBE.judge)();
        assert_eq!(scene.judge(&mut judge), Health::default());
        chip(&scene, 0, "cpu_thermal", "48312");
        chip(&scene, 1, "nvme", "39850");
        scene.link("/sys/class/hwmon/hwmon1/device", "../../nvme0");
        chip(&scene, 2, "rp1_adc", "52000");
        chip(&scene, 3, "sfp", "99000");
        let health = scene.judge(&mut judge);
        assert_eq!(health.value("cpu-temperature"), Some(Some(48.312)));
        assert_eq!(health.value("nvme0-temperature"), Some(Some(39.85)));
        assert_eq!(health.value("rp1-temperature"), Some(Some(52.0)));
        assert_eq!(health.readings.len(), 3);
        // A driver was loaded anew: the numbers changed places.
        chip(&scene, 0, "nvme", "40000");
        scene.link("/sys/class/hwmon/hwmon0/device", "../../nvme0");
        chip(&scene, 1, "cpu_thermal", "50000");
        let health = scene.judge(&mut judge);
        assert_eq!(health.value("cpu-temperature"), Some(Some(50.0)));
        assert_eq!(health.value("nvme0-temperature"), Some(Some(40.0)));
        scene.remove("/sys/class/hwmon");
        assert_eq!(scene.judge(&mut judge), Health::default(), "a sensor that is gone is absent");
    }

    #[test]
    fn what_cannot_be_a_temperature_is_told_and_not_reported() {
        let scene = Scene::new();
        let mut judge = (PROBE.judge)();
        for garbage in ["-273150", "255000", "", "NaN", "1e3", "99999999999999999999", "\u{fffd}"] {
            chip(&scene, 0, "cpu_thermal", garbage);
            let health = scene.judge(&mut judge);
            assert_eq!(health.value("cpu-temperature"), Some(None), "{garbage:?}");
            assert_eq!(health.said("sensor").unwrap().0, Status::Unknown, "{garbage:?}");
        }
    }

    #[test]
    fn a_board_without_hwmon_is_read_from_its_thermal_zone() {
        let scene = Scene::new();
        scene.write("/sys/class/thermal/thermal_zone0/type", "gpu-thermal\n");
        scene.write("/sys/class/thermal/thermal_zone0/temp", "1000\n");
        scene.write("/sys/class/thermal/thermal_zone1/type", "cpu-thermal\n");
        scene.write("/sys/class/thermal/thermal_zone1/temp", "61234\n");
        let health = scene.judge(&mut (PROBE.judge)());
        assert_eq!(health.value("cpu-temperature"), Some(Some(61.234)));
    }
}
