//! Changes in place.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::{Bundle, Header, IN_USE, Parallels, damaged};
use crate::blocks::{self, Begun, Blocks, NewPlace};
use crate::cache::Stage;
use crate::create::writable;
use crate::source::read_vec;
use crate::{Format, Result, SECTOR_SIZE};

impl Parallels {
    /// Refuses to change an image that was not closed in order, unless its table makes sense.
    pub(super) fn check_table(&self) -> Result<()> {
        // Checked against the file's length when it was opened.
        let bytes =
            read_vec(&*self.sources[0], size_of::<Header>() as u64, self.entries as usize * 4)?;
        let entries = bytes.chunks_exact(4);
        let mut entries: Vec<u32> = entries
            .map(|entry| u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]))
            .filter(|&entry| entry != 0)
            .collect();
        entries.sort_unstable();
        let table_end = size_of::<Header>() as u64 + self.entries * 4;
        let apart = self.cluster_size / self.unit;
        let is_sound = entries.windows(2).all(|pair| u64::from(pair[1] - pair[0]) >= apart)
            && entries.first().is_none_or(|&first| u64::from(first) * self.unit >= table_end)
            && entries
                .last()
                .is_none_or(|&last| u64::from(last) * self.unit < self.sources[0].len());
        if is_sound {
            return Ok(());
        }
        Err(damaged("it was not closed in order, and its table leads to places that cannot be"))
    }

    fn mark(&self, value: u32) -> Result<()> {
        let target = writable(&*self.sources[0])?;
        target.write_at(&value.to_le_bytes(), std::mem::offset_of!(Header, inuse) as u64)?;
        target.flush()
    }
}

impl Blocks for Parallels {
    fn can_write(&self) -> bool {
        self.sources[0].writable().is_some()
    }

    fn begun(&self) -> &Begun {
        &self.begun
    }

    fn begin(&self) -> Result<()> {
        let end = self.end.load(Ordering::Relaxed);
        blocks::check_end(Format::Parallels, &*self.sources[0], end, self.cluster_size)?;
        self.mark(IN_USE)
    }

    fn block(&self, offset: u64) -> Result<Range<u64>> {
        let start = offset / self.cluster_size * self.cluster_size;
        Ok(start..start + self.cluster_size)
    }

    fn place(&self, _block: &Range<u64>) -> Result<NewPlace> {
        let offset = self.end.fetch_add(self.cluster_size, Ordering::Relaxed);
        if u32::try_from(offset / self.unit).is_err() {
            return Err(damaged("its file cannot be longer"));
        }
        Ok(NewPlace { source: 0, offset, is_fresh: true })
    }

    fn refer(&self, block: &Range<u64>, place: NewPlace) -> Result<()> {
        let entry = size_of::<Header>() as u64 + block.start / self.cluster_size * 4;
        // Checked when the place was given.
        let value = (place.offset / self.unit) as u32;
        self.tables.change(entry, &value.to_le_bytes(), Stage::Second)
    }

    fn changed(&self) -> u64 {
        (self.tables.changes() as u64) << 16
    }

    fn commit(&self) -> Result<()> {
        blocks::commit(&[&self.tables])
    }

    fn end(&self) -> Result<()> {
        // The last cluster may not have been written to its end.
        let end = self.sources[0].len().next_multiple_of(SECTOR_SIZE);
        let end = end.max(self.end.load(Ordering::Relaxed));
        let target = writable(&*self.sources[0])?;
        target.set_len(end)?;
        target.flush()?;
        self.mark(0)
    }
}

impl Bundle {
    /// The expanding parts: where each begins, its source, and its map.
    fn expanding(&self) -> impl Iterator<Item = (u64, usize, &Parallels)> {
        self.parts.iter().filter_map(|part| match &part.levels[..] {
            [(source, Some(image))] => Some((part.range.start, *source, image)),
            _ => None,
        })
    }

    fn expanding_at(&self, offset: u64) -> Result<(u64, usize, &Parallels)> {
        let start = self.part(offset)?.range.start;
        let found = self.expanding().find(|(found, ..)| *found == start);
        found.ok_or_else(|| damaged("a plain part of it is too short"))
    }
}

impl Blocks for Bundle {
    fn can_write(&self) -> bool {
        self.parts.iter().all(|part| match &part.levels[..] {
            [(_, Some(image))] => image.can_write(),
            [(source, None)] => {
                let source = &self.sources[*source];
                source.writable().is_some() && source.len() >= part.range.end - part.range.start
            }
            _ => false,
        })
    }

    fn begun(&self) -> &Begun {
        &self.begun
    }

    fn begin(&self) -> Result<()> {
        self.expanding().try_for_each(|(_, _, image)| image.begin())
    }

    fn block(&self, offset: u64) -> Result<Range<u64>> {
        let (start, _, image) = self.expanding_at(offset)?;
        let block = image.block(offset - start)?;
        Ok(block.start + start..(block.end + start).min(self.part(offset)?.range.end))
    }

    fn place(&self, block: &Range<u64>) -> Result<NewPlace> {
        let (start, source, image) = self.expanding_at(block.start)?;
        let place = image.place(&(block.start - start..block.end - start))?;
        Ok(NewPlace { source, ..place })
    }

    fn refer(&self, block: &Range<u64>, place: NewPlace) -> Result<()> {
        let (start, _, image) = self.expanding_at(block.start)?;
        image.refer(&(block.start - start..block.end - start), place)
    }

    fn changed(&self) -> u64 {
        self.expanding().map(|(_, _, image)| image.changed()).sum()
    }

    fn commit(&self) -> Result<()> {
        for source in &self.sources {
            writable(&**source)?.flush()?;
        }
        let tables: Vec<_> = self.expanding().map(|(_, _, image)| &image.tables).collect();
        blocks::commit(&tables)
    }

    fn end(&self) -> Result<()> {
        self.expanding().try_for_each(|(_, _, image)| image.end())
    }
}
