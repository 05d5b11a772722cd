//! Counts of references to clusters, and finding free ones.

use super::header::{Checked, damaged, unsupported};
use super::map::OFFSET;
use crate::cache::{Stage, Tables};
use crate::source::{Source, WritableSource, read_padded};
use crate::{Error, Result};

/// Where the header says where the table of counts lies: an offset of 64 bits and a number of clusters.
const HEADER_FIELD: u64 = 48;

/// Longest table of counts, as in the reader's check.
const MAX_TABLE_BYTES: u64 = 8 << 20;

/// Blocks without counts that are passed over on the way to the last one that has any.
const MAX_EMPTY: usize = 16;

/// The counts of one image. Numbers of clusters are offsets divided by the clusters' size.
pub(super) struct Refcounts {
    table: u64,
    table_clusters: u64,
    cluster_bits: u32,
    order: u32,
    /// Nothing is in use from here on, except where a count says so.
    next: u64,
    /// Clusters without references, which nothing on the disk refers to either.
    free: Vec<u64>,
    /// Clusters that lose a reference once the tables that held it are on the disk.
    released: Vec<u64>,
}

impl Refcounts {
    pub fn new(checked: &Checked, file_length: u64) -> Self {
        let header = &checked.header;
        Self {
            table: header.refcount_table_offset.get(),
            table_clusters: header.refcount_table_clusters.get().into(),
            cluster_bits: header.cluster_bits.get(),
            order: header.refcount_order.get(),
            next: file_length.div_ceil(checked.cluster_size()),
            free: Vec::new(),
            released: Vec::new(),
        }
    }

    /// Takes `count` clusters that follow each other, and returns the first one's offset.
    pub fn allocate(&mut self, tables: &Tables, count: u64) -> Result<u64> {
        if count == 1
            && let Some(cluster) = self.free.pop()
        {
            self.set(tables, cluster, 1)?;
            let offset = cluster << self.cluster_bits;
            tables.forget(offset);
            return Ok(offset);
        }
        let first = self.take(tables, count)?;
        for cluster in first..first + count {
            self.set(tables, cluster, 1)?;
        }
        Ok(first << self.cluster_bits)
    }

    /// Counts one more reference to the cluster that holds the byte at `offset`.
    pub fn share(&mut self, tables: &Tables, offset: u64) -> Result<()> {
        let cluster = offset >> self.cluster_bits;
        let count = self.get(tables, cluster)?;
        self.set(tables, cluster, count + 1)
    }

    /// Notes that a reference to the cluster at `offset` is gone from the tables.
    pub fn release(&mut self, offset: u64) {
        self.released.push(offset >> self.cluster_bits);
    }

    /// How many references are noted as gone.
    pub fn released(&self) -> usize {
        self.released.len()
    }

    /// Takes away the references that are gone, after the tables without them were written.
    pub fn settle(&mut self, tables: &Tables, writable: &dyn WritableSource) -> Result<()> {
        for cluster in std::mem::take(&mut self.released) {
            let Some(count) = self.get(tables, cluster)?.checked_sub(1) else {
                tracing::warn!(cluster, "A cluster had a reference but no count of it");
                continue;
            };
            self.set(tables, cluster, count)?;
            if count == 0 {
                let start = cluster << self.cluster_bits;
                writable.punch(start..start + (1 << self.cluster_bits))?;
                self.free.push(cluster);
            }
        }
        Ok(())
    }

    /// Finds clusters at the end of the file, whose counts are still to be set.
    fn take(&mut self, tables: &Tables, count: u64) -> Result<u64> {
        let mut first = self.next;
        let mut cluster = first;
        while cluster < first + count {
            if self.get(tables, cluster)? != 0 {
                first = cluster + 1;
            }
            cluster += 1;
        }
        self.next = first + count;
        Ok(first)
    }

    /// Counts in one block, as a power of two.
    fn per_block_bits(&self) -> u32 {
        self.cluster_bits + 3 - self.order
    }

    /// The block with a cluster's count.
    fn block(&self, tables: &Tables, index: u64) -> Result<Option<u64>> {
        if index >= (self.table_clusters << self.cluster_bits) / 8 {
            return Ok(None);
        }
        let block = tables.be64(self.table, index)? & OFFSET;
        if !block.is_multiple_of(1 << self.cluster_bits) {
            return Err(damaged(format!("a block of counts cannot lie at {block}")));
        }
        Ok((block != 0).then_some(block))
    }

    /// Where the last cluster begins that is counted, as far as the last block tells that has any counts.
    pub fn last(&self, source: &dyn Source) -> Result<u64> {
        let mut table = vec![0; (self.table_clusters << self.cluster_bits) as usize];
        source.read_at(&mut table, self.table)?;
        let blocks: Vec<u64> =
            table.as_chunks().0.iter().map(|&entry| u64::from_be_bytes(entry) & OFFSET).collect();
        let last = blocks.iter().copied().max().unwrap_or(0);
        if last >= source.len() {
            return Ok(last);
        }
        let mut block = vec![0; 1 << self.cluster_bits];
        let there = blocks.iter().enumerate().rev().filter(|(_, offset)| **offset != 0);
        for (index, &offset) in there.take(MAX_EMPTY) {
            read_padded(source, &mut block, offset)?;
            if let Some(byte) = block.iter().rposition(|&byte| byte != 0) {
                let bit = byte as u64 * 8 + u64::from(block[byte].ilog2());
                let cluster = ((index as u64) << self.per_block_bits()) + (bit >> self.order);
                return Ok(cluster.saturating_mul(1 << self.cluster_bits).max(last));
            }
        }
        Ok(last)
    }

    pub fn get(&self, tables: &Tables, cluster: u64) -> Result<u64> {
        let Some(block) = self.block(tables, cluster >> self.per_block_bits())? else {
            return Ok(0);
        };
        let (offset, shift) = self.position(block, cluster);
        let mut bytes = [0; 8];
        let count = self.bytes();
        tables.read_at(&mut bytes[8 - count..], offset)?;
        Ok(u64::from_be_bytes(bytes) >> shift & self.mask())
    }

    fn set(&mut self, tables: &Tables, cluster: u64, value: u64) -> Result<()> {
        if value > self.mask() {
            return Err(unsupported("a cluster has more references than can be counted"));
        }
        let index = cluster >> self.per_block_bits();
        let block = match self.block(tables, index)? {
            Some(block) => block,
            None => self.add_block(tables, index)?,
        };
        self.put(tables, block, cluster, value)
    }

    fn put(&self, tables: &Tables, block: u64, cluster: u64, value: u64) -> Result<()> {
        let (offset, shift) = self.position(block, cluster);
        let mut bytes = [0; 8];
        let first = 8 - self.bytes();
        tables.read_at(&mut bytes[first..], offset)?;
        let old = u64::from_be_bytes(bytes);
        let new = (old & !(self.mask() << shift)) | value << shift;
        tables.change(offset, &new.to_be_bytes()[first..], Stage::First)
    }

    /// Offset of a count's bytes, and by how many bits it is shifted within them.
    fn position(&self, block: u64, cluster: u64) -> (u64, u32) {
        let index = cluster & ((1 << self.per_block_bits()) - 1);
        let bit = index << self.order;
        let shift = if self.order < 3 { (bit % 8) as u32 } else { 0 };
        (block + bit / 8, shift)
    }

    /// Bytes that a count takes, or that hold it.
    fn bytes(&self) -> usize {
        1 << self.order.saturating_sub(3)
    }

    fn mask(&self) -> u64 {
        u64::MAX >> (64 - (1_u32 << self.order))
    }

    /// A new block of counts. It is on the disk, and counted, before the table refers to it.
    fn add_block(&mut self, tables: &Tables, index: u64) -> Result<u64> {
        if index >= (self.table_clusters << self.cluster_bits) / 8 {
            self.grow_table(tables, index)?;
            if let Some(block) = self.block(tables, index)? {
                return Ok(block);
            }
        }
        let cluster = self.take(tables, 1)?;
        let block = cluster << self.cluster_bits;
        let writable = tables.source().writable().ok_or(Error::ReadOnly)?;
        let mut content = vec![0; 1 << self.cluster_bits];
        if cluster >> self.per_block_bits() == index {
            let (offset, shift) = self.position(0, cluster);
            let count = 1_u64 << shift;
            let bytes = self.bytes();
            content[offset as usize..][..bytes].copy_from_slice(&count.to_be_bytes()[8 - bytes..]);
        } else {
            // Another block counts it, which may be new in turn and will then count itself.
            self.set(tables, cluster, 1)?;
            tables.write_back(Stage::First)?;
        }
        writable.write_at(&content, block)?;
        writable.flush()?;
        tables.forget(block);
        tables.change(self.table + index * 8, &block.to_be_bytes(), Stage::First)?;
        Ok(block)
    }

    /// A longer table, elsewhere.
    fn grow_table(&mut self, tables: &Tables, index: u64) -> Result<()> {
        let size = 1_u64 << self.cluster_bits;
        let clusters = ((index + 1) * 8).div_ceil(size).max(self.table_clusters * 2);
        if clusters * size > MAX_TABLE_BYTES {
            return Err(unsupported("it cannot grow further with clusters of this size"));
        }
        let (old, old_clusters) = (self.table, self.table_clusters);
        let first = self.take(tables, clusters)?;
        for number in 0..clusters {
            let mut page = vec![0; size as usize];
            if number < old_clusters {
                tables.read_at(&mut page, old + number * size)?;
            }
            tables.begin((first + number) << self.cluster_bits, page);
        }
        self.table = first << self.cluster_bits;
        self.table_clusters = clusters;
        for cluster in first..first + clusters {
            self.set(tables, cluster, 1)?;
        }
        let writable = tables.source().writable().ok_or(Error::ReadOnly)?;
        tables.write_back(Stage::First)?;
        writable.flush()?;
        let mut field = self.table.to_be_bytes().to_vec();
        // At most the bytes above, so it fits.
        field.extend_from_slice(&(clusters as u32).to_be_bytes());
        writable.write_at(&field, HEADER_FIELD)?;
        writable.flush()?;
        self.released.extend((0..old_clusters).map(|number| (old >> self.cluster_bits) + number));
        Ok(())
    }
}
