//! bramble on a node, in reading order.

/// The owner's decisions.
pub mod config;
/// The door to the machine.
pub mod host;

/// What the host is.
pub mod facts;
/// What must hold, and the verdicts.
pub mod require;
/// Which settings will work on this kernel.
pub mod fit;
/// Edits as data.
pub mod change;

/// eBPF objects: loading, attaching, maps.
pub mod datapath;
/// Health probes, and the table of them.
pub mod probe;
/// The process with rights in the kernel.
pub mod companion;

/// Findings and health become messages.
pub mod report;
/// The agent.
pub mod daemon;
/// One file per verb.
pub mod cli;

/// Numbers that need not be secret.
pub mod random;
/// Orderly end.
pub mod shutdown;
