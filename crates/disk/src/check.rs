//! Whether an image's structures are in order.

use std::path::Path;
use std::sync::Arc;

use crate::archive;
use crate::layer::{Image, Place};
use crate::open::{bundle_descriptor, open_image};
use crate::source::{FileSource, is_url};
use crate::{Error, Format, ImageOptions, Result, open_chain, qcow2};

/// Findings that are told one by one.
const MAX_FINDINGS: usize = 50;
/// Most pieces of a disk that are compared with each other.
const MAX_PIECES: usize = 8 << 20;

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkup {
    /// Contradictions, through which data are or may get lost.
    pub errors: u64,
    /// Of them, those that [`check`] cannot repair.
    pub beyond_repair: u64,
    /// Parts of the file that are taken and not used.
    pub leaks: u64,
    /// Bytes of those.
    pub leaked: u64,
    /// What could be repaired was.
    pub is_repaired: bool,
    /// The first findings, in words.
    pub findings: Vec<String>,
}

impl Checkup {
    /// Nothing is wrong, or not any more.
    pub fn is_in_order(&self) -> bool {
        let left = if self.is_repaired { self.beyond_repair } else { self.errors + self.leaks };
        left == 0
    }

    pub(crate) fn error(&mut self, what: String, can_repair: bool) {
        self.errors += 1;
        self.beyond_repair += u64::from(!can_repair);
        self.tell(what);
    }

    pub(crate) fn leak(&mut self, what: String, bytes: u64) {
        self.leaks += 1;
        self.leaked += bytes;
        self.tell(what);
    }

    fn tell(&mut self, what: String) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(what);
        }
    }
}

/// Checks the structures of the image at `path`, not those of its parents. With `repair`, its counts of references are made
/// anew and its marks are cleared (qcow2), or what its log holds is carried out and it is closed in order (other formats).
pub fn check(path: impl AsRef<Path>, options: &ImageOptions, repair: bool) -> Result<Checkup> {
    let path = path.as_ref();
    let bundle = bundle_descriptor(path);
    let path = bundle.as_deref().unwrap_or(path);
    // What is not a file of its own has no structures that could be changed.
    if is_url(path)
        || archive::split(path).is_some()
        || options.format.is_none() && archive::is_archive(path)
    {
        return Ok(Checkup::default());
    }
    let failed = |source| Error::Image { path: path.to_owned(), source: Box::new(source) };
    let format = match options.format {
        Some(format) => format,
        None => Format::detect(&FileSource::open(path, true)?)?,
    };
    match format {
        Format::Raw => Ok(Checkup::default()),
        Format::Qcow2 => {
            let source = Arc::new(FileSource::open(path, !repair)?);
            qcow2::check(source, repair).map_err(failed)
        }
        _ => check_places(path, format, options, repair),
    }
}

/// Looks for bytes of the file that two places of the disk have, and for images that were not closed in order.
fn check_places(
    path: &Path,
    format: Format,
    options: &ImageOptions,
    repair: bool,
) -> Result<Checkup> {
    let (image, details) = open_image(path, format, &options.files)?;
    let mut checkup = look_into(&image, &details)?;
    drop(image);
    if repair && checkup.errors != 0 && checkup.beyond_repair == 0 {
        let options = ImageOptions { read_only: false, format: Some(format), ..options.clone() };
        let (disk, _) = open_chain(path, &options)?;
        if disk.is_read_only() {
            let what = "images of this format can only be read".to_owned();
            return Err(Error::Unsupported { format, what });
        }
        // A write that changes nothing, for whatever is done before the first one only.
        let mut sector = vec![0; disk.geometry().logical_block as usize];
        if disk.len() >= sector.len() as u64 {
            disk.read_at(&mut sector, 0)?;
            disk.write_at(&sector, 0)?;
        }
        disk.flush()?;
        checkup.is_repaired = true;
    }
    Ok(checkup)
}

/// Looks into one image for what only marks and places tell.
pub(crate) fn look_into(image: &Image, details: &[(&'static str, String)]) -> Result<Checkup> {
    let mut checkup = Checkup::default();
    for (name, what) in
        [("dirty", "it was not closed in order"), ("log", "its log was not carried out")]
    {
        if details.iter().any(|(found, _)| *found == name) {
            checkup.error(what.to_owned(), true);
        }
    }
    overlaps(image, &mut checkup)?;
    Ok(checkup)
}

fn overlaps(image: &Image, checkup: &mut Checkup) -> Result<()> {
    // Source, offset, length, and whose bytes they are.
    let mut pieces: Vec<(usize, u64, u64, u64)> = Vec::new();
    let mut at = 0;
    while at < image.length {
        let run = image.layer.locate(at..image.length)?;
        let end = run.end.min(image.length);
        if end <= at {
            return Err(image.damaged("its tables lead nowhere"));
        }
        if let Place::Stored { source, offset } = run.place {
            let there = image.layer.sources().get(source).map_or(0, |source| source.len());
            if offset >= there {
                let what =
                    format!("the bytes at {at} should lie at {offset}, past the end of the file");
                checkup.error(what, false);
            } else if pieces.len() < MAX_PIECES {
                pieces.push((source, offset, end - at, at));
            }
        }
        at = end;
    }
    pieces.sort_unstable();
    let mut last: Option<(usize, u64, u64)> = None;
    for (source, offset, length, at) in pieces {
        if let Some((_, end, other)) =
            last.filter(|&(found, end, _)| found == source && end > offset)
        {
            let what = format!("the bytes at {other} and at {at} both lie at {offset} of the file");
            checkup.error(what, false);
            last = Some((source, end.max(offset.saturating_add(length)), at));
            continue;
        }
        last = Some((source, offset.saturating_add(length), at));
    }
    Ok(())
}
