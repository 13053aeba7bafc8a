//! The operator's command: one file per verb.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{
    config::{BadConfig, Config},
    host::Host,
    journal,
};

pub mod apply;
pub mod bundle;
pub mod check;
pub mod completions;
pub mod forget;
pub mod join;
pub mod kubernetes;
pub mod leave;
pub mod man;
pub mod mesh;
pub mod obey;
pub mod plan;
pub mod probe;
pub mod render;
pub mod revert;
pub mod run;
pub mod status;

/// Wrong use of the command line, or of the configuration (sysexits.h, `EX_USAGE`).
pub const USAGE: u8 = 64;
/// Something that should not happen (sysexits.h, `EX_SOFTWARE`).
pub const FAILURE: u8 = 70;

/// Makes a Raspberry Pi fit for K3s with Cilium, proves that the network works, and says what is wrong when it does not.
#[derive(Debug, Parser)]
#[command(name = "bramble", version)]
pub struct Bramble {
    /// Configuration to use instead of /etc/bramble/bramble.toml and /etc/bramble/conf.d
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<std::path::PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Check(check::Check),
    Plan(plan::Plan),
    Apply(apply::Apply),
    Revert(revert::Revert),
    Join(join::Join),
    Leave(leave::Leave),
    Status(status::Status),
    Forget(forget::Forget),
    Mesh(mesh::Mesh),
    Bundle(bundle::Bundle),
    Render(render::Render),
    Run(run::Run),
    Probe(probe::Probe),
    Obey(obey::Obey),
    Kubernetes(kubernetes::Kubernetes),
    Completions(completions::Completions),
    Man(man::Man),
}

/// Parses the command line and does what it says. Exit codes: 0 all is well, 1 something is not, 2 a person must act,
/// 3 could not tell, 64 and up wrong use and bugs.
pub fn main() -> ExitCode {
    let bramble = match Bramble::try_parse() {
        Ok(bramble) => bramble,
        Err(error) => {
            let code = if error.use_stderr() { USAGE } else { 0 };
            // A closed pipe is the reader's business.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match bramble.run() {
        Ok(code) => code,
        // Whoever read has seen enough: `bramble status | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let usage = error.is::<BadConfig>();
            // One line in the journal with the priority of an error, one on a terminal.
            match std::env::var_os("JOURNAL_STREAM") {
                Some(_) => tracing::error!(message_id = usage.then_some(journal::BAD_CONFIG), "{error:#}"),
                None => eprintln!("bramble: {error:#}"),
            }
            ExitCode::from(if usage { USAGE } else { FAILURE })
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

impl Bramble {
    fn run(self) -> anyhow::Result<ExitCode> {
        // What speaks of the program itself needs no configuration, and the way back must not need a good one.
        match &self.verb {
            Verb::Completions(args) => return completions::run(args),
            Verb::Man(args) => return man::run(args),
            Verb::Revert(args) => return revert::run(args),
            Verb::Leave(args) => return leave::run(args),
            _ => {}
        }
        let host = Host::live()?;
        let path = match &self.config {
            // Paths are resolved from the root of the host, so this one is made to begin there.
            Some(path) => Some(std::path::absolute(path)?.to_string_lossy().into_owned()),
            None => None,
        };
        let config = load(&host, path.as_deref())?;
        match &self.verb {
            Verb::Check(args) => {
                // What would stop the agent is said here too, as far as this user can see it.
                match config.mqtt.login() {
                    Ok(_) | Err(BadConfig::Denied(_)) => check::run(args, &config),
                    Err(why) => Err(why.into()),
                }
            }
            Verb::Plan(args) => plan::run(args, &config),
            Verb::Apply(args) => apply::run(args, &config),
            Verb::Join(args) => join::run(args, &config, &host),
            Verb::Status(args) => status::run(args, &config),
            Verb::Mesh(args) => mesh::run(args, &config),
            Verb::Obey(args) => obey::run(args, &config),
            Verb::Forget(_) => forget::run(&config),
            Verb::Bundle(args) => bundle::run(args, &config, path.as_deref()),
            Verb::Render(args) => render::run(args, &config, &host),
            Verb::Run(_) => run::run(config, &host, path.as_deref()),
            Verb::Probe(_) => probe::run(config, &host, path.as_deref()),
            Verb::Kubernetes(args) => kubernetes::run(args, &config, &host, path.as_deref()),
            Verb::Completions(_) | Verb::Man(_) | Verb::Revert(_) | Verb::Leave(_) => {
                unreachable!("they were done above")
            }
        }
    }
}

/// The configuration, in which nothing is accepted that names nothing.
fn load(host: &Host, path: Option<&str>) -> Result<Config, BadConfig> {
    Config::load(host, path, check::unknown)
}

/// One thread is enough for each daemon, and takes less memory than two.
fn block_on<F: Future>(future: F) -> anyhow::Result<F::Output> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future))
}
