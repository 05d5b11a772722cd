//! QEMU's first copy-on-write format (QEMU, block/qcow.c).

use std::ops::Range;
use std::sync::Arc;

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::cache::Tables;
use crate::codec::Codec;
use crate::layer::{self, Grain, Layer, Place, Run};
use crate::open::{ParentLink, Parsed, is_protocol};
use crate::source::{Source, read_struct, read_vec};
use crate::{Error, Format, Result};

const COMPRESSED: u64 = 1 << 63;

#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: U32,
    version: U32,
    backing_file_offset: U64,
    backing_file_size: U32,
    mtime: U32,
    size: U64,
    cluster_bits: u8,
    l2_bits: u8,
    padding: U16,
    crypt_method: U32,
    l1_table_offset: U64,
}

const _: () = assert!(size_of::<Header>() == 48);

struct Qcow {
    tables: Tables,
    sources: [Arc<dyn Source>; 1],
    l1_offset: u64,
    cluster_bits: u32,
    l2_bits: u32,
}

pub(crate) fn parse(source: Arc<dyn Source>) -> Result<Parsed> {
    let header: Header = read_struct(&*source, 0)?;
    if header.magic.get() != 0x5146_49fb || header.version.get() != 1 {
        return Err(damaged("it does not begin with QFI and version 1"));
    }
    if header.crypt_method.get() != 0 {
        let what = "it is encrypted (AES)".to_owned();
        return Err(Error::Unsupported { format: Format::Qcow, what });
    }
    let (cluster_bits, l2_bits) = (u32::from(header.cluster_bits), u32::from(header.l2_bits));
    if !(9..=16).contains(&cluster_bits) || !(6..=13).contains(&l2_bits) {
        return Err(damaged("its clusters or tables have a wrong size"));
    }
    let name = match (header.backing_file_offset.get(), header.backing_file_size.get()) {
        (0, _) | (_, 0) => None,
        (offset, length) if length <= 1023 => {
            let name = read_vec(&*source, offset, length as usize)?;
            Some(String::from_utf8_lossy(&name).into_owned())
        }
        _ => return Err(damaged("the name of its backing file is too long")),
    };
    if let Some(name) = name.as_deref().filter(|name| is_protocol(name)) {
        let what = format!("its backing is {name}, which is no file");
        return Err(Error::Unsupported { format: Format::Qcow, what });
    }
    if header.l1_table_offset.get() >= source.len() {
        return Err(damaged("its table of the first level passes the end of the file"));
    }
    let layer = Qcow {
        tables: Tables::new(source.clone()),
        sources: [source],
        l1_offset: header.l1_table_offset.get(),
        cluster_bits,
        l2_bits,
    };
    let mut parsed = Parsed::new(layer, header.size.get());
    parsed.parent = name.map(|name| ParentLink { names: vec![name], ..ParentLink::default() });
    Ok(parsed)
}

impl Qcow {
    fn step(&self, offset: u64) -> Result<Run> {
        let covered = self.cluster_bits + self.l2_bits;
        let table = self.tables.be64(self.l1_offset, offset >> covered)?;
        if table == 0 {
            return Ok(Run { end: ((offset >> covered) + 1) << covered, place: Place::Absent });
        }
        let size = 1_u64 << self.cluster_bits;
        let start = offset & !(size - 1);
        let index = offset >> self.cluster_bits & ((1 << self.l2_bits) - 1);
        let entry = self.tables.be64(table, index)?;
        let place = if entry & COMPRESSED != 0 {
            let bits = 63 - self.cluster_bits;
            let length = (entry & !COMPRESSED) >> bits & (size - 1);
            Place::Packed(Grain {
                source: 0,
                offset: entry & ((1 << bits) - 1),
                length: length as u32,
                codec: Codec::Deflate,
                start,
                size: size as u32,
            })
        } else if entry == 0 {
            Place::Absent
        } else {
            let offset = entry.checked_add(offset - start);
            let offset = offset.ok_or_else(|| damaged("a cluster lies past every file's end"))?;
            Place::Stored { source: 0, offset }
        };
        Ok(Run { end: start + size, place })
    }
}

impl Layer for Qcow {
    fn locate(&self, range: Range<u64>) -> Result<Run> {
        layer::join(range, |offset| self.step(offset))
    }

    fn sources(&self) -> &[Arc<dyn Source>] {
        &self.sources
    }

    fn block_size(&self) -> u64 {
        1 << self.cluster_bits
    }
}

fn damaged(what: impl Into<String>) -> Error {
    Error::Damaged { format: Format::Qcow, what: what.into() }
}
