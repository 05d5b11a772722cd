//! The superblock: sizes, and the features that change how the rest is read.

use super::damaged;
use crate::checksum::crc32c;
use crate::volume::{at, text_of, uuid_of};
use crate::{Error, Result};

/// Compatible features.
const HAS_JOURNAL: u32 = 0x4;
const SPARSE_SUPER_2: u32 = 0x200;

/// Features that whoever reads must know.
const FILE_TYPE: u32 = 0x2;
const RECOVERY: u32 = 0x4;
const META_GROUPS: u32 = 0x10;
const EXTENTS: u32 = 0x40;
const IS_64BIT: u32 = 0x80;
const FLEXIBLE_GROUPS: u32 = 0x200;
const CHECKSUM_SEED: u32 = 0x2000;
/// All that are understood: those above, multiple mount protection, values of attributes in inodes, large folders, data in
/// inodes, encryption of files and names without case.
const INCOMPAT_KNOWN: u32 = FILE_TYPE
    | RECOVERY
    | META_GROUPS
    | EXTENTS
    | IS_64BIT
    | FLEXIBLE_GROUPS
    | CHECKSUM_SEED
    | 0x100
    | 0x400
    | 0x4000
    | 0x8000
    | 0x1_0000
    | 0x2_0000;

/// Features that only who writes must know.
const SPARSE_SUPER: u32 = 0x1;
const METADATA_CHECKSUMS: u32 = 0x400;

pub struct Superblock {
    /// Bytes of a block.
    pub block: u64,
    pub inodes: u32,
    pub inodes_per_group: u32,
    pub inode_size: usize,
    /// Bytes of a block group's descriptor.
    pub descriptor: u64,
    /// 0 if it is on another device, or there is none.
    pub journal_inode: u32,
    /// Where checksums of metadata begin; `None` if it has none.
    pub seed: Option<u32>,
    pub uuid: String,
    pub label: String,
    blocks_per_group: u64,
    first_block: u64,
    first_meta_group: u64,
    backup_groups: [u32; 2],
    compat: u32,
    incompat: u32,
    ro_compat: u32,
}

impl Superblock {
    pub fn of(bytes: &[u8]) -> Result<Self> {
        let half = |offset| at::le16(bytes, offset).unwrap_or(0);
        let word = |offset| at::le32(bytes, offset).unwrap_or(0);
        let (compat, incompat, ro_compat) = (word(0x5c), word(0x60), word(0x64));
        let unknown = incompat & !INCOMPAT_KNOWN;
        if unknown != 0 {
            let why = format!("it has {}", name_of(unknown));
            return Err(Error::unsupported("ext4 file system", why));
        }
        let block = 1024_u64.checked_shl(word(0x18)).filter(|&block| block <= 65536);
        let block = block.ok_or_else(|| damaged("its superblock"))?;
        // Revision 0 has no field for it.
        let inode_size = if word(0x4c) == 0 { 128 } else { usize::from(half(0x58)) };
        let descriptor = if incompat & IS_64BIT != 0 { u64::from(half(0xfe)) } else { 32 };
        let plausible = inode_size.is_power_of_two()
            && (128..=block as usize).contains(&inode_size)
            && descriptor.is_power_of_two()
            && (32..=1024).contains(&descriptor)
            && word(0x20) > 0
            && word(0x28) > 0;
        let is_checked = ro_compat & METADATA_CHECKSUMS != 0;
        if !plausible || is_checked && at::le32(bytes, 0x3fc) != Some(crc32c(!0, &bytes[..0x3fc])) {
            return Err(damaged("its superblock"));
        }
        let seed = match incompat & CHECKSUM_SEED {
            0 => crc32c(!0, &bytes[0x68..0x78]),
            _ => word(0x270),
        };
        Ok(Self {
            block,
            inodes: word(0),
            inodes_per_group: word(0x28),
            inode_size,
            descriptor,
            journal_inode: word(0xe0),
            seed: is_checked.then_some(seed),
            uuid: bytes[0x68..].first_chunk().map(uuid_of).unwrap_or_default(),
            label: text_of(&bytes[0x78..0x88]),
            blocks_per_group: word(0x20).into(),
            first_block: word(0x14).into(),
            first_meta_group: word(0x104).into(),
            backup_groups: [word(0x24c), word(0x250)],
            compat,
            incompat,
            ro_compat,
        })
    }

    /// As `mount -t` calls it.
    pub fn kind(&self) -> &'static str {
        match (self.incompat & (EXTENTS | IS_64BIT | FLEXIBLE_GROUPS), self.compat & HAS_JOURNAL) {
            (0, 0) => "ext2",
            (0, _) => "ext3",
            _ => "ext4",
        }
    }

    /// It was not unmounted.
    pub fn needs_recovery(&self) -> bool {
        self.incompat & RECOVERY != 0
    }

    pub fn is_64bit(&self) -> bool {
        self.incompat & IS_64BIT != 0
    }

    /// Names in folders say what they lead to.
    pub fn has_file_types(&self) -> bool {
        self.incompat & FILE_TYPE != 0
    }

    /// The block with a group's descriptor.
    pub fn descriptor_block(&self, group: u32) -> u64 {
        let in_block = self.block / self.descriptor;
        let index = u64::from(group) / in_block;
        // Behind the superblock, which is in block 1 if a block has 1 KiB.
        let superblock = u64::from(self.block == 1024);
        if self.incompat & META_GROUPS == 0 || index < self.first_meta_group {
            return superblock + 1 + index;
        }
        // In the first of the groups that it describes.
        let group = index * in_block;
        let has_superblock = self.has_superblock(group as u32);
        let in_first = u64::from(group == 0 && self.block == 1024 && self.first_block == 0);
        self.first_block + group * self.blocks_per_group + u64::from(has_superblock) + in_first
    }

    fn has_superblock(&self, group: u32) -> bool {
        let is_power = |base: u32| {
            let mut power = base;
            while power < group {
                power = power.saturating_mul(base);
            }
            power == group
        };
        match group {
            0 => true,
            _ if self.compat & SPARSE_SUPER_2 != 0 => self.backup_groups.contains(&group),
            1 => true,
            _ => self.ro_compat & SPARSE_SUPER == 0 || [3, 5, 7].into_iter().any(is_power),
        }
    }
}

/// What `mkfs.ext4 -O` calls features that are not understood.
fn name_of(features: u32) -> String {
    match features {
        0x1 => "the feature compression".into(),
        0x8 => "the feature journal_dev".into(),
        0x1000 => "the feature dirdata".into(),
        other => format!("features that are not known here: {other:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_have_a_superblock_where_mke2fs_puts_one() {
        let mut bytes = vec![0; 1024];
        bytes[0x20] = 1;
        bytes[0x28] = 1;
        bytes[0x64] = 1;
        let sparse = Superblock::of(&bytes).unwrap();
        let groups: Vec<u32> = (0..130).filter(|&group| sparse.has_superblock(group)).collect();
        assert_eq!(groups, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
        bytes[0x5d] = 2;
        bytes[0x24c] = 12;
        let two = Superblock::of(&bytes).unwrap();
        let groups: Vec<u32> = (0..130).filter(|&group| two.has_superblock(group)).collect();
        assert_eq!(groups, [0, 12]);
        bytes[0x60] = 1;
        let error = Superblock::of(&bytes).err().unwrap();
        assert!(error.to_string().ends_with("it has the feature compression"), "{error}");
    }
}
