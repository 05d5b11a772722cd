use std::ops::Range;
use std::sync::Arc;

use super::{Source, truncated};
use crate::Result;

/// A range of another source, to be read only.
#[derive(Debug)]
pub struct PartSource {
    whole: Arc<dyn Source>,
    range: Range<u64>,
}

impl PartSource {
    /// The bytes of `range`, as far as they are there.
    pub fn new(whole: Arc<dyn Source>, range: Range<u64>) -> Self {
        let end = range.end.min(whole.len());
        Self { whole, range: range.start.min(end)..end }
    }
}

impl Source for PartSource {
    fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn version(&self) -> Option<String> {
        Some(format!("{:?} of {}", self.range, self.whole.version()?))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.len()) {
            return Err(truncated(self, offset, buffer.len()));
        }
        self.whole.read_at(buffer, self.range.start + offset)
    }
}
