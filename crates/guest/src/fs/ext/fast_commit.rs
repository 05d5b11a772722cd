//! Fast commits: what has changed since the journal's last transaction, as records of files and names behind its ring
//! (fs/ext4/fast_commit.c). All numbers are little-endian.
//!
//! Whatever they change is kept here whole: inodes, the extents of files and the entries of folders.

use std::collections::{BTreeMap, HashMap};

use super::inode::{Inode, MAP};
use super::map::WHOLE_FILE;
use super::{Ext, damaged};
use crate::checksum::crc32c;
use crate::fs::Kind;
use crate::volume::at;
use crate::{Error, Result};

/// Kinds of records.
const ADD_RANGE: u16 = 1;
const DEL_RANGE: u16 = 2;
const CREAT: u16 = 3;
const LINK: u16 = 4;
const UNLINK: u16 = 5;
const INODE: u16 = 6;
const PAD: u16 = 7;
const TAIL: u16 = 8;
const HEAD: u16 = 9;
/// Kind and length of a record.
const HEADER: usize = 4;

/// Most bytes of records, and of what they change.
const MAX_RECORDS: usize = 64 << 20;
const MAX_CHANGED: usize = 256 << 20;

/// Fields of an inode.
const LINKS: usize = 0x1a;
const GENERATION: usize = 0x64;

/// What fast commits change.
#[derive(Default)]
pub struct Changes {
    /// As they lie on the volume.
    pub inodes: HashMap<u32, Vec<u8>>,
    pub extents: HashMap<u32, Extents>,
    pub folders: HashMap<u32, Entries>,
}

/// Where blocks lie and how many together, by the first one's place in the file.
pub type Extents = BTreeMap<u64, (u64, u64)>;

/// The inodes that a folder's names lead to, and what they are where that is known.
pub type Entries = BTreeMap<Vec<u8>, (u32, Option<Kind>)>;

/// What a record says.
pub enum Record {
    /// The inode is now so, but for where its blocks lie.
    Inode { inode: u32, bytes: Vec<u8> },
    /// These blocks of the file lie there; nowhere, if they are zeroes.
    Range { inode: u32, logical: u64, count: u64, physical: Option<u64> },
    /// The folder has, or has no more, this name for the inode.
    Name { folder: u32, inode: u32, name: Vec<u8>, change: Change },
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is the first name of a new inode.
    Created,
    Linked,
    Unlinked,
}

/// The records of the commits that are whole and follow the transaction before `sequence`; `block` gives the blocks of the
/// area by number.
pub fn records(sequence: u32, block: impl Fn(u32) -> Result<Vec<u8>>) -> Result<Vec<Record>> {
    let (mut records, mut open) = (Vec::new(), Vec::new());
    let (mut checksum, mut left) = (0, MAX_RECORDS);
    for number in 0.. {
        // The area ends with the journal.
        let Ok(block) = block(number) else { return Ok(records) };
        if number == 0 && at::le16(&block, 0) != Some(HEAD) {
            return Ok(records);
        }
        left = left.checked_sub(block.len()).ok_or_else(too_long)?;
        let mut rest = &block[..];
        while let Some((kind, length)) = at::le16(rest, 0).zip(at::le16(rest, 2)) {
            let end = HEADER + usize::from(length);
            // Whatever is no record was not written to its end, and nothing behind it counts.
            let Some(record) = rest.get(..end) else { return Ok(records) };
            let value = &record[HEADER..];
            let covered = if kind == TAIL { HEADER + 4 } else { end };
            let Some(bytes) = record.get(..covered) else { return Ok(records) };
            checksum = crc32c(checksum, bytes);
            match kind {
                HEAD if at::le32(value, 4) == Some(sequence) => {
                    if at::le32(value, 0) != Some(0) {
                        return Err(Error::unsupported(
                            "journal",
                            "its fast commits have features that are not known here",
                        ));
                    }
                }
                PAD => {}
                TAIL => {
                    let is_whole = at::le32(value, 4) == Some(checksum);
                    if !is_whole || at::le32(value, 0) != Some(sequence) {
                        return Ok(records);
                    }
                    records.append(&mut open);
                    checksum = 0;
                }
                kind => match Record::of(kind, value) {
                    Some(record) => open.push(record),
                    None => return Ok(records),
                },
            }
            rest = &rest[end..];
        }
    }
    Ok(records)
}

/// For fuzzing: the records in these bytes, whatever their checksums.
pub fn unchecked(mut bytes: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    while let Some((kind, length)) = at::le16(bytes, 0).zip(at::le16(bytes, 2)) {
        // Most lengths that come by chance are too long.
        let end = (HEADER + usize::from(length % 300)).min(bytes.len());
        records.extend(Record::of(kind, &bytes[HEADER..end]));
        bytes = &bytes[end..];
    }
    records
}

impl Record {
    fn of(kind: u16, value: &[u8]) -> Option<Self> {
        const LONGEST_WRITTEN: u16 = 1 << 15;
        let word = |offset| at::le32(value, offset);
        let inode = word(0)?;
        Some(match kind {
            ADD_RANGE => {
                let (count, high) = at::le16(value, 8).zip(at::le16(value, 10))?;
                let physical = u64::from(word(12)?) | u64::from(high) << 32;
                // As in a tree of extents, longer ones were only set aside.
                let is_written = count <= LONGEST_WRITTEN;
                let count = if is_written { count } else { count - LONGEST_WRITTEN };
                Self::Range {
                    inode,
                    logical: word(4)?.into(),
                    count: count.into(),
                    physical: is_written.then_some(physical),
                }
            }
            DEL_RANGE => {
                let (logical, count) = (word(4)?.into(), word(8)?.into());
                Self::Range { inode, logical, count, physical: None }
            }
            CREAT | LINK | UNLINK => {
                let change = match kind {
                    CREAT => Change::Created,
                    LINK => Change::Linked,
                    _ => Change::Unlinked,
                };
                let name = value.get(8..).filter(|name| (1..256).contains(&name.len()))?;
                Self::Name { folder: inode, inode: word(4)?, name: name.to_vec(), change }
            }
            INODE => Self::Inode { inode, bytes: value[4..].to_vec() },
            _ => return None,
        })
    }
}

/// What the records change.
pub fn replay(fs: &Ext, records: Vec<Record>) -> Result<Changes> {
    let mut replay = Replay { fs, changes: Changes::default(), left: MAX_CHANGED };
    for record in records {
        match record {
            Record::Inode { inode, bytes } => replay.inode(inode, &bytes)?,
            Record::Range { inode, logical, count, physical } => {
                replay.range(inode, logical, count, physical)?;
            }
            Record::Name { folder, inode, name, change } => {
                replay.name(folder, inode, name, change)?;
            }
        }
    }
    Ok(replay.changes)
}

struct Replay<'a> {
    fs: &'a Ext,
    changes: Changes,
    /// Bytes that may still be kept.
    left: usize,
}

impl Replay<'_> {
    fn inode(&mut self, inode: u32, bytes: &[u8]) -> Result<()> {
        let known = self.known(inode)?;
        let bad = || damaged("an inode in a fast commit");
        let end = bytes.len();
        if end > known.len() || end < GENERATION + 4 {
            return Err(bad());
        }
        let mut new = known.clone();
        new[..MAP.start].copy_from_slice(&bytes[..MAP.start]);
        new[GENERATION..end].copy_from_slice(&bytes[GENERATION..]);
        let of = |bytes: &[u8]| Inode::of(bytes, inode, None);
        // Where its blocks lie is told by ranges; else there is something else in that place.
        if !of(&new).has_extents() {
            new[MAP].copy_from_slice(&bytes[MAP]);
        } else if !of(known).has_extents() {
            self.changes.extents.insert(inode, Extents::new());
        }
        self.changes.inodes.insert(inode, new);
        Ok(())
    }

    fn range(&mut self, inode: u32, logical: u64, count: u64, physical: Option<u64>) -> Result<()> {
        if self.links(inode)? == 0 {
            return Ok(());
        }
        if !self.changes.extents.contains_key(&inode) {
            let seed = self.fs.superblock.seed;
            let before = Inode::of(self.known(inode)?, inode, seed);
            let before = self.fs.extents(&before, WHOLE_FILE)?;
            self.keep(before.len() * 64)?;
            let extents = before.iter().map(|one| (one.logical, (one.physical, one.count)));
            self.changes.extents.insert(inode, extents.collect());
        }
        self.keep(2 * 64)?;
        let extents = self.changes.extents.entry(inode).or_default();
        cut(extents, logical, logical + count);
        if let Some(physical) = physical {
            extents.insert(logical, (physical, count));
        }
        Ok(())
    }

    fn name(&mut self, folder: u32, inode: u32, name: Vec<u8>, change: Change) -> Result<()> {
        let links = self.links(inode)?;
        if links == 0 || self.links(folder)? == 0 {
            return Ok(());
        }
        let is_folder = Inode::of(self.known(inode)?, inode, None).kind() == Kind::Folder;
        if change == Change::Created && is_folder {
            self.changes.folders.insert(inode, Entries::new());
        }
        self.open_folder(folder)?;
        self.keep(64 + name.len())?;
        let entries = self.changes.folders.entry(folder).or_default();
        let links = if change == Change::Unlinked {
            // Somebody else may have the name by now.
            if entries.get(&name).is_some_and(|(other, _)| *other == inode) {
                entries.remove(&name);
            }
            links - 1
        } else {
            entries.entry(name).or_insert((inode, None));
            if change == Change::Created { 1 } else { links.saturating_add(1) }
        };
        if let Some(bytes) = self.changes.inodes.get_mut(&inode) {
            bytes[LINKS..LINKS + 2].copy_from_slice(&links.to_le_bytes());
        }
        // Whoever gets the inode next begins without blocks.
        if links == 0 {
            self.changes.extents.insert(inode, Extents::new());
        }
        Ok(())
    }

    /// Keeps the entries that a folder has.
    fn open_folder(&mut self, folder: u32) -> Result<()> {
        if self.changes.folders.contains_key(&folder) {
            return Ok(());
        }
        let mut entries = Entries::new();
        let mut left = self.left;
        self.fs.each_entry(folder, &mut |entry| {
            left = left.checked_sub(64 + entry.name.len()).ok_or_else(too_long)?;
            entries.insert(entry.name.to_vec(), (entry.inode, entry.kind));
            Ok(true)
        })?;
        self.left = left;
        self.changes.folders.insert(folder, entries);
        Ok(())
    }

    /// Names that lead to an inode; 0 where there is none.
    fn links(&mut self, inode: u32) -> Result<u16> {
        Ok(at::le16(self.known(inode)?, LINKS).unwrap_or(0))
    }

    /// An inode as it is by now.
    fn known(&mut self, inode: u32) -> Result<&Vec<u8>> {
        if !self.changes.inodes.contains_key(&inode) {
            let bytes = self.fs.inode_bytes(inode)?;
            self.keep(64 + bytes.len())?;
            self.changes.inodes.insert(inode, bytes);
        }
        Ok(&self.changes.inodes[&inode])
    }

    fn keep(&mut self, bytes: usize) -> Result<()> {
        self.left = self.left.checked_sub(bytes).ok_or_else(too_long)?;
        Ok(())
    }
}

/// Takes the blocks of a file from `start` to `end` away.
fn cut(extents: &mut Extents, start: u64, end: u64) {
    let before = extents.range(..start).next_back().map(|(first, _)| *first);
    let within: Vec<u64> = extents.range(start..end).map(|(first, _)| *first).collect();
    for first in before.into_iter().chain(within) {
        let Some((physical, count)) = extents.remove(&first) else { continue };
        if first < start {
            extents.insert(first, (physical, count.min(start - first)));
        }
        if first + count > end {
            let skipped = end.max(first) - first;
            extents.insert(first + skipped, (physical + skipped, count - skipped));
        }
    }
}

fn too_long() -> Error {
    Error::unsupported("journal", "its fast commits are too long to be kept in memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_out_of_extents() {
        let whole = Extents::from([(0, (100, 10)), (20, (200, 5)), (30, (300, 1))]);
        for (start, end, expected) in [
            (3, 5, &[(0, (100, 3)), (5, (105, 5)), (20, (200, 5)), (30, (300, 1))][..]),
            (0, 10, &[(20, (200, 5)), (30, (300, 1))]),
            (9, 22, &[(0, (100, 9)), (22, (202, 3)), (30, (300, 1))]),
            (10, 20, &[(0, (100, 10)), (20, (200, 5)), (30, (300, 1))]),
            (0, 99, &[]),
        ] {
            let mut extents = whole.clone();
            cut(&mut extents, start, end);
            assert!(extents.into_iter().eq(expected.iter().copied()), "{start} to {end}");
        }
    }
}
