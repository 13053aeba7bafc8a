//! TLS to the broker: which authority is trusted, who we are, and the exact reason when there is no agreement.
//!
//! The files are read at each connection, so that renewed certificates need no restart. Verification is rustls' own
//! (RFC 5280 and 6125); a pin only narrows the authorities down to one.

use std::{fmt, io, sync::Arc};

use jiff::Timestamp;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        AlertDescription, CertificateError, ClientConfig, Error, RootCertStore,
        crypto::ring as provider,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    },
};

use crate::broker::Broker;

/// Opens a file by its path, or says why not.
pub type Reader = Arc<dyn Fn(&str) -> Result<Vec<u8>, String> + Send + Sync>;

/// How the broker is recognised, and how we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// File with the authorities' certificates (PEM).
    pub ca: String,
    /// Files with our certificate, and with its key (PEM).
    pub identity: Option<(String, String)>,
    /// The one authority of `ca` that is meant.
    pub pin: Option<Pin>,
}

/// SHA-256 of a certificate, or of its public key (`SubjectPublicKeyInfo`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Pin([u8; 32]);

impl Pin {
    /// Reads `sha256:` and 64 hexadecimal digits, with or without colons between them, as `openssl x509 -fingerprint`
    /// prints them.
    pub fn new(text: &str) -> Option<Self> {
        let digits: Vec<u8> = text
            .strip_prefix("sha256:")?
            .chars()
            .filter(|c| *c != ':')
            .map(|c| c.to_digit(16).map(|digit| digit as u8))
            .collect::<Option<_>>()?;
        let (pairs, rest) = digits.as_chunks::<2>();
        let bytes: Vec<u8> = pairs.iter().map(|[high, low]| high << 4 | low).collect();
        rest.is_empty().then_some(())?;
        Some(Self(bytes.try_into().ok()?))
    }

    fn of(bytes: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
        Self(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The files' content, to see whether they changed: their digest, so that no key stays in memory for it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Files(Pin);

/// The files, read and understood.
pub(crate) struct Loaded {
    config: Arc<ClientConfig>,
    pub(crate) files: Files,
}

/// Reads all files anew.
///
/// # Errors
/// One cause and one next step, naming the file.
pub(crate) fn load(tls: &Tls, read: &Reader) -> Result<Loaded, String> {
    let open = |key: &str, path: &str| read(path).map_err(|why| format!("{key} in [mqtt]: {why}"));
    let ca = open("ca", &tls.ca)?;
    let mut all = ca.clone();
    let roots = authorities(&ca, tls)?;
    let provider = Arc::new(provider::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots);
    let config = match &tls.identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = open("certificate", certificate)?;
            let secret = open("key", key)?;
            all.extend_from_slice(&chain);
            all.extend_from_slice(&secret);
            let chain: Vec<_> = CertificateDer::pem_slice_iter(&chain)
                .collect::<Result<_, _>>()
                .map_err(|_| format!("{certificate} is no certificate in PEM"))?;
            if chain.is_empty() {
                return Err(format!("{certificate} holds no certificate in PEM"));
            }
            let secret = PrivateKeyDer::from_pem_slice(&secret)
                .map_err(|_| format!("{key} holds no unencrypted private key in PEM"))?;
            builder.with_client_auth_cert(chain, secret).map_err(|error| match error {
                Error::InconsistentKeys(_) => {
                    format!("{key} is not the key of {certificate}; put both of them there")
                }
                Error::InvalidCertificate(CertificateError::Other(other))
                    if other.0.downcast_ref() == Some(&webpki::Error::UnsupportedCertVersion) =>
                {
                    format!("{certificate} is {OLD}, in which extendedKeyUsage is clientAuth")
                }
                error => format!("{certificate} and {key} cannot be used: {error}; have another pair issued"),
            })?
        }
    };
    Ok(Loaded { config: Arc::new(config), files: Files(Pin::of(&all)) })
}

/// What openssl 3.0 issues when it is not told otherwise.
const OLD: &str = "of version 1, which has no extensions; sign it anew: openssl x509 -req … -extfile FILE";

/// The certificates of `ca`, or the one that is pinned.
fn authorities(ca: &[u8], tls: &Tls) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let mut found = 0;
    for certificate in CertificateDer::pem_slice_iter(ca) {
        let certificate = certificate.map_err(|_| format!("{} is no PEM", tls.ca))?;
        let whole = Pin::of(&certificate);
        // What the system collects holds certificates that rustls does not read; the rest is as good without them.
        if roots.add(certificate).is_err() {
            continue;
        }
        found += 1;
        let key = roots.roots.last().map(|root| Pin::of(&sequence(&root.subject_public_key_info)));
        if tls.pin.is_some_and(|pin| pin != whole && Some(pin) != key) {
            roots.roots.pop();
        }
    }
    match (found, roots.is_empty(), tls.pin) {
        (0, ..) => Err(format!("{} holds no certificate in PEM", tls.ca)),
        (_, true, Some(pin)) => {
            Err(format!("none of the {found} certificates in {} has the pin {pin:?}", tls.ca))
        }
        _ => Ok(roots),
    }
}

/// `content` as a SEQUENCE in DER: `webpki` hands out a public key without its head.
fn sequence(content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let leading = length.iter().take_while(|byte| **byte == 0).count().min(length.len() - 1);
    let length = &length[leading..];
    let mut der = vec![0x30];
    if content.len() >= 0x80 {
        der.push(0x80 | length.len() as u8);
    }
    der.extend_from_slice(length);
    der.extend_from_slice(content);
    der
}

/// The handshake.
///
/// # Errors
/// See [`explain`].
pub(crate) async fn shake(loaded: Loaded, host: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    TlsConnector::from(loaded.config).connect(name, stream).await
}

/// Whether the other side, or rustls, said what is wrong, and the link did not just break.
pub(crate) fn is_told(error: &io::Error) -> bool {
    cause(error).is_some()
}

fn cause(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// One cause and one next step.
pub(crate) fn explain(error: &io::Error, tls: &Tls, broker: &Broker) -> String {
    let Some(cause) = cause(error) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                format!("{broker} ended the connection and did not say why; its log may")
            }
            _ => format!("{broker}: {error}"),
        };
    };
    match cause {
        Error::InvalidCertificate(certificate) => refused_broker(certificate, tls, broker),
        Error::AlertReceived(alert) => refused_us(*alert, tls, broker),
        Error::InvalidMessage(_) => format!(
            "{broker} does not speak TLS; set the port of its TLS listener (8883 most often), or take tls out of [mqtt]"
        ),
        Error::PeerIncompatible(why) => {
            format!("{broker} and this node have no kind of TLS in common ({why:?}); 1.2 or 1.3 is needed")
        }
        Error::NoCertificatesPresented => format!("{broker} shows no certificate"),
        other => format!("TLS with {broker}: {other}"),
    }
}

fn refused_broker(error: &CertificateError, tls: &Tls, broker: &Broker) -> String {
    use CertificateError as E;
    let ca = &tls.ca;
    match error {
        E::UnknownIssuer | E::BadSignature => match tls.pin {
            Some(pin) => format!(
                "the certificate of {broker} is not signed by the authority with the pin {pin:?}; if that was renewed, set its pin"
            ),
            None => format!(
                "the certificate of {broker} is signed by nobody in {ca}; set ca in [mqtt] to its authority's certificate"
            ),
        },
        E::Expired => format!("the certificate of {broker} has expired; renew it there"),
        E::ExpiredContext { not_after, time } => format!(
            "the certificate of {broker} expired on {}, and it is {} here; renew it there, or set the clock",
            shown(*not_after),
            shown(*time)
        ),
        E::NotValidYet => format!("the certificate of {broker} is not valid yet; set the clock"),
        E::NotValidYetContext { not_before, time } => format!(
            "the certificate of {broker} is valid from {}, and it is {} here; set the clock",
            shown(*not_before),
            shown(*time)
        ),
        E::NotValidForName => {
            format!(
                "the certificate of {broker} is for another name than {}; set host to its name",
                broker.host
            )
        }
        E::NotValidForNameContext { presented, .. } => format!(
            "the certificate of {broker} is for {}, not for {}; set host to a name that it has, or issue one that has this",
            match presented.as_slice() {
                [] => "no name (as subjectAltName)".to_owned(),
                names => names.iter().map(|name| bare(name)).collect::<Vec<_>>().join(", "),
            },
            broker.host
        ),
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => {
            format!(
                "the certificate of {broker} is not for servers; issue one with the extended usage serverAuth"
            )
        }
        E::Other(other) => match other.0.downcast_ref() {
            Some(webpki::Error::CaUsedAsEndEntity) => format!(
                "the certificate of {broker} is an authority's own and not a server's; issue one that it signs"
            ),
            Some(webpki::Error::UnsupportedCertVersion) => {
                format!("the certificate of {broker} is {OLD}, in which subjectAltName has {}", broker.host)
            }
            _ => format!("the certificate of {broker} is not taken: {other}; issue another one"),
        },
        other => format!("the certificate of {broker} is not taken: {other}"),
    }
}

/// `DnsName("a")` and `IpAddress(b)`, as rustls writes them, without the kind.
fn bare(name: &str) -> &str {
    name.split_once('(').map_or(name, |(_, name)| name.trim_end_matches(')').trim_matches('"'))
}

fn refused_us(alert: AlertDescription, tls: &Tls, broker: &Broker) -> String {
    use AlertDescription as A;
    match (alert, &tls.identity) {
        (A::CertificateRequired | A::HandshakeFailure | A::BadCertificate | A::NoCertificate, None) => {
            format!("{broker} wants a client certificate; set certificate and key in [mqtt]")
        }
        (A::CertificateExpired, Some((certificate, _))) => {
            format!("{broker} refuses our certificate {certificate}, because it has expired; renew it")
        }
        (A::CertificateRevoked, Some((certificate, _))) => {
            format!(
                "{broker} refuses our certificate {certificate}, because it was revoked; have another one issued"
            )
        }
        (A::UnknownCA, Some((certificate, _))) => format!(
            "{broker} refuses our certificate {certificate}, because it does not know who signed it; have it signed by the authority in the broker's cafile"
        ),
        (
            A::BadCertificate
            | A::CertificateUnknown
            | A::UnsupportedCertificate
            | A::AccessDenied
            | A::DecryptError
            | A::HandshakeFailure,
            Some((certificate, _)),
        ) => format!("{broker} refuses our certificate {certificate} ({alert:?}); the broker's log says why"),
        (A::ProtocolVersion, _) => {
            format!("{broker} speaks neither TLS 1.2 nor 1.3; set tls_version in its configuration")
        }
        (alert, _) => format!("{broker} refuses TLS with us ({alert:?}); its log says why"),
    }
}

fn shown(time: UnixTime) -> String {
    let time = i64::try_from(time.as_secs()).ok().and_then(|s| Timestamp::from_second(s).ok());
    time.map_or_else(|| "an impossible time".to_owned(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_sha_256_with_or_without_colons() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let pin = Pin::new(&format!("sha256:{empty}")).unwrap();
        assert_eq!((pin, format!("{pin:?}")), (Pin::of(b""), format!("sha256:{empty}")));
        let colons: Vec<&str> = (0..32).map(|i| &empty[2 * i..2 * i + 2]).collect();
        assert_eq!(Pin::new(&format!("sha256:{}", colons.join(":").to_uppercase())), Some(pin));
        for bad in [
            "",
            "sha256:",
            empty,
            "sha256:e3",
            &format!("sha256:{empty}0"),
            &format!("sha256:x{}", &empty[1..]),
        ] {
            assert_eq!(Pin::new(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_sequence_has_the_head_of_its_length() {
        for (length, head) in
            [(0, &[0x30, 0][..]), (127, &[0x30, 127]), (128, &[0x30, 0x81, 128]), (294, &[0x30, 0x82, 1, 38])]
        {
            let der = sequence(&vec![7; length]);
            assert!(der.starts_with(head), "{length}: {:?}", &der[..2]);
            assert_eq!(der.len(), head.len() + length, "{length}");
        }
    }
}
