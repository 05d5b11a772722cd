//! The device as a whole: mounting, queues, snapshots, hostile guests.

use super::*;

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
        crate::virtio::fs::fuzz(folder.path(), &[header.as_bytes(), &body].concat());
    }
}
