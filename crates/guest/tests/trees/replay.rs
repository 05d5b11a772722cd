//! Logs that are to be replayed.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

use guest::Tree;

use crate::files::{bytes, fill, of_guest, of_host};
use crate::harness::{Image, run};

/// What is synchronised now and then while files change.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Synced {
    Nothing,
    /// Folders are not, and there are no new symbolic links: ext4 makes no fast commits of those.
    Files,
    All,
}

/// Changes of every kind, many of them to the same files and folders.
pub fn change(root: &Path, seed: u64, count: usize, synced: Synced) {
    let mut state = seed | 1;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
        (state >> 33) % below
    };
    for folder in ["x", "y", "x/z"] {
        let _ = fs::create_dir(root.join(folder));
    }
    for index in 0..count {
        let folder = ["", "x", "y", "x/z", "many"][random(5) as usize];
        let at = |number: u64| root.join(folder).join(format!("changed {number}"));
        let path = at(random(25));
        let other =
            root.join(["x", "y"][random(2) as usize]).join(format!("changed {}", random(25)));
        match random(9) {
            0 => drop(fs::remove_file(&path)),
            1 => drop(fs::rename(&path, &other)),
            2 => drop(fs::hard_link(&path, &other)),
            3 if synced != Synced::Files => drop(symlink("where ever", &path)),
            4 => {
                if let Ok(file) = fs::File::options().write(true).open(&path) {
                    file.set_len(random(100_000)).unwrap();
                }
            }
            5 => drop(fs::set_permissions(&path, fs::Permissions::from_mode(0o640))),
            _ => {
                let file = fs::File::options().create(true).truncate(false).write(true).open(&path);
                if let Ok(file) = file {
                    for _ in 0..random(4) + 1 {
                        let data = match random(4) {
                            // The magic number of ext4's journal.
                            0 => [0xc0, 0x3b, 0x39, 0x98].repeat(random(10_000) as usize),
                            _ => bytes(random(40_000) as usize, index as u64),
                        };
                        file.write_all_at(&data, random(75_000) * 4).unwrap();
                    }
                }
            }
        }
        // Some of it in the log, at different times.
        if synced != Synced::Nothing && random(6) == 0 {
            for path in [&path, &other, &root.join(folder)] {
                if path.symlink_metadata().is_ok_and(|metadata| {
                    metadata.is_file() || metadata.is_dir() && synced == Synced::All
                }) {
                    fs::File::open(path).unwrap().sync_all().unwrap();
                }
            }
        }
    }
}

/// Changes files, takes a copy as a machine leaves it whose power is lost, and lets Linux replay the log in that.
pub fn check_replay(size: u64, mkfs: &[&str], options: &str, seed: u64, synced: Synced) {
    let Some(image) = Image::new(size, mkfs) else { return };
    eprintln!("seed {seed}");
    let copy;
    {
        let mounted = image.mount(options).unwrap();
        fill(&mounted.0, 300);
        // What is in its place already.
        assert!(run("sync", &["-f", mounted.0.to_str().unwrap()]));
        change(&mounted.0, seed, 400, synced);
        if synced == Synced::Nothing {
            assert!(run("sync", &["-f", mounted.0.to_str().unwrap()]));
            fs::File::open(mounted.0.join("small")).unwrap().sync_all().unwrap();
        }
        copy = image.copy();
    }
    let fs = copy.open();
    assert_eq!(fs.notes(), Vec::<String>::new());
    let ours = of_guest(&Tree::new(fs, "/"));
    drop(image);
    drop(copy.mount("").unwrap());
    let again = copy.mount(",ro").unwrap();
    let theirs = of_host(&again.0);
    for (path, theirs) in &theirs {
        assert_eq!(ours.get(path), Some(theirs), "{path}, seed {seed}");
    }
    let more: Vec<_> = ours.keys().filter(|path| !theirs.contains_key(*path)).collect();
    assert!(more.is_empty(), "{more:?}, seed {seed}");
    assert!(theirs.len() > 200);
}
