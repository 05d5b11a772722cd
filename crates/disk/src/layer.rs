//! From a format's map of its own bytes to a disk.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::cache::Cache;
use crate::codec::{self, Codec};
use crate::source::{Source, read_padded};
use crate::{Content, Disk, Error, Extent, Format, Geometry, Location, Result};

/// Unpacked grains that are kept take at most this much memory.
const UNPACKED_BYTES: u64 = 8 << 20;

/// A larger grain is unpacked by one thread at a time, unless it is wanted as a whole.
const LARGE_GRAIN: u64 = 256 << 10;
/// Longest buffer for compressed bytes that a thread keeps.
const KEPT_BUFFER: usize = 256 << 10;

/// What a format is: a map from guest offsets to where the bytes lie. It reads its tables and nothing else.
pub(crate) trait Layer: Send + Sync {
    /// What lies at the start of `range`, which is within the disk and not empty. The run's end may lie
    /// past the end of `range`.
    fn locate(&self, range: Range<u64>) -> Result<Run>;

    /// The sources that [`Place`]s count.
    fn sources(&self) -> &[Arc<dyn Source>];

    /// Capability: it can be changed.
    fn writer(&self) -> Option<&dyn LayerWriter> {
        None
    }

    /// A sign that a file of it was cut short. Few reads are made for it, and it may deceive where an image was not closed
    /// in order.
    fn cut(&self) -> Result<Option<Cut>> {
        Ok(None)
    }

    /// Unit in which it keeps the guest's bytes.
    fn block_size(&self) -> u64;

    /// Smallest unit that the guest may address.
    fn logical_block(&self) -> u32 {
        512
    }
}

/// Changes to a layer. `disk` is the disk that the layer is part of: what a change does not replace is
/// read through it. Ranges are within the disk and not empty.
pub(crate) trait LayerWriter: Send + Sync {
    fn write(&self, disk: &Image, buffer: &[u8], offset: u64) -> Result<()>;
    fn write_zeroes(&self, disk: &Image, range: Range<u64>, unmap: bool) -> Result<()>;
    fn discard(&self, disk: &Image, range: Range<u64>) -> Result<()>;
    fn flush(&self) -> Result<()>;
    /// Marks the image as closed in order.
    fn close(&self);
}

/// A file that ends before the last block that its tables know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    name: String,
    /// Its bytes.
    length: u64,
    /// Bytes that it should have at least.
    needed: u64,
}

impl Cut {
    /// Of a source whose last block should have `size` bytes at `start`, if it ends before that.
    pub fn before(source: &dyn Source, start: u64, size: u64) -> Option<Self> {
        let length = source.len();
        (start >= length).then(|| Self {
            name: source.name().unwrap_or_else(|| "The file".to_owned()),
            length,
            needed: start.saturating_add(size),
        })
    }
}

/// Bytes that lie together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Where it ends, as a guest offset.
    pub end: u64,
    pub place: Place,
}

/// Where bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// One by one in a source.
    Stored { source: usize, offset: u64 },
    /// They are zeroes.
    Zero,
    /// The parent has them; without one they are zeroes.
    Absent,
    /// Within a compressed grain, of which the run is all or a part.
    Packed(Grain),
}

/// A compressed grain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grain {
    pub source: usize,
    /// Where its compressed bytes begin.
    pub offset: u64,
    /// How many they are at most; the source may end before.
    pub length: u32,
    pub codec: Codec,
    /// Guest offset of its first byte.
    pub start: u64,
    /// Bytes in it when unpacked; what a shorter stream leaves is zeroes.
    pub size: u32,
}

/// A run that is found at once covers at most this many steps, so that no call takes for ever.
const MAX_STEPS: usize = 4096;

/// Runs of a map that are looked at for where it leads past the end of a file.
const MOST_RUNS: u32 = 1 << 24;

/// Joins what `step` finds at the start of `range` with what follows it without a seam.
pub(crate) fn join(range: Range<u64>, step: impl Fn(u64) -> Result<Run>) -> Result<Run> {
    let mut run = step(range.start)?;
    for _ in 0..MAX_STEPS {
        if run.end >= range.end || matches!(run.place, Place::Packed(_)) {
            break;
        }
        let next = step(run.end)?;
        let continues = match (run.place, next.place) {
            (
                Place::Stored { source, offset },
                Place::Stored { source: other, offset: follows },
            ) => source == other && offset.checked_add(run.end - range.start) == Some(follows),
            (Place::Zero, Place::Zero) | (Place::Absent, Place::Absent) => true,
            _ => false,
        };
        if !continues || next.end <= run.end {
            break;
        }
        run.end = next.end;
    }
    Ok(run)
}

/// A disk that a [`Layer`] maps.
pub(crate) struct Image {
    pub layer: Box<dyn Layer>,
    pub parent: Option<Arc<dyn Disk>>,
    pub length: u64,
    pub format: Format,
    pub read_only: bool,
    /// Held for reading while bytes are read or written in place, for writing while the map changes.
    pub changes: RwLock<()>,
    unpacked: Cache<[u8]>,
    /// Held while a large grain is unpacked.
    unpacking: Mutex<()>,
}

impl Image {
    pub fn new(
        format: Format,
        layer: Box<dyn Layer>,
        length: u64,
        parent: Option<Arc<dyn Disk>>,
        read_only: bool,
    ) -> Self {
        let kept = (UNPACKED_BYTES / layer.block_size().max(1)).clamp(1, 64) as usize;
        let read_only = read_only || layer.writer().is_none();
        let unpacked = Cache::new(kept / 4, kept.min(4));
        let (changes, unpacking) = (RwLock::default(), Mutex::default());
        Self { layer, parent, length, format, read_only, changes, unpacked, unpacking }
    }

    fn check(&self, range: &Range<u64>) -> Result<()> {
        if range.start > range.end || range.end > self.length {
            return Err(Error::OutOfRange { range: range.clone(), length: self.length });
        }
        Ok(())
    }

    fn writer(&self, range: &Range<u64>) -> Result<&dyn LayerWriter> {
        let writer = self.layer.writer().filter(|_| !self.read_only).ok_or(Error::ReadOnly)?;
        self.check(range)?;
        Ok(writer)
    }

    /// What lies at the start of `range`, checked: it advances, and what is stored begins in its source.
    fn locate(&self, range: Range<u64>) -> Result<(Run, u64)> {
        let run = self.layer.locate(range.clone())?;
        let mut end = run.end.min(range.end);
        if end <= range.start {
            return Err(self.damaged("its tables lead nowhere"));
        }
        let (source, offset) = match run.place {
            Place::Stored { source, offset } => (source, offset),
            Place::Packed(grain) => (grain.source, grain.offset),
            Place::Zero | Place::Absent => return Ok((run, end)),
        };
        let length = self.layer.sources()[source].len();
        if offset >= length {
            return Err(self.damaged(format!(
                "the bytes at {} should lie at {offset}, past the end of the file at {length}",
                range.start
            )));
        }
        if matches!(run.place, Place::Stored { .. }) {
            // The file may end within a block, but not before one.
            let there = range.start.saturating_add(length - offset);
            if there < end {
                let block = self.layer.block_size().max(1);
                end = end.min(there.checked_next_multiple_of(block).unwrap_or(end));
            }
        }
        Ok((run, end))
    }

    /// Refuses a disk whose files were cut short, as [`Layer::cut`] tells and its map confirms.
    pub fn check_end(&self) -> Result<()> {
        // What cannot be read there is found where it is needed.
        let Ok(Some(Cut { name, length, needed })) = self.layer.cut() else { return Ok(()) };
        let mut at = 0;
        for _ in 0..MOST_RUNS {
            if at >= self.length {
                break;
            }
            match self.locate(at..self.length) {
                Ok((_, end)) => at = end,
                Err(_) => {
                    let missing = needed.saturating_sub(length);
                    return Err(Error::CutShort { name, length, missing });
                }
            }
        }
        Ok(())
    }

    pub fn damaged(&self, what: impl Into<String>) -> Error {
        Error::Damaged { format: self.format, what: what.into() }
    }

    /// Reads a range that was checked, while `changes` is held.
    pub fn read_unlocked(&self, mut buffer: &mut [u8], mut offset: u64) -> Result<()> {
        while !buffer.is_empty() {
            let (run, end) = self.locate(offset..offset + buffer.len() as u64)?;
            // Not longer than the buffer, so it fits.
            let (part, rest) = buffer.split_at_mut((end - offset) as usize);
            match run.place {
                Place::Stored { source, offset } => {
                    read_padded(&*self.layer.sources()[source], part, offset)?;
                }
                Place::Zero => part.fill(0),
                Place::Absent => self.read_parent(part, offset)?,
                Place::Packed(grain) => self.read_packed(&grain, part, offset)?,
            }
            buffer = rest;
            offset = end;
        }
        Ok(())
    }

    /// Fills `buffer` with what the parent has at `offset`.
    pub fn read_parent(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let Some(parent) = &self.parent else {
            buffer.fill(0);
            return Ok(());
        };
        // A parent may be shorter: the rest is zeroes.
        let there = parent.len().saturating_sub(offset);
        let count = usize::try_from(there).unwrap_or(usize::MAX).min(buffer.len());
        let (inherited, rest) = buffer.split_at_mut(count);
        rest.fill(0);
        if count == 0 { Ok(()) } else { parent.read_at(inherited, offset) }
    }

    fn read_packed(&self, grain: &Grain, buffer: &mut [u8], offset: u64) -> Result<()> {
        let within = usize::try_from(offset - grain.start).unwrap_or(usize::MAX);
        if within == 0 && buffer.len() == grain.size as usize {
            return self.unpack(grain, buffer);
        }
        let range = within..within.saturating_add(buffer.len());
        let mut copy =
            |unpacked: &[u8]| unpacked.get(range.clone()).map(|part| buffer.copy_from_slice(part));
        let too_short = || self.damaged("a compressed grain is too short");
        let copied = match self.unpacked.with(grain.start, &mut copy) {
            Some(copied) => copied,
            None => {
                // Large ones one by one, so that memory stays bounded and nobody does what another one does already.
                let is_large = u64::from(grain.size) > LARGE_GRAIN;
                let lock = is_large.then(|| self.unpacking.lock());
                let _alone = lock.map(|lock| lock.unwrap_or_else(PoisonError::into_inner));
                if is_large && let Some(copied) = self.unpacked.with(grain.start, &mut copy) {
                    return copied.ok_or_else(too_short);
                }
                let mut bytes = vec![0; grain.size as usize];
                self.unpack(grain, &mut bytes)?;
                let copied = copy(&bytes);
                self.unpacked.insert(grain.start, bytes.into());
                copied
            }
        };
        copied.ok_or_else(too_short)
    }

    fn unpack(&self, grain: &Grain, output: &mut [u8]) -> Result<()> {
        let source = &self.layer.sources()[grain.source];
        let there = source.len().saturating_sub(grain.offset).min(grain.length.into());
        let filled = with_buffer(there as usize, |packed| {
            source.read_at(packed, grain.offset)?;
            codec::unpack(grain.codec, packed, output).ok_or_else(|| {
                let Grain { start, offset, .. } = grain;
                self.damaged(format!(
                    "the compressed bytes of {start}, at {offset}, cannot be unpacked"
                ))
            })
        })?;
        output[filled..].fill(0);
        Ok(())
    }

    /// Forgets the unpacked grain that begins at guest offset `start`, which is stored otherwise now.
    pub fn forget_unpacked(&self, start: u64) {
        self.unpacked.remove(start);
    }
}

/// Lends a buffer that the thread keeps: new ones would be cleared each time.
fn with_buffer<T>(length: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    // A source may unpack something itself while the buffer is lent.
    let mut buffer = BUFFER.take();
    if buffer.len() < length {
        buffer.resize(length, 0);
    }
    let done = work(&mut buffer[..length]);
    if length <= KEPT_BUFFER {
        BUFFER.replace(buffer);
    }
    done
}

impl Drop for Image {
    fn drop(&mut self) {
        if let Some(writer) = self.layer.writer().filter(|_| !self.read_only) {
            writer.close();
        }
    }
}

impl Disk for Image {
    fn len(&self) -> u64 {
        self.length
    }

    fn version(&self) -> Option<String> {
        let mut told = format!("{} of {}", self.format, self.length);
        for source in self.layer.sources() {
            told = format!("{told}, {}", source.version()?);
        }
        match &self.parent {
            Some(parent) => Some(format!("{told} over {}", parent.version()?)),
            None => Some(told),
        }
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.check(&(offset..offset.saturating_add(buffer.len() as u64)))?;
        let lock = (!self.read_only).then_some(&self.changes);
        let _unchanged = lock.map(|lock| lock.read().unwrap_or_else(PoisonError::into_inner));
        self.read_unlocked(buffer, offset)
    }

    fn write_at(&self, buffer: &[u8], offset: u64) -> Result<()> {
        let writer = self.writer(&(offset..offset.saturating_add(buffer.len() as u64)))?;
        if buffer.is_empty() { Ok(()) } else { writer.write(self, buffer, offset) }
    }

    fn flush(&self) -> Result<()> {
        match self.layer.writer() {
            Some(writer) if !self.read_only => writer.flush(),
            _ => Ok(()),
        }
    }

    fn discard(&self, range: Range<u64>) -> Result<()> {
        let writer = self.writer(&range)?;
        if range.is_empty() { Ok(()) } else { writer.discard(self, range) }
    }

    fn write_zeroes(&self, range: Range<u64>, unmap: bool) -> Result<()> {
        let writer = self.writer(&range)?;
        if range.is_empty() { Ok(()) } else { writer.write_zeroes(self, range, unmap) }
    }

    fn map(&self, range: Range<u64>) -> Result<Extent<'_>> {
        self.check(&range)?;
        if range.is_empty() {
            return Ok(Extent { range, content: Content::Hole });
        }
        let lock = (!self.read_only).then_some(&self.changes);
        let _unchanged = lock.map(|lock| lock.read().unwrap_or_else(PoisonError::into_inner));
        let (run, end) = self.locate(range.clone())?;
        let found = range.start..end;
        let content = match run.place {
            Place::Stored { source, offset } => {
                let source = &self.layer.sources()[source];
                let whole =
                    offset.checked_add(end - range.start).is_some_and(|end| end <= source.len());
                // Bytes past the end of the file are zeroes here but not in the file.
                let file = source.file().filter(|_| whole);
                Content::Data(file.map(|file| Location {
                    file,
                    offset,
                    is_lasting: self.read_only,
                }))
            }
            Place::Packed(_) => Content::Data(None),
            Place::Zero => Content::Zero,
            Place::Absent => match &self.parent {
                Some(parent) if range.start < parent.len() => {
                    return parent.map(range.start..end.min(parent.len()));
                }
                _ => Content::Hole,
            },
        };
        Ok(Extent { range: found, content })
    }

    fn geometry(&self) -> Geometry {
        let block = self.layer.block_size().clamp(4096, 2 << 20);
        let block = if block.is_power_of_two() { block as u32 } else { 4096 };
        // Over a disk of 4096-byte sectors a guest goes on to see those.
        let below = self.parent.as_ref().map_or(0, |parent| parent.geometry().logical_block);
        let logical_block = self.layer.logical_block().max(below).min(4096);
        Geometry { logical_block, physical_block: 4096, discard_granularity: block }
    }
}
