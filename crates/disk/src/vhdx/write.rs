//! Changes in place: the block allocation table changes through the log.

use std::ops::Range;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use zerocopy::IntoBytes;

use super::log::{self, Log};
use super::{FILE_OFFSET, FULLY_PRESENT, Vhdx, ZERO, damaged};
use crate::blocks::{Begun, Blocks, NewPlace};
use crate::cache::Stage;
use crate::create::writable;
use crate::{Result, sys};

/// Blocks begin at multiples of this.
pub(super) const ALIGNMENT: u64 = 1 << 20;
/// A log takes entries of several sectors.
const MIN_LOG: u64 = 64 << 10;

impl Vhdx {
    /// Where a block's entry lies.
    fn entry(&self, block: &Range<u64>) -> u64 {
        let number = block.start / self.metadata.block_size;
        self.bat.start + (number + number / self.chunk_ratio) * 8
    }
}

impl Blocks for Vhdx {
    fn can_write(&self) -> bool {
        self.sources[0].writable().is_some()
    }

    fn begun(&self) -> &Begun {
        &self.begun
    }

    fn begin(&self) -> Result<()> {
        let target = writable(&*self.sources[0])?;
        let mut header = self.header;
        let end = self.sources[0].len().next_multiple_of(ALIGNMENT);
        target.set_len(end)?;
        self.end.store(end, Ordering::Relaxed);
        let (start, length) = (header.log_offset.get(), u64::from(header.log_length.get()));
        let is_there = start.checked_add(length).is_some_and(|log_end| log_end <= end);
        if !is_there || length < MIN_LOG || !length.is_multiple_of(log::SECTOR as u64) {
            return Err(damaged("its log has a wrong place or length"));
        }
        let mut log = Log { offset: start, length, guid: sys::uuid(), head: 0, sequence_number: 0 };
        // From the moment that the header names the log, it must have an entry.
        log.append(&*self.sources[0], &[])?;
        header.log_guid = log.guid;
        // Those who keep copies or children of this file see that it is another one now.
        header.file_write_guid = sys::uuid();
        header.data_write_guid = sys::uuid();
        header.replace(&*self.sources[0])?;
        *self.log.lock().unwrap_or_else(PoisonError::into_inner) = Some((log, header));
        Ok(())
    }

    fn block(&self, offset: u64) -> Result<Range<u64>> {
        let start = offset / self.metadata.block_size * self.metadata.block_size;
        Ok(start..start + self.metadata.block_size)
    }

    fn place(&self, block: &Range<u64>) -> Result<NewPlace> {
        let entry = self.tables.le64(self.entry(block), 0)?;
        let offset = entry & FILE_OFFSET;
        if matches!(entry & 7, FULLY_PRESENT | super::PARTIALLY_PRESENT) && offset != 0 {
            return Ok(NewPlace { source: 0, offset, is_fresh: false });
        }
        let offset = self.end.fetch_add(self.metadata.block_size, Ordering::Relaxed);
        // The log promises that the file is at least this long.
        writable(&*self.sources[0])?.set_len(offset + self.metadata.block_size)?;
        Ok(NewPlace { source: 0, offset, is_fresh: true })
    }

    fn refer(&self, block: &Range<u64>, place: NewPlace) -> Result<()> {
        let entry = place.offset | FULLY_PRESENT;
        self.tables.change(self.entry(block), entry.as_bytes(), Stage::Second)
    }

    fn refer_zero(&self, block: &Range<u64>) -> Result<bool> {
        self.tables.change(self.entry(block), ZERO.as_bytes(), Stage::Second)?;
        Ok(true)
    }

    fn changed(&self) -> u64 {
        (self.tables.changes() * log::SECTOR) as u64
    }

    fn commit(&self) -> Result<()> {
        let target = writable(&*self.sources[0])?;
        target.flush()?;
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((log, _)) = &mut *log else { return Ok(()) };
        loop {
            let sectors = self.tables.changed_pages(log.capacity());
            if sectors.is_empty() {
                return Ok(());
            }
            log.append(&*self.sources[0], &sectors)?;
            let numbers: Vec<u64> =
                sectors.iter().map(|(offset, _)| offset / log::SECTOR as u64).collect();
            self.tables.write_pages(&numbers)?;
            target.flush()?;
        }
    }

    fn end(&self) -> Result<()> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((_, header)) = &mut *log else {
            return Err(damaged("its log was never begun"));
        };
        header.log_guid = [0; 16];
        header.replace(&*self.sources[0])
    }
}
