//! The token by which a node joins: its grammar, who it lets in, and the pin of the cluster's certificates in it.
//!
//! Follows k3s-io/k3s pkg/clientaccess/token.go and pkg/kubeadm/token.go. What K3s would take and never get an answer
//! for (a hash that is no hash) is refused here. Nothing of a token is ever shown.

use std::fmt;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::certificate::{self, Certificate};
use crate::config::k3s::{Role, is_sha256};
use crate::host::http::Credential;

/// A token, taken apart.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// What the cluster's certificates hash to; `None` = they are believed as they come.
    pub pin: Option<String>,
    holder: Holder,
}

#[derive(Clone, PartialEq, Eq)]
enum Holder {
    /// The user that stands in it, if any, and the password. K3s asks by the user that the role needs.
    User(Option<String>, String),
    /// Made by `k3s token create`: for agents, until it expires.
    Bootstrap(String),
}

/// What kind of token it is; not all roles can join with each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A password without a pin, as somebody chose it.
    Short,
    /// `K10<hash>::server:<password>`: lets in servers and agents.
    Server,
    /// `K10<hash>::node:<password>`: lets in agents.
    Node,
    /// `[K10<hash>::]<6>.<16>`: lets in agents.
    Bootstrap,
}

/// Why a text is no token: the form that it fails, and never a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Nothing but blanks.
    #[error("it is empty")]
    Empty,
    /// More than one line.
    #[error("it has more than one line")]
    Lines,
    /// A blank within.
    #[error("there is a blank in it")]
    Blank,
    /// A control character, or one that is not ASCII, such as the mark that some editors put before a text.
    #[error("it holds a character that is not printable ASCII")]
    Character,
    /// `K10` without `::`.
    #[error("it begins with K10 and has no :: behind the hash")]
    Separator,
    /// Not 64 digits between `K10` and `::`.
    #[error("its hash has {0} digits, and 64 are wanted: it was cut off or copied badly")]
    Length(usize),
    /// Other digits than `0` to `9` and `a` to `f`.
    #[error("its hash holds something else than 0-9 and a-f, in lower case")]
    Digits,
    /// Neither user and password nor the bootstrap form behind `::`.
    #[error("behind :: stands neither user:password nor the form abcdef.0123456789abcdef")]
    Credentials,
    /// No password behind the user.
    #[error("its password is empty")]
    Password,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({:?})", self.kind())
    }
}

impl Token {
    /// Reads the content of a token file, or of one that a server wrote.
    pub fn parse(text: &str) -> Result<Token, Malformed> {
        let text = text.trim();
        if text.is_empty() {
            return Err(Malformed::Empty);
        }
        if text.contains(['\n', '\r']) {
            return Err(Malformed::Lines);
        }
        if text.contains([' ', '\t']) {
            return Err(Malformed::Blank);
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Malformed::Character);
        }
        let Some(secure) = text.strip_prefix("K10") else {
            let holder = match is_bootstrap(text) {
                true => Holder::Bootstrap(text.into()),
                false => Holder::User(None, text.into()),
            };
            return Ok(Token { pin: None, holder });
        };
        let (pin, holder) = secure.split_once("::").ok_or(Malformed::Separator)?;
        match pin.len() {
            // As K3s itself writes it where it knows no certificates.
            0 => {}
            64 if is_sha256(pin) => {}
            64 => return Err(Malformed::Digits),
            length => return Err(Malformed::Length(length)),
        }
        let pin = (!pin.is_empty()).then(|| pin.to_owned());
        if is_bootstrap(holder) {
            return Ok(Token { pin, holder: Holder::Bootstrap(holder.into()) });
        }
        match holder.split_once(':') {
            None => Err(Malformed::Credentials),
            Some((_, "")) => Err(Malformed::Password),
            Some((user, password)) => {
                let user = (!user.is_empty()).then(|| user.to_owned());
                Ok(Token { pin, holder: Holder::User(user, password.into()) })
            }
        }
    }

    /// What kind it is.
    pub fn kind(&self) -> Kind {
        match &self.holder {
            Holder::Bootstrap(_) => Kind::Bootstrap,
            Holder::User(Some(user), _) if user == "node" => Kind::Node,
            Holder::User(None, _) if self.pin.is_none() => Kind::Short,
            Holder::User(..) => Kind::Server,
        }
    }

    /// What a server is shown for a role. The user is the role's, whatever stands in the token.
    pub fn credential(&self, role: &Role) -> Credential {
        match &self.holder {
            Holder::Bootstrap(token) => Credential::Bearer(token.clone()),
            Holder::User(_, password) => {
                let user = if role.is_server() { "server" } else { "node" };
                Credential::Basic(user.into(), password.clone())
            }
        }
    }
}

fn is_bootstrap(text: &str) -> bool {
    let of = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase())
    };
    text.split_once('.').is_some_and(|(id, secret)| of(id, 6) && of(secret, 16))
}

/// What a server's certificates, the body of `/cacerts`, hash to: the text as it was served when it holds one; of
/// several the DER of the root of the first one's chain, or the text when there is no such root.
///
/// `None`: it holds no certificate, or one that cannot be read, and no pin fits.
pub fn pin(cacerts: &[u8], now: Timestamp) -> Option<String> {
    let ders = certificate::bundle(cacerts)?;
    let bundle: Option<Vec<_>> = ders.iter().map(|der| Certificate::parse(der)).collect();
    let hashed = match &bundle?[..] {
        [] => return None,
        [_] => cacerts,
        several => certificate::root(several, now).map_or(cacerts, |root| root.der),
    };
    Some(Sha256::digest(hashed).iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::http::Url;

    const HASH: &str = "ea46fcf345606db22542b4a49eeafef2293b16c28fdec4cd9f0f116ca5a0a111";

    #[test]
    fn every_form_that_k3s_knows_is_read() {
        for (text, kind, pinned) in [
            (format!("K10{HASH}::server:secret"), Kind::Server, true),
            (format!("K10{HASH}::node:secret\n"), Kind::Node, true),
            (format!("K10{HASH}::somebody:a:b::c"), Kind::Server, true),
            (format!("K10{HASH}:::secret"), Kind::Server, true),
            (format!("K10{HASH}::abcdef.0123456789abcdef"), Kind::Bootstrap, true),
            ("K10::server:secret".into(), Kind::Server, false),
            ("abcdef.0123456789abcdef".into(), Kind::Bootstrap, false),
            ("abcdef.0123456789ABCDEF".into(), Kind::Short, false),
            ("secret".into(), Kind::Short, false),
            ("  a:b::c \r\n".into(), Kind::Short, false),
        ] {
            let token = Token::parse(&text).unwrap();
            assert_eq!((token.kind(), token.pin.is_some()), (kind, pinned), "{text}");
        }
    }

    #[test]
    fn every_form_that_is_none_is_named() {
        let cases = [
            (String::new(), Malformed::Empty),
            (" \n\n".into(), Malformed::Empty),
            ("a\nb".into(), Malformed::Lines),
            ("my secret".into(), Malformed::Blank),
            ("\u{feff}secret".into(), Malformed::Character),
            ("s\u{e9}cret".into(), Malformed::Character),
            ("a\0b".into(), Malformed::Character),
            ("K10".into(), Malformed::Separator),
            (format!("K10{HASH}"), Malformed::Separator),
            (format!("K10{HASH}:server:secret"), Malformed::Separator),
            (format!("K10{}::server:secret", &HASH[1..]), Malformed::Length(63)),
            (format!("K10{HASH}0::server:secret"), Malformed::Length(65)),
            (format!("K10{}::server:secret", HASH.to_uppercase()), Malformed::Digits),
            (format!("K10{}::server:secret", HASH.replace('a', "g")), Malformed::Digits),
            (format!("K10{HASH}::"), Malformed::Credentials),
            (format!("K10{HASH}::secret"), Malformed::Credentials),
            (format!("K10{HASH}::server:"), Malformed::Password),
        ];
        for (text, malformed) in cases {
            assert_eq!(Token::parse(&text), Err(malformed), "{text:?}");
        }
    }

    #[test]
    fn a_token_is_never_shown() {
        let token = Token::parse(&format!("K10{HASH}::server:hunter2")).unwrap();
        assert_eq!(format!("{token:?}"), "Token(Server)");
    }

    #[test]
    fn the_role_decides_the_user_and_a_bootstrap_token_bears_itself() {
        let url = Url::parse("https://pi-1:6443").unwrap();
        let (server, agent) = (Role::Server(url.clone()), Role::Agent(url));
        let token = Token::parse("K10::server:secret").unwrap();
        assert_eq!(token.credential(&server), Credential::Basic("server".into(), "secret".into()));
        assert_eq!(token.credential(&agent), Credential::Basic("node".into(), "secret".into()));
        let bootstrap = Token::parse(&format!("K10{HASH}::abcdef.0123456789abcdef")).unwrap();
        assert_eq!(bootstrap.credential(&agent), Credential::Bearer("abcdef.0123456789abcdef".into()));
    }

    /// Made by openssl(1); hashed by sha256sum(1): `sha256sum one.pem`, and of `several.pem`, whose last certificate is
    /// that of `one.pem`, `openssl x509 -in one.pem -outform der | sha256sum`.
    const ONE: &str = "ea46fcf345606db22542b4a49eeafef2293b16c28fdec4cd9f0f116ca5a0a111";
    const ROOT: &str = "fbd551135f2abf19ce6603a0013b71198e0337e8858391c2c4df5f0c0dff1eee";

    #[test]
    fn one_certificate_is_pinned_by_its_text_and_several_by_their_root() {
        let now = "2027-01-01T00:00:00Z".parse().unwrap();
        let one = include_bytes!("../../data/k3s_pins/one.pem");
        let several = include_str!("../../data/k3s_pins/several.pem");
        assert_eq!(pin(one, now).as_deref(), Some(ONE));
        assert_eq!(pin(several.as_bytes(), now).as_deref(), Some(ROOT));
        // Another order of those behind the first, and blank lines, change nothing.
        let mut parts: Vec<&str> = several.split_inclusive("-----END CERTIFICATE-----\n").collect();
        parts[1..].reverse();
        assert_eq!(pin(parts.join("\n").as_bytes(), now).as_deref(), Some(ROOT));
        // One blank line more, and the text of one is another.
        assert_ne!(pin(&[&one[..], b"\n"].concat(), now).as_deref(), Some(ONE));
    }

    #[test]
    fn without_a_root_that_has_signed_and_counts_the_text_itself_is_pinned() {
        let text =
            |bytes: &[u8]| -> String { Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect() };
        let now = "2027-01-01T00:00:00Z".parse().unwrap();
        // It names the root as its issuer, and another key has signed it.
        let forged = include_bytes!("../../data/k3s_pins/forged.pem");
        assert_eq!(pin(forged, now), Some(text(forged)));
        let several = include_bytes!("../../data/k3s_pins/several.pem");
        for then in ["2020-01-01T00:00:00Z", "2060-01-01T00:00:00Z"] {
            assert_eq!(pin(several, then.parse().unwrap()), Some(text(several)), "{then}");
        }
    }

    #[test]
    fn what_holds_no_certificate_has_no_pin() {
        let now = "2027-01-01T00:00:00Z".parse().unwrap();
        let broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for text in [&b""[..], b"<html>404</html>", broken] {
            assert_eq!(pin(text, now), None);
        }
        // Cut off anywhere it is read as less, and never ends the program.
        let several = include_bytes!("../../data/k3s_pins/several.pem");
        for end in (0..several.len()).step_by(17) {
            let _ = pin(&several[..end], now);
        }
    }
}
