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

#[test]
fn the_tag_and_the_number_of_queues_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let config = FsConfig { queues: 2, ..FsConfig::new("root", folder.path()) };
    let fs = Fs::new("fs", config).unwrap();
    let mut bytes = [0xff; 44];
    fs.read_config(0, &mut bytes);
    assert_eq!(&bytes[..5], b"root\0");
    assert_eq!(&bytes[36..40], &2u32.to_le_bytes());
    assert_eq!(fs.queue_sizes().len(), 3);
    for (tag, queues) in [("", 1), (&*"x".repeat(37), 1), ("x", 0), ("x", 17)] {
        let config = FsConfig { queues, ..FsConfig::new(tag, folder.path()) };
        assert!(Fs::new("fs", config).is_err(), "{tag} {queues}");
    }
    assert!(Fs::new("fs", FsConfig::new("x", folder.path().join("missing"))).is_err());
}

#[test]
fn the_version_is_agreed_upon_first() {
    let folder = tempfile::tempdir().unwrap();
    let fs = Fs::new("fs", FsConfig::new("x", folder.path())).unwrap();
    let mut guest = Guest::with(fs, folder);
    assert_eq!(guest.attributes(ROOT_ID), Err(Errno::IO));
    assert_eq!(guest.call(opcode::INIT, 0, &[wire_init(26).as_bytes()]), Err(Errno::PROTO));
    let newer = [8u32, 0, 0, 0];
    let out: wire::InitOut = parse(&guest.call(opcode::INIT, 0, &[newer.as_bytes()]).unwrap());
    assert_eq!((out.major.get(), out.minor.get()), (7, 38));
    assert_eq!(guest.attributes(ROOT_ID), Err(Errno::IO));
    let init = guest.call(opcode::INIT, 0, &[wire_init(31).as_bytes()]).unwrap();
    let out: wire::InitOut = parse(&init);
    assert_eq!((out.major.get(), out.minor.get(), out.max_write.get()), (7, 31, 1 << 20));
    assert_eq!(guest.attributes(ROOT_ID).unwrap().mode.get() & libc::S_IFMT, libc::S_IFDIR);
}

impl PartialEq for wire::Attr {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

#[test]
fn files_of_the_host_are_found_and_read() {
    let mut guest = Guest::mount();
    let bytes: Vec<u8> = (0..200_000u32).map(|index| (index % 251) as u8).collect();
    fs::create_dir_all(guest.path("a/b")).unwrap();
    fs::write(guest.path("a/b/file"), &bytes).unwrap();
    assert_eq!(guest.lookup(ROOT_ID, "none").err(), Some(Errno::NOENT));
    let a = guest.node(ROOT_ID, "a");
    let b = guest.node(a, "b");
    let entry = guest.lookup(b, "file").unwrap();
    let metadata = fs::metadata(guest.path("a/b/file")).unwrap();
    assert_eq!(entry.attr.size.get(), 200_000);
    assert_eq!(entry.attr.ino.get(), metadata.ino());
    assert_eq!(entry.attr.mode.get(), metadata.mode());
    assert_eq!(entry.attr.mtime.get(), metadata.mtime() as u64);
    assert_eq!(entry.attr.mtimensec.get(), metadata.mtime_nsec() as u32);
    assert_eq!(entry.entry_valid.get(), 1);
    let node = entry.nodeid.get();
    assert_eq!(guest.node(b, "file"), node);
    let handle = guest.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(node, handle, 0, 131_072).unwrap(), bytes[..131_072]);
    assert_eq!(guest.read(node, handle, 131_072, 131_072).unwrap(), bytes[131_072..]);
    assert_eq!(guest.read(node, handle, 7, 100).unwrap(), bytes[7..107]);
    assert_eq!(guest.read(node, handle, 1 << 40, 100).unwrap(), b"");
    assert_eq!(guest.write(node, handle, 0, b"x"), Err(Errno::BADF));
    guest.call(opcode::RELEASE, node, &[&handle.to_le_bytes(), &[0; 16]]).unwrap();
    assert_eq!(guest.read(node, handle, 0, 1), Err(Errno::BADF));
}

#[test]
fn files_are_made_written_and_changed() {
    let mut guest = Guest::mount();
    let (node, handle) = guest.create(ROOT_ID, "new", 0o666).unwrap();
    // Whatever the umask of this process is: the guest has applied its own.
    assert_eq!(fs::metadata(guest.path("new")).unwrap().mode() & 0o7777, 0o666);
    assert_eq!(guest.write(node, handle, 3, b"hello").unwrap(), 5);
    assert_eq!(guest.read(node, handle, 0, 100).unwrap(), b"\0\0\0hello");
    guest.call(opcode::FLUSH, node, &[&handle.to_le_bytes(), &[0; 16]]).unwrap();
    guest.call(opcode::FSYNC, node, &[&handle.to_le_bytes(), &[0; 8]]).unwrap();
    assert_eq!(fs::read(guest.path("new")).unwrap(), b"\0\0\0hello");

    let wanted = |valid: u32| wire::SetattrIn { valid: valid.into(), ..Default::default() };
    let attr =
        guest.set(node, wire::SetattrIn { mode: 0o640.into(), ..wanted(setattr::MODE) }).unwrap();
    assert_eq!(attr.mode.get(), libc::S_IFREG | 0o640);
    let attr =
        guest.set(node, wire::SetattrIn { size: 4.into(), ..wanted(setattr::SIZE) }).unwrap();
    assert_eq!(attr.size.get(), 4);
    let by_handle = wire::SetattrIn {
        size: 2.into(),
        fh: handle.into(),
        ..wanted(setattr::SIZE | setattr::FH)
    };
    assert_eq!(guest.set(node, by_handle).unwrap().size.get(), 2);
    let times = wire::SetattrIn {
        mtime: 1_000_000_000.into(),
        mtimensec: 5.into(),
        ..wanted(setattr::MTIME | setattr::ATIME | setattr::ATIME_NOW)
    };
    let attr = guest.set(node, times).unwrap();
    assert_eq!((attr.mtime.get(), attr.mtimensec.get()), (1_000_000_000, 5));
    assert!(attr.atime.get() > 1_000_000_000);
    let owner = wire::SetattrIn { gid: attr.gid, ..wanted(setattr::GID) };
    assert_eq!(guest.set(node, owner).unwrap().gid, attr.gid);
    // What exists already is opened, unless it must be new.
    let (same, _) = guest.create(ROOT_ID, "new", 0o600).unwrap();
    assert_eq!(same, node);
    let exclusive = wire::CreateIn {
        flags: ((libc::O_RDWR | libc::O_EXCL) as u32).into(),
        ..Default::default()
    };
    let body: &[&[u8]] = &[exclusive.as_bytes(), b"new\0"];
    assert_eq!(guest.call(opcode::CREATE, ROOT_ID, body), Err(Errno::EXIST));
    let truncated = guest.open(node, libc::O_WRONLY | libc::O_TRUNC).unwrap();
    assert_eq!(guest.attributes(node).unwrap().size.get(), 0);
    assert_eq!(guest.read(node, truncated, 0, 1), Err(Errno::BADF));
}

#[test]
fn appended_bytes_go_to_the_end() {
    let mut guest = Guest::mount();
    fs::write(guest.path("log"), "first ").unwrap();
    let node = guest.node(ROOT_ID, "log");
    let handle = guest.open(node, libc::O_WRONLY | libc::O_APPEND).unwrap();
    guest.write(node, handle, 6, b"second").unwrap();
    assert_eq!(fs::read(guest.path("log")).unwrap(), b"first second");
}

#[test]
fn folders_links_and_nodes_are_made_and_removed() {
    let mut guest = Guest::mount();
    let mkdir = wire::MkdirIn { mode: 0o777.into(), umask: 0o22.into() };
    let bytes = guest.call(opcode::MKDIR, ROOT_ID, &[mkdir.as_bytes(), b"dir\0"]).unwrap();
    let dir = parse::<wire::EntryOut>(&bytes).nodeid.get();
    assert_eq!(fs::metadata(guest.path("dir")).unwrap().mode() & 0o7777, 0o777);
    let (file, _) = guest.create(dir, "file", 0o600).unwrap();
    let bytes = guest.call(opcode::LINK, dir, &[&file.to_le_bytes(), b"other\0"]).unwrap();
    let linked: wire::EntryOut = parse(&bytes);
    assert_eq!((linked.nodeid.get(), linked.attr.nlink.get()), (file, 2));
    let bytes = guest.call(opcode::SYMLINK, dir, &[b"link\0", b"../anywhere\0"]).unwrap();
    let link = parse::<wire::EntryOut>(&bytes).nodeid.get();
    assert_eq!(guest.call(opcode::READLINK, link, &[]).unwrap(), b"../anywhere");
    assert_eq!(guest.open(link, libc::O_RDONLY), Err(Errno::LOOP));
    let fifo = wire::MknodIn { mode: (libc::S_IFIFO | 0o600).into(), ..Default::default() };
    let bytes = guest.call(opcode::MKNOD, dir, &[fifo.as_bytes(), b"fifo\0"]).unwrap();
    // Opening it would wait for ever.
    let fifo = parse::<wire::EntryOut>(&bytes).nodeid.get();
    assert_eq!(guest.open(fifo, libc::O_RDONLY), Err(Errno::NXIO));
    let disk = wire::MknodIn {
        mode: (libc::S_IFBLK | 0o600).into(),
        rdev: 0x800.into(),
        ..Default::default()
    };
    let made = guest.call(opcode::MKNOD, dir, &[disk.as_bytes(), b"disk\0"]);
    assert_eq!(made, Err(Errno::PERM));

    assert_eq!(guest.call(opcode::RMDIR, ROOT_ID, &[b"dir\0"]), Err(Errno::NOTEMPTY));
    assert_eq!(guest.call(opcode::UNLINK, ROOT_ID, &[b"dir\0"]), Err(Errno::ISDIR));
    for name in ["file", "other", "link", "fifo"] {
        guest.call(opcode::UNLINK, dir, &[name.as_bytes(), &[0]]).unwrap();
    }
    guest.call(opcode::RMDIR, ROOT_ID, &[b"dir\0"]).unwrap();
    assert!(!guest.path("dir").exists());
}

#[test]
fn a_file_without_a_name_lives_until_it_is_forgotten() {
    let mut guest = Guest::mount();
    fs::write(guest.path("file"), "still here").unwrap();
    let node = guest.node(ROOT_ID, "file");
    guest.call(opcode::UNLINK, ROOT_ID, &[b"file\0"]).unwrap();
    assert_eq!(guest.attributes(node).unwrap().nlink.get(), 0);
    let handle = guest.open(node, libc::O_RDONLY).unwrap();
    guest.forget(node, 1);
    assert_eq!(guest.attributes(node), Err(Errno::STALE));
    assert_eq!(guest.read(node, handle, 0, 100).unwrap(), b"still here");
    // So does one whose place another takes.
    fs::write(guest.path("old"), "old").unwrap();
    fs::write(guest.path("new"), "new").unwrap();
    let (old, new) = (guest.node(ROOT_ID, "old"), guest.node(ROOT_ID, "new"));
    let rename = ROOT_ID.to_le_bytes();
    guest.call(opcode::RENAME, ROOT_ID, &[&rename, b"new\0old\0"]).unwrap();
    for (node, content) in [(old, b"old"), (new, b"new")] {
        let handle = guest.open(node, libc::O_RDONLY).unwrap();
        assert_eq!(guest.read(node, handle, 0, 100).unwrap(), content);
    }
}

#[test]
fn what_moves_takes_its_content_along() {
    let mut guest = Guest::mount();
    fs::create_dir_all(guest.path("a/deep")).unwrap();
    fs::create_dir(guest.path("b")).unwrap();
    fs::write(guest.path("a/deep/file"), "content").unwrap();
    let (a, b) = (guest.node(ROOT_ID, "a"), guest.node(ROOT_ID, "b"));
    let deep = guest.node(a, "deep");
    let file = guest.node(deep, "file");
    guest.call(opcode::RENAME, a, &[&b.to_le_bytes(), b"deep\0moved\0"]).unwrap();
    let handle = guest.open(file, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(file, handle, 0, 100).unwrap(), b"content");
    assert_eq!(guest.node(b, "moved"), deep);
    let rename2 = |flags: u32| wire::Rename2In {
        newdir: ROOT_ID.into(),
        flags: flags.into(),
        ..Default::default()
    };
    fs::write(guest.path("x"), "x").unwrap();
    fs::write(guest.path("y"), "y").unwrap();
    let (x, y) = (guest.node(ROOT_ID, "x"), guest.node(ROOT_ID, "y"));
    let body = rename2(libc::RENAME_NOREPLACE);
    let body: &[&[u8]] = &[body.as_bytes(), b"x\0y\0"];
    assert_eq!(guest.call(opcode::RENAME2, ROOT_ID, body), Err(Errno::EXIST));
    let body = rename2(libc::RENAME_EXCHANGE);
    guest.call(opcode::RENAME2, ROOT_ID, &[body.as_bytes(), b"x\0y\0"]).unwrap();
    assert_eq!(fs::read(guest.path("x")).unwrap(), b"y");
    assert_eq!((guest.node(ROOT_ID, "x"), guest.node(ROOT_ID, "y")), (y, x));
    assert_eq!(guest.attributes(x).unwrap().size.get(), 1);
}

#[test]
fn nothing_outside_of_the_folder_is_reached() {
    let mut guest = Guest::mount();
    fs::write(guest.folder.path().join("secret"), "secret").unwrap();
    symlink("..", guest.path("up")).unwrap();
    symlink("/", guest.path("root")).unwrap();
    symlink("../secret", guest.path("secret")).unwrap();
    for name in ["..", ".", "", "a/b", "../secret", "/etc"] {
        assert_eq!(guest.lookup(ROOT_ID, name).err(), Some(Errno::INVAL), "{name:?}");
    }
    let long = "x".repeat(256);
    assert_eq!(guest.lookup(ROOT_ID, &long).err(), Some(Errno::NAMETOOLONG));
    for name in ["up", "root"] {
        let node = guest.node(ROOT_ID, name);
        assert_eq!(guest.lookup(node, "secret").err(), Some(Errno::NOTDIR));
        assert_eq!(guest.call(opcode::OPENDIR, node, &[&[0; 8]]), Err(Errno::LOOP));
    }
    let link = guest.node(ROOT_ID, "secret");
    assert_eq!(guest.open(link, libc::O_RDONLY), Err(Errno::LOOP));
    let truncate = wire::SetattrIn { valid: setattr::SIZE.into(), ..Default::default() };
    assert_eq!(guest.set(link, truncate), Err(Errno::LOOP));
    assert_eq!(guest.create(ROOT_ID, "up", 0o600), Err(Errno::LOOP));
    let body: &[&[u8]] = &[&ROOT_ID.to_le_bytes(), b"secret\0../out\0"];
    assert_eq!(guest.call(opcode::RENAME, ROOT_ID, body), Err(Errno::INVAL));
    // A folder that becomes a link behind the guest's back.
    fs::create_dir(guest.path("dir")).unwrap();
    let dir = guest.node(ROOT_ID, "dir");
    fs::remove_dir(guest.path("dir")).unwrap();
    symlink("..", guest.path("dir")).unwrap();
    assert_eq!(guest.lookup(dir, "secret").err(), Some(Errno::STALE));
    assert_eq!(fs::read(guest.folder.path().join("secret")).unwrap(), b"secret");
}

#[test]
fn folders_are_listed() {
    let mut guest = Guest::mount();
    let mut expected = BTreeSet::from([".".to_owned(), "..".to_owned()]);
    for index in 0..300 {
        let name = format!("file-{index}-{}", "x".repeat(index % 90));
        fs::write(guest.path(&name), "").unwrap();
        expected.insert(name);
    }
    for (size, plus) in [(4096, false), (500, false), (131_072, false), (4096, true), (600, true)] {
        let listed = guest.list(ROOT_ID, size, plus);
        assert_eq!(listed.len(), expected.len());
        let names: BTreeSet<_> = listed.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(names, expected);
        for (name, id) in listed.iter().filter(|(name, _)| plus && !name.starts_with("..")) {
            if name != "." {
                assert_eq!(guest.node(ROOT_ID, name), *id);
            }
        }
    }
    fs::write(guest.path("file"), "").unwrap();
    let file = guest.node(ROOT_ID, "file");
    assert_eq!(guest.call(opcode::OPENDIR, file, &[&[0; 8]]).err(), Some(Errno::NOTDIR));
    assert_eq!(guest.open(ROOT_ID, libc::O_RDONLY), Err(Errno::ISDIR));
}

#[test]
fn extended_attributes_are_those_of_the_host() {
    let mut guest = Guest::mount();
    fs::write(guest.path("file"), "").unwrap();
    let node = guest.node(ROOT_ID, "file");
    let size = |size: u32| wire::SetxattrIn { size: size.into(), flags: 0.into() };
    let set = guest.call(opcode::SETXATTR, node, &[size(5).as_bytes(), b"user.color\0", b"green"]);
    // Not every file system has them.
    let mut space = [0u8; 64];
    let on_host = rustix::fs::getxattr(guest.path("file"), "user.color", &mut space[..])
        .map(|n| space[..n].to_vec());
    match set {
        Ok(_) => assert_eq!(on_host.unwrap(), b"green"),
        Err(error) => {
            assert_eq!(error, Errno::OPNOTSUPP);
            assert_eq!(on_host, Err(Errno::OPNOTSUPP));
            return;
        }
    }
    let mut get = |size: u32| {
        let asked = wire::GetxattrIn { size: size.into(), padding: 0.into() };
        guest.call(opcode::GETXATTR, node, &[asked.as_bytes(), b"user.color\0"])
    };
    assert_eq!(get(0).unwrap(), [5, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(get(4), Err(Errno::RANGE));
    assert_eq!(get(100).unwrap(), b"green");
    let asked = wire::GetxattrIn { size: 1000.into(), padding: 0.into() };
    let names = guest.call(opcode::LISTXATTR, node, &[asked.as_bytes()]).unwrap();
    assert!(names.split(|byte| *byte == 0).any(|name| name == b"user.color"));
    for name in ["security.capability", "trusted.x", "system.posix_acl_access"] {
        let empty = size(0);
        let body: &[&[u8]] = &[empty.as_bytes(), name.as_bytes(), &[0]];
        assert_eq!(guest.call(opcode::SETXATTR, node, body), Err(Errno::OPNOTSUPP));
    }
    guest.call(opcode::REMOVEXATTR, node, &[b"user.color\0"]).unwrap();
    let removed = guest.call(opcode::REMOVEXATTR, node, &[b"user.color\0"]);
    assert_eq!(removed, Err(Errno::NODATA));
    // More than there is, and a value longer than the request.
    let longer = size(500);
    let body: &[&[u8]] = &[longer.as_bytes(), b"user.color\0", b"green"];
    assert_eq!(guest.call(opcode::SETXATTR, node, body), Err(Errno::INVAL));

    let mut plain = Guest::mount_with(|config| FsConfig { xattrs: false, ..config });
    let listed = plain.call(opcode::LISTXATTR, ROOT_ID, &[asked.as_bytes()]);
    assert_eq!(listed, Err(Errno::NOSYS));
}

#[test]
fn holes_space_and_copies_work_as_on_the_host() {
    let mut guest = Guest::mount();
    let (node, handle) = guest.create(ROOT_ID, "file", 0o600).unwrap();
    guest.write(node, handle, 0, b"0123456789").unwrap();
    let fallocate =
        wire::FallocateIn { fh: handle.into(), length: 100_000.into(), ..Default::default() };
    guest.call(opcode::FALLOCATE, node, &[fallocate.as_bytes()]).unwrap();
    assert_eq!(fs::metadata(guest.path("file")).unwrap().len(), 100_000);
    let seek = |whence: u32| wire::LseekIn {
        fh: handle.into(),
        offset: 0.into(),
        whence: whence.into(),
        ..Default::default()
    };
    let bytes = guest.call(opcode::LSEEK, node, &[seek(3).as_bytes()]).unwrap();
    assert_eq!(bytes, 0u64.to_le_bytes());
    assert_eq!(guest.call(opcode::LSEEK, node, &[seek(9).as_bytes()]), Err(Errno::INVAL));
    let (copy, copy_handle) = guest.create(ROOT_ID, "copy", 0o600).unwrap();
    let range = wire::CopyFileRangeIn {
        fh_in: handle.into(),
        off_in: 2.into(),
        nodeid_out: copy.into(),
        fh_out: copy_handle.into(),
        len: 4.into(),
        ..Default::default()
    };
    let copied = guest.call(opcode::COPY_FILE_RANGE, node, &[range.as_bytes()]).unwrap();
    assert_eq!(parse::<wire::WriteOut>(&copied).size.get(), 4);
    assert_eq!(fs::read(guest.path("copy")).unwrap(), b"2345");
    let bytes = guest.call(opcode::STATFS, ROOT_ID, &[]).unwrap();
    let statistics: wire::StatfsOut = parse(&bytes);
    let host = rustix::fs::statvfs(guest.path("")).unwrap();
    assert_eq!(statistics.blocks.get(), host.f_blocks);
    assert_eq!(statistics.frsize.get() as u64, host.f_frsize);
    let access = |mask: u32| wire::AccessIn { mask: mask.into(), padding: 0.into() };
    guest.call(opcode::ACCESS, node, &[access(6).as_bytes()]).unwrap();
    fs::set_permissions(guest.path("file"), fs::Permissions::from_mode(0o600)).unwrap();
    let executable = guest.call(opcode::ACCESS, node, &[access(1).as_bytes()]);
    assert_eq!(executable, Err(Errno::ACCESS));
    guest.call(opcode::SYNCFS, ROOT_ID, &[&[0; 8]]).unwrap();
    for unknown in [31, 39, 40, 48, 4096, u32::MAX] {
        assert_eq!(guest.call(unknown, node, &[&[0; 64]]), Err(Errno::NOSYS));
    }
}

#[test]
fn a_readonly_folder_is_not_changed() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("shared")).unwrap();
    fs::write(folder.path().join("shared/file"), "content").unwrap();
    let config = FsConfig {
        readonly: true,
        cache: Cache::Always,
        ..FsConfig::new("x", folder.path().join("shared"))
    };
    let mut guest = Guest::with(Fs::new("fs", config).unwrap(), folder);
    guest.call(opcode::INIT, 0, &[wire_init(38).as_bytes()]).unwrap();
    let entry = guest.lookup(ROOT_ID, "file").unwrap();
    assert!(entry.entry_valid.get() > 1000 && entry.attr_valid.get() > 1000);
    // That there is nothing may be remembered, too.
    let nothing = guest.lookup(ROOT_ID, "none").unwrap();
    assert_eq!(nothing.nodeid.get(), 0);
    assert!(nothing.entry_valid.get() > 1000);
    let node = entry.nodeid.get();
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC] {
        assert_eq!(guest.open(node, flags), Err(Errno::ROFS));
    }
    let body = wire::OpenIn::default();
    let bytes = guest.call(opcode::OPEN, node, &[body.as_bytes()]).unwrap();
    let open: wire::OpenOut = parse(&bytes);
    assert_eq!(open.open_flags.get(), wire::open::KEEP_CACHE);
    let handle = open.fh.get();
    assert_eq!(guest.read(node, handle, 0, 10).unwrap(), b"content");
    assert_eq!(guest.write(node, handle, 0, b"x"), Err(Errno::ROFS));
    let changing = [
        opcode::SETATTR,
        opcode::SYMLINK,
        opcode::MKNOD,
        opcode::MKDIR,
        opcode::UNLINK,
        opcode::RMDIR,
        opcode::RENAME,
        opcode::RENAME2,
        opcode::LINK,
        opcode::CREATE,
        opcode::SETXATTR,
        opcode::REMOVEXATTR,
        opcode::FALLOCATE,
        opcode::COPY_FILE_RANGE,
    ];
    for opcode in changing {
        assert_eq!(guest.call(opcode, ROOT_ID, &[&[0; 88], b"a\0b\0"]), Err(Errno::ROFS));
    }
    let access = wire::AccessIn { mask: 2.into(), padding: 0.into() };
    assert_eq!(guest.call(opcode::ACCESS, node, &[access.as_bytes()]), Err(Errno::ROFS));
    assert_eq!(fs::read(guest.path("file")).unwrap(), b"content");
}

#[test]
fn contents_are_kept_until_the_host_changes_them() {
    let folder = tempfile::tempdir().unwrap();
    let nodes = Nodes::new(open(folder.path()), 2).unwrap();
    let root = nodes.stat(ROOT_ID).unwrap();
    let mut old = root;
    old.st_ctime = 1_000_000_000;
    assert!(!nodes.is_unchanged(ROOT_ID, &old));
    assert!(nodes.is_unchanged(ROOT_ID, &old));
    let mut longer = old;
    longer.st_size += 1;
    assert!(!nodes.is_unchanged(ROOT_ID, &longer));
    let mut later = longer;
    later.st_mtime_nsec += 1;
    assert!(!nodes.is_unchanged(ROOT_ID, &later));
    assert!(nodes.is_unchanged(ROOT_ID, &later));
    // What was just changed may change again and have the same time.
    let mut new = root;
    new.st_ctime = i64::MAX;
    assert!(!nodes.is_unchanged(ROOT_ID, &new));
    assert!(!nodes.is_unchanged(ROOT_ID, &new));

    let mut guest = Guest::mount();
    fs::write(guest.path("file"), "new").unwrap();
    let node = guest.node(ROOT_ID, "file");
    let bytes = guest.call(opcode::OPEN, node, &[&[0; 8]]).unwrap();
    assert_eq!(parse::<wire::OpenOut>(&bytes).open_flags.get(), 0);
}

#[test]
fn the_kernels_own_file_systems_are_empty_folders() {
    let folder = tempfile::tempdir().unwrap();
    let config = FsConfig { readonly: true, ..FsConfig::new("root", "/") };
    let mut guest = Guest::with(Fs::new("fs", config).unwrap(), folder);
    guest.call(opcode::INIT, 0, &[wire_init(38).as_bytes()]).unwrap();
    let entry = guest.lookup(ROOT_ID, "proc").unwrap();
    assert_eq!(entry.attr.mode.get() & libc::S_IFMT, libc::S_IFDIR);
    let proc = entry.nodeid.get();
    assert_eq!(guest.lookup(proc, "self").err(), Some(Errno::NOENT));
    assert_eq!(guest.list(proc, 4096, false), []);
    let usr = guest.node(ROOT_ID, "usr");
    assert!(guest.list(usr, 4096, true).len() > 2);
}

#[test]
fn what_is_forgotten_takes_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("a/b/c")).unwrap();
    let nodes = Nodes::new(open(folder.path()), 2).unwrap();
    let enter = |parent: u64, name: &str| {
        let name = CString::new(name).unwrap();
        let stat = stat_at(&nodes.fd(parent).unwrap(), &name).unwrap();
        nodes.enter(parent, &name, &stat).unwrap()
    };
    let a = enter(ROOT_ID, "a");
    let b = enter(a, "b");
    let c = enter(b, "c");
    assert_eq!(enter(b, "c"), c);
    // A parent stays as long as somebody hangs on it, though the guest forgot it.
    nodes.forget(a, 1);
    nodes.forget(b, 1);
    assert_eq!(nodes.save().len(), 3);
    nodes.fd(c).unwrap();
    nodes.forget(c, 1);
    assert_eq!(nodes.save().len(), 3);
    nodes.forget(c, 1);
    assert_eq!(nodes.save().len(), 0);
    nodes.forget(ROOT_ID, 1);
    assert!(nodes.fd(ROOT_ID).is_ok());
    nodes.forget(77, 1);
}

#[test]
fn more_files_are_known_than_descriptors_kept() {
    let folder = tempfile::tempdir().unwrap();
    let nodes = Nodes::new(open(folder.path()), 3).unwrap();
    let before = descriptors();
    let ids: Vec<u64> = (0..50)
        .map(|index| {
            let name = CString::new(format!("file-{index}")).unwrap();
            fs::write(folder.path().join(name.to_str().unwrap()), "").unwrap();
            let stat = stat_at(&nodes.fd(ROOT_ID).unwrap(), &name).unwrap();
            nodes.enter(ROOT_ID, &name, &stat).unwrap()
        })
        .collect();
    for _ in 0..2 {
        for id in &ids {
            nodes.fd(*id).unwrap();
            nodes.stat(*id).unwrap();
        }
    }
    let mine = descriptors().into_iter().filter(|path| path.starts_with(folder.path())).count();
    // The root and three of the files.
    assert!(mine <= before.len() + 4 && mine <= 4, "{mine}");
}

/// What the descriptors of this process lead to.
fn descriptors() -> Vec<PathBuf> {
    fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .collect()
}

fn open(path: &Path) -> OwnedFd {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap()
}

#[test]
fn a_mounted_folder_goes_on_after_a_restore() {
    let mut guest = Guest::mount();
    fs::create_dir_all(guest.path("dir")).unwrap();
    fs::write(guest.path("dir/file"), "content").unwrap();
    fs::write(guest.path("gone"), "gone").unwrap();
    let dir = guest.node(ROOT_ID, "dir");
    let file = guest.node(dir, "file");
    let gone = guest.node(ROOT_ID, "gone");
    let handle = guest.open(file, libc::O_RDWR).unwrap();
    let gone_handle = guest.open(gone, libc::O_RDONLY).unwrap();
    let listing = guest.open_folder(dir);
    guest.call(opcode::UNLINK, ROOT_ID, &[b"gone\0"]).unwrap();
    guest.fs.pause().unwrap();
    // This request waits in the queue.
    let body = wire::ReadIn { fh: handle.into(), size: 100.into(), ..Default::default() };
    let request = guest.request(opcode::READ, file, &[body.as_bytes()]);
    let chain = guest.driver.push(1, &[&request], &[16, 100]);
    guest.driver.kick(1);
    assert_eq!(guest.driver.used(1), None);
    let state = guest.fs.save().unwrap();
    let config = guest.fs.config().clone();
    guest.fs.deactivate();

    let restored = Fs::new("fs", config).unwrap();
    restored.restore(&state).unwrap();
    restored.activate(guest.driver.activation(restored.features())).unwrap();
    restored.resume().unwrap();
    let (head, written) = guest.driver.wait_used(1);
    assert_eq!(head, chain.head);
    assert_eq!(guest.parse(&chain.writable, written).unwrap(), b"content");
    guest.fs = restored;
    assert_eq!(guest.write(file, handle, 0, b"C").unwrap(), 1);
    assert_eq!(fs::read(guest.path("dir/file")).unwrap(), b"Content");
    assert_eq!(guest.node(ROOT_ID, "dir"), dir);
    let body = wire::ReadIn { fh: listing.into(), size: 4096.into(), ..Default::default() };
    assert!(!guest.call(opcode::READDIR, dir, &[body.as_bytes()]).unwrap().is_empty());
    assert_eq!(guest.attributes(gone), Err(Errno::STALE));
    assert_eq!(guest.read(gone, gone_handle, 0, 4), Err(Errno::STALE));
    // New numbers are none of the old ones.
    let (node, new_handle) = guest.create(ROOT_ID, "new", 0o600).unwrap();
    assert!(node > gone && new_handle > listing);
}

#[test]
fn a_state_that_cannot_be_is_refused() {
    let mut guest = Guest::mount();
    fs::write(guest.path("file"), "").unwrap();
    guest.node(ROOT_ID, "file");
    guest.fs.pause().unwrap();
    let state = guest.fs.save().unwrap();
    guest.fs.deactivate();
    let bad = |path: &str, value: serde_json::Value| {
        let mut state = state.clone();
        *state.0.pointer_mut(path).unwrap() = value;
        state
    };
    for bad in [
        bad("/folder/nodes/0/name", "../..".into()),
        bad("/folder/nodes/0/name", serde_json::json!([47])),
        bad("/folder/nodes/0/id", 1.into()),
        bad("/folder/nodes/0/id", u64::MAX.into()),
        bad("/folder/nodes", serde_json::json!("none")),
    ] {
        assert!(guest.fs.restore(&bad).is_err(), "{bad:?}");
    }
    // One that hangs on nothing is left out, and so is one that hangs on itself.
    for parent in [99, 2] {
        guest.fs.restore(&bad("/folder/nodes/0/parent", parent.into())).unwrap();
    }
    guest.fs.restore(&state).unwrap();
}

#[test]
fn queues_are_served_beside_each_other() {
    let mut guest = Guest::mount_with(|config| FsConfig { queues: 4, ..config });
    fs::write(guest.path("file"), "content").unwrap();
    let node = guest.node(ROOT_ID, "file");
    let request = guest.request(opcode::GETATTR, node, &[&[0; 16]]);
    for queue in 1..5 {
        for _ in 0..10 {
            guest.driver.push(queue, &[&request], &[16, 104]);
        }
        guest.driver.kick(queue);
    }
    for queue in 1..5 {
        for _ in 0..10 {
            assert_eq!(guest.driver.wait_used(queue).1, 120);
        }
        assert!(guest.driver.queues[queue].interrupt.0.load(Ordering::SeqCst) >= 10);
    }
}

/// Requests that are nearly right, in any chain.
fn requests() -> impl Strategy<Value = Vec<HostileChain>> {
    let opcode = prop_oneof![8 => 1u32..54, 1 => any::<u32>()];
    let body = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..120),
        prop::collection::vec(prop::sample::select(vec![0u8, 0, 1, 2, 3, b'a', b'b']), 0..120),
    ];
    let request = (opcode, 0u64..5, 0u32..200, body).prop_map(|(opcode, node, extra, body)| {
        let header = InHeader {
            len: (40 + extra).into(),
            opcode: opcode.into(),
            nodeid: node.into(),
            ..InHeader::default()
        };
        [header.as_bytes(), &body].concat()
    });
    prop::collection::vec(hostile::chain(2, request), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_chain_is_survived(chains in requests()) {
        let mut guest = Guest::mount();
        fs::write(guest.path("a"), "content").unwrap();
        fs::create_dir(guest.path("b")).unwrap();
        guest.node(ROOT_ID, "a");
        guest.fs.pause().unwrap();
        let state = guest.fs.save().unwrap();
        guest.fs.deactivate();
        guest.fs.restore(&state).unwrap();
        hostile::attack(&guest.fs, &Loop::start(), chains);
        prop_assert!(!guest.folder.path().join("a").exists());
    }

    #[test]
    fn any_request_is_survived(opcode in 0u32..54, body in prop::collection::vec(any::<u8>(), 0..200)) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "content").unwrap();
        let header = InHeader {
            len: (40 + body.len() as u32).into(),
            opcode: opcode.into(),
            nodeid: ROOT_ID.into(),
            ..InHeader::default()
        };
        super::fuzz(folder.path(), &[header.as_bytes(), &body].concat());
    }
}
