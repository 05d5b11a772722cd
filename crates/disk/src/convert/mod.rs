//! From any disk to a new image: map, read, leave out zeroes, compress on all processors, write in order.

mod copy;
mod deflate;
mod device;
mod journal;
mod pack;
mod prefix;
mod zero;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use copy::copy_data;
use journal::{Journal, Run, Saved};
use pack::Packing;
use zero::nonzero;

pub use pack::{Compression, UnknownCompression};

use crate::create::{Builder, Files, build};
use crate::extent::Zeroes;
use crate::{CreateOptions, Disk, Error, FileSource, Format, Preallocation, Result};

/// Bytes that are read at once.
const CHUNK: u64 = 1 << 20;
/// More threads are of no use to a conversion, and each takes memory.
const MAX_JOBS: usize = 64;
/// What a file's name ends in until its image is whole.
const PARTIAL: &str = ".partial";
/// What is added for the journal.
const JOURNAL: &str = ".journal";

/// How to convert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvertOptions {
    /// What the new image is like. Its length is the source's.
    pub image: CreateOptions,
    /// How hard to compress; the format's usual level otherwise.
    pub level: Option<i32>,
    /// Threads that read, unpack and compress; one per processor otherwise.
    pub jobs: Option<usize>,
    /// A file that is there already is replaced, at once and only in the end.
    pub replace: bool,
    /// How often to note what is done, so that the same conversion, if this one is interrupted, goes on there. Without
    /// it, and for what is compressed, filled with zeroes in advance, or made of a source that
    /// [cannot be told](Disk::version) from another one, it starts again from its beginning.
    pub resume: Option<Duration>,
}

impl ConvertOptions {
    /// Without compression, and refusing to replace a file.
    pub fn new(format: Format) -> Self {
        Self {
            image: CreateOptions::new(format, 0),
            level: None,
            jobs: None,
            replace: false,
            resume: None,
        }
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
    /// Where it went on with what an earlier conversion had done, which the other numbers contain.
    pub resumed: u64,
    /// Length of the new file.
    pub file_length: u64,
}

/// Writes what `source` holds into a new image at `path`, under a temporary name until it is whole and
/// would survive a loss of power. `progress` is told how many bytes of the disk are done. A block device at `path` is
/// written to as it is, with [`replace`](ConvertOptions::replace) only.
pub fn convert(
    source: &dyn Disk,
    path: impl AsRef<Path>,
    options: &ConvertOptions,
    mut progress: impl FnMut(u64),
) -> Result<Report> {
    let path = path.as_ref();
    if path.metadata().is_ok_and(|found| found.file_type().is_block_device()) {
        return device::write_onto(source, path, options, &mut progress);
    }
    let io = |action| move |source| Error::Io { action, path: path.to_owned(), source };
    let create = CreateOptions { length: source.len(), ..options.image.clone() };
    let files = Files::new(path, PARTIAL);
    let targets = files.all(&create);
    for target in &targets {
        if !options.replace && target.symlink_metadata().is_ok() {
            let source = io::ErrorKind::AlreadyExists.into();
            return Err(Error::Io { action: "create", path: target.clone(), source });
        }
    }
    let paths: Vec<PathBuf> = targets.iter().map(|target| files.temporary(target)).collect();
    let mut notes = files.temporary(path).into_os_string();
    notes.push(JOURNAL);
    let notes = PathBuf::from(notes);
    let what = describe(source, &create);
    // A name that is too long for its file system is one to do without.
    let has_name = notes.file_name().is_some_and(|name| name.len() <= 255);
    let resumable = has_name && create.preallocation != Preallocation::Full;
    let mut journal = match (options.resume.filter(|_| resumable), &what) {
        (Some(every), Some(what)) => Some(Journal::new(notes.clone(), what, every)),
        _ => None,
    };
    let saved = match &what {
        Some(what) if journal.is_some() => journal::load(&notes, what),
        _ => None,
    };
    let mut begun = None;
    if let Some(saved) = saved {
        begun = go_on(path, &create, &paths, &saved)?.map(|builder| (builder, saved));
    }
    if begun.is_none() {
        paths.iter().chain([&notes]).try_for_each(|path| remove_old(path))?;
    }
    // From here on they are removed if this fails.
    let mut partials: Vec<Partial> = paths
        .iter()
        .zip(targets)
        .map(|(path, target)| Partial { path: path.clone(), target, is_kept: false })
        .collect();
    let mut report = Report::default();
    let mut last = None;
    let mut builder = match begun {
        Some((builder, saved)) => {
            report = saved.report;
            last = saved.runs.last().cloned();
            if let Some(journal) = &mut journal {
                journal.resume(&saved)?;
            }
            builder
        }
        None => build(&files, &create)?,
    };
    let noting = journal.as_mut().map(|journal| Noting { journal, files: &paths, last });
    let written = write_data(source, &mut *builder, options, noting, &mut report, &mut progress);
    drop(builder);
    if let Err(error) = written {
        let is_begun = journal.is_some_and(|journal| journal.is_begun());
        partials.iter_mut().for_each(|partial| partial.is_kept = is_begun);
        return Err(error);
    }
    for partial in &partials {
        report.file_length += partial.path.metadata().map_err(io("look at"))?.len();
    }
    // The image's own file comes last: until then its old one stays.
    partials.into_iter().try_for_each(Partial::publish).map_err(io("name"))?;
    remove_old(&notes)?;
    Ok(report)
}

/// Where a conversion notes what it does.
struct Noting<'a> {
    journal: &'a mut Journal,
    /// The new image's files.
    files: &'a [PathBuf],
    /// The last blocks that an earlier conversion placed.
    last: Option<Run>,
}

/// What is converted into what, if that can be told from everything else.
fn describe(source: &dyn Disk, create: &CreateOptions) -> Option<String> {
    Some(format!("{} into {create:?}", source.version()?))
}

/// The builder of an earlier conversion in the state of then, if its files are there and in order.
fn go_on(
    path: &Path,
    create: &CreateOptions,
    paths: &[PathBuf],
    saved: &Saved,
) -> Result<Option<Box<dyn Builder>>> {
    let is_file = |path: &PathBuf| path.symlink_metadata().is_ok_and(|found| found.is_file());
    if saved.start > create.length || !paths.iter().all(is_file) || !journal::clean(paths, saved)? {
        return Ok(None);
    }
    let mut builder = build(&Files::new(path, PARTIAL).kept(), create)?;
    Ok(journal::replay(&mut *builder, saved)?.then_some(builder))
}

/// Removes what an earlier conversion that was killed left behind, unless it still runs.
fn remove_old(path: &Path) -> Result<()> {
    if path.symlink_metadata().is_ok_and(|found| found.is_file()) {
        // Its lock tells whether somebody writes to it.
        drop(FileSource::open(path, false)?);
        let io = |source| Error::Io { action: "remove", path: path.to_owned(), source };
        std::fs::remove_file(path).map_err(io)?;
    }
    Ok(())
}

/// A file that is removed unless it gets its name or is kept for the next conversion.
struct Partial {
    path: PathBuf,
    target: PathBuf,
    is_kept: bool,
}

impl Partial {
    fn publish(mut self) -> io::Result<()> {
        std::fs::rename(&self.path, &self.target)?;
        self.is_kept = true;
        let folder = self.target.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.is_kept {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Writes all that is not zeroes.
fn write_data(
    source: &dyn Disk,
    target: &mut dyn Builder,
    options: &ConvertOptions,
    noting: Option<Noting<'_>>,
    report: &mut Report,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let jobs = options.jobs.unwrap_or(processors).clamp(1, MAX_JOBS);
    let Some(codec) = target.codec() else {
        copy_data(source, target, noting, jobs, report, progress)?;
        return target.finish();
    };
    // A builder's blocks are powers of two.
    let block = target.block_size().min(1 << 30) as usize;
    let chunk = CHUNK.max(block as u64);
    let packing = Packing { codec, level: options.level, jobs, block };
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
