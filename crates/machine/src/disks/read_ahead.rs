//! Reading ahead in compressed images: what comes next is unpacked by threads of its own, while the guest
//! looks at what it has.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use disk::{Content, Disk, Extent, Extents, Geometry, Result};

/// What is unpacked at once: a few grains.
const CHUNK: u64 = 256 << 10;
/// So many chunks are there beyond what was read.
const WINDOW: u64 = 12;
/// Bytes that must have been read in order before anything is read ahead.
const ENOUGH: u64 = 512 << 10;
/// How far apart reads in order may be: a guest has more than one under way, and they may pass each other.
const SLACK: u64 = 1 << 20;
/// Most threads.
const MAX_THREADS: usize = 4;

/// A disk that only can be read, with what is likely to be read next. Whatever was not unpacked ahead is read as always.
pub(super) struct ReadAhead {
    shared: Arc<Shared>,
}

struct Shared {
    disk: Arc<dyn Disk>,
    state: Mutex<State>,
    /// A chunk has ended, or is to be begun.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Where the reads in order are.
    next: u64,
    /// How many bytes they were.
    length: u64,
    chunks: BTreeMap<u64, Chunk>,
    threads: usize,
    /// The disk is closed.
    is_over: bool,
}

enum Chunk {
    Wanted,
    Underway,
    Ready(Vec<u8>),
}

impl ReadAhead {
    /// Over a disk that does not change.
    pub fn over(disk: Arc<dyn Disk>) -> Arc<dyn Disk> {
        let shared = Shared { disk, state: Mutex::default(), changed: Condvar::new() };
        Arc::new(Self { shared: Arc::new(shared) })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes of the chunk at `start`.
    fn range(&self, start: u64) -> Range<u64> {
        start..(start + CHUNK).min(self.disk.len())
    }

    /// Copies what a chunk has of `range` into `buffer`; `false` if it has to be read.
    fn take(&self, buffer: &mut [u8], range: &Range<u64>) -> bool {
        let start = range.start / CHUNK * CHUNK;
        let mut state = self.lock();
        loop {
            match state.chunks.get(&start) {
                Some(Chunk::Ready(bytes)) => {
                    let from = (range.start - start) as usize;
                    let part = bytes.get(from..from + buffer.len());
                    let is_there = part.is_some();
                    if let Some(part) = part {
                        buffer.copy_from_slice(part);
                    }
                    return is_there;
                }
                Some(Chunk::Underway) => {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                Some(Chunk::Wanted) => {
                    state.chunks.remove(&start);
                    return false;
                }
                None => return false,
            }
        }
    }

    /// Notes a read, and wants what follows it if it is one of many in order.
    fn note(self: &Arc<Self>, range: &Range<u64>) {
        let mut state = self.lock();
        let is_next = range.start <= state.next + SLACK && range.end + SLACK >= state.next;
        if !is_next {
            state.length = 0;
            state.chunks.retain(|_, chunk| matches!(chunk, Chunk::Underway));
            state.next = range.end;
            return;
        }
        state.length += range.end - range.start;
        state.next = state.next.max(range.end);
        if state.length < ENOUGH {
            return;
        }
        // What lies behind is not asked for again.
        let behind = state.next.saturating_sub(SLACK);
        state
            .chunks
            .retain(|start, chunk| start + CHUNK > behind || matches!(chunk, Chunk::Underway));
        let first = state.next.div_ceil(CHUNK);
        let mut wanted = false;
        for start in (first..first + WINDOW).map(|number| number * CHUNK) {
            if start < self.disk.len() && !state.chunks.contains_key(&start) {
                state.chunks.insert(start, Chunk::Wanted);
                wanted = true;
            }
        }
        if !wanted {
            return;
        }
        self.changed.notify_all();
        let most = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        if state.threads < most {
            let shared = Arc::clone(self);
            let named = thread::Builder::new().name("read-ahead".into());
            // Without a thread it is as it would be without reading ahead, once nothing is wanted.
            match named.spawn(move || shared.work()) {
                Ok(_) => state.threads += 1,
                Err(_) if state.threads == 0 => state.chunks.clear(),
                Err(_) => {}
            }
        }
    }

    /// What a thread does until the disk is closed.
    fn work(&self) {
        let mut state = self.lock();
        while !state.is_over {
            let wanted = state.chunks.iter().find(|(_, chunk)| matches!(chunk, Chunk::Wanted));
            let Some(start) = wanted.map(|(start, _)| *start) else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.chunks.insert(start, Chunk::Underway);
            drop(state);
            let bytes = self.unpack(start);
            state = self.lock();
            // What cannot be read ends the guest's own read, with its error.
            match bytes {
                Some(bytes) => state.chunks.insert(start, Chunk::Ready(bytes)),
                None => state.chunks.remove(&start),
            };
            self.changed.notify_all();
        }
    }

    /// A chunk's bytes, if it takes time to have them.
    fn unpack(&self, start: u64) -> Option<Vec<u8>> {
        let range = self.range(start);
        let mut extents = Extents::new(&*self.disk, range.clone()).flatten();
        if !extents.any(|extent| matches!(extent.content, Content::Data(None))) {
            return None;
        }
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.disk.read_at(&mut bytes, range.start).ok()?;
        Some(bytes)
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.changed.notify_all();
    }
}

impl Disk for ReadAhead {
    fn len(&self) -> u64 {
        self.shared.disk.len()
    }

    fn is_read_only(&self) -> bool {
        self.shared.disk.is_read_only()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let end = offset.saturating_add(buffer.len() as u64);
        if end > self.len() {
            return self.shared.disk.read_at(buffer, offset);
        }
        self.shared.note(&(offset..end));
        // What is missing from `begin` on is read at once as far as it goes.
        let (mut rest, mut begin, mut place) = (buffer, offset, offset);
        while !rest.is_empty() {
            let stop = ((place / CHUNK + 1) * CHUNK).min(end);
            let from = (place - begin) as usize;
            let until = (stop - begin) as usize;
            if self.shared.take(&mut rest[from..until], &(place..stop)) {
                if from > 0 {
                    self.shared.disk.read_at(&mut rest[..from], begin)?;
                }
                rest = &mut rest[until..];
                begin = stop;
            } else if stop == end {
                return self.shared.disk.read_at(rest, begin);
            }
            place = stop;
        }
        Ok(())
    }

    fn write_at(&self, buffer: &[u8], offset: u64) -> Result<()> {
        self.shared.disk.write_at(buffer, offset)
    }

    fn flush(&self) -> Result<()> {
        self.shared.disk.flush()
    }

    fn discard(&self, range: Range<u64>) -> Result<()> {
        self.shared.disk.discard(range)
    }

    fn write_zeroes(&self, range: Range<u64>, unmap: bool) -> Result<()> {
        self.shared.disk.write_zeroes(range, unmap)
    }

    fn map(&self, range: Range<u64>) -> Result<Extent<'_>> {
        self.shared.disk.map(range)
    }

    fn geometry(&self) -> Geometry {
        self.shared.disk.geometry()
    }

    fn version(&self) -> Option<String> {
        self.shared.disk.version()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use disk::{ConvertOptions, CreateOptions, Format, ImageOptions, OpenOptions, RawDisk};

    /// A streamOptimized VMDK of bytes that can be told, some of them zeroes.
    fn packed(folder: &std::path::Path) -> (Vec<u8>, Arc<dyn Disk>) {
        let mut bytes: Vec<u8> = (0..6_u32 << 20).map(|at| ((at / 77) ^ (at >> 9)) as u8).collect();
        bytes[2 << 20..3 << 20].fill(0);
        let (raw, image) = (folder.join("raw"), folder.join("image.vmdk"));
        std::fs::write(&raw, &bytes).unwrap();
        let raw = RawDisk::open(&raw, &OpenOptions { read_only: true, ..OpenOptions::default() });
        let to: CreateOptions = "vmdk,layout=stream".parse().unwrap();
        let options = ConvertOptions { image: to, ..ConvertOptions::new(Format::Vmdk) };
        disk::convert(&raw.unwrap(), &image, &options, |_| ()).unwrap();
        let options = ImageOptions { read_only: true, ..ImageOptions::default() };
        (bytes, disk::open(&image, &options).unwrap())
    }

    #[test]
    fn reads_in_any_order_are_those_of_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let (bytes, disk) = packed(folder.path());
        let ahead = ReadAhead::over(disk);
        let read = |offset: usize, length: usize| {
            let mut buffer = vec![0; length];
            ahead.read_at(&mut buffer, offset as u64).unwrap();
            assert!(buffer == bytes[offset..offset + length], "{length} bytes at {offset}");
        };
        // In order, twice, in steps that fit chunks and that do not; then here and there.
        for step in [128 << 10, 100 << 10, 700 << 10, 512] {
            (0..bytes.len() / step).for_each(|number| read(number * step, step));
        }
        let mut place = 12345_usize;
        for _ in 0..300 {
            place = (place * 1_103_515_245 + 12345) % (5 << 20);
            read(place / 512 * 512, 4096 + place % 7 * 65536);
        }
        read(0, bytes.len());
        assert!(ahead.read_at(&mut [0; 512], bytes.len() as u64).is_err());
    }

    #[test]
    fn what_is_read_in_order_is_unpacked_ahead() {
        let folder = tempfile::tempdir().unwrap();
        let (bytes, disk) = packed(folder.path());
        let shared = Arc::new(Shared { disk, state: Mutex::default(), changed: Condvar::new() });
        let ahead = ReadAhead { shared: Arc::clone(&shared) };
        let mut buffer = vec![0; 1 << 20];
        ahead.read_at(&mut buffer, 0).unwrap();
        let mut state = shared.lock();
        while state.chunks.values().any(|chunk| !matches!(chunk, Chunk::Ready(_))) {
            state = shared.changed.wait(state).unwrap();
        }
        // The third MiB are zeroes, which take no time.
        let starts: Vec<u64> = state.chunks.keys().map(|start| start >> 18).collect();
        assert_eq!(starts, [4, 5, 6, 7, 12, 13, 14, 15]);
        drop(state);
        ahead.read_at(&mut buffer, 1 << 20).unwrap();
        assert!(buffer == bytes[1 << 20..2 << 20]);
        drop(ahead);
        // Its threads let go of it.
        while Arc::strong_count(&shared) > 1 {
            thread::yield_now();
        }
    }
}
