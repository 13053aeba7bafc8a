//! What holds for every requirement on every host tree, and what each requirement makes of one edit of one.
#![allow(clippy::disallowed_methods, reason = "the tests read and edit host trees")]

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::*;
use crate::config::cluster::{Cluster, Encryption, Masquerade, Role, Tunnel};
use crate::host::{Host, LARGEST, Why, watch::covers};

/// The host trees of the repository.
fn trees() -> Vec<PathBuf> {
    let hosts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/hosts");
    let mut trees: Vec<PathBuf> = fs::read_dir(hosts).unwrap().map(|entry| entry.unwrap().path()).collect();
    trees.retain(|tree| tree.is_dir());
    trees.sort();
    assert!(trees.len() >= 3, "{trees:?}");
    trees
}

/// Runs a law over all trees, each on a thread of its own.
fn on_every_tree(law: impl Fn(&Path) + Sync) {
    std::thread::scope(|scope| {
        for tree in trees() {
            let law = &law;
            scope.spawn(move || law(&tree));
        }
    });
}

fn on_every_tree_in_turn(mut law: impl FnMut(&Path, &Config)) {
    for tree in trees() {
        configs().iter().for_each(|config| law(&tree, config));
    }
}

fn tree(name: &str) -> PathBuf {
    trees().into_iter().find(|tree| tree.ends_with(name)).unwrap()
}

fn config(cluster: Cluster) -> Config {
    Config { cluster, ..Config::default() }
}

/// Every feature off, as shipped, and every feature on, in the two sets that go together.
fn configs() -> [Config; 4] {
    let least = Cluster {
        k3s: false,
        cilium: false,
        ambient: false,
        longhorn: false,
        flux: false,
        ..Cluster::default()
    };
    let most = Cluster {
        role: Role::Server,
        ipv6: true,
        tunnel: Tunnel::Geneve,
        encryption: Encryption::Ipsec,
        protect_kernel_defaults: true,
        ..Cluster::default()
    };
    let fast = Cluster {
        masquerade: Masquerade::Bpf,
        encryption: Encryption::Wireguard,
        bandwidth_manager: true,
        bbr: true,
        netkit: true,
        ambient: false,
        envoy: false,
        ..Cluster::default()
    };
    [config(least), Config::default(), config(most), config(fast)]
}

fn check(root: &Path, config: &Config) -> Vec<Judged> {
    judge(REQUIREMENTS, &Facts::observe(&Host::tree(root).unwrap()), config).collect()
}

fn states(root: &Path, config: &Config) -> BTreeMap<&'static str, &'static str> {
    check(root, config).iter().map(|judged| (judged.requirement.id, judged.state().word())).collect()
}

/// A copy of a tree that may be spoilt; gone with its guard.
struct Copy(PathBuf);

impl Copy {
    fn of(tree: &Path) -> Copy {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let copy = std::env::temp_dir().join(format!("bramble-laws-{}-{number}", std::process::id()));
        copy_directory(tree, &copy);
        Copy(copy)
    }

    fn empty() -> Copy {
        let copy = Copy::of(&tree("pi4-trixie-4k").join("etc/systemd"));
        fs::remove_dir_all(copy.0.join("system")).unwrap();
        fs::create_dir(copy.0.join("etc")).unwrap();
        copy
    }

    /// Paths of all files, links left out.
    fn files(&self) -> Vec<PathBuf> {
        let (mut files, mut directories) = (Vec::new(), vec![self.0.clone()]);
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let entry = entry.unwrap();
                match entry.file_type().unwrap() {
                    kind if kind.is_dir() => directories.push(entry.path()),
                    kind if kind.is_file() => files.push(entry.path()),
                    _ => {}
                }
            }
        }
        files
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => copy_directory(&from, &to),
            kind if kind.is_symlink() => symlink(fs::read_link(from).unwrap(), to).unwrap(),
            _ => drop(fs::copy(from, to).unwrap()),
        }
    }
}

#[test]
fn each_tree_gives_the_findings_it_is_known_for() {
    for tree in trees() {
        let text = fs::read_to_string(tree.join("expected.json")).unwrap();
        let expected: BTreeMap<String, String> = serde_json::from_str(&text).unwrap();
        let expected: BTreeMap<&str, &str> =
            expected.iter().map(|(id, state)| (id.as_str(), state.as_str())).collect();
        assert_eq!(states(&tree, &Config::default()), expected, "{}", tree.display());
    }
}

#[test]
fn of_an_empty_tree_nothing_is_claimed() {
    let empty = Copy::empty();
    for config in configs() {
        for judged in check(&empty.0, &config) {
            let requirement = judged.requirement;
            let id = requirement.id;
            match judged.verdict {
                Err(Unreadable { path, why }) => {
                    assert!(!path.is_empty(), "{id}");
                    assert!(matches!(why, Why::NotCaptured | Why::NotLive), "{id}: {why}");
                }
                // What the owner did not choose is not looked for.
                Ok(Finding::NotNeeded { why }) => {
                    assert!(why.contains("[cluster]"), "{id}: {why}");
                }
                // This one speaks of the owner's choices and not of the host.
                verdict => assert!(id == "features", "{id}: {verdict:?}"),
            }
        }
    }
}

#[test]
fn a_file_that_was_not_captured_never_turns_into_a_claim() {
    // Directories that count as captured whole, and files that only name what is in them.
    let whole = [
        "etc/systemd/system",
        "sys/fs/cgroup/system.slice",
        "proc/sys/net/ipv4/conf",
        "etc/sysctl.d",
        "usr/lib/sysctl.d",
        "etc/cni/net.d",
        "etc/NetworkManager/conf.d",
        "etc/rancher/k3s/config.yaml.d",
        "etc/systemd/network",
        "etc/systemd/networkd.conf.d",
        "usr/lib/systemd/network",
        "sys/bus/usb/drivers/uas",
        "sys/class/net",
        "sys/fs/ext4",
        "var/log/pods",
        "absent",
    ];
    on_every_tree(|tree| {
        let copy = Copy::of(tree);
        let before = states(&copy.0, &Config::default());
        for file in copy.files() {
            let path = file.strip_prefix(&copy.0).unwrap();
            if whole.iter().any(|whole| path.starts_with(whole)) {
                continue;
            }
            let aside = copy.0.join("aside");
            fs::rename(&file, &aside).unwrap();
            for (id, state) in states(&copy.0, &Config::default()) {
                assert!(
                    state == before[id] || state == "unknown",
                    "{}: without {} {id} is {state}, with it {}",
                    tree.display(),
                    path.display(),
                    before[id]
                );
            }
            fs::rename(&aside, &file).unwrap();
        }
    });
}

#[test]
fn spoilt_files_are_survived_and_named() {
    type Spoil = fn(&Path);
    let spoils: [Spoil; 8] = [
        |file| fs::write(file, "").unwrap(),
        |file| fs::write(file, b"\0\xff\xfe\x7fELF").unwrap(),
        |file| fs::write(file, "\n= - : [ ]\nCONFIG_ \u{1b}[2J 99999999999999999999 -\n").unwrap(),
        |file| fs::File::create(file).unwrap().set_len(LARGEST + 1).unwrap(),
        |file| {
            let content = fs::read(file).unwrap();
            fs::write(file, &content[..content.len() / 2]).unwrap();
        },
        |file| {
            let content = fs::read(file).unwrap().into_iter().enumerate();
            let spoilt: Vec<u8> =
                content.map(|(at, byte)| if at % 5 == 2 { byte ^ 0x15 } else { byte }).collect();
            fs::write(file, spoilt).unwrap();
        },
        |file| {
            fs::remove_file(file).unwrap();
            fs::create_dir(file).unwrap();
        },
        |file| {
            fs::remove_file(file).unwrap();
            symlink(file.file_name().unwrap(), file).unwrap();
        },
    ];
    on_every_tree(|tree| {
        for spoil in spoils {
            let copy = Copy::of(tree);
            for file in copy.files() {
                spoil(&file);
            }
            let facts = Facts::observe(&Host::tree(&copy.0).unwrap());
            for config in configs() {
                for judged in judge(REQUIREMENTS, &facts, &config) {
                    assert!(!judged.evidence().is_empty(), "{}", judged.requirement.id);
                    if let Err(unreadable) = judged.verdict {
                        assert!(!unreadable.path.is_empty(), "{}", judged.requirement.id);
                    }
                }
            }
        }
    });
}

#[test]
fn a_shortfall_carries_what_mends_it() {
    for tree in trees() {
        let facts = Facts::observe(&Host::tree(&tree).unwrap());
        for config in configs() {
            for judged in judge(REQUIREMENTS, &facts, &config) {
                let id = judged.requirement.id;
                match &judged.verdict {
                    Ok(Finding::Unmet { what, changes }) => {
                        assert!(!what.is_empty() && !changes.is_empty(), "{id}");
                    }
                    Ok(Finding::Blocked { what, next }) => {
                        assert!(!what.is_empty() && !next.is_empty(), "{id}")
                    }
                    _ => assert!(!judged.evidence().is_empty(), "{id}"),
                }
                for change in judged.changes() {
                    let line = change.to_string();
                    assert!(!line.is_empty() && !line.contains('\n'), "{id}: {line:?}");
                }
            }
        }
    }
}

#[test]
fn every_file_that_a_change_writes_is_watched() {
    let mut seen = 0;
    on_every_tree_in_turn(|tree, config| {
        for judged in check(tree, config) {
            for change in judged.changes() {
                let path: &str = match change {
                    Change::WriteFile { path, .. }
                    | Change::AddLine { path, .. }
                    | Change::AppendToken { path, .. }
                    | Change::RemoveToken { path, .. }
                    | Change::JoinLines { path }
                    | Change::FirmwareSetting { path, .. } => path,
                    Change::Sysctl { .. } => crate::change::SYSCTL_FILE,
                    Change::LoadModules { .. } => crate::change::MODULES_FILE,
                    _ => continue,
                };
                seen += 1;
                assert!(covers(path), "{}: nobody would see a change of {path}", judged.requirement.id);
            }
        }
    });
    assert!(seen > 50, "{seen}");
}

#[test]
fn every_requirement_is_documented_and_has_an_id_of_its_own() {
    let mut ids = HashSet::new();
    for requirement in REQUIREMENTS {
        let Requirement { id, title, why, source, fix, catalogue, .. } = requirement;
        assert!(ids.insert(*id), "{id} stands twice");
        let kebab = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        assert!(id.split('-').all(kebab), "{id} is not kebab-case");
        for text in [title, why, source, fix] {
            assert!(text.len() > 5 && !text.ends_with('.') && !text.contains('\n'), "{id}: {text:?}");
        }
        let who = ["bramble ", "a person ", "none is needed"];
        assert!(who.iter().any(|who| fix.starts_with(who)), "{id}: nobody is said to mend it: {fix:?}");
        for row in *catalogue {
            let (area, number) = row.split_once('-').unwrap();
            assert!(area.len() >= 2 && number.len() == 3, "{id}: {row}");
        }
    }
}

#[test]
fn every_known_fault_is_answered_or_belongs_elsewhere_for_a_reason() {
    let (mut ids, mut answered) = (HashSet::new(), HashSet::new());
    for fault in faults() {
        assert!(ids.insert(fault.id), "{} stands twice", fault.id);
        assert!(["critical", "high", "medium", "low"].contains(&fault.severity), "{fault:?}");
        for id in fault.answered_by.split_whitespace() {
            let requirement = REQUIREMENTS.iter().find(|requirement| requirement.id == id);
            assert!(
                requirement.is_some_and(|r| r.catalogue.contains(&fault.id)),
                "{id} does not name {fault:?}"
            );
            answered.insert((id, fault.id));
        }
        let mut room = fault.room.split_whitespace();
        let (place, probes): (_, Vec<&str>) = (room.next().unwrap_or_default(), room.collect());
        assert_eq!(place == "probe", !probes.is_empty(), "{fault:?}");
        let elsewhere =
            ["probe", "join", "render", "report", "unseen"].contains(&place) && fault.reason.len() > 10;
        let nowhere = fault.room.is_empty() && fault.reason.is_empty();
        assert!(if fault.answered_by.is_empty() { elsewhere } else { nowhere }, "{fault:?}");
    }
    for requirement in REQUIREMENTS {
        for row in requirement.catalogue {
            assert!(answered.contains(&(requirement.id, row)), "{row} does not name {}", requirement.id);
        }
    }
}

#[test]
fn every_setting_of_the_tables_is_judged_by_a_requirement() {
    for setting in crate::facts::sysctl::TABLE.iter() {
        assert!(REQUIREMENTS.iter().any(|requirement| requirement.id == setting.requirement), "{setting:?}");
    }
    for requirement in REQUIREMENTS {
        for row in rows_of(requirement) {
            assert!(!row.is_empty() && !row.contains('\n'), "{}: {row:?}", requirement.id);
        }
    }
}

#[test]
fn no_limit_is_lowered_and_no_setting_is_set_that_is_for_information_alone() {
    use crate::facts::sysctl::{TABLE, path};
    let number = |value: &str| value.trim().parse::<u64>().unwrap();
    let limits: Vec<_> = TABLE.iter().filter(|row| row.compare == ">=" && row.action == "set").collect();
    let (seen, loaded) = (std::sync::Mutex::new(HashSet::new()), AtomicBool::new(false));
    on_every_tree(|tree| {
        let copy = Copy::of(tree);
        // The settings of IPv6 come with its module.
        const IPV6: &str = "proc/sys/net/ipv6/conf/all/disable_ipv6";
        let absent = fs::read_to_string(copy.0.join("absent")).unwrap();
        copy.write("absent", &format!("{absent}/{IPV6}\n"));
        let _ = fs::remove_file(copy.0.join(IPV6));
        // What runs, and what a file of somebody else says: one is more than is asked for, the other less.
        for (running, said) in [(4, 0.25), (1, 4.0)] {
            let mut lines = String::new();
            for row in &limits {
                let asked = number(row.value);
                // Of a setting that two rows ask for, the smaller one's numbers stand.
                copy.write(&path(row.name)[1..], &format!("{}\n", asked * running - 1));
                lines += &format!("{} = {}\n", row.name, (asked as f64 * said) as u64);
            }
            copy.write("etc/sysctl.d/99-zy-other.conf", &lines);
            for judged in configs().iter().flat_map(|config| check(&copy.0, config)) {
                let loads = |change: &Change| matches!(change, Change::LoadModules { .. });
                if judged.requirement.id == "forwarding6" && judged.changes().iter().any(loads) {
                    loaded.store(true, Ordering::Relaxed);
                }
                for change in judged.changes() {
                    let Change::Sysctl { key, value } = change else { continue };
                    let row =
                        TABLE.iter().find(|row| row.name == key && row.requirement == judged.requirement.id);
                    assert!(row.is_none_or(|row| row.action != "told"), "{change}");
                    let Some(row) = row.filter(|row| row.compare == ">=") else { continue };
                    let running = number(&fs::read_to_string(copy.0.join(&path(key)[1..])).unwrap());
                    let said = lines.lines().rfind(|line| line.starts_with(row.name)).unwrap();
                    let known = running.max(number(said.split_once('=').unwrap().1)).max(number(row.value));
                    assert_eq!(number(value), known, "{}: {change}", tree.display());
                    seen.lock().unwrap().insert((row.name, running > number(row.value)));
                }
            }
        }
    });
    // Each was asked for with more running and with more said; and settings were asked for that come with a module.
    let seen = seen.into_inner().unwrap();
    let names: HashSet<_> = limits.iter().map(|row| row.name).collect();
    assert_eq!(seen.len(), 2 * names.len(), "{seen:?}");
    assert!(loaded.into_inner());
}

#[test]
fn a_requirement_that_nobody_chose_names_the_setting_that_would() {
    let [least, ..] = configs();
    for judged in check(&tree("pi5-bookworm-16k"), &least) {
        let profiles = judged.requirement.profiles;
        assert!(!profiles.is_empty(), "{}", judged.requirement.id);
        if !profiles.iter().any(|profile| least.cluster.chose(*profile)) {
            assert_eq!(judged.state(), State::NotNeeded, "{}", judged.requirement.id);
            let evidence = judged.evidence();
            assert!(profiles.iter().all(|profile| evidence.contains(profile.setting())), "{evidence}");
        }
    }
}

#[test]
fn a_shortfall_that_the_owner_accepts_is_not_needed() {
    let accept = vec!["page-size".into(), "kernel-version".into(), "disk-space".into()];
    let states = states(&tree("pi5-bookworm-16k"), &config(Cluster { accept, ..Cluster::default() }));
    assert_eq!(states["page-size"], "not_needed");
    assert_eq!(states["kernel-version"], "met", "what holds, holds");
    assert_eq!(states["disk-space"], "unknown", "what could not be told stays so");
}

/// One edit of a tree: a file and what stands in it afterwards, or that it is known not to exist.
type Edit = (&'static str, Option<&'static str>);

#[test]
fn one_edit_of_a_host_changes_the_finding_it_should() {
    const ARGUMENTS: &str = "console=serial0,115200 console=tty1 root=PARTUUID=4e639091-02 rootfstype=ext4 \
                             fsck.repair=yes rootwait cfg80211.ieee80211_regdom=ES";
    const NETWORKD: Edit = ("sys/fs/cgroup/system.slice/systemd-networkd.service/cgroup.procs", Some("1\n"));
    const NO_NETWORKS: Edit = ("usr/lib/systemd/network/", None);
    const K3S: Edit = ("etc/systemd/system/multi-user.target.wants/k3s-agent.service", Some(""));
    const DEBIANS_HOOK: Edit = (
        "etc/kernel/postinst.d/z50-raspi-firmware",
        Some("cmdline_custom=\"/etc/default/raspi-extra-cmdline\"\n"),
    );
    const MTU: Edit = ("sys/class/net/eth0/mtu", Some("1500\n"));
    const UFW: Edit = ("etc/systemd/system/multi-user.target.wants/ufw.service", Some(""));
    const NFTABLES: Edit = ("etc/systemd/system/sysinit.target.wants/nftables.service", Some(""));
    const ROOT: &str = "1 1 179:2 / / rw - ext4 /dev/mmcblk0p2 rw\n";
    const RAN: Edit = ("var/lib/rancher/k3s/agent/client-ca.crt", Some(""));
    const BY_CABLE: Edit =
        ("proc/net/route", Some("Iface\neth0\t00000000\t01B2A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"));
    const BY_VLAN: Edit =
        ("proc/net/route", Some("Iface\neth0.1\t00000000\t01B2A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"));
    const DPKG: &str = "var/lib/dpkg/status";
    const DEBIAN_KERNEL: Edit = ("proc/sys/kernel/osrelease", Some("6.12.107+deb13-arm64\n"));
    let cases: &[(&str, &[Edit], &str, State)] = &[
        ("firewall", &[], "neither", State::Met),
        (
            "firewall",
            &[("etc/systemd/system/multi-user.target.wants/firewalld.service", Some(""))],
            "firewalld",
            State::Blocked,
        ),
        (
            "firewall",
            &[
                ("etc/systemd/system/multi-user.target.wants/ufw.service", Some("")),
                ("etc/ufw/ufw.conf", Some("ENABLED=yes\n")),
                (
                    "etc/default/ufw",
                    Some("DEFAULT_INPUT_POLICY=\"DROP\"\nDEFAULT_FORWARD_POLICY=\"ACCEPT\"\n"),
                ),
                ("etc/ufw/user.rules", Some("### tuple ### allow any 10250 0.0.0.0/0 any 0.0.0.0/0 in\n")),
            ],
            "ufw drops 5001/tcp, 4240/tcp",
            State::Blocked,
        ),
        (
            "firewall",
            &[
                ("etc/systemd/system/multi-user.target.wants/ufw.service", Some("")),
                ("etc/ufw/ufw.conf", Some("ENABLED=no\n")),
            ],
            "neither",
            State::Met,
        ),
        (
            "firewall",
            &[
                ("etc/systemd/system/sysinit.target.wants/nftables.service", Some("")),
                ("etc/nftables.conf", Some("flush ruleset\ntable inet f {\n}\n")),
            ],
            "/etc/nftables.conf deletes",
            State::Blocked,
        ),
        (
            "firewall",
            &[("etc/systemd/system/sysinit.target.wants/nftables.service", Some(""))],
            "/etc/nftables.conf",
            State::Unknown,
        ),
        (
            "firewall",
            &[
                UFW,
                ("etc/ufw/ufw.conf", Some("ENABLED=yes\n")),
                (
                    "etc/default/ufw",
                    Some("DEFAULT_INPUT_POLICY=\"DROP\"\nDEFAULT_FORWARD_POLICY=\"ACCEPT\"\nIPT_SYSCTL=\n"),
                ),
                (
                    "etc/ufw/user.rules",
                    Some("### tuple ### allow any any 0.0.0.0/0 any 192.168.178.0/24 in\n"),
                ),
            ],
            "neither",
            State::Met,
        ),
        (
            "firewall",
            &[
                NFTABLES,
                (
                    "etc/nftables.conf",
                    Some(
                        "table inet mine {\n\tchain input {\n\t\ttype filter hook input priority filter; policy drop;\n\
                         \t\tct state established,related accept\n\t\ttcp dport { 22, 4240, 4244, 4250, 5001, 10250 } \
                         accept\n\t\tudp dport 8472 accept\n\t}\n}\n",
                    ),
                ),
            ],
            "neither",
            State::Met,
        ),
        (
            "firewall",
            &[
                NFTABLES,
                (
                    "etc/nftables.conf",
                    Some(
                        "table inet mine {\nchain i {\ntype filter hook input priority 0; policy drop;\ntcp dport 22 accept\n}\n}\n",
                    ),
                ),
            ],
            "/etc/nftables.conf drops 10250/tcp",
            State::Blocked,
        ),
        (
            "firewall",
            &[
                NFTABLES,
                (
                    "etc/nftables.conf",
                    Some(
                        "table inet mine {\nchain i {\ntype filter hook input priority 0; policy drop;\ntcp dport @open accept\n}\n}\n",
                    ),
                ),
            ],
            "@open",
            State::Unknown,
        ),
        (
            "ports",
            &[(
                "proc/net/udp",
                Some(
                    "  sl  local_address rem_address st\n 0: 00000000:2118 00000000:0000 07 0:0 0:0 0 0 0 7 2\n",
                ),
            )],
            "8472/udp (VXLAN)",
            State::Blocked,
        ),
        ("ports", &[K3S], "holds its ports", State::NotNeeded),
        ("link-speed", &[], "Wi-Fi", State::NotNeeded),
        ("link-speed", &[BY_CABLE], "/sys/class/net/eth0/speed", State::Unknown),
        (
            "link-speed",
            &[
                BY_CABLE,
                ("sys/class/net/eth0/speed", Some("1000\n")),
                ("sys/class/net/eth0/duplex", Some("full\n")),
                MTU,
            ],
            "1000 Mb/s",
            State::Met,
        ),
        (
            "link-speed",
            &[
                BY_CABLE,
                ("sys/class/net/eth0/speed", Some("10\n")),
                ("sys/class/net/eth0/duplex", Some("full\n")),
                MTU,
            ],
            "10 Mb/s",
            State::Blocked,
        ),
        (
            "link-speed",
            &[
                BY_CABLE,
                ("sys/class/net/eth0/speed", Some("100\n")),
                ("sys/class/net/eth0/duplex", Some("half\n")),
                MTU,
            ],
            "half duplex",
            State::Blocked,
        ),
        (
            "link-speed",
            &[
                BY_CABLE,
                ("sys/class/net/eth0/speed", Some("-1\n")),
                ("sys/class/net/eth0/duplex", Some("unknown\n")),
                MTU,
            ],
            "no speed",
            State::NotNeeded,
        ),
        ("l2-uplink", &[], "Wi-Fi", State::Blocked),
        ("l2-uplink", &[BY_CABLE], "cable", State::Met),
        ("wifi-power-save", &[], "power saving", State::Unmet),
        (
            "wifi-power-save",
            &[("etc/NetworkManager/conf.d/9.conf", Some("[connection]\nwifi.powersave=2\n"))],
            "off",
            State::Met,
        ),
        ("wifi-power-save", &[BY_CABLE], "cable", State::NotNeeded),
        (
            "resolver",
            &[("etc/resolv.conf", Some("nameserver 127.0.0.1\n"))],
            "127.0.0.1 alone",
            State::Blocked,
        ),
        (
            "resolver",
            &[
                ("etc/resolv.conf", Some("nameserver 127.0.0.53\n")),
                ("run/systemd/resolve/resolv.conf", Some("nameserver 9.9.9.9\n")),
            ],
            "127.0.0.53 alone",
            State::Unmet,
        ),
        (
            "resolver",
            &[
                ("etc/resolv.conf", Some("nameserver 127.0.0.53\n")),
                ("etc/rancher/k3s/config.yaml", Some("resolv-conf: /run/systemd/resolve/resolv.conf\n")),
            ],
            "K3s is told",
            State::Met,
        ),
        (
            "server-name",
            &[("etc/rancher/k3s/config.yaml", Some("server: https://pi-1.local:6443\n"))],
            "pi-1.local",
            State::Blocked,
        ),
        (
            "server-name",
            &[("etc/rancher/k3s/config.yaml", Some("server: https://192.168.178.2:6443\n"))],
            "192.168.178.2",
            State::Met,
        ),
        (
            "node-address",
            &[("etc/rancher/k3s/config.yaml", Some("node-ip: 192.168.178.22\n"))],
            "192.168.178.22",
            State::Met,
        ),
        (
            "node-address",
            &[("etc/rancher/k3s/config.yaml", Some("node-ip: 192.168.178.23\n"))],
            "the node has 192.168.178.22",
            State::Blocked,
        ),
        ("node-password", &[RAN], "is gone", State::Blocked),
        ("node-password", &[RAN, ("etc/rancher/node/password", Some("x"))], "password", State::Met),
        (
            "iptables-version",
            &[(DPKG, Some("Package: iptables\nStatus: install ok installed\nVersion: 1.8.10-3ubuntu2\n"))],
            "1.8.10",
            State::Unmet,
        ),
        (
            "iptables-version",
            &[
                (DPKG, Some("Package: iptables\nStatus: install ok installed\nVersion: 1.8.10-3ubuntu2\n")),
                ("etc/rancher/k3s/config.yaml.d/9.yaml", Some("prefer-bundled-bin: true\n")),
            ],
            "prefers",
            State::Met,
        ),
        (
            "root-file-system",
            &[("proc/1/mountinfo", Some("28 1 179:2 / / ro shared:1 - ext4 /dev/mmcblk0p2 ro\n"))],
            "read-only",
            State::Blocked,
        ),
        (
            "root-file-system",
            &[("sys/fs/ext4/mmcblk0p2/errors_count", Some("3\n"))],
            "3 on mmcblk0p2",
            State::Blocked,
        ),
        (
            "usb-storage",
            &[
                ("sys/bus/usb/drivers/uas/2-1:1.0/x", Some("")),
                ("sys/bus/usb/devices/2-1/idVendor", Some("152d\n")),
                ("sys/bus/usb/devices/2-1/idProduct", Some("0578\n")),
            ],
            "152d:0578",
            State::Unmet,
        ),
        (
            "usb-storage",
            &[
                ("sys/bus/usb/drivers/uas/2-1:1.0/x", Some("")),
                ("sys/bus/usb/devices/2-1/idVendor", Some("152d\n")),
                ("sys/bus/usb/devices/2-1/idProduct", Some("0578\n")),
                ("boot/firmware/cmdline.txt", Some("usb-storage.quirks=1:2:u\n")),
            ],
            "152d:0578",
            State::Blocked,
        ),
        (
            "multipath",
            &[("etc/systemd/system/sysinit.target.wants/multipathd.service", Some(""))],
            "blacklist",
            State::Unmet,
        ),
        (
            "multipath",
            &[
                ("etc/systemd/system/sysinit.target.wants/multipathd.service", Some("")),
                ("etc/multipath.conf", Some("blacklist {\n  devnode \"^sd[a-z0-9]+\"\n}\n")),
            ],
            "blacklist",
            State::Met,
        ),
        ("longhorn-packages", &[], "open-iscsi nfs-common", State::Blocked),
        ("clock-wait", &[], "systemd-time-wait-sync", State::Unmet),
        (
            "clock-wait",
            &[
                ("etc/systemd/system/sysinit.target.wants/systemd-time-wait-sync.service", Some("")),
                (
                    "etc/systemd/system/k3s-agent.service.d/1.conf",
                    Some("[Unit]\nAfter=network-online.target time-sync.target\n"),
                ),
            ],
            "time-sync.target",
            State::Met,
        ),
        (
            "nm-cloud-setup",
            &[("etc/systemd/system/timers.target.wants/nm-cloud-setup.timer", Some(""))],
            "nm-cloud-setup.timer",
            State::Unmet,
        ),
        ("networkd-links", &[NETWORKD, NO_NETWORKS], "cilium*", State::Met),
        (
            "networkd-links",
            &[NETWORKD, NO_NETWORKS, ("etc/systemd/network/20-all.network", Some("[Match]\nName=*\n"))],
            "cilium_vxlan by /etc/systemd/network/20-all.network",
            State::Unmet,
        ),
        (
            "networkd",
            &[
                NETWORKD,
                NO_NETWORKS,
                (DPKG, Some("Package: systemd\nStatus: install ok installed\nVersion: 257.13-1\n")),
                (
                    "etc/systemd/networkd.conf.d/10-x.conf",
                    Some("[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\n"),
                ),
            ],
            "ManageForeignNextHops",
            State::Unmet,
        ),
        (
            "istio-cni",
            &[
                ("etc/cni/net.d/05-cilium.conflist", Some("{\"plugins\":[{\"type\":\"cilium-cni\"}]}")),
                (
                    "etc/cni/net.d/02-istio.conflist.cilium_bak",
                    Some("{\"plugins\":[{\"type\":\"istio-cni\"}]}"),
                ),
            ],
            "pushed it aside",
            State::Blocked,
        ),
        (
            "istio-cni",
            &[(
                "var/lib/rancher/k3s/agent/etc/cni/net.d/10.conflist",
                Some("{\"plugins\":[{\"type\":\"istio-cni\"}]}"),
            )],
            "containerd reads /etc/cni/net.d",
            State::Blocked,
        ),
        (
            "istio-cni",
            &[(
                "etc/cni/net.d/05-cilium.conflist",
                Some("{\"plugins\":[{\"type\":\"cilium-cni\"},{\"type\":\"istio-cni\"}]}"),
            )],
            "05-cilium.conflist",
            State::Met,
        ),
        ("leftover-flannel", &[], "no trace", State::Met),
        ("leftover-flannel", &[("sys/class/net/flannel.1/address", Some(""))], "flannel.1", State::Blocked),
        ("leftover-flannel", &[("run/flannel/subnet.env", Some(""))], "subnet.env", State::Blocked),
        ("leftover-flannel", &[RAN], "packet filter", State::Unknown),
        (
            "leftover-kube-proxy",
            &[("sys/class/net/kube-ipvs0/address", Some(""))],
            "kube-ipvs0",
            State::Blocked,
        ),
        (
            "leftover-kube-proxy",
            &[("proc/net/ip_vs", Some("IP Virtual Server\nProt\nTCP  0A2B0001:01BB rr\n"))],
            "IPVS",
            State::Blocked,
        ),
        (
            "leftover-kube-proxy",
            &[("proc/net/ip_vs", Some("IP Virtual Server\nProt\n"))],
            "no trace",
            State::Met,
        ),
        (
            "leftover-announcers",
            &[("var/log/pods/kube-system_svclb-traefik-1_9f/x", Some(""))],
            "pod kube-system_svclb-traefik-1",
            State::Blocked,
        ),
        (
            "leftover-announcers",
            &[(
                "proc/net/tcp",
                Some(
                    "  sl  local_address rem_address st\n 0: 00000000:1F0A 00000000:0000 0A 0:0 0:0 0 0 0 7 2\n",
                ),
            )],
            "7946",
            State::Blocked,
        ),
        (
            "leftover-linkerd",
            &[(
                "etc/cni/net.d/10.conflist",
                Some("{\"plugins\":[{\"type\":\"x\"},{\"type\":\"linkerd-cni\"}]}"),
            )],
            "linkerd-cni in /etc/cni/net.d/10.conflist",
            State::Blocked,
        ),
        (
            "leftover-argocd",
            &[("var/log/pods/argocd_argocd-server-0_9f/x", Some(""))],
            "argocd-server-0",
            State::Blocked,
        ),
        (
            "leftover-cilium",
            &[("sys/class/net/cilium_host/address", Some(""))],
            "cilium_host",
            State::Blocked,
        ),
        (
            "leftover-cilium",
            &[K3S, ("sys/class/net/cilium_host/address", Some(""))],
            "in use",
            State::NotNeeded,
        ),
        ("leftover-network-policy", &[RAN], "packet filter", State::Unknown),
        ("sysctl-conf", &[("etc/sysctl.conf", Some("vm.swappiness=1\n"))], "linked", State::Met),
        (
            "sysctl-conf",
            &[("etc/sysctl.d/99-sysctl.conf", None), ("etc/sysctl.conf", Some("vm.swappiness=1\n"))],
            "vm.swappiness",
            State::Blocked,
        ),
        (
            "forwarding",
            &[
                ("proc/sys/net/ipv4/ip_forward", Some("1\n")),
                ("proc/sys/net/ipv4/conf/default/forwarding", Some("1\n")),
                ("etc/sysctl.d/50-x.conf", Some("net.ipv4.ip_forward=0\n")),
            ],
            "0 at the next boot (/etc/sysctl.d/50-x.conf)",
            State::Unmet,
        ),
        // A directory there says nothing, whatever its name.
        ("forwarding", &[("etc/sysctl.d/odd.conf/within", Some(""))], "ip_forward is 0", State::Unmet),
        (
            "forwarding",
            &[("etc/sysctl.d/99-zzzz.conf", Some("net.ipv4.ip_forward=0\n"))],
            "after every file of bramble's",
            State::Blocked,
        ),
        (
            "rp-filter",
            &[("etc/sysctl.d/99-zzzz.conf", Some("net.ipv4.conf.*.rp_filter=2\n"))],
            "after every file of bramble's",
            State::Blocked,
        ),
        ("accept-ra", &[], "does not forward", State::NotNeeded),
        (
            "accept-ra",
            &[
                ("proc/sys/net/ipv6/conf/all/forwarding", Some("1\n")),
                ("proc/sys/net/ipv6/conf/wlan0/accept_ra", Some("1\n")),
            ],
            "wlan0.accept_ra is 1",
            State::Unmet,
        ),
        (
            "accept-ra",
            &[
                ("proc/sys/net/ipv6/conf/all/forwarding", Some("1\n")),
                ("proc/sys/net/ipv6/conf/wlan0/accept_ra", Some("2\n")),
            ],
            "is 2",
            State::Met,
        ),
        ("cilium-sysctls", &[("proc/sys/kernel/timer_migration", None)], "timer_migration", State::Blocked),
        (
            "boot-cmdline",
            &[
                ("boot/firmware/cmdline.txt", Some("root=x cgroup_enable=memory usb-storage.quirks=1:2:u\n")),
                ("etc/default/raspi-extra-cmdline", Some("cgroup_enable=memory\nusb-storage.quirks=1:2:u\n")),
                DEBIANS_HOOK,
            ],
            "without usb-storage.quirks=1:2:u",
            State::Unmet,
        ),
        (
            "boot-cmdline",
            &[
                ("boot/firmware/cmdline.txt", Some("root=x cgroup_enable=memory\n")),
                // Nobody has written the list yet.
                DEBIANS_HOOK,
            ],
            "without cgroup_enable=memory",
            State::Unmet,
        ),
        (
            "boot-cmdline",
            &[
                ("boot/firmware/config.txt", Some("[pi4]\nos_prefix=old/\n[pi5]\nos_prefix=new/\n")),
                ("boot/firmware/new/cmdline.txt", Some("root=x\n")),
            ],
            "/boot/firmware/new/cmdline.txt",
            State::Met,
        ),
        (
            "boot-cmdline",
            &[("boot/firmware/config.txt", Some("[gpio4=1]\nos_prefix=new/\n"))],
            "only the firmware can decide",
            State::Unknown,
        ),
        ("kernel-version", &[("proc/sys/kernel/osrelease", Some("5.4.83-v8+\n"))], "5.10", State::Blocked),
        (
            "kernel-version",
            &[("proc/sys/kernel/osrelease", Some("../../etc\n"))],
            "osrelease",
            State::Unknown,
        ),
        (
            "architecture",
            &[("usr/bin/dash", Some("\u{7f}ELF\u{1}\u{1}\u{1}\0\0\0\0\0\0\0\0\0\u{3}\0\u{28}\0"))],
            "arm",
            State::Blocked,
        ),
        (
            "page-size",
            &[("boot/config-6.12.75+rpt-rpi-2712", Some("CONFIG_ARM64_4K_PAGES=y\n"))],
            "4 KiB",
            State::Met,
        ),
        (
            "address-bits",
            &[("boot/config-6.12.75+rpt-rpi-2712", Some("CONFIG_ARM64_VA_BITS=39\n"))],
            "39",
            State::Blocked,
        ),
        (
            "kernel-options-cilium",
            &[("boot/config-6.12.75+rpt-rpi-2712", Some("CONFIG_BPF=y\n"))],
            "CONFIG_NET_CLS_BPF",
            State::Blocked,
        ),
        (
            "bpf-programs",
            &[("boot/config-6.12.75+rpt-rpi-2712", Some("CONFIG_BPF=y\n"))],
            "BPF_PROG_LOAD",
            State::Unknown,
        ),
        ("bpf-jit", &[("proc/sys/net/core/bpf_jit_enable", Some("0\n"))], "is 0", State::Unmet),
        ("bpf-jit", &[("proc/sys/net/core/bpf_jit_enable", None)], "no BPF compiler", State::Blocked),
        ("btf", &[("sys/kernel/btf/vmlinux", Some("x"))], "vmlinux", State::Met),
        (
            "module-tree",
            &[("boot/config-6.12.75+rpt-rpi-2712", Some("CONFIG_BPF=y\n"))],
            "without modules",
            State::NotNeeded,
        ),
        (
            "tunnel",
            &[("lib/modules/6.12.75+rpt-rpi-2712/modules.dep", Some("kernel/net/x.ko:\n"))],
            "vxlan",
            State::Blocked,
        ),
        (
            "ambient-modules",
            &[("lib/modules/6.12.75+rpt-rpi-2712/modules.dep", Some("kernel/net/x.ko:\n"))],
            "xt_owner",
            State::Blocked,
        ),
        (
            "ambient-modules",
            &[(
                "etc/modules",
                Some(
                    "nf_conntrack\nnf-nat\nx_tables\nxt_tcpudp\nxt_REDIRECT\nxt_mark\nxt_connmark\nxt_conntrack\n\
                      xt_multiport\nxt_owner\nip_set\nip_set_hash_ip\nip_tables\niptable_nat\niptable_mangle\niptable_raw\n",
                ),
            )],
            "16 modules",
            State::Met,
        ),
        (
            "boot-cmdline",
            &[("boot/firmware/cmdline.txt", Some("a b\r\n\r\ncgroup_enable=memory\r\n"))],
            "2 lines",
            State::Unmet,
        ),
        ("boot-cmdline", &[("boot/firmware/cmdline.txt", Some("\n"))], "empty", State::Blocked),
        (
            "boot-cmdline",
            &[("boot/firmware/config.txt", None), ("boot/config.txt", None)],
            "not mounted",
            State::Blocked,
        ),
        // What stands in a directory on which FAT is not mounted is an old copy.
        ("boot-cmdline", &[("proc/1/mountinfo", Some(ROOT))], "not mounted", State::Blocked),
        (
            "boot-cmdline",
            &[("proc/1/mountinfo", Some("1 1 179:2 / / rw - ext4 x rw\n2 1 8:1 / /boot rw - ext4 y rw\n"))],
            "not mounted",
            State::Blocked,
        ),
        (
            "boot-cmdline",
            &[
                (
                    "proc/1/mountinfo",
                    Some("1 1 179:2 / / rw - ext4 x rw\n2 1 179:1 / /boot rw - vfat y rw\n"),
                ),
                ("boot/config.txt", Some("arm_64bit=1\n")),
                ("boot/cmdline.txt", Some("root=y\nsecond\n")),
            ],
            "/boot/cmdline.txt has 2 lines",
            State::Unmet,
        ),
        ("pressure", &[("proc/1/mountinfo", Some(ROOT))], "not mounted", State::Blocked),
        // Two files, and config.txt names neither: the one that the running kernel's arguments came from.
        (
            "boot-cmdline",
            &[("boot/firmware/current/cmdline.txt", Some("root=y\n"))],
            "/boot/firmware/cmdline.txt",
            State::Met,
        ),
        (
            "boot-cmdline",
            &[
                ("boot/firmware/current/cmdline.txt", Some("root=y psi=1\n")),
                ("proc/cmdline", Some("coherent_pool=1M root=y\n")),
            ],
            "/boot/firmware/current/cmdline.txt",
            State::Met,
        ),
        (
            "boot-cmdline",
            &[
                ("boot/firmware/cmdline.txt", Some("root=x\n")),
                ("boot/firmware/current/cmdline.txt", Some("root=x psi=1\n")),
            ],
            "whether the firmware reads /boot/firmware/cmdline.txt or /boot/firmware/current/cmdline.txt",
            State::Unknown,
        ),
        (
            "boot-cmdline",
            &[("boot/firmware/current/cmdline.txt", Some("root=x\n")), ("boot/firmware/cmdline.txt", None)],
            "/boot/firmware/current/cmdline.txt",
            State::Met,
        ),
        ("reboot", &[("run/reboot-required", Some(""))], "/run/reboot-required", State::Waiting),
        ("reboot", &[("lib/modules/6.12.80+rpt-rpi-2712/modules.dep", Some(""))], "6.12.80", State::Waiting),
        ("reboot", &[("boot/firmware/cmdline.txt", Some("psi=1\n"))], "psi=1", State::Waiting),
        ("pressure", &[("proc/pressure/memory", Some("some avg10=0.00\n"))], "/proc/pressure", State::Met),
        (
            "cgroup-v2",
            &[("proc/1/mountinfo", Some("1 1 0:1 / /sys/fs/cgroup rw shared:1 - tmpfs tmpfs rw\n"))],
            "tmpfs",
            State::Blocked,
        ),
        (
            "cgroup-v2",
            &[
                (
                    "proc/1/mountinfo",
                    Some(
                        "1 1 0:1 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n2 1 179:1 / /boot/firmware rw - vfat /dev/mmcblk0p1 rw\n",
                    ),
                ),
                ("boot/firmware/cmdline.txt", Some("systemd.unified_cgroup_hierarchy=0\n")),
            ],
            "tmpfs",
            State::Unmet,
        ),
        (
            "memory-cgroup",
            &[("sys/fs/cgroup/cgroup.controllers", Some("cpuset cpu io memory pids\n"))],
            "memory",
            State::Met,
        ),
        ("memory-cgroup", &[("sys/fs/cgroup/cgroup.controllers", None)], "cgroup-v2", State::Waiting),
        (
            "memory-cgroup",
            &[("boot/firmware/cmdline.txt", Some("cgroup_enable=memory\n"))],
            "reboot",
            State::Waiting,
        ),
        (
            "memory-cgroup",
            &[("boot/firmware/cmdline.txt", Some("a\ncgroup_enable=memory\n"))],
            "memory",
            State::Unmet,
        ),
        (
            "memory-cgroup",
            &[("boot/firmware/cmdline.txt", Some("cgroup_disable=memory cgroup_enable=memory\n"))],
            "reboot",
            State::Waiting,
        ),
        (
            "memory-cgroup",
            &[("boot/firmware/cmdline.txt", Some("cgroup_enable=memory cgroup_disable=memory\n"))],
            "memory",
            State::Unmet,
        ),
        (
            "memory-cgroup",
            &[
                ("proc/cmdline", Some("cgroup_enable=memory cgroup_disable=memory\n")),
                ("boot/firmware/cmdline.txt", Some("cgroup_enable=memory\n")),
            ],
            "any more",
            State::Waiting,
        ),
        (
            "memory-cgroup",
            &[("boot/firmware/cmdline.txt", Some("root=x -- cgroup_enable=memory\n"))],
            "memory",
            State::Unmet,
        ),
        ("memory-cgroup", &[("proc/cmdline", Some("cgroup_enable=memory\n"))], "although", State::Blocked),
        (
            "memory-cgroup",
            &[DEBIAN_KERNEL, ("proc/cmdline", Some("cgroup_disable=memory cgroup_enable=memory\n"))],
            "does not know",
            State::Blocked,
        ),
        ("memory-cgroup", &[DEBIAN_KERNEL], "does not know", State::Blocked),
        (
            "memory-cgroup",
            &[DEBIAN_KERNEL, ("proc/cmdline", Some("root=x quiet\n"))],
            "no argument switches it off",
            State::Blocked,
        ),
        (
            "memory-cgroup",
            &[
                DEBIAN_KERNEL,
                ("proc/cmdline", Some("dma.dmachans=0x37f5 root=x cgroup_disable=memory quiet\n")),
                ("boot/firmware/cmdline.txt", Some("root=x quiet\n")),
            ],
            "any more",
            State::Waiting,
        ),
        (
            "memory-cgroup",
            &[DEBIAN_KERNEL, ("boot/firmware/cmdline.txt", Some("cgroup_disable=memory quiet\n"))],
            "memory",
            State::Unmet,
        ),
        (
            "memory-cgroup",
            &[("boot/firmware/config.txt", None), ("boot/config.txt", None)],
            "not mounted",
            State::Blocked,
        ),
        (
            "cgroup-controllers",
            &[("sys/fs/cgroup/cgroup.controllers", Some("cpu io memory\n"))],
            "cpuset, pids",
            State::Blocked,
        ),
        (
            "bpffs",
            &[("proc/1/mountinfo", Some("1 1 0:1 / / rw shared:1 - ext4 x rw\n"))],
            "nothing",
            State::Unmet,
        ),
        (
            "bpffs",
            &[(
                "proc/1/mountinfo",
                Some("1 1 0:1 / /sys/fs/bpf rw - bpf bpf rw\n2 1 0:2 / /sys/fs/bpf rw - bpf bpf rw\n"),
            )],
            "2 times",
            State::Blocked,
        ),
        (
            "bpffs",
            &[(
                "proc/1/mountinfo",
                Some("1 1 0:1 / /sys/fs/bpf rw - autofs x rw\n2 1 0:2 / /sys/fs/bpf rw - bpf bpf rw\n"),
            )],
            "bpf on",
            State::Met,
        ),
        (
            "bpffs",
            &[("proc/1/mountinfo", Some("1 1 0:1 / /sys/fs/bpf rw - tmpfs x rw\n"))],
            "tmpfs",
            State::Blocked,
        ),
        (
            "tracefs",
            &[("proc/1/mountinfo", Some("1 1 0:1 / / rw - ext4 x rw\n"))],
            "not mounted",
            State::Unmet,
        ),
        (
            "mount-propagation",
            &[("proc/1/mountinfo", Some("1 1 0:1 / / rw - ext4 x rw\n"))],
            "/ not shared",
            State::Unmet,
        ),
        (
            "overlay",
            &[("lib/modules/6.12.75+rpt-rpi-2712/modules.dep", Some("kernel/net/x.ko:\n"))],
            "overlay",
            State::Blocked,
        ),
        ("default-route", &[("proc/net/route", Some("Iface\n"))], "no default route", State::Blocked),
        (
            "address-ranges",
            &[("proc/net/route", Some("Iface\neth0\t0000000A\t0\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n"))],
            "10.0.0.0/8 on eth0 overlaps 10.42.0.0/16",
            State::Blocked,
        ),
        (
            "address-ranges",
            &[(
                "proc/net/route",
                Some("Iface\ncilium_host\t00002A0A\t0\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"),
            )],
            "no route",
            State::Met,
        ),
        (
            "forwarding",
            &[("proc/sys/net/ipv4/ip_forward", Some("1\n"))],
            "default.forwarding is 0",
            State::Unmet,
        ),
        (
            "rp-filter",
            &[("proc/sys/net/ipv4/conf/all/rp_filter", Some("1\n"))],
            "all.rp_filter is 1",
            State::Unmet,
        ),
        (
            "rp-filter",
            &[("proc/sys/net/ipv4/conf/lxc12/rp_filter", Some("2\n"))],
            "lxc12.rp_filter is 2",
            State::Unmet,
        ),
        ("rp-filter", &[("proc/sys/net/ipv4/conf/default/rp_filter", Some("2\n"))], "new lxc*", State::Unmet),
        ("rp-filter", &[("proc/sys/net/ipv4/conf/wlan0/rp_filter", Some("1\n"))], "strict", State::Unmet),
        ("rp-filter", &[("proc/sys/net/ipv4/conf/wlan0/rp_filter", Some("2\n"))], "off", State::Met),
        (
            "rp-filter",
            &[BY_VLAN, ("proc/sys/net/ipv4/conf/eth0.1/rp_filter", Some("1\n"))],
            "net.ipv4.conf.eth0/1.rp_filter is 1 (strict)",
            State::Unmet,
        ),
        (
            "rp-filter",
            &[
                BY_VLAN,
                ("proc/sys/net/ipv4/conf/eth0.1/rp_filter", Some("0\n")),
                ("etc/sysctl.d/60-hard.conf", Some("net/ipv4/conf/eth0.1/rp_filter=1\n")),
            ],
            "eth0.1, the way out, get rp_filter 1 at the next boot",
            State::Unmet,
        ),
        (
            "accept-ra",
            &[
                BY_VLAN,
                ("proc/sys/net/ipv6/conf/all/forwarding", Some("1\n")),
                ("proc/sys/net/ipv6/conf/eth0.1/accept_ra", Some("1\n")),
            ],
            "net.ipv6.conf.eth0/1.accept_ra is 1",
            State::Unmet,
        ),
        (
            "rp-filter",
            &[("etc/sysctl.d/60-x.conf", Some("net.ipv4.conf.*.rp_filter=1\n"))],
            "new cilium_*",
            State::Unmet,
        ),
        (
            "rp-filter",
            &[("etc/sysctl.d/60-hard.conf", Some("net.ipv4.conf.all.rp_filter=1\n"))],
            "all get rp_filter 1 at the next boot (/etc/sysctl.d/60-hard.conf)",
            State::Unmet,
        ),
        (
            "rp-filter",
            &[("etc/sysctl.d/60-hard.conf", Some("net/ipv4/conf/wlan0/rp_filter=1\n"))],
            "wlan0, the way out, get rp_filter 1 at the next boot",
            State::Unmet,
        ),
        (
            "rp-filter",
            &[("etc/sysctl.d/60-hard.conf", Some("net.ipv4.conf.wlan0.rp_filter=2\n"))],
            "off",
            State::Met,
        ),
        (
            "rp-filter",
            &[
                UFW,
                ("etc/ufw/ufw.conf", Some("ENABLED=yes\n")),
                ("etc/default/ufw", Some("IPT_SYSCTL=/etc/ufw/sysctl.conf\n")),
                ("etc/ufw/user.rules", Some("")),
                ("etc/ufw/sysctl.conf", Some("net/ipv4/conf/all/rp_filter=1\n")),
            ],
            "/etc/ufw/sysctl.conf gives all rp_filter 1 whenever ufw starts",
            State::Blocked,
        ),
        ("conntrack", &[("proc/sys/net/netfilter/nf_conntrack_max", Some("65536\n"))], "65536", State::Unmet),
        ("conntrack", &[("proc/sys/net/netfilter/nf_conntrack_max", Some("262144\n"))], "262144", State::Met),
        ("networkd", &[NETWORKD, NO_NETWORKS], "not no", State::Unmet),
        (
            "networkd",
            &[
                NETWORKD,
                NO_NETWORKS,
                (
                    "etc/systemd/networkd.conf.d/10-x.conf",
                    Some("[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\n"),
                ),
            ],
            "are no",
            State::Met,
        ),
        (
            "network-manager",
            &[(
                "etc/NetworkManager/conf.d/x.conf",
                Some("[keyfile]\nunmanaged-devices=interface-name:cilium*;interface-name:lxc*\n"),
            )],
            "cilium*",
            State::Met,
        ),
        (
            "dhcpcd",
            &[
                ("etc/systemd/system/multi-user.target.wants/dhcpcd.service", Some("")),
                ("etc/dhcpcd.conf", Some("hostname\n")),
            ],
            "does not deny",
            State::Unmet,
        ),
        (
            "dhcpcd",
            &[
                ("etc/systemd/system/multi-user.target.wants/dhcpcd.service", Some("")),
                ("etc/dhcpcd.conf", Some("denyinterfaces cilium* lxc* veth*\n")),
            ],
            "denyinterfaces",
            State::Met,
        ),
        ("hostname", &[("proc/sys/kernel/hostname", Some("pi_5\n"))], "pi_5", State::Blocked),
        ("machine-id", &[("etc/machine-id", Some("uninitialized\n"))], "first boot", State::Waiting),
        ("machine-id", &[("etc/machine-id", Some(""))], "empty", State::Blocked),
        ("machine-id", &[("etc/machine-id", None)], "does not exist", State::Blocked),
        ("memory-size", &[("proc/meminfo", Some("MemTotal: 300000 kB\n"))], "292 MiB", State::Blocked),
        (
            "swap",
            &[("proc/swaps", Some("Filename Type\n/dev/sda2 partition 1 0 -2\n"))],
            "/dev/sda2",
            State::Unmet,
        ),
        (
            "swap",
            &[("proc/swaps", Some("Filename Type\n/dev/zram0 partition 1 0 100\n"))],
            "zram",
            State::Met,
        ),
        (
            "inotify",
            &[("proc/sys/fs/inotify/max_user_instances", Some("many\n"))],
            "max_user_instances",
            State::Unknown,
        ),
        ("kernel-keys", &[("proc/sys/kernel/keys/root_maxkeys", Some("200\n"))], "200", State::Unmet),
        (
            "apparmor-parser",
            &[("sys/module/apparmor/parameters/enabled", Some("Y\n"))],
            "not there",
            State::Blocked,
        ),
    ];
    let judge_edit = |(id, edits, says, state): &(&str, &[Edit], &str, State)| {
        let copy = Copy::of(&tree("pi5-bookworm-16k"));
        copy.write("proc/cmdline", &format!("cgroup_disable=memory {ARGUMENTS}"));
        let mut absent = fs::read_to_string(copy.0.join("absent")).unwrap();
        for (path, content) in *edits {
            match content {
                Some(content) => copy.write(path, content),
                None => {
                    let _ = fs::remove_file(copy.0.join(path));
                    absent += &format!("/{path}\n");
                }
            }
        }
        copy.write("absent", &absent);
        let judged =
            check(&copy.0, &Config::default()).into_iter().find(|judged| judged.requirement.id == *id);
        let judged = judged.unwrap();
        let case = format!("{id} after {edits:?}: {:?}", judged.verdict);
        assert_eq!(judged.state(), *state, "{case}");
        assert!(judged.evidence().contains(says), "{says:?} is not in {case}");
    };
    std::thread::scope(|scope| {
        for cases in cases.chunks(cases.len() / 4) {
            scope.spawn(move || cases.iter().for_each(judge_edit));
        }
    });
}
