//! QEMU's format qcow2, versions 2 and 3.

mod header;
mod map;
mod snapshot;

use std::ops::Range;
use std::sync::Arc;

use header::{Checked, incompatible, unsupported};
use map::Map;

use crate::layer::{Layer, Run};
use crate::open::{Neighbours, ParentLink, Parsed, is_protocol};
use crate::source::Source;
use crate::{Format, Result};

struct Qcow2 {
    map: Map,
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
    let mut parsed = Parsed::new(Qcow2 { map }, length);
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

    fn block_size(&self) -> u64 {
        self.map.cluster_size()
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

/// Feeds bytes to the reader, for fuzzing.
pub fn fuzz_qcow2(bytes: &[u8]) {
    crate::fuzz::read_all(Format::Qcow2, bytes);
}
