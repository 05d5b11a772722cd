//! Growing. The table lies before the data: where it has no room, the first clusters move to the file's end.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use zerocopy::IntoBytes;

use super::{Header, Parallels, damaged, unsupported};
use crate::blocks;
use crate::create::writable;
use crate::resize::{copy, zero};
use crate::source::{Source, read_struct, read_vec};
use crate::{Format, Result, SECTOR_SIZE};

/// Where the table begins.
const TABLE: u64 = size_of::<Header>() as u64;
/// Most entries of a table that is made, so that it takes at most 64 MiB.
const MAX_ENTRIES: u64 = 1 << 24;

/// Makes the disk of an expanding image longer, with zeroes.
pub(crate) fn grow(source: Arc<dyn Source>, length: u64) -> Result<()> {
    let mut start = [0];
    source.read_at(&mut start, 0)?;
    if start != [b'W'] {
        return Err(unsupported("a bundle cannot be made longer: convert it"));
    }
    let (image, sectors, _) = Parallels::open(source.clone())?;
    let size = image.cluster_size;
    let entries = length.div_ceil(size).max(image.entries);
    if entries > MAX_ENTRIES {
        return Err(unsupported("its disk would need larger clusters"));
    }
    let mut header: Header = read_struct(&*source, 0)?;
    let is_short = &header.magic == b"WithoutFreeSpace";
    if is_short && u32::try_from(length / SECTOR_SIZE).is_err() {
        return Err(unsupported("an image of the older kind holds less than 2 TiB"));
    }
    image.check_table()?;
    blocks::check_end(Format::Parallels, &*source, image.end.load(Ordering::Relaxed), size)?;
    let bytes = read_vec(&*source, TABLE, image.entries as usize * 4)?;
    let (table, _) = bytes.as_chunks();
    let mut table: Vec<u32> = table.iter().map(|entry| u32::from_le_bytes(*entry)).collect();

    let (last, within) = (sectors * SECTOR_SIZE / size, sectors * SECTOR_SIZE % size);
    if let Some(&entry) = table.get(last as usize).filter(|&&entry| entry != 0 && within != 0) {
        let place = u64::from(entry) * image.unit;
        zero(&*source, place + within..place + size)?;
    }

    let table_end = TABLE + entries * 4;
    let data = image.data + table_end.saturating_sub(image.data).next_multiple_of(size);
    let mut next = image.end.load(Ordering::Relaxed).max(data);
    let target = writable(&*source)?;
    let is_in_the_way = |entry: &&mut u32| **entry != 0 && u64::from(**entry) * image.unit < data;
    for entry in table.iter_mut().filter(is_in_the_way) {
        let place = u32::try_from(next / image.unit);
        let place = place.map_err(|_| damaged("its file cannot be longer"))?;
        copy(&*source, u64::from(*entry) * image.unit, next, size)?;
        *entry = place;
        next += size;
    }
    if source.len() < next {
        target.set_len(next)?;
    }
    target.flush()?;
    let table: Vec<u8> = table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    target.write_at(&table, TABLE)?;
    target.flush()?;
    // Until now there may have been clusters.
    zero(&*source, TABLE + image.entries * 4..table_end)?;
    target.flush()?;

    let track = u64::from(header.heads.get()) * u64::from(header.tracks.get());
    let cylinders = (length / SECTOR_SIZE).div_ceil(track.max(1));
    header.cylinders = u32::try_from(cylinders).unwrap_or(u32::MAX).into();
    header.nb_sectors = (length / SECTOR_SIZE).into();
    // Bounded above.
    header.bat_entries = (entries as u32).into();
    let data = u32::try_from(data / SECTOR_SIZE);
    header.data_off = data.map_err(|_| damaged("its table is too long"))?.into();
    target.write_at(header.as_bytes(), 0)?;
    target.flush()
}
