//! Changes in place of formats that keep blocks whose places tables tell.
//!
//! Order of writes: the guest's bytes and everything that only new structures refer to reach the disk before a
//! table that leads to them, and tables are written when the guest flushes. New blocks lie behind all that
//! the file has. So a crash at any point leaves at worst space that nothing leads to.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::cache::{Stage, Tables};
use crate::create::writable;
use crate::layer::{Image, Layer, LayerWriter, Place};
use crate::source::{Source, WritableSource};
use crate::{Disk, Error, Format, Result};

/// Bytes that are copied at once.
const CHUNK: u64 = 1 << 20;
/// Changed tables are written once they take this much memory.
const MAX_CHANGED: u64 = 8 << 20;

/// A format whose blocks can be changed in place, and be given places.
pub(crate) trait Blocks: Layer {
    /// Whether this image can be changed at all.
    fn can_write(&self) -> bool;

    /// What is done once before the first change, such as marking the image as in use.
    fn begin(&self) -> Result<()>;

    /// Remembers whether it was done.
    fn begun(&self) -> &Begun;

    /// The block with the byte at `offset`, which is not stored as it is.
    fn block(&self, offset: u64) -> Result<Range<u64>>;

    /// A place for a block: the one that it has already, or a new one behind everything else.
    fn place(&self, block: &Range<u64>) -> Result<NewPlace>;

    /// Makes the tables lead to a block that is stored as a whole now.
    fn refer(&self, block: &Range<u64>, place: NewPlace) -> Result<()>;

    /// Makes the tables say that a block is zeroes; `false` if they cannot.
    fn refer_zero(&self, _block: &Range<u64>) -> Result<bool> {
        Ok(false)
    }

    /// Bytes of tables that are changed but not written.
    fn changed(&self) -> u64;

    /// Writes the tables, while no block is given a place; afterwards everything would survive a loss of
    /// power.
    fn commit(&self) -> Result<()>;

    /// Marks the image as closed in order, after a commit.
    fn end(&self) -> Result<()>;
}

/// Where a block goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NewPlace {
    pub source: usize,
    pub offset: u64,
    /// Nothing was ever stored there: it reads as zeroes.
    pub is_fresh: bool,
}

/// Whether an image was changed since it was opened.
#[derive(Debug, Default)]
pub(crate) struct Begun {
    done: AtomicBool,
    doing: Mutex<()>,
    /// Held while blocks are given places and while tables are written: no table may reach the disk with
    /// an entry whose block was not flushed before.
    tables: Mutex<()>,
}

impl Begun {
    fn get(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    fn lock_tables(&self) -> MutexGuard<'_, ()> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn once(&self, begin: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.get() {
            return Ok(());
        }
        let _doing = self.doing.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.get() {
            begin()?;
            self.done.store(true, Ordering::Release);
        }
        Ok(())
    }
}

/// Writes changed tables in the order of this module's promise.
pub(crate) fn commit(tables: &[&Tables]) -> Result<()> {
    let flush = || tables.iter().try_for_each(|table| writable(&**table.source())?.flush());
    for table in tables {
        table.write_back(Stage::First)?;
    }
    flush()?;
    if tables.iter().all(|table| table.changes() == 0) {
        return Ok(());
    }
    for table in tables {
        table.write_back(Stage::Second)?;
    }
    flush()
}

impl<T: Blocks> LayerWriter for T {
    fn write(&self, disk: &Image, mut buffer: &[u8], mut offset: u64) -> Result<()> {
        self.begun().once(|| self.begin())?;
        while !buffer.is_empty() {
            let mut written = {
                let _unchanged = disk.changes.read().unwrap_or_else(PoisonError::into_inner);
                write_in_place(self, disk, buffer, offset)?
            };
            if written == 0 {
                let _changing = disk.changes.write().unwrap_or_else(PoisonError::into_inner);
                let _tables = self.begun().lock_tables();
                written = write_new(self, disk, buffer, offset)?;
                if self.changed() > MAX_CHANGED {
                    self.commit()?;
                }
            }
            buffer = &buffer[written..];
            offset += written as u64;
        }
        Ok(())
    }

    fn write_zeroes(&self, disk: &Image, range: Range<u64>, unmap: bool) -> Result<()> {
        self.begun().once(|| self.begin())?;
        let mut offset = range.start;
        while offset < range.end {
            let (place, end) = {
                let _unchanged = disk.changes.read().unwrap_or_else(PoisonError::into_inner);
                let run = self.locate(offset..range.end)?;
                (run.place, run.end.min(range.end))
            };
            let inherits = disk.parent.is_some();
            if place == Place::Zero || (place == Place::Absent && !inherits) {
                offset = end;
                continue;
            }
            if place == Place::Absent {
                let block = self.block(offset)?;
                let is_whole = block.start == offset && block.end.min(disk.len()) <= range.end;
                let _changing = disk.changes.write().unwrap_or_else(PoisonError::into_inner);
                let _tables = self.begun().lock_tables();
                if is_whole && self.refer_zero(&block)? {
                    offset = block.end.min(range.end);
                    continue;
                }
            }
            let end = end.min(offset + CHUNK);
            self.write(disk, &vec![0; (end - offset) as usize], offset)?;
            offset = end;
        }
        if unmap { self.discard(disk, range) } else { Ok(()) }
    }

    fn discard(&self, disk: &Image, range: Range<u64>) -> Result<()> {
        self.begun().once(|| self.begin())?;
        let mut offset = range.start;
        while offset < range.end {
            // Nobody may write to what is punched.
            let _changing = disk.changes.write().unwrap_or_else(PoisonError::into_inner);
            let run = self.locate(offset..range.end)?;
            let end = run.end.min(range.end);
            if end <= offset {
                return Err(Error::Damaged { format: disk.format, what: NOWHERE.to_owned() });
            }
            if let Place::Stored { source, offset: host } = run.place {
                writable(&*self.sources()[source])?.punch(host..host + (end - offset))?;
            }
            offset = end;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        if !self.begun().get() {
            return Ok(());
        }
        let _tables = self.begun().lock_tables();
        self.commit()
    }

    fn close(&self) {
        if !self.begun().get() {
            return;
        }
        if let Err(error) = self.commit().and_then(|()| self.end()) {
            tracing::warn!(%error, "An image was not closed in order");
        }
    }
}

const NOWHERE: &str = "its tables lead nowhere";

/// Writes what is stored at `offset` already; returns how many bytes.
fn write_in_place(layer: &impl Blocks, disk: &Image, buffer: &[u8], offset: u64) -> Result<usize> {
    let run = layer.locate(offset..offset + buffer.len() as u64)?;
    let Place::Stored { source, offset: host } = run.place else { return Ok(0) };
    let length = run.end.saturating_sub(offset).min(buffer.len() as u64) as usize;
    let end = host.saturating_add(length as u64);
    target(layer, disk, source, end)?.write_at(&buffer[..length], host)?;
    Ok(length)
}

/// The file of an image, to be written up to `end`, which a damaged table may have far behind the file.
fn target<'a>(
    layer: &'a impl Blocks,
    disk: &Image,
    source: usize,
    end: u64,
) -> Result<&'a dyn WritableSource> {
    let source = &*layer.sources()[source];
    check_end(disk.format, source, end, layer.block_size())?;
    writable(source)
}

/// Refuses what would make a file far longer than it is: its tables are damaged.
pub(crate) fn check_end(
    format: Format,
    source: &dyn Source,
    end: u64,
    block_size: u64,
) -> Result<()> {
    // The last block may be cut off, and a new one may lie behind tables that are still to be written.
    let slack = block_size.saturating_mul(2).saturating_add(MAX_CHANGED);
    if end > source.len().saturating_add(slack) {
        return Err(Error::Damaged { format, what: NOWHERE.to_owned() });
    }
    Ok(())
}

/// Gives the block at `offset` a place; returns how many bytes of `buffer` are in it.
fn write_new(layer: &impl Blocks, disk: &Image, buffer: &[u8], offset: u64) -> Result<usize> {
    let before = layer.locate(offset..offset + 1)?.place;
    if matches!(before, Place::Stored { .. }) {
        // Another thread was faster.
        return Ok(0);
    }
    let block = layer.block(offset)?;
    let end = block.end.min(disk.len());
    let length = buffer.len().min((end - offset) as usize);
    let place = layer.place(&block)?;
    let target = target(layer, disk, place.source, place.offset.saturating_add(end - block.start))?;
    let is_zero = before == Place::Zero || (before == Place::Absent && disk.parent.is_none());
    if place.is_fresh && is_zero {
        target.write_at(&buffer[..length], place.offset + (offset - block.start))?;
        // Bytes past the end of the file are no bytes of a block.
        let host_end = place.offset + (end - block.start);
        if layer.sources()[place.source].len() < host_end {
            target.set_len(host_end)?;
        }
    } else {
        let written = offset..offset + length as u64;
        for start in (block.start..end).step_by(CHUNK as usize) {
            let mut bytes = vec![0; (end - start).min(CHUNK) as usize];
            disk.read_unlocked(&mut bytes, start)?;
            let from = written.start.max(start);
            let to = written.end.min(start + bytes.len() as u64);
            if from < to {
                let part = &buffer[(from - offset) as usize..(to - offset) as usize];
                bytes[(from - start) as usize..(to - start) as usize].copy_from_slice(part);
            }
            target.write_at(&bytes, place.offset + (start - block.start))?;
        }
    }
    layer.refer(&block, place)?;
    Ok(length)
}
