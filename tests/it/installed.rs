//! The packages on booted machines: what they start, say, may and limit, what an upgrade keeps, and what a purge leaves.
//!
//! Containers show everything above the kernel, emulated boards what the kernel has to do, and the card a Pi's boot file.
//! `cargo xtask machine test NAME` builds the packages and runs the tests of one machine.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Failed, Trial};
use serde_json::Value;
use testbed::{
    machine::{Blueprint, Gift, MACHINES, Machine},
    watch::until,
};

use crate::{
    machine as bare,
    package::{HARDNESS, TREE, changes, packages_for, said, score, target},
    root,
};

/// What can be tested with the packages at `/srv`.
struct Test {
    name: &'static str,
    run: fn(&mut dyn Machine) -> Result<()>,
}

macro_rules! test {
    ($name:ident) => {
        Test { name: stringify!($name), run: $name }
    };
}

/// On this machine's kernel.
const CONTAINER: &[Test] = &[
    test!(it_runs_what_it_installs_and_a_purge_leaves_nothing),
    test!(a_bad_configuration_is_named_alike_by_unit_and_command),
    test!(an_upgrade_keeps_settings_state_and_identity),
    test!(what_an_earlier_release_left_is_read_told_and_taken_back),
    test!(the_agent_may_start_what_its_rule_names_and_nothing_else),
    test!(identify_is_asked_over_mqtt_and_refused_where_no_light_is),
    test!(a_daemon_that_hangs_is_ended_and_begins_anew),
    test!(the_journal_can_be_asked_by_field_and_is_quiet_otherwise),
    test!(what_the_owner_switched_off_stays_off),
    test!(an_installation_that_was_cut_short_is_completed),
    test!(each_right_of_the_companions_is_needed_and_missed_by_name),
    test!(what_prepares_a_node_is_done_before_k3s_starts),
];
/// Of these, what hangs on the release: a change tries the others on the newest one alone.
const BY_RELEASE: [&str; 4] = [
    "it_runs_what_it_installs_and_a_purge_leaves_nothing",
    "an_upgrade_keeps_settings_state_and_identity",
    "each_right_of_the_companions_is_needed_and_missed_by_name",
    "what_prepares_a_node_is_done_before_k3s_starts",
];
/// On a kernel of its own.
const BOARD: &[Test] = &[
    test!(it_measures_keeps_its_limits_and_prepares_before_the_next_boot_is_over),
    test!(it_measures_on_a_kernel_that_hides_its_types),
    test!(each_right_of_the_companions_is_needed_and_missed_by_name),
];
/// On machines that the firmware boots from a card.
const CARD: &[Test] = &[test!(it_mends_the_cards_boot_file_and_gives_it_back)];

/// How long anything may take in a machine; an emulated one on a busy host needs most of it.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long a line may take to the journal.
const SOON: Duration = Duration::from_secs(40);
const UNITS: [&str; 3] = ["bramble", "bramble-probe", "bramble-aggregator"];
/// The one that runs only where its owner switched it on.
const OPTIONAL: &str = "bramble-kubernetes";
/// What it does here, where K3s has left it no certificate.
const ASLEEP: &str = "Type=exec\nWatchdogSec=0\nExecStart=\nExecStart=/usr/bin/sleep infinity";

/// All tests on all machines, named after both.
pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for machine in MACHINES {
        let tests = match (machine.has_card(), machine.has_own_kernel()) {
            (true, _) => CARD,
            (false, true) => BOARD,
            (false, false) => CONTAINER,
        };
        let missing = bare::missing(machine)
            .or_else(|| packages(machine).err().map(|why| format!("{why:#}")))
            .or_else(|| too_long(machine));
        for test in tests {
            let name = format!("machine::{}::installed::{}", machine.name, test.name);
            let run = test.run;
            let trial = Trial::test(name, move || {
                on(machine, run).map_err(|error| Failed::from(format!("{error:#}")))
            });
            trials.push(match missing.clone().or_else(|| alike(machine, test.name)) {
                Some(reason) => trial.with_kind(reason).with_ignored_flag(true),
                None => trial,
            });
        }
    }
    trials
}

/// An emulated machine needs a minute for the packages alone.
fn too_long(machine: &Blueprint) -> Option<String> {
    let is_change = std::env::var_os("BRAMBLE_CHANGE").is_some();
    let why = || format!("minutes long; cargo xtask machine test {}", machine.name);
    (is_change && machine.has_own_kernel()).then(why)
}

/// What is the same on the newest release.
fn alike(machine: &Blueprint, test: &str) -> Option<String> {
    let is_change = std::env::var_os("BRAMBLE_CHANGE").is_some();
    let is_alike = machine.name == "debian12" && !BY_RELEASE.contains(&test);
    (is_change && is_alike).then(|| format!("tried on debian13; cargo xtask machine test {}", machine.name))
}

fn packages(machine: &Blueprint) -> Result<[PathBuf; 2]> {
    packages_for(if machine.is_arm64() { "arm64" } else { "amd64" })
}

/// Runs a test on a fresh machine that has the packages' files, and shuts it down in order.
fn on(blueprint: &Blueprint, test: fn(&mut dyn Machine) -> Result<()>) -> Result<()> {
    let mut gifts: Vec<Gift> = packages(blueprint)?
        .iter()
        .map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            Gift { from: path.clone(), to: format!("/srv/{name}") }
        })
        .collect();
    let older = Older::of(&packages(blueprint)?)?;
    if !blueprint.has_own_kernel() {
        gifts.extend(older.packages.iter().map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            Gift { from: path.clone(), to: format!("/srv/older/{name}") }
        }));
        gifts.extend(left_behind(&root().join(LEFT), "/srv/left")?);
    }
    let mut machine = blueprint.start(&bare::store()?, &gifts)?;
    test(&mut *machine)?;
    machine.stop()
}

/// What a release left on a node; the folder's README says how it was taken.
const LEFT: &str = "tests/state/0.1";

/// All files of a tree, to be put where it is to be.
fn left_behind(folder: &Path, to: &str) -> Result<Vec<Gift>> {
    let mut gifts = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let from = entry?.path();
        let to = format!("{to}/{}", from.file_name().context("a name")?.to_string_lossy());
        match from.is_dir() {
            true => gifts.extend(left_behind(&from, &to)?),
            false => gifts.push(Gift { from, to }),
        }
    }
    Ok(gifts)
}

/// The packages as an earlier release would have had them: a lower version, and configuration files with other texts.
struct Older {
    folder: PathBuf,
    packages: Vec<PathBuf>,
}

impl Older {
    fn of(packages: &[PathBuf]) -> Result<Self> {
        let folder = target()?.join("tmp").join(format!("older-{}", std::process::id()));
        let mut older = Self { folder: folder.clone(), packages: Vec::new() };
        for package in packages {
            let name = package.file_name().context("a package has a name")?.to_string_lossy().into_owned();
            let tree = folder.join(&name).with_extension("tree");
            fs::create_dir_all(&folder)?;
            said(Command::new("dpkg-deb").arg("--raw-extract").arg(package).arg(&tree))?;
            edit(&tree.join("DEBIAN/control"), |text| text.replace("\nVersion: ", "\nVersion: 0.0.1~"))?;
            for file in fs::read_dir(tree.join("etc/bramble"))?.flatten().map(|entry| entry.path()) {
                if file.is_file() {
                    edit(&file, |text| format!("# As it was.\n{text}"))?;
                }
            }
            let built = folder.join(&name);
            let mut build = Command::new("dpkg-deb");
            said(build.args(["-Zgzip", "-z1", "--root-owner-group", "--build"]).arg(&tree).arg(&built))?;
            fs::remove_dir_all(&tree)?;
            older.packages.push(built);
        }
        Ok(older)
    }
}

impl Drop for Older {
    fn drop(&mut self) {
        // Nothing depends on it; the next run uses another folder.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn edit(path: &Path, change: impl Fn(&str) -> String) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(fs::write(path, change(&text))?)
}

/// Installs both packages; a question would end it, for nobody answers.
fn install(machine: &mut dyn Machine) -> Result<()> {
    machine.run("dpkg --install /srv/*.deb </dev/null")?.good().map(drop)
}

/// Where a machine keeps the list of its tree: a line to an emulated machine loses parts of a long answer when it is busy.
const REMEMBERED: &str = "/var/log/bed-tree";

fn remember_tree(machine: &mut dyn Machine) -> Result<()> {
    machine.run(&format!("{{ {TREE}; }} >{REMEMBERED} && test $(wc -l <{REMEMBERED}) -gt 1000"))?.good()?;
    Ok(())
}

/// What is not as it was when it was remembered, before and after; without the accounts.
fn tree_changes(machine: &mut dyn Machine) -> Result<Vec<String>> {
    let diff = machine.run(&format!("{{ {TREE}; }} | diff {REMEMBERED} -"))?;
    ensure!(diff.code <= 1, "diff ended with {}: {}", diff.code, diff.err);
    Ok(changes(&diff.out))
}

/// A property of a unit.
pub(crate) fn property(machine: &mut dyn Machine, unit: &str, name: &str) -> Result<String> {
    machine.run(&format!("systemctl show --value --property={name} {unit}"))?.good()
}

fn expect_active(machine: &mut dyn Machine) -> Result<()> {
    for unit in UNITS {
        let state = property(machine, unit, "ActiveState")?;
        ensure!(
            state == "active",
            "{unit} is {state}: {}",
            machine.run("journalctl -b --no-pager -n 40")?.out
        );
    }
    Ok(())
}

/// What the agent says, once it says anything.
fn status(machine: &mut dyn Machine) -> Result<Option<Value>> {
    Ok(serde_json::from_str(&machine.run("bramble status --json")?.out).ok())
}

/// States of findings by id, as the agent or the command tells them.
fn findings(text: &str) -> Result<Vec<(String, String)>> {
    let document: Value = serde_json::from_str(text)?;
    let list = document["findings"].as_array().or_else(|| document["findings"]["findings"].as_array());
    let mut findings: Vec<(String, String)> = list
        .context("findings are told")?
        .iter()
        .map(|f| (f["id"].to_string(), f["state"].to_string().to_lowercase().replace(['_', '-'], " ")))
        .collect();
    findings.sort();
    Ok(findings)
}

/// Entries of this boot's journal that the fields in `which` select.
fn entries(machine: &mut dyn Machine, which: &str) -> Result<Vec<Value>> {
    let text = machine.run(&format!("journalctl -b --no-pager -o json {which}"))?.out;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

fn field<'a>(entry: &'a Value, name: &str) -> &'a str {
    entry[name].as_str().unwrap_or_default()
}

fn it_runs_what_it_installs_and_a_purge_leaves_nothing(machine: &mut dyn Machine) -> Result<()> {
    remember_tree(machine)?;
    install(machine)?;
    expect_active(machine)?;
    for unit in UNITS {
        ensure!(!property(machine, unit, "StatusText")?.is_empty(), "{unit} says nothing of itself");
    }
    ensure!(preparations(machine)? == 0, "root has acted unasked");
    for (unit, highest) in HARDNESS {
        // A template has no score of its own: what it is asked to do changes nothing of it.
        let unit = unit.replace('@', "@bed");
        let text = machine.run(&format!("systemd-analyze security --no-pager {unit}"))?.good()?;
        let score = score(&text).with_context(|| text.clone())?;
        ensure!(score <= highest, "{unit} has {score}, at most {highest} is wanted:\n{text}");
    }

    // The walls around the agent hide nothing that its user would see without them.
    let within = until(PATIENCE, "the agent tells its findings", || {
        let said = machine.run("bramble status --json")?;
        Ok(findings(&said.out).ok().filter(|findings| findings.len() > 20))
    })?;
    let check = "setpriv --reuid=bramble --regid=bramble --clear-groups bramble check --json";
    let without = findings(&machine.run(check)?.out)?;
    let differ: Vec<_> = without.iter().filter(|finding| !within.contains(finding)).collect();
    ensure!(differ.is_empty() && within.len() == without.len(), "the agent tells otherwise of {differ:?}");

    let pid = property(machine, "bramble", "MainPID")?;
    machine.run("systemctl reload bramble bramble-probe bramble-aggregator")?.good()?;
    until(PATIENCE, "a good configuration is taken anew", || {
        let lines = machine.run("journalctl -b -o cat --no-pager")?.out;
        Ok((lines.matches("the configuration is taken anew").count() >= 3).then_some(()))
    })?;
    ensure!(property(machine, "bramble", "MainPID")? == pid, "a reload is no restart");

    // The owner's switch. This kernel's settings cannot be written from here, so root stops at the first of them; what it did
    // before must have reached the machine, and goes with the receipt.
    let prepared = machine.run("touch /etc/bramble/prepare; systemctl start bramble-prepare")?;
    let journal = machine.run("journalctl -b -u bramble-prepare -o cat --no-pager")?.out;
    ensure!(journal.contains("done  mount bpf on /sys/fs/bpf"), "{}{journal}", prepared.err);
    ensure!(preparations(machine)? == 1, "systemd did not log that root began: {journal}");
    machine
        .run("mountpoint -q /sys/fs/bpf")
        .and_then(|m| m.good())
        .context("the mount stayed in the unit")?;
    let removed = machine.run("dpkg --remove bramble")?.good()?;
    ensure!(
        removed.contains("/sys/fs/bpf") && removed.contains("sudo bramble revert"),
        "it does not say what was applied and how to undo it: {removed}"
    );
    install(machine)?;
    machine.run("rm /etc/bramble/prepare; bramble revert")?.good()?;

    // What only its owner starts goes as well, a join that still waits for its server among it; a sleep stands for both.
    machine.run("touch /etc/bramble/join")?.good()?;
    drop_in(machine, OPTIONAL, ASLEEP)?;
    drop_in(machine, "bramble-join", "ExecStart=\nExecStart=/usr/bin/sleep infinity")?;
    machine
        .run(&format!("systemctl enable --now {OPTIONAL} && systemctl start --no-block bramble-join"))?
        .good()?;
    until(PATIENCE, "both are at work", || {
        let optional = property(machine, OPTIONAL, "SubState")?;
        Ok((optional == "running" && property(machine, "bramble-join", "SubState")? == "start").then_some(()))
    })?;
    let purged = machine.run("dpkg --purge bramble bramble-aggregator")?.good()?;
    ensure!(!purged.contains("bramble revert"), "it says that something is still applied: {purged}");
    let running = machine.run("pgrep -x 'bramble.*'; pgrep -x sleep; ls -d /run/bramble*")?.out;
    ensure!(running.is_empty(), "this is still there: {running}");
    let left = tree_changes(machine)?;
    ensure!(left.is_empty(), "not as before: {left:#?}");
    Ok(())
}

/// What reads a configuration: the unit, its process, the folder of the owner's files, and the commands that say the same
/// of the one file in it.
type Reader = (&'static str, &'static str, &'static str, &'static [&'static str]);

const READERS: [Reader; 3] = [
    (
        "bramble",
        "bramble",
        "/etc/bramble/conf.d",
        &[
            "bramble check --list",
            "bramble check --config /etc/bramble/conf.d/a.toml",
            "bramble --config /etc/bramble/conf.d/a.toml plan",
        ],
    ),
    ("bramble-probe", "bramble", "/etc/bramble/conf.d", &["bramble check --list"]),
    (
        "bramble-aggregator",
        "bramble-aggregator",
        "/etc/bramble/aggregator.d",
        &[
            "bramble-aggregator --check",
            "bramble-aggregator --check --config /etc/bramble/aggregator.d/a.toml",
        ],
    ),
];

fn a_bad_configuration_is_named_alike_by_unit_and_command(machine: &mut dyn Machine) -> Result<()> {
    install(machine)?;
    machine.run("cp /var/lib/bramble/identity.json /srv/identity.json")?.good()?;
    for reader in READERS {
        is_named_alike(machine, reader).with_context(|| reader.0)?;
        expect_active(machine)?;
    }
    machine
        .run("cmp /var/lib/bramble/identity.json /srv/identity.json")?
        .good()
        .context("the state was touched")?;
    Ok(())
}

fn is_named_alike(machine: &mut dyn Machine, (unit, program, folder, commands): Reader) -> Result<()> {
    // As bad as a secret in the wrong place can be.
    let bad = format!("printf '[mqtt]\\nhots = \"hunter2\"\\n' >{folder}/a.toml");
    machine.run(&format!("{bad} && systemctl reload {unit}"))?.good()?;
    let named = format!("{folder}/a.toml: line 2: hots: unknown field");
    let errors = format!("-u {unit} -p err");
    until(PATIENCE, "the journal names file, line and key", || {
        let entries = entries(machine, &errors)?;
        Ok(entries.iter().any(|entry| field(entry, "MESSAGE").contains(&named)).then_some(()))
    })?;
    ensure!(property(machine, unit, "ActiveState")? == "active", "the old configuration did not stay");

    let before = entries(machine, &errors)?.len();
    ensure!(
        machine.run(&format!("systemctl restart {unit}"))?.code != 0,
        "it started with a configuration that is not good"
    );
    ensure!(property(machine, unit, "NRestarts")? == "0", "it was tried again and again");
    let own: Vec<Value> = entries(machine, &errors)?
        .into_iter()
        .skip(before)
        // The kernel keeps 15 letters of a name.
        .filter(|entry| program.starts_with(field(entry, "_COMM")) && !field(entry, "_COMM").is_empty())
        .collect();
    ensure!(own.len() == 1, "one line is wanted: {own:?}");
    let line = field(&own[0], "MESSAGE");
    ensure!(line.starts_with(&named) && !line.contains("hunter2"), "the unit says {line}");
    for command in commands {
        let check = machine.run(command)?;
        ensure!(
            check.code == 64 && check.err.trim_end() == format!("{program}: {line}"),
            "{command} ends with {} and says {}, the unit says {line}",
            check.code,
            check.err
        );
    }
    let id = field(&own[0], "MESSAGE_ID");
    let explained = machine.run(&format!("journalctl -b --no-pager --catalog -u {unit} MESSAGE_ID={id}"))?;
    ensure!(explained.out.contains("Subject: The configuration is not good"), "{id}: {}", explained.out);
    until(PATIENCE, "the failure has its own entry, with an explanation", || {
        let entry = machine.run(&format!(
            "journalctl -b --no-pager --catalog MESSAGE_ID=6d1b4f6c0a5e4b0f9a7c2e8d3f915b24 BRAMBLE_UNIT={unit}.service"
        ))?;
        Ok(entry.out.contains("To start it again:").then_some(()))
    })?;
    machine.run(&format!("rm {folder}/a.toml; systemctl reset-failed; systemctl restart {unit}"))?.good()?;
    Ok(())
}

/// How often root has begun to apply the plan in this boot; a start whose condition is not met does not count.
fn preparations(machine: &mut dyn Machine) -> Result<usize> {
    let begun = "MESSAGE_ID=7d4958e842da4a758f6c1cdc7b36dcc5 UNIT=bramble-prepare.service";
    Ok(entries(machine, begun)?.len())
}

/// How often systemd has started a unit.
fn starts(machine: &mut dyn Machine, unit: &str) -> Result<usize> {
    Ok(entries(machine, &format!("MESSAGE_ID=39f53479d3a045ac8e11786248231fbf UNIT={unit}.service"))?.len())
}

fn an_upgrade_keeps_settings_state_and_identity(machine: &mut dyn Machine) -> Result<()> {
    const KEPT: &str = "/var/lib/bramble/identity.json /etc/bramble/conf.d/own.toml /etc/bramble/mqtt-password \
                        /etc/bramble/aggregator-mqtt-password /etc/bramble/prepare";
    machine.run("dpkg --install /srv/older/*.deb </dev/null")?.good()?;
    let own = "printf '[node]\\nname = \"attic\"\\n' >/etc/bramble/conf.d/own.toml; \
               (umask 077; echo secret >/etc/bramble/mqtt-password; echo other >/etc/bramble/aggregator-mqtt-password); \
               touch /etc/bramble/prepare; systemctl enable --now bramble-kubernetes; systemctl restart bramble";
    drop_in(machine, OPTIONAL, ASLEEP)?;
    machine.run(own)?.good()?;
    let sums = machine.run(&format!("stat -c '%n %a %U' {KEPT}; sha256sum {KEPT}"))?.good()?;
    let name = |status: &Value| status["info"]["node"].as_str() == Some("attic");
    until(PATIENCE, "the agent has the owner's name", || Ok(status(machine)?.filter(name)))?;
    let units = UNITS.iter().chain([&OPTIONAL]);
    let before: Vec<_> = units.map(|unit| Ok((unit, starts(machine, unit)?))).collect::<Result<_>>()?;

    install(machine)?;
    let now = machine.run(&format!("stat -c '%n %a %U' {KEPT}; sha256sum {KEPT}"))?.good()?;
    ensure!(now == sums, "before:\n{sums}\nafter:\n{now}");
    expect_active(machine)?;
    until(PATIENCE, "the agent still has the owner's name", || Ok(status(machine)?.filter(name)))?;
    for (unit, before) in before {
        let count = starts(machine, unit)? - before;
        ensure!(count == 1, "{unit} was started {count} times by one upgrade");
        ensure!(property(machine, unit, "NRestarts")? == "0", "{unit} failed meanwhile");
    }
    ensure!(preparations(machine)? == 0, "the upgrade made root act, which only a boot should");
    let files = machine.run("cat /etc/bramble/*.toml; ls /etc/bramble")?.good()?;
    ensure!(!files.contains("As it was") && !files.contains("dpkg-"), "an old file is left: {files}");
    let version =
        machine.run("dpkg-query --show --showformat='${Version} ' bramble bramble-aggregator")?.good()?;
    ensure!(!version.contains('~'), "{version}");
    Ok(())
}

/// Identity, records that no broker has got, and a receipt, all as the earlier release wrote them.
fn what_an_earlier_release_left_is_read_told_and_taken_back(machine: &mut dyn Machine) -> Result<()> {
    const APPLIED: &str = "/etc/systemd/networkd.conf.d";
    let left = |name: &str| fs::read_to_string(root().join(LEFT).join("var/lib/bramble").join(name));
    let identity: Value = serde_json::from_str(&left("identity.json")?)?;
    machine.run(
        "dpkg --install /srv/older/*.deb </dev/null; systemctl stop bramble; rm -r /var/lib/bramble/*",
    )?;
    // What a checkout does not keep: owners and modes.
    machine
        .run(
            "cp -r /srv/left/. / && cd /var/lib/bramble && chown -R root: receipts && chmod 600 receipts/*/*.after && \
             chown bramble: held identity.json records && chmod 600 held identity.json records",
        )?
        .good()?;
    let listen = "systemd-run --quiet --unit=bed-broker mosquitto; sleep 1; systemd-run --quiet --unit=bed-ear \
                  sh -c 'exec mosquitto_sub -V mqttv5 -t bramble/home/node/attic/history >/run/bed-ear'";
    machine.run(listen)?.good()?;
    // An id that no broker was told is another one on another machine.
    let id = identity["machine"].as_str().context("it was made for a machine")?;
    machine.run(&format!("echo {id} >/etc/machine-id"))?.good()?;
    install(machine)?;
    machine.run("systemctl start bramble")?.good()?;
    let mut records = 0;
    for record in left("records")?.lines() {
        let record: Value = serde_json::from_str(record)?;
        until(PATIENCE, &format!("the broker is told {record}"), || {
            let heard = machine.run("cat /run/bed-ear")?.out;
            Ok(heard
                .lines()
                .any(|line| serde_json::from_str(line).is_ok_and(|heard: Value| heard == record))
                .then_some(()))
        })?;
        records += 1;
    }
    ensure!(records > 2, "nothing was left to be told");
    until(PATIENCE, "the agent has its name and its id", || {
        let now = machine.run("cat /var/lib/bramble/identity.json")?.good()?;
        let now: Value = serde_json::from_str(&now)?;
        Ok((now["id"] == identity["id"] && now["node"] == "attic" && now["told"] == true).then_some(()))
    })?;
    let listed = machine.run("bramble revert --list")?.good()?;
    ensure!(listed.contains(APPLIED), "the receipt is not read: {listed}");
    machine.run("bramble revert")?.good()?;
    ensure!(machine.run(&format!("test ! -e {APPLIED}"))?.code == 0, "what was applied is still there");
    Ok(())
}

fn the_agent_may_start_what_its_rule_names_and_nothing_else(machine: &mut dyn Machine) -> Result<()> {
    const ALLOWED: [&str; 3] = ["bramble-prepare", "bramble-obey@identify", "bramble-obey@reboot"];
    install(machine)?;
    let mut ask = |user: &str, verb: &str, unit: &str| {
        machine.run(&format!(
            "setpriv --reuid={user} --regid={user} --clear-groups systemctl --no-ask-password --no-block {verb} {unit}"
        ))
    };
    for unit in ALLOWED {
        ask("bramble", "start", unit)?.good().with_context(|| format!("the agent may not start {unit}"))?;
    }
    let others =
        ["stop", "restart", "reload-or-restart"].map(|verb| ALLOWED.map(|unit| ("bramble", verb, unit)));
    let strangers = ALLOWED.map(|unit| ("daemon", "start", unit));
    for (user, verb, unit) in others.into_iter().flatten().chain(strangers).chain([
        // What is asked over MQTT and applied by prepare needs no unit of this name.
        ("bramble", "start", "bramble-obey@apply"),
        ("bramble", "restart", "bramble"),
        ("bramble", "restart", "systemd-networkd"),
        ("bramble", "start", "bramble-failed@bramble"),
        ("bramble", "start", "bramble-join"),
        ("bramble", "start", "bramble-kubernetes"),
        ("bramble", "start", "reboot.target"),
    ]) {
        let answer = ask(user, verb, unit)?;
        ensure!(
            answer.code != 0 && (answer.err.contains("authentication") || answer.err.contains("denied")),
            "{user} may {verb} {unit}: {} {}",
            answer.code,
            answer.err
        );
    }
    // What was started looks itself whether its owner wants it.
    // What a process says that has ended is not looked for by its unit: journald may not know it any more.
    for (of, said) in [
        ("--unit=bramble-prepare", "ondition check"),
        ("", "no light to blink"),
        ("", "reboot is not allowed: it is not listed under [commands]"),
    ] {
        until(SOON, &format!("the journal says {said:?}"), || {
            Ok(machine
                .run(&format!("journalctl -b --no-pager -o cat {of}"))?
                .out
                .contains(said)
                .then_some(()))
        })
        .with_context(|| machine.run("journalctl -b --no-pager -n 60").map(|j| j.out).unwrap_or_default())?;
    }
    ensure!(preparations(machine)? == 0, "it has acted");
    Ok(())
}

fn identify_is_asked_over_mqtt_and_refused_where_no_light_is(machine: &mut dyn Machine) -> Result<()> {
    install(machine)?;
    machine.run("systemd-run --quiet --unit=bed-broker mosquitto")?.good()?;
    let ask = "mosquitto_rr -V mqttv5 -W 2 -t bramble/home/node/bed/request/identify \
               -e bramble/home/node/bed/response/identify -m '{\"transaction\":\"a\"}'";
    let answer: Value =
        until(PATIENCE, "identify is answered", || Ok(serde_json::from_str(&machine.run(ask)?.out).ok()))?;
    // No container has a light of its own.
    ensure!(answer["status"] == "error" && answer["transaction"] == "a", "{answer}");
    ensure!(answer["error"].as_str().is_some_and(|why| why.contains("no light to blink")), "{answer}");
    Ok(())
}

/// Gives a unit lines of `[Service]` until the next boot, which it takes at its next start.
fn drop_in(machine: &mut dyn Machine, unit: &str, lines: &str) -> Result<()> {
    let folder = format!("/run/systemd/system/{unit}.service.d");
    let write = format!(
        "mkdir -p {folder} && printf '[Service]\n{lines}\n' >{folder}/bed.conf && systemctl daemon-reload"
    );
    machine.run(&write)?.good().map(drop)
}

fn a_daemon_that_hangs_is_ended_and_begins_anew(machine: &mut dyn Machine) -> Result<()> {
    install(machine)?;
    for unit in UNITS {
        let shipped = property(machine, unit, "WatchdogUSec")?;
        ensure!(shipped == "1min", "{unit} is waited for {shipped}");
        drop_in(machine, unit, "WatchdogSec=5\nRestartSec=1")?;
    }
    machine.run(&format!("systemctl restart {}", UNITS.join(" ")))?.good()?;
    // Each gives its proof of life while it lives.
    sleep(Duration::from_secs(12));
    for unit in UNITS {
        ensure!(property(machine, unit, "NRestarts")? == "0", "{unit} was taken for dead");
        let pid = property(machine, unit, "MainPID")?;
        machine.run(&format!("kill -STOP {pid}"))?.good()?;
        until(PATIENCE, &format!("{unit} runs again"), || {
            let now = (property(machine, unit, "NRestarts")?, property(machine, unit, "SubState")?);
            Ok((now == ("1".to_owned(), "running".to_owned())).then_some(()))
        })?;
        ensure!(property(machine, unit, "MainPID")? != pid, "nothing was ended");
        let why = entries(machine, &format!("UNIT={unit}.service"))?;
        let result = "Failed with result 'watchdog'";
        ensure!(
            why.iter().any(|entry| field(entry, "MESSAGE").contains(result)),
            "{unit} ended otherwise: {why:?}"
        );
    }
    Ok(())
}

/// A broker, and another node behind a link that is this one's uplink.
const NEIGHBOUR: &str = "set -e
ip netns add bed-peer
ip link add bed0 type veth peer name bed1 netns bed-peer
ip addr add 10.99.0.1/24 dev bed0
ip link set bed0 up
ip -n bed-peer addr add 10.99.0.2/24 dev bed1
ip -n bed-peer link set bed1 up
ip -n bed-peer link set lo up
printf 'listener 1883 10.99.0.1\\nallow_anonymous true\\n' >/run/bed-broker.conf
systemd-run --quiet --unit=bed-broker mosquitto -c /run/bed-broker.conf
mkdir -p /run/bed-peer
common='[mqtt]\\nhost = \"10.99.0.1\"\\n\\n[report]\\ninterval = \"1s\"\\n\\n'
printf \"$common\"'[node]\\nname = \"n1\"\\n\\n[probe]\\nuplink = \"bed0\"\\n' >/etc/bramble/conf.d/bed.toml
printf \"$common\"'[node]\\nname = \"n2\"\\nstate_dir = \"/run/bed-peer\"\\nruntime_dir = \"/run/bed-peer\"\\n\\n\
[probe]\\nuplink = \"bed1\"\\n' >/run/bed-peer.toml
printf '[mqtt]\\nhost = \"10.99.0.1\"\\n' >/etc/bramble/aggregator.d/bed.toml
for verb in probe run; do
  systemd-run --quiet --unit=bed-peer-$verb ip netns exec bed-peer bramble --config /run/bed-peer.toml $verb
done
systemctl reload bramble bramble-probe bramble-aggregator
";

/// Gives the machine a neighbour, and waits until both measure their link with the kernel's stamps.
fn meet_neighbour(machine: &mut dyn Machine) -> Result<()> {
    machine.run(NEIGHBOUR)?.good()?;
    let measured = until(PATIENCE, "the kernel stamps the round trips with the neighbour", || {
        let Some(status) = status(machine)? else { return Ok(None) };
        let peer = &status["mesh"]["peers"]["n2"];
        let good = status["state"]["tier"]["stamps"] == "kernel"
            && peer["answered"].as_u64().is_some_and(|answered| answered > 3)
            && peer["heard"].as_u64().is_some_and(|heard| heard > 3)
            && peer["round_trip"]["median_us"].as_f64().is_some_and(|median| median > 0.0);
        Ok(good.then_some(()))
    });
    measured.or_else(|why| {
        let journal =
            machine.run("bramble status; journalctl -b --no-pager -u 'bramble*' -u 'bed*' -n 60")?;
        Err(why.context(journal.out))
    })
}

/// What the broker hands to anybody who asks for this node's messages.
fn report_of(machine: &mut dyn Machine, leaf: &str) -> Result<Value> {
    let listen = format!("mosquitto_sub -V mqttv5 -h 10.99.0.1 -C 1 -W 120 -t 'bramble/home/node/n1/{leaf}'");
    Ok(serde_json::from_str(&machine.run(&listen)?.good()?)?)
}

fn the_journal_can_be_asked_by_field_and_is_quiet_otherwise(machine: &mut dyn Machine) -> Result<()> {
    install(machine)?;
    meet_neighbour(machine)?;
    let peer = |action: &str| format!("systemctl {action} bed-peer-run bed-peer-probe");
    machine.run("ip route add default via 10.99.0.2")?.good()?;
    until(PATIENCE, "the agent has seen the default route", || {
        let said = machine.run("bramble status --json")?.out;
        Ok(findings(&said).ok().filter(|f| f.contains(&("\"default-route\"".into(), "\"met\"".into()))))
    })?;

    // Nothing happens: nothing is said.
    sleep(Duration::from_secs(5));
    let after =
        |cursor: &str| format!("-u bramble -u bramble-probe -u bramble-aggregator --after-cursor='{cursor}'");
    let cursor = machine.run("journalctl -b -n 0 --show-cursor | sed -n 's/^-- cursor: //p'")?.good()?;
    sleep(Duration::from_secs(60));
    let said = entries(machine, &after(&cursor))?;
    for unit in UNITS.map(|unit| format!("{unit}.service")) {
        let own: Vec<_> = said.iter().filter(|entry| field(entry, "_SYSTEMD_UNIT") == unit).collect();
        ensure!(own.len() <= 1, "{unit} has said within a minute in which nothing happened: {own:#?}");
    }

    machine.run("ip route del default")?.good()?;
    machine.run("ip -n bed-peer link set bed1 down")?.good()?;
    for (which, priority, id, text) in [
        ("BRAMBLE_FINDING=default-route", "4", "a85fd751e90646e1acf1ab39fe2f4c76", "no longer so: "),
        ("BRAMBLE_CONDITION=path-cut", "3", "ee10ae87d58c4e3dba992dcb315623e6", "raised: "),
        ("BRAMBLE_ALERT", "4", "", "raised: "),
    ] {
        let entry = until(PATIENCE, &format!("the journal has {which}"), || {
            // journalctl takes fields with their values only; aggregator's alerts are looked for by name.
            let which = if which.contains('=') { which } else { "-u bramble-aggregator" };
            let mut found = entries(machine, which)?;
            found.retain(|entry| which.contains('=') || !field(entry, "BRAMBLE_ALERT").is_empty());
            Ok(found.into_iter().next())
        })?;
        let right = field(&entry, "PRIORITY") == priority
            && field(&entry, "MESSAGE_ID") == id
            && field(&entry, "MESSAGE").starts_with(text);
        ensure!(right, "{which}: {entry:#}");
    }
    let entry = &entries(machine, "BRAMBLE_CONDITION=path-cut")?[0];
    ensure!(field(entry, "BRAMBLE_SUBJECT").contains("n2"), "{entry:#}");
    let explained = machine.run("journalctl -b --no-pager --catalog BRAMBLE_CONDITION=path-cut")?.good()?;
    ensure!(explained.contains("bramble status"), "the catalogue does not explain it: {explained}");

    machine.run("ip -n bed-peer link set bed1 up; ip route add default via 10.99.0.2")?.good()?;
    for which in ["BRAMBLE_CONDITION=path-cut", "BRAMBLE_FINDING=default-route"] {
        until(PATIENCE, &format!("the journal says that {which} is over"), || {
            let is_over = |entry: &Value| {
                let text = field(entry, "MESSAGE");
                field(entry, "PRIORITY") == "6"
                    && (text.starts_with("over: ") || text.starts_with("so again: "))
            };
            Ok(entries(machine, which)?.iter().any(is_over).then_some(()))
        })?;
    }
    machine.run(&peer("stop"))?.good()?;
    let connected = entries(machine, "BRAMBLE_CONDITION=broker")?;
    ensure!(
        connected.iter().any(|e| field(e, "MESSAGE").starts_with("connected to the broker")),
        "{connected:?}"
    );
    Ok(())
}

fn what_the_owner_switched_off_stays_off(machine: &mut dyn Machine) -> Result<()> {
    install(machine)?;
    machine.run("systemctl disable --now bramble-probe; systemctl mask --now bramble-aggregator")?.good()?;
    machine.run("systemctl disable bramble-prepare; systemctl restart bramble")?.good()?;
    for step in ["", "install", "reboot"] {
        match step {
            "install" => install(machine)?,
            "reboot" => machine.reboot()?,
            _ => {}
        }
        for (unit, state) in
            [("bramble", "active"), ("bramble-probe", "inactive"), ("bramble-aggregator", "inactive")]
        {
            let now = property(machine, unit, "ActiveState")?;
            ensure!(now == state, "{unit} is {now} after {step:?}");
        }
        let enabled =
            machine.run("systemctl is-enabled bramble bramble-probe bramble-prepare bramble-aggregator")?;
        let enabled: Vec<_> = enabled.out.split_whitespace().collect();
        ensure!(enabled == ["enabled", "disabled", "disabled", "masked"], "after {step:?}: {enabled:?}");
    }
    let said = until(PATIENCE, "the agent says that its companion is away", || status(machine))?;
    ensure!(said.to_string().contains("bramble probe does not answer"), "{said}");
    machine.run("dpkg --purge bramble bramble-aggregator")?.good().map(drop)
}

/// The power fails between unpacking and setting up; the disk is full; dpkg is stopped.
fn an_installation_that_was_cut_short_is_completed(machine: &mut dyn Machine) -> Result<()> {
    remember_tree(machine)?;
    machine.run("dpkg --unpack /srv/*.deb")?.good()?;
    machine.reboot()?;
    machine.run("dpkg --configure --pending </dev/null")?.good()?;
    expect_active(machine)?;
    // An upgrade that ends between the two is taken up again, with the daemons that were running.
    machine.run("dpkg --unpack /srv/*.deb; dpkg --configure --pending </dev/null")?.good()?;
    expect_active(machine)?;
    // Set up, removed without its configuration, purged while nothing of the program is there any more.
    machine.run("dpkg --remove bramble bramble-aggregator")?.good()?;
    machine.run("test -e /etc/bramble/bramble.toml")?.good()?;
    machine.run("dpkg --purge bramble bramble-aggregator")?.good()?;
    let left = tree_changes(machine)?;
    ensure!(left.is_empty(), "not as before: {left:#?}");
    Ok(())
}

fn it_measures_keeps_its_limits_and_prepares_before_the_next_boot_is_over(
    machine: &mut dyn Machine,
) -> Result<()> {
    remember_tree(machine)?;
    install(machine)?;
    expect_active(machine)?;
    meet_neighbour(machine)?;
    let row = report_of(machine, "mesh")?;
    ensure!(row["peers"]["n2"]["sent"].as_u64().is_some_and(|sent| sent > 0), "the broker has {row}");
    let check = machine.run("bramble check --json")?;
    ensure!(
        (0..=2).contains(&check.code) && findings(&check.out)?.len() > 20,
        "{} {}",
        check.code,
        check.err
    );
    the_kernels_drops_are_told_by_reason(machine)?;
    for unit in UNITS {
        a_unit_is_slowed_down_at_one_limit_and_begins_anew_at_the_other(machine, unit)
            .with_context(|| format!("limits of {unit}"))?;
    }

    let id = machine.run("cat /var/lib/bramble/identity.json")?.good()?;
    machine.run("rm /etc/bramble/conf.d/bed.toml; touch /etc/bramble/prepare; sync")?.good()?;
    machine.reboot()?;
    expect_active(machine)?;
    ensure!(
        machine.run("cat /var/lib/bramble/identity.json")?.good()? == id,
        "the reboot made it another node"
    );
    let journal = machine.run("journalctl -b -u bramble-prepare -o cat --no-pager")?.out;
    ensure!(
        property(machine, "bramble-prepare", "Result")? == "success"
            && journal.contains("to take it back: sudo bramble revert"),
        "{journal}"
    );
    // Settings of the kernel are set before the agent looks: it finds them met.
    let said = until(PATIENCE, "the agent tells its findings", || {
        let said = machine.run("bramble status --json")?;
        Ok(findings(&said.out).ok().filter(|findings| findings.len() > 20))
    })?;
    let met: BTreeSet<_> = said.iter().filter(|(_, state)| state == "\"met\"").map(|(id, _)| id).collect();
    let once: BTreeSet<_> = findings(&check.out)?.into_iter().collect();
    ensure!(
        once.iter().any(|(id, state)| state == "\"unmet\"" && met.contains(id)),
        "the boot has mended nothing: {journal}"
    );

    // What was applied stays over a purge, with the way back.
    let purged = machine.run("dpkg --purge bramble bramble-aggregator")?.good()?;
    ensure!(purged.contains("sudo apt install bramble && sudo bramble revert"), "{purged}");
    let paths: BTreeSet<String> = tree_changes(machine)?
        .iter()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')).map(str::to_owned))
        .filter(|path| !path.starts_with("/var/lib/bramble"))
        .collect();
    ensure!(!paths.is_empty(), "nothing was applied: {journal}");
    let unsaid: Vec<_> = paths.iter().filter(|path| !purged.contains(path.as_str())).collect();
    ensure!(unsaid.is_empty(), "{unsaid:?} were changed and are not told: {purged}");
    install(machine)?;
    machine.run("bramble revert")?.good()?;
    machine.run("dpkg --purge bramble bramble-aggregator")?.good()?;
    let left = tree_changes(machine)?;
    ensure!(left.is_empty(), "not as before: {left:#?}");
    Ok(())
}

fn group_of(unit: &str) -> String {
    format!("/sys/fs/cgroup/system.slice/{unit}.service")
}

fn the_kernel_holds_the_limits(machine: &mut dyn Machine, unit: &str) -> Result<()> {
    let group = group_of(unit);
    let limits = machine.run(&format!("cat {group}/memory.high {group}/memory.max"))?.good()?;
    let told = [property(machine, unit, "MemoryHigh")?, property(machine, unit, "MemoryMax")?];
    ensure!(limits.split_whitespace().eq(told.iter()), "the kernel holds {limits}, systemd says {told:?}");
    ensure!(told.iter().all(|limit| limit.parse::<u64>().is_ok()), "there is no limit: {told:?}");
    Ok(())
}

/// Packets to a port that nobody has: the kernel drops them, counts them, and says why.
fn the_kernels_drops_are_told_by_reason(machine: &mut dyn Machine) -> Result<()> {
    const SEND: &str = "bash -c 'for i in $(seq 500); do echo lost >/dev/udp/127.0.0.1/9; done'";
    let dropped = |state: &Value| state["readings"]["dropped-packets"]["value"].as_f64();
    let before = report_of(machine, "state")?;
    let before = dropped(&before).with_context(|| format!("drops are not counted: {before}"))?;
    until(PATIENCE, "the kernel's drops are told by their reason", || {
        machine.run(SEND)?.good()?;
        let state = report_of(machine, "state")?;
        let said = state["conditions"].as_array().into_iter().flatten().find(|c| c["id"] == "drop-reasons");
        let said = said.context("it says nothing of drops")?;
        let named = said["evidence"].as_str().is_some_and(|why| why.contains("NO_SOCKET"));
        Ok((named && dropped(&state).is_some_and(|now| now >= before + 500.0)).then_some(()))
    })
}

/// A greedy process in the unit's group stands for a leak: the unit's own limits hold it.
fn a_unit_is_slowed_down_at_one_limit_and_begins_anew_at_the_other(
    machine: &mut dyn Machine,
    unit: &str,
) -> Result<()> {
    the_kernel_holds_the_limits(machine, unit)?;
    let group = group_of(unit);
    let greedy = format!("sh -c 'echo $$ >{group}/cgroup.procs; exec tail /dev/zero'");
    let pid = property(machine, unit, "MainPID")?;
    let hog = machine.run(&format!("{greedy} >/dev/null 2>&1 & echo $!"))?.good()?;
    until(PATIENCE, "the kernel slows it down", || {
        let events = machine.run(&format!("cat {group}/memory.events"))?.good()?;
        Ok(events.lines().any(|l| l.strip_prefix("high ").is_some_and(|n| n != "0")).then_some(()))
    })?;
    machine.run(&format!("kill -9 {hog}"))?.good()?;
    ensure!(property(machine, unit, "MainPID")? == pid, "the first limit ended it");

    machine.run(&format!("systemctl set-property --runtime {unit} MemoryHigh=infinity"))?.good()?;
    let ended = machine.run(&greedy)?;
    ensure!(ended.code == 137, "the greedy process ended with {}: {}", ended.code, ended.err);
    until(PATIENCE, "the unit runs again", || {
        let begun =
            property(machine, unit, "NRestarts")? == "1" && property(machine, unit, "SubState")? == "running";
        Ok(begun.then_some(()))
    })?;
    ensure!(property(machine, unit, "MainPID")? != pid, "nothing was ended");
    let why = entries(machine, &format!("UNIT={unit}.service"))?;
    ensure!(why.iter().any(|e| field(e, "MESSAGE").contains("oom-kill")), "it ended for another reason");
    Ok(())
}

fn it_measures_on_a_kernel_that_hides_its_types(machine: &mut dyn Machine) -> Result<()> {
    // Before anything of ours starts, at each boot.
    let hide = "echo 'hidden /sys/kernel/btf tmpfs defaults 0 0' >>/etc/fstab; mount /sys/kernel/btf";
    machine.run(hide)?.good()?;
    install(machine)?;
    for boot in ["first", "second"] {
        ensure!(machine.run("ls /sys/kernel/btf")?.good()?.is_empty(), "the {boot} boot hides nothing");
        expect_active(machine)?;
        meet_neighbour(machine).with_context(|| format!("in the {boot} boot"))?;
        let row = report_of(machine, "mesh")?;
        ensure!(row["peers"]["n2"]["sent"].as_u64().is_some_and(|sent| sent > 0), "the broker has {row}");
        let check = findings(&machine.run("bramble check --json")?.out)?;
        let btf = check.iter().find(|(id, _)| id == "\"btf\"").context("there is no finding")?;
        ensure!(btf.1 == "\"not needed\"", "{btf:?}");
        the_kernels_drops_are_told_by_reason(machine)?;
        for unit in UNITS {
            the_kernel_holds_the_limits(machine, unit).with_context(|| format!("limits of {unit}"))?;
        }
        if boot == "first" {
            machine.reboot()?;
        }
    }
    a_unit_is_slowed_down_at_one_limit_and_begins_anew_at_the_other(machine, "bramble-probe")
}

/// Each right of the companion's, and the conditions that cannot be told without it.
const RIGHTS: [(&str, &[&str]); 5] = [
    ("cap_bpf", &["user-space-stamps", "drop-reasons"]),
    ("cap_perfmon", &["user-space-stamps", "drop-reasons"]),
    ("cap_net_admin", &["user-space-stamps"]),
    ("cap_dac_read_search", &["drop-reasons"]),
    ("cap_syslog", &["storage-resets"]),
];

fn each_right_of_the_companions_is_needed_and_missed_by_name(machine: &mut dyn Machine) -> Result<()> {
    install(machine)?;
    meet_neighbour(machine)?;
    let held = property(machine, "bramble-probe", "AmbientCapabilities")?;
    let held: BTreeSet<&str> = held.split_whitespace().collect();
    ensure!(held == RIGHTS.map(|(right, _)| right).into(), "it has {held:?}");
    // A container has no log of the kernel's.
    let has_log =
        machine.run("test -e /dev/kmsg && test $(cat /proc/sys/kernel/dmesg_restrict) = 1")?.code == 0;
    ensure!(
        has_log || !Blueprint::named(machine.name())?.has_own_kernel(),
        "there is no log of the kernel's"
    );
    for (right, missed) in RIGHTS {
        if right == "cap_syslog" && !has_log {
            continue;
        }
        let without = format!("CapabilityBoundingSet=~{right}\\nAmbientCapabilities=~{right}");
        drop_in(machine, "bramble-probe", &without)?;
        machine.run("systemctl restart bramble-probe")?.good()?;
        let lacks = format!("; bramble probe lacks {}", right.to_uppercase());
        until(PATIENCE, &format!("{missed:?} are missed for want of {right}"), || {
            let state = report_of(machine, "state")?;
            let all = state["conditions"].as_array().into_iter().flatten();
            let lacking: BTreeSet<&str> = all
                .filter(|c| c["evidence"].as_str().is_some_and(|why| why.ends_with(&lacks)))
                .filter(|c| c["status"] != "clear")
                .filter_map(|c| c["id"].as_str())
                .collect();
            Ok((lacking == missed.iter().copied().collect()).then_some(()))
        })
        .or_else(|why| {
            Err(why.context(machine.run("bramble status; systemctl status bramble-probe")?.out))
        })?;
        ensure!(property(machine, "bramble-probe", "NRestarts")? == "0", "it does not live without {right}");
    }
    machine
        .run("rm /run/systemd/system/bramble-probe.service.d/bed.conf; systemctl daemon-reload")?
        .good()?;
    machine.run("systemctl restart bramble-probe")?.good()?;
    until(PATIENCE, "nothing is missed with all of them", || {
        let state = report_of(machine, "state")?;
        Ok((state["tier"]["stamps"] == "kernel" && !state.to_string().contains("probe lacks")).then_some(()))
    })
}

/// K3s reads settings of the kernel when it starts. Root's work is made slower than any start, so that only an order holds K3s back.
fn what_prepares_a_node_is_done_before_k3s_starts(machine: &mut dyn Machine) -> Result<()> {
    const K3S: [&str; 2] = ["k3s", "k3s-agent"];
    install(machine)?;
    for unit in K3S {
        let text = "[Service]\\nType=oneshot\\nRemainAfterExit=yes\\nExecStart=/bin/true\\n[Install]\\nWantedBy=multi-user.target";
        machine.run(&format!("printf '{text}\\n' >/etc/systemd/system/{unit}.service"))?.good()?;
    }
    machine.run(&format!("systemctl daemon-reload; systemctl enable {}", K3S.join(" ")))?.good()?;
    // Without the owner's switch nothing keeps them.
    machine.reboot()?;
    for unit in K3S {
        ensure!(property(machine, unit, "ActiveState")? == "active", "{unit} did not start");
    }
    ensure!(preparations(machine)? == 0, "root has acted unasked");
    // A container's kernel does not let root set it, which ends its work early (2).
    let slow = "[Service]\\nExecStartPre=/usr/bin/sleep 3\\nSuccessExitStatus=1 2";
    let folder = "/etc/systemd/system/bramble-prepare.service.d";
    machine
        .run(&format!(
            "mkdir -p {folder} && printf '{slow}\\n' >{folder}/bed.conf && touch /etc/bramble/prepare"
        ))?
        .good()?;
    machine.reboot()?;
    ensure!(preparations(machine)? == 1, "root was not asked");
    let mut moment = |unit: &str, name: &str| -> Result<u64> {
        let text = property(machine, unit, name)?;
        text.parse().with_context(|| format!("{unit}'s {name} is {text:?}"))
    };
    let done = moment("bramble-prepare", "ExecMainExitTimestampMonotonic")?;
    for unit in K3S {
        let began = moment(unit, "ExecMainStartTimestampMonotonic")?;
        ensure!(done > 0 && began >= done, "{unit} began at {began} us, root was done at {done} us");
    }
    Ok(())
}

fn it_mends_the_cards_boot_file_and_gives_it_back(machine: &mut dyn Machine) -> Result<()> {
    install(machine)?;
    expect_active(machine)?;
    bare::the_firmwares_missing_memory_controller_is_named_with_its_cure(machine)?;
    expect_active(machine)?;
    let purged = machine.run("dpkg --purge bramble bramble-aggregator")?.good()?;
    ensure!(!purged.contains("bramble revert"), "it says that something is still applied: {purged}");
    Ok(())
}
