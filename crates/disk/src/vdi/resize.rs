//! Growing. The map may have to grow into the data behind it: then the first blocks move to the file's end, and the new
//! map takes their place. Until the header, one sector, leads to it, the old one is there and right.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use zerocopy::IntoBytes;

use super::create::MAX_BLOCKS;
use super::{FREE, Header, Vdi, ZERO, unsupported};
use crate::Result;
use crate::create::writable;
use crate::resize::{copy, zero};
use crate::source::{Source, read_vec};

/// Image type of a disk all of whose blocks are there.
const STATIC: u32 = 2;

/// Makes the disk longer, with zeroes.
pub(crate) fn grow(source: Arc<dyn Source>, length: u64) -> Result<()> {
    let (vdi, mut header) = Vdi::open(source.clone())?;
    let old = vdi.blocks;
    let blocks = length.div_ceil(vdi.block_size).max(old);
    if blocks > MAX_BLOCKS {
        return Err(unsupported("its disk would need larger blocks"));
    }
    let target = writable(&*source)?;
    vdi.find_end()?;
    let bytes = read_vec(&*source, vdi.map_offset, old as usize * 4)?;
    let (entries, _) = bytes.as_chunks();
    let mut map: Vec<u32> = entries.iter().map(|entry| u32::from_le_bytes(*entry)).collect();
    let is_stored = |entry: u32| entry != FREE && entry != ZERO;

    let (last, within) =
        (header.disk_size.get() / vdi.block_size, header.disk_size.get() % vdi.block_size);
    if let Some(&entry) = map.get(last as usize).filter(|&&entry| is_stored(entry) && within != 0) {
        let place = vdi.place_of(entry);
        zero(&*source, place + within..place + vdi.block_size)?;
    }

    // How many blocks make room for the map.
    let has_room = vdi.map_offset + blocks * 4 <= vdi.data_offset;
    let moved = if has_room { 0 } else { (blocks * 4).div_ceil(vdi.stride()) };
    let mut next = vdi.allocated.load(Ordering::Relaxed).max(moved);
    let first = next;
    for entry in map.iter_mut().filter(|entry| is_stored(**entry) && u64::from(**entry) < moved) {
        // Bounded by the number of blocks.
        let (from, to) = (vdi.place_of(*entry), vdi.place_of(next as u32));
        copy(&*source, from - vdi.block_extra, to - vdi.block_extra, vdi.stride())?;
        *entry = next as u32;
        next += 1;
    }
    if next != first {
        // VirtualBox puts the next block where the count says.
        let field = std::mem::offset_of!(Header, blocks_allocated) as u64;
        target.write_at(&(next as u32).to_le_bytes(), field)?;
        target.flush()?;
        target.write_at(&to_bytes(&map), vdi.map_offset)?;
        target.flush()?;
    }

    for _ in old..blocks {
        map.push(if header.image_type.get() == STATIC { next as u32 } else { FREE });
        next += u64::from(header.image_type.get() == STATIC);
    }
    let data_offset = vdi.data_offset + moved * vdi.stride();
    let too_far = |_| unsupported("its map would be too long");
    if moved == 0 {
        let tail = to_bytes(&map[old as usize..]);
        target.write_at(&tail, vdi.map_offset + old * 4)?;
    } else {
        for entry in map.iter_mut().filter(|entry| is_stored(**entry)) {
            *entry -= moved as u32;
        }
        header.blocks_offset = header.data_offset;
        header.data_offset = u32::try_from(data_offset).map_err(too_far)?.into();
        target.write_at(&to_bytes(&map), vdi.data_offset)?;
    }
    let end = vdi.data_offset + next * vdi.stride();
    if source.len() < end {
        target.set_len(end)?;
    }
    target.flush()?;
    header.disk_size = length.into();
    header.blocks = (blocks as u32).into();
    header.blocks_allocated = ((next - moved) as u32).into();
    target.write_at(header.as_bytes(), 0)?;
    target.flush()
}

/// Entries as they lie in the file.
fn to_bytes(entries: &[u32]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}
