//! Opening of an image with its chain of parents.

use std::cell::RefCell;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::archive::{self, Archive};
use crate::layer::{Image, Layer};
use crate::qcow2::Qcow2Options;
use crate::source::{FileSource, HttpOptions, HttpSource, RemoteSource, Source, is_url};
use crate::{Disk, Error, Format, OpenOptions, RawDisk, Result, SECTOR_SIZE};
use crate::{asif, dmg, parallels, qcow, qcow2, qed, vdi, vhd, vhdx, vma, vmdk};

/// Longest chain of parents that is followed.
const MAX_DEPTH: usize = 128;

/// Longest disk: offsets within it can be rounded up and added without overflow.
pub const MAX_LENGTH: u64 = 1 << 62;

/// Most files of a folder that are looked into for a parent that is known by its identity only.
const MAX_SEARCHED: usize = 4096;

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

/// What tells the file from other versions of it.
fn version_of(source: &dyn RemoteSource) -> Option<(&'static str, String)> {
    Some(("version", source.state()?))
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

/// Opens a file for work on one image, which may name files beside it.
pub(crate) fn with_neighbours<T>(
    path: &Path,
    files: &FilePolicy,
    read_only: bool,
    work: impl FnOnce(Arc<dyn Source>, &Neighbours<'_>) -> Result<T>,
) -> Result<T> {
    let image = |source| Error::Image { path: path.to_owned(), source: Box::new(source) };
    let opening = |source| Error::Open { path: path.to_owned(), source };
    let source = Arc::new(FileSource::open(path, read_only)?);
    let real = std::fs::canonicalize(path).map_err(opening)?;
    let folder = real.parent();
    let within = match files {
        FilePolicy::SameFolder => folder.map(Path::to_owned),
        FilePolicy::Within(folder) => Some(std::fs::canonicalize(folder).map_err(opening)?),
        FilePolicy::Anywhere => None,
    };
    let within = within.as_deref();
    let neighbours = Neighbours { folder, within, read_only, ..Neighbours::NONE };
    work(source, &neighbours).map_err(image)
}

/// What a format found in an image.
pub(crate) struct Parsed {
    pub layer: Box<dyn Layer>,
    pub length: u64,
    pub parent: Option<ParentLink>,
    /// By which children know it.
    pub identity: Option<Identity>,
    pub details: Vec<(&'static str, String)>,
    pub snapshots: Vec<Snapshot>,
}

impl Parsed {
    pub fn new(layer: impl Layer + 'static, length: u64) -> Self {
        Self {
            layer: Box::new(layer),
            // The formats that count in bytes may end within a sector.
            length: length.checked_next_multiple_of(SECTOR_SIZE).unwrap_or(u64::MAX),
            parent: None,
            identity: None,
            details: Vec::new(),
            snapshots: Vec::new(),
        }
    }
}

/// What tells an image's state from every other one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    Uuid([u8; 16]),
    /// Which image it is, and what changes with each use that writes to it.
    State {
        uuid: [u8; 16],
        state: [u8; 16],
    },
    ContentId(u32),
}

impl Identity {
    fn uuid(self) -> Option<[u8; 16]> {
        match self {
            Self::Uuid(uuid) | Self::State { uuid, .. } => Some(uuid),
            Self::ContentId(_) => None,
        }
    }
}

/// How an image names its parent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ParentLink {
    /// Paths to try, in this order.
    pub names: Vec<String>,
    pub format: Option<Format>,
    /// What the parent must be.
    pub identity: Option<Identity>,
}

/// The files beside an image that it names.
pub(crate) struct Neighbours<'a> {
    /// Folder of the image; `None` if it has none, so that nothing is found.
    pub folder: Option<&'a Path>,
    /// Where they must lie; anywhere if `None`.
    pub within: Option<&'a Path>,
    pub read_only: bool,
    /// The image itself, if it is a server's.
    pub remote: Option<&'a dyn RemoteSource>,
    /// Gets the path and the length of each that is opened.
    pub opened: Option<&'a RefCell<Vec<(PathBuf, u64)>>>,
}

impl Neighbours<'_> {
    /// Those of an image without a folder.
    pub const NONE: Self =
        Neighbours { folder: None, within: None, read_only: true, remote: None, opened: None };

    /// Opens a file that the image names.
    pub fn open(&self, name: &str) -> Result<Arc<dyn Source>> {
        if let Some(remote) = self.remote {
            return Ok(remote.sibling(name)?);
        }
        let path = self.find(name)?;
        let source = FileSource::open(&path, self.read_only)?;
        if let Some(opened) = self.opened {
            opened.borrow_mut().push((path, source.len()));
        }
        Ok(Arc::new(source))
    }

    /// The path of a file that the image names.
    pub fn find(&self, name: &str) -> Result<PathBuf> {
        let missing = || Error::NotFound { name: name.to_owned() };
        let folder = self.folder.ok_or_else(missing)?;
        if name.is_empty() || name.contains('\0') {
            return Err(missing());
        }
        let said = folder.join(name);
        let path = match archive::split(&said) {
            // What follows the archive is a name in it, and no path.
            Some((archive, name)) => std::fs::canonicalize(archive).map(|path| path.join(name)),
            None => std::fs::canonicalize(&said),
        };
        let path = path.map_err(|_| missing())?;
        match self.within {
            Some(within) if !path.starts_with(within) => {
                Err(Error::OutsideFolder { path, folder: within.to_owned() })
            }
            _ => Ok(path),
        }
    }
}

struct Link {
    disk: Arc<dyn Disk>,
    identity: Option<Identity>,
}

impl Link {
    /// The disk, if it is what a child says of its parent.
    fn into_parent(self, link: &ParentLink, path: PathBuf) -> Result<Arc<dyn Disk>> {
        match (link.identity, self.identity) {
            (Some(expected), Some(found)) if expected != found => {
                let what = match (expected, found) {
                    (Identity::ContentId(expected), Identity::ContentId(found)) => {
                        format!("its content has number {found:08x}, not {expected:08x}")
                    }
                    (Identity::State { uuid, .. }, found) if found.uuid() == Some(uuid) => {
                        "it was written to since".to_owned()
                    }
                    _ => "its identifier is another".to_owned(),
                };
                Err(Error::ParentChanged { path, what })
            }
            _ => Ok(self.disk),
        }
    }
}

#[derive(Default)]
struct Chain<'a> {
    folder: Option<PathBuf>,
    /// Files that were cut short are refused.
    whole: bool,
    /// See [`ImageOptions::cache`].
    cache: Option<&'a Path>,
    infos: Vec<ImageInfo>,
    seen: Vec<(u64, u64)>,
    seen_remote: Vec<String>,
    /// Files of another computer that may be parents.
    parents: &'a [String],
}

impl Chain<'_> {
    fn open(&mut self, path: &Path, options: &ImageOptions) -> Result<Link> {
        if self.infos.len() >= MAX_DEPTH {
            return Err(Error::Chain("is too long"));
        }
        if let Some((archive, name)) = archive::split(path) {
            let source = Arc::new(FileSource::open(archive, true)?);
            let name = name.to_string_lossy().into_owned();
            let archive = Archive::Path(archive);
            let found = archive::open_member(source, archive, Some(name), options)?;
            let missing = || Error::NotFound { name: path.display().to_string() };
            let (disk, info) = found.ok_or_else(missing)?;
            self.infos.push(info);
            return Ok(Link { disk, identity: None });
        }
        if options.format == Some(Format::Raw) {
            return self.open_raw(path, options);
        }
        // What an internal snapshot shares with the present state must not change under a reader.
        let read_only = options.read_only || options.snapshot.is_some();
        let source = FileSource::open(path, read_only)?;
        let format = match options.format {
            Some(format) => format,
            None => Format::detect(&source)?,
        };
        if format == Format::Raw {
            let is_vhd = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("vhd"));
            if self.whole && is_vhd {
                let source = Box::new(vhd::without_footer());
                return Err(Error::Image { path: path.to_owned(), source });
            }
            drop(source);
            return self.open_raw(path, options);
        }
        if self.seen.contains(&source.identity()) {
            return Err(Error::Chain("leads back to itself"));
        }
        self.seen.push(source.identity());
        let image = |source| Error::Image { path: path.to_owned(), source: Box::new(source) };
        self.open_image(path, Arc::new(source), format, read_only, options).map_err(image)
    }

    fn open_raw(&mut self, path: &Path, options: &ImageOptions) -> Result<Link> {
        let raw_options = OpenOptions { read_only: options.read_only, direct: options.direct };
        let raw = RawDisk::open(path, &raw_options)?;
        self.infos.push(ImageInfo {
            path: path.to_owned(),
            format: Format::Raw,
            length: raw.len(),
            parts: Vec::new(),
            file_length: raw.len(),
            block_size: 1,
            details: Vec::new(),
            snapshots: Vec::new(),
        });
        Ok(Link { disk: Arc::new(raw), identity: None })
    }

    fn open_image(
        &mut self,
        path: &Path,
        source: Arc<dyn Source>,
        format: Format,
        read_only: bool,
        options: &ImageOptions,
    ) -> Result<Link> {
        let real = std::fs::canonicalize(path)
            .map_err(|source| Error::Open { path: path.to_owned(), source })?;
        let within = self.folder.as_deref();
        let opened = RefCell::default();
        let neighbours = Neighbours {
            folder: real.parent(),
            within,
            read_only,
            opened: Some(&opened),
            ..Neighbours::NONE
        };
        let file_length = source.len();
        let parsed = parse(source, format, &neighbours, options.snapshot.as_deref())?;
        let (parts, lengths): (Vec<_>, Vec<u64>) = opened.into_inner().into_iter().unzip();
        self.infos.push(ImageInfo {
            path: path.to_owned(),
            format,
            length: parsed.length,
            parts,
            file_length: file_length + lengths.iter().sum::<u64>(),
            block_size: parsed.layer.block_size(),
            details: parsed.details,
            snapshots: parsed.snapshots,
        });
        let mut image = Image::new(format, parsed.layer, parsed.length, None, read_only);
        if self.whole {
            image.check_end()?;
        }
        if let Some(link) = &parsed.parent {
            image.parent = Some(self.open_parent(real.parent(), format, link)?);
        }
        Ok(Link { disk: Arc::new(image), identity: parsed.identity })
    }

    fn open_parent(
        &mut self,
        folder: Option<&Path>,
        child: Format,
        link: &ParentLink,
    ) -> Result<Arc<dyn Disk>> {
        let path = self.find_parent(folder, child, link)?;
        let options = ImageOptions {
            read_only: true,
            format: link.format,
            cache: self.cache.map(Path::to_owned),
            ..ImageOptions::default()
        };
        self.open(&path, &options)?.into_parent(link, path)
    }

    fn open_remote(
        &mut self,
        source: Arc<dyn RemoteSource>,
        options: &ImageOptions,
    ) -> Result<Link> {
        if self.infos.len() >= MAX_DEPTH {
            return Err(Error::Chain("is too long"));
        }
        let identity = source.identity();
        if self.seen_remote.contains(&identity) {
            return Err(Error::Chain("leads back to itself"));
        }
        self.seen_remote.push(identity);
        let path = PathBuf::from(source.address());
        let failed = |source| Error::Image { path: path.clone(), source: Box::new(source) };
        let (parsed, mut info) =
            archive::read_image(source.clone(), options, Some(&*source)).map_err(failed)?;
        info.path = path.clone();
        info.details.extend(version_of(&*source));
        let format = info.format;
        self.infos.push(info);
        let parent = match &parsed.parent {
            Some(link) => Some(self.open_remote_parent(&*source, link).map_err(failed)?),
            None => None,
        };
        let image = Image::new(format, parsed.layer, parsed.length, parent, true);
        Ok(Link { disk: Arc::new(image), identity: parsed.identity })
    }

    fn open_remote_parent(
        &mut self,
        child: &dyn RemoteSource,
        link: &ParentLink,
    ) -> Result<Arc<dyn Disk>> {
        let options = ImageOptions { format: link.format, ..ImageOptions::default() };
        for name in &link.names {
            let found = match child.sibling(name) {
                Err(Error::NotFound { .. }) => continue,
                found => found?,
            };
            let path = PathBuf::from(found.address());
            return self.open_remote(found, &options)?.into_parent(link, path);
        }
        // Of those that are said to be parents, the one that has the identity.
        for name in self.parents.iter().filter(|_| link.identity.is_some()) {
            let Ok(found) = child.sibling(name) else { continue };
            let read = archive::read_image(found.clone(), &options, Some(&*found));
            if read.is_ok_and(|(parsed, _)| parsed.identity == link.identity) {
                return self.open_remote(found, &options).map(|link| link.disk);
            }
        }
        Err(Error::NotFound { name: link.names.first().cloned().unwrap_or_default() })
    }

    fn find_parent(
        &self,
        folder: Option<&Path>,
        child: Format,
        link: &ParentLink,
    ) -> Result<PathBuf> {
        let within = self.folder.as_deref();
        let neighbours = Neighbours { folder, within, ..Neighbours::NONE };
        let mut refused = None;
        for name in &link.names {
            match neighbours.find(name) {
                Ok(path) => return Ok(path),
                Err(error @ Error::OutsideFolder { .. }) => refused = refused.or(Some(error)),
                Err(_) => {}
            }
        }
        let uuid = link.identity.and_then(Identity::uuid);
        if let (Some(uuid), Some(folder)) = (uuid, folder)
            && let Some(path) = self.search(folder, child, uuid)
        {
            return Ok(path);
        }
        let name = link.names.first().cloned().unwrap_or_else(|| match uuid {
            Some(uuid) => format!("{{{}}}", hyphenated(&uuid)),
            None => "without a name".to_owned(),
        });
        Err(refused.unwrap_or(Error::NotFound { name }))
    }

    /// Looks for the image with this identifier in the folder of its child and in the folders above, as
    /// far as they are allowed.
    fn search(&self, folder: &Path, format: Format, uuid: [u8; 16]) -> Option<PathBuf> {
        let within = self.folder.as_deref().unwrap_or(folder);
        folder.ancestors().take_while(|above| above.starts_with(within)).find_map(|folder| {
            let entries = std::fs::read_dir(folder).ok()?.flatten().take(MAX_SEARCHED);
            entries.map(|entry| entry.path()).find(|path| has_identity(path, format, uuid))
        })
    }
}

/// Reads an image's own structures.
pub(crate) fn parse(
    source: Arc<dyn Source>,
    format: Format,
    neighbours: &Neighbours<'_>,
    snapshot: Option<&str>,
) -> Result<Parsed> {
    if snapshot.is_some() && !has_several(format) {
        let what = "the format has no internal snapshots".to_owned();
        return Err(Error::Unsupported { format, what });
    }
    let parsed = match format {
        Format::Raw => {
            let what = "a raw disk has no structures".to_owned();
            Err(Error::Unsupported { format, what })
        }
        Format::Qcow2 => qcow2::parse(source, neighbours, snapshot),
        Format::Qcow => qcow::parse(source),
        Format::Qed => qed::parse(source),
        Format::Vmdk => vmdk::parse(source, neighbours),
        Format::Vhd => vhd::parse(source),
        Format::Vhdx => vhdx::parse(source),
        Format::Vdi => vdi::parse(source),
        Format::Parallels => parallels::parse(source, neighbours, snapshot),
        Format::Dmg => dmg::parse(source),
        Format::Asif => asif::parse(source),
        Format::Vma => vma::parse(source, snapshot),
    }?;
    if parsed.length > MAX_LENGTH {
        let what = "its disk is longer than any can be".to_owned();
        return Err(Error::Damaged { format, what });
    }
    Ok(parsed)
}

/// Whether images of this format hold snapshots, or several disks.
fn has_several(format: Format) -> bool {
    matches!(format, Format::Qcow2 | Format::Parallels | Format::Vma)
}

/// Whether a path has one of the forms by which QEMU names what is not a file.
pub(crate) fn is_protocol(name: &str) -> bool {
    let colon = name.find(':');
    // A colon after a slash is part of a file's name, as in QEMU.
    colon.is_some_and(|colon| !name[..colon].contains('/'))
}

fn has_identity(path: &Path, format: Format, uuid: [u8; 16]) -> bool {
    let is_file = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file());
    if !is_file || !path.components().all(|part| !matches!(part, Component::ParentDir)) {
        return false;
    }
    let Ok(source) = FileSource::open(path, true) else { return false };
    if !Format::detect(&source).is_ok_and(|found| found == format) {
        return false;
    }
    parse(Arc::new(source), format, &Neighbours::NONE, None)
        .is_ok_and(|parsed| parsed.identity.and_then(Identity::uuid) == Some(uuid))
}

/// The forms of a path that a program on Windows wrote: as it is, with this system's separators, and its
/// last part alone, since images that were copied elsewhere usually stay together.
pub(crate) fn portable_names(name: &str) -> Vec<String> {
    let slashes = name.replace('\\', "/");
    let last = slashes.rsplit('/').next().unwrap_or_default().to_owned();
    let mut names = vec![name.to_owned(), slashes, last];
    names.dedup();
    names
}

/// A UUID as text.
pub(crate) fn hyphenated(uuid: &[u8; 16]) -> String {
    let mut text = String::new();
    for (index, byte) in uuid.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}
