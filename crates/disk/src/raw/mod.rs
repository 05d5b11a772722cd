//! Disks whose file holds the guest's bytes one by one.

mod build;
mod holder;
mod lock;
mod open;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) use build::{Builder, prepare};
pub(crate) use lock::unlock_file;
pub(crate) use open::open_locked;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use crate::{
    Content, DirectFile, Disk, Error, Extent, Geometry, Location, Result, SECTOR_SIZE, sys,
};

/// Zeroes are written in pieces of this many bytes where the file system cannot make them.
const ZEROES: usize = 256 << 10;

/// Holes are not looked for in data of at most so many bytes.
const SMALL: u64 = 128 << 10;

/// How to open a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Nothing is ever written; others may read it at the same time.
    pub read_only: bool,
    /// Goes past the host's page cache (O_DIRECT). What is not aligned for that still works, through
    /// the page cache.
    pub direct: bool,
}

/// A raw disk: a regular file or a block device.
///
/// Its file is locked while it is open: a writer excludes everybody, readers exclude writers, also in
/// QEMU; a writer of a block device excludes mounts.
///
/// Its length is that of the file, rounded down to whole sectors with a warning: the rest could not be
/// written back without changing the file's length.
#[derive(Debug)]
pub struct RawDisk {
    path: PathBuf,
    file: File,
    /// Beside an O_DIRECT `file`, for what is not aligned.
    buffered: Option<File>,
    length: u64,
    read_only: bool,
    is_block_device: bool,
    memory_alignment: u32,
    offset_alignment: u32,
    geometry: Geometry,
    /// Cleared once the file system has said that it cannot.
    discards: AtomicBool,
}

impl RawDisk {
    /// Opens and locks the file or block device at `path`. Its content is not looked at.
    pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self> {
        open::open(path.as_ref(), options)
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file for an access, which O_DIRECT may forbid.
    fn file_for(&self, buffer: *const u8, length: usize, offset: u64) -> &File {
        match &self.buffered {
            Some(buffered) if !self.is_aligned(buffer, length, offset) => buffered,
            _ => &self.file,
        }
    }

    fn is_aligned(&self, buffer: *const u8, length: usize, offset: u64) -> bool {
        buffer.addr().is_multiple_of(self.memory_alignment as usize)
            && length.is_multiple_of(self.offset_alignment as usize)
            && offset.is_multiple_of(self.offset_alignment.into())
    }

    fn check(&self, range: &Range<u64>) -> Result<()> {
        if range.start > range.end || range.end > self.length {
            return Err(Error::OutOfRange { range: range.clone(), length: self.length });
        }
        Ok(())
    }

    fn check_access(&self, offset: u64, length: usize) -> Result<()> {
        self.check(&(offset..offset.saturating_add(length as u64)))
    }

    fn check_change(&self, range: &Range<u64>) -> Result<()> {
        if self.read_only {
            return Err(Error::ReadOnly);
        }
        self.check(range)
    }

    fn io(&self, action: &'static str) -> impl Fn(io::Error) -> Error + '_ {
        move |source| Error::Io { action, path: self.path.clone(), source }
    }

    /// `false` if the file system or the range's alignment does not allow it.
    fn allocate(&self, mode: FallocateFlags, range: &Range<u64>) -> io::Result<bool> {
        let length = range.end - range.start;
        loop {
            match rustix::fs::fallocate(&self.file, mode, range.start, length) {
                Ok(()) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => {
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn fill_with_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        let zeroes =
            vec![0; ZEROES.min(usize::try_from(range.end - range.start).unwrap_or(ZEROES))];
        let mut offset = range.start;
        while offset < range.end {
            let count = zeroes.len().min(usize::try_from(range.end - offset).unwrap_or(ZEROES));
            let part = &zeroes[..count];
            self.file_for(part.as_ptr(), count, offset).write_all_at(part, offset)?;
            offset += count as u64;
        }
        Ok(())
    }
}

impl Drop for RawDisk {
    fn drop(&mut self) {
        unlock_file(&self.file);
    }
}

impl Disk for RawDisk {
    fn len(&self) -> u64 {
        self.length
    }

    fn version(&self) -> Option<String> {
        Some(format!("raw {}", crate::source::version(&self.file)?))
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.check_access(offset, buffer.len())?;
        let file = self.file_for(buffer.as_ptr(), buffer.len(), offset);
        file.read_exact_at(buffer, offset).map_err(self.io("read"))
    }

    fn write_at(&self, buffer: &[u8], offset: u64) -> Result<()> {
        self.check_change(&(offset..offset.saturating_add(buffer.len() as u64)))?;
        let file = self.file_for(buffer.as_ptr(), buffer.len(), offset);
        file.write_all_at(buffer, offset).map_err(self.io("write to"))
    }

    fn flush(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        // One call is enough for both descriptions, since they share the file's pages.
        self.file.sync_data().map_err(self.io("flush"))
    }

    fn discard(&self, range: Range<u64>) -> Result<()> {
        self.check_change(&range)?;
        if range.is_empty() || !self.discards.load(Ordering::Relaxed) {
            return Ok(());
        }
        let discarded = if self.is_block_device {
            match sys::block_discard(self.file.as_fd(), range.start, range.end - range.start) {
                Ok(()) => Ok(true),
                // Unlike EINVAL, which only says that this range is not aligned.
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(true),
                Err(error) => Err(error),
            }
        } else {
            self.allocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, &range)
        };
        if !discarded.map_err(self.io("discard a part of"))? {
            self.discards.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    fn write_zeroes(&self, range: Range<u64>, unmap: bool) -> Result<()> {
        self.check_change(&range)?;
        if range.is_empty() {
            return Ok(());
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let zero = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        let io = self.io("write zeroes to");
        if unmap && self.allocate(punch, &range).map_err(&io)? {
            return Ok(());
        }
        if self.allocate(zero, &range).map_err(&io)? {
            return Ok(());
        }
        self.fill_with_zeroes(range).map_err(io)
    }

    fn map(&self, range: Range<u64>) -> Result<Extent<'_>> {
        self.check(&range)?;
        let data = |end: u64| Extent {
            range: range.start..end.clamp(range.start, range.end),
            content: Content::Data(Some(Location {
                file: self.file.as_fd(),
                offset: range.start,
                is_lasting: self.buffered.is_none(),
            })),
        };
        if range.is_empty() || self.is_block_device {
            return Ok(data(range.end));
        }
        // Seeking moves the description's position, which nothing here uses.
        match rustix::fs::seek(&self.file, SeekFrom::Data(range.start)) {
            // To find the end can take longer than to read so little.
            Ok(start) if start <= range.start && range.end - range.start <= SMALL => {
                Ok(data(range.end))
            }
            Ok(start) if start <= range.start => {
                match rustix::fs::seek(&self.file, SeekFrom::Hole(range.start)) {
                    Ok(end) if end > range.start => Ok(data(end)),
                    _ => Ok(data(range.end)),
                }
            }
            Ok(start) => {
                Ok(Extent { range: range.start..start.min(range.end), content: Content::Hole })
            }
            // No data follows up to the end of the file.
            Err(Errno::NXIO) => Ok(Extent { range, content: Content::Hole }),
            // The file system cannot tell.
            Err(_) => Ok(data(range.end)),
        }
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn direct_file(&self) -> Option<&dyn DirectFile> {
        Some(self)
    }
}

impl DirectFile for RawDisk {
    fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn memory_alignment(&self) -> u32 {
        self.memory_alignment
    }

    fn offset_alignment(&self) -> u32 {
        self.offset_alignment
    }

    fn punches_holes(&self) -> bool {
        !self.is_block_device && self.discards.load(Ordering::Relaxed)
    }
}

const _: () = assert!((ZEROES as u64).is_multiple_of(SECTOR_SIZE));
