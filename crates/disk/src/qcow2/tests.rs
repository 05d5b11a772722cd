use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::header::Checked;
use super::map::{COMPRESSED, COPIED, OFFSET};
use super::refcount::Refcounts;
use super::*;
use crate::cache::Tables;
use crate::crash::{Action, Folder, action, content};
use crate::source::WritableSource;
use crate::{Disk, MemorySource};

const LENGTH: u64 = 300 << 10;

fn empty(cluster_bits: u32, length: u64) -> Vec<u8> {
    let source = MemorySource::new(Vec::new());
    let options = Qcow2Options { cluster_bits, ..Qcow2Options::new(length) };
    write_empty(&source, &options).unwrap();
    source.to_vec()
}

fn open(source: Arc<dyn Source>, parent: Option<Arc<dyn Disk>>) -> Result<Image> {
    let neighbours = Neighbours { read_only: false, ..Neighbours::NONE };
    let parsed = parse(source, &neighbours, None)?;
    Ok(Image::new(Format::Qcow2, parsed.layer, parsed.length, parent, false))
}

/// A parent that is shorter than its children, with bytes that are nowhere zero.
fn parent() -> (Arc<dyn Disk>, Vec<u8>) {
    let length = 200 << 10;
    let bytes: Vec<u8> = (0..length).map(|at: u64| (at / 512 % 255) as u8 + 1).collect();
    let disk = open(Arc::new(MemorySource::new(empty(12, length))), None).unwrap();
    disk.write_at(&bytes, 0).unwrap();
    let mut model = bytes;
    model.resize(LENGTH as usize, 0);
    (Arc::new(disk), model)
}

/// Counts every reference anew. What is counted but not used is a leak; the reverse would lose data.
fn check(bytes: Vec<u8>, leaks_allowed: bool) {
    let source: Arc<dyn Source> = Arc::new(MemorySource::new(bytes));
    let checked = Checked::read(&*source).unwrap();
    let size = checked.cluster_size();
    let mut references: BTreeMap<u64, u64> = BTreeMap::new();
    let mut refer = |offset: u64, length: u64| {
        for cluster in offset / size..(offset + length).div_ceil(size) {
            *references.entry(cluster).or_default() += 1;
        }
    };
    let header = &checked.header;
    refer(0, size);
    refer(header.l1_table_offset.get(), u64::from(header.l1_size.get()) * 8);
    let table = header.refcount_table_offset.get();
    let table_length = u64::from(header.refcount_table_clusters.get()) * size;
    refer(table, table_length);
    let tables = Tables::new(source.clone());
    for index in 0..table_length / 8 {
        match tables.be64(table, index).unwrap() {
            0 => {}
            block => refer(block, size),
        }
    }
    let map = Map::new(&checked, source.clone(), None);
    for index in 0..u64::from(header.l1_size.get()) {
        let l1 = tables.be64(header.l1_table_offset.get(), index).unwrap();
        if l1 & OFFSET == 0 {
            continue;
        }
        refer(l1 & OFFSET, size);
        for index in 0..size / map.entry_size() {
            let entry = map.l2_entry(l1 & OFFSET, index).unwrap();
            if entry.cluster & COMPRESSED != 0 {
                let grain = map.grain(entry.cluster, 0);
                refer(grain.offset, grain.length.into());
            } else if entry.cluster & OFFSET != 0 {
                assert_ne!(entry.cluster & COPIED, 0);
                refer(entry.cluster & OFFSET, size);
            }
        }
    }
    let refcounts = Refcounts::new(&checked, source.len());
    for cluster in 0..source.len().div_ceil(size) + 64 {
        let count = refcounts.get(&tables, cluster).unwrap();
        let wanted = references.remove(&cluster).unwrap_or(0);
        assert!(count >= wanted, "cluster {cluster}: {count} counted, {wanted} used");
        assert!(leaks_allowed || count == wanted, "cluster {cluster} leaks");
    }
    assert!(references.is_empty(), "past the end: {references:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(16) })]

    #[test]
    fn an_image_behaves_like_a_vector_and_counts_right(
        actions in prop::collection::vec(action(LENGTH), 1..30),
        cluster_bits in prop_oneof![Just(9_u32), Just(12), Just(16)],
        has_parent in any::<bool>(),
    ) {
        let source = Arc::new(MemorySource::new(empty(cluster_bits, LENGTH)));
        let (parent, mut model) = match has_parent {
            true => { let (disk, model) = parent(); (Some(disk), model) }
            false => (None, vec![0; LENGTH as usize]),
        };
        let disk = open(source.clone(), parent.clone()).unwrap();
        for action in &actions {
            action.apply(&disk, &mut model).unwrap();
        }
        prop_assert!(content(&disk) == model);
        drop(disk);
        check(source.to_vec(), false);
        let disk = open(source, parent).unwrap();
        prop_assert!(content(&disk) == model);
    }

    #[test]
    fn a_crash_anywhere_keeps_what_was_flushed(
        actions in prop::collection::vec(action(LENGTH), 5..25),
        cluster_bits in prop_oneof![Just(9_u32), Just(12)],
        seeds in prop::collection::vec(any::<u64>(), 12),
    ) {
        let start = empty(cluster_bits, LENGTH);
        let folder = Folder::new(&vec![(String::new(), start)]);
        let disk = open(folder.main(), None).unwrap();
        let mut model = vec![0; LENGTH as usize];
        // Each flush: how many events came before it returned, and the content then. Between two of
        // them, what changed.
        let mut flushed = vec![(0, model.clone(), vec![false; LENGTH as usize])];
        for action in &actions {
            // What a change touches, if only in part before the crash, may be old or new.
            if let Some((_, _, touched)) = flushed.last_mut() {
                let (from, count) = match *action {
                    Action::Write(at, count, _) | Action::Zero(at, count, _) | Action::Discard(at, count) => (at, count),
                    Action::Flush => (0, 0),
                };
                touched[from as usize..(from + count).min(LENGTH) as usize].fill(true);
            }
            action.apply(&disk, &mut model).unwrap();
            if matches!(action, Action::Flush) {
                flushed.push((folder.events(), model.clone(), vec![false; LENGTH as usize]));
            }
        }
        let events = folder.events();
        for seed in seeds {
            let cut = seed as usize % (events + 1);
            let after = folder.crash(cut, seed).remove(0).1;
            check(after.clone(), true);
            let found = content(&open(Arc::new(MemorySource::new(after)), None).unwrap());
            let (_, expected, touched) = flushed.iter().rfind(|(at, ..)| *at <= cut).unwrap();
            for at in (0..LENGTH as usize).filter(|&at| !touched[at]) {
                prop_assert_eq!(found[at], expected[at], "byte {} after {} of {} events", at, cut, events);
            }
        }
        drop(disk);
        check(folder.files().remove(0).1, false);
    }
}

#[test]
fn the_table_of_counts_grows() {
    // With clusters of 512 bytes a table of one cluster counts 8 MiB.
    let length = 12 << 20;
    let mut bytes = empty(9, length);
    let source = MemorySource::new(std::mem::take(&mut bytes));
    source.write_at(&1_u32.to_be_bytes(), 56).unwrap();
    let source = Arc::new(source);
    let disk = open(source.clone(), None).unwrap();
    let pattern: Vec<u8> = (0..length).map(|at| (at / 512 % 251) as u8).collect();
    disk.write_at(&pattern, 0).unwrap();
    disk.flush().unwrap();
    drop(disk);
    let checked = Checked::read(&*source).unwrap();
    assert!(checked.header.refcount_table_clusters.get() > 1);
    let disk = open(source, None).unwrap();
    assert!(content(&disk) == pattern);
}

#[test]
fn threads_that_write_side_by_side_lose_nothing() {
    let source = Arc::new(MemorySource::new(empty(12, LENGTH)));
    let disk = open(source.clone(), None).unwrap();
    // Neighbours within clusters, so that each cluster is made by one and shared by all.
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let disk = &disk;
            scope.spawn(move || {
                for sector in (thread..LENGTH / 512).step_by(4) {
                    disk.write_at(&[thread as u8 + 1; 512], sector * 512).unwrap();
                }
            });
        }
    });
    let found = content(&disk);
    for (sector, bytes) in found.chunks(512).enumerate() {
        assert!(bytes.iter().all(|&byte| byte == sector as u8 % 4 + 1), "sector {sector}");
    }
    drop(disk);
    check(source.to_vec(), false);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

    #[test]
    fn any_header_and_tables_are_read_without_panic(
        changes in prop::collection::vec((0..0x5_0000_usize, any::<u8>()), 1..40),
        header in prop::collection::vec((0..112_usize, any::<u8>()), 0..4),
    ) {
        let mut bytes = empty(12, LENGTH);
        let disk = open(Arc::new(MemorySource::new(bytes.clone())), None).unwrap();
        drop(disk);
        for (at, value) in changes.into_iter().chain(header) {
            let length = bytes.len();
            bytes[at % length] = value;
        }
        crate::fuzz::read_all(Format::Qcow2, &bytes);
        // Writing must not panic either, whatever it answers.
        let source = Arc::new(MemorySource::new(bytes));
        if let Ok(disk) = open(source.clone(), None) {
            let length = disk.len().min(70_000);
            let _ = disk.write_at(&vec![7; length as usize], 0);
            let _ = disk.discard(0..length);
            let _ = disk.write_zeroes(0..length, true);
            let _ = disk.flush();
        }
        prop_assert!(source.len() < 1 << 30, "the image grew to {} bytes", source.len());
    }
}

/// An image of small clusters with data, in which anything may then be changed.
fn sample() -> Vec<u8> {
    let source = Arc::new(MemorySource::new(empty(9, LENGTH)));
    let disk = open(source.clone(), None).unwrap();
    disk.write_at(&[7; 30_000], 1000).unwrap();
    disk.write_zeroes(5000..9000, true).unwrap();
    drop(disk);
    source.to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn what_is_repaired_stays_in_order_whatever_was_damaged(
        changes in prop::collection::vec((0..1_usize << 20, any::<u8>()), 0..12),
    ) {
        let mut bytes = sample();
        for (at, value) in changes {
            // Half of them in the header and the tables right after it.
            let within = if at % 2 == 0 { bytes.len() } else { 8192.min(bytes.len()) };
            bytes[at / 2 % within] = value;
            // Compressed data may seem to be anywhere.
            if value == 0x40 {
                bytes[(at / 2 % within) & !7] = value;
            }
        }
        let source = Arc::new(MemorySource::new(bytes));
        let found = check::check(source.clone(), false);
        if let Ok(repaired) = check::check(source.clone(), true) {
            prop_assert!(found.is_ok());
            let again = check::check(source.clone(), false).unwrap();
            // What two things use may come right as well, once the counts are elsewhere.
            prop_assert!(repaired.beyond_repair != 0 || again.is_in_order(), "{:?}", again);
        }
    }
}
