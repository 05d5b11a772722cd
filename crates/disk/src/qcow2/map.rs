//! From guest offsets to clusters.

use std::ops::Range;
use std::sync::Arc;

use super::header::{Checked, damaged, incompatible};
use crate::Result;
use crate::cache::Tables;
use crate::codec::Codec;
use crate::layer::{self, Grain, Place, Run};
use crate::source::Source;

/// Bits of entries of both levels where the offset lies.
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The cluster has one reference: it may be written in place.
pub(super) const COPIED: u64 = 1 << 63;
pub(super) const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeroes (version 3, not with extended entries).
pub(super) const ZERO: u64 = 1;

/// Subclusters of an extended entry.
const SUBCLUSTERS: u64 = 32;

/// The tables of both levels, those of the present state or of a snapshot.
pub(super) struct Map {
    pub tables: Tables,
    pub sources: Vec<Arc<dyn Source>>,
    /// Which source has the guest's clusters: 1 with an external data file.
    pub data: usize,
    pub l1_offset: u64,
    pub l1_size: u64,
    pub cluster_bits: u32,
    pub extended: bool,
    pub codec: Codec,
}

/// An entry of the second level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub cluster: u64,
    /// Which subclusters are allocated (low half) and zero (high half).
    pub bitmap: u64,
}

impl Map {
    pub fn new(checked: &Checked, source: Arc<dyn Source>, data: Option<Arc<dyn Source>>) -> Self {
        let header = &checked.header;
        let mut sources = vec![source.clone()];
        sources.extend(data);
        Self {
            tables: Tables::with_pages(source, checked.cluster_size() as usize),
            data: sources.len() - 1,
            sources,
            l1_offset: header.l1_table_offset.get(),
            l1_size: header.l1_size.get().into(),
            cluster_bits: header.cluster_bits.get(),
            extended: checked.has(incompatible::EXTENDED_L2),
            codec: if header.compression_type == 1 { Codec::Zstd } else { Codec::Deflate },
        }
    }

    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub fn entry_size(&self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// Bytes that a table of the second level covers.
    pub fn covered(&self) -> u64 {
        self.cluster_size() * (self.cluster_size() / self.entry_size())
    }

    /// The entry of the first level for `offset`.
    pub fn l1_entry(&self, offset: u64) -> Result<u64> {
        let index = offset / self.covered();
        if index >= self.l1_size {
            // A snapshot of a disk that was shorter then.
            return Ok(0);
        }
        self.tables.be64(self.l1_offset, index)
    }

    /// Where the table of the second level for `offset` lies, if there is one.
    pub fn l2_table(&self, offset: u64) -> Result<Option<u64>> {
        let table = self.l1_entry(offset)? & OFFSET;
        if !table.is_multiple_of(self.cluster_size()) {
            return Err(damaged(format!("the table for {offset} cannot lie at {table}")));
        }
        Ok((table != 0).then_some(table))
    }

    /// The entry's number within its table.
    pub fn l2_index(&self, offset: u64) -> u64 {
        offset % self.covered() / self.cluster_size()
    }

    pub fn l2_entry(&self, table: u64, index: u64) -> Result<Entry> {
        if self.extended {
            let cluster = self.tables.be64(table, index * 2)?;
            return Ok(Entry { cluster, bitmap: self.tables.be64(table, index * 2 + 1)? });
        }
        Ok(Entry { cluster: self.tables.be64(table, index)?, bitmap: 0 })
    }

    /// The run at the start of `range`.
    pub fn locate(&self, range: Range<u64>) -> Result<Run> {
        layer::join(range, |offset| self.step(offset))
    }

    /// What lies at `offset`, to the end of its cluster or what is known at once.
    fn step(&self, offset: u64) -> Result<Run> {
        let Some(table) = self.l2_table(offset)? else {
            let end = (offset / self.covered() + 1) * self.covered();
            return Ok(Run { end, place: Place::Absent });
        };
        let entry = self.l2_entry(table, self.l2_index(offset))?;
        let start = offset & !(self.cluster_size() - 1);
        let end = start + self.cluster_size();
        if entry.cluster & COMPRESSED != 0 {
            return Ok(Run { end, place: Place::Packed(self.grain(entry.cluster, start)) });
        }
        if self.extended {
            return self.subclusters(entry, offset, start);
        }
        let place = if entry.cluster & ZERO != 0 {
            Place::Zero
        } else {
            match self.host_offset(entry.cluster, start)? {
                Some(host) => Place::Stored { source: self.data, offset: host + (offset - start) },
                None => Place::Absent,
            }
        };
        Ok(Run { end, place })
    }

    fn subclusters(&self, entry: Entry, offset: u64, start: u64) -> Result<Run> {
        let size = self.cluster_size() / SUBCLUSTERS;
        let kind =
            |index: u64| (entry.bitmap >> index & 1, entry.bitmap >> (index + SUBCLUSTERS) & 1);
        let first = (offset - start) / size;
        let wanted = kind(first);
        let after = (first + 1..SUBCLUSTERS).find(|&index| kind(index) != wanted);
        let end = start + after.unwrap_or(SUBCLUSTERS) * size;
        let place = match wanted {
            (0, 0) => Place::Absent,
            (0, _) => Place::Zero,
            (_, 0) => match self.host_offset(entry.cluster, start)? {
                Some(host) => Place::Stored { source: self.data, offset: host + (offset - start) },
                None => return Err(damaged(format!("the subclusters of {start} have no cluster"))),
            },
            _ => return Err(damaged(format!("a subcluster of {start} is both stored and zero"))),
        };
        Ok(Run { end, place })
    }

    /// Where an entry that is not compressed says that its cluster lies.
    pub fn host_offset(&self, entry: u64, start: u64) -> Result<Option<u64>> {
        let host = entry & OFFSET;
        if !host.is_multiple_of(self.cluster_size()) {
            return Err(damaged(format!("the cluster of {start} cannot lie at {host}")));
        }
        // In an external data file offset 0 is a cluster like any other, which only the flag tells.
        let is_there = host != 0 || (self.data != 0 && entry & COPIED != 0);
        Ok(is_there.then_some(host))
    }

    /// A compressed cluster: its offset, and the number of sectors that its stream touches beyond the first.
    pub fn grain(&self, entry: u64, start: u64) -> Grain {
        let bits = 62 - (self.cluster_bits - 8);
        let offset = entry & ((1 << bits) - 1);
        let sectors = ((entry & !(COPIED | COMPRESSED)) >> bits) + 1;
        Grain {
            source: 0,
            offset,
            // At most 2^14 sectors.
            length: (sectors * 512 - offset % 512) as u32,
            codec: self.codec,
            start,
            size: self.cluster_size() as u32,
        }
    }
}
