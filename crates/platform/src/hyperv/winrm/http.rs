//! One connection to a WinRM service that knows who we are.
//!
//! NTLM proves itself to a connection, not to a request; so there is one, which nobody else uses. Over plain HTTP every
//! message is encrypted by NTLM's session (MS-WSMV, 2.2.9.1), over HTTPS by TLS. A password is never sent but by Basic, and
//! that never but over HTTPS.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ureq::Agent;
use ureq::config::Config;
use ureq::http::{Response, StatusCode};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Connector, TcpConnector};

use super::ntlm::{self, Account, Chance, Negotiate, Session};
use super::seal;
use crate::tls::{TlsConnector, Verifier};
use crate::xml::LONGEST;
use crate::{Error, Options, Result, Secret, Uri, credentials};

/// Whoever forgets us that often does not want us.
const LOGINS: usize = 3;
/// A server closes idle connections; the next request then opens another one.
const IDLE: Duration = Duration::from_secs(3600);

/// Where a service is, and who asks it.
#[derive(Clone)]
pub(super) struct Service {
    /// The server's name for people.
    pub place: String,
    url: String,
    host: String,
    is_tls: bool,
    account: Account,
    options: Options,
}

/// A connection to it.
pub(super) struct Connection {
    service: Arc<Service>,
    agent: Agent,
    verifier: Arc<Verifier>,
    proof: Proof,
}

/// What the connection has of us.
enum Proof {
    None,
    /// A header that goes with each request.
    Basic(Secret),
    /// It knows us, and TLS keeps everything from others.
    Known,
    /// It knows us, and messages are encrypted.
    Sealed(Box<Session>),
}

/// An answer that was read wholly, and decrypted.
pub(super) struct Answer {
    pub status: StatusCode,
    pub body: Vec<u8>,
}

impl Service {
    /// The service that `uri` names; nothing is sent yet.
    pub fn new(uri: &Uri, options: &Options) -> Result<Self> {
        let host = uri.host.clone().unwrap_or_default();
        // A pin or an authority would mean nothing without TLS.
        let wants_tls = options.tls_thumbprint.is_some() || options.tls_ca.is_some();
        let is_tls = uri.scheme.ends_with("+https") || uri.port == Some(5986) || wants_tls;
        let port = uri.port.unwrap_or(if is_tls { 5986 } else { 5985 });
        let bracketed = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let scheme = if is_tls { "https" } else { "http" };
        let user = uri.user.clone().unwrap_or_else(|| super::USUAL_USER.into());
        let named = Uri { user: Some(user.clone()), ..uri.clone() };
        let password = credentials::password(&named, options)?;
        Ok(Self {
            place: format!("{bracketed}:{port}"),
            url: format!("{scheme}://{bracketed}:{port}/wsman"),
            host,
            is_tls,
            account: Account::new(&user, password),
            options: options.clone(),
        })
    }

    /// How long a call may take.
    pub fn limit(&self) -> Duration {
        self.options.time_limit
    }

    fn refused(&self, message: impl Into<String>) -> Error {
        Error::Credentials {
            place: self.place.clone(),
            message: message.into(),
            repair: Some(credentials::ADVICE.into()),
        }
    }
}

impl Connection {
    /// Prepares a connection; it is made when the first message is sent.
    pub fn new(service: Arc<Service>) -> Result<Self> {
        let options = &service.options;
        let verifier = Verifier::new(options.tls_thumbprint.as_deref(), options.tls_ca.as_deref())?;
        let verifier = Arc::new(verifier);
        let limit = options.time_limit;
        let config = Config::builder()
            .http_status_as_error(false)
            .https_only(service.is_tls)
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("omnivisor/", env!("CARGO_PKG_VERSION")))
            .max_idle_connections(1)
            .max_idle_connections_per_host(1)
            .max_idle_age(IDLE)
            .timeout_resolve(Some(limit))
            .timeout_connect(Some(limit))
            .build();
        let agent = match service.is_tls {
            true => {
                let connector =
                    ().chain(TcpConnector::default()).chain(TlsConnector::new(verifier.clone()));
                Agent::with_parts(config, connector, DefaultResolver::default())
            }
            false => Agent::with_parts(config, TcpConnector::default(), DefaultResolver::default()),
        };
        Ok(Self { service, agent, verifier, proof: Proof::None })
    }

    /// Sends a message, after a login if the server wants one, and reads the answer within `limit`.
    pub fn post(&mut self, what: &str, message: &str, limit: Duration) -> Result<Answer> {
        for _ in 0..LOGINS {
            if matches!(self.proof, Proof::None) {
                self.log_in(limit)?;
            }
            let (content_type, body) = match &mut self.proof {
                Proof::Sealed(session) => (seal::CONTENT_TYPE, seal::seal(session, message)),
                _ => ("application/soap+xml;charset=UTF-8", message.as_bytes().to_vec()),
            };
            let header = match &self.proof {
                Proof::Basic(header) => Some(header.clone()),
                _ => None,
            };
            let sent = self.send(what, content_type, header.as_ref(), &body, limit);
            let (response, body) = match sent {
                Ok(sent) => sent,
                Err(error) => {
                    // Whatever comes next is another connection.
                    self.proof = Proof::None;
                    return Err(error);
                }
            };
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED {
                // It did nothing, so asking once more does nothing twice.
                if let Proof::Basic(_) = self.proof {
                    return Err(self.denied());
                }
                self.proof = Proof::None;
                continue;
            }
            let Proof::Sealed(session) = &mut self.proof else {
                return Ok(Answer { status, body });
            };
            let is_sealed = content_type_of(&response).starts_with("multipart/encrypted");
            let opened = match is_sealed {
                true => seal::open(session, &body),
                // Anybody could have said it.
                false if status.is_success() => Err("an answer is not encrypted"),
                false => return Ok(Answer { status, body: Vec::new() }),
            };
            return match opened {
                Ok(body) => Ok(Answer { status, body }),
                Err(message) => {
                    self.proof = Proof::None;
                    Err(Error::reply(format!("{what} at {}", self.service.place), message))
                }
            };
        }
        Err(self.service.refused("it forgets each login at once"))
    }

    /// Proves who we are.
    fn log_in(&mut self, limit: Duration) -> Result<()> {
        let negotiate = Negotiate::new();
        let token = Secret::new(format!("Negotiate {}", BASE64.encode(negotiate.bytes())));
        let (response, _) = self.send("logging in", "", Some(&token), &[], limit)?;
        if response.status() != StatusCode::UNAUTHORIZED {
            let said = format!("it answers a login with {}", response.status());
            return Err(Error::reply(self.service.place.clone(), said));
        }
        let offers = offers(&response);
        let Some(challenge) = offers.iter().find_map(|offer| token_of(offer)) else {
            return self.without_ntlm(&offers);
        };
        let service = self.service.clone();
        let target = format!("HTTP/{}", service.host);
        let binding = self.verifier.accepted().map(|certificate| ntlm::channel(&certificate));
        let (message, session) = negotiate
            .answer(&challenge, &service.account, &target, binding, &Chance::now())
            .map_err(|message| service.refused(message))?;
        let token = Secret::new(format!("Negotiate {}", BASE64.encode(message)));
        let (response, _) = self.send("logging in", "", Some(&token), &[], limit)?;
        if response.status() == StatusCode::UNAUTHORIZED {
            return Err(self.denied());
        }
        self.proof = match service.is_tls {
            true => Proof::Known,
            false => Proof::Sealed(Box::new(session)),
        };
        Ok(())
    }

    fn without_ntlm(&mut self, offers: &[String]) -> Result<()> {
        let has_basic = offers.iter().any(|offer| is_scheme(offer, "Basic"));
        let account = &self.service.account;
        if has_basic && self.service.is_tls {
            let text = format!("{}:{}", account.user, account.password.reveal());
            self.proof = Proof::Basic(Secret::new(format!("Basic {}", BASE64.encode(text))));
            return Ok(());
        }
        let message = match has_basic {
            true => "it takes nothing but passwords in the clear, which are not sent over HTTP",
            false => "it offers no way in by a password (Negotiate with NTLM, or Basic over HTTPS)",
        };
        Err(Error::Credentials {
            place: self.service.place.clone(),
            message: message.into(),
            repair: Some("use its HTTPS listener (hyperv+https://) or hyperv+ssh://".into()),
        })
    }

    fn denied(&self) -> Error {
        let Account { domain, user, .. } = &self.service.account;
        let domain = if domain.is_empty() { String::new() } else { format!("{domain}\\") };
        self.service.refused(format!(
            "the password is wrong for user {domain}{user}, or the user may not log in remotely"
        ))
    }

    fn send(
        &mut self,
        what: &str,
        content_type: &str,
        authorization: Option<&Secret>,
        body: &[u8],
        limit: Duration,
    ) -> Result<(Response<ureq::Body>, Vec<u8>)> {
        let mut request =
            self.agent.post(&self.service.url).config().timeout_global(Some(limit)).build();
        if !content_type.is_empty() {
            request = request.header("Content-Type", content_type);
        }
        if let Some(authorization) = authorization {
            request = request.header("Authorization", authorization.reveal());
        }
        let mut response = request.send(body).map_err(|error| self.error(what, error, limit))?;
        let reader = response.body_mut().with_config().limit(LONGEST as u64);
        let body = reader.read_to_vec().map_err(|error| self.error(what, error, limit))?;
        Ok((response, body))
    }

    fn error(&self, what: &str, error: ureq::Error, limit: Duration) -> Error {
        let place = self.service.place.clone();
        if let Some(refused) = self.verifier.take_refused() {
            return refused.error(place);
        }
        match error {
            ureq::Error::Timeout(_) => {
                Error::TimedOut { what: format!("{what} at {place}"), limit }
            }
            ureq::Error::BodyExceedsLimit(_) => Error::TooMuch { what: place, limit: LONGEST },
            error => Error::Unreachable {
                repair: repair(&error, self.service.is_tls),
                message: error.to_string(),
                place,
            },
        }
    }
}

/// What helps where nobody listens.
fn repair(error: &ureq::Error, is_tls: bool) -> Option<String> {
    let is_closed = match error {
        ureq::Error::Io(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
        ureq::Error::ConnectionFailed => true,
        _ => false,
    };
    let listener = if is_tls { "winrm quickconfig -transport:https" } else { "winrm quickconfig" };
    is_closed.then(|| format!("on the host, as an administrator: {listener}"))
}

/// What the server offers: one line for each `WWW-Authenticate`.
fn offers<T>(response: &Response<T>) -> Vec<String> {
    let lines = response.headers().get_all("www-authenticate").into_iter();
    let lines = lines.filter_map(|line| line.to_str().ok()).take(20);
    lines.flat_map(|line| line.split(',')).map(|offer| offer.trim().to_owned()).collect()
}

fn is_scheme(offer: &str, scheme: &str) -> bool {
    offer.split_whitespace().next().is_some_and(|word| word.eq_ignore_ascii_case(scheme))
}

/// The token behind `Negotiate`.
fn token_of(offer: &str) -> Option<Vec<u8>> {
    is_scheme(offer, "Negotiate").then_some(())?;
    BASE64.decode(offer.split_whitespace().nth(1)?).ok()
}

fn content_type_of<T>(response: &Response<T>) -> String {
    let header = response.headers().get("content-type").and_then(|value| value.to_str().ok());
    header.unwrap_or_default().trim_start().to_ascii_lowercase()
}
