//! `bramble status`: what the daemon says now.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    process::ExitCode,
    time::Duration,
};

use anstyle::{AnsiColor, Style};
use wire::report::{Condition, Severity, Stamps};

use super::check::printable;
use crate::{config::Config, report::Snapshot};

/// Show what the daemon sees now: conditions, readings, findings. Asks the running `bramble run`.
///
/// Exit code 0: nothing is wrong; 1: something is; 3: could not tell.
#[derive(Debug, clap::Args)]
pub struct Status {
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// Prints the daemon's snapshot.
///
/// # Errors
/// The output cannot be written.
pub fn run(args: &Status, config: &Config) -> anyhow::Result<ExitCode> {
    let snapshot = match ask(config) {
        Ok(snapshot) => snapshot,
        Err(why) => {
            eprintln!("bramble: {why}");
            return Ok(ExitCode::from(3));
        }
    };
    let mut out = anstream::stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, &snapshot)?;
        writeln!(out)?;
    } else {
        out.write_all(page(&snapshot).as_bytes())?;
    }
    Ok(ExitCode::from(verdict(&snapshot)))
}

/// Asks the daemon.
///
/// # Errors
/// One sentence with the next step.
pub(super) fn ask(config: &Config) -> Result<Snapshot, String> {
    let socket = config.agent_socket();
    let shown = socket.display();
    let mut stream = UnixStream::connect(&socket).map_err(|e| {
        format!("the agent does not answer on {shown}: {e}; is it running? sudo systemctl start bramble")
    })?;
    let mut answer = Vec::new();
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .and_then(|()| stream.read_to_end(&mut answer))
        .map_err(|e| {
            format!("the agent did not finish its answer on {shown}: {e}; sudo journalctl -u bramble")
        })?;
    serde_json::from_slice(&answer).map_err(|e| {
        format!("the agent's answer is not understood: {e}; was bramble upgraded and not restarted?")
    })
}

/// The exit code: raised, could not tell, or well.
fn verdict(snapshot: &Snapshot) -> u8 {
    use wire::report::Status as S;
    let worst = snapshot.state.conditions.iter().map(|c| c.status).max().unwrap_or(S::Unknown);
    match worst {
        S::Raised => 1,
        S::Unknown => 3,
        S::Clear => 0,
    }
}

fn page(snapshot: &Snapshot) -> String {
    let Snapshot { info, state, mesh, .. } = snapshot;
    let dim = Style::new().dimmed();
    let mut lines = vec![format!(
        "{bold}{}{bold:#} in {}, {}{}",
        info.header.node,
        info.header.cluster,
        info.address.map_or("no address".to_owned(), |a| a.to_string()),
        info.model.as_ref().map(|m| format!(", {}", printable(m))).unwrap_or_default(),
        bold = Style::new().bold(),
    )];
    lines.push(match (&snapshot.broker_since, &snapshot.broker_why) {
        (Some(since), _) => format!("{dim}broker{dim:#}    connected since {since:.0}"),
        (None, why) => {
            format!("{dim}broker{dim:#}    {}", printable(why.as_deref().unwrap_or("not connected")))
        }
    });
    lines.push(match state.tier.stamps {
        Stamps::Kernel => format!(
            "{dim}probes{dim:#}    stamped by the kernel, attached by {}",
            printable(state.tier.attached.as_deref().unwrap_or("nothing"))
        ),
        Stamps::User | Stamps::Mixed => {
            format!("{dim}probes{dim:#}    stamped in user space: {}", printable(&state.tier.why))
        }
        Stamps::None => format!("{dim}probes{dim:#}    none: {}", printable(&state.tier.why)),
    });
    if let Some(k3s) = &state.k3s {
        lines.push(format!("{dim}k3s{dim:#}       {}", self::k3s(k3s)));
    }
    let f = &state.findings;
    lines.push(format!(
        "{dim}check{dim:#}     {} met, {} unmet, {} a person must act, {} waiting, {} could not tell, {} not needed",
        f.met, f.unmet, f.blocked, f.waiting, f.unknown, f.not_needed
    ));
    lines.push(String::new());
    let (told, explained) = attention(&state.conditions);
    lines.extend(told.iter().map(|c| line(c)));
    if explained > 0 {
        lines.push(format!("{dim}  {explained} more follow from this; --json shows them{dim:#}"));
    }
    if told.is_empty() {
        let green = colour(AnsiColor::Green);
        lines.push(match f.unmet + f.blocked {
            0 => format!("{green}●{green:#} nothing is wrong"),
            short => format!("{green}●{green:#} nothing went wrong; of what K3s needs, {short} are not met: sudo bramble check"),
        });
    }
    lines.push(String::new());
    for reading in state.readings.values() {
        let moment = |v: f64| jiff::Timestamp::from_second(v as i64).ok().map(|moment| moment.to_string());
        let value = reading.value.map_or("could not tell".to_owned(), |v| {
            if let (wire::report::Unit::Moment, Some(moment)) = (reading.unit, moment(v)) {
                return moment;
            }
            // Round trips in a home are a few thousandths of a millisecond.
            let digits = match v {
                v if v.fract() == 0.0 => 0,
                v if v.abs() < 0.1 => 4,
                _ => 2,
            };
            format!("{v:.digits$} {}", unit(reading.unit))
        });
        lines.push(format!("{dim}{:<20}{dim:#} {}", printable(&reading.title), value.trim_end()));
    }
    let known = mesh.peers.len();
    lines.push(format!("{dim}{:<20}{dim:#} {known}; bramble mesh shows them", "Peers"));
    lines.push(String::new());
    lines.join("\n")
}

fn k3s(k3s: &wire::report::K3s) -> String {
    let wire::report::K3s { phase, step, role, version, cause, since } = k3s;
    let phase = match phase {
        wire::report::Phase::Joining => format!("joining: {step}"),
        wire::report::Phase::Leaving => "leaving".to_owned(),
        wire::report::Phase::Failed => "failed".to_owned(),
        _ => "ready".to_owned(),
    };
    let cause = cause.as_ref().map(|cause| format!("; {}: {}; next: {}", cause.id, cause.why, cause.next));
    format!("{role} {version}, {phase} since {since:.0}{}", cause.unwrap_or_default())
}

/// The conditions that a person should read, worst first, and how many others they explain.
fn attention(conditions: &[Condition]) -> (Vec<&Condition>, usize) {
    use wire::report::Status::Raised;
    let raised = |id: &str| conditions.iter().any(|c| c.id == id && c.status == Raised);
    // A sum of links says nothing that its links do not say better.
    let summed = |c: &Condition| {
        c.subject.is_none()
            && conditions.iter().any(|o| o.id == c.id && o.subject.is_some() && o.needs_attention())
    };
    let open = conditions.iter().filter(|c| c.needs_attention() && !summed(c));
    let (explained, mut told): (Vec<_>, Vec<_>) =
        open.partition(|c| c.depends_on.iter().any(|d| *d != c.id && raised(d)));
    told.sort_by_key(|c| std::cmp::Reverse((c.status, c.severity)));
    (told, explained.len())
}

fn line(condition: &Condition) -> String {
    use wire::report::Status as S;
    let (sign, word, colour) = match (condition.status, condition.severity) {
        (S::Raised, Severity::Critical) => ("✖", "critical", colour(AnsiColor::Red)),
        (S::Raised, Severity::Warning) => ("▲", "warning", colour(AnsiColor::Yellow)),
        (S::Unknown, _) => ("?", "could not tell", colour(AnsiColor::Cyan)),
        (S::Clear, _) => ("●", "clear", colour(AnsiColor::Green)),
    };
    let subject = condition.subject.as_ref().map(|s| format!("{s}: ")).unwrap_or_default();
    let said = printable(&format!(
        "{subject}{} ({}, since {:.0})",
        condition.title, condition.evidence, condition.since
    ));
    format!("{colour}{sign} {word}{colour:#}  {said}")
}

fn colour(colour: AnsiColor) -> Style {
    Style::new().fg_color(Some(colour.into()))
}

fn unit(unit: wire::report::Unit) -> &'static str {
    use wire::report::Unit as U;
    match unit {
        U::Celsius => "°C",
        U::Percent => "%",
        U::Millisecond => "ms",
        U::Byte => "B",
        U::Count => "",
        U::PerSecond => "/s",
        U::BytePerSecond => "B/s",
        U::Second => "s",
        U::Volt => "V",
        U::Ampere => "A",
        U::Watt => "W",
        U::Megahertz => "MHz",
        U::PerMinute => "rpm",
        U::DecibelMilliwatt => "dBm",
        U::Moment => "s since 1970",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(
        id: &str,
        subject: Option<&str>,
        status: wire::report::Status,
        depends_on: &[&str],
    ) -> Condition {
        Condition {
            id: id.to_owned(),
            subject: subject.map(str::to_owned),
            title: String::new(),
            status,
            severity: Severity::Warning,
            since: jiff::Timestamp::UNIX_EPOCH,
            depends_on: depends_on.iter().map(|d| (*d).to_owned()).collect(),
            evidence: String::new(),
        }
    }

    #[test]
    fn what_others_say_is_shown_without_its_control_bytes() {
        let mut condition = condition("name-taken", Some("n\u{7}1"), wire::report::Status::Raised, &[]);
        condition.evidence = "a node with id \u{1b}[2J\n is called so too".to_owned();
        let shown = anstream::adapter::strip_str(&line(&condition)).to_string();
        assert!(!shown.contains(char::is_control) && shown.contains("[2J"), "{shown:?}");
    }

    #[test]
    fn how_far_a_join_is_stands_in_one_line() {
        use wire::report::{Cause, K3s, Phase};
        let [id, why, next] = ["token-pin", "it is another cluster's", "take the other"].map(str::to_owned);
        let mut joined = K3s {
            phase: Phase::Joining,
            step: "kubelet".to_owned(),
            role: "agent".to_owned(),
            version: "v1".to_owned(),
            cause: None,
            since: jiff::Timestamp::UNIX_EPOCH,
        };
        assert_eq!(k3s(&joined), "agent v1, joining: kubelet since 1970-01-01T00:00:00Z");
        joined = K3s { phase: Phase::Failed, cause: Some(Cause { id, why, next }), ..joined };
        let said = k3s(&joined);
        assert!(said.ends_with("; token-pin: it is another cluster's; next: take the other"), "{said}");
    }

    #[test]
    fn the_cause_is_told_and_what_follows_from_it_is_counted() {
        use wire::report::Status::{Clear, Raised, Unknown};
        let conditions = [
            condition("path-cut", None, Raised, &["isolated"]),
            condition("path-cut", Some("n1 -> n2"), Raised, &["isolated"]),
            condition("path-cut", Some("n3 -> n2"), Raised, &["isolated"]),
            condition("drop-reasons", None, Unknown, &["companion"]),
            condition("companion", None, Clear, &[]),
            condition("isolated", None, Raised, &[]),
        ];
        let (told, explained) = attention(&conditions);
        assert_eq!(told.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), ["isolated", "drop-reasons"]);
        assert_eq!(explained, 2);
        let (told, _) = attention(&conditions[..3]);
        assert_eq!(told.len(), 2);
    }
}
