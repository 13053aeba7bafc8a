//! The stand-in's certificates: the same two authorities that K3s makes (one for servers, one for clients), with dates and
//! names as a test wants them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};

const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
const YEAR: Duration = Duration::from_hours(365 * 24);

/// A certificate authority; what it signs is trusted by whoever trusts the last certificate of [`Authority::pem`].
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// When a certificate holds, measured from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// From an hour ago to in a year.
    Now,
    /// From in a day: what a Pi sees whose clock stands in the past.
    NotYet,
    /// Until a day ago.
    Expired,
}

/// A certificate with its issuers, and its key.
#[derive(Debug)]
pub struct Pair {
    /// The certificate, then those of the authority.
    pub certificates: String,
    /// The key, as PKCS #8.
    pub key: String,
}

impl Authority {
    /// One self-signed certificate, as every new K3s makes: `/cacerts` holds one.
    ///
    /// # Errors
    /// No randomness.
    pub fn single(name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let params = authority(&distinct(name, &key));
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// The authority whose key and certificates were kept: the same one on every start of a server.
    ///
    /// # Errors
    /// It is not a key.
    pub fn load(name: &str, key: &str, pem: &str) -> Result<Self> {
        let key = KeyPair::from_pem(key).context("reading an authority's key")?;
        let params = authority(&distinct(name, &key));
        Ok(Self { issuer: Issuer::new(params, key), pem: pem.to_owned() })
    }

    /// An intermediate below a root, as an owner with an authority of their own has: `/cacerts` holds two.
    ///
    /// # Errors
    /// No randomness.
    pub fn with_root(name: &str) -> Result<Self> {
        let root = Self::single(&format!("{name}-root"))?;
        let key = KeyPair::generate()?;
        let params = authority(&distinct(name, &key));
        let pem = params.signed_by(&key, &root.issuer)?.pem() + &root.pem;
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// All its certificates, the root last.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Its own key, as PKCS #8.
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// The pin of a token, as K3s counts it: over the bytes as served when there is one certificate, otherwise over the
    /// root's DER.
    ///
    /// # Errors
    /// There is no certificate in the text.
    pub fn pin(pem: &str) -> Result<String> {
        let certificates = parse(pem)?;
        let bytes = match &certificates[..] {
            [_] => pem.as_bytes(),
            [.., root] => root,
            [] => anyhow::bail!("there is no certificate to pin"),
        };
        Ok(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// A server's certificate for names and addresses.
    ///
    /// # Errors
    /// A name is none.
    pub fn server(&self, names: &[String], validity: Validity) -> Result<Pair> {
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name.push(DnType::OrganizationName, "k3s");
        params.distinguished_name.push(DnType::CommonName, "k3s");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params, validity)
    }

    /// A client's certificate for a user of the cluster and its group.
    ///
    /// # Errors
    /// No randomness.
    pub fn client(&self, user: &str, group: &str) -> Result<Pair> {
        self.client_when(user, group, Validity::Now)
    }

    /// As [`Authority::client`], for another time than now.
    ///
    /// # Errors
    /// No randomness.
    pub fn client_when(&self, user: &str, group: &str, validity: Validity) -> Result<Pair> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.distinguished_name.push(DnType::CommonName, user);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params, validity)
    }

    fn sign(&self, mut params: CertificateParams, validity: Validity) -> Result<Pair> {
        let now = date_time_ymd(1970, 1, 1) + now();
        (params.not_before, params.not_after) = match validity {
            Validity::Now => (now - HOUR, now + YEAR),
            Validity::NotYet => (now + DAY, now + YEAR),
            Validity::Expired => (now - YEAR, now - DAY),
        };
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate: Certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Pair { certificates: certificate.pem() + &self.pem, key: key.serialize_pem() })
    }
}

impl Pair {
    /// A text with certificates and a key behind each other, as K3s sends them.
    pub fn split(text: &str) -> Self {
        let mut blocks = text.match_indices("-----BEGIN ").map(|(at, _)| at);
        let is_key = |at: &usize| text[*at..].lines().next().is_some_and(|line| line.contains("PRIVATE KEY"));
        let at = blocks.find(is_key).unwrap_or(text.len());
        Self { certificates: text[..at].to_owned(), key: text[at..].to_owned() }
    }

    /// As rustls takes it.
    pub(super) fn parts(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).context("reading a key")?;
        Ok((parse(&self.certificates)?, key))
    }
}

/// The certificates in a text.
pub(super) fn parse(pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().context("reading certificates")
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = date_time_ymd(1970, 1, 1) + now() - HOUR;
    params.not_after = date_time_ymd(1970, 1, 1) + now() + 10 * YEAR;
    params.use_authority_key_identifier_extension = true;
    params
}

/// K3s puts the time into its authorities' names, which tells those of two clusters apart; here the key does.
fn distinct(name: &str, key: &KeyPair) -> String {
    let hash = Sha256::digest(key.public_key_raw());
    format!("{name}@{}", u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]))
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pin_is_over_the_text_of_one_certificate_and_over_the_root_of_several() {
        let sum = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect::<String>();
        let single = Authority::single("a").unwrap();
        assert_eq!(Authority::pin(single.pem()).unwrap(), sum(single.pem().as_bytes()));
        let chain = Authority::with_root("b").unwrap();
        let certificates = parse(chain.pem()).unwrap();
        assert_eq!(certificates.len(), 2);
        assert_eq!(Authority::pin(chain.pem()).unwrap(), sum(&certificates[1]));
        assert!(Authority::pin("nothing").is_err());
    }

    #[test]
    fn an_authority_with_a_kept_key_signs_what_the_first_one_is_trusted_for() {
        use rustls::{RootCertStore, client::WebPkiServerVerifier, client::danger::ServerCertVerifier as _};
        let first = Authority::single("k3s-server-ca").unwrap();
        let second = Authority::load("k3s-server-ca", &first.key(), first.pem()).unwrap();
        let (certificates, _) =
            second.server(&["pi.home".to_owned()], Validity::Now).unwrap().parts().unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(parse(first.pem()).unwrap().remove(0)).unwrap();
        let provider = rustls::crypto::ring::default_provider().into();
        let verifier = WebPkiServerVerifier::builder_with_provider(std::sync::Arc::new(roots), provider)
            .build()
            .unwrap();
        let name = "pi.home".try_into().unwrap();
        verifier
            .verify_server_cert(&certificates[0], &[], &name, &[], rustls::pki_types::UnixTime::now())
            .unwrap();
    }
}
