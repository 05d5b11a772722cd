//! A disk that is read from afar while it is copied: what was read once is here, the rest follows in order, and when all
//! is here nobody needs the source any more.

mod map;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use disk::{Content, Disk, Extent};

use crate::pull::{Pace, write_sparse};
use crate::{Error, PullOptions, Result};
use map::Map;

/// Unit in which a disk is here or not: what a guest reads at once, and a page of the network's round trip.
const CHUNK: u64 = 256 << 10;
/// What the copying asks for at once.
const STRIDE: u64 = 4 << 20;
/// It is noted what is here after so many bytes more.
const NOTED: u64 = 64 << 20;

/// A disk of another host that comes here as it is read.
pub struct Mirror {
    shared: Arc<Shared>,
    copiers: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    path: PathBuf,
    local: File,
    length: u64,
    /// Gone when all is here.
    remote: RwLock<Option<Arc<dyn Disk>>>,
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
    options: PullOptions,
    pace: Option<Pace>,
    whole: Mutex<Option<Whole>>,
}

/// Is called once, when everything is here.
pub type Whole = Box<dyn FnOnce() + Send>;

struct State {
    map: Map,
    /// Chunks that somebody fetches at the moment.
    fetching: Vec<u64>,
    /// Where the copying goes on.
    cursor: u64,
    /// Bytes that came since it was noted what is here.
    news: u64,
}

impl Mirror {
    /// Keeps what is read of `remote` in the file at `path`, and goes on with what is there if it is of the same `stamp`,
    /// which tells this state of the disk from every other one.
    ///
    /// # Errors
    /// The file holds another state of the disk, or cannot be used.
    pub fn open(
        path: &Path,
        remote: Arc<dyn Disk>,
        stamp: &str,
        options: &PullOptions,
    ) -> Result<Self> {
        let length = remote.len();
        let map = match Map::read(path)? {
            Some(map) if map.fits(length, stamp) => map,
            Some(map) if map.is_complete() => map,
            Some(_) => {
                return Err(Error::Failed {
                    what: format!("going on with {}", path.display()),
                    message: "the disk on the other host was changed since".into(),
                    repair: Some(format!("remove {} to begin again", path.display())),
                });
            }
            None => Map::new(length, stamp, CHUNK),
        };
        Self::with(path, map, Some(remote), options)
    }

    /// Opens what is wholly here; `None` if it is not.
    pub fn open_whole(path: &Path) -> Result<Option<Self>> {
        match Map::read(path)? {
            Some(map) if map.is_complete() => {
                Self::with(path, map, None, &PullOptions::default()).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn with(
        path: &Path,
        map: Map,
        remote: Option<Arc<dyn Disk>>,
        options: &PullOptions,
    ) -> Result<Self> {
        let failed = |source| Error::File { path: path.into(), source };
        let mut open = File::options();
        let local = open.read(true).write(true).create(true).truncate(false).open(path);
        let local = local.map_err(failed)?;
        let length = map.length();
        local.set_len(length).map_err(failed)?;
        let remote = remote.filter(|_| !map.is_complete());
        let state = State { map, fetching: Vec::new(), cursor: 0, news: 0 };
        let shared = Shared {
            path: path.into(),
            local,
            length,
            remote: RwLock::new(remote),
            state: Mutex::new(state),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
            pace: options.rate.map(Pace::new),
            options: options.clone(),
            whole: Mutex::new(None),
        };
        Ok(Self { shared: Arc::new(shared), copiers: Mutex::default() })
    }

    /// Copies the rest in the background; calls `whole` when everything is here, which may be at once.
    pub fn copy_behind(&self, whole: Whole) {
        if self.is_whole() {
            return whole();
        }
        *lock(&self.shared.whole) = Some(whole);
        let mut copiers = lock(&self.copiers);
        for _ in 0..self.shared.options.connections.clamp(1, 16) {
            let shared = Arc::clone(&self.shared);
            copiers.push(std::thread::spawn(move || shared.copy()));
        }
    }

    /// Everything is here.
    pub fn is_whole(&self) -> bool {
        lock(&self.shared.state).map.is_complete()
    }

    /// How many bytes are here.
    pub fn here(&self) -> u64 {
        lock(&self.shared.state).map.here()
    }

    /// Stops the copying and notes what is here.
    pub fn close(&self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.changed.notify_all();
        for copier in lock(&self.copiers).drain(..) {
            // One that panicked has copied nothing that is noted.
            let _ = copier.join();
        }
        // The last of it may have come when the copying had been told to stop.
        if self.is_whole() {
            self.shared.completed();
        }
        self.shared.note()
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        // What is not noted is fetched again.
        let _ = self.close();
    }
}

impl Shared {
    /// Fetches the chunks of `range` that are not here.
    fn need(&self, range: Range<u64>) -> disk::Result<()> {
        let (first, last) = (range.start / CHUNK, range.end.div_ceil(CHUNK));
        let mut at = first;
        while at < last {
            let mut state = lock(&self.state);
            while state.fetching.contains(&at) {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.map.has(at) {
                at += 1;
                continue;
            }
            // As many as lack in a row.
            let mut end = at;
            while end < last && !state.map.has(end) && !state.fetching.contains(&end) {
                state.fetching.push(end);
                end += 1;
            }
            drop(state);
            let fetched = self.fetch(at..end);
            let mut state = lock(&self.state);
            state.fetching.retain(|chunk| !(at..end).contains(chunk));
            if fetched.is_ok() {
                self.arrived(&mut state, at..end);
            }
            self.changed.notify_all();
            drop(state);
            fetched?;
            at = end;
        }
        Ok(())
    }

    /// Reads chunks from the source and writes them here.
    fn fetch(&self, chunks: Range<u64>) -> disk::Result<()> {
        let start = chunks.start * CHUNK;
        let end = (chunks.end * CHUNK).min(self.length);
        let remote = self.remote.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(remote) = remote else {
            let source = std::io::Error::other("the other host is not reached any more");
            return Err(self.io("read")(source));
        };
        let mut at = start;
        let mut buffer = Vec::new();
        while at < end {
            let extent = remote.map(at..end)?;
            let until = extent.range.end.clamp(at, end);
            if until == at {
                return Err(self.io("read")(std::io::Error::other("its map makes no sense")));
            }
            if matches!(extent.content, Content::Data(_)) {
                buffer.resize((until - at) as usize, 0);
                remote.read_at(&mut buffer, at)?;
                write_sparse(&self.local, &buffer, at).map_err(self.io("write to"))?;
            }
            at = until;
        }
        Ok(())
    }

    fn arrived(&self, state: &mut State, chunks: Range<u64>) {
        state.news += (chunks.end - chunks.start) * CHUNK;
        for chunk in chunks {
            state.map.add(chunk);
        }
    }

    /// Copies what nobody has read yet, in order, until all is here.
    fn copy(&self) {
        let mut failures = 0;
        while !self.stop.load(Ordering::Acquire) {
            let mut state = lock(&self.state);
            let next = state.map.next_missing(state.cursor);
            let Some(next) = next.or_else(|| state.map.next_missing(0)) else {
                drop(state);
                self.completed();
                return;
            };
            let end = state.map.run_of_missing(next, STRIDE / CHUNK);
            state.cursor = end;
            let must_note = state.news >= NOTED;
            if must_note {
                state.news = 0;
            }
            drop(state);
            if must_note && let Err(error) = self.note() {
                tracing::warn!(%error, "it cannot be noted what was copied");
            }
            let range = next * CHUNK..(end * CHUNK).min(self.length);
            if let Some(pace) = &self.pace {
                self.sleep(pace.delay((range.end - range.start) as usize));
                if self.stop.load(Ordering::Acquire) {
                    return;
                }
            }
            match self.need(range) {
                Ok(()) => failures = 0,
                Err(error) => {
                    tracing::info!(%error, "copying is tried again");
                    failures += 1;
                    let pause = self.options.pause.saturating_mul(1 << failures.min(6));
                    self.sleep(pause.min(Duration::from_secs(30)));
                }
            }
        }
    }

    /// Sleeps, but not past the end.
    fn sleep(&self, pause: Duration) {
        let state = lock(&self.state);
        let stopped = |_: &mut State| !self.stop.load(Ordering::Acquire);
        drop(self.changed.wait_timeout_while(state, pause, stopped));
    }

    fn completed(&self) {
        let Some(whole) = lock(&self.whole).take() else { return };
        if let Err(error) = self.note() {
            tracing::warn!(%error, "it cannot be noted that all was copied");
            return;
        }
        *self.remote.write().unwrap_or_else(PoisonError::into_inner) = None;
        whole();
    }

    /// Notes what is here; that is on the disk before.
    fn note(&self) -> Result<()> {
        let map = lock(&self.state).map.clone();
        let failed = |source| Error::File { path: self.path.clone(), source };
        self.local.sync_data().map_err(failed)?;
        map.write(&self.path)
    }

    fn io(&self, action: &'static str) -> impl Fn(std::io::Error) -> disk::Error + '_ {
        move |source| disk::Error::Io { action, path: self.path.clone(), source }
    }

    fn check(&self, start: u64, length: u64) -> disk::Result<Range<u64>> {
        let end = start.checked_add(length).filter(|end| *end <= self.length);
        let out = || disk::Error::OutOfRange {
            range: start..start.saturating_add(length),
            length: self.length,
        };
        Ok(start..end.ok_or_else(out)?)
    }
}

impl Disk for Mirror {
    fn len(&self) -> u64 {
        self.shared.length
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> disk::Result<()> {
        let range = self.shared.check(offset, buffer.len() as u64)?;
        self.shared.need(range)?;
        self.shared.local.read_exact_at(buffer, offset).map_err(self.shared.io("read"))
    }

    fn write_at(&self, _: &[u8], _: u64) -> disk::Result<()> {
        Err(disk::Error::ReadOnly)
    }

    fn flush(&self) -> disk::Result<()> {
        Ok(())
    }

    fn discard(&self, _: Range<u64>) -> disk::Result<()> {
        Err(disk::Error::ReadOnly)
    }

    fn write_zeroes(&self, _: Range<u64>, _: bool) -> disk::Result<()> {
        Err(disk::Error::ReadOnly)
    }

    fn map(&self, range: Range<u64>) -> disk::Result<Extent<'_>> {
        let range = self.shared.check(range.start, range.end.saturating_sub(range.start))?;
        Ok(Extent { range, content: Content::Data(None) })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
