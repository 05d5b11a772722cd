//! Losses of power while an image is changed: what was flushed must be there, and the image must open.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::layer::Image;
use crate::open::{Neighbours, parse};
use crate::source::{Source, WritableSource};
use crate::{CreateOptions, Disk, Format, MemorySource, Result};

/// Several blocks of the largest kind here, the last one not whole.
const LENGTH: u64 = (3 << 20) + 1536;
const SECTOR: usize = 512;

/// A new image's bytes.
fn image(text: &str) -> (Format, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let mut options: CreateOptions = text.parse().unwrap();
    options.length = LENGTH;
    crate::create(&path, &options).unwrap();
    (options.format, std::fs::read(path).unwrap())
}

fn open(format: Format, source: Arc<dyn Source>, parent: Option<Arc<dyn Disk>>) -> Result<Image> {
    let read_only = source.writable().is_none();
    let parsed = parse(source, format, &Neighbours { read_only, ..Neighbours::NONE }, None)?;
    Ok(Image::new(format, parsed.layer, parsed.length, parent, read_only))
}

/// Bytes that are nowhere zero, in a disk that is shorter than its child.
fn parent() -> (Arc<dyn Disk>, Vec<u8>) {
    let mut bytes: Vec<u8> =
        (0..LENGTH / 4 * 3 / 512 * 512).map(|at| (at / 512 % 255) as u8 + 1).collect();
    let (format, image) = image("vmdk");
    let disk = open(format, Arc::new(MemorySource::new(image)), None).unwrap();
    disk.write_at(&bytes, 0).unwrap();
    bytes.resize(LENGTH as usize, 0);
    (Arc::new(disk), bytes)
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

/// Whatever is done to an image, it reads as a vector to which the same was done, also once it is reopened.
fn behaves_like_a_vector(text: &str) {
    let (format, empty) = image(text);
    let (parent, inherited) = parent();
    let actions = prop::collection::vec(action(LENGTH), 1..20);
    // A fixed disk has no place for what a parent would have.
    let has_parent = prop::bool::weighted(if text.contains("fixed") { 0.0 } else { 0.5 });
    run(12, (actions, has_parent), |(actions, has_parent)| {
        let source = Arc::new(MemorySource::new(empty.clone()));
        let parent = has_parent.then(|| parent.clone());
        let mut model = if has_parent { inherited.clone() } else { vec![0; LENGTH as usize] };
        let disk = open(format, source.clone(), parent.clone()).unwrap();
        assert_same(&content(&disk), &model, "untouched");
        for action in &actions {
            action.apply(&disk, &mut model).unwrap();
        }
        assert_same(&content(&disk), &model, "open");
        drop(disk);
        let bytes = source.to_vec();
        let disk = open(format, Arc::new(MemorySource::read_only(bytes)), parent.clone()).unwrap();
        assert_same(&content(&disk), &model, "reopened");
        assert!(disk.is_read_only());
    });
}

/// Cuts the writes anywhere, loses any of those after the last flush, and looks for what was flushed; then
/// goes on with what is left.
fn survives_crashes(text: &str) {
    let (format, empty) = image(text);
    let actions = prop::collection::vec(action(LENGTH), 5..20);
    run(10, (actions, prop::collection::vec(any::<u64>(), 20)), |(actions, seeds)| {
        let source = Arc::new(Recorder::new(empty.clone()));
        let disk = open(format, source.clone(), None).unwrap();
        let mut model = vec![0; LENGTH as usize];
        // Each flush: the events before it returned, the content then, and what changed after it.
        let mut flushed: Vec<(usize, Vec<u8>, Vec<Range<u64>>)> =
            vec![(0, model.clone(), Vec::new())];
        for action in &actions {
            if let (Some((.., touched)), Some(range)) = (flushed.last_mut(), action.range()) {
                touched.push(range);
            }
            action.apply(&disk, &mut model).unwrap();
            if matches!(action, Action::Flush) {
                flushed.push((source.events(), model.clone(), Vec::new()));
            }
        }
        drop(disk);
        let events = source.events();
        for seed in seeds {
            let cut = seed as usize % (events + 1);
            let left = source.crash(&empty, cut, seed);
            let (_, expected, touched) = flushed.iter().rfind(|(at, ..)| *at <= cut).unwrap();
            let check = |disk: &Image, what: &str| {
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
            let read_only = Arc::new(MemorySource::read_only(left.clone()));
            check(&open(format, read_only.clone(), None).unwrap(), "read-only");
            assert!(read_only.to_vec() == left);
            let left = Arc::new(MemorySource::new(left));
            let disk = open(format, left.clone(), None).unwrap();
            let mut found = check(&disk, "writable");
            for (at, value) in [(seed % (LENGTH - 5000), 0x5a), (LENGTH - 700, 0x77)] {
                found[at as usize..at as usize + 600].fill(value);
                disk.write_at(&vec![value; 600], at).unwrap();
            }
            assert_same(&content(&disk), &found, "after the crash");
            drop(disk);
            let disk =
                open(format, Arc::new(MemorySource::read_only(left.to_vec())), None).unwrap();
            assert_same(&content(&disk), &found, "after the crash, reopened");
        }
    });
}

/// Threads that write and flush side by side, each with every fourth sector: blocks are made by one and
/// shared by all.
fn takes_threads(text: &str) {
    let (format, empty) = image(text);
    let source = Arc::new(MemorySource::new(empty));
    let disk = open(format, source.clone(), None).unwrap();
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
    let disk = open(format, Arc::new(MemorySource::read_only(source.to_vec())), None).unwrap();
    for (sector, bytes) in content(&disk).chunks(SECTOR).enumerate() {
        assert!(bytes.iter().all(|&byte| byte == sector as u8 % 4 + 1), "sector {sector}");
    }
}

/// Damages an image anywhere; neither reading nor writing may panic or hang.
fn stays_calm(text: &str) {
    let (format, empty) = image(text);
    let source = Arc::new(MemorySource::new(empty));
    let disk = open(format, source.clone(), None).unwrap();
    disk.write_at(&vec![3; 1 << 20], 5000).unwrap();
    drop(disk);
    let whole = source.to_vec();
    // Where the structures are: the first bytes of each 64 KiB, and the last ones of all.
    let at = (0..whole.len() / 65536 + 1, 0..1024_usize);
    let changes = prop::collection::vec((at, any::<u8>()), 1..12);
    run(60, (changes, any::<bool>()), |(changes, is_writable)| {
        let mut bytes = whole.clone();
        for ((page, within), value) in changes {
            let at = if page * 65536 + within < bytes.len() {
                page * 65536 + within
            } else {
                bytes.len() - 1 - within
            };
            bytes[at] = value;
        }
        if !is_writable {
            crate::fuzz::read_all(format, &bytes);
            return;
        }
        let source = Arc::new(MemorySource::new(bytes));
        if let Ok(disk) = open(format, source.clone(), None) {
            let length = disk.len().min(70_000);
            let _ = disk.write_at(&vec![7; length as usize], 0);
            let _ = disk.write_zeroes(0..length, true);
            let _ = disk.discard(0..length);
            let _ = disk.flush();
        }
        // A block has 256 MiB at most.
        assert!(source.len() < 1 << 30, "the image grew to {} bytes", source.len());
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
    vmdk: "vmdk",
    vmdk_small_grains: "vmdk,block-size=4k",
    vdi: "vdi",
    vdi_static: "vdi,layout=fixed",
    vhd: "vhd,block-size=512k",
    vhd_fixed: "vhd,layout=fixed",
    vhdx: "vhdx,block-size=1M",
    vhdx_fixed: "vhdx,layout=fixed,block-size=1M",
    parallels: "parallels",
    parallels_small_clusters: "parallels,block-size=4k",
}

#[test]
fn an_entry_far_past_the_file_does_not_make_it_longer() {
    let (format, empty) = image("parallels");
    let source = Arc::new(MemorySource::new(empty));
    let disk = open(format, source.clone(), None).unwrap();
    disk.write_at(&[3; SECTOR], 0).unwrap();
    drop(disk);
    let mut bytes = source.to_vec();
    let length = bytes.len() as u64;
    // The table's first entry, behind a header of 64 bytes.
    bytes[64..68].copy_from_slice(&0x7fff_0000_u32.to_le_bytes());
    let source = Arc::new(MemorySource::new(bytes));
    let disk = open(format, source.clone(), None).unwrap();
    assert!(disk.write_at(&[4; SECTOR], 0).is_err());
    drop(disk);
    assert_eq!(source.len(), length);
}

pub(crate) fn content(disk: &dyn Disk) -> Vec<u8> {
    let mut bytes = vec![0; disk.len() as usize];
    disk.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// What a guest does to a disk.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    Write(u64, u64, u8),
    Zero(u64, u64, bool),
    Discard(u64, u64),
    Flush,
}

impl Action {
    /// What it changes.
    fn range(&self) -> Option<Range<u64>> {
        match *self {
            Self::Write(at, count, _) | Self::Zero(at, count, _) | Self::Discard(at, count) => {
                Some(at..at + count)
            }
            Self::Flush => None,
        }
    }

    /// Does it to the disk and to a model; discarded bytes may be either, so they are read back.
    pub(crate) fn apply(&self, disk: &dyn Disk, model: &mut [u8]) -> Result<()> {
        let range = |start: u64, length: u64| start..(start + length).min(model.len() as u64);
        match *self {
            Self::Write(start, length, value) => {
                let range = range(start, length);
                let bytes: Vec<u8> =
                    range.clone().map(|at| value.wrapping_add((at / 512) as u8) | 1).collect();
                model[range.start as usize..range.end as usize].copy_from_slice(&bytes);
                disk.write_at(&bytes, range.start)
            }
            Self::Zero(start, length, unmap) => {
                let range = range(start, length);
                model[range.start as usize..range.end as usize].fill(0);
                disk.write_zeroes(range, unmap)
            }
            Self::Discard(start, length) => {
                let range = range(start, length);
                disk.discard(range.clone())?;
                let part = &mut model[range.start as usize..range.end as usize];
                let mut found = vec![0; part.len()];
                disk.read_at(&mut found, range.start)?;
                let is_either = |(old, new): (&u8, &u8)| new == old || *new == 0;
                assert!(part == found || part.iter().zip(&found).all(is_either));
                part.copy_from_slice(&found);
                Ok(())
            }
            Self::Flush => disk.flush(),
        }
    }
}

pub(crate) fn action(length: u64) -> impl Strategy<Value = Action> {
    let start = move || 0..length;
    let length = move || prop_oneof![1..2000_u64, 1..length / 3];
    prop_oneof![
        4 => (start(), length(), any::<u8>()).prop_map(|(at, count, v)| Action::Write(at, count, v)),
        1 => (start(), length(), any::<bool>()).prop_map(|(at, count, u)| Action::Zero(at, count, u)),
        1 => (start(), length()).prop_map(|(at, count)| Action::Discard(at, count)),
        1 => Just(Action::Flush),
    ]
}

#[derive(Clone, Debug)]
enum Event {
    Write(u64, Vec<u8>),
    SetLength(u64),
    Flush,
}

/// A source that remembers what is done to it.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub memory: MemorySource,
    log: Mutex<Vec<Event>>,
}

impl Recorder {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { memory: MemorySource::new(bytes), log: Mutex::default() }
    }

    pub fn events(&self) -> usize {
        self.log.lock().unwrap().len()
    }

    /// What a loss of power after `cut` events leaves: all that was flushed, and of the rest what `seed`
    /// chooses, in the units that a disk writes whole.
    pub fn crash(&self, start: &[u8], cut: usize, mut seed: u64) -> Vec<u8> {
        let log = self.log.lock().unwrap();
        let flushed =
            log[..cut].iter().rposition(|event| matches!(event, Event::Flush)).unwrap_or(0);
        let memory = MemorySource::new(start.to_vec());
        for (index, event) in log[..cut].iter().enumerate() {
            let mut survives = || {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                index < flushed || seed >> 63 == 1
            };
            match event {
                Event::Write(offset, bytes) => {
                    // What was flushed is there as a whole.
                    let size = if index < flushed { bytes.len().max(1) } else { SECTOR };
                    for (number, sector) in bytes.chunks(size).enumerate() {
                        if survives() {
                            memory.write_at(sector, offset + (number * size) as u64).unwrap();
                        }
                    }
                }
                Event::SetLength(length) if survives() => memory.set_len(*length).unwrap(),
                Event::SetLength(_) | Event::Flush => {}
            }
        }
        memory.to_vec()
    }
}

impl Source for Recorder {
    fn len(&self) -> u64 {
        self.memory.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.memory.read_at(buffer, offset)
    }

    fn writable(&self) -> Option<&dyn WritableSource> {
        Some(self)
    }
}

impl WritableSource for Recorder {
    fn write_at(&self, buffer: &[u8], offset: u64) -> Result<()> {
        self.log.lock().unwrap().push(Event::Write(offset, buffer.to_vec()));
        self.memory.write_at(buffer, offset)
    }

    fn set_len(&self, length: u64) -> Result<()> {
        self.log.lock().unwrap().push(Event::SetLength(length));
        self.memory.set_len(length)
    }

    fn punch(&self, range: Range<u64>) -> Result<()> {
        let zeroes = vec![0; (range.end - range.start) as usize];
        self.write_at(&zeroes, range.start)
    }

    fn flush(&self) -> Result<()> {
        self.log.lock().unwrap().push(Event::Flush);
        Ok(())
    }
}
