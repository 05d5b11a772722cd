//! Writing what an image holds itself into its parent.

use std::path::{Path, PathBuf};

use crate::open::open_alone;
use crate::{Content, Error, Extents, Format, ImageOptions, Result, open, open_chain};

/// Bytes that are moved at once.
const CHUNK: usize = 1 << 20;

/// What a commit did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The parent, which reads as the image did.
    pub parent: PathBuf,
    /// Bytes that were written to it.
    pub data: u64,
    /// Bytes of it that were made zeroes.
    pub zeroes: u64,
}

/// Writes what the image at `path` holds itself into its parent, which then reads as the image does; the image stays
/// as it is. A commit that was interrupted can be done again.
pub fn commit(path: impl AsRef<Path>, options: &ImageOptions) -> Result<Committed> {
    let path = path.as_ref();
    let read_only = ImageOptions { read_only: true, ..options.clone() };
    let chain = {
        let (_, chain) = open_chain(path, &read_only)?;
        chain
    };
    let [image, below, ..] = &chain[..] else {
        let format = chain.first().map_or(Format::Raw, |image| image.format);
        let what = "it has no parent to write to".to_owned();
        return Err(Error::Unsupported { format, what });
    };
    let child = open_alone(path, image.format)?;
    let parent_options =
        ImageOptions { read_only: false, format: Some(below.format), ..options.clone() };
    let parent = open(&below.path, &parent_options)?;
    if parent.is_read_only() {
        let what = "images of this format can only be read".to_owned();
        return Err(Error::Unsupported { format: below.format, what });
    }
    if child.len() > parent.len() {
        let what = "its disk is longer than its parent's, which has to be resized first".to_owned();
        return Err(Error::Unsupported { format: image.format, what });
    }
    let mut committed = Committed { parent: below.path.clone(), data: 0, zeroes: 0 };
    let mut buffer = vec![0; CHUNK];
    for extent in Extents::new(&*child, 0..child.len()) {
        let extent = extent?;
        let range = extent.range;
        match extent.content {
            // Without its parent, what an image does not store is a hole.
            Content::Hole => {}
            Content::Zero => {
                committed.zeroes += range.end - range.start;
                parent.write_zeroes(range, true)?;
            }
            Content::Data(_) => {
                committed.data += range.end - range.start;
                let mut start = range.start;
                while start < range.end {
                    let count = (range.end - start).min(CHUNK as u64) as usize;
                    child.read_at(&mut buffer[..count], start)?;
                    parent.write_at(&buffer[..count], start)?;
                    start += count as u64;
                }
            }
        }
    }
    parent.flush()?;
    Ok(committed)
}
