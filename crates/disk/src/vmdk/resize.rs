//! Growing of disks in one sparse or flat extent.
//!
//! New grain directories lie at the file's end until the header, one sector, leads to them. The descriptor's number of
//! sectors changes in its place: what a longer number needs is taken from the comment before it.

use std::ops::Range;
use std::sync::Arc;

use zerocopy::IntoBytes;

use super::create::SPLIT_BYTES;
use super::descriptor::{Access, ExtentKind};
use super::sparse::{Sparse, SparseExtentHeader};
use super::{
    DEVICES_OF_ESX, Kind, MAX_DESCRIPTOR, damaged, open_sparse, read_descriptor, unsupported,
};
use crate::create::writable;
use crate::layer::Place;
use crate::open::Neighbours;
use crate::resize::zero;
use crate::source::{Source, read_struct, read_vec};
use crate::{Result, SECTOR_SIZE};

/// Most bytes of new directories and tables.
const MAX_TABLES: u64 = 256 << 20;

/// Makes the disk longer, with zeroes.
pub(crate) fn grow(
    source: Arc<dyn Source>,
    neighbours: &Neighbours<'_>,
    length: u64,
) -> Result<()> {
    if let Some(kind) = open_sparse(&source)? {
        return grow_sparse(kind, length, |sparse| match &sparse.descriptor {
            Some(range) => tell_length(&*source, range.clone(), length),
            None => Ok(()),
        });
    }
    let descriptor = read_descriptor(&*source, 0..source.len())?;
    let kind = descriptor.create_type.to_ascii_lowercase();
    let [extent] = &descriptor.extents[..] else {
        return Err(unsupported("a disk of several files cannot be made longer: convert it"));
    };
    if kind.starts_with("twogb") && length > SPLIT_BYTES {
        return Err(unsupported(
            "a part of a split disk cannot be longer than 2047 MiB: convert it",
        ));
    }
    let mut devices = DEVICES_OF_ESX.iter().chain(&["fullDevice", "partitionedDevice"]);
    if devices.any(|device| device.eq_ignore_ascii_case(&kind))
        || extent.access != Access::ReadWrite
    {
        return Err(unsupported("it may not be written to"));
    }
    let tell = || tell_length(&*source, 0..source.len(), length);
    match extent.kind {
        ExtentKind::Flat => {
            let file = neighbours.open(&extent.file)?;
            let bytes = |sectors: u64| sectors.checked_mul(SECTOR_SIZE);
            let old = bytes(extent.offset).zip(bytes(extent.sectors));
            let old = old.and_then(|(start, length)| start.checked_add(length));
            let old = old.filter(|&old| old <= file.len());
            let old = old.ok_or_else(|| damaged("its extent is longer than its file"))?;
            // What the file has behind the extent becomes a part of the disk.
            zero(&*file, old..file.len())?;
            let end = extent.offset * SECTOR_SIZE + length;
            writable(&*file)?.set_len(end.max(file.len()))?;
            writable(&*file)?.flush()?;
            tell()
        }
        ExtentKind::Sparse => {
            let file = neighbours.open(&extent.file)?;
            let kind = open_sparse(&file)?;
            let kind = kind.ok_or_else(|| damaged("its file is no extent of it"))?;
            grow_sparse(kind, length, |_| tell())
        }
        ExtentKind::Zero => Err(unsupported("it has no file that could grow")),
    }
}

/// Makes a sparse extent longer; `tell` changes the descriptor before the header.
fn grow_sparse(kind: Kind, length: u64, tell: impl FnOnce(&Sparse) -> Result<()>) -> Result<()> {
    let Kind::Sparse(sparse) = kind else {
        return Err(unsupported("images of this kind are only read: convert it"));
    };
    if !sparse.can_write() {
        return Err(unsupported("images of this kind are only read: convert it"));
    }
    let source = &**sparse.tables.source();
    let within = sparse.length % sparse.grain_size;
    if within != 0
        && let Place::Stored { offset, .. } = sparse.step(sparse.length - 1)?.place
    {
        // What the last grain has behind the disk's end becomes a part of the disk.
        zero(source, offset + 1..offset + 1 + sparse.grain_size - within)?;
    }
    let mut header: SparseExtentHeader = read_struct(source, 0)?;
    header.capacity = (length / SECTOR_SIZE).into();
    let [old, count] = [sparse.length, length].map(|length| length.div_ceil(sparse.covered()));
    if count > old {
        sparse.add_tables(old, count, length, &mut header)?;
    }
    let target = writable(source)?;
    target.flush()?;
    tell(&sparse)?;
    target.write_at(header.as_bytes(), 0)?;
    target.flush()
}

impl Sparse {
    /// Makes directories of `count` tables, the first `old` of them those that are there.
    fn add_tables(
        &self,
        old: u64,
        count: u64,
        length: u64,
        header: &mut SparseExtentHeader,
    ) -> Result<()> {
        let source = &**self.tables.source();
        let table = (self.entries * 4).next_multiple_of(SECTOR_SIZE);
        let directory = (count * 4).next_multiple_of(SECTOR_SIZE);
        let each = directory + (count - old) * table;
        let start = source.len().next_multiple_of(self.grain_size);
        let end = (start + 2 * each).next_multiple_of(self.grain_size);
        if 2 * each > MAX_TABLES || (end + length) / SECTOR_SIZE > u64::from(u32::MAX) {
            return Err(unsupported("a sparse extent of such grains cannot be so long"));
        }
        let target = writable(source)?;
        // New tables are empty.
        target.set_len(end)?;
        let directories = [self.rgd_offset, Some(self.gd_offset)].into_iter().flatten();
        for (number, found) in directories.enumerate() {
            let at = start + number as u64 * each;
            let mut entries = read_vec(source, found, old as usize * 4)?;
            // Less than 2 TiB, so it fits.
            let sectors = (0..count - old).map(|new| (at + directory + new * table) / SECTOR_SIZE);
            entries.extend(sectors.flat_map(|sector| (sector as u32).to_le_bytes()));
            target.write_at(&entries, at)?;
            let place = (at / SECTOR_SIZE).into();
            if found == self.gd_offset {
                header.gd_offset = place;
            } else {
                header.rgd_offset = place;
            }
        }
        Ok(())
    }
}

/// Changes the number of sectors of the only extent in a descriptor that lies in `range`.
fn tell_length(source: &dyn Source, range: Range<u64>, length: u64) -> Result<()> {
    if range.end.saturating_sub(range.start) > MAX_DESCRIPTOR {
        return Err(damaged("its descriptor is too long"));
    }
    let text = read_vec(source, range.start, (range.end - range.start) as usize)?;
    let no_room = || unsupported("its descriptor has no room for a longer number");
    let changed = with_sectors(&text, length / SECTOR_SIZE).ok_or_else(no_room)?;
    let differs = |(_, (old, new)): &(usize, (&u8, &u8))| old != new;
    let mut changes = text.iter().zip(&changed).enumerate().filter(differs).map(|(at, _)| at);
    let Some(first) = changes.next() else { return Ok(()) };
    let last = changes.next_back().unwrap_or(first);
    let target = writable(source)?;
    target.write_at(&changed[first..=last], range.start + first as u64)?;
    target.flush()
}

/// A descriptor of the same length with another number of sectors; nothing if there is no room for it.
fn with_sectors(text: &[u8], sectors: u64) -> Option<Vec<u8>> {
    let mut start = 0;
    let mut comment = 0..0;
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        if line.starts_with(b"#") {
            // Without the mark and the end of the line.
            comment = start + 1..start + line.trim_ascii_end().len();
        }
        if line.starts_with(b"RW ") {
            let digits = line[3..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            let number = start + 3..start + 3 + digits;
            let new = format!("{sectors:0digits$}");
            let more = new.len() - digits;
            let cut = comment.end - more.min(comment.len());
            if more > comment.len() {
                return None;
            }
            let parts = [
                &text[..cut],
                &text[comment.end..number.start],
                new.as_bytes(),
                &text[number.end..],
            ];
            return Some(parts.concat());
        }
        start += line.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_number_takes_its_room_from_the_comment() {
        let text = b"CID=1\n# Extent description\r\nRW 2048 SPARSE \"a\"\n# The Disk Data Base\n";
        let longer = with_sectors(text, 1_000_000).unwrap();
        let wanted = b"CID=1\n# Extent descript\r\nRW 1000000 SPARSE \"a\"\n# The Disk Data Base\n";
        assert_eq!(String::from_utf8_lossy(&longer), String::from_utf8_lossy(wanted));
        let wanted = b"CID=1\n# Extent description\r\nRW 0512 SPARSE \"a\"\n# The Disk Data Base\n";
        assert_eq!(with_sectors(text, 512).unwrap(), wanted);
        assert_eq!(with_sectors(b"CID=1\nRW 2048 SPARSE \"a\"\n", 99_999), None);
        assert_eq!(with_sectors(b"CID=1\n", 1), None);
    }
}
