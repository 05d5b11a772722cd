//! Structures that are checked and set right, snapshots and other parents: each step is looked at by `qemu-img`, too.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use disk::{
    Checkup, CreateOptions, Error, Format, ImageOptions, NewParent, check, create_snapshot,
    delete_snapshot, open_chain, rebase, revert_to_snapshot,
};

use crate::common::{Workshop, has_qemu_img, read_only};

const MIB: usize = 1 << 20;
const CLUSTER: u64 = 65536;

/// What `qemu-img check` says: 0 all is well, 2 errors, 3 leaks.
fn qemu_check(path: &Path) -> i32 {
    let output = Command::new("qemu-img").args(["check", "-q"]).arg(path).output().unwrap();
    output.status.code().unwrap()
}

fn look(path: &Path) -> Checkup {
    check(path, &ImageOptions::default(), false).unwrap()
}

fn in_place() -> ImageOptions {
    ImageOptions::default()
}

#[track_caller]
fn assert_in_order(path: &Path) {
    let found = look(path);
    assert!(found.is_in_order(), "{found:?}");
    assert_eq!(qemu_check(path), 0);
}

struct Image {
    file: File,
}

impl Image {
    fn open(path: &Path) -> Self {
        Self { file: File::options().read(true).write(true).open(path).unwrap() }
    }

    fn word(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    }

    fn set(&self, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, at).unwrap();
    }

    fn first_table(&self) -> u64 {
        self.word(40)
    }

    fn second_table(&self) -> u64 {
        self.word(self.first_table()) & 0x00ff_ffff_ffff_fe00
    }

    /// Where an entry of the second level lies that leads to data.
    fn data_entry(&self) -> u64 {
        let table = self.second_table();
        let found = (0..512).map(|index| table + index * 8).find(|&at| self.word(at) != 0);
        found.unwrap()
    }

    /// Where the 16-bit count of a cluster lies.
    fn count(&self, cluster: u64) -> u64 {
        self.word(self.word(48)) + cluster * 2
    }
}

#[test]
fn images_of_qemu_are_in_order() {
    if !has_qemu_img() {
        return;
    }
    let shop = Workshop::new(5 * MIB + 1024);
    for options in [
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=2M",
        "refcount_bits=1",
        "refcount_bits=2",
        "refcount_bits=64",
        "extended_l2=on",
        "preallocation=metadata",
        "lazy_refcounts=on",
        "data_file=data.raw",
    ] {
        for compress in [false, true] {
            if compress && (options.contains("data_file") || options.contains("preallocation")) {
                continue;
            }
            let _ = fs::remove_file(shop.path("a.qcow2"));
            let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", options];
            if compress {
                arguments.push("-c");
            }
            arguments.extend(["disk.raw", "a.qcow2"]);
            shop.qemu_img(&arguments);
            let found = look(&shop.path("a.qcow2"));
            assert_eq!(found, Checkup::default(), "{options}");
        }
        if options.contains("data_file")
            || ["refcount_bits=1", "refcount_bits=2"].contains(&options)
        {
            continue;
        }
        shop.qemu_img(&["snapshot", "-c", "one", "a.qcow2"]);
        assert_in_order(&shop.path("a.qcow2"));
    }
    shop.qemu_img(&["create", "-f", "qcow2", "b.qcow2", "100M"]);
    shop.qemu_img(&["bitmap", "--add", "b.qcow2", "changes"]);
    assert_in_order(&shop.path("b.qcow2"));
}

#[test]
fn damage_that_qemu_finds_is_found_and_repaired() {
    if !has_qemu_img() {
        return;
    }
    type Damage = fn(&Image);
    // What was done, and whether that makes errors and leaks.
    let damages: [(&str, Damage, bool, bool); 8] = [
        (
            "a cluster that nothing uses",
            |image| {
                let end = image.file.metadata().unwrap().len();
                image.file.set_len(end + CLUSTER).unwrap();
                image.set(image.count(end / CLUSTER), &1_u16.to_be_bytes());
            },
            false,
            true,
        ),
        (
            "a cluster that is used and not counted",
            |image| {
                let host = image.word(image.data_entry()) & 0x00ff_ffff_ffff_fe00;
                image.set(image.count(host / CLUSTER), &0_u16.to_be_bytes());
            },
            true,
            false,
        ),
        (
            "a cluster that is counted too often",
            |image| {
                let host = image.word(image.data_entry()) & 0x00ff_ffff_ffff_fe00;
                image.set(image.count(host / CLUSTER), &9_u16.to_be_bytes());
            },
            false,
            true,
        ),
        (
            "a second table that might be shared",
            |image| {
                let entry = image.word(image.first_table()) & !(1 << 63);
                image.set(image.first_table(), &entry.to_be_bytes());
            },
            true,
            false,
        ),
        (
            "data that might be shared",
            |image| {
                let at = image.data_entry();
                let entry = image.word(at) & !(1 << 63);
                image.set(at, &entry.to_be_bytes());
            },
            true,
            false,
        ),
        ("counts without a table", |image| image.set(48, &[0; 12]), true, false),
        (
            "a block of counts at an odd place",
            |image| image.set(image.word(48), &12345_u64.to_be_bytes()),
            true,
            false,
        ),
        ("counts of another image", |image| image.set(image.count(0), &[0xff; 64]), false, true),
    ];
    let shop = Workshop::new(3 * MIB);
    for (what, damage, has_errors, has_leaks) in damages {
        shop.qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "disk.raw", "a.qcow2"]);
        let path = shop.path("a.qcow2");
        assert_in_order(&path);
        damage(&Image::open(&path));
        let found = look(&path);
        assert!(found.errors != 0 || !has_errors, "{what}: {found:?}");
        assert!(found.leaks != 0 || !has_leaks, "{what}: {found:?}");
        assert!(!found.is_in_order() && found.beyond_repair == 0, "{what}: {found:?}");
        assert_ne!(qemu_check(&path), 0, "{what}");
        let repaired = check(&path, &ImageOptions::default(), true).unwrap();
        assert!(repaired.is_repaired && repaired.is_in_order(), "{what}: {repaired:?}");
        assert_in_order(&path);
        shop.assert_holds("a.qcow2");
        // It can be written again.
        let disk = disk::open(&path, &in_place()).unwrap();
        disk.write_at(&shop.content[..MIB], 0).unwrap();
        disk.write_zeroes(0..MIB as u64, true).unwrap();
        disk.write_at(&shop.content[..MIB], 0).unwrap();
        drop(disk);
        assert_in_order(&path);
        shop.assert_holds("a.qcow2");
    }
}

#[test]
fn what_qemu_repairs_is_in_order() {
    if !has_qemu_img() {
        return;
    }
    let shop = Workshop::new(3 * MIB);
    shop.qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "disk.raw", "a.qcow2"]);
    let path = shop.path("a.qcow2");
    let image = Image::open(&path);
    image.set(image.count(3), &[0, 0, 0, 7, 0, 2]);
    assert!(!look(&path).is_in_order());
    let done = Command::new("qemu-img").args(["check", "-q", "-r", "all"]).arg(&path).status();
    assert!(done.unwrap().success());
    assert_in_order(&path);
}

#[test]
fn marks_are_taken_away_and_only_by_a_repair() {
    if !has_qemu_img() {
        return;
    }
    let shop = Workshop::new(MIB);
    for mark in [1_u64, 2, 3] {
        shop.qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "disk.raw", "a.qcow2"]);
        let path = shop.path("a.qcow2");
        Image::open(&path).set(72, &mark.to_be_bytes());
        assert!(disk::open(&path, &in_place()).is_err());
        let before = fs::read(&path).unwrap();
        assert_eq!(look(&path).errors, 1);
        assert!(fs::read(&path).unwrap() == before, "a look changes nothing");
        assert!(check(&path, &ImageOptions::default(), true).unwrap().is_in_order());
        assert!(disk::open(&path, &in_place()).is_ok());
        assert_in_order(&path);
    }
}

#[test]
fn what_cannot_be_repaired_is_told_and_left() {
    if !has_qemu_img() {
        return;
    }
    let shop = Workshop::new(3 * MIB);
    let damages: [fn(&Image); 4] = [
        // Data where the first table is.
        |image| image.set(image.second_table(), &(image.first_table() | 1 << 63).to_be_bytes()),
        |image| image.set(image.second_table(), &((1_u64 << 40) | 1 << 63).to_be_bytes()),
        |image| image.set(image.first_table(), &((1_u64 << 41) | 1 << 63).to_be_bytes()),
        |image| image.set(image.second_table(), &(512_u64 | 1 << 63).to_be_bytes()),
    ];
    for (number, damage) in damages.into_iter().enumerate() {
        shop.qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "disk.raw", "a.qcow2"]);
        let path = shop.path("a.qcow2");
        damage(&Image::open(&path));
        let found = look(&path);
        assert!(found.beyond_repair != 0, "{number}: {found:?}");
        assert_ne!(qemu_check(&path), 0, "{number}");
        let repaired = check(&path, &ImageOptions::default(), true).unwrap();
        assert!(!repaired.is_in_order(), "{number}: {repaired:?}");
    }
}

#[test]
fn places_that_two_parts_of_a_disk_share_are_found_in_every_format() {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("disk.raw");
    let content = crate::common::content(9 * MIB);
    fs::write(&raw, &content).unwrap();
    let raw = disk::open(&raw, &ImageOptions { format: Some(Format::Raw), ..read_only() }).unwrap();
    // Where the image says where its table lies.
    for to in ["vdi,block-size=1M", "parallels,block-size=1M", "vhd,block-size=512K", "vmdk"] {
        let width = 4;
        let path = folder.path().join("image");
        let _ = fs::remove_file(&path);
        let mut options = disk::ConvertOptions::new(Format::Raw);
        options.image = to.parse().unwrap();
        disk::convert(&*raw, &path, &options, |_| {}).unwrap();
        let found = look(&path);
        assert!(found.is_in_order(), "{to}: {found:?}");
        let image = Image::open(&path);
        let little = |at: u64| {
            let mut bytes = [0; 4];
            image.file.read_exact_at(&mut bytes, at).unwrap();
            u64::from(u32::from_le_bytes(bytes))
        };
        let table = match &to[..3] {
            "vdi" => little(340),
            "par" => 64,
            "vhd" => image.word(512 + 16),
            // The first table of the grain directory.
            _ => little(little(56) * 512) * 512,
        };
        let mut entries = vec![0; width * 64];
        image.file.read_exact_at(&mut entries, table).unwrap();
        let used: Vec<usize> = (0..64)
            .filter(|&index| {
                let entry = &entries[index * width..][..width];
                entry != [0; 4] && entry != [0xff; 4]
            })
            .collect();
        let (one, other) = (used[0], used[1]);
        let entry = entries[other * width..][..width].to_vec();
        image.set(table + (one * width) as u64, &entry);
        let found = look(&path);
        assert!(found.beyond_repair != 0, "{to}: {found:?}");
        assert!(found.findings[0].contains("both lie at"), "{to}: {found:?}");
    }
}

/// Content of the image, or of a snapshot of it, as qemu-img sees it.
fn qemu_reads(shop: &Workshop, name: &str, snapshot: Option<&str>) -> Vec<u8> {
    let _ = fs::remove_file(shop.path("out.raw"));
    let mut arguments = vec!["convert", "-O", "raw"];
    let wanted = snapshot.map(|snapshot| format!("snapshot.name={snapshot}"));
    if let Some(wanted) = &wanted {
        arguments.extend(["-l", wanted]);
    }
    arguments.extend([name, "out.raw"]);
    shop.qemu_img(&arguments);
    fs::read(shop.path("out.raw")).unwrap()
}

fn write(path: &Path, byte: u8, offset: usize, length: usize, content: &mut [u8]) {
    let disk = disk::open(path, &in_place()).unwrap();
    disk.write_at(&vec![byte; length], offset as u64).unwrap();
    content[offset..offset + length].fill(byte);
}

#[test]
fn snapshots_are_made_gone_back_to_and_deleted() {
    if !has_qemu_img() {
        return;
    }
    for options in ["", "cluster_size=4k", "extended_l2=on", "compat=0.10"] {
        for compress in [false, true] {
            let shop = Workshop::new(6 * MIB);
            let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2"];
            if compress {
                arguments.push("-c");
            }
            if !options.is_empty() {
                arguments.extend(["-o", options]);
            }
            arguments.extend(["disk.raw", "a.qcow2"]);
            shop.qemu_img(&arguments);
            let path = shop.path("a.qcow2");
            let mut now = shop.content.clone();
            let snapshot = create_snapshot(&path, "first").unwrap();
            assert_eq!((snapshot.id.as_str(), snapshot.length), ("1", now.len() as u64));
            assert_in_order(&path);
            let first = now.clone();
            write(&path, 7, 100_000, 3_000_000, &mut now);
            assert_in_order(&path);
            assert_eq!(create_snapshot(&path, "second").unwrap().id, "2");
            let second = now.clone();
            write(&path, 9, MIB, 4 * MIB, &mut now);
            assert_in_order(&path);
            assert!(qemu_reads(&shop, "a.qcow2", None) == now);
            assert!(qemu_reads(&shop, "a.qcow2", Some("first")) == first);
            assert!(qemu_reads(&shop, "a.qcow2", Some("second")) == second);
            let (_, chain) = open_chain(&path, &read_only()).unwrap();
            let names: Vec<_> = chain[0].snapshots.iter().map(|it| it.name.as_str()).collect();
            assert_eq!(names, ["first", "second"]);

            revert_to_snapshot(&path, "first").unwrap();
            assert_in_order(&path);
            now.clone_from(&first);
            assert!(qemu_reads(&shop, "a.qcow2", None) == now);
            write(&path, 5, 5 * MIB, 12_345, &mut now);
            assert_in_order(&path);
            assert!(qemu_reads(&shop, "a.qcow2", Some("first")) == first);

            delete_snapshot(&path, "1").unwrap();
            assert_in_order(&path);
            assert!(qemu_reads(&shop, "a.qcow2", None) == now);
            assert!(qemu_reads(&shop, "a.qcow2", Some("second")) == second);
            assert!(delete_snapshot(&path, "first").is_err());
            // QEMU goes on with what we made, and we with what it makes.
            shop.qemu_img(&["snapshot", "-c", "third", "a.qcow2"]);
            shop.qemu_img(&["snapshot", "-a", "second", "a.qcow2"]);
            assert_in_order(&path);
            revert_to_snapshot(&path, "third").unwrap();
            assert!(qemu_reads(&shop, "a.qcow2", None) == now);
            for name in ["second", "third"] {
                delete_snapshot(&path, name).unwrap();
                assert_in_order(&path);
            }
            assert!(qemu_reads(&shop, "a.qcow2", None) == now);
            write(&path, 1, 0, MIB, &mut now);
            assert_in_order(&path);
            assert!(qemu_reads(&shop, "a.qcow2", None) == now);
        }
    }
}

#[test]
fn snapshots_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    let mut options: CreateOptions = "qcow2".parse().unwrap();
    options.length = 1 << 20;
    disk::create(&path, &options).unwrap();
    create_snapshot(&path, "one").unwrap();
    for name in ["one", "1", ""] {
        assert!(create_snapshot(&path, name).is_err(), "{name:?}");
    }
    assert!(revert_to_snapshot(&path, "two").is_err());
    let user = disk::open(&path, &in_place()).unwrap();
    assert!(matches!(create_snapshot(&path, "two"), Err(Error::InUse { .. })));
    drop(user);
    fs::write(folder.path().join("raw"), vec![0; 1 << 20]).unwrap();
    assert!(create_snapshot(folder.path().join("raw"), "one").is_err());
}

/// Two parents that differ, and an overlay over the first.
fn family() -> (Workshop, Vec<u8>) {
    let shop = Workshop::new(4 * MIB);
    shop.qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "disk.raw", "old.qcow2"]);
    let mut other = shop.content.clone();
    other[MIB..2 * MIB].fill(3);
    other[3 * MIB..3 * MIB + 70_000].fill(0);
    // It is longer, too.
    other.resize(5 * MIB, 8);
    fs::write(shop.path("other.raw"), &other).unwrap();
    shop.qemu_img(&["convert", "-f", "raw", "-O", "vmdk", "other.raw", "new.vmdk"]);
    shop.qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "old.qcow2",
        "-F",
        "qcow2",
        "over.qcow2",
        "6M",
    ]);
    let mut content = shop.content.clone();
    content.resize(6 * MIB, 0);
    write(&shop.path("over.qcow2"), 6, 1_500_000, 200_000, &mut content);
    (shop, content)
}

fn parent(path: PathBuf) -> NewParent {
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    NewParent { path, name, format: None }
}

#[test]
fn an_overlay_with_another_parent_stays_the_same() {
    if !has_qemu_img() {
        return;
    }
    let (shop, content) = family();
    let path = shop.path("over.qcow2");
    assert!(qemu_reads(&shop, "over.qcow2", None) == content);
    let new = parent(shop.path("new.vmdk"));
    let done = rebase(&path, Some(&new), &ImageOptions::default(), false).unwrap();
    assert!(done.data != 0 && done.data <= MIB as u64 + 2 * CLUSTER, "{done:?}");
    // Where the new parent is longer, at least.
    assert!(done.zeroes >= MIB as u64, "{done:?}");
    assert_in_order(&path);
    let (_, chain) = open_chain(&path, &read_only()).unwrap();
    assert_eq!((chain.len(), chain[1].format), (2, Format::Vmdk));
    fs::remove_file(shop.path("old.qcow2")).unwrap();
    assert!(qemu_reads(&shop, "over.qcow2", None) == content);
    // And without any.
    rebase(&path, None, &ImageOptions::default(), false).unwrap();
    fs::remove_file(shop.path("new.vmdk")).unwrap();
    assert_in_order(&path);
    assert!(qemu_reads(&shop, "over.qcow2", None) == content);
    let (_, chain) = open_chain(&path, &read_only()).unwrap();
    assert_eq!(chain.len(), 1);
    // From none to one: its bytes do not show through.
    let raw = NewParent { format: Some(Format::Raw), ..parent(shop.path("other.raw")) };
    rebase(&path, Some(&raw), &ImageOptions::default(), false).unwrap();
    assert_in_order(&path);
    assert!(qemu_reads(&shop, "over.qcow2", None) == content);
}

#[test]
fn a_parent_that_moved_is_named_anew() {
    if !has_qemu_img() {
        return;
    }
    let (shop, content) = family();
    let path = shop.path("over.qcow2");
    fs::rename(shop.path("old.qcow2"), shop.path("a-much-longer-name-than-before.qcow2")).unwrap();
    assert!(disk::open(&path, &read_only()).is_err());
    let mut moved = parent(shop.path("a-much-longer-name-than-before.qcow2"));
    assert!(rebase(&path, Some(&moved), &ImageOptions::default(), false).is_err());
    assert!(rebase(&path, Some(&moved), &ImageOptions::default(), true).is_err());
    moved.format = Some(Format::Qcow2);
    rebase(&path, Some(&moved), &ImageOptions::default(), true).unwrap();
    assert_in_order(&path);
    assert!(qemu_reads(&shop, "over.qcow2", None) == content);
    shop.assert_holds("a-much-longer-name-than-before.qcow2");
    let own = parent(path.clone());
    let error = rebase(&path, Some(&own), &ImageOptions::default(), false).unwrap_err();
    assert!(matches!(error, Error::Chain(_)), "{error}");
}
