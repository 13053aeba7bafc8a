//! The house's own rules, read from ARCHITECTURE.md and held against the sources.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::root;

fn read(path: &str) -> Result<String> {
    fs::read_to_string(root().join(path)).with_context(|| format!("reading {path}"))
}

/// All files that belong to the project.
fn files() -> Result<Vec<String>> {
    let mut git = Command::new("git");
    // The checkout may belong to somebody else than root, who runs the tests.
    git.args(["-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard"]);
    let output = git.current_dir(root()).output().context("starting git")?;
    let list = String::from_utf8(output.stdout)?;
    let files: Vec<String> = list.lines().filter(|f| root().join(f).is_file()).map(str::to_owned).collect();
    ensure!(files.iter().any(|file| file == "Cargo.toml"), "git lists no files of the project");
    Ok(files)
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The table below "Who may import whom": the agent's modules, and what each may import of the agent.
/// A module without a list may import all.
fn allowed_imports() -> Result<BTreeMap<String, Option<BTreeSet<String>>>> {
    let text = read("ARCHITECTURE.md")?;
    let (_, table) = text.split_once("### Who may import whom").context("the table has its title")?;
    let rows =
        table.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let mut allowed = BTreeMap::new();
    for row in rows {
        let [_, modules, imports, _] = row.split('|').collect::<Vec<_>>()[..] else { continue };
        let list = quoted(imports).filter_map(|path| path.split("::").next()).map(str::to_owned).collect();
        let all = imports.trim().starts_with("all of");
        for module in quoted(modules).filter_map(|path| path.strip_prefix("agent::")) {
            allowed.insert(module.to_owned(), if all { None } else { Some(BTreeSet::clone(&list)) });
        }
    }
    ensure!(allowed.len() > 5, "the table has {} modules of the agent", allowed.len());
    Ok(allowed)
}

/// First levels of what a source imports from its own crate, without its tests.
fn imports(source: &str) -> BTreeSet<String> {
    let code = source.split("#[cfg(test)]").next().unwrap_or_default();
    let code: String =
        code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut found = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        let word = |text: &str| -> String {
            text.trim_start().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
        };
        let Some(group) = after.strip_prefix('{') else {
            found.insert(word(after));
            continue;
        };
        let mut depth = 0;
        let mut start = 0;
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => {
                    found.insert(word(&group[start..at]));
                    break;
                }
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    found.insert(word(&group[start..at]));
                    start = at + 1;
                }
                _ => {}
            }
        }
    }
    found.remove("");
    found
}

pub(crate) fn modules_import_only_what_the_house_allows() -> Result<()> {
    let example =
        "use crate::a::{B, c::D};\nuse crate::{b::{x, y}, c,\n};\n// crate::d\n#[cfg(test)] crate::e";
    ensure!(imports(example) == ["a", "b", "c"].map(str::to_owned).into(), "{:?}", imports(example));
    let allowed = allowed_imports()?;
    let mut wrong = Vec::new();
    for file in files()?.iter().filter(|f| f.ends_with(".rs")) {
        let Some(inside) = file.strip_prefix("agent/src/") else { continue };
        let module = inside.split('/').next().unwrap_or_default().trim_end_matches(".rs");
        if ["lib", "main"].contains(&module) {
            continue;
        }
        for import in imports(&read(file)?).into_iter().filter(|import| import != module) {
            match allowed.get(module) {
                Some(None) => {}
                Some(Some(list)) if list.contains(&import) => {}
                Some(Some(_)) => wrong.push(format!("{file} imports {import}")),
                None => wrong.push(format!("{file} imports {import}, and its module is not in the table")),
            }
        }
    }
    ensure!(wrong.is_empty(), "against ARCHITECTURE.md, \"Who may import whom\": {wrong:#?}");
    Ok(())
}

/// Names of the modules in a folder: files and folders, without those that are not rows.
fn modules(folder: &str, others: &[&str]) -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(root().join(folder)).with_context(|| format!("listing {folder}"))?;
    let names =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().trim_end_matches(".rs").to_owned());
    Ok(names.filter(|name| !others.contains(&name.as_str())).collect())
}

pub(crate) fn every_row_of_a_table_is_its_files_name() -> Result<()> {
    for (folder, table, row, others) in [
        ("agent/src/require", "REQUIREMENTS", "REQUIREMENT", &["mod", "laws"][..]),
        ("agent/src/probe", "PROBES", "PROBE", &["mod"][..]),
    ] {
        let source = read(&format!("{folder}/mod.rs"))?;
        let (_, list) = source.split_once(&format!("pub const {table}")).context("the table is there")?;
        let (list, _) = list.split_once("];").context("the table ends")?;
        let files = modules(folder, others)?;
        ensure!(files.len() >= 3, "{folder} has only {files:?}");
        for file in files {
            ensure!(list.contains(&format!("{file}::")), "{folder}/{file}.rs has no row in {table}");
            let path = format!("{folder}/{file}.rs");
            let path = if root().join(&path).exists() { path } else { format!("{folder}/{file}/mod.rs") };
            let text = read(&path)?;
            // A family of rows has ids of its own.
            if text.contains(&format!("pub const {row}:"))
                || text.contains(&format!("pub(crate) const {row}:"))
                || text.contains(&format!("pub(super) const {row}:"))
            {
                let id = format!("id: \"{}\"", file.replace('_', "-"));
                ensure!(text.contains(&id), "{path} does not say {id}");
            }
        }
    }
    let manifest = read("ebpf/prebuilt/manifest.json")?;
    for program in modules("ebpf/src/bin", &[])? {
        let object = format!("{program}.bpf.o");
        ensure!(manifest.contains(&format!("\"{object}\"")), "ebpf/prebuilt/manifest.json knows no {object}");
        ensure!(root().join("ebpf/prebuilt").join(&object).exists(), "ebpf/prebuilt/{object} is missing");
    }
    Ok(())
}

pub(crate) fn every_file_says_what_it_is() -> Result<()> {
    let mut silent = Vec::new();
    for file in files()?.into_iter().filter(|file| file.ends_with(".rs")) {
        if !read(&file)?.starts_with("//! ") {
            silent.push(file);
        }
    }
    ensure!(silent.is_empty(), "these do not begin with a `//!` sentence: {silent:?}");
    Ok(())
}

pub(crate) fn every_path_in_the_architecture_exists() -> Result<()> {
    let text = read("ARCHITECTURE.md")?;
    let top: BTreeSet<String> =
        files()?.iter().filter_map(|f| Some(f.split_once('/')?.0.to_owned())).collect();
    let paths = quoted(&text)
        .filter(|path| !path.contains(['<', ' ', '*']))
        .filter(|path| path.split_once('/').is_some_and(|(first, _)| top.contains(first)));
    let paths: BTreeSet<&str> = paths.collect();
    ensure!(paths.len() > 10, "only {paths:?} look like paths");
    let missing: Vec<_> = paths.into_iter().filter(|path| !root().join(path).exists()).collect();
    ensure!(missing.is_empty(), "ARCHITECTURE.md names what is not there: {missing:?}");
    Ok(())
}

pub(crate) fn nobodys_home_stands_in_the_sources() -> Result<()> {
    // In pieces, because this file is read as well.
    let homes = [["/ho", "me/"], ["/ro", "ot/"], ["/Us", "ers/"], ["/wo", "rk/"]].map(|parts| parts.concat());
    let mut found = Vec::new();
    for file in files()? {
        let Ok(text) = read(&file) else { continue };
        for (number, line) in text.lines().enumerate() {
            let is_path = |home: &String| {
                line.match_indices(home.as_str()).any(|(at, _)| {
                    // A longer path, a topic or an address goes on to the left.
                    !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-*>}/".contains(c))
                })
            };
            if homes.iter().any(is_path) {
                found.push(format!("{file}:{}", number + 1));
            }
        }
    }
    ensure!(found.is_empty(), "absolute paths of somebody's machine: {found:?}");
    Ok(())
}

pub(crate) fn every_setting_in_the_documents_is_one() -> Result<()> {
    let host = bramble::host::Host::live()?;
    let path = std::env::temp_dir().join(format!("bed-documents-{}.toml", std::process::id()));
    let docs = fs::read_dir(root().join("docs"))?.map(|entry| Ok(entry?.path()));
    let mut documents = docs.collect::<Result<Vec<_>>>()?;
    documents.push(root().join("README.md"));
    documents.retain(|document| document.extension().is_some_and(|ending| ending == "md"));
    let mut seen = 0;
    for document in documents {
        let text = fs::read_to_string(&document)?;
        for block in text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()) {
            // A pin that nobody should copy.
            fs::write(&path, block.replace("sha256:...", &format!("sha256:{}", "0".repeat(64))))?;
            let read = bramble::config::Config::load(&host, path.to_str(), |_| None);
            fs::remove_file(&path)?;
            read.with_context(|| format!("{}:\n{block}", document.display()))?;
            seen += 1;
        }
    }
    ensure!(seen >= 3, "only {seen} blocks were found");
    Ok(())
}
