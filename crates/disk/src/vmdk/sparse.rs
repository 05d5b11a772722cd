//! Sparse extents of hosted products, and COWD of ESX.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{damaged, unsupported};
use crate::cache::Tables;
use crate::codec::Codec;
use crate::layer::{Cut, Grain, Place, Run};
use crate::source::{Source, largest, read_struct};
use crate::{Result, SECTOR_SIZE};

/// Line ends tell whether the file was changed as text on its way.
pub(super) const FLAG_NEW_LINES: u32 = 1 << 0;
/// There is a second grain directory with grain tables of its own.
pub(super) const FLAG_REDUNDANT: u32 = 1 << 1;
const FLAG_ZEROED_GRAINS: u32 = 1 << 2;
pub(super) const FLAG_COMPRESSED: u32 = 1 << 16;
pub(super) const FLAG_MARKERS: u32 = 1 << 17;

/// The grain directory is where the footer says.
pub(super) const DIRECTORY_AT_END: u64 = u64::MAX;
/// A grain table's entry: the grain is zeroes, if a flag says that there are such entries.
pub(super) const ZERO: u32 = 1;
/// Entries of a COWD's table, each of one sector at least.
const COWD_ENTRIES: u64 = 4096;

/// Bytes of grain tables, and entries of the grain directory, that are looked at for the end of an extent.
const MAX_TABLE_BYTES: u64 = 8 << 20;
const MAX_TABLES: usize = 1 << 18;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct SparseExtentHeader {
    pub magic_number: [u8; 4],
    pub version: U32,
    pub flags: U32,
    pub capacity: U64,
    pub grain_size: U64,
    pub descriptor_offset: U64,
    pub descriptor_size: U64,
    pub num_gtes_per_gt: U32,
    pub rgd_offset: U64,
    pub gd_offset: U64,
    pub over_head: U64,
    pub unclean_shutdown: u8,
    pub line_ends: [u8; 4],
    pub compress_algorithm: U16,
    pub pad: [u8; 433],
}

const _: () = assert!(size_of::<SparseExtentHeader>() == 512);

impl SparseExtentHeader {
    /// What the headers of all new extents have in common.
    pub fn new(version: u32, length: u64, grain: u64) -> Self {
        Self {
            magic_number: *b"KDMV",
            version: version.into(),
            flags: 0.into(),
            capacity: (length / SECTOR_SIZE).into(),
            grain_size: (grain / SECTOR_SIZE).into(),
            descriptor_offset: 0.into(),
            descriptor_size: 0.into(),
            num_gtes_per_gt: 512.into(),
            rgd_offset: 0.into(),
            gd_offset: 0.into(),
            over_head: 0.into(),
            unclean_shutdown: 0,
            line_ends: *b"\n \r\n",
            compress_algorithm: 0.into(),
            pad: [0; 433],
        }
    }
}

#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct CowdHeader {
    magic_number: [u8; 4],
    version: U32,
    flags: U32,
    num_sectors: U32,
    grain_size: U32,
    gd_offset: U32,
    num_gd_entries: U32,
    free_sector: U32,
}

/// What precedes a compressed grain.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct GrainMarker {
    pub lba: U64,
    pub size: U32,
}

pub(super) struct Sparse {
    pub tables: Tables,
    pub length: u64,
    pub grain_size: u64,
    /// Where the descriptor lies, if one is embedded.
    pub descriptor: Option<Range<u64>>,
    pub gd_offset: u64,
    /// The second grain directory, if there is one.
    pub rgd_offset: Option<u64>,
    /// Entries of a grain table.
    pub entries: u64,
    pub zeroed_grains: bool,
    pub compressed: bool,
    /// Not COWD.
    pub is_hosted: bool,
    /// Where the next grain goes, once the disk is changed.
    pub end: AtomicU64,
}

impl Sparse {
    pub fn hosted(source: Arc<dyn Source>) -> Result<Self> {
        let mut header: SparseExtentHeader = read_struct(&*source, 0)?;
        if header.gd_offset.get() == DIRECTORY_AT_END {
            let footer = source.len().checked_sub(1024);
            let footer = footer.ok_or_else(|| damaged("its footer is missing"))?;
            header = read_struct(&*source, footer)?;
            if &header.magic_number != b"KDMV" {
                return Err(damaged("its footer is missing: it was not written to the end"));
            }
        }
        if !(1..=3).contains(&header.version.get()) {
            return Err(unsupported(format!("its version is {}", header.version.get())));
        }
        let flags = header.flags.get();
        let compressed = flags & FLAG_COMPRESSED != 0;
        if compressed && (header.compress_algorithm.get() != 1 || flags & FLAG_MARKERS == 0) {
            return Err(unsupported("its compression is not deflate with markers"));
        }
        let entries = u64::from(header.num_gtes_per_gt.get());
        if !(1..=1 << 16).contains(&entries) {
            return Err(damaged(format!("its grain tables cannot have {entries} entries")));
        }
        let descriptor = match (header.descriptor_offset.get(), header.descriptor_size.get()) {
            (0, _) | (_, 0) => None,
            (offset, size) => {
                let range = bytes(offset).zip(bytes(size));
                let range = range.and_then(|(start, size)| Some(start..start.checked_add(size)?));
                Some(range.ok_or_else(|| damaged("its descriptor lies past every file's end"))?)
            }
        };
        Self {
            tables: Tables::new(source),
            length: 0,
            grain_size: 0,
            descriptor,
            gd_offset: bytes(header.gd_offset.get()).unwrap_or(u64::MAX),
            rgd_offset: (flags & FLAG_REDUNDANT != 0)
                .then(|| bytes(header.rgd_offset.get()))
                .flatten()
                .filter(|&offset| offset != 0),
            is_hosted: true,
            end: AtomicU64::new(0),
            entries,
            zeroed_grains: flags & FLAG_ZEROED_GRAINS != 0,
            compressed,
        }
        .checked(header.capacity.get(), header.grain_size.get())
    }

    pub fn cowd(source: Arc<dyn Source>) -> Result<Self> {
        let header: CowdHeader = read_struct(&*source, 0)?;
        if header.version.get() != 1 {
            return Err(unsupported(format!("its version is {}", header.version.get())));
        }
        Self {
            tables: Tables::new(source),
            length: 0,
            grain_size: 0,
            descriptor: None,
            gd_offset: u64::from(header.gd_offset.get()) * SECTOR_SIZE,
            rgd_offset: None,
            is_hosted: false,
            end: AtomicU64::new(0),
            entries: COWD_ENTRIES,
            zeroed_grains: false,
            compressed: false,
        }
        .checked(header.num_sectors.get().into(), header.grain_size.get().into())
    }

    fn checked(mut self, sectors: u64, grain_sectors: u64) -> Result<Self> {
        if !(1..=1 << 16).contains(&grain_sectors) {
            return Err(damaged(format!("its grains cannot have {grain_sectors} sectors")));
        }
        self.grain_size = grain_sectors * SECTOR_SIZE;
        self.length = bytes(sectors)
            .filter(|&length| length <= crate::open::MAX_LENGTH)
            .ok_or_else(|| damaged("its disk is longer than any can be"))?;
        let tables = self.length.div_ceil(self.covered());
        let end = tables.checked_mul(4).and_then(|size| self.gd_offset.checked_add(size));
        if end.is_none_or(|end| end > self.tables.source().len()) {
            return Err(damaged("its grain directory passes the end of the file"));
        }
        Ok(self)
    }

    /// Bytes that a grain table covers.
    pub fn covered(&self) -> u64 {
        self.grain_size * self.entries
    }

    pub fn step(&self, offset: u64) -> Result<Run> {
        let index = offset / self.covered();
        let table = self.tables.le32(self.gd_offset, index)?;
        if table == 0 {
            return Ok(Run { end: (index + 1) * self.covered(), place: Place::Absent });
        }
        let within = offset % self.grain_size;
        let start = offset - within;
        let table = u64::from(table) * SECTOR_SIZE;
        let entry = self.tables.le32(table, offset % self.covered() / self.grain_size)?;
        let place = match entry {
            0 => Place::Absent,
            ZERO if self.zeroed_grains => Place::Zero,
            sector if self.compressed => {
                Place::Packed(self.packed(u64::from(sector) * SECTOR_SIZE, start)?)
            }
            sector => Place::Stored { source: 0, offset: u64::from(sector) * SECTOR_SIZE + within },
        };
        Ok(Run { end: start + self.grain_size, place })
    }

    /// By the grain tables of the disk's end, which is where an image that was filled in order has its last grains.
    pub fn cut(&self) -> Result<Option<Cut>> {
        let source = &**self.tables.source();
        let number = |entry| u32::from_le_bytes(entry).into();
        let size = self.entries * 4;
        let mut last = 0;
        let mut left = MAX_TABLE_BYTES / size;
        for index in (0..self.length.div_ceil(self.covered())).rev().take(MAX_TABLES) {
            let table = u64::from(self.tables.le32(self.gd_offset, index)?) * SECTOR_SIZE;
            if table == 0 {
                continue;
            }
            if table.saturating_add(size) > source.len() {
                return Ok(Cut::before(source, table.max(source.len()), size));
            }
            last = largest(source, table, self.entries, number)?.max(last);
            left -= 1;
            if left == 0 {
                break;
            }
        }
        let size = if self.compressed { SECTOR_SIZE } else { self.grain_size };
        Ok(Cut::before(source, last * SECTOR_SIZE, size))
    }

    fn packed(&self, offset: u64, start: u64) -> Result<Grain> {
        // Read past the tables' pages: it lies among the guest's bytes.
        let marker: GrainMarker = read_struct(&**self.tables.source(), offset)?;
        let most = self.grain_size * 2 + SECTOR_SIZE;
        if marker.lba.get() != start / SECTOR_SIZE || u64::from(marker.size.get()) > most {
            return Err(damaged(format!("the grain of {start} is not at {offset}")));
        }
        Ok(Grain {
            source: 0,
            offset: offset + size_of::<GrainMarker>() as u64,
            length: marker.size.get(),
            codec: Codec::Zlib,
            start,
            // The last grain of a disk is packed whole, too.
            size: self.grain_size as u32,
        })
    }
}

fn bytes(sectors: u64) -> Option<u64> {
    sectors.checked_mul(SECTOR_SIZE)
}
