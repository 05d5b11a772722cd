//! The shared folder: what the guest's requests do to files of the host.
//!
//! Only regular files and folders are ever opened; devices, pipes and sockets are names for the guest to
//! use with its own drivers. Everything beyond names goes through descriptors of places
//! ([`Nodes`]), so that nothing outside of the folder can be reached.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{
    Access, AtFlags, FallocateFlags, FileType, Gid, Mode, OFlags, RawDir, RenameFlags, SeekFrom,
    Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};
use serde::{Deserialize, Serialize};
use zerocopy::{FromZeros, IntoBytes};

use super::device::{Cache, FsConfig};
use super::nodes::{Nodes, RESOLVE, SavedNode, checked_name, stat_at};
use super::wire::{self, Attr, AttrOut, Dirent, EntryOut, OpenOut, SetattrIn, setattr};
use crate::{Error, Result};

/// Descriptors that are left to the rest of the process.
const SPARE_DESCRIPTORS: u64 = 256;
/// Seconds for which the guest may believe what it was told.
const MOMENT: u64 = 1;
const ALWAYS: u64 = 86_400;
/// Bytes of an extended attribute or of a list of names at most (XATTR_SIZE_MAX, XATTR_LIST_MAX of Linux).
const XATTR_SIZE: usize = 64 << 10;
/// Bytes of folder entries in one answer at most.
const ENTRIES_SIZE: usize = 128 << 10;

/// Flags of open(2) that the guest may choose, besides the access mode.
const GUEST_FLAGS: OFlags =
    OFlags::APPEND.union(OFlags::TRUNC).union(OFlags::SYNC).union(OFlags::DSYNC);
/// Flags that every open has. NONBLOCK concerns files that have become something else meanwhile.
const OUR_FLAGS: OFlags = OFlags::CLOEXEC.union(OFlags::NOCTTY).union(OFlags::NONBLOCK);

pub(super) type Answer<T> = std::result::Result<T, Errno>;

pub(super) struct Folder {
    nodes: Nodes,
    /// `/proc/self/fd`, through which places are opened.
    descriptors: OwnedFd,
    handles: Mutex<Handles>,
    most_handles: usize,
    config: FsConfig,
    /// The host's user may give files to others.
    is_root: bool,
}

#[derive(Default)]
struct Handles {
    open: HashMap<u64, Arc<Handle>>,
    next: u64,
}

/// A file or folder that the guest has open.
pub(super) struct Handle {
    node: u64,
    flags: u32,
    /// `None` if it was not found after a restore.
    file: Option<OwnedFd>,
    /// Of a folder: where the next entry is read from.
    position: Option<Mutex<u64>>,
}

/// Who asks for a new file, and what it is to be.
#[derive(Clone, Copy)]
pub(super) struct Creation {
    pub parent: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// What a snapshot keeps.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct SavedFolder {
    nodes: Vec<SavedNode>,
    handles: Vec<SavedHandle>,
    next_handle: u64,
}

#[derive(Serialize, Deserialize)]
struct SavedHandle {
    id: u64,
    node: u64,
    flags: u32,
    folder: bool,
}

impl Folder {
    /// The folder that `config` names. Raises the process' limit of descriptors as far as it may.
    pub(super) fn open(config: FsConfig) -> Result<Self> {
        let action = || format!("share the folder {}", config.root.display());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root =
            rustix::fs::open(&config.root, flags, Mode::empty()).map_err(Error::io(action()))?;
        let descriptors = rustix::fs::open("/proc/self/fd", flags, Mode::empty())
            .map_err(Error::io("open /proc/self/fd"))?;
        let free = raise_limit().saturating_sub(SPARE_DESCRIPTORS).max(128) as usize;
        let nodes = Nodes::new(root, (free / 4).min(1 << 16)).map_err(Error::io(action()))?;
        Ok(Self {
            nodes,
            descriptors,
            handles: Mutex::default(),
            most_handles: free / 2,
            is_root: rustix::process::geteuid().is_root(),
            config,
        })
    }

    pub(super) fn config(&self) -> &FsConfig {
        &self.config
    }

    /// Forgets what the guest knows and closes what it has open.
    pub(super) fn clear(&self) {
        *self.handles() = Handles::default();
        if let Err(error) = self.nodes.clear() {
            tracing::warn!(%error, "the shared folder is not there any more");
        }
    }

    pub(super) fn lookup(&self, parent: u64, name: &[u8]) -> Answer<EntryOut> {
        let name = checked_name(name)?;
        let folder = self.nodes.folder(parent)?;
        match stat_at(&folder, &name) {
            Ok(stat) => self.entry(parent, &name, &stat),
            // Node 0: the guest may remember that there is nothing.
            Err(Errno::NOENT) if self.config.cache == Cache::Always => {
                Ok(EntryOut { entry_valid: ALWAYS.into(), ..EntryOut::default() })
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn forget(&self, node: u64, count: u64) {
        self.nodes.forget(node, count);
    }

    pub(super) fn attributes(&self, node: u64, handle: Option<u64>) -> Answer<AttrOut> {
        let stat = match handle.and_then(|id| self.handle(id).ok()) {
            Some(handle) => rustix::fs::fstat(handle.file()?)?,
            None => self.nodes.stat(node)?,
        };
        Ok(AttrOut {
            attr_valid: self.validity().into(),
            attr: self.attr(&stat),
            ..AttrOut::default()
        })
    }

    pub(super) fn set_attributes(&self, node: u64, wanted: &SetattrIn) -> Answer<AttrOut> {
        let valid = wanted.valid.get();
        let has = |bits: u32| valid & bits != 0;
        let handle = has(setattr::FH).then(|| wanted.fh.get());
        let place = self.nodes.fd(node)?;
        if has(setattr::UID | setattr::GID) {
            let uid = has(setattr::UID).then(|| Uid::from_raw(wanted.uid.get()));
            let gid = has(setattr::GID).then(|| Gid::from_raw(wanted.gid.get()));
            rustix::fs::chownat(&place, c"", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if has(setattr::MODE) {
            self.change_mode(&place, wanted.mode.get())?;
        }
        if has(setattr::SIZE) {
            match handle {
                Some(id) => rustix::fs::ftruncate(self.handle(id)?.file()?, wanted.size.get())?,
                None => {
                    let file = self.open_node(node, OFlags::WRONLY)?;
                    rustix::fs::ftruncate(file, wanted.size.get())?;
                }
            }
        }
        let time = |set: u32, now: u32, seconds: u64, nanoseconds: u32| {
            let tv_nsec = match () {
                () if has(now) => rustix::fs::UTIME_NOW,
                () if has(set) => nanoseconds.min(999_999_999).into(),
                () => rustix::fs::UTIME_OMIT,
            };
            Timespec { tv_sec: seconds as i64, tv_nsec }
        };
        if has(setattr::ATIME | setattr::ATIME_NOW | setattr::MTIME | setattr::MTIME_NOW) {
            let times = Timestamps {
                last_access: time(
                    setattr::ATIME,
                    setattr::ATIME_NOW,
                    wanted.atime.get(),
                    wanted.atimensec.get(),
                ),
                last_modification: time(
                    setattr::MTIME,
                    setattr::MTIME_NOW,
                    wanted.mtime.get(),
                    wanted.mtimensec.get(),
                ),
            };
            let name = self.descriptor_name(&place);
            rustix::fs::utimensat(&self.descriptors, name.as_c_str(), &times, AtFlags::empty())?;
        }
        self.attributes(node, handle)
    }

    pub(super) fn read_link(&self, node: u64) -> Answer<Vec<u8>> {
        let target = rustix::fs::readlinkat(&*self.nodes.fd(node)?, c"", Vec::new())?;
        Ok(target.into_bytes())
    }

    pub(super) fn symlink(&self, at: Creation, name: &[u8], target: &[u8]) -> Answer<EntryOut> {
        let name = checked_name(name)?;
        let target = CString::new(target).map_err(|_| Errno::INVAL)?;
        let folder = self.nodes.folder(at.parent)?;
        rustix::fs::symlinkat(target.as_c_str(), &*folder, name.as_c_str())?;
        self.created(at, &folder, &name, false)
    }

    pub(super) fn make_node(&self, at: Creation, name: &[u8], device: u32) -> Answer<EntryOut> {
        let name = checked_name(name)?;
        let kind = FileType::from_raw_mode(at.mode);
        // A device of the guest must not become one of the host; 0:0 is what overlayfs leaves for a
        // removed file.
        let harmless = match kind {
            FileType::RegularFile | FileType::Fifo | FileType::Socket => true,
            FileType::CharacterDevice => device == 0,
            _ => false,
        };
        if !harmless {
            return Err(Errno::PERM);
        }
        let folder = self.nodes.folder(at.parent)?;
        let mode = Mode::from_raw_mode(at.mode);
        rustix::fs::mknodat(&*folder, name.as_c_str(), kind, mode, 0)?;
        self.created(at, &folder, &name, true)
    }

    pub(super) fn make_folder(&self, at: Creation, name: &[u8]) -> Answer<EntryOut> {
        let name = checked_name(name)?;
        let folder = self.nodes.folder(at.parent)?;
        rustix::fs::mkdirat(&*folder, name.as_c_str(), Mode::from_raw_mode(at.mode))?;
        self.created(at, &folder, &name, true)
    }

    pub(super) fn unlink(&self, parent: u64, name: &[u8], folder: bool) -> Answer<()> {
        let name = checked_name(name)?;
        let parent_fd = self.nodes.folder(parent)?;
        self.nodes.hold(parent, &name);
        let flags = if folder { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        let removed = rustix::fs::unlinkat(&*parent_fd, name.as_c_str(), flags);
        if removed.is_err()
            && let Ok(stat) = stat_at(&parent_fd, &name)
        {
            self.nodes.moved(&stat, parent, &name);
        }
        removed
    }

    pub(super) fn rename(
        &self,
        (parent, name): (u64, &[u8]),
        (new_parent, new_name): (u64, &[u8]),
        flags: u32,
    ) -> Answer<()> {
        let (name, new_name) = (checked_name(name)?, checked_name(new_name)?);
        let flags = RenameFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        let (from, to) = (self.nodes.folder(parent)?, self.nodes.folder(new_parent)?);
        let source = stat_at(&from, &name)?;
        let target = stat_at(&to, &new_name).ok();
        if !flags.contains(RenameFlags::EXCHANGE) {
            self.nodes.hold(new_parent, &new_name);
        }
        let renamed =
            rustix::fs::renameat_with(&*from, name.as_c_str(), &*to, new_name.as_c_str(), flags);
        match (&renamed, &target) {
            (Ok(()), target) => {
                self.nodes.moved(&source, new_parent, &new_name);
                if let Some(target) = target
                    && flags.contains(RenameFlags::EXCHANGE)
                {
                    self.nodes.moved(target, parent, &name);
                }
            }
            // It keeps its name after all.
            (Err(_), Some(target)) => self.nodes.moved(target, new_parent, &new_name),
            (Err(_), None) => {}
        }
        renamed
    }

    pub(super) fn link(&self, node: u64, parent: u64, name: &[u8]) -> Answer<EntryOut> {
        let name = checked_name(name)?;
        let (place, folder) = (self.nodes.fd(node)?, self.nodes.folder(parent)?);
        // By AT_EMPTY_PATH it would need a capability.
        let source = self.descriptor_name(&place);
        rustix::fs::linkat(
            &self.descriptors,
            source.as_c_str(),
            &*folder,
            name.as_c_str(),
            AtFlags::SYMLINK_FOLLOW,
        )?;
        let stat = stat_at(&folder, &name)?;
        self.entry(parent, &name, &stat)
    }

    pub(super) fn open_file(&self, node: u64, flags: u32) -> Answer<OpenOut> {
        let file = self.open_node(node, self.allowed(flags)?)?;
        self.add_handle(node, flags, file, false)
    }

    pub(super) fn open_folder(&self, node: u64) -> Answer<OpenOut> {
        let file = self.open_node(node, OFlags::RDONLY | OFlags::DIRECTORY)?;
        self.add_handle(node, 0, file, true)
    }

    pub(super) fn create(
        &self,
        at: Creation,
        name: &[u8],
        flags: u32,
    ) -> Answer<(EntryOut, OpenOut)> {
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

    pub(super) fn close(&self, handle: u64) {
        self.handles().open.remove(&handle);
    }

    /// What the guest has open as `handle`.
    pub(super) fn handle(&self, handle: u64) -> Answer<Arc<Handle>> {
        self.handles().open.get(&handle).cloned().ok_or(Errno::BADF)
    }

    /// As many entries of an open folder from `offset` as fit into `size` bytes, with (`plus`) or
    /// without their attributes.
    pub(super) fn entries(
        &self,
        handle: u64,
        offset: u64,
        size: usize,
        plus: bool,
    ) -> Answer<Vec<u8>> {
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

    pub(super) fn statistics(&self, node: u64) -> Answer<wire::StatfsOut> {
        let stat = rustix::fs::fstatvfs(&*self.nodes.fd(node)?)?;
        let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).into();
        Ok(wire::StatfsOut {
            blocks: stat.f_blocks.into(),
            bfree: stat.f_bfree.into(),
            bavail: stat.f_bavail.into(),
            files: stat.f_files.into(),
            ffree: stat.f_ffree.into(),
            bsize: narrow(stat.f_bsize),
            namelen: narrow(stat.f_namemax),
            frsize: narrow(stat.f_frsize),
            ..wire::StatfsOut::default()
        })
    }

    pub(super) fn sync_all(&self) -> Answer<()> {
        // A descriptor of a place cannot be synchronised.
        let root = self.open_node(wire::ROOT_ID, OFlags::RDONLY | OFlags::DIRECTORY)?;
        rustix::fs::syncfs(root)
    }

    /// The value of an extended attribute.
    pub(super) fn xattr(&self, node: u64, name: &[u8]) -> Answer<Vec<u8>> {
        let name = self.xattr_name(name)?;
        let place = self.nodes.fd(node)?;
        let mut value = vec![0; XATTR_SIZE];
        let length =
            rustix::fs::getxattr(descriptor_path(&place), name.as_c_str(), &mut value[..])?;
        value.truncate(length);
        Ok(value)
    }

    /// The names of extended attributes, each with a zero behind it.
    pub(super) fn xattrs(&self, node: u64) -> Answer<Vec<u8>> {
        if !self.config.xattrs {
            return Err(Errno::NOSYS);
        }
        let place = self.nodes.fd(node)?;
        let mut names = vec![0; XATTR_SIZE];
        let length = rustix::fs::listxattr(descriptor_path(&place), &mut names[..])?;
        names.truncate(length);
        Ok(names)
    }

    pub(super) fn set_xattr(&self, node: u64, name: &[u8], value: &[u8], flags: u32) -> Answer<()> {
        let name = self.own_xattr_name(name)?;
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        let place = self.nodes.fd(node)?;
        rustix::fs::setxattr(descriptor_path(&place), name.as_c_str(), value, flags)
    }

    pub(super) fn remove_xattr(&self, node: u64, name: &[u8]) -> Answer<()> {
        let name = self.own_xattr_name(name)?;
        let place = self.nodes.fd(node)?;
        rustix::fs::removexattr(descriptor_path(&place), name.as_c_str())
    }

    /// Whether the host's user may use node `node` as `mask` says, as access(2).
    pub(super) fn access(&self, node: u64, mask: u32) -> Answer<()> {
        let mask = Access::from_bits(mask as _).ok_or(Errno::INVAL)?;
        if self.config.readonly && mask.contains(Access::WRITE_OK) {
            return Err(Errno::ROFS);
        }
        let place = self.nodes.fd(node)?;
        if FileType::from_raw_mode(rustix::fs::fstat(&*place)?.st_mode) == FileType::Symlink {
            return Ok(());
        }
        let name = self.descriptor_name(&place);
        rustix::fs::accessat(&self.descriptors, name.as_c_str(), mask, AtFlags::empty())
    }

    pub(super) fn save(&self) -> SavedFolder {
        let handles = self.handles();
        SavedFolder {
            nodes: self.nodes.save(),
            handles: handles
                .open
                .iter()
                .map(|(id, handle)| SavedHandle {
                    id: *id,
                    node: handle.node,
                    flags: handle.flags,
                    folder: handle.position.is_some(),
                })
                .collect(),
            next_handle: handles.next,
        }
    }

    /// Finds and opens again what the guest had.
    pub(super) fn restore(&self, saved: SavedFolder) -> std::result::Result<(), &'static str> {
        if saved.handles.len() > self.most_handles {
            return Err("the guest has too many files open");
        }
        self.clear();
        self.nodes.restore(saved.nodes)?;
        let mut open = HashMap::with_capacity(saved.handles.len());
        for SavedHandle { id, node, flags, folder } in saved.handles {
            let wanted = if folder {
                Ok(OFlags::RDONLY | OFlags::DIRECTORY)
            } else {
                self.allowed(flags).map(|flags| flags - OFlags::TRUNC)
            };
            let file = wanted.and_then(|wanted| self.open_node(node, wanted)).ok();
            let position = folder.then(|| Mutex::new(0));
            open.insert(id, Arc::new(Handle { node, flags, file, position }));
        }
        let last = open.keys().max().map_or(0, |last| last.saturating_add(1));
        *self.handles() = Handles { open, next: last.max(saved.next_handle) };
        Ok(())
    }

    /// The flags of open(2) for what a guest asked for.
    fn allowed(&self, flags: u32) -> Answer<OFlags> {
        let flags = OFlags::from_bits_retain(flags);
        let access = flags & OFlags::RWMODE;
        if self.config.readonly && (access != OFlags::RDONLY || flags.contains(OFlags::TRUNC)) {
            return Err(Errno::ROFS);
        }
        Ok(access | (flags & GUEST_FLAGS))
    }

    /// Opens a node that is a regular file, or a folder where `flags` say so.
    fn open_node(&self, node: u64, flags: OFlags) -> Answer<OwnedFd> {
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

    /// Gives a new file to whom it belongs, with the mode that was asked for.
    fn created(
        &self,
        at: Creation,
        folder: &OwnedFd,
        name: &CStr,
        has_mode: bool,
    ) -> Answer<EntryOut> {
        let mut stat = stat_at(folder, name)?;
        let id = self.nodes.enter(at.parent, name, &stat)?;
        let place = self.nodes.fd(id);
        let finished = place.and_then(|place| {
            if self.is_root {
                let inherits = rustix::fs::fstat(folder)?.st_mode & Mode::SGID.bits() != 0;
                let gid = (!inherits).then(|| Gid::from_raw(at.gid));
                let uid = Some(Uid::from_raw(at.uid));
                rustix::fs::chownat(&place, c"", uid, gid, AtFlags::EMPTY_PATH)?;
            }
            stat = rustix::fs::fstat(&place)?;
            // The process' own umask is no concern of the guest's, and a new owner loses bits.
            let missing = at.mode & 0o7777 & !(stat.st_mode & 0o7777);
            if has_mode && missing != 0 {
                self.change_mode(&place, (stat.st_mode & 0o7777) | missing)?;
                stat = rustix::fs::fstat(&place)?;
            }
            Ok(())
        });
        if let Err(error) = finished {
            self.forget(id, 1);
            return Err(error);
        }
        Ok(self.entry_out(id, &stat))
    }

    fn change_mode(&self, place: &OwnedFd, mode: u32) -> Answer<()> {
        let name = self.descriptor_name(place);
        let mode = Mode::from_raw_mode(mode & 0o7777);
        rustix::fs::chmodat(&self.descriptors, name.as_c_str(), mode, AtFlags::empty())
    }

    fn entry(&self, parent: u64, name: &CStr, stat: &Stat) -> Answer<EntryOut> {
        Ok(self.entry_out(self.nodes.enter(parent, name, stat)?, stat))
    }

    fn entry_out(&self, node: u64, stat: &Stat) -> EntryOut {
        EntryOut {
            nodeid: node.into(),
            entry_valid: self.validity().into(),
            attr_valid: self.validity().into(),
            attr: self.attr(stat),
            ..EntryOut::default()
        }
    }

    /// The entry of READDIRPLUS; node 0 where the guest has to look up by itself.
    fn entry_of(&self, parent: u64, name: &CStr) -> EntryOut {
        if matches!(name.to_bytes(), b"." | b"..") {
            return EntryOut::new_zeroed();
        }
        self.nodes
            .folder(parent)
            .and_then(|folder| stat_at(&folder, name))
            .and_then(|stat| self.entry(parent, name, &stat))
            .unwrap_or_default()
    }

    fn attr(&self, stat: &Stat) -> Attr {
        let device = |device: u64| {
            let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
            // As `new_encode_dev` of Linux.
            (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12)
        };
        Attr {
            ino: self.nodes.inode_number(stat.st_dev, stat.st_ino).into(),
            size: (stat.st_size as u64).into(),
            blocks: (stat.st_blocks as u64).into(),
            atime: (stat.st_atime as u64).into(),
            mtime: (stat.st_mtime as u64).into(),
            ctime: (stat.st_ctime as u64).into(),
            atimensec: (stat.st_atime_nsec as u32).into(),
            mtimensec: (stat.st_mtime_nsec as u32).into(),
            ctimensec: (stat.st_ctime_nsec as u32).into(),
            mode: stat.st_mode.into(),
            nlink: (stat.st_nlink as u32).into(),
            uid: stat.st_uid.into(),
            gid: stat.st_gid.into(),
            rdev: device(stat.st_rdev).into(),
            blksize: (stat.st_blksize as u32).into(),
            flags: 0.into(),
        }
    }

    fn validity(&self) -> u64 {
        match self.config.cache {
            Cache::Auto => MOMENT,
            Cache::Always => ALWAYS,
        }
    }

    fn xattr_name(&self, name: &[u8]) -> Answer<CString> {
        if !self.config.xattrs {
            return Err(Errno::NOSYS);
        }
        CString::new(name).map_err(|_| Errno::INVAL)
    }

    /// The name of an attribute that a guest may change: it has no meaning for the host.
    fn own_xattr_name(&self, name: &[u8]) -> Answer<CString> {
        let name = self.xattr_name(name)?;
        if name.to_bytes().starts_with(b"user.") { Ok(name) } else { Err(Errno::OPNOTSUPP) }
    }

    /// The name under which `place` can be opened below `/proc/self/fd`.
    fn descriptor_name(&self, place: &OwnedFd) -> CString {
        // Digits hold no zero byte.
        CString::new(place.as_raw_fd().to_string()).unwrap_or_default()
    }

    fn handles(&self) -> MutexGuard<'_, Handles> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handle {
    /// The open file.
    pub(super) fn file(&self) -> Answer<&OwnedFd> {
        self.file.as_ref().ok_or(Errno::STALE)
    }

    /// The open file, if it is none of folders.
    pub(super) fn content(&self) -> Answer<&OwnedFd> {
        if self.position.is_some() { Err(Errno::ISDIR) } else { self.file() }
    }

    pub(super) fn synchronise(&self, data_only: bool) -> Answer<()> {
        let file = self.file()?;
        if data_only { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) }
    }

    pub(super) fn allocate(&self, mode: u32, offset: u64, length: u64) -> Answer<()> {
        let mode = FallocateFlags::from_bits_retain(mode);
        rustix::fs::fallocate(self.content()?, mode, offset, length)
    }

    pub(super) fn seek(&self, offset: u64, whence: u32) -> Answer<u64> {
        // The others Linux does by itself.
        let to = match whence {
            3 => SeekFrom::Data(offset),
            4 => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        rustix::fs::seek(self.content()?, to)
    }

    pub(super) fn copy_to(
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

/// The path that leads to `place` itself.
fn descriptor_path(place: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", place.as_fd().as_raw_fd())
}

/// Raises the soft limit of descriptors to the hard one, and returns what holds then.
fn raise_limit() -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let holds = match rustix::process::setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    holds.unwrap_or(1 << 20)
}
