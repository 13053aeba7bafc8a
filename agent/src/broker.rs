//! What the agent states of its own way to the broker: whether it is there, what it refuses, who else uses our id.

use wire::{
    connection::{Complaints, TakenOver},
    report::{Severity, Status},
};

use crate::probe::Statement;

/// Why there is no connection before the first attempt has come to its end.
pub const NOT_YET: &str = "not connected yet";

/// What is wrong where our own word does not come back.
pub const DEAF: &str = "the broker hands over nothing of what nodes say of themselves, so the others are not known here; let this node \
     read bramble/CLUSTER/node/+/info and …/availability in the broker's access list (acl_file)";

/// What is known of the connection.
#[derive(Debug)]
pub struct Connection<'a> {
    /// Why there is none.
    pub away: Option<&'a str>,
    /// What the broker does not do for us; it only counts while there is a connection.
    pub complaints: Complaints,
    /// Whether what we said of ourselves did not come back, as it does for who may read it.
    pub is_deaf: bool,
    /// How long ago somebody else connected with our id.
    pub taken_over: Option<TakenOver>,
    /// Why renewed certificates are not used.
    pub renewal: Option<String>,
    /// Why records are not kept on disk.
    pub spool: Option<&'a str>,
}

impl Connection<'_> {
    /// All statements, also the clear ones.
    pub fn statements(&self) -> [Statement; 5] {
        let told = self.complaints.told();
        let complaints = match (self.away, told.as_slice()) {
            (Some(_), _) => (Status::Unknown, "there is no connection to the broker".to_owned()),
            (None, []) if !self.complaints.answered => {
                (Status::Unknown, "it has not answered everything yet".to_owned())
            }
            (None, []) if self.is_deaf => (Status::Raised, DEAF.to_owned()),
            (None, []) => (Status::Clear, "it takes all that is said".to_owned()),
            (None, told) => (Status::Raised, told.join("; ")),
        };
        [
            statement(
                "broker",
                "Broker cannot be used",
                &["isolated"],
                match self.away {
                    // Each start would be an alert, and its end another one.
                    Some(NOT_YET) => (Status::Unknown, NOT_YET.to_owned()),
                    Some(why) => (Status::Raised, why.to_owned()),
                    None => (Status::Clear, "connected".to_owned()),
                },
            ),
            statement("broker-refuses", "Broker does not take all that is said", &["broker"], complaints),
            statement(
                "identity-taken",
                "Another client uses this node's identity",
                &[],
                match self.taken_over {
                    Some(TakenOver { ago, is_told: true }) => (
                        Status::Raised,
                        format!(
                            "a cloned node? another client connected with our id {} min ago; give one of them a new one: stop bramble there, remove identity.json from its state directory, start it",
                            ago.as_secs() / 60
                        ),
                    ),
                    Some(TakenOver { ago, is_told: false }) => (
                        Status::Raised,
                        format!(
                            "perhaps: the broker ended several connections in a row without a word, {} min ago; its log tells whether another client uses our id, or whether it was started again itself",
                            ago.as_secs() / 60
                        ),
                    ),
                    None => (Status::Clear, "nobody else was seen with it".to_owned()),
                },
            ),
            statement(
                "certificate-renewal",
                "Renewed certificates cannot be used",
                &[],
                match &self.renewal {
                    Some(why) => {
                        (Status::Raised, format!("{why}; the connection keeps the old ones until it breaks"))
                    }
                    None => (Status::Clear, "the files in use are the newest".to_owned()),
                },
            ),
            statement(
                "record-spool",
                "What happens is not kept on disk",
                &["disk-full"],
                match self.spool {
                    Some(why) => (
                        Status::Raised,
                        format!("{why}; what the broker does not have yet is lost with the power"),
                    ),
                    None => {
                        (Status::Clear, "what the broker does not have is on disk within seconds".to_owned())
                    }
                },
            ),
        ]
    }
}

fn statement(
    id: &'static str,
    title: &'static str,
    depends_on: &'static [&'static str],
    (status, evidence): (Status, String),
) -> Statement {
    Statement { id, subject: None, title, status, severity: Severity::Warning, depends_on, evidence }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn raised(connection: &Connection<'_>) -> Vec<&'static str> {
        connection.statements().iter().filter(|s| s.status == Status::Raised).map(|s| s.id).collect()
    }

    #[test]
    fn each_trouble_is_a_condition_of_its_own() {
        let none = || Connection {
            away: None,
            complaints: Complaints { answered: true, ..Complaints::default() },
            is_deaf: false,
            taken_over: None,
            renewal: None,
            spool: None,
        };
        let refuses = Complaints { retains_nothing: true, ..Complaints::default() };
        assert!(raised(&none()).is_empty());
        assert_eq!(raised(&Connection { away: Some("x"), ..none() }), ["broker"]);
        assert!(raised(&Connection { away: Some(NOT_YET), ..none() }).is_empty());
        assert_eq!(raised(&Connection { complaints: refuses.clone(), ..none() }), ["broker-refuses"]);
        assert_eq!(raised(&Connection { is_deaf: true, ..none() }), ["broker-refuses"]);
        let both = Connection { complaints: refuses, is_deaf: true, ..none() };
        assert!(
            both.statements()[1].evidence.contains("retain_available"),
            "what was not taken cannot come back"
        );
        for is_told in [true, false] {
            let taken_over = Some(TakenOver { ago: Duration::ZERO, is_told });
            assert_eq!(raised(&Connection { taken_over, ..none() }), ["identity-taken"]);
        }
        assert_eq!(raised(&Connection { renewal: Some("x".to_owned()), ..none() }), ["certificate-renewal"]);
        assert_eq!(raised(&Connection { spool: Some("x"), ..none() }), ["record-spool"]);
    }

    #[test]
    fn what_the_broker_refuses_cannot_be_told_without_it() {
        for away in [Some("x"), None] {
            let complaints = Complaints { acknowledges_nothing: away.is_some(), ..Complaints::default() };
            let (is_deaf, taken_over, renewal, spool) = (true, None, None, None);
            let connection = Connection { away, complaints, is_deaf, taken_over, renewal, spool };
            assert_eq!(connection.statements()[1].status, Status::Unknown);
        }
    }
}
