//! `bramble mesh`: live table of peers, both ways, like mtr.

use std::{
    fmt::Write as _,
    io::{IsTerminal, Write as _},
    process::ExitCode,
    time::Duration,
};

use anstyle::{AnsiColor, Style};
use wire::report::{PeerReport, Stamps, Way, WayState};

use super::status::ask;
use crate::{config::Config, report::Snapshot};

/// Show the links to and from each peer: loss, delay, round trip. It repeats every second on a terminal.
///
/// Exit code 0: all links are fine; 1: one is not; 3: could not tell.
#[derive(Debug, clap::Args)]
pub struct Mesh {
    /// Print once and end, as when the output is no terminal.
    #[arg(long)]
    once: bool,
    /// One JSON object instead of the table.
    #[arg(long, conflicts_with = "once")]
    json: bool,
}

/// Prints the table, once or until interrupted.
///
/// # Errors
/// The output cannot be written.
pub fn run(args: &Mesh, config: &Config) -> anyhow::Result<ExitCode> {
    let live = !args.once && !args.json && std::io::stdout().is_terminal();
    let mut out = anstream::stdout().lock();
    loop {
        let code = match ask(config) {
            Err(why) => {
                eprintln!("bramble: {why}");
                3
            }
            Ok(snapshot) if args.json => {
                serde_json::to_writer(&mut out, &snapshot.mesh)?;
                writeln!(out)?;
                verdict(&snapshot)
            }
            Ok(snapshot) => {
                if live {
                    // Home, and clear to the end: less flicker than clearing first.
                    write!(out, "\x1b[H\x1b[J")?;
                }
                out.write_all(table(&snapshot).as_bytes())?;
                verdict(&snapshot)
            }
        };
        out.flush()?;
        if !live {
            return Ok(ExitCode::from(code));
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn verdict(snapshot: &Snapshot) -> u8 {
    let worst = snapshot.mesh.peers.values().flat_map(|p| [p.out.state, p.incoming.state]).max();
    match worst {
        Some(WayState::Fine) => 0,
        Some(WayState::Unknown) | None => 3,
        Some(_) => 1,
    }
}

fn table(snapshot: &Snapshot) -> String {
    let node = &snapshot.info.header.node;
    let bold = Style::new().bold();
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{bold}{:<16} {:<22} {:<22} {:>10} {:>10} {:>10}  STAMPS{bold:#}",
        "PEER",
        format!("{node} -> PEER"),
        format!("PEER -> {node}"),
        "ROUND TRIP",
        "FASTEST",
        "SLOWEST",
    );
    for (peer, report) in &snapshot.mesh.peers {
        let PeerReport { out, incoming, round_trip, .. } = report;
        let time = |us: Option<f64>| {
            us.map_or("-".to_owned(), |us| {
                if us < 1000.0 { format!("{us:.1} us") } else { format!("{:.2} ms", us / 1000.0) }
            })
        };
        let _ = writeln!(
            text,
            "{:<16} {} {} {:>10} {:>10} {:>10}  {}",
            peer.as_str(),
            cell(out),
            cell(incoming),
            time(round_trip.map(|r| r.median_us)),
            time(round_trip.map(|r| r.min_us)),
            time(round_trip.map(|r| r.max_us)),
            match round_trip.map(|r| r.stamps) {
                Some(Stamps::Kernel) => "kernel",
                Some(Stamps::Mixed) => "mixed",
                Some(Stamps::User) => "user space",
                Some(Stamps::None) | None => "-",
            }
        );
    }
    if snapshot.mesh.peers.is_empty() {
        let why = match (&snapshot.broker_why, &snapshot.mesh.tier.stamps) {
            (Some(why), _) => format!("not connected to the broker, which tells of them: {why}"),
            (None, Stamps::None) => snapshot.mesh.tier.why.clone(),
            (None, _) => "the broker knows of no other node in this cluster".to_owned(),
        };
        let _ = writeln!(text, "no peers: {why}");
    }
    text
}

/// State, loss and delay of one way, 22 columns wide.
fn cell(way: &Way) -> String {
    let (word, colour) = match way.state {
        WayState::Fine => ("fine", AnsiColor::Green),
        WayState::Unknown => ("could not tell", AnsiColor::Cyan),
        WayState::Slow => ("slow", AnsiColor::Yellow),
        WayState::Lossy => ("lossy", AnsiColor::Yellow),
        WayState::Cut => ("cut", AnsiColor::Red),
    };
    let detail = match (way.state, way.loss, way.delay_ms) {
        (WayState::Slow, _, Some(ms)) => format!("{word} +{ms:.1} ms"),
        (WayState::Unknown, _, _) | (_, None, _) => word.to_owned(),
        (_, Some(loss), _) => format!("{word} {:.0} %", loss * 100.0),
    };
    let style = Style::new().fg_color(Some(colour.into()));
    format!("{style}{detail:<22}{style:#}")
}
