//! Losses of power while an image is changed: what was flushed must be there, and the image must open.

mod action;
mod folder;
mod growing;
mod images;

use std::ops::Range;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

pub(crate) use action::{Action, action};
pub(crate) use folder::{Files, Folder};
pub(crate) use images::image;
use images::parent;

use crate::check::look_into;
use crate::{Disk, Format};

/// Several blocks of the largest kind here, the last one not whole.
const LENGTH: u64 = (3 << 20) + 1536;
const SECTOR: usize = 512;

pub(crate) fn content(disk: &dyn Disk) -> Vec<u8> {
    let mut bytes = vec![0; disk.len() as usize];
    disk.read_at(&mut bytes, 0).unwrap();
    bytes
}

fn run<S: Strategy>(cases: u32, strategy: S, test: impl Fn(S::Value)) {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) };
    let result = TestRunner::new(config).run(&strategy, |value| {
        test(value);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (number, (found, expected)) in found.chunks(SECTOR).zip(expected.chunks(SECTOR)).enumerate()
    {
        assert!(found == expected, "{what}: sector {number}");
    }
}

/// Nothing in an image contradicts itself; space that is lost is allowed, and so is a mark that it was not closed.
fn assert_sound(format: Format, files: &Files, what: &str) {
    let folder = Folder::read_only(files);
    let found = if format == Format::Qcow2 {
        crate::qcow2::check(folder.main(), false).unwrap()
    } else {
        let details = folder.parse(format).unwrap().details;
        look_into(&folder.open(format, None).unwrap(), &details).unwrap()
    };
    assert_eq!(found.beyond_repair, 0, "{what}: {:?}", found.findings);
}

/// Whether a parent can have a part of the disk: fixed disks have no place for what a parent would have.
fn has_parents(text: &str) -> bool {
    !["fixed", "of two", "data-file"].iter().any(|kind| text.contains(kind))
}

/// Whatever is done to an image, it reads as a vector to which the same was done, also once it is reopened.
fn behaves_like_a_vector(text: &str) {
    let (format, empty) = image(text);
    let (parent, inherited) = parent();
    let actions = prop::collection::vec(action(LENGTH), 1..20);
    let has_parent = prop::bool::weighted(if has_parents(text) { 0.5 } else { 0.0 });
    run(12, (actions, has_parent), |(actions, has_parent)| {
        let folder = Folder::new(&empty);
        let parent = has_parent.then(|| parent.clone());
        let disk = folder.open(format, parent.clone()).unwrap();
        let mut model = content(&disk);
        if !text.contains("single sectors") {
            let zeroes = vec![0; LENGTH as usize];
            assert_same(&model, if has_parent { &inherited } else { &zeroes }, "untouched");
        }
        for action in &actions {
            action.apply(&disk, &mut model).unwrap();
        }
        assert_same(&content(&disk), &model, "open");
        drop(disk);
        let disk = Folder::read_only(&folder.files()).open(format, parent).unwrap();
        assert_same(&content(&disk), &model, "reopened");
        assert!(disk.is_read_only());
    });
}

/// Cuts the writes anywhere, loses any of those after the last flush, and looks for what was flushed; then
/// goes on with what is left.
fn survives_crashes(text: &str) {
    let (format, empty) = image(text);
    let (parent, _) = parent();
    let actions = prop::collection::vec(action(LENGTH), 5..20);
    let seeds = prop::collection::vec(any::<u64>(), 20);
    let has_parent = prop::bool::weighted(if has_parents(text) { 0.5 } else { 0.0 });
    run(10, (actions, seeds, has_parent), |(actions, seeds, has_parent)| {
        let parent = has_parent.then(|| parent.clone());
        let folder = Folder::new(&empty);
        let disk = folder.open(format, parent.clone()).unwrap();
        let mut model = content(&disk);
        // Each flush: the events before it returned, the content then, and what changed after it.
        let mut flushed: Vec<(usize, Vec<u8>, Vec<Range<u64>>)> =
            vec![(0, model.clone(), Vec::new())];
        for action in &actions {
            if let (Some((.., touched)), Some(range)) = (flushed.last_mut(), action.range()) {
                touched.push(range);
            }
            action.apply(&disk, &mut model).unwrap();
            if matches!(action, Action::Flush) {
                flushed.push((folder.events(), model.clone(), Vec::new()));
            }
        }
        drop(disk);
        let events = folder.events();
        for seed in seeds {
            let cut = seed as usize % (events + 1);
            let left = folder.crash(cut, seed);
            let (_, expected, touched) = flushed.iter().rfind(|(at, ..)| *at <= cut).unwrap();
            let check = |disk: &dyn Disk, what: &str| {
                let found = content(disk);
                let sectors = found.chunks(SECTOR).zip(expected.chunks(SECTOR));
                for (number, (found, expected)) in sectors.enumerate() {
                    let (start, end) =
                        ((number * SECTOR) as u64, (number * SECTOR + found.len()) as u64);
                    let is_touched =
                        touched.iter().any(|range| range.start < end && start < range.end);
                    assert!(
                        is_touched || found == expected,
                        "{what}: sector {number}, {cut} of {events}"
                    );
                }
                found
            };
            let reader = Folder::read_only(&left);
            check(&reader.open(format, parent.clone()).unwrap(), "read-only");
            assert!(reader.files() == left);
            assert_sound(format, &left, "after the crash");
            let folder = Folder::new(&left);
            let disk = folder.open(format, parent.clone()).unwrap();
            let mut found = check(&disk, "writable");
            for (at, value) in [(seed % (LENGTH - 5000), 0x5a), (LENGTH - 700, 0x77)] {
                found[at as usize..at as usize + 600].fill(value);
                disk.write_at(&vec![value; 600], at).unwrap();
            }
            assert_same(&content(&disk), &found, "after the crash");
            drop(disk);
            let left = folder.files();
            let disk = Folder::read_only(&left).open(format, parent.clone()).unwrap();
            assert_same(&content(&disk), &found, "after the crash, reopened");
            assert_sound(format, &left, "after the crash, reopened");
        }
    });
}

/// Threads that write and flush side by side, each with every fourth sector: blocks are made by one and
/// shared by all.
fn takes_threads(text: &str) {
    let (format, empty) = image(text);
    let folder = Folder::new(&empty);
    let disk = folder.open(format, None).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let disk = &disk;
            scope.spawn(move || {
                for sector in (thread..LENGTH / 512).step_by(4) {
                    disk.write_at(&[thread as u8 + 1; SECTOR], sector * 512).unwrap();
                    if sector % 512 == thread {
                        disk.flush().unwrap();
                    }
                }
            });
        }
    });
    drop(disk);
    let disk = Folder::read_only(&folder.files()).open(format, None).unwrap();
    for (sector, bytes) in content(&disk).chunks(SECTOR).enumerate() {
        assert!(bytes.iter().all(|&byte| byte == sector as u8 % 4 + 1), "sector {sector}");
    }
}

/// Damages an image anywhere; neither reading nor writing may panic or hang.
fn stays_calm(text: &str) {
    let (format, empty) = image(text);
    let folder = Folder::new(&empty);
    let disk = folder.open(format, None).unwrap();
    disk.write_at(&vec![3; 1 << 20], 5000).unwrap();
    drop(disk);
    let whole = folder.files();
    let main = &whole[0].1;
    // Where the structures are: the first bytes of each 64 KiB, and the last ones of all.
    let at = (0..main.len() / 65536 + 1, 0..1024_usize);
    let changes = prop::collection::vec((at, any::<u8>()), 1..12);
    run(60, (changes, any::<bool>()), |(changes, is_writable)| {
        let mut damaged = whole.clone();
        let bytes = &mut damaged[0].1;
        for ((page, within), value) in changes {
            let last = bytes.len() - 1;
            let at = page * 65536 + within;
            bytes[if at <= last { at } else { last - within.min(last) }] = value;
        }
        if !is_writable {
            crate::fuzz::read_all(format, bytes);
            return;
        }
        let folder = Folder::new(&damaged);
        if let Ok(disk) = folder.open(format, None) {
            let length = disk.len().min(70_000);
            let _ = disk.write_at(&vec![7; length as usize], 0);
            let _ = disk.write_zeroes(0..length, true);
            let _ = disk.discard(0..length);
            let _ = disk.flush();
        }
        // A block has 256 MiB at most.
        let length = folder.files().iter().map(|(_, bytes)| bytes.len()).max().unwrap();
        assert!(length < 1 << 30, "the image grew to {length} bytes");
    });
}

macro_rules! formats {
    ($($name:ident: $text:literal),+ $(,)?) => {$(
        mod $name {
            #[test]
            fn behaves_like_a_vector() {
                super::behaves_like_a_vector($text);
            }

            #[test]
            fn a_crash_anywhere_keeps_what_was_flushed() {
                super::survives_crashes($text);
            }

            #[test]
            fn threads_that_write_side_by_side_lose_nothing() {
                super::takes_threads($text);
            }

            #[test]
            fn damage_anywhere_neither_panics_nor_hangs() {
                super::stays_calm($text);
            }
        }
    )+};
}

formats! {
    qcow2: "qcow2",
    qcow2_small_clusters: "qcow2,cluster-size=4k",
    qcow2_subclusters: "qcow2,extended-l2=on",
    qcow2_data_file: "qcow2,data-file=guest.data",
    vmdk: "vmdk",
    vmdk_small_grains: "vmdk,block-size=4k",
    vmdk_flat: "vmdk,layout=fixed",
    vmdk_extents: "vmdk of two extents",
    vdi: "vdi",
    vdi_static: "vdi,layout=fixed",
    vhd: "vhd,block-size=512k",
    vhd_sectors: "vhd of single sectors",
    vhd_fixed: "vhd,layout=fixed",
    vhdx: "vhdx,block-size=1M",
    vhdx_fixed: "vhdx,layout=fixed,block-size=1M",
    parallels: "parallels",
    parallels_small_clusters: "parallels,block-size=4k",
    parallels_parts: "parallels of two parts",
}

#[test]
fn an_entry_far_past_the_file_does_not_make_it_longer() {
    let (format, empty) = image("parallels");
    let folder = Folder::new(&empty);
    let disk = folder.open(format, None).unwrap();
    disk.write_at(&[3; SECTOR], 0).unwrap();
    drop(disk);
    let mut files = folder.files();
    // The table's first entry, behind a header of 64 bytes.
    files[0].1[64..68].copy_from_slice(&0x7fff_0000_u32.to_le_bytes());
    let folder = Folder::new(&files);
    let disk = folder.open(format, None).unwrap();
    assert!(disk.write_at(&[4; SECTOR], 0).is_err());
    drop(disk);
    assert_eq!(folder.files()[0].1.len(), files[0].1.len());
}
