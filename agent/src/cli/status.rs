//! `bramble status`: what the daemon says now.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    process::ExitCode,
    time::Duration,
};

use anstyle::{AnsiColor, Style};
use wire::report::{Condition, Severity, Stamps};

use crate::{config::Config, report::Snapshot};

/// Shows what the daemon sees now: conditions, readings, findings. Asks the running `bramble run`.
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
        .map_err(|e| format!("the agent did not finish its answer on {shown}: {e}; sudo journalctl -u bramble"))?;
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
        info.model.as_ref().map(|m| format!(", {m}")).unwrap_or_default(),
        bold = Style::new().bold(),
    )];
    lines.push(match (&snapshot.broker_since, &snapshot.broker_why) {
        (Some(since), _) => format!("{dim}broker{dim:#}    connected since {since:.0}"),
        (None, why) => format!("{dim}broker{dim:#}    {}", why.as_deref().unwrap_or("not connected")),
    });
    lines.push(match state.tier.stamps {
        Stamps::Kernel => format!(
            "{dim}probes{dim:#}    stamped by the kernel, attached by {}",
            state.tier.attached.as_deref().unwrap_or("nothing")
        ),
        Stamps::User | Stamps::Mixed => format!("{dim}probes{dim:#}    stamped in user space: {}", state.tier.why),
        Stamps::None => format!("{dim}probes{dim:#}    none: {}", state.tier.why),
    });
    let f = &state.findings;
    lines.push(format!(
        "{dim}check{dim:#}     {} met, {} unmet, {} a person must act, {} waiting, {} could not tell, {} not needed",
        f.met, f.unmet, f.blocked, f.waiting, f.unknown, f.not_needed
    ));
    lines.push(String::new());
    let mut attention: Vec<&Condition> = state.conditions.iter().filter(|c| c.needs_attention()).collect();
    // The explanation comes before what it explains.
    attention.sort_by_key(|c| (c.status != wire::report::Status::Raised, c.depends_on.len(), c.subject.is_none()));
    // A sum of links says nothing that the links below it do not say better.
    let told = |c: &&Condition| {
        c.subject.is_some() || !attention.iter().any(|other| other.id == c.id && other.subject.is_some())
    };
    for condition in attention.iter().copied().filter(|c| told(c)) {
        lines.push(line(condition));
    }
    if attention.is_empty() {
        lines.push(format!("{green}●{green:#} nothing is wrong", green = colour(AnsiColor::Green)));
    }
    lines.push(String::new());
    for reading in state.readings.values() {
        let value = reading.value.map_or("could not tell".to_owned(), |v| {
            let digits = if v.fract() == 0.0 { 0 } else { 2 };
            format!("{v:.digits$} {}", unit(reading.unit))
        });
        lines.push(format!("{dim}{:<20}{dim:#} {}", reading.title, value.trim_end()));
    }
    let known = mesh.peers.len();
    lines.push(format!("{dim}{:<20}{dim:#} {known}; bramble mesh shows them", "Peers"));
    lines.push(String::new());
    lines.join("\n")
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
    format!(
        "{colour}{sign} {word}{colour:#}  {subject}{} ({}, since {:.0})",
        condition.title, condition.evidence, condition.since
    )
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
    }
}
