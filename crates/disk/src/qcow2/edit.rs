//! Making, deleting and going back to internal snapshots.
//!
//! References are counted up before anything refers to more, and down only after nothing does any more; what the header
//! says of snapshots and of the first table changes at once. So a crash at any point leaves at worst clusters that are
//! counted but not used.

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::header::{Checked, damaged, incompatible, unsupported};
use super::map::{COMPRESSED, COPIED, Map, OFFSET};
use super::refcount::Refcounts;
use super::resize::SIZES;
use super::snapshot::{Saved, read, table_length};
use super::write::{Writer, commit};
use crate::cache::Stage;
use crate::create::writable;
use crate::source::{FileSource, Source};
use crate::{Result, Snapshot};

/// Where the header has the number of snapshots and the offset of their table: one sector, so that they change at once.
const SNAPSHOTS: u64 = 60;
/// References that are taken away at once.
const BATCH: usize = 1 << 16;
/// Changed tables that are kept before they are written.
const MAX_CHANGED: usize = 8 << 20;
const MAX_SNAPSHOTS: usize = 65536;
/// Longest name that the format can hold.
const MAX_NAME: usize = u16::MAX as usize;

/// Makes a snapshot of the present state.
pub(crate) fn create_snapshot(path: &Path, name: &str) -> Result<Snapshot> {
    let mut editor = Editor::open(path)?;
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(unsupported("a snapshot cannot have this name"));
    }
    if editor.saved.iter().any(|saved| saved.snapshot.name == name || saved.snapshot.id == name) {
        return Err(unsupported(format!("it has a snapshot \"{name}\" already")));
    }
    if editor.saved.len() >= MAX_SNAPSHOTS {
        return Err(unsupported("it has as many snapshots as it can"));
    }
    let ids = editor.saved.iter().filter_map(|saved| saved.snapshot.id.parse::<u64>().ok());
    let id = (ids.max().unwrap_or(0) + 1).to_string();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let length = editor.checked.header.size.get();
    let created = now.as_secs().min(u32::MAX.into());
    let snapshot = Snapshot { id, name: name.to_owned(), created, length, machine_state: 0 };

    let l1 = editor.first_table(editor.map.l1_offset, editor.map.l1_size)?;
    editor.each(&l1, |editor, cluster| editor.refcounts.share(&editor.map.tables, cluster))?;
    let plain: Vec<u8> = l1.iter().flat_map(|entry| (entry & !COPIED).to_be_bytes()).collect();
    let offset = editor.add(plain)?;
    let mut entry = Vec::new();
    entry.extend_from_slice(&offset.to_be_bytes());
    // The header's own field has as many bits.
    entry.extend_from_slice(&(l1.len() as u32).to_be_bytes());
    entry.extend_from_slice(&(snapshot.id.len() as u16).to_be_bytes());
    entry.extend_from_slice(&(name.len() as u16).to_be_bytes());
    entry.extend_from_slice(&(created as u32).to_be_bytes());
    entry.extend_from_slice(&now.subsec_nanos().to_be_bytes());
    // The machine's clock, and the length of its state.
    entry.extend_from_slice(&[0; 12]);
    entry.extend_from_slice(&24_u32.to_be_bytes());
    entry.extend_from_slice(&0_u64.to_be_bytes());
    entry.extend_from_slice(&length.to_be_bytes());
    // No count of instructions.
    entry.extend_from_slice(&u64::MAX.to_be_bytes());
    entry.extend_from_slice(snapshot.id.as_bytes());
    entry.extend_from_slice(name.as_bytes());
    let mut entries: Vec<_> = editor.saved.iter().map(|saved| saved.entry.clone()).collect();
    entries.push(entry);
    let list = editor.add_list(&entries)?;
    // Nothing may be written in place any more before it belongs to both.
    commit(&editor.map, &mut editor.refcounts)?;
    editor.set_flags(&l1)?;
    editor.lead_to_list(list, entries.len())?;
    editor.close()?;
    Ok(snapshot)
}

/// Deletes a snapshot, which its number or its name tells.
pub(crate) fn delete_snapshot(path: &Path, wanted: &str) -> Result<()> {
    let mut editor = Editor::open(path)?;
    let index = editor.find(wanted)?;
    let gone = editor.saved.remove(index);
    let entries: Vec<_> = editor.saved.iter().map(|saved| saved.entry.clone()).collect();
    let list = editor.add_list(&entries)?;
    commit(&editor.map, &mut editor.refcounts)?;
    editor.saved.insert(index, gone);
    editor.lead_to_list(list, entries.len())?;
    let Saved { l1_offset, l1_size, .. } = editor.saved[index];
    let l1 = editor.first_table(l1_offset, l1_size.into())?;
    editor.release_tree(&l1, l1_offset)?;
    let present = editor.first_table(editor.map.l1_offset, editor.map.l1_size)?;
    editor.set_flags(&present)?;
    editor.close()
}

/// Makes the present state what a snapshot has kept.
pub(crate) fn revert_to_snapshot(path: &Path, wanted: &str) -> Result<()> {
    let mut editor = Editor::open(path)?;
    let index = editor.find(wanted)?;
    let Saved { l1_offset, l1_size, .. } = editor.saved[index];
    let length = editor.saved[index].snapshot.length;
    let (old_offset, old_size) = (editor.map.l1_offset, editor.map.l1_size);
    let old = editor.first_table(old_offset, old_size)?;
    let mut new = editor.first_table(l1_offset, l1_size.into())?;
    if (new.len() as u64) < length.div_ceil(editor.map.covered()) {
        return Err(damaged("a snapshot's first table is too short for its disk"));
    }
    editor.each(&new, |editor, cluster| editor.refcounts.share(&editor.map.tables, cluster))?;
    new.iter_mut().for_each(|entry| *entry &= !COPIED);
    let offset = editor.add(new.iter().flat_map(|entry| entry.to_be_bytes()).collect())?;
    commit(&editor.map, &mut editor.refcounts)?;
    // Its tables may say of clusters that they may be written in place; that is not so now.
    editor.map.l1_offset = offset;
    editor.map.l1_size = new.len() as u64;
    editor.set_flags(&new)?;
    let mut sizes = length.to_be_bytes().to_vec();
    sizes.extend_from_slice(&editor.checked.header.crypt_method.get().to_be_bytes());
    sizes.extend_from_slice(&l1_size.to_be_bytes());
    sizes.extend_from_slice(&offset.to_be_bytes());
    editor.write_header(&sizes, SIZES)?;
    editor.release_tree(&old, old_offset)?;
    let present = editor.first_table(offset, new.len() as u64)?;
    editor.set_flags(&present)?;
    editor.close()
}

/// An image whose snapshots are changed.
struct Editor {
    source: Arc<FileSource>,
    checked: Checked,
    map: Map,
    refcounts: Refcounts,
    saved: Vec<Saved>,
}

impl Editor {
    fn open(path: &Path) -> Result<Self> {
        let source = Arc::new(FileSource::open(path, false)?);
        let checked = Checked::read(&*source)?;
        if checked.has(incompatible::EXTERNAL_DATA) {
            return Err(unsupported(
                "its data lie in another file, of which there are no snapshots",
            ));
        }
        // It refuses what cannot be changed.
        drop(Writer::new(&checked, &*source)?);
        let refcounts = Refcounts::new(&checked, source.len());
        let map = Map::new(&checked, source.clone(), None);
        let saved = read(&checked, &*source)?;
        Ok(Self { source, checked, map, refcounts, saved })
    }

    fn find(&self, wanted: &str) -> Result<usize> {
        let saved = &self.saved;
        let found = saved.iter().position(|saved| saved.snapshot.id == wanted);
        let found = found.or_else(|| saved.iter().position(|saved| saved.snapshot.name == wanted));
        found.ok_or_else(|| unsupported(format!("it has no snapshot \"{wanted}\"")))
    }

    fn first_table(&self, offset: u64, entries: u64) -> Result<Vec<u64>> {
        // Not longer than 32 MiB, as was checked.
        let mut bytes = vec![0; (entries * 8) as usize];
        self.map.tables.read_at(&mut bytes, offset)?;
        Ok(bytes.as_chunks().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect())
    }

    /// Calls `act` with every cluster that a first table leads to: tables, and what those lead to.
    fn each(&mut self, l1: &[u64], act: impl Fn(&mut Self, u64) -> Result<()>) -> Result<()> {
        let size = self.map.cluster_size();
        for table in l1.iter().map(|entry| entry & OFFSET).filter(|&table| table != 0) {
            self.check(table)?;
            act(self, table)?;
            for index in 0..size / self.map.entry_size() {
                let entry = self.map.l2_entry(table, index)?.cluster;
                if entry & COMPRESSED != 0 {
                    let grain = self.map.grain(entry, 0);
                    let end = grain.offset + u64::from(grain.length);
                    for cluster in (grain.offset & !(size - 1)..end).step_by(size as usize) {
                        act(self, cluster)?;
                    }
                } else if entry & OFFSET != 0 {
                    self.check(entry & OFFSET)?;
                    act(self, entry & OFFSET)?;
                }
            }
        }
        Ok(())
    }

    fn check(&self, offset: u64) -> Result<()> {
        if !offset.is_multiple_of(self.map.cluster_size()) || offset >= self.source.len() {
            return Err(damaged(format!("a cluster of it cannot lie at {offset}")));
        }
        Ok(())
    }

    /// New clusters with this content.
    fn add(&mut self, mut content: Vec<u8>) -> Result<u64> {
        let size = self.map.cluster_size();
        content.resize(content.len().max(1).next_multiple_of(size as usize), 0);
        let count = content.len() as u64 / size;
        let offset = self.refcounts.allocate(&self.map.tables, count)?;
        for (number, part) in content.chunks(size as usize).enumerate() {
            self.map.tables.begin(offset + number as u64 * size, part.to_vec());
        }
        Ok(offset)
    }

    /// A new table of snapshots; nothing if there are none.
    fn add_list(&mut self, entries: &[Vec<u8>]) -> Result<u64> {
        let mut list = Vec::new();
        for entry in entries {
            list.resize(list.len().next_multiple_of(8), 0);
            list.extend_from_slice(entry);
        }
        if list.is_empty() { Ok(0) } else { self.add(list) }
    }

    fn write_header(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        let target = writable(&*self.source)?;
        target.write_at(bytes, offset)?;
        target.flush()?;
        self.map.tables.forget(0);
        Ok(())
    }

    /// From now on the snapshots are those of a table that is on the disk; the old table is given up.
    fn lead_to_list(&mut self, list: u64, count: usize) -> Result<()> {
        let mut bytes = (count as u32).to_be_bytes().to_vec();
        bytes.extend_from_slice(&list.to_be_bytes());
        self.write_header(&bytes, SNAPSHOTS)?;
        let old = self.checked.header.snapshots_offset.get();
        let size = self.map.cluster_size();
        for number in 0..table_length(&self.saved).div_ceil(size) {
            self.refcounts.release(old + number * size);
        }
        Ok(())
    }

    /// Gives up a first table, to which the header does not lead any more, and a reference to all that it leads to.
    fn release_tree(&mut self, l1: &[u64], offset: u64) -> Result<()> {
        self.each(l1, |editor, cluster| {
            editor.refcounts.release(cluster);
            if editor.refcounts.released() >= BATCH {
                let target = writable(&*editor.source)?;
                editor.refcounts.settle(&editor.map.tables, target)?;
            }
            Ok(())
        })?;
        let size = self.map.cluster_size();
        for number in 0..(l1.len() as u64 * 8).div_ceil(size) {
            self.refcounts.release(offset + number * size);
        }
        self.refcounts.settle(&self.map.tables, writable(&*self.source)?)?;
        commit(&self.map, &mut self.refcounts)
    }

    /// Says of every entry of the present state whether it is the only reference to what it leads to.
    fn set_flags(&mut self, l1: &[u64]) -> Result<()> {
        for (index, &entry) in l1.iter().enumerate() {
            let table = entry & OFFSET;
            if table == 0 {
                continue;
            }
            self.set_flag(self.map.l1_offset + index as u64 * 8, entry, table)?;
            for index in 0..self.map.cluster_size() / self.map.entry_size() {
                let entry = self.map.l2_entry(table, index)?.cluster;
                if entry & COMPRESSED == 0 && entry & OFFSET != 0 {
                    self.set_flag(table + index * self.map.entry_size(), entry, entry & OFFSET)?;
                }
            }
            if self.map.tables.changes() as u64 * self.map.cluster_size() > MAX_CHANGED as u64 {
                commit(&self.map, &mut self.refcounts)?;
            }
        }
        commit(&self.map, &mut self.refcounts)
    }

    fn set_flag(&mut self, at: u64, entry: u64, host: u64) -> Result<()> {
        let tables = &self.map.tables;
        let count = self.refcounts.get(tables, host >> self.map.cluster_bits)?;
        let wanted = if count == 1 { entry | COPIED } else { entry & !COPIED };
        if wanted == entry {
            return Ok(());
        }
        tables.change(at, &wanted.to_be_bytes(), Stage::Second)
    }

    fn close(&mut self) -> Result<()> {
        commit(&self.map, &mut self.refcounts)?;
        commit(&self.map, &mut self.refcounts)
    }
}
