//! The stand-in program's settings, read by K3s' own rules (`pkg/configfilearg`): `config.yaml`, then the files of
//! `config.yaml.d` in the order of their names, then the command line. Later values replace; `key+` appends.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Values by the names of the command line's flags, without the dashes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration(BTreeMap<String, Vec<String>>);

impl Configuration {
    /// Reads the file, its folder of drop-ins, and flags such as `--node-name=pi` or `--node-name pi`.
    ///
    /// # Errors
    /// A file cannot be read or is not what K3s could read either.
    pub fn read(file: &Path, flags: &[String]) -> Result<Self> {
        let mut configuration = Self::default();
        let mut files = vec![file.to_owned()];
        let mut folder = file.as_os_str().to_owned();
        folder.push(".d");
        let mut drop_ins: Vec<_> =
            fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
        drop_ins.retain(|path| path.extension().is_some_and(|kind| kind == "yaml" || kind == "yml"));
        drop_ins.sort();
        files.extend(drop_ins);
        for file in files.iter().filter(|file| file.exists()) {
            let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
            for (key, values) in parse(&text).with_context(|| format!("reading {}", file.display()))? {
                configuration.take(&key, values);
            }
        }
        let mut flags = flags.iter().peekable();
        while let Some(flag) = flags.next() {
            let Some(name) = flag.strip_prefix("--") else { bail!("{flag} is no flag") };
            let (name, value) = match name.split_once('=') {
                Some((name, value)) => (name, value.to_owned()),
                None => {
                    let next = flags.next_if(|next| !next.starts_with("--"));
                    (name, next.cloned().unwrap_or_else(|| "true".to_owned()))
                }
            };
            configuration.take(name, vec![value]);
        }
        Ok(configuration)
    }

    /// A setting's value, the last one when there are several.
    pub fn one(&self, name: &str) -> Option<&str> {
        self.all(name).last().map(String::as_str)
    }

    /// All values of a setting.
    pub fn all(&self, name: &str) -> &[String] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// Whether a switch is on.
    pub fn is_on(&self, name: &str) -> bool {
        self.one(name).is_some_and(|value| value.is_empty() || value == "true")
    }

    fn take(&mut self, key: &str, values: Vec<String>) {
        match key.strip_suffix('+') {
            Some(key) => self.0.entry(key.to_owned()).or_default().extend(values),
            None => {
                self.0.insert(key.to_owned(), values);
            }
        }
    }
}

/// The part of YAML that such files are written in: one level of keys with scalars or lists.
fn parse(text: &str) -> Result<Vec<(String, Vec<String>)>> {
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    if text.trim_start().starts_with('{') {
        let all: BTreeMap<String, Value> = serde_json::from_str(text)?;
        let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        return Ok(all
            .iter()
            .map(|(key, value)| match value {
                Value::Array(list) => (key.clone(), list.iter().map(word).collect()),
                other => (key.clone(), vec![word(other)]),
            })
            .collect());
    }
    for line in text.lines() {
        let line = without_comment(line);
        if line.trim().is_empty() || line == "---" {
            continue;
        }
        if let Some(item) = line.trim_start().strip_prefix('-') {
            let (_, list) = found.last_mut().with_context(|| format!("{line} stands below no key"))?;
            list.push(scalar(item)?);
            continue;
        }
        if line.starts_with(' ') {
            bail!("{line} is deeper than one level");
        }
        let (key, value) = match line.split_once(": ") {
            Some((key, value)) => (key, value.trim()),
            None => (line.strip_suffix(':').with_context(|| format!("{line} is no setting"))?, ""),
        };
        let values = match value.strip_prefix('[').map(|rest| rest.strip_suffix(']')) {
            Some(Some(list)) if list.trim().is_empty() => vec![],
            Some(Some(list)) => list.split(',').map(scalar).collect::<Result<_>>()?,
            Some(None) => bail!("{line} does not end"),
            None if value.is_empty() => vec![],
            None => vec![scalar(value)?],
        };
        found.push((scalar(key)?, values));
    }
    Ok(found)
}

fn without_comment(line: &str) -> &str {
    let mut quote = None;
    let mut before = ' ';
    for (at, c) in line.char_indices() {
        match quote {
            Some(q) if c == q => quote = None,
            Some(_) => {}
            None if c == '"' || c == '\'' => quote = Some(c),
            None if c == '#' && before == ' ' => return line[..at].trim_end(),
            None => {}
        }
        before = c;
    }
    line.trim_end()
}

fn scalar(text: &str) -> Result<String> {
    let text = text.trim();
    if text.starts_with('"') {
        return Ok(serde_json::from_str(text)?);
    }
    if let Some(rest) = text.strip_prefix('\'') {
        let inner = rest.strip_suffix('\'').with_context(|| format!("{text} does not end"))?;
        return Ok(inner.replace("''", "'"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_files_and_flags_replace_and_a_plus_appends() {
        let folder = std::env::temp_dir().join(format!("k3s-stand-in-{}", std::process::id()));
        fs::create_dir_all(folder.join("config.yaml.d")).unwrap();
        let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
        write(
            "config.yaml",
            "# ours\nserver: https://pi1:6443 # the first\ntoken-file: '/a b'\nnode-label:\n  - a=b\n- \"c=d\"\n\
             disable: [traefik, \"servicelb\"]\ncluster-init: true\nempty: []\n",
        );
        write("config.yaml.d/20.yaml", "node-label+:\n- e=f\ndisable: coredns\n");
        write("config.yaml.d/10.yml", "{\"server\": \"https://pi2:6443\", \"tls-san\": [\"x\"]}");
        write("config.yaml.d/30.txt", "server: no");
        let flags = ["--node-name", "pi9", "--cluster-init=false"].map(str::to_owned);
        let read = Configuration::read(&folder.join("config.yaml"), &flags).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(read.one("server"), Some("https://pi2:6443"));
        assert_eq!(read.one("token-file"), Some("/a b"));
        assert_eq!(read.all("node-label"), ["a=b", "c=d", "e=f"]);
        assert_eq!(read.all("disable"), ["coredns"]);
        assert_eq!((read.one("node-name"), read.is_on("cluster-init")), (Some("pi9"), false));
        assert!(read.all("empty").is_empty() && read.one("nothing").is_none());
        for bad in ["server", "a: [b", "- x", "a:\n  b: c", "a: 'b"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
