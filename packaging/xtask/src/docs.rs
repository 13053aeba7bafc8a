//! `cargo xtask docs`: writes the documents that come from the program's own tables.

use std::fs;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::root;

/// Writes docs/checks.md from the requirements and their tables, and packaging/schema from the messages.
#[derive(Args)]
pub(crate) struct Arguments {}

pub(crate) fn run(_: &Arguments) -> Result<ExitCode> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["run", "--quiet", "-p", "bramble", "--", "check", "--document"])
        .current_dir(root())
        .output()
        .context("running bramble check --document")?;
    ensure!(output.status.success(), "bramble check --document: {}", String::from_utf8_lossy(&output.stderr));
    let path = root().join("docs/checks.md");
    fs::create_dir_all(root().join("docs")).context("making docs")?;
    fs::write(&path, &output.stdout).with_context(|| format!("writing {}", path.display()))?;
    println!("docs/checks.md: {} lines", output.stdout.iter().filter(|byte| **byte == b'\n').count());
    println!("packaging/schema: {} files", crate::schema::write()?);
    Ok(ExitCode::SUCCESS)
}
