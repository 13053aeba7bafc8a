//! What people and programs read: `render(&Cluster)`, once per format.

/// JSON for the page and for scripts.
pub mod web;

/// OpenMetrics text for Prometheus.
pub mod prometheus;

/// The cluster's device for Home Assistant.
pub mod home_assistant;
