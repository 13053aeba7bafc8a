//! The drift guard: notices within a second when something that held does not hold any more, says what it was and, where
//! it can be known, who did it, and lets the owner's choice restore it.
//!
//! A setting that is written by another mount of proc, as a container may have one, makes no event: the companion sees it, at
//! once or (before Linux 6.0) within a period. Without a companion, which is a condition of its own, it is seen with the next
//! pass over everything.
//!
//! It compares verdicts, not files: what matters is that a requirement was met and is not. So it needs no receipt, and a
//! change by hand is seen like one by an upgrade. What held is kept on disk: an upgrade with a reboot is the usual way to
//! lose something. It decides nothing about how to mend: `bramble apply` does. What `bramble revert` or `leave` takes back
//! is no loss: the owner wants it so.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    time::{Duration, Instant},
};

use wire::report::{Finding, FindingState, Severity, Status};

use crate::{
    companion::Change,
    config::cluster::Cluster,
    converge::receipt::{self, RECEIPTS},
    facts::{
        board,
        sysctl::{self, Setting},
    },
    host::{
        Host,
        state::State,
        systemd,
        watch::{Event, Settings, Watch},
    },
    journal,
    probe::Statement,
};

/// From an event to the pass that it causes: the rest of a burst comes meanwhile, and so does who did it.
const SETTLE: Duration = Duration::from_millis(150);
/// Shortest time between two passes that events cause, and the time while passes follow on each other, as pods come and go in
/// bursts: a loss is noticed within a second then too, with no more work than that.
const PAUSE: Duration = Duration::from_millis(400);
const LONGEST_PAUSE: Duration = Duration::from_millis(950);
/// After so long without a pass the pause is the shortest again.
const QUIET: Duration = Duration::from_secs(6);
/// What started so recently before a loss may have caused it.
const RECENT: Duration = Duration::from_secs(10);
/// What held when the machine was started anew is not missed before this uptime: address and clock come late.
const STARTING: Duration = Duration::from_secs(120);
/// What holds, in the state directory: a line that says of what, then the id of a requirement a line.
const HELD: &str = "held";
/// Between whose it is and the number of reverts, in its first line.
const AFTER: &str = ", reverts: ";
/// Where systemd says which units run: a link for each, as old as its last start. All may look, as the journal's readers
/// alone may not.
const UNITS: &str = "/run/systemd/units";
/// Units that set routes, rules, links or kernel settings, or replace files, when they are started; `@` and `-` stand for
/// all whose names begin so.
const STARTERS: [&str; 19] = [
    "NetworkManager",
    "apt-daily-upgrade",
    "cloud-",
    "dhcpcd",
    "docker",
    "firewalld",
    "ifup@",
    "k3s",
    "k3s-agent",
    "netfilter-persistent",
    "netplan-",
    "networking",
    "nftables",
    "packagekit",
    "procps",
    "systemd-modules-load",
    "systemd-networkd",
    "systemd-sysctl",
    "ufw",
];
/// The owner's switch for [`systemd::PREPARE`]; without it systemd starts nothing and calls that a success.
const SWITCH: &str = "/etc/bramble/prepare";
/// Programs that set routes, rules, links or kernel settings when they start.
const SUSPECTS: [&str; 9] = [
    "systemd-network", // the kernel keeps 15 characters: systemd-networkd
    "systemd-sysctl",
    "NetworkManager",
    "dhcpcd",
    "netplan",
    "dpkg",
    "apt-get",
    "ufw",
    "firewalld",
];

/// What was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Loss {
    title: String,
    detail: String,
    /// What may have caused it, as a clause.
    by: Option<String>,
    /// When it was found, while it is not known who did it.
    found: Option<Instant>,
}

/// Remembers what held.
#[derive(Debug)]
pub struct Guard {
    watch: Result<Watch, String>,
    /// Live values of the settings that bramble sets.
    settings: Settings,
    state: State,
    /// Of which machine and which judge it is said what held.
    of: String,
    /// The requirements that were met at the last look that could tell.
    held: BTreeSet<String>,
    /// Those of them that were met before this start and were not looked at since.
    inherited: BTreeSet<String>,
    /// How many reverts there had been at this start, and whether that is what was kept: a revert may have taken back what
    /// held, and some of it shows only after a boot. Counted, because no clock tells times before a boot from those after it.
    reverts: usize,
    taken_back: bool,
    noted: bool,
    /// Until when the machine is still starting.
    starting: Option<Instant>,
    /// What is on disk.
    kept: BTreeSet<String>,
    lost: BTreeMap<String, Loss>,
    links: BTreeMap<String, Loss>,
    checked: Option<Instant>,
    pause: Duration,
    /// Since when a pass is due.
    due: Option<Instant>,
    /// The settings that the companion saw change, by name, and when.
    changes: BTreeMap<String, (Change, Instant)>,
    /// Whether something was lost that root could mend, and was not asked to yet.
    owed: bool,
    /// What was said to the last thing that was owed.
    answer: Option<String>,
    restored: Vec<Instant>,
}

impl Guard {
    /// Watches from now on, and misses what held when bramble ran last.
    pub fn open(host: &Host, state: State, cluster: &Cluster, now: Instant) -> Guard {
        let serial = board::serial(host).ok().flatten().unwrap_or_default();
        let machine = host.text("/etc/machine-id").unwrap_or_default();
        // Another version, or the owner's other choice, may find that what held never did; a card in another board, or a
        // copy, is another machine.
        let mut chosen = DefaultHasher::new();
        format!("{cluster:?}").hash(&mut chosen);
        let (version, chosen) = (env!("CARGO_PKG_VERSION"), chosen.finish());
        let of = format!("bramble {version} {chosen:016x} on {serial} {}", machine.trim());
        let text = state.read(HELD).unwrap_or_default().unwrap_or_default();
        let reverts = receipt::seen(host).map_or(0, |all| all.iter().filter(|r| is_reverted(r)).count());
        let before = |line: &str| line.strip_prefix(&of)?.strip_prefix(AFTER)?.parse::<usize>().ok();
        let (then, kept) = match text.split_once('\n').and_then(|(line, ids)| Some((before(line)?, ids))) {
            Some((then, ids)) => (then, ids.lines().map(str::to_owned).collect()),
            None => (reverts, BTreeSet::new()),
        };
        let mut guard = Guard {
            watch: Watch::open()
                .map_err(|e| format!("the host cannot be watched: {e}; check fs.inotify.max_user_instances")),
            settings: Settings::default(),
            of,
            held: kept.clone(),
            inherited: kept.clone(),
            reverts,
            taken_back: then != reverts,
            noted: then == reverts,
            starting: uptime(host).and_then(|up| STARTING.checked_sub(up)).map(|rest| now + rest),
            kept,
            state,
            lost: BTreeMap::new(),
            links: BTreeMap::new(),
            checked: None,
            pause: PAUSE,
            due: None,
            changes: BTreeMap::new(),
            owed: false,
            answer: None,
            restored: Vec::new(),
        };
        guard.extend(host);
        guard
    }

    /// Watches what came.
    fn extend(&mut self, host: &Host) {
        self.settings.extend(sysctl::watched(host));
        if let Ok(watch) = &mut self.watch {
            watch.extend();
            watch.heed(&self.settings);
        }
    }

    /// When [`Guard::is_due`] is to be asked the next time, if nothing happens before.
    pub fn look_at(&self) -> Option<Instant> {
        let pass = self.due.map(|at| (at + SETTLE).max(self.checked.map_or(at, |at| at + self.pause)));
        [pass, self.starting].into_iter().flatten().min()
    }

    /// Takes the settings that the companion saw change: also those that were written by another mount of proc, of which no
    /// event comes. Who wrote them is said of a loss that was found before this was known, too.
    pub fn hear(&mut self, changes: Vec<Change>, now: Instant) {
        if changes.is_empty() {
            return;
        }
        self.due.get_or_insert(now);
        self.changes.retain(|_, (_, at)| now.duration_since(*at) <= RECENT);
        self.changes.extend(changes.into_iter().map(|change| (change.setting.clone(), (change, now))));
        let is_fresh = |loss: &Loss| loss.found.is_some_and(|found| now.duration_since(found) <= RECENT);
        let unnamed: Vec<String> =
            self.lost.iter().filter(|(_, loss)| is_fresh(loss)).map(|(id, _)| id.clone()).collect();
        for id in unnamed {
            if let Some(writer) = self.writer(&id, now)
                && let Some(loss) = self.lost.get_mut(&id)
            {
                tracing::warn!(bramble_finding = id, "{}: {writer}", loss.title);
                (loss.by, loss.found) = (Some(writer), None);
            }
        }
    }

    /// Takes note that something may have happened of which nobody told: the companion was away.
    pub fn look_again(&mut self, now: Instant) {
        self.due.get_or_insert(now);
    }

    /// Waits until something happened after which [`Guard::is_due`] is to be asked. Cancel-safe.
    pub async fn happened(&mut self) {
        match &mut self.watch {
            // What more happens before the pass that is due anyway is seen with it.
            Ok(watch) if self.due.is_none() => watch.happened().await,
            _ => std::future::pending().await,
        }
    }

    /// Whether something happened that makes a new pass over the requirements worth its while.
    pub fn is_due(&mut self, host: &Host, now: Instant) -> bool {
        if let Ok(watch) = &mut self.watch {
            for event in watch.seen() {
                match event {
                    Event::LinkGone(_) if is_taken_back(host, RECENT) => {}
                    Event::LinkGone(name) => {
                        let by = suspect(host);
                        let (title, detail) = (format!("link {name}"), "it was deleted".to_owned());
                        let loss = Loss { title, detail, by, found: None };
                        self.links.insert(name, loss);
                    }
                    Event::LinkCame(name) => {
                        self.links.remove(&name);
                    }
                    _ => {
                        self.due.get_or_insert(now);
                    }
                }
            }
        }
        let has_started = self.starting.take_if(|end| *end <= now).is_some();
        if has_started {
            self.due.get_or_insert(now);
        }
        let due = self.due.is_some() && self.look_at().is_some_and(|at| at <= now);
        if due {
            self.due = None;
            self.pause = match self.checked {
                Some(at) if now.duration_since(at) < QUIET => (self.pause * 2).min(LONGEST_PAUSE),
                _ => PAUSE,
            };
            self.extend(host);
        }
        due
    }

    /// Compares a new pass with what held before.
    pub fn compare(&mut self, host: &Host, findings: &[Finding], now: Instant) {
        self.checked = Some(now);
        for finding in findings {
            let id = &finding.id;
            match finding.state {
                // "Could not tell" takes nothing away from what held before.
                FindingState::Unknown => continue,
                FindingState::Unmet | FindingState::Blocked
                    if self.starting.is_some() && self.inherited.contains(id) =>
                {
                    continue;
                }
                FindingState::Unmet | FindingState::Blocked if self.held.contains(id) => {
                    let is_old = self.inherited.contains(id);
                    self.lose(host, finding, is_old, now);
                }
                FindingState::Met | FindingState::NotNeeded if self.lost.remove(id).is_some() => {
                    tracing::info!(bramble_finding = id, "so again: {}", finding.title);
                }
                _ => {}
            }
            self.inherited.remove(id);
            if finding.state == FindingState::Met {
                self.held.insert(id.clone());
            } else {
                self.held.remove(id);
            }
        }
        if self.lost.is_empty() {
            self.owed = false;
            self.answer = None;
        }
        self.keep();
    }

    /// Takes note that something does not hold any more; `is_old` when that happened before this start.
    fn lose(&mut self, host: &Host, finding: &Finding, is_old: bool, now: Instant) {
        if is_old && self.taken_back || is_taken_back(host, RECENT) {
            tracing::info!(bramble_finding = finding.id, "taken back by bramble: {}", finding.title);
            return;
        }
        let (by, found) = match (is_old, self.writer(&finding.id, now)) {
            (true, _) => (Some("while bramble did not run".to_owned()), None),
            (false, Some(writer)) => (Some(writer), None),
            (false, None) => (suspect(host), Some(now)),
        };
        let loss = Loss { title: finding.title.clone(), detail: finding.detail.clone(), by, found };
        tracing::warn!(
            message_id = journal::LOST,
            bramble_finding = finding.id,
            "no longer so: {}",
            loss.sentence()
        );
        self.lost.insert(finding.id.clone(), loss);
        // What only a person can mend, root need not try.
        self.owed |= finding.state == FindingState::Unmet;
    }

    /// Who gave just now a setting that this requirement judges a value that is not good.
    fn writer(&self, requirement: &str, now: Instant) -> Option<String> {
        let is_wrong = |change: &Change| {
            let judges =
                |setting: &&Setting| setting.requirement == requirement && setting.covers(&change.setting);
            sysctl::TABLE.iter().filter(judges).any(|setting| setting.holds(&change.value) == Ok(false))
        };
        let fresh = self.changes.values().filter(|(_, at)| now.duration_since(*at) <= RECENT);
        let wrong = fresh.filter(|(change, _)| change.writer.is_some() && is_wrong(change));
        let (change, _) = wrong.max_by_key(|(_, at)| *at)?;
        Some(format!("{} was written by {}", change.setting, change.writer.as_ref()?))
    }

    /// Keeps what holds for the next start; what is lost is missed then too.
    fn keep(&mut self) {
        let ids: BTreeSet<String> = self.held.iter().chain(self.lost.keys()).cloned().collect();
        if ids == self.kept && self.noted {
            return;
        }
        let text: String = ids.iter().map(|id| format!("{id}\n")).collect();
        if let Err(why) = self.state.write(HELD, &format!("{}{AFTER}{}\n{text}", self.of, self.reverts)) {
            tracing::warn!("what holds is not kept for the next start: {why}");
        }
        (self.kept, self.noted) = (ids, true);
    }

    /// Has root restore what was lost, where something is owed and the budget of restorations per hour has one left.
    pub fn restore(&mut self, per_hour: u32, host: &Host, now: Instant) {
        if !self.owed {
            return;
        }
        let answer = if host.present(SWITCH) != Ok(true) {
            self.owed = false;
            format!("not restored: {SWITCH} is not there; sudo touch {SWITCH} lets root act")
        } else if !self.may_restore(per_hour, now) {
            // It stays owed until the hour is over.
            format!(
                "not restored: that was done {per_hour} times within an hour; sudo bramble plan shows what keeps changing"
            )
        } else {
            self.owed = false;
            match systemd::start_prepare() {
                Ok(()) => format!("{} was started to restore it", systemd::PREPARE),
                Err(why) => format!("{} was not started to restore it: {why}", systemd::PREPARE),
            }
        };
        if self.answer.as_ref() != Some(&answer) {
            tracing::warn!("{answer}");
        }
        self.answer = Some(answer);
    }

    /// Whether the owner's budget of restorations per hour has one left; takes it.
    fn may_restore(&mut self, per_hour: u32, now: Instant) -> bool {
        self.restored.retain(|at| now.duration_since(*at) < Duration::from_secs(3600));
        let may = self.restored.len() < per_hour as usize;
        if may {
            self.restored.push(now);
        }
        may
    }

    /// What is to be said of drift.
    pub fn statements(&self) -> Vec<Statement> {
        let drift = |subject: Option<String>, status, evidence| Statement {
            id: "drift",
            subject,
            title: "Something was set right and is not any more",
            status,
            severity: Severity::Warning,
            depends_on: &[],
            evidence,
        };
        let losses = || self.lost.iter().chain(&self.links);
        let sum = match (&self.watch, losses().count()) {
            (_, lost) if lost > 0 => {
                let answer = self.answer.as_deref().unwrap_or("sudo bramble plan shows the way back");
                drift(None, Status::Raised, format!("{lost} lost; {answer}"))
            }
            (Err(why), _) => drift(None, Status::Unknown, why.clone()),
            (Ok(_), _) => drift(None, Status::Clear, "what held still holds".to_owned()),
        };
        let each = losses().map(|(id, loss)| drift(Some(id.clone()), Status::Raised, loss.sentence()));
        std::iter::once(sum).chain(each).collect()
    }
}

impl Loss {
    fn sentence(&self) -> String {
        let by = self.by.as_ref().map(|by| format!(", {by}")).unwrap_or_default();
        format!("{}: {}{by}", self.title, self.detail)
    }
}

fn is_reverted(receipt: &receipt::Receipt) -> bool {
    matches!(receipt.state, receipt::State::Reverting | receipt::State::Reverted)
}

/// Whether a revert or a leave takes something back now, or a revert did within the time before.
fn is_taken_back(host: &Host, within: Duration) -> bool {
    let pid = host.text(&format!("{RECEIPTS}/lock")).unwrap_or_default();
    let arguments = host.bytes(&format!("/proc/{}/cmdline", pid.trim())).unwrap_or_default();
    let runs =
        arguments.split(|byte| *byte == 0).any(|argument| [&b"revert"[..], b"leave"].contains(&argument));
    let before = |receipt: &receipt::Receipt| {
        let age = host.age(&format!("{RECEIPTS}/{}/journal", receipt.name));
        is_reverted(receipt) && age.is_some_and(|age| age <= within)
    };
    runs || receipt::seen(host).is_ok_and(|receipts| receipts.iter().any(before))
}

/// What started within the last seconds and is known to change networks, settings or files: a unit, or else a program.
fn suspect(host: &Host) -> Option<String> {
    unit(host).or_else(|| process(host))
}

/// The unit of those that was started last.
fn unit(host: &Host) -> Option<String> {
    let names = host.list(UNITS).ok()?;
    let starters = names.iter().filter_map(|name| {
        let unit = name.strip_prefix("invocation:")?;
        let age = host.age(&format!("{UNITS}/{name}")).filter(|age| *age <= RECENT)?;
        is_starter(unit).then_some((age, unit))
    });
    let (_, unit) = starters.min()?;
    Some(format!("just after {unit} was started (journalctl -u {unit})"))
}

fn is_starter(unit: &str) -> bool {
    STARTERS.iter().any(|starter| match unit.strip_prefix(starter) {
        Some(_) if starter.ends_with(['@', '-']) => true,
        Some(rest) => rest.starts_with(['.', '@']),
        None => false,
    })
}

fn uptime(host: &Host) -> Option<Duration> {
    let seconds = host.text("/proc/uptime").ok()?.split_whitespace().next()?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

fn process(host: &Host) -> Option<String> {
    let uptime = uptime(host)?.as_secs_f64();
    let pids = host.list("/proc").ok()?.into_iter().filter(|name| name.bytes().all(|b| b.is_ascii_digit()));
    let mut started: Vec<(f64, String)> = pids
        .filter_map(|pid| program(&host.text(&format!("/proc/{pid}/stat")).ok()?))
        .filter(|(name, at)| SUSPECTS.contains(&name.as_str()) && uptime - at <= RECENT.as_secs_f64())
        .map(|(name, at)| (at, name))
        .collect();
    started.sort_by(|a, b| b.0.total_cmp(&a.0));
    started.into_iter().next().map(|(_, name)| format!("just after {name} started"))
}

/// Name and start time (seconds after boot) in `/proc/PID/stat`: the name is in parentheses and may hold any character.
fn program(stat: &str) -> Option<(String, f64)> {
    // The kernel shows ticks of a hundredth of a second to every program, whatever its own are.
    const TICKS: f64 = 100.0;
    let (before, after) = stat.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_owned();
    let start: f64 = after.split_whitespace().nth(19)?.parse().ok()?;
    Some((name, start / TICKS))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the tests build trees")]
mod tests {
    use super::*;

    fn finding(id: &str, state: FindingState) -> Finding {
        Finding { id: id.to_owned(), title: id.to_owned(), state, detail: "why".to_owned() }
    }

    /// A directory of its own for each test; gone with its guard.
    struct Kept(std::path::PathBuf);

    impl Kept {
        fn new(name: &str) -> Kept {
            Kept(std::env::temp_dir().join(format!("bramble-guard-{name}-{}", std::process::id())))
        }

        fn state(&self) -> State {
            State::new(&self.0)
        }
    }

    impl Drop for Kept {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// Nothing is kept of it: where its directory should be stands a file.
    fn guard() -> (Guard, Host) {
        let host = Host::live().unwrap();
        let guard = Guard::open(
            &host,
            State::new(std::path::Path::new("/dev/null")),
            &Cluster::default(),
            Instant::now(),
        );
        (Guard { starting: None, ..guard }, host)
    }

    fn raised(guard: &Guard) -> Vec<String> {
        guard
            .statements()
            .into_iter()
            .filter(|s| s.status == Status::Raised)
            .filter_map(|s| s.subject)
            .collect()
    }

    #[test]
    fn what_held_and_does_not_is_drift_until_it_holds_again() {
        use FindingState::{Met, Unknown, Unmet};
        let (mut guard, host) = guard();
        let now = Instant::now();
        guard.compare(&host, &[finding("a", Met), finding("b", Unmet)], now);
        assert!(raised(&guard).is_empty() && !guard.owed);
        guard.compare(&host, &[finding("a", Unmet), finding("b", Unmet)], now);
        assert_eq!(raised(&guard), ["a"]);
        assert!(guard.owed);
        // Not being able to look is no recovery.
        guard.compare(&host, &[finding("a", Unknown)], now);
        assert_eq!(raised(&guard), ["a"]);
        guard.compare(&host, &[finding("a", Met)], now);
        assert!(raised(&guard).is_empty() && !guard.owed);
    }

    #[test]
    fn what_only_a_person_can_mend_is_told_and_nobody_is_started_for_it() {
        use FindingState::{Blocked, Met};
        let (mut guard, host) = guard();
        for state in [Met, Blocked] {
            guard.compare(&host, &[finding("a", state)], Instant::now());
        }
        assert_eq!(raised(&guard), ["a"]);
        guard.restore(3, &host, Instant::now());
        assert!(!guard.owed && guard.answer.is_none() && guard.restored.is_empty());
    }

    #[test]
    fn what_revert_takes_back_is_no_loss_and_what_a_unit_may_have_done_names_it() {
        let root = std::env::temp_dir().join(format!("bramble-guard-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = root.join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("/etc/hostname", "x\n");
        let host = Host::tree(&root).unwrap();
        let is_taken_back = |host: &Host| is_taken_back(host, RECENT);
        assert!(!is_taken_back(&host) && suspect(&host).is_none());
        let units = root.join(UNITS.trim_start_matches('/'));
        std::fs::create_dir_all(&units).unwrap();
        for unit in ["cron.service", "systemd-networkd.service", "systemd-networkd-wait-online.service"] {
            std::os::unix::fs::symlink("0123", units.join(format!("invocation:{unit}"))).unwrap();
        }
        assert_eq!(
            suspect(&host).as_deref(),
            Some("just after systemd-networkd.service was started (journalctl -u systemd-networkd.service)")
        );
        let began = "{\"record\":\"began\",\"v\":1,\"at\":\"2026-01-02T03:04:05Z\",\"bramble\":\"0\"}\n";
        let journal = format!("{RECEIPTS}/20260102T030405Z-1/journal");
        write(&journal, began);
        assert!(!is_taken_back(&host), "an apply takes nothing back");
        write(&journal, &format!("{began}{{\"record\":\"undone\",\"n\":0}}\n"));
        assert!(is_taken_back(&host));
        write(&journal, began);
        write(&format!("{RECEIPTS}/lock"), "4711");
        write("/proc/4711/cmdline", "bramble\0apply\0");
        assert!(!is_taken_back(&host));
        for verb in ["revert", "leave"] {
            write("/proc/4711/cmdline", &format!("bramble\0{verb}\0"));
            assert!(is_taken_back(&host));
        }
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn passes_that_follow_on_each_other_are_one_a_second_and_no_more() {
        let (mut guard, host) = guard();
        let mut now = Instant::now();
        let (end, mut passes, mut longest) = (now + Duration::from_secs(60), 0, Duration::ZERO);
        while now < end {
            guard.due = Some(now);
            let before = std::mem::replace(&mut now, guard.look_at().unwrap());
            assert!(guard.is_due(&host, now));
            guard.compare(&host, &[], now);
            passes += 1;
            longest = longest.max(now - before);
        }
        assert!((60..=66).contains(&passes), "{passes} passes in a minute");
        assert!(longest < Duration::from_secs(1), "{longest:?}");
        now += QUIET;
        guard.due = Some(now);
        assert!(!guard.is_due(&host, now), "the rest of the burst is waited for");
        assert!(guard.is_due(&host, now + SETTLE) && guard.pause == PAUSE);
    }

    #[test]
    fn who_wrote_a_setting_is_named_where_that_is_what_was_lost() {
        use FindingState::{Met, Unmet};
        let (mut guard, host) = guard();
        let now = Instant::now();
        guard.compare(&host, &[finding("forwarding", Met), finding("accept-ra", Met)], now);
        let change = |setting: &str, value: &str, writer: &str| Change {
            setting: setting.to_owned(),
            value: value.to_owned(),
            writer: (!writer.is_empty()).then(|| writer.to_owned()),
        };
        guard.hear(vec![], now);
        assert!(guard.look_at().is_none(), "nothing changed");
        guard.hear(
            vec![
                change("net.ipv4.ip_forward", "0", "sysctl (process 7 of cron.service)"),
                change("net.ipv4.conf.default.forwarding", "1", "bramble (process 8)"),
                change("net.ipv6.conf.eth0.accept_ra", "0", ""),
            ],
            now,
        );
        assert_eq!(guard.look_at(), Some(now + guard.pause), "the last pass was just now");
        assert!(guard.is_due(&host, now + guard.pause));
        guard.compare(&host, &[finding("forwarding", Unmet), finding("accept-ra", Unmet)], now);
        assert_eq!(
            guard.lost["forwarding"].sentence(),
            "forwarding: why, net.ipv4.ip_forward was written by sysctl (process 7 of cron.service)"
        );
        assert!(!guard.lost["accept-ra"].sentence().contains("written by"));
        // Whose word comes after the pass is heard too; whose write was good is not blamed.
        let later = now + Duration::from_secs(2);
        guard.hear(vec![change("net.ipv6.conf.eth0.accept_ra", "2", "bramble (process 8)")], later);
        assert!(!guard.lost["accept-ra"].sentence().contains("written by"));
        guard.hear(vec![change("net.ipv6.conf.eth0.accept_ra", "0", "dhcpcd (process 9)")], later);
        assert!(guard.lost["accept-ra"].sentence().ends_with("accept_ra was written by dhcpcd (process 9)"));
        guard.hear(vec![change("net.ipv4.ip_forward", "0", "sh (process 10)")], later + RECENT);
        assert!(guard.lost["forwarding"].sentence().contains("sysctl (process 7"));
    }

    #[test]
    fn what_was_lost_while_nobody_looked_is_named_at_the_start_and_at_each_after() {
        use FindingState::{Met, NotNeeded, Unmet};
        let (kept, host, now) = (Kept::new("restart"), Host::live().unwrap(), Instant::now());
        let open = || Guard { starting: None, ..Guard::open(&host, kept.state(), &Cluster::default(), now) };
        let mut guard = open();
        guard.compare(&host, &[finding("a", Met), finding("b", Met), finding("c", Unmet)], now);
        for _ in 0..2 {
            guard = open();
            guard.compare(&host, &[finding("a", Unmet), finding("b", NotNeeded), finding("c", Unmet)], now);
            assert_eq!(raised(&guard), ["a"]);
            let said = guard.lost["a"].sentence();
            assert!(said.contains("while bramble did not run") && guard.owed, "{said}");
        }
        guard.compare(&host, &[finding("a", Met)], now);
        guard = open();
        guard.compare(&host, &[finding("a", Met)], now);
        assert!(raised(&guard).is_empty());
        // Who chose otherwise is judged otherwise; another version judges by other rules.
        let cluster = Cluster { ipv6: true, ..Cluster::default() };
        guard = Guard { starting: None, ..Guard::open(&host, kept.state(), &cluster, now) };
        assert!(guard.held.is_empty());
        let other = kept.state().read(HELD).unwrap().unwrap().replacen("bramble ", "bramble 0.0.0-", 1);
        kept.state().write(HELD, &other).unwrap();
        guard = open();
        guard.compare(&host, &[finding("a", Unmet)], now);
        assert!(raised(&guard).is_empty());
    }

    #[test]
    fn what_a_revert_took_back_before_a_boot_is_no_loss_after_it() {
        use FindingState::{Met, Unmet};
        let root = Kept::new("reverts-host");
        std::fs::create_dir_all(root.0.join("etc")).unwrap();
        std::fs::write(root.0.join("etc/hostname"), "x\n").unwrap();
        let (kept, host) = (Kept::new("reverts"), Host::tree(&root.0).unwrap());
        let now = Instant::now();
        let open = || Guard { starting: None, ..Guard::open(&host, kept.state(), &Cluster::default(), now) };
        open().compare(&host, &[finding("a", Met), finding("b", Met)], now);
        // It was taken back, and what the kernel had from its boot held until the next one.
        let receipt = root.0.join(RECEIPTS.trim_start_matches('/')).join("20260102T030405Z-1");
        std::fs::create_dir_all(&receipt).unwrap();
        let journal = "{\"record\":\"began\",\"v\":1,\"at\":\"2026-01-02T03:04:05Z\",\"bramble\":\"0\"}\n\
                       {\"record\":\"undone\",\"n\":0}\n";
        std::fs::write(receipt.join("journal"), journal).unwrap();
        let long_ago = std::time::SystemTime::now() - Duration::from_secs(86_400);
        std::fs::File::open(receipt.join("journal")).unwrap().set_modified(long_ago).unwrap();
        let mut guard = open();
        guard.compare(&host, &[finding("a", Unmet), finding("b", Met)], now);
        assert!(raised(&guard).is_empty());
        // The revert excuses that start alone.
        guard = open();
        guard.compare(&host, &[finding("b", Unmet)], now);
        assert_eq!(raised(&guard), ["b"]);
    }

    #[test]
    fn a_machine_that_is_starting_is_given_time() {
        use FindingState::{Blocked, Met};
        let (kept, host, now) = (Kept::new("boot"), Host::live().unwrap(), Instant::now());
        Guard::open(&host, kept.state(), &Cluster::default(), now).compare(
            &host,
            &[finding("a", Met), finding("b", Met)],
            now,
        );
        let end = now + Duration::from_secs(60);
        let mut guard =
            Guard { starting: Some(end), ..Guard::open(&host, kept.state(), &Cluster::default(), now) };
        guard.compare(&host, &[finding("a", Blocked), finding("b", Met)], now);
        assert!(raised(&guard).is_empty());
        // What was seen since the start is missed at once.
        guard.compare(&host, &[finding("a", Blocked), finding("b", Blocked)], now);
        assert_eq!(raised(&guard), ["b"]);
        guard.due = None;
        assert!(!guard.is_due(&host, end), "it settles");
        assert!(guard.is_due(&host, end + SETTLE), "it is looked at again at the end");
        guard.compare(&host, &[finding("a", Blocked), finding("b", Blocked)], end);
        assert_eq!(raised(&guard), ["a", "b"]);
    }

    #[test]
    fn the_settings_that_bramble_sets_are_watched() {
        let (guard, _) = guard();
        assert!(format!("{:?}", guard.settings).contains("/proc/sys/net/core/bpf_jit_enable"));
    }

    #[test]
    fn a_look_that_failed_between_does_not_hide_a_loss() {
        use FindingState::{Met, Unknown, Unmet};
        let (mut guard, host) = guard();
        for state in [Met, Unknown, Unmet] {
            guard.compare(&host, &[finding("a", state)], Instant::now());
        }
        assert_eq!(raised(&guard), ["a"]);
    }

    #[test]
    fn restorations_are_bounded_per_hour() {
        let (mut guard, _) = guard();
        let now = Instant::now();
        assert!(guard.may_restore(2, now) && guard.may_restore(2, now) && !guard.may_restore(2, now));
        assert!(guard.may_restore(2, now + Duration::from_secs(3601)));
        assert!(!guard.may_restore(0, now));
    }

    #[test]
    fn a_program_s_name_may_hold_anything() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 0 0";
        assert_eq!(program(stat), Some(("a) b (c".to_owned(), 123.45)));
        assert_eq!(program("7 (x"), None);
    }
}
