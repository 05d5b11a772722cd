//! Files of a host, read in ranges by a script that goes on as long as it is asked. Bytes come compressed: most disks hold many
//! zeroes, and base64 makes everything longer.

use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use disk::{ReadAhead, RemoteSource, Source};
use flate2::read::DeflateDecoder;
use serde::Deserialize;

use super::exchange::{Exchange, Frame, Remote};
use super::reply::Image;
use crate::{Error, RemoteFile, Result, blocks};

const SCRIPT: &str = include_str!("scripts/read.ps1");
/// A host without a word for so long is gone.
const SILENCE: Duration = Duration::from_secs(60);
/// Scripts that wait for the next question.
const IDLE: usize = 8;
/// What the script compresses at once.
const PIECE: u64 = 1 << 20;
/// What incompressible bytes become longer by is far less.
const LONGEST_PIECE: usize = 2 << 20;

/// The files of a host.
pub(super) struct Files {
    remote: Arc<Remote>,
    idle: Mutex<Vec<Exchange>>,
}

/// The state of a file.
#[derive(Deserialize)]
struct State {
    length: u64,
    stamp: String,
}

impl Files {
    pub fn new(remote: Arc<Remote>) -> Arc<Self> {
        Arc::new(Self { remote, idle: Mutex::default() })
    }

    /// Hands out the bytes of `range`, if the file is as `image` says.
    fn read(
        &self,
        image: &Image,
        range: Range<u64>,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let waiting = self.lock().pop();
        let mut exchange = match waiting {
            Some(exchange) => exchange,
            None => self.remote.start(SCRIPT, &[], false)?,
        };
        let length = range.end - range.start;
        exchange.tell(&[&image.path, &range.start.to_string(), &length.to_string()])?;
        let head = match self.part(&mut exchange)? {
            Some(head) => head,
            None => return Err(self.wrong("it answers nothing")),
        };
        let state: State =
            serde_json::from_slice(&head).map_err(|error| self.wrong(error.to_string()))?;
        if (state.length, &state.stamp) != (image.length, &image.stamp) {
            return Err(Error::Failed {
                what: format!("copying {}", image.path),
                message: "the file is changed while it is copied".into(),
                repair: Some("switch the VM off, or pull again".into()),
            });
        }
        let mut left = length;
        let mut piece = Vec::new();
        while let Some(packed) = self.part(&mut exchange)? {
            piece.clear();
            let most = left.min(PIECE);
            let unpacked = DeflateDecoder::new(&packed[..]).take(most + 1).read_to_end(&mut piece);
            unpacked.map_err(|error| self.wrong(error.to_string()))?;
            if piece.is_empty() || piece.len() as u64 > most {
                return Err(self.wrong("it sends other bytes than were asked for"));
            }
            left -= piece.len() as u64;
            take(&piece)?;
        }
        if left > 0 {
            return Err(self.wrong("it sends fewer bytes than were asked for"));
        }
        let mut idle = self.lock();
        if idle.len() < IDLE {
            idle.push(exchange);
        }
        Ok(())
    }

    /// What comes up to the end of a part; nothing if all is said.
    fn part(&self, exchange: &mut Exchange) -> Result<Option<Vec<u8>>> {
        let mut part = Vec::new();
        loop {
            match exchange.next(SILENCE)? {
                Frame::Bytes(bytes) if part.len() + bytes.len() > LONGEST_PIECE => {
                    return Err(Error::TooMuch {
                        what: self.remote.place().into(),
                        limit: LONGEST_PIECE,
                    });
                }
                Frame::Bytes(bytes) => part.extend(bytes),
                Frame::Part => return Ok(Some(part)),
                Frame::Said => return Ok(None),
                Frame::Failed(complaint) => {
                    return Err(Error::Failed {
                        what: format!("reading a file of {}", self.remote.place()),
                        message: complaint.message,
                        repair: None,
                    });
                }
                Frame::Done => return Err(self.wrong("it ends in the middle")),
            }
        }
    }

    fn wrong(&self, message: impl Into<String>) -> Error {
        Error::reply(self.remote.place(), message)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Exchange>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file of a host, which nobody changes.
pub(super) struct HostFile {
    pub files: Arc<Files>,
    pub image: Image,
    /// Its path here.
    pub name: String,
    /// The images below it, nearest first.
    pub parents: Vec<Image>,
    pub ahead: ReadAhead,
}

impl HostFile {
    pub fn new(files: &Arc<Files>, chain: &[Image], name: String) -> Option<Self> {
        let (image, parents) = chain.split_first()?;
        let (image, parents) = (image.clone(), parents.to_vec());
        Some(Self { files: files.clone(), image, name, parents, ahead: ReadAhead::default() })
    }
}

impl RemoteFile for HostFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.image.length
    }

    fn stamp(&self) -> &str {
        &self.image.stamp
    }

    fn read(&self, range: Range<u64>, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.files.read(&self.image, range, take)
    }
}

impl Source for HostFile {
    fn len(&self) -> u64 {
        self.image.length
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> disk::Result<()> {
        blocks::read_at(self, &self.ahead, buffer, offset, &|range, take| {
            self.files.read(&self.image, range, take)
        })
    }

    fn version(&self) -> Option<String> {
        Some(self.image.stamp.clone())
    }
}

impl RemoteSource for HostFile {
    fn address(&self) -> String {
        format!("{}:{}", self.files.remote.place(), self.image.path)
    }

    fn state(&self) -> Option<String> {
        Some(self.image.stamp.clone())
    }

    /// The host says which file is its parent; what the image says must agree.
    fn sibling(&self, name: &str) -> disk::Result<Arc<dyn RemoteSource>> {
        let parent = HostFile::new(&self.files, &self.parents, String::new());
        let same =
            |file: &HostFile| file_name(&file.image.path).eq_ignore_ascii_case(file_name(name));
        match parent.filter(same) {
            Some(parent) => Ok(Arc::new(parent)),
            None => Err(disk::Error::NotFound { name: name.into() }),
        }
    }
}

impl fmt::Debug for HostFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostFile").field("path", &self.image.path).finish_non_exhaustive()
    }
}

/// The last part of a path.
pub(super) fn file_name(path: &str) -> &str {
    path.rsplit(['\\', '/']).next().unwrap_or(path)
}
