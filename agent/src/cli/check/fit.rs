//! `bramble check --fit`: which settings of Cilium, Istio and K3s will work on this kernel.

use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use serde_json::{Map, Value, json};

use super::{heading, print, printable, wrap};
use crate::config::Config;
use crate::facts::{Fact, Facts};
use crate::fit::{self, Component, Feature, Fit, Observed};
use crate::host::{Host, Why};

/// Finds out what the kernel has, and says what follows from it.
pub(super) fn run(host: &Host, config: &Config, as_json: bool, width: usize) -> anyhow::Result<ExitCode> {
    let facts = Facts::observe(host);
    let observed = fit::observe(host, &facts);
    let features = fit::judge(&observed, &config.cluster);
    let text = if as_json {
        json(&observed, &features).to_string() + "\n"
    } else {
        table(&heading(host, &facts), &observed, &features, width)
    };
    print(&text, ExitCode::from(code(&features)))
}

/// 1 when something wanted will not work, else 3 when something wanted could not be told, else 0.
fn code(features: &[Feature]) -> u8 {
    let wanted = |fits: fn(&Fit) -> bool| features.iter().any(|feature| feature.wanted && fits(&feature.fit));
    match () {
        () if wanted(|fit| matches!(fit, Fit::WorksNot { .. })) => 1,
        () if wanted(|fit| matches!(fit, Fit::Unknown(_))) => 3,
        () => 0,
    }
}

/// A verdict's sign, word and style: never colour alone.
fn look(fit: &Fit) -> (&'static str, &'static str, Style) {
    let colour = |colour: AnsiColor| Style::new().fg_color(Some(colour.into()));
    match fit {
        Fit::Works { .. } => ("✓", "works", colour(AnsiColor::Green)),
        Fit::WorksNot { .. } => ("✗", "works not", colour(AnsiColor::Red)),
        Fit::Unknown(_) => ("?", "unknown", colour(AnsiColor::Magenta)),
    }
}

/// Columns before the text of a row: sign and word.
const SIGN_AND_WORD: usize = 14;

fn table(heading: &str, observed: &Observed, features: &[Feature], width: usize) -> String {
    let bold = Style::new().bold();
    let dim = Style::new().dimmed();
    let mut text = format!("{bold}{heading}{bold:#}\n");
    let mut component: Option<Component> = None;
    for Feature { setting, wanted, fit } in features {
        if component != Some(setting.component) {
            component = Some(setting.component);
            text += &format!("\n{bold}{}{bold:#}\n", setting.component);
        }
        let (sign, word, style) = look(fit);
        let name = format!("{}: {}", setting.key, setting.value);
        let mark = if *wanted { " (wanted)" } else { "" };
        text += &format!("  {style}{sign} {word:<10}{style:#}{name}{dim}{mark}{dim:#}\n");
        let mut detail = |label: &str, content: &str| {
            let content = wrap(&printable(content), SIGN_AND_WORD + 9, width);
            text += &format!("{:SIGN_AND_WORD$}{dim}{label:<9}{dim:#}{content}\n", "");
        };
        match fit {
            Fit::Works { evidence } => detail("evidence", evidence),
            Fit::WorksNot { why } => detail("why", why),
            Fit::Unknown(unreadable) => detail("why", &unreadable.to_string()),
        }
        if let (Fit::WorksNot { .. }, Some(instead)) = (fit, setting.instead) {
            detail("instead", instead);
        }
        if *wanted && !matches!(fit, Fit::Works { .. }) {
            detail("else", setting.otherwise);
        }
    }
    if let Some(untried) = &observed.untried {
        let next = match untried.why {
            Why::Denied => "sudo bramble check --fit tries what can be tried",
            _ => "bramble check --fit on the machine itself tries what can be tried",
        };
        let note = format!("Nothing was tried in a scratch namespace ({untried}): {next}.");
        text += &format!("\n{}\n", wrap(&printable(&note), 0, width));
    }
    text + &format!("\n{bold}{}{bold:#}\n", wrap(&summary(features), 0, width))
}

/// How many of the wanted work, and what of the others.
fn summary(features: &[Feature]) -> String {
    let count = |wanted: bool, word: &str| {
        features.iter().filter(|feature| feature.wanted == wanted && feature.fit.word() == word).count()
    };
    let line = |wanted| {
        let words = [("works", "work"), ("works_not", "work not"), ("unknown", "could not tell")];
        let parts: Vec<String> = words
            .iter()
            .map(|(word, plain)| (count(wanted, word), plain))
            .filter(|(count, _)| *count > 0)
            .map(|(count, plain)| format!("{count} {plain}"))
            .collect();
        if parts.is_empty() { "none".to_string() } else { parts.join(", ") }
    };
    format!("of the wanted: {}; of the others: {}", line(true), line(false))
}

fn json(observed: &Observed, features: &[Feature]) -> Value {
    fn known<T>(fact: &Fact<T>, value: impl Fn(&T) -> Value) -> Value {
        match fact {
            Ok(fact) => value(fact),
            Err(unreadable) => json!({ "unknown": unreadable.to_string() }),
        }
    }
    let abilities: Map<String, Value> = observed
        .abilities
        .iter()
        .map(|(id, seen)| {
            let seen = known(seen, |seen| {
                let detail = (!seen.detail.is_empty()).then_some(&seen.detail);
                json!({ "has": seen.has, "how": seen.how.word(), "detail": detail })
            });
            ((*id).to_string(), seen)
        })
        .collect();
    let feature = |Feature { setting, wanted, fit }: &Feature| {
        let why = match fit {
            Fit::Works { evidence } => evidence.clone(),
            Fit::WorksNot { why } => why.clone(),
            Fit::Unknown(unreadable) => unreadable.to_string(),
        };
        json!({
            "component": setting.component.to_string(),
            "setting": setting.key,
            "value": setting.value,
            "instead": setting.instead,
            "fit": fit.word(),
            "wanted": wanted,
            "why": why,
            "otherwise": setting.otherwise,
            "source": setting.source,
        })
    };
    json!({
        "v": 1,
        "observed": {
            "kernel": known(&observed.version, |(major, minor)| json!(format!("{major}.{minor}"))),
            "page_size": known(&observed.page_size, |size| json!(size)),
            "address_bits": known(&observed.address_bits, |bits| json!(bits)),
            "btf": known(&observed.btf, |btf| json!(btf)),
            "iptables": known(&observed.iptables, |back_end| json!(back_end.map(fit::BackEnd::word))),
            "untried": observed.untried.as_ref().map(ToString::to_string),
            "abilities": abilities,
        },
        "features": features.iter().map(feature).collect::<Vec<_>>(),
        "exit_code": code(features),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_captured_pi() -> (String, Observed, Vec<Feature>) {
        let tree = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/hosts/pi4-trixie-4k");
        let host = Host::tree(tree.as_ref()).unwrap();
        let facts = Facts::observe(&host);
        let observed = fit::observe(&host, &facts);
        let features = fit::judge(&observed, &Config::default().cluster);
        (heading(&host, &facts), observed, features)
    }

    #[test]
    fn the_exit_code_looks_at_what_is_wanted_only() {
        let (_, _, mut features) = a_captured_pi();
        let works = || Fit::Works { evidence: String::new() };
        let works_not = || Fit::WorksNot { why: String::new() };
        let unknown = || Fit::Unknown(crate::host::Unreadable { path: String::new(), why: Why::Denied });
        features.truncate(2);
        for (wanted, fits, expected) in [
            ([true, true], [works(), works()], 0),
            ([true, true], [works(), unknown()], 3),
            ([true, true], [works_not(), unknown()], 1),
            ([true, false], [works(), works_not()], 0),
            ([false, false], [unknown(), works_not()], 0),
        ] {
            for ((feature, wanted), fit) in features.iter_mut().zip(wanted).zip(fits) {
                (feature.wanted, feature.fit) = (wanted, fit);
            }
            assert_eq!(code(&features), expected);
        }
    }

    #[test]
    fn the_table_says_of_every_setting_what_becomes_of_it_and_why() {
        let (heading, observed, features) = a_captured_pi();
        for width in [80, 120] {
            let text = table(&heading, &observed, &features, width);
            let plain = anstream::adapter::strip_str(&text).to_string();
            for Feature { setting, .. } in &features {
                assert!(plain.contains(&format!("{}: {}", setting.key, setting.value)));
            }
            let words: Vec<&str> = plain.split_whitespace().collect();
            assert!(words.join(" ").contains("on the machine itself tries what can be tried"), "{plain}");
            let wide = plain.lines().skip(1).find(|line| line.chars().count() > width);
            assert_eq!(wide, None);
        }
    }

    #[test]
    fn json_holds_what_was_observed_and_every_setting_once() {
        let (_, observed, features) = a_captured_pi();
        let object = json(&observed, &features);
        assert_eq!(object["v"], 1);
        assert_eq!(object["observed"]["page_size"], 4096);
        assert_eq!(object["observed"]["abilities"]["vxlan"]["how"], "on_disk");
        assert_eq!(object["observed"]["abilities"]["geneve"]["has"], false);
        assert_eq!(object["features"].as_array().unwrap().len(), fit::SETTINGS.len());
        assert_eq!(object["exit_code"], 1, "Envoy is wanted and does not fit into 39 bits");
    }
}
