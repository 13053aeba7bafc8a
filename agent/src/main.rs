//! bramble: the command, the agent and the companion in one program.

use std::process::ExitCode;

fn main() -> ExitCode {
    journal();
    bramble::cli::main()
}

/// Under systemd into the journal, with fields and priorities; otherwise to standard error.
fn journal() {
    use tracing_journald::{Priority, PriorityMappings};
    use tracing_subscriber::{filter::LevelFilter, prelude::*};

    let under_systemd = std::env::var_os("JOURNAL_STREAM").is_some();
    let journal = under_systemd.then(tracing_journald::layer).and_then(Result::ok).map(|layer| {
        layer.with_field_prefix(None).with_priority_mappings(PriorityMappings {
            info: Priority::Informational,
            ..PriorityMappings::new()
        })
    });
    let stderr = journal.is_none().then(|| {
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false).without_time()
    });
    // rumqttc logs what wire::connection reports better.
    let ours = tracing_subscriber::filter::filter_fn(|meta| !meta.target().starts_with("rumqttc"));
    tracing_subscriber::registry().with(journal).with(stderr).with(ours).with(LevelFilter::INFO).init();
}
