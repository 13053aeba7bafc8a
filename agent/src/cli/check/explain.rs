//! `bramble check --explain ID`: all that is known about one requirement, on one page; and the page of all of them.

use anstyle::Style;

use super::{SIGN_AND_WORD, look, printable, wrap};
use crate::config::cluster::Profile;
use crate::require::{Area, Fault, Judged, REQUIREMENTS, Requirement, State, faults, rows_of};

/// One page: what holds, why, what was found here, what mends it, where it is known from, who asks for it, and what it
/// looks at.
pub(super) fn page(judged: &Judged, width: usize) -> String {
    let (bold, dim) = (Style::new().bold(), Style::new().dimmed());
    let requirement = judged.requirement;
    let (sign, word, style) = look(judged.state());
    let mut text = format!("{bold}{}{bold:#}  {}\n\n", requirement.id, requirement.title);
    let mut line = |label: &str, content: &str| {
        let content = wrap(&printable(content), SIGN_AND_WORD, width);
        text += &format!("  {dim}{label:<10}{dim:#}{content}\n");
    };
    line("why", requirement.why);
    line("here", &format!("{sign} {word}: {}", judged.evidence()));
    for change in judged.changes() {
        line("change", &change.to_string());
    }
    if let Some(next) = judged.next() {
        line("next", &next);
    }
    line("fix", requirement.fix);
    for profile in requirement.profiles {
        line("asked by", &asker(*profile));
    }
    for fault in answered(requirement) {
        line("answers", &format!("{} {} ({})", fault.id, fault.title, fault.severity));
    }
    line("source", requirement.source);
    for row in rows_of(requirement) {
        line("looks at", &row);
    }
    if matches!(judged.state(), State::Unmet | State::Blocked) {
        line(
            "accept",
            &format!(
                "accept = [\"{}\"] in [cluster] of a file of your own, /etc/bramble/conf.d/NAME.toml",
                requirement.id
            ),
        );
    }
    // The sign alone is coloured, and the wrapping above counts letters.
    text.replacen(&format!("{sign} {word}:"), &format!("{style}{sign} {word}{style:#}:"), 1)
}

/// What is said of a known fault that no requirement answers; `None` of any other id.
pub(super) fn elsewhere(id: &str) -> Option<String> {
    let fault = faults().find(|fault| fault.id.eq_ignore_ascii_case(id) && fault.answered_by.is_empty())?;
    Some(format!(
        "{} {} ({})\n\n  No requirement answers it; {}: {}.\n",
        fault.id,
        fault.title,
        fault.severity,
        place(fault.room),
        fault.reason
    ))
}

fn asker(profile: Profile) -> String {
    match profile {
        Profile::Node => "every node".to_string(),
        profile => format!("{profile} ({})", profile.setting()),
    }
}

fn answered(requirement: &Requirement) -> impl Iterator<Item = Fault> {
    faults().filter(|fault| requirement.catalogue.contains(&fault.id))
}

fn place(room: &str) -> String {
    match room.split_once(' ').unwrap_or((room, "")) {
        ("probe", ids) => format!("it belongs to the daemon's probes ({})", ids.replace(' ', ", ")),
        ("join", _) => "it belongs to joining the cluster".to_owned(),
        ("render", _) => "it belongs to the configuration that is written for the node".to_owned(),
        ("unseen", _) => "bramble does not see it".to_owned(),
        _ => "it belongs to reporting".to_owned(),
    }
}

/// docs/checks.md.
pub(super) fn document() -> String {
    let mut text = String::from(
        "# Checks\n\nWritten by `cargo xtask docs` from the program's own tables; do not edit.\n\n\
         `bramble check` judges all of these, `bramble check --explain ID` shows one of them as it stands on your node.\n\
         What applies follows `[cluster]` in a file of your own, `/etc/bramble/conf.d/NAME.toml`; a shortfall that you know and \
         accept goes into `accept` there.\n",
    );
    let areas: [(Area, &str); 8] = [
        (Area::Kernel, "Kernel"),
        (Area::Boot, "Boot"),
        (Area::Mount, "Control groups and mounts"),
        (Area::Storage, "Storage"),
        (Area::Network, "Network"),
        (Area::System, "System"),
        (Area::K3s, "K3s"),
        (Area::Migration, "Migration"),
    ];
    for (area, heading) in areas {
        text += &format!("\n## {heading}\n");
        for requirement in REQUIREMENTS.iter().filter(|requirement| requirement.area == area) {
            text += &section(requirement);
        }
    }
    text += "\n## Known faults\n\nEach fault that bramble knows, and where it answers it.\n\n\
             | Fault | What goes wrong | Severity | Answer |\n|---|---|---|---|\n";
    for fault in faults() {
        let answer = match fault.answered_by {
            "" => format!("no check; {}: {}", place(fault.room), fault.reason),
            ids => ids.split_whitespace().map(|id| format!("[{id}](#{id})")).collect::<Vec<_>>().join(", "),
        };
        text += &format!("| {} | {} | {} | {answer} |\n", fault.id, cell(fault.title), fault.severity);
    }
    text
}

fn section(requirement: &Requirement) -> String {
    let profiles: Vec<String> = requirement.profiles.iter().map(|profile| asker(*profile)).collect();
    let mut text = format!(
        "\n### {}\n\n{}.\nWhy: {}.\nFix: {}.\n\n- Asked for by: {}\n- Source: {}\n",
        requirement.id,
        upper(requirement.title),
        requirement.why,
        requirement.fix,
        profiles.join(", "),
        requirement.source
    );
    let faults: Vec<String> =
        answered(requirement).map(|fault| format!("{} ({})", fault.id, fault.title)).collect();
    if !faults.is_empty() {
        text += &format!("- Answers: {}\n", faults.join(", "));
    }
    let rows = rows_of(requirement);
    if !rows.is_empty() {
        text += "- Looks at:\n";
        for row in rows {
            text += &format!("  - `{row}`\n");
        }
    }
    text
}

fn upper(sentence: &str) -> String {
    let mut letters = sentence.chars();
    let first = letters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    first + letters.as_str()
}

/// A stroke would end the cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::super::tests::a_captured_pi;
    use super::*;
    use crate::config::Config;
    use crate::require;

    #[test]
    fn a_page_says_all_that_is_known_and_fits_the_terminal() {
        let (_, facts) = a_captured_pi();
        for judged in require::judge(REQUIREMENTS, &facts, &Config::default()) {
            let plain = anstream::adapter::strip_str(&page(&judged, 80)).to_string();
            let requirement = judged.requirement;
            for label in ["why", "here", "fix", "asked by", "source"] {
                assert!(plain.contains(&format!("\n  {label}")), "{}: {plain}", requirement.id);
            }
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            for text in [requirement.why, requirement.fix] {
                assert!(words(&plain).contains(&words(text)), "{plain}");
            }
            assert!(words(&plain).contains(&words(&judged.evidence())), "{plain}");
            let broken = |line: &&str| line.chars().count() > 80 && line.trim().contains(' ');
            assert_eq!(plain.lines().skip(1).find(broken), None, "{}", requirement.id);
        }
    }

    #[test]
    fn a_fault_that_belongs_elsewhere_says_where_and_why() {
        let text = elsewhere("nic-001").unwrap();
        assert!(text.contains("NIC-001") && text.contains("the daemon's probes"), "{text}");
        assert_eq!(elsewhere("BOOT-001"), None);
        assert_eq!(elsewhere("page-size"), None);
    }

    #[test]
    fn a_fault_that_belongs_to_probes_names_some_that_there_are() {
        let mut named = 0;
        for fault in faults() {
            for id in fault.room.split_whitespace().skip(1) {
                assert!(crate::probe::PROBES.iter().any(|probe| probe.id == id), "{fault:?}");
                named += 1;
            }
        }
        assert!(named > 10, "{named}");
    }

    #[test]
    fn the_document_is_what_the_tables_say() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/checks.md");
        #[allow(clippy::disallowed_methods, reason = "the test reads the checkout")]
        let written = std::fs::read_to_string(path).unwrap_or_default();
        let same = written == document();
        assert!(same, "docs/checks.md is not what the tables say now: cargo xtask docs");
    }
}
