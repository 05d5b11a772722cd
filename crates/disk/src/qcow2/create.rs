//! New images.

use std::path::Path;

use zerocopy::IntoBytes;

use super::header::{
    EXTENSION_BACKING_FORMAT, EXTENSION_EXTERNAL_DATA, Header, MAGIC, incompatible, unsupported,
};
use crate::source::{FileSource, WritableSource};
use crate::{Compression, CreateOptions, Format, MAX_LENGTH, Result};

/// Counts of 16 bits.
const REFCOUNT_ORDER: u32 = 4;

/// What a new qcow2 image is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qcow2Options {
    /// Length of its disk in bytes.
    pub length: u64,
    /// Bytes of a cluster as a power of two, 9 to 21.
    pub cluster_bits: u32,
    /// What the image says of its parent: a path, and its format.
    pub backing: Option<(String, Format)>,
    /// How clusters are compressed, if any are.
    pub compression: Compression,
    /// Name of the file beside the image that has the guest's bytes.
    pub data_file: Option<String>,
    /// Clusters are divided into 32 parts that are kept one by one.
    pub extended_l2: bool,
}

impl Qcow2Options {
    /// Clusters of 64 KiB, no parent.
    pub fn new(length: u64) -> Self {
        Self {
            length,
            cluster_bits: 16,
            backing: None,
            compression: Compression::Zlib,
            data_file: None,
            extended_l2: false,
        }
    }

    /// What all formats' options say of a qcow2 image.
    pub(super) fn from_create(options: &CreateOptions) -> Result<Self> {
        let least = if options.extended_l2 { 1 << 14 } else { 1 << 9 };
        Ok(Self {
            cluster_bits: options.block_size(1 << 16, least..=1 << 21)?.trailing_zeros(),
            backing: options.backing.clone(),
            compression: options.compression.unwrap_or_default(),
            data_file: options.data_file.clone(),
            extended_l2: options.extended_l2,
            ..Self::new(options.length)
        })
    }
}

/// Makes a new, empty qcow2 image (version 3); refuses to replace a file.
pub fn create_qcow2(path: impl AsRef<Path>, options: &Qcow2Options) -> Result<()> {
    let source = FileSource::create(path)?;
    write_empty(&source, options)?;
    source.flush()
}

/// Writes an empty image into an empty source.
pub(crate) fn write_empty(target: &dyn WritableSource, options: &Qcow2Options) -> Result<()> {
    let bits = options.cluster_bits;
    if !(9..=21).contains(&bits) || options.length > MAX_LENGTH {
        return Err(unsupported("its clusters or its disk would have a wrong size"));
    }
    let size = 1_u64 << bits;
    let entry_size = if options.extended_l2 { 16 } else { 8 };
    let l1_size = options.length.div_ceil(size * (size / entry_size));
    if l1_size * 8 > 32 << 20 {
        return Err(unsupported("its disk would be too long for clusters of this size"));
    }
    // Clusters: header, table of counts, blocks of counts, table of the first level. The table of
    // counts has room for a full disk, its tables and as much again.
    let per_block = (size * 8) >> REFCOUNT_ORDER;
    let full = options.length.div_ceil(size) * 2 + l1_size * 2 + 16;
    let table_clusters = (full.div_ceil(per_block) * 8).div_ceil(size).min((8 << 20) / size);
    let l1_clusters = (l1_size * 8).div_ceil(size);
    let mut blocks = 1;
    while (1 + table_clusters + blocks + l1_clusters).div_ceil(per_block) > blocks {
        blocks += 1;
    }
    let table = size;
    let first_block = table + table_clusters * size;
    let l1_table = first_block + blocks * size;
    let used = 1 + table_clusters + blocks + l1_clusters;

    let mut header = Header {
        magic: MAGIC.into(),
        version: 3.into(),
        cluster_bits: bits.into(),
        size: options.length.into(),
        // Both are bounded above.
        l1_size: (l1_size as u32).into(),
        l1_table_offset: l1_table.into(),
        refcount_table_offset: table.into(),
        refcount_table_clusters: (table_clusters as u32).into(),
        refcount_order: REFCOUNT_ORDER.into(),
        header_length: (size_of::<Header>() as u32).into(),
        ..Header::default()
    };
    if options.compression == Compression::Zstd {
        header.incompatible_features = incompatible::COMPRESSION_TYPE.into();
        header.compression_type = 1;
    }
    let mut extensions = Vec::new();
    let mut extend = |kind: u32, content: &[u8]| {
        extensions.extend_from_slice(&kind.to_be_bytes());
        extensions.extend_from_slice(&(content.len() as u32).to_be_bytes());
        extensions.extend_from_slice(content);
        extensions.resize(extensions.len().next_multiple_of(8), 0);
    };
    if options.extended_l2 {
        header.incompatible_features =
            (header.incompatible_features.get() | incompatible::EXTENDED_L2).into();
    }
    if let Some(name) = &options.data_file {
        header.incompatible_features =
            (header.incompatible_features.get() | incompatible::EXTERNAL_DATA).into();
        extend(EXTENSION_EXTERNAL_DATA, name.as_bytes());
    }
    if let Some((_, format)) = &options.backing {
        extend(EXTENSION_BACKING_FORMAT, qemu_name(*format).as_bytes());
    }
    if options.data_file.is_some() || options.backing.is_some() {
        extensions.extend_from_slice(&[0; 8]);
    }
    if let Some((name, _)) = &options.backing {
        header.backing_file_offset = ((size_of::<Header>() + extensions.len()) as u64).into();
        header.backing_file_size = (name.len() as u32).into();
        extensions.extend_from_slice(name.as_bytes());
    }
    let has_long_name = options.backing.as_ref().is_some_and(|(name, _)| name.len() > 1023);
    if has_long_name || size_of::<Header>() + extensions.len() > size as usize {
        return Err(unsupported("the name of its parent or data file would be too long"));
    }

    let mut counts = vec![0; (blocks * size) as usize];
    for count in counts.chunks_exact_mut(2).take(used as usize) {
        count.copy_from_slice(&1_u16.to_be_bytes());
    }
    let entries: Vec<u8> =
        (0..blocks).flat_map(|block| (first_block + block * size).to_be_bytes()).collect();
    target.set_len(used * size)?;
    target.write_at(&counts, first_block)?;
    target.write_at(&entries, table)?;
    // Last: what is cut off before this is no image.
    target.write_at(&[header.as_bytes(), &extensions].concat(), 0)
}

/// By which QEMU knows a format.
pub(super) fn qemu_name(format: Format) -> &'static str {
    match format {
        Format::Vhd => "vpc",
        other => other.name(),
    }
}
