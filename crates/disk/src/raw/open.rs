//! Opening files and block devices.

use std::fs::{File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use rustix::fs::{AtFlags, OFlags, StatxFlags};

use super::holder::find_opener;
use super::lock::lock_file;
use super::{OpenOptions, RawDisk};
use crate::{Error, Geometry, Result, SECTOR_SIZE};

/// Alignment that satisfies every device with blocks of at most a page.
const SAFE_ALIGNMENT: u32 = 4096;

pub(super) fn open(path: &Path, options: &OpenOptions) -> Result<RawDisk> {
    let Opened { file, metadata: opened, is_block_device, length } = open_locked(path, options)?;
    let rest = length % SECTOR_SIZE;
    if rest != 0 {
        tracing::warn!(
            disk = %path.display(),
            "The length is no multiple of {SECTOR_SIZE}: the last {rest} bytes are left out"
        );
    }

    let (memory_alignment, offset_alignment) =
        if options.direct { direct_alignment(&file, is_block_device) } else { (1, 1) };
    let buffered = if options.direct { Some(reopen(path, options, &opened)?) } else { None };
    let geometry = geometry(&file, &opened, is_block_device, offset_alignment);
    Ok(RawDisk {
        path: path.to_owned(),
        file,
        buffered,
        length: length - rest,
        read_only: options.read_only,
        is_block_device,
        memory_alignment,
        offset_alignment,
        geometry,
        discards: AtomicBool::new(true),
    })
}

/// A file or block device that is open and locked.
pub(crate) struct Opened {
    pub file: File,
    pub metadata: Metadata,
    pub is_block_device: bool,
    pub length: u64,
}

/// Opens and locks a file or block device.
pub(crate) fn open_locked(path: &Path, options: &OpenOptions) -> Result<Opened> {
    // Before opening, because opening a FIFO blocks and opening a character device may do anything.
    let metadata =
        std::fs::metadata(path).map_err(|source| Error::Open { path: path.to_owned(), source })?;
    let is_block_device = check_type(path, &metadata)?;

    let mut flags = OFlags::empty();
    if is_block_device && !options.read_only {
        // Excludes mounts and whoever else asks for exclusion.
        flags |= OFlags::EXCL;
    }
    let direct = if options.direct { OFlags::DIRECT } else { OFlags::empty() };
    let mut file = match open_file(path, options, flags | direct) {
        Err(error) if is_block_device && error.raw_os_error() == Some(libc::EBUSY) => {
            return Err(Error::InUse { path: path.to_owned(), holder: find_opener(path) });
        }
        opened => opened.map_err(|source| Error::Open { path: path.to_owned(), source })?,
    };
    let io = |action| move |source| Error::Io { action, path: path.to_owned(), source };
    let opened = file.metadata().map_err(io("look at"))?;
    if opened.dev() != metadata.dev() || opened.ino() != metadata.ino() {
        let source = io::Error::other("it was replaced while it was opened");
        return Err(Error::Open { path: path.to_owned(), source });
    }
    lock_file(path, &file, options.read_only)?;

    let length = if is_block_device {
        file.seek(SeekFrom::End(0)).map_err(io("find the length of"))?
    } else {
        opened.len()
    };
    Ok(Opened { file, metadata: opened, is_block_device, length })
}

/// Whether it is a block device; an error if it is not a file either.
fn check_type(path: &Path, metadata: &Metadata) -> Result<bool> {
    let file_type = metadata.file_type();
    let kind = if file_type.is_file() {
        return Ok(false);
    } else if file_type.is_block_device() {
        return Ok(true);
    } else if file_type.is_dir() {
        "a folder"
    } else if file_type.is_char_device() {
        "a character device"
    } else if file_type.is_fifo() {
        "a pipe"
    } else if file_type.is_socket() {
        "a socket"
    } else {
        "something else"
    };
    Err(Error::NotADisk { path: path.to_owned(), kind })
}

fn open_file(path: &Path, options: &OpenOptions, flags: OFlags) -> io::Result<File> {
    let flags = flags.bits().cast_signed();
    File::options().read(true).write(!options.read_only).custom_flags(flags).open(path)
}

/// A second description of the same file without O_DIRECT, for what O_DIRECT cannot do. The kernel
/// keeps the page cache and direct I/O of one file coherent.
fn reopen(path: &Path, options: &OpenOptions, opened: &Metadata) -> Result<File> {
    let failed = |source| Error::Open { path: path.to_owned(), source };
    let file = open_file(path, options, OFlags::empty()).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.dev() != opened.dev() || metadata.ino() != opened.ino() {
        return Err(failed(io::Error::other("it was replaced while it was opened")));
    }
    Ok(file)
}

/// What O_DIRECT asks of addresses and of offsets.
fn direct_alignment(file: &File, is_block_device: bool) -> (u32, u32) {
    if let Ok(found) = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        let (memory, offset) = (found.stx_dio_mem_align, found.stx_dio_offset_align);
        if memory.is_power_of_two() && offset.is_power_of_two() {
            return (memory, offset);
        }
    }
    // Linux before 6.1 does not say.
    if is_block_device {
        let block = rustix::fs::ioctl_blksszget(file).unwrap_or(SAFE_ALIGNMENT);
        let block = if block.is_power_of_two() { block } else { SAFE_ALIGNMENT };
        return (block, block);
    }
    let sector = SECTOR_SIZE as usize;
    let mut probe = vec![0; 2 * sector];
    let start = probe.as_ptr().align_offset(sector);
    let aligned = start <= sector && file.read_at(&mut probe[start..start + sector], 0).is_ok();
    let alignment = if aligned { sector as u32 } else { SAFE_ALIGNMENT };
    (alignment, alignment)
}

/// A file's guest always sees sectors of 512 bytes, since partition tables count in the unit that they
/// were made with; the larger blocks beneath are its hint for alignment.
fn geometry(
    file: &File,
    metadata: &Metadata,
    is_block_device: bool,
    offset_alignment: u32,
) -> Geometry {
    let sector = SECTOR_SIZE as u32;
    let block =
        |size: u32, least: u32| if size.is_power_of_two() { size.max(least) } else { least };
    if is_block_device {
        let logical = block(rustix::fs::ioctl_blksszget(file).unwrap_or(sector), sector);
        let physical = block(rustix::fs::ioctl_blkpbszget(file).unwrap_or(logical), logical);
        return Geometry {
            logical_block: logical,
            physical_block: physical,
            discard_granularity: physical,
        };
    }
    let block_size = block(u32::try_from(metadata.blksize()).unwrap_or(0).min(1 << 20), sector);
    Geometry {
        logical_block: sector,
        physical_block: block(block_size.min(SAFE_ALIGNMENT), offset_alignment.max(sector)),
        discard_granularity: block(block_size, offset_alignment.max(SAFE_ALIGNMENT)),
    }
}
