//! Bytes by offset, whatever they lie on: a disk, a partition, a logical volume.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use disk::Disk;

use crate::{Error, Result};

/// Something that is read by offset.
pub trait Volume: Send + Sync {
    /// Its length in bytes.
    fn len(&self) -> u64;

    /// It has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Which disk a byte lies on, and where there; `None` if that cannot be said.
    fn place(&self, offset: u64) -> Option<(usize, u64)> {
        let _ = offset;
        None
    }

    /// Fills `buffer` from `offset`; a range that passes the end is an error.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()>;
}

/// A whole disk.
pub struct Whole(pub Arc<dyn Disk>);

impl Volume for Whole {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        Ok(self.0.read_at(buffer, offset)?)
    }
}

/// One of several disks.
pub(crate) struct Numbered(pub usize, pub Arc<dyn Disk>);

impl Volume for Numbered {
    fn len(&self) -> u64 {
        self.1.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        Ok(self.1.read_at(buffer, offset)?)
    }

    fn place(&self, offset: u64) -> Option<(usize, u64)> {
        (offset < self.1.len()).then_some((self.0, offset))
    }
}

/// Bytes in memory.
pub(crate) struct Memory(pub Vec<u8>);

impl Volume for Memory {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let from = usize::try_from(offset).ok().and_then(|start| self.0.get(start..));
        let bytes = from.and_then(|from| from.get(..buffer.len()));
        buffer.copy_from_slice(bytes.ok_or_else(|| Error::damaged("volume", "it ends"))?);
        Ok(())
    }
}

/// A range of another volume.
pub struct Part {
    inner: Arc<dyn Volume>,
    start: u64,
    length: u64,
}

impl Part {
    /// As much of `range` as `inner` has.
    pub fn new(inner: Arc<dyn Volume>, range: Range<u64>) -> Self {
        let end = range.end.min(inner.len());
        Self { start: range.start, length: end.saturating_sub(range.start), inner }
    }
}

impl Volume for Part {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.length) {
            return Err(Error::damaged("volume", format!("something leads to {offset:#x}")));
        }
        self.inner.read_at(buffer, self.start + offset)
    }

    fn place(&self, offset: u64) -> Option<(usize, u64)> {
        (offset < self.length).then(|| self.inner.place(self.start + offset))?
    }
}

/// A volume some sectors of which are replaced by what a log says of them.
pub(crate) struct Patched {
    inner: Arc<dyn Volume>,
    sectors: BTreeMap<u64, [u8; SECTOR]>,
}

const SECTOR: usize = 512;
/// Most sectors that are replaced: 256 MiB.
const MAX_PATCHED: usize = 1 << 19;

impl Patched {
    /// Nothing is replaced yet.
    pub fn new(inner: Arc<dyn Volume>) -> Self {
        Self { inner, sectors: BTreeMap::new() }
    }

    /// Replaces what is at `offset`.
    pub fn write(&mut self, mut offset: u64, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (number, into) = (offset / SECTOR as u64, (offset % SECTOR as u64) as usize);
            let (part, rest) = bytes.split_at(bytes.len().min(SECTOR - into));
            if !self.sectors.contains_key(&number) {
                if self.sectors.len() == MAX_PATCHED {
                    return Err(Error::unsupported("log", "it is too long to be kept in memory"));
                }
                let mut sector = [0; SECTOR];
                self.inner.read_at(&mut sector, number * SECTOR as u64)?;
                self.sectors.insert(number, sector);
            }
            if let Some(sector) = self.sectors.get_mut(&number) {
                sector[into..into + part.len()].copy_from_slice(part);
            }
            offset += part.len() as u64;
            bytes = rest;
        }
        Ok(())
    }
}

impl Volume for Patched {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.inner.read_at(buffer, offset)?;
        let end = offset.saturating_add(buffer.len() as u64);
        let numbers = offset / SECTOR as u64..end.div_ceil(SECTOR as u64);
        for (number, sector) in self.sectors.range(numbers) {
            let start = number * SECTOR as u64;
            let (from, to) = (start.max(offset), (start + SECTOR as u64).min(end));
            buffer[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&sector[(from - start) as usize..(to - start) as usize]);
        }
        Ok(())
    }
}

/// Reads `length` bytes, of which there should never be more than fit in memory.
pub(crate) fn read(volume: &dyn Volume, offset: u64, length: usize) -> Result<Vec<u8>> {
    let mut buffer = vec![0; length];
    volume.read_at(&mut buffer, offset)?;
    Ok(buffer)
}

/// Reads as much of a range as there is.
pub(crate) fn read_up_to(volume: &dyn Volume, offset: u64, length: usize) -> Result<Vec<u8>> {
    let there = volume.len().saturating_sub(offset).min(length as u64) as usize;
    read(volume, offset, there)
}

/// Numbers at a place in bytes; `None` behind the end.
pub(crate) mod at {
    pub fn u8(bytes: &[u8], offset: usize) -> Option<u8> {
        bytes.get(offset).copied()
    }

    macro_rules! number {
        ($($name:ident, $kind:ty, $from:ident;)*) => {
            $(pub fn $name(bytes: &[u8], offset: usize) -> Option<$kind> {
                Some(<$kind>::$from(*bytes.get(offset..)?.first_chunk()?))
            })*
        };
    }

    number! {
        le16, u16, from_le_bytes;
        le32, u32, from_le_bytes;
        le64, u64, from_le_bytes;
        be16, u16, from_be_bytes;
        be32, u32, from_be_bytes;
        be64, u64, from_be_bytes;
    }
}

/// A text that ends at its first NUL.
pub(crate) fn text_of(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// A UUID whose bytes are in the order in which it is written.
pub(crate) fn uuid_of(bytes: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_patched_is_read() {
        let mut patched = Patched::new(Arc::new(Memory(vec![7; 4096])));
        patched.write(1000, &[1; 100]).unwrap();
        patched.write(1023, &[2, 3]).unwrap();
        let mut expected = vec![7; 4096];
        expected[1000..1100].fill(1);
        expected[1023..1025].copy_from_slice(&[2, 3]);
        for (offset, length) in [(0, 4096), (1000, 1), (1023, 2), (512, 512), (1099, 600), (5, 0)] {
            assert_eq!(
                read(&patched, offset as u64, length).unwrap(),
                expected[offset..][..length]
            );
        }
        assert!(
            patched.write(4090, &[0; 10]).is_err() && patched.read_at(&mut [0; 2], 4095).is_err()
        );
    }
}
