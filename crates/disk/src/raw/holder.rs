//! Who uses a file or a device on this computer: found by what processes have open and what is mounted.

use std::fs::{File, Metadata};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::{Holder, sys};

/// How long others are waited for that have a file open for writing.
const PATIENCE: Duration = Duration::from_millis(200);

/// Looks for a process that holds a lock on the same file. `/proc/locks` names no process for locks of
/// descriptions, but each process's `fdinfo` tells of them.
pub(super) fn find_locker(file: &File) -> Holder {
    let found = file.metadata().ok().and_then(|wanted| {
        find_process(|pid, descriptor| {
            is_same_file(pid, descriptor, &wanted) && has_lock(pid, descriptor)
        })
    });
    found.unwrap_or(Holder::Unknown)
}

/// Looks for another process, or a file system, that has the file open for writing.
pub(super) fn find_writer(file: &File, read_only: bool) -> Option<Holder> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        // Mostly the kernel says that there is none. Where it does not (some network file systems never do), those are asked who
        // are there.
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
    let process = find_process(|pid, descriptor| {
        is_other(pid) && is_same_file(pid, descriptor, &wanted) && can_write(pid, descriptor)
    });
    process.or_else(|| find_loop(&wanted))
}

/// Looks for a loop device of the file that a file system or a volume uses: the kernel writes by it, no process.
fn find_loop(wanted: &Metadata) -> Option<Holder> {
    let mounts = ["/proc/mounts", "/proc/swaps"]
        .map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let is_used = |device: &str| {
        let source = format!("/dev/{device}");
        let is_mounted = |line: &str| line.split_ascii_whitespace().next() == Some(&source);
        mounts.iter().any(|text| text.lines().any(is_mounted))
            || names_in(format!("/sys/class/block/{device}/holders")).next().is_some()
    };
    names_in("/sys/block".to_owned()).find_map(|device| {
        let file =
            std::fs::read_to_string(format!("/sys/block/{device}/loop/backing_file")).ok()?;
        let is_of_file = std::fs::metadata(file.trim_end_matches('\n'))
            .is_ok_and(|found| is_same(&found, wanted));
        let mut parts =
            names_in(format!("/sys/block/{device}")).filter(|name| name.starts_with(&device));
        let is_used = is_of_file && (is_used(&device) || parts.any(|part| is_used(&part)));
        is_used.then_some(Holder::Loop(device))
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

fn is_same_file(pid: u32, descriptor: &str, wanted: &Metadata) -> bool {
    std::fs::metadata(format!("/proc/{pid}/fd/{descriptor}"))
        .is_ok_and(|found| is_same(&found, wanted))
}

fn is_same(found: &Metadata, wanted: &Metadata) -> bool {
    (found.dev(), found.ino()) == (wanted.dev(), wanted.ino())
}

fn is_same_device(pid: u32, descriptor: &str, wanted: &Metadata) -> bool {
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
