//! Apple's disk images: UDIF, whose trailer leads to property lists with tables of chunks. Apple describes
//! none of it; after the comments of QEMU, block/dmg.c, and of libdmg-hfsplus.

mod plist;

use std::ops::Range;
use std::sync::Arc;

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::codec::Codec;
use crate::layer::{Grain, Layer, Place, Run};
use crate::open::{MAX_LENGTH, Parsed};
use crate::source::{Source, read_struct, read_vec};
use crate::{Error, Format, Result, SECTOR_SIZE};

/// Longest property list, and longest chunk when unpacked.
const MAX_PLIST: u64 = 16 << 20;
const MAX_CHUNK: u64 = 8 << 20;

/// The file's last sector.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Trailer {
    signature: [u8; 4],
    version: U32,
    header_size: U32,
    flags: U32,
    running_data_fork_offset: U64,
    data_fork_offset: U64,
    data_fork_length: U64,
    rsrc_fork_offset: U64,
    rsrc_fork_length: U64,
    segment_number: U32,
    segment_count: U32,
    segment_id: [u8; 16],
    data_checksum: [u8; 136],
    xml_offset: U64,
    xml_length: U64,
    reserved: [u8; 120],
    master_checksum: [u8; 136],
    image_variant: U32,
    sector_count: U64,
    reserved_end: [u8; 12],
}

const _: () = assert!(size_of::<Trailer>() == 512);

/// What a table of chunks begins with.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct TableHeader {
    signature: [u8; 4],
    version: U32,
    sector_number: U64,
    sector_count: U64,
    data_offset: U64,
    buffers_needed: U32,
    block_descriptors: U32,
    reserved: [u8; 24],
    checksum: [u8; 136],
    chunks: U32,
}

#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct TableEntry {
    kind: U32,
    comment: U32,
    sector_number: U64,
    sector_count: U64,
    compressed_offset: U64,
    compressed_length: U64,
}

struct Dmg {
    sources: [Arc<dyn Source>; 1],
    /// By their start.
    chunks: Vec<Chunk>,
    length: u64,
}

struct Chunk {
    range: Range<u64>,
    offset: u64,
    kind: Kind,
}

enum Kind {
    Stored,
    Zero,
    Packed(Codec, u32),
}

/// Whether a file ends like an image of this kind.
pub(crate) fn is_dmg(source: &dyn Source) -> bool {
    source.len().checked_sub(SECTOR_SIZE).is_some_and(|offset| {
        read_struct::<Trailer>(source, offset)
            .is_ok_and(|trailer| &trailer.signature == b"koly" && trailer.header_size.get() == 512)
    })
}

pub(crate) fn parse(source: Arc<dyn Source>) -> Result<Parsed> {
    let last = source.len().checked_sub(SECTOR_SIZE);
    let trailer: Trailer = read_struct(&*source, last.ok_or_else(|| damaged("it is too short"))?)?;
    if &trailer.signature != b"koly" {
        return Err(damaged("its trailer is missing"));
    }
    if trailer.segment_count.get() > 1 {
        return Err(unsupported("it is one of several files"));
    }
    let xml = trailer.xml_length.get();
    if xml == 0 || xml > MAX_PLIST {
        return Err(unsupported("its property list is missing or too long"));
    }
    // Bounded above.
    let text = read_vec(&*source, trailer.xml_offset.get(), xml as usize)?;
    let mut chunks = Vec::new();
    for table in plist::tables(&text)? {
        read_table(&table, trailer.data_fork_offset.get(), &mut chunks)?;
    }
    chunks.sort_by_key(|chunk| chunk.range.start);
    if chunks.windows(2).any(|pair| pair[0].range.end > pair[1].range.start) {
        return Err(damaged("its chunks overlap"));
    }
    let end = chunks.last().map_or(0, |chunk| chunk.range.end);
    let length = trailer.sector_count.get().saturating_mul(SECTOR_SIZE).max(end);
    let mut parsed = Parsed::new(Dmg { sources: [source], chunks, length }, length);
    parsed.details = vec![("kind", "UDIF".to_owned())];
    Ok(parsed)
}

fn read_table(table: &[u8], data_fork: u64, chunks: &mut Vec<Chunk>) -> Result<()> {
    let wrong = || damaged("a table of its chunks is wrong");
    let (header, entries) = TableHeader::read_from_prefix(table).map_err(|_| wrong())?;
    if &header.signature != b"mish" {
        return Err(wrong());
    }
    // At most as many as the property list had room for.
    let entries = entries.chunks_exact(size_of::<TableEntry>()).take(header.chunks.get() as usize);
    for entry in entries {
        let Ok(entry) = TableEntry::read_from_bytes(entry) else { break };
        let kind = match entry.kind.get() {
            0 | 2 => Kind::Zero,
            1 => Kind::Stored,
            0x8000_0004 => Kind::Packed(Codec::Adc, 0),
            0x8000_0005 => Kind::Packed(Codec::Zlib, 0),
            0x8000_0006 => Kind::Packed(Codec::Bzip2, 0),
            0x8000_0007 => Kind::Packed(Codec::Lzfse, 0),
            0x8000_0008 => Kind::Packed(Codec::Xz, 0),
            // A comment; the end.
            0x7fff_fffe | 0xffff_ffff => continue,
            other => return Err(unsupported(format!("it has chunks of type {other:#x}"))),
        };
        let bytes = |sectors: Option<u64>| {
            let bytes = sectors.and_then(|sectors| sectors.checked_mul(SECTOR_SIZE));
            bytes.filter(|&bytes| bytes <= MAX_LENGTH).ok_or_else(wrong)
        };
        let start = bytes(header.sector_number.get().checked_add(entry.sector_number.get()))?;
        let end = start + bytes(Some(entry.sector_count.get()))?;
        let offset = data_fork
            .checked_add(header.data_offset.get())
            .and_then(|offset| offset.checked_add(entry.compressed_offset.get()))
            .filter(|&offset| offset <= MAX_LENGTH)
            .ok_or_else(wrong)?;
        let kind = match kind {
            Kind::Packed(codec, _) => {
                let length = entry.compressed_length.get();
                if end - start > MAX_CHUNK || length > MAX_CHUNK / 8 * 9 {
                    return Err(unsupported("its chunks are too large"));
                }
                // Bounded above.
                Kind::Packed(codec, length as u32)
            }
            other => other,
        };
        if start < end {
            chunks.push(Chunk { range: start..end, offset, kind });
        }
    }
    Ok(())
}

impl Layer for Dmg {
    fn locate(&self, range: Range<u64>) -> Result<Run> {
        let index = self.chunks.partition_point(|chunk| chunk.range.end <= range.start);
        let Some(chunk) = self.chunks.get(index) else {
            return Ok(Run { end: self.length, place: Place::Absent });
        };
        if range.start < chunk.range.start {
            return Ok(Run { end: chunk.range.start, place: Place::Absent });
        }
        let within = range.start - chunk.range.start;
        let place = match chunk.kind {
            Kind::Stored => Place::Stored { source: 0, offset: chunk.offset + within },
            Kind::Zero => Place::Zero,
            Kind::Packed(codec, length) => Place::Packed(Grain {
                source: 0,
                offset: chunk.offset,
                length,
                codec,
                start: chunk.range.start,
                // Bounded when the table was read.
                size: (chunk.range.end - chunk.range.start) as u32,
            }),
        };
        Ok(Run { end: chunk.range.end, place })
    }

    fn sources(&self) -> &[Arc<dyn Source>] {
        &self.sources
    }

    fn block_size(&self) -> u64 {
        let packed = self.chunks.iter().filter(|chunk| matches!(chunk.kind, Kind::Packed(..)));
        packed.map(|chunk| chunk.range.end - chunk.range.start).max().unwrap_or(1)
    }
}

fn damaged(what: impl Into<String>) -> Error {
    Error::Damaged { format: Format::Dmg, what: what.into() }
}

fn unsupported(what: impl Into<String>) -> Error {
    Error::Unsupported { format: Format::Dmg, what: what.into() }
}
