//! Virtual disks: formats, chains and the I/O beneath them.
//!
//! A [`Disk`] is bytes that a guest reads and writes by offset, whatever the format and however many
//! files it lies in. What only some disks can do is a capability that is asked for, such as
//! [`Disk::direct_file`].
//!
//! # Layers
//!
//! A [`Source`] is bytes by offset: a file, a block device, memory. A format is a map from guest offsets
//! to places in its sources; it reads its tables and nothing else, so every format works over every source.
//! [`open`] puts an image's chain of parents together.
//!
//! # Detection
//!
//! [`open`] finds out formats by content. A raw disk's first and last bytes are its guest's, which could
//! write another format's header there and name any file beside the image as its parent. So the format of a disk
//! that a guest has written is stated ([`ImageOptions::format`], or [`RawDisk`]); it is found out once, when
//! the disk is taken into a virtual machine, and remembered with it. What an image names must lie in
//! its folder unless [`ImageOptions::files`] says otherwise.

#![deny(unsafe_code)]

#[cfg(test)]
mod absurd;
mod archive;
mod asif;
mod blocks;
mod cache;
mod check;
mod codec;
mod commit;
mod compare;
mod convert;
#[cfg(test)]
mod crash;
mod create;
mod dmg;
mod error;
mod extent;
mod format;
mod fuzz;
mod layer;
mod open;
mod parallels;
mod qcow;
mod qcow2;
mod qed;
mod raw;
mod rebase;
mod resize;
mod snapshot;
mod source;
#[allow(unsafe_code)]
mod sys;
mod vdi;
mod vhd;
mod vhdx;
mod vma;
mod vmdk;

use std::ops::Range;
use std::os::fd::BorrowedFd;

pub use archive::{Member, MemberKind, Members, is_tar, open_source};
pub use check::{Checkup, check};
pub use commit::{Committed, commit};
pub use compare::{Comparison, compare, read_all};
pub use convert::{Compression, ConvertOptions, Report, UnknownCompression, convert};
pub use create::{CreateOptions, Layout, Preallocation, WrongOption, create};
pub use error::{Error, Holder, Result};
pub use extent::{Content, Extent, Extents, Location};
pub use format::{Format, UnknownFormat};
pub use fuzz::fuzz;
pub use open::{
    FilePolicy, ImageInfo, ImageOptions, MAX_LENGTH, Snapshot, bundle_descriptor, open, open_chain,
    open_over, open_remote, open_url, overlay,
};
pub use qcow2::{Qcow2Options, create_qcow2};
pub use raw::{OpenOptions, RawDisk};
pub use rebase::{NewParent, Rebased, rebase};
pub use resize::resize;
pub use snapshot::{create_snapshot, delete_snapshot, revert_to_snapshot};
pub use source::{
    FileSource, GzipSource, HttpError, HttpOptions, HttpSource, MemorySource, PartSource,
    ReadAhead, RemoteSource, Source, WritableSource, fuzz_gzip_index, is_url,
};
pub use vma::{VmaContents, vma_contents};

/// Bytes in a sector, the unit of a disk's length.
pub const SECTOR_SIZE: u64 = 512;

/// A virtual disk, shared by threads.
///
/// Offsets and lengths are in bytes of the guest's view. A range that passes the end is
/// [`Error::OutOfRange`] and nothing of it is done. Concurrent calls are allowed; what overlapping ones
/// leave behind is one or the other in each sector.
pub trait Disk: Send + Sync {
    /// Its length, a multiple of [`SECTOR_SIZE`]. It does not change.
    fn len(&self) -> u64;

    /// It has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every change is refused with [`Error::ReadOnly`].
    fn is_read_only(&self) -> bool;

    /// Fills `buffer` from `offset`.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()>;

    /// Writes all of `buffer` at `offset`. It may be lost until the next [`flush`](Disk::flush).
    fn write_at(&self, buffer: &[u8], offset: u64) -> Result<()>;

    /// Returns when everything written so far would survive a loss of power.
    fn flush(&self) -> Result<()>;

    /// The guest does not need the bytes of `range` any more: what they read as afterwards is either
    /// what they were or zeroes. A disk that cannot give back space does nothing.
    fn discard(&self, range: Range<u64>) -> Result<()>;

    /// Makes `range` read as zeroes; gives back its space where possible if `unmap`, and keeps it
    /// reserved otherwise.
    fn write_zeroes(&self, range: Range<u64>, unmap: bool) -> Result<()>;

    /// What lies at the start of `range`: an extent that begins there, is not empty unless `range` is,
    /// and does not pass its end. [`Extents`] walks over a whole range.
    fn map(&self, range: Range<u64>) -> Result<Extent<'_>>;

    /// Block sizes that suit it.
    fn geometry(&self) -> Geometry {
        Geometry::default()
    }

    /// Capability: what tells its bytes from every other disk's, and from what they were before a change.
    fn version(&self) -> Option<String> {
        None
    }

    /// Capability: the whole disk lies unchanged in one file.
    fn direct_file(&self) -> Option<&dyn DirectFile> {
        None
    }
}

/// A disk whose every guest offset is the same offset of one file, so that a device may let the
/// kernel move data between that file and guest memory.
///
/// Whoever uses the file answers for what [`Disk`] promises: ranges within its length, and no change to
/// a read-only disk.
pub trait DirectFile: Send + Sync {
    /// The file, opened for writing unless the disk is read-only.
    fn file(&self) -> BorrowedFd<'_>;

    /// What addresses of buffers must be multiples of: 1 but for O_DIRECT. A power of two.
    fn memory_alignment(&self) -> u32;

    /// What offsets and lengths must be multiples of: 1 but for O_DIRECT. A power of two. Requests that
    /// are not go through [`Disk`].
    fn offset_alignment(&self) -> u32;

    /// `fallocate` punches holes into the file, and that is all that discarding takes.
    fn punches_holes(&self) -> bool;
}

/// Block sizes in bytes, all powers of two, each at least the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Smallest unit that can be addressed.
    pub logical_block: u32,
    /// Smallest unit that can be written without reading first.
    pub physical_block: u32,
    /// Unit in which space is given back.
    pub discard_granularity: u32,
}

impl Default for Geometry {
    fn default() -> Self {
        let sector = SECTOR_SIZE as u32;
        Self { logical_block: sector, physical_block: sector, discard_granularity: sector }
    }
}
