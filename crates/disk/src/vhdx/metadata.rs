//! The metadata region (2.6).

use std::ops::Range;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::header::{damaged, guid, unsupported};
use crate::open::{Identity, ParentLink, portable_names};
use crate::source::{Source, read_struct, read_vec};
use crate::{Format, Result, sys};

const FILE_PARAMETERS: [u8; 16] = guid(b"CAA16737FA364D43B3B633F0AA44E76B");
const VIRTUAL_DISK_SIZE: [u8; 16] = guid(b"2FA54224CD1B4876B2115DBED83BF4B8");
const VIRTUAL_DISK_ID: [u8; 16] = guid(b"BECA12ABB2E6452393EFC309E000C746");
const LOGICAL_SECTOR_SIZE: [u8; 16] = guid(b"8141BF1DA96F4709BA47F233A8FAAB5F");
const PHYSICAL_SECTOR_SIZE: [u8; 16] = guid(b"CDA348C7445D44719CC9E9885251C556");
const PARENT_LOCATOR: [u8; 16] = guid(b"A8D35F2DB30B454DABF7D3D84834AB0C");
/// The only type of parent locators.
const VHDX_PARENT: [u8; 16] = guid(b"B04AEFB7D19E4A81B78925B8E9445913");

const LEAVE_BLOCKS_ALLOCATED: u32 = 1;
const HAS_PARENT: u32 = 2;
const IS_REQUIRED: u32 = 4;
const IS_VIRTUAL_DISK: u32 = 2;
const MAX_ENTRIES: u16 = 2047;
/// Where the first item lies in the region, behind the table.
const ITEMS: usize = 64 << 10;
/// Longest disk (2.6.2.2).
pub(super) const MAX_LENGTH: u64 = 64 << 40;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct TableHeader {
    signature: [u8; 8],
    reserved: U16,
    entry_count: U16,
    reserved2: [U32; 5],
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct TableEntry {
    item_id: [u8; 16],
    offset: U32,
    length: U32,
    flags: U32,
    reserved2: U32,
}

#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct LocatorHeader {
    locator_type: [u8; 16],
    reserved: U16,
    key_value_count: U16,
}

#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct LocatorEntry {
    key_offset: U32,
    value_offset: U32,
    key_length: U16,
    value_length: U16,
}

/// What the disk is like.
#[derive(Clone, Debug, Default)]
pub(super) struct Metadata {
    pub length: u64,
    /// Where the file says so.
    pub length_offset: u64,
    pub block_size: u64,
    pub logical_sector: u32,
    /// All of its blocks are there.
    pub is_fixed: bool,
    pub parent: Option<ParentLink>,
}

impl Metadata {
    pub fn read(source: &dyn Source, region: &Range<u64>) -> Result<Self> {
        let header: TableHeader = read_struct(source, region.start)?;
        let count = header.entry_count.get();
        if &header.signature != b"metadata" || count > MAX_ENTRIES {
            return Err(damaged("its metadata table is not whole"));
        }
        let mut metadata = Self::default();
        let (mut has_parent, mut locator) = (false, None);
        for index in 0..u64::from(count) {
            let entry: TableEntry = read_struct(source, region.start + 32 + index * 32)?;
            let offset = region.start + u64::from(entry.offset.get());
            match entry.item_id {
                FILE_PARAMETERS => {
                    let [size, flags]: [U32; 2] = read_struct(source, offset)?;
                    metadata.block_size = size.get().into();
                    has_parent = flags.get() & HAS_PARENT != 0;
                    metadata.is_fixed = flags.get() & LEAVE_BLOCKS_ALLOCATED != 0;
                }
                VIRTUAL_DISK_SIZE => {
                    metadata.length = read_struct::<U64>(source, offset)?.get();
                    metadata.length_offset = offset;
                }
                LOGICAL_SECTOR_SIZE => {
                    metadata.logical_sector = read_struct::<U32>(source, offset)?.get();
                }
                PARENT_LOCATOR => locator = Some(offset),
                VIRTUAL_DISK_ID | PHYSICAL_SECTOR_SIZE => {}
                _ if entry.flags.get() & IS_REQUIRED != 0 => {
                    return Err(unsupported("it needs metadata that are not known"));
                }
                _ => {}
            }
        }
        metadata.check()?;
        metadata.parent = match (has_parent, locator) {
            (false, _) => None,
            (true, Some(offset)) => Some(parent(source, offset)?),
            (true, None) => return Err(damaged("it does not say what its parent is")),
        };
        Ok(metadata)
    }

    fn check(&self) -> Result<()> {
        if !self.block_size.is_power_of_two() || !(1 << 20..=256 << 20).contains(&self.block_size) {
            return Err(damaged(format!("its blocks cannot have {} bytes", self.block_size)));
        }
        if !matches!(self.logical_sector, 512 | 4096) {
            return Err(damaged(format!("its sectors cannot have {} bytes", self.logical_sector)));
        }
        if self.length > MAX_LENGTH || !self.length.is_multiple_of(self.logical_sector.into()) {
            return Err(damaged(format!("its disk cannot have {} bytes", self.length)));
        }
        Ok(())
    }
}

/// The region of a new disk with sectors of 512 bytes, from block size and flags.
pub(super) fn new(parameters: [U32; 2], length: u64) -> Vec<u8> {
    let disk = IS_REQUIRED | IS_VIRTUAL_DISK;
    let sector = 512_u32.to_le_bytes();
    let items: [([u8; 16], u32, &[u8]); 5] = [
        (FILE_PARAMETERS, IS_REQUIRED, parameters.as_bytes()),
        (VIRTUAL_DISK_SIZE, disk, &length.to_le_bytes()),
        (VIRTUAL_DISK_ID, disk, &sys::uuid()),
        (LOGICAL_SECTOR_SIZE, disk, &sector),
        (PHYSICAL_SECTOR_SIZE, disk, &4096_u32.to_le_bytes()),
    ];
    let header = TableHeader {
        signature: *b"metadata",
        reserved: 0.into(),
        entry_count: (items.len() as u16).into(),
        reserved2: [0.into(); 5],
    };
    let mut table = header.as_bytes().to_vec();
    let mut content = Vec::new();
    for (item_id, flags, bytes) in items {
        let entry = TableEntry {
            item_id,
            offset: ((ITEMS + content.len()) as u32).into(),
            length: (bytes.len() as u32).into(),
            flags: flags.into(),
            reserved2: 0.into(),
        };
        table.extend_from_slice(entry.as_bytes());
        content.extend_from_slice(bytes);
    }
    table.resize(ITEMS, 0);
    table.extend_from_slice(&content);
    table
}

fn parent(source: &dyn Source, offset: u64) -> Result<ParentLink> {
    let header: LocatorHeader = read_struct(source, offset)?;
    if header.locator_type != VHDX_PARENT {
        return Err(unsupported("its parent is of a type that is not known"));
    }
    let mut values = Vec::new();
    for index in 0..u64::from(header.key_value_count.get()) {
        let at = offset + size_of::<LocatorHeader>() as u64 + index * 12;
        let entry: LocatorEntry = read_struct(source, at)?;
        let key = utf16(source, offset + u64::from(entry.key_offset.get()), entry.key_length)?;
        let value =
            utf16(source, offset + u64::from(entry.value_offset.get()), entry.value_length)?;
        values.push((key, value));
    }
    let value = |wanted: &str| values.iter().find(|(key, _)| key == wanted).map(|(_, value)| value);
    let paths = ["relative_path", "absolute_win32_path", "volume_path"];
    let names = paths.into_iter().filter_map(value).flat_map(|path| portable_names(path)).collect();
    let linkage = value("parent_linkage").ok_or_else(|| damaged("its parent has no identifier"))?;
    let digits: Vec<u8> = linkage.bytes().filter(u8::is_ascii_hexdigit).collect();
    let digits: &[u8; 32] = digits
        .as_slice()
        .try_into()
        .map_err(|_| damaged(format!("its parent cannot have the identifier {linkage}")))?;
    let identity = Some(Identity::Uuid(guid(digits)));
    Ok(ParentLink { names, format: Some(Format::Vhdx), identity })
}

fn utf16(source: &dyn Source, offset: u64, length: U16) -> Result<String> {
    let bytes = read_vec(source, offset, length.get().into())?;
    let units = bytes.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    Ok(String::from_utf16_lossy(&units.collect::<Vec<u16>>()))
}
