//! New images: what they can be like, and how they are written from their start to their end.

mod options;

use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use options::{CreateOptions, Layout, Preallocation, WrongOption};

use crate::codec::Codec;
use crate::source::{FileSource, Source, WritableSource};
use crate::{Error, Format, Result, parallels, qcow2, raw, vdi, vhd, vhdx, vmdk};

/// Makes a new, empty image; refuses to replace files.
pub fn create(path: impl AsRef<Path>, options: &CreateOptions) -> Result<()> {
    let files = Files::new(path.as_ref(), "");
    let made = build(&files, options).and_then(|mut builder| builder.finish());
    if made.is_err() && !matches!(made, Err(Error::Io { action: "create", .. })) {
        // What is left of it is no image.
        for path in files.all(options) {
            let _ = std::fs::remove_file(path);
        }
    }
    made
}

/// Begins a new image; refuses to replace files.
pub(crate) fn build(files: &Files, options: &CreateOptions) -> Result<Box<dyn Builder>> {
    options.check()?;
    Ok(match options.format {
        Format::Raw => Box::new(raw::Builder::new(files, options)?),
        Format::Qcow2 => Box::new(qcow2::Appender::new(files, options)?),
        Format::Vmdk => vmdk::build(files, options)?,
        Format::Vhd => Box::new(vhd::NewImage::new(files, options)?),
        Format::Vhdx => Box::new(vhdx::NewImage::new(files, options)?),
        Format::Vdi => Box::new(vdi::NewImage::new(files, options)?),
        Format::Parallels => Box::new(parallels::NewImage::new(files, options)?),
        format => {
            let what = "images of this format cannot be made".to_owned();
            return Err(Error::Unsupported { format, what });
        }
    })
}

/// A new image to which data are written in the guest's order, each block at most once. What is never
/// written reads as zeroes.
pub(crate) trait Builder: Send {
    /// Unit in which data are written: what is written begins at a multiple of it and ends at one or at
    /// the disk's end.
    fn block_size(&self) -> u64;

    /// The files that [`Placed`] counts.
    fn sources(&self) -> &[Arc<dyn Source>];

    /// How blocks are compressed, if they are: they go to [`write_packed`](Self::write_packed) one by one.
    fn codec(&self) -> Option<Codec> {
        None
    }

    /// Takes space for `range` and says where its first bytes lie; may take less than all of it. Whoever
    /// asks writes them there, by whatever way is cheapest; what is not written there reads as zeroes.
    fn place(&mut self, range: Range<u64>) -> Result<Placed>;

    /// Writes the stream of the block at `start`.
    fn write_packed(&mut self, _start: u64, _stream: &[u8]) -> Result<()> {
        Err(Error::Stopped)
    }

    /// Writes what is still in memory; afterwards the image would survive a loss of power.
    fn finish(&mut self) -> Result<()>;

    /// Writes blocks from `start`.
    fn write(&mut self, start: u64, bytes: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let placed = self.place(start + done as u64..start + bytes.len() as u64)?;
            // Not more than there are bytes.
            let part = &bytes[done..done + placed.length as usize];
            writable(&*self.sources()[placed.source])?.write_at(part, placed.offset)?;
            done += part.len();
        }
        Ok(())
    }
}

/// Where new data go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    pub source: usize,
    pub offset: u64,
    /// How many bytes, from the start of what was asked for.
    pub length: u64,
}

/// A source that was opened for writing.
pub(crate) fn writable(source: &dyn Source) -> Result<&dyn WritableSource> {
    source.writable().ok_or(Error::ReadOnly)
}

/// The files of a new image: its own and those that it names, under temporary names or their final ones.
pub(crate) struct Files {
    path: PathBuf,
    suffix: &'static str,
    is_kept: bool,
}

impl Files {
    /// Those of an image that will lie at `path`; `suffix` is added to all names until then.
    pub fn new(path: &Path, suffix: &'static str) -> Self {
        Self { path: path.to_owned(), suffix, is_kept: false }
    }

    /// The same where all of them are there already, and keep what is not written anew.
    pub fn kept(self) -> Self {
        Self { is_kept: true, ..self }
    }

    fn file(&self, path: &Path) -> Result<FileSource> {
        let path = self.temporary(path);
        if self.is_kept { FileSource::open_again(path) } else { FileSource::create(path) }
    }

    /// The image's own file.
    pub fn main(&self) -> Result<FileSource> {
        self.file(&self.path)
    }

    /// A file beside it.
    pub fn beside(&self, name: &str) -> Result<FileSource> {
        self.file(&self.path.with_file_name(name))
    }

    /// The image's name.
    pub fn name(&self) -> Result<String> {
        self.text(self.path.file_name())
    }

    /// The image's name without its ending.
    pub fn stem(&self) -> Result<String> {
        self.text(self.path.file_stem())
    }

    /// A name that an image can tell of itself.
    fn text(&self, name: Option<&OsStr>) -> Result<String> {
        let name = name.and_then(OsStr::to_str).filter(|name| !name.contains(['"', '\n']));
        let missing = || Error::NotFound { name: self.path.display().to_string() };
        name.map(str::to_owned).ok_or_else(missing)
    }

    /// The final paths of all of them, the image's own last.
    pub fn all(&self, options: &CreateOptions) -> Vec<PathBuf> {
        let names = self.names(options).unwrap_or_default();
        let mut paths: Vec<PathBuf> =
            names.iter().map(|name| self.path.with_file_name(name)).collect();
        paths.push(self.path.clone());
        paths
    }

    fn names(&self, options: &CreateOptions) -> Result<Vec<String>> {
        match options.format {
            Format::Qcow2 => Ok(options.data_file.iter().cloned().collect()),
            Format::Vmdk => vmdk::names(self, options),
            _ => Ok(Vec::new()),
        }
    }

    /// What a file is called until the image is whole.
    pub fn temporary(&self, path: &Path) -> PathBuf {
        let mut name = path.file_name().map(OsString::from).unwrap_or_default();
        name.push(self.suffix);
        path.with_file_name(name)
    }
}
