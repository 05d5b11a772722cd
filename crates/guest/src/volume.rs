//! Bytes by offset, whatever they lie on: a disk, a partition, a logical volume.

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
pub(crate) mod testing {
    use super::*;

    /// A volume in memory.
    pub struct Memory(pub Vec<u8>);

    impl Volume for Memory {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
            let from = usize::try_from(offset).ok().and_then(|start| self.0.get(start..));
            let bytes = from.and_then(|from| from.get(..buffer.len()));
            buffer.copy_from_slice(bytes.ok_or(Error::damaged("volume", "it ends"))?);
            Ok(())
        }
    }
}
