//! Disks in archives, read where they are: members of an OVA, and the blocks of which an XVA's disks are made.

mod blocks;
mod tar;
#[cfg(test)]
mod tests;
mod verify;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use tar::{Member, members};

use crate::layer::{Image, Layer, Place, Run};
use crate::open::{Neighbours, parse};
use crate::source::{FileSource, PartSource, Source};
use crate::{Disk, Error, Format, ImageInfo, Result, SECTOR_SIZE};

/// Opens the image that a source holds, for reading; other files that it names are not found. The format is found out by
/// content unless it is given.
pub fn open_source(
    source: Arc<dyn Source>,
    format: Option<Format>,
) -> Result<(Arc<dyn Disk>, ImageInfo)> {
    let format = match format {
        Some(format) => format,
        None => Format::detect(&*source)?,
    };
    let mut info = ImageInfo {
        path: PathBuf::new(),
        format,
        length: source.len() / SECTOR_SIZE * SECTOR_SIZE,
        file_length: source.len(),
        block_size: 1,
        details: Vec::new(),
        snapshots: Vec::new(),
    };
    let disk = if format == Format::Raw {
        Image::new(format, Box::new(Plain([source])), info.length, None, true)
    } else {
        let parsed = parse(source, format, &Neighbours::NONE, None)?;
        if parsed.parent.is_some() {
            let what = "its parent cannot be looked for from where it is".to_owned();
            return Err(Error::Unsupported { format, what });
        }
        info.length = parsed.length;
        info.block_size = parsed.layer.block_size();
        info.details = parsed.details;
        info.snapshots = parsed.snapshots;
        Image::new(format, parsed.layer, parsed.length, None, true)
    };
    Ok((Arc::new(disk), info))
}

/// The archive and the name within it, if a path leads into one: `web.ova/disk1.vmdk`.
pub(crate) fn split(path: &Path) -> Option<(&Path, &Path)> {
    path.ancestors().skip(1).find_map(|archive| {
        let name = path.strip_prefix(archive).ok()?;
        archive.is_file().then_some((archive, name))
    })
}

/// Whether a file begins as an archive.
pub(crate) fn is_archive(path: &Path) -> bool {
    let mut header = [0; 512];
    // Not before it is known to be a file: others may block.
    path.is_file()
        && std::fs::File::open(path)
            .and_then(|mut file| file.read_exact(&mut header))
            .is_ok_and(|()| tar::is_header(&header))
}

/// Opens the disk that is called `name` in an archive, or the only one that is in it; nothing if the file is
/// no archive.
pub(crate) fn open_member(
    archive: &Path,
    name: Option<&Path>,
    format: Option<Format>,
) -> Result<Option<(Arc<dyn Disk>, ImageInfo)>> {
    let source: Arc<dyn Source> = Arc::new(FileSource::open(archive, true)?);
    let Some(members) = members(&*source)? else { return Ok(None) };
    let name = match name {
        Some(name) => name.to_string_lossy().into_owned(),
        None => match &disks(&source, &members)?[..] {
            [only] => only.clone(),
            [] => return Err(failed(archive, "holds no disk".to_owned())),
            several => {
                let names = several.join(", ");
                let first = archive.join(&several[0]);
                let what = format!("holds several disks, {names}: say {}", first.display());
                return Err(failed(archive, what));
            }
        },
    };
    let path = archive.join(&name);
    let inside = |source| Error::Image { path: path.clone(), source: Box::new(source) };
    let (disk, mut info) = if let Some(found) = members.iter().find(|member| member.name == name) {
        let part = PartSource::new(source, found.offset..found.offset + found.length);
        open_source(Arc::new(part), format).map_err(inside)?
    } else if let Some(blocks) = blocks::Blocks::new(source, &members, &name) {
        let length = blocks.length;
        let info = ImageInfo {
            path: PathBuf::new(),
            format: Format::Raw,
            length,
            file_length: blocks.stored,
            block_size: blocks::BLOCK,
            details: vec![("archive", "XVA".to_owned())],
            snapshots: Vec::new(),
        };
        let disk = Image::new(Format::Raw, Box::new(blocks), length, None, true);
        (Arc::new(disk) as Arc<dyn Disk>, info)
    } else {
        return Err(failed(archive, format!("holds no {name}")));
    };
    info.path = path;
    Ok(Some((disk, info)))
}

/// Names of the members that are images, and of the disks that are made of blocks.
fn disks(source: &Arc<dyn Source>, members: &[Member]) -> Result<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    for member in members {
        if let Some(disk) = blocks::disk_of(&member.name) {
            if names.last().is_none_or(|last| last != disk) {
                names.push(disk.to_owned());
            }
            continue;
        }
        let end = member.offset.saturating_add(member.length);
        let part = PartSource::new(Arc::clone(source), member.offset..end);
        if member.length >= SECTOR_SIZE && Format::detect(&part)? != Format::Raw {
            names.push(member.name.clone());
        }
    }
    names.dedup();
    Ok(names)
}

fn failed(archive: &Path, what: String) -> Error {
    Error::Archive { path: archive.to_owned(), what }
}

/// A raw disk in a source that is no file.
struct Plain([Arc<dyn Source>; 1]);

impl Layer for Plain {
    fn locate(&self, range: std::ops::Range<u64>) -> Result<Run> {
        Ok(Run { end: range.end, place: Place::Stored { source: 0, offset: range.start } })
    }

    fn sources(&self) -> &[Arc<dyn Source>] {
        &self.0
    }

    fn block_size(&self) -> u64 {
        1
    }
}
