//! Changes in place.
//!
//! A dynamic disk's footer is its last sector, where new blocks go. So the file first grows by more than a
//! block, with a footer at its new end, and shrinks again when it is closed: what a guest wrote is never
//! where a reader looks for the footer.

use std::ops::Range;
use std::sync::PoisonError;

use zerocopy::IntoBytes;

use super::{ABSENT, Footer, Sparse, Vhd, damaged};
use crate::blocks::{self, Begun, Blocks, NewPlace};
use crate::cache::Stage;
use crate::create::writable;
use crate::{Result, SECTOR_SIZE};

/// Blocks by which the file grows at least.
const GROWTH: u64 = 8;
/// Guests' bytes are aligned to this in new blocks.
const ALIGNMENT: u64 = 4096;

/// Where a dynamic disk's file ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    /// Where the next block goes.
    pub next: u64,
    /// Where the footer is.
    pub footer: u64,
}

impl Sparse {
    /// Takes space for `length` bytes in front of the footer.
    pub(super) fn reserve(&self, end: &mut End, length: u64) -> Result<()> {
        if end.next + length <= end.footer {
            return Ok(());
        }
        let target = writable(&*self.sources[0])?;
        let footer = end.next + length.max(GROWTH * self.block_size);
        target.write_at(self.footer.as_bytes(), footer)?;
        target.flush()?;
        // It would be the guest's now.
        target.write_at(&[0; SECTOR_SIZE as usize], end.footer)?;
        end.footer = footer;
        Ok(())
    }

    /// Looks where new blocks go, and sees to it that a footer is at the end.
    pub(super) fn find_end(&self) -> Result<()> {
        // The copy at the start is what is left of a footer that a crash of another program destroyed.
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let length = self.sources[0].len();
        *end = match length.checked_sub(SECTOR_SIZE) {
            Some(footer) if self.has_footer_at_end => End { next: footer, footer },
            _ => End { next: length.next_multiple_of(SECTOR_SIZE), footer: 0 },
        };
        if end.footer == 0 {
            end.footer = end.next;
            self.reserve(&mut end, 1)?;
        }
        Ok(())
    }

    /// Puts a footer behind the last block, where the file ends then.
    pub(super) fn close(&self, footer: &Footer) -> Result<()> {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        if end.next != end.footer {
            let target = writable(&*self.sources[0])?;
            target.write_at(footer.as_bytes(), end.next)?;
            target.flush()?;
            target.set_len(end.next + SECTOR_SIZE)?;
            end.footer = end.next;
        }
        Ok(())
    }
}

impl Blocks for Vhd {
    fn can_write(&self) -> bool {
        match self {
            Self::Fixed { sources, .. } => sources[0].writable().is_some(),
            Self::Sparse(sparse) => sparse.sources[0].writable().is_some(),
        }
    }

    fn begun(&self) -> &Begun {
        match self {
            Self::Fixed { begun, .. } => begun,
            Self::Sparse(sparse) => &sparse.begun,
        }
    }

    fn begin(&self) -> Result<()> {
        match self {
            Self::Fixed { .. } => Ok(()),
            Self::Sparse(sparse) => sparse.find_end(),
        }
    }

    fn block(&self, offset: u64) -> Result<Range<u64>> {
        match self {
            Self::Fixed { length, .. } => Ok(0..*length),
            Self::Sparse(sparse) => {
                let start = offset / sparse.block_size * sparse.block_size;
                Ok(start..start + sparse.block_size)
            }
        }
    }

    fn place(&self, block: &Range<u64>) -> Result<NewPlace> {
        let Self::Sparse(sparse) = self else {
            return Err(damaged("a fixed disk has all of its blocks"));
        };
        let index = block.start / sparse.block_size;
        let sector = sparse.tables.be32(sparse.table_offset, index)?;
        if sector != ABSENT {
            let offset = u64::from(sector) * SECTOR_SIZE + sparse.bitmap_size;
            return Ok(NewPlace { source: 0, offset, is_fresh: false });
        }
        let mut end = sparse.end.lock().unwrap_or_else(PoisonError::into_inner);
        let offset = (end.next + sparse.bitmap_size).next_multiple_of(ALIGNMENT);
        let after = offset + sparse.block_size;
        if after / SECTOR_SIZE >= u64::from(ABSENT) {
            return Err(damaged("its file cannot be longer than 2 TiB"));
        }
        let length = after - end.next;
        sparse.reserve(&mut end, length)?;
        end.next = after;
        Ok(NewPlace { source: 0, offset, is_fresh: true })
    }

    fn refer(&self, block: &Range<u64>, place: NewPlace) -> Result<()> {
        let Self::Sparse(sparse) = self else { return Ok(()) };
        let bitmap = place.offset - sparse.bitmap_size;
        let sector = [0xff; SECTOR_SIZE as usize];
        let mut at = bitmap;
        while at < place.offset {
            sparse.bitmaps.change(at, &sector, Stage::First)?;
            at += SECTOR_SIZE;
        }
        if !place.is_fresh {
            return Ok(());
        }
        let entry = sparse.table_offset + block.start / sparse.block_size * 4;
        // Bounded when the place was given.
        let sector = (bitmap / SECTOR_SIZE) as u32;
        sparse.tables.change(entry, &sector.to_be_bytes(), Stage::Second)
    }

    fn changed(&self) -> u64 {
        match self {
            Self::Fixed { .. } => 0,
            Self::Sparse(sparse) => {
                let (tables, bitmaps) = (sparse.tables.changes(), sparse.bitmaps.changes());
                ((tables as u64) << 16) + bitmaps as u64 * SECTOR_SIZE
            }
        }
    }

    fn commit(&self) -> Result<()> {
        match self {
            Self::Fixed { sources, .. } => writable(&*sources[0])?.flush(),
            Self::Sparse(sparse) => {
                // Bytes that a bitmap adds to a block must be there before it.
                if sparse.bitmaps.changes() != 0 {
                    writable(&*sparse.sources[0])?.flush()?;
                }
                blocks::commit(&[&sparse.bitmaps, &sparse.tables])
            }
        }
    }

    fn end(&self) -> Result<()> {
        match self {
            Self::Fixed { .. } => Ok(()),
            Self::Sparse(sparse) => sparse.close(&sparse.footer),
        }
    }
}
