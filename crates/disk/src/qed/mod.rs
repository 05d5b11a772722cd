//! QEMU's enhanced disk (QEMU, docs/interop/qed_spec.rst).

use std::ops::Range;
use std::sync::Arc;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::cache::Tables;
use crate::layer::{self, Layer, Place, Run};
use crate::open::{ParentLink, Parsed, is_protocol};
use crate::source::{Source, read_struct, read_vec};
use crate::{Error, Format, Result};

const FEATURE_BACKING_FILE: u64 = 1;
const FEATURE_NEED_CHECK: u64 = 2;
const FEATURE_BACKING_RAW: u64 = 4;
const FEATURES: u64 = FEATURE_BACKING_FILE | FEATURE_NEED_CHECK | FEATURE_BACKING_RAW;

/// Entry of the second level: the cluster reads as zeroes.
const ZERO: u64 = 1;

#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: U32,
    cluster_size: U32,
    table_size: U32,
    header_size: U32,
    features: U64,
    compat_features: U64,
    autoclear_features: U64,
    l1_table_offset: U64,
    image_size: U64,
    backing_filename_offset: U32,
    backing_filename_size: U32,
}

const _: () = assert!(size_of::<Header>() == 64);

struct Qed {
    tables: Tables,
    sources: [Arc<dyn Source>; 1],
    l1_offset: u64,
    cluster_size: u64,
    /// Entries in a table.
    entries: u64,
}

pub(crate) fn parse(source: Arc<dyn Source>) -> Result<Parsed> {
    let header: Header = read_struct(&*source, 0)?;
    if header.magic.get() != u32::from_le_bytes(*b"QED\0") {
        return Err(damaged("it does not begin with QED"));
    }
    let features = header.features.get();
    if features & !FEATURES != 0 {
        let what = format!("it needs features {:#x}, which are not known", features & !FEATURES);
        return Err(Error::Unsupported { format: Format::Qed, what });
    }
    let (cluster, table) = (header.cluster_size.get(), header.table_size.get());
    if !cluster.is_power_of_two() || !(1 << 12..=1 << 26).contains(&cluster) {
        return Err(damaged(format!("its clusters cannot have {cluster} bytes")));
    }
    if !table.is_power_of_two() || table > 16 {
        return Err(damaged(format!("its tables cannot have {table} clusters")));
    }
    let parent = if features & FEATURE_BACKING_FILE != 0 {
        let length = header.backing_filename_size.get();
        if length == 0 || length > 1023 {
            return Err(damaged("the name of its backing file has a wrong length"));
        }
        let name =
            read_vec(&*source, header.backing_filename_offset.get().into(), length as usize)?;
        let name = String::from_utf8_lossy(&name).into_owned();
        if is_protocol(&name) {
            let what = format!("its backing is {name}, which is no file");
            return Err(Error::Unsupported { format: Format::Qed, what });
        }
        let format = (features & FEATURE_BACKING_RAW != 0).then_some(Format::Raw);
        Some(ParentLink { names: vec![name], format, identity: None })
    } else {
        None
    };
    if header.l1_table_offset.get() >= source.len() {
        return Err(damaged("its table of the first level passes the end of the file"));
    }
    let cluster_size = u64::from(cluster);
    let layer = Qed {
        tables: Tables::new(source.clone()),
        sources: [source],
        l1_offset: header.l1_table_offset.get(),
        cluster_size,
        entries: cluster_size * u64::from(table) / 8,
    };
    let reach = u128::from(layer.entries).pow(2) * u128::from(cluster_size);
    if u128::from(header.image_size.get()) > reach {
        return Err(damaged("its disk is longer than its tables reach"));
    }
    let mut parsed = Parsed::new(layer, header.image_size.get());
    parsed.parent = parent;
    if features & FEATURE_NEED_CHECK != 0 {
        parsed.details.push(("dirty", "yes".to_owned()));
    }
    Ok(parsed)
}

impl Qed {
    fn step(&self, offset: u64) -> Result<Run> {
        // At most 2^26 times 2^27.
        let covered = self.cluster_size * self.entries;
        let table = self.tables.le64(self.l1_offset, offset / covered)?;
        if table == 0 {
            return Ok(Run { end: (offset / covered + 1) * covered, place: Place::Absent });
        }
        let start = offset & !(self.cluster_size - 1);
        let entry = self.tables.le64(table, offset % covered / self.cluster_size)?;
        let place = match entry {
            0 => Place::Absent,
            ZERO => Place::Zero,
            cluster if cluster.is_multiple_of(self.cluster_size) => {
                Place::Stored { source: 0, offset: cluster + (offset - start) }
            }
            other => return Err(damaged(format!("the cluster of {start} cannot lie at {other}"))),
        };
        Ok(Run { end: start + self.cluster_size, place })
    }
}

impl Layer for Qed {
    fn locate(&self, range: Range<u64>) -> Result<Run> {
        layer::join(range, |offset| self.step(offset))
    }

    fn sources(&self) -> &[Arc<dyn Source>] {
        &self.sources
    }

    fn block_size(&self) -> u64 {
        self.cluster_size
    }
}

fn damaged(what: impl Into<String>) -> Error {
    Error::Damaged { format: Format::Qed, what: what.into() }
}
