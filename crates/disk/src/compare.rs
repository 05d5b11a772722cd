//! Whether two disks hold the same.

use crate::extent::Zeroes;
use crate::{Content, Disk, Extents, Result};

/// Bytes that are read at once from each.
const CHUNK: u64 = 1 << 20;

/// How two disks compare. The shorter one is taken to go on with zeroes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Offset of the first byte that differs.
    pub difference: Option<u64>,
    /// Bytes that were read, of each disk.
    pub read: u64,
}

/// Compares what two disks hold up to the first difference, without reading what both know to be zeroes.
/// `progress` is told how many bytes are done.
pub fn compare(a: &dyn Disk, b: &dyn Disk, mut progress: impl FnMut(u64)) -> Result<Comparison> {
    let length = a.len().max(b.len());
    let mut comparison = Comparison::default();
    let (mut left, mut right) = (vec![0; CHUNK as usize], vec![0; CHUNK as usize]);
    let mut known = (Zeroes::of(a), Zeroes::of(b));
    let mut start = 0;
    while start < length {
        let zeroes = until(&mut known.0, a, start)?.min(until(&mut known.1, b, start)?);
        if zeroes > start {
            start = zeroes.min(length);
            progress(start);
            continue;
        }
        let end = (start + CHUNK).min(length);
        // Not longer than the buffers.
        let count = (end - start) as usize;
        read(a, &mut left[..count], start)?;
        read(b, &mut right[..count], start)?;
        comparison.read += end - start;
        if left[..count] != right[..count] {
            let differs = left.iter().zip(&right).position(|(left, right)| left != right);
            comparison.difference = differs.map(|within| start + within as u64);
            return Ok(comparison);
        }
        start = end;
        progress(start);
    }
    Ok(comparison)
}

/// Reads everything that is not known to be zeroes, so that whatever cannot be read is found; returns how many
/// bytes that were. `progress` is told how many bytes of the disk are done.
pub fn read_all(disk: &dyn Disk, mut progress: impl FnMut(u64)) -> Result<u64> {
    let mut buffer = vec![0; CHUNK as usize];
    let mut read = 0;
    for extent in Extents::new(disk, 0..disk.len()) {
        let extent = extent?;
        let mut range = extent.range;
        if !matches!(extent.content, Content::Data(_)) {
            progress(range.end);
            continue;
        }
        while !range.is_empty() {
            let count = (range.end - range.start).min(CHUNK);
            disk.read_at(&mut buffer[..count as usize], range.start)?;
            read += count;
            range.start += count;
            progress(range.start);
        }
    }
    Ok(read)
}

/// Where known zeroes end; past the disk's end there are only such.
fn until(known: &mut Zeroes<'_>, disk: &dyn Disk, start: u64) -> Result<u64> {
    let end = known.end(start)?;
    Ok(if end >= disk.len() { u64::MAX } else { end })
}

fn read(disk: &dyn Disk, buffer: &mut [u8], offset: u64) -> Result<()> {
    let there = disk.len().saturating_sub(offset).min(buffer.len() as u64) as usize;
    buffer[there..].fill(0);
    if there == 0 { Ok(()) } else { disk.read_at(&mut buffer[..there], offset) }
}
