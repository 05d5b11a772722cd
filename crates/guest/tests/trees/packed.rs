//! File systems that are packed, and not written to: squashfs, EROFS and ISO 9660.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use guest::Tree;

use crate::files::{Listing, fill, fill_plainly, of_guest, of_host};
use crate::harness::{Image, run};

/// What a program packs of a folder that `fill` makes and fills, and what is in that; `arguments` get the image's path and
/// the folder's. `None` where the program does not run.
///
/// What was packed is compared, for Linux may not know all ways of packing.
pub fn pack(
    program: &str,
    fill: impl FnOnce(&Path),
    arguments: impl for<'a> FnOnce(&'a str, &'a str) -> Vec<&'a str>,
) -> Option<(Image, Listing)> {
    let image = Image { folder: tempfile::tempdir().unwrap() };
    let (path, source) = (image.path(), image.folder.path().join("source"));
    fs::create_dir(&source).unwrap();
    fill(&source);
    if !run(program, &arguments(path.to_str().unwrap(), source.to_str().unwrap())) {
        eprintln!("skipped: {program} does not run here, or not so");
        return None;
    }
    Some((image, of_host(&source)))
}

#[test]
fn squashfs_is_read_as_it_was_packed() {
    for packing in ["gzip", "xz", "lzo", "lz4", "zstd"] {
        let packed = pack(
            "mksquashfs",
            |source| fill(source, 1500),
            |path, source| {
                let options = ["-quiet", "-no-progress", "-comp", packing, "-b", "65536"];
                [&[source, path], &options[..]].concat()
            },
        );
        if let Some((image, expected)) = packed {
            assert_eq!(of_guest(&Tree::new(image.open(), "/")), expected, "{packing}");
        }
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
        let packed = pack(
            "mkfs.erofs",
            |source| fill(source, 1500),
            |path, source| [&["--quiet"], way, &[path, source]].concat(),
        );
        let Some((image, expected)) = packed else { continue };
        made += 1;
        let fs = image.open();
        assert_eq!(fs.kind(), "erofs");
        assert_eq!(of_guest(&Tree::new(fs, "/")), expected, "{way:?}");
    }
    assert!(made == 0 || made >= 3, "mkfs.erofs made {made} images only");
}

#[test]
fn iso9660_is_read_as_it_was_written() {
    for (program, names) in [("genisoimage", "-R"), ("xorriso", "-R"), ("genisoimage", "-J")] {
        let is_joliet = names == "-J";
        let fill = |source: &Path| {
            if is_joliet {
                return fill_plainly(source);
            }
            fill(source, 500);
            // Rock Ridge knows parts of a target, not slashes, and genisoimage cuts long ones off.
            fs::remove_file(source.join("long link")).unwrap();
            symlink(format!("/../{}./end", "part/".repeat(40)), source.join("long")).unwrap();
            fs::create_dir_all(source.join("a/b/c/d/e/f/g/h/i/j/k")).unwrap();
            fs::write(source.join("a/b/c/d/e/f/g/h/i/j/k/deep"), b"deep").unwrap();
            // As files would be that are read from a medium.
            assert!(run("chmod", &["-R", "u+rwX", source.to_str().unwrap()]));
        };
        let packed = pack(program, fill, |path, source| {
            let begin: &[&str] = if program == "xorriso" { &["-as", "mkisofs"] } else { &[] };
            [begin, &["-quiet", names, "-V", "LABEL", "-o", path, source]].concat()
        });
        let Some((image, theirs)) = packed else { continue };
        let fs = image.open();
        assert_eq!((fs.label().as_deref(), fs.kind()), (Some("LABEL"), "iso9660"));
        let plain = |mut listing: Listing| {
            // What makes up for folders that are too deep, and modes that Joliet does not have.
            listing.remove("/rr_moved");
            listing.values_mut().filter(|_| is_joliet).for_each(|file| file.1 = 0);
            listing
        };
        let (ours, theirs) = (plain(of_guest(&Tree::new(fs, "/"))), plain(theirs));
        for (path, theirs) in &theirs {
            assert_eq!(ours.get(path), Some(theirs), "{path} {program} {names}");
        }
        assert_eq!(ours.len(), theirs.len());
    }
}
