//! Headers and region tables (2.2).

use std::ops::Range;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::crc32c::crc32c;
use crate::create::writable;
use crate::source::{Source, read_vec};
use crate::{Error, Format, Result, sys};

pub(super) const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
pub(super) const HEADER_BYTES: usize = 4096;
pub(super) const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
pub(super) const REGION_TABLE_BYTES: usize = 64 << 10;
const MAX_REGIONS: u32 = 2047;
/// Bytes of a new disk's log.
pub(super) const LOG_LENGTH: u32 = 1 << 20;

const BAT: [u8; 16] = guid(b"2DC27766F62342009D64115E9BFD4A08");
const METADATA: [u8; 16] = guid(b"8B7CA20647904B9AB8FE575F050F886E");

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct FileHeader {
    pub signature: [u8; 4],
    pub checksum: U32,
    pub sequence_number: U64,
    pub file_write_guid: [u8; 16],
    pub data_write_guid: [u8; 16],
    pub log_guid: [u8; 16],
    pub log_version: U16,
    pub version: U16,
    pub log_length: U32,
    pub log_offset: U64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RegionTableEntry {
    guid: [u8; 16],
    file_offset: U64,
    length: U32,
    required: U32,
}

/// Where the regions lie.
pub(super) struct RegionTable {
    pub bat: Range<u64>,
    pub metadata: Range<u64>,
    bytes: Vec<u8>,
}

impl FileHeader {
    /// That of a new file, whose log is empty.
    pub fn new(log_offset: u64, log_length: u32) -> Self {
        Self {
            signature: *b"head",
            checksum: 0.into(),
            sequence_number: 0.into(),
            file_write_guid: sys::uuid(),
            data_write_guid: sys::uuid(),
            log_guid: [0; 16],
            log_version: 0.into(),
            version: 1.into(),
            log_length: log_length.into(),
            log_offset: log_offset.into(),
        }
    }

    /// As it lies in the file, with its checksum.
    pub fn to_sector(self) -> Vec<u8> {
        let mut bytes = self.as_bytes().to_vec();
        bytes.resize(HEADER_BYTES, 0);
        seal(&mut bytes);
        bytes
    }

    /// The current one of the two.
    pub fn read(source: &dyn Source) -> Result<Self> {
        Ok(Self::read_with_offset(source)?.0)
    }

    /// Writes it in the place of the one that is not current, with the next number; afterwards it is the
    /// current one.
    pub fn replace(&mut self, source: &dyn Source) -> Result<()> {
        let (current, offset) = Self::read_with_offset(source)?;
        let number = current.sequence_number.get().checked_add(1);
        self.sequence_number =
            number.ok_or_else(|| damaged("its header has no next number"))?.into();
        let target = writable(source)?;
        let other = if offset == HEADERS[0] { HEADERS[1] } else { HEADERS[0] };
        target.write_at(&self.to_sector(), other)?;
        target.flush()
    }

    fn read_with_offset(source: &dyn Source) -> Result<(Self, u64)> {
        let found = HEADERS.into_iter().filter_map(|offset| {
            let bytes = read_vec(source, offset, HEADER_BYTES).ok()?;
            if !bytes.starts_with(b"head") || !is_whole(&bytes) {
                return None;
            }
            Self::read_from_prefix(&bytes).ok().map(|(header, _)| (header, offset))
        });
        let found = found.max_by_key(|(header, _)| header.sequence_number.get());
        let (header, offset) = found.ok_or_else(|| damaged("neither of its headers is whole"))?;
        if header.version.get() != 1 {
            return Err(unsupported(format!("its version is {}", header.version.get())));
        }
        Ok((header, offset))
    }
}

impl RegionTable {
    pub fn read(source: &dyn Source) -> Result<Self> {
        let found = REGION_TABLES.into_iter().find_map(|offset| {
            let bytes = read_vec(source, offset, REGION_TABLE_BYTES).ok()?;
            (bytes.starts_with(b"regi") && is_whole(&bytes)).then_some(bytes)
        });
        let bytes = found.ok_or_else(|| damaged("neither of its region tables is whole"))?;
        let count = U32::read_from_bytes(&bytes[8..12]).map_or(0, U32::get);
        if count > MAX_REGIONS {
            return Err(damaged("it has too many regions"));
        }
        let (mut bat, mut metadata) = (None, None);
        for entry in bytes[16..].chunks_exact(size_of::<RegionTableEntry>()).take(count as usize) {
            let Ok(entry) = RegionTableEntry::read_from_bytes(entry) else { break };
            let start = entry.file_offset.get();
            let end = start.checked_add(entry.length.get().into());
            let range = end.map(|end| start..end);
            match entry.guid {
                BAT => bat = range,
                METADATA => metadata = range,
                _ if entry.required.get() & 1 != 0 => {
                    return Err(unsupported("it needs a region that is not known"));
                }
                _ => {}
            }
        }
        match (bat, metadata) {
            (Some(bat), Some(metadata)) => Ok(Self { bat, metadata, bytes }),
            _ => Err(damaged("it has no block allocation table or no metadata")),
        }
    }

    /// Moves the block allocation table; each of the two tables changes in one sector. The first one counts.
    pub fn move_bat(mut self, source: &dyn Source, bat: &Range<u64>) -> Result<()> {
        let entries = self.bytes[16..].chunks_exact_mut(size_of::<RegionTableEntry>());
        for entry in entries.filter(|entry| entry.starts_with(&BAT)) {
            entry[16..24].copy_from_slice(&bat.start.to_le_bytes());
            // At most 512 MiB.
            entry[24..28].copy_from_slice(&((bat.end - bat.start) as u32).to_le_bytes());
        }
        seal(&mut self.bytes);
        for offset in REGION_TABLES.into_iter().rev() {
            let target = writable(source)?;
            target.write_at(&self.bytes, offset)?;
            target.flush()?;
        }
        Ok(())
    }
}

/// A region table of two regions.
pub(super) fn new_region_table(bat: &Range<u64>, metadata: &Range<u64>) -> Vec<u8> {
    let mut bytes = b"regi\0\0\0\0\x02\0\0\0\0\0\0\0".to_vec();
    for (guid, range) in [(BAT, bat), (METADATA, metadata)] {
        let entry = RegionTableEntry {
            guid,
            file_offset: range.start.into(),
            // At most 512 MiB.
            length: ((range.end - range.start) as u32).into(),
            required: 1.into(),
        };
        bytes.extend_from_slice(entry.as_bytes());
    }
    bytes.resize(REGION_TABLE_BYTES, 0);
    seal(&mut bytes);
    bytes
}

/// Puts the checksum of the whole to byte 4.
pub(super) fn seal(bytes: &mut [u8]) {
    bytes[4..8].fill(0);
    let checksum = crc32c(&[bytes]);
    bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
}

/// The checksum at byte 4 is that of the structure with zeroes in its place.
pub(super) fn is_whole(bytes: &[u8]) -> bool {
    let checksum = U32::read_from_bytes(&bytes[4..8]).map_or(0, U32::get);
    crc32c(&[&bytes[..4], &[0; 4], &bytes[8..]]) == checksum
}

/// A GUID's bytes on the disk from its 32 digits: the first three groups are little-endian.
pub(super) const fn guid(digits: &[u8; 32]) -> [u8; 16] {
    const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let mut bytes = [0; 16];
    let mut index = 0;
    while index < 16 {
        bytes[ORDER[index]] = digit(digits[index * 2]) << 4 | digit(digits[index * 2 + 1]);
        index += 1;
    }
    bytes
}

const fn digit(character: u8) -> u8 {
    match character {
        b'0'..=b'9' => character - b'0',
        b'a'..=b'f' => character - b'a' + 10,
        b'A'..=b'F' => character - b'A' + 10,
        _ => 0,
    }
}

pub(super) fn damaged(what: impl Into<String>) -> Error {
    Error::Damaged { format: Format::Vhdx, what: what.into() }
}

pub(super) fn unsupported(what: impl Into<String>) -> Error {
    Error::Unsupported { format: Format::Vhdx, what: what.into() }
}
