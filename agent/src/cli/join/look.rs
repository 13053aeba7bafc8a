//! What the pre-flight of `bramble join` found, for a person and as JSON.

use anstyle::{AnsiColor, Style};
use serde_json::{Value, json};

use super::super::USAGE;
use super::super::check::{printable, wrap};
use crate::config::k3s::Role;
use crate::host::write::NotDone;
use crate::k3s::doctor::{Examined, Verdict};

/// All that was examined: first what the server and the token say, then what `bramble check` knows.
#[derive(Debug)]
pub(super) struct Findings {
    /// In the order of the table.
    pub(super) examined: Vec<Examined>,
    /// Requirements.
    pub(super) required: Vec<Examined>,
    /// Whether somebody is about to set the clock and has not yet, or whether that cannot be told.
    pub(super) is_clock_late: bool,
    /// Whether something that is written cannot be carried out; it stands among what was examined.
    pub(super) is_misconfigured: bool,
}

impl Findings {
    fn all(&self) -> impl Iterator<Item = &Examined> {
        self.examined.iter().chain(&self.required)
    }

    /// Whether something stands in K3s' way.
    pub(super) fn is_wrong(&self) -> bool {
        self.all().any(|one| matches!(one.verdict, Verdict::Wrong { .. }))
    }

    /// The first thing that stands in K3s' way: its id, what it is, and what a person does next.
    pub(super) fn cause(&self) -> Option<[&str; 3]> {
        self.all().find_map(|one| match &one.verdict {
            Verdict::Wrong { what, next } => Some([one.id, what.as_str(), next.as_str()]),
            _ => None,
        })
    }

    /// Whether an examination of that id found a cause.
    pub(super) fn has(&self, id: &str) -> bool {
        self.all().any(|one| one.id == id && matches!(one.verdict, Verdict::Wrong { .. }))
    }

    /// Something that is written cannot be carried out.
    pub(super) fn misconfigured(&mut self, failed: &NotDone) {
        self.is_misconfigured = true;
        self.examined.push(Examined {
            id: "configuration",
            title: "What is written can be carried out",
            why: "A join ends with what only its owner can mend, and does not try it again.",
            verdict: Verdict::Wrong { what: failed.to_string(), next: failed.next.clone() },
        });
    }

    /// 64 something is written wrong, 2 a person must act, 3 something could not be told, else 0.
    pub(super) fn code(&self) -> u8 {
        match () {
            () if self.is_misconfigured => USAGE,
            () if self.is_wrong() => 2,
            () if self.all().any(|one| matches!(one.verdict, Verdict::Unknown(_))) => 3,
            () => 0,
        }
    }

    /// As a table, without what does not matter here or could not be asked so far. Of the requirements those that hold are
    /// only counted.
    pub(super) fn page(&self, role: &Role, width: usize) -> String {
        let (bold, dim) = (Style::new().bold(), Style::new().dimmed());
        let whom = role.server().map_or(String::new(), |url| format!(" at {}", url.origin()));
        let mut text = format!("{bold}Before this node becomes {}{whom}{bold:#}\n", role.name());
        let quiet = |one: &&Examined| !matches!(one.verdict, Verdict::Good(_) | Verdict::NotNeeded(_));
        let asked = self.examined.iter().filter(|one| !matches!(one.verdict, Verdict::NotNeeded(_)));
        let shown: Vec<&Examined> = asked.chain(self.required.iter().filter(quiet)).collect();
        let ids = shown.iter().map(|one| one.id.len()).max().unwrap_or(0);
        for one in shown {
            let (sign, style, evidence, next) = look(&one.verdict);
            let indent = 4 + ids + 2;
            text += &format!(
                "  {style}{sign}{style:#} {:<ids$}  {}\n",
                one.id,
                wrap(&printable(evidence), indent, width)
            );
            let mut detail = |label: &str, content: &str| {
                let content = wrap(&printable(content), indent + 6, width);
                text += &format!("{:indent$}{dim}{label:<6}{dim:#}{content}\n", "");
            };
            if let Some(next) = next {
                detail("why", one.why);
                detail("next", next);
            }
        }
        let good = self.required.iter().filter(|one| !quiet(one)).count();
        text += &format!(
            "  {dim}{good} of {} requirements hold or do not matter here{dim:#}\n",
            self.required.len()
        );
        let count = |wanted: fn(&Verdict) -> bool| self.all().filter(|one| wanted(&one.verdict)).count();
        let (wrong, unknown) =
            (count(|v| matches!(v, Verdict::Wrong { .. })), count(|v| matches!(v, Verdict::Unknown(_))));
        let verdict = match (wrong, unknown) {
            (0, 0) => "nothing stands in K3s' way".to_owned(),
            (0, unknown) => {
                format!("nothing stands in K3s' way that could be seen; could not tell: {unknown}")
            }
            (wrong, 0) => format!("stands in K3s' way: {wrong}"),
            (wrong, unknown) => format!("stands in K3s' way: {wrong}; could not tell: {unknown}"),
        };
        text + &format!("\n{bold}{verdict}{bold:#}\n")
    }

    /// As JSON; it holds no secret.
    pub(super) fn json(&self, role: &Role) -> Value {
        let one = |one: &Examined| {
            let (_, _, evidence, next) = look(&one.verdict);
            let state = match one.verdict {
                Verdict::Good(_) => "good",
                Verdict::Warned { .. } => "warned",
                Verdict::Wrong { .. } => "wrong",
                Verdict::Unknown(_) => "unknown",
                Verdict::NotNeeded(_) => "not_needed",
            };
            json!({
                "id": one.id, "title": one.title, "why": one.why, "state": state, "evidence": evidence, "next": next,
            })
        };
        json!({
            "v": 1,
            "role": role.name(),
            "server": role.server().map(|url| url.origin()),
            "examinations": self.examined.iter().map(one).collect::<Vec<_>>(),
            "requirements": self.required.iter().map(one).collect::<Vec<_>>(),
            "exit_code": self.code(),
        })
    }
}

/// A verdict's sign and style, its evidence, and what to do: never colour alone.
fn look(verdict: &Verdict) -> (&'static str, Style, &str, Option<&str>) {
    let colour = |colour: AnsiColor| Style::new().fg_color(Some(colour.into()));
    match verdict {
        Verdict::Good(what) => ("✓", colour(AnsiColor::Green), what, None),
        Verdict::Warned { what, next } => ("!", colour(AnsiColor::Yellow), what, Some(next)),
        Verdict::Wrong { what, next } => ("✗", colour(AnsiColor::Red).bold(), what, Some(next)),
        Verdict::Unknown(why) => ("?", colour(AnsiColor::Magenta), why, None),
        Verdict::NotNeeded(why) => ("-", Style::new().dimmed(), why, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(verdicts: Vec<Verdict>) -> Findings {
        let one = |verdict| Examined { id: "x", title: "t", why: "w", verdict };
        let examined = verdicts.into_iter().map(one).collect();
        Findings { examined, required: vec![], is_clock_late: false, is_misconfigured: false }
    }

    #[test]
    fn a_cause_outweighs_what_could_not_be_told() {
        let wrong = || Verdict::Wrong { what: "a".into(), next: "b".into() };
        let warned = Verdict::Warned { what: "a".into(), next: "b".into() };
        assert_eq!(findings(vec![Verdict::Good("a".into()), warned]).code(), 0);
        assert_eq!(findings(vec![Verdict::Unknown("a".into())]).code(), 3);
        let both = findings(vec![Verdict::Unknown("a".into()), wrong()]);
        assert_eq!((both.code(), both.cause()), (2, Some(["x", "a", "b"])));
        let page = both.page(&Role::First, 80);
        assert!(page.contains("next") && page.contains("way: 1; could not tell: 1"), "{page}");
        assert_eq!(both.json(&Role::First)["examinations"][1]["next"], "b");
    }
}
