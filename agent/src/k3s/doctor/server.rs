//! The conversation with a server, in the order in which K3s holds it, and what every answer was.
//!
//! Follows k3s-io/k3s pkg/clientaccess/token.go: the certificates are asked for as the system believes, then from
//! anybody, then as they themselves say. The token is shown to a server only when its certificates fit the token's
//! pin, and the node's password only to one that takes the token. Nothing here judges.

use jiff::Timestamp;
use serde_json::Value;

use crate::config::k3s::Role;
use crate::host::clock;
use crate::host::http::{Client, Credential, Request, Response, Trouble, Trust, Url};
use crate::k3s::certificate::{self, Certificate};
use crate::k3s::token::{self, Token};

/// What a server answered, as far as it was asked.
#[derive(Debug)]
pub struct Conversation {
    /// Whether its certificates could be asked for at all.
    pub cacerts: Result<(), Trouble>,
    /// Whether the system believes its certificate: then K3s looks at no pin.
    pub is_public: bool,
    /// What its certificates hash to; `None` = there are none in its answer, or it is public.
    pub pin: Option<String>,
    /// From when and until when the certificates count that were shown or served: all of them, together.
    pub validity: Option<(Timestamp, Timestamp)>,
    /// Whether its certificate is one that its own certificates sign, for this name and now.
    pub verified: Option<Result<(), Trouble>>,
    /// What it says of the cluster to one who shows the token.
    pub config: Option<Result<Value, Trouble>>,
    /// Whether it lets a server join by this token.
    pub bootstrap: Option<Result<(), Trouble>>,
    /// Whether it takes the node's password for the node's name.
    pub password: Option<Result<(), Trouble>>,
}

/// What is asked with.
#[derive(Debug)]
pub struct Guest<'a> {
    /// What the node is to become.
    pub role: &'a Role,
    /// The token, if it could be read.
    pub token: Option<&'a Token>,
    /// The node's name, and the password that K3s keeps here when it has run before. A server that knows neither keeps both
    /// from then on, so only a node that is about to join asks.
    pub node: Option<(&'a str, &'a str)>,
}

/// Talks to a server.
pub async fn talk(url: &Url, guest: &Guest<'_>) -> Conversation {
    let mut seen = Conversation {
        cacerts: Ok(()),
        is_public: false,
        pin: None,
        validity: None,
        verified: None,
        config: None,
        bootstrap: None,
        password: None,
    };
    let client = |trust| Client::new(trust, None);
    let at = url.at("/cacerts");
    let first = match client(Trust::System) {
        Ok(client) => good(&client, Request::get(&at)).await,
        Err(trouble) => Err(trouble),
    };
    let believing = match first {
        Ok(_) => {
            seen.is_public = true;
            client(Trust::System)
        }
        // No other trust changes who can be reached.
        Err(trouble) if !matches!(trouble, Trouble::Tls(_)) => {
            seen.cacerts = Err(trouble);
            return seen;
        }
        Err(_) => match client(Trust::Anybody) {
            Ok(client) => match good(&client, Request::get(&at)).await {
                Ok(answer) => {
                    seen.pin = token::pin(&answer.body, clock::now());
                    seen.validity = validity(&answer);
                    Client::new(Trust::Bundle(&answer.body), None)
                }
                Err(trouble) => Err(trouble),
            },
            Err(trouble) => Err(trouble),
        },
    };
    let client = match believing {
        Ok(client) => client,
        Err(trouble) => {
            seen.cacerts = Err(trouble);
            return seen;
        }
    };
    if !seen.is_public {
        seen.verified = Some(good(&client, Request::get(&at)).await.map(drop));
    }
    let Some(token) = guest.token else { return seen };
    let fits = seen.is_public || token.pin.is_none() || token.pin == seen.pin;
    if !fits || seen.verified.as_ref().is_some_and(Result::is_err) {
        return seen;
    }
    let as_agent = token.credential(&Role::Agent(url.clone()));
    seen.config = Some(config(&client, url, &as_agent).await);
    if guest.role.is_server() {
        // The head of the answer tells; behind it come the cluster's keys, which nobody here needs.
        let request =
            Request::get(&url.at("/v1-k3s/server-bootstrap")).by(Some(token.credential(guest.role)));
        seen.bootstrap = Some(match client.open(request).await {
            Ok(answer) => answer.good().await.map(drop),
            Err(trouble) => Err(trouble),
        });
    }
    if let (Some(Ok(_)), Some((name, password))) = (&seen.config, guest.node) {
        let request = Request::get(&url.at("/v1-k3s/serving-kubelet.crt"))
            .header("k3s-node-name", name)
            .header("k3s-node-password", password)
            .by(Some(as_agent));
        seen.password = Some(good(&client, request).await.map(drop));
    }
    seen
}

async fn good(client: &Client, request: Request) -> Result<Response, Trouble> {
    client.send(request).await?.good()
}

async fn config(client: &Client, url: &Url, credential: &Credential) -> Result<Value, Trouble> {
    let request = Request::get(&url.at("/v1-k3s/config")).by(Some(credential.clone()));
    let answer = good(client, request).await?;
    serde_json::from_slice(&answer.body).map_err(|error| Trouble::NotHttp(format!("its settings: {error}")))
}

/// When all certificates that were shown in the handshake and served in the body count.
fn validity(answer: &Response) -> Option<(Timestamp, Timestamp)> {
    let served = certificate::bundle(&answer.body).unwrap_or_default();
    let all = answer.certificates.iter().chain(&served).filter_map(|der| Certificate::parse(der));
    all.map(|one| (one.from, one.until))
        .reduce(|(from, until), (later, sooner)| (from.max(later), until.min(sooner)))
}
