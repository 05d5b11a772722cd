//! Who may use a file at the same time.
//!
//! A writer excludes everybody, readers exclude writers. The locks belong to the open file description
//! (a `fork` or a second open does not lose them) and are those of QEMU's "file" driver, so that both
//! programs respect each other: QEMU holds a shared lock on byte 100 + n for each permission n that it
//! uses and on byte 200 + n for each that it does not share.
//!
//! Other programs lock nothing (VirtualBox, VMware's on a desktop): those of this computer are found by what they have open.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::{self, Lock, LockRange};
use crate::{Error, Holder, Result};

const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;
const USED: i64 = 100;
const UNSHARED: i64 = 200;

/// How long others are waited for that have a file open for writing.
const PATIENCE: Duration = Duration::from_millis(200);

const WHOLE_FILE: LockRange = LockRange { start: 0, length: 0 };

/// Locks the file for as long as `file` or a duplicate of it is open.
pub(super) fn lock_file(path: &Path, file: &File, read_only: bool) -> Result<()> {
    let locked = if read_only { lock_reader(file) } else { lock_writer(file) };
    match locked {
        Ok(true) => match find_writer(file, read_only) {
            Some(holder) => Err(Error::InUse { path: path.to_owned(), holder }),
            None => Ok(()),
        },
        Ok(false) => Err(Error::InUse { path: path.to_owned(), holder: find_holder(file) }),
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

/// Looks for a process that holds a lock on the same file. `/proc/locks` names no process for locks of
/// descriptions, but each process's `fdinfo` tells of them.
pub(super) fn find_holder(file: &File) -> Holder {
    let found = file.metadata().ok().and_then(|wanted| {
        find_process(|pid, descriptor| {
            is_same_file(pid, descriptor, &wanted) && has_lock(pid, descriptor)
        })
    });
    found.unwrap_or(Holder::Unknown)
}

/// Looks for another process that has the file open for writing.
fn find_writer(file: &File, read_only: bool) -> Option<Holder> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        // Mostly the kernel says that there is none. Where it does not (some network file systems never do), those are asked who
        // are there: what no process has open, as a loop device's file, may be in use or not.
        if sys::is_unused(file.as_fd(), !read_only).unwrap_or(true) {
            return None;
        }
        let holder = find_other_writer(file)?;
        // A child process that is just being started, or a program that is just ending, lets go of it soon.
        if Instant::now() >= deadline {
            return Some(holder);
        }
        thread::sleep(PATIENCE / 20);
    }
}

fn find_other_writer(file: &File) -> Option<Holder> {
    let wanted = file.metadata().ok()?;
    find_process(|pid, descriptor| {
        is_other(pid) && is_same_file(pid, descriptor, &wanted) && can_write(pid, descriptor)
    })
}

/// Looks for a process that has the same block device open.
pub(super) fn find_opener(path: &Path) -> Holder {
    let found = std::fs::metadata(path).ok().and_then(|wanted| {
        find_process(|pid, descriptor| is_other(pid) && is_same_device(pid, descriptor, &wanted))
    });
    found.unwrap_or(Holder::Unknown)
}

/// The first process with such a descriptor.
fn find_process(is_wanted: impl Fn(u32, &str) -> bool) -> Option<Holder> {
    let has_one = |pid| descriptors(pid).any(|descriptor| is_wanted(pid, &descriptor));
    let pid = processes().find(|&pid| has_one(pid))?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(Holder::Process { pid, name: name.trim_end().to_owned() })
}

fn is_other(pid: u32) -> bool {
    pid != std::process::id()
}

fn processes() -> impl Iterator<Item = u32> {
    names_in("/proc".to_owned()).filter_map(|name| name.parse().ok())
}

fn descriptors(pid: u32) -> impl Iterator<Item = String> {
    names_in(format!("/proc/{pid}/fd"))
}

fn names_in(folder: String) -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

fn is_same_file(pid: u32, descriptor: &str, wanted: &std::fs::Metadata) -> bool {
    std::fs::metadata(format!("/proc/{pid}/fd/{descriptor}"))
        .is_ok_and(|found| found.dev() == wanted.dev() && found.ino() == wanted.ino())
}

fn is_same_device(pid: u32, descriptor: &str, wanted: &std::fs::Metadata) -> bool {
    std::fs::metadata(format!("/proc/{pid}/fd/{descriptor}"))
        .is_ok_and(|found| found.mode() == wanted.mode() && found.rdev() == wanted.rdev())
}

fn can_write(pid: u32, descriptor: &str) -> bool {
    let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}"));
    let flags = info.ok().and_then(|info| {
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?.trim();
        libc::c_int::from_str_radix(flags, 8).ok()
    });
    flags.is_some_and(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY)
}

fn has_lock(pid: u32, descriptor: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}"))
        .is_ok_and(|info| info.lines().any(|line| line.starts_with("lock:")))
}
