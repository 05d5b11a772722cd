//! From extents of a disk to the places of a new image, uncompressed: shared where the file system can, copied elsewhere.

use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::Noting;
use super::Report;
use super::journal::Run;
use super::zero::nonzero;
use crate::create::{Builder, writable};
use crate::{Content, Disk, Location, Result};

/// Bytes that are read at once: few enough to be in the processor's cache still when they are written.
const CHUNK: u64 = 256 << 10;
/// Zeroes are left out in units of this many bytes.
const ZERO_UNIT: usize = 4096;
/// File systems share space in units of this many bytes, or fewer.
const SHARED_UNIT: u64 = 4096;

/// Writes all that is not zeroes.
pub(super) fn copy_data(
    source: &dyn Disk,
    target: &mut dyn Builder,
    mut noting: Option<Noting<'_>>,
    report: &mut Report,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let mut buffer = vec![0; CHUNK as usize];
    let length = source.len();
    let now = noting.as_mut().and_then(|noting| noting.last.take());
    let mut places = Places { block: target.block_size(), length, target, now, noting };
    let mut sharing = Sharing::default();
    let mut start = report.resumed;
    while start < length {
        let extent = source.map(start..length)?;
        let range = extent.range;
        let Content::Data(location) = extent.content else {
            report.holes += range.end - range.start;
            start = range.end;
            progress(start);
            continue;
        };
        if let Some(location) = location
            && sharing.works(location.file, places.target)?
        {
            let shared = places.share(location, range.clone())?;
            report.data += shared;
            report.shared += shared;
            start += shared;
            progress(start);
        }
        // The extent is not asked for again: to find its end can take as long as it is.
        while start < range.end {
            let end = range.end.min((start / CHUNK + 1) * CHUNK);
            let bytes = &mut buffer[..(end - start) as usize];
            source.read_at(bytes, start)?;
            let mut written = 0;
            for part in nonzero(bytes, ZERO_UNIT) {
                written += part.len() as u64;
                places.write(start + part.start as u64, &bytes[part])?;
            }
            report.data += written;
            report.zeroes += end - start - written;
            start = end;
            progress(start);
            places.checkpoint(start, report)?;
        }
    }
    Ok(())
}

/// Whether the new image can share space with a file.
#[derive(Default)]
struct Sharing {
    /// The last file that was asked about, and the answer.
    known: Option<(i32, bool)>,
}

impl Sharing {
    fn works(&mut self, file: BorrowedFd<'_>, target: &dyn Builder) -> Result<bool> {
        let number = file.as_raw_fd();
        if let Some((known, works)) = self.known
            && known == number
        {
            return Ok(works);
        }
        let mut works = true;
        for source in target.sources() {
            works &= writable(&**source)?.can_share(file);
        }
        self.known = Some((number, works));
        Ok(works)
    }
}

/// Where the new image's bytes go, in the guest's order.
struct Places<'a> {
    target: &'a mut dyn Builder,
    block: u64,
    length: u64,
    now: Option<Run>,
    noting: Option<Noting<'a>>,
}

impl Places<'_> {
    /// The place of the bytes from `range.start`, and how many of the range are there.
    fn find(&mut self, range: &Range<u64>) -> Result<(usize, u64, u64)> {
        let place = match &self.now {
            Some(place) if place.range.contains(&range.start) => place,
            _ => {
                let start = range.start / self.block * self.block;
                let end = range.end.next_multiple_of(self.block).min(self.length);
                let placed = self.target.place(start..end)?;
                if let Some(noting) = &mut self.noting {
                    noting.journal.placed(start, &placed);
                }
                let range = start..start + placed.length;
                self.now.insert(Run { range, source: placed.source, offset: placed.offset })
            }
        };
        let within = range.start - place.range.start;
        let count = place.range.end.min(range.end) - range.start;
        Ok((place.source, place.offset + within, count))
    }

    fn checkpoint(&mut self, start: u64, report: &Report) -> Result<()> {
        let Some(noting) = &mut self.noting else {
            return Ok(());
        };
        noting.journal.checkpoint(start, report, self.target.sources(), noting.files)
    }

    fn write(&mut self, mut start: u64, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (source, offset, count) = self.find(&(start..start + bytes.len() as u64))?;
            let (part, rest) = bytes.split_at(count as usize);
            writable(&*self.target.sources()[source])?.write_at(part, offset)?;
            (start, bytes) = (start + count, rest);
        }
        Ok(())
    }

    /// Lets the new image share what lies at `from`, as far as whole units go; returns how many bytes that were.
    fn share(&mut self, from: Location<'_>, range: Range<u64>) -> Result<u64> {
        let mut done = 0;
        let whole = (range.end - range.start) / SHARED_UNIT * SHARED_UNIT;
        while done < whole && (from.offset + done).is_multiple_of(SHARED_UNIT) {
            let (source, offset, count) = self.find(&(range.start + done..range.start + whole))?;
            let count = count / SHARED_UNIT * SHARED_UNIT;
            let target = writable(&*self.target.sources()[source])?;
            if count == 0
                || !offset.is_multiple_of(SHARED_UNIT)
                || !target.share(from.file, from.offset + done, offset, count)
            {
                break;
            }
            done += count;
        }
        Ok(done)
    }
}
