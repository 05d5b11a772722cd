//! What the guest has open.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, FileType, Mode, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::names::Creation;
use super::{Answer, Folder};
use crate::virtio::fs::device::Cache;
use crate::virtio::fs::nodes::{RESOLVE, checked_name, stat_at};
use crate::virtio::fs::wire::{self, Dirent, EntryOut, OpenOut};

/// Bytes of folder entries in one answer at most.
const ENTRIES_SIZE: usize = 128 << 10;

/// Flags of open(2) that the guest may choose, besides the access mode.
const GUEST_FLAGS: OFlags =
    OFlags::APPEND.union(OFlags::TRUNC).union(OFlags::SYNC).union(OFlags::DSYNC);
/// Flags that every open has. NONBLOCK concerns files that have become something else meanwhile.
const OUR_FLAGS: OFlags = OFlags::CLOEXEC.union(OFlags::NOCTTY).union(OFlags::NONBLOCK);

#[derive(Default)]
pub(super) struct Handles {
    pub open: HashMap<u64, Arc<Handle>>,
    pub next: u64,
}

/// A file or folder that the guest has open.
pub struct Handle {
    pub(super) node: u64,
    pub(super) flags: u32,
    /// `None` if it was not found after a restore.
    pub(super) file: Option<OwnedFd>,
    /// Of a folder: where the next entry is read from.
    pub(super) position: Option<Mutex<u64>>,
}

impl Folder {
    pub fn open_file(&self, node: u64, flags: u32) -> Answer<OpenOut> {
        let file = self.open_node(node, self.allowed(flags)?)?;
        self.add_handle(node, flags, file, false)
    }

    pub fn open_folder(&self, node: u64) -> Answer<OpenOut> {
        let file = self.open_node(node, OFlags::RDONLY | OFlags::DIRECTORY)?;
        self.add_handle(node, 0, file, true)
    }

    pub fn create(&self, at: Creation, name: &[u8], flags: u32) -> Answer<(EntryOut, OpenOut)> {
        let name = checked_name(name)?;
        let folder = self.nodes.folder(at.parent)?;
        let wanted = self.allowed(flags)?;
        let create = wanted | OUR_FLAGS | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(at.mode & 0o7777);
        match rustix::fs::openat2(&*folder, name.as_c_str(), create, mode, RESOLVE) {
            Ok(file) => {
                let entry = self.created(at, &folder, &name, true)?;
                let handle = self.add_handle(entry.nodeid.get(), flags, file, false);
                self.or_forget(entry, handle)
            }
            Err(Errno::EXIST) if !OFlags::from_bits_retain(flags).contains(OFlags::EXCL) => {
                let stat = stat_at(&folder, &name)?;
                let entry = self.entry(at.parent, &name, &stat)?;
                let handle = self.open_file(entry.nodeid.get(), flags);
                self.or_forget(entry, handle)
            }
            Err(error) => Err(error),
        }
    }

    pub fn close(&self, handle: u64) {
        self.handles().open.remove(&handle);
    }

    /// What the guest has open as `handle`.
    pub fn handle(&self, handle: u64) -> Answer<Arc<Handle>> {
        self.handles().open.get(&handle).cloned().ok_or(Errno::BADF)
    }

    /// As many entries of an open folder from `offset` as fit into `size` bytes, with (`plus`) or
    /// without their attributes.
    pub fn entries(&self, handle: u64, offset: u64, size: usize, plus: bool) -> Answer<Vec<u8>> {
        let handle = self.handle(handle)?;
        let position = handle.position.as_ref().ok_or(Errno::NOTDIR)?;
        let file = handle.file()?;
        if self.nodes.kind(handle.node)?.1 {
            return Ok(Vec::new());
        }
        let device = rustix::fs::fstat(file)?.st_dev;
        let size = size.min(ENTRIES_SIZE);
        let mut position = position.lock().unwrap_or_else(PoisonError::into_inner);
        if *position != offset {
            rustix::fs::seek(file, SeekFrom::Start(offset))?;
        }
        // What is read of the folder and does not fit is read again.
        *position = u64::MAX;
        let mut answer = Vec::new();
        let mut space = vec![MaybeUninit::uninit(); size.max(1024)];
        let mut entries = RawDir::new(file, &mut space);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) if answer.is_empty() => return Err(error),
                Err(_) => break,
            };
            let name = entry.file_name();
            let head = if plus { size_of::<EntryOut>() } else { 0 } + size_of::<Dirent>();
            let length = (head + name.to_bytes().len()).next_multiple_of(8);
            if answer.len() + length > size {
                break;
            }
            if plus {
                answer.extend(self.entry_of(handle.node, name).as_bytes());
            }
            let dirent = Dirent {
                ino: self.nodes.inode_number(device, entry.ino()).into(),
                off: entry.next_entry_cookie().into(),
                namelen: (name.to_bytes().len() as u32).into(),
                kind: (entry.file_type().as_raw_mode() >> 12).into(),
            };
            answer.extend(dirent.as_bytes());
            answer.extend(name.to_bytes());
            answer.resize(answer.len().next_multiple_of(8), 0);
        }
        Ok(answer)
    }

    /// The flags of open(2) for what a guest asked for.
    pub(super) fn allowed(&self, flags: u32) -> Answer<OFlags> {
        let flags = OFlags::from_bits_retain(flags);
        let access = flags & OFlags::RWMODE;
        if self.config.readonly && (access != OFlags::RDONLY || flags.contains(OFlags::TRUNC)) {
            return Err(Errno::ROFS);
        }
        Ok(access | (flags & GUEST_FLAGS))
    }

    /// Opens a node that is a regular file, or a folder where `flags` say so.
    pub(super) fn open_node(&self, node: u64, flags: OFlags) -> Answer<OwnedFd> {
        let place = self.nodes.fd(node)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&*place)?.st_mode);
        match kind {
            FileType::RegularFile => {}
            FileType::Directory if flags.contains(OFlags::DIRECTORY) => {}
            FileType::Directory => return Err(Errno::ISDIR),
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::NXIO),
        }
        let name = self.descriptor_name(&place);
        rustix::fs::openat(&self.descriptors, name.as_c_str(), flags | OUR_FLAGS, Mode::empty())
    }

    fn add_handle(&self, node: u64, flags: u32, file: OwnedFd, folder: bool) -> Answer<OpenOut> {
        let open_flags = match self.config.cache {
            Cache::Always if folder => wire::open::KEEP_CACHE | wire::open::CACHE_DIR,
            Cache::Always => wire::open::KEEP_CACHE,
            Cache::Auto if folder => 0,
            Cache::Auto if self.nodes.is_unchanged(node, &rustix::fs::fstat(&file)?) => {
                wire::open::KEEP_CACHE
            }
            Cache::Auto => 0,
        };
        let mut handles = self.handles();
        if handles.open.len() >= self.most_handles {
            return Err(Errno::NFILE);
        }
        let id = handles.next;
        handles.next += 1;
        // A file that is opened again after a restore is neither created nor cut.
        let flags = flags & !(OFlags::TRUNC | OFlags::CREATE | OFlags::EXCL).bits();
        let position = folder.then(|| Mutex::new(0));
        handles.open.insert(id, Arc::new(Handle { node, flags, file: Some(file), position }));
        Ok(OpenOut { fh: id.into(), open_flags: open_flags.into(), padding: 0.into() })
    }

    /// `entry` with `handle`; without one the guest does not learn of the entry.
    fn or_forget(&self, entry: EntryOut, handle: Answer<OpenOut>) -> Answer<(EntryOut, OpenOut)> {
        handle.map(|handle| (entry, handle)).inspect_err(|_| self.forget(entry.nodeid.get(), 1))
    }

    pub(super) fn handles(&self) -> MutexGuard<'_, Handles> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handle {
    /// The open file.
    pub fn file(&self) -> Answer<&OwnedFd> {
        self.file.as_ref().ok_or(Errno::STALE)
    }

    /// The open file, if it is none of folders.
    pub fn content(&self) -> Answer<&OwnedFd> {
        if self.position.is_some() { Err(Errno::ISDIR) } else { self.file() }
    }

    pub fn synchronise(&self, data_only: bool) -> Answer<()> {
        let file = self.file()?;
        if data_only { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) }
    }

    pub fn allocate(&self, mode: u32, offset: u64, length: u64) -> Answer<()> {
        let mode = FallocateFlags::from_bits_retain(mode);
        rustix::fs::fallocate(self.content()?, mode, offset, length)
    }

    pub fn seek(&self, offset: u64, whence: u32) -> Answer<u64> {
        // The others Linux does by itself.
        let to = match whence {
            3 => SeekFrom::Data(offset),
            4 => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        rustix::fs::seek(self.content()?, to)
    }

    pub fn copy_to(
        &self,
        mut offset: u64,
        target: &Self,
        mut target_offset: u64,
        length: u64,
    ) -> Answer<usize> {
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(1 << 30);
        rustix::fs::copy_file_range(
            self.content()?,
            Some(&mut offset),
            target.content()?,
            Some(&mut target_offset),
            length,
        )
    }
}
