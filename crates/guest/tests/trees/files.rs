//! What files can be, and what Linux and we see of them.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use guest::Tree;
use guest::fs::Kind;

use crate::harness::run;

/// What a file is: kind, mode, length, and a hash of its content or its target.
pub type Listing = BTreeMap<String, (char, u32, u64, u64)>;

pub fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

pub fn of_host(root: &Path) -> Listing {
    let mut listing = Listing::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let (kind, length, hash) = if metadata.is_symlink() {
                let target = fs::read_link(&path).unwrap();
                ('l', 0, hash(target.to_str().unwrap().as_bytes()))
            } else if metadata.is_dir() {
                folders.push(path.clone());
                ('d', 0, 0)
            } else if metadata.is_file() {
                ('f', metadata.len(), hash(&fs::read(&path).unwrap()))
            } else {
                ('o', 0, 0)
            };
            let name = path.strip_prefix(root).unwrap().to_str().unwrap();
            listing.insert(format!("/{name}"), (kind, metadata.mode() & 0o7777, length, hash));
        }
    }
    listing
}

pub fn of_guest(tree: &Tree) -> Listing {
    let mut listing = Listing::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        for entry in tree.read_dir(&format!("{folder}/")).unwrap() {
            let path = format!("{folder}/{}", entry.name);
            let metadata = tree.link_metadata(&path).unwrap();
            assert!(path.len() < 2000, "{path}");
            assert_eq!(metadata.kind, entry.kind, "{path}");
            let (kind, length, hash) = match metadata.kind {
                Kind::Link => ('l', 0, hash(tree.read_link(&path).unwrap().as_bytes())),
                Kind::Folder => {
                    folders.push(path.clone());
                    ('d', 0, 0)
                }
                Kind::File => ('f', metadata.length, hash(&tree.read(&path, 1 << 30).unwrap())),
                Kind::Other => ('o', 0, 0),
            };
            listing.insert(path, (kind, metadata.mode.into(), length, hash));
        }
    }
    listing
}

/// Bytes that do not repeat soon; half of them can be packed.
pub fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..length)
        .map(|index| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            if index / 4096 % 2 == 0 { (index % 17) as u8 } else { (state >> 33) as u8 }
        })
        .collect()
}

/// Everything that files can be, `many` of them in one folder.
pub fn fill(root: &Path, many: usize) {
    let write = |name: &str, data: &[u8]| {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, data).unwrap();
    };
    write("empty", b"");
    write("small", b"small");
    write("etc/os-release", b"ID=test\n");
    write("a block", &bytes(4096, 3));
    write("large", &bytes(3_000_001, 5));
    write("usr/lib/deep/er/and/deeper/file", &bytes(70_000, 7));
    write("\u{fc}ml\u{e4}ut/\u{65e5}\u{672c}", b"names");
    write(&"n".repeat(250), b"long");
    for index in 0..many {
        write(&format!("many/a file with a number {index}"), index.to_string().as_bytes());
    }
    symlink("small", root.join("short link")).unwrap();
    symlink("x/".repeat(400), root.join("long link")).unwrap();
    fs::hard_link(root.join("small"), root.join("hard link")).unwrap();
    fs::set_permissions(root.join("small"), fs::Permissions::from_mode(0o4751)).unwrap();
    // Holes, and many small extents between them.
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    for index in 0..600 {
        sparse.write_all_at(&bytes(4096, index), index * 16384 + 8192).unwrap();
    }
    sparse.set_len(50_000_000).unwrap();
    assert!(run("mkfifo", &[root.join("pipe").to_str().unwrap()]));
    // Set aside and never written.
    run("fallocate", &["-l", "1M", root.join("reserved").to_str().unwrap()]);
    // Gaps in a folder's blocks.
    for index in (0..many).step_by(3) {
        fs::remove_file(root.join(format!("many/a file with a number {index}"))).unwrap();
    }
}

/// What FAT has: names and bytes.
pub fn fill_plainly(root: &Path) {
    fs::create_dir_all(root.join("folder/Below it")).unwrap();
    fs::write(root.join("SHORT.TXT"), bytes(5000, 3)).unwrap();
    fs::write(root.join("empty"), b"").unwrap();
    fs::write(root.join("folder/Below it/A rather long name.conf"), bytes(100_000, 5)).unwrap();
    for index in 0..100 {
        fs::write(root.join(format!("folder/file number {index}")), index.to_string()).unwrap();
    }
}
