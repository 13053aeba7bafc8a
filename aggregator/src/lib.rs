//! The cluster's view: what all nodes say becomes one mesh, one alert for each root cause, one page.

/// Scenes for tests.
#[cfg(test)]
mod scene;

/// All that is known; absorbs messages, gives effects.
pub mod cluster;

/// The N x N matrix of directed links.
pub mod mesh;

/// Conditions over time -> alerts.
pub mod alert;

/// What people and programs read.
pub mod publish;

/// The configuration file.
pub mod config;

/// What systemd is told, and what it asks.
pub mod notify;

/// Sockets and the MQTT loop.
pub mod serve;

/// The cluster is taken off the broker.
pub mod farewell;
