//! How many installed packages apt would upgrade, from what apt and dpkg keep: `/var/lib/dpkg/status` against the lists of the
//! archives in `/var/lib/apt/lists`.
//!
//! Debian counts this nowhere: only Ubuntu's update-notifier does. apt itself would tell, at the price of a child process of some
//! 60 MiB. What changes apt's choice and is not followed here (pins, a chosen release, lists that are kept compressed) makes it
//! untold rather than wrong. Packages on hold and upgrades that are rolled out in phases are not counted, as apt leaves them where they are.

use std::{
    cmp::Ordering,
    collections::HashMap,
    io::{BufRead, BufReader, Read},
};

use super::Fact;
use crate::host::Host;

const STATUS: &str = "/var/lib/dpkg/status";
const LISTS: &str = "/var/lib/apt/lists";
/// More than any field that matters; what is longer is skipped.
const BUFFER: usize = 64 << 10;

/// Whether the number can be told without apt.
pub(crate) fn is_told(host: &Host) -> Fact<bool> {
    let lists = host.list_if_present(LISTS)?;
    let is_compressed = lists.iter().any(|name| name.contains("_Packages."));
    Ok(lists.iter().any(|name| is_plain(name)) && !is_compressed && !is_steered(host)?)
}

fn is_plain(list: &str) -> bool {
    list.ends_with("_Packages")
}

/// The number of pending upgrades, where it can be told. Reads some 50 to 100 MiB.
pub(crate) fn count(host: &Host) -> Fact<usize> {
    let lists = host.list_if_present(LISTS)?;
    let mut installed = installed(host.reader(STATUS)?);
    for name in lists.iter().filter(|name| is_plain(name)) {
        let offer = match offer(host, name, &lists)? {
            Offer::Never => continue,
            offer => offer,
        };
        let list = host.reader(&format!("{LISTS}/{name}"))?;
        stanzas(list, |stanza| {
            if stanza.is_phased {
                return;
            }
            let Some(package) = installed.get_mut(&stanza.key()) else { return };
            let best = if offer == Offer::Always { &mut package.offered } else { &mut package.second };
            if best.as_ref().is_none_or(|best| order(&stanza.version, best) == Ordering::Greater) {
                *best = Some(stanza.version.clone());
            }
        });
    }
    Ok(installed.values().filter(|package| package.is_pending()).count())
}

/// Whether somebody steers apt by pins or by a release of his choice.
fn is_steered(host: &Host) -> Fact<bool> {
    let says = |path: &str, words: &[&str]| {
        let text = host.text_if_present(path)?.unwrap_or_default().to_lowercase();
        Ok::<_, crate::host::Unreadable>(words.iter().any(|word| text.contains(word)))
    };
    for (file, folder, words) in [
        ("/etc/apt/preferences", "/etc/apt/preferences.d", &["pin-priority"][..]),
        ("/etc/apt/apt.conf", "/etc/apt/apt.conf.d", &["default-release"]),
    ] {
        if says(file, words)? {
            return Ok(true);
        }
        for name in host.list_if_present(folder)? {
            if says(&format!("{folder}/{name}"), words)? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// When apt takes what an archive offers (apt_preferences(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offer {
    /// Priority 500.
    Always,
    /// 100: only in place of what no other archive offers. Backports.
    Second,
    /// 1: never by itself. Experimental.
    Never,
}

/// What the archive's own release file says of that.
fn offer(host: &Host, list: &str, lists: &[String]) -> Fact<Offer> {
    // deb.debian.org_debian_dists_trixie_main_binary-arm64_Packages is of deb.debian.org_debian_dists_trixie_InRelease.
    let mut archive = list;
    while let Some((shorter, _)) = archive.rsplit_once('_') {
        archive = shorter;
        for name in [format!("{archive}_InRelease"), format!("{archive}_Release")] {
            if lists.contains(&name) {
                let head = host.head(&format!("{LISTS}/{name}"), 4096)?;
                let head = String::from_utf8_lossy(&head);
                let says = |field: &str| head.lines().any(|line| line == field);
                return Ok(match says("NotAutomatic: yes") {
                    false => Offer::Always,
                    true if says("ButAutomaticUpgrades: yes") => Offer::Second,
                    true => Offer::Never,
                });
            }
        }
    }
    Ok(Offer::Always)
}

/// An installed package, and the newest that archives offer for it.
struct Package {
    version: String,
    offered: Option<String>,
    second: Option<String>,
}

impl Package {
    fn is_pending(&self) -> bool {
        let against = |offer: &Option<String>| offer.as_ref().map(|offer| order(offer, &self.version));
        match against(&self.offered) {
            Some(Ordering::Greater) => true,
            Some(Ordering::Equal) => false,
            Some(Ordering::Less) | None => against(&self.second) == Some(Ordering::Greater),
        }
    }
}

/// What matters of a stanza.
#[derive(Default)]
struct Stanza {
    package: String,
    architecture: String,
    version: String,
    status: String,
    is_phased: bool,
}

impl Stanza {
    /// A package may be of this machine in one version and of all in the next.
    fn key(&self) -> String {
        match self.architecture.as_str() {
            "all" | NATIVE => self.package.clone(),
            foreign => format!("{}:{foreign}", self.package),
        }
    }
}

/// Debian's name of the architecture that this program runs on.
const NATIVE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

fn installed(status: impl Read) -> HashMap<String, Package> {
    let mut installed = HashMap::new();
    stanzas(status, |stanza| {
        if stanza.status == "install ok installed" {
            let package = Package { version: stanza.version.clone(), offered: None, second: None };
            installed.insert(stanza.key(), package);
        }
    });
    installed
}

/// deb822(5): hands each stanza on.
fn stanzas(text: impl Read, mut each: impl FnMut(&Stanza)) {
    let mut reader = BufReader::with_capacity(BUFFER, text);
    let (mut line, mut stanza) = (Vec::new(), Stanza::default());
    loop {
        line.clear();
        // A list that cannot be read to its end is one that is being replaced: the next count is right.
        let read = reader.read_until(b'\n', &mut line).unwrap_or(0);
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        if text.is_empty() {
            if !stanza.package.is_empty() {
                each(&stanza);
            }
            stanza = Stanza::default();
            if read == 0 {
                return;
            }
            continue;
        }
        let fields = [
            (&b"Package: "[..], &mut stanza.package),
            (b"Version: ", &mut stanza.version),
            (b"Architecture: ", &mut stanza.architecture),
            (b"Status: ", &mut stanza.status),
        ];
        if let Some((value, field)) =
            fields.into_iter().find_map(|(name, field)| Some((text.strip_prefix(name)?, field)))
        {
            field.clear();
            field.push_str(&String::from_utf8_lossy(value));
        } else if text.starts_with(b"Phased-Update-Percentage: ") {
            stanza.is_phased = true;
        }
    }
}

/// deb-version(7): which of two versions is newer.
fn order(a: &str, b: &str) -> Ordering {
    fn split(version: &str) -> (u64, &str, &str) {
        let (epoch, rest) = version.split_once(':').unwrap_or(("0", version));
        let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
        (epoch.parse().unwrap_or(0), upstream, revision)
    }
    let ((epoch_a, upstream_a, revision_a), (epoch_b, upstream_b, revision_b)) = (split(a), split(b));
    epoch_a
        .cmp(&epoch_b)
        .then_with(|| order_part(upstream_a, upstream_b))
        .then_with(|| order_part(revision_a, revision_b))
}

/// A tilde stands before the end, letters before all else; numbers count as numbers.
fn order_part(mut a: &str, mut b: &str) -> Ordering {
    fn weight(c: Option<char>) -> (u8, char) {
        match c {
            Some('~') => (0, ' '),
            None => (1, ' '),
            Some(c) if c.is_ascii_alphabetic() => (2, c),
            Some(c) => (3, c),
        }
    }
    fn take<'a>(text: &mut &'a str, digits: bool) -> &'a str {
        let end = text.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(text.len());
        let (taken, rest) = text.split_at(end);
        *text = rest;
        taken
    }
    while !a.is_empty() || !b.is_empty() {
        let (mut words_a, mut words_b) = (take(&mut a, false).chars(), take(&mut b, false).chars());
        loop {
            let (one, other) = (words_a.next(), words_b.next());
            match weight(one).cmp(&weight(other)) {
                Ordering::Equal if one.is_none() => break,
                Ordering::Equal => {}
                unequal => return unequal,
            }
        }
        let [one, other] =
            [take(&mut a, true), take(&mut b, true)].map(|digits| digits.trim_start_matches('0'));
        match one.len().cmp(&other.len()).then_with(|| one.cmp(other)) {
            Ordering::Equal => {}
            unequal => return unequal,
        }
    }
    Ordering::Equal
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the tests build trees")]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;

    #[test]
    fn versions_are_ordered_as_dpkg_orders_them() {
        // Each is newer than the one before it.
        let rising = [
            "1.0~~",
            "1.0~rc1-1",
            "1.0~rc2-1",
            "1.0-1",
            "1.0-1+b1",
            "1.0-1+deb12u1",
            "1.0-1.1",
            "1.0-2",
            "1.0a-1",
            "1.0+b-1",
            "1.0.1-1",
            "1.2-1",
            "1.10-1",
            "10-1",
            "1:0.1-1",
            "2:0~1",
        ];
        for (at, a) in rising.iter().enumerate() {
            for (other, b) in rising.iter().enumerate() {
                assert_eq!(order(a, b), at.cmp(&other), "{a} and {b}");
            }
        }
        assert_eq!(order("1.00-1", "1.0-01"), Ordering::Equal);
        assert_eq!(order("0:1-1", "1-1"), Ordering::Equal);
    }

    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Self {
            let tree =
                Self(std::env::temp_dir().join(format!("bramble-upgrade-{name}-{}", std::process::id())));
            tree.write("absent", "/etc/\n/var/\n");
            tree.write("etc/hostname", "n1\n");
            tree
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn list(&self, archive: &str, release: &str, packages: &[(&str, &str, &str)]) {
            let packages: String = packages
                .iter()
                .map(|(name, architecture, version)| {
                    format!("Package: {name}\nArchitecture: {architecture}\nVersion: {version}\nDescription: x\n\n")
                })
                .collect();
            self.write(&format!("var/lib/apt/lists/a.org_dists_{archive}_main_binary-x_Packages"), &packages);
            self.write(&format!("var/lib/apt/lists/a.org_dists_{archive}_InRelease"), release);
        }

        fn count(&self) -> Option<usize> {
            let host = Host::tree(&self.0).unwrap();
            is_told(&host).unwrap().then(|| count(&host).unwrap())
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_apt_would_upgrade_is_counted_and_nothing_else() {
        let tree = Tree::new("counts");
        assert_eq!(tree.count(), None, "no archive was ever asked");
        let installed = |name: &str, status: &str, architecture: &str, version: &str| {
            format!(
                "Package: {name}\nStatus: {status}\nArchitecture: {architecture}\nVersion: {version}\nConffiles:\n /x y\n\n"
            )
        };
        let here = "install ok installed";
        tree.write(
            "var/lib/dpkg/status",
            &[
                installed("old", here, NATIVE, "1-1"),
                installed("now-of-all", here, NATIVE, "1-1"),
                installed("newest", here, "all", "2:1-1"),
                installed("held", "hold ok installed", NATIVE, "1-1"),
                installed("removed", "deinstall ok config-files", NATIVE, "1-1"),
                installed("foreign", here, "armhf", "1-1"),
                installed("local", here, NATIVE, "9-1"),
                installed("backported", here, NATIVE, "2-1~bpo12+1"),
                installed("not-backported", here, NATIVE, "1-1"),
                installed("experimental", here, NATIVE, "1-1"),
            ]
            .concat(),
        );
        let stable = [
            ("old", NATIVE, "1-2"),
            ("now-of-all", "all", "2-1"),
            ("newest", "all", "9-1"),
            ("held", NATIVE, "1-2"),
            ("removed", NATIVE, "1-2"),
            ("foreign", "armhf", "1-1+b1"),
            ("foreign", NATIVE, "7-1"),
            ("local", NATIVE, "8-1"),
            ("backported", NATIVE, "1-1"),
            ("not-backported", NATIVE, "1-1"),
            ("experimental", NATIVE, "1-1"),
            ("elsewhere", NATIVE, "3-1"),
        ];
        tree.list("stable", "Suite: stable\n", &stable);
        assert_eq!(tree.count(), Some(3), "old, now-of-all, foreign");
        tree.list("updates", "Suite: updates\n", &[("old", NATIVE, "1-3"), ("local", NATIVE, "9-1")]);
        assert_eq!(tree.count(), Some(3));
        let backports = [("backported", NATIVE, "2-1~bpo12+2"), ("not-backported", NATIVE, "2-1~bpo12+1")];
        tree.list("backports", "NotAutomatic: yes\nButAutomaticUpgrades: yes\n", &backports);
        assert_eq!(tree.count(), Some(4), "and what came from there already");
        tree.list("experimental", "NotAutomatic: yes\n", &[("experimental", NATIVE, "2-1")]);
        assert_eq!(tree.count(), Some(4));

        tree.write("etc/apt/preferences.d/notes", "Explanation: none yet\n");
        assert_eq!(tree.count(), Some(4));
        tree.write("etc/apt/preferences.d/pin", "Package: *\nPin: release a=stable\nPin-Priority: 900\n");
        assert_eq!(tree.count(), None, "pins change what apt chooses");
        fs::remove_file(tree.0.join("etc/apt/preferences.d/pin")).unwrap();
        tree.write("etc/apt/apt.conf.d/70release", "APT::Default-Release \"stable\";\n");
        assert_eq!(tree.count(), None, "so does a release that was chosen");
        fs::remove_file(tree.0.join("etc/apt/apt.conf.d/70release")).unwrap();
        tree.write("var/lib/apt/lists/a.org_dists_x_main_binary-x_Packages.lz4", "x");
        assert_eq!(tree.count(), None, "a compressed list is not read");
    }

    #[test]
    fn phased_upgrades_and_torn_lists_are_not_counted() {
        let tree = Tree::new("phases");
        let package = |more: &str| format!("Package: a\nArchitecture: {NATIVE}\nVersion: 2\n{more}");
        tree.write(
            "var/lib/dpkg/status",
            &format!("Package: a\nStatus: install ok installed\nArchitecture: {NATIVE}\nVersion: 1\n"),
        );
        let list = "var/lib/apt/lists/a.org_x_Packages";
        for (text, pending) in [
            (package("Phased-Update-Percentage: 30\n"), 0),
            (package(""), 1),
            ("Package: a\nArchi".to_owned(), 0),
            ("\0\u{fffd}\n\n\n".to_owned(), 0),
        ] {
            tree.write(list, &text);
            assert_eq!(tree.count(), Some(pending), "{text:?}");
        }
    }
}
