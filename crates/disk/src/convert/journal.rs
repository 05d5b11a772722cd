//! What of a conversion is done, beside the unfinished image: with it, the next one goes on there.
//!
//! Lines of text: what is converted into what, then which blocks were placed where (`run`) and up to where all is
//! written and flushed (`done`, which ends in a checksum of everything before it). A builder is in the same state again
//! after it placed the same blocks, so nothing else is kept of it.

use std::fmt::Write as _;
use std::fs::{File, Metadata};
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flate2::Crc;
use rustix::fs::FallocateFlags;

use super::Report;
use crate::create::{Builder, Placed, writable};
use crate::source::Source;
use crate::{Error, FileSource, Result};

/// Longer ones are not gone on with: they are read into memory.
const MAX_LENGTH: u64 = 256 << 20;

/// Notes what is done.
pub(super) struct Journal {
    path: PathBuf,
    file: Option<File>,
    crc: Crc,
    /// Lines that are not written yet.
    pending: String,
    run: Option<Run>,
    every: Duration,
    last: Instant,
}

/// Blocks of the guest's that lie together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub range: Range<u64>,
    pub source: usize,
    pub offset: u64,
}

/// What an earlier conversion had done.
#[derive(Debug, Default)]
pub(super) struct Saved {
    pub runs: Vec<Run>,
    /// Of each of the builder's sources: the number of its file, and its length.
    pub files: Vec<(usize, u64)>,
    /// Up to where everything is written.
    pub start: u64,
    pub report: Report,
    /// Bytes of the journal that count.
    length: usize,
}

impl Journal {
    /// One that writes nothing until `every` has passed.
    pub fn new(path: PathBuf, what: &str, every: Duration) -> Self {
        Self {
            path,
            file: None,
            crc: Crc::new(),
            pending: head(what),
            run: None,
            every,
            last: Instant::now(),
        }
    }

    /// Goes on with the journal that [`load`] has found.
    pub fn resume(&mut self, saved: &Saved) -> Result<()> {
        let text = std::fs::read(&self.path).map_err(self.io("read"))?;
        let text = text.get(..saved.length).ok_or(Error::Stopped)?;
        let file = File::options().append(true).open(&self.path).map_err(self.io("open"))?;
        file.set_len(saved.length as u64).map_err(self.io("shorten"))?;
        self.crc.update(text);
        self.pending.clear();
        self.file = Some(file);
        Ok(())
    }

    /// Whether there is something to go on with.
    pub fn is_begun(&self) -> bool {
        self.file.is_some()
    }

    /// Notes where blocks lie.
    pub fn placed(&mut self, start: u64, placed: &Placed) {
        let end = start + placed.length;
        if let Some(run) = &mut self.run
            && (run.range.end, run.source) == (start, placed.source)
            && run.offset + (start - run.range.start) == placed.offset
        {
            run.range.end = end;
            return;
        }
        self.end_run();
        self.run = Some(Run { range: start..end, source: placed.source, offset: placed.offset });
    }

    fn end_run(&mut self) {
        if let Some(Run { range, source, offset }) = self.run.take() {
            let _ = writeln!(self.pending, "run {} {} {source} {offset}", range.start, range.end);
        }
    }

    /// Notes that everything before `start` is written, if it is time to.
    pub fn checkpoint(
        &mut self,
        start: u64,
        report: &Report,
        sources: &[Arc<dyn Source>],
        files: &[PathBuf],
    ) -> Result<()> {
        if self.last.elapsed() < self.every {
            return Ok(());
        }
        self.end_run();
        let Report { data, zeroes, holes, shared, .. } = report;
        let _ = write!(self.pending, "done {start} {data} {zeroes} {holes} {shared}");
        for source in sources {
            writable(&**source)?.flush()?;
            let Some(number) = number_of(&**source, files).map_err(self.io("look at"))? else {
                return Err(Error::Stopped);
            };
            let _ = write!(self.pending, " {number} {}", source.len());
        }
        self.crc.update(self.pending.as_bytes());
        let end = format!(" {:08x}\n", self.crc.sum());
        self.crc.update(end.as_bytes());
        self.pending.push_str(&end);
        if self.file.is_none() {
            let file = File::options().append(true).create_new(true).open(&self.path);
            self.file = Some(file.map_err(self.io("create"))?);
        }
        if let Some(file) = &mut self.file {
            let written = file.write_all(self.pending.as_bytes()).and_then(|()| file.sync_data());
            written.map_err(self.io("write to"))?;
        }
        self.pending.clear();
        self.last = Instant::now();
        Ok(())
    }

    fn io(&self, action: &'static str) -> impl Fn(io::Error) -> Error + use<> {
        let path = self.path.clone();
        move |source| Error::Io { action, path: path.clone(), source }
    }
}

/// What an earlier conversion of the same kind has noted at `path`, if anything.
pub(super) fn load(path: &Path, what: &str) -> Option<Saved> {
    let metadata = path.symlink_metadata().ok()?;
    if !metadata.is_file() || metadata.len() > MAX_LENGTH {
        return None;
    }
    parse(&std::fs::read_to_string(path).ok()?, what)
}

/// Leaves of unfinished files what was noted, and zeroes elsewhere: what came later is written again. `false` where the
/// file system cannot.
pub(super) fn clean(files: &[PathBuf], saved: &Saved) -> Result<bool> {
    for (source, (number, length)) in saved.files.iter().enumerate() {
        let Some(path) = files.get(*number) else {
            return Ok(false);
        };
        let file = FileSource::open(path, false)?;
        let Some(target) = file.writable().filter(|_| file.len() >= *length) else {
            return Ok(false);
        };
        target.set_len(*length)?;
        let mut kept: Vec<Range<u64>> = saved
            .runs
            .iter()
            .filter(|run| run.source == source)
            .map(|run| run.offset..run.offset.saturating_add(run.range.end - run.range.start))
            .collect();
        kept.push(*length..*length);
        kept.sort_by_key(|range| range.start);
        let mut start = 0;
        for range in kept {
            let end = range.start.min(*length);
            if start < end && !punch(&file, start..end) {
                return Ok(false);
            }
            start = start.max(range.end);
        }
    }
    Ok(true)
}

/// Places again what was placed; `false` if it would lie elsewhere now.
pub(super) fn replay(target: &mut dyn Builder, saved: &Saved) -> Result<bool> {
    for run in &saved.runs {
        let mut at = run.range.start;
        while at < run.range.end {
            let placed = target.place(at..run.range.end)?;
            let offset = run.offset + (at - run.range.start);
            let is_there = (placed.source, placed.offset) == (run.source, offset);
            if !is_there || placed.length == 0 || placed.length > run.range.end - at {
                return Ok(false);
            }
            at += placed.length;
        }
    }
    if target.sources().len() != saved.files.len() {
        return Ok(false);
    }
    for (source, (_, length)) in target.sources().iter().zip(&saved.files) {
        writable(&**source)?.set_len(source.len().max(*length))?;
    }
    Ok(true)
}

fn punch(file: &FileSource, range: Range<u64>) -> bool {
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let length = range.end - range.start;
    file.file().is_some_and(|file| rustix::fs::fallocate(file, mode, range.start, length).is_ok())
}

/// Which of `files` a source is.
fn number_of(source: &dyn Source, files: &[PathBuf]) -> io::Result<Option<usize>> {
    let Some(file) = source.file() else {
        return Ok(None);
    };
    let identity = |found: Metadata| (found.dev(), found.ino());
    let wanted = identity(File::from(file.try_clone_to_owned()?).metadata()?);
    Ok(files.iter().position(|path| path.metadata().is_ok_and(|found| identity(found) == wanted)))
}

fn head(what: &str) -> String {
    format!("omnivisor conversion 1\nof {what:?}\n")
}

fn parse(text: &str, what: &str) -> Option<Saved> {
    let head = head(what);
    let mut lines = text.strip_prefix(&head)?.split_inclusive('\n');
    let mut crc = Crc::new();
    crc.update(head.as_bytes());
    let mut at = head.len();
    let mut runs = Vec::new();
    let mut saved = None;
    // What is cut off or damaged ends it: all up to the last line that is in order still holds.
    while let Some(line) = lines.next().and_then(|line| line.strip_suffix('\n')) {
        at += line.len() + 1;
        if let Some(numbers) = line.strip_prefix("run ").and_then(numbers) {
            crc.update(line.as_bytes());
            crc.update(b"\n");
            let [start, end, source, offset] = numbers[..] else { break };
            // Everything lies in files of a length that a disk can have.
            if start >= end || offset.checked_add(end - start).is_none() {
                break;
            }
            runs.push(Run { range: start..end, source: usize::try_from(source).ok()?, offset });
            continue;
        }
        let Some((content, sum)) = line.rsplit_once(' ') else { break };
        let Some(numbers) = content.strip_prefix("done ").and_then(numbers) else { break };
        crc.update(content.as_bytes());
        if sum != format!("{:08x}", crc.sum()) {
            break;
        }
        crc.update(format!(" {sum}\n").as_bytes());
        let [start, data, zeroes, holes, shared, ref files @ ..] = numbers[..] else { break };
        let files = files.chunks_exact(2).map(|file| (file[0] as usize, file[1])).collect();
        let report = Report { data, zeroes, holes, shared, resumed: start, ..Report::default() };
        saved = Some((runs.len(), Saved { runs: Vec::new(), files, start, report, length: at }));
    }
    let (count, mut saved) = saved?;
    runs.truncate(count);
    saved.runs = runs;
    Some(saved)
}

fn numbers(text: &str) -> Option<Vec<u64>> {
    text.split(' ').map(|number| number.parse().ok()).collect()
}
