//! The pre-flight: looks at the token, the server and the node before anything is started, and names each cause.
//!
//! First everything is gathered ([`gather`]), then every examination judges what was gathered; the judges are pure. What
//! `bramble check` knows already is judged by its requirements, and shown here when it stands in K3s' way.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use nix::unistd::geteuid;
use serde_json::Value;

use super::token::{Kind, Token};
use super::{configuration, path};
use crate::config::Config;
use crate::config::cluster::{Profile, Range};
use crate::config::k3s::Role;
use crate::facts::{Facts, drop_in};
use crate::fit::{self, Feature, Fit};
use crate::host::disk::SyncTimes;
use crate::host::http::{Tls, Trouble, Url, base64};
use crate::host::{Host, Unreadable, Why, clock};
use crate::require::{self, Area, Judged, REQUIREMENTS, Requirement, State};

pub mod server;

use server::{Conversation, Guest};

/// One thing that is looked at.
#[derive(Debug)]
pub struct Examination {
    /// Kebab-case, never changed.
    pub id: &'static str,
    /// What holds when it is good, as a sentence without a full stop.
    pub title: &'static str,
    /// What goes wrong when it is not.
    pub why: &'static str,
    /// Where that is known from.
    pub source: &'static str,
    judge: fn(&Evidence) -> Verdict,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It holds; what shows it.
    Good(String),
    /// It works, and may not for long, or not as it seems.
    Warned {
        /// What is doubtful.
        what: String,
        /// What to do about it.
        next: String,
    },
    /// K3s would fail: the cause, and the one next step.
    Wrong {
        /// The cause.
        what: String,
        /// The step.
        next: String,
    },
    /// Could not be told, and why.
    Unknown(String),
    /// Does not matter here, or cannot be asked before something else is mended.
    NotNeeded(String),
}

/// One examination with its verdict.
#[derive(Debug)]
pub struct Examined {
    /// Of the examination, or of the requirement.
    pub id: &'static str,
    /// Of the examination, or of the requirement.
    pub title: &'static str,
    /// Of the examination, or of the requirement.
    pub why: &'static str,
    /// What came of it.
    pub verdict: Verdict,
}

/// A file with a token in it.
#[derive(Debug)]
pub struct TokenFile {
    /// What stands in it.
    pub text: String,
    /// Who may read or write it besides its owner: the bits of its mode.
    pub others: u32,
    /// Its owner, when that is neither root nor whoever looks.
    pub stranger: Option<u32>,
}

/// All that is known.
#[derive(Debug)]
pub struct Evidence {
    /// What the node is to become.
    pub role: Role,
    /// The file that holds the token, as a path.
    pub token_file: String,
    /// Its content, and who may read it.
    pub token: Result<TokenFile, Unreadable>,
    /// The node's name.
    pub name: Result<String, Unreadable>,
    /// Whether K3s keeps a password for the name here.
    pub has_password: Result<bool, Unreadable>,
    /// Ranges that the cluster is to have.
    pub ranges: [(Range, &'static str); 2],
    /// What this node, as a server beside others, would have of that which all must have alike: the setting, its name in
    /// what a server tells, its value. Empty for other roles, and where the settings are refused when they are made.
    pub alike: Vec<(&'static str, &'static str, String)>,
    /// Whether the cluster's network is Cilium.
    pub cilium: bool,
    /// The time, and whether somebody keeps it right.
    pub now: Timestamp,
    /// Whether the clock is synchronised.
    pub clock_is_kept: Result<bool, Unreadable>,
    /// What the server said; `None` = there is none to ask.
    pub conversation: Option<Conversation>,
    /// How long the disk takes; `None` = nobody asks for it.
    pub disk: Option<Result<SyncTimes, Unreadable>>,
    /// Longest time that logind lets somebody hold a shutdown up, as its own files say; `None` = its default of 5 s.
    pub inhibit: Result<Option<Duration>, Unreadable>,
    /// How long the kubelet is to hold it up.
    pub shutdown: Duration,
}

/// All examinations, in their order.
pub const EXAMINATIONS: &[Examination] = &[
    Examination {
        id: "token-file",
        title: "the token can be read, and by its owner alone",
        why: "who reads the token can join the cluster, and as a server read every secret in it",
        source: "k3s-io/docs cli/token",
        judge: token_file,
    },
    Examination {
        id: "token",
        title: "the token is well-formed",
        why: "K3s ends with \"invalid token format\", or asks for ever with a password that nobody has",
        source: "k3s-io/k3s pkg/clientaccess/token.go",
        judge: token,
    },
    Examination {
        id: "token-kind",
        title: "a node of this role can join by this token",
        why: "the servers answer 401 or 403, and K3s asks again for ever",
        source: "k3s-io/docs cli/token; k3s-io/k3s pkg/server/auth",
        judge: token_kind,
    },
    Examination {
        id: "server-mdns",
        title: "the server's name is one that DNS knows",
        why: "K3s does not ask mDNS: \"failed to get CA certs\" after a restart, although ping finds the name",
        source: "geerlingguy/pi-cluster#11; k3s-io/k3s#9748, #1395",
        judge: server_mdns,
    },
    Examination {
        id: "server-resolves",
        title: "the server's name has an address",
        why: "K3s asks again for ever: \"no such host\"",
        source: "k3s-io/k3s pkg/clientaccess/token.go",
        judge: server_resolves,
    },
    Examination {
        id: "server-route",
        title: "there is a way to the server",
        why: "K3s asks again for ever: \"network is unreachable\"",
        source: "k3s-io/k3s pkg/clientaccess/token.go",
        judge: server_route,
    },
    Examination {
        id: "server-host",
        title: "a machine answers at the server's address",
        why: "K3s asks again for ever: \"no route to host\"",
        source: "k3s-io/k3s pkg/clientaccess/token.go",
        judge: server_host,
    },
    Examination {
        id: "server-listens",
        title: "the server's port is open",
        why: "K3s asks again for ever: \"connection refused\"",
        source: "k3s-io/docs installation/requirements",
        judge: server_listens,
    },
    Examination {
        id: "server-answers",
        title: "the server answers in time",
        why: "a firewall drops what is sent, or the server has no strength left: K3s asks again for ever",
        source: "k3s-io/docs installation/requirements",
        judge: server_answers,
    },
    Examination {
        id: "server-tls",
        title: "the server speaks TLS",
        why: "a proxy or another service stands on the port: no K3s answers there",
        source: "k3s-io/k3s pkg/clientaccess/token.go",
        judge: server_tls,
    },
    Examination {
        id: "server-k3s",
        title: "what answers is a server of K3s",
        why: "a proxy, or an API server without K3s' supervisor, stands there: \"failed to get CA certs\"",
        source: "k3s-io/k3s pkg/clientaccess/token.go",
        judge: server_k3s,
    },
    Examination {
        id: "certificate-not-yet-valid",
        title: "the clock has reached the moment from which the server's certificates count",
        why: "a Raspberry Pi has no clock that runs while it is off: \"x509: certificate is not yet valid\"",
        source: "siderolabs/talos#3122; k3s-io/docs cli/certificate",
        judge: not_yet_valid,
    },
    Examination {
        id: "certificate-expired",
        title: "the server's certificates have not expired",
        why: "nobody can join, and the nodes that are there fall out one by one",
        source: "k3s-io/docs cli/certificate",
        judge: expired,
    },
    Examination {
        id: "certificate-name",
        title: "the server's certificate is for the name or address that is asked",
        why: "K3s refuses it: \"x509: certificate is valid for ..., not ...\"",
        source: "k3s-io/docs cli/server (tls-san)",
        judge: certificate_name,
    },
    Examination {
        id: "certificate-chain",
        title: "the server's certificate was signed by what it serves as its own",
        why: "somebody stands between, or the server's certificates were changed by half: \"CA cert validation failed\"",
        source: "k3s-io/k3s pkg/clientaccess/token.go",
        judge: certificate_chain,
    },
    Examination {
        id: "certificate-public",
        title: "the token's pin is what the server is known by",
        why: "a certificate that every browser believes proves the name, and not that it is your cluster",
        source: "k3s-io/k3s pkg/clientaccess/token.go",
        judge: certificate_public,
    },
    Examination {
        id: "token-pin",
        title: "the server's certificates are those that the token names",
        why: "K3s gives up: \"token CA hash does not match the Cluster CA certificate hash\"",
        source: "k3s-io/k3s pkg/clientaccess/token.go",
        judge: token_pin,
    },
    Examination {
        id: "server-ready",
        title: "the server is ready for others",
        why: "it is starting, or has lost its datastore: who joins now waits for it",
        source: "k3s-io/k3s pkg/server/handlers",
        judge: server_ready,
    },
    Examination {
        id: "token-accepted",
        title: "the server takes the token",
        why: "the servers answer 401, and K3s asks again for ever",
        source: "k3s-io/k3s pkg/server/auth",
        judge: token_accepted,
    },
    Examination {
        id: "node-name",
        title: "the node's name is free, or its own",
        why: "\"Node password rejected\": the servers keep what a node of this name showed them first",
        source: "k3s-io/k3s#663, #746, #802, #6054",
        judge: node_name,
    },
    Examination {
        id: "cluster-network",
        title: "the cluster runs without Flannel and kube-proxy, and its ranges are those that are written here",
        why: "two networks would make the pods' traffic take two ways; a server with other values is refused: \"critical \
              configuration value mismatch\"",
        source: "k3s-io/docs cli/server (critical configuration values)",
        judge: cluster_network,
    },
    Examination {
        id: "disk-sync",
        title: "the disk is quick enough for the cluster's state",
        why: "etcd waits for the disk at every write: leader elections are lost, and K3s restarts",
        source: "etcd.io docs faq, tuning; k3s-io/docs datastore/ha-embedded",
        judge: disk_sync,
    },
    Examination {
        id: "shutdown-delay",
        title: "logind lets the kubelet hold a shutdown up for long enough",
        why: "pods are killed in the middle of their work when the machine is shut down or reboots",
        source: "Kubernetes docs cluster-administration/node-shutdown; logind.conf(5)",
        judge: shutdown_delay,
    },
];

/// What the server is asked, and the time that may be spent on the disk.
const DISK_TEST: Duration = Duration::from_secs(5);

/// Looks at everything once: reads the host, talks to the server, times the disk of a server to be. Where the node is not
/// `about_to_join`, nothing is changed anywhere.
pub async fn gather(
    host: &Host,
    facts: &Facts,
    config: &Config,
    role: &Role,
    token_file: &str,
    about_to_join: bool,
) -> Evidence {
    let token = host.text(token_file).and_then(|text| {
        let owner = host.owner(token_file)?;
        let stranger = (![0, geteuid().as_raw()].contains(&owner)).then_some(owner);
        Ok(TokenFile { text, others: host.mode(token_file)? & 0o077, stranger })
    });
    let name = super::node_name(facts, Some(&config.k3s));
    let parsed = token.as_ref().ok().and_then(|file| Token::parse(&file.text).ok());
    let password = about_to_join.then(|| host.text(path::NODE_PASSWORD).ok()).flatten();
    let password = password.map(|text| text.trim().to_owned());
    let conversation = match role.server() {
        None => None,
        Some(url) => {
            let node = name.as_deref().ok().zip(password.as_deref().filter(|text| !text.is_empty()));
            Some(server::talk(url, &Guest { role, token: parsed.as_ref(), node }).await)
        }
    };
    Evidence {
        role: role.clone(),
        token_file: token_file.into(),
        token,
        name,
        has_password: facts.k3s.has_password.clone(),
        ranges: [(config.cluster.pods, "pods"), (config.cluster.services, "services")],
        alike: alike(host, config, role, token_file),
        cilium: config.cluster.cilium,
        now: clock::now(),
        clock_is_kept: host.clock_error().map(|error| error.is_some()),
        conversation,
        disk: role.is_server().then(|| host.sync_times(&existing(host, path::DATA), DISK_TEST)),
        inhibit: inhibit(host),
        shutdown: config.k3s.shutdown,
    }
}

fn alike(
    host: &Host,
    config: &Config,
    role: &Role,
    token_file: &str,
) -> Vec<(&'static str, &'static str, String)> {
    let (Role::Server(_), Some(version)) = (role, &config.k3s.version) else { return vec![] };
    match (configuration::settings(config, role, version, token_file), configuration::existing(host)) {
        (Ok(settings), Ok(existing)) => configuration::alike(&settings, &existing),
        _ => vec![],
    }
}

/// The nearest directory above a path that exists.
fn existing(host: &Host, path: &str) -> String {
    let mut path = path;
    while host.present(path) != Ok(true) && path.len() > 1 {
        path = path.rsplit_once('/').map_or("/", |(above, _)| if above.is_empty() { "/" } else { above });
    }
    path.into()
}

/// What logind's files say of `InhibitDelayMaxSec=`; of several the last one counts.
fn inhibit(host: &Host) -> Result<Option<Duration>, Unreadable> {
    let mut delay = None;
    for (path, text) in drop_in::of_systemd(host, "logind")? {
        let said = drop_in::settings(&text, "[Login]").filter(|(key, _)| *key == "InhibitDelayMaxSec").last();
        if let Some((_, value)) = said {
            delay = Some(span(value).ok_or_else(|| Unreadable::malformed(&path, "a time"))?);
        }
    }
    Ok(delay)
}

/// A time as systemd writes it: seconds without a unit.
fn span(text: &str) -> Option<Duration> {
    let text = match text.parse::<u64>() {
        Ok(seconds) => return Some(Duration::from_secs(seconds)),
        Err(_) => text.replace("min", "m"),
    };
    text.parse::<jiff::SignedDuration>().ok()?.try_into().ok()
}

/// Whether an examination has this id.
pub fn examines(id: &str) -> bool {
    EXAMINATIONS.iter().any(|one| one.id == id)
}

/// Judges what was gathered; `accept` names what the owner knows and accepts.
pub fn examine(evidence: &Evidence, accept: &[String]) -> Vec<Examined> {
    EXAMINATIONS
        .iter()
        .map(|one| {
            let verdict = match (one.judge)(evidence) {
                Verdict::Wrong { what, .. } if accept.iter().any(|id| id == one.id) => {
                    Verdict::NotNeeded(format!("accepted by configuration: {what}"))
                }
                verdict => verdict,
            };
            Examined { id: one.id, title: one.title, why: one.why, verdict }
        })
        .collect()
}

/// What `bramble check` finds that stands in K3s' way, and whether the kernel is fit: requirements that are not met.
pub fn requirements(host: &Host, facts: &Facts, config: &Config) -> Vec<Examined> {
    let examined = |judged: Judged| {
        let evidence = judged.evidence();
        let verdict = match (judged.state(), stops(judged.requirement)) {
            (State::Unmet, true) => Verdict::Wrong {
                what: evidence,
                next: "sudo bramble apply, which mends it; then join again".into(),
            },
            (State::Blocked, true) => {
                Verdict::Wrong { what: evidence, next: judged.next().unwrap_or_default() }
            }
            (State::Waiting, true) => Verdict::Wrong {
                what: evidence,
                next: format!("wait for it, or look: bramble check --explain {}", judged.requirement.id),
            },
            (State::Unmet | State::Blocked | State::Waiting, false) => Verdict::Warned {
                what: evidence,
                next: format!("bramble check --explain {}", judged.requirement.id),
            },
            (State::Unknown, _) => Verdict::Unknown(evidence),
            (State::Met, _) => Verdict::Good(evidence),
            (State::NotNeeded, _) => Verdict::NotNeeded(evidence),
        };
        let Requirement { id, title, why, .. } = judged.requirement;
        Examined { id, title, why, verdict }
    };
    let mut required: Vec<Examined> = require::judge(REQUIREMENTS, facts, config).map(examined).collect();
    required.push(kernel_fit(&fit::judge(&fit::observe(host, facts), &config.cluster)));
    required
}

/// Which wanted settings of Cilium, Istio and K3s will not work on this kernel. What K3s and Cilium cannot do without is a
/// requirement of its own, so this only warns.
fn kernel_fit(features: &[Feature]) -> Examined {
    let named = |wanted: fn(&Fit) -> bool| -> Vec<String> {
        let of = features.iter().filter(|feature| feature.wanted && wanted(&feature.fit));
        of.map(|feature| format!("{}: {}", feature.setting.key, feature.setting.value)).collect()
    };
    let not = named(|fit| matches!(fit, Fit::WorksNot { .. }));
    let unknown = named(|fit| matches!(fit, Fit::Unknown(_)));
    let verdict = match (not.is_empty(), unknown.is_empty()) {
        (false, _) => warned(not.join(", "), "sudo bramble check --fit tells why, and what works instead"),
        (true, false) => Verdict::Unknown(format!("{}: sudo bramble check --fit", unknown.join(", "))),
        (true, true) => good("all that [cluster] asks for"),
    };
    Examined {
        id: "kernel-fit",
        title: "the wanted settings of Cilium and Istio work on this kernel",
        why: "a part of them does not come up on this node, or falls back to something slower",
        verdict,
    }
}

/// Whether a node that does not meet it would fail in K3s or in its network. What others need, bramble among them, does
/// not stop a join, and neither does what `server-mdns` and `certificate-not-yet-valid` judge from what the server says.
fn stops(requirement: &Requirement) -> bool {
    const OTHERS: [&str; 8] = [
        "address-ranges",
        "default-route",
        "hostname",
        "k3s-network",
        "machine-id",
        "nm-cloud-setup",
        "ports",
        "root-file-system",
    ];
    let area = matches!(requirement.area, Area::Kernel | Area::Boot | Area::Mount | Area::Migration);
    let others = [Profile::Node, Profile::Longhorn, Profile::Flux, Profile::Ambient];
    let asked = requirement.profiles.iter().any(|profile| !others.contains(profile));
    area && asked || OTHERS.contains(&requirement.id) || requirement.id == "leftover-cilium"
}

fn good(what: impl Into<String>) -> Verdict {
    Verdict::Good(what.into())
}

fn wrong(what: impl Into<String>, next: impl Into<String>) -> Verdict {
    Verdict::Wrong { what: what.into(), next: next.into() }
}

fn warned(what: impl Into<String>, next: impl Into<String>) -> Verdict {
    Verdict::Warned { what: what.into(), next: next.into() }
}

fn not_needed(why: impl Into<String>) -> Verdict {
    Verdict::NotNeeded(why.into())
}

fn first_server() -> Verdict {
    not_needed("this server begins the cluster, and asks no other")
}

impl Evidence {
    /// The token, where it is one.
    fn parsed(&self) -> Option<Token> {
        self.token.as_ref().ok().and_then(|file| Token::parse(&file.text).ok())
    }

    /// What the examinations of the server need: whom, and what was said.
    fn asked(&self) -> Option<(&Url, &Conversation)> {
        self.role.server().zip(self.conversation.as_ref())
    }

    /// Judges one step of the way to the server's certificates: `wrong` says what it means that the way ended there.
    fn way(&self, step: Step, wrong: impl Fn(&Url, &Trouble) -> Verdict) -> Verdict {
        let Some((url, said)) = self.asked() else { return first_server() };
        match &said.cacerts {
            Err(trouble) if Step::of(trouble) == step => wrong(url, trouble),
            Err(trouble) if Step::of(trouble) < step => not_needed("the server was not reached so far"),
            _ => good(url.origin()),
        }
    }
}

/// The way to a server's certificates, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Name,
    Route,
    Host,
    Port,
    Time,
    Tls,
    K3s,
}

impl Step {
    /// Where the way ended.
    fn of(trouble: &Trouble) -> Step {
        match trouble {
            Trouble::Name { .. } => Step::Name,
            Trouble::NoRoute { .. } => Step::Route,
            Trouble::NoHost { .. } => Step::Host,
            Trouble::Refused { .. } => Step::Port,
            Trouble::TimeOut { .. } => Step::Time,
            Trouble::Tls(Tls::NotTls) | Trouble::Cut("during the TLS handshake") => Step::Tls,
            _ => Step::K3s,
        }
    }
}

fn token_file(evidence: &Evidence) -> Verdict {
    let file = &evidence.token_file;
    match &evidence.token {
        Ok(TokenFile { others: 0, stranger: None, .. }) => {
            good(format!("{file}, readable by its owner alone"))
        }
        Ok(TokenFile { others: 0, stranger: Some(owner), .. }) => wrong(
            format!("{file} belongs to the user {owner}, who can read and write it"),
            format!("sudo chown root: {file}"),
        ),
        Ok(TokenFile { others, .. }) => wrong(
            format!("{file} can be read or written by others (mode {others:03o} beyond its owner)"),
            format!("sudo chmod 600 {file}"),
        ),
        Err(Unreadable { why: Why::Missing, .. }) => wrong(
            format!("there is no {file}"),
            match evidence.role {
                Role::First => format!(
                    "choose a password and write it there: sudo sh -c 'umask 077; openssl rand -hex 16 > {file}'"
                ),
                _ => format!(
                    "copy /var/lib/rancher/k3s/server/token of a server there, then: sudo chmod 600 {file}"
                ),
            },
        ),
        Err(Unreadable { why: Why::Denied, .. }) => {
            Verdict::Unknown(format!("{file} is not for everybody's eyes: run it as root, with sudo"))
        }
        Err(unreadable) => wrong(unreadable.to_string(), format!("look at it: ls -ld {file}")),
    }
}

fn token(evidence: &Evidence) -> Verdict {
    let Ok(TokenFile { text, .. }) = &evidence.token else { return not_needed("the token was not read") };
    let next = match evidence.role {
        Role::First => "write a password of your own into it, one word",
        _ => "copy it again from a server, whole and in one line: sudo cat /var/lib/rancher/k3s/server/token",
    };
    match Token::parse(text) {
        Ok(token) => good(match (token.kind(), token.pin.is_some()) {
            (Kind::Bootstrap, true) => "a bootstrap token with the pin of the cluster",
            (Kind::Bootstrap, false) => "a bootstrap token without a pin",
            (_, true) => "with the pin of the cluster",
            (_, false) => "a password without a pin",
        }),
        Err(malformed) => wrong(format!("{}: {malformed}", evidence.token_file), next),
    }
}

fn token_kind(evidence: &Evidence) -> Verdict {
    let Some(token) = evidence.parsed() else { return not_needed("there is no token to look at") };
    let servers = "sudo cat /var/lib/rancher/k3s/server/token on a server shows one that is good for both";
    match (&evidence.role, token.kind()) {
        (Role::First, Kind::Short) => good("a password, as the first server needs it"),
        (Role::First, _) if token.pin.is_none() && token.kind() != Kind::Bootstrap => good("a password"),
        (Role::First, _) => wrong(
            "it names the certificates of a cluster, and this server is to begin one that has none yet",
            format!(
                "write a plain password into {}, or set k3s.server to join that cluster",
                evidence.token_file
            ),
        ),
        (Role::Server(_), Kind::Bootstrap) => wrong("a bootstrap token lets in agents alone", servers),
        (Role::Server(_), Kind::Node) => wrong("an agent's token lets in agents alone", servers),
        (Role::Server(_) | Role::Agent(_), Kind::Short) if !evidence.is_public() => warned(
            "it has no pin: whoever answers at the server's address is believed, and gets the token",
            servers,
        ),
        (role, _) => good(format!("good for a node that becomes {}", role.name())),
    }
}

impl Evidence {
    fn is_public(&self) -> bool {
        self.conversation.as_ref().is_some_and(|said| said.is_public)
    }
}

fn server_mdns(evidence: &Evidence) -> Verdict {
    match evidence.role.server() {
        None => first_server(),
        Some(url) if url.host().trim_end_matches('.').ends_with(".local") => warned(
            format!("{} is a name of mDNS, which K3s does not ask", url.host()),
            "write the server's address, or a name that your DNS server knows, into k3s.server",
        ),
        Some(url) => good(url.host()),
    }
}

fn server_resolves(evidence: &Evidence) -> Verdict {
    evidence.way(Step::Name, |url, trouble| {
        let host = url.host();
        wrong(
            trouble.to_string(),
            format!("look for it: getent hosts {host}; or write the server's address into k3s.server"),
        )
    })
}

fn server_route(evidence: &Evidence) -> Verdict {
    evidence.way(Step::Route, |url, trouble| {
        wrong(
            trouble.to_string(),
            format!("connect the network, or mend the route: ip route get {}", url.host()),
        )
    })
}

fn server_host(evidence: &Evidence) -> Verdict {
    evidence.way(Step::Host, |url, trouble| {
        wrong(
            trouble.to_string(),
            format!("look whether the server is on and has this address: ping {}", url.host()),
        )
    })
}

fn server_listens(evidence: &Evidence) -> Verdict {
    evidence.way(Step::Port, |url, trouble| {
        let next = match url.port() {
            443 => "write K3s' port behind the server's name: https://...:6443",
            _ => "look whether K3s runs there: systemctl status k3s, on the server",
        };
        wrong(trouble.to_string(), next)
    })
}

fn server_answers(evidence: &Evidence) -> Verdict {
    evidence.way(Step::Time, |url, trouble| {
        wrong(
            trouble.to_string(),
            format!("let TCP {} through the firewalls between here and {}", url.port(), url.host()),
        )
    })
}

fn server_tls(evidence: &Evidence) -> Verdict {
    evidence.way(Step::Tls, |url, _| {
        wrong(
            format!("{} answers, and not in TLS", url.origin()),
            "look what listens there: sudo ss -lntp, on the server; K3s listens on 6443",
        )
    })
}

fn server_k3s(evidence: &Evidence) -> Verdict {
    evidence.way(Step::K3s, |url, trouble| {
        wrong(
            format!("{}: {trouble}", url.at("/cacerts")),
            "write the address of a K3s server itself, or of a proxy that passes TLS on unopened",
        )
    })
}

/// The dates of all certificates, where they are known.
fn dates(evidence: &Evidence) -> Option<(Timestamp, Timestamp)> {
    evidence.conversation.as_ref()?.validity
}

/// How the handshake ended that believed the server's own certificates.
fn verified(evidence: &Evidence) -> Option<&Result<(), Trouble>> {
    evidence.conversation.as_ref()?.verified.as_ref()
}

/// Nothing is known of certificates: the reason.
fn no_certificates(evidence: &Evidence) -> Verdict {
    match evidence.asked() {
        None => first_server(),
        Some((_, said)) if said.is_public => good("the system believes the server's certificate"),
        Some(_) => not_needed("the server has shown no certificates so far"),
    }
}

fn not_yet_valid(evidence: &Evidence) -> Verdict {
    let refused = matches!(verified(evidence), Some(Err(Trouble::Tls(Tls::NotYetValid { .. }))));
    let Some((from, _)) = dates(evidence) else { return no_certificates(evidence) };
    if from <= evidence.now && !refused {
        return good(format!("they count from {from} on"));
    }
    let what = format!("they count from {from} on, and here it is {}", evidence.now.strftime("%FT%TZ"));
    match &evidence.clock_is_kept {
        Ok(true) => wrong(
            what,
            "set the server's clock right, which has made certificates of the future: timedatectl",
        ),
        _ => wrong(
            what,
            "let the clock be set: systemctl status systemd-timesyncd (or chrony); timedatectl shows it",
        ),
    }
}

fn expired(evidence: &Evidence) -> Verdict {
    let refused = matches!(verified(evidence), Some(Err(Trouble::Tls(Tls::Expired { .. }))));
    let Some((_, until)) = dates(evidence) else { return no_certificates(evidence) };
    if until >= evidence.now && !refused {
        return good(format!("they count until {until}"));
    }
    wrong(
        format!("one of them counted until {until}, and here it is {}", evidence.now.strftime("%FT%TZ")),
        "restart K3s on the server, which renews them: sudo systemctl restart k3s (or set this clock: timedatectl)",
    )
}

fn certificate_name(evidence: &Evidence) -> Verdict {
    match verified(evidence) {
        None => no_certificates(evidence),
        Some(Err(Trouble::Tls(Tls::OtherName { asked, named }))) => wrong(
            match named.is_empty() {
                true => format!("it is not for {asked}"),
                false => format!("it is for {}, and not for {asked}", named.join(", ")),
            },
            format!(
                "ask by one of these names, or add tls-san: {asked} on the servers and restart K3s there"
            ),
        ),
        Some(_) => good("it is for the name that is asked"),
    }
}

fn certificate_chain(evidence: &Evidence) -> Verdict {
    match verified(evidence) {
        None => no_certificates(evidence),
        Some(Err(Trouble::Tls(Tls::UnknownIssuer | Tls::Other(_)))) => wrong(
            "what the server serves as its certificates has not signed the one it shows",
            "find what answers in its place: a proxy that opens TLS; or rotate the server's certificates whole: k3s \
             certificate",
        ),
        Some(Err(Trouble::Tls(_))) | Some(Ok(())) => good("it was"),
        Some(Err(trouble)) => {
            wrong(trouble.to_string(), "look at the server, then join again: systemctl status k3s")
        }
    }
}

fn certificate_public(evidence: &Evidence) -> Verdict {
    match (evidence.asked(), evidence.parsed().and_then(|token| token.pin)) {
        (None, _) => first_server(),
        (Some((url, said)), Some(_)) if said.is_public => warned(
            format!(
                "the system believes the certificate of {}, so K3s does not look at the token's pin",
                url.host()
            ),
            "join a server by its own name or address instead of what stands before it, if that was not meant",
        ),
        (Some((_, said)), _) if said.is_public => good("the system believes the server's certificate"),
        (Some((_, said)), _) if said.cacerts.is_err() => no_certificates(evidence),
        _ => good("no public certificate stands in its place"),
    }
}

fn token_pin(evidence: &Evidence) -> Verdict {
    let Some((_, said)) = evidence.asked() else { return first_server() };
    let Some(pin) = evidence.parsed().and_then(|token| token.pin) else {
        return not_needed("the token has no pin");
    };
    match &said.pin {
        _ if said.is_public => {
            not_needed("K3s does not look at it: the system believes the server's certificate")
        }
        _ if said.cacerts.is_err() => not_needed("the server has shown no certificates so far"),
        Some(served) if *served == pin => good(pin),
        Some(served) => wrong(
            format!("the token is for certificates that hash to {pin}, and the server's hash to {served}"),
            "take the token of this cluster: sudo cat /var/lib/rancher/k3s/server/token, on the server; if it is the same \
             one, somebody else answers at the server's address",
        ),
        None => wrong(
            "the server serves certificates that cannot be read",
            "look at what it serves: curl -k https://SERVER:6443/cacerts",
        ),
    }
}

/// What the server said to the token: the first refusal, if any.
fn login(said: &Conversation) -> Option<Result<(), &Trouble>> {
    let config = said.config.as_ref()?.as_ref().map(drop);
    Some(config.and(said.bootstrap.as_ref().map_or(Ok(()), |asked| asked.as_ref().map(drop))))
}

fn server_ready(evidence: &Evidence) -> Verdict {
    let Some((url, said)) = evidence.asked() else { return first_server() };
    let busy = |trouble: &Trouble| !matches!(trouble, Trouble::Status { status: 401 | 403, .. });
    match (login(said), &said.password) {
        (None, _) => not_needed("the server was not asked so far"),
        (Some(Err(trouble)), _) | (Some(Ok(())), Some(Err(trouble))) if busy(trouble) => wrong(
            format!("{}: {trouble}", url.origin()),
            "wait until the server is ready: on it, sudo k3s kubectl get --raw /readyz; journalctl -u k3s tells why not",
        ),
        _ => good("it answers"),
    }
}

fn token_accepted(evidence: &Evidence) -> Verdict {
    let Some((_, said)) = evidence.asked() else { return first_server() };
    match login(said) {
        None => not_needed("the token was not shown to the server"),
        Some(Ok(())) => good("it does"),
        Some(Err(Trouble::Status { status: status @ (401 | 403), .. })) => wrong(
            format!(
                "the server answers {status}: it is not the token of this cluster, or not one for this role"
            ),
            "copy it again: sudo cat /var/lib/rancher/k3s/server/token, on the server; a bootstrap token may have expired: \
             sudo k3s token list",
        ),
        Some(Err(_)) => not_needed("the server was not ready to say"),
    }
}

fn node_name(evidence: &Evidence) -> Verdict {
    let Some((_, said)) = evidence.asked() else { return first_server() };
    let name = match &evidence.name {
        Ok(name) => name,
        Err(unreadable) => return Verdict::Unknown(unreadable.to_string()),
    };
    match (&said.password, &evidence.has_password) {
        (Some(Ok(())), _) => good(format!("{name}, and the servers know this node by its password")),
        (Some(Err(Trouble::Status { status: 403, .. })), _) => wrong(
            format!("the servers know another node as {name}, or this one by another password"),
            format!(
                "give this node a name of its own (sudo hostnamectl set-hostname NAME), or, if it is the same machine, on a \
                 server: sudo k3s kubectl -n kube-system delete secret {name}.node-password.k3s"
            ),
        ),
        (Some(Err(_)), _) => not_needed("the server was not ready to say"),
        (None, Ok(false)) => not_needed(format!(
            "{name} has no password here yet: the servers say whether it is free when K3s shows them one for the first time"
        )),
        (None, Ok(true)) => match login(said) {
            Some(Ok(())) => not_needed(format!(
                "{name} has a password here: whether the servers take it is asked by a join alone, because who asks is kept"
            )),
            _ => not_needed("the server was not asked so far"),
        },
        (None, Err(unreadable)) => Verdict::Unknown(unreadable.to_string()),
    }
}

fn cluster_network(evidence: &Evidence) -> Verdict {
    let Some((_, said)) = evidence.asked() else { return first_server() };
    let Some(Ok(config)) = &said.config else {
        return not_needed("the server has not told its settings so far");
    };
    let mut other = Vec::new();
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    if evidence.cilium && text("FlannelBackend").is_some_and(|backend| backend != "none") {
        other.push(format!("flannel-backend: {}", text("FlannelBackend").unwrap_or_default()));
    }
    for (setting, key, ours) in &evidence.alike {
        let told = match config.get(key) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Bool(on)) => on.to_string(),
            // Ranges are looked at below, for every role.
            _ => continue,
        };
        // It was named above already. What is not known here, as an address of IPv6, is not compared.
        if told != *ours && !ours.is_empty() && *setting != "flannel-backend" {
            other.push(format!("{setting}: {told}, and here it is {ours}"));
        }
    }
    if evidence.cilium && config.get("DisableKubeProxy") == Some(&Value::Bool(false)) {
        other.push("disable-kube-proxy: false, and Cilium takes its place here".into());
    }
    let (mut beside, mut unread) = (Vec::new(), None);
    for ((range, whose), (key, setting)) in
        evidence.ranges.iter().zip([("ClusterIPRange", "cluster-cidr"), ("ServiceIPRange", "service-cidr")])
    {
        let Some(told) = networks(config, key) else {
            unread = Some(format!("the server tells no range for {whose} that can be read"));
            continue;
        };
        // A server must have the same ones; an agent is told of one of them here.
        let ours = evidence.alike.iter().find(|(known, ..)| *known == setting).map(|(.., value)| value);
        let is_same = match ours {
            Some(ours) => {
                ours.split(',').map(|one| read_network(one.trim())).eq(told.iter().copied().map(Some))
            }
            None => told.iter().any(|one| Some(*one) == read_network(&range.to_string())),
        };
        let list =
            told.iter().map(|(address, prefix)| format!("{address}/{prefix}")).collect::<Vec<_>>().join(",");
        match ours {
            _ if is_same && told.len() > 1 => beside.push(format!("{list} for {whose}")),
            _ if is_same => {}
            Some(ours) => other.push(format!("{list} for {whose}, and here it is {ours}")),
            None => other.push(format!("{list} for {whose}, and here it is {range}")),
        }
    }
    let without = if evidence.cilium { "no Flannel, no kube-proxy, and " } else { "" };
    match (other.is_empty(), unread) {
        (true, Some(unread)) => Verdict::Unknown(unread),
        (true, None) if beside.is_empty() => good(format!("{without}the ranges are the same")),
        (true, None) => good(format!("{without}the ranges are the same: {}", beside.join("; "))),
        (false, _) => wrong(
            format!("the cluster has {}", other.join(", ")),
            "write the cluster's values into [cluster] (pods, services, cilium) and k3s.settings here, or begin a cluster anew \
             with these",
        ),
    }
}

/// An address and how many bits of it count.
type Network = (IpAddr, usize);

/// All networks of a kind that a server tells, the first one first.
fn networks(config: &Value, key: &str) -> Option<Vec<Network>> {
    match config.get(format!("{key}s")).and_then(Value::as_array) {
        Some(several) if !several.is_empty() => several.iter().map(network).collect(),
        _ => Some(vec![network(config.get(key)?)?]),
    }
}

/// A network as Go writes one in JSON: its address, and its mask in base64.
fn network(told: &Value) -> Option<Network> {
    let address: IpAddr = told.get("IP")?.as_str()?.parse().ok()?;
    let mask = told.get("Mask")?.as_str()?;
    let bytes = if address.is_ipv4() { 4 } else { 16 };
    let written = |prefix: usize| {
        let byte = |at: usize| !(0xff_u16 >> prefix.saturating_sub(at * 8).min(8)) as u8;
        base64(&(0..bytes).map(byte).collect::<Vec<u8>>())
    };
    (0..=bytes * 8).find(|prefix| written(*prefix) == mask).map(|prefix| (address, prefix))
}

fn read_network(text: &str) -> Option<Network> {
    let (address, prefix) = text.split_once('/')?;
    Some((address.parse().ok()?, prefix.parse().ok()?))
}

/// What etcd asks for, and what no cluster of it lives with: the time after which K3s' etcd sends its next heartbeat.
const QUICK: Duration = Duration::from_millis(10);
const SLOW: Duration = Duration::from_millis(100);

fn disk_sync(evidence: &Evidence) -> Verdict {
    let times = match &evidence.disk {
        None => return not_needed("an agent keeps no state of the cluster"),
        Some(Err(unreadable)) => return Verdict::Unknown(unreadable.to_string()),
        Some(Ok(times)) => times,
    };
    let milliseconds = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
    let figures = format!(
        "{} writes: half of them on disk within {}, 99 of 100 within {}",
        times.writes,
        milliseconds(times.median),
        milliseconds(times.p99)
    );
    let next = format!("put {} on an SSD or NVMe disk, or let this node be an agent", path::DATA);
    match times.p99 {
        p99 if p99 <= QUICK => good(figures),
        p99 if p99 <= SLOW => warned(format!("{figures}; etcd asks for 10 ms"), next),
        _ => wrong(format!("{figures}; etcd asks for 10 ms"), next),
    }
}

fn shutdown_delay(evidence: &Evidence) -> Verdict {
    if evidence.shutdown.is_zero() {
        return not_needed("the kubelet does not hold a shutdown up: shutdown = \"0s\" in [k3s]");
    }
    match &evidence.inhibit {
        Err(unreadable) => Verdict::Unknown(unreadable.to_string()),
        Ok(Some(delay)) if *delay < evidence.shutdown => warned(
            format!(
                "logind waits {} s, and the kubelet wants {} s",
                delay.as_secs(),
                evidence.shutdown.as_secs()
            ),
            "set InhibitDelayMaxSec= in /etc/systemd/logind.conf.d higher, or shutdown in [k3s] lower",
        ),
        Ok(Some(delay)) => good(format!("logind waits {} s", delay.as_secs())),
        // The kubelet writes a drop-in of its own where nobody has set it.
        Ok(None) => good("nobody has set it, and the kubelet sets it itself"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::cluster::Cluster;

    fn secret() -> TokenFile {
        TokenFile { text: "secret\n".into(), others: 0, stranger: None }
    }

    /// A server to be that begins the cluster, of which all is good.
    fn first() -> Evidence {
        let cluster = Cluster::default();
        Evidence {
            role: Role::First,
            token_file: "/t".into(),
            token: Ok(secret()),
            name: Ok("pi-1".into()),
            has_password: Ok(false),
            ranges: [(cluster.pods, "pods"), (cluster.services, "services")],
            alike: vec![],
            cilium: true,
            now: "2026-11-23T12:00:00Z".parse().unwrap(),
            clock_is_kept: Ok(true),
            conversation: None,
            disk: None,
            inhibit: Ok(None),
            shutdown: Duration::from_secs(30),
        }
    }

    fn joining() -> (Evidence, Url) {
        let url = Url::parse("https://pi-1:6443").unwrap();
        (Evidence { role: Role::Agent(url.clone()), ..first() }, url)
    }

    fn said() -> Conversation {
        Conversation {
            cacerts: Ok(()),
            is_public: false,
            pin: None,
            validity: None,
            verified: None,
            config: None,
            bootstrap: None,
            password: None,
        }
    }

    fn wrongs(evidence: &Evidence) -> Vec<&'static str> {
        let examined = examine(evidence, &[]);
        let wrong = examined.iter().filter(|one| matches!(one.verdict, Verdict::Wrong { .. }));
        wrong.map(|one| one.id).collect()
    }

    #[test]
    fn every_examination_has_an_id_of_its_own_and_is_no_requirement() {
        let ids: BTreeSet<&str> = EXAMINATIONS.iter().map(|one| one.id).collect();
        assert_eq!(ids.len(), EXAMINATIONS.len());
        assert!(REQUIREMENTS.iter().all(|requirement| !ids.contains(requirement.id)));
        for id in [
            "default-route",
            "ports",
            "leftover-flannel",
            "leftover-cilium",
            "memory-cgroup",
            "address-ranges",
        ] {
            let requirement = REQUIREMENTS.iter().find(|requirement| requirement.id == id).unwrap();
            assert!(stops(requirement), "{id}");
        }
        for id in ["btf", "clock", "longhorn-modules", "wireless-power-save", "tracefs"] {
            assert!(
                !REQUIREMENTS.iter().any(|requirement| requirement.id == id && stops(requirement)),
                "{id}"
            );
        }
    }

    #[test]
    fn who_begins_a_cluster_asks_nobody() {
        assert_eq!(wrongs(&first()), [""; 0]);
        assert!(examine(&first(), &[]).iter().all(|one| !matches!(one.verdict, Verdict::Unknown(_))));
    }

    #[test]
    fn a_server_with_other_values_than_the_others_is_told_which() {
        let url = Url::parse("https://pi-1:6443").unwrap();
        let config = Some(Ok(serde_json::json!({
            "EncryptSecrets": true, "EgressSelectorMode": "agent", "FlannelBackend": "none", "DisableNPC": true,
            "ClusterIPRange": { "IP": "10.42.0.0", "Mask": "//8AAA==" },
            "ServiceIPRange": { "IP": "10.43.0.0", "Mask": "//8AAA==" },
        })));
        let alike = [
            ("secrets-encryption", "EncryptSecrets", "false"),
            ("egress-selector-mode", "EgressSelectorMode", "agent"),
            ("embedded-registry", "EmbeddedRegistry", "false"),
        ];
        let evidence = Evidence {
            role: Role::Server(url),
            conversation: Some(Conversation { config, ..said() }),
            alike: alike.map(|(setting, key, ours)| (setting, key, ours.to_owned())).into(),
            ..first()
        };
        let Verdict::Wrong { what, .. } = cluster_network(&evidence) else { panic!("they differ") };
        assert_eq!(what, "the cluster has secrets-encryption: true, and here it is false");
    }

    #[test]
    fn ranges_are_called_the_same_only_when_each_was_compared() {
        let told = |pods: &[(&str, &str)], services: &str, ours: Option<&str>| {
            let pods: Vec<Value> =
                pods.iter().map(|(ip, mask)| serde_json::json!({ "IP": ip, "Mask": mask })).collect();
            let config = serde_json::json!({
                "FlannelBackend": "none", "DisableKubeProxy": true, "ClusterIPRanges": pods,
                "ServiceIPRange": { "IP": services, "Mask": "//8AAA==" },
            });
            let alike = ours.map(|ours| ("cluster-cidr", "ClusterIPRange", ours.to_owned()));
            let conversation = Some(Conversation { config: Some(Ok(config)), ..said() });
            cluster_network(&Evidence { conversation, alike: alike.into_iter().collect(), ..joining().0 })
        };
        let usual = ("10.42.0.0", "//8AAA==");
        let v6 = ("fd00:42::", "/////////wAAAAAAAAAAAA==");
        assert!(matches!(told(&[usual], "10.43.0.0", None), Verdict::Good(_)));
        let Verdict::Good(what) = told(&[usual, v6], "10.43.0.0", None) else { panic!("one more") };
        assert!(what.contains("10.42.0.0/16,fd00:42::/56"), "{what}");
        let both = Some("10.42.0.0/16, fd00:42::/56");
        assert!(matches!(told(&[usual, v6], "10.43.0.0", both), Verdict::Good(_)));
        for (pods, services, ours, what) in [
            (
                vec![("10.42.0.0", "///wAA==")],
                "10.43.0.0",
                None,
                "10.42.0.0/20 for pods, and here it is 10.42.0.0/16",
            ),
            (vec![usual], "10.53.0.0", None, "10.53.0.0/16 for services, and here it is 10.43.0.0/16"),
            (vec![usual, v6], "10.43.0.0", Some("10.42.0.0/16"), "10.42.0.0/16,fd00:42::/56 for pods"),
            (
                vec![usual],
                "10.43.0.0",
                both,
                "10.42.0.0/16 for pods, and here it is 10.42.0.0/16, fd00:42::/56",
            ),
        ] {
            let Verdict::Wrong { what: told, .. } = told(&pods, services, ours) else { panic!("{what}") };
            assert!(told.contains(what), "{told}");
        }
        // A mask with a hole, and none at all.
        for pods in [vec![("10.42.0.0", "/wD/AA==")], vec![]] {
            assert!(matches!(told(&pods, "10.43.0.0", None), Verdict::Unknown(_)));
        }
    }

    #[test]
    fn a_cluster_with_kube_proxy_is_no_place_for_cilium_without_it() {
        let network = |ip: &str| serde_json::json!({ "IP": ip, "Mask": "//8AAA==" });
        let config = serde_json::json!({
            "DisableKubeProxy": false, "ClusterIPRange": network("10.42.0.0"), "ServiceIPRange": network("10.43.0.0"),
        });
        let conversation = Some(Conversation { config: Some(Ok(config)), ..said() });
        let evidence = Evidence { conversation, ..joining().0 };
        let Verdict::Wrong { what, .. } = cluster_network(&evidence) else { panic!("kube-proxy runs there") };
        assert!(what.contains("disable-kube-proxy: false"), "{what}");
        assert!(matches!(cluster_network(&Evidence { cilium: false, ..evidence }), Verdict::Good(_)));
    }

    #[test]
    fn a_token_file_of_somebody_else_is_not_its_owners_alone() {
        let of = |file| token_file(&Evidence { token: Ok(file), ..first() });
        assert!(matches!(of(secret()), Verdict::Good(_)));
        let Verdict::Wrong { next, .. } = of(TokenFile { stranger: Some(65534), ..secret() }) else {
            panic!("nobody can read it")
        };
        assert_eq!(next, "sudo chown root: /t");
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a test builds a tree")]
    fn logind_is_read_as_systemd_reads_it() {
        let dir = std::env::temp_dir().join(format!("bramble-logind-{}", std::process::id()));
        let found = |files: &[(&str, &str)]| {
            for (path, text) in files {
                let path = dir.join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            std::fs::create_dir_all(dir.join("etc")).unwrap();
            std::fs::write(dir.join("absent"), "/etc/systemd/\n/run/\n/usr/\n").unwrap();
            let delay = inhibit(&Host::tree(&dir).unwrap());
            std::fs::remove_dir_all(&dir).unwrap();
            delay.unwrap().map(|delay| delay.as_secs())
        };
        let (main, etc, run) =
            ("etc/systemd/logind.conf", "etc/systemd/logind.conf.d", "run/systemd/logind.conf.d");
        let says = |seconds: u8| format!("[Login]\nInhibitDelayMaxSec = {seconds}\n");
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[(main, "[Login]\n#InhibitDelayMaxSec=5\n")]), None);
        assert_eq!(found(&[(main, &says(5))]), Some(5));
        assert_eq!(found(&[(main, "[Other]\nInhibitDelayMaxSec=5\n")]), None);
        assert_eq!(found(&[(main, &says(5)), (&format!("{run}/a.conf"), &says(9))]), Some(9));
        // Of one name that in /etc counts, and the last name has the last word, wherever it stands.
        let (a, same, b) = (format!("{etc}/a.conf"), format!("{run}/a.conf"), format!("{run}/b.conf"));
        assert_eq!(found(&[(&a, &says(30)), (&same, &says(7))]), Some(30));
        assert_eq!(found(&[(&a, &says(30)), (&b, &says(7))]), Some(7));
    }

    #[test]
    fn of_the_kernel_only_what_is_wanted_counts_and_it_warns_alone() {
        let of = |fits: [(bool, Fit); 3]| {
            let features = fit::SETTINGS.iter().zip(fits);
            let features = features.map(|(setting, (wanted, fit))| Feature { setting, wanted, fit });
            kernel_fit(&features.collect::<Vec<_>>()).verdict
        };
        let works = || (true, Fit::Works { evidence: "tried".into() });
        let works_not = |wanted| (wanted, Fit::WorksNot { why: "39 bits".into() });
        let unknown = |wanted| (wanted, Fit::Unknown(Unreadable::malformed("/x", "y")));
        let name = |at: usize| format!("{}: {}", fit::SETTINGS[at].key, fit::SETTINGS[at].value);
        let Verdict::Good(_) = of([works(), works_not(false), unknown(false)]) else {
            panic!("all wanted work")
        };
        let Verdict::Warned { what, next } = of([works_not(true), works(), works_not(true)]) else {
            panic!("two do not work")
        };
        assert_eq!(what, [name(0), name(2)].join(", "));
        assert!(next.starts_with("sudo bramble check --fit"), "{next}");
        let Verdict::Unknown(what) = of([works(), unknown(true), works()]) else {
            panic!("one is not known")
        };
        assert!(what.starts_with(&name(1)), "{what}");
        // What will not work is said also where more could not be told.
        let Verdict::Warned { what, .. } = of([unknown(true), works_not(true), works()]) else {
            panic!("one")
        };
        assert_eq!(what, name(1));
    }

    #[test]
    fn a_slow_disk_is_told_with_its_figures() {
        let with = |milliseconds| {
            let p99 = Duration::from_millis(milliseconds);
            let times = SyncTimes { writes: 500, median: Duration::from_millis(1), p99 };
            disk_sync(&Evidence { disk: Some(Ok(times)), ..first() })
        };
        assert!(matches!(with(10), Verdict::Good(_)));
        let Verdict::Warned { what, .. } = with(60) else { panic!("60 ms") };
        assert!(what.contains("500 writes") && what.contains("60.0 ms"), "{what}");
        let Verdict::Wrong { next, .. } = with(101) else { panic!("101 ms") };
        assert!(next.contains("SSD"), "{next}");
        let slow = Evidence { disk: Some(Err(Unreadable::malformed("/x", "y"))), ..first() };
        assert!(matches!(disk_sync(&slow), Verdict::Unknown(_)));
    }

    #[test]
    fn a_cause_that_the_owner_accepts_does_not_stop_a_join() {
        let times = SyncTimes { writes: 9, median: SLOW, p99: SLOW * 2 };
        let slow = Evidence { disk: Some(Ok(times)), ..first() };
        assert_eq!(wrongs(&slow), ["disk-sync"]);
        let accepted = examine(&slow, &["disk-sync".into()]);
        assert!(accepted.iter().all(|one| !matches!(one.verdict, Verdict::Wrong { .. })));
    }

    #[test]
    fn what_may_not_be_seen_is_not_called_good() {
        let denied = Unreadable { path: "/t".into(), why: Why::Denied };
        let (joining, _) = joining();
        let conversation = Some(Conversation { config: Some(Ok(Value::Null)), ..said() });
        let evidence = Evidence { token: Err(denied), has_password: Ok(true), conversation, ..joining };
        let unknown: Vec<_> = examine(&evidence, &[])
            .into_iter()
            .filter(|one| matches!(one.verdict, Verdict::Unknown(_)))
            .map(|one| one.id)
            .collect();
        assert_eq!(unknown, ["token-file", "cluster-network"]);
    }

    #[test]
    fn whoever_makes_certificates_of_the_future_is_told_apart_from_a_clock_that_is_behind() {
        let (joining, _) = joining();
        let later = "2026-12-01T00:00:00Z".parse().unwrap();
        let validity = Some((later, "2036-01-01T00:00:00Z".parse().unwrap()));
        let with = |kept| Evidence {
            clock_is_kept: Ok(kept),
            conversation: Some(Conversation { validity, ..said() }),
            ..Evidence { role: joining.role.clone(), ..first() }
        };
        let next = |kept| match not_yet_valid(&with(kept)) {
            Verdict::Wrong { next, .. } => next,
            verdict => panic!("{verdict:?}"),
        };
        assert!(next(true).contains("server's clock") && next(false).contains("timesyncd"));
    }

    #[test]
    fn times_are_read_as_systemd_writes_them() {
        for (text, seconds) in [("5", 5), ("30s", 30), ("1min 30s", 90), ("2min", 120)] {
            assert_eq!(span(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(span("soon"), None);
    }
}
