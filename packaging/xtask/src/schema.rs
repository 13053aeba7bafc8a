//! JSON Schema of every message, made from the types that read and write it; part of `cargo xtask docs`.

use anyhow::{Context as _, Result};
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::Value;
use wire::{
    cluster::{Alert, AlertEvent, ClusterInfo, ClusterState},
    command::{Request, Response},
    report::{MeshRow, NodeEvent, NodeFindings, NodeInfo, NodeState},
};

use crate::root;

/// Where they are kept, and copied from into the package.
const FOLDER: &str = "packaging/schema";

/// What a topic carries, below `bramble/<cluster>/`, by the name of its file.
fn all() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        ("node-info", "node/<node>/info", of::<NodeInfo>()),
        ("node-state", "node/<node>/state", of::<NodeState>()),
        ("node-findings", "node/<node>/findings", of::<NodeFindings>()),
        ("node-mesh", "node/<node>/mesh", of::<MeshRow>()),
        ("node-event", "node/<node>/event", of::<NodeEvent>()),
        ("request", "node/<node>/request/<verb>", of::<Request>()),
        ("response", "node/<node>/response/<verb>", of::<Response>()),
        ("cluster-info", "cluster/info", of::<ClusterInfo>()),
        ("cluster-state", "cluster/state", of::<ClusterState>()),
        ("cluster-alert", "cluster/alert/<id>", of::<Alert>()),
        ("cluster-event", "cluster/event", of::<AlertEvent>()),
    ]
}

fn of<T: JsonSchema>() -> Value {
    // As it is written: what a reader may rely on, so every field that is always there is required.
    let generator = SchemaGenerator::new(SchemaSettings::draft2020_12().for_serialize());
    generator.into_root_schema_for::<T>().to_value()
}

/// The files: path below the checkout, and content.
fn files() -> impl Iterator<Item = (String, String)> {
    all().into_iter().map(|(name, topic, mut schema)| {
        schema["$comment"] = format!("carried by bramble/<cluster>/{topic}").into();
        let text = serde_json::to_string_pretty(&schema).expect("a schema is JSON");
        (format!("{FOLDER}/{name}.json"), text + "\n")
    })
}

/// Writes them.
///
/// # Errors
///
/// The folder cannot be written.
pub(crate) fn write() -> Result<usize> {
    std::fs::create_dir_all(root().join(FOLDER)).with_context(|| format!("making {FOLDER}"))?;
    let mut count = 0;
    for (path, text) in files() {
        std::fs::write(root().join(&path), text).with_context(|| format!("writing {path}"))?;
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_schemas_are_those_of_the_types() {
        let names: Vec<String> = files().map(|(path, _)| path).collect();
        for (path, text) in files() {
            let shipped = std::fs::read_to_string(root().join(&path)).unwrap_or_default();
            assert_eq!(shipped, text, "{path}: type cargo xtask docs");
        }
        let shipped = std::fs::read_dir(root().join(FOLDER)).unwrap();
        assert_eq!(shipped.count(), names.len(), "there is a file that no type makes");
    }
}
