//! What this node is asked over MQTT: taken, or refused with one cause and one next step.
//!
//! The agent has no rights: what needs some is a unit of systemd's that a polkit rule lets it start, and what that unit
//! runs as root reads the owner's list again. A request that changes the machine counts once: it needs a transaction that was
//! not used before, also not before the last restart, and the time at which it was asked.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};
use wire::{
    command::{LARGEST_REQUEST, LONGEST_TRANSACTION, Request},
    topic::{Name, Verb},
};

use crate::host::state::State;

/// How old a request may be that changes the machine, and how far the asker's clock may be ahead.
const FRESH: SignedDuration = SignedDuration::from_secs(30);
/// How long an answer is worth something.
pub const ANSWER_EXPIRY: Duration = Duration::from_secs(30);
/// Transactions that are remembered; who changes the machine more often within [`FRESH`] is refused.
const REMEMBERED: usize = 64;
/// The file in the state directory.
const FILE: &str = "transactions.json";

/// Takes requests, and remembers which were taken.
#[derive(Debug)]
pub struct Desk {
    state: State,
    /// Of requests that changed the machine, by transaction: when they were asked.
    done: BTreeMap<String, Timestamp>,
}

impl Desk {
    /// Reads what was done before.
    pub fn open(state: State) -> Self {
        let text = state.read(FILE).ok().flatten();
        let done = text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        Self { state, done }
    }

    /// Takes a request, or says why not. `clock_is_set` = somebody keeps the wall clock right.
    ///
    /// # Errors
    /// One cause and one next step, for who asked; the request, as far as it was understood, goes with it.
    pub fn take(
        &mut self,
        verb: Verb,
        payload: &[u8],
        retained: bool,
        allowed: bool,
        now: Timestamp,
    ) -> Result<Request, (Request, String)> {
        let request = read(payload).map_err(|why| (Request::default(), why))?;
        let refuse = |why: String| Err((request.clone(), why));
        if retained {
            return refuse(
                "requests must not be retained: it would be done at each connection; empty its topic"
                    .to_owned(),
            );
        }
        if !allowed {
            return refuse(format!(
                "the owner of this node does not allow it; it takes allow = [\"{verb}\"] in [commands]"
            ));
        }
        if !verb.acts() {
            return Ok(request);
        }
        let (Some(transaction), Some(asked)) = (&request.transaction, request.ts) else {
            return refuse(format!("{verb} needs a transaction of its own and the time in ts"));
        };
        let age = now.duration_since(asked);
        if age.abs() > FRESH {
            return refuse(format!(
                "it was asked at {asked:.0}, and it is {now:.0} here; ask again, or set the clocks right"
            ));
        }
        if self.done.contains_key(transaction) {
            return refuse(format!("the transaction {transaction} was done already; take a new one"));
        }
        self.done.retain(|_, at| now.duration_since(*at).abs() <= FRESH * 2);
        if self.done.len() >= REMEMBERED {
            return refuse(format!("more than {REMEMBERED} such requests within a minute; wait"));
        }
        self.done.insert(transaction.clone(), asked);
        let text = serde_json::to_string(&self.done).expect("texts and times are JSON");
        if let Err(why) = self.state.write(FILE, &text) {
            self.done.remove(transaction);
            return refuse(format!(
                "it could not be remembered, and might be done twice: {why}; see to the disk"
            ));
        }
        Ok(request)
    }
}

/// An empty payload and a word, such as a button's `PRESS`, ask for nothing particular.
fn read(payload: &[u8]) -> Result<Request, String> {
    if payload.len() > LARGEST_REQUEST {
        return Err(format!("a request has {LARGEST_REQUEST} bytes at most"));
    }
    if payload.iter().all(u8::is_ascii_alphabetic) {
        return Ok(Request::default());
    }
    let request: Request = serde_json::from_slice(payload).map_err(|_| {
        "a request is JSON: {\"transaction\": \"...\", \"ts\": \"2026-11-23T06:00:00Z\"}".to_owned()
    })?;
    match &request.transaction {
        Some(text)
            if text.is_empty() || text.len() > LONGEST_TRANSACTION || text.chars().any(char::is_control) =>
        {
            Err(format!("a transaction is a text of 1 to {LONGEST_TRANSACTION} bytes"))
        }
        _ => Ok(request),
    }
}

/// Another node, as far as a restart here depends on it.
#[derive(Debug, Clone, Copy)]
pub struct Other<'a> {
    /// Its name.
    pub name: &'a Name,
    /// Whether the broker says that it is there.
    pub online: Option<bool>,
    /// Whether it is a server of K3s.
    pub server: bool,
    /// Whether K3s is well there, as it says.
    pub k3s_up: Option<bool>,
    /// Whether it gives way: asked to restart at the same moment, it lets us go first.
    pub gives_way: bool,
}

/// Whether this node may be restarted now: all others are there, and those that stay keep the servers' majority.
/// `told` = whether the broker has told of the others, or why not.
///
/// # Errors
/// What would be lost, or cannot be told.
pub fn may_restart(server: bool, told: Result<(), &str>, others: &[Other<'_>]) -> Result<(), String> {
    told?;
    let needed = || others.iter().filter(|other| !other.gives_way);
    if let Some(gone) = needed().find(|other| other.online == Some(false)) {
        return Err(format!("{} is down: two nodes less are too many; see to it first", gone.name));
    }
    if let Some(down) = needed().find(|other| other.k3s_up == Some(false)) {
        return Err(format!("K3s is down on {}: two nodes less are too many; see to it first", down.name));
    }
    if let Some(unseen) = needed().find(|other| other.online.is_none()) {
        return Err(format!(
            "it could not be told whether {} is there; if it is gone for good, on the aggregator's host: \
             sudo bramble-aggregator --forget {0}",
            unseen.name
        ));
    }
    let left = others.iter().filter(|other| other.server).count();
    // One server alone has no majority that could be lost.
    let all = left + 1;
    if server && left > 0 && left < all / 2 + 1 {
        return Err(format!(
            "{left} of {} servers would be left, which is no majority; add a third one",
            left + 1
        ));
    }
    if let Some(untold) = needed().find(|other| server && other.server && other.k3s_up.is_none()) {
        return Err(format!(
            "it could not be told whether K3s is up on {}, which the majority may hang on; there: sudo bramble status",
            untold.name
        ));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the tests put files in the way")]
mod tests {
    use super::*;

    fn desk(name: &str) -> (Desk, std::path::PathBuf) {
        let directory = std::env::temp_dir().join(format!("bramble-desk-{name}-{}", std::process::id()));
        (Desk::open(State::new(&directory)), directory)
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    const NOW: &str = "2026-11-23T06:00:00Z";

    #[test]
    fn what_changes_nothing_is_taken_as_people_and_buttons_ask() {
        let (mut desk, _) = desk("asks");
        for payload in ["", "PRESS", "{}", r#"{"transaction":"a"}"#, r#"{"transaction":"a","more":1}"#] {
            assert!(desk.take(Verb::Check, payload.as_bytes(), false, true, at(NOW)).is_ok(), "{payload}");
        }
        for (payload, retained, why) in [
            ("", true, "retained"),
            ("{", false, "is JSON"),
            ("\u{0}", false, "is JSON"),
            (r#"{"transaction":""}"#, false, "1 to 64"),
            (r#"{"transaction":7}"#, false, "is JSON"),
            (&format!(r#"{{"transaction":"{}"}}"#, "x".repeat(65)), false, "1 to 64"),
            (&"x".repeat(LARGEST_REQUEST + 1), false, "1024 bytes"),
        ] {
            let (_, error) = desk.take(Verb::Check, payload.as_bytes(), retained, true, at(NOW)).unwrap_err();
            assert!(error.contains(why), "{payload:?}: {error}");
        }
    }

    #[test]
    fn what_changes_the_machine_is_done_once_and_only_when_the_owner_listed_it() {
        let (mut desk, directory) = desk("acts");
        let ask = |desk: &mut Desk, payload: &str, allowed: bool, now: &str| {
            desk.take(Verb::Reboot, payload.as_bytes(), false, allowed, at(now))
                .map(drop)
                .map_err(|(_, why)| why)
        };
        let good = format!(r#"{{"transaction":"a","ts":"{NOW}"}}"#);
        for (payload, allowed, now, why) in [
            (good.as_str(), false, NOW, "allow = [\"reboot\"]"),
            ("PRESS", true, NOW, "needs a transaction"),
            (r#"{"transaction":"a"}"#, true, NOW, "needs a transaction"),
            (&good, true, "2026-11-23T06:00:31Z", "it was asked at 2026-11-23T06:00:00Z"),
            (&good, true, "1976-11-23T06:00:00Z", "set the clocks right"),
        ] {
            let error = ask(&mut desk, payload, allowed, now).unwrap_err();
            assert!(error.contains(why), "{payload}: {error}");
        }
        ask(&mut desk, &good, true, "2026-11-23T06:00:20Z").unwrap();
        assert!(ask(&mut desk, &good, true, "2026-11-23T06:00:21Z").unwrap_err().contains("done already"));
        // The machine has restarted meanwhile.
        let mut desk = Desk::open(State::new(&directory));
        assert!(ask(&mut desk, &good, true, "2026-11-23T06:00:29Z").unwrap_err().contains("done already"));
        for number in 1..REMEMBERED {
            ask(&mut desk, &format!(r#"{{"transaction":"b{number}","ts":"{NOW}"}}"#), true, NOW).unwrap();
        }
        let one_more = format!(r#"{{"transaction":"c","ts":"{NOW}"}}"#);
        assert!(ask(&mut desk, &one_more, true, NOW).unwrap_err().contains("wait"));
        std::fs::remove_dir_all(&directory).unwrap();
        std::fs::write(&directory, "no directory").unwrap();
        let later = r#"{"transaction":"d","ts":"2026-11-23T07:00:00Z"}"#;
        assert!(ask(&mut desk, later, true, "2026-11-23T07:00:00Z").unwrap_err().contains("done twice"));
        std::fs::remove_file(&directory).unwrap();
    }

    #[test]
    fn a_restart_never_takes_the_majority_or_a_second_node() {
        let names: Vec<Name> = (1..=4).map(|n| Name::new(&format!("n{n}")).unwrap()).collect();
        let other = |n: usize, online, server| Other {
            name: &names[n],
            online,
            server,
            k3s_up: server.then_some(true),
            gives_way: false,
        };
        let (up, down, unseen) = (Some(true), Some(false), None);
        for (server, others, why) in [
            (true, vec![], None),
            (false, vec![other(0, up, true)], None),
            (true, vec![other(0, up, false), other(1, up, false)], None),
            (true, vec![other(0, up, true), other(1, up, true)], None),
            (true, vec![other(0, up, true)], Some("1 of 2 servers")),
            (true, vec![other(0, up, true), other(1, up, true), other(2, up, true)], None),
            (false, vec![other(0, up, true), other(1, down, false)], Some("n2 is down")),
            (true, vec![other(0, unseen, false)], Some("whether n1 is there")),
            // At the second look, of three servers the second by name: the third gives way, and stays a server.
            (true, vec![other(0, up, true), Other { gives_way: true, ..other(2, down, true) }], None),
            (true, vec![Other { gives_way: true, ..other(1, up, true) }], Some("1 of 2 servers")),
            (
                true,
                vec![other(0, up, true), Other { k3s_up: Some(false), ..other(1, up, true) }],
                Some("K3s is down on n2"),
            ),
            (
                true,
                vec![other(0, up, true), Other { k3s_up: None, ..other(1, up, true) }],
                Some("whether K3s is up on n2"),
            ),
            (false, vec![other(0, up, true), Other { k3s_up: None, ..other(1, up, true) }], None),
        ] {
            assert_eq!(may_restart(server, Err("not told yet"), &others).unwrap_err(), "not told yet");
            match (may_restart(server, Ok(()), &others), why) {
                (Ok(()), None) => {}
                (Err(said), Some(why)) => assert!(said.contains(why), "{said}"),
                (got, why) => panic!("{server} {others:?}: {got:?}, wanted {why:?}"),
            }
        }
    }
}
