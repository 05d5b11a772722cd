//! Whether the log was closed by an unmount.

use crate::Result;
use crate::volume::{Volume, at, read};

const SECTOR: u64 = 512;
const MAGIC: u32 = 0xfeed_babe;
/// Longest record before the end of the log: 256 KiB, and its headers.
const MAX_RECORD: u64 = (256 << 10) + 16 * SECTOR;
/// Flag of the operation that an unmount writes.
const UNMOUNT: u8 = 0x20;

/// The last record is that of an unmount, or there is none.
pub fn is_clean(volume: &dyn Volume, start: u64, length: u64) -> Result<bool> {
    let sectors = length / SECTOR;
    if sectors == 0 {
        return Ok(true);
    }
    // Each sector begins with the number of the cycle in which it was written, those of a record's header with the
    // magic number first. The log is a ring: the sectors of the present cycle come first, then those of the last one.
    let cycle = |sector: u64| -> Result<u32> {
        let bytes = read(volume, start + sector * SECTOR, 8)?;
        let first = at::be32(&bytes, 0).unwrap_or(0);
        Ok(if first == MAGIC { at::be32(&bytes, 4).unwrap_or(0) } else { first })
    };
    let present = cycle(0)?;
    if present == 0 {
        return Ok(true);
    }
    let (mut low, mut high) = (0, sectors);
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        if cycle(middle)? == present { low = middle } else { high = middle }
    }
    // The last record before that place.
    let from = high.saturating_sub(MAX_RECORD / SECTOR);
    let bytes = read(volume, start + from * SECTOR, ((high - from) * SECTOR) as usize)?;
    let is_header = |sector: &&[u8]| at::be32(sector, 0) == Some(MAGIC);
    let sectors = bytes.len() / SECTOR as usize;
    for index in (0..sectors).rev() {
        let record = &bytes[index * SECTOR as usize..];
        if !is_header(&record) {
            continue;
        }
        let operations = at::be32(record, 40).unwrap_or(0);
        // h_size: larger buffers have a header for each 32 KiB.
        let version = at::be32(record, 8).unwrap_or(1);
        let size = at::be32(record, 320).unwrap_or(0);
        let headers = if version >= 2 { (size as usize).div_ceil(32 << 10).max(1) } else { 1 };
        let flags = at::u8(record, headers.min(64) * SECTOR as usize + 9).unwrap_or(0);
        return Ok(operations == 1 && flags & UNMOUNT != 0);
    }
    Ok(false)
}
