//! Folders: lists of names in blocks, or in the inode. Blocks of the hash tree look like blocks without names.

use super::{Ext, damaged};
use crate::checksum::crc32c;
use crate::fs::Kind;
use crate::fs::folder::DirEntry;
use crate::volume::at;
use crate::{Error, Result};

/// Most blocks of a folder.
const MAX_BLOCKS: u64 = 1 << 20;
const HEADER: usize = 8;

type Visit<'a> = crate::fs::folder::Visit<'a, u32>;

impl Ext {
    /// Shows every entry but `.` and `..` to `visit` until that has seen enough.
    pub(super) fn each_entry(&self, folder: u32, visit: &mut Visit<'_>) -> Result<()> {
        if let Some(entries) = self.changes.folders.get(&folder) {
            for (name, &(inode, kind)) in entries {
                if !visit(DirEntry { name, inode, kind })? {
                    break;
                }
            }
            return Ok(());
        }
        let inode = self.inode(folder)?;
        if inode.is_encrypted() {
            return Err(Error::unsupported("folder", "it is encrypted"));
        }
        if inode.is_inline() {
            let [first, rest] = inode.inline().ok_or_else(|| damaged("a folder"))?;
            // The number of the folder above comes first.
            let _ = self.entries(&first[4..], visit)? && self.entries(rest, visit)?;
            return Ok(());
        }
        let blocks = (inode.size / self.superblock.block).min(MAX_BLOCKS);
        for extent in self.extents(&inode, blocks)? {
            for index in 0..extent.count {
                let block = self.block(extent.physical.saturating_add(index))?;
                // Blocks of the hash tree have their checksums elsewhere, and no names.
                let is_first = extent.logical + index == 0;
                let is_tree = inode.has_hash_tree() && (is_first || is_one_entry(&block));
                if !is_tree && inode.seed.is_some_and(|seed| !is_whole(&block, seed)) {
                    return Err(damaged("a folder"));
                }
                if !self.entries(&block, visit)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The entries of a block; whether more are wanted.
    fn entries(&self, block: &[u8], visit: &mut Visit<'_>) -> Result<bool> {
        let bad = || damaged("a folder");
        let mut place = 0;
        while place + HEADER <= block.len() {
            let entry = &block[place..];
            let inode = at::le32(entry, 0).ok_or_else(bad)?;
            let step = step_of(entry, block.len()).ok_or_else(bad)?;
            let length = usize::from(entry[6]);
            let name = entry.get(HEADER..).and_then(|rest| rest.get(..length)).ok_or_else(bad)?;
            if step < HEADER + length || step > entry.len() {
                return Err(bad());
            }
            let kind = match entry[7] {
                1 => Some(Kind::File),
                2 => Some(Kind::Folder),
                7 => Some(Kind::Link),
                3..=6 => Some(Kind::Other),
                _ => None,
            };
            let kind = kind.filter(|_| self.superblock.has_file_types());
            if inode != 0
                && length > 0
                && !matches!(name, b"." | b"..")
                && !visit(DirEntry { name, inode, kind })?
            {
                return Ok(false);
            }
            place += step;
        }
        Ok(true)
    }
}

/// Bytes from an entry to the next one.
fn step_of(entry: &[u8], block: usize) -> Option<usize> {
    Some(match usize::from(at::le16(entry, 4)?) {
        // The length of the largest block does not fit.
        0 | 0xffff if block == 1 << 16 => block,
        step => step,
    })
}

/// A block has one entry, which is as long as itself.
fn is_one_entry(block: &[u8]) -> bool {
    step_of(block, block.len()) == Some(block.len())
}

/// A block of names has a tail with its checksum, and that is right.
fn is_whole(block: &[u8], seed: u32) -> bool {
    const TAIL: usize = 12;
    let (names, tail) = block.split_at(block.len() - TAIL);
    tail.starts_with(&[0, 0, 0, 0, TAIL as u8, 0, 0, 0xde])
        && at::le32(tail, 8) == Some(crc32c(seed, names))
}
