use std::ops::Range;
use std::os::fd::BorrowedFd;

use crate::{Disk, Result};

/// A part of a disk whose bytes are all of one kind.
#[derive(Clone, Debug)]
pub struct Extent<'a> {
    /// Where it lies, in bytes of the guest's view.
    pub range: Range<u64>,
    /// What it holds.
    pub content: Content<'a>,
}

/// What an extent holds.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// Bytes that must be read to be known; where they lie, unless they are compressed or otherwise
    /// not the guest's bytes one by one.
    Data(Option<Location<'a>>),
    /// Zeroes, which a layer says so itself or keeps space for.
    Zero,
    /// Zeroes, because neither the disk nor any parent of it stores anything here.
    Hole,
}

/// Where an extent's bytes lie on the host, one by one.
#[derive(Clone, Copy, Debug)]
pub struct Location<'a> {
    /// The file.
    pub file: BorrowedFd<'a>,
    /// Offset of the extent's first byte in it.
    pub offset: u64,
    /// The bytes stay there, and can be read at any alignment, for as long as the disk is open.
    pub is_lasting: bool,
}

/// Walks over the extents of a range; ends after an error.
pub struct Extents<'a> {
    disk: &'a dyn Disk,
    rest: Range<u64>,
}

impl<'a> Extents<'a> {
    /// The extents of `range`, in order and without gaps.
    pub fn new(disk: &'a dyn Disk, range: Range<u64>) -> Self {
        Self { disk, rest: range }
    }
}

/// Tells data from zeroes without asking twice for one extent, since to find its end can take as long as it is.
pub(crate) struct Zeroes<'a> {
    disk: &'a dyn Disk,
    known: Range<u64>,
    is_data: bool,
}

impl<'a> Zeroes<'a> {
    pub fn of(disk: &'a dyn Disk) -> Self {
        Self { disk, known: 0..0, is_data: false }
    }

    /// Where the zeroes that the disk knows of end, if they begin at `start`: `start` itself where it has data, and
    /// its length where nothing else follows.
    pub fn end(&mut self, start: u64) -> Result<u64> {
        let length = self.disk.len();
        let mut end = start;
        while end < length {
            if !self.known.contains(&end) {
                let extent = self.disk.map(end..length)?;
                self.is_data = matches!(extent.content, Content::Data(_));
                self.known = extent.range;
            }
            if self.is_data || self.known.end <= end {
                break;
            }
            end = self.known.end;
        }
        Ok(end)
    }
}

impl<'a> Iterator for Extents<'a> {
    type Item = Result<Extent<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let found = self.disk.map(self.rest.clone());
        match &found {
            // An extent that does not advance would be walked over for ever.
            Ok(extent) if extent.range.end > self.rest.start => self.rest.start = extent.range.end,
            _ => self.rest.start = self.rest.end,
        }
        Some(found)
    }
}
