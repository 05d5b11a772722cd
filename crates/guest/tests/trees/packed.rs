//! File systems that are packed, and not written to: squashfs, EROFS and ISO 9660.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use guest::Tree;

use crate::files::{Listing, fill, fill_plainly, of_guest, of_host};
use crate::harness::{Image, run};

#[test]
fn squashfs_is_read_as_linux_reads_it() {
    for packing in ["gzip", "xz", "lzo", "lz4", "zstd"] {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::create_dir(&source).unwrap();
        fill(&source, 1500);
        let image = Image { folder };
        let (path, source) = (image.path(), source.to_str().unwrap().to_owned());
        let options = ["-quiet", "-no-progress", "-comp", packing, "-b", "65536"];
        if !run("mksquashfs", &[&[&*source, path.to_str().unwrap()], &options[..]].concat()) {
            eprintln!("skipped: mksquashfs does not run here or has no {packing}");
            continue;
        }
        // By what was packed: Linux may not know all ways of packing.
        assert_eq!(of_guest(&Tree::new(image.open(), "/")), of_host(Path::new(&source)));
    }
}

#[test]
fn erofs_is_read_as_it_was_packed() {
    // Debian's mkfs.erofs of today makes the first three; later ones know more.
    let ways: [&[&str]; 8] = [
        &[],
        &["-zlz4"],
        &["-zlz4hc,9", "-C65536", "-Eztailpacking"],
        &["-zlz4", "-Efragments,dedupe", "-C32768"],
        &["-Eforce-inode-extended", "--chunksize=4096"],
        &["-zdeflate"],
        &["-zlzma"],
        &["-zzstd"],
    ];
    let mut made = 0;
    for way in ways {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::create_dir(&source).unwrap();
        fill(&source, 1500);
        let image = Image { folder };
        let (path, source) = (image.path(), source.to_str().unwrap().to_owned());
        let options = [&["--quiet"], way, &[path.to_str().unwrap(), &source]].concat();
        if !run("mkfs.erofs", &options) {
            eprintln!("skipped: mkfs.erofs does not run here or has no {way:?}");
            continue;
        }
        made += 1;
        let fs = image.open();
        assert_eq!(fs.kind(), "erofs");
        // By what was packed: Linux may not know all ways of packing.
        assert_eq!(of_guest(&Tree::new(fs, "/")), of_host(Path::new(&source)), "{way:?}");
    }
    assert!(made == 0 || made >= 3, "mkfs.erofs made {made} images only");
}

#[test]
fn iso9660_is_read_as_it_was_written() {
    for (program, names) in [("genisoimage", "-R"), ("xorriso", "-R"), ("genisoimage", "-J")] {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        let is_joliet = names == "-J";
        if is_joliet {
            fill_plainly(&source);
        } else {
            fs::create_dir(&source).unwrap();
            fill(&source, 500);
            // Rock Ridge knows parts of a target, not slashes, and genisoimage cuts long ones off.
            fs::remove_file(source.join("long link")).unwrap();
            symlink(format!("/../{}./end", "part/".repeat(40)), source.join("long")).unwrap();
            fs::create_dir_all(source.join("a/b/c/d/e/f/g/h/i/j/k")).unwrap();
            fs::write(source.join("a/b/c/d/e/f/g/h/i/j/k/deep"), b"deep").unwrap();
            // As files would be that are read from a medium.
            assert!(run("chmod", &["-R", "u+rwX", source.to_str().unwrap()]));
        }
        let image = Image { folder };
        let (path, source) = (image.path(), source.to_str().unwrap().to_owned());
        let mut options =
            vec!["-quiet", names, "-V", "LABEL", "-o", path.to_str().unwrap(), &*source];
        if program == "xorriso" {
            options.splice(0..0, ["-as", "mkisofs"]);
        }
        if !run(program, &options) {
            eprintln!("skipped: {program} does not run here");
            continue;
        }
        let fs = image.open();
        assert_eq!((fs.label().as_deref(), fs.kind()), (Some("LABEL"), "iso9660"));
        let plain = |mut listing: Listing| {
            // What makes up for folders that are too deep, and modes that Joliet does not have.
            listing.remove("/rr_moved");
            listing.values_mut().filter(|_| is_joliet).for_each(|file| file.1 = 0);
            listing
        };
        let (ours, theirs) =
            (plain(of_guest(&Tree::new(fs, "/"))), plain(of_host(Path::new(&source))));
        for (path, theirs) in &theirs {
            assert_eq!(ours.get(path), Some(theirs), "{path} {program} {names}");
        }
        assert_eq!(ours.len(), theirs.len());
    }
}
