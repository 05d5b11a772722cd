//! Inodes, and what small files and folders keep in them.

use super::{Ext, damaged};
use crate::Result;
use crate::checksum::crc32c;
use crate::fs::Kind;
use crate::volume::at;

/// Bytes of an inode that every version has.
const SMALLEST: usize = 128;
/// Where blocks lie, or a short content.
pub const MAP: std::ops::Range<usize> = 0x28..0x64;

const ENCRYPTED: u32 = 0x800;
const HASH_TREE: u32 = 0x1000;
const EXTENTS: u32 = 0x8_0000;
const INLINE: u32 = 0x1000_0000;

/// An inode as it was read.
pub struct Inode {
    pub number: u32,
    pub mode: u16,
    pub size: u64,
    /// Where checksums of what belongs to it begin.
    pub seed: Option<u32>,
    flags: u32,
    bytes: Vec<u8>,
}

impl Ext {
    pub(super) fn inode(&self, number: u32) -> Result<Inode> {
        let seed = self.superblock.seed;
        // What a fast commit says of it has no checksum.
        if let Some(bytes) = self.changes.inodes.get(&number) {
            return Ok(Inode::of(bytes, number, seed));
        }
        let inode = Inode::of(&self.inode_bytes(number)?, number, seed);
        inode.is_whole().then_some(inode).ok_or_else(|| damaged("an inode"))
    }

    /// An inode as it lies on the volume.
    pub(super) fn inode_bytes(&self, number: u32) -> Result<Vec<u8>> {
        let superblock = &self.superblock;
        let index = number.checked_sub(1).filter(|_| number <= superblock.inodes);
        let index = index.ok_or_else(|| damaged("the number of an inode"))?;
        let table = self.inode_table(index / superblock.inodes_per_group)?;
        let within = u64::from(index % superblock.inodes_per_group) * superblock.inode_size as u64;
        let block = table.checked_add(within / superblock.block);
        let block = self.block(block.ok_or_else(|| damaged("the place of an inode"))?)?;
        Ok(block[(within % superblock.block) as usize..][..superblock.inode_size].to_vec())
    }

    /// The first block of a group's inodes.
    fn inode_table(&self, group: u32) -> Result<u64> {
        const CHECKSUM: usize = 0x1e;
        let superblock = &self.superblock;
        let block = self.block(superblock.descriptor_block(group))?;
        let size = superblock.descriptor;
        let start = (u64::from(group) % (superblock.block / size) * size) as usize;
        let bytes = &block[start..][..size as usize];
        if let Some(seed) = superblock.seed {
            let mut crc = crc32c(crc32c(seed, &group.to_le_bytes()), &bytes[..CHECKSUM]);
            crc = crc32c(crc32c(crc, &[0; 2]), &bytes[CHECKSUM + 2..]);
            if at::le16(bytes, CHECKSUM) != Some(crc as u16) {
                return Err(damaged("the descriptor of a block group"));
            }
        }
        let high = if superblock.is_64bit() { at::le32(bytes, 0x28).unwrap_or(0) } else { 0 };
        Ok(u64::from(at::le32(bytes, 0x8).unwrap_or(0)) | u64::from(high) << 32)
    }
}

impl Inode {
    /// The inode with this number; `seed` is that of the file system's checksums. Of 128 bytes at least.
    pub fn of(bytes: &[u8], number: u32, seed: Option<u32>) -> Self {
        let half = |offset| at::le16(bytes, offset).unwrap_or(0);
        let word = |offset| at::le32(bytes, offset).unwrap_or(0);
        let seed = seed.map(|seed| crc32c(crc32c(seed, &number.to_le_bytes()), &bytes[0x64..0x68]));
        let size = u64::from(word(0x4)) | u64::from(word(0x6c)) << 32;
        Self { number, mode: half(0), size, seed, flags: word(0x20), bytes: bytes.to_vec() }
    }

    /// Its checksum is right.
    fn is_whole(&self) -> bool {
        let Some(seed) = self.seed else { return true };
        let half = |offset| u32::from(at::le16(&self.bytes, offset).unwrap_or(0));
        let mut plain = self.bytes.clone();
        let (mut expected, mut mask) = (half(0x7c), 0xffff);
        plain[0x7c..0x7e].fill(0);
        if extra_size(&self.bytes) >= 4 {
            expected |= half(0x82) << 16;
            mask = !0;
            plain[0x82..0x84].fill(0);
        }
        crc32c(seed, &plain) & mask == expected
    }

    pub fn kind(&self) -> Kind {
        Kind::of_mode(self.mode.into())
    }

    pub fn is_encrypted(&self) -> bool {
        self.flags & ENCRYPTED != 0
    }

    /// Some of its blocks are a tree of its names' hashes.
    pub fn has_hash_tree(&self) -> bool {
        self.flags & HASH_TREE != 0
    }

    /// Its blocks are found by a tree of extents.
    pub fn has_extents(&self) -> bool {
        self.flags & EXTENTS != 0
    }

    /// Its content is in itself.
    pub fn is_inline(&self) -> bool {
        self.flags & INLINE != 0
    }

    /// Where its blocks lie, or its content if it is short.
    pub fn map(&self) -> &[u8] {
        &self.bytes[MAP]
    }

    /// The target of a symbolic link that is in the place of the list of blocks.
    pub fn short_target(&self) -> Option<&[u8]> {
        let is_short = !self.is_encrypted() && !self.is_inline();
        let length = usize::try_from(self.size).ok().filter(|_| is_short)?;
        (length < self.map().len()).then(|| &self.map()[..length])
    }

    /// Both parts of a content that is in the inode: in the place of the list of blocks, and in an attribute.
    pub fn inline(&self) -> Option<[&[u8]; 2]> {
        const MAGIC: u32 = 0xea02_0000;
        const ENTRY: usize = 16;
        const SYSTEM: u8 = 7;
        let attributes = self.bytes.get(SMALLEST + extra_size(&self.bytes)..).unwrap_or_default();
        if at::le32(attributes, 0) != Some(MAGIC) {
            return Some([self.map(), &[]]);
        }
        let attributes = &attributes[4..];
        let mut place = 0;
        // Four zeroes end the list.
        while at::le32(attributes, place)? != 0 {
            let entry = attributes.get(place..)?;
            let length = usize::from(entry[0]);
            let name = entry.get(ENTRY..)?.get(..length)?;
            if at::u8(entry, 1)? == SYSTEM && name == b"data" {
                let (start, size) = (at::le16(entry, 2)?, at::le32(entry, 8)?);
                let value = attributes.get(usize::from(start)..)?.get(..size as usize)?;
                return Some([self.map(), value]);
            }
            place += (ENTRY + length).next_multiple_of(4);
        }
        Some([self.map(), &[]])
    }
}

/// Bytes of fields behind the smallest inode.
fn extra_size(bytes: &[u8]) -> usize {
    at::le16(bytes, SMALLEST).map_or(0, usize::from)
}
