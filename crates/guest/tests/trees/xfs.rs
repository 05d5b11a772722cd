//! XFS.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;

use disk::{Disk, OpenOptions, RawDisk};
use guest::{Guest, Tree};

use crate::files::{bytes, fill, of_guest, of_host};
use crate::harness::{Device, Image, MIB, Mounted, check, run};
use crate::replay::{Synced, change, check_replay};

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

#[test]
fn the_log_of_xfs_may_be_on_another_device() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let device = |name, size| Device::new(at(name), size);
    let Some((data, log)) = device("data", 320 * MIB).zip(device("log", 80 * MIB)) else {
        return eprintln!("skipped: there are no loop devices here");
    };
    let (option, point) = (format!("logdev={}", log.path), at("mounted"));
    let mount = |data: &str, log: &str| {
        fs::create_dir_all(&point).unwrap();
        let option = format!("logdev={log}");
        run("mount", &["-o", &option, data, point.to_str().unwrap()])
    };
    if !run("mkfs.xfs", &["-q", "-f", "-l", &option, &data.path]) || !mount(&data.path, &log.path) {
        return eprintln!("skipped: XFS does not run here");
    }
    let mounted = Mounted(point.clone());
    fill(&mounted.0, 300);
    change(&mounted.0, 5, 400, Synced::All);
    fs::File::open(mounted.0.join("small")).unwrap().sync_all().unwrap();
    // As a machine leaves it whose power is lost.
    for name in ["data", "log"] {
        let (from, to) = (at(name), at(&format!("{name} later")));
        assert!(run("cp", &["--sparse=always", from.to_str().unwrap(), to.to_str().unwrap()]));
    }
    assert!(run("umount", &[point.to_str().unwrap()]));
    let open = |names: &[&str]| {
        let options = OpenOptions { read_only: true, ..OpenOptions::default() };
        let disk =
            |name: &&str| -> Arc<dyn Disk> { Arc::new(RawDisk::open(at(name), &options).unwrap()) };
        Guest::open(&names.iter().map(disk).collect::<Vec<_>>())
    };
    let listed = |guest: &Guest| of_guest(guest.tree().unwrap());
    let expected = |data: PathBuf, log: PathBuf| {
        let (data, log) = (Device::of(data).unwrap(), Device::of(log).unwrap());
        assert!(mount(&data.path, &log.path));
        of_host(&Mounted(point.clone()).0)
    };
    let clean = open(&["log", "data"]);
    let later = open(&["data later", "log later"]);
    for (guest, name) in [(&clean, "vdb"), (&later, "vda")] {
        let report = guest.report();
        assert_eq!(report.root.as_deref(), Some(name));
        assert!(report.volumes.iter().all(|volume| volume.notes.is_empty()), "{report:?}");
    }
    let (clean, later) = (listed(&clean), listed(&later));
    assert!(clean == expected(at("data"), at("log")));
    assert!(later == expected(at("data later"), at("log later")));

    let alone = open(&["data"]);
    let note = &alone.report().volumes[0].notes[0];
    assert!(note.starts_with("its log is on another device, which is not here"), "{note}");
    assert!(listed(&alone) == clean);
}

#[test]
fn a_realtime_device_is_told() {
    let image = Image { folder: tempfile::tempdir().unwrap() };
    let (path, realtime) = (image.path(), image.folder.path().join("realtime"));
    for path in [&path, &realtime] {
        fs::File::create(path).unwrap().set_len(320 * MIB).unwrap();
    }
    let option = format!("rtdev={}", realtime.display());
    if !run("mkfs.xfs", &["-q", "-f", "-r", &option, path.to_str().unwrap()]) {
        return eprintln!("skipped: mkfs.xfs does not run here");
    }
    let fs = image.open();
    assert_eq!(fs.notes(), ["files on its realtime device are not read here"]);
    assert_eq!(fs.read_dir("/").unwrap(), []);
}
