//! Growing: the block allocation table first, the disk's length in the metadata last.

use std::ops::Range;
use std::sync::Arc;

use super::header::{RegionTable, unsupported};
use super::metadata::MAX_LENGTH;
use super::write::ALIGNMENT;
use super::{FILE_OFFSET, FULLY_PRESENT, PARTIALLY_PRESENT, Vhdx};
use crate::create::writable;
use crate::resize::{copy, zero};
use crate::source::Source;
use crate::{Result, sys};

/// Makes the disk longer, with zeroes.
pub(crate) fn grow(source: Arc<dyn Source>, length: u64) -> Result<()> {
    let (mut vhdx, _) = Vhdx::open(source.clone())?;
    if length > MAX_LENGTH || !length.is_multiple_of(vhdx.metadata.logical_sector.into()) {
        return Err(unsupported(format!("its disk cannot have {length} bytes")));
    }
    let target = writable(&*source)?;
    // Those who keep copies of this file see that it is another one now. Its data are the same, also to its children.
    vhdx.header.file_write_guid = sys::uuid();
    let mut header = vhdx.header;
    header.replace(&*source)?;
    vhdx.clear_tail()?;
    let mut end = source.len().next_multiple_of(ALIGNMENT);
    let (entries, wanted) = (vhdx.entries(vhdx.metadata.length) * 8, vhdx.entries(length) * 8);
    let Range { start, end: bat_end } = vhdx.bat;
    let is_moved = wanted > bat_end - start;
    if is_moved {
        vhdx.bat = end..end + wanted.next_multiple_of(ALIGNMENT);
        copy(&*source, start, vhdx.bat.start, entries)?;
    }
    // The region may be longer than the file until now.
    end = end.max((vhdx.bat.start + wanted).next_multiple_of(ALIGNMENT));
    target.set_len(end)?;
    vhdx.clear_entries(wanted)?;
    if vhdx.metadata.is_fixed {
        vhdx.allocate(length, end)?;
    }
    target.flush()?;
    if is_moved {
        RegionTable::read(&*source)?.move_bat(&*source, &vhdx.bat)?;
    }
    target.write_at(&length.to_le_bytes(), vhdx.metadata.length_offset)?;
    target.flush()
}

impl Vhdx {
    /// What the last block has behind the disk's end becomes a part of the disk.
    fn clear_tail(&self) -> Result<()> {
        let size = self.metadata.block_size;
        let (block, within) = (self.metadata.length / size, self.metadata.length % size);
        if within == 0 {
            return Ok(());
        }
        let entry = self.tables.le64(self.bat.start, block + block / self.chunk_ratio)?;
        let place = entry & FILE_OFFSET;
        match entry & 7 {
            FULLY_PRESENT | PARTIALLY_PRESENT if place != 0 => {
                zero(&*self.sources[0], place + within..place + size)
            }
            _ => Ok(()),
        }
    }

    /// Makes the entries of new blocks say that these are not present. `end` is where the table ends.
    fn clear_entries(&self, end: u64) -> Result<()> {
        let blocks = self.metadata.length.div_ceil(self.metadata.block_size);
        let chunk = blocks / self.chunk_ratio;
        let first = (blocks + chunk) * 8;
        // The sector bitmap of a chunk that has blocks already stays.
        let bitmap = if blocks.is_multiple_of(self.chunk_ratio) {
            first
        } else {
            ((chunk + 1) * self.chunk_ratio + chunk) * 8
        };
        let after = if bitmap == first { bitmap } else { bitmap + 8 };
        for range in [first..bitmap.min(end), after..end] {
            zero(&*self.sources[0], self.bat.start + range.start..self.bat.start + range.end)?;
        }
        Ok(())
    }

    /// Gives all blocks from the disk's old end to its new one places from `end` on.
    fn allocate(&self, length: u64, mut end: u64) -> Result<()> {
        let size = self.metadata.block_size;
        let target = writable(&*self.sources[0])?;
        let blocks = self.metadata.length.div_ceil(size)..length.div_ceil(size);
        target.set_len(end + (blocks.end - blocks.start) * size)?;
        for block in blocks {
            let entry = end | FULLY_PRESENT;
            let at = self.bat.start + (block + block / self.chunk_ratio) * 8;
            target.write_at(&entry.to_le_bytes(), at)?;
            end += size;
        }
        Ok(())
    }
}
