//! bramble: arguments, journal, dispatch.
fn main() {}
