//! Making a disk longer.

use std::path::Path;

use crate::source::{FileSource, WritableSource};
use crate::{Error, Format, ImageOptions, Result, open_chain, qcow2};

/// Makes the disk of the image at `path` longer, with zeroes. Images of other formats than raw and qcow2 are refused, and so
/// is a shorter length, which would cut off what is there.
pub fn resize(path: impl AsRef<Path>, length: u64, options: &ImageOptions) -> Result<()> {
    let path = path.as_ref();
    let read_only = ImageOptions { read_only: true, ..options.clone() };
    let (chain, parent) = {
        let (_, chain) = open_chain(path, &read_only)?;
        let parent = chain.get(1).map_or(0, |parent| parent.length);
        (chain, parent)
    };
    let Some(image) = chain.first() else { return Ok(()) };
    let refuse =
        |what: &str| Err(Error::Unsupported { format: image.format, what: what.to_owned() });
    if length < image.length {
        return refuse("a shorter disk would lose what is at its end");
    }
    match image.format {
        Format::Raw if path.metadata().is_ok_and(|found| found.is_file()) => {
            let file = FileSource::open(path, false)?;
            file.set_len(length)?;
            file.flush()
        }
        Format::Raw => refuse("a block device has the length that it has"),
        Format::Qcow2 => {
            qcow2::grow(path, length)?;
            if parent > image.length {
                // What a longer parent has there was never part of this disk.
                let options = ImageOptions {
                    read_only: false,
                    format: Some(Format::Qcow2),
                    ..options.clone()
                };
                let (disk, _) = open_chain(path, &options)?;
                disk.write_zeroes(image.length..parent.min(disk.len()), true)?;
                disk.flush()?;
            }
            Ok(())
        }
        _ => refuse("only raw disks and qcow2 can be made longer: convert it"),
    }
}
