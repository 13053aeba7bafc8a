//! Whose work is linked into the programs, and on which terms: what their licences ask to be handed on with every copy.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::build::cargo;

/// Names of files that hold terms begin with one of these.
const TERMS: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"];

/// One text with all crates that `program` is linked with for `target`, their licences, and the licences' own words.
///
/// # Errors
///
/// cargo cannot tell, or a crate brings no words and names no licence.
pub(crate) fn of(program: &str, target: &str) -> Result<String> {
    let mut ask = cargo(&["metadata", "--format-version", "1", "--locked", "--filter-platform", target]);
    let output = ask.stderr(std::process::Stdio::inherit()).output().context("starting cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata ended with {}", output.status);
    let graph: Value = serde_json::from_slice(&output.stdout)?;
    let mut crates = BTreeMap::new();
    let mut terms: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let packages = graph["packages"].as_array().context("cargo names packages")?;
    let by_id: BTreeMap<&str, &Value> =
        packages.iter().filter_map(|p| Some((p["id"].as_str()?, p))).collect();
    for id in linked(&graph, program)? {
        let package = by_id.get(id).with_context(|| format!("cargo does not describe {id}"))?;
        // Our own are in the package's copyright file.
        if package["source"].is_null() {
            continue;
        }
        let field = |name: &str| package[name].as_str().unwrap_or_default().to_owned();
        let (name, licence) = (format!("{} {}", field("name"), field("version")), field("license"));
        ensure!(!licence.is_empty(), "{name} names no licence");
        let folder = field("manifest_path");
        let folder = Path::new(&folder).parent().context("a manifest lies in a folder")?;
        for text in words(folder, &licence)? {
            terms.entry(text).or_default().insert(name.clone());
        }
        crates.insert(name, (licence, field("repository")));
    }
    let mut text = format!("What {program} is linked with:\n\n");
    for (name, (licence, place)) in &crates {
        writeln!(text, "  {name}: {licence}; {place}")?;
    }
    for (words, names) in &terms {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        write!(text, "\n{}\n{}:\n\n{}\n", "-".repeat(72), names.join(", "), words.trim())?;
    }
    Ok(text)
}

/// The crates that end up in the program: what its dependencies need to build or to test stays outside.
fn linked<'a>(graph: &'a Value, program: &str) -> Result<BTreeSet<&'a str>> {
    let nodes = graph["resolve"]["nodes"].as_array().context("cargo resolves")?;
    let nodes: BTreeMap<&str, &Value> = nodes.iter().filter_map(|n| Some((n["id"].as_str()?, n))).collect();
    let is_program = |package: &&Value| package["name"] == program && package["source"].is_null();
    let start = graph["packages"].as_array().into_iter().flatten().find(is_program);
    let mut next: Vec<&str> = start.and_then(|p| p["id"].as_str()).into_iter().collect();
    ensure!(!next.is_empty(), "cargo knows no {program}");
    let mut seen = BTreeSet::new();
    while let Some(id) = next.pop() {
        if !seen.insert(id) {
            continue;
        }
        for dependency in nodes.get(id).and_then(|node| node["deps"].as_array()).into_iter().flatten() {
            let kinds = dependency["dep_kinds"].as_array().into_iter().flatten();
            if kinds.into_iter().any(|kind| kind["kind"].is_null()) {
                next.extend(dependency["pkg"].as_str());
            }
        }
    }
    Ok(seen)
}

/// What the crate's files say; where one may choose, the shortest choice, which is MIT's.
fn words(folder: &Path, licence: &str) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if TERMS.iter().any(|beginning| name.to_uppercase().starts_with(beginning))
            && folder.join(&name).is_file()
        {
            files.push(name);
        }
    }
    let chosen: Vec<&String> = files.iter().filter(|name| name.to_uppercase().contains("MIT")).collect();
    let may_choose = licence.contains("MIT") && !licence.contains(" AND ") && !chosen.is_empty();
    let chosen = if may_choose { chosen } else { files.iter().collect() };
    chosen
        .into_iter()
        .map(|name| Ok(String::from_utf8_lossy(&fs::read(folder.join(name))?).into_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_builds_or_tests_is_not_linked() {
        let dep = |pkg: &str, kind: Value| serde_json::json!({"pkg": pkg, "dep_kinds": [{"kind": kind}]});
        let graph = serde_json::json!({
            "packages": [{"name": "p", "id": "p", "source": null}],
            "resolve": {"nodes": [
                {"id": "p", "deps": [dep("a", Value::Null), dep("b", "build".into()), dep("c", "dev".into())]},
                {"id": "a", "deps": [dep("d", Value::Null)]},
                {"id": "b", "deps": [dep("e", Value::Null)]},
            ]}
        });
        assert_eq!(linked(&graph, "p").unwrap(), ["a", "d", "p"].into());
        assert!(linked(&graph, "q").is_err());
    }
}
