//! btrfs.

use std::fs;
use std::sync::Arc;

use disk::{Disk, OpenOptions, RawDisk};
use guest::{Guest, Tree};

use crate::files::{fill, of_guest, of_host};
use crate::harness::{Device, Image, MIB, Mounted, check, run};
use crate::replay::{Synced, check_replay};

#[test]
fn btrfs_is_read_as_linux_reads_it() {
    let mkfs = ["mkfs.btrfs", "-q", "-f"];
    check(256 * MIB, &mkfs, "", 3000);
    for packing in ["zlib", "lzo", "zstd:3"] {
        check(256 * MIB, &mkfs, &format!(",compress-force={packing}"), 100);
    }
}

#[test]
fn btrfs_on_several_devices_is_read_as_linux_reads_it() {
    // How many, with what, and how many may be missing.
    let ways: [(usize, &[&str], usize); 5] = [
        (2, &["--data", "raid1", "--metadata", "raid1"], 1),
        (4, &["--data", "raid10", "--metadata", "raid1c3"], 1),
        (3, &["--data", "raid0", "--metadata", "raid0"], 0),
        (3, &["--data", "raid5", "--metadata", "raid5"], 1),
        (4, &["--data", "raid6", "--metadata", "raid6"], 2),
    ];
    for (count, way, may_miss) in ways {
        let folder = tempfile::tempdir().unwrap();
        let device = |number| Device::new(folder.path().join(format!("{number}")), 256 * MIB);
        let Some(devices) = (0..count).map(device).collect::<Option<Vec<_>>>() else {
            return eprintln!("skipped: there are no loop devices here");
        };
        let paths: Vec<&str> = devices.iter().map(|device| &*device.path).collect();
        let options: Vec<_> = paths.iter().map(|path| format!("device={path}")).collect();
        let (options, point) = (options.join(","), folder.path().join("mounted"));
        fs::create_dir(&point).unwrap();
        let mounted = run("mkfs.btrfs", &[&["-q", "-f"], way, &paths].concat())
            && run("mount", &["-o", &options, paths[0], point.to_str().unwrap()]);
        if !mounted {
            return eprintln!("skipped: btrfs does not run here");
        }
        let mounted = Mounted(point);
        fill(&mounted.0, 300);
        let expected = of_host(&mounted.0);
        assert!(run("umount", &[mounted.0.to_str().unwrap()]));
        let open = |devices: &[&Device]| {
            let options = OpenOptions { read_only: true, ..OpenOptions::default() };
            let disk = |device: &&Device| -> Arc<dyn Disk> {
                Arc::new(RawDisk::open(&device.image, &options).unwrap())
            };
            Guest::open(&devices.iter().map(disk).collect::<Vec<_>>())
        };
        let check = |guest: &Guest, name: &str| {
            let report = guest.report();
            let tree = guest.tree().unwrap_or_else(|| panic!("{way:?}: {report:?}"));
            assert_eq!(report.root.as_deref(), Some(name));
            assert!(of_guest(tree) == expected, "{way:?}");
            report.volumes[0].notes.clone()
        };
        let mut turned: Vec<&Device> = devices.iter().collect();
        assert!(check(&open(&turned), "vda").is_empty());
        for _ in 0..count * may_miss.min(1) {
            let note = format!("{may_miss} of its {count} devices cannot be used");
            assert_eq!(check(&open(&turned[may_miss..]), "vda"), [note]);
            turned.rotate_left(1);
        }
        let report = open(&turned[may_miss + 1..]).report();
        let mut lost = report.volumes.iter().flat_map(|volume| &volume.notes);
        let words = ["one of its devices is not there", "too many of its members are missing"];
        let is_told = |note: &String| words.iter().any(|words| note.contains(words));
        // Of copies, the missing ones may be the same.
        assert!(way[1] == "raid10" || report.root.is_none() && lost.all(is_told), "{report:?}");
    }
}

#[test]
fn the_log_of_btrfs_is_replayed() {
    let seeds = std::env::var("SEEDS").map_or(0..2, |seeds| 0..seeds.parse().unwrap());
    for seed in seeds {
        let options = [",commit=300", ",commit=300,compress-force=zstd"][seed as usize % 2];
        check_replay(256 * MIB, &["mkfs.btrfs", "-q", "-f"], options, seed, Synced::All);
    }
}

#[test]
fn the_subvolumes_of_btrfs_are_folders_and_one_is_the_default() {
    let Some(image) = Image::new(256 * MIB, &["mkfs.btrfs", "-q", "-f"]) else { return };
    {
        let mounted = image.mount("").unwrap();
        let at = |name: &str| mounted.0.join(name).to_str().unwrap().to_owned();
        for name in ["@", "@home", "@/.snapshots"] {
            assert!(run("btrfs", &["subvolume", "create", &at(name)]));
        }
        fill(&mounted.0.join("@"), 50);
        fs::create_dir(at("@/.snapshots/1")).unwrap();
        let snapshot = at("@/.snapshots/1/snapshot");
        assert!(run("btrfs", &["subvolume", "snapshot", &at("@"), &snapshot]));
        fs::write(at("@/small"), b"changed since").unwrap();
        assert!(run("btrfs", &["subvolume", "set-default", &snapshot]));
    }
    let fs = image.open();
    assert_eq!(fs.default_folder(), "/@/.snapshots/1/snapshot");
    let tree = Tree::new(fs.clone(), &fs.default_folder());
    assert_eq!(tree.read("/small", 99).unwrap(), b"small");
    let tree = Tree::new(fs, "/@");
    assert_eq!(tree.read("/small", 99).unwrap(), b"changed since");
    let mounted = image.mount(",ro,subvolid=5").unwrap();
    assert_eq!(of_guest(&Tree::new(image.open(), "/")), of_host(&mounted.0));
}
