//! Whatever is on a disk, reading it returns.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use disk::{Disk, Extents, OpenOptions, RawDisk};
use guest::Tree;
use guest::fs::Content;
use guest::volume::{Volume, Whole};

use crate::files::{bytes, fill};
use crate::harness::{Image, MIB, run};
use crate::ntfs_3g::Ntfs3g;
use crate::packed::pack;
use crate::replay::{Synced, change};

/// A volume some of whose bytes were changed.
struct Damaged {
    inner: Whole,
    changes: Vec<(u64, u8)>,
}

impl Volume for Damaged {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> guest::Result<()> {
        self.inner.read_at(buffer, offset)?;
        for (place, byte) in &self.changes {
            let target = place.checked_sub(offset).and_then(|index| buffer.get_mut(index as usize));
            target.into_iter().for_each(|target| *target = *byte);
        }
        Ok(())
    }
}

/// Reads what can be read.
fn read_anything(volume: Arc<dyn Volume>) {
    let Content::FileSystem(fs) = guest::fs::open(volume) else { return };
    let tree = Tree::new(fs, "/");
    let mut folders = vec![String::new()];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in tree.read_dir(&format!("{folder}/")).unwrap_or_default() {
            seen += 1;
            if seen > 200 {
                return;
            }
            let path = format!("{folder}/{}", entry.name);
            let _ = tree.link_metadata(&path);
            let _ = tree.read_link(&path);
            let _ = tree.read(&path, 4 * MIB);
            folders.push(path);
        }
    }
}

#[test]
fn damaged_file_systems_are_errors_at_worst() {
    let kinds: [(&[&str], Synced); 4] = [
        (&["mkfs.ext4", "-q", "-F"], Synced::All),
        (&["mkfs.ext4", "-q", "-F", "-O", "fast_commit"], Synced::Files),
        (&["mkfs.xfs", "-q", "-f"], Synced::All),
        (&["mkfs.btrfs", "-q", "-f"], Synced::All),
    ];
    for (mkfs, synced) in kinds {
        let Some(image) = Image::new(320 * MIB, mkfs) else { continue };
        // With a log that is to be replayed.
        let copy;
        {
            let mounted = image.mount("").unwrap();
            assert!(run("sync", &["-f", mounted.0.to_str().unwrap()]));
            for index in 0..40 {
                fs::write(mounted.0.join(format!("file {index}")), bytes(index * 300, 3)).unwrap();
            }
            fs::create_dir(mounted.0.join("folder")).unwrap();
            fs::write(mounted.0.join("folder/file"), bytes(200_000, 3)).unwrap();
            change(&mounted.0, 3, 100, synced);
            fs::File::open(mounted.0.join("folder/file")).unwrap().sync_all().unwrap();
            copy = image.copy();
        }
        damage(&copy.path(), 60);
    }
}

#[test]
fn damaged_ntfs_is_an_error_at_worst() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    fs::File::create(&image).unwrap().set_len(16 * MIB).unwrap();
    let (path, root) = (image.to_str().unwrap(), folder.path().join("mounted"));
    let Some(server) =
        run("mkntfs", &["-q", "-F", path]).then(|| Ntfs3g::mount(path, &root)).flatten()
    else {
        return eprintln!("skipped: ntfs-3g does not run here");
    };
    fs::create_dir(root.join("folder")).unwrap();
    for index in 0..200 {
        fs::write(root.join(format!("folder/file {index}")), bytes(index * 300, 3)).unwrap();
    }
    server.unmount();
    damage(&image, 100);
}

#[test]
fn damaged_erofs_is_an_error_at_worst() {
    for way in [&["-zlz4", "-Eztailpacking"][..], &["-zlz4hc", "-C16384", "-Efragments"]] {
        let packed = pack(
            "mkfs.erofs",
            |source| fill(source, 100),
            |path, source| [&["--quiet"], way, &[path, source]].concat(),
        );
        let Some((image, _)) = packed else { return };
        damage(&image.path(), 40);
    }
}

/// Reads an image so many times, each time with other bytes changed.
fn damage(image: &Path, rounds: u32) {
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    let disk: Arc<dyn Disk> = Arc::new(RawDisk::open(image, &options).unwrap());
    // Only what was written is worth a change.
    let written: Vec<_> = Extents::new(&*disk, 0..disk.len())
        .map(Result::unwrap)
        .filter(|extent| !matches!(extent.content, disk::Content::Zero | disk::Content::Hole))
        .collect();
    let mut state = std::env::var("SEED").map_or(1_u64, |seed| seed.parse().unwrap());
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
        (state >> 33) % below.max(1)
    };
    for _ in 0..rounds {
        let mut changes = Vec::new();
        for _ in 0..random(40) + 1 {
            let range = &written[random(written.len() as u64) as usize].range;
            let span = (range.end - range.start).min(64 << 10);
            changes.push((range.start + random(span), random(256) as u8));
        }
        read_anything(Arc::new(Damaged { inner: Whole(Arc::clone(&disk)), changes }));
    }
}
