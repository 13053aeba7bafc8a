//! Bytes a second: of the uplink, and of the drives, from `/proc/net/dev` and `/proc/diskstats`.

use std::time::Instant;

use wire::report::{Kind, Rank, Unit};

use super::{Health, Judge, Pace, Probe, Seen};
use crate::host::Host;

/// The table's row.
pub(super) const PROBE: Probe = Probe {
    id: "rate",
    title: "Traffic",
    why: "A link or a card that is busy with something explains what is late.",
    pace: Pace::Report,
    judge: || Box::new(Rates::default()),
    kernel: None,
};

/// Received, sent, read, written.
type Counters = [Option<u64>; 4];

#[derive(Default)]
struct Rates {
    before: Option<(Instant, Option<String>, Counters)>,
}

const IDS: [(&str, &str); 4] = [
    ("network-received", "Network received"),
    ("network-sent", "Network sent"),
    ("disk-read", "Disk read"),
    ("disk-written", "Disk written"),
];

impl Judge for Rates {
    fn judge(&mut self, seen: &Seen<'_>) -> Health {
        let mut health = Health::default();
        let uplink = seen.host.text_again("/proc/net/route").ok().and_then(|text| uplink(&text));
        let (received, sent) = uplink.as_deref().and_then(|link| traffic(seen.host, link)).unzip();
        let (read, written) =
            seen.host.text_again("/proc/diskstats").ok().and_then(|text| drives(&text)).unzip();
        let now = [received, sent, read, written];
        for (index, (id, title)) in IDS.iter().enumerate() {
            if now[index].is_none() {
                continue;
            }
            let rate = self.before.as_ref().and_then(|(at, link, before)| {
                // Of another link the difference means nothing; a counter that went back began anew.
                (index > 1 || *link == uplink).then_some(())?;
                let seconds = seen.now.duration_since(*at).as_secs_f64();
                let bytes = now[index]?.checked_sub(before[index]?)?;
                (seconds > 0.0).then(|| bytes as f64 / seconds)
            });
            health.reading(id, title, rate, Unit::BytePerSecond, Kind::Gauge);
        }
        self.before = Some((seen.now, uplink, now));
        health.rank(Rank::Diagnostic, |id| id.starts_with("disk-"));
        health
    }
}

/// The device of the default route that is taken first.
fn uplink(routes: &str) -> Option<String> {
    let default = routes.lines().filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [device, "00000000", _, _, _, _, metric, "00000000", ..] = columns[..] else { return None };
        Some((metric.parse::<u32>().ok()?, device))
    });
    default.min_by_key(|(metric, _)| *metric).map(|(_, device)| device.to_owned())
}

/// Bytes received and sent by a link. A node's table of all links has a line for each pod, so the link's own files are read.
fn traffic(host: &Host, link: &str) -> Option<(u64, u64)> {
    // The name comes from a table of the kernel's; it is a name of one directory.
    let count = |file: &str| {
        host.text_again(&format!("/sys/class/net/{link}/statistics/{file}")).ok()?.trim().parse().ok()
    };
    Some((count("rx_bytes")?, count("tx_bytes")?))
}

/// Bytes read from and written to all drives; parts of drives and what lies upon drives would count twice.
fn drives(table: &str) -> Option<(u64, u64)> {
    const SECTOR: u64 = 512;
    let mut all = None;
    for line in table.lines() {
        let mut columns = line.split_ascii_whitespace().skip(2);
        if !columns.next().is_some_and(is_drive) {
            continue;
        }
        let numbers: Option<Vec<u64>> = columns.take(7).map(|number| number.parse().ok()).collect();
        let Some([_, _, read, _, _, _, written]) = numbers.as_deref() else { continue };
        let (reads, writes) = all.get_or_insert((0, 0));
        *reads += read.saturating_mul(SECTOR);
        *writes += written.saturating_mul(SECTOR);
    }
    all
}

/// `sda`, `vda`, `nvme0n1`, `mmcblk0`, and none of their parts.
fn is_drive(name: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let letters = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase());
    name.strip_prefix("mmcblk").is_some_and(digits)
        || name
            .strip_prefix("nvme")
            .and_then(|rest| rest.split_once('n'))
            .is_some_and(|(a, b)| digits(a) && digits(b))
        || ["sd", "vd"].iter().any(|kind| name.strip_prefix(kind).is_some_and(letters))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::scene::Scene;

    const ROUTES: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
        wlan0\t00000000\t010200C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
        eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n";

    #[test]
    fn the_first_default_route_names_the_uplink() {
        assert_eq!(uplink(ROUTES).as_deref(), Some("eth0"));
        assert_eq!(uplink("Iface\n"), None);
    }

    #[test]
    fn only_whole_drives_count() {
        let table = " 179 0 mmcblk0 10 0 100 0 20 0 200 0 0 0 0\n 179 1 mmcblk0p1 10 0 100 0 20 0 200 0\n\
            259 0 nvme0n1 1 0 8 0 1 0 16 0\n 7 0 loop0 1 0 800 0 1 0 800 0\n 254 0 zram0 1 0 9 0 1 0 9 0\n 8 0 sda x\n";
        assert_eq!(drives(table), Some((108 * 512, 216 * 512)));
        assert_eq!(drives("garbage"), None);
    }

    #[test]
    fn a_rate_is_known_from_the_second_time_and_not_over_a_counter_that_began_anew() {
        let mut scene = Scene::new();
        let mut judge = (PROBE.judge)();
        assert_eq!(scene.judge(&mut judge), Health::default());
        scene.write("/proc/net/route", ROUTES);
        let traffic = |scene: &Scene, received: &str| {
            scene.write("/sys/class/net/eth0/statistics/rx_bytes", received);
            scene.write("/sys/class/net/eth0/statistics/tx_bytes", "5");
        };
        traffic(&scene, "1000\n");
        assert_eq!(scene.judge(&mut judge).value("network-received"), Some(None));
        scene.wait(10);
        traffic(&scene, "3000\n");
        // The wall clock has no say in it.
        scene.wall = "1976-01-01T00:00:00Z".parse().unwrap();
        let health = scene.judge(&mut judge);
        assert_eq!(health.value("network-received"), Some(Some(200.0)));
        assert_eq!(health.value("network-sent"), Some(Some(0.0)));
        assert_eq!(health.value("disk-read"), None);
        scene.wait(10);
        traffic(&scene, "10\n");
        assert_eq!(scene.judge(&mut judge).value("network-received"), Some(None));
    }
}
