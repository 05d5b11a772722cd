//! What an image says of its parent.

use std::path::Path;

use zerocopy::IntoBytes;

use super::create::qemu_name;
use super::header::{Checked, EXTENSION_BACKING_FORMAT, V2_LENGTH, unsupported};
use crate::create::writable;
use crate::source::{FileSource, Source, read_vec};
use crate::{Format, Result};

/// Makes an image name another parent, or none.
pub(crate) fn set_backing(path: &Path, backing: Option<&(String, Format)>) -> Result<()> {
    let source = FileSource::open(path, false)?;
    let checked = Checked::read(&source)?;
    let length = u64::from(checked.header.header_length.get());
    // At most a cluster, as whatever follows it was within one.
    let mut bytes = read_vec(&source, 0, length as usize)?;
    let mut extend = |kind: u32, content: &[u8]| {
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&(content.len() as u32).to_be_bytes());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    };
    if let Some((_, format)) = backing {
        extend(EXTENSION_BACKING_FORMAT, qemu_name(*format).as_bytes());
    }
    for (kind, offset, length) in checked.extensions(&source)? {
        if kind != EXTENSION_BACKING_FORMAT {
            extend(kind, &read_vec(&source, offset, length as usize)?);
        }
    }
    bytes.extend_from_slice(&[0; 8]);
    let mut header = checked.header;
    let name = backing.map_or("", |(name, _)| name);
    header.backing_file_offset = if name.is_empty() { 0 } else { bytes.len() as u64 }.into();
    header.backing_file_size = (name.len() as u32).into();
    bytes.extend_from_slice(name.as_bytes());
    // Only the fields of version 2 are ours to write here.
    bytes[..V2_LENGTH as usize].copy_from_slice(&header.as_bytes()[..V2_LENGTH as usize]);
    let size = checked.cluster_size();
    if name.len() > 1023 || bytes.len() as u64 > size {
        return Err(unsupported("the name of its parent would be too long"));
    }
    // What an older, longer name left behind is overwritten.
    bytes.resize(source.len().min(size).max(bytes.len() as u64) as usize, 0);
    let target = writable(&source)?;
    target.write_at(&bytes, 0)?;
    target.flush()
}
