//! What the log says of blocks and inodes, put over the volume in memory (as fs/xfs/xfs_log_recover.c does on disk).
//!
//! Extents that were to be freed and inodes that have no name any more change nothing that is read here.

use std::collections::HashMap;
use std::sync::Arc;

use super::log::{Item, Log};
use super::{INODE_MAGIC, Xfs, damaged};
use crate::Result;
use crate::volume::{Patched, Volume, at, read};

const INODE: u16 = 0x123b;
const BUFFER: u16 = 0x123c;
const INODES_MADE: u16 = 0x123f;

/// Flags of a buffer: only a list of unlinked inodes changes; it was freed; it holds quotas.
const OF_INODES: u16 = 1;
const CANCELLED: u16 = 2;
const OF_QUOTAS: u16 = 0x1c;
/// Unit in which changes of a buffer are logged.
const CHUNK: usize = 128;
const SECTOR: u64 = 512;

/// The volume with the changes of the log that lies on `volume`; `None` if there are none.
pub fn replay(
    fs: &Xfs,
    volume: &dyn Volume,
    start: u64,
    length: u64,
) -> Result<Option<Arc<dyn Volume>>> {
    let Some(mut log) = Log::open(volume, start, length)? else { return Ok(None) };
    // How often a buffer is freed: until the last time, what was written to it before does not count.
    let mut cancelled: HashMap<u64, u32> = HashMap::new();
    log.each_transaction(&mut |items| {
        for buffer in items.iter().filter_map(Buffer::of).filter(Buffer::is_cancelled) {
            *cancelled.entry(buffer.sector).or_default() += 1;
        }
        Ok(())
    })?;
    let mut patched = Patched::new(Arc::clone(&fs.volume));
    log.each_transaction(&mut |mut items| {
        items.sort_by_key(order);
        for item in &items {
            apply(fs, item, &mut cancelled, &mut patched)?;
        }
        Ok(())
    })?;
    Ok(Some(Arc::new(patched)))
}

/// Buffers first, then inodes, which lie in some of them; what was freed last.
fn order(item: &Item) -> u8 {
    match kind_of(item) {
        INODES_MADE => 0,
        BUFFER => match Buffer::of(item) {
            Some(buffer) if buffer.is_cancelled() => 2,
            _ => 0,
        },
        _ => 1,
    }
}

fn kind_of(item: &Item) -> u16 {
    item.regions.first().and_then(|region| at::le16(region, 0)).unwrap_or(0)
}

fn apply(
    fs: &Xfs,
    item: &Item,
    cancelled: &mut HashMap<u64, u32>,
    patched: &mut Patched,
) -> Result<()> {
    match kind_of(item) {
        BUFFER => {
            let buffer = Buffer::of(item).ok_or_else(|| damaged("a buffer in its log"))?;
            if buffer.is_cancelled() {
                if let Some(count) = cancelled.get_mut(&buffer.sector) {
                    *count -= 1;
                    if *count == 0 {
                        cancelled.remove(&buffer.sector);
                    }
                }
                return Ok(());
            }
            if buffer.flags & (OF_INODES | OF_QUOTAS) != 0 || cancelled.contains_key(&buffer.sector)
            {
                return Ok(());
            }
            buffer.apply(&item.regions[1..], patched)
        }
        INODE => inode(fs, item, cancelled, patched),
        INODES_MADE => inodes_made(fs, item, cancelled, patched),
        _ => Ok(()),
    }
}

/// A range of the volume of which parts were changed (`xfs_buf_log_format`).
struct Buffer<'a> {
    flags: u16,
    sector: u64,
    length: usize,
    /// A bit for each unit.
    map: &'a [u8],
}

impl<'a> Buffer<'a> {
    fn of(item: &'a Item) -> Option<Self> {
        let region = item.regions.first()?;
        if at::le16(region, 0)? != BUFFER {
            return None;
        }
        let words = at::le32(region, 16)? as usize;
        Some(Self {
            flags: at::le16(region, 4)?,
            sector: at::le64(region, 8)?,
            length: usize::from(at::le16(region, 6)?) * SECTOR as usize,
            map: region.get(20..)?.get(..words.checked_mul(4)?)?,
        })
    }

    fn is_cancelled(&self) -> bool {
        self.flags & CANCELLED != 0
    }

    fn apply(&self, regions: &[Vec<u8>], patched: &mut Patched) -> Result<()> {
        let bad = || damaged("a buffer in its log");
        let is_set =
            |bit: usize| self.map.get(bit / 8).is_some_and(|byte| byte >> (bit % 8) & 1 != 0);
        let start = self.sector.checked_mul(SECTOR).ok_or_else(bad)?;
        let mut regions = regions.iter();
        let mut bit = 0;
        let bits = self.map.len() * 8;
        while bit < bits {
            if !is_set(bit) {
                bit += 1;
                continue;
            }
            // Neighbours may be divided among several regions.
            let run = (bit..bits).take_while(|&bit| is_set(bit)).count();
            let region = regions.next().ok_or_else(bad)?;
            let count = run.min(region.len() / CHUNK);
            let offset = bit * CHUNK;
            if count == 0 || offset + count * CHUNK > self.length {
                return Err(bad());
            }
            let place = start.checked_add(offset as u64).ok_or_else(bad)?;
            patched.write(place, &region[..count * CHUNK])?;
            bit += count;
        }
        Ok(())
    }
}

/// An inode's core and its data fork, as the processor that wrote them orders bytes.
fn inode(
    fs: &Xfs,
    item: &Item,
    cancelled: &HashMap<u64, u32>,
    patched: &mut Patched,
) -> Result<()> {
    const DATA: u32 = 2 | 4;
    const TREE_ROOT: u32 = 8;
    let bad = || damaged("an inode in its log");
    let [format, core, rest @ ..] = &item.regions[..] else { return Err(bad()) };
    // 32-bit systems leave out four bytes before the inode's number.
    let shift = if format.len() == 52 { 4 } else { 0 };
    let fields = at::le32(format, 4).ok_or_else(bad)?;
    let number = at::le64(format, 16 - shift).ok_or_else(bad)?;
    let sector = at::le64(format, 40 - shift).ok_or_else(bad)?;
    if cancelled.contains_key(&sector) {
        return Ok(());
    }
    let place = fs.inode_place(number).ok_or_else(bad)?;
    let mut bytes = read(patched, place, fs.inode_size)?;
    let core = disk_order(core).filter(|core| core.len() <= bytes.len()).ok_or_else(bad)?;
    bytes[..core.len()].copy_from_slice(&core);
    let start = if fs.is_v5 { 176 } else { 100 };
    let end = match usize::from(bytes[82]) {
        0 => bytes.len(),
        offset => (start + offset * 8).min(bytes.len()),
    };
    let fork = bytes.get_mut(start..end).ok_or_else(bad)?;
    if fields & (DATA | TREE_ROOT) != 0 {
        let data = rest.first().ok_or_else(bad)?;
        let made;
        let data = if fields & TREE_ROOT != 0 {
            made = tree_root(data, fork.len(), fs.is_v5).ok_or_else(bad)?;
            &made
        } else {
            data
        };
        // Extents are logged with room for more.
        let count = data.len().min(fork.len());
        fork[..count].copy_from_slice(&data[..count]);
    }
    patched.write(place, &bytes)
}

/// An inode's core with its numbers as they are on disk. Times are not read, and are left as they are.
fn disk_order(core: &[u8]) -> Option<Vec<u8>> {
    const NUMBERS: [(usize, usize); 13] = [
        (0, 2),
        (2, 2),
        (8, 4),
        (12, 4),
        (16, 4),
        (56, 8),
        (64, 8),
        (72, 4),
        (76, 4),
        (80, 2),
        (90, 2),
        (92, 4),
        (24, 8),
    ];
    const OF_VERSION_3: [(usize, usize); 2] = [(120, 8), (152, 8)];
    let is_third = at::u8(core, 4)? >= 3;
    let mut core = core.get(..if is_third { 176 } else { 96 })?.to_vec();
    let more = OF_VERSION_3.iter().filter(|_| is_third);
    for &(place, width) in NUMBERS.iter().chain(more) {
        core[place..place + width].reverse();
    }
    (at::be16(&core, 0)? == INODE_MAGIC).then_some(core)
}

/// The root of an inode's tree of extents, which has a whole block's header in memory, as it is on disk.
fn tree_root(block: &[u8], room: usize, is_v5: bool) -> Option<Vec<u8>> {
    let header = if is_v5 { 72 } else { 24 };
    let count = usize::from(at::be16(block, 6)?);
    let (from, to) = ((block.len().checked_sub(header)?) / 16, room.checked_sub(4)? / 16);
    if count > from.min(to) {
        return None;
    }
    let mut root = vec![0; room];
    root[..4].copy_from_slice(block.get(4..8)?);
    root[4..][..count * 8].copy_from_slice(&block[header..][..count * 8]);
    root[4 + to * 8..][..count * 8].copy_from_slice(&block[header + from * 8..][..count * 8]);
    Some(root)
}

/// New inodes, which are zeroes until they are used.
fn inodes_made(
    fs: &Xfs,
    item: &Item,
    cancelled: &HashMap<u64, u32>,
    patched: &mut Patched,
) -> Result<()> {
    let bad = || damaged("new inodes in its log");
    let region = item.regions.first().ok_or_else(bad)?;
    let word = |offset| at::be32(region, offset).map(u64::from).ok_or_else(bad);
    let (group, block, length) = (word(4)?, word(8)?, word(20)?);
    let place = fs.offset(group << fs.ag_block_bits | block).ok_or_else(bad)?;
    let length = length.checked_mul(fs.block).filter(|&length| length <= 1 << 20);
    let length = length.ok_or_else(bad)?;
    if (place..place + length)
        .step_by(SECTOR as usize)
        .any(|at| cancelled.contains_key(&(at / SECTOR)))
    {
        return Ok(());
    }
    let mut empty = vec![0; fs.inode_size];
    empty[..2].copy_from_slice(&INODE_MAGIC.to_be_bytes());
    empty[4] = if fs.is_v5 { 3 } else { 2 };
    for at in (place..place + length).step_by(fs.inode_size) {
        patched.write(at, &empty)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_of_a_tree_is_put_as_it_is_on_disk() {
        // A header of version 4, room for three entries, of which two are there.
        let mut block = vec![0; 24 + 3 * 16];
        block[..8].copy_from_slice(b"BMAP\0\x01\0\x02");
        block[24..40].copy_from_slice(b"key one.key two.");
        block[48..64].copy_from_slice(b"pointer1pointer2");
        let root = tree_root(&block, 4 + 4 * 16, false).unwrap();
        assert_eq!(&root[..20], b"\0\x01\0\x02key one.key two.");
        assert_eq!(&root[36..52], b"pointer1pointer2");
        assert!(
            tree_root(&block, 4 + 16, false).is_none() && tree_root(b"BMAP", 100, false).is_none()
        );
    }
}
