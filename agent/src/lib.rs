//! bramble on a node, in reading order.

/// The owner's decisions.
pub mod config;
/// The door to the machine.
pub mod host;

/// What the host is.
pub mod facts;
/// Which settings will work on this kernel.
pub mod fit;
/// What must hold, and the verdicts.
pub mod require;

/// Edits as data.
pub mod change;
/// Plan, apply, receipt, revert.
pub mod converge;

/// Joining K3s and leaving it.
pub mod k3s;

/// What is stated of the way to the broker.
pub mod broker;
/// The process with rights in the kernel.
pub mod companion;
/// eBPF objects: loading, attaching, maps.
pub mod datapath;
/// The drift guard.
pub mod guard;
/// What the kubelet's certificate lets see.
pub mod kubernetes;
/// Health probes, and the table of them.
pub mod probe;
/// What happened, kept until the broker has it.
pub mod record;
/// What must not leave the machine.
pub mod redact;

/// One file per verb.
pub mod cli;
/// What is asked over MQTT.
pub mod command;
/// The agent.
pub mod daemon;
/// What Home Assistant was told.
pub mod home;
/// Who this installation is.
pub mod identity;
/// Findings and health become messages.
pub mod report;
/// When the agent reports.
pub mod rhythm;

/// What the journal gets.
pub mod journal;
/// What systemd is told, and what it asks.
pub mod notify;
/// Numbers that need not be secret.
pub mod random;
/// Orderly end.
pub mod shutdown;
