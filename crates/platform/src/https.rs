//! HTTPS to one server: each answer is bounded in size and time.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use ureq::Agent;
use ureq::config::Config;
use ureq::http::{Response, StatusCode};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Connector, TcpConnector};

use crate::tls::{TlsConnector, Verifier};
use crate::xml::LONGEST as LONGEST_REPLY;
use crate::{Error, Options, Result, Uri};

/// A server without a word for so long is gone.
const SILENCE: Duration = Duration::from_secs(20);
/// Connections that are kept for the next request.
const CONNECTIONS: usize = 16;

/// Bytes of a stream that are handed on at once.
const BUFFER: usize = 1 << 20;

/// A way to one server.
#[derive(Debug)]
pub(crate) struct Http {
    agent: Agent,
    verifier: Arc<Verifier>,
    base: String,
    /// The server's name for people.
    pub place: String,
    /// How long a call may take.
    pub limit: Duration,
}

/// An answer that was read wholly.
pub(crate) struct Answer {
    pub status: StatusCode,
    pub cookie: Option<String>,
    pub body: Vec<u8>,
}

/// A part of a file, and its bytes.
pub(crate) type Content = (Part, Box<dyn Read>);

/// How much of an answer is left, and from where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Part {
    /// Offset of its first byte.
    pub start: u64,
    /// How many bytes it has.
    pub length: u64,
    /// How many the whole file has.
    pub total: u64,
    /// What tells this state of the file from another: when it was changed, or what the server calls it.
    pub stamp: String,
}

impl Http {
    /// Prepares a way to the server that `uri` names; nothing is sent yet.
    pub fn new(uri: &Uri, options: &Options) -> Result<Self> {
        let host = uri.host.as_deref().unwrap_or_default();
        if host.is_empty() {
            let message = "it names no host".into();
            return Err(Error::Name { text: uri.to_string(), message });
        }
        let bracketed = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let place = match uri.port {
            Some(port) => format!("{bracketed}:{port}"),
            None => bracketed,
        };
        let verifier = Verifier::new(options.tls_thumbprint.as_deref(), options.tls_ca.as_deref())?;
        let verifier = Arc::new(verifier);
        let connector =
            ().chain(TcpConnector::default()).chain(TlsConnector::new(verifier.clone()));
        let limit = options.time_limit;
        let config = Config::builder()
            .http_status_as_error(false)
            .https_only(true)
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("omnivisor/", env!("CARGO_PKG_VERSION")))
            .input_buffer_size(64 << 10)
            .max_idle_connections(CONNECTIONS)
            .max_idle_connections_per_host(CONNECTIONS)
            .timeout_resolve(Some(limit))
            .timeout_connect(Some(limit))
            .timeout_per_read(Some(SILENCE.min(limit)))
            .timeout_per_write(Some(SILENCE.min(limit)))
            .build();
        let agent = Agent::with_parts(config, connector, DefaultResolver::default());
        Ok(Self { agent, verifier, base: format!("https://{place}"), place, limit })
    }

    /// `https://HOST:PORT`.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// What connects to it, and to it alone.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// Sends `body` and reads the answer within `limit`.
    pub fn post(
        &self,
        what: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
        limit: Duration,
    ) -> Result<Answer> {
        let mut request = self
            .agent
            .post(format!("{}{path}", self.base))
            .config()
            .timeout_global(Some(limit))
            .timeout_per_read(Some(limit))
            .build();
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = request.send(body).map_err(|error| self.error(what, error))?;
        let cookie = session_cookie(&response);
        let status = response.status();
        let reader = response.body_mut().with_config().limit(LONGEST_REPLY as u64);
        let body = reader.read_to_vec().map_err(|error| self.error(what, error))?;
        Ok(Answer { status, cookie, body })
    }

    /// Asks for bytes `start..end` of a file. The second is absent unless the server gave what was asked for.
    pub fn get(
        &self,
        what: &str,
        path: &str,
        cookie: Option<&str>,
        start: u64,
        end: u64,
    ) -> Result<(StatusCode, Option<Content>)> {
        let mut request = self
            .agent
            .get(format!("{}{path}", self.base))
            .header("Range", format!("bytes={start}-{}", end.saturating_sub(1)))
            .header("Accept-Encoding", "identity");
        if let Some(cookie) = cookie {
            request = request.header("Cookie", cookie);
        }
        let response = request.call().map_err(|error| self.error(what, error))?;
        let status = response.status();
        let part = match status {
            StatusCode::PARTIAL_CONTENT => content_range(&response)
                .filter(|part| part.start == start && part.length <= end - start),
            StatusCode::OK => length(&response).filter(|_| start == 0).map(|total| Part {
                start,
                length: total,
                total,
                stamp: stamp(&response),
            }),
            // An empty file has no range.
            StatusCode::RANGE_NOT_SATISFIABLE if start == 0 => {
                Some(Part { stamp: stamp(&response), ..Part::default() })
            }
            _ => return Ok((status, None)),
        };
        let Some(part) = part else {
            return Err(Error::reply(what, "the server sends other bytes than were asked for"));
        };
        let body: Box<dyn Read> = match part.length {
            // What a server says instead of an empty file is not its content.
            0 => Box::new(std::io::empty()),
            length => Box::new(response.into_body().into_with_config().limit(length).reader()),
        };
        Ok((status, Some((part, body))))
    }

    /// Asks for a whole file of unknown length. The reader is absent unless the server gives it.
    pub fn stream(
        &self,
        what: &str,
        path: &str,
        cookie: Option<&str>,
    ) -> Result<(StatusCode, Option<Box<dyn Read>>)> {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        request = request.header("Accept-Encoding", "identity");
        if let Some(cookie) = cookie {
            request = request.header("Cookie", cookie);
        }
        let response = request.call().map_err(|error| self.error(what, error))?;
        let status = response.status();
        let body = (status == StatusCode::OK)
            .then(|| response.into_body().into_with_config().limit(u64::MAX).reader())
            .map(|reader| Box::new(reader) as Box<dyn Read>);
        Ok((status, body))
    }

    /// Hands out all that a stream has.
    ///
    /// # Errors
    /// The connection is lost before its end, after which nothing can go on with it.
    pub fn pass(
        &self,
        mut stream: Box<dyn Read>,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut buffer = vec![0; BUFFER];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => take(&buffer[..read])?,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(Error::Unreachable {
                        place: self.place.clone(),
                        message: format!("the connection was lost: {error}"),
                        repair: Some("an export cannot be gone on with: pull again".into()),
                    });
                }
            }
        }
    }

    /// What went wrong, as a sentence.
    pub fn error(&self, what: &str, error: ureq::Error) -> Error {
        if let Some(refused) = self.verifier.take_refused() {
            return refused.error(self.place.clone());
        }
        match error {
            ureq::Error::Timeout(_) => {
                Error::TimedOut { what: format!("{what} of {}", self.place), limit: self.limit }
            }
            ureq::Error::BodyExceedsLimit(_) => {
                Error::TooMuch { what: self.place.clone(), limit: LONGEST_REPLY }
            }
            error => Error::Unreachable {
                place: self.place.clone(),
                message: error.to_string(),
                repair: None,
            },
        }
    }
}

/// The session that a server opens, as it is to be sent back.
fn session_cookie<T>(response: &Response<T>) -> Option<String> {
    let lines = response.headers().get_all("set-cookie").into_iter();
    let mut cookies = lines.filter_map(|line| line.to_str().ok()?.split(';').next());
    cookies.find(|cookie| cookie.trim().starts_with("vmware_soap_session=")).map(str::to_owned)
}

fn header<'a, T>(response: &'a Response<T>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

fn length<T>(response: &Response<T>) -> Option<u64> {
    header(response, "content-length")?.trim().parse().ok()
}

fn stamp<T>(response: &Response<T>) -> String {
    let stamp = header(response, "etag").or_else(|| header(response, "last-modified"));
    stamp.unwrap_or_default().chars().take(200).collect()
}

/// `bytes 0-99/1000`, RFC 9110, 14.4.
fn content_range<T>(response: &Response<T>) -> Option<Part> {
    let range = header(response, "content-range")?.trim().strip_prefix("bytes")?.trim();
    let (range, total) = range.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (start, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let total: u64 = total.trim().parse().ok()?;
    let length = last.checked_sub(start)?.checked_add(1)?;
    (last < total).then(|| Part { start, length, total, stamp: stamp(response) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &str, value: &str) -> Response<()> {
        Response::builder().header(name, value).body(()).unwrap()
    }

    #[test]
    fn ranges_that_contradict_themselves_are_none() {
        let range = |text: &str| content_range(&with("content-range", text));
        let part = range("bytes 10-19/100").unwrap();
        assert_eq!((part.start, part.length, part.total), (10, 10, 100));
        for wrong in [
            "",
            "bytes",
            "bytes 5-4/10",
            "bytes 0-10/10",
            "bytes */10",
            "bytes 0-9/*",
            "bytes 0-18446744073709551615/18446744073709551615",
            "items 0-1/2",
        ] {
            assert_eq!(range(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_the_session_is_sent_back() {
        let cookie = |text: &str| session_cookie(&with("set-cookie", text));
        let sent = cookie("vmware_soap_session=\"ab-1\"; Path=/; HttpOnly");
        assert_eq!(sent.as_deref(), Some("vmware_soap_session=\"ab-1\""));
        assert_eq!(cookie("other=1"), None);
    }
}
