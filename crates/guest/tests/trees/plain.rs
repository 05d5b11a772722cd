//! File systems of other systems: FAT and NTFS.

use std::fs;

use guest::Tree;

use crate::files::{Listing, bytes, fill_plainly, of_guest, of_host};
use crate::harness::{Image, MIB, run};

#[test]
fn vfat_is_read_as_it_was_written() {
    for bits in ["12", "16", "32"] {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fill_plainly(&source);
        let image = Image { folder };
        let size = if bits == "12" { 8 * MIB } else { 64 * MIB };
        fs::File::create(image.path()).unwrap().set_len(size).unwrap();
        let path = image.path();
        let (path, source_path) = (path.to_str().unwrap(), source.to_str().unwrap());
        let names = ["SHORT.TXT", "empty", "folder"].map(|name| format!("{source_path}/{name}"));
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let copied = run("mkfs.vfat", &["-F", bits, "-n", "LABEL", path])
            && run("mcopy", &[&["-i", path, "-s"], &names[..], &["::"]].concat());
        if !copied {
            eprintln!("skipped: dosfstools or mtools do not run here");
            return;
        }
        assert_eq!(image.open().label().as_deref(), Some("LABEL"));
        let plain = |listing: Listing| -> Vec<_> {
            listing
                .into_iter()
                .map(|(path, (kind, _, length, hash))| (path, kind, length, hash))
                .collect()
        };
        let tree = Tree::new(image.open(), "/");
        assert_eq!(plain(of_guest(&tree)), plain(of_host(&source)));
        // The same by offset.
        for (path, _) in of_guest(&tree).iter().filter(|(_, (kind, ..))| *kind == 'f') {
            let opened = tree.open(path).unwrap();
            let mut bytes = vec![0; opened.len() as usize];
            opened.read_at(&mut bytes, 0).unwrap();
            assert_eq!(bytes, tree.read(path, u64::MAX).unwrap(), "{path}");
        }
    }
}

#[test]
fn ntfs_is_read_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    fs::File::create(&path).unwrap().set_len(64 * MIB).unwrap();
    if !run("mkntfs", &["-q", "-F", "-L", "Windows", path.to_str().unwrap()]) {
        eprintln!("skipped: mkntfs does not run here");
        return;
    }
    let files = [("small", 300), ("a large file with a long name", 700_000), ("empty", 0)];
    for (name, length) in files {
        let source = folder.path().join(name);
        fs::write(&source, bytes(length, 5)).unwrap();
        let (path, source) = (path.to_str().unwrap(), source.to_str().unwrap());
        assert!(run("ntfscp", &["-q", path, source, name]));
    }
    let fs = Image { folder }.open();
    assert_eq!(fs.label().as_deref(), Some("Windows"));
    let tree = Tree::new(fs, "/");
    for (name, length) in files {
        assert!(tree.read(&format!("/{}", name.to_uppercase()), MIB).unwrap() == bytes(length, 5));
        assert!(tree.names("/").contains(&name.to_owned()));
    }
    assert!(tree.read("/none", MIB).is_err());
}
