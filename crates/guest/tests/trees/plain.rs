//! File systems of other systems: FAT and NTFS.

use std::fs;

use guest::Tree;

use crate::files::{Listing, bytes, fill_plainly, of_guest, of_host};
use crate::harness::{Image, MIB, run};
use crate::ntfs_3g::Ntfs3g;

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
    // Blocks of folders have 4 KiB: several clusters, one, or a small part of one.
    for cluster in ["512", "4096", "65536"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        fs::File::create(&path).unwrap().set_len(128 * MIB).unwrap();
        let image = path.to_str().unwrap();
        let Some(server) = run("mkntfs", &["-q", "-F", "-L", "Windows", "-c", cluster, image])
            .then(|| Ntfs3g::mount(image, &folder.path().join("mounted")))
            .flatten()
        else {
            return eprintln!("skipped: ntfs-3g does not run here");
        };
        let root = folder.path().join("mounted");
        fs::create_dir_all(root.join("folder/Below it")).unwrap();
        fs::write(root.join("small"), bytes(300, 5)).unwrap();
        fs::write(root.join("empty"), b"").unwrap();
        fs::write(root.join("folder/Below it/\u{fc}ml\u{e4}ut"), bytes(700_000, 5)).unwrap();
        for index in 0..2000 {
            let name = format!("folder/A file whose number is {index}");
            fs::write(root.join(name), index.to_string()).unwrap();
        }
        for index in (0..2000).step_by(3) {
            fs::remove_file(root.join(format!("folder/A file whose number is {index}"))).unwrap();
        }
        let plain = |mut listing: Listing| {
            listing.values_mut().for_each(|file| file.1 = 0);
            listing
        };
        let expected = plain(of_host(&root));
        server.unmount();
        let fs = Image { folder }.open();
        assert_eq!((fs.label().as_deref(), fs.notes().len()), (Some("Windows"), 0));
        let tree = Tree::new(fs, "/");
        assert!(plain(of_guest(&tree)) == expected, "{cluster}");
        let shouted = "/FOLDER/BELOW IT/\u{dc}ML\u{c4}UT";
        assert!(tree.read(shouted, MIB).unwrap() == bytes(700_000, 5));
        assert!(tree.read("/none", MIB).is_err() && tree.read("/folder/B", MIB).is_err());
    }
}
