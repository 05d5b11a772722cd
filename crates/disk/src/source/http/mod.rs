//! Files of HTTP servers, read by ranges (RFC 9110, section 14).

mod address;
mod client;

use std::fmt;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

pub use address::is_url;
use address::{beside, displayed};
use client::{Client, Part};

use super::ahead::{BLOCK, ReadAhead};
use super::{RemoteSource, Source};
use crate::{Error, MAX_LENGTH, Result};

/// Most headers of a caller's own.
const MAX_HEADERS: usize = 64;

/// How to read from an HTTP server.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// Connections are made by this agent, with its TLS, proxy and cookies; otherwise by one that trusts the host's
    /// certificates. Redirects, timeouts and statuses are handled here, whatever it says of them.
    pub agent: Option<ureq::Agent>,
    /// Sent with every request to the address's own scheme, host and port, and to no other that it redirects to.
    pub headers: Vec<(String, String)>,
    /// How long a connection, an answer or its next bytes may take.
    pub timeout: Duration,
    /// How often in a row a request may fail for a reason that could pass.
    pub attempts: u32,
    /// How long to wait before the second attempt; twice as long before each further one.
    pub pause: Duration,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            agent: None,
            headers: Vec::new(),
            timeout: Duration::from_secs(30),
            attempts: 5,
            pause: Duration::from_millis(200),
        }
    }
}

/// Why a file cannot be read from an HTTP server.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address is none.
    #[error("The address cannot be used: {0}")]
    Address(String),
    /// The server sends whole files only.
    #[error("The server does not send ranges of the file, so it must be downloaded first")]
    NoRanges,
    /// The server does not say how long the file is.
    #[error("The server does not say how long the file is")]
    NoLength,
    /// No disk is as long.
    #[error("The server says that the file has {0} bytes, more than any disk")]
    TooLong(u64),
    /// The server refused.
    #[error("The server answered {0}{1}")]
    Status(u16, &'static str),
    /// One redirect too many.
    #[error("The server redirects too often")]
    Redirects,
    /// A redirect to where nothing may be sent.
    #[error("The server redirects to {0}, which is not followed")]
    Redirect(String),
    /// It is not the file any more that it was.
    #[error("The file was changed on the server while it was read")]
    Changed,
    /// The answer makes no sense.
    #[error("The server's answer makes no sense: {0}")]
    Answer(&'static str),
    /// The server could not be reached, or the connection was lost, again and again.
    #[error("The connection failed")]
    Connection(#[source] Box<ureq::Error>),
    /// The connection ended within an answer, again and again.
    #[error("The connection was lost")]
    Lost(#[source] std::io::Error),
}

/// A file of an HTTP server that serves ranges. What was read lately is kept in at most 16 MiB of memory; who reads on from
/// where it last read gets more and more at once. A file that is changed on the server is an error from then on.
pub struct HttpSource {
    client: Client,
    version: Version,
    ahead: ReadAhead,
    options: HttpOptions,
}

/// What tells a file from what it was before.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Version {
    length: u64,
    etag: Option<String>,
    modified: Option<String>,
}

impl Version {
    fn is(&self, other: &Self) -> bool {
        self.length == other.length
            && self.etag == other.etag
            && (self.etag.is_some() || self.modified == other.modified)
    }
}

impl HttpSource {
    /// Asks the server for the start of the file, and so for its length.
    pub fn open(url: &str, options: &HttpOptions) -> Result<Self> {
        let failed =
            |source: HttpError| Error::Http { url: displayed(url), source: Box::new(source) };
        if options.headers.len() > MAX_HEADERS {
            return Err(failed(HttpError::Address("too many headers".to_owned())));
        }
        let address = address::parse(url).map_err(failed)?;
        let client = Client::new(address, options).map_err(failed)?;
        let ahead = ReadAhead::default();
        let version = begin(&client, &ahead, options).map_err(failed)?;
        Ok(Self { client, version, ahead, options: options.clone() })
    }

    /// Its address, without a user's name, a password and what follows a question mark.
    pub fn address(&self) -> String {
        displayed(&self.client.address().to_string())
    }

    /// What the server says to tell it from other versions: an entity tag, or when it was changed.
    pub fn version(&self) -> Option<&str> {
        self.version.etag.as_deref().or(self.version.modified.as_deref())
    }

    /// Fetches blocks, however often the connection is lost on the way.
    fn fetch(
        &self,
        run: std::ops::Range<u64>,
        give: &mut dyn FnMut(u64, Arc<[u8]>),
    ) -> std::result::Result<(), HttpError> {
        let length = self.version.length;
        let end = (run.end * BLOCK).min(length);
        let mut at = run.start;
        let mut failures = 0;
        while at < run.end {
            let done = at;
            let fetched = self.client.get(at * BLOCK..end).and_then(|mut part| {
                if !part.version.is(&self.version) {
                    return Err(HttpError::Changed);
                }
                while at < run.end && at * BLOCK < part.end {
                    give(at, read_block(&mut part, at, length)?);
                    at += 1;
                }
                part.finish();
                Ok(())
            });
            match fetched {
                Ok(()) if at > done => failures = 0,
                Ok(()) => return Err(HttpError::Answer("it has less than was asked for")),
                Err(error) => {
                    failures = if at > done { 1 } else { failures + 1 };
                    self.client.wait_after(error, failures)?;
                }
            }
        }
        Ok(())
    }
}

/// Reads the first block, and what the server says of the file.
fn begin(
    client: &Client,
    ahead: &ReadAhead,
    options: &HttpOptions,
) -> std::result::Result<Version, HttpError> {
    let mut failures = 0;
    loop {
        let begun = client.get(0..BLOCK).and_then(|mut part| {
            let version = part.version.clone();
            if version.length > MAX_LENGTH {
                return Err(HttpError::TooLong(version.length));
            }
            if version.length != 0 {
                ahead.insert(0, read_block(&mut part, 0, version.length)?);
                part.finish();
            }
            Ok(version)
        });
        match begun {
            Ok(version) => return Ok(version),
            Err(error) => {
                failures += 1;
                client.wait_after(error, failures.min(options.attempts))?;
            }
        }
    }
}

fn read_block(
    part: &mut Part,
    number: u64,
    length: u64,
) -> std::result::Result<Arc<[u8]>, HttpError> {
    // No more than a block.
    let mut bytes = vec![0; (length - number * BLOCK).min(BLOCK) as usize];
    part.body.read_exact(&mut bytes).map_err(HttpError::Lost)?;
    Ok(bytes.into())
}

impl fmt::Debug for HttpSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpSource").field("address", &self.address()).finish_non_exhaustive()
    }
}

impl Source for HttpSource {
    fn len(&self) -> u64 {
        self.version.length
    }

    fn version(&self) -> Option<String> {
        Some(format!("{}:{}:{}", self.address(), self.len(), self.version()?))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.ahead.read_at(self, buffer, offset, &|run, give| {
            let failed = |source| Error::Http { url: self.address(), source: Box::new(source) };
            self.fetch(run, give).map_err(failed)
        })
    }
}

impl RemoteSource for HttpSource {
    fn address(&self) -> String {
        self.address()
    }

    fn identity(&self) -> String {
        self.client.address().to_string()
    }

    fn state(&self) -> Option<String> {
        self.version().map(str::to_owned)
    }

    fn sibling(&self, name: &str) -> Result<Arc<dyn RemoteSource>> {
        let missing = || Error::NotFound { name: name.to_owned() };
        let address = beside(self.client.address(), name).ok_or_else(missing)?;
        match Self::open(&address.to_string(), &self.options) {
            Err(Error::Http { source, .. }) if matches!(*source, HttpError::Status(404, _)) => {
                Err(missing())
            }
            other => Ok(Arc::new(other?)),
        }
    }
}
