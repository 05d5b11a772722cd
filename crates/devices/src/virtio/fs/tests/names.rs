//! Names: finding, making, moving and removing them, and what they must not reach.

use super::*;

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
