//! Changes in place of sparse and flat disks.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::sparse::{Sparse, SparseExtentHeader, ZERO};
use super::{Extent, Kind, NO_PARENT, Vmdk, damaged};
use crate::blocks::{self, Begun, Blocks, NewPlace};
use crate::cache::Stage;
use crate::create::writable;
use crate::source::{Source, read_vec};
use crate::{Error, Result, SECTOR_SIZE, sys};

impl Vmdk {
    fn extent(&self, offset: u64) -> Result<&Extent> {
        let index = self.extents.partition_point(|extent| extent.range.end <= offset);
        self.extents.get(index).ok_or_else(|| damaged("its extents do not cover its disk"))
    }

    fn sparse(&self) -> impl Iterator<Item = (&Sparse, &dyn Source)> {
        self.extents.iter().filter_map(|extent| match &extent.kind {
            Kind::Sparse(sparse) => Some((sparse, &*self.sources[extent.source])),
            _ => None,
        })
    }

    /// Gives the content another number, by which children see that their parent was changed.
    fn renew_content_id(&self) -> Result<()> {
        let Some((source, range)) = &self.descriptor else { return Ok(()) };
        let bytes = read_vec(&**source, range.start, (range.end - range.start) as usize)?;
        let is_key = |at: usize| {
            let starts_line = at == 0 || bytes[at - 1] == b'\n';
            starts_line
                && bytes[at..].len() >= 12
                && bytes[at..at + 4].eq_ignore_ascii_case(b"CID=")
        };
        let Some(at) = (0..bytes.len()).find(|&at| is_key(at)) else { return Ok(()) };
        let value = &bytes[at + 4..at + 12];
        if !value.iter().all(u8::is_ascii_hexdigit) {
            // A shorter number has no room for another one.
            return Ok(());
        }
        let content_id = u32::from_ne_bytes(sys::random()) % (NO_PARENT - 1);
        let text = format!("{content_id:08x}");
        writable(&**source)?.write_at(text.as_bytes(), range.start + at as u64 + 4)
    }

    fn mark(&self, value: u8) -> Result<()> {
        let field = std::mem::offset_of!(SparseExtentHeader, unclean_shutdown) as u64;
        for (_, source) in self.sparse() {
            writable(source)?.write_at(&[value], field)?;
        }
        self.flush_all()
    }

    fn flush_all(&self) -> Result<()> {
        let writable = self.sources.iter().filter_map(|source| source.writable());
        writable.into_iter().try_for_each(|source| source.flush())
    }
}

impl Blocks for Vmdk {
    fn can_write(&self) -> bool {
        self.is_writable
            && self.extents.iter().all(|extent| {
                let can = match &extent.kind {
                    Kind::Flat { .. } => true,
                    Kind::Sparse(sparse) => sparse.can_write(),
                    Kind::Zero | Kind::SeSparse(_) => false,
                };
                can && self.sources[extent.source].writable().is_some()
            })
    }

    fn begun(&self) -> &Begun {
        &self.begun
    }

    fn begin(&self) -> Result<()> {
        self.renew_content_id()?;
        for (sparse, source) in self.sparse() {
            sparse.end.store(source.len().next_multiple_of(sparse.grain_size), Ordering::Relaxed);
        }
        self.mark(1)
    }

    fn block(&self, offset: u64) -> Result<Range<u64>> {
        let extent = self.extent(offset)?;
        let Kind::Sparse(sparse) = &extent.kind else { return Ok(extent.range.clone()) };
        let within = offset - extent.range.start;
        let start = extent.range.start + within / sparse.grain_size * sparse.grain_size;
        Ok(start..(start + sparse.grain_size).min(extent.range.end))
    }

    fn place(&self, block: &Range<u64>) -> Result<NewPlace> {
        let extent = self.extent(block.start)?;
        let Kind::Sparse(sparse) = &extent.kind else { return Err(Error::ReadOnly) };
        let offset = sparse.end.fetch_add(sparse.grain_size, Ordering::Relaxed);
        if u32::try_from(offset / SECTOR_SIZE).is_err() {
            return Err(damaged("a sparse extent cannot be longer than 2 TiB"));
        }
        Ok(NewPlace { source: extent.source, offset, is_fresh: true })
    }

    fn refer(&self, block: &Range<u64>, place: NewPlace) -> Result<()> {
        let extent = self.extent(block.start)?;
        let Kind::Sparse(sparse) = &extent.kind else { return Ok(()) };
        // Checked when the place was given.
        sparse.refer(block.start - extent.range.start, (place.offset / SECTOR_SIZE) as u32)
    }

    fn refer_zero(&self, block: &Range<u64>) -> Result<bool> {
        let extent = self.extent(block.start)?;
        match &extent.kind {
            Kind::Sparse(sparse) if sparse.zeroed_grains => {
                sparse.refer(block.start - extent.range.start, ZERO)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn changed(&self) -> u64 {
        self.sparse().map(|(sparse, _)| (sparse.tables.changes() as u64) << 16).sum()
    }

    fn commit(&self) -> Result<()> {
        let tables: Vec<_> = self.sparse().map(|(sparse, _)| &sparse.tables).collect();
        self.flush_all()?;
        if tables.iter().all(|tables| tables.changes() == 0) {
            Ok(())
        } else {
            blocks::commit(&tables)
        }
    }

    fn end(&self) -> Result<()> {
        for (sparse, source) in self.sparse() {
            // The last grain may not have been written to its end.
            let end = sparse.end.load(Ordering::Relaxed);
            if source.len() < end {
                writable(source)?.set_len(end)?;
            }
        }
        self.mark(0)
    }
}

impl Sparse {
    pub(super) fn can_write(&self) -> bool {
        !self.compressed && self.is_hosted
    }

    /// Puts an entry into the grain tables of either kind.
    fn refer(&self, offset: u64, sector: u32) -> Result<()> {
        let index = offset / self.covered();
        let within = offset % self.covered() / self.grain_size * 4;
        for directory in [self.rgd_offset, Some(self.gd_offset)].into_iter().flatten() {
            let table = match self.tables.le32(directory, index)? {
                0 => self.new_table(directory, index)?,
                table => table,
            };
            let entry = u64::from(table) * SECTOR_SIZE + within;
            self.tables.change(entry, &sector.to_le_bytes(), Stage::Second)?;
        }
        Ok(())
    }

    /// Makes a grain table that a directory lacks.
    fn new_table(&self, directory: u64, index: u64) -> Result<u32> {
        let size = (self.entries * 4).next_multiple_of(self.grain_size);
        let offset = self.end.fetch_add(size, Ordering::Relaxed);
        let sector = u32::try_from(offset / SECTOR_SIZE)
            .map_err(|_| damaged("a sparse extent cannot be longer than 2 TiB"))?;
        let target = writable(&**self.tables.source())?;
        target.set_len(offset + size)?;
        // On the disk before what leads to it; it may hold what a page of tables had there.
        target.write_at(&vec![0; (self.entries * 4) as usize], offset)?;
        target.flush()?;
        self.tables.forget_clean(offset, self.entries * 4);
        self.tables.change(directory + index * 4, &sector.to_le_bytes(), Stage::Second)?;
        Ok(sector)
    }
}
