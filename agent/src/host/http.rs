//! The door to other machines: one HTTPS request on one connection, and every way it can fail told apart.
//!
//! K3s' own client is followed where a server of K3s is asked (see `crate::k3s`); this file knows nothing of K3s. It
//! follows no redirect, uses no proxy, keeps no cookie, and holds no more of an answer than it was allowed to.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Where something is asked: `https://host[:port]/path`.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    https: bool,
    host: String,
    port: u16,
    /// Begins with `/`.
    path: String,
}

/// Why a text is no URL that can be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    /// Nothing before the host.
    #[error("it has no scheme: write https:// before it")]
    Scheme,
    /// Neither https nor http.
    #[error("its scheme is {0}, and only https and http are understood")]
    Unknown(String),
    /// Nothing between the scheme and the path.
    #[error("it names no host")]
    Host,
    /// An IPv6 address whose colons cannot be told from the port's.
    #[error("an IPv6 address stands in brackets, as in https://[fd00::1]:6443")]
    Brackets,
    /// Not a number from 1 to 65535.
    #[error("its port is no number from 1 to 65535")]
    Port,
    /// A user or a password before the host.
    #[error("it holds a user or a password, which would be seen by others")]
    User,
    /// A blank, a control character, or one that is not ASCII.
    #[error("it holds a blank or a character that no URL may hold")]
    Character,
}

impl Url {
    /// Reads one.
    pub fn parse(text: &str) -> Result<Url, BadUrl> {
        let (scheme, rest) = text.split_once("://").ok_or(BadUrl::Scheme)?;
        let https = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            other => return Err(BadUrl::Unknown(other.escape_debug().to_string())),
        };
        if rest.contains('@') {
            return Err(BadUrl::User);
        }
        if !rest.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(BadUrl::Character);
        }
        let rest = rest.split('#').next().unwrap_or_default();
        let (place, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (host, port) = match place.strip_prefix('[') {
            Some(place) => {
                let (host, port) = place.split_once(']').ok_or(BadUrl::Brackets)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| BadUrl::Brackets)?;
                (host, port)
            }
            None if place.matches(':').count() > 1 => return Err(BadUrl::Brackets),
            None => place.split_at(place.find(':').unwrap_or(place.len())),
        };
        if host.is_empty() {
            return Err(BadUrl::Host);
        }
        let is_of_a_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
        if !host.bytes().all(is_of_a_name) {
            return Err(BadUrl::Character);
        }
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => {
                if https {
                    443
                } else {
                    80
                }
            }
            Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or(BadUrl::Port)?,
            None => return Err(BadUrl::Port),
        };
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Url { https, host: host.to_ascii_lowercase(), port, path })
    }

    /// The same server, another path; it begins with `/`.
    pub fn at(&self, path: &str) -> Url {
        Url { path: path.to_owned(), ..self.clone() }
    }

    /// What a redirect of this URL leads to.
    pub fn join(&self, to: &str) -> Result<Url, BadUrl> {
        match to.starts_with('/') && !to.starts_with("//") {
            true => Ok(self.at(to)),
            false => Url::parse(to),
        }
    }

    /// Whether it is asked over TLS.
    pub fn is_https(&self) -> bool {
        self.https
    }

    /// The name or the address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The path, with what is asked behind it.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Scheme, host and port.
    pub fn origin(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{}", self.authority())
    }

    fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin(), self.path)
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whose certificates are believed.
#[derive(Debug, Clone, Copy)]
pub enum Trust<'a> {
    /// Those that the system believes.
    System,
    /// Those that this PEM text believes, and no other.
    Bundle(&'a [u8]),
    /// Anybody's: for what is proved another way, as the certificates of a K3s server by the pin of its token.
    Anybody,
}

/// Who we are, by a certificate and its key, both in PEM.
#[derive(Clone, Copy)]
pub struct Identity<'a> {
    /// The certificate, and those behind it.
    pub certificate: &'a [u8],
    /// Its key.
    pub key: &'a [u8],
}

impl fmt::Debug for Identity<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity")
    }
}

/// Who we are, by a secret. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// User and password.
    Basic(String, String),
    /// A token.
    Bearer(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential")
    }
}

impl Credential {
    fn header(&self) -> String {
        match self {
            Credential::Basic(user, password) => {
                format!("Basic {}", base64(format!("{user}:{password}").as_bytes()))
            }
            Credential::Bearer(token) => format!("Bearer {token}"),
        }
    }
}

/// How long is waited, and how much is taken.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For the name and for the connection, each.
    pub connect: Duration,
    /// For the handshake, for the head of the answer, and for each next piece of its body.
    pub answer: Duration,
    /// For all pieces of a body that is held in memory.
    pub whole: Duration,
    /// Bytes of a body that is held in memory.
    pub body: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        let seconds = Duration::from_secs;
        Limits { connect: seconds(5), answer: seconds(10), whole: seconds(20), body: 1 << 20 }
    }
}

/// One request.
#[derive(Debug, Clone)]
pub struct Request {
    method: &'static str,
    url: Url,
    headers: Vec<(&'static str, String)>,
    credential: Option<Credential>,
    body: Vec<u8>,
}

impl Request {
    /// With a method such as "GET".
    pub fn new(method: &'static str, url: &Url) -> Request {
        Request { method, url: url.clone(), headers: vec![], credential: None, body: vec![] }
    }

    /// A plain question.
    pub fn get(url: &Url) -> Request {
        Request::new("GET", url)
    }

    /// With a header more; what it says must be ASCII.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Request {
        self.headers.push((name, value.into()));
        self
    }

    /// With a secret.
    pub fn by(mut self, credential: Option<Credential>) -> Request {
        self.credential = credential;
        self
    }

    /// With a body and its type.
    pub fn body(self, kind: &'static str, body: Vec<u8>) -> Request {
        let mut request = self.header("content-type", kind);
        request.body = body;
        request
    }
}

/// Why there is no answer: one cause.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// No address for the name.
    #[error("{host} does not resolve: {why}")]
    Name {
        /// The name.
        host: String,
        /// The resolver's words.
        why: String,
    },
    /// The kernel has no route there.
    #[error("there is no route to {to}")]
    NoRoute {
        /// The address.
        to: String,
    },
    /// There is a route, and nobody at its end.
    #[error("no machine answers at {to}")]
    NoHost {
        /// The address.
        to: String,
    },
    /// A machine answers, and nothing listens on the port.
    #[error("{to} refuses the connection")]
    Refused {
        /// Address and port.
        to: String,
    },
    /// Nothing came.
    #[error("{what} took longer than {} s", .after.as_secs())]
    TimeOut {
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// The handshake failed.
    #[error(transparent)]
    Tls(Tls),
    /// The connection ended before the answer did.
    #[error("the connection was cut off {0}")]
    Cut(&'static str),
    /// What came is not HTTP.
    #[error("the answer is not HTTP: {0}")]
    NotHttp(String),
    /// The body has more bytes than are taken.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// The server sends elsewhere; that is not followed.
    #[error("the server answers {status} and sends to {to}")]
    Redirect {
        /// 301, 302, 303, 307 or 308.
        status: u16,
        /// Its header `Location`, printable.
        to: String,
    },
    /// An answer, and not a good one.
    #[error("the server answers {status}{}{says}", if says.is_empty() { "" } else { ": " })]
    Status {
        /// 400 and up.
        status: u16,
        /// The beginning of its body, printable.
        says: String,
    },
    /// Certificate or key that we were to use are not what they should be.
    #[error("{0}")]
    Material(String),
    /// Any other answer of the kernel.
    #[error("{0}")]
    Other(String),
}

/// Why a handshake failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Tls {
    /// What answers does not speak TLS.
    #[error("the server does not speak TLS")]
    NotTls,
    /// Nobody whom we believe has signed the certificate.
    #[error("the server's certificate was signed by somebody who is not believed")]
    UnknownIssuer,
    /// It counts from a moment that our clock has not reached; seconds since 1970, where they are known.
    #[error("the server's certificate is not valid yet")]
    NotYetValid {
        /// From when.
        from: Option<u64>,
    },
    /// It does not count any more.
    #[error("the server's certificate has expired")]
    Expired {
        /// Until when.
        until: Option<u64>,
    },
    /// It is another's.
    #[error("the server's certificate is not for {asked}, but for {}", .named.join(", "))]
    OtherName {
        /// Who was asked.
        asked: String,
        /// Whom it is for.
        named: Vec<String>,
    },
    /// Anything else.
    #[error("TLS: {0}")]
    Other(String),
}

/// Asks servers.
#[derive(Debug, Clone)]
pub struct Client {
    tls: Arc<ClientConfig>,
    limits: Limits,
}

/// How long each phase of a request took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// Until a TCP connection stood, with the search for the address.
    pub connect: Duration,
    /// From then on until both sides had agreed on keys; nothing without TLS.
    pub tls: Duration,
    /// From then on until the head of the answer was there.
    pub answer: Duration,
}

/// An answer whose body is still to come.
#[derive(Debug)]
pub struct Answer {
    /// 100 to 599.
    pub status: u16,
    /// The certificates that the server showed, in DER, its own first; none without TLS.
    pub certificates: Vec<Vec<u8>>,
    /// How long it took.
    pub times: Times,
    headers: hyper::HeaderMap,
    body: Incoming,
    limits: Limits,
    _connection: Connection,
}

/// An answer.
#[derive(Debug)]
pub struct Response {
    /// 100 to 599.
    pub status: u16,
    /// The certificates that the server showed, in DER, its own first; none without TLS.
    pub certificates: Vec<Vec<u8>>,
    /// How long it took until its head was there.
    pub times: Times,
    /// All of it.
    pub body: Vec<u8>,
}

/// The task that moves the bytes; it ends with the answer.
#[derive(Debug)]
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Client {
    /// One that believes `trust`, and shows `identity` where it is asked to.
    ///
    /// # Errors
    /// [`Trouble::Material`]: the bundle holds no certificate, or certificate and key are not a pair.
    pub fn new(trust: Trust<'_>, identity: Option<Identity<'_>>) -> Result<Client, Trouble> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| Trouble::Material(error.to_string()))?;
        let builder = match trust {
            Trust::System => builder.with_root_certificates(system()),
            Trust::Bundle(pem) => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(certificates(pem));
                if roots.is_empty() {
                    return Err(Trouble::Material("the bundle holds no certificate".into()));
                }
                builder.with_root_certificates(roots)
            }
            Trust::Anybody => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)))
            }
        };
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let key = PrivateKeyDer::from_pem_slice(identity.key)
                    .map_err(|_| Trouble::Material("the key is no private key in PEM".into()))?;
                builder
                    .with_client_auth_cert(certificates(identity.certificate), key)
                    .map_err(|error| Trouble::Material(error.to_string()))?
            }
        };
        Ok(Client { tls: Arc::new(config), limits: Limits::default() })
    }

    /// The same with other limits.
    pub fn within(mut self, limits: Limits) -> Client {
        self.limits = limits;
        self
    }

    /// Asks, and takes the whole answer, whatever its status.
    pub async fn send(&self, request: Request) -> Result<Response, Trouble> {
        let mut answer = self.open(request).await?;
        let mut body = Vec::new();
        let read = async {
            while let Some(piece) = answer.next().await? {
                if body.len() + piece.len() > self.limits.body {
                    return Err(Trouble::TooLarge(self.limits.body));
                }
                body.extend_from_slice(&piece);
            }
            Ok(())
        };
        // Pieces may come in time for ever.
        let late = |_| self.late_by("the whole answer", self.limits.whole);
        timeout(self.limits.whole, read).await.map_err(late)??;
        Ok(Response { status: answer.status, certificates: answer.certificates, times: answer.times, body })
    }

    /// Asks, and takes the head of the answer.
    pub async fn open(&self, request: Request) -> Result<Answer, Trouble> {
        let Request { method, url, headers, credential, body } = request;
        let (stream, certificates, mut times) = self.connect(&url).await?;
        let mut head = hyper::Request::builder()
            .method(method)
            .uri(url.path.as_str())
            .header("host", url.authority())
            .header("user-agent", concat!("bramble/", env!("CARGO_PKG_VERSION")));
        for (name, value) in headers {
            head = head.header(name, value);
        }
        if let Some(credential) = credential {
            let value = hyper::header::HeaderValue::from_str(&credential.header());
            let mut value =
                value.map_err(|_| Trouble::Material("the secret holds a control character".into()))?;
            value.set_sensitive(true);
            head = head.header("authorization", value);
        }
        let head =
            head.body(Full::new(Bytes::from(body))).map_err(|error| Trouble::Other(error.to_string()))?;
        let ask = async {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(trouble)?;
            let connection = Connection(tokio::spawn(async move {
                // What goes wrong here is told to whoever reads the answer.
                let _ = connection.await;
            }));
            Ok((sender.send_request(head).await.map_err(trouble)?, connection))
        };
        let asked = Instant::now();
        let (answer, connection) =
            timeout(self.limits.answer, ask).await.map_err(|_| self.late("the answer"))??;
        times.answer = asked.elapsed();
        let status = answer.status().as_u16();
        let (parts, body) = answer.into_parts();
        if let 301 | 302 | 303 | 307 | 308 = status {
            let to = parts.headers.get("location").map_or(&b""[..], |value| value.as_bytes());
            return Err(Trouble::Redirect { status, to: printable(to) });
        }
        Ok(Answer {
            status,
            certificates,
            times,
            headers: parts.headers,
            body,
            limits: self.limits,
            _connection: connection,
        })
    }

    async fn connect(&self, url: &Url) -> Result<(Box<dyn Stream>, Vec<Vec<u8>>, Times), Trouble> {
        let begun = Instant::now();
        let stream = self.dial(url).await?;
        let mut times = Times { connect: begun.elapsed(), ..Times::default() };
        // A request is one small packet; if this fails it is only slower.
        let _ = stream.set_nodelay(true);
        if !url.https {
            return Ok((Box::new(stream), vec![], times));
        }
        let name = ServerName::try_from(url.host.clone())
            .map_err(|_| Trouble::Other(format!("{} is no name that a certificate may have", url.host)))?;
        let handshake = tokio_rustls::TlsConnector::from(self.tls.clone()).connect(name, stream);
        let stream = timeout(self.limits.answer, handshake)
            .await
            .map_err(|_| self.late("the TLS handshake"))?
            .map_err(|error| handshake_trouble(&error, &url.host))?;
        times.tls = begun.elapsed() - times.connect;
        let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let shown = shown.iter().map(|certificate| certificate.to_vec()).collect();
        Ok((Box::new(stream), shown, times))
    }

    /// A connection to the first address that takes one.
    async fn dial(&self, url: &Url) -> Result<TcpStream, Trouble> {
        let mut last = None;
        for address in resolve(&url.host, url.port, self.limits.connect).await? {
            match timeout(self.limits.connect, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = Some(dial_trouble(&error, address)),
                Err(_) => last = Some(self.late_by("the TCP connection", self.limits.connect)),
            }
        }
        Err(last.unwrap_or_else(|| Trouble::Name { host: url.host.clone(), why: "it has no address".into() }))
    }

    fn late(&self, what: &'static str) -> Trouble {
        self.late_by(what, self.limits.answer)
    }

    fn late_by(&self, what: &'static str, after: Duration) -> Trouble {
        Trouble::TimeOut { what, after }
    }
}

/// The addresses of a name, in the order in which they are tried.
pub async fn resolve(host: &str, port: u16, limit: Duration) -> Result<Vec<SocketAddr>, Trouble> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let name = |why: String| Trouble::Name { host: host.to_owned(), why };
    let found = timeout(limit, tokio::net::lookup_host((host, port)))
        .await
        .map_err(|_| name(format!("no answer from the resolver within {} s", limit.as_secs())))?
        .map_err(|error| {
            let words = error.to_string();
            name(words.rsplit(": ").next().unwrap_or(&words).to_lowercase())
        })?;
    Ok(found.collect())
}

impl Answer {
    /// A header, when it is there and printable.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The next piece of the body; `None` at its end.
    ///
    /// Cancel-safe: a piece is taken or not.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Trouble> {
        loop {
            let frame = timeout(self.limits.answer, self.body.frame()).await.map_err(|_| {
                Trouble::TimeOut { what: "the next piece of the answer", after: self.limits.answer }
            })?;
            match frame {
                None => return Ok(None),
                Some(Err(_)) => return Err(Trouble::Cut("in the middle of the answer")),
                Some(Ok(frame)) => {
                    if let Ok(piece) = frame.into_data() {
                        return Ok(Some(piece));
                    }
                }
            }
        }
    }

    /// Itself, or the trouble that its status tells; of the body the beginning is read.
    pub async fn good(mut self) -> Result<Answer, Trouble> {
        if self.status < 400 {
            return Ok(self);
        }
        let says = self.next().await.ok().flatten().unwrap_or_default();
        Err(Trouble::Status { status: self.status, says: printable(&says) })
    }
}

impl Response {
    /// Itself, or the trouble that its status tells.
    pub fn good(self) -> Result<Response, Trouble> {
        match self.status < 400 {
            true => Ok(self),
            false => Err(Trouble::Status { status: self.status, says: printable(&self.body) }),
        }
    }
}

/// The system's certificates; without any nobody is believed.
fn system() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

/// All certificates of a PEM text.
fn certificates(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem).flatten().collect()
}

fn dial_trouble(error: &io::Error, address: SocketAddr) -> Trouble {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Trouble::Refused { to: address.to_string() },
        io::ErrorKind::NetworkUnreachable => Trouble::NoRoute { to: address.ip().to_string() },
        io::ErrorKind::HostUnreachable => Trouble::NoHost { to: address.ip().to_string() },
        io::ErrorKind::TimedOut => {
            Trouble::TimeOut { what: "the TCP connection", after: Duration::from_secs(127) }
        }
        _ => Trouble::Other(format!("connecting to {address}: {error}")),
    }
}

fn handshake_trouble(error: &io::Error, asked: &str) -> Trouble {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                Trouble::Cut("during the TLS handshake")
            }
            _ => Trouble::Other(format!("TLS handshake: {error}")),
        };
    };
    Trouble::Tls(match tls {
        rustls::Error::InvalidMessage(_) => Tls::NotTls,
        rustls::Error::InvalidCertificate(certificate) => match certificate {
            CertificateError::UnknownIssuer => Tls::UnknownIssuer,
            CertificateError::NotValidYet => Tls::NotYetValid { from: None },
            CertificateError::NotValidYetContext { not_before, .. } => {
                Tls::NotYetValid { from: Some(not_before.as_secs()) }
            }
            CertificateError::Expired => Tls::Expired { until: None },
            CertificateError::ExpiredContext { not_after, .. } => {
                Tls::Expired { until: Some(not_after.as_secs()) }
            }
            CertificateError::NotValidForName => Tls::OtherName { asked: asked.into(), named: vec![] },
            CertificateError::NotValidForNameContext { presented, .. } => {
                let named = presented.iter().map(|name| bare(name).to_owned()).collect();
                Tls::OtherName { asked: asked.into(), named }
            }
            other => Tls::Other(other.to_string()),
        },
        other => Tls::Other(other.to_string()),
    })
}

/// `DnsName("a")` and `IpAddress(b)`, as rustls writes them, without the kind.
fn bare(name: &str) -> &str {
    name.split_once('(').map_or(name, |(_, name)| name.trim_end_matches(')').trim_matches('"'))
}

fn trouble(error: hyper::Error) -> Trouble {
    match error {
        error if error.is_parse() => Trouble::NotHttp(error.to_string()),
        error if error.is_incomplete_message() || error.is_closed() || error.is_canceled() => {
            Trouble::Cut("before the answer")
        }
        error => match std::error::Error::source(&error) {
            Some(_) => Trouble::Cut("before the answer"),
            None => Trouble::Other(error.to_string()),
        },
    }
}

/// The beginning of a text that somebody else wrote, in one line and without what a terminal obeys.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(400)]);
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    line.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect()
}

/// RFC 4648, with padding.
pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::new();
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit) & 63) as usize;
            encoded.push(if digit <= chunk.len() { DIGITS[index].into() } else { '=' });
        }
    }
    encoded
}

/// Believes whoever holds the key of the certificate that is shown.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_url_is_taken_apart() {
        for (text, origin, path) in [
            ("https://pi-1:6443", "https://pi-1:6443", "/"),
            ("HTTPS://Pi-1.lan/", "https://pi-1.lan:443", "/"),
            ("https://[fd00::1]:6443/x?y=1#z", "https://[fd00::1]:6443", "/x?y=1"),
            ("http://10.0.0.1?x", "http://10.0.0.1:80", "/?x"),
        ] {
            let url = Url::parse(text).unwrap();
            assert_eq!((url.origin().as_str(), url.path()), (origin, path), "{text}");
        }
    }

    #[test]
    fn a_url_that_cannot_be_asked_says_what_is_wrong() {
        for (text, wrong) in [
            ("pi-1:6443", BadUrl::Scheme),
            ("10.0.0.1", BadUrl::Scheme),
            ("", BadUrl::Scheme),
            ("ftp://pi-1", BadUrl::Unknown("ftp".into())),
            ("https://", BadUrl::Host),
            ("https://:6443", BadUrl::Host),
            ("https://fd00::1:6443", BadUrl::Brackets),
            ("https://[fd00::1", BadUrl::Brackets),
            ("https://[pi]:1", BadUrl::Brackets),
            ("https://pi-1:", BadUrl::Port),
            ("https://pi-1:0", BadUrl::Port),
            ("https://pi-1:70000", BadUrl::Port),
            ("https://[fd00::1]6443", BadUrl::Port),
            ("https://me:secret@pi-1", BadUrl::User),
            ("https://pi 1", BadUrl::Character),
            ("https://pi-1/\n", BadUrl::Character),
            ("https://p\u{e4}1", BadUrl::Character),
            ("https://p%31", BadUrl::Character),
        ] {
            assert_eq!(Url::parse(text), Err(wrong), "{text:?}");
        }
    }

    #[test]
    fn a_secret_is_never_shown() {
        let url = Url::parse("https://pi-1:6443/").unwrap();
        let request = Request::get(&url).by(Some(Credential::Basic("node".into(), "hunter2".into())));
        assert!(!format!("{request:?}").contains("hunter2"));
        assert!(!format!("{:?}", Credential::Bearer("hunter2".into())).contains("hunter2"));
        assert!(!format!("{:?}", Identity { certificate: b"hunter2", key: b"hunter2" }).contains("hunter2"));
    }

    #[test]
    fn basic_credentials_are_written_as_rfc_4648_says() {
        for (plain, encoded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("node:p\u{ff}~", "bm9kZTpww79+")]
        {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }

    #[test]
    fn what_a_server_says_cannot_reach_the_terminal() {
        assert_eq!(printable(b"a\x1b[31mb\r\nc\0d"), "a [31mb c d");
        assert_eq!(printable("ü".repeat(500).as_bytes()).chars().count(), 200);
    }

    /// What a server says that answers each connection with `says` after it has read once.
    fn asked(https: bool, says: &'static [u8]) -> Result<Response, Trouble> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let server = tokio::spawn(async move {
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let mut heard = [0; 4096];
                    let _ = stream.read(&mut heard).await;
                    let _ = stream.write_all(says).await;
                }
            });
            let scheme = if https { "https" } else { "http" };
            let url = Url::parse(&format!("{scheme}://127.0.0.1:{port}/x")).unwrap();
            let limits = Limits { body: 10, answer: Duration::from_millis(700), ..Limits::default() };
            let client = Client::new(Trust::Anybody, None).unwrap().within(limits);
            let answer = client.send(Request::get(&url)).await;
            server.abort();
            answer
        })
    }

    #[test]
    fn each_failure_has_its_own_name() {
        let cut = Trouble::Cut("in the middle of the answer");
        let cases: [(bool, &[u8], Trouble); 8] = [
            (true, b"HTTP/1.1 400 Bad Request\r\n\r\n", Trouble::Tls(Tls::NotTls)),
            (true, b"", Trouble::Cut("during the TLS handshake")),
            (false, b"", Trouble::Cut("before the answer")),
            (false, b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", cut.clone()),
            (false, b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", cut),
            (false, b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nabcdefghijk", Trouble::TooLarge(10)),
            (
                false,
                b"HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n",
                Trouble::Redirect { status: 302, to: "/x".into() },
            ),
            (false, b"HTTP/1.1 2", Trouble::Cut("before the answer")),
        ];
        for (https, says, trouble) in cases {
            assert_eq!(asked(https, says).unwrap_err(), trouble, "{}", String::from_utf8_lossy(says));
        }
        assert!(matches!(asked(false, b"SSH-2.0-OpenSSH_9.2\r\n").unwrap_err(), Trouble::NotHttp(_)));
        let refused = asked(false, b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\nno").unwrap();
        assert_eq!(refused.good().unwrap_err(), Trouble::Status { status: 401, says: "no".into() });
        let good = asked(false, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap();
        assert_eq!(good.good().unwrap().body, b"ok");
    }

    #[test]
    fn a_name_without_an_address_and_a_port_without_a_listener_are_told_apart() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = Client::new(Trust::Anybody, None).unwrap();
            let ask =
                async |url: &str| client.send(Request::get(&Url::parse(url).unwrap())).await.unwrap_err();
            assert!(matches!(ask("https://nobody.invalid:6443").await, Trouble::Name { .. }));
            let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
            assert_eq!(ask(&format!("https://{free}")).await, Trouble::Refused { to: free.to_string() });
        });
    }
}
