//! One image of Parallels' format (QEMU, docs/interop/parallels.txt), plain or expanding.

mod create;
mod write;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub(crate) use create::NewImage;

use crate::blocks::{Begun, Blocks};
use crate::cache::Tables;
use crate::layer::{self, Layer, LayerWriter, Place, Run};
use crate::open::Parsed;
use crate::source::{Source, read_struct};
use crate::{Error, Format, Result, SECTOR_SIZE};

/// The image is in use, or was when its program died.
const IN_USE: u32 = 0x746f_6e59;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 16],
    version: U32,
    heads: U32,
    cylinders: U32,
    /// Sectors per cluster.
    tracks: U32,
    bat_entries: U32,
    nb_sectors: U64,
    inuse: U32,
    data_off: U32,
    flags: U32,
    ext_off: U64,
}

const _: () = assert!(size_of::<Header>() == 64);

struct Parallels {
    tables: Tables,
    sources: [Arc<dyn Source>; 1],
    cluster_size: u64,
    /// Bytes that an entry of the table counts.
    unit: u64,
    entries: u64,
    /// Where the next cluster goes.
    end: AtomicU64,
    begun: Begun,
}

pub(crate) fn parse(source: Arc<dyn Source>) -> Result<Parsed> {
    let header: Header = read_struct(&*source, 0)?;
    let (sectors, multiplies) = match &header.magic {
        // The upper half was added later and is not always zero in old images.
        b"WithoutFreeSpace" => (header.nb_sectors.get() & u64::from(u32::MAX), false),
        b"WithouFreSpacExt" => (header.nb_sectors.get(), true),
        _ => return Err(damaged("it does not begin as it should")),
    };
    if header.version.get() != 2 {
        let what = format!("its version is {}", header.version.get());
        return Err(Error::Unsupported { format: Format::Parallels, what });
    }
    let cluster_sectors = u64::from(header.tracks.get());
    if cluster_sectors == 0 || cluster_sectors > 1 << 19 {
        return Err(damaged(format!("its clusters cannot have {cluster_sectors} sectors")));
    }
    let entries = u64::from(header.bat_entries.get());
    if sectors.div_ceil(cluster_sectors) > entries {
        return Err(damaged("its disk is longer than its table"));
    }
    if size_of::<Header>() as u64 + entries * 4 > source.len() {
        return Err(damaged("its table passes the end of the file"));
    }
    let cluster_size = cluster_sectors * SECTOR_SIZE;
    let end = source.len().max(u64::from(header.data_off.get()) * SECTOR_SIZE);
    let layer = Parallels {
        end: end.next_multiple_of(cluster_size).into(),
        begun: Begun::default(),
        tables: Tables::new(source.clone()),
        sources: [source],
        cluster_size,
        unit: if multiplies { cluster_size } else { SECTOR_SIZE },
        entries,
    };
    if header.inuse.get() == IN_USE && layer.can_write() {
        layer.check_table()?;
    }
    // No more than the entries' number times the clusters' size, so it fits.
    let mut parsed = Parsed::new(layer, sectors * SECTOR_SIZE);
    if header.inuse.get() == IN_USE {
        parsed.details.push(("dirty", "yes".to_owned()));
    }
    Ok(parsed)
}

impl Parallels {
    fn step(&self, offset: u64) -> Result<Run> {
        let index = offset / self.cluster_size;
        if index >= self.entries {
            return Err(damaged("its table is too short"));
        }
        let entry = self.tables.le32(size_of::<Header>() as u64, index)?;
        let place = match entry {
            0 => Place::Absent,
            _ => {
                let start = u64::from(entry) * self.unit;
                Place::Stored { source: 0, offset: start + offset % self.cluster_size }
            }
        };
        Ok(Run { end: (index + 1) * self.cluster_size, place })
    }
}

impl Layer for Parallels {
    fn locate(&self, range: Range<u64>) -> Result<Run> {
        layer::join(range, |offset| self.step(offset))
    }

    fn sources(&self) -> &[Arc<dyn Source>] {
        &self.sources
    }

    fn writer(&self) -> Option<&dyn LayerWriter> {
        self.can_write().then_some(self)
    }

    fn block_size(&self) -> u64 {
        self.cluster_size
    }
}

fn damaged(what: impl Into<String>) -> Error {
    Error::Damaged { format: Format::Parallels, what: what.into() }
}

/// Feeds bytes to the reader, for fuzzing.
pub fn fuzz_parallels(bytes: &[u8]) {
    crate::fuzz::read_all(Format::Parallels, bytes);
}
