//! `bramble join`: looks first, then puts K3s on the node, starts it, and waits until the node is Ready.
//!
//! All that is written goes through a receipt: a run that was cut off anywhere is gone on with by the next one, and
//! `bramble leave` or `bramble revert` gives every byte back.

mod look;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::apply::{asked, open, say};
use super::check::{print, printable, width, wrap};
use super::{USAGE, block_on};
use crate::config::Config;
use crate::config::k3s::{self as setting, Role, Version};
use crate::converge::apply::{carry_out, heal, place, receipt};
use crate::converge::diff::diff;
use crate::converge::live::Live;
use crate::converge::plan::{Content, Edit, Files, Gate, Owner, Step};
use crate::converge::receipt::{Receipts, written};
use crate::facts::Facts;
use crate::host::http::Url;
use crate::host::systemd::Unit;
use crate::host::write::{HostMut, NotDone};
use crate::host::{Host, Unreadable, clock};
use crate::k3s::binary::{self, Machine, Wanted};
use crate::k3s::joined::Joined;
use crate::k3s::wait::{self, Awaited, Limits, Progress};
use crate::k3s::{cilium, configuration, doctor, path, unit};
use crate::require::{self, REQUIREMENTS, State};
use look::Findings;
use wire::report::Phase;

/// Take this node into a K3s cluster, and wait until it is Ready.
///
/// What stands in K3s' way is found before anything is started, and named with one next step. Settings: [k3s] and
/// [cluster] of the configuration.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub struct Join {
    /// Look only: change nothing
    #[arg(long)]
    check: bool,
    /// Join this server instead of the one in [k3s], such as https://10.0.0.11:6443
    #[arg(long, value_name = "URL", value_parser = setting::server)]
    server: Option<Url>,
    /// Take the token from this file instead of the one in [k3s]
    #[arg(long, value_name = "FILE")]
    token_file: Option<std::path::PathBuf>,
    /// Print what was found as JSON
    #[arg(long, requires = "check")]
    json: bool,
    /// For Cilium's values: what another node's `bramble check --fit --json` printed, in a file named after it; can be given
    /// more than once
    #[arg(long, value_name = "FILE")]
    fit: Vec<std::path::PathBuf>,
    /// Give up when the node is not Ready after so many seconds; each thing that is waited for has limits of its own, too
    #[arg(long, value_name = "SECONDS", default_value_t = 2400)]
    limit: u64,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

const EXIT_CODES: &str = "\
Exit codes:
  0   the node is Ready; with --check: nothing stands in K3s' way
  1   K3s was started, and the node is not Ready
  2   stopped before K3s was started: a person must act first
  3   with --check: something could not be told, and nothing else stands in the way
  64  usage, or a fault of the configuration: to try again is in vain";

/// K3s was started, and the node is not Ready.
const NOT_READY: u8 = 1;
/// Nothing was started, and what stood in the way may be gone the next time. With [`USAGE`] bramble-join.service ends.
const STOPPED: u8 = 2;
/// A Pi without a clock of its own gets the time within seconds of the network; who has none gets no answer for ever.
const CLOCK: Patience =
    Patience { whole: Duration::from_secs(180), tick: Duration::from_secs(1), look: Duration::from_secs(20) };

/// A K3s that is asked to end does so at once, unless its kubelet hangs on a disk.
const STOP: Duration = Duration::from_secs(120);

/// Runs the verb.
///
/// # Errors
/// When the runtime cannot be made, or standard output not be written.
pub fn run(args: &Join, config: &Config, host: &Host) -> anyhow::Result<ExitCode> {
    let role = match config.k3s.role(&config.cluster, args.server.as_ref()) {
        Ok(role) => role,
        Err(why) => {
            eprintln!("bramble join: {why}");
            return Ok(ExitCode::from(USAGE));
        }
    };
    let token_file = match &args.token_file {
        // Paths are resolved from the root of the host, and K3s is told of this one.
        Some(file) => std::path::absolute(file)?.to_string_lossy().into_owned(),
        None => config.k3s.token_file.clone(),
    };
    if args.check {
        let mut findings = block_on(findings(host, config, &role, &token_file, false))?;
        // What is written wrong no look at the node tells. A node that is in its cluster stays there as it is.
        if !is_set_up(host, &role).unwrap_or(false)
            && let Err(Stopped::Misconfigured(failed)) = written_right(host, config, &role, &token_file)
        {
            findings.misconfigured(&failed);
        }
        let text = match args.json {
            true => findings.json(&role).to_string() + "\n",
            false => findings.page(&role, width()),
        };
        return print(&text, ExitCode::from(findings.code()));
    }
    let host = match open(None, "join") {
        Ok(host) => host,
        Err(code) => return Ok(code),
    };
    let fits: Result<Vec<cilium::Node>, String> =
        args.fit.iter().map(|file| cilium::Node::of_file(host.host(), file)).collect();
    let fits = match fits {
        Ok(fits) => fits,
        Err(why) => {
            eprintln!("bramble join: {why}");
            return Ok(ExitCode::from(USAGE));
        }
    };
    let limits = Limits { total: Duration::from_secs(args.limit), ..Limits::default() };
    let joining = Joining { config, role, token_file, fits, limits, host };
    let version = match version(config) {
        Ok(version) => version,
        Err(failed) => return Ok(joining.stop(&failed, USAGE, args.yes)),
    };
    // Nothing is started where K3s is up: what it waits for tells more than another look.
    if !joining.is_up() {
        if args.yes {
            // Until the end of the look what stood in the way last time still does: who tries again and again in vain is
            // not well in between.
            let last = Joined::read(joining.host.host()).ok().flatten().and_then(|last| last.cause);
            let last = last.as_ref().map(|cause| cause.each_ref().map(String::as_str));
            joining.keep(Phase::Joining, "looking", last);
        }
        let findings = joining.look()?;
        print(&findings.page(&joining.role, width()), ExitCode::SUCCESS)?;
        if let Some(cause) = findings.cause() {
            // Who only looks around has not failed to join.
            if args.yes {
                joining.keep(Phase::Failed, "looking", Some(cause));
            }
            eprintln!("bramble join: nothing was started; mend what stands above, then join again");
            return Ok(ExitCode::from(STOPPED));
        }
    }
    match joining.install(version, args.yes) {
        Ok(true) => joining.wait(),
        Ok(false) => Ok(ExitCode::from(STOPPED)),
        Err(Stopped::Printing(error)) => Err(error),
        Err(Stopped::NotDone(failed)) => Ok(joining.stop(&failed, STOPPED, args.yes)),
        Err(Stopped::Misconfigured(failed)) => Ok(joining.stop(&failed, USAGE, args.yes)),
        Err(Stopped::Unasked) => {
            eprintln!("bramble join: nobody can be asked here\n  next  bramble join --yes");
            Ok(ExitCode::from(USAGE))
        }
    }
}

/// Which K3s it is to be.
fn version(config: &Config) -> Result<&Version, NotDone> {
    let next = "write version = \"v1.35.2+k3s1\" (or that of your servers) into [k3s]";
    let missing = || NotDone::new("joining", "K3s", "it is not said which version", next);
    config.k3s.version.as_ref().ok_or_else(missing)
}

/// Whether K3s was put here by a join; its unit is written when the program is there and has said its version.
fn is_set_up(host: &Host, role: &Role) -> Result<bool, Unreadable> {
    let unit = host.text_if_present(&format!("/etc/systemd/system/{}", crate::k3s::unit(role)))?;
    Ok(unit.is_some_and(|unit| unit.contains(unit::MARK)) && host.present(path::BINARY)?)
}

/// K3s' configuration as it is to be.
fn configured(
    host: &Host,
    config: &Config,
    role: &Role,
    version: &Version,
    token_file: &str,
) -> Result<Vec<configuration::File>, Stopped> {
    let existing = configuration::existing(host).map_err(NotDone::from)?;
    configuration::settings(config, role, version, token_file)
        .and_then(|settings| configuration::files(&settings, &existing, config, role, version))
        .map_err(|refused| {
            let failed = NotDone::new("writing", "K3s' configuration", refused.what, refused.next);
            Stopped::Misconfigured(failed)
        })
}

/// Cilium's values, for these nodes.
fn rendered(config: &Config, nodes: &[cilium::Node]) -> Result<cilium::Rendered, Stopped> {
    cilium::render(config, nodes).map_err(|no| {
        let failed = NotDone::new("rendering", "Cilium's values", no.to_string(), no.next());
        match no {
            // A module may come.
            cilium::Refused::WorksNot { .. } => Stopped::NotDone(failed),
            _ => Stopped::Misconfigured(failed),
        }
    })
}

/// Whether what is written can be carried out.
fn written_right(host: &Host, config: &Config, role: &Role, token_file: &str) -> Result<(), Stopped> {
    let version = version(config).map_err(Stopped::Misconfigured)?;
    binary::provable(&config.k3s).map_err(Stopped::Misconfigured)?;
    configured(host, config, role, version, token_file)?;
    if *role == Role::First && config.cluster.cilium {
        rendered(config, &[])?;
    }
    Ok(())
}

/// Why it ends before its end.
enum Stopped {
    NotDone(NotDone),
    /// Only a person can mend what is written.
    Misconfigured(NotDone),
    /// Nobody is there to say yes.
    Unasked,
    Printing(anyhow::Error),
}

impl From<NotDone> for Stopped {
    fn from(failed: NotDone) -> Stopped {
        Stopped::NotDone(failed)
    }
}

impl From<anyhow::Error> for Stopped {
    fn from(error: anyhow::Error) -> Stopped {
        Stopped::Printing(error)
    }
}

async fn findings(
    host: &Host,
    config: &Config,
    role: &Role,
    token_file: &str,
    about_to_join: bool,
) -> Findings {
    let facts = Facts::observe(host);
    let evidence = doctor::gather(host, &facts, config, role, token_file, about_to_join).await;
    Findings {
        examined: doctor::examine(&evidence, &config.cluster.accept),
        required: doctor::requirements(host, &facts, config),
        is_clock_late: require::judge(REQUIREMENTS.iter().filter(|one| one.id == "clock"), &facts, config)
            .any(|clock| match clock.state() {
                State::Waiting => true,
                // Behind ProtectClock= only systemd-timesyncd leaves a mark that can be waited for.
                State::Unknown => facts.units.uses("systemd-timesyncd").unwrap_or(false),
                _ => false,
            }),
        is_misconfigured: false,
    }
}

/// A join under way.
struct Joining<'a> {
    config: &'a Config,
    role: Role,
    token_file: String,
    /// What the kernels of other nodes have.
    fits: Vec<cilium::Node>,
    limits: Limits,
    host: HostMut,
}

/// All that is to be done, for a person to approve.
#[derive(Default)]
struct Work {
    /// Whether K3s is set up here already: then its program is its owner's and its system-upgrade plans', and so are the
    /// values that Cilium began with.
    is_set_up: bool,
    large: Vec<Wanted>,
    edits: Vec<Edit>,
    live: Vec<Live>,
}

impl Joining<'_> {
    fn is_up(&self) -> bool {
        self.host.host().unit(crate::k3s::unit(&self.role)).is_ok_and(|unit| {
            // Also while a boot starts it: a joined node is not examined again because a server is not up yet.
            unit.is_active() || unit.active == "activating" && unit.restarts == 0 && !self.is_stale(&unit)
        })
    }

    /// Whether K3s, which has not come up yet, was started before its token or its settings were written: it reads them
    /// once, and asks by what it read for ever.
    fn is_stale(&self, unit: &Unit) -> bool {
        let Some(started) = unit.started.filter(|_| unit.active == "activating") else { return false };
        let files = [self.token_file.as_str(), path::CONFIG, configuration::DROP_IN, path::KUBELET_CONFIG];
        let is_newer = |age| clock::now() - age > started;
        files.iter().filter_map(|file| self.host.host().age(file)).any(is_newer)
    }

    /// Starts it anew where that is so. Pods that it began before go on.
    fn renew(&self) -> Result<(), NotDone> {
        let name = crate::k3s::unit(&self.role);
        let unit = self.host.host().unit(name).map_err(NotDone::from)?;
        if !self.is_stale(&unit) {
            return Ok(());
        }
        eprintln!("K3s was started before its token or its settings were written: it is started anew");
        self.host.stop_unit(name)?;
        self.host.settled(name, STOP, Unit::is_down)?;
        self.host.start_unit(name)
    }

    /// Looks; where only the clock stands in the way, until it was set or the limit is reached. Who begins a cluster makes
    /// its certificates, which nobody could use before a wrong time has come.
    fn look(&self) -> anyhow::Result<Findings> {
        until_set(
            CLOCK,
            || block_on(findings(self.host.host(), self.config, &self.role, &self.token_file, true)),
            |findings| {
                findings.has("certificate-not-yet-valid")
                    || self.role == Role::First && findings.is_clock_late
            },
            || self.host.host().clock_error().is_ok_and(|error| error.is_some()),
        )
    }

    /// Puts everything in its place and asks for the start; false when its owner does not want it.
    fn install(&self, version: &Version, yes: bool) -> Result<bool, Stopped> {
        let receipts = Receipts::open(&self.host)?;
        let open = heal(&self.host, &receipts)?;
        let work = self.work(version)?;
        if work.is_empty() {
            if let Some(open) = &open {
                receipt(&receipts, Some(open))?.end(clock::now())?;
            }
            self.renew()?;
            return Ok(true);
        }
        print(&work.page(), ExitCode::SUCCESS)?;
        if !yes {
            match asked() {
                Some(true) => {}
                Some(false) => return Ok(false),
                None => return Err(Stopped::Unasked),
            }
        }
        self.keep(Phase::Joining, "installing", None);
        let mut writer = receipt(&receipts, open.as_deref())?;
        for wanted in &work.large {
            place(&self.host, &mut writer, &wanted.path, &wanted.sha256, wanted.mode, |partial| {
                let mut bar = Bar::new(wanted.name());
                let mut tell = |done, all| bar.show(done, all);
                block_on(wanted.fetch(self.host.host(), partial, &mut tell)).map_err(|error| {
                    NotDone::new("taking", wanted.name(), error.to_string(), "run it again")
                })?
            })?;
        }
        if !work.is_set_up {
            self.is_of(version)?;
        }
        let is_told = work.edits.iter().any(|edit| edit.path.starts_with("/etc/rancher/"));
        let starts = work.live.iter().any(|live| matches!(live, Live::StartUnit { .. }));
        let step = Step {
            requirements: vec![],
            changes: vec![],
            edits: work.edits,
            live: work.live,
            gate: Gate::Now,
        };
        carry_out(&self.host, &mut writer, &step)?;
        let name = writer.name.clone();
        writer.end(clock::now())?;
        self.renew()?;
        let mut done = format!("receipt {name}; to take the node out again: sudo bramble leave\n");
        if is_told && !starts {
            // It carries pods, so its owner chooses the moment.
            let unit = crate::k3s::unit(&self.role);
            done += &format!(
                "K3s runs, and takes its new settings when restarted: sudo systemctl restart {unit}\n"
            );
        }
        print(&done, ExitCode::SUCCESS)?;
        Ok(true)
    }

    /// What is not as it should be yet.
    fn work(&self, version: &Version) -> Result<Work, Stopped> {
        let host = self.host.host();
        let machine = Machine::here().ok_or_else(|| {
            let why = format!("K3s is not known for {}", std::env::consts::ARCH);
            NotDone::new("finding", path::BINARY, why, "join from a 64-bit system")
        })?;
        let other = if self.role.is_server() { "k3s-agent" } else { "k3s" };
        let other = format!("/etc/systemd/system/{other}.service");
        if host.present(&other).map_err(NotDone::from)? {
            let why = format!("this node is set up in the other role already ({other})");
            return Err(NotDone::new("joining", "K3s", why, "sudo bramble leave, then join again").into());
        }
        let name = crate::k3s::unit(&self.role);
        let mut work =
            Work { is_set_up: is_set_up(host, &self.role).map_err(NotDone::from)?, ..Work::default() };
        let found = match work.is_set_up {
            true => Vec::new(),
            false => {
                binary::provable(&self.config.k3s).map_err(Stopped::Misconfigured)?;
                block_on(binary::find(host, &self.config.k3s, version, machine)).map_err(|error| {
                    NotDone::new("finding", path::BINARY, error.to_string(), "run it again")
                })??
            }
        };
        for wanted in found {
            match host.present(&wanted.path).map_err(NotDone::from)? {
                false => work.large.push(wanted),
                true if wanted.is_there(host) => {}
                true => {
                    let next = format!(
                        "move it away (sudo {} --version tells which it is), then join again",
                        wanted.path
                    );
                    let why = "another one is there already, and nobody's file is overwritten";
                    return Err(NotDone::new("writing", wanted.path, why, next).into());
                }
            }
        }
        match configured(host, self.config, &self.role, version, &self.token_file) {
            Ok(files) => {
                for file in files {
                    work.write(host, &file.path, file.content, 0o644)?;
                }
            }
            // A node that is in its cluster stays there as its owner has it.
            Err(Stopped::Misconfigured(refused)) if work.is_set_up => {
                eprintln!(
                    "bramble join: K3s' settings stay as they are: {refused}\n  next  {}",
                    refused.next
                );
            }
            Err(stopped) => return Err(stopped),
        }
        if self.role == Role::First && self.config.cluster.cilium && !work.is_set_up {
            let mut nodes = vec![cilium::Node::here(host, self.config)];
            nodes.extend(self.fits.iter().cloned());
            let rendered = rendered(self.config, &nodes)?;
            for remark in &rendered.remarks {
                eprintln!("bramble join: {remark}");
            }
            work.write(host, cilium::MANIFEST, rendered.manifest(), 0o600)?;
        }
        for file in unit::files(&self.role) {
            let is_environment = file.path.ends_with(".env");
            match host.text_if_present(&file.path).map_err(NotDone::from)? {
                Some(_) if is_environment => {}
                // Somebody has changed it since.
                Some(text) if text.contains(unit::MARK) && is_changed(host, &file.path, &text)? => {}
                Some(text) if !text.contains(unit::MARK) => {
                    let why = "K3s was set up here by somebody else";
                    let next =
                        "remove it by its own script (ls /usr/local/bin/k3s*uninstall.sh), then join again";
                    return Err(NotDone::new("writing", file.path, why, next).into());
                }
                _ => work.write(host, &file.path, file.content, file.mode)?,
            }
        }
        for (command, link) in unit::LINKS.map(|command| (command, format!("/usr/local/bin/{command}"))) {
            let places = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"];
            let has = |place: &&str| {
                let path = format!("{place}/{command}");
                host.link(&path).is_some() || host.present(&path) != Ok(false)
            };
            if !places.iter().any(has) {
                work.edits.push(Edit {
                    path: link,
                    owner: Owner::Bramble,
                    before: None,
                    after: Content::Link("k3s".into()),
                    mode: 0o777,
                });
            }
        }
        let now = host.unit(name).map_err(NotDone::from)?;
        if work.edits.iter().any(|edit| edit.path.starts_with("/etc/systemd/")) {
            work.live.push(Live::ReadUnits);
        }
        if !now.is_enabled() || now.is_down() {
            // Whatever comes into it later is K3s' and its network's, and goes with them.
            work.live.push(Live::SeePacketFilter);
            work.live.push(Live::StartUnit { unit: name.into() });
        }
        Ok(work)
    }

    /// The program that stands there is the version that was asked for: its settings were checked by that.
    fn is_of(&self, version: &Version) -> Result<(), NotDone> {
        let said = self.host.succeed(&[path::BINARY, "--version"], Duration::from_secs(60))?;
        let first = said.lines().next().unwrap_or_default();
        if first.split_whitespace().any(|word| word == version.to_string()) {
            return Ok(());
        }
        let why = format!("{version} is asked for, and it calls itself \"{}\"", printable(first));
        let next = "write its version into k3s.version, or give the program of that version; sudo bramble revert takes it away";
        Err(NotDone::new("joining by", path::BINARY, why, next))
    }

    /// Tells whoever called why K3s was not started, and the agent, unless somebody only looked around, or K3s is up all the same.
    fn stop(&self, failed: &NotDone, code: u8, yes: bool) -> ExitCode {
        if yes && !self.is_up() {
            self.keep(Phase::Failed, "installing", Some(["install", &failed.to_string(), &failed.next]));
        }
        say("join", failed);
        ExitCode::from(code)
    }

    /// Tells the agent how far it is. The join itself is as good without.
    fn keep(&self, phase: Phase, step: &str, cause: Option<[&str; 3]>) {
        let asked = self.config.k3s.version.as_ref().map(ToString::to_string).unwrap_or_default();
        self.keep_as(&asked, phase, step, cause);
    }

    fn keep_as(&self, version: &str, phase: Phase, step: &str, cause: Option<[&str; 3]>) {
        let joined = Joined {
            phase,
            step: step.into(),
            role: self.role.name().into(),
            version: version.into(),
            cilium: self.config.cluster.cilium,
            cause: cause.map(|cause| cause.map(str::to_owned)),
            at: clock::now(),
        };
        if let Err(failed) = joined.keep(&self.host) {
            eprintln!("bramble join: the agent is not told: {failed}");
        }
    }

    /// Waits until the node is Ready, and shows what for.
    fn wait(&self) -> anyhow::Result<ExitCode> {
        let name = crate::k3s::unit(&self.role);
        let facts = Facts::observe(self.host.host());
        let node = crate::k3s::node_name(&facts, Some(&self.config.k3s)).unwrap_or_default();
        // In whole seconds the journal would also tell of the end of the last attempt.
        let since = clock::now() + Duration::from_secs(1);
        let awaited = Awaited { unit: name, node, cilium: self.config.cluster.cilium, since };
        let mut view = View::default();
        let mut last = "";
        let mut show = |now: &Progress| {
            view.show(now);
            let step = now.phase.name();
            if std::mem::replace(&mut last, step) != step {
                self.keep(Phase::Joining, step, None);
            }
        };
        let ready = block_on(wait::watch(&self.host, &awaited, &self.limits, &mut show))?;
        view.clear();
        match ready {
            Ok(ready) => {
                self.keep_as(&ready.version, Phase::Ready, last, None);
                let text = format!(
                    "{} is Ready as {}: {}, after {} s\n",
                    awaited.node,
                    self.role.name(),
                    printable(&ready.version),
                    ready.elapsed.as_secs()
                );
                print(&text, ExitCode::SUCCESS)
            }
            Err(given_up) => {
                self.keep(Phase::Failed, last, Some([given_up.cause, &given_up.why, &given_up.next]));
                eprintln!("bramble join: {}: {given_up}\n  next  {}", given_up.cause, given_up.next);
                Ok(ExitCode::from(NOT_READY))
            }
        }
    }
}

/// How long to wait for the clock, how often to look whether it is set, and how often at what it is needed for.
#[derive(Clone, Copy)]
struct Patience {
    whole: Duration,
    tick: Duration,
    look: Duration,
}

/// Looks again and again as long as what is found is too early by the clock and nobody has set it.
fn until_set<T>(
    patience: Patience,
    mut look: impl FnMut() -> anyhow::Result<T>,
    is_early: impl Fn(&T) -> bool,
    is_kept: impl Fn() -> bool,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + patience.whole;
    loop {
        let found = look()?;
        if !is_early(&found) || is_kept() || Instant::now() > deadline {
            return Ok(found);
        }
        eprintln!("the clock has not been set since the machine started: waiting for that");
        // Where the kernel does not tell, a look at the certificates does.
        let next = deadline.min(Instant::now() + patience.look);
        while !is_kept() && Instant::now() < next {
            std::thread::sleep(patience.tick);
        }
    }
}

/// Whether a file is other than the join has left it.
fn is_changed(host: &Host, path: &str, text: &str) -> Result<bool, NotDone> {
    Ok(written(host, path).map_err(NotDone::from)?.is_none_or(|ours| ours != text))
}

impl Work {
    fn is_empty(&self) -> bool {
        self.large.is_empty() && self.edits.is_empty() && self.live.is_empty()
    }

    /// A file, unless it stands there so already.
    fn write(&mut self, host: &Host, path: &str, content: String, mode: u32) -> Result<(), NotDone> {
        let before = host.content(path, Owner::Bramble).map_err(NotDone::from)?;
        let after = Content::Bytes(content.into_bytes());
        if before.as_ref() != Some(&after) {
            self.edits.push(Edit { path: path.into(), owner: Owner::Bramble, before, after, mode });
        }
        Ok(())
    }

    fn page(&self) -> String {
        let mut text = String::from("\n");
        for wanted in &self.large {
            let from = match &wanted.from {
                binary::From::File(file) => file.clone(),
                binary::From::Url(url) => url.to_string(),
            };
            text += &format!("put {} there, from {from}\n  sha256 {}\n", wanted.path, wanted.sha256);
        }
        for edit in &self.edits {
            let bytes = |content: &Content| match content {
                Content::Bytes(bytes) => bytes.clone(),
                Content::Link(target) => format!("link to {target}\n").into_bytes(),
            };
            let (before, after) = (edit.before.as_ref().map(bytes), bytes(&edit.after));
            match edit.path.starts_with("/etc/rancher/") {
                true => text += &diff(&edit.path, before.as_deref(), Some(&after)),
                false => text += &format!("write {}\n", edit.path),
            }
        }
        for live in &self.live {
            if let Live::StartUnit { unit } = live {
                text += &format!("enable and start {unit}\n");
            }
        }
        text + "\n"
    }
}

/// How far a file is, on a terminal.
struct Bar<'a> {
    name: &'a str,
    shown: Option<Instant>,
}

impl<'a> Bar<'a> {
    fn new(name: &'a str) -> Bar<'a> {
        Bar { name, shown: None }
    }

    fn show(&mut self, done: u64, all: Option<u64>) {
        let is_end = all == Some(done);
        let is_soon = self.shown.is_some_and(|shown| shown.elapsed() < Duration::from_millis(200));
        if !io::stderr().is_terminal() || is_soon && !is_end {
            return;
        }
        self.shown = Some(Instant::now());
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let line = match all {
            Some(all) if all > 0 => {
                let part = (done * 30 / all) as usize;
                let bar = format!("{}{}", "#".repeat(part), ".".repeat(30usize.saturating_sub(part)));
                format!("{} [{bar}] {:.1} of {:.1} MiB", self.name, mib(done), mib(all))
            }
            _ => format!("{} {:.1} MiB", self.name, mib(done)),
        };
        line_over(&line);
        if is_end {
            eprintln!();
        }
    }
}

/// What is waited for: on a terminal one line that changes, elsewhere one line a phase.
#[derive(Default)]
struct View {
    phase: Option<&'static str>,
}

impl View {
    fn show(&mut self, now: &Progress) {
        if matches!(now.phase, wait::Phase::Ready { .. }) {
            return;
        }
        let waits = now.phase.waits_for();
        let line = now.told.line.as_deref().map_or(String::new(), |line| format!("; K3s says: {line}"));
        let text = printable(&format!("{:>4} s  {}: {waits}{line}", now.elapsed.as_secs(), now.phase.name()));
        if io::stderr().is_terminal() {
            line_over(&text);
        } else if self.phase != Some(now.phase.name()) {
            eprintln!("{}", wrap(&text, 8, width()));
        }
        self.phase = Some(now.phase.name());
    }

    fn clear(&self) {
        if io::stderr().is_terminal() && self.phase.is_some() {
            line_over("");
        }
    }
}

/// Writes a line over the last one, cut to the terminal's width.
fn line_over(line: &str) {
    let columns = terminal_size::terminal_size().map_or(80, |(columns, _)| usize::from(columns.0));
    let line: String = line.chars().take(columns.saturating_sub(1)).collect();
    // A terminal that is gone is nobody's loss.
    let _ = write!(io::stderr(), "\r\x1b[2K{line}").and_then(|()| io::stderr().flush());
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Waits in milliseconds; how often it looked, what it found last, and whether the limit was reached.
    fn waited(early: usize, kept_after: Option<usize>) -> (usize, bool, bool) {
        let milliseconds = Duration::from_millis;
        let patience = Patience { whole: milliseconds(300), tick: milliseconds(1), look: milliseconds(60) };
        let (looks, asked, begun) = (Cell::new(0), Cell::new(0), Instant::now());
        let look = || {
            looks.set(looks.get() + 1);
            Ok(looks.get() <= early)
        };
        let is_kept = || {
            asked.set(asked.get() + 1);
            kept_after.is_some_and(|after| asked.get() > after)
        };
        let is_early = until_set(patience, look, |early| *early, is_kept).unwrap();
        (looks.get(), is_early, begun.elapsed() >= patience.whole)
    }

    #[test]
    fn a_clock_that_was_set_is_not_waited_for() {
        assert_eq!(waited(0, None), (1, false, false), "nothing is too early");
        assert_eq!(waited(9, Some(0)), (1, true, false), "the server's certificates are of the future");
    }

    #[test]
    fn once_the_clock_is_set_it_is_looked_again_at_once() {
        assert_eq!(waited(1, Some(3)), (2, false, false));
    }

    #[test]
    fn where_the_kernel_does_not_tell_a_look_does() {
        assert_eq!(waited(2, None), (3, false, false));
    }

    #[test]
    fn a_clock_that_nobody_sets_ends_at_the_limit_with_what_was_found() {
        let (looks, is_early, is_late) = waited(usize::MAX, None);
        assert!(is_early && is_late && (3..9).contains(&looks), "{looks} looks");
    }
}
