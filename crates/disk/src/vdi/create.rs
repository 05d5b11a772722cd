//! New disks.

use std::ops::Range;
use std::sync::Arc;

use zerocopy::IntoBytes;

use super::{FREE, Header, SIGNATURE, VERSION, unsupported};
use crate::cache::{Stage, Tables};
use crate::create::{Builder, Files, Placed, writable};
use crate::source::Source;
use crate::{CreateOptions, Layout, Preallocation, Result, SECTOR_SIZE, raw, sys};

/// What its map and its data are aligned to.
const ALIGNMENT: u64 = 1 << 20;
/// Most blocks, so that the map takes at most 16 MiB.
pub(super) const MAX_BLOCKS: u64 = 4 << 20;
/// Bytes of the header from its own length on, with the second geometry that follows our structure.
const HEADER_SIZE: u32 = 400;
/// Tables that are changed but not written take at most this many pages.
const MAX_CHANGED: usize = 64;

/// A new disk.
pub(crate) struct NewImage {
    sources: [Arc<dyn Source>; 1],
    map: Tables,
    data_offset: u64,
    block_size: u64,
    allocated: u64,
    is_fixed: bool,
}

impl NewImage {
    pub fn new(files: &Files, options: &CreateOptions) -> Result<Self> {
        let block_size = options.block_size(1 << 20, 1 << 20..=256 << 20)?;
        let blocks = options.length.div_ceil(block_size);
        if blocks > MAX_BLOCKS {
            return Err(unsupported("its disk would need larger blocks"));
        }
        let is_fixed = options.layout == Layout::Fixed;
        let data_offset = (ALIGNMENT + blocks * 4).next_multiple_of(ALIGNMENT);
        let allocated = if is_fixed { blocks } else { 0 };
        let mut text = [0; 64];
        let product = b"<<< Oracle VM VirtualBox Disk Image >>>\n";
        text[..product.len()].copy_from_slice(product);
        // Cylinders, heads, sectors, bytes of a sector: nobody needs the first three.
        let mut geometry = [0; 16];
        geometry[12..].copy_from_slice(&(SECTOR_SIZE as u32).to_le_bytes());
        // All of these numbers are bounded above.
        let header = Header {
            text,
            signature: SIGNATURE.into(),
            version: VERSION.into(),
            header_size: HEADER_SIZE.into(),
            image_type: if is_fixed { 2 } else { 1 }.into(),
            flags: 0.into(),
            comment: [0; 256],
            blocks_offset: (ALIGNMENT as u32).into(),
            data_offset: (data_offset as u32).into(),
            legacy_geometry: geometry,
            dummy: 0.into(),
            disk_size: options.length.into(),
            block_size: (block_size as u32).into(),
            block_extra: 0.into(),
            blocks: (blocks as u32).into(),
            blocks_allocated: (allocated as u32).into(),
            uuid_create: sys::uuid(),
            uuid_modify: sys::uuid(),
            uuid_linkage: [0; 16],
            uuid_parent_modify: [0; 16],
        };
        let entry = |block: u64| if is_fixed { block as u32 } else { FREE };
        let map: Vec<u8> = (0..blocks).flat_map(|block| entry(block).to_le_bytes()).collect();
        let source = files.main()?;
        if is_fixed {
            let length = data_offset + blocks * block_size;
            raw::prepare(&source, length, Preallocation::Off, Layout::Fixed)?;
        }
        let target = writable(&source)?;
        target.set_len(data_offset + allocated * block_size)?;
        target.write_at(&map, ALIGNMENT)?;
        target.write_at(&[header.as_bytes(), &geometry].concat(), 0)?;
        let source: Arc<dyn Source> = Arc::new(source);
        let map = Tables::new(source.clone());
        Ok(Self { sources: [source], map, data_offset, block_size, allocated, is_fixed })
    }
}

impl Builder for NewImage {
    fn block_size(&self) -> u64 {
        self.block_size
    }

    fn sources(&self) -> &[Arc<dyn Source>] {
        &self.sources
    }

    fn place(&mut self, range: Range<u64>) -> Result<Placed> {
        let length = range.end - range.start;
        let first = range.start / self.block_size;
        if self.is_fixed {
            return Ok(Placed { source: 0, offset: self.data_offset + range.start, length });
        }
        let block = self.allocated;
        for number in 0..length.div_ceil(self.block_size) {
            // There are not more blocks than fit.
            let entry = ((block + number) as u32).to_le_bytes();
            self.map.change(ALIGNMENT + (first + number) * 4, &entry, Stage::Second)?;
            self.allocated += 1;
        }
        if self.map.changes() > MAX_CHANGED {
            self.map.write_back(Stage::Second)?;
        }
        Ok(Placed { source: 0, offset: self.data_offset + block * self.block_size, length })
    }

    fn finish(&mut self) -> Result<()> {
        self.map.write_back(Stage::Second)?;
        let target = writable(&*self.sources[0])?;
        target.set_len(self.data_offset + self.allocated * self.block_size)?;
        let field = std::mem::offset_of!(Header, blocks_allocated) as u64;
        target.write_at(&(self.allocated as u32).to_le_bytes(), field)?;
        target.flush()
    }
}
