//! What fuzz targets and truncation tests do with an image.

use std::sync::Arc;

use crate::layer::Image;
use crate::open::{Neighbours, parse};
use crate::{Disk, Extents, Format, MemorySource};

/// Parses an image, walks over its map and reads from it; must return whatever the bytes are.
pub(crate) fn read_all(format: Format, bytes: &[u8]) {
    let source = Arc::new(MemorySource::read_only(bytes.to_vec()));
    let _ = Format::detect(&*source);
    let Ok(parsed) = parse(source, format, &Neighbours::NONE, None) else { return };
    let image = Image::new(format, parsed.layer, parsed.length, None, true);
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
