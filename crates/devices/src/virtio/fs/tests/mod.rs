//! The driver of a guest that has mounted a shared folder, and what it finds there.

mod content;
mod names;
mod nodes;
mod state;

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::nodes::{Nodes, stat_at};
use super::wire::{self, InHeader, OutHeader, ROOT_ID, opcode, setattr};
use super::{Cache, Fs, FsConfig};
use crate::virtio::VirtioDevice;
use crate::virtio::hostile::{self, HostileChain, Loop};
use crate::virtio::testing::TestDriver;

/// A guest that has mounted a folder.
struct Guest {
    fs: Fs,
    driver: TestDriver,
    folder: tempfile::TempDir,
    unique: u64,
}

type Answer = Result<Vec<u8>, Errno>;

impl Guest {
    fn mount() -> Self {
        Self::mount_with(|config| config)
    }

    fn mount_with(change: impl FnOnce(FsConfig) -> FsConfig) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("shared")).unwrap();
        let config = change(FsConfig::new("shared", folder.path().join("shared")));
        let mut guest = Self::with(Fs::new("fs", config).unwrap(), folder);
        let out = guest.call(opcode::INIT, 0, &[wire_init(38).as_bytes()]).unwrap();
        assert_eq!(out.len(), 64);
        guest
    }

    fn with(fs: Fs, folder: tempfile::TempDir) -> Self {
        let driver = TestDriver::new(fs.queue_sizes().len());
        fs.activate(driver.activation(fs.features())).unwrap();
        Self { fs, driver, folder, unique: 1 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("shared").join(name)
    }

    fn request(&mut self, opcode: u32, node: u64, body: &[&[u8]]) -> Vec<u8> {
        let body = body.concat();
        self.unique += 2;
        let header = InHeader {
            len: (40 + body.len() as u32).into(),
            opcode: opcode.into(),
            unique: self.unique.into(),
            nodeid: node.into(),
            uid: rustix::process::getuid().as_raw().into(),
            gid: rustix::process::getgid().as_raw().into(),
            ..InHeader::default()
        };
        [header.as_bytes(), &body].concat()
    }

    fn call_sized(&mut self, opcode: u32, node: u64, body: &[&[u8]], room: &[u32]) -> Answer {
        let request = self.request(opcode, node, body);
        // The header and its arguments may be cut anywhere.
        let (first, second) = request.split_at(33);
        let sizes = [&[16], room].concat();
        let chain = self.driver.push(1, &[first, second], &sizes);
        self.driver.kick(1);
        let (head, written) = self.driver.wait_used(1);
        assert_eq!(head, chain.head);
        self.parse(&chain.writable, written)
    }

    fn parse(&self, buffers: &[(u64, u32)], written: u32) -> Answer {
        let mut bytes = Vec::new();
        for (address, length) in buffers {
            bytes.extend(self.driver.read(*address, *length as usize));
        }
        bytes.truncate(written as usize);
        let (header, rest) = OutHeader::read_from_prefix(&bytes).unwrap();
        assert_eq!(header.len.get(), written);
        assert_eq!(header.unique.get(), self.unique);
        match header.error.get() as i32 {
            0 => Ok(rest.to_vec()),
            error => {
                assert!(rest.is_empty());
                Err(Errno::from_raw_os_error(-error))
            }
        }
    }

    fn call(&mut self, opcode: u32, node: u64, body: &[&[u8]]) -> Answer {
        self.call_sized(opcode, node, body, &[4096])
    }

    fn lookup(&mut self, parent: u64, name: &str) -> Result<wire::EntryOut, Errno> {
        self.call(opcode::LOOKUP, parent, &[name.as_bytes(), &[0]]).map(|bytes| parse(&bytes))
    }

    fn node(&mut self, parent: u64, name: &str) -> u64 {
        self.lookup(parent, name).unwrap().nodeid.get()
    }

    fn forget(&mut self, node: u64, count: u64) {
        let request = self.request(opcode::FORGET, node, &[&count.to_le_bytes()]);
        let chain = self.driver.push(0, &[&request], &[]);
        self.driver.kick(0);
        assert_eq!(self.driver.wait_used(0), (chain.head, 0));
    }

    fn open(&mut self, node: u64, flags: i32) -> Result<u64, Errno> {
        let body = wire::OpenIn { flags: (flags as u32).into(), open_flags: 0.into() };
        let bytes = self.call(opcode::OPEN, node, &[body.as_bytes()])?;
        Ok(parse::<wire::OpenOut>(&bytes).fh.get())
    }

    fn open_folder(&mut self, node: u64) -> u64 {
        let bytes = self.call(opcode::OPENDIR, node, &[&[0; 8]]).unwrap();
        parse::<wire::OpenOut>(&bytes).fh.get()
    }

    fn read(&mut self, node: u64, handle: u64, offset: u64, size: u32) -> Answer {
        let body = wire::ReadIn {
            fh: handle.into(),
            offset: offset.into(),
            size: size.into(),
            ..Default::default()
        };
        // In pieces, as pages are.
        let pieces = [vec![4096; size as usize / 4096], vec![size % 4096]].concat();
        self.call_sized(opcode::READ, node, &[body.as_bytes()], &pieces)
    }

    fn write(&mut self, node: u64, handle: u64, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        let body = wire::WriteIn {
            fh: handle.into(),
            offset: offset.into(),
            size: (data.len() as u32).into(),
            ..Default::default()
        };
        let bytes = self.call(opcode::WRITE, node, &[body.as_bytes(), data])?;
        Ok(parse::<wire::WriteOut>(&bytes).size.get())
    }

    fn create(&mut self, parent: u64, name: &str, mode: u32) -> Result<(u64, u64), Errno> {
        let body = wire::CreateIn {
            flags: (libc::O_RDWR as u32).into(),
            mode: (libc::S_IFREG | mode).into(),
            ..Default::default()
        };
        let body: &[&[u8]] = &[body.as_bytes(), name.as_bytes(), &[0]];
        let bytes = self.call(opcode::CREATE, parent, body)?;
        let entry: wire::EntryOut = parse(&bytes[..128]);
        let open: wire::OpenOut = parse(&bytes[128..]);
        Ok((entry.nodeid.get(), open.fh.get()))
    }

    fn attributes(&mut self, node: u64) -> Result<wire::Attr, Errno> {
        let bytes = self.call(opcode::GETATTR, node, &[&[0; 16]])?;
        Ok(parse::<wire::AttrOut>(&bytes).attr)
    }

    fn set(&mut self, node: u64, wanted: wire::SetattrIn) -> Result<wire::Attr, Errno> {
        let bytes = self.call(opcode::SETATTR, node, &[wanted.as_bytes()])?;
        Ok(parse::<wire::AttrOut>(&bytes).attr)
    }

    /// All names of a folder, read by answers of `size` bytes.
    fn list(&mut self, node: u64, size: u32, plus: bool) -> Vec<(String, u64)> {
        let handle = self.open_folder(node);
        let opcode = if plus { opcode::READDIRPLUS } else { opcode::READDIR };
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let body = wire::ReadIn {
                fh: handle.into(),
                offset: u64::into(offset),
                size: size.into(),
                ..Default::default()
            };
            let bytes = self.call_sized(opcode, node, &[body.as_bytes()], &[size]).unwrap();
            if bytes.is_empty() {
                break;
            }
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let mut id = 0;
                if plus {
                    let (entry, after) = wire::EntryOut::read_from_prefix(rest).unwrap();
                    (id, rest) = (entry.nodeid.get(), after);
                }
                let (dirent, after) = wire::Dirent::read_from_prefix(rest).unwrap();
                let length = dirent.namelen.get() as usize;
                names.push((String::from_utf8(after[..length].to_vec()).unwrap(), id));
                offset = dirent.off.get();
                rest = &after[length.next_multiple_of(8)..];
            }
        }
        self.call(opcode::RELEASEDIR, node, &[&handle.to_le_bytes(), &[0; 16]]).unwrap();
        names
    }
}

fn parse<T: FromBytes>(bytes: &[u8]) -> T {
    T::read_from_bytes(bytes).unwrap()
}

fn wire_init(minor: u32) -> [u32; 4] {
    [7, minor, 1 << 20, u32::MAX]
}

impl PartialEq for wire::Attr {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}
