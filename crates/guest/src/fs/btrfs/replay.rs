//! The log: trees of what was synchronised since the last commit, one for each subvolume, which is put over it in memory
//! (as fs/btrfs/tree-log.c does on disk).
//!
//! Whatever the log touches is kept here whole: inodes, the extents of files and the entries of folders.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::dir::{DirItem, dir_item};
use super::tree::{Key, Root};
use super::{Btrfs, DIR_INDEX, INODE_ITEM, INODE_REF, MAX_ENTRIES, ROOT_ITEM, damaged};
use crate::Result;
use crate::fs::Kind;
use crate::volume::at;

/// Object of the log's trees in the tree of them.
const LOG_TREES: u64 = (-6_i64).cast_unsigned();
const INODE_EXTREF: u8 = 13;
const DIR_LOG_INDEX: u8 = 72;
const EXTENT_DATA: u8 = 108;
const INLINE: u8 = 0;
/// Most bytes of a log's items.
const MAX_LOG: usize = 64 << 20;
/// Most extents of one file that the log changes.
const MAX_EXTENTS: usize = 1 << 20;

/// What the log changes in one subvolume.
#[derive(Default)]
pub struct Changes {
    pub inodes: HashMap<u64, Vec<u8>>,
    /// By their first byte.
    pub extents: HashMap<u64, BTreeMap<u64, Vec<u8>>>,
    /// By their index.
    pub folders: HashMap<u64, BTreeMap<u64, Vec<u8>>>,
}

/// What the log with this root changes, by subvolume.
pub fn replay(fs: &Btrfs, log: Root) -> Result<HashMap<u64, Changes>> {
    let mut trees = Vec::new();
    fs.each_item(log, Key::new(LOG_TREES, ROOT_ITEM, 0), &mut |key, item| {
        if (key.object, key.kind) != (LOG_TREES, ROOT_ITEM) {
            return Ok(false);
        }
        trees.push((key.offset, Root::of_item(item).ok_or_else(|| damaged("its log"))?));
        Ok(trees.len() < MAX_ENTRIES)
    })?;
    let mut left = MAX_LOG;
    let mut changes = HashMap::new();
    for (tree, root) in trees {
        // One that was deleted since.
        if fs.subvolume(tree).is_err() {
            continue;
        }
        let mut items = BTreeMap::new();
        fs.each_item(root, Key::MIN, &mut |key, item| {
            left = left.checked_sub(item.len() + 64).ok_or_else(|| damaged("its log"))?;
            items.insert(*key, item.to_vec());
            Ok(true)
        })?;
        let ignored = items.iter().filter(|(key, item)| is_unlinked(key, item));
        let ignored = ignored.map(|(key, _)| key.object).collect();
        let replay = Replay { fs, tree, log: &items, ignored, changes: Changes::default() };
        changes.insert(tree, replay.run()?);
    }
    Ok(changes)
}

/// An inode that was only open, and had no name any more.
fn is_unlinked(key: &Key, item: &[u8]) -> bool {
    key.kind == INODE_ITEM && at::le32(item, 40) == Some(0)
}

struct Replay<'a> {
    fs: &'a Btrfs,
    tree: u64,
    log: &'a BTreeMap<Key, Vec<u8>>,
    ignored: HashSet<u64>,
    changes: Changes,
}

/// A name of an inode.
struct Reference<'a> {
    folder: u64,
    index: u64,
    name: &'a [u8],
}

impl<'a> Replay<'a> {
    fn run(mut self) -> Result<Changes> {
        for (key, item) in self.items(INODE_ITEM) {
            self.inode(key.object, item)?;
        }
        for (key, item) in self.items(DIR_INDEX) {
            self.entry(key, item)?;
        }
        for (key, item) in self.items(INODE_REF).chain(self.items(INODE_EXTREF)) {
            self.references(key, item)?;
        }
        for (key, item) in self.items(EXTENT_DATA) {
            if self.inode_item(key.object)?.is_some() {
                self.extent(key, item)?;
            }
        }
        Ok(self.changes)
    }

    /// The log's items of a kind.
    fn items(&self, kind: u8) -> impl Iterator<Item = (&'a Key, &'a Vec<u8>)> + use<'a> {
        let ignored = self.ignored.clone();
        let wanted =
            move |(key, _): &(&Key, &Vec<u8>)| key.kind == kind && !ignored.contains(&key.object);
        self.log.iter().filter(wanted)
    }

    fn inode_item(&self, inode: u64) -> Result<Option<Vec<u8>>> {
        if let Some(known) = self.changes.inodes.get(&inode) {
            return Ok(Some(known.clone()));
        }
        let mut found = None;
        let root = self.fs.subvolume(self.tree)?;
        self.fs.each_item(root, Key::new(inode, INODE_ITEM, 0), &mut |key, item| {
            found = ((key.object, key.kind) == (inode, INODE_ITEM)).then(|| item.to_vec());
            Ok(false)
        })?;
        Ok(found)
    }

    /// The entries of a folder, as the log has changed them so far.
    fn folder(&mut self, inode: u64) -> Result<&mut BTreeMap<u64, Vec<u8>>> {
        if !self.changes.folders.contains_key(&inode) {
            let mut entries = BTreeMap::new();
            let root = self.fs.subvolume(self.tree)?;
            self.fs.each_item(root, Key::new(inode, DIR_INDEX, 0), &mut |key, item| {
                let is_wanted = (key.object, key.kind) == (inode, DIR_INDEX);
                if is_wanted {
                    entries.insert(key.offset, item.to_vec());
                }
                Ok(is_wanted && entries.len() < MAX_ENTRIES)
            })?;
            self.changes.folders.insert(inode, entries);
        }
        self.changes.folders.get_mut(&inode).ok_or_else(|| damaged("a folder"))
    }

    /// An inode, and what goes away with what it was.
    fn inode(&mut self, inode: u64, item: &[u8]) -> Result<()> {
        let bad = || damaged("an inode in its log");
        let kind_of = |item: &[u8]| at::le32(item, 52).map(Kind::of_mode).ok_or_else(bad);
        let mut new = item.to_vec();
        let kind = kind_of(item)?;
        if let Some(old) = self.inode_item(inode)? {
            let is_same = kind_of(&old)? == kind;
            // Without a generation only that there is such an inode was logged.
            if at::le64(item, 0) == Some(0) {
                let size = at::le64(item, 16).ok_or_else(bad)?;
                new.clone_from(&old);
                if is_same && kind == Kind::File && size != 0 {
                    new[16..24].copy_from_slice(&size.to_le_bytes());
                }
            } else if is_same && kind == Kind::Folder {
                new[16..24].copy_from_slice(old.get(16..24).ok_or_else(bad)?);
            }
        }
        let size = at::le64(&new, 16).ok_or_else(bad)?;
        self.changes.inodes.insert(inode, new);
        match kind {
            Kind::Folder => self.removed_entries(inode),
            Kind::File => {
                let end = size.checked_next_multiple_of(self.fs.sector as u64).ok_or_else(bad)?;
                let sector = self.fs.sector;
                drop_extents(self.extents(inode)?, end, u64::MAX, sector).ok_or_else(bad)
            }
            _ => Ok(()),
        }
    }

    /// Of ranges of a folder the log has all entries.
    fn removed_entries(&mut self, inode: u64) -> Result<()> {
        let log = self.log;
        let ranges =
            log.range(Key::new(inode, DIR_LOG_INDEX, 0)..=Key::new(inode, DIR_LOG_INDEX, u64::MAX));
        for (key, item) in ranges {
            let end = at::le64(item, 0).ok_or_else(|| damaged("a folder in its log"))?;
            self.folder(inode)?.retain(|index, entry| {
                !(key.offset..=end).contains(index)
                    || log.contains_key(&Key::new(inode, DIR_INDEX, *index))
                    || DirItem::of(entry, 0).is_none_or(|(entry, _)| entry.is_subvolume)
            });
        }
        Ok(())
    }

    /// A name in a folder.
    fn entry(&mut self, key: &Key, item: &[u8]) -> Result<()> {
        let tree = self.tree;
        let (new, _) = DirItem::of(item, tree).ok_or_else(|| damaged("a folder in its log"))?;
        if self.inode_item(key.object)?.is_none() {
            return Ok(());
        }
        if self.make_room(key.object, key.offset, &new)? {
            return Ok(());
        }
        // One whose inode was logged as well is added with that.
        let (_, target) = new.id;
        let is_logged = self.logged_names(target, key.object)?.contains(&new.name.to_vec());
        if !is_logged && (new.is_subvolume || self.inode_item(target)?.is_some()) {
            self.folder(key.object)?.insert(key.offset, item.to_vec());
        }
        Ok(())
    }

    /// Removes what has the same name or the same index as a new entry; whether that is there already.
    fn make_room(&mut self, folder: u64, index: u64, new: &DirItem<'_>) -> Result<bool> {
        let tree = self.tree;
        let mut is_there = false;
        self.folder(folder)?.retain(|&at, old| {
            let Some((old, _)) = DirItem::of(old, tree) else { return false };
            let is_same = old.name == new.name && old.id == new.id;
            is_there |= is_same;
            is_same || old.name != new.name && at != index
        });
        Ok(is_there)
    }

    /// The names that the log has for an inode in a folder.
    fn logged_names(&self, inode: u64, folder: u64) -> Result<Vec<Vec<u8>>> {
        let single = self.log.get_key_value(&Key::new(inode, INODE_REF, folder));
        let range = Key::new(inode, INODE_EXTREF, 0)..=Key::new(inode, INODE_EXTREF, u64::MAX);
        let mut names = Vec::new();
        for (key, item) in single.into_iter().chain(self.log.range(range)) {
            let references = references_of(key, item)?.into_iter();
            let here = references.filter(|reference| reference.folder == folder);
            names.extend(here.map(|reference| reference.name.to_vec()));
        }
        Ok(names)
    }

    /// The names of an inode that was logged.
    fn references(&mut self, key: &Key, item: &[u8]) -> Result<()> {
        let Some(inode) = self.inode_item(key.object)? else { return Ok(()) };
        let kind = Kind::of_mode(at::le32(&inode, 52).unwrap_or(0));
        let references = references_of(key, item)?;
        for reference in &references {
            // The root of a subvolume is `..` in itself, and no folder has an entry for that.
            if reference.folder == key.object || self.inode_item(reference.folder)?.is_none() {
                continue;
            }
            let item = dir_item(key.object, kind, reference.name);
            let (new, _) = DirItem::of(&item, self.tree).ok_or_else(|| damaged("a name"))?;
            if !self.make_room(reference.folder, reference.index, &new)? {
                self.folder(reference.folder)?.insert(reference.index, item);
            }
        }
        // Names that it had in these folders and has no more.
        let folders: HashSet<u64> = references.iter().map(|reference| reference.folder).collect();
        let tree = self.tree;
        for folder in folders {
            let names = self.logged_names(key.object, folder)?;
            if self.inode_item(folder)?.is_none() {
                continue;
            }
            self.folder(folder)?.retain(|_, entry| {
                DirItem::of(entry, tree).is_some_and(|(entry, _)| {
                    entry.id != (tree, key.object) || names.iter().any(|name| name == entry.name)
                })
            });
        }
        Ok(())
    }

    /// The extents of a file, as the log has changed them so far.
    fn extents(&mut self, inode: u64) -> Result<&mut BTreeMap<u64, Vec<u8>>> {
        if !self.changes.extents.contains_key(&inode) {
            let mut extents = BTreeMap::new();
            let root = self.fs.subvolume(self.tree)?;
            self.fs.each_item(root, Key::new(inode, EXTENT_DATA, 0), &mut |key, item| {
                if (key.object, key.kind) != (inode, EXTENT_DATA) {
                    return Ok(false);
                }
                extents.insert(key.offset, item.to_vec());
                if extents.len() > MAX_EXTENTS { Err(damaged("a file")) } else { Ok(true) }
            })?;
            self.changes.extents.insert(inode, extents);
        }
        self.changes.extents.get_mut(&inode).ok_or_else(|| damaged("a file"))
    }

    fn extent(&mut self, key: &Key, item: &[u8]) -> Result<()> {
        let bad = || damaged("an extent in its log");
        let sector = self.fs.sector;
        let end = end_of(key.offset, item, sector).ok_or_else(bad)?;
        let extents = self.extents(key.object)?;
        drop_extents(extents, key.offset, end, sector).ok_or_else(bad)?;
        extents.insert(key.offset, item.to_vec());
        Ok(())
    }
}

/// The first byte behind an extent.
fn end_of(start: u64, item: &[u8], sector: usize) -> Option<u64> {
    if at::u8(item, 20)? == INLINE {
        return start.checked_add(at::le64(item, 8)?)?.checked_next_multiple_of(sector as u64);
    }
    start.checked_add(at::le64(item, 45)?)
}

/// Leaves nothing of extents between two places.
fn drop_extents(
    extents: &mut BTreeMap<u64, Vec<u8>>,
    from: u64,
    to: u64,
    sector: usize,
) -> Option<()> {
    let before = extents.range(..from).next_back().map(|(start, _)| *start);
    let within = extents.range(from..).map(|(start, _)| *start).take_while(|start| *start < to);
    for start in before.into_iter().chain(within).collect::<Vec<_>>() {
        let item = extents.get(&start)?.clone();
        let end = end_of(start, &item, sector)?;
        if end <= from {
            continue;
        }
        extents.remove(&start);
        if item[20] == INLINE {
            continue;
        }
        if start < from {
            let mut left = item.clone();
            left[45..53].copy_from_slice(&(from - start).to_le_bytes());
            extents.insert(start, left);
        }
        if end > to {
            let mut right = item;
            let skip = at::le64(&right, 37)?.checked_add(to - start)?;
            right[37..45].copy_from_slice(&skip.to_le_bytes());
            right[45..53].copy_from_slice(&(end - to).to_le_bytes());
            extents.insert(to, right);
        }
    }
    Some(())
}

fn references_of<'a>(key: &Key, mut bytes: &'a [u8]) -> Result<Vec<Reference<'a>>> {
    let bad = || damaged("a name in its log");
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let (folder, rest) = match key.kind {
            INODE_REF => (key.offset, bytes),
            _ => (at::le64(bytes, 0).ok_or_else(bad)?, &bytes[8..]),
        };
        let index = at::le64(rest, 0).ok_or_else(bad)?;
        let length = usize::from(at::le16(rest, 8).ok_or_else(bad)?);
        let (name, rest) = rest[10..].split_at_checked(length).ok_or_else(bad)?;
        found.push(Reference { folder, index, name });
        bytes = rest;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An extent of so many bytes, the first of which is `skip` bytes into the space that it lies in.
    fn extent(skip: u64, length: u64) -> Vec<u8> {
        let mut item = vec![0; 53];
        item[20] = 1;
        item[37..45].copy_from_slice(&skip.to_le_bytes());
        item[45..].copy_from_slice(&length.to_le_bytes());
        item
    }

    proptest! {
        #[test]
        fn extents_are_cut_where_others_replace_them(
            changes in prop::collection::vec((0..200_u64, 1..60_u64), 1..20),
        ) {
            // Each byte is known by the extent that it came with and its place there.
            let mut expected = vec![None; 300];
            let mut extents = BTreeMap::new();
            for (number, (start, length)) in changes.into_iter().enumerate() {
                let first = number as u64 * 1000;
                drop_extents(&mut extents, start, start + length, 512).unwrap();
                extents.insert(start, extent(first, length));
                for index in 0..length {
                    expected[(start + index) as usize] = Some(first + index);
                }
            }
            let mut found = vec![None; 300];
            for (start, item) in extents {
                for index in 0..at::le64(&item, 45).unwrap() {
                    let place = &mut found[(start + index) as usize];
                    prop_assert!(place.is_none());
                    *place = Some(at::le64(&item, 37).unwrap() + index);
                }
            }
            prop_assert_eq!(found, expected);
        }
    }
}
