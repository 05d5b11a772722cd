//! Folders: in the inode, or in blocks of their own.

use super::{Xfs, damaged};
use crate::Result;
use crate::fs::Kind;
use crate::fs::folder::DirEntry;
use crate::volume::{at, read};

/// From here on a folder's blocks hold its index, in bytes.
const LEAF_OFFSET: u64 = 1 << 35;
const LOCAL: u8 = 1;
const UNUSED: u16 = 0xffff;
/// Most blocks of a folder.
const MAX_BLOCKS: usize = 1 << 18;

type Visit<'a> = crate::fs::folder::Visit<'a, u64>;

impl Xfs {
    /// Shows every entry but `.` and `..` to `visit` until that has seen enough.
    pub(super) fn each_entry(&self, folder: u64, visit: &mut Visit<'_>) -> Result<()> {
        let inode = self.inode(folder)?;
        if inode.format == LOCAL {
            return self.short_form(&inode.fork, visit);
        }
        let mut seen = 0;
        for extent in self.extents(&inode)?.0 {
            let start = extent.logical.saturating_mul(self.block);
            if start >= LEAF_OFFSET || extent.is_unwritten {
                continue;
            }
            // A directory block may be several blocks, and these lie together.
            let blocks_each = self.dir_block / self.block;
            let mut block = 0;
            while block + blocks_each <= extent.count {
                seen += 1;
                let place = self.offset(extent.physical + block);
                let place =
                    place.filter(|_| seen < MAX_BLOCKS).ok_or_else(|| damaged("a folder"))?;
                let bytes = read(&*self.volume, place, self.dir_block as usize)?;
                if !self.block_entries(&bytes, visit)? {
                    return Ok(());
                }
                block += blocks_each;
            }
        }
        Ok(())
    }

    fn short_form(&self, fork: &[u8], visit: &mut Visit<'_>) -> Result<()> {
        let bad = || damaged("a folder");
        let (count, wide) = (at::u8(fork, 0).ok_or_else(bad)?, at::u8(fork, 1).ok_or_else(bad)?);
        let number = if wide > 0 { 8 } else { 4 };
        let mut place = 2 + number;
        let count = if wide > 0 { wide.max(count) } else { count };
        for _ in 0..count {
            let length = usize::from(at::u8(fork, place).ok_or_else(bad)?);
            let name = fork.get(place + 3..).and_then(|rest| rest.get(..length)).ok_or_else(bad)?;
            place += 3 + length;
            let kind = if self.has_ftype {
                place += 1;
                at::u8(fork, place - 1).and_then(kind_of)
            } else {
                None
            };
            let inode = match number {
                8 => at::be64(fork, place),
                _ => at::be32(fork, place).map(u64::from),
            };
            place += number;
            let inode = inode.ok_or_else(bad)?;
            if !visit(DirEntry { name, inode, kind })? {
                break;
            }
        }
        Ok(())
    }

    /// The entries of one directory block; whether more are wanted.
    fn block_entries(&self, bytes: &[u8], visit: &mut Visit<'_>) -> Result<bool> {
        let bad = || damaged("a folder");
        let (start, has_tail) = match &bytes[..4] {
            b"XD2D" => (16, false),
            b"XD2B" => (16, true),
            b"XDD3" => (64, false),
            b"XDB3" => (64, true),
            _ => return Err(bad()),
        };
        let mut end = bytes.len();
        if has_tail {
            // Behind the entries: their index, and how long that is.
            let count = at::be32(bytes, bytes.len() - 8).ok_or_else(bad)? as usize;
            let tail = count.checked_mul(8).and_then(|index| index.checked_add(8));
            end = tail.and_then(|tail| end.checked_sub(tail)).ok_or_else(bad)?;
        }
        let mut place = start;
        while place + 12 <= end {
            if at::be16(bytes, place) == Some(UNUSED) {
                let length = usize::from(at::be16(bytes, place + 2).ok_or_else(bad)?);
                if length < 8 {
                    return Err(bad());
                }
                place += length;
                continue;
            }
            let inode = at::be64(bytes, place).ok_or_else(bad)?;
            let length = usize::from(at::u8(bytes, place + 8).ok_or_else(bad)?);
            let name =
                bytes.get(place + 9..).and_then(|rest| rest.get(..length)).ok_or_else(bad)?;
            let kind = self.has_ftype.then(|| at::u8(bytes, place + 9 + length).and_then(kind_of));
            if !matches!(name, b"." | b"..")
                && !visit(DirEntry { name, inode, kind: kind.flatten() })?
            {
                return Ok(false);
            }
            place += (9 + length + usize::from(self.has_ftype) + 2).next_multiple_of(8);
        }
        Ok(true)
    }
}

fn kind_of(kind: u8) -> Option<Kind> {
    match kind {
        1 => Some(Kind::File),
        2 => Some(Kind::Folder),
        7 => Some(Kind::Link),
        3..=6 => Some(Kind::Other),
        _ => None,
    }
}
