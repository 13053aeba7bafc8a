//! The stand-in's own HTTPS: what a kubelet and an agent of K3s ask a server.

use std::{
    fmt::Write as _,
    io::{BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::ring,
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use super::authority::{Pair, parse};

/// K3s' own limit for a request.
const PATIENCE: Duration = Duration::from_secs(10);

/// One request to be sent.
#[derive(Debug)]
pub struct Client {
    address: SocketAddr,
    trust: Option<String>,
    headers: String,
    identity: Option<Pair>,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP's status code.
    pub status: u16,
    /// The whole body.
    pub body: String,
}

impl Client {
    /// Asks a server whoever it is.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, trust: None, headers: String::new(), identity: None }
    }

    /// Asks it only when one of these certificates signed its own, for the address that is asked.
    pub fn trusting(mut self, pem: &str) -> Self {
        self.trust = Some(pem.to_owned());
        self
    }

    /// Sends a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        // Writing to a string never fails.
        let _ = write!(self.headers, "{name}: {value}\r\n");
        self
    }

    /// Sends a user and a password.
    pub fn basic(self, user: &str, password: &str) -> Self {
        let credentials = STANDARD.encode(format!("{user}:{password}"));
        self.header("Authorization", &format!("Basic {credentials}"))
    }

    /// Sends a bearer token.
    pub fn bearer(self, token: &str) -> Self {
        self.header("Authorization", &format!("Bearer {token}"))
    }

    /// Shows a client certificate.
    ///
    /// # Errors
    /// It is not a certificate with its key.
    pub fn with(mut self, pair: &Pair) -> Result<Self> {
        pair.parts()?;
        self.identity = Some(Pair { certificates: pair.certificates.clone(), key: pair.key.clone() });
        Ok(self)
    }

    /// Reads a path.
    ///
    /// # Errors
    /// Nobody is there, is not who they should be, or breaks off.
    pub fn get(&self, path: &str) -> Result<Answer> {
        self.send("GET", path, "")
    }

    /// Sends a request with a body.
    ///
    /// # Errors
    /// Those of [`Client::get`].
    pub fn send(&self, method: &str, path: &str, body: &str) -> Result<Answer> {
        let address = self.address;
        let stream = TcpStream::connect_timeout(&address, PATIENCE)
            .with_context(|| format!("connecting to {address}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let connection = ClientConnection::new(Arc::new(self.tls()?), ServerName::from(address.ip()))?;
        let mut stream = StreamOwned::new(connection, stream);
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\n{}Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            self.headers,
            body.len()
        );
        stream.write_all((head + body).as_bytes()).with_context(|| format!("asking {address}{path}"))?;
        let (status, body) =
            crate::http::answer(BufReader::new(stream)).with_context(|| format!("asking {address}{path}"))?;
        let status = status.parse().with_context(|| format!("{status} is no status"))?;
        Ok(Answer { status, body: String::from_utf8(body)? })
    }

    fn tls(&self) -> Result<ClientConfig> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let builder = match &self.trust {
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                for certificate in parse(pem)? {
                    roots.add(certificate)?;
                }
                builder.with_root_certificates(roots)
            }
            None => builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer)),
        };
        match &self.identity {
            Some(pair) => {
                let (chain, key) = pair.parts()?;
                Ok(builder.with_client_auth_cert(chain, key)?)
            }
            None => Ok(builder.with_no_client_auth()),
        }
    }
}

/// Trusts whoever answers, as K3s does once to fetch `/cacerts`.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
