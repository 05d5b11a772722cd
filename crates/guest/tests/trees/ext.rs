//! ext2, ext3 and ext4.

use std::fs;
use std::io::Write;

use guest::Tree;

use crate::files::{fill, of_guest, of_host};
use crate::harness::{Image, MIB, check, run};
use crate::replay::{Synced, check_replay};

#[test]
fn ext4_is_read_as_linux_reads_it() {
    let mkfs = ["mkfs.ext4", "-q", "-F"];
    check(128 * MIB, &mkfs, "", 3000);
    check(128 * MIB, &[&mkfs[..], &["-b", "1024", "-O", "^has_journal,64bit"]].concat(), "", 100);
    // What is small is in the inodes.
    check(128 * MIB, &[&mkfs[..], &["-I", "512", "-O", "inline_data,ea_inode"]].concat(), "", 20);
    // Descriptors are far apart, and some are where superblocks might be.
    let features = "meta_bg,^resize_inode,bigalloc,mmp,large_dir";
    check(512 * MIB, &[&mkfs[..], &["-b", "1024", "-O", features]].concat(), "", 100);
}

#[test]
fn ext2_and_ext3_are_read_as_linux_reads_them() {
    check(128 * MIB, &["mkfs.ext2", "-q", "-F"], "", 500);
    check(128 * MIB, &["mkfs.ext2", "-q", "-F", "-O", "^filetype,^dir_index"], "", 100);
    check(128 * MIB, &["mkfs.ext3", "-q", "-F", "-b", "1024"], "", 500);
}

/// What a kernel may not mount.
#[test]
fn ext4_is_read_as_mke2fs_fills_it() {
    for options in [["-b", "65536"], ["-O", "casefold,encrypt,verity,quota"]] {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::create_dir(&source).unwrap();
        fill(&source, 500);
        let image = Image { folder };
        fs::File::create(image.path()).unwrap().set_len(256 * MIB).unwrap();
        let last =
            ["-d", source.to_str().unwrap(), image.path().to_str().unwrap()].map(str::to_owned);
        let last: Vec<&str> = last.iter().map(String::as_str).collect();
        if !run("mkfs.ext4", &[&["-q", "-F"], &options[..], &last].concat()) {
            eprintln!("skipped: mkfs.ext4 does not run here");
            return;
        }
        let mut ours = of_guest(&Tree::new(image.open(), "/"));
        ours.remove("/lost+found");
        assert_eq!(ours, of_host(&source), "{options:?}");
    }
}

#[test]
fn the_journals_of_ext3_and_ext4_are_replayed() {
    let mkfs = ["mkfs.ext4", "-q", "-F"];
    check_replay(64 * MIB, &mkfs, "", 1, Synced::Nothing);
    check_replay(
        64 * MIB,
        &[&mkfs[..], &["-O", "^metadata_csum,^64bit"]].concat(),
        "",
        2,
        Synced::Nothing,
    );
    // With blocks that look like the journal's own.
    check_replay(128 * MIB, &["mkfs.ext3", "-q", "-F"], ",data=journal", 3, Synced::Nothing);
}

#[test]
fn fast_commits_are_replayed() {
    let mkfs = ["mkfs.ext4", "-q", "-F", "-O", "fast_commit"];
    let seeds = std::env::var("SEEDS").map_or(4..6, |seeds| 0..seeds.parse().unwrap());
    for seed in seeds {
        // No transaction for so long.
        check_replay(64 * MIB, &mkfs, ",commit=300", 2 * seed, Synced::Files);
    }
    let Some(image) = Image::new(64 * MIB, &mkfs) else { return };
    let mounted = image.mount(",commit=300").unwrap();
    let path = mounted.0.join("file");
    fs::write(&path, b"first").unwrap();
    assert!(run("sync", &["-f", mounted.0.to_str().unwrap()]));
    let mut file = fs::File::options().append(true).open(path).unwrap();
    for (more, all) in [(", then", "first, then"), (", last", "first, then, last")] {
        file.write_all(more.as_bytes()).unwrap();
        file.sync_all().unwrap();
        let fs = image.copy().open();
        assert_eq!(fs.notes(), Vec::<String>::new());
        assert_eq!(Tree::new(fs, "/").read("/file", 99).unwrap(), all.as_bytes());
    }
}
