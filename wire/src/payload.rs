//! Messages as they are published. Written out here, and not where they are said, because this crate is compiled for speed and
//! the programs for size: most of what a report costs is its text.

use serde::Serialize;

use crate::{
    cluster::{Alert, AlertEvent, ClusterInfo, ClusterState},
    command::Response,
    report::{MeshRow, NodeEvent, NodeFindings, NodeInfo, NodeRecord, NodeState},
};

/// Something of ours that is published.
pub trait Payload {
    /// As JSON.
    fn to_json(&self) -> Vec<u8>;
}

macro_rules! messages {
    ($($message:ty),*) => {$(
        impl Payload for $message {
            fn to_json(&self) -> Vec<u8> {
                json(self)
            }
        }
    )*};
}

messages!(
    NodeInfo,
    NodeState,
    MeshRow,
    NodeFindings,
    NodeEvent,
    NodeRecord,
    Response,
    ClusterInfo,
    ClusterState,
    Alert,
    AlertEvent
);

fn json<T: Serialize>(message: &T) -> Vec<u8> {
    serde_json::to_vec(message).expect("messages have text keys and finite numbers")
}
