//! QEMU's format qcow2, versions 2 and 3.

mod append;
mod backing;
mod check;
mod create;
mod edit;
mod header;
mod map;
mod refcount;
mod resize;
mod snapshot;
#[cfg(test)]
mod tests;
mod write;

use std::ops::Range;
use std::sync::Arc;

use header::{Checked, incompatible, unsupported};
use map::Map;
use refcount::Refcounts;
use write::Writer;

pub(crate) use append::Appender;
pub(crate) use backing::set_backing;
pub(crate) use check::check;
#[cfg(test)]
pub(crate) use create::write_empty;
pub use create::{Qcow2Options, create_qcow2};
pub(crate) use edit::{create_snapshot, delete_snapshot, revert_to_snapshot};
pub(crate) use resize::grow;

use crate::layer::{Cut, Image, Layer, LayerWriter, Run};
use crate::open::{Neighbours, ParentLink, Parsed, is_protocol};
use crate::source::Source;
use crate::{Error, Format, Result, SECTOR_SIZE};

struct Qcow2 {
    map: Map,
    /// As they were when it was opened.
    counts: Refcounts,
    writer: Option<Writer>,
}

/// Reads an image's structures, as an internal snapshot had them if one is named.
pub(crate) fn parse(
    source: Arc<dyn Source>,
    neighbours: &Neighbours<'_>,
    snapshot: Option<&str>,
) -> Result<Parsed> {
    let checked = Checked::read(&*source)?;
    let saved = snapshot::read(&checked, &*source)?;
    let data = match (&checked.data_file, checked.has(incompatible::EXTERNAL_DATA)) {
        (_, false) => None,
        (Some(name), true) if is_protocol(name) => {
            return Err(unsupported(format!("its data lies at {name}, which is no file")));
        }
        (Some(name), true) => Some(neighbours.open(name)?),
        (None, true) => return Err(unsupported("it does not name its external data file")),
    };
    let writer = if neighbours.read_only || snapshot.is_some() {
        None
    } else {
        Some(Writer::new(&checked, &*source)?)
    };
    let mut map = Map::new(&checked, source.clone(), data);
    let mut length = checked.header.size.get();
    if let Some(wanted) = snapshot {
        let found = saved
            .iter()
            .find(|saved| saved.snapshot.id == wanted)
            .or_else(|| saved.iter().find(|saved| saved.snapshot.name == wanted))
            .ok_or_else(|| unsupported(format!("it has no snapshot \"{wanted}\"")))?;
        map.l1_offset = found.l1_offset;
        map.l1_size = found.l1_size.into();
        length = found.snapshot.length;
    }
    let parent = parent_link(&checked)?;
    let details = details(&checked);
    let counts = Refcounts::new(&checked, source.len());
    let mut parsed = Parsed::new(Qcow2 { map, counts, writer }, length);
    parsed.parent = parent;
    parsed.details = details;
    parsed.snapshots = saved.into_iter().map(|saved| saved.snapshot).collect();
    Ok(parsed)
}

impl Layer for Qcow2 {
    fn locate(&self, range: Range<u64>) -> Result<Run> {
        self.map.locate(range)
    }

    fn sources(&self) -> &[Arc<dyn Source>] {
        &self.map.sources
    }

    fn cut(&self) -> Result<Option<Cut>> {
        let source = &*self.map.sources[0];
        // The last cluster may be there in part only.
        Ok(Cut::before(source, self.counts.last(source)?, SECTOR_SIZE))
    }

    fn writer(&self) -> Option<&dyn LayerWriter> {
        self.writer.as_ref().map(|_| self as &dyn LayerWriter)
    }

    fn block_size(&self) -> u64 {
        self.map.cluster_size()
    }
}

impl Qcow2 {
    fn writer(&self) -> Result<&Writer> {
        self.writer.as_ref().ok_or(Error::ReadOnly)
    }
}

impl LayerWriter for Qcow2 {
    fn write(&self, disk: &Image, buffer: &[u8], offset: u64) -> Result<()> {
        self.writer()?.write(&self.map, disk, buffer, offset)
    }

    fn write_zeroes(&self, disk: &Image, range: Range<u64>, unmap: bool) -> Result<()> {
        self.writer()?.write_zeroes(&self.map, disk, range, unmap)
    }

    fn discard(&self, disk: &Image, range: Range<u64>) -> Result<()> {
        self.writer()?.discard(&self.map, disk, range)
    }

    fn flush(&self) -> Result<()> {
        self.writer()?.flush(&self.map)
    }

    fn close(&self) {
        if let Some(writer) = &self.writer {
            writer.close(&self.map);
        }
    }
}

fn parent_link(checked: &Checked) -> Result<Option<ParentLink>> {
    let Some(name) = &checked.backing_file else { return Ok(None) };
    if is_protocol(name) {
        return Err(unsupported(format!("its backing is {name}, which is no file")));
    }
    let format = match checked.backing_format.as_deref() {
        None => None,
        Some("file" | "host_device") => Some(Format::Raw),
        Some(format) => Some(format.parse().map_err(|_| {
            unsupported(format!("its backing file's format is {format}, which is not known"))
        })?),
    };
    Ok(Some(ParentLink { names: vec![name.clone()], format, identity: None }))
}

fn details(checked: &Checked) -> Vec<(&'static str, String)> {
    let header = &checked.header;
    let compression = if header.compression_type == 1 { "zstd" } else { "zlib" };
    let mut details = vec![
        ("version", header.version.get().to_string()),
        ("compression", compression.to_owned()),
        ("refcount-bits", (1_u32 << header.refcount_order.get()).to_string()),
    ];
    let flags = [
        ("dirty", incompatible::DIRTY),
        ("corrupt", incompatible::CORRUPT),
        ("extended-l2", incompatible::EXTENDED_L2),
    ];
    details.extend(
        flags
            .into_iter()
            .filter(|(_, bit)| checked.has(*bit))
            .map(|(name, _)| (name, "yes".to_owned())),
    );
    details.extend(checked.data_file.clone().map(|name| ("data-file", name)));
    details.extend(checked.backing_file.clone().map(|name| ("backing-file", name)));
    details
}
