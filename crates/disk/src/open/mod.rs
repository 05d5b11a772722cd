//! Opening of an image with its chain of parents.

mod chain;
mod neighbours;
mod parsed;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use chain::{Chain, version_of};
pub(crate) use neighbours::{Neighbours, with_neighbours};
pub use parsed::MAX_LENGTH;
pub(crate) use parsed::{
    Identity, ParentLink, Parsed, hyphenated, is_protocol, parse, portable_names,
};

use crate::archive::{self, Archive};
use crate::layer::Image;
use crate::qcow2::{self, Qcow2Options};
use crate::source::{FileSource, HttpOptions, HttpSource, RemoteSource, Source, is_url};
use crate::{Disk, Error, Format, Result};

/// How to open an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageOptions {
    /// Nothing is ever written; others may read it at the same time.
    pub read_only: bool,
    /// Goes past the host's page cache (O_DIRECT), raw disks only.
    pub direct: bool,
    /// The format; found out by content otherwise, see [`Format::detect`] for when not to.
    pub format: Option<Format>,
    /// Where the parents and other files that an image names may lie.
    pub files: FilePolicy,
    /// Opens the disk as an internal snapshot of this name or number had it, read-only: qcow2 and bundles
    /// of Parallels. Of a VMA archive, the disk of this name.
    pub snapshot: Option<String>,
    /// Refuses an image if it, or a parent, is a file of this computer that was cut short ([`Error::CutShort`]). A few
    /// reads are made for that; what lacks less than a block is not found.
    pub whole: bool,
    /// A folder of our own that keeps, from one opening of a file to the next, what was found out about it at a cost: where
    /// the unpacking of what gzip has compressed can begin. It is made where it does not exist, and never grows beyond 256 MiB.
    pub cache: Option<PathBuf>,
}

/// Where the files that an image names may lie. Such names are the word of whoever made the image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum FilePolicy {
    /// In the folder of the image that is opened, or below.
    #[default]
    SameFolder,
    /// In this folder or below, such as the folder of a virtual machine.
    Within(PathBuf),
    /// Anywhere.
    Anywhere,
}

/// What is known of one image of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// Its file.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// Length of its disk in bytes.
    pub length: u64,
    /// Other files that it consists of: extents of a VMDK, images of a Parallels bundle.
    pub parts: Vec<PathBuf>,
    /// Bytes of its files.
    pub file_length: u64,
    /// Unit in which it keeps the guest's bytes; 1 if they lie one by one.
    pub block_size: u64,
    /// What is particular to the format, by name.
    pub details: Vec<(&'static str, String)>,
    /// Internal snapshots.
    pub snapshots: Vec<Snapshot>,
}

impl ImageInfo {
    /// The detail of this name.
    pub fn detail(&self, name: &str) -> Option<&str> {
        self.details.iter().find(|(found, _)| *found == name).map(|(_, value)| value.as_str())
    }
}

/// An internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its number, unique within the image.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// Length of the disk at that time.
    pub length: u64,
    /// Bytes of the machine's state that is kept with it.
    pub machine_state: u64,
}

/// Opens an image and its parents; only the image itself is ever written to. A path that begins with `http://` or
/// `https://` is an address, see [`open_url`].
pub fn open(path: impl AsRef<Path>, options: &ImageOptions) -> Result<Arc<dyn Disk>> {
    let (disk, _) = open_chain(path, options)?;
    Ok(disk)
}

/// The file that says what a bundle of Parallels' consists of, if `path` is one: a folder.
pub fn bundle_descriptor(path: &Path) -> Option<PathBuf> {
    let descriptor = path.join("DiskDescriptor.xml");
    descriptor.is_file().then_some(descriptor)
}

/// Opens an image and tells of every image of its chain, itself first.
pub fn open_chain(
    path: impl AsRef<Path>,
    options: &ImageOptions,
) -> Result<(Arc<dyn Disk>, Vec<ImageInfo>)> {
    let path = path.as_ref();
    if let Some(url) = path.to_str().filter(|_| is_url(path)) {
        return open_url(url, &HttpOptions::default(), options);
    }
    let bundle = bundle_descriptor(path);
    let path = bundle.as_deref().unwrap_or(path);
    let inside = match archive::split(path) {
        Some((archive, name)) => {
            let source = Arc::new(FileSource::open(archive, true)?);
            let name = name.to_string_lossy().into_owned();
            archive::open_member(source, Archive::Path(archive), Some(name), options)?
        }
        None if options.format.is_none() && archive::is_archive(path) => {
            let source = Arc::new(FileSource::open(path, true)?);
            archive::open_member(source, Archive::Path(path), None, options)?
        }
        None => None,
    };
    if let Some((disk, info)) = inside {
        return Ok((disk, vec![info]));
    }
    let opening = |source| Error::Open { path: path.to_owned(), source };
    let folder = match &options.files {
        FilePolicy::Anywhere => None,
        FilePolicy::SameFolder => {
            let path = std::fs::canonicalize(path).map_err(opening)?;
            path.parent().map(Path::to_owned)
        }
        FilePolicy::Within(folder) => Some(std::fs::canonicalize(folder).map_err(opening)?),
    };
    let mut chain =
        Chain { folder, whole: options.whole, cache: options.cache.as_deref(), ..Chain::default() };
    let link = chain.open(path, options)?;
    Ok((link.disk, chain.infos))
}

/// Opens an image of an HTTP server and its parents, for reading, and tells of every image of its chain, itself first.
/// Parents and other files that it names are looked for in its folder on the server. Of an archive, what follows a `#`
/// is the name of the disk.
pub fn open_url(
    url: &str,
    http: &HttpOptions,
    options: &ImageOptions,
) -> Result<(Arc<dyn Disk>, Vec<ImageInfo>)> {
    let source = Arc::new(HttpSource::open(url, http)?);
    let name = url.split_once('#').map(|(_, name)| name.to_owned());
    if name.is_some() || options.format.is_none() {
        let address = source.address();
        let archive: Arc<dyn Source> = source.clone();
        let found = archive::open_member(archive, Archive::Url(&address), name, options)?;
        if let Some((disk, mut info)) = found {
            info.details.extend(version_of(&*source));
            return Ok((disk, vec![info]));
        }
    }
    open_remote(source, &[], options)
}

/// Opens an image that is a file of another computer, with its parents, and tells of every image of its chain, itself
/// first. `parents` are names of files that may be parents which an image knows by their identity only.
pub fn open_remote(
    source: Arc<dyn RemoteSource>,
    parents: &[String],
    options: &ImageOptions,
) -> Result<(Arc<dyn Disk>, Vec<ImageInfo>)> {
    let mut chain = Chain { parents, ..Chain::default() };
    let link = chain.open_remote(source, options)?;
    Ok((link.disk, chain.infos))
}

/// Makes a new qcow2 image at `path` that holds what is written to it and reads as `parent` elsewhere.
/// `parent` can be any disk; `named` is what the image says of it to programs that look for it by name.
pub fn overlay(
    path: impl AsRef<Path>,
    parent: Arc<dyn Disk>,
    named: Option<(String, Format)>,
) -> Result<Arc<dyn Disk>> {
    let path = path.as_ref();
    let options = Qcow2Options { backing: named, ..Qcow2Options::new(parent.len()) };
    qcow2::create_qcow2(path, &options)?;
    open_over(path, parent)
}

/// Opens an image for reading and writing over a parent that is given, whatever the image says of it.
pub fn open_over(path: impl AsRef<Path>, parent: Arc<dyn Disk>) -> Result<Arc<dyn Disk>> {
    let path = path.as_ref();
    let image = |source| Error::Image { path: path.to_owned(), source: Box::new(source) };
    let source = FileSource::open(path, false)?;
    let format = Format::detect(&source)?;
    let neighbours = Neighbours { read_only: false, ..Neighbours::NONE };
    let parsed = parse(Arc::new(source), format, &neighbours, None).map_err(image)?;
    Ok(Arc::new(Image::new(format, parsed.layer, parsed.length, Some(parent), false)))
}

/// Opens one image for reading without the parent that it may have: what it does not hold itself is holes.
pub(crate) fn open_alone(path: &Path, format: Format) -> Result<Arc<dyn Disk>> {
    let (image, _) = open_image(path, format, &FilePolicy::SameFolder)?;
    Ok(Arc::new(image))
}

/// The same, with what is particular to the image.
pub(crate) fn open_image(
    path: &Path,
    format: Format,
    files: &FilePolicy,
) -> Result<(Image, Vec<(&'static str, String)>)> {
    with_neighbours(path, files, true, |source, neighbours| {
        let parsed = parse(source, format, neighbours, None)?;
        let image = Image::new(format, parsed.layer, parsed.length, None, true);
        Ok((image, parsed.details))
    })
}
