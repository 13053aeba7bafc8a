//! The stand-in for `k3s`, as a program for machines: see [`testbed::k3s::program`].

use std::process::ExitCode;

fn main() -> ExitCode {
    testbed::k3s::program::main()
}
