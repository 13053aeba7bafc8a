//! The stand-in as a program: `k3s server` and `k3s agent` as a unit starts them, without pods behind them.
//!
//! It reads the same files, asks the same questions, writes the same files, says the same lines and tells systemd the same
//! as K3s, in the same order. What a test wants otherwise stands in [`Script`], a file that no K3s would read.

mod agent;
mod server;
mod traces;

use std::{
    env,
    fmt::Display,
    fs,
    io::copy,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    os::unix::fs::{OpenOptionsExt, symlink},
    path::{Path, PathBuf},
    process::ExitCode,
    thread::{self, sleep},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::configuration::Configuration;

/// Where the script lies.
pub const SCRIPT: &str = "/srv/k3s-stand-in.json";
/// What the program calls its version unless the script has another.
pub const VERSION: &str = "v1.35.2+k3s1";
/// How long it waits before it tries again; K3s takes two to ten seconds.
const PAUSE: Duration = Duration::from_millis(300);

/// What a test wants of the program.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Script {
    /// What `--version` says.
    pub version: Option<String>,
    /// What goes wrong.
    pub trouble: Option<Trouble>,
    /// After how many milliseconds Cilium is there on this node; without, never.
    pub cilium: Option<u64>,
    /// For how many milliseconds nothing happens at first, so that somebody can come in between.
    pub delay: u64,
}

/// What goes wrong, as K3s tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trouble {
    /// The kernel has no memory controller: it ends at once, with 1.
    MemoryCgroup,
    /// The kernel has no cpuset controller: it ends at once, with 1.
    CpusetCgroup,
    /// Another server is joining: it waits.
    Learners,
    /// The kubelet never answers on its port.
    Kubelet,
    /// systemd is never told that it is ready.
    Silence,
    /// It ends a moment after it was ready, with 1.
    Crash,
}

/// Runs as the program; `k3s --version`, `k3s server` and `k3s agent` with flags.
pub fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().collect();
    let name = arguments.first().map(Path::new).and_then(Path::file_name).unwrap_or_default();
    if name == traces::SHIM {
        // A pod's shim outlives K3s.
        loop {
            sleep(Duration::from_hours(1));
        }
    }
    match run(&arguments[1..]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say("fatal", format!("Error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let script: Script = match fs::read_to_string(SCRIPT) {
        Ok(text) => serde_json::from_str(&text).context("reading the script")?,
        Err(_) => Script::default(),
    };
    let version = script.version.as_deref().unwrap_or(VERSION);
    match arguments.first().map(String::as_str) {
        Some("--version" | "-v") => {
            #[allow(clippy::print_stdout, reason = "it is what the command is for")]
            {
                println!("k3s version {version} (0a1b2c3d)\ngo version go1.25.5");
            }
            return Ok(());
        }
        Some("server" | "agent") => {}
        other => bail!("No help topic for '{}'", other.unwrap_or_default()),
    }
    let is_server = arguments[0] == "server";
    let file = env::var("K3S_CONFIG_FILE").unwrap_or_else(|_| "/etc/rancher/k3s/config.yaml".to_owned());
    let configuration = Configuration::read(Path::new(&file), &arguments[1..])?;
    let data = configuration.one("data-dir").unwrap_or("/var/lib/rancher/k3s");
    let node = Node {
        name: configuration.one("node-name").map_or_else(host_name, |name| Ok(name.to_lowercase()))?,
        data: PathBuf::from(data),
        version: version.to_owned(),
        script,
        configuration,
    };
    say("info", format!("Starting k3s {} (0a1b2c3d)", node.version));
    sleep(Duration::from_millis(node.script.delay));
    match node.script.trouble {
        Some(Trouble::MemoryCgroup) => bail!("failed to find memory cgroup (v2)"),
        Some(Trouble::CpusetCgroup) => bail!("failed to find cpuset cgroup (v2)"),
        _ => {}
    }
    if is_server { server::run(&node) } else { agent::run(&node, None) }
}

/// What all parts of the program know.
struct Node {
    name: String,
    data: PathBuf,
    version: String,
    script: Script,
    configuration: Configuration,
}

impl Node {
    fn is(&self, trouble: Trouble) -> bool {
        self.script.trouble == Some(trouble)
    }

    fn path(&self, below: &str) -> PathBuf {
        self.data.join(below)
    }

    /// The token, from where K3s takes it.
    fn token(&self) -> Result<Option<Token>> {
        let text = match (self.configuration.one("token-file"), self.configuration.one("token")) {
            (Some(file), _) => fs::read_to_string(file).with_context(|| format!("open {file}"))?,
            (None, Some(token)) => token.to_owned(),
            (None, None) => env::var("K3S_TOKEN").unwrap_or_default(),
        };
        if text.trim().is_empty() { Ok(None) } else { Token::parse(text.trim()).map(Some) }
    }
}

/// A token, taken apart by K3s' rules.
struct Token {
    pin: Option<String>,
    /// The password, or the whole bootstrap token.
    secret: String,
    is_bootstrap: bool,
}

impl Token {
    fn parse(text: &str) -> Result<Self> {
        let (pin, secret) = match text.strip_prefix("K10") {
            None => (None, text),
            Some(rest) => {
                let (pin, secret) = rest.split_once("::").context("invalid token format")?;
                if !pin.is_empty() && pin.len() != 64 {
                    bail!("invalid token CA hash length");
                }
                (Some(pin.to_owned()).filter(|pin| !pin.is_empty()), secret)
            }
        };
        let part = |text: &str, length| {
            text.len() == length && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        let is_bootstrap = secret.split_once('.').is_some_and(|(id, rest)| part(id, 6) && part(rest, 16));
        let secret = match text.starts_with("K10") && !is_bootstrap {
            true => secret.split_once(':').filter(|(_, p)| !p.is_empty()).context("invalid token format")?.1,
            false => secret,
        };
        Ok(Self { pin, secret: secret.to_owned(), is_bootstrap })
    }
}

/// One line of the log, in logrus' shape.
fn say(level: &str, message: impl Display) {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
    eprintln!("time=\"{now}\" level={level} msg={:?}", message.to_string());
}

/// Tells systemd that the unit is up, once there is one that wants to know.
fn be_ready(node: &Node, what: &str) {
    if node.is(Trouble::Silence) {
        return;
    }
    say("info", format!("k3s {what}is up and running"));
    // Without a socket nobody asked.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}

fn host_name() -> Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_lowercase())
}

/// Writes a file that only root reads, with its folders.
fn keep(path: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    let folder = path.parent().context("a file has a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("mkdir {}", folder.display()))?;
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes()).with_context(|| format!("writing {}", path.display()))
}

/// Makes a link anew.
fn link(to: &str, path: &Path) -> Result<()> {
    // There may be one from an earlier start.
    let _ = fs::remove_file(path);
    symlink(to, path).with_context(|| format!("linking {}", path.display()))
}

/// Host and port of a server's URL.
fn host_and_port(url: &str) -> Result<(String, u16)> {
    let rest = url
        .strip_prefix("https://")
        .with_context(|| format!("only https:// URLs are supported, invalid scheme: {url}"))?;
    let rest = rest.split('/').next().unwrap_or_default();
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().context("the port is none")?),
        _ => (rest, 443),
    };
    Ok((host.trim_matches(['[', ']']).to_owned(), port))
}

/// Passes connections on to a server, as K3s' load balancer does, to wherever its name leads at that moment.
fn forward(from: SocketAddr, host: String, port: u16) -> Result<()> {
    let listener = TcpListener::bind(from).with_context(|| format!("listen tcp {from}: bind"))?;
    thread::spawn(move || {
        while let Ok((near, _)) = listener.accept() {
            let host = host.clone();
            thread::spawn(move || -> Result<()> {
                let address = (host.as_str(), port).to_socket_addrs()?.next().context("no such host")?;
                let far = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
                let (mut near_in, mut near_out) = (near.try_clone()?, near);
                let (mut far_in, mut far_out) = (far.try_clone()?, far);
                let back = thread::spawn(move || {
                    // Either side may end it.
                    let _ = copy(&mut far_in, &mut near_out);
                    let _ = near_out.shutdown(Shutdown::Write);
                });
                let _ = copy(&mut near_in, &mut far_out);
                let _ = far_out.shutdown(Shutdown::Write);
                let _ = back.join();
                Ok(())
            });
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_taken_apart_as_k3s_does() {
        let pin = "ab".repeat(32);
        let parts = |text: &str| {
            Token::parse(text).map(|t| (t.pin.is_some(), t.secret, t.is_bootstrap)).map_err(|e| e.to_string())
        };
        assert_eq!(parts("secret"), Ok((false, "secret".to_owned(), false)));
        assert_eq!(parts("a:b"), Ok((false, "a:b".to_owned(), false)));
        assert_eq!(parts(&format!("K10{pin}::server:x:y")), Ok((true, "x:y".to_owned(), false)));
        let bootstrap = "abcdef.0123456789abcdef";
        assert_eq!(parts(bootstrap), Ok((false, bootstrap.to_owned(), true)));
        assert_eq!(parts(&format!("K10{pin}::{bootstrap}")), Ok((true, bootstrap.to_owned(), true)));
        for bad in ["K10abc::server:x", "K10", &format!("K10{pin}::server:"), &format!("K10{pin}::x")] {
            assert!(Token::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn urls_lead_to_hosts_and_ports() {
        let lead = |url: &str| host_and_port(url).map(|(host, port)| format!("{host} {port}")).ok();
        assert_eq!(lead("https://pi1:6443").as_deref(), Some("pi1 6443"));
        assert_eq!(lead("https://[fd00::1]:6443/").as_deref(), Some("fd00::1 6443"));
        assert_eq!(lead("https://pi1").as_deref(), Some("pi1 443"));
        assert_eq!(lead("http://pi1:6443"), None);
    }
}
