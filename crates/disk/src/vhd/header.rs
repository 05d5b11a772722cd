use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::source::{Source, read_struct};
use crate::{Error, Format, Result, SECTOR_SIZE};

/// The last sector of every image; dynamic ones have a copy at the start.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Footer {
    pub cookie: [u8; 8],
    pub features: U32,
    pub file_format_version: U32,
    pub data_offset: U64,
    pub time_stamp: U32,
    pub creator_application: [u8; 4],
    pub creator_version: U32,
    pub creator_host_os: U32,
    pub original_size: U64,
    pub current_size: U64,
    pub cylinders: U16,
    pub heads: u8,
    pub sectors_per_track: u8,
    pub disk_type: U32,
    pub checksum: U32,
    pub unique_id: [u8; 16],
    pub saved_state: u8,
    pub reserved: [u8; 427],
}

const _: () = assert!(size_of::<Footer>() == 512);

/// What a dynamic disk's footer leads to.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct DynamicHeader {
    pub cookie: [u8; 8],
    pub data_offset: U64,
    pub table_offset: U64,
    pub header_version: U32,
    pub max_table_entries: U32,
    pub block_size: U32,
    pub checksum: U32,
    pub parent_unique_id: [u8; 16],
    pub parent_time_stamp: U32,
    pub reserved: U32,
    /// UTF-16, big-endian.
    pub parent_unicode_name: [U16; 256],
    pub parent_locators: [Locator; 8],
    pub reserved_end: [u8; 256],
}

const _: () = assert!(size_of::<DynamicHeader>() == 1024);

/// Where one form of the parent's path lies.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Locator {
    pub platform_code: [u8; 4],
    pub platform_data_space: U32,
    pub platform_data_length: U32,
    pub reserved: U32,
    pub platform_data_offset: U64,
}

impl Footer {
    /// The one at the end, or else the copy at the start: what a crash leaves.
    pub fn find(source: &dyn Source) -> Result<Self> {
        let last = source.len().checked_sub(512);
        // Virtual PC before 2004 wrote one byte less.
        let short = source.len().checked_sub(511);
        let mut found = [last, Some(0)].into_iter().flatten();
        let footer = found
            .find_map(|at| read_struct::<Self>(source, at).ok().filter(Self::is_valid))
            .or_else(|| {
                let mut bytes = [0; 512];
                source.read_at(&mut bytes[..511], short?).ok()?;
                Self::read_from_bytes(&bytes).ok().filter(Self::is_valid)
            });
        footer.ok_or_else(|| damaged("neither its footer nor the copy of it is whole"))
    }

    /// It has the cookie and the right checksum.
    pub fn is_valid(&self) -> bool {
        let mut copy = *self;
        copy.checksum = 0.into();
        &self.cookie == b"conectix" && checksum(copy.as_bytes()) == self.checksum.get()
    }

    /// The disk's length. Virtual PC itself, and QEMU before it said so in the creator's name, present
    /// what the geometry holds; all others the current size.
    pub fn disk_length(&self) -> u64 {
        let size = self.current_size.get();
        let tracks = u64::from(self.cylinders.get()) * u64::from(self.heads);
        let geometry = tracks * u64::from(self.sectors_per_track) * SECTOR_SIZE;
        // The largest geometry, which says only that the disk is longer.
        let is_largest = self.cylinders.get() == 65535 && self.heads == 16;
        let by_geometry = matches!(&self.creator_application, b"vpc " | b"qemu");
        if by_geometry && geometry != 0 && geometry <= size && !is_largest {
            geometry
        } else {
            size / SECTOR_SIZE * SECTOR_SIZE
        }
    }
}

impl DynamicHeader {
    /// Checks its numbers against the disk's and the file's length.
    pub fn check(&self, length: u64, file_length: u64) -> Result<()> {
        let mut copy = *self;
        copy.checksum = 0.into();
        if &self.cookie != b"cxsparse" || checksum(copy.as_bytes()) != self.checksum.get() {
            return Err(damaged("its dynamic header is not whole"));
        }
        if self.header_version.get() >> 16 != 1 {
            return Err(unsupported(format!("its header's version is {:#x}", self.header_version)));
        }
        let block_size = self.block_size.get();
        if !block_size.is_power_of_two() || !(512..=1 << 28).contains(&block_size) {
            return Err(damaged(format!("its blocks cannot have {block_size} bytes")));
        }
        let entries = u64::from(self.max_table_entries.get());
        if length.div_ceil(block_size.into()) > entries {
            return Err(damaged("its disk is longer than its block allocation table"));
        }
        let end = self.table_offset.get().checked_add(entries * 4);
        if end.is_none_or(|end| end > file_length) {
            return Err(damaged("its block allocation table passes the end of the file"));
        }
        Ok(())
    }
}

/// The complement of the sum of all bytes.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(0_u32, |sum, &byte| sum.wrapping_add(byte.into()))
}

pub(super) fn damaged(what: impl Into<String>) -> Error {
    Error::Damaged { format: Format::Vhd, what: what.into() }
}

pub(super) fn unsupported(what: impl Into<String>) -> Error {
    Error::Unsupported { format: Format::Vhd, what: what.into() }
}
