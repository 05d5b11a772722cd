//! Hyper-V's format ([MS-VHDX]).

mod crc32c;
mod create;
mod header;
mod log;
mod metadata;
mod resize;
mod write;

use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

pub(crate) use create::NewImage;
use header::{FileHeader, RegionTable, damaged};
use log::Log;
use metadata::Metadata;
pub(crate) use resize::grow;

use crate::Result;
use crate::blocks::{Begun, Blocks};
use crate::cache::Tables;
use crate::layer::{self, Cut, Layer, LayerWriter, Place, Run};
use crate::open::{Identity, Parsed};
use crate::source::{Source, largest};

/// States of a payload block (2.5.1.1).
const NOT_PRESENT: u64 = 0;
const UNDEFINED: u64 = 1;
const ZERO: u64 = 2;
const UNMAPPED: u64 = 3;
const FULLY_PRESENT: u64 = 6;
const PARTIALLY_PRESENT: u64 = 7;

/// Where an entry's offset lies; it counts in MiB, from bit 20.
const FILE_OFFSET: u64 = !0xf_ffff;

/// Sectors that one sector bitmap block covers.
const SECTORS_PER_BITMAP: u64 = 1 << 23;

struct Vhdx {
    tables: Tables,
    sources: [Arc<dyn Source>; 1],
    bat: Range<u64>,
    metadata: Metadata,
    /// Payload blocks that share a sector bitmap block.
    chunk_ratio: u64,
    header: FileHeader,
    log: Mutex<Option<(Log, FileHeader)>>,
    /// Where the next block goes.
    end: AtomicU64,
    begun: Begun,
}

pub(crate) fn parse(source: Arc<dyn Source>) -> Result<Parsed> {
    let (layer, has_log) = Vhdx::open(source)?;
    let Metadata { length, block_size, logical_sector, .. } = layer.metadata;
    let mut details = vec![("block-size", block_size.to_string())];
    details.push(("logical-sector-size", logical_sector.to_string()));
    if has_log {
        details.push(("log", "replayed".to_owned()));
    }
    let identity = Some(Identity::Uuid(layer.header.data_write_guid));
    let parent = layer.metadata.parent.clone();
    let mut parsed = Parsed::new(layer, length);
    (parsed.identity, parsed.parent, parsed.details) = (identity, parent, details);
    Ok(parsed)
}

impl Vhdx {
    /// An image, and whether its log had to be replayed.
    fn open(source: Arc<dyn Source>) -> Result<(Self, bool)> {
        let mut header = FileHeader::read(&*source)?;
        let replayed = log::replay(&header, source.clone())?;
        let has_log = replayed.is_some();
        let source = match (replayed, source.writable()) {
            (Some(replayed), None) => Arc::new(replayed),
            (replayed, Some(target)) if header.log_guid != [0; 16] => {
                if let Some(replayed) = replayed {
                    log::write_back(&replayed, target)?;
                }
                header.log_guid = [0; 16];
                header.replace(&*source)?;
                source
            }
            _ => source,
        };
        let regions = RegionTable::read(&*source)?;
        let metadata = Metadata::read(&*source, &regions.metadata)?;
        let sectors = SECTORS_PER_BITMAP * u64::from(metadata.logical_sector);
        let vhdx = Self {
            tables: Tables::with_pages(source.clone(), log::SECTOR),
            chunk_ratio: sectors / metadata.block_size,
            header,
            log: Mutex::new(None),
            end: AtomicU64::new(0),
            begun: Begun::default(),
            sources: [source],
            bat: regions.bat,
            metadata,
        };
        let end = vhdx.entries(vhdx.metadata.length) * 8;
        let Range { start, end: region_end } = vhdx.bat;
        if end > region_end - start || start + end > vhdx.sources[0].len() {
            return Err(damaged("its disk is longer than its block allocation table"));
        }
        Ok((vhdx, has_log))
    }

    /// Entries of the block allocation table of a disk so long, those of sector bitmaps between them (2.5).
    fn entries(&self, length: u64) -> u64 {
        let blocks = length.div_ceil(self.metadata.block_size);
        match self.metadata.parent {
            Some(_) => blocks.div_ceil(self.chunk_ratio) * (self.chunk_ratio + 1),
            None => blocks + blocks.saturating_sub(1) / self.chunk_ratio,
        }
    }

    fn step(&self, offset: u64) -> Result<Run> {
        let size = self.metadata.block_size;
        let (block, within) = (offset / size, offset % size);
        let end = (block + 1) * size;
        let chunk = block / self.chunk_ratio;
        let entry = self.tables.le64(self.bat.start, block + chunk)?;
        let stored = |within| Place::Stored { source: 0, offset: (entry & FILE_OFFSET) + within };
        let place = match entry & 7 {
            NOT_PRESENT => Place::Absent,
            UNDEFINED | ZERO | UNMAPPED => Place::Zero,
            FULLY_PRESENT => stored(within),
            PARTIALLY_PRESENT if self.metadata.parent.is_some() => {
                let sector = u64::from(self.metadata.logical_sector);
                let (is_here, sectors) = self.sectors(block, within / sector)?;
                let end = (block * size + (within / sector + sectors) * sector).min(end);
                let place = if is_here { stored(within) } else { Place::Absent };
                return Ok(Run { end, place });
            }
            other => return Err(damaged(format!("block {block} is in state {other}"))),
        };
        if matches!(place, Place::Stored { .. }) && entry & FILE_OFFSET == 0 {
            return Err(damaged(format!("block {block} lies over the file's header")));
        }
        Ok(Run { end, place })
    }

    /// Whether a sector of a partially present block is in this file, and how many from there on are
    /// the same.
    fn sectors(&self, block: u64, first: u64) -> Result<(bool, u64)> {
        let chunk = block / self.chunk_ratio;
        let entry = self.tables.le64(self.bat.start, (chunk + 1) * self.chunk_ratio + chunk)?;
        if entry & 7 != FULLY_PRESENT {
            return Err(damaged(format!("the sector bitmap of block {block} is missing")));
        }
        let per_block = self.metadata.block_size / u64::from(self.metadata.logical_sector);
        let start = block % self.chunk_ratio * per_block;
        let byte = |sector: u64| -> Result<u8> {
            let mut byte = [0];
            self.tables.read_at(&mut byte, (entry & FILE_OFFSET) + (start + sector) / 8)?;
            Ok(byte[0])
        };
        let is_here = |byte: u8, sector: u64| byte >> ((start + sector) % 8) & 1 == 1;
        let mut bits = byte(first)?;
        let wanted = is_here(bits, first);
        let uniform = if wanted { 0xff } else { 0 };
        let mut end = first + 1;
        while end < per_block {
            if (start + end).is_multiple_of(8) {
                bits = byte(end)?;
                if bits == uniform {
                    end += 8;
                    continue;
                }
            }
            if is_here(bits, end) != wanted {
                break;
            }
            end += 1;
        }
        Ok((wanted, end.min(per_block) - first))
    }
}

impl Layer for Vhdx {
    fn locate(&self, range: Range<u64>) -> Result<Run> {
        layer::join(range, |offset| self.step(offset))
    }

    fn sources(&self) -> &[Arc<dyn Source>] {
        &self.sources
    }

    fn cut(&self) -> Result<Option<Cut>> {
        let source = &*self.sources[0];
        let count = self.entries(self.metadata.length);
        let last = largest(source, self.bat.start, count, |entry| {
            let entry = u64::from_le_bytes(entry);
            let is_there = matches!(entry & 7, FULLY_PRESENT | PARTIALLY_PRESENT);
            if is_there { entry & FILE_OFFSET } else { 0 }
        })?;
        Ok(Cut::before(source, last, self.metadata.block_size))
    }

    fn writer(&self) -> Option<&dyn LayerWriter> {
        self.can_write().then_some(self)
    }

    fn block_size(&self) -> u64 {
        self.metadata.block_size
    }

    fn logical_block(&self) -> u32 {
        self.metadata.logical_sector
    }
}

/// Makes the checksums of headers and region tables right.
pub(crate) fn seal(image: &mut [u8]) {
    let headers = header::HEADERS.map(|start| (start as usize, header::HEADER_BYTES));
    let tables = header::REGION_TABLES.map(|start| (start as usize, header::REGION_TABLE_BYTES));
    for (start, size) in headers.into_iter().chain(tables) {
        if let Some(part) = image.get_mut(start..start + size) {
            header::seal(part);
        }
    }
}
