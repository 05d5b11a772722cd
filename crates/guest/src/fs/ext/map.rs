//! Where the blocks of a file lie: a tree of extents, or blocks of pointers.

use super::inode::Inode;
use super::{Ext, damaged};
use crate::Result;
use crate::checksum::crc32c;
use crate::volume::at;

/// Most extents of a file, and most blocks that say where they are.
const MAX_EXTENTS: usize = 1 << 20;
/// Blocks that a file may have.
pub const WHOLE_FILE: u64 = 1 << 32;
/// Deepest tree of extents.
const MAX_DEPTH: u16 = 5;
const MAGIC: u16 = 0xf30a;
const ENTRY: usize = 12;

/// Blocks that lie one after another. What is between two of them is zeroes.
pub struct Extent {
    pub logical: u64,
    pub physical: u64,
    pub count: u64,
}

/// What was found so far.
struct Found {
    extents: Vec<Extent>,
    /// Blocks from here on are of no interest.
    wanted: u64,
    /// Blocks that may still be looked into.
    left: usize,
    seed: Option<u32>,
}

impl Ext {
    /// Where the first blocks of a file lie, in their order.
    pub(super) fn extents(&self, inode: &Inode, wanted: u64) -> Result<Vec<Extent>> {
        let mut found = Found { extents: Vec::new(), wanted, left: MAX_EXTENTS, seed: inode.seed };
        if let Some(changed) = self.changes.extents.get(&inode.number) {
            for (&logical, &(physical, count)) in changed.range(..wanted) {
                found.add(logical, physical, count).ok_or_else(|| damaged("a fast commit"))?;
            }
        } else if inode.has_extents() {
            self.tree(inode.map(), None, &mut found)?;
        } else {
            self.pointers(inode.map(), &mut found)?;
        }
        Ok(found.extents)
    }

    /// A node of a tree of extents.
    fn tree(&self, node: &[u8], expected: Option<u16>, found: &mut Found) -> Result<()> {
        const LONGEST_WRITTEN: u16 = 1 << 15;
        let bad = || damaged("a tree of extents");
        let half = |offset| at::le16(node, offset).ok_or_else(bad);
        let (count, depth) = (usize::from(half(2)?), half(6)?);
        // A level less each time, so that no tree leads back to itself.
        if half(0)? != MAGIC
            || depth > expected.unwrap_or(MAX_DEPTH)
            || depth != expected.unwrap_or(depth)
        {
            return Err(bad());
        }
        let entries = node.get(ENTRY..).and_then(|rest| rest.get(..count * ENTRY));
        for entry in entries.ok_or_else(bad)?.chunks_exact(ENTRY) {
            let half = |offset| at::le16(entry, offset).unwrap_or(0);
            let word = |offset| u64::from(at::le32(entry, offset).unwrap_or(0));
            let logical = word(0);
            if logical >= found.wanted {
                break;
            }
            if depth == 0 {
                let length = half(4);
                // Longer ones were only set aside, and read as zeroes.
                if length <= LONGEST_WRITTEN {
                    let physical = word(8) | u64::from(half(6)) << 32;
                    found.add(logical, physical, length.into()).ok_or_else(bad)?;
                }
                continue;
            }
            found.left = found.left.checked_sub(1).ok_or_else(bad)?;
            let child = self.block(word(4) | u64::from(half(8)) << 32)?;
            let end = ENTRY + usize::from(at::le16(&child, 4).ok_or_else(bad)?) * ENTRY;
            if let Some(seed) = found.seed {
                let checksum = child.get(..end).map(|covered| crc32c(seed, covered));
                if checksum.is_none() || at::le32(&child, end) != checksum {
                    return Err(bad());
                }
            }
            self.tree(&child, Some(depth - 1), found)?;
        }
        Ok(())
    }

    /// The pointers of an inode: twelve to blocks, and three to blocks of pointers, of pointers to those and so on.
    fn pointers(&self, map: &[u8], found: &mut Found) -> Result<()> {
        const DIRECT: usize = 12;
        let mut logical = 0;
        for (index, pointer) in map.chunks_exact(4).enumerate() {
            let pointer = at::le32(pointer, 0).unwrap_or(0);
            let level = index.saturating_sub(DIRECT - 1) as u32;
            self.pointer(pointer, level, &mut logical, found)?;
        }
        Ok(())
    }

    /// What is behind a pointer; `logical` moves on to what follows that.
    fn pointer(
        &self,
        pointer: u32,
        level: u32,
        logical: &mut u64,
        found: &mut Found,
    ) -> Result<()> {
        let bad = || damaged("a list of blocks");
        if pointer == 0 || level == 0 {
            let each = self.superblock.block / 4;
            if pointer != 0 {
                found.add(*logical, pointer.into(), 1).ok_or_else(bad)?;
            }
            *logical += each.pow(level);
            return Ok(());
        }
        if *logical < found.wanted {
            found.left = found.left.checked_sub(1).ok_or_else(bad)?;
            for pointer in self.block(pointer.into())?.chunks_exact(4) {
                if *logical < found.wanted {
                    let pointer = at::le32(pointer, 0).unwrap_or(0);
                    self.pointer(pointer, level - 1, logical, found)?;
                }
            }
        }
        Ok(())
    }
}

impl Found {
    /// Adds what is wanted of an extent; `None` if it does not follow those before.
    fn add(&mut self, logical: u64, physical: u64, count: u64) -> Option<()> {
        let count = count.min(self.wanted.saturating_sub(logical));
        if count == 0 {
            return Some(());
        }
        if let Some(last) = self.extents.last_mut() {
            let end = last.logical + last.count;
            if end > logical {
                return None;
            }
            if (end, last.physical.checked_add(last.count)?) == (logical, physical) {
                last.count += count;
                return Some(());
            }
        }
        self.extents.push(Extent { logical, physical, count });
        (self.extents.len() <= MAX_EXTENTS).then_some(())
    }
}
