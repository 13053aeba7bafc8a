//! `bramble check`: judges every requirement, of this machine or of a captured tree. It writes nothing.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use anyhow::Context;
use serde_json::{Value, json};

mod explain;
mod fit;

use super::USAGE;
use crate::config::{Config, visible};
use crate::facts::Facts;
use crate::host::Host;
use crate::k3s::doctor;
use crate::require::{self, Judged, REQUIREMENTS, Requirement, State};

/// Judge every requirement: what holds, what does not, why it matters, what would change.
///
/// Writes nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub struct Check {
    /// Requirements to judge, by id or by number in the catalogue of known faults (BOOT-001); all when none
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// List the requirements instead of judging them
    #[arg(long)]
    list: bool,
    /// Judge which settings of Cilium, Istio and K3s will work on this kernel; tries what it can in a network
    /// namespace that is thrown away
    #[arg(long, conflicts_with_all = ["ids", "list"])]
    fit: bool,
    /// Show one requirement, or those that answer a known fault, on a page: what holds, why, what was found here, what
    /// mends it, and what it looks at
    #[arg(long, value_name = "ID", conflicts_with_all = ["ids", "list", "fit", "json"])]
    explain: Option<String>,
    /// Write the document of all requirements, docs/checks.md of the project
    #[arg(long, hide = true, conflicts_with_all = ["ids", "list", "fit", "json", "explain"])]
    document: bool,
    /// Judge a captured tree of /proc, /sys, /etc, /boot instead of this machine
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

const EXIT_CODES: &str = "\
Exit codes:
  0   all met, or not needed here
  1   at least one is unmet, or waits
  2   none is unmet, and a person must act on at least one
  3   none of these, and at least one could not be told
  64  usage
  66  the directory of --root is no host tree";

/// sysexits.h: an input does not exist or is not readable.
const NO_INPUT: u8 = 66;

/// Runs the verb.
///
/// # Errors
/// When the machine's root cannot be opened, or standard output not be written.
pub fn run(args: &Check, config: &Config) -> anyhow::Result<ExitCode> {
    if args.document {
        return print(&explain::document(), ExitCode::SUCCESS);
    }
    if let Some(page) = args.explain.as_deref().and_then(explain::elsewhere) {
        return print(&page, ExitCode::SUCCESS);
    }
    let chosen = match chosen(args.explain.as_ref().map_or(&args.ids, std::slice::from_ref)) {
        Ok(chosen) => chosen,
        Err(message) => return Ok(refuse(&message, USAGE)),
    };
    if args.list {
        let text = if args.json { list_json(&chosen).to_string() + "\n" } else { list(&chosen, width()) };
        return print(&text, ExitCode::SUCCESS);
    }
    let host = match &args.root {
        None => Host::live().context("opening the machine's root")?,
        Some(dir) => match Host::tree(dir) {
            Ok(host) => host,
            Err(not_a_tree) => return Ok(refuse(&not_a_tree.to_string(), NO_INPUT)),
        },
    };
    if args.fit {
        return fit::run(&host, config, args.json, width());
    }
    let facts = Facts::observe(&host);
    let judged: Vec<Judged> = require::judge(chosen, &facts, config).collect();
    let summary = Summary::of(&judged);
    let text = if args.explain.is_some() {
        judged.iter().map(|judged| explain::page(judged, width())).collect::<Vec<_>>().join("\n")
    } else if args.json {
        json(&host, &facts, &judged, &summary).to_string() + "\n"
    } else {
        table(&host, &facts, &judged, &summary, width())
    };
    print(&text, summary.exit_code())
}

/// What `--json` prints of a host.
pub(super) fn report(host: &Host, facts: &Facts, judged: &[Judged]) -> String {
    json(host, facts, judged, &Summary::of(judged)).to_string() + "\n"
}

pub(super) fn print(text: &str, code: ExitCode) -> anyhow::Result<ExitCode> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // `bramble check | head` has read what it wanted.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(code),
        written => written.map(|()| code).context("writing to standard output"),
    }
}

fn refuse(message: &str, code: u8) -> ExitCode {
    // Nothing can be done about a standard error that is closed.
    let _ = writeln!(anstream::stderr(), "bramble check: {message}");
    ExitCode::from(code)
}

/// Columns of the terminal, or a width that reads well in a file.
pub(super) fn width() -> usize {
    let columns = terminal_size::terminal_size().map(|(columns, _)| usize::from(columns.0));
    columns.filter(|_| io::stdout().is_terminal()).unwrap_or(100).max(40)
}

/// The requirements that were named, each once and in the table's order; all when none was.
fn chosen(ids: &[String]) -> Result<Vec<&'static Requirement>, String> {
    if let Some(message) = ids.iter().find_map(|id| unknown_id(id)) {
        return Err(message);
    }
    let named: Vec<&str> = ids.iter().flat_map(|id| require::named(id)).map(|named| named.id).collect();
    Ok(REQUIREMENTS.iter().filter(|requirement| ids.is_empty() || named.contains(&requirement.id)).collect())
}

/// What is said of an id in `accept` of `[cluster]` that names nothing.
pub(super) fn unknown(id: &str) -> Option<String> {
    unknown_id(id).filter(|_| !doctor::examines(id))
}

/// What is said of an id that names nothing; `None` of one that does.
fn unknown_id(id: &str) -> Option<String> {
    if !require::named(id).is_empty() {
        return None;
    }
    let mut near: Vec<(f64, &str)> = REQUIREMENTS
        .iter()
        .map(|requirement| (strsim::jaro_winkler(&id.to_lowercase(), requirement.id), requirement.id))
        .filter(|(likeness, _)| *likeness > 0.75)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    let near: Vec<&str> = near.into_iter().take(3).map(|(_, id)| id).collect();
    let hint = match near.is_empty() {
        true => "bramble check --list names them all".to_string(),
        false => format!("did you mean {}?", near.join(", ")),
    };
    Some(format!("no requirement is called \"{}\"; {hint}", visible(id)))
}

/// How many are in each state.
struct Summary {
    counts: [(State, usize); 6],
}

impl Summary {
    fn of(judged: &[Judged]) -> Summary {
        let states =
            [State::Met, State::Unmet, State::Waiting, State::Blocked, State::Unknown, State::NotNeeded];
        Summary {
            counts: states
                .map(|state| (state, judged.iter().filter(|judged| judged.state() == state).count())),
        }
    }

    fn has(&self, state: State) -> bool {
        !self.counts.contains(&(state, 0))
    }

    fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    fn code(&self) -> u8 {
        let order = [(State::Unmet, 1), (State::Waiting, 1), (State::Blocked, 2), (State::Unknown, 3)];
        order.iter().find(|(state, _)| self.has(*state)).map_or(0, |(_, code)| *code)
    }

    fn line(&self) -> String {
        let words = |(state, count): &(State, usize)| match state {
            State::Met => Some(format!("{count} met")),
            _ if *count == 0 => None,
            State::Blocked => Some(format!("{count} a person must act on")),
            State::Unknown => Some(format!("{count} could not tell")),
            State::NotNeeded => Some(format!("{count} not needed")),
            State::Unmet | State::Waiting => Some(format!("{count} {}", state.word())),
        };
        self.counts.iter().filter_map(words).collect::<Vec<_>>().join(", ")
    }
}

/// A state's sign, word and style: never colour alone.
fn look(state: State) -> (&'static str, &'static str, Style) {
    let colour = |colour: AnsiColor| Style::new().fg_color(Some(colour.into()));
    match state {
        State::Met => ("✓", "met", colour(AnsiColor::Green)),
        State::Unmet => ("✗", "unmet", colour(AnsiColor::Red).bold()),
        State::Waiting => ("…", "waiting", colour(AnsiColor::Yellow)),
        State::Blocked => ("!", "act", colour(AnsiColor::Red).bold()),
        State::NotNeeded => ("-", "no need", Style::new().dimmed()),
        State::Unknown => ("?", "unknown", colour(AnsiColor::Magenta)),
    }
}

/// Columns before the text of a row: sign, word and id.
const SIGN_AND_WORD: usize = 12;

fn table(host: &Host, facts: &Facts, judged: &[Judged], summary: &Summary, width: usize) -> String {
    let dim = Style::new().dimmed();
    let bold = Style::new().bold();
    let mut text = format!("{bold}{}{bold:#}\n", heading(host, facts));
    let ids = judged.iter().map(|judged| judged.requirement.id.len()).max().unwrap_or(0);
    let mut area = None;
    for judged in judged {
        let requirement = judged.requirement;
        if area != Some(requirement.area) {
            area = Some(requirement.area);
            text += &format!("\n{bold}{}{bold:#}\n", requirement.area);
        }
        let (sign, word, style) = look(judged.state());
        let indent = SIGN_AND_WORD + ids + 2;
        let evidence = wrap(&printable(&judged.evidence()), indent, width);
        text += &format!("  {style}{sign} {word:<8}{style:#}{:<ids$}  {evidence}\n", requirement.id);
        let mut detail = |label: &str, content: &str| {
            let content = wrap(&printable(content), SIGN_AND_WORD + 8, width);
            text += &format!("{:SIGN_AND_WORD$}{dim}{label:<8}{dim:#}{content}\n", "");
        };
        if matches!(judged.state(), State::Unmet | State::Blocked | State::Waiting | State::Unknown) {
            detail("why", requirement.why);
        }
        for change in judged.changes() {
            detail("change", &change.to_string());
        }
        if let Some(next) = judged.next() {
            detail("next", &next);
        }
    }
    text + &format!("\n{bold}{}{bold:#}\n", summary.line())
}

fn heading(host: &Host, facts: &Facts) -> String {
    let known = [
        facts.identity.hostname.as_ref().ok().map(String::as_str),
        facts.board.model.as_ref().ok().and_then(Option::as_deref),
        facts.board.os.as_ref().ok().map(String::as_str),
        facts.kernel.release.as_ref().ok().map(String::as_str),
    ];
    let mut parts: Vec<String> = known.into_iter().flatten().map(printable).collect();
    if !host.is_live() {
        parts.push(format!("from {}", host.root().display()));
    }
    parts.join(", ")
}

/// Text from files may carry what would move the cursor.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Breaks a text at blanks so that lines after the first begin at a column and none passes the width; a word
/// that is longer than a line stays whole, so that it can be copied.
pub(super) fn wrap(text: &str, indent: usize, width: usize) -> String {
    let room = width.saturating_sub(indent).max(20);
    let mut wrapped = String::new();
    let mut column = 0;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > room {
            wrapped += "\n";
            wrapped.extend(std::iter::repeat_n(' ', indent));
            column = 0;
        } else if column > 0 {
            wrapped += " ";
            column += 1;
        }
        wrapped += word;
        column += length;
    }
    wrapped
}

fn list(requirements: &[&Requirement], width: usize) -> String {
    let bold = Style::new().bold();
    let dim = Style::new().dimmed();
    requirements
        .iter()
        .map(|requirement| {
            let Requirement { id, title, why, source, catalogue, .. } = requirement;
            let rows =
                if catalogue.is_empty() { String::new() } else { format!(" ({})", catalogue.join(", ")) };
            format!(
                "{bold}{id}{bold:#}{rows}\n    {}\n    {dim}else    {dim:#}{}\n    {dim}source  {dim:#}{}\n",
                wrap(title, 4, width),
                wrap(why, 12, width),
                wrap(source, 12, width)
            )
        })
        .collect()
}

fn list_json(requirements: &[&Requirement]) -> Value {
    let row = |requirement: &&Requirement| {
        json!({
            "id": requirement.id,
            "area": requirement.area.to_string(),
            "profiles": requirement.profiles.iter().map(|profile| profile.name()).collect::<Vec<_>>(),
            "title": requirement.title,
            "why": requirement.why,
            "source": requirement.source,
            "catalogue": requirement.catalogue,
        })
    };
    json!({ "v": 1, "requirements": requirements.iter().map(row).collect::<Vec<_>>() })
}

fn json(host: &Host, facts: &Facts, judged: &[Judged], summary: &Summary) -> Value {
    let finding = |judged: &Judged| {
        json!({
            "id": judged.requirement.id,
            "area": judged.requirement.area.to_string(),
            "title": judged.requirement.title,
            "state": judged.state().word(),
            "evidence": judged.evidence(),
            "why": judged.requirement.why,
            "source": judged.requirement.source,
            "changes": judged.changes().iter().map(ToString::to_string).collect::<Vec<_>>(),
            "next": judged.next(),
        })
    };
    let mut counts: serde_json::Map<String, Value> =
        summary.counts.iter().map(|(state, count)| (state.word().into(), (*count).into())).collect();
    counts.insert("exit_code".into(), summary.code().into());
    json!({
        "v": 1,
        "host": {
            "root": host.root().to_string_lossy(),
            "live": host.is_live(),
            "name": facts.identity.hostname.as_ref().ok(),
            "board": facts.board.model.as_ref().ok().and_then(Option::as_ref),
            "os": facts.board.os.as_ref().ok(),
            "kernel": facts.kernel.release.as_ref().ok(),
            "machine": facts.kernel.machine.as_ref().ok(),
            "page_size": facts.address_space.page_size.as_ref().ok(),
            "address_bits": facts.address_space.bits.as_ref().ok(),
        },
        "findings": judged.iter().map(finding).collect::<Vec<_>>(),
        "summary": counts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Unreadable, Why};
    use crate::require::Finding;

    fn judged(verdict: require::Verdict) -> Judged {
        Judged { requirement: &REQUIREMENTS[0], verdict }
    }

    fn of_state(state: State) -> Judged {
        let text = String::from("x");
        judged(match state {
            State::Met => Ok(Finding::Met { evidence: text }),
            State::Unmet => Ok(Finding::Unmet { what: text, changes: vec![] }),
            State::Waiting => Ok(Finding::Waiting { why: text }),
            State::Blocked => Ok(Finding::Blocked { what: text.clone(), next: text }),
            State::NotNeeded => Ok(Finding::NotNeeded { why: text }),
            State::Unknown => Err(Unreadable { path: text, why: Why::Missing }),
        })
    }

    #[test]
    fn the_exit_code_names_the_first_of_unmet_blocked_and_unknown() {
        for (states, code) in [
            (&[State::Met, State::NotNeeded][..], 0),
            (&[], 0),
            (&[State::Met, State::Unmet, State::Blocked, State::Unknown], 1),
            (&[State::Waiting], 1),
            (&[State::Unknown, State::Blocked], 2),
            (&[State::Unknown, State::Met], 3),
        ] {
            let judged: Vec<Judged> = states.iter().map(|state| of_state(*state)).collect();
            assert_eq!(Summary::of(&judged).code(), code, "{states:?}");
        }
    }

    #[test]
    fn the_summary_names_what_there_is() {
        let judged: Vec<Judged> =
            [State::Met, State::Met, State::Blocked, State::Unknown].map(of_state).into_iter().collect();
        assert_eq!(Summary::of(&judged).line(), "2 met, 1 a person must act on, 1 could not tell");
    }

    #[test]
    fn an_unknown_id_is_answered_with_those_nearest_to_it() {
        let message = chosen(&["memory-cgruop".into()]).unwrap_err();
        assert!(message.contains("did you mean memory-cgroup"), "{message}");
        let message = chosen(&["\u{1b}[31m".into()]).unwrap_err();
        assert!(message.contains("--list") && !message.contains('\u{1b}'), "{message}");
    }

    #[test]
    fn a_row_of_the_catalogue_names_its_requirements_in_the_tables_order() {
        let chosen = chosen(&["swap".into(), "boot-001".into()]).unwrap();
        let ids: Vec<&str> = chosen.iter().map(|requirement| requirement.id).collect();
        assert_eq!(ids, ["cgroup-v2", "memory-cgroup", "cgroup-controllers", "swap"]);
    }

    #[test]
    fn lines_break_at_blanks_and_keep_long_words_whole() {
        assert_eq!(wrap("aaaa bbbb cccc dddd eeee ffff", 2, 22), "aaaa bbbb cccc dddd\n  eeee ffff");
        let long = "x".repeat(50);
        assert_eq!(wrap(&format!("a {long} b"), 0, 20), format!("a\n{long}\nb"));
    }

    #[test]
    fn what_a_file_says_cannot_move_the_cursor() {
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }

    pub(super) fn a_captured_pi() -> (Host, Facts) {
        let tree = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/hosts/pi5-bookworm-16k");
        let host = Host::tree(tree.as_ref()).unwrap();
        let facts = Facts::observe(&host);
        (host, facts)
    }

    #[test]
    fn json_holds_each_requirement_once_with_what_mends_it() {
        let (host, facts) = a_captured_pi();
        let judged: Vec<Judged> = require::judge(REQUIREMENTS, &facts, &Config::default()).collect();
        let object = json(&host, &facts, &judged, &Summary::of(&judged));
        assert_eq!((&object["v"], &object["host"]["live"]), (&json!(1), &json!(false)));
        assert_eq!(object["host"]["board"], "Raspberry Pi 5 Model B Rev 1.0");
        let findings = object["findings"].as_array().unwrap();
        assert_eq!(findings.len(), REQUIREMENTS.len());
        let total: u64 = ["met", "unmet", "waiting", "blocked", "not_needed", "unknown"]
            .iter()
            .map(|state| object["summary"][state].as_u64().unwrap())
            .sum();
        assert_eq!(total, findings.len() as u64);
        let of = |id: &str| findings.iter().find(|finding| finding["id"] == id).unwrap();
        assert_eq!(
            of("memory-cgroup")["changes"],
            json!([
                "add cgroup_enable=memory to the line of /boot/firmware/cmdline.txt, in force after a reboot"
            ])
        );
        assert!(of("hostname")["next"].as_str().unwrap().contains("set-hostname"));
        assert_eq!(of("disk-space")["state"], "unknown");
    }

    #[test]
    fn the_table_fits_the_terminal_and_keeps_every_finding() {
        let (host, facts) = a_captured_pi();
        let judged: Vec<Judged> = require::judge(REQUIREMENTS, &facts, &Config::default()).collect();
        for width in [80, 100, 200] {
            let text = table(&host, &facts, &judged, &Summary::of(&judged), width);
            let plain = anstream::adapter::strip_str(&text).to_string();
            for requirement in REQUIREMENTS {
                assert!(plain.contains(&format!(" {} ", requirement.id)), "{}", requirement.id);
            }
            // The heading is one line whatever the width; a word that must be copied whole stands alone.
            let broken = |line: &&str| line.chars().count() > width && line.trim().contains(' ');
            let wide = plain.lines().skip(1).find(broken);
            assert_eq!(wide, None, "at width {width}");
            assert!(plain.trim_end().ends_with(&Summary::of(&judged).line()));
        }
    }
}
