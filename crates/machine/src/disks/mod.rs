//! The disks that a [`VmSpec`](spec::VmSpec) names, opened: whatever their format, and with a place for what the
//! guest writes.
//!
//! A guest writes into a qcow2 overlay that is kept in the state folder of its VM, so that no image is changed unless
//! that was asked for. Images are told by their content, with one exception: a raw disk that a guest has
//! written itself could hold anything, so its format is remembered from the first time on.

mod read_ahead;
mod record;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::{Disk, FilePolicy, Format, ImageInfo, ImageOptions};

use read_ahead::ReadAhead;
use record::{Base, RawRecord, Record, stamp};

/// Where what lasts is kept.
#[derive(Clone, Debug)]
pub struct State {
    /// Of all VMs.
    pub folder: PathBuf,
    /// Name of this one, which is that of its folder within the other.
    pub vm: String,
    /// See [`ImageOptions::cache`].
    pub cache: Option<PathBuf>,
}

/// A disk that is open.
pub struct OpenDisk {
    /// What it was opened from.
    pub spec: spec::Disk,
    /// Its content.
    pub disk: Arc<dyn Disk>,
    /// Its format.
    pub format: Format,
    /// Where what the guest writes goes.
    pub writes: Writes,
}

/// Where what the guest writes goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Writes {
    /// The guest cannot write.
    Nowhere,
    /// To the image.
    InPlace,
    /// To an overlay that is gone after the run.
    Discarded {
        /// The overlay of other runs, which this one leaves alone.
        kept: Option<PathBuf>,
    },
    /// To an overlay that is kept.
    Overlay {
        /// Its file.
        path: PathBuf,
        /// This run made it.
        is_new: bool,
    },
}

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The format is none.
    #[error(transparent)]
    Format(#[from] disk::UnknownFormat),
    /// The disk cannot be used.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// The name of a VM cannot be that of a folder.
    #[error("The name {0:?} cannot be that of a folder")]
    Name(String),
    /// The image can only be read.
    #[error("{} images can only be read, so {} cannot be written in place", format, path.display())]
    NotInPlace {
        /// The image.
        path: PathBuf,
        /// Its format.
        format: Format,
    },
    /// What was kept cannot be read or written.
    #[error("Cannot {action} {}", path.display())]
    State {
        /// What was tried, after "cannot".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: std::io::Error,
    },
    /// What was kept makes no sense.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The overlay was made over something else.
    #[error("The overlay {} does not fit any more: {what}", overlay.display())]
    BaseChanged {
        /// The overlay.
        overlay: PathBuf,
        /// What has changed beneath it.
        what: String,
    },
}

/// Opens disks, in their order.
pub fn open_disks(disks: &[spec::Disk], state: &State) -> Result<Vec<OpenDisk>, Error> {
    disks.iter().map(|disk| open_disk(disk, state)).collect()
}

/// The format that is remembered of the file at `path`, as that of a raw disk is once a guest has written to it.
pub fn remembered_format(path: &Path, state: &Path) -> Result<Option<Format>, Error> {
    let Ok(path) = std::fs::canonicalize(path) else { return Ok(None) };
    Ok(RawRecord::new(state, &path).is_raw(&path)?.then_some(Format::Raw))
}

fn open_disk(spec: &spec::Disk, state: &State) -> Result<OpenDisk, Error> {
    let path = if disk::is_url(&spec.path) {
        spec.path.clone()
    } else {
        let path = std::path::absolute(&spec.path).unwrap_or_else(|_| spec.path.clone());
        // Links are followed, so that one disk has one overlay; what is not there fails when it is opened.
        std::fs::canonicalize(&path).unwrap_or(path)
    };
    let stated = spec.format.as_deref().map(str::parse).transpose()?;
    let raw_record = RawRecord::new(&state.folder, &path);
    let format = match stated {
        Some(format) => Some(format),
        None => raw_record.is_raw(&path)?.then_some(Format::Raw),
    };
    let files = match &spec.within {
        _ if spec.outside => FilePolicy::Anywhere,
        Some(folder) => FilePolicy::Within(folder.clone()),
        None => FilePolicy::SameFolder,
    };
    let options = ImageOptions {
        read_only: !spec.in_place,
        direct: spec.direct,
        format,
        files,
        whole: true,
        cache: state.cache.clone(),
        ..ImageOptions::default()
    };
    let opened = |disk, chain: &[ImageInfo], writes| {
        let format = chain.first().map_or(Format::Raw, |image| image.format);
        OpenDisk { spec: spec.clone(), disk, format, writes }
    };
    if spec.in_place {
        let (disk, chain) = disk::open_chain(&path, &options)?;
        let open = opened(disk, &chain, Writes::InPlace);
        if open.disk.is_read_only() {
            return Err(Error::NotInPlace { path, format: open.format });
        }
        if open.format == Format::Raw {
            raw_record.remember(&path)?;
        }
        return Ok(open);
    }
    if spec.readonly {
        let (disk, chain) = open_base(&path, &options)?;
        return Ok(opened(disk, &chain, Writes::Nowhere));
    }
    let folder = state.vm_folder()?;
    let create = |source| Error::State { action: "create", path: folder.clone(), source };
    std::fs::create_dir_all(&folder).map_err(create)?;
    let overlay = folder.join(format!("{}.qcow2", stamp(&path)));
    if spec.discard {
        let (base, chain) = open_base(&path, &options)?;
        let disk = temporary_overlay(&folder, base)?;
        let kept = overlay.exists().then_some(overlay);
        return Ok(opened(disk, &chain, Writes::Discarded { kept }));
    }
    let record = Record::of(&overlay);
    let kept = overlay.exists().then(|| record.read()).transpose()?;
    let options =
        ImageOptions { format: options.format.or(kept.as_ref().and_then(Base::format)), ..options };
    let (base, chain) = open_base(&path, &options)?;
    let found = Base::new(&path, &chain);
    let (disk, is_new) = match kept {
        Some(kept) => {
            if let Some(what) = kept.difference(&found) {
                return Err(Error::BaseChanged { overlay, what });
            }
            (disk::open_over(&overlay, base)?, false)
        }
        None => {
            // First, so that there is no overlay without it.
            record.write(&found)?;
            // Only a file can be named: others have the record alone.
            let format = found.format().filter(|_| !disk::is_url(&path));
            let named = format.and_then(|format| Some((path.to_str()?.to_owned(), format)));
            (disk::overlay(&overlay, base, named)?, true)
        }
    };
    Ok(opened(disk, &chain, Writes::Overlay { path: overlay, is_new }))
}

impl State {
    /// The folder of this VM.
    pub fn vm_folder(&self) -> Result<PathBuf, Error> {
        let vm = &self.vm;
        let plain = !vm.is_empty() && !vm.starts_with('.') && !vm.contains(['/', '\0']);
        if plain { Ok(self.folder.join(vm)) } else { Err(Error::Name(vm.clone())) }
    }
}

/// A disk that is only read, with its images. Those that may be compressed are read ahead.
fn open_base(
    path: &Path,
    options: &ImageOptions,
) -> Result<(Arc<dyn Disk>, Vec<ImageInfo>), Error> {
    let (disk, chain) = disk::open_chain(path, options)?;
    let is_raw = disk.direct_file().is_some();
    Ok((if is_raw { disk } else { ReadAhead::over(disk) }, chain))
}

/// An overlay whose file has no name, and so ends with the process.
fn temporary_overlay(folder: &Path, base: Arc<dyn Disk>) -> Result<Arc<dyn Disk>, Error> {
    let path = folder.join(format!(".discard-{}-{:p}.qcow2", std::process::id(), base));
    let overlay = disk::overlay(&path, base, None);
    let removed = std::fs::remove_file(&path);
    let overlay = overlay?;
    removed.map_err(|source| Error::State { action: "remove", path, source })?;
    Ok(overlay)
}
