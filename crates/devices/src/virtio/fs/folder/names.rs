//! New names, other names and names that go.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Gid, Mode, RenameFlags, Uid};
use rustix::io::Errno;

use super::{Answer, Folder};
use crate::virtio::fs::nodes::{checked_name, stat_at};
use crate::virtio::fs::wire::EntryOut;

/// Who asks for a new file, and what it is to be.
#[derive(Clone, Copy)]
pub struct Creation {
    pub parent: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

impl Folder {
    pub fn read_link(&self, node: u64) -> Answer<Vec<u8>> {
        let target = rustix::fs::readlinkat(&*self.nodes.fd(node)?, c"", Vec::new())?;
        Ok(target.into_bytes())
    }

    pub fn symlink(&self, at: Creation, name: &[u8], target: &[u8]) -> Answer<EntryOut> {
        let name = checked_name(name)?;
        let target = CString::new(target).map_err(|_| Errno::INVAL)?;
        let folder = self.nodes.folder(at.parent)?;
        rustix::fs::symlinkat(target.as_c_str(), &*folder, name.as_c_str())?;
        self.created(at, &folder, &name, false)
    }

    pub fn make_node(&self, at: Creation, name: &[u8], device: u32) -> Answer<EntryOut> {
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

    pub fn make_folder(&self, at: Creation, name: &[u8]) -> Answer<EntryOut> {
        let name = checked_name(name)?;
        let folder = self.nodes.folder(at.parent)?;
        rustix::fs::mkdirat(&*folder, name.as_c_str(), Mode::from_raw_mode(at.mode))?;
        self.created(at, &folder, &name, true)
    }

    pub fn unlink(&self, parent: u64, name: &[u8], folder: bool) -> Answer<()> {
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

    pub fn rename(
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

    pub fn link(&self, node: u64, parent: u64, name: &[u8]) -> Answer<EntryOut> {
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

    /// Gives a new file to whom it belongs, with the mode that was asked for.
    pub(super) fn created(
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
}
