use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::{Source, WritableSource, truncated};
use crate::raw::{OpenOptions, open_locked, unlock_file};
use crate::{Error, Result, sys};

/// A regular file or a block device, locked like a [`RawDisk`](crate::RawDisk).
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    file: File,
    length: AtomicU64,
    identity: (u64, u64),
    read_only: bool,
    /// It never becomes shorter than this.
    least: u64,
}

impl FileSource {
    /// Opens and locks the file or block device at `path`.
    pub fn open(path: impl AsRef<Path>, read_only: bool) -> Result<Self> {
        let path = path.as_ref();
        let opened = open_locked(path, &OpenOptions { read_only, direct: false })?;
        Ok(Self {
            path: path.to_owned(),
            identity: (opened.metadata.dev(), opened.metadata.ino()),
            length: opened.length.into(),
            file: opened.file,
            read_only,
            least: 0,
        })
    }

    /// Makes a new, empty file; refuses to replace one.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        File::options().write(true).create_new(true).open(path).map_err(|source| Error::Io {
            action: "create",
            path: path.to_owned(),
            source,
        })?;
        Self::open(path, false)
    }

    /// As if it was new, while the file keeps what it has until something else is written there.
    pub(crate) fn open_again(path: impl AsRef<Path>) -> Result<Self> {
        let mut opened = Self::open(path, false)?;
        opened.least = opened.len();
        opened.length = AtomicU64::new(0);
        Ok(opened)
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes space for `range` from the file system, or does nothing where that cannot.
    pub(crate) fn allocate(&self, range: Range<u64>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let mode = FallocateFlags::empty();
        match rustix::fs::fallocate(&self.file, mode, range.start, range.end - range.start) {
            Ok(()) => {
                self.length.fetch_max(range.end, Ordering::AcqRel);
                Ok(())
            }
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => Ok(()),
            Err(error) => Err(self.io("take space for")(error.into())),
        }
    }

    /// What tells this file from every other one: device and inode numbers.
    pub(crate) fn identity(&self) -> (u64, u64) {
        self.identity
    }

    fn io(&self, action: &'static str) -> impl Fn(io::Error) -> Error + '_ {
        move |source| Error::Io { action, path: self.path.clone(), source }
    }
}

/// What tells a file from every other one, and from itself before a change.
pub(crate) fn version(file: &File) -> Option<String> {
    let found = file.metadata().ok().filter(|found| found.is_file())?;
    let (device, number, length) = (found.dev(), found.ino(), found.len());
    Some(format!("{device}:{number}:{length}:{}.{:09}", found.mtime(), found.mtime_nsec()))
}

impl Drop for FileSource {
    fn drop(&mut self) {
        unlock_file(&self.file);
    }
}

impl Source for FileSource {
    fn len(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.len()) {
            return Err(truncated(self, offset, buffer.len()));
        }
        self.file.read_exact_at(buffer, offset).map_err(self.io("read"))
    }

    fn name(&self) -> Option<String> {
        Some(self.path.file_name()?.to_string_lossy().into_owned())
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn version(&self) -> Option<String> {
        version(&self.file)
    }

    fn writable(&self) -> Option<&dyn WritableSource> {
        (!self.read_only).then_some(self)
    }
}

impl WritableSource for FileSource {
    fn write_at(&self, buffer: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(buffer, offset).map_err(self.io("write to"))?;
        self.length.fetch_max(offset.saturating_add(buffer.len() as u64), Ordering::AcqRel);
        Ok(())
    }

    fn can_share(&self, from: BorrowedFd<'_>) -> bool {
        // No file system shares single bytes: one that could share says that the range is wrong.
        let tried = sys::clone_range(from, 1, self.file.as_fd(), 1, 1);
        tried.is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL))
    }

    fn share(&self, from: BorrowedFd<'_>, from_offset: u64, offset: u64, length: u64) -> bool {
        let file = self.file.as_fd();
        let is_shared = sys::clone_range(from, from_offset, file, offset, length).is_ok();
        if is_shared {
            self.length.fetch_max(offset.saturating_add(length), Ordering::AcqRel);
        }
        is_shared
    }

    fn set_len(&self, length: u64) -> Result<()> {
        self.file.set_len(length.max(self.least)).map_err(self.io("change the length of"))?;
        self.length.store(length, Ordering::Release);
        Ok(())
    }

    fn punch(&self, range: Range<u64>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, mode, range.start, range.end - range.start) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => Ok(()),
            Err(error) => Err(self.io("discard a part of")(error.into())),
        }
    }

    fn flush(&self) -> Result<()> {
        self.file.sync_data().map_err(self.io("flush"))
    }
}
