//! Writing of a new image from its start to its end, compressed or not.

use std::ops::Range;
use std::sync::Arc;

use super::create::{Qcow2Options, write_empty};
use super::header::Checked;
use super::map::{COMPRESSED, COPIED, Map};
use super::refcount::Refcounts;
use super::write::{ALL_STORED, commit, ensure_table};
use crate::cache::Stage;
use crate::codec::Codec;
use crate::create::{Builder, Files, Placed, writable};
use crate::source::{FileSource, Source};
use crate::{CreateOptions, Layout, Preallocation, Result, raw};

/// Tables that are changed but not written take at most this much memory.
const MAX_CHANGED: usize = 8 << 20;

/// A new image to which each cluster is written at most once.
pub(crate) struct Appender {
    map: Map,
    refcounts: Refcounts,
    length: u64,
    codec: Option<Codec>,
    /// Where the disk's first cluster lies, if all have their places already.
    preallocated: Option<u64>,
    /// Where the next compressed cluster goes, unless it is the start of a cluster.
    packed_end: u64,
    /// Where the last cluster that was placed ends.
    end: u64,
}

impl Appender {
    pub fn new(files: &Files, options: &CreateOptions) -> Result<Self> {
        let qcow2 = Qcow2Options::from_create(options)?;
        let source = Arc::new(files.main()?);
        write_empty(&*source, &qcow2)?;
        let data = match &qcow2.data_file {
            Some(name) => Some(Arc::new(files.beside(name)?)),
            None => None,
        };
        let checked = Checked::read(&*source)?;
        let refcounts = Refcounts::new(&checked, source.len());
        let data_source = data.clone().map(|data| data as Arc<dyn Source>);
        let map = Map::new(&checked, source.clone(), data_source);
        let codec = options.compression.is_some().then_some(map.codec);
        let length = options.length;
        let mut image =
            Self { map, refcounts, length, codec, preallocated: None, packed_end: 0, end: 0 };
        if let Some(data) = data {
            raw::prepare(&data, length, options.preallocation, Layout::Sparse)?;
        }
        if options.preallocation != Preallocation::Off && length != 0 {
            image.preallocate(&source, options.preallocation)?;
        }
        Ok(image)
    }

    /// Gives every cluster its place.
    fn preallocate(&mut self, source: &FileSource, way: Preallocation) -> Result<()> {
        let placed = self.place(0..self.length)?;
        self.preallocated = Some(placed.offset);
        if self.map.data != 0 {
            return Ok(());
        }
        let end = placed.offset + self.length.next_multiple_of(self.map.cluster_size());
        let target = writable(source)?;
        target.set_len(source.len().max(end))?;
        match way {
            Preallocation::Off | Preallocation::Metadata => Ok(()),
            Preallocation::Falloc => source.allocate(placed.offset..end),
            Preallocation::Full => {
                let zeroes = vec![0; self.map.cluster_size() as usize];
                (placed.offset..end)
                    .step_by(zeroes.len())
                    .try_for_each(|offset| target.write_at(&zeroes, offset))
            }
        }
    }

    fn refer(&mut self, offset: u64, entry: u64) -> Result<()> {
        let table = ensure_table(&self.map, &mut self.refcounts, offset)?;
        let at = table + self.map.l2_index(offset) * self.map.entry_size();
        let mut bytes = entry.to_be_bytes().to_vec();
        if self.map.extended {
            bytes.extend_from_slice(&ALL_STORED.to_be_bytes());
        }
        self.map.tables.change(at, &bytes, Stage::Second)?;
        if self.map.tables.changes() * self.map.cluster_size() as usize > MAX_CHANGED {
            commit(&self.map, &mut self.refcounts)?;
        }
        Ok(())
    }
}

impl Builder for Appender {
    fn block_size(&self) -> u64 {
        self.map.cluster_size()
    }

    fn sources(&self) -> &[Arc<dyn Source>] {
        &self.map.sources
    }

    fn codec(&self) -> Option<Codec> {
        self.codec
    }

    fn place(&mut self, range: Range<u64>) -> Result<Placed> {
        let length = range.end - range.start;
        let source = self.map.data;
        if let Some(first) = self.preallocated {
            return Ok(Placed { source, offset: first + range.start, length });
        }
        let size = self.map.cluster_size();
        let count = length.div_ceil(size);
        // An external data file has every cluster at the guest's offset, and no counts.
        let host = match source {
            0 => self.refcounts.allocate(&self.map.tables, count)?,
            _ => range.start,
        };
        if source == 0 {
            self.end = self.end.max(host + count * size);
        }
        for number in 0..count {
            self.refer(range.start + number * size, (host + number * size) | COPIED)?;
        }
        Ok(Placed { source, offset: host, length })
    }

    fn write_packed(&mut self, start: u64, stream: &[u8]) -> Result<()> {
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
        writable(&*self.map.sources[0])?.write_at(stream, host)?;
        self.packed_end = host + length;
        let bits = 62 - (self.map.cluster_bits - 8);
        let sectors = (host + length - 1) / 512 - host / 512;
        self.refer(start, COMPRESSED | sectors << bits | host)
    }

    fn finish(&mut self) -> Result<()> {
        let source = &self.map.sources[0];
        let whole = source.len().max(self.end).next_multiple_of(self.map.cluster_size());
        writable(&**source)?.set_len(whole)?;
        commit(&self.map, &mut self.refcounts)?;
        commit(&self.map, &mut self.refcounts)
    }
}
