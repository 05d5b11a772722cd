//! Files in memory whose changes are remembered, so that a loss of power can be tried at each of them.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::SECTOR;
use crate::layer::Image;
use crate::open::{Neighbours, Parsed, parse};
use crate::source::{RemoteSource, Source, WritableSource};
use crate::{Disk, Error, Format, MemorySource, Result};

/// Files by their names, the image's own first.
pub(crate) type Files = Vec<(String, Vec<u8>)>;

/// The folder of an image.
#[derive(Clone, Debug)]
pub(crate) struct Folder(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    start: Files,
    memories: Vec<MemorySource>,
    /// What was done to which file.
    log: Mutex<Vec<(usize, Event)>>,
    read_only: bool,
}

#[derive(Clone, Debug)]
enum Event {
    Write(u64, Vec<u8>),
    SetLength(u64),
    Flush,
}

impl Folder {
    pub fn new(files: &Files) -> Self {
        Self::with(files, false)
    }

    pub fn read_only(files: &Files) -> Self {
        Self::with(files, true)
    }

    fn with(files: &Files, read_only: bool) -> Self {
        let memories = files.iter().map(|(_, bytes)| MemorySource::new(bytes.clone())).collect();
        let log = Mutex::default();
        Self(Arc::new(Inner { start: files.clone(), memories, log, read_only }))
    }

    /// The image's own file.
    pub fn main(&self) -> Arc<RecordedFile> {
        Arc::new(RecordedFile { folder: self.clone(), index: 0 })
    }

    pub fn parse(&self, format: Format) -> Result<Parsed> {
        let main = self.main();
        let read_only = self.0.read_only;
        let neighbours = Neighbours { read_only, remote: Some(&*main), ..Neighbours::NONE };
        parse(main.clone(), format, &neighbours, None)
    }

    pub fn open(&self, format: Format, parent: Option<Arc<dyn Disk>>) -> Result<Image> {
        let parsed = self.parse(format)?;
        Ok(Image::new(format, parsed.layer, parsed.length, parent, self.0.read_only))
    }

    /// How often something was done to a file.
    pub fn events(&self) -> usize {
        self.0.log.lock().unwrap().len()
    }

    pub fn files(&self) -> Files {
        let names = self.0.start.iter().map(|(name, _)| name.clone());
        names.zip(self.0.memories.iter().map(MemorySource::to_vec)).collect()
    }

    /// What a loss of power after `cut` events leaves: all that was flushed, and of the rest what `seed`
    /// chooses, in the units that a disk writes whole.
    pub fn crash(&self, cut: usize, mut seed: u64) -> Files {
        let log = &self.0.log.lock().unwrap()[..cut];
        let mut left = self.0.start.clone();
        for (file, (_, bytes)) in left.iter_mut().enumerate() {
            let events = || log.iter().filter(|(of, _)| *of == file).map(|(_, event)| event);
            let flushed = events().collect::<Vec<_>>();
            let flushed = flushed.iter().rposition(|event| matches!(event, Event::Flush));
            let memory = MemorySource::new(std::mem::take(bytes));
            for (index, event) in events().enumerate() {
                let is_flushed = flushed.is_some_and(|flushed| index < flushed);
                let mut survives = || {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    is_flushed || seed >> 63 == 1
                };
                match event {
                    Event::Write(offset, bytes) => {
                        // What was flushed is there as a whole.
                        let size = if is_flushed { bytes.len().max(1) } else { SECTOR };
                        for (number, sector) in bytes.chunks(size).enumerate() {
                            if survives() {
                                memory.write_at(sector, offset + (number * size) as u64).unwrap();
                            }
                        }
                    }
                    Event::SetLength(length) if survives() => memory.set_len(*length).unwrap(),
                    Event::SetLength(_) | Event::Flush => {}
                }
            }
            *bytes = memory.to_vec();
        }
        left
    }
}

/// A file of a [`Folder`].
#[derive(Debug)]
pub(crate) struct RecordedFile {
    folder: Folder,
    index: usize,
}

impl RecordedFile {
    fn memory(&self) -> &MemorySource {
        &self.folder.0.memories[self.index]
    }

    fn note(&self, event: Event) {
        self.folder.0.log.lock().unwrap().push((self.index, event));
    }
}

impl Source for RecordedFile {
    fn len(&self) -> u64 {
        self.memory().len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.memory().read_at(buffer, offset)
    }

    fn writable(&self) -> Option<&dyn WritableSource> {
        (!self.folder.0.read_only).then_some(self)
    }
}

/// Only so that an image finds the files that it names.
impl RemoteSource for RecordedFile {
    fn address(&self) -> String {
        self.folder.0.start[self.index].0.clone()
    }

    fn state(&self) -> Option<String> {
        None
    }

    fn sibling(&self, name: &str) -> Result<Arc<dyn RemoteSource>> {
        let index = self.folder.0.start.iter().position(|(found, _)| found == name);
        let index = index.ok_or_else(|| Error::NotFound { name: name.to_owned() })?;
        Ok(Arc::new(Self { folder: self.folder.clone(), index }))
    }
}

impl WritableSource for RecordedFile {
    fn write_at(&self, buffer: &[u8], offset: u64) -> Result<()> {
        self.note(Event::Write(offset, buffer.to_vec()));
        self.memory().write_at(buffer, offset)
    }

    fn set_len(&self, length: u64) -> Result<()> {
        self.note(Event::SetLength(length));
        self.memory().set_len(length)
    }

    fn punch(&self, range: Range<u64>) -> Result<()> {
        // It makes no file longer, wherever a damaged table leads.
        let end = range.end.min(self.len());
        let zeroes = vec![0; end.saturating_sub(range.start) as usize];
        if zeroes.is_empty() { Ok(()) } else { self.write_at(&zeroes, range.start) }
    }

    fn flush(&self) -> Result<()> {
        self.note(Event::Flush);
        Ok(())
    }
}
