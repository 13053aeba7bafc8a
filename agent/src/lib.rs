//! The code map.

pub mod change;
pub mod cli;
pub mod config;
pub mod facts;
pub mod host;
pub mod require;
