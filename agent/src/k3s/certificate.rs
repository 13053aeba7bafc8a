//! X.509 certificates, as far as the pin of a token needs them: who signed whom, when they count, with which key.
//!
//! Follows RFC 5280 and X.690; what is anything else is refused. Signatures are checked by the cryptography of TLS.

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT: u8 = 0x06;

/// More signatures one above the other than anybody has.
const DEEPEST: usize = 8;

/// One certificate; all slices point into its DER.
#[derive(Debug, Clone, Copy)]
pub struct Certificate<'a> {
    /// All of it.
    pub der: &'a [u8],
    /// From when it counts.
    pub from: Timestamp,
    /// Until when it counts.
    pub until: Timestamp,
    signed: &'a [u8],
    algorithm: &'a [u8],
    signature: &'a [u8],
    issuer: &'a [u8],
    subject: &'a [u8],
    key_algorithm: &'a [u8],
    key: &'a [u8],
    subject_key_id: &'a [u8],
    authority_key_id: &'a [u8],
    /// Whether it may sign others, and how many may stand below it.
    signs: bool,
    deepest: Option<usize>,
    serves: bool,
}

/// All certificates of a PEM text, in DER; `None` when one of them cannot be read.
pub fn bundle(pem: &[u8]) -> Option<Vec<Vec<u8>>> {
    CertificateDer::pem_slice_iter(pem).map(|der| Some(der.ok()?.to_vec())).collect()
}

/// The root of the first certificate's chain in a bundle, as Go's `Certificate.Verify` finds it when a certificate
/// that names nobody else, or itself, as the holder of the signing key counts as a root. The first is no root itself.
pub fn root<'a>(bundle: &[Certificate<'a>], now: Timestamp) -> Option<Certificate<'a>> {
    let (first, others) = bundle.split_first()?;
    let is_root =
        |one: &Certificate<'_>| one.authority_key_id.is_empty() || one.authority_key_id == one.subject_key_id;
    let (roots, between): (Vec<_>, Vec<_>) = others.iter().copied().partition(is_root);
    first.counts(now).then_some(())?;
    match roots.iter().find(|one| one.der == first.der) {
        Some(itself) => Some(*itself),
        None => above(&mut vec![*first], &roots, &between, now),
    }
}

fn above<'a>(
    chain: &mut Vec<Certificate<'a>>,
    roots: &[Certificate<'a>],
    between: &[Certificate<'a>],
    now: Timestamp,
) -> Option<Certificate<'a>> {
    let last = *chain.last()?;
    let below = chain.len() - 1;
    let fits = |one: &&Certificate<'a>| {
        one.counts(now) && one.deepest.is_none_or(|deepest| below <= deepest) && last.is_signed_by(one)
    };
    if let Some(root) = roots.iter().find(fits) {
        return Some(*root);
    }
    if chain.len() == DEEPEST {
        return None;
    }
    for one in between.iter().filter(fits) {
        if chain.iter().any(|known| known.subject == one.subject && known.key == one.key) {
            continue;
        }
        chain.push(*one);
        if let Some(root) = above(chain, roots, between, now) {
            return Some(root);
        }
        chain.pop();
    }
    None
}

impl<'a> Certificate<'a> {
    /// Reads one.
    pub fn parse(der: &'a [u8]) -> Option<Certificate<'a>> {
        let mut outer = Der(Der(der).only(SEQUENCE)?);
        let (signed, tbs) = outer.next(SEQUENCE)?;
        let algorithm = outer.next(SEQUENCE)?.1;
        let signature = bits(outer.next(BIT_STRING)?.1)?;
        let mut tbs = Der(tbs);
        tbs.next_if(0xa0);
        tbs.any()?;
        tbs.next(SEQUENCE)?;
        let issuer = tbs.next(SEQUENCE)?.1;
        let mut times = Der(tbs.next(SEQUENCE)?.1);
        let (from, until) = (time(times.any()?)?, time(times.any()?)?);
        let subject = tbs.next(SEQUENCE)?.1;
        let mut key = Der(tbs.next(SEQUENCE)?.1);
        let key_algorithm = key.next(SEQUENCE)?.1;
        let key = bits(key.next(BIT_STRING)?.1)?;
        let mut certificate = Certificate {
            der,
            from,
            until,
            signed,
            algorithm,
            signature,
            issuer,
            subject,
            key_algorithm,
            key,
            subject_key_id: b"",
            authority_key_id: b"",
            signs: false,
            deepest: None,
            serves: true,
        };
        tbs.next_if(0x81);
        tbs.next_if(0x82);
        if let Some(extensions) = tbs.next_if(0xa3) {
            let mut extensions = Der(Der(extensions).only(SEQUENCE)?);
            while !extensions.0.is_empty() {
                let mut extension = Der(extensions.next(SEQUENCE)?.1);
                let id = extension.next(OBJECT)?.1;
                extension.next_if(0x01);
                certificate.extend(id, extension.next(OCTET_STRING)?.1)?;
            }
        }
        Some(certificate)
    }

    fn extend(&mut self, id: &[u8], value: &'a [u8]) -> Option<()> {
        match id {
            // subjectKeyIdentifier, authorityKeyIdentifier, basicConstraints, extKeyUsage below 2.5.29.
            [0x55, 0x1d, 14] => self.subject_key_id = Der(value).only(OCTET_STRING)?,
            [0x55, 0x1d, 35] => {
                self.authority_key_id = Der(Der(value).only(SEQUENCE)?).next_if(0x80).unwrap_or_default();
            }
            [0x55, 0x1d, 19] => {
                let mut constraints = Der(Der(value).only(SEQUENCE)?);
                self.signs = constraints.next_if(0x01).is_some_and(|value| value == [0xff]);
                self.deepest = match constraints.next_if(0x02) {
                    Some(number) => Some(usize::from(*number.first()?)),
                    None => None,
                };
            }
            [0x55, 0x1d, 37] => {
                // serverAuth, anyExtendedKeyUsage.
                const GOOD: [&[u8]; 2] = [&[0x2b, 6, 1, 5, 5, 7, 3, 1], &[0x55, 0x1d, 37, 0]];
                let mut usages = Der(Der(value).only(SEQUENCE)?);
                self.serves = false;
                while !usages.0.is_empty() {
                    self.serves |= GOOD.contains(&usages.next(OBJECT)?.1);
                }
            }
            _ => {}
        }
        Some(())
    }

    fn counts(&self, now: Timestamp) -> bool {
        self.serves && self.from <= now && now <= self.until
    }

    fn is_signed_by(&self, other: &Certificate<'_>) -> bool {
        let known = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        other.signs
            && self.issuer == other.subject
            && known
                .all
                .iter()
                .filter(|one| {
                    one.signature_alg_id().as_ref() == self.algorithm
                        && one.public_key_alg_id().as_ref() == other.key_algorithm
                })
                .any(|one| one.verify_signature(other.key, self.signed, self.signature).is_ok())
    }
}

/// What is left of a piece of DER.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next element: its tag, all of it, its value.
    fn element(&mut self) -> Option<(u8, &'a [u8], &'a [u8])> {
        let (tag, first) = (*self.0.first()?, usize::from(*self.0.get(1)?));
        // Tags of more than one byte and lengths without end stand in no certificate.
        if tag & 0x1f == 0x1f || first == 0x80 || first > 0x84 {
            return None;
        }
        let (head, length) = match first {
            0..0x80 => (2, first),
            _ => {
                let digits = self.0.get(2..2 + (first & 0x7f))?;
                let length = digits.iter().fold(0usize, |length, digit| length << 8 | usize::from(*digit));
                (2 + digits.len(), length)
            }
        };
        let end = head.checked_add(length)?;
        let (whole, rest) = (self.0.get(..end)?, self.0.get(end..)?);
        self.0 = rest;
        Some((tag, whole, &whole[head..]))
    }

    fn any(&mut self) -> Option<(u8, &'a [u8])> {
        self.element().map(|(tag, _, value)| (tag, value))
    }

    /// The next element, which must have this tag: all of it, its value.
    fn next(&mut self, tag: u8) -> Option<(&'a [u8], &'a [u8])> {
        self.element().filter(|(found, ..)| *found == tag).map(|(_, whole, value)| (whole, value))
    }

    /// The value of the next element if it has this tag.
    fn next_if(&mut self, tag: u8) -> Option<&'a [u8]> {
        match self.0.first() {
            Some(first) if *first == tag => self.next(tag).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The value of the one element that is here.
    fn only(mut self, tag: u8) -> Option<&'a [u8]> {
        let (_, value) = self.next(tag)?;
        self.0.is_empty().then_some(value)
    }
}

/// Whole bytes of a bit string.
fn bits(value: &[u8]) -> Option<&[u8]> {
    match value {
        [0, bytes @ ..] => Some(bytes),
        _ => None,
    }
}

/// `UTCTime` or `GeneralizedTime`, to the second and in UTC, as RFC 5280 asks for.
fn time((tag, value): (u8, &[u8])) -> Option<Timestamp> {
    let text = std::str::from_utf8(value).ok()?.strip_suffix('Z')?;
    let (century, text) = match tag {
        // Below 50 means the twenty-first century.
        0x17 => (if text.get(..2)? < "50" { "20" } else { "19" }, text),
        0x18 => text.split_at_checked(2)?,
        _ => return None,
    };
    let digits = text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then_some(())?;
    let part = |at: usize| &text[at..at + 2];
    let (year, month, day, hour, minute, second) = (part(0), part(2), part(4), part(6), part(8), part(10));
    format!("{century}{year}-{month}-{day}T{hour}:{minute}:{second}Z").parse().ok()
}
