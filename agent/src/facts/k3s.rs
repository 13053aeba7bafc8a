//! What K3s is told (`config.yaml`, its drop-ins, the unit's arguments), and whether it has run here.
//!
//! Only the settings in a short list are kept: the files may hold a token, which no fact ever does.

use std::collections::BTreeMap;

use super::{Fact, drop_in};
use crate::host::Host;

/// What is known of K3s.
#[derive(Debug)]
pub struct K3s {
    /// What it is told.
    pub settings: Fact<Settings>,
    /// Whether its data directory exists.
    pub has_run: Fact<bool>,
    /// Whether the password that proves the node's name to the servers is there.
    pub has_password: Fact<bool>,
    /// Whether it is told to wait for the clock: a drop-in of its unit names time-sync.target.
    pub waits_for_clock: Fact<bool>,
}

/// Values by key, as the command line spells it; a switch has the value "true".
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Settings(BTreeMap<&'static str, Vec<String>>);

/// The settings that requirements ask about.
const KEYS: &[&str] = &[
    "cluster-cidr",
    "disable",
    "disable-kube-proxy",
    "disable-network-policy",
    "flannel-backend",
    "node-ip",
    "node-name",
    "prefer-bundled-bin",
    "protect-kernel-defaults",
    "resolv-conf",
    "server",
    "service-cidr",
];

impl Settings {
    /// The last value of a setting.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.values(key).last().map(String::as_str)
    }

    /// All values of a setting.
    pub fn values(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// Whether a switch is on.
    pub fn is_on(&self, key: &str) -> bool {
        self.value(key) == Some("true")
    }

    fn put(&mut self, key: &str, append: bool, values: Vec<String>) {
        let Some(key) = KEYS.iter().find(|known| **known == key) else { return };
        let all = self.0.entry(key).or_default();
        if !append {
            all.clear();
        }
        all.extend(values);
    }

    /// The part of YAML that K3s' files use: keys at the line's beginning, scalars, lists in lines or in brackets.
    fn absorb(&mut self, yaml: &str) {
        let mut lines = yaml.lines().peekable();
        while let Some(line) = lines.next() {
            let Some((key, value)) = line.split_once(':').filter(|_| !line.starts_with([' ', '#', '-']))
            else {
                continue;
            };
            let (key, append) = match key.strip_suffix('+') {
                Some(key) => (key, true),
                None => (key, false),
            };
            let mut values: Vec<String> = match scalar(value) {
                "" => Vec::new(),
                list if list.starts_with('[') => list
                    .trim_matches(['[', ']'])
                    .split(',')
                    .map(|item| scalar(item).to_string())
                    .filter(|item| !item.is_empty())
                    .collect(),
                value => vec![value.to_string()],
            };
            while let Some(item) = lines.peek().and_then(|line| line.trim_start().strip_prefix('-')) {
                values.push(scalar(item).to_string());
                lines.next();
            }
            self.put(key.trim().trim_matches(['"', '\'']), append, values);
        }
    }

    /// The arguments of `ExecStart=`, which installers write one a line.
    fn absorb_unit(&mut self, unit: &str) {
        let Some((_, command)) = unit.split_once("ExecStart=") else { return };
        let lines = command.lines().scan(true, |goes_on, line| {
            let this = goes_on.then_some(line);
            *goes_on = line.trim_end().ends_with('\\');
            this
        });
        let words: Vec<&str> = lines
            .flat_map(str::split_whitespace)
            .map(|word| word.trim_matches(['\'', '"', '\\']))
            .filter(|word| !word.is_empty())
            .collect();
        for (at, word) in words.iter().enumerate() {
            let Some(argument) = word.strip_prefix("--") else { continue };
            let next = words.get(at + 1).filter(|next| !next.starts_with("--"));
            match (argument.split_once('='), next) {
                (Some((key, value)), _) => self.put(key, key == "disable", vec![value.to_string()]),
                (None, Some(value)) => self.put(argument, argument == "disable", vec![value.to_string()]),
                (None, None) => self.put(argument, false, vec!["true".to_string()]),
            }
        }
    }
}

/// A value without quotes and without the remark behind it.
fn scalar(text: &str) -> &str {
    let text = text.trim();
    let plain = text.split(" #").next().unwrap_or(text).trim_end();
    let plain = if plain.starts_with('#') { "" } else { plain };
    plain.trim_matches(['"', '\''])
}

pub(super) fn read(host: &Host) -> K3s {
    K3s {
        settings: settings(host),
        has_run: host.present("/var/lib/rancher/k3s/agent"),
        has_password: host.present("/etc/rancher/node/password"),
        waits_for_clock: waits_for_clock(host),
    }
}

fn settings(host: &Host) -> Fact<Settings> {
    let mut settings = Settings::default();
    let directory = "/etc/rancher/k3s";
    if let Some(text) = host.text_if_present(&format!("{directory}/config.yaml"))? {
        settings.absorb(&text);
    }
    for file in host.list_if_present(&format!("{directory}/config.yaml.d"))? {
        if file.ends_with(".yaml") || file.ends_with(".yml") {
            settings.absorb(&host.text(&format!("{directory}/config.yaml.d/{file}"))?);
        }
    }
    for unit in ["k3s", "k3s-agent"] {
        if let Some(text) = host.text_if_present(&format!("/etc/systemd/system/{unit}.service"))? {
            settings.absorb_unit(&text);
        }
    }
    Ok(settings)
}

fn waits_for_clock(host: &Host) -> Fact<bool> {
    for unit in ["k3s.service.d", "k3s-agent.service.d"] {
        let texts = drop_in::texts(host, unit, &["/etc/systemd/system", "/run/systemd/system"])?;
        if texts.iter().flat_map(|text| text.lines()).any(|line| {
            line.trim().strip_prefix("After=").is_some_and(|units| units.contains("time-sync.target"))
        }) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_read_without_its_secrets() {
        let mut settings = Settings::default();
        settings.absorb(
            "# K3s\nserver: \"https://pi-1.local:6443\"  # first\ntoken: K10secret\nflannel-backend: none\n\
             disable-kube-proxy: true\ndisable:\n  - coredns\n  - servicelb\nnode-ip: 192.168.1.5\n",
        );
        assert_eq!(settings.value("server"), Some("https://pi-1.local:6443"));
        assert_eq!(settings.values("disable"), ["coredns", "servicelb"]);
        assert!(settings.is_on("disable-kube-proxy") && !settings.is_on("disable-network-policy"));
        assert!(!format!("{settings:?}").contains("secret"));
        settings.absorb("disable+: [traefik]\nflannel-backend: vxlan\n");
        assert_eq!(settings.values("disable"), ["coredns", "servicelb", "traefik"]);
        assert_eq!(settings.value("flannel-backend"), Some("vxlan"));
    }

    #[test]
    fn arguments_of_the_unit_count_as_settings() {
        let mut settings = Settings::default();
        settings.absorb_unit(
            "[Service]\nExecStart=/usr/local/bin/k3s \\\n    server \\\n\t'--flannel-backend=none' \\\n\
             \t'--disable-kube-proxy' \\\n\t'--disable' \\\n\t'servicelb' \\\n\t'--disable=traefik' \\\n\n\
             [Install]\nX=--server=https://y\n",
        );
        assert_eq!(settings.value("flannel-backend"), Some("none"));
        assert!(settings.is_on("disable-kube-proxy"));
        assert_eq!(settings.values("disable"), ["servicelb", "traefik"]);
        assert_eq!(settings.value("server"), None);
    }
}
