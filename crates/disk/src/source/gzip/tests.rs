use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::store::{SUFFIX, sweep};
use super::*;

fn content(length: u32) -> Vec<u8> {
    (0..length / 4).flat_map(|n| (n.wrapping_mul(n) >> ((n >> 12) % 24)).to_le_bytes()).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    gzip_at(Compression::default(), bytes)
}

fn gzip_at(level: Compression, bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), level);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn open(packed: &[u8]) -> Result<GzipSource> {
    GzipSource::open(Arc::new(MemorySource::read_only(packed.to_vec())), None)
}

/// A file that counts how much of it is read.
#[derive(Debug)]
struct Counted {
    bytes: Vec<u8>,
    version: &'static str,
    read: AtomicU64,
}

impl Counted {
    fn new(bytes: &[u8], version: &'static str) -> Arc<Self> {
        Arc::new(Self { bytes: bytes.to_vec(), version, read: AtomicU64::new(0) })
    }

    /// How much was read until now.
    fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}

impl Source for Counted {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn version(&self) -> Option<String> {
        Some(self.version.to_owned())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.read.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        buffer.copy_from_slice(&self.bytes[offset as usize..][..buffer.len()]);
        Ok(())
    }
}

/// The only file of a folder.
fn only_file(folder: &Path) -> PathBuf {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().flatten().collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0).path()
}

#[test]
fn every_place_is_read_in_any_order() {
    let wanted = content(9 << 20);
    let source = open(&gzip(&wanted)).unwrap();
    assert_eq!(source.len(), wanted.len() as u64);
    let mut found = vec![0; 100_000];
    for index in 0..200_u64 {
        let offset = index * 7_654_321 % (wanted.len() - found.len()) as u64;
        source.read_at(&mut found, offset).unwrap();
        assert!(found == wanted[offset as usize..][..found.len()], "at {offset}");
    }
    let mut all = vec![0; wanted.len()];
    source.read_at(&mut all, 0).unwrap();
    assert!(all == wanted);
    assert!(source.read_at(&mut [0; 2], wanted.len() as u64 - 1).is_err());
}

#[test]
fn members_follow_each_other_and_zeroes_end_them() {
    let wanted = content(3 << 20);
    let (first, second) = wanted.split_at(1_234_567);
    let empty = gzip(&[]);
    let packed = [&gzip(first)[..], &empty, &gzip(second), &[0; 512]].concat();
    let source = open(&packed).unwrap();
    let mut all = vec![0; wanted.len()];
    source.read_at(&mut all, 0).unwrap();
    assert!(all == wanted);
    source.read_at(&mut all[..9], 1_234_560).unwrap();
    assert!(all[..9] == wanted[1_234_560..][..9]);
    assert_eq!(open(&empty).unwrap().len(), 0);
}

#[test]
fn an_index_takes_no_more_than_its_share() {
    let wanted = content(12 << 20);
    for level in [Compression::none(), Compression::default(), Compression::best()] {
        let packed = gzip_at(level, &wanted);
        let index = Index::build(&MemorySource::read_only(packed.clone())).unwrap();
        let points = index.before(u64::MAX).count();
        let bytes = index.to_bytes("").unwrap().len();
        // Of windows that do not fit any more, one was taken.
        assert!(bytes <= packed.len() / 64 + (33 << 10), "{bytes} of {}", packed.len());
        assert!(points >= 5, "{points} points at {level:?}");
    }
}

#[test]
fn the_second_opening_unpacks_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let indexes = folder.path().join("new").join("indexes");
    let wanted = content(24 << 20);
    let packed = Counted::new(&gzip(&wanted), "1");
    GzipSource::open(packed.clone(), Some(&indexes)).unwrap();
    let mode = fs::metadata(only_file(&indexes)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(packed.read() >= packed.len());

    let again = Counted::new(&packed.bytes, "1");
    let source = GzipSource::open(again.clone(), Some(&indexes)).unwrap();
    assert_eq!((source.len(), again.read()), (wanted.len() as u64, 0));
    let mut found = vec![0; 100_000];
    for offset in [20_000_000, 7_654_321, 0, wanted.len() - 100_000] {
        source.read_at(&mut found, offset as u64).unwrap();
        assert!(found == wanted[offset..][..100_000], "at {offset}");
    }
    assert!(again.read() < packed.len(), "{} of {} were read", again.read(), packed.len());

    // Another version of the file, and one that nothing tells from others.
    let changed = Counted::new(&gzip(&wanted[1..]), "2");
    let source = GzipSource::open(changed.clone(), Some(&indexes)).unwrap();
    assert_eq!(source.len(), wanted.len() as u64 - 1);
    assert!(changed.read() >= changed.len());
    assert_eq!(fs::read_dir(&indexes).unwrap().count(), 2);
    let nameless = Arc::new(MemorySource::read_only(packed.bytes.clone()));
    GzipSource::open(nameless, Some(&indexes)).unwrap();
    assert_eq!(fs::read_dir(&indexes).unwrap().count(), 2);
}

#[test]
fn a_damaged_index_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let wanted = content(8 << 20);
    let packed = gzip(&wanted);
    GzipSource::open(Counted::new(&packed, "1"), Some(folder.path())).unwrap();
    let path = only_file(folder.path());
    let whole = fs::read(&path).unwrap();
    let is_used = || {
        let file = Counted::new(&packed, "1");
        let source = GzipSource::open(file.clone(), Some(folder.path())).unwrap();
        let is_used = file.read() == 0;
        let mut all = vec![0; wanted.len()];
        source.read_at(&mut all, 0).unwrap();
        assert!(all == wanted);
        let mut end = vec![0; 1000];
        source.chunks.remove((wanted.len() as u64 - 1) / CHUNK);
        source.parked().clear();
        source.read_at(&mut end, wanted.len() as u64 - 1000).unwrap();
        assert!(end == wanted[wanted.len() - 1000..]);
        is_used
    };
    assert!(is_used());
    for at in [0, 8, 12, 16, 24, 32, 40, 41, 60, 73] {
        let mut damaged = whole.clone();
        damaged[at] ^= 4;
        fs::write(&path, damaged).unwrap();
        assert!(!is_used(), "changed at {at}");
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
    for length in [0, 39, 100, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(!is_used(), "{length} bytes");
    }
    // That a window is damaged is found when it is needed.
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 4;
    fs::write(&path, damaged).unwrap();
    assert!(is_used());
    assert!(!is_used() && is_used());
}

#[test]
fn where_nothing_can_be_kept_nothing_fails() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let wanted = content(2 << 20);
    for indexes in [&file, &file.join("below"), Path::new("/proc/none")] {
        let source = GzipSource::open(Counted::new(&gzip(&wanted), "1"), Some(indexes)).unwrap();
        let mut end = [0; 4];
        source.read_at(&mut end, wanted.len() as u64 - 4).unwrap();
        assert_eq!(end, wanted[wanted.len() - 4..]);
    }
    // What costs nothing is not kept.
    let indexes = folder.path().join("indexes");
    GzipSource::open(Counted::new(&gzip(&wanted[..1 << 20]), "1"), Some(&indexes)).unwrap();
    assert!(!indexes.exists());
}

#[test]
fn what_was_used_least_recently_makes_room() {
    let folder = tempfile::tempdir().unwrap();
    for (name, days) in [("new", 0), ("older", 1), ("oldest", 2), ("unused", 61)] {
        let file = fs::File::create(folder.path().join(format!("{name}{SUFFIX}"))).unwrap();
        file.set_len(1000).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(days * 24 * 3600)).unwrap();
    }
    fs::write(folder.path().join("another's"), [0; 5000]).unwrap();
    let left = |most| {
        sweep(folder.path(), most);
        fs::read_dir(folder.path()).unwrap().count() - 1
    };
    assert_eq!((left(9000), left(2999), left(0)), (3, 2, 0));
}

#[test]
fn a_block_that_does_not_end_is_read_from_its_start() {
    let wanted = content(40 << 20);
    // The fastest level of zlib-ng and zlib-rs hardly ends any.
    let source = open(&gzip_at(Compression::fast(), &wanted)).unwrap();
    assert!(source.index.before(u64::MAX).count() <= 2);
    let mut found = vec![0; 1000];
    for offset in [wanted.len() - 1000, 17, 20 << 20] {
        source.read_at(&mut found, offset as u64).unwrap();
        assert!(found == wanted[offset..][..1000], "at {offset}");
    }
    // Besides what is at these three places.
    assert!(source.parked().len() > 3);
}

#[test]
fn what_was_cut_off_or_changed_is_refused() {
    let packed = gzip(&content(200_000));
    for end in [0, 5, 17, 100, packed.len() / 2, packed.len() - 9, packed.len() - 1] {
        assert!(open(&packed[..end]).is_err(), "cut at {end}");
    }
    for at in [0, 1, 2, packed.len() / 2, packed.len() - 8, packed.len() - 1] {
        let mut packed = packed.clone();
        packed[at] ^= 0x55;
        assert!(open(&packed).is_err(), "changed at {at}");
    }
    // A header that goes on for ever.
    let mut endless = vec![0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 0];
    endless.resize(1 << 20, b'a');
    assert!(open(&endless).is_err());
}

#[test]
fn the_seed_of_the_fuzzer_has_an_index() {
    let seed = include_bytes!("../../../../../fuzz/seeds/disk_gzip_index/two-points");
    let (length, rest) = seed.split_first_chunk().unwrap();
    let (packed, index) = rest.split_at(u16::from_le_bytes(*length).into());
    let packed = MemorySource::read_only(packed.to_vec());
    let found = Index::read(Arc::new(MemorySource::read_only(index.to_vec())), "", packed.len());
    let found = found.unwrap();
    assert_eq!(found.before(u64::MAX).count(), 2);
    let built = Index::build(&packed).unwrap();
    assert_eq!((found.length, built.length), (3 << 20, 3 << 20));
    fuzz_gzip_index(seed);
}
