//! New disks.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use zerocopy::IntoBytes;

use super::header::{DynamicHeader, Footer, Locator, checksum, unsupported};
use super::{ABSENT, bitmap_size};
use crate::cache::{Stage, Tables};
use crate::create::{Builder, Files, Placed, writable};
use crate::source::Source;
use crate::{CreateOptions, Layout, Preallocation, Result, SECTOR_SIZE, raw, sys};

/// Longest disk that the entries of a table can lead to with some room for bitmaps (2040 GiB, as in
/// Hyper-V).
pub(super) const MAX_LENGTH: u64 = 2040 << 30;
/// Where a dynamic disk's header and table lie.
const HEADER: u64 = 512;
const TABLE: u64 = HEADER + 1024;
/// Guests' bytes are aligned to this.
const ALIGNMENT: u64 = 4096;
/// Seconds from 1970 to 2000, from which the format counts.
const EPOCH: Duration = Duration::from_secs(946_684_800);

/// A new disk.
pub(crate) struct NewImage {
    sources: [Arc<dyn Source>; 1],
    footer: Footer,
    dynamic: Option<Dynamic>,
}

struct Dynamic {
    table: Tables,
    block_size: u64,
    /// Where the file ends before its footer.
    end: u64,
}

impl NewImage {
    pub fn new(files: &Files, options: &CreateOptions) -> Result<Self> {
        if options.length > MAX_LENGTH {
            return Err(unsupported("its disk would be longer than 2040 GiB"));
        }
        let block_size = options.block_size(2 << 20, 512 << 10..=64 << 20)?;
        let is_fixed = options.layout == Layout::Fixed;
        let footer = footer(options.length, is_fixed);
        let source = files.main()?;
        if is_fixed {
            raw::prepare(&source, options.length, Preallocation::Off, Layout::Fixed)?;
            writable(&source)?.write_at(footer.as_bytes(), options.length)?;
            return Ok(Self { sources: [Arc::new(source)], footer, dynamic: None });
        }
        let blocks = options.length.div_ceil(block_size);
        let mut header = DynamicHeader {
            cookie: *b"cxsparse",
            data_offset: u64::MAX.into(),
            table_offset: TABLE.into(),
            header_version: 0x0001_0000.into(),
            // A disk of the greatest length has not more blocks than fit, nor larger ones.
            max_table_entries: (blocks as u32).into(),
            block_size: (block_size as u32).into(),
            checksum: 0.into(),
            parent_unique_id: [0; 16],
            parent_time_stamp: 0.into(),
            reserved: 0.into(),
            parent_unicode_name: [0.into(); 256],
            parent_locators: [Locator::default(); 8],
            reserved_end: [0; 256],
        };
        header.checksum = checksum(header.as_bytes()).into();
        let table = vec![0xff; (blocks as usize * 4).next_multiple_of(SECTOR_SIZE as usize)];
        let end = TABLE + table.len() as u64;
        let target = writable(&source)?;
        target.write_at(footer.as_bytes(), 0)?;
        target.write_at(header.as_bytes(), HEADER)?;
        target.write_at(&table, TABLE)?;
        let source: Arc<dyn Source> = Arc::new(source);
        let table = Tables::new(source.clone());
        let dynamic = Some(Dynamic { table, block_size, end });
        Ok(Self { sources: [source], footer, dynamic })
    }
}

impl Builder for NewImage {
    fn block_size(&self) -> u64 {
        self.dynamic.as_ref().map_or(ALIGNMENT, |dynamic| dynamic.block_size)
    }

    fn sources(&self) -> &[Arc<dyn Source>] {
        &self.sources
    }

    fn place(&mut self, range: Range<u64>) -> Result<Placed> {
        let length = range.end - range.start;
        let Some(dynamic) = &mut self.dynamic else {
            return Ok(Placed { source: 0, offset: range.start, length });
        };
        let bitmap = bitmap_size(dynamic.block_size);
        let data = (dynamic.end + bitmap).next_multiple_of(ALIGNMENT);
        let sector = u32::try_from((data - bitmap) / SECTOR_SIZE).ok().filter(|&at| at != ABSENT);
        let sector = sector.ok_or_else(|| unsupported("its file would be longer than 2 TiB"))?;
        writable(&*self.sources[0])?.write_at(&vec![0xff; bitmap as usize], data - bitmap)?;
        let entry = TABLE + range.start / dynamic.block_size * 4;
        dynamic.table.change(entry, &sector.to_be_bytes(), Stage::Second)?;
        dynamic.end = data + dynamic.block_size;
        Ok(Placed { source: 0, offset: data, length: length.min(dynamic.block_size) })
    }

    fn finish(&mut self) -> Result<()> {
        let target = writable(&*self.sources[0])?;
        if let Some(dynamic) = &mut self.dynamic {
            dynamic.table.write_back(Stage::Second)?;
            target.set_len(dynamic.end)?;
            target.write_at(self.footer.as_bytes(), dynamic.end)?;
        }
        target.flush()
    }
}

fn footer(length: u64, is_fixed: bool) -> Footer {
    let now = SystemTime::now().duration_since(UNIX_EPOCH + EPOCH).unwrap_or_default();
    let mut footer = Footer {
        cookie: *b"conectix",
        features: 2.into(),
        file_format_version: 0x0001_0000.into(),
        data_offset: if is_fixed { u64::MAX } else { HEADER }.into(),
        time_stamp: u32::try_from(now.as_secs()).unwrap_or(u32::MAX).into(),
        creator_application: [0; 4],
        creator_version: 0x000a_0000.into(),
        creator_host_os: u32::from_be_bytes(*b"Wi2k").into(),
        original_size: length.into(),
        current_size: 0.into(),
        cylinders: 0.into(),
        heads: 0,
        sectors_per_track: 0,
        disk_type: if is_fixed { 2 } else { 3 }.into(),
        checksum: 0.into(),
        unique_id: sys::uuid(),
        saved_state: 0,
        reserved: [0; 427],
    };
    footer.set_length(length);
    footer
}

impl Footer {
    /// Says how long the disk is.
    pub(super) fn set_length(&mut self, length: u64) {
        let (cylinders, heads, sectors_per_track) = geometry(length / SECTOR_SIZE);
        self.current_size = length.into();
        (self.cylinders, self.heads) = (cylinders.into(), heads);
        self.sectors_per_track = sectors_per_track;
        // Other programs take the length from the geometry unless a creator that they know says that
        // the size is right; Windows is known to all.
        self.creator_application = *b"win ";
        self.checksum = 0.into();
        self.checksum = checksum(self.as_bytes()).into();
    }
}

/// Cylinders, heads and sectors per track (the specification's appendix).
fn geometry(sectors: u64) -> (u16, u8, u8) {
    let sectors = sectors.min(65535 * 16 * 255);
    let (per_track, heads) = if sectors >= 65535 * 16 * 63 {
        (255, 16)
    } else {
        let heads = (sectors / 17).div_ceil(1024).max(4);
        if sectors / 17 < heads * 1024 && heads <= 16 {
            (17, heads)
        } else if sectors / 31 < 16 * 1024 {
            (31, 16)
        } else {
            (63, 16)
        }
    };
    // All of them are bounded above.
    ((sectors / per_track / heads).min(65535) as u16, heads as u8, per_track as u8)
}
