//! Disks in archives, read where they are: members of an OVA, and the blocks of which an XVA's disks are made.

mod blocks;
mod inside;
mod tar;
#[cfg(test)]
mod tests;
mod verify;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use inside::{Contents, Inside};
pub use tar::{Member, MemberKind, Members, is_tar};

use crate::layer::{Image, Layer, Place, Run};
use crate::open::{Neighbours, Parsed, parse};
use crate::source::{GzipSource, PartSource, RemoteSource, Source, gzip, read_vec};
use crate::{Disk, Error, Format, ImageInfo, ImageOptions, MemorySource, Result, SECTOR_SIZE};

/// Opens the image that a source holds, for reading; other files that it names are not found. The format is found out by
/// content unless it is given.
pub fn open_source(
    source: Arc<dyn Source>,
    format: Option<Format>,
) -> Result<(Arc<dyn Disk>, ImageInfo)> {
    open_beside(source, format, None)
}

/// The same of a source that may find the files that its image names.
fn open_beside(
    source: Arc<dyn Source>,
    format: Option<Format>,
    beside: Option<&dyn RemoteSource>,
) -> Result<(Arc<dyn Disk>, ImageInfo)> {
    let options = ImageOptions { format, ..ImageOptions::default() };
    let (parsed, info) = read_image(source, &options, beside)?;
    if parsed.parent.is_some() {
        let what = "its parent cannot be looked for from where it is".to_owned();
        return Err(Error::Unsupported { format: info.format, what });
    }
    let disk = Image::new(info.format, parsed.layer, parsed.length, None, true);
    Ok((Arc::new(disk), info))
}

/// Reads the structures of the image that a source holds, which need not be a file, and tells of it.
pub(crate) fn read_image(
    source: Arc<dyn Source>,
    options: &ImageOptions,
    remote: Option<&dyn RemoteSource>,
) -> Result<(Parsed, ImageInfo)> {
    let format = match options.format {
        Some(format) => format,
        None => Format::detect(&*source)?,
    };
    let file_length = source.len();
    let parsed = if format == Format::Raw {
        Parsed::new(Plain([source]), file_length / SECTOR_SIZE * SECTOR_SIZE)
    } else {
        let neighbours = Neighbours { remote, ..Neighbours::NONE };
        parse(source, format, &neighbours, options.snapshot.as_deref())?
    };
    let info = ImageInfo {
        path: PathBuf::new(),
        format,
        length: parsed.length,
        parts: Vec::new(),
        file_length,
        block_size: parsed.layer.block_size(),
        details: parsed.details.clone(),
        snapshots: parsed.snapshots.clone(),
    };
    Ok((parsed, info))
}

/// Most files of an archive: those of an XVA are blocks of 1 MiB.
const MAX_MEMBERS: usize = 8 << 20;

/// The files of a tar archive; nothing if the source is none.
fn members(source: &dyn Source) -> Result<Option<Vec<Member>>> {
    if !is_tar(&read_vec(source, 0, source.len().min(512) as usize)?) {
        return Ok(None);
    }
    let mut files = Vec::new();
    for member in Members::of(source) {
        let member = member?;
        if files.len() == MAX_MEMBERS {
            let what = "The archive has too many members".to_owned();
            return Err(Error::Tar { offset: member.header(), what });
        }
        files.extend((member.kind == MemberKind::File).then_some(member));
    }
    Ok(Some(files))
}

/// Where an archive is.
#[derive(Clone, Copy)]
pub(crate) enum Archive<'a> {
    Path(&'a Path),
    /// Of a server.
    Url(&'a str),
}

impl Archive<'_> {
    fn path(self) -> PathBuf {
        match self {
            Self::Path(path) => path.to_owned(),
            Self::Url(url) => PathBuf::from(url),
        }
    }

    /// What leads to a member of it.
    fn join(self, name: &str) -> PathBuf {
        match self {
            Self::Path(path) => path.join(name),
            Self::Url(url) => PathBuf::from(format!("{url}#{name}")),
        }
    }

    fn failed(self, what: String) -> Error {
        Error::Archive { path: self.path(), what }
    }
}

/// The archive and the name within it, if a path leads into one: `web.ova/disk1.vmdk`.
pub(crate) fn split(path: &Path) -> Option<(&Path, &Path)> {
    path.ancestors().skip(1).find_map(|archive| {
        let name = path.strip_prefix(archive).ok()?;
        archive.is_file().then_some((archive, name))
    })
}

/// Whether a file begins as an archive, or as what gzip has compressed.
pub(crate) fn is_archive(path: &Path) -> bool {
    let mut header = Vec::new();
    // Not before it is known to be a file: others may block.
    path.is_file()
        && std::fs::File::open(path)
            .and_then(|file| file.take(512).read_to_end(&mut header))
            .is_ok_and(|_| is_tar(&header) || header.starts_with(gzip::MAGIC))
}

/// The name of what gzip has compressed into a file of this name.
fn unpacked_name(name: &str) -> &str {
    let name = name.rsplit('/').next().unwrap_or_default();
    name.strip_suffix(".gz").unwrap_or(name)
}

/// Opens the disk that is called `name` in an archive, or the only one that is in it; nothing if the file is
/// no archive. A file that gzip has compressed is an archive of one, or a tar archive.
pub(crate) fn open_member(
    source: Arc<dyn Source>,
    archive: Archive<'_>,
    name: Option<String>,
    options: &ImageOptions,
) -> Result<Option<(Arc<dyn Disk>, ImageInfo)>> {
    let format = options.format;
    let unpack = |packed| GzipSource::open(packed, options.cache.as_deref());
    let is_packed = GzipSource::is_gzip(&*source)?;
    let source: Arc<dyn Source> = if is_packed { Arc::new(unpack(source)?) } else { source };
    let broken = |source| Error::Image { path: archive.path(), source: Box::new(source) };
    let Some(members) = members(&*source).map_err(broken)? else {
        if let Some(name) = &name
            && Format::detect(&*source)? == Format::Vma
        {
            return open_in_vma(source, archive.join(name), name).map(Some);
        }
        if !is_packed {
            return Ok(None);
        }
        let path = archive.path();
        let only = unpacked_name(&path.to_string_lossy()).to_owned();
        if name.is_some_and(|name| name != only) {
            return Err(archive.failed(format!("holds {only} alone")));
        }
        let path = archive.join(&only);
        let inside = |source| Error::Image { path: path.clone(), source: Box::new(source) };
        let (disk, info) = open_source(source, format).map_err(inside)?;
        return Ok(Some((disk, ImageInfo { path, ..info })));
    };
    let name = match name {
        Some(name) => name,
        None => match &disks(&source, &members)?[..] {
            [only] => only.clone(),
            [] => return Err(archive.failed("holds no disk".to_owned())),
            several => {
                let names = several.join(", ");
                let first = archive.join(&several[0]);
                let what = format!("holds several disks, {names}: say {}", first.display());
                return Err(archive.failed(what));
            }
        },
    };
    let path = archive.join(&name);
    let inside = |source| Error::Image { path: path.clone(), source: Box::new(source) };
    let contents = Arc::new(Contents { source, members, path: archive.path() });
    // `disk.vmdk.gz/disk.vmdk` is what is in it, `disk.vmdk.gz` too, unless that was said to be raw.
    let outer = name.rsplit_once('/').filter(|(outer, inner)| unpacked_name(outer) == *inner);
    let packed = match outer.and_then(|(outer, _)| contents.part(outer)) {
        None => contents.part(&name).filter(|_| format != Some(Format::Raw)),
        found => found,
    };
    let packed = packed.map(Arc::new);
    let (disk, mut info) = if let Some(packed) = packed
        && GzipSource::is_gzip(&*packed)?
    {
        let unpacked = unpack(packed).map_err(inside)?;
        open_source(Arc::new(unpacked), format).map_err(inside)?
    } else if let Some(found) = Inside::new(&contents, &name).map(Arc::new) {
        open_beside(found.clone(), format, Some(&*found)).map_err(inside)?
    } else if let Some(blocks) =
        blocks::Blocks::new(Arc::clone(&contents.source), &contents.members, &name)
    {
        let length = blocks.length;
        let info = ImageInfo {
            path: PathBuf::new(),
            format: Format::Raw,
            length,
            parts: Vec::new(),
            file_length: blocks.stored,
            block_size: blocks::BLOCK,
            details: vec![("archive", "XVA".to_owned())],
            snapshots: Vec::new(),
        };
        let disk = Image::new(Format::Raw, Box::new(blocks), length, None, true);
        (Arc::new(disk) as Arc<dyn Disk>, info)
    } else {
        return Err(archive.failed(format!("holds no {name}")));
    };
    info.path = path;
    Ok(Some((disk, info)))
}

/// Opens the disk of this name in an archive of Proxmox's.
fn open_in_vma(
    source: Arc<dyn Source>,
    path: PathBuf,
    name: &str,
) -> Result<(Arc<dyn Disk>, ImageInfo)> {
    let options = ImageOptions {
        format: Some(Format::Vma),
        snapshot: Some(name.to_owned()),
        ..ImageOptions::default()
    };
    let inside = |source| Error::Image { path: path.clone(), source: Box::new(source) };
    let (parsed, info) = read_image(source, &options, None).map_err(inside)?;
    let disk = Image::new(Format::Vma, parsed.layer, parsed.length, None, true);
    Ok((Arc::new(disk), ImageInfo { path, ..info }))
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
        let format = if GzipSource::is_gzip(&part)? {
            // Its start tells enough of most formats.
            Format::detect(&MemorySource::read_only(gzip::head(&part)?))?
        } else if member.length >= SECTOR_SIZE {
            Format::detect(&part)?
        } else {
            Format::Raw
        };
        if format != Format::Raw {
            names.push(member.name.to_string());
        }
    }
    names.dedup();
    Ok(names)
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
