//! Files of datastores by `/folder` addresses: read in ranges, written whole.

use std::fmt;
use std::io::Read;
use std::sync::Arc;

use ureq::http::StatusCode;

use super::description;
use super::inventory::Object;
use super::session::Session;
use crate::https::Content;
use crate::{Error, Result};

/// A file of a datastore, written `[datastore] folder/file`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct DatastorePath {
    pub datastore: String,
    pub path: String,
}

/// The datastores of one data center.
#[derive(Clone, Debug)]
pub(super) struct Datastore {
    pub session: Arc<Session>,
    /// The data center's path in the inventory.
    pub datacenter: String,
}

impl DatastorePath {
    /// Reads `[datastore] folder/file`.
    pub fn parse(text: &str) -> Option<Self> {
        let (datastore, path) = text.trim().strip_prefix('[')?.split_once(']')?;
        let path = path.trim_start();
        let is_plain = !datastore.is_empty() && !path.is_empty();
        is_plain.then(|| Self { datastore: datastore.into(), path: path.into() })
    }

    /// The file of this name in the same folder, or the one that an absolute name of ESXi means.
    pub fn beside(&self, name: &str) -> Option<Self> {
        if let Some(rest) = name.strip_prefix("/vmfs/volumes/") {
            let (datastore, path) = rest.split_once('/')?;
            return Self::parse(&format!("[{datastore}] {path}"));
        }
        let is_plain = |part: &str| !part.is_empty() && part != "." && part != "..";
        if !name.split('/').all(is_plain) || name.contains('\0') {
            return None;
        }
        let folder = self.path.rfind('/').map_or("", |slash| &self.path[..=slash]);
        Some(Self { datastore: self.datastore.clone(), path: format!("{folder}{name}") })
    }

    /// Its own name.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }
}

impl fmt::Display for DatastorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.datastore, self.path)
    }
}

impl Datastore {
    /// Its path and query on the server.
    pub fn address(&self, file: &DatastorePath) -> String {
        format!(
            "/folder/{}?dcPath={}&dsName={}",
            encode(&file.path, true),
            encode(&self.datacenter, false),
            encode(&file.datastore, false)
        )
    }

    /// Asks for bytes `start..end`; what comes may end before that, and its reader even earlier.
    pub fn get(&self, file: &DatastorePath, start: u64, end: u64) -> Result<Content> {
        let address = self.address(file);
        let what = format!("reading {file}");
        self.session.with_cookie(|cookie| {
            let http = &self.session.http;
            match http.get(&what, &address, cookie, start, end)? {
                (_, Some(found)) => Ok(Some(found)),
                (StatusCode::UNAUTHORIZED, None) => Ok(None),
                (status, None) => Err(self.refused(file, status)),
            }
        })
    }

    /// Whether the VM's first disk can be read as a file.
    pub fn gives_files(&self, vm: &Object) -> bool {
        let disks = vm.property("config").map(description::disks).unwrap_or_default();
        let first = disks.first().and_then(|disk| disk.chain.last());
        !matches!(
            first.map(|file| self.get(file, 0, 1)),
            Some(Err(Error::NotFound { .. } | Error::Failed { .. }))
        )
    }

    /// A whole file of at most `longest` bytes.
    pub fn read_small(&self, file: &DatastorePath, longest: u64) -> Result<Vec<u8>> {
        let (part, reader) = self.get(file, 0, longest)?;
        if part.total > longest {
            return Err(Error::TooMuch { what: file.to_string(), limit: longest as usize });
        }
        let mut bytes = Vec::new();
        reader.take(longest).read_to_end(&mut bytes).map_err(|error| self.lost(&error))?;
        match bytes.len() as u64 == part.total {
            true => Ok(bytes),
            false => Err(self.lost(&std::io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// A connection ended in the middle of a file.
    pub fn lost(&self, error: &std::io::Error) -> Error {
        Error::Unreachable {
            place: self.session.http.place.clone(),
            message: format!("the connection was lost: {error}"),
            repair: None,
        }
    }

    fn refused(&self, file: &DatastorePath, status: StatusCode) -> Error {
        let place = self.session.http.place.clone();
        match status {
            StatusCode::RANGE_NOT_SATISFIABLE => Error::Failed {
                what: format!("copying {file}"),
                message: "the file is changed while it is copied: it became shorter".into(),
                repair: None,
            },
            StatusCode::NOT_FOUND => {
                Error::NotFound { place, what: "file", name: file.to_string() }
            }
            status => Error::Failed {
                what: format!("access to {file} at {place}"),
                message: format!("the server says {status}"),
                repair: None,
            },
        }
    }
}

/// Percent-encoding of all but RFC 3986's unreserved characters.
fn encode(text: &str, is_path: bool) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(byte.into());
            }
            b'/' if is_path => encoded.push('/'),
            byte => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_by_datastore_and_path() {
        let file = DatastorePath::parse("[ds 1] a b/c.vmdk").unwrap();
        assert_eq!((file.datastore.as_str(), file.path.as_str()), ("ds 1", "a b/c.vmdk"));
        assert_eq!(file.to_string(), "[ds 1] a b/c.vmdk");
        assert_eq!(file.name(), "c.vmdk");
        for wrong in ["", "a/b", "[ds]", "[] a", "[ds"] {
            assert_eq!(DatastorePath::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn neighbours_stay_in_the_folder() {
        let file = DatastorePath::parse("[ds] a/c.vmdk").unwrap();
        assert_eq!(file.beside("c-flat.vmdk").unwrap().to_string(), "[ds] a/c-flat.vmdk");
        assert_eq!(file.beside("/vmfs/volumes/x/y/z.vmdk").unwrap().to_string(), "[x] y/z.vmdk");
        for wrong in ["", "../x", "/etc/passwd", "a//b", "a/../b", "a\0"] {
            assert_eq!(file.beside(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn addresses_are_encoded() {
        assert_eq!(encode("a b/ä?&", true), "a%20b/%C3%A4%3F%26");
        assert_eq!(encode("a/b", false), "a%2Fb");
    }
}
