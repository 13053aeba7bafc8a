//! bramble: the command, the agent and the companion in one program.

use std::process::ExitCode;

fn main() -> ExitCode {
    bramble::journal::start();
    bramble::cli::main()
}
