//! Conversions that were interrupted go on where they were.

use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use disk::{ConvertOptions, Disk, Error, Extent, Result};

use crate::common::{Workshop, has_qemu_img, open};
use crate::ways::WAYS;

const LENGTH: u64 = (10 << 20) + 512;

/// A disk that cannot be read from some place on.
struct Breaking {
    inner: Arc<dyn Disk>,
    end: u64,
    /// The first byte that was read.
    first: AtomicU64,
}

impl Disk for Breaking {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        if offset + buffer.len() as u64 > self.end {
            return Err(Error::Stopped);
        }
        self.first.fetch_min(offset, Ordering::Relaxed);
        self.inner.read_at(buffer, offset)
    }

    fn write_at(&self, _buffer: &[u8], _offset: u64) -> Result<()> {
        Err(Error::ReadOnly)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn discard(&self, _range: Range<u64>) -> Result<()> {
        Err(Error::ReadOnly)
    }

    fn write_zeroes(&self, _range: Range<u64>, _unmap: bool) -> Result<()> {
        Err(Error::ReadOnly)
    }

    fn map(&self, range: Range<u64>) -> Result<Extent<'_>> {
        self.inner.map(range)
    }

    fn version(&self) -> Option<String> {
        self.inner.version()
    }
}

/// Data, with holes of many sizes.
fn source(workshop: &Workshop) -> std::path::PathBuf {
    let path = workshop.path("source.raw");
    let mut bytes = vec![0; LENGTH as usize];
    let mut state = 1_u64;
    for (number, part) in bytes.chunks_mut(4096).enumerate() {
        let is_hole = number % 700 < 200 || number % 13 == 5 || number / 300 % 4 == 1;
        for byte in part.iter_mut().filter(|_| !is_hole) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (state >> 56) as u8;
        }
    }
    std::fs::write(&path, bytes).unwrap();
    path
}

fn options(to: &str) -> ConvertOptions {
    let mut options = ConvertOptions::new(disk::Format::Raw);
    options.image = to.parse().unwrap();
    options.resume = Some(Duration::ZERO);
    options
}

/// Converts until the source breaks; returns where it went on and the first byte that it read.
fn convert(from: &Path, to: &Path, options: &ConvertOptions, end: u64) -> (Option<u64>, u64) {
    let disk = Breaking { inner: open(from), end, first: AtomicU64::new(u64::MAX) };
    let report = disk::convert(&disk, to, options, |_| {});
    let resumed = match report {
        Ok(report) => {
            assert_eq!(report.data + report.zeroes + report.holes, LENGTH);
            Some(report.resumed)
        }
        Err(error) => {
            assert!(matches!(error, Error::Stopped), "{error}");
            None
        }
    };
    (resumed, disk.first.load(Ordering::Relaxed))
}

#[test]
fn what_was_interrupted_goes_on_without_reading_anything_twice() {
    let workshop = Workshop::new(1 << 20);
    let from = source(&workshop);
    for (number, way) in WAYS.into_iter().enumerate() {
        let options = options(way);
        let to = workshop.path(&format!("image{number}.{}", options.image.format));
        let (third, rest) = (3 << 20, (9 << 20) + 4096);
        assert_eq!(convert(&from, &to, &options, third).0, None, "{way}");
        assert!(!to.exists(), "{way}");
        // What came after the last line that was flushed.
        let notes =
            to.with_file_name(format!("image{number}.{}.partial.journal", options.image.format));
        let mut file = std::fs::File::options().append(true).open(&notes).unwrap();
        file.write_all(b"run 0 4096 0 0\ndone 17").unwrap();
        let (done, first) = convert(&from, &to, &options, rest);
        assert_eq!(done, None, "{way}");
        assert!(first > third - (1 << 20), "{way}: read again from {first}");
        let rarely = ConvertOptions { resume: Some(Duration::from_secs(3600)), ..options.clone() };
        let (resumed, first) = convert(&from, &to, &rarely, u64::MAX);
        assert!(resumed.unwrap() > rest - (1 << 20), "{way}: {resumed:?}");
        assert!(first >= resumed.unwrap(), "{way}: {first}");
        assert!(!notes.exists(), "{way}");

        let made = disk::open(&to, &disk::ImageOptions::default()).unwrap();
        let same = disk::compare(&*open(&from), &*made, |_| {}).unwrap();
        assert_eq!(same.difference, None, "{way}");
        drop(made);
        // The same file as without an interruption, but for what is random.
        let at_once = workshop.path(&format!("whole{number}.{}", options.image.format));
        let mut image = rarely;
        if let Some(name) = &mut image.image.data_file {
            *name = "other.bin".to_owned();
        }
        convert(&from, &at_once, &image, u64::MAX);
        let [made, whole] = [&to, &at_once].map(|path| path.metadata().unwrap().len());
        assert!(made == whole || options.image.format == disk::Format::Vmdk, "{way}");
        if has_qemu_img() && options.image.format == disk::Format::Qcow2 {
            workshop.qemu_img(&["check", "-q", "-f", "qcow2", to.to_str().unwrap()]);
        }
    }
}

#[test]
fn another_source_or_other_options_start_anew() {
    let workshop = Workshop::new(1 << 20);
    let from = source(&workshop);
    let to = workshop.path("image.qcow2");
    convert(&from, &to, &options("qcow2"), 2 << 20);
    assert_eq!(convert(&from, &to, &options("qcow2,cluster-size=4K"), 2 << 20), (None, 0));
    let mut bytes = std::fs::read(&from).unwrap();
    bytes[900_000] ^= 1;
    std::fs::write(&from, bytes).unwrap();
    assert_eq!(convert(&from, &to, &options("qcow2,cluster-size=4K"), u64::MAX).0, Some(0));
    let made = open(&to);
    assert_eq!(disk::compare(&*open(&from), &*made, |_| {}).unwrap().difference, None);
    assert!(!workshop.path("image.qcow2.partial").exists());
    assert!(!workshop.path("image.qcow2.partial.journal").exists());

    // Of a journal that was damaged, what comes before the damage is believed.
    let to = workshop.path("image.vdi");
    convert(&from, &to, &options("vdi"), 2 << 20);
    let notes = workshop.path("image.vdi.partial.journal");
    let damaged = std::fs::read_to_string(&notes).unwrap().replacen("run ", "run 1", 1);
    std::fs::write(&notes, damaged).unwrap();
    assert!(convert(&from, &to, &options("vdi"), u64::MAX).0.unwrap() <= 819_200);
    let made = open(&to);
    assert_eq!(disk::compare(&*open(&from), &*made, |_| {}).unwrap().difference, None);
}
