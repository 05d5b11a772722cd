//! Who may use a file at the same time.
//!
//! A writer excludes everybody, readers exclude writers. The locks belong to the open file description
//! (a `fork` or a second open does not lose them) and are those of QEMU's "file" driver, so that both
//! programs respect each other: QEMU holds a shared lock on byte 100 + n for each permission n that it
//! uses and on byte 200 + n for each that it does not share.
//!
//! Other programs lock nothing (VirtualBox, VMware's on a desktop): see [`super::holder`].

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use super::holder::{find_locker, find_writer};
use crate::sys::{self, Lock, LockRange};
use crate::{Error, Result};

const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;
const USED: i64 = 100;
const UNSHARED: i64 = 200;

const WHOLE_FILE: LockRange = LockRange { start: 0, length: 0 };

/// Locks the file for as long as `file` or a duplicate of it is open.
pub(super) fn lock_file(path: &Path, file: &File, read_only: bool) -> Result<()> {
    let locked = if read_only { lock_reader(file) } else { lock_writer(file) };
    match locked {
        Ok(true) => match find_writer(file, read_only) {
            Some(holder) => Err(Error::InUse { path: path.to_owned(), holder }),
            None => Ok(()),
        },
        Ok(false) => Err(Error::InUse { path: path.to_owned(), holder: find_locker(file) }),
        // A file system that knows no locks (some network ones) cannot tell whether others use the file.
        Err(source)
            if matches!(
                source.raw_os_error(),
                Some(libc::ENOLCK | libc::ENOSYS | libc::EOPNOTSUPP | libc::EINVAL)
            ) =>
        {
            tracing::warn!(disk = %path.display(), "The file system has no locks; make sure that nobody else uses this disk");
            Ok(())
        }
        Err(source) => Err(Error::Io { action: "lock", path: path.to_owned(), source }),
    }
}

/// Gives up every lock at once, although a child process that is just being started may still have the
/// description.
pub(crate) fn unlock_file(file: &File) {
    // Closing the file gives them up, too, only later.
    let _ = sys::try_lock(file.as_fd(), Lock::None, WHOLE_FILE);
}

fn lock_writer(file: &File) -> io::Result<bool> {
    sys::try_lock(file.as_fd(), Lock::Exclusive, WHOLE_FILE)
}

fn lock_reader(file: &File) -> io::Result<bool> {
    for byte in [USED + CONSISTENT_READ, UNSHARED + WRITE, UNSHARED + RESIZE] {
        if !sys::try_lock(file.as_fd(), Lock::Shared, one(byte))? {
            return Ok(false);
        }
    }
    // Our own shared lock excludes no other shared one, by which QEMU says that it writes.
    for byte in [USED + WRITE, USED + RESIZE] {
        if sys::would_conflict(file.as_fd(), Lock::Exclusive, one(byte))? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn one(byte: i64) -> LockRange {
    LockRange { start: byte, length: 1 }
}
