//! bramble: arguments, journal, dispatch.

use clap::Parser;

#[derive(Parser)]
enum Verb {
    Check(bramble::cli::check::Check),
}

fn main() -> anyhow::Result<std::process::ExitCode> {
    let Verb::Check(args) = Verb::parse();
    bramble::cli::check::run(&args, &bramble::config::Config::default())
}
