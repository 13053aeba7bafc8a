//! xtask: everything that is done to this repository rather than by it.
fn main() {}
