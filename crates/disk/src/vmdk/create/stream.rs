use std::ops::Range;
use std::sync::Arc;

use zerocopy::IntoBytes;

use super::sparse::{ENTRIES, TABLE};
use super::{DESCRIPTOR_SECTORS, GRAIN};
use crate::codec::Codec;
use crate::create::{Builder, Placed, writable};
use crate::source::Source;
use crate::vmdk::sparse::{
    DIRECTORY_AT_END, FLAG_COMPRESSED, FLAG_MARKERS, FLAG_NEW_LINES, GrainMarker,
    SparseExtentHeader,
};
use crate::vmdk::unsupported;
use crate::{Result, SECTOR_SIZE};

/// Types of markers that precede structures.
const GRAIN_TABLE: u32 = 1;
const GRAIN_DIRECTORY: u32 = 2;
const FOOTER: u32 = 3;

/// A streamOptimized disk: compressed grains, each grain table behind its grains, and what leads to
/// them at the end.
pub(super) struct Stream {
    sources: [Arc<dyn Source>; 1],
    header: SparseExtentHeader,
    directory: Vec<u32>,
    table: Vec<u32>,
    /// Number of the grain table that is being filled.
    current: usize,
    next: u64,
}

impl Stream {
    pub fn new(source: Arc<dyn Source>, length: u64, descriptor: &str) -> Result<Self> {
        let count = length.div_ceil(GRAIN * ENTRIES);
        if count > 1 << 20 {
            return Err(unsupported("its disk would be too long"));
        }
        let header = SparseExtentHeader {
            flags: (FLAG_NEW_LINES | FLAG_COMPRESSED | FLAG_MARKERS).into(),
            descriptor_offset: 1.into(),
            descriptor_size: DESCRIPTOR_SECTORS.into(),
            gd_offset: DIRECTORY_AT_END.into(),
            over_head: (GRAIN / SECTOR_SIZE).into(),
            compress_algorithm: 1.into(),
            ..SparseExtentHeader::new(3, length, GRAIN)
        };
        let target = writable(&*source)?;
        target.write_at(header.as_bytes(), 0)?;
        target.write_at(descriptor.as_bytes(), SECTOR_SIZE)?;
        Ok(Self {
            sources: [source],
            header,
            directory: vec![0; count as usize],
            table: vec![0; ENTRIES as usize],
            current: 0,
            next: GRAIN,
        })
    }

    /// Writes whole sectors at the end; returns the first one's number.
    fn append(&mut self, parts: &[&[u8]]) -> Result<u32> {
        let mut bytes = parts.concat();
        bytes.resize(bytes.len().next_multiple_of(SECTOR_SIZE as usize), 0);
        let sector = u32::try_from(self.next / SECTOR_SIZE)
            .map_err(|_| unsupported("its file would be longer than 2 TiB"))?;
        writable(&*self.sources[0])?.write_at(&bytes, self.next)?;
        self.next += bytes.len() as u64;
        Ok(sector)
    }

    /// Writes a structure behind its marker; returns its sector.
    fn append_marked(&mut self, kind: u32, content: &[u8]) -> Result<u32> {
        let mut marker = [0; SECTOR_SIZE as usize];
        let sectors = (content.len() as u64).div_ceil(SECTOR_SIZE);
        marker[..8].copy_from_slice(&sectors.to_le_bytes());
        marker[12..16].copy_from_slice(&kind.to_le_bytes());
        Ok(self.append(&[&marker, content])? + 1)
    }

    fn finish_table(&mut self) -> Result<()> {
        if self.table.iter().all(|&entry| entry == 0) {
            return Ok(());
        }
        let bytes: Vec<u8> = self.table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        debug_assert_eq!(bytes.len() as u64, TABLE);
        self.directory[self.current] = self.append_marked(GRAIN_TABLE, &bytes)?;
        self.table.fill(0);
        Ok(())
    }
}

impl Builder for Stream {
    fn block_size(&self) -> u64 {
        GRAIN
    }

    fn sources(&self) -> &[Arc<dyn Source>] {
        &self.sources
    }

    fn codec(&self) -> Option<Codec> {
        Some(Codec::Zlib)
    }

    fn place(&mut self, _range: Range<u64>) -> Result<Placed> {
        Err(unsupported("all grains of a streamOptimized disk are compressed"))
    }

    fn write_packed(&mut self, start: u64, stream: &[u8]) -> Result<()> {
        let grain = start / GRAIN;
        let table = (grain / ENTRIES) as usize;
        if table != self.current {
            self.finish_table()?;
            self.current = table;
        }
        let marker = GrainMarker {
            lba: (start / SECTOR_SIZE).into(),
            // A compressed grain is not much longer than a grain.
            size: (stream.len() as u32).into(),
        };
        let sector = self.append(&[marker.as_bytes(), stream])?;
        self.table[(grain % ENTRIES) as usize] = sector;
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.finish_table()?;
        let bytes: Vec<u8> = self.directory.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        let directory = self.append_marked(GRAIN_DIRECTORY, &bytes)?;
        let footer = SparseExtentHeader { gd_offset: u64::from(directory).into(), ..self.header };
        self.append_marked(FOOTER, footer.as_bytes())?;
        // The marker of the end is zeroes.
        self.append(&[&[0; SECTOR_SIZE as usize]])?;
        writable(&*self.sources[0])?.flush()
    }
}
