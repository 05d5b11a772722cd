//! Files where a platform has them: on this computer, or on another one by SFTP, through which nothing needs to be
//! installed there.

mod client;
mod disks;
mod names;
mod pool;
mod wire;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use disk::{FileSource, ReadAhead, RemoteSource, Source};
use sha2::{Digest, Sha256};

use crate::pull::hexadecimal;
use crate::{Error, Result, Runner, blocks};
pub(crate) use disks::{HasVmDisks, VmDisks};
use pool::Pool;
pub(crate) use wire::fuzz;

/// A computer with files.
pub(crate) enum Place {
    /// This one.
    Here,
    /// Another one.
    There(Pool),
}

/// A file that is only read.
pub(crate) struct PlacedFile {
    place: Arc<Place>,
    path: String,
    length: u64,
    /// What tells its state from every other one.
    stamp: String,
    /// What tells it cheaply.
    changed: Changed,
    body: Body,
    opened: Arc<Opened>,
}

enum Body {
    Here(FileSource),
    There(ReadAhead),
}

/// What is looked at again after each read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Changed {
    /// Bytes of a file; a block device tells none.
    size: u64,
    modified: Option<u32>,
    is_device: bool,
}

/// The files of one disk that were opened, and whether an image may name any file.
#[derive(Default)]
struct Opened {
    anywhere: bool,
    files: Mutex<Vec<Arc<PlacedFile>>>,
}

/// So much of a block device's beginning tells its state: its partitions, and the first one's super block.
const TELLING: u64 = 2 << 20;

impl Place {
    /// The computer on which `runner` runs programs.
    pub fn of(runner: &Runner, limit: std::time::Duration) -> Arc<Self> {
        Arc::new(match runner.is_local() {
            true => Self::Here,
            false => Self::There(Pool::new(runner.clone(), limit)),
        })
    }

    /// Whose files they are.
    fn name(&self) -> &str {
        match self {
            Self::Here => "this computer",
            Self::There(pool) => pool.place(),
        }
    }

    /// Whether a path is that of a folder.
    fn is_folder(&self, path: &str) -> Result<bool> {
        match self {
            Self::Here => Ok(std::path::Path::new(path).is_dir()),
            Self::There(pool) => pool.is_folder(path),
        }
    }

    /// Opens a file or block device.
    fn open(self: &Arc<Self>, path: &str, opened: &Arc<Opened>) -> Result<Arc<PlacedFile>> {
        let (length, stamp, changed, body) = match &**self {
            Self::Here => {
                let source = FileSource::open(path, true)?;
                let stamp = source.version().unwrap_or_default();
                let is_device = source.version().is_none();
                let changed = Changed { size: source.len(), modified: None, is_device };
                (source.len(), stamp, changed, Body::Here(source))
            }
            Self::There(pool) => {
                let (length, changed) = pool.stat(path)?;
                let modified = changed.modified.unwrap_or_default();
                let stamp = match changed.is_device {
                    true => String::new(),
                    false => format!("{length} {modified}"),
                };
                (length, stamp, changed, Body::There(ReadAhead::default()))
            }
        };
        let path = path.to_owned();
        let (place, opened) = (self.clone(), opened.clone());
        let mut file = PlacedFile { place, path, length, stamp, changed, body, opened };
        if file.stamp.is_empty() {
            file.stamp = stamp_of_device(&file)?;
        }
        let file = Arc::new(file);
        let mut files = file.opened.files.lock().unwrap_or_else(PoisonError::into_inner);
        if !files.iter().any(|known| known.path == file.path) {
            files.push(file.clone());
        }
        drop(files);
        Ok(file)
    }
}

/// A block device does not tell when it was changed.
fn stamp_of_device(source: &dyn Source) -> Result<String> {
    let mut bytes = vec![0; source.len().min(TELLING) as usize];
    source.read_at(&mut bytes, 0)?;
    Ok(format!("{} {}", source.len(), hexadecimal(&Sha256::digest(&bytes))))
}

impl PlacedFile {
    /// Hands out its bytes of `range` in order; an end before that is a lost connection.
    fn pass(&self, range: Range<u64>, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        match (&*self.place, &self.body) {
            (Place::There(pool), _) => pool.read(&self.path, range, self.changed, take),
            (_, Body::Here(source)) => {
                let mut buffer = vec![0; BUFFER.min((range.end - range.start) as usize)];
                let mut at = range.start;
                while at < range.end {
                    let count = buffer.len().min((range.end - at) as usize);
                    source.read_at(&mut buffer[..count], at)?;
                    take(&buffer[..count])?;
                    at += count as u64;
                }
                match source.version() {
                    Some(stamp) if stamp != self.stamp => Err(changed(&self.path)),
                    _ => Ok(()),
                }
            }
            _ => Err(Error::reply(&self.path, "it is nowhere")),
        }
    }
}

/// Bytes of a file of this computer that are handed on at once.
const BUFFER: usize = 1 << 20;

/// Somebody writes to a file that is copied.
fn changed(path: &str) -> Error {
    Error::Failed {
        what: format!("copying {path}"),
        message: "the file is changed while it is copied".into(),
        repair: Some("stop the VM, and run the same command again".into()),
    }
}

impl std::fmt::Debug for PlacedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PlacedFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Source for PlacedFile {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> disk::Result<()> {
        let (pool, ahead) = match (&*self.place, &self.body) {
            (_, Body::Here(source)) => return source.read_at(buffer, offset),
            (Place::There(pool), Body::There(ahead)) => (pool, ahead),
            _ => return Ok(()),
        };
        blocks::read_at(self, ahead, buffer, offset, &|range, take| {
            pool.read(&self.path, range, self.changed, take)
        })
    }

    fn version(&self) -> Option<String> {
        Some(self.stamp.clone())
    }
}

impl RemoteSource for PlacedFile {
    fn address(&self) -> String {
        match &*self.place {
            Place::Here => self.path.clone(),
            Place::There(pool) => format!("{}:{}", pool.place(), self.path),
        }
    }

    fn state(&self) -> Option<String> {
        Some(self.stamp.clone())
    }

    fn sibling(&self, name: &str) -> disk::Result<Arc<dyn RemoteSource>> {
        let missing = || disk::Error::NotFound { name: name.to_owned() };
        let path = names::beside(&self.path, name, self.opened.anywhere).ok_or_else(missing)?;
        match self.place.open(&path, &self.opened) {
            Ok(file) => Ok(file),
            Err(Error::NotFound { .. }) => Err(missing()),
            Err(Error::Disk(disk::Error::Open { source, .. }))
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                Err(missing())
            }
            Err(Error::Disk(error)) => Err(error),
            Err(error) => {
                let source = std::io::Error::other(error.to_string());
                Err(disk::Error::Open { path: path.into(), source })
            }
        }
    }
}
