//! What travels over MQTT between bramble's programs, Home Assistant and anybody else who listens, and
//! nothing else. This crate is the only promise between two programs that are upgraded at different times.

/// Every topic, both directions.
pub mod topic;

/// What a node says: readings, conditions, findings, its row of the mesh.
pub mod report;

/// What the aggregator says: alerts and the cluster's state.
pub mod cluster;

/// What a node is asked, and what it answers.
pub mod command;

/// All of these as they are published.
pub mod payload;

/// Home Assistant's device discovery, derived from readings and conditions.
pub mod discovery;

/// Configuration files as they are written, and where in them something is wrong.
pub mod written;

/// Where the broker is: the section `[mqtt]` of both programs.
pub mod broker;

/// MQTT v5: dialling, last will, dead links, back-off.
pub mod connection;

/// Steady time and the wall clock's.
pub mod clock;

/// What is to be said, and what is not acknowledged yet.
pub mod outbox;

/// TLS to the broker.
pub mod tls;

/// A node is taken off the broker.
pub mod farewell;
