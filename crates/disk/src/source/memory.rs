use std::ops::Range;
use std::sync::{PoisonError, RwLock};

use super::{Source, WritableSource, truncated};
use crate::{Error, Result};

/// A source in memory.
#[derive(Debug, Default)]
pub struct MemorySource {
    bytes: RwLock<Vec<u8>>,
    read_only: bool,
}

impl MemorySource {
    /// One that can be changed.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes: RwLock::new(bytes), read_only: false }
    }

    /// One that cannot be changed.
    pub fn read_only(bytes: Vec<u8>) -> Self {
        Self { bytes: RwLock::new(bytes), read_only: true }
    }

    /// A copy of what it holds.
    pub fn to_vec(&self) -> Vec<u8> {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Source for MemorySource {
    fn len(&self) -> u64 {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let bytes = self.bytes.read().unwrap_or_else(PoisonError::into_inner);
        let found = usize::try_from(offset)
            .ok()
            .and_then(|start| bytes.get(start..start.checked_add(buffer.len())?));
        match found {
            Some(found) => {
                buffer.copy_from_slice(found);
                Ok(())
            }
            None => {
                drop(bytes);
                Err(truncated(self, offset, buffer.len()))
            }
        }
    }

    fn writable(&self) -> Option<&dyn WritableSource> {
        (!self.read_only).then_some(self)
    }
}

impl WritableSource for MemorySource {
    fn write_at(&self, buffer: &[u8], offset: u64) -> Result<()> {
        let mut bytes = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
        let end =
            usize::try_from(offset).ok().and_then(|at| Some((at, at.checked_add(buffer.len())?)));
        let Some((start, end)) = end else {
            let range = offset..offset.saturating_add(buffer.len() as u64);
            return Err(Error::OutOfRange { range, length: bytes.len() as u64 });
        };
        if end > bytes.len() {
            bytes.resize(end, 0);
        }
        bytes[start..end].copy_from_slice(buffer);
        Ok(())
    }

    fn set_len(&self, length: u64) -> Result<()> {
        let mut bytes = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
        let Ok(wanted) = usize::try_from(length) else {
            return Err(Error::OutOfRange { range: 0..length, length: bytes.len() as u64 });
        };
        bytes.resize(wanted, 0);
        Ok(())
    }

    fn punch(&self, range: Range<u64>) -> Result<()> {
        let mut bytes = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
        let end = range.end.min(bytes.len() as u64) as usize;
        if let Some(part) = bytes.get_mut(range.start as usize..end) {
            part.fill(0);
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}
