//! VirtualBox's format (VirtualBox, src/VBox/Storage/VDICore.h).

mod create;
mod resize;
mod write;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub(crate) use create::NewImage;
pub(crate) use resize::grow;

use crate::blocks::{Begun, Blocks};
use crate::cache::Tables;
use crate::layer::{self, Cut, Layer, LayerWriter, Place, Run};
use crate::open::{Identity, ParentLink, Parsed};
use crate::source::{Source, read_struct};
use crate::{Error, Format, Result};

const SIGNATURE: u32 = 0xbeda_107f;
/// Version 1.1; 1.0 has another header and was never in a release that still runs.
const VERSION: u32 = 0x0001_0001;

/// Entries of the block map.
const FREE: u32 = u32::MAX;
const ZERO: u32 = u32::MAX - 1;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    text: [u8; 64],
    signature: U32,
    version: U32,
    header_size: U32,
    image_type: U32,
    flags: U32,
    comment: [u8; 256],
    blocks_offset: U32,
    data_offset: U32,
    legacy_geometry: [u8; 16],
    dummy: U32,
    disk_size: U64,
    block_size: U32,
    block_extra: U32,
    blocks: U32,
    blocks_allocated: U32,
    uuid_create: [u8; 16],
    uuid_modify: [u8; 16],
    uuid_linkage: [u8; 16],
    uuid_parent_modify: [u8; 16],
}

const _: () = assert!(size_of::<Header>() == 456);

struct Vdi {
    tables: Tables,
    sources: [Arc<dyn Source>; 1],
    map_offset: u64,
    data_offset: u64,
    block_size: u64,
    /// Bytes before each block's data.
    block_extra: u64,
    blocks: u64,
    /// How many blocks the file has room for.
    allocated: AtomicU64,
    /// Changes of the header.
    header: Tables,
    begun: Begun,
}

pub(crate) fn parse(source: Arc<dyn Source>) -> Result<Parsed> {
    let (layer, header) = Vdi::open(source)?;
    let kind = match header.image_type.get() {
        1 => "dynamic",
        2 => "static",
        3 => "undo",
        4 => "differencing",
        other => return Err(unsupported(format!("it is of type {other}"))),
    };
    let mut parsed = Parsed::new(layer, header.disk_size.get());
    parsed.details = vec![("kind", kind.to_owned())];
    parsed.identity = Some(Identity::State { uuid: header.uuid_create, state: header.uuid_modify });
    if header.uuid_linkage != [0; 16] {
        let (uuid, state) = (header.uuid_linkage, header.uuid_parent_modify);
        let identity = Some(Identity::State { uuid, state });
        let link = ParentLink { identity, format: Some(Format::Vdi), names: Vec::new() };
        parsed.parent = Some(link);
    } else if matches!(header.image_type.get(), 3 | 4) {
        return Err(damaged("it does not say what its parent is"));
    }
    Ok(parsed)
}

impl Vdi {
    fn open(source: Arc<dyn Source>) -> Result<(Self, Header)> {
        let header: Header = read_struct(&*source, 0)?;
        if header.signature.get() != SIGNATURE {
            return Err(damaged("it has the wrong signature"));
        }
        if header.version.get() >> 16 != VERSION >> 16 {
            return Err(unsupported(format!("its version is {:#x}", header.version.get())));
        }
        let block_size = header.block_size.get();
        if !block_size.is_power_of_two() || !(4096..=1 << 28).contains(&block_size) {
            return Err(damaged(format!("its blocks cannot have {block_size} bytes")));
        }
        if header.block_extra.get() > block_size {
            return Err(damaged("its blocks have more before them than in them"));
        }
        let length = header.disk_size.get();
        if length.div_ceil(block_size.into()) > header.blocks.get().into() {
            return Err(damaged("its disk is longer than its map"));
        }
        let map_bytes = u64::from(header.blocks.get()) * 4;
        if u64::from(header.blocks_offset.get()) + map_bytes > source.len() {
            return Err(damaged("its map passes the end of the file"));
        }
        let vdi = Self {
            tables: Tables::new(source.clone()),
            header: Tables::new(source.clone()),
            begun: Begun::default(),
            blocks: header.blocks.get().into(),
            // What it claims beyond its map is not true.
            allocated: u64::from(header.blocks_allocated.get().min(header.blocks.get())).into(),
            sources: [source],
            map_offset: header.blocks_offset.get().into(),
            data_offset: header.data_offset.get().into(),
            block_size: block_size.into(),
            block_extra: header.block_extra.get().into(),
        };
        Ok((vdi, header))
    }

    /// Bytes from one block to the next.
    fn stride(&self) -> u64 {
        self.block_size + self.block_extra
    }

    /// Where a block's bytes begin.
    fn place_of(&self, entry: u32) -> u64 {
        self.data_offset + u64::from(entry) * self.stride() + self.block_extra
    }

    fn step(&self, offset: u64) -> Result<Run> {
        let index = offset / self.block_size;
        let within = offset % self.block_size;
        let end = (index + 1) * self.block_size;
        let place = match self.tables.le32(self.map_offset, index)? {
            FREE => Place::Absent,
            ZERO => Place::Zero,
            block => Place::Stored { source: 0, offset: self.place_of(block) + within },
        };
        Ok(Run { end, place })
    }
}

impl Layer for Vdi {
    fn locate(&self, range: Range<u64>) -> Result<Run> {
        layer::join(range, |offset| self.step(offset))
    }

    fn sources(&self) -> &[Arc<dyn Source>] {
        &self.sources
    }

    fn cut(&self) -> Result<Option<Cut>> {
        let Some(last) = self.allocated.load(Ordering::Relaxed).checked_sub(1) else {
            return Ok(None);
        };
        // At most the number of blocks, so it fits.
        Ok(Cut::before(&*self.sources[0], self.place_of(last as u32), self.block_size))
    }

    fn writer(&self) -> Option<&dyn LayerWriter> {
        self.can_write().then_some(self)
    }

    fn block_size(&self) -> u64 {
        self.block_size
    }
}

fn damaged(what: impl Into<String>) -> Error {
    Error::Damaged { format: Format::Vdi, what: what.into() }
}

fn unsupported(what: impl Into<String>) -> Error {
    Error::Unsupported { format: Format::Vdi, what: what.into() }
}
