//! `bramble render`: the configuration that will work on these nodes, on standard output.

use std::path::PathBuf;
use std::process::ExitCode;

use super::USAGE;
use super::check::print;
use crate::config::Config;
use crate::host::Host;
use crate::k3s::cilium::{self, Node};
use crate::k3s::configuration;

/// Show the configuration that will work on these nodes
#[derive(Debug, clap::Args)]
pub struct Render {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Cilium(Cilium),
    /// The files that K3s reads on this node
    K3s,
}

/// The values for Cilium's chart, as this node's kernel and those of others allow
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
struct Cilium {
    /// What another node's `bramble check --fit --json` printed, in a file named after it; can be given more than once
    #[arg(long, value_name = "FILE")]
    fit: Vec<PathBuf>,
    /// Print what K3s' Helm controller installs instead of the values alone
    #[arg(long)]
    manifest: bool,
}

const EXIT_CODES: &str = "\
Exit codes:
  0   all is as [cluster] wants it
  1   something is other than that: it stands on standard error
  2   it will not work: a person must act
  64  usage, or a fault of the configuration";

const REMARKS: u8 = 1;
const REFUSED: u8 = 2;

/// Runs the verb.
///
/// # Errors
/// When standard output cannot be written.
pub fn run(args: &Render, config: &Config, host: &Host) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Cilium(args) => render_cilium(args, config, host),
        What::K3s => render_k3s(config, host),
    }
}

fn render_k3s(config: &Config, host: &Host) -> anyhow::Result<ExitCode> {
    let stop = |why: &str, next: &str| {
        eprintln!("bramble render: {why}\n  next  {next}");
        Ok(ExitCode::from(USAGE))
    };
    let role = match config.k3s.role(&config.cluster, None) {
        Ok(role) => role,
        Err(why) => return stop(why, "write it, then render again"),
    };
    let Some(version) = &config.k3s.version else {
        return stop("it is not said which K3s", "write version = \"v1.35.2+k3s1\" into [k3s]");
    };
    let existing = configuration::existing(host)?;
    let files = configuration::settings(config, &role, version, &config.k3s.token_file)
        .and_then(|settings| configuration::files(&settings, &existing, config, &role, version));
    match files {
        Ok(files) => {
            let text: String =
                files.iter().map(|file| format!("# {}\n{}", file.path, file.content)).collect();
            print(&text, ExitCode::SUCCESS)
        }
        Err(refused) => stop(&refused.what, &refused.next),
    }
}

fn render_cilium(args: &Cilium, config: &Config, host: &Host) -> anyhow::Result<ExitCode> {
    let mut nodes = vec![Node::here(host, config)];
    for file in &args.fit {
        match Node::of_file(host, file) {
            Ok(node) => nodes.push(node),
            Err(why) => {
                eprintln!("bramble render: {why}");
                return Ok(ExitCode::from(USAGE));
            }
        }
    }
    let rendered = match cilium::render(config, &nodes) {
        Ok(rendered) => rendered,
        Err(refused) => {
            eprintln!("bramble render: {refused}\n  next  {}", refused.next());
            let is_written = !matches!(refused, cilium::Refused::WorksNot { .. });
            return Ok(ExitCode::from(if is_written { USAGE } else { REFUSED }));
        }
    };
    for remark in &rendered.remarks {
        eprintln!("bramble render: {remark}");
    }
    if args.fit.is_empty() {
        eprintln!("bramble render: only this node's kernel was asked; --fit adds what others say");
    }
    let text = if args.manifest { rendered.manifest() } else { rendered.yaml() };
    print(&text, ExitCode::from(if rendered.remarks.is_empty() { 0 } else { REMARKS }))
}
