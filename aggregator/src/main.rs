//! bramble-aggregator: arguments, journal, dispatch.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use bramble_aggregator::{
    config::{BadConfig, Config},
    farewell,
    notify::{Asked, BAD_CONFIG, Service},
    serve,
};
use clap::{CommandFactory as _, Parser};
use tracing_subscriber::{
    filter::LevelFilter, fmt::format::debug_fn, layer::SubscriberExt, util::SubscriberInitExt,
};
use wire::topic::Name;

/// sysexits: wrong arguments or a wrong configuration, a failure of the system. [`AFTER_HELP`] lists them.
const USAGE: u8 = 64;
const OS_ERROR: u8 = 71;

const AFTER_HELP: &str = "\
A reload that changes the cluster's name or the prefix takes what was said under the former one off the broker.
A restart does not; then a file that still has the former one helps:
bramble-aggregator --config FILE --forget-cluster

Exit codes:
  0   it was asked to end, or what was asked for is done
  64  usage, or a fault of the configuration: to try again is in vain
  71  all else: the page's address is taken; with --forget and --forget-cluster: the broker is away or refuses
      something, or the aggregator still runs";

/// Shows a whole bramble: the mesh of all nodes, one alert for each root cause, a live page and metrics.
#[derive(Parser)]
#[command(name = "bramble-aggregator", version, after_help = AFTER_HELP)]
struct Arguments {
    /// Configuration to use instead of /etc/bramble/aggregator.toml and /etc/bramble/aggregator.d
    #[arg(long, value_name = "FILE")]
    config: Option<String>,
    /// Only read the configuration, say what is wrong with it, and end: 0 when it is good, 64 when it is not
    #[arg(long, conflicts_with_all = ["forget", "forget_cluster"])]
    check: bool,
    /// Take a node that is gone for good off the broker, so that nothing shows it any more, and end
    #[arg(long, value_name = "NODE", value_parser = Name::new, conflicts_with = "forget_cluster")]
    forget: Option<Name>,
    /// Take all that the aggregator itself said off the broker, when it goes for good, and end: the cluster's device, state and
    /// alerts. It must be stopped
    #[arg(long)]
    forget_cluster: bool,
    /// Print the completions for a shell, and end; the package has them already
    #[arg(long, value_name = "SHELL", hide = true)]
    completions: Option<clap_complete::Shell>,
    /// Write the manual page into a directory, and end; the package has it already
    #[arg(long, value_name = "DIR", hide = true)]
    man: Option<PathBuf>,
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
    if let Some(shell) = arguments.completions {
        let command = &mut Arguments::command();
        clap_complete::generate(shell, command, "bramble-aggregator", &mut std::io::stdout().lock());
        return ExitCode::SUCCESS;
    }
    start_journal();
    if let Some(directory) = &arguments.man {
        return match clap_mangen::generate_to(Arguments::command(), directory) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error.into(), OS_ERROR),
        };
    }
    let config = match Config::load(arguments.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return failed(&error.into(), USAGE),
    };
    if arguments.check {
        return ExitCode::SUCCESS;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into(), OS_ERROR),
    };
    if let Some(node) = &arguments.forget {
        return match runtime.block_on(serve::forget(&config, node)) {
            Ok(found) => forgotten(node.as_str(), found),
            Err(error) => failed(&error, OS_ERROR),
        };
    }
    if arguments.forget_cluster {
        return match runtime.block_on(farewell::forget_cluster(&config)) {
            Ok(found) => forgotten(&format!("cluster {}", config.cluster), found),
            Err(error) => failed(&error, OS_ERROR),
        };
    }
    match runtime.block_on(run(config, arguments.config.as_deref())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error, OS_ERROR),
    }
}

/// Runs until SIGTERM or SIGINT; begins anew at SIGHUP, if the configuration is good.
async fn run(mut config: Config, path: Option<&str>) -> anyhow::Result<()> {
    let mut service = Service::start(path)?;
    let mut door = serve::Door::open(&config.web)?;
    while let Some((mut next, mut reopened, other)) = serve::run(&config, door, &mut service).await? {
        // Asked something meanwhile, it stops; with a newer configuration, what is left behind may be more.
        while let Some(asked) = farewell::move_on(&config, &next, other, &mut service).await {
            match asked {
                Asked::End => {
                    tracing::info!("stopping");
                    return Ok(());
                }
                Asked::Reload(newer) => {
                    if let Some(newer) = reopened.anew(*newer, &mut service) {
                        (next, reopened) = newer;
                    }
                }
            }
        }
        (config, door) = (next, reopened);
    }
    Ok(())
}

fn forgotten(who: &str, topics: usize) -> ExitCode {
    // There is nobody to tell if that fails.
    let _ = writeln!(std::io::stdout(), "{who} is off the broker: {topics} topics emptied");
    ExitCode::SUCCESS
}

fn failed(error: &anyhow::Error, code: u8) -> ExitCode {
    // One line in the journal with the priority of an error, one on a terminal.
    match std::env::var_os("JOURNAL_STREAM") {
        Some(_) => tracing::error!(message_id = error.is::<BadConfig>().then_some(BAD_CONFIG), "{error:#}"),
        None => eprintln!("bramble-aggregator: {error:#}"),
    }
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
            registry.with(layer.with_field_prefix(None).with_priority_mappings(mappings)).init();
        }
        None => {
            // The words say it; fields are for the journal.
            let words = debug_fn(|to, field, value| match field.name() {
                "message" => write!(to, "{value:?}"),
                _ => Ok(()),
            });
            let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
            registry.with(layer.fmt_fields(words)).init();
        }
    }
}
