//! Onto a block device, which has a name and bytes already.

use std::io;
use std::path::Path;

use super::zero::nonzero;
use super::{CHUNK, ConvertOptions, Report};
use crate::{Content, Disk, Error, Format, OpenOptions, RawDisk, Result};

/// Zeroes are not written one by one in units of this many bytes.
const ZERO_UNIT: usize = 64 << 10;

/// Writes what `source` holds to the start of the block device at `path`; where it holds zeroes, the device's space is given
/// back if it can be.
pub(super) fn write_onto(
    source: &dyn Disk,
    path: &Path,
    options: &ConvertOptions,
    progress: &mut dyn FnMut(u64),
) -> Result<Report> {
    let refuse = |what: String| Err(Error::Device { path: path.to_owned(), what });
    if options.image.format != Format::Raw || options.image.compression.is_some() {
        return refuse("takes raw disks only".to_owned());
    }
    if !options.replace {
        let source = io::ErrorKind::AlreadyExists.into();
        return Err(Error::Io { action: "write over", path: path.to_owned(), source });
    }
    let target = RawDisk::open(path, &OpenOptions::default())?;
    let (length, room) = (source.len(), target.len());
    if room < length {
        return refuse(format!("has {room} bytes, fewer than the {length} of the disk"));
    }
    let mut report = Report { file_length: room, ..Report::default() };
    let mut buffer = vec![0; CHUNK as usize];
    let mut start = 0;
    while start < length {
        let extent = source.map(start..length)?;
        let range = extent.range;
        if !matches!(extent.content, Content::Data(_)) {
            target.write_zeroes(range.clone(), true)?;
            report.holes += range.end - range.start;
            start = range.end;
            progress(start);
            continue;
        }
        while start < range.end {
            let end = range.end.min((start / CHUNK + 1) * CHUNK);
            let bytes = &mut buffer[..(end - start) as usize];
            source.read_at(bytes, start)?;
            // Zeroes up to where data begin, and so on.
            let mut done = 0;
            for part in nonzero(bytes, ZERO_UNIT) {
                target.write_zeroes(start + done as u64..start + part.start as u64, true)?;
                target.write_at(&bytes[part.clone()], start + part.start as u64)?;
                report.data += part.len() as u64;
                report.zeroes += (part.start - done) as u64;
                done = part.end;
            }
            target.write_zeroes(start + done as u64..end, true)?;
            report.zeroes += end - start - done as u64;
            start = end;
            progress(start);
        }
    }
    target.flush()?;
    Ok(report)
}
