//! The cluster as OpenMetrics text.
//!
//! Names are `bramble_<noun>_<unit>`. Readings describe themselves, so a new probe needs no edit here. What could not
//! be read has no sample: a scraper then shows a gap, not a zero.
//! Source: the OpenMetrics 1.0 specification, "Text format".

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use jiff::Timestamp;
use wire::{
    report::{FindingCounts, Kind, Reading, Severity, Unit, WayState},
    topic::Name,
};

use crate::{
    cluster::{Cluster, Refusal},
    mesh,
    publish::web::node_state,
};

/// What `/metrics` is.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Text in the making. A family's name is used once: the first one wins, and ours come first.
struct Text {
    out: String,
    taken: BTreeSet<String>,
}

impl Text {
    /// Opens a family, unless its name, or that of its samples, is taken.
    fn family(&mut self, name: &str, kind: Kind, help: &str) -> bool {
        let sample = sample_name(name, kind);
        if self.taken.contains(name) || self.taken.contains(&sample) {
            return false;
        }
        self.taken.extend([name.to_owned(), sample]);
        let kind = match kind {
            Kind::Gauge => "gauge",
            Kind::Total => "counter",
        };
        let _ = writeln!(self.out, "# TYPE {name} {kind}\n# HELP {name} {}", escaped(help));
        true
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.out.push_str(name);
        for (i, (label, text)) in labels.iter().enumerate() {
            let _ = write!(self.out, "{}{label}=\"{}\"", if i == 0 { '{' } else { ',' }, escaped(text));
        }
        let _ = writeln!(self.out, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    /// A family of ours.
    fn own<'a>(
        &mut self,
        name: &str,
        kind: Kind,
        help: &str,
        samples: impl IntoIterator<Item = (Vec<(&'a str, &'a str)>, f64)>,
    ) {
        if self.family(name, kind, help) {
            for (labels, value) in samples {
                self.sample(&sample_name(name, kind), &labels, value);
            }
        }
    }
}

fn sample_name(family: &str, kind: Kind) -> String {
    match kind {
        Kind::Gauge => family.to_owned(),
        Kind::Total => format!("{family}_total"),
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out
}

/// `cpu-temperature` in °C -> `bramble_cpu_temperature_celsius`; in the base units that Prometheus asks for.
fn name_of(id: &str, reading: &Reading) -> (String, f64) {
    let (unit, factor) = match reading.unit {
        Unit::Celsius => ("_celsius", 1.0),
        Unit::Percent => ("_ratio", 0.01),
        Unit::Millisecond => ("_seconds", 0.001),
        Unit::Byte => ("_bytes", 1.0),
        Unit::Count => ("", 1.0),
        Unit::PerSecond => ("_per_second", 1.0),
        Unit::BytePerSecond => ("_bytes_per_second", 1.0),
        Unit::Second => ("_seconds", 1.0),
        Unit::Volt => ("_volts", 1.0),
        Unit::Ampere => ("_amperes", 1.0),
        Unit::Watt => ("_watts", 1.0),
        Unit::Megahertz => ("_hertz", 1e6),
        Unit::PerMinute => ("_per_minute", 1.0),
        Unit::DecibelMilliwatt => ("_dbm", 1.0),
        Unit::Moment => ("_timestamp_seconds", 1.0),
    };
    let id = id.replace('-', "_");
    let id = id.trim_end_matches("_total");
    (if id.ends_with(unit) { format!("bramble_{id}") } else { format!("bramble_{id}{unit}") }, factor)
}

/// The whole text, at `now`.
pub fn render(cluster: &Cluster, now: Timestamp) -> String {
    let nodes = cluster.nodes();
    let mut text = Text { out: String::new(), taken: BTreeSet::new() };
    let one = |condition: bool| if condition { 1.0 } else { 0.0 };

    text.own(
        "bramble_build_info",
        Kind::Gauge,
        "The aggregator's version.",
        [(vec![("version", env!("CARGO_PKG_VERSION"))], 1.0)],
    );
    let connected = one(cluster.broker().is_some_and(|b| b.connected));
    text.own("bramble_broker_connected", Kind::Gauge, "1 while the broker is there.", [(vec![], connected)]);
    text.own(
        "bramble_refused_messages",
        Kind::Total,
        "Messages that were dropped, by kind.",
        Refusal::ALL.map(|kind| (vec![("kind", kind.as_str())], cluster.refused(kind) as f64)),
    );
    text.own(
        "bramble_records",
        Kind::Total,
        "What happened on nodes, as they told, at once or late.",
        [(vec![], cluster.records() as f64)],
    );
    let kept = cluster.bytes() as f64;
    text.own("bramble_aggregator_kept_bytes", Kind::Gauge, "Payload that is kept.", [(vec![], kept)]);
    text.own(
        "bramble_node_up",
        Kind::Gauge,
        "1 while the node reports and its peers reach it.",
        nodes.iter().filter_map(|(name, node)| match node_state(cluster, name, node) {
            "last-known" => None,
            state => Some((vec![("node", name.as_str())], one(state == "online"))),
        }),
    );
    let heard = nodes.iter().filter_map(|(name, node)| Some((name, node.heard()?)));
    text.own(
        "bramble_node_heard_age_seconds",
        Kind::Gauge,
        "Time since the node said anything.",
        heard.map(|(name, heard)| (vec![("node", name.as_str())], now.duration_since(heard).as_secs_f64())),
    );
    text.own(
        "bramble_node_findings",
        Kind::Gauge,
        "Requirements by verdict.",
        nodes.iter().filter_map(|(name, node)| Some((name, node.state.as_ref()?))).flat_map(
            |(name, said)| {
                verdicts(said.what.findings)
                    .map(|(state, count)| (vec![("node", name.as_str()), ("state", state)], f64::from(count)))
            },
        ),
    );
    alerts(cluster, &mut text);
    links(cluster, now, &mut text);
    readings(cluster, &mut text);
    text.out.push_str("# EOF\n");
    text.out
}

fn verdicts(counts: FindingCounts) -> [(&'static str, u32); 6] {
    let FindingCounts { met, unmet, waiting, blocked, not_needed, unknown } = counts;
    [
        ("met", met),
        ("unmet", unmet),
        ("waiting", waiting),
        ("blocked", blocked),
        ("not_needed", not_needed),
        ("unknown", unknown),
    ]
}

fn alerts(cluster: &Cluster, text: &mut Text) {
    let raised: Vec<_> = cluster.alerts().raised().collect();
    let severity = |severity| match severity {
        Severity::Warning => "warning",
        Severity::Critical => "critical",
    };
    text.own(
        "bramble_alert",
        Kind::Gauge,
        "1 for each alert that is raised.",
        raised.iter().map(|alert| {
            let labels = vec![
                ("kind", alert.kind.as_str()),
                ("subject", alert.subject.as_str()),
                ("severity", severity(alert.severity)),
            ];
            (labels, 1.0)
        }),
    );
    let left_out = cluster.alerts().left_out() as f64;
    text.own("bramble_alerts_left_out", Kind::Total, "Alerts beyond the bound.", [(vec![], left_out)]);
}

fn links(cluster: &Cluster, now: Timestamp, text: &mut Text) {
    let seen: Vec<_> = mesh::pairs(cluster.nodes())
        .into_iter()
        .map(|(from, to)| (from, to, mesh::between(cluster.nodes(), from, to, now)))
        .collect();
    text.own(
        "bramble_link_state",
        Kind::Gauge,
        "Verdict on the directed link: 0 fine, 1 could not tell, 2 slow, 3 lossy, 4 cut.",
        seen.iter().map(|(from, to, link)| {
            let state = match link.way.state {
                WayState::Fine => 0.0,
                WayState::Unknown => 1.0,
                WayState::Slow => 2.0,
                WayState::Lossy => 3.0,
                WayState::Cut => 4.0,
            };
            (vec![("from", from.as_str()), ("to", to.as_str())], state)
        }),
    );
    text.own(
        "bramble_link_loss_ratio",
        Kind::Gauge,
        "Share of the probes that the directed link lost.",
        seen.iter().filter_map(|(from, to, link)| {
            Some((vec![("from", from.as_str()), ("to", to.as_str())], link.way.loss?))
        }),
    );
    text.own(
        "bramble_link_round_trip_seconds",
        Kind::Gauge,
        "Median round trip, as its first node measured it.",
        seen.iter().filter_map(|(from, to, link)| {
            let seconds = link.round_trip?.median_us / 1e6;
            Some((vec![("from", from.as_str()), ("to", to.as_str())], seconds))
        }),
    );
}

fn readings(cluster: &Cluster, text: &mut Text) {
    /// The first node's word on title and kind holds; a node that says otherwise has no sample.
    struct Family<'a> {
        title: &'a str,
        kind: Kind,
        samples: BTreeMap<&'a Name, f64>,
    }
    let mut families: BTreeMap<String, Family<'_>> = BTreeMap::new();
    for (node, said) in cluster.nodes().iter().filter_map(|(n, node)| Some((n, node.state.as_ref()?))) {
        for (id, reading) in &said.what.readings {
            let (name, factor) = name_of(id, reading);
            let family = families.entry(name).or_insert_with(|| Family {
                title: &reading.title,
                kind: reading.kind,
                samples: BTreeMap::new(),
            });
            if let Some(value) = reading.value
                && family.kind == reading.kind
                && (reading.kind == Kind::Gauge || value >= 0.0)
            {
                family.samples.entry(node).or_insert(value * factor);
            }
        }
    }
    for (name, family) in &families {
        let samples = family.samples.iter().map(|(node, value)| (vec![("node", node.as_str())], *value));
        text.own(name, family.kind, family.title, samples);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        cluster::Settings,
        scene::{Scene, condition, state},
    };

    fn reading(title: &str, value: serde_json::Value, unit: &str, kind: &str) -> serde_json::Value {
        json!({"title": title, "value": value, "unit": unit, "kind": kind})
    }

    #[test]
    fn readings_links_and_verdicts_become_samples() {
        let mut scene = Scene::new(Settings::default());
        let all = ["n1", "n2"];
        scene.second(&all, &all, &[("n1", "n2", "lossy")]);
        let readings = json!({
            "cpu-temperature": reading("CPU temperature", json!(48.5), "°C", "gauge"),
            "drops": reading("Dropped packets", json!(17), "1", "total"),
            "loss": reading("Worst loss", json!(50), "%", "gauge"),
            "round-trip": reading("Round trip", json!(null), "ms", "gauge"),
        });
        scene.node("n1", "state", &state("n1", readings, json!([])));
        let text = render(&scene.cluster, scene.now);
        for line in [
            "# TYPE bramble_cpu_temperature_celsius gauge",
            "bramble_cpu_temperature_celsius{node=\"n1\"} 48.5",
            "# TYPE bramble_drops counter",
            "bramble_drops_total{node=\"n1\"} 17",
            "bramble_loss_ratio{node=\"n1\"} 0.5",
            "# TYPE bramble_round_trip_seconds gauge",
            "bramble_node_up{node=\"n1\"} 1",
            "bramble_node_findings{node=\"n1\",state=\"unmet\"} 1",
            "bramble_link_state{from=\"n1\",to=\"n2\"} 3",
            "bramble_link_state{from=\"n2\",to=\"n1\"} 0",
            "bramble_link_loss_ratio{from=\"n1\",to=\"n2\"} 0.4",
            "bramble_link_round_trip_seconds{from=\"n1\",to=\"n2\"} 0.0001805",
            "bramble_alert{kind=\"path-loss\",subject=\"n1 -> n2\",severity=\"warning\"} 1",
            "bramble_broker_connected 1",
            "bramble_refused_messages_total{kind=\"not-json\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} is missing in\n{text}");
        }
        assert!(!text.contains("bramble_round_trip_seconds{"), "what could not be read has no sample");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn hostile_texts_stay_inside_their_quotes_and_families_are_unique() {
        let mut scene = Scene::new(Settings::default());
        let mut bad = condition("a", "raised", &[]);
        bad["subject"] = json!("x\"} 1\nevil 2\\");
        let evil = json!({
            "node-up": reading("t\nbramble_node_up{node=\"n9\"} 1", json!(1), "1", "gauge"),
            "drops": reading("t", json!(1), "1", "total"),
            "drops-total": reading("t", json!(2), "1", "gauge"),
            "a-b": reading("t", json!(1), "1", "gauge"),
            "a_b": reading("t", json!(2), "1", "gauge"),
        });
        scene.node("n1", "state", &state("n1", evil, json!([bad])));
        let text = render(&scene.cluster, scene.now);
        assert!(text.contains("subject=\"n1: x\\\"} 1 evil 2\\\\\""), "{text}");
        let (mut families, mut samples) = (BTreeSet::new(), BTreeSet::new());
        for line in text.lines() {
            if let Some(family) = line.strip_prefix("# TYPE ") {
                assert!(families.insert(family.split(' ').next().unwrap()), "{line} twice");
            }
            let series = line.rsplit_once(' ').map_or(line, |(series, _)| series);
            assert!(line.starts_with('#') || samples.insert(series), "{series} twice");
            assert!(line.starts_with("# ") || line.starts_with("bramble_"), "{line}");
        }
    }
}
