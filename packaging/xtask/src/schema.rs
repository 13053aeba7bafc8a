//! JSON Schema of every message, made from the types that read and write it; part of `cargo xtask docs`.

use anyhow::{Context as _, Result};
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::Value;
use wire::{
    cluster::{Alert, AlertEvent, ClusterInfo, ClusterState},
    command::{Request, Response},
    report::{MeshRow, NodeEvent, NodeFindings, NodeInfo, NodeRecord, NodeState},
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
        ("node-history", "node/<node>/history", of::<NodeRecord>()),
        ("request", "node/<node>/request/<verb>", read_of::<Request>()),
        ("response", "node/<node>/response/<verb>", of::<Response>()),
        ("cluster-info", "cluster/info", of::<ClusterInfo>()),
        ("cluster-state", "cluster/state", of::<ClusterState>()),
        ("cluster-alert", "cluster/alert/<id>", of::<Alert>()),
        ("cluster-event", "cluster/event", of::<AlertEvent>()),
    ]
}

/// What bramble says: what a reader may rely on, so every field that is always there is required.
fn of<T: JsonSchema>() -> Value {
    schema::<T>(SchemaSettings::draft2020_12().for_serialize())
}

/// What bramble is told: what may be left out is not required.
fn read_of<T: JsonSchema>() -> Value {
    schema::<T>(SchemaSettings::draft2020_12().for_deserialize())
}

fn schema<T: JsonSchema>(settings: SchemaSettings) -> Value {
    SchemaGenerator::new(settings).into_root_schema_for::<T>().to_value()
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

    fn judge(name: &str, message: &Value) -> bool {
        let (_, _, schema) = all().into_iter().find(|(known, ..)| *known == name).unwrap();
        jsonschema::validator_for(&schema).unwrap().is_valid(message)
    }

    /// What this version writes of a message that an older one wrote.
    fn rewritten<T: serde::de::DeserializeOwned + serde::Serialize>(golden: &str) -> Value {
        serde_json::to_value(serde_json::from_str::<T>(golden).unwrap()).unwrap()
    }

    #[test]
    fn what_is_written_is_valid_and_what_lacks_a_field_or_has_a_wrong_one_is_not() {
        macro_rules! golden {
            ($file:literal) => {
                include_str!(concat!("../../../wire/golden/v1/", $file, ".json"))
            };
        }
        for (name, mut message, field) in [
            ("node-info", rewritten::<NodeInfo>(golden!("info")), "probe_port"),
            ("node-state", rewritten::<NodeState>(golden!("state")), "readings"),
            ("node-findings", rewritten::<NodeFindings>(golden!("findings")), "findings"),
            ("node-mesh", rewritten::<MeshRow>(golden!("mesh")), "peers"),
            ("node-history", rewritten::<NodeRecord>(golden!("history").lines().next().unwrap()), "sequence"),
            ("cluster-alert", rewritten::<Alert>(golden!("alert")), "evidence"),
            ("cluster-state", rewritten::<ClusterState>(golden!("cluster")), "alerts"),
        ] {
            assert!(judge(name, &message), "{name}: {message:#}");
            let taken = message.as_object_mut().unwrap().remove(field).unwrap();
            assert!(!judge(name, &message), "{name} without {field}");
            message[field] = Value::String("x".to_owned());
            assert!(!judge(name, &message), "{name} with {field} as a text instead of {taken}");
        }
    }
}
