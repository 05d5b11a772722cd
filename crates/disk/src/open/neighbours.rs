//! The files beside an image.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::FilePolicy;
use crate::source::{FileSource, RemoteSource, Source};
use crate::{Error, Result, archive};

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
