//! New raw disks.

use std::ops::Range;
use std::sync::Arc;

use crate::create::{self, CreateOptions, Files, Placed, Preallocation, writable};
use crate::source::{FileSource, Source};
use crate::{Error, Format, Layout, Result};

/// Zeroes are left out in units of this many bytes at least.
const UNIT: u64 = 4096;
/// Bytes of zeroes that are written at once.
const ZEROES: u64 = 1 << 20;

/// A new raw disk.
pub(crate) struct Builder {
    sources: [Arc<dyn Source>; 1],
}

impl Builder {
    pub fn new(files: &Files, options: &CreateOptions) -> Result<Self> {
        let source = files.main()?;
        prepare(&source, options.length, options.preallocation, options.layout)?;
        Ok(Self { sources: [Arc::new(source)] })
    }
}

/// Gives a new file its length and takes space for it.
pub(crate) fn prepare(
    source: &FileSource,
    length: u64,
    preallocation: Preallocation,
    layout: Layout,
) -> Result<()> {
    let target = writable(source)?;
    target.set_len(length)?;
    match (preallocation, layout) {
        (Preallocation::Off | Preallocation::Metadata, Layout::Sparse) => Ok(()),
        (Preallocation::Off | Preallocation::Metadata, _) => source.allocate(0..length),
        (Preallocation::Falloc, _) => source.allocate(0..length),
        (Preallocation::Full, _) => {
            let zeroes = vec![0; length.min(ZEROES) as usize];
            for start in (0..length).step_by(ZEROES as usize) {
                let count = (length - start).min(ZEROES) as usize;
                target.write_at(&zeroes[..count], start)?;
            }
            Ok(())
        }
    }
}

impl create::Builder for Builder {
    fn block_size(&self) -> u64 {
        UNIT
    }

    fn sources(&self) -> &[Arc<dyn Source>] {
        &self.sources
    }

    fn place(&mut self, range: Range<u64>) -> Result<Placed> {
        if range.end > self.sources[0].len() {
            let what = "its disk is shorter than its data".to_owned();
            return Err(Error::Damaged { format: Format::Raw, what });
        }
        Ok(Placed { source: 0, offset: range.start, length: range.end - range.start })
    }

    fn finish(&mut self) -> Result<()> {
        writable(&*self.sources[0])?.flush()
    }
}
