//! The system calls that no safe wrapper here has.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What an open file description claims of a range of bytes (fcntl(2), "Open file description locks").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lock {
    Shared,
    Exclusive,
    None,
}

/// A range of bytes from `start`; up to the end of every possible file where `length` is 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LockRange {
    pub start: i64,
    pub length: i64,
}

/// Takes a lock that lasts until the description is closed; `false` if another description's lock
/// excludes it.
pub(crate) fn try_lock(file: BorrowedFd<'_>, lock: Lock, range: LockRange) -> io::Result<bool> {
    match ofd_lock(file, libc::F_OFD_SETLK, lock, range) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Whether another description's lock would exclude this one.
pub(crate) fn would_conflict(
    file: BorrowedFd<'_>,
    lock: Lock,
    range: LockRange,
) -> io::Result<bool> {
    let found = ofd_lock(file, libc::F_OFD_GETLK, lock, range)?;
    Ok(found.l_type != libc::F_UNLCK as libc::c_short)
}

fn ofd_lock(
    file: BorrowedFd<'_>,
    command: libc::c_int,
    lock: Lock,
    range: LockRange,
) -> io::Result<libc::flock> {
    let mut flock = libc::flock {
        l_type: match lock {
            Lock::Shared => libc::F_RDLCK as libc::c_short,
            Lock::Exclusive => libc::F_WRLCK as libc::c_short,
            Lock::None => libc::F_UNLCK as libc::c_short,
        },
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: range.start,
        l_len: range.length,
        // The kernel demands 0 here for locks of descriptions.
        l_pid: 0,
    };
    // SAFETY: the descriptor is open while it is borrowed, and both commands read and write exactly the
    // one `flock` that the pointer leads to.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut flock) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(flock) }
}

/// Whether nobody writes to the file through another description, nor reads it if `alone`: a lease, which is given back
/// at once, is granted for just that (fcntl(2), "Leases"). An error where there are none.
pub(crate) fn is_unused(file: BorrowedFd<'_>, alone: bool) -> io::Result<bool> {
    let call = |command, argument: libc::c_int| {
        // SAFETY: the descriptor is open while it is borrowed, and these commands take an integer.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), command, argument) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // Whoever opens the file meanwhile has a signal sent here: one that does nothing, not the one that ends us.
    call(F_SETSIG, libc::SIGURG)?;
    let lease = if alone { libc::F_WRLCK } else { libc::F_RDLCK };
    match call(libc::F_SETLEASE, lease as libc::c_int) {
        Ok(()) => call(libc::F_SETLEASE, libc::F_UNLCK as libc::c_int).map(|()| true),
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Of linux/fcntl.h.
const F_SETSIG: libc::c_int = 10;

/// Numbers that nobody can guess, for identifiers.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let mut done = 0;
    while done < N {
        // SAFETY: the pointer and the length are those of the rest of `bytes`, which the call fills.
        let count = unsafe { libc::getrandom(bytes[done..].as_mut_ptr().cast(), N - done, 0) };
        // It fails only if it is interrupted, as long as the kernel has it (3.17).
        done += usize::try_from(count).unwrap_or(0);
    }
    bytes
}

/// A random UUID (RFC 9562, version 4).
pub(crate) fn uuid() -> [u8; 16] {
    let mut bytes: [u8; 16] = random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

/// Tells a block device that a range is not needed any more (BLKDISCARD of linux/fs.h).
pub(crate) fn block_discard(file: BorrowedFd<'_>, offset: u64, length: u64) -> io::Result<()> {
    const BLKDISCARD: rustix::ioctl::Opcode = rustix::ioctl::opcode::none(0x12, 119);
    let range = [offset, length];
    // SAFETY: the descriptor is open while it is borrowed, and BLKDISCARD reads the two integers of 64
    // bits that the pointer leads to.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD as _, range.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets a range of one file share the space of another file's range (FICLONERANGE of linux/fs.h).
pub(crate) fn clone_range(
    from: BorrowedFd<'_>,
    from_offset: u64,
    to: BorrowedFd<'_>,
    to_offset: u64,
    length: u64,
) -> io::Result<()> {
    #[repr(C)]
    struct FileCloneRange {
        src_fd: i64,
        src_offset: u64,
        src_length: u64,
        dest_offset: u64,
    }
    const FICLONERANGE: rustix::ioctl::Opcode =
        rustix::ioctl::opcode::write::<FileCloneRange>(0x94, 13);
    let range = FileCloneRange {
        src_fd: from.as_raw_fd().into(),
        src_offset: from_offset,
        src_length: length,
        dest_offset: to_offset,
    };
    // SAFETY: both descriptors are open while they are borrowed, and FICLONERANGE reads the one structure that
    // the pointer leads to.
    let result = unsafe { libc::ioctl(to.as_raw_fd(), FICLONERANGE as _, &raw const range) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
