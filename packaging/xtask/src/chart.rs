//! `cargo xtask chart`: the keys of a release of Cilium's chart, read from its values.yaml, as `bramble render` looks them up.
//!
//! The file is read line by line, and not as YAML, because many keys stand in it commented out. Which of these were taken
//! for keys is printed: they are a guess that a person looks at.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use crate::root;

/// Writes the tree of keys of Cilium's chart to agent/data/cilium_values, from the values.yaml of a release.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The release, such as 1.17.18.
    version: String,
    /// Its install/kubernetes/cilium/values.yaml.
    values: PathBuf,
}

/// What Kubernetes defines, or its owner, wherever it stands.
const FREE: [&str; 8] = [
    "affinity",
    "nodeSelector",
    "podSecurityContext",
    "resources",
    "seLinuxOptions",
    "subject",
    "tolerations",
    "updateStrategy",
];
/// The same in one place.
const FREE_THERE: [&str; 2] = ["resourceQuotas.cilium", "resourceQuotas.operator"];
/// Keys that stand commented out without the indentation that they would have.
const MISPLACED: [(&str, &str); 3] =
    [("config", "ipMasqAgent"), ("hashSeed", "maglev"), ("tableSize", "maglev")];
/// What looks like a key in a comment and is none.
const PROSE: [&str; 3] = ["eg", "ref", "see"];

/// Runs the verb.
///
/// # Errors
/// The file is not to be read, or is no values.yaml of that chart.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let version = arguments.version.trim_start_matches('v');
    let Some((minor, _)) = version.rsplit_once('.').filter(|(minor, _)| minor.contains('.')) else {
        bail!("{version} is no release such as 1.17.18");
    };
    let file = &arguments.values;
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let Read { tree, guessed } = read(&text);
    ensure!(
        tree.below.contains_key("kubeProxyReplacement"),
        "{} is no values.yaml of Cilium's chart",
        file.display()
    );
    let head = format!(
        "# Keys of the values of Cilium's chart {minor}, as its values.yaml names them (also those that stand there commented out).\n\
         # A line is a key and, behind the colon, keys below it; further keys below it stand in the next lines, indented.\n\
         # * = what is below is free: lists, labels, and what Kubernetes itself defines.\n\
         # Read from cilium/cilium install/kubernetes/cilium/values.yaml at {version}.\n"
    );
    let path = root().join("agent/data/cilium_values").join(minor);
    fs::write(&path, head + &tree.text()).with_context(|| format!("writing {}", path.display()))?;
    println!(
        "written to agent/data/cilium_values/{minor}; it is used with a row in TREES of agent/src/k3s/cilium.rs"
    );
    println!("taken for keys although commented out: {}", Vec::from_iter(guessed).join(", "));
    Ok(ExitCode::SUCCESS)
}

/// A key, or all of them.
#[derive(Debug, Default)]
struct Tree {
    below: BTreeMap<String, Tree>,
    is_free: bool,
}

impl Tree {
    fn at(&mut self, path: &[String]) -> &mut Tree {
        path.iter().fold(self, |tree, key| tree.below.entry(key.clone()).or_default())
    }

    /// What is free has no keys of its own.
    fn prune(&mut self, path: &str) {
        for (key, tree) in &mut self.below {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            // Cilium names the capabilities of its own containers one by one; those of others are Kubernetes' list.
            let own = tree
                .below
                .get("capabilities")
                .is_some_and(|all| !["add", "drop"].iter().any(|list| all.below.contains_key(*list)));
            tree.is_free |= FREE.contains(&key.as_str())
                || FREE_THERE.contains(&path.as_str())
                || key == "securityContext" && !own;
            if tree.is_free {
                tree.below.clear();
            }
            tree.prune(&path);
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (key, tree) in &self.below {
            tree.write(key, 0, &mut text);
        }
        text
    }

    fn write(&self, key: &str, indent: usize, text: &mut String) {
        let name = |key: &str, tree: &Tree| format!("{key}{}", if tree.is_free { "*" } else { "" });
        let leaf = |(key, tree): (&String, &Tree)| tree.below.is_empty().then(|| name(key, tree));
        let leaves: Vec<String> = self.below.iter().filter_map(leaf).collect();
        let line = [vec![name(key, self)], leaves].concat();
        let line = line.join(" ").replacen(' ', ": ", 1);
        // Writing to a text cannot fail.
        let _ = writeln!(text, "{:indent$}{line}", "");
        for (key, tree) in self.below.iter().filter(|(_, tree)| !tree.below.is_empty()) {
            tree.write(key, indent + 2, text);
        }
    }
}

/// What a values.yaml holds.
struct Read {
    tree: Tree,
    /// Keys that stand in it commented out alone.
    guessed: BTreeSet<String>,
}

fn read(text: &str) -> Read {
    let mut tree = Tree::default();
    // Helm's own, which every chart takes.
    tree.at(&["global".to_owned()]).is_free = true;
    let mut guesses: Vec<(Vec<String>, bool)> = Vec::new();
    // Where a line stands: the keys above it with their indentation.
    let mut place: Vec<(usize, String)> = Vec::new();
    // Lines of a list or of a text, until one stands further to the left.
    let mut inside: Option<usize> = None;
    let (mut is_schema, mut is_list, mut is_example) = (false, false, false);
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let plain = line.trim_start();
        let indent = line.len() - plain.len();
        if let Some(comment) = plain.strip_prefix('#') {
            let comment = comment.strip_prefix(' ').unwrap_or(comment);
            match comment {
                "@schema" => is_schema = !is_schema,
                _ if is_schema => is_list |= comment.contains("array") || comment.contains("object"),
                _ if comment.starts_with("--") => is_example = false,
                _ if is_example => {}
                _ => {
                    if let Some((key, value)) = key(comment).filter(|(key, _)| is_said(key)) {
                        let above = match MISPLACED.iter().find(|(other, _)| *other == key) {
                            Some((_, above)) => vec![(*above).to_owned()],
                            None => above(&place, indent),
                        };
                        let deeper = |next: &&str| next.trim_start().starts_with("#   ");
                        let is_free = value.is_empty() && lines.peek().is_some_and(deeper)
                            || value.starts_with(['[', '{']);
                        guesses.push(([above, vec![key.to_owned()]].concat(), is_free));
                    }
                }
            }
            continue;
        }
        if plain.is_empty() {
            is_example = false;
            continue;
        }
        if inside.is_some_and(|left| indent > left || indent == left && plain.starts_with("- ")) {
            continue;
        }
        inside = None;
        if plain.starts_with("- ") {
            let path: Vec<String> = place.iter().map(|(_, key)| key.clone()).collect();
            tree.at(&path).is_free = true;
            inside = Some(indent);
            continue;
        }
        let Some((key, value)) = key(plain) else { continue };
        let path = [above(&place, indent), vec![key.to_owned()]].concat();
        place.retain(|(left, _)| *left < indent);
        place.push((indent, key.to_owned()));
        let key = tree.at(&path);
        key.is_free |= is_list || value.starts_with(['[', '{']);
        if value.starts_with(['|', '>']) {
            inside = Some(indent);
        }
        // What follows an empty list or table shows what could stand in it.
        is_example = value.starts_with(['[', '{']);
        is_list = false;
    }
    let mut guessed = BTreeSet::new();
    for (path, is_free) in guesses {
        let (key, above) = path.split_last().expect("a path ends with its key");
        let above = tree.at(above);
        above.is_free &= !MISPLACED.iter().any(|(other, _)| other == key);
        if !above.is_free && !above.below.contains_key(key) {
            above.below.insert(key.clone(), Tree { is_free, ..Tree::default() });
            guessed.insert(path.join("."));
        }
    }
    tree.prune("");
    Read { tree, guessed }
}

/// The keys above a line with this indentation.
fn above(place: &[(usize, String)], indent: usize) -> Vec<String> {
    place.iter().filter(|(left, _)| *left < indent).map(|(_, key)| key.clone()).collect()
}

/// A line's key and value.
fn key(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once(':')?;
    let is_word = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
    let is_key = !key.is_empty() && key.chars().all(is_word) && (value.is_empty() || value.starts_with(' '));
    is_key.then(|| (key, value.split(" #").next().unwrap_or_default().trim()))
}

/// Whether a comment's first word is rather a key than prose.
fn is_said(key: &str) -> bool {
    let is_plain = key.chars().all(|c| c.is_ascii_alphanumeric());
    is_plain && key.starts_with(|c: char| c.is_ascii_lowercase()) && !PROSE.contains(&key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUES: &str = "\
# @schema
# type: [null, string]
# @schema
# -- For upgrades. For example: '1.7'
upgradeCompatibility: null
# -- Nobody's business
imagePullSecrets: []
# - name: \"secret\"

nodeSelector:
  kubernetes.io/os: linux
extraConfig: {}
#  my-config: |-
#    test 1

securityContext:
  # -- User to run the pod with
  # runAsUser: 0
  privileged: false
  seLinuxOptions:
    level: 's0'
  capabilities:
    ciliumAgent:
      # Use to set socket permission
      - CHOWN
maglev: {}
# -- tableSize is the size
# tableSize:

# -- hashSeed is a seed
# hashSeed:

# -- Configure the kube-proxy replacement
# ref: https://docs.cilium.io/
#kubeProxyReplacement: \"false\"

# logOptions allows you to define logging options. eg:
# logOptions:
#   format: json

ipMasqAgent:
  enabled: false
# the config of nonMasqueradeCIDRs
# config:
#   masqLinkLocal: false
operator:
  # -- Security context to be added
  securityContext: {}
  # runAsUser: 0

  affinity:
    podAntiAffinity:
      required:
        - topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              io.cilium/app: operator
  # @schema
  # type: [null, array]
  # @schema
  # -- Metrics of [null, array]
  metrics: ~
  prometheus:
    enabled: true
    serviceMonitor:
      # -- Where it is expected.
      # namespace: \"\"
      enabled: false
nodeinit:
  securityContext:
    privileged: false
    capabilities:
      add:
        - SYS_MODULE
  script: |
    not: a key
  last: 1
";

    #[test]
    fn keys_are_found_also_where_they_are_commented_out_and_examples_are_none() {
        let Read { tree, guessed } = read(VALUES);
        assert_eq!(
            tree.text(),
            "extraConfig*\nglobal*\nimagePullSecrets*\nipMasqAgent: config* enabled\nkubeProxyReplacement\nlogOptions*\n\
             maglev: hashSeed tableSize\nnodeSelector*\nnodeinit: last script securityContext*\n\
             operator: affinity* metrics* securityContext*\n  prometheus: enabled\n    serviceMonitor: enabled namespace\n\
             securityContext: privileged runAsUser seLinuxOptions*\n  capabilities: ciliumAgent*\nupgradeCompatibility\n"
        );
        let guessed: Vec<&str> = guessed.iter().map(String::as_str).collect();
        assert_eq!(
            guessed,
            [
                "ipMasqAgent.config",
                "kubeProxyReplacement",
                "logOptions",
                "maglev.hashSeed",
                "maglev.tableSize",
                "operator.prometheus.serviceMonitor.namespace",
                "securityContext.runAsUser",
            ]
        );
    }
}
