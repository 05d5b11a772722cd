//! Making a disk longer.
//!
//! Each format writes everything that a longer disk needs before the one sector that says how long the disk is, so that a crash
//! at any point leaves the disk as it was or longer.

use std::ops::Range;
use std::path::Path;

use crate::archive;
use crate::create::writable;
use crate::open::{bundle_descriptor, with_neighbours};
use crate::source::{FileSource, Source, WritableSource, is_url, read_padded};
use crate::{
    Error, Format, ImageOptions, MAX_LENGTH, Result, open_chain, parallels, qcow2, vdi, vhd, vhdx,
    vmdk,
};

/// Bytes that are written at once.
const PIECE: u64 = 1 << 20;

/// Makes the disk of the image at `path` longer, with zeroes. What cannot be written in place is refused, and so is a shorter
/// length, which would cut off what is there. Children of the image go on to hold what they hold.
pub fn resize(path: impl AsRef<Path>, length: u64, options: &ImageOptions) -> Result<()> {
    let path = path.as_ref();
    let bundle = bundle_descriptor(path);
    let path = bundle.as_deref().unwrap_or(path);
    let read_only = ImageOptions { read_only: true, ..options.clone() };
    let (_, chain) = open_chain(path, &read_only)?;
    let parent = chain.get(1).map_or(0, |parent| parent.length);
    let Some(image) = chain.first() else { return Ok(()) };
    let refuse =
        |what: &str| Err(Error::Unsupported { format: image.format, what: what.to_owned() });
    let is_inside = archive::split(path).is_some()
        || options.format.is_none() && archive::is_archive(path)
        || is_url(path);
    if is_inside {
        return refuse("what lies in an archive or on a server is only read: convert it");
    }
    if length < image.length {
        return refuse("a shorter disk would lose what is at its end");
    }
    if length == image.length {
        return Ok(());
    }
    if length > MAX_LENGTH {
        return refuse("no disk can be so long");
    }
    if image.format == Format::Raw {
        if !path.metadata().is_ok_and(|found| found.is_file()) {
            return refuse("a block device has the length that it has");
        }
        let file = FileSource::open(path, false)?;
        file.set_len(length)?;
        return file.flush();
    }
    with_neighbours(path, &options.files, false, |source, neighbours| match image.format {
        Format::Qcow2 => qcow2::grow(source, length),
        Format::Vmdk => vmdk::grow(source, neighbours, length),
        Format::Vhd => vhd::grow(source, length),
        Format::Vhdx => vhdx::grow(source, length),
        Format::Vdi => vdi::grow(source, length),
        Format::Parallels => parallels::grow(source, length),
        _ => refuse("images of this format are only read: convert it"),
    })?;
    if parent > image.length {
        // What a longer parent has there was never part of this disk.
        let format = Some(image.format);
        let options = ImageOptions { read_only: false, format, ..options.clone() };
        let (disk, _) = open_chain(path, &options)?;
        disk.write_zeroes(image.length..parent.min(disk.len()), true)?;
        disk.flush()?;
    }
    Ok(())
}

/// Copies bytes within a file, to where nothing of them lies.
pub(crate) fn copy(source: &dyn Source, from: u64, to: u64, length: u64) -> Result<()> {
    for start in (0..length).step_by(PIECE as usize) {
        let mut piece = vec![0; (length - start).min(PIECE) as usize];
        // The last block of a file may be cut off.
        read_padded(source, &mut piece, from + start)?;
        writable(source)?.write_at(&piece, to + start)?;
    }
    Ok(())
}

/// Writes zeroes to a part of a file, as far as the file goes: what lies behind reads as zeroes.
pub(crate) fn zero(source: &dyn Source, range: Range<u64>) -> Result<()> {
    fill(source, range.start..range.end.min(source.len()), 0)
}

/// Writes a byte all over a part of a file.
pub(crate) fn fill(source: &dyn Source, range: Range<u64>, byte: u8) -> Result<()> {
    for start in range.clone().step_by(PIECE as usize) {
        let piece = vec![byte; (range.end - start).min(PIECE) as usize];
        writable(source)?.write_at(&piece, start)?;
    }
    Ok(())
}
