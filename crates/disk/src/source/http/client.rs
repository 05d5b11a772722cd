//! Requests of ranges: redirects, what may be tried again, and what an answer must say.

use std::io::Read;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use ureq::http::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_RANGE, ETAG, LAST_MODIFIED, LOCATION, RANGE,
    RETRY_AFTER,
};
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Response, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::address::{is_same_server, redirected};
use super::{HttpError, HttpOptions, Version};

const MAX_REDIRECTS: usize = 8;
/// Longest wait before another attempt, whatever the server asks for.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Longest field that tells versions of a file apart.
const MAX_FIELD: usize = 1024;

type Result<T> = std::result::Result<T, HttpError>;

/// Who asks.
pub(super) struct Client {
    agent: Agent,
    address: Uri,
    /// Where redirects have led.
    location: Mutex<Uri>,
    headers: Vec<(HeaderName, HeaderValue)>,
    options: HttpOptions,
    /// How long the server asked to wait, if it did.
    asked: Mutex<Option<Duration>>,
}

/// A part of the file.
pub(super) struct Part {
    /// Where it ends.
    pub end: u64,
    pub version: Version,
    pub body: Box<dyn Read>,
}

impl Part {
    /// Reads the end of the answer, after which the connection can be used again.
    pub fn finish(mut self) {
        // If it fails, another connection is made.
        let _ = self.body.read(&mut [0]);
    }
}

impl Client {
    pub fn new(address: Uri, options: &HttpOptions) -> Result<Self> {
        let header = |(name, value): &(String, String)| {
            let name = HeaderName::try_from(name).ok()?;
            Some((name, HeaderValue::try_from(value).ok()?))
        };
        let headers: Option<_> = options.headers.iter().map(header).collect();
        let wrong = || HttpError::Address("a header has characters that none may have".to_owned());
        Ok(Self {
            agent: options.agent.clone().unwrap_or_else(agent),
            location: Mutex::new(address.clone()),
            address,
            headers: headers.ok_or_else(wrong)?,
            options: options.clone(),
            asked: Mutex::new(None),
        })
    }

    pub fn address(&self) -> &Uri {
        &self.address
    }

    /// Asks for a range that is not empty; what comes begins at its start and may end before its end.
    pub fn get(&self, range: Range<u64>) -> Result<Part> {
        let known = self.location.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match self.get_from(known.clone(), &range) {
            // What a redirect led to may have been for a while only.
            Err(HttpError::Status(401 | 403 | 404 | 410, _)) if known != self.address => {
                self.get_from(self.address.clone(), &range)
            }
            answer => answer,
        }
    }

    fn get_from(&self, mut at: Uri, range: &Range<u64>) -> Result<Part> {
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.ask(&at, range)?;
            let status = answer.status().as_u16();
            match status {
                206 => {
                    let part = part(answer, range)?;
                    *self.location.lock().unwrap_or_else(PoisonError::into_inner) = at;
                    return Ok(part);
                }
                301 | 302 | 303 | 307 | 308 => {
                    let to = answer.headers().get(LOCATION).and_then(|to| to.to_str().ok());
                    let to = to.ok_or(HttpError::Answer("a redirect leads nowhere"))?;
                    at = redirected(&at, to)?;
                }
                // An empty file has no range.
                416 if range.start == 0 && content_range(answer.headers()) == Some((0..0, 0)) => {
                    let version = version(answer.headers(), 0);
                    return Ok(Part { end: 0, version, body: Box::new(std::io::empty()) });
                }
                416 if range.start != 0 => return Err(HttpError::Changed),
                200 => return Err(HttpError::NoRanges),
                _ => {
                    let asked = answer.headers().get(RETRY_AFTER);
                    let asked = asked.and_then(|value| value.to_str().ok()?.parse().ok());
                    let asked = asked.map(Duration::from_secs);
                    *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = asked;
                    return Err(HttpError::Status(status, meaning(status)));
                }
            }
        }
        Err(HttpError::Redirects)
    }

    fn ask(&self, at: &Uri, range: &Range<u64>) -> Result<Response<Body>> {
        let timeout = Some(self.options.timeout);
        let whole = Some(self.options.timeout.saturating_mul(4));
        let mut request = self
            .agent
            .get(at)
            .config()
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_resolve(timeout)
            .timeout_connect(timeout)
            .timeout_send_request(timeout)
            .timeout_recv_response(timeout)
            .timeout_per_read(timeout)
            // Nobody keeps a connection by sending a byte now and then.
            .timeout_recv_body(whole)
            .timeout_global(None)
            .timeout_per_call(None)
            .max_response_header_size(64 << 10)
            .build()
            .header(ACCEPT_ENCODING, "identity");
        if is_same_server(at, &self.address) {
            for (name, value) in &self.headers {
                request = request.header(name, value);
            }
        }
        let range = format!("bytes={}-{}", range.start, range.end - 1);
        let answer = request.header(RANGE, range).call();
        answer.map_err(|error| HttpError::Connection(Box::new(error)))
    }

    /// Waits before another attempt if the reason may pass and not too many were made; returns the reason otherwise.
    pub fn wait_after(&self, error: HttpError, failures: u32) -> Result<()> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner).take();
        if failures >= self.options.attempts || !may_pass(&error) {
            return Err(error);
        }
        let pause = self.options.pause.saturating_mul(1 << failures.saturating_sub(1).min(16));
        std::thread::sleep(pause.max(asked.unwrap_or_default()).min(MAX_PAUSE));
        Ok(())
    }
}

/// Whether another attempt may succeed.
fn may_pass(error: &HttpError) -> bool {
    match error {
        HttpError::Status(status, _) => matches!(status, 408 | 425 | 429 | 500 | 502..=504),
        HttpError::Lost(_) => true,
        HttpError::Connection(error) => matches!(
            **error,
            ureq::Error::Io(_)
                | ureq::Error::Timeout(_)
                | ureq::Error::ConnectionFailed
                | ureq::Error::HostNotFound
                | ureq::Error::BodyStalled
        ),
        _ => false,
    }
}

/// An answer with a part of the file.
fn part(answer: Response<Body>, asked: &Range<u64>) -> Result<Part> {
    let headers = answer.headers();
    if headers.get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        return Err(HttpError::Answer("the file is sent compressed"));
    }
    if headers.get(CONTENT_RANGE).is_some_and(|range| range.as_bytes().ends_with(b"/*")) {
        return Err(HttpError::NoLength);
    }
    let wrong = HttpError::Answer("it does not say which range it sends");
    let (sent, length) = content_range(headers).ok_or(wrong)?;
    if sent.start != asked.start || sent.end > asked.end.min(length) || sent.is_empty() {
        return Err(HttpError::Answer("it has another range than was asked for"));
    }
    let version = version(headers, length);
    let body = answer.into_body().into_with_config().limit(sent.end - sent.start).reader();
    Ok(Part { end: sent.end, version, body: Box::new(body) })
}

fn version(headers: &HeaderMap, length: u64) -> Version {
    let field = |name| {
        let value = headers.get(name)?.to_str().ok()?.trim();
        // A server that compresses on the way may call the same tag weak.
        let value = value.strip_prefix("W/").unwrap_or(value);
        value.get(..value.len().min(MAX_FIELD)).map(str::to_owned)
    };
    Version { length, etag: field(ETAG), modified: field(LAST_MODIFIED) }
}

/// "bytes 0-9/100", or "bytes */0".
fn content_range(headers: &HeaderMap) -> Option<(Range<u64>, u64)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?.trim();
    let (range, length) = text.strip_prefix("bytes ")?.split_once('/')?;
    let length: u64 = length.trim().parse().ok()?;
    if range.trim() == "*" {
        return Some((0..0, length));
    }
    let (first, last) = range.split_once('-')?;
    let last: u64 = last.trim().parse().ok()?;
    Some((first.trim().parse().ok()?..last.checked_add(1)?, length))
}

fn meaning(status: u16) -> &'static str {
    match status {
        401 => ": it wants a name and a password",
        403 => ": it does not allow it",
        404 => ": it has no such file",
        407 => ": the proxy wants a name and a password",
        410 => ": the file is gone",
        429 => ": it was asked too often",
        500..=599 => ": it failed",
        _ => "",
    }
}

/// One that trusts whom the host trusts.
fn agent() -> Agent {
    static AGENT: OnceLock<Agent> = OnceLock::new();
    let make = || {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::debug!(%error, "A certificate of the host cannot be used");
        }
        let roots = found.certs.iter().map(|found| Certificate::from_der(found).to_owned());
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::new(roots.collect())))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()));
        Agent::config_builder().tls_config(tls.build()).build().new_agent()
    };
    AGENT.get_or_init(make).clone()
}
