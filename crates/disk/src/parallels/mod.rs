//! Parallels' format: one expanding image (QEMU, docs/interop/parallels.txt), or a bundle of images with a
//! descriptor.

mod bundle;
mod create;
mod resize;
mod write;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub(crate) use create::NewImage;
pub(crate) use resize::grow;

use crate::blocks::{Begun, Blocks};
use crate::cache::Tables;
use crate::layer::{self, Cut, Layer, LayerWriter, Place, Run};
use crate::open::{Neighbours, Parsed};
use crate::source::{Source, largest, read_struct, read_vec};
use crate::{Error, Format, Result, SECTOR_SIZE, Snapshot};

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
    /// Where the first cluster may lie.
    data: u64,
    /// Where the next cluster goes.
    end: AtomicU64,
    begun: Begun,
}

pub(crate) fn parse(
    source: Arc<dyn Source>,
    neighbours: &Neighbours<'_>,
    snapshot: Option<&str>,
) -> Result<Parsed> {
    let mut start = [0];
    if !source.is_empty() {
        source.read_at(&mut start, 0)?;
    }
    if start != [b'W'] {
        return parse_bundle(&*source, neighbours, snapshot);
    }
    if snapshot.is_some() {
        return Err(unsupported("one image of a bundle has no snapshots"));
    }
    let (image, sectors, is_in_use) = Parallels::open(source)?;
    // No more than the entries' number times the clusters' size, so it fits.
    let mut parsed = Parsed::new(image, sectors * SECTOR_SIZE);
    if is_in_use {
        parsed.details.push(("dirty", "yes".to_owned()));
    }
    Ok(parsed)
}

/// Puts a bundle's parts and snapshots together.
fn parse_bundle(
    source: &dyn Source,
    neighbours: &Neighbours<'_>,
    snapshot: Option<&str>,
) -> Result<Parsed> {
    if source.len() > bundle::MAX_DESCRIPTOR {
        return Err(damaged("its descriptor is too long"));
    }
    // Bounded above.
    let text = read_vec(source, 0, source.len() as usize)?;
    let descriptor = bundle::Descriptor::parse(&text)?;
    let chain = descriptor.chain(snapshot)?;
    let wrong = || damaged("its descriptor's numbers of sectors are wrong");
    let length = descriptor.sectors.checked_mul(SECTOR_SIZE).ok_or_else(wrong)?;
    // The present state alone can be changed, and only where no snapshot lies below it.
    let can_change = chain.len() == 1 && snapshot.is_none();
    let is_single = descriptor.storages.len() == 1 && can_change;
    let read_only = Neighbours { read_only: true, ..*neighbours };
    let neighbours = if can_change { neighbours } else { &read_only };
    let mut bundle =
        Bundle { sources: Vec::new(), parts: Vec::new(), block_size: 1, begun: Begun::default() };
    let mut start = 0;
    for storage in &descriptor.storages {
        let end = start + storage.length().ok_or_else(wrong)?;
        if storage.start.checked_mul(SECTOR_SIZE) != Some(start) || end > length {
            return Err(wrong());
        }
        let mut levels = Vec::new();
        for guid in &chain {
            let image = storage.image(guid)?;
            let file = neighbours.open(&image.file)?;
            let kind = match image.kind.as_str() {
                "Plain" => None,
                "Compressed" => {
                    let (expanding, sectors, _) = Parallels::open(file.clone())?;
                    if is_single && sectors * SECTOR_SIZE == length {
                        return Ok(described(expanding, length, &descriptor));
                    }
                    bundle.block_size = bundle.block_size.max(expanding.cluster_size);
                    Some(expanding)
                }
                other => return Err(unsupported(format!("an image of it is of type {other}"))),
            };
            bundle.sources.push(file);
            levels.push((bundle.sources.len() - 1, kind));
        }
        bundle.parts.push(Part { range: start..end, levels });
        start = end;
    }
    if start != length {
        return Err(wrong());
    }
    Ok(described(bundle, length, &descriptor))
}

fn described(layer: impl Layer + 'static, length: u64, descriptor: &bundle::Descriptor) -> Parsed {
    let mut parsed = Parsed::new(layer, length);
    parsed.details = vec![("kind", "bundle".to_owned())];
    let snapshots = descriptor.snapshots().map(|guid| Snapshot {
        id: guid.to_owned(),
        name: String::new(),
        created: 0,
        length,
        machine_state: 0,
    });
    parsed.snapshots = snapshots.collect();
    parsed
}

/// The parts of a bundle's disk, each with its states from the present one to the first.
struct Bundle {
    sources: Vec<Arc<dyn Source>>,
    parts: Vec<Part>,
    block_size: u64,
    begun: Begun,
}

struct Part {
    range: Range<u64>,
    /// Sources, and their maps if they are not plain.
    levels: Vec<(usize, Option<Parallels>)>,
}

impl Bundle {
    fn part(&self, offset: u64) -> Result<&Part> {
        let index = self.parts.partition_point(|part| part.range.end <= offset);
        self.parts.get(index).ok_or_else(|| damaged("its parts do not cover it"))
    }

    fn step(&self, offset: u64) -> Result<Run> {
        let part = self.part(offset)?;
        let within = offset - part.range.start;
        let mut end = part.range.end;
        for (source, image) in &part.levels {
            let Some(image) = image else {
                let length = self.sources[*source].len();
                if within >= length {
                    // A plain file may end before the disk does.
                    continue;
                }
                let end = end.min(part.range.start + length);
                return Ok(Run { end, place: Place::Stored { source: *source, offset: within } });
            };
            // Only the disk's own length is known to be covered by each table.
            if within / image.cluster_size >= image.entries {
                continue;
            }
            let run = image.step(within)?;
            end = end.min(run.end.saturating_add(part.range.start));
            if let Place::Stored { offset, .. } = run.place {
                return Ok(Run { end, place: Place::Stored { source: *source, offset } });
            }
        }
        Ok(Run { end, place: Place::Absent })
    }
}

impl Layer for Bundle {
    fn locate(&self, range: Range<u64>) -> Result<Run> {
        layer::join(range, |offset| self.step(offset))
    }

    fn sources(&self) -> &[Arc<dyn Source>] {
        &self.sources
    }

    fn cut(&self) -> Result<Option<Cut>> {
        let levels = self.parts.iter().flat_map(|part| &part.levels);
        for image in levels.filter_map(|(_, image)| image.as_ref()) {
            if let Some(cut) = image.cut()? {
                return Ok(Some(cut));
            }
        }
        Ok(None)
    }

    fn writer(&self) -> Option<&dyn LayerWriter> {
        self.can_write().then_some(self)
    }

    fn block_size(&self) -> u64 {
        self.block_size
    }
}

impl Parallels {
    /// An expanding image, its number of sectors, and whether it was not closed in order.
    fn open(source: Arc<dyn Source>) -> Result<(Self, u64, bool)> {
        let header: Header = read_struct(&*source, 0)?;
        let (sectors, multiplies) = match &header.magic {
            // The upper half was added later and is not always zero in old images.
            b"WithoutFreeSpace" => (header.nb_sectors.get() & u64::from(u32::MAX), false),
            b"WithouFreSpacExt" => (header.nb_sectors.get(), true),
            _ => return Err(damaged("it does not begin as it should")),
        };
        if header.version.get() != 2 {
            return Err(unsupported(format!("its version is {}", header.version.get())));
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
        // Clusters lie at multiples of their size from where the data begin.
        let table_end = size_of::<Header>() as u64 + entries * 4;
        let data = match u64::from(header.data_off.get()) * SECTOR_SIZE {
            0 => table_end.next_multiple_of(SECTOR_SIZE),
            data => data,
        };
        let data = if multiplies { data.next_multiple_of(cluster_size) } else { data };
        let used = source.len().saturating_sub(data).next_multiple_of(cluster_size);
        let layer = Parallels {
            data,
            end: (data + used).into(),
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
        Ok((layer, sectors, header.inuse.get() == IN_USE))
    }

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

    fn cut(&self) -> Result<Option<Cut>> {
        let source = &*self.sources[0];
        let number = |entry| u32::from_le_bytes(entry).into();
        let last = largest(source, size_of::<Header>() as u64, self.entries, number)?;
        Ok(Cut::before(source, last * self.unit, self.cluster_size))
    }

    fn writer(&self) -> Option<&dyn LayerWriter> {
        self.can_write().then_some(self)
    }

    fn block_size(&self) -> u64 {
        self.cluster_size
    }
}

fn unsupported(what: impl Into<String>) -> Error {
    Error::Unsupported { format: Format::Parallels, what: what.into() }
}

fn damaged(what: impl Into<String>) -> Error {
    Error::Damaged { format: Format::Parallels, what: what.into() }
}
