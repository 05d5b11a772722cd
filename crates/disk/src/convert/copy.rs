//! From extents of a disk to the places of a new image, uncompressed: shared where the file system can, copied elsewhere.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ScopedJoinHandle};

use super::Noting;
use super::Report;
use super::journal::Run;
use super::zero::nonzero;
use crate::create::{Builder, writable};
use crate::{Content, Disk, Error, Location, Result};

/// Bytes that are read at once: few enough to be in the processor's cache still when they are written.
const CHUNK: u64 = 256 << 10;
/// Most bytes that are unpacked at once.
const MAX_PACKED: u64 = 2 << 20;
/// More threads would only wait.
const MAX_JOBS: usize = 8;
/// Buffers beside those that threads read into.
const READ_AHEAD: usize = 6;
/// What buffers are aligned to: the kernel copies to others at half the speed on some processors (AMD's Zen 3).
const PAGE: usize = 4096;
/// Zeroes are left out in units of this many bytes.
const ZERO_UNIT: usize = 4096;
/// File systems share space in units of this many bytes, or fewer.
const SHARED_UNIT: u64 = 4096;

/// Writes all that is not zeroes. `jobs` threads read, unpack and look for zeroes side by side. One of them at a time
/// writes what all have read, in the disk's order, since a file takes one writer at a time anyway; the others go on reading
/// until all buffers are full. So they seldom wait for each other, which costs more than what it saves.
pub(super) fn copy_data(
    source: &dyn Disk,
    target: &mut dyn Builder,
    mut noting: Option<Noting<'_>>,
    jobs: usize,
    report: &mut Report,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let length = source.len();
    let mut told = 0;
    let mut tell = |done| {
        if done > told {
            told = done;
            progress(done);
        }
    };
    let now = noting.as_mut().and_then(|noting| noting.last.take());
    let places = Places { block: target.block_size(), length, target, now, noting };
    let start = report.resumed;
    let jobs = jobs.min(MAX_JOBS).min(length.div_ceil(CHUNK).try_into().unwrap_or(MAX_JOBS)).max(1);
    let buffers = if jobs == 1 { 1 } else { jobs + READ_AHEAD };
    let copying = Copying {
        source,
        reading: Mutex::new(Reading { start, end: start, ..Reading::default() }),
        queue: Mutex::new(Queue {
            free: (0..buffers).map(|_| Buffer::default()).collect(),
            done: start,
            ..Queue::default()
        }),
        enough: buffers / 2,
        moved: Condvar::new(),
        writing: Mutex::new(Writing { places, report }),
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..jobs).map(|_| scope.spawn(|| copying.work(&mut |_| {}))).collect();
        let mine = copying.work(&mut tell);
        let join = |other: ScopedJoinHandle<'_, _>| other.join().unwrap_or(Err(Error::Stopped));
        others.into_iter().map(join).fold(mine, Result::and)
    })?;
    tell(length);
    Ok(())
}

/// What the threads of a copy share. Who holds `reading` may wait for the others, never the other way round.
struct Copying<'a> {
    source: &'a dyn Disk,
    reading: Mutex<Reading>,
    queue: Mutex<Queue>,
    /// Buffers that have to be free before who waits for one goes on: to wake a thread for each costs too much.
    enough: usize,
    /// Enough buffers are free, nobody writes any more, or all stop.
    moved: Condvar,
    /// Locked by who writes.
    writing: Mutex<Writing<'a>>,
}

/// Where the next piece begins.
#[derive(Default)]
struct Reading {
    start: u64,
    /// Up to here are data. The extent is not asked for again: to find its end can take as long as it is.
    end: u64,
    /// They are not stored one by one.
    is_packed: bool,
    /// The next piece's number.
    next: u64,
    sharing: Sharing,
}

/// What is read and waits to be written.
#[derive(Default)]
struct Queue {
    ready: BTreeMap<u64, Piece>,
    free: Vec<Buffer>,
    /// The number of the piece that is to be written next.
    next: u64,
    /// Up to here all is written.
    done: u64,
    is_writing: bool,
    is_stopped: bool,
}

struct Writing<'a> {
    places: Places<'a>,
    report: &'a mut Report,
}

/// A part of the disk that one thread reads.
struct Piece {
    number: u64,
    /// Bytes before it that need not be read.
    holes: u64,
    /// What is to be read; nothing at the disk's end.
    range: Range<u64>,
    buffer: Buffer,
    /// Of the buffer, what is not zeroes.
    parts: Vec<Range<usize>>,
}

impl<'a> Copying<'a> {
    fn work(&self, progress: &mut dyn FnMut(u64)) -> Result<()> {
        // However this ends, nobody waits for what does not come.
        let stop = Stop(self);
        let mut free = self.lock_queue().free.pop();
        while let Some(buffer) = free {
            let Some(mut piece) = self.take(buffer)? else { break };
            let length = (piece.range.end - piece.range.start) as usize;
            let bytes = piece.buffer.get(length);
            if let Err(error) = self.source.read_at(bytes, piece.range.start) {
                // What was read before it is not lost.
                drop(self.write_alone(piece.number));
                return Err(error);
            }
            piece.parts = nonzero(bytes, ZERO_UNIT);
            free = self.hand_over(piece, progress)?;
        }
        // Others may still be at work.
        std::mem::forget(stop);
        Ok(())
    }

    fn lock_queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next piece, of data only.
    fn take(&self, buffer: Buffer) -> Result<Option<Piece>> {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let reading = &mut *reading;
        let length = self.source.len();
        let mut holes = 0;
        while reading.start == reading.end && reading.start < length {
            let extent = self.source.map(reading.start..length)?;
            let range = extent.range;
            let Content::Data(location) = extent.content else {
                holes += range.end - range.start;
                (reading.start, reading.end) = (range.end, range.end);
                continue;
            };
            reading.end = range.end;
            reading.is_packed = location.is_none();
            if let Some(location) = location
                && reading.sharing.may_work(location.file)
            {
                let Some(mut writing) = self.write_alone(reading.next) else { return Ok(None) };
                if reading.sharing.works(location.file, writing.places.target)? {
                    let shared = writing.places.share(location, range)?;
                    writing.report.data += shared;
                    writing.report.shared += shared;
                    reading.start += shared;
                }
            }
        }
        let start = reading.start;
        if start == length && holes == 0 {
            return Ok(None);
        }
        let boundary = (start / CHUNK + 1) * CHUNK;
        while reading.is_packed && reading.end < boundary.min(length) {
            let extent = self.source.map(reading.end..length)?;
            if !matches!(extent.content, Content::Data(None)) {
                break;
            }
            reading.end = extent.range.end;
        }
        // What is compressed as a whole is unpacked as a whole, by one thread.
        let is_whole = reading.is_packed && reading.end - start <= MAX_PACKED;
        let end = if is_whole { reading.end } else { reading.end.min(boundary) };
        reading.start = end;
        reading.next += 1;
        let number = reading.next - 1;
        Ok(Some(Piece { number, holes, range: start..end, buffer, parts: Vec::new() }))
    }

    /// Waits until all pieces before that one are written; nothing if another thread has failed.
    fn write_alone(&self, number: u64) -> Option<MutexGuard<'_, Writing<'a>>> {
        let is_early =
            |queue: &mut Queue| (queue.next != number || queue.is_writing) && !queue.is_stopped;
        let queue = self.moved.wait_while(self.lock_queue(), is_early);
        let is_stopped = queue.unwrap_or_else(PoisonError::into_inner).is_stopped;
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        (!is_stopped).then_some(writing)
    }

    /// Leaves a piece to who writes, or writes it and all that follows it. Returns a buffer for the next one, or nothing
    /// if another thread has failed.
    fn hand_over(&self, piece: Piece, progress: &mut dyn FnMut(u64)) -> Result<Option<Buffer>> {
        let mut queue = self.lock_queue();
        queue.ready.insert(piece.number, piece);
        loop {
            let is_next = queue.ready.contains_key(&queue.next);
            if is_next && !queue.is_writing && !queue.is_stopped {
                queue.is_writing = true;
                while let Some(piece) = queue.take_next() {
                    drop(queue);
                    self.writing.lock().unwrap_or_else(PoisonError::into_inner).write(&piece)?;
                    queue = self.lock_queue();
                    (queue.next, queue.done) = (piece.number + 1, piece.range.end);
                    queue.free.push(piece.buffer);
                    if queue.free.len() == self.enough {
                        self.moved.notify_all();
                    }
                }
                queue.is_writing = false;
                self.moved.notify_all();
            }
            progress(queue.done);
            if queue.is_stopped {
                return Ok(None);
            }
            if let Some(buffer) = queue.free.pop() {
                return Ok(Some(buffer));
            }
            queue = self.moved.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Queue {
    fn take_next(&mut self) -> Option<Piece> {
        let next = self.next;
        self.ready.remove(&next)
    }
}

/// Stops the other threads.
struct Stop<'a, 'b>(&'a Copying<'b>);

impl Drop for Stop<'_, '_> {
    fn drop(&mut self) {
        self.0.lock_queue().is_stopped = true;
        self.0.moved.notify_all();
    }
}

impl Writing<'_> {
    fn write(&mut self, piece: &Piece) -> Result<()> {
        let length = (piece.range.end - piece.range.start) as usize;
        let bytes = piece.buffer.read(length);
        let mut written = 0;
        for part in &piece.parts {
            written += part.len() as u64;
            self.places.write(piece.range.start + part.start as u64, &bytes[part.clone()])?;
        }
        self.report.data += written;
        self.report.zeroes += bytes.len() as u64 - written;
        self.report.holes += piece.holes;
        self.places.checkpoint(piece.range.end, self.report)
    }
}

/// Memory that begins with a page.
#[derive(Default)]
struct Buffer(Vec<u8>);

impl Buffer {
    /// So many bytes to be written to.
    fn get(&mut self, length: usize) -> &mut [u8] {
        if self.0.len() < length + PAGE {
            self.0.resize(length.max(CHUNK as usize) + PAGE, 0);
        }
        let offset = self.0.as_ptr().align_offset(PAGE);
        &mut self.0[offset..offset + length]
    }

    /// What was written to them.
    fn read(&self, length: usize) -> &[u8] {
        let offset = self.0.as_ptr().align_offset(PAGE);
        &self.0[offset..offset + length]
    }
}

/// Whether the new image can share space with a file.
#[derive(Default)]
struct Sharing {
    /// The last file that was asked about, and the answer.
    known: Option<(i32, bool)>,
}

impl Sharing {
    fn may_work(&self, file: BorrowedFd<'_>) -> bool {
        self.known != Some((file.as_raw_fd(), false))
    }

    fn works(&mut self, file: BorrowedFd<'_>, target: &dyn Builder) -> Result<bool> {
        let number = file.as_raw_fd();
        if let Some((known, works)) = self.known
            && known == number
        {
            return Ok(works);
        }
        let mut works = true;
        for source in target.sources() {
            works &= writable(&**source)?.can_share(file);
        }
        self.known = Some((number, works));
        Ok(works)
    }
}

/// Where the new image's bytes go, in the guest's order.
struct Places<'a> {
    target: &'a mut dyn Builder,
    block: u64,
    length: u64,
    now: Option<Run>,
    noting: Option<Noting<'a>>,
}

impl Places<'_> {
    /// The place of the bytes from `range.start`, and how many of the range are there.
    fn find(&mut self, range: &Range<u64>) -> Result<(usize, u64, u64)> {
        let place = match &self.now {
            Some(place) if place.range.contains(&range.start) => place,
            _ => {
                let start = range.start / self.block * self.block;
                let end = range.end.next_multiple_of(self.block).min(self.length);
                let placed = self.target.place(start..end)?;
                if let Some(noting) = &mut self.noting {
                    noting.journal.placed(start, &placed);
                }
                let range = start..start + placed.length;
                self.now.insert(Run { range, source: placed.source, offset: placed.offset })
            }
        };
        let within = range.start - place.range.start;
        let count = place.range.end.min(range.end) - range.start;
        Ok((place.source, place.offset + within, count))
    }

    fn checkpoint(&mut self, start: u64, report: &Report) -> Result<()> {
        let Some(noting) = &mut self.noting else {
            return Ok(());
        };
        noting.journal.checkpoint(start, report, self.target.sources(), noting.files)
    }

    fn write(&mut self, mut start: u64, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (source, offset, count) = self.find(&(start..start + bytes.len() as u64))?;
            let (part, rest) = bytes.split_at(count as usize);
            writable(&*self.target.sources()[source])?.write_at(part, offset)?;
            (start, bytes) = (start + count, rest);
        }
        Ok(())
    }

    /// Lets the new image share what lies at `from`, as far as whole units go; returns how many bytes that were.
    fn share(&mut self, from: Location<'_>, range: Range<u64>) -> Result<u64> {
        let mut done = 0;
        let whole = (range.end - range.start) / SHARED_UNIT * SHARED_UNIT;
        while done < whole && (from.offset + done).is_multiple_of(SHARED_UNIT) {
            let (source, offset, count) = self.find(&(range.start + done..range.start + whole))?;
            let count = count / SHARED_UNIT * SHARED_UNIT;
            let target = writable(&*self.target.sources()[source])?;
            if count == 0
                || !offset.is_multiple_of(SHARED_UNIT)
                || !target.share(from.file, from.offset + done, offset, count)
            {
                break;
            }
            done += count;
        }
        Ok(done)
    }
}
