//! seSparse, the format of snapshots on VMFS 6 (QEMU, block/vmdk.c).

use std::sync::Arc;

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{damaged, unsupported};
use crate::cache::Tables;
use crate::layer::{Place, Run};
use crate::source::{Source, read_struct};
use crate::{Result, SECTOR_SIZE};

pub(super) const MAGIC: u64 = 0xcafe_babe;
const VERSION: u64 = 0x0000_0002_0000_0001;
const VOLATILE_MAGIC: u64 = 0xcafe_cafe;

/// Kinds of entries of both levels, their top four bits.
const UNALLOCATED: u64 = 0;
const TABLE: u64 = 1;
const UNMAPPED: u64 = 1;
const ZERO: u64 = 2;
const ALLOCATED: u64 = 3;

/// All numbers of sectors.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ConstHeader {
    pub magic: U64,
    pub version: U64,
    pub capacity: U64,
    pub grain_size: U64,
    pub grain_table_size: U64,
    pub flags: U64,
    pub reserved: [U64; 4],
    pub volatile_header_offset: U64,
    pub volatile_header_size: U64,
    pub journal_header_offset: U64,
    pub journal_header_size: U64,
    pub journal_offset: U64,
    pub journal_size: U64,
    pub grain_dir_offset: U64,
    pub grain_dir_size: U64,
    pub grain_tables_offset: U64,
    pub grain_tables_size: U64,
    pub free_bitmap_offset: U64,
    pub free_bitmap_size: U64,
    pub backmap_offset: U64,
    pub backmap_size: U64,
    pub grains_offset: U64,
    pub grains_size: U64,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct VolatileHeader {
    pub magic: U64,
    pub free_gt_number: U64,
    pub next_txn_seq_number: U64,
    pub replay_journal: U64,
}

pub(super) struct SeSparse {
    tables: Tables,
    pub length: u64,
    pub grain_size: u64,
    directory: u64,
    grain_tables: u64,
    table_bytes: u64,
    grains: u64,
}

impl SeSparse {
    pub fn open(source: Arc<dyn Source>) -> Result<Self> {
        let header: ConstHeader = read_struct(&*source, 0)?;
        if header.magic.get() != MAGIC || header.version.get() != VERSION {
            return Err(unsupported(format!(
                "its seSparse version is {:#x}",
                header.version.get()
            )));
        }
        if header.flags.get() != 0 {
            return Err(unsupported("its seSparse flags are not known"));
        }
        let grain_sectors = header.grain_size.get();
        let table_sectors = header.grain_table_size.get();
        if !(1..=1 << 16).contains(&grain_sectors) || !(1..=1 << 16).contains(&table_sectors) {
            return Err(damaged("its grains or grain tables have a wrong size"));
        }
        let bytes = |sectors: U64| {
            let bytes = sectors.get().checked_mul(SECTOR_SIZE);
            bytes.filter(|&bytes| bytes <= crate::open::MAX_LENGTH)
        };
        let bytes =
            |sectors| bytes(sectors).ok_or_else(|| damaged("its header's numbers are wrong"));
        let volatile: VolatileHeader =
            read_struct(&*source, bytes(header.volatile_header_offset)?)?;
        if volatile.magic.get() != VOLATILE_MAGIC {
            return Err(damaged("its volatile header is missing"));
        }
        if volatile.replay_journal.get() != 0 {
            return Err(unsupported(
                "its journal was not replayed: power the VM on and off on ESXi",
            ));
        }
        let extent = Self {
            tables: Tables::new(source),
            length: bytes(header.capacity)?,
            grain_size: grain_sectors * SECTOR_SIZE,
            directory: bytes(header.grain_dir_offset)?,
            grain_tables: bytes(header.grain_tables_offset)?,
            table_bytes: table_sectors * SECTOR_SIZE,
            grains: bytes(header.grains_offset)?,
        };
        let directory = extent.length.div_ceil(extent.covered()) * 8;
        if extent.directory + directory > extent.tables.source().len() {
            return Err(damaged("its grain directory passes the end of the file"));
        }
        Ok(extent)
    }

    /// Bytes that a grain table covers.
    fn covered(&self) -> u64 {
        self.grain_size * (self.table_bytes / 8)
    }

    pub fn step(&self, offset: u64) -> Result<Run> {
        let index = offset / self.covered();
        let entry = self.tables.le64(self.directory, index)?;
        let table = match entry >> 60 {
            UNALLOCATED if entry == 0 => {
                return Ok(Run { end: (index + 1) * self.covered(), place: Place::Absent });
            }
            TABLE if entry << 4 >> 36 == 0 => {
                self.grain_tables + (entry & u64::from(u32::MAX)) * self.table_bytes
            }
            _ => return Err(damaged(format!("its grain directory holds {entry:#x}"))),
        };
        let within = offset % self.grain_size;
        let entry = self.tables.le64(table, offset % self.covered() / self.grain_size)?;
        let place = match entry >> 60 {
            UNALLOCATED if entry == 0 => Place::Absent,
            UNMAPPED | ZERO => Place::Zero,
            ALLOCATED => {
                // The upper twelve bits of the grain's number come first.
                let grain = (entry >> 48 & 0xfff) | (entry & 0xffff_ffff_ffff) << 12;
                let offset = grain
                    .checked_mul(self.grain_size)
                    .and_then(|offset| offset.checked_add(self.grains + within));
                let offset = offset.ok_or_else(|| damaged("a grain lies past every file's end"))?;
                Place::Stored { source: 0, offset }
            }
            _ => return Err(damaged(format!("its grain table holds {entry:#x}"))),
        };
        Ok(Run { end: offset - within + self.grain_size, place })
    }
}
