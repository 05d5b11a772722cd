//! Changes in place.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::{FREE, Header, Vdi, ZERO, damaged};
use crate::blocks::{self, Begun, Blocks, NewPlace};
use crate::cache::Stage;
use crate::create::writable;
use crate::source::read_vec;
use crate::{Format, Result, sys};

/// Bytes of the map that are read at once.
const PIECE: u64 = 1 << 20;

impl Vdi {
    /// How many blocks the map leads to, with those between them that nothing leads to.
    fn count_blocks(&self) -> Result<u64> {
        let mut count = 0;
        let end = self.map_offset + self.blocks * 4;
        for start in (self.map_offset..end).step_by(PIECE as usize) {
            let bytes = read_vec(&*self.sources[0], start, (end - start).min(PIECE) as usize)?;
            let (entries, _) = bytes.as_chunks();
            let entries = entries.iter().map(|entry| u32::from_le_bytes(*entry));
            let last = entries.filter(|&entry| entry != FREE && entry != ZERO).max();
            count = last.map_or(count, |last| count.max(u64::from(last) + 1));
        }
        Ok(count)
    }

    /// Looks where new blocks go, and removes from there what a crash left behind.
    pub(super) fn find_end(&self) -> Result<()> {
        let count = self.count_blocks()?.max(self.allocated.load(Ordering::Relaxed));
        let end = self.data_offset + count * self.stride();
        blocks::check_end(Format::Vdi, &*self.sources[0], end, self.stride())?;
        if self.sources[0].len() > end {
            // New blocks must begin as zeroes.
            writable(&*self.sources[0])?.set_len(end)?;
        }
        self.allocated.store(count, Ordering::Relaxed);
        Ok(())
    }
}

impl Blocks for Vdi {
    fn can_write(&self) -> bool {
        self.sources[0].writable().is_some()
    }

    fn begun(&self) -> &Begun {
        &self.begun
    }

    fn begin(&self) -> Result<()> {
        self.find_end()?;
        let target = writable(&*self.sources[0])?;
        // Children see by it that their parent was changed.
        let field = std::mem::offset_of!(Header, uuid_modify) as u64;
        target.write_at(&sys::uuid(), field)?;
        target.flush()
    }

    fn block(&self, offset: u64) -> Result<Range<u64>> {
        let start = offset / self.block_size * self.block_size;
        Ok(start..start + self.block_size)
    }

    fn place(&self, _block: &Range<u64>) -> Result<NewPlace> {
        let number = self.allocated.fetch_add(1, Ordering::Relaxed);
        if number >= ZERO.into() {
            return Err(damaged("it cannot have more blocks"));
        }
        let offset = self.data_offset + number * self.stride() + self.block_extra;
        Ok(NewPlace { source: 0, offset, is_fresh: true })
    }

    fn refer(&self, block: &Range<u64>, place: NewPlace) -> Result<()> {
        let number = (place.offset - self.block_extra - self.data_offset) / self.stride();
        let entry = self.map_offset + block.start / self.block_size * 4;
        // Bounded when the place was given.
        self.tables.change(entry, &(number as u32).to_le_bytes(), Stage::Second)?;
        // The count comes before the entry: VirtualBox puts the next block where it says.
        let count = self.allocated.load(Ordering::Relaxed) as u32;
        let field = std::mem::offset_of!(Header, blocks_allocated) as u64;
        self.header.change(field, &count.to_le_bytes(), Stage::First)
    }

    fn refer_zero(&self, block: &Range<u64>) -> Result<bool> {
        let entry = self.map_offset + block.start / self.block_size * 4;
        self.tables.change(entry, &ZERO.to_le_bytes(), Stage::Second)?;
        Ok(true)
    }

    fn changed(&self) -> u64 {
        (self.tables.changes() as u64) << 16
    }

    fn commit(&self) -> Result<()> {
        blocks::commit(&[&self.header, &self.tables])
    }

    fn end(&self) -> Result<()> {
        // The last block may not have been written to its end.
        let end = self.data_offset + self.allocated.load(Ordering::Relaxed) * self.stride();
        if self.sources[0].len() < end { writable(&*self.sources[0])?.set_len(end) } else { Ok(()) }
    }
}
