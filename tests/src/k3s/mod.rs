//! A stand-in for K3s: a server that speaks its protocol over real TLS, and misbehaves as a test wants it.
//!
//! What it answers follows K3s 1.32 to 1.36 (`pkg/server/handlers`, `pkg/server/auth`, `pkg/nodepassword`,
//! `pkg/clientaccess`, `pkg/etcd`) and what the API server of Kubernetes lets a kubelet do. It runs no pod, no etcd and no
//! container runtime. [`program`] is the same as a program, for machines.

mod authority;
mod client;
mod cluster;
mod configuration;
pub mod program;
mod server;
pub mod site;

pub use authority::{Authority, Pair, Validity};
pub use client::{Answer, Client};
pub use cluster::{Cluster, User};
pub use configuration::Configuration;
pub use server::{Call, Fault, Manner, Server, Settings};
