//! VMware's formats ("Virtual Disk Format 5.0"; COWD and seSparse after QEMU, block/vmdk.c).

mod create;
mod descriptor;
mod resize;
mod sesparse;
mod sparse;
mod write;

use std::ops::Range;
use std::sync::Arc;

pub(crate) use create::{build, names};
use descriptor::{Access, Descriptor, ExtentKind};
pub(crate) use resize::grow;
use sesparse::SeSparse;
use sparse::Sparse;

use crate::blocks::{Begun, Blocks};
use crate::layer::{self, Cut, Layer, LayerWriter, Place, Run};
use crate::open::{Identity, MAX_LENGTH, Neighbours, ParentLink, Parsed, portable_names};
use crate::source::{Source, read_vec};
use crate::{Error, Format, Result, SECTOR_SIZE};

/// Longest descriptor that is read.
const MAX_DESCRIPTOR: u64 = 1 << 20;
/// Most extents of a disk; VMware stops far below.
const MAX_EXTENTS: usize = 4096;
/// The content number by which a descriptor says that it has no parent.
const NO_PARENT: u32 = u32::MAX;

/// Kinds of disks that are a device of their ESX host. Those of a desktop (`fullDevice`, `partitionedDevice`, `custom`) name
/// devices as they name files, so that they are found where a user lets an image name files outside of its folder.
const DEVICES_OF_ESX: [&str; 4] =
    ["vmfsRaw", "vmfsRDM", "vmfsRawDeviceMap", "vmfsPassthroughRawDeviceMap"];

struct Vmdk {
    sources: Vec<Arc<dyn Source>>,
    /// In the guest's order, without gaps.
    extents: Vec<Extent>,
    /// Where the text is that says what it consists of.
    descriptor: Option<(Arc<dyn Source>, Range<u64>)>,
    /// It and its descriptor say nothing against changing it.
    is_writable: bool,
    begun: Begun,
}

/// A file's part of the disk.
struct Extent {
    range: Range<u64>,
    source: usize,
    kind: Kind,
}

enum Kind {
    Flat { offset: u64 },
    Zero,
    Sparse(Sparse),
    SeSparse(SeSparse),
}

pub(crate) fn parse(source: Arc<dyn Source>, neighbours: &Neighbours<'_>) -> Result<Parsed> {
    let mut vmdk = Vmdk {
        sources: Vec::new(),
        extents: Vec::new(),
        descriptor: None,
        is_writable: source.writable().is_some(),
        begun: Begun::default(),
    };
    if let Some(kind) = open_sparse(&source)? {
        let embedded = match &kind {
            Kind::Sparse(sparse) => sparse.descriptor.clone(),
            _ => None,
        };
        let length = capacity(&kind);
        vmdk.push(source.clone(), kind, length)?;
        vmdk.descriptor = embedded.clone().map(|range| (source.clone(), range));
        let descriptor = embedded.map(|range| read_descriptor(&*source, range)).transpose()?;
        return Ok(parsed(vmdk, descriptor.as_ref()));
    }
    let descriptor = read_descriptor(&*source, 0..source.len())?;
    vmdk.descriptor = Some((source.clone(), 0..source.len()));
    let create_type = descriptor.create_type.as_str();
    if DEVICES_OF_ESX.iter().any(|kind| kind.eq_ignore_ascii_case(create_type)) {
        return Err(unsupported(format!(
            "its kind is {create_type}: it is a device of an ESX host"
        )));
    }
    if descriptor.extents.is_empty() || descriptor.extents.len() > MAX_EXTENTS {
        return Err(damaged("its descriptor has no extents, or too many"));
    }
    for (index, extent) in descriptor.extents.iter().enumerate() {
        vmdk.push_described(extent, &descriptor.extents[..index], neighbours)?;
    }
    Ok(parsed(vmdk, Some(&descriptor)))
}

fn parsed(vmdk: Vmdk, descriptor: Option<&Descriptor>) -> Parsed {
    let length = vmdk.length();
    let mut parsed = Parsed::new(vmdk, length);
    let Some(descriptor) = descriptor else { return parsed };
    parsed.details = vec![("kind", descriptor.create_type.clone())];
    parsed.identity = descriptor.content_id.map(Identity::ContentId);
    if let Some(content_id) = descriptor.parent_content_id.filter(|&id| id != NO_PARENT) {
        let names = portable_names(descriptor.parent_file_name_hint.as_deref().unwrap_or_default());
        let identity = Some(Identity::ContentId(content_id));
        parsed.parent = Some(ParentLink { names, format: Some(Format::Vmdk), identity });
    }
    parsed
}

/// The file as a sparse extent of any kind, if it is one.
fn open_sparse(source: &Arc<dyn Source>) -> Result<Option<Kind>> {
    let mut magic = [0; 8];
    if source.len() < magic.len() as u64 {
        return Ok(None);
    }
    source.read_at(&mut magic, 0)?;
    Ok(match &magic {
        [b'K', b'D', b'M', b'V', ..] => Some(Kind::Sparse(Sparse::hosted(source.clone())?)),
        [b'C', b'O', b'W', b'D', ..] => Some(Kind::Sparse(Sparse::cowd(source.clone())?)),
        _ if u64::from_le_bytes(magic) == sesparse::MAGIC => {
            Some(Kind::SeSparse(SeSparse::open(source.clone())?))
        }
        _ => None,
    })
}

fn capacity(kind: &Kind) -> u64 {
    match kind {
        Kind::Sparse(sparse) => sparse.length,
        Kind::SeSparse(sparse) => sparse.length,
        Kind::Flat { .. } | Kind::Zero => 0,
    }
}

fn read_descriptor(source: &dyn Source, range: Range<u64>) -> Result<Descriptor> {
    let length = range.end.saturating_sub(range.start);
    if length > MAX_DESCRIPTOR {
        return Err(damaged("its descriptor is too long"));
    }
    Descriptor::parse(&read_vec(source, range.start, length as usize)?)
}

impl Vmdk {
    fn length(&self) -> u64 {
        self.extents.last().map_or(0, |extent| extent.range.end)
    }

    fn push(&mut self, source: Arc<dyn Source>, kind: Kind, length: u64) -> Result<()> {
        let start = self.length();
        let end = start.checked_add(length).filter(|&end| end <= MAX_LENGTH);
        let end = end.ok_or_else(|| damaged("its disk is longer than any can be"))?;
        self.sources.push(source);
        if start < end {
            self.extents.push(Extent { range: start..end, source: self.sources.len() - 1, kind });
        }
        Ok(())
    }

    /// `earlier` are those whose sources are there already, in their order.
    fn push_described(
        &mut self,
        extent: &descriptor::Extent,
        earlier: &[descriptor::Extent],
        neighbours: &Neighbours<'_>,
    ) -> Result<()> {
        if extent.access == Access::None {
            return Err(unsupported("an extent of it may not be accessed"));
        }
        self.is_writable &= extent.access == Access::ReadWrite;
        let length = extent.sectors.checked_mul(SECTOR_SIZE).filter(|&length| length <= MAX_LENGTH);
        let length = length.ok_or_else(|| damaged("an extent is longer than any disk can be"))?;
        if extent.kind == ExtentKind::Zero {
            // It needs no file; any source stands for it.
            let nothing: Arc<dyn Source> = Arc::new(crate::MemorySource::read_only(Vec::new()));
            return self.push(nothing, Kind::Zero, length);
        }
        // A device can be claimed once only, however many parts of it there are.
        let known = earlier.iter().position(|other| other.file == extent.file);
        let source = match known.and_then(|index| self.sources.get(index)) {
            Some(source) => Arc::clone(source),
            None => neighbours.open(&extent.file)?,
        };
        let kind = match extent.kind {
            ExtentKind::Flat => {
                let offset = extent.offset.saturating_mul(SECTOR_SIZE);
                if offset.checked_add(length).is_none_or(|end| end > source.len()) {
                    return Err(damaged(format!("the file {} is too short", extent.file)));
                }
                Kind::Flat { offset }
            }
            _ => open_sparse(&source)?
                .filter(|kind| capacity(kind) >= length)
                .ok_or_else(|| damaged(format!("the file {} is no extent of it", extent.file)))?,
        };
        self.push(source, kind, length)
    }

    fn step(&self, offset: u64) -> Result<Run> {
        let index = self.extents.partition_point(|extent| extent.range.end <= offset);
        let extent =
            self.extents.get(index).ok_or_else(|| damaged("its extents do not cover its disk"))?;
        let within = offset - extent.range.start;
        let mut run = match &extent.kind {
            Kind::Flat { offset } => {
                let offset = offset + within;
                Run { end: extent.range.end, place: Place::Stored { source: 0, offset } }
            }
            Kind::Zero => Run { end: extent.range.end, place: Place::Zero },
            Kind::Sparse(sparse) => shifted(sparse.step(within)?, extent.range.start),
            Kind::SeSparse(sparse) => shifted(sparse.step(within)?, extent.range.start),
        };
        match &mut run.place {
            Place::Stored { source, .. } => *source = extent.source,
            Place::Packed(grain) => grain.source = extent.source,
            Place::Zero | Place::Absent => {}
        }
        run.end = run.end.min(extent.range.end);
        Ok(run)
    }
}

/// A run of an extent as a run of the disk.
fn shifted(mut run: Run, start: u64) -> Run {
    run.end = run.end.saturating_add(start);
    if let Place::Packed(grain) = &mut run.place {
        grain.start += start;
    }
    run
}

impl Layer for Vmdk {
    fn locate(&self, range: Range<u64>) -> Result<Run> {
        layer::join(range, |offset| self.step(offset))
    }

    fn sources(&self) -> &[Arc<dyn Source>] {
        &self.sources
    }

    fn cut(&self) -> Result<Option<Cut>> {
        for extent in &self.extents {
            if let Kind::Sparse(sparse) = &extent.kind
                && let Some(cut) = sparse.cut()?
            {
                return Ok(Some(cut));
            }
        }
        Ok(None)
    }

    fn writer(&self) -> Option<&dyn LayerWriter> {
        self.can_write().then_some(self)
    }

    fn block_size(&self) -> u64 {
        let sizes = self.extents.iter().map(|extent| match &extent.kind {
            Kind::Sparse(sparse) => sparse.grain_size,
            Kind::SeSparse(sparse) => sparse.grain_size,
            Kind::Flat { .. } | Kind::Zero => 1,
        });
        sizes.max().unwrap_or(1)
    }
}

fn damaged(what: impl Into<String>) -> Error {
    Error::Damaged { format: Format::Vmdk, what: what.into() }
}

fn unsupported(what: impl Into<String>) -> Error {
    Error::Unsupported { format: Format::Vmdk, what: what.into() }
}
