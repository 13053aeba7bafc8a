//! The companion: the one process with rights in the kernel, and its conversation with the agent.
//!
//! The companion listens on a Unix socket in the runtime directory. It accepts root and its own user only, checked by the
//! peer credentials that the kernel gives, and speaks to one agent at a time: the newest. Both sides send one JSON
//! object a line, at most [`LONGEST_LINE`] bytes. The agent sends [`Wanted`] once it knows its peers and whenever they change; until
//! then those of the agent before are probed on. The companion looks at its peers once a period, and sends a [`Sample`] when
//! something in it is new, and in any case as often as the agent reports. Numbers are so old at most. A kernel setting that was
//! written is told at once.

use std::{collections::BTreeMap, io, net::Ipv4Addr, path::Path};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};
use wire::{
    report::{PeerReport, Tier},
    topic::Name,
};

pub mod serve;
mod settings;

pub use settings::Change;

/// A thousand peers fit.
const LONGEST_LINE: u64 = 1 << 20;

/// Agent to companion: whom to probe.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// All peers, by name.
    pub peers: BTreeMap<Name, Ipv4Addr>,
    /// Whether somebody watches the numbers: then they are told every period.
    #[serde(default)]
    pub is_watched: bool,
}

/// Companion to agent: what was seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// How the mesh is measured, and why not better.
    pub tier: Tier,
    /// Address of the uplink; `None` without one.
    pub address: Option<Ipv4Addr>,
    /// Time between two batches of probes, ms.
    pub period_ms: u64,
    /// Time until the next sample, at most, ms.
    pub next_ms: u64,
    /// Settings of the kernel that changed since the last sample.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
    /// Both ways of each peer, or why none is known.
    pub mesh: Result<BTreeMap<Name, PeerReport>, String>,
    /// Counts of the other kernel programs by probe id, or why there are none. They change slowly and cost a system call
    /// a number, so they come every tenth period and are absent between.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<Sources>,
}

/// Counts of kernel programs by probe id, or why there are none.
pub type Sources = BTreeMap<String, Result<serde_json::Value, String>>;

/// One end of a conversation: writes `W`, reads `R`.
#[derive(Debug)]
pub struct Link {
    reader: BufReader<tokio::io::Take<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
    line: Vec<u8>,
}

impl Link {
    fn new(stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        Self { reader: BufReader::with_capacity(1024, reader.take(LONGEST_LINE)), writer, line: Vec::new() }
    }

    /// Connects to the companion, if it is one: root, or our own user.
    ///
    /// # Errors
    /// Nobody listens, or somebody else does.
    pub async fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket).await?;
        trusted(&stream)?;
        Ok(Self::new(stream))
    }

    /// Sends one message.
    ///
    /// # Errors
    /// The other side is gone.
    pub async fn send<T: Serialize>(&mut self, message: &T) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.writer.write_all(&line).await
    }

    /// Waits for one message. Cancel-safe: half a line stays until the rest is there.
    ///
    /// # Errors
    /// The other side is gone, or says what this version does not understand.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        loop {
            let read = self.reader.read_until(b'\n', &mut self.line).await?;
            if self.line.last() == Some(&b'\n') {
                break;
            }
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let message = serde_json::from_slice(&self.line);
        self.line.clear();
        self.reader.get_mut().set_limit(LONGEST_LINE);
        Ok(message?)
    }
}

/// Whether the other end is root or this very user.
///
/// # Errors
/// It is somebody else.
pub fn trusted(stream: &UnixStream) -> io::Result<()> {
    let (peer, own) = (stream.peer_cred()?.uid(), nix::unistd::geteuid().as_raw());
    if peer == 0 || peer == own {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!("the other end belongs to user {peer}; only root and user {own} are trusted"),
    ))
}

/// Listens on a socket path, which a dead predecessor may have left; `mode` says who may connect.
///
/// # Errors
/// One sentence with the path: somebody listens there already, or the directory cannot be written.
pub fn listen(socket: &Path, mode: u32) -> Result<UnixListener, String> {
    use std::os::unix::fs::PermissionsExt;
    let shown = socket.display();
    // Of the wrong kind on purpose: a living socket refuses it as such, and its owner gets no connection to care for.
    let knock = std::os::unix::net::UnixDatagram::unbound().and_then(|knock| knock.connect(socket));
    if knock.is_err_and(|e| e.raw_os_error() == Some(nix::errno::Errno::EPROTOTYPE as i32)) {
        return Err(format!("{shown}: another one is running already; stop it first"));
    }
    let fail = |e: io::Error| format!("{shown}: {e}; may this user write there?");
    if let Some(directory) = socket.parent() {
        std::fs::create_dir_all(directory).map_err(fail)?;
    }
    match nix::unistd::unlink(socket) {
        Ok(()) | Err(nix::errno::Errno::ENOENT) => {}
        Err(errno) => return Err(fail(errno.into())),
    }
    let listener = UnixListener::bind(socket).map_err(fail)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(mode)).map_err(fail)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Link, UnixStream) {
        let (a, b) = UnixStream::pair().unwrap();
        (Link::new(a), b)
    }

    #[tokio::test]
    async fn messages_arrive_whole_however_they_are_cut() {
        let (mut link, mut other) = pair();
        other.write_all(b"{\"peers\":{\"n2\":").await.unwrap();
        let early =
            tokio::time::timeout(std::time::Duration::from_millis(20), link.receive::<Wanted>()).await;
        assert!(early.is_err());
        other.write_all(b"\"198.18.0.2\"}}\n{\"peers\":{}}\n").await.unwrap();
        assert_eq!(link.receive::<Wanted>().await.unwrap().peers.len(), 1);
        assert_eq!(link.receive::<Wanted>().await.unwrap(), Wanted::default());
    }

    #[tokio::test]
    async fn a_second_one_is_refused_without_disturbing_the_first() {
        let directory = std::env::temp_dir().join(format!("bramble-listen-{}", std::process::id()));
        let socket = directory.join("a.sock");
        let first = listen(&socket, 0o600).unwrap();
        let why = listen(&socket, 0o600).unwrap_err();
        assert!(why.contains("another one is running"), "{why}");
        let disturbed = tokio::time::timeout(std::time::Duration::from_millis(50), first.accept()).await;
        assert!(disturbed.is_err());
        drop(first);
        listen(&socket, 0o600).unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[tokio::test]
    async fn nonsense_endless_lines_and_an_early_end_are_errors() {
        let (mut link, mut other) = pair();
        other.write_all(b"{\"pears\":{}}\n").await.unwrap();
        assert!(link.receive::<Wanted>().await.is_err());
        drop(other);
        assert!(link.receive::<Wanted>().await.is_err());
        let (mut link, mut other) = pair();
        let flood = tokio::spawn(async move { while other.write_all(&[b'x'; 65536]).await.is_ok() {} });
        assert_eq!(link.receive::<Wanted>().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        drop(link);
        flood.await.unwrap();
    }
}
