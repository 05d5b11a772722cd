//! XFS.

use std::fs;
use std::os::unix::fs::symlink;

use guest::Tree;

use crate::files::{bytes, of_guest, of_host};
use crate::harness::{Image, MIB, check, run};
use crate::replay::{Synced, check_replay};

#[test]
fn xfs_of_version_5_is_read_as_linux_reads_it() {
    check(320 * MIB, &["mkfs.xfs", "-q", "-f"], "", 6000);
    check(320 * MIB, &["mkfs.xfs", "-q", "-f", "-n", "size=16384", "-i", "size=1024"], "", 2000);
}

/// Linux may have no version 4 any more: its tools still make one, and fill it.
#[test]
fn xfs_of_version_4_is_read_as_it_was_written() {
    for options in [&["-m", "crc=0"][..], &["-m", "crc=0", "-n", "ftype=0", "-b", "size=1024"]] {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::create_dir_all(source.join("many")).unwrap();
        let mut prototype = String::from("none\n0 0\nd--755 0 0\nmany d--755 0 0\n");
        for (index, name) in (0..700).map(|index| (index, format!("a-file-with-a-number-{index}")))
        {
            let path = source.join("many").join(&name);
            fs::write(&path, bytes(index * 37, 3)).unwrap();
            prototype.push_str(&format!("{name} ---644 0 0 {}\n", path.display()));
        }
        fs::write(source.join("large"), bytes(9_000_000, 5)).unwrap();
        symlink("x/".repeat(400), source.join("long-link")).unwrap();
        symlink("large", source.join("short-link")).unwrap();
        prototype.push_str(&format!(
            "$\nlarge ---644 0 0 {}\nlong-link l--777 0 0 {}\nshort-link l--777 0 0 large\n$\n",
            source.join("large").display(),
            "x/".repeat(400)
        ));
        fs::write(folder.path().join("prototype"), prototype).unwrap();
        let image = Image { folder };
        fs::File::create(image.path()).unwrap().set_len(320 * MIB).unwrap();
        let (prototype, path) = (image.folder.path().join("prototype"), image.path());
        let last = ["-p", prototype.to_str().unwrap(), path.to_str().unwrap()];
        if !run("mkfs.xfs", &[&["-q", "-f"], options, &last].concat()) {
            eprintln!("skipped: mkfs.xfs makes no version 4 here");
            return;
        }
        assert_eq!(of_guest(&Tree::new(image.open(), "/")), of_host(&source));
    }
}

#[test]
fn the_log_of_xfs_is_replayed() {
    let seeds = std::env::var("SEEDS").map_or(0..2, |seeds| 0..seeds.parse().unwrap());
    for seed in seeds {
        let size: &[&str] = [&[][..], &["-n", "size=8192", "-i", "size=1024"]][seed as usize % 2];
        let options = ["", ",logbsize=256k"][seed as usize % 2];
        check_replay(
            320 * MIB,
            &[&["mkfs.xfs", "-q", "-f"], size].concat(),
            options,
            seed,
            Synced::Nothing,
        );
    }
}
