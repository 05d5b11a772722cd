//! The files of our own VMs.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Error, Result, lock};

/// What a VM says of itself when it starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// Processors.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// What runs its instructions.
    pub engine: String,
    /// The image that it was made of.
    #[serde(default)]
    pub image: Option<String>,
    /// Its whole description, as TOML.
    pub spec: String,
}

/// A record as it is in its file: `digest` is that of the record's JSON.
#[derive(Serialize, Deserialize)]
struct Sealed {
    version: u32,
    sha256: String,
    record: String,
}

/// Of the file's form.
const VERSION: u32 = 1;
/// Longest file.
const LONGEST: u64 = 1 << 20;
/// Longest name of a file that file systems take, less an ending.
const LONGEST_NAME: usize = 200;
/// So many files are looked at.
const MOST: usize = 10_000;

impl Record {
    /// Reads a file.
    ///
    /// # Errors
    /// It is of a later version, or broken.
    pub fn read(bytes: &[u8]) -> std::result::Result<Self, String> {
        let sealed: Sealed = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if sealed.version > VERSION {
            return Err(format!("it is of version {}, later than {VERSION}", sealed.version));
        }
        if sealed.sha256 != digest(&sealed.record) {
            return Err("its checksum does not fit".into());
        }
        serde_json::from_str(&sealed.record).map_err(|error| error.to_string())
    }

    fn seal(&self) -> serde_json::Result<Vec<u8>> {
        let record = serde_json::to_string(self)?;
        serde_json::to_vec(&Sealed { version: VERSION, sha256: digest(&record), record })
    }
}

fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The folder of all VMs of a user.
pub(super) struct Registry {
    path: PathBuf,
    /// Held open: paths of sockets through it are short, however long its own is.
    folder: File,
}

impl Registry {
    /// Opens it, if there is one.
    pub(super) fn open(state: &Path) -> Result<Option<Self>> {
        let path = state.join("running");
        match File::open(&path) {
            Ok(folder) => Ok(Some(Self { path, folder })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::File { path, source }),
        }
    }

    /// Opens it, and makes it for nobody but this user if it is not there.
    pub(super) fn create(state: &Path) -> Result<Self> {
        let path = state.join("running");
        let wrong = |source| Error::File { path: path.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(wrong)?;
        let folder = File::open(&path).map_err(wrong)?;
        Ok(Self { path, folder })
    }

    /// The socket of a VM, by a path that is short enough for one.
    pub(super) fn socket(&self, name: &str) -> Result<PathBuf> {
        let file = file_name(name)?;
        let direct = self.path.join(format!("{file}.socket"));
        if direct.as_os_str().len() < LONGEST_SOCKET {
            return Ok(direct);
        }
        let digest: String = digest(&file).chars().take(16).collect();
        Ok(format!("/proc/self/fd/{}/{digest}.socket", self.folder.as_raw_fd()).into())
    }

    /// What the processes that live say of themselves; what dead ones left is removed.
    pub(super) fn alive(&self) -> Result<Vec<Record>> {
        let entries = std::fs::read_dir(&self.path).map_err(|source| self.wrong("", source))?;
        let mut records = Vec::new();
        for entry in entries.take(MOST) {
            let name = entry.map_err(|source| self.wrong("", source))?.file_name();
            let Some(stem) = name.to_str().and_then(|name| name.strip_suffix(".json")) else {
                continue;
            };
            let file = self.path.join(&name);
            // Another one may have removed it.
            let Ok(record) = read(&file) else { continue };
            match self.lock(stem) {
                // Nobody holds it, so nobody lives.
                Ok(Some(_lock)) => self.remove(stem, record.ok().as_ref()),
                Ok(None) => match record {
                    Ok(record) => records.push(record),
                    Err(problem) => tracing::warn!("{} cannot be read: {problem}", file.display()),
                },
                Err(error) => tracing::warn!("{}: {error}", file.display()),
            }
        }
        records.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(records)
    }

    /// Takes a VM's name; the lock belongs to the process as long as it lives. `None` if another one has it.
    pub(super) fn take(&self, name: &str) -> Result<Option<File>> {
        self.lock(&file_name(name)?)
    }

    fn lock(&self, stem: &str) -> Result<Option<File>> {
        let name = format!("{stem}.lock");
        lock::take(&self.path.join(&name)).map_err(|source| self.wrong(&name, source))
    }

    /// Writes a record: whole or not at all.
    pub(super) fn write(&self, record: &Record) -> Result<()> {
        let stem = file_name(&record.name)?;
        let temporary = format!("{stem}.new");
        let bytes = record.seal().map_err(|error| self.wrong(&temporary, error.into()))?;
        let path = self.path.join(&temporary);
        let written = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()))
            .and_then(|()| std::fs::rename(&path, self.path.join(format!("{stem}.json"))))
            .and_then(|()| self.folder.sync_all());
        written.map_err(|source| self.wrong(&temporary, source))
    }

    /// Removes the files of a VM, whose lock the caller holds.
    pub(super) fn remove(&self, stem: &str, record: Option<&Record>) {
        let name = record.map_or_else(|| stem.to_owned(), |record| record.name.clone());
        if let Ok(socket) = self.socket(&name) {
            let _ = std::fs::remove_file(socket);
        }
        for ending in ["socket", "new", "json", "lock"] {
            let _ = std::fs::remove_file(self.path.join(format!("{stem}.{ending}")));
        }
    }

    fn wrong(&self, name: &str, source: io::Error) -> Error {
        Error::File { path: self.path.join(name), source }
    }
}

/// Longest path of a socket (unix(7)).
const LONGEST_SOCKET: usize = 107;

fn read(path: &Path) -> io::Result<std::result::Result<Record, String>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LONGEST).read_to_end(&mut bytes)?;
    Ok(Record::read(&bytes))
}

/// The name of a VM's files: what cannot be part of one is written as `%` and two digits.
pub(super) fn file_name(name: &str) -> Result<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let mut file = String::new();
    for byte in name.bytes() {
        match plain(byte) {
            true => file.push(char::from(byte)),
            false => file.push_str(&format!("%{byte:02X}")),
        }
    }
    if file.is_empty() || file.len() > LONGEST_NAME {
        let message = "it is empty or too long for a file".into();
        return Err(Error::Name { text: name.chars().take(40).collect(), message });
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str) -> Record {
        Record { name: name.into(), pid: 1, cpus: 2, memory: 3, ..Record::default() }
    }

    #[test]
    fn records_of_those_who_live_are_found_and_others_are_swept() {
        let state = tempfile::tempdir().unwrap();
        assert!(Registry::open(state.path()).unwrap().is_none());
        let registry = Registry::create(state.path()).unwrap();
        let lock = registry.take("web 1/ü").unwrap().unwrap();
        registry.write(&record("web 1/ü")).unwrap();
        registry.write(&record("dead")).unwrap();
        assert_eq!(registry.alive().unwrap(), [record("web 1/ü")]);
        assert!(registry.take("web 1/ü").unwrap().is_none());
        let names = || std::fs::read_dir(state.path().join("running")).unwrap().count();
        assert_eq!(names(), 2, "a record and a lock");
        drop(lock);
        assert_eq!(registry.alive().unwrap(), []);
        assert_eq!(names(), 0);
    }

    #[test]
    fn a_record_that_was_changed_is_not_believed() {
        let sealed = String::from_utf8(record("web").seal().unwrap()).unwrap();
        assert_eq!(Record::read(sealed.as_bytes()).unwrap(), record("web"));
        let forged = sealed.replace("\\\"cpus\\\":2", "\\\"cpus\\\":9");
        assert_ne!(forged, sealed);
        assert!(Record::read(forged.as_bytes()).unwrap_err().contains("checksum"));
        let later = sealed.replace("\"version\":1", "\"version\":2");
        assert!(Record::read(later.as_bytes()).unwrap_err().contains("version 2"));
        assert!(Record::read(&sealed.as_bytes()[..40]).is_err());
    }
}
