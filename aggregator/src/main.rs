//! bramble-aggregator: arguments, journal, dispatch.
fn main() {}
