//! Writing of a new image from its start to its end, compressed or not.

use std::path::Path;
use std::sync::Arc;

use super::create::{Qcow2Options, write_empty};
use super::header::Checked;
use super::map::{COMPRESSED, COPIED, Map};
use super::refcount::Refcounts;
use super::write::{commit, ensure_table, writable};
use crate::Result;
use crate::cache::Stage;
use crate::source::{FileSource, Source};

/// Tables that are changed but not written take at most this much memory.
const MAX_CHANGED: usize = 8 << 20;

/// A new image to which each cluster is written at most once.
pub(crate) struct Appender {
    map: Map,
    refcounts: Refcounts,
    /// Where the next compressed cluster goes, unless it is the start of a cluster.
    packed_end: u64,
}

impl Appender {
    /// Makes the file; refuses to replace one.
    pub fn create(path: &Path, options: &Qcow2Options) -> Result<Self> {
        let source = FileSource::create(path)?;
        write_empty(&source, options)?;
        let checked = Checked::read(&source)?;
        let refcounts = Refcounts::new(&checked, source.len());
        let map = Map::new(&checked, Arc::new(source), None);
        Ok(Self { map, refcounts, packed_end: 0 })
    }

    /// Writes whole clusters from guest offset `start`; the last may be a part of one.
    pub fn write(&mut self, start: u64, bytes: &[u8]) -> Result<()> {
        let size = self.map.cluster_size();
        let count = (bytes.len() as u64).div_ceil(size);
        let host = self.refcounts.allocate(&self.map.tables, count)?;
        let target = writable(&self.map)?;
        target.write_at(bytes, host)?;
        if !(bytes.len() as u64).is_multiple_of(size) {
            let rest = (count * size - bytes.len() as u64) as usize;
            target.write_at(&vec![0; rest], host + bytes.len() as u64)?;
        }
        for number in 0..count {
            self.refer(start + number * size, (host + number * size) | COPIED)?;
        }
        Ok(())
    }

    /// Writes the compressed stream of the cluster at guest offset `start`.
    pub fn write_packed(&mut self, start: u64, stream: &[u8]) -> Result<()> {
        let size = self.map.cluster_size();
        let length = stream.len() as u64;
        let room = self.packed_end.next_multiple_of(size) - self.packed_end;
        let tables = &self.map.tables;
        let needed = length.saturating_sub(room).div_ceil(size);
        let host = if room == 0 {
            self.refcounts.allocate(tables, needed)?
        } else {
            let follows = self.packed_end + room;
            let fresh = match needed {
                0 => follows,
                _ => self.refcounts.allocate(tables, needed)?,
            };
            if fresh == follows {
                self.refcounts.share(tables, self.packed_end)?;
                self.packed_end
            } else if length <= needed * size {
                fresh
            } else {
                // One more, because the room in the old cluster cannot be used.
                for number in 0..needed {
                    self.refcounts.release(fresh + number * size);
                }
                self.refcounts.allocate(tables, needed + 1)?
            }
        };
        writable(&self.map)?.write_at(stream, host)?;
        self.packed_end = host + length;
        let bits = 62 - (self.map.cluster_bits - 8);
        let sectors = (host + length - 1) / 512 - host / 512;
        self.refer(start, COMPRESSED | sectors << bits | host)
    }

    fn refer(&mut self, offset: u64, entry: u64) -> Result<()> {
        let table = ensure_table(&self.map, &mut self.refcounts, offset)?;
        let at = table + self.map.l2_index(offset) * self.map.entry_size();
        self.map.tables.change(at, &entry.to_be_bytes(), Stage::Second)?;
        if self.map.tables.changes() * self.map.cluster_size() as usize > MAX_CHANGED {
            commit(&self.map, &mut self.refcounts)?;
        }
        Ok(())
    }

    /// Writes what is still in memory; afterwards the image would survive a loss of power.
    pub fn finish(mut self) -> Result<()> {
        let source = &self.map.sources[0];
        let whole = source.len().next_multiple_of(self.map.cluster_size());
        writable(&self.map)?.set_len(whole)?;
        commit(&self.map, &mut self.refcounts)?;
        commit(&self.map, &mut self.refcounts)
    }
}
