//! Changes in place.
//!
//! Order of writes: counts of new clusters, new tables and the guest's bytes reach the disk before any table
//! that refers to them; a cluster's count goes down only after the table that referred to it is on the
//! disk without it. So a crash at any point leaves at worst clusters that are counted but not used.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::header::{Checked, incompatible, unsupported};
use super::map::{COMPRESSED, COPIED, Entry, Map, OFFSET, ZERO};
use super::refcount::Refcounts;
use crate::blocks::check_end;
use crate::cache::Stage;
use crate::layer::{Image, Place};
use crate::source::{Source, WritableSource};
use crate::{Disk, Error, Format, Result};

/// Clusters are taken together for at most this many bytes.
const MAX_BATCH: u64 = 4 << 20;
/// Tables that are changed but not written take at most this much memory.
const MAX_CHANGED: u64 = 8 << 20;
/// Where the header has its autoclear features.
const AUTOCLEAR_FIELD: u64 = 88;
/// All subclusters stored; all zero.
pub(super) const ALL_STORED: u64 = u32::MAX as u64;
const ALL_ZERO: u64 = ALL_STORED << 32;

/// What changing an image takes beside its map.
pub(super) struct Writer {
    refcounts: Mutex<Refcounts>,
    has_zero_flag: bool,
}

impl Writer {
    /// Refuses images whose counts cannot be trusted.
    pub fn new(checked: &Checked, source: &dyn Source) -> Result<Self> {
        let writable = source.writable().ok_or(Error::ReadOnly)?;
        if checked.has(incompatible::DIRTY) {
            return Err(unsupported(
                "it was not closed in order; `qemu-img check -r all` makes it writable again",
            ));
        }
        if checked.has(incompatible::CORRUPT) {
            return Err(unsupported("it is marked as damaged, so it can only be read"));
        }
        if checked.has(incompatible::EXTERNAL_DATA) && checked.header.nb_snapshots.get() != 0 {
            return Err(unsupported(
                "it has an external data file and snapshots of it, so it can only be read",
            ));
        }
        if checked.header.autoclear_features.get() != 0 {
            // What they vouch for, such as bitmaps of changes, is not kept up here.
            writable.write_at(&[0; 8], AUTOCLEAR_FIELD)?;
            writable.flush()?;
        }
        let refcounts = Mutex::new(Refcounts::new(checked, source.len()));
        Ok(Self { refcounts, has_zero_flag: checked.header.version.get() >= 3 })
    }

    fn lock(&self) -> MutexGuard<'_, Refcounts> {
        self.refcounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn write(&self, map: &Map, disk: &Image, mut buffer: &[u8], mut offset: u64) -> Result<()> {
        let writable = data(map)?;
        while !buffer.is_empty() {
            {
                let _unchanged = disk.changes.read().unwrap_or_else(PoisonError::into_inner);
                while let Some((host, length)) = in_place(map, offset, buffer.len())? {
                    writable.write_at(&buffer[..length], host)?;
                    buffer = &buffer[length..];
                    offset += length as u64;
                }
            }
            if !buffer.is_empty() {
                let _changing = disk.changes.write().unwrap_or_else(PoisonError::into_inner);
                let mut refcounts = self.lock();
                let written = self.write_new(map, disk, &mut refcounts, buffer, offset)?;
                buffer = &buffer[written..];
                offset += written as u64;
                self.bound_changes(map, &mut refcounts)?;
            }
        }
        Ok(())
    }

    /// Writes to clusters that cannot be written in place; returns how many bytes.
    fn write_new(
        &self,
        map: &Map,
        disk: &Image,
        refcounts: &mut Refcounts,
        buffer: &[u8],
        offset: u64,
    ) -> Result<usize> {
        if in_place(map, offset, 1)?.is_some() {
            // Another thread was faster.
            return Ok(0);
        }
        let size = map.cluster_size();
        let start = offset & !(size - 1);
        let table = ensure_table(map, refcounts, offset)?;
        let wanted = (offset - start + buffer.len() as u64).div_ceil(size);
        let left = map.covered() / size - map.l2_index(offset);
        let most = wanted.min(left).min((MAX_BATCH / size).max(1));
        let mut count = 1;
        while count < most && in_place(map, start + count * size, 1)?.is_none() {
            count += 1;
        }
        // An external data file has every cluster at the guest's offset, and no counts.
        let host = match map.data {
            0 => refcounts.allocate(&map.tables, count)?,
            _ => start,
        };
        let end = start + count * size;
        let length = buffer.len().min((end - offset) as usize);

        let mut bytes = vec![0; (end - start) as usize];
        let within = (offset - start) as usize;
        disk.read_unlocked(&mut bytes[..within], start)?;
        bytes[within..within + length].copy_from_slice(&buffer[..length]);
        let after = offset + length as u64;
        if let Some(rest) = disk.len().min(end).checked_sub(after) {
            let at = within + length;
            disk.read_unlocked(&mut bytes[at..at + rest as usize], after)?;
        }
        data(map)?.write_at(&bytes, host)?;

        for number in 0..count {
            let cluster = host + number * size;
            let new = Entry { cluster: cluster | COPIED, bitmap: ALL_STORED };
            replace(map, disk, refcounts, table, start + number * size, new)?;
        }
        Ok(length)
    }

    pub fn write_zeroes(
        &self,
        map: &Map,
        disk: &Image,
        range: Range<u64>,
        unmap: bool,
    ) -> Result<()> {
        let size = map.cluster_size();
        let mut offset = range.start;
        while offset < range.end {
            let start = offset & !(size - 1);
            // The disk may end within its last cluster.
            let end = (start + size).min(disk.len());
            if offset == start && end <= range.end && (self.has_zero_flag || disk.parent.is_none())
            {
                let last =
                    if range.end == disk.len() { range.end } else { range.end & !(size - 1) };
                offset = self.clear(map, disk, start..last, unmap, false)?;
                continue;
            }
            let stop = end.min(range.end);
            let is_zero = {
                let _unchanged = disk.changes.read().unwrap_or_else(PoisonError::into_inner);
                let run = map.locate(offset..stop)?;
                let absent = run.place == Place::Absent && disk.parent.is_none();
                run.end >= stop && (absent || run.place == Place::Zero)
            };
            if !is_zero {
                // No more than a cluster.
                self.write(map, disk, &vec![0; (stop - offset) as usize], offset)?;
            }
            offset = stop;
        }
        Ok(())
    }

    pub fn discard(&self, map: &Map, disk: &Image, range: Range<u64>) -> Result<()> {
        if !self.has_zero_flag && disk.parent.is_some() {
            return Ok(());
        }
        let size = map.cluster_size();
        let end = if range.end == disk.len() { range.end } else { range.end & !(size - 1) };
        let mut start = range.start.next_multiple_of(size);
        while start < end {
            start = self.clear(map, disk, start..end, true, true)?;
        }
        Ok(())
    }

    /// Makes the clusters that begin in `range` read as zeroes, those of one table at most; returns where
    /// it stopped. Absent ones stay what they are if `only_stored`.
    fn clear(
        &self,
        map: &Map,
        disk: &Image,
        range: Range<u64>,
        unmap: bool,
        only_stored: bool,
    ) -> Result<u64> {
        let _changing = disk.changes.write().unwrap_or_else(PoisonError::into_inner);
        let mut refcounts = self.lock();
        let stop = (range.start / map.covered() + 1) * map.covered();
        let stop = stop.min(range.end);
        let has_parent = disk.parent.is_some();
        if map.l2_table(range.start)?.is_none() && (only_stored || !has_parent) {
            return Ok(stop);
        }
        let table = ensure_table(map, &mut refcounts, range.start)?;
        let mut offset = range.start;
        while offset < stop {
            let old = map.l2_entry(table, map.l2_index(offset))?;
            // With an external data file the flag alone makes a cluster of the one at offset 0.
            let nothing = if map.data == 0 { old.cluster & !COPIED } else { old.cluster };
            let is_absent = nothing == 0 && (!map.extended || old.bitmap == 0);
            let keeps = !unmap && old.cluster & (COPIED | COMPRESSED) == COPIED;
            let new = if is_absent && (only_stored || !has_parent) {
                old
            } else if !self.has_zero_flag || (!has_parent && !keeps) {
                Entry { cluster: 0, bitmap: 0 }
            } else {
                let host = if keeps { old.cluster & OFFSET | COPIED } else { 0 };
                let flag = if map.extended { 0 } else { ZERO };
                Entry { cluster: host | flag, bitmap: ALL_ZERO }
            };
            if new != old {
                replace(map, disk, &mut refcounts, table, offset, new)?;
            }
            offset += map.cluster_size();
        }
        self.bound_changes(map, &mut refcounts)?;
        Ok(stop)
    }

    /// Writes changed tables before they take too much memory.
    fn bound_changes(&self, map: &Map, refcounts: &mut Refcounts) -> Result<()> {
        if map.tables.changes() as u64 * map.cluster_size()
            > MAX_CHANGED.max(map.cluster_size() * 8)
        {
            commit(map, refcounts)?;
        }
        Ok(())
    }

    pub fn flush(&self, map: &Map) -> Result<()> {
        commit(map, &mut self.lock())
    }

    pub fn close(&self, map: &Map) {
        let mut refcounts = self.lock();
        // The second time for the counts that the first one took down.
        let closed = commit(map, &mut refcounts).and_then(|()| commit(map, &mut refcounts));
        if let Err(error) = closed {
            tracing::warn!(%error, "An image was not closed in order; clusters of it may be lost");
        }
    }
}

/// Everything that was written so far to the disk, in the order of this module's promise.
pub(super) fn commit(map: &Map, refcounts: &mut Refcounts) -> Result<()> {
    let writable = writable(map)?;
    let has_tables = map.tables.changes() != 0;
    if map.data != 0 {
        data(map)?.flush()?;
    }
    map.tables.write_back(Stage::First)?;
    writable.flush()?;
    if has_tables && map.tables.changes() != 0 {
        map.tables.write_back(Stage::Second)?;
        writable.flush()?;
    }
    if refcounts.released() != 0 {
        refcounts.settle(&map.tables, writable)?;
    }
    Ok(())
}

/// Where the guest's bytes are.
fn data(map: &Map) -> Result<&dyn WritableSource> {
    map.sources[map.data].writable().ok_or(Error::ReadOnly)
}

pub(super) fn writable(map: &Map) -> Result<&dyn WritableSource> {
    map.sources[0].writable().ok_or(Error::ReadOnly)
}

/// Where `offset` can be written in place, and for how many bytes.
fn in_place(map: &Map, offset: u64, length: usize) -> Result<Option<(u64, usize)>> {
    let size = map.cluster_size();
    let (mut found, mut done) = (None, 0);
    while done < length {
        let at = offset + done as u64;
        let l1 = map.l1_entry(at)?;
        let Some(table) = map.l2_table(at)?.filter(|_| l1 & COPIED != 0) else { break };
        let entry = map.l2_entry(table, map.l2_index(at))?;
        let start = at & !(size - 1);
        let stored =
            if map.extended { entry.bitmap == ALL_STORED } else { entry.cluster & ZERO == 0 };
        if !stored || entry.cluster & (COPIED | COMPRESSED) != COPIED {
            break;
        }
        let Some(host) = map.host_offset(entry.cluster, start)? else { break };
        let host = host + (at - start);
        match found {
            None => found = Some(host),
            Some(first) if first + done as u64 == host => {}
            Some(_) => break,
        }
        done = length.min(done + (start + size - at) as usize);
    }
    if let Some(host) = found {
        let end = host.saturating_add(done as u64);
        check_end(Format::Qcow2, &*map.sources[map.data], end, size)?;
    }
    Ok(found.map(|host| (host, done)))
}

/// The table of the second level for `offset`, made or copied so that it can be changed.
pub(super) fn ensure_table(map: &Map, refcounts: &mut Refcounts, offset: u64) -> Result<u64> {
    let old = map.l2_table(offset)?;
    if let Some(table) = old.filter(|_| map.l1_entry(offset).is_ok_and(|entry| entry & COPIED != 0))
    {
        return Ok(table);
    }
    let mut content = vec![0; map.cluster_size() as usize];
    if let Some(table) = old {
        map.tables.read_at(&mut content, table)?;
    }
    let table = refcounts.allocate(&map.tables, 1)?;
    map.tables.begin(table, content);
    let entry = map.l1_offset + offset / map.covered() * 8;
    map.tables.change(entry, &(table | COPIED).to_be_bytes(), Stage::Second)?;
    if let Some(old) = old {
        refcounts.release(old);
    }
    Ok(table)
}

/// Puts an entry in the place of another, whose clusters lose a reference unless the new one has them.
fn replace(
    map: &Map,
    disk: &Image,
    refcounts: &mut Refcounts,
    table: u64,
    offset: u64,
    new: Entry,
) -> Result<()> {
    let index = map.l2_index(offset);
    let old = map.l2_entry(table, index)?;
    let mut bytes = new.cluster.to_be_bytes().to_vec();
    if map.extended {
        bytes.extend_from_slice(&new.bitmap.to_be_bytes());
    }
    map.tables.change(table + index * map.entry_size(), &bytes, Stage::Second)?;
    let size = map.cluster_size();
    if old.cluster & COMPRESSED != 0 {
        let start = offset & !(size - 1);
        let grain = map.grain(old.cluster, start);
        let first = grain.offset & !(size - 1);
        let end = grain.offset + u64::from(grain.length);
        for cluster in (first..end).step_by(size as usize) {
            refcounts.release(cluster);
        }
        disk.forget_unpacked(start);
    } else if map.data == 0
        && old.cluster & OFFSET != 0
        && old.cluster & OFFSET != new.cluster & OFFSET
    {
        refcounts.release(old.cluster & OFFSET & !(size - 1));
    }
    Ok(())
}
