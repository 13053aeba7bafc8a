//! xtask: everything that is done to this repository rather than by it. One file per verb.
#![allow(clippy::disallowed_methods, reason = "works on the checkout and its own machine, not on a node")]
#![allow(clippy::print_stdout, reason = "standard output is what a verb is asked for")]

mod bench;
mod build;
mod chart;
mod ci;
mod cross;
mod deb;
mod demo;
mod docs;
mod ebpf;
mod figures;
mod interrupt;
mod licence;
mod machine;
mod repo;
mod schema;
mod setup;
mod test;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

/// Set-up, eBPF objects, demo, tests and benchmarks.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Verb {
    Setup(setup::Arguments),
    Ebpf(ebpf::Arguments),
    Cross(cross::Arguments),
    Deb(deb::Arguments),
    Repo(repo::Arguments),
    Demo(demo::Arguments),
    Docs(docs::Arguments),
    Chart(chart::Arguments),
    Test(test::Arguments),
    #[command(subcommand)]
    Machine(machine::Verb),
    Ci(ci::Arguments),
    #[command(subcommand)]
    Bench(bench::Verb),
}

fn main() -> ExitCode {
    let outcome = match Verb::parse() {
        Verb::Setup(arguments) => setup::run(&arguments),
        Verb::Ebpf(arguments) => ebpf::run(&arguments),
        Verb::Cross(arguments) => cross::run(&arguments),
        Verb::Deb(arguments) => deb::run(&arguments),
        Verb::Repo(arguments) => repo::run(&arguments),
        Verb::Demo(arguments) => demo::run(&arguments),
        Verb::Docs(arguments) => docs::run(&arguments),
        Verb::Chart(arguments) => chart::run(&arguments),
        Verb::Test(arguments) => test::run(&arguments),
        Verb::Machine(verb) => machine::run(&verb),
        Verb::Ci(arguments) => ci::run(&arguments),
        Verb::Bench(verb) => bench::run(&verb),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// The checkout that this xtask was built from.
fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}
