//! What fuzz targets and truncation tests do with an image.

use std::ops::Range;
use std::sync::Arc;

use crate::layer::Image;
use crate::open::{Neighbours, parse};
use crate::source::{Source, WritableSource};
use crate::{Disk, Error, Extents, Format, MemorySource, Result, qcow2, vhd, vhdx};

/// Longest image that is made of a fuzzer's input.
const MAX_LENGTH: usize = 16 << 20;

/// Reads and changes an image that a fuzzer describes; returns whatever the image is.
///
/// An image is far longer than what can be mutated well, and mostly zeroes. So `input` is its length in units
/// of 512 bytes (16 bits) and its parts, each an offset (24 bits), a length (8 bits) and so many bytes,
/// all little-endian. The checksums of the format's structures are made right.
pub fn fuzz(format: Format, input: &[u8]) {
    let Some(mut image) = expand(input) else { return };
    match format {
        Format::Vhd => vhd::seal(&mut image),
        Format::Vhdx => vhdx::seal(&mut image),
        _ => {}
    }
    read_all(format, &image);
    change(format, image);
}

/// The image that an input describes.
pub(crate) fn expand(input: &[u8]) -> Option<Vec<u8>> {
    let (length, mut rest) = input.split_first_chunk()?;
    let mut image = vec![0; (usize::from(u16::from_le_bytes(*length)) * 512).min(MAX_LENGTH)];
    while let Some((&[low, middle, high, count], bytes)) = rest.split_first_chunk() {
        let start = u32::from_le_bytes([low, middle, high, 0]) as usize;
        let count = usize::from(count).min(bytes.len());
        if let Some(part) = image.get_mut(start..start + count) {
            part.copy_from_slice(&bytes[..count]);
        }
        rest = &bytes[count..];
    }
    Some(image)
}

/// Parses an image, walks over its map and reads from it; must return whatever the bytes are.
pub(crate) fn read_all(format: Format, bytes: &[u8]) {
    let source = Arc::new(MemorySource::read_only(bytes.to_vec()));
    let _ = Format::detect(&*source);
    let _ = crate::vma_contents(&*source);
    let Some(image) = open(format, source, true) else { return };
    let _ = image.layer.cut();
    let mut buffer = vec![0; 4096];
    // A disk can be far longer than its file.
    for extent in Extents::new(&image, 0..image.len()).take(256) {
        let Ok(extent) = extent else { break };
        let length = (extent.range.end - extent.range.start).min(buffer.len() as u64) as usize;
        let _ = image.read_at(&mut buffer[..length], extent.range.start);
        let _ = image.read_at(&mut buffer[..length], extent.range.end - length as u64);
    }
    let length = image.len().min(buffer.len() as u64) as usize;
    let _ = image.read_at(&mut buffer[..length], image.len() - length as u64);
}

/// Writes here and there, as far as the image lets.
fn change(format: Format, bytes: Vec<u8>) {
    let source = Arc::new(MemorySource::new(bytes));
    // Places that an image names may lie far behind its end, where memory would have to grow to.
    let source = Arc::new(Bounded(source));
    if format == Format::Qcow2 {
        let _ = qcow2::check(source.clone(), false);
        if qcow2::check(source.clone(), true).is_ok_and(|found| found.is_in_order()) {
            let again = qcow2::check(source.clone(), false);
            assert!(again.is_ok_and(|found| found.is_in_order()), "it was repaired");
        }
    }
    let Some(image) = open(format, source, false) else { return };
    if image.layer.block_size() > 4 << 20 {
        return;
    }
    let length = image.len().min(70_000);
    for start in [0, image.len() / 1024 * 512, image.len() - length] {
        let end = (start + length).min(image.len());
        let _ = image.write_at(&vec![7; (end - start) as usize], start);
        let _ = image.write_zeroes(start..start + (end - start) / 2, true);
        let _ = image.flush();
        let _ = image.discard(start..end);
    }
    let mut buffer = vec![0; length as usize];
    let _ = image.read_at(&mut buffer, 0);
}

fn open(format: Format, source: Arc<dyn Source>, read_only: bool) -> Option<Image> {
    let neighbours = Neighbours { read_only, ..Neighbours::NONE };
    let parsed = parse(source, format, &neighbours, None).ok()?;
    Some(Image::new(format, parsed.layer, parsed.length, None, read_only))
}

/// A source that does not grow without end.
#[derive(Debug)]
struct Bounded(Arc<MemorySource>);

impl Bounded {
    fn check(&self, end: u64) -> Result<()> {
        let limit = 4 * MAX_LENGTH as u64;
        if end <= limit { Ok(()) } else { Err(Error::OutOfRange { range: 0..end, length: limit }) }
    }
}

impl Source for Bounded {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.0.read_at(buffer, offset)
    }

    fn writable(&self) -> Option<&dyn WritableSource> {
        Some(self)
    }
}

impl WritableSource for Bounded {
    fn write_at(&self, buffer: &[u8], offset: u64) -> Result<()> {
        self.check(offset.saturating_add(buffer.len() as u64))?;
        self.0.write_at(buffer, offset)
    }

    fn set_len(&self, length: u64) -> Result<()> {
        self.check(length)?;
        self.0.set_len(length)
    }

    fn punch(&self, range: Range<u64>) -> Result<()> {
        self.0.punch(range)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// Each seed with its format.
    fn seeds() -> Vec<(Format, PathBuf)> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds");
        let mut seeds = Vec::new();
        for format in Format::ALL {
            let Ok(entries) = std::fs::read_dir(format!("{folder}/disk_{format}")) else {
                continue;
            };
            seeds.extend(entries.map(|entry| (format, entry.unwrap().path())));
        }
        assert!(seeds.len() >= 15);
        seeds
    }

    #[test]
    fn the_seeds_are_images_of_their_formats() {
        for (format, seed) in seeds() {
            let input = std::fs::read(&seed).unwrap();
            let source = Arc::new(MemorySource::read_only(expand(&input).unwrap()));
            assert_eq!(Format::detect(&*source).unwrap(), format, "{}", seed.display());
            let image = open(format, source, true).unwrap();
            let mut found = [0; 5];
            for (offset, wanted) in [(0, b"hello"), (1_500_000, b"world")] {
                image.read_at(&mut found, offset).unwrap();
                assert_eq!(&found, wanted, "{}", seed.display());
            }
            fuzz(format, &input);
        }
    }

    #[test]
    fn seeds_with_some_bytes_changed_are_read_and_changed_calmly() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for (format, seed) in seeds() {
            let input = std::fs::read(&seed).unwrap();
            for _ in 0..40 {
                let mut changed = input.clone();
                for _ in 0..random() % 4 + 1 {
                    let at = random() as usize % changed.len();
                    changed[at] = match random() % 4 {
                        0 => 0xff,
                        1 => 0,
                        2 => changed[at] ^ 1 << (random() % 8),
                        _ => random() as u8,
                    };
                }
                fuzz(format, &changed);
            }
        }
    }
}
