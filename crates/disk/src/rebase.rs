//! Giving an image another parent.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::layer::{Image, Place};
use crate::open::{Neighbours, parse};
use crate::source::FileSource;
use crate::{Disk, Error, Format, ImageOptions, Result, open, open_chain, qcow2};

/// Bytes that are compared at once.
const CHUNK: u64 = 1 << 20;

/// The parent that an image is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewParent {
    /// Where it is.
    pub path: PathBuf,
    /// What the image is to say of it: a path from its own folder, or a whole one.
    pub name: String,
    /// Its format; found out by content otherwise.
    pub format: Option<Format>,
}

/// What a rebase did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rebased {
    /// Bytes that the image keeps itself now, because the parents differ there.
    pub data: u64,
    /// Bytes that it says are zeroes, because the new parent has others there.
    pub zeroes: u64,
}

/// Gives the qcow2 image at `path` another parent, or none. Its disk stays the same: what the old parent has and the
/// new one has not is written to the image first. With `only_name`, nothing is compared and nothing is opened: that is for
/// parents that have moved. A rebase that was interrupted can be done again.
pub fn rebase(
    path: impl AsRef<Path>,
    parent: Option<&NewParent>,
    options: &ImageOptions,
    only_name: bool,
) -> Result<Rebased> {
    let path = path.as_ref();
    let failed = |source| Error::Image { path: path.to_owned(), source: Box::new(source) };
    let refuse = |format, what: &str| Err(Error::Unsupported { format, what: what.to_owned() });
    let format = match options.format {
        Some(format) => format,
        None => Format::detect(&FileSource::open(path, true)?)?,
    };
    if format != Format::Qcow2 {
        return refuse(format, "only qcow2 images can be given another parent");
    }
    let mut rebased = Rebased::default();
    let mut named = None;
    if only_name {
        if let Some(parent) = parent {
            let Some(format) = parent.format else {
                return refuse(Format::Qcow2, "the format of its new parent must be said");
            };
            named = Some((parent.name.clone(), format));
        }
    } else {
        let read_only = ImageOptions { read_only: true, ..options.clone() };
        let (_, chain) = open_chain(path, &read_only)?;
        let old = match chain.get(1) {
            Some(old) => {
                let options = ImageOptions { format: Some(old.format), ..read_only.clone() };
                Some(open(&old.path, &options)?)
            }
            None => None,
        };
        let new = match parent {
            Some(parent) => {
                let options = ImageOptions { format: parent.format, ..read_only };
                let (disk, chain) = open_chain(&parent.path, &options)?;
                let real = |path: &Path| std::fs::canonicalize(path).ok();
                if chain.iter().any(|image| real(&image.path) == real(path)) {
                    return Err(Error::Chain("would lead back to itself"));
                }
                named = chain.first().map(|image| (parent.name.clone(), image.format));
                Some(disk)
            }
            None => None,
        };
        rebased = keep(path, old, new.as_deref()).map_err(failed)?;
    }
    qcow2::set_backing(path, named.as_ref()).map_err(failed)?;
    Ok(rebased)
}

/// Writes to the image what it has not itself and the parents do not agree on.
fn keep(path: &Path, old: Option<Arc<dyn Disk>>, new: Option<&dyn Disk>) -> Result<Rebased> {
    let source = Arc::new(FileSource::open(path, false)?);
    let real = std::fs::canonicalize(path)
        .map_err(|source| Error::Open { path: path.to_owned(), source })?;
    let folder = real.parent();
    let neighbours = Neighbours { folder, within: folder, read_only: false, ..Neighbours::NONE };
    let parsed = parse(source, Format::Qcow2, &neighbours, None)?;
    let image = Image::new(Format::Qcow2, parsed.layer, parsed.length, old.clone(), false);
    let unit = image.layer.block_size();
    let mut rebased = Rebased::default();
    let (mut was, mut will) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < image.length {
        let run = image.layer.locate(at..image.length)?;
        // In whole clusters, since what is written takes one anyway.
        let end = run.end.min(image.length);
        if end <= at {
            return Err(image.damaged("its tables lead nowhere"));
        }
        if run.place != Place::Absent {
            at = end;
            continue;
        }
        let end = end.min((at / CHUNK + 1) * CHUNK);
        was.resize((end - at) as usize, 0);
        will.resize((end - at) as usize, 0);
        inherit(old.as_deref(), &mut was, at)?;
        inherit(new, &mut will, at)?;
        let mut start = at;
        while start < end {
            let stop = ((start / unit + 1) * unit).min(end);
            let within = (start - at) as usize..(stop - at) as usize;
            let bytes = &was[within.clone()];
            if *bytes != will[within] {
                if bytes.iter().all(|&byte| byte == 0) {
                    rebased.zeroes += stop - start;
                    if new.is_some() && old.is_none() {
                        // Without a parent nothing is kept of zeroes: they are written as such.
                        image.write_at(bytes, start)?;
                    } else {
                        image.write_zeroes(start..stop, true)?;
                    }
                } else {
                    rebased.data += stop - start;
                    image.write_at(bytes, start)?;
                }
            }
            start = stop;
        }
        at = end;
    }
    image.flush()?;
    Ok(rebased)
}

/// What a parent has at `offset`, and zeroes past its end.
fn inherit(parent: Option<&dyn Disk>, buffer: &mut [u8], offset: u64) -> Result<()> {
    let length = parent.map_or(0, |parent| parent.len());
    let there = length.saturating_sub(offset).min(buffer.len() as u64) as usize;
    buffer[there..].fill(0);
    match parent {
        Some(parent) if there != 0 => parent.read_at(&mut buffer[..there], offset),
        _ => Ok(()),
    }
}
