//! New disks.

use std::ops::Range;
use std::sync::Arc;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use super::header::{self, FileHeader, HEADERS, LOG_LENGTH, REGION_TABLES, unsupported};
use super::{FULLY_PRESENT, SECTORS_PER_BITMAP, metadata};
use crate::cache::{Stage, Tables};
use crate::create::{Builder, Files, Placed, writable};
use crate::source::Source;
use crate::{CreateOptions, Layout, Preallocation, Result, SECTOR_SIZE, raw};

const MIB: u64 = 1 << 20;
/// Regions, all aligned to 1 MiB.
const LOG: u64 = MIB;
const METADATA: u64 = 2 * MIB;
const BAT: u64 = 3 * MIB;
/// Usual bytes of a block.
const BLOCK: u64 = 8 << 20;
/// Tables that are changed but not written take at most this many pages.
const MAX_CHANGED: usize = 64;

/// A new disk.
pub(crate) struct NewImage {
    sources: [Arc<dyn Source>; 1],
    bat: Tables,
    block_size: u64,
    chunk_ratio: u64,
    /// Where the data of a fixed disk begin.
    fixed: Option<u64>,
    end: u64,
}

impl NewImage {
    pub fn new(files: &Files, options: &CreateOptions) -> Result<Self> {
        if options.length > metadata::MAX_LENGTH {
            return Err(unsupported("its disk would be longer than 64 TiB"));
        }
        let block_size = options.block_size(BLOCK, MIB..=256 * MIB)?;
        let chunk_ratio = SECTORS_PER_BITMAP * SECTOR_SIZE / block_size;
        let blocks = options.length.div_ceil(block_size);
        let entries = blocks + blocks.saturating_sub(1) / chunk_ratio;
        let bat_length = (entries * 8).max(1).next_multiple_of(MIB);
        let data = BAT + bat_length;
        let is_fixed = options.layout == Layout::Fixed;
        let source = files.main()?;
        let target = writable(&source)?;
        if is_fixed {
            let length = data + blocks * block_size;
            raw::prepare(&source, length, Preallocation::Off, Layout::Fixed)?;
        } else {
            target.set_len(data)?;
        }
        // A disk of the greatest length has a table of at most 512 MiB.
        let bat = BAT..data;
        target.write_at(
            &header::new_region_table(&bat, &(METADATA..METADATA + MIB)),
            REGION_TABLES[0],
        )?;
        target.write_at(
            &header::new_region_table(&bat, &(METADATA..METADATA + MIB)),
            REGION_TABLES[1],
        )?;
        let parameters = [U32::new(block_size as u32), U32::new(is_fixed.into())];
        target.write_at(&metadata::new(parameters, options.length), METADATA)?;
        let mut file_header = FileHeader::new(LOG, LOG_LENGTH);
        for (number, offset) in HEADERS.into_iter().enumerate() {
            file_header.sequence_number = U64::new(number as u64 + 1);
            target.write_at(&file_header.to_sector(), offset)?;
        }
        let creator: Vec<u8> = "Omnivisor".encode_utf16().flat_map(u16::to_le_bytes).collect();
        target.write_at(&[&b"vhdxfile"[..], &creator].concat(), 0)?;
        let source: Arc<dyn Source> = Arc::new(source);
        let mut new = Self {
            bat: Tables::new(source.clone()),
            sources: [source],
            block_size,
            chunk_ratio,
            fixed: None,
            end: data,
        };
        if is_fixed {
            new.place(0..options.length)?;
            new.fixed = Some(data);
        }
        Ok(new)
    }
}

impl Builder for NewImage {
    fn block_size(&self) -> u64 {
        self.block_size
    }

    fn sources(&self) -> &[Arc<dyn Source>] {
        &self.sources
    }

    fn place(&mut self, range: Range<u64>) -> Result<Placed> {
        let length = range.end - range.start;
        if let Some(data) = self.fixed {
            return Ok(Placed { source: 0, offset: data + range.start, length });
        }
        let offset = self.end;
        let first = range.start / self.block_size;
        for number in 0..length.div_ceil(self.block_size) {
            let block = first + number;
            let entry = self.end | FULLY_PRESENT;
            let at = BAT + (block + block / self.chunk_ratio) * 8;
            self.bat.change(at, entry.as_bytes(), Stage::Second)?;
            self.end += self.block_size;
            if self.bat.changes() > MAX_CHANGED {
                self.bat.write_back(Stage::Second)?;
            }
        }
        Ok(Placed { source: 0, offset, length })
    }

    fn finish(&mut self) -> Result<()> {
        self.bat.write_back(Stage::Second)?;
        let target = writable(&*self.sources[0])?;
        target.set_len(self.end)?;
        target.flush()
    }
}
