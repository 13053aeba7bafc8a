//! The plan: what would be done, in order, and what only a person can do. Values; pure but for the bytes of the
//! files it edits, which come in through [`Files`].

use crate::change::{Change, MODULES_FILE, SYSCTL_FILE};
use crate::facts::Facts;
use crate::facts::boot_file::EXTRA;
use crate::host::{Host, Unreadable};
use crate::require::{Judged, Requirement, State};

use super::edit;
use super::live::Live;

/// All that is left to do on a host.
#[derive(Debug)]
pub struct Plan {
    /// What apply does, in order.
    pub steps: Vec<Step>,
    /// What apply cannot do on a tree, because nothing runs there: the machine does it when it boots.
    pub left: Vec<Step>,
    /// What only a person can do.
    pub person: Vec<Person>,
    /// What holds as soon as something happens that needs no change, by requirement.
    pub waiting: Vec<(&'static str, String)>,
    /// What could not be told, and what a person does to have it told.
    pub unknown: Vec<Person>,
}

/// Changes that are carried out as one: all edits of one file, and what belongs to them.
#[derive(Debug, Clone)]
pub struct Step {
    /// Who asks for it.
    pub requirements: Vec<&'static Requirement>,
    /// What a person approves.
    pub changes: Vec<Change>,
    /// Files, in order; none that is already as it should be.
    pub edits: Vec<Edit>,
    /// What is done to the running machine, after the files.
    pub live: Vec<Live>,
    /// When it may be done, and when it counts.
    pub gate: Gate,
}

/// When a step may be done, and when it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Done by apply, in force at once.
    Now,
    /// Done by apply, in force after a reboot, or sooner when a person types what is given.
    Reboot(Option<&'static str>),
    /// Done by apply only with `--consent`; says what the owner consents to.
    Consent(&'static str),
}

/// One file, before and after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// Where.
    pub path: String,
    /// Whose file it is.
    pub owner: Owner,
    /// What is there.
    pub before: Option<Content>,
    /// What is there afterwards.
    pub after: Content,
    /// The permissions of a file that is new; one that is there keeps its own.
    pub mode: u32,
}

/// Whose file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// It has a name of bramble's: a link there is not followed but refused.
    Bramble,
    /// Somebody else's: the file that a link leads to is edited.
    Other,
}

impl Edit {
    /// Whether it keeps the old content of a boot file.
    pub fn is_copy(&self) -> bool {
        self.path.ends_with(BACKUP)
    }

    /// Whether the firmware reads it.
    pub fn is_boot(&self) -> bool {
        self.path.starts_with("/boot/") && !self.is_copy()
    }
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A file.
    Bytes(Vec<u8>),
    /// A link.
    Link(String),
}

/// What only a person can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// The requirement.
    pub id: &'static str,
    /// What is wrong.
    pub what: String,
    /// What the person does.
    pub next: String,
}

/// The files that a plan edits.
pub trait Files {
    /// What is at a path, links followed or seen; `None` when nothing is.
    fn content(&self, path: &str, owner: Owner) -> Result<Option<Content>, Unreadable>;
    /// Whether this is the running machine.
    fn is_live(&self) -> bool;
}

impl Files for Host {
    fn content(&self, path: &str, owner: Owner) -> Result<Option<Content>, Unreadable> {
        if owner == Owner::Bramble
            && let Some(target) = self.link(path)
        {
            return Ok(Some(Content::Link(target)));
        }
        match self.bytes(path) {
            Ok(bytes) => Ok(Some(Content::Bytes(bytes))),
            // A tree is written as it is: what it does not have is not there. A link may lead to nothing all the same.
            Err(unreadable) if unreadable.is_absence() => Ok(self.link(path).map(Content::Link)),
            Err(unreadable) => Err(unreadable),
        }
    }

    fn is_live(&self) -> bool {
        Host::is_live(self)
    }
}

/// Who reads a file only when it is started again. Neither is restarted by bramble: a restart drops
/// addresses, routes and rules.
const READERS: [(&str, &str); 4] = [
    (
        "/etc/systemd/networkd.conf.d/",
        "sudo systemctl restart systemd-networkd, while the node carries no pods",
    ),
    ("/etc/systemd/network/", "sudo systemctl restart systemd-networkd, while the node carries no pods"),
    ("/etc/NetworkManager/", "sudo systemctl reload NetworkManager"),
    ("/etc/dhcpcd.conf", "sudo systemctl restart dhcpcd, while the node carries no pods"),
];

/// What the name of the copy of a boot file ends with. FAT may lose a file that was being replaced when the
/// power goes: the copy is then beside it.
const BACKUP: &str = ".bramble-backup";

impl Plan {
    /// The plan that mends what was judged.
    pub fn of(judged: &[Judged], facts: &Facts, files: &dyn Files) -> Plan {
        let mut plan = Plan { steps: vec![], left: vec![], person: vec![], waiting: vec![], unknown: vec![] };
        for judged in judged {
            let id = judged.requirement.id;
            let person = || Person { id, what: judged.evidence(), next: judged.next().unwrap_or_default() };
            match judged.state() {
                State::Waiting => plan.waiting.push((id, judged.evidence())),
                State::Unknown => plan.unknown.push(person()),
                State::Blocked => plan.person.push(person()),
                State::Met | State::Unmet | State::NotNeeded => {}
            }
        }
        // What is done, by requirement.
        let mut done = Vec::new();
        for group in groups(judged) {
            let ids = || group.requirements.iter().map(|requirement| requirement.id);
            match group.step(facts, files) {
                Ok(step) if step.is_done(files.is_live()) => {
                    let lines: Vec<String> = step.changes.iter().map(ToString::to_string).collect();
                    done.extend(ids().map(|id| (id, lines.join("; "))));
                }
                Ok(step) if step.edits.is_empty() && !files.is_live() => plan.left.push(step),
                Ok(mut step) => {
                    if !files.is_live() {
                        step.live.clear();
                    }
                    plan.steps.push(step);
                }
                Err(NoStep::Person { what, next }) => {
                    plan.person.extend(ids().map(|id| Person { id, what: what.clone(), next: next.clone() }))
                }
                Err(NoStep::Unreadable(unreadable)) => {
                    let (what, next) = (unreadable.to_string(), unreadable.next());
                    plan.unknown.extend(ids().map(|id| Person { id, what: what.clone(), next: next.clone() }))
                }
            }
        }
        // Where nothing else is to be done for it, the requirement is not met all the same.
        let steps = plan.steps.iter().chain(&plan.left).flat_map(|step| &step.requirements);
        let served: Vec<&str> = steps.map(|requirement| requirement.id).collect();
        done.retain(|(id, _)| !served.contains(id) && plan.person.iter().all(|person| person.id != *id));
        plan.person.extend(done.into_iter().map(|(id, lines)| Person {
            id,
            what: format!("done, and not in force: {lines}"),
            next: "find the file that says otherwise: those whose names sort later overrule it".into(),
        }));
        plan
    }

    /// 0 nothing to do, 1 there is something to do, 2 only a person can, 3 could not tell some.
    pub fn exit_code(&self) -> u8 {
        match self {
            Plan { steps, .. } if !steps.is_empty() => 1,
            Plan { person, .. } if !person.is_empty() => 2,
            Plan { unknown, .. } if !unknown.is_empty() => 3,
            _ => 0,
        }
    }
}

impl Step {
    /// Whether nothing of it is left. A machine that does not run reads its units when it boots.
    fn is_done(&self, is_live: bool) -> bool {
        self.edits.is_empty() && self.live.iter().all(|live| !is_live && *live == Live::ReadUnits)
    }

    /// Whether apply may do it, given what the owner consents to (ids of requirements).
    pub fn allowed(&self, consents: &[String]) -> bool {
        match self.gate {
            Gate::Now | Gate::Reboot(_) => true,
            Gate::Consent(_) => {
                self.requirements.iter().any(|requirement| consents.iter().any(|id| id == requirement.id))
            }
        }
    }
}

/// Changes of one file, or one change without a file.
struct Group {
    file: Option<String>,
    changes: Vec<Change>,
    requirements: Vec<&'static Requirement>,
}

enum NoStep {
    Person { what: String, next: String },
    Unreadable(Unreadable),
}

impl From<Unreadable> for NoStep {
    fn from(unreadable: Unreadable) -> NoStep {
        NoStep::Unreadable(unreadable)
    }
}

/// Merges what goes to one file, each change once, in the order of the requirements; modules first, because
/// settings appear with them.
fn groups(judged: &[Judged]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for judged in judged {
        for change in judged.changes() {
            let file = file(change);
            let known = groups.iter_mut().find(|group| match &file {
                Some(_) => group.file == file,
                None => group.changes.contains(change),
            });
            let group = match known {
                Some(group) => group,
                None => {
                    groups.push(Group { file, changes: vec![], requirements: vec![] });
                    groups.last_mut().expect("one was just pushed")
                }
            };
            if !group.changes.contains(change) {
                group.changes.push(change.clone());
            }
            if !group.requirements.iter().any(|known| known.id == judged.requirement.id) {
                group.requirements.push(judged.requirement);
            }
        }
    }
    groups.sort_by_key(|group| group.file.as_deref() != Some(MODULES_FILE));
    groups
}

/// The file that a change edits.
fn file(change: &Change) -> Option<String> {
    match change {
        Change::WriteFile { path, .. }
        | Change::AddLine { path, .. }
        | Change::AppendToken { path, .. }
        | Change::RemoveToken { path, .. }
        | Change::JoinLines { path }
        | Change::FirmwareSetting { path, .. } => Some(path.to_string()),
        Change::Sysctl { .. } => Some(SYSCTL_FILE.into()),
        Change::LoadModules { .. } => Some(MODULES_FILE.into()),
        Change::MaskUnit { unit } => Some(format!("/etc/systemd/system/{unit}")),
        Change::Mount { .. }
        | Change::ShareMount { .. }
        | Change::EnableUnit { .. }
        | Change::SwapOff { .. } => None,
    }
}

/// What of a change is lost at a reboot.
fn live(change: &Change) -> Vec<Live> {
    match change {
        Change::Sysctl { key, value } => {
            vec![Live::Sysctl { key: key.to_string(), value: value.to_string() }]
        }
        Change::LoadModules { names } => {
            names.iter().map(|name| Live::LoadModule { name: name.to_string() }).collect()
        }
        Change::Mount { kind, point } => {
            vec![Live::Mount { kind: kind.to_string(), point: point.to_string() }]
        }
        Change::ShareMount { point } => vec![Live::ShareMount { point: point.to_string() }],
        Change::SwapOff { path } => vec![Live::SwapOff { path: path.to_string() }],
        Change::EnableUnit { unit } => vec![Live::StartUnit { unit: unit.to_string() }],
        Change::MaskUnit { unit } => vec![Live::StopUnit { unit: unit.to_string() }],
        Change::WriteFile { path, .. } if path.starts_with("/etc/systemd/system/") => vec![Live::ReadUnits],
        Change::WriteFile { .. }
        | Change::AddLine { .. }
        | Change::AppendToken { .. }
        | Change::RemoveToken { .. }
        | Change::JoinLines { .. }
        | Change::FirmwareSetting { .. } => vec![],
    }
}

fn gate(change: &Change) -> Gate {
    match change {
        Change::JoinLines { .. } => Gate::Consent(
            "the firmware has not read the lines after the first: what they say counts from then on",
        ),
        Change::FirmwareSetting { key, .. } if key == "kernel" => Gate::Consent(
            "kernel8.img has pages of 4 KiB and 39 bits of addresses: programs with a jemalloc for 4 KiB run, every \
             Envoy aborts; kernel_2712.img has pages of 16 KiB and 47 bits: the other way round",
        ),
        Change::FirmwareSetting { .. } => Gate::Consent("the firmware starts this machine by that file"),
        Change::MaskUnit { .. } => Gate::Consent("a service that somebody set up is stopped and stays off"),
        Change::SwapOff { .. } => Gate::Consent("what is swapped out must fit into memory"),
        Change::AppendToken { .. } | Change::RemoveToken { .. } => Gate::Reboot(None),
        Change::WriteFile { path, .. } | Change::AddLine { path, .. } => {
            match READERS.iter().find(|(prefix, _)| path.starts_with(prefix)) {
                Some((_, sooner)) => Gate::Reboot(Some(sooner)),
                None => Gate::Now,
            }
        }
        Change::Sysctl { .. }
        | Change::LoadModules { .. }
        | Change::Mount { .. }
        | Change::ShareMount { .. }
        | Change::EnableUnit { .. } => Gate::Now,
    }
}

/// Whether a machine does by itself, when it boots, what is left of a change whose file is written.
pub fn comes_at_boot(change: &Change) -> bool {
    matches!(change, Change::Sysctl { .. } | Change::LoadModules { .. } | Change::MaskUnit { .. })
}

impl Gate {
    /// The stricter of two.
    fn and(self, other: Gate) -> Gate {
        match (self, other) {
            (Gate::Consent(_), _) | (_, Gate::Now) => self,
            (Gate::Reboot(_), Gate::Reboot(_)) => self,
            _ => other,
        }
    }
}

impl Group {
    fn step(&self, facts: &Facts, files: &dyn Files) -> Result<Step, NoStep> {
        let mut edits = match &self.file {
            Some(path) => self.edits(path, facts, files)?,
            None => vec![],
        };
        edits.retain(|edit| edit.before.as_ref() != Some(&edit.after));
        Ok(Step {
            requirements: self.requirements.clone(),
            changes: self.changes.clone(),
            edits,
            live: self.changes.iter().flat_map(live).collect(),
            gate: self.changes.iter().map(gate).fold(Gate::Now, Gate::and),
        })
    }

    fn edits(&self, path: &str, facts: &Facts, files: &dyn Files) -> Result<Vec<Edit>, NoStep> {
        let changes = &self.changes;
        let owner = match changes[0] {
            Change::WriteFile { .. }
            | Change::Sysctl { .. }
            | Change::LoadModules { .. }
            | Change::MaskUnit { .. } => Owner::Bramble,
            _ => Owner::Other,
        };
        let before = files.content(path, owner)?;
        let edit = |before: Option<Content>, after: Vec<u8>| Edit {
            path: path.into(),
            owner,
            before,
            after: Content::Bytes(after),
            mode: 0o644,
        };
        if let Change::MaskUnit { .. } = changes[0] {
            let after = Content::Link("/dev/null".into());
            if before.as_ref().is_some_and(|before| *before != after) {
                return Err(NoStep::Person {
                    what: format!("{path} is a unit of this machine's own, which cannot be masked"),
                    next: format!("move it away (ls -l {path}), then plan again"),
                });
            }
            return Ok(vec![Edit { path: path.into(), owner, before, after, mode: 0o644 }]);
        }
        let bytes = match &before {
            None => None,
            Some(Content::Bytes(bytes)) => Some(bytes.as_slice()),
            Some(Content::Link(target)) => {
                let why = match owner {
                    Owner::Bramble => "and bramble writes no file through a link of that name",
                    Owner::Other => "where nothing is",
                };
                return Err(NoStep::Person {
                    what: format!("{path} is a link to {target}, {why}"),
                    next: format!("sudo rm {path}, then plan again"),
                });
            }
        };
        let sysctls = changes.iter().filter_map(|change| match change {
            Change::Sysctl { key, value } => Some((key.as_ref(), value.as_ref())),
            _ => None,
        });
        let modules = changes.iter().filter_map(|change| match change {
            Change::LoadModules { names } => Some(names.as_slice()),
            _ => None,
        });
        let present = bytes.unwrap_or_default();
        match &changes[0] {
            Change::Sysctl { .. } => Ok(vec![edit(before.clone(), edit::settings(bytes, sysctls))]),
            Change::LoadModules { .. } => {
                Ok(vec![edit(before.clone(), edit::modules(bytes, modules.flatten().map(AsRef::as_ref)))])
            }
            Change::WriteFile { content, .. } => Ok(vec![edit(before.clone(), content.as_bytes().to_vec())]),
            Change::AddLine { .. } => {
                let mut after = present.to_vec();
                for change in changes {
                    if let Change::AddLine { line, .. } = change {
                        after = edit::line_at_top(&after, line);
                    }
                }
                Ok(vec![edit(before.clone(), after)])
            }
            _ if path == EXTRA => {
                let after = edit::extra_arguments(present, changes).map_err(|why| NoStep::Person {
                    what: format!("{path} cannot be edited safely: {why}"),
                    next: format!("sudoedit {path}, then plan again"),
                })?;
                Ok(vec![edit(before.clone(), after)])
            }
            _ => {
                let after = self.boot(path, present, facts)?;
                let mut edits = Vec::new();
                if after != present {
                    let copy = format!("{path}{BACKUP}");
                    edits.push(Edit {
                        before: files.content(&copy, Owner::Bramble)?,
                        path: copy,
                        owner: Owner::Bramble,
                        after: Content::Bytes(present.to_vec()),
                        mode: 0o644,
                    });
                }
                edits.push(edit(before.clone(), after));
                Ok(edits)
            }
        }
    }

    /// cmdline.txt or config.txt.
    fn boot(&self, path: &str, bytes: &[u8], facts: &Facts) -> Result<Vec<u8>, NoStep> {
        let settings = self.changes.iter().filter_map(|change| match change {
            Change::FirmwareSetting { key, value, .. } => Some((key.as_ref(), value.as_ref())),
            _ => None,
        });
        let mut edited = bytes.to_vec();
        let mut cmdline = true;
        for (key, value) in settings {
            cmdline = false;
            edited = edit::firmware_setting(&edited, key, value);
        }
        if cmdline {
            let running = facts.cmdline.as_ref().map_err(Unreadable::from)?.length();
            edited = edit::boot_line(bytes, &self.changes, running).map_err(|why| NoStep::Person {
                what: format!("{path} cannot be edited safely: {why}"),
                next: format!("sudoedit {path}, then plan again"),
            })?;
        }
        Ok(edited)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::require::{Finding, REQUIREMENTS};

    /// Files by path, of a machine that runs.
    struct Texts(BTreeMap<&'static str, &'static str>);

    impl Files for Texts {
        fn content(&self, path: &str, _: Owner) -> Result<Option<Content>, Unreadable> {
            Ok(self.0.get(path).map(|text| Content::Bytes(text.as_bytes().to_vec())))
        }

        fn is_live(&self) -> bool {
            true
        }
    }

    fn plan(wanted: &[Vec<Change>], files: &[(&'static str, &'static str)]) -> Plan {
        let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/hosts/pi5-bookworm-16k");
        let facts = Facts::observe(&Host::tree(&tree).unwrap());
        let judged: Vec<Judged> = wanted
            .iter()
            .zip(REQUIREMENTS)
            .map(|(changes, requirement)| Judged {
                requirement,
                verdict: Ok(Finding::Unmet { what: String::new(), changes: changes.clone() }),
            })
            .collect();
        Plan::of(&judged, &facts, &Texts(files.iter().copied().collect()))
    }

    fn sysctl(key: &'static str) -> Change {
        Change::Sysctl { key: key.into(), value: "1".into() }
    }

    #[test]
    fn what_goes_to_one_file_is_one_step_and_modules_come_before_their_settings() {
        let modules = |name: &'static str| Change::LoadModules { names: vec![name.into()] };
        let plan = plan(
            &[vec![sysctl("a")], vec![modules("ipv6"), sysctl("b")], vec![modules("ipv6"), sysctl("a")]],
            &[(SYSCTL_FILE, "# by hand\n")],
        );
        let [modules, settings] = &plan.steps[..] else { panic!("{plan:?}") };
        assert_eq!((modules.changes.len(), modules.requirements.len()), (1, 2));
        assert_eq!((settings.changes.len(), settings.requirements.len()), (2, 3));
        let [edit] = &settings.edits[..] else { panic!("{settings:?}") };
        assert_eq!(edit.after, Content::Bytes(b"# by hand\na = 1\nb = 1\n".to_vec()));
        assert_eq!(plan.exit_code(), 1);
    }

    #[test]
    fn a_setting_that_its_file_has_is_set_in_the_kernel_alone() {
        let plan = plan(&[vec![sysctl("a")]], &[(SYSCTL_FILE, "a = 1\n")]);
        assert!(plan.steps[0].edits.is_empty());
        assert_eq!(plan.steps[0].live, [Live::Sysctl { key: "a".into(), value: "1".into() }]);
    }

    #[test]
    fn the_strictest_gate_of_a_file_is_the_gate_of_its_step() {
        let path = || "/boot/firmware/cmdline.txt".into();
        let wanted = vec![
            Change::AppendToken { path: path(), token: "psi=1".into() },
            Change::JoinLines { path: path() },
        ];
        let plan = plan(&[wanted], &[("/boot/firmware/cmdline.txt", "a\nb\n")]);
        let [step] = &plan.steps[..] else { panic!("{plan:?}") };
        assert!(matches!(step.gate, Gate::Consent(_)));
        assert!(!step.allowed(&[]) && step.allowed(&[REQUIREMENTS[0].id.to_owned()]));
        let [copy, line] = &step.edits[..] else { panic!("{step:?}") };
        assert_eq!(copy.after, Content::Bytes(b"a\nb\n".to_vec()));
        assert!(copy.is_copy() && line.is_boot());
        assert_eq!(line.after, Content::Bytes(b"a b psi=1\n".to_vec()));
    }

    #[test]
    fn debians_list_of_arguments_is_no_boot_file_and_may_be_missing() {
        let wanted = || vec![Change::AppendToken { path: EXTRA.into(), token: "psi=1".into() }];
        for (before, after) in [(None, "psi=1\n"), (Some("a=1"), "a=1 psi=1\n")] {
            let files: Vec<_> = before.map(|text| (EXTRA, text)).into_iter().collect();
            let plan = plan(&[wanted()], &files);
            let [edit] = &plan.steps[0].edits[..] else { panic!("{plan:?}") };
            assert_eq!(
                (edit.path.as_str(), &edit.after),
                (EXTRA, &Content::Bytes(after.as_bytes().to_vec()))
            );
        }
        let plan = plan(&[wanted()], &[(EXTRA, "a=1\nb=2\n")]);
        assert!(plan.steps.is_empty() && plan.person[0].what.contains("2 lines"), "{plan:?}");
    }
}
