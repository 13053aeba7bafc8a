//! bramble-aggregator: arguments, journal, dispatch.

use std::{path::PathBuf, process::ExitCode};

use bramble_aggregator::{config::Config, serve};
use clap::Parser;
use tracing_subscriber::{filter::LevelFilter, layer::SubscriberExt, util::SubscriberInitExt};

/// sysexits: wrong arguments, a failure of the system, a wrong configuration.
const USAGE: u8 = 64;
const OS_ERROR: u8 = 71;
const CONFIG: u8 = 78;

/// Shows a whole bramble: the mesh of all nodes, one alert for each root cause, a live page and metrics.
#[derive(Parser)]
#[command(name = "bramble-aggregator", version)]
struct Arguments {
    /// Configuration file [default: /etc/bramble/aggregator.toml, or the defaults when it is absent]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Where it belongs: help to stdout, errors to stderr. There is nobody to tell if that fails.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    start_journal();
    let config = match Config::load(arguments.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return failed(&error.into(), CONFIG),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into(), OS_ERROR),
    };
    match runtime.block_on(serve::run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error, OS_ERROR),
    }
}

fn failed(error: &anyhow::Error, code: u8) -> ExitCode {
    tracing::error!("{error:#}");
    ExitCode::from(code)
}

/// To the journal when systemd started us, else to stderr.
fn start_journal() {
    let registry = tracing_subscriber::registry().with(LevelFilter::INFO);
    let journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
    match journal {
        Some(layer) => {
            // The crate's own mapping makes every INFO line a notice.
            use tracing_journald::{Priority, PriorityMappings};
            let mappings = PriorityMappings { info: Priority::Informational, ..PriorityMappings::new() };
            registry.with(layer.with_priority_mappings(mappings)).init();
        }
        None => {
            let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
            registry.with(layer).init();
        }
    }
}
