//! New disks of VMware's formats.

mod sparse;
mod stream;

use std::ops::Range;
use std::sync::Arc;

use sparse::SparsePart;
use stream::Stream;

use super::{NO_PARENT, unsupported};
use crate::create::{Builder, Files, Placed, writable};
use crate::open::hyphenated;
use crate::source::{FileSource, Source};
use crate::{CreateOptions, Error, Layout, Preallocation, Result, SECTOR_SIZE, raw, sys};

/// Bytes of a part of a split disk: 2 GiB less what VMware leaves for its tables.
pub(super) const SPLIT_BYTES: u64 = 2047 << 20;
/// Sectors that are kept for an embedded descriptor, behind the header.
const DESCRIPTOR_SECTORS: u64 = 20;
/// Usual bytes of a grain.
const GRAIN: u64 = 64 << 10;

/// Begins a new disk.
pub(crate) fn build(files: &Files, options: &CreateOptions) -> Result<Box<dyn Builder>> {
    if options.length == 0 {
        return Err(unsupported("its disk would be empty"));
    }
    let grain = match options.layout {
        Layout::Fixed | Layout::SplitFixed => 4096,
        // Some readers know no other.
        Layout::Stream => options.block_size(GRAIN, GRAIN..=GRAIN)?,
        Layout::Sparse | Layout::SplitSparse => options.block_size(GRAIN, 4096..=1 << 20)?,
    };
    if options.layout == Layout::Stream {
        let name = files.name()?;
        let extents = [(options.length, name)];
        let descriptor = descriptor(options, "streamOptimized", "SPARSE", &extents);
        return Ok(Box::new(Stream::new(Arc::new(files.main()?), options.length, &descriptor)?));
    }
    let mut vmdk = Vmdk { sources: Vec::new(), parts: Vec::new(), grain };
    if options.layout == Layout::Sparse {
        let extents = [(options.length, files.name()?)];
        let descriptor = descriptor(options, "monolithicSparse", "SPARSE", &extents);
        vmdk.push_sparse(files.main()?, options.length, &descriptor)?;
        return Ok(Box::new(vmdk));
    }
    let is_flat = options.layout != Layout::SplitSparse;
    let main = files.main()?;
    let names = names(files, options)?;
    let mut extents = Vec::new();
    let mut rest = options.length;
    for name in names {
        let most = if options.layout == Layout::Fixed { rest } else { SPLIT_BYTES };
        let length = rest.min(most);
        rest -= length;
        let source = files.beside(&name)?;
        if is_flat {
            raw::prepare(&source, length, Preallocation::Off, Layout::Fixed)?;
            vmdk.push(source, length, None);
        } else {
            vmdk.push_sparse(source, length, "")?;
        }
        extents.push((length, name));
    }
    let (kind, extent_kind) = match options.layout {
        Layout::Fixed => ("monolithicFlat", "FLAT"),
        Layout::SplitFixed => ("twoGbMaxExtentFlat", "FLAT"),
        _ => ("twoGbMaxExtentSparse", "SPARSE"),
    };
    let text = descriptor(options, kind, extent_kind, &extents);
    writable(&main)?.write_at(text.as_bytes(), 0)?;
    vmdk.sources.push(Arc::new(main));
    Ok(Box::new(vmdk))
}

/// The names of the files beside the descriptor.
pub(crate) fn names(files: &Files, options: &CreateOptions) -> Result<Vec<String>> {
    let letter = match options.layout {
        Layout::Sparse | Layout::Stream => return Ok(Vec::new()),
        Layout::Fixed => return Ok(vec![format!("{}-flat.vmdk", files.stem()?)]),
        Layout::SplitSparse => 's',
        Layout::SplitFixed => 'f',
    };
    let count = options.length.div_ceil(SPLIT_BYTES);
    if count > super::MAX_EXTENTS as u64 {
        return Err(unsupported("its disk would have too many parts"));
    }
    let stem = files.stem()?;
    Ok((1..=count).map(|number| format!("{stem}-{letter}{number:03}.vmdk")).collect())
}

fn descriptor(
    options: &CreateOptions,
    kind: &str,
    extent_kind: &str,
    extents: &[(u64, String)],
) -> String {
    let mut lines = String::new();
    for (length, name) in extents {
        let sectors = length / SECTOR_SIZE;
        lines.push_str(&format!("RW {sectors} {extent_kind} \"{name}\""));
        lines.push_str(if extent_kind == "FLAT" { " 0\n" } else { "\n" });
    }
    // Any number but those with a meaning.
    let content_id = u32::from_ne_bytes(sys::random()) % (NO_PARENT - 1);
    let cylinders = (options.length / SECTOR_SIZE / (255 * 63)).clamp(1, 65535);
    // By these VirtualBox knows a disk again; those of its parent are zeroes.
    let (image, state, none) = (sys::uuid(), sys::uuid(), [0; 16]);
    let uuids =
        [("image", image), ("modification", state), ("parent", none), ("parentmodification", none)];
    let uuids = uuids.map(|(of, uuid)| format!("ddb.uuid.{of}=\"{}\"\n", hyphenated(&uuid)));
    let uuids = uuids.concat();
    format!(
        "# Disk DescriptorFile\nversion=1\nCID={content_id:08x}\nparentCID={NO_PARENT:08x}\n\
         createType=\"{kind}\"\n\n# Extent description\n{lines}\n# The Disk Data Base\n#DDB\n\n\
         ddb.virtualHWVersion = \"4\"\nddb.geometry.cylinders = \"{cylinders}\"\n\
         ddb.geometry.heads = \"255\"\nddb.geometry.sectors = \"63\"\nddb.adapterType = \"lsilogic\"\n\
         {uuids}"
    )
}

/// A disk of flat or sparse parts.
struct Vmdk {
    sources: Vec<Arc<dyn Source>>,
    /// In the guest's order, each with the source of the same number.
    parts: Vec<(Range<u64>, Option<SparsePart>)>,
    grain: u64,
}

impl Vmdk {
    fn push(&mut self, source: FileSource, length: u64, part: Option<SparsePart>) {
        let start = self.parts.last().map_or(0, |(range, _)| range.end);
        self.sources.push(Arc::new(source));
        self.parts.push((start..start + length, part));
    }

    fn push_sparse(&mut self, source: FileSource, length: u64, descriptor: &str) -> Result<()> {
        let start = self.parts.last().map_or(0, |(range, _)| range.end);
        let source: Arc<dyn Source> = Arc::new(source);
        let part = SparsePart::new(source.clone(), length, self.grain, descriptor)?;
        self.sources.push(source);
        self.parts.push((start..start + length, Some(part)));
        Ok(())
    }
}

impl Builder for Vmdk {
    fn block_size(&self) -> u64 {
        self.grain
    }

    fn sources(&self) -> &[Arc<dyn Source>] {
        &self.sources
    }

    fn place(&mut self, range: Range<u64>) -> Result<Placed> {
        let source = self.parts.partition_point(|(part, _)| part.end <= range.start);
        let Some((part, sparse)) = self.parts.get_mut(source) else {
            return Err(Error::OutOfRange { range: range.clone(), length: 0 });
        };
        let length = range.end.min(part.end) - range.start;
        let within = range.start - part.start;
        let offset = match sparse {
            None => within,
            Some(sparse) => sparse.place(within, length)?,
        };
        Ok(Placed { source, offset, length })
    }

    fn finish(&mut self) -> Result<()> {
        for (_, part) in &mut self.parts {
            if let Some(sparse) = part {
                sparse.finish()?;
            }
        }
        self.sources.iter().try_for_each(|source| writable(&**source)?.flush())
    }
}
