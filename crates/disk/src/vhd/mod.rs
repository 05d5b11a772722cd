//! Virtual PC's format ("Virtual Hard Disk Image Format Specification" 1.0).

mod create;
mod header;
mod parent;
mod resize;
mod write;

use std::ops::Range;
use std::sync::{Arc, Mutex};

pub(crate) use create::NewImage;
pub(crate) use header::Footer;
use header::{DynamicHeader, damaged, unsupported};
pub(crate) use resize::grow;

use write::End;

use crate::blocks::{Begun, Blocks};
use crate::cache::Tables;
use crate::layer::{self, Cut, Layer, LayerWriter, Place, Run};
use crate::open::{Identity, Parsed};
use crate::source::{Source, largest, read_struct};
use crate::{Error, Result, SECTOR_SIZE};

const ABSENT: u32 = u32::MAX;

enum Vhd {
    Fixed { sources: [Arc<dyn Source>; 1], length: u64, begun: Begun },
    Sparse(Box<Sparse>),
}

/// A dynamic or differencing disk.
struct Sparse {
    tables: Tables,
    sources: [Arc<dyn Source>; 1],
    table_offset: u64,
    block_size: u64,
    /// Bytes of the bitmap before each block's data.
    bitmap_size: u64,
    /// Pages of one sector each, as they lie between the guest's bytes.
    bitmaps: Tables,
    footer: Box<Footer>,
    has_footer_at_end: bool,
    end: Mutex<End>,
    begun: Begun,
}

pub(crate) fn parse(source: Arc<dyn Source>) -> Result<Parsed> {
    let footer = Footer::find(&*source)?;
    let length = footer.disk_length();
    let identity = Some(Identity::Uuid(footer.unique_id));
    match footer.disk_type.get() {
        2 => {
            if length > source.len() {
                return Err(damaged("its disk is longer than its file"));
            }
            let mut parsed = Parsed::new(
                Vhd::Fixed { sources: [source], length, begun: Begun::default() },
                length,
            );
            parsed.details = vec![("kind", "fixed".to_owned())];
            parsed.identity = identity;
            Ok(parsed)
        }
        kind @ (3 | 4) => {
            let header: DynamicHeader = read_struct(&*source, footer.data_offset.get())?;
            header.check(length, source.len())?;
            let parent = if kind == 4 { Some(parent::link(&header, &*source)?) } else { None };
            let sparse = Sparse::new(source, footer, &header);
            let mut parsed = Parsed::new(Vhd::Sparse(Box::new(sparse)), length);
            let kind = if kind == 4 { "differencing" } else { "dynamic" };
            parsed.details = vec![("kind", kind.to_owned())];
            parsed.identity = identity;
            parsed.parent = parent;
            Ok(parsed)
        }
        other => Err(unsupported(format!("it is of type {other}"))),
    }
}

/// What is wrong with a file whose name ends in `.vhd` and that has no footer at either end.
pub(crate) fn without_footer() -> Error {
    damaged(
        "the footer at its end is missing: it was cut short, or it is a raw disk with a wrong name",
    )
}

/// Bytes of the bitmap of a block's sectors: whole sectors.
fn bitmap_size(block_size: u64) -> u64 {
    (block_size / SECTOR_SIZE).div_ceil(8).next_multiple_of(SECTOR_SIZE)
}

impl Sparse {
    /// Of a header that was checked.
    fn new(source: Arc<dyn Source>, footer: Footer, header: &DynamicHeader) -> Self {
        let block_size = u64::from(header.block_size.get());
        let last = source.len().saturating_sub(SECTOR_SIZE);
        let at_end = read_struct::<Footer>(&*source, last).is_ok_and(|at_end| at_end.is_valid());
        Self {
            bitmaps: Tables::with_pages(source.clone(), SECTOR_SIZE as usize),
            footer: Box::new(footer),
            has_footer_at_end: at_end && source.len().is_multiple_of(SECTOR_SIZE),
            end: Mutex::new(End { next: 0, footer: 0 }),
            begun: Begun::default(),
            tables: Tables::new(source.clone()),
            sources: [source],
            table_offset: header.table_offset.get(),
            block_size,
            bitmap_size: bitmap_size(block_size),
        }
    }

    fn step(&self, offset: u64) -> Result<Run> {
        let index = offset / self.block_size;
        let within = offset % self.block_size;
        let start = index * self.block_size;
        let sector = self.tables.be32(self.table_offset, index)?;
        if sector == ABSENT {
            return Ok(Run { end: start + self.block_size, place: Place::Absent });
        }
        let bitmap = u64::from(sector) * SECTOR_SIZE;
        let first = within / SECTOR_SIZE;
        let byte = |number: u64| -> Result<u8> {
            let mut byte = [0];
            self.bitmaps.read_at(&mut byte, bitmap + number)?;
            Ok(byte[0])
        };
        let mut bits = byte(first / 8)?;
        let is_set = |bits: u8, sector: u64| bits & (0x80 >> (sector % 8)) != 0;
        let stored = is_set(bits, first);
        let uniform = if stored { 0xff } else { 0 };
        let sectors = self.block_size / SECTOR_SIZE;
        let mut end = first + 1;
        while end < sectors {
            if end.is_multiple_of(8) {
                bits = byte(end / 8)?;
                if bits == uniform {
                    end += 8;
                    continue;
                }
            }
            if is_set(bits, end) != stored {
                break;
            }
            end += 1;
        }
        let place = if stored {
            Place::Stored { source: 0, offset: bitmap + self.bitmap_size + within }
        } else {
            Place::Absent
        };
        Ok(Run { end: start + end.min(sectors) * SECTOR_SIZE, place })
    }

    /// By its block allocation table, for what is last in the file is its footer.
    fn cut(&self) -> Result<Option<Cut>> {
        let source = &*self.sources[0];
        let count = self.footer.disk_length().div_ceil(self.block_size);
        let last =
            largest(source, self.table_offset, count, |entry| match u32::from_be_bytes(entry) {
                ABSENT => 0,
                sector => sector.into(),
            })?;
        let start = last * SECTOR_SIZE + self.bitmap_size;
        Ok(Cut::before(source, start, self.block_size + SECTOR_SIZE))
    }
}

impl Layer for Vhd {
    fn locate(&self, range: Range<u64>) -> Result<Run> {
        match self {
            Self::Fixed { length, .. } => {
                let place = Place::Stored { source: 0, offset: range.start };
                Ok(Run { end: *length, place })
            }
            Self::Sparse(sparse) => layer::join(range, |offset| sparse.step(offset)),
        }
    }

    fn sources(&self) -> &[Arc<dyn Source>] {
        match self {
            Self::Fixed { sources, .. } => sources,
            Self::Sparse(sparse) => &sparse.sources,
        }
    }

    fn cut(&self) -> Result<Option<Cut>> {
        match self {
            Self::Sparse(sparse) if !sparse.has_footer_at_end => sparse.cut(),
            Self::Fixed { .. } | Self::Sparse(_) => Ok(None),
        }
    }

    fn writer(&self) -> Option<&dyn LayerWriter> {
        self.can_write().then_some(self)
    }

    fn block_size(&self) -> u64 {
        match self {
            Self::Fixed { .. } => 1,
            Self::Sparse(sparse) => sparse.block_size,
        }
    }
}

/// Makes the checksums right of a footer at the end, its copy at the start and the header behind that.
pub(crate) fn seal(image: &mut [u8]) {
    let length = image.len();
    let last = length.saturating_sub(512);
    for (start, size, field) in [(0, 512, 64), (last, 512, 64), (512, 1024, 36)] {
        if let Some(part) = image.get_mut(start..start + size) {
            part[field..field + 4].fill(0);
            let sum = header::checksum(part).to_be_bytes();
            part[field..field + 4].copy_from_slice(&sum);
        }
    }
}
