//! The header and what follows it (QEMU, docs/interop/qcow2.rst).

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::source::{Source, read_struct, read_vec};
use crate::{Error, Format, Result};

pub(super) const MAGIC: u32 = 0x5146_49fb;

/// Incompatible features.
pub(super) mod incompatible {
    pub const DIRTY: u64 = 1;
    pub const CORRUPT: u64 = 1 << 1;
    pub const EXTERNAL_DATA: u64 = 1 << 2;
    pub const COMPRESSION_TYPE: u64 = 1 << 3;
    pub const EXTENDED_L2: u64 = 1 << 4;
    pub const KNOWN: u64 = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2;
}

/// Types of header extensions.
pub(super) const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
pub(super) const EXTENSION_EXTERNAL_DATA: u32 = 0x4441_5441;

/// Bytes of the header of version 2.
pub(super) const V2_LENGTH: u32 = 72;
/// Least bytes of the header of version 3.
pub(super) const V3_LENGTH: u32 = 104;

/// Longest table of the first level that QEMU accepts too.
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_NAME: u32 = 1023;

/// The header; in version 2 it ends before `incompatible_features`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub magic: U32,
    pub version: U32,
    pub backing_file_offset: U64,
    pub backing_file_size: U32,
    pub cluster_bits: U32,
    pub size: U64,
    pub crypt_method: U32,
    pub l1_size: U32,
    pub l1_table_offset: U64,
    pub refcount_table_offset: U64,
    pub refcount_table_clusters: U32,
    pub nb_snapshots: U32,
    pub snapshots_offset: U64,
    pub incompatible_features: U64,
    pub compatible_features: U64,
    pub autoclear_features: U64,
    pub refcount_order: U32,
    pub header_length: U32,
    pub compression_type: u8,
    pub padding: [u8; 7],
}

const _: () = assert!(size_of::<Header>() == 112);

/// A header whose numbers are within bounds, and its extensions.
#[derive(Clone, Debug)]
pub(super) struct Checked {
    pub header: Header,
    pub backing_file: Option<String>,
    pub backing_format: Option<String>,
    pub data_file: Option<String>,
}

impl Checked {
    pub fn read(source: &dyn Source) -> Result<Self> {
        let mut header = read_header(source)?;
        let (magic, version) = (header.magic.get(), header.version.get());
        if magic != MAGIC {
            return Err(damaged("it does not begin with QFI"));
        }
        match version {
            2 => {
                header.incompatible_features = 0.into();
                header.compatible_features = 0.into();
                header.autoclear_features = 0.into();
                header.refcount_order = 4.into();
                header.header_length = V2_LENGTH.into();
                header.compression_type = 0;
            }
            3 => {
                let length = header.header_length.get();
                if length < V3_LENGTH || !length.is_multiple_of(8) {
                    return Err(damaged(format!("its header cannot be {length} bytes long")));
                }
                if length <= V3_LENGTH {
                    header.compression_type = 0;
                }
            }
            other => return Err(unsupported(format!("its version is {other}"))),
        }
        check(&header, source.len())?;
        let backing_file = match (header.backing_file_offset.get(), header.backing_file_size.get())
        {
            (0, _) | (_, 0) => None,
            (offset, length) if length <= MAX_NAME => {
                Some(text(read_vec(source, offset, length as usize)?))
            }
            _ => return Err(damaged("the name of its backing file is too long")),
        };
        let mut checked = Self { header, backing_file, backing_format: None, data_file: None };
        checked.read_extensions(source)?;
        Ok(checked)
    }

    pub fn cluster_size(&self) -> u64 {
        1 << self.header.cluster_bits.get()
    }

    pub fn has(&self, feature: u64) -> bool {
        self.header.incompatible_features.get() & feature != 0
    }

    fn read_extensions(&mut self, source: &dyn Source) -> Result<()> {
        for (kind, offset, length) in self.extensions(source)? {
            if matches!(kind, EXTENSION_BACKING_FORMAT | EXTENSION_EXTERNAL_DATA)
                && length <= MAX_NAME
            {
                let value = text(read_vec(source, offset, length as usize)?);
                let field = match kind {
                    EXTENSION_BACKING_FORMAT => &mut self.backing_format,
                    _ => &mut self.data_file,
                };
                *field = Some(value);
            }
        }
        Ok(())
    }

    /// The header's extensions: what they are, where their content lies, and how long it is.
    pub fn extensions(&self, source: &dyn Source) -> Result<Vec<(u32, u64, u32)>> {
        let mut found = Vec::new();
        let mut offset = u64::from(self.header.header_length.get());
        let end = match self.header.backing_file_offset.get() {
            0 => self.cluster_size(),
            name => name.min(self.cluster_size()),
        };
        // Each takes at least eight bytes of the first cluster, so this ends.
        while offset + 8 <= end && offset + 8 <= source.len() {
            let [kind, length] = read_struct::<[U32; 2]>(source, offset)?;
            let (kind, length) = (kind.get(), length.get());
            offset += 8;
            if kind == 0 {
                break;
            }
            if u64::from(length) > end.saturating_sub(offset) {
                return Err(damaged("an extension of its header is too long"));
            }
            found.push((kind, offset, length));
            offset += u64::from(length).next_multiple_of(8);
        }
        Ok(found)
    }
}

/// The header, padded with zeroes where a file of version 2 ends before it does.
fn read_header(source: &dyn Source) -> Result<Header> {
    let mut bytes = [0; size_of::<Header>()];
    let count = source.len().min(bytes.len() as u64).max(V2_LENGTH.into()) as usize;
    source.read_at(&mut bytes[..count], 0)?;
    Ok(zerocopy::transmute!(bytes))
}

fn check(header: &Header, file_length: u64) -> Result<()> {
    match header.crypt_method.get() {
        0 => {}
        1 => return Err(unsupported("it is encrypted (AES)")),
        2 => return Err(unsupported("it is encrypted (LUKS)")),
        other => return Err(unsupported(format!("it is encrypted in way {other}"))),
    }
    let features = header.incompatible_features.get();
    if features & !incompatible::KNOWN != 0 {
        let bit = (features & !incompatible::KNOWN).trailing_zeros();
        return Err(unsupported(format!("it needs feature {bit}, which is not known")));
    }
    let extended = features & incompatible::EXTENDED_L2 != 0;
    let bits = header.cluster_bits.get();
    if !(9..=21).contains(&bits) || (extended && bits < 14) {
        return Err(damaged(format!("its clusters cannot have 2^{bits} bytes")));
    }
    if header.refcount_order.get() > 6 {
        return Err(damaged("its counts of references are wider than 64 bits"));
    }
    match (header.compression_type, features & incompatible::COMPRESSION_TYPE != 0) {
        (0, _) | (1, true) => {}
        (1, false) => return Err(damaged("its compression contradicts its features")),
        (other, _) => return Err(unsupported(format!("its compression is of type {other}"))),
    }
    let cluster = 1_u64 << bits;
    if u64::from(header.header_length.get()) > cluster {
        return Err(damaged("its header is longer than a cluster"));
    }
    let entry = if extended { 16 } else { 8 };
    let covered = cluster * (cluster / entry);
    // Guest offsets are added to and multiplied below.
    if header.size.get() > 1 << 62 {
        return Err(damaged("its disk is longer than any can be"));
    }
    let l1_bytes = u64::from(header.l1_size.get()) * 8;
    if l1_bytes > MAX_L1_BYTES
        || u64::from(header.l1_size.get()) < header.size.get().div_ceil(covered)
    {
        return Err(damaged("its table of the first level has the wrong length"));
    }
    check_table(header.l1_table_offset.get(), l1_bytes, cluster, file_length)?;
    let table_bytes = u64::from(header.refcount_table_clusters.get()) * cluster;
    if table_bytes > 8 << 20 {
        return Err(damaged("its table of counts is too long"));
    }
    check_table(header.refcount_table_offset.get(), table_bytes, cluster, file_length)
}

pub(super) fn check_table(offset: u64, length: u64, cluster: u64, file_length: u64) -> Result<()> {
    let fits = offset.checked_add(length).is_some_and(|end| end <= file_length);
    if length != 0 && (!offset.is_multiple_of(cluster) || !fits) {
        return Err(damaged(format!("a table of {length} bytes cannot lie at {offset}")));
    }
    Ok(())
}

pub(super) fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) fn damaged(what: impl Into<String>) -> Error {
    Error::Damaged { format: Format::Qcow2, what: what.into() }
}

pub(super) fn unsupported(what: impl Into<String>) -> Error {
    Error::Unsupported { format: Format::Qcow2, what: what.into() }
}
