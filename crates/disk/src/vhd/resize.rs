//! Growing. The footer, one sector at the end, says how long the disk is: it is the last thing to change.

use std::sync::{Arc, PoisonError};

use zerocopy::IntoBytes;

use super::create::MAX_LENGTH;
use super::header::{DynamicHeader, Footer, checksum, damaged, unsupported};
use super::{ABSENT, Sparse};
use crate::create::writable;
use crate::resize::{copy, fill, zero};
use crate::source::{Source, read_struct};
use crate::{Result, SECTOR_SIZE};

/// Longest block allocation table that is made, in bytes.
const MAX_TABLE: u64 = 64 << 20;

/// Makes the disk longer, with zeroes.
pub(crate) fn grow(source: Arc<dyn Source>, length: u64) -> Result<()> {
    if length > MAX_LENGTH {
        return Err(unsupported("its disk would be longer than 2040 GiB"));
    }
    let footer = Footer::find(&*source)?;
    let mut longer = footer;
    longer.set_length(length);
    match footer.disk_type.get() {
        2 => grow_fixed(&*source, footer.disk_length(), &longer, length),
        3 | 4 => {
            let mut header: DynamicHeader = read_struct(&*source, footer.data_offset.get())?;
            header.check(footer.disk_length(), source.len())?;
            let sparse = Sparse::new(source, footer, &header);
            sparse.grow(&mut header, &longer, length)
        }
        other => Err(unsupported(format!("it is of type {other}"))),
    }
}

fn grow_fixed(source: &dyn Source, old: u64, longer: &Footer, length: u64) -> Result<()> {
    let end = source.len().saturating_sub(SECTOR_SIZE);
    if old > end || !source.len().is_multiple_of(SECTOR_SIZE) {
        return Err(damaged("its footer is not its last sector"));
    }
    // Where the geometry counted, there may be bytes that were no part of the disk.
    zero(source, old..end)?;
    let target = writable(source)?;
    target.flush()?;
    let footer = end.max(length);
    target.write_at(longer.as_bytes(), footer)?;
    target.flush()?;
    // The old footer has become a part of the disk.
    zero(source, end..(end + SECTOR_SIZE).min(footer))?;
    target.flush()
}

impl Sparse {
    fn grow(&self, header: &mut DynamicHeader, longer: &Footer, length: u64) -> Result<()> {
        let source = &*self.sources[0];
        let target = writable(source)?;
        let (old, entries) = (header.max_table_entries.get(), length.div_ceil(self.block_size));
        if entries * 4 > MAX_TABLE {
            return Err(unsupported("its disk would need larger blocks"));
        }
        self.find_end()?;
        self.clear_tail()?;
        if entries > old.into() {
            let table_end = self.table_offset + u64::from(old) * 4;
            let missing = (entries - u64::from(old)) * 4;
            // A table ends with its sector.
            if table_end + missing <= table_end.next_multiple_of(SECTOR_SIZE) {
                fill(source, table_end..table_end + missing, 0xff)?;
            } else {
                header.table_offset = self.move_table(u64::from(old) * 4, missing)?.into();
            }
            target.flush()?;
            // Bounded above. All that changes lies in the first sector of two.
            header.max_table_entries = (entries as u32).into();
            header.checksum = 0.into();
            header.checksum = checksum(header.as_bytes()).into();
            target.write_at(header.as_bytes(), self.footer.data_offset.get())?;
            target.flush()?;
        }
        let is_at_end = {
            let end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
            end.next == end.footer
        };
        if is_at_end {
            target.write_at(longer.as_bytes(), source.len() - SECTOR_SIZE)?;
        } else {
            self.close(longer)?;
        }
        target.flush()?;
        target.write_at(longer.as_bytes(), 0)?;
        target.flush()
    }

    /// What the last block has behind the disk's end becomes a part of the disk.
    fn clear_tail(&self) -> Result<()> {
        let length = self.footer.disk_length();
        let within = length % self.block_size;
        if within == 0 {
            return Ok(());
        }
        match self.tables.be32(self.table_offset, length / self.block_size)? {
            ABSENT => Ok(()),
            sector => {
                let block = u64::from(sector) * SECTOR_SIZE + self.bitmap_size;
                zero(&*self.sources[0], block + within..block + self.block_size)
            }
        }
    }

    /// Copies the table to where the next block would go, with so many bytes of entries more; returns where that is.
    fn move_table(&self, length: u64, more: u64) -> Result<u64> {
        let source = &*self.sources[0];
        let size = (length + more).next_multiple_of(SECTOR_SIZE);
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        self.reserve(&mut end, size)?;
        let table = end.next;
        copy(source, self.table_offset, table, length)?;
        fill(source, table + length..table + size, 0xff)?;
        end.next += size;
        Ok(table)
    }
}
