//! From any disk to a new image: map, read, leave out zeroes, compress on all processors, write in order.

mod copy;
mod deflate;
mod pack;
mod prefix;
mod zero;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use copy::copy_data;
use pack::Packing;
use zero::nonzero;

pub use pack::{Compression, UnknownCompression};

use crate::create::{Builder, Files, build};
use crate::extent::Zeroes;
use crate::{CreateOptions, Disk, Error, FileSource, Format, Result};

/// Bytes that are read at once.
const CHUNK: u64 = 1 << 20;
/// What a file's name ends in until its image is whole.
const PARTIAL: &str = ".partial";

/// How to convert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvertOptions {
    /// What the new image is like. Its length is the source's.
    pub image: CreateOptions,
    /// How hard to compress; the format's usual level otherwise.
    pub level: Option<i32>,
    /// Threads that compress; one per processor otherwise.
    pub jobs: Option<usize>,
    /// A file that is there already is replaced, at once and only in the end.
    pub replace: bool,
}

impl ConvertOptions {
    /// Without compression, and refusing to replace a file.
    pub fn new(format: Format) -> Self {
        Self { image: CreateOptions::new(format, 0), level: None, jobs: None, replace: false }
    }
}

/// What a conversion did, in bytes of the guest's view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Written.
    pub data: u64,
    /// Read, and found to be zeroes.
    pub zeroes: u64,
    /// Known to be zeroes without being read.
    pub holes: u64,
    /// Of `data`, what was written compressed.
    pub compressed: u64,
    /// Of `data`, what shares its space with the source and so was not even read.
    pub shared: u64,
    /// Length of the new file.
    pub file_length: u64,
}

/// Writes what `source` holds into a new image at `path`, under a temporary name until it is whole and
/// would survive a loss of power. `progress` is told how many bytes of the disk are done.
pub fn convert(
    source: &dyn Disk,
    path: impl AsRef<Path>,
    options: &ConvertOptions,
    mut progress: impl FnMut(u64),
) -> Result<Report> {
    let path = path.as_ref();
    let io = |action| move |source| Error::Io { action, path: path.to_owned(), source };
    let create = CreateOptions { length: source.len(), ..options.image.clone() };
    let files = Files::new(path, PARTIAL);
    let mut partials = Vec::new();
    for target in files.all(&create) {
        if !options.replace && target.symlink_metadata().is_ok() {
            let source = io::ErrorKind::AlreadyExists.into();
            return Err(Error::Io { action: "create", path: target, source });
        }
        partials.push(Partial::new(files.temporary(&target), target)?);
    }
    let mut report = Report::default();
    let mut builder = build(&files, &create)?;
    write_data(source, &mut *builder, options, &mut report, &mut progress)?;
    drop(builder);
    for partial in &partials {
        report.file_length += partial.path.metadata().map_err(io("look at"))?.len();
    }
    // The image's own file comes last: until then its old one stays.
    partials.into_iter().try_for_each(Partial::publish).map_err(io("name"))?;
    Ok(report)
}

/// A file that is removed unless it gets its name.
struct Partial {
    path: PathBuf,
    target: PathBuf,
    is_published: bool,
}

impl Partial {
    /// Removes what an earlier conversion that was killed left behind, unless it still runs.
    fn new(path: PathBuf, target: PathBuf) -> Result<Self> {
        if path.symlink_metadata().is_ok_and(|found| found.is_file()) {
            // Its lock tells whether somebody writes to it.
            drop(FileSource::open(&path, false)?);
            let io = |source| Error::Io { action: "remove", path: path.clone(), source };
            std::fs::remove_file(&path).map_err(io)?;
        }
        Ok(Self { path, target, is_published: false })
    }

    fn publish(mut self) -> io::Result<()> {
        std::fs::rename(&self.path, &self.target)?;
        self.is_published = true;
        let folder = self.target.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.is_published {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Writes all that is not zeroes.
fn write_data(
    source: &dyn Disk,
    target: &mut dyn Builder,
    options: &ConvertOptions,
    report: &mut Report,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let Some(codec) = target.codec() else {
        copy_data(source, target, report, progress)?;
        return target.finish();
    };
    // A builder's blocks are powers of two.
    let block = target.block_size().min(1 << 30) as usize;
    let chunk = CHUNK.max(block as u64);
    let packing = Packing { codec, level: options.level, jobs: options.jobs, block };
    let compressed = packing.run(
        |send| {
            read_data(source, chunk, report, progress, |start, bytes, report| {
                for range in nonzero(bytes, block) {
                    report.data += range.len() as u64;
                    for (index, part) in bytes[range.clone()].chunks(block).enumerate() {
                        let mut part = part.to_vec();
                        part.resize(block, 0);
                        send(start + (range.start + index * block) as u64, part)?;
                    }
                }
                Ok(())
            })
        },
        |start, packed| match packed {
            Ok(stream) => target.write_packed(start, &stream),
            Err(bytes) => target.write(start, &bytes),
        },
    )?;
    report.compressed = compressed;
    target.finish()
}

/// Reads everything that is not known to be zeroes, in pieces that begin at multiples of `chunk`.
fn read_data(
    source: &dyn Disk,
    chunk: u64,
    report: &mut Report,
    progress: &mut dyn FnMut(u64),
    mut write: impl FnMut(u64, &[u8], &mut Report) -> Result<()>,
) -> Result<()> {
    let mut buffer = vec![0; chunk as usize];
    let mut known = Zeroes::of(source);
    let mut start = 0;
    while start < source.len() {
        let end = (start + chunk).min(source.len());
        let bytes = &mut buffer[..(end - start) as usize];
        let zeroes = known.end(start)?;
        let mut next = end;
        if zeroes >= end {
            // Whole pieces of zeroes; a rest of one is read with the data that it has.
            next = if zeroes >= source.len() { zeroes } else { zeroes / chunk * chunk };
            report.holes += next - start;
        } else {
            source.read_at(bytes, start)?;
            let before = report.data;
            write(start, bytes, report)?;
            report.zeroes += bytes.len() as u64 - (report.data - before);
        }
        start = next;
        progress(start);
    }
    Ok(())
}
