//! The test bed: nodes on one bridge with a real broker, real faults and a real browser.
//!
//! Nothing survives a bed, by construction: nodes are network and mount namespaces without a name, held by one
//! process each; everything in them dies with the thread that made the bed, also when that is killed; links and
//! files live inside the namespaces, eBPF links on file descriptors. See [`leftover`] for the proof.
//!
//! It needs root, iproute2, mosquitto and mosquitto-clients. It never touches the host beyond one
//! link, `bramble<N>`, through which the aggregator reaches the broker.
#![allow(clippy::disallowed_methods, reason = "the doors are the agent's; the bed is outside")]

pub mod process;

pub mod namespace;

pub mod broker;
pub mod lab;

pub mod delay;
pub mod fault;
mod tap;

pub mod browser;
pub mod home_assistant;
pub mod http;

pub mod k3s;

pub mod cost;
pub mod leftover;
pub mod machine;
pub mod mesh;
pub mod naming;
pub mod watch;
