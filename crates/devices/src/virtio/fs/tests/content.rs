//! What is in files: reading, writing, attributes.

use super::*;

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
