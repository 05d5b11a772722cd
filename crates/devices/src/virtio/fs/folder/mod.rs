//! The shared folder: what the guest's requests do to files of the host.
//!
//! Only regular files and folders are ever opened; devices, pipes and sockets are names for the guest to
//! use with its own drivers. Everything beyond names goes through descriptors of places
//! ([`Nodes`]), so that nothing outside of the folder can be reached.

mod handles;
mod names;
mod xattrs;

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use rustix::fs::{Access, AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};
use serde::{Deserialize, Serialize};
use zerocopy::FromZeros;

use self::handles::{Handle, Handles};
pub(super) use self::names::Creation;
use super::device::{Cache, FsConfig};
use super::nodes::{Nodes, SavedNode, checked_name, stat_at};
use super::wire::{self, Attr, AttrOut, EntryOut, SetattrIn, setattr};
use crate::{Error, Result};

/// Descriptors that are left to the rest of the process.
const SPARE_DESCRIPTORS: u64 = 256;
/// Seconds for which the guest may believe what it was told.
const MOMENT: u64 = 1;
const ALWAYS: u64 = 86_400;

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

    /// The name under which `place` can be opened below `/proc/self/fd`.
    fn descriptor_name(&self, place: &OwnedFd) -> CString {
        // Digits hold no zero byte.
        CString::new(place.as_raw_fd().to_string()).unwrap_or_default()
    }
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
