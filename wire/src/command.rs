//! What a node is asked, and what it answers: `request/<verb>` and `response/<verb>`.
//!
//! A request that changes the machine needs a `transaction` that was never used and a `ts` of this moment, so that a
//! message that somebody recorded, or a broker kept, does nothing when it is sent again.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::report::Header;

/// The longest transaction that is taken, bytes.
pub const LONGEST_TRANSACTION: usize = 64;
/// Largest request that is read, bytes.
pub const LARGEST_REQUEST: usize = 1024;

/// What somebody wants. An empty payload, or a word that is no JSON, such as a button's `PRESS`, is a request without both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Request {
    /// Any text of 1 to 64 bytes that the answer repeats.
    #[serde(default)]
    pub transaction: Option<String>,
    /// When it was asked, by the asker's clock.
    #[serde(default)]
    pub ts: Option<Timestamp>,
}

/// The answer. Not retained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Response {
    /// Version, time, origin.
    #[serde(flatten)]
    pub header: Header,
    /// Whether it was done, or begun.
    pub status: Outcome,
    /// What came of it.
    pub data: Value,
    /// Why it was not done, and what to do about it.
    pub error: Option<String>,
    /// The request's.
    pub transaction: Option<String>,
}

/// Whether a request was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Done, or begun.
    Ok,
    /// Not done.
    Error,
}
