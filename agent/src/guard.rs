//! The drift guard: notices within a second when something that held does not hold any more, says what it was and, where
//! it can be known, who did it, and lets the owner's choice restore it.
//!
//! It compares verdicts, not files: what matters is that a requirement was met and is not. So it needs no receipt, and a
//! change by hand is seen like one by an upgrade. It decides nothing about how to mend: `bramble apply` does.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use wire::report::{Finding, FindingState, Severity, Status};

use crate::{
    facts::sysctl,
    host::{
        Host,
        watch::{Event, Settings, Watch},
    },
    probe::Statement,
};

/// Shortest time between two passes that events cause: pods come and go in bursts.
const PAUSE: Duration = Duration::from_secs(2);
/// What started so recently before a loss may have caused it.
const RECENT: Duration = Duration::from_secs(10);
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
    by: Option<String>,
}

/// Remembers what held.
#[derive(Debug)]
pub struct Guard {
    watch: Result<Watch, String>,
    /// Live values of the settings that bramble sets.
    settings: Settings,
    held: BTreeMap<String, FindingState>,
    lost: BTreeMap<String, Loss>,
    links: BTreeMap<String, Loss>,
    checked: Option<Instant>,
    due: bool,
    restored: Vec<Instant>,
}

impl Guard {
    /// Watches from now on.
    pub fn open() -> Guard {
        let set: Vec<String> = sysctl::TABLE
            .iter()
            .filter(|setting| setting.action == "set" && !setting.is_pattern())
            .map(|setting| sysctl::path(setting.name))
            .collect();
        Guard {
            watch: Watch::open()
                .map_err(|e| format!("the host cannot be watched: {e}; check fs.inotify.max_user_instances")),
            settings: Settings::open(set.iter().map(String::as_str)),
            held: BTreeMap::new(),
            lost: BTreeMap::new(),
            links: BTreeMap::new(),
            checked: None,
            due: false,
            restored: Vec::new(),
        }
    }

    /// Whether something happened that makes a new pass over the requirements worth its while. To be called once a second.
    pub fn is_due(&mut self, host: &Host, now: Instant) -> bool {
        if let Ok(watch) = &self.watch {
            for event in watch.seen() {
                match event {
                    Event::LinkGone(name) => {
                        let by = suspect(host);
                        let loss =
                            Loss { title: format!("link {name}"), detail: "it was deleted".to_owned(), by };
                        self.links.insert(name, loss);
                    }
                    Event::LinkCame(name) => {
                        self.links.remove(&name);
                    }
                    _ => self.due = true,
                }
            }
        }
        self.due |= self.settings.changed();
        let due = self.due && self.checked.is_none_or(|at| now.duration_since(at) >= PAUSE);
        if due {
            self.due = false;
        }
        due
    }

    /// Compares a new pass with what held before; whether something was lost just now.
    pub fn compare(&mut self, host: &Host, findings: &[Finding], now: Instant) -> bool {
        self.checked = Some(now);
        let mut lost_now = false;
        for finding in findings {
            match finding.state {
                FindingState::Unmet | FindingState::Blocked
                    if self.held.get(&finding.id) == Some(&FindingState::Met) =>
                {
                    lost_now = true;
                    let by = suspect(host);
                    let loss = Loss { title: finding.title.clone(), detail: finding.detail.clone(), by };
                    tracing::warn!("no longer so: {}", loss.sentence());
                    self.lost.insert(finding.id.clone(), loss);
                }
                FindingState::Met | FindingState::NotNeeded if self.lost.remove(&finding.id).is_some() => {
                    tracing::info!("so again: {}", finding.title);
                }
                _ => {}
            }
            // "Could not tell" takes nothing away from what held before.
            if finding.state != FindingState::Unknown {
                self.held.insert(finding.id.clone(), finding.state);
            }
        }
        lost_now
    }

    /// Whether the owner's budget of restorations per hour has one left; takes it.
    pub fn may_restore(&mut self, per_hour: u32, now: Instant) -> bool {
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
                drift(None, Status::Raised, format!("{lost} lost; sudo bramble plan shows the way back"))
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
        let by = self.by.as_ref().map(|by| format!(", just after {by} started")).unwrap_or_default();
        format!("{}: {}{by}", self.title, self.detail)
    }
}

/// A program that started within the last seconds and is known to change networks or settings.
fn suspect(host: &Host) -> Option<String> {
    let uptime: f64 = host.text("/proc/uptime").ok()?.split_whitespace().next()?.parse().ok()?;
    let pids = host.list("/proc").ok()?.into_iter().filter(|name| name.bytes().all(|b| b.is_ascii_digit()));
    let mut started: Vec<(f64, String)> = pids
        .filter_map(|pid| program(&host.text(&format!("/proc/{pid}/stat")).ok()?))
        .filter(|(name, at)| SUSPECTS.contains(&name.as_str()) && uptime - at <= RECENT.as_secs_f64())
        .map(|(name, at)| (at, name))
        .collect();
    started.sort_by(|a, b| b.0.total_cmp(&a.0));
    started.into_iter().next().map(|(_, name)| name)
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
mod tests {
    use super::*;

    fn finding(id: &str, state: FindingState) -> Finding {
        Finding { id: id.to_owned(), title: id.to_owned(), state, detail: "why".to_owned() }
    }

    fn guard() -> (Guard, Host) {
        (Guard::open(), Host::live().unwrap())
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
        assert!(!guard.compare(&host, &[finding("a", Met), finding("b", Unmet)], now));
        assert!(guard.compare(&host, &[finding("a", Unmet), finding("b", Unmet)], now));
        assert_eq!(raised(&guard), ["a"]);
        // Not being able to look is no recovery.
        guard.compare(&host, &[finding("a", Unknown)], now);
        assert_eq!(raised(&guard), ["a"]);
        guard.compare(&host, &[finding("a", Met)], now);
        assert!(raised(&guard).is_empty());
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
