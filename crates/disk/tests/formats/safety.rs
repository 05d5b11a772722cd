//! What must not happen to an image, whatever its format: changes by readers, two writers at once.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use disk::{ConvertOptions, Error, Format, ImageOptions};

use crate::common::{Workshop, chain, open, read_only};

const LENGTH: usize = (3 << 20) + 512;

/// One image of each kind, by what makes it and its ending.
const WAYS: [(&str, &str); 18] = [
    ("raw", "raw"),
    ("qcow2", "qcow2"),
    ("qcow2,compression=zstd", "qcow2"),
    ("qcow2,data-file=guest.data", "qcow2"),
    ("vmdk", "vmdk"),
    ("vmdk,layout=stream", "vmdk"),
    ("vmdk,layout=fixed", "vmdk"),
    ("vmdk,layout=split-sparse", "vmdk"),
    ("vmdk,layout=split-fixed", "vmdk"),
    ("vhd", "vhd"),
    ("vhd,layout=fixed", "vhd"),
    ("vhdx", "vhdx"),
    ("vhdx,layout=fixed,block-size=1M", "vhdx"),
    ("vdi", "vdi"),
    ("vdi,layout=fixed", "vdi"),
    ("parallels", "hds"),
    ("parallels,block-size=64k", "hds"),
    ("qcow2,extended-l2=on", "qcow2"),
];

/// Makes an image that holds the workshop's disk.
fn make(workshop: &Workshop, text: &str, name: &str) {
    let mut options = ConvertOptions::new(Format::Raw);
    options.image = text.parse().unwrap();
    options.replace = true;
    let source = open(&workshop.path("disk.raw"));
    disk::convert(&*source, workshop.path(name), &options, |_| {})
        .unwrap_or_else(|error| panic!("{text}: {}", chain(&error)));
}

/// Every file of a folder with its bytes and its time.
fn files(folder: &Path) -> BTreeMap<String, (Vec<u8>, SystemTime)> {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    let files = entries.filter(|entry| entry.path().is_file()).map(|entry| {
        let modified = entry.metadata().unwrap().modified().unwrap();
        let name = entry.file_name().into_string().unwrap();
        (name, (std::fs::read(entry.path()).unwrap(), modified))
    });
    files.collect()
}

/// Sets back the time of every file, so that a change shows however soon it comes.
fn age(folder: &Path) {
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    for entry in std::fs::read_dir(folder).unwrap().flatten().filter(|it| it.path().is_file()) {
        let file = std::fs::File::options().write(true).open(entry.path()).unwrap();
        file.set_modified(long_ago).unwrap();
    }
}

/// Does to an image all that only reads, and compares what is there afterwards.
fn assert_reading_leaves(workshop: &Workshop, name: &str, what: &str) {
    age(workshop.folder.path());
    let before = files(workshop.folder.path());
    let path = workshop.path(name);
    let disk = open(&path);
    let mut bytes = vec![0; disk.len() as usize];
    disk.read_at(&mut bytes, 0).unwrap_or_else(|error| panic!("{what}: {}", chain(&error)));
    disk::read_all(&*disk, |_| {}).unwrap();
    disk::compare(&*disk, &*disk, |_| {}).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let raw = ConvertOptions::new(Format::Raw);
    disk::convert(&*disk, elsewhere.path().join("copy"), &raw, |_| {}).unwrap();
    for refused in
        [disk.write_at(&[1; 512], 0), disk.write_zeroes(0..512, true), disk.discard(0..512)]
    {
        assert!(matches!(refused, Err(Error::ReadOnly)), "{what}");
    }
    disk.flush().unwrap();
    drop(disk);
    disk::check(&path, &read_only(), false).unwrap();
    // Whoever could write and does not leaves it alone, too, unless a log is to be carried out.
    if !what.contains("log") {
        match disk::open(&path, &ImageOptions::default()) {
            Ok(disk) => disk.read_at(&mut bytes, 0).unwrap(),
            Err(error) => assert!(what.contains("dirty"), "{what}: {}", chain(&error)),
        }
    }
    let after = files(workshop.folder.path());
    assert!(before.keys().eq(after.keys()), "{what}: {:?}", after.keys());
    for (name, file) in &before {
        assert!(file == &after[name], "{what}: {name} was changed");
    }
}

#[test]
fn reading_changes_no_image_of_any_format() {
    let workshop = Workshop::new(LENGTH);
    for (index, (text, ending)) in WAYS.into_iter().enumerate() {
        let name = format!("{index}.{ending}");
        make(&workshop, text, &name);
        assert_reading_leaves(&workshop, &name, text);
    }
}

#[test]
fn reading_changes_no_image_that_was_not_closed_in_order() {
    let workshop = Workshop::new(LENGTH);
    // What a writer leaves that is killed: its state after a flush, while it is still open.
    for (index, text) in
        ["qcow2", "vhdx,block-size=1M", "vhd", "vdi", "vmdk", "parallels"].into_iter().enumerate()
    {
        let (open, left) = (format!("{index}.open"), format!("{index}.left"));
        make(&workshop, text, &open);
        let writer = disk::open(workshop.path(&open), &ImageOptions::default()).unwrap();
        writer.write_at(&[7; 70_000], 1_000_000).unwrap();
        writer.flush().unwrap();
        std::fs::copy(workshop.path(&open), workshop.path(&left)).unwrap();
        drop(writer);
        std::fs::remove_file(workshop.path(&open)).unwrap();
        assert_reading_leaves(&workshop, &left, &format!("{text}, with a log or a mark"));
    }
    // Marks that say so: qcow2's dirty bit, the one of Parallels.
    make(&workshop, "qcow2", "dirty.qcow2");
    make(&workshop, "parallels", "dirty.hds");
    for (name, at, value) in [
        ("dirty.qcow2", 79, [1].as_slice()),
        ("dirty.hds", 44, 0x746f_6e59_u32.to_le_bytes().as_slice()),
    ] {
        let mut bytes = std::fs::read(workshop.path(name)).unwrap();
        bytes[at..at + value.len()].copy_from_slice(value);
        std::fs::write(workshop.path(name), bytes).unwrap();
        assert_reading_leaves(&workshop, name, "dirty");
    }
}

#[test]
fn two_writers_are_kept_out_of_an_image_of_any_format() {
    let workshop = Workshop::new(LENGTH);
    for (index, (text, ending)) in WAYS.into_iter().enumerate() {
        let name = format!("{index}.{ending}");
        make(&workshop, text, &name);
        let path = workshop.path(&name);
        let open = |read_only| disk::open(&path, &ImageOptions { read_only, ..Default::default() });
        let is_in_use = |found: disk::Result<()>| match found {
            Err(Error::Image { source, .. }) => matches!(*source, Error::InUse { .. }),
            Err(error) => matches!(error, Error::InUse { .. }),
            Ok(()) => false,
        };
        let writer = open(false).unwrap();
        if writer.is_read_only() {
            // What nobody can write needs no more than readers' locks.
            assert!(text.contains("stream"), "{text}");
            continue;
        }
        assert!(is_in_use(open(false).map(drop)), "{text}: a second writer");
        assert!(is_in_use(open(true).map(drop)), "{text}: a reader beside a writer");
        assert!(
            is_in_use(disk::check(&path, &ImageOptions::default(), true).map(drop)),
            "{text}: a repair"
        );
        drop(writer);
        let readers = [open(true).unwrap(), open(true).unwrap()];
        assert!(is_in_use(open(false).map(drop)), "{text}: a writer beside readers");
        drop(readers);
        drop(open(false).unwrap());
    }
}

#[test]
fn what_changes_an_image_keeps_out_of_one_that_is_open() {
    let workshop = Workshop::new(LENGTH);
    make(&workshop, "qcow2", "base.qcow2");
    let base = open(&workshop.path("base.qcow2"));
    let over = workshop.path("over.qcow2");
    let named = Some(("base.qcow2".to_owned(), Format::Qcow2));
    drop(disk::overlay(&over, base, named).unwrap());
    let options = ImageOptions::default();
    for read_only in [false, true] {
        let user = disk::open(&over, &ImageOptions { read_only, ..options.clone() }).unwrap();
        let refused = |what: &str, done: disk::Result<()>| {
            let Err(error) = done else { panic!("{what} while it is open") };
            assert!(chain(&error).contains("use"), "{what}: {}", chain(&error));
        };
        refused("resize", disk::resize(&over, 8 << 20, &options));
        refused("snapshot", disk::create_snapshot(&over, "one").map(drop));
        refused("commit", disk::commit(&over, &options).map(drop));
        refused("rebase", disk::rebase(&over, None, &options, false).map(drop));
        drop(user);
    }
    // A parent that somebody reads cannot be written to either.
    let reader = open(&workshop.path("base.qcow2"));
    let Err(error) = disk::commit(&over, &options) else { panic!("committed under a reader") };
    assert!(chain(&error).contains("use"), "{}", chain(&error));
    drop(reader);
    disk::commit(&over, &options).unwrap();
}
