//! The stand-in's sockets: TLS, HTTP and what K3s' supervisor answers; everything else is the [`Cluster`]'s.
//!
//! Every connection carries one request and has a thread of its own, so a test can let one hang while others go on.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, ServerConnection,
    SignatureScheme, StreamOwned,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use serde_json::{Value, json};

use super::{
    authority::{Authority, Pair, Validity, parse},
    cluster::{Cluster, User, failure},
};

/// A request's head may be so long.
const LONGEST_HEAD: usize = 64 << 10;
/// A client that says nothing is let go after this.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a server is made of.
#[derive(Debug)]
pub struct Settings {
    /// Signs the server's certificates; `/cacerts` shows it.
    pub authority: Arc<Authority>,
    /// Signs the clients' certificates.
    pub clients: Arc<Authority>,
    /// Signs the certificate that is really shown, instead of `authority`: a public one, or a wrong one.
    pub signer: Option<Arc<Authority>>,
    /// When that certificate holds.
    pub validity: Validity,
    /// For which names and addresses it is made; without, for those that K3s puts in.
    pub names: Option<Vec<String>>,
    /// What `/cacerts` shows instead of `authority`.
    pub cacerts: Option<String>,
    /// The password of a server token.
    pub password: String,
    /// The password of an agent token, when it is another.
    pub agent_password: Option<String>,
    /// A bootstrap token, `abcdef.0123456789abcdef`, when there is one.
    pub bootstrap: Option<String>,
    /// What `/v1-k3s/config` says otherwise than a server that was set up for Cilium.
    pub config: Value,
}

impl Settings {
    /// A server as K3s makes it at its first start, with this password.
    ///
    /// # Errors
    /// No randomness.
    pub fn new(password: &str) -> Result<Self> {
        Ok(Self {
            authority: Authority::single("k3s-server-ca")?.into(),
            clients: Authority::single("k3s-client-ca")?.into(),
            signer: None,
            validity: Validity::Now,
            names: None,
            cacerts: None,
            password: password.to_owned(),
            agent_password: None,
            bootstrap: None,
            config: json!({}),
        })
    }
}

/// How connections are met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manner {
    /// With TLS.
    #[default]
    Tls,
    /// With HTTP and nothing around it.
    Plain,
    /// Accepted, and nothing is ever said.
    Silent,
    /// Closed at once.
    HangUp,
}

/// What happens to a request of one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The answer comes after this time.
    Late(Duration),
    /// The answer's bytes come one by one, each after this time.
    Slow(Duration),
    /// The connection ends after half of the answer's body.
    CutOff,
    /// The body has so many bytes, all of them sent while somebody reads.
    Huge(u64),
    /// The answer is somewhere else.
    Redirect(String),
    /// The answer is this status with this text.
    Status(u16, String),
}

/// One request that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// `GET`, `POST`, `PATCH`, `DELETE`.
    pub method: String,
    /// With the query.
    pub path: String,
    /// The answer's status.
    pub status: u16,
}

/// A running server. Dropping it closes its sockets.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    listeners: Vec<(TcpListener, SocketAddr)>,
}

#[derive(Debug)]
struct Shared {
    settings: Settings,
    state: Mutex<State>,
    ended: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    cluster: Cluster,
    manner: Manner,
    faults: BTreeMap<String, Fault>,
    calls: Vec<Call>,
    is_down: bool,
}

impl Server {
    /// Listens on `address` in the network of the calling thread; port 0 takes a free one.
    ///
    /// # Errors
    /// The address is not this machine's, or taken.
    pub fn start(settings: Settings, mut cluster: Cluster, address: SocketAddr) -> Result<Self> {
        if !address.ip().is_unspecified() {
            cluster.put_server(address);
        }
        let state = Mutex::new(State { cluster, ..State::default() });
        let shared = Arc::new(Shared { settings, state, ended: AtomicBool::new(false) });
        let mut server = Self { shared, listeners: Vec::new() };
        server.listen(address)?;
        Ok(server)
    }

    /// Listens on one more address.
    ///
    /// # Errors
    /// Those of [`Server::start`].
    pub fn listen(&mut self, address: SocketAddr) -> Result<()> {
        let listener = TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
        let address = listener.local_addr()?;
        let tls = self.shared.tls(address.ip())?;
        let (shared, accepting) = (Arc::clone(&self.shared), listener.try_clone()?);
        thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                let (shared, tls) = (Arc::clone(&shared), Arc::clone(&tls));
                // What goes wrong on a connection is its client's to tell.
                thread::spawn(move || shared.meet(stream, tls).unwrap_or_default());
            }
        });
        self.listeners.push((listener, address));
        Ok(())
    }

    /// Where it listens first.
    pub fn address(&self) -> SocketAddr {
        self.listeners[0].1
    }

    /// `https://` with the address.
    pub fn url(&self) -> String {
        format!("https://{}", self.address())
    }

    /// The secure token of its file `server/token`.
    ///
    /// # Errors
    /// `/cacerts` was set to something without a certificate.
    pub fn token(&self) -> Result<String> {
        let pin = Authority::pin(self.cacerts())?;
        Ok(format!("K10{pin}::server:{}", self.shared.settings.password))
    }

    /// What `/cacerts` shows.
    pub fn cacerts(&self) -> &str {
        self.shared.settings.cacerts.as_deref().unwrap_or(self.shared.settings.authority.pem())
    }

    /// A certificate with which everything may be done, as in `/etc/rancher/k3s/k3s.yaml`.
    ///
    /// # Errors
    /// No randomness.
    pub fn admin(&self) -> Result<Pair> {
        self.shared.settings.clients.client("system:admin", "system:masters")
    }

    /// Looks at the cluster or changes it.
    pub fn cluster<T>(&self, work: impl FnOnce(&mut Cluster) -> T) -> T {
        work(&mut self.shared.lock().cluster)
    }

    /// What it keeps over a restart, at any time.
    pub(super) fn keeper(&self) -> impl Fn() -> Value + Send + 'static {
        let shared = Arc::clone(&self.shared);
        move || shared.lock().cluster.save()
    }

    /// From now on connections are met so.
    pub fn set_manner(&self, manner: Manner) {
        self.shared.lock().manner = manner;
    }

    /// From now on this happens to requests of a path; with none nothing does.
    pub fn set_fault(&self, path: &str, fault: Option<Fault>) {
        let faults = &mut self.shared.lock().faults;
        match fault {
            Some(fault) => faults.insert(path.to_owned(), fault),
            None => faults.remove(path),
        };
    }

    /// Whether the datastore and the API server are up; until then much is answered by 503.
    pub fn set_ready(&self, is_ready: bool) {
        self.shared.lock().is_down = !is_ready;
    }

    /// What was asked so far.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.lock().calls.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        for (listener, _) in &self.listeners {
            // It wakes the thread that accepts; a socket that is gone needs no more.
            let _ = nix::sys::socket::shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        }
    }
}

/// A request as it came.
#[derive(Debug)]
struct Request {
    method: String,
    path: String,
    query: String,
    headers: BTreeMap<String, String>,
    body: String,
}

/// What the supervisor calls roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Agent,
    Server,
    Node,
    Bootstrapper,
    Master,
}

/// Status, type and body.
type Reply = (u16, &'static str, Vec<u8>);

fn text(code: u16, body: impl Into<Vec<u8>>) -> Reply {
    (code, "text/plain", body.into())
}

fn object((code, body): (u16, Value)) -> Reply {
    (code, "application/json", body.to_string().into_bytes())
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A test that failed while it held the lock has failed already.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tls(&self, address: IpAddr) -> Result<Arc<ServerConfig>> {
        let settings = &self.settings;
        let names = settings.names.clone().unwrap_or_else(|| {
            let mut addresses = vec![Ipv4Addr::LOCALHOST.into(), IpAddr::from(Ipv6Addr::LOCALHOST)];
            if !address.is_unspecified() && !address.is_loopback() {
                addresses.push(address);
            }
            let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
            let addresses = addresses.iter().map(ToString::to_string);
            names.into_iter().map(str::to_owned).chain(addresses).collect()
        });
        let signer = settings.signer.as_ref().unwrap_or(&settings.authority);
        let (chain, key) = signer.server(&names, settings.validity)?.parts()?;
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(Arc::new(AnyClient(provider)))
            .with_single_cert(chain, key)?;
        Ok(Arc::new(config))
    }

    fn meet(&self, stream: TcpStream, tls: Arc<ServerConfig>) -> Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let manner = self.lock().manner;
        match manner {
            Manner::Tls => {
                let socket = stream.try_clone()?;
                let mut stream = StreamOwned::new(ServerConnection::new(tls)?, stream);
                let request = read(&mut stream)?;
                let user = self.user(stream.conn.peer_certificates());
                let is_whole = self.answer(&user, &request, &mut stream)?;
                if is_whole {
                    stream.conn.send_close_notify();
                    stream.flush()?;
                }
                socket.shutdown(Shutdown::Write)?;
            }
            Manner::Plain => {
                let mut stream = stream;
                let Ok(request) = read(&mut stream) else {
                    stream
                        .write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n400 Bad Request")?;
                    return Ok(());
                };
                self.answer(&User::Nobody, &request, &mut stream)?;
            }
            Manner::Silent => self.pause(PATIENCE),
            Manner::HangUp => {}
        }
        Ok(())
    }

    /// Sends the answer, spoilt as the path's fault wants it; whether all of it was sent.
    fn answer(&self, user: &User, request: &Request, stream: &mut impl Write) -> Result<bool> {
        let fault = self.lock().faults.get(&request.path).cloned();
        if let Some(Fault::Late(time)) = fault {
            self.pause(time);
        }
        let (mut code, mut kind, mut body) = match &fault {
            Some(Fault::Redirect(_)) => text(302, ""),
            Some(Fault::Status(code, body)) => text(*code, body.as_str()),
            _ => self.reply(user, request),
        };
        if let Some(Fault::Huge(_)) = fault {
            (code, kind, body) = text(200, "");
        }
        let location = match &fault {
            Some(Fault::Redirect(to)) => format!("Location: {to}\r\n"),
            _ => String::new(),
        };
        let length = if let Some(Fault::Huge(length)) = fault { length } else { body.len() as u64 };
        let path = if request.query.is_empty() {
            request.path.clone()
        } else {
            format!("{}?{}", request.path, request.query)
        };
        self.lock().calls.push(Call { method: request.method.clone(), path, status: code });
        let head = format!(
            "HTTP/1.1 {code} {}\r\nContent-Type: {kind}\r\n{location}Content-Length: {length}\r\nConnection: close\r\n\r\n",
            reason(code)
        );
        match fault {
            Some(Fault::Slow(pause)) => {
                for byte in head.as_bytes().iter().chain(&body) {
                    stream.write_all(&[*byte])?;
                    stream.flush()?;
                    self.pause(pause);
                }
            }
            Some(Fault::CutOff) => {
                stream.write_all(head.as_bytes())?;
                stream.write_all(&body[..body.len() / 2])?;
                stream.flush()?;
                return Ok(false);
            }
            Some(Fault::Huge(length)) => {
                stream.write_all(head.as_bytes())?;
                let block = [b'#'; 1 << 16];
                let mut left = length;
                while left > 0 && !self.ended.load(Ordering::Relaxed) {
                    let part = left.min(block.len() as u64);
                    stream.write_all(&block[..usize::try_from(part)?])?;
                    left -= part;
                }
            }
            _ => {
                stream.write_all(head.as_bytes())?;
                stream.write_all(&body)?;
            }
        }
        stream.flush()?;
        Ok(true)
    }

    fn pause(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.ended.load(Ordering::Relaxed) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            sleep(left.min(Duration::from_millis(50)));
        }
    }

    /// Whose certificate it is, when the clients' authority signed it.
    fn user(&self, chain: Option<&[CertificateDer<'static>]>) -> User {
        let Some([leaf, issuers @ ..]) = chain else { return User::Nobody };
        let signed = || -> Result<()> {
            let mut roots = RootCertStore::empty();
            for certificate in parse(self.settings.clients.pem())? {
                roots.add(certificate)?;
            }
            let provider = Arc::new(ring::default_provider());
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build()?;
            verifier.verify_client_cert(leaf, issuers, UnixTime::now())?;
            Ok(())
        };
        if signed().is_err() {
            return User::Nobody;
        }
        match common_name(leaf) {
            Some("system:admin") => User::Admin,
            Some(name) => {
                name.strip_prefix("system:node:").map_or(User::Nobody, |n| User::Node(n.to_owned()))
            }
            None => User::Nobody,
        }
    }

    fn reply(&self, user: &User, request: &Request) -> Reply {
        match request.path.as_str() {
            "/ping" => text(200, "pong"),
            "/cacerts" => {
                text(200, self.settings.cacerts.as_deref().unwrap_or(self.settings.authority.pem()))
            }
            path => match path.strip_prefix("/v1-k3s/") {
                Some(what) => self.supervise(user, what, request),
                None => self.serve(user, request),
            },
        }
    }

    /// The API server, which knows no anonymous users.
    fn serve(&self, user: &User, request: &Request) -> Reply {
        let mut state = self.lock();
        if state.is_down {
            return object(failure(503, "ServiceUnavailable", "apiserver not ready"));
        }
        let is_probe = matches!(request.path.as_str(), "/readyz" | "/livez" | "/healthz");
        if is_probe && *user != User::Nobody {
            return text(200, "ok");
        }
        object(state.cluster.serve(user, &request.method, &request.path, &request.query, &request.body))
    }

    /// The roles that a request's credentials give; `Err` when they are wrong ones.
    fn roles(&self, user: &User, request: &Request) -> Result<Vec<Role>, ()> {
        let mut roles = match user {
            User::Nobody => vec![],
            User::Node(_) => vec![Role::Node],
            User::Admin => vec![Role::Master],
        };
        let settings = &self.settings;
        let Some(credentials) = request.headers.get("authorization") else { return Ok(roles) };
        if let Some(bearer) = credentials.strip_prefix("Bearer ") {
            if settings.bootstrap.as_deref() != Some(bearer) {
                return Err(());
            }
            roles.push(Role::Bootstrapper);
            return Ok(roles);
        }
        let basic = credentials.strip_prefix("Basic ").and_then(|text| STANDARD.decode(text).ok());
        let basic = basic.and_then(|bytes| String::from_utf8(bytes).ok()).ok_or(())?;
        let agent = settings.agent_password.as_ref().unwrap_or(&settings.password);
        match basic.split_once(':').ok_or(())? {
            ("server", password) if password == settings.password => roles.push(Role::Server),
            ("node", password) if password == agent => roles.push(Role::Agent),
            _ => return Err(()),
        }
        Ok(roles)
    }

    fn supervise(&self, user: &User, what: &str, request: &Request) -> Reply {
        let Ok(roles) = self.roles(user, request) else {
            return object(failure(401, "Unauthorized", "not authorized"));
        };
        let wanted: &[Role] = match what {
            "server-bootstrap" | "stand-in/member" => &[Role::Server],
            "connect" => &[Role::Node],
            _ => &[Role::Agent, Role::Node, Role::Bootstrapper],
        };
        if !wanted.iter().any(|role| roles.contains(role)) {
            return object(failure(403, "Forbidden", "forbidden"));
        }
        let settings = &self.settings;
        let is_down = self.lock().is_down;
        match what {
            "config" => object((200, self.config())),
            "apiservers" => object((200, json!([]))),
            "readyz" if is_down => object(failure(503, "ServiceUnavailable", "runtime core not ready")),
            "readyz" => text(200, "ok"),
            "client-ca.crt" => text(200, settings.clients.pem()),
            "server-ca.crt" => text(200, settings.authority.pem()),
            "client-kube-proxy.crt" => certificate(settings.clients.client("system:kube-proxy", "")),
            "client-k3s-controller.crt" => certificate(settings.clients.client("system:k3s-controller", "")),
            "serving-kubelet.crt" | "client-kubelet.crt" => self.kubelet(what, is_down, request),
            "server-bootstrap" => {
                let authority = |a: &Authority| json!({"crt": a.pem(), "key": a.key()});
                let learner = self.lock().cluster.members.values().any(|is_learner| *is_learner);
                object((
                    200,
                    json!({
                        "server-ca": authority(&settings.authority), "client-ca": authority(&settings.clients),
                        "learner": learner,
                    }),
                ))
            }
            // K3s says this to etcd; the stand-in has none.
            "stand-in/member" => {
                self.lock().cluster.members.insert(request.body.clone(), false);
                text(200, "")
            }
            _ => object(failure(404, "NotFound", "the server could not find the requested resource")),
        }
    }

    /// A kubelet's certificate, for a node whose password is right.
    fn kubelet(&self, what: &str, is_down: bool, request: &Request) -> Reply {
        let header = |name: &str| request.headers.get(name).filter(|value| !value.is_empty());
        let Some(node) = header("k3s-node-name").map(|name| name.to_lowercase()) else {
            return object(failure(400, "BadRequest", "node name not set"));
        };
        let Some(password) = header("k3s-node-password") else {
            return object(failure(400, "BadRequest", "node password not set"));
        };
        if is_down {
            return object(failure(503, "ServiceUnavailable", "runtime core not ready"));
        }
        if !self.lock().cluster.admits(&node, password) {
            let why = format!("unable to verify password for node {node}: hash does not match");
            return object(failure(403, "Forbidden", &why));
        }
        if what == "client-kubelet.crt" {
            return certificate(self.settings.clients.client(&format!("system:node:{node}"), "system:nodes"));
        }
        let mut names = vec![node, "localhost".to_owned(), "127.0.0.1".to_owned()];
        names.extend(header("k3s-node-ip").into_iter().flat_map(|ips| ips.split(',').map(str::to_owned)));
        certificate(self.settings.authority.server(&names, Validity::Now))
    }

    fn config(&self) -> Value {
        let network = |ip: &str| json!({"IP": ip, "Mask": "//8AAA=="});
        let mut config = json!({
            "ClusterIPRange": network("10.42.0.0"), "ClusterIPRanges": [network("10.42.0.0")],
            "ServiceIPRange": network("10.43.0.0"), "ServiceIPRanges": [network("10.43.0.0")],
            "ClusterDNS": "10.43.0.10", "ClusterDNSs": ["10.43.0.10"], "ClusterDomain": "cluster.local",
            "DisableCCM": false, "DisableHelmController": false, "DisableNPC": true, "DisableServiceLB": true,
            "EncryptSecrets": false, "EmbeddedRegistry": false, "FlannelBackend": "none",
            "FlannelIPv6Masq": false, "FlannelExternalIP": false, "EgressSelectorMode": "agent",
            "HTTPSPort": 6443, "SupervisorPort": 6443, "DisableKubeProxy": true,
        });
        if let (Some(config), Some(other)) = (config.as_object_mut(), self.settings.config.as_object()) {
            config.extend(other.clone());
        }
        config
    }
}

fn certificate(pair: Result<Pair>) -> Reply {
    match pair {
        Ok(pair) => text(200, pair.certificates + &pair.key),
        Err(error) => object(failure(500, "InternalError", &format!("{error:#}"))),
    }
}

fn reason(code: u16) -> &'static str {
    match code {
        200 => "OK",
        201 => "Created",
        302 => "Found",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        409 => "Conflict",
        429 => "Too Many Requests",
        503 => "Service Unavailable",
        _ => "Other",
    }
}

fn read(stream: &mut impl Read) -> Result<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < LONGEST_HEAD, "the head does not end");
        let mut byte = [0];
        ensure!(stream.read(&mut byte)? == 1, "the request ends in its head");
        head.push(byte[0]);
        // A line that is none, like the first bytes of TLS, has no end to wait for.
        ensure!(head[0].is_ascii_uppercase(), "this is not HTTP");
    }
    let head = String::from_utf8(head)?;
    let mut lines = head.lines();
    let mut first = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target)) = (first.next(), first.next()) else { bail!("this is not HTTP") };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.get("content-length").map_or(Ok(0), |length| length.parse())?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let (method, path, query) = (method.to_owned(), path.to_owned(), query.to_owned());
    Ok(Request { method, path, query, headers, body: String::from_utf8(body)? })
}

/// The subject's common name: the last one in a certificate, whose issuer stands before.
fn common_name(certificate: &[u8]) -> Option<&str> {
    const IS_COMMON_NAME: [u8; 5] = [6, 3, 0x55, 4, 3];
    let at = certificate.windows(5).rposition(|bytes| bytes == IS_COMMON_NAME)? + 5;
    let length = usize::from(*certificate.get(at + 1)?);
    std::str::from_utf8(certificate.get(at + 2..at + 2 + length)?).ok()
}

/// Takes every client certificate whose key the client has: K3s looks at it only when it matters, and says 401 then.
#[derive(Debug)]
struct AnyClient(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::client::Client, *};

    fn server(settings: Settings) -> Server {
        Server::start(settings, Cluster::default(), "127.0.0.1:0".parse().unwrap()).unwrap()
    }

    fn plain() -> Server {
        server(Settings::new("secret").unwrap())
    }

    #[test]
    fn its_certificates_are_shown_to_anybody_and_hold_for_what_they_should() {
        let kept = plain();
        let any = Client::new(kept.address());
        let shown = any.get("/cacerts").unwrap();
        assert_eq!((shown.status, shown.body.as_str()), (200, kept.cacerts()));
        assert_eq!(Client::new(kept.address()).trusting(&shown.body).get("/ping").unwrap().body, "pong");
        let other = Authority::single("other").unwrap();
        assert!(Client::new(kept.address()).trusting(other.pem()).get("/ping").is_err());

        let chain = Authority::with_root("owner").unwrap();
        let pem = chain.pem().to_owned();
        let kept = server(Settings { authority: chain.into(), ..Settings::new("x").unwrap() });
        assert_eq!(Client::new(kept.address()).trusting(&pem).get("/ping").unwrap().status, 200);

        for (validity, named) in [(Validity::NotYet, "not valid yet"), (Validity::Expired, "expired")] {
            let kept = server(Settings { validity, ..Settings::new("x").unwrap() });
            let error = Client::new(kept.address()).trusting(kept.cacerts()).get("/ping").unwrap_err();
            assert!(format!("{error:#}").contains(named), "{error:#}");
        }
        let kept =
            server(Settings { names: Some(vec!["elsewhere".to_owned()]), ..Settings::new("x").unwrap() });
        let error = Client::new(kept.address()).trusting(kept.cacerts()).get("/ping").unwrap_err();
        assert!(format!("{error:#}").contains("not valid for name"), "{error:#}");
    }

    #[test]
    fn roles_are_those_of_the_token() {
        let settings = Settings {
            agent_password: Some("agents".to_owned()),
            bootstrap: Some("abcdef.0123456789abcdef".to_owned()),
            ..Settings::new("secret").unwrap()
        };
        let kept = server(settings);
        let ask = |path: &str, credentials: Option<&str>| {
            let client = Client::new(kept.address()).trusting(kept.cacerts());
            let client = match credentials {
                Some(text) if text.contains(':') => {
                    let (user, password) = text.split_once(':').unwrap();
                    client.basic(user, password)
                }
                Some(token) => client.bearer(token),
                None => client,
            };
            client.get(&format!("/v1-k3s/{path}")).unwrap().status
        };
        assert_eq!(ask("config", None), 403);
        assert_eq!(ask("config", Some("node:agents")), 200);
        assert_eq!(ask("config", Some("node:secret")), 401, "agents have a token of their own");
        assert_eq!(ask("config", Some("server:secret")), 403, "K3s' agents always ask as node");
        assert_eq!(ask("config", Some("abcdef.0123456789abcdef")), 200);
        assert_eq!(ask("config", Some("abcdef.0000000000000000")), 401);
        assert_eq!(ask("server-bootstrap", Some("server:secret")), 200);
        assert_eq!(ask("server-bootstrap", Some("node:agents")), 403);
        assert_eq!(ask("connect", Some("node:agents")), 403);
        assert_eq!(ask("readyz", Some("node:agents")), 200);
        kept.set_ready(false);
        assert_eq!(ask("readyz", Some("node:agents")), 503);
    }

    #[test]
    fn a_kubelet_gets_certificates_with_its_password_and_is_known_by_them() {
        let kept = plain();
        let trusting = || Client::new(kept.address()).trusting(kept.cacerts());
        let certificate = |password: &str| {
            let client = trusting().basic("node", "secret");
            let client = client.header("k3s-Node-Name", "Pi1").header("k3s-Node-Password", password);
            client.get("/v1-k3s/client-kubelet.crt").unwrap()
        };
        let first = certificate("one");
        assert_eq!(first.status, 200);
        let refused = certificate("two");
        assert_eq!(refused.status, 403);
        assert!(refused.body.contains("hash does not match"), "{}", refused.body);

        assert_eq!(trusting().get("/readyz").unwrap().status, 401);
        let pair = Pair::split(&first.body);
        let kubelet = || trusting().with(&pair).unwrap();
        assert_eq!(kubelet().get("/readyz").unwrap().body, "ok");
        let node = r#"{"metadata": {"name": "pi1"}}"#;
        assert_eq!(kubelet().send("POST", "/api/v1/nodes", node).unwrap().status, 201);
        assert_eq!(kubelet().get("/api/v1/nodes/pi1").unwrap().status, 200);
        assert_eq!(
            trusting().with(&kept.admin().unwrap()).unwrap().get("/api/v1/nodes").unwrap().status,
            200
        );
        let foreign =
            Authority::single("k3s-client-ca").unwrap().client("system:admin", "system:masters").unwrap();
        assert_eq!(trusting().with(&foreign).unwrap().get("/api/v1/nodes").unwrap().status, 401);
        assert!(kept.calls().iter().any(|call| call.path == "/api/v1/nodes" && call.status == 201));
    }

    #[test]
    fn faults_are_what_they_are_called() {
        let kept = plain();
        let ask = || Client::new(kept.address()).trusting(kept.cacerts()).get("/ping");
        kept.set_fault("/ping", Some(Fault::CutOff));
        assert!(ask().is_err());
        kept.set_fault("/ping", Some(Fault::Redirect("/ping".to_owned())));
        assert_eq!(ask().unwrap().status, 302);
        kept.set_fault("/ping", Some(Fault::Status(500, "no".to_owned())));
        assert_eq!(ask().unwrap().body, "no");
        kept.set_fault("/ping", Some(Fault::Huge(1 << 20)));
        assert_eq!(ask().unwrap().body.len(), 1 << 20);
        for fault in [Fault::Late(Duration::from_millis(60)), Fault::Slow(Duration::from_millis(1))] {
            kept.set_fault("/ping", Some(fault));
            let began = Instant::now();
            assert_eq!(ask().unwrap().body, "pong");
            assert!(began.elapsed() >= Duration::from_millis(60));
        }
        kept.set_fault("/ping", None);
        assert_eq!(ask().unwrap().body, "pong");
        for manner in [Manner::Plain, Manner::HangUp] {
            kept.set_manner(manner);
            assert!(ask().is_err());
        }
    }
}
