//! What the device keeps of the files that a guest knows.

use super::*;

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
