use std::sync::Arc;

use zerocopy::IntoBytes;

use super::DESCRIPTOR_SECTORS;
use crate::cache::{Stage, Tables};
use crate::create::writable;
use crate::source::Source;
use crate::vmdk::sparse::{FLAG_NEW_LINES, FLAG_REDUNDANT, SparseExtentHeader};
use crate::vmdk::unsupported;
use crate::{Result, SECTOR_SIZE};

/// Entries of a grain table, in every extent that VMware reads.
pub(super) const ENTRIES: u64 = 512;
/// Bytes of a grain table.
pub(super) const TABLE: u64 = ENTRIES * 4;
/// Tables that are changed but not written take at most this much memory.
const MAX_CHANGED: usize = 64;

/// A new sparse extent, all of whose grain tables exist from the start, twice.
pub(super) struct SparsePart {
    tables: Tables,
    grain: u64,
    /// Where the grain tables of either kind lie, one after the other.
    grain_tables: [u64; 2],
    next: u64,
}

impl SparsePart {
    pub fn new(source: Arc<dyn Source>, length: u64, grain: u64, descriptor: &str) -> Result<Self> {
        let count = length.div_ceil(grain * ENTRIES);
        let directory = (count * 4).next_multiple_of(SECTOR_SIZE);
        let descriptor_sectors = if descriptor.is_empty() { 0 } else { DESCRIPTOR_SECTORS };
        let directories = [0, 1].map(|number| {
            (1 + descriptor_sectors) * SECTOR_SIZE + number * (directory + count * TABLE)
        });
        let grain_tables = directories.map(|start| start + directory);
        let overhead = (grain_tables[1] + count * TABLE).next_multiple_of(grain);
        if (overhead + length.next_multiple_of(grain)) / SECTOR_SIZE > u64::from(u32::MAX) {
            return Err(unsupported("a sparse extent holds less than 2 TiB"));
        }
        let header = SparseExtentHeader {
            flags: (FLAG_NEW_LINES | FLAG_REDUNDANT).into(),
            descriptor_offset: u64::from(descriptor_sectors != 0).into(),
            descriptor_size: descriptor_sectors.into(),
            rgd_offset: (directories[0] / SECTOR_SIZE).into(),
            gd_offset: (directories[1] / SECTOR_SIZE).into(),
            over_head: (overhead / SECTOR_SIZE).into(),
            ..SparseExtentHeader::new(1, length, grain)
        };
        let target = writable(&*source)?;
        target.set_len(overhead)?;
        for (start, tables) in directories.into_iter().zip(grain_tables) {
            let entries: Vec<u8> = (0..count)
                // Less than 2 TiB, so it fits.
                .flat_map(|number| (((tables + number * TABLE) / SECTOR_SIZE) as u32).to_le_bytes())
                .collect();
            target.write_at(&entries, start)?;
        }
        target.write_at(descriptor.as_bytes(), SECTOR_SIZE)?;
        target.write_at(header.as_bytes(), 0)?;
        Ok(Self { tables: Tables::new(source), grain, grain_tables, next: overhead })
    }

    /// Takes the grains for `length` bytes from `start`; returns where the first lies.
    pub fn place(&mut self, start: u64, length: u64) -> Result<u64> {
        let first = self.next;
        let count = length.div_ceil(self.grain);
        for number in 0..count {
            let sector = (first + number * self.grain) / SECTOR_SIZE;
            let entry = (start / self.grain + number) * 4;
            for table in self.grain_tables {
                let sector = (sector as u32).to_le_bytes();
                self.tables.change(table + entry, &sector, Stage::Second)?;
            }
            if self.tables.changes() > MAX_CHANGED {
                self.tables.write_back(Stage::Second)?;
            }
        }
        self.next = first + count * self.grain;
        Ok(first)
    }

    pub fn finish(&mut self) -> Result<()> {
        self.tables.write_back(Stage::Second)?;
        let source = self.tables.source();
        writable(&**source)?.set_len(self.next.max(source.len()))
    }
}
