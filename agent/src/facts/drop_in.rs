//! Drop-in directories (`sysctl.d`, `modules-load.d`, `networkd.conf.d`, ...) by systemd's rules, and the
//! patterns that their settings use.

use std::collections::BTreeMap;

use super::Fact;
use crate::host::{Host, Unreadable, Why};

/// Paths and texts of the `.conf` files in `name` below each directory, each name once from the first directory
/// that has it, in the order of their names.
pub(super) fn files(host: &Host, name: &str, directories: &[&str]) -> Fact<Vec<(String, String)>> {
    with_ending(host, name, directories, ".conf")
}

/// Paths and texts of what counts for a program of systemd's, as "networkd": the first main file that there is, then its
/// drop-ins.
pub(crate) fn of_systemd(host: &Host, program: &str) -> Fact<Vec<(String, String)>> {
    let directories = ["/etc", "/run", "/usr/local/lib", "/usr/lib"];
    let mut found = Vec::new();
    for directory in directories {
        let path = format!("{directory}/systemd/{program}.conf");
        if let Some(text) = host.text_if_present(&path)? {
            found.push((path, text));
            break;
        }
    }
    found.extend(files(host, &format!("systemd/{program}.conf.d"), &directories)?);
    Ok(found)
}

/// Keys and values of a section, as "[Network]", in their order.
pub(crate) fn settings<'a>(text: &'a str, section: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let mut is_in_it = false;
    text.lines().map(str::trim).filter_map(move |line| {
        if line.starts_with('[') {
            is_in_it = line == section;
        }
        let (key, value) = line.split_once('=')?;
        (is_in_it && !line.starts_with(['#', ';', '['])).then_some((key.trim(), value.trim()))
    })
}

/// As [`files`], with another ending than `.conf`.
pub(super) fn with_ending(
    host: &Host,
    name: &str,
    directories: &[&str],
    ending: &str,
) -> Fact<Vec<(String, String)>> {
    let mut paths = BTreeMap::new();
    for directory in directories {
        let directory = format!("{directory}/{name}");
        for file in host.list_if_present(&directory)? {
            if file.ends_with(ending) {
                let path = format!("{directory}/{file}");
                paths.entry(file).or_insert(path);
            }
        }
    }
    paths
        .into_values()
        // A link to /dev/null hides the files of that name and says nothing itself; a link to a file that is
        // gone says as little, and so does a directory.
        .filter(|path| host.link(path).as_deref() != Some("/dev/null"))
        .filter_map(|path| match host.text_if_present(&path) {
            Ok(text) => text.map(|text| Ok((path, text))),
            Err(Unreadable { why: Why::NotAFile, .. }) => None,
            Err(unreadable) => Some(Err(unreadable)),
        })
        .collect()
}

/// The texts alone.
pub(super) fn texts(host: &Host, name: &str, directories: &[&str]) -> Fact<Vec<String>> {
    Ok(files(host, name, directories)?.into_iter().map(|(_, text)| text).collect())
}

/// Whether a pattern with `*` and `?` matches the whole of a name.
pub(super) fn glob(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // Where to go on when the part after the last star does not fit: one letter further.
    let mut star = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(letter) if *letter == b'?' || *letter == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                p = at + 1;
                n = taken + 1;
            }
        }
    }
    pattern[p..].iter().all(|letter| *letter == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, expected) in [
            ("cilium*", "cilium_host", true),
            ("cilium*", "xcilium", false),
            ("*", "", true),
            ("a*b*c", "a_b_b_c", true),
            ("a*b*c", "a_b_b", false),
            ("eth?", "eth0", true),
            ("eth?", "eth", false),
            ("eth0", "eth0", true),
            ("", "x", false),
        ] {
            assert_eq!(glob(pattern, name), expected, "{pattern} {name}");
        }
    }
}
