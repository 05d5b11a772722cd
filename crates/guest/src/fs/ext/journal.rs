//! The journal: blocks that may not have reached their places (fs/jbd2/recovery.c). All numbers are big-endian.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::fast_commit::{self, Record};
use super::map::Extent;
use super::{Ext, damaged};
use crate::checksum::crc32c;
use crate::volume::{Volume, at, read};
use crate::{Error, Result};

const MAGIC: [u8; 4] = 0xc03b_3998_u32.to_be_bytes();
const HEADER: usize = 12;
const TAIL: usize = 4;

/// Kinds of blocks.
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const REVOKED: u32 = 5;

/// Features.
const IS_64BIT: u32 = 0x2;
const CHECKSUMS_2: u32 = 0x8;
const CHECKSUMS_3: u32 = 0x10;
const FAST_COMMITS: u32 = 0x20;
/// All that are understood: those above, revoked blocks and asynchronous commits.
const INCOMPAT_KNOWN: u32 = IS_64BIT | CHECKSUMS_2 | CHECKSUMS_3 | FAST_COMMITS | 0x1 | 0x4;

/// Most blocks that a journal may hold.
const MAX_BLOCKS: u32 = 1 << 24;

struct Journal<'a> {
    fs: &'a Ext,
    extents: Vec<Extent>,
    first: u32,
    /// One behind the last block of the ring.
    end: u32,
    features: u32,
    /// Where checksums begin; `None` if it has none.
    seed: Option<u32>,
}

/// A block in the journal that belongs elsewhere.
#[derive(Clone, Copy)]
struct Copy {
    /// Where it is, in bytes.
    from: u64,
    /// Where it belongs.
    to: u64,
    /// It begins with the magic number, in the place of which there are zeroes.
    is_escaped: bool,
}

/// What a journal leaves.
pub struct Outcome {
    /// The volume after its transactions.
    pub volume: Arc<dyn Volume>,
    /// What has changed since then.
    pub fast_commits: Vec<Record>,
}

/// Replays the journal of a file system.
pub fn replay(fs: &Ext) -> Result<Outcome> {
    let inode = fs.inode(fs.superblock.journal_inode)?;
    let extents = fs.extents(&inode, MAX_BLOCKS.into())?;
    let mut journal = Journal { fs, extents, first: 0, end: 1, features: 0, seed: None };
    let superblock = journal.block(0)?;
    let word = |offset| at::be32(&superblock, offset).unwrap_or(0);
    const OF_VERSION_2: u32 = 4;
    let has_features = word(4) == OF_VERSION_2;
    if !superblock.starts_with(&MAGIC) || u64::from(word(12)) != fs.superblock.block {
        return Err(damaged("its journal"));
    }
    journal.features = if has_features { word(40) } else { 0 };
    let unknown = journal.features & !INCOMPAT_KNOWN;
    if unknown != 0 {
        return Err(Error::unsupported("journal", format!("it has unknown features {unknown:#x}")));
    }
    if journal.has(CHECKSUMS_2 | CHECKSUMS_3) {
        journal.seed = Some(crc32c(!0, &superblock[48..64]));
    }
    let fast = match (journal.has(FAST_COMMITS), word(0x54)) {
        (false, _) => 0,
        (true, 0) => 256,
        (true, fast) => fast,
    };
    (journal.first, journal.end) = (word(20), word(16).saturating_sub(fast));
    let (start, sequence) = (word(28), word(24));
    if start == 0 {
        return Ok(Outcome { volume: Arc::clone(&fs.volume), fast_commits: Vec::new() });
    }
    if !(journal.first..journal.end).contains(&start) || journal.end > MAX_BLOCKS {
        return Err(damaged("its journal"));
    }
    let (moved, next) = journal.transactions(start, sequence)?;
    let fast_commits = match fast {
        0 => Vec::new(),
        // Behind the ring and an unused block.
        _ => fast_commit::records(next, |number| {
            journal.block(journal.end.saturating_add(1).saturating_add(number))
        })?,
    };
    let inner = Arc::clone(&fs.volume);
    let volume = Arc::new(Replayed { inner, block: fs.superblock.block, moved });
    Ok(Outcome { volume, fast_commits })
}

impl Journal<'_> {
    fn has(&self, features: u32) -> bool {
        self.features & features != 0
    }

    /// Where a block of the journal lies, as a block of the file system.
    fn place(&self, block: u32) -> Result<u64> {
        let block = u64::from(block);
        let next = self.extents.partition_point(|extent| extent.logical <= block);
        let extent = next.checked_sub(1).map(|index| &self.extents[index]);
        extent
            .filter(|extent| block - extent.logical < extent.count)
            .and_then(|extent| extent.physical.checked_add(block - extent.logical))
            .ok_or_else(|| damaged("its journal"))
    }

    fn block(&self, block: u32) -> Result<Vec<u8>> {
        let place = self.fs.place(self.place(block)?)?;
        read(&*self.fs.volume, place, self.fs.superblock.block as usize)
    }

    fn after(&self, block: u32) -> u32 {
        if block + 1 >= self.end { self.first } else { block + 1 }
    }

    /// What the transactions that ended have moved, by where it belongs, and the number that the next one would have.
    fn transactions(&self, start: u32, first: u32) -> Result<(BTreeMap<u64, Copy>, u32)> {
        // The last transaction that says of a block that what was written before does not count.
        let mut revoked: HashMap<u64, u32> = HashMap::new();
        let mut copies: Vec<(u32, Copy)> = Vec::new();
        let (mut open, mut open_revoked) = (Vec::new(), Vec::new());
        let (mut place, mut sequence) = (start, first);
        let mut left = self.end - self.first;
        while left > 0 {
            let block = self.block(place)?;
            if !block.starts_with(&MAGIC) || at::be32(&block, 8) != Some(sequence) {
                break;
            }
            let kind = at::be32(&block, 4).unwrap_or(0);
            // A block that was not wholly written ends the journal, as does one of an older round.
            let checked = match kind {
                COMMIT => 16,
                DESCRIPTOR | REVOKED => block.len() - TAIL,
                _ => break,
            };
            if !self.is_whole(&block, checked) {
                break;
            }
            (place, left) = (self.after(place), left - 1);
            match kind {
                DESCRIPTOR => {
                    for tag in self.tags(&block, sequence)? {
                        left = left.checked_sub(1).ok_or_else(|| damaged("its journal"))?;
                        open.push((tag, place));
                        place = self.after(place);
                    }
                }
                REVOKED => open_revoked.extend(self.revoked(&block)?),
                _ => {
                    for (tag, place) in open.drain(..) {
                        copies.push((sequence, self.copy(&tag, place)?));
                    }
                    revoked.extend(open_revoked.drain(..).map(|block| (block, sequence)));
                    sequence = sequence.wrapping_add(1);
                }
            }
        }
        let counts = |sequence: u32, to: &u64| {
            let later = |last: &u32| sequence.wrapping_sub(*last).cast_signed() > 0;
            revoked.get(to).is_none_or(later)
        };
        let copies = copies.into_iter().filter(|(sequence, copy)| counts(*sequence, &copy.to));
        Ok((copies.map(|(_, copy)| (copy.to, copy)).collect(), sequence))
    }

    /// A block's checksum is right, which counts as zeroes itself.
    fn is_whole(&self, block: &[u8], place: usize) -> bool {
        let Some(seed) = self.seed else { return true };
        let crc = crc32c(crc32c(seed, &block[..place]), &[0; 4]);
        at::be32(block, place) == Some(crc32c(crc, &block[place + 4..]))
    }

    /// What a descriptor says of the blocks behind it.
    fn tags(&self, block: &[u8], sequence: u32) -> Result<Vec<Tag>> {
        const SAME_UUID: u32 = 2;
        const LAST: u32 = 8;
        let bad = || damaged("a descriptor in its journal");
        let end = block.len() - if self.seed.is_some() { TAIL } else { 0 };
        let size = match (self.has(CHECKSUMS_3), self.has(CHECKSUMS_2), self.has(IS_64BIT)) {
            (true, ..) => 16,
            (_, is_second, is_64bit) => {
                8 + if is_second { 2 } else { 0 } + if is_64bit { 4 } else { 0 }
            }
        };
        let mut tags = Vec::new();
        let mut place = HEADER;
        loop {
            let tag = block[..end].get(place..place + size).ok_or_else(bad)?;
            let word = |offset| at::be32(tag, offset).unwrap_or(0);
            let high = if self.has(IS_64BIT) { word(8) } else { 0 };
            let (flags, checksum) = match self.seed {
                Some(_) if self.has(CHECKSUMS_3) => (word(4), Some((word(12), u32::MAX))),
                Some(_) => (word(4) & 0xffff, Some((word(4) >> 16, 0xffff))),
                None => (word(4) & 0xffff, None),
            };
            tags.push(Tag {
                to: u64::from(word(0)) | u64::from(high) << 32,
                flags,
                checksum,
                sequence,
            });
            place += size + if flags & SAME_UUID == 0 { 16 } else { 0 };
            if flags & LAST != 0 {
                return Ok(tags);
            }
        }
    }

    fn revoked(&self, block: &[u8]) -> Result<Vec<u64>> {
        const START: usize = 16;
        let bad = || damaged("a list of revoked blocks in its journal");
        let end = at::be32(block, HEADER).ok_or_else(bad)? as usize;
        let list = block.get(START..end).ok_or_else(bad)?;
        let number = |bytes: &[u8]| match bytes.len() {
            8 => at::be64(bytes, 0).unwrap_or(0),
            _ => at::be32(bytes, 0).unwrap_or(0).into(),
        };
        Ok(list.chunks_exact(if self.has(IS_64BIT) { 8 } else { 4 }).map(number).collect())
    }

    /// The block that a tag is about.
    fn copy(&self, tag: &Tag, place: u32) -> Result<Copy> {
        const ESCAPED: u32 = 1;
        if let (Some(seed), Some((expected, mask))) = (self.seed, tag.checksum) {
            let crc = crc32c(seed, &tag.sequence.to_be_bytes());
            if crc32c(crc, &self.block(place)?) & mask != expected {
                return Err(damaged("a block in its journal"));
            }
        }
        let from = self.fs.place(self.place(place)?)?;
        Ok(Copy { from, to: tag.to, is_escaped: tag.flags & ESCAPED != 0 })
    }
}

/// What a descriptor says of a block.
struct Tag {
    to: u64,
    flags: u32,
    /// With the bits that it has.
    checksum: Option<(u32, u32)>,
    sequence: u32,
}

/// A volume some blocks of which are read from the journal.
struct Replayed {
    inner: Arc<dyn Volume>,
    block: u64,
    moved: BTreeMap<u64, Copy>,
}

impl Volume for Replayed {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.inner.read_at(buffer, offset)?;
        let end = offset.saturating_add(buffer.len() as u64);
        let numbers = offset / self.block..end.div_ceil(self.block);
        for (number, copy) in self.moved.range(numbers) {
            let start = number * self.block;
            let (from, to) = (start.max(offset), (start + self.block).min(end));
            let mut bytes = read(&*self.inner, copy.from, self.block as usize)?;
            if copy.is_escaped {
                bytes[..4].copy_from_slice(&MAGIC);
            }
            buffer[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&bytes[(from - start) as usize..(to - start) as usize]);
        }
        Ok(())
    }
}
