//! New expanding disks.

use std::ops::Range;
use std::sync::Arc;

use zerocopy::IntoBytes;

use super::{Header, damaged};
use crate::cache::{Stage, Tables};
use crate::create::{Builder, Files, Placed, writable};
use crate::source::Source;
use crate::{CreateOptions, Result, SECTOR_SIZE};

const HEADS: u64 = 16;
const SECTORS_PER_TRACK: u64 = 32;
/// Tables that are changed but not written take at most this many pages.
const MAX_CHANGED: usize = 64;

/// A new disk.
pub(crate) struct NewImage {
    sources: [Arc<dyn Source>; 1],
    table: Tables,
    cluster_size: u64,
    /// Bytes that an entry of the table counts.
    unit: u64,
    /// In clusters.
    end: u64,
}

impl NewImage {
    pub fn new(files: &Files, options: &CreateOptions) -> Result<Self> {
        let cluster_size = options.block_size(1 << 20, 4096..=64 << 20)?;
        let entries = options.length.div_ceil(cluster_size);
        let end = (size_of::<Header>() as u64 + entries * 4).div_ceil(cluster_size);
        if entries + end > 1 << 24 {
            return Err(damaged("its disk would need larger clusters"));
        }
        let sectors = options.length / SECTOR_SIZE;
        // The older kind, which more programs read, counts in sectors of 32 bits.
        let is_short = u32::try_from((entries + end) * cluster_size / SECTOR_SIZE).is_ok();
        let unit = if is_short { SECTOR_SIZE } else { cluster_size };
        let cylinders = sectors.div_ceil(HEADS * SECTORS_PER_TRACK);
        // All of these are bounded above but the cylinders, which nobody needs.
        let header = Header {
            magic: if unit == SECTOR_SIZE { *b"WithoutFreeSpace" } else { *b"WithouFreSpacExt" },
            version: 2.into(),
            heads: (HEADS as u32).into(),
            cylinders: u32::try_from(cylinders).unwrap_or(u32::MAX).into(),
            tracks: ((cluster_size / SECTOR_SIZE) as u32).into(),
            bat_entries: (entries as u32).into(),
            nb_sectors: sectors.into(),
            inuse: 0.into(),
            data_off: ((end * cluster_size / SECTOR_SIZE) as u32).into(),
            flags: 0.into(),
            ext_off: 0.into(),
        };
        let source = files.main()?;
        let target = writable(&source)?;
        target.set_len(end * cluster_size)?;
        target.write_at(header.as_bytes(), 0)?;
        let source: Arc<dyn Source> = Arc::new(source);
        let table = Tables::new(source.clone());
        Ok(Self { sources: [source], table, cluster_size, unit, end })
    }
}

impl Builder for NewImage {
    fn block_size(&self) -> u64 {
        self.cluster_size
    }

    fn sources(&self) -> &[Arc<dyn Source>] {
        &self.sources
    }

    fn place(&mut self, range: Range<u64>) -> Result<Placed> {
        let length = range.end - range.start;
        let offset = self.end * self.cluster_size;
        let first = range.start / self.cluster_size;
        for number in 0..length.div_ceil(self.cluster_size) {
            let at = size_of::<Header>() as u64 + (first + number) * 4;
            // There are not more clusters than fit.
            let entry = (self.end * self.cluster_size / self.unit) as u32;
            self.table.change(at, &entry.to_le_bytes(), Stage::Second)?;
            self.end += 1;
        }
        if self.table.changes() > MAX_CHANGED {
            self.table.write_back(Stage::Second)?;
        }
        Ok(Placed { source: 0, offset, length })
    }

    fn finish(&mut self) -> Result<()> {
        self.table.write_back(Stage::Second)?;
        let target = writable(&*self.sources[0])?;
        target.set_len(self.end * self.cluster_size)?;
        target.flush()
    }
}
