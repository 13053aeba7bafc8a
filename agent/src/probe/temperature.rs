//! Temperature of the processor, by hwmon or the thermal zone that the board has.

use sysinfo::Components;
use wire::report::{Kind, Unit};

use super::{Health, Judge, Pace, Probe, Seen};

/// The table's row.
pub(super) const PROBE: Probe = Probe {
    id: "temperature",
    title: "Temperature",
    why: "A Pi slows down at 80 to 85 °C; a node that is hot is late.",
    pace: Pace::Report,
    judge: || Box::new(Sensors { components: Components::new_with_refreshed_list().ok() }),
    kernel: None,
};

/// hwmon names of processor sensors: Pi, AMD, Intel, and generic Arm boards.
const PROCESSORS: [&str; 6] =
    ["cpu_thermal", "cpu-thermal", "k10temp", "coretemp", "soc_thermal", "x86_pkg_temp"];

struct Sensors {
    /// `None` on a system without any.
    components: Option<Components>,
}

impl Judge for Sensors {
    fn judge(&mut self, _: &Seen<'_>) -> Health {
        let mut health = Health::default();
        let Some(components) = &mut self.components else { return health };
        components.refresh(false);
        let processor = components
            .iter()
            .filter(|c| PROCESSORS.iter().any(|p| c.label().starts_with(p)))
            .map(|c| c.temperature())
            .reduce(|a, b| if a >= b { a } else { b });
        // A board without a sensor has no such reading, and not an empty one.
        if let Some(celsius) = processor {
            let plausible = celsius.filter(|c| (-40.0..=150.0).contains(c)).map(f64::from);
            health.reading("cpu-temperature", "CPU temperature", plausible, Unit::Celsius, Kind::Gauge);
        }
        health
    }
}
