//! What a daemon tells systemd (ready, a status line, proof of life), and what it is asked: to end, or to take its
//! configuration anew. Without systemd the telling is silent and the asking the same.

use std::{future::pending, time::Duration};

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use wire::report::{Condition, Finding, FindingState, Status};

use crate::{
    config::{BadConfig, Config},
    host::{Host, timer::Timer},
    journal,
    shutdown::Shutdown,
};

/// systemd cuts longer status lines off somewhere; `systemctl status` is read on a terminal.
const LONGEST_STATUS: usize = 200;

/// What a daemon is asked to do.
#[derive(Debug)]
pub enum Asked {
    /// To end.
    End,
    /// To begin anew with this configuration, which was read and is good.
    Reload(Box<Config>),
}

/// Reads the configuration from the file that was named, or from where it is by default, and checks what the daemon needs
/// of it.
type Load = fn(&Host, Option<&str>) -> Result<Config, BadConfig>;

/// The daemon as a service.
#[derive(Debug)]
pub struct Service<'a> {
    host: &'a Host,
    path: Option<&'a str>,
    load: Load,
    shutdown: Shutdown,
    hangup: Signal,
    /// When a proof of life is due, and how often.
    proof: Option<(Timer, Duration)>,
    said: String,
}

impl<'a> Service<'a> {
    /// Listens to signals from now on; a new configuration will be taken by `load`. Needs a tokio runtime.
    ///
    /// # Errors
    /// The kernel refuses a signal handler or a timer.
    pub fn start(host: &'a Host, path: Option<&'a str>, load: Load) -> std::io::Result<Self> {
        let proof = match sd_notify::watchdog_enabled() {
            Some(patience) => {
                let timer = Timer::new()?;
                timer.set(Duration::ZERO)?;
                // Three times within systemd's patience: one may be late, and one may be lost.
                Some((timer, patience / 3))
            }
            None => None,
        };
        let hangup = signal(SignalKind::hangup())?;
        Ok(Self { host, path, load, shutdown: Shutdown::listen()?, hangup, proof, said: String::new() })
    }

    /// Says that everything is open that others need.
    pub fn ready(&mut self, status: &str) {
        self.said = shortened(status);
        tell(&[NotifyState::Ready, NotifyState::Status(&self.said)]);
    }

    /// Says how things are, in one line, if that changed.
    pub fn status(&mut self, status: &str) {
        let status = shortened(status);
        if status != self.said {
            tell(&[NotifyState::Status(&status)]);
            self.said = status;
        }
    }

    /// Waits until something is asked. A configuration that is not good is told in the journal and asks for nothing: the
    /// old one stays. Cancel-safe.
    ///
    /// The proof of life is given here, so a daemon that waits for this in its one loop gives it exactly while that loop
    /// turns.
    pub async fn asked(&mut self) -> Asked {
        loop {
            let proof = async {
                match &mut self.proof {
                    Some((timer, every)) => {
                        // What fails here has failed for the whole loop, and systemd is to see that.
                        if timer.fired().await.and_then(|()| timer.set(*every)).is_err() {
                            pending().await
                        }
                    }
                    None => pending().await,
                }
            };
            tokio::select! {
                () = self.shutdown.wanted() => {
                    tell(&[NotifyState::Stopping]);
                    return Asked::End;
                }
                _ = self.hangup.recv() => match (self.load)(self.host, self.path) {
                    Ok(config) => {
                        tracing::info!("the configuration is taken anew");
                        reloading();
                        return Asked::Reload(Box::new(config));
                    }
                    Err(why) => {
                        tracing::error!(message_id = journal::BAD_CONFIG, "the old configuration stays: {why}")
                    }
                },
                () = proof => tell(&[NotifyState::Watchdog]),
            }
        }
    }
}

/// Nobody may listen, and a daemon that cannot tell systemd how it is goes on.
fn tell(what: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(what);
}

fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// One line of at most [`LONGEST_STATUS`] characters.
fn shortened(status: &str) -> String {
    let line = status.lines().next().unwrap_or_default();
    match line.char_indices().nth(LONGEST_STATUS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

/// The agent's status line: how many requirements ask for something, and the worst that is known in words, which is a raised
/// condition before a requirement.
pub fn worst(conditions: &[Condition], findings: &[Finding]) -> String {
    let asking = |state| findings.iter().filter(move |finding| finding.state == state);
    let asks = || asking(FindingState::Blocked).chain(asking(FindingState::Unmet)).next();
    let raised = conditions.iter().filter(|c| c.status == Status::Raised);
    // What another raised condition explains is not the news.
    let bad = wire::report::root(conditions);
    let unseen = || conditions.iter().find(|c| c.status == Status::Unknown);
    let mut line = match (bad, asks(), unseen()) {
        (Some(c), ..) => {
            let more = raised.count() - 1;
            let more = if more == 0 { String::new() } else { format!(" (and {more} more)") };
            format!("{}: {}{more}", c.title, c.evidence)
        }
        (None, Some(f), _) => format!("{}: {}", f.title, f.detail),
        (None, None, Some(c)) => format!("could not tell about \"{}\": {}", c.title, c.evidence),
        (None, None, None) => "nothing is wrong on the network".to_owned(),
    };
    let words = [(FindingState::Blocked, "a person must see to"), (FindingState::Unmet, "bramble can mend")];
    for (state, what) in words {
        let count = asking(state).count();
        if count > 0 {
            line = format!("{count} {what}; {line}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use wire::report::Severity;

    use super::*;

    fn condition(title: &str, status: Status, severity: Severity, depends_on: &[&str]) -> Condition {
        Condition {
            id: title.to_owned(),
            subject: None,
            title: title.to_owned(),
            status,
            severity,
            since: jiff::Timestamp::UNIX_EPOCH,
            depends_on: depends_on.iter().map(|&id| id.to_owned()).collect(),
            evidence: format!("{title} was seen"),
        }
    }

    #[test]
    fn the_status_line_is_the_worst_cause_and_not_what_it_explains() {
        use Severity::{Critical, Warning};
        use Status::{Clear, Raised, Unknown};
        let none = [];
        let a = condition("a", Raised, Warning, &[]);
        let b = condition("b", Raised, Critical, &["a"]);
        let c = condition("c", Raised, Critical, &["d"]);
        let clear = condition("d", Clear, Critical, &[]);
        let unknown = condition("e", Unknown, Critical, &[]);
        assert_eq!(worst(&[a.clone(), b.clone()], &none), "a: a was seen (and 1 more)");
        assert_eq!(worst(&[a, b, c, clear.clone()], &none), "c: c was seen (and 2 more)");
        let unsure = [clear.clone(), unknown];
        assert_eq!(worst(&unsure, &none), "could not tell about \"e\": e was seen");
        assert_eq!(worst(&[clear], &none), "nothing is wrong on the network");
        // Without a condition, the worst finding is named.
        let finding = |title: &str, state| Finding {
            id: title.to_owned(),
            title: title.to_owned(),
            state,
            detail: format!("{title} was found"),
        };
        use FindingState::{Blocked, Met, Unmet};
        let findings = [finding("f", Met), finding("g", Unmet), finding("h", Blocked), finding("i", Unmet)];
        let counts = "2 bramble can mend; 1 a person must see to";
        assert_eq!(worst(&unsure, &findings), format!("{counts}; h: h was found"));
        assert_eq!(worst(&unsure, &findings[..2]), "1 bramble can mend; g: g was found");
        let raised = condition("j", Raised, Warning, &[]);
        assert_eq!(worst(&[raised], &findings), format!("{counts}; j: j was seen"));
    }

    #[test]
    fn a_status_is_one_line_however_long_its_cause_is() {
        assert_eq!(shortened("a\nb"), "a");
        let long = shortened(&"ä".repeat(500));
        assert_eq!(long.chars().count(), LONGEST_STATUS + 1);
        assert!(long.ends_with('…'));
    }
}
