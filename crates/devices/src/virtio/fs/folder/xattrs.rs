//! Extended attributes.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::{Answer, Folder};

/// Bytes of an extended attribute or of a list of names at most (XATTR_SIZE_MAX, XATTR_LIST_MAX of Linux).
const XATTR_SIZE: usize = 64 << 10;

impl Folder {
    /// The value of an extended attribute.
    pub fn xattr(&self, node: u64, name: &[u8]) -> Answer<Vec<u8>> {
        let name = self.xattr_name(name)?;
        let place = self.nodes.fd(node)?;
        let mut value = vec![0; XATTR_SIZE];
        let length =
            rustix::fs::getxattr(descriptor_path(&place), name.as_c_str(), &mut value[..])?;
        value.truncate(length);
        Ok(value)
    }

    /// The names of extended attributes, each with a zero behind it.
    pub fn xattrs(&self, node: u64) -> Answer<Vec<u8>> {
        if !self.config.xattrs {
            return Err(Errno::NOSYS);
        }
        let place = self.nodes.fd(node)?;
        let mut names = vec![0; XATTR_SIZE];
        let length = rustix::fs::listxattr(descriptor_path(&place), &mut names[..])?;
        names.truncate(length);
        Ok(names)
    }

    pub fn set_xattr(&self, node: u64, name: &[u8], value: &[u8], flags: u32) -> Answer<()> {
        let name = self.own_xattr_name(name)?;
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        let place = self.nodes.fd(node)?;
        rustix::fs::setxattr(descriptor_path(&place), name.as_c_str(), value, flags)
    }

    pub fn remove_xattr(&self, node: u64, name: &[u8]) -> Answer<()> {
        let name = self.own_xattr_name(name)?;
        let place = self.nodes.fd(node)?;
        rustix::fs::removexattr(descriptor_path(&place), name.as_c_str())
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
}

/// The path that leads to `place` itself.
fn descriptor_path(place: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", place.as_fd().as_raw_fd())
}
