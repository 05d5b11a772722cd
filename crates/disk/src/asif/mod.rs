//! Apple's sparse image format of macOS 26, version 1. Apple describes none of it; after what others found out
//! (github.com/huven/asif-format). What nobody has seen yet is refused.

use std::ops::Range;
use std::sync::Arc;

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::cache::Tables;
use crate::layer::{self, Layer, Place, Run};
use crate::open::{MAX_LENGTH, Parsed};
use crate::source::{Source, read_struct};
use crate::{Error, Format, Result};

/// Bits of an entry that say where its chunk lies, and the two above the reserved ones that tell its state.
const CHUNK: u64 = (1 << 55) - 1;
const ABSENT: u64 = 0;
const STORED: u64 = 1;
const PARTIAL: u64 = 3;

#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 4],
    version: U32,
    header_size: U32,
    flags: U32,
    directories: [U64; 2],
    uuid: [u8; 16],
    sector_count: U64,
    max_sector_count: U64,
    chunk_size: U32,
    sector_size: U16,
    unknown: U16,
    metadata_chunk: U64,
}

struct Asif {
    tables: Tables,
    sources: [Arc<dyn Source>; 1],
    directory: u64,
    sector_size: u64,
    chunk_size: u64,
    /// Chunks in a group; groups in a table.
    per_group: u64,
    groups: u64,
}

pub(crate) fn parse(source: Arc<dyn Source>) -> Result<Parsed> {
    let header: Header = read_struct(&*source, 0)?;
    if &header.magic != b"shdw" || header.version.get() != 1 {
        return Err(unsupported(format!("its version is {}", header.version.get())));
    }
    let (chunk_size, sector_size) = (header.chunk_size.get(), header.sector_size.get());
    if !matches!(sector_size, 512 | 4096)
        || !chunk_size.is_power_of_two()
        || !(1 << 16..=1 << 26).contains(&chunk_size)
    {
        return Err(damaged("its chunks or sectors have a wrong size"));
    }
    let (chunk_size, sector_size) = (u64::from(chunk_size), u64::from(sector_size));
    let length = header.sector_count.get().checked_mul(sector_size);
    let length = length.filter(|&length| length <= MAX_LENGTH && length != 0);
    let length = length.ok_or_else(|| damaged("its disk has a wrong length"))?;
    let per_group = 4 * sector_size;
    let groups = chunk_size / (8 * (per_group + 1));
    if groups == 0 {
        return Err(damaged("its chunks are too small"));
    }
    let tables = Tables::new(source.clone());
    // The directory that was written last.
    let [first, second] = header.directories.map(U64::get);
    let number = |directory: u64| tables.be64(directory, 0);
    let directory = match (number(first), number(second)) {
        (Ok(one), Ok(other)) if other > one => second,
        (Ok(_), _) => first,
        (Err(_), Ok(_)) => second,
        (Err(error), Err(_)) => return Err(error),
    };
    let sources = [source];
    let asif = Asif { tables, sources, directory, sector_size, chunk_size, per_group, groups };
    let mut parsed = Parsed::new(asif, length);
    parsed.details = vec![("chunk-size", chunk_size.to_string())];
    Ok(parsed)
}

impl Asif {
    fn step(&self, offset: u64) -> Result<Run> {
        let group_bytes = self.per_group * self.chunk_size;
        let table_bytes = group_bytes * self.groups;
        let index = offset / table_bytes;
        let table = self.tables.be64(self.directory, 1 + index)? & CHUNK;
        if table == 0 {
            let end = (index + 1).saturating_mul(table_bytes);
            return Ok(Run { end, place: Place::Absent });
        }
        let group = offset % table_bytes / group_bytes * 8 * (self.per_group + 1);
        let group = self.host(table)?.saturating_add(group);
        let number = offset % group_bytes / self.chunk_size;
        let entry = self.tables.be64(group, number)?;
        let start = offset / self.chunk_size * self.chunk_size;
        let end = start + self.chunk_size;
        let within = offset - start;
        match (entry >> 62, entry & CHUNK) {
            (ABSENT, 0) => Ok(Run { end, place: Place::Absent }),
            (STORED, chunk) => Ok(Run { end, place: self.stored(chunk, within)? }),
            (PARTIAL, chunk) => {
                let bitmap = self.tables.be64(group, self.per_group)? & CHUNK;
                let bitmap = self.host(bitmap)?;
                let sectors = self.chunk_size / self.sector_size;
                let base = number * sectors;
                let first = within / self.sector_size;
                let state = self.state(bitmap, base + first)?;
                let mut last = first + 1;
                while last < sectors && self.state(bitmap, base + last)? == state {
                    last += 1;
                }
                let place = if state { self.stored(chunk, within)? } else { Place::Zero };
                Ok(Run { end: start + last * self.sector_size, place })
            }
            (state, _) => Err(unsupported(format!("the chunk of {start} is in the state {state}"))),
        }
    }

    /// Whether a sector of a group was ever written.
    fn state(&self, bitmap: u64, sector: u64) -> Result<bool> {
        let mut byte = [0];
        self.tables.read_at(&mut byte, bitmap.saturating_add(sector / 4))?;
        match byte[0] >> (sector % 4 * 2) & 3 {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(unsupported(format!("a sector is in the state {other}"))),
        }
    }

    fn stored(&self, chunk: u64, within: u64) -> Result<Place> {
        if chunk == 0 {
            return Err(damaged("a chunk lies over the header"));
        }
        Ok(Place::Stored { source: 0, offset: self.host(chunk)? + within })
    }

    fn host(&self, chunk: u64) -> Result<u64> {
        let offset = chunk.checked_mul(self.chunk_size).filter(|&offset| offset <= MAX_LENGTH);
        offset.ok_or_else(|| damaged("a chunk lies past every file's end"))
    }
}

impl Layer for Asif {
    fn locate(&self, range: Range<u64>) -> Result<Run> {
        layer::join(range, |offset| self.step(offset))
    }

    fn sources(&self) -> &[Arc<dyn Source>] {
        &self.sources
    }

    fn block_size(&self) -> u64 {
        self.chunk_size
    }

    fn logical_block(&self) -> u32 {
        // 512 or 4096.
        self.sector_size as u32
    }
}

fn damaged(what: impl Into<String>) -> Error {
    Error::Damaged { format: Format::Asif, what: what.into() }
}

fn unsupported(what: impl Into<String>) -> Error {
    Error::Unsupported { format: Format::Asif, what: what.into() }
}
