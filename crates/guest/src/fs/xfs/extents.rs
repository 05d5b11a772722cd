//! Where the blocks of a file lie: a list in its inode, or a tree.

use super::{Inode, Xfs, damaged};
use crate::Result;
use crate::volume::{at, read};

const IN_INODE: u8 = 2;
const TREE: u8 = 3;
/// Most extents of a file.
const MAX_EXTENTS: usize = 1 << 20;
/// Deepest tree.
const MAX_LEVEL: u16 = 9;

/// Blocks that lie one after another.
pub struct Extent {
    pub logical: u64,
    pub physical: u64,
    pub count: u64,
    /// It was only set aside, and reads as zeroes.
    pub is_unwritten: bool,
}

/// The extents of a fork.
pub struct Extents(pub Vec<Extent>);

impl Extents {
    pub fn of(fs: &Xfs, inode: &Inode) -> Result<Self> {
        let mut extents = Self(Vec::new());
        match inode.format {
            IN_INODE => {
                let count = usize::try_from(inode.extents).unwrap_or(usize::MAX);
                let records = count.checked_mul(16).and_then(|length| inode.fork.get(..length));
                extents.add(records.ok_or_else(|| damaged("a list of extents"))?)?;
            }
            TREE => {
                let level = at::be16(&inode.fork, 0).ok_or_else(|| damaged("a tree of extents"))?;
                let mut left = MAX_EXTENTS;
                extents.node(fs, &inode.fork, 4, level, &mut left)?;
            }
            _ => {}
        }
        Ok(extents)
    }

    fn add(&mut self, records: &[u8]) -> Result<()> {
        for record in records.chunks_exact(16) {
            let (high, low) = (at::be64(record, 0).unwrap_or(0), at::be64(record, 8).unwrap_or(0));
            if self.0.len() == MAX_EXTENTS {
                return Err(damaged("a list of extents"));
            }
            self.0.push(Extent {
                is_unwritten: high >> 63 != 0,
                logical: high >> 9 & ((1 << 54) - 1),
                physical: (high & 0x1ff) << 43 | low >> 21,
                count: low & 0x1f_ffff,
            });
        }
        Ok(())
    }

    /// A node whose keys begin at `header`; the one in the inode, too, has them before its pointers.
    fn node(
        &mut self,
        fs: &Xfs,
        bytes: &[u8],
        header: usize,
        level: u16,
        left: &mut usize,
    ) -> Result<()> {
        let bad = || damaged("a tree of extents");
        let count = usize::from(
            if header == 4 { at::be16(bytes, 2) } else { at::be16(bytes, 6) }.ok_or_else(bad)?,
        );
        let room = bytes.len().saturating_sub(header) / 16;
        if level > MAX_LEVEL || count > room {
            return Err(bad());
        }
        if level == 0 {
            return self.add(&bytes[header..][..count * 16]);
        }
        for index in 0..count {
            *left = left.checked_sub(1).ok_or_else(bad)?;
            let pointer = at::be64(bytes, header + room * 8 + index * 8).ok_or_else(bad)?;
            let place = fs.offset(pointer).ok_or_else(bad)?;
            let child = read(&*fs.volume, place, fs.block as usize)?;
            let (magic, header): (&[u8], usize) =
                if fs.is_v5 { (b"BMA3", 72) } else { (b"BMAP", 24) };
            // A level less each time, so that no tree leads back to itself.
            if !child.starts_with(magic) || at::be16(&child, 4) != Some(level - 1) {
                return Err(bad());
            }
            self.node(fs, &child, header, level - 1, left)?;
        }
        Ok(())
    }
}
