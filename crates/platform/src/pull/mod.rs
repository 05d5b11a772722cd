//! Copies a VM's files from a platform into a folder: with several connections, resumable, every byte hashed.
//!
//! A file is fetched in pieces that several connections take in order, and hashed in that order as it comes. Until it is
//! whole it is called `NAME.part`, and `NAME.pull` tells how far it is and the hash of that: a later pull
//! hashes that much again before it goes on. Nothing is noted, and nothing called whole, before it is flushed.

mod piece;
mod state;
mod stream;

use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::{Error, Result};
use piece::{Fetch, PIECE};
pub(crate) use piece::{Pace, write_sparse};
use state::Kept;

/// The file with the hash of each pulled file, as `sha256sum` writes and checks it.
const SUMS: &str = "SHA256SUMS";

/// A file on a platform.
pub trait RemoteFile: Send + Sync {
    /// Its path within the folder into which it is copied: names separated by slashes.
    fn name(&self) -> &str;

    /// Its length in bytes.
    fn len(&self) -> u64;

    /// It has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What tells this state of it from another, such as when it was changed.
    fn stamp(&self) -> &str;

    /// Hands out its bytes from the start of `range`, until its end or a lost connection.
    ///
    /// # Errors
    /// It is not in the state of [`stamp`](Self::stamp) any more, or cannot be read.
    fn read(&self, range: Range<u64>, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;

    /// Changes the copy at `path` so that it can be used here: `false` if it is as it was there.
    ///
    /// # Errors
    /// It cannot be changed.
    fn adapt(&self, _path: &Path) -> Result<bool> {
        Ok(false)
    }
}

/// A file that comes only whole, from its beginning to its end.
pub trait StreamFile: Send + Sync {
    /// Its name in the folder into which it is copied.
    fn name(&self) -> &str;

    /// About how many bytes will come.
    fn estimate(&self) -> u64;

    /// Hands out all of it.
    ///
    /// # Errors
    /// It cannot be read to its end.
    fn read(&self, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;

    /// Compares the copy at `path` with the checksums that are in it.
    ///
    /// # Errors
    /// They differ.
    fn check(&self, path: &Path) -> Result<()>;
}

/// A VM that is ready to be copied. What was done to the VM for that is undone by [`finish`](Self::finish).
pub struct Pullable {
    /// What is to be copied.
    pub files: Vec<Arc<dyn RemoteFile>>,
    /// What is to be copied and comes only whole.
    pub streams: Vec<Box<dyn StreamFile>>,
    /// What is written as it is: names and contents.
    pub documents: Vec<(String, Vec<u8>)>,
    /// Undoes what was done, told whether everything was copied.
    pub undo: Option<Undo>,
}

/// Undoes what was done to a VM so that it could be copied.
pub type Undo = Box<dyn FnOnce(bool) -> Result<()> + Send>;

/// How to copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullOptions {
    /// How many connections at once.
    pub connections: usize,
    /// Most bytes in a second, of all connections together.
    pub rate: Option<u64>,
    /// How often a piece is tried again without a single byte of progress.
    pub attempts: u32,
    /// The pause before the first of these attempts; it doubles each time.
    pub pause: Duration,
}

/// How far a pull is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file at hand.
    pub name: &'a str,
    /// Bytes of all files that are here.
    pub done: u64,
    /// Bytes of all files.
    pub total: u64,
}

/// What was copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullReport {
    /// The files with their hashes.
    pub files: Vec<PulledFile>,
    /// Bytes that came over the network.
    pub copied: u64,
    /// Bytes that were here from a pull before.
    pub kept: u64,
}

/// A file that was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PulledFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its length in bytes.
    pub length: u64,
    /// Its SHA-256 in hexadecimal digits.
    pub sha256: String,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self { connections: 4, rate: None, attempts: 6, pause: Duration::from_millis(500) }
    }
}

impl Pullable {
    /// Copies everything into `folder`, which is made if it is not there, and undoes what was done to the VM.
    ///
    /// # Errors
    /// A file cannot be read or written, or changed meanwhile. What was copied is kept for the next time.
    pub fn pull(
        mut self,
        folder: &Path,
        options: &PullOptions,
        tell: &mut (dyn FnMut(Progress<'_>) + Send),
    ) -> Result<PullReport> {
        let result = self.copy(folder, options, tell);
        let undone = self.finish(result.is_ok());
        let report = result?;
        undone.map(|()| report)
    }

    /// Undoes what was done to the VM.
    pub fn finish(&mut self, is_complete: bool) -> Result<()> {
        self.undo.take().map_or(Ok(()), |undo| undo(is_complete))
    }

    /// How many bytes will come, as far as that is known.
    pub fn total(&self) -> u64 {
        let files = self.files.iter().map(|file| file.len());
        files.chain(self.streams.iter().map(|file| file.estimate())).fold(0, u64::saturating_add)
    }

    fn copy(
        &self,
        folder: &Path,
        options: &PullOptions,
        tell: &mut (dyn FnMut(Progress<'_>) + Send),
    ) -> Result<PullReport> {
        fs::create_dir_all(folder).map_err(|source| failed(folder, source))?;
        let total = self.total();
        let mut report = PullReport::default();
        let mut before = 0;
        for file in &self.files {
            let path = local(folder, file.name())?;
            let mut told = |done: u64| {
                tell(Progress { name: file.name(), done: before + done, total });
            };
            let (pulled, kept) = copy_file(&**file, &path, options, &mut told)?;
            before += file.len();
            report.kept += kept;
            report.copied += file.len() - kept;
            report.files.push(pulled);
        }
        for file in &self.streams {
            let path = local(folder, file.name())?;
            let mut told = |done: u64| {
                tell(Progress { name: file.name(), done: before + done, total });
            };
            let pulled = stream::copy(&**file, &path, options, &mut told)?;
            before += pulled.length;
            report.copied += pulled.length;
            report.files.push(pulled);
        }
        for (name, content) in &self.documents {
            let path = local(folder, name)?;
            write_whole(&path, content)?;
            let sha256 = hexadecimal(&Sha256::digest(content));
            report.files.push(PulledFile { path, length: content.len() as u64, sha256 });
        }
        let line = |file: &PulledFile| {
            let name = file.path.strip_prefix(folder).unwrap_or(&file.path);
            format!("{}  {}\n", file.sha256, name.display())
        };
        let sums: String = report.files.iter().map(line).collect();
        write_whole(&folder.join(SUMS), sums.as_bytes())?;
        Ok(report)
    }
}

/// Copies one file; returns how much of it was here before.
fn copy_file(
    file: &dyn RemoteFile,
    path: &Path,
    options: &PullOptions,
    tell: &mut (dyn FnMut(u64) + Send),
) -> Result<(PulledFile, u64)> {
    let (part, note) = (with_suffix(path, "part"), with_suffix(path, "pull"));
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|source| failed(parent, source))?;
    }
    let (length, stamp) = (file.len(), file.stamp());
    let pulled = |sha256: &str| PulledFile { path: path.into(), length, sha256: sha256.into() };
    // A pull before this one may have brought the whole file.
    if let Some(kept) = Kept::read(&note, length, stamp)
        && kept.done == length
        && path.exists()
        && hash(path, length)?.is_some_and(|digest| hexadecimal(&digest.finalize()) == kept.sha256)
    {
        tell(length);
        return Ok((pulled(&kept.sha256), length));
    }
    if path.exists() && !note.exists() {
        let source = std::io::ErrorKind::AlreadyExists.into();
        return Err(failed(path, source));
    }
    let local = File::options().read(true).write(true).create(true).truncate(false).open(&part);
    let local = local.map_err(|source| failed(&part, source))?;
    let (start, digest) = match Kept::read(&note, length, stamp) {
        Some(kept) => resume(&part, &kept)?,
        None => (0, Sha256::new()),
    };
    // Holes from here on, whatever was there.
    local
        .set_len(start)
        .and_then(|()| local.set_len(length))
        .map_err(|source| failed(&part, source))?;
    let fetch = Fetch { file, local: &local, path: &part, note: &note, options };
    let digest = fetch.run(start, digest, tell)?;
    local.sync_all().map_err(|source| failed(&part, source))?;
    let mut sha256 = hexadecimal(&digest.finalize());
    if file.adapt(&part)?
        && let Some(digest) = hash(&part, length)?
    {
        sha256 = hexadecimal(&digest.finalize());
    }
    Kept { done: length, sha256: sha256.clone() }.write(&note, length, stamp)?;
    fs::rename(&part, path).map_err(|source| failed(path, source))?;
    Ok((pulled(&sha256), start))
}

/// How much of a file is as it was left.
fn resume(part: &Path, kept: &Kept) -> Result<(u64, Sha256)> {
    match hash(part, kept.done)? {
        Some(digest) if hexadecimal(&digest.clone().finalize()) == kept.sha256 => {
            Ok((kept.done, digest))
        }
        _ => Ok((0, Sha256::new())),
    }
}

/// The hash of the first bytes of a file; `None` if it is shorter.
fn hash(path: &Path, length: u64) -> Result<Option<Sha256>> {
    use std::io::Read;
    let mut file = File::open(path).map_err(|source| failed(path, source))?;
    let mut buffer = vec![0; PIECE.min(length.max(1)) as usize];
    let mut digest = Sha256::new();
    let mut left = length;
    while left > 0 {
        let want = left.min(buffer.len() as u64) as usize;
        match file.read(&mut buffer[..want]).map_err(|source| failed(path, source))? {
            0 => return Ok(None),
            read => {
                digest.update(&buffer[..read]);
                left -= read as u64;
            }
        }
    }
    Ok(Some(digest))
}

/// A path within the folder that a server named, or nothing.
fn local(folder: &Path, name: &str) -> Result<PathBuf> {
    let is_plain = |part: &str| {
        let own = [".part", ".pull", ".new"].iter().any(|suffix| part.ends_with(suffix));
        !part.is_empty()
            && part != "."
            && part != ".."
            && !own
            && part.len() <= 200
            && !part.contains(['\0', '\\'])
            && part != SUMS
    };
    match name.split('/').all(is_plain) {
        true => Ok(folder.join(name)),
        false => Err(Error::reply(format!("{name:?}"), "it is no name for a file here")),
    }
}

/// Writes a file at once or not at all.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let new = with_suffix(path, "new");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(|source| failed(path, source))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    path.with_added_extension(suffix)
}

fn failed(path: &Path, source: std::io::Error) -> Error {
    Error::File { path: path.into(), source }
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
