//! An image with its parents, of this computer or another.

use std::cell::RefCell;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::{Identity, ImageInfo, ImageOptions, Neighbours, ParentLink, hyphenated, parse};
use crate::archive::{self, Archive};
use crate::layer::Image;
use crate::source::{FileSource, RemoteSource, Source};
use crate::{Disk, Error, Format, OpenOptions, RawDisk, Result, vhd};

/// Longest chain of parents that is followed.
const MAX_DEPTH: usize = 128;

/// Most files of a folder that are looked into for a parent that is known by its identity only.
const MAX_SEARCHED: usize = 4096;

/// An image that was opened, over its parents.
pub(super) struct Link {
    pub disk: Arc<dyn Disk>,
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

/// The images that are opened, one after the other.
#[derive(Default)]
pub(super) struct Chain<'a> {
    /// Where they may lie; anywhere if `None`.
    pub folder: Option<PathBuf>,
    /// Files that were cut short are refused.
    pub whole: bool,
    /// See [`ImageOptions::cache`].
    pub cache: Option<&'a Path>,
    pub infos: Vec<ImageInfo>,
    pub seen: Vec<(u64, u64)>,
    pub seen_remote: Vec<String>,
    /// Files of another computer that may be parents.
    pub parents: &'a [String],
}

impl Chain<'_> {
    pub fn open(&mut self, path: &Path, options: &ImageOptions) -> Result<Link> {
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

    pub fn open_remote(
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

/// What tells the file from other versions of it.
pub(super) fn version_of(source: &dyn RemoteSource) -> Option<(&'static str, String)> {
    Some(("version", source.state()?))
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
