//! One file in pieces over several connections.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::state::Kept;
use super::{PullOptions, RemoteFile, failed, hexadecimal};
use crate::{Error, Result};

/// What one request asks for.
pub(super) const PIECE: u64 = if cfg!(test) { 1 << 20 } else { 8 << 20 };
/// Zeroes of this length and alignment stay a hole.
const HOLE: usize = 64 << 10;
/// What is written and hashed at once, while the processor's cache holds it.
const UNIT: usize = 256 << 10;
/// How often it is noted how far a file is.
const NOTED: u64 = 128 << 20;
/// Longest pause before another attempt.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The copy of one file.
pub(super) struct Fetch<'a> {
    pub file: &'a dyn RemoteFile,
    pub local: &'a File,
    pub path: &'a Path,
    pub note: &'a Path,
    pub options: &'a PullOptions,
}

/// What the connections and the hashing have in common.
struct Shared {
    /// Where the next piece begins that nobody has taken.
    next: u64,
    /// Up to where everything is hashed.
    hashed: u64,
    /// Pieces that wait for those before them.
    ready: BTreeMap<u64, Vec<u8>>,
    /// Buffers to be used again.
    spare: Vec<Vec<u8>>,
    error: Option<Error>,
}

impl Fetch<'_> {
    /// Copies from `start` to the end; `digest` is that of what is before. Returns the digest of everything.
    pub fn run(
        &self,
        start: u64,
        mut digest: Sha256,
        tell: &mut (dyn FnMut(u64) + Send),
    ) -> Result<Sha256> {
        let length = self.file.len();
        let connections = self.options.connections.clamp(1, 64);
        let shared = Mutex::new(Shared {
            next: start,
            hashed: start,
            ready: BTreeMap::new(),
            spare: Vec::new(),
            error: None,
        });
        let changed = Condvar::new();
        let pace = self.options.rate.map(Pace::new);
        let mut noted = start;
        let result = std::thread::scope(|scope| {
            for _ in 0..connections {
                scope.spawn(|| self.connection(&shared, &changed, pace.as_ref()));
            }
            loop {
                let mut at = lock(&shared);
                let piece = loop {
                    if let Some(error) = at.error.take() {
                        // Nobody takes another piece.
                        at.next = length;
                        changed.notify_all();
                        break Err(error);
                    }
                    if at.hashed == length {
                        return Ok(());
                    }
                    let hashed = at.hashed;
                    match at.ready.remove(&hashed) {
                        Some(piece) => break Ok(piece),
                        None => at = changed.wait(at).unwrap_or_else(PoisonError::into_inner),
                    }
                };
                let start = at.hashed;
                drop(at);
                let piece = piece?;
                if let Err(error) = self.take(start, &piece, &mut digest) {
                    lock(&shared).error.get_or_insert(error);
                    continue;
                }
                let mut at = lock(&shared);
                at.hashed += piece.len() as u64;
                at.spare.push(piece);
                let hashed = at.hashed;
                changed.notify_all();
                drop(at);
                tell(hashed);
                if hashed - noted >= NOTED {
                    noted = hashed;
                    if let Err(error) = self.keep(hashed, &digest) {
                        lock(&shared).error.get_or_insert(error);
                    }
                }
            }
        });
        if let Err(error) = result {
            let mut at = lock(&shared);
            let mut done = at.hashed;
            while let Some(piece) = at.ready.remove(&done)
                && self.take(done, &piece, &mut digest).is_ok()
            {
                done += piece.len() as u64;
            }
            // What is here is worth more than a second reason.
            let _ = self.keep(done, &digest);
            return Err(error);
        }
        Ok(digest)
    }

    /// Writes and hashes what comes next. One thread does both: writers of one file would only wait for each other.
    fn take(&self, start: u64, piece: &[u8], digest: &mut Sha256) -> Result<()> {
        let mut all = digest.clone();
        for (unit, at) in piece.chunks(UNIT).zip((start..).step_by(UNIT)) {
            write_sparse(self.local, unit, at).map_err(|source| failed(self.path, source))?;
            all.update(unit);
        }
        *digest = all;
        Ok(())
    }

    /// Notes how far it is; the bytes must be on the disk before.
    fn keep(&self, done: u64, digest: &Sha256) -> Result<()> {
        self.local.sync_data().map_err(|source| failed(self.path, source))?;
        let sha256 = hexadecimal(&digest.clone().finalize());
        Kept { done, sha256 }.write(self.note, self.file.len(), self.file.stamp())
    }

    /// Takes pieces until there are none.
    fn connection(&self, shared: &Mutex<Shared>, changed: &Condvar, pace: Option<&Pace>) {
        let length = self.file.len();
        // So far may a connection be ahead of the hashing.
        let window = (self.options.connections.clamp(1, 64) as u64 + 2) * PIECE;
        loop {
            let mut at = lock(shared);
            while at.next < length && at.next - at.hashed >= window && at.error.is_none() {
                at = changed.wait(at).unwrap_or_else(PoisonError::into_inner);
            }
            if at.next >= length || at.error.is_some() {
                return;
            }
            let start = at.next;
            let end = length.min(start + PIECE);
            at.next = end;
            let mut piece = at.spare.pop().unwrap_or_default();
            drop(at);
            piece.clear();
            let fetched = self.piece(start..end, &mut piece, shared, pace);
            let mut at = lock(shared);
            // A part of a piece counts, too: nothing will come after it.
            at.ready.insert(start, piece);
            if let Err(error) = fetched {
                at.error.get_or_insert(error);
            }
            changed.notify_all();
        }
    }

    /// Fetches one piece, as often as it takes.
    fn piece(
        &self,
        range: Range<u64>,
        piece: &mut Vec<u8>,
        shared: &Mutex<Shared>,
        pace: Option<&Pace>,
    ) -> Result<()> {
        let size = (range.end - range.start) as usize;
        piece.reserve_exact(size);
        let mut failures = 0;
        while piece.len() < size {
            let before = piece.len();
            let from = range.start + before as u64;
            let result = self.file.read(from..range.end, &mut |bytes| {
                if bytes.len() > size - piece.len() {
                    return Err(Error::reply(self.file.name(), "more bytes than were asked for"));
                }
                if let Some(pace) = pace {
                    pace.wait(bytes.len());
                }
                piece.extend_from_slice(bytes);
                Ok(())
            });
            if piece.len() == size {
                break;
            }
            let error = match result {
                Ok(()) => Error::Unreachable {
                    place: self.file.name().into(),
                    message: "the connection was lost".into(),
                    repair: None,
                },
                Err(error @ (Error::Unreachable { .. } | Error::TimedOut { .. })) => error,
                Err(error) => return Err(error),
            };
            failures = if piece.len() > before { 0 } else { failures + 1 };
            if failures > self.options.attempts || lock(shared).error.is_some() {
                return Err(error);
            }
            let pause = self.options.pause.saturating_mul(1 << failures.min(10));
            std::thread::sleep(pause.min(LONGEST_PAUSE));
        }
        Ok(())
    }
}

/// Writes what is not zero: the file has holes there.
pub(crate) fn write_sparse(file: &File, bytes: &[u8], start: u64) -> std::io::Result<()> {
    let mut from = 0;
    let mut at = 0;
    let put = |range: Range<usize>| match range.is_empty() {
        true => Ok(()),
        false => file.write_all_at(&bytes[range.clone()], start + range.start as u64),
    };
    for block in bytes.chunks(HOLE) {
        let next = at + block.len();
        if is_zero(block) {
            put(from..at)?;
            from = next;
        }
        at = next;
    }
    put(from..at)
}

fn is_zero(block: &[u8]) -> bool {
    // The first bytes tell most blocks.
    block.iter().take(16).all(|byte| *byte == 0)
        && block.chunks(16).all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets so many bytes pass in a second.
pub(crate) struct Pace {
    rate: u64,
    /// When what has passed would have passed at that rate.
    due: Mutex<Instant>,
}

impl Pace {
    /// At most `rate` bytes in a second.
    pub fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), due: Mutex::new(Instant::now()) }
    }

    /// Waits until so many bytes may pass.
    pub fn wait(&self, bytes: usize) {
        std::thread::sleep(self.delay(bytes));
    }

    /// How long so many bytes must wait, after those that were asked about before.
    pub fn delay(&self, bytes: usize) -> Duration {
        let cost = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        let now = Instant::now();
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        // What was not used in the past cannot be made up for.
        *due = (*due).max(now) + cost;
        due.saturating_duration_since(now)
    }
}
